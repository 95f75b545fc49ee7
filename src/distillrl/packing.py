"""How an artifact's file holds tensors in fewer bytes: whole numbers of 2 to 8 bits with scales, zeros left out, 16-bit floats.

``pack`` and ``unpack`` are each other's inverse for a tensor that lies on its grid: weight[i, j, …] = q[i, j, …] · scale[i] · columns[j],
q between ±(2^(bits−1) − 1). A tensor ``LAYER.weight`` brings ``LAYER.weight:scale`` [m]; columns are the layer's ``LAYER.inverse`` [n], where its
inputs are rounded with steps of their own (students/compact.py), else 1. All scales, and all numbers that roundings are set by, are one tensor
in the file, named ``grids``: a tensor's name and place would take more bytes than a small layer's scales.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from distillrl.errors import Failed

SCALE, GRIDS = ":scale", "grids"
HALVES: dict[str, torch.dtype] = {"float16": torch.float16, "bfloat16": torch.bfloat16}
MOST = 1 << 28
"""Numbers of a packed tensor at most: a damaged header must not ask for all memory."""


@dataclass(frozen=True)
class Form:
    """How one tensor is held: ``bits`` of a whole number (0: as floats), zeros left out where ``sparse``, floats of ``dtype``."""

    shape: tuple[int, ...]
    bits: int = 0
    sparse: bool = False
    dtype: str = "float32"

    def __str__(self) -> str:
        """As a header has it, short because a small student's header is most of its file: ``16x8 int4 sparse``."""
        kind = f"int{self.bits}" if self.bits else self.dtype
        return f"{'x'.join(map(str, self.shape))} {kind}" + (" sparse" if self.sparse else "")

    @staticmethod
    def of(text: str) -> Form:
        """Rebuild it; raises ValueError where the text isn't one."""
        shape, kind, *sparse = str(text).split(" ")
        bits = int(kind.removeprefix("int")) if kind.startswith("int") else 0
        form = Form(tuple(int(s) for s in shape.split("x")), bits, sparse == ["sparse"], "float32" if bits else kind)
        if str(form) != text or not 0 <= form.bits <= 8 or form.bits == 1 or form.dtype not in {"float32", *HALVES} or not all(0 < s <= MOST for s in form.shape) or form.count > MOST:
            raise ValueError(f"a tensor of {text!r}")
        return form

    @property
    def count(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)


def levels(bits: int) -> int:
    """The greatest whole number of so many bits: 127 of 8, 7 of 4, 3 of 3, 1 of 2 (three values, as many signed codes mirror)."""
    return (1 << (bits - 1)) - 1


def grid(weight: Tensor, scale: Tensor, columns: Tensor | None) -> Tensor:
    """[m, n, …]: the size of one step at each weight."""
    step = scale.reshape(-1, *[1] * (weight.dim() - 1))
    return step if columns is None else step * columns.reshape(1, -1, *[1] * (weight.dim() - 2))


def columns_of(name: str, tensors: Mapping[str, Tensor], form: Form) -> Tensor | None:
    """[n] where the layer's inputs have steps of their own."""
    inverse = tensors.get(f"{name.rpartition('.')[0]}.inverse")
    return inverse if inverse is not None and inverse.numel() > 1 and inverse.shape == form.shape[1:2] else None


def _joined(forms: Mapping[str, Form], rounded: Mapping[str, int]) -> dict[str, int]:
    """What is held in ``grids``, in its order: name → how many numbers."""
    scales = {name + SCALE: form.shape[0] for name, form in sorted(forms.items()) if form.bits}
    return scales | {f"{layer}.{part}": entries for layer, entries in sorted(rounded.items()) for part in ("inverse", "zero")}


