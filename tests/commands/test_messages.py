"What a command prints cannot control the terminal."
import sys

import pytest

from cjm_yolox_pytorch.commands.command import command
from cjm_yolox_pytorch.commands.messages import printable, wrap_lines
from cjm_yolox_pytorch.files.images import read_image


def test_letters_of_any_script_are_printable():
    assert printable('größer, 猫, 💥') == 'größer, 猫, 💥'


def test_lines_are_wrapped_between_words_only():
    path = 'a-long/path'*9
    lines = wrap_lines(f'{"some words "*9}{path} and more', '  ')
    assert [len(line) <= 80 or path in line for line in lines] == [True]*len(lines) and len(lines) == 4
    assert f'    {path}' in lines and lines[0].startswith('  some') and lines[-1] == '    and more'


def test_other_lines_and_directions_are_escaped():
    assert printable('a\u2028b\u2029c\u200ed\u200f') == r'a\u2028b\u2029c\u200ed\u200f'


def test_error_of_a_command_is_escaped(tmp_path, monkeypatch):
    name = 'a\x1b[2J\n\u202e.png'
    (tmp_path/name).write_text('no image')
    @command
    def look(): read_image(tmp_path/name)
    monkeypatch.setattr(sys, 'argv', ['look'])
    with pytest.raises(SystemExit) as end: look()
    assert str(end.value).startswith('look: error: ') and str(end.value).isprintable()
    assert r'a\x1b[2J\n\u202e.png cannot be decoded' in str(end.value)
