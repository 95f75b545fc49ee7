"""Several teachers as one: their average, a weighted one, a product of experts, the best by value, or one by an expression.

Each keeps its own sense and its own memory. However they are combined, their disagreement comes out as ``uncertainty``:
for discrete actions the mean KL of each from their mixture (the Jensen–Shannon divergence, in nats; Lakshminarayanan
2017, section 2.4), for a Box the root mean square distance of their actions from the mean one, in shares of the range
where it is bounded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from distillrl.actions import Action, Bernoulli, Categorical, Deterministic, Gaussian, MultiCategorical
from distillrl.errors import Misconfigured, Missing
from distillrl.policies import ACTION, Memory, Policy, acting_parameters
from distillrl.records import Group, Prediction, Spec, over_states
from distillrl.teachers.dispatching import Dispatch, parse

WAYS = ("average", "confidence", "value", "product", "best", "dispatch")
CERTAIN = 1e-6
"""The probability that is left for the other actions of a teacher that names one action without a distribution."""


class Many:
    """A policy made of several; see ``combine``."""

    def __init__(self, policies: Sequence[Policy], spec: Spec, way: str, temperature: float, dispatch: Dispatch | None) -> None:
        self.policies, self.spec, self.way, self.temperature, self.dispatch = tuple(policies), spec, way, temperature, dispatch
        shared = frozenset.intersection(*(p.gives for p in policies))
        self.gives = (shared & {"action", "distribution", "q", "value"}) | {"uncertainty"}
        self.asks = frozenset({"value"}) if way in {"value", "best"} else frozenset()
        self.rank = 0 if spec.action.kind == "discrete" else 1
        """How many axes an action has behind the leading ones."""
        self.info: Mapping[str, Any] = self._info()

    def init(self, n: int) -> Memory:
        """Every teacher's, named by its number."""
        return {f"{i}.{k}": v for i, p in enumerate(self.policies) for k, v in p.init(n).items()}

    def act(self, obs: Mapping[str, Tensor], memory: Memory, starts: Tensor | None, wants: frozenset[str] = ACTION) -> tuple[Prediction, Memory]:
        """See policies.Policy; all are asked about all states, so that every memory goes on."""
        given: list[Prediction] = []
        after: Memory = {}
        for i, policy in enumerate(self.policies):
            own = {k.removeprefix(f"{i}."): v for k, v in memory.items() if k.startswith(f"{i}.")}
            prediction, own = policy.act({k: obs[k] for k in policy.spec.observations}, own, starts, (wants - {"uncertainty"}) | self.asks)
            given.append(prediction)
            after |= {f"{i}.{k}": v for k, v in own.items()}
        actions = alike([p.action for p in given])  # type: ignore[misc]  # a policy gives its action
        uncertainty = disagreement(actions, self.rank) if "uncertainty" in wants else None
        if self.way in {"best", "dispatch"}:
            prediction = self._chosen(given, actions, obs)
        else:
            prediction = self._joined(given, actions)
        return replace(prediction, uncertainty=uncertainty), after

    def acting_parameters(self) -> int | None:
        """All of theirs."""
        counts = [acting_parameters(p) for p in self.policies]
        return None if None in counts else sum(counts)  # type: ignore[arg-type]  # none is None here

    def _chosen(self, given: list[Prediction], actions: list[Action], obs: Mapping[str, Tensor]) -> Prediction:
        if self.dispatch is not None:
            index = self.dispatch(obs, len(given))
        else:
            index = torch.stack([p.value for p in given]).argmax(0)  # type: ignore[misc]  # it was asked for, and each gives it
        merge = lambda *parts: _pick(index, parts)  # noqa: E731  # one word for three uses
        fields = {f: over_states(merge, *(getattr(p, f) for p in given)) for f in ("q", "value") if all(getattr(p, f) is not None for p in given)}
        return Prediction(over_states(merge, *actions), q=fields.get("q"), value=fields.get("value"))

    def _joined(self, given: list[Prediction], actions: list[Action]) -> Prediction:
        if self.way == "product":
            action, weights = product(actions), None
        else:
            weights = self._weights(given, actions)
            action = average(actions, weights)
        fields = {}
        for name in ("q", "value"):
            parts = [getattr(p, name) for p in given]
            if all(p is not None for p in parts):
                stacked = torch.stack(parts)
                w = torch.full_like(stacked, 1 / len(parts)) if weights is None else _like(weights, stacked)
                fields[name] = (w * stacked).sum(0)
        return Prediction(action, q=fields.get("q"), value=fields.get("value"))

    def _weights(self, given: list[Prediction], actions: list[Action]) -> Tensor:
        """[K, ...], summing to 1 over the K teachers."""
        if self.way == "confidence":
            scores = torch.stack([-a.entropy() for a in actions])
        elif self.way == "value":
            scores = torch.stack([p.value for p in given])  # type: ignore[misc]  # it was asked for, and each gives it
        else:
            return _even(actions, self.rank)
        return (scores / self.temperature).softmax(0)

    def _info(self) -> dict[str, Any]:
        each = [dict(p.info) for p in self.policies]
        said = self.way if self.dispatch is None else f"dispatch {self.dispatch.text}"
        missing = {k: "not every one of them gives it" for k in ("distribution", "q", "value") if k not in self.gives}
        environment = {i.get("environment") for i in each}
        return {
            "format": "several", "algorithm": f"{len(each)} teachers: {said}", "saved_by": None, "layers": [], "activation": None, "normaliser": "each its own",
            "observation_space": ", ".join(f"{k}: {g}" for k, g in self.spec.observations.items()), "action_space": str(self.spec.action), "gives": sorted(self.gives),
            "missing": missing | {"quantiles": "quantiles of several aren't joined"}, "parameters": self.acting_parameters(),
            "environment": environment.pop() if len(environment) == 1 else None, "teachers": each, "notes": [f"teacher {i}: {n}" for i, e in enumerate(each) for n in e.get("notes", ())],
        }  # fmt: skip


