#!/usr/bin/env python3
"""Fit the rational functions of src/distillrl/targets/c_activations.py: tanh and erf as x·P(x²)/Q(x²), least greatest error, and print them.

    python scripts/fit_activations.py          # seconds; needs numpy

Lawson's algorithm: weighted least squares of P − f·Q over Chebyshev points, the weights multiplied by the error each time. Coefficients are
rounded to float32; the last column is the greatest error when everything is computed in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

POINTS, TURNS = 4000, 200


def fit(f: Callable[[float], float], end: float, p_degree: int, q_degree: int) -> tuple[list[float], list[float]]:
    """P and Q (Q's constant term is 1), from the constant term on, for |x| ≤ end."""
    unit = (1 - np.cos(np.pi * (np.arange(POINTS) + 0.5) / POINTS)) / 2
    y = np.array([f(float(v)) for v in unit * end])
    s = unit**2
    columns = np.concatenate([unit[:, None] * s[:, None] ** np.arange(p_degree + 1), -y[:, None] * s[:, None] ** np.arange(1, q_degree + 1)], 1)
    weights, q, least, best = np.ones(POINTS), np.ones(POINTS), math.inf, np.zeros(0)
    for _ in range(TURNS):
        scale = np.sqrt(weights) / np.abs(q)
        c, *_ = np.linalg.lstsq(columns * scale[:, None], y * scale, rcond=1e-18)
        p = unit * np.polynomial.polynomial.polyval(s, c[: p_degree + 1])
        q = 1 + s * np.polynomial.polynomial.polyval(s, c[p_degree + 1 :])
        error = np.abs(p / q - y)
        if error.max() < least:
            least, best = float(error.max()), c.copy()
        weights = weights * (error / error.max() + 1e-4)
        weights /= weights.max()
    found_p = [float(np.float32(c / end ** (2 * i + 1))) for i, c in enumerate(best[: p_degree + 1])]
    return found_p, [1.0, *(float(np.float32(c / end ** (2 * i + 2))) for i, c in enumerate(best[p_degree + 1 :]))]


def float32_error(f: Callable[[float], float], end: float, p: list[float], q: list[float]) -> float:
    """The greatest error over |x| ≤ end, all sums in float32."""
    x = np.linspace(0, end, 400_001).astype(np.float32)
    s = x * x
    found = x * np.polyval(np.array(p[::-1], np.float32), s) / np.polyval(np.array(q[::-1], np.float32), s)
    return float(np.abs(found - np.vectorize(f)(x.astype(float))).max())


if __name__ == "__main__":
    for name, function, end, degrees in (("tanh", math.tanh, 9.0, (4, 4)), ("erf", math.erf, 4.0, (5, 5))):
        p, q = fit(function, end, *degrees)
        print(f"{name} (|x| ≤ {end}), error {float32_error(function, end, p, q):.1e}\n  P {p}\n  Q {q}")
