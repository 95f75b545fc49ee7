#!/usr/bin/env python3
# ruff: noqa: C408 — options are written as the keyword arguments that they become
"""Train real teachers with stable-baselines3, for the acceptance bench.

The bench must meet policies that nobody tuned distillrl on: other seeds, other algorithms, other
environments than those in `../shared/teachers`. This script makes them with the hyper-parameters of RL Zoo
(or near them, where a shorter training is enough) and keeps, of each training, the policy that did best on
a few held-out evaluations. It needs a virtual environment of its own; distillrl never imports
stable-baselines3:

    python3 -m venv ../venvs/sb3
    ../venvs/sb3/bin/pip install torch==2.13.0 stable-baselines3==2.9.2 sb3-contrib==2.9.2 'gymnasium[box2d]==1.4.0'

One teacher, and all of them, two at a time:

    ../venvs/sb3/bin/python scripts/train_teachers.py --algo ppo --env CartPole-v1 --out ../zoo_extra
    ../venvs/sb3/bin/python scripts/train_teachers.py --all --workers 2 --seconds 540 --out ../zoo_extra

`--jobs FILE` is `--all` with a list of one's own; a line is `ALGO ENV [SEED [SECONDS]]`, `#` starts a comment.
`--list` prints what can be trained. `--envpool` steps the Box2D environments of PPO and A2C with EnvPool
(`pip install envpool==1.2.5` in the same place), which is five times faster; evaluating and scoring are always on
gymnasium's own environments. A training ends at the first of: its number of steps, the clock, the aim
(the return at which the environment counts as solved).

Each teacher becomes a folder `OUT/ALGO/ENV/`:

    model.zip          the policy, as `model.save` writes it
    vecnormalize.pkl   the statistics of VecNormalize, where the training used it
    score.json         the deterministic return over 50 episodes that chose nothing, and how the policy was made
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

SELECT_EPISODES, SELECT_SEED = 20, 500_000  # the episodes that choose the policy that is kept ...
SCORE_EPISODES, SCORE_SEED = 50, 900_000  # ... and the ones that only score it
EVALUATIONS = 25  # at most, in one training


@dataclass(frozen=True)
class Recipe:
    """How one algorithm is trained on one environment; `settings` go to the algorithm's constructor."""

    steps: int
    aim: float
    settings: dict[str, Any] = field(default_factory=dict)
    envs: int = 1
    normalize: bool = False
    pool: bool = False  # EnvPool may step the environments


@dataclass(frozen=True)
class Linear:
    """RL Zoo's `lin_X`: X at the start of the training, 0 at its end."""

    start: float

    def __call__(self, remaining: float) -> float:
        """The learning rate, where `remaining` of 1 is still to come."""
        return remaining * self.start


CARTPOLE, ACROBOT, CAR, PENDULUM = "CartPole-v1", "Acrobot-v1", "MountainCar-v0", "Pendulum-v1"
LANDER, LANDER_C, WALKER = "LunarLander-v3", "LunarLanderContinuous-v3", "BipedalWalker-v3"
INVADERS = "MinAtar/SpaceInvaders-v1"

WIDE = {"net_arch": [256, 256]}
WIDE_PPO = dict(policy_kwargs=WIDE)
SMALL = dict(batch_size=128, policy_kwargs=dict(net_arch=[64, 64]))  # a quarter of the time of 256x256, for Pendulum
PPO_LANDER = dict(  # RL Zoo's, but for larger batches with a higher learning rate: a quarter of the updates
    n_steps=512, batch_size=256, gae_lambda=0.98, gamma=0.999, n_epochs=4, ent_coef=0.01, learning_rate=Linear(1e-3),
)  # fmt: skip
Q_CAR = dict(
    learning_rate=4e-3, batch_size=128, buffer_size=10_000, learning_starts=1000, gamma=0.98, train_freq=16,
    target_update_interval=600, gradient_steps=8, exploration_fraction=0.2, exploration_final_eps=0.07,
)  # fmt: skip
Q_CARTPOLE = dict(
    learning_rate=2.3e-3, batch_size=64, buffer_size=100_000, learning_starts=1000, gamma=0.99, train_freq=256,
    target_update_interval=10, gradient_steps=128, exploration_fraction=0.16, exploration_final_eps=0.04,
)  # fmt: skip
Q_EVERY_4 = dict(
    learning_rate=6.3e-4, batch_size=128, buffer_size=50_000, learning_starts=100, gamma=0.99, train_freq=4,
    target_update_interval=250, gradient_steps=2, exploration_fraction=0.12, exploration_final_eps=0.1,
)  # fmt: skip
SDE = dict(use_sde=True, sde_sample_freq=4)

