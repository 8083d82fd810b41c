"""Objectives by name: ours, those of other packages, and what is refused before anything is built."""

from importlib.metadata import EntryPoint

import pytest
import timm
import torch
from reference.objective_cases import NAMES
from reference.warm import Running
from torch import nn

from ssdd_hub.errors import InputError
from ssdd_hub.teachers.objectives import registry
from ssdd_hub.teachers.objectives.barlow_twins import BarlowTwins
from ssdd_hub.teachers.objectives.base import Objective
from ssdd_hub.teachers.objectives.byol import BYOL
from ssdd_hub.teachers.objectives.registry import GROUP, OBJECTIVES, build_objective, find_objective, list_objectives


class Theirs(BarlowTwins):
    """What another package may offer."""

    name = "theirs"


NO_CLASS = "not a class"


@pytest.fixture
def offer(monkeypatch):
    """Makes entry points as if a package had been installed; values are `module:attribute`."""

    def offer(**values):
        points = [EntryPoint(name, value, GROUP) for name, value in values.items()]

        def entry_points(group, name=None):
            assert group == GROUP
            return [point for point in points if name in (None, point.name)]

        monkeypatch.setattr(registry, "entry_points", entry_points)

    return offer


# Names


def test_every_objective_is_there_with_a_citation_of_its_own():
    names = "barlow_twins byol dcl dino fastsiam lejepa mae mmcr moco nnclr simclr simsiam swav tico vicreg"
    assert list_objectives() == NAMES == names.split()
    assert all(issubclass(objective, Objective) for objective in OBJECTIVES.values())
    assert len({objective.citation for objective in OBJECTIVES.values()}) == len(NAMES)


def test_an_unknown_objective_is_refused_with_the_known_ones(small_backbone):
    with pytest.raises(InputError, match="objective 'barlow' is unknown: use one of barlow_twins, byol, dcl"):
        build_objective("barlow", small_backbone())


# Other packages


def test_an_objective_of_another_package_is_built_like_ours_which_come_first(offer, small_backbone):
    offer(theirs=f"{__name__}:Theirs", byol=f"{__name__}:Theirs")
    assert list_objectives() == sorted([*NAMES, "theirs"])
    assert find_objective("theirs") is Theirs and find_objective("byol") is BYOL
    built = build_objective("theirs", small_backbone(), in_chans=1, image_size=16, hidden_dim=8, output_dim=4)
    assert isinstance(built, Theirs) and built.describe()["name"] == "theirs"


def test_a_broken_package_matters_only_to_those_who_ask_for_it(offer, small_backbone):
    offer(broken="no_such_package.objectives:Broken", theirs=f"{__name__}:Theirs")
    assert "broken" in list_objectives()
    assert find_objective("theirs") is Theirs
    message = r"'broken' of the package no_such_package.* cannot be imported .*ModuleNotFoundError: No module named"
    with pytest.raises(InputError, match=message):
        build_objective("broken", small_backbone())


def test_what_is_no_objective_is_refused(offer):
    offer(text=f"{__name__}:NO_CLASS", layer="torch.nn:Linear")
    for name in ("text", "layer"):
        with pytest.raises(
            InputError, match=f"'{name}' of the package .* must be a subclass of ssdd_hub.teachers.obj"
        ):
            find_objective(name)


def test_an_installed_package_is_found_and_named(tmp_path):
    (tmp_path / "broken_ssl.py").write_text("raise RuntimeError('the licence is missing')")
    info = tmp_path / "broken_ssl-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-ssl\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[ssdd_hub.objectives]\nbroken = broken_ssl:Broken\n")
    # All that stands beside a script is installed.
    (tmp_path / "script.py").write_text(
        "import sys\n"
        "from ssdd_hub.teachers.objectives.registry import find_objective, list_objectives\n"
        "print('broken' in list_objectives(), 'broken_ssl' in sys.modules)\n"
        "try:\n    find_objective('broken')\nexcept ValueError as error:\n    print(error)\n"
    )
    printed = Running(tmp_path / "script.py").finish()
    assert printed.splitlines()[0] == "True False"
    assert "of the package broken-ssl cannot be imported" in printed
    assert "RuntimeError: the licence is missing" in printed


# Backbones


@pytest.mark.parametrize(
    ("model", "args", "size", "channels"),
    [
        ("ssdd_resnet10", {"channels": (4, 4, 4, 4)}, 32, 3),
        ("ssdd_resnet10", {"channels": (4, 4, 4, 4), "in_chans": 1}, 32, 1),
        # Built for another size than `pretrained_cfg` says.
        ("test_vit", {"img_size": 32, "patch_size": 8, "in_chans": 2, "dynamic_img_size": False}, 32, 2),
    ],
)
def test_channels_and_size_of_the_images_are_read_from_the_backbone(monkeypatch, model, args, size, channels):
    seen, measure = [], registry.measure_width
    monkeypatch.setattr(registry, "measure_width", lambda *inputs: seen.append(inputs[1:]) or measure(*inputs))
    backbone = timm.create_model(model, num_classes=0, **args)
    objective = build_objective("byol", backbone, hidden_dim=8, output_dim=4)
    assert seen == [(channels, size)]
    assert objective.feature_dim == backbone.head_hidden_size if model == "ssdd_resnet10" else backbone.num_features
    views = [torch.randn(2, channels, size, size) for _ in range(2)]
    assert objective(views).isfinite()


def test_the_width_of_the_features_is_that_of_the_pre_logits():
    backbone = timm.create_model("mobilenetv3_small_050", num_classes=0)
    assert backbone.num_features != backbone.head_hidden_size
    objective = build_objective("simclr", backbone, image_size=32, hidden_dim=8, output_dim=4)
    assert objective.feature_dim == backbone.head_hidden_size


def test_a_backbone_without_timms_methods_is_refused():
    with pytest.raises(InputError, match="needs a backbone with timm's forward_features and forward_head, got a Lin"):
        build_objective("byol", nn.Linear(2, 2))


def test_a_backbone_that_states_no_size_needs_one_given():
    backbone = nn.Identity()
    backbone.forward_features = backbone.forward_head = lambda images, **options: images.flatten(1)
    with pytest.raises(InputError, match="a Identity does not say for which images it was built: give in_chans and"):
        build_objective("byol", backbone)


@pytest.mark.parametrize(("in_chans", "image_size"), [(3, 48), (1, 32)])
def test_images_that_a_backbone_does_not_take_are_refused(in_chans, image_size):
    backbone = timm.create_model("test_vit", img_size=32, patch_size=8, num_classes=0, dynamic_img_size=False)
    message = f"does not take images of {in_chans} channels and {image_size} pixels .*: build it for them"
    with pytest.raises(InputError, match=message):
        build_objective("simclr", backbone, in_chans=in_chans, image_size=image_size)


@pytest.mark.parametrize("training", [True, False])
def test_building_leaves_the_backbone_as_it_was(small_backbone, training):
    backbone = small_backbone().train(training)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    objective = build_objective("simclr", backbone.double(), in_chans=1, image_size=16, hidden_dim=8, output_dim=4)
    assert objective.backbone is backbone and objective.feature_dim == 24
    assert all(module.training is training for module in backbone.modules())
    assert all(torch.equal(before[key], value) for key, value in backbone.float().state_dict().items())
