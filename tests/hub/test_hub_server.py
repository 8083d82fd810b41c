import hashlib
import io
import json
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_server import Fault, HubServer, client_env
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    snapshot_download,
)
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import get_session, get_token, httpx

BIG = bytes(range(256)) * 4096
CARD = b"---\nlicense: mit\ntags: [ssdd, small]\nconfigs:\n- config_name: default\n---\n# A card\n"


@pytest.fixture
def api(hub):
    return HfApi(endpoint=hub.endpoint, token="hf_ann")


@pytest.fixture
def bob(hub):
    return HfApi(endpoint=hub.endpoint, token="hf_bob")


@pytest.fixture
def anyone(hub):
    return HfApi(endpoint=hub.endpoint, token=False)


def add(path, data):
    return CommitOperationAdd(path, data)


def put(api, files, repo_id="ann/set", **settings):
    operations = [add(path, data) for path, data in files.items()]
    return api.create_commit(repo_id, operations, commit_message="some files", repo_type="dataset", **settings)


@pytest.fixture
def repo(api):
    """ann/set with a small and a large file; its name."""
    api.create_repo("ann/set", repo_type="dataset")
    put(api, {"README.md": CARD, "data/a.parquet": BIG})
    return "ann/set"


def status_of(caught):
    return caught.value.response.status_code


def test_a_token_is_its_users_and_an_unknown_one_is_refused_everywhere(hub, api, anyone):
    told = api.whoami()
    assert (told["name"], [org["name"] for org in told["orgs"]]) == ("ann", ["lab"])
    assert told["auth"]["accessToken"]["role"] == "write"
    assert HfApi(endpoint=hub.endpoint, token="hf_eve").whoami()["auth"]["accessToken"]["role"] == "read"
    api.create_repo("ann/set", repo_type="dataset")
    stranger = HfApi(endpoint=hub.endpoint, token="hf_nobody")
    for call in (stranger.whoami, lambda: stranger.dataset_info("ann/set"), lambda: stranger.create_repo("ann/other")):
        with pytest.raises(HfHubHTTPError) as caught:
            call()
        assert status_of(caught) == 401 and not isinstance(caught.value, RepositoryNotFoundError)


def test_the_client_of_this_process_needs_no_word_of_the_endpoint(hub, repo, tmp_path):
    assert snapshot_download(repo, repo_type="dataset").startswith(str(tmp_path / "home" / "hub"))
    assert Path(hf_hub_download(repo, "README.md", repo_type="dataset")).read_bytes() == CARD
    assert HfApi(token="hf_bob").whoami()["name"] == "bob" and get_token() is None


def test_repositories_are_made_once_and_by_who_may(hub, api):
    url = api.create_repo("set", repo_type="dataset")
    assert (url.repo_id, url.repo_type) == ("ann/set", "dataset")
    with pytest.raises(HfHubHTTPError) as caught:
        api.create_repo("ann/set", repo_type="dataset")
    assert status_of(caught) == 409
    assert api.create_repo("ann/set", repo_type="dataset", exist_ok=True) == url
    assert api.create_repo("lab/set").repo_type == "model"
    assert list(hub.repos) == [("dataset", "ann/set"), ("model", "lab/set")]
    assert list(hub.files("ann/set")) == [".gitattributes"]
    for token, repo_id in (("hf_ann", "bob/set"), ("hf_eve", "lab/new"), ("hf_eve", "eve/new")):
        with pytest.raises(HfHubHTTPError) as caught:
            HfApi(endpoint=hub.endpoint, token=token).create_repo(repo_id)
        assert status_of(caught) == 403
    api.delete_repo("ann/set", repo_type="dataset")
    with pytest.raises(RepositoryNotFoundError):
        api.delete_repo("ann/set", repo_type="dataset")


