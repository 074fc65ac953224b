"""Where an instance store grows, step by step, until it is whole and gets its name."""

import contextlib
import glob
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.torch
import torch

from stylegan2_icgan import neighbour_graph
from stylegan2_icgan.extraction import FeatureJob, copy_features, merge_features
from stylegan2_icgan.extractors.given_features import FeatureFile, identity
from stylegan2_icgan.features import default_extractor, fit_extractor
from stylegan2_icgan.neighbour_graph import NeighbourJob, index_digest, merge_neighbours
from stylegan2_icgan.neighbours import choose_method, estimate_sec, make_search, measure_recall, measure_speed
from stylegan2_icgan.shards import Engine, run_job
from stylegan2_icgan.store import (
    EXTRACTOR_STATE,
    FEATURES,
    FORMAT,
    MANIFEST,
    MIRROR,
    NEIGHBOURS,
    RADII,
    InstanceStore,
    read_extractor_state,
    write_files,
)
from torch_utils import distributed
from torch_utils.files import array_checksum, atomic_write, format_time, replace_folder, sha256
from training.dataset import ImageFolderDataset

if TYPE_CHECKING:
    from stylegan2_icgan.making import StoreOptions

PLAN, GRAPH = "plan.json", "graph.json"  # what was decided about features, and about neighbours
FEATURE_SHARDS, GRAPH_SHARDS, INDEX = "features.shards", "neighbours.shards", "index"
RECALL_SAMPLE, RECALL_SEED = 1000, 1  # instances, others than those an index is tuned on


