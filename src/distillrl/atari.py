"""Atari games with the standard preprocessing (Mnih 2015; Machado 2018): by ale_py's own vector environment, or one by one.

Each action is played for 4 frames, the brighter of the last two is seen, grey, 84×84; up to 30 steps of doing nothing and
FIRE (where a game has it) begin an episode. What is given is the newest frame, uint8 [1, 84, 84]: policies stack them in
their own sense, so that a frame is stored once. Rewards are clipped to their sign in training only, where
``episodic_life=true`` ends an episode with each life too.

``--env-kwargs``: sticky (the probability that an action is repeated, 0; Machado 2018 takes 0.25), frameskip, noop_max,
use_fire_reset, maxpool, grayscale, img_height, img_width, full_action_space, episodic_life.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from distillrl.episodes import Queue, Seeds
from distillrl.errors import Misconfigured, Missing, nearest
from distillrl.spaces import spec_of
from distillrl.vectors import EnvOptions, Observations

RAM = "ram"
"""The group that has the machine's 128 bytes of memory; single environments give it on demand."""
FRAME_SKIP, MAX_FRAMES = 4, 108_000
KNOWN: dict[str, Any] = {
    "sticky": 0.0, "frameskip": FRAME_SKIP, "noop_max": 30, "use_fire_reset": True, "maxpool": True, "grayscale": True,
    "img_height": 84, "img_width": 84, "full_action_space": False, "episodic_life": False,
}  # fmt: skip
_OURS = re.compile(r"ALE/(?P<ale>\w+)-v\d+|(?P<old>\w+?)(?:NoFrameskip|Deterministic)-v\d+")


def game(env_id: Any) -> str | None:
    """The ROM of ``ALE/Pong-v5`` or ``PongNoFrameskip-v4``; None where the id is no Atari game's. Raises Misconfigured for an unknown one."""
    found = _OURS.fullmatch(env_id) if isinstance(env_id, str) else None
    if found is None:
        return None
    wanted = (found["ale"] or found["old"]).lower().replace("_", "")
    names = {rom.replace("_", ""): rom for rom in _roms().get_all_rom_ids()}
    if wanted not in names:
        raise Misconfigured(f"--env {env_id!r}: there is no such Atari game{nearest(wanted, names)}")
    return names[wanted]


def _roms() -> Any:
    try:
        from ale_py import roms
    except ImportError:
        raise Missing("Atari games need ale_py, which isn't installed: pip install 'distillrl[atari]'") from None
    return roms


def settings(options: EnvOptions) -> dict[str, Any]:
    """KNOWN with what ``--env-kwargs`` says; raises Misconfigured for another name."""
    for name in options.kwargs:
        if name not in KNOWN:
            raise Misconfigured(f"--env-kwargs {name}: {options.id} has no such setting{nearest(name, KNOWN)}")
    found = {**KNOWN, **options.kwargs}
    if not 0 <= found["sticky"] < 1 or not 0 < int(found["frameskip"]) <= 64 or min(found["img_height"], found["img_width"]) < 1:
        raise Misconfigured(f"--env-kwargs of {options.id}: sticky from 0 to below 1, frameskip from 1 to 64 and images of at least 1×1 are right")
    return found


def training(seeds: Seeds, episodes: int | None) -> bool:
    """Whether these episodes are learnt from; where so many are played to their end (``episodes``), it is their score that is wanted."""
    return episodes is None and seeds.stream in {"train", "hard"}


