"""Which of an environment's groups a network sees, and what its outputs mean, found from names and shapes.

Files of plain networks name neither the environment nor its spaces. With a Spec of the environment at hand the fit is
decided by it; without one, spaces are made that suit the network (an action without bounds).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from distillrl.errors import Misconfigured, nearest
from distillrl.policies import flatten
from distillrl.records import ActionSpace, Group, Spec

Shapes = Mapping[str, tuple[tuple[int, ...], torch.dtype]]
ACTION_NAMES = (
    "deterministic_continuous_actions", "deterministic_discrete_actions", "continuous_actions", "discrete_actions", "actions", "action", "mu", "mean",
    "action_mean", "mode", "logits", "action_logits", "logit", "q_values", "qvalues", "q", "probs", "probabilities", "output", "policy", "pi", "out",
)  # fmt: skip
VALUE_NAMES = frozenset({"value", "values", "v", "vf", "critic", "state_value", "value_pred"})
Q_NAMES = frozenset({"q", "q_values", "qvalues", "q_value", "qs"})
PROBABILITY_NAMES = frozenset({"probs", "probabilities", "action_probs", "action_probabilities"})
LOGIT_NAMES = frozenset({"logits", "action_logits", "logit"})
LOG_STD_NAMES = frozenset({"log_std", "logstd", "log_sigma", "log_stds"})
STD_NAMES = frozenset({"std", "sigma", "stddev", "scale", "stds"})
DTYPE_NAMES: dict[torch.dtype, str] = {getattr(torch, n): n for n in ("float16", "float32", "float64", "uint8", "int8", "int16", "int32", "int64", "bool")}


@dataclass(frozen=True)
class Seen:
    """What each input of the network is made of: groups of the environment, flattened and joined where several."""

    sources: Mapping[str, tuple[str, ...]]
    observations: Mapping[str, Group]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reading:
    """What the outputs mean: the action's head (actions.Head kinds, or ``index`` for an action number), and the rest."""

    action: str
    kind: str
    space: ActionSpace
    spread: str | None = None
    """The output that holds the (log) standard deviation."""
    spread_is_log: bool = True
    split: bool = False
    """The action output is mean and log_std side by side."""
    value: str | None = None
    q: str | None = None
    notes: tuple[str, ...] = ()


