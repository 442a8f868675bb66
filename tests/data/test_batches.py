"Images and boxes on their way into batches."
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from cjm_yolox_pytorch.data.annotations import Annotations
from cjm_yolox_pytorch.data.augment import Mosaic, RandomAffine
from cjm_yolox_pytorch.data.batches import DetectionDataset, EpochBatches, train_loader

STILL = dict(scale=(1, 1), degrees=0, translate=0, shear=0)


@pytest.fixture
def wide(tmp_path):
    "Two images, 100 wide and 50 high, with a box that extends far below the first, and a box within the second"
    paths = [f'{tmp_path}/{name}.png' for name in 'ab']
    for path in paths: Image.new('RGB', (100, 50), (200, 0, 0)).save(path)
    boxes = np.array([[10, 30, 60, 100], [5, 5, 30, 30]], dtype=np.float32)
    objects = dict(labels=np.zeros(2, np.int64), crowd=np.zeros(2, bool), areas=np.ones(2, np.float32))
    return Annotations(['ant'], np.array(paths), np.array([[50, 100]]*2), np.arange(3), boxes, **objects)


@pytest.mark.parametrize('transforms', [[], [RandomAffine(100, **STILL)], [Mosaic(100, **STILL)]], ids=str)
def test_boxes_end_where_their_images_end(transforms, wide):
    dataset = DetectionDataset(wide, 100, transforms)
    for seed in range(10):
        image, target = dataset[0, seed]
        assert len(target['boxes'])
        for x1, y1, x2, y2 in target['boxes'].round().int().tolist():
            assert (image[0, y1 + 1:y2 - 1, x1 + 1:x2 - 1] == 200).all()
    assert wide.boxes[0, 3] == 100 # The annotations are as they were


@pytest.mark.parametrize('workers', [0, 1])
def test_invalid_sample_is_named(workers, wide):
    loader = train_loader(DetectionDataset(wide, 64, v2.CenterCrop(10)), EpochBatches(2, 2), workers)
    message = r'[ab]\.png: transforms made boxes without area, such as .*v2\.SanitizeBoundingBoxes'
    with pytest.raises(ValueError, match=message): next(iter(loader))


def test_boxes_in_another_format_are_recognized(wide):
    "They have an area: to drop them would be the wrong advice"
    def as_xywh(image, target):
        boxes = target['boxes'].as_subclass(torch.Tensor)
        return image, {**target, 'boxes': torch.cat([boxes[:, :2] + 60, boxes[:, 2:] - boxes[:, :2]], dim=1)}
    with pytest.raises(ValueError, match=r'a\.png: row 0: box .* if these are xywh or cxcywh'):
        DetectionDataset(wide, 100, as_xywh)[0]


@pytest.mark.parametrize('then', [[], [Mosaic(100)], [RandomAffine(100, **STILL)]], ids=str)
def test_invalid_image_is_named(then, wide):
    "Also if it is the next transform that cannot use it"
    message = r'a\.png.*: transforms made an image of torch\.uint8 \[1, 50, 100\], but uint8 \[3, H, W\]'
    with pytest.raises(ValueError, match=message): DetectionDataset(wide, 64, [v2.Grayscale(), *then])[0]