class Atari:
    """ale_py's vector environment; every episode has its own seed, and an open one comes back from it and its actions."""

    replayable, backend = True, "ale"

    def __init__(self, options: EnvOptions, n: int, seeds: Seeds, episodes: int | None) -> None:
        from ale_py.vector_env import AtariVectorEnv

        rom, given = game(options.id), settings(options)
        if rom is None:
            raise Misconfigured(f"--backend ale is for Atari games, such as ALE/Pong-v5; {options.id!r} is none")
        frames = MAX_FRAMES if options.max_episode_steps is None else options.max_episode_steps * given["frameskip"]
        self.n, self.seeds = n, seeds
        self.queue = None if episodes is None else Queue(n, 1, episodes)
        self.success = np.full(n, np.nan)
        given |= {"repeat_action_probability": given.pop("sticky"), "episodic_life": given["episodic_life"] and training(seeds, episodes)}
        self.vector = AtariVectorEnv(
            rom, n, stack_num=1, reward_clipping=training(seeds, episodes), max_num_frames_per_episode=frames, num_threads=min(n, os.cpu_count() or 1), **given
        )
        space: Any = self.vector.single_observation_space
        self.spec = spec_of(_without_stack(space), self.vector.single_action_space)
        self._colours = not given["grayscale"]
        self.index, self.over = np.arange(n), np.zeros(n, dtype=bool)

    def reset(self) -> Observations:
        """See Vector."""
        return self.reseed(0)

    def reseed(self, index: int) -> Observations:
        """See Vector."""
        self.index, self.over = np.arange(self.n) + index, np.zeros(self.n, dtype=bool)
        return self._seen(self.vector.reset(seed=self._seeds(np.ones(self.n, dtype=bool)))[0])

    def step(self, action: np.ndarray) -> tuple[Observations, np.ndarray, np.ndarray, np.ndarray]:
        """See Vector. An ended slot is begun anew with its own seed; one that rests plays on unseen."""
        obs, reward, terminated, truncated, _ = self.vector.step(action)
        begins = self.over & (self.index < self.queue.total) if self.queue is not None else self.over
        if begins.any():
            if self.queue is None:
                self.index = self.index + self.n * begins
            obs = self.vector.reset(seed=self._seeds(begins), options={"reset_mask": begins})[0]
        quiet = self.over if self.queue is None else self.over | (self.index >= self.queue.total)
        terminated, truncated = terminated & ~quiet, truncated & ~quiet
        self.over = terminated | truncated
        if self.queue is not None:
            for slot in np.flatnonzero(self.over):  # once an episode, not once a step
                self.index[slot] = self.queue.take()
        return self._seen(obs), np.where(quiet, 0.0, reward), terminated, truncated

    def playing(self) -> np.ndarray | None:
        """See Vector."""
        return None if self.queue is None else self.index.copy()

    def restore(self, index: Sequence[int], actions: Sequence[np.ndarray], ended: np.ndarray) -> None:
        """See Vector: all slots are replayed side by side, so begun that they are done together."""
        lengths = np.array([len(a) for a in actions])
        longest = int(lengths.max(initial=0))
        self.index = np.asarray(index, dtype=np.int64).copy()
        self.vector.reset(seed=self._seeds(np.ones(self.n, dtype=bool)))
        for t in range(longest):
            begins = lengths == longest - t
            if begins.any() and t > 0:
                self.vector.reset(seed=self._seeds(begins), options={"reset_mask": begins})
            played = [a[t - longest + len(a)] if t >= longest - len(a) else 0 for a in actions]
            self.vector.step(np.array(played, dtype=np.int64).reshape(self.n))
        if (none := lengths == 0).any() and longest:
            self.vector.reset(seed=self._seeds(none), options={"reset_mask": none})
        self.over = np.asarray(ended, dtype=bool).copy()

    def close(self) -> None:
        """See Vector."""
        self.vector.close()

    def _seeds(self, which: np.ndarray) -> np.ndarray:
        return np.array([self.seeds(int(i)) for i in self.index[which]], dtype=np.int64)

    def _seen(self, obs: np.ndarray) -> Observations:
        return {"obs": obs[:, 0] if self._colours else obs}


def _without_stack(space: spaces.Box) -> spaces.Box:
    """[1, H, W] stays; [1, H, W, 3] → [H, W, 3]."""
    return space if len(space.shape) == 3 else spaces.Box(0, 255, space.shape[1:], np.uint8)


