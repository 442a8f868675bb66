"Famous attacks by name, a part of the fuzzing (tests/fuzz.py), and that a million boxes are no attack."
import codecs
import io
import json
import os
import pickle
import re
import signal
import socket
import struct
import subprocess
import sys
import time
import warnings
import zipfile
import zlib
from collections import OrderedDict
from pathlib import Path

import fuzz
import numpy as np
import pytest
import torch
from fuzz import ALIASES, COCO, DARKNET, LAUGHS, LINES, OBJECT, TXT, XML, YAML, Mischief, attempt, network, pixels, put, read_data, read_weights
from PIL import Image
from safetensors.torch import save

from cjm_yolox_pytorch.files.checkpoints import _CLASSES, load_weights, save_weights
from cjm_yolox_pytorch.files.families import STEM
from cjm_yolox_pytorch.files.pickles import read_file
from cjm_yolox_pytorch.data.annotations import read_annotated, relabel
from cjm_yolox_pytorch.data.checks import check_splits
from cjm_yolox_pytorch.data.coco import read_coco
from cjm_yolox_pytorch.data.splits import find_splits
from cjm_yolox_pytorch.files.images import stored_sizes
from cjm_yolox_pytorch.evaluation.dataset_figure import draw_dataset
from cjm_yolox_pytorch.evaluation.doctor import examine, report_lines, yolox_doctor
from cjm_yolox_pytorch.evaluation.report import report
from cjm_yolox_pytorch.detection.detections import Detections
from cjm_yolox_pytorch.detection.predict import find_inputs
from cjm_yolox_pytorch.files.images import read_image
from cjm_yolox_pytorch.files.video import read_video
from cjm_yolox_pytorch.commands.command import command
from cjm_yolox_pytorch.commands.messages import printable

PASSWORD = 'hunter2'


@pytest.fixture(scope='module', autouse=True)
def armed():
    "Time of the CPU is limited, and what is opened, run and written is watched"
    before = {number: signal.getsignal(number) for number in (signal.SIGPROF, signal.SIGALRM)}
    fuzz.arm()
    yield
    for number, handler in before.items(): signal.signal(number, handler)


@pytest.fixture
def root(tmp_path, monkeypatch):
    "An empty folder for data, beside a secret; the current folder stays empty"
    (tmp_path/'data').mkdir()
    (tmp_path/'here').mkdir()
    (tmp_path/'secret').write_text(PASSWORD)
    monkeypatch.chdir(tmp_path/'here')
    yield tmp_path/'data'
    assert sorted(os.listdir(tmp_path)) == ['data', 'here', 'secret'] and not os.listdir(tmp_path/'here') and (tmp_path/'secret').read_text() == PASSWORD


def tried(read, root, **limits):
    "The message with which an input is refused, or None if it is accepted; anything else fails"
    what, error, _ = attempt(read, root, **limits)
    assert what in ('accepted', 'refused'), (what, error)
    assert PASSWORD not in str(error)
    return error and str(error)


@pytest.mark.parametrize('what, read', [
    ('does what no reader should: open', lambda root: (root.parent/'secret').read_text()), ('does what no reader should: open', lambda root: Path('/etc/passwd').read_bytes()),
    ('does what no reader should: open', lambda root: (root/'new').write_text('')), ('does what no reader should: os.rename', lambda root: os.rename(root, root.parent/'other')),
    ('does what no reader should: os.system', lambda root: os.system('exit')), ('does what no reader should: socket', lambda root: socket.socket().connect_ex(('127.0.0.1', 9))),
    ('takes too long', lambda root: [None for _ in iter(int, 1)]), ('takes too long', lambda root: time.sleep(1000)), ('takes [0-9]+ MB', lambda root: np.ones(40_000_000)),
    ('ends in a traceback: KeyError', lambda root: {}['a']), ('does not name the file', lambda root: Path('there_is_none').read_text()), ('is told in [0-9]+ letters', lambda root: (root/('a/'*1600)).read_text())])
def test_the_watch_sees(what, read, tmp_path):
    (tmp_path/'data').mkdir()
    (tmp_path/'secret').write_text(PASSWORD)
    assert re.match(what, attempt(read, tmp_path/'data', seconds=.05 if 'long' in what else 5, megabytes=100)[0])


def coco(**changes):
    "COCO with the first of its images, annotations or categories changed"
    doc = json.loads(json.dumps(COCO))
    for key, change in changes.items(): doc[key][0].update(change)
    return doc


def raw(key, name, number): # A number as it stands in the file
    return json.dumps(coco(**{key: {name: '@'}})).replace('"@"', number)


def box(number): return raw('annotations', 'bbox', f'[{number}, 2, 3, 4]')
def placed(name): return json.dumps(coco(images=dict(file_name=name)))


