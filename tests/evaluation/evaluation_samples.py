"Random splits and detections, tiny images, and COCO's own program, for the tests of this folder."
import io
import json
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from cjm_yolox_pytorch.data.annotations import build_annotations
from cjm_yolox_pytorch.detection.detections import Detections
from cjm_yolox_pytorch.evaluation.metrics import METRICS

FIGURES = {'precision_recall.png', 'confusion.png', 'worst.png', 'detections.png', 'thresholds.png'}


def official(truth, rows):
    "What pycocotools computes from COCO's dictionaries: the twelve metrics, and by category AP and recall at IoU .5"
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval
    with redirect_stdout(io.StringIO()):
        gt, dt = COCO(), COCO()
        gt.dataset = json.loads(json.dumps(truth)) # It writes into the annotations
        annotations = [dict(r, id=n + 1, area=r['bbox'][2]*r['bbox'][3], iscrowd=0) for n, r in enumerate(rows)]
        dt.dataset = dict(images=gt.dataset['images'], categories=gt.dataset['categories'], annotations=annotations)
        gt.createIndex()
        dt.createIndex()
        run = COCOeval(gt, dt, 'bbox')
        run.evaluate()
        run.accumulate()
        run.summarize()
    precision, recall = run.eval['precision'], run.eval['recall']
    return run.stats, precision[:, :, :, 0, -1].mean(axis=(0, 1)), recall[0, :, 0, -1]


def assert_official(metrics, names, stats, by_class):
    "`by_class` is AP in the order of `names`; -1 there is NaN here"
    ours = np.nan_to_num([metrics[k] for k in METRICS], nan=-1)
    np.testing.assert_allclose(ours, stats, rtol=0, atol=1e-6)
    ours = np.nan_to_num([metrics['classes'][name]['AP'] for name in names], nan=-1)
    np.testing.assert_allclose(ours, by_class, rtol=0, atol=1e-6)


def random_split(seed, classes, images=25, crowds=.1):
    "Objects of all sizes, some of them crowds"
    rng = np.random.default_rng(seed)
    sizes = rng.integers(200, 640, (images, 2))
    image = np.repeat(np.arange(images), rng.integers(0, 20, images))
    corner = rng.uniform(0, .9, (len(image), 2)) * sizes[image][:, ::-1]
    boxes = np.concatenate([corner, corner + np.exp(rng.uniform(1.5, 5.5, corner.shape))], axis=1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) * rng.uniform(.5, 1, len(boxes))
    labels, crowd = rng.integers(classes, size=len(boxes)), rng.uniform(size=len(boxes)) < crowds
    names, paths = [f'class {c}' for c in range(classes)], [f'{i}.jpg' for i in range(images)]
    rows = np.column_stack([image, labels, boxes, crowd, areas])
    return build_annotations('random', names, paths, sizes, rows)


def random_detections(annotations, seed, spread=.1, decimals=6, crowded=0):
    "Detections of objects, moved and renamed a little, and of nothing; none at all in some images"
    rng, C, found = np.random.default_rng(seed), len(annotations.names), []
    for i, (height, width) in enumerate(annotations.sizes):
        boxes, labels, _ = annotations.objects(i)
        again = np.repeat(np.arange(len(boxes)), rng.integers(0, 4, len(boxes)))
        near = boxes[again] + rng.normal(0, spread, (len(again), 4))*np.tile(boxes[again, 2:] - boxes[again, :2], 2)
        corner = rng.uniform(0, .8, (rng.poisson(5) + crowded, 2)) * [width, height]
        anywhere = np.concatenate([corner, corner + rng.uniform(.05, .5, corner.shape)*[width, height]], axis=1)
        boxes = np.sort(np.concatenate([near, anywhere]).reshape(-1, 2, 2), axis=1).reshape(-1, 4)
        labels = np.where(rng.uniform(size=len(again)) < .1, rng.integers(C, size=len(again)), labels[again])
        labels = np.append(labels, rng.integers(C, size=len(corner)) * (crowded == 0))
        scores = rng.uniform(0, 1, len(boxes)).round(decimals)
        order = np.argsort(-scores, kind='stable')[:0 if i % 7 == 6 else None]
        parts = boxes.astype(np.float32)[order], scores.astype(np.float32)[order], labels[order]
        found.append(Detections(*map(torch.from_numpy, parts)))
    return found


def tiny_split(folder, sizes, objects, names):
    "A split of plain images of `sizes` (height, width), with `objects` (x1, y1, x2, y2, label) for each"
    paths = [Path(folder)/f'{i}.png' for i in range(len(sizes))]
    for i, (path, size) in enumerate(zip(paths, sizes)):
        Image.fromarray(np.full((*size, 3), 60 + 40*i, dtype=np.uint8)).save(path)
    rows = [(image, label, *box) for image, found in enumerate(objects) for *box, label in found]
    return build_annotations('tiny', names, paths, sizes, rows)


def detections(rows):
    "Of rows (x1, y1, x2, y2, label, score)"
    rows = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
    return Detections(rows[:, :4], rows[:, 5], rows[:, 4].long())
