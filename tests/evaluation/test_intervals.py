"Intervals of AP: the same AP as the official program, also of repeated images, and honest ends."
import time

import numpy as np
import pytest
from evaluation_samples import detections, random_detections, random_split, tiny_split

from cjm_yolox_pytorch.evaluation.intervals import (
    RankedMatches, Ranking, ap_intervals, ap_samples, interval, rank_matches)
from cjm_yolox_pytorch.evaluation.metrics import IOU_THRESHOLDS, average_precision
from cjm_yolox_pytorch.evaluation.report import report, table


@pytest.mark.parametrize('crowds', [0, .2])
@pytest.mark.parametrize('case', [dict(), dict(decimals=1), dict(crowded=150), dict(spread=0)])
@pytest.mark.parametrize('classes', [3, 80])
def test_average_precision_is_that_of_the_official_program(classes, case, crowds):
    truth = random_split(3, classes, crowds=crowds)
    found = random_detections(truth, 4, **case)
    exact = average_precision(truth, found)['classes']
    by_class = rank_matches(truth, found).average_precision()
    for rows, key in ((by_class.mean(axis=0), 'AP'), (by_class[0], 'AP50'), (by_class[5], 'AP75')):
        np.testing.assert_allclose(rows, [exact[n][key] for n in truth.names], rtol=0, atol=1e-9)


@pytest.mark.parametrize('crowds', [0, .2])
def test_repeated_images_are_like_copies(crowds):
    truth = random_split(5, 4, crowds=crowds)
    found = random_detections(truth, 6)
    drawn = np.random.default_rng(0).integers(len(truth), size=len(truth))
    repeats = np.bincount(drawn, minlength=len(truth))
    exact = average_precision(truth.take(np.sort(drawn)), [found[i] for i in np.sort(drawn)])['classes']
    by_class = rank_matches(truth, found).average_precision(repeats).mean(axis=0)
    np.testing.assert_allclose(by_class, [exact[n]['AP'] for n in truth.names], rtol=0, atol=1e-9)


def test_interval_is_the_basic_one():
    samples = np.array([.6, *np.linspace(.55, .75, 101)])
    np.testing.assert_allclose(interval(samples), [1.2 - .74, 1.2 - .56])
    assert interval(np.array([.02, .01, .3])) == [0, pytest.approx(.04 - .0245)]
    assert np.isnan(interval(np.array([np.nan, .5]))).all()
    assert interval(np.array([.5, np.nan, .5, .5])) == [.5, .5]


def test_intervals_are_wider_on_fewer_images_and_the_same_each_time():
    truth = random_split(7, 3, images=80)
    found = random_detections(truth, 8)
    many = ap_intervals(truth, found)
    assert many == ap_intervals(truth, found)
    ap = average_precision(truth, found)['AP']
    assert many['AP'][0] < ap < many['AP'][1]
    some = [range(n, n + 10) for n in range(0, 80, 10)]
    few = np.array([ap_intervals(truth.take(images), [found[i] for i in images])['AP'] for images in some])
    assert np.diff(few).mean() > 1.5*(many['AP'][1] - many['AP'][0])


def test_report_shows_intervals(tmp_path):
    there = [[(1, 1, 9, 9, 0)]]*4 + [[(1, 1, 9, 9, 0), (11, 1, 19, 9, 2)]]
    truth = tiny_split(tmp_path, [(20, 30)]*5, there, ['cat', 'dog', 'cow'])
    metrics = report(truth, [detections([(1, 1, 9, 9, 0, .9)]), *[detections([])]*4], tmp_path/'out')
    assert metrics['intervals']['images'] == 5
    assert np.isnan(metrics['intervals']['classes']['cow']).all() # On a single image
    lines = table(metrics)
    low, high = metrics['intervals']['classes']['cat']
    assert f'{low:.2f}-{high:.2f}' in lines[1] and lines[1].split()[0] == 'cat'
    assert any('over 5 images, too narrow' in line for line in lines)
    assert '"dog": [\n    null,\n    null\n   ]' in (tmp_path/'out/metrics.json').read_text()


@pytest.mark.slow
def test_five_thousand_images_take_seconds():
    "Two in CPU time on the machine where it was measured; resamples do not match again"
    rng = np.random.default_rng(0)
    images, C, D, M = 5000, 80, 500_000, 36_000
    label, near = np.sort(rng.integers(C, size=D)), rng.uniform(size=D) < .07
    best = rng.uniform(.5, 1, D)
    rankings = [Ranking(label, near & (best >= t), np.zeros(D, dtype=bool)) for t in IOU_THRESHOLDS]
    names = [str(c) for c in range(C)]
    objects = rng.integers((images, C), size=(M, 2)).T
    matches = RankedMatches(names, images, rng.integers(images, size=D), rankings, *objects)
    start = time.process_time()
    ap_samples(matches)
    assert time.process_time() - start < 6
