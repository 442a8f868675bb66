"Random maps and objects, and what a loss makes of them. Shared by the tests of the core."
import torch

STRIDES, SIZES, C = [8, 16, 32], [(10, 12), (5, 6), (3, 3)], 4
NUM_CELLS = sum(h*w for h, w in SIZES)
NAMES = ['loss_cls', 'loss_bbox', 'loss_obj', 'loss_l1']


def batch(counts, seed=0, dtype=torch.float32, num_classes=C):
    "Random maps and objects, so many in each image"
    g = torch.Generator().manual_seed(seed)

    def random_maps(channels, shift):
        levels = [torch.randn(len(counts), channels, *size, generator=g, dtype=torch.float64) for size in SIZES]
        return [m.mul(.7).add(shift).to(dtype) for m in levels]
    maps = [random_maps(channels, shift) for channels, shift in [(num_classes, -1), (4, 0), (1, -1)]]
    boxes, labels = [], []
    for n in counts:
        corner = torch.rand(n, 2, generator=g)*90 - 10
        boxes.append(torch.cat([corner, corner + 3 + torch.rand(n, 2, generator=g)**2*70], 1))
        labels.append(torch.randint(num_classes, (n,), generator=g))
    return maps, boxes, labels


def requiring_grad(maps): return [[m.detach().clone().requires_grad_() for m in levels] for levels in maps]
def pick(maps, images): return [[m[images] for m in levels] for levels in maps]


def gradients(loss, maps, *objects, **kwargs):
    maps = requiring_grad(maps)
    losses = loss(*maps, *objects, **kwargs)
    sum(losses.values()).backward()
    return losses, [m.grad for levels in maps for m in levels]


def positives(matches):
    "Rows of image, cell and object, and their IoUs, in the order of `matches`"
    image, cells, objects, ious, on = matches
    if on is not None: image, cells, objects, ious = (t[on] for t in (image.expand_as(cells), cells, objects, ious))
    return torch.stack([image, cells, objects], 1), ious


def in_order(matches):
    "`positives` as lists, sorted by image and cell"
    rows, ious = positives(matches)
    return sorted(zip(rows.tolist(), ious.tolist()))


def as_padded(rows, filler, size=None):
    "One tensor of the rows of each image, filled up to the largest number of them or `size`"
    size = max(map(len, rows)) if size is None else size
    padded = torch.full((len(rows), size, *rows[0].shape[1:]), filler, dtype=rows[0].dtype)
    for image, own in zip(padded, rows): image[:len(own)] = own
    return padded
