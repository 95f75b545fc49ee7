"""Families of students: ``make`` an untrained one from a word such as ``mlp:16x16``, ``build`` one from an artifact.

To add a family, add a file and a row in FAMILIES.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from distillrl import seeing
from distillrl.config import Phase
from distillrl.errors import Failed, Misconfigured, nearest
from distillrl.images import channels
from distillrl.normalising import Normalise, steady
from distillrl.policies import Memory
from distillrl.records import Group, Rollout, Spec
from distillrl.senses import Sense, one_hot_where_needed
from distillrl.students import compact, fused, given, recurrent
from distillrl.students.by_task import with_heads
from distillrl.students.cnn import before_background, build_cnn, is_grid, make_cnn, parse_cnn
from distillrl.students.forest import build_forest, make_forest, parse_forest
from distillrl.students.fused import parse_attention, parse_late
from distillrl.students.leaf_linear import build_leaf_linear, make_leaf_linear, parse_leaf_linear
from distillrl.students.networks import build_mlp, make_mlp, parse_mlp
from distillrl.students.polynomial import build_linear, build_poly, make_linear, make_poly, parse_linear, parse_poly
from distillrl.students.recurrent import parse_recurrent
from distillrl.students.tree import build_tree, make_tree, parse_tree
from distillrl.tasks import TASK, owners
from distillrl.teachers.owncode import find
from distillrl.wrapping import Played


@dataclass(frozen=True)
class Family:
    """One row: how a word's part after the colon is checked, and how a policy comes of it."""

    parse: Callable[[str], Any]
    make: Callable[[str, Spec, str | None, torch.Generator, Sense], Any]
    build: Callable[[str, Spec, Mapping[str, Any]], Any]
    example: str
    grown: bool = False
    """Whether it is fitted anew to all labelled states each round, not descended."""
    suits: Mapping[str, Any] = field(default_factory=dict)
    """Settings of a phase that suit it better than the usual ones."""
    sees: bool = False
    """Whether it has convolutions for the images that it is given, and sees them against their background."""


FAMILIES: dict[str, Family] = {
    "mlp": Family(parse_mlp, make_mlp, build_mlp, "mlp:16x16, mlp:64x64:relu, or mlp: for a linear one"),
    "cnn": Family(parse_cnn, make_cnn, build_cnn, "cnn:8-16-16:64, cnn:16k8s4-32k4s2:256 or cnn:rusu-7 for images", suits={"lr": 1e-3, "steps": 64, "batch": 128, "updates": 256}, sees=True),
    "gru": Family(parse_recurrent, partial(recurrent.make, "gru"), partial(recurrent.build, "gru"), "gru:32, or gru:32:16x16 with layers behind it"),
    "lstm": Family(parse_recurrent, partial(recurrent.make, "lstm"), partial(recurrent.build, "lstm"), "lstm:32"),
    "late": Family(parse_late, partial(fused.make, "late"), partial(fused.build, "late"), "late:16:32 for several senses, each through layers of its own", sees=True),
    "attention": Family(parse_attention, partial(fused.make, "attention"), partial(fused.build, "attention"), "attention:16x2:32 for several senses that look at one another", sees=True),
    "tree": Family(parse_tree, make_tree, build_tree, "tree:leaves=64", grown=True),
    "linear-tree": Family(parse_leaf_linear, make_leaf_linear, build_leaf_linear, "linear-tree:leaves=8", grown=True),
    "forest": Family(parse_forest, make_forest, build_forest, "forest:trees=5,leaves=32", grown=True),
    "linear": Family(parse_linear, make_linear, build_linear, "linear:terms=4", grown=True),
    "poly": Family(parse_poly, make_poly, build_poly, "poly:degree=2,terms=12", grown=True),
}


def _family(word: str, own: Any = None) -> tuple[Family, str]:
    """The row of a word; ``own`` is the user's class where the word is ``module:Class``, looked for by that name where it isn't given."""
    name, colon, text = word.partition(":")
    if of_the_user(word):
        found = _named(word) if own is None else find(own) if isinstance(own, str) else own
        return Family(str, partial(given.make, found), partial(given.build, found), word), word
    if name in FAMILIES and not colon:
        raise Misconfigured(f"--student {word!r}: its sizes are missing, as in {FAMILIES[name].example}")
    if name not in FAMILIES:
        examples = "; ".join(f.example for f in FAMILIES.values())
        raise Misconfigured(f"--student {word!r}{nearest(name, FAMILIES)}: a student is written as {examples}")
    return FAMILIES[name], text


