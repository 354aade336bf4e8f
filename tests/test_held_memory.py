"""How much memory a process holds."""

import platform

import numpy as np
import pytest

from satstore.system.memory import forget_peak, peak_bytes, resident_bytes

MANY = 4000
BLOCK_BYTES = 2**16
"""Less than what malloc maps by itself: what is freed stays in the heap, as long as a later block is held."""


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
    forget_peak()
    before = peak_bytes()
    last = blocks[-1]
    blocks.clear()
    forget_peak()
    assert peak_bytes() < before - 0.8 * MANY * BLOCK_BYTES
    assert last.sum() == BLOCK_BYTES // 8
