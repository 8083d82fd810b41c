import itertools
import json
import math
import threading
from dataclasses import replace

import pytest
import torch
from evaluation_cases import CPU, Linear, draw_bank
from test_protocols import make_data
from timm.models import create_model, save_for_hf
from torch import nn

from ssdd_hub.errors import InputError
from ssdd_hub.evaluation import estimate, evaluation as evaluate
from ssdd_hub.evaluation.entries import SetEntry, StudentEntry, entry_of_none, entry_of_set
from ssdd_hub.evaluation.evaluation import Evaluation, describe_values
from ssdd_hub.evaluation.protocols.base import Measure, Pretrained
from ssdd_hub.evaluation.protocols.linear_probe import LinearProbe, ProbeSettings
from ssdd_hub.evaluation.protocols.teacher_error import TeacherError
from ssdd_hub.evaluation.real_data import RealData
from ssdd_hub.evaluation.store import ScoreStore
from ssdd_hub.models.convnet import ConvNet
from ssdd_hub.models.pretraining import StudentTrainingSettings, fit_student
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.runs.estimate import Stage
from ssdd_hub.seeds import derive_seed, seeded
from ssdd_hub.selection.source import SourcePairs
from ssdd_hub.sets.distilled import DistilledSet
from ssdd_hub.sets.pretrain import SetPairs

USE = StudentTrainingSettings(epochs=3, batch_size=4, learning_rate=0.05)
SPACE = PixelSpace((0.5,), (0.25,))


class Weights:
    """A protocol that gives the sum of the head's weights, and keeps its calls."""

    def __init__(self, name="weights", stop=None, applies=None, setting=1):
        self.name, self.calls, self.stop, self.setting = name, [], stop, setting
        self._lock = threading.Lock()
        self._applies = applies or (lambda pretrained, data: True)

    def key(self, data):
        return {"setting": self.setting}

    def applies(self, pretrained, data):
        return self._applies(pretrained, data)

    def __call__(self, pretrained, data):
        with self._lock:
            if len(self.calls) == self.stop:
                raise KeyboardInterrupt
            self.calls.append((pretrained, data))
        total = pretrained.student.head.weight.sum().item()
        return [Measure("accuracy", total, 0.1), Measure("accuracy", 2 * total, 50)]


def make_set(seed=0, size=6):
    drawn = torch.Generator().manual_seed(seed)
    return DistilledSet(torch.randn(size, 1, 2, 2, generator=drawn), torch.randn(size, 3, generator=drawn), SPACE)


def set_entry(name, seed, **changes):
    return replace(entry_of_set(name, make_set(seed), "cpu"), **changes)


def candidate(*protocols, name="linear", build=Linear):
    return StudentEntry(name, build, {"name": name}, protocols)


def real_data(name="made", seed=0):
    heldout = draw_bank(5, torch.arange(5) % 2, seed=seed + 1)
    targets = torch.randn(5, 3, generator=torch.Generator().manual_seed(seed))
    return replace(make_data(draw_bank(8, torch.arange(8) % 2, seed=seed), heldout, targets), name=name)


@pytest.fixture
def evaluation(tmp_path):
    """Builds an evaluation of two sets and no pre-training by three students."""

    def build(*protocols, sets=None, folder="cells", **changes):
        settings = {
            "set_entries": sets or [set_entry("a", 1), set_entry("b", 2), entry_of_none()],
            "candidates": [candidate(*protocols)],
            "datasets": [real_data()],
            "use": USE,
            "seeds": 3,
            "seed": 7,
            "store": ScoreStore(tmp_path / folder),
            "facts": {"source": "digits"},
        }
        return Evaluation(**{**settings, **changes})

    return build


@pytest.fixture
def run(evaluation, accelerator):
    return lambda *protocols, **changes: evaluation(*protocols, **changes).run(accelerator)


@pytest.fixture
def trained(monkeypatch):
    """The seeds that students are pre-trained with."""
    seeds = []

    def watched(student, pairs, use, seed):
        seeds.append(seed)
        return fit_student(student, pairs, use, seed)

    monkeypatch.setattr(evaluate, "fit_student", watched)
    return seeds


def text(records):
    return json.dumps(records, sort_keys=True)


def scores(records):
    return [record for record in records if record["protocol"] != "cost"]


def first_student(k, seed=7):
    with seeded(seed, "evaluated student", k):
        return Linear().eval()


# Records


