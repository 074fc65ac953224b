"""A published file of networks -> what a snapshot of ours holds."""

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from stylegan2_icgan.published_files import biggan, stylegan2
from stylegan2_icgan.published_files.files import mapped
from stylegan2_icgan.published_files.modules import MODULES, ModuleRecord, state_dict
from stylegan2_icgan.published_files.numpy_arrays import ARRAYS
from stylegan2_icgan.published_files.pickle_reader import PickleReader, Refusal, quoted
from stylegan2_icgan.published_files.shapes import Tensors, fit
from stylegan2_icgan.published_files.stylegan2 import Unseen
from stylegan2_icgan.published_files.torch_tensors import TENSORS
from stylegan2_icgan.systems import SYSTEMS
from torch_utils.command_line import UserError
from torch_utils.weights import load_weights
from training.config import check_bounds, from_json, to_json
from training.system import DataShape

OLD_TORCH = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # how files of torch.save began before 1.6
PREFIX = "module."  # before the names in a network that was trained on several GPUs


@dataclass(frozen=True)
class Published:
    """Networks that fit ours.

    Args:
        options: of the system.
        networks: name -> state dict that the system's network of that name takes.
        notes: what was left out, and why.
    """

    system: str
    options: Any
    shape: DataShape
    networks: dict[str, dict[str, torch.Tensor]]
    notes: list[str]

    @property
    def options_json(self) -> dict[str, Any]:
        return to_json(self.options)


def is_pickle(path: Path) -> bool:
    """Whether a file is a plain pickle, and not one of torch.save or safetensors.

    Raises:
        Refusal: no file.
    """
    with mapped(path) as content:
        return content[:1] == b"\x80" and not content[:14].startswith(OLD_TORCH) and not zipfile.is_zipfile(path)


def from_pickle(path: Path) -> Published:
    """The networks in a pickle of StyleGAN2-ADA-PyTorch, or of IC-GAN on it.

    Raises:
        Refusal: anything else, or networks that ours can't be made to equal.
    """
    with mapped(path) as file:
        content = PickleReader(TENSORS | ARRAYS | MODULES).read(file)
    records = content if isinstance(content, dict) else {}
    average = records.get("G_ema")
    if not isinstance(average, ModuleRecord):
        raise Refusal("has no network G_ema; expected a pickle of StyleGAN2-ADA-PyTorch or of IC-GAN on it")
    tensors = _held(state_dict(average), path)
    unseen = d_unseen = stylegan2.unseen_of_generator(average.init_kwargs)
    others: dict[str, dict[str, torch.Tensor]] = {}
    notes: list[str] = []
    for name in ("G", "D"):
        record = records.get(name)
        if isinstance(record, ModuleRecord):
            try:
                others[name] = _held(state_dict(record), path)
                if name == "D":
                    d_unseen = stylegan2.unseen_of_discriminator(record.init_kwargs)
            except Refusal as refusal:
                others.pop(name, None)
                notes.append(_left_out(name, refusal))
    return assemble(tensors, others, unseen, d_unseen, notes)


def from_state_dict(path: Path, others: Mapping[str, Path], unseen: Unseen) -> Published:
    """The network in a file of tensors, and those in other files beside it.

    Args:
        others: 'G' and 'D' -> their files.

    Raises:
        UserError: a file that can't be read, or one of the others is refused.
        Refusal: no generator that ours can be made to equal.
    """
    found = {}
    for name, other in others.items():
        try:
            found[name] = _tensors(other)
        except Refusal as refusal:
            raise UserError(f"{other} {refusal}; nothing was converted") from None
    return assemble(_tensors(path), found, unseen, unseen, [])


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    with mapped(path):
        _check_stored(path)
        tensors = load_weights(path, str(path))
    return {name.removeprefix(PREFIX): value for name, value in _held(tensors, path).items()}


def _held(tensors: dict[str, torch.Tensor], path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a network, unless they are views that repeat what is stored once, and copied would fill memory."""
    size, claimed = path.stat().st_size, sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if claimed > size:
        raise Refusal(f"has {size:,} bytes and claims to hold tensors of {claimed:,}")
    return tensors


def _check_stored(path: Path) -> None:
    """Refuse a zip whose members are compressed: torch.save's never are, and a small file could hold any amount."""
    try:
        with zipfile.ZipFile(path) as archive:
            compressed = [info.filename for info in archive.infolist() if info.compress_type != zipfile.ZIP_STORED]
    except (zipfile.BadZipFile, NotImplementedError, ValueError):  # no zip, or one that torch will name as damaged
        return
    if compressed:
        raise Refusal(f"has compressed members ({quoted(compressed[0])}), which torch.save never writes")


def _left_out(name: str, refusal: Refusal) -> str:
    return f"{name} is left out: it {refusal}"


def assemble(
    tensors: dict[str, torch.Tensor],
    others: dict[str, dict[str, torch.Tensor]],
    unseen: Unseen,
    d_unseen: Unseen,
    notes: list[str],
) -> Published:
    """Find the options, and see whether the networks they describe take the tensors.

    Args:
        tensors: of the averaged generator.
        others: of the generator G and the discriminator D, as far as there are.
        d_unseen: of the discriminator.
        notes: what was left out already.

    Raises:
        Refusal: no known generator, or tensors that do not fit.
    """
    notes, tensors, others = list(notes), dict(tensors), {name: dict(given) for name, given in others.items()}
    options: Any
    if stylegan2.recognise(tensors):
        system, device = "stylegan2", "cpu"
        options, shape = stylegan2.options_of(tensors, unseen)
        if "D" in others:
            try:
                options = stylegan2.with_discriminator(options, others["D"], d_unseen)
            except Refusal as refusal:
                notes.append(_left_out("D", refusal))
                del others["D"]
    elif biggan.recognise(tensors):
        system, device = "biggan", "meta"  # without memory
        options, shape = biggan.options_of(tensors)
        for name in biggan.unused(tensors, shape):
            notes.append(f"{name} is left out: the network never reads it")
            for network in (tensors, others.get("G", {})):
                network.pop(name, None)
    else:
        raise Refusal("holds no generator of StyleGAN2 or BigGAN")

    kind = SYSTEMS[system]
    try:
        options = from_json(kind.options, to_json(options), "its network")
        check_bounds(options)
    except UserError as error:
        raise Refusal(f"describes what can't be: {error}") from None

    def fitted(name: str, given: Tensors) -> dict[str, torch.Tensor]:
        def make() -> torch.nn.Module:
            with torch.device(device):
                return kind.networks[name](options, shape)

        return fit(make, given, {"G": "generator", "D": "discriminator"}[name])

    networks = {"G_ema": fitted("G", tensors)}
    for name, given in others.items():
        try:
            networks[name] = fitted(name, given)
        except Refusal as refusal:
            notes.append(_left_out(name, refusal))
    return Published(system, options, shape, networks, notes)
