"""Links measured against the agent's own measuring server."""

import socket
import threading
from pathlib import Path

import pytest

from orchestrator.errors import ConnectError
from orchestrator.host_agent import ensure_agent, start_link_server
from orchestrator.shell.local import LocalShell
from orchestrator.survey.links import measure_link


async def test_a_loopback_link_is_measured_both_ways(tmp_path: Path) -> None:
    """Round trip in a sane range, throughput above what any disk or network here would limit it to."""
    shell = LocalShell("here", tmp_path, tmp_path)
    server = await start_link_server(shell, await ensure_agent(shell))
    try:
        link = await measure_link("here", "loopback", ("127.0.0.1", server.port))
    finally:
        await server.close()
        await shell.close()
    assert link.kind == "loopback"
    assert 1e-6 < link.round_trip_s < 0.1
    assert min(link.up_bytes_per_s, link.down_bytes_per_s) > 10e6


async def test_a_link_is_measured_through_a_socket_that_is_gone_with_its_server(tmp_path: Path) -> None:
    shell, near = LocalShell("here", tmp_path, tmp_path), tmp_path / "run" / "near.sock"
    server = await start_link_server(shell, await ensure_agent(shell), socket=str(near))
    try:
        link = await measure_link("here", "tunnel", str(near), medium="wired")
    finally:
        await server.close()
        await shell.close()
    assert (link.kind, link.medium, link.round_trip_s < 0.1) == ("tunnel", "wired", True)
    assert not near.exists()


async def test_a_far_end_that_hangs_up_is_an_error_that_names_forwarding() -> None:
    """What a tunnel looks like whose far end is refused: it connects, then closes."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        place = listener.getsockname()
        listener.settimeout(10)
        closing = threading.Thread(target=lambda: listener.accept()[0].close())
        closing.start()
        with pytest.raises(
            ConnectError, match="far: the tunnel link carries nothing: the far end closed the connection"
        ) as caught:
            await measure_link("far", "tunnel", place, deadline_s=5)
        closing.join(timeout=10)
    assert "AllowTcpForwarding yes" in caught.value.hint
