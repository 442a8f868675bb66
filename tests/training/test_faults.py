"Anything that goes wrong around a training is said in one line, and costs at most the steps since the last state."
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from trainings import SMALL, assert_same_training, trainer

from cjm_yolox_pytorch.files.checkpoints import Weights, load_weights, save_weights
from cjm_yolox_pytorch.files.paths import atomic
from cjm_yolox_pytorch.training.train import fit, yolox_train

pytestmark = pytest.mark.usefixtures('no_plots')
LONG = '--epochs', 500
needs_proc = pytest.mark.skipif(not Path('/proc/self/task').exists(), reason='finds child processes in /proc')
linux = pytest.mark.skipif(sys.platform != 'linux', reason='limits the size of files')


def error_line(printed):
    "The only thing that is said about it"
    assert 'Traceback' not in printed, printed
    line, = [line for line in printed.splitlines() if line.startswith('yolox_train: error: ')]
    return line


@needs_proc
def test_killed_worker_is_explained(tmp_path, start_training):
    "As Linux does when memory runs out"
    out = tmp_path/'run'
    child = start_training(out, *LONG, '--workers', 1)
    child.wait_for(out/'metrics.csv')
    end = time.monotonic() + 120
    while child.alive() and time.monotonic() < end: # A worker that is just done with its epoch is not missed
        with suppress(FileNotFoundError, ProcessLookupError): # Either may end just now
            for worker in Path(f'/proc/{child.pid}/task/{child.pid}/children').read_text().split():
                os.kill(int(worker), signal.SIGKILL)
        time.sleep(.05)
    assert child.wait() == 1
    said = error_line(child.output())
    assert 'a process that loads images was killed' in said and '--workers' in said and '--resume' in said
    assert load_weights(out/'last.safetensors').notes['epoch'] >= 1


@pytest.mark.parametrize('victim', [0, 1])
def test_killed_process_ends_the_others(tmp_path, start_pair, victim):
    out = tmp_path/'run'
    pair = start_pair(out, *LONG)
    pair[0].wait_for(out/'metrics.csv')
    os.kill(pair[victim].pid, signal.SIGKILL)
    other = pair[1 - victim]
    assert other.wait() == 1 and 'another process of this run ended' in error_line(other.output())
    assert load_weights(out/'last.safetensors').notes['epoch'] >= 1


@linux
def test_full_disk_leaves_a_training_that_resumes(shapes, tmp_path, uninterrupted, start_training):
    import resource
    out = tmp_path/'run'
    child = start_training(out)
    child.wait_for(out/'state.pt')
    # Python ignores SIGXFSZ, and sees an OSError
    resource.prlimit(child.pid, resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
    assert child.wait() == 1 and 'could not be written' in error_line(child.output())
    fit(trainer(shapes), out, resume=True)
    assert_same_training(out, uninterrupted)


def write_large(path, kind):
    "Write more than fits on the disk"
    import resource
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
    numbers = torch.zeros(100_000)
    if kind == 'weights': save_weights(Weights(dict(a=numbers), 'yolox_nano', 5, (0, 0, 0), (1, 1, 1)), path)
    else:
        with atomic(path) as partial: torch.save(numbers, partial)


@linux
@pytest.mark.parametrize('kind', ['state', 'weights'])
def test_full_disk_leaves_the_file_as_it_was(tmp_path, start, kind):
    path = tmp_path/'files/state.pt'
    path.parent.mkdir()
    torch.save(dict(a=1), path)
    child = start(path, kind, function=write_large)
    assert child.wait() == 1 and 'state.pt could not be written' in child.output(), child.output()
    assert torch.load(path) == dict(a=1) and os.listdir(path.parent) == ['state.pt']


def test_folder_that_cannot_be_written_is_named(shapes, tmp_path, capfd):
    "Before the first epoch"
    (tmp_path/'file').write_text('in the way')
    folder = tmp_path/'locked'
    folder.mkdir(mode=0o555)
    places = [tmp_path/'file', tmp_path/'file'/'run']
    if sys.platform == 'linux': places += [Path('/proc/run'), Path('/proc'), Path('/sys')]
    if os.name == 'posix' and os.geteuid() > 0: places.append(folder/'run') # root may write anywhere
    for out in places:
        with pytest.raises(OSError) as e: yolox_train(str(shapes), out=str(out), device='cpu', **SMALL)
        assert str(out) in str(e.value)
    assert '1/4' not in capfd.readouterr().out


def test_two_trainings_do_not_share_a_folder(shapes, tmp_path, start_training):
    "The second refuses, also when it is to resume the first"
    out = tmp_path/'run'
    first = start_training(out, *LONG)
    first.wait_for(out/'metrics.csv')
    with pytest.raises(FileExistsError, match='already holds a training run'): fit(trainer(shapes), out)
    with pytest.raises(FileExistsError, match='another run is writing to'): fit(trainer(shapes), out, resume=True)
    assert first.alive()
    os.kill(first.pid, signal.SIGKILL) # A process that is killed holds nothing back
    first.wait()
    before = (out/'metrics.csv').read_text()
    third = start_training(out, *LONG, '--resume')
    end = time.monotonic() + 120
    while (out/'metrics.csv').read_text() == before and third.alive() and time.monotonic() < end: time.sleep(.05)
    os.kill(third.pid, signal.SIGINT)
    assert third.wait() == 130 and 'everything is saved in' in third.output(), third.output()
