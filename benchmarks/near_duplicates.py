"""How many near duplicates are found among images, and between the parts of a random split of them.

    python benchmarks/near_duplicates.py FOLDER_OF_IMAGES_OR_VIDEO... [--every 5]
"""
import argparse
import time
from pathlib import Path

import numpy as np

from cjm_yolox_pytorch.evaluation.near_duplicates import near_duplicates, nearest_hashes, perceptual_hash
from cjm_yolox_pytorch.files.images import read_image
from cjm_yolox_pytorch.files.paths import IMAGE_SUFFIXES, files_below
from cjm_yolox_pytorch.files.video import read_video

SPLITS = 10 # Random ones; figures are their mean


def read(path):
    "Images [3, H, W] of a folder, or frames of a video"
    if path.is_dir(): yield from (read_image(p) for p in files_below(path, *IMAGE_SUFFIXES))
    else: yield from (frame for frame, _ in read_video(path))


def measure(hashes, seed):
    "Share of a random fifth that looks almost like one of the others"
    order = np.random.default_rng(seed).permutation(len(hashes))
    val, train = ({n: hashes[n] for n in part} for part in np.split(order, [len(hashes)//5]))
    return len(near_duplicates(val, train))/max(1, len(val))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('paths', nargs='+', type=Path)
    parser.add_argument('--every', type=int, default=1, help='take one image of so many (1)')
    options = parser.parse_args()
    for path in options.paths:
        images = [image.numpy() for image in read(path)][::options.every]
        start = time.perf_counter()
        hashes = np.stack([perceptual_hash(image) for image in images])
        each = (time.perf_counter() - start)/len(images)
        bits = np.array([nearest_hashes(hashes[n:n + 1], np.delete(hashes, n, 0))[0][0] for n in range(len(hashes))])
        share = np.mean([measure(hashes, seed) for seed in range(SPLITS)])
        print(f'{path.name}: {len(images)} images, {each*1000:.2f} ms each; '
              f'nearest pairs {sorted(bits.tolist())[:6]} bits; {share:.0%} of a random fifth found')


if __name__ == '__main__': main()
