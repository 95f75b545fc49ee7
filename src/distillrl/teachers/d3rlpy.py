"""d3rlpy's ``.d3`` files (2.x): a pickle of a JSON configuration and a torch file of weights, both read inert.

The configuration says the algorithm, the encoder, its activation and the scalers, so nothing is guessed. Actors play
tanh(μ), stretched by the action scaler; SAC's family is a squashed Gaussian, IQL and AWAC a Gaussian around tanh(μ).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from distillrl.errors import Failed, Misconfigured, Missing
from distillrl.records import ActionSpace, Spec
from distillrl.teachers import pickles, tensorfiles
from distillrl.teachers.archives import read_file, read_json
from distillrl.teachers.graph import Ref
from distillrl.teachers.operators import ACTIVATIONS
from distillrl.teachers.views import flat
from distillrl.teachers.writer import Weights, Writer, policy

if TYPE_CHECKING:
    from distillrl.teachers import Options

TITLE = "d3rlpy"
MAX_BYTES = 1 << 30
SQUASHED = frozenset({"sac", "cql", "cal_ql", "bear"})
GAUSSIAN = {"iql": (-5.0, 2.0), "awac": (-6.0, 0.0)}
"""Algorithms whose log standard deviation is a parameter, and its bounds."""
Q_LEARNING = frozenset({"dqn", "double_dqn", "nfq", "discrete_cql"})
CATEGORICAL = {"discrete_bc": "imitator", "discrete_sac": "policy"}
SAMPLING = frozenset({"bear", "crr"})
"""Algorithms that play the best of many sampled actions, by their critics."""


def sniff(path: Path) -> bool:
    """Whether the file is named .d3 and begins as a pickle."""
    if path.suffix.lower() != ".d3" or not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(1) == b"\x80"


def load(path: Path, options: Options, spec: Spec | None = None) -> Any:
    """The policy of a .d3 file. Raises Failed (damaged, hostile), Missing (an encoder not known here), Misconfigured."""
    tree = pickles.entries(pickles.read(read_file(path, MAX_BYTES), str(path))) or {}
    text, data, version = tree.get("config"), tree.get("torch"), str(tree.get("version", "?"))[:20]
    if not isinstance(text, str) or not isinstance(data, (bytes, bytearray)):
        raise Failed(f"{path} is no file of d3rlpy: it lacks its configuration or its weights")
    config = read_json(text.encode(), str(path))
    weights = Weights(dict(flat(tensorfiles.tree(bytes(data), str(path)))), str(path))
    try:
        kind, params = str(config["config"]["type"]), config["config"]["params"]
        shape = [int(s) for s in config["observation_shape"]]
        writer = Writer(weights, "relu", spec.action if spec else None)
        _write(writer, kind, params, shape)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Failed(f"{path} is damaged: its configuration makes no sense ({type(error).__name__}: {str(error)[:100]})") from None
    return policy(writer, spec, options.sees, f"{path.name} (d3rlpy {kind})", {"format": TITLE, "algorithm": kind, "saved_by": f"d3rlpy {version}", "notes": []})


def _write(w: Writer, kind: str, params: Mapping[str, Any], shape: list[int]) -> None:
    if len(shape) != 1:
        raise Missing(f"{w.weights.where}: an observation of shape {shape} is not known here for d3rlpy; vectors are")
    x = _scaled(w, w.observation(shape[0]), params.get("observation_scaler") or {"type": "none"})
    if kind in Q_LEARNING:
        w.gives(_q(w, x, params), "greedy")
    elif kind in CATEGORICAL:
        p = CATEGORICAL[kind]
        w.gives(w.linear(_encoded(w, x, f"{p}.", params.get("actor_encoder_factory") or params.get("encoder_factory")), f"{p}._fc"), "categorical")
    elif kind.startswith(("discrete", "bcq", "plas")) or not w.weights.has(r"^(policy|imitator)\._"):
        raise Missing(f"{w.weights.where}: d3rlpy's {kind} is not known here")
    else:
        _actor(w, x, kind, params)


def _scaled(w: Writer, x: Ref, scaler: Mapping[str, Any]) -> Ref:
    kind, p = scaler["type"], scaler.get("params", {})
    if kind == "none":
        return x
    if kind == "pixel":
        return w.tracer.call("div", x, 255.0)
    if kind == "standard":
        return w.normalised(x, _array(p["mean"]), _array(p["std"]) + float(p.get("eps", 1e-3)), None)
    if kind == "min_max":
        low, high = _array(p["minimum"]), _array(p["maximum"])
        return w.normalised(x, (high + low) / 2, (high - low) / 2, None)
    raise Missing(f"{w.weights.where}: the observation scaler {kind!r} is not known here")


def _array(values: Any) -> Tensor:
    return torch.tensor([float(v) for v in values])


def _encoded(w: Writer, x: Ref, prefix: str, factory: Mapping[str, Any] | None) -> Ref:
    factory = factory or {"type": "default"}
    p = factory.get("params", {})
    if factory["type"] not in {"vector", "default"}:
        raise Missing(f"{w.weights.where}: the encoder {factory['type']!r} is not known here; vector encoders are")
    w.activation = _activation(w, p.get("activation") or "relu")
    other = p.get("last_activation")
    if (other or p.get("exclude_last_activation")) and (p.get("use_batch_norm") or p.get("use_layer_norm") or p.get("dropout_rate")):
        raise Missing(f"{w.weights.where}: an encoder with a last activation of its own and a normalisation is not known here")
    latent = w.sequential(x, f"{prefix}_encoder._layers.", open_end=not other and not p.get("exclude_last_activation"))
    return w.act(latent, _activation(w, other)) if other else latent


def _activation(w: Writer, given: Any) -> str:
    name = str(given.get("type") if isinstance(given, Mapping) else given)
    name = {"swish": "silu"}.get(name, name)
    if name not in ACTIVATIONS:
        raise Missing(f"{w.weights.where}: the activation {name!r} of d3rlpy is not known here")
    return name


def _q(w: Writer, x: Ref, params: Mapping[str, Any]) -> Ref:
    """The mean of the critics' Q-values, each the mean of its quantiles where it has some."""
    kind = (params.get("q_func_factory") or {"type": "mean"})["type"]
    if kind not in {"mean", "qr"}:
        raise Missing(f"{w.weights.where}: the Q-function {kind!r} is not known here; mean and qr are")
    made = []
    for i in range(int(params.get("n_critics", 1))):
        out = w.linear(_encoded(w, x, f"q_funcs.{i}.", params.get("encoder_factory")), f"q_funcs.{i}._fc")
        if kind == "qr":
            count = int(params["q_func_factory"]["params"]["n_quantiles"])
            out = w.tracer.call("mean", w.tracer.call("unflatten", out, 1, (-1, count)), (-1,))
        made.append(out)
    return made[0] if len(made) == 1 else w.tracer.call("mean", w.tracer.call("stack", tuple(made), 0), (0,))


