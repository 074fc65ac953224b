"""Self-conditioned GANs: clusters of what the discriminator makes of the images take the place of labels.

Liu et al., Diverse Image Generation via Self-Conditioned GANs, arXiv 2006.10728, sections 3.2 and 3.3.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from stylegan2_icgan.extraction import decoded_ahead
from stylegan2_icgan.search.kmeans import BLOCK, add_by_label, kmeans, nearest_centre
from torch_utils.command_line import UserError
from torch_utils.distributed import first, gather, rank, world_size
from torch_utils.files import Countdown
from training.condition import Condition, Exemplars, Sample, thumbnails
from training.config import DataOptions
from training.dataset import Draws, ImageFolderDataset, SampleSource
from training.randomness import integers, permutation
from training.sampling import from_uint8

EPOCHS = 10  # between two clusterings
STARTS = 10  # k-means at the beginning of a run: the best of so many
BATCH = 64  # images a call of the discriminator
_SAMPLE, _SHEET = 91, 92  # streams of randomness


def check_clusters(data: DataOptions, num_images: int, given: Callable[[str], bool]) -> None:
    """Refuse flags that contradict each other, or the data.

    Args:
        given: whether an option was a flag.

    Raises:
        UserError: flags of clusters without clusters, or more clusters than images.
    """
    for name in ("clusters", "recluster_kimg", "cluster_images"):
        if given(name) and data.cond != "cluster":
            flag = f"--{name.replace('_', '-')}={getattr(data, name)}"
            raise UserError(f"{flag} given with --cond={data.cond}; add --cond=cluster, or leave it out")
    if data.cond != "cluster":
        return
    if data.clusters > num_images:
        raise UserError(
            f"--clusters={data.clusters}: --data has {num_images} images; expected 2 to {num_images} clusters"
        )
    if data.cluster_images < data.clusters:
        raise UserError(
            f"--cluster-images={data.cluster_images}: expected at least {data.clusters}, as many as --clusters"
        )


class Clustering(NamedTuple):
    """Of n points, in `count` clusters."""

    centres: np.ndarray  # float32 [count, d]
    labels: np.ndarray  # int64 [n]
    central: np.ndarray  # int64 [count], the point nearest to each centre; -1: none is in the cluster


def cluster(points: np.ndarray, count: int, old: np.ndarray | None, seed: int, device: torch.device) -> Clustering:
    """Points anew, or from where the clusters of before have gone, so that a label goes on meaning the same.

    Args:
        points: float32 [n, d], features now.
        count: clusters, at most n.
        old: int64 [n], labels of before; None: there are none.
        seed: of the first start, and of where a cluster begins that lost all its points.
        device: where distances are computed.
    """
    features = torch.from_numpy(points)

    def read(rows: np.ndarray) -> torch.Tensor:
        return features[torch.from_numpy(rows)].to(device)

    if old is None:
        tries = [kmeans(read, len(points), count, seed=seed + number) for number in range(STARTS)]
        centres = min(tries, key=lambda found: found.inertia).centres
    else:
        begin = means(features, torch.from_numpy(old), count, seed).to(device)
        centres = kmeans(read, len(points), count, start=begin).centres
    blocks = [np.arange(start, min(start + BLOCK, len(points))) for start in range(0, len(points), BLOCK)]
    found = [nearest_centre(read(rows), centres) for rows in blocks]
    squared, labels = (torch.cat(parts).cpu().numpy() for parts in zip(*found, strict=True))
    numbered = centres.cpu().numpy()
    if old is not None:
        names = matching(labels, old, count)
        labels, numbered = names[labels], numbered[np.argsort(names)]
    return Clustering(numbered, labels, nearest_of_each(squared, labels, count))


def means(points: torch.Tensor, labels: torch.Tensor, count: int, seed: int) -> torch.Tensor:
    """Mean of the points of every label, float32 [count, d]; of a label that has none, a point at random."""
    sums, sizes = torch.zeros(count, points.shape[1]), torch.zeros(count)
    add_by_label(sums, sizes, points, labels, by_product=False)
    starved = torch.nonzero(sizes == 0)[:, 0]
    centres = sums / sizes[:, None].clamp_min(1)
    centres[starved] = points[torch.from_numpy(permutation(len(points), seed)[: len(starved)])]
    return centres


def matching(new: np.ndarray, old: np.ndarray, count: int) -> np.ndarray:
    """Which old label each new one takes, int64 [count]: the permutation that changes the fewest labels.

    Source: Kuhn, The Hungarian method for the assignment problem, 1955; arXiv 2006.10728, section 3.3.
    """
    overlap = np.bincount(new * count + old, minlength=count * count).reshape(count, count)
    names: np.ndarray = linear_sum_assignment(overlap, maximize=True)[1]
    return names


def nearest_of_each(squared: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """int64 [count], the point of each label with the smallest distance; -1 where there is none."""
    order = np.lexsort((squared, labels))
    present, start = np.unique(labels[order], return_index=True)
    nearest = np.full(count, -1)
    nearest[present] = order[start]
    return nearest


class Images(Protocol):
    """Things that a discriminator looks at."""

    def __len__(self) -> int: ...
    def images(self, indices: np.ndarray) -> torch.Tensor:
        """uint8 [N, C, H, W], or float32 as the discriminator is shown them."""
        ...


class Clusters:
    """The label of every image: the number of its cluster; until the first `refresh`, its own number modulo `count`.

    A clustering takes a fixed sample of the images; every image then gets the label of the nearest mean, once, so that
    a step costs nothing. All processes share the work and have the same labels.

    Args:
        images: what is clustered.
        count: clusters.
        interval: steps between two clusterings.
        sample_size: images of the sample.
        seed: which sample, and how k-means starts.
        say: is told how far it is where it takes long.
    """

    def __init__(
        self,
        images: Images,
        count: int,
        interval: int,
        sample_size: int,
        seed: int,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.images, self.count, self.interval, self.seed, self.say = images, count, interval, seed, say
        self.sample = np.sort(permutation(len(images), seed, _SAMPLE)[:sample_size])
        self.labels = np.arange(len(images)) % count  # int64 [N]
        self.central = np.full(count, -1)  # int64 [count], the image that stands for each cluster; -1: none does
        self.step: int | None = None  # when the labels were made

    @property
    def shares(self) -> np.ndarray:
        """float64 [count], share of each cluster in the images."""
        return np.bincount(self.labels, minlength=self.count) / len(self.labels)

    def refresh(self, step: int, D: torch.nn.Module) -> bool:
        """Cluster before the first step, and before every `interval`-th; whether it was done. D is left as it was."""
        if self.step is not None and (step == self.step or step % self.interval):
            return False
        was_training = D.training
        D.eval()
        self._cluster(step, D)
        D.train(was_training)
        return True

    @torch.no_grad()
    def _cluster(self, step: int, D: torch.nn.Module) -> None:
        device = next(D.parameters()).device

        def features(images: torch.Tensor) -> torch.Tensor:
            seen = images.to(device)
            found: torch.Tensor = D.features(from_uint8(seen) if seen.dtype == torch.uint8 else seen)
            return found.flatten(1).float()

        old = None if self.step is None else self.labels[self.sample]
        points = self._each(self.sample, lambda images: features(images).cpu().numpy())
        found = first(lambda: cluster(points, self.count, old, self.seed + step, device))

        # Give the others the label of the nearest mean.
        labels = self.labels.copy()
        labels[self.sample] = found.labels
        others = np.setdiff1d(np.arange(len(labels)), self.sample, assume_unique=True)
        if len(others):
            centres = torch.from_numpy(found.centres).to(device)
            labels[others] = self._each(others, lambda im: nearest_centre(features(im), centres)[1].cpu().numpy())
        self.labels, self.step = labels, step
        self.central = np.where(found.central < 0, -1, self.sample[found.central])

    def _each(self, ids: np.ndarray, function: Callable[[torch.Tensor], np.ndarray]) -> np.ndarray:
        """Rows of `function` for images, which processes take turns at; the same on all of them."""
        blocks = np.split(ids, range(BATCH, len(ids), BATCH))
        my_blocks = blocks[rank() :: world_size()]
        mine: list[np.ndarray] = []
        progress = Countdown("clusters, images seen", sum(map(len, my_blocks)), self.say)
        for images in decoded_ahead(self.images, my_blocks):
            mine.append(function(images))
            progress(len(mine) * BATCH)
        parts = gather(mine)
        return np.concatenate([parts[number % world_size()][number // world_size()] for number in range(len(blocks))])

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "labels": torch.from_numpy(self.labels), "central": torch.from_numpy(self.central)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if len(state["labels"]) != len(self.labels) or len(state["central"]) != self.count:
            raise ValueError(f"clusters of {len(state['labels'])} images; this data has {len(self.labels)}")
        self.step, self.labels, self.central = state["step"], state["labels"].numpy(), state["central"].numpy()


class ClusterSource(SampleSource):
    """Images and the clusters they are in, as one-hot labels; fakes have the clusters of images at random.

    Args:
        dataset: the images; labels they may have are not looked at.
        clusters: of these images.
    """

    h_dim = 0

    def __init__(self, dataset: ImageFolderDataset, clusters: Clusters) -> None:
        self.dataset, self.clusters = dataset, clusters
        self.name, self.c_dim = dataset.name, clusters.count
        self.resolution, self.num_channels = dataset.resolution, dataset.num_channels

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, draws: Draws) -> Sample:
        """A worker process knows the labels of when it started; `condition` knows those of now."""
        i = draws.index
        c, h = self._onehot(self.clusters.labels[i]), torch.zeros(len(i), 0)
        return Sample(self.dataset.training_images(i), c, h, torch.from_numpy(i))

    def condition(self, sample: Sample) -> Condition:
        return Condition(self._onehot(self.clusters.labels[sample.index.cpu().numpy()]), sample.h)

    def conditions(self, draws: Draws) -> Condition:
        return Condition(self._onehot(self.clusters.labels[draws.index]), torch.zeros(len(draws.index), 0))

    def refresh(self, step: int, networks: Mapping[str, torch.nn.Module]) -> None:
        self.clusters.refresh(step, networks["D"])

    def stateful(self) -> dict[str, Any]:
        return {"clusters": self.clusters}

    def showcase(self, rows: int, columns: int) -> tuple[Condition, torch.Tensor]:
        """A row per cluster: the image that stands for it, and others of it."""
        order = permutation(self.c_dim, _SHEET)
        there = order[np.isin(order, self.clusters.labels)]
        chosen = there[np.arange(rows) % len(there)]
        members = [np.flatnonzero(self.clusters.labels == label) for label in chosen]
        shown = np.stack([ids[integers(len(ids), row, np.arange(columns))] for row, ids in enumerate(members)])
        central = self.clusters.central[chosen]
        shown[central >= 0, 0] = central[central >= 0]
        images = self.dataset.images(shown.reshape(-1)).unflatten(0, shown.shape)
        return Condition(self._onehot(chosen), torch.zeros(rows, 0)), images

    def exemplars(self, count: int) -> Exemplars:
        """The image nearest to the mean of each cluster, of the `count` largest at most."""
        largest = np.argsort(-self.clusters.shares, kind="stable")[:count]
        chosen = np.sort(largest[self.clusters.central[largest] >= 0])
        ids = self.clusters.central[chosen]
        condition = Condition(self._onehot(chosen), torch.zeros(len(chosen), 0))
        return Exemplars(condition, thumbnails(self.dataset.images(ids)), [self.dataset.names[i] for i in ids])

    def _onehot(self, labels: np.ndarray | Sequence[int]) -> torch.Tensor:
        """float32 [N, c_dim]"""
        return torch.nn.functional.one_hot(torch.as_tensor(labels), self.c_dim).float()


def make_cluster_source(
    dataset: ImageFolderDataset, data: DataOptions, batch: int, seed: int, say: Callable[[str], None]
) -> ClusterSource:
    """What `--cond=cluster` draws from; the options have been checked."""
    kimg = EPOCHS * len(dataset) / 1000 if data.recluster_kimg is None else data.recluster_kimg
    interval = max(round(kimg * 1000 / batch), 1)
    return ClusterSource(dataset, Clusters(dataset, data.clusters, interval, data.cluster_images, seed, say))
