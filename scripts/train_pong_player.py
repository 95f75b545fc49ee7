"""How the weights of ``scripts/pong_player.py`` are made: a rule is cloned, then PPO (Schulman 2017) goes on by the game's reward.

    python scripts/train_pong_player.py --steps 820000 --out examples/pong_player.safetensors

While it plays its readings are blurred: each reading of its paddle's row by ``--paddle-error``, where the ball will come by ``--landing-error`` (which lasts,
with 0.9 of it left after a step), both standard deviations in rows of the screen. So it learns to play as one must who sees no better.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from scripts.pong_player import FEATURES, HIDDEN, PLAYED, Player, read
from scripts.pong_teacher import Rule
from torch import Tensor, nn

GAMES, STEPS, EPOCHS, PART = 16, 256, 4, 512
DISCOUNT, LAMBDA, CLIP, RATE, LONGEST = 0.99, 0.95, 0.2, 5e-4, 6000
ENTROPY = (0.01, 0.002)
"""The weight of its entropy, at the beginning and at the end."""
CRITIC_FIRST = 8
"""Rounds in which only the critic learns, what the clone is worth."""
LASTS = 0.9


class Games:
    """Games of Pong side by side, by their memory: 1 to 30 idle frames before each, four frames an action."""

    def __init__(self, n: int, seed: int) -> None:
        import ale_py
        from ale_py import ALEInterface, roms

        ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
        self.actions, self.fire = [ale_py.Action.NOOP, ale_py.Action.RIGHT, ale_py.Action.LEFT], ale_py.Action.FIRE
        self.rng, self.machines = np.random.default_rng(seed), [ALEInterface() for _ in range(n)]
        self.score, self.length, self.scores = np.zeros(n), np.zeros(n, dtype=int), list[float]()
        for i, machine in enumerate(self.machines):
            machine.setFloat("repeat_action_probability", 0.0)
            machine.setInt("random_seed", seed * 1000 + i)
            machine.loadROM(roms.get_rom_path("pong"))
            self._begin(i)

    def _begin(self, i: int) -> None:
        self.machines[i].reset_game()
        for _ in range(self.rng.integers(1, 31)):
            self.machines[i].act(self.actions[0])
        self.machines[i].act(self.fire)
        self.score[i] = self.length[i] = 0

    def memory(self) -> Tensor:
        """[n, 128] uint8."""
        return torch.as_tensor(np.stack([machine.getRAM() for machine in self.machines]))

    def step(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[n] of 0 to 2 → the memory, reward, and whether a new game began."""
        reward, over = np.zeros(len(self.machines), np.float32), np.zeros(len(self.machines), dtype=bool)
        for i, machine in enumerate(self.machines):
            reward[i] = sum(machine.act(self.actions[int(action[i])]) for _ in range(4))
            self.score[i] += reward[i]
            self.length[i] += 1
            if machine.game_over() or self.length[i] >= LONGEST:
                self.scores.append(float(self.score[i]))
                over[i] = True
                self._begin(i)
        return self.memory(), torch.as_tensor(reward), torch.as_tensor(over)


@dataclass
class Blurred:
    """What is seen of games, with errors."""

    n: int
    paddle: float
    landing: float
    generator: torch.Generator
    rows: Tensor = field(init=False)
    lasting: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.rows, self.lasting = torch.zeros(self.n, 4), torch.zeros(self.n)

    def __call__(self, ram: Tensor, starts: Tensor) -> Tensor:
        """[n, 20]"""
        new = torch.randn(2, self.n, generator=self.generator)
        self.lasting = LASTS * self.lasting + (1 - LASTS**2) ** 0.5 * new[0]
        seen, self.rows = read(ram, self.rows, starts, self.paddle * new[1], self.landing * self.lasting)
        return seen


