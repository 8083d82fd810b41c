"""Time to quality: when a curve reaches a goal, who races, and a race with known times."""

import json
import math
from functools import partial

import pytest
import torch
from accelerate import Accelerator

from ssdd_hub.configs.studies import TimeToQualityConfig
from ssdd_hub.data.bank import ImageBank, fingerprint_pixels
from ssdd_hub.distill.distiller import Distiller, DistillerSettings
from ssdd_hub.distill.pool import PoolSettings
from ssdd_hub.errors import InputError, SettingsError
from ssdd_hub.evaluation.real_data import RealData
from ssdd_hub.models.convnet import ConvNet
from ssdd_hub.models.pretraining import UseSettings
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.runs.folder import RunLog
from ssdd_hub.selection.source import Source
from ssdd_hub.studies import quality_contenders, time_to_quality
from ssdd_hub.studies.plain import PlainDistiller
from ssdd_hub.studies.quality_contenders import Start, read_contenders
from ssdd_hub.studies.quality_curve import Curve, Point, compare_curves
from ssdd_hub.studies.time_to_quality import Meter, TimeToQuality, TimeToQualitySettings, train
from ssdd_hub.studies.time_to_quality_report import quality_table, render_quality
from ssdd_hub.targets.cache import FeatureCache
from ssdd_hub.targets.targets import Targets
from ssdd_hub.targets.transform import TargetTransform
from ssdd_hub.teachers.teacher import TeacherSettings

READY = TeacherSettings(pretrained=True)


def curve(*points, name="ours", steps=1000):
    """Returns a curve of (step, seconds, mean error)."""
    return Curve(name, steps, [Point(step, s, mean, 0.01, 2, [mean - 0.01, mean + 0.01]) for step, s, mean in points])


def line(slope, offset=1.0, warm_up=5.0, each=0.5, steps=(1, 2, 4, 8, 16, 32)):
    """Returns a curve whose error is linear in the logarithm of the step, after one of step 0."""
    trained = [(step, warm_up + each * step, offset + slope * math.log(step)) for step in steps]
    return curve((0, warm_up, 1.0), *trained)


# The arithmetic of curves


def test_between_two_points_the_error_is_linear_in_the_logarithm_of_the_seconds():
    course = curve((0, 2.0, 1.0), (10, 4.0, 0.9), (20, 16.0, 0.5), (40, 20.0, 0.4))
    assert course.arrival(0.7) == pytest.approx(8.0)
    assert course.arrival(0.8) == pytest.approx(4 * 2**0.5)
    assert course.arrival(0.5) == pytest.approx(16.0)
    assert course.arrival(0.9) == 4.0


def test_of_several_crossings_the_first_counts():
    assert curve((0, 1.0, 1.0), (1, 2.0, 0.8), (2, 3.0, 0.6), (3, 4.0, 0.9), (4, 5.0, 0.1)).arrival(0.6) == 3.0


def test_a_goal_that_the_first_snapshot_reaches_is_dated_at_it_also_without_any_warm_up():
    assert curve((0, 0.0, 1.0), (10, 4.0, 0.5)).arrival(0.7) == 4.0


def test_a_line_over_the_step_itself_is_followed_too():
    points = [(step, 5 + 0.5 * step, 1 - 0.001 * step) for step in (10, 20, 40, 80)]
    found = curve((0, 5.0, 1.0), *points).extrapolate(0.5)
    assert found["linear"] == pytest.approx(5 + 0.5 * 500) and found["seconds"] > found["linear"]
    assert line(0.05).extrapolate(0.5)["linear"] is None


def test_each_student_arrives_at_a_goal_of_its_own():
    rows = [(0, 1.0, [1.0, 2.0, 1.0]), (5, 2.0, [0.8, 1.6, 0.8]), (10, 8.0, [0.5, 1.2, 0.75])]
    points = [Point(step, seconds, 0.0, 0.0, 3, values) for step, seconds, values in rows]
    assert Curve("ours", 10, points).arrivals(0.4) == [pytest.approx(2 * 4 ** (2 / 3)), pytest.approx(8.0), None]


