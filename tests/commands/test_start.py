"Commands that are stopped while PyTorch is imported."
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cjm_yolox_pytorch import __version__
from cjm_yolox_pytorch.commands.start import COMMANDS, command_line, import_command

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = '''
import signal, sys
{before}
sys.argv = ['/bin/yolox_train', '--help']
from cjm_yolox_pytorch.commands.start import start
print([name for name in ('torch', 'numpy', 'argparse') if name in sys.modules], flush=True)
start()
'''
CTRL_C = 'import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n'


def run(folder, torch, before=''):
    "Run a command where `torch` is a module with this source"
    (folder/'torch.py').write_text(torch)
    path = os.pathsep.join(map(str, (folder, ROOT)))
    command = [sys.executable, '-c', SCRIPT.format(before=before)]
    return subprocess.run(command, env=dict(os.environ, PYTHONPATH=path), capture_output=True, text=True)


@pytest.mark.parametrize('torch', [CTRL_C, f'try:\n    {CTRL_C.strip().replace(chr(10), "; ")}\nexcept: pass'])
def test_ctrl_c_during_imports_ends_in_one_line(tmp_path, heeded, torch):
    "Also where a module of others would swallow it"
    ended = run(tmp_path, torch)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, '[]\n', '\nyolox_train: interrupted\n')


def test_ignored_signal_stays_ignored(tmp_path):
    ignore = 'signal.signal(signal.SIGINT, signal.SIG_IGN)'
    ended = run(tmp_path, CTRL_C + 'raise ImportError("read to the end")', ignore)
    assert ended.returncode == 1 and 'read to the end' in ended.stderr


def test_command_gets_the_earlier_handler(monkeypatch, heeded):
    from cjm_yolox_pytorch.commands import start
    handlers = []
    def command(): handlers.append(signal.getsignal(signal.SIGINT))
    monkeypatch.setattr(sys, 'argv', ['yolox_train'])
    monkeypatch.setattr(start, 'import_command', lambda name: command)
    start.start()
    assert handlers == [signal.default_int_handler]


@pytest.mark.parametrize('name', ['train', 'yolox_train_dev', '-c'])
def test_other_names_of_programs_are_refused(name):
    message = f'{name}: the name of the program must be one of yolox_'
    with pytest.raises(SystemExit, match=message): import_command(name)


@pytest.mark.parametrize('line, message', [('cjm-yolox trian birds', "no verb 'trian': did you mean train?"),
    ('cjm-yolox Convert_Weight a.pth', "no verb 'Convert_Weight': did you mean convert-weights?"),
    ('cjm_yolox_pytorch/__main__.py yolox_eval a.pth', "no verb 'yolox_eval': did you mean eval?"),
    ('cjm-yolox fly', f"no verb 'fly': choose one of {', '.join(COMMANDS).replace('_', '-')}"),
    ('cjm-yolox --epochs 3 train birds', 'the verb comes first, as in cjm-yolox train DATA')])
def test_unknown_verb_is_named_with_the_nearest(capsys, line, message):
    with pytest.raises(SystemExit) as end: command_line(line.split())
    printed = capsys.readouterr()
    assert (end.value.code, printed.out) == (2, '') and message in printed.err and printed.err.count('\n') == 1


@pytest.mark.parametrize('program', ['cjm-yolox', 'cjm_yolox_pytorch/__main__.py'])
def test_version_is_told(capsys, program):
    with pytest.raises(SystemExit) as end: command_line([program, '--version'])
    assert (end.value.code, capsys.readouterr().out) == (0, f'cjm-yolox-pytorch {__version__}\n')
