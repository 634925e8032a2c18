"""Links measured against the agent's own measuring server."""

import asyncio
import socket
import threading
from pathlib import Path

import pytest

from orchestrator.errors import ConnectError
from orchestrator.host_agent import start_link_server
from orchestrator.host_door import ensure_agent
from orchestrator.shell.local import LocalShell
from orchestrator.survey.links import Line, measure_link


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


async def test_round_trips_of_one_link_never_wait_behind_bulk_of_another() -> None:
    """Two move side by side; whoever wants to be alone waits for them, and goes before those who come to move."""
    line, seen = Line(), list[str]()

    async def moves(name: str) -> None:
        async with line.shared():
            seen.append(f"{name} begins")
            await asyncio.sleep(0.02)
            seen.append(f"{name} ends")

    async def is_alone(name: str) -> None:
        async with line.alone():
            seen.append(f"{name} begins")
            await asyncio.sleep(0.02)
            seen.append(f"{name} ends")

    async with asyncio.TaskGroup() as group:
        for coroutine in (moves("bulk 1"), moves("bulk 2"), is_alone("trip 1"), moves("bulk 3"), is_alone("trip 2")):
            group.create_task(coroutine)
    assert set(seen[:2]) == {"bulk 1 begins", "bulk 2 begins"}
    assert set(seen[2:4]) == {"bulk 1 ends", "bulk 2 ends"}
    assert seen[4:] == [
        *("trip 1 begins", "trip 1 ends", "trip 2 begins", "trip 2 ends", "bulk 3 begins", "bulk 3 ends"),
    ]


async def test_one_that_gave_up_waiting_leaves_the_line_free() -> None:
    line = Line()
    async with line.shared():
        waiting = asyncio.create_task(line.alone().__aenter__())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    async with asyncio.timeout(1), line.shared():
        pass
