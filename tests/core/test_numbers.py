"Large, small, half and elsewhere: dtypes, sizes and counts at their ends, other devices, other processes, copies."
import ast
import copy
import multiprocessing
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from cjm_yolox_pytorch.data.batches import DetectionDataset, EpochBatches, make_loader, train_loader
from cjm_yolox_pytorch.data.augment import yolox_transforms
from cjm_yolox_pytorch.boxes import cell_centres, decode, encode, flatten_levels, grid_priors
from cjm_yolox_pytorch.data.splits import read_split
from cjm_yolox_pytorch.detection.detector import predict
from cjm_yolox_pytorch.inference import YOLOXInferenceWrapper
from cjm_yolox_pytorch.loss import YOLOXLoss
from cjm_yolox_pytorch.sampling import class_targets
from cjm_yolox_pytorch.model import MODEL_TYPES, build_model
from cjm_yolox_pytorch.training.recipe import EMA, Recipe
from cjm_yolox_pytorch.data.shapes import write_shapes
from cjm_yolox_pytorch.assignment import pad_objects, simota
from cjm_yolox_pytorch.assignment_sparse import simota_sparse
from cjm_yolox_pytorch.simota import SimOTAAssigner
from test_loss import NAMES, batch, gradients

ROOT = Path(__file__).resolve().parents[1]
HALF = torch.float16, torch.bfloat16


