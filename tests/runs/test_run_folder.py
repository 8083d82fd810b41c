import json
import os
import shutil
from dataclasses import dataclass, field
from typing import ClassVar

import pytest
import yaml

from ssdd_hub.errors import InputError, SettingsError
from ssdd_hub.runs.folder import RunFolder, RunLog
from ssdd_hub.runs.lock import LOCK_FILE, LOCK_FILES
from ssdd_hub.runs.own_runs import is_own_run, remember_run
from ssdd_hub.runs.run_settings import RunSettings

CONFIG = {
    "data": {"name": "digits", "image_size": 16, "channels": None},
    "distiller": {"lr_images": 1e-4, "steps": 10, "widths": [1, 2]},
    "evaluate": {"seeds": 5},
    "student_training": {"epochs": 100},
    "probe": {"labels": [10]},
    "run": {"log_every": 50, "mixed_precision": "no"},
    "seed": 0,
    "output": "runs/a",
}


def changed(**sections):
    inside = {
        name: {**CONFIG[name], **value} for name, value in sections.items() if isinstance(CONFIG.get(name), dict)
    }
    return {**CONFIG, **sections, **inside}


def begin(path, config=CONFIG):
    run = RunFolder(path, config)
    run.start()
    return run


# The folder


PLACES = [
    "log.jsonl",
    "scores.json",
    "scores/a.json",
    "cells/a.json",
    "features/a/index.json",
    "references/a/ssdd_hub.json",
]
PLACES += ["checkpoints/distiller/step-1.safetensors", "distilled/data/a.parquet", "teacher/model.safetensors"]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", ["fifo", "link"])
def test_what_is_no_plain_file_in_the_folder_of_a_run_is_refused_by_name(tmp_path, place, kind):
    begin(tmp_path / "run")
    path = tmp_path / "run" / place
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "fifo":
        os.mkfifo(path)
    else:
        (tmp_path / "file").write_text("")
        path.symlink_to(tmp_path / "file")
    with pytest.raises(InputError, match=f"{path} is (neither a file nor a folder|a link to)"):
        RunFolder(tmp_path / "run", CONFIG)


def test_a_work_folder_may_be_a_link_in_a_run_that_was_begun_here_only(tmp_path, monkeypatch):
    begin(tmp_path / "run")
    (tmp_path / "disk").mkdir()
    (tmp_path / "run" / "features").symlink_to(tmp_path / "disk")
    RunFolder(tmp_path / "run", CONFIG)
    os.mkfifo(tmp_path / "disk" / "index.json")
    with pytest.raises(InputError, match="features/index.json is neither a file nor a folder"):
        RunFolder(tmp_path / "run", CONFIG)
    os.remove(tmp_path / "disk" / "index.json")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "stranger"))
    with pytest.raises(InputError, match="features: links of work folders are followed only in a run that you began"):
        RunFolder(tmp_path / "run", CONFIG)


def test_settings_of_any_size_are_not_read(tmp_path):
    begin(tmp_path)
    os.truncate(tmp_path / "config.yaml", 2 * 10**11)
    assert not is_own_run(tmp_path / "config.yaml")
    remember_run(tmp_path / "config.yaml")
    with pytest.raises(InputError, match="config.yaml cannot be read .it has more than 1048576 bytes"):
        RunFolder(tmp_path, CONFIG)
    os.remove(tmp_path / "config.yaml")
    os.mkfifo(tmp_path / "config.yaml")
    assert not is_own_run(tmp_path / "config.yaml") and not is_own_run(tmp_path / "gone.yaml")


def test_starting_writes_the_settings_also_into_an_empty_folder_and_goes_on_with_the_same(tmp_path):
    for place in (tmp_path / "runs" / "a", tmp_path):
        run = RunFolder(place, CONFIG)
        assert {*os.listdir(place)} == LOCK_FILES
        run.start()
        text = (place / "config.yaml").read_text()
        assert {*os.listdir(place)} == {"config.yaml", *LOCK_FILES}
        assert list(yaml.safe_load(text).items()) == list(CONFIG.items())
        run.log.write([{"stage": "distill", "step": 1}])
        assert begin(place).log.read() == [{"stage": "distill", "step": 1}]
        run.close()
        assert {*os.listdir(place)} == {"config.yaml", "log.jsonl", LOCK_FILE}
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()


