"Laws of the loss that are too slow or too dull for a page."
import copy
import os
import pickle
import shutil
import socket
import warnings

import pytest
import torch
import torch.multiprocessing as mp
from random_batches import C, NAMES, NUM_CELLS, SIZES, STRIDES, as_padded, batch, gradients, pick, requiring_grad
from torch.testing import assert_close
from torchvision.ops import distance_box_iou_loss
from torchvision.transforms.v2.functional import convert_bounding_box_format
from torchvision.tv_tensors import BoundingBoxes, BoundingBoxFormat

import cjm_yolox_pytorch.simota
from cjm_yolox_pytorch.assignment import Matches, simota
from cjm_yolox_pytorch.assignment_sparse import simota_sparse
from cjm_yolox_pytorch.boxes import box_iou, cell_centers, decode, flatten_levels, grid_priors
from cjm_yolox_pytorch.loss import BOX_LOSSES, YOLOXLoss
from cjm_yolox_pytorch.simota import AssignResult, SimOTAAssigner

CORNERS = grid_priors(SIZES, STRIDES)
MEGVII = dict(box_loss='squared_iou', assigner=SimOTAAssigner(1.5, center_only=True, iou_eps=1e-8))


def one_image(maps, b):
    "Logits, objectness, corners and decoded boxes of image `b`, as `get_target_single` takes them"
    classes, raw, objectness = (flatten_levels(levels)[b] for levels in maps)
    return classes, objectness, CORNERS, decode(raw, CORNERS)


@pytest.mark.parametrize('counts', [[3, 0, 7, 1], [0, 0], [40]])
@pytest.mark.parametrize('kwargs', [{}, MEGVII])
def test_loss_of_a_batch_equals_one_by_one(counts, kwargs):
    maps, boxes, labels = batch(counts)
    loss = YOLOXLoss(C, use_l1=True, **kwargs)
    together, total, positives = loss(*maps, boxes, labels), dict.fromkeys(NAMES, 0.), 0
    for b in range(len(counts)):
        n = loss.get_target_single(*one_image(maps, b), boxes[b], labels[b])[-1]
        single = loss(*pick(maps, [b]), [boxes[b]], [labels[b]])
        for name in NAMES: total[name] += single[name]*max(n, 1)
        positives += n
    for name in NAMES: assert_close(together[name], total[name]/max(positives, 1))


def test_loss_does_not_depend_on_the_order_of_images_and_objects():
    maps, boxes, labels = batch([5, 0, 9])
    loss = YOLOXLoss(C, use_l1=True)
    straight = loss(*maps, boxes, labels)
    order = [2, 0, 1]
    assert_close(loss(*pick(maps, order), [boxes[i] for i in order], [labels[i] for i in order]), straight)
    assert_close(loss(*maps, [b.flip(0) for b in boxes], [l.flip(0) for l in labels]), straight)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('autocast', [False, True])
def test_loss_in_half_precision_is_the_fp32_loss_of_the_rounded_values(dtype, autocast):
    maps, boxes, labels = batch([5, 0, 9], dtype=dtype)
    loss = YOLOXLoss(C, use_l1=True)
    want, want_gradients = gradients(loss, [[m.float() for m in levels] for levels in maps], boxes, labels)
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        got, got_gradients = gradients(loss, maps, boxes, labels)
        plain = loss(*maps, boxes, labels)
    for name in NAMES:
        assert got[name].dtype is plain[name].dtype is torch.float32
        assert_close(got[name], want[name], rtol=1e-5, atol=0)
        assert_close(plain[name], want[name], rtol=1e-5, atol=0)
    for g, w in zip(got_gradients, want_gradients): assert_close(g.float(), w, rtol=1e-2, atol=1e-4)


def test_loss_in_fp64_stays_fp64_and_agrees_with_fp32():
    maps, boxes, labels = batch([5, 0, 9], dtype=torch.float64)
    loss = YOLOXLoss(C, use_l1=True)
    double = loss(*maps, boxes, labels)
    single = loss(*[[m.float() for m in levels] for levels in maps], boxes, labels)
    for name in NAMES:
        assert double[name].dtype is torch.float64
        assert_close(single[name].double(), double[name], rtol=1e-5, atol=0)


