"""The rows of the quality table: which images, which networks, conditioned on what, and how."""

from dataclasses import dataclass
from pathlib import Path

from torch_utils.command_line import UserError

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class ImageSet:
    """Real images, and how long a run on them is.

    Args:
        data: in the repository; None: named by --data.
        presets: of each family of networks.
        flags: of every train.py.
    """

    data: Path | None
    presets: dict[str, str]
    flags: tuple[str, ...]


TINY = {"stylegan2": "tiny", **{name: f"{name}-tiny" for name in ("biggan", "biggan-deep", "sagan")}}
LARGE = {"stylegan2": "auto", "biggan": "biggan"}
SETS = {
    "digits16": ImageSet(ROOT / "datasets" / "digits.zip", TINY, ("--kimg=20",)),
    "digits32": ImageSet(None, TINY, ("--kimg=20",)),
    "emoji16": ImageSet(None, TINY, ("--kimg=20",)),
    "emoji64-tiny": ImageSet(None, TINY, ("--kimg=40",)),
    "emoji64": ImageSet(None, LARGE, ("--kimg=1000", "--tick=20", "--snap=10", "--aug=noaug")),
    "emoji128": ImageSet(None, LARGE, ("--kimg=1000", "--tick=20", "--snap=10", "--aug=noaug")),
}


@dataclass(frozen=True)
class Row:
    """One way of training, of a family of networks."""

    family: str
    flags: tuple[str, ...]

    def plus(self, *flags: str) -> "Row":
        return Row(self.family, (*self.flags, *flags))

    def words(self, image_set: ImageSet, name: str) -> list[str]:
        """Of train.py. What the row asks for comes last, since the last flag counts.

        Raises:
            UserError: the set has no preset for the family.
        """
        if self.family not in image_set.presets:
            there = ", ".join(image_set.presets)
            raise UserError(f"--set={name} has no preset for {self.family}; leave its rows out, it has {there}")
        return [f"--cfg={image_set.presets[self.family]}", *image_set.flags, *self.flags]


PCA = ("--extractor=pca",)  # what every machine has


def conditioned(family: str) -> dict[str, Row]:
    """Every condition."""
    conditions = {"none": (), "class": (), "instance": PCA, "instance+class": PCA}
    return {cond: Row(family, (f"--cond={cond}", *flags)) for cond, flags in conditions.items()}


def _mirrored(cond: str) -> tuple[str, ...]:
    return ("--mirror-instances",) if "instance" in cond else ()


CONDITIONING = conditioned("stylegan2")
GROUPS: dict[str, dict[str, Row]] = {
    "conditioning": CONDITIONING,
    "flips": {f"{cond}, flips": row.plus("--mirror", *_mirrored(cond)) for cond, row in CONDITIONING.items()},
    "ada": {f"{cond}, ada": row.plus("--aug=ada", "--ada-kimg=20") for cond, row in CONDITIONING.items()},
    "neighbours": {f"instance, k = {k}": CONDITIONING["instance"].plus(f"--k={k}") for k in (5, 20, 50)},
    "biggan": {f"biggan, {cond}": row for cond, row in conditioned("biggan").items()},
    "family": {
        f"{name}, {cond}": conditioned(name)[cond] for name in ("sagan", "biggan-deep") for cond in ("none", "instance")
    },
}
ROWS = {name: row for group in GROUPS.values() for name, row in group.items()}


def rows_named(words: str) -> list[str]:
    """'conditioning; instance, ada' -> the rows of a group, and a row.

    Raises:
        UserError: no such row or group.
    """
    if words == "all":
        return list(ROWS)
    found: list[str] = []
    for word in (word.strip() for word in words.split(";")):
        if word in GROUPS:
            found += GROUPS[word]
        elif word in ROWS:
            found.append(word)
        else:
            raise UserError(f"--rows={word!r} is unknown; there are {', '.join(GROUPS)} and the rows {'; '.join(ROWS)}")
    return list(dict.fromkeys(found))
