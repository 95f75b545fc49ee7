"""Files of stable-baselines3 and sb3-contrib, read without either library and without unpickling anything."""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from distillrl.actions import Head
from distillrl.errors import Failed, Misconfigured
from distillrl.records import Group, Spec
from distillrl.senses import Scale, Sense, Stack, one_hot_where_needed
from distillrl.students.networks import Network
from distillrl.teachers import archives, environments, normalisers, sb3facts, sb3policies, zoo
from distillrl.teachers.environments import GOAL
from distillrl.teachers.extractors import Combined, NatureCNN, Own
from distillrl.teachers.normalisers import Normaliser
from distillrl.teachers.sb3facts import Facts
from distillrl.teachers.sb3layers import described, named
from distillrl.teachers.sb3policies import Parts
from distillrl.teachers.zoo import Found
from distillrl.wrapping import Join

if TYPE_CHECKING:
    from distillrl.teachers import Options

REASONS = {
    "q": "it has no values of actions",
    "quantiles": "it has no quantiles of returns",
    "value": "it has no critic of states",
    "uncertainty": "it is one policy, several that disagree have it",
}


def sniff(path: Path) -> bool:
    """Whether it is a zip that SB3 wrote, or a folder with one."""
    if path.is_dir():
        return any(_is_ours(p) for p in zoo.models(path)[:8])
    return _is_ours(path)


def _is_ours(path: Path) -> bool:
    return {"data", "policy.pth"} <= set(archives.names_in(path))


def load(path: Path, options: Options) -> Network:
    """The policy of a zip, or of RL Zoo's folder, with its normaliser.

    Raises Failed (damaged, hostile) or Misconfigured (classes of the user's own, a folder with several models).
    """
    found = zoo.locate(path)
    facts = sb3facts.read(found.model, str(found.model), options.model)
    normaliser, place = _normaliser(found, options)
    parts = sb3policies.build(facts)
    network = assemble(facts, parts, normaliser, place, options.sees)
    notes = network.info["notes"]
    network.info |= _surroundings(facts, found, normaliser)
    network.info["notes"] = [*notes, *network.info["notes"]]
    return network


def assemble(facts: Facts, parts: Parts, normaliser: Normaliser | None, place: str, sees: str | None = None) -> Network:
    """The Network of a file's parts; ``sees`` names its observation group where the file has one without a name."""
    groups = facts.observation.groups()
    if sees is not None:
        groups = _seen(groups, sees, facts.where)
    spec = Spec(groups, facts.action.action(facts.where))
    steps, inside = _normalised(groups, normaliser, place)
    if facts.kwargs.get("normalize_images", True) is not False:
        names = dict(zip(facts.observation.leaves(), groups, strict=True))
        images = [names[n] for n, part in facts.observation.leaves().items() if part.image]
        steps += [Scale(dict.fromkeys(images, 255.0))] if images else []
    steps += one_hot_where_needed(groups)
    network = Network(
        Spec(inside, spec.action),
        Sense(inside, steps),
        nn.Sequential(OrderedDict(_names(parts.body))),
        parts.out,
        Head.of(parts.head, spec.action),
        log_std=parts.log_std,
        sde=parts.sde,
        value=parts.value,
        quantiles=parts.quantiles,
        recurrent=parts.recurrent,
        value_reads=parts.value_reads,
    )
    network.requires_grad_(False)
    network.eval()
    network.info = _info(facts, parts, network, normaliser, place)
    return network


def _seen(groups: dict[str, Group], sees: str, where: str) -> dict[str, Group]:
    names = [name.strip() for name in sees.split(",")]
    if list(groups) == names or (len(groups) > 1 and set(names) == set(groups)):
        return groups
    if list(groups) == ["obs"] and len(names) == 1:
        return {names[0]: groups["obs"]}
    raise Misconfigured(f"--teacher-sees {sees}: {where} sees {', '.join(f'{k}: {g}' for k, g in groups.items())}; the name of one group is right for each")


