"The programs of the tutorial that use an exported file find what the library finds."
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cjm_yolox_pytorch.data.shapes import draw_shapes
from cjm_yolox_pytorch.deploy.export import export_weights
from cjm_yolox_pytorch.detection.detector import load_detector
from cjm_yolox_pytorch.files.checkpoints import load_weights
from cjm_yolox_pytorch.files.images import read_image
from cjm_yolox_pytorch.files.letterbox import letterbox, unletterbox

onnx, onnxruntime = (pytest.importorskip(name) for name in ('onnx', 'onnxruntime'))
ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT/'nbs/tutorials/onnx_runtime.ipynb'
PROGRAMS = ROOT/'nbs/tutorials/elsewhere'
MODULES = ROOT/'.venv-web/node_modules'
SIDE = 96


def python(folder): return [sys.executable, PROGRAMS/'detect.py']


def javascript(folder):
    "Node.js looks for packages beside the program"
    if not shutil.which('node') or not (MODULES/'onnxruntime-node').exists():
        pytest.skip('needs Node.js, onnxruntime-node and sharp: make .venv-web/node_modules')
    shutil.copy(PROGRAMS/'detect.mjs', folder)
    (folder/'node_modules').symlink_to(MODULES)
    return ['node', folder/'detect.mjs']


def cpp(folder):
    "Headers and library from the folder $ONNXRUNTIME, or from where a system's packages put them"
    place = Path(os.environ.get('ONNXRUNTIME', '/usr'))
    headers = [d for d in (place/'include', place/'include/onnxruntime', Path('/usr/include/stb')) if d.exists()]
    files = ('onnxruntime_cxx_api.h', 'stb_image.h')
    if not shutil.which('g++') or not all(any((d/file).exists() for d in headers) for file in files):
        pytest.skip('needs g++, stb_image.h and ONNX Runtime: set ONNXRUNTIME to the folder of its include and lib')
    strict = ['-std=c++17', '-O1', '-Wall', '-Wextra', '-Werror', *(f'-isystem{d}' for d in headers)]
    library = [f'-L{place}/lib', f'-Wl,-rpath,{place}/lib', '-lonnxruntime']
    subprocess.run(['g++', PROGRAMS/'detect.cpp', '-o', folder/'detect', *strict, *library], check=True)
    return [folder/'detect']


@pytest.fixture(scope='module', params=[python, javascript, cpp], ids=lambda build: build.__name__)
def program(request, tmp_path_factory): return request.param(tmp_path_factory.mktemp('program'))


