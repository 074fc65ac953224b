"""From flags to the conditions a model is asked for."""

from collections.abc import Sequence
from pathlib import Path

from stylegan2_icgan.conditioning import (
    Choice,
    Rows,
    from_exemplars,
    from_features,
    from_images,
    num_exemplars,
    with_class,
)
from stylegan2_icgan.models import Model
from stylegan2_icgan.using.flags import Flags
from stylegan2_icgan.using.instance_mix import Mix, mixed, rows_to_mix
from torch_utils.command_line import UserError, parse_ranges


def chosen_rows(
    model: Model, flags: Flags, choice: Choice, mixes: Sequence[Mix] = (), data: Path | None = None
) -> Rows:
    """The conditions that the flags name, one row each; a single one for an unconditional model.

    Args:
        choice: which rows of the features, images or exemplars; --instances comes before it.
        mixes: of these rows.
        data: the images that features belong to, to show them.
    """
    if flags.instances is not None:
        choice = parse_instances(model, flags.instances)
    if flags.label is not None and choice.ids is not None and not model.recipe.shape.h_dim:
        raise UserError(f"{choice.flag} and --class are both given; this model is conditioned on a class and no more")
    if not mixes:
        return with_class(model, _rows(model, flags, choice, data), flags.label)
    parts = _rows(model, flags, rows_to_mix(mixes, choice), data)
    return with_class(model, mixed(model, parts, mixes, same_class=flags.label is None), flags.label)


def _rows(model: Model, flags: Flags, choice: Choice, data: Path | None) -> Rows:
    if flags.instance_feats is not None:
        return from_features(model, flags.instance_feats, choice, data)
    if flags.instance_images:
        rows = from_images(model, flags.instance_images, flags.extractor_weights)
        return rows[choice.of(len(rows), f"the {len(rows)} images", default=rows.ids)]
    return from_exemplars(model, choice)


def parse_instances(model: Model, text: str) -> Choice:
    """'exemplars' or 'exemplars:0,5-9'."""
    where = f"--instances={text}"
    word, colon, ranges = text.partition(":")
    if word != "exemplars":
        raise UserError(f"{where}: expected exemplars, or some of them: exemplars:0,5-9")
    if not num_exemplars(model):
        raise UserError(f"{where}: this model is not conditioned on anything; leave it out")
    try:
        return Choice(parse_ranges(ranges) if colon else range(num_exemplars(model)), flag=where)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
