"""CUDA graphs: the kernels of a call, recorded once and replayed by one call of the driver.

An eager step hands out thousands of kernels one by one, which takes the host 20 to 100 ms: longer than a small network
needs on the device, and as long as a large one's. `Graphed` replays a model's forward pass, and its backward pass,
`Replayed` any work on tensors that stay where they are. Both compute what they replace, from the same random numbers.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils import _pytree as pytree

from ifm.hardware.devices import switched_on

WARM_UPS = 3  # plain calls of a kind before it is recorded: cuDNN chooses its algorithms in them
MOST_KINDS = 8  # of calls that are recorded; each keeps its activations
CLOSE, CLOSE_WITH_DROPOUT = 0.05, 0.3  # relative, of a replay to a plain call, in bf16 too
DEVICE = "cuda"
ASKED_NUMBERS = 2**23  # of inputs: larger calls without gradient keep the device busy as they are


def graphs() -> bool:
    """Whether to record CUDA graphs: where there is a GPU, unless IFM_GRAPHS=off."""
    return torch.cuda.is_available() and switched_on("IFM_GRAPHS", default=True)


class _Shell(nn.Module):
    """A model's forward pass with tensors alone as arguments."""

    def __init__(self, model: nn.Module, forward: Callable[..., Tensor], leaves: list[Any], spec: Any) -> None:
        super().__init__()
        self.model, self._forward, self._leaves, self._spec = model, forward, leaves, spec
        self.training = model.training

    def forward(self, *tensors: Tensor) -> Tensor:
        given = iter(tensors)
        leaves = [next(given) if isinstance(leaf, Tensor) else leaf for leaf in self._leaves]
        args, kwargs = pytree.tree_unflatten(leaves, self._spec)
        return self._forward(*args, **kwargs)


