"""Photos per second from the file to the boxes, one at a time and in batches, beside pixeltable-yolox's predictor and its network in ONNX Runtime.

All use the same weights and take turns in one process. With an environment of its own: make bench
"""
import argparse
import contextlib
import io
import statistics
import sys
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path

import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent)) # For the benchmarks beside this one
from loader import write_photos
from loss import machine, tell

from cjm_yolox_pytorch.files.checkpoints import Weights, load_weights
from cjm_yolox_pytorch.deploy.export import export_weights, load_exported
from cjm_yolox_pytorch.detection.detector import Detector
from cjm_yolox_pytorch.files.images import as_image
from cjm_yolox_pytorch.files.letterbox import letterbox, unletterbox
from cjm_yolox_pytorch.inference import nms
from cjm_yolox_pytorch.model import NORM_STATS, build_model

MODELS = ['yolox_nano', 'yolox_s']
SCORE, OVERLAP = .25, .65


def pixeltable(weights, folder):
    from yolox.config import YoloxConfig
    from yolox.models import Yolox
    config = YoloxConfig.get_named_config(weights.model_type.replace('_', '-'))
    config.num_classes = weights.num_classes
    torch.save(dict(model=config.get_model().state_dict()), folder/'theirs.pth') # Its own network, whose speed does not depend on weights
    predictor = Yolox.from_pretrained(folder/'theirs.pth', config=config)
    return predictor, lambda files: predictor(files, threshold=SCORE)


def pixeltable_onnx(weights, folder):
    import onnxruntime
    predictor, _ = pixeltable(weights, folder)
    images = predictor.processor([Image.new('RGB', (64, 64))])
    torch.onnx.export(predictor.module.eval(), (images,), str(folder/'theirs.onnx'), input_names=['images'], dynamo=False, dynamic_axes=dict(images={0: 'batch'}))
    session = onnxruntime.InferenceSession(folder/'theirs.onnx', providers=['CPUExecutionProvider'])
    def predict(files):
        pictures = [Image.open(f).convert('RGB') for f in files]
        return predictor.processor.postprocess(pictures, torch.from_numpy(session.run(None, {'images': predictor.processor(pictures).numpy()})[0]), threshold=SCORE)
    return predict


def ours(weights, folder, compiled=False):
    detector = Detector(weights, 'cpu')
    if compiled: detector.model = torch.compile(detector.model)
    return lambda files: detector(list(files), batch=len(files), conf=SCORE, iou=OVERLAP)


def exported(weights, folder, suffix):
    with contextlib.redirect_stderr(io.StringIO()): export_weights(weights, folder/f'ours{suffix}')
    run, size = load_exported(folder/f'ours{suffix}'), weights.input_size
    def predict(files):
        images = [as_image(f) for f in files]
        found = []
        for image, rows in zip(images, run(torch.stack([letterbox(image, (size, size)) for image in images]).float())):
            rows = rows[rows[:, 5] > SCORE]
            scores = torch.zeros(len(rows), weights.num_classes).scatter(1, rows[:, 4:5].long(), rows[:, 5:])
            boxes = torch.cat([rows[:, :2], rows[:, :2] + rows[:, 2:4]], 1)
            boxes, scores, labels = nms(boxes, scores, SCORE, OVERLAP)
            found.append((unletterbox(boxes, image.shape[1:], (size, size)), scores, labels))
        return found
    return predict


VARIANTS = {'pixeltable-yolox': lambda *a: pixeltable(*a)[1], 'pixeltable-yolox, ONNX Runtime': pixeltable_onnx,
            'ours': ours, 'ours, compiled': lambda *a: ours(*a, compiled=True), 'ours, ONNX Runtime': lambda *a: exported(*a, '.onnx'), 'ours, OpenVINO': lambda *a: exported(*a, '.xml')}


def compare(weights, files, args, folder):
    "Median photos/s of each variant, or the error that it ended with"
    predictors, failed = {}, {}
    groups = {n: [list(islice(c, n)) for c in [cycle(files)] for _ in range(args.rounds)] for n in args.batches}
    for variant in args.only:
        try:
            predictors[variant] = VARIANTS[variant](weights, folder)
            for n in args.batches: predictors[variant](groups[n][0])
        except Exception as e: predictors.pop(variant, None); failed[variant] = f'{type(e).__name__}: {e}'.splitlines()[0][:200] # The run goes on
    rows = []
    for n in args.batches:
        times = {variant: [] for variant in predictors}
        for i, group in enumerate(groups[n]):
            for variant in list(predictors)[::(-1)**i]:
                start = time.perf_counter()
                predictors[variant](group)
                times[variant].append(time.perf_counter() - start)
        speed = {variant: n/statistics.median(t) for variant, t in times.items()}
        for variant in args.only:
            ratio = speed[variant]/speed['pixeltable-yolox'] if variant in speed and 'pixeltable-yolox' in speed else None
            rows.append(dict(model=weights.model_type, size=weights.input_size, batch=n, variant=variant, images_per_s=speed.get(variant), ratio=ratio, failed=failed.get(variant)))
            print(rows[-1], file=sys.stderr, flush=True)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--photos', type=Path, help='folder of JPEG files (default: 24 drawn pictures)')
    parser.add_argument('--weights', type=Path, help='for the model whose weights they are (default: random)')
    parser.add_argument('--models', nargs='+', default=MODELS, help='default: all')
    parser.add_argument('--only', nargs='+', default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument('--batches', nargs='+', type=int, default=[1, 8], help='photos at a time (default: 1 and 8)')
    parser.add_argument('--rounds', type=int, default=30, help='timed calls of each, of which the median counts (default: 30)')
    parser.add_argument('--out', type=Path, help='folder for inference.md and inference.json')
    args = parser.parse_args()

    rows = []
    with tempfile.TemporaryDirectory() as drawn:
        if args.photos is None: write_photos(Path(drawn), 24)
        files = [str(f) for f in sorted((args.photos or Path(drawn)).rglob('*.jpg'))][:48]
        given = load_weights(args.weights) if args.weights else None
        for name in args.models:
            torch.manual_seed(0)
            weights = given if given and given.model_type == name else Weights(build_model(name, 80, pretrained=False).state_dict(), name, 80, **NORM_STATS[name])
            with tempfile.TemporaryDirectory() as folder: rows += compare(weights, files, args, Path(folder))
    table = ['| model | photos at a time | | photos/s | times pixeltable-yolox |', '|---|--:|---|--:|--:|']
    for r in rows:
        cells = [f'failed: {r["failed"]}', ''] if r['failed'] else [f'{r["images_per_s"]:.1f}', '' if r['ratio'] is None else f'{r["ratio"]:.2f}']
        table.append(f'| {r["model"]}, {r["size"]} | {r["batch"]} | {" | ".join([r["variant"], *cells])} |')
    about = machine('cpu') | dict(photos=args.photos.name if args.photos else 'drawn, 640x480', rounds=args.rounds)
    tell('inference', '\n'.join(table), rows, about, args.out)


if __name__ == '__main__': main()
