"Which images are shown, what is said about them, and that pages can be drawn of anything."
import numpy as np
import pytest
from evaluation_samples import detections, random_detections, random_split, tiny_split
from PIL import Image

from cjm_yolox_pytorch.evaluation import mistakes
from cjm_yolox_pytorch.evaluation.metrics import Evaluation
from cjm_yolox_pytorch.evaluation.mistakes import (choose_examples, cover_classes, describe_mistakes, show_detections,
    show_worst)

HERE, THERE = (1, 1, 19, 19), (30, 1, 49, 19)
NAMES = ['cat', 'dog', 'cow']


def evaluate(folder, objects, found, names=NAMES, size=(40, 60)):
    return Evaluation(tiny_split(folder, [size]*len(objects), objects, names), [detections(rows) for rows in found])


def describe(e, i=0):
    return describe_mistakes(e.annotations.names, e.annotations.objects(i)[1], e.detections[i], e.results[i])


@pytest.mark.parametrize('objects, found, said', [
    ([(*HERE, 0)], [], 'missed: 1 cat'),
    ([(*HERE, 0)], [(*HERE, 1, .9)], 'wrong class: 1 cat taken for dog'),
    ([], [(*HERE, 1, .9), (*THERE, 1, .8)], 'on background: 2 dog'),
    ([(*HERE, 0), (*THERE, 1)], [(*HERE, 0, .9), (*THERE, 1, .9)], 'nothing wrong: 2 objects found'),
    ([(*HERE, 0)], [(1, 1, 19, 9, 0, .9)], 'poorly localized: 1 cat'),
    ([(*HERE, 0)], [(1, 1, 19, 9, 1, .9)], 'missed: 1 cat; wrong class and poorly localized: 1 cat taken for dog'),
    ([(*HERE, 0)], [(*HERE, 0, .9), (*HERE, 0, .8)], 'duplicate: 1 cat'),
    ([], [], 'nothing wrong: 0 objects found'),
    ([(*HERE, 0)], [(*HERE, 0, .9), (*THERE, 2, .1)], 'nothing wrong: 1 object found')])
def test_captions_say_what_is_wrong(tmp_path, objects, found, said):
    assert describe(evaluate(tmp_path, [objects], [found])) == said


def test_long_captions_name_the_most_frequent_classes(tmp_path):
    names = [f'class {n}' for n in range(9)]
    objects = [(2*n, 1, 2*n + 2, 9, n) for n in range(9)] + [(40, 1, 50, 9, 8)]
    assert describe(evaluate(tmp_path, [objects], [[]], names)) == 'missed: 2 class 8, 1 class 0, 1 class 1, 6 others'


@pytest.mark.parametrize('seed', range(5))
def test_every_class_is_shown_and_good_and_bad_images(seed):
    a = random_split(seed, classes=12)
    e = Evaluation(a, random_detections(a, seed, spread=.02))
    chosen = choose_examples(a, e.results)
    assert chosen == sorted(set(chosen)) and len(chosen) >= 6
    shown = {c for i in chosen for c in a.objects(i)[1][~a.objects(i)[2]]}
    assert shown == {*a.labels[~a.crowd]} and chosen == choose_examples(a, e.results)
    covered = {c for i in cover_classes(a, 40) for c in a.objects(i)[1][~a.objects(i)[2]]}
    assert covered == shown and len(cover_classes(a, 1)) == 1
    good = [r.correct.any() and not r.mistakes for r in e.results]
    assert any(good[i] for i in chosen) == any(good) and any(e.results[i].mistakes for i in chosen)


def test_good_ones_are_shown_among_many_bad_ones(tmp_path):
    e = evaluate(tmp_path, [[(*HERE, 0)]]*5, [[]]*3 + [[(*HERE, 0, .9)]] + [[]])
    chosen = choose_examples(e.annotations, e.results, least=2)
    assert 3 in chosen and len(chosen) == 2 and cover_classes(e.annotations, 40) == [0]
    assert choose_examples(e.annotations, e.results, least=1) == [0, 3] # Though one has every class
    assert choose_examples(e.annotations.take([0]), e.results[:1]) == [0]


def test_classes_that_are_not_shown_are_named(tmp_path):
    e = evaluate(tmp_path, [[(*HERE, n)] for n in range(3)], [[]]*3)
    assert 'Classes that are not shown: cat, dog' in [*mistakes._page_heading(e.annotations, [2], .25)]
    assert len([*mistakes._page_heading(e.annotations, [0, 1, 2], .25)]) == 1


@pytest.mark.parametrize('size', [(32, 32), (900, 20), (1, 1), (300, 3000)])
@pytest.mark.parametrize('images', [1, 5])
def test_pages_of_odd_images(tmp_path, size, images):
    box = (0, 0, size[1], size[0])
    e = evaluate(tmp_path, [[(*box, 0)]]*images, [[(*box, 1, .9)]]*images, ['猫', '$a^b$\n'], size)
    show_worst(e, tmp_path/'worst.png')
    show_detections(e.annotations, e.detections, tmp_path/'detections.png')
    for name in ('worst.png', 'detections.png'):
        with Image.open(tmp_path/name) as page: assert max(page.size) <= 1600 and np.asarray(page).std() > 5


def test_nothing_wrong_is_said(tmp_path):
    e = evaluate(tmp_path, [[(*HERE, 0)]], [[(*HERE, 0, .9)]])
    show_worst(e, tmp_path/'worst.png')
    with Image.open(tmp_path/'worst.png') as page: assert page.height < 100
