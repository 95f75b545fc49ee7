"""make bench-hearing: a second sense that is real. ViZDoom's monster hums, and the student finds it by ear alone.

ViZDoom's scenario basic_audio: a monster stands somewhere along the wall; whoever stands opposite and shoots is done. The teacher is a
rule on where the monster is, read from the game's objects. The student hears: 36 ms of stereo a tic, four tics a step, and sees
nothing. Beside it, so that one knows what hearing is worth: the same student with one ear (no left or right), and a deaf one.

ViZDoom plays through OpenAL, which it looks for when it starts: without the library (`apt install libopenal1`) all samples are 0, and
this bench says so. No sound device is needed: ALSOFT_DRIVERS=null.

    ALSOFT_DRIVERS=null python bench/hearing.py              # five seeds, about 20 minutes; the table goes into docs/students.md
    ALSOFT_DRIVERS=null python bench/hearing.py --seeds 1 --print
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from cells import ROOT, Cells, Facts, between, count, guarded, leave, run
from gymnasium import spaces

FIRST_SEED = 101
SKIP = 4
"""Tics of a step."""
AIMED = 24.0
"""How far to one side the monster may stand to be hit, in the game's units: it is 31 wide."""
STUDENTS = {
    "two ears": ("mlp:32", "group=audio, spectrogram=128x8"),
    "one ear": ("mlp:32", "group=left, spectrogram=128x8"),
    "deaf": ("mlp:32", "group=ammunition"),
}


class Doom(gymnasium.Env[Any, Any]):
    """basic_audio with the groups ``audio`` int16 [samples, 2], ``left`` [samples] (its left channel), ``ammunition`` [1] (in tens), and
    ``aside`` [1]: how far the monster stands to the left, in hundreds of units, which is the teacher's. Actions: left, right, shoot.
    """

    def __init__(self) -> None:
        import vizdoom

        game = vizdoom.DoomGame()
        game.load_config(os.path.join(os.path.dirname(vizdoom.__file__), "scenarios", "basic_audio.cfg"))
        game.set_window_visible(False)
        game.set_screen_resolution(vizdoom.ScreenResolution.RES_160X120)
        game.set_objects_info_enabled(True)
        game.set_audio_buffer_enabled(True)
        game.set_audio_sampling_rate(vizdoom.SamplingRate.SR_22050)
        game.set_audio_buffer_size(SKIP)
        game.add_game_args("+snd_efx 0")  # effects that OpenAL without a device hasn't got
        game.init()
        self.game, self.samples = game, 22050 // 35 * SKIP
        low, high = np.iinfo(np.int16).min, np.iinfo(np.int16).max
        self.observation_space = spaces.Dict(
            {
                "audio": spaces.Box(low, high, (self.samples, 2), np.int16),
                "left": spaces.Box(low, high, (self.samples,), np.int16),
                "ammunition": spaces.Box(0, 10, (1,), np.float32),
                "aside": spaces.Box(-10, 10, (1,), np.float32),
            }
        )
        self.action_space = spaces.Discrete(3)
        self.last = self._blank()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """A new place for the monster."""
        super().reset(seed=seed)
        if seed is not None:
            self.game.set_seed(seed % (1 << 31))
        self.game.new_episode()
        return self._obs(), {}

    def step(self, action: Any) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Four tics."""
        reward = self.game.make_action([int(action) == i for i in range(3)], SKIP)
        over = self.game.is_episode_finished()
        late = over and self.game.get_episode_time() >= self.game.get_episode_timeout()
        return self.last if over else self._obs(), float(reward), over and not late, late, {}

    def close(self) -> None:
        """End the game's process."""
        self.game.close()

    def _blank(self) -> dict[str, np.ndarray]:
        return {name: np.zeros(space.shape or (), space.dtype) for name, space in self.observation_space.spaces.items()}  # type: ignore[attr-defined]  # a Dict

    def _obs(self) -> dict[str, np.ndarray]:
        state = self.game.get_state()
        side = {thing.name: thing.position_y for thing in state.objects}
        aside = (side.get("Cacodemon", side["DoomPlayer"]) - side["DoomPlayer"]) / 100
        audio = np.zeros((self.samples, 2), np.int16)
        heard = state.audio_buffer[-self.samples :]
        audio[-len(heard) :] = heard
        self.last = {
            "audio": audio,
            "left": audio[:, 0].copy(),
            "ammunition": np.array([state.game_variables[0] / 10], np.float32),
            "aside": np.array([aside], np.float32),
        }
        return self.last


