"What goes wrong around a training is said in one line, and costs at most the steps since the last state."
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cjm_yolox_pytorch.checkpoints import load_weights
from test_resume import ENVIRONMENT, _wait_for, assert_same_training, command, run, shapes, uninterrupted # noqa: F401 (the last two are fixtures)

LONG = ['--epochs', '500', '--workers', '1']


def start(*args, before=()):
    return subprocess.Popen([*before, *command(*args)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ENVIRONMENT)


def children(process): return [int(n) for n in Path(f'/proc/{process.pid}/task/{process.pid}/children').read_text().split()]


def error_line(printed):
    "The only thing that is said about it"
    assert 'Traceback' not in printed, printed
    line, = [line for line in printed.splitlines() if line.startswith('yolox_train: error: ')]
    return line


needs_proc = pytest.mark.skipif(not Path('/proc/self/task').exists(), reason='finds child processes in /proc')


@needs_proc
def test_a_worker_is_killed(shapes, tmp_path):
    "As Linux does when memory runs out"
    out = tmp_path/'run'
    process = start(shapes, out, *LONG)
    _wait_for(out/'metrics.csv', process)
    for _ in range(100): # Between epochs there is none
        if workers := children(process): break
        time.sleep(.05)
    os.kill(workers[0], signal.SIGKILL)
    printed = process.communicate(timeout=60)[0]
    said = error_line(printed)
    assert process.returncode == 1 and 'a process that reads images was ended' in said and '--workers' in said and '--resume' in said, printed
    assert load_weights(out/'last.safetensors').notes['epoch'] >= 1


@needs_proc
@pytest.mark.parametrize('victim', [0, 1])
def test_a_process_of_torchrun_is_killed(shapes, tmp_path, victim):
    "The others end within a minute"
    out = tmp_path/'run'
    process = start(shapes, out, *LONG, before=[Path(sys.executable).with_name('torchrun'), '--standalone', '--nproc-per-node', '2'])
    _wait_for(out/'metrics.csv', process)
    os.kill(children(process)[victim], signal.SIGKILL)
    printed = process.communicate(timeout=60)[0]
    assert process.returncode and f'rank      : {victim} (local_rank: {victim})\n  exitcode  : -9' in printed, printed # By torchrun
    assert not victim or 'another process of this training ended' in printed and '--resume' in printed, printed # By the first process, unless it was that one
    assert load_weights(out/'last.safetensors').notes['epoch'] >= 1


def test_the_disk_is_full(shapes, tmp_path, uninterrupted):
    "In the middle of a training, which then goes on where there is room"
    out = tmp_path/'run'
    process = start(shapes, out)
    _wait_for(out/'last.safetensors', process)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (1_000_000, 1_000_000)) # Python ignores SIGXFSZ, and sees an OSError
    printed = process.communicate(timeout=60)[0]
    assert process.returncode == 1 and 'could not be written, and is as it was before' in error_line(printed)
    assert run(shapes, out, '--resume').returncode == 0
    assert_same_training(out, uninterrupted)


def test_a_folder_that_cannot_be_written(shapes, tmp_path):
    (tmp_path/'file').write_text('in the way')
    folder = tmp_path/'locked'
    folder.mkdir(mode=0o555)
    for out in (tmp_path/'file', tmp_path/'file'/'run', Path('/proc/run'), *[folder/'run']*(os.geteuid() > 0)): # root may write anywhere
        done = run(shapes, out)
        assert done.returncode == 1 and str(out) in error_line(done.stderr), done.stderr
        assert '1/4' not in done.stdout


def test_two_in_one_folder(shapes, tmp_path):
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
    assert 'everything is saved in' in third.communicate(timeout=60)[0]
