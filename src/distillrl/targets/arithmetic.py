"""Elementwise steps of a plan, and the activations that are made of several of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from distillrl.targets import plan as steps
from distillrl.targets.plan import Floats
from distillrl.targets.sensing import Builder

SELU = (1.0507009873554805, 1.6732632423543772)
"""Its scale and alpha (Klambauer 2017)."""


def activate(b: Builder, x: str, kind: str, first: float | Floats = 0.0, second: float = 0.0) -> str:
    """One of plan.ACTIVATIONS."""
    return b.add(steps.Activate(b.name(), x, kind, first, second), b.shapes[x])


def affine(b: Builder, x: str, scale: Any, shift: Any = 0.0, low: float = -np.inf, high: float = np.inf) -> str:
    """clip(x · scale + shift, low, high); scale and shift are one number, or one of each entry."""
    one, other = (np.asarray(v, np.float32).ravel() for v in (scale, shift))
    return b.add(steps.Affine(b.name(), x, one, other, low, high), b.shapes[x])


def add(b: Builder, x: str, y: str) -> str:
    """X + y, entry by entry."""
    return b.add(steps.Combine(b.name(), x, y, "add"), b.shapes[x])


def multiply(b: Builder, x: str, y: str) -> str:
    """X · y, entry by entry."""
    return b.add(steps.Combine(b.name(), x, y, "multiply"), b.shapes[x])


def softplus(b: Builder, x: str, beta: float = 1.0) -> str:
    """log(1 + e^(beta · x)) / beta"""
    inside = x if beta == 1 else affine(b, x, beta)
    made = activate(b, inside, "softplus")
    return made if beta == 1 else affine(b, made, 1 / beta)


def celu(b: Builder, x: str, alpha: float = 1.0) -> str:
    """Alpha · elu(x / alpha) (Barron 2017)."""
    inside = x if alpha == 1 else affine(b, x, 1 / alpha)
    made = activate(b, inside, "elu", 1.0)
    return made if alpha == 1 else affine(b, made, alpha)


def selu(b: Builder, x: str) -> str:
    """Scale · elu(x, alpha)"""
    return affine(b, activate(b, x, "elu", SELU[1]), SELU[0])


def log_sigmoid(b: Builder, x: str) -> str:
    """−softplus(−x)"""
    return affine(b, activate(b, affine(b, x, -1.0), "softplus"), -1.0)


def absolute(b: Builder, x: str) -> str:
    """max(x, 0) + max(−x, 0)"""
    down = activate(b, affine(b, x, -1.0), "relu")
    return add(b, activate(b, x, "relu"), down)


def softsign(b: Builder, x: str) -> str:
    """X / (1 + |x|)"""
    below = affine(b, absolute(b, x), 1.0, 1.0)
    return multiply(b, x, activate(b, below, "reciprocal"))


def hard_sigmoid(b: Builder, x: str) -> str:
    """min(max(x / 6 + ½, 0), 1)"""
    return affine(b, x, 1 / 6, 0.5, 0.0, 1.0)


def hard_swish(b: Builder, x: str) -> str:
    """X · hard_sigmoid(x)"""
    return multiply(b, x, hard_sigmoid(b, x))


def logarithm(b: Builder, x: str, least: float) -> str:
    """log(max(x, least))"""
    return activate(b, affine(b, x, 1.0, 0.0, least), "log")
