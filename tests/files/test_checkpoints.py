"Weights of every family and size, made from our networks by names written down a second time, and the real ones."
# ruff: noqa: F811 (fixtures are imported, and arguments bear their names)
import json
import os
import shutil
import sys
import types

import fuzz
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fuzz import network, read_weights
from hostile import armed, root, tried # noqa: F401
from safetensors.torch import save
from torch.testing import assert_close

from cjm_yolox_pytorch.files import checkpoints
from cjm_yolox_pytorch.files.checkpoints import Weights, load_weights, recognize, save_weights
from cjm_yolox_pytorch.files.families import (
    CLASSES, COLUMN_MAJOR, ROW_MAJOR, STEM, STEM_VARIANCE, guess_focus, megvii_name, swap_focus)
from cjm_yolox_pytorch.files.matching import load_matching
from cjm_yolox_pytorch.model import MODEL_TYPES, NORM_STATS, build_model

# From our names to theirs; those of Megvii are in the library, which also writes them
MMYOLO = {
    'neck.reduce_layers.0': 'neck.reduce_layers.2', 'neck.reduce_layers.1': 'neck.top_down_layers.0.1',
    'neck.top_down_blocks.0': 'neck.top_down_layers.0.0', 'neck.top_down_blocks.1': 'neck.top_down_layers.1',
    'neck.downsamples': 'neck.downsample_layers', 'neck.bottom_up_blocks': 'neck.bottom_up_layers',
    'neck.out_convs': 'neck.out_layers', 'bbox_head': 'bbox_head.head_module'}


def replaced(key, names):
    start = max((n for n in names if key.startswith(n + '.')), key=len, default='')
    return names.get(start, '') + key[len(start):]


def mmyolo_key(key): return replaced(key, MMYOLO)
def our_key(key): return key


def ours(model_type, num_classes, max_pixel=1):
    "A network with smooth first filters, as if it had been trained on pixels from 0 to `max_pixel`"
    torch.manual_seed(0)
    with torch.device('meta'): state = build_model(model_type, num_classes, pretrained=False).state_dict()
    state = {k: torch.tensor(n, dtype=v.dtype).expand(v.shape) for n, (k, v) in enumerate(state.items())}
    smooth = F.interpolate(torch.randn(len(state[STEM]), 3, 3, 3), (6, 6), mode='bilinear')
    state[STEM] = F.pixel_unshuffle(smooth, 2).unflatten(1, (3, 4)).transpose(1, 2).flatten(1, 2)
    state[STEM_VARIANCE] = state[STEM].flatten(1).square().sum(1) * max_pixel**2/12
    return state


def theirs(state, key, bgr255=True):
    "The same network with their names, their order of pixels and their colors"
    stem = swap_focus(state[STEM])
    if bgr255: stem = stem.unflatten(1, (4, 3)).flip(2).flatten(1, 2) / 255
    variance = stem.flatten(1).square().sum(1) * (255**2 if bgr255 else 1)/12
    return {key(k): v for k, v in {**state, STEM: stem, STEM_VARIANCE: variance}.items()}


@pytest.mark.parametrize('model_type', MODEL_TYPES)
@pytest.mark.parametrize('family', ['megvii', 'megvii_legacy', 'mmdetection', 'mmyolo'])
def test_recognize_every_tensor_of_a_family(model_type, family):
    key = dict(mmdetection=our_key, mmyolo=mmyolo_key).get(family, megvii_name)
    state = ours(model_type, 7)
    file = theirs(state, key, family != 'megvii_legacy')
    found = recognize({'model' if 'megvii' in family else 'state_dict': file, 'optimizer': {}})
    assert (found.family, found.model_type, found.num_classes) == (family, model_type, 7)
    assert (found.focus, found.left_over) == (COLUMN_MAJOR, [])
    assert len(file) == len(state) and found.state.keys() == state.keys()
    assert_close(found.state[STEM], state[STEM])
    places = [k for k in state if k not in (STEM, STEM_VARIANCE)] # The variance stays as the file has it
    assert all(found.state[k].data_ptr() == state[k].data_ptr() for k in places)


@pytest.mark.parametrize('model_type', MODEL_TYPES)
def test_recognize_networks_of_0_2(model_type):
    state = ours(model_type, 3)
    found = recognize(dict(state))
    assert (found.family, found.model_type, found.num_classes) == ('cjm', model_type, 3)
    assert (found.focus, found.left_over) == (ROW_MAJOR, [])
    assert dict(mean=found.mean, std=found.std) == NORM_STATS[model_type]
    assert_close(found.state[STEM], state[STEM])
    assert found.state.keys() == state.keys()
    assert all(found.state[k].data_ptr() == state[k].data_ptr() for k in state if k != STEM)


