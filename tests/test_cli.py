"""The command line, as a user types it; `main` in this process, and the console script in its own."""

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hub_server import Fault, client_env
from test_distilled import PARQUET, contents, make_set

from ssdd_hub import DistilledSet, PixelSpace
from ssdd_hub.cli import describe_set, main
from ssdd_hub.models.pretraining import StudentTrainingSettings
from ssdd_hub.runs.own_runs import remember_run
from ssdd_hub.sets.gallery import keep_starts
from ssdd_hub.text import printable, show_bytes

SCRIPT = Path(sys.executable).with_name("ssdd-hub")
STUDENT = {"name": "ssdd_convnet3", "model_args": {"widths": [4, 6, 8]}}
SCORE = {"set": "distilled", "protocol": "probe", "metric": "accuracy", "mean": 0.9, "std": 0.01, "n": 3}
SCORE |= {"images": 5, "bytes": 5200}
FACTS = {
    "method": "krr-st",
    "settings": {"distiller": {"num_images": 5}},
    "seed": 3,
    "source": {"name": "digits", "license": "cc-by-4.0", "num_images": 200},
    "teacher": {"name": "small-0", "license": "mit"},
    "student": STUDENT,
    "use": {"epochs": 2, "batch_size": 4, "learning_rate": 0.01, "augmentation": "crop-flip"},
    "license": "cc-by-4.0, mit",
    "versions": {"torch": "2.15.0"},
    "command": "accelerate launch recipes/distill.py",
    "scores": [SCORE],
}


