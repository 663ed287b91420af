"""Pushing to a hub, of which a small server on the loopback address speaks as much as that takes."""

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import huggingface_hub
import numpy as np
import pytest
import support
import torch
from finished import finished
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

from triptych import export as module

WRITE, READ = "hf_write", "hf_read"
FILES = {"config.json", "model.safetensors", "preprocessor_config.json", "README.md"}


class Hub(ThreadingHTTPServer):
    """Repositories in memory. `me` may write to `me` and `lab`, unless by a token that may only read."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, dict] = {}
        self.full = False
        Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_):
        pass

    @property
    def token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def answer(self, status: int, body: bytes | dict | list = b"", **headers: str) -> None:
        if not isinstance(body, bytes):
            body, headers = json.dumps(body).encode(), headers | {"Content-Type": "application/json"}
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def repository(self, name: str) -> dict | None:
        """A repository that the token may see; others are answered for."""
        found = self.server.repositories.get(name)
        if found is None or (found["private"] and self.token not in (WRITE, READ)):
            self.answer(401, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
            return None
        return found

    def do_POST(self):  # noqa: N802
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if self.token != WRITE or self.server.full:
            return self.answer(403, {"error": "You have no storage left" if self.server.full else "Forbidden"})
        if self.path == "/api/repos/create":
            given = json.loads(body)
            name = f"{given.get('organization') or 'me'}/{given['name']}"
            url = f"{self.server.address}/{name}"
            if name in self.server.repositories:
                return self.answer(409, {"error": "You already created this model repo", "url": url})
            private = given.get("private") or given.get("visibility") == "private"
            self.server.repositories[name] = {"private": private, "files": {}, "sha": "0" * 40}
            return self.answer(200, {"url": url, "name": name, "id": name})
        kind = re.fullmatch(r"/api/models/(\w+/[\w-]+)/(preupload|commit)/main", self.path.split("?")[0])
        repository = self.repository(kind[1])
        if repository is None:
            return
        if kind[2] == "preupload":
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            return self.answer(200, {"files": files})
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                repository["files"][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        repository["sha"] = hashlib.sha1(body).hexdigest()
        url = f"{self.server.address}/{kind[1]}/commit/{repository['sha']}"
        self.answer(200, {"commitUrl": url, "commitOid": repository["sha"], "pullRequestUrl": None})

    def do_GET(self):  # noqa: N802
        path = self.path.split("?")[0]
        if path == "/api/whoami-v2":
            if self.token not in (WRITE, READ):
                return self.answer(401, {"error": "Invalid username or password."})
            role = {"role": "write" if self.token == WRITE else "read"}
            return self.answer(
                200, {"type": "user", "name": "me", "orgs": [{"name": "lab"}], "auth": {"accessToken": role}}
            )
        file = re.fullmatch(r"/(\w+/[\w-]+)/resolve/(\w+)/(.+)", path)
        about = re.fullmatch(r"/api/models/(\w+/[\w-]+)(/.*)?", path)
        if not file and not about:
            return self.answer(404, {"error": "no such page"})
        repository = self.repository((file or about)[1])
        if repository is None:
            return
        commit = {"X_Repo_Commit": repository["sha"]}
        if about and (about[2] or "").startswith("/tree"):
            tree = [{"type": "file", "path": n, "size": len(c), "oid": "0"} for n, c in repository["files"].items()]
            return self.answer(200, tree if about[2].count("/") == 2 else [])
        if about:
            siblings = [{"rfilename": name} for name in repository["files"]]
            return self.answer(200, {"id": about[1], "sha": repository["sha"], "siblings": siblings})
        content = repository["files"].get(file[3])
        if content is None:
            return self.answer(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound", **commit)
        self.answer(200, content, ETag=f'"{hashlib.sha1(content).hexdigest()}"', **commit)

    do_HEAD = do_GET  # noqa: N815


@pytest.fixture
def hub(monkeypatch, tmp_path):
    server = Hub()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.address)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
    monkeypatch.setenv("HF_TOKEN", WRITE)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def run(tmp_path):
    finished("image", "mae", tmp_path / "run", {"channels": 3})
    return tmp_path / "run"


def refusal(*arguments) -> str:
    with pytest.raises(SystemExit) as stop:
        module.main([str(a) for a in arguments])
    message = str(stop.value)
    assert message.startswith("export.py: --push ") and "\n" not in message
    return message


STRANGER = (
    support.WITHOUT_US
    + """
