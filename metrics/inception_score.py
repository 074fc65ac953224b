"""Inception Score: exp of the mutual information of image and class. arXiv:1606.03498, section 4."""

import math

import torch
from torch import Tensor

SPLITS = 10


class InceptionScore:
    """The score of a stream of logits, exact however the stream is cut.

    Args:
        num: how many rows will come.
        splits: parts, one after the other, whose scores are averaged.
    """

    def __init__(self, num: int, splits: int = SPLITS) -> None:
        if num < splits:
            raise ValueError(f"got {num} images for {splits} splits; expected at least one a split")
        self.edges = [split * num // splits for split in range(splits + 1)]
        self.num, self.seen = num, 0
        self._mean: Tensor | None = None  # float64 [splits, K], sum of p(y | x)
        self._negative_entropy = torch.zeros(splits, dtype=torch.float64)  # sum of p log p

    def append(self, logits: Tensor) -> None:
        """Add rows [N, K].

        Raises:
            ValueError: not finite, or more rows than were announced.
        """
        if not logits.isfinite().all():
            raise ValueError("got logits with NaN or infinity")
        if self.seen + len(logits) > self.num:
            raise ValueError(f"got more than the {self.num} rows announced")
        log_p = logits.detach().cpu().double().log_softmax(dim=1)
        p = log_p.exp()
        if self._mean is None:
            self._mean = torch.zeros(len(self._negative_entropy), p.shape[1], dtype=torch.float64)
        split = torch.bucketize(torch.arange(self.seen, self.seen + len(p)), torch.tensor(self.edges[1:]), right=True)
        for row, part in enumerate(split.tolist()):  # row by row: the same sums however the stream is cut
            self._mean[part] += p[row]
            self._negative_entropy[part] += (p[row] * log_p[row]).sum()
        self.seen += len(p)

    def result(self) -> tuple[float, float]:
        """Mean and standard deviation of the score over the splits.

        Raises:
            ValueError: fewer rows came than were announced.
        """
        if self._mean is None or self.seen < self.num:
            raise ValueError(f"got {self.seen} of {self.num} rows")
        sizes = torch.tensor(self.edges).diff().double()
        marginal = self._mean / sizes[:, None]
        entropy = -torch.special.xlogy(marginal, marginal).sum(dim=1)
        scores = (entropy + self._negative_entropy / sizes).exp()
        deviation = float(scores.std(correction=0)) if len(scores) > 1 else math.nan
        return float(scores.mean()), deviation
