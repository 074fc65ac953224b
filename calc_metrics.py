# ruff: noqa: RUF009 - option() makes a field of a dataclass, as dataclasses.field does
"""Measure how good generated images are: a snapshot, a folder or zip of images, or features, against a reference.

\b
    python calc_metrics.py --network=runs/.../network-snapshot-000036.pt --metrics=fid50k_full,pr50k3_full
    python calc_metrics.py --data=real.zip --fake=samples/ --metrics=fid10k_full,kid10k_full
    python calc_metrics.py --data=real.npy --fake=fake.npy --metrics=fid50k_full
    python calc_metrics.py --plot=runs/00000-digits-instance-tiny-batch16
"""

import dataclasses
import hashlib
import io
import json
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import PIL.Image
import torch

from metrics.compute import compute
from metrics.detectors import DETECTORS, Detector, Identity, NetworkDetector, make_detector
from metrics.evaluation import Evaluation, Outcome, Sides, check
from metrics.image_sets import FeatureRows, ImageSet
from metrics.lpips import Lpips
from metrics.metric_names import Metric, parse_metrics
from metrics.path_length import slerp
from metrics.plot import plot_curves
from metrics.records import append_line, record
from metrics.reference_cache import ReferenceCache, default_cache_folder
from metrics.resizing import FILTERS
from stylegan2_icgan.extractors.extractor import with_channels
from stylegan2_icgan.extractors.networks import NetworkExtractor
from stylegan2_icgan.features import restore_extractor
from stylegan2_icgan.instances import InstanceDataset
from stylegan2_icgan.models import Model, load_model
from stylegan2_icgan.store import default_folder, open_store
from torch_utils.command_line import Command, Ranges, UserError, Words, dataclass_options
from torch_utils.distributed import local_rank, rank, together, world_size
from torch_utils.files import Countdown, sha256
from torch_utils.images import ImageRefused, decode_image, make_square
from torch_utils.misc import keep_large_buffers, pick_device
from training.condition import Condition, Exemplars
from training.config import option
from training.dataset import Draws, ImageFolderDataset, LabelledSource
from training.image_source import ImageFile, open_source, shown
from training.labelling import decide_labels
from training.randomness import hashed, integers, seed_everything
from training.run_folder import snapshots_in
from training.sampling import sample_images, z_from_seeds
from training.workers import in_order

Say = Callable[[str], None]

DINOV2 = "timm:vit_small_patch14_reg4_dinov2.lvd142m@224"
CONDITIONS, NOISE, NOISE_END, BETWEEN = 71, 72, 73, 74  # streams of randomness
BATCH = 32  # images a call of the generator; detectors take multiples of it
READERS = 8  # threads that read a folder: more wait for a disk than compute


@dataclass(frozen=True)
class Options:
    """The flags that are one word each."""

    metrics: str = option("fid50k_full", "Names, separated by commas.", unit="NAMES")
    network: Path | None = option(None, "Snapshot, or the folder of a run: all of its snapshots.", unit="FILE")
    data: Path | None = option(
        None, "Reference: zip, folder or .npy.  [default: what the snapshot was trained on]", unit="ZIP"
    )
    fake: Path | None = option(None, "Measure these images or features; no network needed.", unit="ZIP")
    train_data: Path | None = option(None, "Training data, for fid_many, fid_medium, fid_few.", unit="ZIP")
    split: str | None = option(None, "What to call the reference in records: train, val, ...", unit="WORD")
    resize: int | None = option(None, "Bring images of any sizes to squares of this side.", unit="PIXELS")
    detector: str = option("inception", f"{', '.join(DETECTORS)}, dinov2 or timm:NAME.", unit="NAME")
    detector_weights: Path | None = option(None, "Local copy of the detector's weights.", unit="FILE")
    extractor_weights: Path | None = option(None, "Local weights of the model's extractor.", unit="FILE")
    filter: str = option("clean", "How images are resized for the detector.", choices=FILTERS)
    instances: str | None = option(
        None, "Where conditions come from.  [default: data, if it is there]", choices=("data", "exemplars")
    )
    sampling: str = option("instance", "What is drawn equally often.", choices=("instance", "class"))
    neighbours: int = option(50, "Neighbourhood of instance metrics.", unit="K")
    trunc: float = option(1.0, "Truncation psi.", unit="PSI")
    trunc_cutoff: int | None = option(None, "Truncate only the first N styles.", unit="N")
    noise_mode: str = option("const", "Noise of the synthesis network.", choices=("const", "random", "none"))
    cache: bool = option(True, "Keep what is known of references, by their content.")
    cache_dir: Path | None = option(None, "Where.  [default: in the user's cache folder]", unit="DIR")
    workers: int = option(2, "Processes that decode images.", unit="N")
    gpus: int = option(1, "Processes, by torchrun, one for each GPU.", unit="N")
    device: str = option("auto", "Where networks run.", choices=("auto", "cpu", "cuda", "mps"))
    out: Path | None = option(
        None, "Folder for metric-*.jsonl.  [default: the snapshot's; none for --fake]", unit="DIR"
    )
    json: bool = option(False, "Print records as lines of JSON.")
    plot: Path | None = option(None, "Draw metrics.svg of the records in this folder; nothing else.", unit="DIR")