DEEP = '['*100000
BAD_JSON = {
    'nested deeply': (DEEP, 'not JSON'), 'nested deeply, and closed': (DEEP + ']'*100000, 'not JSON'), 'nested in an annotation': (raw('annotations', 'bbox', '['*400 + ']'*400), 'bbox is not 4 numbers'), 'nested in an id': (raw('annotations', 'id', '['*400 + ']'*400).replace('"image_id": 0', '"image_id": 9'), 'image_id the file does not define'),
    '1e999': (box('1e999'), 'numbers that are not finite'), 'NaN': (box('NaN'), 'numbers that are not finite'), '1e300': (box('1e300'), 'numbers that are not finite'), 'an area that overflows': (box('1').replace('1, 2, 3, 4', '1, 2, 1e200, 1e200'), 'numbers that are not finite'), 'a corner that overflows': (box('1.7e308').replace('308, 2, 3', '308, 2, 1.7e308'), 'numbers that are not finite'), '10,000 digits': (box('9'*10000), 'not JSON'), '400 digits': (box('9'*400), 'bbox is not 4 numbers'), '400 digits beside a float': (box('0.5, ' + '9'*400), 'bbox is not 4 numbers'),
    'an endless area': (raw('annotations', 'area', '1e999'), 'numbers that are not finite'), 'an area of 400 digits': (raw('annotations', 'area', '9'*400), 'area is not a number'), 'endless width': (raw('images', 'width', '1e999'), 'sizes that no image has'), 'a width of 400 digits': (raw('images', 'width', '9'*400), 'height and width are not numbers'),
    'a width of 10^12': (raw('images', 'width', '1000000000000'), 'sizes that no image has: .*1e[+]12x10'), 'a class of NaN': (raw('annotations', 'category_id', 'NaN'), 'category_id the file does not define'), 'class names that clear the screen': (json.dumps(coco(categories=dict(name='\x1b[2Jant'))), 'control characters'),
    'half a character': (json.dumps(coco(categories=dict(name='\ud800'))), 'control characters'), 'parent folder': (placed('../../etc/passwd'), 'leaves the folder'), 'absolute': (placed('/etc/passwd'), 'is absolute'), 'backslashes': (placed('..\\..\\secret'), 'leaves the folder'), 'a share': (placed('\\\\host\\share\\a.png'), 'is absolute'),
    'newline': (placed('a.png\nerror: none'), r"a.png\\nerror: none.* control characters"), 'NUL': (placed('a.png\0'), 'control characters'), 'a long name': (placed('a'*100000), 'images are missing'), 'a device': (placed('/dev/zero'), 'is absolute')}


@pytest.mark.parametrize('name', BAD_JSON)
def test_json(name, root):
    text, message = BAD_JSON[name]
    pixels(root, 'images/a.png', 'images/b.png')
    put(root, {'annotations/instances_train.json': text.encode()})
    assert re.search(message, tried(read_data, root))


def test_one_long_name_does_not_make_all_of_them_long(root):
    "An array of strings is as wide as its longest"
    images = [dict(COCO['images'][0], id=n, file_name=f'{n}.png') for n in range(20000)]
    put(root, {'train.json': json.dumps(dict(COCO, images=[*images[:-1], dict(images[-1], file_name='a'*50000)], annotations=[])).encode()})
    assert 'images are missing' in tried(lambda root: read_coco(root/'train.json', root), root, megabytes=200)


def test_two_million_boxes_in_one_image_are_read(root):
    pixels(root, 'a.png', 'b.png')
    rows = ','.join(f'{{"id":{n},"image_id":0,"category_id":1,"bbox":[{n % 9},1,2,3]}}' for n in range(2*10**6))
    put(root, {'train.json': json.dumps(dict(COCO, annotations='@')).replace('"@"', f'[{rows}]').encode()})
    assert tried(lambda root: len(read_coco(root/'train.json').labels) == 2*10**6 or 1/0, root, seconds=120, megabytes=4000) is None


@pytest.mark.parametrize('files', [{'train/a.txt': '0 .5 .5 .5 .5\n'*10**5}, {'a.xml': XML.replace('</annotation>', OBJECT.format('ant')*10**5 + '</annotation>')}], ids=['yolo', 'voc'])
def test_a_hundred_thousand_boxes_in_one_image_are_read(files, root):
    pixels(root, 'train/a.png' if 'train/a.txt' in files else 'a.png')
    put(root, {name: text.encode() for name, text in files.items()})
    assert tried(read_data, root, seconds=60, megabytes=1000) is None
    assert sum(len(read().labels) for read in find_splits(root).values()) >= 10**5


@pytest.mark.parametrize('classes', [19_999, 20_001])
def test_many_classes_take_no_time(classes, root):
    "Numbers that a file of 60 bytes may claim, and a limit"
    for split in ('train', 'val'):
        pixels(root, f'{split}/images/{split}.png')
        put(root, {f'{split}/labels/{split}.txt': b'0 .5 .5 .5 .5'})
    put(root, {'data.yaml': f'train: train/images\nval: val/images\nnc: {classes}'.encode()})
    def use(root):
        splits = {name: read() for name, read in find_splits(root).items()}
        check_splits(splits)
        a = relabel(splits['val'], splits['train'].names[::-1])
        assert a.labels.tolist() == [19_998] and report(a, [Detections(torch.tensor([[0., 0., 9., 9.]]), torch.ones(1), torch.tensor([19_998]))])['in_use']
    refused = tried(use, root, seconds=5, megabytes=1000)
    assert refused is None if classes < 20_000 else 'nc: 20001 is more than the 20000 classes that are possible' in refused


