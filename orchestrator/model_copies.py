"""The model on a host of its own head: copied there once, whole or not at all."""

from collections.abc import Iterable
from pathlib import Path

from orchestrator.hosts import OpenHost
from quant.model import Model
from quant.whole_file import files_digest


async def model_on_host(model: Model, host: OpenHost) -> str:
    """The path of the model on that host; all its shards are put there first when it is not the controller."""
    if host.is_local:
        return str(model.path)
    folder = remote_model_folder(host.shell.root, model.shards)
    await host.put_once(folder, {shard.name: shard for shard in model.shards})
    return remote_model(model, host.shell.root)


def remote_model(model: Model, root: str) -> str:
    """Where the model lies on a host whose folder for our files is `root`, once it has been put there."""
    return f"{remote_model_folder(root, model.shards)}/{model.path.name}"


def remote_model_folder(root: str, shards: Iterable[Path]) -> str:
    """A folder for exactly these files: another size or time of change leads to another one.

    Files appear there whole or not at all; their digests are kept beside them.
    """
    return f"{root}/models/{files_digest(shards)}"
