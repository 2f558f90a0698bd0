"""A server of Python processes that have imported the large packages already: each request is a fork (SOCKET).

A process that trains imports for 10 to 20 s of a slow core and works for one. ifm and pipeline are not imported here:
a fork takes them from where it is started. A fork ends with its client.
"""

import atexit
import gc
import importlib
import json
import os
import random
import runpy
import selectors
import signal
import socket
import sys
import threading
import types
from contextlib import suppress
from typing import Any, NoReturn

IMPORTED = (
    "torch", "torch._dynamo", "accelerate", "diffusers.models.unets.unet_2d", "diffusers.models.unets.unet_2d_blocks",
    "diffusers.training_utils", "mlflow", "mlflow.store.tracking.sqlalchemy_store", "pandas", "scipy.stats", "ot",
    "sklearn.datasets", "sklearn.neighbors", "pyarrow.parquet", "matplotlib.pyplot", "datasets", "safetensors.torch",
    "jinja2", "psutil", "yaml", "ruamel.yaml", "dvc.cli", "dvc.main", "dvc.repo", "dvc.commands.repro",
)  # fmt: skip


def read(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """The request, and its stdin, stdout and stderr."""
    head, files, _, _ = socket.recv_fds(connection, 8, 3)
    left = int.from_bytes(head, "big")
    data = b""
    while len(data) < left:
        if not (more := connection.recv(left - len(data))):
            raise ConnectionError
        data += more
    return json.loads(data), files


def become(request: dict[str, Any], files: list[int], shim: str) -> None:
    """What the interpreter does before it runs a program."""
    os.setsid()
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    environment = request["environment"]
    unbuffered = "PYTHONUNBUFFERED" in environment
    sys.stdout.reconfigure(line_buffering=unbuffered or os.isatty(1), write_through=unbuffered)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(request["cwd"])
    import numpy as np
    import torch

    random.seed()
    np.random.seed()
    torch.set_num_threads(int(environment.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0))))
    paths = environment.get("PYTHONPATH", "")
    sys.path[:0] = [path for path in paths.split(os.pathsep) if path]
    sys.executable = shim
    sys.orig_argv = [shim, *request["words"]]
    importlib.invalidate_caches()
    gc.enable()


def run(words: list[str]) -> None:
    """`python WORDS...`, for -m, -c and files."""
    if words[0] == "-m":
        sys.argv = words[1:]
        sys.path.insert(0, os.getcwd())
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        sys.path.insert(0, "")
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(words[1], "<string>", "exec"), main.__dict__)
    else:
        sys.argv = words
        sys.path.insert(0, os.path.dirname(os.path.abspath(words[0])))
        runpy.run_path(words[0], run_name="__main__")


def ended(words: list[str]) -> NoReturn:
    """Runs the program to its end as the interpreter does, but frees no memory: that takes a second."""
    status = 0
    try:
        run(words)
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
        if not isinstance(error.code, int | None):
            print(error.code, file=sys.stderr)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        status = 128 + signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(status & 0xFF)


def served(listener: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Answers clients for ever. In a fork it returns the fork's request."""
    watched = selectors.DefaultSelector()
    watched.register(listener, selectors.EVENT_READ, "listener")
    watched.register(0, selectors.EVENT_READ, "end")  # the tests are over
    forks: dict[int, tuple[int, socket.socket]] = {}  # by the file that tells of its end
    while True:
        for key, _ in watched.select():
            if key.data == "end":
                os._exit(0)
            if key.data == "listener":
                connection, _ = listener.accept()
                try:
                    request, files = read(connection)
                except (OSError, ConnectionError, ValueError):
                    connection.close()
                    continue
                if not (pid := os.fork()):
                    connection.close()
                    listener.close()
                    for fd, (_, other) in forks.items():
                        os.close(fd)
                        other.close()
                    watched.close()
                    return request, files
                for file in files:
                    os.close(file)
                ended = os.pidfd_open(pid)
                forks[ended] = pid, connection
                watched.register(ended, selectors.EVENT_READ, "ended")
                watched.register(connection, selectors.EVENT_READ, ended)
            elif key.data == "ended":
                pid, connection = forks.pop(key.fd)
                status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                with suppress(OSError):
                    connection.sendall(status.to_bytes(8, "big", signed=True))
                for one in (key.fd, connection):
                    with suppress(KeyError):
                        watched.unregister(one)
                os.close(key.fd)
                connection.close()
            elif key.data in forks:  # a client: a signal for its fork, or its own end
                number = key.fileobj.recv(1)
                if not number:
                    watched.unregister(key.fileobj)
                with suppress(ProcessLookupError):
                    os.kill(forks[key.data][0], number[0] if number else signal.SIGKILL)


def main(address: str, shim: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(64)
    waiting = selectors.DefaultSelector()
    waiting.register(listener, selectors.EVENT_READ)
    waiting.register(0, selectors.EVENT_READ)
    asked = waiting.select()  # nothing is imported for tests that start no process
    waiting.close()
    if all(key.fd == 0 for key, _ in asked):
        return
    for name in IMPORTED:
        with suppress(Exception):  # a fork that needs it says what is wrong with it
            importlib.import_module(name)
    gc.collect()
    gc.freeze()
    request, files = served(listener)
    become(request, files, shim)
    ended(request["words"])


if __name__ == "__main__":
    sys.path.pop(0) if sys.path[0] == os.path.dirname(os.path.abspath(__file__)) else None
    main(*sys.argv[1:])
