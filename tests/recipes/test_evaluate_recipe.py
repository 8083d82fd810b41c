"""The evaluation of sets as a user runs it."""

import json
import re
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from reference.warm import Running, start_two

from ssdd_hub import DistilledSet
from ssdd_hub.evaluation.entries import REFERENCES

RECIPES = Path(__file__).parents[2] / "recipes"
RECIPE, SMOKE = RECIPES / "evaluate.py", RECIPES / "configs" / "smoke.yaml"

TINY = {
    "sets": [],
    "references": list(REFERENCES),
    "protocols": ["teacher_error", "probe", "probe_mkdt", "finetune", "knn", "krr", "kd", "rank"],
    "evaluate": {"seeds": 2, "max_heldout": 30},
    "student_training": {"epochs": 3, "max_steps": 4, "batch_size": 10},
    "probe": {"labels": [20], "draws": 1, "ridges": [0.1], "max_iter": 20},
    "finetune": {"steps": 2, "batch_size": 8, "labels": [20], "augment": "none"},
    "knn": {"neighbours": 5},
    "kd": {"epochs": 1, "max_steps": 2, "batch_size": 10, "augment": "none"},
    "selection": {
        **{"expert_args": {"widths": [4], "norm": "instance"}, "expert_steps": 2, "expert_batch_size": 16},
        "kmeans_iterations": 2,
    },
    "rank": {"variants": [{"name": "ssdd_convnet3", "widths": [width]} for width in (2, 4, 6)]},
    "run": {"threads": 1},
}
FOLDER = "shapes"


@pytest.fixture(scope="module")
def made(launch, tmp_path_factory):
    """A folder of what there is to evaluate: a run, another set like its own, and labelled pictures."""
    folder = tmp_path_factory.mktemp("made")
    small = ["--data.max-images", "100", "--teacher-training.epochs", "1", "--distiller.steps", "2"]
    small += ["--evaluate.seeds", "1", "--student-training.epochs", "2", "--probe.draws", "1", "--seed", "3"]
    launch("distill", "--config", SMOKE, "--output", folder / "smoke", *small)
    distilled = DistilledSet.load(folder / "smoke" / "distilled")
    replace(distilled, targets=-distilled.targets).save(folder / "other" / "distilled")
    random = np.random.default_rng(0)
    for number in range(36):
        path = folder / FOLDER / ("test" if number % 3 == 0 else "train") / "abc"[number % 4 % 3] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (20, 20), dtype=np.uint8)).save(path)
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    return folder


@pytest.fixture(scope="module")
def finished(launch, made, tmp_path_factory):
    """Two sets side by side, by everything there is, on two datasets."""
    arguments = ["--config", made / "tiny.yaml", "--output", tmp_path_factory.mktemp("runs") / "scores"]
    arguments += ["--set", made / "smoke" / "distilled", "--set", made / "other" / "distilled"]
    arguments += ["--datasets", f"source,{FOLDER}", f"--dataset-args.{FOLDER}.name", made / FOLDER]
    launch("evaluate", *arguments)
    return arguments


def read_scores(arguments):
    return json.loads((arguments[arguments.index("--output") + 1] / "scores.json").read_text())


def place(record):
    return tuple(record[key] for key in ("set", "protocol", "target", "student", "metric"))


def without_cost(records):
    """Returns what does not hang on the clock."""
    return [record for record in records if record["protocol"] != "cost" and record["metric"] != "speedup"]


def test_students_of_each_set_see_real_images_in_the_space_that_it_states(launch, made, tmp_path):
    own = made / "smoke" / "distilled"
    distilled = DistilledSet.load(own)
    stated = {**distilled.provenance, "student_pixel_space": {"mean": [0.1], "std": [2.0]}}
    stretched = replace(distilled, provenance=stated).save(tmp_path / "stretched")
    asked = ["--config", made / "tiny.yaml", "--references", "none", "--protocol", "probe,knn", "--output"]

    def values(*places):
        output = tmp_path / f"scores-{len(list(tmp_path.iterdir()))}"
        launch("evaluate", *asked, output, *[word for place in places for word in ("--set", place)])
        records = without_cost(json.loads((output / "scores.json").read_text())["records"])
        names = dict.fromkeys(record["set"] for record in records if record["set"] != "none")
        return [[record["values"] for record in records if record["set"] == name] for name in names]

    first, second = values(own, stretched)
    assert [first] == values(own) and [second] == values(stretched) and first != second


