"Exported files: what their graphs hold, the original's way of exporting, and real weights through ONNX and OpenVINO."
import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from cjm_yolox_pytorch.files.checkpoints import Weights, load_weights
from cjm_yolox_pytorch.deploy.export import EXPORT_FORMATS, Suppressed, description, export_weights, exportable, load_exported
from cjm_yolox_pytorch.files.letterbox import letterbox, unletterbox
from cjm_yolox_pytorch.inference import YOLOXInferenceWrapper, nms
from cjm_yolox_pytorch.model import NORM_STATS, build_model

onnx, onnxruntime, openvino = (pytest.importorskip(name) for name in ('onnx', 'onnxruntime', 'openvino'))


def blotches(n, height, width, seed=1):
    "Pictures from 0 to 255 with more in them than noise"
    g = torch.Generator().manual_seed(seed)
    return torch.nn.functional.interpolate(torch.rand(n, 3, 6, 8, generator=g)*255, (height, width), mode='bilinear')


def nano(num_classes=3, **kwargs):
    torch.manual_seed(0)
    model = build_model('yolox_nano', num_classes, pretrained=False)
    for m in model.modules(): # So that scores differ and boxes overlap
        if isinstance(m, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(m.weight, 2, 3)
            m.running_mean.normal_(0, .1)
            m.running_var.uniform_(.5, 1.5)
    for convs, std, bias in (('cls', .3, .5), ('reg', .05, 1.2), ('obj', .3, .5)):
        for conv in getattr(model.bbox_head, f'multi_level_conv_{convs}'):
            torch.nn.init.normal_(conv.weight, std=std)
            torch.nn.init.constant_(conv.bias, bias)
    return Weights(model.state_dict(), 'yolox_nano', num_classes, **NORM_STATS['yolox_nano'], names=[f'class {i}' for i in range(num_classes)], **kwargs)


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp('exported')
    for suffix in EXPORT_FORMATS.values(): export_weights(nano(), folder/f'nano{suffix}')
    return folder


def test_no_slices_between_the_image_and_the_first_convolution(files):
    graph = onnx.load(files/'nano.onnx').graph
    makers = {output: node for node in graph.node for output in node.output}
    first = next(node for node in graph.node if node.op_type == 'Conv')
    weight = next(t for t in graph.initializer if t.name == first.input[1])
    assert list(weight.dims) == [16, 3, 6, 6]
    way, name = [], first.input[0]
    while name in makers:
        way.append(makers[name].op_type)
        name = makers[name].input[0]
    assert name == 'images' and not {'Slice', 'Gather', 'GatherND', 'Concat'} & {*way}, way
    assert not any(node.op_type == 'BatchNormalization' for node in graph.node)


@pytest.mark.parametrize('suffix', EXPORT_FORMATS.values())
@pytest.mark.parametrize('shape', [(1, 64, 64), (8, 64, 96), (2, 1280, 64), (1, 1280, 1280), (1, 416, 672)])
def test_sizes_from_64_to_1280_and_batches_to_8(files, suffix, shape):
    x = blotches(*shape)
    with torch.no_grad(): want = exportable(nano())(x)
    got = load_exported(files/f'nano{suffix}')(x)
    torch.testing.assert_close(got[..., :4], want[..., :4], atol=1e-2, rtol=1e-4)
    torch.testing.assert_close(got[..., 5], want[..., 5], atol=1e-4, rtol=0)


@pytest.mark.parametrize('suffix', EXPORT_FORMATS.values())
def test_suppression_in_the_file_is_that_of_predict(tmp_path, suffix):
    weights = nano(7)
    export_weights(weights, tmp_path/f'nano{suffix}', suppress=True, conf=.3, iou=.5)
    x = blotches(3, 96, 160)
    export_weights(weights, tmp_path/f'rows{suffix}')
    rows, cells = (load_exported(tmp_path/f'{name}{suffix}')(x) for name in ('nano', 'rows'))
    for i, one in enumerate(cells):
        scores = torch.zeros(len(one), 7).scatter(1, one[:, 4:5].long(), one[:, 5:])
        boxes = torch.cat([one[:, :2], one[:, :2] + one[:, 2:4]], 1)
        want, got = nms(boxes, scores, .3, .5, max_detections=9999), rows[rows[:, 0] == i]
        assert 0 < len(want) < len(one) and len(got) == len(want)
        torch.testing.assert_close(got[:, 6], want.scores, atol=1e-4, rtol=0)
        torch.testing.assert_close(got[:, 5].long().bincount(minlength=7), want.labels.bincount(minlength=7))
    assert load_exported(tmp_path/f'nano{suffix}')(x*0)[:, 1:].shape[1] == 6


def test_few_rows_remain():
    "None, or one, is what a camera mostly sees; the program of `nms` is made for two and more"
    rows, module, Dim = torch.rand(2, 84, 6)*torch.tensor([60, 60, 20, 20, 2.9, 1]), Suppressed(torch.nn.Identity(), 3), torch.export.Dim
    run = torch.export.export(module, (rows,), dynamic_shapes=dict(x={0: Dim('batch', min=1), 1: Dim('cells', min=2)})).module()
    for n in (0, 1, 2, 84):
        rows[..., 5] = 0
        rows[1, :n, 5] = torch.linspace(.9, .3, n)
        assert 0 < len(run(rows)) <= n or n == 0
        torch.testing.assert_close(run(rows), module(rows), rtol=0, atol=0)


@pytest.mark.parametrize('size, suffix', [(1500, '.pt2'), (20, '.onnx')])
def test_a_file_is_for_the_size_of_the_training(tmp_path, size, suffix):
    "As a multiple of 32, also where it is not from 64 to 1280"
    weights = nano(size=size)
    export_weights(weights, tmp_path/f'nano{suffix}')
    side = description(weights)['size']
    assert 0 <= side - size < 32 and side % 32 == 0
    x = blotches(1, side, side)
    with torch.no_grad(): torch.testing.assert_close(load_exported(tmp_path/f'nano{suffix}')(x)[..., :4], exportable(weights)(x)[..., :4], atol=1e-2, rtol=1e-4)


def test_raw_and_camera(tmp_path):
    weights = nano()
    assert export_weights(weights, tmp_path/'raw.onnx', raw=True) < 1e-2
    assert export_weights(weights, tmp_path/'camera.onnx', camera=True) < 1e-2
    pictures = blotches(2, 64, 96).permute(0, 2, 3, 1).round().to(torch.uint8)
    with torch.no_grad(): want = exportable(weights)(pictures.permute(0, 3, 1, 2).float())
    torch.testing.assert_close(load_exported(tmp_path/'camera.onnx')(pictures), want, atol=1e-2, rtol=1e-4)
    assert load_exported(tmp_path/'raw.onnx')(pictures.permute(0, 3, 1, 2).float()).shape == (2, 126, 8)


def test_metadata_is_in_every_file(files):
    told = description(nano())
    held = [onnxruntime.InferenceSession(files/'nano.onnx').get_modelmeta().custom_metadata_map['cjm_yolox_pytorch'],
            openvino.Core().read_model(str(files/'nano.xml')).get_rt_info(['cjm_yolox_pytorch']).astype(str)]
    extra = {'cjm_yolox_pytorch.json': ''}
    torch.export.load(str(files/'nano.pt2'), extra_files=extra)
    for text in held + [extra['cjm_yolox_pytorch.json']]: assert json.loads(text) == told


def test_a_pt2_file_needs_none_of_our_code(files, tmp_path):
    code = f'import torch, torchvision, sys; m = torch.export.load({str(files/"nano.pt2")!r}).module(); print(tuple(m(torch.rand(1, 3, 64, 96)).shape), "cjm_yolox_pytorch" in sys.modules)'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.strip() == '(1, 126, 6) False', done.stderr


def test_a_file_that_is_not_equal_is_not_kept(tmp_path, monkeypatch):
    (tmp_path/'nano.onnx').write_text('what was there')
    monkeypatch.setattr('cjm_yolox_pytorch.deploy.export.load_exported', lambda path: lambda x: torch.zeros(len(x), 5, 6))
    with pytest.raises(RuntimeError, match='the file gives'): export_weights(nano(), tmp_path/'nano.onnx')
    assert (tmp_path/'nano.onnx').read_text() == 'what was there' and [p.name for p in tmp_path.iterdir()] == ['nano.onnx']


@pytest.mark.parametrize('dynamo', [True, False])
def test_scripts_written_for_cjm_yolox_pytorch_export_as_before(tmp_path, dynamo):
    model = build_model('yolox_nano', 3, pretrained=False).eval()
    wrapper = YOLOXInferenceWrapper(model, torch.tensor([.5]*3).view(1, 3, 1, 1), torch.tensor([1.]*3).view(1, 3, 1, 1), run_box_and_prob_calculation=False).eval()
    x = torch.rand(1, 3, 96, 128)
    torch.onnx.export(wrapper, (x,), str(tmp_path/'old.onnx'), input_names=['input'], output_names=['output'], dynamo=dynamo)
    got = onnxruntime.InferenceSession(tmp_path/'old.onnx').run(None, {'input': x.numpy()})[0]
    with torch.no_grad(): np.testing.assert_allclose(got, wrapper(x), atol=1e-4)
    assert got.shape == (1, 252, 8)


@pytest.mark.parametrize('suffix', ['.onnx', '.xml'])
def test_real_weights_score_the_same_in_other_programs(shared, tmp_path, suffix):
    from cjm_yolox_pytorch.data.annotations import read_annotated
    from cjm_yolox_pytorch.data.splits import read_split, find_splits
    from cjm_yolox_pytorch.evaluation.metrics import average_precision
    weights = load_weights(shared/'weights/yolox_nano_coco.pth')
    export_weights(weights, tmp_path/f'nano{suffix}')
    run = load_exported(tmp_path/f'nano{suffix}')
    split = read_split(shared/'data/coco_ccby', next(iter(find_splits(shared/'data/coco_ccby'))))
    found = []
    for i in range(len(split)):
        image = read_annotated(split, i)
        rows = run(letterbox(image, (416, 416))[None].float())[0]
        scores = torch.zeros(len(rows), 80).scatter(1, rows[:, 4:5].long(), rows[:, 5:])
        d = nms(torch.cat([rows[:, :2], rows[:, :2] + rows[:, 2:4]], 1), scores, conf=.01)
        d.boxes = unletterbox(d.boxes, image.shape[1:], (416, 416))
        found.append(d)
    metrics = average_precision(split, found)
    assert abs(metrics['AP'] - .330) < .004 and abs(metrics['AP50'] - .484) < .004


def test_suppression_does_not_depend_on_the_place_in_a_batch():
    torch.manual_seed(0)
    size = torch.rand(300, 2)*6 + 4
    rows = torch.cat([torch.rand(300, 2)*60 + 50 - size/2, size, torch.full((300, 1), 75.), torch.rand(300, 1)*.7 + .28], 1)
    for images in (1, 8, 32, 256):
        batch = torch.zeros(images, 300, 6)
        batch[0] = batch[-1] = rows
        found = Suppressed(None, 80).suppress(batch)
        first, last = (found[found[:, 0] == i, 1:] for i in (0, images - 1))
        assert 100 < len(first) < 300 and torch.equal(first, last), images