RECIPES: dict[tuple[str, str], Recipe] = {
    # CartPole-v1: 500 is the most there is
    ("ppo", CARTPOLE): Recipe(100_000, 500, dict(
        n_steps=32, batch_size=256, gae_lambda=0.8, gamma=0.98, n_epochs=20, learning_rate=Linear(1e-3),
        clip_range=Linear(0.2)), envs=8),
    ("a2c", CARTPOLE): Recipe(500_000, 500, {}, envs=8),
    ("dqn", CARTPOLE): Recipe(100_000, 500, Q_CARTPOLE | dict(policy_kwargs=WIDE)),
    ("trpo", CARTPOLE): Recipe(200_000, 500, dict(
        n_steps=512, batch_size=512, cg_damping=1e-3, gae_lambda=0.98, n_critic_updates=20, learning_rate=1e-3),
        envs=2),
    ("recurrent_ppo", CARTPOLE): Recipe(200_000, 500, dict(
        n_steps=64, batch_size=256, gae_lambda=0.8, gamma=0.98, n_epochs=10, learning_rate=Linear(1e-3),
        policy_kwargs=dict(lstm_hidden_size=32, enable_critic_lstm=False, net_arch=[32])), envs=8),
    # Acrobot-v1: solved at -100, good policies reach about -80
    ("ppo", ACROBOT): Recipe(1_000_000, -79, dict(n_steps=256, gae_lambda=0.94, n_epochs=4), envs=16, normalize=True),
    ("a2c", ACROBOT): Recipe(500_000, -79, {}, envs=16, normalize=True),
    ("dqn", ACROBOT): Recipe(100_000, -79, Q_EVERY_4 | dict(policy_kwargs=WIDE)),
    ("trpo", ACROBOT): Recipe(200_000, -79, dict(n_steps=1024, gae_lambda=0.95), envs=2),
    # MountainCar-v0: solved at -110, good policies reach about -100
    ("ppo", CAR): Recipe(1_000_000, -103, dict(n_steps=16, gae_lambda=0.98, n_epochs=4), envs=16, normalize=True),
    ("dqn", CAR): Recipe(200_000, -106, Q_CAR | dict(policy_kwargs={"net_arch": [64, 64]})),
    ("qrdqn", CAR): Recipe(200_000, -106, Q_CAR | dict(policy_kwargs={"net_arch": [64, 64], "n_quantiles": 10})),
    # Pendulum-v1: good policies reach about -150, and -183 on the episodes that choose
    ("ppo", PENDULUM): Recipe(200_000, -184, SDE | dict(
        n_steps=1024, gae_lambda=0.95, gamma=0.9, learning_rate=1e-3), envs=4),
    ("a2c", PENDULUM): Recipe(1_000_000, -184, dict(
        n_steps=8, gae_lambda=0.9, vf_coef=0.4, gamma=0.9, learning_rate=Linear(7e-4), use_sde=True,
        policy_kwargs=dict(log_std_init=-2, ortho_init=False)), envs=8, normalize=True),
    ("sac", PENDULUM): Recipe(12_000, -184, dict(learning_rate=1e-3) | SMALL),
    ("td3", PENDULUM): Recipe(15_000, -184, dict(
        gamma=0.98, learning_starts=1000, learning_rate=1e-3, noise=0.1) | SMALL),
    ("tqc", PENDULUM): Recipe(12_000, -184, dict(learning_rate=1e-3) | SMALL),
    ("crossq", PENDULUM): Recipe(12_000, -184, dict(learning_rate=1e-3) | SMALL),
    # LunarLander, both kinds: solved at 200
    ("ppo", LANDER): Recipe(1_000_000, 262, PPO_LANDER, envs=16, pool=True),
    ("a2c", LANDER): Recipe(1_000_000, 250, dict(
        gamma=0.995, n_steps=5, learning_rate=Linear(8.3e-4), ent_coef=1e-5), envs=8, pool=True),
    ("dqn", LANDER): Recipe(300_000, 260, Q_EVERY_4 | dict(policy_kwargs=WIDE)),
    ("ppo", LANDER_C): Recipe(1_000_000, 275, PPO_LANDER, envs=16, pool=True),
    ("sac", LANDER_C): Recipe(300_000, 275, dict(
        batch_size=256, learning_rate=Linear(7.3e-4), tau=0.01, learning_starts=5000, train_freq=1, gradient_steps=2,
        policy_kwargs=dict(net_arch=[128, 128])), envs=4),
    # BipedalWalker-v3: solved at 300; batches of 512 with a higher rate take a sixth of the time of RL Zoo's 64
    ("ppo", WALKER): Recipe(5_000_000, 295, dict(
        n_steps=1024, batch_size=512, gae_lambda=0.95, gamma=0.999, n_epochs=10, ent_coef=0.0,
        learning_rate=Linear(7e-4), clip_range=0.18), envs=32, normalize=True, pool=True),
    # MinAtar: there is no most; a random policy reaches 4, the paper's DQN about 50 in 5 million frames
    ("ppo", INVADERS): Recipe(2_000_000, 100, WIDE_PPO | dict(
        n_steps=128, batch_size=512, gae_lambda=0.95, gamma=0.99, n_epochs=4, ent_coef=0.01,
        learning_rate=Linear(1e-3), clip_range=0.2), envs=32),
}  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One teacher to train."""

    algo: str
    env: str
    seed: int
    seconds: float
    envpool: bool = False


def register(env_id: str) -> None:
    """Make gymnasium know MinAtar's games: the package only registers them when it is told to (`pip install minatar`)."""
    import gymnasium

    if env_id.startswith("MinAtar/") and env_id not in gymnasium.registry:
        import minatar.gym

        minatar.gym.register_envs()


