"Rare classes come more often, in epochs that do not depend on how they are computed."
import numpy as np
import pytest
import torch
from trainings import SMALL, trainer

from cjm_yolox_pytorch.data.balance import repeat_factors
from cjm_yolox_pytorch.data.batches import EpochBatches
from cjm_yolox_pytorch.data.splits import read_split
from cjm_yolox_pytorch.training.recipe import Recipe, lr_factor
from cjm_yolox_pytorch.training.runs import load_state, save_state
from cjm_yolox_pytorch.training.trainer import Trainer

RNG = np.random.default_rng(0)
REPEATS = [np.ones(13), RNG.uniform(1, 4, 13), np.array([1, 1, 7.5]), np.full(40, 1.1)]


@pytest.mark.parametrize('repeats', REPEATS, ids=lambda r: f'{len(r)}-{r.sum():.1f}')
@pytest.mark.parametrize('batch', [1, 4])
def test_epochs_have_one_length_and_every_image(repeats, batch):
    times = np.zeros(len(repeats))
    for epoch in range(400):
        batches = EpochBatches(len(repeats), batch, epoch=epoch, repeats=repeats)
        keys = [key for keys in batches for key in keys]
        assert len(keys) == len(batches)*batch and len({*keys}) == len(keys)
        count = np.bincount([i for i, _ in keys], minlength=len(repeats))
        assert (count >= np.floor(repeats)).all() # And the last batch may be filled up
        times += count
    filled = 1 + batch/repeats.sum()
    assert (times/400 > repeats - .1).all() and (times/400 < repeats*filled + .2).all()


@pytest.mark.parametrize('world', [2, 4])
def test_processes_share_balanced_epochs(world):
    def keys(**options): return list(EpochBatches(13, 4, seed=3, epoch=2, repeats=REPEATS[1], **options))
    parts = [keys(rank=rank, world=world) for rank in range(world)]
    assert [sum(shares, []) for shares in zip(*parts)] == keys()
    assert keys(start=3) == keys()[3:]


def test_rounding_errors_add_no_batch():
    "Each of 49 images has another class, whose factor is 7.000000000000001"
    repeats = np.full(49, np.sqrt(1/(1/49)))
    assert repeats.sum() > 343 and len(EpochBatches(49, 343, repeats=repeats)) == 1
    assert len(EpochBatches(49, 342, repeats=repeats)) == 2


def test_trainer_repeats_images_and_its_schedule_knows(draw_shapes):
    data = draw_shapes(train=12, val=4, test=4, size=64)
    plain, balanced = trainer(data), trainer(data, balance=1.)
    factors = repeat_factors(read_split(data, 'train'), 1.)
    assert len(balanced.batches) == -(-factors.sum()//4) > len(plain.batches) == 3
    assert balanced.train_epoch()
    r, steps = balanced.recipe, len(balanced.batches)
    warmup, no_aug = round(steps*r.capped_warmup), steps*r.capped_no_aug
    factor = lr_factor(steps, steps*r.epochs, warmup, no_aug, r.min_lr_ratio)
    assert balanced.scheduler.get_last_lr() == pytest.approx([r.lr*factor]*2)


def test_classes_that_are_frequent_enough_are_not_repeated(draw_shapes):
    a = read_split(draw_shapes(train=12, val=4, test=4, size=64), 'train')
    assert repeat_factors(a, 1e-9).tolist() == [1.]*12
    one = a.take([np.flatnonzero(np.diff(a.starts))[0]])
    assert repeat_factors(one, 1.).tolist() == [1.]


class Items(torch.utils.data.Dataset):
    "Images of an object each, with the given labels"
    def __init__(self, labels): self.labels = labels
    def __len__(self): return len(self.labels)

    def __getitem__(self, i):
        return torch.zeros(3, 64, 64), dict(boxes=torch.tensor([[0., 0, 9, 9]]), labels=torch.tensor([self.labels[i]]))


def test_labels_that_change_the_length_of_an_epoch_are_not_resumed(tmp_path):
    def balanced(labels):
        return Trainer(Recipe(**SMALL, balance=1.), Items(labels), Items([0]), device='cpu', names=['cat', 'bird'])
    first, other = balanced([0]*10 + [1]*2), balanced([0]*6 + [1]*6)
    assert (len(first.batches), len(other.batches)) == (4, 5)
    path = tmp_path/'state.pt'
    save_state(first, path)
    with pytest.raises(ValueError, match=r'other data or weights, steps_per_epoch=5 \(was 4\)'): load_state(other, path)
    load_state(first, path)
    state = torch.load(path, weights_only=True)
    del state['data']['steps_per_epoch'] # As in states of earlier versions
    torch.save(state, path)
    load_state(first, path)
