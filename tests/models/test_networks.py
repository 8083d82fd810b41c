from functools import partial

import pytest
import timm
import torch
from timm.models import save_for_hf
from torch import nn
from torch.nn import functional

from ssdd_hub.errors import InputError, SettingsError
from ssdd_hub.models.features import pre_logits
from ssdd_hub.models.vgg import VGG11, PlainNet

STUDENTS = ("ssdd_vgg11", "ssdd_alexnet", "ssdd_mobilenetv2", "ssdd_convnet3")
NAMES = (*STUDENTS, "ssdd_convnet4", "ssdd_convnet5", "ssdd_resnet10", "ssdd_resnet18")
NARROW = {
    "ssdd_vgg11": {"widths": [8] * 8},
    "ssdd_alexnet": {"widths": [8] * 5},
    **{f"ssdd_convnet{depth}": {"widths": [8] * depth} for depth in (3, 4, 5)},
    # A last norm of weight 0 would hide what is before it.
    **{f"ssdd_resnet{depth}": {"channels": [8] * 4, "zero_init_last": False} for depth in (10, 18)},
}
# Widths with `M` for max-pooling; AlexNet's first two kernels have side 5.
VGG = (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M")
ALEX = (128, "M", 192, "M", 256, 192, 192, "M")
# The 17 blocks of MobileNetV2: input width, expansion, width, stride.
MOBILE = (
    (32, 1, 16, 1),
    (16, 2, 24, 1),
    (24, 2, 24, 1),
    (24, 2, 32, 2),
    *[(32, 2, 32, 1)] * 2,
    (32, 2, 64, 2),
    *[(64, 2, 64, 1)] * 3,
    (64, 2, 96, 1),
    *[(96, 2, 96, 1)] * 2,
    (96, 2, 160, 2),
    *[(160, 2, 160, 1)] * 2,
    (160, 2, 320, 1),
)


def make_images(count=4, channels=3, size=16):
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(0))


def create(name, size=16, in_chans=3, targets=5, seed=0, **model_args):
    sized = {} if "resnet" in name else {"img_size": size}
    torch.manual_seed(seed)
    return timm.create_model(name, in_chans=in_chans, num_classes=targets, **sized, **model_args)


def create_narrow(name, seed=0):
    """The same layers for quick tests, with few channels where that is an option."""
    return create(name, smallest(name), seed=seed, **NARROW.get(name, {}))


def smallest(name):
    return 32 if name == "ssdd_convnet5" else 16


@torch.no_grad()
def settle(net, images):
    """Gives batch norm the statistics of these images, without which signals of untrained networks fade."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    net.train()(images)
    return net.eval()


def count_parameters(net):
    return sum(parameter.numel() for parameter in net.parameters())


# Sizes


def count_plain(layout, kernels, channels):
    """Weights and bias of each convolution, weights and bias of each norm."""
    total, before = 0, channels
    for width, kernel in zip([width for width in layout if width != "M"], kernels, strict=True):
        total += kernel**2 * before * width + width + 2 * width
        before = width
    return total


def count_mobile(channels):
    total = 9 * channels * 32 + 2 * 32
    for before, expansion, width, stride in MOBILE:
        middle = expansion * before
        expand, depthwise, project = before * middle + 2 * middle, 9 * middle + 2 * middle, middle * width + 2 * width
        shortcut = before * width + 2 * width if stride == 1 and before != width else 0
        total += expand + depthwise + project + shortcut
    return total + 320 * 1280 + 2 * 1280


def count_resnet(blocks, channels):
    total, before = 9 * channels * 64 + 2 * 64, 64
    for width in (64, 128, 256, 512):
        total += 9 * before * width + 9 * width**2 + 4 * width
        total += before * width + 2 * width if before != width else 0
        total += (blocks - 1) * (2 * 9 * width**2 + 4 * width)
        before = width
    return total


# Parameters of the backbone by channels of the images, and features at 16, 32 and 64 px, `None` for too small.
SIZES = {
    "ssdd_vgg11": (partial(count_plain, VGG, [3] * 8), (512, 512, 512 * 2**2)),
    "ssdd_alexnet": (partial(count_plain, ALEX, (5, 5, 3, 3, 3)), (192 * 2**2, 192 * 4**2, 192 * 8**2)),
    "ssdd_mobilenetv2": (count_mobile, (1280, 1280, 1280)),
    "ssdd_convnet3": (partial(count_plain, (128, 256, 512), [3] * 3), (512 * 2**2, 512 * 4**2, 512 * 8**2)),
    "ssdd_convnet4": (partial(count_plain, (64, 128, 256, 512), [3] * 4), (512, 512 * 2**2, 512 * 4**2)),
    "ssdd_convnet5": (partial(count_plain, (32, 64, 128, 256, 512), [3] * 5), (None, 512, 512 * 2**2)),
    "ssdd_resnet10": (partial(count_resnet, 1), (512, 512, 512)),
    "ssdd_resnet18": (partial(count_resnet, 2), (512, 512, 512)),
}


@pytest.mark.parametrize(("size", "channels"), [(16, 1), (16, 3), (32, 3), (64, 1)])
@pytest.mark.parametrize("name", NAMES)
def test_parameters_and_features_are_as_many_as_by_hand(name, size, channels):
    count, widths = SIZES[name]
    width = widths[(16, 32, 64).index(size)]
    if width is None:
        with pytest.raises(SettingsError, match=f"needs at least 32 pixels a side, got {size}"):
            create(name, size, channels)
        return
    with torch.device("meta"):
        net, images = create(name, size, channels, targets=512), torch.empty(2, channels, size, size)
    assert count_parameters(net) == count(channels) + width * 512 + 512
    net.reset_classifier(0)
    assert count_parameters(net) == count(channels)
    assert net.num_features == net.head_hidden_size == width and net.in_chans == channels
    assert net(images).shape == (2, width)


def test_backbones_are_as_large_as_papers_md_says():
    assert SIZES["ssdd_convnet3"][0](3) / 1e6 == pytest.approx(1.48, abs=0.005)
    assert SIZES["ssdd_convnet4"][0](3) / 1e6 == pytest.approx(1.55, abs=0.005)


# What the layers do


def take_layers(net):
    """Returns two functions: the network's next convolution, and its next norm, with its own statistics."""
    convs = iter([module for module in net.modules() if isinstance(module, nn.Conv2d)])
    norms = iter([module for module in net.modules() if isinstance(module, nn.BatchNorm2d)])

    def conv(maps, **how):
        layer = next(convs)
        return functional.conv2d(maps, layer.weight, layer.bias, **how)

    def norm(maps):
        layer = next(norms)
        return functional.batch_norm(maps, layer.running_mean, layer.running_var, layer.weight, layer.bias)

    return conv, norm


