"""The batched views against lightly's own, on pictures made so that each parameter of a view can be read off it.

Distributions are compared by two-sample Kolmogorov-Smirnov tests at p = 0.001, and rates and means within 4 standard
errors, at fixed seeds. Operations with fixed parameters are compared pixel by pixel.
"""

import sys

import numpy as np
import pytest
import torch
import torchvision.transforms as v1
from lightly import transforms
from lightly.transforms.byol_transform import BYOLView1Transform, BYOLView2Transform
from lightly.transforms.gaussian_blur import GaussianBlur
from lightly.transforms.multi_view_transform import MultiViewTransform
from lightly.transforms.rotation import RandomRotate
from lightly.transforms.solarize import RandomSolarization
from matplotlib.colors import rgb_to_hsv
from PIL import Image
from scipy.stats import ks_2samp
from sklearn.datasets import load_sample_images
from torchvision.transforms import v2

from ssdd_hub.errors import InputError
from ssdd_hub.seeds import seeded

pytest.importorskip("kornia")

from ssdd_hub.teachers.device_views import DeviceViews

# Views of a picture by lightly, one after the other, and batched, which costs less.
COUNT, BATCHED = 600, 1200
SPACE = {"mean": [0.45, 0.4, 0.35], "std": [0.25, 0.3, 0.2]}
# Each random step of lightly's views switched off; a test switches on what it looks at.
NO_JITTER = {"cj_prob": 1.0, "cj_strength": 1.0, "cj_bright": 0.0, "cj_contrast": 0.0, "cj_sat": 0.0, "cj_hue": 0.0}
OFF = {
    **{"min_scale": 1.0, "hf_prob": 0.0, "cj_prob": 0.0, "random_gray_scale": 0.0, "gaussian_blur": 0.0},
    "normalize": None,
}


def simclr(size, **changes):
    return transforms.SimCLRTransform(size, **{**OFF, **changes})


@pytest.fixture(scope="module")
def photographs():
    """Real photographs, `(n, 3, 48, 48)`, uint8."""
    pictures = [torch.tensor(picture).permute(2, 0, 1) for picture in load_sample_images().images]
    tiles = [picture.unfold(1, 48, 96).unfold(2, 48, 96) for picture in pictures]  # each (3, rows, columns, 48, 48)
    return torch.cat([tile.flatten(1, 2).transpose(0, 1) for tile in tiles])


def as_pil(pixels):
    array = pixels.permute(1, 2, 0).numpy()
    return Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)


def on_workers(transform, pixels, seed=1):
    """lightly's views of each image, stacked."""
    np.random.seed(seed)
    with seeded(seed, "workers"):
        views = [transform(as_pil(image)) for image in pixels]
    return [torch.stack(list(same)) for same in zip(*views, strict=True)]


def on_device(transform, pixels, seed=1):
    with seeded(seed, "views"):
        return DeviceViews(transform)(pixels)


def both_ways(transform, picture):
    """The first views of many copies of a picture `(C, H, W)`, by lightly and batched."""
    few, many = (picture.expand(count, *picture.shape) for count in (COUNT, BATCHED))
    return on_workers(transform, few)[0], on_device(transform, many)[0]


def only(*steps):
    return MultiViewTransform([v2.Compose([*steps, v1.ToTensor()])])


def flat(*colour, size=8):
    """A picture of one colour, in 0 to 255."""
    return torch.tensor(colour, dtype=torch.uint8)[:, None, None].expand(-1, size, size)


