"A log has a line about every half minute, each readable alone, and stdout belongs to the results."
import contextlib
import io
import json
import os
import re
import subprocess
import sys

import pytest
import torch
from tqdm import auto, tqdm

from cjm_yolox_pytorch.commands import progress
from cjm_yolox_pytorch.commands.progress import ProgressLines, duration, show_progress
from cjm_yolox_pytorch.evaluation.doctor import yolox_doctor


class Clock:
    "Seconds, which pass when a test says so; and when lines were printed"
    def __init__(self): self.now, self.lines = 0., []
    def __call__(self): return self.now
    def print(self, line, file, flush): self.lines.append((self.now, line))


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, 'monotonic', clock)
    monkeypatch.setattr(progress, 'print', clock.print, raising=False)
    return clock


def test_lines_are_neither_rare_nor_many(clock):
    seconds = (torch.rand(500, generator=torch.Generator().manual_seed(0))*10).tolist()
    for step in show_progress(seconds): clock.now += step
    times = [0., *(when for when, _ in clock.lines)]
    gaps = [b - a for a, b in zip(times, times[1:])]
    assert min(gaps) >= 30 and max(gaps) < 40 and clock.now - times[-1] < 30


def test_short_work_has_no_line(clock):
    for _ in show_progress(range(29)): clock.now += 1
    assert clock.lines == []


def test_time_left_is_right_at_a_constant_speed(clock):
    for _ in show_progress(range(1000), desc='val', unit='batches'): clock.now += 2
    assert clock.lines[0][1] == 'val: 15 of 1000 batches, 0.5 batches/s, 33 min left'
    for when, line in clock.lines: assert line.endswith(f', {duration(2000 - when)} left'), line


def test_resumed_work_is_as_fast_as_its_own_steps(clock):
    lines = show_progress(total=1000, initial=900)
    for _ in range(20):
        clock.now += 3
        lines.update()
    assert [line for _, line in clock.lines] == ['910 of 1000 images, 0.33 images/s, 4 min left',
        '920 of 1000 images, 0.33 images/s, 4 min left']


def test_without_a_total_or_a_step_there_is_no_time_left(clock):
    lines, endless = show_progress(total=10), show_progress(iter(range(100)))
    clock.now += 31
    lines.set_postfix_str('validation')
    lines.update(0)
    for _ in endless: clock.now += 1
    assert [line for _, line in clock.lines[:2]] == ['validation', '1 images, 0.031 images/s']
    assert not any('left' in line for _, line in clock.lines)


def test_control_characters_do_not_reach_the_terminal(clock):
    lines = show_progress(total=10, desc='\x1b[2J\n')
    clock.now += 31
    lines.update()
    assert clock.lines[0][1].startswith(r'\x1b[2J\n: 1 of 10')


def test_memory_does_not_grow_with_the_time(clock):
    lines = show_progress(total=10**9)
    for _ in range(1000):
        clock.now += 30
        lines.update()
    assert len(lines.past) <= 20 and len(clock.lines) == 1000


@pytest.mark.parametrize('widgets', [True, False])
def test_jupyter_has_a_bar_if_there_are_widgets(monkeypatch, clock, widgets):
    class NotebookBar(tqdm):
        def __init__(self, *args, **kwargs):
            assert 'ncols' not in kwargs # They would be pixels
            super().__init__(*args, file=io.StringIO(), **kwargs)
    if widgets:
        monkeypatch.setattr(auto, 'notebook_tqdm', NotebookBar)
        monkeypatch.setattr(auto, 'tqdm', NotebookBar)
    bar = show_progress(range(3), desc='val')
    assert type(bar) is (NotebookBar if widgets else ProgressLines) and [*bar] == [0, 1, 2]


def test_json_of_the_doctor_stays_json(draw_shapes, monkeypatch, capsys):
    monkeypatch.setattr(progress, 'INTERVAL', 0)
    data = draw_shapes(train=12, val=4, test=0, size=64)
    yolox_doctor(str(data), json=True)
    printed = capsys.readouterr()
    assert json.loads(printed.out)['sound'] and '16 of 16 images' in printed.err


@pytest.mark.skipif(os.name != 'posix', reason='closes stderr by a shell')
def test_a_program_without_stderr_shows_nothing():
    code = 'from cjm_yolox_pytorch.commands import progress as p; p.INTERVAL = 0; print(*p.show_progress(range(3)))'
    done = subprocess.run(['sh', '-c', '"$0" -c "$1" 2>&-', sys.executable, code], stdout=subprocess.PIPE, text=True)
    assert done.returncode == 0 and re.fullmatch('0 1 2\n', done.stdout)


def test_window_of_an_epoch_has_its_validation(clock):
    "Half an hour of steps and ten minutes of validation: each line is right within a tenth after the first epoch"
    lines, left = show_progress(total=1000, window=50), []
    for n in range(1, 501):
        clock.now += 36
        lines.update()
        left.append(lines._line(clock.now).rpartition(', ')[2])
        clock.now += 600*(n % 50 == 0)
    for n in range(60, 500): # Two thirds of an hour for 50 steps
        minutes = (1000 - n)*40/50
        near = [f'{duration(60*m)} left' for m in range(round(.9*minutes), round(1.1*minutes) + 1)]
        assert left[n - 1] in near, (n, left[n - 1], minutes)


def test_time_left_outlives_a_long_validation(clock):
    lines = show_progress(total=100)
    for n in [1]*10 + [0]*30:
        clock.now += 30
        lines.update(n)
    assert clock.lines[-1][1] == '10 of 100 images, 0.0083 images/s, 3 h 0 min left'


def test_bar_fits_into_80_columns():
    class Terminal(io.StringIO):
        def isatty(self): return True
    with contextlib.redirect_stderr(Terminal()) as terminal: assert [*show_progress(range(3), desc='val')] == [0, 1, 2]
    shown = re.split('[\r\n]', terminal.getvalue())
    assert 'val: 100%' in shown[-2] and {len(line) for line in shown if line.strip()} <= {79, 80}
