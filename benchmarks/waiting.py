"""Measure whole processes that train, with and without another number of spins before a thread sleeps.

Run it on a quiet machine, and beside other programs. The variable is that of GNU's OpenMP, so only Linux has it.
"""
import os
import statistics
import subprocess
import sys
import time

from loss import parser_of

from cjm_yolox_pytorch.commands.start import shorten_waits

TRAIN = '''import sys, time, torch
from cjm_yolox_pytorch.model import build_model
from cjm_yolox_pytorch.loss import YOLOXLoss
torch.manual_seed(0)
model, loss = build_model('yolox_tiny', 5, pretrained=False), YOLOXLoss(5)
images, boxes, labels = torch.rand(16, 3, 96, 96), [torch.tensor([[10., 10, 50, 50]])]*16, [torch.tensor([1])]*16
for step in range(1 + int(sys.argv[1])):
    if step == 1: start, cpu = time.time(), time.process_time()
    sum(loss(*model(images), boxes, labels).values()).backward()
print((time.time() - start)/step, (time.process_time() - cpu)/step)'''
SETTINGS = 'OMP_WAIT_POLICY', 'GOMP_SPINCOUNT', 'OMP_NUM_THREADS'


def run(steps, **settings): # Seconds: of the process, of a step, and of the processors in a step
    env = {k: v for k, v in os.environ.items() if k not in SETTINGS} | settings
    start = time.time()
    command = [sys.executable, '-c', TRAIN, str(steps)]
    printed = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout
    return time.time() - start, *map(float, printed.split())


def our_spins():
    for name in SETTINGS: os.environ.pop(name, None)
    shorten_waits()
    return os.environ['GOMP_SPINCOUNT']


def main():
    parser, option = parser_of(__doc__)
    option('--spins', 'before a thread sleeps (default: as in our commands)', default=our_spins())
    option('--pairs', 'of processes, in turns (default: 6)', type=int, default=6)
    option('--steps', 'of each process (default: 20)', type=int, default=20)
    args = parser.parse_args()
    ratios = []
    for _ in range(args.pairs):
        before, after = run(args.steps), run(args.steps, GOMP_SPINCOUNT=args.spins)
        ratios.append(after[0]/before[0])
        both = ', '.join('{:.1f} s, a step {:.3f} s, on the processors {:.3f} s'.format(*t) for t in (before, after))
        print(f'{both}: x{ratios[-1]:.2f}', flush=True)
    print(f'median x{statistics.median(ratios):.2f}, load {os.getloadavg()[0]:.1f}')


if __name__ == '__main__': main()
