"""Bare state dicts: CleanRL, rsl_rl 1.x to 5.x, rl_games, skrl, Tianshou, PufferLib, safetensors, or the user's own class.

Such a file holds names and numbers. A recipe says which names belong to which library; sizes come from shapes,
normalisers from their statistics. What isn't in the file (an activation, a clip) is the library's default, and is said
in ``info["notes"]``; ``--format NAME:ACTIVATION`` names another one, and ``--model module:Class`` runs the user's code.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from distillrl.errors import Failed, Misconfigured, Missing, nearest
from distillrl.records import Spec
from distillrl.teachers import pickles, tensorfiles
from distillrl.teachers.archives import names_in, read_file, read_json
from distillrl.teachers.operators import ACTIVATIONS
from distillrl.teachers.tensorfiles import Module
from distillrl.teachers.views import flat, tidy, views
from distillrl.teachers.writer import Weights, Writer, check_activation, policy

if TYPE_CHECKING:
    from distillrl.teachers import Options

MAX_BYTES = 1 << 30
MAX_HEADER = 4 << 20
SHARED = 8
"""How many times a file's size its tensors may come to: names that share a storage cost time, not bytes."""
OURS = "distillrl"
ENDED = frozenset({"plain", "rl_games", "skrl", "tianshou"})
"""Recipes for which ``+tanh`` may be said."""
SAFE_TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool}  # fmt: skip


