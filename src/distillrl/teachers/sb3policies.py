"""The networks of stable-baselines3's and sb3-contrib's policies, from their weights: a function for each family.

What each computes is SB3's (2.9.2) deterministic and stochastic behaviour; ``docs/teachers.md`` says how it was tested.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from distillrl.actions import HEADS
from distillrl.errors import Failed
from distillrl.teachers import pickles, sb3layers
from distillrl.teachers.extractors import Reorder, extractor
from distillrl.teachers.recurrence import Recurrent, lstm
from distillrl.teachers.sb3facts import Facts
from distillrl.teachers.sb3layers import Renorm, dense, stack, width_after

Activation = Callable[[], nn.Module]


@dataclass
class Parts:
    """What a students.networks.Network is made of."""

    body: list[nn.Module]
    out: nn.Module
    head: str
    log_std: Tensor | nn.Module | None = None
    sde: bool = False
    value: nn.Module | None = None
    quantiles: int = 0
    recurrent: nn.Module | None = None
    value_reads: str = "sense"
    missing: dict[str, str] = field(default_factory=dict)
    """Knowledge that it can't give, with the reason."""
    notes: list[str] = field(default_factory=list)


def build(facts: Facts) -> Parts:
    """The parts of a file's policy; raises Failed where its weights don't fit each other, Misconfigured for the user's own classes."""
    default = nn.Tanh if facts.family in {"actor_critic", "recurrent"} else nn.ReLU
    activation = facts.own_activation or sb3layers.activation(facts.kwargs.get("activation_fn"), default, facts.where)
    parts = _FAMILIES[facts.family](facts, activation)
    left = facts.weights.left(_SKIPPED)
    if left:
        raise Failed(f"{facts.where}: policy.pth has weights that a {facts.policy} has no use for: {pickles.shown(', '.join(left[:5]), 200)}")
    return parts


_SKIPPED = ("critic_target.", "actor_target.", "q_net_target.", "quantile_net_target.")


# ── PPO, A2C, TRPO, MaskablePPO ───────────────────────────────────────────────────────────────────────────────────


def _actor_critic(facts: Facts, activation: Activation) -> Parts:
    front, width = extractor(facts, ("pi_features_extractor.", "features_extractor."))
    parts = _policy_head(facts, front, width, activation)
    theirs, width = extractor(facts, ("vf_features_extractor.", "features_extractor."))
    parts.value = _value_net(facts, theirs, width, activation)
    if facts.algorithm == "MaskablePPO":
        parts.notes.append("it was trained with masks of legal actions: here all actions count as legal")
    return parts


def _policy_head(facts: Facts, front: list[nn.Module], width: int, activation: Activation) -> Parts:
    """From the features on: shared layers (SB3 before 1.8), policy layers, the action layer, the spread."""
    weights, kind = facts.weights, facts.action.action(facts.where).kind
    layers = stack(weights, "mlp_extractor.shared_net", width, activation)
    layers += stack(weights, "mlp_extractor.policy_net", width_after(layers, width), activation)
    width = width_after(layers, width)
    space = facts.action.action(facts.where)
    pairs = facts.algorithm == "MaskablePPO" and kind == "multibinary"  # two logits a switch, off and on
    out = weights.linear("action_net", width, space.size * (2 if pairs else 1))
    if pairs:
        out = dense(out.weight[1::2] - out.weight[0::2], out.bias[1::2] - out.bias[0::2])
    parts = Parts(_joined(front, layers), out, HEADS[kind])
    if kind == "box":
        squashed = facts.kwargs.get("squash_output") is True
        parts.head = "squashed" if squashed else "gaussian"
        _spread(facts, parts, "log_std", width, space.dimensions)
    return parts


def _value_net(facts: Facts, front: list[nn.Module], width: int, activation: Activation) -> nn.Module:
    layers = stack(facts.weights, "mlp_extractor.shared_net", width, activation)
    layers += stack(facts.weights, "mlp_extractor.value_net", width_after(layers, width), activation)
    return nn.Sequential(*_joined(front, layers), facts.weights.linear("value_net", width_after(layers, width), 1))


def _spread(facts: Facts, parts: Parts, name: str, width: int, dimensions: int) -> None:
    """log_std [A], or of gSDE [latent, A] or [latent, 1] (Raffin 2021), as SB3's ``get_std`` turns it into a deviation."""
    log_std = facts.weights.take(name)
    if log_std.dim() == 1 and len(log_std) == dimensions:
        parts.log_std = log_std
        return
    if log_std.dim() != 2 or log_std.shape[1] not in {1, dimensions}:
        raise Failed(f"{facts.where}: {name} is {list(log_std.shape)}, {[dimensions]} or {[width, dimensions]} is right")
    facts.weights.taken |= {n for n in facts.weights.tensors if "sde_features_extractor" in n}
    if log_std.shape[0] != width:
        parts.head = {"gaussian": "deterministic", "squashed": "tanh"}[parts.head]
        parts.missing["distribution"] = "its exploration noise reads a network of its own (sde_net_arch of old SB3), which is not read"
        return
    if facts.kwargs.get("use_expln") is True:
        above = (log_std.clamp(min=0) + 1e-6).log1p() + 1
        log_std = torch.where(log_std <= 0, log_std, above.log())
    parts.log_std, parts.sde = log_std.expand(width, dimensions).contiguous(), True


