"""Whole training steps (model, loss, backward, optimizer) in images per second, beside pixeltable-yolox's model and loss.

All take turns in one process. With an environment of its own: make bench
"""
import argparse
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent)) # For the benchmark beside this one
from loss import machine, tell

from cjm_yolox_pytorch.loss import YOLOXLoss
from cjm_yolox_pytorch.model import MODEL_CFGS, build_model

WORKLOADS = dict(tiny=('yolox_tiny', 416, 16, 8), s=('yolox_s', 640, 4, 20)) # model, side in pixels, images, most objects in an image
CLASSES = 80


def make_batch(side, B, most, device, seed=0):
    "Noise, and objects as in the loss's workloads"
    g = torch.Generator().manual_seed(seed)
    boxes, labels = [], []
    for _ in range(B):
        n = int(torch.randint(1, most + 1, (), generator=g))
        size = 8 + (.6*side - 8)*torch.rand(n, 2, generator=g)**3
        corner = torch.rand(n, 2, generator=g)*(side - size)
        boxes.append(torch.cat([corner, corner + size], 1).to(device))
        labels.append(torch.randint(CLASSES, (n,), generator=g).to(device))
    return torch.rand(B, 3, side, side, generator=g).to(device), boxes, labels


def ours(name, device, channels_last=False, compiled=False):
    model = build_model(name, CLASSES, pretrained=False).to(device).train()
    if channels_last: model = model.to(memory_format=torch.channels_last)
    loss = YOLOXLoss(CLASSES, box_loss='squared_iou', compile=compiled)
    forward = torch.compile(model) if compiled else model

    def losses(images, boxes, labels):
        if channels_last: images = images.contiguous(memory_format=torch.channels_last)
        return sum(loss(*forward(images), boxes, labels).values())
    return model, losses


def pixeltable(name, device, channels_last=False, compiled=False):
    from yolox.models import YoloPafpn, YoloxHead, YoloxModule
    depth, width = MODEL_CFGS[name]['deepen_factor'], MODEL_CFGS[name]['widen_factor']
    model = YoloxModule(YoloPafpn(depth, width), YoloxHead(CLASSES, width)).to(device).train()
    for m in model.modules(): # As its own configuration does
        if isinstance(m, torch.nn.BatchNorm2d): m.eps, m.momentum = 1e-3, .03
    model.head.initialize_biases(1e-2)

    def losses(images, boxes, labels):
        rows = torch.zeros(len(boxes), max(map(len, boxes)), 5, device=images.device)
        for row, b, l in zip(rows, boxes, labels): row[:len(b)] = torch.cat([l[:, None], (b[:, :2] + b[:, 2:])/2, b[:, 2:] - b[:, :2]], 1)
        return model(images*255, rows)['total_loss']
    return model, losses


VARIANTS = {
    'pixeltable-yolox': (pixeltable, {}, None),
    'ours': (ours, {}, None),
    'ours, channels_last': (ours, dict(channels_last=True), None),
    'ours, channels_last, compiled': (ours, dict(channels_last=True, compiled=True), None),
    'pixeltable-yolox, bf16': (pixeltable, {}, torch.bfloat16),
    'ours, channels_last, bf16': (ours, dict(channels_last=True), torch.bfloat16),
    'ours, channels_last, compiled, bf16': (ours, dict(channels_last=True, compiled=True), torch.bfloat16)}


def make_step(make, kwargs, dtype, name, batch, device):
    torch.manual_seed(0)
    model, losses = make(name, device, **kwargs)
    optimizer = torch.optim.SGD(model.parameters(), 1e-4, momentum=.9, nesterov=True)

    def step():
        with torch.autocast(device, dtype, enabled=dtype is not None): loss = losses(*batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if device == 'cuda': torch.cuda.synchronize()
        return loss
    return step


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--workloads', nargs='+', default=list(WORKLOADS), choices=list(WORKLOADS))
    parser.add_argument('--only', nargs='+', default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument('--device', default='cpu', choices=['cpu', 'cuda'])
    parser.add_argument('--images', type=int, help="images in a batch, instead of the workload's own")
    parser.add_argument('--rounds', type=int, default=7, help='timed steps of each, of which the median counts (default: 7)')
    parser.add_argument('--out', type=Path, help='folder for train-step-DEVICE.md and train-step-DEVICE.json')
    args = parser.parse_args()

    rows, table = [], ['| model | variant | images/s | times pixeltable-yolox, fp32 | first loss |', '|---|---|--:|--:|--:|']
    for workload in args.workloads:
        name, side, B, most = WORKLOADS[workload]
        batch, steps, first, failed = make_batch(side, args.images or B, most, args.device), {}, {}, {}
        for variant in args.only:
            try:
                torch._dynamo.reset()
                steps[variant] = make_step(*VARIANTS[variant], name, batch, args.device)
                first[variant] = steps[variant]().item()
                for _ in range(2): steps[variant]()
            except Exception as e: steps.pop(variant, None); failed[variant] = f'{type(e).__name__}: {e}'.splitlines()[0][:200] # The run goes on
        times = {variant: [] for variant in steps}
        for _ in range(args.rounds):
            for variant in steps:
                start = time.perf_counter()
                steps[variant]()
                times[variant].append(time.perf_counter() - start)
        speed = {variant: (args.images or B)/statistics.median(t) for variant, t in times.items()}
        for variant in args.only:
            row = dict(model=f'{name}, {side} px, batch {args.images or B}', variant=variant, images_per_s=speed.get(variant), first_loss=first.get(variant), failed=failed.get(variant))
            rows.append(row)
            ratio = f'{speed[variant]/speed["pixeltable-yolox"]:.2f}' if variant in speed and 'pixeltable-yolox' in speed else ''
            cells = [f'failed: {row["failed"]}', '', ''] if row['failed'] else [f'{speed[variant]:.2f}', ratio, f'{first[variant]:.2f}']
            table.append(f'| {" | ".join([row["model"], variant, *cells])} |')
            print(table[-1], file=sys.stderr, flush=True)
    about = machine(args.device) | dict(rounds=args.rounds)
    tell(f'train-step-{args.device}', '\n'.join(table), rows, about, args.out)


if __name__ == '__main__': main()
