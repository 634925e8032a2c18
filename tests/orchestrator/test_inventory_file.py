"""Inventories as people write them: good ones become whole values, bad ones get every problem in exact words."""

import hashlib
import os
import re
from pathlib import Path

import pytest

from orchestrator.errors import InventoryError
from orchestrator.inventory import GatewaySettings, Host, Inventory, TlsFiles
from orchestrator.inventory_file import inventory_reference_keys, load_inventory
from quant.source import HUB_FORM
from tests.orchestrator.certificate_files import write_locked_key, write_pair
from workers.budget import MIB, MemoryCap

ROOT_INVENTORY = Path(__file__).parents[2] / "inventory.yaml"
TOP = "cluster: demo\nmodel: smollm2-135m\n"
LOCAL = "  - name: a\n    connection: local\n"
SSH = "  - name: b\n    connection: ssh\n    address: 10.0.0.2\n"
WHOLE = f"{TOP}hosts:\n{LOCAL}"
FINGERPRINT = "SHA256:uNiVztksCsDhcc0u9e8BrWmcYLoGLmz3NGQyAMGNoUA"
NUMBER_OF_CONTEXT = "write a whole number from 256 to 16777216"
ENGINE_FOLDER = 'write the absolute path of an engine folder on that host, such as "/opt/meshctl/engine"'
LAUNCHER = 'write a command and its options such as "numactl --cpunodebind=0 --membind=0", as a text or a list of words'
NUMBER_OF_THREADS = 'write a whole number from 1 to 1024 or "auto"'
NAME_RULE = "use letters, digits, '-', '_' and '.', beginning with a letter or a digit"
SIZE_OR_SHARE = 'write a size such as "12GiB" or "800MiB", or a share such as "80%"'
ADDRESS = 'write a name or an address such as "192.168.1.20"'
ASK_FINGERPRINT = (
    'write the fingerprint that "ssh-keygen -lf" shows on the host, "SHA256:" and 43 characters'  # as on the host
)


TLS = 'write "self-signed", or "certificate: ..." and "key: ..." below it'
ORIGINS = 'write a list of origins such as ["https://chat.example"]'
ORIGIN = (
    "is not an origin; write scheme, name and port as browsers send them, such as"
    ' "https://chat.example", in small letters and without a path'
)
BODY = 'write a size such as "8MiB", from "1KiB" to "64MiB"'


def in_host(line: str, host: str = LOCAL) -> str:
    return f"{TOP}hosts:\n{host}    {line}\n"


