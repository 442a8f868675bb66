"Exported files: what their graphs hold, the original's way of exporting, and real weights through ONNX and OpenVINO."
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from networks import decisive_model

from cjm_yolox_pytorch.deploy import compare, export, formats, graph
from cjm_yolox_pytorch.deploy.export import exportable, export_weights, yolox_export
from cjm_yolox_pytorch.deploy.formats import load_exported
from cjm_yolox_pytorch.files import checkpoints
from cjm_yolox_pytorch.files.checkpoints import Weights, load_weights, save_weights
from cjm_yolox_pytorch.files.letterbox import letterbox, unletterbox
from cjm_yolox_pytorch.inference import YOLOXInferenceWrapper, nms
from cjm_yolox_pytorch.model import NORM_STATS, build_model

onnx, onnxruntime, openvino = (pytest.importorskip(name) for name in ('onnx', 'onnxruntime', 'openvino'))
SUFFIXES = ['.onnx', '.pt2', '.xml'] # The others have tests of their own


@pytest.fixture(scope='module', autouse=True)
def traced_once():
    "Most of the time goes into tracing and ONNX: modules of the same kind share these"
    traces, graphs, trace, write = {}, {}, formats.trace, formats._write_onnx
    def trace_once(module, size, camera, static):
        inner, state = getattr(module, 'wrapper', module), module.state_dict()
        total = sum(t.double().sum().item() for t in state.values())
        options = str(getattr(module, 'options', inner.run_box_and_prob_calculation))
        key = type(module), total, options, size, camera, static
        if key not in traces: traces[key] = trace(module, size, camera, static)
        return traces[key]
    def write_once(program, path, metadata, half=False):
        if metadata in graphs: return path.write_bytes(graphs[metadata])
        write(program, path, metadata)
        graphs[metadata] = path.read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(formats, 'trace', trace_once)
        patch.setattr(formats, '_write_onnx', write_once)
        patch.setitem(formats._WRITERS, 'onnx', write_once)
        yield


def blotches(n, height, width, camera=False, seed=1):
    "Images from 0 to 255 with more in them than noise"
    noise = torch.rand(n, 3, 6, 8, generator=torch.Generator().manual_seed(seed))*255
    images = torch.nn.functional.interpolate(noise, (height, width), mode='bilinear')
    return images.permute(0, 2, 3, 1).round().to(torch.uint8).contiguous() if camera else images


def made_up(num_classes=3, **kwargs):
    model = decisive_model(num_classes)
    names = [f'class {i}' for i in range(num_classes)]
    return Weights(model.state_dict(), 'yolox_nano', num_classes, **NORM_STATS['yolox_nano'], names=names, **kwargs)


def corners(rows): return torch.cat([rows[:, :2], rows[:, :2] + rows[:, 2:4]], 1)


def assert_equal_rows(got, want):
    torch.testing.assert_close(got[..., :4], want[..., :4], atol=1e-2, rtol=1e-4)
    torch.testing.assert_close(got[..., 5:], want[..., 5:], atol=1e-4, rtol=0)


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp('exported')
    for suffix in SUFFIXES: export_weights(made_up(), folder/f'nano{suffix}')
    return folder


@pytest.fixture(scope='module')
def runs(files): return {suffix: load_exported(files/f'nano{suffix}') for suffix in SUFFIXES}


@pytest.fixture(scope='module')
def plain(): return exportable(made_up())


# ---- What is in a file

def test_onnx_has_no_slices_before_the_first_convolution(files):
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


def test_onnx_says_nothing_of_the_machine_that_wrote_it(files):
    "No lines of Python, and little besides the parameters"
    data, model = (files/'nano.onnx').read_bytes(), onnx.load(files/'nano.onnx')
    assert not any(word in data for word in (b'site-packages', b'stack_trace', b'pkg.torch'))
    assert [p.key for p in model.metadata_props] == ['cjm_yolox_pytorch']
    assert len(data) < 1.05*sum(len(t.raw_data) for t in model.graph.initializer)