def test_a_goal_that_is_not_reached_has_no_time():
    assert curve((0, 1.0, 1.0), (1, 2.0, 0.8)).arrival(0.7) is None
    assert curve((0, 1.0, 1.0)).arrival(0.7) is None


def test_a_line_in_the_logarithm_of_steps_is_followed_to_the_goal():
    found = line(-0.1).extrapolate(1 - 0.1 * math.log(500))
    assert found["step"] == pytest.approx(500) and found["seconds"] == pytest.approx(5 + 250)
    assert found["slope"] == pytest.approx(-0.1) and (found["points"], found["reason"]) == (3, None)


def test_only_the_last_half_of_the_points_counts():
    points = [(2**n, 1 + 2**n, 1.0 - (0.5 if n < 4 else 0.1 * n)) for n in range(8)]
    found = curve((0, 1.0, 1.0), *points).extrapolate(0.2)
    assert found["points"] == 4 and found["step"] == pytest.approx(2**8) and found["seconds"] == pytest.approx(257)


def test_an_extrapolation_is_never_before_what_was_measured():
    points = ((1, 2.0, 0.9), (2, 3.0, 0.6), (4, 5.0, 0.71))
    found = curve((0, 1.0, 1.0), *points).extrapolate(0.7)
    assert (found["step"], found["seconds"]) == (4, 5.0)


@pytest.mark.parametrize(
    ("course", "reason"),
    [
        (line(0.05), "does not fall"),
        (line(-1e-9), "too slowly"),
        (line(-0.1, steps=(1, 2)), "takes 3 points after step 0, and there are 2"),
        (curve((0, 1.0, 1.0)), "there are 0"),
    ],
)
def test_where_there_is_no_saying_a_reason_is_given(course, reason):
    found = course.extrapolate(0.1)
    assert found["seconds"] is found["step"] is None and reason in found["reason"]


def test_contenders_are_compared_with_the_first():
    ours = curve((0, 1.0, 1.0), (5, 2.0, 0.6), (10, 3.0, 0.4))
    slow = curve((0, 4.0, 1.0), (5, 8.0, 0.6), (10, 12.0, 0.5), name="slow", steps=10)
    paper = Curve("paper", 20, line(-0.02).points)
    rising = Curve("rising", 32, line(0.01).points)
    record = compare_curves([ours, slow, paper, rising], 0.4)
    assert json.loads(json.dumps(record)) == record
    assert record["goal_error"] == pytest.approx(0.6) and record["random"]["mean"] == 1.0
    assert [entry["ratio"] for entry in record["contenders"][:2]] == [1.0, 4.0]
    first, _, third, last = record["contenders"]
    assert (first["arrived"], first["extrapolated"], first["warm_up"], first["seconds_per_step"]) == (2, None, 1, 0.2)
    assert third["arrived"] is None and third["ratio"] == pytest.approx((5 + 0.5 * math.exp(20)) / 2)
    assert last["ratio"] is None
    # Where the first is nowhere, nothing can be compared with it.
    assert [e["ratio"] for e in compare_curves([rising, ours], 0.4)["contenders"]] == [None, None]


def test_a_table_says_what_is_measured_and_what_is_not(tmp_path):
    ours = curve((0, 1.0, 1.0), (5, 2.0, 0.6), (10, 3.0, 0.4), steps=10)
    far = Curve("plain, paper", 200, line(-0.08, steps=(1, 2, 4, 8, 16, 32)).points)
    none = Curve("none", 200, curve((0, 9.0, 1.0)).points)
    record = compare_curves([ours, far, none], 0.4)
    table = quality_table(record).splitlines()
    assert [cell.strip() for cell in table[2].split("  ") if cell] == [
        "ours",
        "2.0 (2.0 to 2.0)",
        "1.00",
        "1.0",
        "200.0",
        "10 of 10",
    ]
    assert "about 79.2, extrapolated (1 min 19 s)  about 40" in table[3] and "32 of 200" in table[3]
    assert "not reached" in table[4] and "0 of 200" in table[4]
    assert table[5] == "goal: an error of 0.6000, 40% below the 1.0000 ± 0.0100 (n = 2) of random images"
    assert (
        "plain, paper: a line through its last 3 points" in table[6] and "at the goal after 148 steps; a" in table[6]
    )
    assert f"after {record['contenders'][1]['extrapolated']['linear']:.3g} s (" in table[6]
    assert table[7].startswith("none: nothing is extrapolated, since a line takes 3 points")
    late = compare_curves([Curve("late", 100, far.points)], 0.4)
    assert "after 148 steps, more than its schedule has" in quality_table(late)
    render_quality(tmp_path / "quality.png", record)
    assert (tmp_path / "quality.png").read_bytes().startswith(b"\x89PNG")


