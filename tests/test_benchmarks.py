"The benchmarks run, and go on without peers that are not installed."
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def run(name, *args):
    command = [sys.executable, '-W', 'ignore', ROOT/'benchmarks'/name, *args]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def installed(module): return importlib.util.find_spec(module) is not None


def test_loss_benchmark(tmp_path):
    sizes = ['--workloads', 'tiny', '--images', '2', '--rounds', '1', '--runs', '1']
    printed = run('loss.py', *sizes, '--only', 'ours', 'mmdetection', '--out', tmp_path)
    assert (tmp_path/'loss-cpu.md').read_text().startswith('| workload | implementation | ms |')
    ours, peer = json.loads((tmp_path/'loss-cpu.json').read_text())['rows']
    assert ours['ms'] > 0 and ours['loss'] > 0 and ours['peak_mb'] >= 0
    if not installed('mmdet'):
        assert peer['ms'] is None
        assert "failed: ModuleNotFoundError: No module named 'mmdet" in printed


def test_train_step_benchmark(tmp_path):
    sizes = ['--workloads', 'tiny', '--images', '1', '--rounds', '1']
    run('train_step.py', *sizes, '--only', 'ours', 'pixeltable-yolox', '--out', tmp_path)
    ours, peer = json.loads((tmp_path/'train-step-cpu.json').read_text())['rows']
    assert ours['images_per_s'] > 0 and ours['first_loss'] > 0
    if not installed('yolox'):
        assert peer['images_per_s'] is None
        assert peer['failed'].startswith('ModuleNotFoundError')


def test_loader_benchmark(tmp_path):
    sizes = ['--img-size', '96', '--rounds', '1']
    printed = run('loader.py', *sizes, '--only', 'ours', 'pixeltable-yolox', '--out', tmp_path)
    rows = json.loads((tmp_path/'loader.json').read_text())['rows']
    ours = next(row for row in rows if row['loader'] == 'ours')
    assert ours['images_per_s'] > 0 and '| ours |' in printed
    if not installed('yolox'): assert "failed: ModuleNotFoundError: No module named 'yolox" in printed


def test_recipes_benchmark(tmp_path):
    from cjm_yolox_pytorch.data.shapes import write_shapes
    write_shapes(tmp_path/'shapes', train=8, val=4, test=0, size=64)
    short = ['--img-size', '64', '--epochs', '1', '--seeds', '2']
    changes = ['--changes', 'box_loss=giou', 'balance=.9 augment=aerial', '--of-class', 'cross']
    printed = run('recipes.py', tmp_path/'shapes', *short, *changes, '--out', tmp_path)
    assert '| box_loss=giou | 1.00 | 0.' in printed and '| balance=.9 augment=aerial | 2.00 |' in printed
    assert len(json.loads((tmp_path/'recipes.json').read_text())['rows']) == 6


def test_inference_benchmark(tmp_path):
    short = ['--models', 'yolox_nano', '--batches', '1', '2', '--rounds', '1']
    printed = run('inference.py', *short, '--only', 'ours', '--out', tmp_path)
    rows = json.loads((tmp_path/'inference.json').read_text())['rows']
    assert [(r['batch'], r['failed']) for r in rows] == [(1, None), (2, None)]
    assert all(r['images_per_s'] > 0 for r in rows)
    assert '| yolox_nano, 416 | 2 | ours |' in printed


@pytest.mark.slow
def test_deploy_benchmark(tmp_path):
    pytest.importorskip('nncf')
    printed = run('deploy.py', '--models', 'yolox_nano', '--rounds', '1', '--out', tmp_path)
    rows = json.loads((tmp_path/'deploy.json').read_text())['rows']
    kinds = [(r['program'], r['precision']) for r in rows]
    programs = ('ONNX Runtime', 'OpenVINO')
    assert kinds == [('PyTorch', 'fp32'), *((p, precision) for p in programs for precision in ('fp32', 'int8'))]
    assert all(r['images_per_s'] > 0 and r['AP'] is None for r in rows)
    assert '| yolox_nano, 416 | OpenVINO | int8 |' in printed


def test_active_learning_benchmark(tmp_path):
    from cjm_yolox_pytorch.data.shapes import write_shapes
    write_shapes(tmp_path/'shapes', train=24, val=0, test=4, size=64)
    short = ['--img-size', '64', '--epochs', '1', '--seeds', '1', '--start', '8', '--chosen', '8']
    printed = run('active.py', tmp_path/'shapes', *short, '--only', 'random', 'sum', '--out', tmp_path)
    rows = json.loads((tmp_path/'active.json').read_text())['rows']
    assert [(r['strategy'], r['images']) for r in rows] == [('start', 8), ('random', 16), ('sum', 16)]
    assert '| chosen by | images |' in printed


