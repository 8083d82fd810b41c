import platform
import subprocess
import sys

import pytest

from ssdd_hub.runs import launch
from ssdd_hub.runs.launch import keep_freed_memory

COUNT = """
import resource, torch
from ssdd_hub.runs.launch import keep_freed_memory
def page_faults():
    counts = []
    for _ in range(21):
        torch.ones(2**24)
        counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
    return counts[-1] - counts[0]
print(page_faults(), keep_freed_memory(), page_faults(), keep_freed_memory(False), page_faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc can be told")
def test_freed_memory_is_used_again_as_long_as_that_is_wished():
    command = [sys.executable, "-c", COUNT]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    by_default, kept, given_back = (int(count) for count in printed[::2])
    assert printed[1::2] == ["True", "True"]
    # Now and then a block finds no place, and the process grows.
    assert kept < by_default / 5 and kept < given_back / 5


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("musl", "1.2"))
    monkeypatch.setattr(launch.ctypes, "CDLL", lambda name: pytest.fail("there is nobody to tell"))
    assert not keep_freed_memory()
