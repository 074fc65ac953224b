"""Opening an instance store, or having it made."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from stylegan2_icgan.extractors.given_features import identity
from stylegan2_icgan.features import canonical_name, check_extractor_name, extractor_choices
from stylegan2_icgan.neighbours import METHODS
from stylegan2_icgan.shards import SHARD_ROWS, Engine, run_in_ranks
from stylegan2_icgan.store import InstanceStore, default_folder, open_store
from stylegan2_icgan.workshop import Workshop, recover, tidy
from torch_utils import distributed
from torch_utils.command_line import UserError
from torch_utils.locks import hold
from training.config import option
from training.dataset import ImageFolderDataset

LARGE_SHARE = 0.2  # of the data set: a neighbourhood beyond this is hardly one


@dataclass(frozen=True)
class StoreOptions:
    """How features are made, how neighbours are found, where both are stored."""

    k: int = option(50, "Neighbours an instance has; real images are drawn from them.", unit="N")
    extractor: str | None = option(
        None,
        f"How an image becomes a feature: {extractor_choices()}.  [default: what the stored features were made with; "
        "for new ones dinov2 for photographs where timm is installed, else pca]",
        unit="NAME",
    )
    extractor_weights: str | None = option(None, "Local file of weights for the extractor.", unit="FILE")
    instance_feats: str | None = option(
        None, "Features made elsewhere, .npy in the order of the sorted names or .npz with names.", unit="FILE"
    )
    feature_dtype: str | None = option(
        None, "Features on disk.  [default: float32, or what is there]", choices=("float32", "float16")
    )
    neighbours: str = option("auto", "How neighbours are found; auto: exact when that takes minutes.", choices=METHODS)
    instances: str | None = option(
        None, "Folder of features and neighbours.  [default: beside the data]", unit="DIR", resumable=True
    )


def ensure_store(
    dataset: ImageFolderDataset,
    options: StoreOptions,
    device: torch.device | None = None,
    say: Callable[[str], None] = lambda line: None,
    engine: Engine = run_in_ranks,
    shard_rows: int = SHARD_ROWS,
) -> InstanceStore:
    """Open the instance store of a data set; make it, or more neighbours, when they are missing.

    The work is done in a folder beside the store's, shard by shard; the store gets its name when it is whole. Under
    torchrun every process calls this, does its share and gets the store.

    Args:
        options: a store with more neighbours than `k` serves as it is.
        device: of the extractor and the search.
        say: called with one line for every piece of work begun.
        engine: who does the shards.
        shard_rows: images a shard: what a kill may cost.

    Raises:
        UserError: k too large, a store of other data or of another extractor, a folder that can't be written.
    """
    device = device or torch.device("cpu")
    say = say if distributed.rank() == 0 else lambda line: None
    check_store(dataset, options, say)
    folder = distributed.broadcast(Path(options.instances).resolve() if options.instances else default_folder(dataset))
    store = _stored(folder, dataset, options, device)
    if distributed.broadcast(store is not None and _serves(store, options)):
        return store or open_store(folder, dataset)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            if distributed.rank() == 0:
                stack.enter_context(hold(folder.with_name(f".{folder.name}.lock"), say))
                recover(folder)
                tidy(folder)
                store = _stored(folder, dataset, options, device)  # another process may have made it meanwhile
            workshop = Workshop(dataset, folder, options, device, say, engine, shard_rows)
            if distributed.rank() == 0 and (store is None or not _serves(store, options)):
                workshop.prepare(store)
            distributed.barrier()
            workshop.work()
    except OSError as error:
        raise UserError(
            f"instance store {folder} can't be written ({error.strerror or error or 'no space left'}); make room, or "
            "name another folder with --instances=DIR"
        ) from None
    return open_store(folder, dataset)


def check_store(dataset: ImageFolderDataset, options: StoreOptions, say: Callable[[str], None]) -> None:
    """Refuse what can't work before anything is opened or made."""
    count, k = len(dataset), options.k
    if count < 2:
        raise UserError(f"--data={dataset.path} has one image; instances need others as neighbours")
    if not 1 <= k < count:
        raise UserError(
            f"--k={k}, but {count} images of --data={dataset.path} are used; expected 1 <= k <= {count - 1}, since an "
            "instance is not its own neighbour"
        )
    if k > count * LARGE_SHARE:
        say(f"note: --k={k} neighbours of {count} images are a large part of all; a smaller --k tells more apart")
    if options.extractor is not None:
        check_extractor_name(options.extractor)
    if options.extractor == "file" and not options.instance_feats:
        raise UserError("--extractor=file takes features made elsewhere: name the .npy or .npz with --instance-feats")
    if options.instance_feats and (options.extractor not in (None, "file") or options.extractor_weights):
        raise UserError(
            f"--instance-feats={options.instance_feats} brings features made elsewhere; leave --extractor and "
            "--extractor-weights out"
        )


def _stored(
    folder: Path, dataset: ImageFolderDataset, options: StoreOptions, device: torch.device
) -> InstanceStore | None:
    """The store that is there, if its features are those the options ask for; None where there is none."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--instances={folder} is a file; expected a folder")
    if not folder.exists() or not any(folder.iterdir()):
        return None
    store = open_store(folder, dataset)
    stored = store.manifest["extractor"]
    remedy = "delete that folder, or name another with --instances=DIR"
    if options.extractor is not None and canonical_name(options.extractor) != stored["name"]:
        raise UserError(
            f"--extractor={options.extractor}, but the features in {folder} were made with {stored['name']}; {remedy}"
        )
    given = identity(Path(options.instance_feats)) if options.instance_feats else {}
    if any(stored.get(key) != value for key, value in given.items()):
        raise UserError(
            f"--instance-feats={options.instance_feats} is not what the features in {folder} came from; {remedy}"
        )
    if options.feature_dtype not in (None, store.manifest["dtype"]):
        raise UserError(
            f"--feature-dtype={options.feature_dtype}, but the features in {folder} are {store.manifest['dtype']}; "
            f"{remedy}"
        )
    if options.extractor_weights and stored["name"] in ("pca", "file"):
        raise UserError(
            f"--extractor-weights={options.extractor_weights}, but the features in {folder} were made with "
            f"{stored['name']}, which has none; leave it out"
        )
    if options.extractor_weights:
        store.extractor(Path(options.extractor_weights), device)  # refuses a file other than the store was made with
    return store


def _serves(store: InstanceStore, options: StoreOptions) -> bool:
    found = store.manifest["neighbours"]  # by the method that was asked for, or by the one it gave way to
    return store.k >= options.k and options.neighbours in ("auto", found["method"], found["asked"])
