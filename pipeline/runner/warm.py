"""A stage's Python that has imported the large packages already: a fork of `ifm repro`, which waits for its stage.

Importing PyTorch and diffusers takes 5 to 15 s of a core, for each stage of each branch. `ifm repro` imports them once.
Each DVC that it starts has a fork beside it, made before DVC runs. When DVC runs `python -m pipeline.stages.NAME`, the
fork becomes that process: the same words, environment, folder, group and parent. The code of ifm and pipeline is read
anew from its files, as a new process reads it.

Off with IFM_WARM=off, on machines with a GPU (CUDA cannot be forked), under IFM_LAUNCH, and where memory is short. Then
DVC starts a new process, as plain `dvc repro` does.
"""

import atexit
import ctypes
import gc
import importlib
import json
import logging
import os
import runpy
import shlex
import shutil
import signal
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from pipeline.runner.parent import end_with_parent
from pipeline.runner.slots import DRIVERS, has_launcher

SWITCH = "IFM_WARM"  # on, off
IMPORTED = ("torch", "diffusers.models.unets.unet_2d", "accelerate", "safetensors.torch", "scipy.stats", "pandas")
OWN = ("ifm", "pipeline")  # packages that a stage reads from its checkout
STAGES = "pipeline.stages."
FEW = 3  # stages; for less, importing here takes as long as there
LEAST_MEMORY = 2 * 2**30  # bytes that the machine must have to spare


def wanted() -> bool:
    """Whether stages may be forks here."""
    return (
        os.environ.get(SWITCH, "on").strip().lower() != "off"
        and hasattr(os, "fork")
        and not any(Path(driver).exists() for driver in DRIVERS)
        and not has_launcher()
        and _available() >= LEAST_MEMORY
    )


def load(commands: Iterable[str], environment: Mapping[str, str]) -> None:
    """Imports what stages need, where several of these commands are stages.

    environment: of the stages; numerical libraries read their number of threads when they load.
    """
    if sum(_words(command) is not None for command in commands) < FEW or not wanted():
        return
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    gc.disable()  # imports make a million objects and next to no garbage
    try:
        for name in IMPORTED:
            with suppress(Exception):  # the stage that needs it says what is wrong with it
                importlib.import_module(name)
    finally:
        gc.enable()
        gc.freeze()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


@dataclass
class Waiting:
    """A fork that waits to be told which stage it is. Raises BrokenPipeError where it has ended before that."""

    pid: int
    _pipe: int

    def become(self, words: Sequence[str], environment: Mapping[str, str], folder: str) -> int:
        """Has it run `python -m MODULE WORDS...`, and waits: the exit status, of one ended by signal n, -n."""
        told = json.dumps({"words": list(words), "environment": dict(environment), "folder": folder})
        try:
            with os.fdopen(self._pipe, "w", encoding="utf-8") as pipe:
                pipe.write(told)
        except BrokenPipeError:
            os.waitpid(self.pid, 0)
            raise
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def fork() -> Waiting | None:
    """A fork beside this process, which is about to run DVC. It ends with it. None where `load` did not."""
    if "torch" not in sys.modules:
        return None
    reading, writing = os.pipe()
    this = os.getpid()
    pid = os.fork()
    if pid:
        os.close(reading)
        return Waiting(pid, writing)
    _wait(reading, writing, parent=this)


def _wait(reading: int, writing: int, *, parent: int) -> NoReturn:
    try:
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # until there is a stage that has something to say about it
        end_with_parent()
        os.close(writing)
        with os.fdopen(reading, encoding="utf-8") as pipe:
            text = pipe.read() if os.getppid() == parent else ""
        if text:  # otherwise DVC had nothing to run
            _be(**json.loads(text))
    finally:  # nothing of this process may go on in the fork
        os._exit(1)


def lend(waiting: Waiting) -> bool:
    """Has DVC, in this process, run its stage by the fork; whether this DVC can."""
    from dvc.stage import run

    plain = getattr(run, "_run", None)
    if plain is None:
        return False
    from dvc.stage.exceptions import StageCmdFailedError

    left = [waiting]

    def by_fork(executable: Any, cmd: str, **options: Any) -> None:
        words = _stage(cmd, options)
        if words is None or not left:
            plain(executable, cmd, **options)
            return
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as DVC does: Ctrl-C is the stage's
        try:
            status = left.pop().become(words, options["env"], os.fspath(options["cwd"]))
        except BrokenPipeError:  # the system took it while it waited
            status = None
        finally:
            signal.signal(signal.SIGINT, before)
        if status is None:
            plain(executable, cmd, **options)
            return
        if status:
            raise StageCmdFailedError(cmd, status)

    run._run = by_fork
    return True


def _stage(cmd: Any, options: Mapping[str, Any]) -> list[str] | None:
    """The module and its words, if a command is a stage by this Python."""
    if not isinstance(cmd, str) or not {"env", "cwd"} <= set(options) or (words := _words(cmd)) is None:
        return None
    found = shutil.which("python", path=options["env"].get("PATH"))
    return words if found and Path(found).parent == Path(sys.executable).parent else None


def _words(cmd: str) -> list[str] | None:
    """The module and its words, if a command is `python -m pipeline.stages.NAME WORDS...` and needs no shell."""
    with suppress(ValueError):
        words = shlex.split(cmd)
        plain = words[:2] == ["python", "-m"] and len(words) > 2 and words[2].startswith(STAGES)
        return words[2:] if plain and shlex.join(words) == cmd else None
    return None


def _be(words: Sequence[str], environment: Mapping[str, str], folder: str) -> NoReturn:
    """`python -m MODULE WORDS...`: what the interpreter does before, while and after it runs a module."""
    status = 1
    try:
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(folder)
        _show_as(["python", "-m", *words])
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        for name in [name for name in sys.modules if name.partition(".")[0] in OWN]:
            del sys.modules[name]
        importlib.invalidate_caches()
        sys.path.insert(0, folder)
        sys.excepthook = sys.__excepthook__
        sys.orig_argv = [sys.executable, "-m", *words]
        sys.argv = ["-m", *words[1:]]  # as it is while a module's packages are imported
        atexit._clear()  # this process's own, as a stage's are to be
        status = _ran(words[0])
        threading._shutdown()
        atexit._run_exitfuncs()
        logging.shutdown()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()
        os._exit(status & 0xFF)


def _ran(module: str) -> int:
    """Runs it as the main module: its exit status."""
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as error:
        if error.code is None or isinstance(error.code, int):
            return error.code or 0
        print(error.code, file=sys.stderr)
        return 1
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        return 128 + signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    return 0


def _show_as(words: Sequence[str]) -> None:
    """Has `ps` show these words instead of the runner's, as far as they fit (Linux)."""
    with suppress(OSError, ValueError, IndexError):
        fields = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        begin, end = int(fields[45]), int(fields[46])  # arg_start, arg_end: proc(5) counts from 1, and two are before
        if 0 < begin < end:
            text = "\0".join(words).encode()[: end - begin - 1]
            ctypes.memmove(begin, text.ljust(end - begin, b"\0"), end - begin)


def _available() -> int:
    """Bytes of memory that can be had."""
    import psutil

    return psutil.virtual_memory().available