def test_it_tells_first_how_long_the_pre_trainings_take_that_are_left(launch, made, tmp_path, capsys):
    asked = ["--config", made / "tiny.yaml", "--set", made / "smoke" / "distilled", "--output", tmp_path / "scores"]
    asked += ["--references", "none,random", "--protocol", "teacher_error"]
    asked += ["--student-training.epochs", "200", "--student-training.max-steps", "60"]
    launch("evaluate", *asked)
    # Two students on the set, two on random images; those of no pre-training take no time.
    assert re.search(r"pre-training 4 students: about \d+ s, then scoring", capsys.readouterr().out)
    launch("evaluate", *asked)
    assert "pre-training" not in capsys.readouterr().out.split("set  ")[0]


# Everything at once


def test_every_record_has_the_fields_that_others_rely_on(finished):
    scores = read_scores(finished)
    assert scores["records"] and scores["machine"]["processes"] == 1 and "torch" in scores["versions"]
    assert scores["command"].startswith("accelerate launch recipes/evaluate.py")
    assert str(finished[1].parent) not in scores["command"]
    fields = {"set", "protocol", "source", "target", "student", "labels", "metric", "mean", "std", "n", "values"}
    for record in scores["records"]:
        assert fields <= record.keys()
        known = [value for value in record["values"] if value is not None]
        assert len(record["values"]) == 2 and record["n"] == len(known) and record["source"] == "digits"
        if known:
            assert record["mean"] == pytest.approx(np.mean(known))
        if len(known) == 2:
            assert record["std"] == pytest.approx(np.std(known, ddof=1), abs=1e-12)


def test_every_set_is_asked_every_protocol_that_applies_to_it_on_every_dataset(finished):
    found = {}
    for record in read_scores(finished)["records"]:
        if record["student"] == "ssdd_convnet3":
            found.setdefault(record["set"], set()).add((record["protocol"], record["target"]))
    of_networks = {"probe", "probe_mkdt", "knn"}
    plain = {(protocol, target) for protocol in {*of_networks, "finetune"} for target in ("digits", FOLDER)}
    plain |= {("teacher_error", "digits")}
    trained = plain | {(name, target) for name in ("krr", "kd") for target in ("digits", FOLDER)} | {("cost", None)}
    assert found.pop("none") == plain
    assert found.pop("teacher") == {(protocol, target) for protocol in of_networks for target in ("digits", FOLDER)}
    assert found == dict.fromkeys(["smoke", "other", *(set(REFERENCES) - {"none", "teacher"})], trained)


def test_the_architectures_are_ranked_on_every_set_but_the_whole_source(finished):
    records = [record for record in read_scores(finished)["records"] if record["protocol"] == "rank"]
    taus = {record["set"]: record["values"] for record in records if record["metric"] == "tau"}
    assert {"smoke", "other", "random"} <= taus.keys() and "full" not in taus
    assert all(value is None or -1 <= value <= 1 for values in taus.values() for value in values)
    speedups = {record["set"]: record["mean"] for record in records if record["metric"] == "speedup"}
    assert all(value > 0 for value in speedups.values()) and {"smoke", "other", "random"} <= speedups.keys()


def test_sets_of_other_targets_have_other_scores_and_the_same_students(finished):
    errors = {
        record["set"]: record["values"]
        for record in read_scores(finished)["records"]
        if (record["protocol"], record["student"]) == ("teacher_error", "ssdd_convnet3")
    }
    # A student of few steps has learnt little, but from targets of the other sign the opposite.
    assert all(ours < theirs for ours, theirs in zip(errors["smoke"], errors["other"], strict=True))
    assert len({*map(tuple, errors.values())}) == len(errors)