def test_a_private_repository_is_seen_by_its_owners_alone(hub, api, bob, anyone):
    api.create_repo("lab/secret", repo_type="dataset", private=True)
    member = HfApi(endpoint=hub.endpoint, token="hf_eve")
    assert api.dataset_info("lab/secret").private and member.dataset_info("lab/secret").private
    for stranger, status in ((bob, 404), (anyone, 401)):
        for repo_id in ("lab/secret", "lab/none", "none"):
            with pytest.raises(RepositoryNotFoundError) as caught:
                stranger.dataset_info(repo_id)
            assert status_of(caught) == status
            with pytest.raises(RepositoryNotFoundError):
                stranger.hf_hub_download(repo_id, "README.md", repo_type="dataset", cache_dir=hub.root / "none")
    assert [info.id for info in bob.list_datasets()] == [] and [info.id for info in api.list_datasets()] != []
    api.update_repo_settings("lab/secret", private=False, repo_type="dataset")
    assert not anyone.dataset_info("lab/secret").private
    with pytest.raises(HfHubHTTPError) as caught:
        member.update_repo_settings("lab/secret", private=True, repo_type="dataset")
    assert status_of(caught) == 403


def test_a_gated_repository_shows_its_files_names_and_no_contents(hub, api, bob, anyone, repo, tmp_path):
    api.update_repo_settings(repo, gated="manual", repo_type="dataset")
    assert bob.dataset_info(repo).gated == "manual"
    for stranger, status in ((bob, 403), (anyone, 401)):
        with pytest.raises(GatedRepoError) as caught:
            stranger.hf_hub_download(repo, "README.md", repo_type="dataset", cache_dir=tmp_path)
        assert status_of(caught) == status
    assert api.hf_hub_download(repo, "README.md", repo_type="dataset", cache_dir=tmp_path)


def test_a_commit_holds_small_files_and_large_ones_stored_once(hub, api, repo):
    done = put(api, {"data/b.parquet": BIG[:-1], "copy.parquet": BIG[:-1], "notes.json": b"{}", "empty.png": b""})
    # The client sends equal contents of one commit once each, and nothing that is there already.
    assert len(hub.asked("PUT /upload")) == len(hub.asked("POST .*/lfs/verify")) == 3
    assert len(hub.repos["dataset", repo].objects) == 2
    assert done.oid == api.dataset_info(repo).sha and str(done) == f"{hub.endpoint}/datasets/{repo}/commit/{done.oid}"
    content = hub.files(repo)
    del content[".gitattributes"]
    assert content == {
        "README.md": CARD,
        "copy.parquet": BIG[:-1],
        "data/a.parquet": BIG,
        "data/b.parquet": BIG[:-1],
        "empty.png": b"",
        "notes.json": b"{}",
    }
    put(api, {"data/c.parquet": BIG})
    assert len(hub.asked("PUT /upload")) == 3
    assert not any("authorization" in upload.headers for upload in hub.asked("PUT /upload"))


def test_what_git_would_call_a_file_is_what_the_hub_calls_it(hub, api, repo, tmp_path):
    sha256 = hashlib.sha256(BIG).hexdigest()
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(BIG)}\n"
    for path, text in (("README.md", CARD), ("data/a.parquet", pointer.encode())):
        named = subprocess.run(["git", "hash-object", "--stdin"], input=text, capture_output=True, check=True)
        [entry] = api.get_paths_info(repo, path, repo_type="dataset")
        assert entry.blob_id == named.stdout.decode().strip()
    assert entry.lfs == {"size": len(BIG), "sha256": sha256, "pointer_size": len(pointer)}
    card, table = api.dataset_info(repo, files_metadata=True).siblings[1:]
    assert (card.rfilename, card.size, card.lfs) == ("README.md", len(CARD), None)
    assert (table.rfilename, table.size, table.blob_id, table.lfs) == (entry.path, len(BIG), entry.blob_id, entry.lfs)