def combine(policies: Sequence[Policy], way: str = "average", *, temperature: float = 1.0, dispatch: str | None = None, spec: Spec | None = None) -> Many:
    """One policy of several.

    ``average``: the mixture of their distributions (of Gaussians the one with the mixture's mean and variance; of plain
    actions the mean, or the votes). ``confidence``, ``value``: the same, each weighted by softmax of −entropy, or of its
    value of the state, divided by ``temperature``. ``product``: the product of experts (Hinton 2002). ``best``: each
    state's teacher with the greatest value. ``dispatch``: an expression over the observation (see ``dispatching``);
    ``spec`` is the environment's, for groups that no teacher sees.

    Raises Misconfigured where their actions differ or the way is unknown, Missing where one lacks what the way needs.
    """
    if dispatch is not None:
        way = "dispatch"
    if way not in WAYS or (way == "dispatch") != (dispatch is not None) or len(policies) < 2 or not temperature > 0:
        raise Misconfigured(f"several teachers: {len(policies)} were given with {way!r} at temperature {temperature}; at least two, and one of {', '.join(WAYS)} (dispatch with its expression) is right")
    first = policies[0].spec
    for i, policy in enumerate(policies):
        mine, theirs = policy.spec.action, first.action
        if (mine.kind, mine.n, mine.nvec, mine.dimensions, mine.low, mine.high) != (theirs.kind, theirs.n, theirs.nvec, theirs.dimensions, theirs.low, theirs.high):
            raise Misconfigured(f"several teachers: teacher {i} chooses in {mine}, teacher 0 in {theirs}")
        for name, needed in (("value", way in {"value", "best"}), ("distribution", way in {"confidence", "product"})):
            if needed and name not in policy.gives:
                raise Missing(f"several teachers: {way} needs the {name} of each, but teacher {i} gives only {', '.join(sorted(g for g in policy.gives if '.' not in g))}")
    groups: dict[str, Group] = {}
    for policy in policies:
        for name, group in policy.spec.observations.items():
            if name in groups and groups[name].shape != group.shape:
                raise Misconfigured(f"several teachers: they see {name!r} as {groups[name]} and as {group}; give the environment's spec, so that each is made to fit it")
            groups[name] = group
    known = {**(spec.observations if spec is not None else {}), **groups}
    parsed = parse(dispatch, known, len(policies)) if dispatch is not None else None
    for name in parsed.names if parsed is not None else ():
        groups[name] = known[name]
    return Many(policies, Spec(groups, first.action, first.reward_scale), way, temperature, parsed)


