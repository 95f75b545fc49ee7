"""What can't be imitated: how much of the loss is left where states that look alike to the student are not alike to its teacher.

Estimated before anything is learnt, from the first rollout, by nearest neighbours (Cover and Hart 1967): in each state the
teacher's prediction is compared with the mean of its predictions in the states of *other* episodes that are nearest by what the student
sees. Neighbours are never the same, so a part of that is there where everything is seen too; it is measured and taken off.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from distillrl.actions import Categorical
from distillrl.config import Config
from distillrl.policies import flatten
from distillrl.records import Prediction, Rollout, over_states
from distillrl.senses import window_of

STATES = 1536
"""States that are compared, at most."""
NEIGHBOURS = 8
HISTORY = 4
"""Observations that memory is taken to hold: of a recurrent student, and where memory is offered."""
WIDEST = 4096
"""Numbers in a view beyond which no distance is measured: pixels are near one another for other reasons."""
MATTERS = {"forward_kl": 0.05, "mse": 0.01, "disagreement": 0.05}
"""What is worth a sentence: nats, a hundredth of the actions' variance, a share of states."""


@dataclasses.dataclass(frozen=True)
class Floor:
    """An estimate of the irreducible loss."""

    measure: str
    """forward_kl (nats), mse (of actions, as a share of their variance) or disagreement (a share of states)."""
    student: float
    """Among states that are alike to the student."""
    everything: float
    """Among states in which all that is observed is alike: what the method would say of a student that sees as its teacher does."""
    with_memory: float
    """Among states whose last HISTORY observations are alike to the student."""
    states: int

    @property
    def irreducible(self) -> float:
        """What no student that sees so can learn."""
        return max(0.0, self.student - self.everything)

    def to_json(self) -> dict[str, Any]:
        """Plain data, for the verdict."""
        return {**{k: round(v, 6) if isinstance(v, float) else v for k, v in dataclasses.asdict(self).items()}, "irreducible": round(self.irreducible, 6)}


@torch.no_grad()
def estimate(student: Any, rollout: Rollout, teacher_remembers: bool) -> Floor | None:
    """The floor for this student on the rollout's valid, labelled states; None where there are too few, no sense, or pixels.

    A teacher that remembers knows more than any one observation: it is compared by the last HISTORY observations of everything.
    """
    sense = getattr(student, "sense", None)
    kept = (rollout.valid & rollout.labelled).flatten().nonzero().squeeze(-1)
    if sense is None or rollout.teacher is None or len(kept) < 4 * NEIGHBOURS:
        return None
    kept = kept[torch.linspace(0, len(kept) - 1, min(STATES, len(kept))).long()]
    groups, _ = sense({k: v[:-1] for k, v in rollout.obs.items()}, {}, rollout.starts)
    seen = flatten(groups, sense.groups)
    whole = torch.cat([v[:-1].reshape(*v[:-1].shape[:2], -1).float() for v in rollout.obs.values()], -1)
    if max(seen.shape[-1], whole.shape[-1]) * HISTORY > WIDEST:
        return None
    remembered = _history(seen, rollout.starts)
    if window_of(student) is None:
        seen = remembered
    if teacher_remembers:
        whole = _history(whole, rollout.starts)
    label: Prediction = over_states(lambda x: x.flatten(0, 1)[kept], rollout.teacher)
    episode = _episodes(rollout.starts).flatten()[kept]
    found = [_spread(view.flatten(0, 1)[kept], label, episode) for view in (seen, whole, remembered)]
    if any(f is None for f in found):
        return None
    values = [f[1] for f in found if f is not None]
    return Floor(found[0][0], values[0], values[1], values[2], len(kept))  # type: ignore[index]  # none is None


def of_json(data: Mapping[str, Any]) -> Floor:
    """What ``to_json`` gave."""
    return Floor(**{f.name: data[f.name] for f in dataclasses.fields(Floor)})


def matters(floor: Floor) -> bool:
    """Whether something stands in the student's way that is worth a sentence."""
    return floor.irreducible >= MATTERS[floor.measure] and floor.student >= 1.5 * floor.everything


