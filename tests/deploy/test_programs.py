"""Files for Frigate and DepthAI, read as these programs read them: what they document, written here a second time.

Frigate: docs.frigate.video/configuration/object_detectors#yolox, and detectors/plugins/onnx.py, util/object.py,
util/builtin.py (`load_labels`) of its repository. DepthAI: docs.luxonis.com/software-v3/ai-inference/nn-archive, and
gen2-yolo/yolox of luxonis/depthai-experiments, the example with host-side decoding that its page on YOLO names.
"""
import json
import signal
import sys
import time
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
import yaml
from networks import decisive_model

from cjm_yolox_pytorch.data.shapes import draw_shapes as drawing
from cjm_yolox_pytorch.deploy import export, programs
from cjm_yolox_pytorch.deploy.export import yolox_export
from cjm_yolox_pytorch.deploy.graph import exportable
from cjm_yolox_pytorch.deploy.programs import PROGRAMS, export_for
from cjm_yolox_pytorch.detection.detector import load_detector
from cjm_yolox_pytorch.detection.exported import info_of_ours
from cjm_yolox_pytorch.files.checkpoints import Weights, load_weights, save_weights
from cjm_yolox_pytorch.files.class_names import COCO_NAMES

onnx, onnxruntime = (pytest.importorskip(name) for name in ('onnx', 'onnxruntime'))
pytest.importorskip('onnxscript')
NAMES, SIZE = ['2 wheels', 'no', 'owl'], 96


@pytest.fixture(scope='module')
def sure():
    "Weights of a random network that finds several things, with a mean and a standard deviation"
    return Weights(decisive_model(3).state_dict(), 'yolox_nano', 3, (.1, .2, .3), (1., .9, .8), names=NAMES, size=90)


@pytest.fixture(scope='module')
def files(sure, tmp_path_factory):
    folder = tmp_path_factory.mktemp('programs')
    for program in PROGRAMS: assert export_for(program, sure, folder/f'best.{program}.onnx') < 1e-3
    return folder


def pictures(*sizes): # BGR, as OpenCV reads photos
    return [drawing(np.random.default_rng(n), size=size)[0][..., ::-1].copy() for n, size in enumerate(sizes)]


# ---- Two readers

def run(file, image): # [H, W, 3] uint8 -> [A, 5+C]
    session = onnxruntime.InferenceSession(file, providers=['CPUExecutionProvider'])
    takes, = session.get_inputs()
    assert takes.shape == [1, 3, *image.shape[:2]] and takes.type == 'tensor(float)'
    rows, = session.run(['output'], {'images': image.transpose(2, 0, 1)[None].astype(np.float32)})
    assert rows.shape[0] == 1 and rows.dtype == np.float32
    return rows[0]


