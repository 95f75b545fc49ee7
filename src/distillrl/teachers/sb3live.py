"""A loaded stable-baselines3 model: saved into memory and read back like a file, so that both ways are the same policy.

A model with classes of the user's own can't be read like that: its own policy is asked then, as a black box.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from distillrl.actions import Action, Bernoulli, Categorical, Deterministic, Gaussian, Head, MultiCategorical
from distillrl.errors import Misconfigured
from distillrl.policies import ACTION, Memory
from distillrl.records import Prediction, Spec
from distillrl.senses import Sense
from distillrl.spaces import spec_of
from distillrl.teachers import Options, normalisers, sb3, sb3facts, sb3policies
from distillrl.teachers.normalisers import Normaliser


def load(model: Any, options: Options) -> Any:
    """The policy of a model, with the VecNormalize around its environment."""
    normaliser = None if options.vecnormalize == "none" else _normaliser(model)
    buffer = io.BytesIO()
    model.save(buffer, exclude=["replay_buffer", "rollout_buffer", "ep_info_buffer", "_last_obs", "_last_original_obs"])
    try:
        facts = sb3facts.read(buffer.getvalue(), f"the {type(model).__name__} model", options.model)
        return sb3.assemble(facts, sb3policies.build(facts), normaliser, "its environment's VecNormalize", options.sees)
    except Misconfigured as error:
        return _asked(model, normaliser, str(error))


def _normaliser(model: Any) -> Normaliser | None:
    wrapper = model.get_vec_normalize_env()
    if wrapper is None:
        return None
    if not wrapper.norm_obs:
        return Normaliser({}, wrapper.clip_obs, wrapper.epsilon, 0.0)
    statistics = wrapper.obs_rms if isinstance(wrapper.obs_rms, dict) else {"": wrapper.obs_rms}
    return normalisers.Normaliser({k: (s.mean, s.var) for k, s in statistics.items()}, wrapper.clip_obs, wrapper.epsilon, float(next(iter(statistics.values())).count))


# ── a model whose classes are the user's own ──────────────────────────────────────────────────────────────────────


@dataclass
class Asked:
    """A policy that asks SB3's own policy object: get_distribution and predict_values, or its deterministic action."""

    spec: Spec
    sense: Sense
    policy: Any
    info: dict[str, Any]

    @property
    def gives(self) -> frozenset[str]:
        """What it can be asked for."""
        known = {"action"} | ({"distribution"} if hasattr(self.policy, "get_distribution") else set())
        return frozenset(known | ({"value"} if hasattr(self.policy, "predict_values") else set()))

    def init(self, n: int) -> Memory:
        """The sense's."""
        return self.sense.init(n)

    def act(self, obs: Mapping[str, Tensor], memory: Memory, starts: Tensor | None, wants: frozenset[str] = ACTION) -> tuple[Prediction, Memory]:
        """See policies.Policy; [n] states, or [T, n] which are joined."""
        groups, memory = self.sense(obs, memory, starts)
        first = next(iter(groups))
        lead = groups[first].shape[: groups[first].dim() - len(self.sense.groups[first].shape)]
        flat = {k: v.reshape(-1, *self.sense.groups[k].shape) for k, v in groups.items()}
        given = flat[first] if len(flat) == 1 else flat
        training = self.policy.training
        self.policy.set_training_mode(False)
        with torch.no_grad():
            head = Head.of("deterministic", self.spec.action)
            if hasattr(self.policy, "get_distribution"):
                action = _action(self.policy.get_distribution(given), head)
            else:
                action = _played(self.policy, self.policy._predict(given, deterministic=True), head)
            value = self.policy.predict_values(given).reshape(-1) if "value" in wants and hasattr(self.policy, "predict_values") else None
        self.policy.set_training_mode(training)
        prediction = Prediction(action, value=value)
        if len(lead) != 1:
            from distillrl.records import over_states

            prediction = over_states(lambda x: x.reshape(*lead, *x.shape[1:]), prediction)
        return prediction, memory

    def acting_parameters(self) -> int:
        """All parameters: which of them act isn't known from outside."""
        return sum(p.numel() for p in self.policy.parameters())


def _asked(model: Any, normaliser: Normaliser | None, why: str) -> Asked:
    if not isinstance(model.policy, nn.Module) or hasattr(model.policy, "lstm_actor"):
        raise Misconfigured(why)
    spec = spec_of(model.observation_space, model.action_space)
    steps = [normaliser.step(list(spec.observations))] if normaliser is not None and normaliser.moments else []
    layers = [type(m).__name__ for m in model.policy.modules() if not list(m.children())]
    info = {
        "format": "stable-baselines3 model in memory", "algorithm": type(model).__name__, "policy_class": type(model.policy).__name__, "saved_by": None, "layers": layers[:64],
        "activation": None, "normaliser": "none found" if normaliser is None else f"{normaliser} (its environment's VecNormalize)",
        "observation_space": str(model.observation_space), "action_space": str(model.action_space), "environment": None,
        "notes": [f"its own code is asked, as {why}"],
    }  # fmt: skip
    made = Asked(spec, Sense(spec.observations, steps), model.policy, info)
    made.info |= {"gives": sorted(made.gives), "parameters": made.acting_parameters()}
    made.info["missing"] = {k: "its own code is asked, which doesn't tell it" for k in ("distribution", "q", "quantiles", "value", "uncertainty") if k not in made.gives}
    return made


def _action(given: Any, head: Head) -> Action:
    """SB3's distribution object as an action record."""
    inner = given.distribution
    if isinstance(inner, list):
        return MultiCategorical(torch.cat([d.logits for d in inner], -1), head.space.nvec)
    if isinstance(inner, torch.distributions.Categorical):
        return Categorical(inner.logits)
    if isinstance(inner, torch.distributions.Bernoulli):
        return Bernoulli(inner.logits)
    squashed = getattr(given, "bijector", None) is not None
    return Gaussian(inner.mean.reshape(len(inner.mean), -1), inner.stddev.reshape(len(inner.mean), -1).log(), head.low, head.high, squashed)


def _played(policy: Any, action: Tensor, head: Head) -> Action:
    if head.space.kind != "box":
        return Deterministic(action.long())
    flat = action.reshape(len(action), -1)
    if policy.squash_output:
        flat = head.low + (flat + 1) * 0.5 * (head.high - head.low)
    return Deterministic(flat, head.low, head.high)
