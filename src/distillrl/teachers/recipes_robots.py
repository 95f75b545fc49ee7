"""The names that robot learning's libraries give to their weights: rsl_rl and legged_gym, rl_games, skrl."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from distillrl.errors import Missing
from distillrl.teachers import guessing
from distillrl.teachers.graph import Ref
from distillrl.teachers.statedicts import moments, spread_of
from distillrl.teachers.writer import Weights

if TYPE_CHECKING:
    from distillrl.teachers.writer import Writer

UNSEEN = "whether observations were normalised outside of the network, the file doesn't tell: if they were, this teacher will play badly"
ENDING = "whether its action ends in tanh, or is scaled in the network's own code, the file doesn't tell: taken as the last layer's numbers (--format {name}:{activation}+tanh says that it ends in tanh)"


def categorical_or(w: Writer, box: str) -> str:
    """The head of logits, or ``box`` where the environment's action is one."""
    return box if w.space is None or w.space.kind == "box" else "categorical"


# ── rsl_rl ──


def rsl_rl(w: Writer) -> None:
    """rsl_rl 1 to 4 and legged_gym: actor.N, memory_a, std; the normaliser beside or inside (EmpiricalNormalization, ε = 0.01)."""
    p = "model_state_dict." if w.weights.has(r"^model_state_dict\.") else ""
    policy = f"{p}actor." if w.weights.numbered(f"{p}actor.") else f"{p}student."
    memory = next((m for m in (f"{p}memory_a.rnn.", f"{p}memory_s.rnn.") if f"{m}weight_ih_l0" in w.weights), "")
    width = int(w.weights[f"{memory}weight_ih_l0"].shape[1]) if memory else w.width(policy)
    raw = w.observation(width)
    x = _empirical(w, raw, (f"{p}actor_obs_normalizer.", f"{p}student_obs_normalizer.", "obs_norm_state_dict.", f"{p}obs_normalizer."))
    x = w.recurrent(x, memory, "memory_a") if memory else x
    action = w.sequential(x, policy)
    value = None
    critic_memory = f"{p}memory_c.rnn."
    critic_width = int(w.weights[f"{critic_memory}weight_ih_l0"].shape[1]) if f"{critic_memory}weight_ih_l0" in w.weights else (w.width(f"{p}critic.") if w.weights.numbered(f"{p}critic.") else 0)
    if critic_width == width:
        c = _empirical(w, raw, (f"{p}critic_obs_normalizer.", "critic_obs_norm_state_dict.", "privileged_obs_norm_state_dict.", "obs_norm_state_dict."))
        c = w.recurrent(c, critic_memory, "memory_c") if f"{critic_memory}weight_ih_l0" in w.weights else c
        value = w.sequential(c, f"{p}critic.")
    elif critic_width:
        w.notes.append(f"its critic sees {critic_width} numbers, others than the actor: no value is given")
    w.gives(action, "gaussian" if _spread(w, p) is not None else "deterministic", log_std=_spread(w, p), value=value)


def _spread(w: Writer, p: str) -> torch.Tensor | None:
    return spread_of(w.weights, w.weights.first(f"{p}log_std", f"{p}distribution.log_std_param"), w.weights.first(f"{p}std", f"{p}distribution.std_param"))


def _empirical(w: Writer, x: Ref, places: tuple[str, ...]) -> Ref:
    for place in places:
        if f"{place}_mean" in w.weights:
            mean, std = moments(w.weights, f"{place}_mean", f"{place}_std", root=False, outside=1e-2)
            return w.normalised(x, mean, std, None)
    return x


def rsl_rl5(w: Writer) -> None:
    """rsl_rl 5: actor_state_dict and critic_state_dict, each with mlp.N, obs_normalizer, rnn.rnn, distribution."""
    a, c = "actor_state_dict.", "critic_state_dict."
    action, raw, width = _model5(w, a, None, "actor")
    log_std = _spread(w, a)
    value = None
    if w.weights.numbered(f"{c}mlp."):
        theirs = int(w.weights[f"{c}rnn.rnn.weight_ih_l0"].shape[1]) if f"{c}rnn.rnn.weight_ih_l0" in w.weights else w.width(f"{c}mlp.")
        if theirs == width:
            value = _model5(w, c, raw, "critic")[0]
        else:
            w.notes.append(f"its critic sees {theirs} numbers, others than the actor: no value is given")
    out = w.tracer.shape(action)[-1]
    if log_std is not None and log_std.numel() != out:
        raise Missing(f"{w.weights.where}: a distribution of rsl_rl with {out} outputs for {log_std.numel()} actions is not known here")
    w.gives(action, "gaussian" if log_std is not None else "deterministic", log_std=log_std, value=value)


