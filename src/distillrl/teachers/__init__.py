"""Teachers from anywhere: ``load`` makes a policy of a file, a folder, our own artifact, or a live object.

To add a format, add a file with ``sniff(path) -> bool`` and ``load(path, options) -> Policy``, and a row in FORMATS.
Nothing inside a file runs, unless ``Options.trust`` is set and its format needs it.
"""

from __future__ import annotations

import hashlib
import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from distillrl.config import Config
from distillrl.errors import Failed, Misconfigured, nearest
from distillrl.policies import Player, Policy
from distillrl.records import Spec
from distillrl.teachers.archives import names_in


@dataclass(frozen=True)
class Options:
    """How a teacher is to be read; all optional."""

    format: str | None = None
    """The name of a row of FORMATS, where the file alone doesn't tell."""
    model: str | None = None
    """``module:Class`` of the user's own, for weights whose code isn't in the file."""
    sees: str | None = None
    """Which observation groups it sees, by name, separated by commas."""
    trust: bool = False
    """Run the file's own code where its format needs that."""
    env: str | None = None
    """The environment's id, where a format needs to know it."""
    vecnormalize: str | None = None
    """A vecnormalize.pkl elsewhere, or ``none`` to leave out the one that lies beside the file."""
    combine: str | None = None
    """How several teachers become one: average (default), confidence, value, product, best (see ``teachers.many``)."""
    concurrency: int | None = None
    """Requests at a time to a server; by default what a ``.toml`` says, or 8."""
    dispatch: str | None = None
    """Which of several teachers is asked, by an expression over the observation: ``level<3:0, else:1``."""


@dataclass(frozen=True)
class Format:
    """One row: how a file of it is known, and the module that reads it."""

    name: str
    title: str
    sniff: Callable[[Path], bool]
    module: str
    """``load(path, options) -> Policy`` is in it; imported when needed."""
    spec: bool = True
    """Whether its ``load`` takes the environment's Spec (or None) as a third argument: files of plain networks name no spaces."""


def _by(module: str) -> Callable[[Path], bool]:
    return lambda path: bool(importlib.import_module(module).sniff(path))


def _never(path: Path) -> bool:
    return False


OWN = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
"""``my_project.rules:Rule``: an object of the user's own, whose code is run because they named it."""
WEIGHTS = ("rsl_rl", "rl_games", "skrl", "tianshou", "cleanrl", "pufferlib", "sb3_policy", "dueling", "plain", "plain_q")
"""Libraries whose bare weights are known: names for ``--format``, where the file's names don't tell or another activation is meant."""
FORMATS: tuple[Format, ...] = (
    Format("sb3", "stable-baselines3 and sb3-contrib", _by("distillrl.teachers.sb3"), "distillrl.teachers.sb3", spec=False),
    Format("onnx", "ONNX", _by("distillrl.teachers.onnx"), "distillrl.teachers.onnx"),
    Format("torchscript", "TorchScript", _by("distillrl.teachers.torchscript"), "distillrl.teachers.torchscript"),
    Format("export", "torch.export (.pt2)", _by("distillrl.teachers.exported"), "distillrl.teachers.exported"),
    Format("d3rlpy", "d3rlpy (.d3)", _by("distillrl.teachers.d3rlpy"), "distillrl.teachers.d3rlpy"),
    Format("keras", "Keras 3 (.keras)", _by("distillrl.teachers.keras"), "distillrl.teachers.keras"),
    Format("sklearn", "scikit-learn (skops, pickle, joblib)", _by("distillrl.teachers.sklearn"), "distillrl.teachers.sklearn"),
    Format("rllib", "RLlib checkpoint folder", _by("distillrl.teachers.rllib"), "distillrl.teachers.rllib"),
    Format("sbx", "SBX (SB3 in Jax)", _by("distillrl.teachers.flax"), "distillrl.teachers.flax"),
    Format("brax", "Brax and flax parameters", _by("distillrl.teachers.flax"), "distillrl.teachers.flax"),
    Format("cleanrl_flax", "CleanRL in Jax (flax's msgpack)", _by("distillrl.teachers.cleanrl_flax"), "distillrl.teachers.cleanrl_flax"),
    Format("remote", "a server, or a language model (.toml)", _by("distillrl.teachers.remote"), "distillrl.teachers.remote"),
    Format("state_dict", "bare weights (torch.save, safetensors)", _by("distillrl.teachers.statedicts"), "distillrl.teachers.statedicts"),
    *(Format(name, f"weights of {name}", _never, "distillrl.teachers.statedicts") for name in WEIGHTS),
)  # fmt: skip


def options_of(config: Config) -> Options:
    """A run's options, as far as they are about its teacher."""
    names = {"sees": "teacher_sees"}
    return Options(**{f.name: getattr(config, names.get(f.name, f.name)) for f in fields(Options)})


def load(source: Any, options: Options = Options(), spec: Spec | None = None) -> Policy:
    """A policy of: a path (file or folder), our own artifact (``*.safetensors``), a Policy, a Player, an nn.Module,
    a plain function of a batch of observations, a loaded SB3 model, or a list of these (``Options.combine`` says how).

    ``spec`` is the environment's; an nn.Module and a function need it, as they don't name their spaces (see
    ``teachers.live`` for what they may take and give). Raises Failed where a file is damaged, hostile or no teacher,
    Misconfigured where the options don't fit.
    """
    if spec is not None and spec.tasks:
        from distillrl.teachers import tasked

        return tasked.load(source, options, spec)
    if isinstance(source, (list, tuple)) and not _is_pair(source):
        from distillrl.teachers import many

        one = replace(options, combine=None, dispatch=None)
        return many.combine([load(s, one, spec) for s in source], options.combine or "average", dispatch=options.dispatch, spec=spec)
    policy = _load(source, options, spec)
    return policy if spec is None else fit(policy, spec, options.env)