@dataclass(frozen=True)
class Workshop:
    """The folder beside a store's place where it is made: `.NAME.making`.

    `plan.json` and `graph.json` say what was decided; shards made under another decision are thrown away. Under
    torchrun every process goes through `work`; the first one prepares and finishes each step.
    """

    dataset: ImageFolderDataset
    folder: Path  # of the store
    options: "StoreOptions"
    device: torch.device
    say: Callable[[str], None]
    engine: Engine
    shard_rows: int

    @property
    def place(self) -> Path:
        return self.folder.with_name(f".{self.folder.name}.making")

    def prepare(self, store: InstanceStore | None) -> None:
        """Decide how features are made; keep of earlier work what was decided alike.

        Args:
            store: one whose features serve, but whose neighbours do not.
        """
        request = {
            "format": FORMAT,
            "fingerprint": self.dataset.fingerprint(),
            "extractor": self.options.extractor,
            "weights": _hash(self.options.extractor_weights),
            "given": identity(Path(self.options.instance_feats)) if self.options.instance_feats else None,
            "dtype": self.options.feature_dtype,
            "adopted": store.manifest["checksums"][FEATURES] if store else None,
        }
        k = max(self.options.k, store.k if store else 0)  # what is there is not lost
        plan = _read(self.place / PLAN)
        if plan is not None and plan["request"] == request:
            _write(self.place / PLAN, plan | {"k": k})
            return
        if plan is not None:
            self.say(f"{self.place.name} was begun with other data or another extractor; it is thrown away")
        shutil.rmtree(self.place, ignore_errors=True)
        self.place.mkdir()
        decided = self._adopt(store) if store else self._choose_extractor()
        _write(self.place / PLAN, {"request": request, "k": k, "rows": self.shard_rows} | decided)

    def work(self) -> None:
        """Make what the plan says; nothing when there is none."""
        plan = _read(self.place / PLAN)
        if plan is None:
            return
        if not plan["checksums"]:
            self._make_features(plan)
        distributed.barrier()
        if distributed.rank() == 0:
            self._plan_graph()
        distributed.barrier()
        self._make_graph()
        distributed.barrier()
        if distributed.rank() == 0:
            self._finish()
        distributed.barrier()

    # -- features -----------------------------------------------------------------------------------------------------

    def _adopt(self, store: InstanceStore) -> dict[str, Any]:
        """Take the features of a store that lacks neighbours.

        Raises:
            UserError: features that are damaged.
        """
        found = store.manifest["neighbours"]["method"]
        self.say(
            f"{store.folder.name} has the features, and {store.k} neighbours by {found}; asked for are "
            f"{self.options.k} by {self.options.neighbours}"
        )
        store.verify()
        for name in (FEATURES, MIRROR, EXTRACTOR_STATE):
            if (store.folder / name).exists():
                _link(store.folder / name, self.place / name)
        checksums = {name: value for name, value in store.manifest["checksums"].items() if name in (FEATURES, MIRROR)}
        return {"extractor": store.manifest["extractor"], "checksums": checksums}

    def _choose_extractor(self) -> dict[str, Any]:
        """Fit, load or open what features come from."""
        if self.options.instance_feats:
            given = FeatureFile.open(Path(self.options.instance_feats), self.dataset, flag="--instance-feats")
            self.say(f"features of {len(self.dataset):,} images from {self.options.instance_feats}")
            return {
                "extractor": given.description,
                "checksums": copy_features(given, self.place, self.options.feature_dtype or "float32"),
            }
        name, weights = self.options.extractor, self.options.extractor_weights
        if name is None:
            name, reason = default_extractor(self.dataset)
            self.say(f"extractor {name}: {reason}")
        extractor = fit_extractor(name, self.dataset, Path(weights) if weights else None, self.device)
        state = {key: tensor.cpu().contiguous() for key, tensor in extractor.state.items()}
        if state:
            with atomic_write(self.place / EXTRACTOR_STATE) as file:
                file.write(safetensors.torch.save(state))
        return {"extractor": extractor.description | {"images": self.dataset.conversion}, "checksums": {}}

    def _make_features(self, plan: dict[str, Any]) -> None:
        description = plan["extractor"]
        self.say(f"features of {len(self.dataset):,} images by {description['name']}, {description['h_dim']} wide")
        weights = Path(self.options.extractor_weights) if self.options.extractor_weights else None
        made_with = description, read_extractor_state(self.place), weights
        folder = self.place / FEATURE_SHARDS
        job = FeatureJob(
            self.dataset, folder, plan["rows"], self.options.feature_dtype or "float32", made_with, self.device
        )
        run_job(job, self.engine, "features", self.say)
        if distributed.rank() == 0:
            files = [self.place / FEATURES, self.place / MIRROR]
            checksums = merge_features(job, files, description["h_dim"], self.say)
            _write(self.place / PLAN, plan | {"checksums": checksums})
            shutil.rmtree(folder)

    # -- neighbours ---------------------------------------------------------------------------------------------------

    def _plan_graph(self) -> None:
        """Decide how neighbours are found, say how long it takes, and make the index of that method."""
        features, plan = np.load(self.place / FEATURES, mmap_mode="r"), _read(self.place / PLAN)
        assert plan is not None
        o = self.options
        k = plan["k"]
        asked = {"k": k, "asked": o.neighbours, "features": plan["checksums"][FEATURES]}
        graph = _read(self.place / GRAPH)
        if graph is None or any(graph[name] != value for name, value in asked.items()):
            for name in (INDEX, GRAPH_SHARDS):
                shutil.rmtree(self.place / name, ignore_errors=True)
            graph = asked | {"rows": neighbour_graph.QUERIES * self.shard_rows}
            _write(self.place / GRAPH, graph)
        size, speed, processes = features.shape, measure_speed(self.device), distributed.world_size()
        method, reason = choose_method(o.neighbours, *size, k, self.device, speed, processes)
        seconds = estimate_sec(method, *size, k, self.device, speed, processes=processes)
        self.say(f"{k} nearest neighbours of {len(features):,} instances, about {format_time(seconds)} ({reason})")
        index = self.place / INDEX
        search = make_search(features, k, o.neighbours, self.device, index, speed=speed, processes=processes)
        if search.description["method"] != method:
            self.say(f"neighbours: {search.description['reason']}")
        digest = index_digest(index)
        if graph.get("index") != digest:  # shards of another index hold other rows
            shutil.rmtree(self.place / GRAPH_SHARDS, ignore_errors=True)
            _write(self.place / GRAPH, graph | {"index": digest})

    def _make_graph(self) -> None:
        """Neighbours of every instance, and how many of the true ones are among them."""
        graph = _read(self.place / GRAPH)
        assert graph is not None
        job = NeighbourJob(
            self.place / FEATURES,
            graph["k"],
            graph["asked"],
            self.device,
            self.place / INDEX,
            self.place / GRAPH_SHARDS,
            graph["rows"],
            graph["index"],
        )
        run_job(job, self.engine, "neighbours", self.say)
        if distributed.rank() == 0:
            merge_neighbours(job, self.place, self.say)
            exact = job.search.description["method"] == "exact"
            features = np.load(self.place / FEATURES, mmap_mode="r")
            recall = 1.0 if exact else measure_recall(job.search, features, graph["k"], RECALL_SAMPLE, RECALL_SEED)
            sample = None if exact else min(RECALL_SAMPLE, len(features))
            found = job.search.description | {"recall": recall, "recall_sample": sample}
            _write(self.place / GRAPH, graph | {"found": found})

    # -- the end ------------------------------------------------------------------------------------------------------

    def _finish(self) -> None:
        """Write the manifest and give the store its name; the tools go last, so that a kill loses nothing."""
        plan, graph, place = _read(self.place / PLAN), _read(self.place / GRAPH), self.place
        assert plan is not None
        assert graph is not None
        arrays = {name: np.load(place / name, mmap_mode="r") for name in (FEATURES, NEIGHBOURS, RADII)}
        write_files(place, self.dataset)
        manifest = {
            "format": FORMAT,
            "dataset": self.dataset.path.name,
            "num_images": len(self.dataset),
            "extractor": plan["extractor"],
            "dtype": str(arrays[FEATURES].dtype),
            "k": graph["k"],
            "self_excluded": True,
            "metric": "cosine similarity; radii are Euclidean distances of unit vectors",
            "neighbours": graph["found"],
            "checksums": plan["checksums"] | {name: array_checksum(arrays[name]) for name in (NEIGHBOURS, RADII)},
            "torch": torch.__version__,
        }
        _write(place / MANIFEST, manifest)
        replace_folder(place, self.folder)
        tidy(self.folder)


