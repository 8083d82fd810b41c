import pytest
import timm
import torch

import ssdd_hub
from ssdd_hub.errors import InputError, SettingsError
from ssdd_hub.models.build import StudentBuilder, StudentSettings, build_student, list_students
from ssdd_hub.models.convnet import ConvNet
from ssdd_hub.models.features import hash_weights, pre_logits
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.teachers.folder import write_folder

NORMS = ("batch", "instance", "none")


def make_images(count=3, channels=3, size=16, seed=0):
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(seed))


def count_parameters(*modules):
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


# The network


def test_the_state_is_in_layer_order():
    state = ConvNet((4, 5), "batch", 3, 8, 7).state_dict()
    block = ["weight", "bias", "weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    assert [name.split(".")[-1] for name in state] == [*block, *block, "weight", "bias"]
    shapes = [(4, 3, 3, 3), *[(4,)] * 5, (), (5, 4, 3, 3), *[(5,)] * 5, (), (7, 20), (7,)]
    assert [tuple(value.shape) for value in state.values()] == shapes
    assert list(state)[-2:] == ["head.weight", "head.bias"]


def test_instance_norm_is_over_the_pixels_of_each_map():
    net, images = ConvNet((4,), "instance", 3, 8, 7), make_images(size=8) * 5 + 3
    torch.nn.init.constant_(net.blocks[0][1].weight, 2.0)
    torch.nn.init.constant_(net.blocks[0][1].bias, 0.5)
    maps = net.blocks[0][0](images)
    std, mean = torch.std_mean(maps, (2, 3), keepdim=True, correction=0)
    expected = 2 * (maps - mean) / std + 0.5
    torch.testing.assert_close(net.blocks[0][1](maps), expected, rtol=1e-4, atol=1e-4)
    # An image does not see the others, in train mode either.
    torch.testing.assert_close(net.train().features(images)[:1], net.features(images[:1]))


def test_odd_sizes_are_rounded_down():
    assert ConvNet((4, 5), image_size=15).num_features == 5 * 3 * 3
    assert ConvNet((4, 5), image_size=15, num_targets=2)(make_images(size=15)).shape == (3, 2)


def test_every_wrong_argument_is_reported():
    with pytest.raises(SettingsError) as raised:
        ConvNet((8, 0, 4), "layer", image_size=7)
    assert raised.value.problems == [
        "widths must be positive, got [8, 0, 4]",
        "norm must be one of batch, instance, none, got 'layer'",
        "a ConvNet of 3 blocks halves the image 3 times and needs at least 8 pixels a side, got 7: use fewer widths "
        "or larger images",
    ]
    with pytest.raises(SettingsError, match=r"widths must be positive, got \[\]"):
        ConvNet(())


# In timm


@pytest.mark.parametrize("norm", ["batch", "instance", "none"])
def test_widths_and_norm_pass_through_timm(norm):
    net = timm.create_model("ssdd_convnet3", widths=(4, 5), norm=norm, num_classes=3, img_size=(8, 8))
    torch.manual_seed(0)
    ours = ConvNet((4, 5), norm, 3, 8, 3)
    net.load_state_dict(ours.state_dict())
    assert torch.equal(net.eval()(make_images(size=8)), ours.eval()(make_images(size=8)))
    defaults = (ConvNet().state_dict(), timm.create_model("ssdd_convnet3").state_dict())
    assert len({str([(name, value.shape) for name, value in state.items()]) for state in defaults}) == 1


# Any timm model


def test_our_students_are_listed():
    networks = ("alexnet", "convnet3", "convnet4", "convnet5", "mobilenetv2", "resnet10", "resnet18", "vgg11")
    assert ssdd_hub.list_students() == list_students() == [f"ssdd_{name}" for name in networks]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("name", "size", "model_args"),
    [
        ("ssdd_convnet3", 8, {"widths": (4, 5, 6), "norm": "instance"}),
        ("ssdd_resnet10", 8, {"channels": (4, 4, 4, 4)}),
        ("ssdd_vgg11", 8, {"widths": [4] * 8}),
        ("ssdd_alexnet", 8, {"widths": [4] * 5}),
        ("ssdd_mobilenetv2", 16, {}),
        ("test_resnet", 32, {}),
        ("test_vit", 32, {}),
        ("test_vit", 16, {"patch_size": 4}),
    ],
)
def test_a_student_of_any_kind_learns(name, size, model_args, channels):
    torch.manual_seed(0)
    student = build_student(name, num_targets=5, in_chans=channels, image_size=size, **model_args)
    assert student.training
    images, targets = make_images(4, channels, size), torch.randn(4, 5)
    assert student(images).shape == targets.shape
    assert pre_logits(student, images).shape == (4, student.head_hidden_size)
    optimizer, losses = torch.optim.SGD(student.parameters(), lr=0.01, momentum=0.9), []
    for _ in range(10):
        losses.append((student(images) - targets).square().mean())
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0]


