"""DD-Ranking's scores, beside the released package where it is installed."""

import numpy as np
import pytest
import torch

from ssdd_hub.errors import SettingsError
from ssdd_hub.evaluation.protocols.accuracy import AccuracySettings
from ssdd_hub.evaluation.protocols.dd_ranking import (
    DdRankingSettings,
    accuracy_variants,
    augmentation_robust_score,
    label_robust_score,
    normalise,
    robustness_records,
)
from ssdd_hub.models.pretraining import StudentTrainingSettings

ROWS = [(0.9, 0.5, 0.6, 0.4), (1.0, 0.0, 0.0, 1.0), (0.0, 1.0, 1.0, 0.0), (0.85, 0.31, 0.62, 0.29)]


def expected(value):
    return (np.e**value - 1 / np.e) / (np.e - 1 / np.e)


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("weight", [0.5, 0.2])
def test_scores_are_those_of_the_formulas(row, weight):
    a, b, c, d = row
    wanted = expected(weight * (c - d) - (1 - weight) * (a - b))
    assert abs(label_robust_score(*row, weight) - wanted) < 1e-12
    assert abs(augmentation_robust_score(*row, weight) - expected(weight * (a - b) + (1 - weight) * (c - d))) < 1e-12
    assert 0 <= label_robust_score(*row, weight) <= 1


def test_the_best_and_the_worst_are_1_and_0():
    assert normalise(1) == 1 and normalise(-1) == 0
    assert label_robust_score(0, 1, 1, 0) == 1 and label_robust_score(1, 0, 0, 1) == 0
    # Random images themselves, which lose nothing to the whole source.
    assert label_robust_score(0.4, 0.4, 0.4, 0.4) == pytest.approx(expected(0)) == pytest.approx(0.2689, abs=1e-4)


MISSING = "the released package ddranking 0.2.0 needs numpy below 2, so it is no dev extra: install it by hand"


def released(name, accuracies, path, helpers, drawn):
    """Returns what the released class makes of accuracies that its trainings would have given."""
    metrics = pytest.importorskip("ddranking.metrics", reason=MISSING)
    scorer = object.__new__(getattr(metrics, name))
    facts = {"num_eval": 1, "ipc": 1, "num_classes": 2, "soft_label_mode": "M", "label_type": "hard"}
    facts |= {"eval_full_data": True, "use_dist": False, "rank": 0, "save_path": str(path / "scores.csv")}
    for key, value in facts.items():
        setattr(scorer, key, value)
    given = iter(accuracies)
    for helper in helpers:
        setattr(scorer, helper, lambda **about: (next(given), 0.1))
    scorer._get_random_data_helper = lambda eval_iter: (None,) * drawn
    # It seeds everything and asks for deterministic algorithms.
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    with torch.random.fork_rng(devices=[]):
        found = scorer.compute_metrics(image_tensor=torch.zeros(2, 3, 4, 4))
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before
    return found


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("scale", [1, 100])
def test_the_released_package_gives_the_same_of_fractions_and_takes_percentages(tmp_path, row, scale):
    full, hard, own, random = (scale * value for value in row)
    helpers = ["_compute_hard_label_metrics_helper", "_compute_soft_label_metrics_helper"]
    found = released("LabelRobustScoreSoft", (hard, full, own, random), tmp_path, helpers, drawn=3)
    assert found["label_robust_score_mean"] == pytest.approx(label_robust_score(full, hard, own, random), rel=1e-12)
    assert found["improvement_over_random_mean"] == pytest.approx(own - random)
    helpers = ["_compute_with_aug_metrics_helper", "_compute_without_aug_metrics_helper"]
    first, second, third, fourth = (scale * value for value in row)
    found = released("AugmentationRobustScore", (first, second, third, fourth), tmp_path, helpers, drawn=4)
    wanted = augmentation_robust_score(first, second, third, fourth)
    assert found["augmentation_robust_score_mean"] == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize(
    ("loss", "augment", "names"),
    [
        ("hard", "none", ["accuracy", "accuracy", "accuracy", "accuracy hard dsa"]),
        ("hard", "dsa", ["accuracy", "accuracy hard none", "accuracy hard none", "accuracy"]),
        ("soft", "flip", ["accuracy", "accuracy hard none", "accuracy soft none", "accuracy"]),
    ],
)
def test_trainings_that_are_alike_are_one(loss, augment, names):
    settings = AccuracySettings(loss=loss, augment=augment, temperature=2.0 if loss == "soft" else 1.0)
    made = accuracy_variants(settings, StudentTrainingSettings(), DdRankingSettings())
    assert [each.name for each in made.values()] == names and list(made) == ["own", "hard", "plain", "augmented"]
    assert made["hard"].settings.loss == "hard" and made["hard"].augment == made["plain"].augment == "none"
    assert made["plain"].settings.temperature == settings.temperature and made["augmented"].augment != "none"


def test_records_are_of_each_seed_beside_random_images_of_the_same_number():
    variants = accuracy_variants(AccuracySettings(augment="dsa"), StudentTrainingSettings(), DdRankingSettings())
    values = {
        ("mine", "accuracy"): [0.6, 0.7],
        ("mine", "accuracy hard none"): [0.5, None],
        ("random-10", "accuracy"): [0.4, 0.5],
        ("random-10", "accuracy hard none"): [0.3, 0.4],
        ("full", "accuracy hard none"): [0.9, 0.8],
        ("random-20", "accuracy"): [0.0, 0.0],
    }
    about = {"source": "s", "target": "t", "student": "net", "use": "dsa", "labels": None, "metric": "accuracy"}
    records = [
        {**about, "set": name, "protocol": protocol, "images": 10 if name != "full" else 99, "values": each}
        for (name, protocol), each in values.items()
    ]
    found = robustness_records(records, variants, DdRankingSettings(weight=0.3))
    assert [(r["set"], r["metric"]) for r in found] == [
        (name, metric) for name in ("mine", "random-10") for metric in ("lrs", "ars")
    ]
    assert found[0]["values"] == [label_robust_score(0.9, 0.5, 0.6, 0.4, 0.3), None] and found[0]["n"] == 1
    assert found[1]["values"] == [augmentation_robust_score(0.6, 0.4, 0.5, 0.3, 0.3), None]
    assert found[3]["values"] == [normalise(0.0)] * 2 and found[3]["protocol"] == "dd_ranking"
    # Images of another number are no such reference, whatever their name.
    renamed = [{**r, "set": "random"} if r["set"] == "random-20" else r for r in records]
    renamed = [{**r, "images": 20} if r["set"] == "random" else r for r in renamed if r["set"] != "random-10"]
    assert robustness_records(renamed, variants, DdRankingSettings()) == []
    # Without the whole source there is no label-robust score.
    few = robustness_records([r for r in records if r["set"] != "full"], variants, DdRankingSettings())
    assert {r["metric"] for r in few} == {"ars"}
    assert robustness_records([r for r in records if "random" not in r["set"]], variants, DdRankingSettings()) == []


def test_settings_out_of_range_are_named():
    with pytest.raises(SettingsError, match="dd_ranking.weight must be"):
        DdRankingSettings(weight=1.5, augment="none")
