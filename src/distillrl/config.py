"""The options of a run as frozen records; TOML first, then flags. Needs no torch.

``config.toml`` of a run folder is a Config with everything resolved: reading it back runs the same.
"""

from __future__ import annotations

import dataclasses
import re
import tomllib
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from distillrl.errors import Failed, Misconfigured, nearest

CHOICES = ("all", "entropy", "disagreement", "random")
"""The ways to choose the states that the teacher is asked about (choosing.py)."""
RESCUES = {"agreement": {"below": 0.5, "above": 0.9, "steps": 5.0}, "value": {"below": 0.1, "above": 0.3, "steps": 10.0}}
"""The ways in which the teacher takes over from a driving student (rescuing.py)."""
BOUNDS = {"agreement": 1.0, "return": float("inf"), "retention": float("inf"), "explained_variance": 1.0, "spent": 1.0}
"""What a phase may end by, and the most that it can be."""


@dataclass(frozen=True)
class Phase:
    """One phase of a method: who drives, what is kept, what is learnt, until when."""

    beta: str = "0"
    """The teacher's share of the driving, a schedule: 1, 0, power(0.9), linear(1, 0, over=10)."""
    by: str = "step"
    """Draw who drives by "step" or by "episode"."""
    sampled: bool = False
    """Play samples while collecting, not the most likely actions."""
    keep: str = "all"
    """"all" labelled states, or only the last "round"."""
    terms: Mapping[str, Any] = field(default_factory=dict)
    """Objective → {weight = schedule, and the objective's own options}, or its weight alone."""
    train: str = "all"
    """"all", or the names of the parts that learn, such as "value"."""
    rounds: int = 0
    """Rounds of this phase at most; 0: until the run ends."""
    until: str = "none"
    """The phase ends where one of these is reached: aim (the run's), agreement=, return=, retention=, explained_variance= (of the critic, up to 1), spent= (share of the budget)."""
    first: int = 64
    """Steps of each environment in round 0, from which the student's normaliser is measured."""
    steps: int = 32
    """Steps of each environment a round."""
    updates: int = 64
    """Gradient updates a round."""
    batch: int = 256
    lr: float = 3e-3
    average: float = 0.99
    """Decay of the moving average of the weights; 0 is off."""
    noise: str = "0"
    """A schedule: what is added to the played actions (not to the labels), the share of random ones, or a share of a box's half range."""
    late: str = "0"
    """A schedule: the teacher drives the first steps of each episode, a number drawn evenly from 0 to this one."""
    rescue: str = "none"
    """When the teacher takes over from the student: agreement(below=0.5, above=0.9, steps=5) or value(below=0.1, above=0.3, steps=10)."""
    choose: str = "all"
    """The states that the teacher is asked about: "all", or a share of each round's: "entropy", "disagreement", "random"."""
    ask: float = 0.1
    """That share, above 0 to 1, of a round's states; as many labels as it says, spread over the run, is what a budget of labels is spent on."""
    committee: int = 3
    """Students beside the first, whose disagreement is looked at."""
    critical: bool = False
    """States count by what is at stake for the teacher there, its best action against its worst."""
    weigh: str = "none"
    """How much recorded states count: awr(1), crr, crr_exp(1), top(0.1), success, success(200); "none": all alike."""
    gamma: float = 0.99
    """Discount of the reward, for terms on reward."""
    lam: float = 0.95
    """λ of the generalised advantage."""
    n: int = 3
    """Steps of an n-step return."""

    def __post_init__(self) -> None:
        _choice("by", self.by, ("step", "episode"))
        _choice("keep", self.keep, ("all", "round"))
        _choice("choose", self.choose, CHOICES)
        if not 0 < self.ask <= 1:
            raise Misconfigured(f"ask = {self.ask}: a share above 0 to 1 is right")
        for name in ("gamma", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                raise Misconfigured(f"{name} = {getattr(self, name)}: a number from 0 to 1 is right")
        for name in ("first", "steps", "updates", "batch", "n", "committee"):
            _positive(name, getattr(self, name))
        if self.rounds < 0:
            raise Misconfigured(f"rounds = {self.rounds}: a whole number from 0 (no bound) on is right")
        bounds(self.until)
        rescue(self.rescue)
        if not 0 <= self.average < 1:
            raise Misconfigured(f"average = {self.average}: a decay from 0 (off) to below 1 is right")
        if not 0 < self.lr < 10:
            raise Misconfigured(f"lr = {self.lr}: a learning rate above 0, such as 3e-3, is right")
        # Terms are summed in this order, in which TOML writes them (tables last), so that a run read from its file adds up to the same bits.
        object.__setattr__(self, "terms", dict(sorted(self.terms.items(), key=lambda term: isinstance(term[1], Mapping))))


@dataclass(frozen=True)
class Config:
    """Everything that a run depends on; the defaults are the command line's."""

    teacher: str | None = None
    env: str | None = None
    student: str = "mlp:16x16"
    method: str = "auto"
    seed: int = 0
    until: str | None = "retention=0.99"
    """Stop once a figure measured on selecting seeds is reached: retention, return or agreement; "none" never."""
    env_steps: int = 300_000
    labels: int | None = None
    seconds: float | None = None
    rounds: int | None = None
    """Stop after this many rounds."""
    last_round: int | None = None
    """A run that ended by the clock notes here after how many rounds, so that the same comes of it again; no budget that a share is counted of."""
    slots: int = 16
    """Environments side by side."""
    backend: str = "auto"
    device: str = "cpu"
    threads: int = 1
    max_episode_steps: int | None = None
    memory: str | None = None
    """What the states may take of it, such as "4GB", half of what is free by default; more goes to files in the run folder."""
    init: str | None = None
    inherit: str | None = None
    """A network whose weights the student starts from, its neurons chosen or repeated: "teacher", or a file."""
    format: str | None = None
    model: str | None = None
    vecnormalize: str | None = None
    teacher_sees: str | None = None
    teachers: tuple[str, ...] = ()
    """Several teachers in place of one; ``combine`` or ``dispatch`` says how they become one."""
    combine: str | None = None
    """average (of several, by default), confidence, value, product or best."""
    dispatch: str | None = None
    """Which of several is asked, by an expression over the observation: ``level<3:0, else:1``."""
    concurrency: int | None = None
    """Requests at a time to a teacher on a server; 8 by default, or what its own file says."""
    trust: bool = False
    """Run the teacher file's own code, where its format needs that."""
    data: str | None = None
    """Recorded play to learn from: a data set's folder or file, or a Minari id; nothing is driven then, and ``env`` only evaluates."""
    data_format: str | None = None
    label: str = "auto"
    """What recorded states are labelled with: "teacher" (asked anew), the recorded "distribution" or "action"; "auto": the first that there is."""
    weigh: str | None = None
    """How much recorded states count, in place of the method's own; settled into the phases."""
    hold_out: float = 0.1
    """Share of recorded episodes that are never learnt from, and choose the student."""
    see: str | None = None
    """What the student sees of an observation, such as "drop=2,3,5"; everything by default."""
    select_episodes: int = 20
    verdict_episodes: int = 50
    worst_of: int | None = None
    """Once the aim is reached on average: go on until so many fresh starts in a row go well; 500 for trees and the like, else 0 (off)."""
    checkpoint_seconds: float = 5.0
    """A checkpoint is written about this often; 0: after every round."""
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)
    choose: str | None = None
    """Which states the teacher is asked about, in place of the method's own choice; settled into the phases."""
    finetune: bool = False
    """After distilling go on by the reward alone, the critic first; settled into the phases."""
    terms: str | None = None
    """Objectives with weights in place of the method's, or with a leading + beside them; settled into the phases."""
    phase: tuple[Phase, ...] = ()

    def __post_init__(self) -> None:
        for name in ("env_steps", "slots", "threads", "select_episodes", "verdict_episodes"):
            _positive(name, getattr(self, name))
        for name in ("labels", "seconds", "rounds", "max_episode_steps", "concurrency"):
            if getattr(self, name) is not None:
                _positive(name, getattr(self, name))
        if self.teachers and self.teacher is not None:
            raise Misconfigured(f"teacher = {self.teacher!r} and teachers = {', '.join(self.teachers)}: name one teacher, or several, not both")
        if len(self.teachers) < 2 and (self.combine or self.dispatch or self.teachers):
            raise Misconfigured("several teachers are named with --teachers a.zip,b.zip; --combine and --dispatch say how they become one")
        if self.combine and self.dispatch:
            raise Misconfigured(f"combine = {self.combine!r} and dispatch = {self.dispatch!r}: one of them says how several teachers become one")
        if self.worst_of is not None and self.worst_of < 0:
            raise Misconfigured(f"worst_of = {self.worst_of}: a number of starts such as 500, or 0 for none, is right")
        if self.inherit is not None and (self.init is not None or self.see is not None):
            raise Misconfigured("--inherit gives the student the weights of a network and all that it sees: give no --init and no --see with it")
        _choice("label", self.label, ("auto", "teacher", "distribution", "action"))
        if not 0 <= self.hold_out < 1:
            raise Misconfigured(f"hold_out = {self.hold_out}: a share from 0 to below 1 is right")
        if self.data is None and (self.data_format or self.weigh or self.label != "auto"):
            raise Misconfigured("data_format, label and weigh are of recorded play: name it with --data")
        if self.seed < 0:
            raise Misconfigured(f"seed = {self.seed}: a whole number from 0 on is right")
        aim(self.until)
        if self.choose is not None:
            _choice("--choose", self.choose, CHOICES)


