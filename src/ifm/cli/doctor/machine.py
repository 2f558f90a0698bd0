"""This machine: Python and this package, torch and its devices, cores."""

import importlib.util
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from ifm.cli.doctor.findings import OK, PROBLEM, SECONDS, WARNING, Finding

PYTHON = (3, 11)


def python() -> Iterator[Finding]:
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < PYTHON:
        yield Finding(
            "Python", PROBLEM, f"{found}; {PYTHON[0]}.{PYTHON[1]} or newer is needed", "make setup PYTHON=..."
        )
    else:
        yield Finding("Python", OK, found)
    name, mend = "python on PATH", "source .venv/bin/activate, or use make: DVC's stages call `python`"
    there = shutil.which("python")
    if there is None:
        yield Finding("Python", PROBLEM, f"there is no {name}", mend)
        return
    ask = [there, "-c", "import sys; print(sys.prefix)"]
    with suppress(OSError, subprocess.TimeoutExpired):
        prefix = subprocess.run(ask, capture_output=True, text=True, check=False, timeout=SECONDS).stdout.strip()
        if not prefix or Path(prefix).resolve() != Path(sys.prefix).resolve():
            yield Finding("Python", PROBLEM, f"{name} is {there}, and not this environment's", mend)


def package(root: Path) -> Iterator[Finding]:
    """Whether this package is the checkout's: an environment that was moved or copied has that of its old place."""
    own, used = root / "src" / "ifm", Path(__file__).parents[2]
    if own.is_dir() and own.resolve() != used.resolve():
        mend = "rm -r .venv; make setup: an environment cannot be moved or copied"
        yield Finding("package", WARNING, f"`ifm` is {used}, and not this checkout's", mend)


def torch_devices() -> Iterator[Finding]:
    """torch, and a product of matrices on every device."""
    if importlib.util.find_spec("torch") is None:
        yield Finding("torch", PROBLEM, "not installed", "make setup")
        return
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for name in ["cpu", *(f"cuda:{i}" for i in range(gpus))]:
        title = f"{torch.__version__} on {torch.cuda.get_device_name(name) if name != 'cpu' else 'the CPU'}"
        try:
            wrong = not works_on(name)
        except RuntimeError as error:
            yield Finding(
                "torch", PROBLEM, f"{title}: {str(error).splitlines()[0][:120]}", "install the driver's torch"
            )
            continue
        if wrong:
            yield Finding("torch", PROBLEM, f"{title}: a product of matrices is wrong", "install torch anew")
        else:
            yield Finding("torch", OK, title)
    if not gpus and shutil.which("nvidia-smi"):
        why = "CUDA_VISIBLE_DEVICES hides them" if "CUDA_VISIBLE_DEVICES" in os.environ else "torch finds none"
        mend = "install a torch of the driver's CUDA version; without, all runs on the CPU"
        yield Finding("GPU", WARNING, f"there is an NVIDIA driver, and {why}", mend)


def works_on(device: str) -> bool:
    """Whether a product and its gradient come out right: of whole numbers, so exactly."""
    import torch

    x = torch.arange(16.0, device=device).reshape(4, 4).requires_grad_()
    (x @ x.T).sum().backward()
    column_sums = torch.arange(16.0).reshape(4, 4).sum(0)
    return torch.equal(x.grad.cpu(), 2 * column_sums.expand(4, 4))


def gpu_abilities() -> Iterator[Finding]:
    """What training makes use of on a GPU: bfloat16, and a compiler that works."""
    if importlib.util.find_spec("torch") is None:
        return
    import torch

    if not torch.cuda.is_available():
        return
    if torch.cuda.is_bf16_supported(including_emulation=False):
        yield Finding("GPU", OK, "computes in bfloat16")
    else:
        yield Finding("GPU", WARNING, "has no bfloat16", "teacher.precision, flow.precision: fp16, or no")
    yield compiler("cuda")


def compiler(device: str) -> Finding:
    """Whether torch.compile makes a small block for the device, and how long that takes."""
    import torch

    torch.manual_seed(0)
    block = torch.nn.Sequential(torch.nn.Conv2d(8, 8, 3, padding=1), torch.nn.GroupNorm(4, 8), torch.nn.SiLU())
    block, x, began = block.to(device), torch.randn(2, 8, 8, 8, device=device), time.perf_counter()
    try:
        with torch.no_grad():
            apart = float((torch.compile(block)(x) - block(x)).abs().max())
    except Exception as error:  # whatever a compiler raises
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        mend = "IFM_COMPILE=off goes without; torch.compile needs Triton and a C compiler"
        return Finding("GPU", WARNING, f"torch.compile fails: {reason}", mend)
    if not apart < 0.01:  # TF32 on one side alone
        return Finding("GPU", WARNING, f"torch.compile computes wrongly, by {apart:.2g}", "IFM_COMPILE=off")
    return Finding("GPU", OK, f"torch.compile works, a block takes {time.perf_counter() - began:.1f} s")


def cores() -> Iterator[Finding]:
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdigit() and int(asked) > count:
        mend = "leave OMP_NUM_THREADS unset"
        yield Finding("cores", WARNING, f"{count}, and OMP_NUM_THREADS asks for {asked} threads", mend)
    else:
        yield Finding("cores", OK, f"{count}, {asked or count} threads")
