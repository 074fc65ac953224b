"""Which conditions to generate for: rows of features, images, exemplars or classes, each with what explains it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

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
LONGEST_STEM = 40  # characters of an image's name that go into names of files made of it
UNSEEN = 255  # white, where others have an image


class Choice(NamedTuple):
    """Which rows to take."""

    ids: Sequence[int] | None = None  # None: nobody says
    most: int = FEW  # at most so many then
    flag: str = "--rows"  # what says it, for errors

    def of(self, count: int, what: str, default: list[int]) -> list[int]:
        """The ids, all below `count`; else the default."""
        beyond = next((row for row in self.ids or () if row >= count), None)
        if beyond is not None:
            raise UserError(f"{self.flag}: {beyond} is beyond {what}; expected 0 to {count - 1}")
        return default if self.ids is None else list(self.ids)


@dataclass(frozen=True)
class Rows:
    """Conditions to generate for.

    Args:
        condition: [N]
        ids: their numbers in what they were taken from.
        names: what to call each row in file names.
        images: uint8 [N, few, C, H, W], what explains each row; few = 0 where nothing does.
    """

    condition: Condition
    ids: list[int]
    names: list[str]
    images: torch.Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, places: Sequence[int]) -> "Rows":
        at = list(places)
        return Rows(self.condition[at], [self.ids[i] for i in at], [self.names[i] for i in at], self.images[at])


def num_exemplars(model: Model) -> int:
    """How many conditions can be had of the snapshot alone: its exemplars, or its classes; 0: it is unconditional."""
    shape = model.recipe.shape
    return len(model.exemplars) if shape.h_dim or not len(model.exemplars) else shape.c_dim


def from_exemplars(model: Model, choice: Choice) -> Rows:
    """The conditions stored in the snapshot; one empty row for an unconditional model.

    Of a model with classes alone any class can be chosen, whether an exemplar shows it or not.
    """
    stored = model.exemplars
    if not len(stored):
        if model.recipe.shape.h_dim:
            raise UserError(
                f"--network={model.path} carries no exemplars; give --instance-feats=FILE or --instance-images"
            )
        return Rows(Condition.empty(1), [0], [""], no_images(1))
    if not model.recipe.shape.h_dim:
        return _classes(model, choice)
    count = len(stored)
    ids = choice.of(count, f"the {count} exemplars of the snapshot", default=_spread(count, choice.most))
    images = stored.images[ids].unsqueeze(1) if len(stored.images) else no_images(len(ids))
    return Rows(stored.condition[ids], ids, [f"exemplar{i:05d}" for i in ids], images)


def _classes(model: Model, choice: Choice) -> Rows:
    """Rows of classes, each with the image of it in the snapshot, if there is one."""
    stored, c_dim = model.exemplars, model.recipe.shape.c_dim
    place = {label: row for row, label in enumerate(stored.condition.c.argmax(dim=1).tolist())}
    shown = [list(place)[i] for i in _spread(len(place), choice.most)]
    ids = choice.of(c_dim, f"the {c_dim} classes of the model", default=shown)
    c = torch.zeros(len(ids), c_dim)
    c[torch.arange(len(ids)), ids] = 1
    images = no_images(len(ids))
    if len(stored.images) and any(i in place for i in ids):
        unseen = torch.full_like(stored.images[0], UNSEEN)
        images = torch.stack([stored.images[place[i]] if i in place else unseen for i in ids]).unsqueeze(1)
    return Rows(Condition(c, torch.zeros(len(ids), 0)), ids, [f"class{i:05d}" for i in ids], images)


def from_features(model: Model, path: Path, choice: Choice, data: Path | None) -> Rows:
    """Rows of a .npy file, or of `features` or `h` in a .npz (`h`: of projector.py, or of generate.py --format=npz).

    Args:
        path: float [N, h_dim] or [h_dim]; rows are brought to unit length.
        choice: which rows; the first few where nobody says.
        data: the zip or folder whose images the rows belong to, by the names in the .npz, else in the order of its
            sorted names; only to show them.

    Raises:
        UserError: not such a file, another width, another extractor, rows without direction.
    """
    where = f"--instance-feats={path}"
    h_dim = model.recipe.shape.h_dim
    if not h_dim:
        raise UserError(f"{where}: this model is not conditioned on instances; leave it out")
    arrays = feature_arrays(path, where)
    features = arrays.get("features", arrays.get("h"))
    if features is None:
        raise UserError(f"{where} has no array 'features' or 'h'; expected one of floating-point rows [N, {h_dim}]")
    if features.dtype.kind != "f" or features.ndim not in (1, 2) or not features.size:
        raise UserError(f"{where}: expected floating-point rows [N, {h_dim}]")
    features = features.reshape(-1, features.shape[-1])
    if features.shape[1] != h_dim:
        raise UserError(
            f"{where} has rows of width {features.shape[1]}; this model is conditioned on {h_dim}, made by extractor "
            f"{model.exemplars.extractor.get('name')}. Make the features with that extractor"
        )
    if (path.parent / MANIFEST).exists():
        check_same_extractor(model, path.parent, where)
    count = len(features)
    ids = choice.of(count, f"the {count} rows of {path}", default=list(range(min(choice.most, count))))
    with np.errstate(over="ignore"):  # infinity is refused below
        h = torch.from_numpy(np.array(features[ids], dtype=np.float32))
    for row, length in zip(ids, h.norm(dim=1).tolist(), strict=True):
        if not 0 < length < float("inf"):
            raise UserError(f"{where}: row {row} has length {length}; a feature needs a direction")
    images = no_images(len(ids))
    if data is not None:
        dataset = open_data(model, data)
        names = names_of_rows(path, arrays, count, where)
        images = dataset.images(_images_of_rows(dataset, names, count, path)[ids]).unsqueeze(1)
    condition = Condition(torch.zeros(len(h), 0), normalise(h))
    return Rows(condition, ids, [f"row{row:05d}" for row in ids], images)


def open_data(model: Model, data: Path) -> ImageFolderDataset:
    """The images of --data, to be shown beside those of a model.

    Raises:
        UserError: images of another size or other channels than the model's.
    """
    dataset, shape = ImageFolderDataset(data), model.recipe.shape
    if dataset.image_shape != (shape.img_channels, shape.img_resolution, shape.img_resolution):
        raise UserError(
            f"--data={data} has images {list(dataset.image_shape)}, the model {shape.img_channels} channels at "
            f"{shape.img_resolution} pixels; expected the same"
        )
    return dataset


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
    names = [f"{number:02d}-{path.stem[:LONGEST_STEM]}" for number, path in enumerate(paths)]
    return Rows(Condition(torch.zeros(len(h), 0), h), list(range(len(paths))), names, images.unsqueeze(1))


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
    if not model.recipe.shape.h_dim:  # a class is the whole condition: one row, whether an exemplar shows it or not
        return from_exemplars(model, Choice([label]))
    c = torch.zeros(len(rows), c_dim)
    c[:, label] = 1
    names = [f"{name}-class{label}" for name in rows.names]
    return Rows(Condition(c, rows.condition.h), rows.ids, names, rows.images)


def no_images(num_rows: int) -> torch.Tensor:
    """uint8 [num_rows, 0, 1, 1, 1]: nothing to show."""
    return torch.zeros(num_rows, 0, 1, 1, 1, dtype=torch.uint8)


def _spread(count: int, most: int) -> list[int]:
    """At most `most` of range(count), as far apart as can be."""
    return np.linspace(0, count - 1, min(most, count)).round().astype(int).tolist()


def check_same_extractor(model: Model, folder: Path, where: str) -> None:
    """Features in an instance store say how they were made: refuse another extractor than the model's.

    Args:
        where: what the user gave, for errors.
    """
    try:
        made_with = read_manifest(folder)["extractor"]
        stored = read_extractor_state(folder)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    expected = model.exemplars.extractor
    if not made_alike(made_with, expected):
        raise UserError(
            f"{where} was made by extractor {made_with}, this model's instances by {expected}; make the features with "
            "the model's extractor (--instance-images does)"
        )
    ours = model.exemplars.extractor_state
    if set(stored) != set(ours) or any(not torch.equal(stored[name], ours[name]) for name in ours):
        raise UserError(
            f"{where} was made by extractor {expected['name']} fitted to other data than this model's; use "
            "--instance-images, which takes the model's own"
        )
