"""A teacher of Pong that was never trained: it reads the machine's memory, and plans where its paddle will be when the ball comes.

    distillrl distill scripts.pong_teacher:Rule --env ALE/Pong-v5 --student cnn:rusu-7      # sees frames, is taught by memory
    python scripts/pong_teacher.py --episodes 30                                            # what the rule itself earns

What it reads (of the 128 bytes, found by watching them): the ball's column 49 and row 54, its speeds 58 (leftwards) and 56 in places a frame, its own
paddle's row 60, and 8, which counts frames. What it can't read is where the paddle's knob stands: a game paddle is a knob, which a joystick's
direction turns by 5.6 rows a frame, and every second frame the paddle goes half of the way that is left to it. So it remembers the knob, and
tells by each new row which way it was turned, whoever turned it.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from distillrl.actions import Categorical
from distillrl.policies import ACTION, Memory
from distillrl.records import ActionSpace, Group, Prediction, Spec

COUNTER, BALL_X, BALL_Y, SPEED_Y, SPEED_X, PADDLE = 8, 49, 54, 56, 58, 60
TURN = 11.2
"""Rows that the knob is turned in two frames."""
TOP, BOTTOM = 37.5, 202.5
"""Rows of the knob's ends."""
WALLS = (44.0, 206.0)
FACE = 188.0
"""The column in which the ball meets the paddle."""
AHEAD = 4
"""Actions that are planned, of four frames each."""
PLANS = torch.tensor(list(itertools.product((-1.0, 0.0, 1.0), repeat=AHEAD)))
SHARPNESS = 1.5
"""Rows of missing by which an action is e times less likely."""
NEVER = -30.0


class Rule:
    """A policy (distillrl.policies.Policy): it sees ``ram``, and remembers where paddle and knob were and how it was turned."""

    spec = Spec({"ram": Group((128,), "uint8", (), 0.0, 255.0)}, ActionSpace("discrete", n=6))
    gives = frozenset({"action", "distribution"})

    def __init__(self, edge: float = 0.0) -> None:
        self.edge = edge
        """Rows from the paddle's upper end at which it wants the ball: near an end it is sent off steeply."""
        self.info: dict[str, Any] = {"format": "a rule that reads Pong's memory"}

    def init(self, n: int) -> Memory:
        """{"paddle", "knob", "push"}: [n] each."""
        return {name: torch.zeros(n) for name in ("paddle", "knob", "push")}

    def act(self, obs: Any, memory: Memory, starts: Tensor | None, wants: frozenset[str] = ACTION) -> tuple[Prediction, Memory]:
        """``ram`` [n, 128] → the distribution of actions [n]: by how much each of them lets the paddle miss, at best."""
        ram = obs["ram"].float()
        late = ram[:, COUNTER] % 2 == 0
        paddle, knob, push = _watched(ram[:, PADDLE], memory, starts, late)
        row, halves = self.aim(ram)
        missed = _planned(paddle, knob, push, late, halves)
        cost = (missed - row[:, None]).abs() + 0.05 * PLANS.abs().sum(1)
        up, stay, down = cost.unflatten(1, (3, -1)).amin(-1).unbind(1)
        logits = torch.full((len(ram), 6), NEVER)
        logits[:, [0, 2, 3]] = -torch.stack([stay, up, down], 1) / SHARPNESS
        return Prediction(Categorical(logits)), {"paddle": paddle, "knob": knob, "push": push}

    def aim(self, ram: Tensor) -> tuple[Tensor, Tensor]:
        """[n] the paddle's row that is wanted, and in how many halves of an action (two frames each) it is."""
        x, y = ram[:, BALL_X], ram[:, BALL_Y]
        right, down = -_signed(ram[:, SPEED_X]), _signed(ram[:, SPEED_Y])
        comes = (right > 0) & (x > 0) & (y > 0) & (x < FACE + 4)
        frames = torch.where(comes, (FACE - x).clamp_min(0) / right.clamp_min(1), torch.zeros(()))
        low, high = WALLS
        folded = (y + down * frames - low).remainder(2 * (high - low))
        there = low + torch.where(folded > high - low, 2 * (high - low) - folded, folded)
        waits = torch.where((x > 0) & (y > 0), 0.5 * (y - 8) + 62.5, torch.full((), 125.0))
        row = torch.where(comes, there - self.edge, waits).clamp(TOP, BOTTOM)
        return row, torch.where(comes, (frames / 2).round().clamp_min(1), torch.full((), 12.0))


def _signed(byte: Tensor) -> Tensor:
    return torch.where(byte > 127, byte - 256, byte)


def _turned(paddle: Tensor, knob: Tensor, push: Tensor, before: Tensor, late: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """An action's two halves: (paddle, knob) after each. Where the paddle moves in odd frames, the first of them is still half of the action before."""
    knob = (knob + TURN / 2 * (torch.where(late, push, before) + push)).clamp(TOP, BOTTOM)
    paddle = (paddle + knob) / 2
    after = (knob + TURN * push).clamp(TOP, BOTTOM)
    return paddle, knob, (paddle + after) / 2, after


def _watched(row: Tensor, memory: Memory, starts: Tensor | None, late: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[n] paddle, knob and push now: of the three pushes the one that explains the new row best."""
    before = {name: value[:, None] for name, value in memory.items()}
    pushes = torch.tensor([-1.0, 0.0, 1.0]).expand(len(row), 3)
    _, _, paddle, knob = _turned(before["paddle"], before["knob"], pushes, before["push"], late[:, None])
    best = (paddle - row[:, None]).abs().argmin(1, keepdim=True)
    knob = (knob.gather(1, best) + 0.8 * (row[:, None] - paddle.gather(1, best))).clamp(TOP, BOTTOM)[:, 0]
    push = pushes.gather(1, best)[:, 0]
    begins = torch.zeros_like(late) if starts is None else starts
    return row, torch.where(begins, row, knob), torch.where(begins, 0.0, push)


def _planned(paddle: Tensor, knob: Tensor, push: Tensor, late: Tensor, halves: Tensor) -> Tensor:
    """[n, plans] the paddle's row after so many halves, under each plan and then nothing."""
    place, turned = (x[:, None].expand(-1, len(PLANS)) for x in (paddle, knob))
    before, which, wanted = push[:, None], late[:, None], halves[:, None]
    found = place
    for i in range(AHEAD):
        first, turned, place, after = _turned(place, turned, PLANS[:, i], before, which)
        found = torch.where(wanted == 2 * i + 1, first, torch.where(wanted == 2 * i + 2, place, found))
        turned, before = after, PLANS[:, i]
    rest = torch.where(which, turned, (turned + TURN / 2 * before).clamp(TOP, BOTTOM))
    later = rest + (place - rest) * 0.5 ** (wanted - 2 * AHEAD).clamp_min(0)
    return torch.where(wanted > 2 * AHEAD, later, found)


if __name__ == "__main__":
    import argparse

    from distillrl import evaluation
    from distillrl.envs import EnvOptions, Seeds

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=30)
    parser.add_argument("--edge", type=float, default=0.0)
    parser.add_argument("--sticky", type=float, default=0.0)
    given = parser.parse_args()
    played = evaluation.play(Rule(given.edge), EnvOptions("ALE/Pong-v5", {"sticky": given.sticky}, "gymnasium:1"), given.episodes, Seeds(0, "verdict"))
    print(f"{given.episodes} games: {played.returns.mean():.2f} on average, {played.returns.min():.0f} to {played.returns.max():.0f}; {played.lengths.mean():.0f} steps a game, {played.seconds:.0f} s")
