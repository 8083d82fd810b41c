import json
import math

import numpy as np
import pytest
from result_cases import record as make_record
from scipy import stats

from ssdd_hub.results.compare import compare, console_table, markdown_table, share_of_way
from ssdd_hub.results.tables import split_tables


def record(name, values, protocol="probe", metric="accuracy", labels=0.01, target="cifar10", **more):
    return make_record(name, protocol, metric, values, labels, target, **more)


def error(name, values, **more):
    return record(name, values, "teacher_error", "mse", None, **more)


def only(records, baseline="random"):
    (result,) = compare(records, baseline)
    return result


# --- differences


def test_a_difference_worked_out_by_hand():
    # Differences 1, 2, 3, 2 (points / 100): mean 2, std sqrt(2/3), t = 2 / (sqrt(2/3) / 2).
    result = only([record("random", [0.5, 0.5, 0.5, 0.6]), record("distilled", [0.51, 0.52, 0.53, 0.62])])
    half = 3.182446305 * 0.01 * math.sqrt(2 / 3) / 2
    assert result == {
        **{"set": "distilled", "baseline": "random", "protocol": "probe", "source": "cifar100", "target": "cifar10"},
        **{"student": "ssdd_convnet3", "use": "none", "labels": 0.01, "metric": "accuracy", "n": 4},
        **{"difference": pytest.approx(0.02), "better": "higher", "improves": True, "relative": None},
        **{"t": pytest.approx(2 / (math.sqrt(2 / 3) / 2)), "interval": pytest.approx([0.02 - half, 0.02 + half])},
        "p": pytest.approx(2 * stats.t.sf(2 / (math.sqrt(2 / 3) / 2), 3)),
    }


@pytest.mark.parametrize("seeds", [2, 5, 30])
def test_the_test_is_that_of_scipy_on_one_sample_of_differences(seeds):
    ours, theirs = np.random.default_rng(seeds).normal([[0.52], [0.5]], 0.02, (2, seeds))
    result = only([error("random", theirs.tolist()), error("distilled", ours.tolist())])
    expected = stats.ttest_1samp(ours - theirs, 0)
    assert (result["t"], result["p"]) == (pytest.approx(expected.statistic), pytest.approx(expected.pvalue))
    assert result["interval"] == pytest.approx(list(expected.confidence_interval(0.95)))
    assert result["relative"] == pytest.approx(ours.mean() / theirs.mean() - 1)
    assert result["improves"] == (ours.mean() < theirs.mean())
    assert json.loads(json.dumps(result, allow_nan=False)) == result


@pytest.mark.parametrize(
    ("values", "difference", "expected"),
    [([0.6], 0.1, (None, None, None, True)), ([0.5, 0.6], 0.0, (None, 1.0, [0.0, 0.0], None))],
)
def test_one_seed_and_identical_values_are_not_tested(values, difference, expected):
    result = only([record("random", [0.5, 0.6][: len(values)]), record("distilled", values)])
    assert result["difference"] == pytest.approx(difference) and result["n"] == len(values)
    assert (result["t"], result["p"], result["interval"], result["improves"]) == expected


@pytest.mark.parametrize("step", [0.1, -1e-3])
def test_a_constant_difference_is_certain_rounding_or_not(step):
    values = [0.1, 0.2, 0.7, 0.3]
    result = only([error("random", values), error("distilled", [value + step for value in values])])
    assert (result["p"], result["t"]) == (0.0, None)
    assert result["interval"] == pytest.approx([step, step])
    assert result["improves"] == (step < 0)


def test_seeds_that_one_of_both_lacks_are_left_out():
    mine, theirs = [0.6, None, 0.7, 0.9, float("nan")], [0.5, 0.5, 0.5, None, 0.5, 0.1]
    result = only([record("random", theirs), record("distilled", mine)])
    assert result["n"] == 2
    assert result["difference"] == pytest.approx(0.15)


def test_what_has_no_partner_is_left_out():
    records = [record("random", [0.5, 0.6]), record("distilled", [0.6, 0.7], labels=0.05)]
    records += [record("distilled", [0.6, 0.7], student="resnet18"), record("distilled", [0.6, 0.7], use="flip")]
    records += [record("kmeans", [None, None]), record("herding", [])]
    assert compare(records, "random") == []
    assert compare(records, "nobody") == []


def test_unknown_metrics_have_no_direction_and_an_error_of_zero_no_relative_change():
    result = only([record("random", [1.0, 2.0], metric="bits"), record("distilled", [2.0, 4.0], metric="bits")])
    assert (result["better"], result["improves"], result["difference"]) == (None, None, 1.5)
    assert only([error("random", [0.0, 0.0]), error("distilled", [0.1, 0.2])])["relative"] is None


