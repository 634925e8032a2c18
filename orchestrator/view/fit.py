"""How the table of `meshctl model fit` looks. Prints nothing.

Names come from files and users, so they are `Text`.
"""

import json
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence

from rich import box
from rich.console import Group as Lines
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from orchestrator.fitting import Answer, published_name
from orchestrator.plan.fit import Fit, OnText, Option, Short, compared_on, why_best
from orchestrator.plan.values import Plan, plan_key
from orchestrator.view.ranking import plan_name
from orchestrator.view.sizes import bytes_text, duration_text, tokens_text

_HOW, _PLAN_COLUMNS = "how it would run", 36

MAY_GO = ("first token", "speed from", "bits", "where")
"""Columns that a narrow terminal can do without, the first ones first."""

WHERE = {"here": "here", "hub": "published", "make": "to be made"}
OF_LOSSY = "of a lossy one"
BEST = "→"

_Cell = Callable[[Fit], str]


def fit_view(answer: Answer, room: int | None = None) -> RenderableType:
    """A row per quantisation, context and cache type; then why the marked ones are best, and what the words mean.

    In a terminal of `room` columns (None: no terminal) without the columns that there is no room for, which is said.
    """
    rows, gone = answer.rows, _left_out(answer, room)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    columns = [column for column in _columns(rows) if column[0] not in gone]
    for title, _, justify in columns:
        table.add_column(title, justify="right" if justify else "left", no_wrap=title != _HOW)
    for row in rows:
        style = "bold" if row.best else "" if row.plan is not None else "dim"
        table.add_row(*(Text(cell(row)) for _, cell, _ in columns), style=style)
    below = list(_below(answer, gone))
    if gone:
        below.append(f"{', '.join(gone)}: in a terminal of {_table_columns(rows)} columns, or with --json")
    return Lines(Text(_title(answer), style="bold"), table, *(Text(line) for line in below))


def columns_for(answer: Answer, room: int | None = None) -> int:
    """How wide it is, whatever the terminal is: a plan that is folded cannot be read, and a command not be copied."""
    moves = [] if answer.wanted is None else next_moves(answer)
    gone = _left_out(answer, room)
    return max(_table_columns(answer.rows, gone), *(len(f"  {move}") for move in moves), 0)


def _left_out(answer: Answer, room: int | None) -> tuple[str, ...]:
    """What of `MAY_GO` has no room."""
    gone: tuple[str, ...] = ()
    for title in MAY_GO:
        if room is None or _table_columns(answer.rows, gone) <= room:
            break
        gone = (*gone, title)
    return gone


def _table_columns(rows: Sequence[Fit], gone: Sequence[str] = ()) -> int:
    """How wide the table is, `_PLAN_COLUMNS` at most of them for the plan, which is folded."""
    widths = [
        min(_PLAN_COLUMNS, width) if title == _HOW else width
        for title, cell, _ in _columns(rows)
        if title not in gone
        for width in [max(len(title), *(len(cell(row)) for row in rows))]
    ]
    return sum(widths) + 2 * len(widths)


def _title(answer: Answer) -> str:
    inventory, rows = answer.question.inventory, answer.rows
    said = [answer.model]
    if len({row.context for row in rows}) == 1:
        said.append(f"{rows[0].context} tokens")
    if len({row.cache_type for row in rows}) == 1 and rows[0].cache_type != "f16":
        said.append(f"KV cache {rows[0].cache_type}")
    if inventory.flash_attention != "auto":
        said.append(f"flash attention {inventory.flash_attention}")
    conversations = f"{inventory.parallel} conversation{'s' if inventory.parallel > 1 else ''}"
    return f"{', '.join(said)}, {conversations}, for {inventory.goal}"


