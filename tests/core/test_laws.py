"Laws that hold for every input: hypothesis looks for one that breaks them. conftest.py says how many it tries."
import math
from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cache

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, event, example, given, settings
from torch.testing import assert_close

import cjm_yolox_pytorch.simota
from cjm_yolox_pytorch.boxes import box_ciou, box_giou, box_iou, cell_centres, decode, encode, flatten_levels, grid_priors
from cjm_yolox_pytorch.files.letterbox import letterbox_scale, letterbox_size, unletterbox
from cjm_yolox_pytorch.loss import BOX_LOSSES, YOLOXLoss, _gather_objects, _losses
from cjm_yolox_pytorch.sampling import class_targets
from cjm_yolox_pytorch.assignment import pad_objects, rank_key, simota, topk_values
from cjm_yolox_pytorch.assignment_sparse import simota_sparse
from cjm_yolox_pytorch.simota import SimOTAAssigner
from cjm_yolox_pytorch.utils import generate_output_grids

NAMES = ['loss_cls', 'loss_bbox', 'loss_obj', 'loss_l1']
HALF, SINGLE, DOUBLE = (torch.float16, torch.bfloat16), torch.float32, torch.float64
ASSIGNERS = [{}, dict(center_radius=1.5, center_only=True, iou_eps=1e-8), dict(center_radius=.5, candidate_topk=3), dict(iou_weight=1., cls_weight=0.), dict(candidate_topk=40)]


# ---- Problems: what a network says about a batch, and what is there

@dataclass
class Problem:
    "The input of a loss, and its settings"
    strides:list
    sizes:list # L pairs (height, width) in cells
    num_classes:int
    maps:list = field(repr=False) # Class, box and objectness maps, L each. `said` is shorter
    boxes:list
    labels:list
    assigner:dict = field(default_factory=dict)
    box_loss:str = 'squared_giou'
    said:list = None # What kinds of numbers maps hold

    @property
    def corners(self): return grid_priors(self.sizes, self.strides, dtype=self.precise)
    @property
    def precise(self): return torch.promote_types(self.maps[0][0].dtype, SINGLE) # What is computed in
    @property
    def objects(self): return self.boxes, self.labels
    def of(self, images): return replace(self, maps=[[m[images] for m in levels] for levels in self.maps], boxes=[self.boxes[b] for b in images], labels=[self.labels[b] for b in images])
    def loss(self, **kwargs): return YOLOXLoss(self.num_classes, use_l1=True, strides=self.strides, box_loss=self.box_loss, assigner=SimOTAAssigner(**self.assigner), **kwargs)


# In eighths of a pixel, all of which have an exact sum in fp32: borders that touch centres do so exactly
SIDES = st.one_of(st.integers(1, 640).map(lambda n: n/8), st.sampled_from([2.**-10, 8., 16., 2.**13]))
BOXES = st.builds(lambda x, y, w, h: [x/8, y/8, x/8 + w, y/8 + h], st.integers(-100, 700), st.integers(-100, 700), SIDES, SIDES)


def boxes_within(low, high):
    "Also in eighths"
    side = st.tuples(st.integers(8*low, 8*high - 1), st.integers(8*low, 8*high - 1)).map(lambda ends: (min(ends)/8, (max(ends) + 1)/8))
    return st.builds(lambda x, y: [x[0], y[0], x[1], y[1]], side, side)