@pytest.mark.parametrize('name', ['a$^$b', '$$', '$_$', '_a', 'a\\$^$'])
def test_names_are_no_formulas(name, root):
    "As matplotlib would take them; a name that begins with a line would be missing in its legends"
    file = f'{name}.png'.replace('\\', '') # Which stands for a folder
    pixels(root, file, 'b.png')
    doc = coco(images=dict(file_name=file), categories=dict(name=name))
    put(root, {'train.json': json.dumps(doc).encode()})
    (root/'out').mkdir()
    report_of_root = examine(root)
    draw_dataset(report_of_root.splits, report_of_root.faults, 416, root/'out/doctor.png')
    (a,) = (read() for read in find_splits(root).values())
    found = [Detections(torch.tensor([[1., 2., 4., 6.], [0., 0., 9., 9.]]), torch.tensor([.9, .8]), torch.tensor([0, 1]))]*2
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        report(a, found, root/'out')
    assert len(list((root/'out').glob('*.png'))) == 5


ENTITY = '<!DOCTYPE a [<!ENTITY x SYSTEM "file://{}">]>'
BAD_XML = {'billion laughs': LAUGHS + XML.replace('>ant<', '>&e9;<').partition('\n')[2], 'quadratic': f'<!DOCTYPE a [<!ENTITY x "{"A"*100000}">]><annotation>{"&x;"*100000}</annotation>', 'external entity': ENTITY + XML.replace('>ant<', '>&x;<').partition('\n')[2],
           'external subset': '<!DOCTYPE a SYSTEM "file://{}"><annotation/>', 'parameter entity': '<!DOCTYPE a [<!ENTITY % x SYSTEM "file://{}"> %x;]><annotation/>'}


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-16'])
@pytest.mark.parametrize('name', BAD_XML)
def test_xml(name, encoding, root):
    pixels(root, 'a.png')
    text = BAD_XML[name].replace('{}', str(root.parent/'secret'))
    put(root, {'a.xml': text.encode(encoding)})
    assert 'declares a document type or entities' in tried(read_data, root)


@pytest.mark.parametrize('text, message', [(XML.replace('<width>20', '<width>1e300'), 'sizes that no image has'), (XML.replace('<xmin>1<', f'<xmin>{"9"*10000}<'), 'is .* and not a number'), (XML.replace('<xmin>1<', '<xmin>-1e300<'), 'not finite'), ('<annotation>' + '<object>'*300000, 'not XML'),
                                           ('<xi:include href="/etc/passwd"/>', 'not XML'), (XML.replace('>ant<', '>an\u009bt<'), 'control characters'), (f'<{"a"*100000}/>', 'begins with <a'), (f'<?xml version="1.0" encoding="{"x"*5000}"?><annotation/>', 'not XML: unknown encoding')])
def test_xml_that_claims_too_much(text, message, root):
    pixels(root, 'a.png')
    put(root, {'a.xml': text.encode()})
    assert re.search(message, tried(read_data, root))


def test_a_list_with_a_long_gap(root):
    "Once searched from each of its blanks"
    pixels(root, 'JPEGImages/a.png')
    put(root, {'Annotations/a.xml': XML.encode(), 'ImageSets/Main/train.txt': ('a' + ' '*10**6 + 'x').encode()})
    assert 'names lack an XML file' in tried(read_data, root, seconds=2)


MERGES = 'a0: &a0 {k: v}\n' + ''.join(f'a{n + 1}: &a{n + 1} {{<<: [{", ".join([f"*a{n}"]*10)}]}}\n' for n in range(9))
BAD_YAML = {
    'object': ('train: !!python/object/apply:os.system ["touch canary"]', 'not YAML'), 'name': ('train: !!python/name:os.system', 'not YAML'), 'aliases': (ALIASES + 'train: images/train\nnames: *a9', 'aliases'), 'merges': (MERGES + 'train: images/train', 'aliases'), 'itself': ('train: images/train\nnames: &x [*x]', 'aliases'), 'text again and again': (f'x: &a "{"y"*200000}"\ntrain: images/train\nnames: [{",".join(["*a"]*19000)}]', 'aliases'),
    'nested deeply': (f'train: {DEEP}', 'not YAML: maximum recursion'), 'int': ('train: !!int ""', 'not YAML'), 'bool': ('train: !!bool x', 'not YAML'), 'date': ('train: !!timestamp x', 'not YAML'), 'day': ('train: 2001-99-99', 'not YAML'), 'large': ('train: ' + 'a'*600000, 'of a description of data not more than'),
    'many classes': (YAML.replace('nc: 2', 'nc: 4000000000'), 'nc: 4000000000 is more than'), 'many classes without names': ('train: images/train\nnc: 4000000000', 'nc: 4000000000 is more than'), 'digits': ('train: images/train\nnc: 0x' + 'f'*100000, 'nc: a int that is too large to be shown is more'),
    'squared': ("train: images/train\nnames: {'²': ant}", 'which is not a list'), 'long path': (YAML.replace('images/train', 'a'*5000), 'is not in'), 'long root': (YAML.replace('path: .', f'path: {"a"*5000}'), None), 'NUL': (YAML.replace('images/train', r'"a\0"'), 'control characters'), 'outside': (YAML.replace('images/train', '../../etc'), 'leaves the folder')}


