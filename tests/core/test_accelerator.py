"The path of accelerators: one graph, no waiting, nothing that depends on values. Some tests need a GPU."
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from random_batches import C, NUM_CELLS, as_padded, batch, gradients, requiring_grad
from torch._dynamo.testing import CompileCounter
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing import assert_close

import cjm_yolox_pytorch.assignment
import cjm_yolox_pytorch.loss
from cjm_yolox_pytorch.loss import YOLOXLoss, _compiled_losses, _losses, _move_objects, _stack
from cjm_yolox_pytorch.model import build_model
from cjm_yolox_pytorch.simota import SimOTAAssigner

ROOT = Path(__file__).resolve().parents[2]
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
MEGVII = dict(box_loss='squared_iou', assigner=SimOTAAssigner(1.5, center_only=True, iou_eps=1e-8))
SETTINGS = [{}, MEGVII, dict(box_loss='ciou', assigner=SimOTAAssigner(max_mb=1))]
ALONE = dict(assigner=SimOTAAssigner(max_mb=0)) # Every object in its own group
REGIONS = [torch.tensor([[0., 0., 50., 100.]]), torch.zeros(0, 4), torch.zeros(0, 4)]


def waiting(graph, device='meta'):
    "Operations of a traced graph for which an accelerator waits, or whose result has a size that depends on values"
    aten, found = torch.ops.aten, []
    sized = (aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten._unique2, aten.unique_dim)
    indexing = (aten.index, aten.index_put, aten.index_put_, aten._unsafe_index)
    for node in graph.graph.nodes:
        if node.op != 'call_function': continue
        operation, result = getattr(node.target, 'overloadpacket', None), node.meta.get('val')
        inputs = [a.meta['val'] for a in node.all_input_nodes if isinstance(a.meta.get('val'), torch.Tensor)]
        repeats = operation is aten.repeat_interleave and node.target is not aten.repeat_interleave.self_int
        if operation in sized or repeats: found.append(str(node.target))
        masked = any(t.dtype in (torch.bool, torch.uint8) for t in inputs[1:])
        if operation in indexing and masked: found.append(f'{node.target} with a mask')
        elsewhere = isinstance(result, torch.Tensor) and result.device.type != device
        if elsewhere: found.append(f'{node.target} on {result.device}')
    return found


def fake_step(loss, counts):
    "Forward and backward with tensors that have shapes and a device, but no values"
    with FakeTensorMode(allow_non_fake_inputs=True):
        maps, boxes, labels = batch(counts)
        leaves = [m.to('meta').requires_grad_() for levels in maps for m in levels]
        boxes, labels, regions = ([t.to('meta') for t in ts] for ts in (boxes, labels, REGIONS[:len(counts)]))

        def step(*leaves):
            losses = loss(leaves[:3], leaves[3:6], leaves[6:], boxes, labels, ground_truth_bboxes_ignore=regions)
            return *losses.values(), *torch.autograd.grad(sum(losses.values()), leaves)
        return make_fx(step)(*leaves)


@pytest.mark.parametrize('settings', [*SETTINGS, ALONE])
def test_loss_does_not_wait(settings):
    graph = fake_step(YOLOXLoss(C, use_l1=True, **settings), [5, 0, 9])
    assert len(graph.graph.nodes) > 100
    assert waiting(graph) == []


@pytest.mark.parametrize('settings', SETTINGS)
def test_loss_of_padded_objects_does_not_wait(settings):
    "So it can be captured in a CUDA graph"
    loss = YOLOXLoss(C, use_l1=True, **settings)
    with FakeTensorMode(allow_non_fake_inputs=True):
        maps, boxes, labels = batch([5, 0, 9])
        leaves = [m.to('meta').requires_grad_() for levels in maps for m in levels]
        objects = as_padded(boxes, 0.).to('meta'), as_padded(labels, -1).to('meta')
        regions = torch.zeros(3, 2, 4, device='meta')

        def step(*leaves):
            losses = loss(leaves[:3], leaves[3:6], leaves[6:], *objects, ground_truth_bboxes_ignore=regions)
            return *losses.values(), *torch.autograd.grad(sum(losses.values()), leaves)
        assert waiting(make_fx(step)(*leaves)) == []


WAITS = [(lambda t: t.nonzero(), 'nonzero'), (lambda t: t[t > 0], 'with a mask'), (lambda t: t.cpu() + 1, 'on cpu'),
         (lambda t: t*t.sum().item(), '_local_scalar_dense')]


