"The exit status tells data, weights, memory and the rest apart."
import sys
from pathlib import Path

import pytest
import torch

import cjm_yolox_pytorch
from cjm_yolox_pytorch.commands import exit_codes
from cjm_yolox_pytorch.commands.command import command
from cjm_yolox_pytorch.commands.start import import_command
from cjm_yolox_pytorch.data.shapes import SHAPES
from cjm_yolox_pytorch.files.checkpoints import save_weights, Weights
from cjm_yolox_pytorch.model import build_model

PACKAGE = Path(cjm_yolox_pytorch.__path__[0])


def status(monkeypatch, line):
    program, *words = line.split()
    monkeypatch.setattr(sys, 'argv', [program, *words])
    with pytest.raises(SystemExit) as end: import_command(program)()
    return end.value.code


@pytest.mark.parametrize('line, code', [
    ('yolox_train nowhere', 3), ('yolox_train {}', 3), ('yolox_train shapes --format coco --train fold1', 1),
    ('yolox_train shapes --weights nowhere.pth', 4), ('yolox_train shapes --weights text.pth', 4),
    ('yolox_train shapes --epochs 0', 1), ('yolox_train shapes --format xml', 1), ('yolox_train shapes --names a', 1),
    ('yolox_train shapes --out shapes', 1), ('yolox_train shapes --device gpu', 1),
    ('yolox_train', 2), ('yolox_train shapes --epochs few', 2), ('yolox_train shapes --epoch-s 3', 2),
    ('yolox_eval nowhere.pth shapes', 4), ('yolox_eval text.onnx shapes', 4), ('yolox_eval w.pth shapes --iou 65', 1),
    ('yolox_predict nowhere.pth shapes', 4), ('yolox_predict text.pth nowhere.jpg', 4),
    ('yolox_predict text.pth shapes --write pdf', 1), ('yolox_export nowhere.pth', 4),
    ('yolox_export text.pth --format pdf', 1), ('yolox_doctor nowhere', 3), ('yolox_doctor shapes --img-size 0', 1),
    ('yolox_convert nowhere --to coco --out x', 3), ('yolox_convert shapes --to kitti --out x', 1),
    ('yolox_convert shapes --to voc --out shapes', 1), ('yolox_convert_weights text.pth --to mmdet', 4),
    ('yolox_train shapes --recipe nowhere.yaml', 1), ('yolox_train shapes --recipe text.yaml', 1),
    ('yolox_train shapes --format csv --train fold1', 3)])
def test_commands(monkeypatch, tmp_path, draw_few, line, code):
    monkeypatch.chdir(tmp_path)
    Path('shapes').symlink_to(draw_few)
    for name in ('text.pth', 'text.onnx', 'text.yaml'): Path(name).write_text('text')
    assert status(monkeypatch, line.format(tmp_path)) == code


@pytest.mark.parametrize('line, code', [
    ('yolox_train shapes --model yolox_nano --weights w.safetensors --names a,b', 1),
    ('yolox_eval w.safetensors shapes --names a,b', 1), ('yolox_eval w.safetensors shapes --split fold1', 1),
    ('yolox_eval w.safetensors shapes --classes cat', 1), ('yolox_export w.safetensors --names a,b', 1),
    ('yolox_predict w.safetensors shapes/val/00000.png --names a,b', 1), ('yolox_predict w.safetensors text.jpg', 3),
    ('yolox_predict w.safetensors shapes/val --out shapes/val', 1),
    ('yolox_predict w.safetensors shapes/val/* --out shapes/val', 1),
    ('yolox_predict w.safetensors film.mp4', 1), ('yolox_train shapes --logger wandb', 1)])
def test_choices_that_do_not_fit_and_missing_packages(monkeypatch, tmp_path, draw_few, nano, line, code):
    monkeypatch.chdir(tmp_path)
    for name in ('av', 'wandb'): monkeypatch.setitem(sys.modules, name, None) # As if it were missing
    Path('shapes').symlink_to(draw_few)
    Path('w.safetensors').symlink_to(nano)
    for name in ('film.mp4', 'text.jpg'): Path(name).write_text('text')
    assert status(monkeypatch, line) == code


@pytest.fixture(scope='module')
def nano(tmp_path_factory): # A file of weights for the shapes
    path, names = tmp_path_factory.mktemp('weights')/'nano.safetensors', [*SHAPES]
    state = build_model('yolox_nano', len(names), pretrained=False).state_dict()
    save_weights(Weights(state, 'yolox_nano', len(names), (0.,)*3, (1.,)*3, names, 64), path)
    return path


@pytest.fixture(scope='module')
def draw_few(draw_shapes): return draw_shapes(train=4, val=2, test=0, size=64)


@pytest.mark.parametrize('error, code', [
    (MemoryError(), 5), (torch.OutOfMemoryError('CUDA out of memory'), 5), (OSError('the disk is full'), 1),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."), 5),
    (ValueError('Caught ValueError in DataLoader worker process 0.\nValueError: a.jpg: cut off'), 3)])
def test_errors(monkeypatch, capsys, error, code):
    @command
    def some_command(): raise error
    monkeypatch.setattr(sys, 'argv', ['some_command'])
    with pytest.raises(SystemExit) as end: some_command()
    assert end.value.code == code and capsys.readouterr().err.startswith('some_command: error: ')


def test_what_cannot_be_written_is_not_about_weights(tmp_path):
    with pytest.raises(OSError, match='could not be written') as error:
        save_weights(Weights({}, 'yolox_nano', 1, (0.,)*3, (1.,)*3), tmp_path/'nowhere/a.safetensors')
    assert exit_codes.exit_code(error.value) == 1


def test_places_exist():
    for name in exit_codes._SUBJECTS:
        floor, module, function = [*name.split('.'), None, None][:3]
        path = PACKAGE/floor if module is None else PACKAGE/floor/f'{module}.py'
        assert path.exists() and (function is None or f'\ndef {function}(' in path.read_text(encoding='utf-8')), name