def test_saved_onnx_computes_the_same(files, tmp_path):
    "What is left out is none of the computation"
    model, x = onnx.load(files/'nano.onnx'), blotches(1, 64, 96)
    for node in model.graph.node:
        node.doc_string = 'a line of Python'
        node.metadata_props.add(key='pkg.torch.onnx.stack_trace', value='File "model.py"')
    onnx.save(model, tmp_path/'full.onnx')
    formats.save_onnx(model, tmp_path/'less.onnx', 'about')
    assert (tmp_path/'less.onnx').stat().st_size < (tmp_path/'full.onnx').stat().st_size
    full, less = (onnxruntime.InferenceSession(tmp_path/f'{name}.onnx') for name in ('full', 'less'))
    np.testing.assert_array_equal(*(s.run(None, {'images': x.numpy()})[0] for s in (full, less)))
    assert less.get_modelmeta().custom_metadata_map == dict(cjm_yolox_pytorch='about')


def test_metadata_is_in_every_file(files):
    extra = {'cjm_yolox_pytorch.json': ''}
    torch.export.load(str(files/'nano.pt2'), extra_files=extra)
    session = onnxruntime.InferenceSession(files/'nano.onnx')
    held = [session.get_modelmeta().custom_metadata_map['cjm_yolox_pytorch'], extra['cjm_yolox_pytorch.json'],
            openvino.Core().read_model(str(files/'nano.xml')).get_rt_info(['cjm_yolox_pytorch']).astype(str)]
    weights, (about, *others) = made_up(), map(json.loads, held)
    assert others == [about, about]
    keys = 'model_type num_classes names size input output normalization mean std strides letterbox notes'
    assert ' '.join(about) == keys
    assert about['names'] == weights.names and about['size'] == 416 and about['mean'] == list(weights.mean)
    assert about['input'].startswith('float32 [batch, 3, height, width]')
    assert about['output'].startswith('[batch, A, 6]')


def test_pt2_needs_none_of_our_code(files, tmp_path):
    code = f'''import torch, torchvision, sys
module = torch.export.load({str(files/"nano.pt2")!r}).module()
print(tuple(module(torch.rand(1, 3, 64, 96)).shape), "cjm_yolox_pytorch" in sys.modules)'''
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.strip() == '(1, 126, 6) False', done.stderr


# ---- Files compute what PyTorch does

@pytest.mark.parametrize('suffix', SUFFIXES)
@pytest.mark.parametrize('shape', [(1, 64, 64), (8, 64, 96), (2, 1280, 64), (1, 1280, 1280), (1, 416, 672)])
def test_files_take_sizes_from_64_to_1280_and_batches(runs, plain, suffix, shape):
    x = blotches(*shape)
    with torch.no_grad(): assert_equal_rows(runs[suffix](x), plain(x))


@pytest.mark.parametrize('suffix', SUFFIXES)
def test_file_for_a_camera_with_nms_keeps_what_nms_keeps(tmp_path, suffix):
    "ONNX and OpenVINO also for networks that were trained with less than 64 pixels"
    weights = made_up(7, size=64 if suffix == '.pt2' else 20)
    file = tmp_path/f'nano{suffix}'
    export_weights(weights, file, suppress=True, camera=True, conf=.3, iou=.5)
    run, x = load_exported(file), blotches(3, 96, 160, camera=True)
    rows = run(x)
    with torch.no_grad(): cells = exportable(weights, camera=True)(x)
    for i, one in enumerate(cells):
        scores = torch.zeros(len(one), 7).scatter(1, one[:, 4:5].long(), one[:, 5:])
        boxes, found, labels = nms(corners(one), scores, .3, .5, max_detections=9999)
        got = rows[rows[:, 0] == i, 1:]
        assert 0 < len(labels) < len(one)
        counts, want = (v.long().bincount(minlength=7) for v in (got[:, 4], labels))
        assert (counts - want).abs().max() <= 1 # Rounding may decide between two boxes
        n = min(len(got), len(found))
        assert (got[:n, 5] - found[:n]).abs().median() < 1e-4
    assert run(x*0).shape[1] == 7
    if suffix != '.pt2': assert run(blotches(1, 32, 32, camera=True)).shape[1] == 7


def test_camera_images_are_those_of_other_files():
    "Channels last and whole numbers, of the same colors"
    x = blotches(2, 64, 96, camera=True)
    with torch.no_grad():
        rows = exportable(made_up(), camera=True)(x)
        torch.testing.assert_close(rows, exportable(made_up())(x.permute(0, 3, 1, 2).float()))


