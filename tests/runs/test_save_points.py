import signal
import subprocess
import sys
import threading

import pytest

from ssdd_hub.runs import save_points
from ssdd_hub.runs.save_points import SavePoints


@pytest.fixture(autouse=True)
def heard():
    """Ctrl-C as a terminal sends it: where the tests run in the background, it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def loop(points, steps, ask=None):
    """Returns the steps that are saved; the signal arrives in the middle of step 3."""
    saved = []
    with points:
        for step in range(1, steps + 1):
            if ask and step == 3:
                signal.raise_signal(ask)
            if points.due(step):
                saved.append(step)
                points.end_if_asked()
    return saved


def test_steps_decide_and_handlers_are_put_back():
    before = [signal.getsignal(number) for number in save_points._ASKING]
    assert loop(SavePoints(4, alone=True), 9) == [4, 8]
    assert [signal.getsignal(number) for number in save_points._ASKING] == before


@pytest.mark.parametrize("alone, expected", [(True, [3, 6, 9, 10]), (False, [10])])
def test_so_does_time_in_one_process(monkeypatch, alone, expected):
    clock = iter(range(0, 10**6, 40))
    monkeypatch.setattr(save_points.time, "monotonic", lambda: now[0])
    now = [0]
    points = SavePoints(10, alone)
    saved = []
    with points:
        for step in range(1, 11):
            now[0] = next(clock) + 40
            if points.due(step):
                saved.append(step)
    assert saved == expected


def test_an_interrupt_ends_the_loop_after_its_step_and_a_save():
    saved = []
    points = SavePoints(100, alone=True)
    with pytest.raises(KeyboardInterrupt), points:
        for step in range(1, 9):
            if step == 3:
                signal.raise_signal(signal.SIGINT)
            if points.due(step):
                saved.append(step)
                points.end_if_asked()
    assert saved == [3]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_interrupt_ends_at_once():
    with pytest.raises(KeyboardInterrupt), SavePoints(100, alone=True):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("the second one had to end the loop")


def test_an_interrupt_after_the_last_save_is_not_lost():
    with pytest.raises(KeyboardInterrupt), SavePoints(1, alone=True) as points:
        assert points.due(1)
        points.end_if_asked()
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_ends_the_process_as_it_would_have_after_a_save(name):
    code = (
        "import signal; from ssdd_hub.runs.save_points import SavePoints\n"
        # Where the tests run under nohup, it would be ignored.
        f"signal.signal(signal.{name}, signal.SIG_DFL)\n"
        "with SavePoints(100, alone=True) as points:\n"
        f"    signal.raise_signal(signal.{name})\n"
        "    assert points.due(1); print('saved', flush=True); points.end_if_asked(); print('not reached')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (-getattr(signal, name), "saved\n")


def test_other_threads_and_ignored_signals_are_left_alone():
    seen = []
    thread = threading.Thread(target=lambda: seen.append(loop(SavePoints(2, alone=True), 4)))
    thread.start()
    thread.join()
    assert seen == [[2, 4]]
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert loop(SavePoints(10, alone=True), 4, signal.SIGINT) == []
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
