#!/usr/bin/env python3
"""Make stand-ins for RL Zoo's public collection, as stable-baselines3 1.x wrote it, and hold distillrl against SB3 on each.

    python scripts/make_zoo_standins.py --check            # all of them, in a temporary folder; needs stable-baselines3 and sb3-contrib
    python scripts/make_zoo_standins.py --out standins --only 'tqc/*'

Each algorithm of the collection in each of its classic, Box2D, MuJoCo v3 and goal environments, with the Zoo's own
hyper-parameters as far as they shape the policy (net_arch, activation, log_std_init, gSDE, n_critics, quantiles, linear or
not), its wrappers (TimeFeatureWrapper, HER of 1.0 and later) and its normaliser. Weights and statistics are random. What SB3
1.x wrote otherwise than today is written so: spaces pickled as gym's, ``net_arch`` as a list with a dict, ARS's linear
layer without a number, no gymnasium anywhere. The published files themselves are other people's and are not here.
"""

from __future__ import annotations

import argparse
import base64
import copyreg
import fnmatch
import io
import json
import pickle
import shutil
import sys
import tempfile
import types
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

ENVS: dict[str, tuple[Any, Any]] = {
    "CartPole-v1": (4, 2), "Acrobot-v1": (6, 3), "MountainCar-v0": (2, 3), "LunarLander-v2": (8, 4),
    "LunarLanderContinuous-v2": (8, [1.0] * 2), "MountainCarContinuous-v0": (2, [1.0]), "Pendulum-v1": (3, [2.0]),
    "BipedalWalker-v3": (24, [1.0] * 4), "BipedalWalkerHardcore-v3": (24, [1.0] * 4), "Ant-v3": (111, [1.0] * 8), "HalfCheetah-v3": (17, [1.0] * 6),
    "Hopper-v3": (11, [1.0] * 3), "Humanoid-v3": (376, [0.4] * 17), "Swimmer-v3": (8, [1.0] * 2), "Walker2d-v3": (17, [1.0] * 6),
    "FetchReach-v1": ({"achieved_goal": 3, "desired_goal": 3, "observation": 10}, [1.0] * 4),
    "PandaReach-v1": ({"achieved_goal": 3, "desired_goal": 3, "observation": 6}, [1.0] * 3),
}  # fmt: skip
"""Numbers in an observation (or in each of its groups); choices, or the bound of each action."""
CONTACT_FORCES = {"Ant-v3": 27, "Humanoid-v3": 292}
"""Where they begin in an observation."""
CLASSIC, BOX2D, MUJOCO = ("CartPole-v1", "Acrobot-v1", "MountainCar-v0"), ("LunarLander-v2",), ("Ant-v3", "HalfCheetah-v3", "Hopper-v3", "Humanoid-v3", "Swimmer-v3", "Walker2d-v3")
SMOOTH = ("LunarLanderContinuous-v2", "MountainCarContinuous-v0", "Pendulum-v1", "BipedalWalker-v3", "BipedalWalkerHardcore-v3")
GOALS = ("FetchReach-v1", "PandaReach-v1")


@dataclass(frozen=True)
class Row:
    """One policy of the collection."""

    algo: str
    env: str
    policy: str = "MlpPolicy"
    kwargs: dict[str, Any] = field(default_factory=dict)
    use_sde: bool = False
    normalize: str = ""
    """As config.yml has it; empty: none."""
    time: bool = False
    version: str = "1.3.1a7"

    @property
    def name(self) -> str:
        """ALGO/ENV."""
        return f"{self.algo}/{self.env}"


