import ast
import base64
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from result_cases import Page

from ssdd_hub.results import charts, class_charts, evaluation_charts, run_charts
from ssdd_hub.results.charts import STYLES, draw_bars
from ssdd_hub.results.page import CAPTIONS, render_pictures, render_report
from ssdd_hub.results.run_charts import draw_images, draw_losses
from ssdd_hub.results.tables import score_table


def score(name, mean, std=0.0, *, protocol="teacher_error", metric="mse", labels=None, values=(), n=5, **more):
    record = {"set": name, "protocol": protocol, "source": "digits", "target": "digits", "student": "ssdd_convnet3"}
    record |= {"labels": labels, "metric": metric, "mean": mean, "std": std, "n": n, "values": list(values)}
    return record | more


def probe(name, mean, std=0.0, **more):
    return score(name, mean, std, **({"protocol": "probe", "metric": "accuracy", "labels": 50} | more))


SCORES = [
    score("distilled", 0.0712, 0.0011, values=[0.0701, 0.0723]),
    score("random", 0.1095, 0.0030),
    probe("distilled", 0.712, 0.013, values=[0.70, 0.724]),
    probe("random", 0.689, 0.021),
    probe("none", 0.5, 0.04),
]
LOG = [
    *({"stage": "teacher", "step": step, "loss": 30.0 - step} for step in range(10)),
    {"stage": "pool", "step": 3, "loss": 1.0},
    *({"stage": "distill", "step": step, "loss": 0.5**step} for step in range(10)),
]


# --- the table as text


def test_the_table_is_aligned_and_ends_with_the_change_of_distilled_against_random():
    assert score_table(SCORES).splitlines() == [
        "set                       teacher_error          probe 50 labels",
        "------------------------  ---------------------  ------------------",
        "distilled                 0.0712 ± 0.0011 (n=5)  71.2 ± 1.3 % (n=5)",
        "random                    0.1095 ± 0.0030 (n=5)  68.9 ± 2.1 % (n=5)",
        "none                                             50.0 ± 4.0 % (n=5)",
        "distilled against random  -35.0 %                +2.3 points",
    ]


def test_the_table_has_no_change_without_both_sets():
    assert "against" not in score_table(SCORES[:1])
    half = score_table([*SCORES[:1], *SCORES[2:]]).splitlines()[-1]
    assert half.split() == ["distilled", "against", "random", "+2.3", "points"]


def test_a_single_seed_has_no_deviation_and_tiny_errors_keep_their_digits():
    assert score_table([score("distilled", 0.0712, None, n=1)]).endswith("  0.0712 (n=1)")
    assert score_table([score("distilled", 2.5e-6, 1e-7)]).endswith("  2.50e-06 ± 1.00e-07 (n=5)")


def test_no_scores_are_said_to_be_none(tmp_path):
    assert score_table([]) == "no scores"
    assert "No scores were measured." in page(tmp_path / "report.html", scores=[]).texts["p"]


def test_two_scores_of_the_same_thing_are_refused(tmp_path):
    twice = [score("random", 0.1), score("random", 0.2)]
    for render in (score_table, lambda scores: page(tmp_path / "report.html", scores=scores)):
        with pytest.raises(ValueError, match="two scores of the set 'random' for 'teacher_error'"):
            render(twice)


# --- pictures


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("count", [1, 9])
def test_pictures_of_any_count_and_colour_are_written(tmp_path, channels, count):
    before = torch.rand(count, channels, 8, 8)
    paths = render_pictures(tmp_path / "new", before=before, after=before + 0.3, log=LOG, scores=SCORES)
    assert paths == [(tmp_path / "new" / f"{name}.png", CAPTIONS[name]) for name in ("images", "loss", "scores")]
    assert sorted(path for path, _ in paths) == sorted((tmp_path / "new").iterdir())
    for path, _ in paths:
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("L"))
        assert min(pixels.shape) > 150
        assert pixels.std() > 5


