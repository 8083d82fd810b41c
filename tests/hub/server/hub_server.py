"""A Hub on loopback, as far as its clients can tell, which fails where a test wants it to.

Downloads of large files and uploads go to a second port, since on the real Hub they go to another host: a client must
neither follow the redirect of a HEAD nor send its token there.
"""

import hashlib
import os
import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any
from unittest.mock import patch

from hub_api import Call
from hub_faults import Fault, Handler, Listener, Recorded, Refused, Reply, ranged
from hub_repos import Blob, Repo, User, make_blob
from huggingface_hub import close_session, constants

__all__ = ["Fault", "HubServer", "Recorded", "client_env", "connected"]

LFS_SUFFIXES = (
    ".arrow .bin .bmp .gif .gz .jpeg .jpg .npy .npz .parquet .pkl .png .pt .pth .safetensors .tar .zip".split()
)


def client_env(server: "HubServer", home: Path) -> dict[str, str]:
    """Returns the environment of a process whose clients talk to the server and keep what they keep below `home`."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_", "HUGGING"))
    }
    switches = ("HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_PROGRESS_BARS")
    ours = {"HF_ENDPOINT": server.endpoint, "HF_HOME": str(home), "no_proxy": "127.0.0.1"}
    return kept | ours | dict.fromkeys(switches, "1")


@contextmanager
def connected(server: "HubServer", home: Path) -> Iterator[None]:
    """Within it the client of this process has the settings of `client_env`; `datasets` needs a process of its own."""
    ours = {
        "ENDPOINT": server.endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": f"{server.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_OFFLINE": False,
    }
    tokens = {"HF_TOKEN": "", "HUGGING_FACE_HUB_TOKEN": ""}
    with patch.multiple(constants, **ours), patch.dict(os.environ, {**tokens, "no_proxy": "127.0.0.1"}):
        close_session()
        yield
        close_session()


class HubServer:
    """A Hub that answers at `endpoint` within `with`; afterwards nothing of it is left but the files below root.

    Attributes:
        endpoint: Its address.
        repos: Repositories by type (`model`, `dataset`) and id.
        requests: All requests so far.
        faults: Failures; the first that matches a request strikes.
        collections: By slug, as the API gives them.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        (self.root / "objects").mkdir(parents=True, exist_ok=True)
        self.repos: dict[tuple[str, str], Repo] = {}
        self.users: dict[str, User] = {}
        self.requests: list[Recorded] = []
        self.faults: list[Fault] = []
        self.failures: list[BaseException] = []
        self.collections: dict[str, dict[str, Any]] = {}
        self.closing = threading.Event()
        self._lock = threading.RLock()

    def __enter__(self) -> "HubServer":
        self._listeners = (Listener(self), Listener(self))
        self.endpoint, self.storage = (listener.url for listener in self._listeners)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.closing.set()
        for listener in self._listeners:
            listener.close()
        if self.failures and kind is None:
            raise RuntimeError("the server of the test failed") from self.failures[0]

    def add_user(self, name: str, token: str, role: str = "write", orgs: Iterable[str] = ()) -> None:
        """Lets a token in, for the namespace of its user and those of the organisations."""
        self.users[token] = User(name, role, tuple(orgs))

    def files(self, repo_id: str, revision: str = "main", repo_type: str = "dataset") -> dict[str, bytes]:
        """Returns the contents of a revision, by path."""
        blobs = self.repos[repo_type, repo_id].find(revision).files
        return {path: self.place(blob.sha256).read_bytes() for path, blob in blobs.items()}

    def commit(self, repo_id: str, files: Mapping[str, bytes | None], repo_type: str = "dataset") -> str:
        """Commits to `main` past the API, None removes a file; makes the repository where there is none."""
        with self._lock:
            repo = self.repos.get((repo_type, repo_id)) or self.create(repo_type, repo_id, private=False)
            content = dict(repo.find("main").files)
            for path, data in files.items():
                if data is None:
                    del content[path]
                else:
                    content[path] = self.keep(repo, data, self.is_large(path, len(data)))
            repo.branches["main"] = repo.add(content, repo.branches["main"], "by another publisher")
            return repo.branches["main"]

    def asked(self, pattern: str) -> list[Recorded]:
        """Returns the requests in whose `METHOD /path?query` the pattern is found."""
        with self._lock:
            return [each for each in self.requests if re.search(pattern, f"{each.method} {each.path}")]

    def note(self, recorded: Recorded) -> tuple[Recorded, Fault | None]:
        """Records a request; returns it with the fault that strikes it."""
        with self._lock:
            self.requests.append(recorded)
            asked = f"{recorded.method} {recorded.path}"
            return recorded, next((fault for fault in self.faults if fault.strikes(asked)), None)

    def serve(self, request: Handler) -> Reply:
        """Answers a request, or raises `Refused`."""
        match (request.command, *request.path.split("/")[1:]):
            case ("GET" | "HEAD", "storage", sha256):
                return ranged(request.headers, self.place(sha256), sha256)
            case ("PUT", "upload", sha256, kind, *owner_and_name):
                if hashlib.sha256(request.content).hexdigest() != sha256:
                    raise Refused(400, f"expected sha256 {sha256}")
                with self._lock:
                    self.keep(self.repos[kind, "/".join(owner_and_name)], request.content, lfs=True)
                return Reply(200, headers={"ETag": f'"{sha256}"'})
        user = None
        if given := request.headers.get("Authorization"):
            user = self.users.get(given.removeprefix("Bearer "))
            if user is None:
                raise Refused(401, "Invalid credentials in Authorization header")
        with self._lock:
            return Call(self, user, request).route()

    def create(self, kind: str, repo_id: str, private: bool) -> Repo:
        """Makes a repository with the first commit that the Hub gives it."""
        repo = self.repos[kind, repo_id] = Repo(kind, repo_id, private)
        attributes = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES)
        first = {".gitattributes": self.keep(repo, attributes.encode(), lfs=False)}
        repo.branches["main"] = repo.add(first, None, "initial commit")
        return repo

    def is_large(self, path: str, size: int) -> bool:
        return PurePosixPath(path).suffix in LFS_SUFFIXES or size > 10 * 2**20

    def place(self, sha256: str) -> Path:
        return self.root / "objects" / sha256

    def keep(self, repo: Repo, data: bytes, lfs: bool) -> Blob:
        """Stores a file for a repository."""
        sha256 = hashlib.sha256(data).hexdigest()
        if not self.place(sha256).exists():
            self.place(sha256).write_bytes(data)
        if lfs:
            repo.objects.add(sha256)
        return make_blob(len(data), sha256, None if lfs else data)