def some_boxes():
    "Raw predictions in fp64, boxes to learn that are not far from them, and their corners"
    g = torch.Generator().manual_seed(0)
    corners, raw = CORNERS[:40].double(), torch.randn(40, 4, generator=g, dtype=torch.float64)*.5
    return raw, decode(raw + torch.randn(40, 4, generator=g, dtype=torch.float64)*.2, corners), corners


@pytest.mark.parametrize('name', sorted({*BOX_LOSSES} - {'ciou'}))
def test_box_losses_have_the_gradients_of_finite_differences(name):
    raw, target, corners = some_boxes()
    assert torch.autograd.gradcheck(lambda r: BOX_LOSSES[name](decode(r, corners), target), raw.requires_grad_())


def test_ciou_loss_has_the_gradients_of_its_formula():
    "Its weight alpha is a constant by definition, which finite differences cannot know"
    raw, target, corners = some_boxes()
    pred = decode(raw, corners).requires_grad_()
    aspect = [torch.atan((b[:, 2] - b[:, 0])/(b[:, 3] - b[:, 1])) for b in (pred, target)]
    v = 4/torch.pi**2*(aspect[0] - aspect[1]).square()
    alpha = (v/(1 - box_iou(pred, target) + v)).detach()
    assert (alpha > .01).any()
    want, = torch.autograd.grad((distance_box_iou_loss(pred, target) + alpha*v).sum(), pred)
    got, = torch.autograd.grad(BOX_LOSSES['ciou'](pred, target).sum(), pred)
    assert_close(got, want, atol=1e-6, rtol=1e-6)


def test_loss_has_the_gradients_of_finite_differences():
    "Targets are constants: IoUs in class targets are not differentiated, so boxes are checked without classes"
    maps, boxes, labels = batch([3], dtype=torch.float64)
    maps = requiring_grad([[m[..., :4, :4] for m in levels] for levels in maps])
    boxes = [b.clamp(max=40) + torch.tensor([0, 0, 5, 5]) for b in boxes]
    loss = YOLOXLoss(C, use_l1=True)

    def total(part, *moving):
        levels = [moving if i == part else [m.detach() for m in fixed] for i, fixed in enumerate(maps)]
        losses = loss(*levels, boxes, labels)
        return sum(v for k, v in losses.items() if part != 1 or k != 'loss_cls')
    for part in range(3):
        assert torch.autograd.gradcheck(lambda *moving: total(part, *moving), tuple(maps[part]), atol=1e-6)


def test_predictions_of_empty_images_get_a_gradient():
    maps, boxes, labels = batch([0, 0, 0])
    losses, grads = gradients(YOLOXLoss(C, use_l1=True), maps, boxes, labels)
    assert losses['loss_cls'] == losses['loss_bbox'] == losses['loss_l1'] == 0 and losses['loss_obj'] > 0
    assert all(g is not None and not g.any() for g in grads[:6]) and all((g > 0).all() for g in grads[6:])


def test_objects_may_lie_outside_or_be_tiny():
    maps, _, _ = batch([3])
    loss = YOLOXLoss(C, use_l1=True)
    outside, small = torch.tensor([[300., 300., 340., 360.]]), torch.tensor([[10., 10., 10.5, 10.5]])
    for boxes in (outside, small, torch.cat([outside, small])):
        assert all(v.isfinite() for v in loss(*maps, [boxes], [torch.zeros(len(boxes))]).values())
    few = [[m[..., :1, :1] for m in levels] for levels in maps] # Three cells: fewer than K
    assert all(v.isfinite() for v in loss(*few, [torch.tensor([[0., 0., 30., 30.]])], [torch.tensor([1])]).values())


