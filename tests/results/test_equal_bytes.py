"""Images and bytes beside every score, and sets beside the best real images of as many bytes: tables, words, plot."""

import itertools

import numpy as np
import pytest
import torch
from result_cases import Page, record

from ssdd_hub.hub.markdown import escape
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.results.charts import STYLES, own_sets, styles_of
from ssdd_hub.results.compare import compare, compare_at_bytes, console_table, markdown_in_one, markdown_table
from ssdd_hub.results.evaluation_charts import draw_evaluation, draw_worth
from ssdd_hub.results.page import render_evaluation, render_report
from ssdd_hub.results.tables import score_table, spread
from ssdd_hub.results.verdict import verdict, verdicts
from ssdd_hub.sets.distilled import DistilledSet
from ssdd_hub.sets.gallery import render_gallery
from ssdd_hub.text import show_bytes, tell_bytes

STRANGE = (None, True, -1, 1.5, float("nan"), "x", "9" * 99, [], {}, 10**400)
NOISE = np.array([-0.01, 0.0, 0.01, 0.005, -0.005])


def scored(name, accuracy, error, images, size, budget=None, labels=0.05, noise=1.0):
    """Accuracy and error of a set whose five students differ from those of others by no more than a little."""
    sizes = {"images": images, "bytes": size} | ({} if budget is None else {"budget": budget})
    wobble = noise * NOISE[::-1]
    return [
        record(name, "probe", "accuracy", (accuracy + NOISE + 0.1 * wobble).tolist(), labels, **sizes),
        record(name, "teacher_error", "mse", (error + NOISE + 0.1 * wobble**2).tolist(), **sizes),
    ]


def unsized(records):
    return [{key: value for key, value in each.items() if key not in ("images", "bytes")} for each in records]


NONE = unsized(scored("none", 0.1, 1.0, 0, 0))
MINE = scored("distilled", 0.55, 0.3, 400, 98_400)
OTHERS = [
    *scored("random png", 0.50, 0.25, 31, 97_000, 98_400, noise=2),
    *scored("random jpeg-50", 0.53, 0.4, 1234, 98_112, 98_400, noise=3),
]
RECORDS = [*MINE, *OTHERS, *NONE]


# --- sizes in words


