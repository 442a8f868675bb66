"Options that mean the same are explained in the same words."
import inspect

import pytest
from fastcore.docments import docments

from cjm_yolox_pytorch.commands.options import parser_of
from cjm_yolox_pytorch.data.convert import yolox_convert
from cjm_yolox_pytorch.deploy.convert_weights import yolox_convert_weights
from cjm_yolox_pytorch.deploy.export import yolox_export
from cjm_yolox_pytorch.detection.predict import yolox_predict
from cjm_yolox_pytorch.evaluation.doctor import yolox_doctor
from cjm_yolox_pytorch.evaluation.evaluate import yolox_eval
from cjm_yolox_pytorch.training.demo import yolox_demo
from cjm_yolox_pytorch.training.train import yolox_train


@pytest.mark.parametrize('option, commands', [
    ('names', [yolox_predict, yolox_export, yolox_eval, yolox_doctor]), ('iou', [yolox_predict, yolox_eval]),
    ('pixels', [yolox_predict, yolox_eval, yolox_doctor]), ('img_size', [yolox_predict, yolox_eval]),
    ('device', [yolox_predict, yolox_eval, yolox_train, yolox_demo]), ('overlap', [yolox_predict, yolox_eval]),
    ('weights', [yolox_export, yolox_convert_weights]),
    ('bit_depth', [yolox_predict, yolox_eval]), ('bit_depth', [yolox_train, yolox_doctor]),
    ('batch', [yolox_predict, yolox_eval]), ('format', [yolox_train, yolox_doctor, yolox_eval]),
    ('data', [yolox_train, yolox_doctor, yolox_eval, yolox_convert]),
    ('images', [yolox_train, yolox_doctor, yolox_eval, yolox_convert])])
def test_same_options_have_the_same_help(option, commands):
    assert len({docments(command)[option] for command in commands}) == 1


EVERY_COMMAND = pytest.mark.parametrize('command', [yolox_convert, yolox_convert_weights, yolox_export, yolox_predict,
    yolox_doctor, yolox_eval, yolox_demo, yolox_train], ids=lambda command: command.__name__)


@EVERY_COMMAND
def test_options_are_grouped_once_and_about_ten_come_first(command):
    grouped = ' '.join(getattr(command, 'groups', {}).values()).split()
    names = [*inspect.signature(command).parameters]
    assert len({*grouped}) == len(grouped) and {*grouped} <= {*names}
    assert len({*names} - {*grouped}) <= 11 # With what has to be given


@EVERY_COMMAND
def test_help_fits_a_terminal(command, monkeypatch):
    monkeypatch.setenv('COLUMNS', '80')
    lines = parser_of(command).format_help().splitlines()
    assert max(map(len, lines)) <= 80 and lines[0].startswith(f'usage: {command.__name__} [options]')
    assert lines[-1] == 'exit status: 0 done, 1 error, 2 usage, 3 data, 4 weights, 5 memory, 130 Ctrl-C'


@pytest.mark.parametrize('words, told', [(['a.pth', 'birds', '--max_detectoins', '9'], '--max-detections?'),
    (['a.pth', 'birds', '--works=2'], '--workers?'), (['a.pth', 'birds', '--xyz'], 'arguments: --xyz\n')])
def test_slip_in_an_option_gets_the_nearest(monkeypatch, capsys, words, told):
    monkeypatch.setattr('sys.argv', ['yolox_eval', *words])
    with pytest.raises(SystemExit) as end: yolox_eval()
    assert end.value.code == 2 and capsys.readouterr().err.endswith(told if told.endswith('\n') else f'{told}\n')
