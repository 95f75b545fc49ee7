"""DAgger by imitation 1.0.1: `SimpleDAggerTrainer`, a round at a time, measured after each epoch."""

from __future__ import annotations

import os
import tempfile

import numpy as np
import torch
from common import STUDENT, CountingVecEnv, Reached, Run, arguments, load_teacher
from imitation.algorithms import bc
from imitation.algorithms.dagger import ExponentialBetaSchedule, LinearBetaSchedule, SimpleDAggerTrainer
from imitation.util import logger
from stable_baselines3.common.policies import ActorCriticPolicy


def main() -> None:
    """One run, by the options; prints its line."""
    options = arguments(
        "imitation-dagger",
        envs=8,
        round_episodes=8,
        round_steps=500,
        epochs=6,
        beta_rounds=2,
        beta_decay=0.0,
        batch_size=64,
        learning_rate=1e-2,
        ent_weight=0.0,
        relu=0,
        every=2,
        rounds=200,
    )
    torch.manual_seed(options.seed)
    rng = np.random.default_rng(options.seed)
    venv = CountingVecEnv(options.envs, options.seed)
    teacher = load_teacher(options.teacher, venv.observation_space, venv.action_space)
    run = Run("imitation-dagger", options, teacher, venv)

    run.start()
    student = ActorCriticPolicy(
        venv.observation_space,
        venv.action_space,
        lr_schedule=lambda _: options.learning_rate,
        net_arch={"pi": STUDENT, "vf": []},
        activation_fn=torch.nn.ReLU if options.relu else torch.nn.Tanh,
    )
    quiet = logger.configure(format_strs=[])
    cloning = bc.BC(
        observation_space=venv.observation_space,
        action_space=venv.action_space,
        rng=rng,
        policy=student,
        batch_size=options.batch_size,
        optimizer_kwargs={"lr": options.learning_rate},
        ent_weight=options.ent_weight,
        device="cpu",
        custom_logger=quiet,
    )
    if options.beta_decay:
        beta = ExponentialBetaSchedule(options.beta_decay)
    else:
        beta = LinearBetaSchedule(options.beta_rounds)
    epochs = 0

    def on_epoch_end() -> None:
        nonlocal epochs
        epochs += 1
        if epochs % options.every == 0:
            run.checkpoint(student)

    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None  # demonstrations go through files
    with tempfile.TemporaryDirectory(dir=memory) as scratch:
        trainer = SimpleDAggerTrainer(
            venv=venv,
            scratch_dir=scratch,
            expert_policy=teacher,
            rng=rng,
            bc_trainer=cloning,
            beta_schedule=beta,
            custom_logger=quiet,
        )
        try:
            for _ in range(options.rounds):
                trainer.train(  # one step is fewer than any round has: exactly one round
                    total_timesteps=1,
                    rollout_round_min_episodes=options.round_episodes,
                    rollout_round_min_timesteps=options.round_steps,
                    bc_train_kwargs={
                        "n_epochs": options.epochs,
                        "on_epoch_end": on_epoch_end,
                        "log_rollouts_venv": None,
                        "log_interval": 10**9,
                        "progress_bar": False,
                    },
                )
        except Reached:
            pass
    run.report(student)


if __name__ == "__main__":
    main()
