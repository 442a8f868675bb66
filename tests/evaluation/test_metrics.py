"Metrics compared with COCO's own program and with slow counting."
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from evaluation_samples import assert_official, official, random_detections, random_split

from cjm_yolox_pytorch.data.coco import coco_truth
from cjm_yolox_pytorch.detection.detections import Detections
from cjm_yolox_pytorch.evaluation.metrics import VOC_METRICS, average_precision, coco_results, confusion_matrix
from cjm_yolox_pytorch.evaluation.metrics import displaced_classes, match_detections, voc_average_precision

CASES = dict(
    random=dict(),
    ties=dict(decimals=1), # Ten scores for everything
    many=dict(crowded=150), # More than a hundred of one class in an image
    exact=dict(spread=0)) # The truth among others, three times over


@pytest.mark.parametrize('name, case', CASES.items())
@pytest.mark.parametrize('classes', [3, 80])
def test_average_precision_is_that_of_the_official_program(classes, name, case):
    for seed, crowds in enumerate([0, .2]):
        truth = random_split(seed, classes, crowds=crowds)
        found = random_detections(truth, seed, **case)
        assert min(map(len, found)) == 0 and truth.crowd.any() == (crowds > 0)
        if name == 'many': assert max(np.bincount(d.labels).max() for d in found if len(d)) > 100
        stats, by_class, _ = official(coco_truth(truth), coco_results(found))
        assert_official(average_precision(truth, found), truth.names, stats, by_class)


def select(d, rows): return Detections(d.boxes[rows], d.scores[rows], d.labels[rows])


def test_average_precision_of_classes_without_detections_or_objects():
    truth = random_split(0, 3)
    nothing = [Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0).long())]*len(truth)
    rare = replace(truth, names=[*truth.names, 'yeast'])
    some = [select(d, d.labels != 1) for d in random_detections(rare, 3)]
    for annotations, found in [(truth, nothing), (rare, some)]:
        stats, by_class, _ = official(coco_truth(annotations), coco_results(found))
        assert_official(average_precision(annotations, found), annotations.names, stats, by_class)


def slow_voc(truth, found, c):
    "VOC's two average precisions of class `c`, as its development kit describes them, in exact fractions"
    rows = [(float(d.scores[n]), i, n) for i, d in enumerate(found) for n in range(len(d)) if d.labels[n] == c]
    def of_class(i): return [(box, crowd) for box, label, crowd in zip(*truth.objects(i)) if label == c]
    objects = {i: of_class(i) for i in range(len(truth))}
    count, used, hits = sum(not crowd for rows in objects.values() for _, crowd in rows), set(), []
    for _, i, n in sorted(rows, key=lambda r: (-r[0], r[1])):
        best, chosen = 0., None
        x1, y1, x2, y2 = map(float, found[i].boxes[n])
        for k, (box, _) in enumerate(objects[i]):
            a1, b1, a2, b2 = map(float, box)
            w, h = min(x2, a2) - max(x1, a1), min(y2, b2) - max(y1, b1)
            overlap = w*h/((x2 - x1)*(y2 - y1) + (a2 - a1)*(b2 - b1) - w*h) if w > 0 and h > 0 else 0.
            if overlap > best: best, chosen = overlap, k
        if best >= .5 and objects[i][chosen][1]: continue # As a difficult one
        hits.append(best >= .5 and (i, chosen) not in used)
        if best >= .5: used.add((i, chosen))
    if not count: return float('nan'), float('nan')
    points = [(Fraction(sum(hits[:n + 1]), count), Fraction(sum(hits[:n + 1]), n + 1)) for n in range(len(hits))]
    def height(recall): return max((p for r, p in points if r >= recall), default=Fraction(0))
    steps = sorted({r for r, _ in points} | {Fraction(0)})
    area = sum((b - a)*height(b) for a, b in zip(steps, steps[1:]))
    return float(area), float(sum(height(Fraction(t, 10)) for t in range(11))/11)


@pytest.mark.parametrize('decimals', [6, 1])
@pytest.mark.parametrize('classes, crowds', [(3, 0), (3, .2), (80, .1)])
def test_voc_average_precision_is_that_of_slow_counting(classes, crowds, decimals):
    truth = random_split(1, classes, images=20, crowds=crowds)
    found = random_detections(truth, 5, decimals=decimals)
    metrics = voc_average_precision(truth, found)
    slow = np.array([slow_voc(truth, found, c) for c in range(classes)])
    fast = [[metrics['classes'][n][k] for k in VOC_METRICS] for n in truth.names]
    np.testing.assert_allclose(fast, slow, atol=1e-12)
    np.testing.assert_allclose([metrics[k] for k in VOC_METRICS], np.nanmean(slow, axis=0), atol=1e-12)


