"""Stand-ins for RL Zoo's collection in the layout of stable-baselines3 1.x (scripts/make_zoo_standins.py): SB3's own actions, without gym."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from distillrl import teachers

pytest.importorskip("stable_baselines3", reason="stable-baselines3 is not installed")
pytest.importorskip("sb3_contrib", reason="sb3-contrib is not installed")

SOME = (
    "a2c/Pendulum-v1", "ppo/HalfCheetah-v3", "ppo/Ant-v3", "trpo/Walker2d-v3", "dqn/Acrobot-v1", "qrdqn/MountainCar-v0", "td3/Humanoid-v3", "sac/MountainCarContinuous-v0",
    "tqc/FetchReach-v1", "her/PandaReach-v1", "her/FetchReach-v1", "ars/CartPole-v1", "ars/HalfCheetah-v3", "ppo_lstm/BipedalWalker-v3",
)  # fmt: skip
"""One of each kind; the script holds all 109 against SB3."""


@pytest.fixture(scope="module")
def maker() -> Iterator[Any]:
    spec = importlib.util.spec_from_file_location("make_zoo_standins", Path(__file__).parents[1] / "scripts" / "make_zoo_standins.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    for name in [n for n in sys.modules if n.partition(".")[0] == "gym" or n == spec.name]:
        del sys.modules[name]


@pytest.mark.parametrize("name", SOME)
@pytest.mark.filterwarnings("ignore")
def test_a_stand_in_acts_as_stable_baselines3(maker: Any, name: str, tmp_path: Path) -> None:
    row = next(r for r in maker.rows() if r.name == name)
    model = maker.made(row)
    statistics = maker.statistics(row, model)
    place = maker.write(row, model, statistics, tmp_path)
    assert maker.gap(row, model, statistics, place) <= 1e-5
    info = teachers.load(place).info
    assert info["trained_on"] == row.env
    assert info["saved_by"] == f"stable-baselines3 {row.version}"
    assert (info["normaliser"] == "none found") == (not row.normalize)


@pytest.mark.filterwarnings("ignore")
def test_a_stand_in_with_another_activation_differs(maker: Any, tmp_path: Path) -> None:
    """The comparison can fail."""
    row = next(r for r in maker.rows() if r.name == "ppo/HalfCheetah-v3")
    model = maker.made(row)
    statistics = maker.statistics(row, model)
    place = maker.write(row, model, None, tmp_path)
    assert maker.gap(row, model, statistics, place) > 1e-2