@pytest.mark.parametrize('name', BAD_YAML)
def test_yaml(name, root):
    text, message = BAD_YAML[name]
    pixels(root, 'images/train/a.png', 'images/val/b.png')
    put(root, {'data.yaml': text.encode(), 'labels/train/a.txt': TXT.encode(), 'labels/val/b.txt': TXT.encode(), 'list.txt': LINES.encode()})
    found = tried(read_data, root)
    assert found is None if message is None else re.search(message, found)


def test_a_class_of_many_digits_is_not_counted_up_to(root):
    pixels(root, 'a.png')
    put(root, {'a.txt': b'1e12 .5 .5 .1 .1'})
    assert 'nothing names the classes, and one has the number 1e+12' in tried(read_data, root)


def test_wrong_lines_are_counted_and_not_kept(root):
    pixels(root, 'a.png')
    put(root, {'a.txt': b'x\n'*10**6, 'classes.txt': b'ant'})
    assert "lines that are no objects: 1000000, such as" in tried(read_data, root, seconds=20, megabytes=150)


# Folders

LINKED = { # What leads elsewhere, and the message
    'a label file that is a pipe': ({'images/a.png': None, 'labels/a.txt': ('link', None), 'classes.txt': b'ant'}, 'no format|any format|label file'),
    'a description that is a pipe': ({'data.yaml': ('link', None)}, 'does not look like any format'), 'annotations that are a pipe': ({'annotations/train.json': ('link', None)}, 'does not look like'), 'an export that is a pipe': ({'train/_annotations.coco.json': ('link', None)}, 'is no file that ends'),
    'a list that never ends': ({'data.yaml': YAML.encode(), 'list.txt': ('link', '/dev/zero'), 'labels/train/a.txt': TXT.encode(), 'labels/val/b.txt': TXT.encode()}, 'is no file that ends'),
    'XML that the system does not give out': ({'a.xml': ('link', '/proc/self/mem'), 'images/a.png': b''}, 'a.xml cannot be read'), 'JSON that the system does not give out': ({'train.json': ('link', '/proc/self/mem')}, 'train.json cannot be read'), 'annotations that are not there': ({'annotations/train.json': ('link', 'nowhere')}, 'No such file'), 'annotations that lead to themselves': ({'annotations/train.json': ('link', 'train.json')}, 'symbolic links'), 'Darknet without names': ({'obj.data': DARKNET.encode()}, 'list.txt|obj.names')}


@pytest.mark.parametrize('name', LINKED)
def test_links_and_pipes(name, root):
    files, message = LINKED[name]
    pixels(root, 'images/train/a.png', 'images/val/b.png')
    put(root, files)
    assert re.search(message, tried(read_data, root))


def test_links_are_followed_but_tell_nothing(root):
    "A data set may link to images elsewhere. What is no image stays unread"
    (root/'a.png').symlink_to('../secret')
    pixels(root, 'b.png')
    put(root, {'train.json': json.dumps(COCO).encode()})
    (a,) = [read() for read in find_splits(root).values()]
    with pytest.raises(OSError, match='a.png cannot be decoded as an image') as refused: read_annotated(a, 0)
    assert PASSWORD not in str(refused.value)


def test_pictures_are_not_written_through_links(root):
    pixels(root, 'a.png', 'deep/b.png')
    (root/'out').mkdir()
    for link in ('out/a.png.jpg', 'out/deep'):
        (root/link).symlink_to(root.parent/'secret' if link.endswith('jpg') else root.parent)
        with pytest.raises(ValueError, match='leads out of .*/out: remove it'): find_inputs([str(root/'a.png'), str(root/'deep')], root/'out')
        (root/link).unlink()
    assert len(find_inputs([str(root/'a.png'), str(root/'deep')], root/'out')[0]) == 2
    (root/'loop.png').symlink_to('loop.png')
    assert len(find_inputs([str(root)], root/'out')[0]) == 3 # The loop is told when it is read


def test_a_terminal_shows_what_it_is_told(root, monkeypatch, capsys):
    name = 'a\x1b[2J\n\u202e.png'
    pixels(root, name)
    (root/name).write_text('no picture')
    put(root, {'train.json': json.dumps(COCO).encode()})
    @command
    def look(): read_image(root/name)
    monkeypatch.setattr(sys, 'argv', ['look'])
    with pytest.raises(SystemExit) as end: look()
    assert str(end.value).startswith('look: error: ') and str(end.value).isprintable() and r'a\x1b[2J\n\u202e.png cannot be decoded' in str(end.value)
    assert printable('größer, 猫, 💥') == 'größer, 猫, 💥'
    assert printable('a\u2028b\u2029c\u200ed\u200f') == r'a\u2028b\u2029c\u200ed\u200f' # Other lines, and other directions


