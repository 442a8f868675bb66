"Annotations that would run code, fill the memory, leave their folder or deceive a terminal are refused."
# ruff: noqa: F811 (fixtures are imported, and arguments bear their names)
import json
import os
import re
import socket
import subprocess
import sys
import time
import warnings
from pathlib import Path

import fuzz
import numpy as np
import pytest
import torch
from fuzz import ALIASES, COCO, DARKNET, LAUGHS, LINES, OBJECT, TXT, XML, YAML, attempt, pixels, put, read_data
from hostile import PASSWORD, armed, coco, root, tried # noqa: F401

from cjm_yolox_pytorch.data.annotations import read_annotated, relabel
from cjm_yolox_pytorch.data.checks import check_splits
from cjm_yolox_pytorch.data.coco import read_coco
from cjm_yolox_pytorch.data.splits import find_splits
from cjm_yolox_pytorch.detection.detections import Detections
from cjm_yolox_pytorch.evaluation.dataset_figure import draw_dataset
from cjm_yolox_pytorch.evaluation.doctor import examine
from cjm_yolox_pytorch.evaluation.report import report


def secret(root): return root.parent/'secret'


WATCHED = {
    'does what no reader should: open': lambda root: secret(root).read_text(),
    'does what no reader should: open ': lambda root: Path('/etc/passwd').read_bytes(),
    'does what no reader should: open  ': lambda root: (root/'new').write_text(''),
    'does what no reader should: os.rename': lambda root: os.rename(root, root.parent/'other'),
    'does what no reader should: os.system': lambda root: os.system('exit'),
    'does what no reader should: socket': lambda root: socket.socket().connect_ex(('127.0.0.1', 9)),
    'takes too long': lambda root: [None for _ in iter(int, 1)],
    'takes too long ': lambda root: time.sleep(1000),
    'takes [0-9]+ MB': lambda root: np.ones(40_000_000),
    'ends in a traceback: KeyError': lambda root: {}['a'],
    'does not name the file': lambda root: Path('there_is_none').read_text(),
    'gives an error of [0-9]+ characters': lambda root: (root/('a/'*1600)).read_text(),
}


@pytest.mark.parametrize('what', WATCHED)
def test_watch_notices(what, tmp_path):
    (tmp_path/'data').mkdir()
    (tmp_path/'secret').write_text(PASSWORD)
    found, _, _ = attempt(WATCHED[what], tmp_path/'data', seconds=.05 if 'long' in what else 5, megabytes=100)
    assert re.match(what.strip(), found)


def raw(key, name, number): # A number as it stands in the file
    return json.dumps(coco(**{key: {name: '@'}})).replace('"@"', number)


def box(number): return raw('annotations', 'bbox', f'[{number}, 2, 3, 4]')
def placed(name): return json.dumps(coco(images=dict(file_name=name)))


DEEP = '['*100000
BAD_JSON = {
    'nested deeply': (DEEP, 'not JSON'),
    'nested deeply, and closed': (DEEP + ']'*100000, 'not JSON'),
    'nested in an annotation': (raw('annotations', 'bbox', '['*400 + ']'*400), 'bbox is not .left, top'),
    'nested in an id': (
        raw('annotations', 'id', '['*400 + ']'*400).replace('"image_id": 0', '"image_id": 9'),
        'image_id is not an id in images'),
    '1e999': (box('1e999'), 'bbox is not .left, top'),
    'NaN': (box('NaN'), 'bbox is not .left, top'),
    '1e99': (box('1e99'), 'numbers that are not finite'),
    '1e300': (box('1e300'), 'bbox is not .left, top'),
    'an area that overflows': (box('1').replace('1, 2, 3, 4', '1, 2, 1e200, 1e200'), 'numbers that are not finite'),
    'a corner that overflows': (box('3e38').replace('38, 2, 3', '38, 2, 3e38'), 'numbers that are not finite'),
    'a corner that overflows in fp64': (
        box('1.7e308, 2, 1.7e308, 4').replace(', 2, 3, 4', ''), 'bbox is not .left, top'),
    '10,000 digits': (box('9'*10000), 'not JSON'),
    '400 digits': (box('9'*400), 'bbox is not .left, top'),
    '400 digits beside a float': (box('0.5, ' + '9'*400), 'bbox is not .left, top'),
    'an endless area': (raw('annotations', 'area', '1e999'), 'area is not a number'),
    'an area of 400 digits': (raw('annotations', 'area', '9'*400), 'area is not a number'),
    'endless width': (raw('images', 'width', '1e999'), 'width is not a whole number of pixels'),
    'a width of 400 digits': (raw('images', 'width', '9'*400), 'width is not a whole number of pixels'),
    'a width of 10^12': (raw('images', 'width', '1000000000000'), 'impossible sizes: .*1e[+]12x10'),
    'a class of NaN': (raw('annotations', 'category_id', 'NaN'), 'category_id is not an id in categories'),
    'class names that clear the screen': (json.dumps(coco(categories=dict(name='\x1b[2Jant'))), 'control characters'),
    'half a character': (json.dumps(coco(categories=dict(name='\ud800'))), 'control characters'),
    'parent folder': (placed('../../etc/passwd'), 'leaves the folder'),
    'absolute': (placed('/etc/passwd'), 'is absolute'),
    'backslashes': (placed('..\\..\\secret'), 'leaves the folder'),
    'a share': (placed('\\\\host\\share\\c.png'), 'is absolute'),
    'newline': (placed('a.png\nerror: none'), r"a.png\\nerror: none.* control characters"),
    'NUL': (placed('a.png\0'), 'control characters'),
    'a long name': (placed('a'*100000), 'images are missing'),
    'a device': (placed('/dev/zero'), 'is absolute'),
}


