"Torchvision's reference loop for detectors, in our words, runs with `YOLOXDetector` as it is."
import math

import pytest
import torch
from torch.testing import assert_close
from torchvision.datasets import CocoDetection, wrap_dataset_for_transforms_v2
from torchvision.transforms import v2
from torchvision.tv_tensors import BoundingBoxes

from cjm_yolox_pytorch.boxes import encode, grid_priors
from cjm_yolox_pytorch.data.shapes import SHAPES
from cjm_yolox_pytorch.data.splits import find_splits
from cjm_yolox_pytorch.detection.torchvision_loops import YOLOXDetector
from cjm_yolox_pytorch.evaluation.evaluate import detect
from cjm_yolox_pytorch.evaluation.metrics import average_precision
from cjm_yolox_pytorch.files.checkpoints import load_weights
from cjm_yolox_pytorch.files.letterbox import InputSpec
from cjm_yolox_pytorch.loss import YOLOXLoss
from cjm_yolox_pytorch.model import build_model

SIDE, C = 64, len(SHAPES)


@pytest.fixture(scope='module')
def drawn(draw_shapes): return draw_shapes(train=20, val=20, test=0, size=SIDE)


def make_loader(folder, training):
    dataset = CocoDetection(folder, folder/'_annotations.coco.json', transforms=v2.Compose([
        v2.ToImage(), v2.RandomHorizontalFlip(.5 if training else 0), v2.ToDtype(torch.float32, scale=True)]))
    wrapped = wrap_dataset_for_transforms_v2(dataset, target_keys=['image_id', 'boxes', 'labels', 'iscrowd'])
    rows = [i for i, n in enumerate(dataset.ids) if dataset.coco.getAnnIds(n) or not training]
    def collate(batch): return tuple(zip(*batch))
    return torch.utils.data.DataLoader(torch.utils.data.Subset(wrapped, rows), 4, shuffle=training, collate_fn=collate)


def train_one_epoch(model, optimizer, loader, epoch):
    "The first epoch warms up; a loss that is not finite ends the training"
    model.train()
    start = dict(start_factor=1e-3, total_iters=min(1000, len(loader) - 1))
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, **start) if epoch == 0 else None
    seen = []
    for images, targets in loader:
        images = [image.to('cpu') for image in images]
        targets = [{k: v.to('cpu') if isinstance(v, torch.Tensor) else v for k, v in t.items()} for t in targets]
        losses = model(images, targets)
        total = sum(loss for loss in losses.values())
        assert math.isfinite(total.item())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        if warmup: warmup.step()
        seen.append(total.item())
    return seen


@torch.inference_mode()
def evaluate(model, loader):
    "AP and AP50 by pycocotools, from results by the id of the image"
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval
    model.eval()
    truth, rows = loader.dataset.dataset.coco, []
    for images, targets in loader:
        outputs = [{k: v.to('cpu') for k, v in output.items()} for output in model(images)]
        for target, output in zip(targets, outputs):
            x1, y1, x2, y2 = output['boxes'].unbind(1)
            boxes = torch.stack([x1, y1, x2 - x1, y2 - y1], 1).tolist()
            each = zip(boxes, output['labels'].tolist(), output['scores'].tolist())
            rows += [dict(image_id=target['image_id'], category_id=l, bbox=b, score=s) for b, l, s in each]
    run = COCOeval(truth, truth.loadRes(rows) if rows else COCO(), 'bbox')
    run.evaluate()
    run.accumulate()
    run.summarize()
    return run.stats[:2].tolist()


class Recites(torch.nn.Module):
    "Predicts the objects of a split, image after image, somewhat beside them and partly of the wrong class"
    def __init__(self, targets):
        super().__init__()
        self.targets, self.next = targets, 0

    def forward(self, x):
        n = SIDE//8
        classes, raw, objectness = (torch.full((len(x), d, n, n), fill) for d, fill in ((C, -9.), (4, 0.), (1, -9.)))
        priors = grid_priors([(n, n)], [8], 'cpu', torch.float32)
        for b in range(len(x)):
            target = self.targets[self.next]
            self.next += 1
            boxes = target.get('boxes', torch.zeros(0, 4)) + torch.linspace(-3, 2, 4)
            for i, box in enumerate(boxes):
                column, row = ((box[:2] + box[2:])/16).clamp(0, n - 1).long().tolist()
                classes[b, (target['labels'][i] + (self.next % 3 == 0)) % C, row, column] = 2 - .5*i
                raw[b, :, row, column] = encode(box[None], priors[[row*n + column]])[0]
                objectness[b, 0, row, column] = 3
        return [classes], [raw], [objectness]


