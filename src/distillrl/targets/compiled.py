"""Compiled: the C files, a loader for Python (ctypes and numpy alone), and a shared library where a compiler is here to make it."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distillrl.errors import Failed, Missing
from distillrl.targets import c, c_header
from distillrl.targets.plan import NOISE, Plan, padded
from distillrl.targets.python import DRAW, NUMBERS


def write(plan: Plan, passport: Mapping[str, Any], folder: Path, name: str) -> tuple[list[Path], dict[str, Any]]:
    """Write NAME.h, NAME.c, NAME_python.c (the batch loop), NAME.py, and compile; raises Missing without a C compiler."""
    if shutil.which("cc") is None and shutil.which("gcc") is None and shutil.which("clang") is None:
        raise Missing("export --to compiled needs a C compiler, and neither cc, gcc nor clang is here: apt-get install gcc (or export --to c)")
    files, facts = c.write(plan, passport, folder, name)
    name = c_header.identifier(name)
    return [*files, *loader(plan, passport, folder, name)], facts


def loader(plan: Plan, passport: Mapping[str, Any], folder: Path, name: str) -> list[Path]:
    """The Python side of C files that lie in ``folder``: NAME_python.c, NAME.py, and the library NAME-DIGEST.so."""
    made = [folder / f"{name}_python.c", folder / f"{name}.py"]
    made[0].write_text(_shim(plan, name), encoding="utf-8")
    digest = hashlib.sha256("".join((folder / f).read_text(encoding="utf-8") for f in (f"{name}.h", f"{name}.c", f"{name}_python.c")).encode()).hexdigest()[:12]
    library = folder / f"{name}-{digest}.so"  # a name of its own: a library that is loaded already is never taken for this one
    made[1].write_text(_module(plan, passport, name, library.name), encoding="utf-8")
    space: dict[str, Any] = {"__file__": str(made[1]), "__name__": name}
    try:
        exec(compile(made[1].read_text(encoding="utf-8"), str(made[1]), "exec"), space)  # our own file, written above: it compiles the library
    except (OSError, subprocess.CalledProcessError) as error:
        raise Failed(f"{library} could not be compiled: {error}") from None
    if not library.is_file():
        raise Failed(f"{library} could not be compiled")
    return [*made, library]


def _shim(plan: Plan, name: str) -> str:
    memory = f"{name}_memory *memory, " if plan.states else ""
    return f"""/* {name}_python.c: what {name}.py calls. */
#include "{name}.c"

int {name}_run({memory}const {name}_input *input, {name}_output *output, int32_t *status, size_t n);
size_t {name}_sizes(int which);

/* n states, one after the other; status[k] is {name}_act's answer, and the result is the largest of them. */
int {name}_run({memory}const {name}_input *input, {name}_output *output, int32_t *status, size_t n)
{{
    int worst = 0;
    size_t k;
    for (k = 0; k < n; k++) {{
        const int answer = {name}_act({'memory + k, ' if plan.states else ''}input + k, output + k);
        status[k] = (int32_t)answer;
        if (answer > worst) worst = answer;
    }}
    return worst;
}}

size_t {name}_sizes(int which)
{{
    return which == 0 ? sizeof({name}_input) : sizeof({name}_output);
}}
"""


def _module(plan: Plan, passport: Mapping[str, Any], name: str, library: str) -> str:
    named, rule = c_header.fields(plan), plan.decode
    action = (["action", "<i4"] if rule.discrete else ["action", "<f4"]) + ([] if rule.kind == "argmax" else [(plan.action_size,)])
    return TEMPLATE.format(
        name=name,
        library=library,
        passport=repr(json.dumps(passport, sort_keys=True)),
        groups=repr([(g.name, g.shape) for g in plan.inputs]),
        input=repr([(named[g.name], f"{g.held}", (max(1, g.size),)) for g in plan.inputs] or [("nothing", "uint8", (1,))]),
        output=repr([tuple(action), (rule.raw_name, "<f4", (plan.raw_size,))]),
        memory=repr([(named[s.name], "<f4", (padded(s.size),)) for s in plan.states]),
        states=repr([(s.name, named[s.name], s.size) for s in plan.states]),
        raw_name=rule.raw_name,
        noise=repr(plan.noise),
        draw=DRAW[NOISE[rule.kind]],
        numbers=NUMBERS,
        single="int(self._out)" if rule.kind == "argmax" else f"self._out.astype({rule.dtype!r}).reshape({rule.shape!r})",
    )


TEMPLATE = '''"""A policy as a compiled library, made by distillrl; it needs numpy, and a C compiler where {library} isn't there.
That library is made for the machine that made it: on another one, delete it, and it is made anew.

    policy = Policy()
    action = policy.act(observation)          # one state, as the environment gives it; the action as it takes it
    policy.reset()                            # where an episode starts (matters for a policy with memory)
    actions, {raw_name}, memory = run(observations, memory)     # a batch: arrays [n, ...] (dicts of them where there are several groups)

