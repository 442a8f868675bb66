"What `train` is given from Python: folders, Datasets, recipes, callbacks; and what does not go together."
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from trainings import SMALL, trainer

from cjm_yolox_pytorch.data.annotations import fingerprint
from cjm_yolox_pytorch.data.named_dataset import NamedDataset
from cjm_yolox_pytorch.data.splits import read_split
from cjm_yolox_pytorch.files.checkpoints import Weights
from cjm_yolox_pytorch.model import NORM_STATS, build_model
from cjm_yolox_pytorch.training import train as module
from cjm_yolox_pytorch.training.recipe import Recipe, fine_tune_recipe
from cjm_yolox_pytorch.training.recipe_file import read_recipe
from cjm_yolox_pytorch.training.train import fit, train
from cjm_yolox_pytorch.training.trainer import Trainer

PLAN = Recipe(**{**SMALL, 'epochs': 1})


class Items(torch.utils.data.Dataset):
    "The same image with one box, `n` times"
    def __init__(self, n=4): self.n = n
    def __len__(self): return self.n

    def __getitem__(self, i):
        if i >= self.n: raise IndexError
        target = dict(boxes=torch.tensor([[4., 4, 40, 40]]), labels=torch.tensor([i % 2]))
        return torch.full((3, 64, 64), 40*(i % 6), dtype=torch.uint8), target


@dataclass
class Counter:
    "Equal to each other one with the same count"
    count:int = 0
    def on_epoch_end(self, trainer): self.count += 1


class Ring:
    def on_epoch_end(self, trainer): self.heard = trainer.epoch


@pytest.fixture
def begun(monkeypatch):
    "What `train` would train, without training"
    seen = SimpleNamespace()
    def begin(trainer, out, resume, callbacks): vars(seen).update(trainer=trainer, out=out, callbacks=callbacks)
    monkeypatch.setattr(module, '_fit_or_explain', begin)
    monkeypatch.setattr(module, 'measure_best', lambda trainer: {})
    return seen


