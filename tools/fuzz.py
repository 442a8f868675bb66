"""Feed malformed and hostile files to every reader.

Each input is a small dataset, image or weights file into which a seeded generator has put harmful values or changed
bytes. It must be read, or refused with an error that commands print as one line `error: ...` naming the file, within
seconds and bounded memory. Nothing may be executed, written, or opened outside the folder.

    python tools/fuzz.py --inputs 100000 --seed 0     # divided among the readers
    python tools/fuzz.py --reader coco --replay 1234  # one input again: shows the traceback and keeps the files
"""
import argparse
import contextlib
import faulthandler
import io
import json
import logging
import os
import pickle
import random
import re
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import torch
import yaml
from PIL import Image
from safetensors.torch import save

# Read with this checkout, whatever is installed
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from cjm_yolox_pytorch.files.checkpoints import load_weights
from cjm_yolox_pytorch.files.class_names import MAX_CLASSES
from cjm_yolox_pytorch.files.families import CLASSES, STEM, STEM_VARIANCE
from cjm_yolox_pytorch.model import VARIANTS
from cjm_yolox_pytorch.data.checks import check, check_splits
from cjm_yolox_pytorch.data.splits import find_splits
from cjm_yolox_pytorch.files.images import stored_sizes
from cjm_yolox_pytorch.detection.inputs import check_drawn_files, find_inputs
from cjm_yolox_pytorch.files.images import read_image
from cjm_yolox_pytorch.commands.command import _message

# Limits for one input
SECONDS = 5 # Of CPU time
MEGABYTES = 1000
LETTERS = 3000 # In the error message


# ---- Harmful values in text

NUMBERS = ['0', '-1', '-0', '0.5', '1e999', '-1e999', '1e308', '1e39', '1e-400', 'NaN', 'nan', 'inf', '-Infinity',
           '9'*400, '9'*10000, '0x' + 'f'*9000, '2147483648', '1e10', '99999999999', '9223372036854775808', '1_000',
           '٣', '²', '1:59:59', '59:'*500 + '1', '.', '+', '1.', 'true', 'null', '1j']
PLACES = ['../../etc/passwd', '/etc/passwd', '..\\..\\secret', 'C:\\secret', '\\\\host\\share', '//host/share',
          'images/../../secret', './././a.png', 'a.png/', '', '.', '..', '~', '~root', 'a\x00.png', 'a\n.png',
          '\x1b]0;title\x07', 'a'*300, 'a/'*3000, 'a'*100000, 'images', 'con', 'aux.png', 'file:///etc/passwd',
          'http://localhost:9/a.png', '\ud800', '\u202egnp.a', '%2e%2e/secret', '$HOME', '$_$', '$$',
          '`touch ../canary`', '/dev/zero', '/proc/self/environ', 'link.png', 'away/secret', 'pipe.png', 'loop.png',
          'ROOT/images/a.png', 'ROOT/images', 'ROOT/../secret']
WORDS = ['a', 'ant', 'x'*5000, '\ufeff', '\u0000', '\u2028', '💥', '"', "'", '<', '&', '{}', '%s%n', '{0.__class__}',
         '\\', '\x1b[2J', *PLACES]


class Raw(str):
    "Text that goes into JSON without quotes."


def nested(depth): return Raw('['*depth + ']'*depth)


def random_list(rng): return [value(rng) for _ in range(rng.randint(0, 5))]
def random_dict(rng): return {rng.choice(WORDS[:9]): value(rng)}


VALUES = [
    lambda rng: Raw(rng.choice(NUMBERS)),
    lambda rng: Raw(rng.choice(NUMBERS)),
    lambda rng: rng.choice(WORDS),
    lambda rng: nested(rng.choice([1, 2, 50, 400])),
    lambda rng: Raw('['*100000),
    lambda rng: {},
    lambda rng: [],
    lambda rng: None,
    lambda rng: True,
    lambda rng: rng.randint(-9, 99),
    lambda rng: rng.uniform(-9, 99),
    random_list,
    random_dict]


def value(rng):
    "Return anything that JSON can hold, and some things that it cannot."
    return rng.choice(VALUES)(rng)


def spots(doc):
    "Yield the container and key of every value."
    for key, v in doc.items() if isinstance(doc, dict) else enumerate(doc):
        yield doc, key
        if isinstance(v, (dict, list)): yield from spots(v)


KEYS = [*WORDS[:9], 'segmentation', 'area', 'iscrowd', 'supercategory', 'id']

def changed(rng, doc):
    "Copy a JSON document and replace, remove, duplicate or move a few of its values."
    doc = json.loads(json.dumps(doc))
    for _ in range(rng.choice([1, 1, 2, 4])):
        places = list(spots(doc))
        if not places: break
        change_one(rng, *rng.choice(places), places)
    return doc


def change_one(rng, holder, key, places):
    how = rng.random()
    if how < .6: holder[key] = value(rng)
    elif how < .7: del holder[key]
    elif how < .8:
        other, k = rng.choice(places)
        holder[key] = None if isinstance(other[k], (dict, list)) else other[k]
    elif how < .9 and isinstance(holder, list): holder += holder[key:key + 1]*rng.choice([1, 5])
    elif isinstance(holder, dict):
        new = value(rng)
        holder[rng.choice(KEYS)] = new


