"What tests of hostile input share: a watched reader, a folder beside a secret, and a COCO file to change."
import json
import os
import signal
import struct
import zlib

import fuzz
import pytest
from fuzz import COCO, attempt

PASSWORD = 'hunter2'


@pytest.fixture(scope='module', autouse=True)
def armed():
    "Limit the time on the CPU, and watch what is opened, run and written"
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
    assert sorted(os.listdir(tmp_path)) == ['data', 'here', 'secret'] and not os.listdir(tmp_path/'here')
    assert (tmp_path/'secret').read_text() == PASSWORD


def tried(read, root, **limits):
    "The message with which an input is refused, or None if it is accepted; anything else fails"
    what, error, _ = attempt(read, root, **limits)
    assert what in ('accepted', 'refused'), (what, error)
    assert PASSWORD not in str(error)
    return error and str(error)


def coco(**changes):
    "COCO with the first of its images, annotations or categories changed"
    doc = json.loads(json.dumps(COCO))
    for key, change in changes.items(): doc[key][0].update(change)
    return doc


def png(width, height, data=b''):
    "A PNG that claims `width` and `height`"
    def chunk(kind, data):
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
    head = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', head) + chunk(b'IDAT', zlib.compress(data)) + chunk(b'IEND', b'')
