"""What the documents say of the code."""

import re
from pathlib import Path

import pytest

from ssdd_hub.teachers.objectives.registry import OBJECTIVES

ROOT = Path(__file__).parents[1]
DOCUMENTS = ["README.md", "CONTRIBUTING.md", "recipes/README.md"]


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def test_every_objective_is_listed_with_its_paper_and_what_it_keeps():
    for name, objective in OBJECTIVES.items():
        row = f"| `{name}` | {objective.citation} | {', '.join(objective.needs) or '-'} |"
        assert row in read("recipes/README.md").splitlines()


def test_the_number_of_objectives_is_right():
    assert f"any of {len(OBJECTIVES)} objectives" in read("README.md")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_file_that_is_named_is_there(document):
    named = set(re.findall(r"(?:recipes|src|tests|configs|model_cards)/[\w/.-]+\.(?:py|yaml|md)", read(document)))
    assert named
    for name in named:
        assert (ROOT / name).exists() or (ROOT / "recipes" / name).exists(), name


def test_the_objective_of_the_example_in_plain_pytorch_trains():
    import timm
    import torch

    (example,) = (
        code for code in re.findall(r"```python\n(.*?)```", read("recipes/README.md"), re.S) if "byol" in code
    )
    names = {"view_1": torch.rand(4, 3, 32, 32), "view_2": torch.rand(4, 3, 32, 32)}
    exec(example, names)
    names["loss"].backward()
    assert names["loss"].isfinite() and names["backbone"].conv1.weight.grad.abs().sum() > 0
    assert isinstance(names["backbone"], timm.models.resnet.ResNet)
