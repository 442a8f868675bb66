"A batch chosen by memory, with memory and GPUs that are made up."
import math
import subprocess
from types import SimpleNamespace

import pytest
import torch

from cjm_yolox_pytorch.commands.options import parser_of
from cjm_yolox_pytorch.training import batch_size
from cjm_yolox_pytorch.training.batch_size import batch_sizes, choose_batch, largest_by_trying, measure_memory
from cjm_yolox_pytorch.training.recipe import Recipe
from cjm_yolox_pytorch.training.recipe_file import read_recipe
from cjm_yolox_pytorch.training.train import train, yolox_train

CPU = torch.device('cpu')


def pretend(monkeypatch, free, peaks):
    monkeypatch.setattr(batch_size, 'free_gb', lambda: free)
    monkeypatch.setattr(batch_size, 'measure_memory', lambda recipe, num_classes: peaks)


@pytest.mark.parametrize('free, expected', [(3.2, 4), (5.7, 8), (10.7, 16), (1000, 64)]) # 8 images need 4.5 GB
def test_cpu_batch_follows_free_memory(monkeypatch, free, expected):
    pretend(monkeypatch, free, {1: 1., 2: 1.5, 4: 2.5})
    chosen, why = choose_batch(Recipe(), 3, 10**6, CPU)
    assert chosen.batch == expected and f'of {free:.1f} GB' in why
    assert chosen.lr == pytest.approx(.002*math.sqrt(expected/8))
    assert ('the most for 1000000 training images' in why) == (expected == 64)


def test_learning_rates_are_scaled_unless_given(monkeypatch):
    pretend(monkeypatch, 10.7, {1: 1., 2: 1.5, 4: 2.5})
    assert choose_batch(Recipe(optimizer='sgd'), 3, 10**6, CPU)[0].lr == pytest.approx(.004)
    assert choose_batch(Recipe(lr=.003), 3, 10**6, CPU, keep_lr=True)[0].lr == .003


def test_parts_of_a_batch_have_to_fit(monkeypatch):
    pretend(monkeypatch, 3.2, {1: 1., 2: 1.5, 4: 2.5})
    chosen, _ = choose_batch(Recipe(batch=8, grad_accum=4), 3, 10**6, CPU)
    assert chosen.batch == 16 and chosen.grad_accum == 4
    pretend(monkeypatch, 1000., {1: 1., 2: 1.5, 4: 2.5})
    assert choose_batch(Recipe(batch=8, grad_accum=4), 3, 10**6, CPU)[0].batch == 64 # All parts together
    assert choose_batch(Recipe(batch=8, grad_accum=4), 3, 400, CPU)[0].batch == 16


def test_few_images_keep_the_usual_batch():
    assert batch_sizes(25) == batch_sizes(300) == [1, 2, 4, 8] and batch_sizes(320)[-1] == 16
    assert batch_sizes(10**6)[-1] == 64 and batch_sizes(25, usual=128)[-1] == 128


@pytest.mark.parametrize('capacity, expected', [(0, 0), (1, 1), (5, 4), (16, 16), (63, 32), (1000, 64)])
def test_trying_ends_where_memory_ends(capacity, expected):
    tried = []
    def used(n):
        tried.append(n)
        if n > capacity: raise torch.OutOfMemoryError('CUDA out of memory')
        return .5
    assert largest_by_trying(used, batch_sizes(10**6)) == expected
    assert tried[-1] == min(64, max(1, 2*expected)) # Nothing beyond the first failure


@pytest.mark.parametrize('per_image, expected', [(1., 16), (3., 4), (50., 0)])
def test_gpu_is_tried_with_a_margin(monkeypatch, per_image, expected):
    "20 GB are free, and 80% of them usable"
    reserved = dict(peak=18e9) # Of an earlier training
    def step(trainer, n):
        if n*per_image > 20: raise torch.OutOfMemoryError('CUDA out of memory')
        reserved['peak'] = max(reserved['peak'], n*per_image*1e9)
    monkeypatch.setattr(batch_size, 'trial_trainer', lambda *args: SimpleNamespace(device=None))
    monkeypatch.setattr(batch_size, 'trial_step', step)
    fake = dict(mem_get_info=(int(19e9), int(24e9)), memory_reserved=int(1e9), empty_cache=None)
    for name, value in fake.items(): monkeypatch.setattr(torch.cuda, name, lambda *args, value=value: value)
    monkeypatch.setattr(torch.cuda, 'max_memory_reserved', lambda *args: reserved['peak'])
    monkeypatch.setattr(torch.cuda, 'reset_peak_memory_stats', lambda *args: reserved.update(peak=0))
    if not expected:
        with pytest.raises(MemoryError, match='not even one image fits: tried on the GPU, with 20.0 GB free'):
            choose_batch(Recipe(), 3, 10**6, torch.device('cuda'))
        return
    chosen, why = choose_batch(Recipe(), 3, 10**6, torch.device('cuda'))
    assert chosen.batch == expected and why.startswith(f'batch {expected}, lr ') and why.endswith('with 20.0 GB free')
    assert reserved['peak'] == 0 # That of the training will be its own


def test_a_killed_trial_leaves_what_was_measured(monkeypatch):
    def end(stdout):
        done = subprocess.CompletedProcess('', -9, stdout, '')
        monkeypatch.setattr(subprocess, 'run', lambda *args, **kwargs: done)
    end('1 0.5\n2 0.75\n')
    assert measure_memory(Recipe(), 3) == {1: .5, 2: .75}
    end('1 0.5\n')
    with pytest.raises(MemoryError, match='no trial step with 2 images: it was killed'): measure_memory(Recipe(), 3)


def test_several_processes_are_refused(monkeypatch):
    monkeypatch.setattr(batch_size, 'rank_and_world', lambda: (0, 2))
    with pytest.raises(ValueError, match="batch='auto' is for one process: give a number"):
        choose_batch(Recipe(), 3, 100, CPU)


def test_a_run_records_the_number_and_resumes_with_it(shapes, tmp_path, no_plots, monkeypatch, caplog):
    out, options = tmp_path/'run', dict(img_size=64, epochs=1, batch='auto', device='cpu', workers=0)
    pretend(monkeypatch, 3.2, {1: 1., 2: 1.5, 4: 2.5})
    with caplog.at_level('INFO'): train(shapes, 'yolox_nano', out=out, **options)
    assert 'batch 4, lr 0.0014: needs 2.5 of 3.2 GB of free memory' in ' '.join(caplog.text.split())
    recorded = read_recipe(out/'recipe.yaml')
    assert recorded['batch'] == 4 and recorded['lr'] == pytest.approx(.002/math.sqrt(2))
    pretend(monkeypatch, 1000., {1: 1., 2: 1.5, 4: 2.5}) # Memory for 64 images
    train(shapes, 'yolox_nano', out=out, resume=True, **options)
    assert read_recipe(out/'recipe.yaml') == recorded


def test_the_option_takes_a_number_or_the_word(capsys):
    parser = parser_of(yolox_train)
    assert [parser.parse_args(['DATA', *more]).batch for more in ([], ['--batch', '8'], ['--batch', 'auto'])] \
        == [None, 8, 'auto']
    with pytest.raises(SystemExit) as e: parser.parse_args(['DATA', '--batch', 'many'])
    assert e.value.code == 2 and "argument --batch: 'many': give a whole number, or auto" in capsys.readouterr().err
