"""Folders and repositories of strangers: nothing in them chooses what is fetched, read, written or waited for."""

import base64
import json
import os
import re
import shutil
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.util import module_from_spec, spec_from_file_location
from inspect import Parameter, signature
from itertools import product
from pathlib import Path
from unittest.mock import Mock

import pytest
import timm
import torch
import yaml
from huggingface_hub import HfApi
from safetensors.torch import save_file
from test_check import make_full_set
from test_distilled import make_set
from timm.models._builder import build_model_with_cfg

from ssdd_hub import DistilledSet, build_student, pretrain_student
from ssdd_hub.arguments import RESERVED, check_arguments, find_problems
from ssdd_hub.cli import main
from ssdd_hub.errors import InputError
from ssdd_hub.evaluation.inputs import stated_settings
from ssdd_hub.models.build import StudentSettings
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.record import read_metadata
from ssdd_hub.runs.own_runs import is_own_run, remember_run
from ssdd_hub.sets.card import render_dataset_card
from ssdd_hub.sets.check import check_folder
from ssdd_hub.sets.check_places import check_place
from ssdd_hub.sets.interop import export_tensors, import_tensors
from ssdd_hub.sets.publish import pack_set
from ssdd_hub.sets.release import pack_model, plan_students
from ssdd_hub.statements import without_folders
from ssdd_hub.teachers.objectives.registry import build_objective
from ssdd_hub.teachers.teacher import Teacher, TeacherSettings, build_teacher

RECIPES = Path(__file__).parents[1] / "recipes"
TOKEN = "hf_" + "abcdefgh" * 4
CODE = b"raise SystemExit('a stranger was here')\n"