def parse_terms(text: str) -> tuple[bool, dict[str, Any]]:
    """``+hint: 0.1, value_mse: linear(1,0)`` → (True, {"hint": "0.1", "value_mse": "linear(1,0)"}); True: beside the method's.

    Options stand behind the name: ``forward_kl(teacher_temperature=0.1): 0.5`` → {"weight": "0.5", "teacher_temperature": 0.1}.
    """
    added = text.lstrip().startswith("+")
    terms: dict[str, Any] = {}
    for part in re.split(r",(?![^()]*\))", text.strip().lstrip("+")):
        name, colon, weight = part.partition(":")
        if not name.strip() or (colon and not weight.strip()):
            raise Misconfigured(f"--terms {text!r}: write it as 'forward_kl: linear(1,0.1), value_mse: 0.5'")
        word, options = _term_options(name.strip().lstrip("+"), text)
        terms[word] = {"weight": weight.strip() or "1", **options} if options else weight.strip() or "1"
    return added, terms


def _term_options(name: str, text: str) -> tuple[str, dict[str, Any]]:
    word, bracket, inside = name.partition("(")
    options: dict[str, Any] = {}
    if bracket and not name.endswith(")"):
        raise Misconfigured(f"--terms {text!r}: {name!r} has no closing bracket; write options as forward_kl(teacher_temperature=0.1)")
    for part in inside[:-1].split(",") if bracket else []:
        key, equals, value = part.partition("=")
        if not equals or not key.strip() or not value.strip():
            raise Misconfigured(f"--terms {text!r}: {part.strip()!r} was given; write options as forward_kl(teacher_temperature=0.1)")
        try:
            options[key.strip()] = tomllib.loads(f"x = {value.strip()}")["x"]
        except tomllib.TOMLDecodeError:
            options[key.strip()] = value.strip()
    return word.strip(), options


