"Detections: drawing, and the forms other programs want."
import io
import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from cjm_yolox_pytorch.detection.detections import Detection, Detections
from cjm_yolox_pytorch.detection.tracking import TrackedDetections


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


def test_supervision_gets_text_also_without_detections():
    pytest.importorskip('supervision')
    both = [some(n).to_supervision().data['class_name'].dtype.kind for n in (0, 2)]
    assert both == ['U', 'U']


def pets():
    boxes = torch.arange(20.).reshape(5, 4)
    labels = torch.tensor([1, 0, 1, 2, 0])
    return Detections(boxes, torch.linspace(.9, .5, 5), labels, ['cat', 'dog', 'owl'], torch.zeros(3, 30, 40).byte())


@pytest.mark.parametrize('key, rows', [
    (slice(1, 3), [1, 2]), (slice(None, None, 2), [0, 2, 4]), ([3, 0], [3, 0]), (torch.tensor([4]), [4]),
    (np.array([True, False, False, True, False]), [0, 3]), ([False, True, False, False, False], [1]), ([], []),
    (torch.tensor([False, False, True, True, True]), [2, 3, 4]), ('dog', [0, 2]), (['owl', 'cat'], [1, 3, 4])])
@pytest.mark.parametrize('arrays', [False, True])
def test_parts_of_detections(key, rows, arrays):
    found = pets().numpy() if arrays else pets()
    part = found[key]
    assert (part.names, part.image is found.image, type(part.boxes)) == (found.names, True, type(found.boxes))
    assert part.boxes.tolist() == pets().boxes[rows].tolist()
    assert part.scores.tolist() == pets().scores[rows].tolist() and part.labels.tolist() == pets().labels[rows].tolist()


def test_one_detection_has_plain_numbers():
    found = pets()
    assert found[3] == found[-2] == [*found][3] == Detection([12., 13., 14., 15.], found.scores[3].item(), 2, 'owl')
    assert found.numpy()[np.int64(3)] == found[3] and [type(v) for v in found[3]] == [list, float, int, str]
    assert found[found.scores.argmin()] == found[4]
    with pytest.raises(IndexError): found[5]
    with pytest.raises(ValueError, match="'cow' .similar: owl"): found['cow']
    with pytest.raises(ValueError, match='no class names'): some(2)['cat']


def test_everything_moves_to_a_device():
    moved = pets().to('meta')
    assert {t.device.type for t in (moved.boxes, moved.scores, moved.labels, moved.image)} == {'meta'}
    back = pets().numpy().to('cpu')
    assert torch.equal(back.labels, pets().labels) and torch.equal(back.image, pets().image)
    tracked = TrackedDetections(*vars(pets()).values(), torch.arange(5)).numpy()
    assert isinstance(tracked.track_ids, np.ndarray) and tracked['cat'].track_ids.tolist() == [1, 4]


def test_arrays_are_drawn_and_converted_like_tensors(tmp_path):
    found = pets()
    assert (np.asarray(found.numpy().draw()) == np.asarray(found.draw())).all()
    assert found.numpy().to_coco(3) == found.to_coco(3) and found.numpy().to_json() == found.to_json()
    assert repr(found.numpy()) == repr(found)


def test_json_of_detections():
    about = json.loads(pets().to_json(indent=1))
    assert (about['width'], about['height'], len(about['detections'])) == (40, 30, 5)
    assert about['detections'][1] == dict(box=[4, 5, 6, 7], score=pets().scores[1].item(), label=0, name='cat')
    assert json.loads(some(1).to_json()) == some(1).to_dict() and some(1).to_dict()['width'] is None


@pytest.mark.parametrize('name, kind', [('a.jpg', 'JPEG'), ('a.PNG', 'PNG'), ('a.webp', 'WEBP'), ('a.tif', 'TIFF')])
def test_saved_pictures(tmp_path, name, kind):
    assert pets().save(tmp_path/name, class_agnostic=False) == tmp_path/name
    with Image.open(tmp_path/name) as image: assert image.format == kind and image.size == pets().draw().size


@pytest.mark.parametrize('name', ['a', 'a.txt', 'a.json'])
def test_pictures_need_an_extension_of_a_picture(tmp_path, name):
    with pytest.raises(ValueError, match='no extension of a picture: choose .jpg'): pets().save(tmp_path/name)
    with pytest.raises(ValueError, match='no image to draw on'): some(1).save(tmp_path/'a.jpg')
    assert not [*tmp_path.iterdir()]


def test_tracks_keep_their_numbers_for_supervision():
    pytest.importorskip('supervision')
    tracked = TrackedDetections(*vars(pets()).values(), torch.arange(5))
    assert tracked['dog'].to_supervision().tracker_id.tolist() == [0, 2]


@pytest.mark.parametrize('key, rows', [(slice(None, None, -1), [4, 3, 2, 1, 0]), (('dog', 'owl'), [0, 2, 3]),
    ({'owl'}, [3]), (np.array(['owl', 'cat']), [1, 3, 4]), (np.array('owl'), [3]),
    (range(2), [0, 1]), (slice(-2, None), [3, 4])])
@pytest.mark.parametrize('arrays', [False, True])
def test_rows_are_chosen_as_in_arrays(key, rows, arrays):
    found = pets().numpy() if arrays else pets()
    assert found[key].scores.tolist() == pets().scores[rows].tolist()


@pytest.mark.parametrize('key', [None, True, 1.5, (0, 1), [[0, 1]], [0, 'dog'], torch.tensor(True), {0, 1}, [True],
    torch.zeros(4).bool(), [7], -6, b'dog'])
def test_indices_that_mean_nothing_are_named(key):
    with pytest.raises(IndexError, match='index .* of 5 detections: give a row number, a slice'): pets()[key]


def test_in_asks_for_a_class():
    found = pets()
    assert 'owl' in found and 'owl' not in found[:3] and found[3] in found and found[3] not in found[:3]
    assert 'cat' in found.numpy()
    with pytest.raises(ValueError, match="'Owl' .similar: owl"): 'Owl' in found
    with pytest.raises(TypeError, match="2 in detections: ask for a class by its name"): 2 in found
