"""From options to the data a run draws from."""

from collections.abc import Callable, Mapping

import torch

from stylegan2_icgan.clusters import check_clusters, make_cluster_source
from stylegan2_icgan.instances import InstanceDataset
from stylegan2_icgan.making import check_store, ensure_store
from stylegan2_icgan.options import TrainingOptions
from stylegan2_icgan.systems import PAIRED
from torch_utils.command_line import UserError
from torch_utils.misc import free_memory
from training.cache import decoded_file
from training.dataset import ImageFolderDataset, LabelledSource, SampleSource
from training.pairs import PairedSource, align, open_partner

CACHE_SHARE = 0.25  # of the memory that is free: decoded images up to this much are kept there with --cache=auto


def open_dataset(
    data: str, cond: str, subset: int | None, seed: int, lost: Mapping[str, int] | None = None
) -> ImageFolderDataset:
    """The images `--data` names, with labels when `--cond` asks for them.

    Args:
        lost: name -> CRC-32 of images that turned bad before.
    """
    if not data:
        raise UserError("--data is missing; expected a zip or folder of images, for example --data=datasets/digits.zip")
    return ImageFolderDataset(data, use_labels="class" in cond, max_images=subset, subset_seed=seed, lost=lost)


def check_source(options: TrainingOptions, dataset: ImageFolderDataset, device: torch.device) -> None:
    """Refuse what `make_source` could not make, before anything is made for it.

    Args:
        device: where the run trains.

    Raises:
        UserError: flags that contradict each other, or the data.
    """
    data = options.data
    check_clusters(data, len(dataset), lambda name: options.sources[name] == "flag")
    check_pairs(options)
    check_cache(data.cache, data.workers, device)
    if options.wants_instances:
        check_store(dataset, options.instances, lambda line: None)


def check_subset(dataset: ImageFolderDataset, subset: int | None) -> None:
    """
    Raises:
        UserError: more images than there are.
    """
    if subset is not None and subset > len(dataset):
        raise UserError(
            f"--subset={subset}, but --data={dataset.path} has {len(dataset)} images; expected 1 to {len(dataset)}, or "
            "leave it out"
        )


def make_source(
    options: TrainingOptions, dataset: ImageFolderDataset, device: torch.device, say: Callable[[str], None]
) -> SampleSource:
    """What the trainer draws from; makes features and neighbours where they are missing, and fills the cache.

    Args:
        options: `check_source` has passed them.

    Raises:
        UserError: a cache that does not fit, and all that making features refuses.
    """
    o, data = options.instances, options.data
    if options.system in PAIRED:
        return make_pairs(options, dataset, device, say)
    keep_decoded(dataset, data.cache, data.workers, device, say)
    if data.cond == "cluster":
        return make_cluster_source(dataset, data, options.loop.batch, options.loop.seed, say)
    if not options.wants_instances:
        return LabelledSource(dataset, data.sampling, data.class_temperature)
    store = ensure_store(dataset, o, device, say)
    selection = "per-class" if o.instances_per_class else o.exemplar_selection
    return InstanceDataset(
        dataset, store, o.k, o.mirror_instances, data.sampling, data.class_temperature, selection, device
    )


def check_pairs(options: TrainingOptions) -> None:
    """
    Raises:
        UserError: partners for a system that has no use for them, none for one that has, or metrics of noise for it.
    """
    data = options.data
    if options.system not in PAIRED:
        if data.data_b is None:
            return
        raise UserError(
            f"--data-b={data.data_b}: {options.system} learns from single images; leave it out, or translate with "
            "--cfg=csgan"
        )
    if data.data_b is None:
        raise UserError(
            f"--data={data.data}: {options.system} learns from pairs; name the other half with --data-b=ZIP"
        )
    if options.loop.metrics is not None:
        raise UserError(
            f"--metrics={options.loop.metrics}: {options.system} makes no images of noise; measure translations with "
            "translate.py --target"
        )


def make_pairs(
    options: TrainingOptions, dataset: ImageFolderDataset, device: torch.device, say: Callable[[str], None]
) -> PairedSource:
    """Images of `--data` with their partners of `--data-b`.

    Raises:
        UserError: images that are no pairs, a cache that does not fit.
    """
    data = options.data
    assert data.data_b is not None  # checked
    partners = open_partner(data.data_b, dataset)
    partner = align(dataset, partners, say)
    for images in (dataset, partners):
        keep_decoded(images, data.cache, data.workers, device, say)
    return PairedSource(dataset, partners, partner, data.mirror)


def check_cache(where: str, workers: int | None, device: torch.device) -> None:
    """
    Args:
        where: as for `keep_decoded`.
        workers: as given; worker processes can't reach what is on a GPU.

    Raises:
        UserError: no GPU, or workers together with the GPU.
    """
    if where == "gpu" and device.type == "cpu":
        raise UserError("--cache=gpu, but this run trains on the CPU; use --cache=ram or --cache=auto")
    if where == "gpu" and workers:
        raise UserError(f"--workers={workers} given with --cache=gpu, which needs none; leave --workers out")


def keep_decoded(
    dataset: ImageFolderDataset, where: str, workers: int | None, device: torch.device, say: Callable[[str], None]
) -> None:
    """Keep decoded images where `--cache` says, and say so when a user would want to know.

    Args:
        where: auto, gpu, ram, disk or none. auto takes the training device, then memory, if a quarter of what is free
            there is enough; then a file of decoded images, if an earlier run has left one.
        workers: as given.
        device: where the run trains.

    Raises:
        UserError: not enough memory.
    """
    size = dataset.decoded_bytes
    if where in ("gpu", "ram") and size > (free := free_memory(device if where == "gpu" else torch.device("cpu"))):
        raise UserError(
            f"--cache={where}: the decoded images take {_gib(size)}, {_gib(free)} are free; use --cache=disk, "
            "--cache=none or --subset"
        )
    if where == "auto":
        where = _fitting(size, device, workers)
        if where == "none" and dataset.use_decoded_file():
            where = "disk"
        elif where == "none":
            say(
                f"images are decoded as they are drawn: all would take {_gib(size)}, more than a quarter of the free "
                "memory; --cache=disk keeps them in a file"
            )
    if where == "gpu":
        dataset.decode_onto(device, say)
        say(f"{len(dataset):,} decoded images are kept on {device} ({_gib(size)})")
    elif where == "ram":
        dataset.decode_into_memory(say)
    elif where == "disk":
        dataset.decode_to_disk(say)
        say(f"{len(dataset):,} decoded images are read from {decoded_file(dataset)} ({_gib(size)})")


def _fitting(size: int, device: torch.device, workers: int | None) -> str:
    """gpu, ram or none: the fastest place of which `size` bytes take a quarter of the free memory at most."""
    if device.type == "cuda" and not workers and size <= CACHE_SHARE * free_memory(device):
        return "gpu"
    return "ram" if size <= CACHE_SHARE * free_memory(torch.device("cpu")) else "none"


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
