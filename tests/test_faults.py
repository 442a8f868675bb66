"What goes wrong around a training is said in one line, and costs at most the steps since the last state."
import errno
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from cjm_yolox_pytorch.files.checkpoints import load_weights
from cjm_yolox_pytorch.training.runs import _lock_folder
from test_resume import ENVIRONMENT, _wait_for, assert_same_training, command, run, shapes, uninterrupted # noqa: F401 (the last two are fixtures)

LONG = ['--epochs', '500', '--workers', '1']


@pytest.fixture
def start():
    "Start a training, which does not outlive the test"
    processes = []
    def begin(*args, before=()):
        processes.append(subprocess.Popen([*before, *command(*args)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ENVIRONMENT, start_new_session=True))
        return processes[-1]
    yield begin
    for process in processes:
        if process.poll() is None: os.killpg(process.pid, signal.SIGKILL)


def children(process): return [int(n) for n in Path(f'/proc/{process.pid}/task/{process.pid}/children').read_text().split()]


def error_line(printed):
    "The only thing that is said about it"
    assert 'Traceback' not in printed, printed
    line, = [line for line in printed.splitlines() if line.startswith('yolox_train: error: ')]
    return line


needs_proc = pytest.mark.skipif(not Path('/proc/self/task').exists(), reason='finds child processes in /proc')


@needs_proc
def test_a_worker_is_killed(shapes, tmp_path, start):
    "As Linux does when memory runs out"
    out = tmp_path/'run'
    process = start(shapes, out, *LONG)
    _wait_for(out/'metrics.csv', process)
    for _ in range(600): # One that is just done with its epoch is not missed, and between epochs there is none
        for worker in children(process):
            with suppress(ProcessLookupError): os.kill(worker, signal.SIGKILL)
        if process.poll() is not None: break
        time.sleep(.1)
    printed = process.communicate(timeout=60)[0]
    said = error_line(printed)
    assert process.returncode == 1 and 'a process that reads images was ended' in said and '--workers' in said and '--resume' in said, printed
    assert load_weights(out/'last.safetensors').notes['epoch'] >= 1


@needs_proc
@pytest.mark.parametrize('victim', [0, 1])
def test_a_process_of_torchrun_is_killed(shapes, tmp_path, victim, start):
    "The others end, too"
    out = tmp_path/'run'
    process = start(shapes, out, *LONG, before=[Path(sys.executable).with_name('torchrun'), '--standalone', '--nproc-per-node', '2'])
    _wait_for(out/'metrics.csv', process)
    os.kill(children(process)[victim], signal.SIGKILL)
    printed = process.communicate(timeout=60)[0]
    assert process.returncode and f'rank      : {victim} (local_rank: {victim})\n  exitcode  : -9' in printed, printed # By torchrun
    assert 'another process of this training ended' in printed and '--resume' in printed, printed # By the one that is left
    assert load_weights(out/'last.safetensors').notes['epoch'] >= 1


@pytest.mark.skipif(sys.platform != 'linux', reason='limits the size of files of another process')
def test_the_disk_is_full(shapes, tmp_path, uninterrupted, start):
    "In the middle of a training, which then goes on where there is room"
    out = tmp_path/'run'
    process = start(shapes, out)
    _wait_for(out/'state.pt', process)
    import resource
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (1_000_000, 1_000_000)) # Python ignores SIGXFSZ, and sees an OSError
    printed = process.communicate(timeout=60)[0]
    assert process.returncode == 1 and 'could not be written, and is unchanged' in error_line(printed)
    assert run(shapes, out, '--resume').returncode == 0
    assert_same_training(out, uninterrupted)


def test_a_folder_that_cannot_be_written(shapes, tmp_path):
    (tmp_path/'file').write_text('in the way')
    folder = tmp_path/'locked'
    folder.mkdir(mode=0o555)
    for out in (tmp_path/'file', tmp_path/'file'/'run', Path('/proc/run'), Path('/proc'), Path('/sys'), *[folder/'run']*(os.geteuid() > 0)): # root may write anywhere
        done = run(shapes, out)
        assert done.returncode == 1 and str(out) in error_line(done.stderr), done.stderr
        assert '1/4' not in done.stdout


def test_two_in_one_folder(shapes, tmp_path, start):
    "The second refuses, also when it asks to go on with the first"
    out = tmp_path/'run'
    first = start(shapes, out, *LONG)
    _wait_for(out/'metrics.csv', first)
    for more in ([], ['--resume']):
        second = run(shapes, out, *LONG, *more)
        assert second.returncode == 1 and ('another training is writing there' if more else 'holds a training already') in error_line(second.stderr)
    assert first.poll() is None
    first.kill() # What is killed holds nothing back
    first.wait()
    third = start(shapes, out, *LONG, '--resume')
    epochs = len((out/'metrics.csv').read_text().splitlines())
    for _ in range(600):
        if len((out/'metrics.csv').read_text().splitlines()) > epochs: break
        time.sleep(.1)
    third.send_signal(signal.SIGINT)
    assert 'everything is saved in' in third.communicate(timeout=300)[0]


@pytest.mark.parametrize('number', [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EIO])
def test_a_drive_without_locks(number, tmp_path, monkeypatch):
    "Trains there with a warning; what else goes wrong with the lock is an error"
    fcntl = pytest.importorskip('fcntl')
    def flock(*args): raise OSError(number, os.strerror(number))
    monkeypatch.setattr(fcntl, 'flock', flock)
    expected = pytest.raises(OSError, match='Input/output') if number == errno.EIO else pytest.warns(UserWarning, match='lock') # Also that of filelock itself
    with expected, _lock_folder(tmp_path): pass


def test_a_mistake_of_a_transform_is_no_want_of_memory(shapes, tmp_path):
    script = tmp_path/'own.py'
    script.write_text(f"""import sys, torch
from cjm_yolox_pytorch import train
def wrong(image, target): return image[:, :3] + image[:, :4], target
train.recipe_transforms = lambda recipe: [wrong]
sys.argv = ['yolox_train', {str(shapes)!r}, '--out', {str(tmp_path/'run')!r}, '--model', 'yolox_nano', '--size', '64', '--workers', '1', '--device', 'cpu']
train.yolox_train()
""")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env={**ENVIRONMENT, 'PYTHONPATH': str(Path(__file__).resolve().parents[1])})
    assert done.returncode and 'Traceback' in done.stderr and 'must match the size' in done.stderr and 'memory' not in done.stderr.splitlines()[-1], done.stderr