@pytest.mark.parametrize('name', BAD_JSON)
def test_coco(name, root):
    text, message = BAD_JSON[name]
    pixels(root, 'images/a.png', 'images/b.png')
    put(root, {'annotations/instances_train.json': text.encode()})
    assert re.search(message, tried(read_data, root))


def test_coco_with_one_long_name(root):
    "An array of strings is as wide as its longest"
    images = [dict(COCO['images'][0], id=n, file_name=f'{n}.png') for n in range(20000)]
    images[-1]['file_name'] = 'a'*50000
    put(root, {'train.json': json.dumps(dict(COCO, images=images, annotations=[])).encode()})
    assert 'images are missing' in tried(lambda root: read_coco(root/'train.json', root), root, megabytes=200)


def test_coco_reads_half_a_million_boxes_in_one_image(root):
    pixels(root, 'a.png', 'b.png')
    rows = ','.join(f'{{"id":{n},"image_id":0,"category_id":1,"bbox":[{n % 9},1,2,3]}}' for n in range(5*10**5))
    put(root, {'train.json': json.dumps(dict(COCO, annotations='@')).replace('"@"', f'[{rows}]').encode()})
    counts = []
    def count(root): counts.append(len(read_coco(root/'train.json').labels))
    assert tried(count, root, seconds=30, megabytes=1000) is None and counts == [5*10**5]


MANY_BOXES = dict(yolo={'train/a.txt': '0 .5 .5 .5 .5\n'*10**5},
    voc={'a.xml': XML.replace('</annotation>', OBJECT.format('ant')*10**5 + '</annotation>')})


@pytest.mark.parametrize('files', MANY_BOXES.values(), ids=MANY_BOXES)
def test_readers_take_many_boxes_in_one_image(files, root):
    pixels(root, 'train/a.png' if 'train/a.txt' in files else 'a.png')
    put(root, {name: text.encode() for name, text in files.items()})
    assert tried(read_data, root, seconds=60, megabytes=1000) is None
    assert sum(len(read().labels) for read in find_splits(root).values()) >= 10**5


@pytest.mark.parametrize('classes', [19_999, 20_001])
def test_yolo_with_many_classes(classes, root):
    "Numbers that a file of 60 bytes may claim, and a limit"
    for split in ('train', 'val'):
        pixels(root, f'{split}/images/{split}.png')
        put(root, {f'{split}/labels/{split}.txt': b'0 .5 .5 .5 .5'})
    put(root, {'data.yaml': f'train: train/images\nval: val/images\nnc: {classes}'.encode()})
    def use(root):
        splits = {name: read() for name, read in find_splits(root).items()}
        check_splits(splits)
        a = relabel(splits['val'], splits['train'].names[::-1])
        found = Detections(torch.tensor([[0., 0., 9., 9.]]), torch.ones(1), torch.tensor([19_998]))
        assert a.labels.tolist() == [19_998] and report(a, [found])['in_use']
    refused = tried(use, root, seconds=5, megabytes=1000)
    if classes < 20_000: assert refused is None
    else: assert 'nc: 20001 is more than 20000 classes' in refused