@pytest.mark.parametrize('step, name', WAITS)
def test_waiting_would_be_seen(step, name):
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        allowed = dict(allow_dynamic_output_shape_ops=True, allow_scalar_outputs=True)
        mode.shape_env = torch.fx.experimental.symbolic_shapes.ShapeEnv(**allowed)
        assert any(name in found for found in waiting(make_fx(step)(torch.rand(8, device='meta'))))


def compiled(loss, maps, boxes, labels): # As `forward` calls it where it compiles
    return _compiled_losses(loss, maps, _move_objects(_stack(boxes, labels, rounded=True), torch.zeros(0)), None)


@pytest.fixture
def graphs(monkeypatch):
    "Counts compiled graphs"
    counter = CompileCounter()
    torch._dynamo.reset()
    traced = torch.compile(_losses, fullgraph=True, backend=counter)
    monkeypatch.setattr(cjm_yolox_pytorch.loss, '_compiled', lambda mode: traced)
    return counter


def test_one_graph_serves_all_numbers_of_objects(graphs):
    loss = YOLOXLoss(C, use_l1=True, compile=True)
    for counts in ([1, 0], [3, 12], [0, 0], [14, 7], [5, 10]): # With 16 objects there are more slots than cells
        maps, boxes, labels = batch(counts)
        got, _ = compiled(loss, maps, boxes, labels)
        want = YOLOXLoss(C, use_l1=True)(*maps, boxes, labels)
        assert_close(got, list(want.values()))
    assert graphs.frame_count == 1 and loss.compile_mode


