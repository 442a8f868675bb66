"Files of weights that would run code, fill the memory or take forever are refused; what trainings write is read."
# ruff: noqa: F811 (fixtures are imported, and arguments bear their names)
import codecs
import io
import os
import pickle
import re
import struct
import warnings
import zipfile
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

import fuzz
import numpy as np
import pytest
import torch
from fuzz import Mischief, network, read_weights
from hostile import armed, root, tried # noqa: F401

from cjm_yolox_pytorch.files.checkpoints import load_weights
from cjm_yolox_pytorch.files.families import CLASSES, STEM
from cjm_yolox_pytorch.files.pickles import read_file


def archive(program, method=zipfile.ZIP_STORED, name='data.pkl', **records):
    entries = {name: program, 'version': b'3\n', 'byteorder': b'little'}
    entries.update({f'data/{k[1:]}': v for k, v in records.items()})
    with zipfile.ZipFile(file := io.BytesIO(), 'w', method) as z:
        for entry, data in entries.items(): z.writestr(f'a/{entry}', data)
    return file.getvalue()


def saved(content, **kwargs):
    torch.save(content, file := io.BytesIO(), **kwargs)
    return file.getvalue()


def network_with(**tensors):
    names = dict(stem=STEM, classes=CLASSES, other='neck.x')
    return saved({**network(), **{names[k]: v for k, v in tensors.items()}})


class Hexed: # A text that is doubled again and again
    def __init__(self, n): self.n = n
    def __reduce__(self): return codecs.encode, (Hexed(self.n - 1) if self.n else b'ab', 'hex')


def scripted():
    with warnings.catch_warnings(): # TorchScript is deprecated
        warnings.simplefilter('ignore')
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 1)), file := io.BytesIO())
    return file.getvalue()


def paired(n):
    nested = ('a',)
    for _ in range(n): nested = nested, nested
    return nested


EVIL = dict(model=Mischief(os.system, 'touch canary'))
NOTHING = pickle.dumps({}, protocol=2)
PAIRS = NOTHING[:2] + b'}' + pickle.dumps(paired(60), protocol=2)[2:-1] + b'K\x01s.' # The sixtieth pair as a key
LONG_ARRAY = b'\x80\x02cbuiltins\nbytearray\n' + b'J' + struct.pack('<i', 2**31 - 1) + b'\x85R.'
REPEATED = torch.zeros(1, 96, 1, 1).expand(10**9, -1, -1, -1)
BAD_WEIGHTS = {
    'runs a command': (saved(EVIL), 'would execute (posix|nt).system on load, so it was not loaded'),
    'runs a command, before torch 1.6': (
        saved(EVIL, _use_new_zipfile_serialization=False), 'would execute (posix|nt).system'),
    'a plain pickle': (pickle.dumps(EVIL, protocol=2), 'would execute (posix|nt).system'),
    'a plain pickle of today': (
        pickle.dumps(EVIL), 'is not a file of weights, or was cut off: it is a pickle of protocol [4-9]'),
    'evaluates': (
        archive(pickle.dumps(Mischief(eval, 'open("canary", "w")'), protocol=2)), 'would execute eval'),
    'a hash that never ends': (archive(PAIRS), 'puts together more than [0-9]+ parts'),
    'a hash that never ends, before torch 1.6': (PAIRS, 'puts together more than'),
    'a long array': (archive(LONG_ARRAY), 'would execute bytearray'),
    'text doubled again and again': (
        archive(pickle.dumps(Hexed(40), protocol=2)), 'calls _codecs.encode in a way that weights do not need'),
    'zip bomb': (archive(NOTHING, zipfile.ZIP_DEFLATED, _0=bytes(10**8)), 'claims to hold 1000000'),
    'not a zip': (b'PK\x03\x04' + bytes(99), 'is not a file of weights'),
    'nothing': (archive(NOTHING), 'is missing among 0 keys'),
    'TorchScript': (scripted(), 'would execute __torch__.torch.nn.modules.linear.Linear on load'),
    'a large pickle in capitals': (archive(PAIRS, name='DATA.PKL'), 'puts together more than'),
    'another archive behind': (archive(PAIRS) + archive(NOTHING), 'before or behind the archive'),
    'another archive before': (archive(NOTHING) + archive(PAIRS), 'before or behind the archive'),
    'a header of 2^63 bytes': (struct.pack('<Q', 2**63) + b'{"a":1}', 'is not a file of weights'),
    'a header nested deeply': (struct.pack('<Q', 100000) + b'{"a":' + b'['*99995, 'is not a file of weights'),
    'numbers as keys': (saved({1: torch.zeros(1), 'x': {2: 3}}), 'missing among'),
    'keys of all kinds': (saved({**network(), 1: 2, (3, 4): torch.zeros(1)}), None),
    'no shape': (network_with(classes=torch.zeros(())), 'does not fit'),
    'a stem without shape': (network_with(stem=torch.zeros(())), 'does not fit'),
    'many classes': (network_with(classes=REPEATED), 'more numbers than its storage, 96'),
    'more classes than there can be': (network_with(classes=torch.zeros(20_001, 96, 1, 1)), 'does not fit'),
    'no numbers': (network_with(other=torch.zeros(2, device='meta')), 'execute torch._utils._rebuild_meta_tensor_no_'),
    'sparse': (
        network_with(stem=torch.zeros(24, 12, 3, 3).to_sparse()), 'would execute torch._utils._rebuild_sparse_tensor'),
    'integers': (network_with(stem=torch.zeros(24, 12, 3, 3, dtype=torch.int32)), 'finite floats .torch.int32'),
    'integers elsewhere': (network_with(other=torch.zeros(2, dtype=torch.bool)), 'neck.x: not all of its numbers'),
    'NaN': (network_with(other=torch.tensor([0, float('nan')])), 'neck.x: not all of its numbers are finite floats'),
    'too large for float32': (network_with(other=torch.tensor([1e39], dtype=torch.double)), 'neck.x: not all'),
}


