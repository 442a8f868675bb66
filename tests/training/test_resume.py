"A training that is interrupted and resumed is the same training."
import io
import math
import os
import pickle
import re
import shutil
import signal
import time
from dataclasses import asdict, replace

import pytest
import torch
from fuzz import Mischief
from trainings import SMALL, assert_same_training, run_command, trainer, words

from cjm_yolox_pytorch.detection.detections import Detections
from cjm_yolox_pytorch.files.checkpoints import load_weights
from cjm_yolox_pytorch.training import runs
from cjm_yolox_pytorch.training.recipe import Recipe
from cjm_yolox_pytorch.training.runs import load_state, read_rows, save_state
from cjm_yolox_pytorch.training.train import fit, measure_best, train
from cjm_yolox_pytorch.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures('no_plots')


def slow_to_replace(command):
    "Run a command that never gets to replace best.safetensors"
    replace = os.replace
    def slow(source, target):
        if str(target).endswith('best.safetensors'): time.sleep(60)
        replace(source, target)
    os.replace = slow
    run_command(command)


@pytest.mark.parametrize('after', ['best.safetensors.partial', 'metrics.csv', 'state.pt', .3])
def test_killed_training_resumes_to_the_same_end(shapes, tmp_path, uninterrupted, start, after):
    out = tmp_path/'run'
    child = start(words(shapes, out), function=slow_to_replace if after == 'best.safetensors.partial' else run_command)
    child.wait_for(out/(after if isinstance(after, str) else 'state.pt'))
    if isinstance(after, float): time.sleep(after) # Somewhere in the first epochs
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    fit(trainer(shapes), out, resume=True)
    assert_same_training(out, uninterrupted)


def test_initial_weights_are_remembered(shapes, tmp_path, uninterrupted):
    "Also where the trainer that resumes is not given them"
    first = trainer(shapes)
    splits = first.train, first.val
    weights = load_weights(uninterrupted/'last.safetensors')
    fit(Trainer(first.recipe, *splits, weights, 'cpu'), tmp_path)
    resumed = Trainer(first.recipe, *splits, device='cpu')
    fit(resumed, tmp_path, resume=True)
    assert measure_best(resumed)['initial_weights'] == 'yolox_nano in memory'


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_stopped_training_saves_everything(shapes, tmp_path, uninterrupted, start_training, number):
    "Also when the signal reaches its workers"
    out = tmp_path/'run'
    child = start_training(out, '--workers', 1)
    child.wait_for(out/'state.pt')
    os.killpg(child.pid, number)
    assert child.wait() == 130 and 'everything is saved in' in child.output(), child.output()
    assert 'run the same command with --resume (resume=True)' in child.output()
    with pytest.raises(FileExistsError, match='already holds a training run'): fit(trainer(shapes), out)
    fit(trainer(shapes), out, resume=True)
    assert_same_training(out, uninterrupted)


VIEWS = dict(flip_ud=.5, rot90=.75, blur=.5, grayscale=.5, cutout=.5, balance=1.)
CHANGES = [{}, dict(min_size=64, max_size=128, workers=1), dict(no_aug_epochs=1), dict(amp='fp16'), VIEWS]


@pytest.mark.parametrize('changes', CHANGES)
def test_epoch_resumes_in_its_middle(shapes, tmp_path, changes):
    whole, first, second = (trainer(shapes, **changes) for _ in range(3))
    if 'no_aug_epochs' in changes: whole.epoch = first.epoch = 3 # The last
    whole.train_epoch()
    steps = iter([False, True])
    assert first.train_epoch(stop=lambda: next(steps)) is None and first.done == 2
    save_state(first, tmp_path/'state.pt')
    torch.rand(7) # Random numbers that have nothing to do with it
    load_state(second, tmp_path/'state.pt')
    losses = second.train_epoch()
    for a, b in ((second.model, whole.model), (second.ema.module, whole.ema.module)):
        assert all(map(torch.equal, a.state_dict().values(), b.state_dict().values()))
    assert second.batches.start == 2 and ('loss_l1' in losses) == ('no_aug_epochs' in changes)