def sentence(floor: Floor, word: str) -> str | None:
    """What it means, and what would help; None where nothing stands in the student's way."""
    if not matters(floor):
        return None
    unit = {"forward_kl": "nats of the divergence", "mse": "of the actions' variance", "disagreement": "of the states' actions"}[floor.measure]
    said = (
        f"not all can be imitated: about {floor.irreducible:.2g} {unit} can't be learnt from what the student sees "
        f"({floor.student:.2g} among states that are alike to it, {floor.everything:.2g} where everything is; {floor.states} states)"
    )
    gained = floor.student - floor.with_memory
    offers = ["--finetune, to make the best of it by reward"] if not word.startswith(("tree", "forest", "linear", "poly")) else []
    if gained > 0.25 * floor.irreducible:
        offers.insert(0, f"memory (gru:32, or --see stack={HISTORY}), which would leave about {max(0.0, floor.with_memory - floor.everything):.2g}")
    return said + "; what would help: " + ", or ".join([*offers, "more to --see"])


def differs(see: str | None, teacher_sees: str | None, teacher_remembers: bool, student: Any) -> bool:
    """Whether the student may see less than its teacher."""
    chosen = see is not None and see.strip() not in {"", "normalise"}
    return chosen or teacher_sees is not None or (teacher_remembers and window_of(student) is not None)


def first_look(config: Config, student: Any, rollout: Rollout, teacher_remembers: bool) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """The floor as plain data, and what a round's log says of it, where the student may see less than its teacher; else None and nothing."""
    if not differs(config.see, config.teacher_sees, teacher_remembers, student):
        return None, {}
    floor = estimate(student, rollout, teacher_remembers)
    if floor is None:
        return None, {}
    said = sentence(floor, config.student)
    return floor.to_json(), {"irreducible": floor.to_json()["irreducible"], **({} if said is None else {"note": said})}


def _spread(view: Tensor, label: Prediction, episode: Tensor) -> tuple[str, float] | None:
    """How far the teacher's predictions lie from the mean of their neighbours' by this view [S, F]."""
    view = view.float()
    scaled = (view - view.mean(0)) / view.std(0).clamp_min(1e-6)
    apart = torch.cdist(scaled, scaled)
    apart[episode.unsqueeze(0) == episode.unsqueeze(1)] = float("inf")
    distance, near = apart.topk(NEIGHBOURS, largest=False)
    known = distance.isfinite().all(-1)
    if int(known.sum()) < NEIGHBOURS:
        return None
    near, action = near[known], label.action
    assert action is not None
    if isinstance(action, Categorical):
        mean = (action.log_probs[near].logsumexp(1) - torch.tensor(float(NEIGHBOURS)).log()).clamp_min(-20)
        mine = action.log_probs[known]
        return "forward_kl", float((mine.exp() * (mine - mean)).sum(-1).mean())
    mode = action.mode
    if mode.is_floating_point():
        variance = mode[known].var(0).sum().clamp_min(1e-12)
        # The mean of k neighbours varies by itself: k / (k + 1) makes it the variance within.
        return "mse", float((mode[known] - mode[near].mean(1)).square().sum(-1).mean() / variance * NEIGHBOURS / (NEIGHBOURS + 1))
    same = mode[near] == mode[known].unsqueeze(1)
    same = same if same.dim() == 2 else same.all(-1)
    return "disagreement", float(1 - same.float().mean())


def _history(view: Tensor, starts: Tensor) -> Tensor:
    """[T, N, 3 · F] what is seen, and how it changed since the last step and over HISTORY observations (0 before an episode's first).

    Differences, not the earlier observations: these lie so close together that their distances would say nothing of a speed.
    """
    steps = torch.arange(len(view)).unsqueeze(-1).expand(starts.shape)
    begin = torch.where(starts, steps, torch.zeros_like(steps)).cummax(0).values
    parts = [view]
    for lag in (1, HISTORY - 1):
        at = torch.maximum(steps - lag, begin).unsqueeze(-1).expand_as(view)
        parts.append(view - view.gather(0, at))
    return torch.cat(parts, -1)


def _episodes(starts: Tensor) -> Tensor:
    """[T, N] a number for each episode, other ones in other slots."""
    slots = torch.arange(starts.shape[1])
    return starts.long().cumsum(0) * starts.shape[1] + slots
