"What several tests share: reference data where it exists, and the slow loop of the notebook as an oracle."
import json
import os
from pathlib import Path

import hypothesis
import matplotlib
import pytest
import torch
import torchvision

matplotlib.use('Agg')
# How many inputs each law is tried with. The short profile draws the same ones every time: a test that fails is then one that a change has
# broken, and not one that had luck so far. New inputs come with `pytest tests/test_laws.py --hypothesis-profile long`, or
# HYPOTHESIS_PROFILE=long. Nothing here has a deadline, since other programs may keep the processor busy.
common = dict(deadline=None, phases=[p for p in hypothesis.Phase if p.name != 'explain'], suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.data_too_large])
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


def read_oracle():
    "`assign_loop` of nbs/04_simota.ipynb: for each cell of one image the number of its object, or -1"
    names = dict(torch=torch, torchvision=torchvision, tensor=torch.tensor, F=torch.nn.functional)
    for cell in json.loads((ROOT/'nbs/04_simota.ipynb').read_text(encoding='utf-8'))['cells']:
        source = ''.join(cell['source'])
        if source.startswith(('def slow_class_cost', 'def assign_loop')): exec(source.split('\n\n')[0], names)
    return names['assign_loop']


@pytest.fixture(scope='session')
def assign_loop(): return read_oracle()
