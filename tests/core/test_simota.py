"Input validation of the assigner, and subclasses written for 0.2."
from typing import Generic, TypeVar

import pytest
import torch
from torch.testing import assert_close
from torchvision.ops import box_convert

from cjm_yolox_pytorch.assignment import pad_objects
from cjm_yolox_pytorch.data.augment import yolox_transforms
from cjm_yolox_pytorch.data.batches import DetectionDataset
from cjm_yolox_pytorch.data.splits import read_split
from cjm_yolox_pytorch.loss import YOLOXLoss
from cjm_yolox_pytorch.simota import SimOTAAssigner, in_first_pixels, check_corners, check_values, mostly_outside

BOXES, LABELS = torch.tensor([[4., 12., 44., 60.], [40., 6., 56., 24.]]), torch.tensor([0, 1])
SIZE = 64, 64


def cells(count=9):
    "Scores, priors and decoded boxes of one image, as `assign` takes them"
    g = torch.Generator().manual_seed(0)
    priors = torch.cat([torch.rand(count, 2, generator=g)*64, torch.full((count, 2), 8.)], 1)
    corner = torch.rand(count, 2, generator=g)*40
    return torch.rand(count, 2, generator=g), priors, torch.cat([corner, corner + 16], 1)


def test_assign_takes_no_objects_without_labels():
    "As in 0.2, where there were no labels in the result either"
    for boxes in (torch.zeros(0, 4), torch.zeros(0)):
        result = SimOTAAssigner().assign(*cells(), boxes, None)
        assert result.num_ground_truth_boxes == 0 and result.category_labels is None
        assert_close(result.ground_truth_box_indices, torch.zeros(9, dtype=torch.int64))
        assert_close(result.max_iou_values, torch.zeros(9))
    regions = torch.tensor([[0., 0., 64., 64.]])
    assert (SimOTAAssigner().assign(*cells(), torch.zeros(0, 4), None, regions).ground_truth_box_indices == -1).all()


def test_assign_needs_labels_for_objects():
    for boxes, name in ((BOXES, 'gt_labels'), (None, 'gt_bboxes'), ([], 'gt_bboxes')):
        with pytest.raises(ValueError, match=f'{name} is a (NoneType|list), but a tensor is needed'):
            SimOTAAssigner().assign(*cells(), boxes, None)


@pytest.mark.parametrize('name', ['get_in_gt_and_in_center_info', 'dynamic_k_matching'])
def test_assigner_with_a_step_of_0_2_is_refused(name):
    step = {name: lambda self, *args: None}
    with pytest.raises(TypeError, match=f'Mine defines {name}, which SimOTAAssigner never calls: override assign'):
        type('Mine', (SimOTAAssigner,), step)
    mixin = type('Mixin', (), step)
    with pytest.raises(TypeError, match=f'Mine defines {name}'): type('Mine', (mixin, SimOTAAssigner), {})
    mine = type('Mine', (SimOTAAssigner,), dict(step, assign=lambda self, *args: None)) # It may call the step
    type('Child', (mine,), {})
    assert not hasattr(SimOTAAssigner, name)


@pytest.mark.parametrize('name', ['bbox_decode', 'flatten_and_concat', 'get_l1_target', 'get_target_single', 'sample'])
def test_loss_with_a_method_for_one_image_is_refused(name):
    "In 0.2 the loss of a batch was computed with it"
    method = {name: lambda self, *args: None}
    with pytest.raises(TypeError, match=f'Mine defines {name}, which YOLOXLoss never calls: override forward'):
        type('Mine', (YOLOXLoss,), method)
    for call in ('forward', '__call__'): type('Mine', (YOLOXLoss,), {**method, call: lambda self, *args: None})


def test_subclasses_that_are_called_are_fine():
    class Loss(YOLOXLoss):
        "With another default and a method of its own"
        def __init__(self, num_classes): super().__init__(num_classes, use_l1=True)
        def total(self, *args): return sum(self(*args).values())
    assert Loss(2).use_l1
    type('Mine', (SimOTAAssigner,), dict(match=SimOTAAssigner.match, radius=3))


