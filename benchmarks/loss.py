"""Measure time and peak memory of the loss, forward and backward, and compare it with other implementations.

The others run as published, on the same maps and objects, taking turns in one process. If one cannot be imported
or fails, the table says so and the rest still runs. `make bench` runs all benchmarks in a separate environment.
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

# Benchmarks measure this checkout, whatever is installed
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from cjm_yolox_pytorch.boxes import cell_centers, encode, grid_priors
from cjm_yolox_pytorch.loss import YOLOXLoss
from cjm_yolox_pytorch.simota import SimOTAAssigner

STRIDES = [8, 16, 32]
# Images, side in pixels, classes, fewest and most objects in an image
WORKLOADS = dict(
    tiny=(16, 416, 80, 1, 14),
    coco=(8, 640, 80, 8, 40),
    crowd=(2, 640, 80, 200, 300),
    lvis=(2, 640, 1203, 10, 40))


def make_batch(workload, device='cpu', images=None, seed=0):
    "Return the maps of a half-trained network, and the boxes and labels of each image."
    B, side, C, least, most = WORKLOADS[workload]
    if images: B = images
    g = torch.Generator().manual_seed(seed)
    corners = grid_priors([(side//s, side//s) for s in STRIDES], STRIDES)
    objects = []
    flat = []
    for _ in range(B):
        objects.append(random_objects(side, C, least, most, g))
        flat.append(half_trained(corners, C, *objects[-1], g))
    maps = [to_levels(part, side, device) for part in torch.stack(flat).split([C, 4, 1], dim=2)]
    return maps, [b.to(device) for b, _ in objects], [l.to(device) for _, l in objects]


def random_objects(side, C, least, most, g):
    "Return boxes [G, 4] and labels [G] of `least` to `most` objects, small ones more often than large ones."
    n = int(torch.randint(least, most + 1, (), generator=g))
    size = 8 + (.6*side - 8)*torch.rand(n, 2, generator=g)**3
    corner = torch.rand(n, 2, generator=g)*(side - size)
    return torch.cat([corner, corner + size], 1), torch.randint(C, (n,), generator=g)


def half_trained(corners, C, boxes, labels, g):
    "Return predictions [A, C + 4 + 1] that are right inside the objects, with noise."
    A = len(corners)
    centers = cell_centers(corners)[:, :2]
    raw = torch.randn(A, 4, generator=g)*.3
    obj = torch.randn(A, generator=g) - 3
    cls = torch.randn(A, C, generator=g) - 3
    for box, label in zip(boxes, labels):
        inside = ((centers > box[:2]) & (centers < box[2:])).all(1).nonzero()[:, 0]
        raw[inside] = encode(box, corners[inside]) + torch.randn(len(inside), 4, generator=g)*.25
        cls[inside, label] += 3
        obj[inside] += 2.5
    return torch.cat([cls, raw, obj[:, None]], 1)


def to_levels(flat, side, device):
    "Split [B, A, D] into one leaf tensor [B, D, H, W] per level."
    sides = [side//s for s in STRIDES]
    levels = flat.split([n**2 for n in sides], dim=1)
    maps = [m.transpose(1, 2).unflatten(2, (n, n)).contiguous() for m, n in zip(levels, sides)]
    return [m.to(device).requires_grad_() for m in maps]


# One function per implementation. It takes the number of classes and the device, and returns a function that computes
# the sum of the losses from maps, boxes and labels.

def ours(C, device, preset='mmdetection', graph=False, **kwargs):
    assigner = SimOTAAssigner(1.5, center_only=True, iou_eps=1e-8) if preset == 'megvii' else None
    loss = YOLOXLoss(C, box_loss='squared_iou', assigner=assigner, **kwargs)
    if graph: loss = torch.compile(loss, fullgraph=True)
    return lambda maps, boxes, labels: sum(loss(*maps, boxes, labels).values())


class _Stub(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    "Replace mmcv.ops, which needs a compiler to build and which the YOLOX head does not use."
    def find_spec(self, name, path, target=None):
        if name != 'mmcv.ops' and not name.startswith('mmcv.ops.'): return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

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
    assigner = dict(type='SimOTAAssigner', center_radius=2.5)
    head = YOLOXHead(C, 8, feat_channels=8, train_cfg=dict(assigner=assigner)).to(device)

    def run(maps, boxes, labels):
        objects = [InstanceData(bboxes=b, labels=l) for b, l in zip(boxes, labels)]
        return sum(head.loss_by_feat(*maps, objects, [{}]*len(boxes)).values())
    return run


def megvii_rows(boxes, labels, device):
    "Pad objects to rows [B, G, 5] as Megvii's heads take them: label and cxcywh box."
    rows = torch.zeros(len(boxes), max(map(len, boxes)), 5, device=device)
    for row, b, l in zip(rows, boxes, labels):
        corner, end = b.split(2, dim=1)
        row[:len(b)] = torch.cat([l[:, None], (corner + end)/2, end - corner], 1)
    return rows


def like_megvii(head):
    "Return the loss function of Megvii's head, or of one with the same methods."
    def run(maps, boxes, labels):
        outputs = []
        xs = []
        ys = []
        strides = []
        for k, (cls, box, obj, s) in enumerate(zip(*maps, STRIDES)):
            output, grid = head.get_output_and_grid(torch.cat([box, obj, cls], 1), k, s, cls.type())
            outputs.append(output)
            xs.append(grid[:, :, 0])
            ys.append(grid[:, :, 1])
            strides.append(torch.full((1, grid.shape[1]), s).type_as(cls))
        rows = megvii_rows(boxes, labels, cls.device)
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
    'ours, one compiled graph': lambda *args: ours(*args, graph=True), # The same as `compile=True` on an accelerator
    'ours, compile=reduce-overhead': lambda *args: ours(*args, compile='reduce-overhead'),
    'mmdetection': mmdetection,
    "ours, Megvii's preset": lambda *args: ours(*args, preset='megvii'),
    "ours, Megvii's preset, compile=True": lambda *args: ours(*args, preset='megvii', compile=True),
    'Megvii (pixeltable-yolox)': megvii,
    'LibreYOLO': libreyolo}


def clear_gradients(maps):
    for levels in maps:
        for m in levels: m.grad = None


def step(run, maps, boxes, labels):
    clear_gradients(maps)
    loss = run(maps, boxes, labels)
    loss.backward()
    return loss


def timed(run, batch, device):
    "Return the milliseconds that one step takes."
    if device == 'cpu':
        start = time.perf_counter()
        step(run, *batch)
        return 1000*(time.perf_counter() - start)
    torch.cuda.synchronize()
    return cuda_timed(lambda: step(run, *batch))


def cuda_timed(function):
    "Return the milliseconds between two events recorded around `function()`."
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    function()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end)


def first_line(error):
    "Return the error in one line of at most 200 characters, for a table."
    return f'{type(error).__name__}: {error}'.splitlines()[0][:200]


def measure_time(names, batch, C, device, rounds, runs):
    "Return, each by name: the lowest median of `runs` runs, the loss, the error, and the function."
    ready = {}
    medians = {}
    losses = {}
    failed = {}
    for name in names:
        try:
            ready[name] = IMPLEMENTATIONS[name](C, device)
            for _ in range(3): losses[name] = step(ready[name], *batch).item()
            medians[name] = []
        except Exception as e: failed[name] = first_line(e) # Another implementation may fail in any way
    for _ in range(runs):
        times = {name: [] for name in medians}
        for turn in range(rounds):
            first = turn % len(medians) # The order rotates, since each one leaves its data in the caches
            for name in [*medians][first:] + [*medians][:first]: times[name].append(timed(ready[name], batch, device))
        for name in medians: medians[name].append(statistics.median(times[name]))
    return {name: min(m) for name, m in medians.items()}, losses, failed, ready


def measure_memory(name, args, workload):
    "Return the peak memory of a step in a new process, in MB beyond the inputs; None if the process fails."
    command = [sys.executable, __file__, '--memory', name, '--workloads', workload]
    if args.images: command += ['--images', str(args.images)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0: return float(done.stdout.split()[-1])
    warnings.warn(f'memory of {name} on {workload} could not be measured: {done.stderr.splitlines()[-1:]}')


def print_memory(name, workload, images):
    "Print the peak memory of a step; `measure_memory` calls this in a new process."
    batch = make_batch(workload, images=images)
    run = IMPLEMENTATIONS[name](WORKLOADS[workload][2], 'cpu')
    if 'graph' in name: step(run, *batch) # Compiling also takes memory, but only once
    maps, boxes, labels = batch
    small = [[m[:1, ..., :2, :2].detach().requires_grad_() for m in levels] for levels in maps]
    step(run, small, [b[:1] for b in boxes[:1]], [l[:1] for l in labels[:1]]) # Loads all libraries
    clear_gradients(maps)
    # The step would reuse memory that was freed while the inputs were made, and seem to need less
    if 'linux' in sys.platform: ctypes.CDLL('libc.so.6').malloc_trim(0)
    Path('/proc/self/clear_refs').write_text('5') # Resets the peak
    before = process_mb('VmRSS')
    step(run, *batch)
    print(process_mb('VmHWM') - before)


def process_mb(key):
    "Return a figure of /proc/self/status in MB."
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(int(l.split()[1]) for l in lines if l.startswith(key))/1000


def gpu_bandwidth():
    "Return the bytes per second that a large copy reads and writes."
    source = torch.empty(2**30, dtype=torch.uint8, device='cuda')
    target = torch.empty_like(source)
    times = [cuda_timed(lambda: target.copy_(source)) for _ in range(12)]
    return 2*source.numel()/statistics.median(times)*1000


def gpu_figures(run, batch, bandwidth):
    """Return peak memory, number of kernels and of synchronizations, and milliseconds in kernels.

    `floor` is the share of those milliseconds that reading the maps and writing their gradients would take
    at full bandwidth.
    """
    clear_gradients(batch[0])
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step(run, *batch)
    torch.cuda.synchronize()
    peak = (torch.cuda.max_memory_allocated() - before)/1e6
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile: step(run, *batch)
    events = profile.events()
    kernels = [e.time_range.elapsed_us()/1000 for e in events if is_kernel(e)]
    waits = sum(e.name in WAITS for e in events) - 1 # One is the profiler's
    least = 1000*2*sum(m.nbytes for levels in batch[0] for m in levels)/bandwidth
    busy = sum(kernels)
    return dict(peak_mb=peak, kernels=len(kernels), waits=max(0, waits), busy_ms=busy, floor=least/busy)


WAITS = 'cudaStreamSynchronize', 'cudaDeviceSynchronize', 'cudaEventSynchronize', 'cudaMemcpy'

def is_kernel(event):
    on_gpu = event.device_type == torch.autograd.DeviceType.CUDA
    return on_gpu and not getattr(event, 'is_user_annotation', False)


def installed(package):
    try: return version(package)
    except PackageNotFoundError: return None


def processor():
    info = Path('/proc/cpuinfo')
    lines = info.read_text().splitlines() if info.exists() else []
    return next((l.split(':')[1].strip() for l in lines if l.startswith('model name')), platform.machine())


def machine(device):
    "Describe the machine and the versions of what runs on it."
    about = dict(date=str(date.today()), processor=processor(), threads=torch.get_num_threads())
    about['python'] = platform.python_version()
    for package in ('torch', 'mmdet', 'pixeltable-yolox', 'libreyolo', 'ultralytics'):
        if found := installed(package): about[package] = found
    if device != 'cpu': about['gpu'] = torch.cuda.get_device_name()
    return about


def parser_of(text):
    "Return a parser of arguments with this help, and a function that adds an argument"
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    def option(name, text=None, **kwargs): parser.add_argument(name, help=text, **kwargs)
    return parser, option


def markdown(names, rows, texts):
    "Format rows of cells as a table; the columns numbered in `texts` hold text, the others numbers."
    rule = ''.join('---|' if n in texts else '--:|' for n in range(len(names)))
    return '\n'.join([markdown_row(names), f'|{rule}', *map(markdown_row, rows)])


def markdown_row(cells): return f'| {" | ".join(cells)} |'


def save_results(name, table, rows, about, out):
    "Print `table` and `about`, the machine; write them and `rows` to the folder `out`, unless it is None."
    print(table, '', json.dumps(about), sep='\n')
    if out is None: return
    out.mkdir(parents=True, exist_ok=True)
    machine = ', '.join(f'{k} {v}' for k, v in about.items())
    (out/f'{name}.md').write_text(f'{table}\n\n{machine}\n')
    (out/f'{name}.json').write_text(json.dumps(dict(machine=about, rows=rows), indent=1) + '\n')


PEERS = {'mmdetection': 'mmdetection', 'Megvii': 'Megvii (pixeltable-yolox)'}

def as_table(rows, device):
    names = ['workload', 'implementation', 'ms', *(f'times as fast as {p}' for p in PEERS), 'peak MB']
    if device != 'cpu': names += ['kernels', 'waits', 'ms in kernels', 'floor']
    names.append('loss')
    ms = {(r['workload'], r['implementation']): r['ms'] for r in rows}
    cells = [[row['workload'], row['implementation'], *result_cells(row, ms, device)] for row in rows]
    return markdown(names, [c + ['']*(len(names) - len(c)) for c in cells], texts=(0, 1))


def result_cells(row, ms, device):
    if row['failed']: return [f'failed: {row["failed"]}']
    cells = [f'{row["ms"]:.2f}']
    for peer in PEERS.values():
        theirs = ms.get((row['workload'], peer))
        ours = row['implementation'].startswith('ours')
        cells.append(f'{theirs/row["ms"]:.1f}' if ours and theirs else '')
    cells.append('?' if row['peak_mb'] is None else f'{row["peak_mb"]:.0f}')
    if device != 'cpu':
        cells += [str(row['kernels']), str(row['waits']), f'{row["busy_ms"]:.2f}', f'{100*row["floor"]:.0f} %']
    return [*cells, f'{row["loss"]:.4f}']


def parse_arguments():
    parser, option = parser_of(__doc__)
    option('--workloads', nargs='+', default=list(WORKLOADS), choices=list(WORKLOADS))
    every = list(IMPLEMENTATIONS)
    option('--only', 'implementations to measure (default: all that differ on the device)', nargs='+', choices=every)
    option('--device', default='cpu', choices=['cpu', 'cuda'])
    option('--rounds', 'timed steps of each; the median counts (default: 7)', type=int, default=7)
    option('--runs', 'repetitions of the rounds; the lowest median counts (default: 3)', type=int, default=3)
    option('--images', "batch size (default: the workload's)", type=int)
    option('--out', 'folder for loss-DEVICE.md and loss-DEVICE.json', type=Path)
    option('--memory', argparse.SUPPRESS)
    return parser.parse_args()


def distinct(device):
    "List the implementations that differ on `device`."
    # On a CPU, `compile` has no effect; elsewhere, it is the one compiled graph
    same = 'compile=' if device == 'cpu' else 'graph'
    return [name for name in IMPLEMENTATIONS if same not in name]


def measure_workload(workload, names, args, bandwidth):
    "Return one row per implementation."
    torch._dynamo.reset() # Other sizes than before would make it compile for variable ones
    batch = make_batch(workload, args.device, args.images)
    C = WORKLOADS[workload][2]
    times, losses, failed, ready = measure_time(names, batch, C, args.device, args.rounds, args.runs)
    rows = []
    for name in names:
        row = dict(workload=workload, implementation=name, ms=times.get(name))
        row.update(loss=losses.get(name), failed=failed.get(name))
        if name in times and args.device == 'cpu': row['peak_mb'] = measure_memory(name, args, workload)
        elif name in times: row.update(gpu_figures(ready[name], batch, bandwidth))
        if 'reduce-overhead' in name: row['peak_mb'] = None # The memory pools of CUDA graphs are not counted
        rows.append(row)
        print(row, file=sys.stderr, flush=True)
    return rows


def main():
    args = parse_arguments()
    if args.memory: return print_memory(args.memory, args.workloads[0], args.images)
    names = args.only or distinct(args.device)
    bandwidth = gpu_bandwidth() if args.device == 'cuda' else None
    rows = []
    for workload in args.workloads: rows += measure_workload(workload, names, args, bandwidth)
    about = machine(args.device)
    if bandwidth: about['bandwidth_gb_s'] = round(bandwidth/1e9)
    about |= dict(rounds=args.rounds, runs=args.runs)
    save_results(f'loss-{args.device}', as_table(rows, args.device), rows, about, args.out)


if __name__ == '__main__': main()
