"What is wrong with detections: the kinds of TIDE, and what each of them costs."
import numpy as np
import pytest
from evaluation_samples import detections, random_detections, random_split

from cjm_yolox_pytorch.evaluation.metrics import MATCH_KINDS, match_detections

NINE, TEN = 0, 1
CARD = (10, 10, 30, 40)
POOR = (20, 20, 40, 50) # IoU .2 with it


def kinds_of(rows, objects=((*CARD, NINE),), conf=.25):
    "Names of the kinds of `rows` (x1, y1, x2, y2, label, score), and numbers of missed objects"
    objects = np.array(objects, dtype=np.float32).reshape(-1, 5)
    there = objects[:, :4], objects[:, 4].astype(int), np.zeros(len(objects), dtype=bool)
    result = match_detections(*there, detections(rows), conf)
    return [MATCH_KINDS[k] if k >= 0 else None for k in result.kinds], np.flatnonzero(result.missed).tolist()


@pytest.mark.parametrize('row, kind, missed', [
    ((*CARD, NINE, .9), 'correct', []), ((*CARD, TEN, .9), 'wrong_class', []),
    ((*POOR, NINE, .9), 'poorly_localized', []), ((*POOR, TEN, .9), 'both', [0]),
    ((50, 50, 60, 60, NINE, .9), 'background', [0]), ((29, 39, 60, 60, NINE, .9), 'background', [0]),
    ((*CARD, NINE, .2), None, [0])])
def test_single_detection(row, kind, missed): assert kinds_of([row]) == ([kind], missed)


def test_every_detection_on_an_object_that_was_found_has_its_own_kind():
    "They were all false positives once, like the last"
    more = [(*CARD, NINE, .8), (*CARD, TEN, .7), (*CARD, TEN, .6), (*POOR, NINE, .5), (50, 50, 60, 60, TEN, .4)]
    expected = ['correct', 'duplicate', 'wrong_class', 'wrong_class', 'poorly_localized', 'background']
    assert kinds_of([(*CARD, NINE, .9), *more]) == (expected, [])
    assert kinds_of([(*CARD, TEN, .95), (*CARD, NINE, .9)]) == (['wrong_class', 'correct'], [])


def test_what_a_detection_lies_on_says_more_than_what_it_touches():
    beside = (10, 30, 30, 60, TEN) # Touches CARD by an IoU of .2
    assert kinds_of([(*CARD, TEN, .9)], [(*CARD, NINE), beside]) == (['wrong_class'], [1])
    assert kinds_of([(*CARD, TEN, .9)], [(12, 10, 32, 40, TEN), (*CARD, NINE)])[0] == ['correct']
    rows = [(*CARD, TEN, .9), (*CARD, TEN, .8)] # Both lie on both objects
    assert kinds_of(rows, [(12, 10, 32, 40, TEN), (*CARD, NINE)]) == (['correct', 'duplicate'], [1])


@pytest.mark.parametrize('crowds', [0, .3])
def test_kinds_are_the_same_at_every_threshold(crowds):
    truth = random_split(2, 4, images=12, crowds=crowds)
    found = random_detections(truth, 3)
    for i, d in enumerate(found):
        everything = match_detections(*truth.objects(i), d, conf=0)
        for conf in (.25, .6):
            some, used = match_detections(*truth.objects(i), d, conf), d.scores.numpy() > conf
            np.testing.assert_array_equal(some.kinds, np.where(used, everything.kinds, -1))
            assert (some.missed >= everything.missed).all()


def test_crowds_are_no_objects_that_could_be_confused():
    there = np.array([[0, 0, 100, 100]], dtype=np.float32), np.array([NINE]), np.array([True])
    rows = [(10, 10, 30, 30, NINE, .9), (10, 10, 30, 30, TEN, .9), (0, 0, 90, 90, TEN, .9)]
    result = match_detections(*there, detections(rows))
    assert result.kinds.tolist() == [-1, MATCH_KINDS.index('background'), MATCH_KINDS.index('background')]
    assert not result.missed.any()
