"""Compare whole training runs with those of other trainers on a CPU: images per second, and AP after equal minutes.

Each run is a process, from the first import to the last file. Images, canvas, images per step and random initial
weights are the same; the rest is what each does by default (recipe, augmentation, processes that load images).
Images per second come from runs of one and of three epochs, so without the start. All trainers take turns, round by
round, and the median counts. Then each trains as many epochs as fit into the same minutes, and its own evaluation
measures AP on the test split.

Without `data`, it is photos of drawn shapes. pixeltable-yolox is not here, since its trainer needs CUDA.

Example: python benchmarks/trainers.py path/to/bccd --minutes 5
"""
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from loader import write_photos
from loss import machine, markdown, parser_of, save_results

from cjm_yolox_pytorch.data.convert import yolox_convert
from cjm_yolox_pytorch.data.splits import read_split

# Each part gets the names of `run`, and leaves AP and AP50 in `found`
OURS = '''
from cjm_yolox_pytorch import evaluate, train
trained = train(data, size, img_size=side, batch=batch, epochs=epochs, eval_interval=epochs, device='cpu', out=out)
''', '''
m = evaluate(trained.weights, data, split='test', device='cpu')
found = m['AP'], m['AP50']
'''
LIBREYOLO = '''
from libreyolo import LibreYOLOX
model = LibreYOLOX(None, size=size, nb_classes=classes, device='cpu')
options = dict(pretrained=False, val=False, device='cpu', project=out)
model.train(data=f'{data}/data.yaml', imgsz=side, batch=batch, epochs=epochs, **options)
''', '''
m = model.val(data=f'{data}/data.yaml', split='test', imgsz=side, device='cpu')
found = m['metrics/mAP50-95'], m['metrics/mAP50']
'''
ULTRALYTICS = '''
from ultralytics import YOLO
model = YOLO(size)
options = dict(pretrained=False, val=False, plots=False, device='cpu', project=out)
model.train(data=f'{data}/data.yaml', imgsz=side, batch=batch, epochs=epochs, **options)
''', '''
m = model.val(data=f'{data}/data.yaml', split='test', imgsz=side, device='cpu', plots=False).box
found = float(m.map), float(m.map50)
'''
TRAINERS = {
    'ours, yolox_nano': (OURS, 'yolox_nano'),
    'LibreYOLO, yolox_nano': (LIBREYOLO, 'n'),
    'ours, yolox_tiny': (OURS, 'yolox_tiny'),
    'LibreYOLO, yolox_tiny': (LIBREYOLO, 't'),
    'ultralytics, yolo11n': (ULTRALYTICS, 'yolo11n.yaml')}
PROGRAM = '''
import json, sys, time
start = time.time()
globals().update(json.loads(sys.argv[1]))
{}
result = dict(seconds=time.time() - start)
if test:
    {}
    result['AP'], result['AP50'] = found
with open(f'{{out}}/result.json', 'w') as file: json.dump(result, file)
'''


def run(args, name, epochs, test=False):
    "Train in a process of its own, and return its seconds, with AP and AP50 if `test`."
    (train, measure), size = TRAINERS[name]
    program = PROGRAM.format(train, measure.strip().replace('\n', '\n    '))
    with tempfile.TemporaryDirectory() as out:
        given = dict(data=str(args.data), classes=args.classes, size=size, side=args.img_size, batch=args.batch,
            epochs=epochs, test=test, out=out)
        command = [sys.executable, '-W', 'ignore', '-c', program, json.dumps(given)]
        done = subprocess.run(command, cwd=out, capture_output=True, text=True)
        said = done.stderr.strip().splitlines() or [f'exit status {done.returncode}']
        if done.returncode: raise RuntimeError(said[-1])
        return json.loads((Path(out)/'result.json').read_text())


def time_epoch(args, name):
    "Measure the seconds of an epoch, and those of everything besides."
    short, long = (run(args, name, epochs)['seconds'] for epochs in (1, 3))
    epoch = (long - short)/2
    if epoch <= 0: raise RuntimeError('an epoch is too short to measure: take more images')
    return epoch, short - epoch


