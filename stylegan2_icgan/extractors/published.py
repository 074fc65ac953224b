"""Published weights: in the caches of this machine, or fetched; off line refused at once, not after a minute."""

import http.client
import ssl
import threading
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import torch

from stylegan2_icgan.extractors.weights import Weights, one_line
from torch_utils.command_line import UserError
from torch_utils.files import sha256

REACH_SEC = 3.0  # how long a server may take to show that it is there
REMEDY = "give a local file with --extractor-weights=FILE, or use --extractor=pca, which needs none"


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
    """Weights at an address, kept in torch's cache (TORCH_HOME); `net-0123abcd.pth` names the start of its SHA-256."""

    address: str

    def __str__(self) -> str:
        return self.address

    @property
    def path(self) -> Path:
        return Path(torch.hub.get_dir()) / "checkpoints" / Path(urllib.parse.urlparse(self.address).path).name

    @property
    def hash_prefix(self) -> str:
        _, dash, end = self.path.stem.rpartition("-")
        return end if dash and len(end) >= 8 and set(end) <= set("0123456789abcdef") else ""

    def cached(self) -> Path | None:
        return self.path if self.path.is_file() else None

    def unreachable(self) -> str:
        return unreachable(self.address)

    def fetch(self) -> Path:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(self.address, str(self.path), self.hash_prefix or None)  # renamed when whole
        return self.path

    def origin(self, path: Path) -> str:
        return self.address


def published_weights(source: HubFile | Download, name: str, remedy: str = REMEDY) -> Weights:
    """Published weights out of this machine's caches, or fetched; without a network, refused within seconds.

    Args:
        name: of the extractor, for the error.
        remedy: what to do where they are not to be had.

    Raises:
        UserError: not in a cache and not to be fetched, or a file that has been changed.
    """
    path = source.cached()
    if path is None:
        missing = f"--extractor={name}: its published weights ({source}) are not on this machine and can't be fetched"
        reason = source.unreachable()
        if reason:
            raise UserError(f"{missing} ({reason}); {remedy}")
        try:
            path = source.fetch()
        except Exception as error:  # every client has kinds of its own; each means the same to the user
            raise UserError(f"{missing} ({one_line(error)}); {remedy}") from None
    weights = Weights(path, source.origin(path), sha256(path))
    if not weights.sha256.startswith(source.hash_prefix):
        raise UserError(
            f"{weights.label} have SHA-256 {weights.sha256[:12]}..., expected {source.hash_prefix}...: damaged or "
            "changed; delete that file and it is fetched again"
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
