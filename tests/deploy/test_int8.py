"Quantized files: what stays in fp32, what is lost, and that nothing is written if it is too much; and fp16."
import json
import shutil
import signal
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import decisive_model

from cjm_yolox_pytorch.data.shapes import write_shapes
from cjm_yolox_pytorch.data.splits import read_split
from cjm_yolox_pytorch.deploy import formats, ladder, quantize
from cjm_yolox_pytorch.deploy.compare import HALF_TOLERANCE, compare_rows
from cjm_yolox_pytorch.deploy.export import export_weights, yolox_export
from cjm_yolox_pytorch.deploy.graph import exportable
from cjm_yolox_pytorch.deploy.ladder import LADDER, Step, choose_images, measure_file, quantize_weights
from cjm_yolox_pytorch.detection.backends import load_exported_network
from cjm_yolox_pytorch.detection.detector import load_detector
from cjm_yolox_pytorch.files.checkpoints import Weights, save_weights
from cjm_yolox_pytorch.model import NORM_STATS

onnx, onnxruntime = pytest.importorskip('onnx'), pytest.importorskip('onnxruntime')
NOTES = dict(thresholds=dict(score=.4, classes=[.4, .4, .7, .4, .5]))


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data')/'shapes'
    write_shapes(folder, train=8, val=6, test=0, size=96)
    return folder


@pytest.fixture(scope='module')
def weights(data):
    names = read_split(data, 'train').names
    state = decisive_model(len(names)).state_dict()
    return Weights(state, 'yolox_nano', len(names), **NORM_STATS['yolox_nano'], names=names, size=96, notes=NOTES)


@pytest.fixture(scope='module')
def full(weights, tmp_path_factory):
    "The files in fp32, written and compared once"
    folder, found = tmp_path_factory.mktemp('full'), {}
    write = ladder._write_full
    def write_once(module, place, suffix, metadata, *about):
        if suffix not in found: found[suffix] = write(module, folder/suffix, suffix, metadata, *about)
        return found[suffix]
    for suffix in ladder.QUANTIZERS: (folder/suffix).mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ladder, '_write_full', write_once)
        yield found


@pytest.fixture(scope='module')
def int8(weights, images, full, tmp_path_factory):
    "An int8 file, and the steps to it"
    file, steps = tmp_path_factory.mktemp('int8')/'new/shapes.int8.onnx', []
    step = quantize_weights(weights, file, images, max_drop=1, watch=lambda step, before: steps.append(step))
    assert step == steps[-1]
    return file, steps


@pytest.fixture
def falling(monkeypatch):
    "AP is .7, and lower for each step"
    left = iter([.7, .6, .5, .45])
    monkeypatch.setattr(ladder, 'measure_file', lambda file, a, kept, progress: Step(kept, next(left), 1., 2.))
    way = ladder.QUANTIZERS['.onnx']._replace(quantize=lambda full, file, *_: file.write_text('int8'))
    monkeypatch.setitem(ladder.QUANTIZERS, '.onnx', way)
    monkeypatch.setattr(ladder, '_check_runs', lambda *_: None)


def run(monkeypatch, *words):
    monkeypatch.setattr(sys, 'argv', ['yolox_export', *map(str, words)])
    with pytest.raises(SystemExit) as end: yolox_export()
    return end.value


# ---- What is in a file

def test_int8_file_measures_as_its_step_says(int8, images, full):
    file, steps = int8
    assert [p.name for p in file.parent.iterdir()] == ['shapes.int8.onnx']
    assert steps[0].kept == 'everything' and steps[0].AP > .9
    again = measure_file(file, images[1], 'again')
    assert again.AP == pytest.approx(steps[-1].AP) and again.AP > 0
    assert again.megabytes == pytest.approx(file.stat().st_size/1e6) and again.ms > 0
    assert file.stat().st_size < .36*full['.onnx'][0].stat().st_size


