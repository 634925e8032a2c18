"""Bytes, rates and durations as text for people; pure, and the only place where units are chosen for display."""

UNITS = (("B", 1), ("KiB", 1024), ("MiB", 1024**2), ("GiB", 1024**3), ("TiB", 1024**4))


def bytes_text(size_bytes: float) -> str:
    """Such as "812 B", "16.0 KiB", "512 MiB" or "41.2 GiB": three figures in powers of 1024."""
    unit, factor = unit_for(size_bytes)
    return f"{in_unit(size_bytes, factor)} {unit}"


def unit_for(size_bytes: float) -> tuple[str, int]:
    """The unit that shows `size_bytes` below 1024, and its bytes."""
    return next(((unit, factor) for unit, factor in UNITS if abs(size_bytes) < 1023.5 * factor), UNITS[-1])


def in_unit(size_bytes: float, factor: int) -> str:
    """`size_bytes` as a number of units of `factor` bytes; small numbers keep one decimal."""
    value = size_bytes / factor
    return f"{value:.1f}" if factor > 1 and abs(value) < 99.95 else f"{value:.0f}"


def parts_text(parts: dict[str, int]) -> str:
    """A sum and what it is made of, all in one unit: "36.0 GiB (a 12.0, b 24.0)"."""
    total = sum(parts.values())
    _, factor = unit_for(total)
    return f"{bytes_text(total)} ({', '.join(f'{name} {in_unit(size, factor)}' for name, size in parts.items())})"


def rate_text(bytes_per_s: float) -> str:
    """Such as "117 MiB/s"."""
    return f"{bytes_text(bytes_per_s)}/s"


def tokens_text(tokens_per_s: float) -> str:
    """Such as "8.75 tok/s", "53.5 tok/s" or "1200 tok/s"."""
    return f"{tokens_per_s:.{_decimals(tokens_per_s)}f} tok/s"


def duration_text(seconds: float) -> str:
    """Such as "57 µs", "12.3 ms", "3.2 s", "2 min 5 s" or "1 h 5 min"."""
    if seconds == 0:
        return "0 s"
    if abs(seconds) < 0.000_999_5:
        return f"{seconds * 1e6:.{0 if abs(seconds) >= 9.95e-6 else 1}f} µs"
    if abs(seconds) < 0.9995:
        return f"{milliseconds_text(seconds)} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def age_text(seconds: float) -> str:
    """Whole and short, for what goes on: "12 s", "3 min 5 s", "2 h 5 min" or "3 d 4 h"."""
    whole = max(0, int(seconds))
    for unit, smaller, factor, part in (("d", "h", 86400, 3600), ("h", "min", 3600, 60), ("min", "s", 60, 1)):
        if whole >= factor:
            return f"{whole // factor} {unit} {whole % factor // part} {smaller}"
    return f"{whole} s"


def of_text(part_bytes: float, whole_bytes: float) -> str:
    """A part and the whole in the whole's unit, such as "95.7/160 MiB"."""
    unit, factor = unit_for(whole_bytes)
    return f"{in_unit(part_bytes, factor)}/{in_unit(whole_bytes, factor)} {unit}"


def milliseconds_text(seconds: float) -> str:
    """Milliseconds with three figures and no unit, such as "0.06", "1.23", "12.3" or "123"."""
    return f"{seconds * 1e3:.{_decimals(seconds * 1e3)}f}"


def _decimals(value: float) -> int:
    """Decimals that show about three figures."""
    if abs(value) < 9.995:
        return 2
    return 1 if abs(value) < 99.95 else 0
