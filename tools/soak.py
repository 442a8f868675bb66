"""Does a long training grow? Memory of all its processes and open files, sampled while it runs.

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

from cjm_yolox_pytorch.data.splits import read_split
from cjm_yolox_pytorch.training.recipe import Recipe
from cjm_yolox_pytorch.data.shapes import write_shapes
from cjm_yolox_pytorch.training.runs import read_rows
from cjm_yolox_pytorch.training.train import fit
from cjm_yolox_pytorch.training.trainer import Trainer


def family(pid):
    "`pid` and all processes below it"
    try: below = Path(f'/proc/{pid}/task/{pid}/children').read_text().split()
    except OSError: return []
    return [pid, *(p for child in below for p in family(int(child)))]


def memory_mb(pids):
    "What they have allocated; of what they have in common, their shares (Linux: PSS). Libraries are files, and also others have shares in them"
    total = 0
    for pid in pids:
        with suppress(OSError), open(f'/proc/{pid}/smaps_rollup') as f: # It may have just ended
            total += sum(int(line.split()[1]) for line in f if line.startswith(('Pss_Anon:', 'Pss_Shmem:')))
    return total/1024


def open_files(pids):
    total = 0
    for pid in pids:
        with suppress(OSError): total += len(os.listdir(f'/proc/{pid}/fd'))
    return total


class Mallinfo(ctypes.Structure): # What the C library says of its memory
    _fields_ = [(name, ctypes.c_size_t) for name in ('arena', 'ordblks', 'smblks', 'hblks', 'hblkhd', 'usmblks', 'fsmblks', 'uordblks', 'fordblks', 'keepcost')]


def train(folder):
    "Train until a signal comes, and write after each epoch how many bytes are in use: what Linux counts also has gaps in it that are free"
    mallinfo = ctypes.CDLL(None).mallinfo2
    mallinfo.restype = Mallinfo
    def count(row, out):
        gc.collect()
        with open(folder/'used', 'a') as f: print(time.time(), mallinfo().uordblks + mallinfo().hblkhd, file=f)
    recipe = Recipe('yolox_nano', img_size=64, batch=4, epochs=10**6, amp='none', eval_interval=5, mosaic=.5, mixup=.5, workers=2)
    trainer = Trainer(recipe, read_split(folder/'shapes', 'train'), read_split(folder/'shapes', 'val'), device='cpu')
    with suppress(KeyboardInterrupt): fit(trainer, folder/'run', loggers=[count])


def trend(minutes, values, parts=10):
    "What is added in a minute: the median of the slopes of ten parts, which a step in one of them does not move"
    n = len(values)//parts
    return statistics.median(statistics.linear_regression(minutes[i*n:i*n+n], values[i*n:i*n+n])[0] for i in range(parts))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--minutes', type=float, default=30, help='default: 30')
    parser.add_argument('--out', type=Path, help='folder for soak.json')
    parser.add_argument('--train', type=Path, help=argparse.SUPPRESS) # In a process of its own
    args = parser.parse_args()
    if args.train: return train(args.train)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        write_shapes(folder/'shapes', train=64, val=8, test=0, size=64)
        process = subprocess.Popen([sys.executable, __file__, '--train', folder], stdout=subprocess.DEVNULL, env={**os.environ, 'OMP_NUM_THREADS': '1'})
        begun = time.time()
        while (passed := (time.time() - begun)/60) < args.minutes and process.poll() is None:
            time.sleep(2)
            pids = family(process.pid)
            if len(pids) > 2: rows.append(dict(minutes=round(passed, 2), mb=round(memory_mb(pids)), trainer_mb=round(memory_mb(pids[:1])), files=open_files(pids)))
        process.send_signal(signal.SIGINT)
        assert process.wait() == 0, 'it ended by itself'
        epochs = len(read_rows(folder/'run/metrics.csv'))
        used = [((float(at) - begun)/60, int(size)/2**20) for at, size in (line.split() for line in (folder/'used').read_text().splitlines())]
    rows = [r for r in rows if r['minutes'] > args.minutes/10] # First everything is loaded once
    used = [(round(at, 2), round(mb, 3)) for at, mb in used if at > args.minutes/10]
    columns, third = {k: [r[k] for r in rows] for k in rows[0]}, len(rows)//3
    print(f'{epochs} epochs in {args.minutes:g} minutes. In the first third and in the last:')
    for name, typical, what in (('mb', statistics.median, 'MB of all processes (median)'), ('trainer_mb', statistics.median, 'MB of the one that trains (median)'), ('files', min, 'open files of all (least)')):
        print(f'{typical(columns[name][:third]):g} and {typical(columns[name][-third:]):g} {what}')
    slope, whole = trend(*zip(*used)), used[-1][0] - used[0][0]
    print(f'in use by the one that trains: {used[0][1]:.1f} and at last {used[-1][1]:.1f} MB; {1024*slope*whole/len(used):+.1f} KB an epoch, {60*slope:+.1f} MB an hour')
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out/'soak.json').write_text(json.dumps(dict(epochs=epochs, **columns, used_minutes=[at for at, _ in used], used_mb=[mb for _, mb in used])))
    # Whatever stays open is open at the quietest moment, too. How many are at the busiest, while workers start, is partly luck of the sample
    more = min(columns['files'][-third:]) > min(columns['files'][:third]) or max(columns['files'][-third:]) > max(columns['files'][:third]) + 2
    if slope > 10/60 or more: sys.exit('It grows: 10 MB an hour or more, or ever more files are open')


if __name__ == '__main__': main()
