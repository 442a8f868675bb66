"""Trainings that are killed again and again, at random moments and in three ways, end like one that never was.

Example: python tools/kill.py --times 20
"""
import argparse
import random
import signal
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch
from test_resume import ENVIRONMENT, assert_same_training, command, run

from cjm_yolox_pytorch.files.checkpoints import load_weights
from cjm_yolox_pytorch.data.shapes import write_shapes

SIGNALS = [signal.SIGKILL, signal.SIGTERM, signal.SIGINT]


def check_files(out):
    "Whatever is there loads"
    for path in out.glob('*.safetensors'): load_weights(path)
    if (out/'state.pt').exists(): torch.load(out/'state.pt', weights_only=True)


def begin(data, out, *more):
    "A training that has begun to train"
    process = subprocess.Popen(command(data, out, '--workers', '1', *more), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**ENVIRONMENT, 'PYTHONFAULTHANDLER': '1'})
    for line in process.stdout:
        if line.startswith('training on'): return process
    raise RuntimeError(f'it ended before it began: {process.wait()}')


def hit(data, out, rng, longest, resume):
    "Train until a signal comes, if it comes in time: its name, or None"
    process, name, fine = begin(data, out, *['--resume']*resume), None, (0,)
    try: process.wait(rng.uniform(0, longest))
    except subprocess.TimeoutExpired:
        number = rng.choice(SIGNALS)
        process.send_signal(number)
        try: process.wait(300)
        except subprocess.TimeoutExpired: # Say where it hangs
            process.send_signal(signal.SIGABRT)
            raise
        fine = {signal.SIGKILL: (-signal.SIGKILL, 0), signal.SIGTERM: (130, -signal.SIGTERM, 0), signal.SIGINT: (130, 0)}[number] # 0 if it was just done; once all is saved, SIGTERM ends it as any program
        if process.returncode: name = number.name
    printed = process.stdout.read()
    assert process.returncode in fine and 'Traceback' not in printed, (name, process.returncode, printed)
    return name


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--times', type=int, default=20, help='kills (default: 20)')
    parser.add_argument('--seed', type=int, default=0, help='of the moments (default: 0)')
    args = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler) # In the background it may be ignored, here and by all that is started
    rng, hits, ends = random.Random(args.seed), Counter(), 0
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        write_shapes(folder/'shapes', train=24, val=6, test=0, size=64)
        whole, begun = begin(folder/'shapes', folder/'whole'), time.time()
        assert whole.wait() == 0, whole.stdout.read()
        longest = time.time() - begun
        while sum(hits.values()) < args.times:
            out, finished = folder/f'run{ends}', False
            while not finished:
                before = (out/'state.pt').exists()
                name = hit(folder/'shapes', out, rng, longest, before) if sum(hits.values()) < args.times else None
                check_files(out)
                if name: hits[f'{name} {"while training" if (out/"state.pt").exists() else "before the first state"}'] += 1
                else: finished = True
            done = run(folder/'shapes', out, '--workers', '1', *['--resume']*(out/'state.pt').exists())
            assert done.returncode == 0, done.stderr
            assert_same_training(out, folder/'whole')
            ends += 1
            print(f'training {ends}: {sum(hits.values())} of {args.times} signals so far, all files load, the end is the same', flush=True)
    print(', '.join(f'{n} {what}' for what, n in hits.items()))


if __name__ == '__main__': main()