def test_patience_is_resumed(shapes, tmp_path, monkeypatch):
    "A training that stopped early has nothing left to do"
    scores, nothing = iter([.3, .2, .1, .4]), Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0).long())
    def validate(self, progress): return dict(AP=next(scores), AP50=.5), [nothing]*len(self.val)
    monkeypatch.setattr(Trainer, 'validate', validate)
    fit(trainer(shapes, eval_interval=1, patience=2), tmp_path)
    best = fit(trainer(shapes, eval_interval=1, patience=2), tmp_path, resume=True)
    assert best['epoch'] == 1 and len(read_rows(tmp_path/'metrics.csv')) == 3


@pytest.fixture(scope='module')
def resumable(shapes, tmp_path_factory):
    "A trainer, and the file of a state in the middle of its second epoch"
    small, path = trainer(shapes), tmp_path_factory.mktemp('state')/'state.pt'
    small.rows = [dict(epoch=1, **small.train_epoch())]
    small.train_epoch(stop=lambda: True)
    save_state(small, path)
    return small, path


def saved(thing):
    torch.save(thing, file := io.BytesIO())
    return file.getvalue()


DAMAGES = dict(cut=lambda data: data[:-300], empty=lambda data: b'', text=lambda data: b'text',
    code=lambda data: pickle.dumps(os.getcwd), another=lambda data: saved(dict(model={}, epoch=3)),
    list=lambda data: saved([1]))


@pytest.mark.parametrize('damage', DAMAGES)
def test_damaged_state_is_refused_in_one_line(resumable, tmp_path, damage):
    small, path = resumable
    (tmp_path/'state.pt').write_bytes(DAMAGES[damage](path.read_bytes()))
    with pytest.raises(ValueError, match=r'state\.pt') as e: load_state(small, tmp_path/'state.pt')
    assert '\n' not in str(e.value) and 'weights_only' not in str(e.value)


def test_state_that_would_run_code_is_refused(resumable, tmp_path):
    (tmp_path/'state.pt').write_bytes(saved(dict(model=Mischief(os.mkdir, str(tmp_path/'canary')))))
    with pytest.raises(ValueError, match='would execute (posix|nt).mkdir'):
        load_state(resumable[0], tmp_path/'state.pt')
    assert os.listdir(tmp_path) == ['state.pt']


def replaced(state, way, value):
    "A copy of `state` with another value at the end of the `way`"
    key, *rest = way
    return {**state, key: replaced(state[key], rest, value) if rest else value}


def test_state_with_odd_contents_is_refused_in_one_line(shapes, resumable, tmp_path, monkeypatch):
    good, first = torch.load(resumable[1], weights_only=True), 'backbone.stem.conv.conv.weight'
    again, path, zeros, ones = trainer(shapes), tmp_path/'state.pt', [0.]*3, [1.]*3
    moments = {n: {**kept, 'exp_avg': torch.zeros(7)} for n, kept in good['optimizer']['state'].items()}
    odd = {
        'extra': [1], 'recipe': [None, {}], 'recipe.extra': [1], 'data': [[1]], 'data.extra': [None],
        'counts': [{}], 'counts.epoch': ['1', 1., -5, 10**9], 'counts.done': [10**9, 3],
        'counts.average_steps': [8], 'counts.best': [None, {}, {'AP': 'high'}, {'AP': .5, 'x': 1}],
        'counts.rows': [3, [{'x': 1}], [{'epoch': 1, 'AP': 'high'}], [{'AP': .5}]],
        'counts.stats': [{'mean': 1}, {'mean': zeros}, {'mean': zeros, 'std': ones, 'x': 1}, {'mean': 0., 'std': 1.},
            {'mean': [0.], 'std': [1.]}, {'mean': zeros, 'std': zeros}, {'mean': zeros, 'std': [1., -1., 1.]},
            {'mean': zeros, 'std': [1., math.nan, 1.]}, {'mean': zeros, 'std': ['1']*3}],
        'counts.totals': [{'x': torch.ones(())}, {}, {'loss_cls': torch.ones(2)}, {'loss_cls': 1.}, [1]],
        'model': [{}], f'model/{first}': [torch.zeros(3)],
        f'average/{first}': [1], 'optimizer': [dict(state={}, param_groups=[])], 'optimizer.state': [moments],
        'random': [None], 'random.cpu': [torch.zeros(3), None], 'scheduler': [{}]}
    for where, values in odd.items():
        way = where.split('/') if '/' in where else where.split('.')
        for value in values:
            state = replaced(good, way, value)
            monkeypatch.setattr(runs, 'read_file', lambda *args: (state, None)) # Faster than files of ten megabytes
            with pytest.raises(ValueError, match='state.pt cannot be resumed here') as e: load_state(again, path)
            assert '\n' not in str(e.value) and len(str(e.value)) < 500
    monkeypatch.undo()
    load_state(again, resumable[1])
    assert again.steps == 4


