"Scores to use: equal to what the report counts, chosen with care, and never reported where they were chosen."
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from evaluation_samples import detections, random_detections, random_split

from cjm_yolox_pytorch.data.splits import read_split
from cjm_yolox_pytorch.evaluation.evaluate import yolox_eval
from cjm_yolox_pytorch.evaluation.metrics import Evaluation, confusion_matrix, match_detections
from cjm_yolox_pytorch.evaluation.thresholds import (
    SCORES, Threshold, choose_thresholds, class_scores, find_thresholds, images_fingerprint, match_by_score,
    threshold_lines)
from cjm_yolox_pytorch.files.checkpoints import Weights, load_weights, save_weights
from cjm_yolox_pytorch.model import NORM_STATS, build_model


def counted(truth, found, conf):
    "Precision, recall and F1 by class and of all, from a matching at this very score"
    matrix = confusion_matrix(truth, found, [match_detections(*truth.objects(i), d, conf) for i, d in enumerate(found)])
    parts = matrix.diagonal()[:-1], matrix[:, :-1].sum(axis=0), truth.counts
    right, found, objects = (np.append(n, n.sum()) for n in parts)
    with np.errstate(invalid='ignore'): return right/found, right/objects, 2*right/(found + objects)


@pytest.mark.parametrize('crowds', [0, .3])
@pytest.mark.parametrize('decimals', [1, 6]) # Equal scores, and different ones
def test_rates_are_those_of_a_matching_at_each_score(crowds, decimals):
    truth = random_split(2, 4, images=12, crowds=crowds)
    found = random_detections(truth, 3, decimals=decimals, crowded=0)
    rates = match_by_score(truth, found).rates()
    for k in [0, 99, 249, 250, 500, 699, 700, 998]:
        for ours, wanted in zip(rates, counted(truth, found, SCORES[k])):
            np.testing.assert_array_equal(ours[:, k], wanted, err_msg=f'score > {SCORES[k]}')


def test_detection_in_a_crowd_of_its_class_takes_no_object_of_another():
    "It counted as the wrong class before, unless a detection with a lower score took the object"
    boxes = np.array([[0, 0, 100, 100], [10, 10, 30, 30]], dtype=np.float32)
    there = boxes, np.array([0, 1]), np.array([True, False])
    result = match_detections(*there, detections([(10, 10, 30, 30, 0, .9)]))
    assert not result.wrong_class.any() and not result.false_positive.any() and result.missed.tolist() == [False, True]


def test_best_score_is_that_of_trying_all():
    truth = random_split(4, 3, images=15)
    found = random_detections(truth, 5)
    best, _, _, f1 = find_thresholds(match_by_score(truth, found), resamples=2)[0], *counted(truth, found, .25)
    tried = [counted(truth, found, s)[2][-1] for s in SCORES]
    assert best.f1 == max(tried) == tried[round(best.score*1000) - 1] >= f1[-1]


def test_least_score_with_a_precision_is_that_of_trying_all():
    truth = random_split(4, 3, images=15)
    found = random_detections(truth, 5)
    wanted = np.nanmax([counted(truth, found, s)[0][-1] for s in SCORES[:700]]) - .02
    least = find_thresholds(match_by_score(truth, found), precision=wanted, resamples=2)[0]
    assert least.score == next(s for s in SCORES if counted(truth, found, s)[0][-1] >= wanted)
    none = find_thresholds(match_by_score(truth, detections_of_nothing(truth)), precision=.5, resamples=2)
    assert {t.score for t in none} == {1.} and 'none' in threshold_lines(none)[1]


def detections_of_nothing(truth): return [detections([])]*len(truth)


def test_intervals_are_the_same_each_time_and_hold_the_score():
    truth = random_split(6, 3, images=40)
    matches = match_by_score(truth, random_detections(truth, 7))
    first, again, other = (find_thresholds(matches, resamples=60, seed=s) for s in (0, 0, 1))
    assert first == again != other
    assert first[0].low <= first[0].score <= first[0].high


def test_lines_fit_a_terminal():
    truth = random_split(6, 3, images=12)
    truth.names = [f'a class with a long name, number {n}' for n in range(3)]
    found = find_thresholds(match_by_score(truth, random_detections(truth, 7)), resamples=5)
    assert max(map(len, threshold_lines(found))) <= 80 and len(threshold_lines(found)) == 5


@pytest.mark.parametrize('changes, own', [
    ({}, True), (dict(images=9), False), (dict(high=.72), False), (dict(low=.45, high=.55, score=.5), False),
    (dict(score=1., low=1., high=1., images=0), False), (dict(score=1., low=1., high=1.), False)],
    ids=['clear', 'few', 'wide', 'same', 'none', 'never correct'])
def test_class_has_its_own_score_only_if_that_is_clear(changes, own):
    whole = Threshold('all', .5, .45, .55, .8, .8, .8, 300, 90)
    one = replace(Threshold('rare', .61, .51, .7, .8, .8, .8, 40, 30), **changes)
    assert class_scores([whole, one]) == [one.score if own else .5]
    marked = [line.endswith(' own') for line in threshold_lines([whole, one, one], mark=True)]
    assert marked == [False, False, own, own]
    assert max(map(len, threshold_lines([whole, one, one], mark=True))) <= 80


def test_too_few_images_choose_nothing():
    truth = random_split(8, 2, images=30, crowds=0)
    found = random_detections(truth, 9)
    some = np.flatnonzero(np.diff(truth.starts))[:9]
    assert choose_thresholds(truth.take(some), [found[i] for i in some]) is None
    assert choose_thresholds(truth, detections_of_nothing(truth)) is None
    assert len(choose_thresholds(truth, found)['classes']) == 2