TWO_CACHE_TYPES = (
    "cache_type: keys and values of different types are not known to be safe over RPC, and CUDA has no kernels of its"
    " own for them; write one type for both, f16, q8_0 or q4_0"
)
BAD: list[tuple[str, str, list[str]]] = [
    ("empty", "", ['the file is empty; begin with "cluster: NAME", "model: NAME" and "hosts:"']),
    ("comment only", "# x\n", ['the file is empty; begin with "cluster: NAME", "model: NAME" and "hosts:"']),
    ("a list", "- a\n", ['the file is a list, not keys with values; begin with "cluster: NAME"']),
    ("a word", "demo\n", ['the file is the text "demo", not keys with values; begin with "cluster: NAME"']),
    (
        "syntax",
        "cluster: [demo\nmodel: x\n",
        ["line 2, column 6: not valid YAML, expected ',' or ']', but got ':'; correct this place or the line above"],
    ),
    (
        "tab",
        "cluster: demo\nhosts:\n\t- name: a\n",
        ["line 3, column 1: a tab; YAML is indented with spaces, replace the tab"],
    ),
    ("control character", "cluster: de\x07mo\n", ["line 1: the character U+0007 is not allowed; remove it"]),
    (
        "two documents",
        f"{WHOLE}---\na: b\n",
        [
            "line 6, column 1: not valid YAML, but found another document; correct this place or the line above",
        ],
    ),
    (
        "tag",
        "cluster: !!python/name:os.system x\n",
        ["line 1, column 10: a tag (a word that begins with !); remove it, inventories use none"],
    ),
    (
        "nested",
        "cluster: " + "[" * 5000,
        ["the file is nested too deeply; an inventory has hosts and their keys, no more"],
    ),
    (
        "nothing but a comment key",
        "cluster: demo\n",
        [
            'model: missing; add "model: smollm2-135m", or the path of a .gguf file',
            'hosts: missing; add "hosts:" and below it one "- name: ..." per machine',
        ],
    ),
    ("hosts empty", f"{TOP}hosts: []\n", ['hosts: is an empty list; write one "- name: ..." per machine below it']),
    (
        "hosts null",
        f"{TOP}hosts:\n",
        ['hosts: is empty, not a list of hosts; write one "- name: ..." per machine below it'],
    ),
    (
        "hosts a mapping",
        f"{TOP}hosts:\n  a: local\n",
        ['hosts: is a group of keys, not a list of hosts; write one "- name: ..." per machine below it'],
    ),
    (
        "host a word",
        f"{WHOLE}  - desktop\n",
        ['hosts[1]: is the text "desktop", not a group of keys; write "- name: ..." and its keys'],
    ),
    ("key twice", f"cluster: a\n{WHOLE}", ["cluster: given twice, in line 1 and in line 2; keep one of them"]),
    (
        "host key twice",
        in_host("memory: 1GiB\n    memory: 2GiB"),
        ["hosts[0].memory: given twice, in line 6 and in line 7; keep one of them"],
    ),
    ("misspelt", in_host("memroy: 1GiB"), ['hosts[0].memroy: unknown key; did you mean "memory"?']),
    (
        "unknown at the top",
        f"{WHOLE}zzz: 1\n",
        [
            "zzz: unknown key; the keys here are cluster, model, context, parallel, cache_type, flash_attention,"
            " minimum_context, goal, survive, gateway, weights_from, cache, hosts"
        ],
    ),
    (
        "a number as key",
        f"{WHOLE}7: 1\n",
        [
            "7: unknown key; the keys here are cluster, model, context, parallel, cache_type, flash_attention,"
            " minimum_context, goal, survive, gateway, weights_from, cache, hosts"
        ],
    ),
    ("unknown in gateway", f"{WHOLE}gateway:\n  prt: 80\n", ['gateway.prt: unknown key; did you mean "port"?']),
    (
        "gateway a word",
        f"{WHOLE}gateway: localhost\n",
        ['gateway: is the text "localhost", not a group of keys; write "host: ..." and "port: ..." below it'],
    ),
    (
        "gateway port 0",
        f"{WHOLE}gateway:\n  port: 0\n",
        ["gateway.port: the number 0 is out of range; write a whole number from 1 to 65535"],
    ),
    *(
        (f"gateway {line}", f"{WHOLE}gateway:\n  {line}\n", [f"gateway.{problem}"])
        for line, problem in (
            ("tls: yes", f'tls: is the text "yes"; {TLS}'),
            ("tls: true", f"tls: is the truth value true; {TLS}"),
            ("tls: []", f"tls: is a list; {TLS}"),
            ("allowed_origins: x", f'allowed_origins: is the text "x", not a list; {ORIGINS}'),
            (
                'allowed_origins: ["*"]',
                'allowed_origins: "*" would let every web page ask with a key it has got; name the origins one by one',
            ),
            ("allowed_origins: [https://a.example/]", f'allowed_origins: "https://a.example/" {ORIGIN}'),
            ("allowed_origins: [null]", f"allowed_origins: empty {ORIGIN}"),
            ("allowed_origins: ['null']", f'allowed_origins: "null" {ORIGIN}'),
            ("allowed_origins: [https://A.example]", f'allowed_origins: "https://A.example" {ORIGIN}'),
            ("connections: 7", "connections: the number 7 is out of range; write a whole number from 8 to 65536"),
            ("waiting: 0", "waiting: the number 0 is out of range; write a whole number from 1 to 65536"),
            ("wait: 10m", 'wait: is the text "10m", not a whole number; write a whole number from 1 to 86400'),
            ("deadline: 0", "deadline: the number 0 is out of range; write a whole number from 1 to 86400"),
            ("body: 8", f"body: the number 8 has no unit; {BODY}"),
            ("body: 1GiB", f'body: "1GiB" is out of range; {BODY}'),
            ("body: 50%", 'body: "50%" is a share where a size is needed; write a size such as "12GiB" or "800MiB"'),
        )
    ),
    (
        "unknown in tls",
        f"{WHOLE}gateway:\n  tls:\n    certificat: x\n",
        [
            'gateway.tls.certificate: missing; add "certificate: " and the path of a PEM file',
            'gateway.tls.key: missing; add "key: " and the path of the private key that belongs to the certificate',
            'gateway.tls.certificat: unknown key; did you mean "certificate"?',
        ],
    ),
    (
        "no connection",
        f"{TOP}hosts:\n  - name: a\n",
        ['hosts[0].connection: missing; add "connection: ssh", or "connection: local" for this machine'],
    ),
    (
        "no name",
        f"{TOP}hosts:\n  - connection: local\n",
        ['hosts[0].name: missing; add "name: " and a name of your choice'],
    ),
    (
        "connection",
        in_host("", LOCAL.replace("local", "lcoal")),
        ['hosts[0].connection: "lcoal" is not possible here; did you mean "local"?'],
    ),
    (
        "connection, far off",
        in_host("", LOCAL.replace("local", "wifi")),
        ['hosts[0].connection: "wifi" is not possible here; write local or ssh'],
    ),
    (
        "backend a truth value",
        in_host("backend: true"),
        ["hosts[0].backend: the truth value true is not possible here; write auto, cpu, cuda, metal or vulkan"],
    ),
    ("goal", f"{WHOLE}goal: speed\n", ['goal: "speed" is not possible here; write latency or throughput']),
    (
        "weights from",
        f"{WHOLE}weights_from: anywhere\n",
        ['weights_from: "anywhere" is not possible here; write controller or nearest'],
    ),
    (
        "keys and values of two types",
        f"{WHOLE}cache_type: q8_0/q4_0\n",
        [TWO_CACHE_TYPES],
    ),
    ("keys and values of two types as a list", f"{WHOLE}cache_type: [f16, q8_0]\n", [TWO_CACHE_TYPES]),
    ("keys and values of two types as keys", f"{WHOLE}cache_type: {{k: f16, v: q8_0}}\n", [TWO_CACHE_TYPES]),
    (
        "cache type without kernels",
        f"{WHOLE}cache_type: Q5_0\n",
        [
            'cache_type: "Q5_0" is not known to be safe over RPC, and CUDA has no kernels of its own for it;'
            " write f16, q8_0 or q4_0"
        ],
    ),
    (
        "cache type without kernels, non-linear",
        f"{WHOLE}cache_type: iq4_nl\n",
        [
            'cache_type: "iq4_nl" is not known to be safe over RPC, and CUDA has no kernels of its own for it;'
            " write f16, q8_0 or q4_0"
        ],
    ),
    (
        "cache type twice as large",
        f"{WHOLE}cache_type: f32\n",
        ['cache_type: "f32" takes twice the memory of f16; write f16, q8_0 or q4_0'],
    ),
    (
        "cache type misspelt",
        f"{WHOLE}cache_type: q8\n",
        ['cache_type: "q8" is not possible here; did you mean "q8_0"?'],
    ),
    (
        "cache type a number",
        f"{WHOLE}cache_type: 8\n",
        ["cache_type: the number 8 is not possible here; write f16, q8_0 or q4_0"],
    ),
    (
        "flash attention true",
        f"{WHOLE}flash_attention: true\n",
        ["flash_attention: the truth value true is not possible here; write auto, on or off"],
    ),
    (
        "quantised keys and values without flash attention",
        f"{WHOLE}cache_type: q8_0\nflash_attention: off\n",
        [
            'flash_attention: off does not go with "cache_type: q8_0": the engine reads such keys and values by flash'
            ' attention only; write "auto", or "cache_type: f16"'
        ],
    ),
    (
        "ssh without address",
        f"{TOP}hosts:\n  - name: a\n    connection: ssh\n",
        ['hosts[0].address: missing; "connection: ssh" needs an address to reach'],
    ),
    *(
        (
            f"local with {key}",
            in_host(f"{key}: {value}"),
            [f'hosts[0].{key}: only for hosts reached by ssh; remove it or write "connection: ssh"'],
        )
        for key, value in (
            ("address", "10.0.0.2"),
            ("user", "ada"),
            ("port", "22"),
            ("key", str(ROOT_INVENTORY)),
            ("jump", "gate"),
            ("host_key", FINGERPRINT),
        )
    ),
    (
        "same name",
        f"{WHOLE}{SSH.replace('name: b', 'name: a')}",
        ['hosts[1].name: "a" is already the name of hosts[0]; give each host its own name'],
    ),
    (
        "one machine, shares",
        f"{WHOLE}{LOCAL.replace('name: a', 'name: c')}",
        [
            "hosts[1].memory: hosts[0] and hosts[1] are one machine and take 160% together; give each a size such as"
            ' "4GiB", or shares of at most "100%" together'
        ],
    ),
    (
        "one machine, share and size",
        f"{TOP}hosts:\n{SSH}    memory: 1GiB\n{SSH.replace('name: b', 'name: c')}    port: 22\n    user: eve\n",
        [
            "hosts[1].memory: hosts[0] and hosts[1] are one machine and mix shares and sizes; give each a size such as"
            ' "4GiB", or shares of at most "100%" together'
        ],
    ),
    (
        "cluster with a space",
        WHOLE.replace("demo", "my demo"),
        [f'cluster: "my demo" is not a possible name; {NAME_RULE}'],
    ),
    ("cluster a path", WHOLE.replace("demo", "../demo"), [f'cluster: "../demo" is not a possible name; {NAME_RULE}']),
    (
        "name a number",
        WHOLE.replace("name: a", "name: 7"),
        ["hosts[0].name: is the number 7 where text is needed; write it in quotes"],
    ),
    (
        "name true",
        WHOLE.replace("name: a", "name: true"),
        ["hosts[0].name: is the truth value true where text is needed; write it in quotes"],
    ),
    ("name null", WHOLE.replace("name: a", "name:"), ['hosts[0].name: is empty; write a name such as "desktop"']),
    (
        "name long",
        WHOLE.replace("name: a", "name: " + "x" * 64),
        [f'hosts[0].name: "{"x" * 20}..." has 64 characters; write at most 63'],
    ),
    (
        "name of the controller",
        WHOLE.replace("name: a", "name: controller"),
        ['hosts[0].name: "controller" means the machine where meshctl runs; give the host another name'],
    ),
    (
        "name like an option",
        WHOLE.replace("name: a", "name: -a"),
        [f'hosts[0].name: "-a" is not a possible name; {NAME_RULE}'],
    ),
    (
        "model empty",
        WHOLE.replace("smollm2-135m", '""'),
        ['model: is an empty text; write a model\'s name such as "smollm2-135m", or the path of a .gguf file'],
    ),
    (
        "model a list",
        WHOLE.replace("smollm2-135m", "[a]"),
        ['model: is a list; write a model\'s name such as "smollm2-135m", or the path of a .gguf file'],
    ),
    (
        "model hf",
        WHOLE.replace("smollm2-135m", "hf:owner"),
        [f"model: hf:owner has no owner and repository; {HUB_FORM}"],
    ),
    ("context yes", f"{WHOLE}context: yes\n", [f'context: is the text "yes", not a whole number; {NUMBER_OF_CONTEXT}']),
    (
        "context true",
        f"{WHOLE}context: true\n",
        [f"context: is the truth value true, not a whole number; {NUMBER_OF_CONTEXT}"],
    ),
    ("context small", f"{WHOLE}context: 255\n", [f"context: the number 255 is out of range; {NUMBER_OF_CONTEXT}"]),
    (
        "context quoted",
        f'{WHOLE}context: "4096"\n',
        ['context: is the text "4096", not a number; write 4096 without quotes'],
    ),
    (
        "context a fraction",
        f"{WHOLE}context: 4096.5\n",
        [f"context: is the number 4096.5, not a whole number; {NUMBER_OF_CONTEXT}"],
    ),
    (
        "context not a number",
        f"{WHOLE}context: .nan\n",
        [f"context: is the number nan, not a whole number; {NUMBER_OF_CONTEXT}"],
    ),
    (
        "context endless",
        f"{WHOLE}context: .inf\n",
        [f"context: is the number inf, not a whole number; {NUMBER_OF_CONTEXT}"],
    ),
    (
        "context huge",
        f"{WHOLE}context: {'9' * 5000}\n",
        [f'context: is the text "{"9" * 40}...", not a whole number; {NUMBER_OF_CONTEXT}'],
    ),
    (
        "context with a letter",
        f"{WHOLE}context: 4k\n",
        [f'context: is the text "4k", not a whole number; {NUMBER_OF_CONTEXT}'],
    ),
    ("context empty", f"{WHOLE}context:\n", [f"context: is empty, not a whole number; {NUMBER_OF_CONTEXT}"]),
    (
        "parallel 0",
        f"{WHOLE}parallel: 0\n",
        ["parallel: the number 0 is out of range; write a whole number from 1 to 256"],
    ),
    (
        "parallel -1",
        f"{WHOLE}parallel: -1\n",
        ["parallel: the number -1 is out of range; write a whole number from 1 to 256"],
    ),
    (
        "run_with an empty list",
        in_host("run_with: []"),
        [f"hosts[0].run_with: is an empty list; {LAUNCHER}"],
    ),
    (
        "run_with with a number",
        in_host("run_with: [taskset, -c, 0]"),
        [f"hosts[0].run_with: is a list with the number 0 in it; {LAUNCHER}"],
    ),
    (
        "engine relative",
        in_host("engine: ~/engine"),
        [f'hosts[0].engine: "~/engine" is not an absolute path; {ENGINE_FOLDER}'],
    ),
    (
        "engine a number",
        in_host("engine: 7"),
        ["hosts[0].engine: is the number 7 where text is needed; write it in quotes"],
    ),
    (
        "run_with with half a quotation",
        in_host("run_with: nice 'a"),
        [f'hosts[0].run_with: "nice \'a" has a quotation mark without its second one; {LAUNCHER}'],
    ),
    ("threads 0", in_host("threads: 0"), [f"hosts[0].threads: the number 0 is out of range; {NUMBER_OF_THREADS}"]),
    (
        "threads a word",
        in_host("threads: all"),
        [f'hosts[0].threads: is the text "all", not a whole number; {NUMBER_OF_THREADS}'],
    ),
    (
        "port high",
        in_host("port: 65536", SSH),
        ["hosts[0].port: the number 65536 is out of range; write a whole number from 1 to 65535"],
    ),
    (
        "port in base 60",
        in_host("port: 22:22", SSH),
        ['hosts[0].port: is the text "22:22", not a whole number; write a whole number from 1 to 65535'],
    ),
    (
        "memory 0%",
        in_host("memory: 0%"),
        ['hosts[0].memory: "0%" is not a possible share; write more than "0%" and at most "100%"'],
    ),
    (
        "memory 150%",
        in_host("memory: 150%"),
        ['hosts[0].memory: "150%" is not a possible share; write more than "0%" and at most "100%"'],
    ),
    ("memory a number", in_host("memory: 12"), [f"hosts[0].memory: the number 12 has no unit; {SIZE_OR_SHARE}"]),
    ("memory not a number", in_host("memory: .nan"), [f"hosts[0].memory: the number nan has no unit; {SIZE_OR_SHARE}"]),
    ("memory quoted number", in_host('memory: "12"'), ['hosts[0].memory: "12" has no unit; write "12GiB" or "12MiB"']),
    (
        "memory 12G",
        in_host("memory: 12G"),
        ['hosts[0].memory: "12G" has an unclear unit; write "12GiB" (1024-based) or "12GB"'],
    ),
    ("memory 12XB", in_host("memory: 12XB"), ['hosts[0].memory: "12XB" has an unknown unit; use KiB, MiB, GiB or TiB']),
    (
        "memory negative",
        in_host("memory: -1GiB"),
        [f'hosts[0].memory: "-1GiB" is not an amount of memory; {SIZE_OR_SHARE}'],
    ),
    ("memory a word", in_host("memory: all"), [f'hosts[0].memory: "all" is not an amount of memory; {SIZE_OR_SHARE}']),
    (
        "memory tiny",
        in_host("memory: 12KiB"),
        ['hosts[0].memory: "12KiB" is too little to hold anything; write at least "1MiB"'],
    ),
    (
        "memory 0",
        in_host("memory: 0GiB"),
        ['hosts[0].memory: "0GiB" is too little to hold anything; write at least "1MiB"'],
    ),
    (
        "memory huge",
        in_host("memory: 9999999TiB"),
        ['hosts[0].memory: "9999999TiB" is more than any machine has; write at most 1024TiB'],
    ),
    ("memory empty", in_host("memory:"), [f"hosts[0].memory: is empty; {SIZE_OR_SHARE}"]),
    (
        "memory true",
        in_host("memory: true"),
        ["hosts[0].memory: is the truth value true where text is needed; write it in quotes"],
    ),
    (
        "link direct",
        in_host("link: direct", SSH),
        [
            "hosts[0].link: direct goes without password and encryption: whoever reaches the worker's port runs code as"
            ' its user; write "plaintext_rpc: accept" beside it if nobody else is on that network, or "link: tunnel"'
        ],
    ),
    (
        "link direct refused",
        in_host("link: direct\n    plaintext_rpc: refuse", SSH),
        [
            "hosts[0].link: direct goes without password and encryption: whoever reaches the worker's port runs code as"
            ' its user; write "plaintext_rpc: accept" beside it if nobody else is on that network, or "link: tunnel"'
        ],
    ),
    (
        "link direct through a jump",
        in_host("link: direct\n    plaintext_rpc: accept\n    jump: ada@gate", SSH),
        ['hosts[0].link: direct does not go through a jump; remove "jump", or write "link: tunnel"'],
    ),
    (
        "link direct to this machine",
        in_host("link: direct"),
        ['hosts[0].link: direct is only for hosts reached by ssh; remove it or write "connection: ssh"'],
    ),
    (
        "plaintext rpc",
        in_host("plaintext_rpc: yes", SSH),
        ['hosts[0].plaintext_rpc: "yes" is not possible here; write refuse or accept'],
    ),
    (
        "cache of this machine",
        in_host("cache: 1GiB"),
        ['hosts[0].cache: only for hosts reached by ssh; remove it or write "connection: ssh"'],
    ),
    (
        "cache",
        f"cache: much\n{WHOLE}",
        [
            'cache: "much" is not an amount of memory; write a size such as "12GiB" or "800MiB", or a share such as'
            ' "80%"'
        ],
    ),
    (
        "address an option",
        in_host("", SSH.replace("10.0.0.2", "-oProxyCommand=x")),
        [f'hosts[0].address: "-oProxyCommand=x" is not an address; {ADDRESS}'],
    ),
    (
        "address a number",
        in_host("", SSH.replace("10.0.0.2", "10.5")),
        ["hosts[0].address: is the number 10.5 where text is needed; write it in quotes"],
    ),
    (
        "address with a user",
        in_host("", SSH.replace("10.0.0.2", "ada@nas")),
        ['hosts[0].address: "ada@nas" has a user in it; write "user: ada" and "address: nas"'],
    ),
    (
        "address with a port",
        in_host("", SSH.replace("10.0.0.2", "nas:22")),
        ['hosts[0].address: "nas:22" has a port in it; write "port: 22" and "address: nas"'],
    ),
    ("user an option", in_host("user: -l", SSH), ['hosts[0].user: "-l" is not a user name; write one such as "ada"']),
    (
        "jump an option",
        in_host("jump: -W", SSH),
        ['hosts[0].jump: "-W" is not a way to jump; write it as for "ssh -J", such as "ada@gate.example"'],
    ),
    (
        "host_key short",
        in_host("host_key: SHA256:abc", SSH),
        [f'hosts[0].host_key: "SHA256:abc" is not a SHA256 fingerprint; {ASK_FINGERPRINT}'],
    ),
    (
        "host_key md5",
        in_host("host_key: MD5:16:27", SSH),
        [f'hosts[0].host_key: "MD5:16:27" is not a SHA256 fingerprint; {ASK_FINGERPRINT}'],
    ),
    (
        "key missing",
        in_host("key: /no/such/key", SSH),
        ["hosts[0].key: /no/such/key does not exist; name an existing private key or remove the line to use ssh's own"],
    ),
    (
        "key a folder",
        in_host("key: /", SSH),
        ["hosts[0].key: / is not a file; name an existing private key or remove the line to use ssh's own"],
    ),
    (
        "key public",
        in_host("key: ~/.ssh/id.pub", SSH),
        ['hosts[0].key: "~/.ssh/id.pub" is the public half; name the private key "~/.ssh/id"'],
    ),
    (
        "key of nobody",
        in_host("key: ~no.such.user/id", SSH),
        ['hosts[0].key: "~no.such.user/id" names the home of an unknown user; write the whole path'],
    ),
    (
        "many, in the order of the file",
        "modell: x\ncontext: no\nhosts:\n  - name: a b\n    connection: local\n    port: 1\n    memory: 0%\n  - 5\n",
        [
            'cluster: missing; add "cluster: " and a name of your choice',
            'model: missing; add "model: smollm2-135m", or the path of a .gguf file',
            'modell: unknown key; did you mean "model"?',
            f'context: is the text "no", not a whole number; {NUMBER_OF_CONTEXT}',
            f'hosts[0].name: "a b" is not a possible name; {NAME_RULE}',
            'hosts[0].port: only for hosts reached by ssh; remove it or write "connection: ssh"',
            'hosts[0].memory: "0%" is not a possible share; write more than "0%" and at most "100%"',
            'hosts[1]: is the number 5, not a group of keys; write "- name: ..." and its keys',
        ],
    ),
    (
        "a list that holds itself",
        f"{TOP}hosts: &h\n  - *h\n",
        ['hosts[0]: is a list, not a group of keys; write "- name: ..." and its keys'],
    ),
]


