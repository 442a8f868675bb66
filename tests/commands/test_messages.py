"What a command prints cannot control the terminal."
import os
import shlex
import sys

import pytest

from cjm_yolox_pytorch.commands.command import command
from cjm_yolox_pytorch.commands.messages import printable, shell_words, wrap_lines
from cjm_yolox_pytorch.files.images import read_image


def test_letters_of_any_script_are_printable():
    assert printable('größer, 猫, 💥') == 'größer, 猫, 💥'


def test_lines_are_wrapped_between_words_only():
    path = 'a-long/path'*9
    lines = wrap_lines(f'{"some words "*9}{path} and more', '  ')
    assert [len(line) <= 80 or path in line for line in lines] == [True]*len(lines) and len(lines) == 4
    assert f'    {path}' in lines and lines[0].startswith('  some') and lines[-1] == '    and more'


@pytest.mark.parametrize('root', ['/my data/ships', 'my data', r'C:\my data\ships', '/plain'])
def test_paths_with_blanks_stay_whole(root):
    file = f'{root}/red boat/photo of a boat (2).rf.12ab.jpg'
    text = f'{"some words "*6}{file}: is bad, as {root}. Correct the entry, or write {file}, {"some words "*6}'
    lines = wrap_lines(text, '  ', root)
    assert ' '.join(map(str.strip, lines)) == text.strip() and sum(line.count(file) for line in lines) == 2
    assert all(len(line) <= 80 or file in line for line in lines) and any('some words some' in line for line in lines)


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


def test_words_are_quoted_for_the_shell_of_the_machine(monkeypatch):
    words = 'tar', '-xf', "Jo's boats.tar", 'plain'
    quoted = {}
    for name in ('posix', 'nt'):
        with monkeypatch.context() as patch: # Pathlib looks there, too
            patch.setattr(os, 'name', name)
            quoted[name] = shell_words(*words)
    assert shlex.split(quoted['posix']) == [*words] and quoted['nt'] == 'tar -xf "Jo\'s boats.tar" plain'
