"""Play with what was exported, through what runs it in the product: a Policy, so that evaluation and ``check`` take it as any other."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import tempfile
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distillrl.actions import Deterministic
from distillrl.errors import Failed, Missing
from distillrl.policies import ACTION, Memory
from distillrl.records import Prediction, Spec
from distillrl.targets import compiled
from distillrl.targets import plan as steps
from distillrl.targets.plan import Plan

Arrays = dict[str, NDArray[Any]]
Run = Callable[[Arrays, Arrays], tuple[NDArray[Any], NDArray[Any], Arrays]]
"""Observations {group: [n, *shape]} and memory {name: [n, size]} → actions in the environment's units, raw outputs [n, size], memory."""


class Played:
    """An exported policy as a Policy. ``raw`` holds the raw outputs of the last call."""

    gives: frozenset[str] = frozenset({"action"})

    def __init__(self, spec: Spec, sizes: Mapping[str, tuple[int, ...]], run: Run, to: str, draw: Callable[[int], Arrays] | None = None) -> None:
        self.spec, self.sizes, self.run, self.draw = spec, dict(sizes), run, draw
        self.info: Mapping[str, Any] = {"format": f"exported to {to}"}
        self.raw: NDArray[Any] = np.zeros((0, 0), np.float32)

    def init(self, n: int) -> Memory:
        """Zeros."""
        return {name: torch.zeros(n, *shape) for name, shape in self.sizes.items()}

    def act(self, obs: Mapping[str, Tensor], memory: Memory, starts: Tensor | None, wants: frozenset[str] = ACTION) -> tuple[Prediction, Memory]:
        """See Policy.act; one leading dimension."""
        groups = {name: obs[name].numpy() for name in self.spec.observations}
        if self.draw is not None:
            groups |= self.draw(len(next(iter(groups.values()))))
        held = {name: value.numpy().copy() for name, value in memory.items()}
        if starts is not None:
            for value in held.values():
                value[starts.numpy()] = 0
        action, self.raw, after = self.run(groups, held)
        space = self.spec.action
        chosen = torch.as_tensor(np.array(action)).reshape(len(action), *([] if space.kind == "discrete" else [space.dimensions]))
        if space.kind == "box":
            return Prediction(Deterministic(chosen.float(), torch.tensor(space.low), torch.tensor(space.high))), _tensors(after)
        return Prediction(Deterministic(chosen.long() - space.start)), _tensors(after)


def _tensors(memory: Arrays) -> Memory:
    return {name: torch.as_tensor(np.ascontiguousarray(value)) for name, value in memory.items()}


def python(main: Path) -> Run:
    """Run a file of the targets python or compiled."""
    found = importlib.util.spec_from_file_location(f"_exported_{main.stem}", main)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)

    def run(groups: Arrays, memory: Arrays) -> tuple[NDArray[Any], NDArray[Any], Arrays]:
        return module.run(groups, memory)

    return run


def c(main: Path, plan: Plan) -> Run:
    """Compile exported C and run it; raises Missing without a compiler."""
    if not any(shutil.which(name) for name in ("gcc", "cc", "clang")):
        raise Missing("playing exported C needs a C compiler: apt-get install gcc")
    with tempfile.TemporaryDirectory(prefix="distillrl-c-") as folder:  # a library that is loaded needs its file no more
        for suffix in (".c", ".h"):
            shutil.copy(main.with_suffix(suffix), folder)
        return python(compiled.loader(plan, {}, Path(folder), main.stem)[1])


def onnx(main: Path, plan: Plan) -> Run:
    """Run an ONNX file in onnxruntime, one thread; raises Missing without it."""
    try:
        import onnxruntime
    except ImportError:
        raise Missing("playing exported ONNX needs onnxruntime: pip install 'distillrl[onnx]'") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(main), options, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]

    def run(groups: Arrays, memory: Arrays) -> tuple[NDArray[Any], NDArray[Any], Arrays]:
        fed = {**{k: v for k, v in groups.items() if k in names}, **{f"{k}_in": v for k, v in groups.items() if k not in names and f"{k}_in" in names}}
        fed |= {f"{k}_in": v for k, v in memory.items()}
        action, raw, *after = session.run(None, fed)
        return action, raw, dict(zip((s.name for s in plan.states), after, strict=True))

    return run


