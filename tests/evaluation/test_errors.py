"What is wrong with detections: the kinds of TIDE, and what each of them costs."
from dataclasses import replace

import numpy as np
import pytest
import torch
from evaluation_samples import detections, random_detections, random_split, tiny_split

from cjm_yolox_pytorch.data.splits import read_split
from cjm_yolox_pytorch.detection.detections import Detections
from cjm_yolox_pytorch.evaluation.errors import error_costs, error_lines, find_errors
from cjm_yolox_pytorch.evaluation.metrics import MATCH_KINDS, average_precision, match_detections
from cjm_yolox_pytorch.evaluation.report import report, table

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


# ---- What errors cost

def with_objects(truth, found):
    "Only images with objects, since TIDE's program leaves out others"
    kept = np.flatnonzero(np.bincount(truth.image[~truth.crowd], minlength=len(truth)))
    return truth.take(kept), [found[i] for i in kept]


def test_counts_and_costs_are_those_of_tides_program():
    "Recorded with tidecv 1.0.1; of two kinds it removes the better of two detections of an object, so they gain less"
    truth = random_split(0, 3, crowds=0)
    truth, found = with_objects(truth, random_detections(truth, 0, spread=.15))
    errors, costs = find_errors(truth, found), error_costs(truth, found)
    assert average_precision(truth, found)['AP50'] == pytest.approx(.411012, abs=1e-6)
    counts = dict(zip(MATCH_KINDS, np.bincount(errors.kind, minlength=len(MATCH_KINDS))), missed=errors.missed.sum())
    expected = dict(wrong_class=29, poorly_localized=59, both=23, duplicate=150, background=51, missed=90)
    assert {k: counts[k] for k in expected} == expected
    same = dict(both=.01687262, duplicate=.04866338, background=.03398499, missed=.17270532)
    assert {k: costs[k] for k in same} == pytest.approx(same, abs=1e-6)
    assert .0318 < costs['wrong_class'] < .045 and .0724 < costs['poorly_localized'] < .095


@pytest.mark.parametrize('seed, classes, crowds', [(0, 3, .2), (1, 80, 0), (2, 20, .1)])
def test_ap50_to_start_from_is_that_of_the_report(seed, classes, crowds, monkeypatch):
    "If all detections were removed, it would fall to 0"
    truth = random_split(seed, classes, crowds=crowds)
    found = random_detections(truth, seed, crowded=150 if seed else 0) # More than a hundred of one class in an image
    def remove_all(f, kind): return f.label[:0], f.score[:0], f.kind[:0]
    monkeypatch.setattr('cjm_yolox_pytorch.evaluation.errors._mend', remove_all)
    costs = error_costs(truth, found)
    assert costs['both'] == pytest.approx(-average_precision(truth, found)['AP50'], abs=1e-9)