@pytest.mark.parametrize('name', ['a$^$b', '$$', '$_$', '_a', 'a\\$^$'])
def test_class_names_that_look_like_formulas(name, root):
    "As matplotlib would take them; a name that begins with a line would be missing in its legends"
    file = f'{name}.png'.replace('\\', '') # Which stands for a folder
    pixels(root, file, 'b.png')
    doc = coco(images=dict(file_name=file), categories=dict(name=name))
    put(root, {'train.json': json.dumps(doc).encode()})
    (root/'out').mkdir()
    examined = examine(root)
    draw_dataset(examined.splits, examined.faults, 416, root/'out/doctor.png')
    (a,) = (read() for read in find_splits(root).values())
    boxes = torch.tensor([[1., 2., 4., 6.], [0., 0., 9., 9.]])
    found = [Detections(boxes, torch.tensor([.9, .8]), torch.tensor([0, 1]))]*2
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        report(a, found, root/'out')
    assert len(list((root/'out').glob('*.png'))) == 6


ENTITY = '<!DOCTYPE a [<!ENTITY x SYSTEM "file://{}">]>'
BAD_XML = {
    'billion laughs': LAUGHS + XML.replace('>ant<', '>&e9;<').partition('\n')[2],
    'quadratic': f'<!DOCTYPE a [<!ENTITY x "{"A"*100000}">]><annotation>{"&x;"*100000}</annotation>',
    'external entity': ENTITY + XML.replace('>ant<', '>&x;<').partition('\n')[2],
    'external subset': '<!DOCTYPE a SYSTEM "file://{}"><annotation/>',
    'parameter entity': '<!DOCTYPE a [<!ENTITY % x SYSTEM "file://{}"> %x;]><annotation/>',
}


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-16'])
@pytest.mark.parametrize('name', BAD_XML)
def test_voc(name, encoding, root):
    pixels(root, 'a.png')
    text = BAD_XML[name].replace('{}', str(root.parent/'secret'))
    put(root, {'a.xml': text.encode(encoding)})
    assert 'declares a document type or entities' in tried(read_data, root)


GREEDY_XML = [
    (XML.replace('<width>20', '<width>1e300'), 'impossible sizes'),
    (XML.replace('<xmin>1<', f'<xmin>{"9"*10000}<'), 'is not a number'),
    (XML.replace('<xmin>1<', '<xmin>-1e300<'), 'not finite'),
    ('<annotation>' + '<object>'*300000, 'not readable as XML'),
    ('<xi:include href="/etc/passwd"/>', 'not readable as XML'),
    (XML.replace('>ant<', '>an\u009bt<'), 'control characters'),
    (f'<{"a"*100000}/>', 'begins with <a'),
    (f'<?xml version="1.0" encoding="{"x"*5000}"?><annotation/>', 'not readable as XML: unknown encoding')]


@pytest.mark.parametrize('text, message', GREEDY_XML)
def test_voc_that_claims_too_much(text, message, root):
    pixels(root, 'a.png')
    put(root, {'a.xml': text.encode()})
    assert re.search(message, tried(read_data, root))


def test_voc_list_with_a_long_gap(root):
    "Once searched from each of its blanks"
    pixels(root, 'JPEGImages/a.png')
    put(root, {'Annotations/a.xml': XML.encode(), 'ImageSets/Main/train.txt': ('a' + ' '*10**6 + 'x').encode()})
    assert 'names that lack an XML file' in tried(read_data, root, seconds=2)