def test_two_scores_of_the_same_thing_are_refused():
    with pytest.raises(ValueError, match=r"two scores of the set 'random' for {'protocol': 'probe'"):
        compare([record("random", [0.5]), record("random", [0.6])], "random")


# --- shares


def test_a_share_of_the_way_runs_from_low_to_high_whatever_is_better():
    records = [error("random", [0.5, 0.52]), error("distilled", [0.3, 0.32]), error("full", [0.1, 0.13])]
    (share,) = share_of_way(records, "distilled")
    assert share["share"] == pytest.approx(0.2 / 0.395)
    assert share["note"] == ""
    assert (share["set"], share["low"], share["high"], share["target"]) == ("distilled", "random", "full", "cifar10")


def test_a_way_that_may_be_chance_is_noted():
    records = [record("random", [0.5, 0.6]), record("distilled", [0.6, 0.6]), record("full", [0.6, 0.55])]
    (share,) = share_of_way(records, "distilled")
    assert share["note"] == f"full and random do not differ significantly (p = {0.795167:.2f})"
    assert share["share"] == pytest.approx(2)


def test_a_set_that_may_have_gone_no_way_has_no_share():
    records = [record("random", [0.5, 0.6, 0.5]), record("distilled", [0.6, 0.5, 0.6])]
    (share,) = share_of_way([*records, record("full", [0.8, 0.9, 0.81])], "distilled")
    assert share["note"] == f"distilled and random do not differ significantly (p = {0.667:.2f})"


def test_a_teacher_of_one_value_and_equal_references():
    records = [record("random", [0.5, 0.6]), record("distilled", [0.6, 0.6]), record("teacher", [0.75])]
    (share,) = share_of_way(records, "distilled", high="teacher")
    assert (share["share"], share["note"]) == (pytest.approx(0.25), "too few seeds to tell teacher from random")
    (share,) = share_of_way(records, "teacher", low="random", high="random")
    assert share["share"] is None
    assert share_of_way(records, "distilled") == []


# --- tables


SMALL = [
    error("distilled", [0.30, 0.31, 0.32]),
    error("random", [0.40, 0.44, 0.42]),
    error("full", [0.10, 0.11, 0.12]),
    record("distilled", [0.50, 0.52, 0.51]),
    record("random", [0.51, 0.50, 0.55]),
    record("none", [0.2, None, 0.4]),
    record("full", [0.6, 0.6, 0.6]),
]
GOLDEN = """\
| set | teacher\\_error ↓ | probe 1 % labels ↑ |
| --- | --- | --- |
| distilled | **0.3100 ± 0.0100 ▲** | 51.0 ± 1.0 |
| random | 0.4200 ± 0.0200 | **52.0 ± 2.6** |
| full | 0.1100 ± 0.0100 ▲ | 60.0 ± 0.0 ▲ |
| none |  | 30.0 ± 14.1 (n=2) |

Mean ± standard deviation over n = 3 seeds, unless a cell says otherwise. Accuracies are in %. Bold: the best set of \
a column. full and teacher are upper bounds. ▲ better, ▼ worse than random with p < 0.05 (two-sided paired \
t-test over the seeds; raw p, not corrected for the number of comparisons). ↑ higher is better, ↓ lower is better.

**Difference to random.** Set minus baseline, mean over the seeds that both have: accuracies in points, errors in % \
of the baseline's, others as they are; p of a two-sided paired t-test over the seeds; raw p, not corrected for the \
number of comparisons.

| set | teacher\\_error ↓ | probe 1 % labels ↑ |
| --- | --- | --- |
| distilled | -26.2 % (p = 0.008) ▲ | -1.0 (p = 0.62) |
| none |  | -23.0 (p = 0.21) |"""


def test_the_markdown_of_a_small_evaluation():
    assert markdown_table(SMALL) == GOLDEN


def test_baselines_that_were_not_scored_have_no_table():
    assert markdown_table(SMALL, ("nobody",)) == GOLDEN[: GOLDEN.index("\n\n**Difference")]
    assert "**Difference to full.**" in markdown_table(SMALL, ("random", "full"))


def test_one_seed_is_said_to_be_one():
    text = markdown_table([record("distilled", [0.5]), record("random", [0.4]), record("a", [None])])
    assert "| distilled | **50.0** |" in text and "| a |  |\n" in text and "| distilled | +10.0 |" in text
    assert "Values of n = 1 seed" not in text  # a has none
    assert "Values of n = 1 seed. Accuracies" in markdown_table([record("distilled", [0.5]), record("random", [0.4])])
    assert "▲" not in text and markdown_table([]) == "No scores were measured."


def test_names_cannot_break_the_table():
    evil = "a|b\n| c <script> *d* [e](f)"
    lines = markdown_table([record(evil, [0.5, 0.6]), record("random", [0.5, 0.7], target=evil)]).splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert rows[2].startswith(r"| a\|b \| c &lt;script&gt; \*d\* \[e\](f) | ")
    assert len({line.replace(r"\|", "").count("|") for line in rows[:4]}) == 1


