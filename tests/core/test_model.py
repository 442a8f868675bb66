"The network computes what the published one computes, and loads weights that match it."
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from cjm_yolox_pytorch.boxes import flatten_levels
from cjm_yolox_pytorch.files.checkpoints import Weights, save_weights
from cjm_yolox_pytorch.fuse import fuse
from cjm_yolox_pytorch.layers import Focus
from cjm_yolox_pytorch.loss import YOLOXLoss
from cjm_yolox_pytorch.model import NORM_STATS, PRIOR_BIAS, PUBLISHED, CSPDarknet, YOLOXPAFPN, build_model


def test_nano_weights_predict_what_the_reference_predicts(shared):
    model = build_model('yolox_nano', 80, pretrained=shared/'weights/yolox_nano_coco.pth').eval()
    reference = np.load(shared/'weights/reference.npz')
    rgb = torch.from_numpy(reference['x']).flip(1).float() / 255
    with torch.no_grad(): classes, boxes, objectness = map(flatten_levels, model(rgb))
    ours = torch.cat([boxes, objectness.sigmoid(), classes.sigmoid()], dim=-1)
    assert (ours - torch.from_numpy(reference['y'])).abs().max() < 2e-4


@pytest.fixture(scope='module')
def nano(): return build_model('yolox_nano', 3, pretrained=False)


def weights_of(model, **changes):
    return Weights(model.state_dict(), 'yolox_nano', 3, **NORM_STATS['yolox_nano'] | changes)


@pytest.mark.parametrize('as_file', [True, False])
def test_weights_load_from_a_file_and_from_memory(nano, as_file, tmp_path):
    source = weights_of(nano)
    if as_file: save_weights(source, tmp_path/'nano.safetensors')
    model = build_model('yolox_nano', 7, pretrained=tmp_path/'nano.safetensors' if as_file else source)
    assert_close(model.backbone.state_dict(), nano.backbone.state_dict())
    assert_close(model.bbox_head.multi_level_conv_reg.state_dict(), nano.bbox_head.multi_level_conv_reg.state_dict())
    assert_close(model.bbox_head.multi_level_conv_cls[0].bias, torch.full((7,), PRIOR_BIAS))


def test_weights_of_another_size_are_refused(nano):
    with pytest.raises(ValueError, match=r"weights of a yolox_nano do not fit the model: {'missing': \['backbone"):
        build_model('yolox_tiny', 3, pretrained=weights_of(nano))


def test_weights_with_other_statistics_warn(nano, tmp_path):
    save_weights(weights_of(nano, mean=(.5, .5, .5)), tmp_path/'other.safetensors')
    warning = r"normalized with {'mean': \(0.5, 0.5, 0.5\), 'std': .*}, not with NORM_STATS\['yolox_nano'\]"
    with pytest.warns(UserWarning, match=warning): build_model('yolox_nano', 3, pretrained=tmp_path/'other.safetensors')
    save_weights(weights_of(nano), tmp_path/'usual.safetensors')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        build_model('yolox_nano', 3, pretrained=tmp_path/'usual.safetensors')


def test_every_published_file_has_an_address():
    assert {f: len(urls) for f, urls in PUBLISHED.items()} == dict(cjm=5, megvii=6, mmyolo=3)
    for urls in PUBLISHED.values():
        for name, url in urls.items(): assert url.startswith('https://') and name in url and url.endswith('.pth')


@pytest.mark.parametrize('pretrained, folder, host', [
    (True, '', 'huggingface.co/cj-mills/'), ('cjm', 'cjm', 'huggingface.co/cj-mills/'),
    ('megvii', 'megvii', 'github.com/Megvii-BaseDetection/'), ('mmyolo', 'mmyolo', 'download.openmmlab.com/mmyolo/')])
def test_published_weights_by_family(pretrained, folder, host, tmp_path, monkeypatch):
    model = build_model('yolox_tiny', 3, pretrained=False)
    weights = Weights(model.state_dict(), 'yolox_tiny', 3, **NORM_STATS['yolox_tiny'])
    requested = []
    def write(url, to, digest):
        requested.append(url)
        save_weights(weights, to)
    monkeypatch.setattr(torch.hub, 'download_url_to_file', write)
    built = build_model('yolox_tiny', 3, pretrained, tmp_path)
    assert_close(built.state_dict(), model.state_dict())
    assert len(requested) == 1 and requested[0].startswith(f'https://{host}')
    assert (tmp_path/folder/requested[0].rpartition('/')[2]).is_file()


def test_family_that_has_not_published_a_size_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"mmyolo has published no yolox_x: choose one of \['cjm', 'megvii'\]"):
        build_model('yolox_x', 3, 'mmyolo', tmp_path)


@pytest.mark.parametrize('arguments, message', [
    ((.33, .375), r"arch=0.33: choose one of \['P5', 'P6'\]"),
    (('P5', .33, .125, (2, 5)), r'out_indices=\(2, 5\): choose from 0 \(stem\) to 4 \(last stage\)')])
def test_backbone_refuses_what_it_cannot_build(arguments, message):
    with pytest.raises(ValueError, match=message): CSPDarknet(*arguments)


def test_neck_takes_a_map_for_each_of_its_channels():
    maps = [torch.rand(1, c, s, s) for c, s in [(8, 16), (8, 8), (16, 4), (32, 2)]]
    with pytest.raises(ValueError, match=r'4 feature maps, but in_channels=\[8, 16, 32\]: give one map for each'):
        YOLOXPAFPN([8, 16, 32], 8)(maps)


@pytest.mark.parametrize('stem', [Focus(3, 16), Focus(3, 16, 5), Focus(1, 16, 3, affine=False)])
def test_fuse_takes_any_stem(stem):
    model = build_model('yolox_nano', 3, pretrained=False)
    model.backbone.stem = stem
    image = torch.rand(1, stem.conv.conv.in_channels//4, 96, 64)
    with torch.no_grad(): assert_close([*fuse(model)(image)], [*model.eval()(image)], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize('make', [partial(build_model, 'yolox_nano', pretrained=False), YOLOXLoss])
def test_a_class_is_needed(make):
    with pytest.raises(ValueError, match='num_classes=0: at least one class is needed'): make(num_classes=0)