def test_an_unchanged_file_is_not_sent_again(hub, api, repo):
    commits = len(hub.asked("POST .*/commit/"))
    assert put(api, {"README.md": CARD, "data/a.parquet": BIG}).oid == api.dataset_info(repo).sha
    assert len(hub.asked("POST .*/commit/")) == commits


def test_a_stale_parent_is_refused_and_nothing_is_written(hub, api, repo):
    seen = api.dataset_info(repo).sha
    theirs = hub.commit(repo, {"theirs.txt": b"first"})
    with pytest.raises(HfHubHTTPError, match="A commit has happened since") as caught:
        put(api, {"mine.txt": b"second"}, parent_commit=seen)
    assert status_of(caught) == 412
    assert api.dataset_info(repo).sha == theirs and "mine.txt" not in hub.files(repo)
    mine = put(api, {"mine.txt": b"second"}, parent_commit=theirs).oid
    assert [commit.commit_id for commit in api.list_repo_commits(repo, repo_type="dataset")][:3] == [
        mine,
        theirs,
        seen,
    ]
    assert [commit.title for commit in api.list_repo_commits(repo, repo_type="dataset")][-1] == "initial commit"


def test_files_and_folders_are_deleted_and_copied_all_or_nothing(hub, api, repo):
    def change(*operations):
        api.create_commit(repo, operations, commit_message="change", repo_type="dataset")

    with pytest.raises(RemoteEntryNotFoundError, match="is_folder"):
        change(add("new.txt", b"new"), CommitOperationDelete("nothing.txt"))
    assert "new.txt" not in hub.files(repo)
    change(CommitOperationCopy("data/a.parquet", "moved.parquet"), CommitOperationDelete("data/"))
    assert {name: data for name, data in hub.files(repo).items() if name != ".gitattributes"} == {
        "README.md": CARD,
        "moved.parquet": BIG,
    }
    change(CommitOperationDelete("README.md"))
    assert api.list_repo_files(repo, repo_type="dataset") == [".gitattributes", "moved.parquet"]


def test_what_was_never_uploaded_cannot_be_committed(hub, api, repo):
    lines = [
        {"key": "header", "value": {"summary": "torn"}},
        {"key": "file", "value": {"path": "new.txt", "content": "YQ==", "encoding": "base64"}},
        {"key": "lfsFile", "value": {"path": "x.parquet", "algo": "sha256", "oid": "0" * 64, "size": 3}},
    ]
    answer = httpx.post(
        f"{hub.endpoint}/api/datasets/{repo}/commit/main",
        content="\n".join(map(json.dumps, lines)),
        headers={"Authorization": "Bearer hf_ann"},
    )
    assert answer.status_code == 400 and "x.parquet" in answer.json()["error"]
    assert "new.txt" not in hub.files(repo)


def test_an_upload_is_checked_and_a_torn_one_leaves_nothing(hub, api, repo):
    batch = f"{hub.endpoint}/datasets/{repo}.git/info/lfs/objects/batch"
    data, login = b"0123456789", {"Authorization": "Bearer hf_ann"}
    asked = {"operation": "upload", "objects": [{"oid": hashlib.sha256(data).hexdigest(), "size": len(data)}]}
    [there] = httpx.post(batch, json=asked, headers=login).json()["objects"]
    address, verify = (there["actions"][name]["href"] for name in ("upload", "verify"))
    stored = sorted(path.name for path in (hub.root / "objects").iterdir())
    for wrong in (b"012345678", b"0123456780", b"01234567890"):
        assert httpx.put(address, content=wrong).status_code == 400
    assert httpx.post(verify, json=asked["objects"][0], headers=login).status_code == 404
    assert sorted(path.name for path in (hub.root / "objects").iterdir()) == stored
    assert sorted(path.name for path in hub.root.iterdir()) == ["objects"]
    assert httpx.put(address[:-1], content=data).status_code == 403
    # In chunks of unknown number.
    assert httpx.put(address, content=iter([data[:3], data[3:]])).status_code == 200
    assert httpx.post(verify, json=asked["objects"][0], headers=login).status_code == 200
    assert "actions" not in httpx.post(batch, json=asked, headers=login).json()["objects"][0]


