"""Trainings that are killed again and again, at random moments and in three ways, end like one that never was.

Example: python tools/kill.py --times 20
"""
import argparse
import os
import random
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch
from trainings import Child, assert_same_training, run_command, words

from cjm_yolox_pytorch.files.checkpoints import load_weights
from cjm_yolox_pytorch.data.shapes import write_shapes

SIGNALS = [signal.SIGKILL, signal.SIGTERM, signal.SIGINT]


def check_files(out):
    "Whatever is there loads"
    for path in out.glob('*.safetensors'): load_weights(path)
    if (out/'state.pt').exists(): torch.load(out/'state.pt', weights_only=True)


def begin(data, out, log, *more):
    "A training that has begun to train"
    child = Child(run_command, words(data, out, '--workers', 1, *more), log=log, PYTHONFAULTHANDLER='1')
    while 'training on' not in child.output():
        assert child.alive(), f'it ended before it began: {child.output()}'
        time.sleep(.01)
    return child


def wait(child, seconds):
    "The exit status, None after so many seconds"
    child.process.join(seconds)
    return child.process.exitcode


def hit(data, out, log, rng, longest, resume):
    "Train until a signal comes, if it comes in time: its name, or None"
    child, name, fine = begin(data, out, log, *(['--resume'] if resume else [])), None, (0,)
    if wait(child, rng.uniform(0, longest)) is None:
        number = rng.choice(SIGNALS)
        os.kill(child.pid, number)
        if wait(child, 300) is None: # Say where it hangs
            os.kill(child.pid, signal.SIGABRT)
            raise TimeoutError(child.output())
        # 0 if it was just done; once everything is saved, SIGTERM ends it like any program
        fine = {signal.SIGKILL: (-9, 0), signal.SIGTERM: (130, -15, 0), signal.SIGINT: (130, 0)}[number]
        if child.process.exitcode: name = number.name
    status, printed = child.process.exitcode, child.output()
    assert status in fine and 'Traceback' not in printed, (name, status, printed)
    return name


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--times', type=int, default=20, help='kills (default: 20)')
    parser.add_argument('--seed', type=int, default=0, help='of the moments (default: 0)')
    args = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler) # In the background, a shell may have had it ignored
    rng, hits, ends = random.Random(args.seed), Counter(), 0
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        write_shapes(folder/'shapes', train=24, val=6, test=0, size=64)
        log, begun = folder/'log', time.time()
        whole = begin(folder/'shapes', folder/'whole', log)
        assert whole.wait() == 0, whole.output()
        longest = time.time() - begun
        while sum(hits.values()) < args.times:
            out, finished = folder/f'run{ends}', False
            while not finished:
                before = (out/'state.pt').exists()
                enough = sum(hits.values()) >= args.times
                name = None if enough else hit(folder/'shapes', out, log, rng, longest, before)
                check_files(out)
                when = 'while training' if (out/'state.pt').exists() else 'before the first state'
                if name: hits[f'{name} {when}'] += 1
                else: finished = True
            resume = ['--resume'] if (out/'state.pt').exists() else []
            last = begin(folder/'shapes', out, log, *resume)
            assert last.wait() == 0, last.output()
            assert_same_training(out, folder/'whole')
            ends += 1
            count = f'{sum(hits.values())} of {args.times} signals so far'
            print(f'training {ends}: {count}, all files load, the end is the same', flush=True)
    print(', '.join(f'{n} {what}' for what, n in hits.items()))


if __name__ == '__main__': main()