def fit(policy: Policy, spec: Spec, env: str | None = None) -> Policy:
    """The policy for an environment of this spec (its id is ``env``), where a known wrapper or version lies between them.

    Turned images, stacked frames, the time left, contact forces that were always zero: what is known becomes part of
    the policy's sense and is said in its notes. What still differs afterwards is for ``envs.differences`` to say.
    """
    from distillrl.teachers import adapting

    return adapting.fit(policy, spec, env)


def _load(source: Any, options: Options, spec: Spec | None) -> Policy:
    if isinstance(source, Player):
        return source.policy
    source = named(source)
    if isinstance(source, (str, Path)):
        if str(source).startswith(("http://", "https://")):
            from distillrl.teachers import remote

            return remote.load(str(source), options, spec)
        try:
            return _load_path(Path(source), options, spec)
        except (MemoryError, RecursionError) as error:
            raise Failed(f"{str(source)[:200]} is refused: reading it takes more than there is ({type(error).__name__})") from None
    if is_policy(source):
        return source
    from distillrl.teachers import live

    return live.load(source, options, spec)


def is_policy(source: Any) -> bool:
    """Whether an object is a policy already (policies.Policy), such as a rule of the user's own."""
    return not isinstance(source, type) and all(hasattr(source, name) for name in ("act", "init", "spec", "gives"))


def named(source: Any) -> Any:
    """The user's own object where the source is the text ``module:name`` (a class is called), and no such file is there; else the source itself."""
    if not isinstance(source, str) or not OWN.fullmatch(source) or Path(source).exists():
        return source
    from distillrl.teachers import owncode

    found = owncode.find(source, "teacher")
    if not isinstance(found, type):
        return found
    try:
        return found()
    except TypeError as error:
        raise Misconfigured(f"teacher {source!r}: {found.__name__} can't be made without arguments ({error}); name an object, or a function of observations") from None


def _is_pair(source: Any) -> bool:
    """Whether it is flax's pair of a module and its parameters, and not two teachers."""
    from distillrl.teachers import libraries

    return libraries.is_flax(source)


def digest(source: Any) -> str | None:
    """The sha256 of a teacher's file, in hexadecimal, of several joined with ``+``; None for a live object or a folder."""
    if isinstance(source, (list, tuple)):
        each = [digest(s) for s in source]
        return None if None in each else "+".join(map(str, each))
    if not isinstance(source, (str, Path)) or not Path(source).is_file():
        return None
    with Path(source).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def size(source: Any) -> int | None:
    """Bytes of a teacher's file, of several together; None for a live object or a folder."""
    if isinstance(source, (list, tuple)):
        each = [size(s) for s in source]
        return None if None in each else sum(map(int, each))  # type: ignore[arg-type]  # none is None here
    return Path(source).stat().st_size if isinstance(source, (str, Path)) and Path(source).is_file() else None


def keep_answers(policy: Policy, folder: Path) -> None:
    """Let each teacher on a server keep its answers in a run's folder, so that a resumed run asks about no state twice."""
    for one in getattr(policy, "policies", (policy,)):
        keep = getattr(one, "keep_answers", None)
        if keep is not None:
            keep(folder / "answers.jsonl")


def cost(policy: Policy) -> dict[str, Any]:
    """What asking teachers on servers has cost since they were loaded, evaluating them too; empty for all others."""
    parts = [one.cost() for one in getattr(policy, "policies", (policy,)) if hasattr(one, "cost")]
    return {key: sum(part.get(key, 0) for part in parts) for key in dict.fromkeys(k for part in parts for k in part)}


def _load_path(path: Path, options: Options, spec: Spec | None) -> Policy:
    try:
        if not path.exists():
            from distillrl.teachers import zoo

            path = zoo.resolve(path)
        there = path.exists()
    except (OSError, ValueError) as error:
        raise Failed(f"{str(path)[:200]!r} can't be read: {getattr(error, 'strerror', None) or error}") from None
    if not there:
        raise Failed(f"there is no file {str(path)!r}; a teacher is a file or a folder of: {_titles()}")
    if path.suffix == ".safetensors" and not importlib.import_module("distillrl.teachers.statedicts").sniff(path):
        from distillrl import artifact, students

        return students.build(*artifact.load(path), options.model)
    if options.format is not None:
        rows = [row for row in FORMATS if row.name == options.format.partition(":")[0]]
        if not rows:
            raise Misconfigured(f"--format {options.format!r}: there is no such format{nearest(options.format, [row.name for row in FORMATS])}")
    else:
        first = next((row for row in FORMATS if row.sniff(path)), None)
        rows = [first] if first is not None else []
    if not rows:
        cut = " (it begins as a zip file, such as stable-baselines3's and torch's, but is cut short or damaged)" if _cut(path) else ""
        raise Failed(f"{path} is no teacher that is known here{cut}; known are: {_titles()}")
    load_it = importlib.import_module(rows[0].module).load
    return load_it(path, options, spec) if rows[0].spec else load_it(path, options)


def _cut(path: Path) -> bool:
    """Whether a file begins as a zip and has no list of members of its own, which stands at its end."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04" and not names_in(path)


def _titles() -> str:
    return ", ".join(f"{row.title} ({row.name})" for row in FORMATS)
