"""What the inventory says of the gateway, as the gateway takes it."""

from pathlib import Path

import pytest

from orchestrator.gateway.connections import ConnectionLimits
from orchestrator.gateway.door import connection_limits_of, deadlines_of, line_limits_of, warnings_of
from orchestrator.gateway.head import Deadlines
from orchestrator.gateway.line import LineLimits
from orchestrator.inventory import GatewaySettings


def test_the_inventorys_defaults_are_the_gateways_own() -> None:
    settings = GatewaySettings()
    assert deadlines_of(settings) == Deadlines()
    assert line_limits_of(settings) == LineLimits()
    assert connection_limits_of(settings) == ConnectionLimits()


def test_what_is_set_is_followed() -> None:
    settings = GatewaySettings(connections=9, waiting=7, wait_s=5, deadline_s=3, body_bytes=1024)
    assert deadlines_of(settings).answer_s == 3
    assert line_limits_of(settings) == LineLimits(7, 8192, 5)
    assert connection_limits_of(settings).connections == 9


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_without_tls_on_loopback_there_is_nothing_to_warn_of(host: str) -> None:
    assert warnings_of(GatewaySettings(host=host), None) == ()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.20", "nuc.example"])
def test_without_tls_on_a_network_one_line_says_what_crosses_it(host: str) -> None:
    (warning,) = warnings_of(GatewaySettings(host=host), None)
    assert warning == (
        f"keys and conversations cross the network unencrypted: the gateway listens on {host} without TLS; set"
        " `gateway.tls` in the inventory"
    )


def test_with_tls_only_the_certificate_is_warned_of(tmp_path: Path) -> None:
    import ssl

    from orchestrator.gateway.tls import Tls

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    anywhere = GatewaySettings(host="0.0.0.0", tls="self-signed")
    assert warnings_of(anywhere, Tls(context, tmp_path, "AB")) == ()
    assert warnings_of(anywhere, Tls(context, tmp_path, "AB", "expired")) == ("expired",)
