"""`kill -9` at random moments of a run, and the same command again."""

import random
import signal
import time
from pathlib import Path

import pytest
from reference.warm import Running

from ssdd_hub.runs.lock import LOCK_FILE

WORKER = Path(__file__).parents[1] / "reference" / "kill_worker.py"


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The files of a run that nobody killed, and the seconds that it took."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    # The first one also waits for the server of the processes.
    Running(WORKER, folder.with_name("first")).finish()
    started = time.monotonic()
    Running(WORKER, folder).finish()
    return contents(folder), time.monotonic() - started


@pytest.mark.parametrize("seed", range(3))
def test_a_run_killed_again_and_again_ends_with_the_same_files_and_no_others(tmp_path, unbroken, seed):
    whole, seconds = unbroken
    draw, kills = random.Random(seed), 0
    for _ in range(8):
        worker = Running(WORKER, tmp_path / "run")
        worker.process.join(draw.uniform(0.02, seconds))
        worker.process.kill()
        status, _, errors = worker.wait()
        # Whatever the one before was doing, the folder is neither foreign nor in use.
        assert status in (0, -signal.SIGKILL), errors
        kills += status != 0
    Running(WORKER, tmp_path / "run").finish()
    assert contents(tmp_path / "run") == whole and kills
    assert {name for name in whole if Path(name).name.startswith(".")} == {LOCK_FILE}