def _normalised(groups: dict[str, Group], normaliser: Normaliser | None, place: str) -> tuple[list[Any], dict[str, Group]]:
    """The normalising steps, and the groups that come into them.

    Statistics of a k-th of a list of numbers are of one frame of a VecFrameStack: then one frame comes in. Statistics of
    a goal environment's groups, where the policy sees one list, are of SB3 1.0's HER: then the two that it joined come in.
    """
    if normaliser is None or not normaliser.moments:
        return [], groups
    if list(groups) == ["obs"] and set(GOAL) <= set(normaliser.moments):
        moments = {n: normaliser.moments[n] for n in GOAL}
        inside = {n: Group(m.shape, groups["obs"].dtype) for n, (m, _) in moments.items()}
        if sum(g.shape[0] if len(g.shape) == 1 else -1 for g in inside.values()) == groups["obs"].shape[0]:
            return [replace(normaliser, moments=moments).step(list(inside)), Join(GOAL, "obs")], inside
    step = normaliser.step(list(groups))
    shapes = step.shapes
    if set(shapes) <= set(groups) and all(groups[n].shape == s for n, s in shapes.items()):
        return [step], groups
    if set(shapes) == set(groups) and all(len(s) == len(groups[n].shape) == 1 and 0 < s[0] < groups[n].shape[0] for n, s in shapes.items()):
        times = {groups[n].shape[0] / s[0] for n, s in shapes.items()}
        count = times.pop()
        if not times and count == math.floor(count):
            inside = {n: Group(shapes[n], g.dtype) for n, g in groups.items()}
            return [step, Stack(int(count), shapes, dict.fromkeys(shapes, -1), dict.fromkeys(shapes, "float32"))], inside
    sizes = ", ".join(f"{n} {list(s)}" for n, s in shapes.items())
    seen = ", ".join(f"{n} {list(g.shape)}" for n, g in groups.items())
    raise Failed(f"{place}: its statistics are of {sizes}, but the policy sees {seen}; if they belong to another policy, say --vecnormalize none")


def _names(body: list[nn.Module]) -> dict[str, nn.Module]:
    """Names that features are asked by: extractor, then linear1, hidden1, …"""
    front = [m for m in body[:1] if isinstance(m, (NatureCNN, Combined, Own))]
    return {**dict(zip(("extractor",), front, strict=False)), **named(body[len(front) :])}


def _normaliser(found: Found, options: Options) -> tuple[Normaliser | None, str]:
    """The statistics given, or those found beside the file."""
    if options.vecnormalize == "none":
        return None, ""
    place = Path(options.vecnormalize) if options.vecnormalize is not None else found.vecnormalize
    return (None, "") if place is None else (normalisers.read(place), str(place))


# ── what it says of itself ────────────────────────────────────────────────────────────────────────────────────────


def _info(facts: Facts, parts: Parts, network: Network, normaliser: Normaliser | None, place: str) -> dict[str, Any]:
    acting = [part for part in (network.recurrent, network.body, network.out) if part is not None]
    layers = [m for part in acting for m in part.modules() if not list(m.children()) and not isinstance(m, (nn.Sequential, nn.Flatten))]
    activation = next((described(m) for m in layers if not isinstance(m, (nn.Linear, nn.Conv2d, nn.LSTM, nn.Identity)) and not list(m.parameters())), "none")
    notes = list(parts.notes)
    if facts.action.kind == "discrete" and facts.action.start:
        notes.append(f"its action space counts from {facts.action.start}: stable-baselines3 ignores that and counts from 0, here the environment gets {facts.action.start} more")
    return {
        "format": "stable-baselines3",
        "algorithm": facts.algorithm,
        "policy_class": facts.policy,
        "saved_by": f"stable-baselines3 {facts.version}",
        "layers": [described(m) for m in layers],
        "activation": activation,
        "normaliser": "none found" if normaliser is None else f"{normaliser} ({place})",
        "observation_space": str(facts.observation),
        "action_space": str(facts.action),
        "gives": sorted(network.gives),
        "missing": {**{k: v for k, v in REASONS.items() if k not in network.gives}, **parts.missing},
        "parameters": network.acting_parameters(),
        "environment": None,
        "fits": environments.fitting(network.spec),
        "notes": notes,
    }


def _surroundings(facts: Facts, found: Found, normaliser: Normaliser | None) -> dict[str, Any]:
    """What its folder tells: environment, wrappers, the recorded return, and doubts."""
    doubts = []
    if found.normalised and normaliser is None:
        doubts.append("its settings say that observations were normalised, but there is no vecnormalize.pkl beside it: give it with --vecnormalize")
    notes = [*found.notes, *doubts]
    told: dict[str, Any] = {}
    if found.time:
        told["time"] = True
        notes.append("it was trained behind TimeFeatureWrapper: the last number that it sees is the share of the episode that is left")
    if "n_sampled_goal" in facts.data or "model_class" in facts.data:
        told["goal"] = True
        notes.append("it was trained with SB3 1.0's HER, which joins the observation and the goal that is desired into one list")
    if found.stack:
        told["stack"] = found.stack
        notes.append(f"it was trained behind VecFrameStack: it sees the last {found.stack} observations at once")
    recorded = found.recorded or sb3facts.training_return(facts)
    return {
        "environment": found.environment,
        "trained_on": found.trained_on,
        "env_kwargs": found.env_kwargs,
        "wrappers": {**told, **({"others": found.wrappers} if found.wrappers else {})},
        "recorded_return": recorded,
        "doubts": doubts + [f"it was trained behind {w}" for w in found.wrappers],
        "notes": notes,
    }
