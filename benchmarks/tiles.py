"""Objects in large pictures: our tiles, whole pictures, supervision.InferenceSlicer and SAHI, with the same weights.

    python benchmarks/tiles.py WEIGHTS DATA [--scenes 3] [--side 4] [--tile 640] [--only ours whole] [--out FOLDER]
    python benchmarks/tiles.py WEIGHTS --shapes 4 --tile 160 [--epochs 10]

The first puts photos of DATA side by side at their native resolution: `side` times `side` in a scene, in random order.
The second fine-tunes a yolox_nano on drawn shapes of 15 to 50 pixels, on the same tiles, and looks for 150 of them in
pictures of 2,000 pixels. SAHI and supervision get our detector as their model, and tiles in batches as large as ours.
"""
import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from cjm_yolox_pytorch.data.annotations import Annotations, read_annotated, relabel
from cjm_yolox_pytorch.data.shapes import draw_shapes
from cjm_yolox_pytorch.data.splits import find_splits
from cjm_yolox_pytorch.detection.detections import Detections
from cjm_yolox_pytorch.detection.detector import load_detector
from cjm_yolox_pytorch.evaluation.metrics import average_precision

OVERLAP, BATCH, LOW, WORKING = .2, 8, .01, .25


# Data

def side_by_side(parts, side):
    "Image [3, H, W], boxes and labels of `side` rows of parts, each a triple of the same"
    rows, y, boxes = [parts[n:n + side] for n in range(0, len(parts), side)], 0, []
    heights = [max(image.shape[1] for image, *_ in row) for row in rows]
    width = max(sum(image.shape[2] for image, *_ in row) for row in rows)
    scene = torch.full((3, sum(heights), width), 114, dtype=torch.uint8)
    for row, height in zip(rows, heights):
        x = 0
        for image, b, _ in row:
            _, h, w = image.shape
            scene[:, y:y + h, x:x + w] = image
            boxes.append(b + np.array([x, y, x, y], dtype=np.float32))
            x += w
        y += height
    return scene, np.concatenate(boxes), np.concatenate([part[2] for part in parts])


def photo_scenes(truth, count, side, seed):
    rng, order = np.random.default_rng(seed), []
    while len(order) < count*side**2: order += rng.permutation(len(truth)).tolist()
    for n in range(count):
        chosen = order[n*side**2:(n + 1)*side**2]
        yield side_by_side([(read_annotated(truth, i), *truth.objects(i)[:2]) for i in chosen], side)


def shape_scene(seed, size=2000, count=150):
    "Shapes of 15 to 50 pixels, each cut out of a picture of its own and put anywhere"
    rng = np.random.default_rng(seed)
    scene = np.tile(rng.uniform(90, 160, 3), (size, size, 1))
    coarse = Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).resize((size, size))
    scene, boxes, labels = scene + (np.asarray(coarse) - 128.)*.2, [], []
    while len(boxes) < count:
        image, found, kinds = draw_shapes(rng, 100, 1)
        if len(found) != 1 or found.min() < 3 or found.max() > 97: continue
        x, y = rng.integers(0, size - 100, 2)
        box = found[0] + [x, y, x, y]
        if any((box[:2] < other[2:] + 4).all() and (box[2:] > other[:2] - 4).all() for other in boxes): continue
        x1, y1, x2, y2 = np.array([*np.floor(found[0, :2]), *np.ceil(found[0, 2:])], dtype=int)
        scene[y + y1:y + y2, x + x1:x + x2] = image[y1:y2, x1:x2]
        boxes.append(box)
        labels.append(kinds[0])
    pixels = torch.from_numpy(scene.clip(0, 255).astype(np.uint8)).permute(2, 0, 1)
    return pixels, np.array(boxes, dtype=np.float32), np.array(labels)


def as_annotations(names, scenes):
    boxes, counts = np.concatenate([s[1] for s in scenes]), [len(s[1]) for s in scenes]
    sizes = np.array([s[0].shape[1:] for s in scenes])
    T, paths = len(boxes), np.array([f'scene{i}.png' for i in range(len(scenes))])
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    labels, crowd = np.concatenate([s[2] for s in scenes]), np.zeros(T, dtype=bool)
    return Annotations(list(names), paths, sizes, np.append(0, np.cumsum(counts)), boxes, labels, crowd, areas)


# Detectors: functions of image, tile and minimum score

def whole(detector, image, tile, conf): return detector(image, conf=conf, max_detections=1000)


def ours(detector, image, tile, conf):
    return detector(image, BATCH, conf, tile=tile, overlap=OVERLAP, max_detections=1000)


def from_supervision(found):
    columns = found.xyxy, found.confidence, found.class_id
    return Detections(*(torch.from_numpy(np.ascontiguousarray(c)) for c in columns))


def supervision_slicer(detector, image, tile, conf):
    import supervision
    def find(slices): return [d.to_supervision() for d in detector(slices, BATCH, conf)]
    slicer = supervision.InferenceSlicer(find, tile, round(tile*OVERLAP), batch_size=BATCH)
    return from_supervision(slicer(image.permute(1, 2, 0).numpy()))


def supervision_ios(detector, image, tile, conf):
    import supervision
    def find(slices): return [d.to_supervision() for d in detector(slices, BATCH, conf)]
    slicer = supervision.InferenceSlicer(find, tile, round(tile*OVERLAP), batch_size=BATCH, overlap_metric='IOS')
    return from_supervision(slicer(image.permute(1, 2, 0).numpy()))


