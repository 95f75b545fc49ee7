"""A step of a sense for sound and other waveforms: the spectrogram."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from distillrl.errors import Misconfigured, nearest
from distillrl.policies import Memory
from distillrl.records import Group

SHORTEST = 8
"""Samples of a window, and of a waveform, at least."""


class Spectrogram(nn.Module):
    """Waveforms [S] or [S, channels] as log(1 + power) by time and pitch: [channels, frames, bands].

    Frames are ``window`` samples long, Hann's window over them, one every half window; the frequencies above 0 are summed
    in ``bands`` bands whose widths grow with the pitch, as an ear's do (O'Shaughnessy 1987 has the mel scale). Samples of
    whole numbers are divided by the largest of their type, so that 16-bit sound lies within ±1.
    """

    kind = "spectrogram"

    def __init__(self, window: int, bands: int, names: Iterable[str]) -> None:
        super().__init__()
        self.window, self.bands, self.names = int(window), int(bands), tuple(names)
        self.register_buffer("hann", torch.hann_window(self.window, dtype=torch.float32), persistent=False)
        self.register_buffer("matrix", _matrix(self.window // 2, self.bands), persistent=False)
        self._scales: dict[str, float] = {}
        self._flat: dict[str, bool] = {}

    def options(self) -> dict[str, Any]:
        """Window, bands, and of which groups."""
        return {"window": self.window, "bands": self.bands, "names": list(self.names)}

    def after(self, groups: Mapping[str, Group]) -> dict[str, Group]:
        """Float images [channels, frames, bands]; raises Misconfigured for what is no waveform, or shorter than the window."""
        out = dict(groups)
        for name in self.names:
            group = groups.get(name)
            if group is None:
                raise Misconfigured(f"there is no observation group {name!r} to hear{nearest(name, groups)}")
            if not is_waveform(group):
                raise Misconfigured(f"the group {name!r} is {group}: a waveform [samples] or [samples, channels] is right to be heard")
            if group.shape[0] < self.window:
                raise Misconfigured(f"spectrogram={self.window}x{self.bands}: the group {name!r} has only {group.shape[0]} samples; a shorter window is right")
            whole = not group.dtype.startswith("float")
            self._scales[name] = 1.0 / torch.iinfo(getattr(torch, group.dtype)).max if whole else 1.0
            self._flat[name] = len(group.shape) == 1
            channels = group.shape[1] if len(group.shape) == 2 else 1
            out[name] = Group((channels, 1 + (group.shape[0] - self.window) // (self.window // 2), self.bands), "float32")
        return out

    def init(self, n: int) -> Memory:
        """None."""
        return {}

    def forward(self, groups: dict[str, Tensor], memory: Memory, starts: Tensor | None) -> dict[str, Tensor]:
        """[..., S] or [..., S, channels] → [..., channels, frames, bands]"""
        return {**groups, **{name: self._heard(groups[name], name) for name in self.names}}

    def _heard(self, x: Tensor, name: str) -> Tensor:
        wave = x.float() * self._scales[name]
        wave = wave.unsqueeze(-2) if self._flat[name] else wave.transpose(-1, -2)
        frames = wave.unfold(-1, self.window, self.window // 2) * self.get_buffer("hann")
        power = torch.fft.rfft(frames)[..., 1:].abs().square()
        return (power @ self.get_buffer("matrix")).log1p()


def silent(sense: Any, obs: Mapping[str, Tensor]) -> str | None:
    """A sentence where a waveform that this sense hears is 0 in all of these observations; else None."""
    heard = [name for step in getattr(sense, "steps", ()) if isinstance(step, Spectrogram) for name in step.names]
    mute = [name for name in heard if name in obs and not bool(obs[name].any())]
    if not mute:
        return None
    return f"nothing is to be heard: every sample of {mute[0]!r} is 0 so far (ViZDoom plays through OpenAL: apt install libopenal1, and ALSOFT_DRIVERS=null where there is no sound device)"


def is_waveform(group: Group) -> bool:
    """[samples] or [samples, channels] of numbers, more samples than channels."""
    long = len(group.shape) == 1 or (len(group.shape) == 2 and group.shape[1] <= 8 < group.shape[0])
    return long and not group.categories and group.shape[0] >= SHORTEST and group.dtype != "bool"


def _matrix(frequencies: int, bands: int) -> Tensor:
    """[frequencies, bands] of 0 and 1: each frequency in one band, the edges evenly spaced in the logarithm, no band empty."""
    if not 1 <= bands <= frequencies:
        raise Misconfigured(f"spectrogram: a window of {2 * frequencies} samples has {frequencies} frequencies, {bands} bands were asked for; 1 to {frequencies} are right")
    edges = [frequencies ** (b / bands) for b in range(1, bands + 1)]
    found: list[int] = []
    for b, edge in enumerate(edges):
        least = (found[-1] if found else 0) + 1
        found.append(min(max(least, math.floor(edge + 1e-9)), frequencies - (bands - 1 - b)))
    matrix = torch.zeros(frequencies, bands)
    for b, (low, high) in enumerate(zip([0, *found[:-1]], found, strict=True)):
        matrix[low:high, b] = 1
    return matrix
