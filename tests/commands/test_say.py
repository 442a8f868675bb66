"A message is one record for a program, and lines of 80 columns for a person."
import logging

import pytest

from cjm_yolox_pytorch.commands.say import caution, explain, say, shown
from cjm_yolox_pytorch.data.prepare import prepare_splits
from cjm_yolox_pytorch.training.runs import lock_folder

LONG = 'some words '*20 + '100% {sure}'


def test_long_messages_are_one_record_each(caplog):
    caplog.set_level('INFO')
    say('a  table', 'of  two rows')
    explain(LONG)
    caution(LONG, root='my data')
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [
        ('INFO', 'a  table'), ('INFO', 'of  two rows'), ('INFO', LONG), ('WARNING', LONG)]


def test_commands_wrap_sentences_but_neither_tables_nor_paths(capsys):
    row, path = 'x  '*40, '/my data/ships/red boat 1.jpg'
    with shown():
        say(row)
        caution(f'{LONG}: {path}. Label it', root='/my data/ships')
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == row and len(lines) > 3 and max(map(len, lines)) <= 80 and any(path in line for line in lines)


def test_advice_about_data_has_its_role(draw_shapes, caplog, capsys):
    data = draw_shapes(train=6, val=3, test=0, size=64)
    prepare_splits(data)
    advice = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert [text.partition(':')[0] for text in advice] == ['training', 'validation']
    assert all('rare class: ' in text and text.endswith(')') and len(text) > 100 for text in advice)
    caplog.clear()
    with shown(): prepare_splits(data)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80 and sum(line.startswith(('training: ', 'validation: ')) for line in lines) == 2


def test_drive_without_locks_is_told_in_one_record(tmp_path, monkeypatch, caplog):
    filelock = pytest.importorskip('filelock')
    def acquire(*_): raise NotImplementedError('none here')
    monkeypatch.setattr(filelock.FileLock, 'acquire', acquire)
    with lock_folder(tmp_path): pass
    assert len(caplog.records) == 1 and 'is on a drive without locks (none here)' in caplog.text
