"Weights with the names of other implementations: complete, equal, and read again; needs none of these implementations."
import hashlib
import signal
import sys
import time
from dataclasses import asdict, replace

import pytest
import torch
import torch.nn.functional as F
from networks import decisive_model
from torch.testing import assert_close

from cjm_yolox_pytorch.deploy import convert_weights as room
from cjm_yolox_pytorch.deploy.convert_weights import OTHER_TOOLS, convert_weights, pixels_for, yolox_convert_weights
from cjm_yolox_pytorch.files.checkpoints import Weights, load_weights, save_weights
from cjm_yolox_pytorch.files.families import COLUMN_MAJOR, STEM, STEM_VARIANCE
from cjm_yolox_pytorch.model import IMAGENET_STATS, MODEL_TYPES, build_model

# Number and SHA-256 of the sorted lines `name shape` of their own networks for 80 classes: `state_dict()` of
# pixeltable-yolox 0.4.3, which is Megvii's code, and of mmdetection 3.3.0
KEYS = dict(
    megvii=dict(
        yolox_nano=(642, '3bb40b0511a5f905'), yolox_tiny=(462, '94b84951f5111594'), yolox_s=(462, 'd0fc0633634b486c'),
        yolox_m=(606, '446823ef5ea1313d'), yolox_l=(750, '51ced5da4d6556be'), yolox_x=(894, '946f1400621891b7')),
    mmdet=dict(
        yolox_nano=(642, 'f20a10608a7d7ead'), yolox_tiny=(462, '727e26b0ab204876'), yolox_s=(462, '6b7650fae67a3c9b'),
        yolox_m=(606, 'fdd20d641d1f1b96'), yolox_l=(750, '63391294981157b6'), yolox_x=(894, 'cb9c5c998f6259c4')))
MEAN = 'backbone.stem.conv.bn.running_mean'
ULP = 2**-22 # Twice the spacing of float32


def tensors(checkpoint): return checkpoint['model' if 'model' in checkpoint else 'state_dict']


def made_up(mean=(0., 0., 0.), std=(1., 1., 1.), names=('cat', 'dog', 'owl')):
    "Weights with smooth filters and the variance that they have after training"
    state = decisive_model(3).state_dict()
    smooth = F.interpolate(torch.randn(len(state[STEM]), 3, 3, 3), (6, 6), mode='bilinear')
    state[STEM] = F.pixel_unshuffle(smooth, 2).unflatten(1, (3, 4)).transpose(1, 2).flatten(1, 2).contiguous()
    state[STEM_VARIANCE] = state[STEM].flatten(1).square().sum(1)/12
    return Weights(state, 'yolox_nano', 3, mean, std, names=names and [*names])


@pytest.mark.parametrize('model_type', MODEL_TYPES)
@pytest.mark.parametrize('to', OTHER_TOOLS)
def test_names_and_shapes_are_those_of_their_networks(to, model_type):
    with torch.device('meta'): state = build_model(model_type, 80, pretrained=False).state_dict()
    lines = sorted(f'{k} {tuple(v.shape)}' for k, v in tensors(OTHER_TOOLS[to](state, None)).items())
    assert (len(lines), hashlib.sha256('\n'.join(lines).encode()).hexdigest()[:16]) == KEYS[to][model_type]


@pytest.mark.parametrize('stats', [dict(), dict(std=(.5, .25, 1.)), IMAGENET_STATS, dict(mean=(.5, .5, .5))], ids=str)
@pytest.mark.parametrize('to', OTHER_TOOLS)
def test_networks_give_the_same_again(to, stats, tmp_path):
    "From the file alone, or with what the command says about its pixels"
    weights = made_up(**stats)
    pixels = convert_weights(weights, to, tmp_path/'a.pth')
    plain = not any(pixels.mean)
    moved = plain and any(weights.mean)
    found = load_weights(tmp_path/'a.pth', **({} if plain or to == 'megvii' else asdict(pixels)))
    family = dict(mmdet='mmdetection' if plain else 'cjm', megvii='megvii' if plain else 'megvii_legacy')[to]
    assert (found.family, found.left_over, found.focus) == (family, [], COLUMN_MAJOR)
    x = torch.rand(1, 3, 64, 96)
    def run(w):
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (w.mean, w.std))
        with torch.no_grad(): return build_model('yolox_nano', 3, pretrained=w).eval().backbone.stem((x - mean)/std)
    inside = (..., slice(1, -1), slice(1, -1)) if moved else ... # A mean is moved: not at the border
    assert_close(run(found)[inside], run(weights)[inside], atol=1e-4, rtol=1e-4)
    changed = {STEM, MEAN} if moved else {STEM}
    assert all(torch.equal(found.state[k], v) for k, v in weights.state.items() if k not in changed)


def test_file_of_mmdetection_has_the_names_of_classes(tmp_path):
    convert_weights(made_up(), 'mmdet', tmp_path/'a.pth')
    convert_weights(made_up(names=None), 'mmdet', tmp_path/'b.pth')
    named, bare = (torch.load(tmp_path/name, weights_only=True) for name in ('a.pth', 'b.pth'))
    assert named['meta'] == dict(dataset_meta=dict(classes=['cat', 'dog', 'owl'])) and bare['meta'] == {}
    assert [*named] == ['meta', 'state_dict']


def test_counters_that_old_files_lack_are_added(tmp_path):
    weights = made_up()
    short = {k: v for k, v in weights.state.items() if not k.endswith('num_batches_tracked')}
    convert_weights(replace(weights, state=short), 'megvii', tmp_path/'a.pth')
    found = tensors(torch.load(tmp_path/'a.pth', weights_only=True))
    assert len(found) == len(weights.state) and found['backbone.backbone.stem.conv.bn.num_batches_tracked'] == 0


