"""Measure AP and minutes of training runs with more and fewer epochs, from the first import to the last file.

Each is a process of `yolox_train` with its defaults, and `yolox_eval` measures its weights on the test split. With
`--before`, the package in another checkout takes turns with this one. Times count only on a quiet machine. With
`--threads 1`, two runs of this file at once measure AP alone, in less time.

Example: python benchmarks/frontier.py path/to/bccd --weights yolox_nano.pth --epochs 8 15 30 --out runs/bench
"""
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from loss import machine, markdown, parser_of, save_results

ROOT = Path(__file__).resolve().parent.parent
START = 'import sys; from cjm_yolox_pytorch.commands.start import start; sys.argv = sys.argv[1:]; start()'


def run(package, threads, *words):
    "Run a command with the package in the folder `package`, and return its seconds."
    env = os.environ | dict(PYTHONPATH=str(package)) | (dict(OMP_NUM_THREADS=str(threads)) if threads else {})
    start = time.time()
    done = subprocess.run([sys.executable, '-c', START, *map(str, words)], env=env, capture_output=True, text=True)
    if done.returncode: raise SystemExit(f'{" ".join(map(str, words))}\n{done.stdout}{done.stderr}')
    return time.time() - start


def train(args, name, package, epochs, seed):
    "Train and measure once."
    out = args.work/f'{name}-{epochs or "default"}-{seed}'
    options = ['--epochs', epochs] if epochs else []
    if args.weights: options += ['--weights', args.weights]
    if args.threads: options += ['--workers', 0]
    fixed = '--model', args.model, '--seed', seed, '--device', 'cpu', '--out', out
    seconds = run(package, args.threads, 'yolox_train', args.data, *fixed, *options)
    run(ROOT, args.threads, 'yolox_eval', out/'best.safetensors', args.data, '--split', args.split, '--out', out/'test')
    found = json.loads((out/'test'/'metrics.json').read_text())
    minutes = None if args.threads else seconds/60 # Only as users have them
    row = dict(version=name, epochs=epochs, seed=seed, minutes=minutes, AP=found['AP'], AP50=found['AP50'])
    print(row, file=sys.stderr, flush=True)
    return row


def as_table(rows):
    "Medians over the seeds, for each version and number of epochs; times that were not measured are None."
    groups = {}
    for row in rows: groups.setdefault((row['version'], row['epochs'] or 'default'), []).append(row)

    def median(found, key, digits):
        known = [row[key] for row in found if row[key] is not None]
        return f'{statistics.median(known):.{digits}f}' if known else ''
    digits = dict(minutes=1, AP=3, AP50=3)
    cells = [[version, str(epochs), str(len(found)), *(median(found, key, n) for key, n in digits.items())]
        for (version, epochs), found in groups.items()]
    return markdown(['version', 'epochs', 'seeds', *digits], cells, texts=[0])


def parse_arguments():
    parser, option = parser_of(__doc__)
    option('data', 'folder of a dataset with the splits train, val and test', type=Path)
    option('--weights', 'initial weights (default: random)', type=Path)
    option('--model', 'default: yolox_nano', default='yolox_nano')
    option('--epochs', 'trainings with so many epochs; 0: as many as is the default (default: 0)', type=int,
        nargs='+', default=[0])
    option('--seeds', 'default: 0 1 2', type=int, nargs='+', default=[0, 1, 2])
    option('--before', 'root of another checkout, trained with its own defaults', type=Path)
    option('--split', 'measured split (default: test)', default='test')
    option('--threads', 'of each training run, which then loads images itself (default: as users have it)', type=int)
    option('--name', 'of the results (default: frontier)', default='frontier')
    option('--out', 'folder for results and trainings (default: runs/bench)', type=Path, default=Path('runs/bench'))
    args = parser.parse_args()
    args.work = args.out/f'{args.name}-trainings'
    return args


def main():
    args = parse_arguments()
    rows = []
    for seed in args.seeds: # The outer loop: a benchmark that is interrupted has still compared all
        if args.before: rows.append(train(args, 'before', args.before.resolve(), 0, seed))
        rows += [train(args, 'now', ROOT, epochs, seed) for epochs in args.epochs]
    about = machine('cpu') | dict(data=args.data.name, split=args.split, weights=args.weights and args.weights.name)
    save_results(args.name, as_table(rows), rows, about | dict(model=args.model), args.out)


if __name__ == '__main__': main()
