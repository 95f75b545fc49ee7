"""The observation group ``render``: the picture that an environment draws of itself, beside what it gives anyway."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from distillrl.errors import Misconfigured, Missing

RENDER = "render"


class Pictures(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Draws once after each reset and step; the observation becomes a dict with the group ``render``, uint8 [H, W, 3]."""

    def __init__(self, env: gymnasium.Env[Any, Any], name: str) -> None:
        super().__init__(env)
        env.reset(seed=0)
        try:
            frame = env.render()
        except gymnasium.error.DependencyNotInstalled as error:
            raise Missing(f"{name} can't draw itself: {error}") from None
        except Exception as error:  # the environment's own code may raise anything: it is told in a sentence
            raise Misconfigured(f"{name} can't draw itself: {type(error).__name__}: {error}") from None
        if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.ndim != 3:
            raise Misconfigured(f"{name} draws {_said(frame)}; pictures [height, width, 3] of 8 bits are right to be seen")
        self._own = _named(env.observation_space)
        picture = spaces.Box(0, 255, frame.shape, np.uint8)
        self.observation_space = spaces.Dict({**self._own[0], RENDER: picture})

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """With the first picture."""
        obs, info = self.env.reset(seed=seed, options=options)
        return self._with_picture(obs), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """With the picture of the moment that the observation is of."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        return self._with_picture(obs), reward, terminated, truncated, info

    def _with_picture(self, obs: Any) -> dict[str, Any]:
        frame: Any = self.env.render()
        return {**self._own[1](obs), RENDER: np.asarray(frame)}


def drawing(maker: Callable[..., gymnasium.Env[Any, Any]], name: str) -> Callable[[], gymnasium.Env[Any, Any]]:
    """A maker of environments that draw themselves, of one that takes ``render_mode``; raises Misconfigured where they can't.

    An environment that has a group of this name of its own stays as it is.
    """
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame draws into memory: where there is no screen it need not look for one

    def make() -> gymnasium.Env[Any, Any]:
        try:
            env = maker(render_mode="rgb_array")
        except TypeError as error:
            if "render_mode" not in str(error):
                raise
            env = maker()
        space = env.observation_space
        if isinstance(space, spaces.Dict) and RENDER in space.spaces:
            return env
        if env.render_mode != "rgb_array":
            raise Misconfigured(f"{name} doesn't draw itself: it has no render_mode 'rgb_array' (it has {', '.join(map(str, env.metadata.get('render_modes') or ())) or 'none'})")
        return Pictures(env, name)

    return make


def _named(space: spaces.Space[Any]) -> tuple[dict[str, spaces.Space[Any]], Callable[[Any], Mapping[str, Any]]]:
    """The groups of an observation space by name, as spaces.spec_of names them, and how an observation is split into them."""
    if isinstance(space, spaces.Dict):
        return dict(space.spaces), dict
    if isinstance(space, spaces.Tuple):
        return {str(i): s for i, s in enumerate(space.spaces)}, lambda obs: {str(i): part for i, part in enumerate(obs)}
    return {"obs": space}, lambda obs: {"obs": obs}


def _said(frame: Any) -> str:
    return f"{frame.dtype} of shape {list(frame.shape)}" if isinstance(frame, np.ndarray) else f"a {type(frame).__name__}"
