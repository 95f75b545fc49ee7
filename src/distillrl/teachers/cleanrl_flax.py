"""CleanRL's Jax files (``NAME.cleanrl_model``, flax's msgpack): DQN, C51, DDPG, TD3, PPO for Atari; and a plain flax network of Dense layers.

The activation is relu in all of CleanRL's Jax scripts; ``--format cleanrl_flax:ACTIVATION`` names another. Actors of DDPG and TD3
end in tanh, stretched to the environment's bounds, which the file doesn't hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from distillrl.errors import Failed, Missing
from distillrl.records import Spec
from distillrl.teachers import msgpacks
from distillrl.teachers.archives import read_file
from distillrl.teachers.flax import Layers
from distillrl.teachers.graph import Ref
from distillrl.teachers.pickles import shown
from distillrl.teachers.writer import STRIDES, Weights, Writer, check_activation, policy

if TYPE_CHECKING:
    from distillrl.teachers import Options

TITLE = "CleanRL (Jax)"
MAX_BYTES = 1 << 30
ENDINGS = (".cleanrl_model", ".msgpack", ".flax")


def sniff(path: Path) -> bool:
    """Whether it is named so and begins as a map of msgpack."""
    if path.suffix not in ENDINGS or not path.is_file():
        return False
    with path.open("rb") as file:
        first = file.read(1)
    return first[:1] in {bytes([b]) for b in (*range(0x81, 0x90), 0xDE, 0xDF)}


def load(path: Path, options: Options, spec: Spec | None = None) -> Any:
    """The policy of a file. Raises Failed (damaged, hostile), Missing (a network not known here), Misconfigured."""
    where = str(path)
    tree = msgpacks.read(read_file(path, MAX_BYTES), where)
    activation = check_activation((options.format or "").partition(":")[2] or "relu")
    w = Writer(Weights({}, where), activation, spec.action if spec else None)
    try:
        _write(w, tree, where)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        raise Failed(f"{where} is damaged: its parameters make no sense ({type(error).__name__}: {str(error)[:100]})") from None
    return policy(w, spec, options.sees, f"{path.name} ({TITLE})", {"format": TITLE, "notes": [f"the activation {activation} is CleanRL's in Jax; the file doesn't tell it"]})


def _write(w: Writer, tree: Any, where: str) -> None:
    settings: Mapping[str, Any] = {}
    if isinstance(tree, Mapping) and "model_weights" in tree:
        tree, settings = tree["model_weights"], tree.get("args") or {}
    elif isinstance(tree, Mapping) and set(tree) == {"0", "1"} and isinstance(tree["0"], Mapping) and "params" not in tree["0"]:
        settings, tree = tree["0"], tree["1"]
    parts = [tree] if "params" in tree else [tree[str(i)] for i in range(len(tree))]
    networks = [_tensors(part, where) for part in parts]
    if len(networks) == 3 and _convolves(networks[0]):
        latent = _images(w, networks[0])
        w.gives(Layers(w, networks[1], "Dense_").whole(latent), "categorical", value=Layers(w, networks[2], "Dense_").whole(latent))
        return
    first = networks[0]
    if _convolves(first):
        made = _images(w, first, closed=True)
    else:
        layers = Layers(w, first, "Dense_")
        made = layers.whole(w.observation(layers.width))
    boxed = w.space.kind == "box" if w.space is not None else len(networks) > 1
    if boxed:
        w.notes.append("its action is taken to end in tanh, stretched to the environment's bounds, as CleanRL's DDPG and TD3 do")
        w.gives(made, "tanh")
    else:
        w.gives(_valued(w, made, settings, where), "greedy")


def _valued(w: Writer, made: Ref, settings: Mapping[str, Any], where: str) -> Ref:
    """Values of actions; of C51's atoms the expectation."""
    if "n_atoms" not in settings:
        return made
    atoms = int(settings["n_atoms"])
    if not 1 < atoms <= w.tracer.shape(made)[-1]:
        raise Failed(f"{where} is damaged: {atoms} atoms don't fit {w.tracer.shape(made)[-1]} outputs")
    support = torch.linspace(float(settings["v_min"]), float(settings["v_max"]), atoms)
    chances = w.tracer.call("softmax", w.tracer.call("unflatten", made, 1, (-1, atoms)), -1)
    return w.tracer.call("sum", w.tracer.call("mul", chances, w.constant(support)), (-1,))


def _tensors(part: Any, where: str) -> dict[str, Tensor]:
    """Arrays by dotted name below ``params``, as float32."""
    found: dict[str, Tensor] = {}

    def walk(value: Any, prefix: str) -> None:
        for name, inner in value.items():
            full = f"{prefix}.{name}" if prefix else name
            if isinstance(inner, Mapping):
                walk(inner, full)
            elif isinstance(inner, Tensor):
                if inner.is_floating_point() and not bool(torch.isfinite(inner).all()):
                    raise Failed(f"{where}: its tensor {shown(full)} holds NaN or infinity")
                found[full] = inner.float()
            else:
                raise Missing(f"{where}: {shown(full)} is no array that is known here")

    walk(part["params"], "")
    return found


def _convolves(tensors: Mapping[str, Tensor]) -> bool:
    return any(t.dim() == 4 for t in tensors.values())


def _images(w: Writer, tensors: Mapping[str, Tensor], closed: bool = False) -> Ref:
    """Convolutions without padding on frames [N, C, 84, 84] / 255, then Dense layers, whose inputs are flattened with the channels last."""
    convolutions = {n: t for n, t in tensors.items() if "Conv_" in n}
    kernels = sorted((n for n, t in convolutions.items() if t.dim() == 4), key=lambda n: int(n.rpartition("Conv_")[2].partition(".")[0]))
    x = w.tracer.call("div", w.observation(int(tensors[kernels[0]].shape[2]), 84, 84), 255.0)
    w.notes.append("its images are taken to be 84×84, divided by 255")
    for name in kernels:
        stride = STRIDES.get(tensors[name].shape[0])
        if stride is None:
            raise Missing(f"{w.weights.where}: a convolution of {list(tensors[name].shape[:2])}, whose stride the file doesn't tell, is not known here")
        bias = w.constant(tensors[name.replace("kernel", "bias")])
        x = w.act(w.tracer.call("convolution", x, w.constant(tensors[name].permute(3, 2, 0, 1)), bias, (stride, stride), (0, 0), (1, 1), False, (0, 0), 1))
    x = w.tracer.call("flatten", w.tracer.call("permute", x, (0, 2, 3, 1)), 1)
    layers = Layers(w, {n: t for n, t in tensors.items() if n not in convolutions}, "Dense_")
    return layers.whole(x) if closed else layers.hidden(x, 0)