@dataclass(frozen=True)
class Flags(Options):
    """The command line."""

    seeds: Sequence[int] = (0,)
    lpips_weights: Sequence[Path] = ()


# -- Sets of images ----------------------------------------------------------------------------------------------------


def decoded(files: Sequence[ImageFile], resize: int | None, channels: int, where: str, ids: np.ndarray) -> torch.Tensor:
    """uint8 [N, C, H, W] of some files."""
    images = []
    for i in ids:
        try:
            image = decode_image(files[int(i)].read())
            image = make_square(image, resize) if resize else image
        except ImageRefused as error:
            raise UserError(f"{where}: {shown(files[int(i)].name)}: {error}; remove or replace it") from None
        pixels = np.atleast_3d(np.asarray(image.convert("L" if channels == 1 else "RGB")))
        images.append(pixels.transpose(2, 0, 1))
    return torch.from_numpy(np.stack(images))


class FileImages(ImageSet):
    """The images of a folder or zip, of any kind and any one size.

    Args:
        resize: side to which they are brought, centre-cropped (Lanczos); None: all must have one size.
        flag: that named it, for errors.

    Raises:
        UserError: none there, one that can't be read, or sizes that differ.
    """

    def __init__(self, path: Path, resize: int | None, workers: int, flag: str) -> None:
        try:
            source = open_source(path)
        except UserError as error:
            raise UserError(str(error).replace("--source", flag, 1)) from None
        self.files, self.workers = source.files, workers
        with ThreadPoolExecutor(READERS) as readers:
            looks = list(readers.map(partial(self._look, f"{flag}={path}"), source.files))
        sizes = [size for _, size, _ in looks]
        odd = next((i for i, size in enumerate(sizes) if size != sizes[0]), None)
        if odd is not None and resize is None:
            names = [f"{shown(self.files[i].name)} is {'x'.join(map(str, sizes[i]))}" for i in (0, odd)]
            raise UserError(
                f"{flag}={path}: {', '.join(names)}; expected images of one size. Bring them to one: --resize=256"
            )
        self.channels = 1 if all(grey for _, _, grey in looks) else 3
        lines = (f"{crc:08x} {file.name}\n" for (crc, _, _), file in zip(looks, self.files, strict=True))
        width, height = (resize, resize) if resize else sizes[0]
        description = {
            "path": str(path),
            "content": hashlib.sha256("".join(lines).encode()).hexdigest(),
            "resolution": [height, width],
            "channels": self.channels,
            "resize": f"center-crop, lanczos, {resize}" if resize else None,
        }
        super().__init__(description, len(self.files))
        self.resolution = height, width
        self._decode = partial(decoded, self.files, resize, self.channels, f"{flag}={path}")
        labels = decide_labels(source, "auto").by_name
        self._labels = None if labels is None else np.array([labels[file.name] for file in self.files])
        self._attributes = source.attributes

    @staticmethod
    def _look(where: str, file: ImageFile) -> tuple[int, tuple[int, int], bool]:
        """CRC-32 of the file, width and height, whether it is grey: without decoding it."""
        try:
            data = file.read()
            with PIL.Image.open(io.BytesIO(data)) as image:
                return zlib.crc32(data), image.size, image.mode in ("L", "1", "I;16")
        except (OSError, ValueError) as error:  # ImageRefused among them
            raise UserError(f"{where}: {shown(file.name)} can't be read ({error}); remove or replace it") from None

    def batches(self, ids: Sequence[np.ndarray]) -> Iterator[torch.Tensor]:
        return in_order(self._decode, ids, self.workers)

    def classes(self, ids: np.ndarray) -> np.ndarray | None:
        return None if self._labels is None else self._labels[ids]

    def seen(self, ids: np.ndarray) -> np.ndarray | None:
        words = [self._attributes.get(self.files[int(i)].name, {}).get("combination") for i in ids]
        return None if None in words else np.array([word == "seen" for word in words])