def dumped(doc):
    "Encode JSON; `Raw` text stays as it is."
    raw = []
    def mark(v):
        if isinstance(v, dict): return {k: mark(x) for k, x in v.items()}
        if isinstance(v, list): return [mark(x) for x in v]
        if not isinstance(v, Raw): return v
        raw.append(v)
        return f'@raw{len(raw) - 1}@'
    return re.sub(r'"@raw(\d+)@"', lambda m: raw[int(m[1])], json.dumps(mark(doc))).encode()


# Integers that claim a size
CLAIMS = [0, 1, 0x7f, 0xff, 0x7fff, 0xffff, 0x7fffffff, 0xffffffff, 2**63 - 1, 2**64 - 1, 10**5]
SCRAPS = [b'\x00', b'\xff', b'\n', b'<', b'{', b'"', b'\xed\xa0\x80', b'\xff\xd9']

def bytes_changed(rng, data):
    "Copy `data` with a few bytes flipped, randomized, cut out, duplicated, or replaced by large integers."
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 3, 10])):
        at = rng.randrange(len(data) + 1)
        n = rng.choice([1, 1, 2, 4, 8, 50])
        how = rng.random()
        if how < .3 and at < len(data): data[at] ^= 1 << rng.randrange(8)
        elif how < .5: data[at:at+n] = rng.randbytes(n)
        elif how < .6: del data[at:at + rng.choice([n, len(data)])]
        elif how < .7: data[at:at] = data[rng.randrange(len(data) + 1):][:n*10]
        elif how < .8: data[at:at] = rng.choice(SCRAPS)*n
        else:
            number = rng.choice(CLAIMS)
            size = rng.choice([n for n in (1, 2, 4, 8) if number < 256**n])
            data[at:at+size] = number.to_bytes(size, rng.choice(['big', 'little']))
    return bytes(data)


def text_changed(rng, text, words, cut=r'(\W)'):
    "Encode `text` with a few of its parts, split at `cut`, replaced, repeated or moved."
    parts = re.split(cut, text)
    for _ in range(rng.choice([1, 1, 2, 5])):
        at = rng.randrange(len(parts))
        how = rng.random()
        if how < .7: parts[at] = rng.choice(words)
        elif how < .8: parts[at] *= rng.choice([0, 2, 50])
        elif how < .9: parts[at:at] = parts[rng.randrange(len(parts)):][:rng.randint(1, 9)]
        else: parts[at:at] = [rng.choice(words)]*rng.choice([1, 1, 30])
    data = ''.join(parts).encode(rng.choice(['utf-8']*8 + ['utf-16', 'utf-8-sig']), 'surrogatepass')
    return bytes_changed(rng, data) if rng.random() < .2 else data


# ---- Datasets: valid ones, and the words that replace parts of them

COCO = dict(
    images=[dict(id=n, file_name=f'{name}.png', width=20, height=10) for n, name in enumerate('ab')],
    categories=[dict(id=1, name='ant'), dict(id=2, name='bee', supercategory='ant')],
    annotations=[dict(id=n, image_id=n % 2, category_id=1 + n % 2, bbox=[1, 2, 3, 4], area=12, iscrowd=0,
                      segmentation=[[1, 2, 3, 4, 5, 6]]) for n in range(3)])
OBJECT = ('<object><name>{}</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>9</xmax><ymax>8</ymax></bndbox>'
          '</object>')
XML = ('<?xml version="1.0" encoding="utf-8"?>\n<annotation><filename>a.png</filename>'
       '<size><width>20</width><height>10</height></size>'
       + OBJECT.format('ant') + OBJECT.format('bee') + '</annotation>')
ENTITIES = ''.join(f'<!ENTITY e{n + 1} "{f"&e{n};"*10}">' for n in range(9))
LAUGHS = f'<!DOCTYPE l [<!ENTITY e0 "ha">{ENTITIES}]>'
XML_WORDS = [*NUMBERS, *WORDS, LAUGHS, '&e9;', '<!DOCTYPE l SYSTEM "file:///etc/passwd">',
             '<!DOCTYPE l [<!ENTITY x SYSTEM "file:///etc/passwd">]>', '&x;', '&#0;', '&#x10ffff;', '<object>',
             '</object>', '<object>'*2000, '<bndbox>', '<![CDATA[', ']]>', '<!--', '<?php ?>', 'utf-16', 'utf-7',
             'rot13', '<xi:include href="/etc/passwd"/>', '<size/>', '<width/>', '<name>']
YAML = """path: .
train: images/train
val: [images/val]
test: list.txt
nc: 2
names:
  0: ant
  1: 'bee'
"""
ALIASES = 'a0: &a0 [x]\n' + ''.join(f'a{n + 1}: &a{n + 1} [{", ".join([f"*a{n}"]*10)}]\n' for n in range(9))
YAML_WORDS = [*NUMBERS, *PLACES, *WORDS, ALIASES, 'names: *a9\n', '&x [*x]', '&x', '*x', '<<: *x',
              '!!python/object/apply:os.system ["touch canary"]', '!!python/name:os.system ', '!!int ""',
              '!!float ""', '!!bool x', '!!timestamp x', '!!binary x', '!!set {a}', '!!omap [a]', '!!merge x',
              '!!str ', '!x ', '[', '{', '['*3000, '2001-99-99', '? ', '- ', '|', '>', '%YAML 9.9\n', '---\n', 'yes',
              '~', 'nc: 4000000000\n', 'nc: 19999\n', 'names: [ant, bee]\n', 'kpt_shape: 1\n', '\t']
