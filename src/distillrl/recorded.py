"""Recorded play as a driver: states and labels from a data set, with the face that ``Drive`` has for the loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distillrl import weighing
from distillrl.actions import Bernoulli, Categorical, Deterministic, Gaussian, MultiCategorical
from distillrl.agreeing import spread
from distillrl.errors import Failed, Misconfigured, Missing
from distillrl.lanes import Lanes, pack, rollout
from distillrl.policies import ACTION, Memory, Policy, agreement
from distillrl.recordings import Recording
from distillrl.records import Prediction, Rollout, Spec, over_states, tensors, with_tensors
from distillrl.states import Who, refuse_nan
from distillrl.weighing import Weighing

LABELS = ("auto", "teacher", "distribution", "action")
"""What recorded states are labelled with: the best there is, the teacher asked anew, the recorded distribution, the recorded action."""
ASKED_AT_ONCE = 4096
VALUES = frozenset({"value", "q"})


class Behaviour:
    """Whoever played what was recorded: it can't be asked about anything else."""

    def __init__(self, recording: Recording, label: str) -> None:
        self.spec: Spec = recording.spec
        soft = {"distribution"} if label == "distribution" else set()
        self.gives = frozenset({"action"} | soft | ({"value", "q"} & set(recording.known)))
        self.info: Mapping[str, Any] = {"format": f"recorded play ({recording.format})", "notes": recording.notes}

    def init(self, n: int) -> Memory:
        """None."""
        return {}

    def act(self, obs: Mapping[str, Tensor], memory: Memory, starts: Tensor | None, wants: frozenset[str] = ACTION) -> tuple[Prediction, Memory]:
        """Refused."""
        raise Missing("recorded play can't be asked about other states: name the teacher, distillrl distill TEACHER --data …")


def distribution(recording: Recording) -> bool:
    """Whether the recorded policy's distribution is kept."""
    kind = recording.spec.action.kind
    return {"mean", "std"} <= set(recording.known) if kind == "box" else "logits" in recording.known


def said(recording: Recording, label: str) -> Prediction:
    """[S] what the recording says of its own steps: the distribution, or the action; values where they were kept."""
    space, known = recording.spec.action, {k: torch.from_numpy(v) for k, v in recording.known.items()}
    low, high = torch.tensor(space.low, dtype=torch.float32), torch.tensor(space.high, dtype=torch.float32)
    action: Any = Deterministic(torch.from_numpy(recording.action), low, high) if space.kind == "box" else Deterministic(torch.from_numpy(recording.action))
    if label == "distribution" and space.kind == "box":
        action = Gaussian(known["mean"], known["std"].log(), low, high, recording.squashed)
    elif label == "distribution":
        logits = known["logits"]
        action = MultiCategorical(logits, space.nvec) if space.kind == "multidiscrete" else Bernoulli(logits) if space.kind == "multibinary" else Categorical(logits)
    return Prediction(action, q=known.get("q"), value=known.get("value"))


@dataclass(frozen=True)
class Part:
    """Episodes in their lanes: what is learnt from, or what is held out."""

    recording: Recording
    lanes: Lanes
    play: Rollout


class _NoVector:
    """No environment: nothing to reseed or replay, nothing to close."""

    replayable, backend = True, "recorded"

    def close(self) -> None:
        """Nothing."""