def corners(rows, size): # [A, 5+C] raw -> [A, 4] x0, y0, x1, y1
    boxes, at = [], 0
    for stride in (8, 16, 32):
        for y in range(size//stride):
            for x in range(size//stride):
                cx, cy = (rows[at, 0] + x)*stride, (rows[at, 1] + y)*stride
                w, h = np.exp(rows[at, 2:4])*stride
                boxes.append([cx - w/2, cy - h/2, cx + w/2, cy + h/2])
                at += 1
    assert at == len(rows)
    return np.array(boxes)


def probable(rows): # [A, 5+C] -> [A] scores and [A] labels
    scores = rows[:, 4:5]*rows[:, 5:]
    return scores.max(1), scores.argmax(1)


def frigate(config, folder, region): # BGR square -> up to 20 names, scores, boxes as shares of the side
    "Scale a region to the network, decode, drop scores below .4, suppress with OpenCV's function"
    model = config['model']
    assert (model['model_type'], model['input_tensor'], model['input_dtype']) == ('yolox', 'nchw', 'float_denorm')
    assert model['input_pixel_format'] == 'bgr' and model['width'] == model['height']
    size, (file, labels) = model['width'], (folder/model[k].rpartition('/')[2] for k in ('path', 'labelmap_path'))
    rows = run(file, cv2.resize(region, (size, size), interpolation=cv2.INTER_LINEAR))
    names, boxes, (scores, found) = frigate_labels(labels), corners(rows, size), probable(rows)
    # It hands over corners, where OpenCV wants a corner and a size
    kept = cv2.dnn.NMSBoxes(boxes.tolist(), scores.tolist(), score_threshold=.4, nms_threshold=.4)
    return [(names[found[i]], scores[i], boxes[i]/size) for i in kept[:20]]


def frigate_labels(path): # Number -> name
    lines = path.read_text(encoding='utf-8').splitlines()
    if not lines[0].split(' ')[0].isdigit(): return dict(enumerate(lines))
    return {int(number): name for number, name in (line.split(' ', 1) for line in lines)}


def depthai_canvas(frame, size): # BGR -> [size, size, 3], and the factor of boxes
    "One factor for both sides, cut off to whole pixels; the rest is 114"
    factor = min(size/frame.shape[0], size/frame.shape[1])
    height, width = (int(n*factor) for n in frame.shape[:2])
    canvas = np.full((size, size, 3), 114, np.uint8)
    canvas[:height, :width] = cv2.resize(frame, (width, height), interpolation=cv2.INTER_LINEAR)
    return canvas, factor


def suppress(boxes, scores, iou): # -> indices, best first; a box from 2 to 4 has 3 pixels
    order, kept = [*np.argsort(-scores, kind='stable')], []
    while order:
        first, *order = order
        kept.append(first)
        low, high = np.maximum(boxes[first, :2], boxes[order, :2]), np.minimum(boxes[first, 2:], boxes[order, 2:])
        shared = np.clip(high - low + 1, 0, None).prod(1)
        area = [(boxes[i, 2:] - boxes[i, :2] + 1).prod() for i in (first, *order)]
        order = [i for i, s, a in zip(order, shared, area[1:]) if s/(area[0] + a - s) <= iou]
    return kept


def depthai(config, folder, frame, score=.3, iou=.45): # BGR -> boxes in pixels of the frame, scores, labels
    "Fit a frame onto the canvas, decode `output` on the host, suppress class by class"
    model = config['model']
    (takes,), (gives,) = model['inputs'], model['outputs']
    pixels = takes['preprocessing']
    assert (pixels['dai_type'], pixels['mean'], pixels['scale']) == ('BGR888p', [0, 0, 0], [1, 1, 1])
    size = takes['shape'][3]
    canvas, factor = depthai_canvas(frame, size)
    rows = run(folder/model['metadata']['path'], canvas)
    assert [1, *rows.shape] == gives['shape']
    boxes, every, found = corners(rows, size), rows[:, 4:5]*rows[:, 5:], []
    for label in range(every.shape[1]):
        cells = np.flatnonzero(every[:, label] > score)
        found += [(cells[i], label) for i in suppress(boxes[cells], every[cells, label], iou)]
    return [(boxes[i]/factor, every[i, label], label) for i, label in found]


# ---- What is printed

def pasted(program, weights, folder): return PROGRAMS[program](weights, folder/f'best.{program}.onnx').split('\n\n')[1]
def frigate_text(weights, folder): return yaml.safe_load(pasted('frigate', weights, folder))
def depthai_text(weights, folder): return json.loads(pasted('depthai', weights, folder))


def test_frigate_configuration_names_files_and_classes(sure, files):
    config = frigate_text(sure, files)
    assert config['detectors'] == dict(onnx=dict(type='onnx')) and config['objects'] == dict(track=NAMES)
    for key in ('path', 'labelmap_path'):
        assert (files/config['model'][key].removeprefix('/config/model_cache/')).exists()
    assert frigate_labels(files/'best.frigate.labels.txt') == dict(enumerate(NAMES))


def test_depthai_configuration_is_that_of_the_file(sure, files):
    model = depthai_text(sure, files)['model']
    session = onnxruntime.InferenceSession(files/model['metadata']['path'])
    for ports, described in ((session.get_inputs(), model['inputs']), (session.get_outputs(), model['outputs'])):
        assert [(p.name, p.shape) for p in ports] == [(d['name'], d['shape']) for d in described]
    assert model['heads'] == []


@pytest.mark.parametrize('program', PROGRAMS)
def test_text_fits_a_terminal(sure, program, tmp_path):
    many = replace(sure, names=COCO_NAMES, num_classes=80)
    assert max(map(len, PROGRAMS[program](many, tmp_path.relative_to(tmp_path)/'best.onnx').splitlines())) <= 80


@pytest.mark.parametrize('program', PROGRAMS)
def test_files_are_written_for_older_tools(files, program):
    model = onnx.load(files/f'best.{program}.onnx')
    assert (model.ir_version, [o.version for o in model.opset_import]) == (8, [15])
    first = next(node for node in model.graph.node if node.op_type == 'Conv')
    assert 'Slice' not in {node.op_type for node in model.graph.node} and len(first.output) == 1


# ---- What is found

def assert_same(found, want, pixels=.05): # Boxes, scores, labels; rounding may decide about one of them
    assert len(want[0]) > 3
    near = np.abs(found[0][:, None] - want[0]).max(-1) < pixels
    like = near & (np.abs(found[1][:, None] - want[1]) < 1e-3) & (found[2][:, None] == want[2])
    assert (~like.any(0)).sum() <= 1 and (~like.any(1)).sum() <= 1


def arrays(found): return [np.array(part) for part in zip(*found)]
def detections(d): return d.boxes.numpy(), d.scores.numpy(), d.labels.numpy()


def test_frigate_keeps_boxes_of_the_detector(sure, files):
    "It drops more than ours does, since it suppresses across classes; what it keeps is what we find before that"
    detect, config = load_detector(sure, 'cpu', img_size=SIZE), frigate_text(sure, files)
    for region in pictures(SIZE, SIZE, SIZE):
        found = frigate(config, files, region)
        d = detect(region[..., ::-1].copy(), conf=.4, iou=1., max_detections=9999)
        best = d.names[d.labels[0]]
        assert 0 < len(found) <= 20 and found[0][0] == best and abs(found[0][1] - d.scores[0]) < 1e-3
        for name, score, box in found:
            ours = d.boxes[(d.scores - score).abs() < 1e-3].numpy()
            # Ours end at the border of the image
            assert name in NAMES and np.abs(ours - np.clip(box*SIZE, 0, SIZE)).max(1).min() < .05


def test_frigate_has_the_rows_of_the_detector(sure, files):
    "Every cell, before anybody suppresses"
    for region in pictures(SIZE, SIZE):
        rows = run(files/'best.frigate.onnx', region)
        rgb = torch.from_numpy(region[..., ::-1].copy()).permute(2, 0, 1)[None].float()
        with torch.no_grad(): want = exportable(sure)(rgb)[0]
        scores, labels = probable(rows)
        assert (labels == want[:, 4].numpy()).mean() > .98
        np.testing.assert_allclose(scores, want[:, 5], atol=1e-4)
        boxes = corners(rows, SIZE)
        np.testing.assert_allclose(boxes[:, :2], want[:, :2], atol=1e-2)
        np.testing.assert_allclose(boxes[:, 2:] - boxes[:, :2], want[:, 2:4], atol=1e-2)


def test_depthai_finds_what_the_detector_does(sure, files):
    config, detect = depthai_text(sure, files), load_detector(sure, 'cpu', img_size=SIZE)
    for frame in pictures(SIZE, SIZE, SIZE):
        boxes, scores, labels = arrays(depthai(config, files, frame, iou=.65))
        # Ours gives each cell its best class, and counts pixels as they are in suppression
        want = detections(detect(frame[..., ::-1].copy(), conf=.3, multi_label=True, max_detections=9999))
        found = len(labels)
        assert abs(found - len(want[2])) <= max(2, .1*found)
        near = np.abs(np.clip(boxes, 0, SIZE)[:, None] - want[0]).max(-1) < .05
        like = near & (np.abs(scores[:, None] - want[1]) < 1e-3) & (labels[:, None] == want[2])
        assert like.any(1).mean() > .9 and like.any(0).mean() > .9


def test_letterbox_of_depthai_is_ours_up_to_a_pixel():
    from cjm_yolox_pytorch.files.letterbox import letterbox
    for height, width in ((48, 96), (192, 96), (100, 77)):
        frame = cv2.resize(pictures(128)[0], (width, height))
        theirs, _ = depthai_canvas(frame, SIZE)
        ours = letterbox(torch.from_numpy(frame).permute(2, 0, 1), (SIZE, SIZE)).permute(1, 2, 0).numpy()
        edges = [(canvas != 114).any(2) for canvas in (theirs, ours)]
        rows, columns = ([e.any(axis).sum() for e in edges] for axis in (1, 0))
        assert abs(rows[0] - rows[1]) <= 1 and abs(columns[0] - columns[1]) <= 1


@pytest.mark.parametrize('program', PROGRAMS)
def test_files_are_read_back(sure, files, program, tmp_path):
    "With what we write into them, and like a file of Megvii's exporter without it"
    file, bare = files/f'best.{program}.onnx', tmp_path/'bare.onnx'
    model = onnx.load(file)
    del model.metadata_props[:]
    onnx.save(model, bare)
    image = pictures(SIZE)[0][..., ::-1].copy()
    want = detections(load_detector(sure, 'cpu', img_size=SIZE)(image))
    for detect in (load_detector(file), load_detector(bare, names=NAMES)):
        assert (detect.model.info.pixels, detect.model.info.output, detect.names) == ('bgr255', 'raw', NAMES)
        assert_same(detections(detect(image)), want)


def test_thresholds_and_bit_depth_survive(sure):
    notes = dict(bit_depth=12, thresholds=dict(score=.4, classes=[.4, .3, .5]))
    info = info_of_ours('a.onnx', programs._metadata(replace(sure, notes=notes)))
    assert (info.notes, info.pixels, info.shape, info.names) == (notes, 'bgr255', (1, 3, SIZE, SIZE), NAMES)


# ---- Errors

def test_colors_that_are_not_exchanged_are_noticed(sure, files, tmp_path, monkeypatch):
    (tmp_path/'best.onnx').write_text('what was there')
    def write_rgb(module, path, *about, **_):
        model = onnx.load(files/'best.frigate.onnx')
        first = next(node for node in model.graph.node if node.op_type == 'Conv')
        weight = next(t for t in model.graph.initializer if t.name == first.input[1])
        weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight)[:, ::-1].copy(), weight.name))
        onnx.save(model, path)
    monkeypatch.setattr(programs, 'write_draft', write_rgb)
    with pytest.raises(RuntimeError, match='from the file differ from PyTorch'):
        export_for('frigate', sure, tmp_path/'best.onnx')
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [('best.onnx', 'what was there')]


