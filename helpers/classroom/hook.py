"""A second line of defence, in Python: an audit hook that refuses what a student has no use for.

It works on every system and gives clear messages, but it runs beside the student's code in the same
interpreter. It stops accidents and simple tricks, not a determined attacker.
"""

import os
import sys
from pathlib import Path
from typing import Any

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Events whose arguments at these places are paths that something changes.
CHANGES = {
    "os.chflags": (0,),
    "os.chmod": (0,),
    "os.chown": (0,),
    "os.link": (0, 1),
    "os.mkdir": (0,),
    "os.remove": (0,),
    "os.removexattr": (0,),
    "os.rename": (0, 1),
    "os.rmdir": (0,),
    "os.setxattr": (0,),
    "os.symlink": (1,),
    "os.truncate": (0,),
    "os.utime": (0,),
    "sqlite3.connect": (0,),
}
REFUSED = {
    "os.exec": "start programs",
    "os.fork": "start processes",
    "os.forkpty": "start processes",
    "os.posix_spawn": "start programs",
    "os.spawn": "start programs",
    "os.startfile": "start programs",
    "os.startfile/2": "start programs",
    "os.system": "start programs",
    "pty.spawn": "start programs",
    "subprocess.Popen": "start programs",
    "sys.remote_exec": "run code in other processes",
    "socket.__new__": "use the network",
    "socket.bind": "use the network",
    "socket.connect": "use the network",
    "socket.getaddrinfo": "use the network",
    "socket.gethostbyname": "use the network",
    "socket.sendmsg": "use the network",
    "socket.sendto": "use the network",
    "syslog.syslog": "write to the system's log",
    "winreg.CreateKey": "change the registry",
    "winreg.DeleteKey": "change the registry",
    "winreg.SetValue": "change the registry",
    "_winapi.CreateProcess": "start programs",
    "_winapi.OpenProcess": "touch other processes",
    "_winapi.TerminateProcess": "touch other processes",
}
SIGNALS = {"os.kill", "os.killpg"}
# With these any system call can be made; needless to refuse where the kernel itself stands guard.
DOORS = {"ctypes.dlopen", "ctypes.dlsym", "ctypes.dlsym/handle", "ctypes.call_function"}


def _refuse(what: str) -> None:
    raise PermissionError(f"an exercise may not {what}")


def install(folder: str, *, doors: bool) -> None:
    """Refuse, for as long as this process lives, to change anything but what lies in a folder.

    Args:
        folder: Where files may be written.
        doors: Whether `ctypes` may load and call libraries.
    """
    home, me = Path(os.path.realpath(folder)), os.getpid()

    def inside(path: Any) -> bool:
        if isinstance(path, int) or path == os.devnull:  # a file that is open already, or a sink
            return True
        return Path(os.path.realpath(os.fsdecode(path))).is_relative_to(home)

    def hook(event: str, arguments: tuple) -> None:
        if event == "open":
            path, mode, flags = arguments
            if flags & WRITING and not inside(path):
                _refuse(f"write outside its folder ({os.path.basename(os.fsdecode(path))})")
        elif event in CHANGES:
            if not all(inside(arguments[place]) for place in CHANGES[event]):
                _refuse(f"change files outside its folder ({event})")
        elif event in REFUSED:
            _refuse(REFUSED[event])
        elif event in SIGNALS and arguments[0] != me:
            _refuse("send signals to other processes")
        elif event in DOORS and not doors:
            _refuse(f"call the system's libraries ({event})")

    sys.addaudithook(hook)
