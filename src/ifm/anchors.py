"""The anchor x_anchor: its policies in training (`anchor.policy`) and its start in sampling."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from ifm.conditions.base import Condition, rows_of, told
from ifm.dynamics.base import NoiseSource
from ifm.hardware.devices import is_sharded, to_device
from ifm.model import IntegrationFlow
from ifm.random import Streams


def evenly_chosen(positions: Tensor, probability: float) -> Tensor:
    """Picks the share `probability` of the positions in a global batch, evenly spread: bool, same shape.

    Batches are shuffled, so a choice by position is a random choice of samples. It is known on the host, the same for
    any number of processes, and balanced between them.
    """
    p = positions.double()
    return torch.floor((p + 1) * probability) > torch.floor(p * probability)


@dataclass(frozen=True)
class Visit:
    """The samples of a step's global batch, the same in every process, and how this process shows its own."""

    rows: np.ndarray  # sample indices of the global batch: int64 [B]
    n: np.ndarray  # which visit to its sample each row is, counted from 1: int64 [B]
    mirrored: Tensor | None = None  # which of this process's images are shown left-right mirrored: bool [b]


class AnchorPolicy(ABC):
    """Gives the anchors of a training batch. It may keep the batch's estimates."""

    takes_anchor: ClassVar[bool] = True

    @abstractmethod
    def __call__(
        self,
        flow: IntegrationFlow,
        x_t: Tensor,
        t: Tensor,
        *,
        generator: NoiseSource,
        positions: Tensor,
        visit: Visit | None = None,
        condition: Condition | None = None,
    ) -> Tensor | None:
        """x_anchor [b, C, H, W] for the points x_t [b, C, H, W] at t [b], at `positions` [b] of the batch.

        visit: what the whole batch holds; the bank alone asks for it. condition: of the samples.
        """

    def refresh(self, x_0_hat: Tensor) -> None:  # noqa: B027 - most policies keep nothing
        """Takes the estimates [b, C, H, W] made from the last call's anchors."""

    def state(self) -> dict[str, Tensor]:
        """Tensors for a checkpoint, by name. All processes call it; only the main process's answer is written."""
        return {}

    def restore(self, tensors: dict[str, Tensor]) -> None:  # noqa: B027
        """The inverse of `state`, for any number of processes."""


class NoAnchor(AnchorPolicy):
    """The ablation: the network has no anchor input."""

    takes_anchor = False

    def __call__(self, flow, x_t, t, *, generator, positions, visit=None, condition=None):
        return None


class NoiseAnchor(AnchorPolicy):
    """x_anchor ~ N(0, I), as in the first step of sampling."""

    def __call__(self, flow, x_t, t, *, generator, positions, visit=None, condition=None):
        return initial_anchor(x_t, generator=generator)


class SelfAnchor(AnchorPolicy):
    """With probability p the flow's own estimate from a noise anchor, without gradient; otherwise a noise anchor."""

    def __init__(self, probability: float) -> None:
        if not 0 < probability <= 1:
            raise ValueError(f"anchor.self_probability must be in (0, 1], got {probability}")
        self.probability = probability

    def __call__(self, flow, x_t, t, *, generator, positions, visit=None, condition=None):
        x_anchor = initial_anchor(x_t, generator=generator)
        rows = to_device(evenly_chosen(positions, self.probability).nonzero().squeeze(1), x_t.device)
        # All processes must call a sharded flow together. One without rows evaluates its first and drops the result.
        of = rows if len(rows) or not is_sharded(flow) else rows.new_zeros(1)
        if len(of):
            with torch.no_grad():
                given = {"x_anchor": x_anchor[of], **told(rows_of(condition, of))}
                x_0_hat = flow(x_t[of], t[of], **given).to(x_anchor.dtype)
            x_anchor[rows] = x_0_hat[: len(rows)]
        return x_anchor


class Exchange(Protocol):
    """What a sharded bank needs from the processes: its rank, their number and two collectives."""

    rank: int
    processes: int
    is_main: bool

    def gather(self, x: Tensor) -> Tensor:
        """The processes' tensors [b, ...], equal in shape, one after the other: [processes b, ...], on the host."""

    def total(self, x: Tensor) -> Tensor:
        """The sum of the processes' tensors, elementwise, on the host."""


class Alone:
    """The exchange of a single process."""

    rank, processes, is_main = 0, 1, True

    def gather(self, x: Tensor) -> Tensor:
        return x.cpu()

    def total(self, x: Tensor) -> Tensor:
        return x.cpu()