def _actor(w: Writer, x: Ref, kind: str, params: Mapping[str, Any]) -> None:
    p = "policy." if w.weights.has(r"^policy\._") else "imitator."
    latent = _encoded(w, x, p, params.get("actor_encoder_factory") or params.get("encoder_factory"))
    normal = f"{p}_mu.weight" in w.weights
    if kind in SAMPLING:
        w.notes.append(f"d3rlpy's {kind} plays the best of many actions drawn from its policy, by its critics; here its policy's most likely action is played")
    mean = w.linear(latent, f"{p}_mu" if normal else f"{p}_fc")
    width = w.tracer.shape(mean)[-1]
    scaler = params.get("action_scaler") or {"type": "none"}
    if scaler["type"] not in {"none", "min_max"}:
        raise Missing(f"{w.weights.where}: the action scaler {scaler['type']!r} is not known here")
    bounds = scaler.get("params", {}) if scaler["type"] == "min_max" else {"minimum": [-1.0] * width, "maximum": [1.0] * width}
    low, high = _array(bounds["minimum"]), _array(bounds["maximum"])
    if len(low) != width or len(high) != width or (w.space is not None and w.space.kind == "box" and w.space.dimensions != width):
        raise Misconfigured(f"{w.weights.where}: it plays {width} numbers, its action scaler is of {len(low)}, the environment's action is {w.space}: this teacher is for another environment, or damaged")
    w.space = w.space or ActionSpace("box", (width,), low=tuple(low.tolist()), high=tuple(high.tolist()), dtype="float32")
    here = w.space.kind == "box" and torch.allclose(torch.tensor(w.space.low, dtype=torch.float32), low) and torch.allclose(torch.tensor(w.space.high, dtype=torch.float32), high)
    if normal and kind in SQUASHED and here and f"{p}_logstd.weight" in w.weights:
        w.gives(mean, "squashed", log_std=w.tracer.call("clamp", w.linear(latent, f"{p}_logstd"), -20.0, 2.0))
        return
    half = (high - low) / 2
    action = w.ranged(w.tracer.call("tanh", mean), half, (high + low) / 2)
    if normal and kind in GAUSSIAN and f"{p}_logstd" in w.weights:
        least, most = GAUSSIAN[kind]
        spread = least + torch.sigmoid(w.weights[f"{p}_logstd"]).reshape(-1) * (most - least)
        w.gives(action, "gaussian", log_std=spread + half.clamp_min(1e-12).log())
    else:
        w.gives(action, "deterministic")
