"""Records what PyTorch writes with what the package holds, weights of 8 bits and caches of float16: 20 prompts, 64 tokens each, always the likeliest.

    python models/handbook/reference.py DATA models/handbook/greedy.json

The engine has to write the same, token by token. `margin` is the least distance between the two best logits of a text: what other
rounding may change without changing the text.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from model import Llama
from shape import Shape

LENGTH = 64
PROMPTS = (
    "The function returns",
    "In Debian, packages are",
    "CREATE TABLE",
    "The following example shows how to",
    "If the file does not exist,",
    "A module is",
    "This option is useful when",
    "By default, the server",
    "Note that",
    "The transaction is",
    "An error is raised if",
    "You can install",
    "Regular expressions",
    "The type of the argument",
    "When a thread",
    "To build the package, run",
    "Each element of the list",
    "The documentation of Perl",
    "Changed in version 3.8:",
    "Memory is",
)


def as_packaged(weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """What is left of a matrix in 8 bits with a scale per row, as coremltools' `linear_symmetric` has it."""
    if weights.ndim < 2:
        return weights
    scale = np.abs(weights).max(axis=1, keepdims=True) / np.float32(127)
    return np.clip(np.round(weights / scale), -127, 127) * scale


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    words = Tokenizer.from_file(str(arguments.data / "tokenizer.json"))
    model = Llama(Shape(), half_cache=True).eval()
    packaged = {name: torch.from_numpy(as_packaged(x)) for name, x in np.load(arguments.data / "model.npz").items()}
    model.load_state_dict(packaged)
    texts = []
    for prompt in PROMPTS:
        ids = words.encode(prompt).ids
        begin, margin = len(ids), float("inf")
        with torch.no_grad():
            for _ in range(LENGTH):
                best = model(torch.tensor([ids]))[0, -1].topk(2)
                margin = min(margin, float(best.values[0] - best.values[1]))
                ids.append(int(best.indices[0]))
        texts.append({"prompt": prompt, "tokens": ids[begin:], "margin": round(margin, 4)})
    arguments.out.write_text("[\n" + ",\n".join(json.dumps(text) for text in texts) + "\n]\n")
    print(f"{len(texts)} texts, least margin {min(text['margin'] for text in texts)}")


if __name__ == "__main__":
    main()