def fresh():
    torch.manual_seed(0)
    network = build_model('yolox_nano', C, pretrained=False)
    return network, YOLOXLoss(C), torch.optim.SGD(network.parameters(), lr=.005, momentum=.9)


def test_an_epoch_of_the_reference_loop_equals_a_plain_loop(drawn, tmp_path):
    "These images fill the canvas, and yolox_nano takes pixels from 0 to 1 as they are"
    pytest.importorskip('pycocotools')
    network, loss, optimizer = fresh()
    model, loader = YOLOXDetector(network, loss, InputSpec(SIDE)), make_loader(drawn/'train', True)
    found = train_one_epoch(model, optimizer, loader, epoch=0)
    assert all(0 <= v <= 1 for v in evaluate(model, make_loader(drawn/'val', False)))

    network, loss, optimizer = fresh()
    plain = []
    for n, (images, targets) in enumerate(make_loader(drawn/'train', True)):
        for group in optimizer.param_groups: group['lr'] = .005*(1e-3 + (1 - 1e-3)*n/(len(loader) - 1))
        pixels = (torch.stack(images)*255/255).contiguous(memory_format=torch.channels_last) # To the last bit
        total = sum(loss(*network(pixels), [t['boxes'] for t in targets], [t['labels'] for t in targets]).values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        plain.append(total.item())
    assert len(plain) > 3 and len({*plain}) == len(plain)
    assert_close(found, plain, rtol=1e-5, atol=0)

    torch.save(dict(model=model.state_dict(), epoch=0), tmp_path/'model_0.pth') # As the reference writes it
    saved = load_weights(tmp_path/'model_0.pth', names=list(SHAPES))
    assert all(torch.equal(saved.state[k], v) for k, v in model.model.state_dict().items())


def test_ap_of_the_reference_loop_is_ours(drawn):
    pytest.importorskip('pycocotools')
    loader = make_loader(drawn/'val', False)
    targets = [t for _, batch in loader for t in batch]
    def recite(): return Recites(targets).eval()
    spec = InputSpec(SIDE, strides=(8,))
    theirs = evaluate(YOLOXDetector(recite(), YOLOXLoss(C, strides=[8]), spec), loader)
    val = find_splits(drawn)['val']()
    ours = average_precision(val, detect(recite(), val, spec))
    assert_close([ours['AP'], ours['AP50']], theirs, atol=1e-6, rtol=0)
    assert .1 < theirs[0] < theirs[1] < .9


def test_torchmetrics_takes_what_comes_back(drawn):
    metric = pytest.importorskip('torchmetrics.detection').MeanAveragePrecision()
    loader = make_loader(drawn/'val', False)
    targets = [t for _, batch in loader for t in batch]
    model = YOLOXDetector(Recites(targets), YOLOXLoss(C, strides=[8]), InputSpec(SIDE, strides=(8,))).eval()
    nothing = dict(boxes=torch.zeros(0, 4), labels=torch.zeros(0).long())
    for images, batch in loader:
        metric.update(model(images), [{k: t.get(k, v) for k, v in nothing.items()} for t in batch])
    found, val = metric.compute(), find_splits(drawn)['val']()
    ours = average_precision(val, detect(Recites(targets).eval(), val, model.spec))
    assert_close([found['map'].item(), found['map_50'].item()], [ours['AP'], ours['AP50']], atol=1e-5, rtol=0)


def test_half_precision_and_loss_weights_stay_those_of_the_parts():
    torch.manual_seed(0)
    loss = YOLOXLoss(C, bbox_loss_weight=0., use_l1=True)
    model = YOLOXDetector(build_model('yolox_nano', C, pretrained=False), loss, InputSpec(SIDE))
    images, targets = [torch.rand(3, 40, 64)], [dict(boxes=torch.tensor([[4., 5, 30, 38]]), labels=torch.tensor([2]))]
    with torch.autocast('cpu', torch.bfloat16): losses = model(images, targets)
    assert [*losses] == ['loss_cls', 'loss_bbox', 'loss_obj', 'loss_l1'] and losses['loss_bbox'] == 0
    assert all(v.dtype is torch.float32 for v in losses.values())


def test_images_of_any_size_are_scaled_with_their_boxes():
    "The same picture four times as large has the same losses, and detections four times as large"
    torch.manual_seed(0)
    model = YOLOXDetector(build_model('yolox_nano', C, pretrained=False), YOLOXLoss(C), InputSpec(SIDE), conf=0)
    image, box = torch.randint(256, (3, 48, 64))/255, torch.tensor([[4., 5, 30, 38]])
    large = image.repeat_interleave(4, 1).repeat_interleave(4, 2)
    def losses(image, box): return model([image], [dict(boxes=box, labels=torch.tensor([2]))])
    assert_close(losses(image, box), losses(large, box*4), rtol=1e-3, atol=0)
    assert_close(losses(image, box), losses((image*255).round().byte(), box.long()), rtol=1e-3, atol=0)
    canvas = BoundingBoxes(torch.tensor([[4., 5, 26, 33]]), format='XYWH', canvas_size=(48, 64))
    assert_close(losses(image, box), losses(image, canvas), rtol=1e-3, atol=0)
    small, big = (model.eval()([i])[0] for i in (image, large))
    assert_close(small['boxes']*4, big['boxes'], atol=.05, rtol=1e-3)


def test_groups_teach_no_background():
    torch.manual_seed(0)
    model = YOLOXDetector(build_model('yolox_nano', C, pretrained=False), YOLOXLoss(C), InputSpec(SIDE))
    boxes, labels = torch.tensor([[4., 5, 30, 38], [20, 20, 60, 60]]), torch.tensor([2, 1])
    image = torch.rand(3, SIDE, SIDE)
    def objectness(**more): return model([image], [dict(boxes=boxes, labels=labels, **more)])['loss_obj']
    crowd = torch.tensor([0, 1])
    alone = model([image], [dict(boxes=boxes[:1], labels=labels[:1])])['loss_obj']
    assert objectness(iscrowd=crowd) < alone
    assert_close(objectness(iscrowd=crowd*0), objectness())


@pytest.mark.parametrize('image, target, error', [
    (torch.rand(3, 64, 64)*255, {}, 'image 0: floats from .* give 0 to 1, not normalized, or uint8'),
    (torch.randn(3, 64, 64), {}, 'image 0: floats from -'),
    (torch.zeros(3, 64, 64).long(), {}, 'torch.int64, not uint8'),
    (torch.full((3, 64, 64), float('nan')), {}, 'image 0: floats from nan'),
    (torch.rand(3, 64, 64).numpy(), {}, r'image 0: ndarray, not a tensor \[3, H, W\]'),
    (torch.rand(1, 64, 64), {}, r'shape \[1, 64, 64\], not \[3, H, W\]'),
    (torch.rand(3, 64, 64), dict(boxes=torch.zeros(0, 4)), "target 0 has .'boxes'.: boxes and labels are needed"),
    (torch.rand(3, 64, 64), dict(boxes=torch.ones(1, 4), labels=torch.zeros(2)), '1 box.* but 2 labels'),
    (torch.rand(3, 64, 64), dict(boxes=torch.tensor([[0., 0, 9, 9]]), labels=torch.tensor([C])), str(C))])
def test_bad_input_is_named(image, target, error):
    model = YOLOXDetector(build_model('yolox_nano', C, pretrained=False), YOLOXLoss(C), InputSpec(SIDE))
    with pytest.raises(ValueError, match=error): model([image], [target])


@pytest.mark.parametrize('options, kind, error', [
    (dict(confidence=.5), TypeError, 'confidence: detectors have no such option, but conf'),
    (dict(conf=50), ValueError, 'conf=50: scores are from 0 to 1'),
    (dict(conf=[.1]), ValueError, '1 score for 5 classes'),
    (dict(iou='.5'), ValueError, "iou='.5': must be a number"),
    (dict(max_det=0), ValueError, 'max_det=0: must be at least 1')])
def test_options_are_checked_before_the_first_image(options, kind, error):
    network = build_model('yolox_nano', C, pretrained=False)
    with pytest.raises(kind, match=error): YOLOXDetector(network, YOLOXLoss(C), **options)