def test_check_decides_whether_values_are_checked():
    maps, boxes, labels = batch([2, 2])
    wrong = [labels[0], torch.tensor([0, C])]
    for check in (None, True):
        loss = YOLOXLoss(C, check=check)
        with pytest.raises(ValueError, match=f'image 1, row 1: label {C}'): loss(*maps, boxes, wrong)
    nan = [boxes[0], boxes[1]*torch.tensor([[1.], [torch.nan]])]
    with pytest.raises(ValueError, match='image 1, row 1: box nan'): YOLOXLoss(C)(*maps, nan, labels)
    YOLOXLoss(C, check=False)(*maps, [b[:, [2, 3, 0, 1]] for b in boxes], labels)


def test_values_on_other_devices_are_checked_only_if_asked_for():
    maps, boxes, labels = ([t.to('meta') for t in ts] for ts in (sum(batch([2, 2])[0], []), *batch([2, 2])[1:]))
    inputs = maps[:3], maps[3:6], maps[6:], boxes, labels
    for check in (None, False): assert YOLOXLoss(C, check=check)(*inputs)['loss_obj'].device.type == 'meta'
    with pytest.raises(NotImplementedError, match='meta'): YOLOXLoss(C, check=True)(*inputs) # It has no values


def test_weights_are_factors_of_the_losses():
    maps, boxes, labels = batch([3, 2])
    plain, weighted = (YOLOXLoss(C, *w, use_l1=True)(*maps, boxes, labels) for w in ([1, 1, 1, 1], [2, 3, 4, 5]))
    assert_close([weighted[k].item() for k in NAMES], [plain[k].item()*n for k, n in zip(NAMES, (3, 2, 4, 5))])


@pytest.mark.parametrize('dtype', [torch.uint8, torch.int8, torch.int32, torch.uint16, torch.float16, torch.float64])
def test_labels_may_have_any_numeric_dtype(dtype):
    maps, boxes, labels = batch([3, 2], num_classes=200)
    labels = [l % 100 for l in labels]
    want = YOLOXLoss(200)(*maps, boxes, labels)
    assert_close(YOLOXLoss(200)(*maps, boxes, [l.to(dtype) for l in labels]), want)


def test_boxes_may_have_any_format_and_dtype():
    maps, boxes, labels = batch([3, 2])
    boxes = [b.round() for b in boxes]
    want = YOLOXLoss(C)(*maps, boxes, labels)
    for form in ('XYXY', 'XYWH', 'CXCYWH'):
        plain = [BoundingBoxes(b, format='XYXY', canvas_size=(80, 96)) for b in boxes]
        converted = [convert_bounding_box_format(b, new_format=BoundingBoxFormat[form]) for b in plain]
        assert_close(YOLOXLoss(C)(*maps, converted, labels), want)
    assert_close(YOLOXLoss(C)(*maps, [b.long() for b in boxes], labels), want)


def test_methods_for_one_image_take_the_arguments_of_0_2():
    torch.manual_seed(0)
    loss, thin = YOLOXLoss(C), torch.tensor([[8., 8., 8., 24.]])
    assert loss.get_l1_target(torch.zeros(1, 4), thin, CORNERS[:1], epsilon=1e-2)[0, 2].exp() == pytest.approx(1e-2)
    index = torch.tensor([0, 1, -1, 0])
    sampled = loss.sample(AssignResult(1, index, torch.zeros(4), None), CORNERS[:4], thin)
    assert sampled.negative_indices.tolist() == [0, 3] and sampled.is_positive_ground_truth.tolist() == [0]
    image = torch.zeros(NUM_CELLS, 5), torch.zeros(NUM_CELLS), CORNERS, CORNERS
    with pytest.raises(ValueError, match=r'class_preds has shape \(159, 5\), but \[A, 4\]'):
        loss.get_target_single(*image, thin, torch.tensor([0]))


def test_maps_of_the_wrong_kind_are_named():
    maps, boxes, labels = batch([1])
    flat, alone = [[m[0] for m in levels] for levels in maps], [levels[0] for levels in maps]
    with pytest.raises(ValueError, match=r'class_scores\[0\] has shape \(4, 10, 12\), but \[B, C, H, W\]'):
        YOLOXLoss(C)(*flat, boxes, labels)
    with pytest.raises(ValueError, match='class_scores is a tensor: give a list of 3 maps'):
        YOLOXLoss(C)(*alone, boxes, labels)


