"""How much memory a process holds."""

import platform
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

from satstore.system import memory
from satstore.system.memory import peak_bytes, reset_peak, resident_bytes

MANY = 4000
BLOCK_BYTES = 2**16
"""Less than what malloc maps by itself: what is freed stays in the heap, as long as a later block is held."""


@pytest.mark.parametrize(
    ("limit", "left"), [("max", 9000), ("nonsense", 9000), ("10000", 9000), ("5000", 4000), ("500", 0)]
)
def test_available_memory__keeps_to_the_limit_of_a_container(
    limit: str, left: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=9000))
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    assert memory.available_memory() == 9000
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.stat").write_text("anon 1000\nfile 7000\ninactive_anon 6000\n")
    assert memory.available_memory() == left


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library frees as it likes")
def test_resident_bytes__leave_out_what_was_freed() -> None:
    blocks = [np.ones(BLOCK_BYTES // 8) for _ in range(MANY)]
    before = resident_bytes()
    last = blocks[-1]
    blocks.clear()
    assert resident_bytes() < before - 0.8 * MANY * BLOCK_BYTES
    assert last.sum() == BLOCK_BYTES // 8


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library frees as it likes")
def test_peak_bytes__begin_without_what_was_freed() -> None:
    blocks = [np.ones(BLOCK_BYTES // 8) for _ in range(MANY)]
    reset_peak()
    before = peak_bytes()
    last = blocks[-1]
    blocks.clear()
    reset_peak()
    assert peak_bytes() < before - 0.8 * MANY * BLOCK_BYTES
    assert last.sum() == BLOCK_BYTES // 8