@pytest.mark.parametrize('name', BAD_WEIGHTS)
def test_weights(name, root):
    data, message = BAD_WEIGHTS[name]
    (root/'a.pth').write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        found = tried(read_weights, root, megabytes=300)
    assert found is None if message is None else re.search(message, found), found


# Calls that weights_only lets through. Each of these files of some hundred bytes took any amount of memory or time

text_of = fuzz.text_of
def whole(n): return b'J' + struct.pack('<i', n)
def named(name): return b'c' + '\n'.join(name.rsplit('.', 1)).encode() + b'\n'
def listed(n): return b']q\x00(' + b'K\x07K\x08\x86'*n + b'e' # In memo 0
def large_int(n): return b'\x8a\x0a' + (n*(2**61 - 1)).to_bytes(10, 'little') # All with one hash


def stored(key=b'0', numbers=4, old=b''):
    return b'(' + text_of(b'storage') + FLOATS + text_of(key) + text_of(b'cpu') + whole(numbers) + old + b'tQ'


def rebuilt(sizes=(4,), strides=(1,), **kwargs):
    sizes, strides = (b'(' + b''.join(map(whole, v)) + b't' for v in (sizes, strides))
    return TENSOR + b'(' + stored(**kwargs) + whole(0) + sizes + strides + b'\x89N' + b'tR'


def before_1_6(program):
    head = [pickle.dumps(v, protocol=2) for v in (torch.serialization.MAGIC_NUMBER, 1001, {})]
    return b''.join(head) + program + pickle.dumps([], protocol=2)


