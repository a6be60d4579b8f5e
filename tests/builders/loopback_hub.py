"""
A Hub in memory, on the loopback: the few routes that uploads, `snapshot_download` and `from_pretrained` use.

Other processes reach it through `HF_ENDPOINT`. Files are committed whole, as the Hub does it with small ones.
"""

import base64
import hashlib
import json
import re
import shutil
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

import yaml
from huggingface_hub import ModelCard

from tests.builders.paths import PICTURES
from tests.builders.processes import run_python


REPOSITORY = r"(?P<name>[\w.-]+/[\w.-]+)"
REVISION = r"(?P<revision>[^/]+)"


class LoopbackHub:
    """
    Repositories by name; each is a history of commits, and a commit maps paths to bytes.

    Attributes:
        endpoint: What `HF_ENDPOINT` must be.
        requests: `"METHOD /path"` of every request so far.
    """

    def __init__(self):
        self.repositories: dict[str, list[tuple[str, dict[str, bytes]]]] = {}
        self.requests: list[str] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (HubHandler,), {"hub": self}))
        self.server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> "LoopbackHub":
        Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def environment(self, home: Path) -> dict[str, str]:
        """Environment variables of a process that knows no other Hub, and has nothing cached but under `home`."""
        return {
            "HF_ENDPOINT": self.endpoint, "HF_HOME": str(home), "HF_TOKEN": "hf_loopback", "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }  # fmt: skip

    def commit(self, name: str, files: dict[str, bytes]) -> str:
        """Adds a commit that changes these files; the repository is made if it is not there."""
        history = self.repositories.setdefault(name, [])
        tree = {**(history[-1][1] if history else {}), **files}
        sha = hashlib.sha1(f"{name} {len(history)}".encode()).hexdigest()
        history.append((sha, tree))
        return sha

    def commit_folder(self, name: str, folder: Path) -> str:
        paths = [path for path in folder.rglob("*") if path.is_file()]
        return self.commit(name, {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths})

    def files(self, name: str) -> dict[str, bytes]:
        """The newest files of a repository."""
        return self.repositories[name][-1][1]

    def card(self, name: str) -> ModelCard:
        return ModelCard(self.files(name)["README.md"].decode())

    def run_card(self, name: str, folder: Path, before: str = "") -> str:
        """What the lines in a card print behind those before, in another process that has a photo."""
        shutil.copy(PICTURES / "mosaic_0.png", folder / "photo.jpg")
        (lines,) = re.findall(r"```python\n(.*?)```", self.card(name).text, re.DOTALL)
        code = f"{before}\nprint('RESULT')\n{lines}"
        return run_python(code, environment=self.environment(folder / "home"), folder=folder).strip()


class HubHandler(BaseHTTPRequestHandler):
    hub: LoopbackHub
    protocol_version = "HTTP/1.1"
    routes = {
        "POST": {
            "/api/repos/create": "create",
            "/api/validate-yaml": "validate_card",
            f"/api/models/{REPOSITORY}/preupload/{REVISION}": "preupload",
            f"/api/models/{REPOSITORY}/commit/{REVISION}": "receive_commit",
        },
        "GET": {
            f"/api/models/{REPOSITORY}": "info",
            f"/api/models/{REPOSITORY}/revision/{REVISION}": "info",
            f"/api/models/{REPOSITORY}/tree/{REVISION}(?P<folder>/.*)?": "list_tree",
            f"/{REPOSITORY}/resolve/{REVISION}/(?P<path>.+)": "send_file",
        },
    }

    def do_POST(self):
        self.answer("POST")

    def do_GET(self):
        self.answer("GET")

    def do_HEAD(self):
        self.answer("GET")

    def log_message(self, *_):
        pass

    def answer(self, method: str) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0)) if method == "POST" else b""
        if method == "POST" and self.headers.get("Transfer-Encoding") == "chunked":
            self.body = self.read_chunks()
        for pattern, name in self.routes[method].items():
            if match := re.fullmatch(pattern, path):
                return getattr(self, name)(**match.groupdict())
        self.send(404, {"error": f"no such route: {method} {path}"})

    def read_chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def send(self, status: int, content: bytes | dict | list, **headers: str) -> None:
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def find(self, name: str, revision: str | None = None) -> tuple[str, dict[str, bytes]] | None:
        """A commit; where there is none, the Hub's error is sent."""
        if name not in self.hub.repositories:
            return self.send(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        history = self.hub.repositories[name] or [("0" * 40, {})]
        for sha, tree in reversed(history):
            if revision in (None, "main", sha):
                return sha, tree
        return self.send(404, {"error": "Invalid rev id"}, X_Error_Code="RevisionNotFound")

    def create(self) -> None:
        asked = json.loads(self.body)
        name = f"{asked.get('organization') or 'you'}/{asked['name']}"
        exists = name in self.hub.repositories
        self.hub.repositories.setdefault(name, [])
        url = {"url": f"{self.hub.endpoint}/{name}"}
        self.send(409 if exists else 200, {**url, "error": "exists"} if exists else url)

    def validate_card(self) -> None:
        is_valid = isinstance(read_metadata(json.loads(self.body)["content"]), dict)
        errors = [] if is_valid else [{"message": "the metadata is no mapping"}]
        self.send(200 if is_valid else 400, {"errors": errors, "warnings": []})

    def preupload(self, name: str, revision: str) -> None:
        files = json.loads(self.body)["files"]
        modes = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files]
        self.send(200, {"files": modes})

    def receive_commit(self, name: str, revision: str) -> None:
        lines = [json.loads(line) for line in self.body.splitlines() if line.strip()]
        files = {line["value"]["path"]: line["value"]["content"] for line in lines if line["key"] == "file"}
        sha = self.hub.commit(name, {path: base64.b64decode(content) for path, content in files.items()})
        self.send(200, {"commitUrl": f"{self.hub.endpoint}/{name}/commit/{sha}", "commitOid": sha})

    def info(self, name: str, revision: str | None = None) -> None:
        if found := self.find(name, revision):
            sha, tree = found
            metadata = read_metadata(tree.get("README.md", b"").decode())
            tags = [f"license:{metadata['license']}"] if "license" in metadata else []
            self.send(200, {"id": name, "sha": sha, "siblings": [{"rfilename": path} for path in tree], "tags": tags})

    def list_tree(self, name: str, revision: str, folder: str | None) -> None:
        if found := self.find(name, revision):
            paths = [path for path in found[1] if f"/{path}".startswith(f"{folder or ''}/")]
            if folder and not paths:
                return self.send(404, {"error": "no such folder"}, X_Error_Code="EntryNotFound")
            self.send(200, [
                {"type": "file", "path": path, "size": len(found[1][path]), "oid": git_hash(found[1][path])}
                for path in paths
            ])  # fmt: skip

    def send_file(self, name: str, revision: str, path: str) -> None:
        if found := self.find(name, revision):
            sha, tree = found
            if path not in tree:
                return self.send(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound", X_Repo_Commit=sha)
            self.send(200, tree[path], ETag=f'"{git_hash(tree[path])}"', X_Repo_Commit=sha)


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def read_metadata(card: str):
    """What stands between the two lines of dashes at a card's start."""
    return yaml.safe_load(card.split("---\n", 2)[1]) if card.startswith("---\n") else {}
