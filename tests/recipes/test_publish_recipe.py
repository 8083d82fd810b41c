"""The recipe that publishes a set, its teacher, students and a collection: once as a user launches it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hub_server import Fault, HubServer, client_env, connected
from test_cli import FACTS, full_set
from test_distilled import contents
from test_release import MADE, header_of, new_teacher

import publish
from ssdd_hub.errors import SettingsError
from ssdd_hub.runs.lock import LOCK_FILE

RECIPE = Path(__file__).parents[2] / "recipes" / "publish.py"
SET, TEACHER, PUPIL = ("dataset", "ann/tiny"), ("model", "ann/tiny-teacher"), ("model", "ann/tiny-ssdd_convnet3")
ALL = ["--repo", "tiny", "--teacher", "teacher", "--students", "own", "--collection", "Tiny sets"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A set and its teacher; another teacher; a set that does not record its student."""
    root, teacher = tmp_path_factory.mktemp("folders"), new_teacher()
    teacher.save(root / "teacher", MADE)
    new_teacher(seed=1).save(root / "other", MADE)
    full_set(teacher=teacher.identity()).save(root / "set")
    full_set(student=None).save(root / "plain")
    return root


@pytest.fixture(scope="module")
def launched(tmp_path_factory, folders):
    """A Hub to which all was published by a process of its own; the folder where that was, and what was printed."""
    root = tmp_path_factory.mktemp("launched")
    shutil.copytree(folders, root, dirs_exist_ok=True)
    with HubServer(root / "hub") as server:
        server.add_user("ann", "hf_ann")
        variables = {"HF_TOKEN": "hf_ann", "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
        env = {**client_env(server, root / "home"), **variables}
        command = [sys.executable, str(RECIPE), "--set", "set", *ALL]
        ran = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, timeout=300)
        assert ran.returncode == 0, ran.stderr
        assert "hf_ann" not in ran.stdout + ran.stderr
        yield SimpleNamespace(hub=server, root=root, printed=ran.stdout)


