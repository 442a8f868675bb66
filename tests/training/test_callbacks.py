"Callbacks are called when they should be, and loggers send what a training has measured."
import json
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image
from trainings import SMALL, assert_same_training, trainer, words

from cjm_yolox_pytorch.training import callbacks
from cjm_yolox_pytorch.training.recipe import fine_tune_recipe
from cjm_yolox_pytorch.training.runs import read_rows
from cjm_yolox_pytorch.training.train import fit, train, yolox_train

EPOCHS = [dict(epoch=1, loss_obj=2.), dict(epoch=2, loss_obj=1., AP=.5)], [dict(epoch=3, loss_obj=.7)]


class Diary:
    def __init__(self): self.seen = []
    def on_train_start(self, t): self.seen.append(('start', t.epoch))
    def on_step_end(self, t): self.seen.append(('step', t.done, float(sum(t.step_losses.values()))))
    def on_epoch_end(self, t): self.seen.append(('epoch', t.epoch, t.rows[-1], (t.out/'last.safetensors').exists()))
    def on_train_end(self, t): self.seen.append(('end', t.epoch))


def test_hooks_are_called_in_order(shapes, tmp_path, no_plots):
    diary = Diary()
    fit(trainer(shapes, epochs=2), tmp_path/'run', callbacks=[diary])
    assert [entry[:2] for entry in diary.seen] == [('start', 0), ('step', 1), ('step', 2), ('step', 3), ('epoch', 1),
        ('step', 1), ('step', 2), ('step', 3), ('epoch', 2), ('end', 2)]
    first = diary.seen[4]
    assert first[3] and first[2]['epoch'] == 1
    means = sum(v for k, v in first[2].items() if k.startswith('loss_'))
    assert means == pytest.approx(sum(entry[2] for entry in diary.seen[1:4])/3, rel=1e-5)
    assert 'AP' in diary.seen[-2][2] and 'AP' not in first[2]


def test_callback_may_stop_a_training_that_is_resumed(shapes, tmp_path, uninterrupted, no_plots):
    class Stop(Diary):
        def on_epoch_end(self, t):
            if t.epoch == 2: raise StopIteration
    with pytest.raises(StopIteration): fit(trainer(shapes), tmp_path, callbacks=[stop := Stop()])
    assert stop.seen[-1] == ('end', 2) # Loggers close
    assert len(read_rows(tmp_path/'metrics.csv')) == 2
    diary = Diary()
    fit(trainer(shapes), tmp_path, resume=True, callbacks=[diary])
    assert_same_training(tmp_path, uninterrupted)
    assert diary.seen[0] == ('start', 2) and diary.seen[-1] == ('end', 4)


def test_misnamed_hook_is_refused_before_anything_is_written(shapes, tmp_path):
    odd = SimpleNamespace(on_batch_end=print)
    with pytest.raises(ValueError, match='SimpleNamespace.on_batch_end would never be called'):
        fit(trainer(shapes), tmp_path/'run', callbacks=[odd])
    assert not (tmp_path/'run').exists()