class AnchorBank:
    """x_0^(n), the last estimate for each training sample (the paper's persistent anchors), in host memory.

    There is one float16 row for each sample: 307.2 MB for 50,000 x 3 x 32 x 32, over all processes together. Row i is
    in process i mod P. The global batch is shuffled and split by position, so a process needs rows of other processes.
    `read` sums what each process owns of the batch; the others give zero bytes, so the sum is exact. `write` gathers
    the batch's new rows, and each owner takes its own. Both move B rows a step, and nothing is kept on the device. The
    batch and its rows depend only on (seed, step), so the bank has the same bits for any P. A whole copy in each
    process would save the exchange of `read`, but cost P times the memory.

    A row starts as N(0, I), drawn from (seed, index) when it is first read. Until then it takes no memory.
    """

    KEY = "anchor.bank"
    CHUNK_BYTES = 2**24  # what `state` passes through the device at once, for each process

    def __init__(self, size: int, shape: tuple[int, ...], *, seed: int, exchange: Exchange | None = None) -> None:
        self.size, self.shape, self.seed = size, tuple(shape), seed
        self.exchange = exchange or Alone()
        owned = len(range(self.exchange.rank, size, self.exchange.processes))
        self._rows = np.zeros((owned, *self.shape), np.float16)  # pages of zeros are not yet memory

    @property
    def nbytes(self) -> int:
        """Bytes of this process's rows."""
        return self._rows.nbytes

    def _owned(self, rows: np.ndarray) -> np.ndarray:
        return rows % self.exchange.processes == self.exchange.rank

    def start(self, rows: np.ndarray) -> Tensor:
        """x_0^(0) ~ N(0, I) of samples `rows` [b]: float16 [b, *shape]."""
        return Streams(self.seed, "bank", rows).normal(self.shape).half()

    def read(self, visit: Visit, positions: np.ndarray) -> Tensor:
        """The anchors at `positions` [b] of the global batch: float16 [b, *shape], on the host. Collective."""
        fresh = unwritten(visit)  # [B]
        held = np.zeros((len(visit.rows), *self.shape), np.float16)
        if not fresh.all():  # the same in every process, so all of them exchange or none does
            mine = self._owned(visit.rows) & ~fresh
            held[mine] = self._rows[visit.rows[mine] // self.exchange.processes]
            if self.exchange.processes > 1:
                held = self.exchange.total(torch.from_numpy(held).view(torch.uint8)).view(torch.float16).numpy()
        anchors = torch.from_numpy(held[positions])
        first = fresh[positions]
        anchors[torch.from_numpy(first)] = self.start(visit.rows[positions][first])
        return anchors

    def write(self, visit: Visit, values: Tensor) -> None:
        """Stores this process's part of the batch: float16 [b, *shape]. Collective.

        If a sample is in the batch twice, its later position is kept.
        """
        new = self.exchange.gather(values).numpy()  # [B, *shape], in the order of positions
        mine = self._owned(visit.rows)
        self._rows[visit.rows[mine] // self.exchange.processes] = new[mine]

    def state(self) -> dict[str, Tensor]:
        """The whole bank in the order of samples, float16 [size, *shape], in the main process. Collective."""
        exchange = self.exchange
        if exchange.processes == 1:
            return {self.KEY: torch.from_numpy(self._rows)}
        whole = np.empty((self.size, *self.shape), np.float16) if exchange.is_main else None
        longest = -(-self.size // exchange.processes)
        chunk = max(1, self.CHUNK_BYTES // max(1, 2 * int(np.prod(self.shape))))
        for start in range(0, longest, chunk):
            stop = min(start + chunk, longest)
            part = np.zeros((stop - start, *self.shape), np.float16)  # padded: the last rank may own one row less
            own = self._rows[start:stop]
            part[: len(own)] = own
            parts = exchange.gather(torch.from_numpy(part)).numpy().reshape(exchange.processes, *part.shape)
            if whole is not None:
                for rank, rows in enumerate(parts):
                    target = whole[rank :: exchange.processes][start:stop]
                    target[:] = rows[: len(target)]
        return {} if whole is None else {self.KEY: torch.from_numpy(whole)}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Takes this process's rows of `state`, which any number of processes may have written."""
        given = tensors[self.KEY]
        if given.dtype != torch.float16 or tuple(given.shape) != (self.size, *self.shape):
            wanted = f"float16 {[self.size, *self.shape]}"
            raise ValueError(f"the checkpoint's anchor bank is {given.dtype} {list(given.shape)}, not {wanted}")
        self._rows[:] = given[self.exchange.rank :: self.exchange.processes].numpy()


def unwritten(visit: Visit) -> np.ndarray:
    """Which entries of a batch are samples that no earlier batch has held: bool [B].

    This is a sample's first visit, or a second one in the same batch (if two epochs meet in it, or if the batch is
    larger than the set).
    """
    return np.isin(visit.rows, visit.rows[visit.n == 1])


class BankAnchor(AnchorPolicy):
    """The paper's: each sample's own last estimate x_0^(n), updated at every visit; it starts as N(0, I).

    With probability `reset_probability` a sample gets a fresh noise anchor instead; its row is updated all the same.
    Sampling starts from a noise anchor, but after the first epoch the bank holds none. Without resets the network
    would no longer be trained on the anchors of its first sampling step.
    """

    def __init__(self, bank: AnchorBank, *, reset_probability: float) -> None:
        if not 0 <= reset_probability <= 1:
            raise ValueError(f"anchor.reset_probability must be in [0, 1], got {reset_probability}")
        self.bank, self.reset_probability = bank, reset_probability
        self._visit: Visit | None = None
        self._read: Tensor | None = None  # float16 [b, *shape], the rows of this process's samples

    def __call__(self, flow, x_t, t, *, generator, positions, visit=None, condition=None):
        if visit is None:
            raise ValueError("anchor policy bank needs to know which samples a batch holds (visit)")
        self._visit, self._read = visit, self.bank.read(visit, positions.numpy())
        x_anchor = self._mirror(self._read.to(x_t.device, x_t.dtype, copy=True))
        if self.reset_probability:
            noise = initial_anchor(x_t, generator=generator)
            rows = to_device(evenly_chosen(positions, self.reset_probability).nonzero().squeeze(1), x_t.device)
            x_anchor[rows] = noise[rows]
        return x_anchor

    def visits(self, positions: Tensor, visit: Visit) -> Tensor:
        """n of the anchors at `positions` [b]: int64 [b], on the host. A reset anchor starts again at 1."""
        n = torch.from_numpy(visit.n)[positions]
        return torch.where(evenly_chosen(positions, self.reset_probability), 1, n)

    def refresh(self, x_0_hat):
        """Stores the estimates. A row stays as it was if float16 cannot hold its estimate."""
        if self._visit is None or self._read is None:
            raise ValueError("refresh() follows the call that gave the anchors")
        new = self._mirror(x_0_hat.detach()).half().contiguous()
        sound = new.isfinite().flatten(1).all(dim=1)  # [b]
        new = torch.where(sound.view(-1, *[1] * (new.ndim - 1)), new, self._read.to(new.device))
        self.bank.write(self._visit, new)
        self._visit = self._read = None

    def _mirror(self, x: Tensor) -> Tensor:
        """Turns a stored sample into the shown one, and back."""
        mirrored = self._visit.mirrored
        if mirrored is None:
            return x
        return torch.where(mirrored.to(x.device).view(-1, *[1] * (x.ndim - 1)), x.flip(-1), x)

    def state(self):
        return self.bank.state()

    def restore(self, tensors):
        self.bank.restore(tensors)


def initial_anchor(x: Tensor, *, generator: NoiseSource) -> Tensor:
    """N(0, I) in the shape, dtype and place of x: [B, C, H, W]."""
    return to_device(generator.normal(tuple(x.shape[1:])).to(x.dtype), x.device)


def build(
    policy: str,
    *,
    self_probability: float,
    reset_probability: float = 0.0,
    make_bank: Callable[[], AnchorBank] | None = None,
) -> AnchorPolicy:
    """The policy that `anchor.policy` names: "none", "noise", "self" or "bank" (which needs `make_bank`)."""
    if policy == "self":
        return SelfAnchor(self_probability)
    if policy == "bank":
        if make_bank is None:
            raise ValueError("anchor policy bank needs a bank")
        return BankAnchor(make_bank(), reset_probability=reset_probability)
    if policy not in POLICIES:
        raise ValueError(f"unknown anchor policy {policy!r}; known: none, noise, self, bank")
    return POLICIES[policy]()


POLICIES: dict[str, type[AnchorPolicy]] = {"none": NoAnchor, "noise": NoiseAnchor}
