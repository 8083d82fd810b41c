import hashlib

import pytest
import timm
import torch
from timm.models import save_for_hf
from torch import nn

from ssdd_hub.errors import InputError
from ssdd_hub.models.features import (
    create_backbone,
    hash_structure,
    input_args,
    measure_width,
    pre_logits,
    read_features,
)


def make_images(count=2, channels=3, size=32):
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(0))


# Any timm model


@pytest.mark.parametrize(
    ("name", "size", "channels"),
    [
        ("test_resnet", 32, 1),
        ("test_vit", 32, 1),
        ("test_vit4", 32, 3),
        ("test_convnext", 32, 3),
        ("test_efficientnet", 33, 3),
        ("test_nfnet", 32, 3),
        ("mobilenetv3_small_050", 32, 3),  # its classifier reads more than `num_features`
        ("ssdd_convnet3", 16, 3),
        ("ssdd_resnet10", 16, 1),
    ],
)
def test_features_are_what_the_model_gives_without_a_classifier(name, size, channels):
    images = make_images(2, channels, size)
    with_head = timm.create_model(name, num_classes=3, **input_args(name, channels, size)).eval()
    without = timm.create_model(name, num_classes=0, **input_args(name, channels, size)).eval()
    names = without.state_dict().keys()
    without.load_state_dict({key: value for key, value in with_head.state_dict().items() if key in names})
    with torch.no_grad():
        features = pre_logits(with_head, images)
        torch.testing.assert_close(features, without(images))
        torch.testing.assert_close(features, pre_logits(without, images))
        torch.testing.assert_close(with_head.get_classifier()(features), with_head(images))
    assert features.shape == (2, with_head.head_hidden_size)


class Tokens(nn.Module):
    """A model whose maps are given, behind timm's interface."""

    def __init__(self, maps, **attributes):
        super().__init__()
        self.maps = maps
        self.weight = nn.Parameter(torch.zeros(1))
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward_features(self, images):
        return self.maps

    def forward_head(self, maps, pre_logits):
        return maps.flatten(1)


TOKENS = torch.arange(24.0).reshape(1, 6, 4)
MAP = torch.arange(48.0).reshape(1, 4, 3, 4)


@pytest.mark.parametrize(
    ("model", "kind", "expected"),
    [
        (Tokens(TOKENS, has_class_token=True, num_prefix_tokens=3), "cls", TOKENS[:, 0]),
        (Tokens(TOKENS, has_class_token=True, num_prefix_tokens=3), "mean", TOKENS[:, 3:].mean(1)),
        (Tokens(TOKENS, has_class_token=False, num_prefix_tokens=2), "mean", TOKENS[:, 2:].mean(1)),
        (Tokens(TOKENS, cls_token=torch.zeros(1)), "cls", TOKENS[:, 0]),
        (Tokens(TOKENS, cls_token=torch.zeros(1)), "mean", TOKENS[:, 1:].mean(1)),  # VOLO
        (Tokens(TOKENS), "mean", TOKENS.mean(1)),  # MLP-Mixer
        (Tokens(MAP), "mean", MAP.mean((2, 3))),
        (Tokens(MAP, output_fmt="NHWC"), "mean", MAP.mean((1, 2))),
    ],
)
def test_token_and_mean_are_read_from_every_layout(model, kind, expected):
    torch.testing.assert_close(read_features(model, make_images(1), kind), expected)
    assert measure_width(model, 3, 32, kind) == 4


def test_token_and_mean_are_normalised_where_the_model_does_so_after_pooling():
    norm = nn.LayerNorm(4)
    nn.init.constant_(norm.bias, 2.0)
    model = Tokens(TOKENS, has_class_token=True, num_prefix_tokens=1, fc_norm=norm)
    torch.testing.assert_close(read_features(model, make_images(1), "cls"), norm(TOKENS[:, 0]))
    torch.testing.assert_close(read_features(model, make_images(1), "mean"), norm(TOKENS[:, 1:].mean(1)))


@pytest.mark.parametrize(
    ("model", "kind", "message"),
    [
        (Tokens(MAP), "cls", "Tokens has no class token: use features pre_logits or mean"),
        # Register tokens are no class tokens.
        (Tokens(TOKENS, has_class_token=False, num_prefix_tokens=2), "cls", "Tokens has no class token"),
        (Tokens(TOKENS, cls_token=None), "cls", "Tokens has no class token"),
        (Tokens([TOKENS], cls_token=torch.zeros(1)), "cls", "Tokens has no class token"),  # CrossViT
        (Tokens([TOKENS]), "mean", "Tokens gives no feature map or patch tokens to average: use features pre_logits"),
        (Tokens(TOKENS[:, :1], cls_token=torch.zeros(1)), "mean", "gives no feature map or patch tokens"),  # PiT
        (Tokens(TOKENS[:, 0]), "mean", "gives no feature map or patch tokens"),
        (Tokens(TOKENS, cls_token1=nn.Parameter(torch.zeros(1))), "mean", "gives no feature map"),  # CoaT
        (Tokens(TOKENS), "max", "features must be one of pre_logits, cls, mean, flat, got 'max'"),
    ],
)
def test_features_that_a_model_does_not_have_are_refused(model, kind, message):
    with pytest.raises(InputError, match=message):
        read_features(model, make_images(1), kind)


