"""What became of environments: old names and today's, and differences that ruin a policy trained on the old one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from distillrl.records import Spec


@dataclass(frozen=True)
class Today:
    """Where an old environment is found now."""

    id: str
    word: str
    """What changed, in a sentence's part."""
    needs: str = ""
    """The package that has it, '' for gymnasium itself."""


_MUJOCO = "the same dynamics with today's MuJoCo"
_BOX2D = "the same dynamics, finite bounds of observations"

_ROBOTS = ("HalfCheetah", "Hopper", "Swimmer", "Walker2d", "Ant", "Humanoid", "HumanoidStandup", "Reacher", "InvertedPendulum", "InvertedDoublePendulum")

TODAY: dict[str, Today] = {
    "LunarLander-v2": Today("LunarLander-v3", _BOX2D),
    "LunarLanderContinuous-v2": Today("LunarLanderContinuous-v3", _BOX2D),
    "BipedalWalker-v2": Today("BipedalWalker-v3", "a corrected hull and finite bounds"),
    "BipedalWalkerHardcore-v2": Today("BipedalWalkerHardcore-v3", "a corrected hull and finite bounds"),
    "CarRacing-v0": Today("CarRacing-v3", "the tile that ends a lap is counted otherwise"),
    "CarRacing-v1": Today("CarRacing-v3", "the tile that ends a lap is counted otherwise"),
    "CarRacing-v2": Today("CarRacing-v3", "the tile that ends a lap is counted otherwise"),
    "Pendulum-v0": Today("Pendulum-v1", "the same dynamics, a corrected angle in the reward"),
    "Acrobot-v0": Today("Acrobot-v1", "episodes of 500 steps"),
    "FrozenLake-v0": Today("FrozenLake-v1", "the same dynamics"),
    "FrozenLake8x8-v0": Today("FrozenLake8x8-v1", "the same dynamics"),
    "Taxi-v2": Today("Taxi-v4", "the same map"),
    "Taxi-v3": Today("Taxi-v4", "the same map"),
    "Blackjack-v0": Today("Blackjack-v1", "the same rules"),
    "CliffWalking-v0": Today("CliffWalking-v1", "the same dynamics"),
    **{
        f"{robot}-v{version}": Today(f"{robot}-v4", _MUJOCO)
        for robot in _ROBOTS
        for version in (0, 1, 2, 3)
    },
    **{f"Pusher-v{version}": Today("Pusher-v5", "today's MuJoCo, with a corrected density of the object") for version in (0, 1, 2, 4)},
    **{
        f"Fetch{task}-v{version}": Today(f"Fetch{task}-v4", "today's MuJoCo bindings", "gymnasium-robotics")
        for task in ("Reach", "Push", "Slide", "PickAndPlace")
        for version in (1, 2, 3)
    },
    **{
        f"Panda{task}-v{version}": Today(f"Panda{task}-v3", "gymnasium's interface", "panda-gym")
        for task in ("Reach", "Push", "Slide", "PickAndPlace", "Stack", "Flip")
        for version in (1, 2)
    },
    **{
        f"{robot}BulletEnv-v0": Today(f"{robot}BulletEnv-v0", "gymnasium's interface", "pybullet_envs_gymnasium")
        for robot in ("HalfCheetah", "Hopper", "Walker2D", "Ant", "Humanoid", "Reacher", "InvertedPendulum", "InvertedDoublePendulum", "Minitaur")
    },
}
"""Old id → today's."""

FITTING: dict[tuple[tuple[int, ...], str], tuple[str, ...]] = {
    ((4,), "Discrete(2)"): ("CartPole-v1",),
    ((6,), "Discrete(3)"): ("Acrobot-v1",),
    ((2,), "Discrete(3)"): ("MountainCar-v0",),
    ((2,), "Box(-1, 1, (1,), float32)"): ("MountainCarContinuous-v0",),
    ((3,), "Box(-2, 2, (1,), float32)"): ("Pendulum-v1",),
    ((8,), "Discrete(4)"): ("LunarLander-v3",),
    ((8,), "Box(-1, 1, (2,), float32)"): ("LunarLanderContinuous-v3", "Swimmer-v4", "Swimmer-v5"),
    ((24,), "Box(-1, 1, (4,), float32)"): ("BipedalWalker-v3", "BipedalWalkerHardcore-v3"),
    ((96, 96, 3), "Box([-1, 0, 0], 1, (3,), float32)"): ("CarRacing-v3",),
    ((16,), "Discrete(4)"): ("FrozenLake-v1",),
    ((64,), "Discrete(4)"): ("FrozenLake8x8-v1",),
    ((500,), "Discrete(6)"): ("Taxi-v4",),
    ((48,), "Discrete(4)"): ("CliffWalking-v1",),
    ((17,), "Box(-1, 1, (6,), float32)"): ("HalfCheetah-v4", "HalfCheetah-v5", "Walker2d-v4", "Walker2d-v5"),
    ((11,), "Box(-1, 1, (3,), float32)"): ("Hopper-v4", "Hopper-v5"),
    ((27,), "Box(-1, 1, (8,), float32)"): ("Ant-v4",),
    ((105,), "Box(-1, 1, (8,), float32)"): ("Ant-v5",),
    ((111,), "Box(-1, 1, (8,), float32)"): ("Ant-v4",),
    ((376,), "Box(-0.4, 0.4, (17,), float32)"): ("Humanoid-v4", "HumanoidStandup-v4"),
    ((348,), "Box(-0.4, 0.4, (17,), float32)"): ("Humanoid-v5", "HumanoidStandup-v5"),
    ((11,), "Box(-1, 1, (2,), float32)"): ("Reacher-v4",),
    ((10,), "Box(-1, 1, (2,), float32)"): ("Reacher-v5",),
    ((23,), "Box(-2, 2, (7,), float32)"): ("Pusher-v5",),
    ((4,), "Box(-3, 3, (1,), float32)"): ("InvertedPendulum-v4", "InvertedPendulum-v5"),
    ((11,), "Box(-1, 1, (1,), float32)"): ("InvertedDoublePendulum-v4",),
    ((9,), "Box(-1, 1, (1,), float32)"): ("InvertedDoublePendulum-v5",),
}
"""Shape of a plain observation (the number of categories of a Discrete one) and action → gymnasium's environments with these."""

