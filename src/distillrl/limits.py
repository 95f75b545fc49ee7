"""What a student may cost: numbers with units, default sizes, and what a size costs before it has learnt anything."""

from __future__ import annotations

import importlib.util
import re
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from distillrl import artifact, evaluation, exporting
from distillrl.errors import Misconfigured, nearest

UNITS = {"ns": 1e-3, "us": 1.0, "µs": 1.0, "μs": 1.0, "ms": 1e3, "s": 1e6}
BYTES = {"": 1, "b": 1, "kb": 1000, "k": 1000, "kib": 1024, "mb": 1_000_000, "m": 1_000_000, "mib": 1 << 20}
MEASURED_AS = ("python", "compiled", "torch")
"""What runs the student where its latency is measured: the numpy file, compiled C called from Python, or torch."""
SIZES = "mlp:, mlp:4, mlp:8, mlp:16, mlp:32, mlp:8x8, mlp:12x12, mlp:16x16, mlp:24x24, mlp:32x32, mlp:48x48, mlp:64x64"
"""Twelve, from a linear policy to what PPO usually trains."""


@dataclass(frozen=True)
class Limits:
    """At most so much; None for no limit. ``latency`` in microseconds for one state, as run by ``measured_as``."""

    parameters: int | None = None
    bytes: int | None = None
    latency: float | None = None
    measured_as: str = "python"

    def __post_init__(self) -> None:
        if self.measured_as not in MEASURED_AS:
            raise Misconfigured(f"--latency-of {self.measured_as!r}{nearest(self.measured_as, MEASURED_AS)}: there are {', '.join(MEASURED_AS)}")

    def over(self, cost: Mapping[str, float]) -> str:
        """Why a cost is too great, or nothing."""
        said = []
        for name, unit in (("parameters", "parameters"), ("bytes", "bytes"), ("latency", "µs")):
            most = getattr(self, name)
            if most is not None and cost[name] > most:
                said.append(f"{cost[name]:,.4g} {unit} > {most:,.4g}" if name == "latency" else f"{cost[name]:,} {unit} > {most:,}")
        return ", ".join(said)


def duration(text: str) -> float:
    """``20us``, ``0.5 ms``, ``2e-5s`` → microseconds; raises Misconfigured."""
    found = re.fullmatch(r"\s*([0-9.]+(?:e[+-]?\d+)?)\s*([a-zµμ]+)\s*", text.lower())
    try:
        value = float(found[1]) * UNITS[found[2]] if found else float("nan")
    except (ValueError, KeyError):
        value = float("nan")
    if not 0 < value < float("inf"):
        raise Misconfigured(f"--max-latency {text!r}: a time with its unit is right, such as 20us, 0.5ms or 800ns")
    return value


def size(text: str) -> int:
    """``8kB``, ``4096``, ``2 KiB`` → bytes; raises Misconfigured."""
    found = re.fullmatch(r"\s*([0-9.]+)\s*([a-z]*)\s*", text.lower())
    try:
        value = float(found[1]) * BYTES[found[2]] if found else float("nan")
    except (ValueError, KeyError):
        value = float("nan")
    if not 1 <= value < 1e15:
        raise Misconfigured(f"--max-bytes {text!r}: a size is right, such as 4096, 8kB or 2KiB")
    return int(value)


def words(text: str) -> tuple[str, ...]:
    """``mlp:8, mlp:16x16, tree:leaves=8`` → the words; a part without a family belongs to the word before it (``tree:leaves=8,depth=3``)."""
    found: list[str] = []
    for part in (p.strip() for p in re.split(r"[,;\s]+", text.strip()) if p.strip()):
        if ":" in part:
            found.append(part)
        elif found:
            found[-1] += f",{part}"
        else:
            raise Misconfigured(f"--sizes {text!r}: students are written as 'mlp:8, mlp:16x16, gru:16'")
    doubled = sorted({w for w in found if found.count(w) > 1})
    if not found or doubled:
        raise Misconfigured(f"--sizes {text!r}: " + (f"{doubled[0]} is there twice" if doubled else "name at least one student, such as mlp:16x16"))
    return tuple(found)


def cost(policy: Any, header: Mapping[str, Any], measured_as: str, needed: bool) -> dict[str, float]:
    """Parameters, bytes of its file, and (where a limit needs it) microseconds for one state."""
    found: dict[str, float] = {"parameters": policy.acting_parameters(), "bytes": len(artifact.dumps(header, policy.artifact_tensors()))}
    if needed:
        found["latency"] = latency(policy, measured_as)
    return found


def latency(policy: Any, measured_as: str, seconds: float = 0.05) -> float:
    """Microseconds for one state, the least of many calls."""
    if measured_as == "torch":
        return evaluation.latency_us(policy)
    with tempfile.TemporaryDirectory(prefix="distillrl-latency-") as folder:
        made = exporting.export(policy, measured_as, folder)
        found = importlib.util.spec_from_file_location("_measured", made.files[0])
        assert found is not None
        assert found.loader is not None
        module = importlib.util.module_from_spec(found)
        found.loader.exec_module(module)
        player = module.Policy()
        given = {name: np.zeros(g.shape, g.dtype) for name, g in policy.spec.observations.items()}
        obs = given if len(given) > 1 else next(iter(given.values()))
        best, until = float("inf"), time.perf_counter() + seconds
        while (began := time.perf_counter()) < until or best == float("inf"):
            player.act(obs)
            best = min(best, time.perf_counter() - began)
    return best * 1e6


def fitting(costs: Mapping[str, Mapping[str, float]], limits: Limits) -> dict[str, str]:
    """{word: why it is too large} of those that are; raises Misconfigured where all are."""
    over = {word: why for word, c in costs.items() if (why := limits.over(c))}
    if len(over) == len(costs):
        least = min(costs, key=lambda w: costs[w]["parameters"])
        raise Misconfigured(f"no size is within the limits; the smallest, {least}, has {over[least]}: allow more, or name smaller --sizes" + ("" if limits.latency is None else " (or --latency-of compiled)"))
    return over


