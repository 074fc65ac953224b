"""From options to the data a run draws from."""

from collections.abc import Callable
from pathlib import Path

import psutil
import torch

from stylegan2_icgan.instances import InstanceDataset
from stylegan2_icgan.making import ensure_store
from stylegan2_icgan.options import TrainingOptions
from torch_utils.command_line import UserError
from training.dataset import ImageFolderDataset, LabelledSource, SampleSource

CACHE_SHARE = 0.25  # of the memory that is free: decoded images up to this much stay there with --cache=auto


def open_dataset(data: str, cond: str, subset: int | None, seed: int) -> ImageFolderDataset:
    """The images `--data` names, with labels when `--cond` asks for them."""
    if not data:
        raise UserError("--data is missing; expected a zip or folder of images, for example --data=datasets/digits.zip")
    return ImageFolderDataset(data, use_labels="class" in cond, max_images=subset, subset_seed=seed)


def make_source(
    options: TrainingOptions, dataset: ImageFolderDataset, device: torch.device, say: Callable[[str], None]
) -> SampleSource:
    """What the trainer draws from; makes features and neighbours where they are missing, and fills the cache."""
    if fits_in_memory(options.data.cache, dataset):
        dataset.decode_into_memory()
    if not options.wants_instances:
        return LabelledSource(dataset)
    o = options.instances
    store = ensure_store(
        dataset,
        k=o.k,
        extractor=o.extractor,
        weights=Path(o.extractor_weights) if o.extractor_weights else None,
        folder=Path(o.instances) if o.instances else None,
        device=device,
        say=say,
    )
    return InstanceDataset(dataset, store, o.k, o.mirror_instances)


def fits_in_memory(cache: str, dataset: ImageFolderDataset) -> bool:
    """Whether decoded images are kept: as told, or when they take a quarter of the free memory at most."""
    if cache == "auto":
        return dataset.decoded_bytes <= CACHE_SHARE * psutil.virtual_memory().available
    return cache == "ram"
