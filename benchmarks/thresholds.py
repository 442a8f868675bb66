"""Does a score chosen on some images hold on others? Half of a split chooses, the other half measures F1.

    python benchmarks/thresholds.py WEIGHTS DATA SPLIT
"""
import sys

import numpy as np

from cjm_yolox_pytorch.data.annotations import relabel
from cjm_yolox_pytorch.data.splits import find_splits
from cjm_yolox_pytorch.evaluation.evaluate import detect
from cjm_yolox_pytorch.evaluation.metrics import confusion_matrix, match_detections
from cjm_yolox_pytorch.evaluation.thresholds import class_scores, find_thresholds, match_by_score
from cjm_yolox_pytorch.files.checkpoints import load_weights
from cjm_yolox_pytorch.files.letterbox import InputSpec
from cjm_yolox_pytorch.model import build_model

HALVINGS = 20


def f1(truth, found, scores):
    "F1 of all objects together, and the mean of classes"
    results = [match_detections(*truth.objects(i), d, scores) for i, d in enumerate(found)]
    matrix = confusion_matrix(truth, found, results)
    right, objects, kept = matrix.diagonal()[:-1], matrix[:-1].sum(axis=1), matrix[:, :-1].sum(axis=0)
    there = objects > 0
    return 2*right.sum()/(objects.sum() + kept.sum()), (2*right[there]/(objects + kept)[there]).mean()


def choices(truth, found):
    "Scores by class: .25, one for all, one for each, and one for each class that is clear"
    whole, *classes = thresholds = find_thresholds(match_by_score(truth, found))
    each = [t.score if t.score < 1 else whole.score for t in classes]
    common = [whole.score]*len(classes)
    return {'.25': [.25]*len(classes), 'one for all': common, 'one for each': each, 'clear': class_scores(thresholds)}


def main(weights, data, split):
    weights = load_weights(weights)
    model = build_model(weights.model_type, weights.num_classes, pretrained=weights).eval()
    truth = relabel(find_splits(data)[split](), weights.names)
    found = detect(model, truth, InputSpec(weights.input_size, weights.mean, weights.std))
    rows = {}
    for seed in range(HALVINGS):
        order = np.random.default_rng(seed).permutation(len(truth))
        first, second = ((truth.take(part), [found[i] for i in part]) for part in np.array_split(order, 2))
        for name, scores in choices(*first).items(): rows.setdefault(name, []).append(f1(*second, scores))
    print(f'{data} {split}: {len(truth)} images, {HALVINGS} halvings; F1 of all objects, mean of classes')
    for name, values in rows.items(): print(f'{name:13} {np.mean(values, axis=0).round(3)}')


if __name__ == '__main__': main(*sys.argv[1:])