def test_box_without_a_list_is_refused():
    maps, boxes, labels = batch([1])
    alone = [torch.tensor([0., 0., 30., 30.])]
    with pytest.raises(ValueError, match=r'image 0: ground_truth_bboxes has shape \(4,\), but \[G, 4\]'):
        YOLOXLoss(C)(*maps, alone, labels)
    with pytest.raises(ValueError, match=r'image 0: ground_truth_bboxes_ignore has shape \(4,\), but \[I, 4\]'):
        YOLOXLoss(C)(*maps, boxes, labels, ground_truth_bboxes_ignore=alone)


def test_ignored_regions_change_objectness_alone():
    maps, boxes, labels = batch([3, 2])
    loss = YOLOXLoss(C, use_l1=True)
    plain, plain_grads = gradients(loss, maps, boxes, labels)
    regions = [torch.tensor([[0., 0., 50., 100.]]), torch.zeros(0, 4)]
    ignoring, grads = gradients(loss, maps, boxes, labels, ground_truth_bboxes_ignore=regions)
    assert ignoring['loss_obj'] < plain['loss_obj']
    for name in ('loss_cls', 'loss_bbox', 'loss_l1'): assert_close(ignoring[name], plain[name])
    for g, p in zip(grads[:6], plain_grads[:6]): assert_close(g, p)
    assert_close([g[1] for g in grads[6:]], [p[1] for p in plain_grads[6:]])
    silent = grads[6][0, 0, :, :6]
    assert ((silent == 0) | (silent < 0)).all() # Nothing, or a positive that should be higher
    classes, _, _, decoded = one_image(maps, 0)
    objects = boxes[0], labels[0], regions[0]
    result = loss.assigner.assign(classes.sigmoid(), cell_centers(CORNERS), decoded, *objects)
    index = result.ground_truth_box_indices
    assert (index == -1).any() and (result.category_labels[index < 1] == -1).all()


@pytest.fixture
def padded(monkeypatch):
    "The path of accelerators: all pairs, and slots with a mask"
    monkeypatch.setattr(cjm_yolox_pytorch.simota, 'simota_sparse', simota)


def test_own_loss_functions_get_only_positives(padded):
    maps, boxes, labels = batch([5, 0, 9])
    loss, seen = YOLOXLoss(C, use_l1=True), {}
    want = loss(*maps, boxes, labels)
    P = sum(loss.get_target_single(*one_image(maps, b), boxes[b], labels[b])[-1] for b in range(3))
    for name in ('bbox', 'class', 'objectness', 'l1'):
        def spy(pred, target, name=name, func=getattr(loss, f'{name}_loss_func')):
            seen[name] = len(pred), len(target)
            return func(pred, target)
        setattr(loss, f'{name}_loss_func', spy)
    assert_close(loss(*maps, boxes, labels), want)
    assert seen == {'bbox': (P, P), 'class': (P, P), 'l1': (P, P), 'objectness': (3*NUM_CELLS, 3*NUM_CELLS)}


@pytest.mark.parametrize('name', BOX_LOSSES)
@pytest.mark.parametrize('path', ['compact', 'padded'])
def test_overflow_in_background_cells_does_not_spread(name, path, request):
    if path == 'padded': request.getfixturevalue('padded')
    loss = YOLOXLoss(C, use_l1=True, box_loss=name)
    maps, _, labels = batch([2])
    boxes = [torch.tensor([[8., 8., 30., 30.], [12., 20., 40., 44.]])]
    want, want_grads = gradients(loss, maps, boxes, [labels[0]])
    for value in (100., torch.inf, torch.nan): # In the corner that is farthest from both
        for m in maps[1][:2]: m[0, :, -1, -1] = value
        got, grads = gradients(loss, maps, boxes, [labels[0]])
        assert_close(got, want)
        assert_close(grads, want_grads)