@pytest.fixture
def place(tmp_path, monkeypatch, folders):
    """Sets up the working directory with the folders, and the environment of a launch, with ann logged in."""
    before = torch.get_num_threads()
    shutil.copytree(folders, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setenv("HF_TOKEN", "hf_ann")
    yield tmp_path
    torch.set_num_threads(before)


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the recipe in this process; returns what it printed, or its message where it is to fail."""

    def run(*words, status=0):
        monkeypatch.setattr(sys, "argv", [str(RECIPE), "--set", "set", *map(str, words)])
        monkeypatch.setenv("HF_TOKEN", "hf_ann")
        capsys.readouterr()
        if status == 0:
            publish.main()
            return capsys.readouterr().out
        with pytest.raises(SystemExit) as ended:
            publish.main()
        printed = capsys.readouterr()
        message = printed.err[printed.err.index("error:") :]
        assert ended.value.code == status and "Traceback" not in printed.err and "hf_ann" not in printed.err
        return message

    return run


def commits(hub):
    return {place: [commit.title for commit in repo.commits] for place, repo in hub.repos.items()}


def record(output):
    return json.loads((output / "published.json").read_text())


# Launched


def test_set_teacher_student_and_a_collection_of_all_appear(launched):
    hub = launched.hub
    assert commits(hub) == {
        TEACHER: ["initial commit", "Publish the teacher"],
        SET: ["initial commit", "Publish the distilled set"],
        PUPIL: ["initial commit", "Publish a network pre-trained on ann/tiny"],
    }
    [collection] = hub.collections.values()
    assert (collection["title"], collection["owner"]["name"]) == ("Tiny sets", "ann")
    assert [(item["type"], item["id"]) for item in collection["items"]] == [TEACHER, SET, PUPIL]
    [tag] = hub.repos[SET].tags
    cards = {place: hub.files(place[1], repo_type=place[0])["README.md"].decode() for place in (TEACHER, SET, PUPIL)}
    assert "(https://huggingface.co/datasets/ann/tiny)" in cards[TEACHER] and "[ann/tiny-teacher](" in cards[SET]
    assert f"name: ann/tiny; revision: {tag};" in cards[PUPIL] and "  - 4\n  - 6\n  - 8\n" in cards[PUPIL]


def test_the_record_tells_what_was_published(launched):
    hub, stated = launched.hub, record(launched.root / "runs" / "tiny-published")
    [slug], [tag] = hub.collections, hub.repos[SET].tags
    assert stated.pop("collection") == f"{hub.endpoint}/collections/{slug}"
    for name, place in (("teacher", TEACHER), ("set", SET), ("student ssdd_convnet3", PUPIL)):
        commit = hub.repos[place].branches["main"]
        url = f"{hub.endpoint}/{hub.repos[place].path}/commit/{commit}"
        revision = tag if name == "set" else commit
        assert stated.pop(name) == {"repo_id": place[1], "commit": commit, "revision": revision, "url": url}
    assert stated == {}


def test_the_output_says_first_what_will_be_sent_and_where(launched):
    lines = [line for line in launched.printed.splitlines() if not line.startswith("  ")]
    [tag], [slug] = launched.hub.repos[SET].tags, launched.hub.collections
    urls = [entry["url"] for entry in list(record(launched.root / "runs" / "tiny-published").values())[:3]]
    assert lines == [
        "to the new public model ann/tiny-teacher, branch main",
        f"to the new public dataset ann/tiny, branch main, tag {tag}",
        "then to the model ann/tiny-ssdd_convnet3: ssdd_convnet3, pre-trained on the set",
        "all of it into the collection 'Tiny sets' of ann",
        f"published and verified: {urls[0]}",
        f"published and verified: {urls[1]}",
        "load it by",
        "to the new public model ann/tiny-ssdd_convnet3, branch main",
        f"published and verified: {urls[2]}",
        f"collected: {launched.hub.endpoint}/collections/{slug}",
    ]


def test_started_again_nothing_changes(launched, place, run, monkeypatch):
    hub, output = launched.hub, launched.root / "runs" / "tiny-published"
    monkeypatch.chdir(launched.root)
    before = (commits(hub), {key: dict(repo.tags) for key, repo in hub.repos.items()}, contents(output))
    items = [item["id"] for item in next(iter(hub.collections.values()))["items"]]
    with connected(hub, launched.root / "home2"):
        run(*ALL)
    after = (commits(hub), {key: dict(repo.tags) for key, repo in hub.repos.items()}, contents(output))
    assert after == before
    assert [[item["id"] for item in each["items"]] for each in hub.collections.values()] == [items]


# In this process


def test_a_dry_run_tells_all_and_sends_and_writes_nothing(hub, place, run):
    before = contents(place)
    printed = run(*ALL, "--private", "--dry-run").splitlines()
    assert printed[0] == "to the new private model ann/tiny-teacher, branch main"
    assert printed[-3:] == [
        "then to the model ann/tiny-ssdd_convnet3: ssdd_convnet3, pre-trained on the set",
        "all of it into the collection 'Tiny sets' of ann",
        "nothing was sent",
    ]
    assert {each.method for each in hub.requests} == {"GET"} and (hub.repos, hub.collections) == ({}, {})
    assert contents(place) == before and not (place / "runs").exists()


def test_a_set_alone_is_published_as_the_command_line_does(hub, place, run, tmp_path):
    (tmp_path / "scores.json").write_text(json.dumps({"records": []}))
    printed = run("--repo", "lab/tiny", "--private", "--tag", "v1", "--scores", "scores.json", "--output", "out")
    assert hub.repos.keys() == {("dataset", "lab/tiny")} and hub.repos["dataset", "lab/tiny"].private
    assert 'from_pretrained("lab/tiny", revision="v1")' in printed
    assert contents(place / "out").keys() == {"published.json", LOCK_FILE} and record(place / "out").keys() == {"set"}


def test_the_same_command_twice_at_once_is_refused_before_anything_is_sent(hub, place, run):
    hold = "import time; from pathlib import Path; from ssdd_hub.runs.lock import FolderLock\n"
    hold += "FolderLock(Path('out')).acquire(); print('held', flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        message = run("--repo", "lab/tiny", "--output", "out", status=2)
        other.kill()
    assert f"out is in use by process {other.pid}" in message and not hub.repos


def test_all_that_is_private_is_collected_privately_in_the_owners_namespace(hub, place, run):
    run("--repo", "lab/tiny", "--students", "own", "--collection", "Ours", "--private")
    assert all(repo.private for repo in hub.repos.values()) and len(hub.repos) == 2
    [collection] = hub.collections.values()
    assert collection["private"] and collection["owner"]["name"] == "lab" and len(collection["items"]) == 2


def test_beside_a_set_that_is_private_nothing_is_public(hub, place, run):
    run("--repo", "tiny", "--private")
    run(*ALL)
    assert len(hub.repos) == 3
    assert all(repo.private for repo in hub.repos.values()) and all(c["private"] for c in hub.collections.values())


def test_what_was_published_is_recorded_when_a_student_fails_and_the_rest_follows(hub, place, run):
    refused = Fault("POST .*tiny-ssdd_convnet3/commit", status=403)
    hub.faults.append(refused)
    message = run(*ALL, status=2)
    assert message.startswith("error: publishing ann/tiny-ssdd_convnet3 failed: the token does not allow it")
    output = place / "runs" / "tiny-published"
    assert list(record(output)) == ["teacher", "set"] and hub.collections == {}
    weights = {name: data for name, data in contents(output).items() if name.endswith(".safetensors")}
    assert len(weights) == 1 and refused.hits == 1
    run(*ALL)
    assert list(record(output)) == ["teacher", "set", "student ssdd_convnet3", "collection"]
    # What was trained is not trained again.
    assert {name: data for name, data in contents(output).items() if name.endswith(".safetensors")} == weights
    assert len(hub.repos[PUPIL].commits) == 2 and len(hub.repos[SET].commits) == 2


def test_a_collection_that_fails_leaves_a_record_of_all_else(hub, place, run):
    hub.faults.append(Fault("POST /api/collections", status=400))
    message = run("--repo", "tiny", "--students", "own", "--collection", "Tiny sets", status=2)
    assert message.startswith("error: collecting ann/tiny, ann/tiny-ssdd_convnet3 failed: the Hub refuses it")
    assert list(record(place / "runs" / "tiny-published")) == ["set", "student ssdd_convnet3"]


def test_the_record_of_earlier_starts_stays_whatever_the_next_one_does(hub, place, run):
    output = place / "runs" / "tiny-published"
    run(*ALL)
    names = ["teacher", "set", "student ssdd_convnet3", "collection"]
    assert list(record(output)) == names
    hub.faults.append(Fault("POST /api/collections", status=400))
    run("--repo", "tiny", "--collection", "Others", status=2)
    assert list(record(output)) == names
    hub.faults.clear()
    run("--repo", "tiny", "--collection", "Tiny sets")
    assert list(record(output)) == names
    assert [len(collection["items"]) for collection in hub.collections.values()] == [3]


@pytest.mark.parametrize("content", ["", "[1]", '{"set": 1}', '{"set": {"repo_id": "ann/other"}}'])
def test_the_record_of_something_else_is_refused_before_anything_is_sent(hub, place, run, content):
    (place / "out").mkdir()
    (place / "out" / "published.json").write_text(content)
    message = run("--repo", "tiny", "--output", "out", status=2)
    assert "out/published.json is" in message and "choose another --output" in message and not hub.repos
    assert (place / "out" / "published.json").read_text() == content


def test_a_changed_set_gets_a_student_of_its_own(hub, place, run):
    students = ("--repo", "tiny", "--students", "own")
    run(*students)
    full_set(use={**FACTS["use"], "epochs": 3}).save(place / "set")
    run(*students)
    first, second = (
        {path: blob.sha256 for path, blob in commit.files.items()} for commit in hub.repos[PUPIL].commits[1:]
    )
    assert first["model.safetensors"] != second["model.safetensors"]
    told = json.loads(hub.files(PUPIL[1], repo_type="model")["ssdd_hub.json"])["provenance"]
    assert told["settings"]["use"]["epochs"] == 3
    assert told["source"]["revision"] == record(place / "runs" / "tiny-published")["set"]["revision"]
    run(*students, "--seed", "1")
    assert len(hub.repos[PUPIL].commits) == 4


def test_students_take_their_own_arguments_and_the_licence_that_the_set_is_published_under(hub, place, run):
    run("--repo", "tiny", "--license", "mit", "--students", "own,test_vit", "--student-args.own.widths", "[3, 5]")
    for name in ("ssdd_convnet3", "test_vit"):
        files = hub.files(f"ann/tiny-{name}", repo_type="model")
        assert header_of(files["README.md"].decode())["license"] == "mit"
        assert json.loads(files["config.json"])["architecture"] == name
    widths = json.loads(hub.files(PUPIL[1], repo_type="model")["config.json"])["model_args"]["widths"]
    assert widths == [3, 5]


BAD = {
    "no repository": ([], ["repo must name the repository: --repo owner/name"]),
    "no such set": (["--set", "gone"], ["there is no distilled set at gone"]),
    "a teacher as set": (["--set", "teacher"], ["teacher/ssdd_hub.json is not the record of a distilled set"]),
    "no such teacher": (["--teacher", "gone"], ["gone is no folder of a model", "config.json"]),
    "a set as teacher": (["--teacher", "set"], ["set is no folder of a model"]),
    "another teacher": (["--teacher", "other"], ["was distilled with another teacher", "small-0"]),
    "unknown student": (["--students", "resnet_9000"], ["student 'resnet_9000' is not a timm"]),
    "own without record": (
        ["--set", "plain", "--students", "own"],
        ["plain does not record which network it was distilled with: name a timm model in place of own"],
    ),
    "a student twice": (["--students", "own,ssdd_convnet3"], ["students has ssdd_convnet3 twice (own is ssdd_conv"]),
    "unknown argument": (["--students", "own", "--student-args.own.colour", "3"], ["'colour'"]),
    "decided argument": (
        ["--students", "own", "--student-args.own.in_chans", "3"],
        ["model_args must leave out in_chans"],
    ),
    "arguments of nobody": (
        ["--students", "own", "--student-args.ssdd_convnet3.widths", "[4]"],
        ["student_args has arguments of ssdd_convnet3, which students does not name"],
    ),
    "name too long": (["--repo", "t" * 90, "--students", "own"], ["-ssdd_convnet3 failed: Repo id must"]),
    "no name": (["--repo", "a/b/c"], ["named owner/name or name, got 'a/b/c'"]),
    "no scores": (["--scores", "gone.json"], ["gone.json cannot be read as scores.json"]),
    "unknown setting": (["--student", "own"], ["student is not a setting", "students"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_ends_with_a_message_before_anything_is_sent(hub, place, run, case):
    words, parts = BAD[case]
    message = run(*(["--repo", "tiny"] if words else []), *words, status=2)
    assert not [part for part in parts if part not in message], message
    assert hub.repos == {} and not hub.asked("^(POST|PUT|DELETE)")
    assert not (place / "runs").exists()


@pytest.mark.parametrize("command", [(), ("--dry-run",)])
def test_without_a_token_nothing_begins(hub, place, monkeypatch, capsys, command):
    monkeypatch.setattr(sys, "argv", [str(RECIPE), "--set", "set", "--repo", "tiny", *command])
    monkeypatch.setenv("HF_TOKEN", "")
    with pytest.raises(SystemExit) as ended:
        publish.main()
    assert ended.value.code == 2 and "there is no token: log in by `hf auth login`" in capsys.readouterr().err


def test_only_one_of_several_processes_publishes(hub, place, run, monkeypatch):
    monkeypatch.setattr(publish, "build_accelerator", lambda *_: SimpleNamespace(is_main_process=False))
    assert run(*ALL) == "" and hub.requests == []


# Settings


@pytest.mark.parametrize(("repo", "name"), [("tiny", "tiny"), ("lab/tiny", "tiny"), ("../..", "run")])
def test_the_output_is_named_after_the_repository(repo, name):
    assert publish.PublishConfig(repo=repo).output == f"runs/{name}-published"
    assert publish.PublishConfig(repo=repo, output="elsewhere").output == "elsewhere"


def test_all_mistakes_in_the_settings_are_told_at_once():
    with pytest.raises(SettingsError) as caught:
        publish.PublishConfig(students=["own"], student_args={"own": 3, "resnet18": {}})
    assert [problem.split()[0] for problem in caught.value.problems] == ["repo", "student_args", "student_args"]
