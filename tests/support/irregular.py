"""What lies where a file should be, and is none: reading it could wait, or go on, for ever."""

import os
import socket
from pathlib import Path

NO_FILE = "no regular file|symbolic links"  # what reading it says


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


IRREGULAR = {
    "pipe": os.mkfifo,
    "socket": _socket,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "loop": lambda path: path.symlink_to(path),
    "folder": Path.mkdir,
}
