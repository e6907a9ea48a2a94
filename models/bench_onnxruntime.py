"""Times ONNX Runtime on the twins that `bench.py` and `minilm.py` write, and records what it computes.

    python models/bench_onnxruntime.py DIR --threads 1 --json    # {"minilm": {"min_ms": 19.8, "median_ms": 20.4}}
    python models/bench_onnxruntime.py DIR --dump                # DIR/<model>.outputs/<output>.npy, no timing

Inputs are those in DIR/<model>.inputs. Models take turns round by round, so that a slow spell of the machine hits
all of them.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from statistics import median

import numpy as np
import onnxruntime


def open_session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--models", help="comma-separated; default: all in DIR")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="threads within an operation; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=30, metavar="N", help="default: %(default)s")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--dump", action="store_true", help="write the outputs instead of timing")
    options = parser.parse_args()

    names = options.models.split(",") if options.models else sorted(path.stem for path in options.folder.glob("*.onnx"))
    if not names:
        parser.error(f"there is no .onnx file in {options.folder}")
    runs = {}
    for name in names:
        session = open_session(options.folder / f"{name}.onnx", options.threads)
        runs[name] = session, {path.stem: np.load(path) for path in sorted((options.folder / f"{name}.inputs").glob("*.npy"))}

    if options.dump:
        for name, (session, inputs) in runs.items():
            folder = options.folder / f"{name}.outputs"
            folder.mkdir(exist_ok=True)
            for output, value in zip(session.get_outputs(), session.run(None, inputs), strict=True):
                np.save(folder / f"{output.name}.npy", value)
        return 0

    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(options.rounds + 1):
        for name, (session, inputs) in runs.items():
            session.run(None, inputs)  # warms the caches after the model before it, and in the first turn everything
            start = time.perf_counter()
            session.run(None, inputs)
            if turn:
                times[name].append(1e3 * (time.perf_counter() - start))

    results = {name: {"min_ms": round(min(each), 3), "median_ms": round(median(each), 3)} for name, each in times.items()}
    if options.json:
        print(json.dumps(results))
    else:
        for name, result in results.items():
            print(f"{name:16} min {result['min_ms']:9.3f} ms   median {result['median_ms']:9.3f} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
