"""The recipe as a user launches it."""

import html
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import torch
import yaml
from reference.warm import Running
from safetensors.torch import load_file
from torch.nn import functional

from ssdd_hub import DistilledSet
from ssdd_hub.data import DataSettings, load_images
from ssdd_hub.results.verdict import verdict
from ssdd_hub.runs.checkpoints import load_tree
from ssdd_hub.teachers.teacher import build_teacher
from ssdd_hub.text import show_bytes

ROOT = Path(__file__).parents[2]
RECIPE, SMOKE = ROOT / "recipes" / "distill.py", ROOT / "recipes" / "configs" / "smoke.yaml"
SHARED = ROOT.parent / "shared" / "data"


def start(output, *overrides, script=RECIPE):
    return Running(script, "--config", SMOKE, "--output", output, *overrides)


def launch(output, *overrides, launcher):
    """Runs the recipe in a fresh interpreter, through a launcher."""
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", *launcher, str(RECIPE), "--config", str(SMOKE), "--output", str(output)]
    command += overrides
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def verdict_of(output):
    """Returns the verdict on a run's set in one line."""
    return " ".join(verdict(json.loads((output / "scores.json").read_text())["records"]))


def without_cost(records):
    """Returns what does not hang on the clock."""
    return [record for record in records if record["protocol"] != "cost"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A whole run and what it printed."""
    output = tmp_path_factory.mktemp("runs") / "smoke"
    return output, launch(output, launcher=("accelerate.commands.launch", "--cpu", "--num_processes", "1"))


def test_the_run_folder_is_complete(finished):
    output, _ = finished
    files = ("config.yaml", "log.jsonl", "report.html", "gallery.html", "scores.json", "teacher/model.safetensors")
    for name in files:
        assert (output / name).stat().st_size > 0
    for name in ("images", "loss", "scores", "classes"):
        assert (output / "pictures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in sorted((output / "checkpoints" / "distiller").iterdir())] == [
        "step-00000008.safetensors",
        "step-00000012.safetensors",
    ]
    assert not [path for path in output.rglob("*") if path.suffix in (".pt", ".pkl", ".bin") or "tmp" in path.name]


def test_the_settings_are_in_a_file_and_its_path_on_the_screen(finished):
    output, printed = finished
    assert printed.splitlines()[0] == f"settings: {output / 'config.yaml'}" and len(printed.splitlines()) < 20
    assert yaml.safe_load((output / "config.yaml").read_text())["output"] == str(output)


def test_load_dataset_reads_the_distilled_set(finished, tmp_path):
    output, _ = finished
    rows = datasets.load_dataset(str(output / "distilled"), split="train", cache_dir=str(tmp_path))
    assert rows.column_names == ["id", "image", "pixels", "target"]
    distilled = DistilledSet.load(output / "distilled")
    columns = rows.select_columns(["pixels", "target"]).with_format("torch")[:]
    state = load_tree(output / "checkpoints" / "distiller" / "step-00000012.safetensors")["distiller"]
    for images in (columns["pixels"], state["parameterisation"]["images"]):
        assert torch.equal(images, distilled.images)
    assert torch.equal(columns["target"], distilled.targets)
    assert distilled.images.shape == (20, 1, 16, 16) and distilled.targets.shape == (20, 16 * 4 * 4)


def test_the_set_tells_its_origin_and_the_run_keeps_the_starts_beside_it(finished):
    output, printed = finished
    distilled = DistilledSet.load(output / "distilled")
    settings = distilled.provenance["settings"]
    images, _ = load_images(DataSettings(**settings["data"]), settings["seed"])
    start, similarity = (distilled.provenance[name] for name in ("start", "similarity"))
    starts = load_file(output / "starts.safetensors")["starts"]
    assert start["init"] == "random" and torch.equal(starts, images.pixels[start["indices"]])
    assert similarity["nearest"]["of"] == similarity["start"]["of"] == 20
    assert similarity["nearest"]["median"] >= similarity["start"]["median"] > 0.5
    card, page = ((output / name).read_text() for name in ("distilled/README.md", "gallery.html"))
    assert "## Origin and privacy" in card and "where a person sees the same picture" in card
    assert page.count('class="tile start"') == 20 and "gallery.html" in printed.splitlines()[-1]
    assert not [path for path in (output / "distilled").rglob("*") if "starts" in path.name]


def test_the_verdict_stands_above_the_table_everywhere(finished):
    output, printed = finished
    told, table, places = printed[printed.index(verdict_of(output)[:30]) :].split("\n\n")
    assert " ".join(told.split()) == verdict_of(output) and "chance is 10 %" in verdict_of(output)
    head, _, first, *_ = table.splitlines()
    assert head.split() == ["set", "images", "bytes", "teacher_error", "probe", "20", "labels"]
    size = sum(DistilledSet.load(output / "distilled").num_bytes().values())
    assert first.split()[:4] == ["distilled", "20", *show_bytes(size).split()]
    assert places.startswith(f"In {output} after") and max(map(len, f"{told}\n{table}".splitlines())) <= 100
    for name in ("report.html", "gallery.html", "distilled/README.md"):
        assert verdict_of(output) in html.unescape((output / name).read_text())


def test_the_log_and_the_scores_hold_what_was_printed(finished):
    output, printed = finished
    log = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    heldout = [record for record in log if record["stage"] == "heldout"]
    assert [heldout[0]["step"], heldout[-1]["step"]] == [0, 12]
    assert all(0 < record["error"] < 10 and record["images"] >= 20 for record in heldout)
    stages = [record["stage"] for record in log if record["stage"] != "heldout"]
    assert stages == sorted(stages, key=["teacher", "pool", "distill"].index)
    losses = [record["loss"] for record in log if record["stage"] == "distill"]
    assert len(losses) == 12
    assert all(0 < loss < 10 for loss in losses)
    scores = json.loads((output / "scores.json").read_text())
    assert {(record["set"], record["protocol"]) for record in scores["records"]} == {
        *((name, protocol) for name in ("distilled", "random", "none") for protocol in ("teacher_error", "probe")),
        *((name, "cost") for name in ("distilled", "random")),
    }
    for record in without_cost(scores["records"]):
        assert (record["n"], len(record["values"])) == (2, 2)
        shown = 100 * record["mean"] if record["metric"] == "accuracy" else record["mean"]
        assert f"{shown:.1f}" in printed or f"{shown:.4f}" in printed
    assert scores["command"].startswith("accelerate launch recipes/distill.py")
    assert scores["machine"]["processes"] == 1


def test_the_scores_are_known_by_class_in_one_line_each_and_the_set_is_not_burdened_with_them(finished):
    output, _ = finished
    text = (output / "scores.json").read_text()
    by_class = json.loads(text)["by_class"]
    assert by_class["classes"]["digits"]["names"] == list("0123456789")
    assert 0 < sum(by_class["classes"]["digits"]["images"]) <= 400
    assert [(each["set"], each["n"], len(each["mean"])) for each in by_class["records"]] == [
        *(("distilled", 2, 10), ("random", 2, 10), ("none", 2, 10))
    ]
    assert f'"mean": {json.dumps(by_class["records"][0]["mean"])}' in text
    for path in (output / "distilled").rglob("*.*"):
        assert b"by_class" not in path.read_bytes()


def test_the_report_points_to_what_lies_beside_it(finished):
    output, _ = finished
    places = re.findall('<a href="([^"]+)"', (output / "report.html").read_text())
    assert places == ["gallery.html", "distilled/README.md", "scores.json", "log.jsonl"]
    assert all((output / place).is_file() for place in places)


def test_provenance_says_how_the_set_was_made(finished):
    output, _ = finished
    provenance = DistilledSet.load(output / "distilled").provenance
    teacher = build_teacher(f"local-dir:{output / 'teacher'}")
    assert provenance["teacher"]["weights_sha256"] == teacher.weights_sha256()
    assert provenance["teacher"]["feature_dim"] == teacher.feature_dim and provenance["license"] == "cc-by-4.0"
    assert provenance["scores"] == json.loads((output / "scores.json").read_text())["records"]
    assert provenance["settings"]["distiller"]["steps"] == 12
    assert str(output) not in json.dumps(provenance["settings"])


@pytest.mark.slow
def test_the_stored_config_runs_the_same_again(finished, tmp_path):
    output, _ = finished
    config = yaml.safe_load((output / "config.yaml").read_text())
    del config["output"]
    again = tmp_path / "again.yaml"
    again.write_text(yaml.safe_dump(config))
    start(tmp_path / "run", "--config", again).finish()
    assert (tmp_path / "run" / "log.jsonl").read_bytes() == (output / "log.jsonl").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("after", ["checkpoints/teacher/step-00000004.safetensors", "checkpoints/distiller"])
def test_a_run_killed_with_kill_9_goes_on_to_the_same_bytes(finished, kill_when, tmp_path, after):
    output, _ = finished
    kill_when(start(tmp_path / "run"), (tmp_path / "run" / after).exists)
    assert not (tmp_path / "run" / "scores.json").exists(), "the run was over before it was killed"
    start(tmp_path / "run").finish()
    for name in ("log.jsonl", "teacher/model.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (output / name).read_bytes()
    ours, theirs = (DistilledSet.load(folder / "distilled") for folder in (tmp_path / "run", output))
    assert torch.equal(ours.images, theirs.images)
    assert torch.equal(ours.targets, theirs.targets)
    assert without_cost(ours.provenance["scores"]) == without_cost(theirs.provenance["scores"])


@pytest.mark.parametrize("interrupts", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_a_run_interrupted_at_any_moment_goes_on_to_the_same_bytes(finished, tmp_path, interrupts):
    output, _ = finished
    draw, seldom = random.Random(interrupts), ["--run.checkpoint-every", "10000"]
    seldom += ["--teacher-training.checkpoint-every", "10000"]
    for _ in range(interrupts):
        running = start(tmp_path / "run", *seldom)
        running.process.join(draw.uniform(1, 6))
        if running.process.is_alive():
            os.kill(running.process.pid, signal.SIGINT)
        status, _, errors = running.wait()
        # Before the recipe begins, Python itself is interrupted.
        assert status in (0, 1, 130) and ("the same command goes on" in errors or status != 130), errors
    start(tmp_path / "run", *seldom).finish()
    for name in ("log.jsonl", "teacher/model.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (output / name).read_bytes()
    ours, theirs = (DistilledSet.load(folder / "distilled") for folder in (tmp_path / "run", output))
    assert torch.equal(ours.images, theirs.images) and torch.equal(ours.targets, theirs.targets)


def test_a_ready_made_teacher_and_fixed_views_and_raw_pixels_work(finished, tmp_path):
    backbone = f"local-dir:{finished[0] / 'teacher'}"
    overrides = ["--teacher.backbone", backbone, "--teacher.pretrained", "--teacher.model-args", "{}"]
    overrides += ["--distiller.augment", "true", "--targets.views", "2", "--distiller.pixel-space", "raw"]
    overrides += ["--pool.renewal", "never-train", "--distiller.micro-batch", "7"]
    overrides += ["--targets.transform", "pca", "--targets.dim", "7", "--targets.dtype", "float16"]
    start(tmp_path / "run", *overrides, "--distiller.steps", "4", "--student-training.epochs", "2").finish()
    distilled = DistilledSet.load(tmp_path / "run" / "distilled")
    provenance = distilled.provenance
    assert distilled.pixel_space.mean == (0.0,) and provenance["student_pixel_space"]["mean"][0] > 0.2
    # The source images, the held-out ones, and two views.
    assert len(list((tmp_path / "run" / "features").iterdir())) == 4
    assert distilled.targets.shape == (20, 7) and provenance["target_transform"]["dim"] == 7
    assert distilled.target_transform.inverse(distilled.targets).shape == (20, build_teacher(backbone).feature_dim)
    recorded = provenance["target_features"]
    assert recorded["dtype"] == "float16" and 1e-5 < recorded["rounding_error"] < 2**-11


@pytest.mark.slow
def test_two_processes_distil_and_score_what_one_does(finished, tmp_path):
    output, _ = finished
    overrides = ["--teacher.backbone", f"local-dir:{output / 'teacher'}", "--teacher.pretrained"]
    overrides += ["--teacher.model-args", "{}", "--distiller.precision", "float64"]
    torchrun = ("torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    start(tmp_path / "one", *overrides).finish()
    launch(tmp_path / "two", *overrides, launcher=torchrun)
    one, two = (DistilledSet.load(tmp_path / name / "distilled") for name in ("one", "two"))
    torch.testing.assert_close(two.images, one.images, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(two.targets, one.targets, rtol=1e-6, atol=1e-6)
    assert two.provenance["hardware"]["processes"] == 2
    for ours, theirs in zip(*(without_cost(found.provenance["scores"]) for found in (two, one)), strict=True):
        assert ours["values"] == pytest.approx(theirs["values"], rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cifar100-mini", "caltech101-32", "stanford-cars-32"])
def test_real_image_folders_go_through_the_whole_recipe_by_one_override(tmp_path, name):
    if not (SHARED / name).exists():
        pytest.skip(f"the images of {name} are not beside this clone")
    start(tmp_path / "run", "--data.name", SHARED / name).finish()
    distilled = DistilledSet.load(tmp_path / "run" / "distilled")
    assert distilled.images.shape == (20, 3, 32, 32)
    assert distilled.provenance["source"]["name"] == name


# What another package offers

POINTS = """
[ssdd_hub.methods]
mean_match = toy_method:MeanMatch
[ssdd_hub.parameterisations]
tiles = toy_parameterisation:Tiles
"""


@pytest.fixture
def script(tmp_path):
    """The recipe where a package with the toys is installed: all that stands beside the script."""
    info = tmp_path / "toys-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toys\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(POINTS)
    for name in ("toy_method.py", "toy_parameterisation.py"):
        shutil.copy(ROOT / "tests" / "distill" / name, tmp_path)
    started = tmp_path / "distill.py"
    started.write_text(f"import runpy\n\nrunpy.run_path({str(RECIPE)!r}, run_name='__main__')\n")
    return started


def test_a_method_and_a_parameterisation_of_another_package_distil(script, tmp_path):
    given = ["--method", "mean_match", "--method.args", "{weight: 0.5}", "--init", "kmeans"]
    given += ["--parameterisation", "tiles", "--parameterisation.args", "{factor: 2}"]
    start(tmp_path / "run", *given, script=script).finish()
    distilled = DistilledSet.load(tmp_path / "run" / "distilled")
    assert distilled.images.shape == (20, 1, 16, 16)
    tiles = functional.avg_pool2d(distilled.images, 2)
    assert functional.interpolate(tiles, scale_factor=2.0).allclose(distilled.images, atol=1e-6)
    settings = distilled.provenance["settings"]
    assert distilled.provenance["method"] == "mean-match" and settings["init"] == "kmeans"
    assert settings["method"] == {"name": "mean_match", "args": {"weight": 0.5}}
    assert settings["parameterisation"] == {"name": "tiles", "args": {"factor": 2}}
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert len([record for record in log if record["stage"] == "distill"]) == 12
    status, printed, errors = start(tmp_path / "new", "--method", "mean", script=script).wait()
    assert status == 2 and printed == "" and not (tmp_path / "new").exists()
    assert "method 'mean' is unknown: use one of clp_dd, " in errors and "; the nearest is mean_match" in errors
