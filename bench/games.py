"""MinAtar's games for gymnasium, as ``games:MinAtar/SpaceInvaders-v1``: the package registers them only when it is told to."""

from __future__ import annotations

import logging

import gymnasium

if "MinAtar/SpaceInvaders-v1" not in gymnasium.registry:
    logging.disable(logging.WARNING)  # it warns that it can't draw
    import minatar.gym

    logging.disable(logging.NOTSET)
    minatar.gym.register_envs()