class Recorded:
    """Whole episodes of a recording (those that are to be learnt from), given once, in the first round; some are held out, in a rollout of their own. State: the labels of those.

    The teacher is asked about each state once, where ``label`` is "teacher"; a label budget asks it about so many states, drawn evenly.
    ``advisor``: who is asked what states are worth, where they are weighed by that.
    """

    def __init__(self, recording: Recording, *, slots: int, label: str, weigh: Weighing | None, gamma: float, lam: float, hold_out: float, labels: int | None, advisor: Policy | None, generator: torch.Generator) -> None:
        """Raises Misconfigured where nothing would be left to learn from, or to hold out."""
        self.spec, self.source, self.digest = recording.spec, label, recording.digest
        self.weigh, self.gamma, self.lam, self.budget, self.generator = weigh, gamma, lam, labels, generator
        self.advisor = advisor if advisor is not None and self.by_step and advisor.gives & VALUES else None
        self.vector = _NoVector()
        apart = held_out(recording, hold_out, generator)
        self.parts = [_part(taken(recording, side), slots) for side in (~apart, apart) if side.any()]
        self.n = self.parts[0].lanes.count
        self.held_out: Rollout | None = self.parts[1].play if len(self.parts) > 1 else None
        self.obs = {k: v[0] for k, v in self.parts[0].play.obs.items()}
        self.starts = torch.ones(self.n, dtype=torch.bool)
        self.memory: dict[str, Memory] = {}
        self.note = ""
        self.asked = 0
        self._given = False
        self._like: Rollout | None = None
        self._saved: dict[str, Any] = {}

    def begin(self, teacher: Policy, student: Policy) -> None:
        """Memories anew."""
        self.memory = {"teacher": teacher.init(self.n), "student": student.init(self.n)}

    def due(self) -> bool:
        """Never: there is nothing to reseed."""
        return False

    def label(self, teacher: Policy, wants: frozenset[str]) -> Prediction:
        """[N] of the states at hand, the first of each lane."""
        if self.source == "teacher":
            return teacher.act(self.obs, self.memory["teacher"], self.starts, wants)[0]
        first = torch.argsort(self.parts[0].lanes.steps)[: self.n]
        return over_states(lambda x: x[first], said(self.parts[0].recording, self.source))

    def collect(self, steps: int, who: Who, teacher: Policy, student: Policy, wants: frozenset[str], keep: frozenset[str], labelling: bool = True) -> Rollout:
        """All episodes that are learnt from, labelled and weighed, the first time; then a rollout of no steps. ``keep`` names the observation groups that are read."""
        if self._given:
            return self._nothing()
        self._given = True
        asked = self._drawn()
        made = []
        for part, mask in zip(self.parts, asked, strict=True):
            label = self._labels(part, teacher, wants, mask)
            if self.advisor is not None:
                worth = _asked(self.advisor, part, VALUES & self.advisor.gives | ACTION, part.play.valid)
                label = replace(label, value=worth.value, q=worth.q)
            refuse_nan(label, mask)
            made.append(replace(part.play, teacher=label, labelled=mask))
        if self.by_step and self.weigh is not None:
            pairs = [(play, part.lanes) for play, part in zip(made, self.parts, strict=True)]
            made, self.note = weighing.weigh(pairs, self.weigh, self.gamma, self.lam, dict(self.spec.observations), self.generator)
        self.held_out = made[1] if len(made) > 1 else None
        self.asked = int(sum(mask.sum() for mask in asked)) if self.source == "teacher" else 0
        if self.advisor is not None and self.source != "teacher":
            self.asked = sum(len(part.lanes.steps) for part in self.parts)
        given = replace(made[0], obs={k: v for k, v in made[0].obs.items() if k in keep})
        self._like = given
        return given

    def _nothing(self) -> Rollout:
        """[0, N, ...] of what was given."""
        assert self._like is not None, "resumed without its labels"
        like = self._like
        empty = {name: getattr(like, name)[:0] for name in ("action", "reward", "terminated", "truncated", "starts", "valid", "driver", "labelled", "episode")}
        weight = None if like.weight is None else like.weight[:0]
        teacher = over_states(lambda x: x[:0], like.teacher)
        return replace(like, **empty, weight=weight, teacher=teacher, obs={k: v[-1:] for k, v in like.obs.items()}, fresh=False)

    @property
    def by_step(self) -> bool:
        """Whether each step counts by its advantage."""
        return self.weigh is not None and self.weigh.kind not in weighing.BY_EPISODE

    def _drawn(self) -> list[Tensor]:
        """[T, N] of each part: the steps that are labelled, all or as many as the budget allows."""
        steps = sum(len(p.lanes.steps) for p in self.parts)
        chosen = torch.ones(steps, dtype=torch.bool)
        if self.budget is not None and self.source == "teacher" and self.budget < steps:
            chosen[torch.randperm(steps, generator=self.generator)[self.budget :]] = False
        sizes = [len(p.lanes.steps) for p in self.parts]
        return [p.lanes.grid(c) for p, c in zip(self.parts, chosen.split(sizes), strict=True)]

    def _labels(self, part: Part, teacher: Policy, wants: frozenset[str], mask: Tensor) -> Prediction:
        if self.source != "teacher":
            return over_states(part.lanes.grid, said(part.recording, self.source))
        return _asked(teacher, part, wants, mask)

    def state_dict(self) -> dict[str, Any]:
        """What ``load_state_dict`` needs to go on: whether the states were given, and what was said of those held out."""
        apart = self.held_out
        return {
            "digest": self.digest,
            "given": self._given,
            "generator": self.generator.get_state(),
            "labels": tensors(apart.teacher) if apart is not None and self._given else {},
            "labelled": apart.labelled if apart is not None else None,
            "weight": apart.weight if apart is not None else None,
            "weighed": True if self._like is not None and self._like.weight is not None else None,
            "asked": self.asked,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a state was taken, once ``relabel`` was called too. Raises Failed where the recording is another one by now."""
        if state["digest"] != self.digest:
            raise Failed(f"{self.parts[0].recording.source} is not what it was when this run began: its contents differ")
        self._given, self.asked = state["given"], state["asked"]
        self.generator.set_state(state["generator"])
        self._saved = state

    def relabel(self, like: Prediction, keep: frozenset[str]) -> None:
        """Put saved labels back; ``like`` [N] has their structure, ``keep`` names the observation groups that are read."""
        state = self._saved
        if not self._given:
            return
        play = self.parts[0].play
        weight = None if state["weighed"] is None else play.valid.float()
        self._like = replace(play, obs={k: v for k, v in play.obs.items() if k in keep}, teacher=over_states(lambda x: x[None], like), weight=weight)
        if self.held_out is not None:
            self.held_out = replace(self.held_out, teacher=with_tensors(like, state["labels"]), labelled=state["labelled"], weight=state["weight"])


def taken(recording: Recording, chosen: np.ndarray) -> Recording:
    """These episodes [E] of it alone."""
    if chosen.all():
        return recording
    steps = np.repeat(chosen, recording.lengths)
    return replace(
        recording,
        obs={k: v[steps] for k, v in recording.obs.items()},
        last={k: v[chosen] for k, v in recording.last.items()},
        action=recording.action[steps],
        reward=None if recording.reward is None else recording.reward[steps],
        lengths=recording.lengths[chosen],
        terminated=recording.terminated[chosen],
        known={k: v[steps] for k, v in recording.known.items()},
        success=None if recording.success is None else recording.success[chosen],
    )


def held_out(recording: Recording, share: float, generator: torch.Generator) -> np.ndarray:
    """[E] the episodes that are never learnt from: a ``share`` of them, drawn; one that was recorded twice is on one side with its twin."""
    if share == 0:
        return np.zeros(recording.episodes, dtype=bool)
    twins: dict[bytes, int] = {}
    group = np.array([twins.setdefault(_fingerprint(recording, i), len(twins)) for i in range(recording.episodes)])
    if len(twins) < 2:
        raise Misconfigured(f"{recording.source} leaves {len(twins)} episode{' (recorded more than once)' if recording.episodes > 1 else ''} to learn from, and one is held out to choose the student by: two or more are right")
    count = min(len(twins) - 1, max(1, round(share * len(twins))))
    return np.isin(group, torch.randperm(len(twins), generator=generator)[:count].numpy())


def _fingerprint(recording: Recording, episode: int) -> bytes:
    begin = int(recording.begins[episode]) if episode else 0
    rows = slice(begin, begin + int(recording.lengths[episode]))
    return b"".join([recording.action[rows].tobytes(), *(v[rows].tobytes() for v in recording.obs.values())])


def _part(recording: Recording, slots: int) -> Part:
    lanes = pack(recording.lengths, slots)
    return Part(recording, lanes, rollout(recording, lanes, frozenset(recording.obs)))


def _asked(teacher: Policy, part: Part, wants: frozenset[str], mask: Tensor) -> Prediction:
    """[T, N] what a policy says of the steps in ``mask``; one that remembers is asked about every step, in its order."""
    if teacher.init(1):
        return _in_order(teacher, part, wants)
    rows = mask.flatten().nonzero().squeeze(-1)
    flat = {k: v[:-1].flatten(0, 1) for k, v in part.play.obs.items()}
    answers = [teacher.act({k: v[r] for k, v in flat.items()}, {}, None, wants)[0] for r in rows.split(ASKED_AT_ONCE)]
    whole = over_states(lambda *x: torch.cat(x), *answers)

    def spread(x: Tensor) -> Tensor:
        return x.new_zeros((mask.numel(), *x.shape[1:])).index_copy_(0, rows, x).unflatten(0, mask.shape)

    return over_states(spread, whole)


def _in_order(teacher: Policy, part: Part, wants: frozenset[str]) -> Prediction:
    """A teacher that remembers is asked about every step, in its order."""
    memory, said_so_far = teacher.init(part.lanes.count), []
    for t in range(part.lanes.rows):
        prediction, memory = teacher.act({k: v[t] for k, v in part.play.obs.items()}, memory, part.play.starts[t], wants)
        said_so_far.append(prediction)
    return over_states(lambda *x: torch.stack(x), *said_so_far)


# ── how good a student is on what was held out ────────────────────────────────────────────────────────────────────


@torch.inference_mode()
def measure(student: Policy, play: Rollout) -> tuple[float, float]:
    """Loss and agreement of a student on labelled play, weighed as that is: the loss is KL(label‖student) where the label is a
    distribution, else the negative log-likelihood of its action; of a box the squared error, in halves of its range.
    """
    rows = (play.valid & play.labelled).flatten().nonzero().squeeze(-1)
    weight = torch.ones(len(rows)) if play.weight is None else play.weight.flatten()[rows]
    weight = weight if bool(weight.any()) else torch.ones(len(rows))
    label: Any = over_states(lambda x: x.flatten(0, 1)[rows], play.teacher)
    if student.init(1):
        prediction, _ = student.act({k: v[:-1] for k, v in play.obs.items()}, {}, play.starts, ACTION)
        own: Any = over_states(lambda x: x.flatten(0, 1)[rows], prediction)
    else:
        flat = {k: v[:-1].flatten(0, 1) for k, v in play.obs.items()}
        own = over_states(lambda *x: torch.cat(x), *(student.act({k: v[r] for k, v in flat.items()}, {}, None, ACTION)[0] for r in rows.split(8192)))
    same = agreement(own, label, spread(label)).float()
    return float((loss(own, label, same) * weight).sum() / weight.sum()), float((same * weight).sum() / weight.sum())


def loss(own: Prediction, label: Prediction, same: Tensor) -> Tensor:
    """[B] see ``measure``; where the student has no probabilities, 1 for another action."""
    mine: Any = own.action
    theirs: Any = label.action
    if mine.mode.is_floating_point():
        half = (theirs.high - theirs.low) / 2
        return ((mine.mode - theirs.mode) / torch.where(half.isfinite() & (half > 0), half, torch.ones_like(half))).square().mean(-1)
    try:
        return theirs.kl(mine) if type(theirs) is type(mine) else -mine.log_prob(theirs.mode)
    except Missing:
        return 1 - same