def test_each_set_has_a_record_of_each_protocol_and_metric_with_its_statistics(run):
    records = run(Weights(), TeacherError())
    where = [(r["set"], r["protocol"], r["metric"], r["labels"]) for r in records]
    per_set = [("weights", "accuracy", 0.1), ("weights", "accuracy", 50), ("teacher_error", "mse", None)]
    cost = [("cost", name, None) for name in ("seconds", "steps", "epochs")]
    expected = [(name, *rest) for name in "ab" for rest in per_set + cost]
    assert where == expected + [("none", *rest) for rest in per_set]
    for record in records:
        assert {"set", "protocol", "source", "target", "student", "labels", "metric"} <= set(record)
        assert (record["source"], record["student"], record["use"], record["n"]) == ("digits", "linear", "none", 3)
        assert record["target"] == (None if record["protocol"] == "cost" else "made")
        values = record["values"]
        mean = sum(values) / 3
        assert record["mean"] == pytest.approx(mean)
        assert record["std"] == pytest.approx(math.sqrt(sum((value - mean) ** 2 for value in values) / 2))
    assert all(len(set(record["values"])) == 3 for record in scores(records))
    assert json.loads(text(records)) == records


def test_accuracies_alone_state_the_number_of_classes(run):
    three = make_data(draw_bank(9, torch.arange(9) % 3), draw_bank(6, torch.arange(6) % 3), None)
    for record in run(Weights(), TeacherError(), datasets=[real_data(), replace(three, name="three")]):
        known = {"made": 2, "three": 3} if record["metric"] == "accuracy" else {}
        assert record.get("classes") == known.get(record["target"])
        assert ("classes" in record) == bool(known)


def test_the_values_are_those_of_one_student_after_the_other(run):
    protocols, data = {"weights": Weights(), "teacher_error": TeacherError()}, real_data()
    for record in scores(run(*protocols.values())):
        for k, value in enumerate(record["values"]):
            student, seed = first_student(k), derive_seed(7, "evaluated student", k)
            if record["set"] != "none":
                fit_student(student, SetPairs(make_set({"a": 1, "b": 2}[record["set"]])), USE, seed)
            found = protocols[record["protocol"]](Pretrained(student, Linear, None, seed), data)
            (expected,) = [m.value for m in found if (m.metric, m.labels) == (record["metric"], record["labels"])]
            assert value == pytest.approx(expected, rel=1e-5)


def test_the_cost_is_steps_passes_and_seconds(run):
    """6 images in batches of 4 for 3 passes are 4 steps, in which 16 images are seen."""
    cost = {(r["set"], r["metric"]): r["values"] for r in run(Weights()) if r["protocol"] == "cost"}
    assert cost["a", "steps"] == cost["b", "steps"] == [4, 4, 4]
    assert cost["a", "epochs"] == [pytest.approx(16 / 6)] * 3
    assert all(0 < seconds < 60 for seconds in cost["a", "seconds"])
    assert not [key for key in cost if key[0] == "none"]


def test_where_a_protocol_does_not_apply_to_a_student_its_value_is_null(run):
    second = derive_seed(7, "evaluated student", 1)
    never, twice = Weights("never", applies=lambda *given: False), Weights(applies=lambda p, data: p.seed != second)
    for _ in range(2):
        records = scores(run(never, twice))
        assert {record["protocol"] for record in records} == {"weights"}
        for record in records:
            values = record["values"]
            assert values[1] is None and None not in (values[0], values[2])
            assert record["n"] == 2 and record["mean"] == pytest.approx((values[0] + values[2]) / 2)
    # That it does not apply is an answer, too.
    assert len(twice.calls) == 6 and never.calls == []


@pytest.mark.parametrize(
    ("values", "mean", "std", "n"),
    [
        ([1.0, 2.0, 4.0], 7 / 3, math.sqrt(7 / 3), 3),
        ([5.0], 5.0, 0.0, 1),
        ([None, 1.0, 3.0], 2.0, math.sqrt(2), 2),
        ([math.nan, 1.0, math.inf], 1.0, 0.0, 1),
        ([None, None], None, 0.0, 0),
        ([], None, 0.0, 0),
    ],
)
def test_statistics_are_of_the_numbers_that_are_there(values, mean, std, n):
    found = describe_values(values)
    assert found["mean"] == (mean if mean is None else pytest.approx(mean)) and found["std"] == pytest.approx(std)
    assert found["n"] == n and found["values"] == values


# The same students for all sets