def test_settings_that_are_not_given_are_those_of_the_run_of_the_first_set(finished, made):
    config = yaml.safe_load((finished[3] / "config.yaml").read_text())
    run = yaml.safe_load((made / "smoke" / "config.yaml").read_text())
    assert config["seed"] == run["seed"] == 3 and config["source"] == run["data"]
    assert config["teacher"]["backbone"] == f"local-dir:{made / 'smoke' / 'teacher'}"
    # What is given comes first, and the rest of a section from the run.
    assert config["student_training"]["epochs"] == 3 and run["student_training"]["epochs"] == 2


def test_table_page_and_pictures_show_all_sets(finished):
    output = finished[3]
    table, page = (output / "scores.md").read_text().replace("\\", ""), (output / "report.html").read_text()
    for name in ("smoke", "other", *REFERENCES):
        assert name in table and name in page
    assert FOLDER in table and "<img" in page and "data:image/png;base64" in page
    for name, gallery in (("smoke", "gallery.html"), ("other", "gallery-2.html")):
        assert f"<h1>{name}</h1>" in (output / gallery).read_text()
        assert f"{name}: N" in table.split("| set |")[0] and table.index(f"{name}: N") < table.index("| set |")
    places = [unquote(place) for place in re.findall('<a href="([^"]+)"', page)]
    assert {"scores.json", "scores.md", "gallery.html", "gallery-2.html"} <= {*places}
    cards = [place for place in places if place.endswith("README.md")]
    assert len(cards) == 2 and all((output / place).is_file() for place in places)
    assert "Images of the set smoke" in page and "Images of the reference random" in page
    pictures = list((output / "pictures").glob("*.png"))
    assert pictures and all(path.read_bytes().startswith(b"\x89PNG") for path in pictures)


@pytest.mark.slow  # Other settings in the same folder, below, find what is measured too.
def test_started_again_it_measures_nothing_and_writes_the_same_records(finished, launch, monkeypatch):
    def files():
        names = ("scores", "references", "features")
        return {path: path.stat().st_mtime_ns for name in names for path in (finished[3] / name).rglob("*.*")}

    before, measured = read_scores(finished)["records"], files()
    table = (finished[3] / "scores.md").read_bytes()
    monkeypatch.setattr(
        "ssdd_hub.evaluation.evaluation.fit_student", lambda *arguments: pytest.fail("a student is trained")
    )
    monkeypatch.setattr("ssdd_hub.evaluation.entries.select", lambda *arguments: pytest.fail("images are selected"))
    launch("evaluate", *finished)
    assert json.dumps(read_scores(finished)["records"]) == json.dumps(before)
    assert (finished[3] / "scores.md").read_bytes() == table and files() == measured and measured


def test_other_settings_go_on_in_the_same_folder_with_what_is_measured(finished, launch, monkeypatch):
    before = read_scores(finished)["records"]
    monkeypatch.setattr(
        "ssdd_hub.evaluation.evaluation.fit_student", lambda *arguments: pytest.fail("a student is trained")
    )
    part = ["--references", "random,none", "--protocol", "knn,probe", "--evaluate.seeds", "1", "--datasets", "source"]
    launch("evaluate", *finished, *part)
    records = read_scores(finished)["records"]
    whole = {place(record): record for record in before}
    assert {record["set"] for record in records} == {"smoke", "other", "random", "none"}
    for record in records:
        assert record["values"] == whole[place(record)]["values"][:1]


# Interrupted

PART = ["--references", "none,random", "--protocol", "teacher_error,probe,knn", "--evaluate.seeds", "4"]
# Long enough that there is a middle.
PART += ["--student-training.epochs", "200", "--student-training.max-steps", "60"]


