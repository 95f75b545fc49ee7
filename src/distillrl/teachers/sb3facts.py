"""What an SB3 zip says of itself: algorithm, policy class, spaces, options; read from its JSON, nothing unpickled."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distillrl.errors import Failed, Misconfigured
from distillrl.teachers import owncode, pickles, spaces, tensorfiles
from distillrl.teachers.archives import Archive, read_json
from distillrl.teachers.pickles import Global, Made
from distillrl.teachers.sb3layers import Weights, said
from distillrl.teachers.spaces import Space

MAX_DATA, MAX_POLICY = 16 << 20, 2 << 30

FAMILIES: dict[str, tuple[str, frozenset[str]]] = {
    "stable_baselines3.common.policies": ("actor_critic", frozenset({"ActorCriticPolicy", "ActorCriticCnnPolicy", "MultiInputActorCriticPolicy"})),
    "stable_baselines3.ppo.policies": ("actor_critic", frozenset({"PPOPolicy", "CnnPolicy"})),
    "stable_baselines3.a2c.policies": ("actor_critic", frozenset({"A2CPolicy", "CnnPolicy"})),
    "sb3_contrib.common.maskable.policies": (
        "actor_critic",
        frozenset({"MaskableActorCriticPolicy", "MaskableActorCriticCnnPolicy", "MaskableMultiInputActorCriticPolicy"}),
    ),
    "sb3_contrib.common.recurrent.policies": (
        "recurrent",
        frozenset({"RecurrentActorCriticPolicy", "RecurrentActorCriticCnnPolicy", "RecurrentMultiInputActorCriticPolicy"}),
    ),
    "stable_baselines3.sac.policies": ("squashed", frozenset({"SACPolicy", "CnnPolicy", "MultiInputPolicy"})),
    "sb3_contrib.tqc.policies": ("squashed", frozenset({"TQCPolicy", "CnnPolicy", "MultiInputPolicy"})),
    "sb3_contrib.crossq.policies": ("squashed", frozenset({"CrossQPolicy", "CnnPolicy", "MultiInputPolicy"})),
    "stable_baselines3.td3.policies": ("tanh", frozenset({"TD3Policy", "CnnPolicy", "MultiInputPolicy"})),
    "stable_baselines3.dqn.policies": ("greedy", frozenset({"DQNPolicy", "CnnPolicy", "MultiInputPolicy"})),
    "sb3_contrib.qrdqn.policies": ("greedy", frozenset({"QRDQNPolicy", "CnnPolicy", "MultiInputPolicy"})),
    "sb3_contrib.ars.policies": ("ars", frozenset({"ARSPolicy", "ARSLinearPolicy"})),
}
"""Module of the policy class → how it is converted, and the classes whose forward pass is known."""

_ALGORITHMS = {
    "stable_baselines3.sac": "SAC", "sb3_contrib.tqc": "TQC", "sb3_contrib.crossq": "CrossQ", "stable_baselines3.dqn": "DQN", "sb3_contrib.qrdqn": "QR-DQN",
    "sb3_contrib.ars": "ARS", "sb3_contrib.common.maskable": "MaskablePPO", "sb3_contrib.common.recurrent": "RecurrentPPO",
}  # fmt: skip


@dataclass(frozen=True)
class Facts:
    """All of a file that is needed to make its policy."""

    where: str
    family: str
    algorithm: str
    policy: str
    """The policy class's full name."""
    version: str
    observation: Space
    action: Space
    kwargs: Mapping[str, Any]
    """policy_kwargs: plain where they are JSON, else an inert tree's entries."""
    data: Mapping[str, Any]
    weights: Weights
    own_activation: Any = None
    """The user's classes, from --model."""
    own_extractor: Any = None