@pytest.mark.parametrize('family, key', [('megvii', megvii_name), ('mmyolo', mmyolo_key)])
def test_load_matching_fills_the_network(family, key):
    state = ours('yolox_nano', 7)
    found = recognize(dict(model=theirs(state, key)))
    model = build_model('yolox_nano', 7, pretrained=False)
    assert load_matching(model, found) == f'yolox_nano ({family}): {len(state)} of {len(state)} tensors loaded'
    assert_close({**model.state_dict(), STEM_VARIANCE: state[STEM_VARIANCE]}, state)


@pytest.mark.parametrize('model_type', ['yolox_nano', 'yolox_s'])
def test_save_and_load_again(model_type, tmp_path):
    state = {k: v.contiguous() for k, v in ours(model_type, 3).items()}
    torch.save(state, tmp_path/'cjm.pth')
    found = load_weights(tmp_path/'cjm.pth')
    assert (found.family, found.focus) == ('cjm', ROW_MAJOR)
    assert_close(found.state, state)
    save_weights(found, tmp_path/'ours.safetensors')
    again = load_weights(tmp_path/'ours.safetensors')
    assert (again.family, again.model_type, tuple(again.mean), again.names) == ('ours', model_type, found.mean, None)
    assert_close(again.state, state)


@pytest.mark.parametrize('prefix', ['module.', '_orig_mod.', 'model.', 'module._orig_mod.'])
def test_recognize_prefixes_of_trainers(prefix):
    state = ours('yolox_nano', 3)
    for key in (our_key, megvii_name, mmyolo_key):
        file = {prefix + k: v for k, v in theirs(state, key).items()}
        assert recognize(dict(epoch=3, state_dict=file)).state.keys() == state.keys()


def test_load_matching_refuses_other_networks():
    state = ours('yolox_nano', 3)
    def without(*keys): return {k: v for k, v in state.items() if k not in keys}
    model = build_model('yolox_nano', 3, pretrained=False)
    gone = 'neck.out_convs.0.conv.weight'
    before = {k: v.clone() for k, v in model.state_dict().items()}
    cases = [
        (without(gone), gone), ({**state, 'neck.new.weight': torch.zeros(1)}, 'neck.new.weight'),
        ({**state, gone: torch.zeros(2)}, r'out_convs.0.conv.weight \(2,\)'),
        (without(CLASSES), 'multi_level_conv_cls.0.weight'), (without(STEM), 'is missing among')]
    for file, error in cases:
        with pytest.raises(ValueError, match=error): load_matching(model, recognize(file))
    assert_close(model.state_dict(), before) # Not half of it


def test_history_of_mmengine_is_skipped(tmp_path, monkeypatch):
    "The names are those in real files; the objects are not needed to read the tensors"
    names = ['mmengine', 'mmengine.logging', 'mmengine.logging.history_buffer']
    class HistoryBuffer:
        def __init__(self): self._log_history, self._max_length = np.arange(4.), 100
    HistoryBuffer.__module__, HistoryBuffer.__qualname__ = names[-1], 'HistoryBuffer'
    history = dict(log_scalars=dict(lr=HistoryBuffer()))
    with monkeypatch.context() as m:
        for name in names: m.setitem(sys.modules, name, types.ModuleType(name))
        sys.modules[names[-1]].HistoryBuffer = HistoryBuffer
        state = {k: v.contiguous() for k, v in theirs(ours('yolox_tiny', 3), mmyolo_key).items()}
        content = dict(meta=dict(epoch=np.int64(3)), message_hub=history, state_dict=state)
        torch.save(content, tmp_path/'mmyolo.pth')
    assert load_weights(tmp_path/'mmyolo.pth').family == 'mmyolo'


def test_real_weights(shared):
    checkpoint = torch.load(shared/'weights/yolox_nano_coco.pth', weights_only=True)
    weights = load_weights(shared/'weights/yolox_nano_coco.pth')
    assert (weights.family, weights.model_type, weights.num_classes) == ('megvii', 'yolox_nano', 80)
    assert weights.focus == COLUMN_MAJOR and {megvii_name(k) for k in weights.state} == checkpoint['model'].keys()
    stem = checkpoint['model'][megvii_name(STEM)]
    assert (guess_focus(stem), guess_focus(swap_focus(stem))) == (COLUMN_MAJOR, ROW_MAJOR)
    # The same weights in the other order of pixels, which only the filters reveal
    shuffled = {**checkpoint['model'], megvii_name(STEM): swap_focus(stem)}
    with pytest.raises(ValueError, match='filters are smooth for another order'): recognize(dict(model=shuffled))
    reference = np.load(shared/'weights/reference.npz')
    x = torch.from_numpy(reference['x']).float().flip(1)/255 # RGB
    model = build_model('yolox_nano', 80, pretrained=weights).eval()
    with torch.no_grad(): maps = model(x)
    levels = [torch.cat([r, o.sigmoid(), c.sigmoid()], 1).flatten(2) for c, r, o in zip(*maps)]
    assert (torch.cat(levels, 2).transpose(1, 2) - torch.from_numpy(reference['y'])).abs().max() < 1e-3