def test_metrics_do_not_depend_on_the_order_of_detections():
    truth = random_split(2, 3)
    found = random_detections(truth, 2)
    torch.manual_seed(0)
    shuffled = [select(d, torch.randperm(len(d))) for d in found]
    assert voc_average_precision(truth, shuffled) == voc_average_precision(truth, found)
    assert average_precision(truth, shuffled) == average_precision(truth, found)


@pytest.mark.parametrize('seed, crowds, conf', [(0, 0, .25), (1, .2, .6)])
def test_correct_detections_are_those_that_coco_counts(seed, crowds, conf):
    truth = random_split(seed, 20, crowds=crowds)
    found = random_detections(truth, seed)
    results = [match_detections(*truth.objects(i), d, conf) for i, d in enumerate(found)]
    matrix = confusion_matrix(truth, found, results)
    sure = [select(d, d.scores > conf) for d in found]
    _, _, recall = official(coco_truth(truth), coco_results(sure))
    assert truth.counts.all()
    np.testing.assert_allclose(matrix.diagonal()[:-1]/truth.counts, recall, atol=1e-12)
    assert matrix[-1, -1] == 0
    not_counted = sum(map(len, sure)) - matrix[:, :-1].sum()
    assert not_counted > 0 if crowds else not_counted == 0
    assert matrix.sum() - matrix.trace() == sum(r.mistakes for r in results)


def test_metrics_import_no_drawing():
    code = '''import sys, cjm_yolox_pytorch.evaluation.metrics
assert not {'matplotlib', 'cjm_yolox_pytorch.evaluation.report'} & {*sys.modules}'''
    subprocess.run([sys.executable, '-c', code], check=True)


def renamed(found, new): return [replace(d, labels=torch.tensor(new)[d.labels]) for d in found]


def matrix_of(truth, found):
    results = [match_detections(*truth.objects(i), d) for i, d in enumerate(found)]
    return confusion_matrix(truth, found, results)


@pytest.mark.parametrize('new', [[2, 1, 0], [1, 2, 0], [0, 2, 1]])
def test_displaced_classes_are_those_whose_names_were_permuted(new):
    "Also when some of the classes keep their place"
    truth = random_split(0, 3)
    found = random_detections(truth, 0, spread=.02)
    assert displaced_classes(matrix_of(truth, found)) == {}
    expected = {said: true for true, said in enumerate(new) if said != true}
    assert displaced_classes(matrix_of(truth, renamed(found, new))) == expected


def test_displaced_classes_are_found_among_many():
    truth, rng = random_split(1, 80, images=60), np.random.default_rng(0)
    new = rng.permutation(80).tolist()
    order = displaced_classes(matrix_of(truth, renamed(random_detections(truth, 1, spread=.02), new)))
    assert len(order) > 20 and all(new[true] == said for said, true in order.items())


@pytest.mark.parametrize('how', ['one class', 'random', 'two classes', 'other class'])
@pytest.mark.parametrize('classes', [3, 80])
def test_displaced_classes_are_not_found_in_a_poor_network(classes, how):
    "It may give everything one name or two, a random one, or those of classes that look alike"
    truth, rng = random_split(2, classes, images=60), np.random.default_rng(1)
    for seed in range(20):
        found = random_detections(truth, seed, spread=.02)
        chosen = rng.integers(classes, size=2)
        for d in found:
            names = {'one class': chosen[:1], 'two classes': chosen, 'random': np.arange(classes)}.get(how)
            labels = d.labels.numpy()
            d.labels = torch.from_numpy(labels//2*2 if names is None else rng.choice(names, len(labels)))
        assert displaced_classes(matrix_of(truth, found)) == {}


def test_displaced_classes_need_some_evidence():
    swapped = np.array([[0, 5, 0], [4, 0, 0], [9, 9, 0]])
    assert displaced_classes(swapped) == {} and displaced_classes(2*swapped) == {1: 0, 0: 1}
    assert displaced_classes(np.zeros((1, 1), int)) == displaced_classes(np.array([[0, 9], [3, 0]])) == {}
