"""The Hub on loopback: what its clients, or the checks of this package, rely on and no other test would miss."""

import subprocess
from pathlib import Path

import pytest
from hub_server import Fault, HubServer
from huggingface_hub import HfApi
from huggingface_hub.utils import httpx

BIG = bytes(range(256)) * 4096
CARD = b"---\nlicense: mit\n---\n# A card\n"
REPO = "ann/set"


@pytest.fixture
def api(hub):
    hub.commit(REPO, {"README.md": CARD, "data/a.parquet": BIG})
    return HfApi(token="hf_ann")


def test_what_git_would_call_a_file_is_what_the_hub_calls_it(hub, api):
    info = api.dataset_info(REPO, files_metadata=True)
    card, table = (entry for entry in info.siblings if entry.rfilename != ".gitattributes")
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{table.lfs.sha256}\nsize {len(BIG)}\n"
    for told, text in ((card, CARD), (table, pointer.encode())):
        named = subprocess.run(["git", "hash-object", "--stdin"], input=text, capture_output=True, check=True)
        [entry] = api.get_paths_info(REPO, told.rfilename, repo_type="dataset")
        assert told.blob_id == entry.blob_id == named.stdout.decode().strip() and told.lfs == entry.lfs


def test_the_token_stays_home_and_one_corrupt_byte_is_not_noticed_by_the_client(hub, api, tmp_path):
    hub.faults.append(Fault("GET /storage", corrupt=True))
    place = api.hf_hub_download(REPO, "data/a.parquet", repo_type="dataset", cache_dir=tmp_path)
    came = Path(place).read_bytes()
    assert [at for at, (one, other) in enumerate(zip(came, BIG, strict=True)) if one != other] == [len(BIG) // 2]
    [stored] = hub.asked("/storage/")
    assert "authorization" not in stored.headers and "authorization" in hub.asked("HEAD")[0].headers


def test_an_error_of_the_server_itself_fails_the_test(tmp_path):
    with pytest.raises(RuntimeError, match="the server of the test failed"):
        with HubServer(tmp_path) as hub:
            hub.add_user("ann", "hf_ann")
            login = {"Authorization": "Bearer hf_ann"}
            assert httpx.post(f"{hub.endpoint}/api/repos/create", json=[], headers=login).status_code == 500
