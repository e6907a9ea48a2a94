"""Makes the benchmark models: for each a Core ML model and an ONNX twin with the same random weights.

    python models/bench.py --out OUT --models resnet50,minilm --kinds f32,f16

writes OUT/<model>-f32.mlpackage (and -f16), OUT/<model>.onnx, and one fixed example of each input in
OUT/<model>.inputs/<input>.npy. `bench_onnxruntime.py` times the twins and records their outputs. Weights and
inputs come from a fixed seed and keep activations finite; batch normalisation is already folded into the
convolutions, in both models. All of it takes 1.7 GB in float32.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator

SEED = 7
METADATA = {"author": "The coreml-bridge authors", "version": "1.0", "license": "MIT OR Apache-2.0"}


def _image(rng: Generator) -> Any:
    return rng.standard_normal((1, 3, 224, 224), np.float32)


def _tokens(rng: Generator) -> tuple[Any, Any]:
    """128 token ids, of which the last 28 are padding."""
    mask = (np.arange(128) < 100).astype(np.int32)[None]
    return rng.integers(1, 30522, (1, 128)).astype(np.int32) * mask, mask


def _resnet50(twin: Any, weights: Any, rng: Generator) -> list[str]:
    """ResNet-50 v1.5, one image of 224 by 224"""
    from networks import resnet50

    return resnet50(twin, weights, _image(rng))


def _mobilenetv2(twin: Any, weights: Any, rng: Generator) -> list[str]:
    """MobileNetV2, one image of 224 by 224"""
    from networks import mobilenetv2

    return mobilenetv2(twin, weights, _image(rng))


def _bert(twin: Any, weights: Any, rng: Generator) -> list[str]:
    """BERT-base encoder, 128 tokens"""
    from networks import bert

    return bert(twin, weights, *_tokens(rng), layers=12, width=768, heads=12, vocabulary=30522, pooled=False)


def _minilm(twin: Any, weights: Any, rng: Generator) -> list[str]:
    """MiniLM-L6 sentence encoder, 128 tokens"""
    from networks import bert

    return bert(twin, weights, *_tokens(rng), layers=6, width=384, heads=12, vocabulary=30522, pooled=True)


def _gpt(twin: Any, weights: Any, rng: Generator) -> list[str]:
    """one decoding step, 8 layers of 768, 12 heads, 256 earlier positions"""
    from networks import gpt_step

    caches = [tuple(rng.standard_normal((2, 1, 12, 256, 64), np.float32)) for _ in range(8)]
    return gpt_step(twin, weights, rng.standard_normal((1, 1, 768), np.float32), caches, heads=12)


MODELS: dict[str, Callable[[Any, Any, Generator], list[str]]] = {
    "resnet50": _resnet50,
    "mobilenetv2": _mobilenetv2,
    "bert": _bert,
    "minilm": _minilm,
    "gpt": _gpt,
}


def main() -> int:
    listing = "\n".join(f"  {name:12} {build.__doc__}" for name, build in MODELS.items())
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=f"models:\n{listing}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder to write to")
    parser.add_argument("--models", default=",".join(MODELS), help="default: %(default)s")
    parser.add_argument("--kinds", default="f32", help="which Core ML models: f32, f16 or both; default: %(default)s")
    options = parser.parse_args()
    names, kinds = options.models.split(","), options.kinds.split(",")
    if unknown := [name for name in names if name not in MODELS] + [kind for kind in kinds if kind not in ("f32", "f16")]:
        parser.error(f"there is no {', '.join(unknown)}")

    from networks import random_weights
    from twin import Twin

    for name in names:
        twin = Twin()
        outputs = MODELS[name](twin, random_weights(SEED), np.random.default_rng(SEED))
        twin.write(options.out, name, outputs, kinds=kinds, description=f"Benchmark with random weights: {MODELS[name].__doc__}.", **METADATA)
        print(name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
