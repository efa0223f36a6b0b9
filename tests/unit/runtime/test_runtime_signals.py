"""A signal sets a flag that is looked at between steps; a second one ends the process."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from mpdit_core.errors import Interrupted
from mpdit_core.runtime.signals import StopRequest


def test_the_first_signal_is_remembered_and_the_second_raises():
    with StopRequest() as stop:
        stop.check()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.received == signal.SIGTERM
        with pytest.raises(Interrupted) as asked:
            stop.check()
        assert asked.value.signum == signal.SIGTERM
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), signal.SIGINT)


def test_ignored_signals_stay_ignored_and_handlers_come_back():
    before = signal.getsignal(signal.SIGTERM)
    nohup = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.received is None
            assert signal.getsignal(signal.SIGTERM) != before
        assert signal.getsignal(signal.SIGTERM) == before
    finally:
        signal.signal(signal.SIGHUP, nohup)


def test_a_system_without_some_signals(monkeypatch):
    for name in ("SIGHUP", "SIGUSR1"):
        monkeypatch.delattr(signal, name)
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
    assert stop.received == signal.SIGTERM


def test_in_another_thread_nothing_happens():
    failed = []

    def work():
        try:
            with StopRequest() as stop:
                stop.check()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert failed == []
