"""Methods and parameterisations by name, those of other packages too."""

from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint

import pytest
import torch
from reference.contract_cases import build, make_pairs, make_source
from reference.warm import Running
from toy_method import MeanMatch, MeanMatchSettings

import ssdd_hub
from ssdd_hub.distill import registry
from ssdd_hub.distill.methods.dm import Dm, DmSettings
from ssdd_hub.distill.methods.krr_st import KrrSt, KrrStSettings
from ssdd_hub.distill.methods.matching import Matching
from ssdd_hub.distill.methods.registry import METHODS, build_method, list_methods
from ssdd_hub.distill.parameterisations.registry import build_parameterisation
from ssdd_hub.distill.pool import PoolSettings
from ssdd_hub.errors import InputError
from ssdd_hub.method_list import describe_methods

NO_CLASS = "not a class"


@pytest.fixture
def offer(monkeypatch):
    """Makes entry points as if a package had been installed; values are `module:attribute`."""

    def offer(**values):
        points = [EntryPoint(name, value, METHODS.group) for name, value in values.items()]

        def entry_points(group, name=None):
            return [point for point in points if group == point.group and name in (None, point.name)]

        monkeypatch.setattr(registry, "entry_points", entry_points)

    return offer


@pytest.fixture
def problem(accelerator):
    return build("krr_st", "pixels", accelerator).method.problem


def test_the_root_lists_both():
    assert "krr_st" in ssdd_hub.list_methods() and "pixels" in ssdd_hub.list_parameterisations()


def test_an_unknown_name_is_refused_with_the_known_ones_and_the_nearest(offer, problem):
    offer(mean_match="toy_method:MeanMatch")
    with pytest.raises(InputError, match="method 'mean' is unknown: use one of clp_dd, .*; the nearest is mean_"):
        build_method("mean", problem)
    with pytest.raises(
        InputError, match="parameterisation 'pixel' is unknown: use one of bases, .*; the nearest is pixels"
    ):
        build_parameterisation("pixel", make_pairs(2, 0))


def test_a_method_of_another_package_is_built_like_ours(offer, problem):
    offer(mean_match="toy_method:MeanMatch", krr_st="toy_method:MeanMatch")
    built = build_method("mean_match", problem, {"weight": 0.5}, {"ridge": 1e-3})
    assert isinstance(built, MeanMatch) and built.settings.weight == 0.5
    # Ours come first.
    assert type(build_method("krr_st", problem)) is KrrSt


@pytest.mark.parametrize("name", ["frepo", "lgm", "mtt"])
def test_class_labels_of_one_class_are_refused(problem, name):
    source = make_source(labels=torch.ones(21, dtype=torch.int64))
    with pytest.raises(InputError, match="need images of two classes or more, and all 21 images are of one: use"):
        build_method(name, replace(problem, source=source))
    # Without labels, clusters of the targets are what a random head is to tell apart.
    with pytest.raises(InputError, match="num_groups must be at least 2, got 1"):
        METHODS.settings("lgm", {"num_groups": 1}, {})


def test_a_package_that_cannot_be_used_is_named(offer):
    offer(broken="no_such_package:Broken", text=f"{__name__}:NO_CLASS", layer="torch.nn:Linear")
    assert "broken" in list_methods()
    with pytest.raises(
        InputError, match=r"'broken' of the package no_such_package.* cannot be imported: .*fix or rem"
    ):
        METHODS.find("broken")
    for name in ("text", "layer"):
        with pytest.raises(
            InputError, match=f"'{name}' of the package .* must be a subclass of ssdd_hub.distill.method"
        ):
            METHODS.find(name)


def test_names_that_people_look_for_lead_to_what_does_the_same(problem):
    with pytest.raises(InputError, match=r"'dsa' is unknown: use dc with --method.args '\{augment: dsa, training_aug"):
        build_method("dsa", problem)


class Plain(Matching):
    name, citation, Settings = "plain", "none", MeanMatchSettings


class Vector(MeanMatch):
    def loss(self, pairs, step):
        return pairs.images.mean((1, 2, 3))


class VectorMatch(Dm):
    def match(self, network, group, own, real):
        return own.images.mean((1, 2, 3))


