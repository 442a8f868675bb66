"Files for phones and small boards: equal to PyTorch, complete, and with clear errors. Needs the extra of each format."
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import decisive_model

from cjm_yolox_pytorch.deploy import coreml, formats
from cjm_yolox_pytorch.deploy.catalog import FILE_FORMATS, fit_options, format_lines
from cjm_yolox_pytorch.deploy.export import export_weights
from cjm_yolox_pytorch.detection.backends import load_exported_network, load_program
from cjm_yolox_pytorch.detection.detector import load_detector
from cjm_yolox_pytorch.files.checkpoints import Weights, load_weights
from cjm_yolox_pytorch.files.network_kinds import EXPORTED_KINDS, network_kind

SIZE, NAMES = 64, ['cat', 'dog', 'owl']
DEVICES = ['ncnn', 'litert', 'executorch', 'coreml']
SETTINGS = (Path(__file__).resolve().parents[2]/'settings.ini').read_text(encoding='utf-8')
RUN_HERE = [name for name in DEVICES if FILE_FORMATS[name].run_here]
PACKAGES = dict(ncnn=('ncnn', 'pnnx'), litert=('litert_torch', 'ai_edge_litert'), executorch=('executorch',),
                coreml=('coremltools',))


def need(format):
    for package in PACKAGES[format]:
        if not importlib.util.find_spec(package): pytest.skip(f'needs {package}')


@pytest.fixture(scope='module')
def sure():
    "Weights of a random network that finds several things in every image"
    model, notes = decisive_model(3), dict(bit_depth=12)
    about = dict(names=NAMES, size=SIZE, notes=notes)
    return Weights(model.state_dict(), 'yolox_nano', 3, (.1, .05, 0.), (1., .9, 1.1), **about)


@pytest.fixture(scope='module')
def written(sure, tmp_path_factory):
    "Function from the name of a format to its file, written once"
    made = {}
    def write(format):
        need(format)
        if format not in made:
            made[format] = tmp_path_factory.mktemp(format)/f'nano{FILE_FORMATS[format].suffix}'
            assert export_weights(sure, made[format]) < 1e-2
        return made[format]
    return write


def photos():
    rng = np.random.default_rng(0)
    small = [torch.from_numpy(rng.integers(0, 256, (1, 3, 6, 8), np.uint8)).float() for _ in range(3)]
    sizes = [(90, 120), (150, 64), (64, 64)]
    return [torch.nn.functional.interpolate(s, hw, mode='bilinear')[0].byte() for s, hw in zip(small, sizes)]


@pytest.mark.parametrize('format', RUN_HERE)
def test_files_find_what_weights_do(written, sure, format):
    detect, expected = load_detector(written(format)), load_detector(sure, 'cpu')(photos())
    assert (detect.names, detect.spec.img_size, detect.bit_depth) == (NAMES, SIZE, 12)
    for got, want in zip(detect(photos()), expected, strict=True):
        like = (got.boxes[:, None] - want.boxes).abs().amax(-1) < .05
        like &= (got.labels[:, None] == want.labels) & ((got.scores[:, None] - want.scores).abs() < 1e-3)
        assert len(want) > 3 and (~like.any(0)).sum() <= 1 and (~like.any(1)).sum() <= 1


@pytest.mark.parametrize('format', RUN_HERE)
def test_files_say_what_they_are(written, format):
    file = written(format)
    assert network_kind(file) == format
    about = json.loads(load_program(file).metadata)
    layout = '[1, 84, 8] raw box' if format == 'ncnn' else '[1, 84, 6] x0, y0'
    assert about['output'].startswith(layout) and about['input'].startswith('float32 [1, 3, 64, 64] RGB from 0 to 255')
    with pytest.raises(ValueError, match='img_size=96: .* takes only images of 64x64 pixels'):
        load_exported_network(file, img_size=96)
    with pytest.raises(ValueError, match=f'is a file of {EXPORTED_KINDS[format]}, not of weights'): load_weights(file)