def test_costs_worked_out_by_hand(tmp_path):
    "Two classes with two objects each; a detection of the wrong class has the highest score"
    boxes = [(1, 1, 19, 19), (21, 1, 39, 19), (41, 1, 59, 19), (61, 1, 79, 19)]
    truth = tiny_split(tmp_path, [(40, 100)], [[(*box, k // 2) for k, box in enumerate(boxes)]], ['nine', 'ten'])
    rows = [(*boxes[0], TEN, .9), (*boxes[1], NINE, .8), (*boxes[2], TEN, .7)]
    # Nine: one of two objects found. Ten: false, correct, and one missed
    costs = error_costs(truth, [detections(rows)])
    now, nine = (51/101 + 51*.5/101)/2, 51/101
    assert costs['wrong_class'] == pytest.approx((1 + nine)/2 - now) # The nine is right now, the ten no longer false
    assert costs['missed'] == pytest.approx((nine + .5)/2 - now) # One ten is left, found after a false one
    assert costs['both'] == costs['duplicate'] == costs['background'] == costs['poorly_localized'] == 0


def test_best_detection_of_an_object_stays_when_classes_are_mended(tmp_path):
    truth = tiny_split(tmp_path, [(60, 60)]*2, [[(*CARD, NINE)], [(*CARD, TEN)]], ['nine', 'ten'])
    more = detections([(*CARD, TEN, .5), (50, 50, 60, 60, NINE, .4)])
    found = [detections([(*CARD, TEN, .9), (*CARD, NINE, .3)]), more]
    # Nine: a false one at .4 before .3. If the .9 becomes a nine, it is first
    assert error_costs(truth, found)['wrong_class'] == pytest.approx((1 + 1)/2 - (.5 + .5)/2)


def test_class_without_objects_costs_nothing_and_no_objects_are_no_number(tmp_path):
    truth = tiny_split(tmp_path, [(60, 60)], [[(*CARD, NINE)]], ['nine', 'ten'])
    costs = error_costs(truth, [detections([(50, 50, 60, 60, TEN, .9)])])
    assert costs['missed'] == 1 and costs['background'] == 0
    empty = tiny_split(tmp_path, [(60, 60)], [[]], ['nine'])
    metrics = report(empty, [detections([(*CARD, NINE, .9)])])
    assert all(np.isnan(gain) for gain in metrics['errors']['AP50_gain'].values()) and error_lines(metrics) == []


# ---- The cards' kind of error: two classes that look alike, and a box of each on many objects

@pytest.fixture(scope='module')
def cards(draw_shapes):
    "Every other square is a nine, the others are tens; a detector that sees squares, but cannot tell which"
    truth = read_split(draw_shapes(train=0, val=60, test=0, size=96), 'val')
    names, square = ['nine', 'ten', 'disc', 'triangle', 'star', 'cross'], truth.labels == truth.names.index('square')
    labels = np.array([0 if n == 'square' else names.index(n) for n in truth.names])[truth.labels]
    labels[square] = np.arange(square.sum()) % 2
    truth = replace(truth, names=names, labels=labels)
    rows = [[] for _ in range(len(truth))]
    for k, (i, box, label) in enumerate(zip(truth.image, truth.boxes.tolist(), labels)):
        rows[i].append((*box, label, .9))
        if label < 2: rows[i].append((*box, 1 - label, .8 + .15*(k % 2))) # Above or below the correct one
    found = [Detections(d.boxes, d.scores, d.labels) for d in map(detections, rows)]
    return truth, found, int(square.sum())


def test_report_of_two_classes_that_look_alike(cards):
    truth, found, squares = cards
    metrics = report(truth, found)
    use = metrics['in_use']
    assert squares > 20 and use['correct'] == len(truth.labels) and use['wrong_class'] == squares
    assert sum(use[k] for k in MATCH_KINDS[2:]) == use['missed'] == 0
    assert metrics['confusion']['nine'] == dict(nine=-(-squares//2), ten=-(-squares//2))
    assert metrics['errors']['wrong_class_also_found'] == squares
    assert metrics['AP50'] + metrics['errors']['AP50_gain']['wrong_class'] == pytest.approx(1)
    lines = table(metrics)
    assert f'{use["correct"]} correct, {squares} wrong class, 0 missed' in lines
    last = ' '.join(' '.join(lines[-6:]).split())
    assert 'AP50 would be 1.000 without wrong classes' in last
    pairs = f'nine taken for ten ({-(-squares//2)}), ten taken for nine ({squares//2})'
    assert f'most errors are wrong classes: {pairs}' in last
    assert 'try: more training images of these classes, or one class' in last
    assert f'--class-agnostic keeps the best box of an object ({squares} are second boxes)' in last
    assert max(map(len, lines)) <= 80


def test_no_advice_without_enough_errors(cards):
    truth, found, _ = cards
    few = report(truth.take(range(6)), found[:6])
    assert 0 < few['in_use']['wrong_class'] < 10
    assert 'AP50 would be' in ' '.join(error_lines(few)) and 'try' not in ' '.join(error_lines(few))
    sure = [d.scores == torch.tensor(.9) for d in found]
    best = [Detections(d.boxes[k], d.scores[k], d.labels[k]) for d, k in zip(found, sure)]
    assert error_lines(report(truth, best)) == []


@pytest.mark.parametrize('kind, said', [
    ('poorly_localized', '--img-size'), ('both', 'longer training'), ('duplicate', '--iou'),
    ('background', 'yolox_doctor'), ('missed', '--tile'), ('wrong_class', 'larger model')])
def test_advice_is_about_the_most_frequent_kind(cards, kind, said):
    metrics = report(*cards[:2])
    gains = dict.fromkeys([*MATCH_KINDS[1:], 'missed'], .02)
    metrics['errors'] |= dict(AP50_gain=gains, missed_small=15)
    metrics['in_use'] |= {**dict.fromkeys(gains, 11), kind: 20}
    metrics['confusion'] = dict(nine=dict(ten=4))
    lines = error_lines(metrics)
    assert said in ' '.join(lines[-3:]) and max(map(len, lines)) <= 80
    assert 'taken for' in lines[0] and len([line for line in lines if line.startswith('try')]) == 1
    assert any(line.startswith('the most frequent errors are') for line in lines)
    metrics['errors']['AP50_gain'][kind] = .001 # Frequent, but it costs nothing
    assert not {line for line in lines if 'frequent' in line} & {*error_lines(metrics)}


@pytest.mark.parametrize('initial, AP50, said', [('random', .05, 'published initial weights (--weights coco)'),
    ('random', .5, 'a larger --img-size'), ('runs/birds/best.safetensors', .05, 'a larger --img-size')])
def test_random_weights_explain_why_next_to_nothing_was_found(cards, initial, AP50, said):
    metrics = report(*cards[:2], initial_weights=initial)
    metrics['errors'] |= dict(AP50_gain=dict(missed=.02), missed_small=15)
    metrics['in_use']['missed'] = 20
    metrics['AP50'] = AP50
    assert said in error_lines(metrics)[-2] + error_lines(metrics)[-1].strip()


def test_missed_objects_are_small_for_the_network(tmp_path):
    "Also in a large image, and not if it is cut into tiles"
    truth = tiny_split(tmp_path, [(400, 400)], [[(1, 1, 41, 41, 0)]*3], ['cat'])
    small = [report(truth, [detections([])], size=size, tile=tile)['errors']['missed_small']
        for size, tile in ((None, None), (100, None), ((100, 400), None), (100, 200))]
    assert small == [0, 3, 3, 0]


def test_missed_objects_may_be_found_with_a_lower_score(tmp_path):
    truth = tiny_split(tmp_path, [(60, 60)], [[(*CARD, NINE), (35, 5, 58, 58, NINE), (1, 1, 9, 9, NINE)]], ['nine'])
    rows = [(*CARD, NINE, .9), (35, 5, 58, 58, NINE, .1)]
    assert report(truth, [detections(rows)])['errors']['missed_found_lower'] == 1
