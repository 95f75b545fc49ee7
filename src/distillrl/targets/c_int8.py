"""C99 with int8 weights and whole-number activations in dense layers: four times smaller, not faster below a width of 256.

Weights have a scale for each output, activations a scale and a zero point found once, on calibration states: one for a layer, but one of each
number for what comes from the observation, whose numbers differ in range. Activations have 12 bits: products are of 16-bit numbers anyway (x86's
and Arm's own), so that 8 would be neither smaller nor faster, only worse; layers wider than 8,000 have 8. The mean error that rounding leaves is taken off
the biases (Nagel 2019, "Data-free quantization", section 4.2, with data). Sums are int32, all else float32; a row never depends on another.
Convolutions stay float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from distillrl.errors import Misconfigured
from distillrl.students import compact
from distillrl.targets import c, running
from distillrl.targets import plan as steps
from distillrl.targets.plan import Floats, Plan

STATES = 4096
"""Calibration states that are used at most."""
SPARSE = 0.4
"""A layer of which at most this share isn't zero is printed without its zeros: a place takes as much as a weight."""
WIDEST = 1 << 16
"""Inputs of a layer at most: more could overflow an int32 sum."""


@dataclass(frozen=True)
class Quantised:
    """A dense layer: q = round(x · inverse + zero) in [-half, half - 1]; y = (weight · q) · scale + bias."""

    half: int
    inverse: Floats
    zero: Floats
    weight: NDArray[np.int8]
    scale: Floats
    bias: Floats

    def inputs(self, x: Floats) -> Floats:
        """[n, F] → the same as whole numbers."""
        inside = np.clip(x * self.inverse + self.zero, -self.half, self.half - 1)
        return np.floor(inside + np.float32(self.half + 0.5)) - np.float32(self.half)

    def __call__(self, x: Floats) -> Floats:
        """[n, F] → [n, m], as the C code computes it."""
        sums = self.inputs(x).astype(np.float64) @ self.weight.T.astype(np.float64)
        return sums.astype(np.float32) * self.scale + self.bias


def write(plan: Plan, passport: Mapping[str, Any], folder: Path, name: str, states: Mapping[str, NDArray[Any]]) -> tuple[list[Path], dict[str, Any]]:
    """Write NAME.h and NAME.c; the facts tell on how many of the states the float policy's action is kept."""
    if plan.states:
        raise Misconfigured("export --to c-int8 doesn't carry a policy with memory, whose activations can't be calibrated on single states; c, js, onnx and python do")
    plan = _without_rounding(plan)
    layers = quantised(plan, states)
    used = _some(states)
    floats = running.run(plan, used)[plan.raw]
    whole = running.run(plan, used, dense=lambda op, x: layers[op.out](x))[plan.raw]
    same = running.decode(plan.decode, floats) == running.decode(plan.decode, whole)
    widest = max((layer.weight.shape[1] for layer in layers.values()), default=0)

    def dense(p: c.Printer, op: steps.Dense) -> None:
        layer = layers[op.out]
        p.more_stack = 2 * widest
        m, n = layer.weight.shape
        rounding = f"{p.constant(layer.inverse)}, {p.constant(layer.zero)}, {int(layer.inverse.size == 1)}, {layer.half}"
        if c.is_sparse(layer.weight, SPARSE):
            places, kind = c.sparse(p, layer.weight)
            p.needed.add(f"sparse_int8_{kind}")
            weights = f"{p.constant(layer.weight[layer.weight != 0], 'int8_t')}, {places}"
            call = f"sparse_int8_{kind}_(q, {weights}, {p.constant(layer.scale)}, {p.constant(layer.bias)}, {p.pointer(op.out)}, {m});"
        else:
            p.needed.add("dense_int8")
            call = f"dense_int8_(q, {p.constant(layer.weight, 'int8_t')}, {p.constant(layer.scale)}, {p.constant(layer.bias)}, {p.pointer(op.out)}, {n}, {m});"
        p.lines.append(f"    {{\n        int16_t q[{n}];\n        whole_({p.pointer(op.x)}, {rounding}, q, {n});\n        {call}\n    }}")

    files, facts = c.write_with(plan, passport, folder, name, dense)
    kept = {"agreement": float(same.reshape(len(same), -1).all(-1).mean())} if plan.decode.discrete else {"action_error": float(_box_error(plan, floats, whole))}
    return files, {**facts, "calibration_states": len(floats), **kept}


