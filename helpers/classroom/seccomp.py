"""Linux seccomp: refuse system calls that a student's code has no use for.

Landlock guards files. This guards what it leaves open: new processes, sockets of every kind, the
limits and priorities of other processes, owners and modes of files, memory that outlives us.
See `man 2 seccomp`; the filter is a small program of jumps that the kernel runs at every call.
"""

import ctypes
import errno
import os
import platform
import struct
import sys
from collections.abc import Sequence

PR_GET_SECCOMP, PR_SET_SECCOMP, FILTER = 21, 22, 2
LOAD, JUMP_EQUAL, JUMP_AT_LEAST, JUMP_BITS, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
# Offsets into what the filter sees; the last two are the first and the second argument.
NUMBER, PROCESSOR, ARGUMENT, SECOND = 0, 4, 16, 24
ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050000, 0x80000000
X32 = 0x40000000  # x86_64 only: the same calls under other numbers
THREAD = 0x00010000  # clone's flag for "a thread, not a process"

COLUMNS = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
# Numbers on x86_64 and aarch64; None where there is no such call.
REFUSED = {
    # new processes, other programs
    "fork": (57, None),
    "vfork": (58, None),
    "execve": (59, 221),
    "execveat": (322, 281),
    "unshare": (272, 97),
    "setns": (308, 268),
    # sockets, and what could open them unseen
    "socket": (41, 198),
    "socketpair": (53, 199),
    "io_uring_setup": (425, 425),
    # other processes
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "tkill": (200, 130),
    "setpriority": (141, 140),
    "ioprio_set": (251, 30),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "sched_setattr": (314, 274),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    "truncate": (76, 45),  # Landlock guards it from ABI 3 on
    # owners, modes, times and attributes of files: Landlock does not guard them
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, None),
    "fchown": (93, 55),
    "lchown": (94, None),
    "fchownat": (260, 54),
    "utime": (132, None),
    "utimes": (235, None),
    "futimesat": (261, None),
    "utimensat": (280, 88),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "setxattrat": (463, 463),
    "removexattrat": (466, 466),
    "file_setattr": (469, 469),
    # things that stay when the process ends, and doors into the kernel
    "shmget": (29, 194),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
}
# Allowed on the own process only: the first argument is its id, or 0 where that means the same.
OWN_PROCESS = {
    "kill": (62, 129, False),
    "tgkill": (234, 131, False),
    "prlimit64": (302, 261, True),
    "sched_setaffinity": (203, 122, True),
}
CLONE, CLONE3 = (56, 220), (435, 435)
# Refused with these second arguments: they choose the process that a file's signals go to.
WITHOUT = {
    "fcntl": (72, 25, (8, 10, 15)),  # F_SETOWN, F_SETSIG, F_SETOWN_EX
    "ioctl": (16, 29, (0x8901, 0x8902)),  # FIOSETOWN, SIOCSPGRP
}


def available() -> bool:
    """Whether `restrict` knows this system's calls, and the kernel takes filters."""
    if not sys.platform.startswith("linux") or platform.machine() not in COLUMNS:
        return False
    return ctypes.CDLL(None).prctl(PR_GET_SECCOMP, 0, 0, 0, 0) >= 0


def _step(code: int, value: int, when_true: int = 0, when_false: int = 0) -> bytes:
    """One instruction; the jumps count the instructions to leave out."""
    return struct.pack("=HBBI", code, when_true, when_false, value)


def _refuse(error: int = errno.EPERM) -> bytes:
    return _step(RETURN, REFUSE | error)


def _only_if(number: int, condition: list[bytes]) -> bytes:
    """For this call: a true condition jumps over the refusal, a false one falls into it."""
    body = b"".join(condition) + _refuse() + _step(RETURN, ALLOW)
    skip = len(body) // 8
    return _step(JUMP_EQUAL, number, 0, skip) + body


def _own(number: int, zero: bool) -> bytes:
    """Allow this call if its first argument is the own process."""
    condition = [_step(LOAD, ARGUMENT), _step(JUMP_EQUAL, os.getpid(), 2 if zero else 1)]
    condition += [_step(JUMP_EQUAL, 0, 1)] if zero else []
    return _only_if(number, condition)


def _without(number: int, values: Sequence[int]) -> bytes:
    """Refuse this call with one of these values as its second argument."""
    body = _step(LOAD, SECOND)
    body += b"".join(_step(JUMP_EQUAL, value, 0, 1) + _refuse() for value in values)
    body += _step(RETURN, ALLOW)
    return _step(JUMP_EQUAL, number, 0, len(body) // 8) + body


def _program() -> bytes:
    """The filter for this processor and this process."""
    column, processor = COLUMNS[platform.machine()]
    steps = [
        _step(LOAD, PROCESSOR),
        _step(JUMP_EQUAL, processor, 1),
        _step(RETURN, KILL),
        _step(LOAD, NUMBER),
        _step(JUMP_AT_LEAST, X32, 0, 1),
        _refuse(),
    ]
    for numbers in REFUSED.values():
        if numbers[column] is not None:
            steps += [_step(JUMP_EQUAL, numbers[column], 0, 1), _refuse()]
    # The flags of clone3 are out of sight; "no such call" makes the C library use clone.
    steps += [_step(JUMP_EQUAL, CLONE3[column], 0, 1), _refuse(errno.ENOSYS)]
    is_thread = [_step(LOAD, ARGUMENT), _step(JUMP_BITS, THREAD, 1)]
    steps.append(_only_if(CLONE[column], is_thread))
    steps += [_own(entry[column], entry[2]) for entry in OWN_PROCESS.values()]
    steps += [_without(entry[column], entry[2]) for entry in WITHOUT.values()]
    return b"".join([*steps, _step(RETURN, ALLOW)])


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("steps", ctypes.c_char_p)]


def restrict() -> None:
    """Refuse those calls from now on, in this process, with "operation not permitted".

    `landlock.no_new_privileges` comes first.

    Raises:
        OSError: The kernel does not take the filter.
    """
    steps = _program()
    program = _Program(len(steps) // 8, steps)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_SECCOMP, ctypes.c_ulong(FILTER), ctypes.byref(program)):
        raise OSError(ctypes.get_errno(), "the kernel does not take the filter of system calls")
