"""What every objective keeps to, with a ResNet, a ConvNeXt and a vision transformer, on views of real images."""

import json
from functools import cache

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from reference.objective_cases import (
    NAMES,
    PAIRS,
    SIZE,
    SPACE,
    STATISTICS,
    build,
    make_backbone,
    real_images,
    real_views,
    settle,
    train,
)

from ssdd_hub.errors import InputError
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.teachers.objectives.base import Objective, in_full_precision
from ssdd_hub.teachers.objectives.registry import build_objective


def copy_state(objective):
    return {name: tensor.clone() for name, tensor in objective.state_dict().items()}


@cache
def trained(name, kind):
    """Takes steps on one batch; returns the losses, the last gradients in the backbone, and the state."""
    objective, views = build(name, kind), real_views(name)
    settle(objective, views)
    # MoCo's copy lags behind a network that learns faster, and the loss between them rises again.
    steps, lr = (20, 3e-4) if name == "moco" else (12, 1e-3)
    losses = train(objective, views, steps, lr)
    return losses, [part.grad for part in objective.backbone.parameters()], copy_state(objective)


def next_losses(objective, views):
    """Returns the losses of two steps of plain SGD, which has no state of its own."""
    optimizer, losses = torch.optim.SGD([part for part in objective.parameters() if part.requires_grad], 0.01), []
    for step in (20, 21):
        torch.manual_seed(step)
        objective.schedule(step, 10, 40)
        optimizer.zero_grad()
        loss = objective(views)
        loss.backward()
        objective.after_backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


# Training


# An objective sees a backbone by its features alone; MAE takes a transformer apart, and DINO shows it two sizes.
DEFAULT = [(name, "vit" if name in ("dino", "mae") else "resnet") for name in NAMES]
CASES = [pair if pair in DEFAULT else pytest.param(*pair, marks=pytest.mark.slow) for pair in PAIRS]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_the_loss_falls_and_every_weight_of_the_backbone_gets_a_gradient(name, kind):
    losses, gradients, _ = trained(name, kind)
    assert losses.isfinite().all()
    quarter = len(losses) // 4
    start, end = losses[:quarter].mean(), losses[-quarter:].mean()
    assert end < start - 0.02 * start.abs()
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
    assert all(gradient.abs().max() > 0 for gradient in gradients)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_saved_and_restored_it_goes_on_as_if_unbroken_to_the_bit(name, kind):
    _, _, state = trained(name, kind)
    unbroken, restored, views = build(name, kind), build(name, kind, seed=1), real_views(name)
    # The unbroken one has lived through another step before, which must not show.
    train(unbroken, views, 1)
    for objective in (unbroken, restored):
        objective.train().load_state_dict(state)
    assert next_losses(unbroken, views) == next_losses(restored, views)


@pytest.mark.parametrize("name", NAMES)
def test_the_state_holds_tensors_only_and_the_backbone_once(name):
    objective = build(name, "vit")
    state = objective.state_dict()
    assert all(type(value) is torch.Tensor for value in state.values())
    storages = [value.data_ptr() for value in state.values() if value.numel()]
    assert len(set(storages)) == len(storages)
    assert {key for key in state if key.startswith("backbone.")} == {
        f"backbone.{key}" for key in objective.backbone.state_dict()
    }


@pytest.mark.parametrize("training", [False, True], ids=["eval with gradients", "training without gradients"])
@pytest.mark.parametrize("name", NAMES)
def test_looking_at_a_loss_moves_nothing(name, training):
    objective, views = build(name, "vit"), real_views(name)
    train(objective, views, 3)
    before = copy_state(objective)
    objective.train(training)
    with torch.set_grad_enabled(not training):
        torch.manual_seed(0)
        # Other images: the copy's projections of the same ones are in the bank already.
        assert objective([view.flip(-1) for view in views]).isfinite()
    # Statistics of batch normalisation move in training mode, whatever torch does about gradients.
    fixed = [key for key in before if not (training and key.endswith(STATISTICS))]
    assert all(torch.equal(before[key], objective.state_dict()[key]) for key in fixed)


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_forward_passes_give_the_loss_in_full_precision(name):
    objective, views = build(name, "vit").train(), real_views(name)
    state = copy_state(objective)
    torch.manual_seed(0)
    expected = objective(views)
    objective.load_state_dict(state)
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        loss = objective(views)
    loss.backward()
    assert loss.dtype == torch.float32
    # Cosines, whose loss may be near 0, are good to 0.003; DCL has no positive pair to hold its logarithm.
    torch.testing.assert_close(loss, expected, rtol=0.03 if name == "dcl" else 0.02, atol=0.01)


