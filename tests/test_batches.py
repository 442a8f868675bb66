"Images and boxes on their way into batches."
import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close
from torchvision.transforms import v2

from cjm_yolox_pytorch.data.augment import MixUp, Mosaic, RandomAffine, RandomHSV, apply_transforms, as_sample, paste, yolox_transforms
from cjm_yolox_pytorch.data.batches import DetectionDataset, EpochBatches, train_loader
from cjm_yolox_pytorch.data.annotations import Annotations
from cjm_yolox_pytorch.data.shapes import draw_shapes

STILL = dict(scale=(1, 1), degrees=0, translate=0, shear=0)


@pytest.fixture
def lying(tmp_path):
    "Two images, 100 wide and 50 high, with a box that reaches far below the first, and a box within the second"
    paths = [f'{tmp_path}/{name}.png' for name in 'ab']
    for path in paths: Image.new('RGB', (100, 50), (200, 0, 0)).save(path)
    boxes = np.array([[10, 30, 60, 100], [5, 5, 30, 30]], dtype=np.float32)
    return Annotations(['ant'], np.array(paths), np.array([[50, 100]]*2), np.arange(3), boxes, np.zeros(2, dtype=np.int64), np.zeros(2, dtype=bool), np.ones(2, dtype=np.float32))


@pytest.mark.parametrize('transforms', [[], [RandomAffine(100, **STILL)], [Mosaic(100, **STILL)]], ids=['none', 'affine', 'mosaic'])
def test_boxes_are_around_nothing_but_their_images(transforms, lying):
    dataset = DetectionDataset(lying, 100, transforms)
    for seed in range(10):
        image, target = dataset[0, seed]
        assert len(target['boxes'])
        for x1, y1, x2, y2 in target['boxes'].round().int().tolist():
            assert (image[0, y1 + 1:y2 - 1, x1 + 1:x2 - 1] == 200).all()
    assert lying.boxes[0, 3] == 100 # The annotations are as they were


@pytest.mark.parametrize('mosaic', [0, 1])
@pytest.mark.parametrize('mixup', [0, 1])
def test_a_mirrored_image_has_mirrored_boxes(mosaic, mixup):
    def draw(): return as_sample(*draw_shapes(np.random.default_rng(int(torch.randint(30, ())))))
    for seed in range(5):
        made = []
        for flip in (0, 1):
            torch.manual_seed(seed)
            made.append(apply_transforms(yolox_transforms(160, mosaic, mixup, scale=(.5, 1.5), flip=flip), as_sample(*draw_shapes(np.random.default_rng(17))), draw))
        (image, target), (mirrored, there) = made
        assert len(target['boxes']) and torch.equal(image.flip(2), mirrored) and torch.equal(target['labels'], there['labels'])
        assert_close(160 - there['boxes'][:, [2, 0]], target['boxes'][:, [0, 2]])
        assert_close(there['boxes'][:, [1, 3]], target['boxes'][:, [1, 3]])


@pytest.mark.parametrize('workers', [0, 1])
def test_a_sample_that_cannot_be_learnt_from_is_named(workers, lying):
    loader = train_loader(DetectionDataset(lying, 64, v2.CenterCrop(10)), EpochBatches(2, 2), workers)
    with pytest.raises(ValueError, match=r'[ab]\.png: transforms left 1 of 1 boxes without area.*v2\.SanitizeBoundingBoxes'): next(iter(loader))


@pytest.mark.parametrize('first', [v2.Grayscale(), v2.ToDtype(torch.float32), lambda image, target: (torch.cat([image, image[:1]]), target)], ids=['grey', 'float', 'alpha'])
@pytest.mark.parametrize('then', [Mosaic(100, degrees=0), Mosaic(100), MixUp(), RandomHSV()])
def test_images_that_cannot_be_drawn_are_named(first, then, lying):
    "And not left out of the canvas without a word"
    torch.manual_seed(1) # So that HSV changes something
    with pytest.raises(ValueError, match=r'[ab]\.png.*: transforms made an image of torch\.(uint8|float32) and \[[134], 50, 100\], but uint8 \[3, H, W\] is needed'): DetectionDataset(lying, 100, [first, then])[0]


@pytest.mark.parametrize('degrees', [0, 20])
def test_a_large_photo_is_drawn_like_a_small_one(degrees):
    "With a frame, or without one if that would take longer"
    small = np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8)
    turn = np.array([[np.cos(np.radians(degrees)), -np.sin(np.radians(degrees)), 30], [np.sin(np.radians(degrees)), np.cos(np.radians(degrees)), 20], [0, 0, 1]])
    drawn = []
    for factor in (1, 20):
        canvas = np.full((100, 120, 3), 114, np.uint8)
        paste(canvas, small.repeat(factor, 0).repeat(factor, 1), turn @ np.diag([2/factor, 2/factor, 1]))
        drawn.append(canvas)
    first, second = drawn
    assert ((first != 114).any(2) == (second != 114).any(2)).mean() > .995
    first, second = (torch.nn.functional.avg_pool2d(torch.from_numpy(c).permute(2, 0, 1).float(), 8) for c in drawn) # One smooth, the other with corners
    assert (first - second).abs().mean() < 6
