"""The networks that `minilm.py` and `bench.py` write, each described once on a `Twin`.

A network asks for its weights by name and shape, so real ones (`minilm.py`) and random ones (`bench.py`) serve alike.
Batch normalisation is already folded into the convolutions, on both sides.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twin import Twin, Value

Array = NDArray[Any]
Weights = Callable[[str, tuple[int, ...]], Array]


def random_weights(seed: int) -> Weights:
    """He's scale, so that activations stay finite; the last convolution of a residual block is damped."""
    rng = np.random.default_rng(seed)

    def weights(name: str, shape: tuple[int, ...]) -> Array:
        if name.endswith("bias"):
            return rng.uniform(-0.1, 0.1, shape).astype(np.float32)
        if "Norm" in name or "norm" in name:
            return rng.uniform(0.9, 1.1, shape).astype(np.float32)
        if "embeddings" in name:
            return rng.standard_normal(shape, np.float32) * np.float32(0.05)
        gain = 0.3 if name.endswith("last.weight") else 1.0
        return rng.standard_normal(shape, np.float32) * np.float32(gain * np.sqrt(2 / np.prod(shape[1:])))

    return weights


# Convolutional networks

def _conv(twin: Twin, weights: Weights, x: Value, name: str, shape: tuple[int, ...], *, stride: int = 1, groups: int = 1) -> Value:
    return twin.conv(x, weights(f"{name}.weight", shape), weights(f"{name}.bias", shape[:1]), stride=stride, groups=groups)


def _classify(twin: Twin, weights: Weights, x: Value, channels: int) -> list[Value]:
    x = twin.reshape(twin.reduce_mean(x, [2, 3], keep_dims=True), [1, channels])
    return [twin.linear(x, weights("classifier.weight", (1000, channels)), weights("classifier.bias", (1000,)), name="logits")]


def resnet50(twin: Twin, weights: Weights, image: Array) -> list[Value]:
    """ResNet-50 v1.5 (the stride sits on the 3 by 3 convolution), as in torchvision."""
    x = twin.relu(_conv(twin, weights, twin.input("image", image), "stem", (64, 3, 7, 7), stride=2))
    x = twin.max_pool(x, size=3, stride=2)
    channels = 64
    for stage, (width, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3))):
        for block in range(blocks):
            name = f"stage{stage}.{block}"
            stride = 2 if stage and not block else 1
            y = twin.relu(_conv(twin, weights, x, f"{name}.reduce", (width, channels, 1, 1)))
            y = twin.relu(_conv(twin, weights, y, f"{name}.middle", (width, width, 3, 3), stride=stride))
            y = _conv(twin, weights, y, f"{name}.last", (4 * width, width, 1, 1))
            if not block:
                x = _conv(twin, weights, x, f"{name}.shortcut.last", (4 * width, channels, 1, 1), stride=stride)
            x = twin.relu(twin.add(x, y))
            channels = 4 * width
    return _classify(twin, weights, x, channels)


def mobilenetv2(twin: Twin, weights: Weights, image: Array) -> list[Value]:
    """MobileNetV2 at width 1.0, as in torchvision."""
    x = twin.relu6(_conv(twin, weights, twin.input("image", image), "stem", (32, 3, 3, 3), stride=2))
    channels = 32
    stages = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    for stage, (expansion, width, blocks, first_stride) in enumerate(stages):
        for block in range(blocks):
            name = f"stage{stage}.{block}"
            stride = 1 if block else first_stride
            hidden = channels * expansion
            y = x
            if expansion > 1:
                y = twin.relu6(_conv(twin, weights, y, f"{name}.expand", (hidden, channels, 1, 1)))
            y = twin.relu6(_conv(twin, weights, y, f"{name}.depthwise", (hidden, 1, 3, 3), stride=stride, groups=hidden))
            residual = stride == 1 and channels == width
            y = _conv(twin, weights, y, f"{name}.{'last' if residual else 'project'}", (width, hidden, 1, 1))
            x = twin.add(x, y) if residual else y
            channels = width
    x = twin.relu6(_conv(twin, weights, x, "head", (1280, channels, 1, 1)))
    return _classify(twin, weights, x, 1280)


# Transformers

def _dense(twin: Twin, weights: Weights, x: Value, name: str, inputs: int, outputs: int) -> Value:
    return twin.linear(x, weights(f"{name}.weight", (outputs, inputs)), weights(f"{name}.bias", (outputs,)))


def _norm(twin: Twin, weights: Weights, x: Value, name: str, width: int, epsilon: float, output: str = "layer_norm") -> Value:
    gamma, beta = weights(f"{name}.weight", (width,)), weights(f"{name}.bias", (width,))
    return twin.layer_norm(x, gamma, beta, epsilon=epsilon, name=output)


