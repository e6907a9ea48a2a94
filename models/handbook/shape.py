"""Sizes of the handbook model."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes of a model."""

    vocabulary: int = 4096
    width: int = 256
    layers: int = 6
    heads: int = 8
    key_heads: int = 2
    hidden: int = 704
    context: int = 1024
    theta: float = 10000.0
    epsilon: float = 1e-5

    @property
    def head(self) -> int:
        return self.width // self.heads
