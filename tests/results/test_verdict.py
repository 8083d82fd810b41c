import re

import pytest

from ssdd_hub.evaluation.entries import REFERENCES
from ssdd_hub.results.charts import own_sets
from ssdd_hub.results.verdict import verdict, verdicts


def record(name, protocol, values, metric="accuracy", labels=50, **more):
    mean = sum(values) / len(values)
    return {
        "set": name, "protocol": protocol, "metric": metric, "labels": labels, "student": "net", "target": "digits",
        "source": "digits", "use": "flip", "values": values, "mean": mean, "std": 0.0, "n": len(values), **more,
    }  # fmt: skip


def scores(distilled_error, distilled_accuracy, n=5):
    shifts = [0.01 * seed for seed in range(n)]
    return [
        *(
            record(name, "teacher_error", [base + 0.1 * shift for shift in shifts], "mse", None)
            for name, base in (("random", 0.2), ("none", 1.0))
        ),
        record("distilled", "teacher_error", [distilled_error + 0.05 * s for s in shifts], "mse", None),
        *(record(name, "probe", [base + s for s in shifts]) for name, base in (("random", 0.8), ("none", 0.7))),
        record("distilled", "probe", [distilled_accuracy + 0.9 * s for s in shifts], classes=10),
    ]


def test_a_set_that_helped_needs_no_advice():
    sentences = verdict(scores(0.1, 0.9))
    assert sentences[0].startswith("Nearer to the teacher than random real images (-5") and "n = 5" in sentences[0]
    assert "better than random real images by probe 50 labels (+9.8 points, p < 0.001, n = 5)" in sentences[1]
    assert "better than no pre-training by probe 50 labels" in sentences[1]
    assert len(sentences) == 2


@pytest.mark.parametrize(
    "error, accuracy, said, advised",
    [
        (0.1, 0.8021, "no different from random real images", "a stronger teacher"),
        (0.1, 0.75, "worse than random real images by probe", "a stronger teacher"),
        (0.3, 0.9, "Farther from the teacher than random real images", "--distiller.steps"),
        (0.201, 0.9, "No nearer to the teacher than random real images", "--distiller.steps"),
    ],
)
def test_a_set_that_did_not_help_says_so_and_what_to_try(error, accuracy, said, advised):
    sentences = verdict(scores(error, accuracy))
    assert said in " ".join(sentences)
    assert sentences[-1].startswith("To try: ") and advised in sentences[-1]


def test_another_number_of_random_images_is_told():
    told = [{**each, "images": {"random": 50, "distilled": 100}.get(each["set"])} for each in scores(0.1, 0.9)]
    sentences = verdict(told)
    assert sentences[0].startswith("Nearer to the teacher than 50 random real images (-5")
    assert "better than 50 random real images by probe" in sentences[1]
    assert "better than no pre-training" in sentences[1]


def test_one_seed_proves_nothing():
    sentences = verdict(scores(0.1, 0.9, n=1))
    assert "Not tested against random real images" in sentences[0] and "seeds" in sentences[-1]
    assert not any("better" in sentence for sentence in sentences)


def test_chance_is_told_where_it_is_known():
    # Accuracies alone have a number of classes.
    assert verdict(scores(0.1, 0.9))[1].endswith("; chance is 10 %.")


def test_every_set_that_is_no_reference_has_a_paragraph():
    (paragraph,) = verdicts(scores(0.1, 0.9))
    assert paragraph == " ".join(verdict(scores(0.1, 0.9)))
    others = [dict(each, set="mine") for each in scores(0.3, 0.9) if each["set"] == "distilled"]
    told = verdicts([*scores(0.1, 0.9), *others])
    assert [text.split(":")[0] for text in told] == ["distilled", "mine"]
    assert "Farther" in told[1]
    sized = [dict(each, set="random-50") for each in scores(0.1, 0.9) if each["set"] == "random"]
    assert own_sets([*scores(0.1, 0.9), *sized, *others]) == ["distilled", "mine"]
    assert own_sets([{"set": name} for name in REFERENCES]) == []


def test_measurements_of_one_outcome_are_told_together():
    records = [dict(each, labels=labels) for labels in (10, 20) for each in scores(0.1, 0.9)[3:]]
    told = verdict(records)[0]
    assert re.search(r"better than random real images by probe 10 labels \(.*?\) and probe 20 labels \(", told)
    assert told.count("random real images") == 1


def test_many_measurements_are_counted():
    records = [dict(each, labels=labels) for labels in (10, 20, 50) for each in scores(0.1, 0.9)[3:]]
    assert "against random real images, of 3 measurements: better in 3" in verdict(records)[0]


def test_costs_and_empty_scores_give_no_verdict():
    costs = [record(name, "cost", [1.0, 2.0], "seconds", None) for name in ("distilled", "random")]
    assert verdict([]) == verdict(costs) == verdict(scores(0.1, 0.9), "another") == []
