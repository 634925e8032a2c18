"""API keys of the gateway: several, each with a name; made, listed, revoked, and compared in constant time.

The file has no key, only what a key is recognised by: its SHA-256. Keys are 256 random bits, so nothing is to be gained
by guessing, and neither salt nor a slow hash would add anything. A key is shown once, when it is made. One is kept in
plain text beside, for this user's own `meshctl chat`, as `ssh` keeps a private key. Both files are of mode 0600.
"""

import hashlib
import hmac
import os
import re
import secrets
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import TypeAdapter, ValidationError

from orchestrator.errors import GatewayError, UsageError
from orchestrator.state import write_private

KEY_PREFIX = "mesh-"
OWN_NAME = "own"
"""The key that `meshctl up` makes, for `meshctl chat` of the same user."""

LOCK_S = 5.0
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")


@dataclass(frozen=True)
class KnownKey:
    """What is kept of a key: `sha256` of all of it, and its `end`, which tells a user which one it is."""

    name: str
    sha256: str
    end: str
    made_at: str  # ISO 8601, UTC


_FILE = TypeAdapter(tuple[KnownKey, ...])


@dataclass(frozen=True)
class ApiKeys:
    """The keys that open the gateway."""

    keys: tuple[KnownKey, ...]

    def name_of(self, presented: str) -> str | None:
        """Whose key this is, None for no key of ours. All are compared, so that the time taken tells nothing."""
        digest = _digest(presented)
        matches = [key.name for key in self.keys if hmac.compare_digest(digest, key.sha256)]
        return matches[0] if matches else None


class KeyFile:
    """The keys as they are now: read again whenever the file has changed, so that what is revoked opens nothing."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = None
        self._keys = ApiKeys(())

    def now(self) -> ApiKeys:
        """GatewayError while the file cannot be read: then nobody is let in."""
        try:
            status = self._path.stat()
            seen = (status.st_ino, status.st_mtime_ns, status.st_size)
        except OSError as error:
            self._seen = None
            raise GatewayError(f"{self._path}: the keys cannot be read: {error.strerror}") from error
        if seen != self._seen:
            self._keys = read_keys(self._path)
            self._seen = seen
        return self._keys


def make_key() -> str:
    """A new key with 256 random bits."""
    return KEY_PREFIX + secrets.token_urlsafe(32)


def known_key(name: str, key: str) -> KnownKey:
    """What is kept of a key that is made now."""
    return KnownKey(name, _digest(key), key[-4:], datetime.now(UTC).isoformat(timespec="seconds"))


def add_key(path: Path, name: str) -> str:
    """Make a key of this name, which is shown to nobody but the caller. UsageError for a name that is taken or none."""
    if _NAME.fullmatch(name) is None:
        raise UsageError(
            f"{name!r} cannot be the name of a key", hint="use letters, digits, dots, dashes, _ and @, at most 64"
        )
    key = make_key()
    with _changing(path) as changing:
        if any(known.name == name for known in changing.keys):
            raise UsageError(
                f"there is a key named {name} already",
                hint=f"choose another name, or `meshctl key revoke {name}` first",
            )
        changing.write((*changing.keys, known_key(name, key)))
    return key


def revoke_key(path: Path, name: str, own: Path) -> None:
    """The key of this name opens nothing any more; this user's own one goes from its file `own` too.

    UsageError when there is none.
    """
    with _changing(path) as changing:
        kept = tuple(known for known in changing.keys if known.name != name)
        if len(kept) == len(changing.keys):
            names = ", ".join(known.name for known in changing.keys) or "none"
            raise UsageError(f"there is no key named {name}", hint=f"the keys are {names}")
        if name == OWN_NAME:
            own.unlink(missing_ok=True)
        changing.write(kept)


def read_keys(path: Path) -> ApiKeys:
    """All keys, none where there is no file yet; GatewayError when it is damaged or open to other users."""
    try:
        _check_private(path)
        return ApiKeys(_FILE.validate_json(path.read_bytes()))
    except FileNotFoundError:
        return ApiKeys(())
    except OSError as error:
        raise GatewayError(f"{path}: the keys cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise GatewayError(f"{path}: the keys cannot be read", hint="remove the file, and make new keys") from error


def ensure_own_key(keys: Path, own: Path) -> tuple[str, bool]:
    """This user's own key, kept in the file `own` and known to the gateway, and whether it was made just now."""
    made = not own.exists()
    key = make_key() if made else read_own_key(own)
    with _changing(keys) as changing:
        if made:
            write_private(own, key + "\n")
        if ApiKeys(changing.keys).name_of(key) is None:
            others = tuple(known for known in changing.keys if known.name != OWN_NAME)
            changing.write((*others, known_key(OWN_NAME, key)))
    return key, made


def read_own_key(path: Path) -> str:
    """GatewayError when the file is missing, empty, or open to other users."""
    try:
        _check_private(path)
        key = path.read_text(encoding="utf-8").strip()
    except FileNotFoundError as error:
        raise GatewayError(f"{path}: there is no key file", hint="`meshctl up` makes the key") from error
    except (OSError, UnicodeDecodeError) as error:
        raise GatewayError(
            f"{path}: the key file cannot be read: {error}", hint="remove it; a new key is made"
        ) from error
    if not key:
        raise GatewayError(f"{path}: the key file is empty", hint="remove it; a new key is made")
    return key


@dataclass(frozen=True)
class _Changing:
    """The file of keys while nobody else changes it."""

    path: Path
    keys: tuple[KnownKey, ...]

    def write(self, keys: Sequence[KnownKey]) -> None:
        write_private(self.path, _FILE.dump_json(tuple(keys), indent=2).decode())


@contextmanager
def _changing(path: Path) -> Iterator[_Changing]:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = FileLock(f"{path}.lock", timeout=LOCK_S)
    try:
        lock.acquire()
    except Timeout as error:
        raise GatewayError(f"{path} is held by another program", hint="try again in a moment") from error
    try:
        yield _Changing(path, read_keys(path).keys)
    finally:
        lock.release()


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _check_private(path: Path) -> None:
    if stat.S_IMODE(os.stat(path).st_mode) & 0o077:
        raise GatewayError(f"{path}: other users can read this key file", hint=f"chmod 600 {path}, and make new keys")