def sahi(detector, image, tile, conf, **changes):
    from sahi.predict import get_sliced_prediction

    from cjm_yolox_pytorch.detection.sahi import sahi_model
    model = sahi_model(detector, conf)
    array = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
    result = get_sliced_prediction(array, model, tile, tile, OVERLAP, OVERLAP, batch_size=BATCH, verbose=0, **changes)
    rows = [(*o.bbox.to_xyxy(), o.score.value, o.category.id) for o in result.object_prediction_list]
    rows = torch.tensor(rows).reshape(-1, 6).float()
    rows = rows[rows[:, 4].argsort(descending=True, stable=True)]
    return Detections(rows[:, :4], rows[:, 4], rows[:, 5].long())


def sahi_forced(detector, image, tile, conf): # GREEDYNMM and IoS also at low scores
    return sahi(detector, image, tile, conf, force_postprocess_type=True)


METHODS = dict(whole=whole, ours=ours, supervision=supervision_slicer, supervision_ios=supervision_ios,
               sahi=sahi, sahi_forced=sahi_forced)


# Measurements

def measure(find, detector, scenes, truth, tile, rounds):
    found = [find(detector, image, tile, LOW) for image, *_ in scenes]
    m, times = average_precision(truth, found), []
    for _ in range(rounds):
        start = time.perf_counter()
        for image, *_ in scenes: find(detector, image, tile, WORKING)
        times.append((time.perf_counter() - start)/len(scenes))
    boxes = sum(int((d.scores > WORKING).sum()) for d in found)
    used = sum(len(find(detector, image, tile, WORKING)) for image, *_ in scenes)
    figures = {k: m[k] for k in ('AP', 'AP50', 'AP_small', 'AP_medium', 'AP_large')}
    return dict(figures, boxes=boxes, boxes_in_use=used, images_per_s=1/min(times))


def table(rows):
    yield '| method | AP | AP50 | small | medium | large | boxes | pictures/s |'
    yield '|:--|--:|--:|--:|--:|--:|--:|--:|'
    for name, r in rows.items():
        aps = ' | '.join(f'{r[k]:.3f}' for k in ('AP', 'AP50', 'AP_small', 'AP_medium', 'AP_large'))
        yield f'| {name} | {aps} | {r["boxes_in_use"]} | {r["images_per_s"]:.2f} |'


def compare(detector, scenes, names, args):
    truth, rows = as_annotations(names, scenes), {}
    print(f'{len(scenes)} pictures, {len(truth.boxes)} objects, {torch.get_num_threads()} threads, {detector}')
    for name in args.only or METHODS:
        try: rows[name] = measure(METHODS[name], detector, scenes, truth, args.tile, args.rounds)
        except ImportError as e: print(f'{name} failed: {e}')
    print(*table(rows), sep='\n')
    if not args.out: return
    Path(args.out).mkdir(parents=True, exist_ok=True)
    name = 'tiles-shapes' if args.shapes else 'tiles-photos'
    (Path(args.out)/f'{name}.json').write_text(json.dumps(dict(vars(args), rows=rows), indent=1))
    (Path(args.out)/f'{name}.md').write_text('\n'.join(table(rows)) + '\n')


def train_on_shapes(initial, folder, tile, epochs):
    "Weights of a yolox_nano, trained on tiles of other scenes"
    from cjm_yolox_pytorch.data.shapes import SHAPES
    from cjm_yolox_pytorch.files.checkpoints import load_weights
    from cjm_yolox_pytorch.training.recipe import Recipe
    from cjm_yolox_pytorch.training.train import fit
    from cjm_yolox_pytorch.training.trainer import Trainer
    splits = []
    for split, seeds in dict(train=range(1000, 1016), val=range(2000, 2004)).items():
        scenes = [shape_scene(seed, 640, 20) for seed in seeds]
        paths = [str(folder/f'{split}{i}.png') for i in range(len(scenes))]
        for path, (image, *_) in zip(paths, scenes): Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
        splits.append(replace(as_annotations(SHAPES, scenes), paths=np.array(paths)))
    recipe = Recipe('yolox_nano', img_size=tile, epochs=epochs, batch=16, tile=tile, eval_interval=epochs)
    fit(Trainer(recipe, *splits, load_weights(initial), 'cpu'), folder/'run')
    return folder/'run/best.safetensors'


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('weights')
    parser.add_argument('data', nargs='?')
    parser.add_argument('--shapes', type=int, default=0)
    parser.add_argument('--epochs', type=int, default=10)
    for name, value in dict(scenes=3, side=4, tile=640, rounds=3, seed=3, img_size=None).items():
        parser.add_argument(f'--{name.replace("_", "-")}', type=int, default=value)
    parser.add_argument('--only', nargs='+', choices=METHODS)
    parser.add_argument('--device')
    parser.add_argument('--out')
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        weights = args.weights
        if args.shapes: weights = train_on_shapes(weights, Path(folder), args.tile, args.epochs)
        detector = load_detector(weights, args.device, args.img_size)
    if args.shapes: return compare(detector, [shape_scene(seed) for seed in range(args.shapes)], detector.names, args)
    truth = relabel(next(iter(find_splits(args.data).values()))(), detector.names)
    compare(detector, [*photo_scenes(truth, args.scenes, args.side, args.seed)], detector.names, args)


if __name__ == '__main__': main()
