"The demo replaces its own files, and no others."
from functools import partial

import pytest

from cjm_yolox_pytorch.training import demo
from cjm_yolox_pytorch.training.demo import yolox_demo
from cjm_yolox_pytorch.training.runs import read_rows


@pytest.fixture
def few_images(monkeypatch):
    write = demo.write_shapes
    def write_few(folder, train, val, test, size): write(folder, train=train, val=4, test=6, size=64)
    monkeypatch.setattr(demo, 'write_shapes', write_few)


def test_demo_trains_evaluates_and_replaces_an_earlier_demo(few_images, tmp_path, capsys):
    out = tmp_path/'demo'
    run = partial(yolox_demo, str(out), images=16, epochs=1, device='cpu')
    run()
    printed = capsys.readouterr().out
    assert 'yolox_tiny at 96 on test: 6 images' in printed.partition('on held-out images:')[2]
    assert {'detections.png', 'curves.png', 'best.safetensors'} <= {p.name for p in out.iterdir()}
    assert (out/'test/metrics.json').exists()
    run()
    assert len(read_rows(out/'metrics.csv')) == 1


def test_demo_does_not_replace_the_images_of_others(tmp_path):
    file = tmp_path/'shapes/train/_annotations.coco.json'
    file.parent.mkdir(parents=True)
    file.write_text('mine')
    with pytest.raises(FileExistsError, match='shapes is not from yolox_demo'): yolox_demo(str(tmp_path), device='cpu')
    assert file.read_text() == 'mine'


@pytest.mark.parametrize('option', ['images', 'epochs'])
def test_demo_checks_its_options_before_it_draws(tmp_path, option):
    with pytest.raises(ValueError, match=f'{option}=0: must be at least 1'):
        yolox_demo(str(tmp_path/'new'), **{option: 0}, device='cpu')
    assert not (tmp_path/'new').exists()


def test_demo_does_not_replace_a_training(tmp_path):
    "It says so in words of its own, since it cannot resume"
    (tmp_path/'last.safetensors').write_text('mine')
    with pytest.raises(FileExistsError, match='last.safetensors is not from yolox_demo: choose another folder'):
        yolox_demo(str(tmp_path), device='cpu')
    assert (tmp_path/'last.safetensors').read_text() == 'mine'
