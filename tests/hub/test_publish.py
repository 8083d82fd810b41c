import json
import logging
import re

import pytest
import torch
from hub_server import Fault
from test_distilled import PARQUET, bits, make_set

from ssdd_hub.errors import InputError
from ssdd_hub.hub.upload import upload
from ssdd_hub.sets import parquet
from ssdd_hub.sets.distilled import DistilledSet
from ssdd_hub.sets.publish import CardOverrides, plan_set, push_set

REPO = "ann/tiny"
FILES = {".gitattributes", "README.md", PARQUET, "preview.png", "ssdd_hub.json"}
WRITES = "^(POST|PUT|DELETE|PATCH) (?!.*/paths-info/)"


@pytest.fixture
def folder(tmp_path):
    return make_set().save(tmp_path / "set")


def push(folder, repo_id=REPO, token="hf_ann", **how):
    return push_set(folder, repo_id, token=token, **how)


def heads(hub, repo_id=REPO):
    repo = hub.repos["dataset", repo_id]
    return repo.branches, repo.tags


def commits(hub, repo_id=REPO):
    return [commit.title for commit in hub.repos["dataset", repo_id].commits]


def is_loaded(revision=None, seed=0, **how):
    return torch.equal(
        bits(DistilledSet.from_pretrained(REPO, revision, **how).images), bits(make_set(seed=seed).images)
    )


def assert_refused(hub, words, call, *given, **how):
    """The call is refused and writes nothing."""
    hub.requests.clear()
    with pytest.raises(InputError, match=words):
        call(*given, **how)
    assert hub.asked(WRITES) == []


def test_a_set_is_published_in_one_commit_fetched_again_and_tagged(hub):
    made = make_set(labels=torch.tensor([0, 1, 0, 1, -1]), label_names=["cat", "dog"])
    sha = made.push_to_hub(REPO, token="hf_ann", commit_message="First")
    assert commits(hub) == ["initial commit", "First"]
    assert hub.files(REPO).keys() == FILES
    branches, tags = heads(hub)
    [tag] = tags
    assert branches == {"main": sha} and tags == {tag: sha} and tag.startswith("set-")
    # Verified after the commit, before the tag, and every file of it.
    asked = [f"{each.method} {each.path}" for each in hub.requests]
    [committed], [tagged] = ([n for n, each in enumerate(asked) if word in each] for word in ("/commit/", "/tag/"))
    for name in FILES - {".gitattributes"}:
        assert f"HEAD /datasets/{REPO}/resolve/{sha}/{name}" in asked[committed:tagged], name
    assert len([each for each in asked[committed:tagged] if each.startswith("GET /storage/")]) == 2
    for revision in (None, sha, tag):
        loaded = DistilledSet.from_pretrained(REPO, revision=revision)
        for name in ("images", "targets"):
            assert torch.equal(bits(getattr(loaded, name)), bits(getattr(made, name)))
        assert torch.equal(loaded.labels, made.labels) and loaded.label_names == made.label_names
    assert f'from_pretrained("{REPO}", revision="{tag}")' in hub.files(REPO)["README.md"].decode()


def test_a_plan_says_what_would_be_sent_and_sends_nothing(hub, folder):
    plan = plan_set(folder, REPO, private=True, token="hf_ann", dry_run=True)
    lines = plan.describe().splitlines()
    assert lines[0] == f"to the new private dataset {REPO}, branch main, tag {plan.tag}"
    assert {line.split()[0] for line in lines[1:-1]} == FILES - {".gitattributes"}
    size = sum(file.upload_info.size for file in plan.parcel.files.values())
    assert lines[-1].split() == ["in", "all", f"{size:,}", "bytes"]
    assert hub.repos == {} and hub.asked(WRITES) == []
    push(folder)
    text = plan_set(folder, REPO, revision="next", token="hf_ann").describe()
    assert text.startswith(f"to the public dataset {REPO}, branch next (new), tag set-")


def test_the_same_again_changes_nothing(hub, folder):
    first, before = push(folder), heads(hub)
    assert push(folder) == first
    assert len(commits(hub)) == 2 and heads(hub) == before


def test_another_set_takes_the_place_of_the_old_one_whole(hub, tmp_path, folder, monkeypatch):
    with monkeypatch.context() as small:
        small.setattr(parquet, "SHARD_BYTES", 600)
        first = push(make_set().save(tmp_path / "cut"))
    hub.commit(REPO, {"LICENSE.txt": b"mine", "data/notes.txt": b"mine"})
    assert len([name for name in hub.files(REPO) if name.endswith(".parquet")]) > 1
    plan = plan_set(folder, REPO, token="hf_ann")
    removed = [line.split()[0] for line in plan.describe().splitlines() if line.endswith("removed")]
    assert removed == [name for name in hub.files(REPO) if name.endswith(".parquet")]
    second = upload(plan, "Second", "hf_ann")
    assert hub.files(REPO).keys() == FILES | {"LICENSE.txt", "data/notes.txt"}
    assert commits(hub)[-1] == "Second" and second.revision != first.revision
    # The old one stays where its tag is.
    assert is_loaded(first.revision) and is_loaded(second.revision)


