"The path of accelerators: one graph, no waiting, nothing that depends on values. What needs a GPU is skipped where there is none."
import os
import subprocess
import sys

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing import assert_close

import cjm_yolox_pytorch.loss
import cjm_yolox_pytorch.simota
from cjm_yolox_pytorch.loss import YOLOXLoss, _compiled_losses, _gather_objects, _gather_regions, _losses
from cjm_yolox_pytorch.model import build_model
from cjm_yolox_pytorch.simota import SimOTAAssigner
from test_loss import C, batch, gradients, requiring_grad

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
SETTINGS = [{}, dict(box_loss='squared_iou', assigner=SimOTAAssigner(1.5, center_only=True, iou_eps=1e-8)), dict(box_loss='ciou', assigner=SimOTAAssigner(max_mb=1))]
REGIONS = [torch.tensor([[0., 0., 50., 100.]]), torch.zeros(0, 4), torch.zeros(0, 4)]


def waiting(graph, device='meta'):
    "Operations of a traced graph for which an accelerator waits, or whose result has a size that depends on values"
    aten, found = torch.ops.aten, []
    for node in graph.graph.nodes:
        if node.op != 'call_function': continue
        inputs = [a.meta['val'] for a in node.all_input_nodes if isinstance(a.meta.get('val'), torch.Tensor)]
        if getattr(node.target, 'overloadpacket', None) in (aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten._unique2, aten.unique_dim, aten.repeat_interleave):
            if node.target is not aten.repeat_interleave.self_int: found.append(str(node.target))
        if getattr(node.target, 'overloadpacket', None) in (aten.index, aten.index_put, aten.index_put_, aten._unsafe_index):
            if any(t.dtype in (torch.bool, torch.uint8) for t in inputs[1:]): found.append(f'{node.target} with a mask')
        if isinstance(node.meta.get('val'), torch.Tensor) and node.meta['val'].device.type != device: found.append(f'{node.target} on {node.meta["val"].device}')
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


@pytest.mark.parametrize('settings', [*SETTINGS, dict(assigner=SimOTAAssigner(max_mb=0))]) # The last: every object in a group of its own
def test_nothing_waits(settings):
    graph = fake_step(YOLOXLoss(C, use_l1=True, **settings), [5, 0, 9])
    assert len(graph.graph.nodes) > 100
    assert waiting(graph) == []


def test_waiting_would_be_seen():
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        mode.shape_env = torch.fx.experimental.symbolic_shapes.ShapeEnv(allow_dynamic_output_shape_ops=True, allow_scalar_outputs=True)
        t = torch.rand(8, device='meta')
        for step, name in [(lambda t: t.nonzero(), 'nonzero'), (lambda t: t[t > 0], 'with a mask'), (lambda t: t.cpu() + 1, 'on cpu'), (lambda t: t*t.sum().item(), '_local_scalar_dense')]:
            assert any(name in found for found in waiting(make_fx(step)(t))), name


def compiled(loss, maps, boxes, labels, regions=None): # As `forward` calls it where it compiles
    objects = _gather_objects(boxes, labels, C, None, torch.device('cpu'), torch.float32, rounded=True)
    return _compiled_losses(loss, *maps, *objects, _gather_regions(regions, len(boxes), torch.device('cpu'), torch.float32, rounded=True))


def test_one_graph_for_all_numbers_of_objects(monkeypatch):
    counter = CompileCounter()
    torch._dynamo.reset()
    monkeypatch.setattr(cjm_yolox_pytorch.loss, '_compiled', lambda mode: torch.compile(_losses, fullgraph=True, backend=counter))
    loss = YOLOXLoss(C, use_l1=True, compile=True)
    for counts in ([1, 0], [3, 12], [0, 0], [14, 7], [5, 10]): # With 16 objects there are more slots than cells
        maps, boxes, labels = batch(counts)
        got, _ = compiled(loss, maps, boxes, labels)
        want = YOLOXLoss(C, use_l1=True)(*maps, boxes, labels)
        assert_close(got, list(want.values()))
    assert counter.frame_count == 1 and loss.compile_mode


