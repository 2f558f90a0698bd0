"""A stand-in for the Hugging Face Hub on loopback: what downloads, and uploads of models, need of it."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


class Hub:
    """repos: {id, of a data set datasets/id: {path: bytes}}; requests: (method, path, the token it came with)."""

    def __init__(self, *, token: str) -> None:
        self.token, self.url = token, ""
        self.repos: dict[str, dict[str, bytes]] = {}
        self.objects: dict[str, bytes] = {}  # LFS, by sha256
        self.requests: list[tuple[str, str, str]] = []

    def commit(self, repo: str) -> str:
        """The revision `main`: a digest of the files."""
        digest = hashlib.sha1()
        for path, data in sorted(self.repos[repo].items()):
            digest.update(path.encode() + data)
        return digest.hexdigest()

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any, dict[str, str]]:
        """(status, JSON or bytes, headers) of a request."""
        parts = path.strip("/").split("/")
        if parts == ["api", "validate-yaml"]:
            return 200, {"errors": [], "warnings": []}, {}
        if parts == ["api", "repos", "create"]:
            given = json.loads(body)
            repo = f"{given['organization']}/{given['name']}"
            known = repo in self.repos
            self.repos.setdefault(repo, {})
            return 409 if known else 200, {"url": f"{self.url}/{repo}"}, {}
        if parts[0] == "lfs":
            assert hashlib.sha256(body).hexdigest() == parts[1]
            self.objects[parts[1]] = body
            return 200, {}, {}
        if path.endswith(".git/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            for o in objects:
                o["actions"] = {"upload": {"href": f"{self.url}/lfs/{o['oid']}"}}
            return 200, {"transfer": "basic", "objects": objects}, {}
        if "datasets" in parts[:2]:
            at = parts.index("datasets")
            repo, rest = "/".join(parts[at : at + 3]), parts[at + 3 :]
        else:
            at = 2 if parts[:2] == ["api", "models"] else 0
            repo, rest = "/".join(parts[at : at + 2]), parts[at + 2 :]
        if repo not in self.repos:
            return 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}
        if rest[1:2] and rest[0] in ("revision", "tree", "resolve") and rest[1] not in ("main", self.commit(repo)):
            return 404, {"error": "Revision not found"}, {"X-Error-Code": "RevisionNotFound"}
        return self._of(repo, rest, body)

    def _of(self, repo: str, rest: list[str], body: bytes) -> tuple[int, Any, dict[str, str]]:
        files = self.repos[repo]
        if not rest or rest[0] == "revision":
            siblings = [{"rfilename": name} for name in files]
            return 200, {"id": repo, "sha": self.commit(repo), "siblings": siblings, "tags": [], "private": False}, {}
        if rest[0] == "tree":
            inside = {n: d for n, d in files.items() if n.startswith("".join(f"{part}/" for part in rest[2:]))}
            folders = {"/".join(n.split("/")[:i]) for n in inside for i in range(1, n.count("/") + 1)}
            rows = [{"type": "file", "path": n, "size": len(d), "oid": _git(d)} for n, d in inside.items()]
            return 200, rows + [{"type": "directory", "path": n, "oid": _git(n.encode())} for n in sorted(folders)], {}
        if rest[0] == "preupload":
            rows = [{"path": f["path"], "shouldIgnore": False} for f in json.loads(body)["files"]]
            for row in rows:
                row["uploadMode"] = "lfs" if row["path"].endswith(".safetensors") else "regular"
            return 200, {"files": rows}, {}
        if rest[0] == "commit":
            for line in filter(None, body.splitlines()):
                entry = json.loads(line)
                value = entry["value"]
                if entry["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif entry["key"] == "lfsFile":
                    files[value["path"]] = self.objects[value["oid"]]
            sha = self.commit(repo)
            return 200, {"success": True, "commitOid": sha, "commitUrl": f"{self.url}/{repo}/commit/{sha}"}, {}
        name = "/".join(rest[2:])
        if rest[0] != "resolve" or name not in files:
            return 404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"}
        return 200, files[name], {"ETag": f'"{_git(files[name])}"', "X-Repo-Commit": self.commit(repo)}


def _git(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """The hub on a free port of loopback; `hub.url` is its HF_ENDPOINT."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            path = unquote(urlsplit(self.path).path)
            token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
            hub.requests.append((self.command, path, token))
            writes = self.command in ("POST", "PUT") and not path.startswith("/lfs/")
            if writes and token != hub.token:
                status, found, headers = 401, {"error": f"Invalid token {token}"}, {}
            else:
                status, found, headers = hub.answer(self.command, path, body)
            data = found if isinstance(found, bytes) else json.dumps(found).encode()
            self.send_response(status)
            for key, value in {"Content-Length": str(len(data)), **headers}.items():
                self.send_header(key, value)
            if not isinstance(found, bytes):
                self.send_header("Content-Type", "application/json")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_GET = do_HEAD = do_POST = do_PUT = handle_any

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
