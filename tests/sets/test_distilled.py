import hashlib
import json
import os
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from ssdd_hub.errors import InputError
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.sets.distilled import DistilledSet
from ssdd_hub.targets.transform import TargetTransform

PARQUET = "data/train-00000-of-00001.parquet"
RGB = PixelSpace((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
GREY = PixelSpace((0.3,), (0.4,))


def make_set(size=5, channels=3, seed=0, **parts):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(size, channels, 6, 7, generator=generator) * 2
    # Values that a careless route changes: negative zero, a denormal, the largest number, the next after 1.
    images[0, 0, 0, :4] = torch.tensor([-0.0, 1e-45, torch.finfo(torch.float32).max, 1 + 2**-23])
    targets = torch.randn(size, 4, generator=generator)
    targets[0, :2] = torch.tensor([-0.0, -1e-45])
    return DistilledSet(images, targets, RGB if channels == 3 else GREY, **parts)


def bits(tensor):
    return tensor.contiguous().view(torch.int32)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("channels", [1, 3])
def test_a_loaded_set_equals_the_saved_one_bit_for_bit(tmp_path, channels):
    saved = make_set(channels=channels, provenance={"method": "krr-st", "versions": {"torch": "2"}})
    assert saved.save(tmp_path / "set") == tmp_path / "set"
    loaded = DistilledSet.load(tmp_path / "set")
    assert torch.equal(bits(loaded.images), bits(saved.images))
    assert torch.equal(bits(loaded.targets), bits(saved.targets))
    assert loaded.images.shape == saved.images.shape
    assert loaded.pixel_space == saved.pixel_space
    assert loaded.provenance == saved.provenance
    assert loaded.labels is None and loaded.label_names is None
    loaded.images.zero_()  # they can be written to


@pytest.mark.parametrize("names", [None, ["cat", "dog <b>", "eel|"]])
def test_labels_and_their_names_come_back(tmp_path, names):
    labels = torch.tensor([2, 0, 1, 1, -1])
    folder = make_set(labels=labels, label_names=names).save(tmp_path / "set")
    loaded = DistilledSet.load(folder)
    assert torch.equal(loaded.labels, labels) and loaded.label_names == names
    features = datasets.Features.from_arrow_schema(pq.read_schema(folder / PARQUET))
    assert features["label"] == (datasets.ClassLabel(names=names) if names else datasets.Value("int64"))


def test_a_set_of_one_image_and_one_target_value_comes_back(tmp_path):
    saved = DistilledSet(torch.full((1, 1, 1, 1), 0.25), torch.ones(1, 1), GREY)
    loaded = DistilledSet.load(saved.save(tmp_path / "set"))
    assert loaded.images.item() == 0.25 and loaded.targets.item() == 1


def test_tensors_that_are_strided_or_need_gradients_are_saved_as_they_look(tmp_path):
    images = torch.randn(3, 6, 7, 3).permute(0, 3, 1, 2).requires_grad_()
    targets = torch.randn(4, 3).T
    loaded = DistilledSet.load(DistilledSet(images, targets, RGB).save(tmp_path / "set"))
    assert torch.equal(loaded.images, images.detach()) and torch.equal(loaded.targets, targets)


def test_the_cache_of_datasets_does_not_confuse_sets_in_folders_of_one_name(tmp_path):
    sets = [DistilledSet(torch.rand(size, 1, 8, 8), torch.rand(size, 2), GREY) for size in (3, 4, 4)]
    for place, saved in zip("abb", sets, strict=True):
        folder = saved.save(tmp_path / place / "distilled")
        dataset = datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
        assert torch.equal(dataset.with_format("torch")[:]["target"], saved.targets)


@pytest.mark.parametrize("channels", [1, 3])
def test_load_dataset_reads_the_folder_without_a_script(tmp_path, channels):
    saved = make_set(channels=channels, labels=torch.arange(5) % 2, label_names=["a", "b"])
    folder = saved.save(tmp_path / "set")
    dataset = datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    assert dataset.column_names == ["id", "image", "pixels", "target", "label"]
    assert dataset["id"][:] == [0, 1, 2, 3, 4]
    assert dataset.features["target"] == datasets.List(datasets.Value("float32"), length=4)
    rows = dataset.select_columns(["pixels", "target", "label"]).with_format("torch")[:]
    assert torch.equal(bits(rows["pixels"]), bits(saved.images))
    assert torch.equal(bits(rows["target"]), bits(saved.targets))
    assert rows["label"].tolist() == [0, 1, 0, 1, 0]
    mean, std = (np.array(values)[:, None, None] for values in (saved.pixel_space.mean, saved.pixel_space.std))
    for index, image in enumerate(dataset["image"]):
        wanted = np.clip(saved.images[index].double().numpy() * std + mean, 0, 1) * 255
        shown = np.asarray(image).reshape(6, 7, channels).transpose(2, 0, 1)
        assert image.mode == ("L" if channels == 1 else "RGB")
        assert np.abs(shown - wanted).max() <= 0.5 + 1e-3


def test_the_json_states_digests_ranges_and_versions(tmp_path):
    images = torch.tensor([-0.5, 0.25, 1.0, 1.5]).reshape(1, 1, 2, 2)
    DistilledSet(images, torch.ones(1, 2), PixelSpace.raw(1), provenance={"seed": 3}).save(tmp_path / "set")
    stated = json.loads((tmp_path / "set" / "ssdd_hub.json").read_text())
    sha256 = hashlib.sha256(np.array([-0.5, 0.25, 1.0, 1.5], "<f4").tobytes()).hexdigest()
    assert stated["tensors"]["images"] == {"shape": [1, 1, 2, 2], "dtype": "float32", "sha256": sha256}
    assert (stated["pixel_range"], stated["clip_fraction"]) == ([-0.5, 1.5], 0.5)
    assert stated["pixel_space"] == {"mean": [0.0], "std": [1.0]} and stated["provenance"]["seed"] == 3
    assert stated["provenance"]["versions"]["torch"] == torch.__version__.split("+")[0]


def test_real_pixels_do_not_count_as_clipped(tmp_path):
    space = PixelSpace((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
    images = space.normalise(torch.tensor([0.0, 1.0]).repeat(6).reshape(1, 3, 2, 2))
    folder = DistilledSet(images, torch.ones(1, 2), space).save(tmp_path / "set")
    assert json.loads((folder / "ssdd_hub.json").read_text())["clip_fraction"] == 0


def test_the_tensor_dataset_pairs_images_with_targets():
    made = make_set()
    images, targets = made.as_tensor_dataset()[:]
    assert torch.equal(images, made.images) and torch.equal(targets, made.targets)


def test_a_set_carries_the_transform_of_its_targets(tmp_path):
    transform = TargetTransform.fit("pca", torch.randn(30, 9, generator=torch.Generator().manual_seed(1)), 4)
    folder = make_set(target_transform=transform).save(tmp_path / "set")
    loaded = DistilledSet.load(folder)
    assert torch.equal(loaded.target_transform.inverse(loaded.targets), transform.inverse(make_set().targets))
    stored = (folder / "target_transform.safetensors").read_bytes()
    stated = json.loads((folder / "ssdd_hub.json").read_text())["target_transform"]
    assert stated == {"sha256": hashlib.sha256(stored).hexdigest()}
    # A set without one takes the place of a set with one, file and all.
    assert DistilledSet.load(make_set().save(folder)).target_transform is None
    assert not (folder / "target_transform.safetensors").exists()


def test_a_transform_that_is_not_the_saved_one_is_refused(tmp_path):
    features = torch.randn(30, 4, generator=torch.Generator().manual_seed(1))
    folder = make_set(target_transform=TargetTransform.fit("centre", features)).save(tmp_path / "set")
    TargetTransform.fit("standardise", features).save(folder / "target_transform.safetensors")
    with pytest.raises(InputError, match="target_transform.safetensors is not a whole .*sha256 differs"):
        DistilledSet.load(folder)
    (folder / "target_transform.safetensors").unlink()
    with pytest.raises(InputError, match="target_transform.safetensors is not a whole .*No such file"):
        DistilledSet.load(folder)


def test_a_transform_of_another_width_is_refused():
    transform = TargetTransform.fit("centre", torch.zeros(3, 5))
    with pytest.raises(InputError, match="must give targets of the width of the set's; got 5 and 4"):
        make_set(target_transform=transform)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": torch.zeros(2, 3, 4, 4, dtype=torch.float64)}, r"images must be .*float32.*torch\.float64"),
        ({"images": torch.zeros(3, 4, 4)}, r"images must be \(M, C, H, W\).*got \(3, 4, 4\)"),
        ({"images": torch.zeros(0, 3, 4, 4), "targets": torch.zeros(0, 5)}, r"images must be .*at least one"),
        ({"images": torch.zeros(2, 2, 4, 4)}, r"1 channel \(grey\) or 3 \(RGB\); got 2"),
        ({"images": torch.zeros(2, 1, 4, 4)}, r"the images' 1 channels; got 3"),
        ({"images": torch.full((2, 3, 4, 4), float("nan"))}, r"images hold NaN.*the distillation diverged"),
        ({"targets": torch.full((2, 5), float("inf"))}, r"targets hold NaN.*the distillation diverged"),
        ({"targets": torch.zeros(2, 5, dtype=torch.float16)}, r"targets must be .*torch\.float16"),
        ({"targets": torch.zeros(2)}, r"targets must be \(M, D\).*got \(2,\)"),
        ({"targets": torch.zeros(3, 5)}, r"every image needs one target; got 2 and 3"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, r"labels must be \(2,\), int64; got \(3,\)"),
        ({"labels": torch.zeros(2)}, r"labels must be \(2,\), int64; got \(2,\), torch\.float32"),
        ({"labels": torch.tensor([0, 2]), "label_names": ["a", "b"]}, r"lie in \[-1, 2\).*got 0 to 2"),
        ({"labels": torch.tensor([0, -2]), "label_names": ["a", "b"]}, r"lie in \[-1, 2\).*got -2 to 0"),
        ({"labels": torch.tensor([0, 0]), "label_names": ["a", "a"]}, r"label_names must differ"),
        ({"label_names": ["a"]}, r"label_names without labels"),
        ({"provenance": {"made": [1, object()]}}, r"provenance\.made\[1\] must be a number.*got object"),
        ({"provenance": {"seeds": {1: 2}}}, r"keys of provenance\.seeds must be strings.*got 1"),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes, message):
    parts = {"images": torch.zeros(2, 3, 4, 4), "targets": torch.zeros(2, 5), "pixel_space": RGB, **changes}
    with pytest.raises(InputError, match=message):
        DistilledSet(**parts)


def test_provenance_is_what_json_gives_back():
    given = {"shape": torch.Size([2, 3]), "folder": Path("runs") / "a", "scale": np.float32(0.5), "flag": True}
    kept = make_set(provenance={**given, "count": torch.tensor(3), "std": float("nan"), "none": None}).provenance
    expected = {"shape": [2, 3], "folder": os.path.join("runs", "a"), "scale": 0.5, "flag": True, "count": 3}
    assert kept == {**expected, "std": None, "none": None} == json.loads(json.dumps(kept))


def test_scores_added_after_construction_are_saved(tmp_path):
    made = make_set()
    made.provenance["scores"] = [{"set": "distilled", "metric": "mse", "mean": 0.4, "std": float("nan"), "n": 1}]
    folder = made.save(tmp_path / "set")
    assert DistilledSet.load(folder).provenance["scores"][0]["std"] is None
    assert "| distilled |" in (folder / "README.md").read_text(encoding="utf-8")


def test_hub_tokens_are_never_written(tmp_path):
    token = "hf_" + "aB3" * 12
    provenance = {"command": f"python publish.py --token={token} --name hf_hub_download", "settings": {"token": token}}
    folder = make_set(provenance=provenance).save(tmp_path / "set")
    assert all(token.encode() not in content for content in contents(folder).values())
    assert DistilledSet.load(folder).provenance["command"].endswith("--token=<token> --name hf_hub_download")
