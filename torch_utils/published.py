"""Published weights: in the caches of this machine, or fetched; off line refused at once, not after a minute."""

import http.client
import ssl
import threading
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click
import torch

from torch_utils.command_line import UserError
from torch_utils.files import Countdown, atomic_write, sha256
from torch_utils.locks import hold
from torch_utils.weights import Weights, given_weights, one_line

REACH_SEC = 3.0  # how long a server may take to show that it is there
SILENT_SEC = 30.0  # how long it may say nothing in the midst of a file
PIECE_BYTES = 1 << 20

say = partial(click.echo, err=True)


@dataclass(frozen=True)
class HubFile:
    """Weights in a repository of the Hugging Face hub, kept in its cache (HF_HOME)."""

    repository: str
    revision: str = "main"
    FILES = ("model.safetensors", "pytorch_model.bin")

    hash_prefix = ""

    def __str__(self) -> str:
        return f"{self.repository} on the Hugging Face hub"

    def cached(self) -> Path | None:
        import huggingface_hub

        for name in self.FILES:
            path = huggingface_hub.try_to_load_from_cache(self.repository, name, revision=self.revision)
            if isinstance(path, str):
                return Path(path)
        return None

    def unreachable(self) -> str:
        """'', or why it is no use asking: without this the hub's own client tries for 23 s on a machine off line."""
        from huggingface_hub import constants

        return "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else unreachable(constants.ENDPOINT)

    def fetch(self) -> Path:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        for name in self.FILES:
            try:
                return Path(hf_hub_download(self.repository, name, revision=self.revision))
            except LocalEntryNotFoundError:  # a kind of EntryNotFoundError: the connection broke
                raise
            except EntryNotFoundError:
                continue
        raise FileNotFoundError(f"it has none of {', '.join(self.FILES)}")

    def origin(self, path: Path) -> str:
        return f"huggingface {self.repository}@{path.parent.name}"  # the cache has a folder for each commit


@dataclass(frozen=True)
class Download:
    """Weights at an address, kept in torch's cache (TORCH_HOME).

    Args:
        address: `net-0123abcd.pth` names the start of its SHA-256.
        sha256: of the whole file, where it is known.
        name: in the cache, where the one in the address says too little.
    """

    address: str
    sha256: str = ""
    name: str = ""

    def __str__(self) -> str:
        return self.address

    @property
    def path(self) -> Path:
        name = self.name or Path(urllib.parse.urlparse(self.address).path).name
        return Path(torch.hub.get_dir()) / "checkpoints" / name

    @property
    def hash_prefix(self) -> str:
        _, dash, end = self.path.stem.rpartition("-")
        named = end if dash and len(end) >= 8 and set(end) <= set("0123456789abcdef") else ""
        return self.sha256 or named

    def cached(self) -> Path | None:
        """The copy on this machine; not one that is cut short or changed."""
        whole = self.path.is_file() and (not self.hash_prefix or sha256(self.path).startswith(self.hash_prefix))
        return self.path if whole else None

    def unreachable(self) -> str:
        return unreachable(self.address)

    def fetch(self) -> Path:
        """Bring the file; of several processes that want it one does, and the others wait."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with hold(self.path.with_name(self.path.name + ".lock"), say, patience_sec=10):
            return self.cached() or self._fetch()

    def _fetch(self) -> Path:
        with urllib.request.urlopen(self.address, timeout=SILENT_SEC) as answer, atomic_write(self.path) as file:
            announced = int(answer.headers.get("Content-Length") or 0)
            progress = Countdown(f"{self.path.name}, bytes", announced, say)
            while piece := answer.read(PIECE_BYTES):
                file.write(piece)
                progress(file.tell())
            if announced and file.tell() != announced:
                raise OSError(f"the connection broke after {file.tell():,} of {announced:,} bytes")
            file.flush()
            found = sha256(file.name)
            if not found.startswith(self.hash_prefix):
                raise OSError(f"it gave a file with SHA-256 {found[:12]}..., expected {self.hash_prefix[:12]}...")
        return self.path

    def origin(self, path: Path) -> str:
        return self.address


def published_weights(source: HubFile | Download, what: str, flag: str, remedy: str) -> Weights:
    """Published weights out of this machine's caches, or fetched; without a network, refused within seconds.

    A copy in the cache that was cut short is fetched again.

    Args:
        what: wants them, for the error: "--extractor=resnet50".
        flag: by which the user names a file of their own.
        remedy: what to do where they are not to be had.

    Raises:
        UserError: not in a cache and not to be fetched.
    """
    path = source.cached()
    if path is None:
        missing = f"{what}: its published weights ({source}) are not on this machine and can't be fetched"
        reason = source.unreachable()
        if reason:
            raise UserError(f"{missing} ({reason}); {remedy}")
        try:
            path = source.fetch()
        except Exception as error:  # every client has kinds of its own; each means the same to the user
            raise UserError(f"{missing} ({one_line(error)}); {remedy}") from None
    return Weights(path, source.origin(path), sha256(path), flag)


def copy_of(source: Download, what: str, flag: str, given: Path | None) -> Weights:
    """The user's own copy of a published file if there is one, checked before anything in it is loaded.

    Raises:
        UserError: the given file is missing or another one; or there is none, and none can be fetched.
    """
    if given is None:
        remedy = f"get that file on another machine and give it with {flag}=FILE"
        return published_weights(source, what, flag, remedy)
    weights = given_weights(given, flag)
    if not weights.sha256.startswith(source.hash_prefix):
        raise UserError(
            f"{weights.label} has SHA-256 {weights.sha256[:12]}..., expected {source.hash_prefix[:12]}... "
            f"({source.path.name}): damaged, cut short or another file; nothing in it was loaded. Get it again"
        )
    return weights


def unreachable(address: str) -> str:
    """Why the server at an address does not answer within `REACH_SEC`, or ''. Any answer, also a refusal, will do.

    Proxies in the environment are used. Names are looked up in a thread, since a resolver that waits can't be told to
    stop.
    """
    if any(kind == "all" or to.startswith("socks") for kind, to in urllib.request.getproxies().items()):
        return ""  # urllib speaks no SOCKS, so it can't tell
    server = "{0.scheme}://{0.netloc}/".format(urllib.parse.urlparse(address))
    outcome = [f"{server} did not answer within {REACH_SEC:.0f} s"]

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(server, method="HEAD"), timeout=REACH_SEC).close()
        except (urllib.error.HTTPError, http.client.HTTPException):
            outcome[0] = ""
        except OSError as error:  # URLError is one, and holds the true reason
            reason = getattr(error, "reason", error)  # certificates are for the client that fetches to judge
            outcome[0] = "" if isinstance(reason, ssl.SSLError) else f"{server}: {one_line(reason)}"
        else:
            outcome[0] = ""

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(REACH_SEC)
    return outcome[0]
