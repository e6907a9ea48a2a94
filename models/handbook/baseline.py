"""A 5-gram model with interpolated Kneser-Ney smoothing: what a language model has to beat.

Chen and Goodman, "An Empirical Study of Smoothing Techniques for Language Modeling" (1998), with one discount per order.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.uint64]


class FiveGram:
    """Counts of all n-grams up to five tokens, as sorted arrays of their codes."""

    ORDER = 5

    def __init__(self, tokens: NDArray[np.integer], vocabulary: int) -> None:
        assert vocabulary <= 4096, "five tokens must fit 64 bits"
        self.vocabulary = vocabulary
        self.grams: list[tuple[Ids, NDArray[np.int64]]] = []
        self.contexts: list[tuple[Ids, NDArray[np.int64], NDArray[np.int64]]] = []
        self.discounts: list[float] = []
        higher: Ids | None = None
        for order in range(self.ORDER, 0, -1):
            if higher is None:
                codes, counts = np.unique(self.codes(tokens, order), return_counts=True)
            else:
                # How many different tokens an n-gram follows, instead of how often it occurs.
                codes, counts = np.unique(higher & np.uint64(2 ** (12 * order) - 1), return_counts=True)
            ones, twos = int((counts == 1).sum()), int((counts == 2).sum())
            heads, first, kinds = np.unique(codes >> np.uint64(12), return_index=True, return_counts=True)
            totals = np.add.reduceat(counts, first)
            self.grams.insert(0, (codes, counts))
            self.contexts.insert(0, (heads, totals, kinds))
            self.discounts.insert(0, ones / (ones + 2 * twos))
            higher = codes

    @staticmethod
    def codes(tokens: NDArray[np.integer], order: int) -> Ids:
        """The code of the n-gram that ends at each token from the `order`th on: 12 bits per token, the last one lowest."""
        ids = tokens.astype(np.uint64)
        codes = np.zeros(len(ids) - order + 1, np.uint64)
        for i in range(order):
            codes = codes << np.uint64(12) | ids[i : len(ids) - order + 1 + i]
        return codes

    @staticmethod
    def look_up(sorted_codes: Ids, wanted: Ids) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        index = np.minimum(np.searchsorted(sorted_codes, wanted), len(sorted_codes) - 1)
        return index, sorted_codes[index] == wanted

    def log_probabilities(self, tokens: NDArray[np.integer]) -> NDArray[np.float64]:
        """Natural logarithm of each token's probability after the four before it (fewer at the start)."""
        p = np.full(len(tokens), 1 / self.vocabulary)
        for order in range(1, self.ORDER + 1):
            wanted = self.codes(tokens, order)
            (codes, counts), (heads, totals, kinds) = self.grams[order - 1], self.contexts[order - 1]
            gram, found = self.look_up(codes, wanted)
            head, known = self.look_up(heads, wanted >> np.uint64(12))
            discount = self.discounts[order - 1]
            own = np.where(found, np.maximum(counts[gram] - discount, 0), 0) / totals[head]
            rest = discount * kinds[head] / totals[head]
            lower = p[order - 1 :]
            p[order - 1 :] = np.where(known, own + rest * lower, lower)
        return np.log(p)


def windows(count: int, length: int) -> range:
    """Where the windows of a text of `count` tokens begin; the first half of each is only context."""
    return range(0, count - length - 1, length // 2)


def asked(starts: range, length: int) -> NDArray[np.intp]:
    """The tokens of these windows that a model is asked for."""
    return np.concatenate([np.arange(start + length // 2 + 1, start + length + 1) for start in starts])


def perplexity(log_p: NDArray[np.float64]) -> float:
    return round(float(np.exp(-log_p.mean())), 2)