def test_a_pull_request_leaves_the_branch_alone(hub, api, bob, repo):
    head = api.dataset_info(repo).sha
    with pytest.raises(HfHubHTTPError) as caught:
        put(bob, {"idea.txt": b"1"})
    assert status_of(caught) == 403
    done = put(bob, {"idea.txt": b"1", "big.parquet": BIG[1:]}, create_pr=True)
    assert done.pr_revision == "refs/pr/1" and api.dataset_info(repo).sha == head
    assert hub.files(repo, "refs/pr/1")["big.parquet"] == BIG[1:] and "idea.txt" not in hub.files(repo)
    more = put(api, {"idea.txt": b"2"}, revision="refs/pr/1").oid
    refs = api.list_repo_refs(repo, repo_type="dataset", include_pull_requests=True)
    assert [(ref.ref, ref.target_commit) for ref in refs.pull_requests] == [("refs/pr/1", more)]
    assert api.list_repo_refs(repo, repo_type="dataset").pull_requests is None
    hub.commit(repo, {"later.txt": b"later"})
    assert put(api, {"other.txt": b"3"}, create_pr=True, parent_commit=head).pr_num == 2
    assert hub.files(repo, "refs/pr/2").keys() == {".gitattributes", "README.md", "data/a.parquet", "other.txt"}
    assert api.dataset_info(repo, revision="refs/pr/1").sha == more


def test_branches_and_tags(hub, api, repo):
    first = api.dataset_info(repo).sha
    api.create_branch(repo, branch="work/1", repo_type="dataset")
    put(api, {"more.txt": b"more"}, revision="work/1")
    api.create_tag(repo, tag="v1", revision="work/1", repo_type="dataset")
    api.create_branch(repo, branch="again", revision="v1", repo_type="dataset")
    refs = api.list_repo_refs(repo, repo_type="dataset")
    work = hub.repos["dataset", repo].branches["work/1"]
    assert {ref.name: ref.target_commit for ref in refs.branches} == {"main": first, "work/1": work, "again": work}
    assert [(ref.name, ref.ref, ref.target_commit) for ref in refs.tags] == [("v1", "refs/tags/v1", work)]
    for call in (
        lambda **exist: api.create_tag(repo, tag="v1", repo_type="dataset", **exist),
        lambda **exist: api.create_branch(repo, branch="again", repo_type="dataset", **exist),
    ):
        with pytest.raises(HfHubHTTPError) as caught:
            call()
        assert status_of(caught) == 409
        call(exist_ok=True)
    with pytest.raises(RevisionNotFoundError):
        put(api, {"more.txt": b"more"}, revision="none")
    with pytest.raises(RevisionNotFoundError):
        api.create_tag(repo, tag="v2", revision="none", repo_type="dataset")
    api.delete_tag(repo, tag="v1", repo_type="dataset")
    api.delete_branch(repo, branch="work/1", repo_type="dataset")
    refs = api.list_repo_refs(repo, repo_type="dataset")
    assert ([ref.name for ref in refs.branches], refs.tags) == (["main", "again"], [])


