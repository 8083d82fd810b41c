"""A Hub on loopback, as far as its clients can tell, which fails where a test wants it to.

The wire and the `Fault`s are in `hub_faults`. Downloads of large files and uploads go to a second port, since on the
real Hub they go to another host: a client must neither follow the redirect of a HEAD nor send its token there.
"""

import hashlib
import os
import re
import secrets
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any
from unittest.mock import patch
from urllib.parse import parse_qs

from hub_api import Call
from hub_faults import Fault, Handler, Listener, Recorded, Refused, Reply, ranged
from hub_repos import Blob, Repo, User
from huggingface_hub import close_session, constants

__all__ = ["Fault", "HubServer", "Recorded", "client_env", "connected"]

LFS_SUFFIXES = (
    ".arrow .bin .bmp .gif .gz .jpeg .jpg .npy .npz .parquet .pkl .png .pt .pth .safetensors .tar .zip".split()
)


def client_env(server: "HubServer", home: Path) -> dict[str, str]:
    """Returns the environment of a process whose clients talk to the server and keep what they keep below `home`."""
    ours = {
        "HF_ENDPOINT": server.endpoint,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "no_proxy": "127.0.0.1",
    }
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    return {name: value for name, value in kept.items() if not name.startswith("HUGGING")} | ours


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
    """A Hub; within `with` it answers at `endpoint`, and afterwards nothing of it is left but the files below root.

    Attributes:
        endpoint: Its address.
        repos: Repositories by type (`model`, `dataset`) and id.
        requests: All requests so far.
        faults: What goes wrong; the first that matches a request strikes.
        collections: By slug, as the API gives them.
        regular_limit: Bytes of the largest file that is not a large file by its suffix, but by its size.
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
        self.regular_limit = 10 * 2**20
        self.closing = threading.Event()
        self._tickets: dict[str, tuple[Repo, str, int]] = {}
        self._secret = secrets.token_hex(8)
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

    def commit(
        self,
        repo_id: str,
        files: Mapping[str, bytes | None],
        repo_type: str = "dataset",
        revision: str = "main",
        title: str = "by another publisher",
    ) -> str:
        """Commits to a branch past the API, None removes a file; makes the repository where there is none.

        Returns:
            The sha.
        """
        with self._lock:
            repo = self.repos.get((repo_type, repo_id)) or self.create(repo_type, repo_id, private=False)
            content = dict(repo.find(revision).files)
            for path, data in files.items():
                if data is None:
                    del content[path]
                else:
                    content[path] = self.keep(repo, data, self.is_large(path, len(data)))
            repo.branches[revision] = repo.add(content, repo.branches[revision], title, repo.owner)
            return repo.branches[revision]

    def asked(self, pattern: str) -> list[Recorded]:
        """Returns the requests in whose `METHOD /path?query` the pattern is found."""
        with self._lock:
            return [each for each in self.requests if re.search(pattern, f"{each.method} {each.path}")]

    def note(self, recorded: Recorded) -> tuple[Recorded, Fault | None]:
        """Records a request and says what goes wrong with it."""
        with self._lock:
            self.requests.append(recorded)
            asked = f"{recorded.method} {recorded.path}"
            return recorded, next((fault for fault in self.faults if fault.strikes(asked)), None)

    def serve(self, request: Handler) -> Reply:
        """Answers a request.

        Raises:
            Refused: As the Hub does.
        """
        path, _, query = request.path.partition("?")
        match (request.command, *path.split("/")[1:]):
            case ("GET" | "HEAD", "storage", sha256):
                if parse_qs(query).get("signature") != [self._signature(sha256)]:
                    raise Refused(403, "Access denied")
                return ranged(request.headers, self.place(sha256), sha256)
            case ("PUT", "upload", ticket):
                return self._take_upload(request, ticket)
        user, body = self._user(request), b"".join(request.body())
        with self._lock:
            return Call(self, user, request.headers, body, request.path).route(request.command)

    def _user(self, request: Handler) -> User | None:
        given = request.headers.get("Authorization")
        if given is None:
            return None
        user = self.users.get(given.removeprefix("Bearer "))
        if user is None:
            raise Refused(401, "Invalid credentials in Authorization header")
        return user

    def create(self, kind: str, repo_id: str, private: bool) -> Repo:
        """Makes a repository with the first commit that the Hub gives it."""
        repo = self.repos[kind, repo_id] = Repo(kind, repo_id, private)
        attributes = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES)
        first = {".gitattributes": self.keep(repo, attributes.encode(), lfs=False)}
        repo.branches["main"] = repo.add(first, None, "initial commit", repo.owner)
        return repo

    def is_large(self, path: str, size: int) -> bool:
        return PurePosixPath(path).suffix in LFS_SUFFIXES or size > self.regular_limit

    def place(self, sha256: str) -> Path:
        return self.root / "objects" / sha256

    def keep(self, repo: Repo, data: bytes, lfs: bool) -> Blob:
        """Stores a file for a repository."""
        sha256 = hashlib.sha256(data).hexdigest()
        if not self.place(sha256).exists():
            self.place(sha256).write_bytes(data)
        if lfs:
            repo.objects.add(sha256)
        return Blob.large(sha256, len(data)) if lfs else Blob.regular(data)

    def signed(self, sha256: str) -> str:
        """Returns the address of a large file, which needs no token."""
        return f"{self.storage}/storage/{sha256}?signature={self._signature(sha256)}"

    def open_upload(self, repo: Repo, sha256: str, size: int) -> str:
        """Returns the address that takes this upload and no other; like a signed one, also again."""
        ticket = secrets.token_hex(16)
        self._tickets[ticket] = (repo, sha256, size)
        return f"{self.storage}/upload/{ticket}"

    def _signature(self, sha256: str) -> str:
        return hashlib.sha256(f"{self._secret} {sha256}".encode()).hexdigest()[:16]

    def _take_upload(self, request: Handler, ticket: str) -> Reply:
        if ticket not in self._tickets:
            raise Refused(403, "Access denied")
        repo, sha256, size = self._tickets[ticket]
        digest, taken = hashlib.sha256(), 0
        with tempfile.TemporaryDirectory(dir=self.root) as scratch:
            with Path(scratch, "part").open("wb") as file:
                for part in request.body():
                    digest.update(part)
                    taken += file.write(part)
            if (taken, digest.hexdigest()) != (size, sha256):
                raise Refused(400, f"expected {size} bytes of sha256 {sha256}, got {taken} of {digest.hexdigest()}")
            with self._lock:
                Path(scratch, "part").replace(self.place(sha256))
                repo.objects.add(sha256)
        return Reply(200, headers={"ETag": f'"{sha256}"'})