def rows() -> list[Row]:
    """The collection's combinations, with what shapes their policies."""
    norm, halved = "true", "dict(norm_obs=True, norm_reward=False)"
    made: list[Row] = []
    every = (*CLASSIC, *BOX2D, *SMOOTH, *(m for m in MUJOCO if m != "Humanoid-v3"))
    for algo in ("a2c", "ppo", "trpo"):
        for env in every:
            smooth = not isinstance(ENVS[env][1], int)
            wide = env in {"HalfCheetah-v3", "Hopper-v3", "Ant-v3"} and algo == "ppo"
            kwargs: dict[str, Any] = {"net_arch": {"pi": [256, 256], "vf": [256, 256]}, "activation_fn": torch.nn.ReLU, "log_std_init": -2, "ortho_init": False} if wide else {}
            sde = smooth and algo == "a2c"
            if sde:
                kwargs = {"log_std_init": -2, "ortho_init": False} | ({"full_std": True} if env == "MountainCarContinuous-v0" else {})
            made.append(Row(algo, env, kwargs=kwargs, use_sde=sde, normalize=norm if env in MUJOCO or env in {"BipedalWalker-v3", "MountainCar-v0"} else "", time=algo == "ppo" and env in {"Ant-v3", "Swimmer-v3", "Walker2d-v3"}, version="1.0rc0"))
    for algo in ("dqn", "qrdqn"):
        made += [Row(algo, env, kwargs={"net_arch": [256, 256]} | ({"n_quantiles": 10 if env == "CartPole-v1" else 25} if algo == "qrdqn" else {})) for env in (*CLASSIC, *BOX2D)]
    for algo in ("ddpg", "td3"):
        made += [Row(algo, env, kwargs={"net_arch": [400, 300]} | ({"n_critics": 1} if algo == "ddpg" else {})) for env in (*SMOOTH, *(MUJOCO if algo == "td3" else ("HalfCheetah-v3",)))]
    for algo in ("sac", "tqc"):
        for env in (*SMOOTH, *MUJOCO):
            sde = env in {"Pendulum-v1", "MountainCarContinuous-v0", "BipedalWalker-v3"}
            arch = {"net_arch": [64, 64]} if env in {"Pendulum-v1", "MountainCarContinuous-v0"} else {"net_arch": [400, 300]} if env.startswith("Bipedal") else {}
            more = ({"log_std_init": -3} if sde else {}) | ({"n_critics": 2, "n_quantiles": 25} if algo == "tqc" else {})
            made.append(Row(algo, env, kwargs=arch | more, use_sde=sde, version="1.0rc1"))
        made += [Row(algo, env, "MultiInputPolicy", {"net_arch": [64, 64], "n_critics": 1}, normalize=norm, time=True, version="1.2.0") for env in GOALS if algo == "tqc" or env == "PandaReach-v1"]
    made.append(Row("her", "PandaReach-v1", "MultiInputPolicy", {"net_arch": [64, 64], "n_critics": 1}, normalize=norm, version="1.3.1a9"))
    made.append(Row("her", "FetchReach-v1", "MlpPolicy", {"net_arch": [64, 64]}, normalize=norm, version="1.0rc2"))
    for env in (*CLASSIC, *SMOOTH[:4], *(m for m in MUJOCO if m != "Humanoid-v3")):
        linear = env in {"CartPole-v1", "Swimmer-v3", "Hopper-v3", "Pendulum-v1"}
        made.append(Row("ars", env, "LinearPolicy" if linear else "MlpPolicy", {} if linear else {"net_arch": [16]}, normalize=halved if env in MUJOCO or env == "MountainCarContinuous-v0" else ""))
    made += [Row("ppo_lstm", env, "MlpLstmPolicy", {"ortho_init": False, "enable_critic_lstm": True, "lstm_hidden_size": 16, "activation_fn": torch.nn.ReLU}, normalize=norm, version="1.5.1a8") for env in ("CartPole-v1", "Pendulum-v1", "BipedalWalker-v3")]
    return made


# ── gym's spaces, as it pickled them ──────────────────────────────────────────────────────────────────────────────


def _old(module: str, name: str) -> type:
    """A class that pickles as gym's, without gym."""
    made = types.ModuleType(module)
    cls = type(name, (), {"__module__": module, "__qualname__": name})
    setattr(made, name, cls)
    sys.modules.setdefault(module, made)
    return getattr(sys.modules[module], name)