class Generated(ImageSet):
    """What a generator makes of conditions and noise, which are functions of the seed and the number of an image.

    Args:
        model: the snapshot.
        conditions: draws conditions.
        flags: truncation and noise.
        per_condition: how many images in a row share a condition.
    """

    def __init__(self, model: Model, conditions: "Conditions", seed: int, flags: Flags, per_condition: int = 1) -> None:
        super().__init__({"path": str(model.path)}, None)
        self.model, self.conditions, self.seed, self.flags = model, conditions, seed, flags
        self.per_condition = per_condition

    def batches(self, ids: Sequence[np.ndarray]) -> Iterator[torch.Tensor]:
        return map(self._images, ids)

    def classes(self, ids: np.ndarray) -> np.ndarray | None:
        return self.conditions.classes(self._draws(ids))

    def instances(self, ids: np.ndarray) -> np.ndarray | None:
        return self.conditions.instances(self._draws(ids))

    def copies(self, count: int) -> "Generated":
        return Generated(self.model, self.conditions, self.seed, self.flags, count)

    def _draws(self, ids: np.ndarray) -> Draws:
        position = ids // self.per_condition
        index = integers(len(self.conditions), self.seed, CONDITIONS, position)
        return Draws(index, hashed(self.seed, CONDITIONS, position, 1))

    def _noise(self, ids: np.ndarray, stream: int) -> torch.Tensor:
        """float32 [N, z_dim]"""
        seeds = (hashed(self.seed, stream, ids) >> np.uint64(32)).tolist()
        return z_from_seeds(seeds, self.model.generator.z_dim)

    def _images(self, ids: np.ndarray) -> torch.Tensor:
        parts = []
        for some in np.split(ids, range(BATCH, len(ids), BATCH)):
            seed_everything(self.seed, int(some[0]))  # for --noise-mode=random
            images = sample_images(
                self.model.generator,
                self._noise(some, NOISE),
                self.conditions(self._draws(some)),
                truncation_psi=self.flags.trunc,
                truncation_cutoff=self.flags.trunc_cutoff,
                noise_mode=self.flags.noise_mode,
                batch=BATCH,
            )
            parts.append(images)
        return torch.cat(parts)

    @torch.no_grad()
    def path_pairs(self, ids: np.ndarray, space: str, full: bool, epsilon: float) -> tuple[torch.Tensor, torch.Tensor]:
        generator, device = self.model.generator, self.model.device
        cond = self.conditions(self._draws(ids)).to(device)
        ends = [self._noise(ids, stream).to(device) for stream in (NOISE, NOISE_END)]
        at = hashed(self.seed, BETWEEN, ids) / np.float64(2**64) if full else np.zeros(len(ids))
        t = torch.from_numpy(at).float().to(device).unsqueeze(1)
        w_of = partial(generator.mapping, c=cond.c, h=cond.h)
        if space == "z":
            w0, w1 = (w_of(slerp(*ends, place)) for place in (t, t + epsilon))
        else:
            start, end = (w_of(z) for z in ends)
            w0, w1 = (start.lerp(end, place.unsqueeze(2)) for place in (t, t + epsilon))
        images = generator.synthesis(torch.cat([w0, w1]), noise_mode="const", force_fp32=True)
        first, second = ((images.float() + 1) * 127.5).chunk(2)
        return first, second


# -- Conditions --------------------------------------------------------------------------------------------------------


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