FLOATS, TENSOR = named('torch.FloatStorage'), named('torch._utils._rebuild_tensor_v2')
EMPTY = named('torch.FloatTensor') + whole(2**31 - 1) + b'\x85R'
ENCODE, OD = named('_codecs.encode'), named('collections.OrderedDict')
SET, COUNTER, SIZE = named('__builtin__.set'), named('collections.Counter'), named('torch.Size')
CONTAINERS = dict(set=SET, Counter=COUNTER, Size=SIZE)
LONG_TEXT = text_of(b'a'*9999) + b'q\x00'
LATIN1 = LONG_TEXT + text_of(b'latin1') + b'q\x01'
MANY_KEYS = b'}q\x00(' + b''.join(whole(n) + b'N' for n in range(5000)) + b'u'
MANY_NAMES = [bytes(65 + (n >> i & 1)*32 + i for i in range(12)) for n in range(2**12)]
REBUILD_FROM_TYPE = named('torch._tensor._rebuild_from_type_v2')
SHARED_HASH = b''.join(large_int(n) + b'N' for n in range(1, 20_000))
SHARED_HASH_SET = b''.join(large_int(n) for n in range(1, 20_000))
NUMBER_AS_KEY = text_of(b'storage') + FLOATS + whole(0) + text_of(b'cpu') + whole(4) + b'tQ'
CALLS = { # A program, and the message
    'an empty tensor': (EMPTY, 'would execute torch.FloatTensor'),
    'an empty storage': (
        named('torch.storage.UntypedStorage') + whole(2**31 - 1) + b'\x85R', 'calls torch.storage.UntypedStorage'),
    'a set of an empty tensor': (SET + EMPTY + b'\x85R', 'would execute torch.FloatTensor'),
    'a tensor of anything': (
        REBUILD_FROM_TYPE + b'(' + SET + b'NNNtR', 'would execute torch._tensor._rebuild_from_type_v2'),
    **{f'a {name} of a tensor': (f + rebuilt() + b'\x85R', 'in a way that weights do not need')
        for name, f in dict(CONTAINERS, OrderedDict=OD).items()},
    **{f'a {name} of a storage': (f + stored() + b'\x85R', 'in a way that weights do not need')
        for name, f in dict(CONTAINERS, OrderedDict=OD).items()},
    'a tensor instead of a tuple': (SET + rebuilt() + b'R', 'calls __builtin__.set'),
    'a tensor for a new object': (OD + rebuilt() + b'\x81', 'calls collections.OrderedDict'),
    'a tensor as attributes': (OD + b')R' + rebuilt() + b'b', 'changes collections.OrderedDict'),
    'attributes of a tensor': (rebuilt() + b'}b', 'changes torch._utils._rebuild_tensor_v2'),
    'a list as a tuple': (SET + b']R', 'calls __builtin__.set'),
    'no function': (b'K\x01)R', 'calls 1 in a way'),
    'the result of a call': (OD + b')R)R', 'calls collections.OrderedDict'),
    'another codec': (ENCODE + text_of(b'ab') + text_of(b'hex') + b'\x86R', 'calls _codecs.encode'),
    **{f'a list for many {name}s': (listed(5000) + f + b'q\x01](' + b'h\x01h\x00\x85R'*5000 + b'e', 'puts together')
        for name, f in CONTAINERS.items()},
    'attributes for many': (MANY_KEYS + OD + b'q\x01](' + b'h\x01)Rh\x00b'*5000 + b'e', 'puts together'),
    'a key for many': (b'(' + b'K\x07'*5000 + b'tq\x00}(' + b'h\x00N'*5000 + b'u', 'puts together more than'),
    'a text for many': (LATIN1 + ENCODE + b'q\x02](' + b'h\x02h\x00h\x01\x86R'*5000 + b'e', 'puts together more than'),
    'letters for many': (LONG_TEXT + SET + b'q\x01](' + b'h\x01h\x00\x85R'*5000 + b'e', 'puts together more than'),
    'numbers of one hash': (b'}(' + SHARED_HASH + b'u', 'puts together more than'),
    'numbers of one hash in a set': (SET + b'](' + SHARED_HASH_SET + b'e\x85R', 'puts together more than'),
    'what grows elsewhere': (b']q\x00\x85q\x01h\x00(' + b'K\x07'*99 + b'e', 'an object that is part of another'),
    'a storage by many names': (b'](' + b''.join(stored(k, 10**6) for k in MANY_NAMES) + b'e', 'puts together'),
    'a key that is a number': (TENSOR + b'(' + NUMBER_AS_KEY, 'a part of a storage'),
    'repeated numbers': (rebuilt((10**9,), (0,)), 'a tensor of .1000000000. has more numbers than its storage, 4'),
    'long strides': (rebuilt((2,), (10**9,)), 'more numbers than its storage'),
    'many dimensions': (rebuilt((1,)*9999, (1,)*9999), 'calls torch._utils._rebuild_tensor_v2'),
    'no storage': (TENSOR + b'(NK\x00))tR', 'calls torch._utils._rebuild_tensor_v2'),
}
TWO_SIZES = b'](' + stored(old=b'N') + rebuilt((10**5,), numbers=10**5, old=b'N') + b'e'
OLD_CALLS = {
    'a storage that is not there': (stored(numbers=10**9, old=b'N'), 'puts together more than'),
    'a tensor that makes its storage larger': (rebuilt((10**9,), old=b'N'), 'more numbers than its storage'),
    'a storage by another size': (TWO_SIZES, 'more numbers than its storage, 4'),
    'a view': (stored(old=b'(K\x00K\x00K\x01t'), 'a part of a storage'),
}


