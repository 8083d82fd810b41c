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
from ssdd_hub.sets.origin import publishing_risks

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
    random = {"mean": 0.5, "values": [0.5, 0.51, 0.52, 0.53, 0.54], "set": "random"}
    error = {
        **{"set": "distilled", "protocol": "teacher_error", "source": "cifar100", "target": "cifar100"},
        **{"student": "ssdd_convnet3", "labels": None, "metric": "mse", "mean": 0.41712, "std": 0.0123, "n": 5},
        **{"values": [0.4, 0.41, 0.42, 0.43, 0.44], "images": 100, "bytes": 1_433_600},
    }
    sizes = {"images": 1_228_800, "targets": 204_800, "decoder": 0, "file": 1_346_210}
    return {"num_bytes": sizes} | metadata(
        method="krr-st",
        license="cc-by-nc-4.0",
        settings={"steps": 1500, "learning_rates": {"images": 0.01, "targets": 0.01}, "pool": {"renewal": "age"}},
        seed=3,
        start={"init": "kmeans", "indices": list(range(100))},
        similarity={
            **{"measure": "correlation of pixels", "searched": 50000},
            "nearest": {"median": 0.9402, "max": 0.9812, "above_0.8": 99, "of": 100},
            "start": {"median": 0.9399, "max": 0.9812, "above_0.8": 98, "of": 100},
        },
        source=cifar,
        teacher={"name": "ssdd_resnet18", "weights_sha256": "ab" * 32, "license": "apache-2.0", "feature_dim": 512},
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
            {**error, **random},
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
    assert "source_datasets" not in data and "synthetic" not in data["tags"]
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
        ({"name": "uoft-cs/cifar100", "revision": "abc"}, ["extended|uoft-cs/cifar100"]),
        ({"name": "pictures/cats", "revision": None}, None),
        ({"name": "../shared/cats", "revision": "abc"}, None),
        ("digits", None),
    ],
)
def test_only_a_hub_dataset_is_named_as_the_extended_one_and_none_as_original(source, expected):
    card = render_dataset_card(metadata(source=source), "distilled")
    assert front_matter(card).get("source_datasets") == expected


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
        start={"init": HOSTILE, "indices": HOSTILE},
        similarity={"searched": HOSTILE, "nearest": {"median": HOSTILE}, "start": HOSTILE},
        scores=[{"set": HOSTILE, "mean": 1.0, "std": 0.5, "n": HOSTILE, "student": HOSTILE, "target": HOSTILE}],
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
    assert [heading.split()[0] for heading in headings] == ["#"] + ["##"] * 8
    rows = [line for line in outside.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {3, 10}


def test_the_code_of_the_card_runs_where_it_lies(tmp_path, monkeypatch):
    images, targets = torch.randn(4, 3, 8, 8), torch.randn(4, 5)
    folder = DistilledSet(images, targets, PixelSpace.raw(3)).save(tmp_path / "set")
    blocks = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.setattr(ssdd_hub, "DistilledSet", DistilledSet, raising=False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(folder)
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


def sentences(**provenance):
    card = render_dataset_card(metadata(**provenance), "distilled")
    return card.split("## Origin and privacy")[1].split("| Source |")[0]


KRR = {"method": "krr-st"}
LOCAL = {"name": "holiday", "revision": None}


@pytest.mark.parametrize(
    ("provenance", "said"),
    [
        ({**KRR, "start": {"init": "noise"}}, "started from noise"),
        ({**KRR, "start": {"init": "random", "indices": [1]}}, "started from real images of the source, chosen by"),
        (
            {**KRR, "settings": {"init": "kcenter"}},
            "started from real images of the source, chosen by the method kcen",
        ),
        (KRR, "does not tell what the images started from. Sets of this method usually start from real images"),
        (KRR, "was not measured"),
        ({"method": "selection/kmeans"}, "The images are 100 real images of the source, unchanged"),
        ({"method": "selection/gaussian"}, "The images are noise"),
        ({"source": LOCAL}, "ask those who published the source, holiday; the record has no address of it"),
        ({"source": "digits"}, "[digits](https://archive.ics.uci.edu/"),
        ({}, "does not name the source"),
    ],
)
def test_the_origin_is_told_as_far_as_it_is_recorded(provenance, said):
    assert said in sentences(**provenance)


def test_only_noise_shows_nobody():
    assert "this is no anonymisation" in sentences() and "this is no anonymisation" in sentences(**KRR)
    assert "anonymisation" not in sentences(method="selection/gaussian")


@pytest.mark.parametrize("wrong", [None, "x", [], {"median": "a"}, {"median": 2, "max": 3, "above_0.8": 1, "of": 1}])
def test_a_similarity_in_other_words_was_not_measured(wrong):
    assert "was not measured" in sentences(similarity={"nearest": wrong, "start": wrong})
    assert "was not measured" in sentences(similarity=wrong)


def test_only_sets_that_start_from_noise_are_tagged_synthetic():
    tags = [
        front_matter(render_dataset_card(metadata(**KRR, start={"init": init}), "distilled"))["tags"]
        for init in ("noise", "random")
    ]
    assert "synthetic" in tags[0] and "synthetic" not in tags[1]


def test_long_hashes_are_folded_and_in_full_below():
    card = render_dataset_card(metadata(teacher={"name": "a", "weights_sha256": "ab" * 32}), "distilled")
    above, folded = card.split("<details>")
    assert "abababababab…" in above and "ab" * 32 not in above
    assert f"| Teacher weights sha256 | {'ab' * 32} |" in folded.split("</details>")[0]


@pytest.mark.parametrize(
    ("provenance", "words"),
    [
        ({}, ["the source is not known to be public"]),
        ({"source": LOCAL}, ["the source, holiday, is not known to be public"]),
        ({"source": {"name": "a/b", "revision": "c"}}, []),
        ({"source": "digits"}, []),
        ({"source": "digits", "similarity": {"nearest": {"median": 0.9, "max": 0.9, "above_0.8": 3, "of": 4}}},
         ["in 3 of 4 images a person sees the same picture"]),
        ({"source": "digits", "similarity": {"nearest": {"median": 0.1, "max": 0.2, "above_0.8": 0, "of": 4}}}, []),
    ],
)  # fmt: skip
def test_what_is_risky_to_publish_is_told_in_a_line_each(provenance, words):
    risks = publishing_risks(provenance)
    assert len(risks) == len(words) and all(risk.startswith(word) for risk, word in zip(risks, words, strict=True))