@pytest.mark.parametrize('options, message', [
    (dict(for_='shinobi'), "for='shinobi': choose one of \\['frigate', 'depthai'\\]"),
    (dict(for_='frigate', half=True, static=True), 'half, static cannot be chosen with --for frigate: leave it out'),
    (dict(for_='depthai', format='openvino'), 'format cannot be chosen with --for depthai'),
    (dict(for_='depthai', format='web'), 'format cannot be chosen with --for depthai'),
    (dict(for_='depthai', suppress=True, conf=.4), 'suppress cannot be chosen with --for depthai'),
    (dict(for_='depthai', raw=True), 'raw cannot be chosen with --for depthai'),
    (dict(for_='frigate', conf=.4), r'conf, iou and classes have no effect without suppress=True \(--suppress\)'),
    (dict(for_='frigate', runtime='x'), r'runtime has no effect without format=web \(--format web\)')], ids=str)
def test_options_of_other_files_are_refused(options, message):
    with pytest.raises(ValueError, match=message): yolox_export('nowhere.pth', **options)


def test_out_and_names_are_checked_first(sure, tmp_path):
    save_weights(replace(sure, names=None), tmp_path/'best.safetensors')
    (tmp_path/'folder.onnx').mkdir()
    cases = [(dict(for_='frigate'), 'Frigate needs the names of classes, .* give them with --names'),
             (dict(for_='depthai', out=f'{tmp_path}/best.xml'), 'best.xml'),
             (dict(for_='depthai', out=f'{tmp_path}/folder.onnx'), 'folder.onnx is a folder')]
    for options, message in cases:
        with pytest.raises(ValueError, match=message): yolox_export(f'{tmp_path}/best.safetensors', **options)
    assert {p.name for p in tmp_path.iterdir()} == {'best.safetensors', 'folder.onnx'}


