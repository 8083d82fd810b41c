"""Recipes as their command lines run them, in this process; `reference.warm.Running` starts a process of its own."""

import signal
import sys
import time
from importlib import import_module
from pathlib import Path

import datasets
import pytest

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture(scope="session")
def launch(tmp_path_factory):
    """Runs a recipe in this process, offline and on the CPU."""
    cache = tmp_path_factory.mktemp("cache")

    def launch(recipe, *arguments):
        argv = [str(RECIPES / f"{recipe}.py"), "--run.threads", "1", *map(str, arguments)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
            patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
            patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
            patch.setenv("ACCELERATE_USE_CPU", "true")
            # Half of the time of a picture; tests/results and the runs in processes of their own lay them out.
            patch.setattr("matplotlib.figure.Figure.set_layout_engine", lambda *_, **__: None)
            patch.setattr(sys, "argv", argv)
            import_module(recipe).main()

    return launch


@pytest.fixture
def refuse(launch, capsys):
    """Runs a recipe that must end with a message that holds all of these words, and returns it."""

    def refuse(words, recipe, *arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            launch(recipe, *arguments)
        message = capsys.readouterr().err
        assert stopped.value.code == 2 and "Traceback" not in message
        assert message.lstrip().startswith("error:") or "\nerror:" in message
        assert not [word for word in words if word not in message], message
        return message

    return refuse


@pytest.fixture
def kill_when():
    """Kills a run with `kill -9` as soon as something holds; the run must not be over before."""

    def kill_when(run, holds):
        deadline = time.monotonic() + 240
        while not holds() and run.process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.002)
        run.process.kill()
        assert run.wait()[0] == -signal.SIGKILL, "the run was over before it was killed"

    return kill_when