def rule(aside: torch.Tensor) -> torch.Tensor:
    """[n, 1] → logits [n, 3]: shoot what is opposite, else go to where it is."""
    x = aside * 100
    return torch.cat([x - AIMED, -x - AIMED, torch.zeros_like(x)], -1) / 4


def silent() -> bool:
    """Whether nothing is to be heard."""
    env = Doom()
    try:
        env.reset(seed=0)
        return not any(env.step(0)[0]["audio"].any() for _ in range(4))
    finally:
        env.close()


def distilled(facts: Facts) -> dict[str, Any]:
    """One run, and its verdict's figures."""
    from distillrl.config import Config
    from distillrl.distillation import distill

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        config = Config(
            student=facts["student"], see=facts["see"], teacher_sees="aside", seed=facts["seed"], slots=8, env_steps=facts["steps"],
            backend="gymnasium:1", checkpoint_seconds=1e6, select_episodes=20, verdict_episodes=50,
        )  # fmt: skip
        verdict = distill(rule, Doom, config=config, out=Path(folder) / "run").verdict
    kept = verdict["retention"]
    return {
        "retention": [round(kept[k], 5) for k in ("value", "low", "high")],
        "returns": [round(verdict[who]["return"]["mean"], 2) for who in ("teacher", "student", "random")],
        "parameters": verdict["student"]["parameters"],
        "env_steps": verdict["env_steps"],
        "imitability": verdict["imitability"],
    }


def table(cells: Cells, work: dict[str, list[Any]]) -> str:
    """Markdown: a row a way of hearing."""
    from distillrl import stats

    lines = ["| what it hears | `--student` | `--see` | parameters | retention (95 % interval over seeds) | each seed | steps, median |", "|---|---|---|---|---|---|---|"]
    returns = None
    for name, jobs in work.items():
        word, see = STUDENTS[name]
        values = [v for v in cells.values(jobs) if v is not None]
        if not values:
            lines.append(f"| {name} | `{word}` | `{see}` | not measured | | | |")
            continue
        returns = values[0]["returns"]
        kept = [100 * v["retention"][0] for v in values]
        interval = stats.mean_interval(kept, 0)
        steps = sorted(v["env_steps"] for v in values)[len(values) // 2]
        lines.append(f"| {name} | `{word}` | `{see}` | {values[0]['parameters']:,} | {interval.value:.1f} % ({interval.low:.1f} to {interval.high:.1f}) | {', '.join(f'{k:.1f}' for k in kept)} | {steps:,} |")
    known = "" if returns is None else f" The rule earns {returns[0]:g}, random actions {returns[2]:g} (seed {FIRST_SEED})."
    return "\n".join([f"ViZDoom's `basic_audio`, `python bench/hearing.py`: the teacher is a rule on where the monster stands, the student hears it hum.{known}", "", *lines])


def main() -> None:
    """Measure what isn't known, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=count, default=5)
    parser.add_argument("--steps", type=count, default=12_000)
    parser.add_argument("--seconds", type=float, help="begin no cell after so long")
    parser.add_argument("--print", action="store_true", help="print the table, and leave the page as it is")
    parser.add_argument("--fresh", action="store_true", help="measure anew what another source of distillrl has measured")
    parser.add_argument("--cells", type=Path, default=ROOT / "bench" / "cells" / "hearing.jsonl")
    given = parser.parse_args()
    cells = Cells(given.cells)
    seeds = range(FIRST_SEED, FIRST_SEED + given.seeds)
    work = {name: [(distilled, {"what": "hearing", "student": word, "see": see, "steps": given.steps, "seed": s, "_name": f"{name} {s}"}) for s in seeds] for name, (word, see) in STUDENTS.items()}
    jobs = [work[name][i] for i in range(len(seeds)) for name in work]
    if any(v is None for v in cells.values(jobs)) and silent():
        sys.exit("ViZDoom is silent here: it plays through OpenAL, which isn't installed (apt install libopenal1; without a sound device ALSOFT_DRIVERS=null)")
    missing = run(cells, jobs, seconds=given.seconds, fresh=given.fresh)
    text = table(cells, work)
    print(text)
    if not given.print:
        between(ROOT / "docs" / "students.md", "bench-hearing", text)
    leave(missing)


if __name__ == "__main__":
    guarded(main)