def test_a_process_that_is_not_the_main_one_writes_nothing(tmp_path):
    run = RunFolder(tmp_path / "a", CONFIG, is_main=False)
    run.start()
    run.log.write([{"stage": "distill", "step": 1}])
    run.log.rewind("distill", 0)
    assert os.listdir(tmp_path) == []


FREE = (
    changed(evaluate={"seeds": 9, "new": 1}),
    changed(student_training={"epochs": 9}),
    changed(probe={"labels": [20], "draws": 3}),
    changed(storage={"targets": "float16"}, accuracy={"epochs": 9}, backbone_probe={"views": 9}),
)


@pytest.mark.parametrize("config", [*FREE, changed(run={"log_every": 1}), changed(output="elsewhere")])
def test_what_decides_no_result_may_differ(tmp_path, config):
    begin(tmp_path)
    begin(tmp_path, config)
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == config


@pytest.mark.parametrize(
    ("config", "differences"),
    [
        (changed(seed=1), "seed: 0 there, 1 now"),
        (changed(data={"channels": 1}), "data.channels: None there, 1 now"),
        (changed(distiller={"widths": [1, 3]}), r"distiller.widths: \[1, 2\] there, \[1, 3\] now"),
        (changed(distiller={"new": 3}), "distiller.new: None there, 3 now"),
        (changed(pool="x"), "pool: None there, 'x' now"),
        (
            changed(seed=1, data={"name": "cifar"}, evaluate={"seeds": 1}),
            "data.name: 'digits' there, 'cifar' now; seed: 0 there, 1 now",
        ),
        # It decides the numbers, although its section is free.
        (changed(run={"mixed_precision": "bf16"}), "run.mixed_precision: 'no' there, 'bf16' now"),
    ],
)
def test_a_run_with_other_settings_is_refused_naming_them(tmp_path, config, differences):
    begin(tmp_path)
    with pytest.raises(InputError, match=rf"a run with other settings \({differences}\): choose another --output"):
        RunFolder(tmp_path, config)
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == CONFIG


@dataclass(frozen=True)
class Section:
    name: str = "krr_st"
    args: dict = field(default_factory=lambda: {"a": 1, "b": 2})


@dataclass(frozen=True)
class Defaults:
    method: Section = field(default_factory=Section)
    seed: int = 7
    init: str = "random"


BEFORE = changed(seed=3)
DM = {"name": "dm", "args": {"a": 1, "b": 2}}


@pytest.mark.parametrize(
    ("before", "now"),
    [
        (BEFORE, {**BEFORE, "init": "random"}),
        (BEFORE, {**BEFORE, "init": "random", "method": {"name": "krr_st", "args": {"a": 1, "b": 2}}}),
        ({**BEFORE, "method": {"name": "dm"}}, {**BEFORE, "method": DM}),
    ],
)
def test_a_run_begun_before_there_was_a_setting_goes_on_with_its_default(tmp_path, before, now):
    begin(tmp_path, before)
    RunFolder(tmp_path, now, defaults=Defaults()).start()
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == now
    with pytest.raises(InputError, match="a run with other settings"):
        RunFolder(tmp_path, {**now, "init": "kmeans"}, defaults=Defaults())


@dataclass(frozen=True)
class Renamed(Defaults):
    RENAMED: ClassVar = {
        **{"use": "pretraining", "use.epochs": "pretraining.passes"},
        **{"distiller.steps": "distiller.outer.steps", "gone.a": "b"},
    }