@pytest.mark.parametrize('format', RUN_HERE)
@pytest.mark.parametrize('share', [.01, .5, .99])
def test_files_that_were_cut_off_are_refused(written, tmp_path, format, share):
    file = written(format)
    for part in file.parent.iterdir(): shutil.copy(part, tmp_path)
    cut = tmp_path/('nano.ncnn.bin' if format == 'ncnn' else file.name)
    cut.write_bytes(cut.read_bytes()[:int(share*cut.stat().st_size)])
    with pytest.raises(ValueError, match=f'cannot be loaded by {FILE_FORMATS[format].runs_in}, or was cut off'):
        load_detector(tmp_path/file.name)


@pytest.mark.parametrize('missing', ['nano.ncnn.bin', 'nano.ncnn.json'])
def test_ncnn_needs_all_three_files(written, tmp_path, missing):
    for part in written('ncnn').parent.iterdir(): shutil.copy(part, tmp_path)
    (tmp_path/missing).unlink()
    with pytest.raises(FileNotFoundError, match=f'needs {missing} beside it: copy all three files'):
        load_detector(tmp_path/'nano.ncnn.param')


@pytest.mark.parametrize('format', ['litert', 'executorch'])
def test_phones_give_images_as_bytes(sure, tmp_path, format):
    need(format)
    file = tmp_path/f'nano{FILE_FORMATS[format].suffix}'
    assert export_weights(sure, file, camera=True, raw=True) < 1e-2
    ((shape, dtype),) = load_program(file).inputs.values()
    assert (shape, dtype) == ((1, SIZE, SIZE, 3), 'uint8')
    assert len(load_detector(file)(photos()[0], multi_label=True)) > 3


def test_half_of_ncnn_is_half_the_size(written, sure, tmp_path):
    full, half = written('ncnn'), tmp_path/'half.ncnn.param'
    assert 0 < export_weights(sure, half, half=True) < 1
    sizes = [file.with_suffix('.bin').stat().st_size for file in (full, half)]
    assert sizes[1] < .6*sizes[0] and json.loads(load_program(half).metadata)['precision'] == 'fp16'


# ---- Core ML, which does not run here

def test_coreml_package_is_complete(written):
    package = written('coreml')
    about = json.loads(coreml.coreml_metadata(package))
    assert (about['names'], about['size'], about['notes']) == (NAMES, SIZE, dict(bit_depth=12))
    with pytest.raises(ValueError, match='nano.mlpackage runs on Apple.s systems only'): load_detector(package)


def test_coreml_numbers_are_checked(written, sure, tmp_path, monkeypatch):
    "One changed weight, and a package is not written"
    need('coreml')
    package = tmp_path/'nano.mlpackage'
    shutil.copytree(written('coreml'), package)
    before = (package/'Manifest.json').read_text()
    def write(program, path, metadata, half):
        shutil.copytree(package, path)
        file = path/'Data/com.apple.CoreML/weights/weight.bin'
        numbers = np.fromfile(file, np.float32)
        numbers[1000] += 1
        numbers.tofile(file)
    monkeypatch.setitem(formats._WRITERS, 'coreml', write)
    with pytest.raises(RuntimeError, match=r'PyTorch \(not in Core ML\): the (boxes|labels|probabilities) .* differ'):
        export_weights(sure, package)
    assert (package/'Manifest.json').read_text() == before and len(list(tmp_path.iterdir())) == 1


def test_coreml_package_replaces_another(written, sure, tmp_path, monkeypatch):
    for name in 'ab': shutil.copytree(written('coreml'), tmp_path/f'{name}.mlpackage')
    (tmp_path/'b.mlpackage/older').touch()
    def copy(program, path, metadata, half): shutil.copytree(tmp_path/'a.mlpackage', path)
    monkeypatch.setitem(formats._WRITERS, 'coreml', copy)
    export_weights(sure, tmp_path/'b.mlpackage')
    assert not (tmp_path/'b.mlpackage/older').exists() and len(list(tmp_path.iterdir())) == 2


# ---- Without the packages

def forget_packages(monkeypatch, format):
    imported = [name for name in sys.modules if name.partition('.')[0] in PACKAGES[format]]
    for name in [*PACKAGES[format], *imported]: monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.parametrize('format', DEVICES)