LABELS = {'labels/train/a.txt': TXT.encode(), 'labels/val/b.txt': TXT.encode()}
MERGES = 'a0: &a0 {k: v}\n' + ''.join(f'a{n + 1}: &a{n + 1} {{<<: [{", ".join([f"*a{n}"]*10)}]}}\n' for n in range(9))
BAD_YAML = {
    'object': ('train: !!python/object/apply:os.system ["touch canary"]', 'not YAML'),
    'name': ('train: !!python/name:os.system', 'not YAML'),
    'aliases': (ALIASES + 'train: images/train\nnames: *a9', 'aliases'),
    'merges': (MERGES + 'train: images/train', 'aliases'),
    'itself': ('train: images/train\nnames: &x [*x]', 'aliases'),
    'text again and again': (
        f'x: &a "{"y"*200000}"\ntrain: images/train\nnames: [{",".join(["*a"]*19000)}]', 'aliases'),
    'nested deeply': (f'train: {DEEP}', 'not YAML: maximum recursion'),
    'int': ('train: !!int ""', 'not YAML'),
    'bool': ('train: !!bool x', 'not YAML'),
    'date': ('train: !!timestamp x', 'not YAML'),
    'day': ('train: 2001-99-99', 'not YAML'),
    'large': ('train: ' + 'a'*600000, 'bytes, more than the [0-9]+ that a description of data'),
    'many classes': (YAML.replace('nc: 2', 'nc: 4000000000'), 'nc: 4000000000 is more than'),
    'many classes without names': ('train: images/train\nnc: 4000000000', 'nc: 4000000000 is more than'),
    'digits': ('train: images/train\nnc: 0x' + 'f'*100000, 'nc: .int too large to show. is more'),
    'squared': ("train: images/train\nnames: {'²': ant}", 'which is not a list'),
    'long path': (YAML.replace('images/train', 'a'*5000), 'is not in'),
    'long root': (YAML.replace('path: .', f'path: {"a"*5000}'), None),
    'NUL': (YAML.replace('images/train', r'"a\0"'), 'control characters'),
    'outside': (YAML.replace('images/train', '../../etc'), 'leaves the folder'),
}


@pytest.mark.parametrize('name', BAD_YAML)
def test_yolo(name, root):
    text, message = BAD_YAML[name]
    pixels(root, 'images/train/a.png', 'images/val/b.png')
    put(root, {'data.yaml': text.encode(), 'list.txt': LINES.encode(), **LABELS})
    found = tried(read_data, root)
    assert found is None if message is None else re.search(message, found)


def test_yolo_class_of_many_digits(root):
    pixels(root, 'a.png')
    put(root, {'a.txt': b'1e12 .5 .5 .1 .1'})
    assert 'class 1e+12 has no name' in tried(read_data, root)


def test_yolo_counts_wrong_lines(root):
    pixels(root, 'a.png')
    put(root, {'a.txt': b'x\n'*10**6, 'classes.txt': b'ant'})
    assert "lines that are not objects: 1000000, such as" in tried(read_data, root, seconds=20, megabytes=150)


# Folders

LINKED = {
    'a label file that is a pipe': (
        {'images/a.png': None, 'labels/a.txt': ('link', None), 'classes.txt': b'ant'}, 'any format|label file'),
    'a description that is a pipe': ({'data.yaml': ('link', None)}, 'does not look like any format'),
    'annotations that are a pipe': ({'annotations/train.json': ('link', None)}, 'does not look like'),
    'an export that is a pipe': ({'train/_annotations.coco.json': ('link', None)}, 'a pipe or a device'),
    'a list that never ends': (
        {'data.yaml': YAML.encode(), 'list.txt': ('link', '/dev/zero'), **LABELS}, 'a pipe or a device'),
    'XML that the system does not give out': (
        {'a.xml': ('link', '/proc/self/mem'), 'images/a.png': b''}, 'a.xml cannot be read'),
    'JSON that the system does not give out': ({'train.json': ('link', '/proc/self/mem')}, 'train.json cannot be read'),
    'annotations that are not there': ({'annotations/train.json': ('link', 'nowhere')}, 'No such file'),
    'annotations that lead to themselves': ({'annotations/train.json': ('link', 'train.json')}, 'symbolic links'),
    'Darknet without names': ({'obj.data': DARKNET.encode()}, 'list.txt|obj.names'),
}


@pytest.mark.parametrize('name', LINKED)
def test_links_and_pipes(name, root):
    files, message = LINKED[name]
    pixels(root, 'images/train/a.png', 'images/val/b.png')
    put(root, files)
    assert re.search(message, tried(read_data, root))


def test_links_are_followed_and_errors_reveal_nothing(root):
    "A data set may link to images elsewhere. What is no image stays unread"
    (root/'a.png').symlink_to('../secret')
    pixels(root, 'b.png')
    put(root, {'train.json': json.dumps(COCO).encode()})
    (a,) = [read() for read in find_splits(root).values()]
    with pytest.raises(OSError, match='a.png cannot be decoded as an image') as refused: read_annotated(a, 0)
    assert PASSWORD not in str(refused.value)


@pytest.mark.parametrize('inputs', [350, pytest.param(1400, marks=pytest.mark.slow)])
def test_a_part_of_the_fuzzing(inputs):
    done = subprocess.run([sys.executable, fuzz.__file__, '--inputs', str(inputs)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