def test_what_is_stated_besides_is_in_record_and_card(hub, folder):
    scores = [{"set": "distilled", "protocol": "knn", "metric": "accuracy", "mean": 0.5, "std": 0.1, "n": 3}]
    push(folder, additions=CardOverrides(license="mit", teacher="ann/teacher", scores=scores))
    sent = hub.files(REPO)
    provenance = json.loads(sent["ssdd_hub.json"])["provenance"]
    assert (provenance["license"], provenance["scores"]) == ("mit", scores)
    card = sent["README.md"].decode()
    assert card.startswith("---\nlicense: mit\n") and "[ann/teacher](https://huggingface.co/ann/teacher)" in card
    assert "50.0 ± 10.0" in card
    assert DistilledSet.from_pretrained(REPO).provenance["teacher"] == {"hub": "ann/teacher"}


@pytest.mark.parametrize(("part", "stated"), [("teacher", "h-research"), ("source", "cc-by-nc-sa-4.0")])
def test_a_licence_that_allows_what_a_part_forbids_is_refused_and_nothing_sent(hub, tmp_path, part, stated):
    folder = make_set(provenance={part: {"license": stated}}).save(tmp_path / "set")
    message = f"the {part} is under {stated}, .*cannot be published under mit"
    assert_refused(hub, message, push, folder, additions=CardOverrides(license="mit"))
    push(folder, additions=CardOverrides(license="mit", license_reason="permission of the owner"))
    assert "| Reason | permission of the owner |" in hub.files(REPO)["README.md"].decode()


def test_a_folder_with_a_mistake_is_not_sent_and_files_of_no_set_stay_at_home(hub, folder):
    (folder / "notes.txt").write_text("private")
    (folder / "data" / "notes.txt").write_text("private")
    push(folder)
    assert hub.files(REPO).keys() == FILES
    (folder / "extra.pt").write_bytes(b"\x80\x04.")
    (folder / "preview.png").unlink()
    assert_refused(hub, "(?s)cannot be published as it is:.*extra.pt.*preview.png: is missing", push, folder)


def test_a_private_set_is_its_owners_and_goes_to_no_public_repository(hub, folder):
    push(folder, private=True)
    assert hub.repos["dataset", REPO].private
    for token in ("hf_bob", False):
        with pytest.raises(InputError, match="no such repository, or it is private and not open to this token"):
            DistilledSet.from_pretrained(REPO, token=token)
    assert is_loaded(token="hf_ann")
    # Again without the word, it stays so.
    push(folder, tag="again")
    assert hub.repos["dataset", REPO].private
    hub.repos["dataset", REPO].private = False
    message = f"{REPO} is there and public: make it private in its settings first"
    assert_refused(hub, message, push, folder, private=True)


def test_a_branch_of_its_own(hub, folder):
    first = push(folder, revision="next", tag="")
    branches, tags = heads(hub)
    assert branches["next"] == first.commit != branches["main"] and tags == {}
    assert hub.files(REPO).keys() == {".gitattributes"}
    assert 'revision="next"' in hub.files(REPO, "next")["README.md"].decode() and is_loaded("next")


def test_a_pull_request_leaves_main_alone(hub, folder):
    before = hub.commit(REPO, {})
    published = push(folder, create_pr=True)
    assert heads(hub) == ({"main": before}, {})
    assert published.revision == "refs/pr/1" and published.commit != before
    assert hub.files(REPO, published.revision).keys() == FILES and is_loaded(published.revision)


def test_a_tag_stays_where_it_is_and_a_sha_is_no_branch(hub, folder, tmp_path):
    first = push(folder, tag="v1")
    other = make_set(seed=1).save(tmp_path / "other")
    message = f"has a tag v1 already, of commit {first.commit[:8]}: choose another one"
    assert_refused(hub, message, push, other, tag="v1")
    message = "v1 is a tag of ann/tiny, and a tag stays where it is: give a branch"
    assert_refused(hub, message, push, other, revision="v1")
    assert_refused(hub, "is the sha of a commit: give a branch", push, folder, revision=first.commit)
    assert push(folder, tag="v1") == first
    assert push(other, tag="v2").commit == heads(hub)[0]["main"] and heads(hub)[1]["v1"] == first.commit


