"""A cache of `datasets` for each test, and a server that records what it is asked for."""

import http.server
import threading

import datasets
import pytest
from data_folders import picture
from huggingface_hub import HfApi, constants


@pytest.fixture(autouse=True)
def private_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    # A name that is no folder must not make a test wait for a network.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


@pytest.fixture
def server():
    """A server on loopback that records the paths of requests."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(picture(9) if self.command == "GET" else b"")

        do_HEAD = do_GET

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}", asked
        running.shutdown()


@pytest.fixture
def hub_set(hub, monkeypatch):
    """Uploads a folder as `ann/set`, which can be loaded."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", constants.ENDPOINT)
    api = HfApi(token="hf_ann")
    api.create_repo("ann/set", repo_type="dataset")
    return lambda folder: api.upload_folder(folder_path=folder, repo_id="ann/set", repo_type="dataset")