TXT = '0 .5 .5 .25 .5\n1 .1 .1 .2 .1 .2 .4\n'
LINES = 'images/train/a.png\n./images/val/b.png\n'
DARKNET = 'classes = 2\ntrain = list.txt\nvalid = data/list.txt\nnames = obj.names\nbackup = backup/\n'
NAMES = 'ant\nbee\n'


def pixels(root, *names):
    for name in names:
        (root/name).parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (20, 10), 'red').save(root/name)


def coco_base(root): pixels(root, 'images/a.png', 'images/b.png')

def coco_input(rng):
    data = dumped(changed(rng, COCO))
    return {'annotations/instances_train.json': bytes_changed(rng, data) if rng.random() < .3 else data}


def voc_base(root): pixels(root, 'JPEGImages/a.png', 'JPEGImages/b.png')

def voc_input(rng):
    split = 'ImageSets/Main/train.txt'
    files = {'Annotations/a.xml': XML.encode(), 'Annotations/b.xml': XML.encode(), split: b'a\nb\n'}
    if rng.random() < .1:
        files[split] = text_changed(rng, 'a\nb\n', [*WORDS, ' '*20000 + 'x', ' 1', ' -1'])
        return files
    name = rng.choice('ab')
    files[f'Annotations/{name}.xml'] = text_changed(rng, XML, XML_WORDS, rng.choice([r'(<[^>]*>)', r'(\W)', r'([<>])']))
    return files


def yolo_base(root): pixels(root, 'images/train/a.png', 'images/val/b.png')

LABELS = 'labels/train/a.txt'
YOLO_KINDS = ['data.yaml']*5 + [LABELS]*3 + ['list.txt', 'obj.data', 'obj.names', 'classes.txt']
YOLO_WORDS = {'data.yaml': YAML_WORDS, LABELS: [*NUMBERS, '0 '*2000, '\u2028', 'x'*5000, '\x00']}

def yolo_input(rng):
    kind = rng.choice(YOLO_KINDS)
    files = {LABELS: TXT, 'labels/val/b.txt': TXT, 'list.txt': LINES, 'data.yaml': YAML}
    if kind.startswith('obj'):
        del files['data.yaml']
        files.update({'obj.data': DARKNET, 'obj.names': NAMES})
    if kind == 'classes.txt':
        del files['data.yaml']
        files['classes.txt'] = NAMES
    if kind == LABELS and rng.random() < .5: del files['data.yaml']
    words = YOLO_WORDS.get(kind, [*WORDS, *NUMBERS])
    changed = text_changed(rng, files[kind], words, rng.choice([r'(\W)', r'(\n)', r'([:\n]\s*)']))
    return {**{name: text.encode() for name, text in files.items()}, kind: changed}


# ---- Folders in which names and links lead elsewhere

LINKS = ['images/link.png', 'images/a.png', 'labels/a.txt', 'away', 'annotations', 'images/loop.png',
         'images/pipe.png', 'train', 'all.json', 'data.yaml', 'a.xml', 'classes.txt', 'out', 'out/a.png.jpg']

def target(rng, place): # None stands for a pipe
    itself = os.path.basename(place)
    return rng.choice(['..', '/etc', '/etc/passwd', '../secret', 'loop', itself, '/dev/null', '/proc/self/mem', '.',
                       None])


def paths_input(rng):
    name = rng.choice(PLACES)
    links = {place: ('link', target(rng, place)) for place in rng.sample(LINKS, rng.randint(0, 4))}
    return {**rng.choice(naming(name)), **links}


def naming(name):
    "Return a folder of each format that mentions `name`."
    text = encoded(name)
    doc = json.loads(json.dumps(COCO))
    doc['images'][0]['file_name'] = name
    quoted = json.dumps(name)
    voc = {'Annotations/a.xml': XML.replace('a.png', 'PLACE').encode().replace(b'PLACE', text),
           'ImageSets/Main/train.txt': text, 'JPEGImages/a.png': b''}
    return [{'annotations/instances_train.json': json.dumps(doc).encode()},
            {'data.yaml': YAML.replace('images/train', quoted).encode(), 'list.txt': LINES.encode()},
            {'data.yaml': YAML.replace('path: .', f'path: {quoted}').encode()},
            {'data.yaml': YAML.encode(), 'list.txt': text},
            {'obj.data': DARKNET.encode(), 'list.txt': text},
            {'obj.data': encoded(DARKNET.replace('obj.names', name))},
            voc,
            {'labels/a.txt': TXT.encode(), 'classes.txt': text}]


def encoded(text): return text.encode('utf-8', 'surrogatepass')
def paths_base(root): pixels(root, 'images/a.png')

def read_paths(root):
    pairs, _ = find_inputs([str(root)], root/'out')
    check_drawn_files(pairs, root/'out')
    out = os.path.realpath(root/'out')
    for _, path in pairs:
        real = os.path.realpath(path)
        assert real == out or real.startswith(out + os.sep), f'{path} would be written outside'
    read_data(root)