def _model5(w: Writer, p: str, raw: Ref | None, name: str) -> tuple[Ref, Ref, int]:
    recurrent = f"{p}rnn.rnn.weight_ih_l0" in w.weights
    width = int(w.weights[f"{p}rnn.rnn.weight_ih_l0"].shape[1]) if recurrent else w.width(f"{p}mlp.")
    raw = raw or w.observation(width)
    x = _empirical(w, raw, (f"{p}obs_normalizer.",))
    x = w.recurrent(x, f"{p}rnn.rnn.", name) if recurrent else x
    return w.sequential(x, f"{p}mlp."), raw, width


# ── rl_games ──


def rl_games(w: Writer) -> None:
    """rl_games: a2c_network.actor_mlp, mu, sigma (its logarithm), value; running_mean_std with ε = 1e-5 and clip 5."""
    p = "model." if w.weights.has(r"^model\.a2c_network\.") else ""
    n = f"{p}a2c_network."
    if not w.weights.numbered(f"{n}actor_mlp."):
        raise Missing(f"{w.weights.where}: an rl_games network without a plain actor_mlp (d2rl, resnet) is not known here; give its class with --model module:Class")
    separate = f"{n}critic_mlp." if w.weights.numbered(f"{n}critic_mlp.") else ""
    mine, theirs = (f"{n}a_rnn.rnn.", f"{n}c_rnn.rnn.") if separate else (f"{n}rnn.rnn.", "")
    recurrent = f"{mine}weight_ih_l0" in w.weights
    first = w.width(f"{n}actor_mlp.")
    inputs = int(w.weights[f"{mine}weight_ih_l0"].shape[1]) if recurrent else 0
    statistics = w.weights.first(f"{p}running_mean_std.running_mean", "running_mean_std.running_mean")
    width = int(w.weights[statistics].numel()) if statistics else (min(first, inputs) if recurrent else first)
    x = w.observation(width)
    if statistics:
        mean, std = moments(w.weights, statistics, statistics.removesuffix("mean") + "var", root=True, inside=1e-5)
        x = w.normalised(x, mean, std, 5.0)
    latent = _latent(w, x, f"{n}actor_mlp.", mine if recurrent else "", f"{n}a_layer_norm" if separate else f"{n}layer_norm", "rnn")
    critic = _latent(w, x, separate, theirs if recurrent else "", f"{n}c_layer_norm", "c_rnn") if separate else latent
    value = w.linear(critic, f"{n}value")
    if f"{p}value_mean_std.running_mean" in w.weights:
        mean, std = moments(w.weights, f"{p}value_mean_std.running_mean", f"{p}value_mean_std.running_var", root=True, inside=1e-5)
        value = w.ranged(w.tracer.call("clamp", value, -5.0, 5.0), std, mean)
    several = w.weights.numbered(f"{n}logits.")
    if several or f"{n}logits.weight" in w.weights:
        logits = [w.linear(latent, f"{n}logits.{k}") for k in several] or [w.linear(latent, f"{n}logits")]
        w.gives(logits[0] if len(logits) == 1 else w.tracer.call("cat", tuple(logits), -1), "categorical", value=value)
        return
    log_std: Ref | Tensor | None = w.linear(latent, f"{n}sigma") if f"{n}sigma.weight" in w.weights else None
    if f"{n}sigma" in w.weights:
        log_std = w.weights[f"{n}sigma"]
    w.notes.append("sigma is taken as the logarithm of the standard deviation (a2c_continuous_logstd)")
    action = w.linear(latent, f"{n}mu")
    if w.ending:
        action = w.tracer.call("tanh", action)
    if w.stretched():
        w.notes.append("rl_games' player clips to ±1 and stretches to the environment's bounds (clip_actions); so does this")
    w.gives_clipped(action, log_std, value)


def _latent(w: Writer, x: Ref, mlp: str, rnn: str, norm: str, name: str) -> Ref:
    """The layers before the heads: an LSTM or GRU before or after them, what comes in joined to its inputs or outputs where the shapes say so."""
    if not rnn:
        return w.sequential(x, mlp, open_end=True)
    width, first, inputs = w.tracer.shape(x)[-1], w.width(mlp), int(w.weights[f"{rnn}weight_ih_l0"].shape[1])
    hidden = int(w.weights[f"{rnn}weight_hh_l0"].shape[1])
    before = inputs == width and first in {hidden, hidden + width} and (first != width or hidden == width)
    if not before:
        made = w.sequential(x, mlp, open_end=True)
        made = w.tracer.call("cat", (made, x), -1) if inputs == w.tracer.shape(made)[-1] + width else made
        return _normed(w, w.recurrent(made, rnn, name), norm)
    made = _normed(w, w.recurrent(x, rnn, name), norm)
    made = w.tracer.call("cat", (made, x), -1) if first == hidden + width else made
    return w.sequential(made, mlp, open_end=True)


def _normed(w: Writer, x: Ref, name: str) -> Ref:
    return w.layer(x, name) if f"{name}.weight" in w.weights else x


