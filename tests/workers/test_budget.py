"""How a budget follows from a cap and what is free."""

import pytest

from workers.budget import MIB, MemoryCap, budget


@pytest.mark.parametrize(
    ("cap", "free_mib", "usable_mib"),
    [
        (MemoryCap(share=0.5), 1000, 474),  # half of what is free, less the reserve
        (MemoryCap(share=1.0), 1000, 974),
        (MemoryCap(share=1.0), 10, 0),  # never below nothing
        (MemoryCap(limit_bytes=500 * MIB), 1000, 500),  # a cap in bytes is given to the plan whole
        (MemoryCap(limit_bytes=990 * MIB), 1000, 974),  # unless that leaves less than the reserve
        (MemoryCap(limit_bytes=2000 * MIB), 1000, 974),
        (MemoryCap(limit_bytes=1 * MIB), 0, 0),
    ],
)
def test_the_cap_applies_to_what_is_free_less_the_reserve(cap: MemoryCap, free_mib: int, usable_mib: int) -> None:
    assert budget(cap, free_mib * MIB).usable_bytes == usable_mib * MIB