def test_the_same_run_gives_the_same_bytes(tmp_path):
    before = torch.rand(2, 1, 8, 8)
    for name in ("a", "b"):
        render_pictures(tmp_path / name, before=before, after=before, log=LOG, scores=SCORES)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_images_show_before_and_after_clipped_and_the_difference_around_zero():
    before = torch.zeros(2, 3, 4, 4)
    after = before.clone()
    after[0, 0, :, :2] = 1.5
    after[1, 2, 0, 0] = -0.3
    after[1, 1, 0, 0] = -1e-6  # rounding, which does not count as clipped
    figure = draw_images(before, after)
    shown = [np.asarray(axis.images[0].get_array()) for axis in figure.axes[:3]]
    assert np.array_equal(shown[0][:, :4], np.zeros((4, 4, 3)))
    assert np.array_equal(shown[1][:, :4], after[0].clamp(0, 1).permute(1, 2, 0).numpy())
    np.testing.assert_allclose(shown[2][:, :4], after[0].mean(0).numpy(), atol=1e-6)
    np.testing.assert_allclose(shown[2][0, 5], -0.1, atol=1e-5)
    low, high = figure.axes[2].images[0].get_clim()
    assert low == -high < 0 and "2 of 2 images" in figure.get_suptitle()
    assert f"{100 * 9 / 96:.1f} % of the distilled values" in figure.get_suptitle()


def test_as_many_random_images_of_the_same_scale_stand_below_the_set():
    before = torch.linspace(0, 0.5, 10)[:, None, None, None].expand(10, 1, 2, 2)
    random = torch.linspace(0.5, 1, 10)[:, None, None, None].expand(10, 1, 2, 2)
    axes = draw_images(before, before, random).axes
    assert [axis.get_ylabel() for axis in axes[:8]] == ["before", "after", "difference", "random"] * 2
    shown, beside = (np.asarray(axes[row].images[0].get_array()) for row in (1, 3))
    assert shown.shape == beside.shape and axes[1].images[0].get_clim() == axes[3].images[0].get_clim() == (0, 1)
    np.testing.assert_allclose(beside[0, ::3], random[:8, 0, 0, 0])
    np.testing.assert_allclose(np.asarray(axes[7].images[0].get_array())[0, 3], 1)


def test_at_most_24_images_from_the_first_to_the_last_are_shown():
    before = torch.linspace(0, 1, 50)[:, None, None, None].expand(50, 1, 2, 2)
    figure = draw_images(before, before)
    assert "24 of 50 images" in figure.get_suptitle()
    assert len(figure.axes) == 9 + 1  # three bands of three rows and the colour bar
    assert figure.axes[0].images[0].get_array()[0, 0] == 0
    assert figure.axes[6].images[0].get_array()[0, -2] == 1


@pytest.mark.parametrize("shapes", [((2, 1, 4, 4), (3, 1, 4, 4)), ((0, 1, 4, 4),) * 2, ((1, 4, 4),) * 2])
def test_pictures_of_different_or_no_images_are_refused(tmp_path, shapes):
    before, after = map(torch.zeros, shapes)
    with pytest.raises(ValueError, match=r"the same images \(M, C, H, W\), M > 0"):
        render_pictures(tmp_path, before=before, after=after, log=[], scores=[])
    assert not list(tmp_path.iterdir())


def test_losses_of_distillation_and_teacher_have_a_panel_each():
    distillation, teacher = draw_losses(LOG).axes
    assert (distillation.get_title(), distillation.get_yscale()) == ("Distillation", "log")  # from 1 to 0.002
    np.testing.assert_allclose(distillation.lines[0].get_ydata(), [0.5**step for step in range(10)])
    assert teacher.get_yscale() == "linear"  # from 30 to 21
    np.testing.assert_array_equal(teacher.lines[0].get_xdata(), range(10))


def test_the_strong_line_is_a_running_median_that_ignores_single_spikes():
    log = [{"stage": "distill", "step": step, "loss": 9.0 if step == 50 else 1.0} for step in range(100)]
    (axis,) = draw_losses(log).axes
    raw, median = axis.lines
    assert max(raw.get_ydata()) == 9
    assert set(median.get_ydata()) == {1.0}


def test_losses_that_are_missing_or_not_finite_are_left_out(tmp_path):
    log = [{"stage": "distill", "step": 0, "loss": float("nan")}, {"stage": "distill", "step": 1}, LOG[-1]]
    (axis,) = draw_losses(log).axes
    assert list(axis.lines[0].get_xdata()) == [9]
    (axis,) = draw_losses(log[:2]).axes
    assert axis.texts[0].get_text() == "no loss was logged"


@pytest.mark.parametrize("log", [[], LOG[:1], LOG[-1:]])
def test_empty_logs_and_scores_still_give_pictures(tmp_path, log):
    images = torch.zeros(1, 1, 4, 4)
    assert len(render_pictures(tmp_path, before=images, after=images, log=log, scores=[])) == 3