def test_state_of_a_training_is_refused(tmp_path):
    "Its first network is the one that is not averaged"
    torch.save(dict(model=network(), average=network(), counts={}, recipe={}), tmp_path/'state.pt')
    with pytest.raises(ValueError, match='state.pt: this is the state of a training run: use best.safetensors'):
        load_weights(tmp_path/'state.pt')


def small(**changes): # Weights of a few tensors
    return Weights(network(), 'yolox_tiny', 2, **{**NORM_STATS['yolox_tiny'], **changes})


def test_download_files_of_the_same_name(tmp_path, monkeypatch):
    for run in ('cat', 'dog'):
        (tmp_path/run).mkdir()
        save_weights(small(names=[run, 'owl']), tmp_path/run/'best.safetensors')
    def copy(url, to, digest): shutil.copy(tmp_path/url.removeprefix('https://a.b/'), to)
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: tmp_path/'hub')
    monkeypatch.setattr(torch.hub, 'download_url_to_file', copy)
    for _ in range(2):
        for run in ('cat', 'dog'): assert load_weights(f'https://a.b/{run}/best.safetensors').names == [run, 'owl']
        monkeypatch.setattr(torch.hub, 'download_url_to_file', None) # Both are kept


def test_load_published_weights_by_their_size(tmp_path, monkeypatch):
    "In every command that takes weights"
    monkeypatch.setattr(checkpoints, 'pretrained_file', lambda name: tmp_path/f'{name}.pth')
    with pytest.raises(FileNotFoundError, match='yolox_s.pth: no such file'): load_weights('yolox_s')


def write_names(path, names): # As other programs may
    metadata = json.dumps({**fuzz.KNOWN, 'names': names})
    path.write_bytes(save(network(), metadata=dict(cjm_yolox_pytorch=metadata)))


@pytest.mark.parametrize('stored', [['cat', 'cat'], ['a\n', 'b'], ['cat'], [1, 2]])
def test_names_that_are_given_repair_those_of_a_file(stored, tmp_path):
    write_names(tmp_path/'a.safetensors', stored)
    with pytest.raises(ValueError, match='a.safetensors: '): load_weights(tmp_path/'a.safetensors')
    for names in (['cat', 'dog'], ('cat', 'dog')):
        assert load_weights(tmp_path/'a.safetensors', names=names).names == ['cat', 'dog']


def test_names_without_an_order_are_not_given_to_classes():
    for names in ({'cat', 'dog'}, 3):
        with pytest.raises(ValueError, match='give them in order'): load_weights(network(), names=names)


@pytest.mark.parametrize('names', [['cat', 'cat'], ['a\n', 'b']])
def test_names_that_could_not_be_read_are_not_saved(names, tmp_path):
    with pytest.raises(ValueError, match='names: '): save_weights(small(names=names), tmp_path/'a.safetensors')
    assert not [*tmp_path.iterdir()]


def test_class_names_with_control_characters(tmp_path):
    write_names(tmp_path/'a.safetensors', ['a\x1b[2J', 'b'])
    with pytest.raises(ValueError, match=r"a.safetensors: names: names of classes with control characters: 'a\\x1b"):
        load_weights(tmp_path/'a.safetensors')


@pytest.mark.parametrize('options', [
    dict(), dict(names=['cat', 'dog']), dict(names=['cat', 'dog'], family='cjm'), dict(mean=(.1, .2, .3)),
    dict(bgr=True), dict(focus=COLUMN_MAJOR)])
def test_options_leave_the_rest_of_our_own_files(options, tmp_path):
    "A tiny network normally has another mean"
    saved = small(mean=(0., 0., 0.), std=(1., 1., 1.), size=96, notes=dict(AP=.5))
    save_weights(saved, tmp_path/'a.safetensors')
    found = load_weights(tmp_path/'a.safetensors', **options)
    assert (found.names, found.mean) == (options.get('names'), options.get('mean', (0., 0., 0.)))
    assert (found.std, found.size, found.notes) == ((1., 1., 1.), 96, dict(AP=.5))
    stem = saved.state[STEM]
    if 'focus' in options: stem = swap_focus(stem)
    if 'bgr' in options: stem = stem.unflatten(1, (4, 3)).flip(2).flatten(1, 2)
    assert_close(found.state, {**saved.state, STEM: stem})


