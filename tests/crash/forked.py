"""The program that the crash test starts once: it imports torch, and forks a process for each run.

It is started with ``shim.c`` in LD_PRELOAD. Requests are JSON lines on standard input, answers are
JSON lines on standard output.
"""

import atexit
import contextlib
import ctypes
import gc
import json
import os
import resource
import signal
import sys
import time
import traceback
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

from torch.distributed import TCPStore

from shared.config.command_line import load_config
from shared.config.methods import METHODS
from shared.data.sources import open_data

SHIM = ctypes.CDLL(os.environ["LD_PRELOAD"])
SHIM.crash_watch.argtypes = [ctypes.c_char_p, ctypes.c_int]
SHIM.crash_at.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_int, ctypes.c_int]
PATIENCE = 600.0  # seconds; the machine may be busy


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Run the commands in one or several forked processes, and wait for them.

    Args:
        request: ``commands``, a list of module and arguments; ``watch``, a folder; ``processes``;
            ``event`` and ``point``, what happens at which file operation, ``code``, the errno of
            what fails, and ``rank``, in which process; ``seconds``, after which all are killed;
            ``log``, a file of all operations; ``files`` and ``size``, limits on open files and on
            their bytes; ``environ``, further variables.

    Returns:
        ``codes`` of the processes, negative where a signal ended them, and what they printed.
    """
    _import({module for module, *_ in request["commands"]})
    processes = request.get("processes", 1)
    folder = Path(request["output"])
    launcher, port = _launcher(processes) if processes > 1 else (0, 0)
    children: dict[int, int] = {}  # rank -> its process
    for rank in reversed(range(processes)):  # rank 0 knows the others
        sys.stdout.flush()
        child = os.fork()
        if not child:
            _be(rank, port, request, folder, other=children.get(1, 0))
        children[rank] = child
    codes = _wait(children, request.get("seconds", PATIENCE))
    if launcher:
        os.kill(launcher, signal.SIGKILL)
        os.waitpid(launcher, 0)
    texts = [(folder / f"{stream}{rank}").read_text() for stream in "oe" for rank in children]
    return {"codes": codes, "out": "".join(texts[:processes]), "err": "".join(texts[processes:])}


def _import(modules: set[str]) -> None:
    """What the processes need, once for all of them; the collector does not look at it again."""
    if "pipeline" in modules:
        modules = modules | {f"stages.{method.stage}" for method in METHODS.values()}
    if not modules <= sys.modules.keys():
        for module in modules | {"shared.config.command"}:
            import_module(module)
        gc.collect()
        gc.freeze()


def _launcher(processes: int) -> tuple[int, int]:
    """A process that holds the store where the others meet, as torchrun does, and its port."""
    here, there = os.pipe()
    launcher = os.fork()
    if not launcher:
        with contextlib.suppress(BaseException):
            wait = timedelta(seconds=PATIENCE)
            store = TCPStore(
                "localhost", 0, processes, is_master=True, timeout=wait, wait_for_workers=False
            )
            os.write(there, str(store.port).encode())
            signal.pause()
        os._exit(1)
    port = int(os.read(here, 9))
    os.close(here)
    os.close(there)
    return launcher, port


def _wait(children: dict[int, int], seconds: float) -> list[int]:
    """Exit codes in the order of ranks; what still runs after so many seconds is killed."""
    deadline, codes = time.monotonic() + seconds, dict[int, int]()
    while len(codes) < len(children):
        for rank, child in children.items():
            if rank in codes:
                continue
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                codes[rank] = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
        time.sleep(0.002)
    return [codes[rank] for rank in sorted(codes)]


def _be(rank: int, port: int, request: dict[str, Any], folder: Path, other: int) -> None:
    """Be one of the processes, to its end."""
    code = 1
    try:
        os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
        for number, stream in ((1, "o"), (2, "e")):
            file = os.open(folder / f"{stream}{rank}", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
            os.dup2(file, number)
        if port:
            os.environ |= {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(request["processes"]),
                "LOCAL_WORLD_SIZE": str(request["processes"]),
                "MASTER_ADDR": "localhost",
                "MASTER_PORT": str(port),
                "TORCHELASTIC_USE_AGENT_STORE": "True",
                "TORCHELASTIC_RESTART_COUNT": "0",
            }
        log = -1
        if "log" in request:
            log = os.open(f"{request['log']}{rank or ''}", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        if "files" in request:
            resource.setrlimit(resource.RLIMIT_NOFILE, (request["files"],) * 2)
        if "size" in request:
            resource.setrlimit(resource.RLIMIT_FSIZE, (request["size"],) * 2)
        os.environ |= request.get("environ", {})
        SHIM.crash_watch(os.fsencode(request["watch"]), log)
        if "event" in request and rank == request.get("rank", 0):
            SHIM.crash_at(request["point"], request["event"], request["code"], other)
        for module, *arguments in request["commands"]:
            code = import_module(module).main(arguments)
            if code:
                break
    except SystemExit as stopped:
        code = stopped.code if isinstance(stopped.code, int) else 1
    except BaseException:
        code = 1
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code or 0)


def main() -> None:
    """Answer requests until there are none; its own arguments are those of the runs."""
    config, _ = load_config(sys.argv[1:], "", "")
    open_data(config.data, config.label_set)  # once for all processes
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
