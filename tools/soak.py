"""Check that a long training does not grow: sample the memory and the open files of all its processes.

Example: python tools/soak.py --minutes 30 --out runs/soak
"""
import argparse
import ctypes
import gc
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from cjm_yolox_pytorch.data.shapes import write_shapes
from cjm_yolox_pytorch.data.splits import read_split
from cjm_yolox_pytorch.training.recipe import Recipe
from cjm_yolox_pytorch.training.runs import read_rows
from cjm_yolox_pytorch.training.train import fit
from cjm_yolox_pytorch.training.trainer import Trainer

ENVIRONMENT = {**os.environ, 'OMP_NUM_THREADS': '1'}
MB_PER_HOUR = 10 # More is a leak


# ---- What processes use

def family(pid):
    "Return `pid` and all its descendants."
    try: children = Path(f'/proc/{pid}/task/{pid}/children').read_text().split()
    except OSError: return []
    return [pid, *(p for child in children for p in family(int(child)))]


def memory_mb(pids):
    """Return the memory that processes have allocated; shared pages count in proportion (PSS).

    Libraries are left out: they are mapped files, which other programs share too.
    """
    total = 0
    for pid in pids:
        with suppress(OSError), open(f'/proc/{pid}/smaps_rollup') as f: # The process may have just ended
            total += sum(int(line.split()[1]) for line in f if line.startswith(('Pss_Anon:', 'Pss_Shmem:')))
    return total/1024


def open_files(pids):
    total = 0
    for pid in pids:
        with suppress(OSError): total += len(os.listdir(f'/proc/{pid}/fd'))
    return total


class Mallinfo(ctypes.Structure):
    "Memory statistics of the C library."
    _fields_ = [(name, ctypes.c_size_t) for name in ('arena', 'ordblks', 'smblks', 'hblks', 'hblkhd', 'usmblks',
                                                     'fsmblks', 'uordblks', 'fordblks', 'keepcost')]


# ---- The training, in a new process

def train(folder):
    "Train until a signal comes, and write the bytes in use after each epoch."
    # Unlike the figures of Linux, these leave out free gaps
    mallinfo = ctypes.CDLL(None).mallinfo2
    mallinfo.restype = Mallinfo
    def count(row, out):
        gc.collect()
        info = mallinfo()
        with open(folder/'used', 'a') as f: print(time.time(), info.uordblks + info.hblkhd, file=f)
    recipe = Recipe('yolox_nano', img_size=64, batch=4, epochs=10**6, amp='none', eval_interval=5, mosaic=.5, mixup=.5,
        workers=2)
    splits = [read_split(folder/'shapes', name) for name in ('train', 'val')]
    trainer = Trainer(recipe, *splits, device='cpu')
    with suppress(KeyboardInterrupt): fit(trainer, folder/'run', loggers=[count])


# ---- The observer

def sample(process, minutes):
    "Return a row every two seconds while all processes run."
    begun = time.time()
    rows = []
    while (passed := (time.time() - begun)/60) < minutes and process.poll() is None:
        time.sleep(2)
        pids = family(process.pid)
        if len(pids) <= 2: continue
        row = dict(minutes=round(passed, 2), mb=round(memory_mb(pids)), trainer_mb=round(memory_mb(pids[:1])))
        rows.append(dict(row, files=open_files(pids)))
    return rows


def read_used(path, begun):
    "Return the minutes and the MB in use after each epoch."
    pairs = [line.split() for line in path.read_text().splitlines()]
    return [((float(at) - begun)/60, int(size)/2**20) for at, size in pairs]


def observe(minutes):
    "Train for so long; return the number of epochs, the samples, and the MB in use after each epoch."
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        write_shapes(folder/'shapes', train=64, val=8, test=0, size=64)
        command = [sys.executable, __file__, '--train', folder]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=ENVIRONMENT)
        begun = time.time()
        rows = sample(process, minutes)
        process.send_signal(signal.SIGINT)
        assert process.wait() == 0, 'the training ended by itself'
        return len(read_rows(folder/'run/metrics.csv')), rows, read_used(folder/'used', begun)


def trend(minutes, values, parts=10):
    "Return the growth per minute: the median slope of ten parts, which a jump in one of them does not change."
    n = len(values)//parts
    def slope(i): return statistics.linear_regression(minutes[i*n:i*n+n], values[i*n:i*n+n])[0]
    return statistics.median(slope(i) for i in range(parts))


FIGURES = [('mb', statistics.median, 'MB of all processes (median)'),
           ('trainer_mb', statistics.median, 'MB of the training process (median)'),
           ('files', min, 'open files of all processes (minimum)')]

def print_summary(columns, used, slope):
    third = len(columns['files'])//3
    for name, typical, what in FIGURES:
        print(f'{typical(columns[name][:third]):g} and {typical(columns[name][-third:]):g} {what}')
    (begun, first), (ended, last) = used[0], used[-1]
    rates = f'{1024*slope*(ended - begun)/len(used):+.1f} KB per epoch, {60*slope:+.1f} MB per hour'
    print(f'in use by the training process: {first:.1f} MB, finally {last:.1f} MB; {rates}')


def more_files(files):
    "Return whether more files are open in the last third than in the first."
    third = len(files)//3
    first = files[:third]
    last = files[-third:]
    # Leaked files are open at the quietest moment, too. The busiest moment, while workers start, is sampled by chance
    return min(last) > min(first) or max(last) > max(first) + 2


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--minutes', type=float, default=30, help='default: 30')
    parser.add_argument('--out', type=Path, help='folder for soak.json')
    parser.add_argument('--train', type=Path, help=argparse.SUPPRESS) # In a new process
    args = parser.parse_args()
    if args.train: return train(args.train)
    epochs, rows, used = observe(args.minutes)
    warm = args.minutes/10 # By then, everything has been loaded once
    rows = [r for r in rows if r['minutes'] > warm]
    used = [(round(at, 2), round(mb, 3)) for at, mb in used if at > warm]
    columns = {k: [r[k] for r in rows] for k in rows[0]}
    slope = trend(*zip(*used))
    print(f'{epochs} epochs in {args.minutes:g} minutes. In the first and in the last third:')
    print_summary(columns, used, slope)
    if args.out:
        columns.update(used_minutes=[at for at, _ in used], used_mb=[mb for _, mb in used])
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out/'soak.json').write_text(json.dumps(dict(epochs=epochs, **columns)))
    if slope > MB_PER_HOUR/60 or more_files(columns['files']):
        sys.exit(f'the training grows: by {MB_PER_HOUR} MB per hour or more, or more and more files are open')


if __name__ == '__main__': main()