def test_slots_with_a_mask_equal_picked_rows():
    "The accelerator's path, traced as one graph, against the CPU's"
    maps, boxes, labels = batch([5, 0, 9])
    for loss in (YOLOXLoss(C, use_l1=True), YOLOXLoss(C, use_l1=True, box_loss='ciou')):
        regions = [torch.tensor([[0., 0., 50., 100.]]), torch.zeros(0, 4), torch.zeros(0, 4)]
        want, want_grads = gradients(loss, maps, boxes, labels, ground_truth_bboxes_ignore=regions)
        torch._dynamo.reset()
        traced = torch.compile(loss, fullgraph=True, backend='aot_eager')
        got, grads = gradients(traced, maps, boxes, labels, ground_truth_bboxes_ignore=regions)
        assert_close(got, want)
        assert_close(grads, want_grads)


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which('g++') or shutil.which('clang++')), reason='torch.compile needs a C++ compiler')
def test_compiled_loss_equals_eager_loss():
    loss = YOLOXLoss(C, use_l1=True)
    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, dynamic=False)
    for seed in (0, 1):
        maps, boxes, labels = batch([6, 2], seed)
        want, want_grads = gradients(loss, maps, boxes, labels)
        got, grads = gradients(compiled, maps, boxes, labels)
        assert_close(got, want)
        assert_close(grads, want_grads)


def test_loss_can_be_pickled_and_copied():
    maps, boxes, labels = batch([3, 1])
    loss = YOLOXLoss(C, use_l1=True, box_loss='giou', assigner=SimOTAAssigner(1.5))
    for other in (pickle.loads(pickle.dumps(loss)), copy.deepcopy(loss)):
        assert_close(other(*maps, boxes, labels), loss(*maps, boxes, labels))


def _rank(rank, world, port, results, every): # One of two processes, each with its own image
    os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    torch.distributed.init_process_group('gloo', rank=rank, world_size=world)
    for i, counts in enumerate(every):
        maps, boxes, labels = batch(counts)
        losses, grads = gradients(YOLOXLoss(C), pick(maps, [rank]), boxes[rank:rank+1], labels[rank:rank+1])
        results[i, rank] = [v.item() for v in losses.values()], [g.numpy() for g in grads]
    if rank == 0: # A validation on one rank alone must not wait for the other
        with torch.no_grad(): YOLOXLoss(C)(*pick(maps, [0]), boxes[:1], labels[:1])
    torch.distributed.destroy_process_group()


def test_ranks_divide_by_their_mean_number_of_positives():
    "The mean over ranks, which is what distributed training makes of gradients, is the whole batch"
    every = [[8, 0], [0, 0]]
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    with mp.Manager() as manager:
        results = manager.dict()
        mp.spawn(_rank, (2, port, results, every), nprocs=2)
        results = dict(results)
    for i, counts in enumerate(every):
        losses, grads = zip(*[results[i, rank] for rank in range(2)])
        want, want_grads = gradients(YOLOXLoss(C), *batch(counts))
        assert_close([sum(v)/2 for v in zip(*losses)], [v.item() for v in want.values()])
        for level, w in enumerate(want_grads):
            assert_close(torch.stack([torch.from_numpy(g[level])[0] for g in grads])/2, w)


def test_own_assigner_may_return_slots_or_pairs_by_ascending_cells():
    maps, boxes, labels = batch([3, 2])

    class Own(SimOTAAssigner):
        order = staticmethod(lambda m: m)
        def match(self, *args): return self.order(simota_sparse(*args))
    own, plain = YOLOXLoss(C, assigner=Own()), YOLOXLoss(C)(*maps, boxes, labels)
    assert_close(own(*maps, boxes, labels), plain)
    own.assigner.order = lambda m: Matches(*(t.flip(0) for t in m[:4]))
    with pytest.raises(ValueError, match='cells are not in ascending order'): own(*maps, boxes, labels)
    own.assigner.match = lambda *args: simota(*args)
    assert_close(own(*maps, boxes, labels), plain)


