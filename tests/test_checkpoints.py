"Weights of every family and size, made from our networks by names written down a second time, and the real ones."

import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from cjm_yolox_pytorch.files.checkpoints import Weights, load_weights, recognise, save_weights
from cjm_yolox_pytorch.files.families import COLUMN_MAJOR, ROW_MAJOR, STEM, seen_focus, swap_focus
from cjm_yolox_pytorch.model import MODEL_TYPES, NORM_STATS, build_model, load_matching

# From our names to theirs
PARTS = {'neck.reduce_layers.0': 'backbone.lateral_conv0', 'neck.reduce_layers.1': 'backbone.reduce_conv1', 'neck.top_down_blocks.0': 'backbone.C3_p4',
         'neck.top_down_blocks.1': 'backbone.C3_p3', 'neck.downsamples.0': 'backbone.bu_conv2', 'neck.downsamples.1': 'backbone.bu_conv1',
         'neck.bottom_up_blocks.0': 'backbone.C3_n3', 'neck.bottom_up_blocks.1': 'backbone.C3_n4', 'neck.out_convs': 'head.stems',
         'bbox_head.multi_level_cls_convs': 'head.cls_convs', 'bbox_head.multi_level_reg_convs': 'head.reg_convs', 'bbox_head.multi_level_conv_cls': 'head.cls_preds',
         'bbox_head.multi_level_conv_reg': 'head.reg_preds', 'bbox_head.multi_level_conv_obj': 'head.obj_preds', 'backbone.stem': 'backbone.backbone.stem',
         **{f'backbone.stage{i}': f'backbone.backbone.dark{i + 1}' for i in (1, 2, 3, 4)}}
INNER = {'main_conv': 'conv1', 'short_conv': 'conv2', 'final_conv': 'conv3', 'blocks': 'm', 'depthwise_conv': 'dconv', 'pointwise_conv': 'pconv'}
MMYOLO = {'neck.reduce_layers.0': 'neck.reduce_layers.2', 'neck.reduce_layers.1': 'neck.top_down_layers.0.1', 'neck.top_down_blocks.0': 'neck.top_down_layers.0.0',
          'neck.top_down_blocks.1': 'neck.top_down_layers.1', 'neck.downsamples': 'neck.downsample_layers', 'neck.bottom_up_blocks': 'neck.bottom_up_layers',
          'neck.out_convs': 'neck.out_layers', 'bbox_head': 'bbox_head.head_module'}


def replaced(key, names):
    start = max((n for n in names if key.startswith(n + '.')), key=len, default='')
    return names.get(start, '') + key[len(start):]


def megvii_key(key): return '.'.join(INNER.get(word, word) for word in replaced(key, PARTS).split('.'))
def mmyolo_key(key): return replaced(key, MMYOLO)


def ours(model_type, num_classes, white):
    "A network with smooth first filters, as if it had been trained on pixels from 0 to `white`"
    torch.manual_seed(0)
    state = build_model(model_type, num_classes, pretrained=False).state_dict()
    state = {k: torch.rand_like(v) if v.is_floating_point() else v for k, v in state.items()}
    smooth = F.interpolate(torch.randn(len(state[STEM]), 3, 3, 3), (6, 6), mode='bilinear')
    state[STEM] = F.pixel_unshuffle(smooth, 2).unflatten(1, (3, 4)).transpose(1, 2).flatten(1, 2)
    state['backbone.stem.conv.bn.running_var'] = state[STEM].flatten(1).square().sum(1) * white**2/12
    return state


def theirs(state, key, bgr255=True):
    "The same network with their names, their order of pixels and their colours"
    stem = swap_focus(state[STEM])
    if bgr255: stem = stem.unflatten(1, (4, 3)).flip(2).flatten(1, 2) / 255
    variance = stem.flatten(1).square().sum(1) * (255**2 if bgr255 else 1)/12
    return {key(k): v for k, v in {**state, STEM: stem, 'backbone.stem.conv.bn.running_var': variance}.items()}


@pytest.mark.parametrize('model_type', MODEL_TYPES)
@pytest.mark.parametrize('family', ['megvii', 'megvii_legacy', 'mmdetection', 'mmyolo'])
def test_every_tensor_of_a_family_has_its_place(model_type, family):
    key = {'mmdetection': lambda k: k, 'mmyolo': mmyolo_key}.get(family, megvii_key)
    state = ours(model_type, 7, 1)
    file = theirs(state, key, family != 'megvii_legacy')
    assert len(file) == len(state)
    found = recognise({'model' if 'megvii' in family else 'state_dict': file, 'optimizer': {}})
    assert (found.family, found.model_type, found.num_classes, found.focus, found.left_over) == (family, model_type, 7, COLUMN_MAJOR, [])
    variance = 'backbone.stem.conv.bn.running_var' # As the file says
    assert found.state.keys() == state.keys()
    assert_close({k: v for k, v in found.state.items() if k != variance}, {k: v for k, v in state.items() if k != variance})
    told = load_matching(build_model(model_type, 7, pretrained=False), found)
    assert told == f'{model_type} ({family}): {len(state)} of {len(state)} tensors loaded'


