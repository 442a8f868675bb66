"From files to a trained detector and its figures, by the commands that people type."
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fastcore.docments import docments

import cjm_yolox_pytorch.train
from cjm_yolox_pytorch.checkpoints import Weights, load_weights
from cjm_yolox_pytorch.data import find_splits, read_split, relabel
from cjm_yolox_pytorch.evaluate import METRICS, average_precision, detect, yolox_eval
from cjm_yolox_pytorch.export import yolox_export
from cjm_yolox_pytorch.model import build_model
from cjm_yolox_pytorch.shapes import write_shapes
from cjm_yolox_pytorch.recipe import Recipe
from cjm_yolox_pytorch.train import Trainer, fit, read_rows, yolox_demo, yolox_train


def command(name, *args):
    "Run a console script; its output"
    done = subprocess.run([Path(sys.executable).with_name(name), *map(str, args)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp('shapes')
    write_shapes(folder, train=24, val=8, test=8, size=96)
    return folder


def test_commands(shapes, tmp_path):
    out = tmp_path/'run'
    printed = command('yolox_train', shapes, '--model', 'yolox_nano', '--size', 96, '--epochs', 2, '--batch', 8, '--optimizer', 'sgd', '--lr', .01,
                      '--amp', 'bf16', '--every', 1, '--workers', 1, '--out', out, '--device', 'cpu')
    assert 'training on train: 24 images' in printed and 'best: epoch' in printed and all(len(line) <= 80 for line in printed.splitlines() if '/2 ' in line)
    assert sorted(p.name for p in out.iterdir()) == ['best.safetensors', 'confusion.png', 'curves.png', 'detections.png', 'last.safetensors', 'metrics.csv', 'metrics.json', 'precision_recall.png', 'state.pt', 'worst.png']
    rows = read_rows(out/'metrics.csv')
    assert [row['epoch'] for row in rows] == [1, 2] and all({'loss_obj', 'AP', 'AP50', 'seconds'} <= row.keys() for row in rows)
    assert load_weights(out/'last.safetensors').names == read_split(shapes, 'test').names

    printed = command('yolox_eval', out/'last.safetensors', shapes, '--out', tmp_path/'eval', '--device', 'cpu')
    assert 'yolox_nano at 96 on test: 8 images' in printed
    assert {*METRICS, 'classes'} <= set(json.loads((tmp_path/'eval/metrics.json').read_text())) # All of it: test_evaluate

    again = command('yolox_train', shapes, '--model', 'yolox_nano', '--size', 96, '--epochs', 1, '--weights', out/'last.safetensors', '--out', tmp_path/'more', '--device', 'cpu')
    assert 'best: epoch 1' in again


def test_demo(tmp_path):
    printed = command('yolox_demo', '--out', tmp_path/'demo', '--images', 16, '--epochs', 1, '--device', 'cpu')
    assert 'yolox_tiny at 96 on test: 200 images' in printed and {'metrics.json', 'detections.png', 'curves.png', 'best.safetensors'} <= {p.name for p in (tmp_path/'demo').iterdir()}
    command('yolox_demo', '--out', tmp_path/'demo', '--images', 16, '--epochs', 1, '--device', 'cpu') # Replaces what it left
    assert len(read_rows(tmp_path/'demo/metrics.csv')) == 1


@pytest.mark.parametrize('name, func', dict(yolox_train=yolox_train, yolox_eval=yolox_eval, yolox_demo=yolox_demo, yolox_export=yolox_export).items())
def test_help_explains_every_option(name, func):
    explained = docments(func)
    explained.pop('return', None)
    assert explained and all(explained.values())
    printed = command(name, '--help')
    assert all(f'--{option}' in printed or option in printed.partition('options')[0] for option in explained)


def test_a_few_images_are_learnt_by_heart(shapes, tmp_path):
    "On eight images without changes, a working loop finds the objects; one in which anything is broken does not"
    train = read_split(shapes, 'val')
    recipe = Recipe('yolox_nano', size=96, epochs=100, batch=4, lr=.004, closing=25, amp='none', every=100)
    trainer = Trainer(recipe, train, train, device='cpu', transforms=[])
    best = fit(trainer, tmp_path)
    rows = read_rows(tmp_path/'metrics.csv')
    assert best['AP50'] > .5 and rows[-1]['loss_obj'] < .4*rows[0]['loss_obj']
    assert ['loss_l1' in row for row in rows] == [False]*75 + [True]*25
    rates = [row['lr'] for row in rows]
    assert rates[0] < rates[2] > rates[40] > rates[70] and rates[75:] == pytest.approx([.0002]*25)
    command('yolox_export', tmp_path/'best.safetensors')
    assert (tmp_path/'best.onnx').stat().st_size > 1e6


def test_best_and_last_are_what_they_say(shapes, tmp_path, monkeypatch):
    scores, real = iter([.1, .5, .3]), cjm_yolox_pytorch.train.validate
    def validate(trainer):
        metrics, found = real(trainer)
        return {**metrics, 'AP': next(scores)}, found
    monkeypatch.setattr(cjm_yolox_pytorch.train, 'validate', validate)
    train = read_split(shapes, 'val')
    best = fit(Trainer(Recipe('yolox_nano', size=96, epochs=3, batch=4, every=1), train, train, device='cpu'), tmp_path)
    notes = [load_weights(tmp_path/f'{name}.safetensors').notes for name in ('best', 'last')]
    assert [(n['epoch'], n['AP']) for n in notes] == [(2, .5), (3, .3)] and best['epoch'] == 2


def test_crowds_reach_the_loss(shapes):
    train = read_split(shapes, 'val')
    trainer = Trainer(Recipe('yolox_nano', size=96, batch=4, amp='none'), train, train, device='cpu', transforms=[])
    trainer.start_epoch()
    batch = next(iter(trainer.loader))
    batch.crowds = [torch.zeros(0, 4)]*4
    with_background = trainer.losses(batch)['loss_obj'].item()
    batch.crowds = [torch.tensor([[0., 0., 96., 96.]])]*4
    assert trainer.losses(batch)['loss_obj'].item() < .9*with_background


def test_classes_in_another_order_are_the_same_classes(shapes):
    train, val = read_split(shapes, 'train'), read_split(shapes, 'val')
    turned = relabel(val, val.names[::-1])
    trainer = Trainer(Recipe('yolox_nano', size=96), train, turned, device='cpu')
    assert trainer.val.names == train.names and trainer.val.labels.tolist() == val.labels.tolist()
    with pytest.raises(ValueError, match='not among'): Trainer(Recipe('yolox_nano', size=96), relabel(train, [*train.names, 'moon']), replace(val, names=[*'abcde']), device='cpu')
    with pytest.raises(ValueError, match='nothing to validate on: Annotations.0 images'): Trainer(Recipe('yolox_nano'), train, _nothing(val), device='cpu')
    weights = Weights({}, 'yolox_s', 5, (), ())
    with pytest.raises(ValueError, match="the weights are of yolox_s, but model='yolox_nano'"): Trainer(Recipe('yolox_nano'), train, val, weights, device='cpu')


def _nothing(annotations): return replace(annotations, paths=[], sizes=annotations.sizes[:0], starts=annotations.starts[:1], labels=annotations.labels[:0], boxes=annotations.boxes[:0])


def _again(trainer):
    trainer.epoch = 0
    trainer.start_epoch()
    return trainer.loader


@pytest.mark.parametrize('workers', [0, 1])
def test_the_same_seed_trains_the_same_network(shapes, tmp_path, workers):
    states = []
    for seed in (0, 0, 1):
        train = read_split(shapes, 'val')
        trainer = Trainer(Recipe('yolox_nano', size=96, epochs=1, batch=4, seed=seed, amp='none', workers=workers), train, train, device='cpu')
        fit(trainer, tmp_path/f'{len(states)}')
        states.append([p.detach() for p in trainer.model.parameters()] + [b.images for b in _again(trainer)])
    first, same, other = states
    assert all(map(torch.equal, first, same)) and not any(map(torch.equal, first[-2:], other[-2:]))


def test_bccd_is_read_as_it_is(shared):
    splits = find_splits(shared/'data/bccd')
    assert list(splits) == ['test', 'train', 'trainval', 'val']
    read = {name: splits[name]() for name in ('train', 'val', 'test')}
    assert {k: (len(a), len(a.labels) + len(a.dropped)) for k, a in read.items()} == dict(train=(205, 2805), val=(87, 1138), test=(72, 945))
    assert [len(a.dropped) for a in read.values()] == [1, 1, 0]
    assert all(a.names == ['Platelets', 'RBC', 'WBC'] for a in read.values())


def test_real_nano_weights_score_what_they_should(shared):
    annotations = read_split(shared/'data/coco_ccby', 'all')
    assert (len(annotations), len(annotations.labels), len(annotations.names), annotations.crowd.sum()) == (45, 405, 80, 6)
    weights = load_weights(shared/'weights/yolox_nano_coco.pth')
    model = build_model(weights.model_type, weights.num_classes, pretrained=weights).eval()
    # The figures of the published weights; forty-five images leave AP75 some play
    metrics = average_precision(annotations, detect(model, annotations, 416, weights.mean, weights.std, min_score=.01))
    assert abs(metrics['AP'] - .330) < .004 and abs(metrics['AP50'] - .484) < .004 and abs(metrics['AP75'] - .347) < .008
    metrics = average_precision(annotations, detect(model, annotations, 416, weights.mean, weights.std))
    assert [metrics[k] for k in ('AP_small', 'AP_medium', 'AP_large')] == pytest.approx([.080, .302, .611], abs=.004)