@pytest.mark.parametrize('names, message', [
    (['cat'], '1 name for 2 classes'), (['cat', 'cat'], 'several classes have the same name: cat'),
    (['a\n', 'b'], 'control characters')])
def test_bad_names_as_options(names, message, tmp_path):
    save_weights(small(), tmp_path/'a.safetensors')
    for source in (tmp_path/'a.safetensors', network()):
        with pytest.raises(ValueError, match=message): load_weights(source, names=names)


@pytest.mark.parametrize('value', [float('nan'), float('-inf'), 1e39])
def test_numbers_of_a_failed_training_are_refused(value, tmp_path):
    weights = small()
    weights.state['neck.x'] = torch.tensor([0, value], dtype=torch.double)
    torch.save(weights.state, tmp_path/'a.pth')
    save_weights(weights, tmp_path/'a.safetensors')
    for name in ('a.pth', 'a.safetensors'):
        with pytest.raises(ValueError, match=f'{name}: neck.x: not all of its numbers are finite floats'):
            load_weights(tmp_path/name)


def test_tensors_without_plain_numbers_are_refused():
    state = network()
    for odd in (state[STEM].to_sparse(), state[STEM].to('meta')):
        with pytest.raises(ValueError, match='sparse, quantized or without numbers: 1 key such as'):
            recognize({**state, STEM: odd})


@pytest.mark.parametrize('change', [
    dict(mean=[float('nan'), 0, 0]), dict(mean='abc'), dict(notes=[1]), dict(left_over=['a']), dict(left_over=3),
    dict(family=3), dict(std=[0, 1, 1]), dict(size=10**9), dict(size='64'), dict(names='ab'), dict(names=[1, 2]),
    dict(names=0), dict(names=False), dict(num_classes=10**12), dict(names=['a', 'a']),
    dict(focus='x'*10**5), {'x'*10**5: 1}])
def test_metadata_that_somebody_edited(change, root):
    metadata = json.dumps({**fuzz.KNOWN, **change})
    (root/'a.safetensors').write_bytes(save(network(), metadata=dict(cjm_yolox_pytorch=metadata)))
    assert 'a.safetensors: ' in tried(read_weights, root)


def test_metadata_nested_deeply(root):
    (root/'a.safetensors').write_bytes(save(network(), metadata=dict(cjm_yolox_pytorch='['*100000)))
    assert 'bad metadata' in tried(read_weights, root)


def test_metadata_of_0_3_are_read(root):
    (root/'a.safetensors').write_bytes(save(network(), metadata=dict(cjm_yolox_pytorch=json.dumps(fuzz.KNOWN))))
    found = load_weights(root/'a.safetensors')
    assert {k: v for k, v in vars(found).items() if k in fuzz.KNOWN} == {**fuzz.KNOWN, 'mean': (.5,)*3, 'std': (1.,)*3}


def test_link_in_place_of_the_partial_file(root):
    (root/'a.safetensors.partial').symlink_to('../secret')
    save_weights(load_weights(network()), root/'a.safetensors')
    assert load_weights(root/'a.safetensors').num_classes == 2 and os.listdir(root) == ['a.safetensors']


CHOICES = [
    (dict(student={STEM: 1}, teacher={STEM: 1}), r'several networks \(student: no prefix; teacher: no prefix\)'),
    ({f'student.{STEM}': 1, f'teacher.{STEM}': 1}, r'several networks \(the file: student.; the file: teacher.\)'),
    (dict(model={f'a.{STEM}': 1, f'b.{STEM}': 1}), r'several networks \(model: a.; model: b.\)')]


@pytest.mark.parametrize('content, problem', CHOICES)
def test_several_networks_are_refused(content, problem):
    with pytest.raises(ValueError, match=problem): recognize(content)


def test_network_in_the_usual_place_counts_and_others_are_listed():
    whole = ours('yolox_nano', 7)
    average = {k: v*2 for k, v in whole.items()}
    for place in ('model', 'state_dict'):
        found = recognize({'ema_state_dict': average, place: whole})
        assert_close(found.state[STEM], recognize(whole).state[STEM])
        assert found.left_over == ['ema_state_dict']
    found = recognize({'net': whole, 'epoch': 3})
    assert_close(found.state[STEM], recognize(whole).state[STEM])


def test_no_names_are_not_names():
    with pytest.raises(ValueError, match='0 names for 80 classes'): recognize(ours('yolox_nano', 80), names=[])
