"""Images of three digits, one in each channel, and which of the thousand triples a generator has found.

Metz et al., Unrolled GANs, arXiv 1611.02163, section 3.3.1 (Stacked MNIST); here with the 1,797 digits of
datasets/digits.zip, and numbers below those of MNIST's many samples.
"""

from pathlib import Path

import numpy as np
import torch

from benchmarks.judges import train_classifier
from benchmarks.mixtures import reverse_kl
from training.dataset import ImageFolderDataset
from training.sampling import from_uint8, to_uint8

DIGITS = Path(__file__).resolve().parents[1] / "datasets" / "digits.zip"
ROWS = 1000  # images at a time


class StackedDigits:
    """The digits, and a classifier of them; its accuracy on digits it never saw is `accuracy`."""

    def __init__(self) -> None:
        dataset = ImageFolderDataset(DIGITS, use_labels=True)
        dataset.decode_into_memory()
        assert dataset.class_ids is not None
        self.images, self.labels = dataset.images(np.arange(len(dataset))), dataset.class_ids
        self.classifier, self.accuracy = train_classifier(dataset)

    def draw(self, count: int, seed: int) -> tuple[torch.Tensor, np.ndarray]:
        """Random triples, float32 [count, 3, 16, 16] in [-1, 1], and the mode of each, int64 [count] of 1000."""
        chosen = np.random.default_rng(seed).integers(0, len(self.images), (count, 3))
        pixels = from_uint8(self.images[torch.from_numpy(chosen)].squeeze(2))
        return pixels, self.labels[chosen] @ np.array([100, 10, 1])

    def measure(self, images: torch.Tensor) -> dict[str, float]:
        """
        Args:
            images: float32 [N, 3, 16, 16] in [-1, 1].

        Returns:
            modes: how many triples were seen at least once.
            reverse_kl: of the shares of the triples from equal shares, logarithm to the base 10.
        """
        found = torch.cat([self._triples(some) for some in images.split(ROWS)]).numpy()
        counts = np.bincount(found, minlength=1000)
        return {"modes": int((counts > 0).sum()), "reverse_kl": reverse_kl(counts, base=10)}

    def _triples(self, images: torch.Tensor) -> torch.Tensor:
        """int64 [N] of 1000"""
        digits = to_uint8(images).flatten(0, 1).unsqueeze(1)  # [3 N, 1, 16, 16]
        predicted = self.classifier(digits)[1].argmax(dim=1).unflatten(0, (-1, 3))  # [N, 3]
        return predicted @ torch.tensor([100, 10, 1])
