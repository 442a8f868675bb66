"Training on tiles."
import json

import numpy as np
import pytest
import torch

from cjm_yolox_pytorch.data.splits import read_split
from cjm_yolox_pytorch.evaluation.evaluate import detect, yolox_eval
from cjm_yolox_pytorch.evaluation.tile_gain import _verdict
from cjm_yolox_pytorch.files.checkpoints import load_weights
from cjm_yolox_pytorch.files.tiles import tile_grid
from cjm_yolox_pytorch.training.recipe import Recipe
from cjm_yolox_pytorch.training.runs import load_state, save_state
from cjm_yolox_pytorch.training.train import yolox_train
from cjm_yolox_pytorch.training.trainer import Trainer


@pytest.fixture(scope='module')
def shapes(draw_shapes): return draw_shapes(train=4, val=4, test=0, size=128)


def test_a_trainer_trains_and_validates_on_tiles(shapes):
    train, val = (read_split(shapes, name) for name in ('train', 'val'))
    r = Recipe('yolox_nano', img_size=64, epochs=1, batch=8, tile=64, overlap=.25)
    t = Trainer(r, train, val, device='cpu')
    each = len(tile_grid((128, 128), 64, .25))
    assert len(t.samples) == 4*each and len(t.train) == 4 and len(t.batches) == -(-4*each//8)
    t.train_epoch()
    metrics, found = t.validate()
    assert len(found) == 4 and np.isfinite(metrics['val_obj'])
    same = detect(t.ema.module, val, t.spec, 8, tile=64, overlap=.25)
    for a, b in zip(found, same): assert a.boxes.equal(b.boxes)


def test_tiles_as_large_as_images_train_the_same(shapes):
    train, val = (read_split(shapes, name) for name in ('train', 'val'))
    losses = []
    for options in (dict(), dict(tile=128, overlap=.5)):
        t = Trainer(Recipe('yolox_nano', img_size=64, epochs=1, batch=4, **options), train, val, device='cpu')
        losses.append((t.train_epoch(), *(d.boxes.tolist() for d in t.validate()[1])))
    assert losses[0] == losses[1]


def test_states_of_earlier_versions_resume(shapes, tmp_path):
    train, val = (read_split(shapes, name) for name in ('train', 'val'))
    def trainer(**options): return Trainer(Recipe('yolox_nano', img_size=64, **options), train, val, device='cpu')
    save_state(trainer(), tmp_path/'state.pt')
    state = torch.load(tmp_path/'state.pt', weights_only=False)
    added = 'tile', 'overlap', 'flip_ud', 'rot90', 'blur', 'grayscale', 'cutout', 'balance'
    for name in added: state['recipe'].pop(name)
    torch.save(state, tmp_path/'state.pt')
    load_state(trainer(), tmp_path/'state.pt')
    for name, value in dict(tile=64, rot90=.5).items():
        refused = pytest.raises(ValueError, match=f'another recipe, {name}={value}')
        with refused: load_state(trainer(**{name: value}), tmp_path/'state.pt')


@pytest.mark.parametrize('options, what', [
    (dict(tile=16), 'tile=16: give the side'), (dict(tile=-1), 'tile=-1'), (dict(tile=64, overlap=1.), 'overlap=1'),
    (dict(overlap=.3), 'overlap=0.3 is that of tiles: give their side, too'),
    (dict(tile=64, overlap=-.2), 'overlap=-0.2')])
def test_recipes_refuse_what_cannot_be(options, what):
    with pytest.raises(ValueError, match=what): Recipe(**options)


def test_from_training_to_a_verdict(shapes, tmp_path, capsys):
    run = tmp_path/'run'
    yolox_train(shapes, model='yolox_nano', img_size=64, epochs=1, tile=64, out=run, device='cpu', workers=0)
    assert 'training on 40 tiles of 64 pixels' in capsys.readouterr().out
    recipe = load_weights(run/'best.safetensors').notes['recipe']
    assert (recipe['tile'], recipe['overlap']) == (64, .2)
    yolox_eval(run/'best.safetensors', shapes, tile=64, out=tmp_path/'eval', device='cpu')
    printed = capsys.readouterr().out
    assert 'whole images' in printed and 'tiles of 64' in printed and 'on this data: AP' in printed
    assert 'other tiles' not in printed and max(map(len, printed.splitlines())) <= 100
    assert json.loads((tmp_path/'eval/metrics.json').read_text())['images_per_s'] > 0
    yolox_eval(run/'best.safetensors', shapes, tile=128, device='cpu')
    printed = capsys.readouterr().out
    assert 'no image is larger than a tile of 128 pixels' in printed
    assert 'use --tile 64 --overlap 0.2' in ' '.join(printed.split())
    files = [run/'best.safetensors', run/'last.safetensors']
    yolox_eval(files, shapes, tile=64, device='cpu')
    assert 'all of them on tiles: give a single file to see whether tiles help' in capsys.readouterr().out


@pytest.mark.parametrize('options, what', [
    (dict(overlap=.3), r'overlap=0.3 is that of tiles: give tile \(--tile\)'), (dict(tile=16), 'tile=16'),
    (dict(tile=64, overlap=1.), 'overlap=1.0')])
def test_eval_refuses_what_cannot_be(options, what):
    with pytest.raises(ValueError, match=what): yolox_eval('weights', 'data', **options)


def test_exported_networks_take_tiles(shapes, tmp_path, capsys):
    pytest.importorskip('onnxruntime')
    from cjm_yolox_pytorch.deploy.export import yolox_export
    from cjm_yolox_pytorch.detection.detector import load_detector
    from cjm_yolox_pytorch.files.checkpoints import Weights, save_weights
    from cjm_yolox_pytorch.model import build_model
    torch.manual_seed(0)
    model = build_model('yolox_nano', 2, pretrained=False)
    weights = Weights(model.state_dict(), 'yolox_nano', 2, (0., 0., 0.), (1., 1., 1.), names=['a', 'b'], size=64)
    save_weights(weights, tmp_path/'w.safetensors')
    yolox_export(str(tmp_path/'w.safetensors'), out=str(tmp_path/'w.onnx'))
    picture = np.random.default_rng(0).integers(0, 256, (100, 170, 3), dtype=np.uint8)
    detectors = [load_detector(tmp_path/f'w.{s}') for s in ('safetensors', 'onnx')]
    ours, exported = (each(picture, conf=1e-6, tile=64, iou=1.) for each in detectors)
    assert len(ours) > 100 and len(ours) == len(exported)
    torch.testing.assert_close(ours.scores, exported.scores, rtol=1e-3, atol=1e-7)


def test_verdict_without_objects():
    assert _verdict(float('nan'), float('nan'), 2.).startswith('no objects to measure')
