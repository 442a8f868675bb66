"Errors of compiled code, whose frames belong to no module."
import sys

import pytest

from cjm_yolox_pytorch.commands.command import command


def test_command_tells_an_error_of_compiled_code(monkeypatch):
    @command
    def some_command(): exec('raise OSError("the disk is gone")', {})
    monkeypatch.setattr(sys, 'argv', ['some_command'])
    with pytest.raises(SystemExit, match='some_command: error: the disk is gone'): some_command()
