import errno
import gc
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading

import pytest
import yaml

from ssdd_hub.errors import InputError
from ssdd_hub.runs.folder import RunFolder
from ssdd_hub.runs.launch import report_errors
from ssdd_hub.runs.lock import LOCK_FILE, LOCK_FILES, OWNER_FILE, FolderLock
from ssdd_hub.runs.own_runs import is_own_run

HOLD = "import sys, time; from pathlib import Path; from ssdd_hub.runs.lock import FolderLock\n"
HOLD += "lock = FolderLock(Path(sys.argv[1])); lock.acquire(); print('held', flush=True); time.sleep(60)"


@pytest.fixture
def holder(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_process_is_refused_by_name(holder, tmp_path):
    owner = f"process {holder.pid} on {socket.gethostname()}"
    with pytest.raises(InputError, match=f"in use by {owner} .* choose another"):
        FolderLock(tmp_path / "run").acquire()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_lock_of_a_dead_process_is_free(holder, tmp_path, how):
    holder.send_signal(how)
    holder.wait()
    with FolderLock(tmp_path / "run"):
        assert str(os.getpid()) in (tmp_path / "run" / OWNER_FILE).read_text()


def test_a_folder_that_stays_empty_is_removed(tmp_path):
    with FolderLock(tmp_path / "new"):
        assert (tmp_path / "new" / LOCK_FILE).exists()
    assert not (tmp_path / "new").exists()
    (tmp_path / "old").mkdir()
    with FolderLock(tmp_path / "old"):
        pass
    assert (tmp_path / "old").exists()


def test_what_came_into_the_folder_stays_and_the_lock_is_free_again(tmp_path):
    for content in ("first", "second"):
        with FolderLock(tmp_path / "run"):
            (tmp_path / "run" / "config.yaml").write_text(content)
        assert not (tmp_path / "run" / OWNER_FILE).exists()
    assert (tmp_path / "run" / "config.yaml").read_text() == "second"


@pytest.mark.parametrize("owner", ["{}", "[1]", "no json", '{"pid": 1}', '{"pid": "\\u001b[2J"' + " " * 5000 + "}"])
def test_a_damaged_owner_is_no_traceback(holder, tmp_path, owner):
    (tmp_path / "run" / OWNER_FILE).write_text(owner)
    with pytest.raises(InputError, match="in use by another process"):
        FolderLock(tmp_path / "run").acquire()


def test_a_place_that_cannot_be_a_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        FolderLock(tmp_path / "file" / "run").acquire()


def test_a_disk_without_locks_is_named(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(InputError, match="No locks available.*: choose another one, on a disk that has file locks"):
        FolderLock(tmp_path / "run").acquire()


# A run folder and its owner


@pytest.mark.parametrize("again", [False, True])
def test_a_folder_that_is_removed_while_the_run_works_ends_it(tmp_path, again):
    run = RunFolder(tmp_path / "run", {"seed": 1})
    run.start()
    record = {"stage": "teacher", "step": 1}
    run.log.write([record])
    shutil.rmtree(tmp_path / "run")
    if again:
        # What another run would have begun there.
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / LOCK_FILE).touch()
    for write in (lambda: run.log.write([record]), lambda: run.write_json("scores.json", {})):
        with pytest.raises(InputError, match="run was removed or replaced while this process worked in it"):
            write()
    run.close()


@pytest.mark.skipif(os.name != "posix", reason="only there a user may have no name")
def test_a_user_without_a_home_begins_a_run(tmp_path, monkeypatch):
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.getuid", lambda: 2**31 - 9)
    run = RunFolder(tmp_path / "run", {"seed": 1})
    run.start()
    run.close()
    assert (tmp_path / "run" / "config.yaml").exists() and not is_own_run(tmp_path / "run" / "config.yaml")


HOLD_RUN = """
import sys, time
from pathlib import Path
from ssdd_hub.runs.folder import RunFolder
run = RunFolder(Path(sys.argv[1]), {"seed": int(sys.argv[2])})
print("held", flush=True)
sys.stdin.readline()
run.start()
print("begun", flush=True)
time.sleep(60)
"""


def test_of_two_starts_at_once_one_is_refused_by_name_and_the_folder_is_of_the_other(tmp_path):
    command = [sys.executable, "-c", HOLD_RUN, str(tmp_path / "run"), "1"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout.readline() == "held\n"
        # The other has not written its settings yet, so these could be taken for the first.
        for seed in (1, 2):
            with pytest.raises(InputError, match=f"in use by process {first.pid} on .*: wait until it ends"):
                RunFolder(tmp_path / "run", {"seed": seed})
        first.stdin.write("\n")
        first.stdin.flush()
        assert first.stdout.readline() == "begun\n"
        with pytest.raises(InputError, match=f"in use by process {first.pid}"):
            RunFolder(tmp_path / "run", {"seed": 1})
        first.kill()
    begin(tmp_path / "run")
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text()) == {"seed": 1}


def begin(path, seed=1):
    run = RunFolder(path, {"seed": seed})
    run.start()
    return run


def is_free(folder):
    code = "import sys; from pathlib import Path; from ssdd_hub.runs.lock import FolderLock\n"
    code += "with FolderLock(Path(sys.argv[1])): pass"
    return subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True).returncode == 0


