"""The header of exported C: names, sizes, the contract in words, and the passport."""

from __future__ import annotations

import json
import keyword
import re
import textwrap
from collections.abc import Mapping
from typing import Any

import numpy as np

from distillrl.targets.plan import NOISE, Plan, padded

NOISES = {
    "gumbel": "Gumbel noise, -log(-log(u)) of uniform u in (0, 1)",
    "logistic": "logistic noise, log(u / (1 - u)) of uniform u in (0, 1)",
    "normal": "standard normal noise",
}
STACK_LIMIT = 4096
"""Scratch of more bytes than this is static, not on the stack, and then a policy is not reentrant."""

TYPES = {"float32": "float", "float64": "double", "uint8": "uint8_t", "int8": "int8_t", "int16": "int16_t", "uint16": "uint16_t", "int32": "int32_t"}
_RESERVED = {
    "auto", "break", "case", "char", "const", "continue", "default", "do", "double", "else", "enum", "extern", "float", "for", "goto", "if",
    "inline", "int", "long", "register", "restrict", "return", "short", "signed", "sizeof", "static", "struct", "switch", "typedef",
    "union", "unsigned", "void", "volatile", "while", "action", "memory",
}  # fmt: skip


def identifier(text: str) -> str:
    """A C name made of any text."""
    name = re.sub(r"[^0-9A-Za-z_]", "_", text) or "policy"
    return f"p_{name}" if name[0].isdigit() or name[0] == "_" or name in _RESERVED or keyword.iskeyword(name) else name


def fields(plan: Plan) -> dict[str, str]:
    """Group or state name → the struct's field name, all different."""
    made: dict[str, str] = {}
    for name in [*(g.name for g in plan.inputs), *(s.name for s in plan.states)]:
        wish = identifier(name)
        while wish in made.values():
            wish += "_"
        made[name] = wish
    return made


def text(plan: Plan, passport: Mapping[str, Any], name: str, facts: Mapping[str, Any], compile_line: str) -> str:
    """NAME.h."""
    upper, named, rule = name.upper(), fields(plan), plan.decode
    shapes = [f"    {TYPES[g.held]} {named[g.name]}[{max(1, g.size)}]; /* {_shape(g.shape)} {g.dtype}{_meaning(g.categories)} */" for g in plan.inputs]
    if not shapes:
        shapes = ["    uint8_t nothing[1]; /* this policy reads no observation */"]
    action = "int32_t action" if rule.discrete else "float action"
    action += "" if rule.kind == "argmax" else f"[{plan.action_size}]"
    memory = "".join(f"    float {named[s.name]}[{padded(s.size)}];\n" for s in plan.states)
    takes = f"{name}_memory *memory, " if memory else ""
    lines = [
        f"/* {name}.h: a policy as C99, made by distillrl.",
        *[f" * {line}" for line in _contract(plan, name, facts, compile_line)],
        " *",
        " * Its passport:",
        *[f" *   {line}" for line in textwrap.wrap(_comment(passport), 130, break_long_words=True, break_on_hyphens=False)],
        " */",
        f"#ifndef {upper}_H\n#define {upper}_H\n\n#include <stdint.h>\n",
        '#ifdef __cplusplus\nextern "C" {\n#endif\n',
        f"enum {{ {upper}_OK = 0, {upper}_BAD_INPUT = 1, {upper}_OVERFLOW = 2 }};\n",
        "typedef struct {\n" + "\n".join(shapes) + f"\n}} {name}_input;\n",
        f"typedef struct {{\n    {action};{_action_comment(plan)}\n    float {rule.raw_name}[{plan.raw_size}];\n}} {name}_output;\n",
    ]
    if memory:
        lines.append(f"typedef struct {{\n{memory}}} {name}_memory;\n\nvoid {name}_reset({name}_memory *memory);\n")
    if plan.log_std is not None:
        values = ", ".join(f"{v:.9g}" for v in plan.log_std.tolist())
        lines.append(f"/* The logarithm of the standard deviation of each action's Gaussian, for those who sample. */\n#define {upper}_LOG_STD {{{values}}}\n")
    lines.append(f"int {name}_act({takes}const {name}_input *input, {name}_output *output);\n\n#ifdef __cplusplus\n}}\n#endif\n\n#endif")
    return "\n".join(lines) + "\n"


def _contract(plan: Plan, name: str, facts: Mapping[str, Any], compile_line: str) -> list[str]:
    upper, rule = name.upper(), plan.decode
    least = {"argmax": f"action {rule.start}", "clip": "the action nearest to 0 inside of the bounds", "tanh": "the middle of the bounds"}
    static = facts["ram_static"]
    lines = [
        "",
        f"{name}_act reads one observation, as the environment gives it (normalising and all else is inside), and writes {'a sampled' if plan.noise else 'the most likely'}",
        f"action in the environment's units, and the {rule.raw_name} that it was decided from. It returns",
        f"  {upper}_OK         the action is the policy's;",
        f"  {upper}_BAD_INPUT  a number of the observation is NaN or infinite, or a category lies outside of its range;",
        f"  {upper}_OVERFLOW   the numbers are finite, but so large that the network's sums are not.",
        f"In the last two cases {rule.raw_name} are 0, the action is {least.get(rule.kind, 'all zeros')}, and memory stays as it was.",
        "The shape of an observation is its struct's: another does not compile. Nothing is read or written outside of the structs,",
        "whatever the numbers in them. Pointers must not be null." + (f" Not reentrant: {static} bytes of scratch are static." if static else " Reentrant."),
    ]
    if plan.noise:
        lines.append(f"The action is a sample: fill {fields(plan)[plan.noise]} with {NOISES[NOISE[rule.kind]]} each time.")
    if plan.states:
        lines.append(f"Call {name}_reset when an episode starts. Each environment has a {name}_memory of its own.")
    lines += [
        "",
        f"Memory: flash {facts['flash_constants']} bytes of constants plus code, static RAM {static} bytes, stack about {facts['stack']} bytes"
        + (f", {name}_memory {facts['memory_struct']} bytes" if plan.states else "")
        + ". No heap, no library.",
        f"Compile: {compile_line}   (for a microcontroller: -Os or -O2, as it comes)",
    ]
    return lines


def _comment(passport: Mapping[str, Any]) -> str:
    return json.dumps(passport, sort_keys=True).replace("*/", "*\\/").replace("/*", "\\/*").replace("??", "?\\u003f")


def _shape(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _meaning(categories: tuple[int, ...]) -> str:
    return f", categories 0 to {', '.join(str(n - 1) for n in categories)}" if categories else ""


def _action_comment(plan: Plan) -> str:
    rule = plan.decode
    if rule.kind == "argmax":
        return f" /* {rule.start} to {rule.start + plan.raw_size - 1} */"
    if rule.kind == "multi":
        return f" /* 0 to {', '.join(str(n - 1) for n in rule.nvec)} */"
    if rule.kind == "threshold":
        return " /* 0 or 1 */"
    low, high = (np.unique(np.asarray(v)) for v in (rule.low, rule.high))
    return f" /* {_shape(rule.shape)}, {low.min():g} to {high.max():g} */"
