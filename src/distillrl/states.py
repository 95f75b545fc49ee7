"""Who drives: where the states come from that the teacher is asked about.

``Drive`` steps the environments with the teacher, the student, or a mixture of them (β is the teacher's share).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from distillrl import rescuing, tasks
from distillrl.acting import Pick, acting, picking
from distillrl.actions import Categorical, gumbel
from distillrl.envs import Observations, Vector
from distillrl.errors import Failed
from distillrl.policies import Memory, Policy, played, to_environment
from distillrl.records import ActionSpace, Prediction, Rollout, Spec, over_states, tensors
from distillrl.rescuing import Rescue
from distillrl.senses import Sense

LABEL_NUMBERS = 1 << 23
"""Numbers of an observation group that a teacher is asked about at once."""
RESEED_TICKS = 4096
"""A vector that can't be replayed is reseeded about this often; checkpoints lie there."""


class Marks(NamedTuple):
    """Of each slot [n] at the beginning of a rollout: whether the next step only resets, whether an episode begins, and the number of its episode."""

    ended: np.ndarray
    starts: np.ndarray
    number: np.ndarray


Rows = Mapping[str, tuple[np.ndarray, Tensor]]
"""{group: one row [n, ...] of a rollout}, as an array and as a tensor of the same memory."""


@dataclass(frozen=True)
class Who:
    """How a rollout is driven: the teacher's share ``beta``, drawn by ``step`` or by ``episode``; modes or samples played."""

    beta: float
    by: str = "step"
    sampled: bool = False
    noise: float = 0.0
    """Share of actions that are random instead; of a box, the deviation of what is added, in halves of its range (Laskey 2017, DART)."""
    late: float = 0.0
    """The teacher drives the first steps of each episode, a number drawn evenly from 0 to this one (jump starts, Uchendu 2023)."""
    rescue: Rescue | None = None
    """When the teacher takes over from the student, and when it hands back."""

    @property
    def shared(self) -> bool:
        """Whether who drives is settled step by step."""
        return self.late >= 1 or self.rescue is not None

    @property
    def asks(self) -> bool:
        """Whether the teacher must act, or be looked at, while driving."""
        return self.beta > 0 or self.shared


