"""The HTTP client of a head, which listens at a socket in our folder: nobody else on the machine can reach it there."""

import httpx

SOCKET = "unix:"
"""How the URL of such a head begins; its path follows. Any other URL is taken as it is."""


def head_client(
    url: str, key: str, *, timeout: httpx.Timeout | float, limits: httpx.Limits | None = None
) -> httpx.AsyncClient:
    """Straight to the head: a proxy of the environment cannot reach it, and would be told the key.

    The system's certificate authorities are not read, which takes 30 ms: heads speak plain HTTP.
    """
    path = url.removeprefix(SOCKET) if url.startswith(SOCKET) else None
    return httpx.AsyncClient(
        base_url="http://head" if path else url,
        headers={"authorization": f"Bearer {key}"},
        timeout=timeout,
        transport=httpx.AsyncHTTPTransport(uds=path, limits=limits or httpx.Limits(), trust_env=False, verify=False),
        trust_env=False,
    )