def old_space(size: Any, action: bool = False, double: bool = False) -> tuple[Any, dict[str, Any]]:
    """A space as gym 0.2x pickles it, and the readable half that SB3 wrote beside it."""
    for parent in ("gym", "gym.spaces"):
        sys.modules.setdefault(parent, types.ModuleType(parent)).__dict__.setdefault("__version__", "0.21.0")
    if isinstance(size, dict):
        space = _old("gym.spaces.dict", "Dict")()
        import collections

        inside = collections.OrderedDict((k, old_space(n, double=True)[0]) for k, n in sorted(size.items()))
        space.__dict__.update(spaces=inside, _shape=None, dtype=None, _np_random=None)
        return space, {"spaces": "OrderedDict(" + str([(k, f"Box(-inf, inf, ({n},), float64)") for k, n in sorted(size.items())]) + ")", "_shape": None, "dtype": None, "_np_random": None}
    if isinstance(size, int) and action:
        space = _old("gym.spaces.discrete", "Discrete")()
        space.__dict__.update(n=size, _shape=(), dtype=np.dtype("int64"), _np_random=None)
        return space, {"n": size, "_shape": [], "dtype": "int64", "_np_random": None}
    dtype = np.dtype("float64" if double else "float32")
    high = np.asarray(size, dtype) if action else np.full(size, np.inf, dtype)
    space = _old("gym.spaces.box", "Box")()
    space.__dict__.update(dtype=dtype, _shape=high.shape, low=-high, high=high, bounded_below=np.isfinite(high), bounded_above=np.isfinite(high), _np_random=np.random.RandomState(0))
    readable = {"dtype": str(dtype), "_shape": list(high.shape), "low": str(-high), "high": str(high), "bounded_below": str(np.isfinite(high)), "bounded_above": str(np.isfinite(high)), "_np_random": "RandomState(MT19937)"}
    return space, readable


def written(value: Any, readable: dict[str, Any]) -> dict[str, Any]:
    """SB3's way of keeping an object in JSON."""
    return {":type:": str(type(value)), ":serialized:": base64.b64encode(pickle.dumps(value)).decode(), **readable}


# ── a policy of the library, and its folder ───────────────────────────────────────────────────────────────────────


def made(row: Row, seed: int = 0) -> Any:
    """SB3's own model, its weights random, biases and spreads too."""
    import gymnasium
    import sb3_contrib
    import stable_baselines3 as sb3

    def box(n: int) -> Any:
        return gymnasium.spaces.Box(-np.inf, np.inf, (n,), np.float64 if row.env in MUJOCO or row.env in GOALS else np.float32)

    size, act = ENVS[row.env]
    extra = int(row.time)
    if isinstance(size, dict) and row.policy != "MultiInputPolicy":
        observation = box(size["observation"] + size["desired_goal"] + extra)
    elif isinstance(size, dict):
        observation = gymnasium.spaces.Dict({k: box(n + (extra if k == "observation" else 0)) for k, n in size.items()})
    else:
        observation = box(size + extra)
    action = gymnasium.spaces.Discrete(act) if isinstance(act, int) else gymnasium.spaces.Box(-np.float32(act), np.float32(act), dtype=np.float32)

    class Blank(gymnasium.Env):
        observation_space, action_space = observation, action

    library = {"a2c": sb3.A2C, "ppo": sb3.PPO, "dqn": sb3.DQN, "ddpg": sb3.DDPG, "td3": sb3.TD3, "sac": sb3.SAC, "her": sb3.SAC, "trpo": sb3_contrib.TRPO, "qrdqn": sb3_contrib.QRDQN, "tqc": sb3_contrib.TQC, "ars": sb3_contrib.ARS, "ppo_lstm": sb3_contrib.RecurrentPPO}  # fmt: skip
    settings: dict[str, Any] = {"policy_kwargs": dict(row.kwargs), "device": "cpu", "seed": seed}
    if row.algo not in {"dqn", "qrdqn", "ddpg", "td3", "ars", "trpo"}:
        settings["use_sde"] = row.use_sde
    if row.algo in {"dqn", "qrdqn", "ddpg", "td3", "sac", "tqc", "her"}:
        settings["buffer_size"] = 10
    if isinstance(size, dict) and row.policy == "MultiInputPolicy":
        settings["replay_buffer_class"] = None
    model = library[row.algo](row.policy, Blank(), **settings)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in model.policy.parameters():
            scale = 0.1 if parameter.dim() < 2 else 1.2 / parameter.shape[-1] ** 0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale - (1.0 if parameter.dim() < 2 and "log_std" in str(parameter.shape) else 0.0))
    return model