def cloned(player: Player, games: Games, blur: Blurred, steps: int = 3000, updates: int = 3000) -> None:
    """The rule plays, a tenth of its actions random; the network learns its distribution from the blurred readings."""
    rule, ram, starts = Rule(), games.memory(), torch.ones(blur.n, dtype=torch.bool)
    remembered, seen, labels = rule.init(blur.n), [], []
    for _ in range(steps):
        told, remembered = rule.act({"ram": ram}, remembered, starts)
        assert told.action is not None
        logits = told.action.logits[:, PLAYED].log_softmax(-1)
        seen.append(blur(ram, starts))
        labels.append(logits)
        random = torch.rand(blur.n, generator=blur.generator) < 0.1
        ram, _, starts = games.step(torch.where(random, torch.randint(0, 3, (blur.n,), generator=blur.generator), logits.argmax(-1)))
    x, y = torch.cat(seen), torch.cat(labels)
    optimiser = torch.optim.Adam(player.parameters(), 1e-3)
    for _ in range(updates):
        i = torch.randint(len(x), (PART,), generator=blur.generator)
        loss = (y[i].exp() * (y[i] - player.layers(x[i]).log_softmax(-1))).sum(-1).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def improved(player: Player, critic: nn.Module, games: Games, blur: Blurred, total: int) -> None:
    """PPO for so many steps of all games together; it says how it goes."""
    optimiser = torch.optim.Adam([*player.parameters(), *critic.parameters()], RATE, eps=1e-5)
    ram, starts, rounds, began = games.memory(), torch.ones(blur.n, dtype=torch.bool), max(1, total // (blur.n * STEPS)), time.perf_counter()
    seen = blur(ram, starts)
    for k in range(rounds):
        left = 1 - k / rounds
        optimiser.param_groups[0]["lr"] = RATE * max(left, 0.05)
        x, action, reward, over = [seen], [], [], []
        with torch.no_grad():
            for _ in range(STEPS):
                action.append(torch.multinomial(player.layers(seen).softmax(-1), 1, generator=blur.generator)[:, 0])
                ram, r, starts = games.step(action[-1])
                seen = blur(ram, starts)
                x, reward, over = [*x, seen], [*reward, r], [*over, starts]
        _learn(player, critic, optimiser, torch.stack(x), torch.stack(action), torch.stack(reward), torch.stack(over), ENTROPY[1] + (ENTROPY[0] - ENTROPY[1]) * left, k < CRITIC_FIRST, blur.generator)
        if k % 25 == 24:
            print(f"{(k + 1) * blur.n * STEPS:9,} steps {time.perf_counter() - began:6.0f} s: {np.mean(games.scores[-32:] or [0]):.2f} on average over the last {min(32, len(games.scores))} games, played by samples", flush=True)


def _learn(player: Player, critic: nn.Module, optimiser: torch.optim.Optimizer, x: Tensor, action: Tensor, reward: Tensor, over: Tensor, entropy: float, critic_only: bool, generator: torch.Generator) -> None:
    with torch.no_grad():
        value, before = critic(x)[..., 0], player.layers(x[:-1]).log_softmax(-1).gather(-1, action[..., None])[..., 0].flatten()
        advantage, last = torch.zeros_like(reward), torch.zeros_like(reward[0])
        for t in reversed(range(len(reward))):
            goes_on = 1 - over[t].float()
            last = reward[t] + DISCOUNT * value[t + 1] * goes_on - value[t] + DISCOUNT * LAMBDA * goes_on * last
            advantage[t] = last
        wanted, gain = (advantage + value[:-1]).flatten(), advantage.flatten()
    flat, played = x[:-1].flatten(0, 1), action.flatten()
    for _ in range(EPOCHS):
        for i in torch.randperm(len(flat), generator=generator).split(PART):
            loss = 0.5 * (critic(flat[i])[:, 0] - wanted[i]).square().mean()
            if not critic_only:
                logs = player.layers(flat[i]).log_softmax(-1)
                ratio = (logs.gather(1, played[i, None])[:, 0] - before[i]).exp()
                normal = (gain[i] - gain[i].mean()) / (gain[i].std() + 1e-8)
                loss = loss - torch.minimum(ratio * normal, ratio.clamp(1 - CLIP, 1 + CLIP) * normal).mean() + entropy * (logs.exp() * logs).sum(-1).mean()
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_([*player.parameters(), *critic.parameters()], 0.5)
            optimiser.step()


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=820_000)
    parser.add_argument("--paddle-error", type=float, default=0.7)
    parser.add_argument("--landing-error", type=float, default=1.2)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(given.seed)
    player = Player(weights=None)
    critic = nn.Sequential(nn.Linear(FEATURES, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 1))
    for layer in (player.layers[0], player.layers[2], critic[0], critic[2]):
        nn.init.orthogonal_(layer.weight, 2**0.5)
    blur = Blurred(GAMES, given.paddle_error, given.landing_error, torch.Generator().manual_seed(given.seed))
    with torch.no_grad():
        games = Games(GAMES, given.seed)
    cloned(player, games, blur)
    save_file(player.layers.state_dict(), given.out)
    improved(player, critic, Games(GAMES, given.seed + 1), blur, given.steps)
    save_file(player.layers.state_dict(), given.out)


if __name__ == "__main__":
    main()