def test_a_notebook_may_begin_a_run_again_and_frees_it_by_closing_or_dropping_it(tmp_path):
    runs = [begin(tmp_path / "run") for _ in range(2)]
    runs.pop().close()
    assert not is_free(tmp_path / "run")
    runs.pop()
    gc.collect()
    assert is_free(tmp_path / "run")
    with pytest.raises(InputError, match="other settings"):
        RunFolder(tmp_path / "run", {"seed": 2})
    assert is_free(tmp_path / "run")


def test_another_thread_is_refused_until_the_first_ends(tmp_path):
    held, free = threading.Event(), threading.Event()

    def hold():
        FolderLock(tmp_path / "run").acquire()
        held.set()
        free.wait(60)

    thread = threading.Thread(target=hold, name="first")
    thread.start()
    assert held.wait(60)
    with pytest.raises(InputError, match="in use by another thread of this process, first: wait until"):
        FolderLock(tmp_path / "run").acquire()
    free.set()
    thread.join()
    with FolderLock(tmp_path / "run"):
        pass


def test_the_end_of_a_recipe_frees_its_folder_however_it_ends(tmp_path):
    kept = []

    def main():
        kept.append(RunFolder(tmp_path / "run", {"seed": 1}))
        raise InputError("no such images")

    with pytest.raises(SystemExit):
        report_errors(main)()
    assert kept and not (tmp_path / "run").exists()


@pytest.mark.parametrize("killed_at", ["replace", "fsync"])
def test_a_start_that_is_killed_while_the_settings_are_first_written_can_be_made_again(tmp_path, killed_at):
    code = HOLD_RUN.replace("sys.stdin.readline()", f"import os; os.{killed_at} = lambda *_: os.kill(os.getpid(), 9)")
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "run"), "1"], capture_output=True)
    left = [name for name in os.listdir(tmp_path / "run") if name.startswith(".config.yaml.")]
    assert done.returncode == -9 and left
    begin(tmp_path / "run").close()
    assert {*os.listdir(tmp_path / "run")} == {"config.yaml", LOCK_FILE}


def test_a_start_removes_what_killed_ones_left(tmp_path):
    begin(tmp_path).close()
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    for place in (
        "scores.json",
        "cells/a.json",
        "features/features-a/shard-00000",
        "checkpoints/teacher/step-1",
        "x/y",
    ):
        path = tmp_path / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_name(f".{path.name}.{process.pid}-1.tmp").write_text("half")
    (tmp_path / f".teacher.{process.pid}-1.tmp" / "new").mkdir(parents=True)
    # safetensors names its own like this; of the features other runs may be writing.
    (tmp_path / "checkpoints" / "teacher" / ".tmpaaaaaa").write_text("half")
    (tmp_path / "features" / "features-a" / ".tmpaaaaaa").write_text("half")
    begin(tmp_path)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob(".*")}
    assert left - LOCK_FILES == {"features/features-a/.tmpaaaaaa"}


def test_a_lock_that_is_a_link_or_a_fifo_is_refused(tmp_path):
    begin(tmp_path / "run").close()
    for make in (os.mkfifo, lambda path: path.symlink_to("config.yaml")):
        for name in LOCK_FILES:
            (tmp_path / "run" / name).unlink(missing_ok=True)
            make(tmp_path / "run" / name)
            with pytest.raises(InputError, match=f"{name} is (neither a file nor|a link)"):
                RunFolder(tmp_path / "run", {"seed": 1})
            (tmp_path / "run" / name).unlink()
