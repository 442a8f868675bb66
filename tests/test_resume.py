"A training that is interrupted, and goes on, is the same training; several processes are one."
import copy
import io
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from cjm_yolox_pytorch.data.batches import DetectionDataset, train_loader
from cjm_yolox_pytorch.files.checkpoints import load_weights
from cjm_yolox_pytorch.data.splits import read_split
from cjm_yolox_pytorch.training.recipe import Recipe
from cjm_yolox_pytorch.data.shapes import write_shapes
from cjm_yolox_pytorch.training.runs import load_state, read_rows, save_state
from cjm_yolox_pytorch.training.train import fit
from cjm_yolox_pytorch.training.trainer import Trainer, train_epoch, validate

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {**os.environ, 'OMP_NUM_THREADS': '1'} # The networks are small, and processes share the machine
SMALL = dict(model='yolox_nano', size=64, epochs=4, batch=4, amp='none', every=2, mixup=.5, clip=5.)


@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp('shapes')
    write_shapes(folder, train=24, val=6, test=0, size=64)
    return folder


def command(data, out, *more):
    options = [str(v) for k, v in SMALL.items() for v in (f'--{k}', v)]
    return [Path(sys.executable).with_name('yolox_train'), data, '--device', 'cpu', '--out', out, *options, *more]


def run(*args, **kwargs): return subprocess.run(command(*args, **kwargs), capture_output=True, text=True, env=ENVIRONMENT)


@pytest.fixture(scope='module')
def uninterrupted(shapes, tmp_path_factory):
    out = tmp_path_factory.mktemp('whole')/'run'
    done = run(shapes, out)
    assert done.returncode == 0, done.stderr
    return out


def assert_same_training(out, other):
    for name in ('last', 'best'):
        a, b = (load_weights(folder/f'{name}.safetensors').state for folder in (out, other))
        assert all(torch.equal(a[k], b[k]) for k in b), name
    speedless = [[{k: v for k, v in row.items() if k not in ('images_per_s', 'memory_gb', 'seconds')} for row in read_rows(folder/'metrics.csv')] for folder in (out, other)]
    assert speedless[0] == speedless[1]


SLOW = """import os, sys, time
from cjm_yolox_pytorch.training.train import yolox_train
replace = os.replace
def slow(source, target):
    if str(target).endswith('best.safetensors'): time.sleep(60)
    replace(source, target)
os.replace = slow
yolox_train()"""


@pytest.mark.parametrize('after', ['best.safetensors.partial', 'metrics.csv', 'state.pt', 3.])
def test_killed_at_any_moment(shapes, tmp_path, uninterrupted, after):
    out, words = tmp_path/'run', command(shapes, tmp_path/'run')
    if after == 'best.safetensors.partial': # Which is there for a moment only
        (tmp_path/'yolox_train.py').write_text(SLOW)
        words = [sys.executable, tmp_path/'yolox_train.py', *words[1:]]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**ENVIRONMENT, 'PYTHONPATH': str(ROOT)})
    _wait_for(out/(after if isinstance(after, str) else 'state.pt'), process)
    if isinstance(after, float): time.sleep(after/10) # Somewhere in the second epoch or later
    process.kill()
    assert process.wait() == -signal.SIGKILL
    resumed = run(shapes, out, '--resume')
    assert resumed.returncode == 0, resumed.stderr
    assert_same_training(out, uninterrupted)


def _wait_for(path, process):
    for _ in range(30_000):
        if path.exists() or process.poll() is not None: return
        time.sleep(.002)
    raise TimeoutError(path)


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_asked_to_stop(shapes, tmp_path, uninterrupted, number):
    "Also when it reaches workers"
    out = tmp_path/'run'
    process = subprocess.Popen(command(shapes, out, '--workers', '1'), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True, env=ENVIRONMENT)
    _wait_for(out/'state.pt', process)
    os.killpg(process.pid, number)
    printed = process.communicate()[0]
    assert process.returncode == 130 and 'everything is saved in' in printed and 'add --resume to the same command' in printed, printed
    refused = run(shapes, out)
    assert refused.returncode and 'holds a training already' in refused.stderr
    assert run(shapes, out, '--resume').returncode == 0
    assert_same_training(out, uninterrupted)


@pytest.mark.parametrize('damage', [lambda data: data[:-300], lambda data: b'', lambda data: b'text', lambda data: pickle.dumps(os.getcwd), lambda data: saved(dict(model={}, epoch=3)), lambda data: saved([1])],
                         ids=['cut', 'empty', 'text', 'code', 'another', 'list'])
def test_a_state_that_is_none_is_told_in_one_line(shapes, tmp_path, damage):
    train = read_split(shapes, 'train')
    trainer = Trainer(Recipe(**SMALL), train, train, device='cpu')
    save_state(trainer, tmp_path/'state.pt')
    (tmp_path/'state.pt').write_bytes(damage((tmp_path/'state.pt').read_bytes()))
    with pytest.raises(ValueError, match='state.pt (is not a state of a training|would execute posix.getcwd)') as said: load_state(trainer, tmp_path/'state.pt')
    assert '\n' not in str(said.value) and 'weights_only' not in str(said.value)