def statistics(row: Row, model: Any) -> Any:
    """The library's own VecNormalize with random statistics; None where the row has none."""
    from stable_baselines3.common.running_mean_std import RunningMeanStd
    from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

    if not row.normalize:
        return None
    rng, made = np.random.default_rng(3), VecNormalize(DummyVecEnv([lambda: model.env.envs[0]]))

    def random(shape: tuple[int, ...]) -> Any:
        rms = RunningMeanStd(shape=shape)
        rms.mean, rms.var, rms.count = rng.normal(size=shape), rng.uniform(0.1, 3, shape), 1e5
        return rms

    made.training = False
    size = ENVS[row.env][0]
    if isinstance(size, dict):
        made.obs_rms = {k: random((n + int(row.time and k == "observation"),)) for k, n in size.items()}
    else:
        made.obs_rms = random(model.observation_space.shape)
    return made


def write(row: Row, model: Any, stats: Any, top: Path) -> Path:
    """RL Zoo's folder of a model, as SB3 1.x wrote it."""
    place = top / row.algo / f"{row.env}_1"
    (place / row.env).mkdir(parents=True)
    buffer = io.BytesIO()
    model.save(buffer)
    old = zipfile.ZipFile(buffer)
    data = json.loads(old.read("data"))
    size, act = ENVS[row.env]
    double = row.env in MUJOCO
    joined = isinstance(size, dict) and row.policy != "MultiInputPolicy"
    inside = size["observation"] + size["desired_goal"] if joined else {k: n + int(row.time and k == "observation") for k, n in size.items()} if isinstance(size, dict) else size + int(row.time)
    data["observation_space"] = written(*old_space(inside, double=double))
    data["action_space"] = written(*old_space(act, action=True))
    if joined:
        data.update(model_class={":type:": "<class 'abc.ABCMeta'>"}, n_sampled_goal=4)
    kwargs = data["policy_kwargs"]
    if isinstance(kwargs.get("net_arch"), dict) and "pi" in kwargs["net_arch"]:
        plain = row.kwargs | {"net_arch": [row.kwargs["net_arch"]]}
        data["policy_kwargs"] = {":type:": "<class 'dict'>", ":serialized:": base64.b64encode(pickle.dumps(plain)).decode(), **{k: str(v) if isinstance(v, type) else v for k, v in plain.items()}}
    for name in ("observation_space_", "_observation_space"):
        data.pop(name, None)
    weights = torch.load(io.BytesIO(old.read("policy.pth")), weights_only=True)
    if row.policy == "LinearPolicy":
        weights = {k.replace("action_net.0.weight", "action_net.weight"): v for k, v in weights.items()}
    tensors = io.BytesIO()
    torch.save(weights, tensors, _use_new_zipfile_serialization=row.version != "1.0rc2")
    with zipfile.ZipFile(place / f"{row.env}.zip", "w") as new:
        new.writestr("data", json.dumps(data, indent=4))
        new.writestr("policy.pth", tensors.getvalue())
        new.writestr("pytorch_variables.pth", old.read("pytorch_variables.pth"))
        new.writestr("_stable_baselines3_version", row.version)
    head = "!!python/object/apply:collections.OrderedDict\n"
    settings = [("env_wrapper", "sb3_contrib.common.wrappers.TimeFeatureWrapper")] if row.time else []
    settings += [("n_timesteps", "1000000.0"), *([("normalize", row.normalize)] if row.normalize else []), ("policy", row.policy)]
    (place / row.env / "config.yml").write_text(head + "".join(f"{'- ' if i == 0 else '  '}- - {k}\n    - {v}\n" for i, (k, v) in enumerate(settings)))
    (place / row.env / "args.yml").write_text(head + f"- - - algo\n    - {row.algo}\n  - - env\n    - {row.env}\n  - - env_kwargs\n    - null\n")
    if stats is not None:
        state = {**stats.__getstate__(), "observation_space": old_space(inside, double=double)[0], "action_space": old_space(act, action=True)[0]}
        kept = type(stats).__new__(type(stats))
        kept.__dict__.update(state)
        (place / row.env / "vecnormalize.pkl").write_bytes(_pickled(kept))
    return place