def test_a_run_begun_with_old_names_goes_on_under_the_present_ones(tmp_path):
    before = {name: value for name, value in BEFORE.items() if name != "student_training"}
    before |= {"use": {"epochs": 100, "augment": "flip"}}
    begin(tmp_path, before)
    now = {name: value for name, value in before.items() if name != "use"}
    now |= {"pretraining": {"passes": 100, "augment": "flip"}}
    now |= {"distiller": {"lr_images": 1e-4, "widths": [1, 2], "outer": {"steps": 10}}}
    RunFolder(tmp_path, now, defaults=Renamed()).start()
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == now
    begin(tmp_path / "b", before)
    now["distiller"]["outer"]["steps"] = 9
    with pytest.raises(InputError, match=r"distiller.outer.steps: 10 there, 9 now\)"):
        RunFolder(tmp_path / "b", now, defaults=Renamed())


@pytest.mark.parametrize(
    ("before", "now", "differences"),
    [
        (BEFORE, {**BEFORE, "init": "kmeans"}, "init: 'random' there, 'kmeans' now"),
        (BEFORE, {**BEFORE, "seed": 7}, "seed: 3 there, 7 now"),
        (BEFORE, {**BEFORE, "method": DM}, "method.name: 'krr_st' there, 'dm' now"),
        # A mapping that is one setting means what it says: nothing is filled in.
        (
            {**BEFORE, "method": {"name": "dm", "args": {"a": 1}}},
            {**BEFORE, "method": DM},
            "method.args.b: None there, 2 now",
        ),
        # A setting that is there and no longer exists is a difference still.
        ({**BEFORE, "old": 1}, BEFORE, "old: 1 there, None now"),
    ],
)
def test_another_value_than_the_default_is_a_difference(tmp_path, before, now, differences):
    begin(tmp_path, before)
    now = {"init": "random", "method": {"name": "krr_st", "args": {"a": 1, "b": 2}}, **now}
    with pytest.raises(InputError, match=rf"a run with other settings \({differences}\): choose another"):
        RunFolder(tmp_path, now, defaults=Defaults())


OTHERS = changed(seed=1), changed(data={"name": "cifar", "new": 1}, distiller={"steps": 99}), changed(seed={"a": 1})


@pytest.mark.parametrize("config", [CONFIG, *OTHERS])
def test_a_recipe_may_go_on_with_any_of_its_settings(tmp_path, config):
    begin(tmp_path)
    RunFolder(tmp_path, config, same_settings=False).start()
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == config


@pytest.mark.parametrize("other", [{**CONFIG, "sets": ["a"]}, {k: v for k, v in CONFIG.items() if k != "distiller"}])
def test_the_run_of_another_recipe_is_refused_also_then(tmp_path, other):
    begin(tmp_path, other)
    with pytest.raises(InputError, match=r"holds a run .*(sets|distiller).*: choose another --output"):
        RunFolder(tmp_path, CONFIG, same_settings=False)
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == other


def test_what_is_no_run_is_refused_and_kept(tmp_path):
    (tmp_path / "notes").write_text("dear")
    with pytest.raises(InputError, match="is not empty and holds no run: choose another folder"):
        RunFolder(tmp_path, CONFIG)
    with pytest.raises(InputError, match="notes is a file: choose another folder"):
        RunFolder(tmp_path / "notes", CONFIG)
    assert os.listdir(tmp_path) == ["notes"] and (tmp_path / "notes").read_text() == "dear"


@pytest.mark.parametrize("same_settings", [True, False])
@pytest.mark.parametrize("content", [b"", b"- a\n", b"dear", b"a: [", b"a: \xe9", b"a: &a [*a]", b"a: !!timestamp x"])
def test_settings_that_cannot_be_read_are_reported(tmp_path, content, same_settings):
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(InputError, match=r"(?s)config\.yaml cannot be read \(.*\): choose another --output"):
        RunFolder(tmp_path, CONFIG, same_settings=same_settings)


def test_the_settings_of_another_program_are_other_settings(tmp_path):
    # YAML 1.1 reads `on` as true, so that the keys do not even sort.
    (tmp_path / "config.yaml").write_text("on: push\nname: ci\n3: 4\n")
    with pytest.raises(InputError, match="True: 'push' there, None now"):
        RunFolder(tmp_path, CONFIG)


