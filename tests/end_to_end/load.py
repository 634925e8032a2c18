"""Streams and whole answers asked of a gateway at once, and what became of each: the load under which faults happen."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from threading import Event, Thread
from typing import Any, Literal

import httpx

DEADLINE_S = 180.0
BEGUN_PIECES = 5
STILL_S = 2.0
SENT_S = 0.3
"""A request has reached its head by then, and its answer is far from complete."""

TOKENS = 40

PROMPTS = (
    "List the numbers from one to forty.",
    "Count to fifty.",
    "List the numbers from one to thirty.",
    "Tell me a long story about a dog.",
)
"""Of answers that the model is sure of: several at once are computed together, and what is nearly a tie may tip."""


@dataclass
class Asked:
    """One request: the pieces of its answer with their times, and how it ended.

    `error` is the code of an explicit error: the gateway's own, or "connection" where the connection broke visibly (an
    incomplete chunked body, a reset), which every HTTP client reports.
    """

    prompt: str
    stream: bool = True
    pieces: list[str] = field(default_factory=list)
    times_s: list[float] = field(default_factory=list)
    ids: set[str] = field(default_factory=set)
    finish: str = ""
    usage: dict[str, int] = field(default_factory=dict)
    error: str = ""
    ended_s: float = 0.0

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def begun(self) -> bool:
        return len(self.pieces) >= BEGUN_PIECES

    def outcome(self, fault_s: float) -> Literal["undisturbed", "resumed", "replayed", "failed", "lost"]:
        """What the fault at that moment made of it; what did not stand still for a while was not disturbed."""
        if not self.finish:
            return "failed" if self.error else "lost"
        times_s = [fault_s, *(time_s for time_s in self.times_s if time_s > fault_s)]
        if all(later - earlier < STILL_S for earlier, later in pairwise(times_s)):
            return "undisturbed"
        return "resumed" if self.times_s[0] < fault_s else "replayed"

    def seam(self, fault_s: float) -> int:
        """How many pieces had come when the stream was interrupted: before the last gap after the fault in which it
        stood still, or the longest where none is that long."""
        gaps = [
            (later - earlier, number)
            for number, (earlier, later) in enumerate(pairwise(self.times_s), start=1)
            if later > fault_s
        ]
        still = [number for seconds, number in gaps if seconds > STILL_S]
        return still[-1] if still else max(gaps)[1]


def body_of(prompt: str, *, stream: bool = True, tokens: int = TOKENS) -> dict[str, Any]:
    asked = {"messages": [{"role": "user", "content": prompt}], "temperature": 0, "max_tokens": tokens}
    return {**asked, "stream": stream, **({"stream_options": {"include_usage": True}} if stream else {})}


def ask(url: str, key: str, asked: Asked, body: dict[str, Any]) -> None:
    """Ask and note what comes, to the end, whatever that is."""
    headers = {"authorization": f"Bearer {key}"}
    try:
        with httpx.Client(base_url=url, headers=headers, timeout=DEADLINE_S, trust_env=False) as client:
            if asked.stream:
                with client.stream("POST", "/v1/chat/completions", json=body) as response:
                    _note_stream(asked, response)
            else:
                _note_whole(asked, client.post("/v1/chat/completions", json=body))
    except httpx.TransportError as error:
        asked.error = "timeout" if isinstance(error, httpx.TimeoutException) else "connection"
    finally:
        asked.ended_s = time.monotonic()


def _note_whole(asked: Asked, response: httpx.Response) -> None:
    answer = response.json()
    if response.status_code != 200:
        asked.error = str(answer["error"]["code"])
        return
    asked.pieces.append(answer["choices"][0]["message"]["content"])
    asked.times_s.append(time.monotonic())
    asked.usage, asked.finish = answer["usage"], answer["choices"][0]["finish_reason"]


def _note_stream(asked: Asked, response: httpx.Response) -> None:
    if response.status_code != 200:
        asked.error = str(json.loads(response.read())["error"]["code"])
        return
    finish = ""
    for line in response.iter_lines():
        if not line.startswith("data: "):
            continue
        if line == "data: [DONE]":
            asked.finish = finish
            return
        event = json.loads(line[6:])
        if "error" in event:
            asked.error = str(event["error"]["code"])
            return
        asked.ids.add(event["id"])
        asked.usage = event.get("usage") or asked.usage
        for choice in event["choices"]:
            finish = choice.get("finish_reason") or finish
            if piece := choice["delta"].get("content"):
                asked.pieces.append(piece)
                asked.times_s.append(time.monotonic())


@contextmanager
def asking(url: str, key: str, requests: Sequence[Asked]) -> Iterator[Callable[[], None]]:
    """All at once, each in a thread; the block gets a function that waits until all have ended.

    Streams have begun when the block is entered, whole answers are with a head where that has a slot.
    """
    threads = [
        Thread(target=ask, args=(url, key, one, body_of(one.prompt, stream=one.stream)), daemon=True)
        for one in requests
    ]
    for thread, one in zip(threads, requests, strict=True):
        if one.stream:
            thread.start()
    _wait_begun([one for one in requests if one.stream])
    for thread, one in zip(threads, requests, strict=True):
        if not one.stream:
            thread.start()
    Event().wait(SENT_S)

    def wait() -> None:
        end = time.monotonic() + DEADLINE_S
        for thread in threads:
            thread.join(timeout=max(0.0, end - time.monotonic()))
        assert not any(thread.is_alive() for thread in threads), "a request has not ended by its deadline"

    yield wait
    wait()


def _wait_begun(streams: Sequence[Asked]) -> None:
    end = time.monotonic() + DEADLINE_S
    while not all(one.begun or one.ended_s for one in streams):
        assert time.monotonic() < end, "the streams do not begin"
        Event().wait(0.005)