@pytest.mark.parametrize('step', [(programs, 'write_draft'), (programs, '_try_bgr')])
def test_stopped_command_leaves_nothing(sure, tmp_path, monkeypatch, step):
    save_weights(sure, tmp_path/'best.safetensors')
    def stop(*args, **kwargs):
        signal.raise_signal(signal.SIGTERM)
        time.sleep(9)
    if step[1] == '_try_bgr': # All files are there already
        monkeypatch.setattr(programs, 'write_draft', lambda module, path, *_, **__: path.touch())
        monkeypatch.setattr(programs, '_as_megvii', lambda path: None)
    monkeypatch.setattr(*step, stop)
    words = [f'{tmp_path}/best.safetensors', '--for', 'frigate', '--out', f'{tmp_path}/new/best.onnx']
    monkeypatch.setattr(sys, 'argv', ['yolox_export', *words])
    with pytest.raises(SystemExit) as end: yolox_export()
    assert end.value.code == 143 and [p.name for p in tmp_path.iterdir()] == ['best.safetensors']


def test_command_prints_what_to_paste(sure, tmp_path, monkeypatch, capsys):
    save_weights(sure, tmp_path/'best.safetensors')
    monkeypatch.setattr(export, 'export_for', lambda program, weights, path: 0.)
    monkeypatch.setattr(sys, 'argv', ['yolox_export', f'{tmp_path}/best.safetensors', '--for=depthai'])
    yolox_export()
    said = capsys.readouterr().out
    assert f'written to {tmp_path}/best.depthai.onnx: equal to PyTorch within' in said
    assert json.loads(said.split('\n\n')[1]) == depthai_text(sure, tmp_path)


