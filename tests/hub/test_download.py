"""Downloads from the Hub: a set comes whole and checked or not at all, and nothing else comes."""

import hashlib
import itertools
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import traceback
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from hub_server import Fault, client_env
from huggingface_hub import constants
from test_distilled import PARQUET, bits, contents, make_set

from ssdd_hub.errors import InputError
from ssdd_hub.hub.download import fetch_record, list_files, pull_set
from ssdd_hub.sets import parquet
from ssdd_hub.sets.check import verify_folder
from ssdd_hub.sets.distilled import DistilledSet
from ssdd_hub.targets.transform import TargetTransform

REPO = "ann/tiny"
FILES = {"README.md", PARQUET, "preview.png", "ssdd_hub.json"}
CONTENTS = "/resolve/|/storage/"  # what asks for the contents of files
FETCHED = "GET .*(/resolve/|/storage/)"
ALWAYS = 10**6
TOKEN = "hf_abcdefghijklmnopqrstuvwxyz012345"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Returns the files of `make_set(seed)`, which are made once for all tests."""
    made = {}

    def save(seed=0):
        if seed not in made:
            made[seed] = contents(make_set(seed=seed).save(tmp_path_factory.mktemp("saved") / "set"))
        return dict(made[seed])

    return save


@pytest.fixture
def repo(hub, saved):
    """The Hub, with the set of seed 0."""
    hub.commit(REPO, saved())
    return hub


@pytest.fixture
def place(tmp_path):
    """Where a set is pulled to; nothing else is in the folder around it."""
    (tmp_path / "place").mkdir()
    return tmp_path / "place" / "set"


@pytest.fixture(params=[False, True], ids=["free", "taken"])
def before(request, saved, place):
    """What is at the place before something goes wrong, by names from the folder around it."""
    if not request.param:
        return {}
    for name, data in saved(2).items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(data)
    return contents(place.parent)


def load(place, repo_id=REPO, **how):
    return DistilledSet.from_pretrained(repo_id, **how)


def pull(place, repo_id=REPO, **how):
    pull_set(repo_id, place, verify_folder, **how)
    return DistilledSet.load(place)


both = pytest.mark.parametrize("way", [load, pull])


def is_seed(found, seed):
    made = make_set(seed=seed)
    return torch.equal(bits(found.images), bits(made.images)) and torch.equal(bits(found.targets), bits(made.targets))


def around(place):
    """The names beside a place, the hidden ones too."""
    return sorted(path.name for path in place.parent.iterdir())


def is_as_before(place, before):
    return contents(place.parent) == before and around(place) == (["set"] if before else [])


def head(hub):
    return hub.repos["dataset", REPO].branches["main"]


def fail(hub, match="", **how):
    """Sets the only fault, which lasts."""
    hub.faults[:] = [Fault(match, times=ALWAYS, **how)]


# What comes


@both
def test_a_set_comes_bit_for_bit_by_branch_tag_or_sha(repo, saved, place, way):
    shas = [head(repo), *(repo.commit(REPO, saved(seed)) for seed in (1, 2))]
    repo.repos["dataset", REPO].branches["work/1"] = shas[0]
    repo.repos["dataset", REPO].tags["v1"] = shas[1]
    repo.repos["dataset", REPO].pulls["refs/pr/1"] = shas[1]
    revisions = {None: 2, "main": 2, "work/1": 0, "v1": 1, "refs/pr/1": 1, shas[1]: 1, shas[0][:8]: 0}
    for revision, seed in revisions.items():
        found = way(place, revision=revision)
        assert is_seed(found, seed) and found.pixel_space == make_set().pixel_space, revision
        assert way is load or contents(place) == saved(seed)


@both
def test_all_files_of_a_set_come(hub, tmp_path, place, way, monkeypatch):
    monkeypatch.setattr(parquet, "SHARD_BYTES", 2048)
    fitted = TargetTransform.fit("pca", torch.randn(30, 9, generator=torch.Generator().manual_seed(1)), 4)
    made = make_set(size=9, labels=torch.arange(9) % 3, target_transform=fitted)
    files = contents(made.save(tmp_path / "made"))
    assert len([name for name in files if name.startswith("data/")]) > 2
    hub.commit(REPO, files)
    found = way(place)
    assert torch.equal(found.images, made.images) and torch.equal(found.labels, made.labels)
    assert torch.equal(found.target_transform.inverse(found.targets), fitted.inverse(made.targets))
    assert way is load or contents(place) == files


def test_a_folder_is_read_where_it_is(hub, tmp_path):
    folder = make_set().save(tmp_path / "set")
    assert is_seed(DistilledSet.from_pretrained(folder), 0) and is_seed(DistilledSet.from_pretrained(str(folder)), 0)
    with pytest.raises(InputError, match="is a folder, which has no revision 'v1': leave it out"):
        DistilledSet.from_pretrained(folder, revision="v1")
    assert hub.requests == []


FOREIGN = [
    *("x_syn.pt", "data/evil.pkl", "train.py", "config.json", "data/train-00000-of-00001.parquet.exe"),
    *("data/train-0000-of-00001.parquet", "data/train-00000-of-00001.parquet/x", "sub/ssdd_hub.json"),
    *("data/\u0660\u0660\u0660\u0660\u0660-of-00001.parquet", "data/more/train-00000-of-00001.parquet"),
    *("SSDD_HUB.JSON", "ssdd_hub.json\n", "ssdd_hubxjson", ".cache/huggingface/x", "data/../x"),
    *("data/../../x.json", "../x.parquet", "../../../../x.json"),
]


@both
def test_nothing_but_the_files_of_the_set_is_asked_for_or_written(repo, saved, tmp_path, place, way):
    absolute = str(tmp_path / "absolute.json")
    repo.commit(REPO, {**dict.fromkeys(FOREIGN, b"evil"), absolute: b"evil", "huge.bin": bytes(2**22)})
    assert is_seed(way(place), 0)
    assert {each.path.split("/", 6)[6] for each in repo.asked("^(HEAD|GET) /datasets/.*/resolve/")} == FILES
    assert len(repo.asked("GET /storage/")) == len([name for name in FILES if repo.is_large(name, 0)])
    assert {path.name for path in tmp_path.iterdir()} <= {"home", "hub", "place"}
    written = [path for path in tmp_path.rglob("*") if path.is_file() and "objects" not in path.parts]
    assert written and not any(path.read_bytes() in (b"evil", bytes(2**22)) for path in written)
    assert way is load or (contents(place) == saved() and around(place) == ["set"])


@both
def test_a_name_that_another_system_takes_for_one_of_the_set_is_refused(repo, place, way):
    repo.commit(REPO, {"data\\train-00000-of-00001.parquet": b"evil"})
    with pytest.raises(InputError, match=r"has a file 'data\\\\train-00000-of-00001.parquet', which .* takes for"):
        way(place)
    assert repo.asked(CONTENTS) == [] and around(place) == []


def test_the_second_time_everything_is_in_the_cache(repo, saved):
    assert is_seed(load(None), 0)
    fetched = len(repo.asked(CONTENTS))
    assert is_seed(load(None), 0) and is_seed(load(None, revision="main"), 0)
    assert len(repo.asked(CONTENTS)) == fetched
    # Of a newer commit only what has changed comes.
    repo.commit(REPO, {"README.md": b"another card"})
    assert is_seed(load(None), 0)
    assert [each.method for each in repo.asked(CONTENTS)[fetched:]].count("GET") == 1


# Who may


@both
def test_a_private_or_gated_set_is_for_those_who_may_read_it(repo, place, monkeypatch, way):
    kept = repo.repos["dataset", REPO]
    for private, gated, message in (
        (True, False, "ann/tiny .*there is no such repository, or it is private and not open"),
        (False, "manual", "access is granted on request: ask for it on the repository's page"),
    ):
        kept.private, kept.gated = private, gated
        for token in (None, "hf_bob", False):
            with pytest.raises(InputError, match=message):
                way(place, token=token)
        assert around(place) == [] and (gated or repo.asked(CONTENTS) == [])
    assert is_seed(way(place, token="hf_ann"), 0)
    monkeypatch.setenv("HF_TOKEN", "hf_ann")
    assert is_seed(way(place), 0)
    kept.private = True
    with pytest.raises(InputError, match="no such repository"):
        way(place, token=False)
    kept.private, kept.gated = False, False
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    # Refused though no token is needed: the client sends it.
    with pytest.raises(InputError, match="the Hub does not know the token, or wants one: log in by `hf auth login`"):
        way(place)
    assert is_seed(way(place, token=False), 0)


@both
def test_what_is_not_there_is_said(repo, place, way):
    repo.commit("ann/other", {"data.csv": b"1", "sub/ssdd_hub.json": b"{}"})
    for repo_id, revision, message in (
        ("ann/none", None, r"ann/none \(revision main\).* failed: there is no such repository, or it is private"),
        (REPO, "v9", r"ann/tiny \(revision v9\).* failed: there is no such branch, tag or commit in the repository"),
        (REPO, "0" * 40, r"ann/tiny \(revision 0{40}\).* failed: there is no such branch, tag or commit"),
        (REPO, "../../main", "there is no such branch, tag or commit"),
        ("ann/other", None, "ann/other is not a distilled set: it has no ssdd_hub.json"),
        ("ann/a..b", None, r"Cannot have -- or \.\. in repo_id: 'ann/a\.\.b'"),
    ):
        with pytest.raises(InputError, match=message):
            way(place, repo_id, revision=revision)
    asked = len(repo.requests)
    for name in ("a/b/c", "../x", "a b", "a/b c", "set", "a/", "/b", "-a/b", "a/\u00e9", "a/b\n", "a/../b", "a\\b"):
        with pytest.raises(InputError, match="a set on the Hub is named owner/name, got .*no such folder here"):
            way(place, name)
    assert len(repo.requests) == asked and repo.asked(CONTENTS) == [] and around(place) == []


# A Hub that is not there


OUTAGES = [{"drop": "before answer"}, {"drop": "body"}, {"status": 503}, {"status": 429}, {"truncate": True}]


def test_without_the_hub_the_cached_copy_is_read_with_a_warning(repo, caplog, monkeypatch, waits):
    load(None)
    for outage in (*OUTAGES, {}):
        fail(repo, **outage)
        if not outage:
            # Nobody listens there.
            monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        caplog.clear()
        assert is_seed(load(None), 0)
        [record] = [each for each in caplog.records if each.name == "ssdd_hub.hub.download"]
        said = "^the Hub cannot be asked for ann/tiny .*: taken is the copy in the cache, which may be older$"
        assert record.levelname == "WARNING" and re.search(said, record.getMessage())


@both
def test_without_the_hub_and_a_copy_the_error_is_clear(repo, place, waits, way):
    reason = "the Hub (cannot be reached|is not well .status 503., also|limits the rate)|what answers is not the Hub"
    for outage in OUTAGES:
        fail(repo, **outage)
        with pytest.raises(InputError, match=rf"ann/tiny \(revision main\).* failed: ({reason})") as caught:
            way(place)
        assert ("the cache has no whole copy" in str(caught.value)) == (way is load)
    assert around(place) == []


def test_offline_the_cached_copy_is_read_if_it_is_whole(repo, place, monkeypatch, caplog):
    sha = head(repo)
    load(None)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    before = len(repo.requests)
    for revision in (None, "main", sha):
        assert is_seed(load(None, revision=revision), 0)
    offline = "failed: HF_HUB_OFFLINE is set: unset it to reach the Hub"
    for repo_id, revision in ((REPO, "v1"), (REPO, "0" * 40), ("ann/none", None)):
        message = rf"fetching {repo_id} \(revision {revision or 'main'}\), of which the cache has no whole copy, "
        with pytest.raises(InputError, match=message + offline):
            load(None, repo_id, revision=revision)
    with pytest.raises(InputError, match=offline):
        pull(place)
    [card] = Path(constants.HF_HUB_CACHE).rglob("snapshots/*/README.md")
    card.unlink()
    with pytest.raises(InputError, match="the cache has no whole copy"):
        load(None)
    assert len(repo.requests) == before and around(place) == [] and caplog.text == ""


def test_what_the_hub_refuses_is_not_taken_from_the_cache_instead(repo):
    repo.repos["dataset", REPO].tags["v1"] = head(repo)
    assert is_seed(load(None), 0) and is_seed(load(None, revision="v1"), 0)
    del repo.repos["dataset", REPO].tags["v1"]
    with pytest.raises(InputError, match="there is no such branch, tag or commit"):
        load(None, revision="v1")
    repo.repos["dataset", REPO].private = True
    with pytest.raises(InputError, match="there is no such repository, or it is private"):
        load(None)
    repo.commit(REPO, dict.fromkeys(FILES))
    with pytest.raises(InputError, match="is not a distilled set"):
        load(None, token="hf_ann")


def test_a_hub_that_is_gone_once_the_set_is_there_does_no_harm(repo):
    # The last request is where the branch is, for the client to note.
    fail(repo, "GET /api/datasets/ann/tiny/revision/main", drop="before answer")
    assert is_seed(load(None), 0) and repo.faults[0].hits == 1


@pytest.mark.parametrize("step", ["HEAD .*/resolve/", "GET /storage/", "GET .*/resolve/.*ssdd_hub.json"])
def test_an_older_copy_never_stands_in_for_a_newer_set_of_which_the_hub_told(repo, saved, waits, step):
    load(None)
    repo.commit(REPO, saved(1))
    fail(repo, step, status=503)
    with pytest.raises(InputError, match=r"^fetching ann/tiny .* failed: the Hub is not well \(status 503\)"):
        load(None)
    # The older copy is still there for when the Hub cannot be reached.
    fail(repo, drop="before answer")
    assert is_seed(load(None), 0)
    repo.faults.clear()
    assert is_seed(load(None), 1)


def test_an_older_copy_does_not_stand_in_when_the_hub_stumbles(hub, saved, waits):
    for number, step in enumerate(("GET /api/datasets/ann/[0-9]+(/revision/main)?([?]|$)", "GET .*/tree/") * 3):
        repo_id = f"ann/{number}"
        hub.commit(repo_id, saved())
        load(None, repo_id)
        hub.commit(repo_id, saved(1))
        hub.faults[:] = [Fault(step, status=503, skip=number // 2, times=2)]
        assert is_seed(load(None, repo_id), 1), (number, step)


# Failures that pass


STEPS = [
    *("GET /api/datasets/ann/tiny", "GET .*/tree/", "HEAD .*/resolve/.*/ssdd_hub.json"),
    *(f"HEAD .*/resolve/.*/{PARQUET}", "GET .*/resolve/.*/ssdd_hub.json", "GET /storage/"),
]
MISHAPS = [
    *({"status": 503}, {"status": 429, "headers": {"Retry-After": "7"}}, {"drop": "before answer"}),
    *({"drop": "body"}, {"truncate": True}, {"trickle": 2**16}),
]


@pytest.mark.parametrize("mishap", MISHAPS, ids=lambda mishap: " ".join(map(str, mishap.values())))
@both
def test_a_mishap_that_passes_at_each_step_is_outlasted(repo, saved, place, waits, way, mishap):
    has_body = mishap.keys() & {"truncate", "trickle"} or mishap.get("drop") == "body"
    steps = [step for step in STEPS if not (has_body and step.startswith("HEAD"))]
    repo.faults += [Fault(step, **mishap) for step in steps]
    assert is_seed(way(place), 0)
    assert [fault.hits for fault in repo.faults] == [1] * len(steps)
    if mishap.get("status") == 429:
        # The client adds a second to what it is told, and tries a HEAD at once a second time.
        assert waits.count(7.0) + waits.count(8.0) == len([step for step in steps if not step.startswith("HEAD")])
    assert way is load or (contents(place) == saved() and around(place) == ["set"])


@both
def test_a_hub_that_falls_silent_is_given_up_and_asked_again(repo, place, waits, monkeypatch, way):
    monkeypatch.setattr("ssdd_hub.hub.client.TIMEOUT", 0.3)
    for name in ("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT"):
        monkeypatch.setattr(constants, name, 0.3)
    repo.faults += [Fault(step, delay=20) for step in (STEPS[0], STEPS[1], STEPS[2], STEPS[5])]
    repo.faults.append(Fault("GET /storage/", stall=20))
    assert is_seed(way(place), 0)
    assert [fault.hits for fault in repo.faults] == [1] * 5


# Damage


@pytest.mark.parametrize("step", ["GET /storage/", *(f"GET .*/resolve/.*/{name}" for name in ("ssdd_hub", "README"))])
@both
def test_a_damaged_download_is_fetched_once_more_and_then_refused(repo, saved, place, caplog, way, step):
    fail(repo, step, corrupt=True)
    with pytest.raises(InputError, match="came damaged, twice: try again, over another connection if it stays so"):
        way(place)
    assert around(place) == []
    shutil.rmtree(constants.HF_HUB_CACHE, ignore_errors=True)
    repo.faults[:] = [Fault(step, corrupt=True)]
    caplog.clear()
    repo.requests.clear()
    assert is_seed(way(place), 0)
    # All files came once, and the damaged one twice.
    assert repo.faults[0].hits == 1 and len(repo.asked(FETCHED)) == len(FILES) + 1
    assert len(re.findall("is damaged; fetching it once more", caplog.text)) == 1
    assert way is load or contents(place) == saved()


@pytest.mark.parametrize("links", [True, False])
@both
def test_a_damaged_copy_in_the_cache_is_replaced(hub, saved, place, monkeypatch, caplog, links, way):
    # Where the system has no symbolic links, files are kept where they are read.
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_SYMLINKS", not links)
    damages = ("flipped", "cut", "gone", "dangling")
    for number, (name, damage) in enumerate(itertools.product((PARQUET, "ssdd_hub.json"), damages)):
        repo_id = f"ann/{number}"
        hub.commit(repo_id, saved())
        load(None, repo_id)
        [copy] = Path(constants.HF_HUB_CACHE).rglob(f"datasets--ann--{number}/snapshots/*/{name}")
        assert copy.is_symlink() == links
        whole = copy.read_bytes()
        if damage in ("flipped", "cut"):
            copy.write_bytes(bytes([whole[0] ^ 1]) + whole[1:] if damage == "flipped" else whole[:-5])
        else:
            (copy if damage == "gone" else copy.resolve()).unlink()
        caplog.clear()
        fetched = len(hub.asked(FETCHED))
        assert is_seed(way(place, repo_id), 0)
        assert contents(place) == saved() if way is pull else copy.read_bytes() == whole
        if way is load:
            # Where there are links, the content of a file whose link is gone is still there.
            assert len(hub.asked(FETCHED)[fetched:]) == (0 if damage == "gone" and links else 1)
        assert ("fetching it once more" in caplog.text) == (damage in ("flipped", "cut"))


@both
def test_a_hub_that_names_small_files_otherwise_than_git_is_believed(hub, saved, place, monkeypatch, way):
    monkeypatch.setattr("hub_repos.git_oid", lambda kind, content: hashlib.md5(content).hexdigest() + "0" * 8)
    hub.commit(REPO, saved())
    assert is_seed(way(place), 0)


def restated(files, name=None, **changes):
    """Returns the files of a set with another record: another statement of a tensor, or of the set."""
    record = json.loads(files["ssdd_hub.json"])
    if name is not None:
        changes = {"tensors": {**record["tensors"], name: {**record["tensors"].get(name, {}), **changes}}}
    return {**files, "ssdd_hub.json": json.dumps({**record, **changes}).encode()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "images", "sha256": "0" * 64}, "the images are not those that were saved, their sha256 differs"),
        ({"name": "images", "shape": [10**12, 3, 6, 7]}, "does not hold images of the stated shape"),
        ({"name": "../x", "shape": [5], "sha256": "0" * 64}, r"only images, .* can be stated; got \.\./x"),
        ({"format_version": 3}, "states format_version 3, this ssdd_hub reads 1 and 2: upgrade ssdd_hub"),
        (b"[" * 10**5 + b"]" * 10**5, "must be nested at most 30 deep"),
        (b'{"x": "' + b"x" * 9 * 2**20 + b'"}', f"must be of at most {8 * 2**20} bytes, got {9 * 2**20 + 9}"),
        (None, "has no data/train-"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_lie_on_the_hub_is_found_and_its_place_told(hub, saved, place, change, message):
    files = restated(saved(), **change) if isinstance(change, dict) else saved()
    if isinstance(change, bytes):
        files["ssdd_hub.json"] = change
    if change is None:
        del files[PARQUET]
    sha = hub.commit(REPO, files)
    for way in (load, pull):
        with pytest.raises(InputError, match=message) as caught:
            way(place)
        assert f"It is so on the Hub, in commit {sha[:8]} of ann/tiny: choose another" in str(caught.value)
    # It came as the Hub has it: fetching it again would help nobody. One that is too large is not fetched at all.
    assert len(hub.asked("GET .*/resolve/.*/ssdd_hub.json")) == (0 if "8388608" in message else 1)
    assert around(place) == []


# The folder of a pull


def test_a_pulled_set_takes_the_place_of_an_older_one_and_of_nothing_else(repo, saved, place):
    assert pull_set(REPO, str(place), verify_folder) == head(repo)
    assert contents(place) == saved() and around(place) == ["set"]
    assert {path.name for path in place.iterdir()} == {"README.md", "data", "preview.png", "ssdd_hub.json"}
    assert not any(path.is_symlink() for path in place.rglob("*"))
    assert place.stat().st_mode & 0o777 == place.parent.stat().st_mode & 0o777
    repo.commit(REPO, saved(1))
    assert is_seed(pull(place), 1) and contents(place) == saved(1) and around(place) == ["set"]
    (place / "notes.txt").write_text("mine")
    (place.parent / "file").write_text("mine")
    before = contents(place.parent)
    with pytest.raises(InputError, match=r"holds files that are no part of a distilled set \(notes.txt\)"):
        pull(place)
    with pytest.raises(InputError, match="a distilled set is a folder, and .*file is a file"):
        pull(place.parent / "file")
    assert contents(place.parent) == before and around(place) == ["file", "set"]


def test_a_pull_that_fails_leaves_the_place_as_it_was(repo, place, before, waits):
    for step, fault in (
        ("", {"status": 503}),
        ("GET /storage/", {"drop": "before answer"}),
        ("GET /storage/", {"drop": "body"}),
        ("GET /storage/", {"corrupt": True}),
        ("HEAD .*/resolve/.*preview", {"status": 403}),
        ("GET .*/resolve/.*README", {"status": 404}),
    ):
        fail(repo, step, **fault)
        with pytest.raises(InputError, match="ann/tiny"):
            pull(place)
        assert is_as_before(place, before), fault
    repo.faults.clear()
    assert is_seed(pull(place), 0) and around(place) == ["set"]


@both
def test_a_set_that_does_not_fit_is_refused_before_it_is_fetched(repo, place, monkeypatch, way):
    usage = namedtuple("usage", "total used free")(10**6, 10**6 - 10, 10)
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda path: usage)
        with pytest.raises(InputError, match=r"ann/tiny takes \d+,\d\d\d bytes, and .* has 10 left: make room, or"):
            way(place)
    assert repo.asked(CONTENTS) == [] and around(place) == []
    # What is in the cache takes no more room.
    load(None)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert is_seed(load(None), 0)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_disk_that_is_full_is_said_and_nothing_is_left(repo, place, monkeypatch, before):
    real = Path.open

    def opened(path, *args, **settings):
        # The client writes downloads into files of this name.
        return real(Path("/dev/full") if path.name.endswith(".incomplete") else path, *args, **settings)

    for way in (load, pull):
        with monkeypatch.context() as patched:
            patched.setattr(Path, "open", opened)
            with pytest.raises(InputError, match="the disk is full; nothing half-written was left"):
                way(place)
        assert is_as_before(place, before)
        assert not list(Path(constants.HF_HUB_CACHE).rglob("*.incomplete"))
    assert is_seed(load(place), 0) and is_seed(pull(place), 0)


@pytest.mark.slow
def test_killed_while_it_pulls_a_set_it_leaves_the_place_and_can_be_called_again(repo, saved, tmp_path, place):
    old = make_set(seed=1).save(place.parent / "old")
    before = contents(old)
    fail(repo, "GET /storage/", trickle=64)
    code = """
        import sys, threading
        from ssdd_hub.sets.check import verify_folder
        from ssdd_hub.hub.download import pull_set
        pulls = [threading.Thread(target=pull_set, args=("ann/tiny", place, verify_folder)) for place in sys.argv[1:]]
        for pull in pulls:
            pull.start()
        for pull in pulls:
            pull.join()
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), str(place), str(old)], env=client_env(repo, tmp_path / "other")
    )
    try:
        deadline = time.monotonic() + 120
        # Both pulls have begun with the pictures and tables, of which a byte comes now and then.
        while len(repo.asked("GET /storage/")) < 4 and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.02)
        assert len(repo.asked("GET /storage/")) == 4 and process.poll() is None
    finally:
        process.kill()
        process.wait()
    assert not place.exists() and contents(old) == before
    repo.faults.clear()
    for folder in (place, old):
        assert is_seed(pull(folder), 0) and contents(folder) == saved()