def read_data(root):
    "Read everything that yolox_doctor reads, except for the images."
    splits = {name: read() for name, read in find_splits(root).items()}
    for a in splits.values(): assert_sound(a, root)
    if splits: list(check_splits(splits))


def assert_sound(a, root): # Annotations
    assert np.isfinite(a.boxes).all() and np.isfinite(a.areas).all(), a.boxes
    assert (a.boxes[:, :2] < a.boxes[:, 2:]).all(), a.boxes
    assert len(a.boxes) == len(a.labels) == len(a.crowd) == len(a.areas) == a.starts[-1]
    assert (a.sizes > 0).all() and (a.sizes < 2**31).all(), a.sizes
    assert ((a.labels >= 0) & (a.labels < len(a.names))).all(), a.labels
    assert len({*a.names}) == len(a.names) <= MAX_CLASSES, a.names
    for name in a.names:
        assert isinstance(name, str) and not re.search('[\x00-\x1f\x7f-\x9f\ud800-\udfff]', name), a.names
    for p in a.paths:
        assert os.path.abspath(p).startswith(str(root) + os.sep) and '..' not in Path(p).parts, p
        assert os.path.isfile(p), p
    check(a)


# ---- Images

def image_seeds():
    "Return a small image file in each format and variant."
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 255, (12, 16, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6 # Orientation
    exif[0x010e] = 'x' # Description
    kinds = [('jpeg', 'RGB', dict(exif=exif)), ('jpeg', 'RGB', dict(progressive=True)), ('jpeg', 'L', {}),
             ('png', 'RGB', dict(exif=exif)), ('png', 'P', {}), ('png', '1', {}), ('gif', 'P', {}), ('bmp', 'RGB', {}),
             ('webp', 'RGB', dict(exif=exif)), ('tiff', 'RGB', {}), ('tiff', 'RGB', dict(compression='tiff_lzw')),
             ('ppm', 'RGB', {}), ('eps', 'RGB', {}), ('ico', 'RGB', {}), ('jpeg2000', 'RGB', {}), ('tga', 'RGB', {})]
    seeds = []
    for kind, mode, options in kinds:
        with contextlib.suppress(OSError, KeyError): # Pillow may be built without a format
            file = io.BytesIO()
            image.convert(mode).save(file, kind, **options)
            seeds.append(file.getvalue())
    svg = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="/etc/passwd"/></svg>'
    return [*seeds, svg, b'P3 2 2 255 ' + b'1 2 3 '*4]


def pictures_input(rng, seeds=[]): # `seeds` are made once
    if not seeds: seeds.extend(image_seeds())
    data = rng.choice(seeds)
    if rng.random() >= .3: data = bytes_changed(rng, data)
    elif rng.random() < .5: data = data[:40] + bytes_changed(rng, data[40:])
    else: data = bytes_changed(rng, data[:40]) + data[40:]
    name = f'a.{rng.choice(["jpg", "png", "tif", "gif"])}'
    if rng.random() < .3: data += b'\xff\xd9' # The end of a JPEG
    return {name: data}


def read_pictures(root):
    (path,) = root.iterdir()
    with contextlib.suppress(OSError, ValueError): stored_sizes(root, [path])
    with contextlib.suppress(OSError, ValueError): read_image(path, upright=False)
    image = read_image(path)
    assert image.dtype == torch.uint8 and image.ndim == 3 and len(image) == 3, image.shape
    assert image.numel() < 2**30, image.shape


# ---- Weights: safetensors

def network():
    "Return as much of a network's weights as readers look at."
    g = torch.Generator().manual_seed(0)
    stem = torch.rand(24, 12, 3, 3, generator=g)
    variance = stem.flatten(1).square().sum(1)/12
    return {STEM: stem, STEM_VARIANCE: variance, CLASSES: torch.zeros(2, 96, 1, 1), 'neck.x': torch.zeros(2)}


KNOWN = dict(model_type='yolox_tiny', num_classes=2, mean=[.5, .5, .5], std=[1., 1., 1.], names=['ant', 'bee'], size=64,
             family='ours', focus='TL TR BL BR', notes=dict(AP=.5))

def safetensors_input(rng):
    tensors = {k: v[:1] if k == 'neck.x' else v for k, v in network().items()}
    data = save(tensors, metadata=dict(cjm_yolox_pytorch='@known@'))
    length = struct.unpack('<Q', data[:8])[0]
    header = json.loads(data[8:8+length])
    rest = data[8+length:]
    how = rng.random()
    known = dumped(changed(rng, KNOWN)).decode() if how < .5 else json.dumps(KNOWN)
    if how > .4: header = changed(rng, header)
    metadata = header.get('__metadata__')
    if isinstance(metadata, dict) and metadata.get('cjm_yolox_pytorch') == '@known@':
        metadata['cjm_yolox_pytorch'] = known
    text = dumped(header)
    if rng.random() < .1: text = bytes_changed(rng, text)
    n = len(text)
    length = rng.choice([n]*15 + [0, 1, 2**63, 2**64 - 1, n + 5, n - 1, 10**8])
    if rng.random() < .1: rest = bytes_changed(rng, rest)
    return {'a.safetensors': struct.pack('<Q', length) + text + rest}


# ---- Weights: pickles

class Mischief:
    "Calls `call(*args)` when it is unpickled."
    def __init__(self, call, *args):
        self.call = call
        self.args = args

    def __reduce__(self): return self.call, self.args


MODULES = [
    b'os\nsystem', b'posix\nsystem', b'builtins\neval', b'builtins\nexec', b'__builtin__\neval', b'subprocess\nPopen',
    b'builtins\nbytearray', b'builtins\nset', b'builtins\ncomplex', b'builtins\ngetattr', b'_codecs\nencode',
    b'collections\nOrderedDict', b'collections\nCounter', b'torch\nSize', b'torch\ndevice', b'torch\nFloatStorage',
    b'torch\nFloatTensor', b'torch\nTensor', b'torch.storage\nUntypedStorage', b'torch.storage\nTypedStorage',
    b'torch.storage\n_load_from_bytes', b'torch._utils\n_rebuild_tensor_v2', b'torch._utils\n_rebuild_parameter',
    b'torch._utils\n_rebuild_sparse_tensor', b'torch._utils\n_rebuild_qtensor',
    b'torch._utils\n_rebuild_meta_tensor_no_storage', b'torch._utils\n_rebuild_wrapper_subclass',
    b'torch._tensor\n_rebuild_from_type_v2', b'torch.nn.parameter\nParameter', b'numpy.core.multiarray\n_reconstruct',
    b'numpy._core.multiarray\n_reconstruct', b'numpy._core.multiarray\nscalar', b'numpy\nndarray', b'numpy\ndtype',
    b'mmengine.logging.history_buffer\nHistoryBuffer', b'torch\nload', b'torch.hub\nload', b'pickle\nloads',
    b'numpy\nload', b'torch\nfloat32', b'torch\nfloat64']


def short(data): return bytes([len(data)]) + data
def text_of(s): return b'X' + struct.pack('<I', len(s)) + s
def whole(n): return b'J' + struct.pack('<i', n)


def opcodes(rng):
    "Return a pickle program that puts something together, however odd."
    if rng.random() < .3: return noise(rng)
    keys = rng.sample([STEM, STEM_VARIANCE, CLASSES, 'model', 'state_dict', 'x'], 3)
    return b'\x80\x02}(' + b''.join(text_of(k.encode()) + thing(rng) for k in keys) + b'u.'


GREEDY = [
    # Two gigabytes
    b'cbuiltins\nbytearray\n' + whole(2**31 - 1) + b'\x85R',
    # A key of a billion parts
    b'}' + text_of(b'ab') + b'\x85q\x06' + b'h\x06\x86q\x06'*30 + b'Ns',
    # A set of numbers that are not in the file
    b'c__builtin__\nset\nctorch\nTensor\n' + whole(2**31 - 1) + b'\x85R\x85R',
    # Many sets of one list
    b']q\x06(' + b'K\x07'*9999 + b'ec__builtin__\nset\nq\x07](' + b'h\x07h\x06\x85R'*9999 + b'e',
    # A text that is doubled again and again
    b'c_codecs\nencode\n'*26 + b'c_codecs\nencode\n' + text_of(b'a'*32) + text_of(b'latin1') + b'\x86R'
    + (text_of(b'hex') + b'\x86R')*26]

INTEGERS = [0, 1, -1, 7, 1000, 2**31 - 1, -2**31]
THING_TEXTS = [b'cpu', b'hex', b'latin1', b'f8', b'O', b'touch canary', b'x'*300, b'\xed\xa0\x80']
PLAIN = [
    lambda rng: whole(rng.choice(INTEGERS)),
    lambda rng: text_of(rng.choice(THING_TEXTS)),
    lambda rng: b'N',
    lambda rng: b'\x88',
    lambda rng: b'}',
    lambda rng: b']',
    lambda rng: b')',
    lambda rng: tensor(rng)]


def thing(rng, depth=3):
    "Return opcodes that push one object."
    if not depth or rng.random() < .2: return rng.choice(PLAIN)(rng)
    if rng.random() < .05: return rng.choice(GREEDY)
    def one(): return thing(rng, depth - 1)
    def several(): return b'(' + b''.join(one() for _ in range(rng.choice([0, 1, 1, 2, 3, 5]))) + b't'
    def call(): return named(rng) + several() + b'R'
    return rng.choice([
        several,
        call,
        call,
        lambda: named(rng) + several() + b'\x81',
        lambda: call() + one() + b'b',
        lambda: b'](' + several() + b'e',
        lambda: named(rng),
        lambda: tensor(rng),
        lambda: b'}(' + one() + one() + b'u',
        lambda: one() + b'q\x05h\x05\x86'*rng.choice([1, 5, 60])])()


def named(rng): return b'c' + rng.choice(MODULES) + b'\n'


def tensor(rng):
    "Return a tensor like those that torch.save writes, with sizes that may not fit."
    start = b'ctorch._utils\n_rebuild_tensor_v2\n(' + storage(rng) + whole(rng.choice([0, 0, 0, 5, -1, 2**31 - 1]))
    return start + dimensions(rng) + dimensions(rng) + b'\x89ccollections\nOrderedDict\n)RtR'


def dimensions(rng):
    count = rng.choice([0, 1, 4])
    return b'(' + b''.join(whole(rng.choice([24, 12, 3, 1, 0, 2592, 2**31 - 1, -1])) for _ in range(count)) + b't'


STORAGES = [b'FloatStorage', b'HalfStorage', b'ByteStorage', b'ComplexDoubleStorage', b'QInt8Storage']

def storage(rng):
    kind = b'(' + text_of(b'storage') + b'ctorch\n' + rng.choice(STORAGES) + b'\n'
    key = text_of(rng.choice([b'0', b'1', b'../../x']))
    device = text_of(rng.choice([b'cpu', b'cuda:0', b'meta']))
    return kind + key + device + whole(rng.choice([0, 10, 2592, 2**31 - 1, -1])) + b'tQ'


OPCODES = [b'}', b']', b')', b'N', b'\x88', b'\x89', b'(', b't', b'\x85', b'\x86', b'\x87', b'R', b'R', b'b', b'\x81',
           b's', b'u', b'a', b'e', b'Q', b'\x8f', b'0', b'2']
NOISE_TEXTS = [b'model', b'state_dict', b'cpu', b'storage', b'0', b'f8', b'O', STEM.encode(), b'x'*300, b'\xed\xa0\x80']
NOISE = [
    *OPCODES,
    lambda rng: b'q' + bytes([rng.randrange(4)]),
    lambda rng: b'h' + bytes([rng.randrange(4)]),
    lambda rng: whole(rng.choice(INTEGERS)),
    lambda rng: b'G' + struct.pack('>d', rng.choice([0., 1e308, float('nan')])),
    lambda rng: b'\x8a' + short(rng.randbytes(rng.choice([1, 8, 200]))),
    lambda rng: text_of(rng.choice(NOISE_TEXTS)),
    named,
    lambda rng: named(rng) + whole(rng.choice([3, 2**31 - 1])) + b'\x85R',
    lambda rng: named(rng) + text_of(b'touch canary') + b'\x85R',
    storage]


def noise(rng):
    "Return random opcodes."
    program = b'\x80\x02'
    for _ in range(rng.randint(1, 25)):
        part = rng.choice(NOISE)
        program += part if isinstance(part, bytes) else part(rng)
    return program + b'.'


def zipped(rng, records):
    "Return an archive like those that torch.save writes; records may be compressed, and occur twice."
    file = io.BytesIO()
    compression = rng.choice([zipfile.ZIP_STORED]*5 + [zipfile.ZIP_DEFLATED])
    with zipfile.ZipFile(file, 'w', compression) as archive, warnings.catch_warnings():
        warnings.simplefilter('ignore') # About duplicate names
        for name, data in records: archive.writestr(name, data)
    return file.getvalue()


def pickle_seeds():
    "Return files as torch.save writes them, each with whether it is a zip archive."
    state = network()
    contents = [{'model': {'backbone.' + k: v for k, v in state.items()}, 'epoch': 3}, state,
                dict(state_dict=state, log=np.arange(3.), best=np.float64(1)), OrderedDict(state),
                dict(model=Mischief(os.system, 'touch canary'))]
    seeds = []
    for content in contents:
        for new in (True, False):
            file = io.BytesIO()
            torch.save(content, file, _use_new_zipfile_serialization=new)
            seeds.append((new, file.getvalue()))
    seeds.append((False, pickle.dumps(dict(model=Mischief(os.mkdir, 'canary')), protocol=2)))
    return seeds


def pickles_input(rng, seeds=[]): # `seeds` are made once
    if not seeds: seeds.extend(pickle_seeds())
    how = rng.random()
    new, data = rng.choice(seeds)
    if how < .3: return {'a.pth': program_file(rng)}
    if how > .7 or not new: return {'a.pth': bytes_changed(rng, data)}
    return {'a.pth': records_changed(rng, data)}


def program_file(rng):
    if rng.random() < .2: return opcodes(rng)
    records = [('a/data.pkl', opcodes(rng)), ('a/byteorder', b'little'), ('a/version', b'3\n')]
    return zipped(rng, [*records, ('a/data/0', bytes(10368))])


def records_changed(rng, data):
    "Change or rename one record of an archive, most often the pickle."
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        records = [(i.filename, archive.read(i)) for i in archive.infolist()]
    programs = [n for n, (name, _) in enumerate(records) if name.endswith('.pkl')]
    at = rng.choice(programs) if rng.random() < .8 else rng.randrange(len(records))
    name, content = records[at]
    if rng.random() < .9: records[at] = name, bytes_changed(rng, content)
    else: records[at] = rng.choice(['archive/' + rng.choice(PLACES[:9]), 'archive/constants.pkl']), content
    return zipped(rng, records)


def read_weights(root):
    (path,) = root.iterdir()
    w = load_weights(path)
    assert w.model_type in VARIANTS, w
    assert isinstance(w.num_classes, int) and 0 < w.num_classes == len(w.state[CLASSES]), w
    assert isinstance(w.input_size, int) and 0 < w.input_size < 2**15, w
    if w.names is not None: assert len(w.names) == w.num_classes and all(isinstance(n, str) for n in w.names), w.names
    assert all(np.isfinite(v) for v in (*w.mean, *w.std)) and 0 not in w.std, (w.mean, w.std)
    assert len(w.mean) == len(w.std) == 3, (w.mean, w.std)
    assert all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in w.state.items())