import numpy, torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel
pixels = AutoImageProcessor.from_pretrained(sys.argv[1])(Image.open("picture.png"), return_tensors="pt")
with torch.no_grad():
    output = AutoModel.from_pretrained(sys.argv[1])(**pixels)
torch.save([output.last_hidden_state, output.pooler_output], "features.pt")
"""
)


def load_elsewhere(hub: Hub, folder: Path, **environment: str) -> subprocess.CompletedProcess:
    """Features of `me/encoder` from the hub, in a process that knows the hub's address and nothing of this project."""
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "HF_TOKEN")}
    clean |= {"HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(folder / "cache")} | environment
    command = [sys.executable, "-I", "-c", STRANGER, "me/encoder"]
    return subprocess.run(command, cwd=folder, env=clean, capture_output=True, text=True, timeout=300)


def test_what_is_pushed_is_loaded_elsewhere_exactly(hub, run, tmp_path):
    module.main([str(run), "--push", "me/encoder", "--private"])
    repository = hub.repositories["me/encoder"]
    assert repository["private"] and repository["files"].keys() == FILES
    assert b'folder = "me/encoder"' in repository["files"]["README.md"]
    for name, content in repository["files"].items():
        assert (run / "exported" / name).read_bytes() == content

    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(
        tmp_path / "picture.png"
    )
    done = load_elsewhere(hub, tmp_path, HF_TOKEN=READ)
    assert not done.returncode, done.stderr[-3000:]
    features = torch.load(tmp_path / "features.pt", weights_only=True)
    folder = run / "exported"
    with Image.open(tmp_path / "picture.png") as picture, torch.no_grad():
        pixels = AutoImageProcessor.from_pretrained(folder)(picture, return_tensors="pt")
        output = AutoModel.from_pretrained(folder)(**pixels)
    assert torch.equal(features[0], output.last_hidden_state) and torch.equal(features[1], output.pooler_output)


def test_a_second_push_updates_and_an_organisation_is_served(hub, run, tmp_path):
    for to in ("first", "second"):
        module.main([str(run), "--to", str(tmp_path / to), "--push", "lab/encoder"])
    assert hub.repositories.keys() == {"lab/encoder"} and not hub.repositories["lab/encoder"]["private"]


@pytest.mark.parametrize(
    "token, repository, words",
    [
        ("hf_wrong", "me/encoder", "does not accept the token"),
        (None, "me/encoder", "no token; run `hf auth login`"),
        (READ, "me/encoder", "the token may only read"),
        (WRITE, "you/encoder", "may write to lab, me, not to you"),
    ],
)
def test_rights_are_refused_before_anything_is_written(token, repository, words, hub, run, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", token) if token else monkeypatch.delenv("HF_TOKEN")
    assert words in refusal(run, "--push", repository)
    assert not (run / "exported").exists() and not hub.repositories


def complete(folder: Path) -> bool:
    AutoModel.from_pretrained(folder)
    return {f.name for f in folder.iterdir()} == FILES


def test_what_the_hub_refuses_late_can_be_tried_again(hub, run):
    hub.full = True
    message = refusal(run, "--push", "me/encoder", "--private")
    assert "403" in message or "storage" in message
    assert message.endswith(f"retry with: hf upload me/encoder {run / 'exported'} . --private")
    assert complete(run / "exported")


@pytest.mark.fault(
    "a push without a network", "the exported folder is complete", "... is complete, so retry with: hf upload ..."
)
def test_without_a_network_the_folder_is_complete_and_the_way_out_named(hub, run):
    hub.shutdown()
    hub.server_close()
    message = refusal(run, "--push", "me/encoder")
    assert message.endswith(f"{run / 'exported'} is complete, so retry with: hf upload me/encoder {run / 'exported'} .")
    assert complete(run / "exported")


@pytest.mark.slow
def test_the_retry_command_works_and_privacy_holds(hub, run, tmp_path):
    hub.full = True
    command = refusal(run, "--push", "me/encoder", "--private").split("retry with: ")[1]
    hub.full = False
    environment = os.environ | {"HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-m", "huggingface_hub.cli.hf", *command.split()[1:]]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert not done.returncode, done.stderr[-2000:]
    assert hub.repositories["me/encoder"]["private"]
    assert hub.repositories["me/encoder"]["files"].keys() == FILES
    assert load_elsewhere(hub, tmp_path).returncode  # without a token
