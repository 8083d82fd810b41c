"""A comparison of methods as a user runs it: sets, scores, table, page; failures; kills."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from reference.warm import Running

import compare_methods
from ssdd_hub import DistilledSet
from ssdd_hub.errors import InputError
from studies import methods_jobs
from studies.methods_jobs import Layers
from studies.methods_table import Page, join_scores

RECIPE = Path(__file__).parents[2] / "recipes" / "compare_methods.py"
TINY = {
    "methods": {"dm": {"config": None, "method": {"name": "dm", "args": {"real_images": 8}}}, "rfad": {}},
    "distill": {
        "data": {"name": "digits", "max_images": 120, "image_size": None, "mode": "auto", "label_column": "auto"},
        "targets": {"of": "labels", "transform": "none", "dim": None},
        "student": {"name": "ssdd_convnet3", "model_args": {"widths": [4, 4], "norm": "instance"}},
        "distiller": {"steps": 3, "batch_size": 16},
        "student_training": {"steps": 2},
        "accuracy": {"epochs": 2},
        "evaluate": {"seeds": 1, "max_heldout": 30},
        "probe": {"labels": [20], "draws": 1},
    },
    "budgets": {"ten": {"distiller": {"num_images": 10}}},
    "evaluations": {
        "alone": {
            "references": ["random"],
            "protocols": ["accuracy"],
            "accuracy": {"epochs": 40, "learning_rate": 0.05},
            "evaluate": {"seeds": 2, "max_heldout": 40},
        }
    },
    "seeds": 1,
}
MARKS = "<!-- methods: tiny -->", "<!-- end of methods: tiny -->"


def run_warm(command, stdout, stderr, env, stdin):
    """Runs a recipe in a process that need not import the packages, as `subprocess.run` would in a fresh one."""
    assert command[0] == sys.executable and env[methods_jobs.LAUNCHER] == str(os.getpid())
    status, printed, errors = Running(*command[1:]).wait(timeout=900)
    stdout.write((printed + errors).encode())
    return subprocess.CompletedProcess(command, status)


def write_config(folder, **changed):
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump({**TINY, "output": str(folder / "run"), **changed}))
    return path


def test_a_table_is_made_of_scores_and_of_failures_and_a_second_call_repeats_only_what_failed(
    launch, refuse, tmp_path, monkeypatch, capsys
):
    page = tmp_path / "page.md"
    page.write_bytes(f"# By hand\r\n\nbefore\n{MARKS[0]}\nwritten before\n{MARKS[1]}\nafter ± by hand\n".encode())
    started = []
    monkeypatch.setattr(
        methods_jobs.subprocess, "run", lambda *args, **how: started.append(1) or run_warm(*args, **how)
    )
    methods = {**TINY["methods"], "many": {"config": None, "distiller": {"num_images": 500}}}
    arguments = ["--config", write_config(tmp_path, methods=methods), "--page", page, "--name", "tiny"]
    with pytest.raises(SystemExit) as ended:
        launch("compare_methods", *arguments)
    assert ended.value.code == 1 and len(started) == 4
    run = tmp_path / "run"
    scores = json.loads((run / "evaluations" / "alone-0" / "scores.json").read_text())["records"]
    means = {record["set"]: record for record in scores if record["protocol"] == "accuracy"}
    text = page.read_bytes().decode()
    block = text.split(MARKS[0])[1].split(MARKS[1])[0]
    assert text.startswith(f"# By hand\r\n\nbefore\n{MARKS[0]}\n") and text.endswith(f"{MARKS[1]}\nafter ± by hand\n")
    assert "written before" not in block and block.strip() == (run / "table.md").read_text().strip()
    for name, record in zip(
        ("dm", "rfad", "random"), (means["dm-ten"], means["rfad-ten"], means["random"]), strict=True
    ):
        row = next(line for line in block.splitlines() if line.startswith(f"| {name} |"))
        assert f"{100 * record['mean']:.1f} ± {100 * record['std']:.1f}" in row
    assert "accuracy, against random ↑" in block and "paired t-test" in block
    assert re.search(r"\*\*Failed:\*\* .*many.*500 distilled images", block)
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    # Sets are made side by side, and end in any order.
    assert sorted((entry["stage"], bool(entry.get("failed"))) for entry in log) == sorted(
        [*(("estimate", False), ("distill", False), ("distill", False), ("distill", True), ("evaluate", False))]
    )
    printed = capsys.readouterr().out
    assert "estimate of what is left" in printed
    assert not re.search(r"(dm|rfad), ten cannot be timed", printed)
    # The set of a method depends on its own settings alone, and so is kept.
    launch("compare_methods", "--config", write_config(tmp_path), "--page", page, "--name", "tiny")
    assert len(started) == 4 and "Failed" not in page.read_text()
    # Other settings of a method whose set is there would never be made, and are refused before the page is touched.
    changed = {**TINY["methods"], "rfad": {"distiller": {"steps": 4}}}
    before = page.read_bytes()
    words = ["rfad, ten", "holds a run with other settings", "distiller.steps: 3 there, 4 now"]
    refuse(
        words, "compare_methods", "--config", write_config(tmp_path, methods=changed), "--page", page, "--name", "tiny"
    )
    assert page.read_bytes() == before and len(started) == 4


def test_a_row_without_a_file_is_the_method_of_its_name_and_unknown_names_are_refused(refuse, tmp_path):
    def methods(**rows):
        config = compare_methods.CompareConfig(**{**TINY, "methods": rows, "output": str(tmp_path / "run")})
        return {plan.method: settings.method.name for plan, settings in Layers(config).check()[0].items()}

    args = {"method": {"args": {"unroll": 5}}}
    own = {"config": None, "method": {"name": "dm"}}
    rows = {"mtt": args, "tesla": {}, "mkdt": {"config": "mkdt_cifar100"}, "rfad": {"config": None}, "mine": own}
    expected = {"mtt": "mtt", "tesla": "tesla", "mkdt": "mkdt", "rfad": "rfad", "mine": "dm"}
    assert methods(**rows, boost={}, short={"config": None}) == {**expected, "boost": "krr_st", "short": "krr_st"}
    wanted = ["dmm, ten: methods must be named after a file", "got 'dmm'"]
    refuse(wanted, "compare_methods", "--config", write_config(tmp_path, methods={"dmm": {}}))


def test_all_mistakes_are_told_before_anything_is_written(refuse, tmp_path):
    broken = {
        "methods": {"dm": {"distiller": {"stepps": 3}}, "mkdt": {"config": "mkdt_cifar100", "pool": {"size": 0}}},
        "evaluations": {"alone": {"protocols": ["no"]}},
    }
    words = ["dm, ten: distiller.stepps", "mkdt, ten: pool.size must be at least 1", "evaluations, alone: protocols"]
    refuse(words, "compare_methods", "--config", write_config(tmp_path, **broken))
    refuse(["page", "<!-- methods: x -->", "add them"], "compare_methods", "--page", RECIPE, "--name", "x")
    unready = {"distill": {**TINY["distill"], "targets": {"of": "teacher"}}}
    refuse(["one teacher"], "compare_methods", "--config", write_config(tmp_path, **unready))
    refuse(["no reference"], "compare_methods", "--methods", "{random: {}}")
    refuse(["must be letters"], "compare_methods", "--budgets", "{../up: {}}")
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]


def test_scores_of_several_sets_become_one_over_sets():
    def record(name, values, **more):
        mean = sum(values) / len(values)
        return {
            **{"set": name, "protocol": "accuracy", "target": "a", "student": "s", "use": "none", "labels": None},
            **{"metric": "accuracy", "mean": mean, "std": 0.1, "n": len(values), "values": values, **more},
        }

    scored = {
        0: [record("dm", [0.1, 0.3], bytes=100, images=10), record("random", [0.0, 0.2])],
        1: [record("dm", [0.4, 0.6], bytes=103, images=10), record("random", [0.2, 0.2])],
        2: [record("random", [0.5, 0.1])],
    }
    dm, random = join_scores(scored)
    assert dm["values"] == [pytest.approx(0.2), pytest.approx(0.5), None] and dm["n"] == 2
    assert dm["mean"] == pytest.approx(0.35) and dm["std"] == pytest.approx(0.3 / 2**0.5)
    assert dm["within"] == pytest.approx(0.1) and dm["students"] == 2 and (dm["bytes"], dm["images"]) == (102, 10)
    assert random["values"] == pytest.approx([0.1, 0.2, 0.3])
    (only,) = join_scores({0: [record("dm", [0.1, 0.3])]})
    assert only["values"] == [0.1, 0.3] and "within" not in only


@pytest.mark.parametrize("text", ["", "".join(MARKS) + MARKS[0], MARKS[1] + MARKS[0]])
def test_a_page_without_its_marks_once_and_in_order_is_refused(tmp_path, text):
    (tmp_path / "page.md").write_text(text)
    with pytest.raises(InputError, match="once each"):
        Page.find(str(tmp_path / "page.md"), "tiny")


def descendants(pid):
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(line) for line in found.stdout.split()]


@pytest.mark.slow
def test_a_comparison_that_is_killed_takes_its_process_along_and_ends_with_the_same_sets(tmp_path):
    methods = {"dm": {**TINY["methods"]["dm"], "distiller": {"steps": 60}}, "rfad": {}}
    sets = {}
    for name in ("whole", "killed"):
        folder = tmp_path / name
        folder.mkdir()
        config = write_config(folder, methods=methods)
        command = [sys.executable, RECIPE, "--config", config, "--run.threads", "1"]
        log = folder / "run" / "sets" / "0" / "dm-ten" / "log.jsonl"
        if name == "killed":
            with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
                while not log.exists() and process.poll() is None:
                    time.sleep(0.05)
                children = descendants(process.pid)
                process.send_signal(signal.SIGKILL)
            assert children and process.returncode == -signal.SIGKILL
            deadline = time.monotonic() + 60
            while any(Path(f"/proc/{child}/cmdline").exists() for child in children) and time.monotonic() < deadline:
                time.sleep(0.1)
            assert not any(Path(f"/proc/{child}/cmdline").exists() for child in children)
            assert not (folder / "run" / "table.md").exists()
        subprocess.run(command, check=True, capture_output=True)
        made = [DistilledSet.load(folder / "run" / "sets" / "0" / f"{each}-ten" / "distilled") for each in methods]
        sets[name] = [each.images.sum().item() for each in made], (folder / "run" / "table.md").read_text()
    assert sets["whole"] == sets["killed"]
