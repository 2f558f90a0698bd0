"""A worker of tests/support in several processes, and in the test's own one: that saves the imports of a process."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import torch
from accelerate.state import AcceleratorState

from tests.support import warm
from tests.support.on_cpus import on_cpus


def torchrun(worker: ModuleType, processes: int, *arguments: object) -> subprocess.CompletedProcess:
    """Runs the worker's file by torchrun on CPUs, one thread a process."""
    launcher = [warm.python(), "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    words = [*launcher, worker.__file__, *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, timeout=600, check=False, env=on_cpus())


@contextmanager
def one_process() -> Iterator[None]:
    """Around a worker's main: one thread, as torchrun gives its processes, and accelerate starts anew."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        yield
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
        torch.set_num_threads(threads)
