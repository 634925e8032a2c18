"""What is looked at on a host before anything that lies there is run: whose our folder is, and the agent's digest.

It is sent to a Python there through stdin, so it runs as it lies here; the standard library of any Python 3 is all it
may use. Prints {"agent": "SHA-256, or nothing", "mended": [...], "refused": "..."} on a line: what other users could
change is closed to them; what is not ours is not touched, and refused. Where the agent is the one that is wanted, this
process then becomes it: what runs are the very bytes that were looked at, or what this host's Python made of them
before, in a file that others could not have put there or changed.
"""

import contextlib
import hashlib
import json
import marshal
import os
import pwd
import stat
import sys
import types

COMPILED = ".code"
"""What Python made of the agent lies beside it: to compile it takes a tenth of a second on a slow host, each time."""

OTHERS_MAY_WRITE = 0o022
OTHERS = 0o077


class RefusedError(Exception):
    """Somebody else could change what we run."""


def main(root: str, agent: str, wanted: str = "", *words: str) -> None:
    """`wanted`: the digest of the agent that this process shall become, `words` the verb that it then runs."""
    mended, source, refused = [], b"", ""
    try:
        mended = close_to_others(root)
        source = source_of(agent)
    except RefusedError as error:
        refused = str(error)
    except OSError as error:
        refused = f"{error.filename}: {error.strerror}"
    digest = hashlib.sha256(source).hexdigest() if source else ""
    sys.stdout.write(json.dumps({"agent": digest, "mended": mended, "refused": refused}) + "\n")
    sys.stdout.flush()
    if wanted and digest == wanted:
        become(agent, source, digest, words)


def close_to_others(root: str) -> "list[str]":
    """Make the folder where it is missing, and our own alone; gives a sentence when others could write in it."""
    os.makedirs(root, 0o700, exist_ok=True)  # another of ours may make it at this moment
    there = os.stat(root)
    refuse_strangers(root, there)
    if there.st_mode & OTHERS:
        os.chmod(root, 0o700)
    was_open = bool(there.st_mode & OTHERS_MAY_WRITE)
    exposed = {root} if was_open else set()
    refused: list[RefusedError] = []
    for folder, folders, files in os.walk(root):
        for name in folders + files:
            path = os.path.join(folder, name)
            try:
                if close_entry(path, folder in exposed):
                    exposed.add(path)
            except RefusedError as error:  # once all the others are closed: what was open is not known the next time
                refused.append(error)
                folders[:] = [one for one in folders if one != name]
    if refused:
        raise refused[0]
    if not was_open:
        return []
    mode = stat.S_IMODE(there.st_mode)
    return [
        f"{root} could be written to by other users (mode {mode:03o}): it is closed to them now; see whether all in it "
        "is as it was put with `meshctl cache check --hashes`"
    ]


def close_entry(path: str, exposed: bool) -> bool:
    """`exposed`: others could change it from a folder that it lies in; gives whether they could change it at all. What
    is run unread is not kept then."""
    try:
        there = os.lstat(path)
    except FileNotFoundError:
        return exposed
    refuse_strangers(path, there)
    is_open = bool(there.st_mode & OTHERS_MAY_WRITE) and not stat.S_ISLNK(there.st_mode)
    if path.endswith(COMPILED) and stat.S_ISREG(there.st_mode) and (is_open or exposed):
        os.unlink(path)
    elif is_open:
        os.chmod(path, stat.S_IMODE(there.st_mode) & ~OTHERS_MAY_WRITE)
    return is_open or exposed


def refuse_strangers(path: str, there: os.stat_result) -> None:
    """root may change anything anyway."""
    if there.st_uid not in (0, os.getuid()):
        raise RefusedError(f"{path} belongs to {name_of(there.st_uid)}, who could change what runs here")


def name_of(user: int) -> str:
    try:
        return f"the user {pwd.getpwuid(user).pw_name}"
    except KeyError:
        return f"the user with number {user}"


def source_of(path: str) -> bytes:
    """The agent, which is marked as used; nothing when it is not there."""
    if not os.path.isfile(path):
        return b""
    os.utime(path)
    with open(path, "rb") as file:
        return file.read()


def become(path: str, source: bytes, digest: str, words: "tuple[str, ...]") -> None:
    """Go on as `python3 agent.py` with these words would."""
    sys.argv = [path, *words]
    exec(compiled(path, source, digest), {"__name__": "__main__", "__file__": path})


def compiled(path: str, source: bytes, digest: str) -> types.CodeType:
    """What Python makes of the agent, kept beside it: its SHA-256 first, which is also of the agent and of Python."""
    made_of, is_ours = sys.version.encode() + digest.encode(), is_closed(os.lstat(os.path.dirname(path)))
    kept = kept_at(path + COMPILED) if is_ours else b""
    if kept and kept[:32] == hashlib.sha256(made_of + kept[32:]).digest():
        known: types.CodeType = marshal.loads(kept[32:])
        return known
    code = compile(source, path, "exec", dont_inherit=True)
    data = marshal.dumps(code)
    if is_ours:
        with contextlib.suppress(OSError):  # a full disk, say: it is compiled again the next time
            keep(path + COMPILED, hashlib.sha256(made_of + data).digest() + data)
    return code


def kept_at(path: str) -> bytes:
    """What lies there, if nobody else could have put or changed it: this very file, by no other name."""
    try:
        there = os.lstat(path)
        if not (is_closed(there) and stat.S_ISREG(there.st_mode) and there.st_nlink == 1):
            return b""
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


def is_closed(there: os.stat_result) -> bool:
    """Whether none but us and root may change it; what is behind a link was not looked at."""
    is_open = there.st_mode & OTHERS_MAY_WRITE or stat.S_ISLNK(there.st_mode)
    return there.st_uid in (0, os.getuid()) and not is_open


def keep(path: str, data: bytes) -> None:
    """Whole or not at all; another of ours may do the same at this moment."""
    beside = f"{path}.tmp-{os.getpid()}"
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
        os.rename(beside, path)
    except OSError:
        os.unlink(beside)
        raise


if __name__ == "__main__":
    main(*sys.argv[1:])
