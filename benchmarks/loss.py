"""Time and memory of the loss, forward and backward, beside other implementations.

The peers are measured as they are published, on the same maps and objects, in one process, taking turns. A peer that cannot be
imported or fails is named in the table, and the run goes on. All of it, with an environment of its own: make bench
"""
import argparse
import ctypes
import importlib.abc
import importlib.machinery
import json
import platform
import statistics
import subprocess
import sys
import time
import warnings
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1])) # The loss of this checkout, whether installed or not
from cjm_yolox_pytorch.boxes import cell_centres, encode, grid_priors
from cjm_yolox_pytorch.loss import YOLOXLoss
from cjm_yolox_pytorch.simota import SimOTAAssigner

STRIDES = [8, 16, 32]
WORKLOADS = dict( # images, side in pixels, classes, fewest and most objects in an image
    tiny=(16, 416, 80, 1, 14),
    coco=(8, 640, 80, 8, 40),
    crowd=(2, 640, 80, 200, 300),
    lvis=(2, 640, 1203, 10, 40))


def make_batch(workload, device='cpu', images=None, seed=0):
    "Maps of a half-trained network, and the objects of each image"
    B, side, C, least, most = WORKLOADS[workload]
    B, g = images or B, torch.Generator().manual_seed(seed)
    corners = grid_priors([(side//s, side//s) for s in STRIDES], STRIDES)
    centres, A, boxes, labels, flat = cell_centres(corners), len(corners), [], [], []
    for _ in range(B):
        n = int(torch.randint(least, most + 1, (), generator=g))
        size = 8 + (.6*side - 8)*torch.rand(n, 2, generator=g)**3
        corner = torch.rand(n, 2, generator=g)*(side - size)
        boxes.append(torch.cat([corner, corner + size], 1))
        labels.append(torch.randint(C, (n,), generator=g))
        raw, obj = torch.randn(A, 4, generator=g)*.3, torch.randn(A, generator=g) - 3
        cls = torch.randn(A, C, generator=g) - 3
        for box, label in zip(boxes[-1], labels[-1]):
            inside = ((centres[:, :2] > box[:2]) & (centres[:, :2] < box[2:])).all(1).nonzero()[:, 0]
            raw[inside] = encode(box, corners[inside]) + torch.randn(len(inside), 4, generator=g)*.25
            cls[inside, label] += 3
            obj[inside] += 2.5
        flat.append(torch.cat([cls, raw, obj[:, None]], 1))
    maps, cells = [], [(side//s)**2 for s in STRIDES]
    for part in torch.stack(flat).split([C, 4, 1], dim=2):
        maps.append([m.transpose(1, 2).reshape(B, -1, side//s, side//s).contiguous().to(device).requires_grad_() for m, s in zip(part.split(cells, dim=1), STRIDES)])
    return maps, [b.to(device) for b in boxes], [l.to(device) for l in labels]


# One function for each implementation: from the number of classes to a function of maps and objects that returns the sum of the losses

def ours(C, device, preset='mmdetection', graph=False, **kwargs):
    assigner = SimOTAAssigner(1.5, center_only=True, iou_eps=1e-8) if preset == 'megvii' else None
    loss = YOLOXLoss(C, box_loss='squared_iou', assigner=assigner, **kwargs)
    if graph: loss = torch.compile(loss, fullgraph=True)
    return lambda maps, boxes, labels: sum(loss(*maps, boxes, labels).values())


class _Stub(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    "Stands for mmcv.ops, which needs a compiler, and of which the YOLOX head uses nothing"
    def find_spec(self, name, path, target=None):
        if name == 'mmcv.ops' or name.startswith('mmcv.ops.'): return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec): return None

    def exec_module(self, module):
        def attribute(name):
            if name.startswith('__'): raise AttributeError(name)
            return type(name, (), {})
        module.__getattr__ = attribute


def mmdetection(C, device):
    sys.meta_path.insert(0, _Stub())
    from mmdet.models.dense_heads import YOLOXHead
    from mmengine.structures import InstanceData
    head = YOLOXHead(C, 8, feat_channels=8, train_cfg=dict(assigner=dict(type='SimOTAAssigner', center_radius=2.5))).to(device)

    def run(maps, boxes, labels):
        objects = [InstanceData(bboxes=b, labels=l) for b, l in zip(boxes, labels)]
        return sum(head.loss_by_feat(*maps, objects, [{}]*len(boxes)).values())
    return run


def like_megvii(head):
    "Megvii's head, or one with its methods"
    def run(maps, boxes, labels):
        outputs, xs, ys, strides = [], [], [], []
        for k, (cls, box, obj, s) in enumerate(zip(*maps, STRIDES)):
            output, grid = head.get_output_and_grid(torch.cat([box, obj, cls], 1), k, s, cls.type())
            outputs.append(output)
            xs.append(grid[:, :, 0])
            ys.append(grid[:, :, 1])
            strides.append(torch.full((1, grid.shape[1]), s).type_as(cls))
        rows = torch.zeros(len(boxes), max(map(len, boxes)), 5, device=cls.device)
        for row, b, l in zip(rows, boxes, labels): row[:len(b)] = torch.cat([l[:, None], (b[:, :2] + b[:, 2:])/2, b[:, 2:] - b[:, :2]], 1)
        losses = head.get_losses(None, xs, ys, strides, rows, torch.cat(outputs, 1), [], dtype=cls.dtype)
        return losses['total_loss'] if isinstance(losses, dict) else losses[0]
    return run


def megvii(C, device):
    from yolox.models.yolo_head import YoloxHead
    return like_megvii(YoloxHead(C, width=.03125).to(device).train())


def libreyolo(C, device):
    from libreyolo.models.yolox.nn import YOLOXHead
    return like_megvii(YOLOXHead(C, width=.03125).to(device).train())


IMPLEMENTATIONS = {
    'ours': ours,
    'ours, compile=True': lambda *args: ours(*args, compile=True),
    'ours, one compiled graph': lambda *args: ours(*args, graph=True), # What `compile=True` is on an accelerator
    'ours, compile=reduce-overhead': lambda *args: ours(*args, compile='reduce-overhead'),
    'mmdetection': mmdetection,
    "ours, Megvii's preset": lambda *args: ours(*args, preset='megvii'),
    "ours, Megvii's preset, compile=True": lambda *args: ours(*args, preset='megvii', compile=True),
    'Megvii (pixeltable-yolox)': megvii,
    'LibreYOLO': libreyolo}


def step(run, maps, boxes, labels):
    for levels in maps:
        for m in levels: m.grad = None
    loss = run(maps, boxes, labels)
    loss.backward()
    return loss


def timed(run, batch, device):
    "Milliseconds of one step"
    if device == 'cpu':
        start = time.perf_counter()
        step(run, *batch)
        return 1000*(time.perf_counter() - start)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    step(run, *batch)
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end)


def measure_time(names, batch, C, device, rounds, runs):
    "Each implementation's least median of `runs` runs, with its loss, or why there are none"
    ready, medians, losses, failed = {}, {}, {}, {}
    for name in names:
        try:
            ready[name] = IMPLEMENTATIONS[name](C, device)
            for _ in range(3): losses[name] = step(ready[name], *batch).item()
            medians[name] = []
        except Exception as e: failed[name] = f'{type(e).__name__}: {e}'.splitlines()[0][:200] # Whatever a peer does wrong, the run goes on
    for _ in range(runs):
        times = {name: [] for name in medians}
        for turn in range(rounds):
            order = list(medians)[turn % len(medians):] + list(medians)[:turn % len(medians)] # Nobody always follows the same one
            for name in order: times[name].append(timed(ready[name], batch, device))
        for name in medians: medians[name].append(statistics.median(times[name]))
    return {name: min(m) for name, m in medians.items()}, losses, failed, ready


def measure_memory(name, args, workload):
    "High-water mark of a process of its own above what it held once inputs existed, in MB"
    command = [sys.executable, __file__, '--memory', name, '--workloads', workload]
    done = subprocess.run(command + (['--images', str(args.images)] if args.images else []), capture_output=True, text=True)
    if done.returncode: warnings.warn(f'memory of {name} on {workload}: {done.stderr.splitlines()[-1:]}')
    return float(done.stdout.split()[-1]) if done.returncode == 0 else None


def print_memory(name, workload, images):
    "What `measure_memory` starts"
    batch = make_batch(workload, images=images)
    run = IMPLEMENTATIONS[name](WORKLOADS[workload][2], 'cpu')
    if 'graph' in name: step(run, *batch) # Compiling takes memory too, once
    small = [[m[:1, ..., :2, :2].detach().requires_grad_() for m in levels] for levels in batch[0]]
    step(run, small, [b[:1] for b in batch[1][:1]], [l[:1] for l in batch[2][:1]]) # So that libraries are loaded
    for levels in batch[0]:
        for m in levels: m.grad = None
    if 'linux' in sys.platform: ctypes.CDLL('libc.so.6').malloc_trim(0) # What the making of inputs left free would hide what is needed
    Path('/proc/self/clear_refs').write_text('5') # The high-water mark starts anew
    def status(key): return int(next(l for l in Path('/proc/self/status').read_text().splitlines() if l.startswith(key)).split()[1])/1000
    before = status('VmRSS')
    step(run, *batch)
    print(status('VmHWM') - before)


def gpu_bandwidth():
    "Bytes per second of a large copy, read and written"
    source = torch.empty(2**30, dtype=torch.uint8, device='cuda')
    target, times = torch.empty_like(source), []
    for _ in range(12):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record(); target.copy_(source); end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end)/1000)
    return 2*source.numel()/statistics.median(times)


def gpu_figures(run, batch, bandwidth):
    "Peak memory in MB, kernels, waits, milliseconds in kernels, and how much of those the reading of maps and writing of gradients would take"
    for levels in batch[0]:
        for m in levels: m.grad = None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step(run, *batch)
    torch.cuda.synchronize()
    peak = (torch.cuda.max_memory_allocated() - before)/1e6
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile: step(run, *batch)
    events = [e for e in profile.events()]
    kernels = [e.time_range.elapsed_us()/1000 for e in events if e.device_type == torch.autograd.DeviceType.CUDA and not getattr(e, 'is_user_annotation', False)]
    waits = sum(e.name in ('cudaStreamSynchronize', 'cudaDeviceSynchronize', 'cudaEventSynchronize', 'cudaMemcpy') for e in events) - 1 # The profiler's own
    floor = 1000*2*sum(m.numel()*m.element_size() for levels in batch[0] for m in levels)/bandwidth
    return dict(peak_mb=peak, kernels=len(kernels), waits=max(0, waits), busy_ms=sum(kernels), floor=floor/sum(kernels))


def installed(package):
    try: return version(package)
    except PackageNotFoundError: return None


def machine(device):
    model = [l.split(':')[1].strip() for l in Path('/proc/cpuinfo').read_text().splitlines() if l.startswith('model name')] if Path('/proc/cpuinfo').exists() else []
    versions = {p: v for p in ('torch', 'mmdet', 'pixeltable-yolox', 'libreyolo') if (v := installed(p))}
    return dict(date=str(date.today()), processor=(model or [platform.machine()])[0], threads=torch.get_num_threads(), python=platform.python_version(),
                **versions, **({} if device == 'cpu' else dict(gpu=torch.cuda.get_device_name())))


def tell(name, table, rows, about, out):
    "Print a table in Markdown and where it was measured, and write both, and the rows, into the folder `out` if it is given"
    print(table, '', json.dumps(about), sep='\n')
    if out is None: return
    out.mkdir(parents=True, exist_ok=True)
    (out/f'{name}.md').write_text(f'{table}\n\n{", ".join(f"{k} {v}" for k, v in about.items())}\n')
    (out/f'{name}.json').write_text(json.dumps(dict(machine=about, rows=rows), indent=1) + '\n')


def as_table(rows, device):
    "Rows as Markdown"
    peers = {'mmdetection': 'mmdetection', 'Megvii': 'Megvii (pixeltable-yolox)'}
    def ms(row, name): return next((r['ms'] for r in rows if r['workload'] == row['workload'] and r['implementation'] == name), None)
    extra = [] if device == 'cpu' else ['kernels', 'waits', 'ms in kernels', 'floor']
    table = [f'| workload | implementation | ms | {" | ".join(f"times as fast as {p}" for p in peers)} | peak MB | {"".join(f"{e} | " for e in extra)}loss |', f'|---|---|{"--:|"*(len(peers) + len(extra) + 3)}']
    for row in rows:
        if row['failed']: cells = [f'failed: {row["failed"]}'] + ['']*(len(peers) + len(extra) + 2)
        else:
            ratios = [f'{ms(row, name)/row["ms"]:.1f}' if ms(row, name) and row['implementation'].startswith('ours') else '' for name in peers.values()]
            cells = [f'{row["ms"]:.2f}', *ratios, f'{row["peak_mb"]:.0f}' if row['peak_mb'] is not None else '?']
            cells += ([f'{row["kernels"]}', f'{row["waits"]}', f'{row["busy_ms"]:.2f}', f'{100*row["floor"]:.0f} %'] if extra else []) + [f'{row["loss"]:.4f}']
        table.append(f'| {" | ".join([row["workload"], row["implementation"], *cells])} |')
    return '\n'.join(table)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--workloads', nargs='+', default=list(WORKLOADS), choices=list(WORKLOADS))
    parser.add_argument('--only', nargs='+', choices=list(IMPLEMENTATIONS), help='implementations (default: all that differ on the device)')
    parser.add_argument('--device', default='cpu', choices=['cpu', 'cuda'])
    parser.add_argument('--rounds', type=int, default=7, help='timed steps of each, of which the median counts (default: 7)')
    parser.add_argument('--runs', type=int, default=3, help='times to repeat that; the least median counts (default: 3)')
    parser.add_argument('--images', type=int, help="images in a batch, instead of the workload's own")
    parser.add_argument('--out', type=Path, help='folder for loss-DEVICE.md and loss-DEVICE.json')
    parser.add_argument('--memory', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory: return print_memory(args.memory, args.workloads[0], args.images)

    # On a CPU `compile` changes nothing; elsewhere it is the one compiled graph
    args.only = args.only or [name for name in IMPLEMENTATIONS if ('compile=' not in name if args.device == 'cpu' else 'graph' not in name)]
    rows, bandwidth = [], gpu_bandwidth() if args.device == 'cuda' else None
    for workload in args.workloads:
        torch._dynamo.reset() # Sizes of the workload before are no reason to compile for variable ones
        batch, C = make_batch(workload, args.device, args.images), WORKLOADS[workload][2]
        times, losses, failed, ready = measure_time(args.only, batch, C, args.device, args.rounds, args.runs)
        for name in args.only:
            row = dict(workload=workload, implementation=name, ms=times.get(name), loss=losses.get(name), failed=failed.get(name))
            if name in times and args.device == 'cpu': row['peak_mb'] = measure_memory(name, args, workload)
            elif name in times: row.update(gpu_figures(ready[name], batch, bandwidth))
            if 'reduce-overhead' in name: row['peak_mb'] = None # CUDA graphs have memory of their own, which is not counted
            rows.append(row)
            print(row, file=sys.stderr, flush=True)
    about = machine(args.device) | (dict(bandwidth_gb_s=round(bandwidth/1e9)) if bandwidth else {}) | dict(rounds=args.rounds, runs=args.runs)
    table = as_table(rows, args.device)
    tell(f'loss-{args.device}', table, rows, about, args.out)


if __name__ == '__main__': main()
