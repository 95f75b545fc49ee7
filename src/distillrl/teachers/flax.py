"""Parameters of flax networks, read without Jax: SBX's zips (SB3 in Jax) and the pickles that Brax's ``save_params`` writes.

The pickles stay inert; arrays are made of their bytes. SBX's policies hold their spaces and activation; Brax's don't, so
their defaults (swish for PPO, relu for SAC) are said in the notes, and ``--format brax:ACTIVATION`` names another.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from distillrl.errors import Failed, Missing
from distillrl.records import ActionSpace, Spec
from distillrl.teachers import pickles, spaces
from distillrl.teachers.archives import Archive, names_in, read_file, read_json
from distillrl.teachers.graph import Ref
from distillrl.teachers.operators import ACTIVATIONS
from distillrl.teachers.pickles import Global, Made, shown
from distillrl.teachers.sizes import Visits
from distillrl.teachers.writer import Weights, Writer, check_activation, policy

if TYPE_CHECKING:
    from distillrl.teachers import Options

MAX_BYTES = 1 << 30
JAX_ARRAY = "jax._src.array._reconstruct_array"
JAX_ACTIVATIONS = {"swish": "silu", "gelu": "gelu_tanh", "hard_tanh": "hardtanh", "hard_swish": "hardswish", "hard_silu": "hardswish", "soft_sign": "softsign", "log_sigmoid": "logsigmoid"}
"""Jax's names of activations that torch calls otherwise; its gelu is the tanh form by default."""
RENORM_EPSILON = 1e-3


def sniff(path: Path) -> bool:
    """Whether the file is a zip that SBX wrote, or a pickle that names Brax or flax."""
    if not path.is_file():
        return False
    names = set(names_in(path))
    if names:
        return {"data", "pytorch_variables.pth"} <= names and "policy.pth" not in names
    with path.open("rb") as file:
        head = file.read(4096)
    return head[:1] == b"\x80" and any(word in head for word in (b"brax.", b"flax.", b"jax._src.array", b"RunningStatisticsState"))


def load(path: Path, options: Options, spec: Spec | None = None) -> Any:
    """The policy of an SBX zip or of Brax's parameters. Raises Failed (damaged, hostile), Missing (not known here), Misconfigured."""
    try:
        return _sbx(path, options, spec) if names_in(path) else _brax(path, options, spec)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        raise Failed(f"{path} is damaged: its parameters make no sense ({type(error).__name__}: {str(error)[:100]})") from None


def parameters(value: Any, where: str) -> dict[str, Tensor]:
    """The arrays of an inert tree by dotted name; FrozenDicts are seen through."""
    return _parameters(value, Visits(where), "", 0)


def _parameters(value: Any, visits: Visits, prefix: str, depth: int) -> dict[str, Tensor]:
    visits.one(depth)
    pairs = pickles.entries(value)
    if pairs is None and isinstance(value, Made) and value.name.startswith("flax.core"):
        inner = (value.state or {}).get("_dict") if isinstance(value.state, Mapping) else (value.args[0] if value.args else None)
        pairs = pickles.entries(inner)
    if pairs is not None:
        found: dict[str, Tensor] = {}
        for name, inner in pairs.items():
            found.update(_parameters(inner, visits, f"{prefix}.{name}" if prefix else str(name), depth + 1))
        return found
    tensor = _tensor(value, visits.where)
    return {} if tensor is None else {prefix: tensor}


def _tensor(value: Any, where: str) -> Tensor | None:
    if isinstance(value, Made) and value.name == JAX_ARRAY and len(value.args) >= 3:
        value, state = Made(Global("numpy._core.multiarray", "_reconstruct"), ()), value.args[2]
        value.state = state
    if not isinstance(value, Made) or not value.name.startswith(("numpy.core.", "numpy._core.")):
        return None
    tensor = torch.from_numpy(pickles.array(value, where).copy())
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        raise Failed(f"{where} holds NaN or infinity")
    return tensor.float() if tensor.is_floating_point() else tensor


