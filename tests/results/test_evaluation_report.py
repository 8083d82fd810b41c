import base64
import itertools

import numpy as np
import pytest
from PIL import Image
from result_cases import Page, record

from ssdd_hub.results.charts import STYLES, styles_of
from ssdd_hub.results.compare import compare
from ssdd_hub.results.evaluation_charts import draw_evaluation
from ssdd_hub.results.page import render_evaluation

SKILL = {"none": 0.0, "gaussian": 0.05, "high_loss": 0.3, "random": 0.45, "kmeans-pixels": 0.48, "kcenter": 0.5}
SKILL |= {"herding": 0.55, "kmeans": 0.6, "distilled": 0.75, "full": 1.0}


def plausible(sets, targets, students, amounts, seeds=5):
    """Records as an evaluation might give them: skilled sets come closer to the teacher and need fewer labels."""
    random, records = np.random.default_rng(0), []
    for name, (place, student) in itertools.product(sets, enumerate(students)):
        skill = SKILL.get(name, 0.5) * 0.9**place
        draw = lambda level, spread: (level + spread * random.standard_normal(seeds)).tolist()  # noqa: E731
        records.append(record(name, "teacher_error", "mse", draw(1 - 0.9 * skill, 0.01), student=student))
        for number, target in enumerate(targets):
            where = {"target": target, "student": student}
            for labels in amounts:
                share = labels if isinstance(labels, float) else labels / 5000
                level = (0.25 + 0.3 * skill + 0.06 * np.log(100 * share)) / (1 + 0.3 * number)
                records.append(record(name, "probe", "accuracy", draw(level, 0.008), labels, **where))
            records.append(record(name, "knn", "accuracy", draw(0.2 + 0.2 * skill, 0.006), **where))
        if name != "none":
            seconds = 900 if name == "full" else 12 + place
            records.append(record(name, "cost", "seconds", draw(seconds, 0.5), target=None, student=student))
            records.append(record(name, "cost", "steps", [4000] * seeds, target=None, student=student))
    return records


def ranked(sets, target, labels, seeds=3):
    """What a ranking of architectures adds: their scores, tau and the speed-up."""
    random, records = np.random.default_rng(1), []
    names = [f"ssdd_convnet3 widths={width}" for width in (8, 16, 32, 64, 128)]
    for name, (place, student) in itertools.product(sets, enumerate(names)):
        values = (0.3 + 0.05 * place + 0.03 * (1 - SKILL[name]) * random.standard_normal(seeds)).tolist()
        records.append(record(name, "probe", "accuracy", values, labels, target, student))
    for name in sets:
        if name != "full":
            about = {"labels": labels, "target": target, "student": "5 architectures", "by": "probe"}
            taus = (SKILL[name] + 0.03 * random.standard_normal(seeds)).tolist()
            records.append(record(name, "rank", "tau", taus, **about))
            speedups = (30 / (0.5 + SKILL[name]) + random.standard_normal(seeds)).tolist()
            records.append(record(name, "rank", "speedup", speedups, **about))
    return records


SHARES = [0.01, 0.05, 0.1, 0.2, 0.5]
TARGETS = ["cifar100", "cifar10"]
SETS = ["none", "random", "kmeans", "distilled", "full"]
LARGE = plausible(SETS, TARGETS, ["ssdd_convnet3", "resnet18"], SHARES)
MEDIUM = plausible(["distilled", "random", "full"], TARGETS, ["ssdd_convnet3"], [0.01, 0.1], seeds=3)
SMALL = plausible(["distilled", "random", "none"], ["digits"], ["ssdd_convnet3"], [50], seeds=1)
RANKED = plausible(["distilled", "random", "none", "full"], ["cifar10"], ["ssdd_convnet3"], [0.01, 0.1], seeds=3)
RANKED += ranked(["distilled", "random", "full"], "cifar10", 0.1)


# --- pictures


def pictures(records):
    return {picture.name: picture.figure for picture in draw_evaluation(records)}