# ── joining actions ───────────────────────────────────────────────────────────────────────────────────────────────


def alike(actions: Sequence[Action]) -> list[Action]:
    """The same kind for all: an action without a distribution becomes a nearly certain one beside distributions, a
    Gaussian an action beside plain actions.
    """
    kinds = {type(a) for a in actions}
    squashed = {a.squashed for a in actions if isinstance(a, Gaussian)}
    if kinds == {Deterministic} or (len(kinds) == 1 and len(squashed) <= 1):
        return list(actions)
    example = next(a for a in actions if not isinstance(a, Deterministic))
    if isinstance(example, Gaussian):
        return [Deterministic(a.mode, example.low, example.high) for a in actions]
    return [_nearly(a.mode, example) if isinstance(a, Deterministic) else a for a in actions]


def _nearly(index: Tensor, example: Action) -> Action:
    """The distribution that is almost certain of ``index``."""
    if isinstance(example, Bernoulli):
        return Bernoulli(torch.where(index > 0, 1.0, -1.0) * torch.tensor(1 / CERTAIN).log())
    sizes = example.nvec if isinstance(example, MultiCategorical) else (example.logits.shape[-1],)  # type: ignore[union-attr]  # a Categorical
    columns = index.unbind(-1) if isinstance(example, MultiCategorical) else (index,)
    logits = torch.cat([torch.nn.functional.one_hot(c.long(), n).float() for c, n in zip(columns, sizes, strict=True)], -1) * torch.tensor(1 / CERTAIN).log()
    return MultiCategorical(logits, example.nvec) if isinstance(example, MultiCategorical) else Categorical(logits)


def average(actions: Sequence[Action], weights: Tensor) -> Action:
    """The mixture of actions of one kind, with weights [K, ...]."""
    first = actions[0]
    if isinstance(first, Categorical):
        return Categorical(_mixed([a.log_probs for a in actions], weights))  # type: ignore[union-attr]  # all of one kind
    if isinstance(first, MultiCategorical):
        joined = [torch.cat([p.log_probs for p in a.parts], -1) for a in actions]  # type: ignore[union-attr]  # all of one kind
        return MultiCategorical(_mixed(joined, weights), first.nvec)
    if isinstance(first, Bernoulli):
        on = torch.stack([a.logits.sigmoid() for a in actions])  # type: ignore[union-attr]  # all of one kind
        return Bernoulli(torch.logit((_like(weights, on) * on).sum(0), 1e-7))
    if isinstance(first, Gaussian):
        means = torch.stack([a.mean for a in actions])  # type: ignore[union-attr]  # all of one kind
        variances = torch.stack([(2 * a.log_std).exp() for a in actions])  # type: ignore[union-attr]  # all of one kind
        w = _like(weights, means)
        mean = (w * means).sum(0)
        variance = (w * (variances + means.square())).sum(0) - mean.square()
        return Gaussian(mean, 0.5 * variance.clamp_min(1e-12).log(), first.low, first.high, first.squashed)
    modes = torch.stack([a.mode for a in actions])
    if not modes.is_floating_point():
        return _votes(modes, weights)
    return Deterministic((_like(weights, modes) * modes).sum(0), first.low, first.high)


