"""Sparse linear and polynomial policies: ``linear:terms=4``, ``poly:degree=2,terms=12``.

All monomials are fitted, the weakest half dropped, the rest fitted again, until ``terms`` are left (recursive feature
elimination, Guyon 2002). Such a policy is a formula that a person can read.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from distillrl.errors import Failed, Misconfigured
from distillrl.records import ActionSpace, Spec
from distillrl.senses import Sense
from distillrl.students import growing
from distillrl.students.fitted import Fitted, seen
from distillrl.students.growing import Counts, Examples

MOST_MONOMIALS = 4096
FITTED_TO = 20_000
"""Examples, drawn at random, that a formula of few numbers is fitted to."""


class Polynomial(nn.Module):
    """A model weight [V, K] · monomials + bias [V].

    Monomial k is the product of z[places[k, d]] over d, where z is (x − mean) · scale and z[F] is 1.
    """

    def __init__(self, space: ActionSpace, width: int, degree: int, terms: int) -> None:
        super().__init__()
        self.space, self.width, self.degree = space, width, degree
        outputs = growing.width(space)
        self.mean: Tensor
        self.scale: Tensor
        self.places: Tensor
        self.weight: Tensor
        self.bias: Tensor
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self.register_buffer("places", torch.full((terms, degree), width))
        self.register_buffer("weight", torch.zeros(outputs, terms))
        self.register_buffer("bias", torch.zeros(outputs))

    def fit(self, given: Examples, generator: torch.Generator) -> None:
        """See Model."""
        rows = torch.randperm(len(given.x), generator=generator)[:FITTED_TO]
        given = growing.some(given, rows)
        spread = given.x.std(0, correction=0)
        self.mean, self.scale = given.x.mean(0), torch.where(spread > 1e-6, 1 / spread, torch.zeros_like(spread))
        terms = self.weight.shape[1]
        places = all_monomials(self.width, self.degree)
        while True:
            values = self._monomials(given.x, places)
            weight, bias = growing.linear(Examples(values, given.action, given.scores, given.weight), self.space)
            if len(places) <= terms:
                break
            strength = (weight * values.std(0, correction=0)).square().sum(0)
            kept = strength.argsort(descending=True, stable=True)[: max(terms, len(places) // 2)].sort().values
            places = places[kept]
        self.places, self.weight, self.bias = places, weight, bias

    def settle(self) -> None:
        """Check that every monomial is of numbers that there are; raises Failed."""
        if not bool(((self.places >= 0) & (self.places <= self.width)).all()):
            raise Failed("the artifact's polynomial is damaged: it reads what isn't there")

    def _monomials(self, x: Tensor, places: Tensor) -> Tensor:
        z = (x - self.mean) * self.scale
        z = torch.cat([z, torch.ones_like(z[..., :1])], -1)
        return z[..., places].prod(-1)

    def forward(self, x: Tensor) -> Tensor:
        """[..., F] → [..., V]"""
        return self._monomials(x, self.places) @ self.weight.T + self.bias

    def deciding(self) -> int:
        """The weights, the biases, and two numbers for each place that is read."""
        read = int((self.places.unique() < self.width).sum())
        return self.weight.numel() + self.bias.numel() + 2 * read

    def sizes(self) -> dict[str, int]:
        """How many monomials."""
        return {"terms": self.weight.shape[1]}

    def size(self) -> int:
        """Its weights."""
        return self.weight.numel()

    def figures(self) -> dict[str, float]:
        """How many monomials."""
        return {"monomials": float(self.weight.shape[1])}


def all_monomials(width: int, degree: int) -> Tensor:
    """[K, degree] the places of every monomial of degree 1 to ``degree`` in ``width`` numbers; ``width`` stands for 1."""
    found = [(*c, *[width] * (degree - d)) for d in range(1, degree + 1) for c in itertools.combinations_with_replacement(range(width), d)]
    return torch.tensor(found)


def _count(width: int, degree: int) -> int:
    count = 1
    for d in range(1, degree + 1):
        count = count * (width + d) // d
    return count - 1


def parse_linear(text: str) -> tuple[dict[str, int], Counts]:
    """``terms=4``; raises Misconfigured."""
    return growing.parse("linear", text, {"terms": (1, MOST_MONOMIALS)})


def parse_poly(text: str) -> tuple[dict[str, int], Counts]:
    """``degree=2,terms=12``; raises Misconfigured."""
    return growing.parse("poly", text, {"degree": (2, 6), "terms": (1, MOST_MONOMIALS)})


def _policy(word: str, text: str, spec: Spec, sense: Sense, made: int | None = None) -> Fitted:
    numbers, counts = parse_linear(text) if word == "linear" else parse_poly(text)
    if spec.action.kind not in {"discrete", "box"}:
        raise Misconfigured(f"student {word}:{text}: a formula is for discrete actions and for quantities, not for {spec.action}; a tree: takes it")
    width, degree = seen(sense), numbers.get("degree", 1 if word == "linear" else 2)
    most = _count(width, degree)
    if most > MOST_MONOMIALS:
        raise Misconfigured(f"student {word}:{text}: {width} numbers have {most:,} monomials of degree {degree}; at most {MOST_MONOMIALS} are fitted: --see fewer, or a lower degree")
    terms = made if made is not None else min(most, numbers.get("terms", most))
    return Fitted(spec, sense, Polynomial(spec.action, width, degree, terms), counts, f"{word}:{text}")


def make_linear(text: str, spec: Spec, head_kind: str | None, generator: torch.Generator, sense: Sense) -> Fitted:
    """Zeros, to be fitted."""
    return _policy("linear", text, spec, sense)


def make_poly(text: str, spec: Spec, head_kind: str | None, generator: torch.Generator, sense: Sense) -> Fitted:
    """Zeros, to be fitted."""
    return _policy("poly", text, spec, sense)


def build_linear(text: str, spec: Spec, header: Mapping[str, Any]) -> Fitted:
    """The policy of an artifact's header, its tensors not yet loaded."""
    return _policy("linear", text, spec, Sense.from_json(spec.observations, header["sense"]), _terms(header))


def build_poly(text: str, spec: Spec, header: Mapping[str, Any]) -> Fitted:
    """The policy of an artifact's header, its tensors not yet loaded."""
    return _policy("poly", text, spec, Sense.from_json(spec.observations, header["sense"]), _terms(header))


def _terms(header: Mapping[str, Any]) -> int:
    terms = int(header["sizes"]["terms"])
    if not 1 <= terms <= MOST_MONOMIALS:
        raise ValueError(f"{terms} monomials")
    return terms
