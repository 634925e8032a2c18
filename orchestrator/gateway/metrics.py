"""What the gateway has done, as Prometheus reads it. The names are part of the interface: docs/gateway.md has them."""

from collections.abc import Callable, Iterable, Iterator
from typing import get_args

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from orchestrator.gateway.state import Counters, GatewayState, SituationState
from orchestrator.host_state import HostState

CONTENT_TYPE = CONTENT_TYPE_LATEST
STATES: tuple[SituationState, ...] = get_args(SituationState)


class Metrics:
    """The metrics of one gateway; `hosts` and the names of the `heads` are asked for each time."""

    def __init__(
        self,
        counters: Counters,
        state: GatewayState,
        hosts: Callable[[], Iterable[HostState]] = tuple,
        heads: Callable[[], Iterable[str]] = tuple,
    ) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Now(counters, state, hosts, heads))
        for histogram in (counters.first_token_s, counters.request_s, counters.recovery_s):
            self._registry.register(histogram)

    def text(self) -> bytes:
        """All of it, in the form of `CONTENT_TYPE`."""
        return generate_latest(self._registry)


class _Now(Collector):
    """What is counted elsewhere, read when it is asked for."""

    def __init__(
        self,
        counters: Counters,
        state: GatewayState,
        hosts: Callable[[], Iterable[HostState]],
        heads: Callable[[], Iterable[str]],
    ) -> None:
        self._counters = counters
        self._state = state
        self._hosts = hosts
        self._heads = heads

    def collect(self) -> Iterator[Metric]:
        yield from self._of_requests()
        yield from self._of_recovery()
        yield from self._of_heads()
        yield from self._of_hosts()

    def _of_requests(self) -> Iterator[Metric]:
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

    def _of_recovery(self) -> Iterator[Metric]:
        state = GaugeMetricFamily("meshctl_state", "1 for the state that the cluster is in.", labels=["state"])
        for name in STATES:
            state.add_metric([name], float(self._state.now.state == name))
        yield state
        recoveries = CounterMetricFamily("meshctl_recoveries", "Recoveries, by what came of them.", labels=["outcome"])
        for outcome, count in self._counters.recoveries.items():
            recoveries.add_metric([outcome], count)
        yield recoveries
        resumed = "Streams that went on with another head than the one that was lost."
        yield CounterMetricFamily("meshctl_streams_resumed", resumed, value=self._counters.resumed)
        replayed = "Requests asked again since their head was lost before it had said anything."
        yield CounterMetricFamily("meshctl_requests_replayed", replayed, value=self._counters.replayed)

    def _of_heads(self) -> Iterator[Metric]:
        running = GaugeMetricFamily("meshctl_head_requests_running", "Requests of one head now.", labels=["head"])
        for name in self._heads():
            running.add_metric([name], self._counters.of_head(name).running)
        yield running

    def _of_hosts(self) -> Iterator[Metric]:
        budget = GaugeMetricFamily(
            "meshctl_memory_budget_bytes", "What the cluster may take on a host.", labels=["host"]
        )
        used = GaugeMetricFamily("meshctl_memory_used_bytes", "What it takes there now.", labels=["host"])
        available = GaugeMetricFamily(
            "meshctl_host_available_bytes", "What is left on a host for everybody.", labels=["host"]
        )
        aside = GaugeMetricFamily("meshctl_host_set_aside", "1 for a host that is not used for now.", labels=["host"])
        for one in self._hosts():
            aside.add_metric([one.name], float(one.aside is not None))
            if one.available_bytes is not None:
                available.add_metric([one.name], one.available_bytes)
            if one.budget_bytes:
                budget.add_metric([one.name], one.budget_bytes)
                used.add_metric([one.name], one.used_bytes)
        yield from (budget, used, available, aside)