def sniff(path: Path) -> bool:
    """Whether the file is one of ``torch.save`` that isn't SB3's or TorchScript's, or a safetensors file that isn't ours."""
    if not path.is_file():
        return False
    if path.suffix == ".safetensors":
        with path.open("rb") as file:
            head = file.read(8)
            size = int.from_bytes(head, "little")
            return len(head) == 8 and size <= MAX_HEADER and f'"{OURS}"'.encode() not in file.read(min(size, MAX_HEADER))
    names = names_in(path)
    if names:
        return any(n == "data.pkl" or n.endswith("/data.pkl") for n in names) and not any(n.endswith("constants.pkl") or n == "policy.pth" for n in names)
    with path.open("rb") as file:
        return file.read(15)[2:].startswith(b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19")


def load(path: Path, options: Options, spec: Spec | None = None) -> Any:
    """The policy of bare weights. Raises Failed (damaged, hostile), Missing (names of no known library), Misconfigured."""
    name, _, activation = (options.format or "").partition(":")
    tree = read(path)
    if options.model is not None:
        return _users_class(path, tree, options, spec)
    whole = dict(flat(tree))
    if not whole:
        raise Failed(f"{path} holds no tensors")
    if sum(t.numel() * t.element_size() for t in whole.values()) > SHARED * path.stat().st_size + (1 << 20):
        raise Failed(f"{path} is refused: its tensors are more than {SHARED} times its size, as many names share one storage")
    for key, tensor in whole.items():
        if tensor.is_floating_point() and "optim" not in key and not bool(torch.isfinite(tensor).all()):
            raise Failed(f"{path}: its tensor {key!r} holds NaN or infinity")
    recipe, weights = _recipe(list(views(tree, str(path))), name, path)
    kinds = {m.kind.rpartition(".")[2].lower() for m in weights.layers.values()} & {a.__name__.lower() for a in ACTIVATIONS.values()}
    told = next((word for word, made in ACTIVATIONS.items() if made.__name__.lower() in kinds), "") if len(kinds) == 1 else ""
    word, _, ending = (activation or told or recipe.activation).partition("+")
    if ending not in {"", "tanh"} or (ending and recipe.name not in ENDED):
        raise Misconfigured(f"--format {options.format!r}: plain:relu+tanh is right, for an action that ends in tanh; {', '.join(sorted(ENDED))} may be said to")
    writer = Writer(weights, check_activation(word), spec.action if spec else None, ending)
    recipe.write(writer)
    notes = [] if activation or kinds else [f"the activation {recipe.activation} is {recipe.title}'s default; the file doesn't tell it (--format {recipe.name}:ACTIVATION says another)"]
    if isinstance(tree, Module):
        notes.append(f"the file is a whole module ({pickles.shown(tree.kind)}): its code isn't in it; its layers are read by their names")
    return policy(writer, spec, options.sees, f"{path.name} ({recipe.title})", {"format": "state dict", "library": recipe.title, "notes": notes})


def read(path: Path) -> Any:
    """The nested dicts of a file, tensors as tensors. Raises Failed."""
    data = read_file(path, MAX_BYTES)
    return _safetensors(data, str(path)) if path.suffix == ".safetensors" else tensorfiles.tree(data, str(path))


def _safetensors(data: bytes, where: str) -> dict[str, Tensor]:
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 or size > min(MAX_HEADER, len(data) - 8):
        raise Failed(f"{where} is damaged: its header claims {size:,} bytes")
    header = read_json(data[8 : 8 + size], where)
    body = memoryview(data)[8 + size :]
    made, taken = {}, 0
    try:
        for name, told in header.items():
            if name != "__metadata__":
                dtype, shape, (start, end) = SAFE_TYPES[told["dtype"]], [int(s) for s in told["shape"]], told["data_offsets"]
                if min([0, start, end - start, *shape]) < 0 or end > len(body) or math.prod(shape) * dtype.itemsize != end - start:
                    raise Failed(f"{where}: the tensor {name[:80]!r} claims the shape {shape[:8]} and has {end - start} bytes")
                taken += end - start
                if taken > len(body):
                    raise Failed(f"{where} is refused: its tensors lie over one another")
                made[name] = torch.frombuffer(bytearray(body[start:end]), dtype=dtype).reshape(shape) if end > start else torch.empty(shape, dtype=dtype)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise Failed(f"{where} is damaged: its header makes no sense ({type(error).__name__}: {str(error)[:80]})") from None
    return made


# ── the user's own class ──


def _users_class(path: Path, tree: Any, options: Options, spec: Spec | None) -> Any:
    """The user's nn.Module with the file's weights, as a live teacher. This runs the user's code, and none of the file's."""
    from distillrl.teachers import live

    word = str(options.model)
    module_name, colon, class_name = word.partition(":")
    if not colon:
        raise Misconfigured(f"--model {word!r}: module:Class is right, such as my_project.nets:Agent")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        made = getattr(importlib.import_module(module_name), class_name)
    except ImportError as error:
        raise Misconfigured(f"--model {word!r}: {error}") from None
    except AttributeError:
        raise Misconfigured(f"--model {word!r}: {module_name} has no {class_name!r}{nearest(class_name, dir(sys.modules[module_name]))}") from None
    module = _made(made, word, spec)
    fitting = next((part for part in _parts(tree) if set(part) == set(module.state_dict())), None)
    if fitting is None:
        wanted, there = set(module.state_dict()), {n for part in _parts(tree) for n in part}
        odd = sorted(wanted - there)[:4] or sorted(there - wanted)[:4]
        raise Misconfigured(f"--model {word!r} doesn't fit {path}: {', '.join(odd)} is missing or too much")
    try:
        module.load_state_dict(fitting)
    except RuntimeError as error:
        raise Misconfigured(f"--model {word!r} doesn't fit {path}: {str(error).splitlines()[-1].strip()[:200]}") from None
    return live.load(module, options, spec)


def _made(made: Any, word: str, spec: Spec | None) -> nn.Module:
    """Class(), Class(spec) or Class(observation size, action size)."""
    attempts: list[tuple[Any, ...]] = [()]
    if spec is not None:
        attempts += [(spec,), (sum(math.prod(g.shape) for g in spec.observations.values()), spec.action.size)]
    reason: Exception | None = None
    for args in attempts:
        try:
            module = made(*args)
        except TypeError as error:
            reason = error
            continue
        if isinstance(module, nn.Module):
            return module
        raise Misconfigured(f"--model {word!r} gives a {type(module).__name__}, an nn.Module is right")
    raise Misconfigured(f"--model {word!r} can't be made without arguments, with a Spec, or with (observations, actions): {reason}")


def _parts(tree: Any, depth: int = 0) -> list[dict[str, Tensor]]:
    """Every dict of tensors in the file, the outermost first; also those below a common prefix such as ``actor.``"""
    if not isinstance(tree, Mapping) or depth > 3:
        return []
    tensors = dict(flat(tree)) if isinstance(tree, Module) else {str(k): v for k, v in tree.items() if isinstance(v, Tensor)}
    found = [tensors, tidy(tensors)] if tensors else []
    if isinstance(tree, Module):
        return found
    for value in tree.values():
        found += _parts(value, depth + 1)
    return found


# ── recipes ──


@dataclass(frozen=True)
class Recipe:
    """How one library's weights are named: all patterns of ``needs`` must be there, and none of ``lacks``."""

    name: str
    title: str
    needs: tuple[str, ...]
    lacks: tuple[str, ...]
    activation: str
    write: Callable[[Writer], None]
    fits: Callable[[Weights], bool] = lambda _: True
    """What names alone don't say."""
    named: bool = False
    """Taken only where ``--format`` names it."""


def _recipe(given: list[Weights], name: str, path: Path) -> tuple[Recipe, Weights]:
    """The first recipe that fits one of the views of a file, and that view."""
    from distillrl.teachers.recipes import RECIPES

    known = {r.name for r in RECIPES}
    if name and name not in known and name not in {"statedicts", "safetensors", "state_dict"}:
        raise Misconfigured(f"--format {name!r}: there is no such library of weights{nearest(name, known)}")
    allowed = [r for r in RECIPES if (r.name == name if name in known else not r.named)]
    for recipe in allowed:
        for weights in given:
            if all(weights.has(n) for n in recipe.needs) and not any(weights.has(n) for n in recipe.lacks) and recipe.fits(weights):
                return recipe, weights
    weights = given[0]
    shown = ", ".join(f"{k} {list(v.shape)}" for k, v in list(weights.tensors.items())[:6])
    raise Missing(f"the names in {path} ({shown}, …) are those of no library known here ({', '.join(sorted(known))}){' named ' + name if name else ''}; give the network's class with --model module:Class")


def moments(weights: Weights, mean: str, spread: str, *, root: bool, inside: float = 0.0, outside: float = 0.0) -> tuple[Tensor, Tensor]:
    """Mean and std of named statistics: √(variance + inside) + outside where ``root``, else spread + outside; in double precision."""
    m, s = weights.tensors[mean].double(), weights.tensors[spread].double()
    return m.float(), ((s + inside).sqrt() + outside if root else s + outside).float()


def spread_of(weights: Weights, log_name: str | None, std_name: str | None) -> Tensor | None:
    """log_std from whichever is there."""
    if log_name and log_name in weights:
        return weights[log_name]
    return weights[std_name].clamp_min(1e-12).log() if std_name and std_name in weights else None

