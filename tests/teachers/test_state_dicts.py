from functools import partial

import pytest
import timm
import torch
from lightly.models import ResNetGenerator
from safetensors.torch import save_file
from torch import nn
from torchvision.models import resnet

import ssdd_hub.models  # noqa: F401  (registers ssdd_resnet18)
from ssdd_hub.errors import InputError
from ssdd_hub.teachers.checkpoints import load_checkpoint

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def shake(network):
    """Gives a network batch statistics and norms of its own, so that each tensor has an effect."""
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name.endswith(("running_mean", "bias")):
                tensor.uniform_(-0.1, 0.1)
            elif name.endswith("running_var") or (name.endswith("weight") and tensor.ndim == 1):
                tensor.uniform_(0.5, 1.5)
    return network.eval()


def torchvision_resnet(padding=2):
    """ResNet-10 of torchvision for small images: a 3x3 stem, no max-pooling, no classifier."""
    torch.manual_seed(0)
    network = resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1])
    network.conv1 = nn.Conv2d(3, 64, 3, stride=1, padding=padding, bias=False)
    network.maxpool, network.fc = nn.Identity(), nn.Identity()
    return shake(network)


def backbone_of(padding=2, name="ssdd_resnet10"):
    return timm.create_model(name, num_classes=0, stem_padding=padding).eval()


@pytest.fixture(scope="module")
def original():
    return torchvision_resnet()


def prefixed(prefix, state):
    return {prefix + name: value for name, value in state.items()}


def saved(state, path):
    (save_file if path.suffix == ".safetensors" else torch.save)(state, path)
    return path


def check_same_features(network, backbone):
    with torch.no_grad():
        torch.testing.assert_close(backbone(IMAGES), network(IMAGES).flatten(1), rtol=1e-5, atol=1e-5)


# Names as in torchvision and timm


@pytest.mark.parametrize(
    ("prefix", "suffix"),
    [
        *[("", ".pt"), ("", ".safetensors"), ("backbone.", ".pth"), ("module.", ".ckpt")],
        *[("encoder.", ".safetensors"), ("model.", ".pt"), ("module.student_backbone.", ".safetensors")],
    ],
)
def test_the_authors_teacher_is_read_under_any_prefix_and_from_any_kind_of_file(original, tmp_path, prefix, suffix):
    backbone = backbone_of()
    report = load_checkpoint(backbone, saved(prefixed(prefix, original.state_dict()), tmp_path / f"teacher{suffix}"))
    check_same_features(original, backbone)
    assert (report.layout, report.prefix, report.ignored) == ("names", prefix, {})
    assert report.loaded == len(backbone.state_dict())


def test_the_real_resnet18_of_krr_st_is_ssdd_resnet18_with_a_stem_padding_of_2(tmp_path):
    network = resnet.resnet18()
    network.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=2, bias=False)
    network.maxpool, network.fc = nn.Identity(), nn.Identity()
    path, backbone = saved(shake(network).state_dict(), tmp_path / "teacher.pt"), backbone_of(name="ssdd_resnet18")
    assert load_checkpoint(backbone, str(path)).loaded == 120
    check_same_features(network, backbone)


def test_a_classifier_of_torchvision_is_left_out_and_reported(tmp_path):
    network = shake(resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1], num_classes=7))
    backbone = timm.create_model("resnet10t", num_classes=0, stem_type="", avg_down=False, stem_width=64).eval()
    report = load_checkpoint(backbone, saved(network.state_dict(), tmp_path / "classifier.pth"))
    assert report.ignored == {"fc": 2}
    network.fc = nn.Identity()
    check_same_features(network, backbone)


@pytest.mark.parametrize(
    ("name", "args"), [("test_vit", {"img_size": 32}), ("test_convnext", {}), ("mobilenetv3_small_050", {})]
)
def test_any_timm_network_is_read_without_its_classifier(tmp_path, name, args):
    network = shake(timm.create_model(name, num_classes=5, **args))
    backbone = timm.create_model(name, num_classes=0, **args).eval()
    report = load_checkpoint(backbone, saved(network.state_dict(), tmp_path / "model.safetensors"))
    assert report.layout == "names" and sum(report.ignored.values()) == 2
    network.reset_classifier(0)
    check_same_features(network, backbone)


