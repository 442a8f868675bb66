"""Compare changes to the recipe: short trainings with each of them and several seeds, and AP after the last epoch.

A change is one or more options with their values, as in a recipe file, or a kind of images.
Without `data`, it is 300 drawn images of 96 pixels, of which twelve have the class cross.

Examples:
  python benchmarks/recipes.py path/to/data --weights yolox_nano.pth --changes augment=aerial 'lr=.001 epochs=20'
  python benchmarks/recipes.py --weights yolox_nano.pth --img-size 96 --epochs 20 --changes balance=.3 --of-class cross
"""
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
from loss import machine, markdown, parser_of, save_results

from cjm_yolox_pytorch.data.shapes import write_shapes
from cjm_yolox_pytorch.data.splits import read_split
from cjm_yolox_pytorch.files.checkpoints import load_weights
from cjm_yolox_pytorch.loss import BOX_LOSSES
from cjm_yolox_pytorch.training.arguments import choose_recipe
from cjm_yolox_pytorch.training.recipe import Recipe
from cjm_yolox_pytorch.training.recipe_file import read_recipe
from cjm_yolox_pytorch.training.trainer import Trainer

METRICS = ['AP', 'AP50', 'AP75']
OTHER_LOSSES = [f'box_loss={name}' for name in BOX_LOSSES if name != Recipe.box_loss]


def read_values(lines):
    "Values of a recipe file with these lines."
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder)/'change.yaml'
        file.write_text('\n'.join(lines))
        return read_recipe(file) if lines else {}


def recipe_with(args, change, seed=0):
    "The recipe with a change such as `lr=.001 augment=aerial`."
    words = [word.partition('=') for word in change.split()]
    if not all(equals for _, equals, _ in words): raise SystemExit(f'{change}: write NAME=VALUE')
    augment = dict((name, value) for name, _, value in words).get('augment')
    usual = dict(model=args.model, img_size=args.img_size, epochs=args.epochs, seed=seed)
    try:
        changed = read_values([f'{name}: {value}' for name, _, value in words if name != 'augment'])
        return choose_recipe(None, augment, 0, usual | changed)
    except ValueError as e: raise SystemExit(f'{change}: {e}') from e


def train(args, change, seed):
    "Train once, and return the number of steps and the metrics of the measured split."
    recipe = recipe_with(args, change, seed)
    weights = load_weights(args.weights) if args.weights else None
    trainer = Trainer(recipe, *args.splits, weights, args.device)
    for _ in range(recipe.epochs): trainer.train_epoch()
    metrics, _ = trainer.validate()
    found = dict(steps=len(trainer.batches)*recipe.epochs) | {k: metrics[k] for k in METRICS}
    if not args.of_class: return found
    of_class = {name: values['AP'] for name, values in metrics['classes'].items()}
    return found | {args.of_class: of_class.pop(args.of_class), 'others': statistics.mean(of_class.values())}


def as_table(rows, changes, metrics):
    "Median and range of each metric over the seeds."
    def cell(values): return f'{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})'
    found = {change: [row for row in rows if row['change'] == change] for change in changes}
    usual = found[''][0]['steps']
    cells = [[change or 'none', f'{own[0]["steps"]/usual:.2f}', *(cell([r[k] for r in own]) for k in metrics)]
        for change, own in found.items()]
    return markdown(['change', 'steps', *metrics], cells, texts=[0])


def add_training_options(option, splits, img_size, epochs, **data):
    option('data', f'folder of a dataset with the splits {splits}', type=Path, **data)
    option('--weights', 'weights to start from (default: random)', type=Path)
    option('--model', 'default: yolox_nano', default='yolox_nano')
    option('--img-size', f'canvas side in pixels (default: {img_size})', type=int, default=img_size)
    option('--epochs', f'default: {epochs}', type=int, default=epochs)
    option('--seeds', 'number of seeds (default: 3)', type=int, default=3)
    option('--device', 'default: cpu', default='cpu')


def about_trainings(args):
    "Describe the machine and the settings of `add_training_options`."
    data = args.data.name if args.data else 'drawn shapes, crosses rare'
    about = machine(args.device) | dict(data=data, weights=args.weights and args.weights.name)
    return about | dict(model=args.model, size=args.img_size, epochs=args.epochs, seeds=args.seeds)


def draw_rare(folder):
    "Draw 300 training images, twelve of which have crosses, and 400 others with as many crosses as other shapes."
    write_shapes(folder, train=700, val=0, test=400, size=96)
    drawn = read_split(folder, 'train')
    crossed = np.unique(drawn.image[drawn.labels == drawn.names.index('cross')])
    kept = np.random.default_rng(0).permutation(crossed)[:12]
    others = np.setdiff1d(np.arange(len(drawn)), crossed)[:288]
    return drawn.take(np.sort([*kept, *others])), read_split(folder, 'test')


def parse_arguments():
    parser, option = parser_of(__doc__)
    add_training_options(option, 'train and val', img_size=320, epochs=12, nargs='?')
    option('--changes', 'compared with no change (default: the other box losses)', nargs='+', default=OTHER_LOSSES)
    option('--split', 'measured split (default: val)', default='val')
    option('--of-class', 'also show the AP of this class, and the mean of the others')
    option('--name', 'of the results (default: recipes)', default='recipes')
    option('--out', 'folder for results', type=Path)
    return parser.parse_args()


def main():
    args = parse_arguments()
    args.changes = ['', *args.changes]
    for change in args.changes: recipe_with(args, change) # Mistakes are found before the first training
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        args.splits = [read_split(args.data, s) for s in ('train', args.split)] if args.data else draw_rare(folder)
        names = args.splits[0].names
        if args.of_class not in [None, *names]: raise SystemExit(f'{args.of_class}: the classes are {", ".join(names)}')
        for seed in range(args.seeds): # The outer loop: a benchmark that is interrupted has still compared all
            for change in args.changes:
                rows.append(dict(change=change, seed=seed, **train(args, change, seed)))
                print(rows[-1], file=sys.stderr, flush=True)
    metrics = METRICS + ([args.of_class, 'others'] if args.of_class else [])
    about = about_trainings(args) | dict(split=args.split if args.data else 'test')
    save_results(args.name, as_table(rows, args.changes, metrics), rows, about, args.out)


if __name__ == '__main__': main()
