"""TorchScript files (``torch.jit.save``), opened as zip archives for their weights and the text of their code.

What ``forward`` does is read off the text (``script_reader``) into a graph, so that a batch fixed at one becomes free
and the buffers that a recurrent exporter keeps inside of the module (rsl_rl's and legged_gym's PolicyExporterLSTM)
become memory, a row for each environment. A script that can't be followed runs only with ``--trust``.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from distillrl.errors import Failed, Misconfigured, Missing
from distillrl.records import Spec
from distillrl.teachers import tensorfiles
from distillrl.teachers.archives import Archive, names_in, read_file
from distillrl.teachers.converting import policy_of
from distillrl.teachers.fitting import read, see
from distillrl.teachers.graph import Graph, Ref, State, outputs_of
from distillrl.teachers.pickles import Made
from distillrl.teachers.script_reader import MAX_CODE, Code, Module, Reader
from distillrl.teachers.sizes import Visits
from distillrl.teachers.tracing import Kept, Tracer, settled

if TYPE_CHECKING:
    from distillrl.teachers import Options

TITLE = "TorchScript"
MAX_BYTES = 1 << 30
MAX_TRIES = 400
HIDDEN = re.compile(r"^(h|c|hx|cx|hc|h0|c0|hidden\w*|cell\w*|memory\w*|rnn\w*|state[_\d]*|carry|h_\w+|c_\w+|\w*hidden_?(state|in)?s?)$")


def sniff(path: Path) -> bool:
    """Whether the file is a zip with TorchScript's members."""
    names = names_in(path)
    return any(n.endswith("/constants.pkl") for n in names) and any("/code/" in n for n in names)


def load(path: Path, options: Options, spec: Spec | None = None) -> Any:
    """The policy of a TorchScript file. Raises Failed (damaged, hostile), Misconfigured (another environment), Missing (needs --trust)."""
    if options.trust:
        return _run(path, options, spec)
    root, code, constants = read_script(path)
    who = f"{path.name} (TorchScript)"
    try:
        graph = traced(root, code, constants, spec, options.sees, who)
    except Missing as reason:
        raise Missing(f"{path} can't be turned into a network without running it ({reason}); --trust runs the file's own code") from None
    seen = see(graph.inputs, spec, options.sees, who)
    reading = read(outputs_of(graph), spec.action if spec else None, who)
    info = {"format": TITLE, "class": root.kind.removeprefix("__torch__."), "notes": []}
    return policy_of(graph, seen, reading, info, len(spec.observations) if spec else 1)


def _run(path: Path, options: Options, spec: Spec | None) -> Any:
    """The script itself as a live module, after the user's --trust: torch.jit runs its code."""
    from distillrl.teachers import live

    try:
        module = torch.jit.load(str(path), map_location="cpu")
    except (RuntimeError, ValueError, OSError) as error:
        raise Failed(f"{path} can't be loaded by torch.jit: {str(error).splitlines()[0][:200]}") from None
    module.eval()

    def ask(obs: Tensor) -> Any:
        return module(obs)

    return live.load(ask, options, spec)  # as a function: a script has no hooks for features


def read_script(path: Path) -> tuple[Module, Code, tuple[Any, ...]]:
    """The object tree, the code's text and the constants. Raises Failed for anything damaged or hostile."""
    archive = Archive(read_file(path, MAX_BYTES), str(path))
    root = next((n.removesuffix("constants.pkl") for n in archive.members if n.endswith("constants.pkl") and n.count("/") <= 1), None)
    if root is None or root + "data.pkl" not in archive:
        raise Failed(f"{path} is no TorchScript file: it lacks data.pkl or constants.pkl")
    made = _part(archive, root, "data", str(path))
    if not isinstance(made, Module):
        raise Failed(f"{path} holds no module of TorchScript")
    texts = {}
    prefix = root + "code/"
    for name in archive.members:
        if name.startswith(prefix) and name.endswith(".py"):
            texts[name[len(prefix) : -3].replace("/", ".")] = lambda name=name: archive.read(name, MAX_CODE)
    constants = _part(archive, root, "constants", str(path))
    return made, Code(texts), tuple(constants) if isinstance(constants, (tuple, list)) else ()