@pytest.mark.parametrize('model_type', MODEL_TYPES)
def test_cjm_and_our_own(model_type, tmp_path):
    state = ours(model_type, 3, 1)
    torch.save(state, tmp_path/'cjm.pth')
    found = load_weights(tmp_path/'cjm.pth')
    assert (found.family, found.focus) == ('cjm', ROW_MAJOR)
    assert_close(found.state, state)
    save_weights(found, tmp_path/'ours.safetensors')
    again = load_weights(tmp_path/'ours.safetensors')
    assert (again.family, again.model_type, tuple(again.mean), again.names) == ('ours', model_type, found.mean, None)
    assert_close(again.state, state)


@pytest.mark.parametrize('prefix', ['module.', '_orig_mod.', 'model.', 'module._orig_mod.'])
def test_prefixes_of_those_who_train(prefix):
    state = ours('yolox_nano', 3, 1)
    for key in (lambda k: k, megvii_key, mmyolo_key):
        file = {prefix + k: v for k, v in (theirs(state, key) if key is not None else state).items()}
        found = recognise(dict(epoch=3, state_dict=file))
        assert found.state.keys() == state.keys()


def test_a_network_that_does_not_fit_is_refused():
    state = ours('yolox_nano', 3, 1)
    def without(*keys): return {k: v for k, v in state.items() if k not in keys}
    model = build_model('yolox_nano', 3, pretrained=False)
    gone = 'neck.out_convs.0.conv.weight'
    for file, error in [(without(gone), gone), ({**state, 'neck.new.weight': torch.zeros(1)}, 'neck.new.weight'), ({**state, gone: torch.zeros(2)}, r'out_convs.0.conv.weight \(2,\)'),
                        (without('bbox_head.multi_level_conv_cls.0.weight'), 'multi_level_conv_cls.0.weight'), (without(STEM), 'is missing among')]:
        with pytest.raises(ValueError, match=error): load_matching(model, recognise(file))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError): load_matching(model, recognise(without(gone)))
    assert_close(model.state_dict(), before) # Not half of it


def test_what_mmengine_and_numpy_leave_in_pickles(tmp_path):
    "The names are those that real files hold; what stands behind them is not needed to read the tensors"
    import sys, types
    names = ['mmengine', 'mmengine.logging', 'mmengine.logging.history_buffer']
    modules = {n: types.ModuleType(n) for n in names}
    class HistoryBuffer:
        def __init__(self): self._log_history, self._max_length = np.arange(4.), 100
    HistoryBuffer.__module__, HistoryBuffer.__qualname__ = names[-1], 'HistoryBuffer'
    modules[names[-1]].HistoryBuffer = HistoryBuffer
    state = ours('yolox_tiny', 3, 1)
    sys.modules.update(modules)
    try: torch.save(dict(meta=dict(epoch=np.int64(3)), message_hub=dict(log_scalars=dict(lr=HistoryBuffer())), state_dict=theirs(state, mmyolo_key)), tmp_path/'mmyolo.pth')
    finally:
        for n in names: sys.modules.pop(n)
    assert load_weights(tmp_path/'mmyolo.pth').family == 'mmyolo'


def test_the_real_weights(shared):
    checkpoint = torch.load(shared/'weights/yolox_nano_coco.pth', weights_only=True)
    weights = load_weights(shared/'weights/yolox_nano_coco.pth')
    assert (weights.family, weights.model_type, weights.num_classes, weights.focus) == ('megvii', 'yolox_nano', 80, COLUMN_MAJOR)
    assert {megvii_key(k) for k in weights.state} == checkpoint['model'].keys()
    stem = checkpoint['model'][megvii_key(STEM)]
    assert (seen_focus(stem), seen_focus(swap_focus(stem))) == (COLUMN_MAJOR, ROW_MAJOR)
    # The same weights in the other order of pixels, which nothing but the filters tells
    with pytest.raises(ValueError, match='filters are smooth for another order'): recognise(dict(model={**checkpoint['model'], megvii_key(STEM): swap_focus(stem)}))
    reference = np.load(shared/'weights/reference.npz')
    x = torch.from_numpy(reference['x']).float().flip(1)/255 # RGB
    with torch.no_grad(): classes, raw, objectness = build_model('yolox_nano', 80, pretrained=weights).eval()(x)
    got = torch.cat([torch.cat([r, o.sigmoid(), c.sigmoid()], 1).flatten(2) for c, r, o in zip(classes, raw, objectness)], 2).transpose(1, 2)
    assert (got - torch.from_numpy(reference['y'])).abs().max() < 1e-3


