"From files to a trained detector and its figures, by the commands that people type."
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cjm_yolox_pytorch.checkpoints import load_weights
from cjm_yolox_pytorch.data import find_splits, read_split, write_shapes
from cjm_yolox_pytorch.evaluate import METRICS, average_precision, detect
from cjm_yolox_pytorch.model import build_model
from cjm_yolox_pytorch.train import Recipe, Trainer, fit, read_rows


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
    assert '24 images' in printed and 'best: epoch' in printed and all(len(line) <= 80 for line in printed.splitlines() if '/2 ' in line)
    assert sorted(p.name for p in out.iterdir()) == ['best.safetensors', 'curves.png', 'detections.png', 'last.safetensors', 'metrics.csv']
    rows = read_rows(out/'metrics.csv')
    assert [row['epoch'] for row in rows] == [1, 2] and all({'loss_l1', 'AP', 'AP50', 'seconds'} <= row.keys() for row in rows)
    assert load_weights(out/'last.safetensors').names == read_split(shapes, 'test').names

    printed = command('yolox_eval', out/'last.safetensors', shapes, '--out', tmp_path/'eval', '--device', 'cpu')
    assert 'yolox_nano at 96 on test: 8 images' in printed
    assert set(json.loads((tmp_path/'eval/metrics.json').read_text())) == {*METRICS, 'classes'}

    again = command('yolox_train', shapes, '--model', 'yolox_nano', '--size', 96, '--epochs', 1, '--weights', out/'last.safetensors', '--out', tmp_path/'more', '--device', 'cpu')
    assert 'best: epoch 1' in again
    for name in ('yolox_train', 'yolox_eval', 'yolox_demo', 'yolox_export'): assert 'default: ' in command(name, '--help') or name == 'yolox_export'


def test_the_same_seed_trains_the_same_network(shapes, tmp_path):
    states = []
    for seed in (0, 0, 1):
        train, val = (read_split(shapes, s) for s in ('train', 'val'))
        trainer = Trainer(Recipe('yolox_nano', size=96, epochs=1, batch=8, seed=seed, amp='none'), train, val, device='cpu')
        fit(trainer, tmp_path/f'{len(states)}')
        states.append(trainer.model.state_dict())
    first, same, other = states
    assert all(torch.equal(first[k], same[k]) for k in first) and not all(torch.equal(first[k], other[k]) for k in first)


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
    metrics = average_precision(annotations, detect(model, annotations, 416, weights.mean, weights.std, min_score=.01))
    assert abs(metrics['AP'] - .330) < .004 and abs(metrics['AP50'] - .484) < .008 and abs(metrics['AP75'] - .347) < .008
