"""What a network's layers read while it plays: the states that pruning weighs by, and that roundings are set by."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from distillrl import evaluation
from distillrl.envs import EnvOptions, Seeds
from distillrl.students import compact
from distillrl.students.networks import Network
from distillrl.students.recurrent import Cell

STATES = 4096
"""States that are looked at, at least."""
CHUNK = 25
"""Episodes played at a time until there are enough."""


def parts(policy: Network) -> Iterator[tuple[str, nn.Module]]:
    """The layers with weights from observation to action: a recurrent cell, then dense layers, then others (convolutions)."""
    known = []
    if isinstance(policy.recurrent, Cell):
        known.append(("recurrent.cell", policy.recurrent.cell))
    known += list(compact.dense_layers(policy))
    yield from known
    names = {name for name, _ in known}
    yield from ((name, m) for name, m in policy.named_modules() if isinstance(m, nn.Conv2d | nn.Conv1d) and name not in names)


def inputs(policy: Any, options: EnvOptions, seed: int, states: int = STATES) -> dict[str, Tensor]:
    """{layer: [n, …]}: what each of ``parts`` reads while the policy plays, n ≥ ``states``; of a recurrent cell ``NAME`` and ``NAME.h``."""
    seen: dict[str, list[Tensor]] = {}
    with _noting(policy, seen):
        first = 0
        while not seen or sum(map(len, next(iter(seen.values())))) < states:
            evaluation.play(policy, options, CHUNK, Seeds(seed, "train", first=first))
            first += CHUNK
    return {name: torch.cat(values) for name, values in seen.items()}


@contextmanager
def _noting(policy: Network, seen: dict[str, list[Tensor]]) -> Iterator[None]:
    def note(name: str) -> Any:
        def hook(module: nn.Module, given: tuple[Any, ...], out: Any) -> None:
            seen.setdefault(name, []).append(given[0].detach().clone())
            if len(given) > 1:
                state = given[1][0] if isinstance(given[1], tuple) else given[1]
                seen.setdefault(f"{name}.h", []).append(state.detach().clone())

        return hook

    # Not a pre-hook: a network calls plain layers without their module where no forward hook is on them.
    handles = [module.register_forward_hook(note(name)) for name, module in parts(policy)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def round_inputs(policy: Network, seen: dict[str, Tensor]) -> dict[str, tuple[int, int]]:
    """Make the dense layers of a network without memory ``Rounded``, set by what they read; {layer: (half, entries)}.

    What comes from the observation has a step for each number, what comes from inside one for the layer.
    """
    made: dict[str, tuple[int, int]] = {}
    first = next(iter(policy.body.children()), policy.out)  # behind convolutions no dense layer reads the observation
    for name, layer in list(compact.dense_layers(policy)):
        half = compact.half_of(layer.in_features)
        inverse, zero = compact.span(seen[name], layer is first, half)
        made[name] = (half, len(inverse))
        compact.wear(policy, compact.Compact({}, {name: made[name]}))
        rounded = policy.get_submodule(name)
        assert isinstance(rounded, compact.Rounded)
        rounded.inverse.copy_(inverse.float())
        rounded.zero.copy_(zero.float())
    return made


@torch.no_grad()
def correct_biases(rounded: Network, exact: Network, seen: dict[str, Tensor]) -> None:
    """Take the mean error that rounding leaves off the biases, layer by layer (Nagel 2019, 1906.04721, section 4.2, with data)."""
    first = next(iter(compact.dense_layers(exact)))[0]
    x = y = seen[first]
    chain = dict(compact.dense_layers(exact))
    for name, layer in (*exact.body.named_children(), ("", exact.out)):
        name = f"body.{name}" if name else "out"
        if name not in chain:
            x, y = layer(x), layer(y)
            continue
        mine = rounded.get_submodule(name)
        assert isinstance(mine, nn.Linear)
        y = layer(y)
        x = mine(x)
        error = (x - y).mean(0)
        mine.bias.sub_(error)
        x = x - error
