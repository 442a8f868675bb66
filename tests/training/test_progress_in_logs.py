"What a training says of its progress where no terminal is"
import os
import re
import signal
import subprocess
import sys

import pytest
from trainings import ranks, run_command, trainer, words

from cjm_yolox_pytorch.commands import progress
from cjm_yolox_pytorch.commands.say import shown
from cjm_yolox_pytorch.training.train import fit, measure_best

STEPS = [f'epoch {n} of 4, step {step} of 3' for n in range(1, 5) for step in (1, 2, 3)]
WHOLE = [*STEPS[:6], 'epoch 2 of 4, validation, batch 1 of 1', *STEPS[6:], 'epoch 4 of 4, validation, batch 1 of 1']


def told(text):
    "The lines about progress, without what differs from run to run"
    lines = [line for line in text.splitlines() if line.startswith(('epoch', 'best weights'))]
    assert all(re.search(r', \d+ (s|min) left$', line) and len(line) <= 80 for line in lines), lines
    return [re.sub(r', [\d.e+-]+ (images|batches)/s|, \d+ (s|min) left', '', line) for line in lines]


@pytest.fixture
def talkative(monkeypatch): monkeypatch.setattr(progress, 'INTERVAL', 0)


def test_training_says_how_far_it_is_after_steps_and_in_validations(shapes, tmp_path, no_plots, talkative, capsys):
    t = trainer(shapes)
    with shown(): fit(t, tmp_path)
    printed = capsys.readouterr()
    assert told(printed.err) == WHOLE and told(printed.out) == []
    assert [line.partition('/')[0].strip() for line in printed.out.splitlines()] == ['1', '2', '3', '4']
    measure_best(t)
    assert told(capsys.readouterr().err) == ['best weights: 1 of 1 batches']


def test_quick_training_says_nothing_but_its_epochs(shapes, tmp_path, no_plots, capsys):
    with shown(): fit(trainer(shapes, epochs=1), tmp_path)
    printed = capsys.readouterr()
    assert printed.err == '' and printed.out.count('\n') == 1


def test_resumed_training_counts_from_where_it_was(shapes, tmp_path, no_plots, talkative, monkeypatch, capsys):
    def interrupt_after_four(lines, n=1):
        update(lines, n)
        if lines.n == 4: os.kill(os.getpid(), signal.SIGINT)
    update = progress.ProgressLines.update
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt, match='1 of 3 steps of epoch 2'):
        patch.setattr(progress.ProgressLines, 'update', interrupt_after_four)
        fit(trainer(shapes), tmp_path)
    assert told(capsys.readouterr().err) == WHOLE[:4]
    fit(trainer(shapes), tmp_path, resume=True)
    assert told(capsys.readouterr().err) == WHOLE[4:]


def run_talkative(command):
    progress.INTERVAL = 0
    run_command(command)


@pytest.mark.slow
def test_of_several_processes_one_speaks(start, shapes, tmp_path):
    pair = [start(words(shapes, tmp_path/'run'), function=run_talkative, environment=e) for e in ranks(2)]
    assert [child.wait() for child in pair] == [0, 0], pair[0].output() + pair[1].output()
    best = [f'best weights: {n} of 2 batches' for n in (1, 2)]
    assert [told(child.output()) for child in pair] == [[*WHOLE, *best], []]


@pytest.mark.slow
def test_lines_come_through_a_pipe_while_the_training_runs(shapes, tmp_path):
    code = ('import sys\nfrom cjm_yolox_pytorch.commands import progress\nprogress.INTERVAL = .5\n'
        'from cjm_yolox_pytorch.training.train import yolox_train\nsys.argv[0] = "yolox_train"\nyolox_train()')
    command = [sys.executable, '-c', code, *words(shapes, tmp_path/'run', '--epochs', 200)[1:]]
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    lines = [process.stderr.readline() for _ in range(3)]
    process.send_signal(signal.SIGINT)
    printed, rest = process.communicate()
    assert all(re.match(r'epoch \d+ of 200, (step \d of 3|validation), .* left\n', line) for line in lines), lines
    assert process.returncode == 130 and 'finishing this step' in rest
    assert 'of 3' not in printed.partition('stopped after')[0]