def nothing(root): pass


# What is written once, what an input writes, and what reads it
READERS = dict(
    coco=(coco_base, coco_input, read_data),
    voc=(voc_base, voc_input, read_data),
    yolo=(yolo_base, yolo_input, read_data),
    paths=(paths_base, paths_input, read_paths),
    pictures=(nothing, pictures_input, read_pictures),
    safetensors=(nothing, safetensors_input, read_weights),
    pickles=(nothing, pickles_input, read_weights))


# ---- The watch

class Hang(BaseException):
    "Time is up. Readers do not catch a BaseException."


WATCH = dict(root=None, seen=[])
ACTS = ('os.system', 'os.exec', 'os.posix_spawn', 'os.spawn', 'os.fork', 'os.remove', 'os.rename', 'os.mkdir',
        'os.rmdir', 'os.symlink', 'os.link', 'os.truncate', 'os.chmod', 'os.putenv', 'subprocess.', 'socket.',
        'shutil.', 'ftplib.', 'urllib.', 'webbrowser.', 'pty.')
# Python itself reads files in these folders
PYTHON = (sys.prefix, sys.base_prefix, Path(__file__).parents[1], np.__path__[0], '/usr/share', '/usr/lib',
          '/sys/devices')
OURS = tuple({os.path.realpath(p) for p in PYTHON})


