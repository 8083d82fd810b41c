"""Rendezvous of the processes of a run that starts again."""

from datetime import timedelta

import pytest
from torch.distributed import TCPStore
from torch.distributed.rendezvous import rendezvous

from ssdd_hub.runs.restarts import ATTEMPT, MACHINES, process_group_settings

TIMEOUT = timedelta(seconds=30)


@pytest.fixture
def launcher(monkeypatch):
    """A launcher of one machine, which serves a store for all attempts; returns the store."""
    server = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    told = {
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": server.port,
        "RANK": 0,
        "WORLD_SIZE": 1,
        ATTEMPT: 0,
        MACHINES: 1,
    }
    for name, value in {**told, "TORCHELASTIC_USE_AGENT_STORE": True}.items():
        monkeypatch.setenv(name, str(value))
    return server


def meet():
    """Returns the store of a process, its number, and how many there are."""
    return next(iter(rendezvous(process_group_settings(TIMEOUT).init_method, timeout=TIMEOUT)))


def test_a_new_attempt_does_not_read_the_keys_of_the_last_one(launcher, monkeypatch):
    first, again = meet()[0], meet()
    first.set("address", "of a process that is gone")
    assert again[1:] == (0, 1) and again[0].get("address") == b"of a process that is gone"
    monkeypatch.setenv(ATTEMPT, "1")
    assert not meet()[0].check(["address"])


@pytest.mark.parametrize(("name", "value"), [(MACHINES, "2"), (ATTEMPT, None)])
def test_processes_that_may_count_differently_or_not_at_all_meet_as_usual(launcher, monkeypatch, name, value):
    monkeypatch.delenv(name)
    if value:
        monkeypatch.setenv(name, value)
    found = process_group_settings(TIMEOUT)
    assert found.to_kwargs() == {"timeout": TIMEOUT}