def _part(archive: Archive, root: str, name: str, where: str) -> Any:
    """data.pkl or constants.pkl: modules as Module, tensors as tensors, everything else as inert data."""
    top, tensor = tensorfiles.part(archive, f"{root}{name}.pkl", f"{root}{name}/", where)
    try:
        return _converted(top, tensor, Visits(where), 0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError) as error:
        raise Failed(f"{where} is damaged: {name}.pkl makes no sense ({type(error).__name__}: {str(error)[:100]})") from None


def _converted(value: Any, tensor: Any, visits: Visits, depth: int) -> Any:
    visits.one(depth)
    if isinstance(value, Made):
        if value.name.startswith("torch._utils._rebuild"):
            return tensor(value)
        if value.name.startswith("__torch__."):
            state = value.state if isinstance(value.state, dict) else {}
            return Module(value.name, {str(k): _converted(v, tensor, visits, depth + 1) for k, v in state.items()})
        if value.name.startswith("torch.jit._pickle.") and value.args:
            return _converted(value.args[0], tensor, visits, depth + 1)
        return value
    if isinstance(value, (list, tuple)):
        return [_converted(v, tensor, visits, depth + 1) for v in value]
    if isinstance(value, dict):
        return {k: _converted(v, tensor, visits, depth + 1) for k, v in value.items() if isinstance(k, (str, int))}
    return value


def every_tensor(module: Any) -> Iterator[tuple[str, Tensor]]:
    """All tensors of the tree with their names."""
    items = module.attributes.items() if isinstance(module, Module) else enumerate(module) if isinstance(module, list) else ()
    for name, value in items:
        if isinstance(value, Tensor):
            yield str(name), value
        elif isinstance(value, (Module, list)):
            for inner, tensor in every_tensor(value):
                yield f"{name}.{inner}", tensor


def traced(root: Module, code: Code, constants: tuple[Any, ...], spec: Spec | None, sees: str | None, who: str) -> Graph:
    """The graph of ``forward``, its input sizes found by trying those that its layers have.

    Raises Missing where the code can't be followed, Misconfigured where no observation group has its size.
    """
    arguments = code.method(root.kind, "forward").args.args[1:]
    names = [a.arg for a in arguments]
    if not names:
        raise Missing("its forward takes nothing")
    tensors = dict(every_tensor(root))
    reasons: list[str] = []
    for tries, shapes in enumerate(_candidates(names, tensors, spec)):
        if tries > MAX_TRIES:
            break
        try:
            return _traced(root, code, constants, shapes, tensors)
        except Failed as reason:
            reasons.append(str(reason))
    for line in reasons[-1:]:
        raise Missing(f"no size of its input suits its layers: {line}")
    raise Misconfigured(f"{who} has no layer that tells the size of its input")


def _candidates(names: list[str], tensors: Mapping[str, Tensor], spec: Spec | None) -> Iterator[dict[str, tuple[int | str, ...]]]:
    """Shapes of inputs to try: the environment's own, then what the layers take; "batch" stands for the batch."""
    widths = list(dict.fromkeys(t.shape[-1] for t in tensors.values() if t.dim() >= 1 and t.shape[-1] > 1))
    plain: list[tuple[int | str, ...]] = [("batch", *g.shape) for g in spec.observations.values() if g.shape] if spec else []
    if spec and len(spec.observations) > 1:
        plain.append(("batch", sum(math.prod(g.shape) for g in spec.observations.values())))
    plain += [("batch", w) for w in widths if ("batch", w) not in plain] + [("batch", 1)]
    hidden = list(dict.fromkeys(t.shape[1] for n, t in tensors.items() if "weight_hh" in n and t.dim() == 2)) or widths
    kept: list[tuple[int | str, ...]] = [shape for h in hidden for shape in ((1, "batch", h), ("batch", h), (2, "batch", h))]
    choices = [kept if HIDDEN.match(n) and len(names) > 1 else plain for n in names]
    for combination in itertools.product(*choices):
        yield dict(zip(names, combination, strict=True))