def pack(tensors: Mapping[str, Tensor], forms: Mapping[str, Form], rounded: Mapping[str, int]) -> dict[str, Tensor]:
    """The tensors as the file holds them; those without a form stay as they are. ``rounded``: layer → entries of its ``inverse``."""
    joined = _joined(forms, rounded)
    held = {name: value for name, value in tensors.items() if name not in joined}
    if joined:
        held[GRIDS] = torch.cat([tensors[name].detach().cpu().float().reshape(-1) for name in joined])
    for name, form in forms.items():
        value = tensors[name].detach().cpu().float()
        if form.bits:
            whole = torch.round(value / grid(value, tensors[name + SCALE], columns_of(name, tensors, form)))
            codes = (whole.long() + levels(form.bits)).numpy().ravel().astype(np.uint8)
            kept = whole.numpy().ravel() != 0
        else:
            codes, kept = value.numpy().ravel(), value.numpy().ravel() != 0
        if form.sparse:
            held[f"{name}:mask"] = torch.from_numpy(np.packbits(kept, bitorder="little"))
            codes = codes[kept]
        if form.bits:
            held[name] = torch.from_numpy(_squeezed(codes, form.bits))
        else:
            held[name] = torch.from_numpy(np.ascontiguousarray(codes)).to(HALVES.get(form.dtype, torch.float32))
            held[name] = held[name] if form.sparse else held[name].reshape(form.shape)
    return held


def unpack(held: Mapping[str, Tensor], forms: Mapping[str, Form], rounded: Mapping[str, int], where: str) -> dict[str, Tensor]:
    """float32 tensors of their shapes again, scales beside them; raises Failed where sizes don't fit."""
    tensors = dict(held)
    joined = _joined(forms, rounded)
    if joined:
        grids = tensors.pop(GRIDS, torch.zeros(0))
        if grids.dtype != torch.float32 or grids.shape != (sum(joined.values()),) or set(joined) & set(tensors):
            raise Failed(f"{where} is damaged: its tensor {GRIDS} doesn't fit its header")
        tensors |= {name: part.clone() for name, part in zip(joined, grids.split(list(joined.values())), strict=True)}
    for name, form in forms.items():
        try:
            tensors[name] = _unpacked(name, form, tensors)
        except (KeyError, ValueError, RuntimeError, IndexError) as error:
            raise Failed(f"{where} is damaged: its packed tensor {name} doesn't fit its header ({type(error).__name__}: {error})") from None
        tensors.pop(f"{name}:mask", None)
    return tensors


def _unpacked(name: str, form: Form, held: Mapping[str, Tensor]) -> Tensor:
    kept = np.ones(form.count, bool)
    if form.sparse:
        bits = held[f"{name}:mask"].numpy()
        if bits.dtype != np.uint8 or bits.shape != (-(-form.count // 8),):
            raise ValueError(f"a mask of {bits.shape}")
        kept = np.unpackbits(bits, bitorder="little")[: form.count].astype(bool)
    count = int(kept.sum())
    dense = np.zeros(form.count, np.float32)
    if form.bits:
        packed = held[name]
        if packed.dtype != torch.uint8 or packed.shape != (-(-count * form.bits // 8),):
            raise ValueError(f"{list(packed.shape)} {packed.dtype}")
        dense[kept] = _spread(packed.numpy(), form.bits, count) - levels(form.bits)
        value = torch.from_numpy(dense).reshape(form.shape)
        return value * grid(value, held[name + SCALE], columns_of(name, held, form))
    stored = held[name]
    if stored.dtype != HALVES.get(form.dtype, torch.float32) or stored.numel() != count:
        raise ValueError(f"{list(stored.shape)} {stored.dtype}")
    dense[kept] = stored.float().numpy().ravel()
    return torch.from_numpy(dense).reshape(form.shape)


def _squeezed(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes below 2^bits, ``bits`` of each, side by side in bytes."""
    spread = (codes[:, None] >> np.arange(bits, dtype=np.uint8)) & 1
    return np.packbits(spread.astype(np.uint8).ravel(), bitorder="little")


def _spread(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    """The codes again, as float32."""
    ones = np.unpackbits(packed, bitorder="little")[: count * bits].reshape(count, bits)
    return (ones.astype(np.float32) * (1 << np.arange(bits)).astype(np.float32)).sum(1, dtype=np.float32)
