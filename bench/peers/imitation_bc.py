"""Behaviour cloning by imitation 1.0.1: the teacher's episodes once, then `BC.train` on them."""

from __future__ import annotations

import numpy as np
import torch
from common import STUDENT, CountingVecEnv, Reached, Run, arguments, load_teacher
from imitation.algorithms import bc
from imitation.data import rollout
from imitation.util import logger
from stable_baselines3.common.policies import ActorCriticPolicy


class Batches:
    """Shuffled whole batches, which `BC` takes as demonstrations: no Python per state.

    (Given transitions, it makes a DataLoader that collates them one by one, about five times slower.)
    """

    def __init__(self, obs: np.ndarray, acts: np.ndarray, size: int):
        self.obs, self.acts, self.size = torch.as_tensor(obs), torch.as_tensor(acts), size

    def __iter__(self):
        for index in torch.randperm(len(self.obs)).split(self.size):
            if len(index) == self.size:
                yield {"obs": self.obs[index], "acts": self.acts[index]}


def main() -> None:
    """One run, by the options; prints its line."""
    options = arguments(
        "imitation-bc",
        envs=12,
        demonstrations=12,
        sampled=1,
        whole_batches=1,
        batch_size=256,
        learning_rate=2e-2,
        ent_weight=0.0,
        relu=0,
        every=50,
        epochs=2000,
    )
    torch.manual_seed(options.seed)
    rng = np.random.default_rng(options.seed)
    venv = CountingVecEnv(options.envs, options.seed)
    teacher = load_teacher(options.teacher, venv.observation_space, venv.action_space)
    run = Run("imitation-bc", options, teacher, venv)

    run.start()
    demonstrations = rollout.flatten_trajectories(
        rollout.rollout(
            teacher,
            venv,
            rollout.make_sample_until(min_episodes=options.demonstrations),
            rng=rng,
            deterministic_policy=not options.sampled,
            unwrap=False,
            exclude_infos=True,
            verbose=False,
        )
    )
    if options.whole_batches:
        demonstrations = Batches(demonstrations.obs, demonstrations.acts, options.batch_size)
    student = ActorCriticPolicy(
        venv.observation_space,
        venv.action_space,
        lr_schedule=lambda _: options.learning_rate,
        net_arch={"pi": STUDENT, "vf": []},
        activation_fn=torch.nn.ReLU if options.relu else torch.nn.Tanh,
    )
    trainer = bc.BC(
        observation_space=venv.observation_space,
        action_space=venv.action_space,
        rng=rng,
        policy=student,
        demonstrations=demonstrations,
        batch_size=options.batch_size,
        optimizer_kwargs={"lr": options.learning_rate},
        ent_weight=options.ent_weight,
        device="cpu",
        custom_logger=logger.configure(format_strs=[]),
    )
    batches = 0

    def on_batch_end() -> None:
        nonlocal batches
        batches += 1
        if batches % options.every == 0:
            run.checkpoint(student)

    try:
        trainer.train(n_epochs=options.epochs, on_batch_end=on_batch_end, progress_bar=False, log_interval=10**9)
        run.checkpoint(student)
    except Reached:
        pass
    run.report(student)


if __name__ == "__main__":
    main()