def full_set(**facts):
    """Makes a set of 5 grey images of 16x16 with targets of width 4, in whose record nothing is missing."""
    generator = torch.Generator().manual_seed(7)
    images, targets = torch.randn(5, 1, 16, 16, generator=generator), torch.randn(5, 4, generator=generator)
    return DistilledSet(images, targets, PixelSpace((0.3,), (0.4,)), provenance={**FACTS, **facts})


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The set, in the folder `set` of the working directory."""
    monkeypatch.chdir(tmp_path)
    full_set().save(tmp_path / "set")
    return tmp_path / "set"


@pytest.fixture
def ann(hub, monkeypatch):
    """The Hub, with ann logged in."""
    monkeypatch.setenv("HF_TOKEN", "hf_ann")
    return hub


@pytest.fixture
def ssdd(capsys):
    """Runs a command that is to end well; returns what it printed."""

    def run(*words, status=0):
        capsys.readouterr()
        assert main([str(word) for word in words]) == status, capsys.readouterr()
        return capsys.readouterr().out

    return run


@pytest.fixture
def refusal(capsys):
    """Runs a command that is to be refused; returns its only message."""

    def run(*words):
        capsys.readouterr()
        assert main([str(word) for word in words]) == 2
        printed = capsys.readouterr()
        assert printed.err.count("error:") == 1
        assert "Traceback" not in printed.err and "hf_" not in printed.err + printed.out
        # Before it there may be the client's bars.
        return printed.err[printed.err.index("error:") :]

    return run


def digests(folder):
    tensors = json.loads((folder / "ssdd_hub.json").read_text())["tensors"]
    return [tensors[name]["sha256"] for name in ("images", "targets")]


def record(hub, repo_id, revision="main"):
    return json.loads(hub.files(repo_id, revision)["ssdd_hub.json"])["provenance"]


def writes(hub):
    return hub.asked("^(POST|PUT|DELETE|PATCH)")


# card


def test_a_card_is_rendered_again_with_what_is_stated_besides(folder, ssdd):
    scores = folder.parent / "scores.json"
    scores.write_text(json.dumps({"records": [{**SCORE, "mean": 0.123}]}))
    before = contents(folder)
    told = ssdd("card", "set", "--scores", scores, "--license", "cc-by-nc-4.0", "--location", "sets/mine")
    assert told == "the card of set is rendered again\n"
    after = contents(folder)
    assert {name for name in after if after[name] != before[name]} == {"README.md", "ssdd_hub.json"}
    assert after.keys() == before.keys()
    loaded = DistilledSet.load(folder)
    assert loaded.provenance["scores"] == [{**SCORE, "mean": 0.123}]
    card = after["README.md"].decode()
    assert (
        card.startswith("---\nlicense: cc-by-nc-4.0\n") and 'from_pretrained("sets/mine")' in card and "12.3" in card
    )
    # Scores of an evaluation bring the recipe of its students along.
    use = StudentTrainingSettings(steps=7, optimizer="muon", learning_rate=0.01).describe()
    scores.write_text(json.dumps({"records": [SCORE], "use": use}))
    ssdd("card", "set", "--scores", scores)
    assert DistilledSet.load(folder).provenance["use"] == use and loaded.provenance["use"] != use
    assert "| Optimizer | muon |" in (folder / "README.md").read_text()
    ssdd("card", "set")
    assert 'from_pretrained("../set")  # the path of this folder' in (folder / "README.md").read_text()
    assert ssdd("check", "set").endswith("set: 0 error(s), 0 warning(s)\n")


def test_a_card_is_not_rendered_for_a_set_that_is_damaged_or_may_not_have_the_licence(folder, refusal):
    full_set(teacher={"name": "x", "license": "cc-by-nc-4.0"}).save("strict")
    (folder / "preview.png").unlink()
    for place, problem in (("strict", "the teacher is under cc-by-nc-4.0"), ("set", "preview.png: is missing")):
        before = contents(Path(place))
        assert problem in refusal("card", place, "--license", "mit")
        assert contents(Path(place)) == before


# push


def test_push_says_what_it_sends_and_where_and_how_to_load_it(ann, folder, ssdd):
    printed = ssdd("push", "set", "digits-krrst").splitlines()
    assert printed[0].startswith("to the new public dataset ann/digits-krrst, branch main, tag set-")
    tag = printed[0].rpartition(" ")[2]
    sizes = {line.split()[0]: line.split()[1] for line in printed[1:5]}
    sent = {name: data for name, data in ann.files("ann/digits-krrst").items() if name != ".gitattributes"}
    assert sizes == {name: f"{len(data):,}" for name, data in sent.items()}
    assert printed[5].split() == ["in", "all", f"{sum(map(len, sent.values())):,}", "bytes"]
    commit = ann.repos["dataset", "ann/digits-krrst"].branches["main"]
    assert printed[6] == f"published and verified: {ann.endpoint}/datasets/ann/digits-krrst/commit/{commit}"
    images, targets = digests(folder)
    assert printed[7:9] == [f"  images sha256 {images}", f"  targets sha256 {targets}"]
    assert printed[9:] == [
        "load it by",
        f'  ssdd_hub.DistilledSet.from_pretrained("ann/digits-krrst", revision="{tag}")',
        f'  datasets.load_dataset("ann/digits-krrst", revision="{tag}", split="train")',
    ]
    loaded = eval(printed[10].strip(), {"ssdd_hub": __import__("ssdd_hub")})
    assert torch.equal(loaded.images, full_set().images)


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_push_warns_of_a_source_that_may_not_be_public_and_goes_on(ann, folder, ssdd, caplog, dry):
    alike = {"nearest": {"median": 0.9, "max": 0.95, "above_0.8": 4, "of": 5}}
    ssdd("push", "set", "open", *dry)
    assert not caplog.records
    full_set(source={"name": "holiday", "revision": None}, similarity=alike).save(folder)
    assert "to the new public dataset ann/shut" in ssdd("push", "set", "shut", *dry)
    assert [each.getMessage().partition(":")[0] for each in caplog.records] == ["warning"] * 2
    assert "the source, holiday, is not known to be public" in caplog.text and "in 4 of 5 images" in caplog.text


@pytest.mark.parametrize("token", ["", "hf_ann", "hf_eve"])
def test_a_dry_run_sends_nothing_and_needs_no_token(hub, folder, ssdd, monkeypatch, token):
    monkeypatch.setenv("HF_TOKEN", token)
    printed = ssdd("push", "set", "lab/x", "--dry-run", "--private", "--revision", "next", "--tag", "v1")
    assert printed.startswith("to the new private dataset lab/x, branch next (new), tag v1\n")
    assert printed.endswith("\nnothing was sent\n") and PARQUET in printed and "published" not in printed
    assert hub.requests and {each.method for each in hub.requests} == {"GET"} and hub.repos == {}


def test_a_dry_run_over_what_is_there_writes_nothing_and_says_what_goes(ann, folder, ssdd):
    ssdd("push", "set", "x")
    ann.commit("ann/x", {"data/train-00000-of-00002.parquet": b"old", "notes.txt": b"of the owner"})
    before, past = dict(ann.repos["dataset", "ann/x"].branches), len(writes(ann))
    printed = ssdd("push", "set", "x", "--dry-run")
    assert re.search(r"^  data/train-00000-of-00002\.parquet +removed$", printed, re.MULTILINE)
    assert "notes.txt" not in printed and "to the public dataset ann/x" in printed
    # To ask what files are of the tag is a POST as well.
    assert not [each for each in writes(ann)[past:] if "/paths-info/" not in each.path]
    assert ann.repos["dataset", "ann/x"].branches == before


def test_push_makes_private_repositories_branches_tags_and_pull_requests(ann, folder, ssdd):
    first = ("push", "set", "lab/x", "--private", "--tag", "v1", "--message", "The first")
    assert "to the new private dataset lab/x, branch main, tag v1\n" in ssdd(*first)
    repo = ann.repos["dataset", "lab/x"]
    assert repo.private and repo.tags == {"v1": repo.branches["main"]} and repo.commits[-1].title == "The first"
    printed = ssdd("push", "set", "lab/x", "--revision", "dev", "--tag", "", "--license", "cc-by-4.0")
    assert "to the private dataset lab/x, branch dev (new)\n" in printed and repo.tags.keys() == {"v1"}
    # Without a tag, the commit is what is loaded.
    assert repo.branches["dev"] != repo.branches["main"] and f'revision="{repo.branches["dev"]}")' in printed
    offered = ssdd("push", "set", "lab/x", "--create-pr", "--license", "mit")
    assert "lab/x, a pull request\n" in offered and 'revision="refs/pr/1"' in offered
    assert record(ann, "lab/x", "refs/pr/1")["license"] == "mit"
    assert record(ann, "lab/x")["license"] == FACTS["license"] and repo.tags.keys() == {"v1"}


def test_what_is_stated_besides_is_in_the_record_and_on_the_card(ann, folder, ssdd, tmp_path):
    score = {**SCORE, "set": "elsewhere", "mean": 0.4242}
    (tmp_path / "scores.json").write_text(json.dumps({"records": [score]}))
    before = contents(folder)
    ssdd("push", "set", "x", "--license", "mit", "--teacher", "ann/x-teacher", "--scores", tmp_path / "scores.json")
    stated, card = record(ann, "ann/x"), ann.files("ann/x")["README.md"].decode()
    assert (stated["license"], stated["teacher"]["hub"], stated["scores"]) == ("mit", "ann/x-teacher", [score])
    assert "license: mit\n" in card and "(https://huggingface.co/ann/x-teacher)" in card and "42.4" in card
    assert contents(folder) == before


def test_a_licence_more_permissive_than_the_teachers_needs_a_reason(ann, folder, ssdd, refusal, tmp_path):
    strict = {**FACTS["teacher"], "license": "cc-by-nc-4.0"}
    full_set(teacher=strict, license="cc-by-nc-4.0").save(tmp_path / "strict")
    said = refusal("push", "strict", "x", "--license", "mit")
    assert "the teacher is under cc-by-nc-4.0, which forbids commercial use" in said and writes(ann) == []
    ssdd("push", "strict", "x", "--license", "mit", "--license-reason", "The owner of the teacher agreed")
    assert "The owner of the teacher agreed" in ann.files("ann/x")["README.md"].decode()


@pytest.mark.parametrize(
    ("token", "words", "problem"),
    [
        ("", ("set", "ann/x"), "there is no token: log in by `hf auth login`, or set HF_TOKEN"),
        ("", ("set", "x", "--dry-run"), "there is no token"),
        ("hf_nobody", ("set", "ann/x"), "publishing ann/x failed: the Hub does not know the token"),
        ("hf_eve", ("set", "lab/x"), "the token may only read, and publishing writes"),
        ("hf_ann", ("set", "bob/x"), "You don't have the rights to write under the namespace bob"),
        ("hf_ann", ("gone", "x"), "there is no distilled set at gone"),
        ("hf_ann", (".", "x"), "it has no ssdd_hub.json"),
        ("hf_ann", ("set", "a/b/c"), "named owner/name or name, got 'a/b/c'"),
        ("hf_ann", ("set", "x", "--teacher", "runs/digits/teacher"), "--teacher must be the teacher's repository"),
        ("hf_ann", ("set", "x", "--scores", "none.json"), "none.json cannot be read as scores.json"),
    ],
)
def test_push_refuses_with_one_message_and_writes_nothing(hub, folder, refusal, monkeypatch, token, words, problem):
    monkeypatch.setenv("HF_TOKEN", token)
    assert problem in refusal("push", *words)
    assert hub.repos == {}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("no JSON", "cannot be read as scores.json"),
        ("[]", "cannot be read as scores.json"),
        ('{"records": {"set": "a"}}', "must hold a list of objects"),
        ('{"records": [3]}', "must hold a list of objects"),
        ('{"records": [{"mean": NaN}]}', "cannot be read as scores.json"),
        ('{"records": [{"set": "\\ud800"}]}', "cannot be read as scores.json"),
        ('{"records": [], "use": "SGD"}', "must hold an object as use"),
        ('{"records": [], "use": {"steps": -1}}', "steps"),
    ],
)
def test_scores_that_are_none_are_refused(ann, folder, refusal, tmp_path, text, problem):
    (tmp_path / "scores.json").write_text(text)
    assert problem in refusal("push", "set", "x", "--scores", "scores.json")
    assert ann.requests == []


def test_a_set_with_errors_is_not_sent_and_each_is_named(ann, folder, refusal):
    record = folder / "ssdd_hub.json"
    record.write_text(record.read_text().replace("recipes/distill.py", f"recipes/distill.py hf_{'a1B2' * 8}"))
    assert "looks like an access token" in refusal("push", "set", "x")
    full_set().save(folder)
    (folder / "model.pkl").write_bytes(b"code")
    (folder / "preview.png").unlink()
    first, *found = refusal("push", "set", "x").splitlines()
    assert first == "error: set cannot be published as it is:"
    assert [line.split(":")[0] for line in found] == ["  model.pkl", "  preview.png"]
    assert ann.repos == {}


# pull


def test_pull_brings_the_same_bytes_to_the_default_and_to_a_named_folder(ann, folder, ssdd, tmp_path, monkeypatch):
    ssdd("push", "set", "x", "--tag", "v1")
    ssdd("push", "set", "x", "--license", "mit", "--tag", "v2")
    monkeypatch.setenv("HF_TOKEN", "")
    commit = ann.repos["dataset", "ann/x"].branches["main"]
    assert ssdd("pull", "ann/x") == f"ann/x at commit {commit}, verified, is in x\n"
    first = ann.repos["dataset", "ann/x"].tags["v1"]
    assert f"commit {first}, " in ssdd("pull", "ann/x", tmp_path / "deep" / "old", "--revision", "v1")
    for place, revision in ((tmp_path / "x", "v2"), (tmp_path / "deep" / "old", "v1")):
        sent = {name: data for name, data in ann.files("ann/x", revision).items() if name != ".gitattributes"}
        assert contents(place) == sent
        assert digests(place) == digests(folder)
    assert ssdd("pull", "ann/x", "x", "--revision", "v1") and contents(tmp_path / "x") == sent


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("ann/none",), "there is no such repository, or it is private"),
        (("x",), "a set on the Hub is named owner/name, got 'x'"),
        (("ann/x", "there", "--revision", "v9"), "(revision v9) to there failed: there is no such branch, tag or"),
        (("ann/other",), "ann/other is not a distilled set: it has no ssdd_hub.json"),
        (("ann/x", "taken"), "holds files that are no part of a distilled set (thesis.tex)"),
    ],
)
def test_pull_refuses_and_leaves_the_place_as_it_was(ann, folder, ssdd, refusal, tmp_path, words, problem):
    ssdd("push", "set", "x")
    ann.commit("ann/other", {"README.md": b"of another kind"})
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").write_text("years of work")
    assert problem in refusal("pull", *words)
    assert {path.name for path in tmp_path.iterdir()} <= {"set", "taken", "hub", "home"}
    assert contents(tmp_path / "taken") == {"thesis.tex": b"years of work"}


# list


def test_list_finds_the_sets_and_nothing_else(ann, folder, ssdd, monkeypatch):
    assert ssdd("list") == "no sets were found\n"
    ssdd("push", "set", "digits")
    ssdd("push", "set", "lab/digits-private", "--private")
    ann.commit("bob/pictures", {"README.md": b"---\ntags: [cats]\n---\n"})
    date = r"  \d{4}-\d\d-\d\d"
    assert re.fullmatch(f"ann/digits        {date}\nlab/digits-private{date}  private\n", ssdd("list"))
    assert re.fullmatch(f"lab/digits-private{date}  private\n", ssdd("list", "--author", "lab"))
    assert re.fullmatch(f"ann/digits{date}\n", ssdd("list", "--limit", "1"))
    assert len(ssdd("list", "--search", "PRIVATE").splitlines()) == 1
    assert ssdd("list", "--author", "bob") == ssdd("list", "--search", "none") == "no sets were found\n"
    monkeypatch.setenv("HF_TOKEN", "")
    assert re.fullmatch(f"ann/digits{date}\n", ssdd("list"))


def test_list_waits_for_a_busy_hub_and_gives_up_in_the_end(ann, folder, ssdd, refusal, waits):
    ssdd("push", "set", "x")
    ann.faults.append(Fault("GET /api/datasets", status=429, headers={"Retry-After": "7"}))
    # Other threads of the process may sleep as well, each a moment.
    assert ssdd("list").startswith("ann/x ") and [7 <= wait <= 8 for wait in waits if wait > 1] == [True]
    busy = Fault("GET /api/datasets", status=503, times=99)
    ann.faults.append(busy)
    assert "error: listing sets failed: the Hub is not well (status 503)" in refusal("list")
    # The client tries again by itself: with more tries of ours, it would take minutes until this is said.
    assert 2 <= busy.hits <= 12 and sum(wait for wait in waits if wait >= 0.5) < 60


# show

SHOWN = """\
images        5, 1, 16, 16
targets       5, 4
pixel_space   mean: 0.3; std: 0.4
pixel_range   -0.981975, 1.71564
num_bytes     5.2 kB (images 5.1 kB, targets 80 B), in files of FILES
method        krr-st
license       cc-by-4.0, mit
source        name: digits; license: cc-by-4.0; num images: 200
teacher       name: small-0; license: mit
student       name: ssdd_convnet3; model args: widths: 4, 6, 8
use           epochs: 2; batch size: 4; learning rate: 0.01; augmentation: crop-flip
command       accelerate launch recipes/distill.py
set        images  bytes   probe
---------  ------  ------  ------------------
distilled  5       5.2 kB  90.0 ± 1.0 % (n=3)
"""


def shown(folder):
    """What is shown of the set; the size of its files is that of the Parquet writer at hand."""
    size = sum(path.stat().st_size for path in (folder / "data").iterdir())
    return SHOWN.replace("FILES", show_bytes(size))


def test_show_tells_of_a_folder_and_of_a_repository_the_same(ann, folder, ssdd, monkeypatch):
    assert ssdd("show", "set") == shown(folder)
    ssdd("push", "set", "x", "--tag", "v1")
    ssdd("push", "set", "x", "--tag", "v2", "--license", "mit")
    monkeypatch.setenv("HF_TOKEN", "")
    asked = len(ann.requests)
    assert ssdd("show", "ann/x", "--revision", "v1") == shown(folder)
    assert ssdd("show", "ann/x") == shown(folder).replace("cc-by-4.0, mit", "mit")
    # The record alone is fetched.
    assert not [each for each in ann.requests[asked:] if "/resolve/" in each.path and "ssdd_hub.json" not in each.path]


def test_a_set_without_a_record_shows_what_is_known(folder, ssdd):
    make_set().save("bare")
    printed = ssdd("show", "bare").splitlines()
    assert printed[0].split(maxsplit=1) == ["images", "5, 3, 6, 7"] and printed[-1] == "no scores"


def hostile_records():
    sly = "\x1b[2J\x1b]0;title\x07\r\nlicense  mit\u202e\x00"
    base = json.loads(json.dumps({"format_version": 1, "tensors": {}}))
    score = {**SCORE, "std": None}
    yield {**base, "tensors": {sly: {"shape": [sly]}, "images": {"shape": [sly, {sly: sly}]}}, "pixel_space": sly}
    yield {**base, "tensors": sly, "provenance": {"method": sly, "source": {sly: sly}, "license": [sly], "use": 7}}
    yield {**base, "tensors": [], "provenance": [sly], "pixel_range": {sly: [sly]}}
    for scores in (
        [{**score, "set": sly, "protocol": sly, "metric": sly}, {**score, "set": sly, "labels": 3}],
        [{**score, "n": sly}],
        [{**score, "mean": sly}],
        [{**score, "mean": 10**400}],
        [{**score, "set": "x" * 10**6}, *({**score, "set": f"s{index}"} for index in range(1000))],
        [score, score],
        [sly, 3],
        {sly: sly},
        7,
    ):
        yield {**base, "provenance": {"scores": scores}}


@pytest.mark.parametrize("number", range(len(list(hostile_records()))))
def test_a_hostile_record_steers_no_terminal_and_ends_in_no_traceback(hub, capsys, tmp_path, number):
    hostile = list(hostile_records())[number]
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "ssdd_hub.json").write_text(json.dumps(hostile))
    hub.commit("bob/trap", {"ssdd_hub.json": json.dumps(hostile).encode()})
    for place in (tmp_path / "set", "bob/trap"):
        assert main(["show", str(place)]) in (0, 2)
        captured = capsys.readouterr()
        printed = captured.out + captured.err.rpartition("error: ")[2]  # without the bars of the download
        assert all(letter.isprintable() for letter in printed.replace("\n", "")) and len(printed) < 10**6
        described = "\n".join(printable(line) for line in describe_set(hostile))
        assert all(letter.isprintable() for letter in described.replace("\n", ""))
        # No line of its own making: what is told of a record begins with a name of ours.
        assert not [line for line in printed.splitlines() if line.startswith(("license  mit", "title"))]


def test_a_broken_record_is_refused_with_a_message(hub, refusal, tmp_path):
    hub.commit("bob/trap", {"ssdd_hub.json": b"\x80\x04no JSON"})
    hub.commit("bob/new", {"ssdd_hub.json": b'{"format_version": 99}'})
    assert "is damaged, it is not JSON" in refusal("show", "bob/trap")
    assert "states format_version 99, this ssdd_hub reads 1 and 2: upgrade ssdd_hub" in refusal("show", "bob/new")
    assert "named owner/name, got 'gone'; and there is no such folder here" in refusal("show", "gone")
    assert "there is no such repository" in refusal("show", "bob/gone")


# check


def test_check_of_a_good_set_finds_nothing_in_a_folder_or_a_repository(ann, folder, ssdd, tmp_path):
    assert ssdd("check", "set") == "set: 0 error(s), 0 warning(s)\n"
    ssdd("push", "set", "x")
    assert ssdd("check", "ann/x") == "ann/x: 0 error(s), 0 warning(s)\n"
    assert {path.name for path in tmp_path.iterdir()} == {"set", "hub"}


def test_check_counts_what_it_finds_errors_first_and_warnings_alone_are_no_failure(folder, ssdd):
    (folder / "notes.txt").write_text("mine")
    (folder / "data.PKL").write_bytes(b"\x80\x04.")
    printed = ssdd("check", "set", status=1).splitlines()
    assert printed[0].startswith("error: data.PKL: a file of this kind may run code when it is loaded")
    assert printed[1].startswith("warning: notes.txt: is no part of a distilled set")
    assert printed[2] == "set: 1 error(s), 1 warning(s)"
    full_set(scores=[], license="unknown").save("poor")
    printed = ssdd("check", "poor")
    assert "the licence is unknown" in printed and printed.endswith("poor: 0 error(s), 2 warning(s)\n")


def test_check_of_a_repository_reports_code_and_strangers_and_fetches_neither(ann, folder, ssdd):
    ssdd("push", "set", "x", "--tag", "good")
    strange = {"x.py": b"raise", "old/weights.pt": b"\x80\x04.", "notes.txt": b"read me", "\x1b[2J.so": b""}
    ann.commit("ann/x", strange)
    printed = ssdd("check", "ann/x", status=1).splitlines()
    text = "a file of this kind may run code when it is loaded; it was not fetched"
    assert printed[:3] == [f"error: {name}: {text}" for name in (" [2J.so", "old/weights.pt", "x.py")]
    assert printed[3:] == [
        "warning: notes.txt: is no part of a distilled set; it was not fetched",
        "ann/x: 3 error(s), 1 warning(s)",
    ]
    assert not [each for each in ann.requests if "/resolve/" in each.path and each.path.endswith(tuple(strange))]
    assert ssdd("check", "ann/x", "--revision", "good") == "ann/x: 0 error(s), 0 warning(s)\n"


def test_check_of_a_damaged_repository_says_what_is_damaged(ann, folder, ssdd, refusal):
    ssdd("push", "set", "x")
    ann.commit("ann/x", {PARQUET: ann.files("ann/x")[PARQUET][:-9]})
    printed = ssdd("check", "ann/x", status=1)
    assert printed.startswith("error: data: ") and printed.endswith("ann/x: 1 error(s), 0 warning(s)\n")
    assert "there is no such repository" in refusal("check", "ann/none")


@pytest.mark.parametrize("command", ["show", "check", "view"])
def test_a_folder_has_no_revision(folder, refusal, command):
    message = "error: set is a folder, which has no revision 'v1': leave it out\n"
    assert refusal(command, "set", "--revision", "v1") == message


# view


def test_view_writes_the_gallery_of_a_folder_and_of_a_repository_alike(ann, folder, ssdd, tmp_path):
    assert ssdd("view", "set") == "the gallery is gallery.html: open it in a browser\n"
    page = (tmp_path / "gallery.html").read_text(encoding="utf-8")
    assert page.count("<figure") == 5 and "<h1>set: 5 images</h1>" in page
    ssdd("push", "set", "x", "--tag", "v1")
    assert ssdd("view", "ann/x", "--revision", "v1", "--output", "new/x.html").startswith("the gallery is new/x.html")
    theirs = (tmp_path / "new" / "x.html").read_text(encoding="utf-8")
    assert theirs == page.replace("set: 5 images", "ann/x: 5 images")


def test_view_writes_a_space(folder, ssdd, tmp_path):
    assert "hf upload OWNER/NAME space --repo-type space" in ssdd("view", "set", "--space", "space")
    assert sorted(path.name for path in (tmp_path / "space").iterdir()) == ["README.md", "index.html"]
    ssdd("view", "set", "--space", "space")


@pytest.mark.parametrize("name", ["README.md", "index.html"])
def test_a_space_replaces_no_page_of_somebody_else(folder, refusal, tmp_path, name):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / name).write_text("mine")
    assert "site holds a README.md or an index.html of its own" in refusal("view", "set", "--space", "site")
    assert [(path.name, path.read_text()) for path in (tmp_path / "site").iterdir()] == [(name, "mine")]


def test_a_place_that_cannot_be_written_is_a_message(folder, capsys, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert main(["view", "set", "--output", "pipe"]) == 2
    assert "pipe is no file that could be replaced: choose another place" in capsys.readouterr().err
    (tmp_path / "site").mkdir()
    (tmp_path / "file").write_text("")
    for place in ("site", "file/page.html"):
        assert main(["view", "set", "--output", place]) == 1
        assert re.match(r"error: the system refused it \(.*: choose another place", capsys.readouterr().err)
    assert (tmp_path / "pipe").is_fifo() and (tmp_path / "file").read_text() == ""


@pytest.fixture
def run(folder, monkeypatch, tmp_path):
    """A run that this user began, with what its set started from."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    place = tmp_path / "runs" / "mine"
    full_set().save(place / "distilled")
    (place / "config.yaml").write_text("seed: 0\n")
    keep_starts(place, torch.rand(5, 1, 16, 16))
    remember_run(place / "config.yaml")
    return place


