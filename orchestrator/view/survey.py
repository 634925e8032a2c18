"""How a survey looks: every device with its memory, how its budget came about, its link and its speed. Pure."""

from collections.abc import Iterator

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from orchestrator.survey.values import Device, HostSurvey, Link, PassTime, Speed, Survey
from orchestrator.view.sizes import bytes_text, duration_text, rate_text
from workers.budget import Budget


def survey_view(survey: Survey) -> RenderableType:
    """A head line, the controller's memory, and one row of a few lines per device.

    Speeds are the time of one layer for one token, of the slices that were timed; the spread is how far
    repetitions were apart.
    """
    facts = survey.controller
    available = f"{bytes_text(facts.memory_available_bytes)} of {bytes_text(facts.memory_total_bytes)} available"
    return Group(
        Text(f"survey of {survey.cluster}, taken {survey.taken_at}", style="bold"),
        Text(f"engine {survey.engine}; controller {facts.hostname}: {facts.os_name}, {available}"),
        _table(survey),
    )


def _table(survey: Survey) -> Table:
    """Four columns of up to three lines each, so that it fits a terminal of 80 columns."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("device", overflow="fold")
    for title in ("budget", "link", "speed (spread)"):
        table.add_column(title, no_wrap=True)
    for host in survey.hosts:
        for row in _host_rows(host):
            table.add_row(*(Text(cell) for cell in row))
    return table


def _host_rows(host: HostSurvey) -> Iterator[tuple[str, ...]]:
    here = ", this machine" if host.local else ""
    if not host.devices:
        free = f"{bytes_text(host.facts.memory_available_bytes)} free"
        yield (f"{host.name}{here}\n{host.facts.os_name}\nno device", free, "", "")
    for device in host.devices:
        yield (
            f"{device.name}{here}\n{_description(device)}",
            _budget_text(device.budget),
            _link_text(device.link),
            _speed_text(device),
        )


def _description(device: Device) -> str:
    threads = f"{device.threads} thread{'' if device.threads == 1 else 's'}"
    return f"{device.description}\n{threads}" if device.kind == "cpu" else device.description


def _budget_text(budget: Budget) -> str:
    """The budget, and below it what is free, the cap and the reserve that it follows from."""
    share = f" ({budget.capped_bytes / budget.free_bytes:.0%})" if budget.free_bytes else ""
    lines = [bytes_text(budget.usable_bytes), f"free {bytes_text(budget.free_bytes)}"]
    lines.append(f"cap {bytes_text(budget.capped_bytes)}{share}")
    if budget.reserve_bytes:
        lines.append(f"less {bytes_text(budget.reserve_bytes)}")
    return "\n".join(lines)


def _link_text(link: Link) -> str:
    return (
        f"{link.kind}{f', {link.medium}' if link.medium else ''} {duration_text(link.round_trip_s)}\n"
        f"up {rate_text(link.up_bytes_per_s)}\n"
        f"down {rate_text(link.down_bytes_per_s)}"
    )


_TIMED_ON = {"synthetic": "a synthetic model", "made up": "made-up weights"}


def _speed_text(device: Device) -> str:
    """Both paths; what was timed is named where it is not the model itself."""
    lines = [*_path_lines("RPC", device.speed), *_path_lines("native", device.native)]
    if device.speed.source in _TIMED_ON:
        lines.append(f"on {_TIMED_ON[device.speed.source]}")
    return "\n".join(lines) or device.note or "not measured"


def _path_lines(path: str, speed: Speed) -> Iterator[str]:
    """Such as "RPC 2.69 ms a layer (2%)" and "in prompts 1.24 ms (3%)": both for one token, each with its spread."""
    if not speed.layers:
        return
    decode, prompt = speed.passes[0], speed.passes[-1]
    yield f"{path} {duration_text(_layer_s(speed, decode))} a layer ({decode.spread:.0%})"
    yield f"in prompts {duration_text(_layer_s(speed, prompt) / prompt.tokens)} ({prompt.spread:.0%})"


def _layer_s(speed: Speed, one: PassTime) -> float:
    """Seconds of one more layer; the last block of a prompt, which counts in part, is in both depths."""
    return (one.layers_s[-1] - one.layers_s[0]) / (speed.layers[-1] - speed.layers[0])
