"The files of a run: loggers, curves, and the folder that no other training may write into."
import errno
import os
import sys

import pytest
from PIL import Image
from trainings import SMALL

from cjm_yolox_pytorch.training import runs
from cjm_yolox_pytorch.training.runs import lock_folder, read_rows
from cjm_yolox_pytorch.training.train import yolox_train


def test_tensorboard_gets_metrics_and_images(shapes, tmp_path):
    accumulator = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    options = {**SMALL, 'epochs': 1, 'workers': 0}
    yolox_train(str(shapes), out=str(tmp_path/'run'), device='cpu', logger='tensorboard', **options)
    events = accumulator.EventAccumulator(str(tmp_path/'run/tensorboard')).Reload()
    row = read_rows(tmp_path/'run/metrics.csv')[0]
    assert events.Scalars('loss_obj')[0].value == pytest.approx(row['loss_obj'], rel=1e-4)
    assert events.Tags()['images'] == ['detections']


def test_wandb_goes_on_with_its_run(tmp_path, monkeypatch):
    wandb = pytest.importorskip('wandb')
    monkeypatch.setenv('WANDB_MODE', 'offline')
    (out := tmp_path/'run').mkdir()
    Image.new('RGB', (9, 9)).save(out/'detections.png')
    for rows in ([dict(epoch=1, loss_obj=2.), dict(epoch=2, loss_obj=1., AP=.5)], [dict(epoch=3, loss_obj=.7)]):
        log = runs.wandb_logger(out)
        for row in rows: log(row, out)
        assert wandb.run.id == (out/'wandb-id').read_text()
        wandb.finish()
    assert all(p.stat().st_size for p in (out/'wandb').rglob('*.wandb'))
    assert len(list((out/'wandb').rglob('media/images/detections_*.png'))) == 1


@pytest.mark.parametrize('name, module', dict(tensorboard='torch.utils.tensorboard', wandb='wandb').items())
def test_missing_logger_says_what_to_install(tmp_path, monkeypatch, name, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"pip install 'cjm-yolox-pytorch\[log\]'"): runs.LOGGERS[name](tmp_path)


@pytest.mark.parametrize('number', [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EIO])
def test_drive_without_locks_is_used_with_a_warning(number, tmp_path, monkeypatch):
    "Anything else that goes wrong with the lock is an error"
    fcntl = pytest.importorskip('fcntl')
    def flock(*args): raise OSError(number, os.strerror(number))
    monkeypatch.setattr(fcntl, 'flock', flock)
    odd = number == errno.EIO
    expected = pytest.raises(OSError, match='Input/output') if odd else pytest.warns(UserWarning, match='lock')
    with expected, lock_folder(tmp_path): pass
