"""How long does it take from the start of Python to the boxes of one photo, and how much memory?

    python benchmarks/start_up.py FILE.onnx PHOTO

The same ONNX file is run without PyTorch (`OnnxDetector`) and with it (`load_detector`), and the weights beside it,
if WEIGHTS are given as a third argument, with PyTorch alone. Each is started seven times, in turn; medians.
"""
import subprocess
import sys
import time

import numpy as np

REPEATS = 7
WITHOUT = 'from cjm_yolox_pytorch.detection.onnx import OnnxDetector; print(len(OnnxDetector({0!r})({1!r})[0]))'
WITH = 'from cjm_yolox_pytorch.detection.detector import load_detector; print(len(load_detector({0!r}, "cpu")({1!r})))'
PEAK = '; import resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)'


def start(code):
    "Seconds, megabytes and number of boxes of a new process"
    begun = time.perf_counter()
    done = subprocess.run([sys.executable, '-c', code + PEAK], capture_output=True, text=True, check=True)
    boxes, memory = map(int, done.stdout.split())
    return time.perf_counter() - begun, memory/1024, boxes


def main(file, photo, weights=None):
    codes = {'numpy': WITHOUT.format(file, photo), 'torch': WITH.format(file, photo)}
    if weights: codes['weights'] = WITH.format(weights, photo)
    runs = {name: [] for name in codes}
    for _ in range(REPEATS):
        for name, code in codes.items(): runs[name].append(start(code))
    print(f'{"":8} seconds  MB at most  boxes')
    for name, rows in runs.items():
        seconds, memory, boxes = np.median(rows, axis=0)
        print(f'{name:8} {seconds:7.2f} {memory:11.0f} {boxes:6.0f}')


if __name__ == '__main__':
    main(*sys.argv[1:])