def test_checkpoints_of_the_two_stages_have_folders_and_json_files_are_replaced(tmp_path):
    run = begin(tmp_path)
    for step in range(3):
        run.teacher_checkpoints.save(step, "teacher")
        run.checkpoints.save(step, "distiller")
    # Two, so that the one before a damaged one can be taken.
    assert [len(os.listdir(tmp_path / "checkpoints" / name)) for name in ("teacher", "distiller")] == [2, 2]
    for content in ({"a": list(range(100))}, {"a": 1}):
        run.write_json("scores.json", content)
    assert json.loads((tmp_path / "scores.json").read_text()) == {"a": 1}
    assert {*os.listdir(tmp_path)} - LOCK_FILES == {"checkpoints", "config.yaml", "scores.json"}


# The log


def records(stage, steps):
    return [{"stage": stage, "step": step, "loss": step / 3} for step in steps]


def test_records_are_appended_and_read(tmp_path):
    log = RunLog(tmp_path / "log.jsonl")
    log.rewind("distill", 0)
    assert log.read() == [] and os.listdir(tmp_path) == []
    log.write(records("teacher", [1, 2]))
    log.write(records("distill", [1]))
    assert log.read() == records("teacher", [1, 2]) + records("distill", [1])
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize(("step", "kept"), [(0, []), (2, [1, 2]), (9, [1, 2, 3])])
def test_rewinding_drops_the_later_records_of_that_stage_alone(tmp_path, step, kept):
    log = RunLog(tmp_path / "log.jsonl")
    log.write(records("teacher", [1, 2, 3, 4]) + records("distill", [1, 2, 3]))
    log.rewind("distill", step)
    assert log.read() == records("teacher", [1, 2, 3, 4]) + records("distill", kept)


@pytest.mark.parametrize("length", range(0, 40, 3))
def test_a_torn_last_line_is_dropped(tmp_path, length):
    log = RunLog(tmp_path / "log.jsonl")
    log.write(records("distill", [1, 2]))
    whole = log.path.read_bytes()
    log.write(records("distill", [3]))
    log.path.write_bytes(log.path.read_bytes()[: len(whole) + length])
    assert log.read() == records("distill", [1, 2])
    log.rewind("distill", 5)
    assert log.path.read_bytes() == whole
    log.write(records("distill", [3]))
    assert log.read() == records("distill", [1, 2, 3])


DAMAGED = [
    b"\xff\xfe" * 9,
    b"\0" * 20,
    b"{",
    b"3",
    b'{"stage": "distill"}',
    b'{"stage": 3, "step": "x"}',
    b"[" * 9999,
    b"",
]


@pytest.mark.parametrize("line", DAMAGED)
def test_a_damaged_line_is_left_out_and_named(tmp_path, caplog, line):
    log = RunLog(tmp_path / "log.jsonl")
    log.write(records("distill", [1, 2, 3]))
    lines = log.path.read_bytes().split(b"\n")
    log.path.write_bytes(b"\n".join([lines[0], line, *lines[2:]]))
    assert log.read() == records("distill", [1, 3]) and not caplog.records
    log.rewind("distill", 2)
    assert log.path.read_bytes() == lines[0] + b"\n" and "log.jsonl: line(s) 2 are no whole" in caplog.text
    caplog.clear()
    log.rewind("distill", 2)
    assert not caplog.records


def test_rewinding_keeps_the_bytes_of_what_stays(tmp_path):
    log = RunLog(tmp_path / "log.jsonl")
    values = [0.1, 1e-7, 123456789.123456789, float("inf"), None, "ä"]
    log.write({"stage": "distill", "step": step, "value": value} for step, value in enumerate(values))
    before = log.path.read_bytes()
    log.rewind("distill", len(values))
    assert log.path.read_bytes() == before


# Settings


def test_every_wrong_setting_is_reported():
    with pytest.raises(SettingsError) as raised:
        RunSettings(checkpoint_every=0, log_every=-1, mixed_precision="fp8")
    assert raised.value.problems == [
        "run.mixed_precision must be no or bf16, got 'fp8'",
        "run.checkpoint_every must be at least 1, got 0",
        "run.log_every must be at least 1, got -1",
    ]