def test_view_shows_the_starts_of_a_run_of_this_user(run, ssdd, tmp_path):
    for place in (run, run / "distilled"):
        assert ssdd("view", place).startswith(f"the gallery is {run / 'gallery.html'}:")
        page = (run / "gallery.html").read_text(encoding="utf-8")
        assert "<h1>mine: 5 images</h1>" in page and page.count('class="tile start"') == 5
    # What others see holds no real images.
    ssdd("view", run, "--space", "space")
    assert "started from" not in (tmp_path / "space" / "index.html").read_text(encoding="utf-8")


def test_view_shows_no_starts_of_a_run_of_somebody_else(run, ssdd):
    (run / "config.yaml").write_text("seed: 1\n")
    ssdd("view", run)
    assert "started from" not in (run / "gallery.html").read_text(encoding="utf-8")


def test_view_shows_no_starts_of_other_images(run, ssdd):
    keep_starts(run, torch.rand(4, 1, 16, 16))
    ssdd("view", run)
    assert "started from" not in (run / "gallery.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("place", ["nowhere", "no/where"])
def test_view_refuses_what_is_no_set_and_writes_nothing(hub, refusal, tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    refusal("view", place)
    assert not list(tmp_path.glob("*.html"))


# All commands


def test_every_command_has_its_help_and_a_limit_is_a_positive_number(capsys):
    shown = {"push": ["--dry-run", "--scores"], "card": ["--location"], "list": ["(50)"], "check": ["--revision"]}
    shown["view"] = ["--space", "--output"]
    for words, parts in [((), shown), *(((name,), parts) for name, parts in shown.items())]:
        with pytest.raises(SystemExit) as ended:
            main([*words, "--help"])
        printed = capsys.readouterr().out
        assert ended.value.code == 0 and printed.startswith("usage: ssdd-hub")
        assert not [part for part in parts if part not in printed]
    for limit in ("0", "-1", "many", "1.5"):
        with pytest.raises(SystemExit) as ended:
            main(["list", f"--limit={limit}"])
        assert ended.value.code == 2
        assert f"argument --limit: must be a whole number of at least 1, got '{limit}'" in capsys.readouterr().err


def test_an_interrupt_ends_with_a_word_and_status_130(ann, folder, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("ssdd_hub.hub.download.pull_set", interrupted)
    assert main(["pull", "ann/x"]) == 130
    assert capsys.readouterr().err == "error: interrupted; nothing was left half-written\n"


@pytest.mark.parametrize("command", [("push", "set", "ann/x"), ("pull", "ann/x"), ("list",), ("check", "ann/x")])
def test_a_token_that_the_hub_does_not_know_is_said_once_and_not_shown(hub, folder, refusal, monkeypatch, command):
    secret = "hf_" + "secret99" * 4
    monkeypatch.setenv("HF_TOKEN", secret)
    said = refusal(*command)
    assert said.count("\n") == 1 and secret not in said and "failed: " in said


def test_a_terminal_without_a_letter_gets_it_spelt(folder, monkeypatch):
    plain = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", plain)
    assert main(["show", "set"]) == 0
    plain.flush()
    assert plain.buffer.getvalue().decode() == shown(folder).replace("±", r"\xb1")


@pytest.fixture
def script(hub, tmp_path):
    """Runs the console script, and returns its status and what it printed on stdout and stderr."""

    def run(*words, **variables):
        env = {**client_env(hub, tmp_path / "home"), **variables}
        done = subprocess.run([SCRIPT, *words], cwd=tmp_path, env=env, text=True, capture_output=True)
        return done.returncode, done.stdout, done.stderr

    return run


@pytest.mark.slow
def test_the_console_script_publishes(script, hub, folder):
    status, printed, errors = script("push", "set", "x", HF_TOKEN="hf_ann")
    assert status == 0 and "hf_ann" not in printed + errors, errors
    assert f"published and verified: {hub.endpoint}/datasets/ann/x/commit/" in printed
    assert "ssdd_hub.json" in hub.files("ann/x")


def test_the_console_script_ends_with_a_message_where_it_cannot(script):
    status, printed, message = script("pull", "ann/none")
    assert (status, printed) == (2, "")
    assert re.fullmatch("error: pulling ann/none .* failed: there is no such repository.*\n", message)
