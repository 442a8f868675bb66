"""Feed every reader of files with what nobody should write.

Each input is a small data set, picture or file of weights, in which a seeded generator has put what does harm, or changed bytes. It has to be
read, or refused in the way that commands turn into a line `error: ...` that names the file, within seconds and bounded memory; nothing may be run,
written, or opened elsewhere.

    python tools/fuzz.py --inputs 100000 --seed 0     # shared among the readers
    python tools/fuzz.py --reader coco --replay 1234  # one input again, with its traceback, and its files left where they are
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
import resource
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
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1])) # This checkout, whether installed or not
sys.dont_write_bytecode = True # Nothing at all is written while files are read

import cv2 # Sets variables of the environment, which is seen
import numpy as np
import torch
import yaml
from PIL import Image
from safetensors.torch import save

from cjm_yolox_pytorch.files.checkpoints import _CLASSES, load_weights
from cjm_yolox_pytorch.files.class_names import MAX_CLASSES
from cjm_yolox_pytorch.files.families import _NORM, STEM
from cjm_yolox_pytorch.model import VARIANTS
from cjm_yolox_pytorch.data.checks import check, check_splits
from cjm_yolox_pytorch.data.splits import find_splits
from cjm_yolox_pytorch.files.images import stored_sizes
from cjm_yolox_pytorch.detection.predict import find_inputs
from cjm_yolox_pytorch.files.images import read_image
from cjm_yolox_pytorch.commands.command import _message

SECONDS, MEGABYTES, LETTERS = 5, 1000, 3000 # Most that one input may cost: time of the CPU, memory, and length of its message

# What does harm, as it stands in text

NUMBERS = ['0', '-1', '-0', '0.5', '1e999', '-1e999', '1e308', '1e39', '1e-400', 'NaN', 'nan', 'inf', '-Infinity', '9'*400, '9'*10000, '0x' + 'f'*9000, '2147483648', '1e10', '99999999999', '9223372036854775808',
           '1_000', '٣', '²', '1:59:59', '59:'*500 + '1', '.', '+', '1.', 'true', 'null', '1j']
PLACES = ['../../etc/passwd', '/etc/passwd', '..\\..\\secret', 'C:\\secret', '\\\\host\\share', '//host/share', 'images/../../secret', './././a.png', 'a.png/', '', '.', '..', '~', '~root', 'a\x00.png', 'a\n.png', '\x1b]0;title\x07', 'a'*300, 'a/'*3000,
          'a'*100000, 'images', 'con', 'aux.png', 'file:///etc/passwd', 'http://localhost:9/a.png', '\ud800', '\u202egnp.a', '%2e%2e/secret', '$HOME', '$_$', '$$', '`touch ../canary`', '/dev/zero', '/proc/self/environ', 'link.png', 'away/secret', 'pipe.png', 'loop.png', 'ROOT/images/a.png', 'ROOT/images', 'ROOT/../secret']
WORDS = ['a', 'ant', 'x'*5000, '\ufeff', '\u0000', '\u2028', '💥', '"', "'", '<', '&', '{}', '%s%n', '{0.__class__}', '\\', '\x1b[2J', *PLACES]


class Raw(str): # Stands in JSON as it is
    pass


def nested(depth): return Raw('['*depth + ']'*depth)


def value(rng):
    "Anything that JSON can hold, and some things that it cannot"
    return rng.choice([lambda: Raw(rng.choice(NUMBERS)), lambda: Raw(rng.choice(NUMBERS)), lambda: rng.choice(WORDS), lambda: nested(rng.choice([1, 2, 50, 400])), lambda: Raw('['*100000), lambda: {}, lambda: [], lambda: None, lambda: True,
                       lambda: rng.randint(-9, 99), lambda: rng.uniform(-9, 99), lambda: [value(rng) for _ in range(rng.randint(0, 5))], lambda: {rng.choice(WORDS[:9]): value(rng)}])()


def spots(doc): # Every place of a value: container and key
    for key, v in doc.items() if isinstance(doc, dict) else enumerate(doc):
        yield doc, key
        if isinstance(v, (dict, list)): yield from spots(v)


def changed(rng, doc):
    "A copy of what JSON holds, with a few values changed, removed, doubled, or taken from elsewhere"
    doc = json.loads(json.dumps(doc))
    for _ in range(rng.choice([1, 1, 2, 4])):
        if not (places := list(spots(doc))): break
        holder, key = rng.choice(places)
        how = rng.random()
        if how < .6: holder[key] = value(rng)
        elif how < .7: del holder[key]
        elif how < .8: other, k = rng.choice(places); holder[key] = other[k] if not isinstance(other[k], (dict, list)) else None
        elif how < .9 and isinstance(holder, list): holder += holder[key:key + 1]*rng.choice([1, 5])
        elif isinstance(holder, dict): holder[rng.choice([*WORDS[:9], 'segmentation', 'area', 'iscrowd', 'supercategory', 'id'])] = value(rng)
    return doc


def dumped(doc): # As JSON, in which raw text stays as it is
    raw = []
    def mark(v):
        if isinstance(v, Raw): raw.append(v); return f'@raw{len(raw) - 1}@'
        return {k: mark(x) for k, x in v.items()} if isinstance(v, dict) else [mark(x) for x in v] if isinstance(v, list) else v
    return re.sub(r'"@raw(\d+)@"', lambda m: raw[int(m[1])], json.dumps(mark(doc))).encode()


def bytes_changed(rng, data):
    "A few bytes other than they were: flipped, cut out, doubled, filled with numbers that claim much"
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 3, 10])):
        at, n = rng.randrange(len(data) + 1), rng.choice([1, 1, 2, 4, 8, 50])
        how = rng.random()
        if how < .3 and at < len(data): data[at] ^= 1 << rng.randrange(8)
        elif how < .5: data[at:at+n] = rng.randbytes(n)
        elif how < .6: del data[at:at + rng.choice([n, len(data)])]
        elif how < .7: data[at:at] = data[rng.randrange(len(data) + 1):][:n*10]
        elif how < .8: data[at:at] = rng.choice([b'\x00', b'\xff', b'\n', b'<', b'{', b'"', b'\xed\xa0\x80', b'\xff\xd9'])*n
        else:
            number = rng.choice([0, 1, 0x7f, 0xff, 0x7fff, 0xffff, 0x7fffffff, 0xffffffff, 2**63 - 1, 2**64 - 1, 10**5])
            size = rng.choice([n for n in (1, 2, 4, 8) if number < 256**n])
            data[at:at+size] = number.to_bytes(size, rng.choice(['big', 'little']))
    return bytes(data)


def text_changed(rng, text, words, cut=r'(\W)'):
    "A text of which some words are others"
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


# Data sets: what is changed of them in an input

COCO = dict(images=[dict(id=n, file_name=f'{name}.png', width=20, height=10) for n, name in enumerate('ab')], categories=[dict(id=1, name='ant'), dict(id=2, name='bee', supercategory='ant')],
            annotations=[dict(id=n, image_id=n % 2, category_id=1 + n % 2, bbox=[1, 2, 3, 4], area=12, iscrowd=0, segmentation=[[1, 2, 3, 4, 5, 6]]) for n in range(3)])
OBJECT = '<object><name>{}</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>9</xmax><ymax>8</ymax></bndbox></object>'
XML = '<?xml version="1.0" encoding="utf-8"?>\n<annotation><filename>a.png</filename><size><width>20</width><height>10</height></size>' + OBJECT.format('ant') + OBJECT.format('bee') + '</annotation>'
LAUGHS = '<!DOCTYPE l [<!ENTITY e0 "ha">' + ''.join(f'<!ENTITY e{n + 1} "{f"&e{n};"*10}">' for n in range(9)) + ']>'
XML_WORDS = [*NUMBERS, *WORDS, LAUGHS, '&e9;', '<!DOCTYPE l SYSTEM "file:///etc/passwd">', '<!DOCTYPE l [<!ENTITY x SYSTEM "file:///etc/passwd">]>', '&x;', '&#0;', '&#x10ffff;', '<object>', '</object>', '<object>'*2000, '<bndbox>', '<![CDATA[', ']]>', '<!--', '<?php ?>', 'utf-16', 'utf-7',
             'rot13', '<xi:include href="/etc/passwd"/>', '<size/>', '<width/>', '<name>']
YAML = "path: .\ntrain: images/train\nval: [images/val]\ntest: list.txt\nnc: 2\nnames:\n  0: ant\n  1: 'bee'\n"
ALIASES = 'a0: &a0 [x]\n' + ''.join(f'a{n + 1}: &a{n + 1} [{", ".join([f"*a{n}"]*10)}]\n' for n in range(9))
YAML_WORDS = [*NUMBERS, *PLACES, *WORDS, ALIASES, 'names: *a9\n', '&x [*x]', '&x', '*x', '<<: *x', '!!python/object/apply:os.system ["touch canary"]', '!!python/name:os.system ', '!!int ""', '!!float ""', '!!bool x', '!!timestamp x', '!!binary x', '!!set {a}', '!!omap [a]', '!!merge x', '!!str ', '!x ', '[', '{', '['*3000,
              '2001-99-99', '? ', '- ', '|', '>', '%YAML 9.9\n', '---\n', 'yes', '~', 'nc: 4000000000\n', 'nc: 19999\n', 'names: [ant, bee]\n', 'kpt_shape: 1\n', '\t']
TXT = '0 .5 .5 .25 .5\n1 .1 .1 .2 .1 .2 .4\n'
LINES = 'images/train/a.png\n./images/val/b.png\n'
DARKNET = 'classes = 2\ntrain = list.txt\nvalid = data/list.txt\nnames = obj.names\nbackup = backup/\n'


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
    files = {'Annotations/a.xml': XML.encode(), 'Annotations/b.xml': XML.encode(), 'ImageSets/Main/train.txt': b'a\nb\n'}
    if rng.random() < .1: return {**files, 'ImageSets/Main/train.txt': text_changed(rng, 'a\nb\n', [*WORDS, ' '*20000 + 'x', ' 1', ' -1'])}
    return {**files, f'Annotations/{rng.choice("ab")}.xml': text_changed(rng, XML, XML_WORDS, rng.choice([r'(<[^>]*>)', r'(\W)', r'([<>])']))}

def yolo_base(root): pixels(root, 'images/train/a.png', 'images/val/b.png')
def yolo_input(rng):
    files = {'labels/train/a.txt': TXT, 'labels/val/b.txt': TXT, 'list.txt': LINES, 'data.yaml': YAML}
    kind = rng.choice(['data.yaml']*5 + ['labels/train/a.txt']*3 + ['list.txt', 'obj.data', 'obj.names', 'classes.txt'])
    if kind.startswith('obj'): files.update({'data.yaml': None, 'obj.data': DARKNET, 'obj.names': 'ant\nbee\n'})
    if kind == 'classes.txt' or kind.startswith('labels') and rng.random() < .5: files.update({'data.yaml': None, 'classes.txt': 'ant\nbee\n' if kind == 'classes.txt' else None})
    words = {'data.yaml': YAML_WORDS, 'labels/train/a.txt': [*NUMBERS, '0 '*2000, '\u2028', 'x'*5000, '\x00']}.get(kind, [*WORDS, *NUMBERS])
    text = text_changed(rng, files[kind], words, rng.choice([r'(\W)', r'(\n)', r'([:\n]\s*)']))
    return {name: text if name == kind else t and t.encode() for name, t in files.items()}


# A folder in which names lead elsewhere, some of them as links

def paths_input(rng):
    name, links = rng.choice(PLACES), {}
    for place in rng.sample(['images/link.png', 'images/a.png', 'labels/a.txt', 'away', 'annotations', 'images/loop.png', 'images/pipe.png', 'train', 'all.json', 'data.yaml', 'a.xml', 'classes.txt', 'out', 'out/a.png.jpg'], rng.randint(0, 4)):
        links[place] = rng.choice(['..', '/etc', '/etc/passwd', '../secret', 'loop', os.path.basename(place), '/dev/null', '/proc/self/mem', '.', None]) # None: a pipe
    doc = json.loads(json.dumps(COCO))
    doc['images'][0]['file_name'] = name
    text = name.encode('utf-8', 'surrogatepass')
    files = rng.choice([{'annotations/instances_train.json': json.dumps(doc).encode()}, {'data.yaml': YAML.replace('images/train', json.dumps(name)).encode(), 'list.txt': LINES.encode()}, {'data.yaml': YAML.replace('path: .', f'path: {json.dumps(name)}').encode()},
                        {'data.yaml': YAML.encode(), 'list.txt': text}, {'obj.data': DARKNET.encode(), 'list.txt': text}, {'obj.data': DARKNET.replace('obj.names', name).encode('utf-8', 'surrogatepass')},
                        {'Annotations/a.xml': XML.replace('a.png', 'PLACE').encode().replace(b'PLACE', text), 'ImageSets/Main/train.txt': text, 'JPEGImages/a.png': b''}, {'labels/a.txt': TXT.encode(), 'classes.txt': text}])
    return {**files, **{place: ('link', to) for place, to in links.items()}}

def paths_base(root): pixels(root, 'images/a.png')
def read_paths(root):
    pairs, _ = find_inputs([str(root)], root/'out')
    out = os.path.realpath(root/'out')
    for _, target in pairs: assert os.path.realpath(target) == out or os.path.realpath(target).startswith(out + os.sep), f'{target} would be written outside'
    read_data(root)


def read_data(root):
    "As the doctor does, but for the pictures"
    splits = {name: read() for name, read in find_splits(root).items()}
    for a in splits.values(): sound(a, root)
    if splits: list(check_splits(splits))


def sound(a, root): # What was read is what it has to be
    assert np.isfinite(a.boxes).all() and np.isfinite(a.areas).all() and (a.boxes[:, :2] < a.boxes[:, 2:]).all(), a.boxes
    assert len(a.boxes) == len(a.labels) == len(a.crowd) == len(a.areas) == a.starts[-1] and (a.sizes > 0).all() and (a.sizes < 2**31).all(), a.sizes
    assert ((a.labels >= 0) & (a.labels < len(a.names))).all() and len({*a.names}) == len(a.names) <= MAX_CLASSES, a.names
    assert all(isinstance(n, str) and not re.search('[\x00-\x1f\x7f-\x9f\ud800-\udfff]', n) for n in a.names), a.names
    for p in a.paths: assert os.path.abspath(p).startswith(str(root) + os.sep) and '..' not in Path(p).parts and os.path.isfile(p), p
    check(a)


# Pictures

def picture_seeds():
    rng, seeds = np.random.default_rng(0), {}
    image = Image.fromarray(rng.integers(0, 255, (12, 16, 3), dtype=np.uint8))
    exif = Image.Exif(); exif[0x0112], exif[0x010e] = 6, 'x'
    for name, kind, mode, options in [('jpeg', 'jpeg', 'RGB', dict(exif=exif)), ('progressive', 'jpeg', 'RGB', dict(progressive=True)), ('grey', 'jpeg', 'L', {}), ('png', 'png', 'RGB', dict(exif=exif)), ('palette', 'png', 'P', {}), ('bits', 'png', '1', {}), ('gif', 'gif', 'P', {}),
                                      ('bmp', 'bmp', 'RGB', {}), ('webp', 'webp', 'RGB', dict(exif=exif)), ('tiff', 'tiff', 'RGB', {}), ('lzw', 'tiff', 'RGB', dict(compression='tiff_lzw')), ('ppm', 'ppm', 'RGB', {}), ('eps', 'eps', 'RGB', {}), ('ico', 'ico', 'RGB', {}), ('jp2', 'jpeg2000', 'RGB', {}), ('tga', 'tga', 'RGB', {})]:
        with contextlib.suppress(OSError, KeyError): # A format that Pillow was built without
            file = io.BytesIO()
            image.convert(mode).save(file, kind, **options)
            seeds[name] = file.getvalue()
    return {**seeds, 'svg': b'<svg xmlns="http://www.w3.org/2000/svg"><image href="/etc/passwd"/></svg>', 'plain': b'P3 2 2 255 ' + b'1 2 3 '*4}

def pictures_input(rng, seeds=[]):
    if not seeds: seeds.extend(picture_seeds().values())
    data = rng.choice(seeds)
    if rng.random() < .3: data = data[:40] + bytes_changed(rng, data[40:]) if rng.random() < .5 else bytes_changed(rng, data[:40]) + data[40:]
    else: data = bytes_changed(rng, data)
    return {f'a.{rng.choice(["jpg", "png", "tif", "gif"])}': data + b'\xff\xd9'*(rng.random() < .3)} # As a JPEG ends

def read_pictures(root):
    (path,) = root.iterdir()
    for read in (lambda: stored_sizes(root, [path]), lambda: read_image(path, upright=False)):
        with contextlib.suppress(OSError, ValueError): read()
    image = read_image(path)
    assert image.dtype == torch.uint8 and image.ndim == 3 and len(image) == 3 and image.numel() < 2**30, image.shape


# Files of weights

def network():
    g = torch.Generator().manual_seed(0)
    stem = torch.rand(24, 12, 3, 3, generator=g)
    return {STEM: stem, _NORM: stem.flatten(1).square().sum(1)/12, _CLASSES: torch.zeros(2, 96, 1, 1), 'neck.x': torch.zeros(2)}

KNOWN = dict(model_type='yolox_tiny', num_classes=2, mean=[.5, .5, .5], std=[1., 1., 1.], names=['ant', 'bee'], size=64, family='ours', focus='TL TR BL BR', notes=dict(AP=.5))

def safetensors_input(rng):
    data = save({k: v[:1] if k == 'neck.x' else v for k, v in network().items()}, metadata=dict(cjm_yolox_pytorch='@known@'))
    length = struct.unpack('<Q', data[:8])[0]
    header, rest = json.loads(data[8:8+length]), data[8+length:]
    how, known = rng.random(), json.dumps(KNOWN)
    if how < .5: known = dumped(changed(rng, KNOWN)).decode()
    if how > .4: header = changed(rng, header)
    if isinstance(header.get('__metadata__'), dict) and header['__metadata__'].get('cjm_yolox_pytorch') == '@known@': header['__metadata__']['cjm_yolox_pytorch'] = known
    text = dumped(header)
    if rng.random() < .1: text = bytes_changed(rng, text)
    length = rng.choice([len(text)]*15 + [0, 1, 2**63, 2**64 - 1, len(text) + 5, len(text) - 1, 10**8])
    return {'a.safetensors': struct.pack('<Q', length) + text + (bytes_changed(rng, rest) if rng.random() < .1 else rest)}


class Mischief: # Runs when it is unpickled as pickles are
    def __init__(self, call, *args): self.call, self.args = call, args
    def __reduce__(self): return self.call, self.args

MODULES = [b'os\nsystem', b'posix\nsystem', b'builtins\neval', b'builtins\nexec', b'__builtin__\neval', b'subprocess\nPopen', b'builtins\nbytearray', b'builtins\nset', b'builtins\ncomplex', b'builtins\ngetattr', b'_codecs\nencode', b'collections\nOrderedDict', b'collections\nCounter', b'torch\nSize', b'torch\ndevice',
           b'torch\nFloatStorage', b'torch\nFloatTensor', b'torch\nTensor', b'torch.storage\nUntypedStorage', b'torch.storage\nTypedStorage', b'torch.storage\n_load_from_bytes', b'torch._utils\n_rebuild_tensor_v2', b'torch._utils\n_rebuild_parameter', b'torch._utils\n_rebuild_sparse_tensor', b'torch._utils\n_rebuild_qtensor',
           b'torch._utils\n_rebuild_meta_tensor_no_storage', b'torch._utils\n_rebuild_wrapper_subclass', b'torch._tensor\n_rebuild_from_type_v2', b'torch.nn.parameter\nParameter', b'numpy.core.multiarray\n_reconstruct', b'numpy._core.multiarray\n_reconstruct', b'numpy._core.multiarray\nscalar', b'numpy\nndarray', b'numpy\ndtype',
           b'mmengine.logging.history_buffer\nHistoryBuffer', b'torch\nload', b'torch.hub\nload', b'pickle\nloads', b'numpy\nload', b'torch\nfloat32', b'torch\nfloat64']

def short(data): return bytes([len(data)]) + data
def text_of(s): return b'X' + struct.pack('<I', len(s)) + s
def whole(n): return b'J' + struct.pack('<i', n)

def opcodes(rng):
    "A program for a pickle's machine that makes something, however odd"
    if rng.random() < .3: return noise(rng)
    return b'\x80\x02}(' + b''.join(text_of(k.encode()) + thing(rng) for k in rng.sample([STEM, _NORM, _CLASSES, 'model', 'state_dict', 'x'], 3)) + b'u.'

GREEDY = [b'cbuiltins\nbytearray\n' + whole(2**31 - 1) + b'\x85R', # Two gigabytes
          b'}' + text_of(b'ab') + b'\x85q\x06' + b'h\x06\x86q\x06'*30 + b'Ns', # A key of a billion parts
          b'c__builtin__\nset\nctorch\nTensor\n' + whole(2**31 - 1) + b'\x85R\x85R', # A set of numbers that nobody wrote
          b']q\x06(' + b'K\x07'*9999 + b'ec__builtin__\nset\nq\x07](' + b'h\x07h\x06\x85R'*9999 + b'e', # Sets of one list
          b'c_codecs\nencode\n'*26 + b'c_codecs\nencode\n' + text_of(b'a'*32) + text_of(b'latin1') + b'\x86R' + (text_of(b'hex') + b'\x86R')*26] # Doubled again and again

def thing(rng, depth=3): # What puts one thing on the stack
    plain = [lambda: whole(rng.choice([0, 1, -1, 7, 1000, 2**31 - 1, -2**31])), lambda: text_of(rng.choice([b'cpu', b'hex', b'latin1', b'f8', b'O', b'touch canary', b'x'*300, b'\xed\xa0\x80'])), lambda: b'N', lambda: b'\x88', lambda: b'}', lambda: b']', lambda: b')', lambda: tensor(rng)]
    if not depth or rng.random() < .2: return rng.choice(plain)()
    if rng.random() < .05: return rng.choice(GREEDY)
    def several(): return b'(' + b''.join(thing(rng, depth - 1) for _ in range(rng.choice([0, 1, 1, 2, 3, 5]))) + b't'
    def name(): return b'c' + rng.choice(MODULES) + b'\n'
    return rng.choice([several, lambda: name() + several() + b'R', lambda: name() + several() + b'R', lambda: name() + several() + b'\x81', lambda: name() + several() + b'R' + thing(rng, depth - 1) + b'b', lambda: b'](' + several() + b'e', lambda: name(), lambda: tensor(rng),
                       lambda: b'}(' + thing(rng, depth - 1) + thing(rng, depth - 1) + b'u', lambda: thing(rng, depth - 1) + b'q\x05h\x05\x86'*rng.choice([1, 5, 60])])()

def tensor(rng): # As torch.save writes it, with numbers that may not fit
    def sizes(): return b'(' + b''.join(whole(rng.choice([24, 12, 3, 1, 0, 2592, 2**31 - 1, -1])) for _ in range(rng.choice([0, 1, 4]))) + b't'
    return b'ctorch._utils\n_rebuild_tensor_v2\n(' + storage(rng) + whole(rng.choice([0, 0, 0, 5, -1, 2**31 - 1])) + sizes() + sizes() + b'\x89ccollections\nOrderedDict\n)RtR'

def noise(rng): # Opcodes without a plan
    out, parts = [b'\x80\x02'], [lambda: b'}', lambda: b']', lambda: b')', lambda: b'N', lambda: b'\x88', lambda: b'\x89', lambda: b'(', lambda: b't', lambda: b'\x85', lambda: b'\x86', lambda: b'\x87', lambda: b'R', lambda: b'R', lambda: b'b', lambda: b'\x81', lambda: b's', lambda: b'u', lambda: b'a', lambda: b'e', lambda: b'Q',
             lambda: b'\x8f', lambda: b'0', lambda: b'2', lambda: b'q' + bytes([rng.randrange(4)]), lambda: b'h' + bytes([rng.randrange(4)]), lambda: whole(rng.choice([0, 1, -1, 7, 1000, 2**31 - 1, -2**31])), lambda: b'G' + struct.pack('>d', rng.choice([0., 1e308, float('nan')])), lambda: b'\x8a' + short(rng.randbytes(rng.choice([1, 8, 200]))),
             lambda: text_of(rng.choice([b'model', b'state_dict', b'cpu', b'storage', b'0', b'f8', b'O', STEM.encode(), b'x'*300, b'\xed\xa0\x80'])), lambda: b'c' + rng.choice(MODULES) + b'\n', lambda: b'c' + rng.choice(MODULES) + b'\n' + whole(rng.choice([3, 2**31 - 1])) + b'\x85R',
             lambda: b'c' + rng.choice(MODULES) + b'\n' + text_of(b'touch canary') + b'\x85R', lambda: storage(rng)]
    for _ in range(rng.randint(1, 25)): out.append(rng.choice(parts)())
    return b''.join(out) + b'.'

def storage(rng): return b'(' + text_of(b'storage') + b'ctorch\n' + rng.choice([b'FloatStorage', b'HalfStorage', b'ByteStorage', b'ComplexDoubleStorage', b'QInt8Storage']) + b'\n' + text_of(rng.choice([b'0', b'1', b'../../x'])) + text_of(rng.choice([b'cpu', b'cuda:0', b'meta'])) + whole(rng.choice([0, 10, 2592, 2**31 - 1, -1])) + b'tQ'

def zipped(rng, records):
    "An archive as torch.save writes it, or one that claims otherwise"
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w', rng.choice([zipfile.ZIP_STORED]*5 + [zipfile.ZIP_DEFLATED])) as archive, warnings.catch_warnings():
        warnings.simplefilter('ignore') # A name twice
        for name, data in records: archive.writestr(name, data)
    return file.getvalue()

def pickles_input(rng, seeds=[]):
    if not seeds:
        state = network()
        for content in ({'model': {'backbone.' + k: v for k, v in state.items()}, 'epoch': 3}, state, dict(state_dict=state, log=np.arange(3.), best=np.float64(1)), OrderedDict(state), dict(model=Mischief(os.system, 'touch canary'))):
            for new in (True, False):
                torch.save(content, file := io.BytesIO(), _use_new_zipfile_serialization=new)
                seeds.append((new, file.getvalue()))
        seeds.append((False, pickle.dumps(dict(model=Mischief(os.mkdir, 'canary')), protocol=2)))
    how, (new, data) = rng.random(), rng.choice(seeds)
    if how < .3: return {'a.pth': opcodes(rng) if rng.random() < .2 else zipped(rng, [('a/data.pkl', opcodes(rng)), ('a/byteorder', b'little'), ('a/version', b'3\n'), ('a/data/0', bytes(10368))])}
    if how > .7 or not new: return {'a.pth': bytes_changed(rng, data)}
    with zipfile.ZipFile(io.BytesIO(data)) as archive: records = [(i.filename, archive.read(i)) for i in archive.infolist()]
    at = rng.choice([n for n, (name, _) in enumerate(records) if name.endswith('.pkl')]) if rng.random() < .8 else rng.randrange(len(records))
    name, held = records[at]
    records[at] = (name, bytes_changed(rng, held)) if rng.random() < .9 else (rng.choice(['archive/' + rng.choice(PLACES[:9]), 'archive/constants.pkl']), held)
    return {'a.pth': zipped(rng, records)}

def read_weights(root):
    (path,) = root.iterdir()
    w = load_weights(path)
    assert w.model_type in VARIANTS and isinstance(w.num_classes, int) and 0 < w.num_classes == len(w.state[_CLASSES]) and isinstance(w.input_size, int) and 0 < w.input_size < 2**15, w
    assert w.names is None or len(w.names) == w.num_classes and all(isinstance(n, str) for n in w.names), w.names
    assert all(np.isfinite(v) for v in (*w.mean, *w.std)) and len(w.mean) == len(w.std) == 3 and 0 not in w.std, (w.mean, w.std)
    assert all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in w.state.items())


READERS = dict(coco=(coco_base, coco_input, read_data), voc=(voc_base, voc_input, read_data), yolo=(yolo_base, yolo_input, read_data), paths=(paths_base, paths_input, read_paths),
               pictures=(lambda root: None, pictures_input, read_pictures), safetensors=(lambda root: None, safetensors_input, read_weights), pickles=(lambda root: None, pickles_input, read_weights))


# The watch

class Hang(BaseException): # Which no reader catches
    pass

WATCH = dict(root=None, seen=[])
ACTS = ('os.system', 'os.exec', 'os.posix_spawn', 'os.spawn', 'os.fork', 'os.remove', 'os.rename', 'os.mkdir', 'os.rmdir', 'os.symlink', 'os.link', 'os.truncate', 'os.chmod', 'os.putenv', 'subprocess.', 'socket.', 'shutil.', 'ftplib.', 'urllib.', 'webbrowser.', 'pty.')
OURS = tuple({os.path.realpath(p) for p in (sys.prefix, sys.base_prefix, Path(__file__).parents[1], np.__path__[0], '/usr/share', '/usr/lib', '/sys/devices')}) # Where Python itself reads

def watch(event, args):
    root = WATCH['root']
    if root is None: return
    if event.startswith(ACTS): WATCH['seen'].append(f'{event} {args}')
    elif event == 'open' and isinstance(args[0], (str, bytes)):
        path = os.path.realpath(os.fsdecode(args[0])) if not os.path.abspath(os.fsdecode(args[0])).startswith(root) else root
        if (args[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC) or not path.startswith((root, *OURS)): WATCH['seen'].append(f'open {args}')


def memory(reset=False):
    "Kilobytes that this process takes now, after which the most is measured anew; or that most"
    status = Path('/proc/self/status')
    if not status.exists(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss # Of all its life
    if reset: Path('/proc/self/clear_refs').write_text('5')
    return int(re.search(r'VmRSS:\s+(\d+)' if reset else r'VmHWM:\s+(\d+)', status.read_text())[1])


def arm():
    "Watch what is done from now on (which cannot be undone), and let the timer of `attempt` raise"
    if not WATCH.get('armed'): sys.addaudithook(watch)
    WATCH['armed'] = True
    def hang(*_): raise Hang
    for number in (signal.SIGPROF, signal.SIGALRM): signal.signal(number, hang)


def attempt(read, root, seconds=SECONDS, megabytes=MEGABYTES):
    "What became of an input: accepted, refused, or what is wrong; its exception; and (seconds, megabytes) that it took"
    before, start, error = memory(reset=True), time.process_time(), None
    WATCH.update(root=str(root), seen=[])
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, 60*seconds) # What waits takes no time of the processor; other programs may, and much
    try: read(root)
    except (Exception, Hang) as e: error = e
    finally: signal.setitimer(signal.ITIMER_PROF, 0); signal.setitimer(signal.ITIMER_REAL, 0); WATCH['root'] = None
    took = time.process_time() - start, max(0, memory() - before)//1000
    what = judged(error, root)
    if WATCH['seen']: what = f'does what no reader should: {WATCH["seen"][0][:200]}'
    if took[1] > megabytes: what = f'takes {took[1]} MB'
    return what, error, took


def judged(error, root):
    if error is None: return 'accepted'
    if isinstance(error, Hang): return 'takes too long'
    message = _message(error, 'cjm_yolox_pytorch') if isinstance(error, (ValueError, FloatingPointError, OSError, ImportError)) else None # As `command` has it
    if message is None: return f'ends in a traceback: {type(error).__name__}: {str(error)[:100]}'
    if str(root) not in message: return f'does not name the file: {message[:200]}'
    return 'refused' if len(message) <= LETTERS else f'is told in {len(message)} letters: {message[:100]}'


def put(root, files):
    for name, data in files.items():
        path = root/name
        if data is None or not os.path.realpath(path.parent).startswith(str(root)): continue
        with contextlib.suppress(FileExistsError, NotADirectoryError, IsADirectoryError): # A link took the place
            path.parent.mkdir(parents=True, exist_ok=True)
            if not isinstance(data, tuple): path.write_bytes(data.replace(b'ROOT', os.fsencode(root))) # Absolute, and within
            elif path.is_symlink() or path.exists(): continue
            elif data[1] is None: os.mkfifo(path)
            else: path.symlink_to(data[1])


def shown(error): # The innermost line of the package, by which findings are told apart
    frames = [f for f in traceback.extract_tb(error.__traceback__) if 'cjm_yolox_pytorch' in f.filename] if error else []
    return f'{Path(frames[-1].filename).name}:{frames[-1].name}' if frames else ''


def fuzz(reader, numbers, seed, place):
    "Outcomes of the inputs `numbers`, the most time and memory that one took, and what is wrong: (text, place) -> inputs"
    base, make, read = READERS[reader]
    outcomes, worst, faults = Counter(), (0, 0), {}
    for n in numbers:
        rng = random.Random(f'{seed} {reader} {n}')
        root = place/f'{reader}{n}'/'data'
        root.mkdir(parents=True)
        (root.parent/'secret').write_text('0 .5 .5 .5 .5')
        base(root)
        try: files = make(rng)
        except UnicodeEncodeError: files = {}
        put(root, files)
        faulthandler.dump_traceback_later(900, exit=True, file=sys.stderr) # Where Python gets no say, or something waits without working
        what, error, took = attempt(read, root)
        faulthandler.cancel_dump_traceback_later()
        worst = tuple(map(max, worst, took))
        if sorted(os.listdir(root.parent)) != ['data', 'secret'] or (place/'canary').exists() or os.listdir('.'): what = 'leaves something behind'
        outcomes[what if what in ('accepted', 'refused') else 'fault'] += 1
        if what not in ('accepted', 'refused'): faults.setdefault((re.sub(r'\d+', 'N', what.replace(str(root), 'DIR'))[:70], shown(error)), []).append((n, what, error))
        elif len(numbers) > 1: shutil.rmtree(root.parent)
        if len(numbers) == 1 and error is not None: traceback.print_exception(error)
    return outcomes, worst, faults


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--inputs', type=int, default=3500, help='for all readers together (3500)')
    parser.add_argument('--seed', type=int, default=0, help='another seed, other inputs (0)')
    parser.add_argument('--reader', choices=READERS, help='this one alone')
    parser.add_argument('--replay', type=int, help='the number of a single input')
    options = parser.parse_args()
    place = Path(os.path.realpath(tempfile.mkdtemp(prefix='fuzz')))
    (place/'here').mkdir()
    os.chdir(place/'here') # In which nothing may appear
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    sys.stderr = os.fdopen(os.dup(2), 'w') # And not for what decoders say of each file
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    faulthandler.enable(sys.stderr) # A decoder may crash
    logging.disable() # Pillow tells there, too
    warnings.simplefilter('ignore')
    warnings.filterwarnings('error', category=RuntimeWarning) # Of numpy, about numbers that became others
    warnings.filterwarnings('ignore', category=Image.DecompressionBombWarning)
    size = int(Path('/proc/self/statm').read_text().split()[0])*resource.getpagesize() if os.path.exists('/proc/self/statm') else 2**36
    resource.setrlimit(resource.RLIMIT_AS, (size + 4*2**30,)*2)
    arm()
    readers, wrong = [options.reader] if options.reader else [*READERS], 0
    print(f'seed {options.seed}, Python {sys.version.split()[0]}, torch {torch.__version__}, Pillow {Image.__version__}, PyYAML {yaml.__version__}\n')
    print(f'{"reader":12}{"inputs":>8}{"accepted":>10}{"refused":>9}{"faults":>8}{"worst":>9}{"memory":>10}', flush=True)
    for reader in readers:
        numbers = [options.replay] if options.replay is not None else range(options.inputs//len(readers))
        outcomes, worst, faults = fuzz(reader, numbers, options.seed, place)
        print(f'{reader:12}{len(numbers):8}{outcomes["accepted"]:10}{outcomes["refused"]:9}{outcomes["fault"]:8}{worst[0]:7.2f} s{worst[1]:7} MB', flush=True)
        for (_, where), found in faults.items():
            n, what, error = found[0]
            print(f'  {len(found)} times, such as input {n} {where}: {what}', flush=True)
        wrong += outcomes['fault']
    if options.replay is not None: print(f'\nthe files are in {place}')
    else: os.chdir('/'); shutil.rmtree(place)
    sys.exit(wrong and f'\n{wrong} inputs are neither read nor refused as they should be')


if __name__ == '__main__': main()
