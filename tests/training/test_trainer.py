"One step, one epoch, one validation: what is learned, and from what."
from dataclasses import replace
from functools import partial

import pytest
import torch
from trainings import SMALL, ranks, trainer

from cjm_yolox_pytorch.data.annotations import relabel
from cjm_yolox_pytorch.data.batches import DetectionDataset, train_loader
from cjm_yolox_pytorch.data.splits import read_split
from cjm_yolox_pytorch.detection.detections import Detections
from cjm_yolox_pytorch.files.checkpoints import Weights
from cjm_yolox_pytorch.files.matching import load_matching
from cjm_yolox_pytorch.model import PRIOR_BIAS, build_model
from cjm_yolox_pytorch.training.recipe import Recipe
from cjm_yolox_pytorch.training.trainer import Trainer, processes, rank_and_world

PLAIN = dict(mixup=0., mosaic=0., clip_grad_norm=0.)


def first_batch(small):
    small.start_epoch()
    return next(iter(small.loader))


def test_trainer_overfits_a_few_images(shapes):
    "On four images without augmentation, a working loop finds the objects; one in which anything is broken does not"
    images = read_split(shapes, 'val')
    recipe = Recipe('yolox_nano', img_size=64, epochs=120, batch=4, lr=.004, no_aug_epochs=30, amp='none',
        ema_decay=.9, ema_tau=20.)
    small = Trainer(recipe, images, images, device='cpu', transforms=[])
    for module in small.model.modules(): # Averages follow quickly, so that few steps are enough
        if isinstance(module, torch.nn.BatchNorm2d): module.momentum = .3
    losses = [small.train_epoch() for _ in range(recipe.epochs)]
    assert small.validate()[0]['AP50'] > .5 and losses[-1]['loss_obj'] < .3*losses[0]['loss_obj']
    assert ['loss_l1' in row for row in losses] == [False]*90 + [True]*30


def test_crowds_reach_the_loss(large_shapes):
    images = read_split(large_shapes, 'val')
    recipe = Recipe('yolox_nano', img_size=96, batch=4, amp='none')
    large = Trainer(recipe, images, images, device='cpu', transforms=[])
    batch = first_batch(large)
    batch.crowds = [torch.zeros(0, 4)]*4
    with_background = large.losses(batch)['loss_obj'].item()
    batch.crowds = [torch.tensor([[0., 0., 96., 96.]])]*4
    assert large.losses(batch)['loss_obj'].item() < .9*with_background


def test_validation_split_gets_the_labels_of_the_training_split(shapes):
    train, val = read_split(shapes, 'train'), read_split(shapes, 'val')
    small = Trainer(Recipe('yolox_nano', img_size=64), train, relabel(val, val.names[::-1]), device='cpu')
    assert small.val.names == train.names and small.val.labels.tolist() == val.labels.tolist()
    with pytest.raises(ValueError, match='not among'):
        other = replace(val, names=[*'abcde'])
        Trainer(Recipe('yolox_nano'), relabel(train, [*train.names, 'moon']), other, device='cpu')


@pytest.mark.parametrize('which, message', [('train', 'nothing to train on: Annotations.0 images'),
    ('val', 'nothing to validate on: Annotations.0 images'),
    ('weights', "weights are for yolox_s, but model='yolox_nano'")])
def test_trainer_refuses_what_does_not_fit(shapes, which, message):
    split = read_split(shapes, 'val')
    args = dict(train=split, val=split)
    args[which] = Weights({}, 'yolox_s', 5, (), ()) if which == 'weights' else split.take([])
    with pytest.raises(ValueError, match=message): Trainer(Recipe('yolox_nano'), device='cpu', **args)


def test_weights_find_their_classes_by_name(shapes):
    train, known = read_split(shapes, 'train'), ['cross', 'moon', 'disc', 'star', 'square']
    model = build_model('yolox_nano', 5, pretrained=False)
    for conv in model.bbox_head.multi_level_conv_cls: conv.bias.data = torch.arange(5.)
    weights = Weights(model.state_dict(), 'yolox_nano', 5, (0,)*3, (1,)*3, names=known)
    small = Trainer(Recipe('yolox_nano', img_size=64), train, train, weights, device='cpu')
    assert '642 of 642 tensors loaded' in small.loaded
    for conv in small.model.bbox_head.multi_level_conv_cls:
        biases = dict(zip(train.names, conv.bias.tolist()))
        assert biases.pop('triangle') == pytest.approx(PRIOR_BIAS)
        assert biases == dict(disc=2, square=4, star=3, cross=0)


