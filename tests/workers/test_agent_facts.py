"""What the agent reads of a host: recorded outputs, recorded control-group trees, and this machine itself."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from workers import agent
from workers.facts import read_facts

RECORDED = Path(__file__).parent / "recorded"
AGENT = Path(agent.__file__)
GIB = 1024**3
MIB = 1024**2

MEMINFO = "MemTotal:       16384000 kB\nMemFree:         1000000 kB\nMemAvailable:   12000000 kB\n"
V1_MOUNTS = (
    "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n"
    "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
    "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:12 - cgroup cgroup rw,memory\n"
    "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n"
)
V2_MOUNTS = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n"


def recorded(name: str) -> str:
    return (RECORDED / name).read_text()


def tree(root: Path, files: dict[str, str]) -> str:
    for name, text in {"proc/meminfo": MEMINFO, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(root)


def test_facts_of_this_machine_are_what_the_reader_expects(tmp_path: Path) -> None:
    words = (sys.executable, "-I", "-S", str(AGENT), "facts", "--root", str(tmp_path / "not" / "there"))
    answer = subprocess.run(words, capture_output=True, timeout=60, check=True).stdout
    facts = read_facts(answer)
    assert facts.root == str(tmp_path / "not" / "there")
    assert facts.python == ".".join(str(part) for part in sys.version_info[:3])
    assert facts.cores_logical == len(os.sched_getaffinity(0))
    assert 0 < facts.cores_physical <= facts.cores_logical
    assert 0 < facts.memory_available_bytes <= facts.memory_total_bytes
    assert 0 < facts.disk_free_bytes <= facts.disk_total_bytes


def test_the_agent_uses_no_syntax_newer_than_python_3_8() -> None:
    ast.parse(AGENT.read_text(), feature_version=(3, 8))


def test_the_agent_imports_only_the_standard_library() -> None:
    imported = {
        name.name.partition(".")[0]
        for node in ast.walk(ast.parse(AGENT.read_text()))
        if isinstance(node, ast.Import)
        for name in node.names
    }
    assert imported <= sys.stdlib_module_names


def test_without_a_limiting_group_the_kernels_own_figures_count(tmp_path: Path) -> None:
    root = tree(tmp_path, {"proc/self/cgroup": "0::/user.slice\n", "proc/self/mountinfo": V2_MOUNTS})
    assert agent.linux_memory(root) == agent.Memory(16384000 * 1024, 12000000 * 1024, "")
    assert agent.cpu_quota(root) is None


def test_version_2_groups_limit_from_any_level_and_page_cache_counts_as_free(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/lab/host-a"
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "0::/lab/host-a/session\n",
            "proc/self/mountinfo": V2_MOUNTS,
            f"{group}/session/memory.max": "max\n",
            f"{group}/session/memory.high": "max\n",
            f"{group}/session/cpu.max": "max 100000\n",
            f"{group}/memory.max": f"{700 * MIB}\n",
            f"{group}/memory.high": "max\n",
            f"{group}/memory.current": f"{600 * MIB}\n",
            f"{group}/memory.stat": f"anon {50 * MIB}\nfile {540 * MIB}\nshmem {40 * MIB}\n"
            f"inactive_file {300 * MIB}\nactive_file {200 * MIB}\n",
            f"{group}/cpu.max": "25000 100000\n",
            "sys/fs/cgroup/lab/memory.max": f"{4 * GIB}\n",
            "sys/fs/cgroup/lab/memory.current": f"{GIB}\n",
            "sys/fs/cgroup/lab/cpu.max": "100000 100000\n",
        },
    )
    assert agent.linux_memory(root) == agent.Memory(700 * MIB, 600 * MIB, f"{root}/{group}")
    assert agent.cpu_quota(root) == 0.25


def test_version_1_groups_count_their_descendants_and_ignore_the_unlimited_root(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/memory/lab/host-b"
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "9:name=systemd:/\n4:memory:/lab/host-b\n1:cpu,cpuacct:/lab/host-b\n0::/\n",
            "proc/self/mountinfo": V1_MOUNTS,
            f"{group}/memory.limit_in_bytes": f"{GIB}\n",
            f"{group}/memory.usage_in_bytes": f"{900 * MIB}\n",
            f"{group}/memory.stat": f"inactive_file 0\nactive_file 0\nhierarchical_memory_limit {GIB}\n"
            f"total_inactive_file {100 * MIB}\ntotal_active_file {24 * MIB}\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{8 * GIB}\n",
            "sys/fs/cgroup/cpu,cpuacct/lab/host-b/cpu.cfs_quota_us": "150000\n",
            "sys/fs/cgroup/cpu,cpuacct/lab/host-b/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
        },
    )
    assert agent.linux_memory(root) == agent.Memory(GIB, GIB - 776 * MIB, f"{root}/{group}")
    assert agent.cpu_quota(root) == 1.5


def test_a_container_sees_its_own_group_at_the_mount_point(tmp_path: Path) -> None:
    mounts = V2_MOUNTS.replace(" / /sys/fs/cgroup ", " /docker/4f5e /sys/fs/cgroup ")
    files = {
        "proc/self/cgroup": "0::/docker/4f5e\n",
        "proc/self/mountinfo": mounts,
        "sys/fs/cgroup/memory.max": f"{2 * GIB}\n",
        "sys/fs/cgroup/memory.current": f"{GIB}\n",
    }
    root = tree(tmp_path, files)
    assert agent.linux_memory(root) == agent.Memory(2 * GIB, GIB, f"{root}/sys/fs/cgroup")


def test_a_group_that_is_over_its_limit_has_nothing_left(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/\n",
        "proc/self/mountinfo": V2_MOUNTS,
        "sys/fs/cgroup/memory.high": f"{GIB}\n",
        "sys/fs/cgroup/memory.current": f"{GIB + MIB}\n",
    }
    assert agent.linux_memory(tree(tmp_path, files)).available_bytes == 0


def test_blanks_in_mount_points_are_unescaped() -> None:
    assert agent.unescape(r"/mnt/my\040disk\134x") == "/mnt/my disk\\x"


def test_physical_cores_are_those_behind_the_allowed_processors(tmp_path: Path) -> None:
    siblings = {0: "0,4", 1: "1,5", 2: "2,6", 3: "3,7", 4: "0,4", 5: "1,5", 6: "2,6", 7: "3,7"}
    files = {f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list": text for cpu, text in siblings.items()}
    root = tree(tmp_path, files)
    assert agent.physical_cores(root, range(8)) == 4
    assert agent.physical_cores(root, (0, 4, 5)) == 2


def test_without_sysfs_the_cores_come_from_cpuinfo_else_are_the_processors(tmp_path: Path) -> None:
    blocks = [f"processor\t: {n}\nphysical id\t: 0\ncore id\t\t: {n // 2}\n" for n in range(4)]
    assert agent.physical_cores(tree(tmp_path / "a", {"proc/cpuinfo": "\n".join(blocks)}), range(4)) == 2
    pi = tree(tmp_path / "b", {"proc/cpuinfo": recorded("cpuinfo_raspberry_pi_5.txt")})
    assert agent.physical_cores(pi, range(4)) == 4


def test_a_raspberry_pi_is_known_by_its_model_and_features() -> None:
    information = recorded("cpuinfo_raspberry_pi_5.txt")
    assert agent.processor_name(information, "") == "Raspberry Pi 5 Model B Rev 1.0"
    assert agent.processor_features(information)[:4] == ["aes", "asimd", "asimddp", "asimdhp"]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ('NAME="Debian GNU/Linux"\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n', "Debian GNU/Linux 12 (bookworm)"),
        ("PRETTY_NAME=Void\n", "Void"),
        ("", ""),
    ],
)
def test_the_systems_name_is_read_from_os_release(text: str, name: str) -> None:
    assert agent.read_os_release(text) == name


def test_musl_names_its_version() -> None:
    said = "musl libc (x86_64)\nVersion 1.2.4\nDynamic Program Loader\n"
    assert agent.read_musl(said) == "musl 1.2.4"


MEMORY = agent.Memory(16 * GIB, 9 * GIB, "")


def test_nvidia_cards_are_listed_with_total_and_free_memory() -> None:
    assert agent.read_nvidia(recorded("nvidia_two_cards.csv"), MEMORY) == [
        card(0, "NVIDIA GeForce RTX 4090", 24564 * MIB, 23011 * MIB, "8.9"),
        card(1, "NVIDIA GeForce GTX 1080 Ti", 11264 * MIB, 11169 * MIB, "6.1"),
    ]


def card(index: int, name: str, total: int, free: int, capability: str, *, shares: bool = False) -> dict[str, object]:
    found = agent.gpu("cuda", index, name, total, free)
    return {**found, "compute_capability": capability, "shares_memory": shares}


def test_a_driver_too_old_to_tell_the_compute_capability_still_lists_its_card() -> None:
    text = "24564, 23011, 0, 0, NVIDIA GeForce RTX 4090\n"
    assert agent.read_nvidia(text, MEMORY) == [card(0, "NVIDIA GeForce RTX 4090", 24564 * MIB, 23011 * MIB, "")]


def test_a_chip_that_shares_the_hosts_memory_has_the_hosts_figures() -> None:
    found = agent.read_nvidia(recorded("nvidia_shared_memory.csv"), MEMORY)
    assert found == [card(0, "NVIDIA GB10", 16 * GIB, 9 * GIB, "12.1", shares=True)]


def test_a_driver_that_does_not_answer_means_no_card() -> None:
    assert agent.read_nvidia(recorded("nvidia_no_driver.csv"), MEMORY) == []


def test_an_apple_chip_offers_what_macos_lets_its_gpu_hold() -> None:
    text = recorded("displays_apple_m2_pro.json")
    two_thirds = 16 * GIB * 2 // 3
    chip = {**agent.gpu("metal", 0, "Apple M2 Pro", two_thirds, 9 * GIB), "shares_memory": True}
    assert agent.read_displays(text, MEMORY, 0) == [chip]
    assert agent.read_displays(text, MEMORY, 14 * GIB)[0]["memory_total_bytes"] == 14 * GIB


def test_on_an_intel_mac_only_cards_with_memory_of_their_own_count() -> None:
    found = agent.read_displays(recorded("displays_intel_mac.json"), MEMORY, 0)
    assert found == [agent.gpu("metal", 0, "AMD Radeon Pro 5500M", 4 * GIB, 4 * GIB)]


@pytest.mark.parametrize("text", ["", "no json", "{}", "[]"])
def test_displays_that_cannot_be_read_mean_no_gpu(text: str) -> None:
    assert agent.read_displays(text, MEMORY, 0) == []


def test_available_memory_of_a_mac_is_free_file_backed_and_purgeable_pages() -> None:
    assert agent.read_vm_stat(recorded("vm_stat_apple.txt")) == 16384 * (45231 + 145678 + 23456)


def test_a_vm_stat_that_cannot_be_read_is_an_error() -> None:
    with pytest.raises(agent.AgentError, match="vm_stat gives no figures"):
        agent.read_vm_stat("vm_stat: command not found")


def test_processors_of_macs() -> None:
    apple = agent.read_mac_processor(recorded("sysctl_apple.txt"))
    assert (apple["cpu_name"], apple["cores_physical"], apple["cores_logical"]) == ("Apple M2 Pro", 10, 10)
    assert apple["cpu_features"] == ["FEAT_DotProd", "FEAT_I8MM", "arm64", "neon"]
    intel = agent.read_mac_processor(recorded("sysctl_intel.txt"))
    assert (intel["cores_physical"], intel["cores_logical"]) == (6, 12)
    assert {"avx2", "avx2_0", "bmi2", "sse4.2"} <= set(intel["cpu_features"])


def test_processes_of_a_mac_and_the_family_of_one() -> None:
    processes = agent.read_ps(recorded("ps_mac.txt"))
    assert processes[777] == agent.Running(501, 777, 62.5, 512 * MIB)
    assert processes[780].cpu_s == 86400 + 7200 + 1
    assert agent.family_of(processes, 777, 777, {501}) == {777, 778, 780}


def test_listening_sockets_are_read_from_the_kernels_tables() -> None:
    assert agent.read_tcp(recorded("proc_net_tcp.txt")) == [
        agent.ListeningSocket("127.0.0.1", 20480, 1000, "41234"),
        agent.ListeningSocket("0.0.0.0", 22, 0, "11050"),
    ]
    assert agent.read_tcp(recorded("proc_net_tcp6.txt")) == [agent.ListeningSocket("::1", 20481, 1000, "41236")]


def test_listening_sockets_of_a_mac() -> None:
    assert agent.read_lsof(recorded("lsof_mac.txt")) == [
        agent.listener("0.0.0.0", 7000, 411, "ControlCe"),
        agent.listener("127.0.0.1", 20480, 90210, "ggml-rpc-server"),
        agent.listener("::1", 20481, 90300, "ssh"),
    ]


@pytest.mark.parametrize(("text", "start"), [("32768\t60999\n", 32768), ("49152 65535", 49152), ("1024 65535", 32768)])
def test_ports_stay_below_those_of_outgoing_connections(text: str, start: int) -> None:
    assert agent.ephemeral_start(text) == start


def test_facts_are_the_readers_fields_and_no_others() -> None:
    printed = subprocess.run(
        (sys.executable, str(AGENT), "facts", "--root", "/"), capture_output=True, timeout=60, check=True
    )
    assert set(json.loads(printed.stdout)) == set(read_facts(printed.stdout).__dataclass_fields__)


def test_the_interface_of_an_address_is_found_by_either_family(tmp_path: Path) -> None:
    line = "fd000000000000000000000000000002 04 40 00 02     wlan0\n"
    root = tree(tmp_path, {"proc/net/if_inet6": line})
    assert agent.interface_of("fd00::2", root) == "wlan0"
    assert agent.interface_of("127.0.0.1", root) == "lo"
    assert agent.interface_of("fd00::3", root) == ""


@pytest.mark.parametrize(
    ("name", "medium"),
    [
        ("wlan0", "wireless"),
        ("eth0", "wired"),
        ("veth0", "wired"),
        ("lo", ""),
        ("wg0", ""),
        ("br0", "wired"),
        ("br1", "wireless"),
        ("gone", ""),
    ],
)
def test_an_interface_is_wireless_when_it_or_what_lies_below_it_has_a_radio(
    tmp_path: Path, name: str, medium: str
) -> None:
    ethernet = {f"{one}/type": "1\n" for one in ("wlan0", "eth0", "veth0", "br0", "br1")}
    others = {"lo/type": "772\n", "wg0/type": "65534\n", "wlan0/phy80211/index": "0\n"}
    bridges = {"br0/lower_eth0/type": "1\n", "br1/lower_eth0/type": "1\n", "br1/lower_wlan0/type": "1\n"}
    files = {f"sys/class/net/{path}": text for path, text in (ethernet | others | bridges).items()}
    assert agent.interface_medium(tree(tmp_path, files), name) == medium


MAC_INTERFACES = """\
en0: flags=8863<UP,BROADCAST,SMART,RUNNING,SIMPLEX,MULTICAST> mtu 1500
\tether 1c:57:dc:00:00:01
\tinet6 fe80::1c%en0 prefixlen 64 secured scopeid 0xb
\tinet 192.0.2.7 netmask 0xffffff00 broadcast 192.0.2.255
en7: flags=8863<UP,BROADCAST,SMART,RUNNING,SIMPLEX,MULTICAST> mtu 1500
\tinet 192.0.2.70 netmask 0xffffff00 broadcast 192.0.2.255
utun3: flags=8051<UP,POINTOPOINT,RUNNING,MULTICAST> mtu 1380
\tinet 198.51.100.2 --> 198.51.100.2 netmask 0xffffffff
"""
MAC_PORTS = """
Hardware Port: USB 10/100/1000 LAN
Device: en7
Ethernet Address: 00:e0:4c:00:00:01

Hardware Port: Wi-Fi
Device: en0
Ethernet Address: 1c:57:dc:00:00:01
"""


@pytest.mark.parametrize(
    ("address", "medium"),
    [("192.0.2.7", "wireless"), ("fe80::1c", "wireless"), ("192.0.2.70", "wired"), ("198.51.100.2", ""), ("::2", "")],
)
def test_a_mac_knows_its_radio_by_the_hardware_port(address: str, medium: str) -> None:
    assert agent.read_mac_medium(address, MAC_INTERFACES, MAC_PORTS) == medium


def test_without_an_ssh_connection_nothing_is_said_of_its_medium() -> None:
    assert agent.medium("") == ""
    assert agent.medium("127.0.0.1 50000 127.0.0.1 22") == ""