def test_scores_by_class_are_those_of_the_report():
    truth = random_split(2, 3, images=12)
    found = random_detections(truth, 3)
    conf = [.2, .5, .8]
    metrics = Evaluation(truth, found, conf).metrics
    matches = match_by_score(truth, found)
    for c, (name, score) in enumerate(zip(truth.names, conf)):
        precision, recall, _ = (rate[c, round(score*1000) - 1] for rate in matches.rates())
        assert (metrics['classes'][name]['precision'], metrics['classes'][name]['recall']) == (precision, recall)
    assert metrics['in_use']['score'] == dict(zip(truth.names, conf))


# ---- In the command

@pytest.fixture(scope='module')
def shapes(draw_shapes):
    "Drawn shapes, and weights with thresholds from the validation split"
    folder = draw_shapes(train=2, val=6, test=6, size=64)
    torch.manual_seed(0)
    model, val = build_model('yolox_nano', 5, pretrained=False), read_split(folder, 'val')
    for conv in (*model.bbox_head.multi_level_conv_obj, *model.bbox_head.multi_level_conv_cls):
        conv.bias.data.fill_(1.)
    chosen = dict(score=.3, classes=[.3]*5, split='val', fingerprint=images_fingerprint(val))
    weights = Weights(model.state_dict(), 'yolox_nano', 5, **NORM_STATS['yolox_nano'], names=val.names, size=64,
        notes=dict(thresholds=chosen))
    save_weights(weights, folder/'nano.safetensors')
    return folder


@pytest.fixture
def measure(shapes, tmp_path, monkeypatch):
    monkeypatch.setattr('cjm_yolox_pytorch.evaluation.report.save_figure', lambda fig, path: None)
    monkeypatch.setattr('cjm_yolox_pytorch.evaluation.thresholds.save_figure', lambda fig, path: None)
    def run(**options):
        yolox_eval(str(shapes/'nano.safetensors'), str(shapes), out=str(tmp_path), device='cpu', **options)
        return json.loads((tmp_path/'metrics.json').read_text())
    return run


def test_eval_reports_at_the_scores_of_the_weights(measure, capsys):
    assert measure()['in_use']['score'] == .3
    assert 'metrics are at score > 0.3, which had the best F1 on val' in capsys.readouterr().out
    assert measure(working_conf=.6)['in_use']['score'] == .6
    assert 'best F1' not in capsys.readouterr().out


def test_eval_does_not_report_scores_where_they_were_chosen(measure, shapes, capsys):
    assert measure(split='val')['in_use']['score'] == .25
    assert 'the score in the weights was chosen on these images' in capsys.readouterr().out
    names = 'a,b,c,d,e' # A new name for a class does not hide it
    with pytest.raises(ValueError, match='are not among'): measure(split='val', names=names)
    swapped = ','.join(reversed(read_split(shapes, 'val').names))
    assert measure(split='val', names=swapped)['in_use']['score'] == .25


def test_corrected_labels_and_another_order_are_the_same_images():
    truth = random_split(8, 2, images=6)
    other = truth.take([5, 3, 1, 0, 2, 4])
    other = replace(other, boxes=other.boxes + 1, labels=1 - other.labels, names=['x', 'y'])
    assert images_fingerprint(other) == images_fingerprint(truth) != images_fingerprint(truth.take(range(5)))


def test_eval_tells_its_own_best_score_only_if_asked(measure, capsys):
    measure()
    assert 'resamples' not in capsys.readouterr().out
    measure(thresholds=True, precision=.01)
    printed = capsys.readouterr().out
    assert 'the score with the best F1 on test (200 resamples)' in printed
    assert 'the lowest score with precision 0.01 on test' in printed
    assert printed.count('all classes') == 2
    assert all(len(line) <= 80 for line in printed.splitlines() if 'written to' not in line)
    with pytest.raises(ValueError, match='precision=90: must be from 0 to 1'): measure(precision=90)
    measure(precision=0)
    assert 'the lowest score with precision 0 on test' in capsys.readouterr().out
    with pytest.raises(ValueError, match='precision=nan'): measure(precision=float('nan'))


def test_eval_of_some_classes_counts_only_these(measure, shapes, tmp_path):
    whole, some = measure(), measure(classes='star,disc')
    counts = {n: c['objects'] for n, c in some['classes'].items()}
    assert counts == {n: c['objects'] if n in ('star', 'disc') else 0 for n, c in whole['classes'].items()}
    names = read_split(shapes, 'val').names
    found = json.loads((tmp_path/'detections.json').read_text())
    assert {names[r['category_id']] for r in found} <= {'star', 'disc'}
    for name in ('star', 'disc'): assert some['classes'][name]['AP'] == whole['classes'][name]['AP']


def test_unknown_class_is_an_error_with_similar_names(measure):
    message = r"'Stars' \(similar: star.*\). They have disc, triangle"
    with pytest.raises(ValueError, match=message): measure(classes='Stars')


@pytest.mark.parametrize('odd', [.4, dict(score=.4), dict(score=.4, classes=[.4]*4), dict(score=4., classes=[.4]*5)])
def test_odd_thresholds_in_a_file_are_an_error(shapes, tmp_path, odd):
    weights = load_weights(shapes/'nano.safetensors')
    save_weights(replace(weights, notes=dict(thresholds=odd)), tmp_path/'odd.safetensors')
    with pytest.raises(ValueError, match='odd.safetensors: bad metadata: .*thresholds 0 to 1'):
        load_weights(tmp_path/'odd.safetensors')