class Layers:
    """Dense layers by number, written down in order; flax keeps kernels as [in, out]."""

    def __init__(self, writer: Writer, tensors: Mapping[str, Tensor], stem: str, statistics: Mapping[str, Tensor] | None = None) -> None:
        self.w, self.stem = writer, stem
        renorms = {n: t for n, t in tensors.items() if statistics and "BatchRenorm_" in n}
        self.tensors = tensors = {n: t for n, t in tensors.items() if n not in renorms}
        self.renorms, self.statistics = renorms, statistics or {}
        numbers = sorted(int(m.group(1)) for n in tensors if (m := re.fullmatch(rf"(?:.*\.)?{stem}(\d+)\.kernel", n)))
        self.names = [next(n for n in tensors if re.fullmatch(rf"(?:.*\.)?{stem}{k}\.kernel", n)).removesuffix(".kernel") for k in numbers]
        odd = sorted({n.rsplit(".", 1)[0] for n in tensors} - set(self.names) - {n.rsplit(".", 1)[0] for n in tensors if n.endswith("log_std")})
        if not self.names or any(re.search(r"(Norm|Renorm|Conv|LSTM|GRU|embed)", n, re.IGNORECASE) for n in odd):
            raise Missing(f"{writer.weights.where}: layers of the kind {odd[:4]} are not known here; Dense layers are")

    @property
    def width(self) -> int:
        """Numbers that the first takes."""
        return int(self.tensors[f"{self.names[0]}.kernel"].shape[0])

    def normed(self, x: Ref, index: int) -> Ref:
        """CrossQ's BatchRenorm before a layer, with its running statistics; nothing where there is none."""
        mean, variance = (next((t for n, t in self.statistics.items() if n.endswith((f"BatchRenorm_{index}.{k}", f"BatchRenorm_{index}.ra_{k}"))), None) for k in ("mean", "var"))
        if not any("BatchRenorm_1." in n for n in self.renorms):  # one alone is made and not applied (batch_norm_actor=False)
            return x
        if mean is None or variance is None:
            raise Failed(f"{self.w.weights.where}: it lacks the running statistics of BatchRenorm_{index}")
        scale, bias = (next((t for n, t in self.renorms.items() if n.endswith(f"BatchRenorm_{index}.{k}")), d) for k, d in (("scale", torch.ones_like(mean)), ("bias", torch.zeros_like(mean))))
        factor = scale.double() / (variance.double() + RENORM_EPSILON).sqrt()
        return self.w.ranged(x, factor.float(), (bias.double() - mean.double() * factor).float())

    def dense(self, x: Ref, index: int) -> Ref:
        """One layer."""
        kernel = self.tensors[f"{self.names[index]}.kernel"]
        bias = self.tensors.get(f"{self.names[index]}.bias")
        if kernel.dim() != 2 or self.w.tracer.shape(x)[-1] != kernel.shape[0]:
            raise Failed(f"{self.w.weights.where}: {self.names[index]} is {list(kernel.shape)}, what comes before it gives {self.w.tracer.shape(x)[-1]}")
        return self.w.tracer.call("linear", x, self.w.constant(kernel.T), None if bias is None else self.w.constant(bias))

    def hidden(self, x: Ref, last: int = 1) -> Ref:
        """All but the last few, each followed by the activation."""
        for i in range(len(self.names) - last):
            x = self.w.act(self.dense(self.normed(x, i), i))
        return self.normed(x, len(self.names) - last)

    def whole(self, x: Ref) -> Ref:
        """All, the last without an activation."""
        return self.dense(self.hidden(x), len(self.names) - 1)


# ── SBX ──


def _sbx(path: Path, options: Options, spec: Spec | None) -> Any:
    where = str(path)
    archive = Archive(read_file(path, MAX_BYTES), where)
    data = read_json(archive.read("data"), where)
    tree = spaces.serialized(data.get("policy"), where)
    if not isinstance(tree, Made) or not tree.name.startswith("sbx.") or not isinstance(tree.state, Mapping):
        raise Failed(f"{where} holds no policy of SBX")
    algorithm = tree.name.split(".")[1]
    observation, action = spaces.of_json(data["observation_space"], where), spaces.of_json(data["action_space"], where)
    own = Spec(observation.groups(), action.action(where))
    writer = Writer(Weights({}, where), _sbx_activation(tree.state, algorithm), own.action)
    _sbx_write(writer, algorithm, tree.state, where)
    info = {"format": "SBX", "algorithm": algorithm, "saved_by": _saved_by(archive), "notes": []}
    return policy(writer, spec if spec is not None and len(spec.observations) > 1 else own, options.sees, f"{path.name} (SBX {algorithm})", info)


def _saved_by(archive: Archive) -> str:
    return f"stable-baselines3 {archive.read('_stable_baselines3_version', 64).decode('utf-8', 'replace').strip()[:20]}" if "_stable_baselines3_version" in archive else "?"


def _sbx_activation(state: Mapping[str, Any], algorithm: str) -> str:
    given = state.get("activation_fn")
    if given is None:
        return "tanh" if algorithm == "ppo" else "relu"
    name = ""
    if isinstance(given, Made) and isinstance(given.state, Mapping):  # a function that Jax compiles, or one with a derivative of its own
        name = str(given.state.get("function_name") or (given.state.get("__name__") if str(given.state.get("__module__")).startswith(("jax", "flax")) else ""))
    elif isinstance(given, Global) and given.module.startswith(("jax", "flax")):
        name = given.name
    name = JAX_ACTIVATIONS.get(name, name)
    if name not in ACTIVATIONS and name != "gelu_tanh":
        raise Missing(f"an activation of SBX's policy ({shown(name) or 'of no name'}) is not known here")
    return name