@pytest.fixture(scope="module")
def unbroken(launch, made, tmp_path_factory):
    arguments = ["--config", made / "tiny.yaml", "--set", made / "smoke" / "distilled", *PART]
    output = ["--output", tmp_path_factory.mktemp("runs") / "whole"]
    launch("evaluate", *arguments, *output)
    return arguments, read_scores(output)["records"]


@pytest.mark.slow
def test_an_evaluation_killed_with_kill_9_goes_on_to_the_same_table(unbroken, launch, kill_when, tmp_path):
    arguments, expected = unbroken
    arguments, cells = [*arguments, "--output", tmp_path / "broken"], tmp_path / "broken" / "scores"
    kill_when(Running(RECIPE, *arguments), lambda: len(list(cells.glob("*.json"))) >= 9)
    kept = {path: path.read_bytes() for path in cells.glob("*.json")}
    assert any(b'"seconds"' in content for content in kept.values())
    assert not (tmp_path / "broken" / "scores.json").exists()
    launch("evaluate", *arguments)
    records = read_scores(arguments)["records"]
    assert without_cost(records) == without_cost(expected)
    assert [without_values(record) for record in records] == [without_values(record) for record in expected]
    assert {path: path.read_bytes() for path in kept} == kept
    shown = [value for record in records if record["metric"] == "seconds" for value in record["values"]]
    for content in map(json.loads, kept.values()):
        assert {measure["value"] for measure in content["measures"] if measure["metric"] == "seconds"} <= {*shown}


def without_values(record):
    return {**record, "mean": 0, "std": 0, "values": 0}


@pytest.mark.slow
def test_two_processes_measure_what_one_does(unbroken, tmp_path):
    arguments, expected = unbroken
    arguments = [*arguments, "--output", tmp_path / "two"]
    for process in start_two(RECIPE, *arguments):
        process.finish()
    for ours, theirs in zip(without_cost(read_scores(arguments)["records"]), without_cost(expected), strict=True):
        assert without_values(ours) == without_values(theirs)
        assert ours["values"] == pytest.approx(theirs["values"], rel=1e-5)


# Sets of other code


@pytest.fixture
def foreign(tmp_path):
    folder = tmp_path / "synthetic"
    folder.mkdir()
    drawn = torch.Generator().manual_seed(0)
    torch.save(torch.rand(12, 1, 16, 16, generator=drawn), folder / "x_syn.pt")
    torch.save(torch.randn(12, 8, generator=drawn), folder / "y_syn.pt")
    return folder


QUICK = ["--evaluate.seeds", "1", "--student-training.max-steps", "1", "--probe.labels", "[0.5]", "--probe.draws", "1"]


def test_a_pair_of_tensors_is_evaluated_as_it_is(foreign, made, launch, tmp_path):
    arguments = ["--set", foreign, "--references", "none", "--datasets", made / FOLDER, "--protocols", "probe,knn"]
    arguments += [*QUICK, "--output", tmp_path / "run"]
    launch("evaluate", *arguments)
    records = read_scores(arguments)["records"]
    found = {(record["set"], record["protocol"], record["target"], record["source"]) for record in records}
    assert found - {("distilled", "cost", None, None)} == {
        (name, protocol, FOLDER, None) for name in ("distilled", "none") for protocol in ("probe", "knn")
    }
    values = [record["values"] for record in records if record["protocol"] in ("probe", "knn")]
    assert all(0 <= value <= 1 for (value,) in values)


# Bad input