@pytest.mark.slow
def test_file_may_be_for_more_than_1280_pixels(tmp_path):
    weights = made_up(size=1500)
    export_weights(weights, tmp_path/'nano.pt2')
    x = blotches(1, 1504, 1504)
    with torch.no_grad(): want = exportable(weights)(x)
    assert_equal_rows(load_exported(tmp_path/'nano.pt2')(x), want)


def test_raw_file_has_all_probabilities(tmp_path):
    weights = made_up()
    assert export_weights(weights, tmp_path/'raw.pt2', raw=True) < 1e-2
    rows, want = load_exported(tmp_path/'raw.pt2')(blotches(2, 64, 96)), exportable(weights, raw=True)
    assert rows.shape == (2, 126, 8)
    with torch.no_grad(): torch.testing.assert_close(rows, want(blotches(2, 64, 96)), atol=1e-4, rtol=1e-4)


def test_file_that_differs_is_not_kept(tmp_path, monkeypatch):
    (tmp_path/'nano.pt2').write_text('what was there')
    monkeypatch.setattr(compare, 'load_exported', lambda path: lambda x: torch.zeros(len(x), 5, 6))
    with pytest.raises(RuntimeError, match='boxes from the file differ'): export_weights(made_up(), tmp_path/'nano.pt2')
    assert (tmp_path/'nano.pt2').read_text() == 'what was there' and len(list(tmp_path.iterdir())) == 1


def test_published_weights_are_exported_by_their_name(tmp_path, monkeypatch, capsys):
    save_weights(made_up(), tmp_path/'weights.safetensors')
    monkeypatch.setattr(checkpoints, 'pretrained_file', lambda name: tmp_path/'weights.safetensors')
    asked = []
    monkeypatch.setattr(export, 'export_weights', lambda *args, **kwargs: asked.append((args, kwargs)) or .5)
    yolox_export('yolox_nano', format='openvino', suppress=True, conf=.4)
    ((weights, path), choices), = asked
    assert weights.names == made_up().names and str(path) == 'yolox_nano.xml'
    usual = dict(raw=False, camera=False, static=False, half=False, iou=.65, classes=None)
    assert choices == dict(usual, suppress=True, conf=.4)
    assert 'written to yolox_nano.xml' in capsys.readouterr().out


def test_names_of_classes_are_those_given(tmp_path, monkeypatch, capsys):
    save_weights(replace(made_up(), names=None), tmp_path/'nano.safetensors')
    (tmp_path/'classes.txt').write_text('cat\ndog\nowl\n')
    found = []
    monkeypatch.setattr(export, 'export_weights', lambda weights, *_, **__: found.append(weights.names) or 0)
    for names in (None, 'ant, bee,cow', str(tmp_path/'classes.txt')):
        yolox_export(str(tmp_path/'nano.safetensors'), names=names)
    assert found == [None, ['ant', 'bee', 'cow'], ['cat', 'dog', 'owl']]
    assert capsys.readouterr().out.count('the classes have no names, only numbers: to give them names, use') == 1
    with pytest.raises(ValueError, match='nano.safetensors: 2 names for 3 classes'):
        yolox_export(str(tmp_path/'nano.safetensors'), names='cat,dog')


@pytest.mark.parametrize('option', [dict(conf=.4), dict(conf=.25), dict(iou=.5), dict(classes='cat')])
def test_options_of_suppression_need_it(option):
    with pytest.raises(ValueError, match=r'conf, iou and classes have no effect without suppress=True \(--suppress\)'):
        yolox_export('nowhere.pth', **option)