def halves(dark, light, size=8):
    """A grey picture, dark on the left and light on the right, as RGB."""
    return torch.tensor([dark, light], dtype=torch.uint8).repeat_interleave(size // 2).expand(3, size, size)


def same_distribution(first, second):
    return ks_2samp(np.asarray(first), np.asarray(second)).pvalue > 1e-3


def same_rate(first, second, expected):
    """Whether a share of `COUNT` and one of `BATCHED` agree with each other and with what they should be."""
    errors = [4 * np.sqrt(expected * (1 - expected) / count) for count in (COUNT, BATCHED)]
    agree = abs(first - second) < np.hypot(*errors)
    return agree and abs(first - expected) < errors[0] and abs(second - expected) < errors[1]


# Geometry.


def read_boxes(views, size=64, step=3.9):
    """Reads left, top, width and height, in pixels, and both flips off views of `ramp`."""
    middle, quarter = views.shape[-1] // 2, views.shape[-1] // 4
    places = views * 255 / step  # (n, 3, h, w), columns of the original in channel 0, rows in channel 1
    boxes = {}
    for name, channel, axis in (("x", 0, 2), ("y", 1, 1)):
        line = places[:, channel].mean(3 - axis)  # (n, w)
        slope = (line[:, -quarter] - line[:, quarter]) / (views.shape[-1] - 2 * quarter)
        boxes[f"{name} length"] = (slope.abs() * views.shape[-1]).round()
        centre = (line[:, middle - 1] + line[:, middle]) / 2 + 0.5
        boxes[f"{name} start"] = (centre - boxes[f"{name} length"] / 2).round()
        boxes[f"{name} flip"] = (slope < 0).float()
    return boxes


def ramp(size=64, step=3.9):
    """A picture whose first channel is the column and whose second is the row."""
    places = (torch.arange(size) * step).round()
    return torch.stack([places.expand(size, size), places[:, None].expand(size, size), torch.zeros(size, size)]).byte()


def test_crops_of_images_that_are_not_square_have_the_places_and_sizes_of_lightlys():
    expected, boxes = map(read_boxes, both_ways(simclr(32, min_scale=0.2), ramp()[:, :40]))
    assert all(same_distribution(expected[name], boxes[name]) for name in boxes if "flip" not in name)


def test_crops_have_the_area_the_shape_and_the_place_of_lightlys():
    expected, boxes = map(read_boxes, both_ways(simclr(32, min_scale=0.08, hf_prob=0.5), ramp()))
    for name in ("x start", "y start", "x length", "y length"):
        assert same_distribution(expected[name], boxes[name]), name
    for measure in (torch.mul, torch.div):
        lengths = [(each["x length"], each["y length"]) for each in (expected, boxes)]
        assert same_distribution(*(measure(*each) for each in lengths)), measure
    assert same_rate(expected["x flip"].mean(), boxes["x flip"].mean(), 0.5)
    assert boxes["y flip"].sum() == 0
    assert boxes["x length"].min() < 40 and boxes["x start"].min() == 0
    assert abs((boxes["x start"] + boxes["x length"]).max() - 64) <= 1  # read to a pixel


def test_flips_and_quarter_turns_are_as_frequent_as_lightlys():
    transform = simclr(32, hf_prob=0.3, vf_prob=0.2, rr_prob=0.0)
    expected, boxes = map(read_boxes, both_ways(transform, ramp()))
    assert same_rate(expected["x flip"].mean(), boxes["x flip"].mean(), 0.3)
    assert same_rate(expected["y flip"].mean(), boxes["y flip"].mean(), 0.2)
    turning = simclr(8, rr_prob=0.3)
    expected, turned = ((views[:, 0, 0, 0] > 0.5).float().mean() for views in both_ways(turning, halves(0, 255)))
    assert same_rate(expected, turned, 0.3)  # counter-clockwise, the light half comes up


def test_angles_are_distributed_as_lightlys():
    # The light half's weight in the upper half grows with the angle.
    transform = simclr(32, rr_prob=0.8, rr_degrees=(-20, 60))
    expected, turned = (views[:, 0, :16].mean((1, 2)) for views in both_ways(transform, halves(0, 255, size=32)))
    assert same_distribution(expected.round(decimals=4), turned.round(decimals=4))
    assert (turned > 0.7).any() and (turned < 0.42).any()


# Colours.


def brightness(views):
    return views.mean((1, 2, 3))


def contrast(views):
    return views[:, 0, :, -1].mean(1) - views[:, 0, :, 0].mean(1)


def saturation(views):
    return views[:, :, 0, 0].amax(1) - views[:, :, 0, 0].amin(1)


def hue(views):
    """In turns, around that of orange, which is far from where hues wrap around."""
    return torch.from_numpy(rgb_to_hsv(views[:, :, 0, 0])[:, 0] + 0.4) % 1


@pytest.mark.parametrize(
    ("setting", "strength", "picture", "measure"),
    [
        ("cj_bright", 0.4, flat(120, 120, 120), brightness),
        ("cj_bright", 1.4, flat(90, 90, 90), brightness),
        ("cj_contrast", 0.8, halves(100, 156), contrast),
        ("cj_sat", 0.8, flat(150, 110, 100), saturation),
        ("cj_hue", 0.1, flat(200, 110, 20), hue),
        ("cj_hue", 0.4, flat(200, 110, 20), hue),
    ],
)
def test_each_colour_shift_is_distributed_as_lightlys(setting, strength, picture, measure):
    transform = simclr(8, **{**NO_JITTER, setting: strength})
    expected, shifted = map(measure, both_ways(transform, picture))
    assert same_distribution(expected, shifted)
    assert abs(expected.mean() - shifted.mean()) < 4 * np.sqrt(1 / COUNT + 1 / BATCHED) * expected.std()


def test_colours_are_jittered_as_often_as_lightlys():
    transform = simclr(8, cj_prob=0.7, cj_strength=0.5)
    views = both_ways(transform, flat(150, 110, 60))
    kept = [(each[:, :, 0, 0] * 255 - torch.tensor([150, 110, 60])).abs().amax(1) < 0.1 for each in views]
    # lightly rounds, and a small jitter may round to none.
    assert same_rate(*(1 - each.float().mean() for each in kept), 0.7)


def test_each_image_has_an_order_of_jitters_of_its_own():
    # Doubled brightness clips if it comes before the halving of contrast, and not the other way round.
    transform = only(v2.ColorJitter(brightness=(2, 2), contrast=(0.5, 0.5)))
    expected, jittered = (views[:, 0, 0, 0] for views in both_ways(transform, halves(51, 204)))
    assert set(jittered.mul(100).round().tolist()) == {55, 70}
    assert same_rate((expected > 0.6).float().mean(), (jittered > 0.6).float().mean(), 0.5)


def test_as_many_images_turn_grey_and_are_solarised_as_with_lightly():
    views = both_ways(simclr(8, random_gray_scale=0.2), flat(180, 90, 20))
    assert same_rate(*((saturation(view) < 0.01).float().mean() for view in views), 0.2)
    views = both_ways(transforms.VICRegTransform(8, **OFF, solarize_prob=0.3), flat(200, 200, 200))
    assert same_rate(*((view[:, 0, 0, 0] < 0.5).float().mean() for view in views), 0.3)


def test_blurs_are_as_frequent_and_as_wide_as_lightlys():
    # What a step edge spills to its dark side grows with the standard deviation of the blur.
    transform = simclr(32, gaussian_blur=0.6, sigmas=(0.5, 2.0))
    views = both_ways(transform, halves(0, 255, size=32))
    spilt = [view[:, 0, :, :16].mean(1).sum(1) for view in views]
    assert same_rate(*((each > 0.004).float().mean() for each in spilt), 0.6)
    assert same_distribution(*(each[each > 0.004] for each in spilt))


# Operations with fixed parameters, against Pillow's pixels.

CERTAIN = {
    "nothing": [],
    "flip": [v2.RandomHorizontalFlip(1.0)],
    "upside down": [v2.RandomVerticalFlip(1.0)],
    "quarter turn": [RandomRotate(1.0, 90)],
    "clockwise": [RandomRotate(1.0, -90)],
    "turn": [v2.RandomRotation((30, 30))],
    "grey": [v2.RandomGrayscale(1.0)],
    "solarised": [RandomSolarization(1.0)],
    "solarised from 40": [RandomSolarization(1.0, threshold=40)],
    "smaller": [v2.RandomResizedCrop(20, scale=(1, 1))],
    "larger": [v2.RandomResizedCrop((70, 60), scale=(1, 1))],
    "smaller, bicubic": [v2.RandomResizedCrop(20, scale=(1, 1), interpolation=v2.InterpolationMode.BICUBIC)],
    "larger, bicubic": [v1.RandomResizedCrop(70, scale=(1, 1), interpolation=v1.InterpolationMode.BICUBIC)],
    "darker": [v2.ColorJitter(brightness=(0.4, 0.4))],
    "brighter": [v2.ColorJitter(brightness=(1.7, 1.7))],
    "flatter": [v1.ColorJitter(contrast=(0.3, 0.3))],
    "steeper": [v2.ColorJitter(contrast=(1.8, 1.8))],
    "pale": [v2.ColorJitter(saturation=(0.2, 0.2))],
    "colourful": [v2.ColorJitter(saturation=(1.8, 1.8))],
    "nested": [v2.RandomApply([v2.Compose([v2.RandomHorizontalFlip(1.0), RandomRotate(1.0, 90)])], p=1.0)],
    **{f"blur {sigma}": [GaussianBlur(prob=1.0, sigmas=(sigma, sigma))] for sigma in (0.5, 1.0, 2.0, 6.0)},
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", CERTAIN)
def test_an_operation_with_fixed_parameters_gives_pillows_pixels(photographs, name, channels):
    pixels = photographs[:8, :channels]
    expected, views = on_workers(only(*CERTAIN[name]), pixels)[0], on_device(only(*CERTAIN[name]), pixels)[0]
    assert views.shape == expected.shape and views.dtype == torch.float32
    difference = (views - expected).abs() * 255
    # An oblique turn may round a place the other way; Pillow's blur approximates a Gaussian by three box filters.
    if name == "turn":
        assert (difference > 0.01).float().mean() < 1e-3
    elif "blur" in name:
        assert difference.mean() < 0.5 and difference.max() < 25
    else:
        assert difference.max() < 1.6
    if name != "nothing" and not (channels == 1 and name in ("grey", "pale", "colourful")):
        assert views.shape != pixels.shape or (views * 255 - pixels).abs().max() > 1


@pytest.mark.parametrize("turns", [-0.4, -0.05, 0.1, 0.5])
def test_a_fixed_hue_shift_gives_pillows_colours(photographs, turns):
    transform = only(v2.ColorJitter(hue=(turns, turns)))
    difference = (on_device(transform, photographs[:8])[0] - on_workers(transform, photographs[:8])[0]).abs() * 255
    # Pillow keeps hues in 8 bits, a 43rd of which separates two primary colours.
    assert difference.mean() < 1 and difference.max() < 12
    grey = photographs[:8, :1]
    assert torch.equal(on_device(transform, grey)[0], grey.float() / 255)


# Whole transforms.


def pair(cls):
    return lambda **arguments: cls(
        *(view(input_size=32, **arguments) for view in (BYOLView1Transform, BYOLView2Transform))
    )


def sized(cls, **fixed):
    return lambda **arguments: cls(input_size=32, **fixed, **arguments)


def dino(min_scale=None, gaussian_blur=None, **arguments):
    if min_scale is not None:
        arguments |= {"global_crop_scale": (min_scale, 1), "local_crop_scale": (min_scale, 1)}
    if gaussian_blur is not None:
        arguments["gaussian_blur"] = (gaussian_blur,) * 3
    return transforms.DINOTransform(global_crop_size=32, local_crop_size=16, n_local_views=3, **arguments)


def swav(min_scale=None, **arguments):
    if min_scale is not None:
        arguments |= {"crop_min_scales": (min_scale,) * 2, "crop_max_scales": (1.0, 1.0)}
    return transforms.SwaVTransform(crop_sizes=(32, 16), crop_counts=(2, 3), **arguments)


def mae(normalize, min_scale=0.2, **ignored):
    return transforms.MAETransform(32, min_scale, normalize)


TRANSFORMS = {
    "byol": pair(transforms.BYOLTransform),
    "tico": pair(transforms.TiCoTransform),
    "simclr": sized(transforms.SimCLRTransform),
    "vicreg": sized(transforms.VICRegTransform),
    "simsiam": sized(transforms.SimSiamTransform),
    "moco": sized(transforms.MoCoV2Transform),
    "mmcr": sized(transforms.MMCRTransform, k=4),
    "fastsiam": sized(transforms.FastSiamTransform, num_views=3),
    **{"dino": dino, "swav": swav, "mae": mae},
}
SOLARISE = {**dict.fromkeys(["byol", "tico", "mmcr", "dino"], "solarization_prob"), "vicreg": "solarize_prob"}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_transform_without_chance_gives_lightlys_views(photographs, name):
    quiet = {**OFF, **({SOLARISE[name]: 0.0} if name in SOLARISE else {}), "normalize": SPACE}
    transform, pixels = TRANSFORMS[name](**quiet), photographs[:6]
    expected, views = on_workers(transform, pixels), on_device(transform, pixels)
    assert len(views) == len(expected)
    for ours, lightlys in zip(views, expected, strict=True):
        assert ours.shape == lightlys.shape and ours.dtype == lightlys.dtype and ours.device == pixels.device
        if name == "mae":  # lightly leaves no way to switch its flip off
            ours, lightlys = (torch.minimum(view, view.flip(-1)) for view in (ours, lightlys))
        assert (ours - lightlys).abs().max() < 1.1 / 255 / min(SPACE["std"])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_transform_with_its_own_settings_gives_views_like_lightlys(photographs, name, channels):
    space = {key: values[:channels] for key, values in SPACE.items()}
    transform = TRANSFORMS[name](normalize=space)
    pixels = photographs[:40, :channels].repeat(2, 1, 1, 1)
    expected, views = on_workers(transform, pixels), on_device(transform, pixels)
    assert [view.shape for view in views] == [view.shape for view in expected]
    for measure in (lambda view: view.mean((1, 2, 3)), lambda view: view.std((1, 2, 3))):
        for ours, lightlys in zip(map(measure, views), map(measure, expected), strict=True):
            error = (ours.var() / len(ours) + lightlys.var() / len(lightlys)).sqrt()
            assert abs(ours.mean() - lightlys.mean()) < 4 * error


def test_images_of_a_batch_and_views_of_an_image_differ(photographs):
    darkest = photographs.float().mean((1, 2, 3)).argmin()  # bright ones may clip to white
    pixels = photographs[darkest].expand(64, -1, -1, -1)
    for transform in (TRANSFORMS["simclr"](), TRANSFORMS["mmcr"]()):
        every = torch.cat(on_device(transform, pixels)).flatten(1)
        assert len(torch.unique(every, dim=0)) == len(every)


def test_views_are_a_function_of_seed_and_images_inside_autocast_too(photographs):
    transform, pixels = TRANSFORMS["vicreg"](), photographs[:8]
    before = pixels.clone()
    first, again, other = (on_device(transform, pixels, seed) for seed in (1, 1, 2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = on_device(transform, pixels)
    assert all(map(torch.equal, first, again)) and all(map(torch.equal, first, inside))
    assert not any(map(torch.equal, first, other))
    assert torch.equal(pixels, before)
    assert [view.shape for view in on_device(transform, pixels[:1])] == [(1, 3, 32, 32)] * 2


@pytest.mark.gpu
@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_cuda_device_draws_what_the_cpu_draws(photographs, name):
    transform = TRANSFORMS[name](normalize=SPACE)
    for ours, theirs in zip(on_device(transform, photographs), on_device(transform, photographs.cuda()), strict=True):
        assert theirs.is_cuda
        # A pixel at a threshold may round to the other side.
        assert ((ours - theirs.cpu()).abs() > 1e-3).float().mean() < 1e-3


# Refusals.


class Crooked(MultiViewTransform):
    def __call__(self, image):
        return super().__call__(image)[:1]


def mirrored(image):
    return image


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (only(v2.GaussianBlur(3)), "the step torchvision.GaussianBlur: make views on CPU workers"),
        (only(v2.RandomPosterize(4)), r"torchvision.RandomPosterize.*\(--teacher-training.views workers\)"),
        (only(v2.RandomApply([v2.RandomInvert()])), "the step torchvision.RandomInvert"),
        (only(mirrored), r"the step \w+.function"),
        (only(v2.RandomApply([v2.RandomResizedCrop(8)])), "RandomApply of torchvision.RandomResizedCrop"),
        (only(v2.RandomResizedCrop(8, interpolation=v2.InterpolationMode.NEAREST)), "Crop with nearest interpolation"),
        (only(v2.RandomRotation(9, interpolation=v2.InterpolationMode.BILINEAR)), "RandomRotation other than nearest"),
        (only(v2.RandomRotation(9, expand=True)), "RandomRotation other than nearest, unexpanded"),
        (only(v2.Normalize([0.5], [0.5])), "steps after Normalize"),
        (Crooked([v1.ToTensor()]), "Crooked, which is not a plain MultiViewTransform"),
        (BYOLView1Transform(), "lightly.BYOLView1Transform, which is not a plain MultiViewTransform"),
    ],
)
def test_what_cannot_be_translated_is_refused_by_name(transform, message):
    with pytest.raises(InputError, match=message):
        DeviceViews(transform)


def test_without_kornia_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "kornia", None)
    with pytest.raises(InputError, match=r"pip install 'ssdd-hub\[gpu-aug\]', or make views on CPU workers"):
        DeviceViews(TRANSFORMS["simclr"]())


@pytest.mark.parametrize(
    "pixels", [torch.zeros(2, 3, 8, 8), torch.zeros(3, 8, 8).byte(), torch.zeros(2, 4, 8, 8).byte()]
)
def test_pixels_of_another_kind_are_refused(pixels):
    with pytest.raises(ValueError, match=r"a batch \(B, C, H, W\) of uint8 with 1 or 3 channels, got torch"):
        DeviceViews(TRANSFORMS["simclr"]())(pixels)
