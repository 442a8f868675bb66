"""Draw a random sample of the labels that a network takes for missing, to count how many of them are.

    yolox_train DATA --weights coco --model yolox_nano --img-size 256 --epochs 5 --out runs/second
    python benchmarks/missing_labels.py runs/second/best.safetensors DATA --out runs/missing

Look at the pictures (red: what the network suggests, white: the labels), and count the red boxes around an object of
the class in the title. Splits that the weights were trained on are left out if others remain, unless --all is given.
"""
import argparse
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from cjm_yolox_pytorch.data.annotations import fingerprint
from cjm_yolox_pytorch.data.splits import find_splits
from cjm_yolox_pytorch.detection.detector import load_network
from cjm_yolox_pytorch.evaluation.disagreement_sheet import draw_disagreements
from cjm_yolox_pytorch.evaluation.disagreements import LIKELY
from cjm_yolox_pytorch.evaluation.second_opinion import compare_labels


def read_splits(data, notes, every):
    "Split -> `Annotations`, without the images of training, and without lists that only join others"
    splits = {split: read() for split, read in find_splits(data).items() if split != 'trainval'}
    unseen = {split: a for split, a in splits.items() if fingerprint(a) != notes.get('fingerprint')}
    return splits if every or not unseen else unseen


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('weights')
    parser.add_argument('data')
    parser.add_argument('--count', type=int, default=20)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--least', type=float, default=LIKELY, help='minimum suspicion')
    parser.add_argument('--all', action='store_true', help='also images that the weights were trained on')
    parser.add_argument('--out', type=Path, default=Path('runs/missing'))
    args = parser.parse_args()
    network = load_network(args.weights)
    comparison = compare_labels(read_splits(args.data, network.notes, args.all), network, least=args.least)
    found = [d for d in comparison.disagreements if d.kind == 'missing label']
    chosen = np.random.default_rng(args.seed).permutation(len(found))[:args.count]
    sample = [found[n] for n in sorted(chosen)]
    args.out.mkdir(parents=True, exist_ok=True)
    draw_disagreements(comparison.splits, sample, args.out/'sample.png')
    (args.out/'sample.json').write_text(json.dumps([asdict(d) for d in sample], indent=1))
    print(f'{len(found)} likely missing labels in {", ".join(comparison.splits)}; {len(sample)} drawn at random')
    for n, d in enumerate(sample, 1): print(f'{n:3} {d.split}: {d}')
    print(f'look at {args.out/"sample.png"}')


if __name__ == '__main__': main()
