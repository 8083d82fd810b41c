import re

import pytest
import timm
import torch
import yaml
from huggingface_hub import ModelCard

from ssdd_hub.hub.licences import describe_licence
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.teachers.card import render_teacher_card
from ssdd_hub.teachers.teacher import Teacher


def metadata(architecture="ssdd_resnet18", teacher=None, **provenance):
    facts = {
        **{"name": architecture, "weights_sha256": "ab" * 32, "license": "cc-by-4.0", "feature_dim": 512},
        **{"features": "pre_logits", "input_size": 32, "interpolation": "bicubic"},
        "pixel_space": {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.3]},
    }
    return {"architecture": architecture, "teacher": {**facts, **(teacher or {})}, "provenance": provenance}


def full_metadata():
    score = {"protocol": "knn", "source": "cifar100", "target": "cifar100", "metric": "accuracy", "n": 3}
    return metadata(
        objective={
            "name": "vicreg",
            "citation": "Bardes et al., ICLR 2022, https://arxiv.org/abs/2105.04906",
            "mu": 25.0,
        },
        source={"name": "uoft-cs/cifar100", "revision": "abc", "num_images": 50_000, "license": "unknown"},
        settings={"pretrain": {"epochs": 200}},
        seed=3,
        scores=[{**score, "set": "untrained", "mean": 0.1, "std": 0.01}, {**score, "set": "teacher", "mean": 0.5123}],
        hardware={"device": "cpu", "cpus": 2},
        versions={"torch": "2.15.0"},
        command="accelerate launch recipes/train_teacher.py --objective vicreg",
        seconds=93.21,
    )


DINOV3 = "https://ai.meta.com/resources/models-and-libraries/dinov3-license"


def front_matter(card):
    return yaml.safe_load(card.split("---\n")[1])


def test_the_card_tells_what_the_folder_records():
    card = render_teacher_card(full_metadata(), "someone/teacher")
    assert front_matter(card) == {
        "license": "cc-by-4.0",
        "library_name": "ssdd_hub",
        "pipeline_tag": "image-feature-extraction",
        "tags": ["self-supervised", "dataset-distillation", "ssdd_hub", "timm", "vicreg"],
        "datasets": ["uoft-cs/cifar100"],
    }
    for text in (
        "# ssdd\\_resnet18 trained with vicreg on cifar100\n",
        "maps an image to 512 features. It was trained without labels on 50000 images of uoft-cs/cifar100. Datasets",
        'timm.create_model("hf-hub:someone/teacher", pretrained=True, num_classes=0).eval()\n',
        "import ssdd_hub  # registers the architecture with timm\n",
        "resized to 32x32 as a whole (bicubic, no crop)",
        "mean: 0.5, 0.4, 0.3; std: 0.2, 0.2, 0.3",
        "The features are what the classifier would read",
        "| untrained | knn | cifar100 | cifar100 |  |  | accuracy | 0.1 ± 0.01 | 3 |",
        "| teacher | knn | cifar100 | cifar100 |  |  | accuracy | 0.5123 | 3 |",
        "| Objective | name: vicreg; citation: Bardes et al., ICLR 2022, https://arxiv.org/abs/2105.04906; mu: 25 |",
        "| Hardware | device: cpu; cpus: 2 |",
        "| Time | 93.2 s |",
        "pretrain:\n  epochs: 200\n",
        "accelerate launch recipes/train_teacher.py --objective vicreg\n",
        "| This model | cc-by-4.0 |\n| Source | unknown |\n",
        "## Citation\n\nBardes et al., ICLR 2022",
    ):
        assert text in card, text
    assert ModelCard(card).data.library_name == "ssdd_hub"


def test_a_teacher_of_unknown_making_gets_a_card_that_claims_nothing():
    card = render_teacher_card(metadata("resnet50", {"license": "unknown"}), "teacher")
    assert front_matter(card)["license"] == "unknown" and front_matter(card)["library_name"] == "timm"
    assert "None were measured." in card and "Nothing was recorded." in card and "# resnet50\n" in card
    assert 'create_model("local-dir:teacher", pretrained=True, num_classes=0).eval()  # the path of this' in card
    assert "import ssdd_hub" not in card.split("## Images")[0].split("As a teacher")[0]
    assert not re.search(r"\bNone\b(?! were)|trained without|apache|Citation|datasets:|base_model", card)


