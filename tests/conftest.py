"""What several tests need: real images, a teacher small enough to run in milliseconds, and a Hub on loopback."""

import os
import time

import pytest
import torch
from accelerate import Accelerator
from hub_server import HubServer, connected

from ssdd_hub.data.bank import DataSettings, load_images
from ssdd_hub.models.convnet import ConvNet
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.teachers.teacher import Teacher


def pytest_configure(config):
    """Gives each worker of pytest-xdist, and all that it starts, cores of its own, for which no other's threads wait.

    Time and memory are measured by one process alone (`-n 0`).
    """
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker and hasattr(os, "sched_setaffinity"):
        cores, workers = sorted(os.sched_getaffinity(0)), int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
        mine = cores[int(worker.removeprefix("gw")) % len(cores) :: workers]
        os.sched_setaffinity(0, mine)
        torch.set_num_threads(len(mine))


@pytest.fixture(scope="session")
def digits():
    """scikit-learn's digits as the default recipe loads them: source and held-out images, 16x16, grey."""
    return load_images(DataSettings(), progress=False)


@pytest.fixture
def accelerator():
    return Accelerator(cpu=True)


@pytest.fixture(scope="session")
def small_backbone():
    """Builds a network of 24 features for images of 16x16, whose batch statistics are not those of a fresh one."""

    def build(seed=0, channels=1):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            backbone = ConvNet((4, 6, 6), "batch", channels, image_size=16, num_targets=0)
            backbone.train()(torch.randn(8, channels, 16, 16))
        return backbone

    return build


@pytest.fixture(scope="session")
def small_teacher(small_backbone):
    """Builds a frozen `small_backbone` in a pixel space of its own."""

    def build(seed=0, channels=1, dtype=torch.float32):
        space = PixelSpace((0.4,) * channels, (0.3,) * channels)
        return Teacher(small_backbone(seed, channels).to(dtype), space, 16, f"small-{seed}", "mit")

    return build


@pytest.fixture
def hub(tmp_path):
    """A Hub on loopback, with which the client of this process talks; nobody is logged in.

    `ann` may write, also for the organisation `lab`; `bob` may write; `eve` of `lab` may read alone.
    """
    with HubServer(tmp_path / "hub") as server, connected(server, tmp_path / "home"):
        server.add_user("ann", "hf_ann", orgs=["lab"])
        server.add_user("bob", "hf_bob")
        server.add_user("eve", "hf_eve", role="read", orgs=["lab"])
        yield server


@pytest.fixture
def waits(monkeypatch):
    """The seconds that would have been slept, by this package or the Hub's client; nobody sleeps."""
    slept = []
    monkeypatch.setattr(time, "sleep", slept.append)
    return slept
