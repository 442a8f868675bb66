"Images that are pasted, mirrored and mixed, and their boxes."
from collections import Counter

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from torchvision.transforms import v2

from cjm_yolox_pytorch.data.augment import Cutout, MixUp, Mosaic, RandomHSV
from cjm_yolox_pytorch.data.augment import apply_transforms, as_sample, compose, extra_transforms, yolox_transforms
from cjm_yolox_pytorch.data.shapes import draw_shapes


def shapes(seed): return as_sample(*draw_shapes(np.random.default_rng(seed)))
def draw(): return shapes(int(torch.randint(30, ())))


@pytest.mark.parametrize('mosaic', [0, 1])
@pytest.mark.parametrize('mixup', [0, 1])
def test_mirrored_image_has_mirrored_boxes(mosaic, mixup):
    for seed in range(5):
        samples = []
        for flip_lr in (0, 1):
            torch.manual_seed(seed)
            transforms = yolox_transforms(160, mosaic, mixup, scale=(.5, 1.5), flip_lr=flip_lr)
            samples.append(apply_transforms(transforms, shapes(17), draw))
        (image, target), (mirrored, there) = samples
        assert len(target['boxes']) and torch.equal(image.flip(2), mirrored)
        assert torch.equal(target['labels'], there['labels'])
        assert_close(160 - there['boxes'][:, [2, 0]], target['boxes'][:, [0, 2]])
        assert_close(there['boxes'][:, [1, 3]], target['boxes'][:, [1, 3]])


@pytest.mark.parametrize('degrees', [0, 20])
def test_large_image_is_drawn_like_a_small_one(degrees):
    "With or without a frame of repeated pixels, which would take longer than it saves around a large image"
    small = np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8)
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn = np.array([[c, -s, 30], [s, c, 20], [0, 0, 1]])
    drawn = []
    for factor in (1, 20):
        sample = as_sample(small.repeat(factor, 0).repeat(factor, 1), [], [])
        placed = [(*sample, turn @ np.diag([2/factor, 2/factor, 1]))]
        drawn.append(compose(placed, (100, 120))[0])
    covered = [(canvas != 114).any(0) for canvas in drawn]
    assert (covered[0] == covered[1]).float().mean() > .995
    # Averages of 8 x 8 pixels, as one image is smooth and the other has corners
    first, second = (torch.nn.functional.avg_pool2d(c.float(), 8) for c in drawn)
    assert (first - second).abs().mean() < 6


def add_alpha(image, target): return torch.cat([image, image[:1]]), target


CHANGES = dict(grey=v2.Grayscale(), float=v2.ToDtype(torch.float32), alpha=add_alpha)


@pytest.mark.parametrize('first', CHANGES.values(), ids=CHANGES.keys())
@pytest.mark.parametrize('then', [Mosaic(100, degrees=0), Mosaic(100), MixUp(), RandomHSV()])
def test_image_of_another_kind_is_refused(first, then):
    "And not silently left out of the canvas"
    torch.manual_seed(1) # With this seed, HSV changes something
    message = r'transforms made an image of torch\.(uint8|float32) \[[134], 160, 160\], but uint8 \[3, H, W\] is needed'
    with pytest.raises(ValueError, match=message): apply_transforms([first, then], shapes(17), draw)


ALWAYS = dict(flip_ud=1., rot90=1., blur=1., grayscale=1., cutout=1.)


def white_square(hw, box, crowd=False):
    image = np.zeros((*hw, 3), np.uint8)
    x1, y1, x2, y2 = box
    image[y1:y2, x1:x2] = 255
    return as_sample(image, [box], [3], [crowd])


@pytest.mark.parametrize('name', ['flip_ud', 'rot90'])
@pytest.mark.parametrize('hw', [(40, 40), (31, 50)])
def test_boxes_turn_with_their_images(name, hw):
    for seed in range(12):
        torch.manual_seed(seed)
        image, target = apply_transforms(extra_transforms(**{name: 1.}), white_square(hw, [0, 5, 12, 31]), None)
        y, x = image[0].nonzero().T
        around = torch.stack([x.min(), y.min(), x.max() + 1, y.max() + 1]).float()
        assert_close(target['boxes'].as_subclass(torch.Tensor), around[None], atol=1e-4, rtol=0)
        assert target['boxes'].canvas_size == tuple(image.shape[1:]) and (image[0] == 255).sum() == 12*26


def test_each_right_angle_comes_equally_often():
    torch.manual_seed(0)
    turn, = extra_transforms(rot90=.75)
    targets = [turn(*white_square((30, 30), [0, 0, 4, 4]))[1] for _ in range(800)]
    times = Counter(tuple(t['boxes'][0].round().int().tolist()) for t in targets)
    assert len(times) == 4 and min(times.values()) > 160 and max(times.values()) < 240


@pytest.mark.parametrize('name', ALWAYS)
def test_extra_transforms_follow_the_seed_and_change_no_source(name):
    sample = shapes(17)
    before = sample[0].clone(), sample[1]['boxes'].clone()
    made = []
    for _ in range(2):
        torch.manual_seed(5)
        made.append(apply_transforms(extra_transforms(**{name: 1.}), sample, None))
    assert torch.equal(made[0][0], made[1][0]) and torch.equal(made[0][1]['boxes'], made[1][1]['boxes'])
    assert torch.equal(sample[0], before[0]) and torch.equal(sample[1]['boxes'], before[1])
    assert made[0][0].dtype == torch.uint8 and not torch.equal(made[0][0], before[0])


def test_all_transforms_leave_valid_samples():
    transforms = yolox_transforms(96, mixup=.5) + extra_transforms(**dict.fromkeys(ALWAYS, .5))
    for seed in range(30):
        torch.manual_seed(seed)
        image, target = apply_transforms(transforms, shapes(seed), draw)
        boxes = target['boxes'].as_subclass(torch.Tensor)
        assert image.shape == (3, 96, 96) and len(boxes) == len(target['labels']) == len(target['crowd'])
        assert ((boxes >= -1e-3) & (boxes <= 96 + 1e-3)).all() and (boxes[:, 2:] > boxes[:, :2]).all()


@pytest.mark.parametrize('crowd', [False, True])
def test_covered_objects_are_dropped_unless_they_are_crowds(crowd):
    kept = []
    for seed in range(80):
        torch.manual_seed(seed)
        image, target = Cutout(scale=(.2, .5))(*white_square((50, 50), [20, 20, 30, 30], crowd))
        share = (image[0] == 255).sum()/100
        if len(target['labels']):
            assert crowd or share >= .1
            assert target['crowd'].tolist() == [crowd] and target['labels'].tolist() == [3]
        else: assert not crowd and share < .1
        kept.append(len(target['labels']))
    assert all(kept) if crowd else 0 < sum(kept) < 80


def test_cutout_of_an_image_without_objects():
    torch.manual_seed(0)
    image, target = Cutout()(*as_sample(np.zeros((20, 20, 3), np.uint8), [], []))
    assert (image == 114).any() and target['boxes'].shape == (0, 4)
