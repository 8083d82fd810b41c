import copy

import numpy as np
import pytest
import torch
from lightly.loss import BarlowTwinsLoss
from lightly.models.modules.heads import BarlowTwinsProjectionHead
from PIL import Image

from ssdd_hub.errors import InputError
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.teachers.objectives.registry import build_objective


@pytest.fixture
def build(small_backbone):
    def build(**settings):
        torch.manual_seed(0)
        settings = {"hidden_dim": 16, "output_dim": 8, **settings}
        return build_objective("barlow_twins", small_backbone(), in_chans=1, image_size=16, **settings)

    return build


def draw_views(count=12, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(count, 1, 16, 16, generator=generator, dtype=dtype) for _ in range(2)]


def gradients(loss, *modules):
    return torch.autograd.grad(loss, [parameter for module in modules for parameter in module.parameters()])


# The loss of Barlow Twins


def test_barlow_twins_is_what_a_plain_lightly_loop_computes(build):
    objective = build(lambda_param=0.02)
    backbone, views = copy.deepcopy(objective.backbone), draw_views()
    head, criterion = BarlowTwinsProjectionHead(24, 16, 8), BarlowTwinsLoss(lambda_param=0.02)
    head.load_state_dict(objective.head.state_dict())
    projections = [head(backbone(view)) for view in views]
    expected = criterion(*projections)
    loss = objective(views)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    for ours, theirs in zip(
        gradients(loss, objective.backbone, objective.head), gradients(expected, backbone, head), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    # The batch statistics of both moved alike, so the second step starts alike too.
    torch.testing.assert_close(
        objective.state_dict()["backbone.blocks.0.1.running_mean"], backbone.blocks[0][1].running_mean
    )


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
    views = draw_views(dtype=torch.float64)
    projections = [objective.head(objective.backbone(v)) for v in views]
    expected, loss = paper_loss(*projections, weight=0.02), objective(views)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-10)
    modules = (objective.backbone, objective.head)
    for ours, theirs in zip(gradients(loss, *modules), gradients(expected, *modules), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-9)


def test_the_formula_in_numpy_gives_the_value_too(build):
    objective, views = build(lambda_param=0.5).double().eval(), draw_views(dtype=torch.float64)
    with torch.no_grad():
        objective.head.layers[-1].weight *= 1e5
        first, second = (objective.head(objective.backbone(v)).numpy() for v in views)
    correlations = np.corrcoef(first, second, rowvar=False)[:8, 8:]
    diagonal = np.diag(correlations)
    expected = ((1 - diagonal) ** 2).sum() + 0.5 * ((correlations**2).sum() - (diagonal**2).sum())
    assert objective(views).item() == pytest.approx(expected, rel=1e-8)


def test_the_loss_is_zero_when_views_agree_and_dimensions_do_not_correlate(build):
    loss = build(lambda_param=1.0).loss
    columns = torch.randn(64, 8)
    projections = torch.linalg.qr(columns - columns.mean(0))[0] * 100
    assert loss(projections, projections).item() < 1e-3
    assert loss(projections, -projections).item() == pytest.approx(4 * 8, rel=1e-3)
    assert loss(projections, projections.flip(1)).item() == pytest.approx(8 + 8, rel=1e-3)


def test_the_gradient_reaches_every_weight_of_the_backbone(build):
    objective = build()
    objective(draw_views()).backward()
    # A bias before a batch norm has none.
    weights = {n: p for n, p in objective.backbone.named_parameters() if not n.endswith(".0.bias")}
    assert len(weights) == 9 and all(weight.grad.abs().max() > 1e-6 for weight in weights.values())


def test_one_state_dict_holds_backbone_and_head(build):
    names = {name.split(".")[0] for name in build().state_dict()}
    assert names == {"backbone", "head"}


# Views


def picture(mode, size=20):
    array = np.random.RandomState(0).randint(0, 256, (size, size, 3) if mode == "RGB" else (size, size))
    return Image.fromarray(array.astype(np.uint8))


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3)])
def test_views_are_two_float_tensors_of_the_asked_size(build, mode, channels):
    views = build().build_views(16, PixelSpace((0.5,) * channels, (0.25,) * channels))
    torch.manual_seed(0)
    for _ in range(20):
        pair = views(picture(mode))
        assert len(pair) == 2
        for view in pair:
            assert view.shape == (channels, 16, 16) and view.dtype == torch.float32
            # Pixels in [0, 1], put into the space.
            assert -2 <= view.min() < view.max() <= 2 and view.max() - view.min() > 1
    assert not torch.equal(*pair)


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3)])
def test_views_without_any_change_are_the_image_in_its_pixel_space(build, mode, channels):
    space = PixelSpace((0.1, 0.2, 0.3)[:channels], (0.5, 0.6, 0.7)[:channels])
    nothing = {"min_scale": 1.0, "cj_prob": 0.0, "random_gray_scale": 0.0, "hf_prob": 0.0, "solarization_prob": 0.0}
    views = build().build_views(20, space, **nothing)
    image = picture(mode)
    pixels = torch.from_numpy(np.array(image)).reshape(20, 20, channels).permute(2, 0, 1) / 255
    for view in views(image):
        torch.testing.assert_close(view, space.normalise(pixels))


def test_blur_is_off_unless_asked_for(build):
    nothing = {"min_scale": 1.0, "cj_prob": 0.0, "random_gray_scale": 0.0, "hf_prob": 0.0, "solarization_prob": 0.0}
    sharp = build().build_views(20, PixelSpace.raw(1), **nothing)(picture("L"))
    blurred = build().build_views(20, PixelSpace.raw(1), **nothing, gaussian_blur=1.0, sigmas=(2, 2))(picture("L"))
    assert all(soft.std() < hard.std() / 2 for soft, hard in zip(blurred, sharp, strict=True))


def test_an_unknown_argument_of_the_views_is_named(build):
    with pytest.raises(
        InputError, match="pretrain.view_args .*blurr.* do not fit the views of barlow_twins: .*'blurr'"
    ):
        build().build_views(16, PixelSpace.raw(1), blurr=1.0)


# Settings


def test_the_defaults_are_those_of_lightlys_small_benchmark(small_backbone):
    described = build_objective("barlow_twins", small_backbone(), in_chans=1, image_size=16).describe()
    assert (described["hidden_dim"], described["output_dim"], described["lambda_param"]) == (2048, 2048, 5e-3)