@pytest.fixture
def stranger():
    """A server of somebody else's, which records requests; a set must never cause one."""
    asked = []

    class Server(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(CODE)))
            self.end_headers()
            self.wfile.write(CODE)

        do_HEAD = do_GET
        log_message = Mock()

    with HTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        server.asked, server.address = asked, f"http://127.0.0.1:{server.server_port}"
        yield server
        server.shutdown()


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home of its own, in which nothing may appear."""
    place = tmp_path / "home"
    place.mkdir()
    monkeypatch.setenv("HOME", str(place))
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / ".cache"))
    return place


def poisons(stranger, home):
    """Arguments of a network that make timm fetch, read or write something, by name."""
    site = home / ".local" / "site-packages"
    cfg = {"url": f"{stranger.address}/sitecustomize.py", "num_classes": 0}
    return {
        "fetches code": {"pretrained": True, "pretrained_cfg": cfg, "cache_dir": str(site)},
        "overlays an address": {"pretrained": True, "pretrained_cfg_overlay": cfg},
        "reads a file": {"checkpoint_path": str(home / "weights.pth")},
        "a relative folder": {"cache_dir": "site"},
        "another repository": {"pretrained": True, "pretrained_cfg": {"hf_hub_id": "a/b"}},
        "a path as a word": {"norm": "../../etc/passwd"},
        "an address in a list": {"widths": [8, stranger.address]},
        "an address deep inside": {"block_args": {"deep": {"url": stranger.address}}},
        "a loader by name": {"pretrained_filter_fn": "eval"},
        "no name": {"a b": 1},
        "another head": {"num_classes": 3, "norm": "../x"},
        "endless": {"widths": [10**9]},
        "no mapping": [1, 2],
    }


NAMES = tuple(poisons(type("None", (), {"address": ""}), Path("/")))


@pytest.fixture(params=NAMES)
def poison(request, stranger, home):
    arguments = poisons(stranger, home)[request.param]
    before = sorted(home.rglob("*"))
    yield arguments
    assert not stranger.asked, "a stranger's server was asked"
    assert sorted(home.rglob("*")) == before, "a file was written"
    assert not Path("site").exists()


STUDENT = {"name": "ssdd_convnet3", "model_args": {"widths": [4, 4, 4]}}


def make_record(size=8, **provenance):
    """A small set of 8x8 pixels, with a record of this content."""
    images, targets = torch.randn(6, 1, size, size), torch.randn(6, 5)
    return DistilledSet(images, targets, PixelSpace((0.5,), (0.25,)), provenance=provenance)


def write_record(folder, **provenance):
    """The folder of such a set, of which the record is changed afterwards, as a stranger does it."""
    make_record().save(folder)
    rewrite(folder, lambda record: record["provenance"].update(provenance))
    return folder


def replace(path, kind, tmp_path):
    """Moves a file or folder away, and puts what is no plain one in its place."""
    path.rename(tmp_path / "elsewhere")
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "link inside":
        shutil.copy(tmp_path / "elsewhere", path.parent / "other")
        path.symlink_to("other")
    else:
        path.symlink_to("/dev/zero" if kind == "device" else tmp_path / "elsewhere")


def rewrite(folder, change):
    record = json.loads((folder / "ssdd_hub.json").read_text())
    change(record)
    (folder / "ssdd_hub.json").write_text(json.dumps(record))


def record_errors(folder):
    return [finding.text for finding in check_folder(folder) if finding.level == "error"]


def test_the_attack_of_these_tests_would_work_on_timm_alone(stranger, home):
    """What `timm.create_model` does with the arguments that are refused here."""
    arguments = poisons(stranger, home)["fetches code"]
    with pytest.raises(Exception):  # noqa: B017  # timm cannot load code as weights, but has written it by then
        timm.create_model("resnet18", **arguments)
    assert stranger.asked and (home / ".local" / "site-packages" / "sitecustomize.py").read_bytes() == CODE


# The student of a record


def test_a_student_of_a_record_brings_nothing_along(poison, tmp_path):
    folder = write_record(tmp_path / "set", student={"name": "ssdd_convnet3", "model_args": poison})
    refusals = "states what nobody should use: student: model_args: ", "student.model_args must be an object"
    assert any(refusal in text for text in record_errors(folder) for refusal in refusals)
    with pytest.raises(InputError, match="the student that the record states is not taken: model_args|be an object"):
        plan_students(["own"], {}, folder, "ann/set")
    with pytest.raises(InputError, match="cannot be published as it is|is not the record of a"):
        pack_set(folder, "ann/set")
    if isinstance(poison, dict):
        assert "build_student" not in render_dataset_card(read_metadata(folder), "ann/set")
        loaded = DistilledSet.load(folder)
        with pytest.raises(InputError, match="'ssdd_convnet3'"):
            build_student("ssdd_convnet3", num_targets=5, in_chans=1, image_size=8, **poison)
        with pytest.raises(InputError, match="student.model_args"):
            StudentSettings(**loaded.provenance["student"])


NO_NAMES = ["hf-hub:a/b", "local-dir:/tmp", "/etc/passwd", "no_such_net", "os.system", "../x", 3, ["a"], {"a": 1}]


@pytest.mark.parametrize("name", [*NO_NAMES, ""])
def test_a_student_of_a_record_is_an_architecture_known_here(name, tmp_path, home):
    folder = write_record(tmp_path / "set", student={"name": name, "model_args": {}})
    message = "must be an architecture that timm knows here" if name else "does not record which network"
    message = message if isinstance(name, str) else "student.name must be text"
    with pytest.raises(InputError, match=message):
        plan_students(["own"], {}, folder, "ann/set")
    assert not name or any(message in text for text in record_errors(folder))


def run_evaluation(monkeypatch, folder, output, *more):
    spec = spec_from_file_location("evaluate_strangers", RECIPES / "evaluate.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    small = ["--references", "none", "--protocol", "probe", "--evaluate.seeds", "1", "--run.threads", "1"]
    words = [str(RECIPES / "evaluate.py"), "--set", str(folder), "--output", str(output), *small, *more]
    monkeypatch.setattr(sys, "argv", words)
    module.main()


@pytest.mark.parametrize("name", ["fetches code", "reads a file", "a relative folder"])
def test_an_evaluation_brings_nothing_along(name, stranger, home, tmp_path, monkeypatch, capsys):
    student = {"name": "ssdd_convnet3", "model_args": poisons(stranger, home)[name]}
    folder = make_record(16, student=student).save(tmp_path / "set")
    with pytest.raises(SystemExit) as caught:
        run_evaluation(monkeypatch, folder, tmp_path / "scores", "--source.name", "digits")
    assert caught.value.code
    assert "the student that the record states is not taken" in capsys.readouterr().err
    assert not stranger.asked and not (home / ".local").exists() and not (tmp_path / "scores" / "scores.json").exists()


# The other sections of a record


PHOTOS = "/home/somebody/photos"
SECTIONS = {
    "teacher with a cache": {"settings": {"teacher": {"backbone": "resnet18", "model_args": {"cache_dir": "/x"}}}},
    "teacher at an address": {"settings": {"teacher": {"backbone": "http://x/y", "pretrained": True}}},
    "teacher in a folder": {"settings": {"teacher": {"backbone": f"local-dir:{PHOTOS}", "pretrained": True}}},
    "teacher above": {"settings": {"teacher": {"backbone": "local-dir:../../teacher", "pretrained": True}}},
    "teacher's checkpoint": {"settings": {"teacher": {"backbone": "resnet18", "checkpoint": "/etc/shadow"}}},
    "teacher's name": {"teacher": {"name": "file:///etc/passwd"}},
    "teacher's objective": {"teacher": {"name": "x", "objective": {"name": "byol", "momentum": "/etc/passwd"}}},
    "teacher's source": {"teacher": {"name": "x", "source": {"name": PHOTOS}}},
    "objective": {"objective": {"name": "simclr", "temperature": "http://x"}},
    "objective's settings": {"settings": {"pretrain": {"objective_args": {"pretrained_cfg": {"url": "http://x"}}}}},
    "objective's views": {"settings": {"pretrain": {"view_args": {"normalize": {"mean": ["/etc/passwd"]}}}}},
    "source's folder": {"settings": {"data": {"name": PHOTOS}}},
    "source's home": {"settings": {"data": {"name": "~/photos"}}},
    "source above": {"settings": {"data": {"name": "../photos"}}},
    "source at an address": {"settings": {"data": {"name": "https://x/y.zip"}}},
    "source in an archive": {"settings": {"data": {"name": "zip://a::b"}}},
    "source's revision": {"settings": {"data": {"name": "a/b", "revision": "../../x"}}},
    "source's record": {"source": {"name": PHOTOS, "license": "mit"}},
    "use without end": {"use": {"epochs": 10**12}},
    "use of text": {"use": {"epochs": "1000"}},
    "use of nothing": {"use": {"learning_rate": -1}},
    "use of a call": {"use": {"augmentation": "__import__('os')"}},
    "selection": {"selection": {"settings": {"expert_args": {"checkpoint_path": "/x"}}}},
    "seed": {"seed": "0; rm"},
}


@pytest.mark.parametrize("name", SECTIONS)
def test_every_section_of_a_record_is_looked_through_and_nothing_of_it_taken(name, tmp_path, home):
    folder = write_record(tmp_path / "set", **SECTIONS[name])
    refusal = re.compile("states what nobody should use|(epochs|learning_rate|augmentation|seed) must")
    assert any(refusal.search(text) for text in record_errors(folder))
    with pytest.raises(InputError, match="cannot be published as it is|is not the record of a"):
        pack_set(folder, "ann/set")
    assert main(["check", str(folder)]) == 1 and main(["push", str(folder), "ann/set", "--dry-run"]) == 2
    try:
        stated = stated_settings(str(folder))
    except InputError as error:
        assert "that the record states is not taken" in str(error) or "is not the record of a" in str(error)
    else:
        assert not stated.get("use") and not stated.keys() & {"source", "teacher"}


def test_what_a_run_records_is_taken_as_ever(tmp_path):
    """Local names say where the images came from; they are no mistake, and not followed."""
    settings = {
        "data": {"name": "photos", "split": "train", "image_size": 8, "memory_budget_gb": 4.0},
        "teacher": {"backbone": "local-dir:runs/x/teacher", "pretrained": True, "checkpoint": None, "model_args": {}},
        "student": STUDENT,
        "pretrain": {"objective": "barlow_twins", "objective_args": {"hidden_dim": 512}, "view_args": {}},
    }
    source = {"name": "photos", "license": "mit", "fingerprint": "0" * 64}
    teacher = {"name": "ssdd_resnet18 trained with byol on a/b", "source": source, "objective": {"name": "byol"}}
    use = {"epochs": 3, "learning_rate": 0.1, "augmentation": "crop-flip", "optimizer": "SGD"}
    made = make_record(settings=settings, source=source, teacher=teacher, student=STUDENT, use=use, seed=0)
    folder = made.save(tmp_path / "set")
    assert record_errors(folder) == []
    (student,) = plan_students(["own"], {}, folder, "ann/set")
    assert (student.name, student.args) == (STUDENT["name"], STUDENT["model_args"])
    student = build_student("ssdd_convnet3", num_targets=5, in_chans=1, image_size=8, **STUDENT["model_args"])
    assert pretrain_student(student, DistilledSet.load(folder)).training is False


def test_only_the_last_part_of_a_folder_is_recorded(tmp_path):
    """Also of one that is named from a folder above; sets of earlier versions are put right by `ssdd-hub card`."""
    teacher = {"backbone": "local-dir:../../models/lite0", "pretrained": True, "checkpoint": "/weights/x.pth"}
    settings = {"data": {"name": "../photos"}, "teacher": teacher, "student": STUDENT}
    cut = {"backbone": "local-dir:lite0", "pretrained": True, "checkpoint": "x.pth"}
    assert without_folders(settings) == {"data": {"name": "photos"}, "teacher": cut, "student": STUDENT}
    folder = make_record(settings=settings).save(tmp_path / "set")
    assert record_errors(folder)
    assert main(["card", str(folder)]) == 0 and record_errors(folder) == []
    assert read_metadata(folder)["provenance"]["settings"] == without_folders(settings)


def test_the_source_of_a_record_is_on_the_hub_and_never_a_folder_here(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    data = {"name": "ann/photos", "split": "train", "memory_budget_gb": 1e9, "streaming": True}
    folder = make_record(settings={"data": data}).save(tmp_path / "set")
    assert stated_settings(str(folder))["source"] == {"name": "ann/photos", "split": "train"}
    (tmp_path / "ann" / "photos").mkdir(parents=True)
    assert "source" not in stated_settings(str(folder))
    assert "which is no dataset of the Hub or a folder here" in caplog.text


# Run folders


def make_run(folder, **sections):
    config = {"data": {"name": "digits"}, "teacher": {"backbone": "ssdd_resnet10"}, "use": {}, "seed": 0, **sections}
    make_record(student=STUDENT).save(folder / "distilled")
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


RUNS = ("source's folder", "source above", "teacher in a folder", "teacher's checkpoint", "teacher with a cache")


@pytest.mark.parametrize("name", [*RUNS, "use without end"])
def test_a_copied_run_folder_names_no_folder_of_this_machine(name, tmp_path, home):
    run = make_run(tmp_path / "run", **SECTIONS[name].get("settings", SECTIONS[name]))
    with pytest.raises(InputError, match="that the record states is not taken"):
        stated_settings(str(run / "distilled"))
    assert any(finding.place == "config.yaml" and finding.level == "error" for finding in check_place(run))
    assert main(["check", str(run)]) == 1


def test_a_run_that_this_user_began_names_what_the_user_named(tmp_path, home):
    run = make_run(tmp_path / "run", data={"name": PHOTOS}, teacher={"backbone": "resnet18", "checkpoint": "/x.pth"})
    assert not is_own_run(run / "config.yaml")
    remember_run(run / "config.yaml")
    stated = stated_settings(str(run / "distilled"))
    assert stated["source"] == {"name": PHOTOS} and stated["teacher"]["checkpoint"] == "/x.pth"
    # Other settings are somebody else's again.
    (run / "config.yaml").write_text((run / "config.yaml").read_text() + "output: x\n")
    with pytest.raises(InputError, match="is not taken"):
        stated_settings(str(run / "distilled"))


def test_what_is_named_otherwise_is_not_asked_of_a_record(tmp_path, home):
    """The error says which option names it; the other settings still hold."""
    data = {"name": PHOTOS, "split": "train", "image_size": 8}
    run = make_run(tmp_path / "run", data=data, teacher={"backbone": "local-dir:/x", "pretrained": True, "mean": [0]})
    with pytest.raises(InputError, match="name it by --source.name"):
        stated_settings(str(run / "distilled"))
    with pytest.raises(InputError, match="name it by --teacher.backbone"):
        stated_settings(str(run / "distilled"), ["source.name"])
    stated = stated_settings(str(run / "distilled"), ["source.name", "teacher.backbone"])
    assert stated["source"] == {"split": "train", "image_size": 8}
    assert stated["teacher"] == {"pretrained": True, "mean": [0]}


@pytest.mark.parametrize(
    ("kind", "name", "problem"),
    [
        ("link", "config.yaml", "config.yaml is a link to .*elsewhere: put the file itself there"),
        ("link", "teacher", "teacher is a link to .*elsewhere: put the file itself there"),
        ("pipe", "config.yaml", "config.yaml is neither a file nor a folder"),
    ],
)
def test_links_of_a_run_folder_are_not_followed_and_pipes_not_waited_for(kind, name, problem, tmp_path, home):
    run = make_run(tmp_path / "run")
    (run / "teacher").mkdir()
    replace(run / name, kind, tmp_path)
    with pytest.raises(InputError, match=problem):
        stated_settings(str(run / "distilled"))
    assert any(finding.place == name for finding in check_place(run) if finding.level == "error")


GROWING = "a: &a [1, 2]\nb: &b [*a, *a]\ndata: *b\nteacher: {}\nseed: 0\n"


@pytest.mark.parametrize("text", [GROWING, "seed: !!timestamp x", "seed: !!bool x", "a: !!int " + "1" * 200])
def test_yaml_that_grows_or_has_tagged_values_is_no_settings(text, tmp_path, home):
    run = make_run(tmp_path / "run")
    (run / "config.yaml").write_text(text)
    assert main(["check", str(run)]) == 1
    reason = ".*aliases are not taken" if text == GROWING else ""
    with pytest.raises(InputError, match=f"is not that of a run {reason}"):
        stated_settings(str(run / "distilled"))


# Folders of teachers


@pytest.fixture
def teacher_folder(tmp_path):
    torch.manual_seed(0)
    backbone = timm.create_model("ssdd_convnet3", widths=[4, 4, 4], num_classes=0, in_chans=1, img_size=8)
    facts = {"source": {"name": "digits"}, "objective": {"name": "byol"}, "seed": 0}
    Teacher(backbone, PixelSpace((0.5,), (0.25,)), 8, "small", "mit").save(tmp_path / "teacher", facts)
    return tmp_path / "teacher"


def reconfigure(folder, **changes):
    """Writes values into `config.json`, by dotted names with `__`."""
    config = json.loads((folder / "config.json").read_text())
    for name, value in changes.items():
        *path, last = name.split("__")
        part = config
        for step in path:
            part = part.setdefault(step, {})
        part[last] = value
    (folder / "config.json").write_text(json.dumps(config))


def refuse_teacher(folder, match):
    with pytest.raises(InputError, match=match):
        build_teacher(f"local-dir:{folder}")
    with pytest.raises(InputError, match=match):
        pack_model(folder, "ann/teacher")
    assert main(["check", str(folder)]) == 1


def test_a_good_teacher_passes(teacher_folder, home):
    assert build_teacher(f"local-dir:{teacher_folder}").feature_dim == 4
    assert check_place(teacher_folder) == [] and main(["check", str(teacher_folder)]) == 0
    assert pack_model(teacher_folder, "ann/teacher")


def test_the_arguments_of_a_stored_teacher_bring_nothing_along(poison, teacher_folder):
    reconfigure(teacher_folder, model_args=poison)
    refuse_teacher(teacher_folder, "config.json is not taken: .*model_args")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"architecture": "hf-hub:a/b"}, "its architecture 'hf-hub:a/b' is none that timm knows"),
        ({"architecture": "local-dir:/tmp"}, "its architecture"),
        ({"architecture": ["x"]}, "its architecture"),
        ({"pretrained_cfg": "x"}, "pretrained_cfg must map names"),
        ({"model_args": None}, "model_args: arguments must be values by name"),
    ],
)
def test_the_configuration_of_a_stored_teacher_brings_nothing_along(changes, match, teacher_folder, home):
    reconfigure(teacher_folder, **changes)
    refuse_teacher(teacher_folder, match)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("url", "http://127.0.0.1:9/x"), ("url", 0), ("file", "/etc/passwd"), ("hf_hub_filename", "../x")),
        *(("hf_hub_id", "a/b"), ("state_dict", {"a": 1}), ("custom_load", "hf"), ("first_conv", "../x")),
        *(("input_size", size) for size in ([1, 10**9, 10**9], [3, 32.0, 32.0], [3, 8192, 8192])),
        *(("something_new", "x"), ("notes", json.loads("[" * 500 + "]" * 500)), ("mean", 0.5), ("std", [1e-300])),
        *(("license", ["mit"]), ("license", "mit\nevil: true")),
    ],
)
def test_the_facts_of_a_stored_teacher_are_of_their_kind(name, value, teacher_folder, home):
    reconfigure(teacher_folder, **{f"pretrained_cfg__{name}": value})
    refuse_teacher(teacher_folder, f"pretrained_cfg.{name} is not taken")


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000, '{"model_args": ' * 10 + "1" + "}" * 10, None])
def test_a_configuration_that_is_none_is_refused(text, teacher_folder, home):
    (teacher_folder / "config.json").unlink()
    if text is not None:
        (teacher_folder / "config.json").write_text(text)
        refuse_teacher(teacher_folder, "config.json is not taken")
    else:
        (teacher_folder / "config.json").mkdir()
        assert any("it is no file" in finding.text for finding in check_place(teacher_folder))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "ssdd_hub.json"])
@pytest.mark.parametrize("kind", ["link", "link inside", "pipe", "device"])
def test_a_teacher_is_of_plain_files(kind, name, teacher_folder, tmp_path, home):
    replace(teacher_folder / name, kind, tmp_path)
    with pytest.raises(InputError, match=f"{name} is (a link to|neither a file nor a folder)"):
        build_teacher(f"local-dir:{teacher_folder}")
    assert main(["check", str(teacher_folder)]) == 1


def test_the_record_of_a_teacher_is_looked_through(teacher_folder, home):
    wrong = {"name": "byol", "momentum": "http://x"}
    rewrite(teacher_folder, lambda record: record["provenance"].update(objective=wrong))
    refuse_teacher(teacher_folder, "ssdd_hub.json states what nobody should use .objective: momentum must be")
    (finding,) = check_place(teacher_folder)
    assert finding.level == "error" and "objective: momentum must be a number or a short word" in finding.text


def test_a_repository_of_a_stranger_is_looked_through_too(hub, teacher_folder, home, stranger):
    """What was looked at is what timm loads: the commit, not the branch."""
    api = HfApi(token="hf_ann")
    api.create_repo("ann/teacher")
    api.upload_folder(repo_id="ann/teacher", folder_path=teacher_folder)
    assert build_teacher("hf-hub:ann/teacher").feature_dim == 4
    reconfigure(teacher_folder, model_args=poisons(stranger, home)["fetches code"])
    api.upload_folder(repo_id="ann/teacher", folder_path=teacher_folder)
    with pytest.raises(InputError, match="config.json is not taken: .*model_args"):
        build_teacher("hf-hub:ann/teacher")
    assert not stranger.asked and not (home / ".local").exists()
    # A network that is far larger than its weights is not built, of a folder or of a repository.
    reconfigure(teacher_folder, model_args={"widths": [4, 4, 900_000], "in_chans": 1, "img_size": 8})
    api.upload_folder(repo_id="ann/teacher", folder_path=teacher_folder)
    for place in ("hf-hub:ann/teacher", f"local-dir:{teacher_folder}"):
        with pytest.raises(InputError, match="has more than the .* parameters allowed"):
            build_teacher(place)


def test_a_record_or_a_card_that_is_too_large_is_not_fetched(hub, tmp_path):
    folder = make_record(student=STUDENT).save(tmp_path / "set")
    with (folder / "README.md").open("a") as card:
        card.write("x" * 2**20)
    api = HfApi(token="hf_ann")
    api.create_repo("ann/set", repo_type="dataset")
    api.upload_folder(repo_id="ann/set", folder_path=folder, repo_type="dataset")
    with pytest.raises(InputError, match="README.md must be of at most 1048576 bytes, got .* It is so on the Hub"):
        DistilledSet.from_pretrained("ann/set")


def test_what_timm_itself_states_of_weights_is_taken(teacher_folder):
    """Some of its own have `custom_load`, which it heeds for other files alone."""
    reconfigure(teacher_folder, pretrained_cfg__custom_load=True, pretrained_cfg__crop_pct=0.9)
    assert build_teacher(f"local-dir:{teacher_folder}").feature_dim == 4
    assert build_teacher(f"LOCAL-DIR:{teacher_folder}").name == "small"


@pytest.mark.parametrize(
    ("name", "args", "match"),
    [
        (
            "vit_tiny_patch16_224",
            {"depth": 10**6, "embed_dim": 3, "num_heads": 1},
            "has more than .* (allowed|modules)|at most 1000",
        ),
        ("ssdd_convnet3", {"widths": [12_000, 12_000, 12_000]}, "has more than the .* parameters allowed"),
        ("resnet18", {"act_layer": "nope"}, "cannot be built"),
        ("resnet18", {"block": "x"}, "cannot be built"),
        ("resnet18", {"pruned": True}, "cannot be built"),
    ],
)
def test_a_student_that_is_too_large_or_none_is_an_error_and_soon(name, args, match):
    started = time.process_time()
    with pytest.raises(InputError, match=match):
        build_student(name, num_targets=2, in_chans=3, image_size=32, **args)
    assert time.process_time() - started < 30


# Sets of plain files


FILES = ["ssdd_hub.json", "data/train-00000-of-00001.parquet", "target_transform.safetensors"]


@pytest.mark.parametrize(
    ("kind", "name"), [*product(["link", "link inside", "pipe", "device"], FILES), ("directory link", "data")]
)
def test_a_set_is_of_plain_files(kind, name, tmp_path):
    folder = make_full_set().save(tmp_path / "set")
    replace(folder / name, kind, tmp_path)
    for load in (DistilledSet.load, DistilledSet.from_pretrained):
        with pytest.raises(InputError, match=f"{name} is (a link to|neither a file nor a folder)"):
            load(folder)
    assert any(finding.place == name for finding in check_folder(folder) if finding.level == "error")
    assert main(["check", str(folder)]) == 1 and main(["push", str(folder), "ann/set", "--dry-run"]) == 2


@pytest.mark.parametrize("kind", ["link", "pipe"])
@pytest.mark.parametrize("name", ["x_syn.pt", "ssdd_hub_tensors.json"])
def test_a_pair_of_tensors_is_of_plain_files(kind, name, tmp_path):
    folder = export_tensors(make_set(), tmp_path / "pair")
    replace(folder / name, kind, tmp_path)
    with pytest.raises(InputError, match="is a link to|is neither a file|must hold, or be of, exactly one pair"):
        import_tensors(folder)


@pytest.mark.parametrize("kind", ["link", "pipe", "other bytes"])
def test_a_report_shows_the_images_of_the_set_and_no_file_of_its_folder(kind, tmp_path, monkeypatch):
    folder = make_record(16, student=STUDENT).save(tmp_path / "set")
    (folder / "preview.png").write_text("the private key of somebody")
    if kind != "other bytes":
        replace(folder / "preview.png", kind, tmp_path)
    small = [
        "--source.max-images",
        "60",
        "--student-training.epochs",
        "1",
        "--probe.labels",
        "[20]",
        "--probe.draws",
        "1",
    ]
    run_evaluation(monkeypatch, folder, tmp_path / "scores", "--source.name", "digits", *small)
    page = (tmp_path / "scores" / "report.html").read_text()
    assert base64.b64encode(b"the private key of").decode()[:20] not in page
    drawn = (tmp_path / "scores" / "pictures" / "set-1.png").read_bytes()
    assert drawn.startswith(b"\x89PNG") and base64.b64encode(drawn).decode() in page


@pytest.mark.parametrize("space", ["x", [1], {"mean": ["a"], "std": ["b"]}, {"mean": [0] * 3, "std": [1] * 3}, {}])
def test_the_space_of_students_is_one_of_the_set(space, tmp_path):
    folder = make_record().save(tmp_path / "set")
    rewrite(folder, lambda record: record["provenance"].update(student_pixel_space=space))
    with pytest.raises(InputError, match="student_pixel_space( must have the images'|: a pixel space must hold)"):
        DistilledSet.load(folder)
    assert any("student_pixel_space" in text for text in record_errors(folder))


def test_a_file_more_does_not_make_a_set_something_else(tmp_path):
    folder = make_record().save(tmp_path / "set")
    rewrite(folder, lambda record: record["tensors"]["images"].update(sha256="0" * 64))
    (folder / "config.json").write_text('{"architecture": "resnet18", "pretrained_cfg": {}}')
    found = [finding.place for finding in check_place(folder) if finding.level == "error"]
    assert "data" in found and "config.json" in found


def test_a_transform_without_end_is_an_error(tmp_path):
    folder = make_full_set().save(tmp_path / "set")
    with (folder / "target_transform.safetensors").open("r+b") as file:
        file.truncate(200 * 2**30)
    with pytest.raises(InputError, match="is not a whole target transform .it has more than"):
        DistilledSet.load(folder)


# The allow-list itself


def test_what_timm_takes_beside_the_arguments_of_a_network_is_reserved():
    """A version of timm that takes more must be looked at before it is allowed."""
    for function in (timm.create_model, build_model_with_cfg):
        named = {name for name, part in signature(function).parameters.items() if part.kind != Parameter.VAR_KEYWORD}
        assert named <= RESERVED


@pytest.mark.parametrize(
    "arguments",
    [
        {"widths": [64, 128], "norm": "batch", "drop_rate": 0.5, "global_pool": "", "act_layer": None},
        {"block_args": {"a": [[1, 2], [3, 4]]}, "act_layer": "gelu", "bias": True, "rope_type": "mixed-2d"},
        {"norm_layer": torch.nn.GroupNorm, "act_layer": torch.nn.GELU()},
        {},
    ],
)
def test_arguments_of_networks_are_taken(arguments):
    assert find_problems(arguments) == []
    check_arguments("x", arguments)


WORDS = Path("x"), b"x", "x" * 41, "x y", "x\n", f"https://user:{TOKEN}@host"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        *(({"a": number}, "a must be a finite number") for number in (float("nan"), float("inf"), 10**5000)),
        *(({"a": word}, "a must be a number or a short word") for word in WORDS),
        ({"a": [[[[1]]]]}, "a must not be nested more than"),
        ({"a": [1] * 2000}, "at most 1000 values"),
        ({"a\n": 1}, "the name of an argument must be a word"),
        ({1: 1}, "the name of an argument must be a word"),
        ({"device": "cuda"}, "device is no argument of the network"),
    ],
)
def test_other_arguments_are_refused_by_name(arguments, problem):
    assert problem in find_problems(arguments)[0] and TOKEN not in str(find_problems(arguments))
    with pytest.raises(InputError, match="x cannot be taken"):
        check_arguments("x", arguments)


def test_objectives_and_teachers_take_the_same_arguments():
    backbone = timm.create_model("ssdd_convnet3", widths=[4, 4, 4], num_classes=0, img_size=8)
    with pytest.raises(InputError, match="byol: momentum must be a finite number"):
        build_objective("byol", backbone, momentum="/etc/passwd")
    with pytest.raises(InputError, match="settings of the objective 'byol' cannot be taken: checkpoint_path is no"):
        build_objective("byol", backbone, checkpoint_path="x")
    with pytest.raises(InputError, match="cache_dir is no argument of the network"):
        TeacherSettings(backbone="resnet18", model_args={"cache_dir": "x"})
    with pytest.raises(InputError, match="cache_dir is no argument of the network"):
        build_teacher("resnet18", pretrained=False, cache_dir="x")


def test_weights_beside_are_safetensors_or_plain(teacher_folder):
    """A teacher whose weights are those of another network is refused by timm, not by this door."""
    save_file({"other": torch.zeros(1)}, teacher_folder / "model.safetensors")
    with pytest.raises(InputError, match="cannot be built"):
        build_teacher(f"local-dir:{teacher_folder}")