@pytest.fixture
def stopped(shapes, tmp_path):
    "The folder of a training that stopped after an epoch"
    class Stop:
        def on_epoch_end(self, t): raise StopIteration
    with pytest.raises(StopIteration): fit(trainer(shapes), tmp_path/'run', callbacks=[Stop()])
    return tmp_path/'run'


def test_training_is_resumed_with_its_own_recipe(shapes, stopped, uninterrupted):
    "No option has its default here, as if a newer version had other defaults; nothing is given but the folder"
    assert not {*SMALL.items()} & {*asdict(Recipe()).items()}
    train(str(shapes), out=stopped, device='cpu', resume=True)
    assert_same_training(stopped, uninterrupted)


@pytest.mark.parametrize('options, message', [(dict(lr=.5), r'another recipe, lr=0.5 \(was 0.002\)'),
    (dict(epochs=9), r'epochs=9 \(was 4\)'),
    (dict(recipe='fine_tune', model='yolox_nano', batch=4), 'another recipe, ')])
def test_options_that_contradict_a_training_are_refused(shapes, stopped, options, message):
    before = (stopped/'state.pt').read_bytes()
    with pytest.raises(ValueError, match=message): train(str(shapes), out=stopped, device='cpu', resume=True, **options)
    assert (stopped/'state.pt').read_bytes() == before


def test_edited_recipe_of_a_training_is_refused(shapes, stopped):
    (stopped/'recipe.yaml').write_text((stopped/'recipe.yaml').read_text().replace('epochs: 4', 'epochs: 5'))
    with pytest.raises(ValueError, match=r'another recipe, epochs=5 \(was 4\)'):
        train(str(shapes), out=stopped, device='cpu', resume=True)


def test_state_of_version_0_3_is_resumed(shapes, resumable, tmp_path):
    "Its recipe has other names for some fields"
    state = torch.load(resumable[1], weights_only=True)
    old = dict(img_size='size', grad_accum='accumulate', weight_decay='decay', warmup_epochs='warmup',
        no_aug_epochs='closing', min_lr_ratio='least', clip_grad_norm='clip', ema_decay='ema', ema_tau='ema_early',
        hsv_h='hue', hsv_s='saturation', hsv_v='value', flip_lr='flip', eval_interval='every')
    state['recipe'] = {old.get(k, k): v for k, v in state['recipe'].items()}
    torch.save(state, tmp_path/'state.pt')
    again = trainer(shapes)
    load_state(again, tmp_path/'state.pt')
    assert again.steps == 4
    other, message = trainer(shapes, hsv_h=9.), r'another recipe, hsv_h=9.0 \(was 5.0\)'
    with pytest.raises(ValueError, match=message): load_state(other, tmp_path/'state.pt')


def test_recipe_may_change_where_nothing_learned_depends_on_it(shapes, resumable):
    changed = trainer(shapes, eval_interval=1, patience=3, grad_accum=2, clip_grad_norm=1., amp='bf16')
    load_state(changed, resumable[1])
    assert changed.steps == 4 and changed.recipe.clip_grad_norm == 1 != SMALL['clip_grad_norm']


def new_run_is_advised(message, out):
    command = f'yolox_train DATA --model yolox_nano --weights {out}/best.safetensors --out NEW'
    assert f'begin a new run from its weights: {command}' in message


