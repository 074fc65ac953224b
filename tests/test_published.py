import hashlib
import socket
import ssl
import threading
import time
import urllib.error
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from torch_utils.command_line import UserError
from torch_utils.published import Download, HubFile, copy_of, published_weights, unreachable
from torch_utils.weights import Weights

CONTENT = b"weights" * 100
SHA = hashlib.sha256(CONTENT).hexdigest()
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Server(ThreadingHTTPServer):
    """Serves `files` (path -> content) the way the hub and plain web servers do; remembers what it was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.lie = 0  # bytes that are announced and never sent
        self.address = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_HEAD(self) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        content = self.server.files.get(self.path)
        self.send_response(404 if content is None else 200)
        if content is None:
            self.send_header("X-Error-Code", "EntryNotFound")
        else:
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(content or b"") + self.server.lie))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content or b"")

    do_GET = do_HEAD

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as running:
        threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty caches, and a hub at a port where nobody listens."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return tmp_path


def fetched(source: HubFile | Download) -> Weights:
    return published_weights(source, "--extractor=it", "--extractor-weights", "give it with --extractor-weights=FILE")


def refusal(source: HubFile | Download) -> str:
    with pytest.raises(UserError) as caught:
        fetched(source)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_without_a_network_the_answer_is_one_line_at_once(caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = time.monotonic()
    message = refusal(HubFile("timm/net"))
    assert message.startswith(
        "--extractor=it: its published weights (timm/net on the Hugging Face hub) are not on this"
    )
    assert "Connection refused" in message
    assert "--extractor-weights=FILE" in message
    assert "Connection refused" in refusal(Download("http://127.0.0.1:9/net-01234567.pth"))
    assert time.monotonic() - start < 3
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "(HF_HUB_OFFLINE is set)" in refusal(HubFile("timm/net"))


def test_a_resolver_or_a_server_that_hangs_is_given_up(caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch_utils.published.REACH_SEC", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as deaf:  # takes connections, never answers
        start = time.monotonic()
        assert unreachable(f"http://127.0.0.1:{deaf.getsockname()[1]}/x")
        assert time.monotonic() - start < 2

    def slow(*args: object, **kwargs: object) -> None:
        time.sleep(1)
        raise OSError("too late")

    monkeypatch.setattr("urllib.request.urlopen", slow)
    start = time.monotonic()
    assert "did not answer" in unreachable("http://weights.example/x")
    assert time.monotonic() - start < 0.9


def test_any_answer_means_that_asking_makes_sense(
    caches: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert unreachable(f"{server.address}/x") == ""  # a 404 is an answer
    assert server.asked == ["HEAD /"]

    def fail(error: Exception) -> None:
        def urlopen(*args: object, **kwargs: object) -> None:
            raise error

        monkeypatch.setattr("urllib.request.urlopen", urlopen)

    fail(urllib.error.URLError(ssl.SSLCertVerificationError("a certificate of the firm's own")))
    assert unreachable("https://weights.example/") == ""
    fail(urllib.error.URLError(OSError("Tunnel connection failed: 403 Forbidden")))
    assert "Tunnel connection failed" in unreachable("https://weights.example/")
    monkeypatch.setenv("all_proxy", "socks5://127.0.0.1:9")
    assert unreachable("https://weights.example/") == ""


def test_hub_weights_are_fetched_once_and_known_by_commit_and_content(
    caches: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = f"{server.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.address)
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)  # made of it at import
    server.files["/timm/net/resolve/main/pytorch_model.bin"] = CONTENT
    weights = fetched(HubFile("timm/net"))
    assert (weights.origin, weights.sha256) == (f"huggingface timm/net@{COMMIT}", SHA)
    assert weights.path.read_bytes() == CONTENT
    assert weights.path.name == "pytorch_model.bin"
    server.asked.clear()
    for revision in ("main", COMMIT):
        assert fetched(HubFile("timm/net", revision)) == weights
    assert server.asked == []
    assert "has none of model.safetensors, pytorch_model.bin" in refusal(HubFile("timm/other"))


def test_downloads_are_checked_by_the_hash_in_their_name(caches: Path, server: Server) -> None:
    server.files[f"/net-{SHA[:8]}.pth"] = CONTENT
    source = Download(f"{server.address}/net-{SHA[:8]}.pth")
    weights = fetched(source)
    assert (weights.origin, weights.sha256, weights.path) == (source.address, SHA, source.path)
    assert source.path.parent == Path(torch.hub.get_dir()) / "checkpoints"
    server.asked.clear()
    assert fetched(source) == weights
    assert server.asked == []

    source.path.write_bytes(CONTENT[:-1])  # cut short by another program
    assert fetched(source).path.read_bytes() == CONTENT

    server.files["/cut-01234567.pth"] = CONTENT
    cut = Download(f"{server.address}/cut-01234567.pth")
    assert f"gave a file with SHA-256 {SHA[:12]}..., expected 01234567" in refusal(cut)
    assert "HTTP Error 404" in refusal(Download(f"{server.address}/gone.pth"))
    assert sorted(file.name for file in source.path.parent.iterdir()) == [source.path.name]


def test_a_connection_that_breaks_leaves_nothing(caches: Path, server: Server) -> None:
    server.files["/net.pth"], server.lie = CONTENT, 7
    source = Download(f"{server.address}/net.pth")  # no hash by which it could be known either
    assert "the connection broke after 700 of 707 bytes" in refusal(source)
    assert list(source.path.parent.iterdir()) == []


def test_processes_that_want_the_same_weights_fetch_them_once(caches: Path, server: Server) -> None:
    server.files["/net.pth"] = CONTENT
    source = Download(f"{server.address}/net.pth", SHA)
    threads = [threading.Thread(target=fetched, args=(source,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.asked.count("GET /net.pth") == 1
    assert source.path.read_bytes() == CONTENT


def test_a_copy_of_ones_own_is_checked_before_it_is_loaded(caches: Path) -> None:
    source, own = Download("http://127.0.0.1:9/net.pth", SHA), caches / "own.pth"
    own.write_bytes(CONTENT)
    assert copy_of(source, "--detector=it", "--detector-weights", own).path == own
    own.write_bytes(CONTENT[:-1])
    for given, expected in (
        (own, r"own\.pth has SHA-256 .*, expected .*nothing in it was loaded"),
        (caches / "none", r"--detector-weights=.*none does not exist"),
        (
            None,
            r"--detector=it: .* can't be fetched .*; get that file on another machine and give it with --detector-w",
        ),
    ):
        with pytest.raises(UserError, match=expected):
            copy_of(source, "--detector=it", "--detector-weights", given)