class Registered:
    "With an argument of the class statement, like `PyTorchModelHubMixin` of huggingface_hub"
    def __init_subclass__(cls, tag=None, **kwargs):
        super().__init_subclass__(**kwargs)
        cls.tag = tag


@pytest.mark.parametrize('base', [YOLOXLoss, SimOTAAssigner])
def test_subclasses_may_have_other_bases(base):
    class Mine(base, Registered, tag='mine'): pass
    class Typed(base, Generic[TypeVar('T')]): pass
    assert Mine.tag == 'mine' and Typed[int]


@pytest.mark.parametrize('form', ['xywh', 'cxcywh'])
def test_boxes_in_another_format_are_recognized(form):
    boxes = box_convert(BOXES + torch.tensor([50., 50., 50., 50.]), 'xyxy', form)
    with pytest.raises(ValueError, match=r'^image 0, row 0: box .* xywh or cxcywh, use torchvision\.ops\.box_convert'):
        check_values(boxes[None], LABELS[None], 2)
    with pytest.raises(ValueError, match='^row 0: region .* xyxy with x1 < x2'): check_corners(boxes, kind='region')


def test_box_without_area_names_the_remedy():
    for column in (2, 3):
        boxes = BOXES.clone()
        boxes[1, column] = boxes[1, column - 2]
        with pytest.raises(ValueError, match=r'^row 1: box 40.* need an area: drop .*v2\.SanitizeBoundingBoxes'):
            check_values(boxes, LABELS, 2)


def test_labels_that_begin_at_1_are_recognized():
    hint = 'subtract 1 if yours begin at 1'
    with pytest.raises(ValueError, match=f'label 2, but labels are whole numbers from 0 to 1: {hint}'):
        check_values(BOXES, LABELS + 1, 2)
    for labels in (LABELS*2, LABELS + 2, LABELS - 1):
        with pytest.raises(ValueError, match='from 0 to 1$'): check_values(BOXES, labels, 2)


@pytest.mark.parametrize('boxes, want', [
    (BOXES/64, True), (BOXES[:1]/64, True), (torch.tensor([[0., 0., 1., 1.]]*2), True),
    (torch.tensor([[0., 0., 1., 1.]]), False), (torch.tensor([[.2, .3, 1.4, 1.5]]), False), # One tiny object
    (torch.tensor([[-.5, -.5, 1., 1.]]*2), True), (torch.tensor([[-9., -9., 1., 1.]]*2), False), # Across the border
    (torch.tensor([[0., 0., 1., 1.], [9., 9., 10., 10.]]), False), (BOXES[:0], False)])
def test_boxes_in_fractions_are_recognized(boxes, want):
    assert in_first_pixels(boxes, SIZE) is want
    assert not in_first_pixels(boxes, (1, 1))


def outside(*images, size=SIZE):
    gt = pad_objects(images, [b[:, 0] for b in images])
    return mostly_outside(gt.boxes, gt.valid, size)


def test_boxes_of_the_unscaled_photo_are_recognized():
    def images(*scales): return outside(*(BOXES*s for s in scales))
    assert [images(1), images(3), images(1, 3), images(1, 3, 3)] == [False, True, False, True]
    none = BOXES[:0]
    assert outside(none, BOXES*3, none) and not outside(none, none)
    crossing = torch.tensor([[-20., 30., 1., 90.], [63., 63., 200., 200.]])
    assert not outside(crossing)
    for shift in ([-64, 0], [64, 0], [0, -64], [0, 64]): assert outside(BOXES + torch.tensor(shift*2))


@pytest.mark.parametrize('name, split', [('bccd', 'train'), ('coco_ccby', 'all'), ('ships', 'train')])
def test_training_images_are_neither_fractions_nor_outside(shared, name, split):
    a = read_split(shared/'data'/name, split)
    for transforms in ([], yolox_transforms(160, mixup=.5)):
        dataset = DetectionDataset(a, 160, transforms)
        boxes = [dataset[i, i][1]['boxes'] for i in range(24)]
        assert not any(outside(b, size=(160, 160)) for b in boxes)
        assert not any(in_first_pixels(b, (160, 160)) for b in boxes)
    assert outside(*(torch.from_numpy(a.objects(i)[0]) for i in range(len(a))), size=(160, 160))