def test_few_graphs_for_groups_of_objects(monkeypatch):
    "Groups of 40 at most: one graph for each power of two, not for each number of objects"
    counter = CompileCounter()
    torch._dynamo.reset()
    monkeypatch.setattr(cjm_yolox_pytorch.loss, '_compiled', lambda mode: torch.compile(_losses, fullgraph=True, backend=counter))
    monkeypatch.setattr(cjm_yolox_pytorch.simota, 'PAIR_BYTES', 2**20//(159*40))
    loss = YOLOXLoss(C, compile=True, assigner=SimOTAAssigner(max_mb=1))
    for count in (30, 36, 45, 60, 70, 75, 90, 120, 150):
        maps, boxes, labels = batch([count])
        assert_close(compiled(loss, maps, boxes, labels)[0], list(YOLOXLoss(C)(*maps, boxes, labels).values()))
    assert counter.frame_count == 3 and loss.compile_mode


def test_on_a_cpu_nothing_is_compiled(monkeypatch):
    monkeypatch.setattr(cjm_yolox_pytorch.loss, '_compiled', lambda mode: pytest.fail('compiled'))
    maps, boxes, labels = batch([2])
    assert_close(YOLOXLoss(C, compile=True)(*maps, boxes, labels), YOLOXLoss(C)(*maps, boxes, labels))


def test_what_cannot_be_compiled_runs_and_says_so():
    torch._dynamo.reset()
    loss = YOLOXLoss(C, compile=True)
    def own(pred, target): return (pred - target).abs().sum() if pred.isfinite().all() else pred.sum() # A question to the tensors
    loss.bbox_loss_func = own
    maps, boxes, labels = batch([3, 2])
    with pytest.warns(UserWarning, match='goes on without compiling') as said: got, _ = compiled(loss, maps, boxes, labels)
    assert len(said) == 1 and not loss.compile_mode
    assert_close(got, list(loss(*maps, boxes, labels).values()))


def test_without_a_compiler_it_runs_and_says_so(tmp_path):
    code = """import sys, warnings; sys.path.insert(0, 'tests')
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
    subprocess.run([sys.executable, '-c', code], env=env, cwd=cjm_yolox_pytorch.loss.__file__.rsplit('/', 2)[0], check=True)


def to_device(batch, device='cuda'):
    maps, boxes, labels = batch
    return [[m.to(device) for m in levels] for levels in maps], [b.to(device) for b in boxes], [l.to(device) for l in labels]


@cuda
@pytest.mark.parametrize('compile, settings', [(False, s) for s in SETTINGS] + [(True, s) for s in SETTINGS] + [('reduce-overhead', {})])
def test_gpu_equals_cpu(settings, compile):
    torch._dynamo.reset()
    loss, there = (YOLOXLoss(C, use_l1=True, compile=c and compile, **settings) for c in (False, True))
    for seed, counts in enumerate(([5, 0, 9], [0, 0, 0], [60, 1, 30])): # 60 have more slots than there are cells, and make two groups of 1 MB
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
def test_gpu_half_precision(dtype):
    maps, boxes, labels = batch([5, 0, 9], dtype=dtype)
    want = YOLOXLoss(C, use_l1=True)(*maps, boxes, labels)
    there, *objects = to_device((maps, boxes, labels))
    got = YOLOXLoss(C, use_l1=True)(*there, *objects)
    assert_close({k: v.cpu() for k, v in got.items()}, want)


@cuda
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_gpu_autocast(dtype):
    "A network that computes in half precision learns in single precision what its outputs say"
    torch.manual_seed(0)
    model, images = build_model('yolox_nano', C, pretrained=False).cuda(), torch.rand(3, 3, 96, 96, device='cuda')
    _, boxes, labels = batch([5, 0, 9])
    loss = YOLOXLoss(C, use_l1=True)
    with torch.autocast('cuda', dtype):
        outputs = model(images)
        losses = loss(*outputs, boxes, labels)
    assert all(m.dtype == dtype for levels in outputs for m in levels) and all(v.dtype == torch.float32 and v.isfinite() for v in losses.values())
    want = loss(*([m.detach().float().cpu() for m in levels] for levels in outputs), boxes, labels)
    assert_close({k: v.cpu() for k, v in losses.items()}, want, rtol=1e-4, atol=1e-4)
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@cuda
@pytest.mark.parametrize('compile', [False, True])
def test_gpu_does_not_wait(compile):
    maps, boxes, labels = to_device(batch([5, 0, 9]))
    loss, regions = YOLOXLoss(C, use_l1=True, compile=compile), [r.cuda() for r in REGIONS]
    for _ in range(2): gradients(loss, maps, boxes, labels, ground_truth_bboxes_ignore=regions) # Compiling may wait
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode('error')
    try: gradients(loss, maps, boxes, labels, ground_truth_bboxes_ignore=regions)
    finally: torch.cuda.set_sync_debug_mode('default')


@cuda
@pytest.mark.parametrize('compile', [False, True])
def test_gpu_graph_replayed_on_new_inputs(compile):
    loss, counts = YOLOXLoss(C, use_l1=True, compile=compile), [5, 3, 9]
    maps, boxes, labels = to_device(batch(counts))
    maps = requiring_grad(maps)
    leaves = [m for levels in maps for m in levels]

    def step():
        for m in leaves: m.grad = None
        losses = loss(*maps, boxes, labels)
        sum(losses.values()).backward()
        return losses
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3): step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph): losses = step()
    for seed in (1, 2):
        other = batch(counts, seed)
        for new, old in zip([m for levels in other[0] for m in levels] + other[1] + other[2], leaves + boxes + labels): old.data.copy_(new)
        graph.replay()
        want, want_grads = gradients(YOLOXLoss(C, use_l1=True), *other)
        assert_close({k: v.cpu() for k, v in losses.items()}, want)
        assert_close([m.grad.cpu() for m in leaves], want_grads)
