"Rare classes come more often, in epochs that do not depend on how they are computed."
import numpy as np
import pytest
from trainings import trainer

from cjm_yolox_pytorch.data.balance import repeat_factors
from cjm_yolox_pytorch.data.batches import EpochBatches
from cjm_yolox_pytorch.data.splits import read_split

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


def test_trainer_repeats_images_and_its_schedule_knows(draw_shapes):
    data = draw_shapes(train=12, val=4, test=4, size=64)
    plain, balanced = trainer(data), trainer(data, balance=1.)
    factors = repeat_factors(read_split(data, 'train'), 1.)
    assert len(balanced.batches) == -(-factors.sum()//4) > len(plain.batches) == 3
    assert balanced.train_epoch() and balanced.steps == len(balanced.batches)


def test_classes_that_are_frequent_enough_are_not_repeated(draw_shapes):
    a = read_split(draw_shapes(train=12, val=4, test=4, size=64), 'train')
    assert repeat_factors(a, 1e-9).tolist() == [1.]*12
    one = a.take([np.flatnonzero(np.diff(a.starts))[0]])
    assert repeat_factors(one, 1.).tolist() == [1.]
