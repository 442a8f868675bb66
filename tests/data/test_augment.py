"Images that are pasted, mirrored and mixed, and their boxes."
import numpy as np
import pytest
import torch
from torch.testing import assert_close
from torchvision.transforms import v2

from cjm_yolox_pytorch.data.augment import MixUp, Mosaic, RandomHSV
from cjm_yolox_pytorch.data.augment import apply_transforms, as_sample, compose, yolox_transforms
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
