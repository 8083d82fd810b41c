import os
import platform

import torch

from ssdd_hub.runs import machine
from ssdd_hub.runs.machine import describe_machine, describe_versions


def test_the_machine_is_described_without_its_name():
    described = describe_machine(torch.device("cpu"), processes=2)
    assert described.keys() >= {"platform", "python", "cpus", "processes", "threads_per_process", "device"}
    assert (described["device"], described["processes"]) == ("cpu", 2)
    assert described["threads_per_process"] == torch.get_num_threads() and 1 <= described["cpus"] <= os.cpu_count()
    assert platform.node() not in described.values()


def test_versions_are_those_of_the_installed_packages(monkeypatch):
    versions = describe_versions()
    assert versions.keys() == set(machine.PACKAGES) and all(version[0].isdigit() for version in versions.values())
    monkeypatch.setattr(machine, "PACKAGES", ("torch", "no-such-package"))
    assert list(describe_versions()) == ["torch"]
