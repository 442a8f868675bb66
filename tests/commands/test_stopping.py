"Commands that are stopped, at any moment, leave nothing half-made."
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest
import torch
from PIL import Image

from cjm_yolox_pytorch.data.shapes import SHAPES, write_shapes
from cjm_yolox_pytorch.files.checkpoints import Weights, load_weights, save_weights
from cjm_yolox_pytorch.model import build_model

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, 'fork'), reason='processes are forked')]
# Has imported everything, and forks a process for each line it gets: words of a command, and a file for what it prints.
# A process that is busy elsewhere may take longer to begin than `MOMENTS` say, and Python's own exit isn't ours to test
SERVER = '''
import json, os, signal, sys, threading
from contextlib import contextmanager
from cjm_yolox_pytorch.commands import command
from cjm_yolox_pytorch.deploy.export import yolox_export
from cjm_yolox_pytorch.detection.predict import yolox_predict
from cjm_yolox_pytorch.evaluation.doctor import yolox_doctor
from cjm_yolox_pytorch.training.demo import yolox_demo, yolox_eval
from cjm_yolox_pytorch.training.train import yolox_train
STOPS, exit_on_signals = {signal.SIGINT, signal.SIGTERM}, command.exit_on_signals
@contextmanager
def heed_in_command(): # A signal waits for the command to begin, and nothing is left to stop once it has ended
    try:
        with exit_on_signals():
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
            yield
    finally:
        for number in STOPS: signal.signal(number, signal.SIG_IGN)
command.exit_on_signals = heed_in_command
signal.signal(signal.SIGINT, signal.default_int_handler)
print('ready', flush=True)
for line in sys.stdin:
    sys.argv, log = json.loads(line)
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    pid = os.fork()
    if pid == 0:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2): os.dup2(file, stream)
        globals()[sys.argv[0]]()
        sys.exit()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
'''
COMMANDS = {
    'export': 'yolox_export {weights} --out {out}/nano.onnx --static',
    'export openvino': 'yolox_export {weights} --out {out}/nano.xml --static',
    'predict': 'yolox_predict {weights} {data}/train --out {out} --device cpu',
    'eval': 'yolox_eval {weights} {data} --out {out} --device cpu',
    'doctor': 'yolox_doctor {data} --out {out}',
    'train': 'yolox_train {data} --model yolox_nano --img-size 64 --epochs 2 --batch 8 --out {out} --device cpu',
    'demo': 'yolox_demo --out {out} --images 32 --epochs 1 --device cpu'}
MOMENTS = .05, .3, .6, .9
EMPTY = '.lock', 'of-the-demo' # Marks


@pytest.fixture(scope='module')
def server():
    process = subprocess.Popen([sys.executable, '-c', SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == 'ready\n'
    yield process
    process.stdin.close()
    process.wait(60)


@pytest.fixture(scope='module')
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp('inputs')
    write_shapes(folder/'data', train=48, val=16, test=16, size=64)
    model, names = build_model('yolox_nano', len(SHAPES), pretrained=False), [*SHAPES]
    kind = dict(names=names, size=64)
    weights = Weights(model.state_dict(), 'yolox_nano', len(names), (0., 0., 0.), (1., 1., 1.), **kind)
    save_weights(weights, folder/'nano.safetensors')
    return dict(weights=folder/'nano.safetensors', data=folder/'data')


def run(server, name, inputs, out, sent=None, delay=0):
    "Status of a command to which a signal is sent after `delay` seconds, and what it printed"
    out.mkdir(parents=True)
    log = out.with_suffix('.log')
    words = COMMANDS[name].format(out=out, **inputs).split()
    server.stdin.write(json.dumps([words, str(log)]) + '\n')
    server.stdin.flush()
    pid = int(server.stdout.readline())
    if sent:
        time.sleep(delay)
        with suppress(ProcessLookupError): os.kill(pid, sent) # It was faster this time
    status = int(server.stdout.readline())
    return status, log.read_text()


def contents(out): return {p.relative_to(out).as_posix() for p in out.rglob('*')}


def assert_readable(path):
    if path.suffix == '.json': json.loads(path.read_text())
    if path.suffix in ('.png', '.jpg'): Image.open(path).load()
    if path.suffix == '.safetensors': load_weights(path)
    if path.suffix == '.pt': torch.load(path, weights_only=True)
    assert path.is_dir() or path.stat().st_size or path.name in EMPTY, path


@pytest.mark.parametrize('name', COMMANDS)
def test_stopped_command_leaves_nothing_half_made(server, inputs, tmp_path, name):
    start = time.time()
    status, printed = run(server, name, inputs, tmp_path/'whole')
    seconds = time.time() - start
    assert status == 0, printed
    whole = contents(tmp_path/'whole')
    for number, expected in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        for moment in MOMENTS:
            out = tmp_path/f'{number.name} {moment}'.replace(' ', '-')
            status, printed = run(server, name, inputs, out, number, moment*seconds)
            about = name, number, moment, status, printed
            saved = status == 130 and 'everything is saved in' in printed # A training ends so after either signal
            assert status in (expected, 0) or saved or 'next yolox_demo' in printed, about
            assert contents(out) <= whole and 'Traceback' not in printed, about
            for path in out.rglob('*'): assert_readable(path)
