"What boxes are that look odd everywhere, by the whole set and not one by one."
from types import SimpleNamespace

import numpy as np
import pytest
from layouts import write
from PIL import Image

from cjm_yolox_pytorch.data.box_layouts import LAYOUTS, are_fractions, are_percents, box_layout
from cjm_yolox_pytorch.data.checks import _layout_faults, check
from cjm_yolox_pytorch.data.coco import read_coco
from cjm_yolox_pytorch.data.prepare import prepare_splits
from cjm_yolox_pytorch.data.shapes import write_shapes
from cjm_yolox_pytorch.data.splits import find_splits

WIDTH, HEIGHT = 160, 120
CORNERS, CORNERS_FOR_CENTER, SIZES, CENTERS, CENTER, CORNER, EXCHANGED = LAYOUTS


def true_boxes(n=60, width=WIDTH, height=HEIGHT, seed=0):
    "xyxy that fit, some at each border"
    rng = np.random.default_rng(seed)
    center, half = rng.uniform(0, 1, (n, 2))*[width, height], rng.uniform(3, 20, (n, 2))
    return np.hstack([center - half, center + half]).clip(0, [width, height]*2)


# What a file holds -> what the reader of its format makes of it; from true corners
COCO = {
    CORNERS: lambda x1, y1, x2, y2: (x1, y1, x2, y2),
    CENTER: lambda x1, y1, x2, y2: ((x1 + x2)/2, (y1 + y2)/2, x2 - x1, y2 - y1),
    EXCHANGED: lambda x1, y1, x2, y2: (y1, x1, y2 - y1, x2 - x1),
    '': lambda x1, y1, x2, y2: (x1, y1, x2 - x1, y2 - y1)}
VOC = {
    SIZES: lambda x1, y1, x2, y2: (x1, y1, x2 - x1, y2 - y1),
    CENTERS: lambda x1, y1, x2, y2: ((x1 + x2)/2, (y1 + y2)/2, x2 - x1, y2 - y1),
    EXCHANGED: lambda x1, y1, x2, y2: (y1, x1, y2, x2),
    '': lambda x1, y1, x2, y2: (x1, y1, x2, y2)}
YOLO = {
    CORNERS_FOR_CENTER: lambda x1, y1, x2, y2: (x1, y1, x2, y2),
    CORNER: lambda x1, y1, x2, y2: (x1, y1, x2 - x1, y2 - y1),
    '': lambda x1, y1, x2, y2: ((x1 + x2)/2, (y1 + y2)/2, x2 - x1, y2 - y1)}


def save_images(folder, count, size=(WIDTH, HEIGHT)):
    folder.mkdir(parents=True, exist_ok=True)
    for n in range(count): Image.new('RGB', size, (n, 99, 99)).save(folder/f'{n}.png')