@pytest.mark.parametrize('sent, status', [('SIGTERM', 143), ('SIGHUP', 129), ('SIGINT', 130)])
@pytest.mark.parametrize('step', [(formats, 'trace'), (export, 'try_file')])
def test_stopped_command_leaves_no_folder(tmp_path, monkeypatch, capsys, heeded, step, sent, status):
    if not hasattr(signal, sent): pytest.skip(f'no {sent} here')
    save_weights(made_up(), tmp_path/'nano.safetensors')
    def stop(*args):
        assert len([*tmp_path.glob('new/deep/nano.onnx*.partial')]) == 1
        signal.raise_signal(getattr(signal, sent))
        time.sleep(9)
    monkeypatch.setattr(*step, stop)
    out = ['--out', str(tmp_path/'new/deep/nano.onnx')] # Folders that do not exist yet
    monkeypatch.setattr(sys, 'argv', ['yolox_export', str(tmp_path/'nano.safetensors'), *out])
    with pytest.raises(SystemExit) as end: yolox_export()
    assert end.value.code == status and [p.name for p in tmp_path.iterdir()] == ['nano.safetensors']


@pytest.mark.parametrize('name, format, lost', [
    ('pytorch_model.bin', 'openvino', 'pytorch_model.bin'), ('best.ncnn.bin', 'ncnn', 'best.ncnn.bin'),
    ('best.onnx', 'onnx', 'best.onnx')])
def test_weights_are_not_replaced(tmp_path, name, format, lost):
    "Neither by the file nor by one that belongs to it"
    torch.save(made_up().state, tmp_path/name)
    before, out = (tmp_path/name).read_bytes(), str(tmp_path/'best.ncnn.param') if format == 'ncnn' else None
    message = rf'{lost} would be replaced by the output: choose another out \(--out\)'
    with pytest.raises(ValueError, match=message):
        yolox_export(str(tmp_path/name), out=out, format=format)
    assert (tmp_path/name).read_bytes() == before and len([*tmp_path.iterdir()]) == 1


def test_names_that_nobody_could_load_are_refused(tmp_path):
    with pytest.raises(ValueError, match='weights: names of classes with control characters'):
        export_weights(replace(made_up(), names=['cat', 'a\nb', 'owl']), tmp_path/'new/nano.onnx')
    assert not [*tmp_path.iterdir()]


# ---- Static files

@pytest.mark.parametrize('options', [{}, dict(raw=True), dict(camera=True), dict(raw=True, camera=True)], ids=str)
def test_static_file_runs_in_opencv(tmp_path, options):
    weights, file = made_up(size=96), str(tmp_path/'nano.onnx')
    export_weights(weights, file, static=True, **options)
    classic = [cv2.dnn.ENGINE_CLASSIC] if hasattr(cv2.dnn, 'ENGINE_CLASSIC') else [] # The only one of OpenCV 4
    network, x = cv2.dnn.readNetFromONNX(file, *classic), blotches(1, 96, 96, 'camera' in options)
    network.setInput(x.numpy())
    with torch.no_grad(): want = exportable(weights, **options)(x)
    torch.testing.assert_close(torch.from_numpy(network.forward()), want, atol=1e-3, rtol=0)


@pytest.mark.parametrize('suffix', SUFFIXES)
def test_static_file_is_for_one_image_of_one_size(tmp_path, suffix):
    "Also with suppression, which OpenCV lacks, and below 64 pixels"
    weights = made_up(size=20)
    export_weights(weights, tmp_path/f'nano{suffix}', static=True, suppress=True)
    run = load_exported(tmp_path/f'nano{suffix}')
    assert run(blotches(1, 32, 32)).shape[1] == 7
    for shape in ((2, 32, 32), (1, 64, 64)):
        with pytest.raises(Exception, match='(?i)shape|size|dimension'): run(blotches(*shape))


def test_static_file_says_its_shape(tmp_path):
    export_weights(made_up(size=96), tmp_path/'nano.onnx', static=True)
    graph = onnx.load(tmp_path/'nano.onnx')
    about = json.loads(graph.metadata_props[0].value)
    assert about['input'] == 'float32 [1, 3, 96, 96] RGB from 0 to 255' and about['output'].startswith('[1, 189, 6] x0')
    ends = [*graph.graph.input, *graph.graph.output]
    assert [[d.dim_value for d in e.type.tensor_type.shape.dim] for e in ends] == [[1, 3, 96, 96], [1, 189, 6]]


def test_static_file_that_opencv_computes_differently_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(compare, 'load_opencv', lambda path: lambda x: torch.zeros(1, 189, 6))
    with pytest.raises(RuntimeError, match='OpenCV: the boxes from the file differ'):
        export_weights(made_up(size=96), tmp_path/'nano.onnx', static=True)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize('static, tried', [
    (False, 'tried in ONNX Runtime on images of 64x64, 160x96, 320x416, 32x32 in batches of 1 and 3'),
    (True, 'tried in ONNX Runtime and OpenCV on images of 32x32 in batches of 1')])