def test_labels_may_have_different_dtypes_in_one_batch():
    maps, boxes, labels = batch([3, 2])
    mixed = [labels[0].to(torch.uint16), labels[1]]
    assert_close(YOLOXLoss(C)(*maps, boxes, mixed), YOLOXLoss(C)(*maps, boxes, labels))
    mixed[1] = labels[1] + C
    with pytest.raises(ValueError, match='image 1, row 0: label'): YOLOXLoss(C)(*maps, boxes, mixed)


class Delegates: # An assigner of a script for 0.2, for one image at a time
    def __init__(self): self.calls = 0

    def assign(self, *args, **kwargs):
        self.calls += 1
        return SimOTAAssigner().assign(*args, **kwargs)


class Nearest(SimOTAAssigner): # With its own constructor and its own rule
    def __init__(self): super().__init__(center_radius=1.5)

    def assign(self, scores, priors, boxes, gt_boxes, gt_labels, *args, **kwargs):
        result = super().assign(scores, priors, boxes, gt_boxes, gt_labels, *args, **kwargs)
        result.ground_truth_box_indices[:] = 0
        for g, (x1, y1, x2, y2) in enumerate(gt_boxes.tolist()):
            nearest = (priors[:, :2] - torch.tensor([(x1 + x2)/2, (y1 + y2)/2])).norm(dim=1).argmin()
            result.ground_truth_box_indices[nearest] = g + 1
            result.max_iou_values[nearest] = .5
            result.category_labels[nearest] = gt_labels[g]
        return result


def test_own_assigner_for_one_image_is_asked_for_each():
    maps, boxes, labels = batch([3, 0, 5])
    same = YOLOXLoss(C, use_l1=True, assigner=Delegates())
    want, grads = gradients(YOLOXLoss(C, use_l1=True), maps, boxes, labels)
    got, their = gradients(same, maps, boxes, labels)
    assert_close(got, want, rtol=1e-6, atol=1e-6)
    assert_close(their, grads, rtol=1e-6, atol=1e-6)
    assert same.assigner.calls == 3


def test_own_assigner_decides_in_batches_and_for_one_image():
    maps, boxes, labels = batch([3, 0, 5])
    few, image = YOLOXLoss(C, assigner=Nearest()), one_image(maps, 0)
    cells = torch.rand(4, C), torch.rand(4, 4), torch.rand(4, 4)
    one = few.assigner.assign(*cells, torch.tensor([[0., 0., 1., 1.]]), torch.tensor([0]), eps=1e-6)
    assert one.ground_truth_box_indices.sum() == 1
    foreground, classes, *_, P = few.get_target_single(*image, boxes[0], labels[0])
    assert P == foreground.sum() == 3 and classes.amax() == .5
    bce = torch.nn.functional.binary_cross_entropy_with_logits(image[0][foreground], classes, reduction='sum')
    assert_close(few(*pick(maps, [0]), boxes[:1], labels[:1])['loss_cls'], bce/3)


def test_mean_loss_over_no_positives_is_zero():
    maps, boxes, labels = batch([0, 0])
    loss = YOLOXLoss(C)
    loss.bbox_loss_func = torch.nn.SmoothL1Loss()
    losses, grads = gradients(loss, maps, boxes, labels)
    assert losses['loss_bbox'] == 0 and all(g is not None and g.isfinite().all() for g in grads)


def test_check_works_in_a_compiled_loss():
    "It takes itself out of the graph"
    maps, boxes, labels = batch([3, 2])
    boxes[1] = boxes[1][:, [2, 1, 0, 3]]
    torch._dynamo.reset()
    compiled = torch.compile(YOLOXLoss(C, check=True), backend='eager')
    with pytest.raises(ValueError, match='image 1, row 0: box'): compiled(*maps, boxes, labels)


REGIONS = [torch.tensor([[0., 0., 50., 100.]]), torch.zeros(0, 4), torch.tensor([[9., 9., 20., 20.]]*2)]