def test_scores_have_a_panel_for_each_protocol_with_bars_whiskers_and_dots():
    error, accuracy = draw_bars(SCORES, STYLES).axes
    assert [error.get_title(), accuracy.get_title()] == ["teacher_error", "probe 50 labels"]
    assert error.get_xlabel() == "mean squared error (lower is better)"
    assert accuracy.get_xlabel() == "accuracy in % (higher is better)"
    np.testing.assert_allclose([bar.get_width() for bar in error.patches], [0.0712, 0.1095])
    # Points, since an axis from zero would hide the differences of these.
    assert not accuracy.patches and 0 < accuracy.get_xlim()[0] < 46 and 72.5 < accuracy.get_xlim()[1] < 100
    means = [line.get_xdata()[0] for line in accuracy.lines if line.get_markersize() == 9]
    np.testing.assert_allclose(means, [71.2, 68.9, 50.0])
    assert [label.get_text().split("\n")[0] for label in accuracy.get_yticklabels()] == ["distilled", "random", "none"]
    dots = [line for line in accuracy.lines if line.get_linestyle() == "None" and line.get_markersize() == 3]
    np.testing.assert_allclose(dots[0].get_xdata(), [70.0, 72.4])
    whisker = accuracy.collections[0].get_segments()[0]
    np.testing.assert_allclose(whisker[:, 0], [71.2 - 1.3, 71.2 + 1.3])


def test_accuracies_far_apart_are_bars_from_zero():
    axis = draw_bars([probe("distilled", 0.7), probe("random", 0.2)], STYLES).axes[0]
    assert axis.get_xlim()[0] == 0 and len(axis.patches) == 2


def test_every_seed_lies_inside_a_short_axis():
    values = [0.2, *[0.9] * 99]
    axis = draw_bars([probe("distilled", 0.893, 0.07, values=values), probe("random", 0.8)], STYLES).axes[0]
    low, high = axis.get_xlim()
    assert low <= 20 and high >= 96


def test_a_score_of_one_seed_and_an_unknown_metric_are_drawn():
    panel, empty = draw_bars([score("distilled", 3.0, None, n=1, metric="bits", values=[3.0])], STYLES).axes
    assert panel.get_xlabel() == "bits" and not empty.axison