def test_few_graphs_serve_all_groups_of_objects(graphs, monkeypatch):
    "Groups of 40 at most: one graph for each power of two, not for each number of objects"
    monkeypatch.setattr(cjm_yolox_pytorch.assignment, 'PAIR_BYTES', 2**20//(NUM_CELLS*40))
    loss = YOLOXLoss(C, compile=True, assigner=SimOTAAssigner(max_mb=1))
    for count in (30, 36, 45, 60, 70, 75, 90, 120, 150):
        maps, boxes, labels = batch([count])
        assert_close(compiled(loss, maps, boxes, labels)[0], list(YOLOXLoss(C)(*maps, boxes, labels).values()))
    assert graphs.frame_count == 3 and loss.compile_mode


NUMBERS = [5, 0, 9], [3, 2, 1], [2, 2, 2], [12, 1, 0], [7, 7, 4], [4, 0, 0], [13, 13, 13] # 14 slots of 10 cells fit


def test_one_graph_serves_all_padded_objects():
    "Of a function around the loss; sizes of 0 and 1 have a graph each, because PyTorch compiles for them apart"
    loss = YOLOXLoss(C, use_l1=True)
    torch._dynamo.reset()
    counter = CompileCounter()
    step = torch.compile(lambda *args: sum(loss(*args).values()), backend=counter, fullgraph=True, dynamic=True)
    for graphs, numbers in ((1, NUMBERS), (2, [[0, 0, 0]]), (3, [[1, 0, 1]]), (3, NUMBERS)):
        for seed, counts in enumerate(numbers):
            maps, boxes, labels = batch(counts, seed)
            got = step(*maps, as_padded(boxes, torch.nan), as_padded(labels, -1))
            assert_close(got, sum(loss(*maps, boxes, labels).values()))
        assert counter.frame_count == graphs


def test_padded_objects_of_a_compiled_loss_share_the_graph_of_lists(graphs):
    loss = YOLOXLoss(C, use_l1=True, compile=True)
    for counts in ([1, 0], [3, 12], [0, 0], [14, 7]):
        maps, boxes, labels = batch(counts)
        want = list(YOLOXLoss(C, use_l1=True)(*maps, boxes, labels).values())
        for objects in ((as_padded(boxes, torch.nan), as_padded(labels, -1)), (boxes, labels)):
            assert_close(compiled(loss, maps, *objects)[0], want)
    assert graphs.frame_count == 1 and loss.compile_mode


class Around(torch.nn.Module): # A loss as a part of another program
    def __init__(self):
        super().__init__()
        self.loss = YOLOXLoss(C, use_l1=True)

    def forward(self, *args): return self.loss(*args[:5], ground_truth_bboxes_ignore=args[5])


@pytest.mark.parametrize('dim', ['named', 'auto'])
def test_loss_is_exported_for_any_number_of_padded_objects(dim):
    G = torch.export.Dim('G', min=0, max=14) if dim == 'named' else torch.export.Dim.AUTO
    I = torch.export.Dim('I', max=20) if dim == 'named' else torch.export.Dim.AUTO

    def inputs(counts, seed, regions):
        maps, boxes, labels = batch(counts, seed)
        regions = torch.tensor([8., 8, 40, 40]).repeat(3, regions, 1)
        return *maps, as_padded(boxes, torch.nan), as_padded(labels, -1), regions
    shapes = (*[[None]*3]*3, {1: G}, {1: G}, {1: I})
    exported = torch.export.export(Around(), inputs([5, 0, 9], 0, 2), dynamic_shapes=(shapes,)).module()
    for seed, counts in enumerate(NUMBERS):
        args = inputs(counts, seed, seed + 2)
        assert_close(exported(*args), Around()(*args))
    for counts in ([1, 0, 0], [0, 0, 0]):
        if dim == 'named': assert_close(exported(*inputs(counts, 0, 2)), Around()(*inputs(counts, 0, 2)))
    with pytest.raises((AssertionError, RuntimeError)): exported(*inputs([20, 0, 0], 0, 2)) # More slots than cells


def test_nothing_is_compiled_on_a_cpu(monkeypatch):
    monkeypatch.setattr(cjm_yolox_pytorch.loss, '_compiled', lambda mode: pytest.fail('compiled'))
    maps, boxes, labels = batch([2])
    assert_close(YOLOXLoss(C, compile=True)(*maps, boxes, labels), YOLOXLoss(C)(*maps, boxes, labels))


def test_loss_that_cannot_be_compiled_runs_with_a_warning():
    torch._dynamo.reset()
    loss = YOLOXLoss(C, compile=True)
    def data_dependent(pred, target): return (pred - target).abs().sum() if pred.isfinite().all() else pred.sum()
    loss.bbox_loss_func = data_dependent
    maps, boxes, labels = batch([3, 2])
    with pytest.warns(UserWarning, match='goes on without compiling') as said:
        got, _ = compiled(loss, maps, boxes, labels)
    assert len(said) == 1 and not loss.compile_mode
    assert_close(got, list(loss(*maps, boxes, labels).values()))


def test_errors_of_a_compiled_loss_are_raised(monkeypatch):
    def failing(mode): raise ZeroDivisionError('not of the compiler')
    monkeypatch.setattr(cjm_yolox_pytorch.loss, '_compiled', failing)
    loss = YOLOXLoss(C, compile=True)
    with pytest.raises(ZeroDivisionError, match='not of the compiler'): compiled(loss, *batch([3, 2]))


@pytest.mark.slow
def test_loss_without_a_compiler_runs_with_a_warning(tmp_path):
    code = """import sys, warnings
sys.path.insert(0, 'tests/core')
from test_accelerator import *
maps, boxes, labels = batch([3, 2])
loss = YOLOXLoss(C, compile=True)
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter('always')
    got, _ = compiled(loss, maps, boxes, labels)
said = [str(w.message) for w in said if 'YOLOXLoss' in str(w.message)]
assert len(said) == 1 and 'No working C++ compiler' in said[0] and not loss.compile_mode, said
assert_close(got, list(loss(*maps, boxes, labels).values()))"""
    env = {**os.environ, 'CXX': '/nonexistent', 'TORCHINDUCTOR_CACHE_DIR': str(tmp_path)}
    subprocess.run([sys.executable, '-c', code], env=env, cwd=ROOT, check=True)


def to_device(batch, device='cuda'):
    maps, boxes, labels = batch
    maps = [[m.to(device) for m in levels] for levels in maps]
    return maps, [b.to(device) for b in boxes], [l.to(device) for l in labels]


COMPILED = [(False, s) for s in SETTINGS] + [(True, s) for s in SETTINGS] + [('reduce-overhead', {})]


@cuda
@pytest.mark.parametrize('compile, settings', COMPILED)
def test_loss_on_a_gpu_equals_that_on_a_cpu(settings, compile):
    torch._dynamo.reset()
    loss, there = (YOLOXLoss(C, use_l1=True, compile=c and compile, **settings) for c in (False, True))
    # 60 objects have more slots than there are cells, and make two groups of 1 MB
    for seed, counts in enumerate(([5, 0, 9], [0, 0, 0], [60, 1, 30])):
        data = batch(counts, seed)
        want, want_grads = gradients(loss, *data, ground_truth_bboxes_ignore=REGIONS)
        maps, boxes, labels = to_device(data)
        for objects in ((boxes, labels), data[1:]): # Objects where the maps are, and as a data loader leaves them
            got, grads = gradients(there, maps, *objects, ground_truth_bboxes_ignore=REGIONS)
            assert_close({k: v.cpu() for k, v in got.items()}, want)
            assert_close([g.cpu() for g in grads], want_grads)
    assert there.compile_mode == compile


@cuda
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_loss_on_a_gpu_in_half_precision(dtype):
    maps, boxes, labels = batch([5, 0, 9], dtype=dtype)
    want = YOLOXLoss(C, use_l1=True)(*maps, boxes, labels)
    there, *objects = to_device((maps, boxes, labels))
    got = YOLOXLoss(C, use_l1=True)(*there, *objects)
    assert_close({k: v.cpu() for k, v in got.items()}, want)


@cuda
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_loss_on_a_gpu_under_autocast(dtype):
    "The network computes in half precision, the loss in single precision"
    torch.manual_seed(0)
    model, images = build_model('yolox_nano', C, pretrained=False).cuda(), torch.rand(3, 3, 96, 96, device='cuda')
    _, boxes, labels = batch([5, 0, 9])
    loss = YOLOXLoss(C, use_l1=True)
    with torch.autocast('cuda', dtype):
        outputs = model(images)
        losses = loss(*outputs, boxes, labels)
    assert all(m.dtype == dtype for levels in outputs for m in levels)
    assert all(v.dtype == torch.float32 and v.isfinite() for v in losses.values())
    want = loss(*([m.detach().float().cpu() for m in levels] for levels in outputs), boxes, labels)
    assert_close({k: v.cpu() for k, v in losses.items()}, want, rtol=1e-4, atol=1e-4)
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@cuda
@pytest.mark.parametrize('compile', [False, True])
def test_loss_on_a_gpu_does_not_wait(compile):
    maps, boxes, labels = to_device(batch([5, 0, 9]))
    loss, regions = YOLOXLoss(C, use_l1=True, compile=compile), [r.cuda() for r in REGIONS]
    for _ in range(2): gradients(loss, maps, boxes, labels, ground_truth_bboxes_ignore=regions) # Compiling may wait
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode('error')
    try: gradients(loss, maps, boxes, labels, ground_truth_bboxes_ignore=regions)
    finally: torch.cuda.set_sync_debug_mode('default')


def captured(loss, maps, *objects):
    "A CUDA graph of the losses of a batch and their gradients, and its losses"
    def step():
        for m in (m for levels in maps for m in levels): m.grad = None
        losses = loss(*maps, *objects)
        sum(losses.values()).backward()
        return losses
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3): step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph): losses = step()
    return graph, losses