def test_weights_keep_classes_apart_that_differ_in_capitals_alone():
    model, names = build_model('yolox_nano', 2, pretrained=False), ['A', 'a']
    for conv in model.bbox_head.multi_level_conv_cls: conv.bias.data = torch.tensor([1., 2])
    for order in (names, names[::-1]):
        other = build_model('yolox_nano', 2, pretrained=False)
        load_matching(other, Weights(model.state_dict(), 'yolox_nano', 2, (0,)*3, (1,)*3, names=names), order)
        assert other.bbox_head.multi_level_conv_cls[0].bias.tolist() == [1 + names.index(name) for name in order]


@pytest.mark.parametrize('workers', [0, 1])
def test_same_seed_trains_the_same_network(shapes, workers):
    def train(seed):
        small = trainer(shapes, seed=seed, workers=workers)
        images = first_batch(small).images
        small.train_epoch()
        return [images, *(p.detach() for p in small.model.parameters())]
    first, same, other = train(0), train(0), train(1)
    assert all(map(torch.equal, first, same)) and not torch.equal(first[0], other[0])


def test_parts_of_a_batch_add_up(shapes):
    "Gradients of a batch in two parts are the mean of the gradients of its halves"
    whole, halves = (trainer(shapes, [], optimizer='sgd', grad_accum=n, **PLAIN) for n in (2, 1))
    batch = first_batch(whole)
    for small in (whole, halves): small.model.eval() # Otherwise norm layers see other batches
    losses = whole.step(batch)
    parts = [halves.losses(part) for part in batch.split(2)]
    (sum(sum(p.values()) for p in parts)/2).backward()
    for a, b in zip(whole.model.parameters(), halves.model.parameters()): torch.testing.assert_close(a.grad, b.grad)
    for k, v in losses.items(): torch.testing.assert_close(v, (parts[0][k] + parts[1][k])/2)


def test_frozen_modules_stay_as_they_are(shapes):
    small = trainer(shapes, freeze='backbone,neck')
    before = {k: v.clone() for k, v in small.model.state_dict().items()}
    small.step(first_batch(small))
    changed = {k.split('.')[0] for k, v in small.model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {'bbox_head'} # Statistics of norm layers, too


def test_clipping_bounds_the_gradient(shapes):
    def norm(clip):
        small = trainer(shapes, clip_grad_norm=clip)
        small.step(first_batch(small))
        return torch.stack([p.grad.norm() for p in small.model.parameters() if p.grad is not None]).norm().item()
    assert norm(0.) > .5 and norm(.5) == pytest.approx(.5, rel=1e-4)


def test_multi_scale_changes_the_size_of_batches(shapes):
    small, seen = trainer(shapes, min_size=64, max_size=128, **PLAIN), []
    batch = first_batch(small)
    small.model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape[-1]))
    with torch.no_grad():
        for small.epoch in range(0, 40, 5): small.losses(batch) # Ten steps of each size
    assert set(seen) <= {64, 96, 128} and len(set(seen)) > 1


@pytest.mark.parametrize('amp', ['bf16', 'fp16'])
def test_half_precision_has_losses_like_full_precision(shapes, amp):
    half, full = trainer(shapes, [], amp=amp), trainer(shapes, [])
    batch = first_batch(half)
    losses, expected = half.step(batch), full.step(batch)
    assert all(v.dtype == torch.float32 for v in losses.values())
    # Some cells learn another object
    assert sum(losses.values()).item() == pytest.approx(sum(expected.values()).item(), rel=.15)
    assert half.scaler.is_enabled() == (amp == 'fp16')
    assert all(p.isfinite().all() for p in half.model.parameters())


ONE_SIZE = {}, 1 # One graph
ANY_SIZE = pytest.param(dict(min_size=64, max_size=128), 2, marks=pytest.mark.slow) # A second one for other sizes


