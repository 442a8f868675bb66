"With --json, stdout has one object, whatever else is printed."
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cjm_yolox_pytorch.commands.command import command, print_json
from cjm_yolox_pytorch.commands.say import say

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import atexit, os, subprocess, sys
from cjm_yolox_pytorch.commands.command import command, print_json
@command
def measure(
    json:bool=False # Print JSON
):
    print('library')
    os.write(1, b'descriptor\\n')
    subprocess.run([sys.executable, '-c', 'print("program")'])
    print_json(dict(AP=.5))
atexit.register(print, 'exit')
measure()
"""

SCRIPT = PROGRAM.partition('atexit.register')[0] + """
measure(json=True)
print('between', flush=True)
os.write(1, b'its own\\n')
measure(json=True)
"""


@command
def measure(
    path:str, # Any
    json:bool=False # Print JSON
):
    print('a library prints')
    say('a command says')
    if json: print_json(dict(path=path))
    print('a library ends')


@pytest.mark.parametrize('at_the_shell', [True, False])
def test_what_libraries_print_goes_to_stderr(monkeypatch, capsys, at_the_shell):
    monkeypatch.setattr(sys, 'argv', ['measure', 'a.png', '--json'] if at_the_shell else ['pytest'])
    measure(*([] if at_the_shell else ['a.png']), **({} if at_the_shell else dict(json=True)))
    printed = capsys.readouterr()
    assert json.loads(printed.out) == dict(path='a.png')
    assert printed.err.splitlines() == ['a library prints', 'a command says', 'a library ends']
    print('afterwards')
    assert capsys.readouterr().out == 'afterwards\n'


def test_without_json_all_of_it_stays_on_stdout(monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['measure', 'a.png'])
    measure()
    printed = capsys.readouterr()
    assert printed.out.splitlines() == ['a library prints', 'a command says', 'a library ends'] and not printed.err


@pytest.mark.slow # Imports torch once more
def test_other_programs_and_the_end_of_python_print_to_stderr(tmp_path):
    (tmp_path/'measure').write_text(PROGRAM)
    words, env = [sys.executable, str(tmp_path/'measure'), '--json'], dict(os.environ, PYTHONPATH=str(ROOT))
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == dict(AP=.5)
    assert {'library', 'descriptor', 'program', 'exit'} <= {*done.stderr.splitlines()}


@pytest.mark.slow # Imports torch once more
def test_script_gets_its_stdout_back():
    env = dict(os.environ, PYTHONPATH=str(ROOT))
    done = subprocess.run([sys.executable, '-c', SCRIPT], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ['{', '"AP":', '0.5', '}', 'between', 'its', 'own', '{', '"AP":', '0.5', '}']
    assert sorted(done.stderr.splitlines()) == sorted(['library', 'descriptor', 'program']*2)