def test_a_file_comes_from_where_the_hub_says_and_its_token_stays_home(hub, api, repo, tmp_path):
    commit = api.dataset_info(repo).sha
    for path, data in (("README.md", CARD), ("data/a.parquet", BIG)):
        place = api.hf_hub_download(repo, path, repo_type="dataset", cache_dir=tmp_path)
        [entry] = api.get_paths_info(repo, path, repo_type="dataset")
        told = get_hf_file_metadata(hf_hub_url(repo, path, repo_type="dataset"))
        etag = entry.lfs.sha256 if entry.lfs else entry.blob_id
        assert (told.etag, told.size, told.commit_hash) == (etag, len(data), commit)
        assert Path(place).read_bytes() == data and f"snapshots/{commit}/{path}" in place
    assert [each.status for each in hub.asked("HEAD .*/resolve/")] == [200, 200, 302, 302]
    [stored] = hub.asked("/storage/")
    assert "authorization" not in stored.headers and "authorization" in hub.asked("HEAD")[0].headers
    with pytest.raises(RemoteEntryNotFoundError):
        api.hf_hub_download(repo, "none.txt", repo_type="dataset", cache_dir=tmp_path)
    with pytest.raises(RevisionNotFoundError):
        api.hf_hub_download(repo, "README.md", revision="none", repo_type="dataset", cache_dir=tmp_path)
    assert httpx.get(f"{hub.storage}/storage/{hashlib.sha256(BIG).hexdigest()}").status_code == 403


@pytest.mark.parametrize("path", ["README.md", "data/a.parquet"])
def test_ranges_of_files(hub, repo, path):
    data = {"README.md": CARD, "data/a.parquet": BIG}[path]
    for asked, part in (("5-9", data[5:10]), ("70-", data[70:]), ("-7", data[-7:]), (f"3-{10**9}", data[3:])):
        answer = get_session().get(
            f"{hub.endpoint}/datasets/{repo}/resolve/main/{path}", headers={"Range": f"bytes={asked}"}
        )
        assert (answer.status_code, answer.content) == (206, part)
        begin = len(data) - len(part) if asked[0] == "-" else int(asked.split("-")[0])
        assert answer.headers["Content-Range"] == f"bytes {begin}-{begin + len(part) - 1}/{len(data)}"
    answer = get_session().get(
        f"{hub.endpoint}/datasets/{repo}/resolve/main/{path}", headers={"Range": f"bytes={len(data)}-"}
    )
    assert answer.status_code == 416


def test_a_snapshot_of_a_model(hub, api, tmp_path):
    files = {"README.md": b"---\nlibrary_name: timm\n---\n", "model.safetensors": BIG, "a/b c/\u00e9.json": b"[]"}
    hub.commit("ann/net", files, repo_type="model")
    folder = api.snapshot_download("ann/net", cache_dir=tmp_path)
    assert {name: Path(folder, name).read_bytes() for name in files} == files
    assert api.model_info("ann/net").tags == ["timm", "region:us"]
    assert api.model_info("ann/net").card_data.library_name == "timm"


def test_a_tree_comes_in_pages(hub, api, repo):
    hub.commit(repo, {f"data/deep/{number}.txt": b"%d" % number for number in range(7)})
    hub.page_size = 3
    flat = list(api.list_repo_tree(repo, repo_type="dataset"))
    assert [(type(entry).__name__, entry.path) for entry in flat] == [
        ("RepoFile", ".gitattributes"),
        ("RepoFile", "README.md"),
        ("RepoFolder", "data"),
    ]
    whole = [entry.path for entry in api.list_repo_tree(repo, repo_type="dataset", recursive=True)]
    deep = [f"data/deep/{number}.txt" for number in range(7)]
    assert whole == [".gitattributes", "README.md", "data", "data/a.parquet", "data/deep", *deep]
    assert len(hub.asked("GET .*/tree/main.*cursor")) == 3
    below = api.list_repo_tree(repo, "data/deep", repo_type="dataset", expand=True)
    assert [(entry.path, entry.last_commit.title) for entry in below][0] == (deep[0], "by another publisher")
    [card] = api.get_paths_info(repo, "README.md", repo_type="dataset", expand=True)
    assert card.last_commit.title == "some files"
    with pytest.raises(RemoteEntryNotFoundError):
        list(api.list_repo_tree(repo, "none", repo_type="dataset"))
    found = api.get_paths_info(repo, ["data", "none", "README.md"], repo_type="dataset")
    assert [entry.path for entry in found] == ["data", "README.md"]


