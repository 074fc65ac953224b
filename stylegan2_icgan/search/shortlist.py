"""Which keys may be among the best of each query: the filter every search runs its scores through."""

import numpy as np
import torch


class Shortlist:
    """For each query the keys whose score may be among its `keep` best, from scores offered block by block.

    Let s be the keep-th best score seen and e the largest error of a score: `keep` keys have true scores of at least
    s - e, so whatever is among the truly best shows at least s - 2 e. With slack = 2 e nothing of it is dropped.
    torch.topk over long rows is what this replaces: it can take longer than the product that made them.

    Args:
        num_queries: Q.
        keep: how many are wanted.
        slack: 2 e, or 0 where the score itself decides (ties are kept).
        limit: a query with more keys than this on its list is given up (`overflow`): it wants sharper scores.
    """

    def __init__(self, num_queries: int, keep: int, slack: float, limit: int) -> None:
        self.num_queries, self.keep, self.slack, self.limit = num_queries, keep, slack, limit
        self.overflow = np.zeros(num_queries, dtype=bool)
        self._best: torch.Tensor | None = None  # [Q, keep], on the device of the scores
        self._counts = np.zeros(num_queries, dtype=np.int64)
        self._lists: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []  # query, key, score

    def offer(self, scores: torch.Tensor, start: int) -> None:
        """Scores [Q, B] of the keys start .. start + B - 1; -inf for a key that may not be chosen."""
        width = scores.shape[1]
        if self._best is None:
            self._best = scores.new_full((self.num_queries, self.keep), -torch.inf)
            threshold = _cautious_threshold(scores, self.keep)[:, None] - self.slack
        else:
            threshold = self._threshold()
        flat, values = not_below(scores, threshold)
        query = flat // width
        self._raise_with(scores, query, values)
        kept = (values >= self._threshold()[:, 0].cpu().numpy()[query]) & (values > -np.inf)
        self._append(query[kept], flat[kept] % width + start, values[kept])

    def finish(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Queries, keys and scores, int64, int64 and float [T], in order of the queries, then of the keys."""
        query, key, value = (np.concatenate(parts) for parts in zip(*self._lists, strict=True))
        kept = (value >= self._threshold()[:, 0].cpu().numpy()[query]) & ~self.overflow[query]
        query, key, value = query[kept], key[kept], value[kept]
        order = np.lexsort((key, query))
        return query[order], key[order], value[order]

    def _threshold(self) -> torch.Tensor:
        assert self._best is not None
        return self._best[:, -1:] - self.slack

    def _raise_with(self, scores: torch.Tensor, query: np.ndarray, values: np.ndarray) -> None:
        """Raise the best of the queries that have new values; the few with very many new ones look at the whole row."""
        counts = np.bincount(query, minlength=self.num_queries)
        many = counts > 4 * self.keep
        if many.any():
            rows = torch.from_numpy(np.flatnonzero(many)).to(scores.device)
            self._raise_best(rows, scores[rows])
            query, values = query[~many[query]], values[~many[query]]
        if len(query):
            rows_np, position = np.unique(query, return_inverse=True)
            rows = torch.from_numpy(rows_np).to(scores.device)
            self._raise_best(rows, torch.from_numpy(_padded(position, values, len(rows_np))).to(scores.device))

    def _raise_best(self, rows: torch.Tensor | slice, scores: torch.Tensor) -> None:
        assert self._best is not None
        self._best[rows] = torch.cat([self._best[rows], scores], dim=1).topk(self.keep, dim=1).values

    def _append(self, query: np.ndarray, key: np.ndarray, value: np.ndarray) -> None:
        assert self._best is not None
        self._counts += np.bincount(query, minlength=self.num_queries)
        self._lists.append((query, key, value))
        crowded = (self._counts > self.limit) & ~self.overflow
        if not crowded.any():
            return
        # Keys that were good once count no more: strike them off before a query is given up.
        query, key, value = (np.concatenate(parts) for parts in zip(*self._lists, strict=True))
        kept = value >= self._threshold()[:, 0].cpu().numpy()[query]
        self._counts = np.bincount(query[kept], minlength=self.num_queries)
        self.overflow |= self._counts > self.limit
        self._best[torch.from_numpy(self.overflow)] = torch.inf  # nothing passes any more
        kept &= ~self.overflow[query]
        self._lists = [(query[kept], key[kept], value[kept])]
        self._counts[self.overflow] = 0


def _cautious_threshold(scores: torch.Tensor, keep: int) -> torch.Tensor:
    """A score [Q] that at least `keep` of the scores [Q, B] reach, and few more: the keep-th of the maxima of groups.

    A maximum over groups takes a tenth of the time of topk.
    """
    num_groups = 1 << (3 * keep).bit_length()
    if num_groups * 4 > scores.shape[1]:
        return scores.topk(min(keep, scores.shape[1]), dim=1).values[:, -1]
    size = scores.shape[1] // num_groups
    return scores[:, : size * num_groups].unflatten(1, (size, num_groups)).amax(dim=1).topk(keep, dim=1).values[:, -1]


def not_below(scores: torch.Tensor, threshold: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Flat places int64 [T], ascending, of the scores [Q, B] >= threshold [Q, 1], and these scores."""
    if scores.device.type == "cpu":  # NumPy compares twice, and finds the few that are set four times as fast as torch
        flat = np.flatnonzero(scores.numpy() >= threshold.numpy())
        return flat, scores.numpy().reshape(-1)[flat]
    places = (scores >= threshold).view(-1).nonzero()[:, 0]
    return places.cpu().numpy(), scores.reshape(-1)[places].cpu().numpy()


def _padded(query: np.ndarray, values: np.ndarray, num_queries: int) -> np.ndarray:
    """Values [T] in ascending order of their query as a table [Q, most of any query], -inf where there are none."""
    counts = np.bincount(query, minlength=num_queries)
    place = np.arange(len(query)) - (np.cumsum(counts) - counts)[query]
    table = np.full((num_queries, int(counts.max())), -np.inf, dtype=values.dtype)
    table[query, place] = values
    return table
