"""What can't work is refused here: of several processes, before they wait for each other."""

from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from stylegan2_icgan.evaluation.during import check_measure
from stylegan2_icgan.options import TrainingOptions
from stylegan2_icgan.sources import check_source, check_subset
from stylegan2_icgan.systems import SYSTEMS
from training.checkpoint import Snapshot
from training.dataset import ImageFolderDataset
from training.system import DataShape
from training.transfer import first_layers, start_from

ANY_WIDTH = 1  # of features that are still to be made: how wide they are changes neither layers nor their number


def check_run(
    options: TrainingOptions, dataset: ImageFolderDataset, loaded: Snapshot | None, device: torch.device, new: bool
) -> None:
    """Refuse what would fail when features, networks or a detector are made; makes and fetches none of them.

    Args:
        dataset: as `options` ask for it.
        loaded: what --init-from named.
        device: where the run trains.
        new: whether the run begins; else it is continued.

    Raises:
        UserError: the first of them.
    """
    if new:
        check_subset(dataset, options.data.subset)
    check_source(options, dataset, device)
    check_networks(options, dataset, loaded)
    check_measure(options.loop)


def check_networks(options: TrainingOptions, dataset: ImageFolderDataset, loaded: Snapshot | None) -> None:
    """
    Raises:
        UserError: nothing of --init-from fits, or --freeze-d leaves no layer to train.
    """
    loop = options.loop
    if loaded is None and not loop.freeze_d:
        return
    c_dim = options.data.clusters if options.data.cond == "cluster" else dataset.c_dim
    h_dim = (loaded.recipe.shape.h_dim if loaded else 0) or ANY_WIDTH
    shape = DataShape(dataset.resolution, dataset.num_channels, c_dim, h_dim if options.wants_instances else 0)
    networks = without_weights(options, shape)
    if loaded is not None:
        start_from(str(loop.init_from), loaded, networks)
    if loop.freeze_d:
        first_layers(networks["D"], loop.freeze_d)


def without_weights(options: TrainingOptions, shape: DataShape) -> dict[str, torch.nn.Module]:
    """The networks of a run, made within half a second, to be looked at."""
    with _Weightless():
        return {name: make(options.model, shape) for name, make in SYSTEMS[options.system].networks.items()}


class _Weightless(TorchFunctionMode):
    """Within the block weights have shapes alone; constants, which some constructors look at, are themselves."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        where = {"device": "meta"} if func in (torch.empty, torch.randn) else {}
        return func(*args, **(kwargs or {}) | where)
