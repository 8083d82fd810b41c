"""Old names of settings, and what a misspelt name may have meant; all else of `parse_config` is in recipes/."""

import os
import time
import warnings
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import pytest

from ssdd_hub.bounds import Count, Settings, one_of
from ssdd_hub.errors import InputError, SettingsError
from ssdd_hub.settings import parse_config, to_dict


@dataclass(frozen=True)
class PretrainingSettings(Settings, section="pretraining"):
    """How students are pre-trained."""

    epochs: Count = 100
    max_steps: Count | None = None
    augment: Annotated[str, one_of(("none", "crop-flip"))] = "none"
    args: dict[str, Any] = field(default_factory=dict)
    fast: bool = False


@dataclass(frozen=True)
class DistillerSettings(Settings, section="distiller"):
    """The outer problem."""

    steps: Count = 10
    inner_steps: Count = 3


@dataclass(frozen=True)
class Config:
    """A recipe."""

    SHORT: ClassVar[dict[str, str]] = {"epochs": "pretraining.epochs", "method": "distiller.steps"}
    RENAMED: ClassVar[dict[str, str]] = {
        "use": "pretraining",
        "use.num_epochs": "pretraining.epochs",
        "targets": "datasets",
        "target_args": "dataset_args",
        "distiller.num_steps": "distiller.steps",
    }

    datasets: list[str] = field(default_factory=list)
    dataset_args: dict[str, Any] = field(default_factory=dict)
    pretraining: PretrainingSettings = field(default_factory=PretrainingSettings)
    distiller: DistillerSettings = field(default_factory=DistillerSettings)


@pytest.fixture
def parse(tmp_path):
    """Reads the text of a YAML file and a command line; returns the settings, or all mistakes, and all warnings."""

    def parse(*argv, text=""):
        (tmp_path / "a.yaml").write_text(text)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            try:
                found = to_dict(parse_config(Config, tmp_path / "a.yaml", argv))
            except SettingsError as error:
                found = error.problems
        assert all(each.category is FutureWarning and each.filename == __file__ for each in told)
        return found, [str(each.message) for each in told]

    return parse


def test_present_names_warn_of_nothing(parse):
    config, told = parse("--epochs", "3", "--datasets", "a", text="pretraining: {augment: crop-flip}")
    assert (config["pretraining"]["epochs"], config["datasets"], told) == (3, ["a"], [])


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["--use.max-steps", "7", "--use.args.a-b.c=[1]", "--use.fast"], ""),
        ([], "use: {max-steps: 7, args: {a-b: {c: [1]}}, fast: true}"),
        (["--use.max_steps=7"], "use: {max_steps: 9, args: {a-b: {c: [1]}}, fast: true}"),
    ],
)
def test_all_settings_of_a_renamed_section_have_their_old_names_with_one_warning(parse, argv, text):
    config, told = parse(*argv, text=text)
    expected = {"epochs": 100, "max_steps": 7, "augment": "none", "args": {"a-b": {"c": [1]}}, "fast": True}
    assert config["pretraining"] == expected and told == [
        "use is now pretraining; the old name goes with the next release"
    ]


def test_renamed_lists_dictionaries_and_single_settings_are_read(parse):
    text = "targets: [x]\ntarget_args: {x: {name: y}}\ndistiller: {num_steps: 5}"
    config, told = parse("--targets", "a", "--targets", "b", "--target-args.b.name", "c", text=text)
    assert config["datasets"] == ["a", "b"] and config["dataset_args"] == {"x": {"name": "y"}, "b": {"name": "c"}}
    assert config["distiller"]["steps"] == 5
    assert [message.split(";")[0] for message in told] == [
        "distiller.num_steps is now distiller.steps",
        "target_args is now dataset_args",
        "targets is now datasets",
    ]


def test_a_setting_and_the_section_that_it_was_in_may_both_be_renamed(parse):
    config, told = parse(text="use: {num_epochs: 3, max_steps: 7}")
    assert (config["pretraining"]["epochs"], config["pretraining"]["max_steps"], len(told)) == (3, 7, 2)


def test_of_two_sources_the_later_wins_whichever_name_it_uses(parse):
    assert parse("--use.epochs", "3", text="pretraining: {epochs: 5}")[0]["pretraining"]["epochs"] == 3
    assert parse("--pretraining.epochs", "3", text="use: {epochs: 5}")[0]["pretraining"]["epochs"] == 3


def test_both_names_in_one_file_or_command_line_are_refused(parse):
    message = "pretraining.epochs is also given by its old name, use.epochs: leave that one out"
    for argv in (["--use.epochs=3", "--pretraining.epochs=4"], ["--epochs=3", "--use.epochs=4"]):
        assert parse(*argv)[0] == [message]
    assert parse(text="pretraining: {epochs: 3}\nuse: {epochs: 3}")[0] == [message]
    assert parse("--targets=a", "--datasets=b")[0][0].startswith("datasets is also given by its old name, targ")
    assert parse(text="pretraining: {epochs: 3}\nuse: {max_steps: 4}")[0]["pretraining"]["max_steps"] == 4


def test_mistakes_below_an_old_name_are_reported_by_the_present_one(parse):
    assert parse("--use.epochs", "0")[0] == ["pretraining.epochs must be at least 1, got 0"]
    assert "nearest is pretraining.epochs (" in parse("--use.epoch", "1")[0][0]
    assert parse("--use.epochs")[0] == ["--use.epochs needs a value"]
    assert parse(text="use: 3")[0] == [
        "pretraining is a section; give its settings one by one, such as pretraining.epochs"
    ]


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("stepz", "distiller.steps"),
        ("methd", "distiller.steps"),
        ("epoch", "pretraining.epochs"),
        ("inner", "distiller.inner_steps"),
        ("inner_step", "distiller.inner_steps"),
        ("pretraining.steps", "distiller.steps"),
        ("pretraining.max_stepz", "pretraining.max_steps"),
        ("dataset", "datasets or dataset_args"),
    ],
)
def test_the_nearest_setting_is_one_whose_last_part_is_spelt_alike(parse, name, near):
    assert parse(f"--{name}", "3")[0] == [f"{name} is not a setting; the nearest is {near} (--help all lists them)"]


