"""The page of answers: every block runs as it stands, in a folder of photographs and of the run that it names."""

import os
import re
import shlex
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from ssdd_hub.cli import main

PAGE = (Path(__file__).parents[1] / "recipes" / "howto.md").read_text(encoding="utf-8")
# As each of them would be typed, in the fewest steps.
MADE = "distill photos --config smoke --data.image-size 32 --teacher-training.max-steps 1 --distiller.steps 2"
MADE += " --student-training.epochs 1 --evaluate.seeds 1 --run.threads 1"


def answers(part):
    """Returns the blocks of code under a heading of the page, by their question."""
    text = re.search(rf"(?ms)^## {part}$(.*?)(?=^## |\Z)", PAGE)[1]
    found = {title: re.findall(r"(?ms)^```\w*\n(.*?)^```$", answer) for title, answer in QUESTION.findall(text)}
    return {title: "\n".join(blocks) for title, blocks in found.items() if blocks}


QUESTION = re.compile(r"(?ms)^### (.*?)\?$\n(.*?)(?=^### |\Z)")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with photographs of mixed sizes and two classes, and what the page says was made of them."""
    root, drawn = tmp_path_factory.mktemp("howto"), np.random.default_rng(0)
    for index in range(90):
        photo = root / "photos" / ("cat" if index % 2 else "dog") / f"{index}.jpg"
        photo.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(drawn.integers(0, 256, (40 + index, 140 - index, 3), dtype=np.uint8)).save(photo)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("ACCELERATE_USE_CPU", "true")
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", root / "cache")
        patch.setattr("matplotlib.figure.Figure.set_layout_engine", lambda *_, **__: None)
        assert main(shlex.split(MADE)) == 0
        yield root


def test_the_blocks_on_using_a_set_run_one_after_the_other(place):
    names, blocks = {}, answers("Use a set")
    for title, block in blocks.items():
        if "transformers" not in title:
            exec(block, names)
        if "fine-tune" in title:
            assert names["student"](names["inputs"]).shape == (81, 2) and set(names["few"].label_names) == {
                "cat",
                "dog",
            }
            assert names["predicted"].shape == names["few"].labels.shape
        if "read it" in title:
            assert torch.equal(names["images"], names["distilled"].images)
            assert torch.equal(names["first"], names["images"][0])
    assert len(blocks) == 6
    images, targets = next(iter(names["loader"]))
    assert images.shape[1:] == (3, 32, 32) and targets.shape[1] == names["distilled"].targets.shape[1]
    assert len(names["loader"].dataset) == len(names["distilled"].images) + 81


@pytest.mark.filterwarnings("ignore:'pin_memory' argument:UserWarning")
def test_the_trainer_of_transformers_pretrains_on_a_set(place):
    pytest.importorskip("transformers", reason="the block needs transformers, which is not installed")
    names = {}
    for title, block in answers("Use a set").items():
        if "transformers" in title or "pre-train a network" in title or "read it" in title or "fine-tune" in title:
            exec(block, names)
    assert names["network"].training and list((place / "runs" / "trainer").iterdir())


@pytest.mark.parametrize("card", ["distilled", "teacher"])
def test_the_code_of_the_cards_of_a_run_runs_where_they_lie(place, card, monkeypatch):
    folder = place / "runs" / "photos" / card
    monkeypatch.chdir(folder)
    names, blocks = {}, re.findall(r"(?ms)^```python\n(.*?)^```$", (folder / "README.md").read_text("utf-8"))
    for block in blocks:
        exec(block, names)
    assert len(blocks) == (3 if card == "distilled" else 2) and names["outputs"].isfinite().all()


@pytest.mark.slow
def test_the_blocks_on_making_a_set_and_on_comparing_two_run(place, capsys):
    names = {}
    for block in answers("Make a set").values():
        exec(block, names)
        assert names["distilled"].images.shape == (10, 3, 32, 32)
    made = names["distilled"].folder.parent
    assert {path.name for path in made.parent.iterdir()} >= {"mine", "rows", "weights", "sources"}
    (compare,) = (block for title, block in answers("Look at sets").items() if "compare" in title)
    assert main(shlex.split(compare)[1:]) == 0
    assert (place / "runs" / "two" / "report.html").is_file()
    assert re.search(r"(?m)^mine\b", capsys.readouterr().out)


def test_the_commands_on_looking_at_a_set_run(place, capsys):
    (look,) = (block for title, block in answers("Look at sets").items() if "see what" in title)
    for line in look.splitlines():
        assert main(shlex.split(line, comments=True)[1:]) == 0
    assert (place / "runs" / "photos" / "gallery.html").is_file()
    told = capsys.readouterr().out
    assert "0 error(s)" in told and "\nmethod " in told
    assert os.listdir(place / "photos") in (["cat", "dog"], ["dog", "cat"])
