import hashlib
import json
import subprocess
from pathlib import Path

import pytest
from hub_server import Fault, HubServer
from huggingface_hub import (
    CommitOperationAdd,
    HfApi,
    get_hf_file_metadata,
    hf_hub_url,
)
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import httpx

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


def test_a_stale_parent_is_refused_and_nothing_is_written(hub, api, repo):
    seen = api.dataset_info(repo).sha
    theirs = hub.commit(repo, {"theirs.txt": b"first"})
    with pytest.raises(HfHubHTTPError, match="A commit has happened since") as caught:
        put(api, {"mine.txt": b"second"}, parent_commit=seen)
    assert status_of(caught) == 412
    assert api.dataset_info(repo).sha == theirs and "mine.txt" not in hub.files(repo)
    mine = put(api, {"mine.txt": b"second"}, parent_commit=theirs).oid
    assert [commit.sha for commit in hub.repos["dataset", repo].commits][-2:] == [theirs, mine]


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


def test_ignored_files_are_not_sent(hub, api, repo):
    hub.commit(repo, {".gitignore": b"# scratch\n*.log\ntmp/\n"})
    put(api, {"run.log": b"1", "tmp/x.txt": b"2", "kept.txt": b"3"})
    assert hub.files(repo).keys() == {".gitattributes", ".gitignore", "README.md", "data/a.parquet", "kept.txt"}


# Faults


@pytest.fixture
def raw(hub, repo):
    """The address of the large file's bytes."""
    head = httpx.head(f"{hub.endpoint}/datasets/{repo}/resolve/main/data/a.parquet", follow_redirects=False)
    return head.headers["Location"]


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


def test_one_byte_of_a_corrupt_download_is_another(hub, raw, api, repo, tmp_path):
    hub.faults.append(Fault("GET /storage", corrupt=True, times=2))
    got = httpx.get(raw).content
    assert [at for at, (one, other) in enumerate(zip(got, BIG, strict=True)) if one != other] == [len(BIG) // 2]
    # The client does not notice.
    place = api.hf_hub_download(repo, "data/a.parquet", repo_type="dataset", cache_dir=tmp_path)
    assert Path(place).read_bytes() == got
    assert httpx.get(raw).content == BIG


def test_an_error_of_the_server_itself_fails_the_test(tmp_path):
    with pytest.raises(RuntimeError, match="the server of the test failed"):
        with HubServer(tmp_path) as hub:
            hub.add_user("ann", "hf_ann")
            answer = httpx.post(
                f"{hub.endpoint}/api/repos/create", json=[], headers={"Authorization": "Bearer hf_ann"}
            )
            assert answer.status_code == 500
