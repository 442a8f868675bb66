"""Is a network that chooses which images are labeled next worth it? AP after labeling its choice against random images.

    python benchmarks/active.py path/to/data --weights yolox_nano_coco.pth --out runs/bench

For each seed, a network is trained on a few random images of the training split. Of the rest, as many as `--chosen` are
taken by how unsure it is of them (the order of `yolox_predict --order uncertainty`), or at random; the labels of these
are added, and the training begins again from the published weights. AP is that of the test split.
"""
import statistics
import sys
import time
from pathlib import Path

import numpy as np
from recipes import about_trainings, add_training_options
from loss import markdown, parser_of, save_results

from cjm_yolox_pytorch.data.splits import read_split
from cjm_yolox_pytorch.detection.uncertainty import AGGREGATES, image_uncertainty, LOWEST
from cjm_yolox_pytorch.files.checkpoints import load_weights
from cjm_yolox_pytorch.training.recipe import fine_tune_recipe
from cjm_yolox_pytorch.training.trainer import Trainer

STRATEGIES = ['random', *AGGREGATES]


def train(args, images, test, seed):
    steps = len(images)/8*args.epochs # In so few of them, an average over 200 would keep the first weights
    options = dict(img_size=args.img_size, epochs=args.epochs, seed=seed)
    recipe = fine_tune_recipe(args.model, ema_tau=max(1, steps/4), **options)
    trainer = Trainer(recipe, images, test, load_weights(args.weights) if args.weights else None, args.device)
    for _ in range(args.epochs): trainer.train_epoch()
    return trainer


def choose(strategy, trainer, pool, count, seed):
    "Indices of `count` images of `pool`"
    if strategy == 'random': return np.random.default_rng([seed, 1]).permutation(len(pool))[:count]
    found = trainer.predict(pool, conf=LOWEST)
    return np.argsort([-image_uncertainty(d, strategy) for d in found], kind='stable')[:count]


def row(strategy, seed, images, trainer, start):
    metrics, _ = trainer.validate()
    found = dict(strategy=strategy, seed=seed, images=len(images), boxes=len(images.labels))
    found |= {k: metrics[k] for k in ('AP', 'AP50')} | dict(seconds=time.time() - start)
    print(found, file=sys.stderr, flush=True)
    return found


def run_seed(args, train_split, test, seed):
    "A row for the network that chooses, and one for each strategy"
    order, start = np.random.default_rng(seed).permutation(len(train_split)), time.time()
    first, pool = train_split.take(order[:args.start]), train_split.take(order[args.start:])
    chooser = train(args, first, test, seed)
    yield row('start', seed, first, chooser, start)
    for strategy in args.only:
        start = time.time()
        chosen = order[args.start:][choose(strategy, chooser, pool, args.chosen, seed)]
        images = train_split.take(np.append(order[:args.start], chosen))
        yield row(strategy, seed, images, train(args, images, test, seed), start)


def as_table(rows):
    "Mean over the seeds, and the difference from random images of the same seed"
    at_random = {r['seed']: r['AP'] for r in rows if r['strategy'] == 'random'}
    cells = []
    for strategy in dict.fromkeys(r['strategy'] for r in rows):
        mine = [r for r in rows if r['strategy'] == strategy]
        mean = [f'{statistics.mean(r[k] for r in mine):.3f}' for k in ('AP', 'AP50')]
        compared = strategy not in ('start', 'random') and at_random
        gains = [f'{r["AP"] - at_random[r["seed"]]:+.3f}' for r in mine if compared]
        boxes = f'{statistics.mean(r["boxes"] for r in mine):.0f}'
        each = ' '.join(f'{r["AP"]:.3f}' for r in mine)
        cells.append([strategy, str(mine[0]['images']), boxes, *mean, each, ' '.join(gains)])
    names = ['chosen by', 'images', 'boxes', 'AP', 'AP50', 'AP of each seed', 'AP - random']
    return markdown(names, cells, texts=[0, 5, 6])


def parse_arguments():
    parser, option = parser_of(__doc__)
    add_training_options(option, 'train and test', img_size=256, epochs=25)
    option('--start', 'labeled images at the start (default: 20)', type=int, default=20)
    option('--chosen', 'images that are chosen (default: 60)', type=int, default=60)
    option('--only', 'default: random sum max', nargs='+', default=['random', 'sum', 'max'], choices=STRATEGIES)
    option('--out', 'folder for active.md and active.json', type=Path)
    return parser.parse_args()


def main():
    args = parse_arguments()
    train_split, test = (read_split(args.data, name) for name in ('train', 'test'))
    if args.start + args.chosen > len(train_split): sys.exit(f'the training split has only {len(train_split)} images')
    rows = [r for seed in range(args.seeds) for r in run_seed(args, train_split, test, seed)]
    about = about_trainings(args) | dict(start=args.start, chosen=args.chosen)
    save_results('active', as_table(rows), rows, about, args.out)


if __name__ == '__main__': main()