def _joined(front: list[nn.Module], layers: list[nn.Module]) -> list[nn.Module]:
    """Front and layers in one list; a reordering of the inputs is put into the Linear after it."""
    if front and isinstance(front[-1], Reorder) and layers and isinstance(layers[0], nn.Linear):
        return [*front[:-1], front[-1].into(layers[0]), *layers[1:]]
    return [*front, *layers]


# ── SAC, TQC, CrossQ; TD3, DDPG ───────────────────────────────────────────────────────────────────────────────────


class ActionValue(nn.Module):
    """The value of a state: its critics' opinion of the most likely action, [..., F] → [..., 1].

    ``actor`` gives the action in [-1, 1]. Several critics of one number: the least (Fujimoto 2018, eq. 10); critics of
    quantiles: the mean over all of them.
    """

    def __init__(self, actor: nn.Module, front: nn.Module, critics: list[nn.Module], quantiles: bool) -> None:
        super().__init__()
        self.actor, self.front, self.critics, self.quantiles = actor, front, nn.ModuleList(critics), quantiles

    def forward(self, x: Tensor) -> Tensor:
        """[..., F] → [..., 1]"""
        pair = torch.cat([self.front(x), self.actor(x)], -1)
        opinions = [critic(pair) for critic in self.critics]
        if self.quantiles:
            return torch.cat(opinions, -1).mean(-1, keepdim=True)
        return torch.cat(opinions, -1).amin(-1, keepdim=True)


def _squashed(facts: Facts, activation: Activation) -> Parts:
    weights, space = facts.weights, _bounded(facts)
    front, width = extractor(facts, ("actor.features_extractor.",))
    eps = _number(facts, "batch_norm_eps", 1e-3)
    layers = stack(weights, "actor.latent_pi", width, activation, eps=eps)
    width = width_after(layers, width)
    plain = "actor.mu.weight" in weights
    mean = weights.linear("actor.mu" if plain else "actor.mu.0", width, space.dimensions)
    parts = Parts([], mean, "squashed")
    if "actor.log_std" in weights:
        _spread(facts, parts, "actor.log_std", width, space.dimensions)
    else:
        parts.log_std = weights.linear("actor.log_std", width, space.dimensions)
        if layers and isinstance(layers[-1], Renorm):
            last = layers.pop()
            assert isinstance(last, Renorm)
            parts.out, parts.log_std = last.into(mean), last.into(parts.log_std)
    if not plain:
        clip = _number(facts, "clip_mean", 2.0)
        parts.out = nn.Sequential(parts.out, nn.Hardtanh(-clip, clip))
    parts.body = _joined(front, layers)
    _critics(facts, parts, activation, eps)
    return parts


def _tanh(facts: Facts, activation: Activation) -> Parts:
    weights, space = facts.weights, _bounded(facts)
    front, width = extractor(facts, ("actor.features_extractor.",))
    layers = stack(weights, "actor.mu", width, activation, open_end=True)
    if not layers or not isinstance(layers[-1], nn.Linear) or layers[-1].out_features != space.dimensions:
        raise Failed(f"{facts.where}: actor.mu gives {width_after(layers, width)} numbers, the action has {space.dimensions}")
    body = _joined(front, layers)
    parts = Parts(body[:-1], body[-1], "tanh", missing={"distribution": f"{facts.algorithm} is deterministic"})
    _critics(facts, parts, activation, 1e-3)
    return parts


def _critics(facts: Facts, parts: Parts, activation: Activation, eps: float) -> None:
    """Read critic.qf0, critic.qf1, … (in sb3-contrib before 1.? TQC had the same names)."""
    front, width = extractor(facts, ("critic.features_extractor.", "actor.features_extractor."))
    actions = facts.action.action(facts.where).dimensions
    critics: list[nn.Module] = []
    while facts.weights.any(f"critic.qf{len(critics)}."):
        critics.append(nn.Sequential(*stack(facts.weights, f"critic.qf{len(critics)}", width + actions, activation, open_end=True, eps=eps)))
    if not critics:
        parts.missing["value"] = "the file has no critic"
        return
    sizes = {width_after(list(c.children()), width + actions) for c in critics}
    if len(sizes) != 1:
        raise Failed(f"{facts.where}: its critics give different numbers of values ({sorted(sizes)})")
    actor = nn.Sequential(*parts.body, parts.out, nn.Tanh())
    parts.value = ActionValue(actor, nn.Sequential(*front), critics, facts.algorithm == "TQC")


