"""Kill trainings again and again, and check that they end like one that was never interrupted.

The moments are random, and so are the signals: SIGKILL, SIGTERM or SIGINT. Example: python tools/kill.py --times 20
"""
import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch
from trainings import SMALL, assert_same_training

from cjm_yolox_pytorch.data.shapes import write_shapes
from cjm_yolox_pytorch.files.checkpoints import load_weights

ENVIRONMENT = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONFAULTHANDLER': '1'}
# The exit statuses that each signal may lead to. 0: training was just done. 143: there was nothing to save yet. After
# the command has returned, SIGTERM ends the process like any other program.
STATUSES = {
    signal.SIGKILL: (-signal.SIGKILL, 0),
    signal.SIGTERM: (130, 143, -signal.SIGTERM, 0),
    signal.SIGINT: (130, 0)}


def command(data, out, resume=False):
    options = [str(word) for name, value in SMALL.items() for word in (f'--{name.replace("_", "-")}', value)]
    if resume: options.append('--resume')
    program = Path(sys.executable).with_name('yolox_train')
    return [program, data, '--device', 'cpu', '--workers', '1', '--out', out, *options]


def start(data, out, resume=False):
    "Start a training, and return its process once it trains."
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    process = subprocess.Popen(command(data, out, resume), env=ENVIRONMENT, **pipes)
    for line in process.stdout:
        if line.startswith('training on'): return process
    raise RuntimeError(f'the training ended before it began, with status {process.wait()}')


def interrupt(data, out, rng, longest, resume):
    "Train until a random signal after a random time; return its name, or None if training ended first."
    process = start(data, out, resume)
    number = wait_and_signal(process, rng, longest)
    printed = process.stdout.read()
    expected = STATUSES[number] if number else (0,)
    assert process.returncode in expected and 'Traceback' not in printed, (number, process.returncode, printed)
    return number.name if process.returncode else None


def wait_and_signal(process, rng, longest):
    try: process.wait(rng.uniform(0, longest))
    except subprocess.TimeoutExpired: pass
    else: return None
    number = rng.choice([*STATUSES])
    process.send_signal(number)
    try: process.wait(300)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT) # Prints where it hangs
        raise
    return number


def assert_loads(out):
    "Every file of a training can be read."
    for path in out.glob('*.safetensors'): load_weights(path)
    if (out/'state.pt').exists(): torch.load(out/'state.pt', weights_only=True)


def train_whole(data, out):
    "Train without interruption, and return the seconds from the first step to the end."
    process = start(data, out)
    begun = time.time()
    assert process.wait() == 0, process.stdout.read()
    return time.time() - begun


def train_interrupted(data, out, rng, longest, hits, times):
    "Interrupt and resume a training until it ends by itself or there have been `times` signals."
    while hits.total() < times:
        name = interrupt(data, out, rng, longest, resume=(out/'state.pt').exists())
        assert_loads(out)
        if name is None: return
        moment = 'while training' if (out/'state.pt').exists() else 'before the first state'
        hits[f'{name} {moment}'] += 1


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--times', type=int, default=20, help='number of signals (default: 20)')
    parser.add_argument('--seed', type=int, default=0, help='seed of the moments (default: 0)')
    args = parser.parse_args()
    # A background process may inherit that SIGINT is ignored, and pass it on to its children
    signal.signal(signal.SIGINT, signal.default_int_handler)
    rng = random.Random(args.seed)
    hits = Counter()
    trainings = 0
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)/'shapes'
        whole = Path(folder)/'whole'
        write_shapes(data, train=24, val=6, test=0, size=64)
        longest = train_whole(data, whole)
        while hits.total() < args.times:
            out = Path(folder)/f'run{trainings}'
            train_interrupted(data, out, rng, longest, hits, args.times)
            resumed = command(data, out, resume=(out/'state.pt').exists())
            done = subprocess.run(resumed, capture_output=True, text=True, env=ENVIRONMENT)
            assert done.returncode == 0, done.stderr
            assert_same_training(out, whole)
            trainings += 1
            progress = f'{hits.total()} of {args.times} signals so far'
            print(f'training {trainings}: {progress}, all files load, the result is the same', flush=True)
    print(', '.join(f'{n} {what}' for what, n in hits.items()))


if __name__ == '__main__': main()
