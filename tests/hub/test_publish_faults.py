"""Failures on the way to the Hub: each ends in a set that is published whole, or in one clear error."""

import subprocess
import sys
import textwrap
import threading
import time

import pytest
from hub_server import Fault, client_env
from test_distilled import make_set
from test_publish import FILES, REPO, commits, heads, is_loaded, push

from ssdd_hub.errors import InputError
from ssdd_hub.hub import upload
from ssdd_hub.sets.publish import plan_set

COMMIT, UPLOAD = "POST .*/commit/main", "PUT /upload/"
STEPS = [
    *("GET /api/whoami-v2", f"GET /api/datasets/{REPO}$", "POST /api/repos/create", f"GET /api/datasets/{REPO}/tree"),
    *("POST .*/preupload/", "POST .*/info/lfs/objects/batch", UPLOAD, "POST .*/info/lfs/verify", COMMIT),
    *("HEAD .*/resolve/", "GET /storage/", "POST .*/tag/"),
]
ALWAYS = 10**6


@pytest.fixture
def folder(tmp_path):
    return make_set().save(tmp_path / "set")


def assert_published(hub):
    """The set is there once, whole, tagged and loadable."""
    assert commits(hub) == ["initial commit", "Publish the distilled set"]
    branches, tags = heads(hub)
    assert list(tags.values()) == [branches["main"]]
    assert hub.files(REPO).keys() == FILES and is_loaded()


def assert_nothing(hub):
    """Nobody sees anything of the set."""
    assert hub.repos == {} or (hub.files(REPO).keys() == {".gitattributes"} and heads(hub)[1] == {})


@pytest.mark.parametrize(
    ("step", "fault"),
    [
        *((step, {"status": 503, "times": 2}) for step in STEPS),
        *((step, {"status": 429, "times": 2, "headers": {"Retry-After": "7"}}) for step in (STEPS[0], COMMIT)),
        *((step, {"drop": "before answer", "times": 2}) for step in (STEPS[0], COMMIT)),
        (UPLOAD, {"drop": "body", "times": 2}),
        # The answer alone is lost.
        *((step, {"drop": "before answer", "after": True}) for step in (*STEPS[:3], *STEPS[4:9], STEPS[-1])),
        *((COMMIT, {"after": True, **fault}) for fault in ({"drop": "body"}, {"status": 503}, {"status": 500})),
        # What comes back is damaged.
        *((STEPS[-2], fault) for fault in ({"corrupt": True}, {"truncate": True}, {"drop": "body"})),
        (f"GET /datasets/{REPO}/resolve/.*/ssdd_hub.json", {"corrupt": True}),
    ],
)
def test_a_failure_that_passes_is_outlasted_and_nothing_is_done_twice(hub, folder, waits, step, fault):
    hub.faults.append(Fault(step, **fault))
    published = push(folder)
    assert hub.faults[0].hits == fault.get("times", 1)
    assert_published(hub)
    assert published.commit == heads(hub)[0]["main"] and published.url.endswith(f"/commit/{published.commit}")
    if fault.get("after") and step == COMMIT:
        assert len(hub.asked(COMMIT)) == 1
    if fault.get("status") == 429:
        assert waits.count(7.0) == 2


def test_a_pull_request_that_was_made_is_found_though_its_answer_is_lost(hub, folder, waits):
    hub.commit(REPO, {})
    hub.faults.append(Fault(COMMIT, drop="before answer", after=True))
    published = push(folder, create_pr=True)
    assert published.revision == "refs/pr/1" and len(hub.asked(COMMIT)) == 1
    assert hub.files(REPO, "refs/pr/1").keys() == FILES


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Fault("", drop="before answer", times=ALWAYS), r"the Hub cannot be reached \(.*\): try again"),
        (Fault(UPLOAD, drop="body", times=ALWAYS), r"the Hub cannot be reached \(.*\): try again"),
        (Fault(COMMIT, status=503, times=ALWAYS), "the Hub is not well .status 503., also after 5 tries: try again"),
        (Fault(COMMIT, status=429, times=ALWAYS), "the Hub limits the rate of requests"),
        (Fault(COMMIT, status=403), r"the token does not allow it \(fault 403\)"),
        (Fault(COMMIT, status=400), r"the Hub refuses it \(fault 400\)"),
        (Fault("POST .*/repos/create", status=403), "the token does not allow it"),
    ],
)
def test_a_failure_that_lasts_is_said_and_leaves_nothing(hub, folder, waits, fault, message):
    hub.faults.append(fault)
    with pytest.raises(InputError, match=f"^publishing ann/tiny failed: {message}"):
        push(folder)
    assert_nothing(hub)
    hub.faults.clear()
    push(folder)
    assert_published(hub)


