"""What the quality table says of a trained model: its samples against real images, in the features of a judge."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.judges import Classifier
from metrics.feature_stats import FeatureStats
from metrics.frechet import frechet_distance
from metrics.lpips import BATCH, Lpips
from metrics.precision_recall import density_coverage, precision_recall
from stylegan2_icgan.evaluation.conditions import instance_features
from stylegan2_icgan.models import Model, load_model
from stylegan2_icgan.selection import kmeans_exemplars
from training.condition import Condition
from training.dataset import ImageFolderDataset
from training.loading import fake_draws
from training.randomness import permutation
from training.sampling import sample_images

COLUMNS = ("frechet", "precision", "recall", "density", "coverage", "agreement", "diversity", "lpips")
EXEMPLARS = (10, 50, 200)  # as many conditions, the nearest to the centres of k-means, stand for all
MOST = 4000  # samples, and real images, that a run is judged by
Results = dict[str, Any]


@dataclass(frozen=True)
class Judged:
    """A model, real images, and what every image would condition the model on.

    Args:
        features: float32 [N, h_dim] by the model's own extractor.
        lpips: None: its column is empty.
    """

    model: Model
    dataset: ImageFolderDataset
    features: torch.Tensor
    judge: Classifier
    lpips: Lpips | None

    @classmethod
    def of(cls, model: Model, dataset: ImageFolderDataset, judge: Classifier, lpips: Lpips | None) -> "Judged":
        features = torch.zeros(len(dataset), 0)
        if model.recipe.shape.h_dim:
            features = instance_features(model, dataset, None, say=lambda line: None)
        return cls(model, dataset, features, judge, lpips)

    def results(self, pool: np.ndarray) -> Results:
        """The columns for as many samples as there are real images, at most `MOST`.

        Args:
            pool: int64 [M], images on which samples are conditioned, uniformly drawn.
        """
        assert self.dataset.class_ids is not None
        shape, count = self.model.recipe.shape, min(len(self.dataset), MOST)
        i = pool[fake_draws(len(pool), seed=1234, stream=0, start=0, count=count).index]
        condition = Condition(self.dataset.labels(i)[:, : shape.c_dim], self.features[torch.from_numpy(i)])
        images = [self._samples(condition, seed) for seed in (5, 6)]
        fake, other = (self.judge(samples)[0] for samples in images)
        real = self.judge(self.dataset.images(self._real(count)))[0]
        precision, recall = precision_recall(real, fake)
        density, coverage = density_coverage(real, fake)
        same = (self.judge.head(fake).argmax(dim=1) == torch.from_numpy(self.dataset.class_ids[i])).float().mean()
        among_reals = (real - real[torch.from_numpy(permutation(len(real), 4321))]).norm(dim=1).mean()
        return {
            "frechet": frechet_distance(FeatureStats().append(real), FeatureStats().append(fake)),
            "precision": precision,
            "recall": recall,
            "density": density,
            "coverage": coverage,
            "agreement": float(same) if shape.c_dim + shape.h_dim else None,
            "diversity": float((fake - other).norm(dim=1).mean() / among_reals),
            "lpips": None if self.lpips is None else distance(self.lpips, *images),
        }

    def _real(self, count: int) -> np.ndarray:
        """All images, or some by chance."""
        num = len(self.dataset)
        return np.arange(num) if count == num else np.sort(permutation(num, 1234)[:count])

    def _samples(self, condition: Condition, seed: int) -> torch.Tensor:
        """A sample for each condition, uint8 [N, C, H, W]."""
        generator = self.model.generator
        z = np.random.default_rng(seed).standard_normal((len(condition.c), generator.z_dim))
        return sample_images(generator, torch.from_numpy(z).float(), condition)


def distance(lpips: Lpips, one: torch.Tensor, other: torch.Tensor) -> float:
    """LPIPS of two samples of one condition, on average: diversity as published, for images of 64 pixels and more."""
    pairs = zip(one.split(BATCH), other.split(BATCH), strict=True)
    return float(torch.cat([lpips(a, b) for a, b in pairs]).mean())


def measure(
    snapshot: Path,
    dataset: ImageFolderDataset,
    unseen: ImageFolderDataset | None,
    judge: Classifier,
    lpips: Lpips | None = None,
) -> Results:
    """The columns; `exemplars`, the same of a few conditions; `unseen`, the same of images it was not trained on."""
    model = load_model(snapshot, torch.device("cpu"))
    seen = Judged.of(model, dataset, judge, lpips)
    results = seen.results(np.arange(len(dataset)))
    if model.recipe.shape.h_dim and not model.recipe.shape.c_dim:
        results["exemplars"] = {
            str(count): seen.results(kmeans_exemplars(seen.features.numpy(), count))
            for count in EXEMPLARS
            if count < len(dataset)
        }
    if unseen is not None:
        results["unseen"] = Judged.of(model, unseen, judge, lpips).results(np.arange(len(unseen)))
    return results
