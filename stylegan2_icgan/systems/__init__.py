"""The table of GAN systems."""

import dataclasses
import typing
from typing import Any

from stylegan2_icgan.systems.adc import ADC
from stylegan2_icgan.systems.biggan import BIGGAN
from stylegan2_icgan.systems.csgan import CSGAN
from stylegan2_icgan.systems.logan import LOGAN
from stylegan2_icgan.systems.selfcond import SELFCOND
from stylegan2_icgan.systems.stylegan2 import STYLEGAN2
from stylegan2_icgan.systems.unet import UNET
from stylegan2_icgan.systems.wgan import WGAN
from torch_utils.command_line import UserError
from training.config import option
from training.system import SystemKind

SYSTEMS: dict[str, SystemKind] = {
    "stylegan2": STYLEGAN2,
    "biggan": BIGGAN,
    "adc": ADC,
    "csgan": CSGAN,
    "logan": LOGAN,
    "selfcond": SELFCOND,
    "unet": UNET,
    "wgan": WGAN,
}
PAIRED = frozenset({"csgan"})  # learn from pairs of images (--data-b), and translate images


def check_condition(system: str, options: Any, cond: str) -> None:
    """Refuse a --cond that a system with these options has no use for.

    Raises:
        UserError: with those it has one for.
    """
    conditions = SYSTEMS[system].conditions
    if conditions is not None and cond not in (there := conditions(options)):
        raise UserError(f"--cond={cond}: {system} has no use for that; expected --cond={' or '.join(there)}")


def model_flags() -> type:
    """The options of all systems as one dataclass, for the command line; a name that several have is one flag.

    `resolve` refuses those that the chosen system does not have.
    """
    owners: dict[str, dict[str, dataclasses.Field[Any]]] = {}
    kinds: dict[str, Any] = {}
    for system, kind in SYSTEMS.items():
        hints = typing.get_type_hints(kind.options)
        for field in dataclasses.fields(kind.options):
            owners.setdefault(field.name, {})[system] = field
            kinds[field.name] = hints[field.name]
    return dataclasses.make_dataclass(
        "ModelFlags", [(name, kinds[name], _shared(fields)) for name, fields in owners.items()], frozen=True
    )


def _shared(owners: dict[str, dataclasses.Field[Any]]) -> Any:
    """One field for all systems that have it; its help says whose it is."""
    first = next(iter(owners.values()))
    metadata = dict(first.metadata)
    text = f"{'/'.join(owners)}: {metadata.pop('help')}"
    if all(field.default == first.default for field in owners.values()):
        return option(first.default, text, **metadata)
    defaults = ", ".join(f"{system} {field.default}" for system, field in owners.items())
    return option(None, f"{text}  [default: {defaults}]", **metadata)
