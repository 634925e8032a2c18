"""An engine that the user has put on a host (`engine:` in the inventory): examined and tested, never changed."""

import secrets
from pathlib import PurePosixPath

from orchestrator.engine.smoke import prove_untouched
from orchestrator.engine.store import MANIFEST
from orchestrator.errors import EngineError
from orchestrator.host_agent import check_folder
from orchestrator.shell.protocol import Shell
from workers.engine import PROGRAMS, Manifest, read_manifest
from workers.errors import ManifestError

_QUICK_S = 30.0
_HOW = "an engine's folder is what `meshctl engine path` names where this version of meshctl has built it, copied whole"


async def check_own(shell: Shell, agent: str, folder: str, commit: str) -> Manifest:
    """Its manifest, if it is an engine of this commit with every file whole; EngineError says what is not so."""
    manifest = await _manifest(shell, folder)
    if manifest.commit != commit:
        raise EngineError(
            f"{shell.host}: the engine in {folder} is of llama.cpp commit {manifest.commit}, the cluster runs {commit}",
            hint=f"put one of {commit} there, or remove `engine` of {shell.host}: it then gets one",
        )
    check = await check_folder(shell, agent, folder)
    lacking = sorted(set(PROGRAMS) - {file.path for file in manifest.files})
    if lacking or not check.ok:
        problem = f"it lacks {', '.join(lacking)}" if lacking else str(check)
        raise EngineError(f"{shell.host}: the engine in {folder} is not whole: {problem}", hint=_HOW)
    return manifest


async def prove_own(shell: Shell, folder: str) -> None:
    """Let it compute; EngineError when it does not. What that needs lies in our own folder."""
    await prove_untouched(shell, folder, f"{shell.root}/engines/own.tmp-{secrets.token_hex(4)}")


async def _manifest(shell: Shell, folder: str) -> Manifest:
    place = str(PurePosixPath(folder, MANIFEST))
    answer = await shell.run(("cat", place), deadline_s=_QUICK_S, check=False)
    if answer.status != 0:
        raise EngineError(f"{shell.host}: {folder} is no engine's folder: there is no {place}", hint=_HOW)
    try:
        return read_manifest(answer.stdout)
    except ManifestError as error:
        raise EngineError(f"{shell.host}: {place}: {error}", hint=_HOW) from error
