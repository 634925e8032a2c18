"""What the gateway has done, as Prometheus reads it. The names are part of the interface: docs/gateway.md has them."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from orchestrator.gateway.state import Counters, GatewayState

CONTENT_TYPE = CONTENT_TYPE_LATEST
STATES = ("starting", "ready", "recovering", "failed", "stopping")


@dataclass(frozen=True)
class HostMemory:
    """Of all that a cluster has on one host, in bytes: what the plan allows it, and what it takes now."""

    host: str
    budget_bytes: int
    used_bytes: int


class Metrics:
    """The metrics of one gateway; `memory` is asked each time."""

    def __init__(
        self, counters: Counters, state: GatewayState, memory: Callable[[], Iterable[HostMemory]] = tuple
    ) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Now(counters, state, memory))
        self._registry.register(counters.first_token_s)
        self._registry.register(counters.request_s)

    def text(self) -> bytes:
        """All of it, in the form of `CONTENT_TYPE`."""
        return generate_latest(self._registry)


class _Now(Collector):
    """What is counted elsewhere, read when it is asked for."""

    def __init__(self, counters: Counters, state: GatewayState, memory: Callable[[], Iterable[HostMemory]]) -> None:
        self._counters = counters
        self._state = state
        self._memory = memory

    def collect(self) -> Iterator[Metric]:
        now = self._counters.now
        requests = CounterMetricFamily("meshctl_requests", "Requests that have ended, by how.", labels=["outcome"])
        for outcome in ("finished", "failed", "cancelled"):
            requests.add_metric([outcome], getattr(now, outcome))
        yield requests
        tokens = CounterMetricFamily("meshctl_tokens", "Tokens of requests that have ended, by kind.", labels=["kind"])
        tokens.add_metric(["prompt"], now.prompt_tokens)
        tokens.add_metric(["generated"], now.tokens)
        yield tokens
        yield GaugeMetricFamily("meshctl_requests_running", "Requests that a head works on now.", value=now.running)
        yield GaugeMetricFamily("meshctl_requests_waiting", "Requests that wait for a slot now.", value=now.waiting)
        state = GaugeMetricFamily("meshctl_state", "1 for the state that the cluster is in.", labels=["state"])
        for name in STATES:
            state.add_metric([name], float(self._state.now.state == name))
        yield state
        yield from self._of_hosts()

    def _of_hosts(self) -> Iterator[Metric]:
        budget = GaugeMetricFamily(
            "meshctl_memory_budget_bytes", "What the cluster may take on a host.", labels=["host"]
        )
        used = GaugeMetricFamily("meshctl_memory_used_bytes", "What it takes there now.", labels=["host"])
        for one in self._memory():
            budget.add_metric([one.host], one.budget_bytes)
            used.add_metric([one.host], one.used_bytes)
        yield budget
        yield used