def scene(side, objects, num_classes=2, strides=(8, 16, 32), seed=0):
    "Maps of a square image in which cells predict, nearly, the object next to them"
    g, sizes = torch.Generator().manual_seed(seed), [(side//s, side//s) for s in strides]
    corners = grid_priors(sizes, strides)
    labels, nearest = torch.randint(num_classes, (len(objects),), generator=g), torch.zeros(len(corners), dtype=torch.int64)
    middles = (objects[:, :2] + objects[:, 2:])/2
    for part in torch.arange(len(corners)).split(4096): nearest[part] = torch.cdist(cell_centres(corners)[part, :2], middles).argmin(1)
    raw = (encode(objects[nearest], corners) + .1*torch.randn(len(corners), 4, generator=g)).clamp(-20, 20)
    flat = torch.randn(len(corners), num_classes, generator=g) - 1, raw, torch.randn(len(corners), 1, generator=g)
    maps = [[m.T.reshape(1, -1, *size) for m, size in zip(f.split([h*w for h, w in sizes]), sizes)] for f in flat]
    return maps, [objects], [labels]


def scattered(count, side, largest, seed=0):
    g = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=g)*(side - largest)
    return torch.cat([corner, corner + 2 + (largest - 2)*torch.rand(count, 2, generator=g)**3], 1)


def assigned(maps, boxes, labels, strides=(8, 16, 32), **settings):
    "Image, cell and object of the positives on the CPU's path and on that of accelerators"
    classes, raw, objectness = maps
    corners = grid_priors([m.shape[2:] for m in classes], strides)
    inputs = classes, flatten_levels(objectness)[..., 0], decode(flatten_levels(raw), corners), cell_centres(corners), *pad_objects(boxes, labels), SimOTAAssigner(**settings)
    for assign in (simota_sparse, simota):
        image, cells, objects, _, on = assign(*inputs)
        if on is not None: image, cells, objects = (t[on] for t in (image.expand_as(cells), cells, objects))
        yield sorted(zip(image.tolist(), cells.tolist(), objects.tolist()))


# ---- Large and many

def test_an_image_of_4096_pixels():
    "Far from the corner coordinates have fewer digits: the assignment there is that of the same objects near the corner"
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
    for found in assigned(far, [objects + at], near[2]): assert [(b, in_small(c), g) for b, c, g in found] == sparse
    losses, grads = gradients(YOLOXLoss(2, use_l1=True), far, [objects + at], near[2])
    small, _ = gradients(YOLOXLoss(2, use_l1=True), *near)
    for name in NAMES:
        if name != 'loss_obj': assert_close(losses[name], small[name], rtol=1e-4, atol=1e-4)
    assert all(g.isfinite().all() for g in grads)


def test_5000_objects_in_one_image():
    crowd = scene(320, scattered(5000, 320, 40))
    sparse, dense = assigned(*crowd, max_mb=64)
    assert sparse == dense and len(sparse) > 1500 # Of 2100 cells
    losses, grads = gradients(YOLOXLoss(2, use_l1=True), *crowd)
    assert all(v.isfinite() for v in losses.values()) and all(g.isfinite().all() for g in grads)


@pytest.mark.parametrize('C', [1, 2, 300, 2000])
def test_1_to_2000_classes(C):
    "Beside the objects' own, classes of which nobody thinks cost next to nothing: the assignment is that without them"
    objects = scattered(12, 96, 60)
    maps, boxes, _ = scene(96, objects)
    labels = [torch.arange(12) % min(C, 2) * (C - 1)] # The first and the last
    wide = [torch.full((1, C, *m.shape[2:]), -40.) for m in maps[0]]
    for w, m in zip(wide, maps[0]): w[:, [0, C - 1]] = m[:, [0, -1]]
    narrow = [m[:, :min(C, 2)] if C > 1 else m[:, -1:] for m in maps[0]]
    sparse, dense = assigned([wide, *maps[1:]], boxes, labels)
    assert sparse == dense == next(assigned([narrow, *maps[1:]], boxes, [labels[0].clamp(max=1)]))
    got, want = YOLOXLoss(C)([*wide], *maps[1:], boxes, labels), YOLOXLoss(min(C, 2))(narrow, *maps[1:], boxes, [labels[0].clamp(max=1)])
    assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert class_targets(labels[0], torch.ones(12), C).sum() == 12


@pytest.mark.parametrize('strides', [[16], [8, 32], [8, 16, 32], [4, 8, 16, 32], [8, 16, 32, 64, 128]])
def test_1_to_5_levels(strides):
    maps, boxes, labels = scene(256, scattered(9, 256, 200), strides=strides)
    sparse, dense = assigned(maps, boxes, labels, strides)
    assert sparse == dense and len(sparse) >= 9
    loss = YOLOXLoss(2, use_l1=True, strides=strides)
    losses, grads = gradients(loss, maps, boxes, labels)
    assert all(v.isfinite() for v in losses.values()) and len(grads) == 3*len(strides)
    for change in (strides[:-1], [*strides, 256]):
        with pytest.raises(ValueError, match=f'class_scores has {len(strides)} levels, but there are {len(change)} strides'): YOLOXLoss(2, strides=change)(maps[0], maps[1], maps[2], boxes, labels)


def test_300_images_in_one_batch():
    "The same images a hundred times have the same loss"
    maps, boxes, labels = batch([2, 0, 1])
    loss = YOLOXLoss(4, use_l1=True)
    many = [[m.repeat(100, 1, 1, 1) for m in levels] for levels in maps]
    assert_close(loss(*many, boxes*100, labels*100), loss(*maps, boxes, labels))


# ---- Half and mixed

@pytest.mark.parametrize('dtypes', [(torch.float16, torch.float32, torch.float16), (torch.float32, torch.bfloat16, torch.float16), (torch.bfloat16, torch.float64, torch.float32)])
def test_maps_of_different_dtypes(dtypes):
    "As autocast leaves them: the loss is that of their values in the widest of the dtypes, and gradients have the dtype of their map"
    maps, boxes, labels = batch([5, 0, 9])
    maps = [[m.to(d) for m in levels] for levels, d in zip(maps, dtypes)]
    wide = torch.float64 if torch.float64 in dtypes else torch.float32
    got, grads = gradients(YOLOXLoss(4, use_l1=True), maps, boxes, labels)
    want, _ = gradients(YOLOXLoss(4, use_l1=True), [[m.to(wide) for m in levels] for levels in maps], boxes, labels)
    assert_close(got, want, rtol=1e-6, atol=0)
    assert [g.dtype for g in grads] == [d for d in dtypes for _ in range(3)]


@pytest.mark.parametrize('dtype', [*HALF, torch.float32, torch.float64])
@pytest.mark.parametrize('autocast', [False, True])
def test_a_step_of_a_network_in_any_dtype(dtype, autocast):
    "The network in `dtype`, or in fp32 under autocast to it"
    if autocast and dtype not in HALF: pytest.skip('not a dtype of autocast')
    torch.manual_seed(0)
    model, x = build_model('yolox_tiny', 3, pretrained=False).train(), torch.rand(2, 3, 64, 96)
    _, boxes, labels = batch([3, 0], num_classes=3)
    def step(model, x):
        outputs = model(x)
        losses = YOLOXLoss(3, use_l1=True)(*outputs, boxes, labels)
        sum(losses.values()).backward()
        return outputs, losses, [p.grad for p in model.parameters()]
    plain = step(copy.deepcopy(model), x)[0]
    if not autocast: model, x = model.to(dtype), x.to(dtype)
    with torch.autocast('cpu', dtype if autocast else torch.bfloat16, enabled=autocast): outputs, losses, grads = step(model, x)
    assert all(v.dtype is torch.promote_types(dtype, torch.float32) and v.isfinite() for v in losses.values())
    assert all(g is not None and g.isfinite().all() for g in grads)
    for levels, wanted in zip(outputs, plain):
        for m, w in zip(levels, wanted): # How far from fp32 depends on weights; batch norm of random ones leaves bf16 with a digit at most
            assert m.dtype is dtype and (m - w).norm() < {torch.bfloat16: 1, torch.float16: .2}.get(dtype, 1e-3)*w.norm()
    wrapped = YOLOXInferenceWrapper(model.eval(), [.5]*3, [1.]*3).to(x.dtype)
    with torch.no_grad(), torch.autocast('cpu', dtype if autocast else torch.bfloat16, enabled=autocast): found = wrapped(x)
    assert found.dtype is torch.float32 and found.isfinite().all() and (found[..., 4] == found[..., 4].round()).all()


@pytest.mark.parametrize('dtype', HALF)
def test_boxes_and_labels_of_half_precision_outputs_keep_their_digits(dtype):
    "Neither 2000 classes nor 4096 pixels can be counted in half precision, so detections are made in fp32"
    class Says(torch.nn.Module): # What a network says of one object, of class 1777 in the last cell
        def forward(self, x):
            maps = [torch.full((1, d, x.shape[2]//8, x.shape[3]//8), v, dtype=dtype) for d, v in [(2000, -30.), (4, 0.), (1, -30.)]]
            maps[0][0, 1777, -1, -1] = maps[2][0, 0, -1, -1] = 30
            return tuple([m] for m in maps)
    wrapped = YOLOXInferenceWrapper(Says(), [0.]*3, [1.]*3, strides=[8])
    assert wrapped(torch.zeros(1, 3, 8, 4096))[0, -1].tolist() == [4084, -4, 8, 8, 1777, 1]
    (found,) = predict(Says(), [torch.zeros(3, 8, 4096, dtype=torch.uint8)], mean=[0.]*3, std=[1.]*3, size=(8, 4096), strides=[8])
    assert found.labels.tolist() == [1777] and found.boxes.tolist() == [[4084, 0, 4092, 4]]


# ---- The same bits

def test_the_same_input_gives_the_same_bits():
    maps, boxes, labels = batch([12, 0, 60])
    (losses, grads), (again, their) = (gradients(YOLOXLoss(4, use_l1=True), maps, boxes, labels) for _ in range(2))
    assert losses == again and all(torch.equal(g, t) for g, t in zip(grads, their))
    code = """import sys; sys.path.insert(0, 'tests')
import pickle, torch
from test_loss import YOLOXLoss, batch, gradients
torch.set_num_threads(int(sys.argv[2]))
losses, grads = gradients(YOLOXLoss(4, use_l1=True), *batch([12, 0, 60]))
with open(sys.argv[1], 'wb') as f: pickle.dump((losses, grads), f)"""
    for hashing in ('1', '2'): # In processes of their own, in which sets have another order
        there = subprocess.run([sys.executable, '-c', code, '/dev/stdout', str(torch.get_num_threads())], env={**os.environ, 'PYTHONHASHSEED': hashing}, cwd=ROOT, check=True, capture_output=True).stdout
        losses_there, grads_there = pickle.loads(there)
        assert losses == losses_there and all(torch.equal(g, t) for g, t in zip(grads, grads_there))


# ---- Other processes, copies, exports

@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp('shapes')
    write_shapes(folder, train=12, val=0, test=0, size=64)
    return read_split(folder, 'train')


def pixels(loader): return [(b.images, b.boxes, b.labels, b.crowds) for b in loader]


@pytest.mark.parametrize('method', multiprocessing.get_all_start_methods())
def test_workers_however_they_begin(shapes, method):
    dataset, batches = DetectionDataset(shapes, 64, yolox_transforms(64)), EpochBatches(12, 4, seed=1)
    here, loader = pixels(train_loader(dataset, batches)), train_loader(dataset, batches, workers=1)
    loader.multiprocessing_context = method
    assert_close(pixels(loader), here, rtol=0, atol=0)


def test_copies_are_equal(shapes):
    "What people keep, send to workers or deepcopy"
    torch.manual_seed(0)
    x = torch.rand(1, 3, 64, 64)
    model = build_model('yolox_nano', 3, pretrained=False).eval()
    model.name = 'nano' # Scripts set attributes
    wrapped, ema = YOLOXInferenceWrapper(model, [.5]*3, [1.]*3), EMA(model, .9)
    dataset = DetectionDataset(shapes, 64, yolox_transforms(64))
    with torch.no_grad(): want = wrapped(x)
    for again in (copy.deepcopy, lambda thing: pickle.loads(pickle.dumps(thing))):
        with torch.no_grad():
            assert torch.equal(again(wrapped)(x), want) and again(model).name == 'nano'
            assert torch.equal(torch.cat([m.flatten() for m in again(ema).module(x)[0]]), torch.cat([m.flatten() for m in model(x)[0]]))
        assert_close(again(dataset)[3, 7], dataset[3, 7], rtol=0, atol=0)
        assert again(Recipe('yolox_nano')) == Recipe('yolox_nano') and again(SimOTAAssigner(1.5)) == SimOTAAssigner(1.5)
        (found,) = predict(model, [torch.zeros(3, 64, 64, dtype=torch.uint8)], mean=[.5]*3, std=[1.]*3, size=64, conf=0)
        assert_close(vars(again(found)), vars(found), rtol=0, atol=0)
        assert [len(b.images) for b in make_loader(again(dataset), 5)] == [5, 5, 2]
    other = copy.deepcopy(model)
    other.bbox_head.multi_level_conv_obj[0].bias.data += 1
    with torch.no_grad(): assert torch.equal(wrapped(x), want) # A copy is one


@pytest.mark.parametrize('training', [False, True])
def test_torch_export(training):
    torch.manual_seed(0)
    model, x = build_model('yolox_nano', 3, pretrained=False).train(training), torch.rand(2, 3, 64, 96)
    program = torch.export.export(copy.deepcopy(model), (x,)).module()
    with torch.no_grad(): assert_close(list(program(x)), list(model(x)), rtol=1e-4, atol=1e-4)


def test_the_loss_can_be_exported():
    "As one program with fixed numbers of objects: what somebody needs who trains where there is no Python"
    maps, boxes, labels = batch([3, 2])
    class Step(torch.nn.Module):
        def __init__(self): super().__init__(); self.loss = YOLOXLoss(4, use_l1=True, check=False)
        def forward(self, classes, raw, objectness, boxes, labels): return self.loss(classes, raw, objectness, boxes, labels)
    program = torch.export.export(Step(), (*maps, boxes, labels)).module()
    other = batch([3, 2], seed=1)
    assert_close(program(*other[0], *other[1:]), YOLOXLoss(4, use_l1=True)(*other[0], *other[1:]))


# ---- Other devices

class NoCUDA:
    "torch.cuda on a machine of another maker: whoever uses it without asking is caught"
    def is_available(self): return False
    def __getattr__(self, name): raise AssertionError(f'torch.cuda.{name} was used')


@pytest.mark.parametrize('model_type', MODEL_TYPES)
def test_the_meta_device(model_type, monkeypatch):
    "Shapes and devices without values: 4096 pixels go through network and loss, nothing leaves the device, and nothing asks CUDA"
    monkeypatch.setattr(torch, 'cuda', NoCUDA())
    with torch.device('meta'): model = build_model(model_type, 7, pretrained=False)
    outputs = model(torch.rand(2, 3, 4096, 4096, device='meta'))
    assert [[m.shape[1:] for m in maps] for maps in outputs] == [[(d, 4096//s, 4096//s) for s in (8, 16, 32)] for d in (7, 4, 1)]
    objects = [torch.rand(5, 4, device='meta'), torch.rand(0, 4, device='meta')], [torch.zeros(n, device='meta') for n in (5, 0)]
    losses = YOLOXLoss(7, use_l1=True)(*outputs, *objects, ground_truth_bboxes_ignore=objects[0])
    assert list(losses) == NAMES and all(v.device.type == 'meta' and v.shape == () for v in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad.device.type == 'meta' and p.grad.shape == p.shape for p in model.parameters())
    with torch.no_grad(): assert YOLOXInferenceWrapper(model.eval(), [0.]*3, [1.]*3).to('meta')(torch.rand(1, 3, 64, 64, device='meta')).shape == (1, 84, 6)


@pytest.mark.parametrize('module', sorted((ROOT/'cjm_yolox_pytorch').glob('*.py')), ids=lambda p: p.stem)
def test_cuda_is_used_only_where_it_was_asked_for(module):
    "Every use of torch.cuda, but for the question whether it is there, stands behind a question for the device"
    for use, asked in cuda_uses(module.read_text(encoding='utf-8')): assert asked, use


def cuda_uses(source):
    "(use, whether a question for CUDA decides about it) of each: of torch.cuda, of `.cuda()`, and of a text such as 'cuda:0' that is not compared"
    tree, found = ast.parse(source), []
    for node in ast.walk(tree):
        for child in ast.iter_child_nodes(node): child.parent = node
    for node in ast.walk(tree):
        used = _use(node)
        if used is None: continue
        above, questions = node, []
        while hasattr(above, 'parent'):
            branch, above = above, above.parent
            if isinstance(above, (ast.If, ast.IfExp)) and branch is not above.test and (branch is above.body or isinstance(above, ast.If) and branch in above.body): questions.append(above.test)
        found.append((used, any(_asks(part) for q in questions for part in (q.values if isinstance(q, ast.BoolOp) and isinstance(q.op, ast.And) else [q]))))
    return found


def _use(node):
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r'cuda(:.*)?', node.value): return None if isinstance(_holder(node), (ast.Compare, ast.Subscript)) else repr(node.value)
    if isinstance(node, (ast.Import, ast.ImportFrom)) and re.search(r'\btorch\.cuda\b|torch import .*\bcuda\b', ast.unparse(node)): return ast.unparse(node)
    if not isinstance(node, ast.Attribute) or node.attr != 'cuda' or 'backends' in ast.unparse(node): return None
    whole = node.parent if isinstance(node.parent, ast.Attribute) else node
    return None if ast.unparse(whole) == 'torch.cuda.is_available' else ast.unparse(whole)


def _holder(text): return text.parent.parent if isinstance(text.parent, ast.Tuple) and isinstance(text.parent.parent, ast.Compare) else text.parent # Of `d in ('cpu', 'cuda')`, the comparison


def _asks(test): return isinstance(test, ast.Compare) and isinstance(test.ops[0], ast.Eq) and ast.unparse(test).endswith("== 'cuda'") or ast.unparse(test) in ('cuda', 'there', 'torch.cuda.is_available()') or ast.unparse(test).endswith('.is_cuda')


@pytest.mark.parametrize('source, asked', [
    ('torch.cuda.empty_cache()', False), ("if d.type == 'cuda': torch.cuda.synchronize()", True), ('x = torch.cuda.Event() if v.is_cuda else None', True), ("if d.type == 'cuda': pass\nelse: torch.cuda.synchronize()", False),
    ('model.cuda()', False), ('x = 1 if v.is_cuda else torch.cuda.Event()', False), ("x.to('cuda')", False), ("f(device='cuda:1')", False), ("torch.amp.GradScaler('cuda')", False), ("f(('cpu', 'cuda'))", False), ('from torch import cuda', False),
    ('from torch.cuda import amp', False), ('import torch.cuda', False), ('c = torch.cuda', False), ("if d.type == 'cuda' or True: torch.cuda.synchronize()", False), ("if d.type == 'cuda' and n: torch.cuda.synchronize()", True),
    ("x = 'nccl' if cuda else torch.device('cuda')", False), ("return torch.device('cuda') if torch.cuda.is_available() else None", True)])
def test_use_without_a_question_would_be_seen(source, asked):
    assert [a for _, a in cuda_uses(source)] == [asked], cuda_uses(source)


def test_questions_are_no_uses():
    for source in ('torch.cuda.is_available()', "x.to(d, non_blocking=d.type == 'cuda')", "state['cuda']", "x = b.double() if d.type in ('cpu', 'cuda') else b"): assert cuda_uses(source) == [], source
