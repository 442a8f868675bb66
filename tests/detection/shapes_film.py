"Videos of drawn shapes whose paths are known, a detector that sees their colors, and scores of tracks."
import numpy as np
import torch
from PIL import Image, ImageDraw

from cjm_yolox_pytorch.detection.detections import Detections
from cjm_yolox_pytorch.files.video import VideoWriter

COLORS = [(220, 30, 30), (30, 160, 30), (30, 30, 220)]
SIZE = 240, 160


def paths(seconds):
    "[3, 4] xyxy: two shapes cross at 2 seconds, and one goes back and forth"
    t = np.asarray(seconds)
    left = np.stack([10 + 45*t, 190 - 45*t, 100 + 60*np.sin(1.5*t)])
    return np.stack([left, [20, 40, 110], left + 40, [50, 70, 140]], 1)


def film(path, seconds=4., rate=25):
    writer = VideoWriter(path)
    for n in range(int(seconds*rate)):
        image = Image.new('RGB', SIZE, 'white')
        draw = ImageDraw.Draw(image)
        for box, color in zip(paths(n/rate), COLORS): draw.rectangle([*box[:2], *(box[2:] - 1)], fill=color)
        writer.add(image, n/rate)
    writer.close()
    return path


class ColorDetector:
    "Finds the colors of `COLORS` in images, with noise; stands in for a `Detector`"
    names, num_classes, bit_depth, conf, notes, model = ['shape'], 1, 16, .25, {}, None

    def __init__(self, delay=None, noise=1.): self.rng, self.delay, self.noise = np.random.default_rng(0), delay, noise

    def __call__(self, images, batch, conf=None, **_):
        if self.delay: self.delay()
        return [self.find(image, conf) for image in images]

    def find(self, image, conf):
        boxes, pixels = [], image.int()
        for color in COLORS:
            far = (pixels - torch.tensor(color)[:, None, None]).abs().amax(0)
            ys, xs = torch.where(far < 60)
            if len(xs) > 20: boxes.append([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
        boxes = torch.tensor(boxes).float().reshape(-1, 4)
        boxes += torch.tensor(self.rng.normal(0, self.noise, boxes.shape)).float()
        scores = torch.full((len(boxes),), .8)
        return Detections(boxes, scores, torch.zeros(len(boxes), dtype=torch.int64), self.names, image)


def read_mot(path):
    "Boxes xyxy, counted from 0, by number, by frame counted from 0"
    found = {}
    for line in path.read_text().splitlines():
        frame, number, x, y, w, h, *_ = map(float, line.split(','))
        found.setdefault(int(frame) - 1, {})[int(number)] = np.array([x - 1, y - 1, x - 1 + w, y - 1 + h])
    return found


def iou(a, b):
    size = (np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])).clip(0)
    both = size.prod()
    return both/((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - both)


def scores_of_tracks(truth, tracks):
    "MOTA, IDF1 and switches by motmetrics; boxes by number, by frame"
    import motmetrics
    accumulator = motmetrics.MOTAccumulator(auto_id=True)
    for frame, objects in truth.items():
        found = tracks.get(frame, {})
        far = np.array([[1 - iou(a, b) for b in found.values()] for a in objects.values()])
        far = far.reshape(len(objects), len(found))
        accumulator.update([*objects], [*found], np.where(far > .5, np.nan, far))
    names = ['mota', 'idf1', 'num_switches']
    return motmetrics.metrics.create().compute(accumulator, metrics=names).iloc[0].tolist()
