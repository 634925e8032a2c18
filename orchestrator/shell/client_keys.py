"""What we log in with: the keys that `ssh` would try, from its agent and from files, without ever asking anybody."""

import os
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import asyncssh

from orchestrator.shell.ssh_config import SshTarget


@dataclass(frozen=True)
class ClientKeys:
    """What we log in with: agent keys and key files, and in words what was tried or could not be used."""

    pairs: tuple[asyncssh.SSHKeyPair, ...]
    tried: str


async def client_keys(target: SshTarget, agents: AsyncExitStack) -> ClientKeys:
    """Agent keys and key files in ssh's order: agent keys that are configured, other agent keys, then files."""
    files, locked = _read_key_files(target)
    configured = {data for path in target.identity_files if (data := _public_data(path)) is not None}
    from_agent = await _agent_keys(target, agents)
    wanted = [pair for pair in from_agent if pair.public_data in configured]
    others = [] if target.identities_only else [pair for pair in from_agent if pair.public_data not in configured]
    pairs = (*wanted, *others, *(pair for pair in files if pair.public_data not in {w.public_data for w in wanted}))
    return ClientKeys(pairs, _describe(target, len(wanted) + len(others), locked))


def _read_key_files(target: SshTarget) -> tuple[list[asyncssh.SSHKeyPair], list[str]]:
    pairs: list[asyncssh.SSHKeyPair] = []
    locked = []
    certificates = [path for path in target.certificate_files if Path(path).is_file()]
    for path in filter(os.path.isfile, target.identity_files):
        try:
            read = asyncssh.load_keypairs([path], certlist=certificates, ignore_encrypted=True)
        except (OSError, ValueError):  # not a private key, or not readable: ssh goes on with the next one, too
            read = []
        pairs += read
        if not read:
            locked.append(path)
    return pairs, locked


def _public_data(path: str) -> bytes | None:
    for file in (f"{path}.pub", path):
        try:
            return asyncssh.read_public_key(file).public_data
        except (OSError, ValueError):
            continue
    return None


async def _agent_keys(target: SshTarget, agents: AsyncExitStack) -> list[asyncssh.SSHKeyPair]:
    path = os.path.expandvars(target.identity_agent) or os.environ.get("SSH_AUTH_SOCK", "")
    if target.identity_agent == "none" or not path:
        return []
    try:
        agent = await asyncssh.connect_agent(path)
        agents.push_async_callback(_close_agent, agent)
        return list(await agent.get_keys())
    except (OSError, ValueError, asyncssh.Error):  # no agent, or one that does not answer: ssh goes on without, too
        return []


def _describe(target: SshTarget, from_agent: int, locked: list[str]) -> str:
    tried = [path for path in target.identity_files if os.path.isfile(path) and path not in locked]
    parts = [f"{from_agent} key(s) of the agent"] if from_agent else []
    parts += tried or ([] if from_agent else ["no key: no agent holds one and no key file exists"])
    parts += [f"not {path} (unreadable, or protected by a passphrase: `ssh-add {path}` helps)" for path in locked]
    return ", ".join(parts)


async def _close_agent(agent: asyncssh.SSHAgentClient) -> None:
    agent.close()
    await agent.wait_closed()