def test_a_protocol_gets_the_student_its_pairs_a_fresh_copy_and_one_seed_for_all_sets(run):
    protocol, seen = Weights(), []
    run(protocol, datasets=[real_data("one"), real_data("two", seed=5)])
    for pretrained, data in protocol.calls:  # in any order, since students are pre-trained side by side
        trained, fresh = pretrained.pairs is not None, pretrained.build()
        assert fresh is not pretrained.student and not fresh.training and not pretrained.student.training
        (k,) = (k for k in range(3) if torch.equal(fresh.head.weight, first_student(k).head.weight))
        assert pretrained.seed == derive_seed(7, "evaluated student", k)
        assert torch.equal(fresh.head.weight, pretrained.student.head.weight) != trained
        assert not trained or len(pretrained.pairs) == 6
        seen.append((k, trained, data.name))
    assert sorted(seen) == sorted(itertools.product(range(3), (True, True, False), ("one", "two")))


# Nothing is measured twice


def test_a_second_run_measures_nothing_and_gives_the_same_records(run, trained):
    protocol = Weights()
    first = run(protocol)
    assert len(protocol.calls) == 9 and len(trained) == 6
    assert text(run(protocol)) == text(first)
    assert len(protocol.calls) == 9 and len(trained) == 6


@pytest.mark.parametrize("stop", [0, 1, 2, 5, 8])
def test_an_evaluation_that_was_killed_goes_on_and_ends_in_the_same_records(run, evaluation, trained, stop):
    unbroken = run(Weights("first"), Weights("second"), folder="unbroken")
    trained.clear()
    with pytest.raises(KeyboardInterrupt):
        run(Weights("first"), Weights("second", stop=stop))
    store = evaluation().store
    before = {path: path.read_bytes() for path in store.folder.iterdir()}
    costs, *there = ([p for p in before if name in before[p]] for name in (b'"cost"', b'"first"', b'"second"'))
    # That of the cell that was being measured had been pre-trained, and its first cell measured.
    assert len(there[1]) == stop < len(there[0]) and 0 < len(costs) == len(trained)
    first, second = Weights("first"), Weights("second")
    resumed = run(first, second)
    assert len(first.calls) == 9 - len(there[0]) and len(second.calls) == 9 - stop
    assert text(scores(resumed)) == text(scores(unbroken))
    # What was measured is as it was, the seconds of pre-training too.
    assert all(path.read_bytes() == content for path, content in before.items())
    kept = [m["value"] for path in costs for m in json.loads(before[path])["measures"] if m["metric"] == "seconds"]
    told = [v for r in resumed if (r["protocol"], r["metric"]) == ("cost", "seconds") for v in r["values"]]
    assert set(kept) <= set(told) and len(told) == 6
    assert text(run(first, second)) == text(resumed)


def test_what_is_added_is_all_that_is_measured(run, trained):
    first, second, more = Weights("first"), Weights("second"), [set_entry("a", 1), set_entry("c", 3)]
    before = run(first, sets=more[:1])
    assert (len(first.calls), len(trained)) == (3, 3)
    added = run(first, second, sets=more[:1])
    assert (len(first.calls), len(second.calls), len(trained)) == (3, 3, 6)
    assert [record for record in added if record["protocol"] != "second"] == before
    added = run(first, second, sets=more)
    assert (len(first.calls), len(second.calls), len(trained)) == (6, 6, 9)
    assert [r for r in added if (r["set"], r["protocol"]) in (("a", "first"), ("a", "cost"))] == before
    added = run(first, second, sets=more, seeds=4)
    assert (len(first.calls), len(second.calls), len(trained)) == (8, 8, 11)
    assert added[0]["values"][:3] == before[0]["values"] and len(added[0]["values"]) == 4
    two = [real_data(), real_data("new", seed=9)]
    added = run(first, second, sets=more, seeds=4, datasets=two)
    assert (len(first.calls), len(second.calls), len(trained)) == (16, 16, 19)
    assert {data.name for _, data in first.calls[8:]} == {"new"}
    both = [candidate(first), candidate(first, name="other")]
    run(sets=more, seeds=4, datasets=two, candidates=both)
    assert (len(first.calls), len(second.calls), len(trained)) == (32, 16, 27)
    # Fewer are there already.
    assert run(first, sets=more[:1])[0] == before[0]
    assert (len(first.calls), len(trained)) == (32, 27)


