"""Teacher and student side by side on the same episode, as a video, each one's action or its probabilities beside it.

A gif needs Pillow alone; an mp4 needs imageio with its ffmpeg: pip install 'distillrl[video]'.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distillrl import envs
from distillrl.actions import Categorical, Gaussian
from distillrl.envs import EnvOptions, Seeds
from distillrl.errors import DistillError, Failed, Misconfigured, Missing
from distillrl.policies import ACTION, Policy, played
from distillrl.records import Prediction
from distillrl.traces import Rerun, can_rerun

HEIGHT = 240
"""Pixels of each picture; the bars below it are as wide."""
_BARS = 74
_SHOWN = 8
COLOURS = {"teacher": (31, 95, 168), "student": (191, 79, 6)}
FORMATS = (".gif", ".mp4")


@dataclass(frozen=True)
class Watched:
    """What the video shows."""

    path: Path
    steps: int
    returns: dict[str, float]
    """Of each player in this episode."""


def watch(
    players: dict[str, Policy],
    options: EnvOptions,
    out: str | Path = "watch.gif",
    *,
    seed: int = 0,
    episode: int = 0,
    steps: int = 400,
    fps: int = 30,
) -> Watched:
    """Film one episode of each player (teacher, student) from the same seed, side by side, and write ``out``.

    ``steps`` at most; a player whose episode ends first stands still. The likeliest actions are played. Raises
    Misconfigured for another ending than .gif or .mp4 or a backend that can't be rendered, Missing where the
    environment gives no pictures or a library isn't there, Failed where the file can't be written.
    """
    path, options = Path(out), envs.shown(options, *players.values())
    if path.suffix not in FORMATS:
        raise Misconfigured(f"{path}: a video ends in {' or '.join(FORMATS)}")
    if not can_rerun(options):
        raise Misconfigured("only gymnasium’s environments can be filmed: --backend gymnasium, and an id instead of a vector")
    if not players:
        raise Misconfigured("nobody to watch: a teacher, a student or both are right")
    returns = dict.fromkeys(players, 0.0)
    frames = list(_frames(players, options, Seeds(seed, "verdict"), episode, steps, returns))
    _write(path, frames, fps)
    return Watched(path, len(frames), returns)


def _frames(
    players: dict[str, Policy], options: EnvOptions, seeds: Seeds, episode: int, steps: int, returns: dict[str, float]
) -> Iterator[np.ndarray]:
    """One [H, W, 3] picture a step, until all have ended; ``returns`` is counted up."""
    try:
        runs = {who: Rerun(options, seeds, episode, pictures=True) for who in players}
    except DistillError as error:
        raise type(error)(f"the environment can't be filmed: {error}") from None
    for who, run in runs.items():
        if found := envs.differences(players[who].spec, run.vector.spec):
            raise Misconfigured(f"the {who} does not fit {envs.name_of(options)}: " + "; ".join(found))
    memory = {who: policy.init(1) for who, policy in players.items()}
    shown: dict[str, np.ndarray] = {}
    try:
        for _ in range(steps):
            if all(run.ended for run in runs.values()):
                break
            for who, run in runs.items():
                if run.ended:
                    continue
                with torch.inference_mode():
                    prediction, memory[who] = players[who].act(run.obs, memory[who], run.starts, ACTION)
                picture = run.picture()
                returns[who] += run.step(played(prediction, sampled=False))
                shown[who] = _panel(picture, who, returns[who], prediction, run.ended)
            yield np.concatenate(list(shown.values()), axis=1)
    finally:
        for run in runs.values():
            run.close()


def _panel(picture: np.ndarray, who: str, earned: float, prediction: Prediction, ended: bool) -> np.ndarray:
    """One player's half: its name and return, the picture, and bars of what it says."""
    from PIL import Image, ImageDraw, ImageFont

    scene = Image.fromarray(picture)
    width = max(1, round(scene.width * HEIGHT / scene.height)) // 2 * 2
    panel = Image.new("RGB", (width, 22 + HEIGHT + _BARS), (247, 247, 244))
    panel.paste(scene.resize((width, HEIGHT)), (0, 22))
    draw, font = ImageDraw.Draw(panel), ImageFont.load_default(12)
    draw.text((6, 4), who + (" (ended)" if ended else ""), fill=COLOURS.get(who, (60, 60, 60)), font=font)
    draw.text((width - 6, 4), f"return {earned:.1f}", fill=(27, 33, 38), font=font, anchor="ra")
    _bars(draw, font, bars(prediction), width, COLOURS.get(who, (60, 60, 60)))
    return np.asarray(panel)


