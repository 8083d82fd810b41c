import errno
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from accelerate.utils import DistributedType
from safetensors import SafetensorError
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from ssdd_hub.errors import InputError, SettingsError
from ssdd_hub.runs import launch
from ssdd_hub.runs.folder import LaunchSettings, RunSettings
from ssdd_hub.runs.launch import build_accelerator, report_errors


def end(error, capsys):
    """Runs a recipe that ends with this error; returns its status and what it printed."""

    @report_errors
    def main():
        """A recipe."""
        raise error

    with pytest.raises(SystemExit) as ended:
        main()
    printed = capsys.readouterr()
    assert printed.out == "" and "Traceback" not in printed.err
    return ended.value.code, printed.err


@pytest.mark.parametrize(
    ("error", "ended"),
    [
        (InputError("no such folder: name another"), (2, "error: no such folder: name another\n")),
        (SettingsError(["a must be 1", "b is no setting"]), (2, "error:\n  - a must be 1\n  - b is no setting\n")),
        (KeyboardInterrupt(), (130, "error: interrupted; the same command goes on from the last checkpoint\n")),
    ],
)
def test_a_mistake_or_an_interruption_is_a_message_and_a_status(error, ended, capsys):
    assert end(error, capsys) == ended


def test_under_a_launcher_the_message_is_last_or_it_says_how_to_make_it_so(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("ACCELERATE_DYNAMO_MODE", "default")
    printed = end(InputError("name another"), capsys)[1]
    assert printed.startswith("error: name another\n(accelerate launch adds a traceback") and "--quiet" in printed
    # What torchrun ends its report with.
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    assert end(InputError("name another"), capsys) == (2, "error: name another\n")
    failure = ProcessFailure(local_rank=0, pid=1, exitcode=2, error_file=str(tmp_path / "error.json"))
    assert "traceback : error: name another\n====" in str(ChildFailedError("distill.py", {0: failure}))


REFUSED = (
    (OSError(errno.ENOSPC, "No space left on device", "runs/a/log.jsonl"), r"No space left.*, runs/a/log.jsonl.*room"),
    (OSError(errno.EFBIG, "File too large"), r"File too large\): .*ulimit -f"),
    (PermissionError(errno.EACCES, "Permission denied", "/x"), r"Permission denied, /x\): allow"),
    (
        SafetensorError("Error while serializing: I/O error: No space (os error 28)"),
        r"No space left on device\): make",
    ),
)


@pytest.mark.parametrize(("error", "words"), REFUSED)
def test_what_the_system_refuses_is_told_in_words(error, words, capsys):
    status, printed = end(error, capsys)
    assert status == 1 and re.search(f"^error: the system refused to go on .{words}.*What was saved", printed), printed


def test_a_removed_working_directory_is_told_in_words(capsys, tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(FileNotFoundError) as caught:
        Path("run").resolve()
    assert end(caught.value, capsys) == (
        1,
        "error: the working directory was removed: go to another one, and give the same command again\n",
    )


OTHERS = [ValueError("a bug"), RuntimeError("out of memory"), SystemExit(0), FileNotFoundError(2, "none", "/x")]


@pytest.mark.parametrize("error", OTHERS)
def test_any_other_error_keeps_its_traceback(error):
    def main():
        raise error

    with pytest.raises(type(error)) as caught:
        report_errors(main)()
    assert caught.value is error


def test_a_recipe_that_ends_well_is_left_alone(capsys):
    done = []

    def main():
        """What it does."""
        done.append(1)

    wrapped = report_errors(main)
    assert wrapped() is None and done == [1]
    assert wrapped.__doc__ == "What it does."
    assert capsys.readouterr().err == ""


def test_an_accelerator_keeps_its_trackers_below_the_run_folder(tmp_path):
    accelerator = build_accelerator(RunSettings(), tmp_path)
    assert accelerator.num_processes >= 1 and accelerator.log_with == []
    assert Path(accelerator.project_dir) == tmp_path / "trackers"


def test_a_launch_that_shards_the_model_is_refused(tmp_path, monkeypatch):
    class Sharded:
        distributed_type = DistributedType.FSDP

        def __init__(self, **options):
            pass

    monkeypatch.setattr(launch, "Accelerator", Sharded)
    with pytest.raises(InputError, match="a few megabytes and is not sharded: launch without .*FSDP"):
        build_accelerator(RunSettings(), tmp_path)


CHILD = """
import os, sys, time
from ssdd_hub.runs.launch import end_with_launcher
end_with_launcher()
print(os.getpid(), flush=True)
time.sleep(100)
"""
PARENT = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone tells a process of the end of its parent")
@pytest.mark.parametrize("launcher", ["ACCELERATE_DYNAMO_MODE", "TORCHELASTIC_RUN_ID", None])
def test_a_process_ends_with_its_launcher_and_goes_on_without_a_shell(launcher):
    environment = {name: value for name, value in os.environ.items() if name not in launch._LAUNCHED}
    environment |= {launcher: "no"} if launcher else {}
    command = [sys.executable, "-c", PARENT, CHILD]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as parent:
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    deadline = time.monotonic() + (30 if launcher else 1)
    while time.monotonic() < deadline and child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.05)
    lives = child.is_running() and child.status() != psutil.STATUS_ZOMBIE
    if lives:
        child.send_signal(signal.SIGKILL)
    assert lives == (launcher is None)


def test_the_precision_of_the_launcher_is_the_default_and_a_conflict_is_refused(monkeypatch):
    assert LaunchSettings().mixed_precision == "no"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert LaunchSettings().mixed_precision == RunSettings(mixed_precision="bf16").mixed_precision == "bf16"
    with pytest.raises(SettingsError, match="run.mixed_precision is no, and accelerate launch says .* bf16: leave"):
        RunSettings(mixed_precision="no")
    # What it says where the user did not.
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert RunSettings(mixed_precision="bf16").mixed_precision == "bf16"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(SettingsError, match="launch with --mixed_precision no or bf16"):
        RunSettings()


def test_gradients_that_the_launcher_accumulates_are_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    with pytest.raises(InputError, match="launch without --gradient_accumulation_steps 4"):
        build_accelerator(RunSettings(), tmp_path)
