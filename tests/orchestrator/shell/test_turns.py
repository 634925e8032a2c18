"""Logins that meet one sshd take turns."""

import asyncio

from orchestrator.shell.turns import AT_ONCE, Place, Turns

GATE, OTHER = ("gate", 22), ("other", 22)


async def most_at_once(ways: dict[str, list[Place]], *, again: bool = False) -> int:
    """Of those that log in at the same time, by these ways or again by them."""
    turns, inside, most = Turns(), set[str](), 0

    async def log_in(host: str) -> None:
        nonlocal most
        async with turns.again(host) if again else turns.first(host, ways[host]):
            inside.add(host)
            most = max(most, len(inside))
            await asyncio.sleep(0.005)
            inside.remove(host)

    if again:
        for host, way in ways.items():
            async with turns.first(host, way):
                pass
    async with asyncio.timeout(10):
        await asyncio.gather(*(log_in(host) for host in ways))
    return most


async def test_hosts_behind_one_jump_host_take_turns() -> None:
    """Seen: of 16 tunnels through one its sshd turned two to four away."""
    behind: dict[str, list[Place]] = {f"host{number}": [GATE, (f"host{number}", 22)] for number in range(20)}
    assert await most_at_once(behind) == AT_ONCE
    assert await most_at_once(behind, again=True) == AT_ONCE


async def test_hosts_at_one_address_take_turns_and_others_do_not() -> None:
    assert await most_at_once({f"name{number}": [GATE] for number in range(20)}) == AT_ONCE
    assert await most_at_once({f"host{number}": [(f"host{number}", 22)] for number in range(20)}) == 20
    assert await most_at_once({f"port{number}": [("gate", number)] for number in range(20)}) == 20


async def test_ways_that_cross_do_not_wait_for_each_other() -> None:
    ways = {f"{number}": [GATE, OTHER] if number % 2 else [OTHER, GATE] for number in range(40)}
    assert await most_at_once(ways) == AT_ONCE


async def test_who_gives_up_gives_the_turn_back_and_an_unknown_way_is_free() -> None:
    turns = Turns()
    for _ in range(3 * AT_ONCE):
        try:
            async with turns.first("host", [GATE]):
                raise RuntimeError
        except RuntimeError:
            pass
    async with asyncio.timeout(1), turns.first("host", [GATE]), turns.again("never seen"):
        pass
