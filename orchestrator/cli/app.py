"""The `meshctl` program: its commands and its entry point."""

from typing import Annotated

import typer

from orchestrator import __version__
from orchestrator.cli import (
    bench,
    cache,
    chat,
    cluster,
    engine,
    fitting,
    hosts,
    keeping_models,
    key,
    looking,
    model,
    models,
    planning,
    quantising,
    tuning,
)

app = typer.Typer(
    name="meshctl",
    help="Run one large language model on all the machines you own.",
    epilog="Start: meshctl up inventory.yaml   then: meshctl chat   and: meshctl bench",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"meshctl {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Run one large language model on all the machines you own."""


RUN, LOOK, PREPARE = "Run", "Look", "Prepare"
app.command("up", rich_help_panel=RUN)(cluster.up)
app.command("down", rich_help_panel=RUN)(cluster.down)
app.command("chat", rich_help_panel=RUN)(chat.chat)
app.command("rebalance", rich_help_panel=RUN)(cluster.rebalance)
app.command("bench", rich_help_panel=RUN)(bench.bench)
app.command("tune", rich_help_panel=RUN)(tuning.tune)
app.command("status", rich_help_panel=LOOK)(looking.status)
app.command("logs", rich_help_panel=LOOK)(looking.logs)
app.command("events", rich_help_panel=LOOK)(looking.events)
app.command("survey", rich_help_panel=LOOK)(planning.survey)
app.command("plan", rich_help_panel=LOOK)(planning.plan)
app.command("doctor", rich_help_panel=LOOK)(hosts.doctor)
app.command("trust", rich_help_panel=PREPARE)(hosts.trust)
app.command("pull", rich_help_panel=PREPARE)(models.pull)
app.add_typer(model.app, name="model", rich_help_panel=PREPARE)
model.app.command("fit")(fitting.fit)
model.app.command("quantise")(quantising.quantise)
model.app.command("perplexity")(quantising.perplexity)
model.app.command("list")(keeping_models.list_command)
model.app.command("remove")(keeping_models.remove)
model.app.command("quota")(keeping_models.quota)
app.add_typer(cache.app, name="cache", rich_help_panel=PREPARE)
app.add_typer(engine.app, name="engine", rich_help_panel=PREPARE)
app.add_typer(key.app, name="key", rich_help_panel=PREPARE)
app.command("supervise", hidden=True)(cluster.supervise)


def main() -> None:
    """The entry point of the `meshctl` program."""
    from orchestrator.cli.run import reporting_errors

    reporting_errors(app)