def saved(thing):
    torch.save(thing, file := io.BytesIO())
    return file.getvalue()


def test_a_state_with_something_odd_in_it_is_told_in_one_line(shapes, tmp_path, monkeypatch):
    train, recipe = read_split(shapes, 'train'), Recipe(**SMALL)
    trainer = Trainer(recipe, train, train, device='cpu')
    trainer.rows = [dict(epoch=1, **train_epoch(trainer))]
    train_epoch(trainer, stop=lambda: True)
    save_state(trainer, tmp_path/'state.pt')
    good, first = torch.load(tmp_path/'state.pt', weights_only=True), 'backbone.stem.conv.conv.weight'
    moments = {n: {**kept, 'exp_avg': torch.zeros(7)} for n, kept in good['optimizer']['state'].items()}
    odd = [(('recipe',), None), (('recipe',), {}), (('data',), [1]), (('counts',), {}), (('counts', 'epoch'), '1'), (('counts', 'epoch'), 1.), (('counts', 'epoch'), -5),
           (('counts', 'epoch'), 10**9), (('counts', 'done'), 10**9), (('counts', 'done'), 6), (('counts', 'average_steps'), 8), (('counts', 'rows'), 3), (('counts', 'rows'), [{'x': 1}]),
           (('counts', 'rows', 0, 'AP'), 'high'), (('counts', 'best'), None), (('counts', 'best'), {}), (('counts', 'stats'), {'mean': 1}), (('counts', 'totals'), {'x': 1}), (('counts', 'totals'), {}),
           (('model',), {}), (('model', first), torch.zeros(3)), (('average', first), 1), (('optimizer',), dict(state={}, param_groups=[])), (('optimizer', 'state'), moments),
           (('random', 'cpu'), torch.zeros(3)), (('random', 'cpu'), None), (('random',), None), (('scheduler',), {})]
    again = Trainer(recipe, train, train, device='cpu')
    for (*way, last), value in odd:
        state = place = copy.deepcopy(good)
        for key in way: place = place[key]
        place[last] = value
        monkeypatch.setattr('cjm_yolox_pytorch.files.pickles.read_file', lambda *args: (state, None)) # Faster
        with pytest.raises(ValueError, match='state.pt is not a state of a training that can go on here') as said: load_state(again, tmp_path/'state.pt')
        assert '\n' not in str(said.value) and len(str(said.value)) < 500
    monkeypatch.undo()
    load_state(again, tmp_path/'state.pt')
    assert again.steps == 7


@pytest.mark.parametrize('changes', [{}, dict(min_size=64, max_size=128, workers=1), dict(closing=1, epochs=4), dict(amp='fp16')])
def test_stopped_in_the_middle_of_an_epoch(shapes, tmp_path, changes):
    train, val = read_split(shapes, 'train'), read_split(shapes, 'val')
    recipe = Recipe(**{**SMALL, **changes})
    whole, first, second = (Trainer(recipe, train, val, device='cpu') for _ in range(3))
    if 'closing' in changes: whole.epoch = first.epoch = 3 # The last
    train_epoch(whole)
    steps = iter([False, False, True])
    assert train_epoch(first, stop=lambda: next(steps)) is None and first.done == 3
    save_state(first, tmp_path/'state.pt')
    torch.rand(7) # Random numbers that have nothing to do with it
    load_state(second, tmp_path/'state.pt')
    losses = train_epoch(second)
    assert all(map(torch.equal, second.model.state_dict().values(), whole.model.state_dict().values()))
    assert all(map(torch.equal, second.ema.module.state_dict().values(), whole.ema.module.state_dict().values()))
    assert second.batches.start == 3 and losses.keys() == {'loss_cls', 'loss_bbox', 'loss_obj', *['loss_l1']*('closing' in changes)}


@pytest.mark.parametrize('write', ["with atomic(file) as path: torch.save(torch.zeros(100_000), path)",
                                   "save_weights(Weights(dict(a=torch.zeros(100_000)), 'yolox_nano', 5, (0, 0, 0), (1, 1, 1)), file)"])
def test_a_full_disk_leaves_what_was_there(tmp_path, write):
    torch.save(dict(a=1), tmp_path/'state.pt')
    code = f"""import resource, signal, torch
from cjm_yolox_pytorch.files.checkpoints import Weights, save_weights
from cjm_yolox_pytorch.files.paths import atomic
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
file = {str(tmp_path/'state.pt')!r}
{write}"""
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode and 'state.pt could not be written, and is unchanged' in done.stderr, done.stderr
    assert torch.load(tmp_path/'state.pt') == dict(a=1) and os.listdir(tmp_path) == ['state.pt']


