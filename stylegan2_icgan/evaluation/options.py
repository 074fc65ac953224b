# ruff: noqa: RUF009 - option() makes a field of a dataclass, as dataclasses.field does
"""The flags of calc_metrics.py."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from metrics.detectors import DETECTORS
from metrics.resizing import FILTERS
from training.config import option
from training.networks.conditional_norm import BATCH_NORM_MODES, STANDING_PASSES

MOST_DECODERS = 8  # of a process with a GPU

Say = Callable[[str], None]


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
    resize: int | None = option(None, "Bring images of any sizes to squares of this side.", unit="PIXELS", low=8)
    detector: str = option("inception", f"{', '.join(DETECTORS)}, dinov2 or timm:NAME.", unit="NAME")
    detector_weights: Path | None = option(None, "Local copy of the detector's weights.", unit="FILE")
    extractor_weights: Path | None = option(None, "Local weights of the model's extractor.", unit="FILE")
    filter: str = option("clean", "How images are resized for the detector.", choices=FILTERS)
    instances: str | None = option(
        None, "Where conditions come from.  [default: data, if it is there]", choices=("data", "exemplars")
    )
    sampling: str = option("instance", "What is drawn equally often.", choices=("instance", "class"))
    neighbours: int = option(50, "Neighbourhood of instance metrics.", unit="K", low=1)
    trunc: float = option(1.0, "Truncation psi.", unit="PSI")
    trunc_cutoff: int | None = option(None, "Truncate only the first N styles.", unit="N")
    noise_mode: str = option("const", "Noise of the synthesis network.", choices=("const", "random", "none"))
    bn_mode: str = option(
        "running",
        "By what a generator with batch norm normalises: statistics of training; standing ones, over "
        f"{STANDING_PASSES} batches with the weights as they are; each batch by itself.",
        choices=BATCH_NORM_MODES,
    )
    batch: int = option(32, "Images a call of the generator; changes last bits.", unit="N", low=1)
    cache: bool = option(True, "Keep what is known of references, by their content.")
    cache_dir: Path | None = option(None, "Where.  [default: in the user's cache folder]", unit="DIR")
    workers: int | None = option(
        None,
        f"Processes that decode images.  [default: 2; with a GPU as many as there are cores, at most {MOST_DECODERS}]",
        unit="N",
        low=0,
    )
    gpus: int = option(1, "Processes, by torchrun, one for each GPU.", unit="N", low=1)
    device: str = option("auto", "Where networks run.", choices=("auto", "cpu", "cuda", "mps"))
    out: Path | None = option(
        None, "Folder for metric-*.jsonl.  [default: the snapshot's; none for --fake]", unit="DIR"
    )
    json: bool = option(False, "Print records as lines of JSON.")
    plot: Path | None = option(None, "Draw metrics.png of the records in this folder; nothing else.", unit="DIR")


@dataclass(frozen=True)
class Flags(Options):
    """The command line."""

    seeds: Sequence[int] = (0,)
    lpips_weights: Sequence[Path] = ()

    @property
    def decoders(self) -> int:
        """Processes that decode: a GPU sees more images than two can decode."""
        if self.workers is not None:
            return self.workers
        on_gpu = self.device in ("auto", "cuda") and torch.cuda.is_available()
        return min(max((os.cpu_count() or 1) // self.gpus, 2), MOST_DECODERS) if on_gpu else 2
