"""The gateway over TLS: with a certificate of the user's or of meshctl's own, and clients that trust just that."""

import ssl
import stat
from datetime import timedelta
from pathlib import Path

import httpx
import pytest

from orchestrator.certificates import VALID_FOR, names_of, read_certificate
from orchestrator.client import GatewayClient, ServedModel
from orchestrator.errors import BringUpError, GatewayError
from orchestrator.folders import ClusterFolder
from orchestrator.gateway.tls import Tls, certified_names, is_loopback, prepare_tls
from orchestrator.inventory import GatewaySettings, TlsFiles
from tests.orchestrator.certificate_files import LONG_AGO, NOW, write_pair
from tests.orchestrator.gateway.heads import KEY, FakeHead, gateway_for

SELF_SIGNED = GatewaySettings(tls="self-signed")


@pytest.fixture
def folder(tmp_path: Path) -> ClusterFolder:
    one = ClusterFolder(tmp_path / "cluster")
    one.prepare()
    return one


def prepared(settings: GatewaySettings, folder: ClusterFolder, later: timedelta = timedelta()) -> Tls:
    tls = prepare_tls(settings, folder, NOW + later)
    assert tls is not None
    return tls


def files(pair: tuple[Path, Path]) -> GatewaySettings:
    return GatewaySettings(tls=TlsFiles(str(pair[0]), str(pair[1])))


def test_without_the_key_there_is_no_tls(folder: ClusterFolder) -> None:
    assert prepare_tls(GatewaySettings(), folder, NOW) is None


def test_a_made_certificate_is_kept_until_it_nears_its_end_or_its_names_change(folder: ClusterFolder) -> None:
    first = prepared(SELF_SIGNED, folder)
    assert prepared(SELF_SIGNED, folder).fingerprint == first.fingerprint
    assert stat.S_IMODE(folder.self_signed.stat().st_mode) == 0o600
    assert "PRIVATE KEY" not in first.certificate.read_text()
    late = prepared(SELF_SIGNED, folder, VALID_FOR - timedelta(days=29))
    other = prepared(GatewaySettings(host="192.0.2.7", tls="self-signed"), folder, VALID_FOR)
    assert len({first.fingerprint, late.fingerprint, other.fingerprint}) == 3
    assert "192.0.2.7" in names_of(read_certificate(other.certificate))


def test_a_made_certificate_that_is_damaged_is_made_anew(folder: ClusterFolder) -> None:
    folder.self_signed.write_text("-----BEGIN CERTIFICATE-----\nx")
    assert prepared(SELF_SIGNED, folder).warning == ""


def test_a_gateway_on_every_address_is_certified_for_those_of_this_machine() -> None:
    assert {"localhost", "127.0.0.1", "::1"} <= certified_names("0.0.0.0")
    assert not {"0.0.0.0", "::"} & certified_names("::")


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.1.2.3", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("nuc", False)],
)
def test_what_only_this_machine_reaches_is_known(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


def test_an_expired_certificate_is_a_warning(folder: ClusterFolder, tmp_path: Path) -> None:
    pair = write_pair(tmp_path, made_at=LONG_AGO)
    warning = prepared(files(pair), folder).warning
    assert warning.startswith(f"`gateway.tls.certificate`: {pair[0]} expired on 20")


def test_files_that_have_changed_since_the_inventory_was_read_are_an_error(
    folder: ClusterFolder, tmp_path: Path
) -> None:
    certificate, key = write_pair(tmp_path)
    other = write_pair(tmp_path, "other")[1]
    with pytest.raises(BringUpError, match="cannot be used for TLS") as caught:
        prepare_tls(files((certificate, other)), folder, NOW)
    assert caught.value.hint == "`gateway.tls` in the inventory names them"
    key.unlink()
    with pytest.raises(BringUpError, match="cannot be used for TLS"):
        prepare_tls(files((certificate, key)), folder, NOW)


@pytest.mark.parametrize("made", ["by meshctl", "by the user", "long ago"])
async def test_the_clusters_own_client_trusts_exactly_what_the_gateway_shows(
    folder: ClusterFolder, tmp_path: Path, made: str
) -> None:
    settings = SELF_SIGNED if made == "by meshctl" else files(write_pair(tmp_path))
    if made == "long ago":
        settings = files(write_pair(tmp_path, made_at=LONG_AGO))
    tls = prepared(settings, folder)
    async with gateway_for(FakeHead(), tls=tls.context) as gateway:
        assert gateway.url.startswith("https://127.0.0.1:")
        async with GatewayClient(gateway.url, KEY, certificate=tls.certificate) as client:
            assert await client.model() == ServedModel("tiny", 4096)


async def test_another_certificate_for_the_same_name_is_not_trusted(folder: ClusterFolder, tmp_path: Path) -> None:
    tls, trusted = prepared(files(write_pair(tmp_path)), folder), write_pair(tmp_path, "other")[0]
    async with gateway_for(FakeHead(), tls=tls.context) as gateway:
        async with GatewayClient(gateway.url, KEY, certificate=trusted) as client:
            with pytest.raises(GatewayError, match="does not show the certificate of this cluster") as caught:
                await client.model()
        async with GatewayClient(gateway.url, KEY) as client:
            with pytest.raises(GatewayError, match="does not show the certificate of this cluster"):
                await client.model()
    assert "`meshctl status` shows the fingerprint" in caught.value.hint


def test_a_certificate_file_that_is_gone_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(GatewayError, match="the gateway's certificate cannot be read"):
        GatewayClient("https://127.0.0.1:1", KEY, certificate=tmp_path / "none.crt")


async def test_other_programs_may_trust_the_made_certificate_with_every_check(folder: ClusterFolder) -> None:
    """Name, validity and extensions, as strictly as Python's newest default asks."""
    tls = prepared(SELF_SIGNED, folder)
    strict = ssl.create_default_context(cafile=str(tls.certificate))
    strict.verify_flags |= ssl.VERIFY_X509_STRICT
    async with gateway_for(FakeHead(), tls=tls.context) as gateway:
        for name in ("127.0.0.1", "localhost"):
            url = gateway.url.replace("127.0.0.1", name)
            async with httpx.AsyncClient(base_url=url, verify=strict, trust_env=False) as http:
                assert (await http.get("/health")).json() == {"status": "ok"}


async def test_what_is_not_tls_gets_nothing_and_the_gateway_goes_on(folder: ClusterFolder) -> None:
    tls = prepared(SELF_SIGNED, folder)
    async with gateway_for(FakeHead(), tls=tls.context) as gateway:
        async with httpx.AsyncClient(trust_env=False) as http:
            with pytest.raises(httpx.TransportError):
                await http.get(gateway.url.replace("https", "http") + "/health")
        async with GatewayClient(gateway.url, KEY, certificate=tls.certificate) as client:
            assert (await client.model()).name == "tiny"
