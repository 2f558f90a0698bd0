"""Group normalization and SiLU in one pass, over activations that lie channels last: Triton kernels for NVIDIA GPUs.

torch's own kernel copies channels_last activations to the standard layout and back, and autocast has it in float32: of
a training step's time that takes more than the convolutions do. Here x is read twice and y written once, in x's dtype,
with sums in float32. Every sum has a fixed order, so results repeat bit by bit.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

ELEMENTS = 4096  # of a tile
SIZES = ("HW", "S", "ROWS")  # arguments that kernels are not compiled for one by one
PROGRAMS = 1056  # at least so many, eight for each multiprocessor of an H100


@triton.jit
def _channels(D: tl.constexpr, G: tl.constexpr, GP: tl.constexpr, DP: tl.constexpr):
    """Numbers of the channels as [groups, channels of a group], and which of them there are."""
    g, d = tl.arange(0, GP)[:, None], tl.arange(0, DP)[None, :]
    return g * D + d, (g < G) & (d < D)


@triton.jit(do_not_specialize=SIZES)
def _sums(x_ptr, shift_ptr, part_ptr, HW, S, ROWS, G: tl.constexpr, D: tl.constexpr, GP: tl.constexpr, DP: tl.constexpr,
          BLOCK: tl.constexpr, SHIFT: tl.constexpr):  # fmt: skip
    """Of each channel the sum and the sum of squares over some of a sample's rows: part [N, S, 2, C]."""
    n, s = tl.program_id(0).to(tl.int64), tl.program_id(1)
    C: tl.constexpr = G * D
    c, there = _channels(D, G, GP, DP)
    total = tl.zeros([GP, DP], tl.float32)
    square = tl.zeros([GP, DP], tl.float32)
    shift = total
    if SHIFT:
        shift = tl.load(shift_ptr + n * C + c, mask=there, other=0.0).to(tl.float32)
    stop = tl.minimum((s + 1) * ROWS, HW)
    for start in range(s * ROWS, stop, BLOCK):
        r = (start + tl.arange(0, BLOCK))[:, None, None]
        inside = (r < stop) & there[None]
        x = tl.load(x_ptr + (n * HW + r) * C + c[None], mask=inside, other=0.0).to(tl.float32)
        if SHIFT:
            x = tl.where(inside, x + shift[None], 0.0)
        total += tl.sum(x, 0)
        square += tl.sum(x * x, 0)
    tl.store(part_ptr + (n * S + s) * 2 * C + c, total, mask=there)
    tl.store(part_ptr + (n * S + s) * 2 * C + C + c, square, mask=there)


