"Dtypes, sizes and counts at their ends, other devices, copies and exports."
import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from random_batches import NAMES, batch, gradients, in_order
from torch.testing import assert_close

from cjm_yolox_pytorch.assignment import pad_objects, simota
from cjm_yolox_pytorch.assignment_sparse import simota_sparse
from cjm_yolox_pytorch.boxes import cell_centers, decode, encode, flatten_levels, grid_priors
from cjm_yolox_pytorch.inference import YOLOXInferenceWrapper
from cjm_yolox_pytorch.loss import YOLOXLoss
from cjm_yolox_pytorch.model import MODEL_TYPES, build_model
from cjm_yolox_pytorch.sampling import class_targets
from cjm_yolox_pytorch.simota import SimOTAAssigner

ROOT = Path(__file__).resolve().parents[2]
HALF = torch.float16, torch.bfloat16


def scene(side, objects, num_classes=2, strides=(8, 16, 32), seed=0):
    "Maps of a square image in which cells predict, nearly, the object next to them"
    g, sizes = torch.Generator().manual_seed(seed), [(side//s, side//s) for s in strides]
    corners = grid_priors(sizes, strides)
    labels = torch.randint(num_classes, (len(objects),), generator=g)
    middles = (objects[:, :2] + objects[:, 2:])/2
    parts = cell_centers(corners)[:, :2].split(4096)
    nearest = torch.cat([torch.cdist(part, middles).argmin(1) for part in parts])
    raw = (encode(objects[nearest], corners) + .1*torch.randn(len(corners), 4, generator=g)).clamp(-20, 20)
    flat = torch.randn(len(corners), num_classes, generator=g) - 1, raw, torch.randn(len(corners), 1, generator=g)
    counts = [h*w for h, w in sizes]
    maps = [[m.T.reshape(1, -1, *size) for m, size in zip(f.split(counts), sizes)] for f in flat]
    return maps, [objects], [labels]


def scattered(count, side, largest, seed=0):
    g = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=g)*(side - largest)
    return torch.cat([corner, corner + 2 + (largest - 2)*torch.rand(count, 2, generator=g)**3], 1)


def assigned(maps, boxes, labels, strides=(8, 16, 32), **settings):
    "Image, cell and object of the positives on the CPU's path and on that of accelerators"
    classes, raw, objectness = maps
    corners = grid_priors([m.shape[2:] for m in classes], strides)
    predicted = flatten_levels(objectness)[..., 0], decode(flatten_levels(raw), corners)
    for assign in (simota_sparse, simota):
        inputs = *predicted, cell_centers(corners), pad_objects(boxes, labels)
        yield [row for row, _ in in_order(assign(classes, *inputs, SimOTAAssigner(**settings)))]


# ---- Large and many

def test_images_may_have_4096_pixels():
    "Coordinates far from the corner have fewer digits: the assignment is that of the same objects near the corner"
    objects = torch.tensor([[16., 24., 120., 100.], [40., 48., 56., 60.], [8., 8., 500., 490.]])
    near = scene(512, objects)
    sparse, dense = assigned(*near)
    assert sparse == dense and len(sparse) > 12
    at, sizes = 4096 - 512, [512, 256, 128]
    far = [[torch.full((1, m.shape[1], n, n), -2.) for m, n in zip(levels, sizes)] for levels in near[0]]
    for levels, small in zip(far, near[0]):
        for m, s in zip(levels, small): m[..., -s.shape[2]:, -s.shape[3]:] = s
    def in_small(cell): # Its number in the image of 512 pixels
        start, little = 0, 0
        for n in sizes:
            if cell < start + n*n: return little + ((cell - start)//n - n*7//8)*(n//8) + (cell - start) % n - n*7//8
            start, little = start + n*n, little + (n//8)**2
    for found in assigned(far, [objects + at], near[2]): assert [[b, in_small(c), g] for b, c, g in found] == sparse
    losses, grads = gradients(YOLOXLoss(2, use_l1=True), far, [objects + at], near[2])
    small, _ = gradients(YOLOXLoss(2, use_l1=True), *near)
    for name in NAMES:
        if name != 'loss_obj': assert_close(losses[name], small[name], rtol=1e-4, atol=1e-4)
    assert all(g.isfinite().all() for g in grads)


def test_images_may_have_5000_objects():
    crowd = scene(320, scattered(5000, 320, 40))
    sparse, dense = assigned(*crowd, max_mb=64)
    assert sparse == dense and len(sparse) > 1500 # Of 2100 cells
    losses, grads = gradients(YOLOXLoss(2, use_l1=True), *crowd)
    assert all(v.isfinite() for v in losses.values()) and all(g.isfinite().all() for g in grads)


@pytest.mark.parametrize('C', [1, 2, 300, 2000])
def test_classes_may_be_2000(C):
    "Classes with a low score cost next to nothing: the assignment is that without them"
    objects = scattered(12, 96, 60)
    maps, boxes, _ = scene(96, objects)
    labels = [torch.arange(12) % min(C, 2) * (C - 1)] # The first and the last
    wide = [torch.full((1, C, *m.shape[2:]), -40.) for m in maps[0]]
    for w, m in zip(wide, maps[0]): w[:, [0, C - 1]] = m[:, [0, -1]]
    narrow = [m[:, :min(C, 2)] if C > 1 else m[:, -1:] for m in maps[0]]
    sparse, dense = assigned([wide, *maps[1:]], boxes, labels)
    assert sparse == dense == next(assigned([narrow, *maps[1:]], boxes, [labels[0].clamp(max=1)]))
    got = YOLOXLoss(C)([*wide], *maps[1:], boxes, labels)
    want = YOLOXLoss(min(C, 2))(narrow, *maps[1:], boxes, [labels[0].clamp(max=1)])
    assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert class_targets(labels[0], torch.ones(12), C).sum() == 12


@pytest.mark.parametrize('strides', [[16], [8, 32], [8, 16, 32], [4, 8, 16, 32], [8, 16, 32, 64, 128]])
def test_levels_may_be_1_to_5(strides):
    maps, boxes, labels = scene(256, scattered(9, 256, 200), strides=strides)
    sparse, dense = assigned(maps, boxes, labels, strides)
    assert sparse == dense and len(sparse) >= 9
    loss = YOLOXLoss(2, use_l1=True, strides=strides)
    losses, grads = gradients(loss, maps, boxes, labels)
    assert all(v.isfinite() for v in losses.values()) and len(grads) == 3*len(strides)
    for change in (strides[:-1], [*strides, 256]):
        message = f'class_scores has {len(strides)} levels, but there are {len(change)} strides'
        with pytest.raises(ValueError, match=message): YOLOXLoss(2, strides=change)(*maps, boxes, labels)


def test_batches_may_have_300_images():
    "The same images a hundred times have the same loss"
    maps, boxes, labels = batch([2, 0, 1])
    loss = YOLOXLoss(4, use_l1=True)
    many = [[m.repeat(100, 1, 1, 1) for m in levels] for levels in maps]
    assert_close(loss(*many, boxes*100, labels*100), loss(*maps, boxes, labels))


# ---- Half and mixed

MIXED = [(torch.float16, torch.float32, torch.float16), (torch.float32, torch.bfloat16, torch.float16),
         (torch.bfloat16, torch.float64, torch.float32)]


@pytest.mark.parametrize('dtypes', MIXED)
def test_maps_may_have_different_dtypes(dtypes):
    "As under autocast: the loss is that of their values in the widest dtype, and gradients have the dtype of their map"
    maps, boxes, labels = batch([5, 0, 9])
    maps = [[m.to(d) for m in levels] for levels, d in zip(maps, dtypes)]
    wide = torch.float64 if torch.float64 in dtypes else torch.float32
    got, grads = gradients(YOLOXLoss(4, use_l1=True), maps, boxes, labels)
    want, _ = gradients(YOLOXLoss(4, use_l1=True), [[m.to(wide) for m in levels] for levels in maps], boxes, labels)
    assert_close(got, want, rtol=1e-6, atol=0)
    assert [g.dtype for g in grads] == [d for d in dtypes for _ in range(3)]


def step(model, x, boxes, labels):
    outputs = model(x)
    losses = YOLOXLoss(3, use_l1=True)(*outputs, boxes, labels)
    sum(losses.values()).backward()
    return outputs, losses, [p.grad for p in model.parameters()]


ALL = [(dtype, False) for dtype in (*HALF, torch.float32, torch.float64)] + [(dtype, True) for dtype in HALF]


@pytest.mark.parametrize('dtype, autocast', ALL)
def test_networks_may_be_trained_in_any_dtype(dtype, autocast):
    "The network in `dtype`, or in fp32 under autocast to it"
    torch.manual_seed(0)
    model, x = build_model('yolox_tiny', 3, pretrained=False).train(), torch.rand(2, 3, 64, 96)
    objects = batch([3, 0], num_classes=3)[1:]
    plain = step(copy.deepcopy(model), x, *objects)[0]
    if not autocast: model, x = model.to(dtype), x.to(dtype)
    mixed = torch.autocast('cpu', dtype if autocast else torch.bfloat16, enabled=autocast)
    with mixed: outputs, losses, grads = step(model, x, *objects)
    wide = torch.promote_types(dtype, torch.float32)
    assert all(v.dtype is wide and v.isfinite() for v in losses.values())
    assert all(g is not None and g.isfinite().all() for g in grads)
    # The distance from fp32 depends on weights; batch norm of random ones leaves bf16 with a digit at most
    loose = {torch.bfloat16: 1, torch.float16: .2}.get(dtype, 1e-3)
    for m, w in zip(sum(outputs, []), sum(plain, [])): assert m.dtype is dtype and (m - w).norm() < loose*w.norm()
    wrapped = YOLOXInferenceWrapper(model.eval(), [.5]*3, [1.]*3).to(x.dtype)
    with torch.no_grad(), mixed: found = wrapped(x)
    assert found.dtype is wide and found.isfinite().all() and (found[..., 4] == found[..., 4].round()).all()


# ---- The same bits

def test_loss_of_the_same_input_has_the_same_bits():
    "Also in another process, where sets have another order"
    maps, boxes, labels = batch([12, 0, 60])
    (losses, grads), (again, their) = (gradients(YOLOXLoss(4, use_l1=True), maps, boxes, labels) for _ in range(2))
    assert losses == again and all(torch.equal(g, t) for g, t in zip(grads, their))
    code = """import pickle, sys, torch
sys.path.insert(0, 'tests/core')
from random_batches import batch, gradients
from cjm_yolox_pytorch.loss import YOLOXLoss
torch.set_num_threads(int(sys.argv[1]))
found = gradients(YOLOXLoss(4, use_l1=True), *batch([12, 0, 60]))
pickle.dump(found, sys.stdout.buffer)"""
    command = [sys.executable, '-c', code, str(torch.get_num_threads())]
    env = {**os.environ, 'PYTHONHASHSEED': '1'}
    output = subprocess.run(command, env=env, cwd=ROOT, check=True, capture_output=True).stdout
    losses_there, grads_there = pickle.loads(output)
    assert losses == losses_there and all(torch.equal(g, t) for g, t in zip(grads, grads_there))


# ---- Copies, exports

def pickled(thing): return pickle.loads(pickle.dumps(thing))


@pytest.mark.parametrize('again', [copy.deepcopy, pickled], ids=['deepcopy', 'pickle'])
def test_models_and_assigners_can_be_copied(again):
    x = torch.rand(1, 3, 64, 64)
    model = build_model('yolox_nano', 3, pretrained=False).eval()
    model.name = 'nano' # Scripts set attributes
    wrapped = YOLOXInferenceWrapper(model, [.5]*3, [1.]*3)
    assert again(SimOTAAssigner(1.5)) == SimOTAAssigner(1.5)
    with torch.no_grad():
        want = wrapped(x)
        assert torch.equal(again(wrapped)(x), want)
        other = again(model)
        assert other.name == 'nano'
        other.bbox_head.multi_level_conv_obj[0].bias.data += 1
        assert torch.equal(wrapped(x), want) # The copy has its own weights


@pytest.mark.parametrize('training', [False, True])
def test_model_can_be_exported_by_torch(training):
    torch.manual_seed(0)
    model, x = build_model('yolox_nano', 3, pretrained=False).train(training), torch.rand(2, 3, 64, 96)
    program = torch.export.export(copy.deepcopy(model), (x,)).module()
    with torch.no_grad(): assert_close(list(program(x)), list(model(x)), rtol=1e-4, atol=1e-4)


class Step(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.loss = YOLOXLoss(4, use_l1=True, check=False)

    def forward(self, *inputs): return self.loss(*inputs)


def test_loss_can_be_exported_by_torch():
    "As one program with fixed numbers of objects, for training without Python"
    maps, boxes, labels = batch([3, 2])
    program = torch.export.export(Step(), (*maps, boxes, labels)).module()
    maps, boxes, labels = batch([3, 2], seed=1)
    assert_close(program(*maps, boxes, labels), YOLOXLoss(4, use_l1=True)(*maps, boxes, labels))


# ---- Other devices

class NoCUDA:
    "torch.cuda on a machine without it: any use but `is_available` is an error"
    def is_available(self): return False
    def __getattr__(self, name): raise AssertionError(f'torch.cuda.{name} was used')


@pytest.mark.parametrize('model_type', MODEL_TYPES)
def test_model_and_loss_run_on_the_meta_device(model_type, monkeypatch):
    "Shapes without values: 4096 pixels go through network and loss, nothing leaves the device, and nothing uses CUDA"
    monkeypatch.setattr(torch, 'cuda', NoCUDA())
    with torch.device('meta'):
        model = build_model(model_type, 7, pretrained=False)
        outputs = model(torch.rand(2, 3, 4096, 4096))
        boxes, labels = [torch.rand(n, 4) for n in (5, 0)], [torch.zeros(n) for n in (5, 0)]
    shapes = [[m.shape[1:] for m in maps] for maps in outputs]
    assert shapes == [[(d, 4096//s, 4096//s) for s in (8, 16, 32)] for d in (7, 4, 1)]
    losses = YOLOXLoss(7, use_l1=True)(*outputs, boxes, labels, ground_truth_bboxes_ignore=boxes)
    assert list(losses) == NAMES and all(v.device.type == 'meta' and v.shape == () for v in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad.device.type == 'meta' and p.grad.shape == p.shape for p in model.parameters())
    wrapped = YOLOXInferenceWrapper(model.eval(), [0.]*3, [1.]*3).to('meta')
    with torch.no_grad(): assert wrapped(torch.rand(1, 3, 64, 64, device='meta')).shape == (1, 84, 6)