def test_logger_of_a_file_in_the_current_folder(shapes, tmp_path):
    (tmp_path/'mine.py').write_text('class Log:\n    def on_epoch_end(self, t):\n'
        "        with open('heard.txt', 'a') as f: print(t.epoch, *t.rows[-1], file=f)\n")
    command = [Path(sys.executable).with_name('yolox_train'), *words(shapes, 'run', '--logger', 'mine:Log')[1:]]
    done = subprocess.run([*command, '--epochs', '2'], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = (tmp_path/'heard.txt').read_text().splitlines()
    assert [line.split()[:4] for line in lines] == [[n, 'epoch', 'loss_cls', 'loss_bbox'] for n in '12']


@pytest.fixture
def mine(tmp_path, monkeypatch): # The current folder, with a logger
    monkeypatch.chdir(tmp_path)
    (tmp_path/'my tools').mkdir()
    (tmp_path/'my tools/mine.py').write_text('class Log:\n    def on_epoch_end(self, t): pass\n')
    return tmp_path/'my tools'


@pytest.mark.parametrize('name', ['my tools/mine.py:Log', './my tools/mine.py:Log', '{}/mine.py:Log'])
def test_logger_of_a_file_anywhere(mine, name):
    assert type(callbacks.make_logger(name.format(mine))).__name__ == 'Log' and str(mine) not in sys.path


DATA_CLASS = '''from __future__ import annotations
from dataclasses import dataclass
from units_of_mine import unit

@dataclass
class Log:
    unit: str = unit
    def on_epoch_end(self, t): pass
'''


def test_logger_of_a_file_with_a_data_class_and_a_neighbor(mine, monkeypatch):
    (mine/'units_of_mine.py').write_text('unit = "epoch"')
    (mine/'json.py').write_text(DATA_CLASS) # A file may have the name of a module
    monkeypatch.setitem(sys.modules, 'units_of_mine', None) # Restored afterwards
    del sys.modules['units_of_mine']
    assert callbacks.make_logger('my tools/json.py:Log').unit == 'epoch'
    assert sys.modules['json'] is json and str(mine) not in sys.path


MADE_LATE = '''from __future__ import annotations
import typing
from dataclasses import asdict, dataclass

@dataclass
class Log:
    options: dict[str, str]
    def on_epoch_end(self, t): pass

def make():
    @dataclass
    class Options:
        kept: typing.ClassVar[int] = 3
        unit: str = "{}"
    return Log(asdict(Options()))
'''


def test_data_classes_of_a_file_are_made_late_and_pickled(mine):
    "Also if another file has the same name, and a folder a dot"
    paths = mine/'mine.py', mine/'v1.0/mine.py'
    (mine/'v1.0').mkdir()
    for path, unit in zip(paths, ('epoch', 'step')): path.write_text(MADE_LATE.format(unit))
    logs = [callbacks.make_logger(f'{path}:make') for path in paths]
    assert [log.options for log in logs] == [dict(unit='epoch'), dict(unit='step')]
    for dumps in (pickle.dumps, pickle._dumps): # The second is Python's own, which looks up modules differently
        assert [pickle.loads(dumps(log)) for log in logs] == logs


def test_a_file_that_fails_leaves_nothing_behind(mine):
    (mine/'fails_at_once.py').write_text('raise RuntimeError("mine")')
    before = [*sys.path]
    with pytest.raises(RuntimeError, match='^mine$'): callbacks.make_logger('my tools/fails_at_once.py:Log')
    assert sys.path == before and not [name for name in sys.modules if 'fails_at_once' in name]


@pytest.mark.parametrize('name, message', [('nowhere.py:Log', 'there is no file .*nowhere.py'),
    ('./mine:Log', "'./mine' names no module"), ('json.nothing:Log', "no module 'json.nothing' in"),
    ('my tools/mine.py:Lag', "has no function 'Lag'")])
def test_odd_names_of_loggers_are_refused(mine, name, message):
    with pytest.raises(ValueError, match=message): callbacks.make_logger(name)


def test_error_of_a_callback_is_not_taken_for_a_dead_process(shapes, tmp_path, no_plots):
    class Fail:
        def on_epoch_end(self, t): raise RuntimeError('my NCCL and gloo')
    options = {**SMALL, 'epochs': 1, 'workers': 0}
    with pytest.raises(RuntimeError, match='^my NCCL and gloo$'):
        train(str(shapes), out=str(tmp_path/'run'), device='cpu', callbacks=[Fail()], **options)


def test_logger_that_prints_leaves_json_alone(shapes, mine, capsys, no_plots):
    code = 'print("imported")\nclass Log:\n    def on_epoch_end(self, t): print("epoch", t.epoch)\n'
    (mine/'noisy.py').write_text(code)
    options = {**SMALL, 'epochs': 1, 'workers': 0}
    yolox_train(str(shapes), out=str(mine/'run'), device='cpu', logger='my tools/noisy.py:Log', json=True, **options)
    printed = capsys.readouterr()
    assert json.loads(printed.out)['out'] == str(mine/'run') and {'imported', 'epoch 1'} <= {*printed.err.splitlines()}


def test_tensorboard_gets_metrics_and_pictures(shapes, tmp_path):
    accumulator = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    options = {**SMALL, 'epochs': 1, 'workers': 0}
    yolox_train(str(shapes), out=str(tmp_path/'run'), device='cpu', logger='tensorboard', **options)
    events = accumulator.EventAccumulator(str(tmp_path/'run/tensorboard')).Reload()
    row = read_rows(tmp_path/'run/metrics.csv')[0]
    assert events.Scalars('loss_obj')[0].value == pytest.approx(row['loss_obj'], rel=1e-4)
    assert events.Tags()['images'] == ['detections']


@pytest.fixture
def trained(tmp_path):
    "Log two epochs, and a third after a break, by the logger that `make` makes"
    def train(make, rank=0):
        out = tmp_path/'run'
        out.mkdir()
        Image.new('RGB', (9, 9)).save(out/'detections.png')
        for rows in EPOCHS: # The second time, the training is resumed
            logger, t = make(), SimpleNamespace(rank=rank, out=out, rows=[], recipe=fine_tune_recipe(lr=.003))
            logger.on_train_start(t)
            for row in rows:
                t.rows.append(row)
                logger.on_epoch_end(t)
            logger.on_train_end(t)
        return out
    return train


def test_wandb_goes_on_with_its_run(trained, monkeypatch):
    pytest.importorskip('wandb')
    monkeypatch.setenv('WANDB_MODE', 'offline')
    out = trained(callbacks.WandbLogger)
    name, files = (out/'wandb-id').read_text(), [*(out/'wandb').rglob('*.wandb')]
    assert len(files) == 2 and all(p.stem == f'run-{name}' and p.stat().st_size for p in files)
    assert len([*(out/'wandb').rglob('media/images/detections_*.png')]) == 1


def test_mlflow_goes_on_with_its_run(trained, tmp_path, monkeypatch):
    mlflow = pytest.importorskip('mlflow')
    pytest.importorskip('sqlalchemy')
    monkeypatch.chdir(tmp_path) # Where pictures are copied to
    monkeypatch.setenv('MLFLOW_TRACKING_URI', f'sqlite:///{tmp_path}/mlflow.db')
    out = trained(callbacks.MLflowLogger)
    run, = mlflow.search_runs(experiment_names=['yolox'], output_format='list')
    assert run.info.run_id == (out/'mlflow-id').read_text() and run.data.tags['mlflow.runName'] == 'run'
    assert run.data.params['lr'] == '0.003' and run.info.status == 'FINISHED'
    client = mlflow.MlflowClient()
    losses = client.get_metric_history(run.info.run_id, 'loss_obj')
    assert [(m.step, m.value) for m in losses] == [(1, 2.), (2, 1.), (3, .7)]
    assert [f.path for f in client.list_artifacts(run.info.run_id)] == ['detections.png']


def test_trackio_goes_on_with_its_run(trained, tmp_path, monkeypatch):
    monkeypatch.setenv('TRACKIO_DIR', str(tmp_path/'trackio')) # Before it is imported
    trackio = pytest.importorskip('trackio')
    out = trained(callbacks.TrackioLogger)
    run, = trackio.Api().runs('yolox')
    assert run.name == f'run-{(out/"trackio-id").read_text()}' and run.config['lr'] == .003
    logged = trackio.SQLiteStorage.get_logs('yolox', run.name)
    assert [(m['step'], m['loss_obj']) for m in logged] == [(1, 2.), (2, 1.), (3, .7)]
    assert len([*(tmp_path/'trackio/media').rglob('*.png')]) == 1


def test_only_the_first_process_logs(trained):
    class Fail(callbacks.Logger):
        def start(self, trainer): raise AssertionError
        def log(self, row, picture): raise AssertionError
        def end(self): raise AssertionError
    trained(Fail, rank=1)


MODULES = dict(tensorboard='torch.utils.tensorboard', wandb='wandb', mlflow='mlflow', trackio='trackio')


@pytest.mark.parametrize('name', callbacks.LOGGERS)
def test_missing_logger_says_what_to_install(monkeypatch, name):
    monkeypatch.setitem(sys.modules, MODULES[name], None)
    with pytest.raises(ImportError, match=rf"{name} is missing: pip install 'cjm-yolox-pytorch\[{name}\]'"):
        callbacks.make_logger(name)
