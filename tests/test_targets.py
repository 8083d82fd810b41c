import json
import os

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ssdd_hub import targets as targets_module
from ssdd_hub.augment import crop_flip
from ssdd_hub.errors import SettingsError
from ssdd_hub.targets import (
    TRANSFORMS,
    FeatureCache,
    TargetSettings,
    TargetTransform,
    compute_features,
    fixed_views,
)


@pytest.fixture
def bank(digits):
    return digits[0].subset(range(23))


# From features to targets


def draw_features(count=50, width=4):
    features = np.random.RandomState(0).randn(count, width) * [1.0, 10.0, 0.1, 3.0] + [5.0, -2.0, 0.0, 100.0]
    return torch.from_numpy(features.astype(np.float32))


@pytest.mark.parametrize("kind", TRANSFORMS)
def test_each_transform_is_what_numpy_computes(kind):
    features = draw_features()
    exact = features.numpy().astype(np.float64)
    centred = exact - exact.mean(0)
    expected = {
        "none": exact,
        "centre": centred,
        "standardise": centred / centred.std(),
        "standardise-each": centred / exact.std(0),
    }[kind]
    transform = TargetTransform.fit(kind, features)
    np.testing.assert_allclose(transform(features.double()).numpy(), expected, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(transform(features).numpy(), expected, rtol=1e-4, atol=1e-4)


def test_standardised_targets_have_unit_variance():
    features = draw_features()
    overall = TargetTransform.fit("standardise", features)(features.double())
    assert overall.mean(0).abs().max() < 1e-6 and overall.square().mean().item() == pytest.approx(1)
    each = TargetTransform.fit("standardise-each", features)(features.double())
    assert each.square().mean(0).tolist() == pytest.approx([1] * 4)


def test_targets_keep_the_type_and_the_shape_of_the_features():
    transform = TargetTransform.fit("standardise", draw_features())
    views = draw_features()[None].expand(3, -1, -1)
    assert transform(views).shape == (3, 50, 4) and transform(views).dtype == torch.float32
    assert torch.equal(transform(views)[1], transform(views[1]))
    assert transform(views.double()).dtype == torch.float64


@pytest.mark.parametrize("kind", TRANSFORMS)
def test_a_dimension_without_variance_is_not_scaled(kind):
    features = torch.full((6, 2), 3.0)
    features[:, 1] = torch.arange(6.0)
    targets = TargetTransform.fit(kind, features)(features)
    assert targets[:, 0].tolist() == ([3.0] * 6 if kind == "none" else [0.0] * 6)
    constant = TargetTransform.fit(kind, torch.full((6, 2), 3.0))(torch.tensor([[4.0, 4.0]]))
    assert constant.tolist() == ([[4.0, 4.0]] if kind == "none" else [[1.0, 1.0]])


@pytest.mark.parametrize("kind", TRANSFORMS)
def test_what_a_transform_records_maps_targets_back_to_features(kind):
    features = draw_features()
    transform = TargetTransform.fit(kind, features)
    recorded = json.loads(json.dumps(transform.describe()))
    assert recorded["kind"] == kind
    targets = transform(features.double()).numpy()
    back = targets * np.array(recorded.get("scale", 1.0)) + np.array(recorded.get("mean", 0.0))
    np.testing.assert_allclose(back, features.double().numpy(), rtol=1e-12)


def test_no_transform_records_no_numbers():
    assert TargetTransform.fit("none", draw_features()).describe() == {"kind": "none"}


def test_settings_out_of_range_are_all_named():
    with pytest.raises(SettingsError) as caught:
        TargetSettings(transform="whiten", views=-1, batch_size=0)
    assert caught.value.problems == [
        "targets.transform must be one of none, centre, standardise, standardise-each, got 'whiten'",
        "targets.views must be at least 0, got -1",
        "targets.batch_size must be at least 1, got 0",
    ]


# The teacher over all images


def test_features_are_the_teachers_of_pixels_between_0_and_1(small_teacher, bank, accelerator):
    teacher = small_teacher()
    features = compute_features(teacher, bank.pixels, accelerator, batch_size=5)
    assert features.shape == (23, 24) and features.dtype == torch.float32
    torch.testing.assert_close(features, teacher(bank.pixels.float() / 255), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 7, 23, 100])
def test_features_do_not_depend_on_the_chunks(small_teacher, bank, accelerator, batch_size):
    teacher = small_teacher()
    features = compute_features(teacher, bank.pixels, accelerator, batch_size=batch_size)
    expected = torch.cat([teacher(image[None].float() / 255) for image in bank.pixels])
    torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-6)


def test_features_have_the_precision_of_the_teacher(small_teacher, bank, accelerator):
    features = compute_features(small_teacher(dtype=torch.float64), bank.pixels, accelerator, batch_size=8)
    expected = small_teacher(dtype=torch.float64)(bank.pixels.double() / 255)
    assert features.dtype == torch.float64
    torch.testing.assert_close(features, expected, rtol=1e-12, atol=1e-12)


