"Exported files that are made up: odd inputs and outputs, changed metadata, and addresses."
import functools
import http.server
import json
import threading

import numpy as np
import pytest
import torch

from cjm_yolox_pytorch.detection.backends import load_exported_network, remarks
from cjm_yolox_pytorch.detection.detector import load_detector
from cjm_yolox_pytorch.detection.onnx import OnnxDetector

onnx = pytest.importorskip('onnx')
for needed in ('onnxruntime', 'openvino'): pytest.importorskip(needed)
from onnx import TensorProto, helper, numpy_helper # noqa: E402

RNG = np.random.default_rng(0)
CELLS = 84 # Of 64 x 64 pixels
PROBABLE = RNG.uniform(0, 1, (1, CELLS, 3))
CENTERS = np.concatenate([RNG.uniform(0, 64, (1, CELLS, 4)), PROBABLE], 2).astype(np.float32)
LABELS = RNG.integers(0, 2, (1, CELLS, 1))
DECODED = np.concatenate([CENTERS[..., :4], LABELS, PROBABLE[..., :1]], 2).astype(np.float32)
IMAGE = np.full((50, 40, 3), 120, np.uint8)
ABOUT = dict(model_type='always', num_classes=2, names=['cat', 'dog'], size=64, strides=[8, 16, 32],
    input='float32 [1, 3, 64, 64] RGB', output='[1, 84, 6] x0, y0, width, height, label, probability')


def write(path, rows, dtype=TensorProto.FLOAT, shape=(1, 3, 64, 64), ports=('images', 'output'), about=None):
    "A file that returns `rows` for any image"
    node = helper.make_node('Constant', [], [ports[1]], value=numpy_helper.from_array(rows))
    inputs = [helper.make_tensor_value_info(ports[0], dtype, shape)] if shape else []
    output = helper.make_tensor_value_info(ports[1], helper.np_dtype_to_tensor_dtype(rows.dtype), rows.shape)
    graph = helper.make_graph([node], 'always', inputs, [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 18)], ir_version=9)
    if about: helper.set_model_props(model, dict(cjm_yolox_pytorch=json.dumps(about)))
    onnx.save(model, path)
    return path


@pytest.mark.parametrize('options, message', [
    (dict(dtype=TensorProto.DOUBLE), r'its inputs are .*tensor\(double\).*of float32, float16, uint8'),
    (dict(shape=None), 'its inputs are {}; needed is one of images'),
    (dict(shape=(0, 3, 64, 64)), 'not a known detector: its inputs are'),
    (dict(dtype=TensorProto.UINT8, ports=('input', 'output')), 'odd.onnx takes uint8, which cannot hold rgb1')],
    ids=['double', 'none', 'empty', 'uint8'])
def test_odd_inputs_are_named(tmp_path, options, message):
    with pytest.raises(ValueError, match=message): load_detector(write(tmp_path/'odd.onnx', CENTERS, **options))


def test_uint8_of_other_programs_is_taken_in_full_range(tmp_path):
    file = write(tmp_path/'whole.onnx', CENTERS, TensorProto.UINT8)
    assert load_detector(file).model.info.pixels == 'bgr255'
    message = r'cannot hold bgr1: choose pixels rgb255 or bgr255 \(--pixels\)'
    with pytest.raises(ValueError, match=message): load_detector(file, pixels='bgr1')


def test_labels_of_0_2_are_not_taken_for_objectness(tmp_path):
    "Six columns: one class, or a label and its probability"
    file = write(tmp_path/'old.onnx', DECODED, ports=('input', 'output'))
    message = r'does not say how many classes it has: give their names \(--names\)'
    with pytest.raises(ValueError, match=message): load_detector(file)
    detect = load_detector(file, names=['cat', 'dog'])
    found = detect(IMAGE, conf=.5, iou=1., max_detections=CELLS)
    assert detect.model.info.output == 'decoded' and len(found) == (DECODED[..., 5] > .5).sum()
    assert {*found.labels.tolist()} == {0, 1}
    one = write(tmp_path/'one.onnx', CENTERS[..., :6].copy())
    assert (load_detector(one).model.info.output, load_detector(one).num_classes) == ('centers', 1)


@pytest.mark.parametrize('change', [
    dict(num_classes=10**9, names=None), dict(num_classes='2', names=None), dict(num_classes=0, names=None),
    dict(names='ab'), dict(names=[1, 2]), dict(strides=[0]), dict(strides=5), dict(conf='x'), dict(conf=[.1]),
    dict(iou=2), dict(notes=3), dict(notes=dict(thresholds=3)), dict(notes=dict(bit_depth='x')), dict(size=0),
    dict(notes=dict(thresholds=dict(score=.3, classes=[.3]*7))), dict(input='float32 [1, 3, 9999999, 64]')], ids=str)