@pytest.mark.parametrize("step", ["GET .*/tree/", "GET /storage/"])
def test_interrupted_from_the_keyboard_a_pull_leaves_nothing(repo, place, monkeypatch, before, step):
    real, strike = repo.note, iter([True])

    def note(recorded):
        # While a request is answered, the pull surely goes on.
        noted = real(recorded)
        if re.search(step, f"{recorded.method} {recorded.path}") and next(strike, False):
            os.kill(os.getpid(), signal.SIGINT)
        return noted

    monkeypatch.setattr(repo, "note", note)
    repo.faults.append(Fault(step, delay=0.5))
    # A shell starts what goes to the background with the signal ignored.
    before_it = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            pull(place)
    finally:
        signal.signal(signal.SIGINT, before_it)
    assert is_as_before(place, before)
    assert is_seed(pull(place), 0)


# The record alone


def record_of(revision=None):
    return (fetch_record(REPO, revision) / "ssdd_hub.json").read_bytes()


def test_of_a_set_that_is_shown_only_the_record_comes(repo, saved, monkeypatch):
    sha = head(repo)
    assert record_of() == saved()["ssdd_hub.json"]
    assert {each.path.split("/", 6)[6] for each in repo.asked(CONTENTS)} == {"ssdd_hub.json"}
    repo.commit(REPO, saved(1))
    assert record_of() == saved(1)["ssdd_hub.json"] and record_of(sha) == saved()["ssdd_hub.json"]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert record_of(sha) == saved()["ssdd_hub.json"]
    with pytest.raises(InputError, match="looking at ann/tiny .* no whole copy, failed: HF_HUB_OFFLINE is"):
        record_of()


