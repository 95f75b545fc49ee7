"""Teachers of several tasks as one: the i-th plays the i-th task (tasks.py), and is asked about nothing else.

Each sees its own groups under its own names. What it says is brought to the joined action space: surplus choices are masked, surplus
dimensions are 0, and a Box action is rescaled where the tasks' bounds differ.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from distillrl import tasks, teachers
from distillrl.actions import Action, Categorical, Deterministic, Gaussian
from distillrl.errors import Misconfigured
from distillrl.objectives import in_order
from distillrl.policies import ACTION, Memory, Player, Policy, acting_parameters
from distillrl.records import ActionSpace, Prediction, Spec, over_states
from distillrl.spaces import differences
from distillrl.tasks import TASK
from distillrl.teachers.many import alike

SHARED = frozenset({"action", "distribution", "value", "q"})
"""What is passed on where all teachers give it, beside features; Q-values where all tasks have as many actions."""
LAST = "last"
"""The layer that stands for each teacher's own last one, whatever it is called."""


class Tasked:
    """A policy of all tasks, made of one for each; see ``load``."""

    def __init__(self, policies: Sequence[Policy], spec: Spec) -> None:
        self.policies, self.tasks = tuple(policies), spec.tasks
        groups = {place for t, p in zip(spec.tasks, policies, strict=True) for place, own in t.observations.items() if own in p.spec.observations}
        self.spec = replace(spec, observations={name: g for name, g in spec.observations.items() if name in groups or name == TASK})
        legal = tasks.legal(spec)
        self.legal = None if legal is None else torch.from_numpy(legal)
        bounds = torch.tensor(spec.action.low), torch.tensor(spec.action.high)
        self.bounds = bounds if spec.action.kind == "box" else None
        self.layers = _layers(policies)
        self.shapes: dict[str, tuple[int, ...]] = {}
        """Of each layer's features, where they are brought to one: as wide as the widest teacher's, the narrower ones filled up with zeros."""
        given = (frozenset.intersection(*(p.gives for p in policies)) & SHARED) - ({"q"} if legal is not None else set())
        self.gives = given | {f"features.{name}" for name in self.layers[0]}
        self._examples = [self._ask(k, self._blank(1), policies[k].init(1), None, self.gives)[0] for k in range(len(policies))]
        for name in self.layers[0]:
            each = {tuple(e.features[name].shape[1:]) for e in self._examples}
            self.shapes[name] = each.pop() if len(each) == 1 else (max(math.prod(shape) for shape in each),)
        self.info: Mapping[str, Any] = self._info()

    def init(self, n: int) -> Memory:
        """Every teacher's, named by its task's number."""
        return {f"{k}.{name}": v for k, p in enumerate(self.policies) for name, v in p.init(n).items()}

    def act(self, obs: Mapping[str, Tensor], memory: Memory, starts: Tensor | None, wants: frozenset[str] = ACTION) -> tuple[Prediction, Memory]:
        """See policies.Policy. A teacher that remembers is asked about all states, so that its memory goes on."""
        index = obs[TASK].long()
        after: Memory = {}
        whole: Prediction | None = None
        for k in range(len(self.policies)):
            own = {name.removeprefix(f"{k}."): v for name, v in memory.items() if name.startswith(f"{k}.")}
            rows = (index == k).reshape(-1).nonzero().squeeze(-1)
            if not own and not len(rows):
                continue
            if own:
                said, own = self._ask(k, obs, own, starts, wants)
                said = over_states(lambda x: x.flatten(0, index.dim() - 1)[rows] if index.dim() else x, said)  # noqa: B023  # used at once
                after |= {f"{k}.{name}": v for name, v in own.items()}
            else:
                flat = {name: obs[name].flatten(0, index.dim() - 1)[rows] for name in self.tasks[k].observations if name in obs}
                said, _ = self._ask(k, flat, {}, None, wants)
            if whole is None:
                whole = over_states(lambda x: x.new_zeros((index.numel(), *x.shape[1:])), said)
            whole = over_states(lambda x, y: x.index_copy_(0, rows, y), whole, said)  # noqa: B023  # used at once
        assert whole is not None
        return over_states(lambda x: x.unflatten(0, index.shape), whole), after

    def acting_parameters(self) -> int | None:
        """All of theirs."""
        counts = [acting_parameters(p) for p in self.policies]
        return None if None in counts else sum(counts)  # type: ignore[arg-type]  # none is None here

    def _blank(self, n: int) -> dict[str, Tensor]:
        return {name: torch.zeros((n, *g.shape), dtype=getattr(torch, g.dtype, torch.float32)) for name, g in self.spec.observations.items()}

    def _ask(self, k: int, obs: Mapping[str, Tensor], memory: Memory, starts: Tensor | None, wants: frozenset[str]) -> tuple[Prediction, Memory]:
        """What teacher ``k`` says, in the joined action space."""
        policy, task = self.policies[k], self.tasks[k]
        mine = {own: obs[place] for place, own in task.observations.items() if own in policy.spec.observations}
        layers = {f"features.{name}": f"features.{own}" for name, own in self.layers[k].items()}
        said, memory = policy.act(mine, memory, starts, wants if wants is ACTION else frozenset(layers.get(w, w) for w in wants))
        assert said.action is not None
        action = joined_action(said.action, task.action, self.spec.action, self.bounds, None if self.legal is None else self.legal[k])
        if examples := getattr(self, "_examples", None):  # of one kind, whichever tasks are at hand
            action = alike([action, *(e.action for e in examples)])[0]
        lead = obs[TASK].dim() if TASK in obs else 1  # the rows of one task are flat, and without it
        kept = {name: self._evened(name, said.features[own], lead) for name, own in self.layers[k].items() if f"features.{name}" in wants}
        return Prediction(action, q=said.q if "q" in wants & self.gives else None, value=said.value if "value" in wants & self.gives else None, features=kept), memory

    def _evened(self, name: str, features: Tensor, lead: int) -> Tensor:
        """[..., F] or the map that all teachers have; ``lead`` dimensions are the states'."""
        shape = self.shapes.get(name, tuple(features.shape[lead:]))
        if tuple(features.shape[lead:]) == shape:
            return features
        flat = features.flatten(lead)
        return F.pad(flat, (0, shape[0] - flat.shape[-1]))

    def _info(self) -> dict[str, Any]:
        each = [dict(p.info) for p in self.policies]
        missing = {k: "not every one of them gives it" for k in ("distribution", "q", "value") if k not in self.gives}
        played = [str(e.get("environment") or t.name) for e, t in zip(each, self.tasks, strict=True)]
        return {
            "format": "several", "algorithm": f"{len(each)} teachers, one a task", "saved_by": None, "layers": [], "activation": None, "normaliser": "each its own",
            "observation_space": ", ".join(f"{k}: {g}" for k, g in self.spec.observations.items()), "action_space": str(self.spec.action), "gives": sorted(self.gives),
            "missing": missing, "parameters": self.acting_parameters(), "environment": ",".join(played), "teachers": each,
            "notes": [f"{t.name}: {n}" for t, e in zip(self.tasks, each, strict=True) for n in e.get("notes", ())],
        }  # fmt: skip


