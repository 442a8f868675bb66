"What is written for labeling tools is read back as it was, by us and by the tools' own converters."
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

from cjm_yolox_pytorch.data.annotations import build_annotations
from cjm_yolox_pytorch.data.label_files import WRITERS, label_files, write_files
from cjm_yolox_pytorch.data.splits import find_splits

BY_STEM = 'yolo', 'voc' # A file of labels for each image, named like it
MODES = dict(color='RGB', gray='L', deep='I;16', turned='RGB')


def write_image(path, width, height, mode):
    "An image that is shown as `width` x `height`; a turned one is stored lying on its side"
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    size = (height, width) if mode == 'turned' else (width, height)
    if mode == 'turned': exif[0x0112] = 6
    Image.new(MODES[mode], size).save(path, exif=exif)


def objects(a):
    "By image: its path, size, and the name and corners of each object, in order"
    for i, path in enumerate(a.paths):
        boxes, labels, _ = a.objects(i)
        yield path, a.sizes[i].tolist(), [a.names[label] for label in labels], boxes


def assert_same(found, expected):
    found, expected = ({path: rest for path, *rest in objects(a)} for a in (found, expected))
    assert found.keys() == expected.keys()
    for path, (size, names, boxes) in expected.items():
        assert found[path][:2] == [size, names]
        np.testing.assert_allclose(found[path][2], boxes, rtol=1e-7, atol=1e-9)


plain = st.characters(exclude_categories=['Cc', 'Cs', 'Cn', 'Co', 'Cf', 'Zl', 'Zp'], exclude_characters='/\\:')
stems = st.text(plain | st.sampled_from('a &<>"\'#%+.;,='), min_size=1, max_size=12).filter(
    lambda s: s == s.strip() and not s.startswith('.') and not s.endswith('.') and len(s.encode()) < 100)
class_names = st.lists(st.text(plain | st.sampled_from('a &<>"\'#:-'), min_size=1, max_size=9).filter(
    lambda s: s == s.strip()), min_size=1, max_size=3, unique=True)
folders = st.sampled_from(['', 'day 1/', 'day 1/images/', 'Ünïcode & Söhne/', 'labels/'])


@st.composite
def boxes_in(draw, width, height):
    "At the border, inside, or of fractions of a pixel"
    def ends(limit):
        low = draw(st.just(0) | st.integers(0, limit - 3) | st.floats(0, limit - 3, width=32))
        return low, draw(st.just(limit) | st.integers(int(low) + 3, limit) | st.floats(low + 2.5, limit))
    (x1, x2), (y1, y2) = ends(width), ends(height)
    return x1, y1, x2, y2


@st.composite
def datasets(draw):
    "Class names, and for each image its name, size, kind, and objects as label, corners and score"
    names = draw(class_names)
    images = []
    for name in draw(st.lists(st.tuples(folders, stems, st.sampled_from(['.png', '.PNG', '.tif'])), min_size=1,
                              max_size=4, unique_by=lambda parts: ''.join(parts).casefold())):
        size = draw(st.integers(20, 70)), draw(st.integers(20, 70))
        rows = draw(st.lists(st.tuples(st.integers(0, len(names) - 1), boxes_in(*size), st.floats(0, 1)), max_size=3))
        images.append((''.join(name), size, draw(st.sampled_from([*MODES])), rows))
    return names, images


def build(root, names, images, scored=True):
    for path, size, mode, _ in images: write_image(root/path, *size, mode)
    rows = [(i, label, *box, 0, 1, score) for i, (*_, found) in enumerate(images) for label, box, score in found]
    rows = [row[:6] if not scored else row for row in rows]
    sizes = [size[::-1] for _, size, *_ in images]
    return build_annotations('drawn', names, [path for path, *_ in images], sizes, rows)


@pytest.mark.parametrize('format', WRITERS)
@settings(max_examples=40)
@given(data=datasets(), scored=st.booleans())
def test_write_then_read_is_the_identity(format, data, scored):
    root = Path(tempfile.mkdtemp())
    try:
        a = build(root/'photos', *data, scored)
        try: files = label_files(format, dict(all=a))
        except ValueError as e:
            assert format in BY_STEM and ('share a label file' in str(e) or 'classes' in str(e))
            return
        write_files(root/'out', files)
        [(split, read)] = find_splits(root/'out', images=root/'photos').items()
        found = read()
        assert split == ('train' if format == 'yolo' else 'all') and not found.dropped + found.stops
        assert_same(found, replace(a, paths=np.array([str(root/'photos'/p) for p in a.paths])))
        if format in ('yolo', 'coco', 'cvat'): assert found.names == a.names
    finally: shutil.rmtree(root)