def test_a_repository_with_something_else_is_refused_and_kept(hub, folder):
    for files in ({"model.safetensors": b"x"}, {"data/train-00000-of-00001.parquet": b"x", "README.md": b"# Mine"}):
        before = hub.commit(REPO, files)
        message = r"ann/tiny holds something else \(.*\), and no ssdd_hub.json: choose"
        assert_refused(hub, message, push, folder)
        assert heads(hub)[0]["main"] == before
        hub.repos.clear()
    # One that was made on the Hub and is empty is filled.
    hub.commit(REPO, {"README.md": b"# To come"})
    push(folder)
    assert hub.files(REPO).keys() == FILES


@pytest.mark.parametrize("name", [".gitignore", "data/train-extra.parquet", "data/train-00000-of-00001.parquet.bak"])
def test_a_file_that_would_spoil_the_set_is_refused(hub, folder, name):
    push(folder)
    hub.commit(REPO, {name: b"*.parquet"})
    message = f"ann/tiny holds {re.escape(name)}, which would be taken for a part"
    assert_refused(hub, message, push, folder, tag="again")


def test_the_token_in_use_is_not_published_whatever_it_looks_like(hub, tmp_path):
    hub.add_user("cat", "secret-of-our-own-hub")
    folder = make_set(provenance={"command": "TOKEN=secret-of-our-own-hub run"}).save(tmp_path / "set")
    with pytest.raises(InputError, match=r"(README.md|ssdd_hub.json) holds your access token") as caught:
        push(folder, "cat/tiny", token="secret-of-our-own-hub")
    assert hub.repos == {} and "secret" not in str(caught.value)


def test_a_file_that_changes_once_it_was_packed_is_not_published(hub, folder):
    plan = plan_set(folder, REPO, tag="v1", token="hf_ann")
    (folder / PARQUET).write_bytes(bytes((folder / PARQUET).stat().st_size))
    with pytest.raises(InputError, match="^publishing ann/tiny failed: the Hub refuses it"):
        upload(plan, "Changed", "hf_ann")
    assert hub.files(REPO).keys() == {".gitattributes"}


def test_a_damaged_copy_in_the_cache_does_not_count_against_the_hub(hub, folder, tmp_path):
    first = push(folder)
    assert is_loaded()
    for path in (tmp_path / "home").rglob("blobs/*"):
        path.write_bytes(bytes(path.stat().st_size))
    assert push(folder) == first


def test_a_name_alone_is_in_the_users_namespace(hub, folder):
    assert push(folder, "tiny").repo_id == REPO
    assert push(folder, "lab/tiny").repo_id == "lab/tiny"
    assert f'from_pretrained("{REPO}"' in hub.files(REPO)["README.md"].decode()


@pytest.mark.parametrize("name", ["a/b/c", "../tiny", "ann/..", ".", "ann/ti ny", "ann/tiny\n", "", "https://x/y"])
def test_a_name_that_is_none_is_refused_before_anything_is_asked(hub, folder, name):
    assert_refused(hub, "a repository on the Hub is named owner/name or name, got", push, folder, name)
    assert hub.requests == []


@pytest.mark.parametrize(
    ("token", "repo_id", "message"),
    [
        (False, REPO, "publishing ann/tiny needs a token, and token=False says to use none: leave it out"),
        (None, REPO, "there is no token: log in by `hf auth login`, or set HF_TOKEN"),
        ("hf_nobodyknowsme1234", REPO, "the Hub does not know the token, or wants one: log in by `hf auth login`"),
        ("hf_eve", "lab/tiny", "the token may only read, and publishing writes: make a token with the right to write"),
        ("hf_bob", REPO, "the token does not allow it"),
    ],
)
def test_a_token_that_will_not_do_is_said_before_anything_is_written(hub, folder, caplog, token, repo_id, message):
    caplog.set_level(logging.INFO)
    with pytest.raises(InputError, match=message) as caught:
        push(folder, repo_id, token=token)
    assert hub.repos == {} and hub.asked("PUT|/commit/") == []
    if token:
        assert token not in f"{caught.value}" and token not in caplog.text


def test_no_token_reaches_a_log_a_file_or_a_message(hub, folder, caplog, waits):
    token = "hf_" + "abcdefghijklmnopqrstuvwxyz012345"
    hub.add_user("cat", token)
    caplog.set_level(logging.INFO)
    push(folder, "cat/tiny", token=token)
    hub.faults.append(Fault("POST .*/commit/", status=400, headers={"X-Error-Message": f"{token} may not"}))
    with pytest.raises(InputError) as caught:
        push(make_set(seed=1).save(folder.parent / "other"), "cat/tiny", token=token)
    sent = b"".join(hub.files("cat/tiny").values())
    assert token not in caplog.text and token not in str(caught.value) and token.encode() not in sent


def test_without_a_title_or_offline_nothing_is_sent(hub, folder, monkeypatch):
    assert_refused(hub, "a commit needs a title", push, folder, message=" ")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert_refused(hub, "HF_HUB_OFFLINE is set: unset it to reach the Hub", push, folder)