def steps(folder, rank, world, accumulate=1):
    "Ten steps with norm layers in evaluation mode: losses and weights. Images of the second half of each batch are empty at first"
    train = read_split(folder, 'train')
    trainer = Trainer(Recipe('yolox_nano', size=64, batch=4, epochs=40, amp='none', accumulate=accumulate, warmup=0, lr=.001), train, train, device='cpu')
    trainer.loader = train_loader(DetectionDataset(train, 64, []), trainer.batches)
    losses = []
    trainer.model.eval()
    while len(losses) < 10:
        for batch in trainer.loader:
            if len(losses) < 3 and rank == world - 1: # The last process sees no object
                half = slice(len(batch.boxes)//2 if world == 1 else 0, None)
                for rows in (batch.boxes, batch.labels): rows[half] = [r[:0] for r in rows[half]]
            step = torch.stack(list(trainer.step(batch).values()))
            if world > 1: torch.distributed.all_reduce(step.div_(world))
            losses.append(step)
        trainer.batches.epoch += 1
    return torch.stack(losses[:10]), {k: v.clone() for k, v in trainer.model.state_dict().items()}


@pytest.mark.parametrize('accumulate', [1, 2])
def test_two_processes_are_one(shapes, tmp_path, accumulate):
    script = tmp_path/'two.py'
    script.write_text(f"""import sys, torch
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT/'tests')!r}]
from cjm_yolox_pytorch.training.trainer import processes, rank_and_world
from test_resume import steps
torch.set_num_threads(1)
with processes():
    rank, world = rank_and_world()
    assert world == 2
    result = steps({str(shapes)!r}, rank, world, {accumulate})
    if rank == 0: torch.save(result, {str(tmp_path/'two.pt')!r})
""")
    done = subprocess.run([Path(sys.executable).with_name('torchrun'), '--standalone', '--nproc-per-node', '2', script], capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    losses, weights = torch.load(tmp_path/'two.pt')
    if accumulate > 1: return # Each part is divided by its own positives, so it is another training, which only has to run
    expected, alone = steps(shapes, 0, 1)
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-4)
    for k in alone: torch.testing.assert_close(weights[k], alone[k], rtol=1e-4, atol=1e-4)


def test_torchrun(shapes, tmp_path):
    "The same command, in two processes: one writes, no image is counted twice, and a stop is one for both"
    out = tmp_path/'run'
    launch = [Path(sys.executable).with_name('torchrun'), '--standalone', '--nproc-per-node', '2', *command(shapes, out)]
    done = subprocess.run(launch, capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('training on train') == 1 and len(read_rows(out/'metrics.csv')) == 4
    assert load_weights(out/'last.safetensors').names == read_split(shapes, 'train').names
    alone = Trainer(Recipe(**SMALL), read_split(shapes, 'train'), read_split(shapes, 'val'), load_weights(out/'last.safetensors'), device='cpu')
    alone.epoch = 4
    alone.loss_func.use_l1 = True
    assert validate(alone)[0]['AP'] == pytest.approx(read_rows(out/'metrics.csv')[-1]['AP'], abs=1e-5)


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_torchrun_stops_and_goes_on(shapes, tmp_path, number):
    out = tmp_path/'run'
    launch = [Path(sys.executable).with_name('torchrun'), '--standalone', '--nproc-per-node', '2', *command(shapes, out, '--workers', '1')]
    process = subprocess.Popen(launch, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ENVIRONMENT)
    _wait_for(out/'metrics.csv', process)
    process.send_signal(number)
    printed = process.communicate()[0]
    assert 'everything is saved in' in printed and len(read_rows(out/'metrics.csv')) < 4, printed
    resumed = subprocess.run([*launch, '--resume'], capture_output=True, text=True, env=ENVIRONMENT)
    assert resumed.returncode == 0 and len(read_rows(out/'metrics.csv')) == 4, resumed.stderr


def test_patience_is_resumed(shapes, tmp_path, monkeypatch):
    "A training that stopped early has nothing left to do"
    import cjm_yolox_pytorch.train as module
    real, scores = module.validate, iter([.3, .2, .1, .4])
    monkeypatch.setattr(module, 'validate', lambda trainer: ({**real(trainer)[0], 'AP': next(scores)}, real(trainer)[1]))
    train, recipe = read_split(shapes, 'train'), Recipe(**{**SMALL, 'every': 1, 'patience': 2})
    fit(Trainer(recipe, train, train, device='cpu'), tmp_path)
    best = fit(Trainer(recipe, train, train, device='cpu'), tmp_path, resume=True)
    assert best['epoch'] == 1 and len(read_rows(tmp_path/'metrics.csv')) == 3


def test_a_failing_logger_loses_nothing(shapes, tmp_path):
    train, recipe = read_split(shapes, 'train'), Recipe(**SMALL)
    def fails(row, out): raise ConnectionError('no network')
    with pytest.raises(ConnectionError): fit(Trainer(recipe, train, train, device='cpu'), tmp_path, loggers=[fails])
    assert fit(Trainer(recipe, train, train, device='cpu'), tmp_path, resume=True)['epoch'] in (2, 4)
