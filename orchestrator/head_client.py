"""Where a head listens: at a socket in our folder, which nobody else on the machine can reach; and a client for it."""

import httpx

SOCKET = "unix:"
"""How the URL of such a head begins; its path follows. Any other URL is taken as it is."""


def socket_of(url: str) -> str:
    """The path of the socket at which a head listens; "" where it listens elsewhere."""
    return url.removeprefix(SOCKET) if url.startswith(SOCKET) else ""


def head_client(url: str, key: str, *, timeout: float) -> httpx.AsyncClient:
    """Straight to the head: a proxy of the environment cannot reach it, and would be told the key.

    The system's certificate authorities are not read, which takes 30 ms: heads speak plain HTTP.
    """
    path = socket_of(url)
    return httpx.AsyncClient(
        base_url="http://head" if path else url,
        headers={"authorization": f"Bearer {key}"},
        timeout=timeout,
        transport=httpx.AsyncHTTPTransport(uds=path or None, trust_env=False, verify=False),
        trust_env=False,
    )