@pytest.mark.parametrize('counts', [[5, 0, 9], [0, 0, 0], [1, 0, 0], [40, 3, 2]])
@pytest.mark.parametrize('path', ['compact', 'slots'])
def test_padded_objects_equal_lists_to_the_bit(counts, path, request):
    if path == 'slots': request.getfixturevalue('padded')
    for kwargs in ({}, MEGVII, dict(assigner=Nearest())):
        loss = YOLOXLoss(C, use_l1=True, **kwargs)
        maps, boxes, labels = batch(counts, seed=len(kwargs))
        want = gradients(loss, maps, boxes, labels, ground_truth_bboxes_ignore=REGIONS)
        for filler, more in ((torch.nan, 0), (-1., 3)):
            size = max(counts) + more
            objects = as_padded(boxes, filler, size), as_padded(labels, -1, size)
            regions = as_padded(REGIONS, 0., 2 + more)
            got = gradients(loss, maps, *objects, ground_truth_bboxes_ignore=regions)
            assert_close(got, want, rtol=0, atol=0)


def test_padding_may_stand_anywhere_and_have_any_signed_dtype():
    maps, boxes, labels = batch([3, 2])
    want = YOLOXLoss(C)(*maps, boxes, labels)
    padded = as_padded(boxes, 0., 5).flip(1), as_padded(labels, -1, 5).flip(1)
    reversed_lists = [b.flip(0) for b in boxes], [l.flip(0) for l in labels]
    assert_close(YOLOXLoss(C)(*maps, *padded), YOLOXLoss(C)(*maps, *reversed_lists), rtol=0, atol=0)
    for dtype in (torch.int8, torch.int32, torch.float16, torch.float64):
        assert_close(YOLOXLoss(C)(*maps, as_padded(boxes, 0.), as_padded(labels, -1).to(dtype)), want, rtol=0, atol=0)


def test_tensors_without_padding_may_be_mixed_with_lists():
    maps, boxes, labels = batch([3, 3])
    want = YOLOXLoss(C)(*maps, boxes, labels)
    for some_boxes in (boxes, torch.stack(boxes)):
        for some_labels in (labels, torch.stack(labels)):
            assert_close(YOLOXLoss(C)(*maps, some_boxes, some_labels), want, rtol=0, atol=0)


def test_labels_of_padded_objects_are_checked():
    maps, boxes, labels = batch([3, 2])
    for bad in (C, -2, .5):
        padded = as_padded(boxes, 0.), as_padded([l.double() for l in labels], -1)
        padded[1][1, 1] = bad
        with pytest.raises(ValueError, match=f'image 1, row 1: label {bad}, but'): YOLOXLoss(C)(*maps, *padded)
    padded = as_padded(boxes, 0.), as_padded(labels, 0) # A class where -1 was meant
    with pytest.raises(ValueError, match='image 1, row 2: box 0, 0, 0, 0, but boxes need an area'):
        YOLOXLoss(C)(*maps, *padded)


def test_row_of_a_padded_object_is_its_row_in_the_tensor():
    maps, boxes, labels = batch([3, 2])
    padded = as_padded(boxes, torch.nan).flip(1), as_padded(labels, -1).flip(1) # The second image begins with padding
    padded[1][1, 1] = C
    with pytest.raises(ValueError, match=f'image 1, row 1: label {C}, but'): YOLOXLoss(C)(*maps, *padded)


def test_padding_in_lists_is_refused():
    maps, boxes, labels = batch([3, 2])
    rows = [*as_padded(boxes, 0.)], [*as_padded(labels, -1)]
    with pytest.raises(ValueError, match='image 1, row 2: box 0, 0, 0, 0'): YOLOXLoss(C)(*maps, *rows)
    with pytest.raises(ValueError, match='image 1, row 2: label -1, but'):
        YOLOXLoss(C)(*maps, [*as_padded(boxes, 0.) + torch.tensor([0, 0, 9, 9])], rows[1])


@pytest.mark.parametrize('shapes, message', [
    (((2, 3, 5), (2, 3)), r'image 0: ground_truth_bboxes has shape \(3, 5\), but \[G, 4\]'),
    (((3, 3, 4), (3, 3)), 'ground_truth_bboxes has 3 tensors for 2 images'),
    (((2, 3, 4), (2, 2)), 'image 0: 3 boxes but 2 labels'),
    (((2, 3, 4), (2, 3, 1)), 'image 0: ground_truth_labels has shape')])
