"""Measure each format of exported files: AP, largest difference of boxes from PyTorch, megabytes and ms per image.

    python benchmarks/formats.py WEIGHTS DATA [--split val] [--only onnx litert] [--limit 50] [--out FOLDER]

A format whose package is missing is reported as such. Core ML does not run here, so it has no AP and no time; its
difference is that of its program, computed with PyTorch. Formats take turns in the timing, one image at a time.
"""
import argparse
import contextlib
import io
import statistics
import tempfile
import time
from pathlib import Path

import torch
from loss import first_line, installed, machine, markdown, save_results

from cjm_yolox_pytorch.data.annotations import read_annotated, relabel
from cjm_yolox_pytorch.data.splits import find_splits
from cjm_yolox_pytorch.deploy.catalog import FILE_FORMATS
from cjm_yolox_pytorch.deploy.export import export_weights
from cjm_yolox_pytorch.deploy.formats import load_exported
from cjm_yolox_pytorch.deploy.graph import exportable
from cjm_yolox_pytorch.detection.detector import load_network, prepare_network
from cjm_yolox_pytorch.evaluation.evaluate import detect
from cjm_yolox_pytorch.evaluation.metrics import average_precision
from cjm_yolox_pytorch.files.checkpoints import load_weights
from cjm_yolox_pytorch.files.letterbox import letterbox
from cjm_yolox_pytorch.utils import generate_output_grids

PACKAGES = 'onnxruntime', 'openvino', 'ncnn', 'pnnx', 'litert-torch', 'ai-edge-litert', 'executorch', 'coremltools'
SCORE, PHOTOS, ROUNDS = .05, 8, 25 # Boxes of lower scores do not count in the difference


def megabytes(path):
    if path.is_dir(): return sum(p.stat().st_size for p in path.rglob('*') if p.is_file())/1e6
    files = [path, *(path.with_suffix(s) for s in ('.bin', '.json') if path.suffix in ('.xml', '.param'))]
    return sum(file.stat().st_size for file in files if file.exists())/1e6


def score(source, annotations):
    model, spec = prepare_network(source, 'cpu')
    return average_precision(annotations, detect(model, annotations, spec, batch_size=1))['AP']


@torch.no_grad()
def difference(run, module, canvases):
    "Largest difference in pixels of boxes with a score above SCORE, and of scores"
    worst, of_scores = 0., 0.
    for x in canvases:
        rows, want = run(x), module(x)
        sure = want[..., 5] > SCORE
        if sure.any(): worst = max(worst, (rows - want)[sure][:, :4].abs().max().item())
        of_scores = max(of_scores, (rows - want)[..., 5].abs().max().item())
    return worst, of_scores


def decoded(run, wrapper): # Files of raw boxes, as others
    def decode(x):
        grids = generate_output_grids(*x.shape[2:], wrapper.strides.tolist(), x.device)
        return wrapper.calculate_boxes_and_probs(run(x), grids)
    return decode


def write(weights, format, folder):
    file = folder/f'network{FILE_FORMATS[format].suffix}'
    start = time.perf_counter()
    with contextlib.redirect_stderr(io.StringIO()): export_weights(weights, file, static=True)
    return file, time.perf_counter() - start


def measure(weights, format, folder, annotations, canvases):
    file, seconds = write(weights, format, folder)
    module, run = exportable(weights), load_exported(file)
    rows = decoded(run, module) if FILE_FORMATS[format].raw_only else run
    pixels, scores = difference(rows, module, canvases)
    row = dict(format=format, pixels=pixels, scores=scores, MB=megabytes(file), written_in_s=seconds)
    if not FILE_FORMATS[format].run_here: return row | dict(AP=None, remark='not run in Core ML'), None
    return row | dict(AP=score(load_network(file), annotations)), run


@torch.no_grad()
def take_turns(runs, canvases): # Median ms by name
    times = {name: [] for name in runs}
    for i in range(ROUNDS + 3):
        for name, run in runs.items():
            start = time.perf_counter()
            run(canvases[i % len(canvases)])
            if i >= 3: times[name].append(time.perf_counter() - start) # After three rounds to warm up
    return {name: 1000*statistics.median(t) for name, t in times.items()}


def read_images(args, weights):
    splits = find_splits(args.data)
    annotations = relabel(splits[args.split or next(iter(splits))](), weights.names)
    return annotations.take(range(args.limit)) if args.limit else annotations


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('weights')
    parser.add_argument('data')
    parser.add_argument('--split')
    parser.add_argument('--only', nargs='+', default=list(FILE_FORMATS), choices=list(FILE_FORMATS))
    parser.add_argument('--limit', type=int, help='number of images')
    parser.add_argument('--out', type=Path, help='folder for formats.md and formats.json')
    args = parser.parse_args()
    weights = load_weights(args.weights)
    annotations, module, hw = read_images(args, weights), exportable(weights), (weights.input_size, weights.input_size)
    chosen = range(min(PHOTOS, len(annotations)))
    canvases = [letterbox(read_annotated(annotations, i), hw)[None].float() for i in chosen]
    rows, runs = [dict(format='weights', AP=score(weights, annotations))], {'weights': module}
    with tempfile.TemporaryDirectory() as folder:
        for format in args.only:
            try: row, run = measure(weights, format, Path(folder), annotations, canvases)
            except (ImportError, RuntimeError) as e: row, run = dict(format=format, remark=first_line(e)), None
            rows.append(row)
            if run: runs[format] = run
            print(f'{format}: done', flush=True)
        times = take_turns(runs, canvases)
    for row in rows: row['ms'] = times.get(row['format'])
    versions = {name: installed(name) for name in PACKAGES if installed(name)}
    about = machine('cpu') | versions | dict(data=Path(args.data).name, images=len(annotations))
    save_results('formats', as_table(rows), rows, about, args.out)


# Columns of the table, by key in `rows`
COLUMNS = dict(format='format', AP='AP', pixels='box difference, px', MB='MB', ms='ms', remark='remark')

def as_table(rows):
    cells = [[cell(row.get(key)) for key in COLUMNS] for row in rows]
    return markdown(COLUMNS.values(), cells, texts=[0, 5])


def cell(value): return '' if value is None else value if isinstance(value, str) else f'{value:.3g}'


if __name__ == '__main__': main()
