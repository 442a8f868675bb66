"Non-maximum suppression of many classes at once is that of each class alone."
import pytest
import torch
from torchvision import ops

from cjm_yolox_pytorch.inference import nms


@pytest.mark.parametrize('num_classes', [3, 80, 1203, 20_000])
def test_nms_treats_each_class_alone(num_classes):
    "Small boxes in far tiles, whose corners had three digits left"
    g = torch.Generator().manual_seed(num_classes)
    for n in range(5):
        first = torch.randint(0, 100, (800,), generator=g)
        corner = torch.rand(100, 2, generator=g)[first]*600
        side = (torch.rand(100, 2, generator=g)*6 + 2)[first]
        boxes = torch.cat([corner, corner + side], 1) + torch.rand(800, 4, generator=g)*.8
        labels, scores = first*7919 % num_classes, torch.rand(800, generator=g)*.9 + .05
        rows = [(labels == c).nonzero()[:, 0] for c in labels.unique()]
        kept = torch.cat([r[ops.nms(boxes[r], scores[r], .65)] for r in rows])
        every = torch.zeros(800, num_classes).scatter(1, labels[:, None], scores[:, None])
        found, *_ = nms(boxes, every, conf=.01, max_detections=800)
        torch.testing.assert_close(found, boxes[kept[scores[kept].argsort(descending=True)]], atol=0, rtol=0)


@pytest.mark.parametrize('size', [1e3, 1e7, 1e8, float('inf'), float('nan')])
def test_nms_ignores_a_box_that_explodes(size):
    boxes = torch.tensor([[10., 10, 20, 20], [10, 10, 20, 20.1], [10, 10, 20, 20], [-size, -size, size, size]])
    scores = torch.full((4, 80), .01)
    scores[[0, 1, 2, 3], [70, 70, 79, 0]] = torch.tensor([.9, .8, .7, .6])
    _, _, labels = nms(boxes, scores)
    assert labels.tolist() == ([70, 79, 0] if size < 1e9 else [70, 79])
