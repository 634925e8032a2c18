"""Amounts of memory as people write them: `12GiB`, `800MiB`, `12GB`, `80%`. Pure text in, numbers out.

Every refusal is a `ValueError` whose text says what is wrong and, after a semicolon, what to write instead.
"""

import re
from decimal import Decimal

from workers.budget import MIB, MemoryCap

UNITS = {
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}
LARGEST_BYTES = 2**50
EXAMPLES = 'write a size such as "12GiB" or "800MiB", or a share such as "80%"'

_AMOUNT = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*([A-Za-z]*|%)")


def shown(text: str, length: int = 40) -> str:
    """The text in quotes, cut when it is long, so that a message stays one readable line."""
    one_line = " ".join(text.split())
    return f'"{one_line[:length]}..."' if len(one_line) > length else f'"{one_line}"'


def parse_bytes(text: str) -> int:
    """`12GiB` (1024-based) or `12GB` (1000-based) as bytes; letters of either case, fractions allowed."""
    amount, unit = _amount(text, 'write a size such as "12GiB" or "800MiB"')
    if unit == "%":
        raise ValueError(f'{shown(text)} is a share where a size is needed; write a size such as "12GiB" or "800MiB"')
    if unit not in UNITS:
        raise ValueError(_unknown_unit(text, amount, unit))
    size_bytes = int(amount * UNITS[unit])
    if size_bytes > LARGEST_BYTES:
        raise ValueError(f"{shown(text)} is more than any machine has; write at most 1024TiB")
    return size_bytes


def parse_cap(text: str) -> MemoryCap:
    """A limit on a device's memory: a share of what is free (more than 0%, at most 100%) or a size from 1 MiB on."""
    amount, unit = _amount(text, EXAMPLES)
    if unit == "%":
        if not 0 < amount <= 100:
            raise ValueError(f'{shown(text)} is not a possible share; write more than "0%" and at most "100%"')
        return MemoryCap(share=float(amount / 100))
    return MemoryCap(limit_bytes=parse_memory(text))


def parse_memory(text: str) -> int:
    """A size from 1 MiB on, as bytes."""
    size_bytes = parse_bytes(text)
    if size_bytes < MIB:
        raise ValueError(f'{shown(text)} is too little to hold anything; write at least "1MiB"')
    return size_bytes


def _amount(text: str, examples: str) -> tuple[Decimal, str]:
    match = _AMOUNT.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{shown(text)} is not an amount of memory; {examples}")
    return Decimal(match[1]), match[2].upper()


def _unknown_unit(text: str, amount: Decimal, unit: str) -> str:
    if unit == "":
        return f'{shown(text)} has no unit; write "{amount}GiB" or "{amount}MiB"'
    if f"{unit}IB" in UNITS:
        return f'{shown(text)} has an unclear unit; write "{amount}{unit}iB" (1024-based) or "{amount}{unit}B"'
    return f"{shown(text)} has an unknown unit; use KiB, MiB, GiB or TiB"
