"""What is done with images, as lines of C: convolutions, padding, pooling, turning, and making them grey or smaller."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from distillrl.targets import plan as steps

if TYPE_CHECKING:
    from distillrl.targets.c import Printer


def _conv(p: Printer, op: steps.Conv) -> None:
    """One call; several output columns are computed side by side, and it is printed for as many as divide a row best."""
    (_, height, width), (outputs, rows, columns) = p.plan.shapes[op.x], p.plan.shapes[op.out]
    tile = min(range(1, min(6, columns) + 1), key=lambda t: (-(-columns // t) * t - columns + (6 - t) * columns / 12, -t))
    p.tiles.add(tile)
    weight = np.zeros((steps.padded(outputs), *op.weight.shape[1:]), np.float32)
    weight[:outputs] = op.weight
    bias = np.zeros(steps.padded(outputs), np.float32)
    bias[:outputs] = op.bias
    arranged = weight.reshape(-1, 8, *op.weight.shape[1:]).transpose(0, 2, 3, 4, 1)
    source = p.pointer(op.x)
    channels, kh, kw = op.weight.shape[1:]
    sizes = f"{channels}, {height}, {width}, {kh}, {kw}, {op.stride[0]}, {op.stride[1]}, {outputs}, {rows}, {columns}"
    p.lines.append(f"    conv{tile}_({source}, {p.constant(arranged)}, {p.constant(bias)}, {p.pointer(op.out)}, {sizes});")


def _pad(p: Printer, op: steps.Pad) -> None:
    (channels, height, width), (_, rows, columns) = p.plan.shapes[op.x], p.plan.shapes[op.out]
    p.loop(op.out, "0.0f")
    to = p.item(op.out, f"(i / {height} * {rows} + {op.rows} + i % {height}) * {columns} + {op.columns} + j")
    p.lines.append(f"    for (i = 0; i < {channels * height}; i++) {{\n        int j;")
    p.lines.append(f"        for (j = 0; j < {width}; j++) {to} = (float){p.item(op.x, f'i * {width} + j')};\n    }}")


def _transpose(p: Printer, op: steps.Transpose) -> None:
    height, width, channels = p.plan.shapes[op.x]
    p.loop(op.out, f"(float){p.item(op.x, f'i % {height * width} * {channels} + i / {height * width}')}")


def _resample(p: Printer, op: steps.Resample) -> None:
    """Read as it is where it is bytes or floats; what has another type is made floats first, which no image has that is usual."""
    n, (taps, m) = p.plan.size(op.x) // (op.before * op.after), op.places.shape
    held = next((g.held for g in p.plan.inputs if g.name == op.x), "float32")
    name = {"float32": "resample", "uint8": "resample_bytes"}[held]
    p.needed.add(name)
    tables = f"{p.constant(op.places, 'int32_t')}, {p.constant(op.weights)}"
    sizes = f"{op.before}, {n}, {op.after}, {m}, {taps}, {_part(op.whole)}, {int(op.pixels)}"
    p.lines.append(f"    {name}_({p.pointer(op.x)}, {tables}, {p.pointer(op.out)}, {sizes});")


def _part(whole: float) -> str:
    """The ``whole``-th part as a float, which has a point in C."""
    text = f"{1 / whole:.9g}"
    return f"{text}f" if "." in text or "e" in text else f"{text}.0f"


def _max_pool(p: Printer, op: steps.MaxPool) -> None:
    p.needed.add("pool")
    sizes = ", ".join(map(str, (*p.plan.shapes[op.x], *op.kernel, *op.stride, *op.padding, *p.plan.shapes[op.out][1:])))
    p.lines.append(f"    pool_({p.pointer(op.x)}, {p.pointer(op.out)}, {sizes});")


PRINTERS: dict[type, Callable[[Printer, Any], None]] = {
    steps.Conv: _conv,
    steps.Pad: _pad,
    steps.Transpose: _transpose,
    steps.Resample: _resample,
    steps.MaxPool: _max_pool,
}
