"""Which box loss? Short trainings of each, with several seeds, measured on the validation split.

Example: python benchmarks/box_loss.py path/to/data --weights yolox_nano.pth --out runs/bench
"""
import argparse
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent)) # For the benchmark beside this one
from loss import machine, tell

from cjm_yolox_pytorch.files.checkpoints import load_weights
from cjm_yolox_pytorch.data.splits import read_split
from cjm_yolox_pytorch.training.recipe import fine_tune_recipe
from cjm_yolox_pytorch.training.trainer import Trainer

LOSSES = ['squared_iou', 'squared_giou', 'giou', 'ciou']
METRICS = ['AP', 'AP50', 'AP75']


def train(args, box_loss, seed):
    recipe = fine_tune_recipe(args.model, img_size=args.img_size, epochs=args.epochs, box_loss=box_loss, seed=seed)
    weights = load_weights(args.weights) if args.weights else None
    trainer = Trainer(recipe, read_split(args.data, 'train'), read_split(args.data, 'val'), weights, args.device)
    for _ in range(args.epochs): trainer.train_epoch()
    metrics, _ = trainer.validate()
    return {k: metrics[k] for k in METRICS}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('data', type=Path, help='folder of a dataset with the splits train and val')
    parser.add_argument('--weights', type=Path, help='to start from (default: random)')
    parser.add_argument('--model', default='yolox_nano', help='default: yolox_nano')
    parser.add_argument('--img-size', type=int, default=320, help='side of the canvas in pixels (default: 320)')
    parser.add_argument('--epochs', type=int, default=12, help='default: 12')
    parser.add_argument('--seeds', type=int, default=3, help='default: 3')
    parser.add_argument('--device', default='cpu', help='default: cpu')
    parser.add_argument('--only', nargs='+', default=LOSSES, choices=LOSSES)
    parser.add_argument('--out', type=Path, help='folder for box-loss.md and box-loss.json')
    args = parser.parse_args()

    rows = []
    for seed in range(args.seeds): # A run that is cut short has compared all losses
        for box_loss in args.only:
            metrics = train(args, box_loss, seed)
            rows.append(dict(box_loss=box_loss, seed=seed, **metrics))
            print(rows[-1], file=sys.stderr, flush=True)
    table = [f'| box loss | {" | ".join(METRICS)} |', '|---|' + '--:|'*len(METRICS)]
    for box_loss in args.only:
        cells = []
        for k in METRICS:
            values = [row[k] for row in rows if row['box_loss'] == box_loss]
            cells.append(f'{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})')
        table.append(f'| {box_loss} | {" | ".join(cells)} |')
    about = machine(args.device) | dict(data=args.data.name, weights=args.weights and args.weights.name,
        model=args.model, size=args.img_size, epochs=args.epochs, seeds=args.seeds)
    tell('box-loss', '\n'.join(table), rows, about, args.out)


if __name__ == '__main__': main()
