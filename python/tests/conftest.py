import gc
from pathlib import Path

import pytest

import coreml_portable


@pytest.fixture(autouse=True)
def nothing_leaks():
    """Every test releases what it makes."""
    before = coreml_portable.live_objects()
    yield
    gc.collect()
    assert coreml_portable.live_objects() == before


@pytest.fixture
def digits() -> Path:
    return Path(__file__).resolve().parents[2] / "models" / "digits"