def run_plain(layout, kernels, net, maps):
    conv, norm = take_layers(net)
    kernels = iter(kernels)
    for entry in layout:
        if entry == "M":
            maps = functional.max_pool2d(maps, 2)
        else:
            maps = norm(conv(maps, padding=next(kernels) // 2)).relu()
    return maps.flatten(1)


def run_mobile(net, maps):
    conv, norm = take_layers(net)
    maps = norm(conv(maps, padding=1)).relu()
    for before, expansion, width, stride in MOBILE:
        middle = norm(conv(maps)).relu()
        middle = norm(conv(middle, padding=1, stride=stride, groups=expansion * before)).relu()
        outputs = norm(conv(middle))
        if stride == 1:
            outputs = outputs + (maps if before == width else norm(conv(maps)))
        maps = outputs
    return norm(conv(maps)).relu().mean((2, 3))


@pytest.mark.parametrize(
    ("name", "size", "witness"),
    [
        ("ssdd_vgg11", 32, partial(run_plain, VGG, [3] * 8)),
        ("ssdd_vgg11", 16, partial(run_plain, VGG[:-1], [3] * 8)),
        ("ssdd_vgg11", 8, partial(run_plain, (*VGG[:9], *VGG[10:-1]), [3] * 8)),
        ("ssdd_alexnet", 16, partial(run_plain, ALEX, (5, 5, 3, 3, 3))),
        ("ssdd_mobilenetv2", 16, run_mobile),
        ("ssdd_mobilenetv2", 9, run_mobile),
    ],
)
def test_features_are_those_of_layers_written_out(name, size, witness):
    images = make_images(size=size).double()
    net = settle(create(name, size, **NARROW.get(name, {})).double(), images)
    # Norms are given weights and biases too, which start at 1 and 0.
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    features = net.features(images)
    torch.testing.assert_close(features, witness(net, images), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(net(images), features @ net.head.weight.T + net.head.bias)
    assert torch.equal(features, pre_logits(net, images))
    assert (features[0] - features[1]).abs().max() > 0.1


@pytest.mark.parametrize(("size", "pools"), [(1, 0), (2, 1), (15, 3), (16, 4), (31, 4), (32, 5), (64, 5), (65, 5)])
def test_poolings_stop_at_one_pixel(size, pools):
    net = PlainNet(VGG11, [2] * 8, image_size=size, num_targets=3)
    assert sum(isinstance(module, nn.MaxPool2d) for module in net.modules()) == pools
    assert net.num_features == 2 * (size >> pools) ** 2
    assert net.eval()(make_images(1, size=size)).shape == (1, 3)


def test_every_wrong_argument_is_reported():
    with pytest.raises(SettingsError) as raised:
        create("ssdd_alexnet", 0, widths=[4, 0, 4], norm="layer")
    assert raised.value.problems == [
        "widths must be positive, got [4, 0, 4]",
        "norm must be one of batch, instance, none, got 'layer'",
        "widths must be 5, one per convolution, got [4, 0, 4]",
        "images must be at least 1 pixel a side, got 0",
    ]


# What all of them promise


@pytest.mark.parametrize("name", STUDENTS)
def test_images_that_are_not_square_are_refused(name):
    with pytest.raises(InputError, match=r"takes square images, got img_size=\(16, 8\)"):
        create(name, (16, 8))
    assert create(name, (16, 16))(make_images()).shape == (4, 5)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_the_images_and_every_parameter(name):
    net, images = create_narrow(name), make_images(size=smallest(name))
    # In train mode the norm of a batch would take biases out.
    settle(net, images)(images.requires_grad_()).square().sum().backward()
    assert (images.grad.flatten(1).abs().sum(1) > 0).all()
    for parameter_name, parameter in net.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all()
        assert parameter.grad.abs().sum() > 0, parameter_name


@pytest.mark.parametrize("name", NAMES)
def test_in_eval_mode_an_image_does_not_see_the_others(name):
    images = make_images(size=smallest(name))
    net = settle(create_narrow(name), images)
    with torch.no_grad():
        together, alone = pre_logits(net, images), pre_logits(net, images[1:3])
        torch.testing.assert_close(together[1:3], alone, rtol=1e-4, atol=1e-4)
        assert (together[1] - together[2]).abs().max() > 0.1
        assert (pre_logits(net.train(), images[1:3]) - alone).abs().max() > 0.1


@pytest.mark.parametrize("name", STUDENTS)
def test_a_state_moves_to_another_network(name):
    images = make_images()
    net, other = settle(create_narrow(name), images), create_narrow(name, seed=1).eval()
    assert not torch.allclose(net(images), other(images))
    other.load_state_dict(net.state_dict())
    assert torch.equal(net(images), other(images))
    assert list(net.state_dict())[-2:] == ["head.weight", "head.bias"]


@pytest.mark.parametrize("name", STUDENTS)
def test_the_head_can_be_replaced(name):
    net, images = create_narrow(name).double().eval(), make_images().double()
    features, before = net.features(images), net.head
    net.reset_classifier(3)
    assert net.head is net.get_classifier() and net.head is not before
    assert net(images).shape == (4, 3) and net.num_classes == 3
    assert torch.equal(net.features(images), features)
    net.reset_classifier(0, "")
    assert torch.equal(net(images), features)


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("ssdd_vgg11", {"widths": [4] * 8, "img_size": 16}),
        ("ssdd_alexnet", {"widths": [4] * 5, "img_size": 16, "norm": "instance"}),
        ("ssdd_convnet3", {"widths": (4, 5), "norm": "instance", "img_size": 16}),
        ("ssdd_mobilenetv2", {}),
    ],
)
def test_a_saved_student_comes_back_through_timm(name, args, tmp_path):
    images = make_images(channels=1)
    net = settle(timm.create_model(name, num_classes=3, in_chans=1, **args), images)
    save_for_hf(net, tmp_path, model_args={"in_chans": 1, **args}, safe_serialization=True)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert torch.equal(loaded(images), net(images))
    # The entries of timm's configuration that are needed for this: the names of head and first convolution.
    other = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=4).eval()
    assert torch.equal(other.features(images), net.features(images)) and other(images).shape == (4, 4)
    colour = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, in_chans=3).eval()
    torch.testing.assert_close(colour(images.expand(-1, 3, -1, -1)), net(images), rtol=1e-3, atol=1e-4)


# The ResNets of the paper


@pytest.mark.parametrize(("name", "blocks"), [("ssdd_resnet10", 1), ("ssdd_resnet18", 2)])
def test_a_stem_padded_by_two_enlarges_the_maps(name, blocks):
    with torch.device("meta"):
        net, maps = create(name, targets=0, stem_padding=2), torch.empty(1, 3, 32, 32)
    assert count_parameters(net) == count_resnet(blocks, 3)
    assert net(maps).shape == (1, 512)
    maps = net.maxpool(net.conv1(maps))
    for number, side in enumerate((34, 17, 9, 5)):
        stage = (net.layer1, net.layer2, net.layer3, net.layer4)[number]
        maps = stage(maps)
        assert len(stage) == blocks and maps.shape == (1, 64 << number, side, side)