def test_command_says_on_what_it_was_tried(tmp_path, monkeypatch, capsys, static, tried):
    save_weights(made_up(size=20), tmp_path/'nano.safetensors')
    monkeypatch.setattr(export, 'export_weights', lambda *args, **kwargs: .5)
    yolox_export(str(tmp_path/'nano.safetensors'), static=static)
    assert tried in capsys.readouterr().out


# ---- Suppression

@pytest.mark.parametrize('iou', [.5, .98, 1])
def test_check_of_suppression_sees_a_row_that_is_there_twice(iou):
    boxes, scores = torch.tensor([[0., 0, 9, 9], [30, 30, 39, 39]]), torch.tensor([[.9], [.8]])
    right = torch.tensor([[0., 0, 9, 9, 0, .9], [30, 30, 9, 9, 0, .8]])
    compare._check_nms(right, boxes, scores, .25, iou, 64)
    nan = torch.tensor([[float('nan')]*4 + [0, .9]])
    for rows in (right[[0, 1, 0]], torch.cat([right, nan])):
        with pytest.raises(RuntimeError, match='the 3 boxes'): compare._check_nms(rows, boxes, scores, .25, iou, 64)


def test_nms_in_a_program_takes_few_rows():
    "None, or one, is what a camera mostly sees; the program of `nms` is made for two and more"
    rows = torch.rand(2, 84, 6)*torch.tensor([60, 60, 20, 20, 2.9, 1])
    module = graph.WithNMS(torch.nn.Identity(), num_classes=3, conf=.25, iou=.65, side=1280.)
    shapes = dict(x={0: torch.export.Dim('batch', min=1), 1: torch.export.Dim('cells', min=2)})
    run = torch.export.export(module, (rows,), dynamic_shapes=shapes).module()
    for n in (0, 1, 2, 84):
        rows[..., 5] = 0
        rows[1, :n, 5] = torch.linspace(.9, .3, n)
        assert 0 < len(run(rows)) <= n or n == 0
        torch.testing.assert_close(run(rows), module(rows), rtol=0, atol=0)


def test_nms_in_a_program_is_that_of_each_image():
    g, box = torch.Generator().manual_seed(0), torch.tensor([60, 60, 20, 20, 6.99, 1])
    rows = torch.rand(3, 300, 6, generator=g)*box
    rows[..., 4] = rows[..., 4].floor()
    found = graph.WithNMS(torch.nn.Identity(), num_classes=7, conf=.3, iou=.5, side=1280.)(rows)
    for i, one in enumerate(rows):
        scores = torch.zeros(300, 7).scatter(1, one[:, 4:5].long(), one[:, 5:])
        boxes, scores, labels = nms(corners(one), scores, .3, .5, max_detections=300)
        kept = found[found[:, 0] == i, 1:]
        assert 50 < len(kept) < 250 and kept[:, 4].tolist() == labels.tolist() and torch.equal(kept[:, 5], scores)
        torch.testing.assert_close(corners(kept), boxes)


def test_nms_does_not_depend_on_the_place_in_a_batch():
    torch.manual_seed(0)
    size = torch.rand(300, 2)*6 + 4
    corner, label, score = torch.rand(300, 2)*60 + 50 - size/2, torch.full((300, 1), 75.), torch.rand(300, 1)*.7 + .28
    module = graph.WithNMS(torch.nn.Identity(), num_classes=80, conf=.25, iou=.65, side=1280.)
    for images in (1, 8, 32, 256):
        batch = torch.zeros(images, 300, 6)
        batch[0] = batch[-1] = torch.cat([corner, size, label, score], 1)
        found = module(batch)
        first, last = (found[found[:, 0] == i, 1:] for i in (0, images - 1))
        assert 100 < len(first) < 300 and torch.equal(first, last), images


# ---- Others' scripts, and real weights

