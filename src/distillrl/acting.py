"""Acting, tick after tick: the numbers of a small plain network by numpy, where a call of torch costs more than what it computes.

Between two calls an environment's step has driven torch's code out of the processor's caches, so that each kind of operation costs
about 10 µs anew: the 16×16 student of 16 slots takes 85 µs by torch here and 30 by numpy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distillrl.normalising import UNCLIPPED, Normalise
from distillrl.policies import ACTION, Memory, Policy
from distillrl.records import Prediction
from distillrl.students.networks import Network

Act = Callable[[Mapping[str, Tensor], Memory, Tensor | None], tuple[Prediction, Memory]]
Pick = Callable[[Mapping[str, Tensor], np.ndarray | None], np.ndarray]
LARGEST = 1 << 17
"""Multiply-adds of a layer above which torch is as soon, and numpy's BLAS would wake threads that stall a small call."""


def acting(policy: Policy) -> Act:
    """``policy.act`` for the action alone, without gradients; for as long as no layer of it is put in another's place.

    What a parameter holds may change meanwhile: numpy looks at the same memory.
    """
    plain = _plain(policy)
    if plain is None:
        return partial(policy.act, wants=ACTION)
    head, log_std, torchs = policy.head, policy.log_std, policy.act  # type: ignore[attr-defined]  # a Network

    def act(obs: Mapping[str, Tensor], memory: Memory, starts: Tensor | None) -> tuple[Prediction, Memory]:
        if len(obs[plain.name]) > plain.most:
            found: tuple[Prediction, Memory] = torchs(obs, memory, starts)
            return found
        return Prediction(head.decode(torch.from_numpy(plain(obs)), log_std)), memory

    return act


def picking(policy: Policy, n: int) -> Pick | None:
    """(observations, Gumbel noise [n, A] or None) → the action [n] int64 of a student of discrete actions, a sample or the most likely one.

    It is what ``acting`` gives, without its records, which cost as much as the numbers do; None where the student is no such network or n states are too many.
    """
    plain = _plain(policy)
    if plain is None or n > plain.most or policy.head.kind != "categorical":  # type: ignore[attr-defined]  # a Network
        return None

    def pick(obs: Mapping[str, Tensor], noise: np.ndarray | None) -> np.ndarray:
        scores = plain(obs)
        return (scores if noise is None else scores + noise).argmax(-1)

    return pick


@dataclass(frozen=True)
class Plain:
    """A small plain network's numbers by numpy: observations → [n, out] float32."""

    name: str
    """The group that it reads."""
    before: tuple[np.ndarray, np.ndarray, np.float32] | None
    """Its normaliser's scale, shift and clip."""
    layers: list[Any]
    """(weight [in, out], bias, activation) each."""
    most: int
    """States for which numpy is sooner than torch."""

    def __call__(self, obs: Mapping[str, Tensor]) -> np.ndarray:
        """Its last layer's numbers [n, out], of arrays of its own."""
        x = obs[self.name].numpy()
        if self.before is not None:
            scale, shift, clip = self.before
            x = x * scale
            x += shift
            if clip < UNCLIPPED:
                np.maximum(x, -clip, out=x)
                np.minimum(x, clip, out=x)
        for weight, bias, activate in self.layers:
            x = x @ weight
            if bias is not None:
                x += bias
            if activate is not None:
                activate(x)
        return x


def _plain(policy: Any) -> Plain | None:
    """None where the policy is anything but a normaliser and layers."""
    if type(policy) is not Network or policy.remembering or policy.quantiles or policy.log_std_layer is not None or policy.sde or policy.spec.tasks:
        return None
    if policy.out is None or any(p.device.type != "cpu" or p.dtype != torch.float32 for p in policy.parameters()):
        return None
    groups, steps = policy.sense.observations, list(policy.sense.steps)
    name, group = next(iter(groups.items()))
    if len(groups) > 1 or len(group.shape) != 1 or group.dtype != "float32" or len(steps) > 1:
        return None
    before = None
    if steps:
        step = steps[0]
        if type(step) is not Normalise or list(step.shapes) != [name] or step.dtype != "float32":
            return None
        before = (step.get_buffer("scale0").numpy(), step.get_buffer("shift0").numpy(), np.float32(step.clip))
    layers = _layers([policy.body, policy.out])
    return Plain(name, before, layers, LARGEST // max(weight.size for weight, _, _ in layers)) if layers else None


def _layers(modules: list[nn.Module]) -> list[Any] | None:
    """Linear layers, each with the activation after it; None where there is something else."""
    layers: list[Any] = []
    for module in _flat(modules):
        kind = type(module)
        if module._forward_hooks or module._forward_pre_hooks:
            return None
        if isinstance(module, nn.Linear) and kind is nn.Linear:
            bias = module.bias
            layers.append((module.weight.detach().numpy().T, None if bias is None else bias.detach().numpy(), None))
        elif kind in _ACTIVATIONS and layers and layers[-1][2] is None:
            layers[-1] = (*layers[-1][:2], _ACTIVATIONS[kind])
        else:
            return None
    return layers


def _flat(modules: list[nn.Module]) -> list[nn.Module]:
    return [part for module in modules for part in (_flat(list(module)) if isinstance(module, nn.Sequential) else [module])]


def _tanh(x: np.ndarray) -> None:
    np.tanh(x, out=x)


def _relu(x: np.ndarray) -> None:
    np.maximum(x, 0, out=x)


_ACTIVATIONS: dict[type[nn.Module], Callable[[np.ndarray], None]] = {nn.Tanh: _tanh, nn.ReLU: _relu}