Raises ValueError for a wrong shape, NaN, infinity, a category outside of its range, or sums that overflow (see {name}.h).
"""

import ctypes
import json
import os
import shutil
import subprocess

import numpy as np

PASSPORT = json.loads({passport})
GROUPS = {groups}
INPUT = np.dtype({input}, align=True)
OUTPUT = np.dtype({output}, align=True)
MEMORY = np.dtype({memory}, align=True)
STATES = {states}
"""(name, field, size) of each part of the memory."""
NOISE = {noise}
"""The group that holds the noise of a sampled action; empty where the action is the most likely one."""
_HERE = os.path.dirname(os.path.abspath(__file__))


def _library():
    path = os.path.join(_HERE, "{library}")
    if not os.path.exists(path):
        compiler = shutil.which("gcc") or shutil.which("cc") or shutil.which("clang")
        if compiler is None:
            raise OSError("a C compiler (gcc, cc or clang) is needed to make " + path)
        flags = ["-std=c99", "-O3", "-march=native", "-ffp-contract=fast", "-fPIC", "-shared"]
        fresh = path + "." + str(os.getpid())
        subprocess.run([compiler, *flags, "-o", fresh, os.path.join(_HERE, "{name}_python.c")], check=True)
        os.replace(fresh, path)
    return ctypes.CDLL(path)


_LIBRARY = _library()
_act, _run, _sizes = _LIBRARY.{name}_act, _LIBRARY.{name}_run, _LIBRARY.{name}_sizes
_sizes.restype = ctypes.c_size_t
if (_sizes(0), _sizes(1)) != (INPUT.itemsize, OUTPUT.itemsize):
    raise OSError("{library} is not the library of this file: delete it")


def _drawn(generator, shape):
    return {draw}.astype(np.float32)


{numbers}

def _fill(into, obs, lead, generator=None):
    given = obs if isinstance(obs, dict) else {{GROUPS[0][0]: obs}}
    if NOISE and NOISE not in given:
        given = {{**given, NOISE: _drawn(generator or np.random.default_rng(), lead + GROUPS[-1][1])}}
    for field, (name, shape) in zip(INPUT.names, GROUPS):
        if name not in given:
            raise ValueError(f"the observation lacks the group {{name!r}}")
        x = _numbers(name, given[name], INPUT[field].base.name)
        if x.shape != lead + shape:
            raise ValueError(f"observation {{name!r}}: shape {{x.shape}} was given, {{lead + shape}} is right")
        into[field] = x.reshape(lead + into[field].shape[len(lead):])


def run(obs, memory=None):
    """Actions [n] or [n, A], {raw_name} [n, …] and memory {{name: [n, size]}} for a batch of observations; raises ValueError where one is bad."""
    first = next(iter(obs.values())) if isinstance(obs, dict) else obs
    n = len(first)
    given, got, status = np.zeros(n, INPUT), np.zeros(n, OUTPUT), np.zeros(n, np.int32)
    _fill(given, obs, (n,))
    pointers = [ctypes.c_void_p(a.ctypes.data) for a in (given, got, status)]
    held = np.zeros(n, MEMORY)
    if STATES:
        for name, field, size in STATES if memory is not None else ():
            held[field][:, :size] = memory[name]
        pointers.insert(0, ctypes.c_void_p(held.ctypes.data))
    if _run(*pointers, ctypes.c_size_t(n)):
        raise ValueError(f"bad input (1) or overflow (2) in states {{np.flatnonzero(status)[:8].tolist()}}: status {{status[status > 0][:8].tolist()}}")
    return got["action"], got["{raw_name}"], {{name: held[field][:, :size] for name, field, size in STATES}}


class Policy:
    """Plays one environment."""

    def __init__(self, seed=None):
        self._generator = np.random.default_rng(seed) if NOISE else None
        self._given, self._got, self._memory = np.zeros((), INPUT), np.zeros((), OUTPUT), np.zeros((), MEMORY)
        held = ([self._memory] if MEMORY.names else []) + [self._given, self._got]
        pointers = [ctypes.c_void_p(a.ctypes.data) for a in held]
        self._call = lambda: _act(*pointers)
        self._out = self._got["action"]
        self.{raw_name} = self._got["{raw_name}"]
        plain = len(GROUPS) == 1 and GROUPS[0][1] == INPUT[0].shape
        self._obs = self._given[INPUT.names[0]] if plain else None
        self._shape = GROUPS[0][1] if plain else None
        self._any = INPUT[0].base.kind == "f"

    def reset(self):
        """Forget: an episode starts."""
        self._memory[...] = np.zeros((), MEMORY)

    def act(self, obs):
        """The action for one observation."""
        if self._obs is not None and type(obs) is np.ndarray and obs.shape == self._shape and (self._any or obs.dtype == self._obs.dtype):
            self._obs[...] = obs
        else:
            _fill(self._given, obs, (), self._generator)
        if self._call():
            raise ValueError("the observation holds NaN, infinity or a category outside of its range, or sums overflow")
        return {single}
'''
