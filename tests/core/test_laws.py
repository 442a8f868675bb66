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
from random_batches import NAMES, positives
from torch.testing import assert_close

import cjm_yolox_pytorch.assignment_sparse
import cjm_yolox_pytorch.simota
from cjm_yolox_pytorch.assignment import pad_objects, rank_key, simota, topk_values
from cjm_yolox_pytorch.assignment_sparse import simota_sparse
from cjm_yolox_pytorch.boxes import box_ciou, box_giou, box_iou, cell_centers, decode, encode
from cjm_yolox_pytorch.boxes import flatten_levels, grid_priors
from cjm_yolox_pytorch.loss import BOX_LOSSES, YOLOXLoss, _losses, _move_objects, _stack
from cjm_yolox_pytorch.sampling import class_targets
from cjm_yolox_pytorch.simota import SimOTAAssigner
from cjm_yolox_pytorch.utils import generate_output_grids

HALF, SINGLE, DOUBLE = (torch.float16, torch.bfloat16), torch.float32, torch.float64
ASSIGNERS = [{}, dict(center_radius=1.5, center_only=True, iou_eps=1e-8), dict(center_radius=.5, candidate_topk=3),
             dict(iou_weight=1., cls_weight=0.), dict(candidate_topk=40)]


# ---- Problems: what a network says about a batch, and what is there

@dataclass
class Problem:
    "The input of a loss, and its settings"
    strides:list
    sizes:list # L pairs (height, width) in cells
    num_classes:int
    maps:list = field(repr=False) # Class, box and objectness maps, L each; `kinds` is shorter
    boxes:list
    labels:list
    assigner:dict = field(default_factory=dict)
    box_loss:str = 'squared_giou'
    kinds:list = None # The kind of numbers in each of the maps, and their seed

    @property
    def corners(self): return grid_priors(self.sizes, self.strides, dtype=self.precise)
    @property
    def precise(self): return torch.promote_types(self.maps[0][0].dtype, SINGLE) # The dtype of the loss
    @property
    def objects(self): return self.boxes, self.labels
    def of(self, images):
        maps = [[m[images] for m in levels] for levels in self.maps]
        return replace(self, maps=maps, boxes=[self.boxes[b] for b in images], labels=[self.labels[b] for b in images])

    def loss(self, **kwargs):
        kwargs.update(strides=self.strides, box_loss=self.box_loss, assigner=SimOTAAssigner(**self.assigner))
        return YOLOXLoss(self.num_classes, use_l1=True, **dict(check=False) | kwargs) # Tiny boxes look like fractions


# In eighths of a pixel, all of which have an exact sum in fp32: borders that touch centers do so exactly
SIDES = st.one_of(st.integers(1, 640).map(lambda n: n/8), st.sampled_from([2.**-10, 8., 16., 2.**13]))
PLACES = st.integers(-100, 700)
BOXES = st.builds(lambda x, y, w, h: [x/8, y/8, x/8 + w, y/8 + h], PLACES, PLACES, SIDES, SIDES)


def boxes_within(low, high):
    "Also in eighths"
    place = st.integers(8*low, 8*high - 1)
    side = st.tuples(place, place).map(lambda ends: (min(ends)/8, (max(ends) + 1)/8))
    return st.builds(lambda x, y: [x[0], y[0], x[1], y[1]], side, side)


@st.composite
def objects(draw, num_classes, some):
    "Boxes and labels of an image, sometimes nine times, a little further on each time"
    rows = draw(st.lists(some, min_size=draw(st.sampled_from([0, 1, 2, 5])), max_size=6))
    crowd = 1 if some is not BOXES else draw(st.sampled_from([1, 1, 1, 1, 9]))
    labels = draw(st.lists(st.integers(0, num_classes - 1), min_size=len(rows), max_size=len(rows)))
    boxes = torch.cat([torch.tensor(rows).reshape(-1, 4) + 3*i/8 for i in range(crowd)])
    return boxes, torch.tensor(labels, dtype=torch.int64).repeat(crowd)