def rl_games_sac(w: Writer) -> None:
    """rl_games' SAC: actor.trunk.N gives mean and log_std side by side."""
    x = w.observation(w.width("actor.trunk."))
    if "running_mean_std.running_mean" in w.weights:
        mean, std = moments(w.weights, "running_mean_std.running_mean", "running_mean_std.running_var", root=True, inside=1e-5)
        x = w.normalised(x, mean, std, 5.0)
    both = w.sequential(x, "actor.trunk.")
    width = w.tracer.shape(both)[-1] // 2
    raw = w.tracer.call("tanh", w.tracer.call("slice", both, 1, width, 2 * width))
    half = torch.full((width,), 3.5)
    w.notes.append("its log standard deviation is taken to lie between -5 and 2, rl_games' defaults (log_std_bounds)")
    w.gives(w.tracer.call("slice", both, 1, 0, width), "squashed", log_std=w.ranged(raw, half, half - 5))


# ── skrl ──


def is_skrl(weights: Weights) -> bool:
    """Whether models are named as skrl's agents name them when they save."""
    agent = weights.has(r"^(state|observation|value)_preprocessor\.running_mean$") or weights.has(r"^(target_policy|critic_1|value)\.")
    return weights.has(r"^policy\..*_container\.\d") or (agent and weights.has(r"^policy\.(log_std_parameter$|(net|mean_layer)\.)"))


def is_skrl_off_policy(weights: Weights) -> bool:
    """Whether it is one of skrl's agents with critics of actions: DDPG, TD3, SAC, DQN."""
    return (is_skrl(weights) and weights.has(r"^critic_1\.|^target_policy\.")) or (weights.has(r"^q_network\.") and weights.has(r"^target_q_network\."))


def skrl(w: Writer) -> None:
    """skrl: the models ``policy`` and ``value`` by name, of its instantiators or the user's own, a RunningStandardScaler (ε = 1e-8, clip 5)."""
    values = "q_network." if w.weights.has(r"^q_network\.") else ""
    mine = _below(w.weights, values or "policy.")
    found = guessing.sort(mine)
    first = mine[f"{found.acting[0]}.weight"]
    if first.dim() != 2:
        raise Missing(f"{w.weights.where}: a skrl model that convolves images is not known here; give its class with --model module:Class")
    x = w.observation(int(first.shape[1]))
    place = w.weights.first("observation_preprocessor.running_mean", "state_preprocessor.running_mean")
    if place:
        mean, std = moments(w.weights, place, place.removesuffix("mean") + "variance", root=True, outside=1e-8)
        x = w.normalised(x, mean, std, 5.0)
    else:
        w.notes.append(UNSEEN)
    names = [f"{values or 'policy.'}{name}" for name in found.acting]
    latent = w.chain(x, names[:-1], open_end=True) if len(names) > 1 else x
    action = w.chain(latent, names[-1:])
    if values:
        w.gives(action, "greedy")
        return
    value = _skrl_value(w, x, latent, found)
    log_std = found.log_std
    if log_std is None and found.spread:
        raise Missing(f"{w.weights.where}: a skrl model with a layer of log standard deviations is not known here; give its class with --model module:Class")
    kind = "gaussian" if log_std is not None else categorical_or(w, "deterministic") if w.space is not None else "categorical" if w.weights.has(r"^value\.") else "deterministic"
    if kind == "deterministic" and not w.ending and w.weights.has(r"^target_policy\.") and w.space is not None and all(map(math.isfinite, (*w.space.low, *w.space.high))):
        w.notes.append("a deterministic actor (DDPG, TD3) is taken to end in tanh, stretched to the environment's bounds; the file doesn't tell")
        w.gives(action, "tanh", value=value)
        return
    if kind != "categorical":
        action = w.ended(action)
        w.notes += [] if w.ending else [ENDING.format(name="skrl", activation=w.activation)]
    w.gives(action, kind, log_std=None if log_std is None else log_std.clamp(-20, 2), value=value)


def _below(weights: Weights, prefix: str) -> Weights:
    return Weights({n.removeprefix(prefix): t for n, t in weights.tensors.items() if n.startswith(prefix)}, weights.where)


def _skrl_value(w: Writer, x: Ref, latent: Ref, found: guessing.Sorted) -> Ref | None:
    """The value's head on the policy's layers, or its own model; put back into the return's scale where that was normalised."""
    value = w.layer(latent, f"policy.{found.value[0]}") if found.head_value else None
    own = guessing.layers(_below(w.weights, "value."))
    shapes = [w.weights[f"value.{n}.weight"].shape for n in own]
    if value is None and own and guessing.follow(shapes) and len(shapes[0]) == 2 and shapes[0][1] == w.tracer.shape(x)[-1] and shapes[-1][0] == 1:
        value = w.chain(x, [f"value.{n}" for n in own])
    scaler = "value_preprocessor.running_mean"
    if value is not None and scaler in w.weights:
        mean, std = moments(w.weights, scaler, "value_preprocessor.running_variance", root=True)
        value = w.ranged(w.tracer.call("clamp", value, -5.0, 5.0), std, mean)
    return value
