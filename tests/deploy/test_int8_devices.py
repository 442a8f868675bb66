"Quantized files for phones: which convolutions stay in fp32, what is in a file, and that nothing is written otherwise."
import importlib.util
import json
import sys

import numpy as np
import pytest
import torch
from networks import decisive_model
from torch import nn

from cjm_yolox_pytorch.data.shapes import write_shapes
from cjm_yolox_pytorch.data.splits import read_split
from cjm_yolox_pytorch.deploy import formats, ladder, quantize_devices
from cjm_yolox_pytorch.deploy.catalog import FILE_FORMATS, format_lines, format_name
from cjm_yolox_pytorch.deploy.export import yolox_export
from cjm_yolox_pytorch.deploy.graph import exportable
from cjm_yolox_pytorch.deploy.ladder import LADDER, QUANTIZERS, Step, measure_file, quantize_weights
from cjm_yolox_pytorch.deploy.quantize import Node, graph_parts
from cjm_yolox_pytorch.detection.backends import load_program
from cjm_yolox_pytorch.detection.detector import load_detector
from cjm_yolox_pytorch.files.checkpoints import Weights, save_weights
from cjm_yolox_pytorch.model import NORM_STATS

SIZE, NOTES = 96, dict(bit_depth=12)
PACKAGES = {'.tflite': ('litert_torch', 'ai_edge_litert', 'ai_edge_quantizer'), '.pte': ('executorch', 'torchao')}
DEVICES = ['.tflite', pytest.param('.pte', marks=pytest.mark.slow)]


def need(suffix):
    for package in PACKAGES[suffix]:
        if not importlib.util.find_spec(package): pytest.skip(f'needs {package}')


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data')/'shapes'
    write_shapes(folder, train=6, val=4, test=0, size=SIZE)
    return folder


@pytest.fixture(scope='module')
def weights(data):
    names = read_split(data, 'train').names
    state = decisive_model(len(names)).state_dict()
    return Weights(state, 'yolox_nano', len(names), **NORM_STATS['yolox_nano'], names=names, size=SIZE, notes=NOTES)


@pytest.fixture(scope='module')
def int8(weights, images, tmp_path_factory):
    "Function from a suffix to a file in int8 and the steps to it, written once"
    made = {}
    def write(suffix):
        need(suffix)
        if suffix not in made:
            file, steps = tmp_path_factory.mktemp('int8')/f'new/nano{suffix}', []
            quantize_weights(weights, file, images, max_drop=1, watch=lambda step, before: steps.append(step))
            made[suffix] = file, steps
        return made[suffix]
    return write


def quantized_convs(file):
    "Of a file of LiteRT: numbers of convolutions that give integers, and of all"
    from ai_edge_litert.interpreter import Interpreter
    convs = [op for op in Interpreter(str(file))._get_ops_details() if 'CONV_2D' in op['op_name']]
    return sum(op['result_types'][0] is np.int8 for op in convs), len(convs)


# ---- What is in a file

@pytest.mark.parametrize('suffix', DEVICES)
def test_int8_file_measures_as_its_step_says(int8, images, suffix):
    file, (before, step) = int8(suffix)
    assert [p.name for p in file.parent.iterdir()] == [file.name]
    assert before.kept == 'everything' and before.AP > .9 and step.kept == next(iter(LADDER))
    assert step.megabytes < .5*before.megabytes and step.AP != before.AP
    assert measure_file(file, images[1], 'again').AP == pytest.approx(step.AP)


@pytest.mark.parametrize('suffix', DEVICES)
def test_int8_file_keeps_names_size_and_notes(int8, weights, suffix):
    file, _ = int8(suffix)
    detector, about = load_detector(file), json.loads(load_program(file).metadata)
    assert (detector.names, detector.notes, detector.spec.img_size) == (weights.names, NOTES, SIZE)
    assert (about['precision'], about['kept_in_fp32']) == ('int8', next(iter(LADDER)))
    assert about['input'].startswith(f'float32 [1, 3, {SIZE}, {SIZE}] RGB')