@st.composite
def problems(draw, images=(1, 3), levels=(1, 5), classes=(1, 2, 5, 80), dtypes=(*HALF, SINGLE, DOUBLE),
             assigners=ASSIGNERS, shape=None, canvas=None):
    """`shape` fixes strides and sizes.

    With `canvas` every level has as many pixels as that many of the largest cells,
    and all objects lie in two by two of them."""
    L = draw(st.integers(*levels))
    strides = draw(st.lists(st.sampled_from([4, 8, 12, 16, 32, 64]), min_size=L, max_size=L)) # In any order, and twice
    side = st.integers(1, 6) # Not the sizes of an image
    sizes = draw(st.lists(st.tuples(side, side), min_size=L, max_size=L))
    if canvas:
        strides = [2**(3 + i) for i in range(L)]
        sizes = [(canvas*strides[-1]//s,)*2 for s in strides]
    if shape: strides, sizes = shape
    B, C, dtype = draw(st.integers(*images)), draw(st.sampled_from(classes)), draw(st.sampled_from(dtypes))
    some = boxes_within(3*strides[-1], 5*strides[-1]) if canvas else BOXES
    boxes, labels = map(list, zip(*[draw(objects(C, some)) for _ in range(B)]))
    kinds = [(draw(st.sampled_from(kinds)), draw(st.integers(0, 999))) for kinds in (LOGITS, RAW, LOGITS)]
    maps = [draw(predictions(*kind, channels, B, sizes, boxes, strides)) for kind, channels in zip(kinds, (C, 4, 1))]
    maps = [[m.to(dtype) for m in levels] for levels in maps]
    settings = draw(st.sampled_from(assigners)), draw(st.sampled_from(sorted(BOX_LOSSES)))
    return Problem(strides, sizes, C, maps, boxes, labels, *settings, kinds)


LOGITS = ['unsure', 'equal', 'saturated', 'some saturated']
RAW = ['normal', 'learned', 'learned', 'equal', 'extreme']


@st.composite
def predictions(draw, kind, seed, channels, B, sizes, boxes, strides):
    "L maps [B, channels, H, W] in fp64. Numbers come from a seed: there are too many to draw each"
    g, A = torch.Generator().manual_seed(seed), sum(h*w for h, w in sizes)
    flat = torch.randn(B, A, channels, generator=g, dtype=DOUBLE)
    if kind in ('unsure', 'some saturated'): flat = (2*flat).clamp(-6, 6)
    if kind == 'equal': flat = torch.full_like(flat, draw(st.sampled_from([0., .5, -2.])))
    if kind == 'saturated': flat = 1e4*flat.sign()
    if kind == 'some saturated':
        flat[torch.rand(B, A, generator=g) < .3] = draw(st.sampled_from([-1e4, 1e4]))
    if kind == 'extreme': flat = 40*torch.rand(flat.shape, generator=g, dtype=DOUBLE) - 20
    if kind == 'learned': # Cells near an object predict its box, or nearly
        corners, noise = grid_priors(sizes, strides, dtype=DOUBLE), draw(st.sampled_from([0., .02, .3]))
        for b, own in enumerate(boxes):
            if not len(own): continue
            middles = (own[:, :2] + own[:, 2:])/2
            nearest = (cell_centers(corners)[:, None, :2] - middles).norm(dim=-1).argmin(1)
            flat[b] = (encode(own[nearest].double(), corners) + noise*flat[b]).clamp(-20, 20)
    return [m.mT.unflatten(2, size) for m, size in zip(flat.split([h*w for h, w in sizes], dim=1), sizes)]


def gradients(loss, maps, *objects, **kwargs):
    leaves = [[m.detach().clone().requires_grad_() for m in levels] for levels in maps]
    losses = loss(*leaves, *objects, **kwargs)
    sum(losses.values()).backward()
    return losses, [[m.grad for m in levels] for levels in leaves]


def check_finite(losses, grads):
    for name, value in losses.items(): assert value.isfinite() and value >= 0, (name, value)
    assert all(g.isfinite().all() for levels in grads for g in levels)


def matches_of(p, assign=simota_sparse, gt=None, **changed):
    classes, raw, objectness = [[m.to(p.precise) for m in levels] for levels in p.maps]
    if gt is None: gt = pad_objects([b.to(p.precise) for b in p.boxes], p.labels)
    boxes, assigner = decode(flatten_levels(raw), p.corners), SimOTAAssigner(**{**p.assigner, **changed})
    return assign(classes, flatten_levels(objectness)[..., 0], boxes, cell_centers(p.corners), gt, assigner)


def owners(p, *args, **kwargs):
    "[B][A] numbers of objects, or -1"
    rows, _ = positives(matches_of(p, *args, **kwargs))
    owner = torch.full((len(p.boxes), len(p.corners)), -1)
    owner[rows[:, 0], rows[:, 1]] = rows[:, 2]
    return owner.tolist()


# ---- The slow oracle

def slow_choices(p, b):
    """For each cell of image `b` the objects that may own it (-1: none), by the rules of SimOTA in Python's floats.

    Where nothing ties there is one. Costs as close as rounding are ties: other hardware may choose otherwise."""
    s = SimOTAAssigner(**p.assigner)
    loose, tiny = (2e-3, 2e-5) if p.precise == SINGLE else (1e-7, 1e-6)
    classes, raw, objectness = [flatten_levels(levels)[b].to(p.precise) for levels in p.maps]
    boxes, centers = decode(raw, p.corners).tolist(), cell_centers(p.corners).tolist() # These have laws of their own
    objects, labels = p.boxes[b].tolist(), p.labels[b].tolist()
    A, G = range(len(centers)), range(len(objects))

    def sigmoid(x): return 1/(1 + math.exp(-x)) if x > -700 else 0.
    def log(x): return max(math.log(x), -100) if x > 0 else -100
    q = [[math.sqrt(sigmoid(c)*sigmoid(o)) for c in row] for row, (o,) in zip(classes.tolist(), objectness.tolist())]
    nothing = [sum(-log(1 - v) for v in row) for row in q]

    def iou(g, a):
        (x1, y1, x2, y2), (u1, v1, u2, v2) = objects[g], boxes[a]
        shared = max(0, min(x2, u2) - max(x1, u1))*max(0, min(y2, v2) - max(y1, v1))
        return shared/max((x2 - x1)*(y2 - y1) + (u2 - u1)*(v2 - v1) - shared, 1e-6)

    def prior(g, a): # Inside, near
        (x1, y1, x2, y2), (x, y, stride, _) = objects[g], centers[a]
        near = abs(x - (x1 + x2)/2) < s.center_radius*stride and abs(y - (y1 + y2)/2) < s.center_radius*stride
        return near if s.center_only else x1 < x < x2 and y1 < y < y2, near
    priors, ious = [[prior(g, a) for a in A] for g in G], [[iou(g, a) for a in A] for g in G]
    candidates = [a for a in A if any(any(priors[g][a]) for g in G)]

    def rank(g, a): # Preferred cells come first, then cheap ones
        own = q[a][labels[g]]
        classes = s.cls_weight*(nothing[a] + log(1 - own) - log(own))
        return not all(priors[g][a]), classes - s.iou_weight*math.log(ious[g][a] + s.iou_eps)

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
        for a, choices in enumerate(slow_choices(p, b)): assert {one[a], other[a]} <= choices, (b, a, one[a], other[a])
    event('a tie was decided otherwise')
    return False


@given(problems(classes=(1, 2, 5)))
def test_assignment_is_that_of_the_oracle(p):
    for assign in (simota_sparse, simota):
        found = owners(p, assign)
        for b, owner in enumerate(found):
            choices = slow_choices(p, b)
            assert [(a, o, c) for a, (o, c) in enumerate(zip(owner, choices)) if o not in c] == []
            if owner.count(-1) < len(owner): event('ties' if any(len(c) > 1 for c in choices) else 'no ties')


@given(problems(images=(1, 1), dtypes=(SINGLE,)), st.floats(.1, .9), BOXES)
def test_ties_go_to_the_lower_cell_and_the_lower_object(assign_loop, p, score, box):
    "Here ties are exact, and the rule decides: as in the loop of the page, for cells that all say the same"
    def wide(b): return (b[..., 2] - b[..., 0])*(b[..., 3] - b[..., 1]) > 1e-5 # The loop's IoU has no least union
    assume(wide(torch.tensor(box)))
    boxes = p.boxes[0][wide(p.boxes[0])].repeat(2, 1) # Each of them twice
    objects = boxes, torch.zeros(len(boxes), dtype=torch.int64)
    centers, assigner = cell_centers(p.corners), SimOTAAssigner(**p.assigner)
    scores = torch.full((len(centers), p.num_classes), score)
    boxes = torch.tensor([box]).expand(len(centers), 4)
    found = assigner.assign(scores, centers, boxes, *objects).ground_truth_box_indices - 1
    assert found.tolist() == assign_loop(scores, boxes, centers, *objects, assigner).tolist()


# ---- The assignment

@given(problems(), st.sampled_from([0, 1]))
def test_assignment_in_groups_equals_whole(p, max_mb):
    rows, ious = positives(matches_of(p, simota))
    chunked, their_ious = positives(matches_of(p, simota, max_mb=max_mb))
    assert rows.tolist() == chunked.tolist() and ious.tolist() == their_ious.tolist()
    with pytest.MonkeyPatch.context() as patch:
        want, _ = positives(matches_of(p))
        patch.setattr(cjm_yolox_pytorch.assignment_sparse, 'PAIRS_AT_ONCE', 50)
        assert positives(matches_of(p, max_mb=max_mb))[0].tolist() == want.tolist()


@given(problems())
def test_sparse_assignment_equals_dense(p):
    "Sparse and dense"
    same_up_to_ties(p, owners(p), owners(p, simota))


@given(problems())
def test_positives_have_one_object_each(p):
    K = SimOTAAssigner(**p.assigner).candidate_topk
    for assign in (simota_sparse, simota):
        rows, ious = positives(matches_of(p, assign))
        assert len(rows[:, :2].unique(dim=0)) == len(rows)
        assert ((ious >= 0) & (ious <= 1)).all()
        counts = [len(own) for own in p.boxes]
        assert all(o < counts[b] for b, _, o in rows.tolist())
        assert len(rows) <= K*sum(counts)
        for b in range(len(counts)): # There are positives in each image whose objects have a cell near them
            x, y, s, _ = cell_centers(p.corners).T[..., None]
            middle = (p.boxes[b][:, :2] + p.boxes[b][:, 2:]).T/2
            distance = torch.maximum((x - middle[0]).abs(), (y - middle[1]).abs())
            near = distance < SimOTAAssigner(**p.assigner).center_radius*s
            assert (rows[:, 0] == b).any() or not near.any()


@given(problems(), st.integers(1, 7), st.sampled_from([0., -1e30, math.inf, math.nan]))
def test_padding_does_not_matter(p, more, value):
    size = max(map(len, p.boxes)) + more
    gt = pad_objects([b.to(p.precise) for b in p.boxes], p.labels, size)
    gt.boxes[~gt.valid], gt.labels[~gt.valid] = value, p.num_classes - 1
    for assign in (simota_sparse, simota):
        rows, ious = positives(matches_of(p, assign))
        padded, their_ious = positives(matches_of(p, assign, gt))
        assert sorted(zip(rows.tolist(), ious.tolist())) == sorted(zip(padded.tolist(), their_ious.tolist()))


@given(problems(), st.randoms(use_true_random=False))
def test_order_of_images_and_objects_does_not_matter(p, random):
    images = list(range(len(p.boxes)))
    random.shuffle(images)
    straight = p.loss()(*p.maps, *p.objects)
    assert_close(p.of(images).loss()(*p.of(images).maps, *p.of(images).objects), straight, rtol=1e-4, atol=1e-5)
    orders = [random.sample(range(len(own)), len(own)) for own in p.boxes]
    boxes, labels = ([t[o] for t, o in zip(ts, orders)] for ts in p.objects)
    turned = replace(p, boxes=boxes, labels=labels)
    back = [[-1 if o < 0 else order[o] for o in owner] for owner, order in zip(owners(turned), orders)]
    if same_up_to_ties(p, owners(p), back):
        assert_close(turned.loss()(*turned.maps, *turned.objects), straight, rtol=1e-4, atol=1e-5)


STEPS = [(0, 1), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2)]


@given(problems(classes=(2,), dtypes=(SINGLE, DOUBLE), canvas=10), st.sampled_from(STEPS))
def test_translation_moves_the_assignment(p, by):
    "There is room for 2.5 strides around the objects before and after they move"
    S = p.strides[-1]
    def rolled(m, s, sign): return m.roll([sign*by[1]*S//s, sign*by[0]*S//s], (-2, -1))
    maps = [[rolled(m, s, 1) for m, s in zip(levels, p.strides)] for levels in p.maps]
    moved = replace(p, boxes=[own + S*torch.tensor([*by, *by]) for own in p.boxes], maps=maps)
    back = []
    for owner in owners(moved):
        levels = torch.tensor(owner).split([h*w for h, w in p.sizes])
        levels = [rolled(o.view(size), s, -1).flatten() for o, size, s in zip(levels, p.sizes, p.strides)]
        back.append(torch.cat(levels).tolist())
    most = max((owner.count(o) for owner in back for o in {*owner} - {-1}), default=0)
    event(f'an object has {"several cells" if most > 1 else "one cell" if most else "none"}')
    same_up_to_ties(p, owners(p), back)


@given(problems(images=(2, 3)), st.sampled_from([math.nan, math.inf, -math.inf]), st.sampled_from([0, 1, 2]), st.data())
def test_nan_and_inf_stay_in_their_image(p, value, part, data):
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
    message = f'^image {b}, row {row}: box .*(nan|inf).* coordinates must be finite'
    with pytest.raises(ValueError, match=message): p.loss(check=True)(*p.maps, boxes, p.labels)


@given(problems(), st.data())
def test_impossible_objects_are_named(p, data):
    b = data.draw(st.integers(0, len(p.boxes) - 1))
    assume(len(p.boxes[b]))
    row = data.draw(st.integers(0, len(p.boxes[b]) - 1))
    what = data.draw(st.sampled_from(['flat', 'turned', 'below', 'above', 'between']))
    boxes, labels = [own.clone() for own in p.boxes], [own.double() for own in p.labels]
    if what == 'flat': boxes[b][row, 2] = boxes[b][row, 0]
    elif what == 'turned': boxes[b][row] = boxes[b][row, [0, 3, 2, 1]]
    else: labels[b][row] = dict(below=-1, above=p.num_classes, between=p.num_classes - .5)[what]
    kind = 'box' if what in ('flat', 'turned') else 'label'
    with pytest.raises(ValueError, match=f'^image {b}, row {row}: {kind} '):
        p.loss(check=True)(*p.maps, boxes, labels)


# ---- The loss

@given(problems(dtypes=(torch.bfloat16, SINGLE, DOUBLE)))
def test_losses_and_gradients_are_finite(p):
    "Not in fp16, where the gradients of an object of a thousandth of a pixel overflow"
    losses, grads = gradients(p.loss(), p.maps, *p.objects)
    assert list(losses) == NAMES
    check_finite(losses, grads)


@given(problems(dtypes=(torch.float16,)))
def test_gradients_are_finite_in_half_precision(p):
    "From a pixel on, and boxes that fp16 can hold"
    assume(p.kinds[1][0] != 'extreme')
    wide = [torch.cat([own[:, :2], own[:, 2:].maximum(own[:, :2] + 1)], dim=1) for own in p.boxes]
    losses, grads = gradients(p.loss(), p.maps, wide, p.labels)
    check_finite(losses, grads)


@given(problems(dtypes=(SINGLE, DOUBLE)))
def test_objects_without_area_do_no_harm_where_values_are_not_checked(p):
    "An accelerator does not look at values, unless asked to"
    corner = [own[:, :2] for own in p.boxes]
    flat = [torch.cat([c, c, c, own[:, [0, 3]]], 1).view(-1, 4) for c, own in zip(corner, p.boxes)] # A point and a line
    losses, grads = gradients(p.loss(), p.maps, flat, [own.repeat_interleave(2) for own in p.labels])
    check_finite(losses, grads)


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
            for c, logit in enumerate(classes[a].tolist()):
                total['loss_cls'] += bce(logit, iou if c == p.labels[b][g] else 0)
            sides = math.log((x2 - x1)/s + 1e-8), math.log((y2 - y1)/s + 1e-8)
            wanted = ((x1 + x2)/2 - x)/s, ((y1 + y2)/2 - y)/s, *sides
            total['loss_l1'] += sum(abs(r - w) for r, w in zip(raw[a].tolist(), wanted))
            giou, ciou = box_giou(boxes[a], box).item(), box_ciou(boxes[a], box).item()
            overlap = dict(squared_giou=giou**2, squared_iou=iou**2, giou=giou, ciou=ciou)[p.box_loss]
            total['loss_bbox'] += 5*(1 - overlap)
    return {name: torch.tensor(value/max(P, 1), dtype=p.precise) for name, value in total.items()}


@given(problems())
def test_losses_are_sums_over_positives(p):
    assert_close(p.loss()(*p.maps, *p.objects), slow_losses(p), rtol=1e-4, atol=1e-4)


# The layout in memory decides which numbers are computed in vectors and which one by one, with another last digit. The
# gradients of a box of a few last digits of fp32 depend on that, those of fp64 do not: so two ways are compared in fp64

@given(problems(dtypes=(DOUBLE,)))
def test_loss_of_a_batch_equals_one_by_one(p):
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
def test_slots_with_a_mask_equal_picked_rows(p, crowd, overflow):
    "The path of accelerators and that of the CPU. Empty slots may hold predictions that overflow"
    if overflow:
        raw = [m.where(torch.arange(m.shape[3]) % 2 == 0, 1000.) for m in p.maps[1]]
        p = replace(p, maps=[p.maps[0], raw, p.maps[2]])
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
def test_loss_on_a_gpu_equals_that_on_a_cpu(p, crowd):
    "Its losses are compared where no tie was decided otherwise, and gradients in fp64, as above"
    boxes, labels = ([t.cuda() for t in ts] for ts in p.objects)
    there = replace(p, maps=[[m.cuda() for m in levels] for levels in p.maps], boxes=boxes, labels=labels)
    with torch.device('cuda'): found = owners(there, simota)
    same = same_up_to_ties(p, owners(p), found)
    region = torch.tensor([[0., 0., 40., 60.]])[:crowd]
    regions = dict(ground_truth_bboxes_ignore=[region]*len(p.boxes))
    got, grads = gradients(there.loss(), there.maps, *there.objects, **regions)
    check_finite(got, grads)
    if not same: return
    want, want_grads = gradients(p.loss(), p.maps, *p.objects, **regions)
    assert_close({k: v.cpu() for k, v in got.items()}, want, rtol=1e-4, atol=1e-5)
    grads = [[g.cpu() for g in levels] for levels in grads]
    if p.precise == DOUBLE: assert_close(grads, want_grads, rtol=1e-4, atol=1e-5)


LONG = settings.get_current_profile_name() == 'long'
ONE, TWO = ([8], [(7, 4)]), ([8, 16], [(6, 5), (3, 3)])
FIVE = [4, 8, 16, 32, 64], [(6, 6), (5, 4), (4, 4), (2, 3), (1, 1)]
GRAPHS = [(TWO, DOUBLE, 0, 'squared_giou'), (ONE, DOUBLE, 1, 'squared_iou'), (FIVE, SINGLE, 2, 'ciou'),
          (TWO, torch.bfloat16, 0, 'giou')]


@cache
def eager_and_compiled(graph):
    (strides, _), _, assigner, box_loss = GRAPHS[graph]
    torch.compiler.reset() # All graphs together would be more than torch keeps
    assigner = SimOTAAssigner(**ASSIGNERS[assigner])
    eager = YOLOXLoss(3, use_l1=True, strides=strides, box_loss=box_loss, assigner=assigner)
    return eager, torch.compile(_losses, fullgraph=True, backend='inductor' if LONG else 'aot_eager')


@pytest.mark.parametrize('graph', range(len(GRAPHS)))
@given(data=st.data())
def test_compiled_loss_equals_eager_loss(graph, data):
    "As it is where there is an accelerator; one graph for all numbers of objects"
    shape, dtype, assigner, _ = GRAPHS[graph]
    p = data.draw(problems(images=(2, 2), classes=(3,), dtypes=(dtype,), assigners=ASSIGNERS[assigner:assigner + 1],
                           levels=(len(shape[0]),)*2, shape=shape))
    shift = torch.tensor([.0011, .0013, .0017, .0019]).to(dtype)[:, None, None]
    raw = [m + shift for m in p.maps[1]] # Where a prediction is all but its target, L1 may slope either way
    p, (eager, losses) = replace(p, maps=[p.maps[0], raw, p.maps[2]]), eager_and_compiled(graph)

    def compiled(classes, raw, objectness, boxes, labels):
        gt = _move_objects(_stack(boxes, labels, rounded=True), torch.zeros(0, dtype=p.precise))
        for t in gt: torch._dynamo.maybe_mark_dynamic(t, 1)
        return dict(zip(NAMES, losses(eager, (classes, raw, objectness), gt, None)[0]))
    got, grads = gradients(compiled, p.maps, *p.objects)
    check_finite(got, grads)
    ties = any(len(c) > 1 for b in range(2) for c in slow_choices(p, b))
    if ties: return event('ties, which compiled arithmetic may decide otherwise')
    want, want_grads = gradients(eager, p.maps, *p.objects)
    assert_close(got, want, rtol=1e-4, atol=1e-5)
    if dtype == DOUBLE: assert_close(grads, want_grads, rtol=1e-4, atol=1e-5)


@given(problems())
def test_images_without_objects_teach_objectness_alone(p):
    empty = [own[:0] for own in p.boxes], [own[:0] for own in p.labels]
    losses, (classes, boxes, objectness) = gradients(p.loss(), p.maps, *empty)
    assert losses['loss_cls'] == losses['loss_bbox'] == losses['loss_l1'] == 0
    assert all(g is not None and not g.any() for g in classes + boxes)
    for g, m in zip(objectness, p.maps[2]): assert_close(g, m.sigmoid(), rtol=1e-2, atol=1e-6)


@given(problems(dtypes=HALF))
def test_loss_in_half_precision_is_that_of_the_rounded_values(p):
    want, want_grads = gradients(p.loss(), [[m.float() for m in levels] for levels in p.maps], *p.objects)
    with torch.autocast('cpu', torch.bfloat16): got, grads = gradients(p.loss(), p.maps, *p.objects)
    assert_close(got, want, rtol=0, atol=0)
    for levels, wanted in zip(grads, want_grads):
        for g, w in zip(levels, wanted): assert_close(g, w.to(g.dtype), rtol=0, atol=0)


# Often from center to center
STARTS, LENGTHS = st.integers(0, 16), st.integers(1, 16)
EVEN = st.builds(lambda x, y, w, h: [2*x, 2*y, 2*(x + w), 2*(y + h)], STARTS, STARTS, LENGTHS, LENGTHS)


@given(problems(dtypes=(SINGLE, DOUBLE)), st.lists(EVEN, max_size=3))
def test_ignored_regions_change_the_background_alone(p, rows):
    regions = [torch.tensor(rows, dtype=SINGLE).reshape(-1, 4)]*len(p.boxes)
    plain, plain_grads = gradients(p.loss(), p.maps, *p.objects)
    losses, grads = gradients(p.loss(), p.maps, *p.objects, ground_truth_bboxes_ignore=regions)
    assert {k: v for k, v in losses.items() if k != 'loss_obj'} == {k: v for k, v in plain.items() if k != 'loss_obj'}
    def ignored(x, y, *_): return any(x1 < x < x2 and y1 < y < y2 for x1, y1, x2, y2 in rows)
    inside = torch.tensor([ignored(*center) for center in cell_centers(p.corners).tolist()])
    silent = inside & (torch.tensor(owners(p)) < 0)
    before, after = (flatten_levels(g[2])[..., 0] for g in (plain_grads, grads))
    assert_close(after, before.where(~silent, 0), rtol=0, atol=0)


@given(problems(), st.randoms(use_true_random=False))
def test_order_of_classes_does_not_matter(p, random):
    order = random.sample(range(p.num_classes), p.num_classes) # New class i is old class order[i]
    labels = [torch.tensor(order).argsort()[own] for own in p.labels]
    renamed = replace(p, maps=[[m[:, order] for m in p.maps[0]], *p.maps[1:]], labels=labels)
    if not same_up_to_ties(p, owners(p), owners(renamed)): return
    want = p.loss()(*p.maps, *p.objects)
    assert_close(renamed.loss()(*renamed.maps, *renamed.objects), want, rtol=1e-4, atol=1e-5)


# ---- The parts

OFFSETS, STRIDES = st.integers(-100, 100), st.sampled_from([4, 8, 12, 64])


@given(st.lists(st.floats(-20, 20), min_size=4, max_size=4), OFFSETS, OFFSETS, STRIDES)
def test_decode_is_undone_by_encode(raw, x, y, s):
    raw, prior = torch.tensor([raw], dtype=DOUBLE), torch.tensor([[x*s, y*s, s, s]], dtype=DOUBLE)
    boxes = decode(raw, prior)
    assert_close(encode(boxes, prior, eps=0), raw, rtol=0, atol=1e-5) # Sizes of 20 leave that to the middle
    assert_close(boxes[:, :2] + boxes[:, 2:], 2*(raw[:, :2]*s + prior[:, :2]), rtol=1e-6, atol=1e-5)


@given(BOXES, OFFSETS, OFFSETS, STRIDES)
def test_encode_is_undone_by_decode(box, x, y, s):
    box, prior = torch.tensor([box], dtype=DOUBLE), torch.tensor([[x*s, y*s, s, s]], dtype=DOUBLE)
    assert_close(decode(encode(box, prior), prior), box, rtol=0, atol=1e-6)


def fractions_of(a, b):
    "Intersection, union and enclosing box in exact arithmetic"
    def area(x1, y1, x2, y2): return max(0, Fraction(x2) - Fraction(x1))*max(0, Fraction(y2) - Fraction(y1))
    shared = area(*map(max, a[:2], b[:2]), *map(min, a[2:], b[2:]))
    return shared, area(*a) + area(*b) - shared, area(*map(min, a[:2], b[:2]), *map(max, a[2:], b[2:]))


@given(BOXES, BOXES, st.sampled_from([SINGLE, DOUBLE]))
def test_overlaps_equal_exact_arithmetic(a, b, dtype):
    shared, union, around = fractions_of(a, b)
    rows = torch.tensor([a], dtype=dtype), torch.tensor([b], dtype=dtype)
    iou, giou = float(shared/max(union, Fraction(1e-6))), float(shared/union - (around - union)/around)
    for f, want in [(box_iou, iou), (box_giou, giou)]:
        assert_close(f(*rows), torch.tensor([want], dtype=dtype), rtol=1e-5, atol=1e-6)
    (x1, y1, x2, y2), (u1, v1, u2, v2) = a, b # CIoU by its equations 10 and 11
    width, height = max(x2, u2) - min(x1, u1), max(y2, v2) - min(y1, v1)
    v = 4/math.pi**2*(math.atan((x2 - x1)/(y2 - y1)) - math.atan((u2 - u1)/(v2 - v1)))**2
    iou, apart = float(shared/union), ((x1 + x2 - u1 - u2)**2 + (y1 + y2 - v1 - v2)**2)/4
    ciou = iou - apart/(width**2 + height**2) - (v*v/(1 - iou + v) if v else 0)
    if union > 1e-5: assert_close(box_ciou(*rows).item(), ciou, rtol=1e-4, atol=1e-4)
    for f in (box_iou, box_giou, box_ciou):
        assert_close(f(*rows), f(*rows[::-1]))
        assert f(*rows) <= 1 + 1e-6
        exact = f != box_iou or fractions_of(a, a)[1] > 1e-5
        assert_close(f(rows[0], rows[0]), torch.ones(1, dtype=dtype), rtol=0, atol=1e-5 if exact else 1)
    assert max(box_ciou(*rows), box_giou(*rows)) <= shared/union + 1e-5


POINT_OR_LINE = st.sampled_from([[0, 1, 0, 1], [0, 1, 0, 3], [0, 1, 2, 1]])


@given(BOXES, st.sampled_from(sorted(BOX_LOSSES)), st.sampled_from([SINGLE, DOUBLE]), POINT_OR_LINE)
def test_box_losses_of_points_and_lines_are_finite(box, name, dtype, corners):
    "A prediction may be so small that it is one, and so may an object where nobody looks"
    solid = torch.tensor([box], dtype=dtype)
    flat = solid[:, corners]
    for pred, target in [(flat, flat), (flat, solid), (solid, flat)]:
        pred = pred.clone().requires_grad_()
        loss = BOX_LOSSES[name](pred, target).sum()
        slope, = torch.autograd.grad(loss, pred)
        assert loss.isfinite() and loss >= 0 and slope.isfinite().all(), (loss, slope)


@given(st.integers(1, 120), st.integers(1, 120), st.lists(st.integers(2, 70), min_size=1, max_size=5))
@example(9, 14, [1, 3])
@example(200, 3, [1])
def test_grids_list_cells_in_the_order_of_maps(height, width, strides):
    grid = generate_output_grids(height, width, strides)
    sizes = [(math.ceil(height/s), math.ceil(width/s)) for s in strides]
    corners = grid_priors(sizes, strides)
    assert_close(corners, torch.cat([grid[:, :2]*grid[:, 2:], grid[:, 2:], grid[:, 2:]], 1).float())
    cells = [(x, y, s) for (h, w), s in zip(sizes, strides) for y in range(h) for x in range(w)]
    assert corners.tolist() == [[x*s, y*s, s, s] for x, y, s in cells]
    assert cell_centers(corners).tolist() == [[x + s/2, y + s/2, s, s] for x, y, s, _ in corners.tolist()]
    levels = corners.split([h*w for h, w in sizes])
    maps = [own.view(1, *size, 4).permute(0, 3, 1, 2) for own, size in zip(levels, sizes)]
    assert_close(flatten_levels(maps)[0], corners)


@given(st.integers(1, 500), st.integers(1, 12), st.booleans(), st.integers(0, 99), st.integers(1, 50))
def test_topk_values_are_the_beginning_of_sorted(A, k, largest, seed, different):
    values = torch.randint(different, (2, 3, A), generator=torch.Generator().manual_seed(seed))
    want = values.sort(-1, descending=largest).values
    for order in (values, want, want.flip(-1)): # The best may be in the rest that fills no column
        assert_close(topk_values(order, k, largest), want[..., :k])


@given(st.lists(st.tuples(st.booleans(), st.floats(0, width=32), st.integers(0, 2**24 - 1)), min_size=2, max_size=20))
@example([(False, 0., 1), (False, -0., 0)])
@example([(False, math.nan, 0), (True, 0., 0), (False, math.inf, 0)])
@example([(False, -3e-7, 0), (False, 0., 1), (False, -0., 2), (False, 1e-30, 1)]) # Rounding, where an IoU is 1
def test_keys_sort_by_preference_cost_and_index(pairs):
    not_preferred, cost, index = zip(*pairs)
    keys = rank_key(torch.tensor(cost), torch.tensor(not_preferred), torch.tensor(index)).tolist()
    def plain(i): return not_preferred[i], math.isnan(cost[i]), 0 if math.isnan(cost[i]) else max(0, cost[i]), index[i]
    assert sorted(range(len(keys)), key=lambda i: (keys[i], i)) == sorted(range(len(keys)), key=lambda i: (plain(i), i))


@given(st.integers(1, 9), st.integers(1, 2000), st.integers(0, 99))
def test_class_targets_hold_one_number_in_a_row(P, C, seed):
    g = torch.Generator().manual_seed(seed)
    labels, ious = torch.randint(C, (P,), generator=g), torch.rand(P, generator=g)
    assert_close(class_targets(labels, ious, C), F.one_hot(labels, C)*ious[:, None])
