"Weights of a small network, as they are and as a file, a detector, and a folder of images."
import numpy as np
import pytest
import torch
from PIL import Image

from cjm_yolox_pytorch.detection.detector import load_detector
from cjm_yolox_pytorch.files.checkpoints import Weights, save_weights
from cjm_yolox_pytorch.model import build_model


@pytest.fixture(scope='session')
def weights():
    torch.manual_seed(0)
    model = build_model('yolox_nano', 3, pretrained=False)
    names = ['cat', 'dog', 'owl']
    return Weights(model.state_dict(), 'yolox_nano', 3, (0., 0., 0.), (1., 1., 1.), names=names, size=64)


@pytest.fixture(scope='session')
def file(weights, tmp_path_factory):
    path = tmp_path_factory.mktemp('weights')/'nano.safetensors'
    save_weights(weights, path)
    return str(path)


@pytest.fixture(scope='session')
def detector(weights): return load_detector(weights, 'cpu')


@pytest.fixture
def images(tmp_path):
    folder = tmp_path/'images'
    (folder/'deep').mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i, name in enumerate(['a.jpg', 'b.png', 'deep/a.jpg']):
        Image.fromarray(rng.integers(0, 256, (40 + 10*i, 60, 3), dtype=np.uint8)).save(folder/name)
    return folder
