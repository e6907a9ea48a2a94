"""Builds the shared library with cargo and puts it into the wheel.

`COREML_PORTABLE_LIBRARY` names a library that exists already, which is then taken instead.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent
NAME = {"darwin": "libcoreml_portable_c.dylib", "win32": "coreml_portable_c.dll"}.get(
    sys.platform, "libcoreml_portable_c.so"
)


def library() -> Path:
    """The library, built if need be."""
    chosen = os.environ.get("COREML_PORTABLE_LIBRARY")
    if chosen:
        return Path(chosen)
    workspace = HERE.parent
    subprocess.run(["cargo", "build", "--release", "--package", "coreml-capi"], cwd=workspace, check=True)
    return Path(os.environ.get("CARGO_TARGET_DIR", workspace / "target")) / "release" / NAME


class Build(build_py):
    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "coreml_portable" / NAME
        else:
            target = HERE / "src" / "coreml_portable" / NAME
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(library(), target)


class Wheel(bdist_wheel):
    """The library depends on the platform, but on no version of Python."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.root_is_pure = False

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


class Binary(Distribution):
    def has_ext_modules(self) -> bool:
        return True


setup(cmdclass={"build_py": Build, "bdist_wheel": Wheel}, distclass=Binary)