# Settings


def test_snapshots_are_spaced_by_a_factor_and_end_at_the_last_step():
    settings = TimeToQualitySettings(snapshots=5, first=10)
    assert settings.steps(160) == [10, 20, 40, 80, 160]
    assert settings.steps(12) == [10, 11, 12] and settings.steps(4) == [4] and settings.steps(0) == [0]
    assert TimeToQualitySettings(snapshots=1, first=10).steps(160) == [10, 160]


def test_every_wrong_setting_is_named():
    with pytest.raises(SettingsError) as caught:
        TimeToQualitySettings(goal=1.0, snapshots=0, first=0, seeds=0, max_heldout=0, budget=0)
    assert [problem.split(" ")[0] for problem in caught.value.problems] == [
        f"quality.{name}" for name in ("goal", "snapshots", "first", "seeds", "max_heldout", "budget")
    ]


def test_contenders_take_the_common_settings_but_for_their_own():
    common = DistillerSettings(num_images=7, steps=9, lr_images=1e-2, memory_budget=0.5), PoolSettings(size=3)
    entries = {"b": None, "a": {"implementation": "plain", "distiller": {"lr-images": 1, "steps": 4}, "pool": {}}}
    found = read_contenders({**entries, "c": {"pool": {"size": 1}}}, *common)
    assert list(found) == ["b", "a", "c"]
    assert (found["b"].implementation, found["b"].distiller, found["b"].pool) == ("ours", *common)
    changed = found["a"].distiller
    assert (changed.lr_images, changed.steps, changed.num_images, changed.memory_budget) == (1.0, 4, 7, 0.5)
    assert found["c"].pool == PoolSettings(size=1) and found["c"].distiller == common[0]


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ({"distiler": {"steps": 3}}, "distiler.steps is not a setting; the nearest is distiller.steps"),
        ({"distiller": {"lr_image": 1e-4}}, "distiller.lr_image is not a setting; the nearest is distiller.lr_images"),
        ({"distiller": {"steps": "many"}}, "distiller.steps must be of type int, got 'many'"),
        ({"pool": {"size": 0}}, "pool.size must be at least 1, got 0"),
        ({"pool": 3}, "pool is a section; give its settings one by one"),
        ({"implementation": "best"}, "implementation must be one of ours, plain, got 'best'"),
        ({"implementation": "plain", "pool": {"renewal": "never-train"}}, "pool.renewal must be train in the plain"),
        ({"implementation": "plain", "distiller": {"compile": True}}, "leave out distiller.compile: the plain"),
        (
            {"distiller": {"num_images": 5, "precision": "float64"}},
            "leave out distiller.num_images, distiller.precision",
        ),
        ("plain", "write what is its own, such as {implementation: plain}; got 'plain'"),
    ],
)
def test_a_wrong_contender_is_refused_before_anything_runs(entry, problem):
    with pytest.raises(SettingsError) as caught:
        TimeToQualityConfig(teacher=READY, contenders={"ours": {}, "x": entry})
    assert len(caught.value.problems) == 1 and caught.value.problems[0].startswith(f"contenders.x: {problem}")


