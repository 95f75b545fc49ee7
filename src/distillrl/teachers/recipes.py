"""The names that libraries give to their weights, a function and a row each; what a file doesn't hold is a note."""

from __future__ import annotations

import math

import torch

from distillrl.errors import Missing
from distillrl.teachers import guessing
from distillrl.teachers.graph import Ref
from distillrl.teachers.statedicts import Recipe, moments, spread_of
from distillrl.teachers.writer import Writer

UNSEEN = "whether observations were normalised outside of the network, the file doesn't tell: if they were, this teacher will play badly"


def _categorical_or(w: Writer, box: str) -> str:
    return box if w.space is None or w.space.kind == "box" else "categorical"


def _rsl_rl(w: Writer) -> None:
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


def _rsl_rl5(w: Writer) -> None:
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


def _rl_games(w: Writer) -> None:
    """rl_games: a2c_network.actor_mlp, mu, sigma (its logarithm), value; running_mean_std with ε = 1e-5 and clip 5."""
    p = "model." if w.weights.has(r"^model\.a2c_network\.") else ""
    n = f"{p}a2c_network."
    rnn = f"{n}rnn.rnn."
    rnn = rnn if f"{rnn}weight_ih_l0" in w.weights else ""
    mlp = w.width(f"{n}actor_mlp.")
    inputs = int(w.weights[f"{rnn}weight_ih_l0"].shape[1]) if rnn else 0
    statistics = w.weights.first(f"{p}running_mean_std.running_mean", "running_mean_std.running_mean")
    width = int(w.weights[statistics].numel()) if statistics else (min(mlp, inputs) if rnn else mlp)
    x = w.observation(width)
    if statistics:
        mean, std = moments(w.weights, statistics, statistics.removesuffix("mean") + "var", root=True, inside=1e-5)
        x = w.normalised(x, mean, std, 5.0)
    if rnn and inputs == width and mlp != width:
        x = w.recurrent(x, rnn, "rnn")
        latent = w.sequential(x, f"{n}actor_mlp.", open_end=True)
    else:
        latent = w.sequential(x, f"{n}actor_mlp.", open_end=True)
        latent = w.recurrent(latent, rnn, "rnn") if rnn else latent
    if f"{n}layer_norm.weight" in w.weights:
        latent = w._layer(latent, f"{n}layer_norm", w.weights[f"{n}layer_norm.weight"])
    critic = w.sequential(x, f"{n}critic_mlp.", open_end=True) if w.weights.numbered(f"{n}critic_mlp.") and not rnn else latent
    value = w.linear(critic, f"{n}value")
    if f"{p}value_mean_std.running_mean" in w.weights:
        mean, std = moments(w.weights, f"{p}value_mean_std.running_mean", f"{p}value_mean_std.running_var", root=True, inside=1e-5)
        value = w.ranged(w.tracer.call("clamp", value, -5.0, 5.0), std, mean)
    if f"{n}logits.weight" in w.weights:
        w.gives(w.linear(latent, f"{n}logits"), "categorical", value=value)
        return
    action = w.linear(latent, f"{n}mu")
    space, sigma = w.space, w.weights.first(f"{n}sigma")
    if space is not None and space.kind == "box" and all(map(math.isfinite, (*space.low, *space.high))) and set(zip(space.low, space.high, strict=True)) != {(-1.0, 1.0)}:
        low, high = torch.tensor(space.low, dtype=torch.float32), torch.tensor(space.high, dtype=torch.float32)
        w.notes.append("rl_games' player clips to ±1 and stretches to the environment's bounds (clip_actions); so does this")
        w.gives(w.ranged(w.tracer.call("clamp", action, -1.0, 1.0), (high - low) / 2, (high + low) / 2), "deterministic", value=value)
        return
    w.notes.append("sigma is taken as the logarithm of the standard deviation (a2c_continuous_logstd)")
    w.gives(action, "gaussian" if sigma else "deterministic", log_std=w.weights[sigma] if sigma else None, value=value)


