"""Networks in fewer bits: weights on a grid of whole numbers or under a mask of zeros, dense layers whose inputs are rounded.

A network as it plays has plain weights, which lie on their grid. While it learns (``hold``), each such weight is computed from a free one
on every use: masked, divided by its channel's scale, rounded, with the gradient passed straight through (Bengio 2013, 1308.3432), and
the scales learnt with it (Esser 2020, LSQ, 1902.08153, eq. 3; here in logarithms, so that Adam's steps are relative).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from distillrl.packing import SCALE, Form, grid, levels

HALF = 2048
"""Inputs of a rounded layer are whole numbers of 12 bits: products are of 16-bit numbers on x86 and Arm anyway."""
HALF_WIDE = 128
"""Of 8 bits where a layer is so wide (``WIDE``) that an int32 sum could overflow."""
WIDE = 8000
HEADROOM = {True: 1.0, False: 0.1}
"""By what share numbers may be greater than any in calibration: those of an observation (a landing's shock), and those inside."""


@dataclass(frozen=True)
class Compact:
    """How a network's tensors are held. ``rounded``: dense layer → (half, entries of its ``inverse``); ``aux``: scales by name.

    ``packed`` is false for a network whose weights are yet free: it is put on its grid when it begins to learn.
    """

    forms: Mapping[str, Form]
    rounded: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    aux: Mapping[str, Tensor] = field(default_factory=dict)
    packed: bool = True

    def to_json(self) -> dict[str, Any]:
        """Its keys of an artifact's header."""
        forms = {name: str(form) for name, form in self.forms.items()}
        return {"packing" if self.packed else "holding": forms, "rounded": {name: list(pair) for name, pair in self.rounded.items()}}


def of_header(header: Mapping[str, Any]) -> Compact | None:
    """None for a plain network; raises KeyError, TypeError or ValueError where the header is damaged."""
    key = "packing" if "packing" in header else "holding"
    if key not in header:
        return None
    rounded = {str(k): (int(half), int(size)) for k, (half, size) in header["rounded"].items()}
    if any(half not in {HALF, HALF_WIDE} or size < 1 for half, size in rounded.values()):
        raise ValueError("a layer is rounded in a way that isn't known")
    return Compact({str(k): Form.of(form) for k, form in header[key].items()}, rounded, packed=key == "packing")


class Rounded(nn.Linear):
    """A dense layer that reads whole numbers: x ≈ (q − zero) / inverse, q = round(x · inverse + zero) within [−half, half − 1].

    ``inverse`` and ``zero`` have one entry, or one of each input (where inputs come from an observation, whose numbers differ in range).
    """

    inverse: Tensor
    zero: Tensor

    def __init__(self, width: int, outputs: int, half: int, entries: int) -> None:
        super().__init__(width, outputs)
        self.reach = half
        self.register_buffer("inverse", torch.ones(entries))
        self.register_buffer("zero", torch.zeros(entries))

    def rounded(self, x: Tensor) -> Tensor:
        """What it makes of its input; the gradient passes where nothing is cut off."""
        inside = torch.clamp(x * self.inverse + self.zero, -self.reach, self.reach - 1)
        whole = torch.floor(inside.detach() + (self.reach + 0.5)) - self.reach
        if torch.is_grad_enabled() and inside.requires_grad:
            whole = inside + (whole - inside.detach())
        return (whole - self.zero) / self.inverse

    def forward(self, input: Tensor) -> Tensor:
        """[..., n] → [..., m]."""
        return nn.functional.linear(self.rounded(input), self.weight, self.bias)


class Held(nn.Module):
    """Computes a weight on its grid, or under its mask, from a free one: a parametrization."""

    mask: Tensor | None
    columns: Tensor | None

    def __init__(self, form: Form, mask: Tensor | None, scale: Tensor | None, columns: Tensor | None) -> None:
        super().__init__()
        self.form = form
        self.register_buffer("mask", mask)
        self.register_buffer("columns", columns)
        self.log_scale = nn.Parameter(scale.log()) if scale is not None else None

    def forward(self, weight: Tensor) -> Tensor:
        """The weight as it is used; of the same shape."""
        if self.mask is not None:
            weight = weight * self.mask
        if self.log_scale is None:
            return weight
        most, step = levels(self.form.bits), grid(weight, self.log_scale.exp(), self.columns)
        inside = torch.clamp(weight / step, -most, most)
        return (inside + (torch.round(inside) - inside).detach()) * step


def dense_layers(policy: Any) -> Iterator[tuple[str, nn.Linear]]:
    """Name and layer of a network's path from observation to action, in the order that they are computed."""
    for name, layer in (*policy.body.named_modules(prefix="body"), ("out", policy.out)):
        if isinstance(layer, nn.Linear):
            yield name, layer


def wear(policy: Any, compact: Compact) -> None:
    """Give a network its rounded layers (their numbers are tensors of the artifact), and the record itself."""
    if not hasattr(policy, "compact"):
        raise ValueError("only a network is held in fewer bits")
    for name, (half, entries) in compact.rounded.items():
        old = policy.get_submodule(name)
        if not isinstance(old, nn.Linear) or entries not in {1, old.in_features}:
            raise ValueError(f"{name} can't be rounded")
        if not isinstance(old, Rounded):
            _put(policy, name, _rounded(old, half, entries))
    policy.compact = compact


def _rounded(old: nn.Linear, half: int, entries: int) -> Rounded:
    layer = Rounded(old.in_features, old.out_features, half, entries)
    layer.weight, layer.bias = old.weight, old.bias
    return layer


def _put(policy: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(policy.get_submodule(parent), last, layer)


def hold(policy: Any) -> None:
    """Free the weights for learning, each seen through its grid and its mask; scales that aren't known yet are chosen."""
    compact: Compact = policy.compact
    for name, form in compact.forms.items():
        owner, _, attribute = name.rpartition(".")
        module = policy.get_submodule(owner)
        weight = getattr(module, attribute).detach()
        if form.dtype != "float32" or not (form.bits or form.sparse):
            continue  # 16-bit floats: learnt as they are, rounded in the file
        columns = module.inverse.clone() if isinstance(module, Rounded) and len(module.inverse) > 1 else None
        scale = None
        if form.bits:
            known = compact.aux.get(name + SCALE)
            scale = best_scale(weight, form.bits, columns) if known is None else known.clone()
        parametrize.register_parametrization(module, attribute, Held(form, (weight != 0).float() if form.sparse else None, scale, columns))
    policy.compact = replace(compact, packed=True, aux={})


def held(policy: nn.Module) -> bool:
    """Whether its weights are free under their grids."""
    return any(parametrize.is_parametrized(m) for m in policy.modules())


def best_scale(weight: Tensor, bits: int, columns: Tensor | None, tried: int = 46) -> Tensor:
    """[m]: of each channel, the scale that leaves the least squared error, between a tenth of what the greatest weight needs and all of it."""
    given = weight if columns is None else weight / columns.reshape(1, -1, *[1] * (weight.dim() - 2))
    rows = given.flatten(1).double()
    most = levels(bits)
    full = rows.abs().amax(1).clamp_min(1e-12) / most
    shares = torch.linspace(0.1, 1, tried, dtype=torch.float64).unsqueeze(-1) * full  # [tried, m]
    whole = torch.clamp(torch.round(rows / shares.unsqueeze(-1)), -most, most)
    error = (whole * shares.unsqueeze(-1) - rows).square().sum(-1)
    return shares.gather(0, error.argmin(0, keepdim=True))[0].float()


def plain_tensors(policy: nn.Module) -> dict[str, Tensor]:
    """The state of a network by the names that it has when it plays; scales beside the weights."""
    found: dict[str, Tensor] = {}
    for key, value in policy.state_dict().items():
        owner, held_by, rest = key.partition(".parametrizations.")
        if not held_by:
            found[key] = value
            continue
        name, _, part = rest.partition(".")
        if part == "original":
            found[f"{owner}.{name}"] = getattr(policy.get_submodule(owner), name).detach()
        elif part == "0.log_scale":
            found[f"{owner}.{name}{SCALE}"] = value.exp()
    compact = getattr(policy, "compact", None)
    return {**found, **(compact.aux if compact is not None else {})}


def count(policy: Any, parts: tuple[str, ...]) -> int:
    """Numbers learnt in these parts: zeros that are left out don't count, scales and roundings neither."""
    total = 0
    for name, value in plain_tensors(policy).items():
        if ":" in name or name.rpartition(".")[2] in {"inverse", "zero"} or not name.startswith(parts):
            continue
        form = policy.compact.forms.get(name)
        total += int(torch.count_nonzero(value)) if form is not None and form.sparse else value.numel()
    return total


def span(x: Tensor, each: bool, half: int) -> tuple[Tensor, Tensor]:
    """``inverse`` and ``zero`` for inputs x [n, F] seen in calibration, float64: of each number, or one for all."""
    lows, highs = (x.amin(0), x.amax(0)) if each else (x.min().reshape(1), x.max().reshape(1))
    low, high = lows.double().clamp_max(0), highs.double().clamp_min(0)
    still = high - low < 1e-6  # a number that never moved in calibration may move yet
    low, high = torch.where(still, -1.0, low * (1 + HEADROOM[each])), torch.where(still, 1.0, high * (1 + HEADROOM[each]))
    step = (high - low) / (2 * half - 1)
    return 1 / step, torch.round(-half - low / step)


def half_of(width: int) -> int:
    """How fine the inputs of a layer of this width are."""
    return HALF if width <= WIDE else HALF_WIDE
