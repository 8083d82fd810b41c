"""How many bytes real images, or other sets, take for the worth of a set: numbers, words and the picture of them."""

import math

import numpy as np
import pytest
from result_cases import record

from ssdd_hub.results.equal_worth import bytes_for_worth, fewer_bytes
from ssdd_hub.results.verdict import verdict

WOBBLE = np.array([-0.01, 0.0, 0.01])


def scored(name, worth, size, budget=None, labels=0.05, protocol="probe", wobble=WOBBLE):
    sizes = {"images": 9, "bytes": size} | ({} if budget is None else {"budget": budget})
    metric = "accuracy" if protocol == "probe" else "mse"
    return record(name, protocol, metric, (worth + wobble).tolist(), labels, **sizes)


def line(name, worths, protocol="probe", sizes=(100_000, 1_000_000), labels=0.05):
    filled = zip(worths, sizes, strict=True)
    return [scored(f"{name} {size // 1000} kB", w, size - 90, size, labels, protocol) for w, size in filled]


def needed(mine, *lines):
    own = [each for each in bytes_for_worth([*mine, *(each for part in lines for each in part)])]
    return [(each["bound"], each["needed"], each["reference"]) for each in own]


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_the_bytes_of_a_worth_are_those_of_a_line_over_their_logarithm(share):
    """Against interpolation by NumPy, for accuracies and for errors."""
    sizes, worths = np.array([99_910, 999_910]), np.array([0.2, 0.3])
    for protocol, values in (("probe", worths), ("teacher_error", 1 - worths)):
        worth = values[0] + share * (values[1] - values[0])
        ends = np.argsort(values)
        expected = math.exp(np.interp(worth, values[ends], np.log(sizes)[ends]))
        mine = [scored("mine", worth, 50_000, protocol=protocol)]
        ((bound, found, name),) = needed(mine, line("random jpeg-10", values, protocol))
        assert (bound, name) == ("", "random jpeg-10") and found == pytest.approx(expected, abs=1)


def test_beyond_what_was_measured_a_bound_is_told():
    better, worse = [scored("mine", 0.35, 50_000)], [scored("mine", 0.15, 50_000)]
    lines = line("random png", [0.18, 0.28]), line("random dct", [0.2, 0.3])
    assert needed(better, *lines) == [("more than", 999_910, "random dct")]
    assert needed(worse, *lines) == [("at most", 99_910, "random dct")]


def test_the_reference_that_needs_fewest_bytes_counts_where_it_first_reaches_the_worth():
    noisy = line("kmeans dct", [0.1, 0.3, 0.2, 0.4], sizes=(100_000, 200_000, 400_000, 800_000))
    lines = noisy, line("random png", [0.1, 0.3])
    ((bound, size, name),) = needed([scored("mine", 0.3, 50_000)], *lines)
    assert (bound, size, name) == ("", 199_910, "kmeans dct")


def test_one_budget_no_bytes_and_what_does_not_fill_bytes_tell_nothing():
    mine = [scored("mine", 0.3, 50_000)]
    assert needed(mine, line("random png", [0.2], sizes=[100_000])) == []
    loose = [scored("random", 0.2, 100_000), scored("kmeans", 0.4, 900_000)]
    assert needed(mine, loose) == []
    unknown = [{name: value for name, value in mine[0].items() if name != "bytes"}]
    assert needed(unknown, line("random png", [0.2, 0.4])) == []
    failed = [{**each, "mean": None} for each in line("random png", [0.2, 0.4])]
    costs = [{**each, "protocol": "cost", "metric": "seconds"} for each in [*mine, *line("random png", [1, 2])]]
    assert needed(mine, failed) == needed(costs) == []


def test_each_measurement_and_each_set_is_told():
    sets = [scored(name, worth, 1000, labels=labels) for name, worth in (("a", 0.2), ("b", 0.3)) for labels in (1, 5)]
    found = bytes_for_worth([*sets, *line("random dct", [0.2, 0.3], labels=1), *line("random dct", [0.1, 0.3])])
    assert [(each["set"], each["labels"]) for each in found] == [("a", 1), ("b", 1)]
    assert [each["times"] for each in found] == pytest.approx([99.91, 999.91])


def test_sets_of_more_bytes_that_are_no_better_are_named():
    old = [scored("old", 0.25, 1_331_200), scored("old", 0.5, 1_331_200, None, None, "teacher_error")]
    new = [scored("new", 0.26, 100_000), scored("new", 0.6, 100_000, None, None, "teacher_error")]
    (found,) = fewer_bytes([*old, *new])
    assert (found["set"], found["baseline"], found["protocol"]) == ("new", "old", "probe")
    assert found["times"] == pytest.approx(13.312) and found["improves"] and found["difference"] == pytest.approx(0.01)
    told = " ".join(verdict([*old, *new], "new"))
    assert "13 times fewer bytes than old at the same score or better by probe 5 % labels (+1.0 points" in told
    assert "fewer bytes" not in " ".join(verdict([*old, *new], "old"))
    same = [{**old[0], "set": "same", "bytes": 1000}]
    assert [each["set"] for each in fewer_bytes([*old, *same])] == ["same"]


def test_the_verdict_says_how_many_bytes_real_images_need():
    mine = [scored("distilled", 0.3, 100_000), scored("distilled", 0.4, 100_000, None, None, "teacher_error")]
    beside = [*line("random dct", [0.25, 0.3]), *line("random dct", [0.6, 0.5], "teacher_error", labels=None)]
    sentence = next(text for text in verdict([*mine, *beside]) if text.startswith("To be worth"))
    assert sentence == (
        "To be worth as much as its 100 kB real images need 1.0 MB by probe 5 % labels, 10 times as many "
        "(random dct); more than 1.0 MB by teacher_error, more than 10 times as many (random dct)."
    )
    many = [each for labels in (1, 2, 5) for each in line("random dct", [0.2, 0.25 + 0.02 * labels], labels=labels)]
    many += [scored("distilled", 0.29, 100_000, labels=labels) for labels in (1, 2, 5)]
    (sentence,) = [text for text in verdict(many) if text.startswith("To be worth")]
    assert sentence.endswith("real images need 4 times to more than 10 times as many by 3 measurements.")