@pytest.mark.parametrize(("text", "problems"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_every_problem_of_a_bad_inventory_is_told_in_exact_words(
    tmp_path: Path, text: str, problems: list[str]
) -> None:
    path = tmp_path / "inventory.yaml"
    path.write_text(text)
    with pytest.raises(InventoryError) as caught:
        load_inventory(path)
    assert str(caught.value) == "\n".join(f"{path}: {problem}" for problem in problems)


def test_the_table_of_bad_inventories_has_at_least_forty_cases() -> None:
    assert len({text for _, text, _ in BAD}) >= 40


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("none.yaml", "there is no such file; name an existing one, or write it"),
        ("folder", "is a folder; name the inventory file itself, such as {path}/inventory.yaml"),
        ("pipe", "is not a file; name the inventory file itself, such as {path}/inventory.yaml"),
        ("file/x", "cannot be read (not a directory); check the path and its permissions"),
        ("latin1", "line 2: not UTF-8 text; save the file as UTF-8"),
        ("large", "is larger than 1 MiB; an inventory is a short text, name the right file"),
    ],
)
def test_a_path_that_is_no_inventory_is_refused(tmp_path: Path, name: str, problem: str) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_text("")
    (tmp_path / "latin1").write_bytes(b"cluster: a\nmodel: \xe4\n")
    (tmp_path / "large").write_bytes(b"#" * (1024 * 1024 + 1))
    path = tmp_path / name
    with pytest.raises(InventoryError) as caught:
        load_inventory(path)
    assert str(caught.value) == f"{path}: {problem.format(path=path)}"


