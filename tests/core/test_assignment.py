"Laws of the assignment that are too slow or too dull for a page."
from pathlib import Path

import pytest
import torch
from random_batches import C, NUM_CELLS, SIZES, STRIDES, batch, in_order
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

import cjm_yolox_pytorch.assignment_sparse
from cjm_yolox_pytorch.assignment import GroundTruth, SimOTASettings, center_prior, pad_objects, simota
from cjm_yolox_pytorch.assignment_sparse import simota_sparse
from cjm_yolox_pytorch.boxes import cell_centers, decode, encode, flatten_levels, grid_priors
from cjm_yolox_pytorch.simota import SimOTAAssigner

CORNERS = grid_priors(SIZES, STRIDES)
CENTERS = cell_centers(CORNERS)
SETTINGS = [{}, dict(center_radius=1.5, center_only=True, iou_eps=1e-8), dict(center_radius=.3, candidate_topk=4),
            dict(max_mb=0), dict(cls_weight=0, iou_weight=1)]


@pytest.mark.parametrize('seed', range(6))
def test_assigner_equals_the_oracle(assign_loop, seed):
    maps, boxes, labels = batch([0, 1, 4, 12, 60], seed) # 60 objects have more slots than there are cells
    classes, raw, objectness = map(flatten_levels, maps)
    assigner = SimOTAAssigner(center_only=seed % 2 == 1)
    for b in range(5):
        scores, decoded = classes[b].sigmoid()*objectness[b].sigmoid(), decode(raw[b], CORNERS)
        got = assigner.assign(scores, CENTERS, decoded, boxes[b], labels[b]).ground_truth_box_indices
        assert_close(got - 1, assign_loop(scores, decoded, CENTERS, boxes[b], labels[b], assigner))


def test_assigner_equals_stored_cases_of_the_oracle():
    "Found once, by tools/make_cases.py, so that oracle and batch cannot drift together"
    cases = torch.load(Path(__file__).parent/'cases.pt', weights_only=True)
    assert len(cases) >= 5
    for case in cases:
        inputs = [case[name] for name in ('scores', 'priors', 'boxes', 'gt_boxes', 'gt_labels')]
        got = SimOTAAssigner(**case['settings']).assign(*inputs)
        assert_close(got.ground_truth_box_indices - 1, case['owner'].long())


def test_assigner_takes_eps_for_one_call():
    torch.manual_seed(0)
    objects = torch.tensor([[8., 8., 60., 60.], [20., 10., 70., 70.]]), torch.tensor([0, 1])
    image = torch.rand(NUM_CELLS, C), CENTERS, decode(torch.randn(NUM_CELLS, 4), CORNERS), *objects
    own, once, always = (SimOTAAssigner(iou_eps=eps).assign(*image, eps=other).ground_truth_box_indices
                         for eps, other in [(1e-7, None), (1e-7, 5.), (5., None)])
    assert_close(once, always)
    assert not torch.equal(own, once)


def tight(counts, seed, size=(2., 60.), noise=.15):
    """Maps of a network that finds its objects: cells near one predict its box.

    Small and crowded objects lack preferred cells."""
    maps, boxes, labels = batch(counts, seed)
    g = torch.Generator().manual_seed(seed)
    raw = []
    for b, n in enumerate(counts):
        corner = torch.rand(n, 2, generator=g)*torch.tensor([90., 74.])
        boxes[b] = torch.cat([corner, corner + size[0] + (size[1] - size[0])*torch.rand(n, 2, generator=g)**4], 1)
        target = torch.zeros(NUM_CELLS, 4)
        if n:
            middles = (boxes[b][:, :2] + boxes[b][:, 2:])/2
            target = encode(boxes[b][(CENTERS[:, None, :2] - middles).norm(dim=-1).argmin(1)], CORNERS)
        raw.append(target + torch.randn(NUM_CELLS, 4, generator=g)*noise)
    levels = torch.stack(raw).split([h*w for h, w in SIZES], dim=1)
    maps[1] = [m.mT.unflatten(2, size) for m, size in zip(levels, SIZES)]
    return maps, boxes, labels


def both_ways(settings, maps, boxes, labels):
    "Positives by the pairs that matter, and by all pairs"
    classes, raw, objectness = maps
    inputs = flatten_levels(objectness)[..., 0], decode(flatten_levels(raw), CORNERS), CENTERS
    gt = pad_objects(boxes, labels)
    return [in_order(assign(classes, *inputs, gt, settings)) for assign in (simota_sparse, simota)]


@pytest.mark.parametrize('kwargs', SETTINGS)
@pytest.mark.parametrize('seed', range(4))
def test_sparse_equals_dense(kwargs, seed):
    small = tight([40, 80], seed, size=(1., 6.), noise=.02)
    for data in (batch([0, 1, 12, 90], seed), tight([3, 0, 25, 60], seed), small):
        sparse, dense = both_ways(SimOTASettings(**kwargs), *data)
        assert sparse == dense and len(sparse) > 0