def test_mistakes_of_authors_are_told_in_their_words(offer, problem, accelerator):
    offer(plain=f"{__name__}:Plain", vector=f"{__name__}:Vector")
    with pytest.raises(InputError, match="Settings of the method plain must extend .*MatchingSettings, got Mean"):
        build_method("plain", problem)
    pairs = make_pairs(6, 99)
    with pytest.raises(InputError, match=r"loss of the method mean_match must return .*, got .* shape \(6,\): t"):
        build_method("vector", problem).gradients(pairs, 0)
    method = VectorMatch(DmSettings(num_groups=2), problem)
    list(method.prepare(pairs))
    with pytest.raises(InputError, match="match of the method dm must return a tensor of no dimensions, got a tensor"):
        method.gradients(pairs, 0)


class NoCitation(MeanMatch):
    citation = None


class NoSettings(MeanMatch):
    Settings = None


def test_a_class_without_what_a_list_needs_is_named_in_the_list(offer):
    offer(uncited=f"{__name__}:NoCitation", bare=f"{__name__}:NoSettings", whole="toy_method:MeanMatch")
    for name, missing in (("uncited", "'citation', a text"), ("bare", "'Settings', a frozen dataclass")):
        with pytest.raises(InputError, match=f"method {name!r} of the package .* needs a class attribute {missing}"):
            METHODS.find(name)
        place = (lines := describe_methods()).index(f"  {name}")
        assert f"status: cannot be used: method {name!r}" in lines[place + 1] and missing in lines[place + 1]
    assert "    settings: weight=1.0" in lines


def test_an_installed_package_is_listed_without_being_imported(tmp_path):
    info = tmp_path / "toys-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toys\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[ssdd_hub.methods]\ntoy = toys:Toy\n")
    # All that stands beside a script is installed.
    (tmp_path / "script.py").write_text("import ssdd_hub\n\nprint(*ssdd_hub.list_methods())\n")
    assert {"krr_st", "toy"} <= {*Running(tmp_path / "script.py").finish().split()}


# Settings


def test_settings_of_the_recipe_fill_those_of_the_same_name():
    shared = {"ridge": 1e-3, "inner_steps": 2, "pool": PoolSettings(size=3), "lr_images": 1.0}
    assert METHODS.settings("krr_st", {}, shared) == KrrStSettings(1e-3, 2, PoolSettings(size=3))
    args = {"ridge": 1e-2, "pool": {"max_age": 7}}
    assert METHODS.settings("krr_st", args, shared) == KrrStSettings(1e-2, 2, PoolSettings(size=3, max_age=7))
    assert METHODS.settings("krr_st", {"pool": {"size": 2}}, {}).pool == PoolSettings(size=2)


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        ({"rigde": 1e-3}, "method 'krr_st' has no setting 'rigde': use one of ridge, .*; the nearest is ridge"),
        ({"ridge": 0.0}, "ridge must be above 0, got 0.0"),
        ({"ridge": "small"}, "setting 'ridge' of the method 'krr_st' must be of type float, got 'small'"),
        ({"inner_steps": 1.5}, "setting 'inner_steps' of the method 'krr_st' must be of type int, got 1.5"),
        ({"inner_steps": True}, "setting 'inner_steps' of the method 'krr_st' must be of type int, got True"),
        ({"pool": 5}, "setting 'pool' of the method 'krr_st' must be values by name, got 5"),
        ({"pool": {"sise": 1}}, "'krr_st' does not take these settings .*'sise'"),
        ({"pool": {"size": 0}}, "pool.size must be at least 1, got 0"),
        (
            {"ridge": "/etc/passwd"},
            "settings of the method 'krr_st' cannot be taken: ridge must be a number or a short",
        ),
        ([1], r"arguments must be values by name, got \[1\]"),
    ],
)
def test_wrong_settings_are_refused(args, problem):
    with pytest.raises(InputError, match=problem):
        METHODS.settings("krr_st", args, {})


def test_a_class_without_settings_says_so(monkeypatch):
    @dataclass(frozen=True)
    class Nothing:
        pass

    class Plain(MeanMatch):
        Settings = Nothing

    monkeypatch.setitem(METHODS.known, "plain", Plain)
    with pytest.raises(InputError, match="method 'plain' has no setting 'a': it has none"):
        METHODS.settings("plain", {"a": 1}, {})
