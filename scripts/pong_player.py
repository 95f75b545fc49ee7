"""A teacher of Pong that is a small network: it reads the machine's memory as a player would see the screen, and was taught by a rule and then by its reward.

    distillrl distill scripts.pong_player:Player --env ALE/Pong-v5 --student cnn:rusu-7    # the student sees frames
    python scripts/pong_player.py --episodes 30                                           # what it earns
    python scripts/train_pong_player.py                                                   # how its weights were made

What it is given is what four frames show: where ball, paddle and opponent are and were, and what follows from that, such as the row in which the ball
will come to its paddle. Nothing hidden: neither where the paddle's knob stands nor what was pressed. It was trained with these readings blurred by about a
row of the screen, so it plays in a way that forgives as much, which a student who sees 84 rows in place of 210 needs. Its probabilities are nearly even where
nothing depends on the action.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from distillrl.actions import Categorical
from distillrl.policies import ACTION, Memory
from distillrl.records import ActionSpace, Group, Prediction, Spec

WEIGHTS = Path(__file__).resolve().parent.parent / "examples" / "pong_player.safetensors"
BALL_X, OPPONENT, BALL_Y, SPEED_Y, SPEED_X, PADDLE = 49, 50, 54, 56, 58, 60
"""Where these stand in the 128 bytes."""
TOP_WALL, BETWEEN_WALLS, FACE = 44.0, 162.0, 188.0
"""Rows of the field, and the column in which the ball meets the paddle."""
FAR = 60.0
"""Frames: further in time than this all is alike."""
FEATURES, HIDDEN = 20, 64
PLAYED = (0, 2, 3)
"""Nothing, up and down, of Pong's six actions; the others do the same as these."""
NEVER = -30.0


class Player(nn.Module):
    """A policy (distillrl.policies.Policy): it sees ``ram``, and remembers three rows of its paddle and one of the opponent's."""

    spec = Spec({"ram": Group((128,), "uint8", (), 0.0, 255.0)}, ActionSpace("discrete", n=6))
    gives = frozenset({"action", "distribution", "features.seen"})

    def __init__(self, weights: str | Path | None = WEIGHTS) -> None:
        super().__init__()
        self.info: dict[str, Any] = {"format": "a network that reads Pong's memory"}
        self.layers = nn.Sequential(nn.Linear(FEATURES, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, len(PLAYED)))
        if weights is not None:
            self.layers.load_state_dict(load_file(weights))

    def init(self, n: int) -> Memory:
        """{"rows"}: [n, 4]."""
        return {"rows": torch.zeros(n, 4)}

    def act(self, obs: Any, memory: Memory, starts: Tensor | None, wants: frozenset[str] = ACTION) -> tuple[Prediction, Memory]:
        """``ram`` [n, 128] → the distribution of actions [n]; as features what it was given to see, [n, 20] about from -1 to 1."""
        seen, rows = read(obs["ram"], memory["rows"], starts)
        logits = torch.full((len(seen), 6), NEVER)
        logits[:, PLAYED] = self.layers(seen).log_softmax(-1)
        return Prediction(Categorical(logits), features={"seen": seen}), {"rows": rows}


def read(ram: Tensor, rows: Tensor, starts: Tensor | None, paddle_error: Tensor | float = 0.0, landing_error: Tensor | float = 0.0) -> tuple[Tensor, Tensor]:
    """[n, 128] and the rows before, [n, 4] (the paddle's last three, the opponent's last) → what is seen, [n, 20], and the rows for the next step.

    The errors, in rows, are added to where the paddle is and to where the ball will come.
    """
    at = ram.float()
    paddle, opponent = at[:, PADDLE] + paddle_error, at[:, OPPONENT]
    now = torch.stack([paddle, paddle, paddle, opponent], 1)
    rows = rows if starts is None else torch.where(starts[:, None], now, rows)
    one, two, three, before = rows.unbind(1)
    x, y, right, down = at[:, BALL_X], at[:, BALL_Y], -_signed(at[:, SPEED_X]), _signed(at[:, SPEED_Y])
    there = (x > 0) & (y > 0)
    comes = there & (right > 0) & (x < FACE + 4)
    frames = torch.where(comes, (FACE - x).clamp_min(0) / right.clamp_min(1), torch.full((), FAR)).clamp_max(FAR)
    folded = (y + down * frames - TOP_WALL).remainder(2 * BETWEEN_WALLS)
    landing = TOP_WALL + torch.where(folded > BETWEEN_WALLS, 2 * BETWEEN_WALLS - folded, folded) + landing_error
    o, c = there.float(), comes.float()
    off, rest = landing - paddle, paddle + 0.8 * (paddle - one)
    ball = [o * (x - 120) / 60, o * (y - 125) / 60, o * right / 4, o * down / 4, o, c]
    places = [(paddle - 120) / 60, (paddle - one) / 20, (one - two) / 20, (two - three) / 20, o * (opponent - 120) / 60, o * (opponent - before) / 20]
    meeting = [
        frames / 30, c / (1 + frames / 6), c * off / 60, c * (off / 8).clamp(-1, 1), c * ((landing - rest) / 12).clamp(-1, 1), c * (landing - 125) / 60,
        c * ((off - 8) / 3).clamp(-1, 1), (1 - c) * (o * (y - paddle) / 60),
    ]  # fmt: skip
    return torch.stack([*ball, *places, *meeting], 1), torch.stack([paddle, one, two, opponent], 1)


def _signed(byte: Tensor) -> Tensor:
    return torch.where(byte > 127, byte - 256, byte)


if __name__ == "__main__":
    import argparse

    from distillrl import evaluation
    from distillrl.envs import EnvOptions, Seeds

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=30)
    parser.add_argument("--sticky", type=float, default=0.0)
    given = parser.parse_args()
    played = evaluation.play(Player(), EnvOptions("ALE/Pong-v5", {"sticky": given.sticky}, "gymnasium:1"), given.episodes, Seeds(0, "verdict"))
    print(f"{given.episodes} games: {played.returns.mean():.2f} on average, {played.returns.min():.0f} to {played.returns.max():.0f}; {played.lengths.mean():.0f} steps a game, {played.seconds:.0f} s")
