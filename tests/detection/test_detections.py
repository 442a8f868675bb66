"Detections: drawing, and the forms other programs want."
import io
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from cjm_yolox_pytorch.detection.detections import Detections


def some(n=0, image=None):
    boxes = torch.tensor([[1., 2, 30, 40]]).expand(n, 4)
    return Detections(boxes, torch.full((n,), .5), torch.zeros(n, dtype=torch.int64), image=image)


def test_jupyter_shows_a_thumbnail():
    found = some(3, torch.zeros(3, 300, 900, dtype=torch.uint8))
    assert Image.open(io.BytesIO(found._repr_png_())).size == (640, 213)
    assert some()._repr_png_() is None


def test_drawing_keeps_the_size_and_marks_boxes_at_the_borders():
    found = some(1, torch.full((3, 60, 80), 255, dtype=torch.uint8))
    found.boxes = torch.tensor([[0., 0, 80, 60]])
    drawn = np.asarray(found.draw())
    assert drawn.shape == (60, 80, 3)
    for side in (drawn[-1], drawn[:, 0], drawn[:, -1]): assert (side[20:] != 255).any(-1).all()


def test_supervision_gets_boxes_scores_and_names():
    pytest.importorskip('supervision')
    found = some(3)
    found.labels, found.names = torch.tensor([1, 0, 1]), ['cat', 'dog']
    theirs = found.to_supervision()
    np.testing.assert_array_equal(theirs.xyxy, found.boxes)
    np.testing.assert_array_equal(theirs.confidence, found.scores)
    assert theirs.class_id.tolist() == [1, 0, 1] and list(theirs.data['class_name']) == ['dog', 'cat', 'dog']
    assert list(some(2).to_supervision().data['class_name']) == ['0', '0']


def test_supervision_is_named_if_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, 'supervision', None)
    with pytest.raises(ImportError, match='pip install supervision'): some().to_supervision()
