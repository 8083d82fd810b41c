"""Settings of the objectives: each is of the type and in the range that it is annotated with, or refused by name."""

import pytest
from reference.objective_cases import NAMES, build, make_backbone

from ssdd_hub.errors import InputError, SettingsError
from ssdd_hub.teachers.objectives.base import Count, Objective, Share
from ssdd_hub.teachers.objectives.registry import OBJECTIVES, build_objective


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_of_another_type_is_refused_and_all_of_them_at_once(name):
    settings = {setting: getattr(OBJECTIVES[name], setting) for setting in OBJECTIVES[name].declared}
    with pytest.raises(SettingsError) as caught:
        build(name, "vit", **dict.fromkeys(settings, "no"))
    kinds = {bool: "true or false", int: "a whole number", float: "a finite number"}
    assert sorted(caught.value.problems) == sorted(
        f"{name}: {setting} must be {kinds[type(default)]}, got 'no'" for setting, default in settings.items()
    )


@pytest.mark.parametrize(
    ("name", "settings", "reason"),
    [
        ("dino", {"batch_norm": 1}, "dino: batch_norm must be true or false, got 1$"),
        ("vicreg", {"hidden_dim": "64"}, "vicreg: hidden_dim must be a whole number, got '64'"),
        ("vicreg", {"hidden_dim": 64.0}, "vicreg: hidden_dim must be a whole number, got 64.0"),
        ("vicreg", {"hidden_dim": True}, "vicreg: hidden_dim must be a whole number, got True"),
        ("vicreg", {"hidden_dim": None}, "vicreg: hidden_dim must be a whole number, got None"),
        ("vicreg", {"variance": True}, "vicreg: variance must be a finite number, got True"),
        ("vicreg", {"variance": float("nan")}, "vicreg: variance must be a finite number, got nan"),
        ("simclr", {"temperature": float("inf")}, "simclr: temperature must be a finite number, got inf"),
        ("mae", {"mask_ratio": "0.5"}, "mae: mask_ratio must be a finite number, got '0.5'"),
        # Ranges
        ("byol", {"momentum": 1.5}, r"byol: momentum must be in \[0, 1\], got 1.5"),
        ("moco", {"bank_size": 0}, "moco: bank_size must be at least 1, got 0"),
        ("moco", {"temperature": 0}, "moco: temperature must be above 0, got 0"),
        ("nnclr", {"bank_size": 0}, "nnclr: bank_size must be at least 1, got 0"),
        ("nnclr", {"temperature": -1}, "nnclr: temperature must be above 0, got -1"),
        ("simclr", {"temperature": -0.5}, "simclr: temperature must be above 0, got -0.5"),
        ("dcl", {"temperature": 0}, "dcl: temperature must be above 0, got 0"),
        ("swav", {"temperature": 0}, "swav: temperature must be above 0, got 0"),
        ("swav", {"epsilon": 0}, "swav: epsilon must be above 0, got 0"),
        ("swav", {"queue_length": -1}, "swav: queue_length must be at least 0, got -1"),
        ("swav", {"num_prototypes": 1}, "swav: num_prototypes must be at least 2, got 1"),
        ("dino", {"teacher_temp": 0.0}, "dino: teacher_temp must be above 0, got 0.0"),
        ("dino", {"warmup_epochs": -1}, "dino: warmup_epochs must be at least 0, got -1"),
        ("tico", {"beta": 3}, r"tico: beta must be in \[0, 1\], got 3"),
        ("tico", {"rho": -1}, "tico: rho must be at least 0, got -1"),
        ("mmcr", {"lmda": -1}, "mmcr: lmda must be at least 0, got -1"),
        ("barlow_twins", {"lambda_param": -1}, "barlow_twins: lambda_param must be at least 0, got -1"),
        ("vicreg", {"hidden_dim": 0}, "vicreg: hidden_dim must be at least 1, got 0"),
        ("vicreg", {"invariance": -1}, "vicreg: invariance must be at least 0, got -1"),
        ("vicreg", {"variance": -1}, "vicreg: variance must be at least 0, got -1"),
        ("vicreg", {"covariance": -1}, "vicreg: covariance must be at least 0, got -1"),
        ("lejepa", {"lambda_param": 2.0}, r"lejepa: lambda_param must be in \[0, 1\], got 2.0"),
        ("lejepa", {"num_vectors": 0}, "lejepa: num_vectors must be at least 1, got 0"),
        ("mae", {"mask_ratio": 1.5}, r"mae: mask_ratio must be in \[0, 1\], got 1.5"),
        ("mae", {"mask_ratio": 0.99}, "mask_ratio 0.99 leaves 0 of 16 patches visible"),
        ("mae", {"mask_ratio": 0.0}, "mask_ratio 0.0 leaves 16 of 16 patches visible"),
        ("mae", {"decoder_dim": 30}, "decoder_dim must be a multiple of 4 and of decoder_heads, got 30 and 4"),
        ("mae", {"decoder_heads": 0}, "mae: decoder_heads must be at least 1, got 0"),
        ("mae", {"decoder_depth": 0}, "mae: decoder_depth must be at least 1, got 0"),
    ],
)
def test_settings_of_another_type_or_out_of_range_are_refused(name, settings, reason):
    with pytest.raises(InputError, match=reason):
        build(name, "vit", **settings)


def test_problems_of_type_and_range_are_reported_together():
    with pytest.raises(SettingsError) as caught:
        build("swav", epsilon=0, hidden_dim="wide", queue_length=-1)
    assert caught.value.problems == [
        "swav: hidden_dim must be a whole number, got 'wide'",
        "swav: epsilon must be above 0, got 0",
        "swav: queue_length must be at least 0, got -1",
    ]


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("simclr", {"temperature": 1}),
        ("byol", {"momentum": 0}),
        ("byol", {"momentum": 1}),
        ("vicreg", {"invariance": 0, "hidden_dim": 1}),
        ("swav", {"queue_length": 0, "num_prototypes": 2}),
        ("dino", {"warmup_epochs": 0}),
        ("lejepa", {"lambda_param": 0}),
    ],
)
def test_the_ends_of_the_ranges_and_whole_numbers_for_others_are_taken(name, settings):
    assert build(name, **settings).settings.items() >= settings.items()


def test_an_objective_of_another_package_is_checked_as_far_as_it_is_annotated():
    class Theirs(Objective):
        name = "theirs"

        def __init__(
            self, backbone, feature_dim, width: Count = 1, share: Share | None = None, beta: "float" = 3, **rest
        ):
            super().__init__(backbone, feature_dim, width=width, share=share, beta=beta, **rest)

    backbone = make_backbone("resnet")
    assert Theirs(backbone, 16, share=7, beta="b", more="text").settings["more"] == "text"
    with pytest.raises(InputError, match="theirs: width must be at least 1, got 0"):
        Theirs(backbone, 16, width=0)


@pytest.mark.parametrize("reserved", ["name", "backbone", "feature_dim"])
@pytest.mark.parametrize("name", NAMES)
def test_names_that_are_no_settings_are_refused(name, reserved):
    with pytest.raises(InputError, match=f"objective '{name}' does not take these settings .*'{reserved}'"):
        build_objective(name, make_backbone("vit"), **{reserved: 1})
