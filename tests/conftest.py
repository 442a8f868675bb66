"What several tests share: reference data where it exists, and the slow loop of the notebook as an oracle."
import json
import os
import signal
from pathlib import Path

import hypothesis
import matplotlib
import pytest
import torch
import torchvision

from cjm_yolox_pytorch.assignment import SimOTASettings
from cjm_yolox_pytorch.data.shapes import write_shapes

matplotlib.use('Agg')
# How many inputs each law is tried with. The short profile draws the same inputs every time, so that a failure comes
# from a change and not from luck. New inputs come with `pytest tests/core/test_laws.py --hypothesis-profile long`, or
# HYPOTHESIS_PROFILE=long. There is no deadline, since other programs may keep the processor busy.
PHASES = [p for p in hypothesis.Phase if p.name != 'explain']
SLOW_TO_DRAW = [hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.data_too_large]
common = dict(deadline=None, phases=PHASES, suppress_health_check=SLOW_TO_DRAW)
hypothesis.settings.register_profile('short', max_examples=60, derandomize=True, database=None, **common)
hypothesis.settings.register_profile('long', max_examples=500, **common)
hypothesis.settings.load_profile(os.environ.get('HYPOTHESIS_PROFILE', 'short'))
ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / 'shared'


@pytest.fixture(scope='session')
def shared():
    "Folder with reference values, data and weights, which users do not have"
    if not SHARED.exists(): pytest.skip('needs the reference files of the developers (../shared)')
    return SHARED


@pytest.fixture(scope='session')
def draw_shapes(tmp_path_factory):
    "Write a dataset of drawn shapes into a new folder"
    def draw(**options):
        folder = tmp_path_factory.mktemp('shapes')
        write_shapes(folder, **options)
        return folder
    return draw


@pytest.fixture
def heeded():
    "Signals that end a program, also where nohup or a background job has it and its children ignore them"
    usual = dict(SIGINT=signal.default_int_handler, SIGHUP=signal.SIG_DFL)
    before = {n: signal.signal(n, usual[n.name]) for n in signal.Signals if n.name in usual}
    yield
    for number, handler in before.items(): signal.signal(number, handler)


def read_oracle():
    "`assign_loop` of nbs/03_assignment.ipynb: for each cell of one image the number of its object, or -1"
    names = dict(torch=torch, torchvision=torchvision, tensor=torch.tensor, F=torch.nn.functional)
    names['SimOTASettings'] = SimOTASettings
    parts = 'def slow_class_cost', 'def loop_inputs', 'def assign_loop'
    for cell in json.loads((ROOT/'nbs/03_assignment.ipynb').read_text(encoding='utf-8'))['cells']:
        source = ''.join(cell['source'])
        if source.startswith(parts): exec(source.split('\n\n')[0], names)
    return names['assign_loop']


@pytest.fixture(scope='session')
def assign_loop(): return read_oracle()
