"""Accuracies class by class: of a protocol, and of an evaluation."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from evaluation_cases import bright_data, draw_bank, make_network, pretrained
from test_evaluation import evaluation, make_data  # noqa: F401

from ssdd_hub.evaluation.protocols import base
from ssdd_hub.evaluation.protocols.base import Measure, measure_accuracy
from ssdd_hub.evaluation.protocols.knn import KnnSettings, NearestNeighbours
from ssdd_hub.evaluation.protocols.linear_probe import LinearProbe, ProbeSettings

PROBE = ProbeSettings(labels=[6, 1.0], draws=3, ridges=[1e-2], balanced=True)


def test_an_accuracy_is_the_mean_over_draws_of_all_images_and_of_those_of_each_class():
    # Of three classifiers so many are right about each image.
    hits, truth = torch.tensor([3, 0, 1, 2, 3]), torch.tensor([0, 0, 2, 2, 2])
    assert measure_accuracy(hits, truth, 4, 50.0, draws=3) == Measure(
        "accuracy", 9 / 15, 50, [0.5, None, pytest.approx(2 / 3, abs=1e-4), None]
    )
    assert type(measure_accuracy(hits, truth, 4, 50.0).labels) is int
    assert measure_accuracy(hits > 2, truth, 3).value == 2 / 5


def test_more_classes_than_anyone_reads_are_not_listed(monkeypatch):
    monkeypatch.setattr(base, "MOST_CLASSES", 3)
    hits, truth = torch.tensor([True, False]), torch.tensor([0, 2])
    assert measure_accuracy(hits, truth, 3).by_class == [1.0, None, 0.0]
    assert measure_accuracy(hits, truth, 4) == Measure("accuracy", 0.5)


@pytest.mark.parametrize("protocol", [LinearProbe(PROBE), NearestNeighbours(KnnSettings(neighbours=5))])
def test_the_accuracy_of_all_is_that_of_the_classes_by_their_images(protocol):
    data = bright_data(heldout_labels=[*(0, 1, 2) * 5, 0, 0, -1, 1], noise=160)
    counts = np.array(data.describe_classes()["images"])
    assert counts.tolist() == [7, 6, 5]
    for measure in protocol(pretrained(make_network()), data):
        assert measure.value == pytest.approx(np.array(measure.by_class) @ counts / counts.sum(), abs=1e-4)
        assert 0.4 < measure.value < 1 and len({*measure.by_class}) > 1


def test_classes_are_described_by_name_where_every_class_has_one():
    data = bright_data(labels=[0, 1, 2] * 4, heldout_labels=[0, 2, 2, -1])
    assert data.describe_classes() == {"names": None, "images": [1, 0, 2]}
    for names, known in ((["a", "b", "c", "d"], ["a", "b", "c"]), (["a", "b"], None)):
        named = replace(data, train=replace(data.train, label_names=names))
        assert named.describe_classes()["names"] == known


@pytest.fixture
def data():
    """Images that the features of a linear student tell apart a little."""
    labels = [torch.arange(count) % 2 for count in (20, 11)]
    return make_data(*(draw_bank(len(part), part, seed=seed) for seed, part in enumerate(labels)))


def test_an_evaluation_has_mean_and_spread_over_the_seeds_of_each_class(evaluation, accelerator, data):  # noqa: F811
    made = evaluation(LinearProbe(PROBE), datasets=[data])
    records, by_class = made.measure(accelerator)
    assert json.loads(json.dumps(by_class)) == by_class
    assert by_class["classes"] == {"made": {"names": None, "images": [6, 5]}}
    accuracies = [record for record in records if record["metric"] == "accuracy"]
    assert len(by_class["records"]) == len(accuracies) == 3 * 2
    for ours, whole in zip(by_class["records"], accuracies, strict=True):
        about = ("set", "protocol", "source", "target", "student", "use", "labels", "metric")
        assert [ours[key] for key in about] == [whole[key] for key in about]
        assert ours["n"] == 3 and ours.keys() - {"images", "bytes"} == {*about, "mean", "std", "n"}
        assert whole["mean"] == pytest.approx(np.dot(ours["mean"], [6, 5]) / 11, abs=1e-4)
    # Those of no pre-training at 6 labels, by hand.
    cells = [json.loads(cell.read_text()) for cell in made.store.folder.iterdir()]
    values = [cell["measures"][0]["by_class"] for cell in cells if cell["key"].get("set") == "none"]
    assert len(values) == 3
    np.testing.assert_allclose(by_class["records"][4]["mean"], np.mean(values, 0), atol=1e-4)
    np.testing.assert_allclose(by_class["records"][4]["std"], np.std(values, 0, ddof=1), atol=1e-4)


def test_scores_that_an_earlier_version_stored_are_kept_and_count_for_no_class(evaluation, accelerator, data):  # noqa: F811
    made = evaluation(LinearProbe(PROBE), datasets=[data], seeds=2)
    records, by_class = made.measure(accelerator)
    files = [path for path in made.store.folder.iterdir() if "by_class" in path.read_text()]
    untrained = [path for path in files if json.loads(path.read_text())["key"].get("set") == "none"]
    assert len(untrained) == 2
    for path in untrained[:1]:
        cell = json.loads(path.read_text())
        for measure in cell["measures"]:
            del measure["by_class"]
        path.write_text(json.dumps({"key": cell["key"], "measures": cell["measures"]}))
    again, later = made.measure(accelerator)
    assert again == records
    seeds = {(each["set"], each["labels"]): each["n"] for each in later["records"]}
    assert seeds == {(name, labels): 1 if name == "none" else 2 for name in ("a", "b", "none") for labels in (6, 1.0)}
    one = [each for each in later["records"] if each["set"] == "none"]
    assert [set(each["std"]) for each in one] == [{0.0}, {0.0}]
    for path in untrained[1:]:
        cell = json.loads(path.read_text())
        cell["measures"] = [{**measure, "by_class": None} for measure in cell["measures"]]
        path.write_text(json.dumps({"key": cell["key"], "measures": cell["measures"]}))
    assert {each["set"] for each in made.measure(accelerator).by_class["records"]} == {"a", "b"}


def test_without_accuracies_there_is_nothing_by_class(evaluation, accelerator):  # noqa: F811
    assert evaluation().measure(accelerator).by_class == {"classes": {}, "records": []}
