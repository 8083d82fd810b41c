"""Answers of the API of the Hub on loopback."""

import base64
import json
import re
import secrets
from typing import Any
from urllib.parse import parse_qs, quote, unquote

import yaml
from hub_faults import Handler, Refused, Reply, answer, ranged
from hub_repos import Blob, Commit, Repo, User, front_matter, make_blob, now


class Call:
    """A request of a user, None without a token, answered from the state of a `HubServer` whose lock is held."""

    def __init__(self, hub: Any, user: User | None, request: Handler) -> None:
        self.hub, self.user, self.request = hub, user, request
        # Split before it is unquoted: a quoted slash is part of a name.
        path, _, query = request.path.partition("?")
        self.parts, self.query = [unquote(part) for part in path.split("/")[1:]], parse_qs(query)

    def route(self) -> Reply:
        """Answers, or raises `Refused`."""
        method, parts = self.request.command, self.parts
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
        kind = "dataset" if parts[0] == "datasets" else "model"
        match (method, *parts[kind == "dataset" :]):
            case ("GET" | "HEAD", owner, name, "resolve", revision, *file):
                return self.resolve(self.readable(kind, f"{owner}/{name}"), revision, "/".join(file))
            case ("POST", owner, name, "info", "lfs", *what):
                return self.large(self.readable(kind, f"{owner}/{name.removesuffix('.git')}"), what)
        # A name without an owner, too, is that of no repository.
        raise Refused(404, "Repository not found", "RepoNotFound")

    def in_repo(self, method: str, repo: Repo, rest: list[str]) -> Reply:
        match (method, *rest):
            case ("GET",):
                return answer(self.facts(repo, repo.find("main")))
            case ("GET", "revision", revision):
                return answer(self.facts(repo, repo.find(revision)))
            case ("GET", "tree", revision, *path):
                return self.tree(repo.find(revision), "/".join(path))
            case ("POST", "paths-info", revision):
                files = repo.find(revision).files
                return answer([Commit.entry(path, files[path]) for path in self.sent["paths"] if path in files])
            case ("GET", "refs"):
                return self.refs(repo)
            case ("POST", "branch" | "tag", name):
                return self.refer(repo, rest[0], name)
            case ("POST", "preupload", revision):
                return self.preupload(repo, revision)
            case ("POST", "commit", revision):
                return self.commit(repo, revision)
        raise Refused(404, "Sorry, we can't find the page you are looking for.")

    @property
    def sent(self) -> Any:
        """What came as JSON or as a form."""
        if "form" in self.request.headers.get("Content-Type", ""):
            return parse_qs(self.request.content.decode())
        return json.loads(self.request.content or b"{}")

    def flag(self, name: str) -> bool:
        return self.query.get(name, ["0"])[0].lower() in ("1", "true")

    def is_member(self, namespace: str) -> bool:
        return self.user is not None and namespace in (self.user.name, *self.user.orgs)

    def readable(self, kind: str, repo_id: str) -> Repo:
        """Returns a repository; one that is not there and one that is hidden look alike."""
        repo: Repo | None = self.hub.repos.get((kind, repo_id))
        if repo is not None and (not repo.private or self.is_member(repo.owner)):
            return repo
        if self.user is None:
            raise Refused(401, "Invalid username or password.", "RepoNotFound")
        raise Refused(404, "Repository not found", "RepoNotFound")

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
        token = {"displayName": "test", "role": self.user.role, "createdAt": now()}
        auth = {"type": "access_token", "accessToken": token}
        return answer({"type": "user", "name": self.user.name, "orgs": [], "auth": auth})

    def validate(self) -> Reply:
        try:
            card, problem = front_matter(self.sent["content"]), "YAML Metadata Error: must be a mapping"
        except yaml.YAMLError as error:
            card, problem = "", f"YAML Metadata Error: {error}"
        errors = [] if card is None or isinstance(card, dict) else [{"message": problem}]
        return answer({"errors": errors, "warnings": []}, 400 if errors else 200)

    def create(self) -> Reply:
        asked = self.sent
        kind, owner = asked.get("type") or "model", asked.get("organization") or self.writer().name
        self.writer(owner)
        repo_id = f"{owner}/{asked['name']}"
        there = self.hub.repos.get((kind, repo_id))
        private = asked.get("visibility") == "private" or asked.get("private") is True
        repo = there or self.hub.create(kind, repo_id, private)
        said = {"url": f"{self.hub.endpoint}/{repo.path}", "name": repo_id, "id": repo_id}
        return answer({**said, "error": f"You already created this {kind} repo"}, 409) if there else answer(said)

    def facts(self, repo: Repo, commit: Commit) -> dict[str, Any]:
        card = None
        if "README.md" in commit.files:
            try:
                card = front_matter(self.hub.place(commit.files["README.md"].sha256).read_text())
            except (yaml.YAMLError, UnicodeDecodeError):
                pass
        card = card if isinstance(card, dict) else {}
        facts = {"_id": commit.sha[:24], "id": repo.id, "author": repo.owner, "sha": commit.sha, "cardData": card}
        facts |= {"lastModified": commit.date, "createdAt": repo.commits[0].date, "private": repo.private}
        facts |= {"gated": repo.gated, "disabled": False, "downloads": 0, "likes": 0, "tags": card.get("tags") or []}
        files = {path: {"rfilename": path} for path in commit.files}
        if self.flag("blobs"):
            for path, blob in commit.files.items():
                files[path] |= {"size": blob.size, "blobId": blob.oid, **blob.told("sha256")}
        return facts | {"siblings": list(files.values())}

    def search(self, kind: str) -> Reply:
        found = []
        for repo in self.hub.repos.values():
            facts = self.facts(repo, repo.find("main"))
            is_named = all(word.lower() in repo.id.lower() for word in self.query.get("search", []))
            is_open = not repo.private or self.is_member(repo.owner)
            is_tagged = {*self.query.get("filter", [])} <= {*facts["tags"]}
            if repo.kind == kind and is_named and is_open and is_tagged:
                if repo.owner in self.query.get("author", [repo.owner]):
                    found.append(facts)
        return answer(found[: int(self.query.get("limit", [len(found)])[0])])

    def tree(self, commit: Commit, folder: str) -> Reply:
        found = commit.entries(folder, self.flag("recursive"))
        if folder and not found:
            raise Refused(404, f"{folder} does not exist on {commit.sha}", "EntryNotFound", X_Repo_Commit=commit.sha)
        return answer(found)

    def refs(self, repo: Repo) -> Reply:
        def listed(refs: dict[str, str], prefix: str) -> list[dict[str, str]]:
            return [{"name": name, "ref": prefix + name, "targetCommit": sha} for name, sha in refs.items()]

        said = {"branches": listed(repo.branches, "refs/heads/"), "tags": listed(repo.tags, "refs/tags/")}
        pulls = {"pullRequests": listed(repo.pulls, "")} if self.flag("include_prs") else {}
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
            return ranged(self.request.headers, self.hub.place(blob.sha256), blob.oid, of_file)
        linked = {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(blob.size)}
        return Reply(302, b"", {**of_file, **linked, "Location": f"{self.hub.storage}/storage/{blob.sha256}"})

    def preupload(self, repo: Repo, revision: str) -> Reply:
        self.writer(None if self.flag("create_pr") else repo.owner)
        commit, files = repo.find(revision), []
        for file in self.sent["files"]:
            mode = "lfs" if self.hub.is_large(file["path"], file["size"]) else "regular"
            there = commit.files.get(file["path"])
            oid = there and (there.sha256 if there.lfs else there.oid)
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return answer({"files": files, "commitOid": commit.sha})

    def large(self, repo: Repo, what: list[str]) -> Reply:
        """Answers the LFS protocol: where to upload what is not there yet, and whether it has come."""
        self.writer()
        asked = self.sent
        if what == ["verify"]:
            if asked["oid"] not in repo.objects:
                raise Refused(404, f"LFS object {asked['oid']} is not there")
            return answer({"success": True})
        objects: list[dict[str, Any]] = []
        for entry in asked["objects"]:
            objects.append({"oid": entry["oid"], "size": entry["size"], "authenticated": True})
            if entry["oid"] not in repo.objects:
                upload = {"href": f"{self.hub.storage}/upload/{entry['oid']}/{repo.kind}/{repo.id}", "header": {}}
                verify = {"href": f"{self.hub.endpoint}/{repo.path}.git/info/lfs/verify"}
                objects[-1]["actions"] = {"upload": upload, "verify": verify}
        return answer({"transfer": "basic", "objects": objects})

    def commit(self, repo: Repo, revision: str) -> Reply:
        as_pull = self.flag("create_pr")
        self.writer(None if as_pull else repo.owner)
        base, refs = repo.find(revision), repo.pulls if revision in repo.pulls else repo.branches
        if revision not in refs:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        header, *operations = [json.loads(line) for line in self.request.content.splitlines() if line]
        parent = header["value"].get("parentCommit")
        if as_pull and parent:
            base = repo.find(parent)
        elif parent and not base.sha.startswith(parent):
            raise Refused(412, "A commit has happened since. Please refresh and try again.")
        files = dict(base.files)
        for operation in operations:
            self.apply(repo, files, operation["key"], operation["value"])
        sha = repo.add(files, base.sha, header["value"]["summary"])
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
                files[path] = make_blob(self.hub.place(value["oid"]).stat().st_size, value["oid"], None)
            case "deletedFile":
                if files.pop(path, None) is None:
                    raise Refused(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
            case _:
                raise Refused(400, f"unknown operation {key}")

    def collect(self, method: str, rest: list[str]) -> Reply:
        """Makes a collection, adds to one, or shows one."""
        asked = self.sent
        if (method, rest) == ("POST", []):
            title, owner = asked["title"], asked["namespace"]
            self.writer(owner)
            for slug, there in self.hub.collections.items():
                if (there["title"], there["owner"]["name"]) == (title, owner):
                    return answer({"error": "This collection already exists", "slug": slug}, 409)
            slug = f"{owner}/{re.sub(r'[^a-z0-9]+', '-', title.lower()).strip('-')}-{secrets.token_hex(12)}"
            made = {"slug": slug, "title": title, "owner": {"name": owner}, "items": [], "lastUpdated": now()}
            made |= {"private": bool(asked.get("private")), "position": 0, "theme": "blue", "upvotes": 0}
            self.hub.collections[slug] = made
            return answer(made)
        collection = self.hub.collections["/".join(rest[:2])]
        if method == "POST":
            self.writer(rest[0])
            item, items = asked["item"], collection["items"]
            self.readable(item["type"], item["id"])
            if any((there["id"], there["type"]) == (item["id"], item["type"]) for there in items):
                raise Refused(409, "Item already in collection")
            items.append({"_id": secrets.token_hex(12), **item, "position": len(items)})
        return answer(collection)