@cuda
@pytest.mark.parametrize('compile', [False, True])
def test_loss_in_a_cuda_graph_is_replayed_on_new_inputs(compile):
    loss, counts = YOLOXLoss(C, use_l1=True, compile=compile), [5, 3, 9]
    maps, boxes, labels = to_device(batch(counts))
    maps = requiring_grad(maps)
    leaves = [m for levels in maps for m in levels]
    graph, losses = captured(loss, maps, boxes, labels)
    for seed in (1, 2):
        other = batch(counts, seed)
        new = [m for levels in other[0] for m in levels] + other[1] + other[2]
        for n, old in zip(new, leaves + boxes + labels): old.data.copy_(n)
        graph.replay()
        want, want_grads = gradients(YOLOXLoss(C, use_l1=True), *other)
        assert_close({k: v.cpu() for k, v in losses.items()}, want)
        assert_close([m.grad.cpu() for m in leaves], want_grads)


@cuda
def test_padded_objects_in_a_cuda_graph_may_change_in_number():
    loss = YOLOXLoss(C, use_l1=True)
    maps, boxes, labels = batch([5, 3, 9])
    maps = requiring_grad([[m.cuda() for m in levels] for levels in maps])
    objects = as_padded(boxes, 0.).cuda(), as_padded(labels, -1).cuda()
    leaves = [m for levels in maps for m in levels]
    graph, losses = captured(loss, maps, *objects)
    for seed, counts in enumerate(([9, 0, 2], [0, 0, 0], [1, 8, 4])):
        other = batch(counts, seed)
        new = [m for levels in other[0] for m in levels] + [as_padded(other[1], 0., 9), as_padded(other[2], -1, 9)]
        for n, old in zip(new, [*leaves, *objects]): old.data.copy_(n)
        graph.replay()
        want, want_grads = gradients(YOLOXLoss(C, use_l1=True), *other)
        assert_close({k: v.cpu() for k, v in losses.items()}, want)
        assert_close([m.grad.cpu() for m in leaves], want_grads)