def test_the_trial_of_a_student_draws_nothing_and_moves_no_statistics():
    torch.manual_seed(0)
    student = build_student("ssdd_convnet3", num_targets=2, in_chans=1, image_size=8, widths=(4,))
    torch.manual_seed(0)
    ours = ConvNet((4,), "batch", 1, 8, 2)
    assert all(map(torch.equal, student.state_dict().values(), ours.state_dict().values()))
    assert student.blocks[0][1].num_batches_tracked == 0


def test_an_unknown_student_is_reported_with_ours():
    with pytest.raises(
        InputError, match=r"'convnet3' is not a timm model: use one of ssdd_alexnet, ssdd_convnet3, .*list_models\(\)"
    ):
        build_student("convnet3", num_targets=2, in_chans=3, image_size=32)


@pytest.mark.parametrize(
    ("name", "size", "model_args", "reason"),
    [
        ("ssdd_convnet3", 32, {"width": 3}, "unexpected keyword argument 'width'"),
        ("ssdd_convnet3", 32, {"norm": "layer"}, "norm must be one of"),
        ("ssdd_convnet3", 4, {}, "needs at least 8 pixels a side, got 4"),
        ("ssdd_convnet3", 32, {"num_classes": 9}, "multiple values for keyword argument 'num_classes'"),
        ("test_resnet", 32, {"img_size": 32}, "unexpected keyword argument 'img_size'"),
        ("test_vit", 33, {}, "should be divisible by patch size"),
        ("test_convnext", 8, {}, "Kernel size"),
        ("test_maxvit", 8, {}, "modulo by zero"),
    ],
)
def test_a_student_that_cannot_be_is_refused(name, size, model_args, reason):
    with pytest.raises(
        InputError, match=rf"(?s)'{name}' cannot be built with .* for images of 3x{size}x{size}: .*{reason}"
    ):
        build_student(name, num_targets=2, in_chans=3, image_size=size, **model_args)


def test_settings_leave_out_what_the_data_decide():
    assert StudentSettings(model_args={"widths": [4], "img_size": 8}).model_args == {"widths": [4], "img_size": 8}
    with pytest.raises(
        SettingsError, match=r"student\.model_args must leave out in_chans, num_targets, which the data"
    ):
        StudentSettings(model_args={"num_targets": 3, "norm": "none", "in_chans": 1})


def test_stored_weights_need_to_be_asked_for():
    with pytest.raises(SettingsError, match=r"names stored weights, so pass --student\.pretrained true as well"):
        StudentSettings("local-dir:there")
    assert StudentSettings("local-dir:there", pretrained=True).building() == {"pretrained": True}
    assert StudentSettings(model_args={"norm": "none"}).building() == {"norm": "none"}


# Other features


@pytest.mark.parametrize(
    ("name", "size", "model_args", "kind", "width"),
    [
        ("ssdd_convnet3", 16, {"widths": (4, 5, 6)}, "mean", 6),
        ("ssdd_convnet3", 16, {"widths": (4, 5, 6)}, "flat", 6 * 4),
        ("ssdd_mobilenetv2", 32, {}, "flat", 1280 * 16),
        ("test_resnet", 64, {}, "flat", 96 * 4),
        ("test_vit", 32, {}, "cls", 64),
        ("test_vit", 32, {}, "mean", 64),
        ("test_convnext", 64, {}, "flat", 64 * 4),
    ],
)
def test_a_head_reads_the_features_that_are_asked_for(name, size, model_args, kind, width):
    torch.manual_seed(0)
    student = build_student(name, num_targets=5, in_chans=3, image_size=size, features=kind, **model_args).eval()
    images = make_images(2, 3, size)
    maps = student.blocks.forward_features(images)
    if kind == "cls":
        expected = maps[:, 0]
    elif kind == "flat":
        expected = maps.reshape(2, -1)
    else:
        expected = maps[:, 1:].mean(1) if maps.ndim == 3 else maps.flatten(2).mean(2)
    expected = getattr(student.blocks, "fc_norm", torch.nn.Identity())(expected) if kind != "flat" else expected
    found = pre_logits(student, images)
    assert found.shape == (2, width) and student.head_hidden_size == student.num_features == width
    assert torch.equal(found, expected)
    assert torch.equal(student(images), student.head(expected))
    student.reset_classifier(3)
    assert student(images).shape == (2, 3)


