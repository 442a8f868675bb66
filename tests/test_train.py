"From files to a trained detector and its figures, by the commands that people type."
import json
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image

import cjm_yolox_pytorch.train
from cjm_yolox_pytorch.files.checkpoints import Weights, load_weights
from cjm_yolox_pytorch.data.annotations import relabel
from cjm_yolox_pytorch.data.splits import find_splits, read_split
from cjm_yolox_pytorch.evaluation.doctor import yolox_doctor
from cjm_yolox_pytorch.evaluation.evaluate import yolox_eval
from cjm_yolox_pytorch.evaluation.metrics import METRICS
from cjm_yolox_pytorch.deploy.export import yolox_export
from cjm_yolox_pytorch.detection.predict import yolox_predict
from cjm_yolox_pytorch.model import PRIOR_BIAS, build_model, load_matching
from cjm_yolox_pytorch.data.shapes import write_shapes
from cjm_yolox_pytorch.training.recipe import Recipe
from cjm_yolox_pytorch.training.demo import yolox_demo
from cjm_yolox_pytorch.training.runs import read_rows
from cjm_yolox_pytorch.training.train import fit, yolox_train
from cjm_yolox_pytorch.training.trainer import Trainer, train_epoch, validate
from cjm_yolox_pytorch.commands.command import parser_of


