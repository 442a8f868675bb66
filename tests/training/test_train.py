"From the first epoch to the last, by the command that people type."
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from trainings import SMALL, trainer, words

import cjm_yolox_pytorch.training.trainer
from cjm_yolox_pytorch.commands.options import parser_of
from cjm_yolox_pytorch.commands.start import COMMANDS, import_command
from cjm_yolox_pytorch.data.shapes import write_shapes
from cjm_yolox_pytorch.data.splits import read_split
from cjm_yolox_pytorch.detection.detections import Detections
from cjm_yolox_pytorch.evaluation.evaluate import yolox_eval
from cjm_yolox_pytorch.evaluation.metrics import METRICS
from cjm_yolox_pytorch.files.checkpoints import load_weights, save_weights
from cjm_yolox_pytorch.training import train as train_module
from cjm_yolox_pytorch.training.runs import VAL_LOSSES, read_rows, save_trained
from cjm_yolox_pytorch.training.train import fit, yolox_train
from cjm_yolox_pytorch.training.trainer import Trainer

FILES = ['best.safetensors', 'confusion.png', 'curves.png', 'detections.png', 'last.safetensors', 'metrics.csv',
    'metrics.json', 'precision_recall.png', 'recipe.yaml', 'state.pt', 'thresholds.png', 'worst.png']


def train(data, out, **options):
    yolox_train(str(data), out=str(out), device='cpu', **{**SMALL, 'epochs': 1, 'workers': 0, **options})


