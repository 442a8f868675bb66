"""How often does the 90% interval of a threshold hold the score that all images of the kind would choose?

    python benchmarks/intervals.py

A detector is made up: it finds 85% of the objects, with scores around .7, and as many and a half again that are none,
with scores around .2. How sure it is also differs from image to image.
"""
import numpy as np

from cjm_yolox_pytorch.evaluation.thresholds import SCORES, ScoredMatches, find_thresholds

OBJECTS, REPEATS, RESAMPLES = 2, 150, 100 # Objects per image; splits; resamples of each


def made_up(images, rng):
    "Detections and objects of so many images"
    objects, mood = rng.poisson(OBJECTS, images), rng.normal(0, .5, images)
    found, false = rng.binomial(objects, .85), rng.poisson(1.5*OBJECTS, images)
    image = np.concatenate([np.repeat(np.arange(images), n) for n in (found, false)])
    correct = np.arange(len(image)) < found.sum()
    score = np.where(correct, rng.beta(4, 2, len(image)), rng.beta(1.2, 4, len(image)))
    score = 1/(1 + (1/score - 1)*np.exp(-mood[image]))
    where, label = np.repeat(np.arange(images), objects), np.zeros(len(image), dtype=int)
    level = np.searchsorted(SCORES, score)
    return ScoredMatches(['object'], images, image, label, level, correct, where, np.zeros(len(where), dtype=int))


def measure(images, precision, truth, rng):
    "Share of intervals that hold the truth, their mean width, and mean of the scores"
    found = [find_thresholds(made_up(images, rng), precision, RESAMPLES)[0] for _ in range(REPEATS)]
    held, widths = zip(*((t.low <= truth.score <= t.high, t.high - t.low) for t in found))
    return np.mean(held), np.mean(widths), np.mean([t.score for t in found])


def main():
    rng = np.random.default_rng(0)
    everything = made_up(60_000, rng)
    print('images  intervals that hold the truth, width, mean score: best F1; precision .9')
    truths = [find_thresholds(everything, precision, 2)[0] for precision in (None, .9)]
    print('all    ', *(f'{t.score:20.3f}' for t in truths))
    for images in (10, 20, 40, 100, 300):
        rows = [measure(images, precision, t, rng) for precision, t in zip((None, .9), truths)]
        print(f'{images:6}  ', '   '.join(f'{a:.2f} {b:.2f} {c:.3f}' for a, b, c in rows), flush=True)


if __name__ == '__main__': main()
