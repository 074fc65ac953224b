"""The data set that draws by instances: IC-GAN's pairs of an image and the instance that conditions it."""

import numpy as np
import torch

from stylegan2_icgan.selection import select
from stylegan2_icgan.store import InstanceStore
from training.class_prior import ClassDraws, Lists
from training.condition import Condition, Exemplars, Sample, thumbnails
from training.dataset import Draws, ImageFolderDataset, SampleSource
from training.randomness import integers, permutation, uniform

_NEIGHBOUR, _FLIP, _INSTANCE = 1, 2, 5  # streams of randomness; ClassDraws has 3 and 4


class InstanceDataset(SampleSource):
    """IC-GAN's draws (section 3; docs/architecture.md, "IC-GAN semantics").

    Real: an instance i and an image j that is one of its k nearest neighbours, i itself left out; h is the feature of
    i, c the label of j. Fake: i and j afresh, drawn the same way, and no image read. With `mirror_instances` (DA(i)) h
    is the feature of the flipped instance with probability 1/2, for real and fake alike.

    Sampling by 'instance': i is given by the draw, each as often as any other, j uniform over its neighbours. By
    'class': class y from a prior, j uniform over the images of y that are somebody's neighbour, i uniform over those
    that have j as a neighbour; where no image of y is anybody's, j is any image of y, and i one of its own neighbours.

    Args:
        dataset: the images.
        store: their instances.
        k: size of the neighbourhood, at most the store's.
        mirror_instances: DA(i).
        sampling: 'instance' or 'class'.
        class_temperature: of the class prior for 'class'; None: all classes alike.
        selection: how exemplars are chosen, as for `select`; with 'per-class' their count is that of each class.
        device: where they are searched for.
    """

    def __init__(
        self,
        dataset: ImageFolderDataset,
        store: InstanceStore,
        k: int,
        mirror_instances: bool = False,
        sampling: str = "instance",
        class_temperature: float | None = None,
        selection: str = "kmeans",
        device: torch.device | None = None,
    ) -> None:
        if not 1 <= k <= store.k:
            raise ValueError(f"k is {k}; expected 1 to {store.k}, the neighbours in the store")
        self.dataset, self.store, self.k, self.mirror_instances = dataset, store, k, mirror_instances
        self.name, self.c_dim, self.h_dim = dataset.name, dataset.c_dim, store.h_dim
        self.resolution, self.num_channels = dataset.resolution, dataset.num_channels
        self.selection, self.device = selection, device
        if mirror_instances:
            _ = store.features_mirror  # refused now, not in a worker, where there are none
        self._by_class = self._near = None
        if sampling == "class":
            if dataset.class_ids is None:
                raise ValueError(f"{dataset.path} has no classes to draw from")
            self._near = instances_near(store.neighbours[:, :k])
            self._by_class = ClassDraws(dataset.class_ids, class_temperature, drawable=self._near.lengths() > 0)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, draws: Draws) -> Sample:
        h, j = self._draw(draws)
        return Sample(self.dataset.training_images(j), self.dataset.labels(j), h, torch.from_numpy(j))

    def conditions(self, draws: Draws) -> Condition:
        h, j = self._draw(draws)
        return Condition(self.dataset.labels(j), h)

    def _draw(self, draws: Draws) -> tuple[torch.Tensor, np.ndarray]:
        """Features of the instances, float32 [N, h_dim], and one neighbour of each, int64 [N]."""
        i, j = self._pairs(draws)
        h = _rows(self.store.features, i)
        if self.mirror_instances:
            flipped = uniform(draws.seed, _FLIP) < 0.5
            h[flipped] = _rows(self.store.features_mirror, i[flipped])
        return torch.from_numpy(h), j

    def _pairs(self, draws: Draws) -> tuple[np.ndarray, np.ndarray]:
        """Instances and images, int64 [N] each."""
        if self._by_class is None or self._near is None:
            return draws.index, self._neighbour(draws.index, draws.seed)
        j = self._by_class.images(draws.seed)
        known = self._near.lengths(j) > 0
        i = np.empty_like(j)
        i[known] = self._near.draw(j[known], uniform(draws.seed[known], _INSTANCE))
        i[~known] = self._neighbour(j[~known], draws.seed[~known])
        return i, j

    def _neighbour(self, i: np.ndarray, seed: np.ndarray) -> np.ndarray:
        """One of the k nearest neighbours of each, int64 [N]."""
        return np.asarray(np.asarray(self.store.neighbours)[i, integers(self.k, seed, _NEIGHBOUR)], dtype=np.int64)

    def bad_images(self) -> dict[str, int]:
        return self.dataset.bad_images()

    def showcase(self, rows: int, columns: int) -> tuple[Condition, torch.Tensor]:
        """Each row: an instance and its columns - 1 nearest neighbours."""
        chosen = permutation(len(self), 1)[np.arange(rows) % len(self)]
        neighbours = np.asarray(self.store.neighbours[chosen, : min(columns - 1, self.store.k)], dtype=np.int64)
        shown = np.concatenate([chosen[:, None], neighbours], axis=1)
        return self._own_conditions(chosen), self.dataset.images(shown.reshape(-1)).unflatten(0, shown.shape)

    def exemplars(self, count: int) -> Exemplars:
        """Instances that stand for the others; see `select`."""
        chosen = select(self.store.features, self.selection, count, self.dataset.class_ids, device=self.device)
        return Exemplars(
            self._own_conditions(chosen),
            thumbnails(self.dataset.images(chosen)),
            [self.dataset.names[i] for i in chosen],
            self.store.manifest["extractor"],
            self.store.extractor_state,
        )

    def _own_conditions(self, i: np.ndarray) -> Condition:
        return Condition(self.dataset.labels(i), torch.from_numpy(_rows(self.store.features, i)))


def _rows(features: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Rows of stored features, float32 [N, h_dim], a copy of unit length also where they are stored as float16."""
    stored = np.take(np.asarray(features), rows, axis=0)
    h = np.asarray(stored, dtype=np.float32)
    if stored.dtype != np.float32:
        h /= np.linalg.norm(h, axis=1, keepdims=True)
    return h


def instances_near(neighbours: np.ndarray) -> Lists:
    """Neighbour lists the other way round: list j has the instances i, ascending, that have j as a neighbour.

    Args:
        neighbours: integers [N, k], no number twice in a row.

    Returns:
        N lists of N k items in all, int32.
    """
    from scipy.sparse import csr_array  # sorts in O(N k); a quarter of a second to import, for this alone

    num, k = neighbours.shape
    offsets = np.arange(num + 1, dtype=np.int64) * k
    has = csr_array((np.ones(num * k, dtype=bool), np.ravel(neighbours), offsets), shape=(num, num)).tocsc()
    return Lists(has.indptr.astype(np.int64), has.indices.astype(np.int32))