def test_litert_has_integer_convolutions_but_at_its_ends(int8):
    assert quantized_convs(int8('.tflite')[0]) == (103, 113) # The stem, and three maps of three levels, are in fp32


@pytest.mark.parametrize('options', [dict(camera=True), dict(raw=True)], ids=str)
def test_options_of_the_network_go_into_an_int8_file(weights, images, tmp_path, options):
    need('.tflite')
    file = tmp_path/'nano.tflite'
    quantize_weights(weights, file, images, max_drop=1, **options)
    about, ((shape, dtype),) = json.loads(load_program(file).metadata), load_program(file).inputs.values()
    assert about['precision'] == 'int8' and ('raw box' in about['output']) == ('raw' in options)
    assert (shape, dtype) == (((1, SIZE, SIZE, 3), 'uint8') if 'camera' in options else ((1, 3, SIZE, SIZE), 'float32'))
    assert load_detector(file).names == weights.names


@pytest.mark.slow
@pytest.mark.parametrize('kept, count', [(set(), 113), ({'depthwise'}, 83), ({'ends', 'head'}, 79)], ids=str)
def test_observers_stand_where_convolutions_are_quantized(trace, kept, count):
    need('.pte')
    parts = graph_parts(quantize_devices.executorch_nodes(trace))
    names = set().union(*(parts[part] for part in kept))
    network, _ = quantize_devices._observed(torch.export.load(trace), names)
    weights = [n for n in network.graph.nodes if n.target is torch.ops.aten.conv2d.default]
    assert sum('activation_post_process' in n.args[1].name for n in weights) == count


# ---- Parts of a network

@pytest.fixture(scope='module')
def trace(weights, tmp_path_factory):
    file = tmp_path_factory.mktemp('trace')/'nano.pt2'
    with torch.no_grad(): formats.write_draft(exportable(weights), file, '{}', SIZE, camera=False, static=True)
    return file


def counts(nodes):
    convs = {n.name for n in nodes if n.weight}
    return len(convs), {part: len(names & convs) for part, names in graph_parts(nodes).items()}

EXPECTED = 113, dict(ends=10, depthwise=30, head=33) # Of yolox_nano

def test_traced_network_has_the_convolutions_of_the_model(trace, weights):
    convs = {name: m for name, m in exportable(weights).named_modules() if isinstance(m, nn.Conv2d)}
    depthwise, head = sum(m.groups > 1 for m in convs.values()), sum('bbox_head' in name for name in convs)
    assert (len(convs), dict(ends=10, depthwise=depthwise, head=head)) == EXPECTED
    nodes = quantize_devices.executorch_nodes(trace)
    assert counts(nodes) == EXPECTED
    kept = set().union(*graph_parts(nodes).values())
    assert not kept & {n.weight for n in nodes} # Whose convolutions would stay in fp32 with them


def test_litert_file_has_the_convolutions_of_the_model(weights, tmp_path):
    need('.tflite')
    with torch.no_grad(): formats.write_draft(exportable(weights), tmp_path/'a.tflite', '{}', SIZE, False, True)
    nodes = quantize_devices.litert_nodes(tmp_path/'a.tflite')
    assert counts(nodes) == EXPECTED and len({n.name for n in nodes}) == len(nodes)


def test_ranges_are_means_of_extremes(tmp_path):
    "The first image counts as much as the others"
    need('.tflite')
    import ai_edge_quantizer
    formats.write_draft(nn.Conv2d(3, 4, 3).requires_grad_(False), tmp_path/'a.tflite', '{}', 32, False, True)
    quantizer = ai_edge_quantizer.Quantizer(str(tmp_path/'a.tflite'))
    quantizer.add_static_config('.*', ai_edge_quantizer.qtyping.TFLOperationName.CONV_2D, 8, 8)
    images = [np.full((1, 3, 32, 32), value, np.float32) for value in (200, 10, 90)]
    ranges = quantize_devices._mean_ranges(quantizer, tmp_path/'a.tflite', images)
    takes, = load_program(tmp_path/'a.tflite').inputs
    assert ranges[takes]['max'] == pytest.approx(100)


# ---- Nothing is written otherwise; without the packages

