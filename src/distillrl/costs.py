"""What a policy takes to run: multiply-adds and the time for one state and for many, on this machine and one thread."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from distillrl.acting import acting
from distillrl.policies import ACTION, Policy, played, to_environment

BATCHES = (1, 64, 1024)


def measure(policy: Policy, seconds: float = 0.05) -> dict[str, Any]:
    """Plain data: ``multiply_adds`` of one state (null where none are seen) and ``latency_us`` {batch: {min, p50, p99, calls}}.

    A call is observation in, action out, as an environment takes it; ``seconds`` are spent on each batch size, the first
    calls not counted. The observations are zeros.
    """
    return {"multiply_adds": multiply_adds(policy), "latency_us": {str(n): _latency(policy, n, seconds) for n in BATCHES}}


def multiply_adds(policy: Policy) -> int | None:
    """Of matrix products and convolutions for the action of one state, a fused multiply-add counted once."""
    counter = _Counter()
    with torch.inference_mode(False), torch.no_grad(), counter:
        policy.act(_zeros(policy, 1), policy.init(1), torch.ones(1, dtype=torch.bool), ACTION)
    return counter.flops // 2 or None


class _Counter(TorchDispatchMode):
    """Sums torch's own formulas over what is called; as FlopCounterMode, which takes a second to import decompositions that no policy needs."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=out)
        return out


def _latency(policy: Policy, n: int, seconds: float) -> dict[str, float]:
    obs, memory, starts = _zeros(policy, n), policy.init(n), torch.zeros(n, dtype=torch.bool)
    act = acting(policy)
    taken: list[float] = []
    until = time.perf_counter() + seconds
    with torch.inference_mode():
        while time.perf_counter() < until or len(taken) < 8:
            began = time.perf_counter()
            prediction, _ = act(obs, memory, starts)
            to_environment(played(prediction, sampled=False), policy.spec)
            taken.append((time.perf_counter() - began) * 1e6)
    kept = np.array(taken[max(3, len(taken) // 10) :])
    low, middle, high = np.quantile(kept, [0.0, 0.5, 0.99])
    return {"min": round(float(low), 2), "p50": round(float(middle), 2), "p99": round(float(high), 2), "calls": len(kept)}


def _zeros(policy: Policy, n: int) -> dict[str, torch.Tensor]:
    return {k: torch.zeros(n, *g.shape, dtype=getattr(torch, g.dtype, torch.float32)) for k, g in policy.spec.observations.items()}