@pytest.mark.parametrize(
    "change",
    [
        {"use": replace(USE, learning_rate=0.04)},
        {"use": replace(USE, augment="flip")},
        {"use": replace(USE, max_steps=2)},
        {"seed": 8},
        {"sets": [set_entry("a", 4), set_entry("b", 5), entry_of_none()]},
        {"datasets": [real_data("made", seed=3)]},
        {"datasets": [replace(real_data(), heldout_targets=torch.ones(5, 3))]},
        {},
    ],
)
def test_what_a_number_depends_on_has_it_measured_again(run, change):
    protocol, again = Weights(), Weights(setting=1 if change else 2)
    first = run(protocol)
    run(again, **change)
    assert len(again.calls) == (6 if "sets" in change else 9)
    assert text(run(protocol)) == text(first) and len(protocol.calls) == 9


def test_names_do_not_matter(run, trained):
    first, later = run(Weights()), Weights()
    sets = [set_entry("new", 1), set_entry("b", 2), entry_of_none("untrained")]
    renamed = run(later, sets=sets, datasets=[real_data("other")])
    assert later.calls == [] and len(trained) == 6
    assert [record["values"] for record in renamed] == [record["values"] for record in first]
    assert renamed[0]["set"] == "new" and renamed[0]["target"] == "other"


def test_sets_of_the_same_content_are_measured_once(run):
    protocol = Weights()
    records = scores(run(protocol, sets=[set_entry("a", 1), set_entry("copy", 1)]))
    assert [record["values"] for record in records[:2]] == [record["values"] for record in records[2:]]
    assert len(protocol.calls) == 3


# What an entry decides


def test_an_entry_may_be_pre_trained_otherwise_which_its_records_say(run):
    use = replace(USE, learning_rate=0.04, augment="flip")
    both = [set_entry("a", 1), replace(set_entry("b", 1), use=use)]
    usual, other = _first_of_each(run(Weights(), sets=both))
    assert other["training"] == "learning_rate 0.04, augment flip" and "training" not in usual
    assert other["use"] == usual["use"] and other["values"] != usual["values"]
    assert other["values"] == _first_of_each(run(Weights(), sets=both[:1], use=use))[0]["values"]


def _first_of_each(records):
    return list({record["set"]: record for record in reversed(scores(records))}.values())[::-1]


def test_a_contender_may_have_some_protocols_only(run, trained):
    first, second = Weights("first"), Weights("second")
    limited = set_entry("a", 1, protocols=("second",)), set_entry("c", 3, protocols=())
    records = run(first, second, sets=[*limited, set_entry("b", 2)])
    measured = {(record["set"], record["protocol"]) for record in scores(records)}
    assert measured == {("a", "second"), ("b", "first"), ("b", "second")} and len(first.calls) == 3
    assert len(trained) == 6  # nothing is trained for c


def test_a_network_of_its_own_takes_the_students_place(run, trained):
    class Fixed(Linear):
        def __init__(self):
            super().__init__()
            nn.init.constant_(self.head.weight, 0.5)

    own, protocol, again = SetEntry("own", lambda k: None, lambda k: "fixed", network=Fixed), Weights(), Weights()
    records = run(protocol, sets=[own, set_entry("a", 1)])
    assert records[0]["values"] == [6.0] * 3 and records[0]["n"] == 3 and len(trained) == 3
    untrained = [pretrained for pretrained, _ in protocol.calls if pretrained.pairs is None]
    assert [type(found) for p in untrained for found in (p.student, p.build())] == [Fixed] * 6
    # No recipe and no student is part of it.
    run(sets=[own], use=replace(USE, epochs=9), candidates=[candidate(again, name="other")])
    assert again.calls == []


def test_another_teachers_targets_are_not_compared(run):
    protocol, strange = Weights(), set_entry("b", 2, same_targets=False)
    records = run(TeacherError(), protocol, sets=[set_entry("a", 1), strange], seeds=1)
    measured = {(record["set"], record["protocol"]) for record in scores(records)}
    assert measured == {("a", "teacher_error"), ("a", "weights"), ("b", "weights")}
    assert sorted(data.heldout_targets is None for _, data in protocol.calls) == [False, True]


def test_a_contender_may_have_a_pixel_space_of_its_own(run):
    raw, protocol = PixelSpace.raw(1), Weights()
    run(protocol, sets=[set_entry("a", 1), set_entry("b", 1, pixel_space=raw)], seeds=1)
    spaces = [data.pixel_space for _, data in protocol.calls]
    assert len(spaces) == 2 and SPACE in spaces and raw in spaces


# Mistakes


