"""Files of published weights, known by their SHA-256, which is checked before anything in them is loaded."""

import http.client
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from torch_utils.command_line import UserError
from torch_utils.files import atomic_write, sha256

CONNECT_SEC = 10.0
PIECE_BYTES = 1 << 20


@dataclass(frozen=True)
class WeightFile:
    """A published file of weights.

    Args:
        name: in torch's cache folder (TORCH_HOME).
        address: where it is fetched from.
        sha256: of the whole file, hexadecimal.
        licence: of the weights.
    """

    name: str
    address: str
    sha256: str
    licence: str

    @property
    def cached(self) -> Path:
        return Path(torch.hub.get_dir()) / "checkpoints" / self.name


INCEPTION = WeightFile(
    "weights-inception-2015-12-05-6726825d.pth",
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
    "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    "Apache-2.0",
)
VGG16 = WeightFile(
    "vgg16-397923af.pth",
    "https://download.pytorch.org/models/vgg16-397923af.pth",
    "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
    "BSD-3-Clause",
)
LPIPS_HEADS = WeightFile(
    "lpips-vgg-v0.1.pth",
    "https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/master/lpips/weights/v0.1/vgg.pth",
    "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
    "BSD-2-Clause",
)


def obtain(file: WeightFile, what: str, flag: str, given: Path | None = None) -> Path:
    """A whole copy of a published file on this machine: the given one, the cached one, or one fetched now.

    A cached file with another content (a download cut short by another program) is fetched again.

    Args:
        what: who needs it, for errors: '--detector=inception'.
        flag: how the user names a copy of their own: '--detector-weights'.
        given: that copy.

    Raises:
        UserError: the given file is missing or another one; or there is none and none can be fetched.
    """
    if given is not None:
        check_given(given, flag)
        found = sha256(given)
        if found != file.sha256:
            raise UserError(
                f"{flag}={given} has sha256 {found[:12]}..., expected {file.sha256[:12]}... ({file.name}): damaged, "
                "cut short or another file; nothing in it was loaded. Get it again"
            )
        return given
    path = file.cached
    if path.is_file() and sha256(path) == file.sha256:
        return path
    damaged = f"; the copy {path} is damaged" if path.is_file() else ""
    remedy = f"get {file.address} on another machine and give it with {flag}=FILE"
    try:
        digest = _fetch(file.address, path)
    except (OSError, http.client.HTTPException) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"{what} needs {file.name}, which can't be fetched here ({reason}){damaged}; {remedy}"
        ) from None
    if digest != file.sha256:
        path.unlink()
        raise UserError(
            f"{what}: {file.address} gave a file with sha256 {digest[:12]}..., expected {file.sha256[:12]}...; it was "
            f"deleted. Try again, or {remedy}"
        )
    return path


def check_given(path: Path, flag: str) -> None:
    """Whether a file the user named is there."""
    if not path.is_file():
        raise UserError(f"{flag}={path} does not exist; expected a .pth or .safetensors file")


def read_tensors(path: Path, flag: str) -> dict[str, Tensor]:
    """The state dict in a file; nothing in it is executed.

    Raises:
        UserError: damaged, or no state dict.
    """
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # torch and safetensors raise their own kinds; each means the same to the user
        raise UserError(f"{flag}={path} can't be read: damaged, or no weights; get it again") from None
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{flag}={path} holds no state dict; expected a mapping of names to tensors")
    return content


def _fetch(address: str, path: Path) -> str:
    """Bring a file, which gets its name when it is whole; its SHA-256."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with urllib.request.urlopen(address, timeout=CONNECT_SEC) as answer, atomic_write(path) as file:
        announced = int(answer.headers.get("Content-Length") or 0)
        while piece := answer.read(PIECE_BYTES):
            file.write(piece)
        if announced and file.tell() != announced:
            raise OSError(f"the connection broke after {file.tell():,} of {announced:,} bytes")
    return sha256(path)
