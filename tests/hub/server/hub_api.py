"""What the API of the Hub on loopback answers."""

import base64
import json
import re
import secrets
from collections.abc import Mapping
from fnmatch import fnmatch
from typing import Any
from urllib.parse import parse_qs, quote, unquote

import yaml
from hub_faults import Refused, Reply, answer, ranged
from hub_repos import Blob, Commit, Repo, User, front_matter, git_oid, now, tags_of


class Call:
    """A request of a user, answered from the state of a hub whose lock the caller holds.

    Args:
        hub: The `HubServer`.
        user: Who asks; None without a token.
        headers: Headers of the request.
        body: Its body.
        path: Path and query as they are sent: a quoted slash is part of a name.
    """

    def __init__(self, hub: Any, user: User | None, headers: Mapping[str, str], body: bytes, path: str) -> None:
        self.hub, self.user, self.headers, self.body = hub, user, headers, body
        self.path, _, query = path.partition("?")
        self.query = parse_qs(query)

    def route(self, method: str) -> Reply:
        """Answers.

        Raises:
            Refused: As the Hub does.
        """
        parts = [unquote(part) for part in self.path.split("/")[1:]]
        match (method, *parts):
            case ("GET", "api", "whoami-v2"):
                return self.whoami()
            case ("POST", "api", "validate-yaml"):
                return self.validate()
            case ("POST", "api", "repos", "create"):
                return self.create()
            case (_, "api", "collections", *rest):
                return self.collect(method, rest)
            case ("GET", "api", ("models" | "datasets") as kinds):
                return self.search(kinds[:-1])
            case (_, "api", ("models" | "datasets") as kinds, owner, name, *rest):
                return self.in_repo(method, self.readable(kinds[:-1], f"{owner}/{name}"), rest)
            case ("GET", "api", ("models" | "datasets") as kinds, name):
                self.readable(kinds[:-1], name)
        kind = "dataset" if parts[0] == "datasets" else "model"
        match (method, *parts[kind == "dataset" :]):
            case ("GET" | "HEAD", owner, name, "resolve", revision, *file):
                return self.resolve(self.readable(kind, f"{owner}/{name}"), revision, "/".join(file))
            case ("GET" | "HEAD", name, "resolve", _, *_):
                self.readable(kind, name)
            case ("POST", owner, name, "info", "lfs", *what):
                return self.large(self.readable(kind, f"{owner}/{name.removesuffix('.git')}"), what)
        raise _no_page()

    def in_repo(self, method: str, repo: Repo, rest: list[str]) -> Reply:
        """Answers what is asked of one repository."""
        match (method, *rest):
            case ("GET",):
                return self.info(repo, "main")
            case ("GET", "revision", revision):
                return self.info(repo, revision)
            case ("GET", "tree", revision, *path):
                return self.tree(repo.find(revision), "/".join(path))
            case ("POST", "paths-info", revision):
                return self.paths_info(repo.find(revision))
            case ("GET", "refs"):
                return self.refs(repo)
            case ("PUT", "settings"):
                return self.settle(repo)
            case ("POST", "branch" | "tag", name):
                return self.refer(repo, rest[0], name)
            case ("POST", "preupload", revision):
                return self.preupload(repo, revision)
            case ("POST", "commit", revision):
                return self.commit(repo, revision)
        raise _no_page()

    @property
    def sent(self) -> Any:
        """What came as JSON or as a form."""
        if "form" in self.headers.get("Content-Type", ""):
            return parse_qs(self.body.decode())
        try:
            return json.loads(self.body or b"{}")
        except ValueError:
            raise Refused(400, "Invalid JSON") from None

    def flag(self, name: str) -> bool:
        return self.query.get(name, ["0"])[0].lower() in ("1", "true")

    def is_member(self, namespace: str) -> bool:
        return self.user is not None and namespace in self.user.namespaces

    def readable(self, kind: str, repo_id: str) -> Repo:
        """Returns a repository; one that is not there and one that is hidden look alike."""
        repo = self.hub.repos.get((kind, repo_id))
        if repo is None or (repo.private and not self.is_member(repo.owner)):
            if self.user is None:
                raise Refused(401, "Invalid username or password.", "RepoNotFound")
            raise Refused(404, "Repository not found", "RepoNotFound")
        return repo

    def writer(self, namespace: str | None = None) -> User:
        """Returns the user, who may write, and write there."""
        if self.user is None:
            raise Refused(401, "Invalid username or password.")
        if self.user.role == "read":
            raise Refused(403, "Forbidden: you must use a write token to upload to a repository.")
        if namespace is not None and not self.is_member(namespace):
            raise Refused(403, f"You don't have the rights to write under the namespace {namespace}")
        return self.user

    def whoami(self) -> Reply:
        if self.user is None:
            raise Refused(401, "Invalid username or password.")
        orgs = [{"type": "org", "name": name, "roleInOrg": self.user.role} for name in self.user.orgs]
        token = {"displayName": "test", "role": self.user.role, "createdAt": now()}
        auth = {"type": "access_token", "accessToken": token}
        name = self.user.name
        return answer({"type": "user", "id": name, "name": name, "fullname": name, "orgs": orgs, "auth": auth})

    def validate(self) -> Reply:
        errors, warnings = [], []
        try:
            card = front_matter(self.sent["content"])
        except yaml.YAMLError as error:
            card, errors = {}, [f"YAML Metadata Error: {error}"]
        if card is None:
            card, warnings = {}, ["empty or missing yaml metadata in repo card"]
        if not isinstance(card, dict):
            card, errors = {}, ["YAML Metadata Error: must be a mapping"]
        said = {"errors": errors, "warnings": warnings}
        return answer({name: [{"message": m} for m in all_] for name, all_ in said.items()}, 400 if errors else 200)

    def create(self) -> Reply:
        asked = self.sent
        kind, owner = asked.get("type") or "model", asked.get("organization") or self.writer().name
        self.writer(owner)
        if kind not in ("model", "dataset"):
            raise Refused(400, f"this server has models and datasets, got {kind}")
        repo_id = f"{owner}/{asked['name']}"
        there = self.hub.repos.get((kind, repo_id))
        private = asked.get("visibility") == "private" or asked.get("private") is True
        repo = there or self.hub.create(kind, repo_id, private)
        said = {"url": f"{self.hub.endpoint}/{repo.path}", "name": repo_id, "id": repo_id}
        return answer({**said, "error": f"You already created this {kind} repo"}, 409) if there else answer(said)

    def settle(self, repo: Repo) -> Reply:
        self.writer(repo.owner)
        asked = self.sent
        if "visibility" in asked or "private" in asked:
            repo.private = asked.get("visibility") == "private" or asked.get("private") is True
        repo.gated = asked.get("gated", repo.gated)
        return answer({"private": repo.private, "gated": repo.gated})

    def card(self, commit: Commit) -> Any:
        blob = commit.files.get("README.md")
        try:
            return front_matter(self.hub.place(blob.sha256).read_text()) if blob else None
        except (yaml.YAMLError, UnicodeDecodeError):
            return None

    def facts(self, repo: Repo, commit: Commit) -> dict[str, Any]:
        card = self.card(commit)
        facts = {"_id": commit.sha[:24], "id": repo.id, "author": repo.owner, "sha": commit.sha}
        facts |= {"lastModified": commit.date, "createdAt": repo.commits[0].date, "private": repo.private}
        facts |= {"gated": repo.gated, "disabled": False, "downloads": 0, "likes": 0, "tags": tags_of(card)}
        facts["siblings"] = [
            {"rfilename": path, **(blob.told if self.flag("blobs") else {})} for path, blob in commit.files.items()
        ]
        return facts | ({"cardData": card} if isinstance(card, dict) else {})

    def info(self, repo: Repo, revision: str) -> Reply:
        facts = self.facts(repo, repo.find(revision))
        wanted = {"_id", "id", *self.query["expand"]} if "expand" in self.query else set(facts)
        return answer({name: value for name, value in facts.items() if name in wanted})

    def search(self, kind: str) -> Reply:
        repos = [repo for repo in self.hub.repos.values() if repo.kind == kind]
        listed = [
            self.facts(repo, repo.find("main"))
            for repo in repos
            if not repo.private or self.is_member(repo.owner)
            if repo.owner in self.query.get("author", [repo.owner])
            if all(word.lower() in repo.id.lower() for word in self.query.get("search", []))
        ]
        listed = [facts for facts in listed if {*self.query.get("filter", [])} <= {*facts["tags"]}]
        hidden = set() if self.flag("full") else {"siblings", "cardData"}
        limit = int(self.query.get("limit", [len(listed)])[0])
        return answer([{name: facts[name] for name in facts if name not in hidden} for facts in listed[:limit]])

    def tree(self, commit: Commit, below: str) -> Reply:
        found = commit.folder(below, self.flag("recursive"))
        if below and not found:
            raise Refused(404, f"{below} does not exist on {commit.sha}", "EntryNotFound", X_Repo_Commit=commit.sha)
        return answer([self.entry(commit, path) for path in found])

    def paths_info(self, commit: Commit) -> Reply:
        paths = [path.strip("/") for path in self.sent.get("paths", [])]
        known = [path for path in paths if path in commit.files or commit.folder(path)]
        return answer([self.entry(commit, path) for path in known])

    def entry(self, commit: Commit, path: str) -> dict[str, Any]:
        blob = commit.files.get(path)
        if blob is None:
            content = "".join(each.oid for each in commit.under(path).values())
            entry = {"type": "directory", "oid": git_oid("tree", content.encode()), "size": 0, "path": path}
        else:
            entry = {"type": "file", "oid": blob.oid, "size": blob.size, "path": path}
            if blob.lfs:
                entry["lfs"] = {"oid": blob.sha256, "size": blob.size, "pointerSize": blob.pointer_size}
        return entry

    def refs(self, repo: Repo) -> Reply:
        def listed(refs: dict[str, str], ref: str) -> list[dict[str, str]]:
            return [
                {"name": name.removeprefix("refs/pr/"), "ref": ref.format(name), "targetCommit": sha}
                for name, sha in refs.items()
            ]

        said = {"branches": listed(repo.branches, "refs/heads/{}"), "tags": listed(repo.tags, "refs/tags/{}")}
        pulls = {"pullRequests": listed(repo.pulls, "{}")} if self.flag("include_prs") else {}
        return answer({**said, "converts": [], **pulls})

    def refer(self, repo: Repo, what: str, name: str) -> Reply:
        """Makes a branch or a tag; the path of a new tag names what it is put on."""
        self.writer(repo.owner)
        refs = repo.branches if what == "branch" else repo.tags
        start = name if what == "tag" else self.sent.get("startingPoint", "main")
        name = self.sent["tag"] if what == "tag" else name
        if name in refs:
            raise Refused(409, f"Reference already exists: {name}")
        refs[name] = repo.find(start).sha
        return Reply()

    def resolve(self, repo: Repo, revision: str, path: str) -> Reply:
        if repo.gated and not self.is_member(repo.owner):
            raise Refused(403 if self.user else 401, f"Access to {repo.id} is restricted.", "GatedRepo")
        commit = repo.find(revision)
        blob = commit.files.get(path)
        if blob is None:
            raise Refused(404, "Entry not found", "EntryNotFound", X_Repo_Commit=commit.sha)
        name = quote(path.split("/")[-1])
        of_file = {"X-Repo-Commit": commit.sha, "Content-Disposition": f"inline; filename*=UTF-8''{name}"}
        if not blob.lfs:
            return ranged(self.headers, self.hub.place(blob.sha256), blob.oid, of_file)
        linked = {
            "X-Linked-Etag": f'"{blob.sha256}"',
            "X-Linked-Size": str(blob.size),
            "Location": self.hub.signed(blob.sha256),
        }
        return Reply(302, b"Found. Redirecting", {"Content-Type": "text/plain", **of_file, **linked})

    def preupload(self, repo: Repo, revision: str) -> Reply:
        self.writer(None if self.flag("create_pr") else repo.owner)
        commit = repo.find(revision)
        ignored = self.sent.get("gitIgnore")
        if ignored is None and ".gitignore" in commit.files:
            ignored = self.hub.place(commit.files[".gitignore"].sha256).read_text()
        files = []
        for file in self.sent["files"]:
            mode = "lfs" if self.hub.is_large(file["path"], file["size"]) else "regular"
            there = commit.files.get(file["path"])
            skip = _is_ignored(file["path"], ignored or "")
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": skip, "oid": there and there.etag})
        return answer({"files": files, "commitOid": commit.sha})

    def large(self, repo: Repo, what: list[str]) -> Reply:
        """Answers the LFS protocol: where to upload what is not there yet, and whether it has come."""
        self.writer()
        asked = self.sent
        if what == ["verify"]:
            if asked["oid"] not in repo.objects or self.hub.place(asked["oid"]).stat().st_size != asked["size"]:
                raise Refused(404, f"LFS object {asked['oid']} is not there")
            return answer({"success": True})
        if what != ["objects", "batch"]:
            raise _no_page()
        objects: list[dict[str, Any]] = []
        for each in ({"oid": entry["oid"], "size": entry["size"]} for entry in asked["objects"]):
            objects.append({**each, "authenticated": True})
            if each["oid"] not in repo.objects:
                upload = {"href": self.hub.open_upload(repo, each["oid"], each["size"]), "header": {}}
                verify = {"href": f"{self.hub.endpoint}/{repo.path}.git/info/lfs/verify"}
                objects[-1]["actions"] = {"upload": upload, "verify": verify}
        return answer({"transfer": "basic", "objects": objects})

    def commit(self, repo: Repo, revision: str) -> Reply:
        as_pull = self.flag("create_pr")
        user = self.writer(None if as_pull else repo.owner)
        base, refs = repo.find(revision), repo.pulls if revision in repo.pulls else repo.branches
        if revision not in refs:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        header, *operations = [json.loads(line) for line in self.body.splitlines() if line]
        parent = header["value"].get("parentCommit")
        if as_pull and parent:
            base = repo.find(parent)
        elif parent and not base.sha.startswith(parent):
            raise Refused(412, "A commit has happened since. Please refresh and try again.")
        files = dict(base.files)
        for operation in operations:
            self.apply(repo, files, operation["key"], operation["value"])
        sha = repo.add(files, base.sha, header["value"]["summary"], user.name)
        place = f"{self.hub.endpoint}/{repo.path}"
        said = {"success": True, "commitOid": sha, "commitUrl": f"{place}/commit/{sha}", "hookOutput": ""}
        if as_pull:
            number = len(repo.pulls) + 1
            revision, refs, said["pullRequestUrl"] = f"refs/pr/{number}", repo.pulls, f"{place}/discussions/{number}"
        refs[revision] = sha
        return answer(said)

    def apply(self, repo: Repo, files: dict[str, Blob], key: str, value: dict[str, Any]) -> None:
        """Does one operation of a commit to the files."""
        path = value["path"]
        match key:
            case "file":
                files[path] = self.hub.keep(repo, base64.b64decode(value["content"]), lfs=False)
            case "lfsFile":
                if value["oid"] not in repo.objects:
                    raise Refused(400, f"an LFS pointer pointed to a file that does not exist: {path}")
                files[path] = Blob.large(value["oid"], self.hub.place(value["oid"]).stat().st_size)
            case "deletedFile" | "deletedFolder":
                inside = path.rstrip("/") + "/"
                gone = [name for name in files if (name == path if key == "deletedFile" else name.startswith(inside))]
                if not gone:
                    raise Refused(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
                for name in gone:
                    del files[name]
            case _:
                raise Refused(400, f"unknown operation {key}")

    def collect(self, method: str, rest: list[str]) -> Reply:
        """Makes a collection, adds to one, or shows one."""
        if (method, rest) == ("POST", []):
            return self.new_collection(self.sent)
        slug = "/".join(rest[:2])
        collection = self.hub.collections.get(slug)
        if collection is None or (collection["private"] and not self.is_member(rest[0])):
            raise Refused(404, "Collection not found")
        if (method, rest[2:]) == ("POST", ["items"]):
            self.writer(rest[0])
            self.add_item(collection, self.sent)
        elif (method, rest[2:]) != ("GET", []):
            raise _no_page()
        return answer(collection)

    def new_collection(self, asked: dict[str, Any]) -> Reply:
        title, owner = asked["title"], asked["namespace"]
        self.writer(owner)
        for slug, there in self.hub.collections.items():
            if (there["title"], there["owner"]["name"]) == (title, owner):
                return answer({"error": "This collection already exists", "slug": slug}, 409)
        slug = f"{owner}/{re.sub(r'[^a-z0-9]+', '-', title.lower()).strip('-')}-{secrets.token_hex(12)}"
        made = {"slug": slug, "title": title, "description": asked.get("description"), "owner": {"name": owner}}
        made |= {"items": [], "lastUpdated": now(), "private": bool(asked.get("private"))}
        self.hub.collections[slug] = made | {"position": 0, "theme": "blue", "upvotes": 0}
        return answer(self.hub.collections[slug])

    def add_item(self, collection: dict[str, Any], asked: dict[str, Any]) -> None:
        item, items = asked["item"], collection["items"]
        self.readable(item["type"], item["id"])
        if any((there["id"], there["type"]) == (item["id"], item["type"]) for there in items):
            raise Refused(409, "Item already in collection")
        note = {"note": {"text": asked["note"]}} if "note" in asked else {}
        items.append({"_id": secrets.token_hex(12), **item, "position": len(items), **note})


def _no_page() -> Refused:
    return Refused(404, "Sorry, we can't find the page you are looking for.")


def _is_ignored(path: str, gitignore: str) -> bool:
    """Whether a line of a .gitignore stands for a path; of its syntax only names, `*` and folders are known."""
    lines = [line.strip() for line in gitignore.splitlines()]
    names = [path, *path.split("/")]
    return any(fnmatch(name, line.strip("/")) for line in lines if line and line[0] != "#" for name in names)
