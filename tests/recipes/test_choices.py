"""Every setting that is a name out of a list: a misspelt one is refused with the nearest, found by trying them all."""

import re
from functools import cache
from importlib import import_module

import pytest
from test_extreme_values import CLASSES

from ssdd_hub.errors import InputError, SettingsError
from ssdd_hub.models.build import build_student
from ssdd_hub.models.features import create_backbone
from ssdd_hub.settings import _kinds, parse_config

NEEDED = {"evaluate": ["--set", "a"], "audit": ["--set", "a"], "publish": ["--repo", "me/x"]}
# What has no list: places, names of files, columns, splits and branches, and texts.
FREE = """
    cache output name config revision split heldout_split image_column label_column backbone checkpoint expert
    set repo tag license license_reason scores teacher collection sets datasets students classifier forms backbones
""".split()


def problem_of(recipe, name, value):
    """Returns what is said about a setting of this value; None where nothing is wrong with it."""
    argv = [*NEEDED.get(recipe, []), f"--{name}={value}"]
    try:
        parse_config(getattr(import_module(recipe), CLASSES[recipe]), None, argv)
    except SettingsError as error:
        return "\n".join(error.problems)
    return None


@cache
def choices_of(recipe, name):
    """Returns the names that a refusal lists; none where the setting takes any text."""
    told = problem_of(recipe, name, "qqqqqqqq")
    listed = re.search(
        r"(?:use one of|must be(?: one of| some of)?) ([\w\-]+(?:(?:, | or )[\w\-]+)*)(?:, got|;|$)", told or ""
    )
    return re.split(", | or ", listed[1]) if listed else []


TEXTS = [
    (recipe, name)
    for recipe in CLASSES
    for name, kind in _kinds(getattr(import_module(recipe), CLASSES[recipe])).items()
    if kind in (str, str | None, list[str])
]


@pytest.mark.parametrize(("recipe", "name"), TEXTS)
def test_a_misspelt_choice_is_refused_with_the_nearest(recipe, name):
    choices = choices_of(recipe, name)
    assert choices or name.rpartition(".")[2] in FREE, "a text that is no free one has a list of choices"
    for choice in choices:
        # A letter is missing, or one too many where it might be another's.
        alike = [each for each in choices if each.startswith(choice[:-1])]
        told = problem_of(recipe, name, choice[:-1] if alike == [choice] else f"{choice}{choice[-1]}")
        assert f"; the nearest is {choice}" in (told or ""), (choice, told)


def test_the_lists_are_found():
    found = {name for recipe, name in TEXTS if choices_of(recipe, name)}
    named = {"init", "method.name", "parameterisation.name", "references", "protocols", "teacher_training.optimizer"}
    named |= {"teacher_training.objective", "targets.transform", "distiller.precision", "run.trackers", "rank.by"}
    assert named <= found and len(found) >= 25


@pytest.mark.parametrize(
    ("given", "meant"), [("adamwe", "adamw"), ("ADAMW", "adamw"), ("sdg", "sgd"), ("Autoo", "auto"), ("zzz", None)]
)
def test_letters_may_be_added_capital_or_swapped(given, meant):
    told = problem_of("distill", "teacher_training.optimizer", given)
    assert told.endswith(f"got {given!r}" + (f"; the nearest is {meant}" if meant else ""))


def test_each_of_several_names_is_named_with_its_nearest():
    told = problem_of("evaluate", "protocols", "prob,knn,krrr")
    assert told.endswith("got 'prob', 'krrr'; the nearest is probe and krr")


@pytest.mark.parametrize(
    ("recipe", "argv", "near"),
    [
        ("distill", ["--config", "photo"], "photos"),
        ("evaluate", ["--set", "a", "--config", "cifar100_smal_evaluation"], "cifar100_small_evaluation"),
        ("train_teacher", ["--config", "teachers"], "teacher"),
    ],
)
def test_a_misspelt_name_of_settings_is_refused_with_the_nearest(refuse, recipe, argv, near):
    refuse(
        ["--config must be the path of a YAML file, or of one of benchmark, ", f"; the nearest is {near}"],
        recipe,
        *argv,
    )


@pytest.mark.parametrize("name", ["cifar100_small_evaluation", "cifar100_small_evaluation.yaml"])
def test_settings_of_an_evaluation_are_known_by_name_also_for_named_sets(refuse, name):
    # The set is looked for, so the file was found.
    told = refuse(["no_such"], "evaluate", "--set", "./no_such/set", "--config", name)
    assert "--config" not in told


def test_a_misspelt_network_is_refused_with_the_nearest():
    with pytest.raises(InputError, match=r"list_models\(\); the nearest is ssdd_convnet[0-9]"):
        build_student("ssdd_convnet9", num_targets=2, in_chans=1, image_size=16)
    with pytest.raises(InputError, match="; the nearest is resnet18"):
        create_backbone("resnet18o", pretrained=False)
    with pytest.raises(InputError, match="norm must be one of .*, got 'batches'; the nearest is batch"):
        build_student("ssdd_convnet3", num_targets=2, in_chans=1, image_size=16, norm="batches")