@pytest.mark.parametrize('dynamo', [True, False])
def test_scripts_of_0_2_export_as_before(tmp_path, dynamo):
    model = build_model('yolox_nano', 3, pretrained=False).eval()
    mean, std = (torch.tensor([v]*3).view(1, 3, 1, 1) for v in (.5, 1.))
    wrapper = YOLOXInferenceWrapper(model, mean, std, run_box_and_prob_calculation=False).eval()
    x, names = torch.rand(1, 3, 96, 128), dict(input_names=['input'], output_names=['output'])
    torch.onnx.export(wrapper, (x,), str(tmp_path/'old.onnx'), dynamo=dynamo, **names)
    got = onnxruntime.InferenceSession(tmp_path/'old.onnx').run(None, {'input': x.numpy()})[0]
    with torch.no_grad(): np.testing.assert_allclose(got, wrapper(x), atol=1e-4)
    assert got.shape == (1, 252, 8)


@pytest.mark.parametrize('suffix', ['.onnx', pytest.param('.xml', marks=pytest.mark.slow)])
def test_real_weights_score_the_same_in_other_programs(shared, tmp_path, suffix):
    from cjm_yolox_pytorch.data.annotations import read_annotated
    from cjm_yolox_pytorch.data.splits import find_splits, read_split
    from cjm_yolox_pytorch.detection.detections import Detections
    from cjm_yolox_pytorch.evaluation.metrics import average_precision
    export_weights(load_weights(shared/'weights/yolox_nano_coco.pth'), tmp_path/f'nano{suffix}')
    run = load_exported(tmp_path/f'nano{suffix}')
    split = read_split(shared/'data/coco_ccby', next(iter(find_splits(shared/'data/coco_ccby'))))
    found = []
    for i in range(len(split)):
        image = read_annotated(split, i)
        rows = run(letterbox(image, (416, 416))[None].float())[0]
        scores = torch.zeros(len(rows), 80).scatter(1, rows[:, 4:5].long(), rows[:, 5:])
        boxes, scores, labels = nms(corners(rows), scores, conf=.01)
        found.append(Detections(unletterbox(boxes, image.shape[1:], (416, 416)), scores, labels))
    metrics = average_precision(split, found)
    assert abs(metrics['AP'] - .330) < .004 and abs(metrics['AP50'] - .484) < .004


def test_thresholds_are_kept_and_used_in_the_file(tmp_path):
    weights = made_up()
    rows = export.exportable(weights)(blotches(1, 64, 64))[0]
    least = [rows[rows[:, 4] == c, 5].quantile(.8).item() if (rows[:, 4] == c).any() else .5 for c in range(3)]
    notes = dict(thresholds=dict(score=.5, classes=least, split='val'))
    export_weights(replace(weights, notes=notes), tmp_path/'by_class.onnx', suppress=True)
    kept = load_exported(tmp_path/'by_class.onnx')(blotches(1, 64, 64))
    above = kept[:, 6] > torch.tensor(least)[kept[:, 5].long()]
    assert above.all() and 0 < len(kept) < (rows[:, 5] > .25).sum()
    about = onnxruntime.InferenceSession(tmp_path/'by_class.onnx').get_modelmeta().custom_metadata_map
    about = json.loads(about['cjm_yolox_pytorch'])
    assert about['notes']['thresholds'] == notes['thresholds'] and about['conf'] == least and about['iou'] == .65


def test_threshold_in_the_file_is_that_given_or_chosen_and_classes_are_left_out():
    tuned = replace(made_up(), notes=dict(thresholds=dict(score=.4, classes=[.4]*3)))
    def kept(**options): return graph.file_metadata(tuned, suppress=True, **options)['conf']
    assert (kept(), kept(conf=.25), kept(conf=0.)) == (.4, .25, 0.)
    assert kept(classes='class 1') == [1., .4, 1.] and graph.file_metadata(made_up(), suppress=True)['conf'] == .25
    assert 'conf' not in graph.file_metadata(tuned) and graph.file_metadata(tuned)['notes']['thresholds']['score'] == .4
    with pytest.raises(ValueError, match="'class' .similar: class 2, class 1, class 0"): kept(classes='class')
    found = export.exportable(tuned, suppress=True, classes='class 1')(blotches(2, 64, 64))
    assert {*found[:, 5].tolist()} == {1.} and found[:, 6].min() > .4