def test_an_inventory_knows_its_file_by_what_it_was_when_read(tmp_path: Path) -> None:
    """Also when that has been changed since, or is gone; what it says is compared without."""
    path = tmp_path / "inventory.yaml"
    path.write_text(WHOLE)
    first = load_inventory(path)
    path.write_text(f"{WHOLE}# a remark\n")
    second = load_inventory(path)
    assert first == second
    assert first.sha256 != second.sha256
    assert first.sha256 == hashlib.sha256(WHOLE.encode()).hexdigest()


def test_a_short_inventory_gets_every_default(tmp_path: Path) -> None:
    path = tmp_path / "inventory.yaml"
    path.write_text(WHOLE)
    assert load_inventory(path) == Inventory(
        path=path,
        cluster="demo",
        model="smollm2-135m",
        hosts=(Host(name="a", connection="local"),),
        context=4096,
        parallel=1,
        goal="latency",
        gateway=GatewaySettings("127.0.0.1", 11435),
    )


def test_a_full_inventory_is_read_whole(tmp_path: Path) -> None:
    """Byte order mark, paths relative to the file, `~`, anchors and merge keys included."""
    (tmp_path / "id").write_text("")
    path = tmp_path / "inventory.yaml"
    path.write_text(
        f"""\ufeffcluster: home.1
model: models/a.gguf
context: 0512
parallel: 256
cache_type: q8_0
flash_attention: on
goal: throughput
gateway: {{host: 0.0.0.0, port: 9000}}
weights_from: nearest
hosts:
  - &first
    name: no
    connection: ssh
    address: fe80::1%eth0
    user: ada
    port: 2222
    key: id
    jump: eve@gate:22,second
    host_key: {FINGERPRINT}
    backend: cuda
    memory: 12.5 GiB
    threads: 16
    link: tunnel
    run_with: numactl --membind=0 'a b'
  - <<: *first
    name: "8"
    address: nas.example
    backend: vulkan
    memory: 37.5%
    threads: auto
    run_with: [taskset, -c, "0"]
    engine: /opt/engine/
""",
        encoding="utf-8",
    )
    first = Host(
        name="no",
        connection="ssh",
        address="fe80::1%eth0",
        user="ada",
        port=2222,
        key=str(tmp_path / "id"),
        jump="eve@gate:22,second",
        host_key=FINGERPRINT,
        backend="cuda",
        memory=MemoryCap(limit_bytes=12 * 1024 * MIB + 512 * MIB),
        threads=16,
        link="tunnel",
        run_with=("numactl", "--membind=0", "a b"),
    )
    second = Host(
        name="8",
        connection="ssh",
        address="nas.example",
        user="ada",
        port=2222,
        key=str(tmp_path / "id"),
        jump="eve@gate:22,second",
        host_key=FINGERPRINT,
        backend="vulkan",
        memory=MemoryCap(share=0.375),
        run_with=("taskset", "-c", "0"),
        engine="/opt/engine",
    )
    assert load_inventory(path) == Inventory(
        path=path,
        cluster="home.1",
        model=str(tmp_path / "models/a.gguf"),
        hosts=(first, second),
        context=512,
        parallel=256,
        cache_type="q8_0",
        flash_attention="on",
        goal="throughput",
        gateway=GatewaySettings("0.0.0.0", 9000),
        weights_from="nearest",
    )


