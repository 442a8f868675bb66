"Names on pictures: apart from each other, inside the image, and in letters that can be read."
import numpy as np
import pytest
from PIL import Image

from cjm_yolox_pytorch.files import captions, drawing
from cjm_yolox_pytorch.files.captions import arrange_names, class_color, draw_named, font_and_text
from cjm_yolox_pytorch.files.captions import letter_sizes, place_names


def crowd(seed, hw, count, spread=.2):
    "Boxes around a few centers, some of them partly outside"
    rng = np.random.default_rng(seed)
    center = rng.uniform(0, 1, (3, 2))[rng.integers(3, size=count)] + rng.normal(0, spread, (count, 2))
    side = rng.uniform(.02, .4, (count, 2))
    return np.concatenate([center - side/2, center + side/2], axis=1)*np.tile(hw[::-1], 2)


def rectangles(places, rooms):
    return np.array([(*p, p[0] + w, p[1] + h) for p, (w, h) in zip(places, rooms) if p]).reshape(-1, 4)


def assert_apart(boxes, hw):
    inside = (boxes >= 0).all() and (boxes <= np.tile(hw[::-1], 2)).all()
    low, high = np.maximum(boxes[:, None, :2], boxes[:, :2]), np.minimum(boxes[:, None, 2:], boxes[:, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=2)
    assert inside and not (shared*(1 - np.eye(len(boxes)))).any()


@pytest.mark.parametrize('seed', range(12))
@pytest.mark.parametrize('hw', [(480, 640), (1000, 200), (3000, 4000), (200, 200)])
def test_names_are_apart_and_inside(seed, hw):
    count = [1, 8, 40, 120][seed % 4]
    boxes = crowd(seed, hw, count)
    texts = [f'{"a name that is rather long"[:3 + n % 24]} 0.{n:02}' for n in range(count)]
    size, places, note = arrange_names(boxes, texts, hw, letter_sizes(hw))
    rooms = [captions._measure(text, size) for text in texts]
    if note: places, rooms = [*places, note[1]], [*rooms, captions._measure(note[0], size)]
    assert_apart(rectangles(places, rooms), hw)
    left_out = places[:count].count(None)
    assert note is None if not left_out else note[0] == f'+{left_out} unnamed'


def test_the_first_boxes_are_named():
    places = place_names([[10, 10, 30, 30]]*50, [(60, 10)]*50, (100, 100))
    assert None not in places[:4] and places[-1] is None
    assert place_names([[0, 0, 9, 9]], [(101, 5)], (100, 100)) == [None] # Too wide for the image


def test_names_are_where_their_boxes_are():
    for box, (x, y) in zip(boxes := crowd(1, (480, 640), 20, .02), place_names(boxes, [(50, 12)]*20, (480, 640))):
        x1, y1, x2, y2 = box.clip(0, [640, 480, 640, 480])
        assert x <= x2 + 1 and x + 50 >= x1 - 1 and y <= y2 + 1 and y + 12 >= y1 - 1


def test_letters_become_smaller_before_names_are_left_out():
    boxes = crowd(0, (480, 640), 60)
    texts = [f'person 0.{n}' for n in range(60)]
    assert arrange_names(boxes[:3], texts[:3], (480, 640), letter_sizes((480, 640)))[0] == 12
    assert arrange_names(boxes, texts, (480, 640), letter_sizes((480, 640)))[0] < 12


@pytest.mark.parametrize('color', ['black', 'white', 'tab:olive', '#777777', *map(class_color, range(10))])
def test_letters_have_contrast(color):
    light, dark = sorted(drawing._luminance(c) + .05 for c in (color, drawing.ink_on(color)))[::-1]
    assert light/dark > 4.5


def test_no_letter_is_an_empty_box(monkeypatch):
    assert font_and_text('Å 0.9', 12)[1] == 'Å 0.9'
    monkeypatch.setattr(captions, '_letters', lambda: {'a.ttf': {*map(ord, 'ab 猫')}, 'b.ttf': {*map(ord, 'a 猫犬')}})
    monkeypatch.setattr(captions, '_load_font', lambda file, size: file)
    assert font_and_text('ab', 9) == ('a.ttf', 'ab')
    assert font_and_text('犬', 9) == ('b.ttf', '犬')
    assert font_and_text('犬猫가', 9) == ('b.ttf', r'犬猫\uac00')


@pytest.mark.parametrize('size', [(1, 1), (32, 32), (2000, 3), (3, 2000), (199, 10)])
def test_odd_pictures_are_drawn(size):
    image = Image.new('RGB', size, 'gray')
    drawn = draw_named(image, [[0, 0, *size]]*3, ['猫 0.9', '', '\U0001f431'], [*map(class_color, range(3))])
    factor = drawn.width//size[0]
    assert drawn.size == (size[0]*factor, size[1]*factor) and max(drawn.size) >= 200
    assert image.getpixel((0, 0)) == (128, 128, 128) # As it was


def test_long_names_use_the_room_of_wide_pictures(monkeypatch):
    texts, name = [], 'star 0.40, is square, poorly localized'
    monkeypatch.setattr(captions, '_write', lambda draw, text, *_: texts.append(text))
    for width in (600, 900): draw_named(Image.new('RGB', (width, 400)), [[0, 60, 99, 99]], [name], ['red'], [14])
    assert texts == [name[:35] + '…', name]
