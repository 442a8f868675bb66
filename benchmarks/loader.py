"""Training images per second and core, with the whole augmentation of YOLOX's recipe, beside pixeltable-yolox's.

Mosaic, affine map, MixUp, colours and mirroring, with the paper's figures; batches of 8. All take turns in one process, on one thread.
With an environment of its own: make bench
"""
import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent)) # For the benchmark beside this one
from loss import machine, tell

from cjm_yolox_pytorch.data.augment import yolox_transforms
from cjm_yolox_pytorch.data.batches import DetectionDataset, EpochBatches, train_loader
from cjm_yolox_pytorch.data.splits import find_splits, read_split
from cjm_yolox_pytorch.data.shapes import SHAPES, draw_shapes

BATCH = 8


def write_photos(folder, count):
    "Drawn shapes as large as photos of COCO, and as grainy, in COCO format"
    coco = dict(images=[], annotations=[], categories=[dict(id=i, name=name) for i, name in enumerate(SHAPES)])
    for i in range(count):
        rng = np.random.default_rng(i)
        image, boxes, labels = draw_shapes(rng)
        grain = rng.normal(0, 8, (480, 640, 3))
        Image.fromarray((np.asarray(Image.fromarray(image).resize((640, 480), Image.BICUBIC)) + grain).clip(0, 255).astype(np.uint8)).save(folder/f'{i}.jpg', quality=90)
        coco['images'].append(dict(id=i, file_name=f'{i}.jpg', width=640, height=480))
        for (x1, y1, x2, y2), label in zip((boxes*[4, 3, 4, 3]).tolist(), labels.tolist()):
            coco['annotations'].append(dict(id=len(coco['annotations']), image_id=i, category_id=label, iscrowd=0, bbox=[x1, y1, x2 - x1, y2 - y1], area=(x2 - x1)*(y2 - y1)))
    (folder/'all.json').write_text(json.dumps(coco))


def ours(annotations, img_size, folder):
    dataset = DetectionDataset(annotations, img_size, yolox_transforms(img_size))
    batches = EpochBatches(len(dataset), BATCH)
    while True:
        yield from (batch.images for batch in train_loader(dataset, batches))
        batches.epoch += 1


def pixeltable(annotations, img_size, folder):
    from yolox.data import CocoDataset, MosaicDetection, TrainTransform
    (folder/'annotations').mkdir()
    (folder/'images').mkdir()
    coco = dict(images=[], annotations=[], categories=[dict(id=i, name=name) for i, name in enumerate(annotations.names)])
    for i, path in enumerate(annotations.paths):
        file = f'{i}{Path(path).suffix}'
        (folder/'images'/file).symlink_to(Path(path).resolve())
        coco['images'].append(dict(id=i, file_name=file, height=int(annotations.sizes[i][0]), width=int(annotations.sizes[i][1])))
        boxes, labels, _ = annotations.objects(i)
        for (x1, y1, x2, y2), label in zip(boxes.tolist(), labels.tolist()):
            coco['annotations'].append(dict(id=len(coco['annotations']) + 1, image_id=i, category_id=label, iscrowd=0, bbox=[x1, y1, x2 - x1, y2 - y1], area=(x2 - x1)*(y2 - y1)))
    (folder/'annotations/all.json').write_text(json.dumps(coco))
    plain = CocoDataset(str(folder), 'all.json', 'images', (img_size, img_size), TrainTransform(max_labels=50))
    dataset = MosaicDetection(plain, (img_size, img_size), preproc=TrainTransform(max_labels=120), mosaic_scale=(.1, 2))
    rng = np.random.default_rng(0)
    while True: # As its loader does: indices with a flag for the mosaic
        for n in range(0, len(dataset) - BATCH + 1, BATCH):
            yield torch.utils.data.default_collate([dataset[True, int(i)] for i in rng.permutation(len(dataset))[:BATCH]])[0]


VARIANTS = {'pixeltable-yolox': pixeltable, 'ours': ours}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', type=Path, help='folder of a dataset, whose first split is used (default: 96 drawn images)')
    parser.add_argument('--img-size', type=int, default=640, help='side of the canvas in pixels (default: 640)')
    parser.add_argument('--only', nargs='+', default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument('--rounds', type=int, default=15, help='timed batches, of which the median counts (default: 15)')
    parser.add_argument('--out', type=Path, help='folder for loader.md and loader.json')
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)

    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        if args.data is None: write_photos(folder, 96)
        annotations = read_split(args.data or folder, 'all' if args.data is None else next(iter(find_splits(args.data))))
        streams, failed = {}, {}
        for variant in args.only:
            (folder/variant).mkdir()
            try:
                streams[variant] = VARIANTS[variant](annotations, args.img_size, folder/variant)
                for _ in range(2): next(streams[variant])
            except Exception as e: # The run goes on
                streams.pop(variant, None)
                failed[variant] = f'{type(e).__name__}: {e}'.splitlines()[0][:200]
        times = {variant: [] for variant in streams}
        for n in range(args.rounds):
            for variant in list(streams)[::(-1)**n]:
                start = time.perf_counter()
                next(streams[variant])
                times[variant].append(time.perf_counter() - start)
    speed = {variant: BATCH/statistics.median(t) for variant, t in times.items()}
    table, rows = ['| loader | images/s per core | times pixeltable-yolox |', '|---|--:|--:|'], []
    for variant in args.only:
        ratio = speed[variant]/speed['pixeltable-yolox'] if variant in speed and 'pixeltable-yolox' in speed else None
        rows.append(dict(loader=variant, images_per_s=speed.get(variant), ratio=ratio, failed=failed.get(variant)))
        cells = [f'failed: {failed[variant]}', ''] if variant in failed else [f'{speed[variant]:.1f}', '' if ratio is None else f'{ratio:.2f}']
        table.append(f'| {" | ".join([variant, *cells])} |')
    about = machine('cpu') | dict(data='drawn' if args.data is None else args.data.name, images=len(annotations), size=args.img_size, rounds=args.rounds, opencv=cv2.__version__)
    tell('loader', '\n'.join(table), rows, about, args.out)


if __name__ == '__main__': main()