@pytest.fixture
def falling(monkeypatch):
    "AP is .7, and lower for each step; files are texts"
    left = iter([.7, .6, .5, .45])
    def write(module, folder, suffix, *_):
        (folder/f'full{suffix}').write_text('fp32')
        return folder/f'full{suffix}', folder/f'full{suffix}'
    nodes = [Node('stem', ['a'], ['b'], 'stem'), Node('dw', ['b'], ['c'], 'dw', depthwise=True)]
    nodes += [Node('tower', ['c'], ['d'], 'bbox_head'), Node('boxes', ['d'], ['e'], 'bbox_head')]
    for suffix, way in QUANTIZERS.items():
        fake = way._replace(nodes=lambda file: nodes, quantize=lambda full, file, *_: file.write_text('int8'))
        monkeypatch.setitem(QUANTIZERS, suffix, fake)
    monkeypatch.setattr(ladder, '_write_full', write)
    monkeypatch.setattr(ladder, 'load_exported_network', lambda file: None)
    monkeypatch.setattr(ladder, 'measure_file', lambda file, a, kept, progress: Step(kept, next(left), 1., 2.))
    monkeypatch.setattr(ladder, '_check_runs', lambda *_: None)


@pytest.mark.parametrize('suffix', ['.tflite', '.pte'])
def test_file_that_loses_too_much_is_not_written(weights, images, falling, tmp_path, suffix):
    steps = []
    with pytest.raises(ValueError, match=r'AP drops by more than 0.05 \(--max-drop\), whatever is left in fp32'):
        quantize_weights(weights, tmp_path/f'new/x{suffix}', images, .05, watch=lambda s, _: steps.append(s.kept))
    assert steps == ['everything', *LADDER] and not [*tmp_path.iterdir()]


@pytest.mark.parametrize('suffix', ['.tflite', '.pte'])
def test_first_step_that_loses_little_enough_is_written(weights, images, falling, tmp_path, suffix):
    file = tmp_path/f'x{suffix}'
    assert quantize_weights(weights, file, images, max_drop=.11).kept == next(iter(LADDER))
    assert file.read_text() == 'int8' and [*tmp_path.iterdir()] == [file]


def test_missing_quantizers_are_named(trace, tmp_path, monkeypatch):
    for name in ('ai_edge_quantizer', 'torchao.quantization.pt2e.quantize_pt2e'):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"ai_edge_quantizer is missing: .*cjm-yolox-pytorch\[litert\]"):
        quantize_devices.quantize_litert(tmp_path/'a.tflite', tmp_path/'b.tflite', [], set(), '{}')
    with pytest.raises(ImportError, match=r"is missing: pip install 'cjm-yolox-pytorch\[executorch\]'"):
        quantize_devices.quantize_executorch(trace, tmp_path/'b.pte', [], set(), '{}')
    assert not [*tmp_path.iterdir()]


def test_formats_with_int8_have_a_quantizer():
    assert [*QUANTIZERS] == [f.suffix for f in FILE_FORMATS.values() if f.int8]
    able = {line.split()[0] for line in format_lines() if '  yes  ' in line}
    assert able == {format_name(f'a{suffix}') for suffix in QUANTIZERS} == {'onnx', 'openvino', 'litert', 'executorch'}


@pytest.mark.parametrize('format', ['pt2', 'ncnn', 'coreml'])
def test_formats_without_int8_say_which_have_it(weights, tmp_path, format):
    with pytest.raises(ValueError, match=f'int8 is for onnx, openvino, litert, executorch, not for {format}'):
        quantize_weights(weights, tmp_path/f'x{FILE_FORMATS[format].suffix}', ())
    assert not [*tmp_path.iterdir()]


def test_options_that_do_not_fit_are_refused_before_images_are_read(weights, tmp_path):
    save_weights(weights, tmp_path/'w.safetensors')
    options = dict(int8=True, data=str(tmp_path/'nowhere'), suppress=True)
    with pytest.raises(ValueError, match='suppress: LiteRT has no NMS'):
        yolox_export(str(tmp_path/'w.safetensors'), format='litert', **options)
