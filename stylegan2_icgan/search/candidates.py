"""Candidates of each query from cells searched in any order: what a Shortlist is where queries see different keys."""

import numpy as np
import torch

from stylegan2_icgan.search.shortlist import not_below

ROOM = 1 << 22  # candidates held before those that fell behind are struck off: 80 MiB


class Candidates:
    """Keys whose scores may be among the k best of a query; see `Shortlist` for why nothing of them is dropped.

    Args:
        like: the queries [Q, d]; thresholds have their device and type.
        k: how many are wanted.
        slack: twice the largest error of a score, and the rounding of a threshold.
        limit: a query with more candidates may be given up (`overflow`) for lack of room: it wants sharper scores.
    """

    def __init__(self, like: torch.Tensor, k: int, slack: float, limit: int) -> None:
        self.num_queries, self.k, self.slack, self.limit = len(like), k, slack, limit
        self.overflow = np.zeros(len(like), dtype=bool)
        self._threshold = like.new_full((len(like), 1), -torch.inf)
        self._kind = torch.empty(0, dtype=like.dtype).numpy().dtype
        self._lists: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []  # query, key, score
        self._held, self._room = 0, ROOM

    def offer(self, scores: torch.Tensor, members: np.ndarray, keys: np.ndarray, sharpen: bool) -> None:
        """Scores [B, K] of the queries int64 [B] and the keys int64 [K]; -inf for a key that may not be chosen.

        Args:
            sharpen: whether the best of these scores raise what later ones have to reach.
        """
        at = torch.from_numpy(members).to(scores.device)
        if sharpen and len(keys) >= self.k:
            least = scores.topk(self.k, dim=1).values[:, -1:] - self.slack
            self._threshold[at] = torch.maximum(self._threshold[at], least)
        flat, values = not_below(scores, self._threshold[at])
        found = values > -np.inf
        flat = flat[found]
        self._lists.append((members[flat // len(keys)], keys[flat % len(keys)], values[found]))
        self._held += len(flat)
        if self._held > self._room:
            self._make_room()

    def finish(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Queries ascending, keys and how many of each query, int64 [T], [T] and [Q]; none of those given up."""
        query, key, _ = self._strike_off()
        order = np.argsort(query, kind="stable")
        return query[order], key[order], np.bincount(query, minlength=self.num_queries)

    def _strike_off(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All candidates that still are some; thresholds are raised to the k-th best of each query."""
        query, key = (np.concatenate([lists[i] for lists in self._lists] or [np.empty(0, np.int64)]) for i in (0, 1))
        value = np.concatenate([values for _, _, values in self._lists] or [np.empty(0, self._kind)])
        self._lists.clear()
        counts = np.bincount(query, minlength=self.num_queries)
        enough = np.flatnonzero((counts >= self.k) & ~self.overflow)
        # float32 scores within -1 and 1 need one sort instead of two; float64 ones would lose their last digits.
        double = value.dtype == np.float64
        by_score = np.lexsort((-value, query)) if double else np.argsort(query * 4.0 - value)
        kth = value[by_score[(np.cumsum(counts) - counts)[enough] + self.k - 1]]
        at = torch.from_numpy(enough).to(self._threshold.device)
        least = torch.from_numpy(kth).to(at.device)[:, None] - self.slack
        self._threshold[at] = torch.maximum(self._threshold[at], least)
        kept = (value >= self._threshold[:, 0].cpu().numpy()[query]) & ~self.overflow[query]
        return query[kept], key[kept], value[kept]

    def _make_room(self) -> None:
        query, key, value = self._strike_off()
        self.overflow |= np.bincount(query, minlength=self.num_queries) > self.limit
        self._threshold[torch.from_numpy(self.overflow).to(self._threshold.device)] = torch.inf  # nothing passes now
        kept = ~self.overflow[query]
        self._lists = [(query[kept], key[kept], value[kept])]
        self._held = int(kept.sum())
        self._room = self._held + ROOM  # else many queries of just fewer than the limit would be sorted every time
