"""Takes the page segmentation model out of the PyPI package kraken. It has custom layers, which no one but kraken runs.

    pip download --no-deps kraken==7.1.1
    python models/kraken.py kraken-7.1.1-py3-none-any.whl OUT

writes OUT/blla.mlmodel. (c) Benjamin Kiessling and others, Apache-2.0.
"""

from __future__ import annotations

import argparse
import zipfile
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(arguments.wheel) as wheel:
        (arguments.out / "blla.mlmodel").write_bytes(wheel.read("kraken/blla.mlmodel"))


if __name__ == "__main__":
    main()
