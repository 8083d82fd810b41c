import math

import pytest

from ssdd_hub.errors import SettingsError
from ssdd_hub.evaluation.protocols.rank import RankSettings, rank_records

NETS = ["a", "b", "c", "d"]


def record(name, student, values, protocol="probe", metric="accuracy", **more):
    about = {"source": "digits", "target": "digits", "labels": 0.1, "use": "none", **more}
    return {"set": name, "student": student, "protocol": protocol, "metric": metric, "values": values, **about}


def scores(name, *columns, seconds=None, **more):
    """Records of a set: for each seed a column of the four networks' scores."""
    rows = [record(name, net, list(row), **more) for net, row in zip(NETS, zip(*columns, strict=True), strict=True)]
    if seconds is not None:
        cost = {"protocol": "cost", "metric": "seconds", "target": None, "labels": None}
        rows += [record(name, net, values, **cost) for net, values in zip(NETS, seconds, strict=True)]
    return rows


def ranked(*parts, by="probe", students=NETS):
    return rank_records(sum(parts, []), students, by, "full")


FULL = [0.1, 0.2, 0.3, 0.4]


@pytest.mark.parametrize(
    ("ours", "tau"),
    [
        ([0.5, 0.6, 0.7, 0.8], 1.0),
        ([0.9, 0.8, 0.2, 0.1], -1.0),
        # One pair of six the other way round.
        ([0.2, 0.1, 0.3, 0.4], 4 / 6),
        ([0.3, 0.1, 0.2, 0.4], 2 / 6),
        # A tie counts for neither, and tau-b divides by sqrt((6 - 1) * 6).
        ([0.1, 0.1, 0.3, 0.4], 5 / math.sqrt(30)),
        ([0.1, 0.1, 0.1, 0.4], 3 / math.sqrt(18)),
        ([0.5, 0.5, 0.5, 0.5], None),
    ],
)
def test_tau_is_that_of_the_two_orders(ours, tau):
    (found,) = ranked(scores("set", ours), scores("full", FULL))
    assert found["values"] == [pytest.approx(tau)] and found["n"] == (tau is not None)
    (turned,) = ranked(scores("set", FULL), scores("full", ours))
    assert turned["values"] == [pytest.approx(tau)]


def test_each_seed_has_its_own_order():
    (found,) = ranked(scores("set", FULL, FULL[::-1], FULL), scores("full", FULL, FULL, FULL[::-1]))
    assert found["values"] == [1.0, -1.0, -1.0]
    assert found["mean"] == pytest.approx(-1 / 3) and found["std"] == pytest.approx(math.sqrt(4 / 3))


def test_a_seed_without_all_scores_has_no_tau():
    gap, nan = [0.1, None, 0.3, 0.4], [0.1, math.nan, 0.3, 0.4]
    (found,) = ranked(scores("set", gap, FULL, FULL, nan), scores("full", FULL, FULL, gap, FULL))
    assert found["values"] == [None, 1.0, None, None]
    assert (found["mean"], found["n"], found["std"]) == (1.0, 1, 0.0)


def test_the_speedup_is_the_seconds_of_all_architectures_over_those_on_the_set():
    """A missing time leaves its seed out."""
    ours, theirs = [[1.0, 2.0, None], [1.0, 2.0, 1.0], [2.0, 2.0, 1.0], [4.0, 2.0, 1.0]], [[10.0] * 3] * 4
    tau, speedup = ranked(scores("set", *[FULL] * 3, seconds=ours), scores("full", *[FULL] * 3, seconds=theirs))
    assert (tau["metric"], speedup["metric"]) == ("tau", "speedup")
    assert speedup["values"] == [pytest.approx(5.0), pytest.approx(5.0), None] and speedup["mean"] == pytest.approx(5)


@pytest.mark.parametrize("whose", ["set", "full"])
def test_without_times_there_is_no_speedup(whose):
    timed = [[1.0]] * 4
    parts = [scores(name, FULL, seconds=None if name == whose else timed) for name in ("set", "full")]
    assert [r["metric"] for r in ranked(*parts)] == ["tau"]


def test_a_set_that_was_not_pre_trained_is_ranked_without_a_time():
    parts = scores("full", FULL, seconds=[[1.0]] * 4), scores("none", FULL[::-1]), scores("a", FULL)
    assert [(r["set"], r["metric"], r["values"]) for r in ranked(*parts)] == [
        *(("none", "tau", [-1.0]), ("a", "tau", [1.0]))
    ]


def test_records_say_what_was_compared():
    about = {"set": "set", "protocol": "rank", "student": "4 architectures", "by": "probe", "source": "digits"}
    about |= {"target": "digits", "use": "none", "labels": 0.1}
    for found in ranked(*(scores(name, FULL, seconds=[[1.0]] * 4) for name in ("set", "full"))):
        assert {key: found[key] for key in found if key not in ("metric", "mean", "std", "n", "values")} == about


def test_the_first_target_number_of_labels_and_metric_decide():
    first = scores("set", FULL), scores("full", FULL)
    others = [
        scores(name, FULL if name == "full" else FULL[::-1], **more)
        for more in ({"labels": 1.0}, {"target": "cars"}, {"metric": "loss"}, {"protocol": "knn"})
        for name in ("set", "full")
    ]
    (found,) = ranked(*first, *others)
    assert found["values"] == [1.0]
    (knn,) = ranked(*first, *others, by="knn")
    assert knn["values"] == [-1.0] and knn["by"] == "knn"


def test_networks_that_are_not_ranked_do_not_count():
    stranger = [record(name, "stranger", [value]) for name, value in (("set", 9.0), ("full", 0.0))]
    (found,) = ranked(stranger, scores("set", FULL), scores("full", FULL))
    assert found["values"] == [1.0] and found["student"] == "4 architectures"


def test_without_the_reference_or_a_score_of_every_network_there_is_no_rank():
    assert ranked(scores("set", FULL)) == []
    assert ranked(scores("full", FULL)) == []
    assert ranked(scores("set", FULL)[:3], scores("full", FULL)) == []
    assert ranked(scores("set", FULL), scores("full", FULL)[1:]) == []
    assert ranked(scores("set", FULL), scores("full", FULL), by="finetune") == []
    assert rank_records([], NETS, "probe", "full") == []


# Settings


def test_the_default_architectures_can_be_ranked():
    settings = RankSettings()
    assert len({str(variant) for variant in settings.variants}) == len(settings.variants) == 8


def test_settings_out_of_range_are_all_named():
    with pytest.raises(SettingsError) as caught:
        RankSettings(variants=[{"widths": [4]}, {"name": "ssdd_convnet3"}], by="teacher")
    assert caught.value.problems == [
        "rank.by must be one of probe, teacher_error, finetune, knn, got 'teacher'; the nearest is teacher_error",
        "rank.variants must be at least 3 to be ordered, got 2",
        "rank.variants must each have the name of a timm model, as in {name: ssdd_convnet3, widths: [16, 32]}",
    ]