def test_a_loss_sees_no_half_precision():
    seen = []

    def loss(first, parts, flag):
        seen.extend([first.dtype, parts[0].dtype, parts[1].dtype, (first @ first).dtype, flag])
        return first.sum()

    half, double = torch.ones(2, 2, dtype=torch.bfloat16), torch.ones(2, dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        in_full_precision(loss, half, [half, double], True)
    assert seen == [torch.float32, torch.float32, torch.float64, torch.float32, True]


# State of its own: copies, banks, queues and prototypes are compared with a plain loop's in `test_objective_glue.py`


def test_without_a_schedule_nothing_is_fixed():
    for name in ("dino", "swav"):
        objective = build(name).train()
        objective(real_views(name)).backward()
        objective.after_backward()
        assert all(part.grad is not None for part in objective.parameters() if part.requires_grad)


def test_the_temperature_of_dinos_copy_warms_up():
    views, losses = real_views("dino"), {}
    for epoch in (0, 2, 4, 9):
        objective = build("dino", teacher_temp=0.2, warmup_epochs=5).train()
        objective.schedule(10 * epoch, 10, 1000)
        losses[epoch] = objective(views).item()
    at_start, at_end = (
        build("dino", teacher_temp=temp, warmup_epochs=0).train()(views).item() for temp in (0.04, 0.2)
    )
    assert losses[0] == pytest.approx(at_start) and losses[4] == pytest.approx(at_end)
    assert losses[9] == losses[4]
    assert len({round(value, 6) for value in losses.values()}) == 3


# Views


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("name", NAMES)
def test_the_views_of_a_real_image_have_the_right_number_shape_and_pixel_space(name, mode):
    channels = len(mode) if mode == "RGB" else 1
    objective = build(name, "vit" if name == "mae" else "resnet", in_chans=channels)
    space = PixelSpace((0.3,) * channels, (0.2,) * channels)
    image = real_images(3, mode)[2]
    views = objective.build_views(SIZE, space)(image)
    assert len(views) == {"fastsiam": 4, "lejepa": 4, "mae": 1, "mmcr": 8}.get(name, 2)
    for view in views:
        assert view.shape == (channels, SIZE, SIZE)
        pixels = space.denormalise(view)
        assert pixels.min() >= -1e-6 and pixels.max() <= 1 + 1e-6
    objective.eval()
    assert objective([torch.stack([view, view.flip(-1)]) for view in views]).isfinite()


@pytest.mark.parametrize("name", [name for name in NAMES if name != "mae"])
def test_small_images_are_not_blurred_and_larger_ones_are(name):
    striped = Image.fromarray((np.indices((96, 96)).sum(0) % 2 * 255).astype(np.uint8))
    plain = {"cj_prob": 0.0, "random_gray_scale": 0.0}
    if name in ("barlow_twins", "byol", "tico", "dino", "lejepa"):
        plain["solarization_prob"] = 0.0
    if name == "vicreg":
        plain["solarize_prob"] = 0.0
    whole = {
        "dino": {"global_crop_scale": (1.0, 1.0), "n_local_views": 0},
        "lejepa": {"global_crop_scale": (1.0, 1.0), "n_local_views": 1, "local_crop_scale": (1.0, 1.0)},
        "swav": {"crop_counts": (2,), "crop_min_scales": (1.0,), "crop_max_scales": (1.0,)},
    }.get(name, {"min_scale": 1.0})
    spread = {}
    for size in (32, 96):
        sizes = {"swav": {"crop_sizes": (size,)}, "lejepa": {"local_crop_size": size}}.get(name, {})
        transform = build(name).build_views(size, PixelSpace.raw(1), **plain, **whole, **sizes)
        torch.manual_seed(0)
        np.random.seed(0)
        picture = striped.crop((0, 0, size, size))
        spread[size] = [view.std().item() for _ in range(8) for view in transform(picture)]
    assert min(spread[32]) > 0.45
    assert min(spread[96]) < 0.4


def test_larger_images_have_local_views_of_three_sevenths_of_their_size():
    image = real_images(1)[0].resize((96, 96))
    for name in ("dino", "swav", "lejepa"):
        assert [view.shape[-1] for view in build(name).build_views(96, SPACE)(image)] == [96, 96] + [41] * 6
    flexible = timm.create_model("test_vit", img_size=96, patch_size=8, dynamic_img_size=True, num_classes=0)
    objective = build_objective("dino", flexible, hidden_dim=16, output_dim=16)
    views = objective.build_views(96, SPACE)(image)
    # Whole patches of 8 pixels.
    assert [view.shape[-1] for view in views] == [96, 96] + [40] * 6
    assert objective([torch.stack([view, view]) for view in views]).isfinite()


@pytest.mark.parametrize("name", ["dino", "swav", "lejepa"])
def test_local_views_that_a_backbone_does_not_take_are_refused(name):
    fixed = timm.create_model("test_vit", img_size=96, patch_size=8, num_classes=0, dynamic_img_size=False)
    objective = build_objective(name, fixed, hidden_dim=16, output_dim=16)
    with pytest.raises(InputError, match=f"{name} crops local views of 40 pixels .* VisionTransformer does not take"):
        objective.build_views(96, SPACE)


@pytest.mark.parametrize(
    ("name", "size", "args", "message"),
    [
        ("lejepa", SIZE, {"n_local_views": 0}, "lejepa needs a local view at least, got n_local_views=0"),
        ("swav", SIZE, {"crop_sizes": (24,)}, r"swav needs two views of 32 pixels.*crop_sizes \[24\]"),
        ("mae", 48, {}, "one for 32 pixels with images of 48: build it with img_size=48"),
        (
            "simclr",
            SIZE,
            {"normalize": None, "input_size": 3},
            "must leave out input_size, normalize, which the images",
        ),
        ("mmcr", SIZE, {"k": 0}, r"view_args .*'k': 0.* do not fit the views of mmcr: k must be"),
        *(
            (name, SIZE, {"blurr": 1.0}, f"view_args .*blurr.* do not fit the views of {name}: .*'blurr'")
            for name in NAMES
        ),
    ],
)
def test_views_that_an_objective_cannot_use_are_refused(name, size, args, message):
    with pytest.raises(InputError, match=message):
        build(name, "vit").build_views(size, SPACE, **args)


def test_an_objective_without_a_transform_says_what_is_missing():
    class Bare(Objective):
        name = "bare"

    bare = Bare(make_backbone("resnet"), 16)
    with pytest.raises(NotImplementedError, match="Bare must set transform or implement build_transform"):
        bare.build_views(SIZE, SPACE)
    with pytest.raises(NotImplementedError, match="Bare must implement forward"):
        bare([])


# Backbones that do not fit, and masks


@pytest.mark.parametrize(
    ("model", "args", "reason"),
    [
        ("ssdd_resnet10", {}, "hides patches from a timm VisionTransformer, and a SmallImageResNet is none"),
        ("test_convnext", {}, "and a ConvNeXt is none"),
        ("deit_tiny_distilled_patch16_224", {"depth": 1}, "no distillation token, which this VisionTransformerDist"),
        ("test_vit", {"pos_embed": "none"}, "needs .* a position embedding"),
        ("test_vit", {"img_size": (32, 48)}, "got a backbone for 32x48 pixels"),
        ("test_vit", {"img_size": 30, "patch_size": 4}, "30x30 pixels with patches of 4x4"),
        (
            "test_vit",
            {"global_pool": "map"},
            "does not train the attention pooling .*: build it with global_pool='avg'",
        ),
    ],
)
def test_mae_refuses_backbones_that_it_cannot_mask(model, args, reason):
    with pytest.raises(InputError, match=reason):
        build_objective("mae", timm.create_model(model, **args))


def test_mae_leaves_a_loaded_backbone_as_it_is():
    backbone = make_backbone("vit")
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    objective = build_objective("mae", backbone, decoder_dim=32, decoder_depth=1, decoder_heads=4)
    assert all(torch.equal(before[key], value) for key, value in backbone.state_dict().items())
    assert objective.backbone is backbone and backbone.pos_embed.requires_grad
    train(objective, real_views("mae"), 2)
    assert not torch.equal(backbone.pos_embed, before["pos_embed"])
    assert backbone.eval()(real_views("mae")[0]).isfinite().all()


@pytest.mark.parametrize("args", [{}, {"class_token": False, "global_pool": "avg"}, {"reg_tokens": 3}])
@pytest.mark.parametrize("dynamic", [False, True])
def test_mae_hides_patches_whatever_stands_before_them(args, dynamic):
    torch.manual_seed(0)
    backbone = timm.create_model(
        "test_vit", img_size=32, patch_size=8, num_classes=0, dynamic_img_size=dynamic, **args
    )
    objective = build_objective("mae", backbone, decoder_dim=32, decoder_depth=1, decoder_heads=4)
    seen = []
    backbone.blocks[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape))
    images = real_views("mae")
    losses = train(objective.train(), images, 5)
    # DistributedDataParallel stops where a parameter that could learn has no part in the loss.
    assert all((part.grad is not None) is part.requires_grad for part in backbone.parameters())
    frozen = {name for name, part in backbone.named_parameters() if not part.requires_grad}
    assert frozen == ({"fc_norm.weight", "fc_norm.bias"} if args.get("global_pool") == "avg" else set())
    # A quarter of the 16 patches is seen.
    assert seen[0] == (16, 4 + backbone.num_prefix_tokens, 64)
    assert losses[-1] < losses[0]


def test_mae_predicts_plain_pixels_on_request():
    plain, normalised = (build("mae", "vit", normalise_patches=choice).eval() for choice in (False, True))
    with torch.no_grad():
        for objective in (plain, normalised):
            objective.predict.weight.zero_()
            objective.predict.bias.zero_()
        flat = [torch.full((4, 3, SIZE, SIZE), 2.0)]
        assert plain(flat).item() == pytest.approx(4.0)
        assert normalised(flat).item() == pytest.approx(0.0)


# Settings


@pytest.mark.parametrize("name", NAMES)
def test_an_objective_describes_itself(name):
    objective = build(name, "vit")
    described = json.loads(json.dumps(objective.describe()))
    assert described["name"] == name
    assert "arXiv 2" in described["citation"] or name == "fastsiam"
    assert objective.optimizer == ("adamw" if name in ("mae", "lejepa") else "sgd")
    assert objective.min_batch >= 1
    assert described.keys() == {"name", "citation", *objective.declared}
