"""Whole episodes with what both policies say at every step: what fidelity is measured on, and pictures are made from.

``record`` plays episodes as ``evaluation.play`` does (episode i on ``seeds(i)``) and keeps both
predictions. ``Rerun`` brings one episode back from its seed and its actions, to look at a state or to go on from it.
"""

from __future__ import annotations

import base64
import io
import math
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor

from distillrl import envs
from distillrl.envs import EnvOptions, Seeds
from distillrl.errors import Failed, Misconfigured, Missing
from distillrl.evaluation import ENDLESS, MAX_SLOTS, following
from distillrl.policies import ACTION, Policy, played, to_environment
from distillrl.records import Prediction, Spec, over_states

WIDE = 256
"""Numbers of an observation that a trace keeps; a wider one (an image) is thinned out evenly."""


@dataclass(frozen=True)
class Trace:
    """Episodes that one policy drove, S states in the order of episode and step."""

    driver: str
    """"teacher" or "student"."""
    teacher: Prediction
    """[S]"""
    student: Prediction
    """[S]"""
    seen: Tensor
    """[S, F ≤ WIDE] float: the observation's numbers, thinned where there are more."""
    names: tuple[str, ...]
    """[F] what they are called: group and index."""
    action: Tensor
    """[S, ...] as it was played, in the policy's units."""
    reward: np.ndarray
    episode: np.ndarray
    step: np.ndarray
    returns: np.ndarray
    """[E]"""
    lengths: np.ndarray
    """[E]"""

    @property
    def states(self) -> int:
        """S."""
        return len(self.episode)

    @property
    def episodes(self) -> int:
        """E."""
        return len(self.returns)


def record(
    driver: str, teacher: Policy, student: Policy, options: EnvOptions, episodes: int, seeds: Seeds, wants: frozenset[str] = ACTION
) -> Trace:
    """Play ``episodes`` with the most likely actions of one policy, ask both at every state.

    ``wants`` is the teacher's further knowledge (q, value). Raises Failed for an episode without end or a NaN.
    """
    options = envs.shown(options, teacher, student)
    vector = envs.make(options, envs.slots_of(options, min(episodes, MAX_SLOTS)), seeds, episodes)
    try:
        with torch.inference_mode():
            rows = _rows(driver, teacher, student, vector, episodes, wants)
    finally:
        vector.close()
    return _sorted(driver, rows, episodes, vector.spec)


def _rows(driver: str, teacher: Policy, student: Policy, vector: envs.Vector, episodes: int, wants: frozenset[str]) -> dict[str, list[Any]]:
    """What was seen, said and earned in each tick, counted slots only."""
    n, spec = vector.n, vector.spec
    index, step = np.arange(n), np.zeros(n, dtype=np.int64)
    ended, starts = np.zeros(n, dtype=bool), np.ones(n, dtype=bool)
    memory = {"teacher": teacher.init(n), "student": student.init(n)}
    rows: dict[str, list[Any]] = {k: [] for k in ("teacher", "student", "seen", "action", "reward", "episode", "step")}
    obs = {k: torch.as_tensor(v) for k, v in vector.reset().items()}
    while bool((playing := index < episodes).any()):
        begin = torch.from_numpy(starts)
        said: dict[str, Prediction] = {}
        said["teacher"], memory["teacher"] = teacher.act(obs, memory["teacher"], begin, wants)
        said["student"], memory["student"] = student.act(obs, memory["student"], begin, ACTION)
        counted = torch.from_numpy(playing & ~ended)
        action = played(said[driver], sampled=False)
        for who, prediction in said.items():
            rows[who].append(over_states(lambda x, rows=counted: x[rows].clone(), prediction))
        rows["seen"].append(thinned(obs, spec)[counted])
        rows["action"].append(action[counted].clone())
        rows["episode"].append(index[counted.numpy()].copy())
        rows["step"].append(step[counted.numpy()].copy())
        new, reward, terminated, truncated = vector.step(to_environment(action, spec))
        obs = {k: torch.as_tensor(v) for k, v in new.items()}
        rows["reward"].append(np.asarray(reward, dtype=np.float64)[counted.numpy()].copy())
        starts = ended & playing
        step = np.where(counted.numpy(), step + 1, 0)
        ended = (terminated | truncated) & counted.numpy()
        if ended.any():
            index = following(vector, index, ended)
        if step.max() > ENDLESS:
            raise Failed(f"an episode has not ended after {ENDLESS} steps; set --max-episode-steps")
    return rows


def _sorted(driver: str, rows: dict[str, list[Any]], episodes: int, spec: Spec) -> Trace:
    episode, step = np.concatenate(rows["episode"]), np.concatenate(rows["step"])
    order = np.lexsort((step, episode))
    reward = np.concatenate(rows["reward"])[order]
    if not np.isfinite(reward).all():
        raise Failed(f"episode {episode[order][~np.isfinite(reward)][0]} has a reward that is NaN or infinite")
    places = torch.from_numpy(order)
    both = {who: over_states(lambda x: x[places], over_states(lambda *x: torch.cat(x), *rows[who])) for who in ("teacher", "student")}
    return Trace(
        driver=driver,
        teacher=both["teacher"],
        student=both["student"],
        seen=torch.cat(rows["seen"])[places],
        names=names(spec),
        action=torch.cat(rows["action"])[places],
        reward=reward,
        episode=episode[order],
        step=step[order],
        returns=np.bincount(episode, np.concatenate(rows["reward"]), minlength=episodes),
        lengths=np.bincount(episode, minlength=episodes),
    )