@pytest.mark.skipif(sys.platform != 'linux', reason='other systems have no such names')
def test_the_doctor_draws_names_that_are_not_utf_8(root):
    for name in (b'caf\xe9.png', b'$\xff$.png', b'c.png'):
        path = Path(os.fsdecode(os.fsencode(root) + b'/' + name))
        pixels(root, path.name)
        path.with_suffix('.txt').write_text(TXT.splitlines()[0] + '\n0 .9 .5 .6 .2')
    (root/os.fsdecode(b'caf\xe9.png')).write_bytes(png(20, 10)) # And one with a fault
    report = examine(root)
    (root/'out').mkdir()
    fuzz.WATCH['root'] = None
    draw_dataset(report.splits, report.faults, 416, root/'out/doctor.png')
    assert r'caf\udce9.png' in printable('\n'.join(report_lines(report))) and (root/'out/doctor.png').stat().st_size > 1000


@pytest.mark.parametrize('out', ['report', '.', '../data/a/../report'])
def test_the_doctor_adds_nothing_to_the_data(out, root):
    "Its pictures would be images without objects the next time"
    pixels(root, 'a.png', 'b.png')
    put(root, {'a.txt': TXT.encode(), 'b.txt': TXT.encode()})
    with pytest.raises(ValueError, match='is in the folder of the data, of which its pictures would become a part. Choose another one for --out'): yolox_doctor(str(root), out=str(root/out))
    assert sorted(os.listdir(root)) == ['a.png', 'a.txt', 'b.png', 'b.txt']


# Pictures

def png(width, height, data=b''):
    def chunk(kind, data): return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)) + chunk(b'IDAT', zlib.compress(data)) + chunk(b'IEND', b'')


@pytest.mark.parametrize('size', [(31623, 31623), (2**31 - 1, 2**31 - 1), (2**31 - 1, 1), (0, 0)])
def test_a_picture_that_claims_to_be_large(size, root):
    (root/'a.png').write_bytes(png(*size))
    assert 'a.png cannot be decoded as an image' in tried(lambda root: read_image(root/'a.png'), root, megabytes=50)
    assert 'files that cannot be opened as images' in tried(lambda root: stored_sizes(root, [root/'a.png']), root, megabytes=50)


def test_the_doctor_draws_what_claims_to_be_large(root):
    doc = coco(images=dict(width=10**6, height=10**6))
    put(root, {'train.json': json.dumps(doc).encode(), 'a.png': b'no picture', 'b.png': png(20, 10, bytes(61*10))})
    report = examine(root)
    (root.parent/'data'/'out').mkdir()
    fuzz.WATCH['root'] = None
    before = fuzz.memory(reset=True)
    draw_dataset(report.splits, report.faults, 416, root/'out/doctor.png')
    assert fuzz.memory() - before < 500e3 and 'image does not decode' in '\n'.join(report_lines(report))


@pytest.mark.parametrize('kind', ['eps', 'ico', 'tga', 'jpeg2000'])
def test_only_the_formats_of_photos_are_let_in(kind, root):
    "For EPS, Pillow would start Ghostscript"
    Image.new('RGB', (20, 10)).save(root/'a.jpg', kind)
    assert 'cannot be decoded as an image (none of BMP, GIF, JPEG, PNG, PPM, TIFF, WEBP): mend it' in tried(lambda root: read_image(root/'a.jpg'), root)


@pytest.mark.parametrize('playlist', ['#EXTM3U\n#EXT-X-MEDIA-SEQUENCE:0\n#EXTINF:1,\n{}/a.ts\n#EXTINF:1,\n{secret}\n#EXT-X-ENDLIST\n', '#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{}/a.ts\n#EXT-X-ENDLIST\n', '#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n{}/a.m3u8\n', "ffconcat version 1.0\nfile '{}/a.mp4'\n"])
@pytest.mark.parametrize('suffix', ['mp4', 'm3u8'])
def test_a_playlist_in_the_guise_of_a_video(playlist, suffix, root, monkeypatch):
    "What it names is not fetched, whatever FFmpeg does of its own accord"
    av = pytest.importorskip('av')
    opened, real = [], av.open
    monkeypatch.setattr(av, 'open', lambda *args, **kwargs: opened.append(kwargs) or real(*args, **kwargs))
    with socket.create_server(('127.0.0.1', 0)) as server:
        server.setblocking(False)
        (root/f'a.{suffix}').write_text(playlist.format(f'http://127.0.0.1:{server.getsockname()[1]}', secret=root.parent/'secret'))
        with pytest.raises((OSError, ValueError)) as refused: list(read_video(root/f'a.{suffix}'))
        with pytest.raises(BlockingIOError): server.accept()
    assert isinstance(refused.value, av.error.FFmpegError) and 'refused' not in str(refused.value).lower()
    assert opened == [dict(options=dict(protocol_whitelist='file'))]


# Weights

def archive(program, method=zipfile.ZIP_STORED, name='data.pkl', **records):
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w', method) as z:
        for name, data in dict({name: program, 'version': b'3\n', 'byteorder': b'little'}, **{f'data/{k[1:]}': v for k, v in records.items()}).items(): z.writestr(f'a/{name}', data)
    return file.getvalue()


def saved(content, **kwargs):
    torch.save(content, file := io.BytesIO(), **kwargs)
    return file.getvalue()