def of_the_user(word: str) -> str | None:
    """The word where it names a class of the user's own (``module:Class``), else None."""
    return word if word.partition(":")[0] not in FAMILIES and given.is_one(word) else None


def _named(word: str) -> Any:
    """The user's class of a word; where there is none, the nearest family is named too."""
    try:
        return find(word, "--student")
    except Misconfigured as error:
        raise Misconfigured(f"{error}; a student is module:Class, or one of {', '.join(FAMILIES)}{nearest(word.partition(':')[0], FAMILIES)}") from None


def check(word: str, own: Any = None) -> None:
    """Raise Misconfigured, with what would be right, unless the word names a student."""
    family, text = _family(word, own)
    family.parse(text)


def grown(word: str, own: Any = None) -> bool:
    """Whether a word names a family that is fitted, not descended."""
    return _family(word, own)[0].grown


def suited(word: str, phases: tuple[Phase, ...], own: Any = None) -> tuple[Phase, ...]:
    """A method's phases with the settings that suit the family, where the method has no other than the usual ones."""
    family, usual = _family(word, own)[0], Phase()
    return tuple(replace(p, **{k: v for k, v in family.suits.items() if getattr(p, k) == getattr(usual, k)}) for p in phases)


def make(word: str, spec: Spec, generator: torch.Generator, head: str | None = None, see: str | None = None, own: Any = None) -> Any:
    """An untrained student for environments of this spec; ``head`` overrides the one that suits the action space.

    ``see``: what it sees of an observation, in the words of seeing.py; groups that it doesn't read are no part of its spec.
    ``own``: the user's class where the word is its name (given.py).
    """
    family, text = _family(word, own)
    if seeing.running(see) and (family.grown or own is not None or spec.tasks):
        raise Misconfigured(f"--see 'normalise=running' is for networks such as mlp:16x16 on one task; {word} {'of several tasks ' if spec.tasks else ''}takes plain numbers, or normalises them once")
    if see is None:
        sense = Sense(spec.observations, one_hot_where_needed(spec.observations))
    else:
        reads = seeing.parse(see, spec.observations).reads
        spec = replace(spec, observations={k: g for k, g in spec.observations.items() if k in reads})
        sense = seeing.parse(see, spec.observations)
    return with_heads(family.make(text, spec, head, generator, sense), spec).eval()


def build(header: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], own: Any = None, learning: bool = False) -> Any:
    """The policy of an artifact; refuses tensors whose names, shapes or values don't fit. Raises Failed.

    A student of the user's own class needs it named again, by ``own`` (the class, or ``module:Class``): Misconfigured without.
    ``learning``: with free weights under their grids and masks, where it is held in fewer bits (students/compact.py).
    """
    word = str(header.get("family"))
    if of_the_user(word) and own is None:
        raise Misconfigured(f"this student is of the class {word}, whose code is not in the file: name it to run it, --model {word}")
    try:
        spec = Spec.from_json(header["spec"])
        family, text = _family(word, own)
        policy = with_heads(family.build(text, spec, header), spec)
        made_compact = compact.of_header(header)
        if made_compact is not None:
            compact.wear(policy, made_compact)
    except (KeyError, TypeError, ValueError, AttributeError, Misconfigured) as error:
        raise Failed(f"the artifact's header is damaged ({type(error).__name__}: {error})") from None
    expected = policy.artifact_tensors()
    aux = {name: value for name, value in tensors.items() if made_compact is not None and name.endswith(":scale") and name[:-6] in made_compact.forms}
    tensors = {name: value for name, value in tensors.items() if name not in aux}
    if set(expected) != set(tensors):
        odd = sorted(set(expected) ^ set(tensors))
        raise Failed(f"the artifact's tensors don't fit its header: {', '.join(odd[:4])} is missing or too much")
    for name, value in (*aux.items(), *((k, v) for k, v in tensors.items() if k.endswith(".inverse"))):
        if not bool((value.isfinite() & (value > 0)).all()):
            raise Failed(f"the artifact's tensor {name} holds what is no size of a step")
    for name, value in tensors.items():
        if value.shape != expected[name].shape or value.dtype != expected[name].dtype:
            raise Failed(
                f"the artifact's tensor {name} is {list(value.shape)} {value.dtype}, its header says {list(expected[name].shape)} {expected[name].dtype}"
            )
        if not bool(torch.isfinite(value).all()):
            raise Failed(f"the artifact's tensor {name} holds NaN or infinity")
    policy.load_state_dict(dict(tensors), strict=False)
    policy.eval()
    if made_compact is not None:
        policy.compact = replace(made_compact, aux=aux)
        if learning:
            compact.hold(policy)
    if getattr(policy, "grown", False):
        policy.settle()
    made_of = header.get("provenance") or {}
    policy.info.update(
        format="distillrl student",
        family=header["family"],
        layers=[str(layer) for layer in policy.body] if hasattr(policy, "body") else [],
        environment=(made_of.get("config") or {}).get("env"),
        provenance=made_of,
    )
    return policy