def with_terms(phases: tuple[Phase, ...], text: str) -> tuple[Phase, ...]:
    """The phases with these terms in place of their own, or beside them."""
    added, terms = parse_terms(text)
    return tuple(dataclasses.replace(p, terms={**(p.terms if added else {}), **terms}) for p in phases)


def aim(text: str | None) -> tuple[str, float] | None:
    """``retention=0.99`` → ("retention", 0.99); None for none. Raises Misconfigured."""
    if text is None or text.lower() == "none":
        return None
    name, equals, number = text.partition("=")
    try:
        value = float(number)
    except ValueError:
        value = float("nan")
    if not equals or value != value:
        raise Misconfigured(f"--until {text!r}: write it as retention=0.99, return=200 or agreement=0.95")
    _choice("--until", name.strip(), ("retention", "return", "agreement"))
    return name.strip(), value


def bounds(text: str) -> dict[str, float]:
    """A phase's ``until``: ``explained_variance=0.5, spent=0.3`` → {name: bound}, {} for none; ``aim`` has no number (nan). Raises Misconfigured."""
    found: dict[str, float] = {}
    for part in (p.strip() for p in text.split(",")):
        if part.lower() in {"none", ""}:
            continue
        name, equals, number = (x.strip() for x in part.partition("="))
        _choice("a phase's until", name, (*BOUNDS, "aim"))
        try:
            found[name] = float(number) if equals else float("nan")
        except ValueError:
            raise Misconfigured(f"a phase's until = {text!r}: {number!r} is no number; write it as explained_variance=0.5 or agreement=0.95") from None
        if (name == "aim") == bool(equals) or (equals and not -float("inf") < found[name] <= BOUNDS[name]):
            right = "aim stands alone" if name == "aim" else f"{name}=NUMBER" + (f", at most {BOUNDS[name]:g}," if BOUNDS[name] < float("inf") else "")
            raise Misconfigured(f"a phase's until = {text!r}: {right} is right")
    return found