def test_what_cannot_be_timed_is_refused():
    with pytest.raises(SettingsError) as caught:
        TimeToQualityConfig(
            contenders={}, use=UseSettings(augment="views"), distiller=DistillerSettings(precision="float64")
        )
    ends = ("--teacher.pretrained true", "--use.augment", "--distiller.precision", "such as {ours: {}}")
    assert len(caught.value.problems) == len(ends)
    assert all(problem.endswith(end) for problem, end in zip(caught.value.problems, ends, strict=True))


# The race


class FakeTraining:
    """A contender that takes known times: 10 to be built, 1 each warm-up step, 2 each step, 5 to be looked at."""

    def __init__(self, clock, warm_up=3, diverges_at=None):
        self.clock, self.pool, self.done, self.diverges_at = clock, warm_up, 0, diverges_at
        self.clock.now += 10

    @property
    def images(self):
        self.clock.now += 5
        value = math.nan if self.done == self.diverges_at else self.done
        return torch.full((2, 1, 8, 8), value, dtype=torch.float32, requires_grad=True)

    @property
    def targets(self):
        return torch.full((2, 3), float(self.done))

    def warm_up(self):
        for _ in range(self.pool):
            self.clock.now += 1
            yield torch.zeros(())

    def step(self):
        self.clock.now += 2
        self.done += 1


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 1000.0

    monkeypatch.setattr(time_to_quality.time, "perf_counter", lambda: Clock.now)
    return Clock


def run_fake(clock, steps, budget=1e9, **options):
    settings = TimeToQualitySettings(snapshots=3, first=1, budget=budget / 60)
    return train("fake", lambda: FakeTraining(clock, **options), steps, settings, progress=False)


def test_building_and_warm_up_count_as_time_and_copying_does_not(clock):
    taken = run_fake(clock, 4)
    assert [(snapshot.step, snapshot.seconds) for snapshot in taken] == [(0, 13), (1, 15), (2, 17), (4, 21)]
    for snapshot in taken:
        assert (snapshot.images == snapshot.step).all() and (snapshot.targets == snapshot.step).all()
        assert not snapshot.images.requires_grad


def test_a_contender_stops_when_the_budget_is_over_and_its_last_step_is_kept(clock):
    # After the third step 19 seconds have passed; the fourth would be copied only at the end.
    assert [(s.step, s.seconds) for s in run_fake(clock, 100, budget=18.5)] == [(0, 13), (1, 15), (3, 19)]


def test_a_budget_may_end_within_the_warm_up(clock):
    assert [(s.step, s.seconds) for s in run_fake(clock, 100, budget=11.5)] == [(0, 12)]


def test_a_contender_that_diverges_is_named(clock):
    with pytest.raises(InputError, match="fake diverges before step 2: lower its distiller.lr_images"):
        run_fake(clock, 4, diverges_at=2)


def test_the_random_images_are_measured_once_and_every_point_is_logged_as_it_is_measured(clock, tmp_path):
    measured, log = [], RunLog(tmp_path / "log.jsonl")

    def measure(snapshots):
        for snapshot in snapshots:
            measured.append(snapshot.step)
            lines = log.read()
            yield Point(snapshot.step, snapshot.seconds, 1 / (1 + snapshot.step), 0.0, 1, [1 / (1 + snapshot.step)])
            assert len(log.read()) == len(lines) + 1

    settings = TimeToQualitySettings(snapshots=2, first=1, goal=0.7, seeds=1)
    race = TimeToQuality(settings, measure, log=lambda point: log.write([point]), progress=False)
    race.run("ours", partial(FakeTraining, clock), 4)
    race.run("slow", partial(FakeTraining, clock, warm_up=6), 4)
    assert measured == [0, 1, 4, 1, 4]
    assert [(line["stage"], line["step"], line["seconds"]) for line in log.read()] == [
        *(("ours", step, seconds) for step, seconds in ((0, 13), (1, 15), (4, 21))),
        *(("slow", step, seconds) for step, seconds in ((0, 16), (1, 18), (4, 24))),
    ]
    record = race.result()
    assert record["random"]["values"] == [1.0] and record["goal_error"] == pytest.approx(0.3)
    share = (0.5 - 0.3) / (0.5 - 0.2)
    assert record["contenders"][0]["arrived"] == pytest.approx(15 ** (1 - share) * 21**share)
    assert record["contenders"][1]["ratio"] > 1