def test_a_look_does_not_take_the_place_of_a_set_in_the_cache(repo, saved, monkeypatch):
    load(None)
    repo.commit(REPO, saved(1))
    record_of()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert is_seed(load(None), 0) and record_of() == saved()["ssdd_hub.json"]


def test_all_names_of_a_repository_are_listed(repo, waits):
    repo.commit(REPO, {"x.pt": b"1"})
    repo.faults.append(Fault("GET", status=503, times=2))
    assert sorted(list_files(REPO, "main")) == sorted([".gitattributes", "x.pt", *FILES])
    with pytest.raises(InputError, match=r"looking at ann/tiny \(revision v9\) failed: there is no such branch"):
        list_files(REPO, "v9")


@pytest.mark.parametrize(
    ("token", "status", "message"),
    [
        (TOKEN, None, "the Hub does not know the token"),
        (f"{TOKEN} x", None, "the Hub does not know the token"),
        (f"{TOKEN}\n", None, "no request can be made of it .*: look at the token, and at HF_ENDPOINT"),
        (f"{TOKEN}\u00e9", None, "no request can be made of it .*: look at the token, and at HF_ENDPOINT"),
        ("hf_ann", 400, "the Hub refuses it"),
        ("hf_ann", 403, "the token does not allow it .*: take one with that right"),
        ("hf_ann", 503, "the Hub is not well"),
    ],
)
def test_no_token_is_in_a_message_a_log_or_a_traceback(
    repo, tmp_path, place, waits, caplog, monkeypatch, token, status, message
):
    # What the client logs is kept from other loggers by default.
    monkeypatch.setattr(logging.getLogger("huggingface_hub"), "propagate", True)
    caplog.set_level(logging.INFO)
    for step in ("GET /api/datasets", "HEAD", "GET .*/resolve/"):
        if status:
            fail(repo, step, status=status, headers={"X-Error-Message": f"the token {token}, Bearer {token} may not"})
        for way in (load, pull):
            with pytest.raises(InputError, match=message) as caught:
                way(place, token=token)
            told = "".join(traceback.format_exception(caught.value))
            for secret in (token, token.strip(), TOKEN):
                assert secret not in f"{caught.value} {caught.value!r} {caplog.text}" and secret not in told
    assert not any(TOKEN.encode() in data for data in contents(tmp_path / "home").values())