@st.composite
def problems(draw, images=(1, 3), levels=(1, 5), classes=(1, 2, 5, 80), dtypes=(*HALF, SINGLE, DOUBLE), assigners=ASSIGNERS, shape=None, canvas=None):
    "`shape` fixes strides and sizes; with `canvas` every level has as many pixels as that many of the largest cells, in two by two of which all objects lie"
    L = draw(st.integers(*levels))
    strides = draw(st.lists(st.sampled_from([4, 8, 12, 16, 32, 64]), min_size=L, max_size=L)) # In any order, and twice
    sizes = draw(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=L, max_size=L)) # Not what an image would have
    if canvas: strides = [2**(3 + i) for i in range(L)]; sizes = [(canvas*strides[-1]//s,)*2 for s in strides]
    if shape: strides, sizes = shape
    B, C, dtype = draw(st.integers(*images)), draw(st.sampled_from(classes)), draw(st.sampled_from(dtypes))
    boxes, labels, some = [], [], boxes_within(3*strides[-1], 5*strides[-1]) if canvas else BOXES
    for _ in range(B):
        rows = draw(st.lists(some, min_size=draw(st.sampled_from([0, 1, 2, 5])), max_size=6))
        crowd = 1 if canvas else draw(st.sampled_from([1, 1, 1, 1, 9])) # Once more, a little further on
        boxes.append(torch.cat([torch.tensor(rows).reshape(-1, 4) + 3*i/8 for i in range(crowd)]))
        labels.append(torch.tensor(draw(st.lists(st.integers(0, C - 1), min_size=len(rows), max_size=len(rows))), dtype=torch.int64).repeat(crowd))
    said = [(draw(st.sampled_from(kinds)), draw(st.integers(0, 999))) for kinds in (LOGITS, RAW, LOGITS)]
    maps = [draw(predictions(*kind, channels, B, sizes, boxes, strides)) for kind, channels in zip(said, (C, 4, 1))]
    return Problem(strides, sizes, C, [[m.to(dtype) for m in levels] for levels in maps], boxes, labels, draw(st.sampled_from(assigners)), draw(st.sampled_from(sorted(BOX_LOSSES))), said)


LOGITS, RAW = ['unsure', 'equal', 'saturated', 'some saturated'], ['normal', 'learnt', 'learnt', 'equal', 'extreme']


@st.composite
def predictions(draw, kind, seed, channels, B, sizes, boxes, strides):
    "L maps [B, channels, H, W] in fp64. Numbers come from a seed: there are too many to draw each"
    g, A = torch.Generator().manual_seed(seed), sum(h*w for h, w in sizes)
    flat = torch.randn(B, A, channels, generator=g, dtype=DOUBLE)
    if kind in ('unsure', 'some saturated'): flat = (2*flat).clamp(-6, 6)
    if kind == 'equal': flat = torch.full_like(flat, draw(st.sampled_from([0., .5, -2.])))
    if kind == 'saturated': flat = 1e4*flat.sign()
    if kind == 'some saturated': flat[torch.rand(B, A, generator=g) < .3] = draw(st.sampled_from([-1e4, 1e4]))
    if kind == 'extreme': flat = 40*torch.rand(flat.shape, generator=g, dtype=DOUBLE) - 20
    if kind == 'learnt': # Cells near an object predict its box, or nearly
        corners, noise = grid_priors(sizes, strides, dtype=DOUBLE), draw(st.sampled_from([0., .02, .3]))
        for b, own in enumerate(boxes):
            if not len(own): continue
            nearest = (cell_centres(corners)[:, None, :2] - (own[:, :2] + own[:, 2:])/2).norm(dim=-1).argmin(1)
            flat[b] = (encode(own[nearest].double(), corners) + noise*flat[b]).clamp(-20, 20)
    return [m.mT.unflatten(2, size) for m, size in zip(flat.split([h*w for h, w in sizes], dim=1), sizes)]


def gradients(loss, maps, *objects, **kwargs):
    leaves = [[m.detach().clone().requires_grad_() for m in levels] for levels in maps]
    losses = loss(*leaves, *objects, **kwargs)
    sum(losses.values()).backward()
    return losses, [[m.grad for m in levels] for levels in leaves]


def matches_of(p, assign=simota_sparse, objects=None, **changed):
    classes, raw, objectness = [[m.to(p.precise) for m in levels] for levels in p.maps]
    padded = pad_objects([b.to(p.precise) for b in p.boxes], p.labels) if objects is None else objects
    return assign(classes, flatten_levels(objectness)[..., 0], decode(flatten_levels(raw), p.corners), cell_centres(p.corners), *padded, SimOTAAssigner(**{**p.assigner, **changed}))


def positives(matches):
    "Rows of image, cell and object, and their IoUs"
    image, cells, objects, ious, on = matches
    if on is not None: image, cells, objects, ious = (t[on] for t in (image.expand_as(cells), cells, objects, ious))
    return torch.stack([image, cells, objects], 1), ious


def owners(p, *args, **kwargs):
    "[B][A] numbers of objects, or -1"
    rows, _ = positives(matches_of(p, *args, **kwargs))
    owner = torch.full((len(p.boxes), len(p.corners)), -1)
    owner[rows[:, 0], rows[:, 1]] = rows[:, 2]
    return owner.tolist()


# ---- The slow oracle

def slow_choices(p, b):
    """For each cell of image `b` the objects that may own it (-1: none), from DESIGN's words in Python's floats.
    Where nothing ties there is one. Costs nearer to each other than rounding are ties: other hardware may choose otherwise."""
    s = SimOTAAssigner(**p.assigner)
    loose, tiny = (2e-3, 2e-5) if p.precise == SINGLE else (1e-7, 1e-6)
    classes, raw, objectness = [flatten_levels(levels)[b].to(p.precise) for levels in p.maps]
    boxes, centres = decode(raw, p.corners).tolist(), cell_centres(p.corners).tolist() # These have laws of their own
    objects, labels = p.boxes[b].tolist(), p.labels[b].tolist()
    A, G = range(len(centres)), range(len(objects))

    def sigmoid(x): return 1/(1 + math.exp(-x)) if x > -700 else 0.
    def log(x): return max(math.log(x), -100) if x > 0 else -100
    q = [[math.sqrt(sigmoid(c)*sigmoid(o)) for c in row] for row, (o,) in zip(classes.tolist(), objectness.tolist())]
    nothing = [sum(-log(1 - v) for v in row) for row in q]

    def iou(g, a):
        (x1, y1, x2, y2), (u1, v1, u2, v2) = objects[g], boxes[a]
        shared = max(0, min(x2, u2) - max(x1, u1))*max(0, min(y2, v2) - max(y1, v1))
        return shared/max((x2 - x1)*(y2 - y1) + (u2 - u1)*(v2 - v1) - shared, 1e-6)

    def prior(g, a): # Inside, near
        (x1, y1, x2, y2), (x, y, stride, _) = objects[g], centres[a]
        near = abs(x - (x1 + x2)/2) < s.center_radius*stride and abs(y - (y1 + y2)/2) < s.center_radius*stride
        return near if s.center_only else x1 < x < x2 and y1 < y < y2, near
    priors, ious = [[prior(g, a) for a in A] for g in G], [[iou(g, a) for a in A] for g in G]
    candidates = [a for a in A if any(any(priors[g][a]) for g in G)]

    def rank(g, a): # Preferred cells come first, then cheap ones
        own = q[a][labels[g]]
        return not all(priors[g][a]), s.cls_weight*(nothing[a] + log(1 - own) - log(own)) - s.iou_weight*math.log(ious[g][a] + s.iou_eps)
    def moved(rank, sign): return rank[0], rank[1] + sign*(loose + tiny*abs(rank[1]))
    ranks = [[rank(g, a) for a in A] for g in G]
    surely, maybe = [set() for _ in A], [set() for _ in A] # Objects that claim a cell
    for g in G:
        total = sum(sorted((ious[g][a] for a in candidates), reverse=True)[:s.candidate_topk])
        fewest, most = (max(1, int(total + d)) for d in (-loose/100, loose/100))
        order = sorted(ranks[g][a] for a in candidates)
        for a in candidates:
            if bisect_left(order, moved(ranks[g][a], -1)) < most: maybe[a].add(g)
            if bisect_right(order, moved(ranks[g][a], 1)) <= fewest: surely[a].add(g)
    found = []
    for a in A:
        choices = set() if surely[a] else {-1}
        if len(surely[a]) < 2: choices |= surely[a] or maybe[a]
        if len(maybe[a]) > 1:
            cheapest = moved(min(ranks[g][a] for g in G), 1)
            choices |= {g for g in G if ranks[g][a] <= cheapest}
        found.append(choices)
    return found


def same_up_to_ties(p, first, second):
    "Whether two lists of `owners` are the same. Where they are not, both have to be right"
    if first == second: return True
    for b, (one, other) in enumerate(zip(first, second)):
        if one == other: continue
        for a, choices in enumerate(slow_choices(p, b)): assert one[a] in choices and other[a] in choices, (b, a, one[a], other[a], choices)
    event('a tie was decided otherwise')
    return False


@given(problems(classes=(1, 2, 5)))
def test_the_assignment_is_the_oracles(p):
    for assign in (simota_sparse, simota):
        found = owners(p, assign)
        for b, owner in enumerate(found):
            choices = slow_choices(p, b)
            assert all(o in c for o, c in zip(owner, choices)), [(a, o, c) for a, (o, c) in enumerate(zip(owner, choices)) if o not in c]
            if owner.count(-1) < len(owner): event('ties' if any(len(c) > 1 for c in choices) else 'no ties')


@given(problems(images=(1, 1), dtypes=(SINGLE,)), st.floats(.1, .9), BOXES)
def test_equal_costs_go_to_the_lower_cell_and_the_lower_object(assign_loop, p, score, box):
    "Here ties are exact, and the rule decides: as in the loop of the page, for cells that all say the same"
    def wide(b): return (b[..., 2] - b[..., 0])*(b[..., 3] - b[..., 1]) > 1e-5 # The loop's IoU has no least union
    assume(wide(torch.tensor(box)))
    boxes = p.boxes[0][wide(p.boxes[0])].repeat(2, 1) # Each of them twice
    objects = boxes, torch.zeros(len(boxes), dtype=torch.int64)
    centres, settings = cell_centres(p.corners), {k: v for k, v in p.assigner.items() if k not in ('center_radius', 'candidate_topk', 'iou_eps')}
    settings.update({new: p.assigner[old] for old, new in dict(center_radius='radius', candidate_topk='topk', iou_eps='eps').items() if old in p.assigner})
    scores, boxes = torch.full((len(centres), p.num_classes), score), torch.tensor([box]).expand(len(centres), 4)
    want = assign_loop(scores, boxes, centres, *objects, **settings)
    assert (SimOTAAssigner(**p.assigner).assign(scores, centres, boxes, *objects).ground_truth_box_indices - 1).tolist() == want.tolist()


# ---- The assignment

@given(problems(), st.sampled_from([0, 1]))
def test_chunked_equals_whole(p, max_mb):
    rows, ious = positives(matches_of(p, simota))
    chunked, their_ious = positives(matches_of(p, simota, max_mb=max_mb))
    assert rows.tolist() == chunked.tolist() and ious.tolist() == their_ious.tolist()
    with pytest.MonkeyPatch.context() as patch:
        want, _ = positives(matches_of(p))
        patch.setattr(cjm_yolox_pytorch.simota, 'PAIRS_AT_ONCE', 50)
        assert positives(matches_of(p, max_mb=max_mb))[0].tolist() == want.tolist()


@given(problems())
def test_pairs_that_matter_are_enough(p):
    "Sparse and dense"
    same_up_to_ties(p, owners(p), owners(p, simota))


@given(problems())
def test_each_positive_has_one_object(p):
    K = SimOTAAssigner(**p.assigner).candidate_topk
    for assign in (simota_sparse, simota):
        rows, ious = positives(matches_of(p, assign))
        assert len(rows[:, :2].unique(dim=0)) == len(rows)
        assert ((ious >= 0) & (ious <= 1)).all()
        counts = [len(own) for own in p.boxes]
        assert all(o < counts[b] for b, _, o in rows.tolist())
        assert len(rows) <= K*sum(counts)
        for b in range(len(counts)): # Somebody learns something in each image whose objects have a cell near them
            x, y, s, _ = cell_centres(p.corners).T[..., None]
            middle = (p.boxes[b][:, :2] + p.boxes[b][:, 2:]).T/2
            near = torch.maximum((x - middle[0]).abs(), (y - middle[1]).abs()) < SimOTAAssigner(**p.assigner).center_radius*s
            assert (rows[:, 0] == b).any() or not near.any()


@given(problems(), st.integers(1, 7), st.sampled_from([0., -1e30, math.inf, math.nan]))
def test_padding_does_not_matter(p, more, value):
    size = max(map(len, p.boxes)) + more
    boxes, labels, valid = pad_objects([b.to(p.precise) for b in p.boxes], p.labels, size)
    boxes[~valid], labels[~valid] = value, p.num_classes - 1
    for assign in (simota_sparse, simota):
        rows, ious = positives(matches_of(p, assign))
        padded, their_ious = positives(matches_of(p, assign, (boxes, labels, valid)))
        assert sorted(zip(rows.tolist(), ious.tolist())) == sorted(zip(padded.tolist(), their_ious.tolist()))


@given(problems(), st.randoms(use_true_random=False))
def test_order_does_not_matter(p, random):
    images = list(range(len(p.boxes)))
    random.shuffle(images)
    straight = p.loss()(*p.maps, *p.objects)
    assert_close(p.of(images).loss()(*p.of(images).maps, *p.of(images).objects), straight, rtol=1e-4, atol=1e-5)
    orders = [random.sample(range(len(own)), len(own)) for own in p.boxes]
    turned = replace(p, boxes=[own[o] for own, o in zip(p.boxes, orders)], labels=[own[o] for own, o in zip(p.labels, orders)])
    back = [[-1 if o < 0 else order[o] for o in owner] for owner, order in zip(owners(turned), orders)]
    if same_up_to_ties(p, owners(p), back): assert_close(turned.loss()(*turned.maps, *turned.objects), straight, rtol=1e-4, atol=1e-5)


@given(problems(classes=(2,), dtypes=(SINGLE, DOUBLE), canvas=10), st.sampled_from([(0, 1), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2)]))
def test_translation_moves_the_assignment(p, by):
    "There is room for 2.5 strides around the objects before and after they move"
    S = p.strides[-1]
    moved = replace(p, boxes=[own + S*torch.tensor([*by, *by]) for own in p.boxes],
                    maps=[[m.roll([by[1]*S//s, by[0]*S//s], (2, 3)) for m, s in zip(levels, p.strides)] for levels in p.maps])
    back = []
    for owner in owners(moved):
        levels = torch.tensor(owner).split([h*w for h, w in p.sizes])
        back.append(torch.cat([o.view(size).roll([-by[1]*S//s, -by[0]*S//s], (0, 1)).flatten() for o, size, s in zip(levels, p.sizes, p.strides)]).tolist())
    most = max((owner.count(o) for owner in back for o in {*owner} - {-1}), default=0)
    event(f'an object has {"several cells" if most > 1 else "one cell" if most else "none"}')
    same_up_to_ties(p, owners(p), back)


@given(problems(images=(2, 3)), st.sampled_from([math.nan, math.inf, -math.inf]), st.sampled_from([0, 1, 2]), st.data())
def test_what_is_not_finite_stays_in_its_image(p, value, part, data):
    "Predictions of one image do not move the targets of others; among objects, it is named with its image and row"
    b = data.draw(st.integers(0, len(p.boxes) - 1))
    broken = replace(p, maps=[[m.clone() for m in levels] for levels in p.maps])
    for m in broken.maps[part]: m[b] = value
    for assign in (simota_sparse, simota):
        before, after = owners(p, assign), owners(broken, assign)
        assert before[:b] + before[b + 1:] == after[:b] + after[b + 1:]
    assume(len(p.boxes[b]))
    row = data.draw(st.integers(0, len(p.boxes[b]) - 1))
    boxes = [own.clone() for own in p.boxes]
    boxes[b][row, data.draw(st.integers(0, 3))] = value
    with pytest.raises(ValueError, match=f'^image {b}, row {row}: box .*(nan|inf).* coordinates are finite'): p.loss()(*p.maps, boxes, p.labels)


@given(problems(), st.data())
def test_what_cannot_be_an_object_is_named(p, data):
    b = data.draw(st.integers(0, len(p.boxes) - 1))
    assume(len(p.boxes[b]))
    row, what = data.draw(st.integers(0, len(p.boxes[b]) - 1)), data.draw(st.sampled_from(['flat', 'turned', 'below', 'above', 'between']))
    boxes, labels = [own.clone() for own in p.boxes], [own.double() for own in p.labels]
    if what == 'flat': boxes[b][row, 2] = boxes[b][row, 0]
    if what == 'turned': boxes[b][row] = boxes[b][row, [0, 3, 2, 1]]
    if what in ('below', 'above', 'between'): labels[b][row] = dict(below=-1, above=p.num_classes, between=p.num_classes - .5)[what]
    with pytest.raises(ValueError, match=f'^image {b}, row {row}: {"box" if what in ("flat", "turned") else "label"} '): p.loss()(*p.maps, boxes, labels)


# ---- The loss

@given(problems(dtypes=(torch.bfloat16, SINGLE, DOUBLE)))
def test_losses_and_gradients_are_finite(p):
    "In fp16 the gradients of an object of a thousandth of a pixel are more than there are numbers for; that they are those of fp32 is another law"
    losses, grads = gradients(p.loss(), p.maps, *p.objects)
    assert list(losses) == NAMES
    for name, value in losses.items(): assert value.isfinite() and value >= 0, (name, value)
    for levels in grads:
        for g in levels: assert g.isfinite().all()


@given(problems(dtypes=(torch.float16,)))
def test_gradients_are_finite_in_half_precision(p):
    "From a pixel on, and boxes that fp16 can hold"
    assume(p.said[1][0] != 'extreme')
    wide = [torch.cat([own[:, :2], own[:, 2:].maximum(own[:, :2] + 1)], dim=1) for own in p.boxes]
    losses, grads = gradients(p.loss(), p.maps, wide, p.labels)
    assert all(value.isfinite() and value >= 0 for value in losses.values())
    assert all(g.isfinite().all() for levels in grads for g in levels)


@given(problems(dtypes=(SINGLE, DOUBLE)))
def test_objects_without_area_do_no_harm_where_nobody_looks(p):
    "An accelerator does not look at values, unless asked to"
    flat = [torch.cat([own[:, :2], own[:, :2], own[:, :2], own[:, [0, 3]]], 1).view(-1, 4) for own in p.boxes] # A point and a line
    losses, grads = gradients(p.loss(check=False), p.maps, flat, [own.repeat_interleave(2) for own in p.labels])
    assert all(value.isfinite() and value >= 0 for value in losses.values())
    assert all(g.isfinite().all() for levels in grads for g in levels)


def slow_losses(p):
    "From who owns which cell: sums over positives of what DESIGN says, in Python's floats"
    total, P = dict.fromkeys(NAMES, 0.), 0
    def bce(logit, target): return max(logit, 0) - logit*target + math.log1p(math.exp(-abs(logit)))
    for b, owner in enumerate(owners(p)):
        classes, raw, objectness = [flatten_levels(levels)[b].to(p.precise) for levels in p.maps]
        boxes = decode(raw, p.corners)
        for a, g in enumerate(owner):
            total['loss_obj'] += bce(objectness[a].item(), g >= 0)
            if g < 0: continue
            P, box, (x, y, s, _) = P + 1, p.boxes[b][g].to(p.precise), p.corners[a].tolist()
            iou, x1, y1, x2, y2 = box_iou(boxes[a], box).item(), *box.tolist() # Overlaps have a law of their own
            for c, logit in enumerate(classes[a].tolist()): total['loss_cls'] += bce(logit, iou if c == p.labels[b][g] else 0)
            wanted = ((x1 + x2)/2 - x)/s, ((y1 + y2)/2 - y)/s, math.log((x2 - x1)/s + 1e-8), math.log((y2 - y1)/s + 1e-8)
            total['loss_l1'] += sum(abs(r - w) for r, w in zip(raw[a].tolist(), wanted))
            overlap = dict(squared_giou=lambda: box_giou(boxes[a], box).item()**2, squared_iou=lambda: iou**2,
                           giou=lambda: box_giou(boxes[a], box).item(), ciou=lambda: box_ciou(boxes[a], box).item())[p.box_loss]()
            total['loss_bbox'] += 5*(1 - overlap)
    return {name: torch.tensor(value/max(P, 1), dtype=p.precise) for name, value in total.items()}


@given(problems())
def test_losses_are_sums_over_positives(p):
    assert_close(p.loss()(*p.maps, *p.objects), slow_losses(p), rtol=1e-4, atol=1e-4)


# How numbers lie in memory decides which are computed in vectors and which one by one, with another last digit. The gradients of a box
# of a few last digits of fp32 depend on that, those of fp64 do not: so gradients along two ways are compared in fp64

@given(problems(dtypes=(DOUBLE,)))
def test_batch_equals_one_by_one(p):
    together, grads = gradients(p.loss(), p.maps, *p.objects)
    counts = [max(1, sum(o >= 0 for o in owner)) for owner in owners(p)]
    P = max(1, sum(o >= 0 for owner in owners(p) for o in owner))
    total = dict.fromkeys(NAMES, 0.)
    for b, n in enumerate(counts):
        one = p.of([b])
        assert owners(one) == owners(p)[b:b + 1]
        losses, own = gradients(one.loss(), one.maps, *one.objects)
        for name in NAMES: total[name] += losses[name]*n/P
        for levels, theirs in zip(grads, own):
            for g, t in zip(levels, theirs): assert_close(g[b], t[0]*n/P, rtol=1e-4, atol=1e-5)
    assert_close(together, total, rtol=1e-4, atol=1e-5)


@given(problems(dtypes=(DOUBLE,)), st.booleans(), st.booleans())
def test_slots_with_a_mask_give_what_picked_rows_give(p, crowd, overflow):
    "The path of accelerators, with everything padded, and that of the CPU. What has overflowed may lie in a slot that does not count"
    if overflow: p = replace(p, maps=[p.maps[0], [m.where(torch.arange(m.shape[3]) % 2 == 0, 1000.) for m in p.maps[1]], p.maps[2]])
    regions = dict(ground_truth_bboxes_ignore=[torch.tensor([[0., 0., 40., 60.]])[:crowd]]*len(p.boxes))
    want, want_grads = gradients(p.loss(), p.maps, *p.objects, **regions)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cjm_yolox_pytorch.simota, 'simota_sparse', simota)
        got, grads = gradients(p.loss(), p.maps, *p.objects, **regions)
    if same_up_to_ties(p, owners(p), owners(p, simota)):
        assert_close(got, want, rtol=1e-4, atol=1e-5, equal_nan=True)
        assert_close(grads, want_grads, rtol=1e-4, atol=1e-5, equal_nan=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@given(problems(dtypes=(torch.bfloat16, SINGLE, DOUBLE)), st.booleans())
def test_a_gpu_gives_what_a_cpu_gives(p, crowd):
    "Its losses are compared where no tie was decided otherwise, and gradients in fp64, as above"
    there = replace(p, maps=[[m.cuda() for m in levels] for levels in p.maps], boxes=[own.cuda() for own in p.boxes], labels=[own.cuda() for own in p.labels])
    with torch.device('cuda'): found = owners(there, simota)
    same = same_up_to_ties(p, owners(p, simota), found)
    region = torch.tensor([[0., 0., 40., 60.]])[:crowd]
    got, grads = gradients(there.loss(), there.maps, *there.objects, ground_truth_bboxes_ignore=[region.cuda()]*len(p.boxes))
    assert all(value.isfinite() and value >= 0 for value in got.values()) and all(g.isfinite().all() for levels in grads for g in levels)
    if not same: return
    want, want_grads = gradients(p.loss(), p.maps, *p.objects, ground_truth_bboxes_ignore=[region]*len(p.boxes))
    assert_close({k: v.cpu() for k, v in got.items()}, want, rtol=1e-4, atol=1e-5)
    if p.precise == DOUBLE: assert_close([[g.cpu() for g in levels] for levels in grads], want_grads, rtol=1e-4, atol=1e-5)


LONG = settings.get_current_profile_name() == 'long'
TWO, ONE, FIVE = ([8, 16], [(6, 5), (3, 3)]), ([8], [(7, 4)]), ([4, 8, 16, 32, 64], [(6, 6), (5, 4), (4, 4), (2, 3), (1, 1)])
GRAPHS = [(TWO, DOUBLE, 0, 'squared_giou'), (ONE, DOUBLE, 1, 'squared_iou'), (FIVE, SINGLE, 2, 'ciou'), (TWO, torch.bfloat16, 0, 'giou')]


@cache
def eager_and_compiled(graph):
    (strides, _), _, assigner, box_loss = GRAPHS[graph]
    torch.compiler.reset() # All graphs together would be more than torch keeps
    eager = YOLOXLoss(3, use_l1=True, strides=strides, box_loss=box_loss, assigner=SimOTAAssigner(**ASSIGNERS[assigner]))
    return eager, torch.compile(_losses, fullgraph=True, backend='inductor' if LONG else 'aot_eager')


@pytest.mark.parametrize('graph', range(len(GRAPHS)))
@given(data=st.data())
def test_compiled_equals_eager(graph, data):
    "As it is where there is an accelerator; one graph for all numbers of objects"
    shape, dtype, assigner, _ = GRAPHS[graph]
    p = data.draw(problems(images=(2, 2), levels=(len(shape[0]),)*2, classes=(3,), dtypes=(dtype,), assigners=ASSIGNERS[assigner:assigner + 1], shape=shape))
    raw = [m + torch.tensor([.0011, .0013, .0017, .0019]).to(dtype)[:, None, None] for m in p.maps[1]] # Where a prediction is all but its target, L1 may slope either way
    p, (eager, losses) = replace(p, maps=[p.maps[0], raw, p.maps[2]]), eager_and_compiled(graph)
    def compiled(classes, raw, objectness, boxes, labels):
        objects = _gather_objects(boxes, labels, 3, None, torch.device('cpu'), p.precise, rounded=True)
        for t in objects: torch._dynamo.maybe_mark_dynamic(t, 1)
        return dict(zip(NAMES, losses(eager, classes, raw, objectness, *objects, None)[0]))
    got, grads = gradients(compiled, p.maps, *p.objects)
    assert all(value.isfinite() and value >= 0 for value in got.values()) and all(g.isfinite().all() for levels in grads for g in levels)
    if any(len(c) > 1 for b in range(2) for c in slow_choices(p, b)): return event('ties, which compiled arithmetic may decide otherwise')
    want, want_grads = gradients(eager, p.maps, *p.objects)
    assert_close(got, want, rtol=1e-4, atol=1e-5)
    if dtype == DOUBLE: assert_close(grads, want_grads, rtol=1e-4, atol=1e-5)


@given(problems())
def test_without_objects_only_objectness_is_taught(p):
    empty = [own[:0] for own in p.boxes], [own[:0] for own in p.labels]
    losses, (classes, boxes, objectness) = gradients(p.loss(), p.maps, *empty)
    assert losses['loss_cls'] == losses['loss_bbox'] == losses['loss_l1'] == 0
    assert all(g is not None and not g.any() for g in classes + boxes)
    for g, m in zip(objectness, p.maps[2]): assert_close(g, m.sigmoid(), rtol=1e-2, atol=1e-6) # Down, the more the surer


@given(problems(dtypes=HALF))
def test_half_precision_gives_the_loss_of_the_rounded_values(p):
    want, want_grads = gradients(p.loss(), [[m.float() for m in levels] for levels in p.maps], *p.objects)
    with torch.autocast('cpu', torch.bfloat16): got, grads = gradients(p.loss(), p.maps, *p.objects)
    assert_close(got, want, rtol=0, atol=0)
    for levels, wanted in zip(grads, want_grads):
        for g, w in zip(levels, wanted): assert_close(g, w.to(g.dtype), rtol=0, atol=0)


EVEN = st.builds(lambda x, y, w, h: [2*x, 2*y, 2*(x + w), 2*(y + h)], *[st.integers(0, 16)]*2, *[st.integers(1, 16)]*2) # Often from centre to centre

@given(problems(dtypes=(SINGLE, DOUBLE)), st.lists(EVEN, max_size=3))
def test_ignored_regions_touch_the_background_alone(p, rows):
    regions = [torch.tensor(rows, dtype=SINGLE).reshape(-1, 4)]*len(p.boxes)
    plain, plain_grads = gradients(p.loss(), p.maps, *p.objects)
    losses, grads = gradients(p.loss(), p.maps, *p.objects, ground_truth_bboxes_ignore=regions)
    assert {k: v for k, v in losses.items() if k != 'loss_obj'} == {k: v for k, v in plain.items() if k != 'loss_obj'}
    inside = torch.tensor([any(x1 < x < x2 and y1 < y < y2 for x1, y1, x2, y2 in rows) for x, y, _, _ in cell_centres(p.corners).tolist()])
    silent = inside & (torch.tensor(owners(p)) < 0)
    before, after = (flatten_levels(g[2])[..., 0] for g in (plain_grads, grads))
    assert_close(after, before.where(~silent, 0), rtol=0, atol=0)


@given(problems(), st.randoms(use_true_random=False))
def test_numbers_of_classes_are_names(p, random):
    order = random.sample(range(p.num_classes), p.num_classes) # New class i is old class order[i]
    renamed = replace(p, maps=[[m[:, order] for m in p.maps[0]], *p.maps[1:]], labels=[torch.tensor(order).argsort()[own] for own in p.labels])
    if same_up_to_ties(p, owners(p), owners(renamed)): assert_close(renamed.loss()(*renamed.maps, *renamed.objects), p.loss()(*p.maps, *p.objects), rtol=1e-4, atol=1e-5)


# ---- The parts

@given(st.lists(st.floats(-20, 20), min_size=4, max_size=4), st.integers(-100, 100), st.integers(-100, 100), st.sampled_from([4, 8, 12, 64]))
def test_decode_and_encode_are_inverse(raw, x, y, s):
    raw, prior = torch.tensor([raw], dtype=DOUBLE), torch.tensor([[x*s, y*s, s, s]], dtype=DOUBLE)
    assert_close(encode(decode(raw, prior), prior, eps=0), raw, rtol=0, atol=1e-5) # Sizes of 20 leave that to the middle
    assert_close(decode(raw, prior)[:, :2] + decode(raw, prior)[:, 2:], 2*(raw[:, :2]*s + prior[:, :2]), rtol=1e-6, atol=1e-5)


@given(BOXES, st.integers(-100, 100), st.integers(-100, 100), st.sampled_from([4, 8, 12, 64]))
def test_encode_and_decode_are_inverse(box, x, y, s):
    box, prior = torch.tensor([box], dtype=DOUBLE), torch.tensor([[x*s, y*s, s, s]], dtype=DOUBLE)
    assert_close(decode(encode(box, prior), prior), box, rtol=0, atol=1e-6)


def fractions_of(a, b):
    "Intersection, union and enclosing box in exact arithmetic"
    def area(x1, y1, x2, y2): return max(0, Fraction(x2) - Fraction(x1))*max(0, Fraction(y2) - Fraction(y1))
    shared = area(*map(max, a[:2], b[:2]), *map(min, a[2:], b[2:]))
    return shared, area(*a) + area(*b) - shared, area(*map(min, a[:2], b[:2]), *map(max, a[2:], b[2:]))


@given(BOXES, BOXES, st.sampled_from([SINGLE, DOUBLE]))
def test_overlaps_in_exact_arithmetic(a, b, dtype):
    shared, union, around = fractions_of(a, b)
    rows = torch.tensor([a], dtype=dtype), torch.tensor([b], dtype=dtype)
    for f, want in [(box_iou, float(shared/max(union, Fraction(1e-6)))), (box_giou, float(shared/union - (around - union)/around))]:
        assert_close(f(*rows), torch.tensor([want], dtype=dtype), rtol=1e-5, atol=1e-6)
    (x1, y1, x2, y2), (u1, v1, u2, v2) = a, b # CIoU by its equations 10 and 11
    width, height = max(x2, u2) - min(x1, u1), max(y2, v2) - min(y1, v1)
    v = 4/math.pi**2*(math.atan((x2 - x1)/(y2 - y1)) - math.atan((u2 - u1)/(v2 - v1)))**2
    iou, apart = float(shared/union), ((x1 + x2 - u1 - u2)**2 + (y1 + y2 - v1 - v2)**2)/4
    if union > 1e-5: assert_close(box_ciou(*rows).item(), iou - apart/(width**2 + height**2) - (v*v/(1 - iou + v) if v else 0), rtol=1e-4, atol=1e-4)
    for f in (box_iou, box_giou, box_ciou):
        assert_close(f(*rows), f(*rows[::-1]))
        assert f(*rows) <= 1 + 1e-6
        assert_close(f(rows[0], rows[0]), torch.ones(1, dtype=dtype), rtol=0, atol=1e-5 if f != box_iou or fractions_of(a, a)[1] > 1e-5 else 1)
    assert max(box_ciou(*rows), box_giou(*rows)) <= shared/union + 1e-5


@given(BOXES, st.sampled_from(sorted(BOX_LOSSES)), st.sampled_from([SINGLE, DOUBLE]), st.sampled_from([[0, 1, 0, 1], [0, 1, 0, 3], [0, 1, 2, 1]]))
def test_points_and_lines_have_losses_and_slopes(box, name, dtype, corners):
    "A prediction may be so small that it is one, and so may an object where nobody looks"
    flat = torch.tensor([box], dtype=dtype)[:, corners]
    for pred, target in [(flat, flat), (flat, torch.tensor([box], dtype=dtype)), (torch.tensor([box], dtype=dtype), flat)]:
        pred = pred.clone().requires_grad_()
        loss = BOX_LOSSES[name](pred, target).sum()
        slope, = torch.autograd.grad(loss, pred)
        assert loss.isfinite() and loss >= 0 and slope.isfinite().all(), (loss, slope)


@given(st.tuples(st.integers(1, 5000), st.integers(1, 5000)), st.tuples(st.integers(1, 4096), st.integers(1, 4096)), st.lists(st.floats(0, 1), min_size=4, max_size=4))
def test_letterboxing_there_and_back(image_hw, canvas_hw, at):
    h, w = image_hw
    boxes = torch.tensor([[at[0]*w, at[1]*h, at[2]*w, at[3]*h]], dtype=DOUBLE)
    there = boxes*letterbox_scale(image_hw, canvas_hw)
    size = letterbox_size(image_hw, canvas_hw)
    assert (there <= torch.tensor([size[1], size[0]]*2)*(1 + 1e-6)).all()
    assert all(1 <= n <= c for n, c in zip(size, canvas_hw)) and any(n == c for n, c in zip(size, canvas_hw))
    assert_close(unletterbox(there, image_hw, canvas_hw), boxes, rtol=1e-5, atol=1e-3)
    assert_close(unletterbox(there*3 - 1e5, image_hw, canvas_hw), boxes*0)


@given(st.integers(1, 200), st.integers(1, 200), st.lists(st.integers(1, 70), min_size=1, max_size=5))
def test_grids_are_priors_in_the_order_of_maps(height, width, strides):
    grid, sizes = generate_output_grids(height, width, strides), [(math.ceil(height/s), math.ceil(width/s)) for s in strides]
    corners = grid_priors(sizes, strides)
    assert_close(corners, torch.cat([grid[:, :2]*grid[:, 2:], grid[:, 2:], grid[:, 2:]], 1).float())
    assert corners.tolist() == [[x*s, y*s, s, s] for (h, w), s in zip(sizes, strides) for y in range(h) for x in range(w)]
    assert cell_centres(corners).tolist() == [[x + s/2, y + s/2, s, s] for x, y, s, _ in corners.tolist()]
    maps = [own.view(1, *size, 4).permute(0, 3, 1, 2) for own, size in zip(corners.split([h*w for h, w in sizes]), sizes)]
    assert_close(flatten_levels(maps)[0], corners)


@given(st.integers(1, 200), st.integers(1, 12), st.integers(1, 9), st.booleans(), st.integers(0, 99), st.integers(1, 50))
def test_top_is_the_beginning_of_sorted(A, k, column, largest, seed, different):
    values = torch.randint(different, (2, 3, A), generator=torch.Generator().manual_seed(seed))
    want = values.sort(-1, descending=largest).values
    for order in (values, want, want.flip(-1)): assert_close(topk_values(order, k, largest, column), want[..., :k]) # The best may be in the rest that fills no column


@given(st.lists(st.tuples(st.booleans(), st.floats(0, width=32), st.integers(0, 2**24 - 1)), min_size=2, max_size=20))
@example([(False, 0., 1), (False, -0., 0)])
@example([(False, math.nan, 0), (True, 0., 0), (False, math.inf, 0)])
@example([(False, -3e-7, 0), (False, 0., 1), (False, -0., 2), (False, 1e-30, 1)]) # Rounding, where an IoU is 1
def test_keys_sort_as_what_they_are_made_of(pairs):
    late, cost, index = zip(*pairs)
    keys = rank_key(torch.tensor(cost), torch.tensor(late), torch.tensor(index)).tolist()
    def plain(i): return late[i], math.isnan(cost[i]), 0 if math.isnan(cost[i]) else max(0, cost[i]), index[i]
    assert sorted(range(len(keys)), key=lambda i: (keys[i], i)) == sorted(range(len(keys)), key=lambda i: (plain(i), i))


@given(st.integers(1, 9), st.integers(1, 2000), st.integers(0, 99))
def test_class_targets_hold_one_number_in_a_row(P, C, seed):
    g = torch.Generator().manual_seed(seed)
    labels, ious = torch.randint(C, (P,), generator=g), torch.rand(P, generator=g)
    assert_close(class_targets(labels, ious, C), F.one_hot(labels, C)*ious[:, None])
