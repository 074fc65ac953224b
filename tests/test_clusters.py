"""Clusters of discriminator features as labels, alone and through the commands."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed
from conftest import TINY_RUN, Refused, invoke, pattern_images, write_zip

import generate
import train
from stylegan2_icgan.clusters import Clusters, ClusterSource, cluster, matching, means
from stylegan2_icgan.networks import Discriminator
from training.checkpoint import load_snapshot, read_state
from training.dataset import Draws, ImageFolderDataset
from training.loading import fake_draws, real_draws
from training.networks import biggan
from training.randomness import hashed, seed_everything

CPU = torch.device("cpu")


def blobs(sizes: list[int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Points about (10, 0), (20, 0), ... and which of them each is about."""
    which = np.repeat(np.arange(len(sizes)), sizes)
    noise = np.random.default_rng(seed).normal(size=(len(which), 2))
    return (np.stack([10.0 * which + 10, 0 * which], axis=1) + noise).astype(np.float32), which


class Points:
    """Rows that are their own images."""

    def __init__(self, points: np.ndarray) -> None:
        self.points = torch.from_numpy(points)

    def __len__(self) -> int:
        return len(self.points)

    def images(self, indices: np.ndarray) -> torch.Tensor:
        return self.points[torch.from_numpy(indices)]