def test_repositories_are_found_by_tag_owner_and_word(hub, api, anyone, repo):
    hub.commit("lab/other", {"README.md": b"---\ntags: [small]\n---\n"})
    assert [info.id for info in anyone.list_datasets(filter="small")] == [repo, "lab/other"]
    assert [info.id for info in anyone.list_datasets(filter=["small", "license:mit"])] == [repo]
    assert [info.id for info in anyone.list_datasets(author="lab")] == ["lab/other"]
    assert [info.id for info in anyone.list_datasets(search="OTH", full=True)] == ["lab/other"]
    assert [info.id for info in anyone.list_datasets(limit=1)] == [repo]
    assert list(anyone.list_models()) == []
    assert anyone.dataset_info(repo).card_data.license == "mit"
    assert anyone.dataset_info(repo, expand=["sha"]).card_data is None


@pytest.mark.parametrize(
    ("card", "problem"),
    [
        ("license: [", "YAML"),
        ("- a\n- b", "must be a mapping"),
        ("license: {a: b}", "license"),
        ("tags: small", "tags"),
        ("tags: [1]", "tags"),
        ("configs: [{data_files: x}]", "config_name"),
        ("configs: {config_name: x}", "configs"),
    ],
)
def test_a_card_is_refused_before_anything_is_sent(hub, api, repo, card, problem):
    with pytest.raises(ValueError, match=problem):
        put(api, {"README.md": f"---\n{card}\n---\ntext".encode()})
    assert hub.files(repo)["README.md"] == CARD


def test_a_card_without_metadata_is_warned_of(hub, api, repo):
    with pytest.warns(UserWarning, match="empty or missing yaml metadata"):
        put(api, {"README.md": b"# A card"})
    assert hub.files(repo)["README.md"] == b"# A card"


def test_ignored_files_are_not_sent(hub, api, repo):
    hub.commit(repo, {".gitignore": b"# scratch\n*.log\ntmp/\n"})
    put(api, {"run.log": b"1", "tmp/x.txt": b"2", "kept.txt": b"3"})
    assert hub.files(repo).keys() == {".gitattributes", ".gitignore", "README.md", "data/a.parquet", "kept.txt"}


def test_collections(hub, api, bob, repo):
    made = api.create_collection("Small sets!", namespace="lab")
    assert made.slug.startswith("lab/small-sets-") and made.items == []
    assert api.create_collection("Small sets!", namespace="lab", exists_ok=True).slug == made.slug
    for _ in range(2):
        grown = api.add_collection_item(made.slug, repo, "dataset", note="the first", exists_ok=True)
    assert [(item.item_id, item.item_type, item.note) for item in grown.items] == [(repo, "dataset", "the first")]
    assert bob.get_collection(made.slug).title == "Small sets!"
    for call, status in (
        (lambda: api.add_collection_item(made.slug, repo, "dataset"), 409),
        (lambda: api.add_collection_item(made.slug, "ann/none", "dataset"), 404),
        (lambda: bob.add_collection_item(made.slug, repo, "dataset"), 403),
        (lambda: api.create_collection("Small sets!", namespace="lab"), 409),
        (lambda: api.create_collection("Mine", namespace="bob"), 403),
        (lambda: api.get_collection("lab/none"), 404),
    ):
        with pytest.raises(HfHubHTTPError) as caught:
            call()
        assert status_of(caught) == status
    hidden = api.create_collection("Hidden", private=True).slug
    assert list(hub.collections) == [made.slug, hidden]
    with pytest.raises(HfHubHTTPError):
        bob.get_collection(hidden)


# Faults


@pytest.fixture
def raw(hub, repo):
    """The address of the large file's bytes."""
    head = httpx.head(f"{hub.endpoint}/datasets/{repo}/resolve/main/data/a.parquet", follow_redirects=False)
    return head.headers["Location"]


