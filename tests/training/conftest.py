"Drawn shapes, and trainings in other processes that end with their test."
import os
import signal

import pytest
import torch
from trainings import Child, ranks, run_command, trainer, words

from cjm_yolox_pytorch.training import train


@pytest.fixture(autouse=True, scope='session')
def one_thread():
    "The networks are small, and other processes share the machine"
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope='session')
def shapes(draw_shapes): return draw_shapes(train=12, val=4, test=4, size=64)


@pytest.fixture(scope='session')
def large_shapes(draw_shapes): return draw_shapes(train=0, val=8, test=0, size=96)


def leave_out_plots(patch): # Three quarters of a small training's time
    for name in ('plot_curves', 'show_detections'): patch.setattr(train, name, lambda *args: None)


@pytest.fixture
def no_plots(monkeypatch): leave_out_plots(monkeypatch)


@pytest.fixture(scope='session')
def uninterrupted(shapes, tmp_path_factory):
    "The folder of a small training from the first epoch to the last"
    out = tmp_path_factory.mktemp('whole')/'run'
    with pytest.MonkeyPatch.context() as patch:
        leave_out_plots(patch)
        train.fit(trainer(shapes), out)
    return out


@pytest.fixture
def start(tmp_path):
    "Start `function(*args)`, or a small training by command, in another process"
    children = []
    def begin(*args, function=run_command, environment=None):
        log = tmp_path/f'{len(children)}.log'
        children.append(Child(function, *args, log=log, **(environment or {})))
        return children[-1]
    yield begin
    for child in children:
        if child.alive(): os.killpg(child.pid, signal.SIGKILL)


@pytest.fixture
def start_training(start, shapes):
    def begin(out, *more, environment=None): return start(words(shapes, out, *more), environment=environment)
    return begin


@pytest.fixture
def start_pair(start_training):
    "Two processes that train together"
    def begin(out, *more): return [start_training(out, *more, environment=environment) for environment in ranks(2)]
    return begin