def test_measuring_the_width_leaves_every_part_in_its_mode():
    model = timm.create_model("test_resnet", num_classes=0).train()
    model.layer1.eval()
    before, statistics = [module.training for module in model.modules()], model.bn1.running_mean.clone()
    assert measure_width(model, 3, 32) == measure_width(model, 3, 32, "mean") == model.head_hidden_size
    with pytest.raises(InputError):
        measure_width(model, 3, 32, "cls")
    assert [module.training for module in model.modules()] == before
    assert torch.equal(model.bn1.running_mean, statistics)


def test_only_models_of_a_fixed_size_are_told_the_size():
    assert input_args("test_vit", 1, 24) == {"in_chans": 1, "img_size": 24}
    assert input_args("ssdd_convnet3", 3, 24) == {"in_chans": 3, "img_size": 24}
    assert input_args("test_resnet", 3, 24) == {"in_chans": 3}
    assert input_args("ssdd_resnet18", 3, 24) == {"in_chans": 3}


# What provenance records


def test_the_hash_of_a_structure_is_that_of_types_and_plain_attributes():
    module = nn.Sequential(nn.Identity())
    module.sizes, module.kind, module.scale, module._state = (1, [2, None]), "avg", 0.5, 3
    module.tags, module.call, module.config = {"b", "a"}, make_images, {"a": 1}
    by_hand = ' Sequential {"kind": "avg", "scale": 0.5, "sizes": [1, [2, null]]}\n0 Identity {}\n'
    assert hash_structure(module) == hash_structure(module.eval()) == hashlib.sha256(by_hand.encode()).hexdigest()
    module.scale = True
    assert hash_structure(module) != hashlib.sha256(by_hand.encode()).hexdigest()


@pytest.mark.parametrize("args", [{"global_pool": "max"}, {"num_heads": 4}, {"no_embed_class": True}])
def test_settings_that_neither_weights_nor_printing_show_change_the_hash(args):
    first = timm.create_model("test_vit", num_classes=0, img_size=32, global_pool="avg")
    other = timm.create_model("test_vit", num_classes=0, img_size=32, **{"global_pool": "avg", **args})
    assert hash_structure(first) != hash_structure(other)
    again = timm.create_model("test_vit", num_classes=0, img_size=32, global_pool="avg")
    again.eval()(make_images())
    assert hash_structure(first) == hash_structure(again)


@pytest.mark.parametrize("name", ["checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay"])
@pytest.mark.parametrize("pretrained", [False, True])
def test_arguments_that_load_other_weights_are_refused(name, pretrained):
    message = f"'test_resnet' must be built without {name}: pass a file of other weights as --teacher.checkpoint"
    with pytest.raises(InputError, match=message):
        create_backbone("test_resnet", pretrained=pretrained, **{name: "weights.pth"})


# ResNets for small images


def test_the_stem_is_the_only_thing_that_differs_from_timm_s():
    ours, theirs = timm.create_model("ssdd_resnet18"), timm.create_model("resnet18", num_classes=0)
    shapes = [{name: value.shape for name, value in net.state_dict().items()} for net in (ours, theirs)]
    assert list(shapes[0]) == list(shapes[1])
    assert {name for name in shapes[0] if shapes[0][name] != shapes[1][name]} == {"conv1.weight"}
    assert isinstance(ours.maxpool, nn.Identity)
    # Kaiming's normal initialisation, fan out, as in timm's ResNets.
    assert ours.conv1.weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.1)
    # The last norm of a block starts at 0, so that the block starts as the identity.
    assert all(block.bn2.weight.abs().max() == 0 for stage in (ours.layer1, ours.layer4) for block in stage)


def test_a_saved_backbone_comes_back_through_timm(tmp_path):
    args = {"channels": (4, 4, 8, 8), "stem_padding": 2, "in_chans": 1}
    net = timm.create_model("ssdd_resnet10", **args).eval()
    save_for_hf(net, tmp_path, model_args=args, safe_serialization=True)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert torch.equal(loaded(make_images(2, 1, 16)), net(make_images(2, 1, 16)))
