"""How often does a 90% interval hold what all images of the kind would give? Of thresholds, and of AP.

    python benchmarks/intervals.py

A detector is made up: it finds 85% of the objects, with scores around .7, and as many and a half again that are none,
with scores around .2. How sure it is also differs from image to image. For AP there are two classes, and boxes of
correct detections have an IoU around .8.
"""
import numpy as np

from cjm_yolox_pytorch.evaluation.intervals import RankedMatches, Ranking, ap_samples, interval
from cjm_yolox_pytorch.evaluation.metrics import IOU_THRESHOLDS
from cjm_yolox_pytorch.evaluation.thresholds import SCORES, ScoredMatches, find_thresholds

OBJECTS, REPEATS, RESAMPLES = 2, 150, 100 # Objects per image; splits; resamples of each


def draw(images, rng):
    "Image of each object; image, score and whether it is correct of each detection"
    objects, mood = rng.poisson(OBJECTS, images), rng.normal(0, .5, images)
    found, false = rng.binomial(objects, .85), rng.poisson(1.5*OBJECTS, images)
    image = np.concatenate([np.repeat(np.arange(images), n) for n in (found, false)])
    correct = np.arange(len(image)) < found.sum()
    score = np.where(correct, rng.beta(4, 2, len(image)), rng.beta(1.2, 4, len(image)))
    score = 1/(1 + (1/score - 1)*np.exp(-mood[image]))
    return np.repeat(np.arange(images), objects), image, score, correct


def made_up(images, rng):
    "Detections and objects of so many images"
    where, image, score, correct = draw(images, rng)
    label, level = np.zeros(len(image), dtype=int), np.searchsorted(SCORES, score)
    return ScoredMatches(['object'], images, image, label, level, correct, where, np.zeros(len(where), dtype=int))


def made_up_classes(images, rng):
    "The same of two classes, at ten IoU thresholds"
    parts = [draw(images, rng) for _ in range(2)]
    where, image, score, correct = map(np.concatenate, zip(*parts))
    object_label, label = (np.repeat([0, 1], [len(p[k]) for p in parts]) for k in (0, 1))
    hits = correct[:, None] & (rng.beta(8, 2, len(image))[:, None] >= IOU_THRESHOLDS)
    order = np.lexsort((-score, label))
    rankings = [Ranking(label[order], column, np.zeros_like(column)) for column in hits[order].T]
    return RankedMatches(['a', 'b'], images, image[order], rankings, where, object_label)


def measure(images, precision, truth, rng):
    "Share of intervals that hold the truth, their mean width, and mean of the scores"
    found = [find_thresholds(made_up(images, rng), precision, RESAMPLES)[0] for _ in range(REPEATS)]
    held, widths = zip(*((t.low <= truth.score <= t.high, t.high - t.low) for t in found))
    return np.mean(held), np.mean(widths), np.mean([t.score for t in found])


def measure_ap(images, truth, rng):
    "Share of intervals that hold the truth, and the mean AP of so many images; their mean width; mean AP"
    samples = [ap_samples(made_up_classes(images, rng), RESAMPLES)[:, 0] for _ in range(2*REPEATS)]
    aps, (low, high) = np.array([s[0] for s in samples]), np.array([interval(s) for s in samples]).T
    held = [((low <= ap) & (ap <= high)).mean() for ap in (truth, aps.mean())]
    return *held, (high - low).mean(), aps.mean()


def measure_thresholds(rng):
    everything = made_up(60_000, rng)
    print('images  intervals that hold the truth, width, mean score: best F1; precision .9')
    truths = [find_thresholds(everything, precision, 2)[0] for precision in (None, .9)]
    print('all    ', *(f'{t.score:20.3f}' for t in truths))
    for images in (10, 20, 40, 100, 300):
        rows = [measure(images, precision, t, rng) for precision, t in zip((None, .9), truths)]
        print(f'{images:6}  ', '   '.join(f'{a:.2f} {b:.2f} {c:.3f}' for a, b, c in rows), flush=True)


def main():
    rng = np.random.default_rng(0)
    measure_thresholds(rng)
    truth = made_up_classes(20_000, rng).average_precision().mean()
    print(f'images  intervals that hold AP of all ({truth:.3f}), mean AP of as many, width, mean AP')
    for images in (5, 12, 25, 50, 100, 300):
        print(f'{images:6}  ', '  '.join(f'{v:.3f}' for v in measure_ap(images, truth, rng)), flush=True)


if __name__ == '__main__': main()