def test_features_of_views_are_the_teachers_of_the_same_crops(small_teacher, bank, accelerator):
    teacher, views = small_teacher(), fixed_views(len(bank), 2, seed=5)
    features = compute_features(teacher, bank.pixels, accelerator, batch_size=5, views=views)
    expected = teacher(crop_flip(bank.pixels, views).float() / 255)
    torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-6)
    assert (features - teacher(bank.pixels.float() / 255)).abs().max() > 1e-3


def test_fixed_views_are_a_function_of_seed_and_number():
    assert torch.equal(fixed_views(9, 1, seed=5), fixed_views(9, 1, seed=5))
    assert not torch.equal(fixed_views(9, 1, seed=5), fixed_views(9, 2, seed=5))
    assert not torch.equal(fixed_views(9, 1, seed=5), fixed_views(9, 1, seed=6))


# The cache


@pytest.fixture
def cache(small_teacher, accelerator, tmp_path):
    def cache(teacher=None, **options):
        return FeatureCache(teacher or small_teacher(), accelerator, tmp_path / "features", batch_size=8, **options)

    return cache


@pytest.fixture
def computed(monkeypatch):
    """Counts the passes of a teacher over a bank."""
    calls = []

    def counting(*args, **options):
        calls.append(1)
        return compute_features(*args, **options)

    monkeypatch.setattr(targets_module, "compute_features", counting)
    return calls


def test_features_are_computed_once_and_then_read(cache, bank, computed, monkeypatch):
    first, views = cache().features(bank), cache().view_features(bank, 2, seed=0)
    assert len(computed) == 3

    def fail(*args, **options):
        raise AssertionError("computed again")

    monkeypatch.setattr(targets_module, "compute_features", fail)
    assert torch.equal(cache().features(bank), first)
    assert torch.equal(cache().view_features(bank, 2, seed=0), views)


def test_cached_features_are_right(cache, bank, small_teacher):
    torch.testing.assert_close(
        cache().features(bank), small_teacher()(bank.pixels.float() / 255), rtol=1e-5, atol=1e-6
    )


def test_view_features_belong_to_the_fixed_views(cache, bank, small_teacher):
    features = cache().view_features(bank, 3, seed=4)
    assert features.shape == (3, 23, 24)
    for view in range(3):
        pixels = crop_flip(bank.pixels, fixed_views(23, view, seed=4)).float() / 255
        torch.testing.assert_close(features[view], small_teacher()(pixels), rtol=1e-5, atol=1e-6)


def test_whatever_features_depend_on_gives_another_file(cache, bank, digits, small_teacher, computed, tmp_path):
    smaller, darker = small_teacher(), small_teacher()
    smaller.input_size = 8
    darker.pixel_space = type(darker.pixel_space)((0.5,), (0.3,))
    requests = [
        lambda: cache().features(bank),
        lambda: cache().features(digits[0].subset(range(22))),
        lambda: cache(small_teacher(seed=1)).features(bank),
        lambda: cache(small_teacher(dtype=torch.float64)).features(bank),
        lambda: cache(smaller).features(bank),
        lambda: cache(darker).features(bank),
        lambda: cache().view_features(bank, 1, seed=0),
        lambda: cache().view_features(bank, 1, seed=1),
        lambda: cache().view_features(bank, 2, seed=0),
    ]
    for number, request in enumerate(requests, start=1):
        request()
        assert len(os.listdir(tmp_path / "features")) == number
    assert len(computed) == 10
    for request in requests:
        request()
    assert len(computed) == 10


def test_the_batch_size_does_not_change_the_file(small_teacher, accelerator, bank, computed, tmp_path):
    for batch_size in (4, 9):
        FeatureCache(small_teacher(), accelerator, tmp_path, batch_size=batch_size).features(bank)
    assert len(computed) == 1


def test_a_refresh_computes_again_and_replaces_the_file(cache, bank, computed, tmp_path):
    right = cache().features(bank)
    (path,) = (tmp_path / "features").iterdir()
    stale = {"features": torch.zeros(23, 24)}
    targets_module.save_file(stale, path)
    assert torch.equal(cache().features(bank), stale["features"])
    assert torch.equal(cache(refresh=True).features(bank), right)
    assert len(computed) == 2 and torch.equal(load_file(path)["features"], right)


def test_an_interrupted_write_leaves_nothing(cache, bank, computed, monkeypatch, tmp_path):
    def interrupted(tensors, path):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(targets_module, "save_file", interrupted)
        cache().features(bank)
    assert os.listdir(tmp_path / "features") == []
    cache().features(bank)
    assert len(computed) == 2
