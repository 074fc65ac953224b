"""The data set that draws by instances: IC-GAN's pairs of an image and the instance that conditions it."""

import numpy as np
import torch

from stylegan2_icgan.selection import kmeans_exemplars
from stylegan2_icgan.store import InstanceStore
from training.condition import Condition, Exemplars, Sample, thumbnails
from training.dataset import Draws, ImageFolderDataset
from training.randomness import integers, permutation, uniform


class InstanceDataset:
    """IC-GAN's draws (section 3; docs/architecture.md, "IC-GAN semantics").

    Draw an instance i; h is the feature of i. Real: image and label of j, uniform over the k nearest neighbours of i, i
    itself left out. Fake: i afresh, h the feature of i, c the label of a neighbour of that same i. With
    `mirror_instances` (DA(i)) h is the feature of the flipped instance with probability 1/2, for real and fake alike.

    Args:
        dataset: the images.
        store: their instances.
        k: size of the neighbourhood, at most the store's.
        mirror_instances: DA(i).
    """

    def __init__(
        self, dataset: ImageFolderDataset, store: InstanceStore, k: int, mirror_instances: bool = False
    ) -> None:
        if not 1 <= k <= store.k:
            raise ValueError(f"k is {k}; expected 1 to {store.k}, the neighbours in the store")
        self.dataset, self.store, self.k, self.mirror_instances = dataset, store, k, mirror_instances
        self.name, self.c_dim, self.h_dim = dataset.name, dataset.c_dim, store.h_dim
        self.resolution, self.num_channels = dataset.resolution, dataset.num_channels

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, draws: Draws) -> Sample:
        h, j = self._draw(draws)
        return Sample(self.dataset.images(j), self.dataset.labels(j), h, torch.from_numpy(j))

    def conditions(self, draws: Draws) -> Condition:
        h, j = self._draw(draws)
        return Condition(self.dataset.labels(j), h)

    def _draw(self, draws: Draws) -> tuple[torch.Tensor, np.ndarray]:
        """Features of the instances, float32 [N, h_dim], and one neighbour of each, int64 [N]."""
        i = draws.index
        j = np.asarray(self.store.neighbours[i, integers(self.k, draws.seed, 1)])
        h = np.array(self.store.features[i])
        if self.mirror_instances:
            flipped = uniform(draws.seed, 2) < 0.5
            h[flipped] = self.store.features_mirror[i[flipped]]
        return torch.from_numpy(h), j

    def showcase(self, rows: int, columns: int) -> tuple[Condition, torch.Tensor]:
        """Each row: an instance and its columns - 1 nearest neighbours."""
        chosen = permutation(len(self), 1)[np.arange(rows) % len(self)]
        neighbours = np.asarray(self.store.neighbours[chosen, : min(columns - 1, self.store.k)])
        shown = np.concatenate([chosen[:, None], neighbours], axis=1)
        return self._own_conditions(chosen), self.dataset.images(shown.reshape(-1)).unflatten(0, shown.shape)

    def exemplars(self, count: int) -> Exemplars:
        """Instances nearest to the centres of k-means on the features."""
        chosen = kmeans_exemplars(self.store.features, count)
        return Exemplars(
            self._own_conditions(chosen),
            thumbnails(self.dataset.images(chosen)),
            [self.dataset.names[i] for i in chosen],
            self.store.manifest["extractor"],
            self.store.extractor_state,
        )

    def _own_conditions(self, i: np.ndarray) -> Condition:
        return Condition(self.dataset.labels(i), torch.from_numpy(np.array(self.store.features[i])))
