"Scripts written for cjm-yolox-pytorch 0.2 run unchanged."
import numpy as np
import pytest
import torch
from torch.testing import assert_close
from torch.utils.data import DataLoader, Dataset
from torchvision.tv_tensors import BoundingBoxes

from cjm_yolox_pytorch.inference import YOLOXInferenceWrapper
from cjm_yolox_pytorch.loss import SamplingResult, YOLOXLoss
from cjm_yolox_pytorch.model import CSP_DARKNET_CFGS, HEAD_CFGS, HUGGINGFACE_CKPT_URL, MODEL_CFGS, MODEL_TYPES, NORM_CFG
from cjm_yolox_pytorch.model import NORM_STATS, PAFPN_CFGS, PRETRAINED_URLS, YOLOX, build_model, init_head
from cjm_yolox_pytorch.simota import AssignResult, SimOTAAssigner
from cjm_yolox_pytorch.utils import generate_output_grids, multi_apply


class Squares(Dataset):
    "Bright squares on black, with `BoundingBoxes` and float labels, as in the original's tutorials"
    def __len__(self): return 8

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        image, boxes = torch.zeros(3, 96, 96), []
        for _ in range(index % 4):
            ranges = (0, 60), (0, 60), (12, 36)
            x, y, side = (torch.randint(*r, (), generator=generator).item() for r in ranges)
            image[:, y:y+side, x:x+side] = 1
            boxes.append([x, y, x + side, y + side])
        boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
        boxes = BoundingBoxes(boxes, format='xyxy', canvas_size=(96, 96))
        return image, {'boxes': boxes, 'labels': torch.ones(len(boxes))}


def test_training_script_of_0_2_learns():
    torch.manual_seed(1)
    model_type, class_names, device = 'yolox_tiny', ['background', 'square'], 'cpu'
    model = build_model(model_type, len(class_names), pretrained=False).to(device=device, dtype=torch.float32)
    model.device, model.name = device, model_type
    norm_stats = [*NORM_STATS[model_type].values()]
    mean_tensor, std_tensor = (torch.tensor(stat).view(1, 3, 1, 1) for stat in norm_stats)

    loader = DataLoader(Squares(), batch_size=4, collate_fn=lambda batch: tuple(zip(*batch)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, eps=1e-5)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-3, total_steps=6*len(loader))
    yolox_loss = YOLOXLoss(num_classes=len(class_names), bbox_loss_weight=10.0)

    def run_epoch(training):
        model.train(training)
        total = 0.
        for images, targets in loader:
            inputs = (torch.stack(images).to(device) - mean_tensor) / std_tensor
            gt_bboxes, gt_labels = zip(*[(t['boxes'].to(device), t['labels'].float()) for t in targets])
            with torch.autocast('cpu', dtype=torch.bfloat16):
                with torch.set_grad_enabled(training):
                    cls_scores, bbox_preds, objectness = model(inputs)
                    losses = yolox_loss(
                        class_scores=cls_scores, predicted_bboxes=bbox_preds, objectness_scores=objectness,
                        ground_truth_bboxes=gt_bboxes, ground_truth_labels=gt_labels)
                    loss = sum(losses.values())
            assert list(losses) == ['loss_cls', 'loss_bbox', 'loss_obj']
            assert all(v.dtype is torch.float32 and v.shape == () for v in losses.values())
            if training:
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                scheduler.step()
            total += loss.item()
        return total / len(loader)

    trained = [run_epoch(True) for _ in range(6)]
    assert trained[-1] < .9*trained[0]
    before = [p.clone() for p in model.parameters()]
    with torch.no_grad(): assert np.isfinite(run_epoch(False))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters()))

    wrapped = YOLOXInferenceWrapper(model, mean_tensor, std_tensor).to(device=device)
    image = torch.stack([Squares()[3][0]])
    with torch.no_grad():
        output = wrapped(image)
        classes, _, objectness = model((image - mean_tensor)/std_tensor)
    assert output.shape == (1, 12*12 + 6*6 + 3*3, 6)
    scores = torch.cat([(c.sigmoid()*o.sigmoid()).flatten(2) for c, o in zip(classes, objectness)], 2)[0]
    assert_close(output[0, :, 5], scores.amax(0))
    assert_close(output[0, :, 4], scores.argmax(0).float())


def test_configurations_keep_their_names_and_columns():
    for table in (MODEL_CFGS, NORM_STATS, CSP_DARKNET_CFGS, PAFPN_CFGS, HEAD_CFGS): assert list(table) == MODEL_TYPES
    assert sorted(PRETRAINED_URLS) == sorted(MODEL_TYPES)
    assert all(PRETRAINED_URLS[name] == f'{HUGGINGFACE_CKPT_URL}/{name}.pth' for name in MODEL_TYPES[1:])
    assert all(url.startswith('https://') and url.endswith(f'/{name}.pth') for name, url in PRETRAINED_URLS.items())
    assert NORM_CFG == dict(momentum=.03, eps=.001)
    assert list(MODEL_CFGS['yolox_s']) == ['deepen_factor', 'widen_factor', 'neck_in_channels', 'neck_out_channels',
                                           'neck_num_csp_blocks', 'head_in_channels', 'head_feat_channels']
    assert MODEL_CFGS['yolox_m'] == dict(
        deepen_factor=.67, widen_factor=.75, neck_in_channels=[192, 384, 768], neck_out_channels=192,
        neck_num_csp_blocks=2, head_in_channels=192, head_feat_channels=192)
    assert list(NORM_STATS['yolox_s']) == ['mean', 'std']