@pytest.mark.parametrize('name, change', [
    ('megvii_name', lambda key: key.replace('neck.out', 'neck.in')),
    ('restore_stem', lambda weight, pixels: weight), ('restore_stem', lambda weight, pixels: weight/255*1.0001)])
def test_file_that_is_not_read_as_written_is_not_kept(tmp_path, monkeypatch, name, change):
    (tmp_path/'a.pth').write_text('what was there')
    monkeypatch.setattr(room, name, change)
    with pytest.raises(OSError, match='a.pth could not be written, and is unchanged: the tensors in the file are not'):
        convert_weights(made_up(), 'megvii', tmp_path/'a.pth')
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [('a.pth', 'what was there')]


def test_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def save(content, path):
        path.write_text('half of it')
        raise RuntimeError('PytorchStreamWriter failed writing file: No space left on device')
    monkeypatch.setattr(torch, 'save', save)
    with pytest.raises(OSError, match='a.pth could not be written, and is unchanged: .*No space left'):
        convert_weights(made_up(), 'mmdet', tmp_path/'a.pth')
    assert not [*tmp_path.iterdir()]


def at_the_shell(monkeypatch, *words):
    monkeypatch.setattr(sys, 'argv', ['yolox_convert_weights', *map(str, words)])
    with pytest.raises(SystemExit) as end: yolox_convert_weights()
    return end.value.args[0]


@pytest.mark.parametrize('words, message', [
    ([], 'choose one of megvii, mmdet'), (['--to', 'libreyolo'], 'choose one of megvii, mmdet'),
    (['--to', 'mmdet', '--out', 'best.safetensors/a.pth'], 'best.safetensors')])
def test_errors_of_the_command_have_one_line(tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    save_weights(made_up(), tmp_path/'best.safetensors')
    said = at_the_shell(monkeypatch, 'best.safetensors', *words)
    assert said.startswith('yolox_convert_weights: error: ') and message in said and '\n' not in said
    assert [p.name for p in tmp_path.iterdir()] == ['best.safetensors']


def test_stopped_command_leaves_nothing(tmp_path, monkeypatch):
    save_weights(made_up(), tmp_path/'best.safetensors')
    def stop(*args):
        signal.raise_signal(signal.SIGTERM)
        time.sleep(9)
    monkeypatch.setattr(room, '_check_file', stop)
    words = '--to', 'mmdet', '--out', tmp_path/'new/deep/a.pth'
    assert at_the_shell(monkeypatch, tmp_path/'best.safetensors', *words) == 143
    assert [p.name for p in tmp_path.iterdir()] == ['best.safetensors']


def test_command_says_what_the_file_takes(tmp_path, capsys):
    said = {}
    for name, stats in (('plain', {}), ('imagenet', IMAGENET_STATS), ('gray', dict(mean=(.5, .5, .5)))):
        save_weights(made_up(**stats), tmp_path/f'{name}.safetensors')
        for to in OTHER_TOOLS:
            yolox_convert_weights(str(tmp_path/f'{name}.safetensors'), to=to)
            assert (tmp_path/f'{name}.{to}.pth').exists()
            said[name, to] = capsys.readouterr().out.replace(f'{tmp_path}/', '')
    assert 'written to plain.megvii.pth: yolox_nano with 3 classes' in said['plain', 'megvii']
    assert all('BGR from 0 to 255' in said['plain', to] for to in OTHER_TOOLS)
    assert '--legacy' in said['imagenet', 'megvii'] and 'its mean [0.5, 0.5, 0.5] was moved' in said['gray', 'megvii']
    assert 'mean=[123.675, 116.28, 103.53]' in said['imagenet', 'mmdet'] and 'mean=[127.5' in said['gray', 'mmdet']
    assert max(len(line) for text in said.values() for line in text.splitlines()) <= 80


def test_real_weights_become_the_file_they_came_from(shared, tmp_path):
    "Bit for bit, but for the first layer, which was multiplied by 255 and divided again"
    theirs = torch.load(shared/'weights/yolox_nano_coco.pth', weights_only=True)['model']
    weights = load_weights(shared/'weights/yolox_nano_coco.pth')
    assert pixels_for('megvii', weights) == pixels_for('mmdet', weights)
    convert_weights(weights, 'megvii', tmp_path/'again.pth')
    again = tensors(torch.load(tmp_path/'again.pth', weights_only=True))
    stem = room.megvii_name(STEM)
    counters = {k for k in again.keys() - theirs.keys()}
    assert all(k.endswith('num_batches_tracked') for k in counters) and theirs.keys() <= again.keys()
    assert all(torch.equal(again[k], v) for k, v in theirs.items() if k != stem)
    assert_close(again[stem], theirs[stem], rtol=ULP, atol=0)
    assert load_weights(tmp_path/'again.pth').family == 'megvii'


def test_weights_are_not_replaced(tmp_path):
    file = tmp_path/'w.pth'
    file.write_bytes(b'mine')
    with pytest.raises(ValueError, match='w.pth would be replaced'):
        yolox_convert_weights(str(file), 'mmdet', str(file))
    with pytest.raises(ValueError, match='files of PyTorch end in .pth'):
        yolox_convert_weights(str(file), 'mmdet', str(tmp_path/'w.safetensors'))
    assert file.read_bytes() == b'mine' and [*tmp_path.iterdir()] == [file]