def watch(event, args):
    root = WATCH and WATCH['root'] # None while Python exits
    if root is None: return
    if event.startswith(ACTS): WATCH['seen'].append(f'{event} {args}')
    elif event == 'open' and isinstance(args[0], (str, bytes)) and not may_open(root, *args):
        WATCH['seen'].append(f'open {args}')


def may_open(root, path, mode, flags):
    if path == tempfile.gettempdir(): return True # An unnamed file, for what libtiff prints
    if (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC): return False
    path = os.fsdecode(path)
    # A link in the folder may be followed: SECURITY.md
    return os.path.abspath(path).startswith(root) or os.path.realpath(path).startswith((root, *OURS))


def memory(reset=False):
    "Return the peak memory of this process since the last reset in KB; or reset it, and return what is used now."
    import resource # Not on Windows
    status = Path('/proc/self/status')
    if not status.exists(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss # Cannot be reset
    if reset: Path('/proc/self/clear_refs').write_text('5')
    return int(re.search(r'VmRSS:\s+(\d+)' if reset else r'VmHWM:\s+(\d+)', status.read_text())[1])


def arm():
    "Watch what this process does from now on, which cannot be undone, and let the timers of `attempt` raise `Hang`."
    if not WATCH.get('armed'): sys.addaudithook(watch)
    WATCH['armed'] = True
    sys.dont_write_bytecode = True # A lazy import would be seen as writing
    def hang(*_): raise Hang
    for number in (signal.SIGPROF, signal.SIGALRM): signal.signal(number, hang)


@contextlib.contextmanager
def limited(root, seconds):
    "Watch this process, and raise `Hang` after so many seconds."
    WATCH.update(root=str(root), seen=[])
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, 60*seconds) # Waiting takes no CPU time; other programs may take a lot
    try: yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        WATCH['root'] = None


