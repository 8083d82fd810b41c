"""What holds of the features of every family of timm's networks, tiny and untrained."""

import json

import pytest
import timm
import torch

from ssdd_hub.errors import InputError
from ssdd_hub.models.features import in_parts, measure_width, read_features
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.teachers.teacher import Teacher, build_teacher

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2}
# Name: arguments, the layout of its maps, whether it has a class token, widths of pre-logits and of the mean.
FAMILIES = {
    "test_resnet": ({}, "NCHW", False, 96, 96),
    "ssdd_resnet10": ({"channels": (4, 4, 8, 12)}, "NCHW", False, 12, 12),
    "test_convnext": ({}, "NCHW", False, 64, 64),
    "test_efficientnet": ({}, "NCHW", False, 256, 256),
    "test_nfnet": ({}, "NCHW", False, 192, 192),
    "regnetx_002": ({}, "NCHW", False, 368, 368),
    "densenet121": ({"growth_rate": 4, "block_config": (1, 1, 1, 1)}, "NCHW", False, 8, 8),
    # Their classifiers read something wider than the maps.
    "vgg11_bn": ({"mlp_ratio": 0.01}, "NCHW", False, 4096, 512),
    "mobilenetv3_small_050": ({}, "NCHW", False, 1024, 288),
    "mobilenetv4_conv_small_050": ({}, "NCHW", False, 1280, 480),
    "swin_tiny_patch4_window7_224": (
        {"img_size": 32, "window_size": 2, "embed_dim": 12, "depths": (1, 1), "num_heads": (1, 2)},
        *("NHWC", False, 24, 24),
    ),
    "mambaout_femto": ({"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}, "NHWC", False, 64, 16),
    "mixer_s16_224": ({"img_size": 32}, "NLC", False, 512, 512),
    "test_vit": ({"img_size": 32}, "NLC", True, 64, 64),
    "vit_base_patch16_224": (VIT, "NLC", True, 24, 24),
    "vit_base_patch16_clip_224": ({**VIT, "global_pool": "avg"}, "NLC", True, 24, 24),
    "vit_base_patch14_reg4_dinov2": ({**VIT, "init_values": 1.0}, "NLC", True, 24, 24),
    "vit_medium_patch16_reg4_gap_256": (VIT, "NLC", False, 24, 24),
    "deit_tiny_distilled_patch16_224": (VIT, "NLC", True, 24, 24),
    "beit_base_patch16_224": (VIT, "NLC", True, 24, 24),
    "eva02_tiny_patch14_224": (VIT, "NLC", True, 24, 24),
    "cait_xxs24_224": ({**VIT, "init_values": 1.0}, "NLC", True, 24, 24),
    "pit_ti_224": (
        {"img_size": 32, "patch_size": 8, "stride": 4, "base_dims": (8, 8), "depth": (1, 1), "heads": (1, 1)},
        *("NLC", True, 8, None),
    ),
}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    """A backbone with batch statistics of its own, and what is expected of it."""
    args, *expected = FAMILIES[request.param]
    torch.manual_seed(0)
    backbone = timm.create_model(request.param, num_classes=0, **args)
    with torch.no_grad():
        backbone.train()(torch.randn(8, 3, 32, 32))
        for name, parameter in backbone.named_parameters():
            if name.endswith(("norm.weight", "cls_token", "reg_token")):
                parameter.add_(torch.rand_like(parameter))
    return (request.param, backbone.eval(), *expected)


def as_teacher(backbone, kind, name="teacher"):
    return Teacher(backbone, PixelSpace((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)), 32, name, "mit", features=kind)


def kinds_of(family):
    _, _, _, has_token, _, mean_width = family
    return ["pre_logits", *(["cls"] if has_token else []), *(["mean"] if mean_width else [])]


def draw_pixels(count=3):
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_the_width_measured_is_the_width_of_the_kind(family):
    _, backbone, _, has_token, width, mean_width = family
    expected = {"pre_logits": width, "cls": width if has_token else None, "mean": mean_width}
    for kind, number in expected.items():
        if number is None:
            with pytest.raises(
                InputError, match=f"{type(backbone).__name__} (has no class token|gives no feature map)"
            ):
                as_teacher(backbone, kind)
        else:
            teacher = as_teacher(backbone, kind)
            assert measure_width(backbone, 3, 32, kind) == teacher.feature_dim == number
            assert teacher(draw_pixels()).shape == (3, number)
    assert backbone.head_hidden_size == width


def test_features_are_finite_deterministic_frozen_and_independent_of_the_batch(family):
    for kind in kinds_of(family):
        teacher = as_teacher(family[1], kind).train()
        pixels = draw_pixels().requires_grad_()
        features = teacher(pixels)
        assert features.isfinite().all() and features.dtype == torch.float32 and not features.requires_grad
        assert torch.equal(features, teacher(pixels))
        alone = torch.cat([teacher(image[None]) for image in pixels])
        torch.testing.assert_close(features, alone, rtol=1e-4, atol=1e-5)
        assert (features[0] - features[1]).abs().max() > 1e-5
        assert not any(module.training for module in teacher.modules())


def test_the_mean_is_over_places_only(family):
    name, backbone, layout, has_token, _, mean_width = family
    if mean_width is None:
        pytest.skip("this family has no patch tokens left at its end")
    images = draw_pixels()
    with torch.no_grad():
        maps = backbone.forward_features(images)
        mean = read_features(backbone, images, "mean")
        if layout == "NLC":
            prefix = int(has_token) + (4 if "reg4" in name else 0) + ("distilled" in name)
            assert maps.shape[1] - prefix in (16, 4, 1)
            expected = maps[:, prefix:].mean(1)
        else:
            expected = maps.flatten(2).mean(2) if layout == "NCHW" else maps.flatten(1, 2).mean(1)
        expected = getattr(backbone, "fc_norm", torch.nn.Identity())(expected)
    torch.testing.assert_close(mean, expected)
    assert mean.shape[1] == mean_width


# How a teacher is saved and read hangs on its kind of features, and on nothing else of its family.
KINDS = {(layout, token, width == mean): name for name, (_, layout, token, width, mean) in FAMILIES.items()}.values()
SAVED = [name if name in KINDS else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]


@pytest.mark.parametrize("family", SAVED, indirect=True)
def test_a_saved_teacher_gives_the_same_features_through_timm_alone_and_as_a_teacher(family, tmp_path):
    name, backbone, *_ = family
    pixels = draw_pixels()
    teacher = as_teacher(backbone, "pre_logits", name)
    teacher.save(tmp_path / "teacher", {"seed": 3})
    model = timm.create_model(f"local-dir:{tmp_path / 'teacher'}", pretrained=True, num_classes=0).eval()
    with torch.no_grad():
        features = model(teacher.pixel_space.normalise(pixels))
    torch.testing.assert_close(features, teacher(pixels), rtol=0, atol=1e-6)
    assert json.loads((tmp_path / "teacher" / "config.json").read_text())["pretrained_cfg"]["license"] == "mit"
    for kind in kinds_of(family):
        again = build_teacher(f"local-dir:{tmp_path / 'teacher'}", features=kind)
        torch.testing.assert_close(again(pixels), as_teacher(backbone, kind)(pixels), rtol=0, atol=1e-6)
        assert (again.input_size, again.license, again.name) == (32, "mit", name)
        assert again.identity() == as_teacher(backbone, kind, name).identity()


def test_a_class_token_of_another_name_is_not_averaged_with_the_patches():
    dims = {"embed_dims": (8, 8, 8, 16), "serial_depths": (1, 1, 1, 1), "num_heads": 8}
    backbone = timm.create_model("coat_lite_tiny", num_classes=0, img_size=32, **dims)
    assert backbone.forward_features(torch.zeros(1, 3, 32, 32)).shape == (1, 1 + 1, 16)
    with pytest.raises(InputError, match="CoaT gives no feature map or patch tokens to average: use features pre_log"):
        as_teacher(backbone, "mean")
    assert as_teacher(backbone, "pre_logits").feature_dim == 16


@pytest.mark.parametrize(
    ("count", "side", "seen_at", "sizes"),
    [
        (700, 32, None, [512, 188]),
        (300, 64, None, [128, 128, 44]),
        (3, 2000, None, [1, 1, 1]),
        (40, 32, 224, [10] * 4),
    ],
)
def test_parts_hold_as_many_pixels_whatever_the_size_of_images(count, side, seen_at, sizes):
    images = torch.arange(count).view(-1, 1, 1, 1).expand(-1, 1, side, side)
    parts = in_parts(images, seen_at)
    assert [len(part) for part in parts] == sizes
    assert torch.equal(torch.cat(parts)[:, 0, 0, 0], torch.arange(count))