def test_features_that_a_network_lacks_are_refused():
    with pytest.raises(InputError, match="ResNet has no class token"):
        build_student("test_resnet", num_targets=5, in_chans=3, image_size=32, features="cls")
    with pytest.raises(InputError, match="features must be one of pre_logits, cls, mean, flat, got 'max'"):
        build_student("test_resnet", num_targets=5, in_chans=3, image_size=32, features="max")


# Weights to start from


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """The folder of a network of timm for 32 px and 7 classes, and the network."""
    folder = tmp_path_factory.mktemp("weights") / "net"
    torch.manual_seed(7)
    small = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2}
    network = timm.create_model("vit_base_patch16_224", num_classes=7, **small)
    write_folder(folder, network, {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.6, 0.7), "input_size": (3, 32, 32)}, "mit")
    return folder, network


def test_students_start_from_stored_weights_under_heads_of_their_own(stored):
    folder, network = stored
    build = StudentBuilder(f"local-dir:{folder}", num_targets=5, in_chans=3, image_size=32, pretrained=True)
    (folder / "model.safetensors").rename(folder / "away")
    try:
        torch.manual_seed(0)
        first, second = build(), build()
    finally:
        (folder / "away").rename(folder / "model.safetensors")
    assert first.training and first.get_classifier().weight.shape == (5, 24)
    assert not torch.equal(first.get_classifier().weight, second.get_classifier().weight)
    theirs = network.state_dict()
    for name, value in first.state_dict().items():
        assert name.startswith("head.") or torch.equal(value, theirs[name]), name
    with torch.no_grad():
        first.norm.weight.zero_()
    assert torch.equal(build().norm.weight, network.norm.weight), "one student changed another"
    assert build.pixel_space(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)) == PixelSpace(
        (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    )
    network.reset_classifier(0)
    facts = {"weights_sha256": hash_weights(network), "license": "mit"}
    assert build.weights() == facts
    assert build.describe() == {
        **{"name": "vit_base_patch16_224", "model_args": {}, "weights": f"local-dir:{folder}"},
        **facts,
    }


def test_stored_weights_suit_other_sizes_and_other_features(stored):
    shape = {"num_targets": 5, "in_chans": 3, "image_size": 64, "pretrained": True}
    student = build_student(f"local-dir:{stored[0]}", **shape, features="mean")
    assert student(make_images(2, 3, 64)).shape == (2, 5)
    assert student.blocks.pos_embed.shape[1] == 65 and stored[1].pos_embed.shape[1] == 17


def test_weights_that_are_not_there_and_weights_that_are_no_model_are_refused(tmp_path):
    shape = {"num_targets": 5, "in_chans": 3, "image_size": 32, "pretrained": True}
    with pytest.raises(InputError, match=r"student 'local-dir:.*gone' \(pretrained=True.*cannot be built"):
        build_student(f"local-dir:{tmp_path}/gone", **shape)
    (tmp_path / "config.json").write_text('{"architecture": "test_vit", "pretrained_cfg": {"url": "http://there"}}')
    with pytest.raises(InputError, match="pretrained_cfg.url is not taken"):
        build_student(f"local-dir:{tmp_path}", **shape)


def test_without_weights_nothing_is_recorded_but_the_network():
    build = StudentBuilder("ssdd_convnet3", num_targets=2, in_chans=1, image_size=8, widths=[4])
    assert build.describe() == {"name": "ssdd_convnet3", "model_args": {"widths": [4]}} and build.weights() == {}
    pixels = torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8)
    assert build.pixel_space(pixels) == PixelSpace.of(pixels)