def _skrl(w: Writer) -> None:
    """skrl: policy.net_container (with policy_layer where shared), log_std_parameter, a RunningStandardScaler (ε = 1e-8, clip 5)."""
    shared = "policy.policy_layer.weight" in w.weights
    x = w.observation(w.width("policy.net_container."))
    place = w.weights.first("observation_preprocessor.running_mean", "state_preprocessor.running_mean")
    if place:
        mean, std = moments(w.weights, place, place.removesuffix("mean") + "variance", root=True, outside=1e-8)
        x = w.normalised(x, mean, std, 5.0)
    else:
        w.notes.append(UNSEEN)
    latent = w.sequential(x, "policy.net_container.", open_end=shared)
    action = w.linear(latent, "policy.policy_layer") if shared else latent
    value = w.linear(latent, "policy.value_layer") if shared and "policy.value_layer.weight" in w.weights else None
    if value is None and w.weights.numbered("value.net_container.") and w.width("value.net_container.") == w.width("policy.net_container."):
        latent = w.sequential(x, "value.net_container.", open_end="value.value_layer.weight" in w.weights)
        value = w.linear(latent, "value.value_layer") if "value.value_layer.weight" in w.weights else latent
    scaler = "value_preprocessor.running_mean"
    if value is not None and scaler in w.weights:
        mean, std = moments(w.weights, scaler, "value_preprocessor.running_variance", root=True)
        value = w.ranged(w.tracer.call("clamp", value, -5.0, 5.0), std, mean)
    log_std = w.weights["policy.log_std_parameter"].clamp(-20, 2) if "policy.log_std_parameter" in w.weights else None
    kind = "gaussian" if log_std is not None else _categorical_or(w, "deterministic") if w.space is not None else "categorical" if w.weights.has(r"^value\.") else "deterministic"
    w.gives(action, kind, log_std=log_std, value=value)


def _cleanrl_continuous(w: Writer) -> None:
    """CleanRL ppo_continuous_action (and RPO): actor_mean.N, actor_logstd, critic.N."""
    x = w.observation(w.width("actor_mean."))
    w.notes.append(UNSEEN)
    w.gives(w.sequential(x, "actor_mean."), "gaussian", log_std=w.weights["actor_logstd"], value=w.sequential(x, "critic.") if w.weights.numbered("critic.") else None)


def _cleanrl_discrete(w: Writer) -> None:
    """CleanRL ppo: actor.N and critic.N with tanh; any pair of such names."""
    x = w.observation(w.width("actor."))
    value = w.sequential(x, "critic.") if w.weights.numbered("critic.") and w.width("critic.") == w.width("actor.") else None
    w.gives(w.sequential(x, "actor."), "categorical" if w.space is None and value is not None else _categorical_or(w, "deterministic"), value=value)


def _cleanrl_network(w: Writer) -> None:
    """CleanRL dqn and c51 (network.N), and ppo_atari (network.N, then actor and critic), images divided by 255."""
    first = w.weights[f"network.{w.weights.numbered('network.')[0]}.weight"]
    image = first.dim() == 4
    x = w.observation(int(first.shape[1]), 84, 84) if image else w.observation(int(first.shape[1]))
    if image:
        x = w.tracer.call("div", x, 255.0)
    headed = "actor.weight" in w.weights
    latent = w.sequential(x, "network.", open_end=headed)
    if headed:
        latent = w.recurrent(latent, "lstm.", "lstm") if "lstm.weight_ih_l0" in w.weights else latent
        w.gives(w.linear(latent, "actor"), "categorical", value=w.linear(latent, "critic") if "critic.weight" in w.weights else None)
    elif "atoms" in w.weights:
        atoms = w.weights["atoms"]
        chances = w.tracer.call("softmax", w.tracer.call("unflatten", latent, 1, (-1, int(atoms.numel()))), -1)
        w.gives(w.tracer.call("sum", w.tracer.call("mul", chances, w.constant(atoms)), (-1,)), "greedy")
    else:
        w.gives(latent, "greedy")