def test_resume_with_other_classes_says_how_to_begin_anew(shapes, tmp_path, uninterrupted):
    "Their names, their order, or more of them"
    small = trainer(shapes)
    for names in (['disk', *small.train.names[1:]], small.train.names[::-1], [*small.train.names, 'moon']):
        other = Trainer(small.recipe, relabel_to(small.train, names), relabel_to(small.val, names), device='cpu')
        with pytest.raises(ValueError, match='other data or weights, names=') as e:
            load_state(other, uninterrupted/'state.pt')
        new_run_is_advised(str(e.value), uninterrupted)


def test_resume_with_other_data_says_what_differs(shapes, uninterrupted):
    small = trainer(shapes)
    names = [f'class {n}' for n in range(30)]
    other = Trainer(small.recipe, relabel_to(small.train, names), relabel_to(small.val, names), device='cpu')
    with pytest.raises(ValueError, match=r"names=\['class 0', .* \(was \['disc', ") as e:
        load_state(other, uninterrupted/'state.pt')
    assert 'fingerprint' not in str(e.value)
    small.train.boxes += 1
    with pytest.raises(ValueError, match='other data or weights, other boxes, labels or file names. Use the same'):
        load_state(small, uninterrupted/'state.pt')


def relabel_to(split, names): return replace(split, names=list(names))


def test_resume_with_other_weights_or_bit_depth_is_refused(shapes, tmp_path, uninterrupted):
    deep = trainer(shapes)
    deep.train.bit_depth = 12
    with pytest.raises(ValueError, match=r'other data or weights, bit_depth=12 \(was 16\)') as e:
        load_state(deep, uninterrupted/'state.pt')
    new_run_is_advised(str(e.value), uninterrupted)
    first, same, none, other = (trainer(shapes) for _ in range(4))
    for small, weights in [(first, 'a/best.safetensors'), (same, 'a/best.safetensors'), (other, 'coco')]:
        small.notes['weights'] = weights
    save_state(first, tmp_path/'state.pt')
    for small in (same, none): load_state(small, tmp_path/'state.pt')
    assert none.notes['weights'] == 'a/best.safetensors' # They need not be given again
    with pytest.raises(ValueError, match=r"weights='coco' \(was 'a/best.safetensors'\)"):
        load_state(other, tmp_path/'state.pt')


def test_resume_with_a_damaged_state_says_how_to_begin_anew(shapes, tmp_path, uninterrupted):
    shutil.copy(uninterrupted/'best.safetensors', tmp_path)
    (tmp_path/'state.pt').write_bytes((uninterrupted/'state.pt').read_bytes()[:-300])
    with pytest.raises(ValueError, match='If it is damaged') as e: load_state(trainer(shapes), tmp_path/'state.pt')
    new_run_is_advised(str(e.value), tmp_path)


def test_resume_with_images_elsewhere_is_told(shapes, tmp_path, resumable, caplog):
    "And with another version of torch"
    load_state(trainer(shapes), resumable[1])
    assert 'resuming' not in caplog.text
    shutil.copytree(shapes, tmp_path/'moved')
    load_state(trainer(tmp_path/'moved'), resumable[1])
    assert re.search('WARNING .*resuming with folder=.*moved/train', caplog.text)
    state = torch.load(resumable[1], weights_only=True)
    state['data']['torch'] = '1.0'
    torch.save(state, tmp_path/'state.pt')
    load_state(trainer(shapes), tmp_path/'state.pt')
    assert re.search(r"torch=.* \(was '1.0'\)", caplog.text)


def test_state_without_bit_depth_or_weights_is_resumed(shapes, tmp_path, resumable):
    "Earlier versions wrote neither"
    state = torch.load(resumable[1], weights_only=True)
    for key in ('bit_depth', 'weights', 'folder', 'torch'): del state['data'][key]
    torch.save(state, tmp_path/'state.pt')
    again = trainer(shapes)
    load_state(again, tmp_path/'state.pt')
    assert again.steps == 4
    del state['data']['names']
    torch.save(state, tmp_path/'state.pt')
    with pytest.raises(ValueError, match="missing or unknown in its data: .'names'"):
        load_state(again, tmp_path/'state.pt')