class Hexed: # A text that is doubled again and again
    def __init__(self, n): self.n = n
    def __reduce__(self): return codecs.encode, (Hexed(self.n - 1) if self.n else b'ab', 'hex')


def scripted():
    with warnings.catch_warnings(): # That it goes out of use
        warnings.simplefilter('ignore')
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 1)), file := io.BytesIO())
    return file.getvalue()


def paired(n):
    thing = ('a',)
    for _ in range(n): thing = thing, thing
    return thing


EVIL = dict(model=Mischief(os.system, 'touch canary'))
PAIRS = pickle.dumps({'k': 0}, protocol=2)[:2] + b'}' + pickle.dumps(paired(60), protocol=2)[2:-1] + b'K\x01s.' # The sixtieth pair as a key
BAD_WEIGHTS = {
    'runs a command': (saved(EVIL), 'wants to run (posix|nt).system'), 'runs a command, the old way': (saved(EVIL, _use_new_zipfile_serialization=False), 'wants to run (posix|nt).system'), 'a plain pickle': (pickle.dumps(EVIL, protocol=2), 'wants to run (posix|nt).system'), 'a plain pickle of today': (pickle.dumps(EVIL), 'is not a file of weights, or was cut off: it is a pickle of protocol [4-9]'),
    'evaluates': (archive(pickle.dumps(Mischief(eval, 'open("canary", "w")'), protocol=2)), 'wants to run eval'), 'a hash that never ends': (archive(PAIRS), 'puts together something of more than [0-9]+ parts'), 'a hash that never ends, the old way': (PAIRS, 'puts together something'),
    'a long array': (archive(b'\x80\x02cbuiltins\nbytearray\n' + b'J' + struct.pack('<i', 2**31 - 1) + b'\x85R.'), 'wants to run bytearray'), 'text doubled again and again': (archive(pickle.dumps(Hexed(40), protocol=2)), 'calls _codecs.encode in a way that weights do not need'),
    'zip bomb': (archive(pickle.dumps({}, protocol=2), zipfile.ZIP_DEFLATED, _0=bytes(10**8)), 'claims to hold 1000000'), 'not a zip': (b'PK\x03\x04' + bytes(99), 'is not a file of weights'), 'nothing': (archive(pickle.dumps({}, protocol=2)), 'STEM|missing'), 'TorchScript': (scripted(), 'wants to run __torch__.torch.nn.modules.linear.Linear when it is read'), 'a large pickle in capitals': (archive(PAIRS, name='DATA.PKL'), 'puts together something'), 'another archive behind': (archive(PAIRS) + archive(pickle.dumps({}, protocol=2)), 'before or behind the archive'), 'another archive before': (archive(pickle.dumps({}, protocol=2)) + archive(PAIRS), 'before or behind the archive'),
    'a header of 2^63 bytes': (struct.pack('<Q', 2**63) + b'{"a":1}', 'is not a file of weights'), 'a header nested deeply': (struct.pack('<Q', 100000) + b'{"a":' + b'['*99995, 'is not a file of weights'), 'numbers as keys': (saved({1: torch.zeros(1), 'x': {2: 3}}), 'missing among'),
    'keys of all kinds': (saved({**network(), 1: 2, (3, 4): torch.zeros(1)}), None), 'other shapes': (saved({**network(), _CLASSES: torch.zeros(())}), 'does not fit'), 'many classes': (saved({**network(), _CLASSES: torch.zeros(1, 96, 1, 1).expand(10**9, -1, -1, -1)}), 'more numbers than its storage, 96'), 'more classes than there can be': (saved({**network(), _CLASSES: torch.zeros(20_001, 96, 1, 1)}), 'does not fit'),
    'no numbers': (saved({**network(), 'neck.x': torch.zeros(2, device='meta')}), 'wants to run torch._utils._rebuild_meta_tensor_no_storage'), 'sparse': (saved({**network(), STEM: torch.zeros(24, 12, 3, 3).to_sparse()}), 'wants to run torch._utils._rebuild_sparse_tensor'), 'whole numbers': (saved({**network(), STEM: torch.zeros(24, 12, 3, 3, dtype=torch.int32)}), 'finite floats .torch.int32'), 'whole numbers elsewhere': (saved({**network(), 'neck.x': torch.zeros(2, dtype=torch.bool)}), 'neck.x: not all of its numbers are finite floats'),
    'not a number': (saved({**network(), 'neck.x': torch.tensor([0, float('nan')])}), 'neck.x: not all of its numbers are finite floats'), 'too large for float32': (saved({**network(), 'neck.x': torch.tensor([1e39], dtype=torch.double)}), 'neck.x: not all'),
}


@pytest.mark.parametrize('name', BAD_WEIGHTS)
def test_weights(name, root):
    data, message = BAD_WEIGHTS[name]
    (root/'a.pth').write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        found = tried(read_weights, root, megabytes=300)
    assert found is None if message is None else re.search(message, found)


# Calls that weights_only lets by. Each of these files of some hundred bytes took any amount of memory or time

