import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.decomposition import PCA
from test_feature_bank import write_bank

from ssdd_hub.errors import InputError
from ssdd_hub.targets.transform import PROJECTIONS, TRANSFORMS, TargetTransform

PLAIN = [kind for kind in TRANSFORMS if kind not in PROJECTIONS]


def draw_features(count=50, width=4):
    scales, offsets = np.resize([1.0, 10.0, 0.1, 3.0], width), np.resize([5.0, -2.0, 0.0, 100.0], width)
    drawn = np.random.RandomState(0).randn(count, width)
    mixing = np.random.RandomState(1).randn(width, width) * 0.3 + np.eye(width)
    return torch.from_numpy(((drawn * scales) @ mixing + offsets).astype(np.float32))


@pytest.mark.parametrize("kind", PLAIN)
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


@pytest.mark.parametrize("dim", [1, 3, 7])
@pytest.mark.parametrize("kind", PROJECTIONS)
def test_projections_are_those_of_scikit_learn(kind, dim):
    features = draw_features(200, 7).double()
    transform = TargetTransform.fit(kind, features, dim)
    theirs = PCA(dim, whiten=kind == "whiten", svd_solver="full").fit(features.numpy())
    # scikit-learn divides variances by n - 1.
    ratio = math.sqrt(200 / 199) if kind == "whiten" else 1
    expected = theirs.transform(features.numpy()) * ratio
    if kind == "pca-standardise":
        expected = expected / expected.std()
    ours = transform(features).numpy()
    signs = np.sign((ours * expected).sum(0))
    np.testing.assert_allclose(ours, expected * signs, rtol=1e-8, atol=1e-9)
    assert transform.explained_variance == pytest.approx(theirs.explained_variance_ratio_.sum(), rel=1e-10)
    nearest = theirs.inverse_transform(theirs.transform(features.numpy()))
    np.testing.assert_allclose(transform.inverse(transform(features)).numpy(), nearest, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("kind", PROJECTIONS)
def test_the_greatest_entry_of_each_direction_is_positive(kind):
    features = draw_features(100, 6)
    components = TargetTransform.fit(kind, features).components
    assert (components.gather(1, components.abs().argmax(1, keepdim=True)) > 0).all()
    mirrored = TargetTransform.fit(kind, -features).components
    torch.testing.assert_close(mirrored, components, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", TRANSFORMS)
def test_what_is_measured_in_parts_is_what_is_measured_at_once(kind, monkeypatch):
    # A mean a million times the std, where sums of squares would lose every digit.
    features = draw_features(1000, 5).double() + 1e7
    monkeypatch.setattr("ssdd_hub.targets.transform._PART", 64)
    in_parts = TargetTransform.fit(kind, features)
    monkeypatch.setattr("ssdd_hub.targets.transform._PART", 1000)
    at_once = TargetTransform.fit(kind, features)
    torch.testing.assert_close(in_parts.mean, at_once.mean, rtol=1e-14, atol=0)
    torch.testing.assert_close(in_parts.scale, at_once.scale, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(in_parts(features), at_once(features), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", TRANSFORMS)
def test_targets_keep_the_type_and_the_leading_shape_of_the_features(kind):
    transform = TargetTransform.fit(kind, draw_features(), 3 if kind in PROJECTIONS else None)
    views = draw_features()[None].expand(3, -1, -1)
    targets = transform(views)
    assert targets.shape == (3, 50, transform.width) and targets.dtype == torch.float32
    assert transform.width == (3 if kind in PROJECTIONS else 4)
    torch.testing.assert_close(targets[1], transform(views[1]))
    assert transform(views.double()).dtype == transform.inverse(targets.double()).dtype == torch.float64
    assert transform.inverse(targets).shape == views.shape


@pytest.mark.parametrize("kind", PLAIN)
def test_a_dimension_without_variance_is_not_scaled(kind):
    features = torch.full((6, 2), 3.0)
    features[:, 1] = torch.arange(6.0)
    targets = TargetTransform.fit(kind, features)(features)
    assert targets[:, 0].tolist() == ([3.0] * 6 if kind == "none" else [0.0] * 6)
    constant = TargetTransform.fit(kind, torch.full((6, 2), 3.0))(torch.tensor([[4.0, 4.0]]))
    assert constant.tolist() == ([[4.0, 4.0]] if kind == "none" else [[1.0, 1.0]])


@pytest.mark.parametrize("kind", TRANSFORMS)
def test_the_inverse_maps_targets_back_to_features(kind):
    features = draw_features().double()
    transform = TargetTransform.fit(kind, features)
    torch.testing.assert_close(transform.inverse(transform(features)), features, rtol=1e-10, atol=1e-10)


def test_one_image_is_enough_but_for_whitening():
    features = torch.tensor([[1.0, 2.0, 3.0]])
    for kind in ("centre", "standardise", "standardise-each", "pca"):
        transform = TargetTransform.fit(kind, features)
        assert transform(features).tolist() == [[0.0, 0.0, 0.0]]
        assert transform.inverse(torch.zeros(1, 3)).tolist() == features.tolist()
    for constant in (features, torch.full((9, 3), 3.3), torch.full((9, 3), 3.3, dtype=torch.float64)):
        for dim in (None, 2):
            with pytest.raises(InputError, match="the features, which are the same for all images: use more images"):
                TargetTransform.fit("whiten", constant, dim)


@pytest.mark.parametrize("kind", PROJECTIONS)
@pytest.mark.parametrize(
    ("dim", "message"),
    [
        *((dim, f"targets.dim must be at least 1, got {dim}") for dim in (0, -1)),
        (5, "targets.dim 5 exceeds the 4 dimensions of the features: lower it"),
    ],
)
def test_dimensions_out_of_range_are_refused(kind, dim, message):
    with pytest.raises(InputError, match=message):
        TargetTransform.fit(kind, draw_features(), dim)


def test_an_unknown_kind_and_features_of_no_image_are_refused():
    with pytest.raises(InputError, match="targets.transform must be one of none, .*, whiten, got 'zca'"):
        TargetTransform.fit("zca", draw_features())
    for kind in TRANSFORMS:
        with pytest.raises(InputError, match="there are no features to measure a transform of"):
            TargetTransform.fit(kind, draw_features()[:0])


DTYPES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])


def draw_low_rank(mean=0.0):
    """Features of rank 8 in 32 dimensions, float32; from the first direction to the last the std falls to a fifth."""
    generator = torch.Generator().manual_seed(0)
    inner = torch.randn(2000, 8, generator=generator) * torch.linspace(5, 1, 8)
    return inner @ torch.linalg.qr(torch.randn(32, 8, generator=generator)).Q.T + mean


@DTYPES
@pytest.mark.parametrize("mean", [0.0, 3.0])
def test_rounding_to_half_precision_is_not_whitened(dtype, mean):
    features = draw_low_rank(mean).to(dtype)
    whitened = TargetTransform.fit("whiten", features)
    assert whitened.width == 8 and whitened(features.double()).abs().max() < 10
    with pytest.raises(InputError, match="only 8 of the features' 32 directions have variance beyond rounding"):
        TargetTransform.fit("whiten", features, 9)


@DTYPES
def test_the_rounding_that_a_bank_states_is_not_whitened(dtype, tmp_path):
    assert TargetTransform.fit("whiten", write_bank(tmp_path, [draw_low_rank()], dtype, size=2000)).width == 8


@DTYPES
def test_directions_above_the_rounding_are_whitened(dtype):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2000, 4, generator=generator) * torch.tensor([1.0, 0.1, 0.02, 0.01])
    features[:, 3] += features[:, 0]
    assert TargetTransform.fit("whiten", features.to(dtype)).width == 4


@DTYPES
def test_whitening_is_limited_to_directions_with_variance(dtype):
    # In bfloat16 the rounding of a dimension around 100 is more than the std of others.
    features = (draw_features() - torch.tensor([0.0, 0.0, 0.0, 100.0])).to(dtype).float()
    doubled = torch.cat([features, features[:, :2]], 1)
    whitened = TargetTransform.fit("whiten", doubled.to(dtype))
    assert whitened.width == 4 and whitened(doubled).abs().max() < 10
    torch.testing.assert_close(whitened.inverse(whitened(doubled)), doubled, rtol=1e-3, atol=1e-3)
    message = "whitening to 5 dimensions .*only 4 of the features' 6 .*lower --targets.dim, use more images, or"
    with pytest.raises(InputError, match=message):
        TargetTransform.fit("whiten", doubled.to(dtype), 5)
    assert TargetTransform.fit("pca", doubled).width == 6


@pytest.mark.parametrize("kind", PLAIN)
def test_the_json_form_maps_targets_back_to_features(kind):
    features = draw_features()
    transform = TargetTransform.fit(kind, features)
    recorded = json.loads(json.dumps(transform.describe()))
    assert recorded["kind"] == kind
    targets = transform(features.double()).numpy()
    back = targets * np.array(recorded.get("scale", 1.0)) + np.array(recorded.get("mean", 0.0))
    np.testing.assert_allclose(back, features.double().numpy(), rtol=1e-12)


def test_no_transform_records_no_numbers_and_projections_few():
    assert TargetTransform.fit("none", draw_features()).describe() == {"kind": "none"}
    described = TargetTransform.fit("pca", draw_features(), 2).describe()
    assert described.keys() == {"kind", "dim", "explained_variance"}
    assert (described["kind"], described["dim"]) == ("pca", 2) and 0.5 < described["explained_variance"] < 1


@pytest.mark.parametrize("kind", TRANSFORMS)
def test_a_saved_transform_is_the_same_map(kind, tmp_path):
    features = draw_features().double()
    transform = TargetTransform.fit(kind, features, 3 if kind in PROJECTIONS else None)
    digest = transform.save(tmp_path / "a.safetensors")
    loaded = TargetTransform.load(tmp_path / "a.safetensors", digest)
    assert (loaded.kind, loaded.explained_variance) == (kind, transform.explained_variance)
    assert torch.equal(loaded(features), transform(features))
    assert torch.equal(loaded.inverse(loaded(features)), transform.inverse(transform(features)))
    assert loaded.save(tmp_path / "b.safetensors") == digest
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_a_file_that_is_no_whole_transform_is_refused(tmp_path):
    path = tmp_path / "transform.safetensors"

    def refused(message, sha256=None):
        with pytest.raises(InputError, match=f"transform.safetensors is not a whole target transform.*{message}"):
            TargetTransform.load(path, sha256)

    refused("No such file")
    TargetTransform.fit("pca", draw_features(), 2).save(path)
    refused("its sha256 differs from the one stated", "0" * 64)
    # Copies, since what is loaded is mapped and the file is written over.
    whole, tensors = path.read_bytes(), {name: tensor.clone() for name, tensor in load_file(path).items()}
    path.write_bytes(whole[:-8])
    refused("")
    save_file(tensors, path)
    refused("'target_transform'")
    facts = {"target_transform": json.dumps({"kind": "pca", "explained_variance": 1.0})}
    save_file({**tensors, "mean": torch.zeros(7).double()}, path, metadata=facts)
    refused("do not fit")


EYE = torch.eye(3, dtype=torch.float64)[:2]
MEAN, ONES, TWO = (torch.ones(count, dtype=torch.float64) for count in (3, 3, 2))
WHOLE = {"pca": {"mean": MEAN, "scale": TWO, "components": EYE}, "centre": {"mean": MEAN, "scale": ONES}}
WHOLE["none"] = {"mean": MEAN * 0, "scale": ONES}
WRONG = {
    "facts in a list": ("pca", [1], {}, "list indices"),
    "no facts": ("pca", None, {}, "NoneType"),
    "no kind": ("pca", {"kind": None}, {}, "its kind is None, not one of none, centre"),
    "an unknown kind": ("pca", {"kind": "x"}, {}, "its kind is 'x', not one of none, centre"),
    "a kind in a list": ("pca", {"kind": ["pca"]}, {}, "its kind is"),
    "text for a number": ("pca", {"explained_variance": "<b>"}, {}, "its explained variance is '<b>', not a number"),
    "a truth value": ("pca", {"explained_variance": True}, {}, "its explained variance is True"),
    "NaN explained": ("pca", {"explained_variance": math.nan}, {}, "its explained variance is nan"),
    "too much explained": ("pca", {"explained_variance": 1.5}, {}, "its explained variance is 1.5"),
    "scale of 0": ("pca", {"kind": "whiten"}, {"scale": TWO * 0}, "its scale is not above 0"),
    "negative scale": ("pca", {"kind": "whiten"}, {"scale": -TWO}, "its scale is not above 0"),
    "NaN": ("pca", {}, {"mean": MEAN * math.nan}, "its mean is not of finite numbers in float64"),
    "infinite": ("pca", {}, {"components": EYE / 0}, "its components is not of finite numbers"),
    "whole numbers": ("pca", {}, {"scale": TWO.long()}, "its scale is not of finite numbers in float64"),
    "a scale of pca": ("pca", {}, {"scale": TWO * 2}, "its numbers are not those of the kind pca"),
    "a scale of centre": ("centre", {}, {"scale": ONES * 2}, "its numbers are not those of the kind centre"),
    "a mean of none": ("none", {}, {"mean": MEAN}, "its numbers are not those of the kind none"),
    "no components": ("centre", {"kind": "whiten"}, {}, "its components do not fit its kind whiten"),
    "too many components": ("pca", {"kind": "centre"}, {}, "its components do not fit its kind centre"),
    "not orthonormal": ("pca", {}, {"components": EYE * 2}, "its components are not orthonormal"),
    "a matrix for a mean": ("pca", {}, {"mean": MEAN[None]}, r"its mean \(1, 3\) and scale \(2,\) do not fit"),
    "a number for a mean": ("centre", {}, {"mean": MEAN[0]}, r"its mean \(\) and scale \(3,\) do not fit"),
    "nothing": ("centre", {}, {"mean": MEAN[:0], "scale": ONES[:0]}, r"its mean \(0,\) and scale \(0,\) do not fit"),
    "another width": ("centre", {}, {"scale": TWO}, r"its mean \(3,\) and scale \(2,\) do not fit"),
    "more than D": ("pca", {}, {"scale": torch.ones(4).double()}, r"its mean \(3,\) and scale \(4,\) do not fit"),
    "turned": ("pca", {}, {"components": EYE.T.contiguous()}, r"its components \(3, 2\), mean and scale do not fit"),
}


def save_wrong(path, kind, facts, tensors):
    facts = {"kind": kind, "explained_variance": 1.0, **facts} if isinstance(facts, dict) else facts
    save_file({**WHOLE[kind], **tensors}, path, metadata={"target_transform": json.dumps(facts)})


@pytest.mark.parametrize("kind", WHOLE)
def test_the_files_that_the_wrong_ones_are_made_of_are_whole(kind, tmp_path):
    save_wrong(tmp_path / "a", kind, {}, {})
    assert TargetTransform.load(tmp_path / "a").kind == kind


@pytest.mark.parametrize("case", WRONG)
def test_numbers_that_no_fit_gives_are_refused(case, tmp_path):
    kind, facts, tensors, message = WRONG[case]
    save_wrong(tmp_path / "a", kind, facts, tensors)
    with pytest.raises(InputError, match=f"is not a whole target transform .*{message}.*fetch or make the set again"):
        TargetTransform.load(tmp_path / "a")
