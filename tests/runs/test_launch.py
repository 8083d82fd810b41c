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
import torch
from accelerate.state import AcceleratorState
from safetensors import SafetensorError
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from ssdd_hub.errors import InputError, SettingsError
from ssdd_hub.files import atomic_path
from ssdd_hub.runs import launch
from ssdd_hub.runs.launch import build_accelerator, report_errors
from ssdd_hub.runs.run_settings import LaunchSettings, RunSettings


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
    (MemoryError(), r"Cannot allocate memory\): close"),
    (OSError(errno.ENOMEM, "Cannot allocate memory"), r"Cannot allocate memory\): close"),
    (torch.OutOfMemoryError("CUDA out of memory"), r"Cannot allocate memory\): .*lower sizes of batches"),
    (
        SafetensorError("Error while serializing: I/O error: No space (os error 28)"),
        r"No space left on device\): make",
    ),
)


@pytest.mark.parametrize(("error", "words"), REFUSED)
def test_what_the_system_refuses_is_told_in_words(error, words, capsys):
    status, printed = end(error, capsys)
    assert status == 1 and re.search(f"^error: the system refused to go on .{words}.*What was saved", printed), printed


@pytest.mark.parametrize(("place", "kind"), [("run", "file"), ("run/checkpoints", "file"), ("run/a.json", "folder")])
def test_what_is_in_the_way_of_a_file_is_named(tmp_path, capsys, place, kind):
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).mkdir() if kind == "folder" else (tmp_path / place).touch()
    name = "run/a.json" if kind == "folder" else "run/checkpoints/step"
    with pytest.raises(OSError) as caught, atomic_path(tmp_path / name) as temporary:
        temporary.touch()
    words = f"{re.escape(str(tmp_path / 'run'))}.*: remove the {kind} that stands where a .* is needed"
    assert re.search(words, end(caught.value, capsys)[1])


def test_memory_that_torch_is_refused_is_told_in_words(capsys):
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)
    assert end(caught.value, capsys)[1].startswith("error: the system refused to go on (Cannot allocate memory)")


STREAMS = """
import os, sys
from ssdd_hub.runs.launch import report_errors

@report_errors
def main():
    print("settings", flush=True)
    sys.stderr.write("progress\\n")
    sys.stdin.readline()
    print("scores", flush=True)
    open(sys.argv[1], "w").close()

main()
"""


def test_a_reader_of_the_output_that_is_gone_is_told_in_words(tmp_path):
    command = [sys.executable, "-c", STREAMS, tmp_path / "done"]
    pipes = dict.fromkeys(["stdin", "stdout", "stderr"], subprocess.PIPE)
    with subprocess.Popen(command, text=True, **pipes) as process:
        assert process.stdout.readline() == "settings\n"
        process.stdout.close()
        process.stdin.write("\n")
        process.stdin.flush()
        told = process.stderr.read()
    assert process.returncode == 1 and not (tmp_path / "done").exists()
    assert told.splitlines() == [
        "progress",
        "error: what read the output is gone; the same command goes on from the last checkpoint",
    ]


@pytest.mark.skipif(os.name != "posix", reason="closes streams by a shell")
def test_closed_streams_are_no_error(tmp_path):
    command = [sys.executable, "-c", STREAMS, str(tmp_path / "done")]
    done = subprocess.run(["sh", "-c", '"$@" >&- 2>&- </dev/null', "sh", *command])
    assert done.returncode == 0 and (tmp_path / "done").exists()


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


UNUSED = ["USE_FSDP", "USE_DEEPSPEED", "USE_MEGATRON_LM", "USE_PARALLELISM_CONFIG", "DYNAMO_BACKEND"]


@pytest.mark.parametrize("name", UNUSED)
def test_a_launch_that_shards_or_compiles_is_refused_and_one_that_says_no_is_not(tmp_path, monkeypatch, name):
    monkeypatch.setenv(f"ACCELERATE_{name}", "inductor" if name == "DYNAMO_BACKEND" else "true")
    with pytest.raises(InputError, match=f"a few megabytes is not sharded.*: launch without --{name.lower()}$"):
        build_accelerator(RunSettings(), tmp_path)
    monkeypatch.setenv(f"ACCELERATE_{name}", "no" if name == "DYNAMO_BACKEND" else "false")
    build_accelerator(RunSettings(threads=1), tmp_path)


@pytest.mark.parametrize("name", ["ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "LOCAL_WORLD_SIZE"])
def test_what_the_launcher_says_in_vain_is_not_blamed_on_a_setting_alone(tmp_path, monkeypatch, name):
    monkeypatch.setenv(name, "many")
    with pytest.raises(InputError, match="or a setting of the launcher, cannot be used: .*'many'"):
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


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone tells a process of the end of its parent")
def test_a_process_whose_launcher_is_gone_already_ends_at_once():
    environment = {**os.environ, launch.LAUNCHER: "1"}
    ended = subprocess.run([sys.executable, "-c", CHILD], env=environment, timeout=90, check=False)
    assert ended.returncode == -signal.SIGTERM


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


@pytest.mark.parametrize(("quick", "precision"), [(True, "bf16"), (False, "no")])
def test_a_processor_that_emulates_bf16_computes_in_float32_and_says_so(
    monkeypatch, tmp_path, capsys, quick, precision
):
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(launch, "is_quick_in_bf16", lambda device: quick)
    try:
        assert build_accelerator(RunSettings(threads=1, mixed_precision="bf16"), tmp_path).mixed_precision == precision
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    assert ("float32 in place of --run.mixed-precision bf16" in capsys.readouterr().out) == (precision == "no")


def test_gradients_that_the_launcher_accumulates_are_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    with pytest.raises(InputError, match="launch without --gradient_accumulation_steps 4"):
        build_accelerator(RunSettings(), tmp_path)
