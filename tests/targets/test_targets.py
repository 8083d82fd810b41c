import pytest
import torch

from ssdd_hub.errors import SettingsError
from ssdd_hub.targets.bank import shard_path
from ssdd_hub.targets.cache import FeatureCache
from ssdd_hub.targets.targets import Targets, TargetSettings
from ssdd_hub.targets.transform import PROJECTIONS, TRANSFORMS, TargetTransform


@pytest.fixture
def bank(digits, small_teacher, accelerator, tmp_path):
    """Features of 50 images in half precision, in shards of 16."""
    cache = FeatureCache(small_teacher(), accelerator, tmp_path, shard_size=16, dtype="float16")
    return cache.features(digits[0].subset(range(50)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", TRANSFORMS)
def test_targets_are_the_transformed_features_in_the_type_asked_for(bank, kind, dtype):
    transform = TargetTransform.fit(kind, bank, 5 if kind in PROJECTIONS else None)
    targets = Targets(bank, transform, dtype)
    expected = transform(bank[:].double())
    assert (len(targets), targets.width) == expected.shape and targets[:].dtype == dtype
    tolerance = 1e-4 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(targets[:].double(), expected, rtol=tolerance, atol=tolerance)
    rows = torch.tensor([49, 0, 17, 17])
    torch.testing.assert_close(targets[rows].double(), expected[rows], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", TRANSFORMS)
def test_a_transform_of_features_on_the_disk_is_that_of_features_in_memory(bank, kind):
    dim = 5 if kind in PROJECTIONS else None
    on_disk, in_memory = (TargetTransform.fit(kind, features, dim) for features in (bank, bank[:]))
    assert torch.equal(on_disk.mean, in_memory.mean) and torch.equal(on_disk.scale, in_memory.scale)
    assert torch.equal(Targets(bank, on_disk)[:], Targets(bank[:], in_memory)[:])


def test_only_what_is_asked_for_is_read(bank, monkeypatch):
    monkeypatch.setattr("ssdd_hub.targets.targets.MOST_IN_MEMORY", bank.num_bytes - 1)
    targets, read = Targets(bank, TargetTransform.fit("centre", bank)), []
    monkeypatch.setattr("ssdd_hub.targets.bank.shard_path", lambda *at: read.append(at[1]) or shard_path(*at))
    targets[torch.tensor([3, 20, 5])]
    assert read == [0, 1]


@pytest.mark.parametrize("kind", TRANSFORMS)
def test_targets_from_memory_are_those_from_the_disk_bit_for_bit(bank, kind, monkeypatch):
    transform = TargetTransform.fit(kind, bank, 5 if kind in PROJECTIONS else None)
    asked = [slice(None), slice(3, 40), torch.tensor([7]), torch.tensor([49, 0, 17, 17, 33])]
    monkeypatch.setattr("ssdd_hub.targets.targets.MOST_IN_MEMORY", bank.num_bytes - 1)
    on_disk = [Targets(bank, transform)[rows] for rows in asked]
    monkeypatch.setattr("ssdd_hub.targets.targets.MOST_IN_MEMORY", bank.num_bytes)
    small = Targets(bank, transform)
    with monkeypatch.context() as without_disk:
        without_disk.setattr("ssdd_hub.targets.bank.shard_path", None)
        for rows, expected in zip(asked, on_disk, strict=True):
            assert torch.equal(small[rows], expected)
        # Nor are they read again for other targets of the same features.
        Targets(bank, transform, torch.float64)[:]


def test_settings_out_of_range_are_all_named():
    with pytest.raises(SettingsError) as caught:
        TargetSettings(transform="zca", dim=0, views=-1, batch_size=0, shard_size=0, dtype="int8")
    names = ("transform", "dim", "views", "batch_size", "shard_size", "dtype", "dim")
    assert [problem.split()[0] for problem in caught.value.problems] == [f"targets.{name}" for name in names]
    assert (
        caught.value.problems[-1] == "targets.dim is for --targets.transform pca, pca-standardise, whiten, got 'zca'"
    )