def _measured(group: Group, given: Group) -> bool:
    return group.dtype == given.dtype and not (group.dtype == "bool" and is_grid(group))


def normalised(student: Any, measured: Mapping[str, tuple[torch.Tensor, torch.Tensor]], count: int = 0) -> Sense:
    """The student's sense with a normaliser at its end, one that runs on from ``count`` states where there is one; what belongs to one of
    several tasks is zero again while another is played.
    """
    if count:
        running = Normalise({name: mean.shape for name, (mean, _) in measured.items()}, running=True)
        running.follow(measured, count)
        following: Sense = student.sense.with_step(running)
        return following
    sense: Sense = student.sense.with_step(Normalise.from_moments({name: (mean, steady(mean, variance)) for name, (mean, variance) in measured.items()}))
    own = {name: k for name, k in owners(student.spec).items() if name in measured}
    return sense.with_step(Played(own, TASK)) if own and TASK in sense.groups else sense


def look(student: Any, rollout: Rollout, running: bool = False) -> bool:
    """Measure in the first rollout what the student sees: its numbers are normalised from then on, its images seen against their background.

    False where there is nothing of the kind. Pictures of several tasks stay as they are: each has its own background.
    """
    before, measured = getattr(student, "sense", None), moments(student, rollout)
    if measured:
        student.sense = normalised(student, measured, int(rollout.valid.sum()) if running else 0)
    row = FAMILIES.get(str(getattr(student, "family", "")).partition(":")[0])
    if row is not None and row.sees and not student.spec.tasks:
        student.sense = before_background(student.sense, rollout)
    return getattr(student, "sense", None) is not before


def follow(policies: Iterable[Any], rollout: Rollout) -> None:
    """Take what is seen in a rollout's valid states into the running normaliser of each of these students; their chains are alike."""
    chosen = list(policies)
    step = chosen[0].sense.steps[-1] if len(chosen[0].sense.steps) else None
    if not isinstance(step, Normalise) or not step.running:
        return  # it sees nothing that is measured
    before = Sense(chosen[0].sense.observations, chosen[0].sense.steps[:-1])
    memory = {name: value for name, value in rollout.memory.items() if name.startswith("sense.")}
    measured = _moments(before, chosen[0].spec, rollout, step.shapes, memory)
    for policy in chosen:
        policy.sense.steps[-1].follow(measured, int(rollout.valid.sum()))


@torch.no_grad()
def moments(student: Any, rollout: Rollout) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """{group: (mean, variance)} of what a network sees in a rollout's valid states; empty for a grown family.

    Pixels that were already made 0 to 1 are left out, and grids of booleans; an image has one mean for each channel. Of several tasks
    a group that belongs to one is measured where that one is played.
    """
    if getattr(student, "grown", False) or not hasattr(student, "sense"):
        return {}
    wanted = [name for name, group in student.sense.groups.items() if _measured(group, student.spec.observations.get(name, group))]
    return _moments(student.sense, student.spec, rollout, wanted, {})


@torch.no_grad()
def _moments(sense: Sense, spec: Spec, rollout: Rollout, wanted: Iterable[str], memory: Memory) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    found, own, names = {}, owners(spec), list(wanted)
    seen = sense({name: value[:-1] for name, value in rollout.obs.items()}, memory, rollout.starts)[0] if names else {}
    for name in names:
        group = sense.groups[name]
        played = rollout.valid if name not in own else rollout.valid & (rollout.obs[TASK][:-1] == own[name])
        values = seen[name][played].double()
        pixels = [0]
        if is_grid(group):
            axis = channels(group.shape)
            pixels = [d for d in range(values.dim()) if axis is None or d != (1 if axis == 0 else values.dim() - 1)]
        mean, variance = values.mean(pixels, keepdim=True)[0].expand(group.shape), values.var(pixels, keepdim=True)[0].expand(group.shape)
        found[name] = (mean, variance)
    return found