def test_an_error_names_student_number_and_set(run):
    def endless(k):
        made = make_set()
        return SetPairs(replace(made, images=made.images * (1e30 if k else 1)))

    message = "^linear number 1 on b: a student diverges .* on the set: lower --student-training.learning-rate$"
    with pytest.raises(InputError, match=message):
        run(TeacherError(), sets=[set_entry("a", 1), set_entry("b", 2, pairs=endless)])
    with pytest.raises(
        InputError, match="^linear number 0 on a: student_training.augment is views, and the set holds none"
    ):
        run(TeacherError(), sets=[set_entry("a", 1)], use=replace(USE, augment="views"))


def test_what_diverged_is_not_kept(run):
    with pytest.raises(InputError, match="diverges"):
        run(TeacherError(), use=replace(USE, learning_rate=1e4, epochs=300))
    assert all(math.isfinite(record["mean"]) for record in run(TeacherError()))


# Side by side


@pytest.fixture
def cores():
    number = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(number)


def test_students_trained_side_by_side_are_those_of_one_core(run, cores):
    cores(1)
    alone = run(Weights(), TeacherError(), folder="alone")
    cores(3)
    together = run(Weights(), TeacherError(), folder="together")
    assert text(scores(together)) == text(scores(alone))
    assert torch.get_num_threads() == 3


def test_an_error_in_one_of_several_threads_ends_the_run(run, cores):
    cores(3)
    with pytest.raises(KeyboardInterrupt):
        run(Weights(stop=2))
    assert torch.get_num_threads() == 3


class Share:
    is_main_process = False

    def __init__(self, index, number):
        self.process_index, self.num_processes = index, number


@pytest.mark.parametrize("number", [2, 4])
def test_the_work_can_be_shared_out_over_processes(run, evaluation, monkeypatch, number):
    alone = run(Weights(), TeacherError(), folder="alone")
    shares, protocols, gather = [], [Weights() for _ in range(number)], evaluate.gather_object

    def collect(share):
        shares.extend(share)
        raise InterruptedError

    monkeypatch.setattr(evaluate, "gather_object", collect)
    for index, protocol in enumerate(protocols):
        with pytest.raises(InterruptedError):
            evaluation(protocol, TeacherError()).run(Share(index, number))
    places = [place for share in shares for place in share]
    assert sorted(places) == sorted(itertools.product(["linear"], ["a", "b", "none"], range(3)))
    counts = [len(share) for share in shares]
    assert max(counts) - min(counts) <= 1 and [len(protocol.calls) for protocol in protocols] == counts
    monkeypatch.setattr(evaluate, "gather_object", lambda share: shares)
    for index in range(number):
        records = evaluation(Weights(), TeacherError()).run(Share(index, number))
        assert text(scores(records)) == text(scores(alone))
    # Another number of processes finds what is there.
    monkeypatch.setattr(evaluate, "gather_object", gather)
    last = Weights()
    assert text(scores(run(last, TeacherError()))) == text(scores(alone)) and last.calls == []


# The estimate

LONG = replace(USE, epochs=75)  # 112 steps of six images by four


@pytest.mark.parametrize("number", [1, 2])
def test_the_estimate_is_of_the_pre_trainings_that_are_left_side_by_side(
    run, evaluation, accelerator, monkeypatch, cores, number
):
    cores(number)
    monkeypatch.setattr(estimate, "_step_seconds", lambda candidate, pairs, use, steps, device: steps / 8)
    whole = estimate.time_pretrainings(evaluation(Weights(), use=LONG), accelerator)
    # Two sets, three students; no pre-training takes no steps.
    assert (whole.steps, whole.seconds) == (6, 6 * 112 * 112 / 8 / number)
    run(Weights(), use=LONG, seeds=2)
    left = estimate.time_pretrainings(evaluation(Weights(), use=LONG), accelerator)
    assert (left.steps, left.seconds) == (2, whole.seconds / 3)
    run(Weights(), use=LONG)
    nothing = Stage("pre-training", 0, 0.0)
    assert estimate.time_pretrainings(evaluation(Weights(), use=LONG), accelerator) == nothing
    # Six of four steps are done before they are timed.
    assert estimate.time_pretrainings(evaluation(Weights(), folder="short"), accelerator) == nothing


def test_sets_of_the_same_content_are_estimated_once_and_what_trains_itself_never(evaluation, accelerator):
    alike = [set_entry("a", 1), set_entry("b", 1)]
    assert estimate.time_pretrainings(evaluation(Weights(), sets=alike, use=LONG), accelerator).steps == 3
    alone = Weights()
    alone.trains_itself = True
    assert estimate.time_pretrainings(evaluation(alone, use=LONG), accelerator).steps == 0


