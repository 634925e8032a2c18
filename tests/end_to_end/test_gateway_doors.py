"""The gateway's doors on a real cluster: over TLS, warned of without it, and keys nowhere but where they are kept."""

import ssl
import subprocess
from pathlib import Path

import httpx
import pytest

from tests.end_to_end.inventories import free_port, write_local
from tests.program import Meshctl, processes_with

pytestmark = pytest.mark.engine


def up(meshctl: Meshctl, **gateway: object) -> str:
    """Bring up one host with this gateway; what was said."""
    settings = {"port": free_port(), **gateway}
    path = write_local(meshctl.folder / "inventory.yaml", hosts=1, memory="1GiB", context=512, gateway=settings)
    return meshctl.ok("up", str(path), "--detach").stderr


def test_a_cluster_talks_over_tls_with_a_certificate_of_its_own(meshctl: Meshctl) -> None:
    page = "https://chat.example"
    said = up(meshctl, tls="self-signed", body="1KiB", allowed_origins=[page])
    state = meshctl.ok("status", "--json").json
    url, certificate = state["gateway"], Path(state["certificate"])
    words = ("openssl", "x509", "-noout", "-fingerprint", "-sha256", "-in", str(certificate))
    shown = subprocess.run(words, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    assert shown.endswith(state["certificate_sha256"])
    assert url.startswith("https://127.0.0.1:")
    assert f"answers at {url}" in said
    assert f"Certificate: in {certificate}, SHA-256 {state['certificate_sha256']}" in " ".join(said.split("\n"))
    assert "unencrypted" not in said
    assert state["certificate_sha256"] in meshctl.ok("status").stdout.replace("\n", "")
    assert meshctl.ok("chat", "Count from one to ten.", "--temperature", "0", "--max-tokens", "8").stdout.strip()
    context = ssl.create_default_context(cafile=str(certificate))
    with httpx.Client(verify=context, trust_env=False) as http:
        health = http.get(url.removesuffix("/v1") + "/health", headers={"origin": page})
        assert (health.json(), health.headers["access-control-allow-origin"]) == ({"status": "ok"}, page)
        key = Path(state["key_file"]).read_text().strip()
        large = http.post(f"{url}/completions", content=b"x" * 1025, headers={"authorization": f"Bearer {key}"})
        assert (large.status_code, large.json()["error"]["message"]) == (413, "the body is larger than 1024 bytes")
    with httpx.Client(trust_env=False) as http, pytest.raises(httpx.ConnectError, match="certificate"):
        http.get(url.removesuffix("/v1") + "/health")
    certificate.write_text((meshctl.folder / "inventory.yaml").read_text())
    assert "the gateway's certificate cannot be read" in meshctl.run("chat", "hello").stderr
    meshctl.ok("down")


def test_without_tls_on_a_network_up_warns_and_keys_are_nowhere_but_in_their_files(meshctl: Meshctl) -> None:
    said = up(meshctl, host="0.0.0.0")
    assert "keys and conversations cross the network unencrypted" in " ".join(said.split())
    folder = meshctl.folder / "state/meshctl/clusters/test"
    meshctl.ok("chat", "hello", "--max-tokens", "4")
    holders = sorted(folder.glob("*.key"))
    keys = {path.name: path.read_text().strip() for path in holders}
    assert set(keys) == {"gateway.key"}  # a head has read its own, which is then removed
    assert {name: processes_with(key) for name, key in keys.items()} == {name: [] for name in keys}
    status = meshctl.ok("status", "--json").stdout + meshctl.ok("status").stdout + meshctl.ok("events").stdout
    meshctl.ok("down")
    places = [folder, Path(meshctl.environment["XDG_CACHE_HOME"]) / "meshctl/logs/test"]
    files = [path for place in places for path in place.rglob("*") if path.is_file() and path not in holders]
    assert folder / "state.json" in files
    assert len([path for path in files if path.suffix == ".log"]) >= 2
    told = status + "".join(path.read_text(errors="replace") for path in files)
    assert [name for name, key in keys.items() if key in told] == []