@pytest.fixture(scope='module')
def pixels_as_boxes(tmp_path_factory):
    "A file with the interface of an exported one, whose boxes are the pixels of the canvas, in eighths, four by four"
    folder, N = tmp_path_factory.mktemp('pixels'), SIDE*SIDE*3//4
    image = np.zeros((N, 1), np.float32)
    about = np.tile(np.float32([[0, .5], [1, .25]]), (N//2, 1)) # Class and probability
    constants = dict(image=image, about=about, shape=np.int64([N, 4]), eighth=np.float32(.125))
    helper = onnx.helper
    nodes = [helper.make_node('Cast', ['images'], ['numbers'], to=onnx.TensorProto.FLOAT),
             helper.make_node('Reshape', ['numbers', 'shape'], ['fours']),
             helper.make_node('Mul', ['fours', 'eighth'], ['boxes']),
             helper.make_node('Concat', ['image', 'boxes', 'about'], ['detections'], axis=1)]
    images = helper.make_tensor_value_info('images', onnx.TensorProto.UINT8, [1, SIDE, SIDE, 3])
    detections = helper.make_tensor_value_info('detections', onnx.TensorProto.FLOAT, ['N', 7])
    tensors = [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, 'pixels', [images], [detections], tensors)
    opset = [helper.make_opsetid('', 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), folder/'nano.onnx')
    (folder/'names.txt').write_text('cat\ntraffic light\n', encoding='utf-8')
    return folder


@pytest.fixture(scope='module')
def trained_network(shared, tmp_path_factory):
    "Weights, and the folder of the file and the names that the page makes of them"
    weights, folder = load_weights(shared/'weights/yolox_nano_coco.pth'), tmp_path_factory.mktemp('trained')
    export_weights(weights, folder/'nano.onnx', camera=True, suppress=True, static=True)
    (folder/'names.txt').write_text('\n'.join(weights.names) + '\n', encoding='utf-8')
    return weights, folder


def printed(program, folder, photo):
    "Class, score and box of each line that a program prints"
    command = [*program, folder/'nano.onnx', folder/'names.txt', photo]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    line = r'(\S.*?) +(\d\.\d\d)  ' + ' '.join([r'(\d+\.\d)']*4)
    matches = [re.fullmatch(line, row).groups() for row in text.splitlines()]
    return [(name, float(score), np.array(box, float)) for name, score, *box in matches]


def assert_same(rows, found):
    "Each detection has a row of its class with the same score, to .01, and the same box, to a pixel"
    assert len(rows) == len(found)
    for i in range(len(found)):
        same = [(score, box) for name, score, box in rows if name == found.name(i)]
        pixels = [np.abs(box - found.boxes[i].numpy()).max() for _, box in same]
        hundredths = [100*abs(score - float(found.scores[i])) for score, _ in same]
        assert np.maximum(pixels, hundredths).min() < 1, f'{found.name(i)} at {found.boxes[i].tolist()}'


@pytest.mark.slow
@pytest.mark.parametrize('height, width, mode', [
    (150, 200, 'RGB'), (200, 140, 'RGB'), (96, 96, 'RGB'), (50, 61, 'RGB'), (80, 70, 'L')])
def test_letterbox_and_its_undoing(program, pixels_as_boxes, tmp_path, height, width, mode):
    "As the library does it; where two roundings are equally near, a pixel may differ by one"
    drawn = draw_shapes(np.random.default_rng(0), size=max(height, width))[0][:height, :width]
    Image.fromarray(drawn).convert(mode).save(tmp_path/'drawn.png')
    canvas = letterbox(read_image(tmp_path/'drawn.png'), (SIDE, SIDE))
    x, y, wide, high = (canvas.permute(1, 2, 0).reshape(-1, 4)/8).T
    boxes = torch.stack([x, y, x + wide, y + high], dim=1)
    want = unletterbox(boxes, (height, width), (SIDE, SIDE)).numpy()
    rows = printed(program, pixels_as_boxes, tmp_path/'drawn.png')
    assert [row[:2] for row in rows] == [('cat', .5), ('traffic light', .25)]*(len(want)//2)
    off = np.abs(np.stack([box for *_, box in rows]) - want)
    one = max(height, width)/SIDE/8 # A pixel that differs by one
    assert off.max() <= 2*one + .06 and (off > .06).mean() < .01


@pytest.mark.slow
def test_photos(program, trained_network, shared):
    weights, folder = trained_network
    detect, photos = load_detector(weights, 'cpu'), sorted((shared/'data/coco_ccby/images').glob('*.jpg'))
    for photo in photos[:4]: assert_same(printed(program, folder, photo), detect(photo))


@pytest.mark.slow
def test_image_without_objects(program, trained_network, tmp_path):
    Image.new('RGB', (60, 40)).save(tmp_path/'black.png')
    assert printed(program, trained_network[1], tmp_path/'black.png') == []


def test_page_shows_the_programs_as_they_are():
    outputs = [out for cell in json.loads(PAGE.read_text(encoding='utf-8'))['cells'] for out in cell.get('outputs', [])]
    shown = [''.join(out['data']['text/markdown']) for out in outputs if 'text/markdown' in out.get('data', {})]
    programs = sorted(PROGRAMS.glob('detect.*'))
    assert len(programs) == 4
    for file in programs:
        source = file.read_text(encoding='utf-8')
        assert any(source in text for text in shown), f'run the cells of {PAGE.name}'
        assert max(map(len, source.splitlines())) <= 92, file.name