def write_coco(root, rows, size=(WIDTH, HEIGHT), each=6):
    images = [dict(id=n, file_name=f'{n}.png', width=size[0], height=size[1]) for n in range(len(rows)//each)]
    objects = [dict(id=n, image_id=n//each, category_id=1, bbox=row) for n, row in enumerate(rows.tolist())]
    write(root/'train.json', dict(images=images, annotations=objects, categories=[dict(id=1, name='ant')]))
    save_images(root, len(images))


def write_voc(root, rows, each=6):
    save_images(root, len(rows)//each)
    size = f'<size><width>{WIDTH}</width><height>{HEIGHT}</height></size>'
    for n in range(len(rows)//each):
        names = 'xmin', 'ymin', 'xmax', 'ymax'
        boxes = [''.join(f'<{k}>{v:.3f}</{k}>' for k, v in zip(names, r)) for r in rows[n*each:(n + 1)*each]]
        objects = ''.join(f'<object><name>ant</name><bndbox>{box}</bndbox></object>' for box in boxes)
        write(root/f'{n}.xml', f'<annotation><filename>{n}.png</filename>{size}{objects}</annotation>')


def write_yolo(root, rows, each=6):
    save_images(root, len(rows)//each)
    fractions = rows/np.array([WIDTH, HEIGHT]*2)
    for n in range(len(rows)//each):
        lines = [f'0 {" ".join(f"{v:.6f}" for v in row)}' for row in fractions[n*each:(n + 1)*each]]
        write(root/f'{n}.txt', '\n'.join(lines))
    write(root/'classes.txt', 'ant\n')


CASES = [(kind, layout) for kind, found in dict(coco=COCO, voc=VOC, yolo=YOLO).items() for layout in found]


@pytest.mark.parametrize('kind, layout', CASES)
def test_box_layout_is_named(kind, layout, tmp_path):
    stored = dict(coco=COCO, voc=VOC, yolo=YOLO)[kind][layout]
    rows = np.stack(stored(*true_boxes().T), 1)
    dict(coco=write_coco, voc=write_voc, yolo=write_yolo)[kind](tmp_path, rows)
    (reader,) = find_splits(tmp_path, kind).values()
    try: faults = [f for f in check(reader()) if f.kind == 'other box layout']
    except ValueError as e: # VOC has negative sizes then
        assert kind == 'voc' and 'boxes of negative size: ' in str(e) and f'The numbers look like {layout}' in str(e)
        return
    assert [f.stops for f in faults] == [True]*bool(layout)
    if layout: assert f'the numbers look like {layout}. Convert' in faults[0].text


def test_box_layout_stops_training_whatever_is_allowed(tmp_path):
    write_coco(tmp_path, true_boxes())
    for allowed in (False, True):
        with pytest.raises(ValueError, match=f'the numbers look like {CORNERS}. Convert them'):
            prepare_splits(tmp_path, quiet=True, allow_missing=allowed)


def test_boxes_for_larger_images_stop(tmp_path):
    write_coco(tmp_path, np.stack(COCO[''](*true_boxes(width=640, height=480).T), 1))
    fault, = [f for f in check(read_coco(tmp_path/'train.json')) if f.kind == 'other box layout']
    assert fault.stops and 'they may be for images of another size' in fault.text


@pytest.mark.parametrize('layout', ['', CORNERS, CENTER])
def test_fractions_in_coco_are_named(layout, tmp_path):
    fractions = true_boxes()/np.array([WIDTH, HEIGHT]*2)
    write_coco(tmp_path, np.stack(COCO[layout](*fractions.T), 1))
    with pytest.raises(ValueError, match='no box ends beyond the (first|second) pixel') as error:
        read_coco(tmp_path/'train.json')
    assert layout in str(error.value)


def sizes_of(boxes, width=WIDTH, height=HEIGHT): return np.full((len(boxes), 2), (height, width))


@pytest.mark.parametrize('count', [0, 1, 2, 3, 10, 100, 1000])
def test_box_layout_is_silent_about_ordinary_boxes(count):
    "Those that fit, fill their image, end a little beyond it, or go on behind its border"
    for seed in range(20):
        boxes = true_boxes(count, seed=seed)
        sizes = sizes_of(boxes)
        limit = np.array([WIDTH, HEIGHT]*2)
        grown = np.random.default_rng(seed).uniform(0, 1, boxes.shape)*np.tile(boxes[:, 2:] - boxes[:, :2], 2)
        behind = boxes + grown*[-1, -1, 1, 1]*np.hstack([boxes[:, :2] <= 0, boxes[:, 2:] >= limit[2:]])
        full = np.tile([0., 0, WIDTH, HEIGHT], (count, 1))
        square = true_boxes(count, 120, 120, seed)
        for ordinary in (boxes, boxes.round(), behind, full, full + [-2, -2, 2, 2], full + [0, 0, 2, 2]):
            assert box_layout(ordinary, sizes) == '' and not are_fractions(ordinary, sizes)
        assert box_layout(square, sizes_of(square, 120, 120)) == ''


def test_box_layout_is_silent_about_a_few_slips():
    boxes = true_boxes(200)
    boxes[:4] += [300, 0, 300, 0]
    boxes[4:6, 2:] -= 40
    assert box_layout(boxes, sizes_of(boxes)) == ''


def test_box_layout_is_silent_about_drawn_shapes(tmp_path):
    write_shapes(tmp_path, train=60, val=2, test=0)
    for reader in find_splits(tmp_path).values(): assert not {f.kind for f in check(reader())} - {'rare class'}


@pytest.mark.parametrize('name', ['bccd', 'coco_ccby', 'ships'])
def test_box_layout_of_real_data(name, shared):
    "As it is, and as a COCO reader takes corners and centers"
    reader = find_splits(shared/'data'/name)
    a = next(iter(reader.values()))() if name == 'coco_ccby' else reader['train']()
    boxes, sizes = a.boxes.astype(float), a.sizes[a.image]
    half = (boxes[:, 2:] - boxes[:, :2])/2
    assert box_layout(boxes, sizes) == ''
    assert box_layout(np.hstack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]]), sizes) == CORNERS
    assert box_layout(boxes + np.hstack([half, half]), sizes) == CENTER
    assert box_layout(boxes - np.hstack([half, half]), sizes) == CORNER
    assert box_layout(boxes[:, [1, 0, 3, 2]], sizes) == EXCHANGED


@pytest.mark.parametrize('count, factor, told', [(20, 100, True), (19, 100, False), (20, 50, False), (20, 110, False)])
def test_percents_are_worth_a_look(count, factor, told):
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, .6, (count, 2))
    boxes = factor*np.hstack([corner, corner + .3])
    boxes[0, 2:] = .99*factor
    sizes = np.full((count, 2), 480)
    assert are_percents(boxes, sizes) == told and not are_percents(boxes, sizes*0 + 199)
    a = SimpleNamespace(boxes=boxes, image=np.arange(count), sizes=sizes, paths=np.array([]), dropped=[])
    assert [f.stops for f in _layout_faults(a)] == ([False] if told else [])