def attempt(read, root, seconds=SECONDS, megabytes=MEGABYTES):
    """Return the outcome of an input, its exception, and (seconds, megabytes) that it took.

    The outcome is accepted, refused, or a text that says what is wrong.
    """
    before = memory(reset=True)
    start = time.process_time()
    error = None
    try:
        with limited(root, seconds): read(root)
    except (Exception, Hang) as e: error = e
    took = time.process_time() - start, max(0, memory() - before)//1000
    outcome = judged(error, root)
    if WATCH['seen']: outcome = f'does what no reader should: {WATCH["seen"][0][:200]}'
    if took[1] > megabytes: outcome = f'takes {took[1]} MB'
    return outcome, error, took


EXPECTED = ValueError, FloatingPointError, OSError, ImportError

def judged(error, root):
    if error is None: return 'accepted'
    if isinstance(error, Hang): return 'takes too long'
    message = _message(error, 'cjm_yolox_pytorch') if isinstance(error, EXPECTED) else None # Like `command`
    if message is None: return f'ends in a traceback: {type(error).__name__}: {str(error)[:100]}'
    if str(root) not in message: return f'does not name the file: {message[:200]}'
    if len(message) <= LETTERS: return 'refused'
    return f'gives an error of {len(message)} characters: {message[:100]}'


def put(root, files):
    """Write `files`: bytes, ('link', target), ('link', None) for a pipe, or None for nothing.

    ROOT in bytes stands for the folder.
    """
    for name, data in files.items():
        path = root/name
        if data is None or not os.path.realpath(path.parent).startswith(str(root)): continue
        with contextlib.suppress(FileExistsError, NotADirectoryError, IsADirectoryError): # A link took its place
            path.parent.mkdir(parents=True, exist_ok=True)
            if not isinstance(data, tuple): path.write_bytes(data.replace(b'ROOT', os.fsencode(root)))
            elif path.is_symlink() or path.exists(): continue
            elif data[1] is None: os.mkfifo(path)
            else: path.symlink_to(data[1])


