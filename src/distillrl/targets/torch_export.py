"""torch: torch.export's file (.pt2), which takes any layer that torch has, and whose batch is dynamic."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distillrl.errors import Misconfigured
from distillrl.policies import Policy

Groups = dict[str, Tensor]


class Acting(nn.Module):
    """A policy as ``forward(obs, memory, starts) → (action, memory)``: its most likely action [n] or [n, A], discrete ones counted from 0 plus start."""

    def __init__(self, policy: Any) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, obs: Groups, memory: Groups, starts: Tensor) -> tuple[Tensor, Tensor, Groups]:
        """{group: [n, ...]}, {name: [n, ...]}, [n] bool → the action, what it was decided from, and the memory."""
        prediction, after = self.policy.act(obs, memory, starts)
        action = prediction.action.mode
        space = self.policy.spec.action
        raw = next((v for v in (getattr(prediction.action, k, None) for k in ("logits", "mean")) if v is not None), prediction.q)
        if space.kind == "box":
            low, high = (torch.tensor(v, dtype=torch.float32) for v in (space.low, space.high))
            action = action.clamp(low, high)
        return action + space.start, action.float().clone() if raw is None else raw, dict(after)


def write(policy: Policy, passport: Mapping[str, Any], folder: Path, name: str) -> tuple[list[Path], dict[str, Any]]:
    """Write NAME.pt2; raises Misconfigured where it isn't a torch policy, or torch.export can't follow it."""
    if not isinstance(policy, nn.Module):
        raise Misconfigured(f"export --to torch: this policy ({type(policy).__name__}) is no torch module; a student distilled from it goes to every target")
    policy = policy.eval()
    program = exported(policy)
    path = folder / f"{name}.pt2"
    whole = io.BytesIO()  # torch's own writer ends the process where the disk is full
    torch.export.save(program, whole, extra_files={"passport.json": json.dumps(passport, sort_keys=True)})
    path.write_bytes(whole.getbuffer())
    return [path], {"torch": torch.__version__}


def exported(policy: Any) -> Any:
    """The torch.export.ExportedProgram, its batch dynamic."""
    obs = {k: torch.zeros(3, *g.shape, dtype=getattr(torch, g.dtype)) for k, g in policy.spec.observations.items()}
    memory = policy.init(3)
    starts = torch.zeros(3, dtype=torch.bool)
    rows = torch.export.Dim("batch", min=1)
    shapes = ({k: {0: rows} for k in obs}, {k: {0: rows} for k in memory}, {0: rows})
    try:
        with torch.no_grad():
            return torch.export.export(Acting(policy), (obs, memory, starts), dynamic_shapes=shapes)
    except Exception as error:  # torch.export raises many kinds, none documented
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise Misconfigured(f"export --to torch: torch.export can't follow this policy ({type(error).__name__}: {first[:200]})") from None
