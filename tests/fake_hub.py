"""A small server that speaks the Hub's protocol, for tests with the real huggingface_hub client.

Models only, everything in memory, on a loopback port the system chooses. Files named in `LFS` go
the large-file way, as weights do on the Hub. Known tokens are the keys of `FakeHub.users`.
"""

import base64
import hashlib
import json
import re
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urlsplit

Files = dict[str, bytes]
LFS = re.compile(r"\.safetensors$")


@dataclass
class Repo:
    """One repository: all its commits by hash, and the commit each branch stands at."""

    private: bool = False
    gated: bool = False
    commits: dict[str, Files] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    pulls: int = 0

    def commit(self, branch: str, files: Files) -> str:
        """Put `files` at the tip of `branch` and return the commit's hash."""
        seal = f"{len(self.commits)} {branch}".encode() + b"".join(files.values())
        sha = hashlib.sha1(seal).hexdigest()
        self.commits[sha] = files
        self.branches[branch] = sha
        return sha

    def sha(self, revision: str) -> str | None:
        """Return the commit of a branch or of a commit's own hash."""
        return self.branches.get(revision) or (revision if revision in self.commits else None)


class Refused(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        self.status, self.code, self.message = status, code, message


class FakeHub:
    """The server; use it in a `with` block.

    Args:
        users: The known tokens, each with its user's name.
    """

    def __init__(self, users: dict[str, str]) -> None:
        self.users = users
        self.repos: dict[str, Repo] = {}
        self.uploads: Files = {}
        self.log: list[str] = []
        hub = self

        class Handler(_Handler):
            state = hub

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> "FakeHub":
        Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def files(self, repo_id: str, revision: str = "main") -> Files:
        """Return the files of a revision."""
        repo = self.repos[repo_id]
        return repo.commits[repo.sha(revision) or revision]


class _Handler(BaseHTTPRequestHandler):
    state: FakeHub
    protocol_version = "HTTP/1.0"  # no connection outlives the server

    def do_GET(self) -> None:
        self._answer("GET")

    def do_HEAD(self) -> None:
        self._answer("HEAD")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_PUT(self) -> None:
        self._answer("PUT")

    def log_message(self, *_: object) -> None:
        """Keep the tests' output clean."""

    def _answer(self, method: str) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length)
        address = urlsplit(self.path)
        path = unquote(address.path)
        self.query = address.query
        self.state.log.append(f"{method} {path}")
        try:
            for verb, pattern, action in _ROUTES:
                match = re.fullmatch(pattern, path)
                if match and method in verb.split():
                    self._send(*action(self, **match.groupdict()))
                    return
            raise Refused(404, message=f"no route for {method} {path}")
        except Refused as refusal:
            headers = {"X-Error-Message": refusal.message}
            if refusal.code:
                headers["X-Error-Code"] = refusal.code
            self._send({"error": refusal.message}, refusal.status, headers)

    def _send(
        self,
        content: bytes | dict | list,
        status: int = 200,
        headers: dict[str, str] | None = None,
    ) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _user(self) -> str | None:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token and token not in self.state.users:
            raise Refused(401, message="Invalid credentials in Authorization header")
        return self.state.users.get(token)

    def _readable(self, repo_id: str) -> Repo:
        user, repo = self._user(), self.state.repos.get(repo_id)
        # As on the Hub: what you may not see does not exist.
        if repo is None or (repo.private and user != repo_id.split("/")[0]):
            raise Refused(404 if user else 401, "RepoNotFound", "Repository not found")
        if repo.gated and user is None:
            raise Refused(401, "GatedRepo", f"Access to model {repo_id} is restricted.")
        return repo

    def _writable(self, repo_id: str, *, pull: bool = False) -> Repo:
        repo = self._readable(repo_id)
        if self._user() is None or (not pull and self._user() != repo_id.split("/")[0]):
            raise Refused(403, message="You have no permission to write here")
        return repo

    def _commit_of(self, repo: Repo, revision: str) -> str:
        sha = repo.sha(revision)
        if sha is None:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return sha

    def create(self):
        user, asked = self._user(), json.loads(self.body)
        owner = asked.get("organization") or user
        repo_id = f"{owner}/{asked['name']}"
        url = {"url": f"{self.state.url}/{repo_id}", "name": repo_id}
        if user is None:
            raise Refused(401, message="Invalid username or password.")
        if user != owner:
            raise Refused(403, message=f"You cannot create repositories for {owner}")
        if repo_id in self.state.repos:
            return url, 409
        private = asked.get("private") or asked.get("visibility") == "private"
        repo = self.state.repos[repo_id] = Repo(private=bool(private))
        repo.commit("main", {".gitattributes": b""})
        return (url,)

    def validate(self):
        return ({"errors": [], "warnings": []},)

    def branch(self, repo_id: str, branch: str):
        repo = self._writable(repo_id)
        if branch in repo.branches:
            raise Refused(409, message="Reference already exists")
        repo.branches[branch] = repo.branches["main"]
        return ({},)

    def preupload(self, repo_id: str, revision: str):
        repo = self._writable(repo_id, pull="create_pr" in self.query)
        self._commit_of(repo, revision)
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if LFS.search(file["path"]) else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(self.body)["files"]
        ]
        return ({"files": files},)

    def lfs_batch(self, repo_id: str):
        self._writable(repo_id, pull=True)
        objects = [
            {**each, "actions": {"upload": {"href": f"{self.state.url}/lfs/{each['oid']}"}}}
            for each in json.loads(self.body)["objects"]
        ]
        return (
            {"transfer": "basic", "objects": objects},
            200,
            {"Content-Type": "application/vnd.git-lfs+json"},
        )

    def lfs_put(self, oid: str):
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refused(422, message="the content does not have that hash")
        self.state.uploads[oid] = self.body
        return (b"",)

    def commit(self, repo_id: str, revision: str):
        pull = "create_pr" in self.query
        repo = self._writable(repo_id, pull=pull)
        files = dict(repo.commits[self._commit_of(repo, revision)])
        for line in self.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.state.uploads[value["oid"]]
        repo.pulls += pull
        sha = repo.commit(f"refs/pr/{repo.pulls}" if pull else revision, files)
        home = f"{self.state.url}/{repo_id}"
        request = f"{home}/discussions/{repo.pulls}" if pull else None
        answer = {"commitUrl": f"{home}/commit/{sha}", "commitOid": sha, "pullRequestUrl": request}
        return (answer,)

    def info(self, repo_id: str, revision: str = "main"):
        repo = self._readable(repo_id)
        sha = self._commit_of(repo, revision)
        names = [{"rfilename": name} for name in repo.commits[sha]]
        return ({"id": repo_id, "sha": sha, "private": repo.private, "siblings": names},)

    def resolve(self, repo_id: str, revision: str, path: str):
        repo = self._readable(repo_id)
        sha = self._commit_of(repo, revision)
        headers = {"X-Repo-Commit": sha}
        if path not in repo.commits[sha]:
            headers |= {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
            return {"error": "Entry not found"}, 404, headers
        data = repo.commits[sha][path]
        headers |= {"ETag": f'"{hashlib.sha1(data).hexdigest()}"'}
        return data, 200, {**headers, "Content-Type": "application/octet-stream"}


_REPO = r"(?P<repo_id>[^/]+/[^/]+?)"
_ROUTES = (
    ("POST", "/api/repos/create", _Handler.create),
    ("POST", "/api/validate-yaml", _Handler.validate),
    ("POST", rf"/api/models/{_REPO}/branch/(?P<branch>.+)", _Handler.branch),
    ("POST", rf"/api/models/{_REPO}/preupload/(?P<revision>.+)", _Handler.preupload),
    ("POST", rf"/api/models/{_REPO}/commit/(?P<revision>.+)", _Handler.commit),
    ("POST", rf"/{_REPO}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    ("PUT", r"/lfs/(?P<oid>\w+)", _Handler.lfs_put),
    ("GET", rf"/api/models/{_REPO}/revision/(?P<revision>.+)", _Handler.info),
    ("GET", rf"/api/models/{_REPO}", _Handler.info),
    (
        "GET HEAD",
        rf"/{_REPO}/resolve/(?P<revision>refs/[^/]+/[^/]+|[^/]+)/(?P<path>.+)",
        _Handler.resolve,
    ),
)