def tidy(folder: Path) -> None:
    """Remove the tools from a store that is whole, if a kill has left them there and they can be removed."""
    if (folder / PLAN).exists():
        for name in (FEATURE_SHARDS, GRAPH_SHARDS, INDEX):
            shutil.rmtree(folder / name, ignore_errors=True)
        with contextlib.suppress(OSError):
            for name in (GRAPH, PLAN):
                (folder / name).unlink(missing_ok=True)


def recover(folder: Path) -> None:
    """Finish what a kill interrupted while a store that was whole got its name."""
    place = folder.with_name(f".{folder.name}.making")
    if (place / MANIFEST).exists():
        replace_folder(place, folder)
    for retired in folder.parent.glob(f".{glob.escape(folder.name)}.*.old"):
        shutil.rmtree(retired, ignore_errors=True)


def _hash(path: str | None) -> str | None:
    return sha256(path) if path and Path(path).is_file() else path


def _read(file: Path) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _write(file: Path, content: dict[str, Any]) -> None:
    with atomic_write(file) as stream:
        stream.write((json.dumps(content, indent=2) + "\n").encode())


def _link(source: Path, dest: Path) -> None:
    """The same file under a second name, or a copy where that can't be."""
    try:
        os.link(source, dest)
    except OSError:
        shutil.copyfile(source, dest)