@triton.jit(do_not_specialize=SIZES)
def _apply(x_ptr, shift_ptr, part_ptr, weight_ptr, bias_ptr, y_ptr, stat_ptr, HW, S, ROWS, eps, G: tl.constexpr,
           D: tl.constexpr, GP: tl.constexpr, DP: tl.constexpr, BLOCK: tl.constexpr, SHIFT: tl.constexpr,
           SILU: tl.constexpr):  # fmt: skip
    """y = silu(normed x) on some of a sample's rows. stat [N, 2, G]: each group's mean and 1 / deviation."""
    n, s = tl.program_id(0).to(tl.int64), tl.program_id(1)
    C: tl.constexpr = G * D
    c, there = _channels(D, G, GP, DP)
    total = tl.zeros([GP], tl.float32)
    square = tl.zeros([GP], tl.float32)
    for i in range(S):
        total += tl.sum(tl.load(part_ptr + (n * S + i) * 2 * C + c, mask=there, other=0.0), 1)
        square += tl.sum(tl.load(part_ptr + (n * S + i) * 2 * C + C + c, mask=there, other=0.0), 1)
    mean = total / (HW * D)
    rstd = 1.0 / tl.sqrt(tl.maximum(square / (HW * D) - mean * mean, 0.0) + eps)
    if s == 0:
        g = tl.arange(0, GP)
        tl.store(stat_ptr + n * 2 * G + g, mean, mask=g < G)
        tl.store(stat_ptr + n * 2 * G + G + g, rstd, mask=g < G)
    scale = tl.load(weight_ptr + c, mask=there, other=0.0).to(tl.float32) * rstd[:, None]
    offset = tl.load(bias_ptr + c, mask=there, other=0.0).to(tl.float32) - mean[:, None] * scale
    if SHIFT:
        offset += tl.load(shift_ptr + n * C + c, mask=there, other=0.0).to(tl.float32) * scale
    stop = tl.minimum((s + 1) * ROWS, HW)
    for start in range(s * ROWS, stop, BLOCK):
        r = (start + tl.arange(0, BLOCK))[:, None, None]
        inside = (r < stop) & there[None]
        where = (n * HW + r) * C + c[None]
        y = tl.load(x_ptr + where, mask=inside, other=0.0).to(tl.float32) * scale[None] + offset[None]
        if SILU:
            y = y * tl.sigmoid(y)
        tl.store(y_ptr + where, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _of_forward(stat_ptr, shift_ptr, weight_ptr, bias_ptr, n, G: tl.constexpr, D: tl.constexpr, GP: tl.constexpr,
                DP: tl.constexpr, SHIFT: tl.constexpr):  # fmt: skip
    """Mean (less the shift) and 1 / deviation of a sample's groups, weight and bias: [groups, channels of a group]."""
    c, there = _channels(D, G, GP, DP)
    g = tl.arange(0, GP)
    mean = tl.load(stat_ptr + n * 2 * G + g, mask=g < G, other=0.0)[:, None] + tl.zeros([GP, DP], tl.float32)
    rstd = tl.load(stat_ptr + n * 2 * G + G + g, mask=g < G, other=0.0)[:, None]
    if SHIFT:
        mean -= tl.load(shift_ptr + n * G * D + c, mask=there, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + c, mask=there, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + c, mask=there, other=0.0).to(tl.float32)
    return mean, rstd, weight, bias


@triton.jit
def _slope(x, dy, mean, rstd, weight, bias, SILU: tl.constexpr):
    """x normed, and the loss's gradient before SiLU."""
    normed = (x - mean) * rstd
    if SILU:
        z = normed * weight + bias
        sigmoid = tl.sigmoid(z)
        dy = dy * sigmoid * (1.0 + z * (1.0 - sigmoid))
    return normed, dy


@triton.jit(do_not_specialize=SIZES)
def _gradient_sums(x_ptr, shift_ptr, dy_ptr, weight_ptr, bias_ptr, stat_ptr, part_ptr, HW, S, ROWS, G: tl.constexpr,
                   D: tl.constexpr, GP: tl.constexpr, DP: tl.constexpr, BLOCK: tl.constexpr, SHIFT: tl.constexpr,
                   SILU: tl.constexpr):  # fmt: skip
    """Of each channel the sums of dz and of dz (x normed) over some of a sample's rows: part [N, S, 2, C]."""
    n, s = tl.program_id(0).to(tl.int64), tl.program_id(1)
    C: tl.constexpr = G * D
    c, there = _channels(D, G, GP, DP)
    mean, rstd, weight, bias = _of_forward(stat_ptr, shift_ptr, weight_ptr, bias_ptr, n, G, D, GP, DP, SHIFT)
    first = tl.zeros([GP, DP], tl.float32)
    second = tl.zeros([GP, DP], tl.float32)
    stop = tl.minimum((s + 1) * ROWS, HW)
    for start in range(s * ROWS, stop, BLOCK):
        r = (start + tl.arange(0, BLOCK))[:, None, None]
        inside = (r < stop) & there[None]
        where = (n * HW + r) * C + c[None]
        x = tl.load(x_ptr + where, mask=inside, other=0.0).to(tl.float32)
        dy = tl.load(dy_ptr + where, mask=inside, other=0.0).to(tl.float32)
        normed, dz = _slope(x, dy, mean[None], rstd[None], weight[None], bias[None], SILU)
        first += tl.sum(dz, 0)
        second += tl.sum(dz * normed, 0)
    tl.store(part_ptr + (n * S + s) * 2 * C + c, first, mask=there)
    tl.store(part_ptr + (n * S + s) * 2 * C + C + c, second, mask=there)


@triton.jit(do_not_specialize=SIZES)
def _gradient(x_ptr, shift_ptr, dy_ptr, weight_ptr, bias_ptr, stat_ptr, part_ptr, dx_ptr, dshift_ptr, HW, S, ROWS,
              G: tl.constexpr, D: tl.constexpr, GP: tl.constexpr, DP: tl.constexpr, BLOCK: tl.constexpr,
              SHIFT: tl.constexpr, SILU: tl.constexpr):  # fmt: skip
    """dx on some of a sample's rows; of each channel dx's sum over them: dshift [N, S, C]."""
    n, s = tl.program_id(0).to(tl.int64), tl.program_id(1)
    C: tl.constexpr = G * D
    c, there = _channels(D, G, GP, DP)
    mean, rstd, weight, bias = _of_forward(stat_ptr, shift_ptr, weight_ptr, bias_ptr, n, G, D, GP, DP, SHIFT)
    first = tl.zeros([GP], tl.float32)
    second = tl.zeros([GP], tl.float32)
    for i in range(S):
        first += tl.sum(tl.load(part_ptr + (n * S + i) * 2 * C + c, mask=there, other=0.0) * weight, 1)
        second += tl.sum(tl.load(part_ptr + (n * S + i) * 2 * C + C + c, mask=there, other=0.0) * weight, 1)
    first = (first / (HW * D))[:, None]
    second = (second / (HW * D))[:, None]
    total = tl.zeros([GP, DP], tl.float32)
    stop = tl.minimum((s + 1) * ROWS, HW)
    for start in range(s * ROWS, stop, BLOCK):
        r = (start + tl.arange(0, BLOCK))[:, None, None]
        inside = (r < stop) & there[None]
        where = (n * HW + r) * C + c[None]
        x = tl.load(x_ptr + where, mask=inside, other=0.0).to(tl.float32)
        dy = tl.load(dy_ptr + where, mask=inside, other=0.0).to(tl.float32)
        normed, dz = _slope(x, dy, mean[None], rstd[None], weight[None], bias[None], SILU)
        dx = rstd[None] * (dz * weight[None] - first[None] - normed * second[None])
        tl.store(dx_ptr + where, dx.to(dx_ptr.dtype.element_ty), mask=inside)
        if SHIFT:
            total += tl.sum(tl.where(inside, dx, 0.0), 0)
    if SHIFT:
        tl.store(dshift_ptr + (n * S + s) * C + c, total, mask=there)


def _plan(samples: int, rows: int, channels: int, groups: int) -> tuple[int, int, dict[str, int]]:
    """(splits of a sample's rows, rows of each, the kernels' constants)."""
    each = channels // groups
    padded = {"GP": triton.next_power_of_2(groups), "DP": triton.next_power_of_2(each)}
    block = max(1, min(ELEMENTS // (padded["GP"] * padded["DP"]), triton.next_power_of_2(rows)))
    splits = max(1, min(triton.cdiv(rows, block), triton.cdiv(PROGRAMS, samples)))
    rows_each = triton.cdiv(triton.cdiv(rows, splits), block) * block
    return triton.cdiv(rows, rows_each), rows_each, {"G": groups, "D": each, "BLOCK": block, **padded}


class _NormSiLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, shift, weight, bias, groups: int, eps: float, silu: bool):  # x: [N, HW, C]
        samples, rows, channels = x.shape
        splits, each, plan = _plan(samples, rows, channels, groups)
        plan |= {"SHIFT": shift is not None, "num_warps": 4}
        grid, given = (samples, splits), x if shift is None else shift
        part = torch.empty(samples, splits, 2, channels, device=x.device)
        stat = torch.empty(samples, 2, groups, device=x.device)
        y = torch.empty_like(x)
        _sums[grid](x, given, part, rows, splits, each, **plan)
        _apply[grid](x, given, part, weight, bias, y, stat, rows, splits, each, eps, SILU=silu, **plan)
        ctx.save_for_backward(x, shift, weight, bias, stat)
        ctx.groups, ctx.silu = groups, silu
        return y

    @staticmethod
    def backward(ctx, dy):
        x, shift, weight, bias, stat = ctx.saved_tensors
        samples, rows, channels = x.shape
        splits, each, plan = _plan(samples, rows, channels, ctx.groups)
        plan |= {"SHIFT": shift is not None, "SILU": ctx.silu, "num_warps": 4}
        grid, given, dy = (samples, splits), x if shift is None else shift, dy.contiguous()
        part = torch.empty(samples, splits, 2, channels, device=x.device)
        dx, dshift = torch.empty_like(x), x
        if shift is not None:
            dshift = torch.empty(samples, splits, channels, device=x.device)
        _gradient_sums[grid](x, given, dy, weight, bias, stat, part, rows, splits, each, **plan)
        _gradient[grid](x, given, dy, weight, bias, stat, part, dx, dshift, rows, splits, each, **plan)
        d_bias, d_weight = part.sum(dim=(0, 1)).to(weight.dtype)
        d_shift = None if shift is None else dshift.sum(1).to(shift.dtype)
        return dx, d_shift, d_weight, d_bias, None, None, None


def group_norm_silu(x: Tensor, norm: torch.nn.GroupNorm, *, silu: bool = True, shift: Tensor | None = None) -> Tensor:
    """silu(norm(x + shift)): [N, C, ...] in x's dtype, channels last. shift: [N, C] or None.

    Sums are in float32. silu=False: the norm alone.
    """
    last = x.movedim(1, -1)
    rows = last.reshape(x.shape[0], -1, x.shape[1]).contiguous()
    shift = None if shift is None else shift.contiguous()
    y = _NormSiLU.apply(rows, shift, norm.weight, norm.bias, norm.num_groups, norm.eps, silu)
    return y.view(last.shape).movedim(-1, 1)