def _cleanrl_actor(w: Writer) -> None:
    """CleanRL sac, td3 and ddpg: fc1, fc2, then fc_mu or fc_mean and fc_logstd, action_scale and action_bias; also in a tuple (0.)."""
    p = "0." if "0.fc1.weight" in w.weights else "actor." if "actor.fc1.weight" in w.weights else ""
    x = w.observation(int(w.weights[f"{p}fc1.weight"].shape[1]))
    latent = w.act(w.linear(w.act(w.linear(x, f"{p}fc1")), f"{p}fc2"))
    scale, bias = (w.weights[f"{p}{n}"].reshape(-1) for n in ("action_scale", "action_bias"))
    last = f"{p}fc_mu" if f"{p}fc_mu.weight" in w.weights else f"{p}fc_mean"
    mean = w.linear(latent, last)
    fits = w.space is not None and w.space.kind == "box" and torch.allclose(torch.tensor(w.space.low, dtype=torch.float32), bias - scale) and torch.allclose(torch.tensor(w.space.high, dtype=torch.float32), bias + scale)
    if f"{p}fc_logstd.weight" in w.weights and fits:
        raw = w.tracer.call("tanh", w.linear(latent, f"{p}fc_logstd"))
        half = torch.full((w.tracer.shape(mean)[-1],), 3.5)
        w.gives(mean, "squashed", log_std=w.ranged(raw, half, half - 5))
    else:
        width = w.tracer.shape(mean)[-1]
        w.gives(w.ranged(w.tracer.call("tanh", mean), scale.expand(width), bias.expand(width)), "deterministic")


def _tianshou(w: Writer) -> None:
    """Tianshou: actor.preprocess.model.model.N, then actor.mu (or last) and actor.sigma_param."""
    p = next(q for q in ("actor.", "policy.actor.", "") if w.weights.numbered(f"{q}preprocess.model.model."))
    x = w.observation(w.width(f"{p}preprocess.model.model."))
    w.notes.append(UNSEEN)
    latent = w.sequential(x, f"{p}preprocess.model.model.", open_end=True)
    head = next(h for h in (f"{p}mu.model.", f"{p}last.model.", f"{p}mu.", f"{p}last.") if w.weights.numbered(h))
    action = w.sequential(latent, head)
    c = p.replace("actor", "critic")
    value = None
    if w.weights.numbered(f"{c}preprocess.model.model.") and w.weights.numbered(f"{c}last.model.") and w.width(f"{c}preprocess.model.model.") == w.width(f"{p}preprocess.model.model."):
        value = w.sequential(w.sequential(x, f"{c}preprocess.model.model.", open_end=True), f"{c}last.model.")
    if f"{p}sigma_param" in w.weights:
        w.notes.append("whether its mean is bounded by tanh (unbounded=False) and its actions are stretched to the environment's bounds, the file doesn't tell: taken as the action itself")
        w.gives(action, "gaussian", log_std=w.weights[f"{p}sigma_param"], value=value)
    else:
        w.gives(action, _categorical_or(w, "deterministic") if w.space is not None else "categorical", value=value)


def _tianshou_q(w: Writer) -> None:
    """Tianshou's DQN family: model.model.model.N."""
    p = next(q for q in ("model.model.model.", "policy.model.model.model.", "model.model.") if w.weights.numbered(q))
    w.gives(w.sequential(w.observation(w.width(p)), p), "greedy")


def _puffer(w: Writer) -> None:
    """PufferLib's Default: encoder (a layer and GELU), LSTM where there is one (lstm or cell), decoder, value."""
    p = next(q for q in ("policy.policy.", "policy.", "") if w.weights.has(rf"^{q}(decoder|decoder_mean|value)\."))
    numbered = bool(w.weights.numbered(f"{p}encoder."))
    x = w.observation(w.width(f"{p}encoder."))
    latent = w.sequential(x, f"{p}encoder.", open_end=True) if numbered else w.act(w.linear(x, f"{p}encoder"), "relu")
    rnn = next((r for q in ("", "policy.") for r in (f"{q}lstm.", f"{q}recurrent.") if f"{r}weight_ih_l0" in w.weights), "")
    latent = w.recurrent(latent, rnn, "lstm") if rnn else latent
    value = w.linear(latent, w.weights.first(f"{p}value.weight", f"{p}value_head.weight", f"{p}value_fn.weight").removesuffix(".weight")) if w.weights.has(rf"^{p}value") else None  # type: ignore[union-attr]  # it is there
    if f"{p}decoder_mean.weight" in w.weights:
        w.gives(w.linear(latent, f"{p}decoder_mean"), "gaussian", log_std=w.weights[f"{p}decoder_logstd"], value=value)
    else:
        w.gives(w.sequential(latent, f"{p}decoder.") if w.weights.numbered(f"{p}decoder.") else w.linear(latent, f"{p}decoder"), "categorical", value=value)