def _without_rounding(plan: Plan) -> Plan:
    """Layers whose inputs are rounded by steps of their own read the value before these: here they are rounded by the layer."""
    ops = tuple(replace(op, x=op.whole.x) if isinstance(op, steps.Dense) and op.whole is not None else op for op in plan.ops)
    while True:
        read = {name for op in ops for name in steps.reads(op)} | {plan.raw, plan.source}
        kept = tuple(op for op in ops if op.out in read)
        if len(kept) == len(ops):
            return replace(plan, ops=ops)
        ops = kept


def _box_error(plan: Plan, floats: Floats, whole: Floats) -> float:
    return float(np.abs(running.decode(plan.decode, floats) - running.decode(plan.decode, whole)).mean())


def _some(states: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """STATES of them, from the beginning to the end: environments side by side visit an episode's end last."""
    n = len(next(iter(states.values())))
    chosen = np.unique(np.linspace(0, n - 1, min(n, STATES)).astype(int))
    return {name: values[chosen] for name, values in states.items()}


def quantised(plan: Plan, states: Mapping[str, NDArray[Any]]) -> dict[str, Quantised]:
    """Every dense layer by the name of its output; each is calibrated on what the quantised layers before it give."""
    layers: dict[str, Quantised] = {}
    used = _some(states)
    exact = running.run(plan, used)
    bounded = {op.out for op in plan.ops if isinstance(op, steps.Activate)}

    def calibrate(op: steps.Dense, x: Floats) -> Floats:
        if op.whole is not None:  # it came with its grids, from a student that was compressed
            layers[op.out] = _given(op, op.whole)
            return layers[op.out](x)
        layer = _layer(op, x, op.x not in bounded)
        error = (layer(x) - exact[op.out]).mean(0)
        layers[op.out] = replace(layer, bias=(layer.bias - error).astype(np.float32))
        return layers[op.out](x)

    running.run(plan, used, dense=calibrate)
    return layers


def _layer(op: steps.Dense, x: Floats, each: bool) -> Quantised:
    if op.weight.shape[1] > WIDEST:
        raise Misconfigured(f"export --to c-int8: a layer reads {op.weight.shape[1]} numbers, at most {WIDEST} are right")
    half = compact.half_of(op.weight.shape[1])
    inverse, zero = (v.numpy() for v in compact.span(torch.from_numpy(x), each, half))
    scaled = op.weight.astype(np.float64) / inverse
    scale = np.maximum(np.abs(scaled).max(1) / 127, 1e-30)
    codes = np.round(scaled / scale[:, None]).astype(np.int8)
    return _folded(half, inverse, zero, codes, scale, op.bias)


def _given(op: steps.Dense, whole: steps.Whole) -> Quantised:
    return _folded(whole.half, whole.inverse, whole.zero, whole.codes, whole.scale, op.bias)


def _folded(half: int, inverse: NDArray[Any], zero: NDArray[Any], codes: NDArray[np.int8], scale: NDArray[Any], bias: Floats) -> Quantised:
    """As x ≈ step · (q − zero): the zero point's share is the same in every state, so it goes into the bias."""
    shifted = bias - scale.astype(np.float64) * (codes.astype(np.float64) @ np.broadcast_to(zero.astype(np.float64), codes.shape[1:]))
    floats = [v.astype(np.float32) for v in (inverse, zero, scale, shifted)]
    return Quantised(half, floats[0], floats[1], codes, floats[2], floats[3])