def test_the_gateways_settings_are_read(tmp_path: Path) -> None:
    certificate, key = write_pair(tmp_path)
    path = tmp_path / "inventory.yaml"
    path.write_text(
        WHOLE
        + """gateway:
  tls: {certificate: gateway.crt, key: gateway.pem}
  allowed_origins: ["https://a.example", "http://[::1]:8080", "https://a.example"]
  connections: 8
  waiting: 2
  wait: 3
  deadline: 4
  body: 1KiB
"""
    )
    assert load_inventory(path).gateway == GatewaySettings(
        tls=TlsFiles(str(certificate), str(key)),
        allowed_origins=("https://a.example", "http://[::1]:8080"),
        connections=8,
        waiting=2,
        wait_s=3,
        deadline_s=4,
        body_bytes=1024,
    )


CERTIFICATE = "name a PEM file that begins with the gateway's certificate"
PRIVATE_KEY = "name the PEM file of the certificate's private key"


@pytest.mark.parametrize(
    ("certificate", "key", "problems"),
    [
        (
            "none.crt",
            "none.pem",
            [
                "certificate: {}/none.crt does not exist; " + CERTIFICATE,
                "key: {}/none.pem does not exist; " + PRIVATE_KEY,
            ],
        ),
        (
            "folder",
            "pipe",
            ["certificate: {}/folder is not a file; " + CERTIFICATE, "key: {}/pipe is not a file; " + PRIVATE_KEY],
        ),
        (
            "gateway.pem",
            "gateway.pem",
            ["certificate: {}/gateway.pem holds no certificate that can be read; " + CERTIFICATE],
        ),
        ("gateway.crt", "gateway.crt", ["key: {}/gateway.crt holds no private key that can be read; " + PRIVATE_KEY]),
        (
            "gateway.crt",
            "other.pem",
            ["key: {}/other.pem does not belong to {}/gateway.crt; name the key that the certificate was made with"],
        ),
        (
            "gateway.crt",
            "locked.pem",
            [
                "key: {}/locked.pem is protected by a password; name a key without one,"
                " as nobody is there to type it when the gateway starts"
            ],
        ),
        ("7", "gateway.pem", ["certificate: is the number 7 where text is needed; write it in quotes"]),
    ],
    ids=["missing", "no files", "a key as certificate", "a certificate as key", "of another", "locked", "a number"],
)
def test_every_wrong_thing_about_a_certificate_is_one_clear_line(
    tmp_path: Path, certificate: str, key: str, problems: list[str]
) -> None:
    write_pair(tmp_path)
    write_pair(tmp_path, "other")
    write_locked_key(tmp_path / "locked.pem")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    path = tmp_path / "inventory.yaml"
    path.write_text(f"{WHOLE}gateway:\n  tls:\n    certificate: {certificate}\n    key: {key}\n")
    with pytest.raises(InventoryError) as caught:
        load_inventory(path)
    expected = (problem.format(tmp_path, tmp_path) for problem in problems)
    assert str(caught.value) == "\n".join(f"{path}: gateway.tls.{problem}" for problem in expected)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("hf:owner/repo-GGUF:Q4_K_M", "hf:owner/repo-GGUF:Q4_K_M"),
        ("hf:owner/repo-GGUF:sub/m.gguf", "hf:owner/repo-GGUF:sub/m.gguf"),
        ("https://example.org/m.gguf", "https://example.org/m.gguf"),
        ("~/a.gguf", str(Path.home() / "a.gguf")),
        ("a.gguf", "{folder}/a.gguf"),
        ("/models/a", "/models/a"),
        ("smollm2-135m", "smollm2-135m"),
    ],
)
def test_a_model_is_a_name_a_repository_or_a_path_beside_the_file(tmp_path: Path, written: str, read: str) -> None:
    path = tmp_path / "inventory.yaml"
    path.write_text(WHOLE.replace("smollm2-135m", written))
    assert load_inventory(path).model == read.format(folder=tmp_path)