@pytest.mark.parametrize('name', [*CALLS, *OLD_CALLS])
def test_calls(name, root):
    program, message = {**CALLS, **OLD_CALLS}[name]
    program = b'\x80\x02' + program + b'.'
    (root/'a.pth').write_bytes(before_1_6(program) if name in OLD_CALLS else archive(program, _0=bytes(16)))
    assert re.search(message, tried(read_weights, root, megabytes=100, seconds=2))


@pytest.mark.parametrize('new', [True, False])
def test_training_files_are_read(new, root):
    "Schedulers count, optimizers have states, and people keep what they like"
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.rand(4, 3)).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 2, 5])
    states = dict(model_=model.state_dict(), optimizer=optimizer.state_dict(), scheduler=scheduler.state_dict())
    more = dict(classes={'ant', 'bee'}, size=torch.Size([3, 4]), device=torch.device('cuda', 0), dtype=torch.bfloat16,
        raw=b'\x00\xff', numpy=np.random.RandomState(0).get_state(), random=torch.get_rng_state(),
        rows=[dict(epoch=n, loss=.1) for n in range(300)])
    tensors = dict(turned=torch.rand(3, 4).T, part=torch.rand(9)[3:5], none=torch.zeros(0, 3), one=torch.tensor(1.),
        half=torch.zeros(2).half(), owned=torch.nn.Parameter(torch.zeros(2)))
    if new: tensors['young'] = torch.zeros(2, dtype=torch.uint16)
    content = dict(state_dict=OrderedDict(network()), **states, **more, **tensors)
    torch.save(content, root/'a.pth', _use_new_zipfile_serialization=new)
    assert tried(read_weights, root) is None
    held, _ = read_file(root/'a.pth')
    assert held['scheduler']['milestones'] == scheduler.milestones and held['classes'] == more['classes']
    assert held['size'] == more['size'] and all(torch.equal(held[k], v) for k, v in tensors.items())


def test_numpy_objects_are_not_made(root):
    "Arrays and dtypes of numpy can be given states that crash Python; real ones are still let through"
    more = dict(log=np.arange(3.), best=np.float64(1), flags=np.zeros(2, dtype=bool), names=np.array(['a', 'b']))
    (root/'a.pth').write_bytes(saved(dict(state_dict=network(), **more)))
    assert load_weights(root/'a.pth').num_classes == 2
    two_gigabytes = b'K\x03X\x01\x00\x00\x00|NNNJ\xff\xff\xff\x7fJ\xff\xff\xff\x7fK\x00tb.'
    dtype = b'\x80\x02cnumpy\ndtype\nX\x02\x00\x00\x00V8\x89\x88\x87R(' + two_gigabytes
    (root/'a.pth').write_bytes(archive(dtype))
    assert 'not a state dict, but a _Unread' in tried(read_weights, root)


def test_threads_read_at_once(tmp_path):
    "torch has one list of safe globals for all of them"
    torch.save(dict(state_dict=network(), best=np.float64(.5)), tmp_path/'a.pth')
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: load_weights(tmp_path/'a.pth').num_classes, range(40)))
    assert found == [2]*40 and not [g for g in torch.serialization.get_safe_globals() if isinstance(g, tuple)]