class Looks(torch.nn.Module):
    """A discriminator whose features are what it is shown, times a parameter; its statistics count calls."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))
        self.norm = torch.nn.BatchNorm1d(2)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        self.norm(x)
        return x * self.scale


def test_the_matching_undoes_a_permutation_of_the_labels() -> None:
    old = np.random.default_rng(0).integers(0, 7, 500)
    permuted = np.array([3, 6, 0, 5, 1, 4, 2])
    assert (matching(permuted[old], old, 7)[permuted[old]] == old).all()


def test_the_matching_changes_as_few_labels_as_any_permutation_can() -> None:
    # A greedy match of the largest overlap (5 of 0 with 0) would leave 0 of 1 with 1: 5 kept, where 4 + 4 can be.
    old = np.repeat([0, 1, 0, 1], [5, 4, 4, 0])
    new = np.repeat([0, 0, 1, 1], [5, 4, 4, 0])
    assert matching(new, old, 2).tolist() == [1, 0]


def test_labels_stay_when_features_move_and_when_clusters_are_found_in_another_order() -> None:
    points, which = blobs([30, 30, 30, 30])
    before = cluster(points, 4, None, seed=1, device=CPU)
    assert all(len(set(before.labels[which == blob])) == 1 for blob in range(4))
    moved = cluster(points @ np.array([[0, 3], [-3, 0]], dtype=np.float32), 4, before.labels, seed=1, device=CPU)
    assert (moved.labels == before.labels).all()
    assert not np.allclose(moved.centres, before.centres)
    for label in range(4):
        mine = points[before.labels == label]
        assert np.allclose(before.centres[label], mine.mean(axis=0), atol=1e-4)
        nearest = np.square(mine - mine.mean(axis=0)).sum(axis=1).argmin()
        assert before.central[label] == np.flatnonzero(before.labels == label)[nearest]


def test_a_starved_cluster_begins_at_a_point_and_finds_members() -> None:
    points, which = blobs([40, 40, 40])
    old = np.where(which == 2, 1, which)  # nobody has label 2
    begin = means(torch.from_numpy(points), torch.from_numpy(old), 3, seed=4)
    assert (torch.from_numpy(points) == begin[2]).all(dim=1).any()
    assert torch.allclose(begin[0], torch.from_numpy(points[:40].mean(axis=0)), atol=1e-4)
    found = cluster(points, 3, old, seed=4, device=CPU)
    assert np.bincount(found.labels, minlength=3).min() > 0
    assert (found.labels[which == 0] == 0).all()


def test_more_clusters_than_different_points_leave_some_empty() -> None:
    found = cluster(np.repeat(np.eye(3, dtype=np.float32), 5, axis=0), 6, None, seed=0, device=CPU)
    sizes = np.bincount(found.labels, minlength=6)
    assert sorted(sizes[sizes > 0]) == [5, 5, 5]
    assert (found.central[sizes == 0] == -1).all()
    assert (sizes[found.labels[found.central[found.central >= 0]]] == 5).all()


def test_every_image_gets_the_label_of_the_nearest_mean_and_the_discriminator_is_left_alone() -> None:
    points, which = blobs([100, 200, 300])
    clusters, D = Clusters(Points(points), 3, interval=4, sample_size=90, seed=0), Looks().train()
    assert len(clusters.sample) == 90
    assert clusters.refresh(0, D)
    assert all(len(set(clusters.labels[which == blob])) == 1 for blob in range(3))
    assert sorted(clusters.shares) == pytest.approx([1 / 6, 2 / 6, 3 / 6])
    assert D.training
    assert D.norm.training
    assert D.norm.num_batches_tracked == 0
    labels = clusters.labels
    assert [clusters.refresh(step, D) for step in (0, 1, 3, 4, 4, 6, 8)] == [False] * 3 + [True, False, False, True]
    assert (clusters.labels == labels).all()


@pytest.mark.parametrize("system", ["stylegan2", "biggan"])
def test_the_features_of_an_image_do_not_depend_on_the_others(system: str) -> None:
    seed_everything(0)
    D: Any = (
        Discriminator(0, 16, 1, architecture="skip", channel_base=64, channel_max=8)
        if system == "stylegan2"
        else biggan.Discriminator(0, 32, 1, ch=2)
    )
    images = torch.randn(4, 1, D.img_resolution, D.img_resolution)
    together = D.eval().features(images)
    alone = torch.cat([D.features(images[i : i + 1]) for i in range(4)])
    assert together.ndim == 2
    assert torch.allclose(together, alone, atol=1e-6)
    assert (together[0] - together[1]).abs().max() > 1e-4


def test_real_and_fake_conditions_are_the_clusters_of_images(patterns_zip: Path) -> None:
    dataset = ImageFolderDataset(patterns_zip)
    source = ClusterSource(dataset, Clusters(dataset, 5, interval=10, sample_size=30, seed=0))
    source.clusters.labels = np.repeat([0, 1, 2, 4], [4, 8, 12, 16])
    source.clusters.central[:] = [1, 5, -1, -1, 30]
    sample = source[real_draws(40, 0, 0, 40)]
    assert (source.condition(sample).c.argmax(dim=1).numpy() == source.clusters.labels[sample.index]).all()
    drawn = source.conditions(fake_draws(40, 0, 0, 0, 20_000)).c.mean(dim=0)
    assert drawn.tolist() == pytest.approx([0.1, 0.2, 0.3, 0, 0.4], abs=0.02)

    condition, images = source.showcase(4, 3)
    assert sorted(condition.c.argmax(dim=1).tolist()) == [0, 1, 2, 4]
    row = int(condition.c.argmax(dim=1).tolist().index(4))
    assert torch.equal(images[row, 0], dataset.images([30])[0])
    exemplars = source.exemplars(2)
    assert exemplars.condition.c.argmax(dim=1).tolist() == [4]  # of the two largest, 2 has no image to show
    assert exemplars.names == [dataset.names[30]]
    assert len(source.exemplars(10)) == 3


def test_labels_of_the_loader_may_be_old_the_condition_is_not(patterns_zip: Path) -> None:
    dataset = ImageFolderDataset(patterns_zip)
    source = ClusterSource(dataset, Clusters(dataset, 4, interval=10, sample_size=40, seed=0))
    sample = source[Draws(np.arange(8), hashed(np.arange(8)))]
    source.clusters.labels = 3 - source.clusters.labels
    assert source.condition(sample).c.argmax(dim=1).tolist() == [3, 2, 1, 0] * 2
    assert sample.c.argmax(dim=1).tolist() == [0, 1, 2, 3] * 2


@pytest.mark.parametrize("cfg", ["tiny", "biggan-tiny", "selfcond-tiny"])
def test_a_run_that_was_stopped_ends_with_the_same_tensors(cfg: str, patterns_zip: Path, tmp_path: Path) -> None:
    small = [*TINY_RUN, f"--cfg={cfg}"]
    if cfg != "tiny":
        own = {"biggan-tiny": ["--shared-dim=4", "--attention=0"], "selfcond-tiny": ["--embed-dim=4"]}[cfg]
        small = [f"--cfg={cfg}", "--z-dim=8", "--ch=2", *own, "--batch=8", "--tick=0.032", "--snap=1", "--device=cpu"]
    flags = [*small, f"--data={patterns_zip}", "--cond=cluster", "--clusters=6", "--recluster-kimg=0.024"]
    flags += ["--cluster-images=30"]
    assert invoke(train.main, *flags, "--kimg=0.096", f"--outdir={tmp_path / 'whole'}").exit_code == 0
    assert invoke(train.main, *flags, "--kimg=0.032", f"--outdir={tmp_path / 'parts'}").exit_code == 0
    resumed = invoke(train.main, "--resume=latest", "--kimg=0.096", f"--outdir={tmp_path / 'parts'}")
    assert resumed.exit_code == 0, resumed.output
    ours, theirs = (
        read_state(max(tmp_path.glob(f"{name}/*/training-state-*.pt")))["members"] for name in ("whole", "parts")
    )
    assert ours["clusters"]["step"] == 9  # of 12 steps, every third
    for member in ("G", "D", "G_ema", "clusters"):
        for key, value in ours[member].items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(theirs[member][key])), (member, key)

    snapshot = max(tmp_path.glob("whole/*/network-snapshot-*.pt"))
    exemplars = load_snapshot(snapshot).exemplars
    assert exemplars.condition.c.shape[1] == 6
    label = int(exemplars.condition.c[0].argmax())
    result = invoke(generate.main, f"--network={snapshot}", f"--class={label}", "--seeds=0,1", f"--outdir={tmp_path}")
    assert result.exit_code == 0, result.output
    assert len(list(tmp_path.glob(f"class{label:05d}-seed*.png"))) == 2


def process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(f"{folder}/meeting", 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    torch.save(clustered(Path(folder) / "patterns.zip"), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def clustered(data: Path) -> dict[str, Any]:
    dataset = ImageFolderDataset(data)
    seed_everything(0)
    D = Discriminator(0, 8, 1, architecture="orig", channel_base=64, channel_max=8)
    clusters = Clusters(dataset, 7, interval=1, sample_size=170, seed=0)
    clusters.refresh(0, D)
    clusters.refresh(1, D)
    return clusters.state_dict()


def test_two_processes_have_the_labels_of_one(tmp_path: Path) -> None:
    data = write_zip(tmp_path / "patterns.zip", *pattern_images(300))
    alone = clustered(data)
    torch.multiprocessing.start_processes(process, (str(tmp_path),), nprocs=2, start_method="fork")
    for rank in (0, 1):
        state = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert state["step"] == alone["step"] == 1
        assert torch.equal(state["labels"], alone["labels"])
        assert torch.equal(state["central"], alone["central"])


def test_what_cannot_work_is_refused(refused: Refused, patterns_zip: Path, tmp_path: Path) -> None:
    flags = [*TINY_RUN, f"--data={patterns_zip}", f"--outdir={tmp_path / 'runs'}"]
    assert "--clusters=5 given with --cond=none" in refused(train.main, *flags, "--clusters=5")
    assert "--recluster-kimg=1.0 given with --cond=class" in refused(
        train.main, *flags, "--cond=class", "--recluster-kimg=1"
    )
    flags += ["--cond=cluster"]
    assert "--clusters=41: --data has 40 images; expected 2 to 40" in refused(train.main, *flags, "--clusters=41")
    assert "--clusters=100: --data has 40 images" in refused(train.main, *flags)
    assert "--clusters=1: expected at least 2" in refused(train.main, *flags, "--clusters=1")
    assert "--cluster-images=4: expected at least 5" in refused(
        train.main, *flags, "--clusters=5", "--cluster-images=4"
    )
    assert "--recluster-kimg=0" in refused(train.main, *flags, "--clusters=5", "--recluster-kimg=0")
    assert "--sampling=class" in refused(train.main, *flags, "--clusters=5", "--sampling=class")
    assert not (tmp_path / "runs").exists()
