"Tables and figures, also of odd data."
import json

import numpy as np
import pytest
from evaluation_samples import FIGURES, detections, tiny_split
from PIL import Image

from cjm_yolox_pytorch.evaluation.metrics import BACKGROUND_NAME, MATCH_KINDS
from cjm_yolox_pytorch.evaluation.report import report, table

BOX = (1, 1, 9, 9, 0)
NAMES = ['cat', 'a very long name of a class of things that somebody wanted to find']
ODD = dict( # Sizes, objects, detections and class names
    nothing_found=([(20, 30)], [[BOX]], [[]], NAMES[:1]),
    nothing_there=([(20, 30)], [[]], [[(*BOX, .9)]], NAMES),
    neither=([(20, 30)], [[]], [[]], NAMES),
    tall_wide_and_a_point=(
        [(300, 20), (20, 300), (1, 1)], [[BOX], [(0, 0, 300, 20, 1)], []], [[(1, 1, 9, 9, 1, .9)], [], []], NAMES))


@pytest.mark.parametrize('name', ODD)
def test_report_of_odd_data(name, tmp_path):
    sizes, objects, rows, names = ODD[name]
    metrics = report(tiny_split(tmp_path, sizes, objects, names), list(map(detections, rows)), tmp_path/'out')
    assert {p.name for p in (tmp_path/'out').iterdir()} == FIGURES | {'metrics.json'}
    assert max(map(len, table(metrics))) <= 80 and not any('nan' in line for line in table(metrics))
    json.loads((tmp_path/'out/metrics.json').read_text(), parse_constant=pytest.fail)


def test_report_counts_mistakes(tmp_path):
    sizes, objects, rows, names = ODD['tall_wide_and_a_point']
    metrics = report(tiny_split(tmp_path, sizes, objects, names), list(map(detections, rows)))
    use = metrics['in_use']
    assert {k: n for k, n in use.items() if k in (*MATCH_KINDS, 'missed') and n} == dict(wrong_class=1, missed=1)
    assert metrics['confusion'] == {'cat': {names[1]: 1}, names[1]: {BACKGROUND_NAME: 1}}
    assert '0 correct, 1 wrong class, 1 missed' in table(metrics)


def test_table_takes_any_class_name(tmp_path):
    names = ['{AP}', '{', '%s', '猫']
    split = tiny_split(tmp_path, [(20, 30)], [[BOX, (11, 1, 19, 9, 3)]], names)
    lines = table(report(split, [detections([(1, 1, 9, 9, 1, .9), (11, 1, 19, 9, 0, .8)])]))
    assert 'most often confused: {AP} taken for { (1), 猫 taken for {AP} (1)' in lines


def test_report_shows_the_worst_images_first(tmp_path):
    there = [BOX, (11, 1, 19, 9, 0)]
    split = tiny_split(tmp_path, [(20, 30)]*4, [there]*4, ['cat'])
    good = [(*row, .9) for row in there]
    report(split, list(map(detections, [good, good[:1], [], [*good, (1, 11, 9, 19, 0, .9)]])), tmp_path/'out')
    pixels = np.array(Image.open(tmp_path/'out/worst.png').convert('RGB'))
    # Each image has its own grey; the first row of pixels with much of it
    places = [np.argwhere((pixels == 60 + 40*i).all(axis=2)) for i in range(4)]
    assert sorted(range(1, 4), key=lambda i: (np.median(places[i], axis=0)//99).tolist()) == [2, 1, 3]
    assert len(places[0]) < len(places[1])/10 # Without mistakes, it is left out


def test_report_tells_of_classes_in_another_order(tmp_path):
    "In metrics.json and in the table, with the names that would fit"
    there = [[(10*n + 1, 1, 10*n + 9, 9, n % 3) for n in range(9)]]*2
    split = tiny_split(tmp_path, [(20, 99)]*2, there, ['cat', 'dog', 'cow'])
    found = [detections([(*box, [1, 0, 2][label], .9) for *box, label in rows]) for rows in there]
    metrics = report(split, found, tmp_path/'out')
    assert json.loads((tmp_path/'out/metrics.json').read_text())['class_order'] == {'cat': 'dog', 'dog': 'cat'}
    lines = ' '.join(' '.join(table(metrics)).split())
    assert 'try:' not in lines # More images would not help
    assert 'may be in the wrong order: cat is detected as dog, dog is detected as cat' in lines
    assert 'names that would fit the weights: dog,cat,cow' in lines
    metrics['confusion']['dog']['cat'] += 1 # The most frequent one comes first
    assert 'wrong order: dog is detected as cat, cat is detected as dog' in ' '.join(' '.join(table(metrics)).split())
    right = [detections([(*row, .9) for row in rows]) for rows in there]
    assert 'class_order' not in report(split, right) and 'order' not in ' '.join(table(report(split, right)))