@pytest.fixture
def start(tmp_path, small_teacher):
    """Noise of 16x16, a small teacher, and a student smaller still: the start of all contenders, and the meter."""
    source = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (60, 1, 16, 16), dtype=torch.uint8, generator=source)
    bank = ImageBank(pixels, None, None, {"name": "noise", "fingerprint": fingerprint_pixels(pixels)})
    accelerator, space, teacher = Accelerator(cpu=True), PixelSpace.of(pixels), small_teacher()
    cache = FeatureCache(teacher, accelerator, tmp_path / "features")
    features = cache.features(bank)
    transform = TargetTransform.fit("standardise", features)
    targets = Targets(features, transform)
    source = Source(bank, targets, teacher, transform, space, accelerator.device)
    student = partial(ConvNet, (4, 8), "batch", 1, 16, targets.width)
    images = space.normalise(pixels[:8].float() / 255)
    real = RealData("noise", bank, bank, space, accelerator.device, targets[:])
    meter = Meter(student, real, space, UseSettings(epochs=4, learning_rate=0.01), seeds=2, seed=0)
    return Start(images, targets[torch.arange(8)], source, cache, student, accelerator, seed=0), meter


@pytest.mark.parametrize("augment", [False, True])
def test_both_implementations_race_from_the_same_start_and_draw_the_same(start, augment):
    start, meter = start
    common = {"num_images": 8, "steps": 6, "batch_size": 10, "lr_images": 1e-2, "lr_targets": 1e-2, "inner_steps": 2}
    entries = {"ours": {}, "plain": {"implementation": "plain"}}
    contenders = read_contenders(
        entries, DistillerSettings(**common, augment=augment), PoolSettings(size=2, max_age=4)
    )
    kinds = [type(start.build(contender)) for contender in contenders.values()]
    assert kinds == [Distiller, PlainDistiller]
    settings = TimeToQualitySettings(snapshots=3, first=2, seeds=2)
    race = TimeToQuality(settings, meter.points, progress=False)
    for name, contender in contenders.items():
        race.run(name, partial(start.build, contender), 6, start.memory(contender))
    ours, plain = (curve.points for curve in race.curves)
    assert [point.step for point in ours] == [point.step for point in plain] == [0, 2, 3, 6]
    for left, right in zip(ours, plain, strict=True):
        assert left.n == 2 and left.std > 0 and left.mean == pytest.approx(sum(left.values) / 2)
        assert right.values == pytest.approx(left.values, rel=1e-3)
    assert ours[0].mean != ours[-1].mean
    assert all(before.seconds < after.seconds for before, after in zip(plain[1:], plain[2:], strict=False))
    json.dumps(race.result())


def test_a_student_that_diverges_is_named_with_its_set(start):
    start, meter = start
    snapshots = train("x", lambda: FakeTrainingOn(start), 0, TimeToQualitySettings(), progress=False)
    wild = Meter(meter.build, meter.real, meter.space, UseSettings(epochs=50, learning_rate=1e4), 1, 0)
    with pytest.raises(InputError, match="student 0 on the set of step 0: a student diverges"):
        list(wild.points(snapshots))


class FakeTrainingOn:
    def __init__(self, start):
        self.images, self.targets = start.images, start.targets

    def warm_up(self):
        return iter(())


def test_memory_is_as_by_default_while_the_plain_one_trains_and_kept_after(start, monkeypatch):
    start, told = start[0], []
    monkeypatch.setattr(quality_contenders, "keep_freed_memory", lambda keep=True: told.append(keep))
    contenders = read_contenders({"a": {}, "b": {"implementation": "plain"}}, DistillerSettings(), PoolSettings())
    with start.memory(contenders["a"]):
        assert told == []
    with pytest.raises(KeyboardInterrupt), start.memory(contenders["b"]):
        assert told == [False]
        raise KeyboardInterrupt
    assert told == [False, True]