def test_datasets_are_trained_on(begun, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = train(train_set := Items(), val=Items(2), names=['cat', 'dog'], recipe=PLAN, device='cpu')
    t = begun.trainer
    assert t.train.dataset is train_set and t.train.names == t.val.names == ['cat', 'dog'] and len(t.val) == 2
    assert run.out == begun.out == Path(f'runs/Items-{PLAN.model}') and t.recipe == PLAN
    assert (t.notes['training'], t.notes['validation']) == ('training set', 'validation set')
    train(train_set, val=train_set, names='cat,dog', recipe=PLAN, device='cpu')
    assert begun.trainer.notes['validation'] == 'training set' and begun.trainer.train.names == ['cat', 'dog']


@pytest.mark.slow
def test_from_datasets_to_weights(tmp_path):
    run = train(Items(), val=Items(2), names={0: 'cat', 1: 'dog'}, recipe=PLAN, out=tmp_path/'run', device='cpu')
    assert run.metrics['split'] == 'validation set' and run.weights.is_file()


def test_annotations_are_trained_on(begun, shapes, tmp_path):
    split = read_split(shapes, 'train')
    train(split, val=Items(2), names=split.names, recipe=PLAN, out=tmp_path/'run', device='cpu')
    assert begun.trainer.train is split and begun.trainer.val.names == split.names
    train(split, val=read_split(shapes, 'val'), recipe=PLAN, out=tmp_path/'run', device='cpu')
    assert begun.trainer.notes['fingerprint'] == fingerprint(split)


def test_recipe_is_an_object(begun, shapes, tmp_path):
    train(shapes, recipe=PLAN, epochs=7, out=tmp_path/'run', device='cpu')
    assert begun.trainer.recipe == Recipe(**{**SMALL, 'epochs': 7}) and PLAN.epochs == 1


def test_weights_are_an_object(begun, shapes, tmp_path):
    state = build_model('yolox_nano', 2, pretrained=False).state_dict()
    weights = Weights(state, 'yolox_nano', 2, **NORM_STATS['yolox_nano'], names=['disc', 'sun'])
    train(shapes, weights=weights, recipe=PLAN, out=tmp_path/'run', device='cpu')
    assert begun.trainer.loaded and begun.trainer.notes['weights'] == 'yolox_nano in memory'
    with pytest.raises(ValueError, match='change `names` of the Weights'):
        train(shapes, weights=weights, names='a,b', recipe=PLAN, out=tmp_path/'run', device='cpu')


def test_one_callback_needs_no_list(begun, shapes, tmp_path):
    for given in (ring := Ring(), [ring], (ring,)):
        train(shapes, recipe=PLAN, callbacks=given, out=tmp_path/'run', device='cpu')
        assert begun.callbacks == [ring]


def test_each_process_has_its_callbacks_and_the_first_its_loggers(begun, shapes, tmp_path, monkeypatch):
    "As `fit` has it; a function of the user's own may not look at the rank"
    monkeypatch.setattr(module, 'make_logger', lambda name: name)
    rank = SimpleNamespace(rank=1, notes={})
    monkeypatch.setattr(module, '_make_trainer', lambda *args: rank)
    for rank.rank, expected in ((0, [ring := Ring(), 'mine:Log']), (1, [ring])):
        train(shapes, recipe=PLAN, callbacks=ring, logger='mine:Log', out=tmp_path/'run', device='cpu')
        assert begun.callbacks == expected


def test_callbacks_of_the_trainer_stay(shapes, tmp_path, no_plots):
    mine, other = Ring(), Ring()
    t = trainer(shapes, epochs=1)
    t.callbacks = [mine]
    fit(t, tmp_path/'run', callbacks=[other, mine])
    assert mine.heard == other.heard == 1 and t.callbacks == [mine, other]
    t.callbacks = [SimpleNamespace(on_batch_end=print)]
    with pytest.raises(ValueError, match='on_batch_end would never be called'): fit(t, tmp_path/'again')


def test_equal_callbacks_are_all_called(shapes, tmp_path, no_plots):
    t, first, second = trainer(shapes, epochs=1), Counter(), Counter()
    t.callbacks = [first]
    fit(t, tmp_path/'run', callbacks=[first, second])
    assert (first.count, second.count) == (1, 1)


@pytest.mark.parametrize('call, message', [
    (lambda d: train(Items(), names=['a', 'b']), 'Dataset .Items., but val=None: give a validation'),
    (lambda d: train(Items(), val='val', names=['a', 'b']), "but val='val': give a validation Dataset"),
    (lambda d: train(Items(), val=Items()), r"a Dataset has no class names: give names=\['cat', 'dog'\]"),
    (lambda d: train(Items(), val=Items(), names='a,b', format='coco', images='x'), 'leave out format, images, which'),
    (lambda d: train(torch.utils.data.DataLoader(Items()), val=Items(), names='a,b'), 'DataLoader has no items by'),
    (lambda d: train(Items(), Items(), names='a,b'), "but val=None: give a validation Dataset as val"),
    (lambda d: train(d, val=Items()), 'give the name of a split there'),
    (lambda d: train(d, names=['a', 'b']), r'names are those of the initial weights: give weights, too \(--weights\)'),
    (lambda d: train(d, 'yolox_s', recipe=PLAN), "model='yolox_s', but the recipe is for 'yolox_nano'"),
    (lambda d: train(d, recipe=fine_tune_recipe), r"recipe=<function .* choose one of .*'Recipe\(...\)'"),
    (lambda d: train(d, recipe=dict(epochs=3)), "recipe={'epochs': 3}: choose one of "),
    (lambda d: train(d, epochs=1.5), 'epochs=1.5: must be a whole number'),
    (lambda d: train(d, freeze=['backbone']), r"freeze=\['backbone'\]: must be text"),
    (lambda d: train(d, compile='no'), "compile='no': must be True or False"),
    (lambda d: train(d, img_size=(64, 64)), r'img_size=\(64, 64\): must be a whole number'),
    (lambda d: train(d, names=[]), r'names are those of the initial weights: give weights, too'),
    (lambda d: train(d, names=''), r'names are those of the initial weights: give weights, too'),
    (lambda d: train(d, logger=['wandb']), r"logger=\['wandb'\]: give one name, such as 'wandb', and other loggers as"),
    (lambda d: train(d, resume='no'), "resume='no': must be True or False"),
    (lambda d: train(d, allow_missing='no'), "allow_missing='no': must be True or False"),
    (lambda d: train(d, weights=dict(a=torch.ones(1))), 'weights is of type dict: give a file, a URL'),
    (lambda d: train(read_split(d, 'train')), 'data is Annotations, but val=None'),
    (lambda d: train(None), 'data=None: give the folder of a dataset, or a Dataset'),
    (lambda d: train(d, callbacks='wandb'), "a logger is named by logger='wandb'"),
    (lambda d: train(d, callbacks=Ring), 'the callback Ring is a class: give an object, Ring()'),
    (lambda d: train(d, callbacks=[None]), 'a callback of type NoneType has no hook'),
    (lambda d: Trainer(PLAN, d, d, names=['a']), 'is a path, not a Dataset'),
    (lambda d: Trainer(PLAN, read_split(d, 'train'), read_split(d, 'val'), names=['a']), r"names=\['a'\]: Annotations"),
    (lambda d: Trainer(PLAN, *[NamedDataset(Items(), 'a,b')]*2, names=['a']), r"names=\['a'\]: NamedDataset")])
def test_what_does_not_go_together_is_refused(call, message, shapes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message): call(shapes)
    assert not [*tmp_path.iterdir()]


def test_kind_of_images_is_told_and_overridden(shapes, tmp_path, no_plots, caplog):
    with caplog.at_level('INFO'):
        run = train(shapes, 'yolox_nano', epochs=1, img_size=64, out=tmp_path/'run', augment='street', hsv_v=20.,
            device='cpu', workers=0)
    assert 'augment street: min_scale 0.5, max_scale 2, hsv_v 20, blur 0.1, cutout 0.2' in caplog.text
    recipe = Recipe(**read_recipe(run.out/'recipe.yaml'))
    assert (recipe.max_scale, recipe.hsv_v, recipe.cutout) == (2., 20., .2)
