"""With which certificate the gateway meets its clients, and what this user's own client trusts in return.

A certificate of the user's is taken as it is; one that meshctl makes is kept with its key in the cluster's folder until
it nears its end or the names it is for change. What is served lies beside, alone: `meshctl chat` trusts exactly that.
"""

import ipaddress
import socket
import ssl
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from orchestrator.certificates import fingerprint, names_of, pem, read_certificate, self_signed, validity_problem
from orchestrator.errors import BringUpError
from orchestrator.folders import ClusterFolder
from orchestrator.inventory import GatewaySettings, TlsFiles
from orchestrator.state import write_private

_NOWHERE = (("192.0.2.1", socket.AF_INET), ("2001:db8::1", socket.AF_INET6))
"""Addresses for documentation (RFC 5737, RFC 3849), to ask the system which address of ours it would send from."""

_NO_CHECK_TIME = 0x200000
"""OpenSSL's X509_V_FLAG_NO_CHECK_TIME, which Python has no name for."""


@dataclass(frozen=True)
class Tls:
    """What the gateway serves with. `certificate` is the file that clients trust; `warning` is "" if all is well."""

    context: ssl.SSLContext = field(repr=False)
    certificate: Path
    fingerprint: str
    warning: str = ""


def prepare_tls(settings: GatewaySettings, folder: ClusterFolder, now: datetime) -> Tls | None:
    """None without `gateway.tls`. BringUpError when the files cannot be used, although they could be read before."""
    if settings.tls is None:
        return None
    if not isinstance(settings.tls, TlsFiles):
        _keep_self_signed(folder.self_signed, certified_names(settings.host), now)
        return _tls(TlsFiles(str(folder.self_signed), str(folder.self_signed)), folder, now)
    return _tls(settings.tls, folder, now)


def pinning_context(certificate: Path) -> ssl.SSLContext:
    """For a client that trusts this one certificate and no authority.

    It is the certificate that tells the gateway from others, so neither the name that it was reached by nor the day
    matters. OSError, of which ssl.SSLError is one, when the file cannot be read.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | _NO_CHECK_TIME
    context.load_verify_locations(cadata=certificate.read_text(encoding="ascii"))
    return context


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def certified_names(host: str) -> frozenset[str]:
    """The names and addresses that a gateway listening on `host` is reached by."""
    names = {"localhost", "127.0.0.1", "::1", socket.gethostname()}
    if host in ("0.0.0.0", "::"):
        names.update(_own_addresses())
    else:
        names.add(host.partition("%")[0])
    return frozenset(name for name in names if name and name.isascii())


def _own_addresses() -> Iterator[str]:
    """Those from which this machine would send to others; nothing is sent."""
    for address, family in _NOWHERE:
        with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((address, 9))
            yield str(probe.getsockname()[0])


def _keep_self_signed(path: Path, names: frozenset[str], now: datetime) -> None:
    with suppress(ValueError):  # not there yet, or damaged
        kept = read_certificate(path)
        if names_of(kept) == names and not validity_problem(kept, now):
            return
    write_private(path, self_signed(names, now))


def _tls(files: TlsFiles, folder: ClusterFolder, now: datetime) -> Tls:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        certificate = read_certificate(Path(files.certificate))
        context.load_cert_chain(files.certificate, files.key, password="")  # never asks for one
    except (ValueError, OSError) as error:
        hint = "`gateway.tls` in the inventory names them"
        raise BringUpError(f"{files.certificate} and {files.key} cannot be used for TLS: {error}", hint=hint) from error
    write_private(folder.gateway_certificate, pem(certificate))
    problem = validity_problem(certificate, now)
    warning = f"`gateway.tls.certificate`: {files.certificate} {problem}; get a new one" if problem else ""
    return Tls(context, folder.gateway_certificate, fingerprint(certificate), warning)
