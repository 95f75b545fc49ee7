"""A linear or polynomial policy for a person; see telling.py."""

from __future__ import annotations

from html import escape

import torch
from torch import Tensor

from distillrl.students.fitted import Fitted, called
from distillrl.students.formulas import chosen, decided, equations, expression, outputs
from distillrl.students.tree_drawing import page
from distillrl.students.tree_text import PYTHON, C, signature


def as_text(policy: Fitted) -> str:
    """The formulas, and what its letters stand for: z is a number in deviations from its mean."""
    model, names = policy.model, called(policy)
    read = [i for i in model.places.unique().tolist() if i < model.width]
    letters = [f"z{i} = ({names[i]} {-float(model.mean[i]):+.4g}) · {float(model.scale[i]):.4g}" for i in read]
    head = ["the largest of"] if policy.spec.action.kind == "discrete" else []
    return "\n".join([*head, *equations(policy.spec.action, model.weight, model.bias, monomials(policy)), "where", *letters])


def monomials(policy: Fitted, sign: str = "·", letter: str = "z{}") -> list[str]:
    """What each monomial is called, such as z0·z2."""
    width = policy.model.width
    return [sign.join(letter.format(i) for i in row if i < width) for row in policy.model.places.tolist()]


def path(policy: Fitted, x: Tensor) -> list[str]:
    """What each monomial adds to the outputs, the greatest first, and what follows."""
    model = policy.model
    values = model._monomials(x, model.places)
    added = model.weight * values
    order = (added.amax(0) - added.amin(0) if len(added) > 1 else added.abs()[0]).argsort(descending=True)
    words = monomials(policy)
    said = [f"{words[k]} = {float(values[k]):.4g}: " + ", ".join(f"{out} {float(a):+.4g}" for out, a in zip(outputs(policy.spec.action), added[:, k], strict=True)) for k in order.tolist()]
    return [*said, decided(policy, x)]


def as_python(policy: Fitted) -> str:
    """``act(x)`` in plain Python."""
    body = [*(f"z{i} = (x[{i}] - {m!r}) * {s!r}" for i, m, s in _read(policy)), *chosen(policy.spec.action, _expressions(policy, ""), True)]
    return "\n".join([*signature(policy, PYTHON), *("    " + line for line in body)]) + "\n"


def as_c(policy: Fitted) -> str:
    """``act`` in C."""
    body = [*(f"const float z{i} = (x[{i}] - {m!r}f) * {s!r}f;" for i, m, s in _read(policy)), *chosen(policy.spec.action, _expressions(policy, "f"), False)]
    return "\n".join([*signature(policy, C), *("    " + line for line in body), "}"]) + "\n"


def as_svg(policy: Fitted) -> str:
    """A bar for each weight: to the right where it speaks for the output, to the left against it."""
    names, words, drawn, y = outputs(policy.spec.action), monomials(policy), [], 20.0
    most = max(float(policy.model.weight.abs().max()), 1e-12)
    for name, row in zip(names, policy.model.weight, strict=True):
        drawn.append(f'<text x="210" y="{y:g}" font-weight="bold">{escape(name)}</text>')
        for word, weight in zip(words, row.tolist(), strict=True):
            y += 18
            long = 160 * abs(weight) / most
            left = 210 if weight >= 0 else 210 - long
            drawn.append(f'<rect x="{left:g}" y="{y - 11:g}" width="{long:.4g}" height="13" fill="{"#7a7" if weight >= 0 else "#c88"}"/>')
            drawn.append(f'<text x="390" y="{y:g}">{escape(word)} {weight:+.3g}</text>')
        y += 30
    return page(500, y, "".join(drawn))


def _read(policy: Fitted) -> list[tuple[int, float, float]]:
    model = policy.model
    return [(i, float(model.mean[i]), float(model.scale[i])) for i in model.places.unique().tolist() if i < model.width]


def _expressions(policy: Fitted, suffix: str) -> list[str]:
    words = monomials(policy, " * ")
    return [expression(w, torch.as_tensor(b), words, suffix) for w, b in zip(policy.model.weight, policy.model.bias, strict=True)]
