from __future__ import annotations

import os
import signal

import pytest

from isrdpo_jax.errors import StoppedError
from isrdpo_jax.runs.preemption import StopSignal


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_is_a_request(number: signal.Signals, capfd: pytest.CaptureFixture[str]):
    with StopSignal("`isrdpo run demo.yaml`") as stop:
        stop.check()
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested
        with pytest.raises(StoppedError, match=f"Stopped by {number.name}.*`isrdpo run demo.yaml` again") as caught:
            stop.check()
    assert caught.value.exit_code == 75
    assert f"{number.name}: finishing" in capfd.readouterr().err


def test_a_signal_to_a_part_of_the_work_is_one_to_the_whole():
    with StopSignal() as run:
        with StopSignal() as part:
            os.kill(os.getpid(), signal.SIGTERM)
            assert part.requested
        with pytest.raises(StoppedError):
            run.check()


def test_the_former_handlers_come_back():
    former = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(KeyError), StopSignal():
        assert signal.getsignal(signal.SIGTERM) != former[0]
        raise KeyError
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == former