@pytest.mark.parametrize("module", [charts, class_charts, evaluation_charts, run_charts])
def test_matplotlib_is_imported_only_when_drawing_and_never_through_pyplot(module):
    tree = ast.parse(Path(module.__file__).read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert any("matplotlib" in ast.unparse(node) for node in imports)
    assert not any("pyplot" in ast.unparse(node) for node in imports)
    assert not any("matplotlib" in ast.unparse(node) for node in tree.body if node in imports)


# --- the page


def page(path, **changes):
    arguments = {"title": "KRR-ST on digits", "pictures": [], "scores": SCORES, "config": "seed: 0\n", "facts": {}}
    return Page(render_report(path, **(arguments | changes)).read_text(encoding="utf-8"))


def test_the_page_shows_title_facts_scores_and_settings(tmp_path):
    parsed = page(tmp_path / "run" / "report.html", facts={"Source": "digits, 1,437 images", "Time": "92 s"})
    assert parsed.texts["title"] == parsed.texts["h1"] == ["KRR-ST on digits"]
    assert parsed.texts["th"] == [
        *("Source", "Time", "set", "teacher_error", "probe 50 labels"),
        *("distilled", "random", "none", "distilled against random"),
    ]
    assert parsed.texts["small"] == ["mean squared error (lower is better)", "accuracy in % (higher is better)"]
    assert parsed.texts["td"] == [
        *("digits, 1,437 images", "92 s"),
        *("0.0712 ± 0.0011 (n=5)", "71.2 ± 1.3 % (n=5)"),
        *("0.1095 ± 0.0030 (n=5)", "68.9 ± 2.1 % (n=5)"),
        "50.0 ± 4.0 % (n=5)",
        *("-35.0 %", "+2.3 points"),
    ]
    assert parsed.texts["pre"] == ["seed: 0"]
    assert "details" in parsed.tags
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["report.html"]


COSTS = [
    score(name, mean, protocol="cost", metric=metric)
    for name in ("distilled", "random")
    for metric, mean in (("seconds", 3.0), ("steps", 300), ("epochs", 300))
]


def test_costs_are_a_column_and_in_no_picture(tmp_path):
    parsed = page(tmp_path / "report.html", scores=[*COSTS, *SCORES])
    assert parsed.rows[0] == ["set", *("teacher_error", "mean squared error (lower is better)"),
                              *("probe 50 labels", "accuracy in % (higher is better)"),
                              *("cost", "seconds (lower is better)")]  # fmt: skip
    assert "-0.0 %" not in parsed.texts["td"] and "3.0 (n=5)" not in parsed.texts["th"]
    images = torch.rand(1, 1, 4, 4)
    with_costs, without = (
        render_pictures(tmp_path / name, before=images, after=images, log=LOG, scores=scores)[2][0].read_bytes()
        for name, scores in (("with", [*COSTS, *SCORES]), ("without", SCORES))
    )
    assert with_costs == without


def test_the_page_says_the_verdict_above_the_table(tmp_path):
    seeds = {"values": [0.7, 0.72, 0.71], "n": 3}
    scores = [probe("distilled", 0.71, **seeds, classes=10), probe("random", 0.5, values=[0.5, 0.51, 0.49], n=3)]
    html = render_report(
        tmp_path / "report.html", title="", pictures=[], scores=scores, config="", facts={}
    ).read_text(encoding="utf-8")
    assert html.index("better than random real images by probe 50 labels") < html.index('<th scope="col">set')
    assert "chance is 10 %" in html


def test_the_renewal_of_students_is_explained_and_marked_where_a_new_one_was_first_met():
    assert "renewed (triangles)" in CAPTIONS["loss"]
    visits = [(1, 0, 7), (2, 1, 3), (3, 0, 8), (4, 0, 0), (5, 1, 4), (6, 0, 1), (7, 1, 0)]
    log = [{"stage": "distill", "step": s, "loss": 1.0, "student": slot, "age": age} for s, slot, age in visits]
    (axis,) = draw_losses(log).axes
    assert list(axis.lines[-1].get_xdata()) == [4, 7]
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["2 renewed students, at their first step"]
    # A method without a pool has none.
    (axis,) = draw_losses([{"stage": "distill", "step": 1, "loss": 1.0, "student": None}]).axes
    assert axis.get_legend() is None


def test_the_error_on_held_out_images_has_a_panel_that_says_where_it_started():
    points = [(0, 0.4), (10, None), (20, 0.3), (30, 0.25)]
    log = [*LOG, *({"stage": "heldout", "step": s, "error": error, "images": 99} for s, error in points)]
    _, axis, _ = draw_losses(log).axes
    curve, start = axis.lines
    assert (list(curve.get_xdata()), list(curve.get_ydata())) == ([0, 20, 30], [0.4, 0.3, 0.25])
    assert set(start.get_ydata()) == {0.4} and axis.get_title() == "Error on 99 held-out images"
    # A run that an earlier version began has no start.
    _, axis, _ = draw_losses([*LOG, log[-1]]).axes
    assert len(axis.lines) == 1 and axis.get_legend() is None


def test_links_are_those_given_and_stand_above_all_else(tmp_path):
    parsed = page(
        tmp_path / "report.html", links={"card <of> the set": "distilled/README.md", "scores": "scores.json"}
    )
    assert parsed.links == ["distilled/README.md", "scores.json"]
    assert parsed.texts["a"] == ["card <of> the set", "scores"]


def test_the_page_holds_its_pictures_and_refers_to_nothing_outside(tmp_path):
    pictures = [(tmp_path / f"{name}.png", f"all {name}") for name in ("images", "other")]
    for path, _ in pictures:
        path.write_bytes(path.stem.encode())
    parsed = page(tmp_path / "report.html", pictures=pictures, config="url: https://example.org")
    parsed.check_whole()
    assert [base64.b64decode(link.partition(",")[2]) for link in parsed.links] == [b"images", b"other"]
    assert parsed.texts["figcaption"] == ["all images", "all other"]


def test_text_from_outside_is_shown_as_text(tmp_path):
    evil = "</pre><script>alert('1')</script>"
    scores = [score(evil, 0.1, protocol=evil)]
    parsed = page(tmp_path / "report.html", title=evil, config=evil, facts={evil: evil}, scores=scores)
    assert "script" not in parsed.tags
    assert parsed.texts["h1"] == parsed.texts["pre"] == [evil]


def test_a_page_that_cannot_be_made_leaves_the_old_one(tmp_path):
    path = tmp_path / "report.html"
    path.write_text("old")
    with pytest.raises(FileNotFoundError):
        page(path, pictures=[(tmp_path / "missing.png", "")])
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
