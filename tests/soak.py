"""Does a long training grow? Memory of all its processes and open files, sampled while it runs.

Example: python tests/soak.py --minutes 30 --out runs/soak
"""
import argparse
import json
import os
import signal
import statistics
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from test_resume import ENVIRONMENT, command

from cjm_yolox_pytorch.shapes import write_shapes
from cjm_yolox_pytorch.train import read_rows


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


def open_files(pid): return len(os.listdir(f'/proc/{pid}/fd'))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--minutes', type=float, default=30, help='default: 30')
    parser.add_argument('--out', type=Path, help='folder for soak.json')
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        write_shapes(folder/'shapes', train=64, val=8, test=0, size=64)
        options = ['--epochs', '100000', '--workers', '2', '--every', '5', '--mosaic', '.5']
        process = subprocess.Popen(command(folder/'shapes', folder/'run', *options), stdout=subprocess.DEVNULL, env=ENVIRONMENT)
        begun = time.time()
        while (passed := (time.time() - begun)/60) < args.minutes and process.poll() is None:
            time.sleep(2)
            pids = family(process.pid)
            if len(pids) > 2: rows.append(dict(minutes=round(passed, 2), mb=round(memory_mb(pids)), trainer_mb=round(memory_mb(pids[:1])), files=open_files(process.pid)))
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130, 'it ended by itself'
        epochs = len(read_rows(folder/'run/metrics.csv'))
    rows = [r for r in rows if r['minutes'] > args.minutes/10] # First everything is loaded once
    columns, third = {k: [r[k] for r in rows] for k in rows[0]}, len(rows)//3
    print(f'{epochs} epochs in {args.minutes:g} minutes. Medians of the first third, of the last, and slope:')
    for name, unit in (('mb', 'MB of all processes'), ('trainer_mb', 'MB of the one that trains'), ('files', 'open files')):
        values = columns[name]
        slope, _ = statistics.linear_regression(columns['minutes'], values)
        print(f'{statistics.median(values[:third]):g} and {statistics.median(values[-third:]):g} {unit}, {slope:+.2f} a minute, standard deviation {statistics.stdev(values):.0f}')
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out/'soak.json').write_text(json.dumps(dict(epochs=epochs, **columns)))


if __name__ == '__main__': main()
