"""What the tests of teacher formats share: a recorded file is loaded and compared with what its own library said."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distillrl.records import ActionSpace, Group, Spec
from distillrl.teachers import Options, load

DATA = Path(__file__).parent / "data" / "formats"
BOUNDS = {"sbx": (-2.0, 3.0), "d3rlpy_sac": (-2.0, 3.0), "d3rlpy": (-1.0, 1.0), "brax": (-1.0, 1.0), "tianshou": (-math.inf, math.inf), "rl_games": (-math.inf, math.inf), "rllib": (-1.0, 1.0)}
"""Bounds of the environment that a folder's teacher was made for; elsewhere ±100, so that nothing is clipped."""


def environment(folder: Path) -> Spec:
    """The environment's spec of a recorded folder."""
    about, expected = json.loads((folder / "about.json").read_text()), np.load(folder / "expected.npz")
    state = expected["obs"].shape[2:] if "starts" in expected else expected["obs"].shape[1:]
    groups = {"obs": Group(tuple(state), "float32")}
    if "command" in expected:
        groups["command"] = Group(tuple(expected["command"].shape[1:]), "float32")
    if about["action"] != "box":
        return Spec(groups, ActionSpace("discrete", n=4))
    low, high = about.get("bounds") or next((b for name, b in sorted(BOUNDS.items(), reverse=True) if folder.name.startswith(name)), (-100.0, 100.0))
    actions = 3
    return Spec(groups, ActionSpace("box", (actions,), low=(low,) * actions, high=(high,) * actions, dtype="float32"))


def files(folder: Path) -> list[Path]:
    """The teacher's files of a folder."""
    return [p for p in sorted(folder.iterdir()) if p.name not in {"about.json", "expected.npz"} and p.suffix != ".data"]


def answers(folder: Path, file: Path | None = None, **options: Any) -> dict[str, float]:
    """The greatest difference from each recorded array that the policy has a word for."""
    expected = np.load(folder / "expected.npz")
    about = json.loads((folder / "about.json").read_text())
    if "activation" in about and about.get("format"):
        options.setdefault("format", f"{about['format']}:{about['activation']}")
    options = {**about.get("options", {}), **options}
    policy = load(file or files(folder)[0], Options(**options), environment(folder))
    steps = range(len(expected["obs"])) if "starts" in expected else [None]
    memory = policy.init(expected["obs"].shape[1] if "starts" in expected else len(expected["obs"]))
    said = []
    with torch.inference_mode():
        for t in steps:
            obs = {name: torch.as_tensor(expected[name] if t is None else expected[name][t]).float() for name in policy.spec.observations if name in expected}
            starts = None if t is None else torch.as_tensor(expected["starts"][t])
            prediction, memory = policy.act(obs, memory, starts, frozenset({"action", "value", "q"}))
            said.append(prediction)
    return {name: _gap(name, torch.as_tensor(expected[name]), said, "starts" in expected) for name in expected.files if name in SAYS}


def _gap(name: str, theirs: Tensor, said: list[Any], in_time: bool) -> float:
    ours = torch.stack([SAYS[name](p) for p in said]) if in_time else SAYS[name](said[0])
    if name == "logits":
        theirs = torch.log_softmax(theirs.float(), -1)
    if name in {"raw", "action_dist_inputs"} and hasattr(said[0].action, "logits"):
        theirs = torch.log_softmax(theirs.float(), -1)
    if name == "log_std":
        theirs = theirs.float().expand(ours.shape)
    assert ours.numel() == theirs.numel(), (name, ours.shape, theirs.shape)
    return float((ours.double() - theirs.double().reshape(ours.shape)).abs().max())


def _raw(prediction: Any) -> Tensor:
    action = prediction.action
    return action.log_probs if hasattr(action, "logits") else torch.cat([action.mean, action.log_std], -1)


SAYS = {
    "actions": lambda p: p.action.mode.float(), "value": lambda p: p.value, "q": lambda p: p.q, "logits": lambda p: p.action.log_probs,
    "probabilities": lambda p: p.action.log_probs.exp(), "log_std": lambda p: p.action.log_std, "raw": _raw, "action_dist_inputs": _raw,
}  # fmt: skip
"""What a policy says of each recorded array."""
