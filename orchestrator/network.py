"""The network of ours alone on this machine, in which heads, their workers and the ends of tunnels meet.

llama.cpp's RPC asks nobody for a password, so its ports are kept from this machine's other users: they exist in a
network that the agent holds (see `leave_network` there), where the system allows one.
"""

import asyncio
from itertools import count

from orchestrator.host_agent import HeldNetwork, start_network
from orchestrator.shell.protocol import Shell, Words
from workers.agent import FIRST_PORT
from workers.commands import in_network


class PrivateNetwork:
    """Held from the first time it is asked for until `close`; `refused` is why there is none ("": there is one)."""

    def __init__(self, shell: Shell, agent: str, refused: str) -> None:
        self.refused = refused
        self._shell = shell
        self._agent = agent
        self._ports = count(FIRST_PORT)
        self._holding: asyncio.Task[HeldNetwork] | None = None

    async def pid(self) -> int:
        """The process whose network it is; 0 where there is none. HostError when it cannot be had after all."""
        if self.refused:
            return 0
        if self._holding is None:
            self._holding = asyncio.create_task(start_network(self._shell, self._agent))
        return (await asyncio.shield(self._holding)).pid

    async def words(self) -> Words:
        """The options that start a program in it."""
        pid = await self.pid()
        return in_network(pid) if pid else ()

    def ports(self, number: int) -> tuple[int, ...]:
        """Ports that nobody has been given before; nobody else is in it."""
        return tuple(next(self._ports) for _ in range(number))

    async def close(self) -> None:
        """Nothing more can join; it is gone when the last program in it has ended."""
        if self._holding is not None:
            (held,) = await asyncio.gather(self._holding, return_exceptions=True)
            if isinstance(held, HeldNetwork):
                await held.close()
