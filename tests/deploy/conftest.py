"What tests of quantized files share."
import pytest

from cjm_yolox_pytorch.data.annotations import build_annotations
from cjm_yolox_pytorch.data.splits import read_split
from cjm_yolox_pytorch.detection.detector import prepare_network
from cjm_yolox_pytorch.evaluation.evaluate import detect


@pytest.fixture(scope='module')
def images(weights, data):
    "For calibration and validation; the truth is what the network finds, so that its AP is nearly 1"
    train, val = read_split(data, 'train'), read_split(data, 'val')
    network, spec = prepare_network(weights, 'cpu')
    rows = [[i, label, *box] for i, d in enumerate(detect(network, val, spec, conf=.3))
            for box, label in zip(d.boxes.tolist(), d.labels.tolist())]
    return train, build_annotations('found', weights.names, val.paths, val.sizes, rows)
