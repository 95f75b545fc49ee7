"""Every kind of student through compress → export → check, in every target: the matrix of docs/shipping.md.

    PYTHONPATH=src python bench/matrix.py --cells FOLDER              # a file for each kind, those that are there are kept; then the page
    PYTHONPATH=src python bench/matrix.py --cells FOLDER --only mlp:16

CartPole's teacher is a rule of four numbers, so that the table needs nothing that isn't in the repository; images are 12×12 drawings of the pole. A
cell is the share of visited states with the same action, and the difference in return (in pairs, 95 %) where the exported thing plays
itself; or the sentence that says why there is none.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import gymnasium
import numpy as np

from distillrl import compression, distillation, exporting, parity
from distillrl.config import Config
from distillrl.envs import EnvOptions
from distillrl.errors import DistillError

PAGE = Path(__file__).parents[1] / "docs" / "shipping.md"
MARKS = ("<!-- matrix -->", "<!-- end of matrix -->")
SEES = {"cnn:impala": "group=image, grey, resize=10x8"}
"""What a student sees; of the others those with convolutions the image alone."""
STEPS = 100
"""Of an episode at most."""
KINDS = (
    ("mlp:16x16", {"prune": 0.5, "quantise": "int8"}),
    ("mlp:24x24", {"prune": 0.8, "sparse": True}),
    ("mlp:16x16:relu", {"prune": 0.4, "quantise": "int4"}),
    ("mlp:16", {"quantise": "fp16"}),
    ("gru:12", {"prune": 0.4, "quantise": "int8"}),
    ("lstm:10", {"prune": 0.4, "quantise": "int8"}),
    ("cnn:4-8:16", {"prune": 0.5, "quantise": "int8"}),
    ("cnn:4-8:24", {"prune": 0.5, "sparse": True, "quantise": "int8"}),
    ("cnn:impala", {"quantise": "fp16"}),
    ("tree:leaves=24", {"prune": 0.5}),
    ("linear-tree:leaves=6", {"prune": 0.5}),
    ("forest:trees=3,leaves=12", {"prune": 0.5}),
    ("linear:terms=4", {"prune": 0.25}),
    ("poly:degree=2,terms=10", {"prune": 0.5}),
)


def rule(obs: Any) -> Any:
    """A teacher that balances."""
    state = obs["state"] if isinstance(obs, dict) else obs
    x, v, angle, spin = np.asarray(state).T
    return (3 * angle + spin + 0.1 * x + 0.4 * v > 0).astype(int)


class Drawn(gymnasium.ObservationWrapper):
    """CartPole with the state, and an image [12, 12, 3] of where the pole leans and moves."""

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        image = gymnasium.spaces.Box(0, 255, (12, 12, 3), np.uint8)
        self.observation_space = gymnasium.spaces.Dict({"state": env.observation_space, "image": image})

    def observation(self, state: np.ndarray) -> dict[str, np.ndarray]:
        """Two bars: their columns are the angle and the cart's place, their heights the speeds."""
        image = np.zeros((12, 12, 3), np.uint8)
        for channel, (place, speed) in enumerate(((state[2] / 0.2, state[3] / 2), (state[0] / 2.4, state[1] / 2))):
            column, height = (int(np.clip((v + 1) * 6, 0, 11)) for v in (place, speed))
            image[: height + 1, column, channel] = 255
        return {"state": state, "image": image}


def drawn() -> gymnasium.Env:
    """Made anew for each slot."""
    return Drawn(gymnasium.make("CartPole-v1", max_episode_steps=STEPS))


def row(word: str, ask: dict[str, Any]) -> str:
    """The line of one kind."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        env: Any = drawn if word.startswith("cnn") else "CartPole-v1"
        image = word.startswith("cnn")
        config = Config(env_steps=4000, max_episode_steps=STEPS, select_episodes=3, verdict_episodes=4, see=SEES.get(word, "group=image" if image else None))
        run = distillation.distill(rule, env, student=word, config=config, out=folder / "run")
        small = compression.compress(run.folder / "student.safetensors", rule, env, retention=0.6 if image else 0.9, episodes=50, out=folder / "small", config=config, **ask)
        asked = ", ".join(f"{k} {v}" if not isinstance(v, bool) else k for k, v in ask.items())
        kept = next((r for r in reversed(small.steps) if r["held"]), small.steps[0])
        first, file = small.steps[0], (small if small.policy is not None else run).folder / "student.safetensors"
        became = f"{first['parameters']:,} → {kept['parameters']:,}, {first['bytes']:,} → {kept['bytes']:,} bytes" + ("" if small.reached else f"; stopped at {small.steps[-1]['step']}")
        return "| " + " | ".join([word, asked, became, *(cell(file, to, env, folder / to) for to in exporting.TARGETS)]) + " |"


def cell(file: Path, to: str, env: Any, folder: Path) -> str:
    """Export and check, or why not."""
    where = EnvOptions(env, {}, "auto", STEPS)
    try:
        exported = exporting.export(file, to, folder, env=where)
        found = parity.check(exported, file, where, states=500, episodes=5)
    except DistillError as error:
        return str(error).replace("|", "/")
    assert found.difference is not None
    return f"{found.agreement:.4f}, {found.difference.value:+.1f} ({found.difference.low:+.1f} to {found.difference.high:+.1f})"


def main() -> None:
    """Make what is missing, then fill the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=Path, required=True)
    parser.add_argument("--only")
    given = parser.parse_args()
    given.cells.mkdir(parents=True, exist_ok=True)
    files = [(given.cells / f"{i:02d}.txt", word, ask) for i, (word, ask) in enumerate(KINDS)]
    for file, word, ask in files:
        if not file.exists() and given.only in {None, word}:
            file.write_text(row(word, ask) + "\n", encoding="utf-8")
            print(file.read_text(encoding="utf-8"), flush=True)
    if given.only is not None:
        return
    head = ["student", "compress", "became", *exporting.TARGETS]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *(file.read_text(encoding="utf-8").strip() for file, _, _ in files)]
    page = PAGE.read_text(encoding="utf-8")
    start, end = page.index(MARKS[0]) + len(MARKS[0]), page.index(MARKS[1])
    PAGE.write_text(f"{page[:start]}\n" + "\n".join(lines) + f"\n{page[end:]}", encoding="utf-8")


if __name__ == "__main__":
    main()