def test_train_command_leaves_files_that_other_commands_read(shapes, tmp_path, capfd):
    out, command = tmp_path/'run', Path(sys.executable).with_name('yolox_train')
    options = ('--model yolox_nano --img-size 64 --epochs 8 --batch 4 --optimizer sgd --lr .01 --amp bf16 --workers 1 '
        '--eval-interval 4 --no_aug_epochs 2 --warmup-epochs 2 --device cpu')
    done = subprocess.run([command, shapes, '--out', out, *options.split()], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 'training on train: 12 images' in done.stdout and 'best: epoch' in done.stdout
    assert all(len(line) <= 80 for line in done.stdout.splitlines() if '/8 ' in line)
    assert sorted(p.name for p in out.glob('[!.]*')) == FILES

    rows = read_rows(out/'metrics.csv')
    assert [row['epoch'] for row in rows] == [*range(1, 9)]
    assert all({'loss_obj', 'seconds'} <= row.keys() for row in rows)
    assert ['AP' in row for row in rows] == [False, False, False, True]*2
    assert ['loss_l1' in row for row in rows] == [False]*6 + [True]*2
    rates = [row['lr'] for row in rows]
    assert rates[0] < rates[1] > rates[3] > rates[5] and rates[6:] == pytest.approx([.0005]*2)

    last = load_weights(out/'last.safetensors')
    assert last.names == read_split(shapes, 'test').names
    by_class = last.notes['class_results']
    assert by_class['objects'] == read_split(shapes, 'val').counts.tolist()
    assert statistics.mean(v for v in by_class['AP'] if v is not None) == pytest.approx(last.notes['AP'])
    yolox_eval(str(out/'last.safetensors'), str(shapes), out=str(tmp_path/'eval'), device='cpu')
    assert 'yolox_nano at 64 on test: 4 images' in capfd.readouterr().out
    assert {*METRICS, 'classes'} <= set(json.loads((tmp_path/'eval/metrics.json').read_text()))

    train(shapes, tmp_path/'more', weights=str(out/'last.safetensors'))
    printed = capfd.readouterr().out
    assert 'weights: yolox_nano' in printed and '642 of 642 tensors loaded' in printed
    initial = [json.loads((run/'metrics.json').read_text())['initial_weights'] for run in (out, tmp_path/'more')]
    assert initial == ['random', 'run/last.safetensors']


@pytest.mark.parametrize('name', COMMANDS)
def test_help_explains_every_option(name):
    parser = parser_of(import_command(f'yolox_{name}'))
    assert parser.prog == f'yolox_{name}' and len(parser._actions) > 2 and all(o.help for o in parser._actions)
    assert all((o.option_strings or [o.dest])[-1] in parser.format_help() for o in parser._actions)


def test_help_of_train_shows_defaults_of_the_recipe():
    printed = ' '.join(parser_of(yolox_train).format_help().split())
    assert '--no-aug-epochs N ' in printed and '(squared_iou)' in printed
    assert 'Peak learning rate for this batch size: change both together (0.002)' in printed


def test_results_do_not_go_into_the_dataset(tmp_path):
    "Even a dataset that cannot be read is refused for this reason, so nothing was read"
    file = tmp_path/'data/train/_annotations.coco.json'
    file.parent.mkdir(parents=True)
    file.write_text('not JSON')
    with pytest.raises(ValueError, match='data is in the folder of the data'):
        train(tmp_path/'data', f'{tmp_path}/other/../data')
    assert [p for p in tmp_path.rglob('*') if p.is_file()] == [file]


def test_one_split_is_enough(shapes, tmp_path, capfd):
    "A tenth of it is held out"
    only, other = tmp_path/'only', tmp_path/'other'
    write_shapes(only, train=22, val=0, test=0, size=64)
    train(only, tmp_path/'run')
    printed = capfd.readouterr().out
    assert 'training on train: 20 images' in printed and 'validation on a tenth of train: 2 images' in printed
    write_shapes(other, train=22, val=0, test=0, size=64, seed=5) # Its files have the same names
    for data, said in [(only, 'on a tenth of train: 2 images'), (other, 'on train: 22 images')]:
        yolox_eval(str(tmp_path/'run/last.safetensors'), str(data), device='cpu')
        assert said in capfd.readouterr().out


@pytest.mark.parametrize('options, message', [(dict(format='xml'), "format='xml': choose one of"),
    (dict(train='fold'), "has no split 'fold'"), (dict(logger='paper'), "logger='paper': choose one of"),
    (dict(resume=True), 'state.pt: there is no run to resume: choose its folder .--out., or begin one without'),
    (dict(bit_depth=20), 'bit_depth=20: must be from 8 to 16'), (dict(names='a,b'), r'give weights, too \(--weights\)'),
    (dict(min_size=32, max_size=64, batch=1), 'min_size=32: batch norm cannot train on single images'),
    (dict(weights='no.pth'), 'no.pth: no such file'),
    (dict(weights='no.pth', names='no.txt'), 'no.txt: no such file'),
    (dict(img_size=0), 'img_size=0: '), (dict(model='yolox_xl'), "model='yolox_xl': choose one of"),
    (dict(model='yolox_s', weights='nano'), "the weights are for yolox_nano, but model='yolox_s'")])
def test_train_refuses_odd_options(shapes, tmp_path, uninterrupted, options, message):
    if options.get('weights') == 'nano': options = dict(options, weights=str(uninterrupted/'best.safetensors'))
    with pytest.raises((ValueError, OSError), match=message): train(shapes, tmp_path/'new', **options)
    assert not (tmp_path/'new').exists()


def test_error_of_the_command_is_one_line(shapes, tmp_path, start_training):
    child = start_training(tmp_path/'new', '--img-size', 0)
    assert child.wait() == 1 and child.output().startswith('yolox_train: error: img_size=0: ')
    assert child.output().count('\n') == 1


@pytest.fixture
def scores(monkeypatch):
    "Average precisions of the next validations"
    nothing, values = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0).long()), []
    def validate(self, progress): return dict(AP=values.pop(0), AP50=.5), [nothing]*len(self.val)
    monkeypatch.setattr(Trainer, 'validate', validate)
    return values


def test_best_and_last_weights_are_those_of_their_epochs(shapes, tmp_path, scores, no_plots):
    scores += [.1, .5, .3]
    best = fit(trainer(shapes, epochs=3, eval_interval=1), tmp_path)
    notes = [load_weights(tmp_path/f'{name}.safetensors').notes for name in ('best', 'last')]
    assert [(n['epoch'], n['AP']) for n in notes] == [(2, .5), (3, .3)] and best['epoch'] == 2