def test_int8_file_has_integer_convolutions_but_at_its_ends(int8):
    nodes = [*onnx.load(int8[0]).graph.node]
    makers = {o: n for n in nodes for o in n.output}
    convs = [n for n in nodes if n.op_type == 'Conv']
    whole = [n for n in convs if getattr(makers.get(n.input[1]), 'op_type', '') == 'DequantizeLinear']
    assert len(whole) > .6*len(convs) and convs[0] not in whole
    assert not any(n.output[0].startswith('detections') for n in nodes if n.op_type == 'DequantizeLinear')


def test_int8_file_keeps_names_thresholds_and_notes(int8, weights):
    detector = load_detector(int8[0])
    assert detector.names == weights.names and detector.notes == NOTES
    assert detector.conf == NOTES['thresholds']['classes']
    props = onnxruntime.InferenceSession(int8[0]).get_modelmeta().custom_metadata_map
    about = json.loads(props['cjm_yolox_pytorch'])
    assert [*props] == ['cjm_yolox_pytorch'] and b'stack_trace' not in int8[0].read_bytes()
    assert about['precision'] == 'int8' and about['kept_in_fp32'] in LADDER and about['size'] == 96


def test_int8_file_takes_other_sizes_and_batches(int8):
    run = formats.load_exported(int8[0])
    assert run(formats.trial_images((160, 64), 3, False)).shape == (3, 210, 6)


