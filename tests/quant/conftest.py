"""What tests of fetching share: a web server, its hub, and small real models."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from quant.hub import Hub
from quant.synthetic import Shape, write_random_model
from tests.quant.web_server import WebServer, serving

SHAPE = Shape(layers=1, embedding=256, feed_forward=256, heads=4, kv_heads=4, vocabulary=512)


@pytest.fixture
def web() -> Iterator[WebServer]:
    """A real server on loopback, for one test."""
    with serving() as server:
        yield server


@pytest.fixture
def hub(web: WebServer, tmp_path: Path) -> Hub:
    """The hub that this server is, with a cache of its own and no token."""
    return Hub(web.url, tmp_path / "hub")


@pytest.fixture(scope="session")
def model_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A whole GGUF of some 750 KiB."""
    path = tmp_path_factory.mktemp("model") / "model.gguf"
    write_random_model(path, SHAPE, "Q8_0")
    return path.read_bytes()