def test_a_hub_that_falls_silent_is_given_up(hub, folder, waits, monkeypatch):
    monkeypatch.setattr("ssdd_hub.hub.client.TIMEOUT", 0.3)
    hub.faults += [Fault(step, delay=20) for step in (f"GET /api/datasets/{REPO}$", COMMIT)]
    push(folder)
    assert [fault.hits for fault in hub.faults] == [1, 1]
    assert_published(hub)


def test_a_set_that_the_hub_gives_back_damaged_is_not_tagged(hub, folder):
    hub.faults.append(Fault("GET /storage/", corrupt=True, times=ALWAYS))
    with pytest.raises(InputError, match="came back otherwise than sent, twice. It was not tagged: publish again"):
        push(folder)
    assert heads(hub)[1] == {}
    hub.faults.clear()
    push(folder)
    assert_published(hub)


# Other publishers


@pytest.mark.parametrize("exists", [True, False])
def test_of_two_publishers_the_later_one_is_told(hub, folder, tmp_path, exists):
    if exists:
        push(make_set(seed=1).save(tmp_path / "older"))
    mine = plan_set(folder, REPO, token="hf_ann")
    theirs = push(make_set(seed=2).save(tmp_path / "theirs"))
    with pytest.raises(InputError, match="somebody else (wrote to|made) ann/tiny meanwhile.*Nothing of yours"):
        upload.upload(mine, "Mine", "hf_ann")
    assert heads(hub)[0]["main"] == theirs.commit and "Mine" not in commits(hub)
    assert is_loaded(seed=2)


def test_a_repository_made_public_or_hidden_meanwhile_is_not_written_to(hub, folder, monkeypatch):
    mine = plan_set(folder, REPO, private=True, token="hf_ann")
    hub.commit(REPO, {})
    with pytest.raises(InputError, match="somebody else made ann/tiny meanwhile"):
        upload.upload(mine, "Mine", "hf_ann")
    monkeypatch.setattr(upload, "find_repo", lambda repo: None)
    with pytest.raises(InputError, match="ann/tiny is there, and this token may not see it"):
        push(folder)
    assert_nothing(hub)


def test_a_tag_that_another_publisher_took_meanwhile_is_not_mistaken(hub, folder, tmp_path):
    hub.commit(REPO, {})
    other = make_set(seed=2).save(tmp_path / "other")
    plans = [
        plan_set(each, REPO, revision=name, tag="v1", token="hf_ann") for each, name in ((folder, "a"), (other, "b"))
    ]
    first = upload.upload(plans[0], "A", "hf_ann")
    with pytest.raises(InputError, match=f"somebody else put the tag v1 of ann/tiny on commit {first.commit[:8]}"):
        upload.upload(plans[1], "B", "hf_ann")
    assert heads(hub)[1] == {"v1": first.commit}


def test_two_publishers_of_the_same_set_at_once_agree(hub, folder):
    hub.commit(REPO, {})
    plans = [plan_set(folder, REPO, token="hf_ann") for _ in range(2)]
    # Both are at the door of the commit before either goes in.
    hub.faults.append(Fault(COMMIT, delay=0.5, times=2))
    done = []

    def run(plan):
        done.append(upload.upload(plan, "Same", "hf_ann"))

    threads = [threading.Thread(target=run, args=(plan,)) for plan in plans]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert done[0].commit == done[1].commit and done[0].revision == done[1].revision
    assert commits(hub).count("Same") == 1


@pytest.mark.parametrize(
    ("step", "is_seen"),
    [
        pytest.param(UPLOAD, False, marks=pytest.mark.slow),
        (COMMIT, False),
        pytest.param("HEAD .*/resolve/", True, marks=pytest.mark.slow),
        ("POST .*/tag/", True),
    ],
)
def test_killed_nothing_is_seen_or_the_set_is_whole_and_again_it_is_published(hub, folder, tmp_path, step, is_seen):
    hub.faults.append(Fault(step, delay=60))
    script = f"""
        from ssdd_hub.sets.publish import push_set
        push_set({str(folder)!r}, {REPO!r}, token="hf_ann")
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], env=client_env(hub, tmp_path / "home"))
    deadline = time.monotonic() + 60
    while not hub.faults[0].hits and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert hub.faults[0].hits == 1
    process.kill()
    process.wait()
    hub.faults.clear()
    if is_seen:
        assert is_loaded()
    else:
        assert_nothing(hub)
    push(folder)
    assert_published(hub)