def _columns(rows: Sequence[Fit]) -> Iterable[tuple[str, _Cell, bool]]:
    """Title, what a row has there, and whether it is a number; those alike in all rows are left out."""
    yield "", lambda row: BEST if row.best else "", False
    yield "type", lambda row: row.option.name, False
    yield "where", _where, False
    yield "size", lambda row: bytes_text(row.option.file_bytes), True
    yield "bits", lambda row: f"{row.option.bits_per_weight:.2f}", True
    if on := compared_on(rows):
        yield "perplexity", lambda row: _perplexity(row, on), True
    if len({row.context for row in rows}) > 1:
        yield "context", lambda row: str(row.context), True
    if len({row.cache_type for row in rows}) > 1:
        yield "KV", lambda row: row.cache_type, False
    yield _HOW, lambda row: _short(row.short) if row.plan is None else plan_name(row.plan), False
    yield "decode", _of_plan(lambda plan: _number(plan.decode_tokens_per_s)), True
    if any(row.plan is not None and row.plan.parallel > 1 for row in rows):
        yield "all", _of_plan(lambda plan: _number(plan.aggregate_tokens_per_s)), True
    yield "prefill", _of_plan(lambda plan: _number(plan.prefill_tokens_per_s)), True
    yield "first token", _of_plan(lambda plan: duration_text(plan.first_token_s)), True
    yield "speed from", lambda row: row.speed_from if row.plan is not None else "", False


def _where(row: Fit) -> str:
    option = row.option
    if option.where == "make":
        return OF_LOSSY if option.lost else WHERE["make"]
    return f"{WHERE[option.where]}, {OF_LOSSY}" if option.lost else WHERE[option.where]


def _of_plan(text: Callable[[Plan], str]) -> _Cell:
    return lambda row: "" if row.plan is None else text(row.plan)


def _number(tokens_per_s: float) -> str:
    return tokens_text(tokens_per_s).removesuffix(" tok/s")


def _perplexity(row: Fit, on: OnText) -> str:
    value = row.option.perplexities.get(on)
    return "" if value is None else f"{value:.2f}"


def _short(short: Short | None) -> str:
    """What it lacks, in numbers where they tell it."""
    if short is None:
        return ""
    if not short.needed_bytes:
        return f"{'refused: ' if short.refused else ''}{_first_line(short)}"
    needed, there = bytes_text(short.needed_bytes), bytes_text(short.there_bytes)
    if short.needed_bytes > short.there_bytes:
        return f"lacks {bytes_text(short.needed_bytes - short.there_bytes)} of {needed}"
    return f"does not fit: {needed}, and buffers on each device, in {there}"


def _first_line(short: Short) -> str:
    return short.reason.partition("\n")[0]


def _below(answer: Answer, gone: Sequence[str]) -> Iterable[str]:
    rows, best = answer.rows, [row for row in answer.rows if row.best]
    for row in best:
        at = f" at context {row.context}" if len({one.context for one in rows}) > 1 else ""
        yield f"{BEST} best{at}: {why_best(row, rows, answer.question.prefer)}"
    if not best:
        yield from _nothing([row.short for row in rows if row.short is not None])
    if answer.wanted is not None:
        yield from (f"  {move}" for move in next_moves(answer))
    if long := sorted({row.context for row in rows if row.context > row.option.model.context_length > 0}):
        trained = rows[0].option.model.context_length
        yield f"  this model was made for {trained} tokens: beyond them (context {long[0]}) its answers get worse"
    planned = [row for row in rows if row.plan is not None]
    yield ""
    if told := [*([_SPEEDS] if planned else []), *([] if "bits" in gone else [_BITS])]:
        yield " ".join([*told, *(["speed from:"] if planned and "speed from" not in gone else [])])
    if "speed from" not in gone:
        known = {word for word in _MEANINGS if any(word in row.speed_from for row in planned)}
        yield from (f"  {meaning}" for word, meaning in _MEANINGS.items() if word in known)
    if answer.survey.made_up:
        yield "  what was timed had weights at random: the model's own are not here"
    for kind in sorted({row.timed_as for row in planned if f" with {row.timed_as}" in row.speed_from}):
        yield f"  with {kind}: keys and values were {kind} when it was timed; prompts may be read at another speed"
    if on := compared_on(rows):
        yield f"perplexity: of {on}; less is better"


def _nothing(shorts: Sequence[Short]) -> Iterator[str]:
    """What to do where there is no plan at all."""
    if any(short.needed_bytes for short in shorts):
        yield "Nothing fits: take a smaller context, a smaller model, or add a host"
        return
    short = next((one for one in shorts if not one.refused), shorts[0])
    yield f"Nothing can run: {_first_line(short)}"
    if short.hint:
        yield f"  {short.hint}"


