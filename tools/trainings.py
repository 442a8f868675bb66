"Small trainings for tests and tools: in this process, or in others that may be stopped, killed and compared."
import multiprocessing
import os
import socket
import sys
import time

import torch

from cjm_yolox_pytorch.data.splits import read_split
from cjm_yolox_pytorch.files.checkpoints import load_weights
from cjm_yolox_pytorch.training.recipe import Recipe
from cjm_yolox_pytorch.training.runs import read_rows
from cjm_yolox_pytorch.training.train import yolox_train
from cjm_yolox_pytorch.training.trainer import Trainer

SMALL = dict(model='yolox_nano', img_size=64, epochs=4, batch=4, amp='none', eval_interval=2)
SMALL.update(mixup=.5, clip_grad_norm=5.)
MACHINE_COLUMNS = 'images_per_s', 'memory_gb', 'seconds'
# Forks processes from one that has imported everything, which is much faster than starting Python anew
METHOD = 'forkserver' if 'forkserver' in multiprocessing.get_all_start_methods() else 'spawn' # As on Windows
SERVER = multiprocessing.get_context(METHOD)
if METHOD == 'forkserver': SERVER.set_forkserver_preload(['cjm_yolox_pytorch.training.train'])


def trainer(data, transforms=None, **changes):
    "A small `Trainer` for the splits train and val of `data`"
    recipe = Recipe(**{**SMALL, **changes})
    return Trainer(recipe, read_split(data, 'train'), read_split(data, 'val'), device='cpu', transforms=transforms)


def words(data, out, *more):
    "The command of a small training, as a list of words"
    options = [word for name, value in SMALL.items() for word in (f'--{name.replace("_", "-")}', str(value))]
    return ['yolox_train', str(data), '--device', 'cpu', '--workers', '0', '--out', str(out), *options, *map(str, more)]


def run_quietly(function, log, environment, *args):
    "Call `function` in a process and a session of its own, whose output goes to the file `log`"
    os.setsid()
    with open(log, 'w') as f:
        for number in (1, 2): os.dup2(f.fileno(), number)
    os.environ.update(environment)
    torch.set_num_threads(1)
    function(*args)


def run_command(command):
    sys.argv = command
    yolox_train()


class Child:
    "`function(*args)` in another process"
    def __init__(self, function, *args, log, **environment):
        self.log = log
        self.process = SERVER.Process(target=run_quietly, args=(function, log, environment, *args))
        self.process.start()
        self.pid = self.process.pid

    def alive(self): return self.process.exitcode is None

    def wait(self, seconds=300): # The exit status
        self.process.join(seconds)
        assert not self.alive(), f'it still runs after {seconds} s: {self.output()}'
        return self.process.exitcode

    def wait_for(self, path, seconds=120): # Until the file exists, or the process has ended
        end = time.monotonic() + seconds
        while not path.exists() and self.alive():
            if time.monotonic() > end: raise TimeoutError(path)
            time.sleep(.002)

    def output(self): return self.log.read_text() if self.log.exists() else ''


def ranks(count):
    "Environments of processes that train together, as torchrun would make them"
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = str(s.getsockname()[1])
    shared = dict(TORCHELASTIC_RUN_ID='test', MASTER_ADDR='127.0.0.1', MASTER_PORT=port)
    shared.update(WORLD_SIZE=str(count), LOCAL_WORLD_SIZE=str(count))
    return [dict(shared, RANK=str(n), LOCAL_RANK=str(n)) for n in range(count)]


def assert_same_training(out, other):
    "Weights are equal to the bit, and so are all metrics that do not depend on the machine"
    for name in ('last', 'best'):
        a, b = (load_weights(folder/f'{name}.safetensors').state for folder in (out, other))
        assert all(torch.equal(a[k], b[k]) for k in b), name
    a, b = ([{k: v for k, v in row.items() if k not in MACHINE_COLUMNS} for row in read_rows(folder/'metrics.csv')]
        for folder in (out, other))
    assert a == b
