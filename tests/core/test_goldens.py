"""Equal to the last digits of fp32 to mmdetection 3.3.0 (losses, gradients, assignments) and to Megvii's YOLOX (losses).

The reference values of mmdetection come from fp64, but for its IoUs; those of Megvii from fp32.
"""
import numpy as np
import pytest
import torch
from torch.testing import assert_close

from cjm_yolox_pytorch.boxes import cell_centres, decode, flatten_levels, grid_priors
from cjm_yolox_pytorch.loss import YOLOXLoss
from cjm_yolox_pytorch.simota import SimOTAAssigner

NAMES = ['all_empty', 'basic', 'boundary', 'empty_mixed', 'four_levels', 'many_classes', 'multi_class_crowd', 'not_divisible',
         'one_class_crowd', 'one_level', 'partly_outside', 'saturated', 'tiny_objects', 'untrained']
LOSSES = ['cls', 'bbox', 'obj', 'l1']


class Golden:
    def __init__(self, path):
        z = np.load(path)
        self.values = {k: torch.from_numpy(np.asarray(z[k])) for k in z.files}
        self.strides = z['strides'].tolist()
        self.maps = [[self[f'{name}_{i}'] for i in range(len(self.strides))] for name in ('cls', 'box', 'obj')]
        images = range(len(self.maps[0][0]))
        self.objects = [[self[f'gt_{what}_{b}'] for b in images] for what in ('boxes', 'labels')]

    def __getitem__(self, key): return self.values[key]
    def __contains__(self, key): return key in self.values
    def loss(self, **kwargs): return YOLOXLoss(int(self['num_classes']), strides=self.strides, **kwargs)


@pytest.fixture(params=NAMES)
def golden(request, shared): return Golden(shared / f'goldens/{request.param}.npz')


def test_every_golden_is_tried(shared):
    assert sorted(NAMES) == sorted(p.stem for p in (shared/'goldens').glob('*.npz'))


@pytest.mark.parametrize('dtype, rtol', [(torch.float32, 1e-5), (torch.float64, 1e-6)])
def test_mmdetection_losses_and_gradients(golden, dtype, rtol):
    maps = [[m.to(dtype, copy=True).requires_grad_() for m in levels] for levels in golden.maps]
    losses = golden.loss(box_loss='squared_iou', use_l1=True)(*maps, *golden.objects)
    for name in LOSSES: assert_close(losses[f'loss_{name}'].double(), golden[f'mmdet_loss_{name}'].double(), rtol=1e-6, atol=1e-9)
    sum(losses.values()).backward()
    for name, levels in zip(('cls', 'box', 'obj'), maps):
        for i, m in enumerate(levels):
            want = golden[f'mmdet_grad_{name}_{i}'].double()
            assert (m.grad - want).norm() <= rtol*want.norm() + 1e-9, f'{name}_{i}'


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_mmdetection_assignment(golden, dtype):
    classes, raw, objectness = [flatten_levels(levels).to(dtype) for levels in golden.maps]
    corners = grid_priors([m.shape[2:] for m in golden.maps[0]], golden.strides, dtype=dtype)
    for b, (gt_boxes, gt_labels) in enumerate(zip(*golden.objects)):
        result = SimOTAAssigner().assign(classes[b].sigmoid()*objectness[b].sigmoid(), cell_centres(corners), decode(raw[b], corners), gt_boxes.to(dtype), gt_labels)
        if len(gt_labels) == 0:
            assert not result.ground_truth_box_indices.any()
            continue
        on = result.ground_truth_box_indices > 0
        assert_close(result.ground_truth_box_indices, golden[f'mmdet_gt_inds_{b}'].long())
        assert_close(result.category_labels[on], golden[f'mmdet_labels_{b}'].long()[on])
        assert_close(result.max_iou_values[on].double(), golden[f'mmdet_max_overlaps_{b}'].double()[on], rtol=1e-5, atol=1e-7)


def test_squared_giou_is_the_default(golden):
    assert_close(golden.loss()(*golden.maps, *golden.objects)['loss_bbox'].double(), golden['squared_giou_loss_bbox'].double(), rtol=1e-6, atol=1e-9)


def test_megvii(golden):
    if 'megvii_loss_cls' not in golden: pytest.skip('Megvii has strides 8, 16 and 32 only')
    assigner = SimOTAAssigner(center_radius=1.5, center_only=True, iou_eps=1e-8)
    losses = golden.loss(box_loss='squared_iou', use_l1=True, assigner=assigner)(*golden.maps, *golden.objects)
    for name in LOSSES: assert_close(losses[f'loss_{name}'].double(), golden[f'megvii_loss_{name}'].double(), rtol=1e-6, atol=1e-9)
