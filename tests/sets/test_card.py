import re
from pathlib import Path

import datasets
import pytest
import torch
import yaml
from huggingface_hub import DatasetCard

import ssdd_hub
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.sets.card import render_dataset_card
from ssdd_hub.sets.distilled import DistilledSet

GOLDEN = Path(__file__).parents[1] / "golden" / "dataset_card.md"


def metadata(size=100, **provenance):
    return {
        "format_version": 1,
        "tensors": {
            "images": {"shape": [size, 3, 32, 32], "dtype": "float32", "sha256": "11" * 32},
            "targets": {"shape": [size, 512], "dtype": "float32", "sha256": "22" * 32},
        },
        "pixel_space": {"mean": [0.5, 0.45, 0.4], "std": [0.25, 0.25, 0.3]},
        "pixel_range": [-0.5, 1.4],
        "clip_fraction": 0.0321,
        "label_names": None,
        "provenance": provenance,
    }


def full_metadata():
    cifar = {
        **{"name": "uoft-cs/cifar100", "config": None, "revision": "aadb3af77e9048adbea6b47c21a81e47dd092ae5"},
        **{"split": "train", "num_images": 50000, "license": "unknown", "skipped": [], "fingerprint": "f0f0"},
    }
    error = {
        **{"set": "distilled", "protocol": "teacher_error", "source": "cifar100", "target": "cifar100"},
        **{"student": "ssdd_convnet3", "labels": None, "metric": "mse", "mean": 0.41712, "std": 0.0123, "n": 5},
        "values": [0.4, 0.41, 0.42, 0.43, 0.44],
    }
    return metadata(
        method="krr-st",
        license="cc-by-nc-4.0",
        settings={"steps": 1500, "learning_rates": {"images": 0.01, "targets": 0.01}, "pool": {"renewal": "age"}},
        seed=3,
        source=cifar,
        teacher={"name": "ssdd_resnet18", "weights_sha256": "abab", "license": "apache-2.0", "feature_dim": 512},
        target_transform={"kind": "standardise", "scale": 2.5},
        use={"optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "steps": 300, "batch_size": None, "loss": "mse"},
        student={"name": "ssdd_convnet3", "model_args": {"widths": [32, 64, 128], "norm": "batch"}},
        student_pixel_space={"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]},
        command="accelerate launch recipes/distill.py --seed 3",
        seconds=268.04,
        hardware={"cpu": "2 cores"},
        versions={"torch": "2.15.0", "timm": "1.0.31"},
        scores=[
            error,
            {"set": "none", "protocol": "probe", "labels": 0.01, "metric": "accuracy", "mean": 0.1, "n": 1},
            {"set": "distilled", "protocol": "cost", "metric": "seconds", "mean": 88.5, "n": 1},
        ],
    )


def front_matter(card):
    return yaml.safe_load(card.split("---\n")[1])


def test_the_whole_card_is_the_golden_file():
    assert render_dataset_card(full_metadata(), location="someone/cifar100-100") == GOLDEN.read_text(encoding="utf-8")


def test_a_set_that_records_nothing_still_gets_a_card_that_claims_nothing():
    card = render_dataset_card(metadata(), "distilled")
    data = front_matter(card)
    assert data["license"] == "unknown"
    assert data["source_datasets"] == ["original"]
    assert "krr-st" not in data["tags"]
    assert "KRR-ST" not in card
    assert "None were measured." in card
    assert "No recipe for use was recorded." in card
    assert "| Teacher | unknown |" in card
    assert not re.search(r"\bNone\b(?! were)|apache|\bmit\b", card, re.IGNORECASE)


@pytest.mark.parametrize(("size", "category"), [(999, "n<1K"), (1000, "1K<n<10K"), (2_000_000, "1M<n<10M")])
def test_the_size_category_follows_the_number_of_images(size, category):
    assert front_matter(render_dataset_card(metadata(size), "distilled"))["size_categories"] == category


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ({"name": "uoft-cs/cifar100", "revision": "abc"}, "extended|uoft-cs/cifar100"),
        ({"name": "pictures/cats", "revision": None}, "original"),
        ({"name": "../shared/cats", "revision": "abc"}, "original"),
        ("digits", "original"),
    ],
)
def test_only_a_hub_dataset_is_named_as_the_extended_one(source, expected):
    assert front_matter(render_dataset_card(metadata(source=source), "distilled"))["source_datasets"] == [expected]


@pytest.mark.parametrize(
    ("licence", "expected"),
    [
        ("mit, apache-2.0", {"license": ["mit", "apache-2.0"]}),
        ("dinov3-license", {"license": "other", "license_name": "dinov3-license"}),
        ("mit, dinov3-license", {"license": "other", "license_name": "mit-dinov3-license"}),
    ],
)
def test_licences_are_stated_as_the_hub_takes_them(licence, expected):
    card = render_dataset_card(metadata(license=licence), "distilled")
    assert {name: front_matter(card).get(name) for name in expected} == expected
    assert f"| This set | {licence} |" in card


HOSTILE = (
    "x\"'\n---\nlicense: mit\n# Heading\n| a | b |\n```\n<script>alert(1)</script> "
    "[l](http://a) ![i](b) `c` *d* {{ 7*7 }}"
)


def test_text_from_outside_stays_text():
    hostile = metadata(
        method=HOSTILE,
        license=HOSTILE,
        settings={HOSTILE: HOSTILE},
        source={"name": HOSTILE, HOSTILE: HOSTILE, "num_images": HOSTILE},
        teacher=HOSTILE,
        use={HOSTILE: HOSTILE},
        student_pixel_space={"mean": HOSTILE, "std": [HOSTILE]},
        command=HOSTILE,
        scores=[{"set": HOSTILE, "mean": 1.0, "std": 0.5, "n": HOSTILE}],
    )
    card = render_dataset_card(hostile, location=HOSTILE)
    data = front_matter(card)
    assert data["license"] == "other" and re.fullmatch(r"[a-z0-9.-]+", data.pop("license_name"))
    assert sorted(data) == sorted(front_matter(render_dataset_card(metadata(), "distilled")))
    body = DatasetCard(card).text
    # A fence ends only at a line of at least as many backticks, so whatever is left stands outside of code.
    outside = re.sub(r"^(`{3,})\w+\n.*?^\1$", "", body, flags=re.DOTALL | re.MULTILINE)
    assert "<" not in outside
    assert "{{ 7\\*7 }}" in outside
    assert not re.search(r"(?<!\\)\[l|(?<!\\)`c|(?<!\\)\*d|!\[i", outside)
    headings = [line for line in outside.splitlines() if line.startswith("#")]
    assert [heading.split()[0] for heading in headings] == ["#"] + ["##"] * 6
    rows = [line for line in outside.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {3, 10}


def test_the_code_of_the_card_runs_as_it_stands(tmp_path, monkeypatch):
    images, targets = torch.randn(4, 3, 8, 8), torch.randn(4, 5)
    folder = DistilledSet(images, targets, PixelSpace.raw(3)).save(tmp_path / "set")
    blocks = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.setattr(ssdd_hub, "DistilledSet", DistilledSet, raising=False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    assert len(blocks) == 2
    for block in blocks:
        names: dict[str, torch.Tensor] = {}
        exec(block, names)
        assert torch.equal(names["images"], images)
        assert torch.equal(names["targets"], targets)


def test_a_long_vector_is_counted_not_printed():
    card = render_dataset_card(metadata(target_transform={"kind": "standardise", "mean": [0.25] * 128}), "owner/name")
    assert "mean: 128 values" in card
    assert "0.25, 0.25, 0.25, 0.25" not in card