def test_model_returns_three_lists_of_maps():
    model = build_model('yolox_nano', 7, pretrained=False)
    assert isinstance(model, YOLOX)
    assert model.bbox_head.strides == [8, 16, 32] and isinstance(model.bbox_head.cls_out_channels, int)
    outputs = model(torch.rand(2, 3, 64, 96))
    assert isinstance(outputs, tuple) and all(isinstance(maps, list) for maps in outputs)
    shapes = [[tuple(m.shape) for m in maps] for maps in outputs]
    assert shapes == [[(2, c, 8, 12), (2, c, 4, 6), (2, c, 2, 3)] for c in (7, 4, 1)]
    init_head(model.bbox_head, 3)
    assert model.bbox_head.num_classes == model.bbox_head.cls_out_channels == 3


def test_pretrained_weights_without_a_connection_say_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(PRETRAINED_URLS, 'yolox_tiny', 'http://127.0.0.1:9/yolox_tiny.pth') # Nobody answers there
    with pytest.raises(OSError, match='yolox_tiny.pth could not be downloaded') as error:
        build_model('yolox_tiny', 3, checkpoint_dir=tmp_path)
    assert str(tmp_path/'yolox_tiny.pth') in str(error.value) and not list(tmp_path.glob('*.pth'))


def test_per_image_methods_agree_with_the_loss():
    torch.manual_seed(0)
    loss = YOLOXLoss(3, use_l1=True)
    sizes = [(12, 12), (6, 6), (3, 3)]
    maps = [[torch.randn(1, d, h, w) for h, w in sizes] for d in (3, 4, 1)]
    boxes, labels = torch.tensor([[10., 10., 50., 60.], [30., 20., 90., 90.]]), torch.tensor([2, 0])

    grid = generate_output_grids(96, 96, loss.strides).float()
    corners = torch.cat([grid[:, :2]*grid[:, 2:], grid[:, 2:], grid[:, 2:]], dim=1)
    classes = loss.flatten_and_concat(maps[0], 1, 3)
    raw = loss.flatten_and_concat(maps[1], 1, 4)
    objectness = loss.flatten_and_concat(maps[2], 1)
    assert classes.shape == (1, 189, 3) and raw.shape == (1, 189, 4) and objectness.shape == (1, 189)
    decoded = loss.bbox_decode(corners, raw)

    foreground, class_targets, objectness_targets, box_targets, l1_targets, count = loss.get_target_single(
        classes[0], objectness[0], corners, decoded[0], boxes, labels)
    assert foreground.dtype is torch.bool and foreground.sum() == count
    assert len(class_targets) == len(box_targets) == len(l1_targets) == count
    assert_close(objectness_targets, foreground.float()[:, None])
    assert_close(loss.get_l1_target(torch.zeros(count, 4), box_targets, corners[foreground]), l1_targets)

    losses = loss(*maps, [boxes], [labels])
    assert list(losses) == ['loss_cls', 'loss_bbox', 'loss_obj', 'loss_l1']
    assert_close(losses['loss_l1'], loss.l1_loss_func(raw[0][foreground], l1_targets)/count)
    assert_close(losses['loss_bbox'], 5*loss.bbox_loss_func(decoded[0][foreground], box_targets)/count)
    assert_close(losses['loss_cls'], loss.class_loss_func(classes[0][foreground], class_targets)/count)

    centers = torch.cat([corners[:, :2] + corners[:, 2:]/2, corners[:, 2:]], dim=1)
    scores = classes[0].sigmoid() * objectness[0][:, None].sigmoid()
    assigned = loss.assigner.assign(scores, centers, decoded[0], boxes, labels, None, None)
    assert isinstance(assigned, AssignResult) and assigned.num_ground_truth_boxes == 2
    sampled = loss.sample(assigned, corners, boxes)
    assert isinstance(sampled, SamplingResult)
    assert_close(sampled.positive_indices, foreground.nonzero()[:, 0])
    assert_close(sampled.positive_ground_truth_bboxes, box_targets)
    assert len(sampled.positive_indices) + len(sampled.negative_indices) == 189
    assert_close(sampled.positive_ground_truth_labels, labels[sampled.positive_assigned_ground_truth_indices])

    none = loss.get_target_single(classes[0], objectness[0], corners, decoded[0], boxes[:0], labels[:0])
    assert [t.shape for t in none[:5]] == [(189,), (0, 3), (189, 1), (0, 4), (0, 4)] and none[5] == 0


