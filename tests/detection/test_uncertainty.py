"Which images are labeled first: the measure, the list, and the option of yolox_predict."
import csv
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cjm_yolox_pytorch.detection.detections import Detections
from cjm_yolox_pytorch.detection.predict import yolox_predict
from cjm_yolox_pytorch.detection.uncertainty import AGGREGATES, image_uncertainty, order_images, uncertainties
from cjm_yolox_pytorch.files.checkpoints import save_weights, Weights


def found(*rows): # x, class, score
    x, labels, scores = torch.tensor(rows, dtype=torch.float64).reshape(-1, 3).T
    boxes = torch.stack([x, torch.zeros_like(x), x + 10, torch.full_like(x, 10)], dim=1)
    return Detections(boxes, scores, labels.long())


ROWS = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 3), st.floats(0, 1)), max_size=12)


@pytest.mark.parametrize('rows, expected', [
    ([(0, 0, 1.)], [0]), ([(0, 0, .5)], [1]), ([(0, 0, .9)], [.04]), ([(0, 0, .2)], [.16]),
    ([(0, 0, .9), (0, 1, .7)], [.64]), ([(0, 0, .9), (0, 0, .7)], [.04, .36]), ([(0, 0, .9), (30, 1, .7)], [.04, .36])])
def test_margins(rows, expected):
    np.testing.assert_allclose(uncertainties(found(*rows)), expected)


@given(ROWS, st.randoms(use_true_random=False))
def test_uncertainty_laws(rows, random):
    d, shuffled = found(*rows), [*rows]
    random.shuffle(shuffled)
    values = uncertainties(d)
    assert ((0 <= values) & (values <= 1)).all() and len(values) <= len(rows)
    for how in AGGREGATES:
        assert image_uncertainty(d, how) == pytest.approx(image_uncertainty(found(*shuffled), how))
    assert image_uncertainty(d, 'max') <= image_uncertainty(d) + 1e-12
    assert image_uncertainty(d, 'mean') <= image_uncertainty(d, 'max') + 1e-12


@given(st.lists(st.floats(0, 1), min_size=1, max_size=10))
def test_sure_detections_teach_nothing(scores):
    apart = [(20*n, 0, s) for n, s in enumerate(scores)]
    sure = [(20*n, 0, float(round(s))) for n, s in enumerate(scores)]
    assert image_uncertainty(found(*sure)) == 0 <= image_uncertainty(found(*apart))


@pytest.fixture
def unsure(weights, tmp_path):
    "A file of weights that give medium scores to many boxes"
    state = {k: v.clone() for k, v in weights.state.items()}
    for level in range(3):
        for branch in ('cls', 'obj'): state[f'bbox_head.multi_level_conv_{branch}.{level}.bias'] += 4
    path = tmp_path/'unsure.safetensors'
    save_weights(Weights(state, 'yolox_nano', 3, (0., 0., 0.), (1., 1., 1.), names=weights.names, size=64), path)
    return str(path)


def run(monkeypatch, capsys, *args): # As in a shell: exit status, output and errors
    monkeypatch.setattr(sys, 'argv', ['yolox_predict', *map(str, args), '--device', 'cpu'])
    status = 0
    try: yolox_predict()
    except SystemExit as e: status = e.args[0]
    return status, *capsys.readouterr()


def test_order_is_written_and_printed(unsure, images, tmp_path, monkeypatch, capsys):
    out = tmp_path/'out'
    status, text, _ = run(monkeypatch, capsys, unsure, images, '--order', 'uncertainty', '--out', out)
    assert status == 0 and text.splitlines()[0].startswith('3 images, the least sure first; written to')
    assert [p.name for p in out.iterdir()] == ['order.csv']
    rows = [*csv.DictReader((out/'order.csv').open())]
    values = [float(r['uncertainty']) for r in rows]
    assert {r['image'] for r in rows} == {str(p) for p in images.rglob('*.*')}
    assert values == sorted(values, reverse=True) and values[0] > 0
    again = run(monkeypatch, capsys, unsure, images, '--order', 'uncertainty', '--out', out) # Replaces its own list
    assert again[0] == 0


def test_order_of_inputs_does_not_matter(detector, images):
    files, failed = [(p, None) for p in sorted(images.rglob('*.*'))], {}
    assert order_images(detector, files, failed) == order_images(detector, files[::-1], failed, batch=2) and not failed


def test_unreadable_images_are_said(unsure, images, tmp_path, monkeypatch, capsys):
    (images/'c.jpg').write_bytes(b'no picture')
    status, text, _ = run(monkeypatch, capsys, unsure, images, '--order', 'uncertainty', '--out', tmp_path/'out')
    assert status.startswith('1 of the inputs could not be read') and 'c.jpg' in status
    assert text.startswith('3 images')


@pytest.mark.parametrize('options, message', [
    (['--order', 'size'], "order='size': choose uncertainty"),
    (['--order', 'uncertainty', '--conf', '.3'], 'conf=0.3: --order looks at all scores; leave --conf out'),
    (['VIDEO', '--order', 'uncertainty'], 'clip.mp4 is a video, and --order is for images')])
def test_bad_options(options, message, unsure, images, tmp_path, monkeypatch, capsys):
    (tmp_path/'clip.mp4').write_bytes(b'')
    options = [str(tmp_path/'clip.mp4') if o == 'VIDEO' else o for o in options]
    status, _, _ = run(monkeypatch, capsys, unsure, images, *options, '--out', tmp_path/'out')
    assert message in status and not (tmp_path/'out').exists()


def test_other_files_are_not_replaced(unsure, images, tmp_path, monkeypatch, capsys):
    (tmp_path/'order.csv').write_text('mine')
    status, _, _ = run(monkeypatch, capsys, unsure, images, '--order', 'uncertainty', '--out', tmp_path)
    assert 'order.csv exists and was not written by yolox_predict' in status
    assert (tmp_path/'order.csv').read_text() == 'mine'
