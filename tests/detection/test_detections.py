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
    found = some(1, torch.full((3, 160, 200), 255, dtype=torch.uint8))
    found.boxes = torch.tensor([[0., 0, 200, 160]])
    drawn = np.asarray(found.draw())
    assert drawn.shape == (160, 200, 3)
    for side in (drawn[-1], drawn[:, 0], drawn[:, -1]): assert (side[20:] != 255).any(-1).all()


def test_pictures_show_one_class_for_each_object():
    "Boxes of one class stay, however they overlap; and what hides a box was not hidden itself"
    boxes = torch.tensor([[0., 0, 100, 100], [0, 0, 100, 80], [0, 0, 100, 60], [0, 0, 100, 99], [120, 0, 160, 50]])
    labels = torch.tensor([0, 1, 2, 0, 1])
    white = torch.full((3, 120, 200), 255, dtype=torch.uint8)
    found = Detections(boxes, torch.linspace(.9, .5, 5), labels, image=white)
    kept = found.one_class_each(.7)
    assert kept.scores.tolist() == found.scores[[0, 2, 3, 4]].tolist()
    assert len(found.one_class_each(.59)) == 3 and len(found.one_class_each(1)) == 5
    pixels = np.asarray(found.draw()), np.asarray(found.draw(class_agnostic=False))
    assert (pixels[0][79, 60] == 255).all() and (pixels[1][79, 60] != 255).any()
    assert len(some(0).one_class_each()) == 0


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