def test_loss_functions_can_be_replaced():
    loss = YOLOXLoss(4, 5.0, 1.0, 1.0, 1.0, True, [16])
    assert isinstance(loss.assigner, SimOTAAssigner)
    assert loss.strides == [16] and loss.use_l1 and loss.num_classes == 4
    weights = loss.bbox_loss_weight, loss.class_loss_weight, loss.objectness_loss_weight, loss.l1_loss_weight
    assert weights == (5, 1, 1, 1)
    maps = [[torch.randn(2, d, 6, 6)] for d in (4, 4, 1)]
    objects = [torch.tensor([[10., 10., 50., 60.]]), torch.zeros(0, 4)], [torch.tensor([3]), torch.zeros(0)]
    before, shapes = loss(*maps, *objects), {}

    def recording(name, func):
        def f(pred, target):
            shapes[name] = tuple(pred.shape), tuple(target.shape)
            return func(pred, target)
        return f

    for name in ('bbox', 'class', 'objectness', 'l1'):
        attribute = f'{name}_loss_func'
        setattr(loss, attribute, recording(name, getattr(loss, attribute)))
    assert_close(list(loss(*maps, *objects).values()), list(before.values()))
    P = shapes['bbox'][0][0]
    assert P > 0 and shapes.pop('objectness') == ((72, 1), (72, 1))
    assert shapes == {name: ((P, 4), (P, 4)) for name in ('bbox', 'class', 'l1')}


def test_utils_keep_their_signatures():
    assert multi_apply(lambda a, b, c=0: (a + b + c, a*b), [1, 2], (3, 4), c=1) == ([5, 7], [3, 8])
    grid = generate_output_grids(height=100, width=165)
    assert grid.dtype is torch.int64 and len(grid) == 13*21 + 7*11 + 4*6


def test_wrapper_exports_to_onnx_and_traces(tmp_path):
    onnxruntime = pytest.importorskip('onnxruntime')
    pytest.importorskip('onnxscript')
    model = build_model('yolox_tiny', 3, pretrained=False).eval()
    mean, std = torch.full((1, 3, 1, 1), .5), torch.ones(1, 3, 1, 1)
    options = dict(scale_inp=True, run_box_and_prob_calculation=False)
    wrapped = YOLOXInferenceWrapper(model, mean, std, **options).eval()
    x = torch.randint(0, 256, (1, 3, 64, 96)).float()
    torch.onnx.export(wrapped, (x,), str(tmp_path/'model.onnx'), input_names=['input'], output_names=['output'])
    session = onnxruntime.InferenceSession(str(tmp_path/'model.onnx'), providers=['CPUExecutionProvider'])
    output = session.run(None, {'input': x.numpy()})[0]
    with torch.no_grad(): assert_close(torch.from_numpy(output), wrapped(x), atol=1e-4, rtol=1e-4)

    # A client decodes the raw layout in numpy
    grid = generate_output_grids(64, 96, model.bbox_head.strides).numpy()
    xy, s, row = grid[:, :2], grid[:, 2:], output[0]
    centre, size = (row[:, :2] + xy)*s, np.exp(row[:, 2:4])*s
    probability = row[:, 4:5]*row[:, 5:]
    rows = np.concatenate([centre - size/2, size, probability.argmax(1)[:, None], probability.max(1)[:, None]], axis=1)
    wrapped.run_box_and_prob_calculation = True
    with torch.no_grad(): assert_close(torch.from_numpy(rows).float(), wrapped(x)[0], atol=1e-3, rtol=1e-4)
    with torch.no_grad(): assert_close(torch.jit.trace(wrapped, x, check_trace=False)(x), wrapped(x))


@pytest.mark.parametrize('boxes', [torch.zeros(0, 4), torch.tensor([[10., 10., 40., 40.]])])
def test_background_has_an_iou_of_0(boxes):
    "0.2 gave -1e8 in images with objects"
    grid = generate_output_grids(64, 64).float()
    xy, s = grid[:, :2], grid[:, 2:]
    priors = torch.cat([xy*s + s/2, s, s], 1)
    decoded = torch.cat([priors[:, :2] - 10, priors[:, :2] + 10], 1)
    result = SimOTAAssigner().assign(torch.full((84, 3), .3), priors, decoded, boxes, torch.ones(len(boxes)))
    background = result.ground_truth_box_indices == 0
    assert (result.max_iou_values[background] == 0).all() and (result.max_iou_values[~background] > 0).all()


def test_initial_weights_are_those_of_pytorch():
    "0.2 drew convolutions and, in `init_head`, class weights from Kaiming's normal distribution"
    torch.manual_seed(0)
    head = build_model('yolox_tiny', 80, pretrained=False).bbox_head
    init_head(head, 3)
    stds = [w.weight.std().item() for w in (head.multi_level_cls_convs[0][0].conv, head.multi_level_conv_cls[0])]
    assert_close(stds, [(3*96*9)**-.5, (3*96)**-.5], atol=0, rtol=.05)
