"""A small classifier of the data at hand: whose features and verdicts the quality table is made of.

No published detector knows 16-pixel digits or emoji. Its features are comparable within one table, nowhere else.
"""

import itertools

import numpy as np
import torch

from training.dataset import ImageFolderDataset
from training.randomness import permutation, seed_everything
from training.sampling import from_uint8


class Classifier(torch.nn.Module):
    """Convolutions down to 4x4 pixels; the features are the 64 activations before the last layer."""

    def __init__(self, resolution: int, channels: int, num_classes: int) -> None:
        super().__init__()
        stages = int(np.log2(resolution)) - 1  # down to 2x2
        widths = [channels, *(min(32 * 2**stage, 64) for stage in range(stages))]
        layers: list[torch.nn.Module] = []
        for width_in, width_out in itertools.pairwise(widths):
            layers += [torch.nn.Conv2d(width_in, width_out, 3, padding=1), torch.nn.ReLU(), torch.nn.MaxPool2d(2)]
        self.trunk = torch.nn.Sequential(
            *layers, torch.nn.Flatten(), torch.nn.Linear(widths[-1] * 4, 64), torch.nn.ReLU()
        )
        self.head = torch.nn.Linear(64, num_classes)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """uint8 [N, C, S, S] -> features [N, 64], logits [N, num_classes]."""
        features = [self.trunk(from_uint8(part)) for part in images.split(256)]
        joined = torch.cat(features)
        return joined, self.head(joined)


def train_classifier(dataset: ImageFolderDataset, epochs: int = 30) -> tuple[Classifier, float]:
    """The classifier, in eval mode, and its accuracy on the fifth of the data it never saw."""
    assert dataset.class_ids is not None
    seed_everything(0)
    order = permutation(len(dataset), 7)
    held_out, seen = np.split(order, [len(order) // 5])
    images, labels = dataset.images(range(len(dataset))), torch.from_numpy(dataset.class_ids)
    network = Classifier(dataset.resolution, dataset.num_channels, dataset.num_classes)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for batch in torch.from_numpy(seen)[torch.randperm(len(seen))].split(64):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(images[batch])[1], labels[batch]).backward()
            optimizer.step()
        schedule.step()
    network.eval().requires_grad_(False)
    predicted = network(images[held_out])[1].argmax(dim=1)
    return network, float((predicted == labels[held_out]).float().mean())