def test_an_estimate_trains_copies_on_each_core(evaluation, accelerator, cores):
    cores(2)
    made = evaluation(Weights(), use=LONG)
    stage = estimate.time_pretrainings(made, accelerator)
    assert stage.seconds > 0 and torch.get_num_threads() == 2 and not made.store.folder.exists()


# Candidates


def test_a_timm_model_can_be_a_candidate():
    shape = {"num_targets": 3, "in_chans": 1, "image_size": 8}
    found = StudentEntry.of("ssdd_convnet3", {"widths": [2, 3]}, (), **shape)
    assert found.name == "ssdd_convnet3" and isinstance(found.build(), ConvNet)
    assert found.build()(torch.zeros(2, 1, 8, 8)).shape == (2, 3)
    wide = StudentEntry.of("ssdd_convnet3", {"widths": [2, 4]}, (), "wide", **shape)
    assert wide.name == "wide" and wide.identity != found.identity
    assert wide.identity == json.loads(json.dumps(wide.identity))
    for name, args, message in (
        ("ssdd_convnet33", {}, "student 'ssdd_convnet33' is not a timm model"),
        ("ssdd_convnet3", {"width": 3}, "student 'ssdd_convnet3' cannot be built with"),
    ):
        with pytest.raises(InputError, match=message):
            StudentEntry.of(name, args, (), **shape)


def test_pre_training_on_digits_lowers_the_error(digits, small_teacher, run):
    source, heldout, teacher = digits[0].subset(range(200)), digits[1].subset(range(100)), small_teacher()
    targets, seen = (teacher(bank.pixels / 255) for bank in (source, heldout))
    space = PixelSpace((0.3,), (0.4,))
    pairs = SourcePairs(source, targets, space)
    protocols = [TeacherError(), LinearProbe(ProbeSettings(labels=[50], draws=1, ridges=[1e-2]))]
    shape = {"num_targets": 24, "in_chans": 1, "image_size": 16}
    records = run(
        sets=[SetEntry("full", lambda k: pairs, lambda k: "full"), entry_of_none()],
        candidates=[StudentEntry.of("ssdd_convnet3", {"widths": [4, 8]}, protocols, **shape)],
        datasets=[RealData("digits", source, heldout, space, CPU, seen)],
        use=StudentTrainingSettings(epochs=10, batch_size=50),
        seeds=2,
    )
    mean = {(record["set"], record["protocol"]): record["mean"] for record in scores(records)}
    assert mean["full", "teacher_error"] < 0.5 * mean["none", "teacher_error"]
    assert mean["full", "probe"] > 0.4


# Students that start from stored weights


def test_references_of_stored_weights_start_from_these_too(run, tmp_path):
    folder, shape = tmp_path / "net", {"num_targets": 3, "in_chans": 1, "image_size": 2}

    def store(seed):
        torch.manual_seed(seed)
        network = create_model("ssdd_convnet3", widths=(4,), img_size=2, in_chans=1, num_classes=7)
        save_for_hf(network, folder, model_args={"widths": [4]}, safe_serialization=True)
        return network.blocks.state_dict()

    weights, protocol = store(1), Weights()
    entries = [entry_of_none(), set_entry("a", 1)]
    stored = [StudentEntry.of(f"local-dir:{folder}", {"pretrained": True}, [protocol], "net", **shape)]
    run(sets=entries, candidates=stored)
    students = [pretrained.student for pretrained, _ in protocol.calls]
    started = [student for student in students if student.blocks[0][1].num_batches_tracked == 0]
    tuned = [student for student in students if student.blocks[0][1].num_batches_tracked > 0]
    assert len(started) == len(tuned) == 3
    for student in started:
        assert all(map(torch.equal, student.blocks.state_dict().values(), weights.values()))
    for student in tuned:
        assert not torch.equal(student.blocks[0][0].weight, weights["0.0.weight"])
    assert len({student.head.weight.sum().item() for student in started}) == 3
    run(sets=entries, candidates=stored)
    assert len(protocol.calls) == 6
    # Other weights at the same place are other students.
    store(2)
    other = [StudentEntry.of(f"local-dir:{folder}", {"pretrained": True}, [protocol], "net", **shape)]
    run(sets=entries, candidates=other)
    assert len(protocol.calls) == 12
