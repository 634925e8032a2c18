"""Sizes of models in messages, as `orchestrator.view.sizes` writes them; this package knows nothing of that one."""

_UNITS = (("KiB", 1024), ("MiB", 1024**2), ("GiB", 1024**3))


def size_text(size_bytes: int) -> str:
    """Such as "93.8 MiB" or "117 GiB"."""
    unit, factor = next((one for one in _UNITS if size_bytes < 1023.5 * one[1]), _UNITS[-1])
    value = size_bytes / factor
    return f"{value:.1f} {unit}" if value < 99.95 else f"{value:,.0f} {unit}"
