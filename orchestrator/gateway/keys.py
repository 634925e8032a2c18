"""API keys of the gateway: made, kept in a file that only its owner reads, and compared in constant time.

A key is never logged; it is shown only by whoever calls `make_key` or `ensure_key`.
"""

import os
import secrets
import stat
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.errors import GatewayError

KEY_PREFIX = "mesh-"


@dataclass(frozen=True)
class ApiKeys:
    """The keys that open the gateway."""

    keys: tuple[str, ...] = field(repr=False)

    def allow(self, presented: str) -> bool:
        """Compare with every key, each in constant time, so that the time taken tells nothing about any of them."""
        matches = [secrets.compare_digest(presented.encode(), key.encode()) for key in self.keys]
        return any(matches)


def make_key() -> str:
    """A new key with 256 random bits."""
    return KEY_PREFIX + secrets.token_urlsafe(32)


def store_key(path: Path, key: str) -> None:
    """Write the key to a new file with mode 0600 and put that in place whole."""
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(key + "\n")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_keys(path: Path) -> ApiKeys:
    """Read one key per line; GatewayError when the file is missing, empty, or open to other users."""
    try:
        mode = path.stat().st_mode
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise GatewayError(f"{path}: there is no key file", hint="`meshctl up` makes the key") from error
    except (OSError, UnicodeDecodeError) as error:
        raise GatewayError(
            f"{path}: the key file cannot be read: {error}", hint="remove it; a new key is made"
        ) from error
    if stat.S_IMODE(mode) & 0o077:
        raise GatewayError(f"{path}: other users can read this key file", hint=f"chmod 600 {path}, and make a new key")
    keys = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not keys:
        raise GatewayError(f"{path}: the key file is empty", hint="remove it; a new key is made")
    return ApiKeys(keys)


def ensure_key(path: Path) -> tuple[str, bool]:
    """The first key of the file, and whether it was made just now."""
    if path.exists():
        return read_keys(path).keys[0], False
    key = make_key()
    store_key(path, key)
    return key, True