def _traced(root: Module, code: Code, constants: tuple[Any, ...], shapes: Mapping[str, tuple[int | str, ...]], tensors: Mapping[str, Tensor]) -> Graph:
    taken = {d for t in tensors.values() for d in t.shape} | {int(d) for s in shapes.values() for d in s if d != "batch"} | set(range(5))
    return settled(lambda batch, free, states: _trace(root, code, constants, shapes, batch, free, states), taken)


def _trace(
    root: Module, code: Code, constants: tuple[Any, ...], shapes: Mapping[str, tuple[int | str, ...]], batch: int, free: bool, states: Mapping[str, Kept]
) -> tuple[Graph, dict[str, Tensor]]:
    """Follow forward for this batch; the graph, and the buffers that it writes into (path → first value)."""
    tracer = Tracer(batch, free)
    args: list[Ref] = []
    inputs: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
    kept: list[State] = []
    for name, shape in shapes.items():
        args.append(tracer.input(name, tuple(batch if d == "batch" else int(d) for d in shape)))
        if shape[0] == "batch" and not (HIDDEN.match(name) and len(shapes) > 1):
            inputs[name] = (tuple(int(d) for d in shape[1:]), torch.float32)
    given = {}
    for path, (tensor, axis) in states.items():
        size = [batch if i == axis else d for i, d in enumerate(tensor.shape)]
        given[path] = tracer.input(path, tuple(size), tensor.dtype)
    reader = Reader(code, tracer, constants, given)
    value, names = reader.call(root, "forward", list(args), {})
    outputs, carried = _outputs(reader.now(value), names, [n for n in shapes if n not in inputs])
    for name, written in carried.items():
        axis = shapes[name].index("batch")
        initial = torch.zeros([1 if d == "batch" else int(d) for d in shapes[name]])
        kept.append(State(name, name, written, initial, axis))
    for path, (tensor, axis) in states.items():
        if path in reader.written:
            kept.append(State(path, path, reader.written[path].name, torch.zeros_like(tensor), axis))
    first = {path: _buffer(root, path) for path in reader.written}
    return tracer.graph(inputs, outputs, tuple(kept)), first


def _buffer(root: Module, path: str) -> Tensor:
    owner: Any = root
    for part in path.split("."):
        owner = owner.attributes[part] if isinstance(owner, Module) else owner[int(part)]
    if not isinstance(owner, Tensor):
        raise Missing(f"the script changes {path!r}, which is no tensor")
    return owner


def _outputs(value: Any, names: tuple[str, ...], hidden: list[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Output name → value, and hidden input → the value that comes back for it (the last ones, in order)."""
    flat: list[tuple[str, Ref]] = []

    def collect(item: Any, name: str) -> None:
        if isinstance(item, Ref):
            flat.append((name, item))
        elif isinstance(item, (tuple, list)):
            for i, part in enumerate(item):
                collect(part, names[i] if item is value and i < len(names) and names[i] else f"{name}_{i}" if name else f"output_{i}")
        elif isinstance(item, dict):
            for key, part in item.items():
                collect(part, str(key))

    collect(value, names[0] if len(names) == 1 and isinstance(value, Ref) else "")
    if not flat:
        raise Missing("its forward gives no tensor")
    carried = flat[len(flat) - len(hidden) :] if hidden and len(flat) > len(hidden) else []
    rest = flat[: len(flat) - len(carried)]
    outputs: dict[str, str] = {}
    for i, (name, ref) in enumerate(rest):
        clean = re.sub(r"\d+$", "", name).strip("_") or "output"
        outputs[clean if clean not in outputs else f"{clean}_{i}"] = ref.name
    return outputs, {name: ref.name for name, (_, ref) in zip(hidden, carried, strict=False)}