def read(source: Path | bytes, path: str, model: str | None = None) -> Facts:
    """The facts of a zip, named ``path`` in errors; ``model`` names classes of the user's own.

    Raises Failed where it is damaged or hostile, Misconfigured where only the user's own code can read it.
    """
    archive = Archive(source, path)
    data = read_json(archive.read("data", MAX_DATA), f"{path}: data")
    if not isinstance(data, dict):
        raise Failed(f"{path}: data is damaged: it is no JSON object")
    module, name = _policy_class(data.get("policy_class"), path)
    family, classes = FAMILIES.get(module, ("", frozenset()))
    if name not in classes:
        raise Misconfigured(
            f"{path}: its policy is {module}.{name}, a class that is neither stable-baselines3's nor sb3-contrib's: what it does with its weights is known to its own"
            " code alone; load it with that code and give the loaded model from Python: distillrl.distill(model, env)"
        )
    kwargs = _options(data.get("policy_kwargs"), f"{path}: policy_kwargs")
    tensors = tensorfiles.state_dict(archive.read("policy.pth", MAX_POLICY), f"{path}: policy.pth")
    activation, extractor = owncode.sb3_classes(model)
    version = archive.read("_stable_baselines3_version", 200).decode(errors="replace").strip() if "_stable_baselines3_version" in archive else "before 1.0"
    return Facts(
        path,
        family,
        _algorithm(module, data, tensors),
        f"{module}.{name}",
        re.sub(r"[^\w.+ ]", "", version)[:40],
        spaces.of_json(data.get("observation_space"), f"{path}: observation_space"),
        spaces.of_json(data.get("action_space"), f"{path}: action_space"),
        kwargs,
        data,
        Weights(tensors, f"{path}: policy.pth"),
        activation,
        extractor,
    )


def _policy_class(entry: Any, where: str) -> tuple[str, str]:
    """(module, name) of the policy's class, as its pickle names it; a class that is pickled by value is the user's own."""
    if not isinstance(entry, Mapping):
        raise Failed(f"{where} is no file of stable-baselines3: it names no policy class")
    module = pickles.shown(entry.get("__module__", "?"))
    tree = spaces.serialized(entry, f"{where}: policy_class")
    if isinstance(tree, Global):
        return pickles.shown(tree.module), pickles.shown(tree.name)
    return module, said(tree)


def _options(entry: Any, where: str) -> Mapping[str, Any]:
    if entry is None:
        return {}
    if isinstance(entry, Mapping) and ":serialized:" in entry:
        found = pickles.entries(spaces.serialized(entry, where))
    else:
        found = pickles.entries(entry)
    if found is None:
        raise Failed(f"{where} are damaged")
    return {str(k): v for k, v in found.items()}


def _algorithm(module: str, data: Mapping[str, Any], tensors: Mapping[str, Any]) -> str:
    for start, name in _ALGORITHMS.items():
        if module.startswith(start):
            return name
    if module.startswith("stable_baselines3.td3"):
        return "TD3" if "critic.qf1.0.weight" in tensors else "DDPG"
    if "cg_max_steps" in data:
        return "TRPO"
    return "PPO" if "clip_range" in data else "A2C"


def training_return(facts: Facts) -> dict[str, Any] | None:
    """{mean, std, episodes, source} of the last training episodes that the file remembers (explored, so rather low); else None."""
    try:
        tree = spaces.serialized(facts.data.get("ep_info_buffer"), facts.where)
    except Failed:
        return None
    items = [pickles.entries(e) for e in tree.items[:1000]] if isinstance(tree, Made) else []
    returns = [float(v) for e in items if e is not None and isinstance(v := _plain_number(e.get("r")), float)]
    if len(returns) < 10:
        return None
    mean = sum(returns) / len(returns)
    spread = (sum((r - mean) ** 2 for r in returns) / len(returns)) ** 0.5
    return {"mean": mean, "std": spread, "episodes": len(returns), "source": "the file (its last training episodes, explored)"}


def _plain_number(value: Any) -> float | None:
    try:
        number = float(pickles.array(value, "").reshape(-1)[0])
    except (Failed, IndexError):
        return None
    return number if math.isfinite(number) else None