def test_a_misspelt_choice_is_answered_by_the_nearest_one(parse):
    required = "pretraining.augment must be one of none, crop-flip, got"
    for given, hint in (("dsa", ""), ("cropflip", "; the nearest is crop-flip")):
        assert parse("--pretraining.augment", given)[0] == [f"{required} {given!r}{hint}"]


BOMB = "dataset_args:\n  a0: &a0 [1, 1]\n" + "".join(f"  a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 25))
LARGE = {
    "has more than 131072 characters": ["a: 1\n" * 30_000, "#" * 2**17 + "\n"],
    "has more than 10000 values, with aliases written out": [
        "".join(f"k{number}: {number}\n" for number in range(9_000)),
        f"datasets: [{'a,' * 20_000}]",
        BOMB,
    ],
    "is nested more than 30 deep": [f"datasets: {'[' * 3000}{']' * 3000}", "datasets: " + "{a: " * 3000],
    "the alias 'a' stands inside what it names": ["dataset_args: &a {b: [*a]}"],
    "undefined alias": ["dataset_args: *a"],
}


@pytest.mark.parametrize(("words", "text"), [(words, text) for words, texts in LARGE.items() for text in texts])
def test_a_file_of_settings_that_would_take_long_is_refused_at_once(parse, words, text):
    started = time.monotonic()
    with pytest.raises(InputError, match=f"a.yaml cannot be read as YAML: .*{words}"):
        parse(text=text)
    assert time.monotonic() - started < 5


def test_a_thousand_mistakes_and_long_texts_take_no_time(parse):
    started = time.monotonic()
    problems, _ = parse(text="".join(f"k{number}: {number}\n" for number in range(4_000)))
    assert len(problems) == 4_000 and "the nearest is" in problems[0] and problems[-1] == "k3999 is not a setting"
    for value in ("[" * 9_000, "a, " * 20_000, "[&a [1, 1], *a]"):
        (problem,) = parse("--datasets", value)[0]
        assert "datasets must be of type list[str], got" in problem and len(problem) < 400
    (problem,) = parse("--dataset-args", BOMB)[0]
    assert "dataset_args must be of type dict" in problem and len(problem) < 400
    assert time.monotonic() - started < 10


def test_aliases_of_a_sane_size_are_read(parse):
    found, _ = parse(text="dataset_args: {a: &a {b: [1, 2]}, c: *a, d: [*a, *a]}")
    a = {"b": [1, 2]}
    assert found["dataset_args"] == {"a": a, "c": a, "d": [a, a]}


@pytest.mark.parametrize("text", ["010", "-007", "1:30", "1:30.5", "1_6"])
def test_a_number_that_is_another_one_to_others_is_none(parse, text):
    for setting in ("distiller.steps", "pretraining.max_steps"):
        section, name = setting.split(".")
        for found, _ in (parse(f"--{setting}", text), parse(text=f"{section}: {{{name}: {text}}}")):
            assert f"{setting} must be of type int" in found[0] and "without leading zeros" in found[0]


@pytest.mark.parametrize("value", ["!!set {a, b}", "!!omap [a: 1]", "!!timestamp 2020-01-01", "!!binary aGVsbG8="])
def test_tagged_values_are_no_settings(parse, value):
    with pytest.raises(InputError, match="values of the kind 'tag:yaml.org,2002:[a-z]+' are not taken"):
        parse(text=f"dataset_args: {{x: {value}}}")
    assert parse("--dataset-args.x", value)[0] or parse("--dataset-args", f"{{x: {value}}}")[0]


@pytest.mark.parametrize(
    "text", ["distiller: {inner_steps: 2, inner-steps: 3}", "distiller: {inner_steps: 2}\ndistiller.inner-steps: 3"]
)
def test_a_setting_stands_in_a_file_once(parse, text):
    (problem,) = parse(text=text)[0]
    assert "distiller.inner_steps is given twice in" in problem and problem.endswith("a.yaml: leave one")


@pytest.mark.parametrize("escaped", ["\\0", "\\ud800"])
def test_text_that_no_file_can_hold_is_refused_by_name(parse, escaped):
    (problem,) = parse(text=f'dataset_args: {{a: "b{escaped}"}}')[0]
    assert problem == "dataset_args.a must be text that UTF-8 can hold, without NUL"


def test_a_pipe_without_a_writer_and_a_name_of_any_length_are_no_files_of_settings(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in (str(tmp_path / "pipe"), "a" * 5000, str(tmp_path)):
        with pytest.raises(InputError, match="--config .* cannot be read as YAML|--config must be the path of a YAML"):
            parse_config(Config, tmp_path / "a.yaml", ["--config", name])


def test_a_tilde_that_begins_a_place_is_the_home(parse, monkeypatch):
    """Shells leave that of `--output=~/x` as it is, and YAML that of any."""
    monkeypatch.setenv("HOME", "/home/ann")
    given = ["~/x", "local-dir:~/t", "~ann/x", "a~", "~x", "hf-hub:~/t"]
    config, _ = parse("--datasets", ",".join(given))
    assert config["datasets"] == ["/home/ann/x", "local-dir:/home/ann/t", *given[2:]]
