"""Barlow Twins against its paper, and the views of a joint-embedding objective."""

import numpy as np
import pytest
import torch
from PIL import Image

from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.teachers.objectives.registry import build_objective

NOTHING = {"min_scale": 1.0, "cj_prob": 0.0, "random_gray_scale": 0.0, "hf_prob": 0.0, "solarization_prob": 0.0}


@pytest.fixture
def build(small_backbone):
    def build(**settings):
        torch.manual_seed(0)
        settings = {"hidden_dim": 16, "output_dim": 8, **settings}
        return build_objective("barlow_twins", small_backbone(), in_chans=1, image_size=16, **settings)

    return build


def draw_views(count=12):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(count, 1, 16, 16, generator=generator, dtype=torch.float64) for _ in range(2)]


def paper_loss(first, second, weight):
    """Zbontar et al., equations 1 and 2, entry by entry; `(B, D)` projections."""
    first, second = first - first.mean(0), second - second.mean(0)
    loss = first.new_zeros(())
    for i in range(first.shape[1]):
        for j in range(second.shape[1]):
            correlation = (first[:, i] * second[:, j]).sum() / (first[:, i].norm() * second[:, j].norm())
            loss = loss + ((1 - correlation) ** 2 if i == j else weight * correlation**2)
    return loss


def test_barlow_twins_agrees_with_the_formula_of_its_paper(build):
    objective = build(lambda_param=0.02).double()
    with torch.no_grad():
        # lightly adds 1e-5 to the variance, which the paper does not; beside a variance of 1e8 it does not show.
        objective.head.layers[-1].weight *= 1e5
    views, parameters = draw_views(), [*objective.backbone.parameters(), *objective.head.parameters()]
    projections = [objective.head(objective.backbone(view)) for view in views]
    expected, loss = paper_loss(*projections, weight=0.02), objective(views)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-10)
    for ours, theirs in zip(
        torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-9)


# Views


def picture(mode, size=20):
    array = np.random.RandomState(0).randint(0, 256, (size, size, 3) if mode == "RGB" else (size, size))
    return Image.fromarray(array.astype(np.uint8))


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3)])
def test_views_without_any_change_are_the_image_in_its_pixel_space(build, mode, channels):
    space = PixelSpace((0.1, 0.2, 0.3)[:channels], (0.5, 0.6, 0.7)[:channels])
    image = picture(mode)
    pixels = torch.from_numpy(np.array(image)).reshape(20, 20, channels).permute(2, 0, 1) / 255
    for view in build().build_views(20, space, **NOTHING)(image):
        torch.testing.assert_close(view, space.normalise(pixels))


def test_blur_is_off_unless_asked_for(build):
    sharp = build().build_views(20, PixelSpace.raw(1), **NOTHING)(picture("L"))
    blurred = build().build_views(20, PixelSpace.raw(1), **NOTHING, gaussian_blur=1.0, sigmas=(2, 2))(picture("L"))
    assert all(soft.std() < hard.std() / 2 for soft, hard in zip(blurred, sharp, strict=True))


def test_the_defaults_are_those_of_lightlys_small_benchmark(small_backbone):
    described = build_objective("barlow_twins", small_backbone(), in_chans=1, image_size=16).describe()
    assert (described["hidden_dim"], described["output_dim"], described["lambda_param"]) == (2048, 2048, 5e-3)
