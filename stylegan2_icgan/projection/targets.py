"""What each of the images to project is conditioned on."""

from collections.abc import Sequence
from pathlib import Path

import torch

from stylegan2_icgan.conditioning import Choice, from_features, from_images
from stylegan2_icgan.models import Model
from stylegan2_icgan.projection.options import Inputs
from torch_utils.command_line import UserError
from training.condition import Condition


def condition_of(model: Model, inputs: Inputs) -> Condition:
    """The condition of each target: [N] rows.

    h is a row of --instance-feats, or made of the target itself by the model's own extractor.

    Raises:
        UserError: flags that do not fit the model or the number of targets.
    """
    count, h_dim = len(inputs.targets), model.recipe.shape.h_dim
    if inputs.extractor_weights is not None and not h_dim:
        raise UserError(
            f"--extractor-weights={inputs.extractor_weights}: this model is not conditioned on instances; leave it out"
        )
    c = _labels(model, inputs.labels, count)
    if inputs.instance_feats is not None:
        h = _rows(model, inputs.instance_feats, inputs.rows, count)
    elif h_dim:
        h = from_images(model, inputs.targets, inputs.extractor_weights).condition.h
    else:
        h = torch.zeros(count, 0)
    return Condition(c, h)


def _rows(model: Model, path: Path, rows: Sequence[int] | None, count: int) -> torch.Tensor:
    """h of each target, float32 [count, h_dim], out of a file: one row for all, or one each."""
    h = from_features(model, path, Choice(rows, most=count + 1), None).condition.h
    if len(h) in (1, count):
        return h.expand(count, -1)
    given = "--rows is missing: the file has several rows" if rows is None else f"--rows names {len(h)} rows"
    raise UserError(f"{given}, for {count} target(s); expected one for all, or one each (--rows=0,5-9)")


def _labels(model: Model, labels: Sequence[int] | None, count: int) -> torch.Tensor:
    """c of each target, float32 [count, c_dim], one-hot: one class for all, or one each."""
    c_dim = model.recipe.shape.c_dim
    if labels is None:
        if c_dim:
            raise UserError(f"--class is missing: this model needs one of 0 to {c_dim - 1}")
        return torch.zeros(count, 0)
    if not c_dim:
        raise UserError(f"--class={','.join(map(str, labels))}: this model has no classes; leave it out")
    chosen = Choice(labels, flag="--class").of(c_dim, f"the {c_dim} classes of the model", default=[])
    if len(chosen) not in (1, count):
        raise UserError(f"--class names {len(chosen)} classes for {count} target(s); expected one for all, or one each")
    return torch.eye(c_dim)[chosen].expand(count, -1)
