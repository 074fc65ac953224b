"""Which conditions to generate for: rows of features, images, exemplars or classes, each with an explaining image."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from stylegan2_icgan.extractors.given_features import feature_arrays, names_of_rows
from stylegan2_icgan.features import made_alike, normalise
from stylegan2_icgan.models import Model
from stylegan2_icgan.store import MANIFEST, read_extractor_state, read_manifest
from torch_utils.command_line import UserError
from training.condition import Condition
from training.dataset import ImageFolderDataset

FEW = 8  # rows taken when nobody says which


@dataclass(frozen=True)
class Rows:
    """Conditions to generate for.

    Args:
        condition: [N]
        names: what to call each row in file names.
        images: uint8 [N, C, H, W], what explains each row; or no rows when nothing does.
    """

    condition: Condition
    names: list[str]
    images: torch.Tensor

    def __getitem__(self, ids: Sequence[int]) -> "Rows":
        images = self.images[list(ids)] if len(self.images) else self.images
        return Rows(self.condition[list(ids)], [self.names[i] for i in ids], images)


def from_exemplars(model: Model, chosen: Sequence[int] | None) -> Rows:
    """The conditions stored in the snapshot; one empty row for an unconditional model."""
    stored = model.exemplars
    if not len(stored):
        return Rows(Condition.empty(1), [""], stored.images[:0])
    kind = "exemplar" if model.recipe.shape.h_dim else "class"
    ids = range(len(stored)) if kind == "exemplar" else stored.condition.c.argmax(dim=1).tolist()
    rows = Rows(stored.condition, [f"{kind}{i:05d}" for i in ids], stored.images)
    if chosen is None:
        chosen = np.linspace(0, len(stored) - 1, min(FEW, len(stored))).round().astype(int).tolist()
    return _pick(rows, chosen, f"the {len(stored)} exemplars of the snapshot")


def from_features(model: Model, path: Path, chosen: Sequence[int] | None, data: Path | None) -> Rows:
    """Rows of a .npy file, or of `features` in a .npz.

    Args:
        path: float [N, h_dim] or [h_dim]; rows are brought to unit length.
        chosen: which rows; None: all of at most 8, else the first 8.
        data: the zip or folder whose images the rows belong to, by the names in the .npz, else in the order of its
            sorted names; only to show them.

    Raises:
        UserError: not such a file, another width, another extractor, rows without direction.
    """
    h_dim = model.recipe.shape.h_dim
    if not h_dim:
        raise UserError(f"--instance-feats={path}: this model is not conditioned on instances; leave it out")
    where = f"--instance-feats={path}"
    arrays = feature_arrays(path, where)
    if "features" not in arrays:
        raise UserError(f"{where} has no array 'features' (it has {', '.join(arrays) or 'none'}); expected one")
    features = arrays["features"]
    if features.dtype.kind != "f" or features.ndim not in (1, 2):
        raise UserError(f"{where}: expected floating-point rows [N, {h_dim}]")
    features = features.reshape(-1, features.shape[-1])
    if features.shape[1] != h_dim:
        raise UserError(
            f"{where} has rows of width {features.shape[1]}; this model is conditioned on {h_dim}, made by extractor "
            f"{model.exemplars.extractor.get('name')}. Make the features with that extractor"
        )
    _check_same_extractor(model, path)
    chosen = list(range(min(FEW, len(features)))) if chosen is None else chosen
    _check_range(chosen, len(features), f"the {len(features)} rows of {path}")
    h = torch.from_numpy(np.array(features[list(chosen)], dtype=np.float32))
    lengths = h.norm(dim=1)
    for row, length in zip(chosen, lengths.tolist(), strict=True):
        if not 0 < length < float("inf"):
            raise UserError(f"--instance-feats={path}: row {row} has length {length}; a feature needs a direction")
    images = torch.zeros(0, 1, 1, 1, dtype=torch.uint8)
    if data is not None:
        dataset = ImageFolderDataset(data)
        names = names_of_rows(path, arrays, len(features), where)
        ids = _images_of_rows(dataset, names, len(features), path)[list(chosen)]
        shape = model.recipe.shape
        if dataset.image_shape != (shape.img_channels, shape.img_resolution, shape.img_resolution):
            raise UserError(
                f"--data={data} has images {list(dataset.image_shape)}, the model {shape.img_channels} channels at "
                f"{shape.img_resolution} pixels; expected the same"
            )
        images = dataset.images(ids)
    condition = Condition(torch.zeros(len(h), 0), normalise(h))
    return Rows(condition, [f"row{row:05d}" for row in chosen], images)


def _images_of_rows(dataset: ImageFolderDataset, names: list[str] | None, num_rows: int, path: Path) -> np.ndarray:
    """Which image each row of a file of features belongs to, int64 [num_rows]."""
    if names is None:
        if len(dataset) != num_rows:
            raise UserError(
                f"--data={dataset.path} has {len(dataset)} images, {path} has {num_rows} rows; expected as many"
            )
        return np.arange(num_rows)
    place = {name: i for i, name in enumerate(dataset.names)}
    missing = [name for name in names if name not in place]
    if missing:
        raise UserError(f"--data={dataset.path} has no image {missing[0]!r}, which {path} names; give its own data")
    return np.array([place[name] for name in names])


def from_images(model: Model, paths: Sequence[Path], weights: Path | None) -> Rows:
    """Any images, through the extractor the model was trained with."""
    h, images = model.features(paths, weights)
    names = [f"{number:02d}-{path.stem}" for number, path in enumerate(paths)]
    return Rows(Condition(torch.zeros(len(h), 0), h), names, images)


def with_class(model: Model, rows: Rows, label: int | None) -> Rows:
    """Set or check the class of every row.

    Raises:
        UserError: a class the model does not have, a class for a model without, or none where one is needed.
    """
    c_dim = model.recipe.shape.c_dim
    if label is None:
        if c_dim and rows.condition.c.shape[1] != c_dim:
            raise UserError(f"--class is missing: this model needs one of 0 to {c_dim - 1} beside the instance")
        return rows
    if not c_dim:
        raise UserError(f"--class={label}: this model has no classes; leave it out")
    if not 0 <= label < c_dim:
        raise UserError(f"--class={label}: expected 0 to {c_dim - 1}")
    c = torch.eye(c_dim)[label : label + 1]
    if not model.recipe.shape.h_dim:  # a class is the whole condition: one row, whether an exemplar shows it or not
        stored = model.exemplars
        shown = stored.images[stored.condition.c.argmax(dim=1) == label][:1]
        return Rows(Condition(c, torch.zeros(1, 0)), [f"class{label:05d}"], shown)
    names = [f"{name}-class{label}" for name in rows.names]
    return Rows(Condition(c.repeat(len(rows.condition), 1), rows.condition.h), names, rows.images)


def _pick(rows: Rows, chosen: Sequence[int], what: str) -> Rows:
    _check_range(chosen, len(rows.condition), what)
    return rows[chosen]


def _check_range(chosen: Sequence[int], count: int, what: str) -> None:
    beyond = next((row for row in chosen if row >= count), None)
    if beyond is not None:
        raise UserError(f"--rows: {beyond} is beyond {what}; expected 0 to {count - 1}")


def _check_same_extractor(model: Model, path: Path) -> None:
    """Features out of an instance store say how they were made: refuse another extractor than the model's."""
    if not (path.parent / MANIFEST).exists():
        return
    try:
        made_with = read_manifest(path.parent)["extractor"]
        stored = read_extractor_state(path.parent)
    except UserError as error:
        raise UserError(f"--instance-feats={path}: {error}") from None
    expected = model.exemplars.extractor
    if not made_alike(made_with, expected):
        raise UserError(
            f"--instance-feats={path} was made by extractor {made_with}, this model's instances by {expected}; make "
            "the features with the model's extractor (--instance-images does)"
        )
    ours = model.exemplars.extractor_state
    if set(stored) != set(ours) or any(not torch.equal(stored[name], ours[name]) for name in ours):
        raise UserError(
            f"--instance-feats={path} was made by extractor {expected['name']} fitted to other data than this model's; "
            "use --instance-images, which takes the model's own"
        )
