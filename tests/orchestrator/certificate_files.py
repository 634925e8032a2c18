"""Certificates for tests, of every kind that a user might bring."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from orchestrator.certificates import VALID_FOR, self_signed

NOW = datetime.now(UTC)
LONG_AGO = NOW - VALID_FOR - timedelta(days=2)


def write_pair(folder: Path, name: str = "gateway", made_at: datetime = NOW) -> tuple[Path, Path]:
    """A certificate for loopback, and its key."""
    text = self_signed(("127.0.0.1", "localhost"), made_at)
    end = text.index("-----BEGIN CERTIFICATE")
    certificate, key = folder / f"{name}.crt", folder / f"{name}.pem"
    certificate.write_text(text[end:])
    key.write_text(text[:end])
    return certificate, key


def write_locked_key(path: Path) -> None:
    """One that is protected by a password."""
    lock = serialization.BestAvailableEncryption(b"secret")
    key = ec.generate_private_key(ec.SECP256R1())
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, lock))