def _sb3_bare(w: Writer) -> None:
    """An SB3 policy.pth alone: mlp_extractor.policy_net.N, action_net."""
    x = w.observation(w.width("mlp_extractor.policy_net."))
    w.notes.append(UNSEEN)
    latent = w.sequential(x, "mlp_extractor.policy_net.", open_end=True)
    value = w.linear(w.sequential(x, "mlp_extractor.value_net.", open_end=True), "value_net") if w.weights.numbered("mlp_extractor.value_net.") else None
    log_std = spread_of(w.weights, "log_std", None)
    if log_std is not None and log_std.dim() != 1:
        raise Missing(f"{w.weights.where}: gSDE needs the whole zip that stable-baselines3 saved")
    w.gives(w.linear(latent, "action_net"), "gaussian" if log_std is not None else "categorical", log_std=log_std, value=value)


def _plain(w: Writer) -> None:
    """A Sequential of any name: policy.N, pi.N, net.N, model.N, 0.weight."""
    p = next(q for q in PLAIN if w.weights.numbered(q))
    action = w.sequential(w.observation(w.width(p)), p)
    w.notes.append(f"its layers are taken to be {p}N and nothing else; {UNSEEN}")
    guessing.finish(w, action, None, None, p == "q_net.")


PLAIN = ("policy.", "policy_net.", "pi.", "actor_net.", "actor_mlp.", "mlp.", "net.", "network.", "model.", "layers.", "actor.net.", "actor.mlp.", "policy.net.", "policy.mlp.", "q_net.", "module.", "")
_NUMBER = r"\d+\.weight$"

RECIPES: tuple[Recipe, ...] = (
    Recipe("rsl_rl", "rsl_rl 5", (r"^actor_state_dict\.mlp\.",), (), "elu", _rsl_rl5),
    Recipe("rsl_rl", "rsl_rl 1 to 4", (r"^model_state_dict\.(actor|student)\." + _NUMBER, r"^model_state_dict\.(std|log_std|actor_obs_normalizer\._mean|distribution\.\w+)$"), (), "elu", _rsl_rl),
    Recipe("rl_games", "rl_games", (r"(^|\.)a2c_network\.actor_mlp\.",), (), "elu", _rl_games),
    Recipe("skrl", "skrl", (r"^policy\.net_container\." + _NUMBER,), (), "elu", _skrl),
    Recipe("tianshou", "Tianshou", (r"(^|^actor\.|^policy\.actor\.)preprocess\.model\.model\.",), (), "relu", _tianshou),
    Recipe("tianshou", "Tianshou", (r"^(policy\.)?model\.model\.(model\.)?" + _NUMBER,), (), "relu", _tianshou_q),
    Recipe("cleanrl", "CleanRL", (r"^actor_mean\." + _NUMBER, r"^actor_logstd$"), (), "tanh", _cleanrl_continuous),
    Recipe("cleanrl", "CleanRL", (r"(^|^0\.|^actor\.)fc1\.weight", r"action_scale"), (), "relu", _cleanrl_actor),
    Recipe("dueling", "a dueling network", (), (), "relu", guessing.dueling, guessing.is_dueling),
    Recipe("cleanrl", "CleanRL", (r"^network\." + _NUMBER,), (), "relu", _cleanrl_network),
    Recipe("pufferlib", "PufferLib", (r"(^|\.)encoder\.", r"(^|\.)(decoder|decoder_mean)\."), (), "gelu", _puffer),
    Recipe("sb3_policy", "a stable-baselines3 policy.pth", (r"^mlp_extractor\.policy_net\.", r"^action_net\.weight$"), (), "tanh", _sb3_bare),
    Recipe("rsl_rl", "rsl_rl 1 to 4", (r"^actor\." + _NUMBER, r"^(std|log_std|actor_obs_normalizer\._mean)$"), (), "elu", _rsl_rl),
    Recipe("cleanrl", "CleanRL", (r"^actor\." + _NUMBER,), (), "tanh", _cleanrl_discrete),
    Recipe("plain", "a plain Sequential", (r"^(" + "|".join(p.replace(".", r"\.") for p in PLAIN) + r")" + _NUMBER,), (r"\.fc\d*\.", r"conv"), "relu", _plain),
    Recipe("plain", "a network of no known library", (), (), "relu", guessing.chain, guessing.chained),
    Recipe("plain_q", "a network that gives values of actions", (), (), "relu", guessing.q_values, guessing.chained, named=True),
)  # fmt: skip
"""The first whose names are all there is taken; ``--format NAME`` leaves only those of that name."""