def algorithm(name: str) -> Any:
    """The class of an algorithm, from stable-baselines3 or sb3-contrib."""
    import sb3_contrib
    import stable_baselines3

    known = {
        "ppo": stable_baselines3.PPO, "a2c": stable_baselines3.A2C, "dqn": stable_baselines3.DQN,
        "sac": stable_baselines3.SAC, "td3": stable_baselines3.TD3, "trpo": sb3_contrib.TRPO,
        "qrdqn": sb3_contrib.QRDQN, "tqc": sb3_contrib.TQC, "crossq": sb3_contrib.CrossQ, "recurrent_ppo": sb3_contrib.RecurrentPPO,
    }  # fmt: skip
    return known[name]


def returns(model: Any, env_id: str, seeds: range) -> Any:
    """The deterministic return of one episode of each seed; all episodes are played side by side.

    Every seed plays exactly one episode to its end, so that short episodes aren't counted more often.
    """
    import gymnasium
    import numpy as np

    normalizer = model.get_vec_normalize_env()
    envs = [gymnasium.make(env_id) for _ in seeds]
    obs = np.stack([env.reset(seed=seed)[0] for env, seed in zip(envs, seeds, strict=True)])
    total, alive = np.zeros(len(envs)), np.ones(len(envs), dtype=bool)
    state, starts = None, np.ones(len(envs), dtype=bool)
    while alive.any():
        seen = obs if normalizer is None else normalizer.normalize_obs(obs)
        actions, state = model.predict(seen, state, starts, deterministic=True)
        starts[:] = False
        for i in np.flatnonzero(alive):
            obs[i], reward, terminated, truncated, _ = envs[i].step(actions[i])
            total[i] += float(reward)
            alive[i] = not (terminated or truncated)
    for env in envs:
        env.close()
    return total


def keep_best(job: Job, recipe: Recipe, folder: Path, begun: float) -> Any:
    """A callback that evaluates now and then, saves the policy when it is the best so far, and ends the training."""
    from stable_baselines3.common.callbacks import BaseCallback

    class KeepBest(BaseCallback):
        def __init__(self) -> None:
            super().__init__()
            self.best, self.best_steps = float("-inf"), 0
            self.next_steps, self.next_time = recipe.steps // EVALUATIONS, 0.0

        def look(self) -> None:
            started = time.monotonic()
            seeds = range(SELECT_SEED, SELECT_SEED + SELECT_EPISODES)
            score = float(returns(self.model, job.env, seeds).mean())
            print(f"{self.num_timesteps:>9} steps {time.monotonic() - begun:6.0f} s  return {score:9.1f}", flush=True)
            if score > self.best:
                self.best, self.best_steps = score, self.num_timesteps
                save(self.model, folder)
            self.next_steps = self.num_timesteps + recipe.steps // EVALUATIONS
            self.next_time = time.monotonic() + 6 * (time.monotonic() - started)  # a seventh of the time, at most

        def _on_step(self) -> bool:
            late = time.monotonic() - begun > job.seconds
            if late or (self.num_timesteps >= self.next_steps and time.monotonic() >= self.next_time):
                self.look()
            return not late and self.best < recipe.aim

        def _on_training_end(self) -> None:
            if self.next_time < time.monotonic():
                self.look()

    return KeepBest()


