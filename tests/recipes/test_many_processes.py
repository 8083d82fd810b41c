"""What starts many processes: configs of `accelerate launch`, a script for SLURM, and restarts after a kill."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType

from ssdd_hub import DistilledSet

ROOT = Path(__file__).parents[2]
CONFIGS = {path.stem: path for path in sorted((ROOT / "recipes" / "configs" / "accelerate").glob("*.yaml"))}
SCRIPT = ROOT / "recipes" / "slurm" / "distill.sbatch"
ENVIRONMENT = {"ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
SMALL = ["--config", "smoke", "--run.threads", "1", "--evaluate.seeds", "1", "--distiller.own-networks", "true"]
# Long enough for a kill in their midst.
SMALL += ["--distiller.steps", "60"]
# What SLURM would say and do on two machines: here both are this one.
SLURM = {"SLURM_JOB_NODELIST": "a,b", "SLURM_JOB_NUM_NODES": "2", "PROCESSES": "1"}
COMMANDS = {"scontrol": "printf 'localhost\\nlocalhost\\n'", "srun": 'shift\n"$@" &\nfirst=$!\n"$@"\nwait $first'}


def start(*command, **environment):
    environment = {**os.environ, **ENVIRONMENT, **environment}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def launch(name, *options):
    given = ["--config_file", str(CONFIGS[name]), *options, "recipes/distill.py"]
    return [sys.executable, "-m", "accelerate.commands.launch", *given, *SMALL]


def finish(*running):
    for process in running:
        _, errors = process.communicate(timeout=900)
        assert process.returncode == 0, errors


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def assert_same(folder, expected):
    ours, theirs = (DistilledSet.load(each / "distilled") for each in (folder, expected))
    assert torch.equal(ours.images, theirs.images) and torch.equal(ours.targets, theirs.targets)
    assert (folder / "log.jsonl").read_bytes() == (expected / "log.jsonl").read_bytes()


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_is_one_of_accelerate_and_says_how_it_is_used(name):
    # Unknown names raise.
    config = load_config_from_file(str(CONFIGS[name]))
    assert config.distributed_type == DistributedType.MULTI_GPU and config.num_processes % config.num_machines == 0
    command = re.search(r"(?m)^# Command: (.*)$", CONFIGS[name].read_text())[1]
    assert f"--config_file recipes/configs/accelerate/{name}.yaml" in command
    assert f"configs/accelerate/{name}.yaml" in (ROOT / "recipes" / "scale.md").read_text()


def test_the_script_for_slurm_is_one_of_bash():
    assert subprocess.run(["bash", "-n", SCRIPT]).returncode == 0


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The folder of a run of two processes, each with a pool of its own."""
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    finish(start(*launch("cpu"), "--output", str(folder)))
    return folder


@pytest.mark.slow
def test_after_a_process_is_killed_all_start_again_and_come_to_the_same_bytes(tmp_path, undisturbed):
    folder = tmp_path / "run"
    running = start(*launch("cpu", "--max_restarts", "1"), "--output", str(folder))
    while not (folder / "checkpoints" / "distiller" / "step-00000004.safetensors").exists():
        assert running.poll() is None, running.communicate()
        time.sleep(0.01)
    children = psutil.Process(running.pid).children(recursive=True)
    (second,) = (child for child in children if child.environ().get("RANK") == "1")
    second.send_signal(signal.SIGKILL)
    finish(running)
    assert_same(folder, undisturbed)


@pytest.mark.slow
def test_two_machines_of_slurm_do_what_one_does(tmp_path, undisturbed):
    for name, body in COMMANDS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    paths = f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    command = ["bash", str(SCRIPT), *SMALL, "--output", str(tmp_path / "run")]
    finish(start(*command, **SLURM, PATH=paths, SLURM_JOB_ID=str(free_port())))
    assert_same(tmp_path / "run", undisturbed)


@pytest.mark.slow
def test_two_machines_of_accelerate_do_what_one_does(tmp_path, undisturbed):
    place = ["--num_processes", "2", "--main_process_ip", "127.0.0.1", "--main_process_port", str(free_port())]
    commands = (launch("two_machines", *place, "--machine_rank", rank) for rank in ("0", "1"))
    finish(*(start(*command, "--output", str(tmp_path / "run")) for command in commands))
    assert_same(tmp_path / "run", undisturbed)