def whole(n): return b'J' + struct.pack('<i', n)
def named(name): return b'c' + '\n'.join(name.rsplit('.', 1)).encode() + b'\n'
def stored(key=b'0', numbers=4, kind=b'', old=b''): return b'(' + fuzz.text_of(b'storage') + named('torch.FloatStorage') + fuzz.text_of(key) + fuzz.text_of(b'cpu') + whole(numbers) + old + b'tQ'
def rebuilt(sizes=(4,), strides=(1,), **kwargs): return named('torch._utils._rebuild_tensor_v2') + b'(' + stored(**kwargs) + whole(0) + b'(' + b''.join(map(whole, sizes)) + b't(' + b''.join(map(whole, strides)) + b't\x89N' + b'tR'
def listed(n): return b']q\x00(' + b'K\x07K\x08\x86'*n + b'e' # As thing 0
def before_1_6(program): return b''.join(pickle.dumps(v, protocol=2) for v in (torch.serialization.MAGIC_NUMBER, 1001, {})) + program + pickle.dumps([], protocol=2)


EMPTY, OD, SET, COUNTER, SIZE = named('torch.FloatTensor') + whole(2**31 - 1) + b'\x85R', named('collections.OrderedDict'), named('__builtin__.set'), named('collections.Counter'), named('torch.Size')
CALLS = { # A program, and the message
    'an empty tensor': (EMPTY, 'wants to run torch.FloatTensor'), 'an empty storage': (named('torch.storage.UntypedStorage') + whole(2**31 - 1) + b'\x85R', 'calls torch.storage.UntypedStorage'), 'a set of an empty tensor': (SET + EMPTY + b'\x85R', 'wants to run torch.FloatTensor'), 'a tensor of anything': (named('torch._tensor._rebuild_from_type_v2') + b'(' + SET + b'NNNtR', 'wants to run torch._tensor._rebuild_from_type_v2'),
    **{f'a {f.decode().split()[-1]} of a tensor': (f + rebuilt() + b'\x85R', 'in a way that weights do not need') for f in (SET, COUNTER, SIZE, OD)}, **{f'a {f.decode().split()[-1]} of a storage': (f + stored() + b'\x85R', 'in a way that weights do not need') for f in (SET, COUNTER, SIZE, OD)},
    'a tensor instead of a tuple': (SET + rebuilt() + b'R', 'calls __builtin__.set'), 'a tensor for a new object': (OD + rebuilt() + b'\x81', 'calls collections.OrderedDict'), 'a tensor as attributes': (OD + b')R' + rebuilt() + b'b', 'changes collections.OrderedDict'), 'attributes of a tensor': (rebuilt() + b'}b', 'changes torch._utils._rebuild_tensor_v2'), 'a list as a tuple': (SET + b']R', 'calls __builtin__.set'),
    'no function': (b'K\x01)R', 'calls 1 in a way'), 'the result of a call': (OD + b')R)R', 'calls collections.OrderedDict'), 'another codec': (named('_codecs.encode') + fuzz.text_of(b'ab') + fuzz.text_of(b'hex') + b'\x86R', 'calls _codecs.encode'),
    **{f'a list for many {f.decode().split()[-1]}s': (listed(5000) + f + b'q\x01' + b'](' + b'h\x01h\x00\x85R'*5000 + b'e', 'puts together something of more than') for f in (SET, COUNTER, SIZE)}, 'attributes for many': (b'}q\x00(' + b''.join(whole(n) + b'N' for n in range(5000)) + b'u' + OD + b'q\x01](' + b'h\x01)Rh\x00b'*5000 + b'e', 'puts together'), 'a key for many': (b'(' + b'K\x07'*5000 + b'tq\x00}(' + b'h\x00N'*5000 + b'u', 'puts together'),
    'a text for many': (fuzz.text_of(b'a'*9999) + b'q\x00' + fuzz.text_of(b'latin1') + b'q\x01' + named('_codecs.encode') + b'q\x02](' + b'h\x02h\x00h\x01\x86R'*5000 + b'e', 'puts together'), 'letters for many': (fuzz.text_of(b'a'*9999) + b'q\x00' + SET + b'q\x01](' + b'h\x01h\x00\x85R'*5000 + b'e', 'puts together'),
    'numbers of one hash': (b'}(' + b''.join(b'\x8a\x0a' + (n*(2**61 - 1)).to_bytes(10, 'little') + b'N' for n in range(1, 20_000)) + b'u', 'puts together'), 'numbers of one hash in a set': (SET + b'](' + b''.join(b'\x8a\x0a' + (n*(2**61 - 1)).to_bytes(10, 'little') for n in range(1, 20_000)) + b'e\x85R', 'puts together'),
    'what grows elsewhere': (b']q\x00\x85q\x01h\x00(' + b'K\x07'*99 + b'e', 'changes what it has put elsewhere'), 'a storage by many names': (b'](' + b''.join(stored(bytes(65 + (n >> i & 1)*32 + i for i in range(12)), 10**6) for n in range(2**12)) + b'e', 'puts together'), 'a key that is a number': (named('torch._utils._rebuild_tensor_v2') + b'(' + fuzz.text_of(b'storage') + named('torch.FloatStorage') + whole(0) + fuzz.text_of(b'cpu') + whole(4) + b'tQ', 'a part of a storage'),
    'repeated numbers': (rebuilt((10**9,), (0,)), 'a tensor of .1000000000. has more numbers than its storage, 4'), 'long strides': (rebuilt((2,), (10**9,)), 'more numbers than its storage'), 'many dimensions': (rebuilt((1,)*9999, (1,)*9999), 'calls torch._utils._rebuild_tensor_v2'), 'no storage': (named('torch._utils._rebuild_tensor_v2') + b'(NK\x00))tR', 'calls torch._utils._rebuild_tensor_v2'),
}
OLD_CALLS = {'a storage that is not there': (stored(numbers=10**9, old=b'N'), 'puts together'), 'a tensor that makes its storage larger': (rebuilt((10**9,), old=b'N'), 'more numbers than its storage'), 'a storage by another size': (b'](' + stored(old=b'N') + rebuilt((10**5,), numbers=10**5, old=b'N') + b'e', 'more numbers than its storage, 4'), 'a view': (stored(old=b'(K\x00K\x00K\x01t'), 'a part of a storage')}