DRIVER = """
import { Policy } from "./policy.mjs";
import { createInterface } from "node:readline";
const policy = new Policy();
for await (const line of createInterface({ input: process.stdin })) {
  const { states, memory, names, fields } = JSON.parse(line);
  const answer = { action: [], raw: [], memory: [] };
  states.forEach((state, k) => {
    names.forEach((name, i) => policy[fields[i]].set(memory[k][i]));
    answer.action.push(policy.act(state));
    answer.raw.push(Array.from(policy.RAW));
    answer.memory.push(fields.map((field) => Array.from(policy[field])));
  });
  process.stdout.write(JSON.stringify(answer) + "\\n");
}
"""


def js(main: Path, plan: Plan) -> Run:
    """Run a module in node, which stays open; raises Missing without it."""
    node = shutil.which("node")
    if node is None:
        raise Missing("playing exported JavaScript needs node: apt-get install nodejs")
    folder = tempfile.TemporaryDirectory(prefix="distillrl-js-")
    shutil.copy(main, Path(folder.name) / "policy.mjs")
    driver = Path(folder.name) / "driver.mjs"
    driver.write_text(DRIVER.replace("RAW", plan.decode.raw_name), encoding="utf-8")
    process = subprocess.Popen([node, driver], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    names, fields = [s.name for s in plan.states], [f"h{i}" for i in range(len(plan.states))]

    def run(groups: Arrays, memory: Arrays) -> tuple[NDArray[Any], NDArray[Any], Arrays]:
        n = len(next(iter(groups.values())))
        flat = {g.name: groups[g.name].reshape(n, -1).tolist() for g in plan.inputs}
        states = [{name: rows[k] for name, rows in flat.items()} for k in range(n)]
        held = [[memory[name][k].tolist() for name in names] for k in range(n)]
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps({"states": states, "memory": held, "names": names, "fields": fields}) + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            pass
        line = process.stdout.readline()
        if not line:
            said = process.stderr.read() if process.stderr else ""
            raise Failed(f"node could not run {main}: {next((s for s in said.splitlines() if 'Error' in s), said[:200])}")
        answer = json.loads(line)
        after = {name: np.array([row[i] for row in answer["memory"]], np.float32) for i, name in enumerate(names)}
        return np.array(answer["action"]), np.array(answer["raw"], np.float32), after

    weakref.finalize(run, _end, process, folder)
    return run


def _end(process: subprocess.Popen[str], folder: tempfile.TemporaryDirectory[str]) -> None:
    """Close node, which ends with its input, and remove its folder."""
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            stream.close()
    process.wait(5)
    folder.cleanup()


def pt2(main: Path) -> Run:
    """Run a torch.export file."""
    program = torch.export.load(main)
    module = program.module()
    assert program.example_inputs is not None
    kinds = {k: v.dtype for k, v in program.example_inputs[0][1].items()}  # a stack of frames is kept in bytes

    def run(groups: Arrays, memory: Arrays) -> tuple[NDArray[Any], NDArray[Any], Arrays]:
        n = len(next(iter(groups.values())))
        with torch.inference_mode():
            action, raw, after = module(
                {k: torch.as_tensor(v) for k, v in groups.items()}, {k: torch.as_tensor(v).to(kinds[k]) for k, v in memory.items()}, torch.zeros(n, dtype=torch.bool)
            )
        return action.numpy(), raw.numpy(), {k: v.numpy() for k, v in after.items()}

    return run


def opened(to: str, main: Path, spec: Spec, plan: Plan | None, sizes: Mapping[str, tuple[int, ...]]) -> Played:
    """A Played for the main file of an export; ``sizes`` are the shapes of its memory, {name: shape}."""
    if to == "torch" or plan is None:
        return Played(spec, sizes, pt2(main), to)
    runs: dict[str, Callable[[], Run]] = {
        "onnx": lambda: onnx(main, plan),
        "js": lambda: js(main, plan),
        "python": lambda: python(main),
        "compiled": lambda: python(main),
    }
    run = runs[to]() if to in runs else c(main, plan)
    return Played(spec, {s.name: (s.size,) for s in plan.states}, run, to, _drawer(plan) if plan.noise else None)


def _drawer(plan: Plan) -> Callable[[int], Arrays]:
    """The noise of n sampled actions, always the same from the beginning on."""
    generator = np.random.default_rng(0)
    kind = steps.NOISE[plan.decode.kind]

    def draw(n: int) -> Arrays:
        shape = (n, plan.size(plan.noise))
        drawn = generator.standard_normal(shape) if kind == "normal" else generator.gumbel(size=shape) if kind == "gumbel" else generator.logistic(size=shape)
        return {plan.noise: drawn.astype(np.float32)}

    return draw
