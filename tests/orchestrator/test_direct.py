"""Where workers listen, and where they never do."""

from dataclasses import replace

import pytest

from orchestrator.direct import direct_warning, worker_address
from orchestrator.errors import HostError
from orchestrator.inventory import Host
from tests.orchestrator.plan.examples import FACTS

DIRECT = Host("nuc", "ssh", address="nuc.local", link="direct", plaintext_rpc="accept")


@pytest.mark.parametrize("address", ["10.1.2.3", "172.16.0.1", "172.31.255.1", "192.168.1.20", "169.254.7.7"])
def test_a_direct_worker_listens_at_the_private_address_that_ssh_came_to(address: str) -> None:
    assert worker_address(DIRECT, replace(FACTS, address=address)) == address


@pytest.mark.parametrize("address", ["8.8.8.8", "172.32.0.1", "100.64.0.1", "127.0.0.1"])
def test_every_other_address_is_refused(address: str) -> None:
    with pytest.raises(HostError) as caught:
        worker_address(DIRECT, replace(FACTS, address=address))
    assert str(caught.value) == (
        f"nuc: `link: direct` is not possible: it was reached at {address}, which is no private address"
    )
    assert 'write "link: tunnel" for nuc' in caught.value.hint


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("fd00::1", "it was reached at fd00::1, and the engine's RPC speaks IPv4 only"),
        ("", "the host does not say at which of its addresses it was reached"),
    ],
)
def test_what_the_engine_cannot_do_is_said(address: str, why: str) -> None:
    with pytest.raises(HostError, match=why):
        worker_address(DIRECT, replace(FACTS, address=address))


def test_without_it_workers_listen_on_loopback_wherever_the_host_is() -> None:
    assert worker_address(replace(DIRECT, link="tunnel"), replace(FACTS, address="8.8.8.8")) == "127.0.0.1"


def test_what_it_means_stands_in_one_line() -> None:
    facts = replace(FACTS, address="10.1.2.3", user="ada")
    assert direct_warning(DIRECT, facts) == (
        "nuc: link: direct, its worker listens at 10.1.2.3 without password and encryption: whoever reaches it there "
        "runs code as ada and reads what is asked"
    )