# Arguments, what the message must say. `{made}` is the folder of `made`, `{tmp}` one that holds `synthetic`.
CASES = {
    "unknown reference": (["--references", "none,kmedians"], ["references must be some of", "got 'kmedians'"]),
    "unknown protocol": (["--protocol", "probe,vibes"], ["protocols must be some of", "got 'vibes'"]),
    "unknown student": (["--students", "own,ssdd_convnet9"], ["ssdd_convnet9", "ssdd_convnet3"]),
    "student too deep": (
        ["--students", "ssdd_convnet3", "--student-args.ssdd_convnet3.widths", "[4, 4, 4, 4, 4]"],
        ["at least 32 pixels", "got 16"],
    ),
    "set absent": (["--set", "./no/such/set"], ["no/such/set"]),
    "set that is no set": (["--set", "{made}/shapes"], ["shapes"]),
    "the same set twice": (["--set", "{made}/smoke/distilled"], ["sets must differ from each other"]),
    "sets of two shapes": (["--set", "{tmp}/synthetic"], ["one size and targets of one width", "1x16x16, 8"]),
    "references without a source": (
        ["--source.name", "none", "--datasets", "{made}/shapes", "--protocol", "probe"],
        ["references", "--source.name", "--teacher.backbone", "--references none"],
    ),
    "references without a teacher": (["--teacher.backbone", "none", "--protocol", "probe"], ["--teacher.backbone"]),
    "target absent": (["--datasets", "./no/folder"], ["./no/folder"]),
    "target without labels": (["--datasets", "{tmp}/plain"], ["no labels", "label_column"]),
    "unknown setting of a target": (
        ["--datasets", "shapes", "--dataset-args.shapes", "{{name: {made}/shapes, colour: red}}"],
        ["colour"],
    ),
    "two datasets of one name": (
        ["--datasets", "{made}/shapes,other/shapes"],
        ["last part of their names", "shapes is there twice", "--dataset-args.OTHER.name"],
    ),
    "views of a set without": (
        ["--student-training.augment", "views", "--references", "none", "--protocol", "probe"],
        ["distilled has none", "ssdd_hub.add_views", "--student-training.augment"],
    ),
    "references in views beside a set without": (
        ["--reference-training.augment", "views", "--references", "random", "--protocol", "probe"],
        ["distilled has none", "ssdd_hub.add_views"],
    ),
    "labels in views that references lack": (
        ["--student-training.augment", "views", "--reference-training.augment", "flip", "--references", "random"]
        + ["--protocol", "accuracy"],
        ["accuracy.augment own is that of the sets, views", "--accuracy.augment"],
    ),
    "no data": (["--source.name", "none", "--references", "none"], ["nothing to measure on", "--datasets"]),
    "too few architectures": (["--rank.variants", "[]"], ["rank.variants must be at least 3"]),
    "several mistakes at once": (
        [
            "--references",
            "best",
            "--protocol",
            "vibes",
            "--datasets",
            "[]",
            "--seeds",
            "3",
            "--student-training.augment",
            "zoom",
        ]
        + ["--evaluate.seeds", "0", "--student-args.x.y", "1"],
        [
            "got 'best'",
            "got 'vibes'",
            "datasets must name at least one dataset",
            "student_training.augment must be one of",
            "lack ['x']",
        ]
        + ["evaluate.seeds must be at least 1", "seeds is not a setting"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_ends_with_a_message_and_writes_nothing(case, made, foreign, refuse, tmp_path):
    for part in ("train", "test"):
        (tmp_path / "plain" / part).mkdir(parents=True)
        Image.new("L", (16, 16), 200).save(tmp_path / "plain" / part / "0.png")
    arguments, expected = CASES[case]
    arguments = [argument.format(made=made, tmp=tmp_path) for argument in arguments]
    given = ["--config", made / "tiny.yaml", "--set", made / "smoke" / "distilled", "--output", tmp_path / "run"]
    refuse(expected, "evaluate", *given, *arguments)
    assert not (tmp_path / "run").exists()


def test_the_folder_of_another_recipe_is_left_alone(made, refuse):
    before = (made / "smoke" / "config.yaml").read_bytes()
    given = ["--config", made / "tiny.yaml", "--set", made / "smoke" / "distilled", "--output", made / "smoke"]
    refuse(["choose another --output"], "evaluate", *given)
    assert (made / "smoke" / "config.yaml").read_bytes() == before
