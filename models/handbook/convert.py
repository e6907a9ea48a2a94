"""Makes the trained handbook model a Core ML model with the interface that Apple's exports of Llama and Mistral have.

    python models/handbook/train.py export DATA            # DATA/model.npz
    python models/handbook/convert.py DATA OUT

writes OUT/handbook.mlpackage (iOS 18): inputs `inputIds` (int32 [1, n]) and `causalMask` (float16 [1, 1, n, all]), where `all` counts the
tokens so far and these; states `keyCache` and `valueCache` (float16 [layers, 1, key heads, context, head]); output `logits` (float32
[1, n, vocabulary]). Weights are 8 bits with a scale per row.

It calculates in float32, so that its texts can be compared with PyTorch's token by token: in float16 the two likeliest tokens change
places about once in 300 tokens. The states are float16, for Core ML has no others.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import coremltools as ct
import coremltools.optimize as cto
import numpy as np
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.mil import Function, Program, types
from coremltools.converters.mil.mil.program import Symbol, get_new_symbol
from numpy.typing import NDArray

from shape import Shape

Weights = dict[str, NDArray[np.float32]]


def rotations(shape: Shape) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    frequencies = shape.theta ** (-np.arange(0, shape.head, 2, dtype=np.float64) / shape.head)
    angles = np.arange(shape.context)[:, None] * frequencies
    angles = np.concatenate((angles, angles), axis=-1)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def norm(x: object, weight: NDArray[np.float32], shape: Shape) -> object:
    mean = mb.reduce_mean(x=mb.square(x=x), axes=[-1], keep_dims=True)
    return mb.mul(x=mb.mul(x=x, y=mb.rsqrt(x=mean, epsilon=np.float32(shape.epsilon))), y=weight)


def rotate(x: object, cos: object, sin: object) -> object:
    low, high = mb.split(x=x, num_splits=2, axis=-1)
    turned = mb.concat(values=(mb.mul(x=high, y=np.float32(-1)), low), axis=-1)
    return mb.add(x=mb.mul(x=x, y=cos), y=mb.mul(x=turned, y=sin))


def program(weights: Weights, shape: Shape) -> Program:
    tokens, everything = get_new_symbol(), get_new_symbol()
    cache = (shape.layers, 1, shape.key_heads, shape.context, shape.head)
    groups = shape.heads // shape.key_heads
    cosines, sines = rotations(shape)

    @mb.program(
        input_specs=[
            mb.TensorSpec(shape=(1, tokens), dtype=types.int32),
            mb.TensorSpec(shape=(1, 1, tokens, everything), dtype=types.fp16),
            mb.StateTensorSpec(shape=cache, dtype=types.fp16),
            mb.StateTensorSpec(shape=cache, dtype=types.fp16),
        ],
        opset_version=ct.target.iOS18,
    )
    def llama(inputIds, causalMask, keyCache, valueCache):  # noqa: N803  (Apple's names)
        count = mb.gather(x=mb.shape(x=inputIds), indices=1, axis=0)
        end = mb.gather(x=mb.shape(x=causalMask), indices=3, axis=0)
        start = mb.sub(x=end, y=count)

        def between(x, begin, end, axis):
            """Along one axis; all of the others."""
            rank = len(x.shape)
            at = [np.int32([0])] * rank
            to = [np.int32([0])] * rank
            at[axis], to[axis] = (mb.expand_dims(x=i, axes=[0]) for i in (begin, end))
            mask = [i != axis for i in range(rank)]
            return mb.slice_by_index(
                x=x, begin=mb.concat(values=at, axis=0), end=mb.concat(values=to, axis=0), begin_mask=mask, end_mask=mask
            )

        cos, sin = (between(mb.const(val=x), start, end, 0) for x in (cosines, sines))
        mask = mb.cast(x=mb.expand_dims(x=causalMask, axes=[1]), dtype="fp32")
        x = mb.gather(x=weights["words.weight"], indices=inputIds, axis=0)
        # Read once: the converter takes all reads of a state for one, whatever is written between them.
        caches = [mb.read_state(input=state) for state in (keyCache, valueCache)]
        for layer in range(shape.layers):
            name = f"layers.{layer}"

            def project(x, part, name=name):
                return mb.linear(x=x, weight=weights[f"{name}.{part}.weight"])

            normed = norm(x, weights[f"{name}.attention_norm.weight"], shape)

            def heads(part, number, normed=normed, project=project):
                split = mb.reshape(x=project(normed, part), shape=[1, -1, number, shape.head])
                return mb.transpose(x=split, perm=[0, 2, 1, 3])

            query = rotate(heads("query", shape.heads), cos, sin)
            fresh = rotate(heads("key", shape.key_heads), cos, sin), heads("value", shape.key_heads)
            whole = []
            for i, (state, part) in enumerate(zip((keyCache, valueCache), fresh, strict=True)):
                begin = mb.concat(values=[np.int32([layer, 0, 0]), mb.expand_dims(x=start, axes=[0]), np.int32([0])], axis=0)
                to = mb.concat(
                    values=[np.int32([layer + 1, 1, shape.key_heads]), mb.expand_dims(x=end, axes=[0]), np.int32([shape.head])],
                    axis=0,
                )
                updated = mb.slice_update(
                    x=caches[i], update=mb.cast(x=mb.expand_dims(x=part, axes=[0]), dtype="fp16"), begin=begin, end=to
                )
                caches[i] = updated = mb.coreml_update_state(state=state, value=updated)
                own = mb.slice_by_index(
                    x=updated,
                    begin=[layer, 0, 0, 0, 0],
                    end=[layer + 1, 0, 0, 0, 0],
                    end_mask=[False, True, True, True, True],
                    squeeze_mask=[True, False, False, False, False],
                )
                # [1, key heads, 1, all, head]: one for each group of queries.
                known = mb.cast(x=between(own, mb.const(val=np.int32(0)), end, 2), dtype="fp32")
                whole.append(mb.expand_dims(x=known, axes=[2]))
            keys, values = whole
            query = mb.reshape(x=query, shape=[1, shape.key_heads, groups, -1, shape.head])
            scores = mb.matmul(x=mb.mul(x=query, y=np.float32(shape.head**-0.5)), y=keys, transpose_y=True)
            weights_of = mb.softmax(x=mb.add(x=scores, y=mask), axis=-1)
            attended = mb.reshape(x=mb.matmul(x=weights_of, y=values), shape=[1, shape.heads, -1, shape.head])
            attended = mb.reshape(x=mb.transpose(x=attended, perm=[0, 2, 1, 3]), shape=[1, -1, shape.width])
            x = mb.add(x=x, y=project(attended, "output"))
            normed = norm(x, weights[f"{name}.hidden_norm.weight"], shape)
            gated = mb.mul(x=mb.silu(x=project(normed, "gate")), y=project(normed, "up"))
            x = mb.add(x=x, y=project(gated, "down"))
        x = norm(x, weights["norm.weight"], shape)
        return mb.linear(x=x, weight=weights["words.weight"], name="logits")

    return llama


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    shape = Shape()
    weights = dict(np.load(arguments.data / "model.npz"))
    length = lambda: ct.RangeDim(1, shape.context, default=1)  # noqa: E731
    count = length()
    model = ct.convert(
        program(weights, shape),
        inputs=[
            ct.TensorType("inputIds", shape=(1, count), dtype=np.int32),
            ct.TensorType("causalMask", shape=(1, 1, count, length()), dtype=np.float16),
        ],
        convert_to="mlprogram",
        minimum_deployment_target=ct.target.iOS18,
        compute_precision=ct.precision.FLOAT32,
        skip_model_load=True,
    )
    rows = cto.coreml.OpLinearQuantizerConfig(mode="linear_symmetric", dtype="int8", granularity="per_channel")
    # Not the angles, which rows of zeros begin.
    config = cto.coreml.OptimizationConfig(op_type_configs={"linear": rows, "gather": rows})
    model = cto.coreml.linear_quantize_weights(model, config=config)
    model.short_description = "A small Llama that was trained on the handbooks of Debian, Python, PostgreSQL, Perl and Rust."
    model.license = "MIT OR Apache-2.0; the texts have licences of their own, see models/handbook/README.md"
    path = arguments.out / "handbook.mlpackage"
    shutil.rmtree(path, ignore_errors=True)
    model.save(str(path))
    print(f"{path}: {sum(f.stat().st_size for f in path.rglob('*') if f.is_file()) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
