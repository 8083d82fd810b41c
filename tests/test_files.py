import os
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch

from ssdd_hub.files import atomic_path, is_temporary, new_folder, remove_abandoned, replaced_folder
from ssdd_hub.record import METADATA_FILE


def dead_process():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


DEAD, HOST = dead_process(), socket.gethostname().replace(".", "_")[:40]


# Permissions


@pytest.fixture(params=[0o002, 0o022, 0o027, 0o077])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_who_may_read_a_file_is_decided_by_the_umask(umask, tmp_path):
    tensors = {"a": torch.zeros(3)}
    for _ in range(2):
        with atomic_path(tmp_path / "deep" / "a.safetensors") as temporary:
            safetensors.torch.save_file(tensors, temporary)
        assert mode(tmp_path / "deep" / "a.safetensors") == 0o666 & ~umask
        os.chmod(tmp_path / "deep" / "a.safetensors", 0o600)
    for make, name in ((new_folder, "new"), (replaced_folder, "set")):
        with make(tmp_path / name) as new:
            (new / "data").mkdir()
            safetensors.torch.save_file(tensors, new / "data" / "a")
            (new / "b").write_text("")
        assert [mode(tmp_path / name / part) for part in ("", "data")] == [0o777 & ~umask] * 2
        assert [mode(tmp_path / name / part) for part in ("data/a", "b")] == [0o666 & ~umask] * 2


# What dead processes leave


@pytest.mark.parametrize("host", [f"@{HOST}", ""])
def test_what_a_dead_process_was_writing_is_removed_and_what_a_living_one_writes_stays(tmp_path, host):
    names = [".a.json.{}-1{}.tmp", ".set.{}-22{}.tmp", ".a.b.{}-3{}.tmp"]
    for process in (DEAD, os.getpid(), os.getppid()):
        for name in names:
            path = tmp_path / name.format(process, host)
            (path / "new").mkdir(parents=True) if "set" in name else path.write_text("half")
    remove_abandoned(tmp_path, "a.json")
    assert not (tmp_path / names[0].format(DEAD, host)).exists() and len(os.listdir(tmp_path)) == 8
    remove_abandoned(tmp_path)
    left = {name.format(process, host) for name in names for process in (os.getpid(), os.getppid())}
    assert {*os.listdir(tmp_path)} == left
    remove_abandoned(tmp_path, owned=True)
    assert os.listdir(tmp_path) == []


def test_of_another_host_or_of_nobody_only_what_is_old_is_removed(tmp_path):
    # safetensors names its own temporary files like the last one.
    names = [f".a.{DEAD}-1@elsewhere.tmp", f".b.{DEAD}-1@elsewhere.tmp", ".tmpaB3xYz", ".tmpaB3xY0"]
    for name in names:
        (tmp_path / name).write_text("half")
    for name in names[::2]:
        os.utime(tmp_path / name, (time.time() - 90000,) * 2)
    remove_abandoned(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted(names[1::2])


def test_a_number_that_another_process_has_by_now_is_no_owner(tmp_path):
    path = tmp_path / f".a.{os.getpid()}-1@{HOST}.tmp"
    path.write_text("half")
    os.utime(path, (time.time() - 80000,) * 2)
    remove_abandoned(tmp_path)
    assert not path.exists()


FOREIGN = [".thesis.tmp", "a.1-2.tmp", ".a.x-1.tmp", ".tmp", ".tmpfoo", ".gitignore"]


@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_of_no_process_stays(tmp_path, name):
    (tmp_path / name).write_text("dear")
    remove_abandoned(tmp_path)
    assert os.listdir(tmp_path) == [name]
    assert not is_temporary(name)


def test_a_link_is_removed_and_not_followed(tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_text("dear")
    (tmp_path / f".a.{DEAD}-1.tmp").symlink_to(tmp_path / "kept")
    remove_abandoned(tmp_path)
    assert (tmp_path / "kept" / "file").exists() and os.listdir(tmp_path) == ["kept"]


KILLED = """
import os, sys
from pathlib import Path
from ssdd_hub.files import replaced_folder
renames, rename = [], Path.rename

def dies(path, target):
    if len(renames) == int(sys.argv[2]):
        os.kill(os.getpid(), 9)
    renames.append(path)
    return rename(path, target)

Path.rename = dies
with replaced_folder(Path(sys.argv[1])) as new:
    (new / "ssdd_hub.json").write_text("new")
"""


@pytest.mark.parametrize("renames", [0, 1])
def test_a_kill_while_a_set_is_replaced_leaves_nothing_behind_the_next_start(tmp_path, renames):
    folder = tmp_path / "set"
    with replaced_folder(folder) as new:
        (new / METADATA_FILE).write_text("old")
    killed = subprocess.run([sys.executable, "-c", KILLED, str(folder), str(renames)])
    assert killed.returncode == -9 and len(os.listdir(tmp_path)) == 2
    with pytest.raises(KeyboardInterrupt), replaced_folder(folder):
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == ["set"] and (folder / METADATA_FILE).read_text() == "old"


def test_temporary_names_are_of_the_process_and_never_the_same(tmp_path):
    with atomic_path(tmp_path / "a") as one, atomic_path(tmp_path / "a") as other:
        assert one != other and is_temporary(one.name) and f".a.{os.getpid()}-" in one.name
        for path in (one, other):
            path.write_text(path.name)
    assert sorted(os.listdir(tmp_path)) == ["a"] and Path(tmp_path / "a").read_text() == one.name
