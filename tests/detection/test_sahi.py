"The adapter for SAHI, with SAHI's own functions."
import numpy as np
import pytest
import torch
from PIL import Image

from cjm_yolox_pytorch.detection.detector import load_detector
from cjm_yolox_pytorch.detection.sahi import sahi_model

predict = pytest.importorskip('sahi.predict')


@pytest.fixture
def picture(): return np.random.default_rng(0).integers(0, 256, (150, 200, 3), dtype=np.uint8)


def boxes(result): return sorted((*o.bbox.to_xyxy(), o.category.id) for o in result.object_prediction_list)


def rows(found): return sorted((*b, l) for b, l in zip(found.boxes.tolist(), found.labels.tolist()))


def test_prediction_equals_the_detector(detector, picture):
    model = sahi_model(detector, conf=1e-6)
    result = predict.get_prediction(picture, model)
    found = detector(picture, conf=1e-6)
    np.testing.assert_allclose(boxes(result), rows(found), atol=1e-3)
    assert len(found) > 5 and {o.category.name for o in result.object_prediction_list} <= {*detector.names}


@pytest.mark.parametrize('batch', [1, 4])
def test_slices_lie_where_they_were_cut(detector, picture, batch):
    model = sahi_model(detector, conf=1e-6, max_detections=4)
    plain = dict(perform_standard_pred=False, postprocess_match_threshold=1., force_postprocess_type=True,
                 postprocess_type='NMS', verbose=0)
    result = predict.get_sliced_prediction(picture, model, 100, 100, 0., 0., batch_size=batch, **plain)
    want = []
    for y, x in [(0, 0), (0, 100), (50, 0), (50, 100)]:
        d = detector(picture[y:y + 100, x:x + 100], conf=1e-6, max_detections=4)
        want += [(*b, l) for b, l in zip((d.boxes + torch.tensor([x, y, x, y])).tolist(), d.labels.tolist())]
    assert len(want) == 16 and len(boxes(result)) >= 12
    for row in boxes(result): assert min(np.abs(np.subtract(row, w)).max() for w in want) < 1e-2


def test_thresholds(detector, picture, weights):
    lowest = sahi_model(detector)
    assert lowest.confidence_threshold == .25 and lowest.category_mapping == {'0': 'cat', '1': 'dog', '2': 'owl'}
    result = predict.get_sliced_prediction(picture, lowest, 100, 100, confidence_threshold=1e-6, verbose=0)
    assert len(result.object_prediction_list) and lowest.confidence_threshold == .25


def test_loads_a_file(file, picture, tmp_path):
    "As SAHI's own classes do: from a path"
    cls = type(sahi_model(load_detector(file, 'cpu')))
    model = cls(model_path=file, device='cpu', confidence_threshold=1e-6)
    Image.fromarray(picture).save(tmp_path/'picture.png')
    assert len(predict.get_prediction(str(tmp_path/'picture.png'), model).object_prediction_list)
