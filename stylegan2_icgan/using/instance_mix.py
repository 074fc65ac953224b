"""Several instances as one: features mixed by weights."""

import math
from collections.abc import Mapping, Sequence

import torch

from stylegan2_icgan.conditioning import UNSEEN, Choice, Rows
from stylegan2_icgan.extractors.extractor import normalise
from stylegan2_icgan.models import Model
from torch_utils.command_line import UserError
from training.condition import Condition

Mix = Mapping[int, float]  # row -> weight
SHORTEST = 1e-6  # length of a mixed feature that still has a direction


def parse_mix(text: str) -> Mix:
    """'0:0.3,5:0.7' -> {0: 0.3, 5: 0.7}, brought to the sum 1."""
    where = f"--mix={text}"
    weights: dict[int, float] = {}
    for part in text.split(","):
        row, colon, weight = part.strip().partition(":")
        if not colon or not row.isdecimal():
            raise UserError(f"{where}: {part.strip()!r} is not ROW:WEIGHT; write for example 0:0.3,5:0.7")
        try:
            value = float(weight)
        except ValueError:
            value = math.nan
        if not 0 < value < math.inf:
            raise UserError(f"{where}: weight {weight!r} of row {row}; expected a number above 0")
        if int(row) in weights:
            raise UserError(f"{where}: row {int(row)} stands there twice; expected each row once")
        weights[int(row)] = value
    total = sum(weights.values())
    return {row: weight / total for row, weight in weights.items()}


def rows_to_mix(mixes: Sequence[Mix], choice: Choice) -> Choice:
    """The rows that mixes are made of.

    Raises:
        UserError: some that have not been chosen.
    """
    wanted = sorted({row for mix in mixes for row in mix})
    foreign = [row for row in wanted if choice.ids is not None and row not in choice.ids]
    if foreign:
        raise UserError(f"--mix: row {foreign[0]} is not among those of {choice.flag}; expected rows chosen there")
    return Choice(wanted, flag="--mix")


def mixed(model: Model, rows: Rows, mixes: Sequence[Mix], same_class: bool) -> Rows:
    """A row for each mix: h = sum_i weight_i h_i, brought to unit length; and all images of its instances.

    Args:
        rows: those that the mixes name.
        same_class: whether classes are kept, so that those of a mix must agree; else the rows come without.

    Raises:
        UserError: a model without instances, features that cancel out, or classes that differ.
    """
    if not model.recipe.shape.h_dim:
        raise UserError("--mix mixes instance features, and this model has none; interpolate.py goes between classes")
    place = {row: at for at, row in enumerate(rows.ids)}
    h, c, images = [], [], []
    for mix in mixes:
        at = [place[row] for row in mix]
        weights = torch.tensor(list(mix.values()), dtype=torch.float64)
        feature = (weights[:, None] * rows.condition.h[at].double()).sum(dim=0, keepdim=True)
        if feature.norm() < SHORTEST:
            raise UserError(f"--mix: the features of rows {_listed(mix)} cancel out; expected a direction to be left")
        h.append(normalise(feature).float())
        labels = rows.condition.c[at] if same_class else rows.condition.c[at, :0]
        if not torch.equal(labels, labels[:1].expand_as(labels)):
            raise UserError(f"--mix: rows {_listed(mix)} are of different classes; say which with --class=N")
        c.append(labels[:1])
        images.append(rows.images[at].flatten(0, 1))
    names = [f"mix{number:02d}-{'-'.join(map(str, mix))}"[:40] for number, mix in enumerate(mixes)]
    return Rows(Condition(torch.cat(c), torch.cat(h)), list(range(len(mixes))), names, _side_by_side(images))


def _side_by_side(images: Sequence[torch.Tensor]) -> torch.Tensor:
    """uint8 [few, C, H, W] each -> [N, most, C, H, W], the shorter ones filled up."""
    filled = images[0].new_full((len(images), max(map(len, images)), *images[0].shape[1:]), UNSEEN)
    for row, some in zip(filled, images, strict=True):
        row[: len(some)] = some
    return filled


def _listed(mix: Mix) -> str:
    return ", ".join(map(str, mix))