@pytest.mark.parametrize('sizes, graphs', [ONE_SIZE, ANY_SIZE])
def test_compiled_training_is_the_same_in_few_graphs(shapes, monkeypatch, sizes, graphs):
    "Also in the epochs without augmentation and in validations; a compiler is not needed to see that"
    from torch._dynamo.testing import CompileCounter
    torch._dynamo.reset()
    counter, split = CompileCounter(), read_split(shapes, 'train').take(range(6))
    monkeypatch.setattr(torch, 'compile', partial(torch.compile, backend=counter))
    changes = dict(SMALL, epochs=8, batch=3, no_aug_epochs=7, **sizes)
    recipe = Recipe(**{**changes, **PLAIN})
    plain, compiled = (Trainer(replace(recipe, compile=c), split, split, device='cpu') for c in (False, True))
    for small in (plain, compiled): small.epoch = 4 # In the next epoch other sizes are drawn
    second = [[small.train_epoch() for _ in range(2)][1] for small in (plain, compiled)]
    compiled.validate()
    third = [small.train_epoch() for small in (plain, compiled)]
    assert counter.frame_count == graphs
    assert second[1] == pytest.approx(second[0], rel=1e-3) and third[1] == pytest.approx(third[0], rel=1e-2)


def ten_steps(data, grad_accum, out=None):
    "Losses and weights after ten steps with norm layers in evaluation mode. At first the last process sees no object"
    with processes('cpu'):
        rank, world = rank_and_world()
        changes = dict(PLAIN, epochs=40, grad_accum=grad_accum, warmup_epochs=0, lr=.001)
        small, losses = trainer(data, **changes), []
        small.loader = train_loader(DetectionDataset(small.train, 64, []), small.batches)
        small.model.eval()
        while len(losses) < 10:
            for batch in small.loader:
                if len(losses) < 3 and rank == world - 1:
                    half = slice(len(batch.boxes)//2 if world == 1 else 0, None)
                    for rows in (batch.boxes, batch.labels): rows[half] = [r[:0] for r in rows[half]]
                step = torch.stack(list(small.step(batch).values()))
                if world > 1: torch.distributed.all_reduce(step.div_(world))
                losses.append(step)
            small.batches.epoch += 1
        result = torch.stack(losses[:10]), {k: v.clone() for k, v in small.model.state_dict().items()}
        if out and rank == 0: torch.save((world, *result), out)
        return result


@pytest.mark.parametrize('grad_accum', [1, 2])
def test_two_processes_train_as_one(shapes, tmp_path, start, grad_accum):
    out = tmp_path/'two.pt'
    pair = [start(shapes, grad_accum, out, function=ten_steps, environment=environment) for environment in ranks(2)]
    assert [child.wait() for child in pair] == [0, 0], pair[0].output() + pair[1].output()
    world, losses, weights = torch.load(out)
    assert world == 2 and losses.isfinite().all()
    if grad_accum > 1: return # Each part is divided by its own positives, so it is another training
    expected, alone = ten_steps(shapes, 1)
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-4)
    for k in alone: torch.testing.assert_close(weights[k], alone[k], rtol=1e-4, atol=1e-4)


def validated(data, out):
    "Save the numbers of the images whose detections the first process has after a validation"
    with processes('cpu'):
        small = trainer(data)
        small.val = small.val.take(range(3)) # Two for one process, one for the other
        def predict(split, **_):
            numbers = [small.val.paths.tolist().index(path) for path in split.paths]
            return [Detections(torch.full((1, 4), float(n)), torch.ones(1), torch.zeros(1).long()) for n in numbers]
        small.predict = predict
        metrics, found = small.validate()
        if small.rank == 0: torch.save([d.boxes[0, 0].item() for d in found], out)
        else: assert metrics is None and found is None


def test_two_processes_validate_each_image_once(shapes, tmp_path, start):
    out = tmp_path/'found.pt'
    pair = [start(shapes, out, function=validated, environment=environment) for environment in ranks(2)]
    assert [child.wait() for child in pair] == [0, 0], pair[0].output() + pair[1].output()
    assert torch.load(out) == [0, 1, 2]