@pytest.fixture(scope="module")
def large():
    return pictures(LARGE)


@pytest.fixture(scope="module")
def ranking():
    return pictures(RANKED)


def whiskers(axis):
    """The points of each set in a panel, by colour: x, y and the half lengths of the whiskers."""
    found = {}
    for container in axis.containers:
        line, _, (bars,) = container
        lengths = [(segment[1, 1] - segment[0, 1]) / 2 for segment in bars.get_segments()]
        points = np.array([line.get_xdata(), line.get_ydata()], dtype=np.float64)
        found[line.get_color()] = (line, *points, lengths)
    return found


def test_accuracy_is_drawn_over_the_labels_in_a_panel_for_each_target(large):
    figure = large["probe, resnet18"]
    axes = [axis for axis in figure.axes if axis.axison]
    assert [axis.get_title() for axis in axes] == TARGETS
    wanted = [r for r in LARGE if r["target"] == "cifar10" and r["student"] == "resnet18" and r["protocol"] == "probe"]
    drawn = whiskers(axes[1])
    assert len(drawn) == len(SETS)
    for name in SETS:
        line, x, y, lengths = drawn[STYLES[name].colour]
        curve = [r for r in wanted if r["set"] == name]
        np.testing.assert_allclose(x, SHARES, rtol=0.1)
        np.testing.assert_allclose(y, [100 * r["mean"] for r in curve])
        np.testing.assert_allclose(lengths, [100 * r["std"] for r in curve])
        assert line.get_linestyle() == ("--" if name in ("none", "full") else "-")
    (legend,) = figure.legends
    assert [text.get_text().strip() for text in legend.get_texts()] == SETS
    assert axes[1].get_xscale() == "log"
    assert [label.get_text() for label in axes[1].get_xticklabels()] == ["1 %", "5 %", "10 %", "20 %", "50 %"]


def test_shares_and_counts_of_labels_have_panels_of_their_own():
    records = [record("random", "probe", "accuracy", [0.5], labels) for labels in (0.01, 0.1, 10, 100)]
    share, count = pictures(records)["probe, ssdd_convnet3"].axes
    assert [share.get_xlabel(), count.get_xlabel()] == ["share of the labels", "labelled images"]
    assert [label.get_text() for label in count.get_xticklabels()] == ["10", "100"]


def test_students_stand_beside_each_other_at_the_middle_amount_of_labels(large):
    figure = large["probe by student"]
    assert figure.get_suptitle() == "probe, 10 % labels"
    axis = figure.axes[0]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["ssdd_convnet3", "resnet18"]
    mine = [c[0] for c in axis.containers if c[0].get_color() == STYLES["kmeans"].colour]
    wanted = [r for r in LARGE if (r["set"], r["target"], r["labels"]) == ("kmeans", "cifar100", 0.1)]
    np.testing.assert_allclose([line.get_ydata()[0] for line in mine], [100 * r["mean"] for r in wanted])
    assert [round(line.get_xdata()[0]) for line in mine] == [0, 1]


def test_cost_is_drawn_on_a_log_axis_and_no_pre_training_is_a_line(ranking):
    error, probe = ranking["cost of pre-training, ssdd_convnet3"].axes
    assert [error.get_title(), probe.get_title()] == ["teacher_error, cifar100", "probe, cifar10, 10 % labels"]
    assert error.get_xscale() == "log"
    seconds = {r["set"]: r["mean"] for r in RANKED if r["metric"] == "seconds"}
    errors = {r["set"]: r["mean"] for r in RANKED if r["metric"] == "mse"}
    drawn = whiskers(error)
    for name in ("distilled", "random", "full"):
        _, x, y, _ = drawn[STYLES[name].colour]
        assert (x[0], y[0]) == (seconds[name], errors[name])
    (line,) = [line for line in error.lines if line.get_color() == STYLES["none"].colour]
    assert list(line.get_ydata()) == [errors["none"]] * 2


