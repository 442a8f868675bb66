"""Ten training steps of three recipes, as hashes: the same before and after a change that should change no result.

    python tools/ten_steps.py > before.txt          # here, and again after the change
    PYTHONPATH=/path/to/another/clone python tools/ten_steps.py
"""
import hashlib
import tempfile
from itertools import islice
from pathlib import Path

import torch

from cjm_yolox_pytorch.data.shapes import write_shapes
from cjm_yolox_pytorch.data.splits import read_split
from cjm_yolox_pytorch.training.recipe import fine_tune_recipe, paper_recipe
from cjm_yolox_pytorch.training.trainer import Trainer

SMALL = dict(model='yolox_nano', img_size=64, batch=8, epochs=8, seed=3)
RECIPES = dict(
    fine_tune=fine_tune_recipe(**SMALL),
    paper=paper_recipe(**SMALL, min_size=64, max_size=96, mixup=1., clip_grad_norm=5.),
    closing=fine_tune_recipe(**{**SMALL, 'epochs': 4}, grad_accum=2, no_aug_epochs=1)) # Its last epoch has the L1 loss


def digest(tensors):
    return hashlib.md5(b''.join(t.detach().contiguous().cpu().numpy().tobytes() for t in tensors)).hexdigest()


def ten_steps(trainer):
    "Losses of the last ten steps, after which training stops"
    if trainer.recipe.epochs == 4: trainer.epoch = 3
    losses = []
    while len(losses) < 10:
        trainer.start_epoch()
        for batch in islice(trainer.loader, 10 - len(losses)): losses.append(trainer.step(batch))
        trainer.epoch += 1
        trainer.done = 0
    return losses


def main():
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        write_shapes(folder, train=40, val=8, test=0, size=96)
        train, val = (read_split(Path(folder), split) for split in ('train', 'val'))
        for name, recipe in RECIPES.items():
            trainer = Trainer(recipe, train, val, device='cpu')
            losses = ten_steps(trainer)
            weights, average = (digest(m.state_dict().values()) for m in (trainer.model, trainer.ema.module))
            print(f'{name:10} {weights} {average} {digest(v for loss in losses for v in loss.values())}')


if __name__ == '__main__': main()
