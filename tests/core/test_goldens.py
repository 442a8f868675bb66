"""Equal to the last digits of fp32 to mmdetection 3.3.0 (losses, gradients, assignments) and Megvii's YOLOX (losses).

The values of mmdetection come from fp64, but for its IoUs; those of Megvii from fp32 (tests/goldens/README.md).
"""
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from cjm_yolox_pytorch.boxes import cell_centers, decode, flatten_levels, grid_priors
from cjm_yolox_pytorch.loss import YOLOXLoss
from cjm_yolox_pytorch.simota import SimOTAAssigner

GOLDENS = Path(__file__).resolve().parents[1]/'goldens'
NAMES = sorted(p.stem for p in GOLDENS.glob('*.npz'))
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

    def check_losses(self, losses, reference):
        for name in LOSSES:
            want = self[f'{reference}_loss_{name}'].double()
            assert_close(losses[f'loss_{name}'].double(), want, rtol=1e-6, atol=1e-9)


@pytest.fixture(params=NAMES)
def golden(request): return Golden(GOLDENS/f'{request.param}.npz')


def test_goldens_are_14():
    assert len(NAMES) == 14


@pytest.mark.parametrize('dtype, rtol', [(torch.float32, 1e-5), (torch.float64, 1e-6)])
def test_losses_and_gradients_are_those_of_mmdetection(golden, dtype, rtol):
    maps = [[m.to(dtype, copy=True).requires_grad_() for m in levels] for levels in golden.maps]
    losses = golden.loss(box_loss='squared_iou', use_l1=True)(*maps, *golden.objects)
    golden.check_losses(losses, 'mmdet')
    sum(losses.values()).backward()
    for name, levels in zip(('cls', 'box', 'obj'), maps):
        for i, m in enumerate(levels):
            want = golden[f'mmdet_grad_{name}_{i}'].double()
            assert (m.grad - want).norm() <= rtol*want.norm() + 1e-9, f'{name}_{i}'


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_assignment_is_that_of_mmdetection(golden, dtype):
    classes, raw, objectness = [flatten_levels(levels).to(dtype) for levels in golden.maps]
    corners = grid_priors([m.shape[2:] for m in golden.maps[0]], golden.strides, dtype=dtype)
    for b, (gt_boxes, gt_labels) in enumerate(zip(*golden.objects)):
        scores, boxes = classes[b].sigmoid()*objectness[b].sigmoid(), decode(raw[b], corners)
        result = SimOTAAssigner().assign(scores, cell_centers(corners), boxes, gt_boxes.to(dtype), gt_labels)
        on = result.ground_truth_box_indices > 0
        if len(gt_labels) == 0:
            assert not on.any()
            continue
        assert_close(result.ground_truth_box_indices, golden[f'mmdet_gt_inds_{b}'].long())
        assert_close(result.category_labels[on], golden[f'mmdet_labels_{b}'].long()[on])
        want = golden[f'mmdet_max_overlaps_{b}'].double()[on]
        assert_close(result.max_iou_values[on].double(), want, rtol=1e-5, atol=1e-7)


def test_box_loss_is_that_of_0_2_by_default(golden):
    losses = golden.loss()(*golden.maps, *golden.objects)
    assert_close(losses['loss_bbox'].double(), golden['squared_giou_loss_bbox'].double(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize('name', [name for name in NAMES if name not in ('four_levels', 'one_level')])
def test_losses_are_those_of_megvii(name):
    golden = Golden(GOLDENS/f'{name}.npz')
    assigner = SimOTAAssigner(center_radius=1.5, center_only=True, iou_eps=1e-8)
    losses = golden.loss(box_loss='squared_iou', use_l1=True, assigner=assigner)(*golden.maps, *golden.objects)
    golden.check_losses(losses, 'megvii')
