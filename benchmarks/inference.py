"""Measure images per second from file to boxes, one at a time and in batches, and compare with pixeltable-yolox.

pixeltable-yolox is measured with its own predictor and exported to ONNX Runtime. All take turns in one process.
`make bench` runs all benchmarks in a separate environment.
"""
import contextlib
import io
import statistics
import sys
import tempfile
from itertools import cycle, islice
from pathlib import Path

import torch
from PIL import Image

from loader import alternating, ratio, result_cells, timed, write_photos
from loss import first_line, machine, markdown, parser_of, save_results

from cjm_yolox_pytorch.files.checkpoints import Weights, load_weights
from cjm_yolox_pytorch.deploy.export import export_weights
from cjm_yolox_pytorch.deploy.formats import load_exported
from cjm_yolox_pytorch.detection.detections import Detections
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
    # Random weights of its own network: its speed does not depend on them
    torch.save(dict(model=config.get_model().state_dict()), folder/'theirs.pth')
    predictor = Yolox.from_pretrained(folder/'theirs.pth', config=config)
    return predictor, lambda files: predictor(files, threshold=SCORE)


def pixeltable_onnx(weights, folder):
    import onnxruntime
    predictor, _ = pixeltable(weights, folder)
    images = predictor.processor([Image.new('RGB', (64, 64))])
    options = dict(input_names=['images'], dynamo=False, dynamic_axes=dict(images={0: 'batch'}))
    torch.onnx.export(predictor.module.eval(), (images,), str(folder/'theirs.onnx'), **options)
    session = onnxruntime.InferenceSession(folder/'theirs.onnx', providers=['CPUExecutionProvider'])
    def predict(files):
        images = [Image.open(f).convert('RGB') for f in files]
        outputs = session.run(None, {'images': predictor.processor(images).numpy()})
        return predictor.processor.postprocess(images, torch.from_numpy(outputs[0]), threshold=SCORE)
    return predict


def ours(weights, folder, compiled=False):
    detector = Detector(weights, 'cpu')
    if compiled: detector.model = torch.compile(detector.model)
    return lambda files: detector(list(files), batch=len(files), conf=SCORE, iou=OVERLAP)


def exported(weights, folder, suffix):
    with contextlib.redirect_stderr(io.StringIO()): export_weights(weights, folder/f'ours{suffix}')
    run = load_exported(folder/f'ours{suffix}')
    canvas = weights.input_size, weights.input_size
    def predict(files):
        images = [as_image(f) for f in files]
        outputs = run(torch.stack([letterbox(image, canvas) for image in images]).float())
        return [detections(image, rows, weights.num_classes, canvas) for image, rows in zip(images, outputs)]
    return predict


def detections(image, rows, num_classes, canvas):
    "Filter what an exported network returns for one image, and move its boxes onto the image."
    rows = rows[rows[:, 5] > SCORE]
    scores = torch.zeros(len(rows), num_classes).scatter(1, rows[:, 4:5].long(), rows[:, 5:])
    boxes = torch.cat([rows[:, :2], rows[:, :2] + rows[:, 2:4]], 1)
    boxes, scores, labels = nms(boxes, scores, SCORE, OVERLAP)
    return Detections(unletterbox(boxes, image.shape[1:], canvas), scores, labels)


VARIANTS = {
    'pixeltable-yolox': lambda *a: pixeltable(*a)[1],
    'pixeltable-yolox, ONNX Runtime': pixeltable_onnx,
    'ours': ours,
    'ours, compiled': lambda *a: ours(*a, compiled=True),
    'ours, ONNX Runtime': lambda *a: exported(*a, '.onnx'),
    'ours, OpenVINO': lambda *a: exported(*a, '.xml')}


def compare(weights, files, args, folder):
    "Return a row for each batch size and variant: median images per second, or the error that was raised."
    groups = {n: grouped(files, n, args.rounds) for n in args.batches}
    predictors = {}
    failed = {}
    for variant in args.only:
        try:
            predict = VARIANTS[variant](weights, folder)
            for n in args.batches: predict(groups[n][0])
            predictors[variant] = predict
        except Exception as e: failed[variant] = first_line(e) # Another implementation may fail in any way
    rows = []
    for n in args.batches:
        speed = measure(predictors, groups[n])
        for variant in args.only:
            row = dict(model=weights.model_type, size=weights.input_size, batch=n, variant=variant)
            row.update(images_per_s=speed.get(variant), ratio=ratio(speed, variant), failed=failed.get(variant))
            rows.append(row)
            print(row, file=sys.stderr, flush=True)
    return rows


def grouped(files, n, rounds):
    "Return `rounds` batches of `n` files, starting over after the last file."
    again = cycle(files)
    return [list(islice(again, n)) for _ in range(rounds)]


def measure(predictors, groups):
    "Return the median images per second of each predictor."
    times = {variant: [] for variant in predictors}
    for i, group in enumerate(groups):
        for variant in alternating(predictors, i):
            predictors[variant](group) # The threads of the variant before may still be spinning
            times[variant].append(timed(lambda: predictors[variant](group)))
    return {variant: len(groups[0])/statistics.median(t) for variant, t in times.items()}


COLUMNS = ['model', 'photos at a time', '', 'photos/s', 'times pixeltable-yolox']

def as_table(rows):
    cells = [[f'{r["model"]}, {r["size"]}', str(r['batch']), r['variant'], *result_cells(r)] for r in rows]
    return markdown(COLUMNS, cells, texts=(0, 2))


def parse_arguments():
    parser, option = parser_of(__doc__)
    option('--photos', 'folder of JPEG files (default: 24 drawn images)', type=Path)
    option('--weights', 'weights for the model they belong to; other models get random ones', type=Path)
    option('--models', 'default: all', nargs='+', default=MODELS)
    option('--only', 'variants to measure (default: all)', nargs='+', default=list(VARIANTS), choices=list(VARIANTS))
    option('--batches', 'batch sizes (default: 1 and 8)', nargs='+', type=int, default=[1, 8])
    option('--rounds', 'timed calls of each; the median counts (default: 30)', type=int, default=30)
    option('--out', 'folder for inference.md and inference.json', type=Path)
    return parser.parse_args()


def random_weights(name):
    torch.manual_seed(0)
    return Weights(build_model(name, 80, pretrained=False).state_dict(), name, 80, **NORM_STATS[name])


def main():
    args = parse_arguments()
    given = load_weights(args.weights) if args.weights else None
    rows = []
    with tempfile.TemporaryDirectory() as drawn:
        if args.photos is None: write_photos(Path(drawn), 24)
        files = [str(f) for f in sorted((args.photos or Path(drawn)).rglob('*.jpg'))][:48]
        for name in args.models:
            weights = given if given and given.model_type == name else random_weights(name)
            with tempfile.TemporaryDirectory() as folder: rows += compare(weights, files, args, Path(folder))
    about = machine('cpu')
    about |= dict(photos=args.photos.name if args.photos else 'drawn, 640x480', rounds=args.rounds)
    save_results('inference', as_table(rows), rows, about, args.out)


if __name__ == '__main__': main()
