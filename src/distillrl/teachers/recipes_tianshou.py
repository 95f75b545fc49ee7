"""The names that Tianshou gives to its networks' weights (0.5 to 2.0): ``Net``, its actors, critics and recurrent networks.

A policy's own settings (``action_scaling``, ``action_bound_method``, ``max_action``) aren't in its state dict: they are
taken as the defaults, by which actions are clipped to ±1 and stretched to the environment's bounds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from distillrl.teachers.graph import Ref
from distillrl.teachers.recipes_robots import UNSEEN, categorical_or
from distillrl.teachers.statedicts import spread_of

if TYPE_CHECKING:
    from distillrl.teachers.writer import Writer

_SCALED = "Tianshou's policy clips to ±1 and stretches to the environment's bounds (action_scaling, its default); so does this"


def actor(w: Writer) -> None:
    """actor.preprocess.model.model.N, then mu and sigma (SAC), mu and sigma_param, or last (discrete; TD3 and DDPG: tanh)."""
    p = next(q for q in ("actor.", "policy.actor.", "") if w.weights.numbered(f"{q}preprocess.model.model."))
    x = w.observation(w.width(f"{p}preprocess.model.model."))
    w.notes.append(UNSEEN)
    latent = w.sequential(x, f"{p}preprocess.model.model.", open_end=True)
    head = next(h for h in (f"{p}mu.model.", f"{p}last.model.", f"{p}mu.", f"{p}last.") if w.weights.numbered(h))
    action = w.sequential(latent, head)
    value = _value(w, x, p)
    place = f"{p}sigma.model." if w.weights.numbered(f"{p}sigma.model.") else ""
    spread = w.weights.first(f"{p}sigma_param", f"{p}sigma_param.weight")
    if place and value is None:
        w.notes.append("its spread is a layer's: taken for SAC, whose actions are squashed by tanh")
        w.gives(action, "squashed", log_std=w.tracer.call("clamp", w.sequential(latent, place), -20.0, 2.0))
        return
    if spread or place:
        log_std: Ref | Tensor | None = w.tracer.call("clamp", w.sequential(latent, place), -20.0, 2.0) if place else spread_of(w.weights, spread, None)
        if w.ending:
            action = w.tracer.call("tanh", action)
        else:
            w.notes.append(f"whether its mean is bounded by tanh (unbounded=False), the file doesn't tell: taken as unbounded (--format tianshou:{w.activation}+tanh says that it is)")
        w.notes += [_SCALED] if w.stretched() else []
        w.gives_clipped(action, log_std, value)
    elif w.space is not None and w.space.kind == "box" and head == f"{p}last.model.":
        w.notes.append("a deterministic actor of Tianshou ends in tanh, stretched to the environment's bounds")
        w.gives(action, "tanh", value=value)
    else:
        w.gives(action, categorical_or(w, "deterministic") if w.space is not None else "categorical", value=value)


def _value(w: Writer, x: Ref, p: str) -> Ref | None:
    c = p.replace("actor", "critic")
    c = c if w.weights.numbered(f"{c}preprocess.model.model.") else "critic."
    first = f"{c}preprocess.model.model."
    if w.weights.numbered(first) and w.weights.numbered(f"{c}last.model.") and w.width(first) == w.tracer.shape(x)[-1]:
        return w.sequential(w.sequential(x, first, open_end=True), f"{c}last.model.")
    return None


def values(w: Writer) -> None:
    """The DQN family: model.model.model.N, dueling heads Q and V, atoms (C51, with ``support``) or quantiles (QR-DQN)."""
    p = next(q for q in ("model.model.model.", "policy.model.model.model.", "model.model.") if w.weights.numbered(q))
    x = w.observation(w.width(p))
    top = p.removesuffix("model.model.")
    dueling = bool(w.weights.numbered(f"{top}Q.model.") and w.weights.numbered(f"{top}V.model."))
    made = w.sequential(x, p, open_end=dueling)
    q, v = (w.sequential(made, f"{top}{head}.model.") for head in ("Q", "V")) if dueling else (made, None)
    place = w.weights.first("support", "policy.support")
    actions = w.space.n if w.space is not None and w.space.kind == "discrete" else 0
    width = w.tracer.shape(q)[-1]
    atoms = int(w.weights[place].numel()) if place else width // actions if actions and width % actions == 0 else 1
    if atoms > 1:
        q = w.tracer.call("unflatten", q, 1, (-1, atoms))
        v = w.tracer.call("unflatten", v, 1, (-1, atoms)) if v is not None else None
    if v is not None:
        q = w.tracer.call("add", w.tracer.call("sub", q, w.tracer.call("mean", q, (1,), True)), v)
    if place:
        q = w.tracer.call("sum", w.tracer.call("mul", w.tracer.call("softmax", q, -1), w.constant(w.weights[place].reshape(-1))), (-1,))
    elif atoms > 1:
        w.notes.append(f"its {atoms} numbers for each action are taken as quantiles (QR-DQN), whose mean is the value")
        q = w.tracer.call("mean", q, (-1,))
    w.gives(q, "greedy")


def recurrent(w: Writer) -> None:
    """``Recurrent``: fc1, an LSTM, fc2, with no activation between them."""
    p = next(n.removesuffix("nn.weight_ih_l0") for n in w.weights.tensors if n.endswith("nn.weight_ih_l0"))
    x = w.observation(int(w.weights[f"{p}fc1.weight"].shape[1]))
    w.notes.append(UNSEEN)
    q = w.linear(w.recurrent(w.linear(x, f"{p}fc1"), f"{p}nn.", "nn"), f"{p}fc2")
    w.gives(q, "greedy")