def test_small_objects_get_cells_that_they_do_not_prefer():
    "The test above would prove little if its small objects did not lack preferred cells, and did not fight for others"
    not_preferred = nobodys = 0
    for seed in range(4):
        maps, boxes, labels = tight([40, 80], seed, size=(1., 6.), noise=.02)
        sparse, _ = both_ways(SimOTASettings(), maps, boxes, labels)
        _, preferred = center_prior(CENTERS, pad_objects(boxes, labels))
        for (b, cell, g), _ in sparse:
            not_preferred += not preferred[b, g, cell]
            nobodys += not preferred[b, :, cell].any()
    assert not_preferred >= 8 and nobodys >= 8


@pytest.mark.parametrize('value', [100., torch.inf, torch.nan])
def test_positives_that_overflow_have_an_iou_of_0(value):
    "They learn the class with a target of 0, and not of NaN or less"
    maps, boxes, labels = batch([2, 1])
    for m in maps[1]: m[:] = value
    sparse, dense = both_ways(SimOTASettings(), maps, boxes, labels)
    assert sparse == dense and sparse and all(iou == 0 for _, iou in sparse)


class LargestTensor(TorchDispatchMode):
    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(t, torch.Tensor): self.bytes = max(self.bytes, t.numel()*t.element_size())
        return out


def crowd(smallest, largest):
    "An image of 512 pixels with 200 objects, as `simota` takes it"
    sizes, g = [(64, 64), (32, 32)], torch.Generator().manual_seed(0)
    corners = grid_priors(sizes, STRIDES[:2])
    maps = [torch.randn(1, C, h, w, generator=g) for h, w in sizes]
    objectness, raw = torch.randn(1, len(corners), generator=g), torch.randn(1, len(corners), 4, generator=g)
    corner = torch.rand(1, 200, 2, generator=g)*400
    boxes = torch.cat([corner, corner + smallest + (largest - smallest)*torch.rand(1, 200, 2, generator=g)], 2)
    gt = GroundTruth(boxes, torch.randint(C, (1, 200), generator=g), torch.ones(1, 200, dtype=torch.bool))
    return maps, objectness, decode(raw, corners), cell_centers(corners), gt


def with_limits(assign, inputs, limit, values):
    results, largest = [], []
    for value in values:
        with LargestTensor() as mode: results.append(limit(assign, inputs, value))
        largest.append(mode.bytes)
    assert_close(results[1], results[0])
    return largest


def test_dense_memory_is_bounded_by_max_mb():
    def limit(assign, inputs, mb): return assign(*inputs, SimOTASettings(max_mb=mb))
    unlimited, limited = with_limits(simota, crowd(5, 85), limit, (256, 4))
    assert unlimited > 4*2**20 > 4*limited # Several of them exist at once


def test_sparse_memory_is_bounded(monkeypatch):
    "The pairs that matter are many where objects are smaller than cells"
    def limit(assign, inputs, pairs):
        monkeypatch.setattr(cjm_yolox_pytorch.assignment_sparse, 'PAIRS_AT_ONCE', pairs)
        return assign(*inputs)
    unlimited, limited = with_limits(simota_sparse, crowd(1, 3), limit, (2**40, 2**17))
    assert unlimited > 4*2**20 > 2*limited


def test_sparse_memory_is_bounded_by_default():
    with LargestTensor() as mode: simota_sparse(*crowd(1, 3))
    assert mode.bytes <= 4*2**20


RADII = [(1.3, False), (1.3, True), (40., False), (40., True), (torch.inf, False)]


@pytest.mark.parametrize('radius, center_only', RADII)
def test_sparse_equals_dense_for_any_stride_and_radius(radius, center_only):
    "Both see the same geometry, also where strides and radii are not exact in binary"
    settings = SimOTASettings(radius, center_only=center_only)
    g, sizes = torch.Generator().manual_seed(0), [(5, 7), (3, 4)]
    corners = grid_priors(sizes, [12, 20.3])
    for _ in range(20):
        maps = [torch.randn(1, C, h, w, generator=g) for h, w in sizes]
        corner = torch.rand(6, 2, generator=g)*60
        boxes = torch.cat([corner, corner + 1 + 50*torch.rand(6, 2, generator=g)], 1)
        boxes[0] = torch.tensor([0, 0, 28.800003051757812, 60])
        gt = pad_objects([boxes], [torch.randint(C, (6,), generator=g)])
        objectness, raw = torch.randn(1, len(corners), generator=g), torch.randn(1, len(corners), 4, generator=g)
        inputs = maps, objectness, decode(raw, corners), cell_centers(corners), gt, settings
        assert in_order(simota_sparse(*inputs)) == in_order(simota(*inputs))
