"""One measurement: two sides, a detector, and the line that is written of them."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from metrics.compute import compute
from metrics.detectors import Detector, Identity, NetworkDetector, make_detector
from metrics.evaluation import Evaluation, Outcome, Sides, check
from metrics.image_sets import FeatureRows, ImageSet
from metrics.lpips import Lpips
from metrics.metric_names import Metric
from metrics.records import record
from metrics.reference_cache import ReferenceCache, default_cache_folder
from metrics.resizing import seen_at
from stylegan2_icgan.evaluation.conditions import make_conditions
from stylegan2_icgan.evaluation.generated import Generated, Promised
from stylegan2_icgan.evaluation.images import DatasetImages, FileImages, RealImages
from stylegan2_icgan.evaluation.options import Flags
from stylegan2_icgan.extractors.extractor import PCA, with_channels
from stylegan2_icgan.extractors.networks import NetworkExtractor
from stylegan2_icgan.features import canonical_name
from stylegan2_icgan.models import Model, load_model
from torch_utils.command_line import UserError
from torch_utils.distributed import rank, world_size
from torch_utils.files import sha256
from training.checkpoint import Recipe
from training.config import check_bounds
from training.dataset import ImageFolderDataset

OF_GENERATORS = (
    "instances", "sampling", "seeds", "trunc", "trunc_cutoff", "noise_mode", "bn_mode", "batch", "extractor_weights",
)  # fmt: skip
OF_IMAGES = ("detector", "detector_weights", "filter", "resize")
LPIPS_KINDS = ("ppl", "lpips_instance")


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
        network = NetworkExtractor.make(canonical_name(flags.detector), flags.detector_weights, device)
    except UserError as error:
        raise UserError(str(error).replace(f", {PCA}", "").replace("--extractor", "--detector")) from None
    preprocessing = network.preprocessing

    def preprocess(images: torch.Tensor) -> torch.Tensor:
        return preprocessing(with_channels(images.to(device), len(preprocessing.mean)))

    description = dict(network.description) | seen_at(preprocessing.size[0], preprocessing.interpolation)
    return NetworkDetector(network.network, preprocess, network.h_dim, network.batch, description)


def open_side(path: Path | None, flags: Flags, flag: str) -> FileImages | FeatureRows | None:
    """A folder, a zip, or a .npy of features.

    Raises:
        UserError: nothing that can be read, or features that are no finite rows.
    """
    if path is None:
        return None
    if path.suffix != ".npy":
        return FileImages(path, flags.resize, flags.decoders, flag)
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
    if flags.fake is not None:
        _refuse_given(flags, OF_GENERATORS, "is for --network; --fake is a fixed set of images")
    if all(path is not None and path.suffix == ".npy" for path in (flags.data, flags.fake)):
        _refuse_given(flags, OF_IMAGES, "is for images; --data and --fake are ready-made features")
    check_bounds(flags)
    if flags.resize is not None and flags.network is not None:
        raise UserError(f"--resize={flags.resize} is for --fake; images of --network have the size of its data")


def _refuse_given(flags: Flags, names: Sequence[str], why: str) -> None:
    for name in names:
        if getattr(flags, name) != getattr(Flags, name):
            raise UserError(f"--{name.replace('_', '-')} {why}")


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
            remedy = "features of one detector" if what == "width" else remedy
            raise UserError(f"the reference has {what} {one}, what is measured {other}; expected the same ({remedy})")


@dataclass(frozen=True)
class Job:
    """One thing to measure: a snapshot or a set of images."""

    flags: Flags
    real: RealImages | FeatureRows | None
    training: RealImages | None
    device: torch.device
    quiet: bool = False

    def say(self, line: str) -> None:
        if rank() == 0 and not self.quiet:
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

    def check(self, metrics: Sequence[Metric], fake: ImageSet, network: bool) -> None:
        """Refuse what can't be measured, before anything is extracted; detectors are made.

        Args:
            fake: what will be measured, or `Promised`.
            network: whether a generator makes it.

        Raises:
            UserError: the first thing that is missing.
        """
        check_sides(self.real, fake, network)
        for metric in metrics:
            check(metric, self.sides(fake))
        if any(metric.kind in LPIPS_KINDS for metric in metrics):
            _ = self.lpips

    def promise(self, recipe: Recipe, has_w: bool) -> Promised:
        """The images of snapshots with this recipe; `has_w`: whether the generator maps z to w."""
        return Promised(recipe, self.flags, self.real if isinstance(self.real, RealImages) else None, has_w)

    def measure(self, metrics: Sequence[Metric], snapshot: Path | Model | None) -> list[dict[str, Any]]:
        """A record for each metric; None measures what --fake names.

        Raises:
            UserError: what can't be measured here, before anything is extracted.
        """
        fakes: list[ImageSet]
        about: dict[str, Any]
        if snapshot is None:
            fakes = [self.given()]
            about = {"fake": fakes[0].description, "num_gpus": world_size()}
        else:
            model = snapshot if isinstance(snapshot, Model) else load_model(snapshot, self.device)
            self.check(metrics, self.promise(model.recipe, bool(model.generator.w_dim)), network=True)
            fakes, about = self._generated(model)
        self.check(metrics, fakes[0], network=snapshot is not None)
        if any(metric.kind in LPIPS_KINDS for metric in metrics):
            about["lpips"] = self.lpips.description
        reference, notes = self._reference(about.pop("training_options", {}))
        about = {"reference": reference, "detector": self.detector.description} | about
        outcomes: list[list[Outcome]] = [[] for _ in metrics]
        seconds = [0.0] * len(metrics)
        with ExitStack() as stack:
            if isinstance(fakes[0], Generated):
                about["batch_norm"] = stack.enter_context(fakes[0].normalised())
            for fake in fakes:  # one after the other: features of one draw fill the memory at a time
                evaluation = Evaluation(metrics, self.sides(fake))
                for number, metric in enumerate(metrics):
                    start = time.monotonic()
                    outcomes[number].append(compute(evaluation, metric))
                    seconds[number] += time.monotonic() - start
        for of_each in outcomes:
            of_each[0].notes += notes
        return [
            record(metric, of_each, self.flags.seeds, about | {"seconds": round(spent, 3)})
            for metric, of_each, spent in zip(metrics, outcomes, seconds, strict=True)
        ]

    def given(self) -> ImageSet:
        """What --fake names."""
        fake = open_side(self.flags.fake, self.flags, "--fake")
        assert fake is not None
        return fake

    def _generated(self, model: Model) -> tuple[list[ImageSet], dict[str, Any]]:
        """What is measured, once per seed, and what the record says of it."""
        reference = self.real if isinstance(self.real, RealImages) else None
        conditions = make_conditions(model, self.flags, reference, self.say)
        fakes = [Generated(model, conditions, seed, self.flags) for seed in self.flags.seeds]
        about = {
            "snapshot_pkl": model.path.name,
            "snapshot_sha256": sha256(model.path) if model.path.is_file() else None,
            "kimg": model.snapshot.cur_nimg / 1000,
            "truncation": {"psi": self.flags.trunc, "cutoff": self.flags.trunc_cutoff},
            "noise_mode": self.flags.noise_mode,
            "sampling": conditions.policy,
            "fake": {
                "resolution": model.recipe.shape.img_resolution,
                "quantisation": "rounded to uint8",
                "batch": self.flags.batch,
            },
            "num_gpus": world_size(),
            "training_options": model.recipe.training_options,
        }
        return list(fakes), about

    def _reference(self, options: dict[str, Any]) -> tuple[dict[str, Any] | None, list[str]]:
        """What the record says of the reference, and notes; data equal to what was trained on is the train split.

        Args:
            options: of the training; {} where there was none.
        """
        if self.real is None:
            return None, []
        known = options.get("dataset", {}).get("fingerprint") == self.real.description["content"]
        split = self.flags.split or ("train" if known else None)
        notes, trained = [], options.get("data", {})
        if isinstance(self.real, DatasetImages) and not known:
            notes.append("the data has changed since the snapshot was trained on it")
        elif not known and trained.get("subset") and trained.get("data") == self.real.description["path"]:
            notes.append(f"trained on {trained['subset']} of these images; without --data these are the reference")
        return self.real.description | {"num": self.real.num, "split": split, "mirrored": False}, notes


def training_data(recipe: Recipe) -> ImageFolderDataset | None:
    """What a snapshot was trained on, a subset where it was one, if it is where it was."""
    options = recipe.training_options
    data = options.get("data", {})
    if not data.get("data") or not Path(data["data"]).exists():
        return None
    return ImageFolderDataset(
        data["data"], max_images=data.get("subset"), subset_seed=options.get("loop", {}).get("seed", 0)
    )
