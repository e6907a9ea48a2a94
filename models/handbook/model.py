"""A small Llama: rotary positions, grouped-query attention, RMSNorm, SwiGLU, one matrix for words in and out."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shape import Shape


class Norm(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(shape.width))
        self.epsilon = shape.epsilon

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.epsilon) * self.weight


def rotations(shape: Shape) -> tuple[Tensor, Tensor]:
    """Cosine and sine of each position's angles, [context, head]: halves hold the same, as Llama has it."""
    frequencies = shape.theta ** (-torch.arange(0, shape.head, 2, dtype=torch.float64) / shape.head)
    angles = torch.arange(shape.context, dtype=torch.float64)[:, None] * frequencies
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().float(), angles.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    low, high = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-high, low), dim=-1) * sin


class Layer(nn.Module):
    def __init__(self, shape: Shape, half_cache: bool) -> None:
        super().__init__()
        self.shape = shape
        self.half_cache = half_cache
        keys = shape.key_heads * shape.head
        self.attention_norm, self.hidden_norm = Norm(shape), Norm(shape)
        self.query = nn.Linear(shape.width, shape.width, bias=False)
        self.key = nn.Linear(shape.width, keys, bias=False)
        self.value = nn.Linear(shape.width, keys, bias=False)
        self.output = nn.Linear(shape.width, shape.width, bias=False)
        self.gate = nn.Linear(shape.width, shape.hidden, bias=False)
        self.up = nn.Linear(shape.width, shape.hidden, bias=False)
        self.down = nn.Linear(shape.hidden, shape.width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, _ = x.shape
        normed = self.attention_norm(x)

        def heads(projection: nn.Linear, count: int) -> Tensor:
            return projection(normed).view(batch, length, count, self.shape.head).transpose(1, 2)

        groups = self.shape.heads // self.shape.key_heads
        query = rotate(heads(self.query, self.shape.heads), cos, sin)
        key, value = rotate(heads(self.key, self.shape.key_heads), cos, sin), heads(self.value, self.shape.key_heads)
        if self.half_cache:
            key, value = key.half().float(), value.half().float()
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.output(attended.transpose(1, 2).reshape(batch, length, -1))
        normed = self.hidden_norm(x)
        return x + self.down(F.silu(self.gate(normed)) * self.up(normed))


class Llama(nn.Module):
    def __init__(self, shape: Shape, half_cache: bool = False) -> None:
        """With `half_cache`, keys and values are rounded to float16, as a Core ML state keeps them."""
        super().__init__()
        self.shape = shape
        self.words = nn.Embedding(shape.vocabulary, shape.width)
        self.layers = nn.ModuleList(Layer(shape, half_cache) for _ in range(shape.layers))
        self.norm = Norm(shape)
        cos, sin = rotations(shape)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)
        for layer in self.layers:
            # So that the sum of all layers begins as large as one.
            for end in (layer.output, layer.down):
                nn.init.normal_(end.weight, std=0.02 / math.sqrt(2 * shape.layers))

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits [batch, length, vocabulary] of the token after each."""
        x = self.words(tokens)
        cos, sin = self.cos[: tokens.shape[1]], self.sin[: tokens.shape[1]]
        for layer in self.layers:
            x = layer(x, cos, sin)
        return F.linear(self.norm(x), self.words.weight)