# solo-learn, lightly, Lightning


def lightning(state):
    """A Lightning checkpoint of plain values and tensors."""
    return {
        **{"epoch": 3, "global_step": 9, "pytorch-lightning_version": "2.6.6", "loops": {"fit": [1, 2]}},
        **{"state_dict": state, "optimizer_states": [{"state": {0: {"step": torch.ones(())}}}]},
    }


@pytest.mark.parametrize("prefix", ["backbone.", "encoder."])
def test_a_solo_learn_checkpoint_gives_its_backbone_not_its_momentum_copy(original, tmp_path, prefix):
    other = torchvision_resnet().state_dict()
    state = {
        **prefixed(f"momentum_{prefix}", {name: value + 1 for name, value in other.items()}),
        **prefixed(prefix, original.state_dict()),
        **prefixed("projector.", nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).state_dict()),
        **prefixed("classifier.", nn.Linear(4, 10).state_dict()),
        "queue": torch.randn(3, 2),
    }
    backbone = backbone_of()
    report = load_checkpoint(backbone, saved(lightning(state), tmp_path / "last.ckpt"))
    check_same_features(original, backbone)
    assert (report.prefix, report.loaded) == (prefix, len(other))
    momentum = f"momentum_{prefix}"[:-1]
    assert report.ignored == {momentum: len(other), "projector": 4, "classifier": 2, "queue": 1}


@pytest.mark.parametrize("prefix", ["", "backbone.", "model.backbone."])
@pytest.mark.parametrize("wrap", [dict, lightning])
def test_the_numbered_children_of_torchvision_as_in_lightlys_examples(original, tmp_path, prefix, wrap):
    children = nn.Sequential(*list(original.children())[:-1])
    state = prefixed(prefix, children.state_dict())
    if prefix:
        state |= prefixed("projection_head.layers.", nn.Sequential(nn.Linear(3, 3)).state_dict())
    backbone = backbone_of()
    report = load_checkpoint(backbone, saved(wrap(state), tmp_path / "lightly.ckpt"))
    check_same_features(children, backbone)
    assert (report.layout, report.prefix) == ("torchvision-children", prefix)
    assert report.ignored == ({"projection_head": 2} if prefix else {})


def test_lightlys_own_resnet_for_small_images(tmp_path):
    network = ResNetGenerator("resnet-18", width=0.25)
    children = shake(nn.Sequential(*list(network.children())[:-1], nn.AdaptiveAvgPool2d(1)))
    backbone = timm.create_model("ssdd_resnet18", channels=(16, 32, 64, 128), num_classes=0).eval()
    state = prefixed("backbone.", children.state_dict())
    report = load_checkpoint(backbone, saved(state, tmp_path / "lightly.pt"))
    assert (report.layout, report.prefix) == ("lightly-children", "backbone.")
    # lightly's own forward pass has the ReLU after the first norm, which its children lack.
    check_same_features(nn.Sequential(*children[:2], nn.ReLU(), *children[2:]), backbone)


def test_counters_of_batches_may_be_missing_as_in_old_files(original, tmp_path):
    state = {name: value for name, value in original.state_dict().items() if "num_batches" not in name}
    backbone = backbone_of()
    assert load_checkpoint(backbone, saved(state, tmp_path / "old.pt")).loaded == len(state)
    check_same_features(original, backbone)


def test_weights_in_half_precision_take_the_dtype_of_the_backbone(original, tmp_path):
    half = {name: value.half() if value.ndim else value for name, value in original.state_dict().items()}
    backbone = backbone_of()
    load_checkpoint(backbone, saved(half, tmp_path / "half.pt"))
    assert backbone.conv1.weight.dtype == torch.float32
    torch.testing.assert_close(backbone.conv1.weight, original.conv1.weight, rtol=1e-3, atol=1e-4)