@pytest.mark.parametrize(
    ("size", "words"),
    [
        *((0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (1234, "1.2 kB"), (98_400, "98.4 kB"), (99_949, "99.9 kB")),
        *((99_950, "100 kB"), (300_123, "300 kB"), (999_499, "999 kB"), (999_500, "1.0 MB"), (3_100_000, "3.1 MB")),
        *((61_440_000, "61.4 MB"), (2 * 10**9, "2.0 GB"), (5 * 10**15, "5000 TB")),
    ],
)
def test_bytes_are_told_in_decimal_units(size, words):
    assert show_bytes(size) == words


def test_the_bytes_of_a_set_are_told_as_a_sum_and_its_parts():
    sizes = {"images": 90_112, "targets": 8_256, "decoder": 32, "file": 101_234}
    assert tell_bytes(sizes) == "98.4 kB (images 90.1 kB, targets 8.3 kB, decoder 32 B), in files of 101 kB"
    assert tell_bytes({"images": 512, "targets": 40, "decoder": 0}) == "552 B (images 512 B, targets 40 B)"
    assert tell_bytes({}) == tell_bytes({"file": 3, "images": "x", "name": "?"}) == ""


# --- tables


def test_every_table_has_images_and_bytes_beside_the_scores(tmp_path):
    sizes = {"distilled": ["400", "98.4 kB"], "random png": ["31", "97.0 kB"], "random jpeg-50": ["1,234", "98.1 kB"]}
    columns = ["set", "images", "bytes", "probe 5 % labels", "teacher_error"]
    console = [[word.strip() for word in line.split("  ") if word] for line in console_table(RECORDS).splitlines()]
    plain = [[word.strip() for word in line.split("  ") if word] for line in score_table(RECORDS).splitlines()]
    markdown = [[c.strip() for c in line.strip("|").split(" | ")] for line in markdown_table(RECORDS).splitlines()]
    page = Page(report(tmp_path, RECORDS)).rows
    render_report(tmp_path / "run.html", title="", pictures=[], scores=RECORDS, config="", facts={})
    run = Page((tmp_path / "run.html").read_text(encoding="utf-8")).rows
    distilled = DistilledSet(torch.rand(2, 1, 8, 8), torch.rand(2, 3), PixelSpace.raw(1))
    gallery = render_gallery(distilled, tmp_path / "gallery.html", "", records=RECORDS).read_text(encoding="utf-8")
    for rows in (console, plain, markdown, page, run):
        heads = [cell.removesuffix(" ↑").removesuffix(" ↓").replace("\\", "") for cell in rows[0]]
        told = ["number", "as stored", "accuracy in % (higher is better)", "mean squared error (lower is better)"]
        assert [head for head in heads if head not in told] == columns
        found = {row[0]: row[1:3] for row in rows if row and row[0] in sizes}
        first = {row[0]: row[1:3] for row in reversed(rows) if row and row[0] in sizes}
        assert first == sizes and found
    for name, (images, size) in sizes.items():
        assert f"<td>{name}</td><td>{images}</td><td>{size}</td>" in gallery
    assert "Bytes: pixels, targets and decoder as stored." in console_table(RECORDS).replace("\n", " ")
    # No pre-training has no size, and a blank in its place.
    assert [row[1:3] for row in markdown if row[0] == "none"][0] == ["", ""]


def test_records_without_sizes_have_tables_without_them():
    old = unsized(RECORDS)
    for table in (console_table(old), score_table(old), markdown_table(old)):
        assert "images" not in table and "ytes" not in table
    # A change has no size.
    assert score_table([*MINE, *scored("random", 0.5, 0.4, 400, 98_400)]).splitlines()[-1].split()[:4] == [
        *("distilled", "against", "random", "+5.0"),
    ]


@pytest.mark.parametrize("strange", STRANGE, ids=repr)
def test_sizes_of_strange_types_are_left_out_of_tables(strange):
    records = [{**each, "images": strange, "bytes": strange} for each in MINE]
    assert score_table(records) == score_table(unsized(MINE))


# --- the comparison


def test_each_measurement_is_compared_with_the_best_of_as_many_bytes():
    larger = scored("random png 3.1 MB", 0.9, 0.01, 999, 3_100_000, 3_100_000)
    alike = scored("random", 0.8, 0.1, 400, 98_400)  # as many images, in no form
    results = compare_at_bytes([*RECORDS, *larger, *alike])
    best = {"probe": "random jpeg-50", "teacher_error": "random png"}
    assert [(result["set"], result["protocol"], result["baseline"]) for result in results] == [
        ("distilled", protocol, name) for protocol, name in best.items()
    ]
    for result in results:
        (expected,) = [
            each
            for each in compare(RECORDS, best[result["protocol"]])
            if (each["set"], each["protocol"]) == ("distilled", result["protocol"])
        ]
        assert result == {**expected, "bytes": 98_400, "among": ["random png", "random jpeg-50"]}
    assert [result["improves"] for result in results] == [True, False]


def test_sets_of_several_sizes_are_each_compared_at_their_own():
    records = [
        *(*scored("a-1", 0.5, 0.5, 10, 1000), *scored("random png 1.0 kB", 0.4, 0.6, 3, 990, 1000, noise=2)),
        *(*scored("a-2", 0.7, 0.3, 20, 2000), *scored("random png 2.0 kB", 0.8, 0.2, 6, 1990, 2000, noise=2)),
    ]
    found = [(each["set"], each["protocol"], each["baseline"], each["improves"]) for each in compare_at_bytes(records)]
    assert found == [
        *(("a-1", "probe", "random png 1.0 kB", True), ("a-2", "probe", "random png 2.0 kB", False)),
        *(("a-1", "teacher_error", "random png 1.0 kB", True), ("a-2", "teacher_error", "random png 2.0 kB", False)),
    ]
    assert own_sets(records) == ["a-1", "a-2"]


def test_a_set_is_compared_with_what_fills_the_fewest_bytes_above_its_own():
    sets = [
        *scored("a", 0.55, 0.3, 400, 98_000),
        *scored("b", 0.6, 0.3, 900, 230_000),
        *scored("c", 0.7, 0.3, 1, 10**6),
    ]
    filled = [*scored("random png 98.4 kB", 0.5, 0.4, 31, 97_000, 98_400)]
    filled += scored("random png 250 kB", 0.52, 0.4, 99, 249_000, 250_000)
    found = {each["set"]: each["baseline"] for each in compare_at_bytes([*sets, *filled])}
    # Nothing is as large as the last one.
    assert found == {"a": "random png 98.4 kB", "b": "random png 250 kB"}


def test_the_deviation_within_sets_stands_behind_that_over_sets():
    within = {**record("dm", "accuracy", "accuracy", [0.5, 0.6, 0.7]), "within": 0.0123}
    assert spread(within) == "60.0 ± 10.0 (1.2)" and spread({**within, "within": None}) == "60.0 ± 10.0"


def test_scores_and_differences_stand_in_one_table():
    text = markdown_in_one([*RECORDS, *scored("random", 0.5, 0.4, 100, 30_000)])
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    assert rows[0][:3] == ["set", "images", "bytes"] and len({len(row) for row in rows}) == 1
    mine = dict(zip(rows[0], next(row for row in rows if row[0] == "distilled"), strict=True))
    head = "probe 5 % labels"
    assert mine[f"{head} ↑"].startswith("**55.") and mine[f"{head}, against random ↑"].startswith("+5.0")
    assert mine[f"{head}, at equal bytes ↑"].endswith("against random jpeg-50")
    assert mine["teacher\\_error, against random ↓"].startswith("-2")
    assert {row[0] for row in rows[2:]} == {"distilled", "random png", "random jpeg-50", "none", "random"}


def test_costs_what_nobody_scored_and_sets_of_unknown_size_are_not_compared():
    costs = [{**each, "protocol": "cost", "metric": "seconds"} for each in (MINE[0], OTHERS[0])]
    failed = [{**each, "mean": None, "n": 0, "values": [None]} for each in OTHERS]
    assert compare_at_bytes(costs) == compare_at_bytes([*MINE, *failed]) == []
    assert compare_at_bytes([*unsized(MINE), *OTHERS]) == compare_at_bytes(unsized(MINE)) == []


def test_the_tables_name_the_best_and_say_that_it_was_chosen(tmp_path):
    text = markdown_table(RECORDS)
    above, below = text.split("**Difference at equal bytes.** ")
    assert "+2.0 (p < 0.001) ▲ against random jpeg-50" in below and "▼ against random png" in below
    assert "It was chosen by the scores that it is tested with" in below and "98.4 kB" in below
    assert "against" not in above.split("Mean ±")[0]
    page = Page(report(tmp_path, RECORDS))
    assert "Differences at equal bytes" in page.texts["h2"]
    (row,) = [row for row in page.rows if row[0] == "distilled" and "against" in "".join(row)]
    assert row[1] == "98.4 kB" and row[2].startswith("+2.0 (p < 0.001) ▲ against random jpeg-50\n[+1.")
    assert "It was chosen by the scores that it is tested with" in " ".join(page.texts["p"])
    assert "Evaluation of distilled" in page.texts["h1"]


def test_the_name_of_the_best_cannot_break_a_table():
    evil = "random |*x*|<b>"
    records = [{**each, "set": evil} if each["set"] == "random jpeg-50" else each for each in RECORDS]
    assert f"▲ against {escape(evil)} |" in markdown_table(records)


# --- the verdict


def test_the_verdict_names_the_best_of_real_images_at_equal_bytes():
    sentence = verdict(RECORDS)[-1]
    assert sentence.startswith(
        "At equal bytes (98.4 kB) better than the best of real images (random jpeg-50) by probe 5 % labels "
        "(+2.0 points, p < 0.001, n = 5); worse than the best of real images (random png) by teacher_error "
        "(+20 %, p < 0.001, n = 5)."
    )


def test_real_images_that_do_not_fill_the_bytes_are_told_with_theirs(tmp_path):
    """As where the source has no more: 93,480 bytes are 95 % of those of the set."""
    nearly = [{**each, "bytes": 93_480} for each in OTHERS]
    assert verdict([*MINE, *nearly]) == verdict([*MINE, *OTHERS])
    short = [{**each, "bytes": 93_479} if each["set"] == "random png" else each for each in OTHERS]
    sentence = verdict([*MINE, *short])[0]
    assert sentence.startswith("At no more bytes (98.4 kB, of which random png fills 93.5 kB) better than the best")
    assert [result.get("filled") for result in compare_at_bytes([*MINE, *short])] == [None, 93_479]
    for text in (markdown_table([*MINE, *short]), report(tmp_path, [*MINE, *short])):
        assert "against random png, of 93.5 kB" in text and "against random jpeg-50, of" not in text
    many = [{**each, "labels": labels} for labels in (0.01, 0.05, 0.1) for each in [*MINE[:1], *short[:1]]]
    assert verdict(many)[0].startswith("At no more bytes (98.4 kB, of which random png fills 93.5 kB) against real")


def test_the_verdict_at_equal_bytes_claims_no_more_than_the_test():
    close = scored("distilled", 0.5302, 0.3, 400, 98_400, noise=9)
    told = " ".join(verdict([*close, *OTHERS]))
    assert "no different from the best of real images (random jpeg-50) by probe" in told
    one = [{**each, "values": each["values"][:1], "n": 1} for each in [*MINE, *OTHERS]]
    sentence = next(text for text in verdict(one) if text.startswith("At equal bytes"))
    assert "not tested against the best of real images (random jpeg-50) by probe 5 % labels (+" in sentence
    assert "better" not in sentence and "p =" not in sentence


def test_one_reference_is_no_best_and_many_measurements_are_counted():
    alone = " ".join(verdict([*MINE, *OTHERS[:2]]))
    assert "better than real images (random png) by probe" in alone and "the best of" not in alone
    many = [{**each, "labels": labels} for labels in (0.01, 0.05, 0.1) for each in [*MINE[:1], *OTHERS[::2]]]
    assert verdict(many) == [
        "At equal bytes (98.4 kB) against the best of real images, of 3 measurements: better in 3."
    ]


def test_references_at_equal_bytes_have_no_verdict_of_their_own():
    assert verdicts(RECORDS) == [" ".join(verdict(RECORDS))]
    assert not any("equal bytes" in text for text in verdicts([*MINE, *NONE]))


def test_another_pre_training_of_the_references_is_told():
    others = [{**each, "training": "mixup 0.5, augment <b>flip|*"} for each in OTHERS]
    told = "Real images were pre-trained otherwise than the sets: mixup 0.5, augment bflip."
    for text in (console_table([*MINE, *others]).replace("\n", " "), markdown_table([*MINE, *others])):
        assert told in text
    assert told in verdict([*MINE, *others]) and not any("pre-trained" in text for text in verdict(RECORDS))
    assert "pre-trained otherwise" not in markdown_table(RECORDS)


# --- the plot


def report(folder, records):
    page = render_evaluation(folder, records, [*compare_at_bytes(records), *compare(records, "random")], {}, "")
    return page.read_text(encoding="utf-8")


def budgets(sizes=(100_000, 300_000, 1_000_000, 3_000_000), forms=("png", "jpeg-50", "factor-2")):
    """As many sizes of one set, each beside two kinds of real images in every form."""
    records = [*NONE, *unsized(scored("full", 0.8, 0.1, 0, 0))]
    for place, size in enumerate(sizes):
        level = 0.08 * place
        records += scored(f"krrst-{show_bytes(size).replace(' ', '')}", 0.4 + level, 0.6 - level, 400, size)
        for number, (method, form) in enumerate(itertools.product(("random", "kmeans"), forms)):
            name, skill = f"{method} {form} {show_bytes(size)}", 0.35 + level + 0.01 * number
            records += scored(name, skill, 1.05 - skill, 50, int(0.99 * size), size)
    return records


def drawn(records):
    found = {picture.name: picture for picture in draw_evaluation(records)}
    return found.get("worth against bytes, ssdd_convnet3")


def points(axis):
    return {c[0].get_color() + c[0].get_marker(): c[0] for c in axis.containers}


def test_worth_is_drawn_over_bytes_a_line_for_each_set_and_form():
    records = budgets()
    more = [{**each, "labels": 0.1, "mean": 0.9} for each in records if each["labels"]]
    picture = drawn([*more, *records])
    probe, error = picture.figure.axes
    assert [axis.get_title() for axis in (probe, error)] == ["probe, cifar100, 5 % labels", "teacher_error, cifar100"]
    forms = [f"{method} {form}" for method in ("random", "kmeans") for form in ("png", "jpeg-50", "factor-2")]
    families = ["none", "full", "krrst", *forms]
    (legend,) = picture.figure.legends
    assert sorted(text.get_text().strip() for text in legend.get_texts()) == sorted(families)
    styles = styles_of(families)
    assert len({(style.colour, style.marker) for style in styles.values()}) == len(families)
    for axis, protocol, factor in ((probe, "probe", 100), (error, "teacher_error", 1)):
        lines = points(axis)
        assert len(lines) == 7 and axis.get_xscale() == "log"
        for name, style in styles.items():
            wanted = [r for r in records if r["protocol"] == protocol and r["set"].startswith(name)]
            if name in ("none", "full"):
                (line,) = [line for line in axis.lines if line.get_color() == style.colour]
                assert list(line.get_ydata()) == [factor * wanted[0]["mean"]] * 2
                continue
            line = lines[style.colour + style.marker]
            x, y = np.array([line.get_xdata(), line.get_ydata()], dtype=np.float64)
            np.testing.assert_allclose(x, [r["bytes"] for r in wanted], rtol=0.1)
            np.testing.assert_allclose(y, [factor * r["mean"] for r in wanted])
            assert line.get_linestyle() == (":" if " " in name else "-")
    probe.figure.canvas.draw()
    ticks = [label.get_text() for label in probe.get_xticklabels()]
    assert {"100 kB", "200 kB", "500 kB", "1 MB", "2 MB"} <= {*ticks} and "standard deviation" in picture.caption
    (bars,) = next(c for c in probe.containers if c[0].get_color() == styles["krrst"].colour)[2]
    lengths = [(segment[1, 1] - segment[0, 1]) / 2 for segment in bars.get_segments()]
    np.testing.assert_allclose(lengths, [100 * r["std"] for r in records if r["set"][:5] == "krrst" and r["labels"]])


def test_worth_is_drawn_for_pages_of_text_too():
    records = budgets()
    more = [{**each, "labels": 0.01, "mean": each["mean"] / 2} for each in records if each["labels"]]
    other = [{**each, "student": "other"} for each in records]
    figure = draw_worth([*records, *more, *other])
    few, many = figure.axes
    assert [axis.get_title() for axis in (few, many)] == [f"probe, cifar100, {share} % labels" for share in (1, 5)]
    assert figure.get_size_inches()[0] * figure.get_dpi() == pytest.approx(1600) and len(points(few)) == 7
    for axis, scale in ((few, 50), (many, 100)):
        levels = {round(max(line.get_ydata()), 6) for line in axis.lines}
        best = max(record["mean"] for record in records if record["set"].startswith("krrst") and record["labels"])
        assert round(scale * best, 6) in levels
    # Without several amounts of labels, the error stands beside the accuracy.
    assert [axis.get_title() for axis in draw_worth(records).axes] == [
        *("probe, cifar100, 5 % labels", "teacher_error, cifar100")
    ]
    assert draw_worth([*MINE, *NONE]) is None and draw_worth([]) is None


def test_three_entries_are_drawn_and_equal_bytes_alone_are_not():
    axis = drawn(RECORDS).figure.axes[0]
    assert len(points(axis)) == 3 and axis.get_xlim()[1] / axis.get_xlim()[0] == pytest.approx(10)
    assert drawn([*MINE, *scored("random", 0.5, 0.4, 400, 98_400), *NONE]) is None
    assert drawn(unsized(RECORDS)) is None


def test_the_plot_is_in_the_report_with_its_caption(tmp_path):
    captions = " ".join(Page(report(tmp_path, RECORDS)).texts["figcaption"])
    assert captions.startswith("worth against bytes, ssdd_convnet3") and (tmp_path / "pictures").is_dir()


def test_only_numbers_of_images_and_bytes_are_no_part_of_a_family():
    records = [
        *(*scored("run-1", 0.5, 0.5, 10, 1000), *scored("run-2", 0.6, 0.4, 20, 2000)),
        *(*scored("set-10", 0.5, 0.5, 10, 1100), *scored("set-20", 0.6, 0.4, 20, 2100)),
        *scored("random jpeg-50", 0.4, 0.6, 50, 990, 1000),
    ]
    texts = [text.get_text().strip() for text in drawn(records).figure.legends[0].get_texts()]
    assert sorted(texts) == ["random jpeg-50", "run-1", "run-2", "set"]


def test_references_in_a_form_have_the_colour_of_their_method_and_a_marker_of_their_form():
    styles = styles_of(["distilled", "random png", "random jpeg-50", "kmeans png", "mine"])
    assert {styles[name].colour for name in ("random png", "random jpeg-50")} == {STYLES["random"].colour}
    assert styles["kmeans png"].marker == styles["random png"].marker != styles["random jpeg-50"].marker
    assert len({*styles.values()}) == 5