def time_epochs(args):
    "Measure `time_epoch` of all trainers in turn: a list of rounds, or the error, by name."
    found = {name: [] for name in args.only}
    for turn in range(args.rounds):
        for name in args.only:
            if isinstance(found[name], str): continue
            try: found[name].append(time_epoch(args, name))
            except RuntimeError as e: found[name] = str(e)
            print(f'round {turn + 1} of {args.rounds}: {name}', found[name], file=sys.stderr, flush=True)
    return found


def measure(args, name, times):
    "Return a row: speed from `time_epochs`, and AP after `args.minutes`."
    if isinstance(times, str): return dict(trainer=name, failed=times)
    epoch, start = (statistics.median(values) for values in zip(*times))
    row = dict(trainer=name, failed=None, images_per_s=args.images/epoch, start_s=start)
    if not args.minutes: return row
    epochs = max(1, round((60*args.minutes - start)/epoch))
    try: found = run(args, name, epochs, test=True)
    except RuntimeError as e: return dict(trainer=name, failed=str(e))
    return row | dict(epochs=epochs, minutes=found['seconds']/60, AP=found['AP'], AP50=found['AP50'])


def as_table(rows):
    "Trainers by images per second and other seconds, and by AP where that was measured."
    columns = dict(images_per_s='{:.1f}', start_s='{:.1f}', epochs='{}', minutes='{:.1f}', AP='{:.3f}', AP50='{:.3f}')
    columns = {k: how for k, how in columns.items() if k == 'images_per_s' or any(k in row for row in rows)}

    def cells(row):
        if row['failed']: return [f'failed: {row["failed"]}'] + ['']*(len(columns) - 1)
        return [how.format(row[name]) if name in row else '' for name, how in columns.items()]
    titles = dict(images_per_s='images per second', start_s='seconds besides epochs')
    names = ['trainer', *(titles.get(name, name) for name in columns)]
    return markdown(names, [[row['trainer'], *cells(row)] for row in rows], texts=[0])


def draw_photos(folder, count):
    "Write photos of drawn shapes as the three splits of a dataset."
    for split, images in dict(train=count, val=8, test=8).items():
        (folder/split).mkdir(parents=True)
        write_photos(folder/split, images)
        (folder/split/'all.json').rename(folder/split/'_annotations.coco.json')
    return folder


def prepare(args, folder):
    "Convert the dataset to the YOLO format, which all of them read."
    data = args.data or draw_photos(folder/'photos', args.photos)
    args.name = args.data.name if args.data else 'drawn photos'
    args.data = folder/'yolo'
    yolox_convert(str(data), to='yolo', out=str(args.data))
    train = read_split(args.data, 'train')
    args.classes, args.images = len(train.names), len(train)


def parse_arguments():
    parser, option = parser_of(__doc__)
    option('data', 'folder of a dataset with the splits train, val and test', type=Path, nargs='?')
    option('--photos', 'training images if there is no dataset (default: 64)', type=int, default=64)
    option('--rounds', 'times that an epoch of each trainer is measured (default: 3)', type=int, default=3)
    option('--minutes', 'also train for so many minutes, and measure AP (default: 0, do not)', type=float, default=0)
    option('--img-size', 'side of the canvas in pixels (default: 416)', type=int, default=416)
    option('--batch', 'images per step (default: 8)', type=int, default=8)
    option('--only', 'names of trainers (default: all)', choices=TRAINERS, nargs='+', default=list(TRAINERS))
    option('--out', 'folder for results (default: none)', type=Path)
    return parser.parse_args()


def main():
    args = parse_arguments()
    with tempfile.TemporaryDirectory() as folder:
        prepare(args, Path(folder))
        rows, times = [], time_epochs(args)
        for name in args.only:
            rows.append(measure(args, name, times[name]))
            print(rows[-1], file=sys.stderr, flush=True)
    about = dict(data=args.name, images=args.images, img_size=args.img_size, batch=args.batch, rounds=args.rounds)
    if args.minutes: about['minutes'] = args.minutes
    save_results('trainers', as_table(rows), rows, machine('cpu') | about, args.out)


if __name__ == '__main__': main()
