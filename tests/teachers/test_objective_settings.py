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


NOT_WHOLE, NOT_FINITE = "must be a whole number, got", "must be a finite number, got"
WEIGHTS = "tico.rho mmcr.lmda barlow_twins.lambda_param vicreg.invariance vicreg.variance vicreg.covariance"
SIZES = (
    "moco.bank_size nnclr.bank_size nnclr.prediction_dim simsiam.prediction_dim vicreg.hidden_dim vicreg.output_dim"
)
TEMPERATURES = "moco.temperature nnclr.temperature simclr.temperature dcl.temperature swav.temperature"
MOMENTA = "byol.momentum moco.momentum dino.momentum tico.momentum mmcr.momentum"
RANGES = [
    (-1, "must be at least 0, got -1", f"swav.queue_length dino.warmup_epochs {WEIGHTS}"),
    (
        0,
        "must be at least 1, got 0",
        f"lejepa.num_vectors mae.decoder_heads mae.decoder_depth mae.decoder_dim {SIZES}",
    ),
    (1, "must be at least 2, got 1", "swav.num_prototypes"),
    (0, "must be above 0, got 0", f"swav.epsilon dino.teacher_temp {TEMPERATURES}"),
    (1.5, r"must be in \[0, 1\], got 1.5", f"tico.beta lejepa.lambda_param mae.mask_ratio {MOMENTA}"),
]
OUT_OF_RANGE = [
    (*place.split("."), value, place.replace(".", ": ") + f" {reason}")
    for value, reason, places in RANGES
    for place in places.split()
]


@pytest.mark.parametrize(
    ("name", "setting", "value", "reason"),
    [
        *OUT_OF_RANGE,
        ("dino", "batch_norm", 1, "dino: batch_norm must be true or false, got 1$"),
        *(("vicreg", "hidden_dim", value, f"{NOT_WHOLE} {value!r}") for value in ("64", 64.0, True, None)),
        *(("simclr", "temperature", value, f"{NOT_FINITE} {value!r}") for value in (True, float("nan"), float("inf"))),
        ("mae", "mask_ratio", 0.99, "mask_ratio 0.99 leaves 0 of 16 patches visible"),
        ("mae", "mask_ratio", 0.0, "mask_ratio 0.0 leaves 16 of 16 patches visible"),
        ("mae", "decoder_dim", 30, "decoder_dim must be a multiple of 4 and of decoder_heads, got 30 and 4"),
    ],
)
def test_settings_of_another_type_or_out_of_range_are_refused(name, setting, value, reason):
    with pytest.raises(InputError, match=reason):
        build(name, "vit", **{setting: value})


def test_problems_of_type_and_range_are_reported_together():
    with pytest.raises(SettingsError) as caught:
        build("swav", epsilon=0, hidden_dim="wide", queue_length=-1)
    assert caught.value.problems == [
        "swav: hidden_dim must be a whole number, got 'wide'",
        "swav: epsilon must be above 0, got 0",
        "swav: queue_length must be at least 0, got -1",
    ]


class Declared(Objective):
    name = "theirs"
    width: Count = 1
    label = "no setting, since it is not annotated"


class Constructed(Objective):
    name = "theirs"

    def __init__(self, backbone, feature_dim, width: Count = 1, share: Share | None = None, beta: "float" = 3, **rest):
        super().__init__(backbone, feature_dim, width=width, share=share, beta=beta, **rest)


def test_an_objective_of_another_package_is_checked_where_it_is_annotated():
    backbone = make_backbone("resnet")
    assert Constructed(backbone, 16, share=7, beta="b", more="text").settings["more"] == "text"
    assert Declared(backbone, 16).settings == {"width": 1} and Declared(backbone, 16, width=2).width == 2
    for kind in (Declared, Constructed):
        with pytest.raises(InputError, match="theirs: width must be at least 1, got 0"):
            kind(backbone, 16, width=0)
    with pytest.raises(TypeError, match="Declared has no setting 'label'"):
        Declared(backbone, 16, label="a")


@pytest.mark.parametrize("unknown", ["name", "backbone", "feature_dim", "warmth"])
@pytest.mark.parametrize("name", NAMES)
def test_names_that_are_no_settings_are_refused(name, unknown):
    with pytest.raises(InputError, match=f"objective '{name}' does not take these settings .*'{unknown}'"):
        build_objective(name, make_backbone("vit"), **{unknown: 1})