def test_shapes_of_padded_objects_are_checked(shapes, message):
    with pytest.raises(ValueError, match=message): YOLOXLoss(C)(*batch([3, 3])[0], *map(torch.ones, shapes))


def test_loss_refuses_boxes_in_fractions():
    maps, boxes, labels = batch([3, 2])
    boxes = [b.clamp(min=0)/96 for b in boxes]
    message = 'no box reaches beyond 1.5 pixels: give boxes in pixels of the input'
    for objects in ((boxes, labels), (as_padded(boxes, 500.), as_padded(labels, -1))):
        with pytest.raises(ValueError, match=message): YOLOXLoss(C)(*maps, *objects)
    YOLOXLoss(C, check=False)(*maps, boxes, labels)


@pytest.fixture
def silent():
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        yield


def test_loss_takes_one_tiny_object(silent):
    maps, boxes, _ = batch([1, 0])
    for box in ([0., 0., 1., 1.], [.2, .3, 1.3, 1.4]):
        YOLOXLoss(C)(*maps, [torch.tensor([box]), boxes[1]], [torch.zeros(1), torch.zeros(0)])


def test_loss_warns_once_of_one_box_in_fractions():
    maps, boxes, labels = batch([1, 0])
    loss = YOLOXLoss(C)
    with pytest.warns(UserWarning, match='in pixels of the input, not in fractions') as said:
        for _ in range(2): loss(*maps, [torch.tensor([[.2, .3, .6, .7]]), boxes[1]], labels)
    assert len(said) == 1


def test_loss_warns_once_of_boxes_of_the_unscaled_photo():
    maps, boxes, labels = batch([3, 0, 2])
    loss = YOLOXLoss(C)
    with pytest.warns(UserWarning, match='outside the input in most images') as said:
        for _ in range(2): loss(*maps, [b + 300 for b in boxes], labels)
    assert len(said) == 1 and len(pickle.loads(pickle.dumps(loss)).told) == len(loss.told)


def test_loss_warns_once_of_probabilities():
    maps, boxes, labels = batch([3, 2])
    for part in (0, 2):
        loss = YOLOXLoss(C)
        levels = [[m.sigmoid() for m in some] if i == part else some for i, some in enumerate(maps)]
        with pytest.warns(UserWarning, match='look like probabilities') as said:
            for _ in range(2): loss(*levels, boxes, labels)
        assert len(said) == 1


def test_ordinary_inputs_cause_no_warning(silent):
    maps, boxes, labels = batch([3, 2])
    for levels in (maps, [[m*0 for m in some] for some in maps]): YOLOXLoss(C)(*levels, boxes, labels)


def test_ignored_regions_are_checked():
    maps, boxes, labels = batch([3, 2])
    for bad, message in (([20., 5, 9, 9], '20, 5, 9, 9, but boxes are xyxy'), ([0, 0, torch.nan, 9], '0, 0, nan')):
        for regions in ([torch.zeros(1, 4), torch.tensor([bad])], torch.tensor([[[0., 0, 0, 0]], [bad]])):
            with pytest.raises(ValueError, match=f'image 1, row 0: region {message}'):
                YOLOXLoss(C)(*maps, boxes, labels, ground_truth_bboxes_ignore=regions)


@pytest.mark.parametrize('name', ['bbox_decode', 'flatten_and_concat', 'get_l1_target', 'get_target_single', 'sample'])
def test_method_for_one_image_set_on_a_loss_is_refused(name):
    "In 0.2 the loss of a batch was computed with it; it would be ignored"
    with pytest.raises(TypeError, match=f'{name} of a loss is never called: override forward'):
        setattr(YOLOXLoss(2), name, lambda *args: None)
    class Own(YOLOXLoss):
        def forward(self, *args): return getattr(self, name)(*args)
    loss = Own(2)
    setattr(loss, name, lambda *args: 7)
    assert loss() == 7