def test_sample_of_missing_labels(tmp_path):
    from cjm_yolox_pytorch.data.shapes import SHAPES, write_shapes
    from cjm_yolox_pytorch.files.checkpoints import save_weights, Weights
    from cjm_yolox_pytorch.model import build_model
    write_shapes(tmp_path/'shapes', train=4, val=4, test=0, size=64)
    state = build_model('yolox_nano', 5, pretrained=False).state_dict()
    for level in range(3):
        for branch in ('cls', 'obj'): state[f'bbox_head.multi_level_conv_{branch}.{level}.bias'] += 4
    weights = Weights(state, 'yolox_nano', 5, (0., 0., 0.), (1., 1., 1.), names=[*SHAPES], size=64)
    save_weights(weights, tmp_path/'w.safetensors')
    args = ['--count', '2', '--least', '.01', '--out', tmp_path/'out']
    printed = run('missing_labels.py', tmp_path/'w.safetensors', tmp_path/'shapes', *args)
    assert len(json.loads((tmp_path/'out/sample.json').read_text())) == 2 and '2 drawn at random' in printed
    assert (tmp_path/'out/sample.png').exists()


def test_formats_benchmark(tmp_path):
    from networks import decisive_model

    from cjm_yolox_pytorch.data.shapes import SHAPES, write_shapes
    from cjm_yolox_pytorch.files.checkpoints import Weights, save_weights
    write_shapes(tmp_path/'shapes', train=2, val=0, test=2, size=64)
    state, C = decisive_model(len(SHAPES)).state_dict(), len(SHAPES)
    save_weights(Weights(state, 'yolox_nano', C, (0,)*3, (1,)*3, names=[*SHAPES], size=64), tmp_path/'w.safetensors')
    paths = [tmp_path/'w.safetensors', tmp_path/'shapes']
    only = ['--only', 'pt2', 'ncnn', 'onnx', '--int8']
    printed = run('formats.py', *paths, '--split', 'test', *only, '--out', tmp_path)
    weights, pt2, ncnn, onnx, int8 = json.loads((tmp_path/'formats.json').read_text())['rows']
    assert (onnx['format'], int8['format']) == ('onnx', 'onnx, int8')
    if installed('onnx'): assert int8['remark'].startswith('ValueError: the weights find nothing')
    assert weights['AP'] == pt2['AP'] and pt2['pixels'] < 1e-2 and pt2['ms'] > 0 and pt2['MB'] > 1
    if not installed('pnnx'): assert ncnn['remark'].startswith('ImportError: pnnx is missing')
    assert '| format | AP | box difference, px | MB |' in printed


def test_page_of_formats_shows_the_results():
    page = json.loads((ROOT/'nbs/deploy/00a_catalog.ipynb').read_text(encoding='utf-8'))
    outputs = [out.get('data', {}) for cell in page['cells'] for out in cell.get('outputs', [])]
    table = (ROOT/'benchmarks/results/formats.md').read_text(encoding='utf-8')
    assert table in [''.join(data.get('text/markdown', [])) for data in outputs], 'run nbs/deploy/00a_catalog.ipynb'


@pytest.mark.parametrize('name', ['frontier', 'trainers', 'trainers-bccd'])
def test_tables_of_results_have_their_rows(name, monkeypatch):
    monkeypatch.syspath_prepend(ROOT/'benchmarks')
    results = ROOT/'benchmarks/results'
    rows = json.loads((results/f'{name}.json').read_text(encoding='utf-8'))['rows']
    table = importlib.import_module(name.partition('-')[0]).as_table(rows)
    assert (results/f'{name}.md').read_text(encoding='utf-8').startswith(f'{table}\n\n')


def test_near_duplicates_benchmark(draw_shapes):
    printed = run('near_duplicates.py', draw_shapes(train=10, val=0, test=0))
    assert '10 images' in printed and '0% of a random fifth found' in printed


@pytest.mark.slow
def test_trainers_benchmark(tmp_path):
    sizes = ['--photos', '80', '--img-size', '64', '--rounds', '1', '--minutes', '.05']
    printed = run('trainers.py', *sizes, '--only', 'ours, yolox_nano', 'ultralytics, yolo11n', '--out', tmp_path)
    ours, peer = json.loads((tmp_path/'trainers.json').read_text())['rows']
    assert ours['images_per_s'] > 0 and ours['epochs'] >= 1 and 0 <= ours['AP'] <= ours['AP50'] <= 1
    if installed('ultralytics'): assert peer['images_per_s'] > 0
    else:
        assert "| ultralytics, yolo11n | failed: ModuleNotFoundError: No module named 'ultralytics'" in printed


def test_waiting_benchmark():
    pair, median = run('waiting.py', '--pairs', '1', '--steps', '1').splitlines()
    assert pair.count('a step') == 2 and median.startswith('median x')