def test_a_state_is_no_file_of_weights(tmp_path):
    "Its first network is the one that is not averaged"
    state = build_model('yolox_nano', 1, pretrained=False).state_dict()
    torch.save(dict(model=state, average=state, counts={}, recipe={}), tmp_path/'state.pt')
    with pytest.raises(ValueError, match='state.pt: this is the state of a training: take best.safetensors'): load_weights(tmp_path/'state.pt')


def test_files_of_the_same_name_at_two_addresses(tmp_path, monkeypatch):
    for run in ('cat', 'dog'):
        (tmp_path/run).mkdir()
        model = build_model('yolox_nano', 1, pretrained=False)
        save_weights(Weights(model.state_dict(), 'yolox_nano', 1, **NORM_STATS['yolox_nano'], names=[run]), tmp_path/run/'best.safetensors')
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: tmp_path/'hub')
    monkeypatch.setattr(torch.hub, 'download_url_to_file', lambda url, to, digest: shutil.copy(tmp_path/url.removeprefix('https://a.b/'), to))
    for _ in range(2):
        for run in ('cat', 'dog'): assert load_weights(f'https://a.b/{run}/best.safetensors').names == [run]
        monkeypatch.setattr(torch.hub, 'download_url_to_file', None) # Both are kept


def test_names_that_move_the_cursor_are_refused(tmp_path):
    model = build_model('yolox_nano', 1, pretrained=False)
    save_weights(Weights(model.state_dict(), 'yolox_nano', 1, **NORM_STATS['yolox_nano'], names=['a\x1b[2J']), tmp_path/'a.safetensors')
    with pytest.raises(ValueError, match='names are plain text'): load_weights(tmp_path/'a.safetensors')


def test_what_is_said_leaves_the_rest_of_our_own_files(tmp_path):
    "A tiny network is normally for another mean"
    state = ours('yolox_tiny', 2, 1)
    save_weights(Weights(state, 'yolox_tiny', 2, (0., 0., 0.), (1., 1., 1.), size=96, notes=dict(AP=.5)), tmp_path/'a.safetensors')
    for said in (dict(), dict(names=['cat', 'dog']), dict(names=['cat', 'dog'], family='cjm'), dict(mean=(.1, .2, .3)), dict(bgr=True), dict(focus=COLUMN_MAJOR)):
        found = load_weights(tmp_path/'a.safetensors', **said)
        assert (found.names, found.mean, found.std, found.size, found.notes) == (said.get('names'), said.get('mean', (0., 0., 0.)), (1., 1., 1.), 96, dict(AP=.5))
        stem = swap_focus(state[STEM]) if 'focus' in said else state[STEM].unflatten(1, (4, 3)).flip(2).flatten(1, 2) if 'bgr' in said else state[STEM]
        assert_close(found.state, {**state, STEM: stem})
    for names in (['cat'], ['cat', 'cat']):
        for source in (tmp_path/'a.safetensors', state):
            with pytest.raises(ValueError, match='there are 1 names for 2 classes|the class name .cat. stands there 2 times'): load_weights(source, names=names)


def test_many_threads_read(tmp_path):
    "torch has one list of what may be read for all of them"
    torch.save(dict(state_dict=ours('yolox_nano', 2, 1), best=np.float64(.5)), tmp_path/'a.pth')
    with ThreadPoolExecutor(4) as pool: found = list(pool.map(lambda _: load_weights(tmp_path/'a.pth').num_classes, range(40)))
    assert found == [2]*40 and not [g for g in torch.serialization.get_safe_globals() if isinstance(g, tuple)]


@pytest.mark.parametrize('value', [float('nan'), float('-inf'), 1e39])
def test_weights_of_a_training_that_went_wrong(value, tmp_path):
    state = ours('yolox_nano', 2, 1)
    key = 'neck.out_convs.2.bn.running_var'
    state[key] = state[key].double()
    state[key][-1] = value
    torch.save(state, tmp_path/'a.pth')
    save_weights(Weights(state, 'yolox_nano', 2, (0., 0., 0.), (1., 1., 1.)), tmp_path/'a.safetensors')
    for name in ('a.pth', 'a.safetensors'):
        with pytest.raises(ValueError, match=f'{name}: {key}: not all of its numbers are finite floats'): load_weights(tmp_path/name)


def test_tensors_without_plain_numbers_are_refused():
    state = ours('yolox_nano', 2, 1)
    for odd in (state[STEM].to_sparse(), state[STEM].to('meta')):
        with pytest.raises(ValueError, match='sparse, quantized or without numbers: 1 keys such as'): recognise({**state, STEM: odd})