def _bounded(facts: Facts) -> Any:
    space = facts.action.action(facts.where)
    if space.kind != "box" or not all(math.isfinite(v) for v in space.low + space.high):
        raise Failed(f"{facts.where}: a {facts.algorithm} policy chooses in a Box with bounds, the file has {space}")
    return space


def _number(facts: Facts, key: str, default: float) -> float:
    value = facts.kwargs.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
        raise Failed(f"{facts.where}: {key} in policy_kwargs is {str(value)[:40]}, a number is right")
    return float(value)


# ── DQN, QR-DQN ───────────────────────────────────────────────────────────────────────────────────────────────────


def _greedy(facts: Facts, activation: Activation) -> Parts:
    space = facts.action.action(facts.where)
    if space.kind != "discrete":
        raise Failed(f"{facts.where}: a {facts.algorithm} policy chooses one of several actions, the file has {space}")
    name = "quantile_net" if facts.algorithm == "QR-DQN" else "q_net"
    front, width = extractor(facts, (f"{name}.features_extractor.", "features_extractor."))
    layers = stack(facts.weights, f"{name}.{name}", width, activation, open_end=True)
    if not layers or not isinstance(layers[-1], nn.Linear) or layers[-1].out_features % space.n:
        raise Failed(f"{facts.where}: {name} gives {width_after(layers, width)} numbers, which is no multiple of its {space.n} actions")
    body = _joined(front, layers)
    quantiles = layers[-1].out_features // space.n if facts.algorithm == "QR-DQN" else 0
    if not quantiles and layers[-1].out_features != space.n:
        raise Failed(f"{facts.where}: {name} gives {layers[-1].out_features} numbers, {space.n} are right")
    return Parts(body[:-1], body[-1], "greedy", quantiles=quantiles, missing={"distribution": f"{facts.algorithm} is greedy: it has values of actions (q), no probabilities"})


# ── ARS ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _ars(facts: Facts, activation: Activation) -> Parts:
    """Linear (Mania 2018) or an MLP; tanh at the end by default for the MLP, and only where it is asked for, for the linear one."""
    weights, space = facts.weights, facts.action.action(facts.where)
    front, width = extractor(facts, ("features_extractor.",))
    if "action_net.weight" in weights:  # sb3-contrib before 1.? had no index in the linear policy
        layers: list[nn.Module] = [weights.linear("action_net", width)]
    else:
        layers = stack(weights, "action_net", width, activation, open_end=True)
    if not layers or not isinstance(layers[-1], nn.Linear) or layers[-1].out_features != space.size:
        raise Failed(f"{facts.where}: action_net gives {width_after(layers, width)} numbers, {space.size} are right for {space}")
    body = _joined(front, layers)
    missing = {"distribution": "ARS is deterministic", "value": "ARS has no critic"}
    if space.kind == "discrete":
        return Parts(body[:-1], body[-1], "scores", missing=missing)
    squashed = facts.kwargs.get("squash_output", not facts.policy.endswith("ARSLinearPolicy"))
    return Parts(body[:-1], body[-1], "tanh" if squashed else "deterministic", missing=missing)


# ── RecurrentPPO ──────────────────────────────────────────────────────────────────────────────────────────────────


def _recurrent(facts: Facts, activation: Activation) -> Parts:
    """An LSTM between features and policy layers; the critic has its own, reads the actor's, or has a Linear instead."""
    weights = facts.weights
    front, width = extractor(facts, ("pi_features_extractor.", "features_extractor."))
    memory = lstm(weights, "lstm_actor", width)
    parts = _policy_head(facts, [], memory.hidden_size, activation)
    parts.recurrent = Recurrent(front, memory)
    theirs, width = extractor(facts, ("vf_features_extractor.", "features_extractor."))
    if weights.any("lstm_critic."):
        critic = lstm(weights, "lstm_critic", width)
        parts.value = Recurrent(theirs, critic, [_value_net(facts, [], critic.hidden_size, activation)])
    elif "critic.weight" in weights:
        parts.value = nn.Sequential(*_joined(theirs, [weights.linear("critic", width)]), _value_net(facts, [], memory.hidden_size, activation))
    else:
        parts.value, parts.value_reads = _value_net(facts, [], memory.hidden_size, activation), "recurrent"
    return parts


_FAMILIES: dict[str, Callable[[Facts, Activation], Parts]] = {
    "actor_critic": _actor_critic,
    "recurrent": _recurrent,
    "squashed": _squashed,
    "tanh": _tanh,
    "greedy": _greedy,
    "ars": _ars,
}