def make_conditions(model: Model, flags: Flags, reference: FileImages | None, say: Say) -> Conditions:
    """Where conditions come from: the reference data (the default where the model has conditions), or exemplars."""
    shape = model.recipe.shape
    conditional = bool(shape.c_dim or shape.h_dim)
    where = flags.instances or ("data" if conditional and reference is not None else "exemplars")
    if where == "exemplars" or not conditional:
        if flags.sampling == "class":
            raise UserError(
                "--sampling=class draws from data; the model has no conditions, or --instances=exemplars is given"
            )
        return Conditions(model.exemplars)
    if flags.data is None or reference is None:
        raise UserError("--instances=data draws conditions from the reference, which is missing: --data=ZIP")
    dataset = ImageFolderDataset(flags.data, use_labels=shape.c_dim > 0)
    if dataset.c_dim != shape.c_dim:
        raise UserError(
            f"--data={flags.data} has {dataset.c_dim} classes, the model {shape.c_dim}; use --instances=exemplars"
        )
    same = [file.name for file in reference.files] == dataset.names
    if not shape.h_dim:
        return DataConditions(dataset, LabelledSource(dataset, flags.sampling), None, flags.sampling, same)
    folder = default_folder(dataset)
    if folder.is_dir():
        store = open_store(folder, dataset)
        state, expected = store.extractor_state, model.exemplars.extractor_state
        alike = set(state) == set(expected) and all(torch.equal(state[name], expected[name]) for name in expected)
        if store.manifest["extractor"] == model.exemplars.extractor and alike:
            trained = model.recipe.training_options.get("instances", {}).get("k", store.k)
            source = InstanceDataset(dataset, store, min(int(trained), store.k), sampling=flags.sampling)
            return DataConditions(dataset, source, None, flags.sampling, same)
    if flags.sampling == "class":
        raise UserError(
            f"--sampling=class needs the neighbours of {flags.data}; there are none made as the model's were"
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


# -- The script --------------------------------------------------------------------------------------------------------


def pick_detector(flags: Flags, device: torch.device, width: int | None) -> Detector:
    """The detector the flags name; for ready-made features, `width` wide, none."""
    if width is not None:
        return Identity(width)
    if flags.detector != "dinov2" and not flags.detector.startswith("timm:"):
        return make_detector(flags.detector, flags.detector_weights, flags.filter, device)
    if flags.filter != "clean":
        raise UserError(
            f"--filter={flags.filter}: --detector={flags.detector} brings its own resize; leave --filter out"
        )
    try:
        network = NetworkExtractor.make(
            DINOV2 if flags.detector == "dinov2" else flags.detector, flags.detector_weights, device
        )
    except UserError as error:
        raise UserError(str(error).replace("--extractor", "--detector")) from None
    preprocessing = network.preprocessing

    def preprocess(images: torch.Tensor) -> torch.Tensor:
        return preprocessing(with_channels(images.to(device), len(preprocessing.mean)))

    description = dict(network.description) | {"filter": preprocessing.interpolation}
    return NetworkDetector(network.network, preprocess, network.h_dim, network.batch, description)


def open_side(path: Path | None, flags: Flags, flag: str) -> FileImages | FeatureRows | None:
    """A folder, a zip, or a .npy of features.

    Raises:
        UserError: nothing that can be read, or features that are no finite rows.
    """
    if path is None:
        return None
    if path.suffix != ".npy":
        return FileImages(path, flags.resize, flags.workers, flag)
    try:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        there = "can't be read as a .npy file" if path.exists() else "does not exist"
        raise UserError(f"{flag}={path} {there}; expected floating-point rows [N, D]") from None
    if rows.ndim != 2 or rows.dtype.kind != "f" or not rows.size:
        raise UserError(f"{flag}={path} holds {rows.dtype} {list(rows.shape)}; expected floating-point rows [N, D]")
    for start in range(0, len(rows), 4096):
        bad = ~np.isfinite(rows[start : start + 4096]).all(axis=1)
        if bad.any():
            raise UserError(f"{flag}={path}: row {start + int(bad.argmax())} has NaN or infinity; mend or remove it")
    return FeatureRows(rows, {"path": str(path), "content": sha256(path), "width": rows.shape[1]})


def check_flags(flags: Flags) -> None:
    """Refuse what contradicts itself, before anything is read."""
    if (flags.network is None) == (flags.fake is None):
        raise UserError("give what is to be measured: --network=FILE, or --fake=FOLDER, ZIP or NPY; one of them")
    if flags.fake is not None and flags.data is None:
        raise UserError(
            f"--fake={flags.fake} is measured against a reference, which is missing: --data=FOLDER, ZIP or NPY"
        )
    if flags.fake is not None and (flags.instances or flags.sampling != "instance" or len(flags.seeds) > 1):
        raise UserError("--instances, --sampling and --seeds are for --network; --fake is a fixed set of images")
    if not np.isfinite(flags.trunc) or flags.neighbours < 1 or flags.workers < 0 or flags.gpus < 1:
        raise UserError("--trunc must be finite, --neighbours and --gpus at least 1, --workers at least 0")
    if flags.resize is not None and (flags.resize < 8 or flags.network is not None):
        raise UserError(f"--resize={flags.resize}: expected at least 8 pixels, and only with --fake")


def check_sides(real: ImageSet | None, fake: ImageSet, network: bool) -> None:
    """Refuse sets that can't be compared."""
    if real is None:
        return
    if isinstance(real, FeatureRows) != isinstance(fake, FeatureRows):
        raise UserError("one side is a .npy of features, the other images; expected two of a kind")
    for what in ("resolution", "width"):
        one, other = (side.description.get(what) for side in (real, fake))
        if one != other:
            remedy = "convert the reference" if network else "give --resize=PIXELS"
            raise UserError(f"the reference has {what} {one}, what is measured {other}; expected the same ({remedy})")


@dataclass(frozen=True)
class Job:
    """One thing to measure: a snapshot or a set of images."""

    flags: Flags
    real: FileImages | FeatureRows | None
    training: FileImages | None
    device: torch.device

    def say(self, line: str) -> None:
        if rank() == 0:
            click.echo(line, err=True)

    @cached_property
    def lpips(self) -> Lpips:
        return Lpips.load(self.flags.lpips_weights, self.device)

    @cached_property
    def detector(self) -> Detector:
        width = self.real.description["width"] if isinstance(self.real, FeatureRows) else None
        return pick_detector(self.flags, self.device, width)

    @cached_property
    def known(self) -> ReferenceCache:
        folder = self.flags.cache_dir or default_cache_folder()
        return ReferenceCache(folder if self.flags.cache else None)

    def sides(self, fake: ImageSet) -> Sides:
        return Sides(
            self.real,
            fake,
            self.detector,
            self.training,
            lambda: self.lpips,
            self.known,
            self.flags.neighbours,
            self.device,
            self.say,
        )

    def measure(self, metrics: Sequence[Metric], snapshot: Path | None) -> list[dict[str, Any]]:
        """A record for each metric."""
        fakes, about = self._fakes(snapshot)
        check_sides(self.real, fakes[0], snapshot is not None)
        for metric in metrics:
            check(metric, self.sides(fakes[0]))
        if any(metric.kind in ("ppl", "lpips_instance") for metric in metrics):
            about["lpips"] = self.lpips.description
        reference = self._reference(about.pop("trained_on", None))
        about = {"reference": reference, "detector": self.detector.description} | about
        outcomes: list[list[Outcome]] = [[] for _ in metrics]
        seconds = [0.0] * len(metrics)
        for fake in fakes:  # one after the other: features of one draw fill the memory at a time
            evaluation = Evaluation(metrics, self.sides(fake))
            for number, metric in enumerate(metrics):
                start = time.monotonic()
                outcomes[number].append(compute(evaluation, metric))
                seconds[number] += time.monotonic() - start
        return [
            record(metric, of_each, self.flags.seeds, about | {"seconds": round(spent, 3)})
            for metric, of_each, spent in zip(metrics, outcomes, seconds, strict=True)
        ]

    def _fakes(self, snapshot: Path | None) -> tuple[list[ImageSet], dict[str, Any]]:
        """What is measured, once per seed, and what the record says of it."""
        if snapshot is None:
            fake = open_side(self.flags.fake, self.flags, "--fake")
            assert fake is not None
            return [fake], {"fake": fake.description, "num_gpus": world_size()}
        model = load_model(snapshot, self.device)
        reference = self.real if isinstance(self.real, FileImages) else None
        conditions = make_conditions(model, self.flags, reference, self.say)
        fakes = [Generated(model, conditions, seed, self.flags) for seed in self.flags.seeds]
        shape = model.recipe.shape
        for fake in fakes:
            fake.description["resolution"] = [shape.img_resolution, shape.img_resolution]
        about = {
            "snapshot_pkl": snapshot.name,
            "snapshot_sha256": sha256(snapshot),
            "kimg": model.snapshot.cur_nimg / 1000,
            "truncation": {"psi": self.flags.trunc, "cutoff": self.flags.trunc_cutoff},
            "noise_mode": self.flags.noise_mode,
            "sampling": conditions.policy,
            "fake": {"resolution": shape.img_resolution, "quantisation": "rounded to uint8"},
            "num_gpus": world_size(),
            "trained_on": model.recipe.training_options.get("dataset", {}).get("fingerprint"),
        }
        return list(fakes), about

    def _reference(self, trained_on: str | None) -> dict[str, Any] | None:
        """What the record says of the reference; data equal to what the snapshot was trained on is the train split."""
        if self.real is None:
            return None
        known = trained_on is not None and self.real.description["content"] == trained_on
        split = self.flags.split or ("train" if known else None)
        return self.real.description | {"num": self.real.num, "split": split, "mirrored": False}


def trained_on(snapshot: Path) -> Path | None:
    """The data a snapshot was trained on, if it is where it was."""
    data = load_model(snapshot, torch.device("cpu")).recipe.training_options.get("data", {}).get("data")
    return Path(data) if data and Path(data).exists() else None


def run(flags: Flags) -> None:
    metrics = parse_metrics(flags.metrics)
    check_flags(flags)
    snapshots: list[Path] = []
    if flags.network is not None:
        snapshots = snapshots_in(flags.network) if flags.network.is_dir() else [flags.network]
        if not snapshots:
            raise UserError(
                f"--network={flags.network} is a folder without snapshots; expected a file or the folder of a run"
            )
        there = trained_on(snapshots[0])
        if flags.data is None and there is None and any("real" in metric.needs for metric in metrics):
            raise UserError(
                f"--network={snapshots[0]}: its training data is not here; name a reference with --data=ZIP"
            )
        flags = dataclasses.replace(flags, data=flags.data or there, train_data=flags.train_data or there)
    device = pick_device(flags.device)
    if device.type == "cuda":
        if local_rank() >= torch.cuda.device_count():
            raise UserError(f"--gpus={world_size()}: there are {torch.cuda.device_count()} GPUs here")
        device = torch.device("cuda", local_rank())
    real = open_side(flags.data, flags, "--data")
    training = None
    if any("training" in metric.needs for metric in metrics):
        opened = real if flags.train_data == flags.data else open_side(flags.train_data, flags, "--train-data")
        training = opened if isinstance(opened, FileImages) else None
    job = Job(flags, real, training, device)
    for snapshot in snapshots or [None]:
        records = job.measure(metrics, snapshot)
        if rank():
            continue
        out = flags.out or (snapshot.parent if snapshot is not None else None)
        for line in records:
            if out is not None:
                append_line(out / f"metric-{line['metric']}.jsonl", line)
            click.echo(json.dumps(line) if flags.json else table_rows(line, snapshot))


def table_rows(line: dict[str, Any], snapshot: Path | None) -> str:
    """Lines for a person: value, error, counts."""
    rows = []
    for name, value in line["results"].items():
        error = line["standard_error"].get(name)
        spread = "" if error is None else f" ± {error:.3g}" if isinstance(error, float) else f" ± {error}"
        shown_value = f"{value:.5g}" if isinstance(value, float) else str(value)
        counts = f"{line['num_real']:,} real, {line['num_fake']:,} generated, {line['detector']['name']}"
        rows.append(f"{name:<32}{shown_value:>12}{spread:<12}  {counts}{f', {snapshot.name}' if snapshot else ''}")
    return "\n".join(rows + [f"  note: {note}" for note in line["notes"]])


def spawn(gpus: int) -> int:
    """The same command by one process for each GPU, under torchrun; its exit code."""
    words = [word for word in sys.argv[1:] if not word.startswith("--gpus=")]
    if "--gpus" in words:
        del words[words.index("--gpus") : words.index("--gpus") + 2]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={gpus}"]
    return subprocess.run([*launcher, str(Path(__file__).resolve()), *words], check=False).returncode


@click.command(cls=Command, help=__doc__)
@click.option("--seeds", type=Ranges(), default="0", show_default=True, help="Repeats; several give an interval.")
@click.option("--lpips-weights", cls=Words, type=Path, help="Local VGG16 and LPIPS heads.", metavar="FILE ...")
@dataclass_options(Options)
def main(**given: Any) -> int:
    flags = Flags(**{name: value for name, value in given.items() if value is not None})
    if flags.plot is not None:
        click.echo(f"{plot_curves(flags.plot)} drawn")
        return 0
    if flags.gpus > 1 and world_size() == 1:
        parse_metrics(flags.metrics)
        check_flags(flags)
        return spawn(flags.gpus)
    keep_large_buffers()
    with together():
        run(flags)
    return 0


if __name__ == "__main__":
    sys.exit(main())
