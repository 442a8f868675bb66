"""Time and memory of the loss, forward and backward, beside other implementations. Run: python benchmarks/loss.py

The peers are measured as they are published, on the same maps and objects, in one process, taking turns. A peer that cannot be
imported is named in the table and left out.
"""
import argparse
import importlib.abc
import importlib.machinery
import json
import platform
import statistics
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from cjm_yolox_pytorch.boxes import cell_centres, encode, grid_priors
from cjm_yolox_pytorch.loss import YOLOXLoss
from cjm_yolox_pytorch.simota import SimOTAAssigner

STRIDES = [8, 16, 32]
WORKLOADS = dict( # images, side in pixels, classes, fewest and most objects in an image
    tiny=(16, 416, 80, 1, 14),
    coco=(8, 640, 80, 8, 40),
    crowd=(2, 640, 80, 200, 300),
    lvis=(2, 640, 1203, 10, 40))


def make_batch(workload, device='cpu', seed=0):
    "Maps of a half-trained network, and the objects of each image"
    B, side, C, least, most = WORKLOADS[workload]
    g = torch.Generator().manual_seed(seed)
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
        maps.append([m.transpose(1, 2).reshape(B, -1, side//s, side//s).contiguous().to(device) for m, s in zip(part.split(cells, dim=1), STRIDES)])
    return maps, [b.to(device) for b in boxes], [l.to(device) for l in labels]


# One function for each implementation: from a workload's size to a function of leaves and objects that returns the sum of the losses

def ours(C, preset='mmdetection', **kwargs):
    assigner = SimOTAAssigner(1.5, center_only=True, iou_eps=1e-8) if preset == 'megvii' else None
    loss = YOLOXLoss(C, box_loss='squared_iou', assigner=assigner, **kwargs)
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


def mmdetection(C):
    sys.meta_path.insert(0, _Stub())
    from mmdet.models.dense_heads import YOLOXHead
    from mmengine.structures import InstanceData
    head = YOLOXHead(C, 8, feat_channels=8, train_cfg=dict(assigner=dict(type='SimOTAAssigner', center_radius=2.5)))

    def run(maps, boxes, labels):
        objects = [InstanceData(bboxes=b, labels=l) for b, l in zip(boxes, labels)]
        return sum(head.loss_by_feat(*maps, objects, [{}]*len(boxes)).values())
    return run


def megvii(C):
    from yolox.models.yolo_head import YoloxHead
    head = YoloxHead(C, width=.03125).train()

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
        return head.get_losses(None, xs, ys, strides, rows, torch.cat(outputs, 1), [], dtype=cls.dtype)[0]
    return run


IMPLEMENTATIONS = {
    'ours': ours, 'ours, Megvii preset': lambda C: ours(C, 'megvii'),
    'mmdetection': mmdetection, 'Megvii (pixeltable-yolox)': megvii}


def step(run, maps, boxes, labels):
    for levels in maps:
        for m in levels: m.grad = None
    loss = run(maps, boxes, labels)
    loss.backward()
    return loss.item()


def prepare(workload, device):
    maps, boxes, labels = make_batch(workload, device)
    return [[m.requires_grad_() for m in levels] for levels in maps], boxes, labels


def measure_time(names, workload, rounds):
    "Median milliseconds of each implementation, or why there are none"
    batch, runs, times, losses, failed = prepare(workload, 'cpu'), {}, {}, {}, {}
    for name in names:
        try:
            runs[name] = IMPLEMENTATIONS[name](WORKLOADS[workload][2])
            for _ in range(2): losses[name] = step(runs[name], *batch)
            times[name] = []
        except Exception as e: failed[name] = f'{type(e).__name__}: {e}'[:200] # Whatever a peer does wrong, the run goes on
    for _ in range(rounds):
        for name in times:
            start = time.perf_counter()
            step(runs[name], *batch)
            times[name].append(1000*(time.perf_counter() - start))
    return {name: statistics.median(t) for name, t in times.items()}, losses, failed


def measure_memory(name, workload):
    "High-water mark of a process of its own above what it held once inputs existed, in MB"
    done = subprocess.run([sys.executable, __file__, '--memory', name, '--workloads', workload], capture_output=True, text=True)
    return float(done.stdout.split()[-1]) if done.returncode == 0 else None


def print_memory(name, workload):
    "What `measure_memory` starts"
    batch = prepare(workload, 'cpu')
    run = IMPLEMENTATIONS[name](WORKLOADS[workload][2])
    small = [[m[:1, ..., :2, :2].detach().requires_grad_() for m in levels] for levels in batch[0]]
    step(run, small, [b[:1] for b in batch[1][:1]], [l[:1] for l in batch[2][:1]]) # So that libraries are loaded
    Path('/proc/self/clear_refs').write_text('5') # The high-water mark starts anew
    def status(key): return int(next(l for l in Path('/proc/self/status').read_text().splitlines() if l.startswith(key)).split()[1])/1000
    before = status('VmRSS')
    step(run, *batch)
    print(status('VmHWM') - before)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--workloads', nargs='+', default=list(WORKLOADS), choices=list(WORKLOADS))
    parser.add_argument('--only', nargs='+', default=list(IMPLEMENTATIONS), choices=list(IMPLEMENTATIONS))
    parser.add_argument('--rounds', type=int, default=7, help='timed steps of each; the median counts (default: 7)')
    parser.add_argument('--out', type=Path, help='folder for loss.md and loss.json')
    parser.add_argument('--memory', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory: return print_memory(args.memory, args.workloads[0])

    rows = []
    for workload in args.workloads:
        times, losses, failed = measure_time(args.only, workload, args.rounds)
        for name in args.only:
            row = dict(workload=workload, implementation=name, ms=times.get(name), loss=losses.get(name), failed=failed.get(name))
            if name in times: row['peak_mb'] = measure_memory(name, workload)
            rows.append(row)
    table = ['| workload | implementation | ms | of mmdetection\'s | peak MB | loss |', '|---|---|--:|--:|--:|--:|']
    for row in rows:
        theirs = next((r['ms'] for r in rows if r['workload'] == row['workload'] and r['implementation'] == 'mmdetection'), None)
        if row['failed']: cells = [row['failed'], '', '', '']
        else: cells = [f'{row["ms"]:.1f}', f'1/{theirs/row["ms"]:.1f}' if theirs else '', f'{row["peak_mb"]:.0f}' if row['peak_mb'] else 'failed', f'{row["loss"]:.4f}']
        table.append(f'| {" | ".join([row["workload"], row["implementation"], *cells])} |')
    def installed(package):
        try: return version(package)
        except PackageNotFoundError: return None
    machine = dict(processor=platform.processor() or platform.machine(), threads=torch.get_num_threads(), python=platform.python_version(),
                   **{p: installed(p) for p in ('torch', 'cjm-yolox-pytorch', 'mmdet', 'pixeltable-yolox')})
    print(*table, '', json.dumps(machine), sep='\n')
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out/'loss.md').write_text('\n'.join(table) + '\n')
        (args.out/'loss.json').write_text(json.dumps(dict(machine=machine, rows=rows), indent=1))


if __name__ == '__main__': main()