def input_tensor(obs: Mapping[str, Tensor], groups: tuple[str, ...], described: Mapping[str, Group], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """The network's input [N, *shape] from observation groups [N, ...]."""
    if len(groups) == 1:
        x = obs[groups[0]]
        if tuple(x.shape[1:]) != shape:
            x = x.reshape(x.shape[0], *shape)
    else:
        x = flatten({g: obs[g] for g in groups}, {g: described[g] for g in groups}).reshape(-1, *shape)
    return x if x.dtype == dtype else x.to(dtype)


def see(inputs: Shapes, spec: Spec | None, sees: str | None, who: str) -> Seen:
    """Choose the observation groups of each input.

    ``sees`` is the user's word: NAME or group=NAME for a network of one input, INPUT=NAME[,INPUT=NAME] for several.
    Without it: an input's own name, else the only group that has its size, else all groups joined in sorted order.
    Raises Misconfigured where nothing fits, or several do.
    """
    if spec is None:
        own = {name: _group(shape, dtype) for name, (shape, dtype) in inputs.items()}
        if len(own) == 1:
            return Seen({next(iter(own)): ("obs",)}, {"obs": next(iter(own.values()))})
        return Seen({name: (name,) for name in own}, own)
    chosen = _said(inputs, spec, sees, who)
    notes: list[str] = []
    for name, (shape, _) in inputs.items():
        if name not in chosen:
            chosen[name] = _found(name, shape, spec, len(inputs), who, notes)
    used = [g for groups in chosen.values() for g in groups]
    seen = {g: spec.observations[g] for g in spec.observations if g in used}
    stacked = {groups[0]: inputs[name][0] for name, groups in chosen.items() if len(groups) == 1 and frames(spec.observations[groups[0]], inputs[name][0])}
    return Seen(chosen, {**seen, **{g: replace(seen[g], shape=shape) for g, shape in stacked.items()}}, tuple(notes))


def _group(shape: tuple[int, ...], dtype: torch.dtype) -> Group:
    return Group(shape, DTYPE_NAMES.get(dtype, "float32"))


def _numbers(shape: tuple[int, ...]) -> int:
    return math.prod(shape)


def _width(group: Group) -> int:
    return _numbers(group.shape)


def frames(group: Group, shape: tuple[int, ...]) -> bool:
    """Whether an input [k·C, H, W] is the last k of a group's images [C, H, W], which ``teachers.fit`` then stacks."""
    image = group.shape
    return len(image) == len(shape) == 3 and image[1:] == shape[1:] and image[0] < shape[0] <= 16 * image[0] and shape[0] % image[0] == 0


def _said(inputs: Shapes, spec: Spec, sees: str | None, who: str) -> dict[str, tuple[str, ...]]:
    if not sees:
        return {}
    chosen: dict[str, tuple[str, ...]] = {}
    free = list(inputs)
    for part in sees.split(","):
        key, equals, name = part.strip().partition("=")
        if not equals:
            key, name = "group", key
        if key == "group":
            if not free:
                raise Misconfigured(f"--teacher-sees {sees!r} names more groups than {who} has inputs ({', '.join(inputs)})")
            key = free[0]
        if key not in inputs:
            raise Misconfigured(f"--teacher-sees {sees!r}: {who} has no input {key!r}{nearest(key, inputs)}")
        if name not in spec.observations:
            raise Misconfigured(f"--teacher-sees {sees!r}: the environment has no observation group {name!r}{nearest(name, spec.observations)}")
        shape = inputs[key][0]
        if _width(spec.observations[name]) != _numbers(shape):
            raise Misconfigured(
                f"--teacher-sees {sees!r}: the group {name!r} is {spec.observations[name]}, {who} takes {list(shape)}{_fitting(shape, spec)}"
            )
        if key in free:
            free.remove(key)
        chosen[key] = (name,)
    return chosen


def _fitting(shape: tuple[int, ...], spec: Spec) -> str:
    fits = [g for g, group in spec.observations.items() if _width(group) == _numbers(shape)]
    return f" (what fits: {', '.join(fits)})" if fits else " (no group of this environment fits)"


def _found(name: str, shape: tuple[int, ...], spec: Spec, inputs: int, who: str, notes: list[str]) -> tuple[str, ...]:
    groups = spec.observations
    if name in groups and _width(groups[name]) == _numbers(shape):
        return (name,)
    fits = [g for g, group in groups.items() if _width(group) == _numbers(shape)]
    if len(fits) == 1:
        if len(groups) > 1:
            notes.append(f"it sees the group {fits[0]!r}, the only one of {_numbers(shape)} numbers")
        return (fits[0],)
    if len(fits) > 1:
        raise Misconfigured(f"{who} takes {_numbers(shape)} numbers, and the groups {', '.join(fits)} all have them: say which with --teacher-sees NAME")
    if len(stacks := [g for g, group in groups.items() if frames(group, shape)]) == 1:
        return (stacks[0],)
    if inputs == 1 and sum(_width(g) for g in groups.values()) == _numbers(shape):
        notes.append(f"it sees all groups joined in the order {', '.join(sorted(groups))}")
        return tuple(sorted(groups))
    there = "; ".join(f"{g} {group}" for g, group in groups.items())
    raise Misconfigured(f"{who} takes {_numbers(shape)} numbers ({name} {list(shape)}), and no observation group of the environment has them ({there})")


def read(described: Mapping[str, tuple[tuple[int, ...], torch.dtype, str]], space: ActionSpace | None, who: str) -> Reading:
    """Decide what each output means, from its name, its shape of one state and the operator that gives it.

    Raises Misconfigured where nothing fits.
    """
    outputs = {name: (shape, dtype) for name, (shape, dtype, _) in described.items()}
    if not outputs:
        raise Misconfigured(f"{who} has no output that could be an action")
    lower = {name.lower().rsplit("/", 1)[-1].split(":")[0]: name for name in outputs}
    value = next((lower[n] for n in lower if n in VALUE_NAMES and _numbers(outputs[lower[n]][0]) == 1 and len(outputs) > 1), None)
    action = _action_output(outputs, lower, value, space)
    notes: list[str] = []
    if value is None and len(outputs) > 1:
        singles = [n for n in outputs if n != action and n.startswith("output") and _numbers(outputs[n][0]) == 1]
        if len(singles) == 1 and _numbers(outputs[action][0]) > 1:
            value = singles[0]
            notes.append(f"its nameless output {value!r} of one number is taken as the value of the state")
    name = action.lower().rsplit("/", 1)[-1].split(":")[0]
    name = "probabilities" if described[action][2] in {"softmax", "Softmax"} else name
    shape, dtype = outputs[action]
    spread = next((lower[n] for n in lower if n in LOG_STD_NAMES | STD_NAMES and outputs[lower[n]][0] in {shape, ()}), None)
    is_log = spread is None or spread.lower() in LOG_STD_NAMES
    q = next((lower[n] for n in lower if n in Q_NAMES), None)
    unread = [n for n in outputs if n not in {action, value, spread, q}]
    if unread:
        notes.append(f"not read: its outputs {', '.join(unread[:8])}")
    if space is None:
        space = _space(name, _numbers(shape), dtype, q == action)
        notes.append(f"without an environment its action is taken as {space}")
    kind, split = _kind(name, _numbers(shape), dtype, space, spread, who, action, notes)
    return Reading(action, kind, space, spread if kind == "gaussian" and not split else None, is_log, split, value, q, tuple(notes))


def _action_output(outputs: Shapes, lower: Mapping[str, str], value: str | None, space: ActionSpace | None) -> str:
    rest = [n for n in outputs if n != value]
    names: tuple[str, ...] = ACTION_NAMES
    if space is not None:
        off = "continuous" if space.kind != "box" else "discrete_"
        names = tuple(n for n in names if not (off in n and "actions" in n and not (off == "discrete_" and "continuous" in n)))
    for known in names:
        if known in lower and lower[known] in rest:
            return lower[known]
    sizes = {space.size, space.dimensions} if space is not None else set()
    return next((n for n in rest if _numbers(outputs[n][0]) in sizes), rest[0] if rest else next(iter(outputs)))


def _space(name: str, width: int, dtype: torch.dtype, is_q: bool) -> ActionSpace:
    if is_q or name in LOGIT_NAMES | PROBABILITY_NAMES:
        return ActionSpace("discrete", n=width)
    if not dtype.is_floating_point:
        return ActionSpace("multidiscrete", (width,), nvec=(1 << 16,) * width) if width > 1 else ActionSpace("discrete", n=1 << 16)
    return unbounded(width)


def unbounded(width: int) -> ActionSpace:
    """A box without bounds, for a network whose environment isn't known."""
    return ActionSpace("box", (width,), low=(-math.inf,) * width, high=(math.inf,) * width, dtype="float32")


def _kind(name: str, width: int, dtype: torch.dtype, space: ActionSpace, spread: str | None, who: str, action: str, notes: list[str]) -> tuple[str, bool]:
    if space.kind == "box":
        if width == space.dimensions:
            return ("gaussian" if spread else "deterministic"), False
        if width == 2 * space.dimensions and dtype.is_floating_point:
            notes.append(f"the output {action!r} is twice as wide as the action: taken as mean and log standard deviation side by side")
            return "gaussian", True
    elif not dtype.is_floating_point and width == space.dimensions:
        return "index", False
    elif space.kind == "discrete" and width == space.n:
        if name in Q_NAMES:
            return "greedy", False
        if name in PROBABILITY_NAMES:
            return "probabilities", False
        if name not in LOGIT_NAMES:
            notes.append(f"the output {action!r} is taken as logits; if these are Q-values the most likely action is the same, the distribution isn't")
        return "categorical", False
    elif width == space.size:
        return ("multicategorical" if space.kind == "multidiscrete" else "bernoulli"), False
    raise Misconfigured(f"{who} gives {width} numbers as {action!r}, the environment's action is {space}: this teacher is for another environment")
