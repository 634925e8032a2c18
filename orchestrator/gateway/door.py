"""What the inventory says of the gateway, as its parts take it, and what a user should be warned of. Pure."""

from orchestrator.gateway.connections import ConnectionLimits
from orchestrator.gateway.head import Deadlines
from orchestrator.gateway.line import LineLimits
from orchestrator.gateway.tls import Tls, is_loopback
from orchestrator.inventory import GatewaySettings

WAITING_BODIES = 8
"""So many of the largest bodies may wait in line."""


def deadlines_of(settings: GatewaySettings) -> Deadlines:
    return Deadlines(answer_s=settings.deadline_s)


def line_limits_of(settings: GatewaySettings) -> LineLimits:
    return LineLimits(settings.waiting, WAITING_BODIES * settings.body_bytes, settings.wait_s)


def connection_limits_of(settings: GatewaySettings) -> ConnectionLimits:
    return ConnectionLimits(settings.connections)


def warnings_of(settings: GatewaySettings, tls: Tls | None) -> tuple[str, ...]:
    """One line each."""
    if tls is not None:
        return (tls.warning,) if tls.warning else ()
    if is_loopback(settings.host):
        return ()
    return (
        f"keys and conversations cross the network unencrypted: the gateway listens on {settings.host} without TLS; set"
        " `gateway.tls` in the inventory",
    )
