"""``export(policy, to, out)``: any policy as what runs in the product; ``opened`` plays with what was written.

``parity.check`` compares it with the policy, on visited states and by its return.

To add a target, add a file in ``targets/`` and a row in TARGETS.
"""

from __future__ import annotations

import importlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distillrl.errors import Failed, Misconfigured, nearest


@dataclass(frozen=True)
class Target:
    """One row: the module whose ``write`` makes the files, what it is made from, and which of the files is the one to open."""

    module: str
    reads: str
    """``plan``: the policy's plan; ``states``: the plan, and states to calibrate on; ``policy``: the torch policy itself."""
    main: str
    """The suffix of the file that is opened."""
    about: str


TARGETS: dict[str, Target] = {
    "onnx": Target("onnx", "plan", ".onnx", "one ONNX file, dynamic batch"),
    "c": Target("c", "plan", ".c", "a C99 pair, no library, no malloc"),
    "c-int8": Target("c_int8", "states", ".c", "the same with int8 weights and activations, calibrated on states"),
    "compiled": Target("compiled", "plan", ".py", "the C pair as a shared library with a Python loader"),
    "js": Target("js", "plan", ".js", "one ES module, and a page to play it in"),
    "python": Target("python", "plan", ".py", "one file that needs numpy alone"),
    "torch": Target("torch_export", "policy", ".pt2", "torch.export's file; takes any layer"),
}
CAN_SAMPLE = frozenset({"onnx", "c", "compiled", "js", "python"})


@dataclass(frozen=True)
class Export:
    """What was written: the target, its files (the one to open first), and facts such as memory; plain JSON data."""

    to: str
    files: tuple[Path, ...]
    facts: Mapping[str, Any]
    sampled: bool = False
    policy: Any = field(default=None, repr=False, compare=False)
    """What was exported, fitted to its environment where one was given: ``opened`` reads its spaces."""


def known(to: str) -> Target:
    """The row of a target; raises Misconfigured, naming the nearest."""
    if to not in TARGETS:
        raise Misconfigured(f"export --to {to!r}{nearest(to, TARGETS)}: there are {', '.join(TARGETS)}")
    return TARGETS[to]


def export(policy: Any, to: str, out: str | Path, *, name: str = "policy", states: Mapping[str, Any] | None = None, env: Any = None, sampled: bool = False) -> Export:
    """Write a policy (an object, or the path of a student or a teacher) as ``to`` into the folder ``out``.

    ``name`` names the files and, in C, the functions. With ``env`` what goes in is what that environment gives: images with the channels
    last, single frames, … where the policy's file has them otherwise (teachers.fit). c-int8 calibrates on ``states`` {group: [n, *shape]}, observations
    that the policy visited (a thousand are right), or on those that it visits in ``env``. The action is the most likely
    one, or with ``sampled`` a sample, whose noise is an input more (the Python and JavaScript files can draw it). Raises Misconfigured where the
    policy can't be exported so, saying why and which targets can; Missing for a package or compiler; Failed where the
    folder can't be written.
    """
    from distillrl.envs import EnvOptions, name_of

    target = known(to)
    if not isinstance(name, str) or not name or not all(c.isalnum() or c in "_-" for c in name) or not name.isascii():
        raise Misconfigured(f"export --name {name!r}: letters, digits, - and _ are right")
    if env is not None:
        from distillrl.parity import fitted

        policy = fitted(policy, env)
    loaded, passport = loaded_with_passport(policy)
    env = env if env is not None else passport.get("env")
    passport["env"] = env if isinstance(env, str) else name_of(env) if isinstance(env, EnvOptions) else None
    if sampled and target.module not in CAN_SAMPLE:
        raise Misconfigured(f"export --to {to} gives the most likely action only; onnx, c, compiled, js and python can sample")
    if target.reads == "states" and not states:
        if env is None:
            raise Misconfigured(f"export --to {to} calibrates on visited states: give --env, or states={{group: array [n, …]}}")
        from distillrl.parity import visited

        states = visited(loaded, env)
    folder = Path(out)
    module = importlib.import_module(f"distillrl.targets.{target.module}")
    given: tuple[Any, ...] = (loaded,)
    if target.reads != "policy":
        from distillrl.targets.tracing import trace

        given = (trace(loaded, sampled),)
    more = (_arrays(states, loaded.spec),) if target.reads == "states" else ()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".export-") as made:
            files, facts = module.write(*given, passport, Path(made), name, *more)
            files = _settled(files, folder)
    except OSError as error:
        raise Failed(f"export to {folder}: {error.strerror or error}") from None
    main = next(f for f in files if f.suffix == target.main)
    return Export(to, (main, *(f for f in files if f != main)), {**facts, "bytes": sum(f.stat().st_size for f in files)}, sampled, loaded)


def _settled(files: Sequence[Path], folder: Path) -> list[Path]:
    """Whole files, moved to where they belong: a full disk or Ctrl-C leaves what was there. A library's file name has a digest, and older ones go."""
    for file in files:
        if file.suffix == ".so":
            for stale in folder.glob(f"{file.stem.rpartition('-')[0]}-{'[0-9a-f]' * 12}.so"):
                stale.unlink()
    return [file.replace(folder / file.name) for file in files]


def loaded_with_passport(policy: Any) -> tuple[Any, dict[str, Any]]:
    """The policy itself, and its passport: what an artifact's header would say of it."""
    from distillrl import __version__
    from distillrl.policies import Player

    if isinstance(policy, str | Path):
        from distillrl.loading import load

        policy = load(policy)
    if isinstance(policy, Player):
        policy = policy.policy
    header = policy.header() if callable(getattr(policy, "header", None)) else {"spec": policy.spec.to_json()}
    info = dict(getattr(policy, "info", {}))
    passport = {"made_by": f"distillrl {__version__}", "env": info.get("environment"), **header, "info": info}
    return policy, json.loads(json.dumps(passport, default=str))


def _arrays(states: Mapping[str, Any] | None, spec: Any) -> dict[str, Any]:
    import numpy as np

    arrays = {}
    for name, group in spec.observations.items():
        if states is None or name not in states:
            raise Misconfigured(f"the states to calibrate on lack the group {name!r} ({group})")
        array = np.asarray(states[name])
        if array.shape[1:] != group.shape or not len(array):
            raise Misconfigured(f"states {name!r}: shape {array.shape} was given, (n, {', '.join(map(str, group.shape))}) is right")
        arrays[name] = array
    return arrays


def opened(exported: Export) -> Any:
    """What was exported as a Policy, run by what runs it in the product: a compiler's machine code, onnxruntime, node, …

    Raises Missing where a runtime isn't here.
    """
    from distillrl.targets import playing
    from distillrl.targets.tracing import trace

    policy = exported.policy
    sizes = {name: tuple(value.shape[1:]) for name, value in policy.init(1).items()}
    plan = None if known(exported.to).reads == "policy" else trace(policy, exported.sampled)
    return playing.opened(exported.to, exported.files[0], policy.spec, plan, sizes)