def many(sets, targets, students, labels, extra=()):
    return [
        record(name, [0.1, 0.2], protocol, labels=share, target=target, student=student)
        for name in sets
        for student in students
        for target in targets
        for protocol, share in [*(("probe", share) for share in labels), *extra]
    ]


def test_a_wide_table_is_split_by_target_and_each_student_has_its_own():
    records = many(["random", *"abcdefghi"], ["x", "y"], ["s", "t"], [0.01, 0.05, 0.1, 0.2, 0.5], [("knn", None)])
    tables = split_tables(records)
    assert [title for title, _ in tables] == ["s, x", "s, y", "t, x", "t, y"]
    assert all(list(columns)[1] == "probe 5 % labels" and len(columns) == 6 for _, columns in tables)
    assert all(len(column) == 10 for _, columns in tables for column in columns.values())
    text = markdown_table(records)
    assert text.count("**t, y**") == 2  # scores and differences need no more to be told apart
    assert max(line.count(" | ") for line in text.splitlines()) == 6


def test_no_table_is_wider_than_seven_columns_and_no_score_is_lost():
    labels = [0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5]
    records = many("ab", ["x", "y"], ["s"], labels, [("knn", None), ("krr", None)])
    tables = split_tables(records)
    expected = [(target, width) for target in "xy" for width in (4, 4, 2)]
    assert [(title, len(columns)) for title, columns in tables] == expected
    assert sum(len(column) for _, columns in tables for column in columns.values()) == len(records)


def test_a_narrow_table_holds_all_targets_and_names_them():
    ((title, columns),) = split_tables(many("ab", ["x", "y"], ["s"], [0.01]))
    assert (title, list(columns)) == ("", ["probe 1 % labels, x", "probe 1 % labels, y"])


def test_students_with_one_score_share_a_table():
    records = many("ab", ["x"], ["s"], [0.1, 0.2]) + many("ab", ["x"], ["t", "u"], [0.1])
    assert [(title, list(columns)) for title, columns in split_tables(records)] == [
        ("s", ["probe 10 % labels", "probe 20 % labels"]),
        ("2 students", ["probe 10 % labels, t", "probe 10 % labels, u"]),
    ]


def test_costs_are_not_ranked():
    costs = [record(name, [1.0, 1.1 + len(name)], "cost", "seconds", None) for name in ("random", "kmeans", "a")]
    text = markdown_table(costs)
    assert "| random | 4.0 ± 4.3 |" in text and "cost, seconds ↓" in text
    assert "**" not in text and "Difference" not in text


def test_ties_are_all_best_and_a_single_set_is_not_marked():
    text = markdown_table([record("a", [0.5, 0.6]), record("b", [0.6, 0.5]), record("full", [0.9, 0.9])])
    assert text.count("**55.0 ± 7.1**") == 2
    assert "**" not in markdown_table([record("a", [0.5, 0.6]), record("full", [0.9, 0.9])])


# --- the console


def test_the_console_has_the_marks_and_numbers_of_the_tables_without_costs_in_lines_of_100():
    costs = [record(name, [1.0, 2.0], "cost", "seconds", None) for name in ("distilled", "random")]
    lines = console_table([*SMALL, *costs]).splitlines()
    assert lines[:4] == [
        "set        teacher_error      probe 1 % labels",
        "---------  -----------------  -----------------",
        "distilled  0.3100 ± 0.0100 ▲  51.0 ± 1.0",
        "random     0.4200 ± 0.0200    52.0 ± 2.6",
    ]
    note = " ".join(lines[lines.index("") + 1 :])
    assert note.startswith("Mean ± standard deviation over n = 3 seeds") and max(map(len, lines)) <= 100
    assert "cost" not in " ".join(lines) and "Bold" not in note and "▲ better" in note
    assert console_table(costs) == "No scores were measured."


def test_columns_that_a_line_of_the_console_has_no_room_for_follow_below():
    wide = [record(name, [0.5, 0.6], labels=labels) for name in ("distilled", "random") for labels in range(2, 9)]
    blocks = [block.splitlines() for block in console_table(wide).split("\n\n")[:-1]]
    assert max(len(line) for block in blocks for line in block) <= 100
    assert len(blocks) == 2 and [len(block) for block in blocks] == [4, 4]
    assert all([line.split()[0] for line in block] == ["set", "-" * 9, "distilled", "random"] for block in blocks)
    headings = [word for block in blocks for word in block[0].split("  ") if "labels" in word]
    assert [heading.split()[1] for heading in headings] == list("2345678")


def test_a_name_of_several_lines_breaks_no_table_of_the_console():
    lines = console_table([record("two\n\nlines", [0.5]), record("random", [0.4])]).splitlines()
    assert lines[2].startswith("two lines  50.0")