def bars(prediction: Prediction) -> list[tuple[str, float, bool]]:
    """(label, share from 0 to 1, whether it is what is played) of each action or component, at most eight.

    Probabilities of choices; for numbers, where the action lies in its range.
    """
    action = prediction.action
    assert action is not None
    if isinstance(action, Categorical):
        chance = action.log_probs[0].exp()
        best = int(chance.argmax())
        kept = sorted(chance.topk(min(_SHOWN, len(chance))).indices.tolist())
        return [(f"{i}", float(chance[i]), i == best) for i in kept]
    mode = action.mode[0].reshape(-1)
    low, high = getattr(action, "low", None), getattr(action, "high", None)
    if isinstance(action, Gaussian) or (low is not None and high is not None):
        assert low is not None
        assert high is not None
        width = torch.where((high - low).isfinite(), high - low, torch.full_like(high, 2.0))
        floor = torch.where(low.isfinite(), low, torch.full_like(low, -1.0))
        share = ((mode - floor) / width).clamp(0, 1)
        return [(f"{i}: {float(m):.2f}", float(s), True) for i, (m, s) in enumerate(zip(mode, share, strict=True))][:_SHOWN]
    return [(f"{i}: {int(m)}" if len(mode) > 1 else f"action {int(m)}", 1.0, True) for i, m in enumerate(mode)][:_SHOWN]


def _bars(draw: Any, font: Any, rows: list[tuple[str, float, bool]], width: int, colour: tuple[int, int, int]) -> None:
    """Bars of equal width that grow upwards from their labels; what isn't played is an outline."""
    top, foot = 22 + HEIGHT + 6, 22 + HEIGHT + _BARS - 18
    step = width / len(rows)
    for i, (label, share, chosen) in enumerate(rows):
        left, right = i * step + 5, (i + 1) * step - 5
        height = max(1.0, share * (foot - top))
        draw.rectangle((left, top, right, foot), fill=(232, 234, 232))
        draw.rectangle((left, foot - height, right, foot), fill=colour if chosen else None, outline=colour)
        draw.text(((left + right) / 2, foot + 3), label, fill=(27, 33, 38), font=font, anchor="ma")


def _write(path: Path, frames: list[np.ndarray], fps: int) -> None:
    if not frames:
        raise Failed("there is nothing to film: the episode ended before its first step")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".mp4":
            _mp4(path, frames, fps)
        else:
            _gif(path, frames, fps)
    except OSError as error:
        raise Failed(f"{path} can't be written: {error.strerror or error}") from None


def _gif(path: Path, frames: list[np.ndarray], fps: int) -> None:
    """Every other frame at half the rate: browsers show no gif faster than fifty a second, and it is half the size."""
    from PIL import Image

    stride = 2 if fps > 20 else 1
    palette = Image.fromarray(frames[len(frames) // 2]).quantize(64)
    images = [Image.fromarray(f).quantize(palette=palette, dither=Image.Dither.NONE) for f in frames[::stride]]
    images[0].save(path, save_all=True, append_images=images[1:], duration=round(1000 * stride / fps), loop=0, optimize=True)


def _mp4(path: Path, frames: list[np.ndarray], fps: int) -> None:
    try:
        import imageio.v3 as imageio
    except ImportError:
        raise Missing("an mp4 needs imageio and ffmpeg: pip install 'distillrl[video]'; a .gif needs neither") from None
    even = [f[: len(f) // 2 * 2, : f.shape[1] // 2 * 2] for f in frames]
    try:
        imageio.imwrite(path, np.stack(even), fps=fps, codec="libx264", plugin="pyav" if _has("av") else "FFMPEG")
    except (ImportError, ValueError) as error:
        raise Missing(f"an mp4 needs imageio with ffmpeg ({error}): pip install 'distillrl[video]'; a .gif needs neither") from None


def _has(module: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(module) is not None
