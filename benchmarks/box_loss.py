"""Compare box losses: short trainings with each of them and several seeds, evaluated on the validation split.

Example: python benchmarks/box_loss.py path/to/data --weights yolox_nano.pth --out runs/bench
"""
import statistics
import sys
from pathlib import Path

from loss import machine, markdown, parser_of, save_results

from cjm_yolox_pytorch.data.splits import read_split
from cjm_yolox_pytorch.files.checkpoints import load_weights
from cjm_yolox_pytorch.training.recipe import fine_tune_recipe
from cjm_yolox_pytorch.training.trainer import Trainer

LOSSES = ['squared_iou', 'squared_giou', 'giou', 'ciou']
METRICS = ['AP', 'AP50', 'AP75']


def train(args, box_loss, seed):
    "Train once, and return the metrics of the validation split."
    recipe = fine_tune_recipe(args.model, img_size=args.img_size, epochs=args.epochs, box_loss=box_loss, seed=seed)
    weights = load_weights(args.weights) if args.weights else None
    splits = [read_split(args.data, name) for name in ('train', 'val')]
    trainer = Trainer(recipe, *splits, weights, args.device)
    for _ in range(args.epochs): trainer.train_epoch()
    metrics, _ = trainer.validate()
    return {k: metrics[k] for k in METRICS}


def as_table(rows, losses):
    "Median and range of each metric over the seeds."
    def cell(values): return f'{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})'
    found = {name: [row for row in rows if row['box_loss'] == name] for name in losses}
    cells = [[name, *(cell([r[k] for r in own]) for k in METRICS)] for name, own in found.items()]
    return markdown(['box loss', *METRICS], cells, texts=[0])


def add_training_options(option, splits, img_size, epochs):
    option('data', f'folder of a dataset with the splits {splits}', type=Path)
    option('--weights', 'weights to start from (default: random)', type=Path)
    option('--model', 'default: yolox_nano', default='yolox_nano')
    option('--img-size', f'canvas side in pixels (default: {img_size})', type=int, default=img_size)
    option('--epochs', f'default: {epochs}', type=int, default=epochs)
    option('--seeds', 'number of seeds (default: 3)', type=int, default=3)
    option('--device', 'default: cpu', default='cpu')


def about_trainings(args):
    "Describe the machine and the settings of `add_training_options`."
    about = machine(args.device) | dict(data=args.data.name, weights=args.weights and args.weights.name)
    return about | dict(model=args.model, size=args.img_size, epochs=args.epochs, seeds=args.seeds)


def parse_arguments():
    parser, option = parser_of(__doc__)
    add_training_options(option, 'train and val', img_size=320, epochs=12)
    option('--only', 'losses to compare (default: all)', nargs='+', default=LOSSES, choices=LOSSES)
    option('--out', 'folder for box-loss.md and box-loss.json', type=Path)
    return parser.parse_args()


def main():
    args = parse_arguments()
    rows = []
    for seed in range(args.seeds): # The outer loop: a benchmark that is interrupted has still compared all losses
        for box_loss in args.only:
            rows.append(dict(box_loss=box_loss, seed=seed, **train(args, box_loss, seed)))
            print(rows[-1], file=sys.stderr, flush=True)
    save_results('box-loss', as_table(rows, args.only), rows, about_trainings(args), args.out)


if __name__ == '__main__': main()
