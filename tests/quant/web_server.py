"""A real web server on loopback that speaks the hub's API and serves plain files, and fails as it is told to."""

import asyncio
import hashlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

COMMIT = "c0ffee" + "0" * 34
PIECE = 64 * 1024


@dataclass(frozen=True)
class Asked:
    """One request for bytes, with the headers that matter."""

    path: str
    range: str
    authorization: str


@dataclass
class WebServer:
    """`repositories` have their files by name, `files` lie at /files/NAME.

    `breaks` are told to the next answers with bytes, one each: after so many of them the connection ends. `hangs`: they
    stop after the first piece instead. `ranges` False: the server knows no ranges. `validator` is the ETag of files.
    `changed` is what comes instead of a file, `sizes` what the API says of it; `small` are kept in git itself.
    `answer` is what the API says instead of what it should; `silent`: it says nothing at all. `refusals` are the status
    and the code of a repository, which the hub's API answers for all the same if it is gated; `said` goes with them.
    `ignores_if_range`: what has changed comes from the byte that is asked for. `statuses` are of the next requests for
    bytes, 0: as it should be.
    """

    url: str
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refusals: dict[str, tuple[int, str]] = field(default_factory=dict)
    tokens: set[str] = field(default_factory=set)
    files: dict[str, bytes] = field(default_factory=dict)
    changed: dict[str, bytes] = field(default_factory=dict)
    small: set[str] = field(default_factory=set)
    sizes: dict[str, int] = field(default_factory=dict)
    breaks: list[int] = field(default_factory=list)
    hangs: bool = False
    ranges: bool = True
    ignores_if_range: bool = False
    validator: str = '"one"'
    statuses: list[int] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)
    api: list[str] = field(default_factory=list)
    answer: str = ""
    silent: bool = False
    said: str = ""
    commit: str = COMMIT

    @property
    def other_origin(self) -> str:
        """The same server under another name, as files of the hub come from another host."""
        return self.url.replace("127.0.0.1", "localhost")

    def refuses(self, repository: str, request: Request) -> Response | None:
        if repository not in self.refusals or request.headers.get("Authorization") in self.tokens:
            return None
        status, code = self.refusals[repository]
        headers = {"X-Error-Code": code, "X-Error-Message": self.said}
        return Response("no", status, {name: value for name, value in headers.items() if value})

    def ranges_of(self, ending: str) -> list[str]:
        """What was asked of the files whose path ends so, in order."""
        return [one.range for one in self.asked if one.path.endswith(ending)]


@contextmanager
def serving() -> Iterator[WebServer]:
    """Run one until the end of the block."""
    listener = socket.create_server(("127.0.0.1", 0))
    web = WebServer(f"http://127.0.0.1:{listener.getsockname()[1]}")
    config = uvicorn.Config(_app(web), log_level="critical", lifespan="off", ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield web
    finally:
        server.should_exit = server.force_exit = True
        thread.join(timeout=30)
        listener.close()


def _app(web: WebServer) -> Starlette:
    async def model_info(request: Request) -> Response:
        owner, name, revision = (request.path_params[key] for key in ("owner", "name", "revision"))
        repository = f"{owner}/{name}"
        web.api.append(str(request.url.path))
        while web.silent and not await request.is_disconnected():
            await asyncio.sleep(0.02)
        if web.answer:
            return Response(web.answer)
        refused = web.refuses(repository, request)
        if refused is not None and web.refusals[repository][1] != "GatedRepo":
            return refused
        if repository not in web.repositories:
            return Response("no", 401, {"X-Error-Code": "RepoNotFound"})
        if revision not in ("main", web.commit):
            return Response("no", 404, {"X-Error-Code": "RevisionNotFound"})
        with_sizes = request.query_params.get("blobs") in ("true", "True")
        siblings = [_sibling(web, file, data, with_sizes) for file, data in web.repositories[repository].items()]
        return JSONResponse({"id": repository, "sha": web.commit, "siblings": siblings})

    async def resolve(request: Request) -> Response:
        """As the hub: what is in LFS is somewhere else."""
        repository = "{owner}/{name}".format(**request.path_params)
        authorization = request.headers.get("Authorization", "")
        web.asked.append(Asked(request.url.path, request.headers.get("Range", ""), authorization))
        refused = web.refuses(repository, request)
        if refused is not None:
            return refused
        data = web.repositories[repository][request.path_params["file"]]
        digest = hashlib.sha256(data).hexdigest()
        headers = {"X-Repo-Commit": web.commit, "X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(data))}
        place = f"{web.other_origin}/lfs/{repository}/{request.path_params['file']}"
        return RedirectResponse(place, 302, headers)

    async def lfs(request: Request) -> Response:
        repository = "{owner}/{name}".format(**request.path_params)
        return _bytes(request, request.path_params["file"], web.repositories[repository][request.path_params["file"]])

    async def plain(request: Request) -> Response:
        return _bytes(request, request.path_params["file"], web.files.get(request.path_params["file"]))

    def _bytes(request: Request, name: str, data: bytes | None) -> Response:
        authorization = request.headers.get("Authorization", "")
        web.asked.append(Asked(request.url.path, request.headers.get("Range", ""), authorization))
        if web.statuses and (status := web.statuses.pop(0)):
            return Response("no", status)
        return Response("no", 404) if data is None else _Bytes(web, request, web.changed.get(name, data))

    return Starlette(
        routes=[
            Route("/api/models/{owner}/{name}/revision/{revision:path}", model_info),
            Route("/{owner}/{name}/resolve/{revision}/{file:path}", resolve),
            Route("/lfs/{owner}/{name}/{file:path}", lfs),
            Route("/files/{file:path}", plain),
        ]
    )


def _sibling(web: WebServer, name: str, data: bytes, with_sizes: bool) -> dict[str, Any]:
    if not with_sizes:
        return {"rfilename": name}
    size = web.sizes.get(name, len(data))
    blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    told = {"rfilename": name, "size": size, "blobId": blob}
    if name in web.small:
        return told
    return {**told, "lfs": {"sha256": hashlib.sha256(data).hexdigest(), "size": size, "pointerSize": 134}}


class _Bytes(Response):
    """A file, or the part that is asked for, a piece at a time."""

    def __init__(self, web: WebServer, request: Request, data: bytes) -> None:
        self.web, self.data = web, data
        self.start, self.end, status = 0, len(data), 200
        asked = request.headers.get("Range", "")
        same = web.ignores_if_range or request.headers.get("If-Range", web.validator) == web.validator
        if asked and web.ranges and same:
            first, last = asked.removeprefix("bytes=").split("-")
            self.start, self.end, status = int(first), min(int(last) + 1, len(data)), 206
        if self.start >= len(data) > 0:
            self.start, self.end, status = 0, 0, 416
        headers = {"ETag": web.validator, "Content-Length": str(self.end - self.start)}
        if status == 206:
            headers["Content-Range"] = f"bytes {self.start}-{self.end - 1}/{len(data)}"
        super().__init__(status_code=status, headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        whole = self.end - self.start
        allowed = self.web.breaks.pop(0) if self.web.breaks and whole > 1 else whole
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        sent = 0
        while sent < min(allowed, whole):
            piece = self.data[self.start + sent : self.start + min(sent + PIECE, allowed, whole)]
            sent += len(piece)
            await send({"type": "http.response.body", "body": piece, "more_body": sent < whole})
            if self.web.hangs:
                while (await receive())["type"] != "http.disconnect":
                    pass
                return
        if sent < whole:
            raise ConnectionError("told to break")