def _layers(policies: Sequence[Policy]) -> list[dict[str, str]]:
    """For each teacher {layer as it is asked for: the teacher's own name of it}: those that all have, and ``last``, each one's last."""
    own = [in_order(w.removeprefix("features.") for w in p.gives if w.startswith("features.")) for p in policies]
    if not all(own):
        return [{} for _ in policies]
    shared = [name for name in own[0] if all(name in names for names in own)]
    return [{**{name: name for name in shared}, LAST: names[-1]} for names in own]


def load(source: Any, options: teachers.Options, spec: Spec) -> Policy:
    """The policy of all tasks of a spec: of a list with one teacher for each, in their order; of one teacher that fits every task; or one
    that was made for all of them, such as a student.

    Raises Misconfigured where their number or what they see and do doesn't fit.
    """
    if options.combine or options.dispatch:
        raise Misconfigured("--combine and --dispatch join several teachers of one task; of several tasks the i-th teacher plays the i-th")
    alone = not isinstance(source, (list, tuple)) or len(source) == 1
    one = source[0] if alone and isinstance(source, (list, tuple)) else source
    if alone and (whole := _of_all(one, options)) is not None:
        return whole
    sources = [one] * len(spec.tasks) if alone else list(source)
    if len(sources) != len(spec.tasks):
        raise Misconfigured(f"{len(sources)} teachers were given for {len(spec.tasks)} tasks ({', '.join(t.name for t in spec.tasks)}): one for each, in their order, or a single one that fits them all, is right")
    return Tasked([_fitting(k, s, sources, options, spec) for k, s in enumerate(sources)], spec)


def _of_all(source: Any, options: teachers.Options) -> Policy | None:
    """The policy where it was made for several tasks."""
    found = source.policy if isinstance(source, Player) else source
    if isinstance(source, (str, Path)):
        if Path(source).suffix != ".safetensors":
            return None
        found = teachers.load(source, options)
    return found if hasattr(found, "act") and TASK in found.spec.observations else None


def _fitting(k: int, source: Any, sources: Sequence[Any], options: teachers.Options, spec: Spec) -> Policy:
    """Teacher ``k``, made to fit its task."""
    task = spec.tasks[k]
    own = task.spec(spec)
    try:
        policy = teachers.load(source, replace(options, env=tasks.arguments(task.name.partition("#")[0])[0]), own)
    except Misconfigured as error:
        raise Misconfigured(f"teacher {k + 1}, of the task {task.name}: {error}") from None
    if found := differences(policy.spec, own):
        others = [t.name for t in spec.tasks if not differences(policy.spec, t.spec(spec))]
        hint = f"; it would fit {' and '.join(others)}: teachers stand in the order of the tasks" if others and len(set(map(str, sources))) > 1 else ""
        name = f" ({source})" if isinstance(source, (str, Path)) else ""
        raise Misconfigured(f"teacher {k + 1}{name} does not fit the task {task.name}: " + "; ".join(found) + hint)
    return policy


def joined_action(action: Action, own: ActionSpace, whole: ActionSpace, bounds: tuple[Tensor, Tensor] | None, legal: Tensor | None) -> Action:
    """A task's action as one of all tasks'; ``legal`` [A] says which choices it has."""
    if isinstance(action, Categorical) and legal is not None:
        surplus = whole.n - own.n
        mask = None if action.mask is None else F.pad(action.mask, (0, surplus))
        return Categorical(F.pad(action.logits, (0, surplus)), legal.expand(*action.logits.shape[:-1], whole.n) if mask is None else mask)
    if bounds is None or not isinstance(action, Gaussian | Deterministic):
        return action
    scale, more = tasks.unit(whole, own), (0, whole.dimensions - own.dimensions)
    centre, half = (torch.zeros(()), torch.ones(())) if scale is None else (torch.from_numpy(v).float() for v in scale)
    if isinstance(action, Deterministic):
        return Deterministic(F.pad((action.mode - centre) / half, more), *bounds)
    if action.squashed:  # its Gaussian is of what stands before tanh, whatever the bounds are
        return Gaussian(F.pad(action.mean, more), F.pad(action.log_std, more), *bounds, True)
    return Gaussian(F.pad((action.mean - centre) / half, more), F.pad(action.log_std - half.log(), more), *bounds)