_SPEEDS = "decode and prefill in tokens/s."
_BITS = "bits: per weight, on average."
_MEANINGS = {
    "timed": "timed: on slices of this very model",
    "kernels": "kernels: worked out of how fast each device's kernels are for its tensor types",
    "bytes": "bytes: worked out of its size, since kernels of its types were not timed: may be far off",
    "measured": "measured: this has run here before",
    "corrected": "corrected: by what earlier runs on these devices, or on such as are alike, were off",
}


def next_moves(answer: Answer) -> list[str]:
    """How to come from the table to a model that runs: every line that the inventory has otherwise is named."""
    best = answer.wanted
    assert best is not None
    make = best.option.where == "make"
    lines = ["model: the path that it prints" if make else f"model: {_place(answer, best.option)}"]
    lines += [f"{key}: {value}" for key, value in _changes(answer, best).items()]
    run = f"to run it: {', '.join(lines)} in the inventory, then meshctl up"
    return [f"to make it: {shlex.join(_quantise_words(answer, best.option))}", run] if make else [run]


def _place(answer: Answer, option: Option) -> str | None:
    """What an inventory calls it; None before it is made."""
    if option.where == "make":
        return None
    return str(option.model.path) if option.where == "here" else published_name(answer.question.model, option.name)


def _changes(answer: Answer, row: Fit) -> dict[str, str | int]:
    """What of the table's circumstances is not what the inventory has."""
    asked, written = answer.question.inventory, answer.question.written
    now = {"context": row.context, "cache_type": row.cache_type, "parallel": asked.parallel, "goal": asked.goal}
    before = {
        "context": written.context,
        "cache_type": written.cache_type,
        "parallel": written.parallel,
        "goal": written.goal,
    }
    return {key: value for key, value in now.items() if value != before[key]}


def _quantise_words(answer: Answer, option: Option) -> tuple[str, ...]:
    importance = answer.question.importance
    matrix = () if importance is None else ("--imatrix", str(importance))
    requantise = ("--allow-requantise",) if option.lost else ()
    return ("meshctl", "model", "quantise", option.origin, "--type", option.name, *matrix, *requantise)


def fit_json(answer: Answer) -> str:
    """The rows as objects, and the best of them at the context wanted."""
    inventory, best = answer.question.inventory, answer.wanted
    return json.dumps(
        {
            "model": answer.model,
            "parallel": inventory.parallel,
            "flash_attention": inventory.flash_attention,
            "goal": inventory.goal,
            "prefer": answer.question.prefer,
            "best": None if best is None else _best_json(answer, best),
            "reason": "" if best is None else why_best(best, answer.rows, answer.question.prefer),
            "rows": [_row_json(row) for row in answer.rows],
        },
        indent=2,
        ensure_ascii=False,
    )


def _best_json(answer: Answer, best: Fit) -> dict[str, object]:
    """`place`: what to write as `model:` into an inventory, null before it is made of `origin`."""
    option = best.option
    return {
        "type": option.name,
        "context": best.context,
        "cache_type": best.cache_type,
        "place": _place(answer, option),
        "origin": option.origin or None,
    }


def _row_json(row: Fit) -> dict[str, object]:
    option, plan, short = row.option, row.plan, row.short
    return {
        "type": option.name,
        "where": option.where,
        "lost": list(option.lost),
        "file_bytes": option.file_bytes,
        "weights_bytes": option.model.size_bytes,
        "bits_per_weight": option.bits_per_weight,
        "perplexities": [
            {
                "value": value,
                "text": on.text,
                "text_digest": on.text_digest,
                "context": on.context,
                "chunks": on.chunks,
                "engine": on.engine,
            }
            for on, value in option.perplexities.items()
        ],
        "context": row.context,
        "cache_type": row.cache_type,
        "fits": plan is not None,
        "best": row.best,
        "short": None
        if short is None
        else {"needed_bytes": short.needed_bytes, "there_bytes": short.there_bytes, "reason": short.reason},
        "speed_from": row.speed_from if plan is not None else None,
        "plan": None if plan is None else _plan_json(plan),
    }


def _plan_json(plan: Plan) -> dict[str, object]:
    return {
        "mode": plan.mode,
        "key": plan_key(plan),
        "devices": [share.device for share in plan.shares],
        "decode_tokens_per_s": plan.decode_tokens_per_s,
        "prefill_tokens_per_s": plan.prefill_tokens_per_s,
        "first_token_s": plan.first_token_s,
        "aggregate_tokens_per_s": plan.aggregate_tokens_per_s,
    }