def test_costs_that_hardly_differ_do_not_fill_the_axis():
    (axis, _) = pictures(SMALL)["cost of pre-training, ssdd_convnet3"].axes
    low, high = axis.get_xlim()
    assert high / low == pytest.approx(10)


def test_little_is_drawn_as_bars_in_one_picture():
    figure = pictures(SMALL)["scores bars"]
    axes = [axis for axis in figure.axes if axis.axison]
    assert [axis.get_title() for axis in axes] == ["teacher_error", "probe 50 labels", "knn"]
    scores = [r["mean"] for r in SMALL if r["protocol"] == "teacher_error"]
    np.testing.assert_allclose([bar.get_width() for bar in axes[0].patches], scores)
    assert not axes[0].collections  # a single seed has no deviation


def test_ranking_is_drawn_as_tau_over_speed_and_as_scores_on_a_set_over_scores_on_all(ranking):
    (axis,) = ranking["rank"].axes
    means = {r["metric"]: r["mean"] for r in RANKED if r["set"] == "random"}
    _, x, y, _ = whiskers(axis)[STYLES["random"].colour]
    assert (list(x), list(y)) == ([means["speedup"]], [means["tau"]])
    distilled, _ = ranking["architectures by probe, cifar10, 10 % labels"].axes
    assert distilled.get_title().startswith("distilled, tau 0.7")
    scores = {(r["set"], r["student"]): 100 * r["mean"] for r in RANKED if r["labels"] == 0.1}
    points = sorted((c[0].get_xdata()[0], c[0].get_ydata()[0]) for c in distilled.containers)
    students = [student for name, student in scores if name == "full"]
    np.testing.assert_allclose(points, sorted((scores["full", s], scores["distilled", s]) for s in students))
    assert len(points) == 6


def test_tau_without_speed_is_drawn_as_bars():
    records = [r for r in RANKED if r["metric"] == "tau"]
    assert len(pictures(records)["rank"].axes[0].patches) == 2


def test_unknown_sets_get_styles_that_nobody_else_has():
    styles = styles_of(["distilled", "random", "none", "a", "b", "c", "d", "e"])
    assert len(set(styles.values())) == 8
    assert styles["distilled"] == STYLES["distilled"]


def test_names_are_drawn_as_they_are(tmp_path):
    names = [r"$\nosuch$", "_hidden", "x" * 200]
    records = [record(name, "probe", "accuracy", [0.5, 0.6], labels) for name in names for labels in (0.1, 0.5)]
    (picture,) = draw_evaluation(records)
    picture.figure.savefig(tmp_path / "picture.png")
    texts = [text.get_text() for text in picture.figure.legends[0].get_texts()]
    assert texts == [r" \$\nosuch\$", " _hidden", f" {'x' * 39}…"]


def test_a_score_that_nobody_has_is_left_out():
    records = [record("distilled", "knn", "accuracy", [None, None]), record("random", "knn", "accuracy", [0.5, None])]
    (axis,) = [axis for axis in pictures(records)["scores bars"].axes if axis.axison]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["random\n50.0 % (n=1)"]


# --- the page


def page(folder, records, **changes):
    comparisons = [row for baseline in ("random", "kmeans") for row in compare(records, baseline)]
    arguments = {"facts": {}, "config_text": "seed: 0\n"} | changes
    return Page(render_evaluation(folder, records, comparisons, **arguments).read_text(encoding="utf-8"))