def test_a_busy_hub_is_asked_again_after_a_while(hub, api, repo):
    busy = Fault("POST .*preupload", status=429, headers={"Retry-After": "0"}, times=1)
    hub.faults.append(busy)
    put(api, {"new.txt": b"new"})
    assert busy.hits == 1 and [each.status for each in hub.asked("preupload")][-2:] == [429, 200]


def test_a_status_before_the_work_and_one_after_it(hub, api, repo):
    hub.faults += [Fault("POST .*commit/", status=503), Fault("POST .*commit/", status=500, after=True)]
    for name, status, there in (("a.txt", 503, False), ("b.txt", 500, True)):
        with pytest.raises(HfHubHTTPError) as caught:
            put(api, {name: b"new"})
        assert status_of(caught) == status and (name in hub.files(repo)) == there
    put(api, {"c.txt": b"new"})


@pytest.mark.parametrize("after", [False, True])
def test_a_connection_that_closes_before_the_answer(hub, api, repo, after):
    hub.faults.append(Fault("POST .*commit/", drop="before answer", after=after))
    with pytest.raises(httpx.RemoteProtocolError):
        put(api, {"a.txt": b"new"})
    assert ("a.txt" in hub.files(repo)) == after
    assert hub.asked("commit/")[-1].status is None


@pytest.mark.parametrize("after", [False, True])
def test_a_connection_that_is_reset_within_the_question_or_the_answer(hub, api, repo, after):
    hub.faults.append(Fault("POST .*commit/", drop="body", after=after))
    with pytest.raises(httpx.NetworkError):
        put(api, {"a.txt": b"new"})
    assert ("a.txt" in hub.files(repo)) == after


def test_an_upload_that_is_cut_is_sent_again_and_leaves_nothing_torn(hub, api, repo):
    cut = Fault("PUT /upload", drop="body")
    hub.faults.append(cut)
    put(api, {"new.parquet": BIG * 8})
    assert cut.hits == 1 and hub.files(repo)["new.parquet"] == BIG * 8
    assert [each.status for each in hub.asked("PUT /upload")][-2:] == [None, 200]
    assert [path.name for path in hub.root.iterdir()] == ["objects"]


def test_a_download_that_is_reset_fails_at_once(hub, raw):
    hub.faults.append(Fault("GET /storage", drop="body"))
    with pytest.raises(httpx.ReadError):
        httpx.get(raw)
    assert httpx.get(raw).content == BIG


def test_a_download_that_is_truncated_is_resumed_by_range(hub, api, repo, tmp_path):
    hub.commit(repo, {"data/a.parquet": BIG * 21})
    hub.faults.append(Fault("GET /storage", truncate=True))
    place = api.hf_hub_download(repo, "data/a.parquet", repo_type="dataset", cache_dir=tmp_path)
    assert Path(place).read_bytes() == BIG * 21
    first, second = hub.asked("GET /storage")
    assert "range" not in first.headers
    # The client keeps whole pieces of 10 MiB.
    assert second.headers["range"] == f"bytes={10 * 2**20}-"
    assert second.status == 206