def pooled(env_id: str, count: int, seed: int) -> Any:
    """EnvPool's environments as one of stable-baselines3's vector environments."""
    import envpool
    import gymnasium
    import numpy as np
    from stable_baselines3.common.vec_env import VecEnv

    class Pool(VecEnv):
        def __init__(self) -> None:
            self.pool = envpool.make(env_id, env_type="gymnasium", num_envs=count, seed=seed, num_threads=1)
            example = gymnasium.make(env_id)  # EnvPool's own spaces have other bounds
            super().__init__(count, example.observation_space, example.action_space)

        def reset(self) -> Any:
            return self.pool.reset()[0]

        def step_async(self, actions: Any) -> None:
            self.actions = actions

        def step_wait(self) -> Any:
            obs, rewards, terminated, truncated, _ = self.pool.step(self.actions)
            infos: list[dict[str, Any]] = [{} for _ in range(count)]
            ended = np.flatnonzero(terminated | truncated)
            for i in ended:
                infos[i] = {
                    "terminal_observation": obs[i].copy(),
                    "TimeLimit.truncated": bool(truncated[i] and not terminated[i]),
                }
            if len(ended):
                obs = obs.copy()
                obs[ended] = self.pool.reset(ended)[0]
            return obs, rewards, terminated | truncated, infos

        def close(self) -> None:
            self.pool.close()

        def get_attr(self, name: str, indices: Any = None) -> list[Any]:
            return [getattr(self, name, None)] * count

        def set_attr(self, name: str, value: Any, indices: Any = None) -> None:
            raise NotImplementedError

        def env_method(self, name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
            raise NotImplementedError

        def env_is_wrapped(self, wrapper: Any, indices: Any = None) -> list[bool]:
            return [False] * count

    return Pool()


def save(model: Any, folder: Path) -> None:
    """Write the model and its normaliser, so that a reader never meets half a file."""
    model.save(folder / "model.part.zip")
    os.replace(folder / "model.part.zip", folder / "model.zip")
    normalizer = model.get_vec_normalize_env()
    if normalizer is not None:
        normalizer.save(str(folder / "vecnormalize.part"))
        os.replace(folder / "vecnormalize.part", folder / "vecnormalize.pkl")


def load(job: Job, folder: Path) -> Any:
    """Read the saved policy back, with its normaliser where there is one."""
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import VecNormalize

    env = make_vec_env(job.env)
    if (folder / "vecnormalize.pkl").exists():
        env = VecNormalize.load(str(folder / "vecnormalize.pkl"), env)
        env.training = False
    return algorithm(job.algo).load(folder / "model.zip", env=env, device="cpu")


def make_model(job: Job, recipe: Recipe) -> Any:
    """The untrained model of a recipe."""
    import numpy as np
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.noise import NormalActionNoise
    from stable_baselines3.common.vec_env import VecNormalize

    pool = job.envpool and recipe.pool
    env: Any = pooled(job.env, recipe.envs, job.seed) if pool else make_vec_env(job.env, recipe.envs, seed=job.seed)
    settings = dict(recipe.settings)
    if recipe.normalize:
        env = VecNormalize(env, gamma=settings.get("gamma", 0.99))
    if "noise" in settings:
        size = env.action_space.shape
        settings["action_noise"] = NormalActionNoise(np.zeros(size), np.full(size, settings.pop("noise")))
    policy = "MlpLstmPolicy" if job.algo == "recurrent_ppo" else "MlpPolicy"
    return algorithm(job.algo)(policy, env, seed=job.seed, device="cpu", **settings)


def train(job: Job, out: Path) -> dict[str, Any]:
    """Train one teacher into its folder and return what `score.json` says."""
    import gymnasium
    import sb3_contrib
    import stable_baselines3
    import torch

    torch.set_num_threads(1)
    register(job.env)
    begun = time.monotonic()
    recipe = RECIPES[job.algo, job.env]
    folder = out / job.algo / job.env
    folder.mkdir(parents=True, exist_ok=True)
    for old in ("model.zip", "vecnormalize.pkl", "score.json"):
        (folder / old).unlink(missing_ok=True)
    model = make_model(job, recipe)
    best = keep_best(job, recipe, folder, begun)
    model.learn(recipe.steps, callback=best)
    trained = time.monotonic() - begun
    scores = returns(load(job, folder), job.env, range(SCORE_SEED, SCORE_SEED + SCORE_EPISODES))
    report = {
        "algo": job.algo, "env": job.env, "seed": job.seed, "normalized": recipe.normalize,
        "return": {"mean": round(float(scores.mean()), 2), "std": round(float(scores.std()), 2),
                   "worst": round(float(scores.min()), 2), "best": round(float(scores.max()), 2),
                   "episodes": len(scores), "first_seed": SCORE_SEED},
        "selected_at": {"env_steps": best.best_steps, "return": round(best.best, 2), "episodes": SELECT_EPISODES},
        "env_steps": model.num_timesteps, "envpool": job.envpool and recipe.pool, "aim": recipe.aim,
        "seconds": round(trained, 1),
        "settings": {key: repr(value) for key, value in asdict(recipe)["settings"].items()} | {"n_envs": recipe.envs},
        "network": repr(model.policy).splitlines(),
        "versions": {m.__name__: m.__version__ for m in (stable_baselines3, sb3_contrib, gymnasium, torch)},
    }  # fmt: skip
    (folder / "score.json").write_text(json.dumps(report, indent=1) + "\n")
    return report


def line(report: dict[str, Any]) -> str:
    """One teacher's result, for people."""
    score = report["return"]
    return (
        f"{report['algo']:14} {report['env']:26} seed {report['seed']:<3} {score['mean']:8.1f} ± {score['std']:5.1f}"
        f"  worst {score['worst']:8.1f}  {report['env_steps']:>8} steps {report['seconds']:6.0f} s"
    )


def train_many(jobs: list[Job], out: Path, workers: int) -> int:
    """Train every job in a process of its own, `workers` at a time; returns how many failed."""
    (out / "logs").mkdir(parents=True, exist_ok=True)

    def one(job: Job) -> bool:
        command = [sys.executable, __file__, "--algo", job.algo, "--env", job.env, "--seed", str(job.seed)]
        command += ["--seconds", str(job.seconds), "--out", str(out)] + ["--envpool"] * job.envpool
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        log = out / "logs" / f"{job.algo}-{job.env.replace('/', '-')}.log"
        with log.open("w") as stream:
            done = subprocess.run(command, check=False, stdout=stream, stderr=subprocess.STDOUT, env=os.environ | threads)
        score = out / job.algo / job.env / "score.json"
        print(line(json.loads(score.read_text())) if done.returncode == 0 else f"{job} failed, see {log}", flush=True)
        return done.returncode == 0

    with ThreadPoolExecutor(workers) as pool:
        return sum(not done for done in pool.map(one, jobs))


def read_jobs(text: str, seed: int, seconds: float, envpool: bool) -> list[Job]:
    """The jobs of a file: `ALGO ENV [SEED [SECONDS]]` a line."""
    jobs = []
    for number, row in enumerate(text.splitlines(), 1):
        words = row.split("#")[0].split()
        if not words:
            continue
        if len(words) not in (2, 3, 4) or tuple(words[:2]) not in RECIPES:
            raise SystemExit(f"line {number}: expected ALGO ENV [SEED [SECONDS]] of --list, got {row!r}")
        defaults: tuple[Callable[[str], Any], ...] = (int, float)
        given = [kind(word) for kind, word in zip(defaults, words[2:], strict=False)]
        jobs.append(Job(words[0], words[1], *(given + [seed, seconds][len(given) :]), envpool))
    return jobs


def main() -> int:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--algo", help="train one teacher with this algorithm (with --env)")
    which.add_argument("--jobs", type=Path, help="train the teachers of this file, a line each: ALGO ENV [SEED [SECONDS]]")
    which.add_argument("--all", action="store_true", help="train every teacher of --list")
    which.add_argument("--list", action="store_true", help="print what can be trained, and end")
    parser.add_argument("--env", help="the environment's id, with --algo")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=540, help="wall-clock limit of one training (default: 540)")
    parser.add_argument("--envpool", action="store_true", help="step the Box2D environments of PPO and A2C with EnvPool")
    parser.add_argument("--workers", type=int, default=1, help="trainings at a time, one thread each (default: 1)")
    parser.add_argument("--out", type=Path, default=Path("zoo_extra"), help="where the folders go (default: zoo_extra)")
    options = parser.parse_args()
    if options.list:
        for (algo, env), recipe in RECIPES.items():
            normalizer = "VecNormalize" if recipe.normalize else ""
            print(f"{algo:14} {env:26} {recipe.steps:>9} steps  aim {recipe.aim:6}  {normalizer}".rstrip())
        return 0
    if options.algo:
        if (options.algo, options.env) not in RECIPES:
            parser.error(f"no recipe for {options.algo} on {options.env}; --list prints those there are")
        print(line(train(Job(options.algo, options.env, options.seed, options.seconds, options.envpool), options.out)))
        return 0
    text = options.jobs.read_text() if options.jobs else "\n".join(f"{algo} {env}" for algo, env in RECIPES)
    jobs = read_jobs(text, options.seed, options.seconds, options.envpool)
    return min(1, train_many(jobs, options.out, options.workers))


if __name__ == "__main__":
    sys.exit(main())
