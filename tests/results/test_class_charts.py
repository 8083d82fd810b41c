"""Pictures of accuracies class by class."""

import numpy as np
import pytest
import torch
from result_cases import Page

from ssdd_hub.results.charts import STYLES
from ssdd_hub.results.class_charts import draw_classes
from ssdd_hub.results.page import render_evaluation, render_pictures


def by_class(means, names=None, images=None, n=5, target="made", **more):
    """The part of `scores.json`, of sets with an accuracy for each class."""
    width = len(next(iter(means.values())))
    records = [
        {"set": name, "protocol": "probe", "source": "made", "target": target, "student": "ssdd_convnet3"}
        | {"use": "none", "labels": 50, "metric": "accuracy", "mean": list(mean), "n": n}
        | {"std": [None if value is None else 0.01 * (label + 1) for label, value in enumerate(mean)]}
        | more
        for name, mean in means.items()
    ]
    return {"classes": {target: {"names": names, "images": images or [40] * width}}, "records": records}


THREE = {"distilled": [0.9, 0.5, 0.7], "random": [0.8, 0.6, 0.7], "none": [0.7, 0.2, 0.1]}


def drawn(axis):
    """The points of each set: accuracy by class, and whiskers."""
    found = {}
    for container in axis.containers:
        line, _, bars = container
        (x,), (y,) = line.get_data()
        half = np.ptp(bars[0].get_segments()[0][:, 0]) / 2 if bars else None
        found.setdefault(line.get_color(), {})[round(float(y))] = (float(x), half)
    return found


def texts(axis):
    return [label.get_text() for label in axis.get_yticklabels()]


def test_every_class_shows_each_set_with_its_spread_its_name_its_images_and_its_gain():
    (picture,) = draw_classes(by_class(THREE, ["cat", "dog", "no $x$"], [40, 38, 1]))
    axis = picture.figure.axes[0]
    assert texts(axis) == ["cat (40 images, +10.0)", "dog (38 images, -10.0)", r"no \$x\$ (1 images, +0.0)"]
    points = drawn(axis)
    for name, accuracies in THREE.items():
        means, halves = zip(*(points[STYLES[name].colour][place] for place in range(3)), strict=True)
        np.testing.assert_allclose(means, np.multiply(accuracies, 100))
        np.testing.assert_allclose(halves, [1, 2, 3])
    assert picture.name == "probe 50 labels by class, made"
    assert "n = 5" in picture.caption and "difference of distilled to random in points" in picture.caption
    assert "largely chance" not in picture.caption
    (legend,) = picture.figure.legends
    assert [text.get_text().strip() for text in legend.get_texts()] == ["distilled", "random", "none"]


def test_of_many_classes_those_that_gain_and_lose_most_are_shown():
    gains = np.random.default_rng(0).permutation(100) / 1000 - 0.05
    means = {"distilled": (0.5 + gains).tolist(), "random": [0.5] * 100}
    (picture,) = draw_classes(by_class(means))
    order = [int(text.split()[0]) for text in texts(picture.figure.axes[0])]
    assert order == [*np.argsort(-gains)[:10], *np.argsort(-gains)[-10:]]
    assert "Of 100 classes those 10 that gain most against random, and that lose most" in picture.caption
    assert "largely chance" in picture.caption


def test_a_class_without_held_out_images_is_left_out_and_one_seed_has_no_whiskers():
    (picture,) = draw_classes(by_class({"distilled": [0.9, None], "none": [0.5, None]}, images=[40, 0], n=1))
    axis = picture.figure.axes[0]
    assert texts(axis) == ["0 (40 images, +40.0)"]
    assert drawn(axis)[STYLES["none"].colour] == {0: (50.0, None)}


def test_a_set_alone_has_no_gain_and_no_scores_have_no_picture():
    (picture,) = draw_classes(by_class({"distilled": [0.9, 0.8]}))
    assert texts(picture.figure.axes[0]) == ["0 (40 images)", "1 (40 images)"]
    assert draw_classes({}) == draw_classes({"classes": {}, "records": []}) == []


def test_a_dataset_has_a_picture_at_the_middle_amount_of_labels_of_the_first_protocol():
    parts = [by_class(THREE, labels=labels) for labels in (20, 50, 100)]
    parts += [by_class(THREE, target="other", labels=50), by_class(THREE, protocol="knn", labels=None)]
    whole = {"classes": {}, "records": []}
    for part in reversed(parts):
        whole["classes"] |= part["classes"]
        whole["records"] += part["records"]
    assert [p.name for p in draw_classes(whole)] == [f"probe 50 labels by class, {name}" for name in ("other", "made")]
    assert [p.name for p in draw_classes(parts[-1])] == ["knn by class, made"]


@pytest.mark.parametrize("baseline", ["random", "random-3"])
def test_references_that_are_numbered_by_their_size_are_known(baseline):
    means = {"a": THREE["distilled"], baseline: THREE["random"], "kmeans": THREE["none"]}
    (picture,) = draw_classes(by_class(means))
    (legend,) = picture.figure.legends
    assert [text.get_text().strip() for text in legend.get_texts()] == ["a", baseline]
    assert f"of a to {baseline} in points" in picture.caption


def test_both_reports_show_the_classes_with_their_caption(tmp_path):
    images, scores = torch.rand(2, 1, 4, 4), by_class(THREE)
    (picture,) = draw_classes(scores)
    made = render_pictures(
        tmp_path / "run", before=images, after=images, log=[], scores=[], by_class=scores, random=images
    )
    assert made[-1] == (tmp_path / "run" / "classes.png", picture.caption)
    page = render_evaluation(tmp_path, [], [], {}, "", None, scores, {"scores.json": "scores.json"})
    parsed = Page(page.read_text(encoding="utf-8"))
    assert parsed.texts["figcaption"] == [picture.caption] and "scores.json" in parsed.links
