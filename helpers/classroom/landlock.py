"""Linux Landlock: let this process read and write only below a few folders, for good.

The kernel holds to the rules whatever the process does, also for root and for every thread and
child started later. See `man 7 landlock`. Numbers are the kernel's; ABI is its word for a version.
"""

import ctypes
import os
import sys
from collections.abc import Iterable
from functools import reduce
from operator import or_

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # system calls, the same on every processor
ASK_VERSION = 1  # flag of CREATE_RULESET
PATH_BENEATH = 1  # kind of rule
PR_SET_NO_NEW_PRIVS = 38

# Rights to files, ABI 1.
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, REMOVE_DIR, REMOVE_FILE = (1 << i for i in range(6))
MAKE_CHAR, MAKE_DIR, MAKE_REG, MAKE_SOCK, MAKE_FIFO, MAKE_BLOCK, MAKE_SYM = (
    1 << i for i in range(6, 13)
)
REFER = 1 << 13  # ABI 2: move a file to another folder
TRUNCATE = 1 << 14  # ABI 3
IOCTL_DEV = 1 << 15  # ABI 5
FILE_RIGHTS = {1: (1 << 13) - 1, 2: REFER, 3: TRUNCATE, 5: IOCTL_DEV}
TCP = {4: 0b11}  # ABI 4: bind, connect
SCOPES = {6: 0b11}  # ABI 6: abstract sockets of, and signals to, processes outside

READ = READ_FILE | READ_DIR
READ_WRITE_FILE = READ_FILE | WRITE_FILE | TRUNCATE
FULL = READ | WRITE_FILE | TRUNCATE | REFER
FULL |= MAKE_DIR | MAKE_REG | MAKE_SYM | REMOVE_DIR | REMOVE_FILE
ON_A_FILE = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV  # the rest is for folders


class _Ruleset(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("files", "network", "scopes")]


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = [("rights", ctypes.c_uint64), ("folder", ctypes.c_int32)]


def _call(number: int, *arguments: object) -> int:
    """A system call; raises OSError with the kernel's reason."""
    libc = ctypes.CDLL(None, use_errno=True)
    result = libc.syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"system call {number}: {os.strerror(error)}")
    return result


def version() -> int:
    """The ABI of the running kernel; 0 where there is no Landlock, or it is switched off."""
    if not sys.platform.startswith("linux"):
        return 0
    try:
        return _call(CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(ASK_VERSION))
    except OSError:
        return 0


def _up_to(abi: int, rights: dict[int, int]) -> int:
    return reduce(or_, (right for since, right in rights.items() if since <= abi), 0)


def no_new_privileges() -> None:
    """Give up ever gaining rights by starting a program; the kernel asks for it first."""
    one, zero = ctypes.c_ulong(1), ctypes.c_ulong(0)
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_NO_NEW_PRIVS, one, zero, zero, zero):
        raise OSError(ctypes.get_errno(), "privileges cannot be given up")


def _allow(ruleset: int, path: str, rights: int) -> None:
    """Add one rule; a path that does not exist needs none."""
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        rights &= -1 if os.path.isdir(path) else ON_A_FILE
        rule = _Beneath(rights, place)
        _call(ADD_RULE, ctypes.c_int(ruleset), PATH_BENEATH, ctypes.byref(rule), 0)
    finally:
        os.close(place)


def restrict(full: Iterable[str], read: Iterable[str], read_write: Iterable[str]) -> None:
    """Take away, for good, all rights to files but those listed, TCP, and signals to others.

    Args:
        full: Folders below which everything is allowed except to start programs.
        read: Files and folders that may be read.
        read_write: Single files, such as `/dev/null`, that may be written, too.

    Raises:
        OSError: The kernel refuses; then nothing is restricted.
    """
    abi = version()
    files = _up_to(abi, FILE_RIGHTS)
    rules = _Ruleset(files, _up_to(abi, TCP), _up_to(abi, SCOPES))
    # An older kernel knows fewer fields and insists on zeros, or nothing, after those it knows.
    size = ctypes.c_size_t(ctypes.sizeof(rules))
    ruleset = _call(CREATE_RULESET, ctypes.byref(rules), size, ctypes.c_uint32(0))
    try:
        for rights, paths in ((FULL, full), (READ, read), (READ_WRITE_FILE, read_write)):
            for path in paths:
                _allow(ruleset, path, rights & files)
        no_new_privileges()
        _call(RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0))
    finally:
        os.close(ruleset)