def test_patience_stops_early(shapes, tmp_path, scores, no_plots):
    scores += [.1, .3, .2, .25, .29, .9]
    best = fit(trainer(shapes, epochs=6, eval_interval=1, patience=3), tmp_path)
    assert (best['epoch'], best['AP'], len(read_rows(tmp_path/'metrics.csv'))) == (2, .3, 5)


def test_error_of_a_transform_is_not_taken_for_lack_of_memory(shapes, tmp_path, monkeypatch):
    def wrong(image, target): return image[:, :3] + image[:, :4], target
    monkeypatch.setattr(cjm_yolox_pytorch.training.trainer, 'recipe_transforms', lambda recipe: [wrong])
    with pytest.raises(RuntimeError, match='must match the size') as e: train(shapes, tmp_path/'run', workers=1)
    assert not isinstance(e.value, OSError) and 'memory' not in str(e.value).splitlines()[-1]


def train_and_keep(data, kept=[]):
    "The trainer and its loader are there until the process ends"
    kept.append(trainer(data, workers=1))
    kept[0].train_epoch()


def test_training_images_can_be_the_validation_images(shapes, tmp_path, capsys):
    "On purpose; all figures say what they are of"
    train(shapes, tmp_path/'run', **{'train': 'train', 'val': 'train', 'epochs': 1})
    printed = capsys.readouterr().out
    assert 'training on train: 12 images' in printed and 'validation on train: 12 images' in printed
    assert 'best: epoch 1, on train (the training images):' in printed
    assert json.loads((tmp_path/'run/metrics.json').read_text())['split'] == 'train (the training images)'
    notes = load_weights(tmp_path/'run/best.safetensors').notes
    assert notes['training'] == notes['validation'] == 'train'
    yolox_eval(str(tmp_path/'run/best.safetensors'), str(shapes), split='train', device='cpu')
    assert 'trained on all of these images: metrics may be too high' in capsys.readouterr().out


def test_initial_weights_can_be_given_names(shapes, tmp_path, capsys):
    "Without any, classes are matched by position, and a line says so"
    train(shapes, tmp_path/'run')
    best = load_weights(tmp_path/'run/best.safetensors')
    save_weights(replace(best, names=None), tmp_path/'unnamed.safetensors')
    for names, told in [(None, 'classes matched by position, since the weights have no class names'),
        ('star,disc,moon,sun,cross', '3 of 5 classes matched by name, but not triangle, square')]:
        capsys.readouterr()
        train(shapes, tmp_path/f'{names}', weights=str(tmp_path/'unnamed.safetensors'), names=names)
        assert told in ' '.join(capsys.readouterr().out.split())
    with pytest.raises(ValueError, match='2 names for 5 classes'):
        train(shapes, tmp_path/'few', weights=str(tmp_path/'unnamed.safetensors'), names='a,b')


def test_weights_are_read_before_the_data(shapes, tmp_path, capsys):
    "A typo shows at once, not after minutes of reading"
    with pytest.raises(FileNotFoundError, match='no.pth'): train(shapes, tmp_path/'run', weights='no.pth')
    assert capsys.readouterr().out == ''


def test_data_are_read_with_the_options_of_the_command(shapes, tmp_path, monkeypatch):
    "And the weights remember the bit depth"
    seen, prepare = {}, train_module.prepare_splits
    def note(data, train, val, allow_missing, quiet, **reading):
        seen.update(reading, allow_missing=allow_missing)
        return prepare(data, train, val, bit_depth=reading['bit_depth'])
    monkeypatch.setattr(train_module, 'prepare_splits', note)
    train(shapes, tmp_path/'run', images='elsewhere', bit_depth=12, allow_missing=True, format='coco')
    assert seen == dict(format='coco', images='elsewhere', bit_depth=12, allow_missing=True)
    assert load_weights(tmp_path/'run/best.safetensors').notes['bit_depth'] == 12