def where(error):
    "Return the innermost function of the package in a traceback, which tells faults apart."
    frames = traceback.extract_tb(error.__traceback__) if error else []
    frames = [f for f in frames if 'cjm_yolox_pytorch' in f.filename]
    return f'{Path(frames[-1].filename).name}:{frames[-1].name}' if frames else ''


# ---- All together

@dataclass
class Tally:
    "The results of one reader."
    outcomes: Counter = field(default_factory=Counter) # accepted, refused, fault
    worst: tuple = (0, 0) # Seconds, megabytes
    faults: dict = field(default_factory=dict) # (kind, function): [(input, what is wrong)]

    def add(self, n, outcome, error, took, root):
        self.worst = tuple(map(max, self.worst, took))
        fine = outcome in ('accepted', 'refused')
        self.outcomes[outcome if fine else 'fault'] += 1
        if fine: return
        kind = re.sub(r'\d+', 'N', outcome.replace(str(root), 'DIR'))[:70]
        self.faults.setdefault((kind, where(error)), []).append((n, outcome))


def try_one(reader, n, seed, place):
    "Make input `n`, and return what `attempt` does, and the folder."
    base, make, read = READERS[reader]
    rng = random.Random(f'{seed} {reader} {n}')
    root = place/f'{reader}{n}'/'data'
    root.mkdir(parents=True)
    (root.parent/'secret').write_text('0 .5 .5 .5 .5')
    base(root)
    try: files = make(rng)
    except UnicodeEncodeError: files = {}
    put(root, files)
    # For code that never returns to Python, or waits without using the CPU
    faulthandler.dump_traceback_later(900, exit=True, file=sys.stderr)
    outcome, error, took = attempt(read, root)
    faulthandler.cancel_dump_traceback_later()
    if sorted(os.listdir(root.parent)) != ['data', 'secret'] or (place/'canary').exists() or os.listdir('.'):
        outcome = 'leaves something behind'
    return outcome, error, took, root


def fuzz(reader, numbers, seed, place):
    "Try the inputs `numbers`. Files of faults are kept; a single input is kept anyway, and shows its traceback."
    tally = Tally()
    for n in numbers:
        outcome, error, took, root = try_one(reader, n, seed, place)
        tally.add(n, outcome, error, took, root)
        if len(numbers) > 1 and outcome in ('accepted', 'refused'): shutil.rmtree(root.parent)
        if len(numbers) == 1 and error is not None: traceback.print_exception(error)
    return tally


def silence():
    "Discard what decoders and libraries print about each file; sys.stderr still works."
    sys.stderr = os.fdopen(os.dup(2), 'w')
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    faulthandler.enable(sys.stderr) # A decoder may crash
    logging.disable() # Pillow logs, too
    warnings.simplefilter('ignore')
    warnings.filterwarnings('error', category=RuntimeWarning) # NumPy warns of overflow
    warnings.filterwarnings('ignore', category=Image.DecompressionBombWarning)


def limit_memory():
    statm = Path('/proc/self/statm')
    import resource
    size = int(statm.read_text().split()[0])*resource.getpagesize() if statm.exists() else 2**36
    resource.setrlimit(resource.RLIMIT_AS, (size + 4*2**30,)*2)


def print_header(seed):
    versions = f'torch {torch.__version__}, Pillow {Image.__version__}, PyYAML {yaml.__version__}'
    print(f'seed {seed}, Python {sys.version.split()[0]}, {versions}\n')
    columns = f'{"reader":12}{"inputs":>8}{"accepted":>10}{"refused":>9}{"faults":>8}{"worst":>9}{"memory":>10}'
    print(columns, flush=True)


def print_tally(reader, count, tally):
    accepted, refused, fault = (tally.outcomes[name] for name in ('accepted', 'refused', 'fault'))
    seconds, megabytes = tally.worst
    print(f'{reader:12}{count:8}{accepted:10}{refused:9}{fault:8}{seconds:7.2f} s{megabytes:7} MB', flush=True)
    for (_, function), found in tally.faults.items():
        n, what = found[0]
        print(f'  {len(found)} times, for example input {n} {function}: {what}', flush=True)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--inputs', type=int, default=3500, help='total number of inputs (default: 3500)')
    parser.add_argument('--seed', type=int, default=0, help='seed of the inputs (default: 0)')
    parser.add_argument('--reader', choices=READERS, help='reader to test (default: all)')
    parser.add_argument('--replay', type=int, help='number of a single input to repeat')
    return parser.parse_args()


def main():
    options = parse_arguments()
    place = Path(os.path.realpath(tempfile.mkdtemp(prefix='fuzz')))
    (place/'here').mkdir()
    os.chdir(place/'here') # Must stay empty
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    silence()
    limit_memory()
    arm()
    print_header(options.seed)
    readers = [options.reader] if options.reader else list(READERS)
    faults = 0
    for reader in readers:
        numbers = range(options.inputs//len(readers)) if options.replay is None else [options.replay]
        tally = fuzz(reader, numbers, options.seed, place)
        print_tally(reader, len(numbers), tally)
        faults += tally.outcomes['fault']
    if options.replay is not None: print(f'\nthe files are in {place}')
    else:
        os.chdir('/')
        shutil.rmtree(place)
    sys.exit(faults and f'\n{faults} inputs were neither read nor refused properly')


if __name__ == '__main__': main()
