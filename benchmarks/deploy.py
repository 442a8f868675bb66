"""Measure exported files in fp32 and int8: images per second from file to boxes, one at a time, ms, MB and AP.

Each file is measured in turn, round by round, so that all meet the same machine. AP needs trained weights and labeled
images: --weights for the model they belong to, --data for images. Without --data, calibration and AP are left out, and
int8 files are calibrated on drawn images; without weights, a model has random ones, whose speed is the same.
"""
import sys
import tempfile
from pathlib import Path

import numpy as np

from inference import measure, random_weights
from loader import write_photos
from loss import installed, machine, markdown, parser_of, save_results

from cjm_yolox_pytorch.data.annotations import build_annotations, relabel
from cjm_yolox_pytorch.data.splits import choose_splits, find_splits
from cjm_yolox_pytorch.deploy import ladder
from cjm_yolox_pytorch.deploy.export import export_weights
from cjm_yolox_pytorch.deploy.ladder import Step, measure_file, quantize_weights
from cjm_yolox_pytorch.detection.detector import Detector, load_detector, prepare_network
from cjm_yolox_pytorch.evaluation.evaluate import detect
from cjm_yolox_pytorch.evaluation.metrics import average_precision
from cjm_yolox_pytorch.files.checkpoints import load_weights

MODELS = ['yolox_nano', 'yolox_tiny', 'yolox_s']
PROGRAMS = {'ONNX Runtime': '.onnx', 'OpenVINO': '.xml'}


def choose(data, weights):
    "Return images to calibrate on and to measure; of a single split, a third and the rest."
    splits = find_splits(data)
    train, val = choose_splits(data, splits)
    a = relabel(splits[train](), weights.names)
    if val: return a, relabel(splits[val](), weights.names)
    order = np.arange(len(a))
    return a.take(order[::3]), a.take(order[order % 3 > 0])


def drawn(folder):
    "Return images without labels, for the speed of random weights."
    write_photos(folder, 24)
    paths = sorted(map(str, folder.rglob('*.jpg')))
    return build_annotations(folder, ['thing'], paths, np.zeros((len(paths), 2), int), np.zeros((0, 6)))


def pytorch(weights, a):
    model, spec = prepare_network(weights, 'cpu')
    AP = average_precision(a, detect(model, a, spec))['AP'] if len(a.labels) else None
    return Detector(weights, 'cpu'), AP, None


def exported(weights, a, folder, suffix, int8, images):
    "Return a detector, AP and MB of a file; with random weights nothing can be lost, so AP is not measured."
    file = folder/f'{"int8" if int8 else "fp32"}{suffix}'/f'model{suffix}'
    if not int8: export_weights(weights, file)
    elif len(a.labels): quantize_weights(weights, file, images)
    else: quantize_unmeasured(weights, file, images)
    AP = measure_file(file, a, '').AP if len(a.labels) else None
    return load_detector(file), AP, sum(p.stat().st_size for p in file.parent.iterdir())/1e6


def quantize_unmeasured(weights, file, images):
    "Write the first file of the ladder."
    measured = ladder.measure_file
    ladder.measure_file = lambda file, a, kept, progress: Step(kept, 1., 0., 0.)
    try: quantize_weights(weights, file, images)
    finally: ladder.measure_file = measured


def compare(weights, images, args, folder):
    "Return a row for each program and precision."
    a, detectors, about = images[1], {}, {}
    detectors['PyTorch', 'fp32'], *about['PyTorch', 'fp32'] = pytorch(weights, a)
    for program, suffix in PROGRAMS.items():
        for precision in ('fp32', 'int8'):
            print(weights.model_type, program, precision, file=sys.stderr, flush=True)
            found = exported(weights, a, folder, suffix, precision == 'int8', images)
            detectors[program, precision], *about[program, precision] = found
    files = [[str(a.paths[i % len(a)])] for i in range(args.rounds + 1)]
    predictors = {k: (lambda group, d=d: d(group, batch=1)) for k, d in detectors.items()}
    for predict in predictors.values(): predict(files[0])
    speed = measure(predictors, files[1:])
    return [row(weights, key, speed, *about[key]) for key in speed]


def row(weights, key, speed, AP, megabytes):
    program, precision = key
    ratio = speed[key]/speed[program, 'fp32']
    found = dict(model=weights.model_type, size=weights.input_size, program=program, precision=precision)
    return found | dict(images_per_s=speed[key], ratio=ratio, ms=1000/speed[key], megabytes=megabytes, AP=AP)


COLUMNS = ['model', 'program', '', 'images/s', 'times fp32', 'ms', 'MB', 'AP']

def as_table(rows):
    def text(value, digits): return '' if value is None else f'{value:.{digits}f}'
    cells = [[f'{r["model"]}, {r["size"]}', r['program'], r['precision'], text(r['images_per_s'], 1),
              text(r['ratio'], 2), text(r['ms'], 1), text(r['megabytes'], 2), text(r['AP'], 3)] for r in rows]
    return markdown(COLUMNS, cells, texts=(0, 1, 2))


def parse_arguments():
    parser, option = parser_of(__doc__)
    option('--data', 'dataset to calibrate on and to measure AP (default: drawn images, without AP)', type=Path)
    option('--weights', 'weights for the model they belong to; other models get random ones', type=Path)
    option('--models', 'default: nano, tiny and s', nargs='+', default=MODELS)
    option('--rounds', 'timed images of each; the median counts (default: 40)', type=int, default=40)
    option('--out', 'folder for deploy.md and deploy.json', type=Path)
    return parser.parse_args()


def main():
    args, rows = parse_arguments(), []
    given = load_weights(args.weights) if args.weights else None
    with tempfile.TemporaryDirectory() as place:
        for name in args.models:
            folder = Path(place)/name
            (folder/'drawn').mkdir(parents=True)
            trained = given is not None and given.model_type == name
            weights = given if trained else random_weights(name)
            images = choose(args.data, given) if trained and args.data else [drawn(folder/'drawn')]*2
            rows += compare(weights, images, args, folder)
    about = machine('cpu') | dict(data=args.data.name if args.data else 'drawn, 640x480', rounds=args.rounds)
    about |= {p: installed(p) for p in ('onnxruntime', 'openvino', 'nncf') if installed(p)}
    about |= dict(int8=instructions())
    save_results('deploy', as_table(rows), rows, about, args.out)


def instructions():
    "Name the processor's instructions for int8; empty where they cannot be read."
    info = Path('/proc/cpuinfo')
    flags = info.read_text().split() if info.exists() else []
    return ' '.join(f for f in ('avx_vnni', 'avx512_vnni', 'amx_int8') if f in flags)


if __name__ == '__main__': main()
