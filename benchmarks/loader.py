"""Measure training images per second and core with YOLOX's full augmentation, and compare with pixeltable-yolox.

Mosaic, affine transform, MixUp, color jitter and flip with the paper's values, in batches of 8. Both take turns in
one process, on one thread. `make bench` runs all benchmarks in a separate environment.
"""
import json
import statistics
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from loss import first_line, machine, markdown, parser_of, save_results

from cjm_yolox_pytorch.data.augment import yolox_transforms
from cjm_yolox_pytorch.data.batches import DetectionDataset, EpochBatches, train_loader
from cjm_yolox_pytorch.data.shapes import SHAPES, draw_shapes
from cjm_yolox_pytorch.data.splits import find_splits, read_split

BATCH = 8


def empty_coco(names):
    return dict(images=[], annotations=[], categories=[dict(id=i, name=name) for i, name in enumerate(names)])


def add_image(coco, file_name, width, height, boxes, labels):
    "Add an image and its objects (xyxy, label) to a COCO document."
    image_id = len(coco['images'])
    coco['images'].append(dict(id=image_id, file_name=file_name, width=width, height=height))
    for (x1, y1, x2, y2), label in zip(boxes.tolist(), labels.tolist()):
        w = x2 - x1
        h = y2 - y1
        row = dict(id=len(coco['annotations']) + 1, image_id=image_id, category_id=label, iscrowd=0)
        coco['annotations'].append(dict(row, bbox=[x1, y1, w, h], area=w*h))


def write_photos(folder, count):
    "Write a COCO dataset of drawn shapes with the size and the noise of photos."
    coco = empty_coco(SHAPES)
    for i in range(count):
        rng = np.random.default_rng(i)
        image, boxes, labels = draw_shapes(rng)
        grain = rng.normal(0, 8, (480, 640, 3))
        large = Image.fromarray(image).resize((640, 480), Image.BICUBIC)
        noisy = (np.asarray(large) + grain).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder/f'{i}.jpg', quality=90)
        add_image(coco, f'{i}.jpg', 640, 480, boxes*[4, 3, 4, 3], labels)
    (folder/'all.json').write_text(json.dumps(coco))


def ours(annotations, size, folder):
    dataset = DetectionDataset(annotations, size, yolox_transforms(size))
    batches = EpochBatches(len(dataset), BATCH)
    while True:
        yield from (batch.images for batch in train_loader(dataset, batches))
        batches.epoch += 1


def pixeltable(annotations, size, folder):
    from yolox.data import CocoDataset, MosaicDetection, TrainTransform
    (folder/'annotations').mkdir()
    (folder/'images').mkdir()
    coco = empty_coco(annotations.names)
    for i, path in enumerate(annotations.paths):
        file = f'{i}{Path(path).suffix}'
        (folder/'images'/file).symlink_to(Path(path).resolve())
        height, width = map(int, annotations.sizes[i])
        boxes, labels, _ = annotations.objects(i)
        add_image(coco, file, width, height, boxes, labels)
    (folder/'annotations/all.json').write_text(json.dumps(coco))
    plain = CocoDataset(str(folder), 'all.json', 'images', (size, size), TrainTransform(max_labels=50))
    dataset = MosaicDetection(plain, (size, size), preproc=TrainTransform(max_labels=120), mosaic_scale=(.1, 2))
    rng = np.random.default_rng(0)
    while True:
        chosen = rng.permutation(len(dataset))[:BATCH]
        # Like its own loader, with a flag that asks for mosaic
        yield torch.utils.data.default_collate([dataset[True, int(i)] for i in chosen])[0]


PEER = 'pixeltable-yolox'
VARIANTS = {PEER: pixeltable, 'ours': ours}


def timed(function):
    "Return the seconds that `function()` takes."
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def alternating(names, turn):
    "Return `names` forwards in even turns and backwards in odd ones."
    return list(names)[::-1 if turn % 2 else 1]


def ratio(speed, variant):
    "Return how many times as fast as the peer `variant` is, or None if one of them was not measured."
    return speed[variant]/speed[PEER] if variant in speed and PEER in speed else None


def two_digits(value): return '' if value is None else f'{value:.2f}'


def measure(annotations, args, folder):
    "Return the median images per second of each variant, and the error of each that failed."
    streams = {}
    failed = {}
    for variant in args.only:
        (folder/variant).mkdir()
        try:
            stream = VARIANTS[variant](annotations, args.img_size, folder/variant)
            for _ in range(2): next(stream)
            streams[variant] = stream
        except Exception as e: failed[variant] = first_line(e) # Another implementation may fail in any way
    times = {variant: [] for variant in streams}
    for turn in range(args.rounds):
        for variant in alternating(streams, turn): times[variant].append(timed(lambda: next(streams[variant])))
    return {variant: BATCH/statistics.median(t) for variant, t in times.items()}, failed


def result_cells(row):
    if row['failed']: return [f'failed: {row["failed"]}', '']
    return [f'{row["images_per_s"]:.1f}', two_digits(row['ratio'])]


def as_table(rows):
    cells = [[row['loader'], *result_cells(row)] for row in rows]
    return markdown(['loader', 'images/s per core', 'times pixeltable-yolox'], cells, texts=[0])


def parse_arguments():
    parser, option = parser_of(__doc__)
    option('--data', 'folder of a dataset, whose first split is used (default: 96 drawn images)', type=Path)
    option('--img-size', 'canvas side in pixels (default: 640)', type=int, default=640)
    option('--only', 'variants to measure (default: all)', nargs='+', default=list(VARIANTS), choices=list(VARIANTS))
    option('--rounds', 'timed batches of each; the median counts (default: 15)', type=int, default=15)
    option('--out', 'folder for loader.md and loader.json', type=Path)
    return parser.parse_args()


def read_data(data, folder):
    "Read the first split of `data`; without it, draw a dataset in `folder`."
    if data: return read_split(data, next(iter(find_splits(data))))
    write_photos(folder, 96)
    return read_split(folder, 'all')


def main():
    args = parse_arguments()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    with tempfile.TemporaryDirectory() as folder:
        annotations = read_data(args.data, Path(folder))
        speed, failed = measure(annotations, args, Path(folder))
    rows = []
    for variant in args.only:
        row = dict(loader=variant, images_per_s=speed.get(variant), ratio=ratio(speed, variant))
        rows.append(dict(row, failed=failed.get(variant)))
    about = machine('cpu') | dict(data=args.data.name if args.data else 'drawn', images=len(annotations))
    about |= dict(size=args.img_size, rounds=args.rounds, opencv=cv2.__version__)
    save_results('loader', as_table(rows), rows, about, args.out)


if __name__ == '__main__': main()
