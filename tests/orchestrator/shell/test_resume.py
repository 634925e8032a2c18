"""Transfers that break off and go on: over a real SSH connection, and on this machine."""

import os
from pathlib import Path

import pytest

from orchestrator.errors import TransferError
from orchestrator.shell.local import LocalShell
from orchestrator.shell.protocol import Shell
from orchestrator.shell.resume import CHUNK_BYTES, Resumable, resume_at
from orchestrator.shell.ssh import SshShell, open_ssh_shell
from orchestrator.shell.ssh_config import SshFiles
from tests.orchestrator.shell.ssh_server import Server, host_of

DATA = os.urandom(3 * CHUNK_BYTES + 1000)
PART = ".0f.resumed.part"

Seen = list[tuple[int, int]]


def resumable(wanted: bytes = DATA) -> Resumable:
    async def is_whole(path: str) -> bool:
        return Path(path).read_bytes() == wanted

    return Resumable("0f", is_whole)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "source").write_bytes(DATA)
    return tmp_path / "source"


@pytest.fixture(params=["ssh", "local"])
async def either(request: pytest.FixtureRequest, server: Server, shell: SshShell) -> Shell:
    """Both shells, with the same home."""
    return shell if request.param == "ssh" else LocalShell("desk", server.home / "root", server.home)


async def put(shell: Shell, source: Path, resume: Resumable, home: Path) -> Seen:
    seen: Seen = []
    target = str(home / "folder" / "target")
    await shell.put(source, target, mode=0o755, progress=lambda *figures: seen.append(figures), resume=resume)
    return seen


def there(server: Server) -> list[str]:
    return sorted(os.listdir(server.home / "folder"))


async def test_a_transfer_goes_on_with_the_last_chunk_that_was_begun(
    either: Shell, server: Server, source: Path
) -> None:
    (server.home / "folder").mkdir()
    (server.home / "folder" / PART).write_bytes(DATA[: 2 * CHUNK_BYTES + 17])
    seen = await put(either, source, resumable(), server.home)
    assert seen[0][0] > 2 * CHUNK_BYTES
    assert seen[-1] == (len(DATA), len(DATA))
    assert (server.home / "folder" / "target").read_bytes() == DATA
    assert (server.home / "folder" / "target").stat().st_mode & 0o777 == 0o755
    assert there(server) == ["target"]


@pytest.mark.parametrize("damaged", [bytes(2 * CHUNK_BYTES), DATA + b"more"])
async def test_what_is_there_and_not_right_is_sent_anew(
    either: Shell, server: Server, source: Path, damaged: bytes
) -> None:
    (server.home / "folder").mkdir()
    (server.home / "folder" / PART).write_bytes(damaged)
    seen = await put(either, source, resumable(), server.home)
    assert min(done for done, _ in seen) <= CHUNK_BYTES
    assert seen[-1] == (len(DATA), len(DATA))
    assert (server.home / "folder" / "target").read_bytes() == DATA
    assert there(server) == ["target"]


async def test_what_arrives_as_something_else_is_an_error_and_leaves_nothing(
    either: Shell, server: Server, source: Path
) -> None:
    with pytest.raises(TransferError, match=r"target: what arrived is not what was sent \(by its sha256\)"):
        await put(either, source, resumable(b"something else"), server.home)
    assert there(server) == []


async def test_a_lost_connection_costs_no_more_than_a_chunk(
    shell: SshShell, server: Server, trusted: SshFiles, login: Path, source: Path
) -> None:
    def cut(done: int, total: int) -> None:
        shell._login.connection.abort()

    target = str(server.home / "folder" / "target")
    with pytest.raises(TransferError):
        await shell.put(source, target, progress=cut, resume=resumable())
    assert there(server) == [PART]
    again = await open_ssh_shell(host_of(server, login), trusted)
    first, *_ = await put(again, source, resumable(), server.home)
    await again.close()
    assert first[0] >= CHUNK_BYTES
    assert (server.home / "folder" / "target").read_bytes() == DATA
    assert there(server) == ["target"]


async def test_a_full_disk_keeps_nothing(shell: SshShell, server: Server, source: Path) -> None:
    server.fills_up = True
    with pytest.raises(TransferError, match="does not fit"):
        await put(shell, source, resumable(), server.home)
    assert there(server) == []


def test_where_a_transfer_goes_on() -> None:
    size = 2 * CHUNK_BYTES + 5
    begun = (0, 1, CHUNK_BYTES, CHUNK_BYTES + 1, size, size + 1)
    assert [resume_at(there_bytes, size) for there_bytes in begun] == [0, 0, 0, CHUNK_BYTES, 2 * CHUNK_BYTES, 0]