def test_changed_fields_of_metadata_are_an_error(tmp_path, change):
    file = write(tmp_path/'changed.onnx', DECODED, about=ABOUT | change)
    for load in (load_detector, OnnxDetector):
        with pytest.raises(ValueError, match='changed.onnx: its metadata were changed and cannot be read'): load(file)


@pytest.mark.parametrize('said', ['float32 [1, 3, 96, 96]', 'uint8 [1, 64, 64, 3]'])
def test_file_that_does_not_run_is_named(tmp_path, said):
    detect = load_detector(write(tmp_path/'stubborn.onnx', DECODED, about=ABOUT | dict(input=said)))
    with pytest.raises(ValueError, match='stubborn.onnx does not run on an input of '): detect(IMAGE)


def test_files_of_openvino_with_odd_inputs_are_named(tmp_path):
    import openvino
    from openvino import opset13 as ops
    for name, shape, kind, message in (
        ('any', openvino.PartialShape.dynamic(), np.float32, r'cannot be loaded by OpenVINO, or was cut off \(.*rank'),
        ('brain', [1, 3, 64, 64], openvino.Type.bf16, "its inputs are .*'bf16'.*needed is one of images")):
        model = openvino.Model([ops.result(ops.constant(CENTERS))], [ops.parameter(shape, kind)], 'always')
        openvino.save_model(model, tmp_path/f'{name}.xml')
        with pytest.raises(ValueError, match=message): load_detector(tmp_path/f'{name}.xml', pixels='bgr255')


def test_scores_by_class_must_be_as_many_as_classes(tmp_path):
    file = write(tmp_path/'two.onnx', CENTERS)
    for detect in (load_detector(file), OnnxDetector(file)):
        with pytest.raises(ValueError, match='conf: 3 scores for 2 classes'): detect(IMAGE, conf=[.1, .2, .3])


def test_other_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='none.onnx: no such file'): OnnxDetector(tmp_path/'none.onnx')
    torch.save({}, tmp_path/'weights.pth')
    with pytest.raises(ValueError, match='weights.pth is not an exported network: load_detector and load_weights take'):
        load_exported_network(tmp_path/'weights.pth')
    file = write(tmp_path/'two.onnx', CENTERS)
    assert load_detector(file, img_size=np.int64(64)).spec.img_size == 64


def test_left_out_classes_are_not_a_matter_of_conf(tmp_path):
    rows = np.concatenate([np.zeros((CELLS, 1), np.float32), DECODED[0]], 1)
    about = ABOUT | dict(output='[N, 7] image, ...', conf=[.1, 1.])
    network = load_exported_network(write(tmp_path/'cats.onnx', rows, about=about))
    assert [*remarks(network, .1, .65)] == [f'{tmp_path/"cats.onnx"} finds only cat']
    assert 'keeps only boxes of score > 0.1, whatever' in [*remarks(network, [.05, .9], .65)][1]


# ---- Addresses

@pytest.fixture(scope='module')
def served(tmp_path_factory):
    "A folder, and its address"
    folder = tmp_path_factory.mktemp('served')
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args): pass
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f'http://127.0.0.1:{server.server_port}'
    server.shutdown()


def test_exported_files_have_addresses_as_weights_do(served, tmp_path, monkeypatch):
    folder, address = served
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    write(folder/'two.onnx', CENTERS)
    detect = load_detector(f'{address}/two.onnx?download=true')
    (folder/'two.onnx').unlink() # From now on it comes from the cache
    assert load_detector(f'{address}/two.onnx?download=true')(IMAGE).scores.tolist() == detect(IMAGE).scores.tolist()
    with pytest.raises(ValueError, match='OpenVINO has two files: download this one and the .bin beside it'):
        load_detector(f'{address}/two.xml')


def test_bad_downloads_are_not_kept(served, tmp_path, monkeypatch):
    folder, address = served
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    whole = write(folder/'cut.onnx', CENTERS).read_bytes()
    (folder/'cut.onnx').write_bytes(whole[:len(whole)//2])
    for name in ('cut.onnx', 'none.onnx'):
        with pytest.raises(OSError, match=f'{name} could not be downloaded'): load_detector(f'{address}/{name}')
    assert not [p for p in tmp_path.rglob('*') if p.is_file()]
