"""Every host is asked; each answer or error is kept."""

import asyncio
import errno

import pytest

from orchestrator.errors import HostError, HostsError, MeshctlError
from orchestrator.fanout import all_or_raise, both, each_host
from workers.errors import FactsError


async def answer(value: int) -> int:
    await asyncio.sleep(0)
    return value


async def fail(error: Exception) -> int:
    await asyncio.sleep(0)
    raise error


async def test_answers_and_errors_stand_side_by_side_in_order() -> None:
    broken = HostError("b", "is off", hint="switch it on")
    answers = await each_host({"a": answer(1), "b": fail(broken), "c": answer(3)})
    assert list(answers.items()) == [("a", 1), ("b", broken), ("c", 3)]


async def test_errors_of_the_other_packages_are_kept_under_the_hosts_name() -> None:
    answers = await each_host({"a": fail(FactsError("unreadable facts", hint="look at them"))})
    error = answers["a"]
    assert isinstance(error, HostError)
    assert (str(error), error.hint, error.host) == ("a: unreadable facts", "look at them", "a")


async def test_what_the_system_refuses_is_kept_under_the_hosts_name() -> None:
    answers = await each_host({"a": fail(OSError(errno.ENOSPC, "No space left on device", "/x/y"))})
    error = answers["a"]
    assert isinstance(error, HostError)
    assert (str(error), error.hint) == (
        "a: /x/y: No space left on device",
        "free some space on that disk and try again",
    )


async def test_no_more_than_the_limit_are_asked_at_once() -> None:
    running = most = 0

    async def ask() -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.001)
        running -= 1
        return running

    await each_host({str(n): ask() for n in range(20)}, limit=3)
    assert most == 3


async def test_a_bug_is_not_hidden_and_ends_the_rest() -> None:
    with pytest.raises(ExceptionGroup) as caught:
        await each_host({"a": fail(KeyError("bug")), "b": asyncio.sleep(100), "c": answer(1)}, limit=1)
    assert [type(error) for error in caught.value.exceptions] == [KeyError]


def test_all_answers_are_given_or_every_failure_is_raised() -> None:
    errors: dict[str, MeshctlError] = {"b": HostError("b", "is off"), "c": HostError("c", "is far")}
    assert all_or_raise({"a": 1}) == {"a": 1}
    with pytest.raises(HostError, match="b: is off"):
        all_or_raise({"a": 1, "b": errors["b"]})
    with pytest.raises(HostsError) as caught:
        all_or_raise({"a": 1, **errors})
    assert (str(caught.value), caught.value.errors) == ("b: is off\nc: is far", errors)


def test_hints_name_their_hosts_unless_they_are_for_all() -> None:
    errors = {name: HostError(name, "fails", hint=hint) for name, hint in (("a", "x"), ("b", "y"), ("c", "x"))}
    assert HostsError(errors).hint == "a, c: x\nb: y"
    assert HostsError({name: errors[name] for name in ("a", "c")}).hint == "x"


async def test_of_two_things_side_by_side_both_answers_come_or_the_first_error() -> None:
    cancelled: list[str] = []

    async def slow() -> str:
        try:
            await asyncio.sleep(100)
        except asyncio.CancelledError:
            cancelled.append("slow")
            raise
        return "late"

    assert await both(answer(1), answer(2)) == (1, 2)
    with pytest.raises(KeyError):
        await both(slow(), fail(KeyError("bug")))
    assert cancelled == ["slow"]