def test_every_score_is_in_a_table_and_every_picture_in_the_page(tmp_path):
    parsed = page(tmp_path, MEDIUM)
    cells = [cell for row in parsed.rows for cell in row]
    for r in MEDIUM:
        digits = {"mse": ".4f", "accuracy": ".1f", "seconds": ".1f", "steps": ".0f"}[r["metric"]]
        text = " ± ".join(f"{r[key] * (100 if r['metric'] == 'accuracy' else 1):{digits}}" for key in ("mean", "std"))
        assert any(cell.startswith(text) for cell in cells), (r, text)
    files = sorted((tmp_path / "pictures").iterdir())
    shown = [base64.b64decode(link.removeprefix("data:image/png;base64,")) for link in parsed.links]
    assert shown == [file.read_bytes() for file in files]
    for file in files:
        with Image.open(file) as picture:
            assert np.asarray(picture.convert("L")).std() > 5
    assert parsed.texts["h2"] == [
        *("Verdict", "Pictures", "Scores", "Differences to random", "Share of the way from random to full", "Settings")
    ]


def knn_scores(**values):
    return [record(name, "knn", "accuracy", numbers) for name, numbers in values.items()]


def test_differences_have_interval_and_p_and_shares_run_from_random_to_full(tmp_path):
    scores = knn_scores(random=[0.40, 0.42, 0.41], distilled=[0.45, 0.46, 0.47], full=[0.5, 0.52, 0.51])
    parsed = page(tmp_path, scores)
    # Differences of 5, 4 and 6 points: 5 ± 4.303 / sqrt(3), t = 5 * sqrt(3) = 8.66.
    assert ["distilled", "+5.0 (p = 0.013) ▲\n[+2.5, +7.5]"] in parsed.rows
    assert ["distilled", "50 %"] in parsed.rows


def test_costs_are_no_differences(tmp_path):
    costs = [record(name, "cost", "seconds", [1.0, 2.0], target=None) for name in ("distilled", "random")]
    scores = [*costs, *knn_scores(random=[0.40, 0.42], distilled=[0.45, 0.46])]
    heads = [row for row in page(tmp_path, scores).rows if row[0] == "set"]
    assert ["cost" in head for head in heads] == [True, False]


def test_a_share_of_a_way_that_may_not_be_there_says_so(tmp_path):
    parsed = page(tmp_path, knn_scores(random=[0.4], distilled=[0.45], full=[0.5]))
    assert ["distilled", "– *"] in parsed.rows
    same = page(tmp_path, knn_scores(random=[0.4, 0.5], distilled=[0.5, 0.4], full=[0.7, 0.8]))
    assert ["distilled", "– *"] in same.rows and "distilled and random do not differ" in " ".join(same.texts["p"])
    assert "* too few seeds to tell full from random." in " ".join(parsed.texts["p"])


def test_text_from_outside_is_shown_as_text_and_nothing_is_fetched(tmp_path):
    evil = "</td><script>alert('1')</script>"
    records = [record(name, "probe", "accuracy", [0.5, 0.6], 50, evil, evil) for name in (evil, "random")]
    preview = tmp_path / "preview.png"
    Image.new("RGB", (8, 8)).save(preview)
    facts = {"machine": {evil: evil}, "commands": [evil, "b"], "time": 3}
    parsed = page(tmp_path / "page", records, facts=facts, config_text=evil, previews={evil: preview})
    parsed.check_whole()
    assert (parsed.texts["pre"], parsed.texts["code"]) == ([evil], [evil, "b"])
    assert parsed.texts["figcaption"][-1] == f"Images of the set {evil}"
    assert "The sets" in parsed.texts["h2"]
    assert sum(row[:1] == [evil] for row in parsed.rows) == 2  # scores, differences


def test_the_verdict_on_every_set_comes_first(tmp_path):
    scores = knn_scores(random=[0.40, 0.42, 0.41], a=[0.45, 0.46, 0.47], b=[0.41, 0.40, 0.42])
    parsed = page(tmp_path, scores)
    assert parsed.texts["h2"][0] == "Verdict"
    told = parsed.texts["p"][:2]
    assert told[0].startswith("a: On these classes better than random real images by knn (+5.0 points")
    assert told[1].startswith("b: On these classes no different from random real images by knn")


def test_an_evaluation_of_nothing_says_so(tmp_path):
    assert page(tmp_path, []).texts["p"] == ["No scores were measured."]