@pytest.mark.slow
def test_int8_openvino_file_comes_with_its_numbers(weights, images, full, tmp_path):
    pytest.importorskip('nncf')
    quantize_weights(weights, tmp_path/'shapes.xml', images, max_drop=1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['shapes.bin', 'shapes.xml']
    assert (tmp_path/'shapes.bin').stat().st_size < .35*full['.xml'][1].with_suffix('.bin').stat().st_size
    assert load_detector(tmp_path/'shapes.xml').notes == NOTES


@given(st.lists(st.sampled_from(['Conv', 'Mul', 'Add']), min_size=1, max_size=9))
def test_ends_are_what_lies_beyond_all_convolutions(types):
    "In a chain: up to the first convolution and from the last one on"
    nodes = [quantize.Node(str(i), [f't{i}'], [f't{i + 1}'], 'weight' if t == 'Conv' else None)
             for i, t in enumerate(types)]
    ends = quantize.graph_parts(nodes)['ends']
    convs = [i for i, t in enumerate(types) if t == 'Conv'] or [len(types), -1]
    assert ends == {str(i) for i in range(len(types)) if i <= convs[0] or i >= convs[-1]}


@given(*[st.sets(st.integers(0, 5))]*3)
def test_each_rung_leaves_more_in_fp32(ends, depthwise, head):
    rungs = [*ladder._rungs(dict(ends=ends, depthwise=depthwise, head=head)).values()]
    assert rungs[0] == ends and rungs[-1] == ends | depthwise | head
    assert all(a < b for a, b in zip(rungs, rungs[1:]))


# ---- Too much is lost, or nothing can be measured

def test_file_that_loses_too_much_is_not_written(weights, images, full, falling, tmp_path):
    steps = []
    with pytest.raises(ValueError, match=r'AP drops by more than 0.05 \(--max-drop\), whatever is left in fp32'):
        quantize_weights(weights, tmp_path/'new/x.onnx', images, max_drop=.05, watch=lambda s, _: steps.append(s))
    assert [s.kept for s in steps] == ['everything', *LADDER] and not [*tmp_path.iterdir()]


def test_first_step_that_loses_little_enough_is_written(weights, images, full, falling, tmp_path):
    step = quantize_weights(weights, tmp_path/'x.onnx', images, max_drop=.1)
    assert step.kept == next(iter(LADDER)) and (tmp_path/'x.onnx').read_text() == 'int8'


def test_earlier_file_stays_if_too_much_is_lost(weights, images, full, falling, tmp_path):
    (tmp_path/'x.onnx').write_text('what was there')
    with pytest.raises(ValueError, match='not written'): quantize_weights(weights, tmp_path/'x.onnx', images)
    assert [p.read_text() for p in tmp_path.iterdir()] == ['what was there']


def test_command_prints_the_ladder(weights, data, full, falling, tmp_path, monkeypatch, capsys):
    save_weights(weights, tmp_path/'w.safetensors')
    status = str(run(monkeypatch, tmp_path/'w.safetensors', '--int8', '--data', data))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == 'calibrated on images of train, measured on val: 6 images'
    assert [line[:28].strip() for line in lines[1:]] == ['in fp32', 'everything', *LADDER]
    assert [line.split()[-3] for line in lines[3:]] == ['0.1000', '0.2000', '0.2500']
    assert status.startswith('yolox_export: error: ') and 'not written' in status
    assert [p.name for p in tmp_path.iterdir()] == ['w.safetensors'] and max(map(len, lines)) <= 80


@pytest.mark.parametrize('AP, problem', [(0., 'find nothing in the validation images'), (np.nan, 'have no objects')])
def test_without_ap_there_is_nothing_to_lose(weights, images, full, tmp_path, monkeypatch, AP, problem):
    monkeypatch.setattr(ladder, 'measure_file', lambda file, a, kept, progress: Step(kept, AP, 1., 2.))
    with pytest.raises(ValueError, match=problem): quantize_weights(weights, tmp_path/'x.onnx', images)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize('sent, status', [('SIGTERM', 143), ('SIGINT', 130)])
def test_stopped_command_leaves_nothing(weights, data, full, tmp_path, monkeypatch, heeded, sent, status):
    save_weights(weights, tmp_path/'w.safetensors')
    def stop(*args):
        assert len([*tmp_path.glob('new/*.partial')]) == 1
        signal.raise_signal(getattr(signal, sent))
        time.sleep(9)
    monkeypatch.setattr(ladder, 'measure_file', stop)
    out = tmp_path/'new/x.onnx'
    assert run(monkeypatch, tmp_path/'w.safetensors', '--int8', '--data', data, '--out', out).code == status
    assert [p.name for p in tmp_path.iterdir()] == ['w.safetensors']


# ---- Bad input

@pytest.mark.parametrize('options, problem', [
    (dict(int8=True), r'int8 needs data \(--data\)'),
    (dict(data='photos'), r'data and max_drop have no effect without int8=True \(--int8\)'),
    (dict(max_drop=.1), r'data and max_drop have no effect without int8=True \(--int8\)'),
    (dict(int8=True, half=True, data='photos'), 'int8 and half: choose one of them'),
    (dict(int8=True, data='photos', max_drop=-.1), 'max_drop=-0.1: must be from 0 to 1'),
    (dict(int8=True, data='photos', max_drop=2.), 'max_drop=2.0: must be from 0 to 1')])
def test_options_that_do_not_fit(options, problem):
    with pytest.raises(ValueError, match=problem): yolox_export('nowhere.pth', **options)


def test_place_that_cannot_be_written_is_refused_before_images_are_read(weights, tmp_path, monkeypatch):
    save_weights(weights, tmp_path/'w.safetensors')
    options = dict(int8=True, data=str(tmp_path/'nowhere'))
    with pytest.raises(NotADirectoryError, match='w.safetensors is not a folder. Choose another --out'):
        yolox_export(str(tmp_path/'w.safetensors'), out=str(tmp_path/'w.safetensors/new/x.onnx'), **options)
    monkeypatch.setattr(formats.os, 'access', lambda place, mode: False)
    with pytest.raises(PermissionError, match=f'x.onnx: {tmp_path} is read-only. Choose another --out'):
        yolox_export(str(tmp_path/'w.safetensors'), out=str(tmp_path/'new/x.onnx'), **options)
    assert [p.name for p in tmp_path.iterdir()] == ['w.safetensors']


def test_pt2_has_no_int8_and_no_half(weights, data, tmp_path):
    save_weights(weights, tmp_path/'w.safetensors')
    for options in (dict(int8=True, data=str(data)), dict(half=True)):
        with pytest.raises(ValueError, match='is for onnx, openvino'):
            yolox_export(str(tmp_path/'w.safetensors'), format='pt2', **options)
    assert [p.name for p in tmp_path.iterdir()] == ['w.safetensors']


def test_data_need_the_classes_of_the_weights(weights, data, tmp_path):
    other = replace(weights, names=['cat', 'dog', 'owl'])
    message = r'are not among .*cat.* of the weights. If only names differ, use names \(--names\)'
    with pytest.raises(ValueError, match=message):
        choose_images(other, data)
    with pytest.raises(ValueError, match='the weights have 4 classes without names, but the data has 5'):
        choose_images(replace(weights, names=None, num_classes=4), data)
    with pytest.raises(FileNotFoundError, match='no such folder'): choose_images(weights, tmp_path/'nowhere')
    _, validation, text = choose_images(replace(weights, names=None), data)
    assert validation.names == weights.names and text.startswith('the weights have no class names: taking those of')


def test_images_of_validation_are_not_used_for_calibration(weights, data):
    calibration, validation, _ = choose_images(weights, data)
    assert (len(calibration), len(validation)) == (8, 6) and not {*calibration.paths} & {*validation.paths}


def test_image_in_both_splits_serves_only_for_validation(weights, data, monkeypatch):
    train, val = read_split(data, 'train'), read_split(data, 'val')
    shared = replace(train, paths=np.array([*val.paths[:2], *train.paths[2:]]))
    monkeypatch.setattr(ladder, 'find_splits', lambda *_, **__: dict(train=lambda: shared, val=lambda: val))
    calibration, validation, _ = choose_images(weights, data)
    assert len(calibration) == 6 and not {*calibration.paths} & {*validation.paths}
    monkeypatch.setattr(ladder, 'find_splits', lambda *_, **__: dict(train=lambda: val, val=lambda: val))
    with pytest.raises(ValueError, match='all images of train are also in val'): choose_images(weights, data)


def test_single_split_is_divided(weights, data, tmp_path):
    whole = tmp_path/'whole'
    shutil.copytree(data, whole)
    for p in [*whole.rglob('*val*')]: shutil.rmtree(p) if p.is_dir() else p.unlink()
    calibration, validation, text = choose_images(weights, whole)
    assert 'measured on a tenth of train' in text
    assert len(calibration) + len(validation) == 8 and not {*calibration.paths} & {*validation.paths}


def test_missing_nncf_is_named(weights, images, full, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'nncf', None)
    with pytest.raises(ImportError, match=r"nncf is missing: pip install 'cjm-yolox-pytorch\[int8\]'"):
        quantize_weights(weights, tmp_path/'x.xml', images)
    assert not [*tmp_path.iterdir()]


# ---- Half precision

@pytest.mark.parametrize('suffix', ['.onnx', pytest.param('.xml', marks=pytest.mark.slow)])
@pytest.mark.parametrize('options', [{}, pytest.param(dict(suppress=True), marks=pytest.mark.slow)], ids=str)
def test_half_file_has_half_the_size_and_takes_the_same(weights, tmp_path, suffix, options):
    file = tmp_path/f'x{suffix}'
    assert export_weights(weights, file, half=True, **options) > 1e-4
    size = sum(p.stat().st_size for p in tmp_path.iterdir())
    params = sum(t.numel() for t in decisive_model(3).state_dict().values())
    assert size < 2*params + 2e6
    network = load_exported_network(file)
    assert network.info.dtype == 'float32' and network.notes == NOTES
    if suffix == '.onnx':
        kinds = {t.data_type for t in onnx.load(file).graph.initializer if t.name.endswith('conv.weight')}
        assert kinds == {onnx.TensorProto.FLOAT16}


def test_half_tolerance_still_sees_a_wrong_network(weights):
    module, x = exportable(weights), formats.trial_images((64, 96), 2, False)
    half = formats.halved(module)
    with torch.no_grad():
        assert compare_rows(half(x), module, x, HALF_TOLERANCE) > 0
        for conv in half.model.model.bbox_head.multi_level_conv_obj: conv.bias.data += 1
        with pytest.raises(RuntimeError, match='from the file differ'): compare_rows(half(x), module, x, HALF_TOLERANCE)


def test_halved_module_leaves_the_original(weights):
    module = exportable(weights)
    half = formats.halved(module)
    assert {p.dtype for p in module.model.parameters()} == {torch.float32}
    assert {p.dtype for p in half.model.parameters()} == {torch.float16}