def test_training_with_workers_ends_in_a_process_of_multiprocessing(shapes, start):
    "Which does not call the functions of atexit"
    child = start(shapes, function=train_and_keep)
    assert child.wait(120) == 0, child.output()


def test_two_processes_write_once(shapes, tmp_path, start_pair):
    out = tmp_path/'run'
    pair = start_pair(out)
    assert [child.wait() for child in pair] == [0, 0], pair[0].output() + pair[1].output()
    assert pair[0].output().count('training on train') == 1 and not pair[1].output()
    last = read_rows(out/'metrics.csv')[-1]
    alone = trainer(shapes, batch=2)
    alone.val = alone.val.take([0, 2, 1, 3]) # The batches of both processes, one after the other
    alone.ema.module.load_state_dict(load_weights(out/'last.safetensors').state)
    alone.loss_func.use_l1 = True
    metrics, names = alone.validate()[0], ['AP', 'AP50', *VAL_LOSSES]
    assert last['epoch'] == 4
    assert [metrics[k] for k in names] == pytest.approx([last[k] for k in names], rel=1e-5, abs=1e-5)


@pytest.mark.parametrize('number', [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_two_processes_stop_together_and_resume(shapes, tmp_path, start_pair, number):
    "The signal reaches one of them"
    out = tmp_path/'run'
    pair = start_pair(out, '--workers', 1)
    pair[0].wait_for(out/'metrics.csv')
    os.kill(pair[1].pid, number)
    assert [child.wait() for child in pair] == [130, 130], pair[0].output() + pair[1].output()
    assert 'everything is saved in' in pair[0].output() and len(read_rows(out/'metrics.csv')) < 4
    pair = start_pair(out, '--resume')
    assert [child.wait() for child in pair] == [0, 0] and len(read_rows(out/'metrics.csv')) == 4


@pytest.mark.slow
def test_torchrun_starts_and_stops_two_processes(shapes, tmp_path):
    out, folder = tmp_path/'run', Path(sys.executable).parent
    command = [folder/'torchrun', '--standalone', '--nproc-per-node', '2', folder/'yolox_train']
    command += words(shapes, out, '--epochs', 500)[1:]
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    while process.poll() is None and not (out/'metrics.csv').exists(): time.sleep(.05)
    process.send_signal(signal.SIGTERM)
    printed = process.communicate()[0]
    assert printed.count('training on train') == 1 and 'everything is saved in' in printed, printed


def test_results_by_class_are_not_those_of_an_earlier_epoch():
    t = mock.Mock(notes={}, val=mock.Mock(names=['a', 'b'], counts=np.array([3, 0])))
    rows = dict(a=dict(AP=.5, AP50=.75, AP75=.4), b=dict.fromkeys(METRICS, math.nan))
    train_module._note_class_results(t, dict(AP=.5, classes=rows))
    assert t.notes == dict(class_results=dict(objects=[3, 0], AP=[.5, None], AP50=[.75, None]))
    train_module._note_class_results(t, {}) # An epoch without validation
    assert t.notes == {}


def test_thresholds_of_the_validation_split_are_written_into_the_weights(tmp_path):
    write_shapes(tmp_path/'data', train=12, val=24, test=0, size=64)
    t = trainer(tmp_path/'data')
    found = []
    for i in range(len(t.val)): # Objects are surer than a false box in the corner
        boxes, labels, _ = t.val.objects(i)
        scores = torch.tensor([.8]*len(labels) + [.4])
        every = torch.cat([torch.from_numpy(boxes), torch.tensor([[0., 0., 2., 2.]])])
        found.append(Detections(every, scores, torch.tensor([*labels, 0])))
    train_module._note_thresholds(t, found)
    save_trained(t, tmp_path/'best.safetensors', {})
    chosen = load_weights(tmp_path/'best.safetensors').notes['thresholds']
    assert .4 < chosen['score'] < .8 and chosen['classes'] == [chosen['score']]*5
    assert chosen['interval'] == [chosen['score']]*2
    same = mock.Mock(train=t.val, val=t.val, notes={}) # Scores are too high on training images
    train_module._note_thresholds(same, found)
    assert same.notes == {}