def _sbx_write(w: Writer, algorithm: str, state: Mapping[str, Any], where: str) -> None:
    def tensors(name: str) -> dict[str, Tensor]:
        made = state.get(name)
        if not isinstance(made, Made) or not isinstance(made.state, Mapping):
            raise Missing(f"{where}: SBX's {algorithm} keeps no {name} that is known here")
        return parameters(made.state["params"], where)

    if algorithm == "dqn":
        layers = Layers(w, tensors("qf_state"), "Dense_")
        w.gives(layers.whole(w.observation(layers.width)), "greedy")
        return
    weights = tensors("actor_state")
    made = state.get("actor_state")
    statistics = made.state.get("batch_stats") if isinstance(made, Made) and isinstance(made.state, Mapping) else None
    actor = Layers(w, weights, "Dense_", parameters(statistics, where) if statistics is not None else None)
    x = w.observation(actor.width)
    if algorithm == "ppo":
        critic = Layers(w, tensors("vf_state"), "Dense_")
        log_std = next((t for n, t in weights.items() if n.endswith("log_std")), None)
        boxed = w.space is not None and w.space.kind == "box"
        raw = actor.whole(x)
        if w.space is not None and w.space.kind == "multibinary":  # two logits a switch, off and on
            raw = w.tracer.call("linear", raw, w.constant(torch.kron(torch.eye(w.space.size), torch.tensor([[-1.0, 1.0]]))), None)
        w.gives(raw, "gaussian" if boxed else "categorical", log_std=log_std if boxed else None, value=critic.whole(x))
    elif algorithm in {"sac", "tqc", "crossq"}:
        latent, n = actor.hidden(x, 2), len(actor.names)
        w.gives(actor.dense(latent, n - 2), "squashed", log_std=w.tracer.call("clamp", actor.dense(latent, n - 1), -20.0, 2.0))
    elif algorithm in {"td3", "ddpg"}:
        w.gives(actor.whole(x), "tanh")
    else:
        raise Missing(f"{where}: SBX's {algorithm} is not known here; PPO, SAC, TQC, CrossQ, TD3, DDPG and DQN are")


# ── Brax ──


def _brax(path: Path, options: Options, spec: Spec | None) -> Any:
    where = str(path)
    tree = pickles.read(read_file(path, MAX_BYTES), where)
    if not isinstance(tree, (tuple, list)) or len(tree) < 2:
        raise Missing(f"{where} holds no parameters of Brax: a normaliser and a policy are right")
    format_activation = (options.format or "").partition(":")[2]
    sac = len(tree) == 2
    activation = check_activation(format_activation or ("relu" if sac else "silu"))
    boxed = spec.action if spec is not None else None
    w = Writer(Weights({}, where), activation, boxed)
    layers = Layers(w, parameters(tree[1], where), "hidden_")
    raw = w.observation(layers.width)
    x = _normalised(w, raw, tree[0], where)
    both = layers.whole(x)
    width = w.tracer.shape(both)[-1] // 2
    loc, scale = w.tracer.call("slice", both, 1, 0, width), w.tracer.call("slice", both, 1, width, 2 * width)
    value = None
    if len(tree) > 2:
        critic = Layers(w, parameters(tree[2], where), "hidden_")
        if critic.width == layers.width:
            value = critic.whole(x)
        else:
            w.notes.append(f"its critic sees {critic.width} numbers, others than the actor: no value is given")
    w.space = w.space or ActionSpace("box", (width,), low=(-1.0,) * width, high=(1.0,) * width, dtype="float32")
    if set(w.space.low) == {-1.0} and set(w.space.high) == {1.0}:
        spread = w.tracer.call("log", w.tracer.call("add", w.tracer.call("softplus", scale), 1e-3))
        w.gives(loc, "squashed", log_std=spread, value=value)
    else:
        w.gives(w.tracer.call("tanh", loc), "deterministic", value=value)
    notes = [] if format_activation else [f"the activation {activation} is Brax's default for {'SAC' if sac else 'PPO'}; the file doesn't tell it (--format brax:ACTIVATION says another)"]
    return policy(w, spec, options.sees, f"{path.name} (Brax)", {"format": "Brax", "algorithm": "sac" if sac else "ppo", "notes": notes})


def _normalised(w: Writer, x: Ref, value: Any, where: str) -> Ref:
    """(x − mean) / std of a RunningStatisticsState; nothing where the parameters have none."""
    state = value.state if isinstance(value, Made) and isinstance(value.state, Mapping) else {}
    mean, std = (parameters(state.get(name), where) for name in ("mean", "std"))
    width = w.tracer.shape(x)[-1]
    fits = sorted((n for n, t in mean.items() if t.numel() == width and n in std), key=lambda n: n != "state")
    if not fits:
        w.notes.append("no normaliser of its observations was found in the file")
        return x
    return w.normalised(x, mean[fits[0]], std[fits[0]], None)
