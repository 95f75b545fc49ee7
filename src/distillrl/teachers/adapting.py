"""Making a teacher fit the environment where the difference is known: images' channels, stacked frames, time left, contact forces.

A file says what its network sees, which isn't always what the environment gives: SB3's wrappers turn images, stack
frames and add the time. What the folder tells of them (``info["wrappers"]``), or what the shapes leave no doubt about,
becomes the first part of the teacher's sense, in the order in which RL Zoo wraps, and is said in its notes.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor

from distillrl.normalising import Normalise
from distillrl.records import Group, Spec
from distillrl.senses import ChannelsFirst, Sense, Stack
from distillrl.students.networks import Network
from distillrl.teachers import environments, framed
from distillrl.teachers.environments import GOAL
from distillrl.wrapping import First, Join, RemainingTime

Groups = dict[str, Group]
MOST_FRAMES = 16
"""Frames that are taken for stacked by the shape of images alone."""


def fit(policy: Any, spec: Spec, env: str | None = None) -> Any:
    """The policy for an environment of this spec (its id is ``env``, where it has one); the same one where nothing is to be done.

    What still differs afterwards is for ``envs.differences`` to say.
    """
    if not isinstance(policy, Network):
        return framed.fit(policy, spec)
    joined = bool((policy.info.get("wrappers") or {}).get("goal")) and list(policy.spec.observations) == ["obs"]
    if not (set(GOAL) if joined else set(policy.spec.observations)) <= set(spec.observations):
        return policy
    doubts = [d for d in environments.doubts(policy.info.get("trained_on"), env) if d not in policy.info.get("doubts", ())]
    if doubts:
        policy = _with_info(policy, {"doubts": [*policy.info.get("doubts", ()), *doubts]})
    given = {name: spec.observations[name] for name in (GOAL if joined else policy.spec.observations)}
    wanted = dict(policy.spec.observations)
    chain = _Chain(policy, given, wanted)
    chain.contacts()
    if not joined and not chain.steps and all(given[n].shape == wanted[n].shape for n in wanted):
        return policy
    chain.time(env)
    if joined:
        chain.join()
    chain.normalise()
    chain.stack()
    chain.normalise()
    chain.turn()
    chain.normalise()
    if chain.normalisers or any(n not in chain.groups or chain.groups[n].shape != wanted[n].shape for n in wanted):
        return policy
    made = _with_info(policy, {"notes": [*policy.info.get("notes", ()), *chain.notes]})
    made.spec = Spec(given, policy.spec.action, policy.spec.reward_scale)
    made.sense = Sense(given, [*chain.steps, *chain.rest])
    return made


def _with_info(policy: Network, changed: dict[str, Any]) -> Network:
    """A copy that shares the weights and has its own info."""
    made = copy.copy(policy)
    made._modules = dict(policy._modules)  # so that another sense can be set in the copy alone
    made.info = {**policy.info, **changed}
    return made


class _Chain:
    """The steps before the network, as far as they are found; ``groups`` is what comes out of them so far."""

    def __init__(self, policy: Network, given: Groups, wanted: Groups) -> None:
        self.policy, self.groups, self.wanted = policy, dict(given), wanted
        steps = list(policy.sense.steps)
        self.normalisers = [s for s in steps[:1] if isinstance(s, Normalise)]
        self.rest = steps[len(self.normalisers) :]
        self.told: dict[str, Any] = dict(policy.info.get("wrappers") or {})
        self.steps: list[Any] = []
        self.notes: list[str] = []
        self.name = "observation" if "observation" in given else next(iter(given))
        """The group that the time and the contact forces belong to."""

    def add(self, step: Any, note: str = "") -> None:
        self.steps.append(step)
        self.groups = step.after(self.groups)
        self.notes += [note] if note else []

    def _wanted(self) -> tuple[int, ...]:
        """The shape that the group must come to; of a joined list what is left beside the goal."""
        if self.name in self.wanted:
            return self.wanted[self.name].shape
        whole = self.wanted["obs"].shape
        rest = sum(g.shape[0] if len(g.shape) == 1 else 0 for n, g in self.groups.items() if n != self.name)
        return (whole[0] - rest,) if len(whole) == 1 else ()

    def join(self) -> None:
        """SB3 1.0's HER: observation and desired goal as one list."""
        if all(len(g.shape) == 1 for g in self.groups.values()):
            self.add(Join(GOAL, "obs"), "observation and desired goal are joined into one list, as SB3 1.0's HER did")

    def contacts(self) -> None:
        """Ant's and Humanoid's contact forces, which were always zero in versions 2 and 3."""
        robot, version = environments.split(str(self.policy.info.get("trained_on") or ""))
        keep, full = environments.CONTACTS.get(robot, (0, 0))
        have, want = self.groups[self.name].shape, self._wanted()
        done = any(isinstance(step, First) for step in self.rest)
        if done or version is None or version >= 4 or not full or want not in {(full,), (full + 1,)} or len(have) != 1 or have[0] < keep:
            return
        if not self.normalisers or _never_moved(self.normalisers[0], self.name, keep, full):
            self.add(First(self.name, keep, full), f"the contact forces ({full - keep} of {full} numbers) are held at zero, as they were when it was trained")

    def time(self, env: str | None) -> None:
        """TimeFeatureWrapper's number; what isn't told is seen from Ant's and Humanoid's known widths."""
        have, want = self.groups[self.name].shape, self._wanted()
        robot, _ = environments.split(str(self.policy.info.get("trained_on") or ""))
        known = environments.CONTACTS.get(robot, (0, 0))[1]
        if len(have) == len(want) == 1 and have[0] + 1 == want[0] and (self.told.get("time") or have[0] == known):
            steps = environments.limit(env or str(self.policy.info.get("environment")))
            self.add(RemainingTime(self.name, steps), f"the share of its {steps} steps that is left is added to what it sees (TimeFeatureWrapper)")

    def normalise(self) -> None:
        """VecNormalize, as soon as the shapes are its statistics'."""
        if self.normalisers and all(n in self.groups and self.groups[n].shape == s for n, s in self.normalisers[0].shapes.items()):
            self.add(self.normalisers.pop())

    def stack(self) -> None:
        """VecFrameStack: told, or an image with a multiple of the channels."""
        count, axes = 0, {}
        for name, have in self.groups.items():
            axis, times = _stacked(have, self.wanted[name].shape)
            if times < 2 or (count and times != count):
                return
            count, axes[name] = times, axis
        images = all(len(g.shape) == 3 for g in self.groups.values())
        if count == self.told.get("stack") or (images and count <= MOST_FRAMES and not self.told.get("stack")):
            shapes, dtypes = {n: g.shape for n, g in self.groups.items()}, {n: g.dtype for n, g in self.groups.items()}
            doubt = "" if self.told.get("stack") else ", which is concluded from the number of channels alone"
            self.add(Stack(count, shapes, axes, dtypes), f"it sees the last {count} observations at once (VecFrameStack{doubt})")

    def turn(self) -> None:
        """Images with the channels last."""
        turned = [n for n, g in self.groups.items() if len(g.shape) == 3 and g.shape != self.wanted[n].shape and (g.shape[2], *g.shape[:2]) == self.wanted[n].shape]
        if turned:
            self.add(ChannelsFirst(turned))


def _never_moved(step: Normalise, name: str, first: int, last: int) -> bool:
    """Whether the statistics say that these inputs didn't vary in training (a variance under 1e-6)."""
    if name not in step.shapes or step.shapes[name][0] < last:
        return True
    scale: Tensor = getattr(step, f"scale{list(step.shapes).index(name)}")
    return bool((scale[first:last] > 1e3).all())


def _stacked(have: Group, want: tuple[int, ...]) -> tuple[int, int]:
    """(axis, times) by which ``want`` is a stack of ``have``; (0, 0) where it isn't one."""
    shape = have.shape
    if not shape or len(shape) != len(want):
        return 0, 0
    if len(shape) == 3 and shape[1:] == want[1:] and want[0] % shape[0] == 0:  # channels first
        return 0, want[0] // shape[0]
    if len(shape) == 3 and shape[:2] == want[1:] and want[0] % shape[2] == 0:  # channels last here, first in the network
        return -1, want[0] // shape[2]
    if shape[:-1] == want[:-1] and want[-1] % shape[-1] == 0:
        return -1, want[-1] // shape[-1]
    return 0, 0
