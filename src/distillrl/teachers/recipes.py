"""The names that libraries give to their weights, a function and a row each; what a file doesn't hold is a note."""

from __future__ import annotations

import torch

from distillrl.errors import Missing
from distillrl.teachers import guessing, recipes_robots, recipes_tianshou
from distillrl.teachers.recipes_robots import UNSEEN, categorical_or
from distillrl.teachers.statedicts import Recipe, spread_of
from distillrl.teachers.writer import Writer


def _cleanrl_continuous(w: Writer) -> None:
    """CleanRL ppo_continuous_action (and RPO): actor_mean.N, actor_logstd, critic.N."""
    x = w.observation(w.width("actor_mean."))
    w.notes.append(UNSEEN)
    w.gives(w.sequential(x, "actor_mean."), "gaussian", log_std=w.weights["actor_logstd"], value=w.sequential(x, "critic.") if w.weights.numbered("critic.") else None)


def _cleanrl_discrete(w: Writer) -> None:
    """CleanRL ppo: actor.N and critic.N with tanh; any pair of such names."""
    x = w.observation(w.width("actor."))
    value = w.sequential(x, "critic.") if w.weights.numbered("critic.") and w.width("critic.") == w.width("actor.") else None
    w.gives(w.sequential(x, "actor."), "categorical" if w.space is None and value is not None else categorical_or(w, "deterministic"), value=value)


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
    Recipe("rsl_rl", "rsl_rl 5", (r"^actor_state_dict\.mlp\.",), (), "elu", recipes_robots.rsl_rl5),
    Recipe("rsl_rl", "rsl_rl 1 to 4", (r"^model_state_dict\.(actor|student)\." + _NUMBER, r"^model_state_dict\.(std|log_std|actor_obs_normalizer\._mean|distribution\.\w+)$"), (), "elu", recipes_robots.rsl_rl),
    Recipe("rl_games", "rl_games", (r"(^|\.)a2c_network\.actor_mlp\.",), (), "elu", recipes_robots.rl_games),
    Recipe("rl_games", "rl_games (SAC)", (r"^actor\.trunk\." + _NUMBER, r"^critic\.Q1\."), (), "relu", recipes_robots.rl_games_sac),
    Recipe("skrl", "skrl (off-policy)", (), (), "relu", recipes_robots.skrl, recipes_robots.is_skrl_off_policy),
    Recipe("skrl", "skrl", (), (), "elu", recipes_robots.skrl, recipes_robots.is_skrl),
    Recipe("tianshou", "Tianshou", (r"(^|^actor\.|^policy\.actor\.)preprocess\.model\.model\.",), (), "relu", recipes_tianshou.actor),
    Recipe("tianshou", "Tianshou", (r"^(policy\.)?model\.model\.(model\.)?" + _NUMBER,), (), "relu", recipes_tianshou.values),
    Recipe("tianshou", "Tianshou (recurrent)", (r"(^|\.)nn\.weight_ih_l0$", r"(^|\.)fc1\.weight$", r"(^|\.)fc2\.weight$"), (), "relu", recipes_tianshou.recurrent),
    Recipe("cleanrl", "CleanRL", (r"^actor_mean\." + _NUMBER, r"^actor_logstd$"), (), "tanh", _cleanrl_continuous),
    Recipe("cleanrl", "CleanRL", (r"(^|^0\.|^actor\.)fc1\.weight", r"action_scale"), (), "relu", _cleanrl_actor),
    Recipe("dueling", "a dueling network", (), (), "relu", guessing.dueling, guessing.is_dueling),
    Recipe("cleanrl", "CleanRL", (r"^network\." + _NUMBER,), (), "relu", _cleanrl_network),
    Recipe("pufferlib", "PufferLib", (r"(^|\.)encoder\.", r"(^|\.)(decoder|decoder_mean)\."), (), "gelu", _puffer),
    Recipe("sb3_policy", "a stable-baselines3 policy.pth", (r"^mlp_extractor\.policy_net\.", r"^action_net\.weight$"), (), "tanh", _sb3_bare),
    Recipe("rsl_rl", "rsl_rl 1 to 4", (r"^actor\." + _NUMBER, r"^(std|log_std|actor_obs_normalizer\._mean)$"), (), "elu", recipes_robots.rsl_rl),
    Recipe("cleanrl", "CleanRL", (r"^actor\." + _NUMBER,), (), "tanh", _cleanrl_discrete),
    Recipe("plain", "a plain Sequential", (r"^(" + "|".join(p.replace(".", r"\.") for p in PLAIN) + r")" + _NUMBER,), (r"\.fc\d*\.", r"conv"), "relu", _plain),
    Recipe("plain", "a network of no known library", (), (), "relu", guessing.chain, guessing.chained),
    Recipe("plain_q", "a network that gives values of actions", (), (), "relu", guessing.q_values, guessing.chained, named=True),
)  # fmt: skip
"""The first whose names are all there is taken; ``--format NAME`` leaves only those of that name."""
