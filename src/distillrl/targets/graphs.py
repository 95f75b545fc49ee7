"""A plan of a policy that is kept as a graph: ONNX, TorchScript or other files that are no plain chain of layers.

What is printed is what the action depends on: the memory of a critic is left out. The plan is tried beside the policy on
random states before anything is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from distillrl.errors import Misconfigured
from distillrl.records import Group
from distillrl.targets import arithmetic, numbers, operators, running, sensing
from distillrl.targets import plan as steps
from distillrl.targets.numbers import Value, in_order, refuse, whole
from distillrl.targets.plan import Decode, Input, Plan
from distillrl.targets.sensing import Builder
from distillrl.teachers.framed import Framed
from distillrl.teachers.graph import Graph, State, needed
from distillrl.teachers.graphpolicy import GraphPolicy, head_kind
from distillrl.teachers.nodes import BATCH, uses

LEAST = 1e-12
"""The smallest probability whose logarithm is taken (teachers.graphpolicy)."""
TRIED, TOLERANCE = 8, 1e-5
"""States that the plan is tried on, and how far it may be off, relative to the largest output; what is read rightly is off by 1e-6 at most."""


def trace(policy: GraphPolicy | Framed, sampled: bool, kinds: Mapping[str, str]) -> Plan:
    """The plan of a graph's most likely action, or of a sample; ``kinds`` is head → Decode.kind. Raises Misconfigured."""
    b = Builder({}, [])
    framed = isinstance(policy, Framed)
    inner: Any = policy.policy if framed else policy
    if not isinstance(inner, GraphPolicy):
        raise refuse(f"this policy ({type(inner).__name__})")
    if framed:
        groups = sensing.sense(b, policy)
    else:
        groups = {name: name for name in inner.spec.observations}
        b.shapes.update({name: group.shape for name, group in inner.spec.observations.items()})
    graph = inner.network.graph
    values: dict[str, Any] = {**graph.constants, BATCH.name: 1}
    values |= {name: _input(b, inner, name, groups) for name in graph.inputs}
    wanted, states = _alive(graph, inner)
    before = {state.name: _before(b, state, values) for state in states}
    for node in needed(graph, wanted):
        operators.take(b, node, values)
    raw, log_std = _output(b, inner, values)
    decided, noise = _sampled(b, inner, raw, log_std) if sampled else ("", None)
    for state in states:
        _after(b, state, before[state.name], values)
    plan = _plan(b, policy, inner, raw, decided, noise, log_std, kinds)
    if not sampled:
        _try(plan, policy)
    return plan


def _input(b: Builder, policy: GraphPolicy, name: str, groups: Mapping[str, str]) -> Value:
    """An input of the graph, of one group or of several side by side, as float32."""
    sources, (shape, _) = policy.seen.sources[name], policy.network.graph.inputs[name]
    described: dict[str, Group] = {groups[g]: policy.seen.observations[g] for g in sources}
    flat = sensing.flatten(b, {g: groups[g] for g in sources}, described)
    return whole(b, flat, (1, *shape))


def _alive(graph: Graph, policy: GraphPolicy) -> tuple[set[str], list[State]]:
    """The values that an action and the memory that it hangs on need, and that memory."""
    reading = policy.reading
    wanted = {graph.outputs[o] for o in (reading.action, reading.spread) if o}
    while True:
        read = {name for node in needed(graph, wanted) for name in uses(node)} | wanted
        states = [s for s in graph.states if s.read in read]
        more = wanted | {s.write for s in states}
        if more == wanted:
            return wanted, states
        wanted = more


def _before(b: Builder, state: State, values: dict[str, Any]) -> str:
    """Its name before the step; what it is where an episode starts is added, as memory starts at 0."""
    before = b.memory(state.name, state.initial.numel())
    name = before if not bool(state.initial.any()) else arithmetic.affine(b, before, 1.0, numbers.floats(state.initial))
    values[state.read] = whole(b, name, state.initial.shape)
    return before


def _after(b: Builder, state: State, before: str, values: Mapping[str, Any]) -> None:
    value = values[state.write]
    name = in_order(b, value if isinstance(value, Value) else numbers.constant(b, value))
    if bool(state.initial.any()):
        name = arithmetic.affine(b, name, 1.0, -numbers.floats(state.initial))
    elif not any(op.out == name for op in b.ops):  # what is remembered is a step's result, also where it is an input as it was
        name = b.add(steps.Concat(b.name(), (name,)), (b.size(name),))
    b.remember(state.name, before, name)