# Files that do not fit


def refuse(tmp_path, content, match, name="wrong.pt"):
    """Checks that a file is refused, and that the backbone is left as it was."""
    path, backbone = tmp_path / name, backbone_of()
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    with pytest.raises(InputError, match=match):
        load_checkpoint(backbone, path)
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())


def test_missing_and_unexpected_tensors_are_counted_and_the_first_are_named(original, tmp_path):
    state = original.state_dict()
    for name in [name for name in state if name.startswith("layer4.0.bn")]:
        del state[name]
    state["layer9.weight"] = torch.ones(1)
    message = (
        r"does not fit SmallImageResNet \(8 missing: layer4.0.bn1.weight, layer4.0.bn1.bias, "
        r"layer4.0.bn1.running_mean, \.\.\.; 1 unexpected: layer9.weight\). Choose teacher.backbone and teacher.model"
    )
    refuse(tmp_path, state, message)
    refuse(tmp_path, prefixed("backbone.", state), "1 unexpected: backbone.layer9.weight")


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (
            torch.ones(64, 3, 7, 7),
            r"1 of another shape or type: conv1.weight float32\(64, 3, 7, 7\) instead of float32\(64",
        ),
        (torch.ones(64, 3, 3, 3, dtype=torch.int8), r"conv1.weight int8\(64, 3, 3, 3\) instead of float32"),
    ],
)
def test_weights_of_another_shape_or_type_are_refused(original, tmp_path, weight, message):
    refuse(tmp_path, original.state_dict() | {"conv1.weight": weight}, message)


def test_other_networks_are_refused_and_two_that_fit_equally_are_not_guessed_between(original, tmp_path):
    refuse(tmp_path, backbone_of(name="ssdd_resnet18").state_dict(), "48 unexpected: layer1.1.conv1.weight")
    message = "holds no network like this backbone: it has cls_token, .* the backbone conv1.weight"
    refuse(tmp_path, timm.create_model("test_vit", num_classes=0).state_dict(), message)
    state = prefixed("left.", original.state_dict()) | prefixed("right.", original.state_dict())
    refuse(tmp_path, state, r"several networks that fit \(left., right.\): save the one to use in a file of its own")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.ones(2)], "holds a list, not a state dict"),
        ({"state_dict": {"epoch": 1}, "seed": 3}, "holds no weights but epoch"),
        ({}, "holds no weights but"),
        (b"", "is damaged"),
        (b"no checkpoint", "is damaged, or holds Python objects"),
    ],
)
def test_what_is_no_state_dict_is_refused(tmp_path, content, message):
    refuse(tmp_path, content, message)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_truncated_file_is_refused(original, tmp_path, suffix):
    content = saved(original.state_dict(), tmp_path / f"whole{suffix}").read_bytes()[:-300]
    refuse(tmp_path, content, "is damaged .*: fetch or make it again", name=f"half{suffix}")


def test_a_file_that_is_not_there_or_of_another_kind_is_refused(tmp_path):
    refuse(tmp_path, None, "there is no checkpoint .*gone.pt", name="gone.pt")
    refuse(tmp_path, b"x", r"a checkpoint is a .safetensors, .pt, .pth, .ckpt file, got model.onnx", name="model.onnx")


def test_a_checkpoint_with_code_is_not_unpickled(original, tmp_path, attack):
    mark = tmp_path / "attacked"
    content = {"state_dict": original.state_dict(), "hyper_parameters": attack(mark)}
    message = r"holds Python objects, which could run code .*torch.save\(torch.load\(FILE, weights_only=False\)"
    refuse(tmp_path, content, message)
    assert not mark.exists()
    torch.load(tmp_path / "wrong.pt", weights_only=False)
    assert mark.exists(), "the attack of this test would not have worked anyway"


def test_hyper_parameters_that_are_objects_are_refused_with_the_way_to_convert(original, tmp_path):
    content = lightning(original.state_dict()) | {"hyper_parameters": partial(int)}
    refuse(tmp_path, content, "convert it where it was made")
