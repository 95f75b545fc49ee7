"""The step of a sense that normalises: frozen statistics, or ones that follow what is seen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from distillrl.errors import Misconfigured
from distillrl.policies import Memory
from distillrl.records import Group

UNCLIPPED = 1e30
"""A clip from here on is none."""


class Normalise(nn.Module):
    """(x − mean) / std of each named group, then clipped to ± ``clip``.

    ``scale`` = 1/std and ``shift`` = −mean/std are kept, so that it is one multiply-add. They are frozen, unless ``running``: then
    mean, variance and count are kept too, and ``follow`` takes more states into them, as long as a run goes on.
    """

    kind = "normalise"

    def __init__(self, shapes: Mapping[str, Iterable[int]], clip: float = 10.0, dtype: str = "float32", running: bool = False) -> None:
        super().__init__()
        self.shapes = {name: tuple(shapes[name]) for name in sorted(shapes)}  # as an artifact's header has them: its tensors are numbered so
        self.clip, self.dtype, self.running = float(clip), dtype, bool(running)
        if self.running:
            self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        for i, shape in enumerate(self.shapes.values()):
            self.register_buffer(f"scale{i}", torch.ones(shape, dtype=getattr(torch, dtype)))
            self.register_buffer(f"shift{i}", torch.zeros(shape, dtype=getattr(torch, dtype)))
            if self.running:
                self.register_buffer(f"mean{i}", torch.zeros(shape, dtype=torch.float64))
                self.register_buffer(f"variance{i}", torch.ones(shape, dtype=torch.float64))

    @staticmethod
    def from_moments(
        moments: Mapping[str, tuple[Tensor, Tensor]], epsilon: float = 1e-8, clip: float = 10.0, dtype: str = "float32"
    ) -> Normalise:
        """From {group: (mean, variance)}; SB3's VecNormalize formula, clip((x − mean) / √(variance + ε))."""
        step = Normalise({name: tuple(mean.shape) for name, (mean, _) in moments.items()}, clip, dtype)
        for i, name in enumerate(step.shapes):
            mean, variance = moments[name]
            scale = 1 / (variance.double() + epsilon).sqrt()
            getattr(step, f"scale{i}").copy_(scale)
            getattr(step, f"shift{i}").copy_(-mean.double() * scale)
        return step

    def follow(self, moments: Mapping[str, tuple[Tensor, Tensor]], count: int, epsilon: float = 1e-8) -> None:
        """Take {group: (mean, variance)} of ``count`` more states into the statistics (Chan, Golub and LeVeque 1983, eq. 2.1)."""
        before, total = self.get_buffer("count"), self.get_buffer("count") + count
        for i, name in enumerate(self.shapes):
            mean, variance, (its_mean, its_variance) = self.get_buffer(f"mean{i}"), self.get_buffer(f"variance{i}"), moments[name]
            apart = its_mean.double() - mean
            variance.copy_((variance * before + its_variance.double() * count + apart.square() * before * count / total) / total)
            mean.add_(apart * count / total)
            scale = 1 / (steady(mean, variance) + epsilon).sqrt()
            self.get_buffer(f"scale{i}").copy_(scale)
            self.get_buffer(f"shift{i}").copy_(-mean * scale)
        before.copy_(total)

    def options(self) -> dict[str, Any]:
        """Shapes, clip and precision."""
        return {"shapes": {k: list(v) for k, v in self.shapes.items()}, "clip": self.clip, "dtype": self.dtype, **({"running": True} if self.running else {})}

    def after(self, groups: Mapping[str, Group]) -> dict[str, Group]:
        """The same shapes, as float32."""
        out = dict(groups)
        for name, shape in self.shapes.items():
            if name not in groups or groups[name].shape != shape:
                raise Misconfigured(f"the normaliser is for {name!r} of shape {shape}, the observation has {groups.get(name)}")
            out[name] = Group(shape, "float32")
        return out

    def init(self, n: int) -> Memory:
        """None."""
        return {}

    def forward(self, groups: dict[str, Tensor], memory: Memory, starts: Tensor | None) -> dict[str, Tensor]:
        """Normalised float32 groups."""
        out = dict(groups)
        buffers = self._buffers  # named directly: this stands on the way of every single step
        for i, name in enumerate(self.shapes):
            scale, shift = buffers[f"scale{i}"], buffers[f"shift{i}"]
            assert scale is not None
            assert shift is not None
            x = groups[name]
            x = torch.addcmul(shift, x if x.dtype == scale.dtype else x.to(scale.dtype), scale)
            x = x.clamp(-self.clip, self.clip) if self.clip < UNCLIPPED else x
            out[name] = x if x.dtype == torch.float32 else x.float()
        return out


def steady(mean: Tensor, variance: Tensor) -> Tensor:
    """The variance, 1 where there is next to none: what hardly moved so far may move later, and is not blown up."""
    return torch.where(variance > 1e-6 * (1 + mean.square()), variance, torch.ones_like(variance))
