"""RLlib's checkpoint folders, both stacks, read without Ray: pickles stay inert, arrays are made of their bytes.

New stack (RLModule): ``…/rl_module/NAME/module_state.pkl`` and ``class_and_ctor_args.pkl``, which holds spaces and sizes. Old
stack (Policy): ``policies/NAME/policy_state.pkl``. PPO, IMPALA, APPO, BC, MARWIL, SAC and DQN with plain encoders. ``--format
rllib:NAME`` chooses among several policies. Actions are in [−1, 1] inside and stretched to the bounds (``normalize_actions``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from distillrl.errors import Failed, Misconfigured, Missing, nearest
from distillrl.records import ActionSpace, Spec
from distillrl.teachers import pickles, rllib_filters, spaces
from distillrl.teachers.archives import read_file
from distillrl.teachers.flax import parameters
from distillrl.teachers.graph import Ref
from distillrl.teachers.pickles import Global
from distillrl.teachers.writer import Weights, Writer, check_activation, policy

if TYPE_CHECKING:
    from distillrl.teachers import Options

TITLE = "RLlib"
MAX_BYTES = 1 << 30
NEW = ("learner_group/learner/rl_module", "learner/rl_module", "rl_module", "")


def sniff(path: Path) -> bool:
    """Whether the folder holds a checkpoint of RLlib, of either stack."""
    return path.is_dir() and bool(_new(path) or _old(path))


def load(path: Path, options: Options, spec: Spec | None = None) -> Any:
    """The policy of a checkpoint. Raises Failed (damaged, hostile), Missing (a network not known here), Misconfigured."""
    new, old = _new(path), _old(path)
    found = new or old
    wanted = (options.format or "").partition(":")[2]
    if wanted and wanted not in found:
        raise Misconfigured(f"--format rllib:{wanted}: {path} has no such policy{nearest(wanted, found)}")
    if not wanted and len(found) > 1 and "default_policy" not in found:
        raise Misconfigured(f"{path} holds the policies {', '.join(sorted(found))}: say which with --format rllib:NAME")
    name = wanted or ("default_policy" if "default_policy" in found else next(iter(found)))
    where = f"{path} ({name})"
    try:
        return (_load_new if new else _load_old)(found[name], where, options, spec)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        raise Failed(f"{where} is damaged: its parameters make no sense ({type(error).__name__}: {str(error)[:100]})") from None


def _new(path: Path) -> dict[str, Path]:
    for part in NEW:
        folder = path / part
        if folder.is_dir():
            found = {p.parent.name: p.parent for p in sorted(folder.glob("*/module_state.pkl"))}
            if found or ((folder / "module_state.pkl").is_file() and (folder / "class_and_ctor_args.pkl").is_file() and not part):
                return found or {path.name: path}
    return {}


def _old(path: Path) -> dict[str, Path]:
    found = {p.parent.name: p.parent for p in sorted((path / "policies").glob("*/policy_state.pkl"))} if (path / "policies").is_dir() else {}
    return found or ({path.name: path} if (path / "policy_state.pkl").is_file() else {})


def _tree(file: Path) -> Any:
    if file.is_symlink():
        raise Failed(f"{file} is a link to elsewhere, which is not followed")
    return pickles.read(read_file(file, MAX_BYTES), str(file))


# ── the new stack ──


def _load_new(folder: Path, where: str, options: Options, spec: Spec | None) -> Any:
    tensors = parameters(_tree(folder / "module_state.pkl"), where)
    told = pickles.entries(_tree(folder / "class_and_ctor_args.pkl")) or {}
    kind = told.get("class")
    kind = kind.name if isinstance(kind, Global) else ""
    _, arguments = told["ctor_args_and_kwargs"]
    arguments = pickles.entries(arguments) or {}
    config = pickles.entries(arguments.get("model_config")) or {}
    own_action = spaces.of_tree(arguments["action_space"], where).action(where)
    own = Spec(spaces.of_tree(arguments["observation_space"], where).groups(), own_action)
    w = Writer(Weights(tensors, where), check_activation(_word(config.get("fcnet_activation", "tanh"))), own_action)
    head = check_activation(_word(config.get("head_fcnet_activation", "relu")))
    body = next((p for p in ("encoder.actor_encoder.", "encoder.encoder.", "pi_encoder.", "encoder.") if w.weights.numbered(f"{p}net.mlp.") or f"{p}lstm.weight_ih_l0" in w.weights), None)
    if body is None:
        raise Missing(f"{where}: an RLModule with the layers {', '.join(list(tensors)[:4])}, … is not known here; plain ones and LSTMs are")
    x = _filtered(w, w.observation(_width(w, body)), folder)
    latent = _encoded(w, x, body, "actor")
    if w.weights.numbered("af.net.mlp."):
        _q(w, latent, head, config)
    else:
        _actor(w, x, latent, head, "SAC" in kind)
    info = {"format": TITLE, "algorithm": kind, "notes": [] if "fcnet_activation" in config else [f"the activation {w.activation} is RLlib's default"]}
    return policy(w, spec if spec is not None and len(spec.observations) > 1 else own, options.sees, where, info)


def _filtered(w: Writer, x: Ref, folder: Path) -> Ref:
    """The observation as RLlib's MeanStdFilter gives it, where the checkpoint has one."""
    found, words = rllib_filters.found(folder.parents[2] if len(folder.parents) > 2 else folder)
    w.notes += words
    if found is None:
        return x
    w.notes.append("its observations are normalised by RLlib's MeanStdFilter, with the checkpoint's statistics")
    return w.normalised(x, found.mean, found.std, found.clip)