# ---- Real weights

@pytest.mark.slow
@pytest.mark.parametrize('program', PROGRAMS)
def test_photos(shared, tmp_path, program):
    "Squares of photos for Frigate, whole photos for DepthAI; and the same AP on a few of them"
    nano = load_weights(shared/'weights/yolox_nano_coco.pth')
    export_for(program, nano, tmp_path/f'best.{program}.onnx')
    detect, photos = load_detector(nano, 'cpu'), sorted((shared/'data/coco_ccby/images').rglob('*.jpg'))[:12]
    config = (frigate_text if program == 'frigate' else depthai_text)(nano, tmp_path)
    missed = total = 0
    for frame in map(cv2.imread, map(str, photos)):
        if program == 'frigate':
            side = min(frame.shape[:2])
            frame = frame[:side, :side].copy()
            found = [(box*side, score, nano.names.index(name)) for name, score, box in frigate(config, tmp_path, frame)]
        else: found = depthai(config, tmp_path, frame, score=.4, iou=.65)
        d = detect(frame[..., ::-1].copy(), conf=.3, iou=1. if program == 'frigate' else .65, max_detections=9999)
        for box, score, label in found:
            same = d.boxes[d.labels == label].numpy()
            low, high = np.maximum(same[:, :2], box[:2]), np.minimum(same[:, 2:], box[2:])
            shared_area = np.clip(high - low, 0, None).prod(1)
            overlap = shared_area/((same[:, 2:] - same[:, :2]).prod(1) + (box[2:] - box[:2]).prod() - shared_area)
            missed += not (overlap > .8).any()
        total += len(found)
    assert total > 20 and missed <= .05*total
    back = load_detector(tmp_path/f'best.{program}.onnx')
    for got, want in zip(back(photos), detect(photos), strict=True): assert_same_few(got, want)


def assert_same_few(got, want):
    assert len(got) == len(want)
    torch.testing.assert_close(got.boxes, want.boxes, atol=.05, rtol=0)
    torch.testing.assert_close(got.scores, want.scores, atol=1e-3, rtol=0)
