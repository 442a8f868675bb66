"What several tests share: reference data where it exists, and the slow loop of the notebook as an oracle."
import json
from pathlib import Path

import matplotlib
import pytest
import torch
import torchvision

matplotlib.use('Agg')
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
