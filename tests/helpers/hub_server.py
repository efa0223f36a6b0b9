"""A local server in place of the Hugging Face Hub, with the part of its HTTP API that model transfers use.

Files are kept in memory. Names ending in .safetensors or .png are uploaded by Git LFS, the others in the commit.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Hub:
    """`with Hub() as hub:` serves at `hub.url`. `repositories[name][revision][path] = bytes`."""

    def __init__(self):
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}
        self.objects: dict[str, bytes] = {}
        self.gated: set[str] = set()
        self.requests: list[str] = []
        self.unknown: list[str] = []
        self.headers: dict[str, str] = {}  # sent in place of a file's own headers
        self.bodies: dict[str, bytes] = {}  # part of a path → the content that GET returns for it
        self.hangs_at = ""  # a method whose requests for files get no answer
        self.ended = threading.Event()

    def __enter__(self) -> Hub:
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.server.shutdown()
        self.server.server_close()

    def commit(self, name: str, files: dict[str, bytes]) -> str:
        revisions = self.repositories[name]
        whole = {**revisions.get("main", {}), **files}
        oid = hashlib.sha1(
            repr(sorted((p, hashlib.sha1(c).hexdigest()) for p, c in whole.items())).encode()
        ).hexdigest()
        revisions["main"] = revisions[oid] = whole
        return oid

    def commit_of(self, name: str, revision: str) -> str:
        files = self.repositories[name][revision]
        return next(r for r, other in self.repositories[name].items() if other is files and len(r) == 40)


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        method, path = self.command, self.path.partition("?")[0]
        self.hub.requests.append(f"{method} {path}")
        if method == self.hub.hangs_at and "/resolve/" in path:
            self.hub.ended.wait(60)
            return
        for part, content in self.hub.bodies.items():
            if part in path and method == "GET":
                self.answer(200, raw=content)
                return
        for wanted, pattern, action in ROUTES:
            match = re.fullmatch(pattern, path)
            if match and method in wanted:
                action(self, *match.groups(), body)
                return
        self.hub.unknown.append(f"{method} {path}")
        self.answer(404, {"error": "no such route"})

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815 - names of http.server

    def answer(self, status: int, value: Any = None, headers: dict[str, str] | None = None, raw: bytes = b"") -> None:
        content = raw if value is None else json.dumps(value).encode()
        self.send_response(status)
        for key, text in (headers or {}).items():
            self.send_header(key, text)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def create(self, body: bytes) -> None:
        if not self.headers.get("Authorization"):
            self.answer(401, {"error": "Invalid username or password."})
            return
        wanted = json.loads(body)
        name = f"{wanted['organization']}/{wanted['name']}" if wanted.get("organization") else wanted["name"]
        if name.startswith("forbidden/"):
            self.answer(403, {"error": "You don't have the rights to create a model under this namespace"})
            return
        known = name in self.hub.repositories
        self.hub.repositories.setdefault(name, {})
        self.answer(409 if known else 200, {"url": f"{self.hub.url}/{name}", "name": name})

    def preupload(self, name: str, revision: str, body: bytes) -> None:
        files = [
            {"path": f["path"], "uploadMode": "lfs" if is_large(f["path"]) else "regular", "shouldIgnore": False}
            for f in json.loads(body)["files"]
        ]
        self.answer(200, {"files": files})

    def lfs_batch(self, name: str, body: bytes) -> None:
        objects = [
            {**o, "actions": {"upload": {"href": f"{self.hub.url}/lfs/{o['oid']}", "header": {}}}}
            for o in json.loads(body)["objects"]
        ]
        self.answer(200, {"transfer": "basic", "objects": objects})

    def lfs_put(self, oid: str, body: bytes) -> None:
        assert hashlib.sha256(body).hexdigest() == oid
        self.hub.objects[oid] = body
        self.answer(200, {})

    def commit(self, name: str, revision: str, body: bytes) -> None:
        files = {}
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
        oid = self.hub.commit(name, files)
        self.answer(200, {"commitOid": oid, "commitUrl": f"{self.hub.url}/{name}/commit/{oid}", "success": True})

    def resolve(self, name: str, revision: str, path: str, body: bytes) -> None:
        if self.is_refused(name, revision):
            return
        if path not in self.hub.repositories[name][revision]:
            commit = self.hub.commit_of(name, revision)
            self.answer(404, {}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        else:
            content = self.hub.repositories[name][revision][path]
            etag = hashlib.sha256(content).hexdigest()
            headers = {"X-Repo-Commit": self.hub.commit_of(name, revision), "ETag": f'"{etag}"'}
            headers |= {"X-Linked-Size": str(len(content)), "X-Linked-ETag": f'"{etag}"'}
            self.answer(200, None, headers | self.hub.headers, content)

    def info(self, name: str, body: bytes) -> None:
        if self.is_refused(name):
            return
        self.answer(200, {"id": name, "siblings": [], "private": False})

    def revision(self, name: str, revision: str, body: bytes) -> None:
        if not self.is_refused(name, revision):
            self.answer(200, {"id": name, "sha": self.hub.commit_of(name, revision), "siblings": [], "private": False})

    def tree(self, name: str, revision: str, body: bytes) -> None:
        if not self.is_refused(name, revision):
            files = self.hub.repositories[name][revision]
            entries = [{"type": "file", "path": p, "size": len(c), "oid": digest(c)} for p, c in files.items()]
            self.answer(200, entries)

    def is_refused(self, name: str, revision: str | None = None) -> bool:
        """Whether the request was answered with an error: a gated or unknown repository, an unknown revision."""
        if name in self.hub.gated:
            self.answer(403, {}, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"})
        elif name not in self.hub.repositories:
            self.answer(401, {}, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
        elif revision is not None and revision not in self.hub.repositories[name]:
            self.answer(404, {}, {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Invalid rev"})
        else:
            return False
        return True

    def fine(self, body: bytes) -> None:
        self.answer(200, {"errors": [], "warnings": []})


def digest(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


def is_large(path: str) -> bool:
    return path.endswith((".safetensors", ".png"))


NAME = r"([\w.-]+/[\w.-]+)"
ROUTES: list[tuple[str, str, Any]] = [
    ("POST", r"/api/repos/create", _Handler.create),
    ("POST", r"/api/validate-yaml", _Handler.fine),
    ("POST", rf"/api/(?:models|spaces)/{NAME}/preupload/(\w+)", _Handler.preupload),
    ("POST", rf"(?:/spaces)?/{NAME}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    ("PUT", r"/lfs/(\w+)", _Handler.lfs_put),
    ("POST", rf"/api/(?:models|spaces)/{NAME}/commit/(\w+)", _Handler.commit),
    ("HEAD GET", rf"/{NAME}/resolve/([\w.-]+)/(.+)", _Handler.resolve),
    ("GET", rf"/api/models/{NAME}", _Handler.info),
    ("GET", rf"/api/models/{NAME}/revision/([\w.-]+)", _Handler.revision),
    ("GET", rf"/api/models/{NAME}/tree/([\w.-]+)", _Handler.tree),
]
