"""The conditions that images are generated for: those of a data set, or the exemplars of a snapshot."""

from pathlib import Path

import numpy as np
import torch

from stylegan2_icgan.evaluation.images import RealImages
from stylegan2_icgan.evaluation.options import Flags, Say
from stylegan2_icgan.features import restore_extractor
from stylegan2_icgan.instances import InstanceDataset
from stylegan2_icgan.models import Model
from stylegan2_icgan.store import default_folder, open_store
from torch_utils.command_line import UserError
from torch_utils.files import Countdown
from training.checkpoint import Recipe
from training.condition import Condition, Exemplars
from training.dataset import Draws, ImageFolderDataset, LabelledSource


class Conditions:
    """Draws conditions from the exemplars of a snapshot; the only one it has, of an unconditional model."""

    def __init__(self, exemplars: Exemplars) -> None:
        self.condition = exemplars.condition if len(exemplars) else Condition.empty(1)
        self.policy = {"from": f"{len(exemplars)} exemplars" if len(exemplars) else "nothing", "balanced": False}

    def __len__(self) -> int:
        return len(self.condition)

    def __call__(self, draws: Draws) -> Condition:
        return self.condition[torch.from_numpy(draws.index)]

    def classes(self, draws: Draws) -> np.ndarray | None:
        c = self(draws).c
        return c.argmax(dim=1).numpy() if c.shape[1] else None

    def instances(self, draws: Draws) -> np.ndarray | None:
        """Rows of the reference that the draws are conditioned on, where they are."""
        return None


class DataConditions(Conditions):
    """Draws conditions from a data set as training does; or, where it has no instance store, its own features.

    Args:
        dataset: with labels if the model has classes.
        features: float32 [N, h_dim], of the images themselves; used where there is no store.
        is_reference: whether it is the reference, too.
    """

    def __init__(
        self,
        dataset: ImageFolderDataset,
        source: LabelledSource | InstanceDataset | None,
        features: torch.Tensor | None,
        sampling: str,
        is_reference: bool,
    ) -> None:
        self.dataset, self.source, self.features = dataset, source, features
        with_instances = features is not None or isinstance(source, InstanceDataset)
        self.tells_instance = is_reference and with_instances and sampling == "instance"
        self.policy = {
            "from": f"{len(dataset)} images of {dataset.path.name}",
            "balanced": sampling == "class",
            "label": "of the instance" if source is None else "as in training",
        }

    def __len__(self) -> int:
        return len(self.dataset)

    def __call__(self, draws: Draws) -> Condition:
        if self.source is not None:
            return self.source.conditions(draws)
        assert self.features is not None
        return Condition(self.dataset.labels(draws.index), self.features[torch.from_numpy(draws.index)])

    def classes(self, draws: Draws) -> np.ndarray | None:
        if self.dataset.c_dim:
            return self(draws).c.argmax(dim=1).numpy()
        return None if self.dataset.class_ids is None else self.dataset.class_ids[draws.index]  # of the instance

    def instances(self, draws: Draws) -> np.ndarray | None:
        return draws.index if self.tells_instance else None


def drawn_from_data(recipe: Recipe, flags: Flags, reference: RealImages | None) -> bool:
    """Whether conditions come from the reference: where there are any, and it has them (it can't have clusters)."""
    if not recipe.shape.c_dim and not recipe.shape.h_dim:
        return False
    if flags.instances is not None:
        return flags.instances == "data"
    return reference is not None and recipe.training_options.get("data", {}).get("cond") != "cluster"


def make_conditions(model: Model, flags: Flags, reference: RealImages | None, say: Say) -> Conditions:
    """Where conditions come from: the reference data (the default where the model has conditions), or exemplars."""
    shape, options = model.recipe.shape, model.recipe.training_options
    if not drawn_from_data(model.recipe, flags, reference):
        if flags.sampling == "class":
            raise UserError(
                "--sampling=class draws from data; the model has no conditions, or --instances=exemplars is given"
            )
        return Conditions(model.exemplars)
    if reference is None:
        raise UserError("--instances=data draws conditions from the reference, which is missing: --data=ZIP")
    dataset = reference.dataset(use_labels=shape.c_dim > 0)
    if dataset.c_dim != shape.c_dim:
        raise UserError(
            f"--data={reference.path} has {dataset.c_dim} classes, the model {shape.c_dim}; use --instances=exemplars"
        )
    same = list(reference.names) == dataset.names
    if not shape.h_dim:
        return DataConditions(dataset, LabelledSource(dataset, flags.sampling), None, flags.sampling, same)
    named = options.get("instances", {}).get("instances")  # of the training data alone
    trained_on = options.get("dataset", {}).get("fingerprint")
    folder = Path(named) if named and dataset.fingerprint() == trained_on else default_folder(dataset)
    if folder.is_dir():
        store = open_store(folder, dataset)
        state, expected = store.extractor_state, model.exemplars.extractor_state
        alike = set(state) == set(expected) and all(torch.equal(state[name], expected[name]) for name in expected)
        if store.manifest["extractor"] == model.exemplars.extractor and alike:
            trained = options.get("instances", {}).get("k", store.k)
            source = InstanceDataset(dataset, store, min(int(trained), store.k), sampling=flags.sampling)
            return DataConditions(dataset, source, None, flags.sampling, same)
    if flags.sampling == "class":
        raise UserError(
            f"--sampling=class needs the neighbours of {reference.path}; there are none made as the model's were"
        )
    features = instance_features(model, dataset, flags.extractor_weights, say)
    return DataConditions(dataset, None, features, flags.sampling, same)


def instance_features(model: Model, dataset: ImageFolderDataset, weights: Path | None, say: Say) -> torch.Tensor:
    """h of every image by the model's own extractor, float32 [N, h_dim]."""
    extractor = restore_extractor(model.exemplars.extractor, model.exemplars.extractor_state, weights, model.device)
    progress, parts = Countdown("instance features", len(dataset), say), []
    for start in range(0, len(dataset), extractor.batch):
        ids = np.arange(start, min(start + extractor.batch, len(dataset)))
        parts.append(extractor(dataset.images(ids)).cpu())
        progress(int(ids[-1]) + 1)
    return torch.cat(parts)