class Game(gymnasium.Env[Any, Any]):
    """One game, preprocessed as above; with ``ram`` its observation is a dict of the frame and the machine's memory.

    Its frames are made small by the exact mean of what a pixel covers, ale_py's by OpenCV: they differ by a few grey levels.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 15}  # noqa: RUF012  # as gymnasium's own environments have it

    def __init__(self, rom: str, given: Mapping[str, Any], *, clipped: bool, max_episode_steps: int | None, ram: bool, render_mode: str | None = None) -> None:
        import ale_py

        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
        self.ale, self.given, self.clipped, self.ram, self.render_mode = ale_py.ALEInterface(), dict(given), clipped, ram, render_mode
        self.path = _roms().get_rom_path(rom)
        self.ale.setFloat("repeat_action_probability", float(given["sticky"]))
        self.ale.setInt("max_num_frames_per_episode", MAX_FRAMES if max_episode_steps is None else max_episode_steps * given["frameskip"])
        self.ale.loadROM(self.path)
        self.actions = self.ale.getLegalActionSet() if given["full_action_space"] else self.ale.getMinimalActionSet()
        self.fire = given["use_fire_reset"] and ale_py.Action.FIRE in self.ale.getMinimalActionSet()
        self.noop, self.fire_action = ale_py.Action.NOOP, ale_py.Action.FIRE
        self.action_space = spaces.Discrete(len(self.actions))
        height, width = given["img_height"], given["img_width"]
        frame = spaces.Box(0, 255, (1, height, width) if given["grayscale"] else (height, width, 3), np.uint8)
        self.observation_space = spaces.Dict({"obs": frame, RAM: spaces.Box(0, 255, (128,), np.uint8)}) if ram else frame
        screen = self.ale.getScreenDims()
        self._rows, self._columns = (_matrix(a, b) for a, b in zip(screen, (height, width), strict=True))
        self._lives = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Some steps of doing nothing, and FIRE; the seed is the machine's too."""
        super().reset(seed=seed)
        if seed is not None:
            self.ale.setInt("random_seed", int(seed))
            self.ale.loadROM(self.path)  # the machine reads its seed only here
        self.ale.reset_game()
        waits = int(self.np_random.integers(1, self.given["noop_max"] + 1)) if self.given["noop_max"] else 0
        for action in [self.noop] * waits + [self.fire_action] * bool(self.fire):
            self.ale.act(action)
            if self.ale.game_over():
                self.ale.reset_game()
        self._lives = self.ale.lives()
        return self._observation(self._screen()), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """The same action for ``frameskip`` frames."""
        reward, skip = 0.0, self.given["frameskip"]
        screen = None
        for i in range(skip):
            reward += self.ale.act(self.actions[int(action)])
            if self.given["maxpool"] and i == skip - 2:
                screen = self._screen()
        last = self._screen()
        terminated, truncated = self.ale.game_over(with_truncation=False), self.ale.game_truncated()
        if self.clipped and self.given["episodic_life"] and self.ale.lives() < self._lives:
            terminated = True
        self._lives = self.ale.lives()
        return self._observation(last if screen is None else np.maximum(screen, last)), float(np.sign(reward)) if self.clipped else float(reward), terminated, truncated, {}

    def render(self) -> Any:
        """The screen in colour, [210, 160, 3]."""
        return self.ale.getScreenRGB()

    def _screen(self) -> np.ndarray:
        return np.asarray(self.ale.getScreenGrayscale() if self.given["grayscale"] else self.ale.getScreenRGB())

    def _observation(self, screen: np.ndarray) -> Any:
        planes = screen[None] if screen.ndim == 2 else screen.transpose(2, 0, 1)
        small = _rounded(_rounded(self._rows @ planes.astype(np.float32)) @ self._columns.T).astype(np.uint8)
        frame = small if screen.ndim == 2 else np.ascontiguousarray(small.transpose(1, 2, 0))
        return {"obs": frame, RAM: self.ale.getRAM().copy()} if self.ram else frame


def _matrix(source: int, target: int) -> np.ndarray:
    """The filter of ``images.Resize`` as a matrix [target, source] of whole numbers with the sum 4096."""
    from distillrl.images import taps

    places, weights = taps(source, target, "area")
    matrix = np.zeros((target, source), np.float32)
    for place, weight in zip(places.numpy(), weights.numpy(), strict=True):
        matrix[np.arange(target), place] += weight
    return matrix


def _rounded(total: np.ndarray) -> np.ndarray:
    from distillrl.images import ONE

    return np.floor((total + ONE / 2) / ONE)