def _pickled(stats: Any) -> bytes:
    buffer = io.BytesIO()
    pickler = pickle.Pickler(buffer, protocol=3)
    pickler.dispatch_table = {type(stats): lambda x: (copyreg.__newobj__, (type(x),), dict(x.__dict__))}  # its own __getstate__ would look for what is gone
    pickler.dump(stats)
    return buffer.getvalue()


# ── the comparison ────────────────────────────────────────────────────────────────────────────────────────────────


def gap(row: Row, model: Any, stats: Any, place: Path, n: int = 24) -> float:
    """The greatest difference of actions, in half ranges, between SB3 and distillrl on random observations at an episode's start."""
    from distillrl import teachers
    from distillrl.records import ActionSpace, Group, Spec

    size, act = ENVS[row.env]
    sizes = size if isinstance(size, dict) else {"obs": size}
    rng = np.random.default_rng(7)
    seen = {k: rng.normal(size=(n, m)) * 2 for k, m in sizes.items()}
    if row.env in CONTACT_FORCES:
        seen["obs"][:, CONTACT_FORCES[row.env] :] = 0  # mujoco-py gave nothing else
    double = row.env in MUJOCO or row.env in GOALS
    theirs: Any = {k: v.astype(np.float64 if double else np.float32) for k, v in seen.items()}
    raw = {k: torch.as_tensor(v) for k, v in theirs.items()}
    if row.time:
        which = "observation" if isinstance(size, dict) else "obs"
        theirs = {**theirs, which: np.concatenate([theirs[which], np.ones((n, 1))], -1)}
    whole = theirs if isinstance(size, dict) else theirs["obs"]
    if isinstance(size, dict) and row.policy != "MultiInputPolicy":  # SB3 1.0's HER: its statistics are each group's
        whole = {k: stats._normalize_obs(v, stats.obs_rms[k]) for k, v in whole.items()}
    elif stats is not None:
        whole = stats.normalize_obs(whole)
    if isinstance(size, dict) and row.policy != "MultiInputPolicy":
        whole = np.concatenate([whole["observation"], whole["desired_goal"]], -1)
    expected = model.predict(whole, episode_start=np.ones(n, bool), deterministic=True)[0] if row.algo == "ppo_lstm" else model.predict(whole, deterministic=True)[0]
    space = ActionSpace("discrete", n=act) if isinstance(act, int) else ActionSpace("box", (len(act),), low=tuple(-a for a in act), high=tuple(act), dtype="float32")
    spec = Spec({k: Group((m,), "float64" if double else "float32") for k, m in sizes.items()}, space)
    policy = teachers.load(place, teachers.Options(env=row.env), spec)
    action, _ = distilled(policy, raw)
    if isinstance(act, int):
        return float((action != expected).sum())
    return float(np.abs((action - expected) / np.asarray(act)).max())


def distilled(policy: Any, obs: dict[str, torch.Tensor]) -> Any:
    """What distillrl does at the start of an episode."""
    from distillrl.policies import to_environment

    n = len(next(iter(obs.values())))
    prediction, memory = policy.act(obs, policy.init(n), torch.ones(n, dtype=torch.bool))
    return to_environment(prediction.action.mode, policy.spec), memory


def main() -> int:
    """Write them, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where they are kept; a temporary folder by default")
    parser.add_argument("--only", default="*", help="such as 'tqc/*'")
    parser.add_argument("--check", action="store_true", help="load each with distillrl and compare its actions with SB3's")
    given = parser.parse_args()
    top = given.out or Path(tempfile.mkdtemp())
    wrong = 0
    chosen = [row for row in rows() if fnmatch.fnmatch(row.name, given.only)]
    for row in chosen:
        model = made(row)
        stats = statistics(row, model)
        place = write(row, model, stats, top)
        if given.check:
            try:
                apart: Any = gap(row, model, stats, place)
                bad = apart > 1e-5
            except Exception as error:
                apart, bad = f"{type(error).__name__}: {error}", True
            wrong += bad
            print(f"{row.name:34} {row.version:8} {'WRONG' if bad else 'same'} {apart if isinstance(apart, str) else format(apart, '.2g')}", flush=True)
    print(f"{len(chosen)} stand-ins, {wrong} differ from stable-baselines3" if given.check else f"{len(chosen)} stand-ins in {top}")
    if given.out is None:
        shutil.rmtree(top)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
