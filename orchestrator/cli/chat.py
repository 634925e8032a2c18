"""`meshctl chat`."""

import select
import sys
from typing import Annotated, TextIO

import typer

from orchestrator.cli.arguments import Cluster

SILENT_S = 2.0


def chat(
    question: Annotated[
        str | None, typer.Argument(help="Ask this and leave; without it, a conversation begins.")
    ] = None,
    system: Annotated[str | None, typer.Option("--system", help="The system prompt.")] = None,
    temperature: Annotated[
        float | None,
        typer.Option("--temperature", min=0.0, max=2.0, help="0: always the likeliest token; more: more varied."),
    ] = None,
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", min=1, help="Longest answer, in tokens.")] = None,
    cluster: Cluster = None,
) -> None:
    """Talk with the model: one question, text from a pipe, or a conversation.

    meshctl chat "Why is the sky blue?"      cat notes.txt | meshctl chat "Sum this up"
    """
    from pathlib import Path

    from orchestrator.chat import chat_loop, chat_once
    from orchestrator.cli.run import answer, run, talk
    from orchestrator.client import GatewayClient
    from orchestrator.errors import UsageError
    from orchestrator.folders import user_folders
    from orchestrator.gateway.keys import read_own_key
    from orchestrator.state import serving_cluster

    folders = user_folders()
    state = serving_cluster(folders, cluster)
    key = read_own_key(folders.cluster(state.cluster).gateway_key)
    terminal = sys.stdin is not None and sys.stdin.isatty()
    piped = "" if terminal or sys.stdin is None else piped_text(sys.stdin, question is not None)
    text = "\n\n".join(part for part in (question, piped.strip()) if part)
    if not text and (question is not None or not terminal):
        raise UsageError(
            "there is nothing to ask: no text was given or piped in",
            hint='ask with `meshctl chat "a question"`, or talk with `meshctl chat` in a terminal',
        )
    folders.state.mkdir(parents=True, exist_ok=True)

    async def talk_with_it() -> None:
        certificate = Path(state.certificate) if state.certificate else None
        async with GatewayClient(state.gateway.removesuffix("/v1"), key, certificate=certificate) as client:
            options = {"system": system, "temperature": temperature, "max_tokens": max_tokens}
            if text:
                await chat_once(client, text, out=sys.stdout, console=talk(), **options)  # type: ignore[arg-type]
            else:
                await chat_loop(client, history=folders.chat_history, console=answer(), **options)  # type: ignore[arg-type]

    run(talk_with_it())


def piped_text(stdin: TextIO, asked: bool = False) -> str:
    """All of it; UsageError when it is no text. A pipe that stays silent beside a question is waited for, aloud."""
    from orchestrator.cli.run import talk
    from orchestrator.errors import UsageError

    if asked and not select.select((stdin,), (), (), SILENT_S)[0]:
        talk().print(
            "waiting for text on standard input; to ask without any: meshctl chat ... < /dev/null", markup=False
        )
    try:
        return stdin.read()
    except UnicodeDecodeError as error:
        raise UsageError(
            f"what was piped in is no text: byte {error.start} is not {error.encoding}",
            hint="pipe in plain text; `file` says what something is",
        ) from error
