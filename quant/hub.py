"""Ask the Hugging Face Hub what a repository holds, through its own library, and turn its refusals into next moves.

The library knows the user's endpoint, token, cache folder and whether to stay offline (HF_ENDPOINT, HF_TOKEN, HF_HOME,
HF_HUB_OFFLINE); it is imported where it is used, because that takes a moment.
"""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from quant.catalogue import HubSource
from quant.download import RefusedError, Remote
from quant.errors import ModelFetchError, ModelNotFoundError, QuantError
from quant.hub_cache import COMMIT, DIGEST
from quant.hub_files import HubFile

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo, RepoSibling

_DEADLINE_S = 20.0
_LOGIN = "make a token at {endpoint}/settings/tokens and set HF_TOKEN, or run: hf auth login"
_BAD_TOKEN = "invalid credentials"
"""In the hub's own sentence for it; it has no code of its own (`huggingface_hub.utils._http` reads it there, too)."""

_LARGEST_BYTES = 2**62


@dataclass(frozen=True)
class Hub:
    """Which hub, and what may be done with it. `token` None: the one that the library finds."""

    endpoint: str
    cache: Path
    offline: bool = False
    token: str | None = None


class HubUnreachableError(ModelFetchError):
    """Nobody answers, or nobody may be asked: what is here already may do."""


@dataclass(frozen=True)
class Held:
    """What a repository has at one commit."""

    commit: str
    files: tuple[HubFile, ...]


def user_hub() -> Hub:
    """The hub of this user's environment, as every program with the hub's library sees it."""
    from huggingface_hub import constants

    return Hub(constants.ENDPOINT, Path(constants.HF_HUB_CACHE), constants.HF_HUB_OFFLINE)


async def ask_hub(hub: Hub, source: HubSource) -> Held:
    """What the repository holds. HubUnreachableError, ModelNotFoundError or ModelFetchError with the next move."""
    if hub.offline:
        raise HubUnreachableError(
            f"{source.text} is not on this machine, and HF_HUB_OFFLINE is set", hint="unset HF_HUB_OFFLINE to fetch it"
        )
    return await _unwaited(lambda: _ask(hub, source))


async def _unwaited(call: Callable[[], Held]) -> Held:
    """Call it in a thread that nobody waits for once this is cancelled: the library cannot be interrupted."""
    future: Future[Held] = Future()

    def work() -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(call())
        except BaseException as error:  # noqa: BLE001 # it is raised where the answer is awaited
            future.set_exception(error)

    threading.Thread(target=work, name="ask the hub", daemon=True).start()
    return await asyncio.wrap_future(future)


def _ask(hub: Hub, source: HubSource) -> Held:
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    api = HfApi(endpoint=hub.endpoint, token=hub.token)
    try:
        return _held(
            api.model_info(source.repository, revision=source.revision, files_metadata=True, timeout=_DEADLINE_S)
        )
    except HfHubHTTPError as error:
        refused = RefusedError(error.response.status_code, hub.endpoint, error.response.headers)
        raise refusal(hub, source, refused) from error
    except HFValidationError as error:
        raise ModelNotFoundError(f"{source.text}: {error}", hint="check the repository's name") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelFetchError(
            f"{source.text}: {hub.endpoint} does not answer as a hub does",
            hint="check HF_ENDPOINT, and what is in between",
        ) from error
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
        raise HubUnreachableError(
            f"{source.text}: {hub.endpoint} cannot be reached: {error or type(error).__name__}",
            hint="check the network and, where a mirror is used, HF_ENDPOINT; models that are here need neither",
        ) from error


def _held(found: "ModelInfo") -> Held:
    """ValueError for what no hub says: commits and hashes become names of folders and files."""
    if not COMMIT.fullmatch(found.sha or ""):
        raise ValueError(f"{found.sha!r} is no commit")
    return Held(str(found.sha), tuple(_file(one) for one in found.siblings or ()))


def _file(one: "RepoSibling") -> HubFile:
    size, digest = (one.lfs.size, one.lfs.sha256) if one.lfs is not None else (one.size or 0, one.blob_id or "")
    if not 0 <= size < _LARGEST_BYTES or (digest and not DIGEST.fullmatch(digest)):
        raise ValueError(f"{one.rfilename} of {size} bytes with the hash {digest!r} is no file")
    return HubFile(one.rfilename, size, digest)


def remote_of(hub: Hub, source: HubSource, commit: str, file: HubFile) -> Remote:
    """Where the bytes of a file are, and what to show for them."""
    from huggingface_hub import get_token

    token = hub.token or get_token()
    headers = {"User-Agent": "meshctl", **({"Authorization": f"Bearer {token}"} if token else {})}
    url = f"{hub.endpoint}/{source.repository}/resolve/{commit}/{quote(file.name)}"
    return Remote(url, file.size_bytes, file.digest, headers=headers)


def refusal(hub: Hub, source: HubSource, refused: RefusedError) -> QuantError:
    """What a refusal of the hub means. 401 is also its answer for repositories that do not exist."""
    status, code = refused.status, refused.code
    page, login = f"{hub.endpoint}/{source.repository}", _LOGIN.format(endpoint=hub.endpoint)
    if code == "GatedRepo":
        return ModelFetchError(
            f"{source.text}: its owner wants to be asked first (a gated repository)",
            hint=f"accept its terms at {page}, then {login}",
        )
    if _BAD_TOKEN in refused.said.lower():
        return ModelFetchError(
            f"{source.text}: the hub does not accept the token (of HF_TOKEN, or of hf auth login)",
            hint=f"make a new one at {hub.endpoint}/settings/tokens; what is public needs none: unset HF_TOKEN, "
            "or run: hf auth logout",
        )
    if code == "RevisionNotFound":
        return ModelNotFoundError(
            f"{source.text}: the repository has no revision {source.revision}", hint=f"see its branches at {page}"
        )
    if status == 401 or code == "RepoNotFound":
        return ModelNotFoundError(
            f"{source.text}: there is no such repository, or it is private",
            hint=f"check {page}; if it is private, {login}",
        )
    if status == 403:
        hint = f"accept its terms at {page}, or {login}"
        return ModelFetchError(f"{source.text}: the token may not read it", hint=hint)
    if status == 404:
        return ModelNotFoundError(f"{source.text}: the hub does not have it any more", hint=f"check {page}")
    answer = f"{source.text}: {hub.endpoint} answers with {status}"
    if status == 429 or status >= 500:
        return HubUnreachableError(answer, hint="try again in a few minutes")
    return ModelFetchError(answer, hint=f"check {page}")
