"""Work that comes in batches, shared out over an accelerator's processes."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from accelerate import Accelerator

T = TypeVar("T")


def shared_batches(
    work: Callable[[range], T], *, count: int, batch_size: int, accelerator: "Accelerator | None" = None
) -> Iterator[tuple[range, T]]:
    """(members, work(members)) for 0 .. count - 1, `batch_size` at a time, in order and in every process.

    Each process works on every num_processes-th batch. The batches are the same for any number of processes, so what
    depends on its batch alone comes out the same, to the byte.
    """
    batches = [range(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]
    if accelerator is None or accelerator.num_processes == 1:
        for members in batches:
            yield members, work(members)
        return
    from accelerate.utils import gather_object

    for start in range(0, len(batches), accelerator.num_processes):
        together = batches[start : start + accelerator.num_processes]
        rank = accelerator.process_index
        mine = [work(together[rank])] if rank < len(together) else []
        yield from zip(together, gather_object(mine), strict=True)
