"""Saving Core ML models so that the same program always gives the same bytes.

coremltools stamps the date into a model, gives package items random identifiers and writes protobuf maps in
any order; a committed model would then differ after every run. `save` removes these three.
"""

from __future__ import annotations

import json
import logging
import shutil
import uuid
from pathlib import Path
from typing import Any

logging.getLogger("coremltools").setLevel(logging.ERROR)  # it warns about every part that needs a Mac

import coremltools as ct  # noqa: E402  (quiet only if the logger was told before)

_NAMESPACE = uuid.UUID("6ba7b811-9dad-11d1-80b4-00c04fd430c8")


def convert(program: Any, *, half: bool = False, target: Any = None) -> Any:
    """Converts a MIL program to an ML program whose arithmetic is float16 (`half`) or float32."""
    return ct.convert(
        program,
        source="milinternal",
        convert_to="mlprogram",
        compute_precision=ct.precision.FLOAT16 if half else ct.precision.FLOAT32,
        minimum_deployment_target=target or ct.target.iOS15,
        skip_model_load=True,
    )


def save(model: Any, path: Path, *, description: str, author: str, version: str, license: str) -> None:
    """Writes `model` to `path` (`.mlmodel` or `.mlpackage`), replacing what is there."""
    model.short_description = description
    model.author = author
    model.version = version
    model.license = license

    shutil.rmtree(path, ignore_errors=True)
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    model.save(str(path))

    spec_path = path / "Data/com.apple.CoreML/model.mlmodel" if path.is_dir() else path
    spec = ct.proto.Model_pb2.Model.FromString(spec_path.read_bytes())
    spec.description.metadata.userDefined.pop("com.github.apple.coremltools.conversion_date", None)
    spec_path.write_bytes(spec.SerializeToString(deterministic=True))
    if path.is_dir():
        _name_items(path / "Manifest.json")


def _name_items(manifest_path: Path) -> None:
    """Replaces the random identifiers of a package's items by ones derived from their paths."""
    manifest = json.loads(manifest_path.read_text())
    items = sorted(manifest["itemInfoEntries"].items(), key=lambda entry: entry[1]["path"])
    names = {old: str(uuid.uuid5(_NAMESPACE, item["path"])).upper() for old, item in items}
    manifest["itemInfoEntries"] = {names[old]: item for old, item in items}
    manifest["rootModelIdentifier"] = names[manifest["rootModelIdentifier"]]
    manifest_path.write_text(json.dumps(manifest, indent=4) + "\n")
