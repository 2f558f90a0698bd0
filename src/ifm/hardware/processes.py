"""Processes and devices: the accelerator, this process's part of a global batch, collectives."""

import math
import os
from collections.abc import Iterator
from datetime import timedelta
from itertools import pairwise

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, InitProcessGroupKwargs, set_seed
from torch import Tensor

from ifm.errors import UserError
from ifm.hardware.devices import keep_freed_memory

PATIENCE = timedelta(days=2)  # where one process works alone for long: decoding images, training a classifier


class LaunchError(UserError, ValueError):
    """The work does not fit the launched processes."""


def make_accelerator(precision: str, *, seed: int, patience: timedelta | None = None) -> Accelerator:
    """An Accelerator for the available hardware. A precision that it lacks becomes float32, with a notice.

    Seeds torch's global generator too: initial weights, the same in every process, are drawn from it.
    patience: how long processes wait for each other; None: as the collectives' library has it.
    Raises LaunchError: see `check_splitting`.
    """
    if precision == "fp16" and not torch.cuda.is_available():
        print("fp16 needs a GPU: training in float32", flush=True)
        precision = "no"
    # Without being told, accelerate leaves processes on CPUs strangers to each other: each would do all the work.
    # DDP: gradients lie in the buffers that are exchanged, which saves a copy of them in memory and one a step.
    ddp = DistributedDataParallelKwargs(gradient_as_bucket_view=True)
    handlers = [ddp] if patience is None else [ddp, InitProcessGroupKwargs(timeout=patience)]
    accelerator = Accelerator(mixed_precision=precision, cpu=not torch.cuda.is_available(), kwargs_handlers=handlers)
    check_splitting(accelerator)
    if accelerator.device.type == "cuda":
        torch.backends.cudnn.benchmark = True  # shapes are the same in every step
    else:
        share_cores()
        keep_freed_memory()
    set_seed(seed % 2**32)
    return accelerator


def check_splitting(accelerator: Accelerator) -> None:
    """Raises LaunchError for a way of splitting models that training does not support; says what to set instead."""
    kind = accelerator.distributed_type
    if kind in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise LaunchError(
            f"accelerate is set up for {kind.value}; to split a model over processes use distributed_type: FSDP with "
            "fsdp_version: 2, and to hold it whole in each (DDP) distributed_type: MULTI_GPU"
        )
    if kind != DistributedType.FSDP:
        return
    from torch.distributed.fsdp import CPUOffloadPolicy
    from torch.distributed.fsdp.wrap import size_based_auto_wrap_policy

    plugin, parallel = accelerator.state.fsdp_plugin, accelerator.parallelism_config
    if plugin.fsdp_version != 2:
        raise LaunchError(f"accelerate's config has fsdp_version: {plugin.fsdp_version}; use fsdp_version: 2")
    if plugin.auto_wrap_policy is size_based_auto_wrap_policy:
        raise LaunchError(
            "accelerate's config has fsdp_auto_wrap_policy: SIZE_BASED_WRAP, which would split lists of blocks; use "
            "TRANSFORMER_BASED_WRAP with fsdp_transformer_layer_cls_to_wrap: ResnetBlock2D, or NO_WRAP"
        )
    if isinstance(plugin.cpu_offload, CPUOffloadPolicy):
        raise LaunchError("accelerate's config has fsdp_offload_params: true; use false")
    if accelerator.mixed_precision == "fp16":
        raise LaunchError("precision: fp16 is not supported with FSDP; use bf16 or no")
    if parallel is not None and parallel.non_data_parallel_size > 1:
        raise LaunchError("accelerate's parallelism_config splits more than data; use FSDP without it")


def share_cores() -> None:
    """Gives each of several CPU processes on a host its share of the cores; torchrun gives each only one.

    OMP_NUM_THREADS above 1 is the user's choice and stays.
    """
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if processes > 1 and int(os.environ.get("OMP_NUM_THREADS", "1")) == 1:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores // processes))


def local_positions(accelerator: Accelerator, batch_size: int) -> np.ndarray:
    """This process's positions in a global batch: int64 [batch_size / processes].

    Raises LaunchError if the processes cannot split it evenly (their gradients would have unequal weights).
    """
    processes = accelerator.num_processes
    if batch_size % processes:
        raise LaunchError(
            f"batch_size = {batch_size} cannot be shared by {processes} processes; use a multiple of {processes}"
        )
    each = batch_size // processes
    return np.arange(each) + accelerator.process_index * each


class ProcessExchange:
    """The collectives of a sharded anchor bank (`ifm.anchors.Exchange`), over an accelerator's processes.

    Tensors go to the device, where the collectives need them, and come back to the host.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self.rank, self.processes = accelerator.process_index, accelerator.num_processes
        self.is_main = accelerator.is_main_process

    def gather(self, x: Tensor) -> Tensor:
        """[b, ...] of each process, in the order of ranks: [processes b, ...]."""
        return self._accelerator.gather(x.to(self._accelerator.device)).cpu()

    def total(self, x: Tensor) -> Tensor:
        """The sum over the processes, elementwise."""
        return self._accelerator.reduce(x.to(self._accelerator.device), reduction="sum").cpu()


def parts_of(count: int, parts: int) -> Iterator[tuple[slice, float]]:
    """(part, its share) of `count` rows, split in order into parts that are as equal as possible.

    Raises LaunchError if there are fewer rows than parts.
    """
    if count < parts:
        raise LaunchError(
            f"gradient_accumulation = {parts} is more than the {count} samples that a process has of a batch; lower it"
        )
    ends = [math.ceil(count * i / parts) for i in range(parts + 1)]
    for start, stop in pairwise(ends):
        yield slice(start, stop), (stop - start) / count