def _width(w: Writer, prefix: str) -> int:
    """How many numbers come into an encoder."""
    mlp = next((m for m in (f"{prefix}net.mlp.", f"{prefix}tokenizer.net.mlp.") if w.weights.numbered(m)), None)
    return w.width(mlp) if mlp is not None else int(w.weights[f"{prefix}lstm.weight_ih_l0"].shape[1])


def _encoded(w: Writer, x: Ref, prefix: str, name: str) -> Ref:
    """An encoder: layers, or an LSTM behind layers (``use_lstm``)."""
    mlp = next((m for m in (f"{prefix}net.mlp.", f"{prefix}tokenizer.net.mlp.") if w.weights.numbered(m)), None)
    x = w.sequential(x, mlp, open_end=True) if mlp is not None else x
    return w.recurrent(x, f"{prefix}lstm.", name) if f"{prefix}lstm.weight_ih_l0" in w.weights else x


def _word(name: Any) -> str:
    return {"swish": "silu", "linear": "identity", "none": "identity"}.get(str(name).lower(), str(name).lower()) if name else "identity"


def _headed(w: Writer, latent: Ref, prefix: str, activation: str) -> Ref:
    mine, w.activation = w.activation, activation
    made = w.sequential(latent, prefix)
    w.activation = mine
    return made


def _q(w: Writer, latent: Ref, head: str, config: Mapping[str, Any]) -> None:
    q = _headed(w, latent, "af.net.mlp.", head)
    atoms = int(config.get("num_atoms", 1))
    if atoms > 1:  # both streams of a dueling one are constant over the atoms in RLlib, so the softmax doesn't see the value's
        support = torch.linspace(float(config.get("v_min", -10.0)), float(config.get("v_max", 10.0)), atoms)
        chances = w.tracer.call("softmax", w.tracer.call("unflatten", q, 1, (-1, atoms)), -1)
        w.gives(w.tracer.call("sum", w.tracer.call("mul", chances, w.constant(support)), (-1,)), "greedy")
        return
    if config.get("dueling", True) and w.weights.numbered("vf.net.mlp."):
        mean = w.tracer.call("mean", q, (-1,), True)
        q = w.tracer.call("add", w.tracer.call("sub", q, mean), _headed(w, latent, "vf.net.mlp.", head))
    w.gives(q, "greedy")


def _actor(w: Writer, x: Ref, latent: Ref, head: str, squashed: bool) -> None:
    raw = _headed(w, latent, "pi.net.mlp.", head)
    value = None
    if w.weights.numbered("vf.net.mlp.") and not squashed:
        critic = "encoder.critic_encoder."
        value = _headed(w, _encoded(w, x, critic, "critic") if w.weights.has(rf"^{critic}") else latent, "vf.net.mlp.", head)
    _played(w, raw, value, squashed, w.weights.first("pi.log_std", "pi.net.log_std"))


