"""The reading order of the code: a module imports only those above it. This list is the guide for a new reader."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("quant", "workers", "orchestrator")

READING_ORDER = (
    "quant.errors",
    "quant.model",
    "quant.whole_file",
    "quant.gguf_header",
    "quant.gguf_file",
    "quant.pack",
    "quant.slice",
    "quant.synthetic",
    "quant.catalogue",
    "quant.fetch",
    "quant.bindings",
    "workers.errors",
    "workers.batched_output",
    "workers.facts",
    "workers.budget",
    "workers.engine",
    "workers.build_tools",
    "workers.engine_commands",
    "workers.pass_bench",
    "workers.fit_table",
    "workers.bench_output",
    "workers.head_log",
    "workers.commands",
    "workers.door",
    "workers.agent",
    "orchestrator.errors",
    "orchestrator.wishes",
    "orchestrator.folders",
    "orchestrator.sizes",
    "orchestrator.inventory",
    "orchestrator.inventory_rules",
    "orchestrator.inventory_yaml",
    "orchestrator.certificates",
    "orchestrator.inventory_fields",
    "orchestrator.inventory_file",
    "orchestrator.view.sizes",
    "orchestrator.report",
    "orchestrator.shell.host_keys",
    "orchestrator.shell.resume",
    "orchestrator.shell.protocol",
    "orchestrator.shell.streams",
    "orchestrator.shell.words",
    "orchestrator.shell.local",
    "orchestrator.shell.ssh_config",
    "orchestrator.shell.client_keys",
    "orchestrator.shell.ssh_errors",
    "orchestrator.shell.ssh_files",
    "orchestrator.shell.ssh_login",
    "orchestrator.shell.ssh",
    "orchestrator.shell.connect",
    "orchestrator.fanout",
    "orchestrator.tunnel",
    "orchestrator.trust",
    "orchestrator.host_agent",
    "orchestrator.attended",
    "orchestrator.network",
    "orchestrator.direct",
    "orchestrator.leash",
    "orchestrator.host_cache",
    "orchestrator.survey.values",
    "orchestrator.plan.noise",
    "orchestrator.plan.asked",
    "orchestrator.plan.pools",
    "orchestrator.plan.values",
    "orchestrator.plan.conversations",
    "orchestrator.plan.experience",
    "orchestrator.plan.costs",
    "orchestrator.plan.stage_tables",
    "orchestrator.plan.stages",
    "orchestrator.survey.slices",
    "orchestrator.what_if",
    "orchestrator.plan.layers",
    "orchestrator.plan.cut",
    "orchestrator.plan.single",
    "orchestrator.plan.split",
    "orchestrator.plan.tensor",
    "orchestrator.plan.replicas",
    "orchestrator.plan.left_out",
    "orchestrator.plan.reasons",
    "orchestrator.plan.shortfall",
    "orchestrator.plan.choose",
    "orchestrator.plan.robust",
    "orchestrator.engine.lock",
    "orchestrator.engine.logged",
    "orchestrator.engine.source",
    "orchestrator.engine.store",
    "orchestrator.engine.build",
    "orchestrator.engine.smoke",
    "orchestrator.engine.archive",
    "orchestrator.engine.source_archive",
    "orchestrator.engine.host_build",
    "orchestrator.engine.own",
    "orchestrator.engine.install",
    "orchestrator.idle_workers",
    "orchestrator.memory",
    "orchestrator.host_state",
    "orchestrator.state",
    "orchestrator.history",
    "orchestrator.lifecycle",
    "orchestrator.experience_store",
    "orchestrator.hosts",
    "orchestrator.model_copies",
    "orchestrator.packs",
    "orchestrator.head_client",
    "orchestrator.processes",
    "orchestrator.head_checks",
    "orchestrator.survey.timing",
    "orchestrator.survey.links",
    "orchestrator.survey.speeds",
    "orchestrator.survey.gather",
    "orchestrator.survey.tensor_times",
    "orchestrator.tuned",
    "orchestrator.prepare",
    "orchestrator.group_commands",
    "orchestrator.cluster",
    "orchestrator.group_bench",
    "orchestrator.view.plan",
    "orchestrator.view.ranking",
    "orchestrator.tune",
    "orchestrator.view.tune",
    "orchestrator.gateway.api_error",
    "orchestrator.gateway.pieces",
    "orchestrator.gateway.events",
    "orchestrator.gateway.fields",
    "orchestrator.gateway.bodies",
    "orchestrator.gateway.openapi",
    "orchestrator.gateway.resume",
    "orchestrator.gateway.routing",
    "orchestrator.gateway.exchange",
    "orchestrator.gateway.head",
    "orchestrator.gateway.keys",
    "orchestrator.gateway.line",
    "orchestrator.gateway.backends",
    "orchestrator.gateway.connections",
    "orchestrator.gateway.server",
    "orchestrator.gateway.tls",
    "orchestrator.gateway.door",
    "orchestrator.gateway.rates",
    "orchestrator.gateway.state",
    "orchestrator.gateway.metrics",
    "orchestrator.gateway.relay",
    "orchestrator.gateway.app",
    "orchestrator.view.plan_json",
    "orchestrator.watchdog",
    "orchestrator.crew",
    "orchestrator.rebalance",
    "orchestrator.memory_watch",
    "orchestrator.steps",
    "orchestrator.host_view",
    "orchestrator.chronicle",
    "orchestrator.announce",
    "orchestrator.better_plan",
    "orchestrator.state_keeper",
    "orchestrator.keeping",
    "orchestrator.supervisor",
    "orchestrator.detach",
    "orchestrator.status",
    "orchestrator.host_logs",
    "orchestrator.cache",
    "orchestrator.dry_run",
    "orchestrator.bench",
    "orchestrator.doctor",
    "orchestrator.client",
    "orchestrator.conversation",
    "orchestrator.view.bench",
    "orchestrator.view.cache",
    "orchestrator.view.doctor",
    "orchestrator.view.markdown_stream",
    "orchestrator.view.progress",
    "orchestrator.view.events",
    "orchestrator.view.status",
    "orchestrator.view.survey",
    "orchestrator.chat",
    "orchestrator.cli.arguments",
    "orchestrator.cli.run",
    "orchestrator.cli.tuning",
    "orchestrator.cli.bench",
    "orchestrator.cli.cache",
    "orchestrator.cli.chat",
    "orchestrator.cli.cluster",
    "orchestrator.cli.engine",
    "orchestrator.cli.hosts",
    "orchestrator.cli.key",
    "orchestrator.cli.looking",
    "orchestrator.cli.models",
    "orchestrator.cli.planning",
    "orchestrator.cli.app",
    "orchestrator.__main__",
)

PURE = (
    "quant.model",
    "quant.gguf_header",
    "quant.catalogue",
    "workers.facts",
    "workers.budget",
    "workers.engine",
    "workers.build_tools",
    "workers.engine_commands",
    "workers.fit_table",
    "workers.bench_output",
    "workers.head_log",
    "workers.commands",
    "orchestrator.sizes",
    "orchestrator.inventory",
    "orchestrator.host_state",
    "orchestrator.view.sizes",
    "orchestrator.view.plan",
    "orchestrator.view.survey",
    "orchestrator.view.doctor",
    "orchestrator.view.events",
    "orchestrator.view.status",
    "orchestrator.gateway.fields",
    "orchestrator.gateway.rates",
    *(module for module in READING_ORDER if module.startswith("orchestrator.plan.")),
)
"""Values in, values out: no clock, no randomness, no network, no processes."""

DOING = {"asyncio", "socket", "subprocess", "random", "secrets", "time", "os", "shutil", "httpx", "asyncssh", "uvicorn"}


def path_of(module: str) -> Path:
    return ROOT / (module.replace(".", "/") + ".py")


def modules_there() -> set[str]:
    files = (path for package in PACKAGES for path in (ROOT / package).rglob("*.py") if path.name != "__init__.py")
    return {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files}


def imported(module: str) -> set[str]:
    """Every module that this one imports anywhere, by the names in its source."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path_of(module).read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def test_the_reading_order_names_every_module_once() -> None:
    assert sorted(READING_ORDER) == sorted(modules_there())


@pytest.mark.parametrize("module", READING_ORDER)
def test_a_module_imports_only_modules_above_it(module: str) -> None:
    above = READING_ORDER[: READING_ORDER.index(module)]
    below = sorted(imported(module) & (set(READING_ORDER) - set(above)))
    assert not below, f"{module} imports {below}, which come later in the reading order"


@pytest.mark.parametrize("module", PURE)
def test_a_pure_module_imports_nothing_that_does(module: str) -> None:
    assert not {name.partition(".")[0] for name in imported(module)} & DOING


@pytest.mark.parametrize("module", [name for name in READING_ORDER if not name.startswith("orchestrator")])
def test_quant_and_workers_know_nothing_of_each_other_or_of_the_orchestrator(module: str) -> None:
    own = module.partition(".")[0]
    assert not {name.partition(".")[0] for name in imported(module)} & (set(PACKAGES) - {own})


@pytest.mark.parametrize("module", ["workers.agent", "workers.door"])
def test_what_runs_on_hosts_needs_the_standard_library_only(module: str) -> None:
    assert {name.partition(".")[0] for name in imported(module)} <= set(sys.stdlib_module_names)