@pytest.mark.parametrize('name', [*CALLS, *OLD_CALLS])
def test_calls(name, root):
    program, message = {**CALLS, **OLD_CALLS}[name]
    program = b'\x80\x02' + program + b'.'
    (root/'a.pth').write_bytes(before_1_6(program) if name in OLD_CALLS else archive(program, _0=bytes(16)))
    assert re.search(message, tried(read_weights, root, megabytes=100, seconds=2))


@pytest.mark.parametrize('new', [True, False])
def test_what_trainings_leave_in_pickles(new, root):
    "Schedulers count, optimizers have states, and people keep what they like"
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.rand(4, 3)).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 2, 5])
    more = dict(classes={'ant', 'bee'}, size=torch.Size([3, 4]), device=torch.device('cuda', 0), dtype=torch.bfloat16, raw=b'\x00\xff', numpy=np.random.RandomState(0).get_state(), random=torch.get_rng_state(), rows=[dict(epoch=n, loss=.1) for n in range(300)])
    tensors = dict(turned=torch.rand(3, 4).T, part=torch.rand(9)[3:5], none=torch.zeros(0, 3), one=torch.tensor(1.), half=torch.zeros(2).half(), owned=torch.nn.Parameter(torch.zeros(2)), **dict(young=torch.zeros(2, dtype=torch.uint16)) if new else {})
    content = dict(state_dict=OrderedDict(network()), model_=model.state_dict(), optimizer=optimizer.state_dict(), scheduler=scheduler.state_dict(), **more, **tensors)
    torch.save(content, root/'a.pth', _use_new_zipfile_serialization=new)
    assert tried(read_weights, root) is None
    held, _ = read_file(root/'a.pth')
    assert held['scheduler']['milestones'] == scheduler.milestones and all(torch.equal(held[k], v) for k, v in tensors.items()) and held['classes'] == more['classes']


@pytest.mark.parametrize('change', [dict(mean=[float('nan'), 0, 0]), dict(mean='abc'), dict(notes=[1]), dict(left_over=['a']), dict(left_over=3), dict(family=3), dict(std=[0, 1, 1]), dict(size=10**9), dict(size='64'), dict(names='ab'), dict(names=[1, 2]), dict(num_classes=10**12), dict(names=['a', 'a']), dict(focus='x'*10**5), {'x'*10**5: 1}])
def test_metadata(change, root):
    (root/'a.safetensors').write_bytes(save(network(), metadata=dict(cjm_yolox_pytorch=json.dumps({**fuzz.KNOWN, **change}))))
    assert 'a.safetensors: ' in tried(read_weights, root)


def test_metadata_that_are_nested_deeply(root):
    (root/'a.safetensors').write_bytes(save(network(), metadata=dict(cjm_yolox_pytorch=DEEP)))
    assert 'cannot be understood' in tried(read_weights, root)


def test_what_is_not_needed_is_not_made(root):
    "Arrays and dtypes of numpy can be given states that end Python; real ones are still let by"
    (root/'a.pth').write_bytes(saved(dict(state_dict=network(), log=np.arange(3.), best=np.float64(1), flags=np.zeros(2, dtype=bool), names=np.array(['a', 'b']))))
    assert load_weights(root/'a.pth').num_classes == 2
    state = b'\x80\x02cnumpy\ndtype\nX\x02\x00\x00\x00V8\x89\x88\x87R(K\x03X\x01\x00\x00\x00|NNNJ\xff\xff\xff\x7fJ\xff\xff\xff\x7fK\x00tb.' # A dtype of two gigabytes
    (root/'a.pth').write_bytes(archive(state))
    assert 'not a _Unread' in tried(read_weights, root)


def test_a_link_in_the_place_of_a_file_to_be_written(root):
    (root/'a.safetensors.partial').symlink_to('../secret')
    save_weights(load_weights(network()), root/'a.safetensors')
    assert load_weights(root/'a.safetensors').num_classes == 2 and os.listdir(root) == ['a.safetensors']


def test_a_part_of_the_fuzzing():
    done = subprocess.run([sys.executable, Path(__file__).with_name('fuzz.py'), '--inputs', '1400'], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
