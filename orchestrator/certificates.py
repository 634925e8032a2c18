"""TLS certificates of the gateway: read and checked, made, and recognised by their fingerprint.

What is wrong with a file of the user's is a `ValueError` in the words of the inventory's checks: what is wrong, a
semicolon, and what to write.
"""

import ipaddress
from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes, PublicKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

VALID_FOR = timedelta(days=825)
"""The longest that Apple's systems accept of a certificate which a user trusts by hand."""

RENEWED_BEFORE = timedelta(days=30)
LARGEST_FILE_BYTES = 1024 * 1024


def read_certificate(path: Path) -> x509.Certificate:
    """The first certificate of a PEM file: the gateway's own, before those that vouch for it."""
    ask = "name a PEM file that begins with the gateway's certificate"
    text = _bytes(path, ask)
    try:
        return x509.load_pem_x509_certificates(text)[0]
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ValueError(f"{path} holds no certificate that can be read; {ask}") from error


def check_key(path: Path, certificate: Path | None) -> None:
    """That the file holds a private key without a password, and that of the certificate if there is one."""
    key = _read_key(path)
    if certificate is not None and _public(key.public_key()) != _public(read_certificate(certificate).public_key()):
        raise ValueError(f"{path} does not belong to {certificate}; name the key that the certificate was made with")


def fingerprint(certificate: x509.Certificate) -> str:
    """As `openssl x509 -noout -fingerprint -sha256` prints it."""
    return certificate.fingerprint(hashes.SHA256()).hex(":").upper()


def pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def validity_problem(certificate: x509.Certificate, now: datetime) -> str:
    """That it is not valid now, or will not be for long; "" if all is well."""
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now >= end:
        return f"expired on {end:%Y-%m-%d}"
    if now < begin:
        return f"is not valid before {begin:%Y-%m-%d}"
    return f"expires on {end:%Y-%m-%d}" if now >= end - RENEWED_BEFORE else ""


def names_of(certificate: x509.Certificate) -> frozenset[str]:
    """The host names and addresses that it is for."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return frozenset()
    addresses = names.get_values_for_type(x509.IPAddress)
    return frozenset(names.get_values_for_type(x509.DNSName)) | {str(address) for address in addresses}


def self_signed(names: Collection[str], now: datetime) -> str:
    """A new key and a certificate for these names and addresses, in one PEM text."""
    key = ec.generate_private_key(ec.SECP256R1())
    return _private(key) + pem(_signed(key, names, now))


def one_time_identity() -> tuple[str, str]:
    """A key with a certificate, and the certificate alone (PEM), for one that is known by this very certificate.

    Its dates say nothing, since the clocks of machines may say anything.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "meshctl, once")])
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
    dated = builder.not_valid_before(datetime(1970, 1, 2, tzinfo=UTC)).not_valid_after(datetime(9999, 1, 1, tzinfo=UTC))
    certificate = pem(dated.serial_number(x509.random_serial_number()).sign(key, hashes.SHA256()))
    return _private(key) + certificate, certificate


def _private(key: ec.EllipticCurvePrivateKey) -> str:
    form = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()).decode()


def _signed(key: ec.EllipticCurvePrivateKey, names: Collection[str], now: datetime) -> x509.Certificate:
    """The extensions are those that strict clients ask of a server's certificate (RFC 5280, 4.2)."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "meshctl gateway")])
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))  # clocks differ
        .not_valid_after(now + VALID_FOR)
        .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in sorted(names)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(identifier, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier(identifier.digest, None, None), critical=False)
    )
    return builder.sign(key, hashes.SHA256())


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _read_key(path: Path) -> PrivateKeyTypes:
    ask = "name the PEM file of the certificate's private key"
    text = _bytes(path, ask)
    try:
        return serialization.load_pem_private_key(text, None)
    except TypeError as error:
        hint = "name a key without one, as nobody is there to type it when the gateway starts"
        raise ValueError(f"{path} is protected by a password; {hint}") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ValueError(f"{path} holds no private key that can be read; {ask}") from error


def _public(key: PublicKeyTypes) -> bytes:
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _bytes(path: Path, ask: str) -> bytes:
    """ValueError for what is no readable small file; opening a pipe would wait for ever."""
    if not path.is_file():
        raise ValueError(f"{path} {'is not a file' if path.exists() else 'does not exist'}; {ask}")
    try:
        with path.open("rb") as file:
            return file.read(LARGEST_FILE_BYTES)
    except OSError as error:
        reason = (error.strerror or "unknown reason").lower()
        raise ValueError(f"{path} cannot be read ({reason}); let this user read it") from error
