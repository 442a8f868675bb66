"One import for Python, and what it costs; one program for the shell."
import ast
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import cjm_yolox_pytorch as package
from cjm_yolox_pytorch.commands.start import COMMANDS
from cjm_yolox_pytorch.data.shapes import write_shapes
from cjm_yolox_pytorch.deploy.export import yolox_export
from cjm_yolox_pytorch.training.train import yolox_train

ROOT = Path(__file__).resolve().parents[1]
NAME = 'cjm_yolox_pytorch'
SOURCE = ast.parse((ROOT/NAME/'__init__.py').read_text(encoding='utf-8'))


def python(*words, **options):
    environment = dict(os.environ, PYTHONPATH=str(ROOT), COLUMNS='80')
    return subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True, **options)


# ---- Python

def loaded_by(line):
    code = f'import sys; before = {{*sys.modules}}; {line}; print(*({{*sys.modules}} - before))'
    return {*python('-c', code, check=True).stdout.split()}


def test_importing_the_package_loads_nothing():
    assert loaded_by(f'import {NAME}') == {NAME}


def test_importing_the_loss_from_the_package_loads_the_loss():
    own = {name for name in loaded_by(f'from {NAME} import YOLOXLoss') if name.startswith(NAME)}
    core = {f'{NAME}.{p.stem}' for p in (ROOT/NAME).glob('*.py')}
    assert own <= {NAME, *core} and f'{NAME}.loss' in own and f'{NAME}.model' not in own


def imported_for_editors():
    nodes = [node for block in SOURCE.body if isinstance(block, ast.If) for node in block.body]
    return {a.name: node.module for node in nodes if isinstance(node, ast.ImportFrom) for a in node.names}


def test_editors_see_the_names_that_there_are():
    homes = {name: f'{NAME}.{home}' for name, home in package._HOMES.items()}
    assert imported_for_editors() == homes and {*package.__all__} == {*homes}


@pytest.mark.parametrize('name', package.__all__)
def test_names_are_those_of_their_modules(name):
    found = getattr(package, name)
    assert found.__name__ == name and found.__module__ == f'{NAME}.{package._HOMES[name]}'
    assert name in dir(package) and vars(package)[name] is found


def test_other_names_are_missing():
    with pytest.raises(AttributeError, match="module 'cjm_yolox_pytorch' has no attribute 'fit'"): package.fit
    with pytest.raises(ImportError, match='nowhere'): exec(f'from {NAME} import nowhere')
    assert 'TYPE_CHECKING' not in dir(package)


@pytest.mark.parametrize('name', ['train', 'evaluate', 'export'])
def test_functions_have_type_hints(name):
    signature = inspect.signature(getattr(package, name))
    named = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    assert all(p.annotation is not p.empty for p in named) and signature.return_annotation is not signature.empty


@pytest.mark.parametrize('call, meant', [
    (lambda: package.train('data', epoch=5), 'epoch: yolox_train has no such option; did you mean epochs'),
    (lambda: package.train('data', batch_size=5), 'batch_size: yolox_train has no such option; did you mean batch'),
    (lambda: package.evaluate('w', 'data', working_cnf=.5), 'working_cnf: yolox_eval .*did you mean working_conf'),
    (lambda: package.export('w', 'onnx', camra=True), 'camra: yolox_export .*did you mean camera')])
def test_slips_are_named(call, meant):
    with pytest.raises(TypeError, match=meant): call()


@pytest.mark.slow
def test_from_a_folder_to_a_detector_without_a_word(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_shapes('shapes', train=12, val=4, test=4, size=64)
    run = package.train('shapes', 'yolox_nano', epochs=1, img_size=64, batch=4, workers=0, device='cpu')
    assert run.out == Path('runs/shapes-yolox_nano') and run.weights.is_file() and run.metrics['split'] == 'val'
    metrics = package.evaluate(run.weights, 'shapes', thresholds=True, device='cpu')
    assert metrics['split'] == 'test' and [t['name'] for t in metrics['best_f1']][0] == 'all classes'
    path = package.export(run.weights, 'pt2', static=True)
    assert path == run.weights.with_suffix('.pt2') and path.is_file()
    assert len(package.load_detector(path)('shapes/test/00000.png', conf=0., max_detections=2)) == 2
    assert capsys.readouterr().out == ''
    yolox_export(str(run.weights), format='pt2', static=True, json=True)
    printed = capsys.readouterr()
    assert json.loads(printed.out)['path'] == str(path) and 'written to' in printed.err
    small = dict(model='yolox_nano', epochs=1, img_size=64, batch=4, workers=0, device='cpu')
    yolox_train('shapes', out='b', json=True, **small)
    printed = capsys.readouterr()
    assert json.loads(printed.out)['weights'] == 'b/best.safetensors' and 'best: epoch 1, on val:' in printed.err


# ---- The shell

def test_overview_lists_every_command():
    shown = python('-m', NAME, '--help')
    assert shown.returncode == 0 and max(map(len, shown.stdout.splitlines())) <= 80
    for name in COMMANDS: assert f'\n  {name.replace("_", "-")} ' in shown.stdout


VERBS = [([], 'usage: python -m cjm_yolox_pytorch VERB'), (['trian'], "there is no verb 'trian': did you mean train?"),
    (['--train'], 'the verb comes first, as in python -m cjm_yolox_pytorch train DATA')]


@pytest.mark.parametrize('words, message', VERBS)
def test_missing_and_unknown_verbs_are_wrong_usage(words, message):
    ended = python('-m', NAME, *words)
    assert ended.returncode == 2 and ended.stdout == '' and message in ended.stderr


def test_errors_begin_with_what_was_typed(tmp_path):
    ended = python('-m', NAME, 'eval', 'nowhere.pth', str(tmp_path))
    assert ended.stderr.startswith('python -m cjm_yolox_pytorch eval: error: ') and 'nowhere.pth' in ended.stderr
    assert ended.returncode == 4 and ended.stderr.count('\n') == 1