def _output(b: Builder, policy: GraphPolicy, values: Mapping[str, Any]) -> tuple[str, Any]:
    """The raw outputs, and the log standard deviation: a tensor, a Value, or None."""
    reading, outputs = policy.reading, policy.network.graph.outputs
    value = values[outputs[reading.action]]
    if isinstance(value, operators.Best):
        if reading.space.kind != "discrete" or reading.kind != "index":
            raise refuse("an action of several numbers chosen inside of the network")
        value = value.of
    elif reading.kind == "index":
        raise refuse("an action's number that is no argmax")
    if not isinstance(value, Value):
        raise refuse("a policy whose action never changes")
    flat, log_std = Value(value.name, value.places.reshape(1, -1)), cast(Any, None)
    if reading.split:
        flat, log_std = (Value(flat.name, part) for part in flat.places.chunk(2, -1))
    elif reading.spread:
        log_std = values[outputs[reading.spread]]
    if log_std is not None and not reading.spread_is_log:
        log_std = log_std.clamp_min(LEAST).log() if isinstance(log_std, Tensor) else numbers.each(b, log_std, lambda b, name: arithmetic.logarithm(b, name, LEAST))
    if reading.kind == "probabilities":
        return in_order(b, numbers.each(b, flat, lambda b, name: arithmetic.logarithm(b, name, LEAST))), log_std
    return in_order(b, flat), log_std


def _sampled(b: Builder, policy: GraphPolicy, raw: str, log_std: Any) -> tuple[str, Input]:
    """The raw outputs with noise, and the input that the noise comes in by."""
    if "distribution" not in policy.gives:
        raise Misconfigured(f"this policy ({policy.head.kind}) has no distribution to sample from: export it without --sampled")
    name = "noise"
    while name in policy.spec.observations:
        name += "_"
    b.shapes[name] = (b.size(raw),)
    noise = name
    if isinstance(log_std, Tensor):
        noise = arithmetic.affine(b, name, numbers.floats(log_std.exp().expand(1, b.size(raw)) if log_std.numel() == 1 else log_std.exp()))
    elif log_std is not None:
        spread = in_order(b, Value(log_std.name, log_std.places.reshape(1, -1).expand(1, b.size(raw))))
        noise = arithmetic.multiply(b, arithmetic.activate(b, spread, "exp"), name)
    return arithmetic.add(b, raw, noise), Input(name, b.shapes[name], "float32")


def _plan(b: Builder, policy: Any, inner: GraphPolicy, raw: str, decided: str, noise: Input | None, log_std: Any, kinds: Mapping[str, str]) -> Plan:
    kind = "argmax" if inner.reading.kind == "index" else kinds.get(head_kind(inner.reading))
    if kind is None:
        raise refuse(f"the head {inner.reading.kind!r}")
    space = policy.spec.action
    decode = Decode(kind, space.shape, space.dtype, space.start, space.nvec if kind == "multi" else (), space.low, space.high)
    if not any(op.out == raw for op in b.ops):
        raw = b.add(steps.Concat(b.name(), (raw,)), (b.size(raw),))
    ops = _read(b, {raw, decided} | {s.after for s in b.states})
    used = {name for op in ops for name in steps.reads(op)}
    states = tuple(b.states)
    inputs = tuple(sensing.to_input(name, group, b) for name, group in policy.spec.observations.items() if name in used)
    if not inputs:
        raise Misconfigured("this policy reads no observation at all, so there is nothing to export")
    free = numbers.floats(log_std).ravel() if isinstance(log_std, Tensor) else None
    free = np.broadcast_to(free, (b.size(raw),)).copy() if free is not None and free.size in {1, b.size(raw)} else None
    return Plan(inputs + ((noise,) if noise else ()), states, ops, raw, decode, b.shapes, free, decided, noise.name if noise else "")


def _read(b: Builder, wanted: set[str]) -> tuple[steps.Op, ...]:
    """The steps that something wanted depends on."""
    kept, alive = [], set(wanted)
    for op in reversed(b.ops):
        if op.out in alive:
            kept.append(op)
            alive.update(steps.reads(op))
    return tuple(reversed(kept))


def _try(plan: Plan, policy: Any) -> None:
    """Raise Misconfigured where the plan doesn't say what the policy says, for two steps of some states."""
    made = torch.Generator().manual_seed(0)
    memory, held = policy.init(TRIED), None
    for _ in range(2):
        obs = {name: _random(group, made) for name, group in policy.spec.observations.items()}
        with torch.inference_mode():
            prediction, memory = policy.act(obs, memory, None)
        with np.errstate(all="ignore"):
            values = running.run(plan, {k: v.numpy() for k, v in obs.items()}, held)
        held = {s.name: values[s.after] for s in plan.states}
        raw, action = values[plan.raw], prediction.action
        theirs = next((v for v in (getattr(action, "logits", None), getattr(action, "mean", None), prediction.q) if v is not None), None)
        if theirs is None:
            theirs, raw = action.mode, running.decode(replace(plan.decode, start=0), raw)
        gap = np.abs(raw.reshape(TRIED, -1).astype(np.float64) - theirs.numpy().reshape(TRIED, -1))
        if not gap.max() <= TOLERANCE * max(1.0, float(np.abs(raw).max())):
            raise refuse(f"this network would not say the same (it would be off by {gap.max():.2g}), so it")


def _random(group: Group, generator: torch.Generator) -> Tensor:
    kind = getattr(torch, group.dtype)
    if group.categories:
        return torch.stack([torch.randint(0, n, (TRIED,), generator=generator) for n in group.categories], -1).reshape(TRIED, *group.shape).to(kind)
    made = torch.randn(TRIED, *group.shape, generator=generator)
    return made.to(kind) if kind.is_floating_point else (made.abs() * 40).to(kind)
