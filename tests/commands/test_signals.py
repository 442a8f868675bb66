"Signals at moments in which Python drops exceptions."
import gc
import signal
import sys
import time
import weakref
from contextlib import suppress

import pytest

from cjm_yolox_pytorch.commands.signals import exit_on_signals


class Thing: pass


def in_callback(number):
    thing = Thing()
    reference = weakref.ref(thing, lambda _: signal.raise_signal(number))
    del thing
    return reference


def in_destructor(number):
    class Raises:
        def __del__(self): signal.raise_signal(number)
    Raises()


def in_collector(number):
    def count(phase, info):
        gc.callbacks.remove(count)
        signal.raise_signal(number)
    gc.callbacks.append(count)
    gc.collect()


MOMENTS = [in_callback, in_destructor, in_collector]


@pytest.mark.parametrize('moment', MOMENTS)
def test_sigterm_is_not_lost(moment, capsys):
    hook = sys.unraisablehook
    with pytest.raises(SystemExit) as end, exit_on_signals():
        moment(signal.SIGTERM)
        time.sleep(9)
    assert end.value.code == 143 and sys.unraisablehook is hook
    assert capsys.readouterr().err == ''


@pytest.mark.parametrize('moment', MOMENTS)
def test_ctrl_c_is_not_lost(moment, capsys, heeded):
    with pytest.raises(KeyboardInterrupt), exit_on_signals():
        moment(signal.SIGINT)
        time.sleep(9)
    assert capsys.readouterr().err == ''


def test_second_sigterm_does_not_disturb_the_end():
    cleaned = []
    with pytest.raises(SystemExit), exit_on_signals():
        try: signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGTERM)
            cleaned.append(1)
    assert cleaned == [1]


def report_as_error(number):
    "What C code of a library may do with an exception"
    with suppress(BaseException): signal.raise_signal(number)
    raise ValueError('could not determine the shape')


@pytest.mark.parametrize('number, end', [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)])
def test_signal_that_became_another_error(number, end, heeded):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(end) as raised, exit_on_signals(): report_as_error(number)
    assert isinstance(raised.value.__context__, ValueError) and signal.getsignal(signal.SIGINT) is before
    if end is SystemExit: assert raised.value.code == 143


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_errors_of_cleaning_up_are_reported(number, heeded):
    with pytest.raises(OSError, match='disk'), exit_on_signals():
        try: signal.raise_signal(number)
        finally: raise OSError('the disk is full')


def test_errors_without_a_signal_stay():
    with pytest.raises(ValueError, match='bad'), exit_on_signals(): raise ValueError('bad')


def test_other_lost_exceptions_are_shown_as_ever(monkeypatch):
    shown = []
    monkeypatch.setattr(sys, 'unraisablehook', shown.append)
    class Fails:
        def __del__(self): raise ValueError('as ever')
    with exit_on_signals(): Fails()
    assert len(shown) == 1 and isinstance(shown[0].exc_value, ValueError)