class Drive:
    """Environments in the middle of their episodes. State: open episodes (seed number and actions), memories, generator."""

    def __init__(self, vector: Vector, spec: Spec, generator: torch.Generator) -> None:
        self.vector, self.n, self.spec, self.generator = vector, vector.n, spec, generator
        self.obs: dict[str, Tensor] = {}
        self.ended = np.zeros(self.n, dtype=bool)
        self.starts = torch.ones(self.n, dtype=torch.bool)
        self.index = np.arange(self.n, dtype=np.int64)
        self.memory: dict[str, Memory] = {}
        self.raw = tuple(spec.observations)
        """The groups that are kept as the environment gives them; what only the student sees, made small, is kept so."""
        self._sense: Sense | None = None
        self.teacher_drives = torch.zeros(self.n, dtype=torch.bool)
        self.late, self.held = (torch.zeros(self.n, dtype=torch.int64) for _ in range(2))
        self.levels = torch.full((2,), -torch.inf)
        self.ticks = 0
        self._began = np.zeros(self.n, dtype=np.int64)
        self._history: list[np.ndarray] = []
        self._first = 0  # the tick of _history[0]
        self._untouched: Observations | None = None  # what the vector was reset to, as long as nothing was stepped: EnvPool's takes seconds for 16 robots
        self._fresh_at = -1

    def begin(self, teacher: Policy, student: Policy) -> None:
        """Reset all slots and all memories."""
        sense = getattr(student, "sense", None)
        self._sense = sense if isinstance(sense, Sense) and sense.early else None
        theirs = getattr(getattr(teacher, "sense", None), "reads", teacher.spec.observations)
        self.raw = tuple(k for k in self.spec.observations if k in theirs or self._sense is None or k not in self._sense.reads)
        self.obs = {}
        if self._untouched is None:
            self._untouched = self.vector.reset()
        self._take(self._untouched, {})
        self.memory = {"teacher": teacher.init(self.n), "student": student.init(self.n)}
        self._fresh_at = self.ticks

    def due(self) -> bool:
        """Whether a vector that can't be replayed is to be reseeded before the next rollout."""
        return not self.vector.replayable and self.ticks - max(self._fresh_at, 0) >= RESEED_TICKS

    def reseed(self, teacher: Policy, student: Policy) -> None:
        """Begin every slot anew, with the next numbers of the stream."""
        self.index = np.arange(self.n, dtype=np.int64) + int(self.index.max()) + 1
        self._untouched = None
        self._take(self.vector.reseed(int(self.index[0])), {})
        self.memory = {"teacher": teacher.init(self.n), "student": student.init(self.n)}
        self.ended, self.starts = np.zeros(self.n, dtype=bool), torch.ones(self.n, dtype=torch.bool)  # new ones: what a rollout gave may be an inference tensor
        self._fresh_at, self._history, self._first = self.ticks, [], self.ticks
        self._began[:] = self.ticks

    def label(self, teacher: Policy, wants: frozenset[str]) -> Prediction:
        """[n] what the teacher says of the states at hand; its memory stays as it was."""
        return teacher.act(self.obs, self.memory["teacher"], self.starts, wants)[0]

    def collect(self, steps: int, who: Who, teacher: Policy, student: Policy, wants: frozenset[str], keep: frozenset[str], labelling: bool = True) -> Rollout:
        """``steps`` ticks of all slots, labelled by the teacher; ``keep`` names the observation groups that are stored.

        A teacher without memory that drives nothing is asked once, at the end, for all states together; without ``labelling`` not at all, and one that drives
        some of them only about those. One tick that would only reset has another after it: it takes nothing of a budget, and shows nothing.
        """
        steps += steps == 1 and bool(self.ended.all())
        n, groups = self.n, [k for k in self.obs if k in keep or k not in self.spec.observations]
        obs = {k: torch.empty((steps + 1, *self.obs[k].shape), dtype=self.obs[k].dtype) for k in groups}
        for k in groups:
            obs[k][0] = self.obs[k]
        at_first = Marks(self.ended, self.starts.numpy(), self.index.copy())
        start_memory, fresh = dict(self.memory["student"]), self._fresh_at == self.ticks
        ask = who.asks or bool(self.memory["teacher"])
        sparse = ask and not labelling and who.rescue is None and not self.memory["teacher"]
        by_teacher = self._assign(steps, who)
        actions, labels, reward, ended = self._drive(steps, who, teacher, student, wants, by_teacher, obs, ask, sparse)
        resets = np.concatenate([at_first.ended[None], np.logical_or(*ended)[:-1]])
        starts = np.concatenate([at_first.starts[None], resets[:-1]])
        episode = at_first.number + n * resets.cumsum(0)
        valid = torch.from_numpy(~resets)
        for k in groups:
            refuse_nan_observation(k, obs[k][1:].numpy(), episode)
        prediction, labelled = None, torch.ones(steps, n, dtype=torch.bool)
        if sparse:
            prediction, labelled = _filled(labels), by_teacher.expand(steps, n)
        elif ask and (labelling or who.asks):  # else it only had to see what its memory is made of
            prediction = over_states(lambda *x: torch.stack(x), *labels)
        elif labelling:
            prediction = label_all(teacher, {k: obs[k][:-1] for k in obs}, wants)
        if prediction is not None:
            refuse_nan(prediction, valid & labelled)
            if who.rescue is not None and who.rescue.by == "value":
                self.levels = rescuing.levels(prediction, valid, who.rescue)
        if not bool(np.isfinite(reward).all()):
            raise Failed("the environment gave a reward that is NaN or infinite")
        return Rollout(
            obs=obs,
            action=actions,
            reward=torch.from_numpy(reward),
            terminated=torch.from_numpy(ended[0]),
            truncated=torch.from_numpy(ended[1]),
            starts=torch.from_numpy(starts),
            valid=valid,
            driver=torch.where(by_teacher, 0, 1).to(torch.int8).expand(steps, n),
            labelled=labelled if prediction is not None else torch.zeros_like(labelled),
            teacher=prediction,
            student=None,
            episode=torch.from_numpy(episode),
            fresh=fresh,
            memory=start_memory,
        )

    def _drive(
        self, steps: int, who: Who, teacher: Policy, student: Policy, wants: frozenset[str], by_teacher: Tensor, obs: dict[str, Tensor], ask: bool, sparse: bool
    ) -> tuple[Tensor, list[Prediction | None], np.ndarray, np.ndarray]:
        """Play ``steps`` ticks into ``obs`` [steps + 1, n, ...]: actions and labels of each tick, reward [steps, n], ended [2, steps, n]."""
        reward, ended = np.empty((steps, self.n), dtype=np.float32), np.empty((2, steps, self.n), dtype=bool)
        settled = who.beta in (0, 1) and not who.shared  # who drives is the same at every step
        act = acting(student) if who.beta < 1 or self.memory["student"] else None
        discrete = self.spec.action.kind == "discrete"
        noise = gumbel((steps, self.n, self.spec.action.n), self.generator) if who.sampled and discrete else None
        rows = {k: (value.numpy(), value.unbind(0)) for k, value in obs.items()}
        if discrete and not ask and not who.noise and (pick := picking(student, self.n)) is not None:
            return self._alone(pick, noise, rows, reward, ended), [], reward, ended
        labels: list[Prediction | None] = []
        actions: list[Tensor] = []
        label = own = None
        for t in range(steps):
            row = by_teacher[0] if settled else self._rows(by_teacher, t, who)
            if sparse:
                label = self._ask(teacher, row, wants, alone=act is None)
                labels.append(label)
            elif ask:
                label, self.memory["teacher"] = teacher.act(self.obs, self.memory["teacher"], self.starts, wants)
                labels.append(label)
            if act is not None:
                own, self.memory["student"] = act(self.obs, self.memory["student"], self.starts)
            if who.rescue is not None and label is not None and own is not None:
                row = by_teacher[t] = row | self._rescued(who.rescue, label, own)
            action = self._choose(label, own, row, who.sampled, None if noise is None else noise[t])
            if who.noise:
                action = possible(disturbed(action, who.noise, self.spec.action, self.generator), self.obs, self.spec)
            actions.append(action)
            self._step(to_environment(action, self.spec), reward[t], ended[:, t], {k: (array[t + 1], row[t + 1]) for k, (array, row) in rows.items()})
            for k in rows if ask else ():  # before the teacher sees it, which may refuse it in words of its own
                refuse_nan_observation(k, rows[k][0][None, t + 1], self.index[None])
        return torch.stack(actions), labels, reward, ended

    def _alone(self, pick: Pick, noise: Tensor | None, rows: dict[str, tuple[np.ndarray, tuple[Tensor, ...]]], reward: np.ndarray, ended: np.ndarray) -> Tensor:
        """``_drive`` where a small student drives alone: its actions [steps, n], without the records, which took a fifth of the time."""
        actions, start = np.empty(reward.shape, np.int64), self.spec.action.start
        drawn = None if noise is None else noise.numpy()
        for t, action in enumerate(actions):
            action[:] = pick(self.obs, None if drawn is None else drawn[t])
            self._step(action + start, reward[t], ended[:, t], {k: (array[t + 1], row[t + 1]) for k, (array, row) in rows.items()})
        return torch.from_numpy(actions)

    def _assign(self, steps: int, who: Who) -> Tensor:
        """[steps, n] (or [1, n] where it is always the same): whether the teacher drives."""
        if who.beta in (0, 1):
            return torch.full((1 if not who.shared else steps, self.n), bool(who.beta))
        return torch.empty(steps, self.n).uniform_(generator=self.generator) < who.beta

    def _rows(self, by_teacher: Tensor, t: int, who: Who) -> Tensor:
        row = by_teacher[min(t, len(by_teacher) - 1)]
        if who.by == "episode" and len(by_teacher) > 1:
            self.teacher_drives = torch.where(self.starts, row, self.teacher_drives)
            row = by_teacher[t] = self.teacher_drives
        if who.late >= 1:
            drawn = torch.empty(self.n).uniform_(0, who.late + 1, generator=self.generator).floor()
            self.late = torch.where(self.starts, drawn.clamp_max(who.late).long(), self.late)
            row = by_teacher[t] = row | (self.late > 0)
            self.late = (self.late - 1).clamp_min(0)
        return row

    def _rescued(self, rescue: Rescue, label: Prediction, own: Prediction) -> Tensor:
        """[n] where the teacher recovers what the student got into; an episode begins with the student at the wheel."""
        if rescue.by == "value":
            trust, bounds = rescuing.value(label), self.levels
        else:
            trust, bounds = rescuing.agreement(label, own), torch.tensor([rescue.below, rescue.above])
        self.held = rescuing.taken(rescue, trust, bounds, torch.where(self.starts, 0, self.held))
        return self.held > 0

    def _ask(self, teacher: Policy, rows: Tensor, wants: frozenset[str], alone: bool) -> Prediction | None:
        """[n] the teacher's prediction where ``rows`` [n] is true, zeros elsewhere; None where it is nowhere, and it is not ``alone`` in acting."""
        at = (rows & ~torch.from_numpy(self.ended)).nonzero().squeeze(-1)  # a step that only resets takes no action
        at = rows.nonzero().squeeze(-1) if alone and not len(at) else at  # all of them reset, and yet an action must be given
        if not len(at):
            return None
        told, _ = teacher.act({k: v[at] for k, v in self.obs.items()}, {}, None, wants)
        return over_states(lambda x: x.new_zeros((self.n, *x.shape[1:])).index_copy_(0, at, x), told)

    def _choose(self, label: Prediction | None, own: Prediction | None, by_teacher: Tensor, sampled: bool, noise: Tensor | None) -> Tensor:
        def chosen(said: Prediction) -> Tensor:
            own = said.action
            return own.sample(noise=noise) if sampled and noise is not None and isinstance(own, Categorical) else played(said, sampled, self.generator)

        if own is None or label is None:
            return chosen(own or label)  # type: ignore[arg-type]  # one of them was asked
        theirs, mine = chosen(label), chosen(own)
        return torch.where(by_teacher.view(-1, *[1] * (mine.dim() - 1)), theirs.to(mine.dtype), mine)

    def _step(self, action: np.ndarray, reward: np.ndarray, ended: np.ndarray, rows: Rows) -> None:
        resets = self.ended
        if resets.any():
            self.index[resets] += self.n
            self._began[resets] = self.ticks + 1
        if self.vector.replayable:
            self._history.append(action)
        self._untouched = None
        obs, gained, terminated, truncated = self.vector.step(action)
        self.ticks += 1
        self._take(obs, rows)
        reward[:], ended[0], ended[1] = gained, terminated, truncated
        self.starts = torch.from_numpy(resets)
        self.ended = np.logical_or(terminated, truncated)

    def _take(self, obs: Observations, rows: Rows) -> None:
        """Copy the vector's observations, which it will overwrite: into the rollout's row where there is one."""
        if self._sense is not None:
            seen = self._sense.glance({k: torch.as_tensor(obs[k]) for k in self._sense.reads})
            for k, given in seen.items():
                self.obs[k] = rows[k][1].copy_(given) if k in rows else given.clone()
        for k in self.raw:
            if k in rows:
                array, self.obs[k] = rows[k]
                np.copyto(array, obs[k])
            else:
                self.obs[k] = torch.tensor(obs[k])
                refuse_nan_observation(k, obs[k][None], self.index[None])

    def state_dict(self) -> dict[str, Any]:
        """What ``load_state_dict`` needs to go on exactly here."""
        oldest = int(self._began.min())
        if oldest > self._first:
            self._history, self._first = self._history[oldest - self._first :], oldest
        played_since = np.stack(self._history) if self._history else np.empty((0, self.n))
        return {
            "index": torch.from_numpy(self.index.copy()),
            "began": torch.from_numpy(self._began.copy()),
            "history": torch.from_numpy(played_since.copy()),
            "first": self._first,
            "ended": torch.from_numpy(self.ended.copy()),
            "starts": self.starts.clone(),
            "obs": dict(self.obs),
            "memory": {who: dict(memory) for who, memory in self.memory.items()},
            "teacher_drives": self.teacher_drives.clone(),
            "late": self.late.clone(),
            "held": self.held.clone(),
            "levels": self.levels.clone(),
            "ticks": self.ticks,
            "fresh_at": self._fresh_at,
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a state was taken: open episodes are replayed from their seeds and actions.

        A vector that can't be replayed is left as it was made; its states are taken only where a reseeding is due.
        """
        self.index, self._began = state["index"].numpy().copy(), state["began"].numpy().copy()
        self._first, self.ticks, self._fresh_at = state["first"], state["ticks"], state["fresh_at"]
        self.ended, self.starts = state["ended"].numpy().copy(), state["starts"].clone()
        self.obs, self.memory = dict(state["obs"]), {who: dict(m) for who, m in state["memory"].items()}
        self.teacher_drives, self.late, self.held, self.levels = (state[k].clone() for k in ("teacher_drives", "late", "held", "levels"))
        self.generator.set_state(state["generator"])
        if self.vector.replayable:
            history = state["history"].numpy()
            self._history = list(history)
            space = self.spec.action
            kept = history.reshape(len(history), self.n, *space.shape).astype(space.dtype)
            actions = [kept[int(b) - self._first :, i] for i, b in enumerate(self._began)]
            self._untouched = None
            self.vector.reset()
            self.vector.restore([int(i) for i in self.index], actions, self.ended)


def disturbed(action: Tensor, noise: float, space: ActionSpace, generator: torch.Generator) -> Tensor:
    """The actions of n slots, [n] or [n, A], with noise in them: see ``Who.noise``."""
    if space.kind == "box":
        half = (torch.tensor(space.high) - torch.tensor(space.low)) / 2
        half = torch.where(half.isfinite(), half, torch.ones_like(half)).to(action.dtype)
        return action + noise * half * torch.empty_like(action).normal_(generator=generator)
    n, sizes = len(action), torch.tensor({"discrete": (space.n,), "multidiscrete": space.nvec}.get(space.kind, (2,) * space.dimensions))
    drawn = (torch.empty(n, len(sizes)).uniform_(generator=generator) * sizes).long().reshape(action.shape).to(action.dtype)
    astray = (torch.empty(n).uniform_(generator=generator) < noise).view(-1, *[1] * (action.dim() - 1))
    return torch.where(astray, drawn, action)


def possible(action: Tensor, obs: dict[str, Tensor], spec: Spec) -> Tensor:
    """The actions [n], those that the task at hand doesn't have as the environment takes them (tasks.py): modulo its number."""
    if tasks.legal(spec) is None:
        return action
    return action % torch.tensor([t.action.n for t in spec.tasks])[obs[tasks.TASK].long()]


def label_all(teacher: Policy, obs: dict[str, Tensor], wants: frozenset[str], batch: int = 4096) -> Prediction:
    """A memoryless teacher's prediction of [T, N, ...] states, asked in large batches, of images in smaller ones."""
    first = next(iter(obs.values()))
    lead = first.shape[:2]
    flat = {k: v.flatten(0, 1) for k, v in obs.items()}
    heaviest = max(v[0].numel() for v in flat.values())
    batch = max(64, min(batch, LABEL_NUMBERS // max(1, heaviest)))
    parts = [teacher.act({k: v[i : i + batch] for k, v in flat.items()}, {}, None, wants)[0] for i in range(0, lead[0] * lead[1], batch)]
    whole = parts[0] if len(parts) == 1 else over_states(lambda *x: torch.cat(x), *parts)
    return over_states(lambda x: x.unflatten(0, lead), whole)


def told_in_order(policy: Policy, obs: Mapping[str, Tensor], starts: Tensor, memory: Memory, wants: frozenset[str]) -> tuple[Prediction, dict[str, Tensor]]:
    """A policy's prediction of [T, N, ...] states seen one after the other, from the memory with which it came to the first of them; and the
    memory with which it came to each, {name: [T, N, ...]}.
    """
    told, kept = [], []
    for t in range(len(starts)):
        kept.append(memory)
        prediction, memory = policy.act({k: v[t] for k, v in obs.items()}, memory, starts[t], wants)
        told.append(prediction)
    return over_states(lambda *x: torch.stack(x), *told), {name: torch.stack([m[name] for m in kept]) for name in kept[0]}


def stakes(label: Prediction, valid: Tensor) -> Tensor:
    """[T, N] how much is at stake in each state, 1 on average: V − min Q (Bastani 2018, VIPER, 1805.08328, eq. 4), or its
    soft form by log-probabilities, highest minus lowest, where the teacher gives no Q; 1 where its action has neither.
    """
    scores = label.q if label.q is not None else getattr(label.action, "logits", None)
    if scores is None:
        return valid.float()
    mask = getattr(label.action, "mask", None)
    highest, lowest = (scores, scores) if mask is None else (scores.masked_fill(~mask, -torch.inf), scores.masked_fill(~mask, torch.inf))
    gap = (highest.max(-1).values - lowest.min(-1).values).float()
    return gap / gap[valid].mean().clamp_min(1e-8)


def _filled(labels: list[Prediction | None]) -> Prediction | None:
    """[T, n] of T predictions, zeros where there is none; None where there is none at all."""
    like = next((x for x in labels if x is not None), None)
    if like is None:
        return None
    zero = over_states(torch.zeros_like, like)
    return over_states(lambda *x: torch.stack(x), *(zero if x is None else x for x in labels))


def refuse_nan_observation(name: str, given: np.ndarray, episode: np.ndarray) -> None:
    """Raise Failed where observations [T, n, ...] of the episodes with numbers [T, n] aren't finite."""
    if given.dtype.kind != "f" or bool(np.isfinite(given).all()):
        return
    tick, slot = (int(i[0]) for i in np.nonzero(~np.isfinite(given.reshape(*episode.shape, -1)).all(-1)))
    raise Failed(f"the environment gave an observation {name!r} that is NaN or infinite (slot {slot}, episode {int(episode[tick, slot])})")


def refuse_nan(prediction: Prediction, valid: Tensor) -> None:
    """Raise Failed where what a teacher says of valid [T, N] states isn't finite."""
    for name, value in tensors(prediction).items():
        if value.is_floating_point() and not bool(torch.isfinite(value[valid]).all()):
            raise Failed(f"the teacher's {name} is NaN or infinite in some of the {int(valid.sum())} states that it was asked about")