def test_missing_package_is_named_and_nothing_is_left(sure, tmp_path, monkeypatch, format):
    forget_packages(monkeypatch, format)
    file = tmp_path/f'nano{FILE_FORMATS[format].suffix}'
    message = rf"is missing: pip install 'cjm-yolox-pytorch\[{FILE_FORMATS[format].extra}\]'"
    with pytest.raises(ImportError, match=message): export_weights(sure, file)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('format, start', [('litert', b'\x1c\0\0\0TFL3'), ('executorch', b'<\0\0\0ET12'),
                                           ('ncnn', b'7767517\n1 1\n')])
def test_missing_package_is_named_when_a_file_is_read(tmp_path, monkeypatch, format, start):
    forget_packages(monkeypatch, format)
    for name in ('a.x', 'a.bin', 'a.json'): (tmp_path/name).write_bytes(start)
    with pytest.raises(ImportError, match=rf'cjm-yolox-pytorch\[{format}\]'): load_program(tmp_path/'a.x')


@pytest.mark.parametrize('options, message', [
    (dict(suppress=True), 'suppress: .* has no NMS'), (dict(camera=True), r'camera: files of \w+.* take float32')])
@pytest.mark.parametrize('format', ['ncnn', 'coreml'])
def test_options_that_a_format_cannot_have_are_refused(sure, tmp_path, format, options, message):
    with pytest.raises(ValueError, match=message):
        export_weights(sure, tmp_path/f'nano{FILE_FORMATS[format].suffix}', **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('format', ['litert', 'executorch', 'coreml', 'pt2'])
def test_formats_without_half_say_which_have_it(sure, tmp_path, format):
    with pytest.raises(ValueError, match=f'half is for onnx, openvino, ncnn, not for {format}'):
        export_weights(sure, tmp_path/f'nano{FILE_FORMATS[format].suffix}', half=True)
    assert not list(tmp_path.iterdir())


def test_folders_are_not_replaced(sure, tmp_path):
    (tmp_path/'a.mlpackage').mkdir()
    with pytest.raises(ValueError, match='a.mlpackage is a folder: choose another name'):
        export_weights(sure, tmp_path/'a.mlpackage')
    with pytest.raises(OSError): load_detector(tmp_path/'a.mlpackage')


def test_numbers_of_ncnn_never_replace_those_of_openvino(sure, tmp_path):
    with pytest.raises(ValueError, match='nano.param: its suffix must be one of'):
        export_weights(sure, tmp_path/'nano.param')


# ---- The table

def test_table_of_formats_says_what_the_code_does():
    assert {*FILE_FORMATS} == {*formats._WRITERS} == {*EXPORTED_KINDS}
    for f in FILE_FORMATS.values():
        assert fit_options(f'a{f.suffix}')['static'] == (not f.any_size)
        assert re.search(rf'^{f.extra}_requirements = ', SETTINGS, re.M)


def test_list_is_printed_without_weights():
    code = "import sys; sys.argv = ['yolox_export', '--list']; "
    code += 'from cjm_yolox_pytorch.deploy.export import yolox_export; yolox_export()'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert (done.returncode, done.stdout.splitlines()) == (0, [*format_lines()])
    assert len(done.stdout.splitlines()) == len(FILE_FORMATS) + 3 and max(map(len, done.stdout.splitlines())) <= 80


@pytest.mark.slow
@pytest.mark.parametrize('format', DEVICES)
def test_real_weights_score_the_same(shared, tmp_path, format):
    "Published nano: the check of the export with its own image, and photos"
    need(format)
    weights = load_weights(shared/'weights/yolox_nano_coco.pth')
    file = tmp_path/f'nano{FILE_FORMATS[format].suffix}'
    assert export_weights(weights, file) < 1e-2
    if not FILE_FORMATS[format].run_here: return
    images = sorted((shared/'data/coco_ccby/images').rglob('*.jpg'))[:3]
    for got, want in zip(load_detector(file)(images), load_detector(weights, 'cpu')(images), strict=True):
        assert len(got) == len(want)
        torch.testing.assert_close(got.boxes, want.boxes, atol=.05, rtol=0)
        torch.testing.assert_close(got.scores, want.scores, atol=1e-3, rtol=0)