@pytest.mark.parametrize(
    ("made", "entry", "expected"),
    [
        (metadata(source={"name": "uoft-cs/cifar100", "revision": "abc"}), "datasets", ["uoft-cs/cifar100"]),
        (metadata(source={"name": "pictures/cats", "revision": None}), "datasets", None),
        (metadata(source={"name": "../shared/cats", "revision": "abc"}), "datasets", None),
        (metadata(source="digits"), "datasets", None),
        (metadata("resnet50", {"name": "hf-hub:timm/resnet50.a1_in1k"}), "base_model", "timm/resnet50.a1_in1k"),
        (metadata("resnet50", {"name": "hf_hub:timm/resnet50.a1_in1k@main"}), "base_model", "timm/resnet50.a1_in1k"),
        (metadata(teacher={"license": "dinov3-license"}), "license_name", "dinov3-license"),
    ],
)
def test_only_datasets_and_models_of_the_hub_are_linked_and_licences_are_named(made, entry, expected):
    assert front_matter(render_teacher_card(made, "teacher")).get(entry) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("apache-2.0", {"license": "apache-2.0"}),
        ("CC-BY-NC-4.0", {"license": "cc-by-nc-4.0"}),
        ("unknown", {"license": "unknown"}),
        ("fair-noncommercial-research-license", {"license": "fair-noncommercial-research-license"}),
        ("dinov3-license", {"license": "other", "license_name": "dinov3-license", "license_link": DINOV3}),
        ("MIT, apache-2.0", {"license": ["mit", "apache-2.0"]}),
        ("mit, dinov3-license", {"license": "other", "license_name": "mit-dinov3-license"}),
        ("nvidia-open-model-license", {"license": "other", "license_name": "nvidia-open-model-license"}),
        ("Ask me\nfirst!", {"license": "other", "license_name": "ask-me-first"}),
        ("", {"license": "unknown"}),
        ("?!", {"license": "other", "license_name": "unnamed"}),
    ],
)
def test_a_licence_that_the_hub_does_not_know_is_named(name, expected):
    assert describe_licence(name) == expected


def test_every_licence_of_timms_weights_is_one_that_the_hub_takes():
    licences = {timm.get_pretrained_cfg(name).license or "unknown" for name in timm.list_pretrained()}
    described = [describe_licence(name) for name in licences]
    assert {"apache-2.0", "cc-by-nc-4.0", "apple-ascl"} <= {entry["license"] for entry in described}
    assert all(re.fullmatch(r"[a-z0-9.-]+", entry.get("license_name", "a")) for entry in described)


HOSTILE = (
    "x\"'\n---\nlicense: mit\n# Heading\n| a | b |\n```\n<script>alert(1)</script> "
    "[l](http://a) ![i](b) `c` *d* {{ 7*7 }}"
)


def test_text_from_outside_stays_text():
    hostile = metadata(
        HOSTILE,
        {"name": HOSTILE, "license": HOSTILE, "interpolation": HOSTILE, "pixel_space": {"mean": [HOSTILE]}},
        objective={"name": HOSTILE, "citation": HOSTILE, HOSTILE: HOSTILE},
        source={"name": HOSTILE, "revision": HOSTILE, "num_images": HOSTILE, "license": HOSTILE},
        checkpoint=HOSTILE,
        settings={HOSTILE: HOSTILE},
        hardware=HOSTILE,
        scores=[{"set": HOSTILE, "mean": 1.0, "std": 0.5, "n": HOSTILE}],
        command=HOSTILE,
    )
    card = render_teacher_card(hostile, location=HOSTILE)
    assert front_matter(card)["license"] == "other" and "mit" not in front_matter(card).values()
    body = ModelCard(card).text
    # A fence ends only at a line of at least as many backticks, so whatever is left stands outside of code.
    outside = re.sub(r"^(`{3,})\w+\n.*?^\1$", "", body, flags=re.DOTALL | re.MULTILINE)
    assert "<" not in outside
    assert "{{ 7\\*7 }}" in outside
    assert not re.search(r"(?<!\\)\[l|(?<!\\)`c|(?<!\\)\*d|!\[i", outside)
    headings = [line for line in outside.splitlines() if line.startswith("#")]
    assert [heading.split()[0] for heading in headings] == ["#"] + ["##"] * 6
    rows = [line for line in outside.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {3, 10}


@pytest.mark.parametrize(
    ("name", "args", "features"),
    [
        ("ssdd_resnet10", {"channels": (4, 4, 8, 12), "in_chans": 1}, "pre_logits"),
        ("test_resnet", {}, "mean"),
        ("test_vit", {"img_size": 32}, "cls"),
    ],
)
def test_the_code_of_the_card_runs_where_it_lies(tmp_path, monkeypatch, name, args, features):
    channels = args.get("in_chans", 3)
    torch.manual_seed(0)
    backbone = timm.create_model(name, num_classes=0, **args)
    teacher = Teacher(backbone, PixelSpace((0.4,) * channels, (0.3,) * channels), 32, name, "mit", features=features)
    teacher.save(tmp_path / "teacher", {"seed": 0})
    card = (tmp_path / "teacher" / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    monkeypatch.chdir(tmp_path / "teacher")
    assert len(blocks) == 2
    names = {}
    for block in blocks:
        exec(block, names)
    torch.testing.assert_close(names["features"], teacher(names["pixels"]), rtol=0, atol=1e-6)
    with torch.no_grad():
        expected = teacher.backbone(teacher.pixel_space.normalise(names["pixels"]))
    torch.testing.assert_close(names["outputs"], expected, rtol=0, atol=1e-6)