@pytest.mark.parametrize(
    "second",
    [
        "  - {name: c, connection: local, memory: 50%}\n",
        "  - {name: c, connection: local, backend: cuda, memory: 50%}\n",
        "  - {name: c, connection: ssh, address: 10.0.0.2}\n",
    ],
)
def test_entries_that_do_not_overdraw_one_memory_are_allowed(tmp_path: Path, second: str) -> None:
    path = tmp_path / "inventory.yaml"
    path.write_text(f"{WHOLE}    memory: 50%\n{second}")
    assert [host.name for host in load_inventory(path).hosts] == ["a", "c"]


def test_the_inventory_in_the_root_is_a_working_default_of_two_small_local_hosts() -> None:
    inventory = load_inventory(ROOT_INVENTORY)
    assert inventory.model == "smollm2-135m"
    assert [host.connection for host in inventory.hosts] == ["local", "local"]
    assert all(host.memory.limit_bytes for host in inventory.hosts)


def test_the_inventory_in_the_root_names_every_key() -> None:
    text = ROOT_INVENTORY.read_text()
    named = set(re.findall(r"^[# ]*(?:- )?(\w+):(?: |$)", text, re.MULTILINE))
    assert {key.rpartition(".")[2] for key in inventory_reference_keys()} <= named


def test_the_example_host_in_the_root_inventory_is_valid_when_the_comment_signs_are_removed(tmp_path: Path) -> None:
    text = ROOT_INVENTORY.read_text()
    head, _, example = text.partition("# - name: desktop")
    lines = re.sub(r"^#", " ", "# - name: desktop" + example, flags=re.MULTILINE).replace("~/.ssh/id_ed25519", "id")
    gateway = re.sub(r"^# (gateway:|  host:|  port:)", r"\1", head, flags=re.MULTILINE)
    (tmp_path / "id").write_text("")
    path = tmp_path / "inventory.yaml"
    path.write_text(gateway + lines)
    inventory = load_inventory(path)
    assert inventory.hosts[2].address == "192.168.1.20"
    assert inventory.gateway == GatewaySettings()


def test_what_may_be_kept_is_said_for_all_or_for_one_host(tmp_path: Path) -> None:
    path = tmp_path / "inventory.yaml"
    text = "cluster: demo\nmodel: smollm2-135m\ncache: 25%\nhosts:\n"
    text += "  - {name: a, connection: ssh, address: a}\n  - {name: b, connection: ssh, address: b, cache: 20GiB}\n"
    path.write_text(text)
    loaded = load_inventory(path)
    assert loaded.cache == MemoryCap(share=0.25)
    assert [host.cache for host in loaded.hosts] == [MemoryCap(share=0.25), MemoryCap(limit_bytes=20 * 2**30)]
