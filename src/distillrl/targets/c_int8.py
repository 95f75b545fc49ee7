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
from numpy.typing import NDArray

from distillrl.errors import Misconfigured
from distillrl.targets import c, running
from distillrl.targets import plan as steps
from distillrl.targets.plan import Floats, Plan

STATES = 4096
"""Calibration states that are used at most."""
HEADROOM = {True: 1.0, False: 0.1}
"""By what share numbers may be greater than any in calibration: those of an observation (a landing's shock), and those inside."""
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
    layers = quantised(plan, states)
    used = _some(states)
    floats = running.run(plan, used)[plan.raw]
    whole = running.run(plan, used, dense=lambda op, x: layers[op.out](x))[plan.raw]
    same = running.decode(plan.decode, floats) == running.decode(plan.decode, whole)
    widest = max((layer.weight.shape[1] for layer in layers.values()), default=0)

    def dense(p: c.Printer, op: steps.Dense) -> None:
        layer = layers[op.out]
        p.needed.add("dense_int8")
        p.more_stack = 2 * widest
        given = f"{p.constant(layer.inverse)}, {p.constant(layer.zero)}, {int(layer.inverse.size == 1)}, {layer.half}"
        weights = f"{p.constant(layer.weight, 'int8_t')}, {p.constant(layer.scale)}, {p.constant(layer.bias)}"
        m, n = layer.weight.shape
        p.lines.append(f"    {{\n        int16_t q[{n}];\n        dense_int8_({p.pointer(op.x)}, {given}, {weights}, q, {p.pointer(op.out)}, {n}, {m});\n    }}")

    files, facts = c.write_with(plan, passport, folder, name, dense)
    kept = {"agreement": float(same.reshape(len(same), -1).all(-1).mean())} if plan.decode.discrete else {"action_error": float(_box_error(plan, floats, whole))}
    return files, {**facts, "calibration_states": len(floats), **kept}


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
        layer = _layer(op, x, op.x not in bounded)
        error = (layer(x) - exact[op.out]).mean(0)
        layers[op.out] = replace(layer, bias=(layer.bias - error).astype(np.float32))
        return layers[op.out](x)

    running.run(plan, used, dense=calibrate)
    return layers


def _layer(op: steps.Dense, x: Floats, each: bool) -> Quantised:
    if op.weight.shape[1] > WIDEST:
        raise Misconfigured(f"export --to c-int8: a layer reads {op.weight.shape[1]} numbers, at most {WIDEST} are right")
    axis = 0 if each else None
    half = 2048 if op.weight.shape[1] <= 8000 else 128
    low, high = (np.atleast_1d(v).astype(np.float64) for v in (np.minimum(x.min(axis), 0), np.maximum(x.max(axis), 0)))
    still = high - low < 1e-6  # a number that never moved in calibration may move yet
    low, high = np.where(still, -1, low * (1 + HEADROOM[each])), np.where(still, 1, high * (1 + HEADROOM[each]))
    step = (high - low) / (2 * half - 1)
    zero = np.round(-half - low / step)
    scaled = op.weight.astype(np.float64) * step
    scale = np.maximum(np.abs(scaled).max(1) / 127, 1e-30)
    weight = np.round(scaled / scale[:, None]).astype(np.int8)
    # x ≈ step · (q − zero): the zero point's share is the same in every state, so it goes into the bias.
    bias = op.bias - scale * (weight.astype(np.float64) @ np.broadcast_to(zero, weight.shape[1:]))
    floats = [v.astype(np.float32) for v in (1 / step, zero, scale, bias)]
    return Quantised(half, floats[0], floats[1], weight, floats[2], floats[3])