def _played(w: Writer, raw: Ref, value: Ref | None, squashed: bool, free: str | None) -> None:
    """Mean and log_std side by side (or a free one), in [−1, 1], stretched to the bounds where there are some."""
    space = w.space
    assert space is not None
    if space.kind != "box":
        w.gives(raw, "categorical", value=value)
        return
    width = space.dimensions
    mean = w.tracer.call("slice", raw, 1, 0, width) if free is None else raw
    log_std: Any = w.tracer.call("slice", raw, 1, width, 2 * width) if free is None else w.weights[free]
    if squashed:
        w.notes.append("the most likely action is tanh of the mean; RLlib itself, asked without exploration, leaves the tanh out (2.60)")
        w.gives(mean, "squashed", log_std=w.tracer.call("clamp", log_std, -20.0, 2.0), value=value)
        return
    low, high = torch.tensor(space.low, dtype=torch.float32), torch.tensor(space.high, dtype=torch.float32)
    if bool(torch.isfinite(low).all() and torch.isfinite(high).all()):
        half, middle = (high - low) / 2, (high + low) / 2
        if not (bool((half == 1).all()) and bool((middle == 0).all())):
            mean = w.ranged(mean, half, middle)
            log_std = w.tracer.call("add", log_std, w.constant(half.log())) if isinstance(log_std, Ref) else log_std + half.log()
    w.gives(mean, "gaussian", log_std=log_std, value=value)


# ── the old stack ──


def _load_old(folder: Path, where: str, options: Options, spec: Spec | None) -> Any:
    state = pickles.entries(_tree(folder / "policy_state.pkl")) or {}
    tensors = parameters(state.get("weights"), where)
    described = pickles.entries(state.get("policy_spec")) or {}
    config = pickles.entries(described.get("config")) or {}
    model = pickles.entries(config.get("model")) or {}
    weights = Weights(tensors, where)
    hidden = _stack(tensors, "_hidden_layers")
    if not hidden or "_logits._model.0.weight" not in weights or model.get("use_lstm") or model.get("use_attention"):
        raise Missing(f"{where}: a network of RLlib's old stack with the layers {', '.join(list(tensors)[:4])}, … is not known here; FullyConnectedNetwork is")
    activation = check_activation(_word(model.get("fcnet_activation", "tanh")))
    out, free = weights["_logits._model.0.weight"], weights.first("_append_free_log_std.log_std", "log_std")
    w = Writer(weights, activation, (spec.action if spec is not None else None) or _guess(int(out.shape[0]), config, free is not None))
    x = w.observation(int(weights[f"{hidden[0]}.weight"].shape[1]))
    filter_name = str(config.get("observation_filter", "NoFilter"))
    if filter_name not in {"NoFilter", "None"}:
        w.notes.append(f"its observations went through RLlib's {filter_name}, whose statistics are not read: this teacher will play badly")
    latent = _through(w, x, hidden)
    value = None
    if "_value_branch._model.0.weight" in weights:
        separate = _stack(tensors, "_value_branch_separate")
        value = w.linear(_through(w, x, separate) if separate else latent, "_value_branch._model.0")
    _played(w, w.linear(latent, "_logits._model.0"), value, False, free)
    if spec is None:
        w.notes.append("RLlib's old stack names no spaces that are read here: give the environment with --env for its bounds")
    info = {"format": f"{TITLE} (old stack)", "algorithm": str(described.get("policy_class", "?"))[:60], "notes": []}
    return policy(w, spec, options.sees, where, info)


def _stack(tensors: Mapping[str, Tensor], stem: str) -> list[str]:
    numbers = sorted(int(m.group(1)) for n in tensors if (m := re.fullmatch(rf"{stem}\.(\d+)\._model\.0\.weight", n)))
    return [f"{stem}.{k}._model.0" for k in numbers]


def _through(w: Writer, x: Ref, names: list[str]) -> Ref:
    for name in names:
        x = w.act(w.linear(x, name))
    return x


def _guess(outputs: int, config: Mapping[str, Any], free: bool) -> ActionSpace:
    from distillrl.teachers.fitting import unbounded

    del config
    return unbounded(outputs // 2) if outputs % 2 == 0 and not free else ActionSpace("discrete", n=outputs)
