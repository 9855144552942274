"""Run a program as an ordinary user although we are root, also below folders that only root may enter.

Postgres refuses to run as root, and `abide dev` in a container or on a server usually is root. Where the folders
above the data are closed (a home of mode 0700), nothing is opened up for others: the program gets one ambient
capability that lets it pass through, and nothing else of root. Runs in the supervisor, so: standard library only.
Source: capabilities(7), prctl(2).
"""

import ctypes
import os
import pwd
import signal
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_KEEPCAPS: Final = 8
_PR_CAP_AMBIENT: Final = 47
_PR_CAP_AMBIENT_RAISE: Final = 2
_CAPABILITY_VERSION_3: Final = 0x20080522
_CAP_DAC_OVERRIDE: Final = 1
_CAP_DAC_READ_SEARCH: Final = 2
_CAP_SETUID: Final = 7
_NOBODY: Final = "nobody"


class PrivilegeError(Exception):
    """The process cannot become what Postgres needs; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Whom to run as: None means as we are. `capability` is kept to pass through closed folders."""

    uid: int | None
    gid: int | None
    capability: int | None


def choose_identity(paths: Sequence[str], owner: int | None) -> Identity:
    """Decide whom Postgres runs as, given absolute `paths` it must reach and the uid that owns its data, if any.

    Raises PrivilegeError.
    """
    if os.geteuid() != 0:
        if owner is not None and owner != os.geteuid():
            raise PrivilegeError(
                f"{paths[0]} belongs to user {_user_name(owner)}; run as that user, as root, or choose another folder"
            )
        return Identity(None, None, None)
    held = _held_capabilities()
    if not held >> _CAP_SETUID & 1:
        raise PrivilegeError(
            "Postgres refuses to run as root and this root may not change its user; run as another user"
        )
    uid, gid = _account(owner)
    if all(_is_reachable(path, uid, gid) for path in paths):
        return Identity(uid, gid, None)
    for capability in (_CAP_DAC_READ_SEARCH, _CAP_DAC_OVERRIDE):
        if held >> capability & 1:
            return Identity(uid, gid, capability)
    raise PrivilegeError(
        f"{paths[0]} is below a folder that user {_user_name(uid)}, whom Postgres runs as, may not enter; "
        "choose a folder elsewhere, for example below /var/tmp"
    )


def _account(owner: int | None) -> tuple[int, int]:
    try:
        entry = pwd.getpwuid(owner) if owner else pwd.getpwnam(_NOBODY)
    except KeyError:
        wanted = f"with uid {owner}" if owner else _NOBODY
        raise PrivilegeError(f"Postgres needs a user {wanted} in /etc/passwd to run as; add one") from None
    return entry.pw_uid, entry.pw_gid


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _is_reachable(path: str, uid: int, gid: int) -> bool:
    folder = os.path.dirname(os.path.realpath(path))
    while True:
        found = os.stat(folder)
        bit = stat.S_IXUSR if found.st_uid == uid else stat.S_IXGRP if found.st_gid == gid else stat.S_IXOTH
        if not found.st_mode & bit:
            return False
        if folder == "/":
            return True
        folder = os.path.dirname(folder)


def _held_capabilities() -> int:
    with open("/proc/self/status", encoding="ascii") as status:
        return next((int(line.split()[1], 16) for line in status if line.startswith("CapEff:")), 0)


def build_preexec(identity: Identity) -> Callable[[], None]:
    """Return what a single-threaded parent runs in its child before exec.

    The child becomes `identity` and gets SIGINT (for Postgres: a fast, clean shutdown) when its parent dies.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    parent = os.getpid()

    def check(result: int) -> None:
        if result != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def become() -> None:
        os.umask(0o077)
        if identity.uid is not None and identity.gid is not None:
            check(libc.prctl(_PR_SET_KEEPCAPS, int(identity.capability is not None), 0, 0, 0))
            os.setgroups([])
            os.setresgid(identity.gid, identity.gid, identity.gid)
            os.setresuid(identity.uid, identity.uid, identity.uid)
        if identity.capability is not None:
            mask = 1 << identity.capability
            header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
            sets = (ctypes.c_uint32 * 6)(mask, mask, mask, 0, 0, 0)
            check(libc.capset(header, sets))
            check(libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, identity.capability, 0, 0))
        # Only now: a change of credentials clears it.
        check(libc.prctl(_PR_SET_PDEATHSIG, signal.SIGINT, 0, 0, 0))
        if os.getppid() != parent:
            os._exit(1)

    return become