def test_one_byte_of_a_corrupt_download_is_another(hub, raw, api, repo, tmp_path):
    hub.faults.append(Fault("GET /storage", corrupt=True, times=2))
    got = httpx.get(raw).content
    assert [at for at, (one, other) in enumerate(zip(got, BIG, strict=True)) if one != other] == [len(BIG) // 2]
    # The client does not notice.
    place = api.hf_hub_download(repo, "data/a.parquet", repo_type="dataset", cache_dir=tmp_path)
    assert Path(place).read_bytes() == got
    assert httpx.get(raw).content == BIG


@pytest.mark.parametrize(
    "fault", [Fault("", delay=5), Fault("", stall=5), Fault("", trickle=2**16)], ids=["delay", "stall", "trickle"]
)
def test_a_slow_server(hub, raw, fault):
    hub.faults.append(fault)
    began = time.monotonic()
    with pytest.raises(httpx.ReadTimeout):
        # A trickle never times out between two bytes; the caller's patience is tested on the whole.
        with httpx.stream("GET", raw, timeout=0.3) as answer:
            for _ in answer.iter_raw():
                if time.monotonic() - began > 0.3:
                    raise httpx.ReadTimeout("too slow")
    assert fault.hits == 1 and 0.25 < time.monotonic() - began < 2


def test_a_fault_spares_and_strikes_as_often_as_it_says(hub, repo):
    fault = Fault(r"GET /api/datasets\?search=a b$", status=503, skip=1, times=2)
    hub.faults.append(fault)
    asked = [httpx.get(f"{hub.endpoint}/api/datasets?search=a%20b").status_code for _ in range(5)]
    assert asked == [200, 503, 503, 200, 200] and fault.hits == 2
    assert httpx.get(f"{hub.endpoint}/api/datasets").status_code == 200
    with pytest.raises(ValueError, match="drop is"):
        Fault("", drop="everything")


def test_a_connection_lives_on_after_an_error(hub, repo):
    with httpx.Client(base_url=hub.endpoint) as client:
        for path, status in (("/none", 404), ("/api/datasets/ann/none", 401), (f"/api/datasets/{repo}", 200)):
            answer = client.post(path, content=b"x" * 10**6) if status == 404 else client.get(path)
            assert answer.status_code == status
        assert len({id(each) for each in client._transport._pool.connections}) == 1


def test_many_at_once(hub, api, repo):
    def publish(number):
        put(HfApi(endpoint=hub.endpoint, token="hf_ann"), {f"{number}.parquet": BIG[number:], f"{number}.txt": b"x"})

    threads = [threading.Thread(target=publish, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    content = hub.files(repo)
    assert all(content[f"{number}.parquet"] == BIG[number:] for number in range(6))
    assert len(hub.repos["dataset", repo].commits) == 8


def test_a_server_ends_with_all_its_connections_and_threads(tmp_path):
    before = threading.active_count()
    began = time.monotonic()
    with HubServer(tmp_path) as hub, httpx.Client() as idle:
        hub.commit("ann/set", {"a.txt": b"a"})
        idle.get(f"{hub.endpoint}/api/datasets")
        hub.faults.append(Fault("GET", delay=60))
        with pytest.raises(httpx.ReadTimeout):
            httpx.get(f"{hub.endpoint}/api/datasets", timeout=0.1)
        address = hub.endpoint
    assert threading.active_count() == before and time.monotonic() - began < 5
    with pytest.raises(httpx.ConnectError):
        httpx.get(address)


def test_an_error_of_the_server_itself_fails_the_test(tmp_path):
    with pytest.raises(RuntimeError, match="the server of the test failed"):
        with HubServer(tmp_path) as hub:
            hub.add_user("ann", "hf_ann")
            answer = httpx.post(
                f"{hub.endpoint}/api/repos/create", json=[], headers={"Authorization": "Bearer hf_ann"}
            )
            assert answer.status_code == 500


def test_datasets_loads_a_set_and_streams_it(hub, tmp_path):
    table = io.BytesIO()
    pq.write_table(pa.table({"n": list(range(20)), "word": [f"w{n}" for n in range(20)]}), table)
    hub.commit("ann/set", {"README.md": CARD, "data/train-00000-of-00001.parquet": table.getvalue()})
    hub.repos["dataset", "ann/set"].private = True
    script = """
        from datasets import load_dataset
        plain = load_dataset("ann/set", split="train", token="hf_ann")
        assert plain["n"][:] == list(range(20)) and plain[3]["word"] == "w3"
        streamed = load_dataset("ann/set", split="train", streaming=True, token="hf_ann")
        assert [row["word"] for row in streamed] == plain["word"][:]
    """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env=client_env(hub, tmp_path / "home"),
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    assert hub.asked("GET /storage")
