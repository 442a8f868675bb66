"Pages of pictures: full rows, within the limits, whatever shapes the pictures have."
import numpy as np
import pytest
from PIL import Image

from cjm_yolox_pytorch.files.sheets import Panel, draw_sheet, split_rows

SHAPES = dict(usual=[4/3]*6, tall=[.5]*6, wide=[3.]*6, mixed=[.2, 9, 1.5, 1, .6, 2], one=[4/3], many=[.7, 1.5]*20)


@pytest.mark.parametrize('shapes', SHAPES)
def test_pages_have_no_gaps_and_are_not_too_high(shapes):
    "Pictures are red, so what is not red in their rows is the 8 pixels between them"
    sizes = []
    def draw(w, h): return sizes.append((w, h)) or Image.new('RGB', (w, h), 'red')
    page = draw_sheet([Panel(a, draw, f'{n}.jpg: missed: 3 cat') for n, a in enumerate(SHAPES[shapes])], ['Heading'])
    assert page.height <= 1600 and page.width <= 1200 and len(sizes) == len(SHAPES[shapes])
    red = (np.asarray(page) == [255, 0, 0]).all(axis=2)
    rows = red.sum(axis=1)
    assert rows[rows > 0].min() >= page.width - 8*(len(sizes) - 1) - 1 and rows.max() <= page.width
    assert (rows > 0).mean() > .6 and red[:, [0, -1]].any(axis=0).all()
    assert min(w for w, _ in sizes) >= 80


def test_rows_keep_the_order():
    for aspects in SHAPES.values():
        for count in (1, 2, 5, 60):
            rows = split_rows(aspects, count)
            assert sum(rows, []) == list(range(len(aspects))) and all(rows) and len(rows) <= count


def test_captions_are_cut_to_their_picture():
    page = draw_sheet([Panel(1, lambda w, h: Image.new('RGB', (w, h), 'red'), 'word '*3000 + 'x'*3000)], ['h'*900])
    assert page.height <= 1600