def thinned(obs: Mapping[str, Tensor], spec: Spec) -> Tensor:
    """[n, F] float32 of all groups in their order, every k-th number of a group that is wider than its share."""
    share = max(1, WIDE // len(spec.observations))
    parts = []
    for name in spec.observations:
        flat = obs[name].reshape(len(obs[name]), -1)
        parts.append(flat[:, :: math.ceil(max(1, flat.shape[1]) / share)].float())
    return torch.cat(parts, -1)


def names(spec: Spec) -> tuple[str, ...]:
    """What ``thinned`` kept: «obs 3», «camera 1024»."""
    share, kept = max(1, WIDE // len(spec.observations)), []
    for name, group in spec.observations.items():
        width = max(1, math.prod(group.shape))
        kept += [f"{name} {i}" if width > 1 else name for i in range(0, width, math.ceil(width / share))]
    return tuple(kept)


class Rerun:
    """One episode in an environment of its own, stepped by hand; only gymnasium's come back from a seed and actions."""

    def __init__(self, options: EnvOptions, seeds: Seeds, episode: int, pictures: bool = False) -> None:
        """Raises Misconfigured or Missing where the environment can't be made (``pictures``: or can't render)."""
        more = {"render_mode": "rgb_array"} if pictures else {}
        if pictures:  # pygame draws into memory: where there is no screen it need not look for one, nor complain
            os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore" if pictures else "default")  # gymnasium warns of what is said below
                self.vector = envs.make(replace(options, kwargs={**options.kwargs, **more}, backend="gymnasium:1"), 1, seeds)
        except Misconfigured as error:
            if pictures and "render_mode" in str(error):
                raise Missing(f"{envs.name_of(options)} gives no pictures: it takes no render_mode, which gymnasium's environments draw by") from None
            raise
        self.obs = self._tensors(self.vector.reseed(episode))
        self.starts, self.ended = torch.ones(1, dtype=torch.bool), False

    def step(self, action: Tensor) -> float:
        """Play one action [1, ...]; its reward."""
        new, reward, terminated, truncated = self.vector.step(to_environment(action, self.vector.spec))
        self.obs, self.starts = self._tensors(new), torch.zeros(1, dtype=torch.bool)
        self.ended = bool(terminated[0] | truncated[0])
        return float(reward[0])

    def picture(self) -> np.ndarray:
        """[H, W, 3] uint8; raises Missing where the environment gives none."""
        frame = self.vector.vector.envs[0].render()  # type: ignore[attr-defined]  # gymnasium:1 is an InProcess
        if not isinstance(frame, np.ndarray) or frame.ndim != 3:
            raise Missing("the environment gives no picture (render_mode rgb_array gave none)")
        return frame

    def close(self) -> None:
        """Free it."""
        self.vector.close()

    def _tensors(self, obs: envs.Observations) -> dict[str, Tensor]:
        return {k: torch.as_tensor(np.array(v)) for k, v in obs.items()}


def can_rerun(options: EnvOptions) -> bool:
    """Whether episodes come back from their seeds: gymnasium's do, EnvPool's and a user's own vector don't."""
    return options.backend.startswith(("auto", "gymnasium")) and not isinstance(options.id, gymnasium.vector.VectorEnv)


@torch.inference_mode()
def from_there(
    policy: Policy, trace: Trace, state: int, options: EnvOptions, seeds: Seeds, pictures: bool = False
) -> tuple[float | None, np.ndarray | None]:
    """What ``policy`` earns from state number ``state`` of a trace to the episode's end, and the state's picture.

    The episode is played again up to there with the recorded actions; (None, None) where it doesn't come back the same,
    so that nothing can be said. With ``pictures`` it raises what the environment raises where it can't render.
    """
    first = state - int(trace.step[state])
    rerun = Rerun(options, seeds, int(trace.episode[state]), pictures)
    try:
        memory = policy.init(1)
        for i in range(first, state):
            if memory:
                _, memory = policy.act(rerun.obs, memory, rerun.starts, ACTION)
            if not math.isclose(rerun.step(trace.action[i : i + 1]), trace.reward[i], rel_tol=1e-4, abs_tol=1e-4) or rerun.ended:
                return None, None
        frame = rerun.picture() if pictures else None
        gained, ticks = 0.0, 0
        while not rerun.ended and ticks < ENDLESS:
            prediction, memory = policy.act(rerun.obs, memory, rerun.starts, ACTION)
            gained, ticks = gained + rerun.step(played(prediction, sampled=False)), ticks + 1
        return gained, frame
    finally:
        rerun.close()


def as_jpeg(frame: np.ndarray, width: int = 300) -> str:
    """A data address of [H, W, 3] uint8, made at most so wide; raises Missing without Pillow."""
    try:
        from PIL import Image
    except ImportError:
        raise Missing("pictures need Pillow: pip install 'distillrl[report]'") from None
    image = Image.fromarray(frame)
    if image.width > width:
        image = image.resize((width, max(1, round(image.height * width / image.width))))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=72)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()