def _votes(modes: Tensor, weights: Tensor) -> Deterministic:
    """Of numbers of actions [K, ...] the one with the most weight, the least number where two have as much."""
    w = _like(weights, modes.float())
    votes = torch.stack([(w * (modes == modes[k])).sum(0) for k in range(len(modes))])
    best = votes.amax(0)
    candidates = torch.where(votes >= best - 1e-6, modes, torch.iinfo(torch.int64).max)
    return Deterministic(candidates.amin(0))


def product(actions: Sequence[Action]) -> Action:
    """The normalised product of distributions of one kind."""
    first = actions[0]
    if isinstance(first, Categorical):
        return Categorical(torch.stack([a.log_probs for a in actions]).sum(0))  # type: ignore[union-attr]  # all of one kind
    if isinstance(first, MultiCategorical):
        return MultiCategorical(torch.stack([torch.cat([p.log_probs for p in a.parts], -1) for a in actions]).sum(0), first.nvec)  # type: ignore[union-attr]  # all of one kind
    if isinstance(first, Bernoulli):
        return Bernoulli(torch.stack([a.logits for a in actions]).sum(0))  # type: ignore[union-attr]  # all of one kind
    if isinstance(first, Gaussian):
        precisions = torch.stack([(-2 * a.log_std).exp() for a in actions])  # type: ignore[union-attr]  # all of one kind
        means = torch.stack([a.mean for a in actions])  # type: ignore[union-attr]  # all of one kind
        total = precisions.sum(0)
        return Gaussian((precisions * means).sum(0) / total, -0.5 * total.log(), first.low, first.high, first.squashed)
    raise Missing("a product of experts needs distributions, but these teachers give actions alone")


def disagreement(actions: Sequence[Action], rank: int) -> Tensor:
    """[...] of actions of one kind with ``rank`` axes of their own; 0 where all agree. See this module's docstring."""
    first = actions[0]
    if isinstance(first, Deterministic) and not first.mode.is_floating_point():
        share = torch.stack([torch.stack([a.mode == b.mode for b in actions]).float().mean(0) for a in actions])
        divergence = -share.log().mean(0)
        return divergence.sum(-1) if rank else divergence
    if isinstance(first, (Gaussian, Deterministic)):
        modes = torch.stack([a.mode for a in actions])
        width = first.high - first.low if first.low is not None and first.high is not None else torch.ones(())
        width = torch.where(width.isfinite() & (width > 0), width, torch.ones(()))
        return ((modes - modes.mean(0)) / width).square().mean((0, -1)).sqrt()
    mixture = average(actions, _even(actions, rank))
    return torch.stack([a.kl(mixture) for a in actions]).mean(0).clamp_min(0)  # type: ignore[arg-type]  # all of one kind


def _even(actions: Sequence[Action], rank: int) -> Tensor:
    """[K, ...] of 1/K."""
    mode = actions[0].mode
    return torch.full((len(actions), *mode.shape[: mode.dim() - rank]), 1 / len(actions))


def _mixed(log_probs: list[Tensor], weights: Tensor) -> Tensor:
    stacked = torch.stack(log_probs)
    return (stacked + _like(weights, stacked).log()).logsumexp(0)


def _like(weights: Tensor, values: Tensor) -> Tensor:
    """Weights [K, ...] with as many axes as values [K, ..., A]."""
    return weights.reshape(*weights.shape, *[1] * (values.dim() - weights.dim())).to(values.dtype)


def _pick(index: Tensor, parts: Sequence[Tensor]) -> Tensor:
    """[..., A] of parts [..., A], by an index [...]."""
    stacked = torch.stack(list(parts))
    where = index.reshape(1, *index.shape, *[1] * (stacked.dim() - 1 - index.dim())).expand(1, *stacked.shape[1:])
    return stacked.gather(0, where).squeeze(0)