def rescue(text: str) -> tuple[str, float, float, int] | None:
    """A phase's ``rescue``: ``agreement(below=0.5, above=0.9, steps=5)`` → its four parts, those left out by default; None for none. Raises Misconfigured."""
    if text == "none":
        return None
    kind, _, inside = text.partition("(")
    _choice("rescue", kind.strip(), (*RESCUES, "none"))
    found = dict(RESCUES[kind.strip()])
    for part in inside.rstrip(") ").split(",") if inside.strip(") ") else []:
        name, _, number = (x.strip() for x in part.partition("="))
        _choice(f"rescue = {text!r}: an option", name, tuple(found))
        try:
            found[name] = float(number)
        except ValueError:
            raise Misconfigured(f"rescue = {text!r}: {name}={number!r} is no number") from None
    below, above, steps = found["below"], found["above"], found["steps"]
    if not 0 <= below <= above <= 1 or not 1 <= steps < 1e9 or steps != int(steps):
        raise Misconfigured(f"rescue = {text!r}: 0 ≤ below ≤ above ≤ 1, and a whole number of steps from 1, are right")
    return kind.strip(), below, above, int(steps)


def read(path: Path) -> dict[str, Any]:
    """The raw keys of a TOML file; raises Failed or Misconfigured with the line."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Failed(f"{path} can't be read: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Misconfigured(f"{path} is not TOML: {error}") from None


def build(data: Mapping[str, Any], where: str = "the configuration") -> Config:
    """A Config of plain data; an unknown key names the nearest right one, a wrong type says what is right."""
    return _build(Config, data, where)


def dumps(config: Config, heading: str = "") -> str:
    """The TOML of a Config, defaults too; keys that are None are left out."""
    import tomli_w

    text = tomli_w.dumps(_plain(config))
    return f"{heading}\n{text}" if heading else text


def with_changes(config: Config, changes: Mapping[str, Any]) -> Config:
    """The same with the given keys changed; None means: not given."""
    return dataclasses.replace(config, **{k: v for k, v in changes.items() if v is not None})


def _plain(record: Any) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for f in dataclasses.fields(record):
        value = getattr(record, f.name)
        if f.name == "until" and value is None:  # the run's
            value = "none"
        if value is None or (f.name in {"phase", "teachers"} and not value):
            continue
        out[f.name] = [_plain(v) for v in value] if f.name == "phase" else dict(value) if isinstance(value, Mapping) else list(value) if isinstance(value, tuple) else value
    return out


def _build(kind: type[Any], data: Mapping[str, Any], where: str) -> Any:
    hints = get_type_hints(kind)
    values: dict[str, Any] = {}
    for key, value in data.items():
        if key not in hints:
            raise Misconfigured(f"{where}: unknown key {key!r}{nearest(key, hints)}")
        if key == "phase":
            if not isinstance(value, list) or not all(isinstance(p, Mapping) for p in value):
                raise Misconfigured(f"{where}: phase must be written as tables, [[phase]]")
            values[key] = tuple(_build(Phase, p, f"{where}, phase {i + 1}") for i, p in enumerate(value))
        else:
            values[key] = _checked(f"{where}: {key}", value, hints[key])
    return kind(**values)


def _checked(where: str, value: Any, hint: Any) -> Any:
    kinds = get_args(hint) if get_origin(hint) in (types.UnionType,) else (hint,)
    plain = tuple(get_origin(k) or k for k in kinds)
    if tuple in plain and isinstance(value, list) and all(isinstance(v, str) for v in value):
        return tuple(value)
    if float in plain and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if (isinstance(value, bool) and bool not in plain) or not isinstance(value, plain):
        names = " or ".join({"str": "text", "int": "a whole number", "float": "a number", "bool": "true or false", "Mapping": "a table", "tuple": "a list of texts"}.get(k.__name__, k.__name__) for k in plain if k is not type(None))
        raise Misconfigured(f"{where} = {value!r}: {names} is right")
    return value


def _choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise Misconfigured(f"{name} = {value!r}{nearest(value, known)}")


def _positive(name: str, value: float) -> None:
    if not value > 0 or value != value or value == float("inf"):
        raise Misconfigured(f"{name} = {value}: a number above 0 is right")