class Graphed:
    """A model's forward pass, and the backward pass of its result, from CUDA graphs once a kind of call has come often.

    A kind is what a recording depends on: shapes, dtypes and layouts of all arguments, gradient, autocast, mode. Other
    kinds than the first few, and calls within forward-mode differentiation, are plain. So is everything after a
    recording has failed, with a notice, and a second call before the first one's backward pass: a recording keeps one
    call's activations. The result is a copy: the next replay writes over the recording's own.
    """

    def __init__(self, model: nn.Module, forward: Callable[..., Tensor], *, most: float = ASKED_NUMBERS) -> None:
        """most: numbers in the inputs of a call without gradient that is still recorded."""
        self._model, self._plain, self._most = model, forward, most
        self._seen: dict[Any, int] = {}  # calls of each kind
        self._recorded: dict[Any, Callable[..., Tensor]] = {}
        self._open: set[Any] = set()  # kinds whose last call still waits for its backward pass
        self._works = True

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        leaves, spec = pytree.tree_flatten((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if not self._works or not self._suits(tensors):
            return self._plain(*args, **kwargs)
        kind = _kind_of(leaves, spec, self._model.training)
        self._seen[kind] = self._seen.get(kind, 0) + 1
        if kind not in self._recorded:
            if self._seen[kind] <= WARM_UPS or len(self._recorded) == MOST_KINDS:
                return self._plain(*args, **kwargs)
            random = torch.cuda.get_rng_state()
            try:
                recorded = self._record(leaves, spec, tensors)
                torch.cuda.set_rng_state(random)  # this call drops out what it would have dropped out without
                wrong = self._wrong(recorded, tensors, args, kwargs)
                torch.cuda.set_rng_state(random)
            except Exception as error:  # whatever cannot be recorded
                _free_generator()
                torch.cuda.set_rng_state(random)
                wrong = error
            if wrong:
                _tell(wrong)
                self._works = False
                self._recorded.clear()
                return self._plain(*args, **kwargs)
            self._recorded[kind] = recorded
        if kind in self._open:
            return self._plain(*args, **kwargs)
        result = self._recorded[kind](*tensors).clone()
        if result.requires_grad:
            self._open.add(kind)
            result.register_hook(lambda _: self._open.discard(kind))
        return result

    def _wrong(self, recorded: Callable[..., Tensor], tensors: list[Tensor], args: Any, kwargs: Any) -> str:
        """How a replay differs from a plain call: "" where it does not. With other weights than it was recorded with:
        a recording that holds copies of weights would be right until they move.
        """
        random, found = torch.cuda.get_rng_state(), []
        weights = list(self._model.parameters())
        kept = [p.detach().clone() for p in weights]
        try:
            with torch.no_grad():
                torch._foreach_mul_(weights, 0.5)  # doubled, fp16 might overflow
            for call in (partial(self._plain, *args, **kwargs), partial(recorded, *tensors)):
                torch.cuda.set_rng_state(random)
                with _autocast_without_cache():
                    y = call().clone()
                found.append((y.detach().float(), _slope(y, weights)))
        finally:
            with torch.no_grad():
                torch._foreach_copy_(weights, kept)
            torch.cuda.empty_cache()  # of the plain call's activations
        (want, slope), (got, its_slope) = found
        errors = float((got - want).norm() / want.norm()), abs(float(its_slope) - float(slope))
        if not errors[0] < self._close or not errors[1] <= self._close * float(slope):
            return f"a replay is {errors[0]:.2g} from a plain call, its gradient's norm {errors[1]:.2g} of {slope:.2g}"
        return ""

    @property
    def _close(self) -> float:
        drops = any(isinstance(m, nn.Dropout) and m.p > 0 and m.training for m in self._model.modules())
        return CLOSE_WITH_DROPOUT if drops else CLOSE

    def _suits(self, tensors: list[Tensor]) -> bool:
        differentiated = torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0
        if differentiated or torch.cuda.is_current_stream_capturing():
            return False
        if any(x.device.type != DEVICE or x.requires_grad for x in tensors):
            return False
        return torch.is_grad_enabled() or sum(x.numel() for x in tensors) <= self._most

    def _record(self, leaves: list[Any], spec: Any, tensors: list[Tensor]) -> Callable[..., Tensor]:
        own = [x.clone() for x in tensors]
        shell = _Shell(self._model, self._plain, leaves, spec)
        torch.cuda.empty_cache()  # what plain calls took goes to the recording
        with _autocast_without_cache():
            if torch.is_grad_enabled():
                return torch.cuda.make_graphed_callables(shell, tuple(own), allow_unused_input=True)
            replay, result = _recorded(lambda: shell(*own))

        def call(*given: Tensor) -> Tensor:
            torch._foreach_copy_(own, list(given))
            replay()
            return result

        return call


class Replayed:
    """Work on tensors that stay where they are, recorded at its first call after some plain ones.

    If it cannot be recorded it stays plain, with a notice.
    """

    def __init__(self, work: Callable[[], Any], *, warm_ups: int = WARM_UPS) -> None:
        self._work, self._warm_ups, self._calls = work, warm_ups, 0
        self._replay: Callable[[], None] | None = None
        self._result: Any = None
        self._works = True

    @property
    def recorded(self) -> bool:
        """Whether the next call is, or makes, a recording."""
        return self._calls >= self._warm_ups

    def __call__(self) -> Any:
        if not self.recorded or not self._works:
            self._calls += 1
            return self._work()
        if self._replay is None:
            try:
                self._replay, self._result = _recorded(self._work)
            except Exception as error:  # whatever cannot be recorded; nothing of it was done
                _free_generator()
                self._works = False
                _tell(error)
                return self._work()
        self._replay()
        return self._result


def _recorded(work: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
    """How to replay some work, and where its results come to lie. Recording does not do it."""
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        result = work()
    return graph.replay, result


def _free_generator() -> None:
    """After a recording that failed PyTorch's generator believes that one goes on, and the next dropout would raise."""
    if torch.cuda.is_available():
        generator = torch.cuda.default_generators[torch.cuda.current_device()]
        generator.graphsafe_set_state(generator.clone_state())


def _tell(wrong: str | Exception) -> None:
    """One line on why a recording is not used."""
    text = wrong if isinstance(wrong, str) else f"{type(wrong).__name__}: {' '.join(str(wrong).split())[:200]}"
    print(f"CUDA graph failed ({text}): goes on without", flush=True)


def _slope(y: Tensor, weights: list[nn.Parameter]) -> Tensor:
    """The norm of the gradient of y's sum; 0 where there is none."""
    learned = [p for p in weights if p.requires_grad]
    if not y.requires_grad or not learned:
        return y.new_zeros(())
    found = torch.autograd.grad(y, learned, torch.ones_like(y), allow_unused=True)
    there = [x for x in found if x is not None]
    return torch.stack(torch._foreach_norm(there)).norm() if there else y.new_zeros(())


def _kind_of(leaves: list[Any], spec: Any, training: bool) -> Any:
    autocast = torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda")
    told = tuple((x.shape, x.dtype, x.stride()) if isinstance(x, Tensor) else x for x in leaves)
    return told, str(spec), autocast, training, torch.is_grad_enabled(), torch.is_inference_mode_enabled()


@contextmanager
def _autocast_without_cache() -> Iterator[None]:
    """The autocast that is on, but weights are cast where they are used: a recording must hold their casts."""
    on = torch.is_autocast_enabled("cuda")
    own = torch.autocast("cuda", torch.get_autocast_dtype("cuda"), cache_enabled=False) if on else nullcontext()
    with own:
        yield


@contextmanager
def replaying(*models: nn.Module | None) -> Iterator[None]:
    """Within, calls of the models are `Graphed`: of their classes' forward passes, under the autocast that is on.

    What stood in a model's place of `forward` (accelerate's wrapper, whose autocast keeps casts that a recording must
    make) stands there again afterwards.
    """
    stood = [(model, vars(model).get("forward")) for model in models if model is not None]
    for model, _ in stood:
        # In training every call comes again, and the one with a gradient is larger than the others.
        model.forward = Graphed(model, type(model).forward.__get__(model), most=math.inf)
    try:
        yield
    finally:
        for model, forward in stood:
            if forward is None:
                del model.forward
            else:
                model.forward = forward