LIMITS: dict[str, int] = {"FetchReach": 50, "FetchPush": 50, "FetchSlide": 50, "FetchPickAndPlace": 50, "PandaReach": 50, "PandaPush": 50, "PandaSlide": 50, "PandaPickAndPlace": 50}
"""Steps of an episode, of environments that gymnasium itself doesn't know."""

GOAL = ("observation", "desired_goal")
"""What SB3 1.0's HER joined into one list, in this order."""

CONTACTS: dict[str, tuple[int, int]] = {"Ant": (27, 111), "Humanoid": (292, 376), "HumanoidStandup": (292, 376)}
"""Robot → (numbers before the contact forces, all numbers) of its v2 and v3: mujoco-py gave contact forces that were always zero."""


def split(name: str) -> tuple[str, int | None]:
    """``Hopper-v3`` → ("Hopper", 3)."""
    match = re.fullmatch(r"(.+)-v(\d{1,3})", name)
    return (match.group(1), int(match.group(2))) if match else (name, None)


def today(name: str) -> tuple[str, str | None]:
    """Today's id of an environment, and a sentence where it isn't the same."""
    found = TODAY.get(name)
    if found is None:
        return name, None
    needs = f" (pip install {found.needs})" if found.needs else ""
    if found.id == name:
        return name, f"{name} is not gymnasium's own{needs}" if needs else None
    return found.id, f"it was trained on {name}, which is {found.id} today{needs}: {found.word}"


def fitting(spec: Spec) -> list[str]:
    """Gymnasium's own environments whose spaces are a policy's; empty where none is known."""
    if len(spec.observations) != 1:
        return []
    group = next(iter(spec.observations.values()))
    shapes = [group.categories or group.shape]
    if len(group.shape) == 3:
        shapes.append((*group.shape[1:], group.shape[0]))  # an image whose channels were turned to the front
    return [name for shape in shapes for name in FITTING.get((shape, str(spec.action)), ())]


def limit(name: str) -> int:
    """Steps of an episode of an environment: as registered, else by the table above, else 1000 (TimeFeatureWrapper's default)."""
    import gymnasium

    spec = gymnasium.registry.get(name)
    if spec is not None and spec.max_episode_steps:
        return int(spec.max_episode_steps)
    return LIMITS.get(split(name)[0], 1000)


def doubts(trained_on: str | None, played_on: str | None) -> list[str]:
    """Differences between two versions that are known to ruin a policy, a sentence each; empty where none is known."""
    if not trained_on or not played_on:
        return []
    (robot, old), (other, new) = split(trained_on), split(played_on)
    if robot != other or old is None or new is None or old == new:
        return []
    said = []
    if robot == "Walker2d" and new >= 5 > old:
        said.append(f"Walker2d-v{new} has other dynamics (the right foot's friction is corrected): a policy of v{old} falls there (5362 → 989 was measured); Walker2d-v4 is right")
    if robot in CONTACTS and old < 4:
        said.append(f"{robot}-v{old} gave contact forces that were always zero: they are held at zero, as any other number there ruins the policy (Ant: 121 instead of 5116)")
    if robot in {"Humanoid", "HumanoidStandup"} and new >= 5 > old:
        said.append(f"{robot}-v{new} leaves out numbers that v{old} gave (376 → 348); {robot}-v4 is right")
    if robot in {"Hopper", "Humanoid", "Ant", "InvertedDoublePendulum"} and new >= 5 > old:
        said.append(f"{robot}-v{new} counts its reward otherwise than v{old}: returns can't be compared")
    return said


def shortfall(info: Mapping[str, Any], played_on: str | None, mean: float) -> str | None:
    """A warning where a teacher plays far under the return that its file or folder records, with the likely cause; else None.

    Far: by more than three of the recorded standard deviations (where there is one) and by more than a tenth of the
    record's size.
    """
    recorded = info.get("recorded_return")
    if not recorded:
        return None
    there, spread = float(recorded["mean"]), float(recorded.get("std") or 0.0)
    if there - mean <= max(3 * spread, 0.1 * abs(there), 1e-9):
        return None
    causes = list(info.get("doubts", ())) + doubts(info.get("trained_on"), played_on)
    likely = "; likely causes: " + "; ".join(causes) if causes else "; likely causes: another version of the environment, a normaliser or a wrapper that is missing"
    return f"the teacher plays {mean:.1f} here, far under the {there:.1f} that {recorded['source']} records{likely}"
