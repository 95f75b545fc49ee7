"""PPO + λ·KL(teacher‖student) on stable-baselines3's public classes: Proximal Policy Distillation.

Spigler 2024 (arXiv 2407.15134): the student drives; the loss is PPO's plus
λ · mean(max(r, 1-ε) · KL(teacher‖student)), where r is PPO's ratio and ε its clip range. Written anew,
in whole tensors; the teacher is asked once about each state, after the rollout, in one batch.
"""

from __future__ import annotations

import torch
from common import STUDENT, CountingVecEnv, Reached, Run, Teacher, arguments, load_teacher
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from torch.nn import functional as F


class PPOKL(PPO):
    """PPO whose loss has the KL from a teacher. Discrete actions."""

    teacher: Teacher
    kl_weight: float

    def train(self) -> None:
        """Epochs of minibatches over the rollout, as PPO's, with the distillation term."""
        policy, buffer = self.policy, self.rollout_buffer
        policy.set_training_mode(True)
        self._update_learning_rate(policy.optimizer)
        clip = self.clip_range(self._current_progress_remaining)
        obs, actions, old_log_prob, advantages, returns = (
            torch.as_tensor(buffer.swap_and_flatten(array))
            for array in (
                buffer.observations,
                buffer.actions,
                buffer.log_probs,
                buffer.advantages,
                buffer.returns,
            )
        )
        actions = actions.long()
        old_log_prob, advantages, returns = old_log_prob[:, 0], advantages[:, 0], returns[:, 0]
        with torch.no_grad():
            self.teacher.labels += len(obs)
            target = self.teacher.get_distribution(obs).distribution.logits  # log-probabilities
        for _ in range(self.n_epochs):
            for index in torch.randperm(len(obs)).split(self.batch_size):
                states = obs[index]
                latent_pi, latent_vf = policy.mlp_extractor(states)
                log_probs = F.log_softmax(policy.action_net(latent_pi), -1)
                values = policy.value_net(latent_vf)[:, 0]
                ratio = (log_probs.gather(1, actions[index])[:, 0] - old_log_prob[index]).exp()
                gain = advantages[index]
                gain = (gain - gain.mean()) / (gain.std() + 1e-8)
                surrogate = torch.min(ratio * gain, ratio.clamp(1 - clip, 1 + clip) * gain)
                teacher = target[index]
                kl = (teacher.exp() * (teacher - log_probs)).sum(-1)
                loss = (
                    -surrogate.mean()
                    + self.vf_coef * F.mse_loss(values, returns[index])
                    + self.kl_weight * (ratio.clamp(min=1 - clip) * kl).mean()
                )
                if self.ent_coef:
                    loss = loss + self.ent_coef * (log_probs.exp() * log_probs).sum(-1).mean()
                policy.optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(policy.parameters(), self.max_grad_norm)
                policy.optimizer.step()
        self._n_updates += self.n_epochs


class Measure(BaseCallback):
    """Measures the student before each rollout but the first."""

    def __init__(self, run: Run, every: int):
        super().__init__()
        self.run, self.every = run, every

    def _on_rollout_start(self) -> None:
        updates = self.model._n_updates // self.model.n_epochs
        if updates and updates % self.every == 0:
            self.run.checkpoint(self.model.policy)

    def _on_step(self) -> bool:
        return True


def main() -> None:
    """One run, by the options; prints its line."""
    options = arguments(
        "ppo-kl",
        envs=16,
        steps=64,
        epochs=20,
        batch_size=256,
        learning_rate=4e-3,
        kl_weight=5.0,
        gamma=0.999,
        gae_lambda=0.98,
        ent_coef=0.0,
        vf_coef=0.5,
        max_grad_norm=0.5,
        clip=0.2,
        critic=64,
        relu=0,
        every=1,
        total=1_000_000,
    )
    venv = CountingVecEnv(options.envs, options.seed)
    teacher = load_teacher(options.teacher, venv.observation_space, venv.action_space)
    run = Run("ppo-kl", options, teacher, venv)

    run.start()
    model = PPOKL(
        "MlpPolicy",
        venv,
        n_steps=options.steps,
        n_epochs=options.epochs,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        gamma=options.gamma,
        gae_lambda=options.gae_lambda,
        ent_coef=options.ent_coef,
        vf_coef=options.vf_coef,
        max_grad_norm=options.max_grad_norm,
        clip_range=options.clip,
        policy_kwargs={
            "net_arch": {"pi": STUDENT, "vf": [options.critic] * 2},
            "activation_fn": torch.nn.ReLU if options.relu else torch.nn.Tanh,
        },
        seed=options.seed,
        device="cpu",
    )
    model.teacher, model.kl_weight = teacher, options.kl_weight
    try:
        model.learn(options.total, callback=Measure(run, options.every), log_interval=10**9)
        run.checkpoint(model.policy)
    except Reached:
        pass
    run.report(model.policy)


if __name__ == "__main__":
    main()
