"""Scripts in processes of their own, forked from one that has imported the packages: seconds less for each of them.

The server has imported and computed nothing else. What a fork may hide, such as an import that only works after
another one, `recipes/test_distill.py` sees, which launches a fresh interpreter, its slow tests two by torchrun.
"""

import functools
import multiprocessing
import os
import runpy
import socket
import sys
import tempfile
from multiprocessing import forkserver
from pathlib import Path
from unittest import mock

import numpy as np

ENVIRONMENT = {"ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
# torch imports its compiler when the first optimizer is built.
PRELOAD = [
    *("pytest", "torch", "torch._dynamo", "torch.nn.parallel", "torchvision.transforms.v2", "timm", "accelerate"),
    *("datasets", "lightly.loss", "lightly.models", "lightly.transforms", "matplotlib.pyplot", "sklearn.datasets"),
]


@functools.cache
def server():
    """Starts the server; OpenMP and the Hub's client read their variables when they are imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    with mock.patch.dict(os.environ, ENVIRONMENT):
        forkserver.ensure_running()
    return context


def run_script(script, arguments, environment, printed, errors):
    """What a process does: `python script arguments`."""
    for path, stream in ((printed, sys.stdout), (errors, sys.stderr)):
        with open(path, "wb", buffering=0) as file:
            os.dup2(file.fileno(), stream.fileno())
    os.environ.update(environment)
    # Forks share the state of NumPy's global generator, which would hide its use; Python seeds its own anew.
    np.random.seed()
    sys.argv = [script, *arguments]
    sys.path.insert(0, str(Path(script).parent))
    runpy.run_path(script, run_name="__main__")


class Running:
    """A script that has been started, with a command line and variables beside `ENVIRONMENT`."""

    def __init__(self, script, *arguments, **environment):
        self.folder = tempfile.TemporaryDirectory()
        self.files = [Path(self.folder.name, name) for name in ("stdout", "stderr")]
        given = (str(script), [str(argument) for argument in arguments], {**ENVIRONMENT, **environment})
        self.process = server().Process(target=run_script, args=(*given, *map(str, self.files)))
        self.process.start()

    def wait(self, timeout=300):
        """Returns exit status, and what was printed on stdout and stderr."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
        texts = [file.read_text() if file.exists() else "" for file in self.files]
        self.folder.cleanup()
        return self.process.exitcode, *texts

    def finish(self, timeout=300):
        """Waits for a good end, and returns what was printed."""
        status, printed, errors = self.wait(timeout)
        assert status == 0, errors
        return printed


def start_two(script, *arguments):
    """Starts a script on two processes, and tells each what torchrun tells it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    group["LOCAL_WORLD_SIZE"] = "2"
    return [Running(script, *arguments, **group, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in (0, 1)]