def _heads(twin: Twin, x: Value, tokens: int, heads: int, width: int, name: str = "transpose") -> Value:
    """[1, tokens, width] to [1, heads, tokens, width / heads]."""
    return twin.transpose(twin.reshape(x, [1, tokens, heads, width // heads]), [0, 2, 1, 3], name=name)


def _attend(twin: Twin, query: Value, key: Value, value: Value, mask: Value | None, shape: tuple[int, int, int]) -> Value:
    """Scaled dot-product attention, heads joined again; `shape` is (query tokens, heads, width)."""
    tokens, heads, width = shape
    scores = twin.mul(twin.matmul(query, key, transpose_y=True), twin.const(np.float32((width // heads) ** -0.5), "scale"))
    if mask:
        scores = twin.add(scores, mask)
    context = twin.matmul(twin.softmax(scores), value)
    return twin.reshape(twin.transpose(context, [0, 2, 1, 3]), [1, tokens, width])


def bert(
    twin: Twin, weights: Weights, ids: Array, mask: Array, *, layers: int, width: int, heads: int, vocabulary: int, pooled: bool
) -> list[Value]:
    """The encoder of BERT with Hugging Face's names of weights; `pooled` adds the mean over the tokens, of length 1."""
    tokens = ids.shape[1]
    epsilon = 1e-12
    input_ids, attention_mask = twin.input("input_ids", ids), twin.input("attention_mask", mask)

    words = twin.gather(twin.const(weights("embeddings.word_embeddings.weight", (vocabulary, width)), "words"), input_ids)
    kinds = twin.const(np.zeros((1, tokens), np.int32), "token_types")
    kinds = twin.gather(twin.const(weights("embeddings.token_type_embeddings.weight", (2, width)), "types"), kinds)
    places = twin.const(np.arange(tokens, dtype=np.int32)[None], "position_ids")
    places = twin.gather(twin.const(weights("embeddings.position_embeddings.weight", (512, width)), "positions"), places)
    x = _norm(twin, weights, twin.add(twin.add(words, kinds), places), "embeddings.LayerNorm", width, epsilon)

    one = twin.const(np.float32(1), "one")
    hidden = twin.sub(one, twin.to_float(twin.expand_dims(attention_mask, [1, 2])))
    bias = twin.mul(hidden, twin.const(np.float32(-1e4), "minus_much"))  # exp(-1e4) is 0 in every float

    shape = (tokens, heads, width)
    for layer in range(layers):
        name = f"encoder.layer.{layer}"
        last = layer == layers - 1
        query, key, value = (
            _heads(twin, _dense(twin, weights, x, f"{name}.attention.self.{part}", width, width), *shape) for part in ("query", "key", "value")
        )
        y = _dense(twin, weights, _attend(twin, query, key, value, bias, shape), f"{name}.attention.output.dense", width, width)
        x = _norm(twin, weights, twin.add(y, x), f"{name}.attention.output.LayerNorm", width, epsilon)
        y = twin.gelu(_dense(twin, weights, x, f"{name}.intermediate.dense", width, 4 * width))
        y = twin.add(_dense(twin, weights, y, f"{name}.output.dense", 4 * width, width), x)
        x = _norm(twin, weights, y, f"{name}.output.LayerNorm", width, epsilon, "last_hidden_state" if last else "layer_norm")
    if not pooled:
        return [x]

    kept = twin.expand_dims(twin.to_float(attention_mask), [2])
    total = twin.reduce_sum(twin.mul(x, kept), [1], keep_dims=False)
    count = twin.maximum(twin.reduce_sum(kept, [1], keep_dims=False), twin.const(np.float32(1e-9), "least_count"))
    mean = twin.div(total, count, name="mean")
    length = twin.maximum(twin.reduce_l2_norm(mean, [1], keep_dims=True), twin.const(np.float32(1e-12), "least_length"))
    return [twin.div(mean, length, name="embedding"), x]


def gpt_step(twin: Twin, weights: Weights, token: Array, caches: list[tuple[Array, Array]], *, heads: int) -> list[Value]:
    """One decoding step of a GPT-2-like decoder, from a token's embedding to the final norm, without the vocabulary.

    The keys and values of earlier positions come in ([1, heads, positions, width / heads] per layer) and those of this
    position go out ([1, heads, 1, width / heads]); the caller appends them.
    """
    width = token.shape[-1]
    x = twin.input("token", token)
    outputs = []
    for layer, (keys, values) in enumerate(caches):
        name = f"layer{layer}"
        y = _norm(twin, weights, x, f"{name}.norm1", width, 1e-5)
        query = _heads(twin, _dense(twin, weights, y, f"{name}.query", width, width), 1, heads, width)
        key = _heads(twin, _dense(twin, weights, y, f"{name}.key", width, width), 1, heads, width, f"new_keys_{layer}")
        value = _heads(twin, _dense(twin, weights, y, f"{name}.value", width, width), 1, heads, width, f"new_values_{layer}")
        outputs += [key, value]
        all_keys = twin.concat([twin.input(f"keys_{layer}", keys), key], axis=2)
        all_values = twin.concat([twin.input(f"values_{layer}", values), value], axis=2)
        y = _attend(twin, query, all_keys, all_values, None, (1, heads, width))
        x = twin.add(x, _dense(twin, weights, y, f"{name}.attention.last", width, width))
        y = _norm(twin, weights, x, f"{name}.norm2", width, 1e-5)
        y = twin.gelu_tanh(_dense(twin, weights, y, f"{name}.up", width, 4 * width))
        x = twin.add(x, _dense(twin, weights, y, f"{name}.down.last", 4 * width, width))
    return [_norm(twin, weights, x, "final.norm", width, 1e-5, "hidden"), *outputs]