def command(name, *args):
    "Run a console script; its output"
    done = subprocess.run([Path(sys.executable).with_name(name), *map(str, args)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp('shapes')
    write_shapes(folder, train=24, val=8, test=8, size=96)
    return folder


def test_commands(shapes, tmp_path):
    out = tmp_path/'run'
    printed = command('yolox_train', shapes, '--model', 'yolox_nano', '--size', 96, '--epochs', 2, '--batch', 8, '--optimizer', 'sgd', '--lr', .01,
                      '--amp', 'bf16', '--every', 1, '--workers', 1, '--out', out, '--device', 'cpu')
    assert 'training on train: 24 images' in printed and 'best: epoch' in printed and all(len(line) <= 80 for line in printed.splitlines() if '/2 ' in line)
    assert sorted(p.name for p in out.glob('[!.]*')) == ['best.safetensors', 'confusion.png', 'curves.png', 'detections.png', 'last.safetensors', 'metrics.csv', 'metrics.json', 'precision_recall.png', 'state.pt', 'worst.png']
    rows = read_rows(out/'metrics.csv')
    assert [row['epoch'] for row in rows] == [1, 2] and all({'loss_obj', 'AP', 'AP50', 'seconds'} <= row.keys() for row in rows)
    assert load_weights(out/'last.safetensors').names == read_split(shapes, 'test').names

    printed = command('yolox_eval', out/'last.safetensors', shapes, '--out', tmp_path/'eval', '--device', 'cpu')
    assert 'yolox_nano at 96 on test: 8 images' in printed
    assert {*METRICS, 'classes'} <= set(json.loads((tmp_path/'eval/metrics.json').read_text())) # All of it: test_evaluate

    again = command('yolox_train', shapes, '--model', 'yolox_nano', '--size', 96, '--epochs', 1, '--weights', out/'last.safetensors', '--out', tmp_path/'more', '--device', 'cpu')
    assert 'best: epoch 1' in again


def test_demo(tmp_path):
    printed = command('yolox_demo', '--out', tmp_path/'demo', '--images', 16, '--epochs', 1, '--device', 'cpu')
    assert 'yolox_tiny at 96 on test: 200 images' in printed and {'detections.png', 'curves.png', 'best.safetensors'} <= {p.name for p in (tmp_path/'demo').iterdir()} and (tmp_path/'demo/test/metrics.json').exists()
    command('yolox_demo', '--out', tmp_path/'demo', '--images', 16, '--epochs', 1, '--device', 'cpu') # Replaces what it left
    assert len(read_rows(tmp_path/'demo/metrics.csv')) == 1
    (tmp_path/'own/shapes/train').mkdir(parents=True)
    (tmp_path/'own/shapes/train/_annotations.coco.json').write_text('mine')
    with pytest.raises(FileExistsError, match='shapes is not of a demo'): yolox_demo(str(tmp_path/'own'), images=16, epochs=1, device='cpu')
    assert (tmp_path/'own/shapes/train/_annotations.coco.json').read_text() == 'mine'


@pytest.mark.parametrize('name, func', dict(yolox_train=yolox_train, yolox_eval=yolox_eval, yolox_demo=yolox_demo, yolox_doctor=yolox_doctor, yolox_predict=yolox_predict, yolox_export=yolox_export).items())
def test_help_explains_every_option(name, func):
    options = parser_of(func)._actions
    assert all(o.help for o in options)
    printed = command(name, '--help')
    assert all((o.option_strings or [o.dest])[-1] in printed for o in options)


def test_a_few_images_are_learnt_by_heart(shapes, tmp_path):
    "On eight images without changes, a working loop finds the objects; one in which anything is broken does not"
    train = read_split(shapes, 'val')
    recipe = Recipe('yolox_nano', size=96, epochs=160, batch=4, lr=.004, closing=40, amp='none', every=160)
    trainer = Trainer(recipe, train, train, device='cpu', transforms=[])
    best = fit(trainer, tmp_path)
    rows = read_rows(tmp_path/'metrics.csv')
    assert best['AP50'] > .5 and rows[-1]['loss_obj'] < .4*rows[0]['loss_obj']
    assert ['loss_l1' in row for row in rows] == [False]*120 + [True]*40
    rates = [row['lr'] for row in rows]
    assert rates[0] < rates[2] > rates[40] > rates[110] and rates[120:] == pytest.approx([.0002]*40)
    command('yolox_export', tmp_path/'best.safetensors')
    assert (tmp_path/'best.onnx').stat().st_size > 1e6


def test_best_and_last_are_what_they_say(shapes, tmp_path, monkeypatch):
    scores, real = iter([.1, .5, .3]), cjm_yolox_pytorch.training.trainer.validate
    def validate(trainer):
        metrics, found = real(trainer)
        return {**metrics, 'AP': next(scores)}, found
    monkeypatch.setattr(cjm_yolox_pytorch.train, 'validate', validate)
    train = read_split(shapes, 'val')
    best = fit(Trainer(Recipe('yolox_nano', size=96, epochs=3, batch=4, every=1), train, train, device='cpu'), tmp_path)
    notes = [load_weights(tmp_path/f'{name}.safetensors').notes for name in ('best', 'last')]
    assert [(n['epoch'], n['AP']) for n in notes] == [(2, .5), (3, .3)] and best['epoch'] == 2


def test_crowds_reach_the_loss(shapes):
    train = read_split(shapes, 'val')
    trainer = Trainer(Recipe('yolox_nano', size=96, batch=4, amp='none'), train, train, device='cpu', transforms=[])
    trainer.start_epoch()
    batch = next(iter(trainer.loader))
    batch.crowds = [torch.zeros(0, 4)]*4
    with_background = trainer.losses(batch)['loss_obj'].item()
    batch.crowds = [torch.tensor([[0., 0., 96., 96.]])]*4
    assert trainer.losses(batch)['loss_obj'].item() < .9*with_background


def test_classes_in_another_order_are_the_same_classes(shapes):
    train, val = read_split(shapes, 'train'), read_split(shapes, 'val')
    turned = relabel(val, val.names[::-1])
    trainer = Trainer(Recipe('yolox_nano', size=96), train, turned, device='cpu')
    assert trainer.val.names == train.names and trainer.val.labels.tolist() == val.labels.tolist()
    with pytest.raises(ValueError, match='not among'): Trainer(Recipe('yolox_nano', size=96), relabel(train, [*train.names, 'moon']), replace(val, names=[*'abcde']), device='cpu')
    with pytest.raises(ValueError, match='nothing to validate on: Annotations.0 images'): Trainer(Recipe('yolox_nano'), train, _nothing(val), device='cpu')
    weights = Weights({}, 'yolox_s', 5, (), ())
    with pytest.raises(ValueError, match="the weights are of yolox_s, but model='yolox_nano'"): Trainer(Recipe('yolox_nano'), train, val, weights, device='cpu')


def test_classes_of_weights_find_their_rows_by_name(shapes):
    train, known = read_split(shapes, 'train'), ['cross', 'moon', 'disc', 'star', 'square']
    model = build_model('yolox_nano', 5, pretrained=False)
    for conv in model.bbox_head.multi_level_conv_cls: conv.bias.data = torch.arange(5.)
    trainer = Trainer(Recipe('yolox_nano', size=96), train, train, Weights(model.state_dict(), 'yolox_nano', 5, (0,)*3, (1,)*3, names=known), device='cpu')
    assert trainer.loaded.endswith('642 of 642 tensors loaded; 4 of 5 classes matched by name')
    biases = [dict(zip(train.names, conv.bias.tolist())) for conv in trainer.model.bbox_head.multi_level_conv_cls]
    assert all({n: b for n, b in level.items() if n in known} == dict(disc=2, square=4, star=3, cross=0) and level['triangle'] == pytest.approx(PRIOR_BIAS) for level in biases)


@pytest.mark.parametrize('command', [partial(yolox_train, model='yolox_nano'), partial(yolox_eval, 'best.safetensors')], ids=['train', 'eval'])
def test_results_do_not_go_among_the_data(command, shapes):
    before = sorted(shapes.iterdir())
    with pytest.raises(ValueError, match='is in the folder of the data'): command(data=str(shapes), out=f'{shapes}/../{shapes.name}')
    assert sorted(shapes.iterdir()) == before


def test_classes_that_differ_in_capitals_alone_are_not_mixed_up():
    model, names = build_model('yolox_nano', 2, pretrained=False), ['A', 'a']
    for conv in model.bbox_head.multi_level_conv_cls: conv.bias.data = torch.tensor([1., 2])
    for order in (names, names[::-1]):
        other = build_model('yolox_nano', 2, pretrained=False)
        load_matching(other, Weights(model.state_dict(), 'yolox_nano', 2, (0,)*3, (1,)*3, names=names), order)
        assert other.bbox_head.multi_level_conv_cls[0].bias.tolist() == [1 + names.index(name) for name in order]


def _nothing(annotations): return annotations.take([])


def _again(trainer):
    trainer.epoch = 0
    trainer.start_epoch()
    return trainer.loader


@pytest.mark.parametrize('workers', [0, 1])
def test_the_same_seed_trains_the_same_network(shapes, tmp_path, workers):
    states = []
    for seed in (0, 0, 1):
        train = read_split(shapes, 'val')
        trainer = Trainer(Recipe('yolox_nano', size=96, epochs=1, batch=4, seed=seed, amp='none', workers=workers), train, train, device='cpu')
        fit(trainer, tmp_path/f'{len(states)}')
        states.append([p.detach() for p in trainer.model.parameters()] + [b.images for b in _again(trainer)])
    first, same, other = states
    assert all(map(torch.equal, first, same)) and not any(map(torch.equal, first[-2:], other[-2:]))


def test_bccd_is_read_as_it_is(shared):
    splits = find_splits(shared/'data/bccd')
    assert list(splits) == ['test', 'train', 'trainval', 'val']
    read = {name: splits[name]() for name in ('train', 'val', 'test')}
    assert {k: (len(a), len(a.labels) + len(a.dropped)) for k, a in read.items()} == dict(train=(205, 2805), val=(87, 1138), test=(72, 945))
    assert [len(a.dropped) for a in read.values()] == [1, 1, 0]
    assert all(a.names == ['Platelets', 'RBC', 'WBC'] for a in read.values())


def small(shapes, transforms=None, **changes):
    train = read_split(shapes, 'train')
    return Trainer(Recipe(**{**dict(model='yolox_nano', size=96, epochs=2, batch=4, amp='none', every=1), **changes}), train, read_split(shapes, 'val'), device='cpu', transforms=transforms)


def first_batch(trainer):
    trainer.start_epoch()
    return next(iter(trainer.loader))


def test_parts_of_a_batch_add_up(shapes):
    "Gradients of a batch in two parts are the mean of the gradients of its halves"
    whole, halves = small(shapes, [], accumulate=2, optimizer='sgd', clip=0.), small(shapes, [], optimizer='sgd')
    batch = first_batch(whole)
    for trainer in (whole, halves): trainer.model.eval() # Otherwise norm layers see other batches
    losses = whole.step(batch)
    parts = [halves.losses(part) for part in batch.split(2)]
    (sum(sum(p.values()) for p in parts)/2).backward()
    for a, b in zip(whole.model.parameters(), halves.model.parameters()): torch.testing.assert_close(a.grad, b.grad)
    for k, v in losses.items(): torch.testing.assert_close(v, (parts[0][k] + parts[1][k])/2)


def test_what_is_frozen_stays(shapes):
    trainer = small(shapes, freeze='backbone,neck')
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    trainer.step(first_batch(trainer))
    changed = {k.split('.')[0] for k, v in trainer.model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {'bbox_head'} # Statistics of norm layers, too


def test_clipping_bounds_the_gradient(shapes):
    def norm(**changes):
        trainer = small(shapes, **changes)
        trainer.step(first_batch(trainer))
        return torch.stack([p.grad.norm() for p in trainer.model.parameters() if p.grad is not None]).norm().item()
    assert norm() > .5 and norm(clip=.5) == pytest.approx(.5, rel=1e-4)


def test_multi_scale(shapes):
    trainer = small(shapes, min_size=64, max_size=128, mosaic=0.)
    seen = []
    trainer.model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape[-1]))
    for trainer.epoch in range(8): # Ten steps of each size
        for trainer.done in range(0, 6, 5): trainer.losses(first_batch(trainer))
    assert set(seen) <= {64, 96, 128} and len(set(seen)) > 1


def test_early_stopping(shapes, tmp_path, monkeypatch):
    real = cjm_yolox_pytorch.training.trainer.validate
    scores = iter([.1, .3, .2, .25, .29, .9])
    def validate(trainer):
        metrics, found = real(trainer)
        return {**metrics, 'AP': next(scores)}, found
    monkeypatch.setattr(cjm_yolox_pytorch.train, 'validate', validate)
    best = fit(small(shapes, epochs=6, patience=3), tmp_path)
    assert (best['epoch'], best['AP'], len(read_rows(tmp_path/'metrics.csv'))) == (2, .3, 5)


@pytest.mark.parametrize('amp', ['bf16', 'fp16'])
def test_half_precision(shapes, amp):
    trainer, exact = small(shapes, [], amp=amp), small(shapes, [])
    batch = first_batch(trainer)
    losses, expected = trainer.step(batch), exact.step(batch)
    assert all(v.dtype == torch.float32 for v in losses.values())
    assert sum(losses.values()).item() == pytest.approx(sum(expected.values()).item(), rel=.15) # Some cells learn another object
    assert trainer.scaler.is_enabled() == (amp == 'fp16')
    assert all(p.isfinite().all() for p in trainer.model.parameters())


def test_tensorboard(shapes, tmp_path):
    accumulator = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    command('yolox_train', shapes, '--model', 'yolox_nano', '--size', 96, '--epochs', 1, '--out', tmp_path/'run', '--device', 'cpu', '--log', 'tensorboard')
    events = accumulator.EventAccumulator(str(tmp_path/'run/tensorboard')).Reload()
    row = read_rows(tmp_path/'run/metrics.csv')[0]
    assert events.Scalars('loss_obj')[0].value == pytest.approx(row['loss_obj'], rel=1e-4) and events.Tags()['images'] == ['detections']


def test_wandb(tmp_path, monkeypatch):
    wandb = pytest.importorskip('wandb')
    monkeypatch.setenv('WANDB_MODE', 'offline')
    (out := tmp_path/'run').mkdir()
    Image.new('RGB', (9, 9)).save(out/'detections.png')
    for rows in ([dict(epoch=1, loss_obj=2.), dict(epoch=2, loss_obj=1., AP=.5)], [dict(epoch=3, loss_obj=.7)]): # The second time it goes on
        log = cjm_yolox_pytorch.training.runs.wandb_logger(out)
        for row in rows: log(row, out)
        assert wandb.run.id == (out/'wandb-id').read_text()
        wandb.finish()
    assert all(p.stat().st_size for p in (out/'wandb').rglob('*.wandb')) and len(list((out/'wandb').rglob('media/images/detections_*.png'))) == 1


def test_a_missing_logger_says_what_to_install(tmp_path, monkeypatch):
    for name, module in dict(tensorboard='torch.utils.tensorboard', wandb='wandb').items():
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(ImportError, match=r"pip install 'cjm-yolox-pytorch\[log\]'"): cjm_yolox_pytorch.training.runs.LOGGERS[name](tmp_path)


def test_one_split_is_enough(shapes, tmp_path):
    "A tenth is held out, and bad values are one line"
    only = tmp_path/'only'
    only.mkdir()
    (only/'train').symlink_to(shapes/'train')
    printed = command('yolox_train', only, '--model', 'yolox_nano', '--size', 96, '--epochs', 1, '--out', tmp_path/'run', '--device', 'cpu')
    assert 'training on train: 22 images' in printed and 'validation on a tenth of train: 2 images' in printed
    other = tmp_path/'other'
    write_shapes(other, train=22, val=0, test=0, size=96, seed=5)
    for data, said in [(only, 'on a tenth of train: 2 images'), (other, 'on train: 22 images')]: # Whose files have the same names
        printed = command('yolox_eval', tmp_path/'run/last.safetensors', data, '--device', 'cpu')
        assert said in printed and ("trained on 'train' of this or other data" in printed) == (data is other)
    for args, message in [(('--format', 'xml'), "format='xml': choose one of"), (('--train', 'fold'), "has no split 'fold'"), (('--log', 'paper'), "log='paper': choose one of ['tensorboard', 'wandb']"),
                          (('--resume',), 'state.pt: there is no training to go on with'), (('--weights', tmp_path/'no.pth'), 'no.pth: no such file of weights'), (('--size', '0'), 'size=0: must be at least 1')]:
        done = subprocess.run([Path(sys.executable).with_name('yolox_train'), only, '--model', 'yolox_nano', '--out', tmp_path/'new', '--device', 'cpu', *args], capture_output=True, text=True)
        assert done.returncode == 1 and done.stderr.startswith('yolox_train: error: ') and message in done.stderr and done.stderr.count('\n') == 1, done.stderr


@pytest.mark.parametrize('sizes, graphs', [({}, 1), (dict(min_size=64, max_size=128), 2)]) # Of one size, and of variable ones
def test_a_compiled_training_is_the_same_in_few_graphs(shapes, monkeypatch, sizes, graphs):
    "Also through closing epochs and validations; a compiler is not needed to see that"
    from torch._dynamo.testing import CompileCounter
    torch._dynamo.reset()
    counter, split = CompileCounter(), read_split(shapes, 'train')
    monkeypatch.setattr(torch, 'compile', partial(torch.compile, backend=counter))
    plain, compiled = (Trainer(Recipe('yolox_nano', size=64, epochs=8, batch=3, amp='none', closing=7, compile=c, **sizes), split, split, device='cpu') for c in (False, True))
    for _ in range(2): first, second = train_epoch(plain), train_epoch(compiled)
    validate(compiled)
    third = train_epoch(plain), train_epoch(compiled)
    assert counter.frame_count == graphs
    assert second == pytest.approx(first, rel=1e-3) and third[1] == pytest.approx(third[0], rel=1e-2)
