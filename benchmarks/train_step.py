"""Measure whole training steps (model, loss, backward, optimizer) in images per second.

They are compared with the model and loss of pixeltable-yolox, and all take turns in one process. `make bench` runs all
benchmarks in a separate environment.
"""
import statistics
import sys
from pathlib import Path

import torch

from loader import PEER, ratio, timed, two_digits
from loss import first_line, machine, markdown, megvii_rows, parser_of, random_objects, save_results

from cjm_yolox_pytorch.loss import YOLOXLoss
from cjm_yolox_pytorch.model import MODEL_CFGS, build_model

# Model, side in pixels, images, most objects in an image
WORKLOADS = dict(
    tiny=('yolox_tiny', 416, 16, 8),
    s=('yolox_s', 640, 4, 20))
CLASSES = 80


def make_batch(side, B, most, device, seed=0):
    "Return noise as images, and objects like those of the loss benchmark."
    g = torch.Generator().manual_seed(seed)
    objects = [random_objects(side, CLASSES, 1, most, g) for _ in range(B)]
    images = torch.rand(B, 3, side, side, generator=g).to(device)
    return images, [b.to(device) for b, _ in objects], [l.to(device) for _, l in objects]


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
    depth = MODEL_CFGS[name]['deepen_factor']
    width = MODEL_CFGS[name]['widen_factor']
    model = YoloxModule(YoloPafpn(depth, width), YoloxHead(CLASSES, width)).to(device).train()
    for m in model.modules():
        if not isinstance(m, torch.nn.BatchNorm2d): continue
        m.eps = 1e-3 # Values of its own configuration
        m.momentum = .03
    model.head.initialize_biases(1e-2)

    def losses(images, boxes, labels):
        rows = megvii_rows(boxes, labels, images.device)
        return model(images*255, rows)['total_loss']
    return model, losses


# Function, arguments, dtype of autocast
VARIANTS = {
    PEER: (pixeltable, {}, None),
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


def measure(workload, args):
    "Return one row per variant."
    name, side, B, most = WORKLOADS[workload]
    if args.images: B = args.images
    batch = make_batch(side, B, most, args.device)
    steps = {}
    first = {}
    failed = {}
    for variant in args.only:
        try:
            torch._dynamo.reset()
            step = make_step(*VARIANTS[variant], name, batch, args.device)
            loss = step().item()
            for _ in range(2): step()
            steps[variant] = step
            first[variant] = loss
        except Exception as e: failed[variant] = first_line(e) # Another implementation may fail in any way
    times = {variant: [] for variant in steps}
    for _ in range(args.rounds):
        for variant, step in steps.items(): times[variant].append(timed(step))
    speed = {variant: B/statistics.median(t) for variant, t in times.items()}
    rows = []
    for variant in args.only:
        row = dict(model=f'{name}, {side} px, batch {B}', variant=variant, images_per_s=speed.get(variant))
        rows.append(dict(row, first_loss=first.get(variant), failed=failed.get(variant)))
    return rows


COLUMNS = ['model', 'variant', 'images/s', 'times pixeltable-yolox, fp32', 'first loss']

def table_cells(rows): # Of one workload
    speed = {row['variant']: row['images_per_s'] for row in rows if not row['failed']}
    cells = []
    for row in rows:
        results = [f'failed: {row["failed"]}', '', '']
        if not row['failed']:
            times = two_digits(ratio(speed, row['variant']))
            results = [f'{row["images_per_s"]:.2f}', times, f'{row["first_loss"]:.2f}']
        cells.append([row['model'], row['variant'], *results])
    return cells


def parse_arguments():
    parser, option = parser_of(__doc__)
    option('--workloads', nargs='+', default=list(WORKLOADS), choices=list(WORKLOADS))
    option('--only', 'variants to measure (default: all)', nargs='+', default=list(VARIANTS), choices=list(VARIANTS))
    option('--device', default='cpu', choices=['cpu', 'cuda'])
    option('--images', "batch size (default: the workload's)", type=int)
    option('--rounds', 'timed steps of each; the median counts (default: 7)', type=int, default=7)
    option('--out', 'folder for train-step-DEVICE.md and train-step-DEVICE.json', type=Path)
    return parser.parse_args()


def main():
    args = parse_arguments()
    rows = []
    cells = []
    for workload in args.workloads:
        measured = measure(workload, args)
        cells += table_cells(measured)
        print(*measured, sep='\n', file=sys.stderr, flush=True)
        rows += measured
    table = markdown(COLUMNS, cells, texts=(0, 1))
    about = machine(args.device) | dict(rounds=args.rounds)
    save_results(f'train-step-{args.device}', table, rows, about, args.out)


if __name__ == '__main__': main()
