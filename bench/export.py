"""Latency of one policy in everything that runs it, side by side in one run: SB3, torch, onnxruntime, and what `distillrl export` writes.

    PYTHONPATH=src python bench/export.py                        # a minute; --rounds 3 for a look
    PYTHONPATH=src python bench/export.py --sb3 ../venvs/sb3/bin/python --json figures.json

Each figure is the least of many short rounds, the contenders taking turns, one thread: other jobs on the machine only make the rounds
longer. "hand-written" is bench/handwritten.c, gcc's vector types and no export: the yardstick for generated C. A column is a network
(8 numbers in, 4 actions) and a small CNN on 84×84×4 bytes.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import torch
from torch import nn

from distillrl import exporting, students
from distillrl.actions import Head
from distillrl.records import ActionSpace, Group, Spec
from distillrl.senses import Scale, Sense
from distillrl.students.networks import Network

FLAGS = ["-std=c99", "-O3", "-march=native", "-ffp-contract=fast"]
WIDTHS = (16, 64, 256)
SPEC = Spec({"obs": Group((8,), "float32")}, ActionSpace("discrete", n=4))
Timer = Callable[[], float]
"""One short round: microseconds a call."""


def mlp(width: int) -> Network:
    """A student of two hidden layers."""
    return students.make(f"mlp:{width}x{width}", SPEC, torch.Generator().manual_seed(0))


def cnn() -> Network:
    """8 filters 8×8 by 4, 16 of 4×4 by 2, 64 units."""
    torch.manual_seed(0)
    spec = Spec({"obs": Group((4, 84, 84), "uint8")}, ActionSpace("discrete", n=4))
    layers = [nn.Unflatten(-1, (4, 84, 84)), nn.Conv2d(4, 8, 8, 4), nn.ReLU(), nn.Conv2d(8, 16, 4, 2), nn.ReLU(), nn.Flatten(-3), nn.Linear(16 * 81, 64), nn.ReLU()]
    return Network(spec, Sense(spec.observations, [Scale({"obs": 255.0})]), nn.Sequential(*layers), nn.Linear(64, 4), Head.of("categorical", spec.action)).eval()


def loop(call: Callable[[], Any], calls: int) -> Timer:
    """A round of so many calls from Python."""

    def timer() -> float:
        began = time.perf_counter()
        for _ in range(calls):
            call()
        return (time.perf_counter() - began) / calls * 1e6

    return timer


SB3 = """
import sys, time, warnings
warnings.simplefilter("ignore")
import gymnasium, numpy as np, torch
torch.set_num_threads(1)
from stable_baselines3 import PPO
width = int(sys.argv[1])
class E(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(0, 255, (4, 84, 84), np.uint8) if width == 0 else gymnasium.spaces.Box(-9, 9, (8,), np.float32)
    action_space = gymnasium.spaces.Discrete(4)
    def reset(self, seed=None, options=None): return self.observation_space.sample(), {}
    def step(self, a): return self.observation_space.sample(), 0.0, False, False, {}
model = PPO("CnnPolicy" if width == 0 else "MlpPolicy", E(), device="cpu", n_steps=8, batch_size=8, policy_kwargs=None if width == 0 else {"net_arch": [width, width]})
obs = E.observation_space.sample()
for line in sys.stdin:
    began = time.perf_counter()
    for _ in range(int(line)): model.predict(obs, deterministic=True)
    print((time.perf_counter() - began) / int(line) * 1e6, flush=True)
"""


def sb3(python: str, width: int, calls: int) -> Timer | None:
    """SB3's predict in its own interpreter, which waits between rounds; None where it isn't there."""
    if not Path(python).exists():
        return None
    process = subprocess.Popen([python, "-c", SB3, str(width)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def timer() -> float:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{calls}\n")
        process.stdin.flush()
        return float(process.stdout.readline())

    timer()
    return timer


MAIN = """
#define _POSIX_C_SOURCE 200809L
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include "@HEADER@"
int main(void)
{
    static policy_input states[64];
    policy_output output;
    double best = 1e30;
    long sum = 0, r, k;
    for (k = 0; k < 64; k++) { unsigned i; for (i = 0; i < sizeof states[k].obs / sizeof states[k].obs[0]; i++) states[k].obs[i] = @VALUE@; }
    for (r = 0; r < @ROUNDS@; r++) {
        struct timespec a, b;
        double t;
        clock_gettime(CLOCK_MONOTONIC, &a);
        for (k = 0; k < 64; k++) { policy_act(&states[k], &output); sum += output.action; }
        clock_gettime(CLOCK_MONOTONIC, &b);
        t = ((double)(b.tv_sec - a.tv_sec) * 1e9 + (double)(b.tv_nsec - a.tv_nsec)) / 64e3;
        if (t < best) best = t;
    }
    printf("%.6f %ld\\n", best, sum);
    return 0;
}
"""


def in_c(files: list[Path], folder: Path, name: str, image: bool, flags: list[str]) -> Timer:
    """Exported C called from C."""
    value = "(uint8_t)rand()" if image else "(float)rand() / (float)RAND_MAX * 4.0f - 2.0f"
    text = MAIN.replace("@HEADER@", str(folder / "policy.h")).replace("@VALUE@", value).replace("@ROUNDS@", "6" if image else "200")
    (folder / f"{name}.main.c").write_text(text)
    binary = folder / name
    subprocess.run(["gcc", *flags, folder / f"{name}.main.c", *files, "-o", binary], check=True)
    return lambda: float(subprocess.run([binary], capture_output=True, text=True, check=True).stdout.split()[0])


def loaded(path: Path) -> Any:
    """A module from a file."""
    found = importlib.util.spec_from_file_location(f"exported_{path.parent.name}", path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def handwritten(policy: Network, width: int, folder: Path, *native: str) -> Timer:
    """bench/handwritten.c with this network's weights, [n][m] as it wants them, behind the export's interface."""
    arrays = []
    for k, layer in enumerate([policy.body[0], policy.body[2], policy.out]):
        for kind, values in (("w", layer.weight.detach().numpy().T), ("b", layer.bias.detach().numpy())):
            arrays.append(f"static const float {kind}{k}[] = {{{', '.join(f'{v:.9g}f' if '.' in f'{v:.9g}' or 'e' in f'{v:.9g}' else f'{v:.9g}.0f' for v in values.ravel())}}};\n")
    (folder / "weights.h").write_text(f"#define WIDTH {width}\n" + "".join(arrays))
    source = Path(__file__).with_name("handwritten.c")
    return in_c([source], folder, f"hand{len(native)}", False, ["-std=gnu99", "-O3", "-w", *native, f"-I{folder}"])


def contenders(policy: Network, width: int, python: str, folder: Path) -> dict[str, Timer]:
    """Everything that runs one policy; ``width`` 0 is the CNN."""
    image = width == 0
    shape = policy.spec.observations["obs"].shape
    rng = np.random.default_rng(0)
    obs = rng.integers(0, 256, shape).astype(np.uint8) if image else rng.normal(size=shape).astype(np.float32)
    states = {"obs": rng.integers(0, 256, (64, *shape)).astype(np.uint8) if image else rng.normal(size=(500, *shape)).astype(np.float32)}
    calls = 5 if image else 60
    found: dict[str, Timer] = {}
    predict = sb3(python, width, 3 if image else 20)
    if predict is not None:
        found["SB3 predict" if not image else "SB3 predict (NatureCNN, larger)"] = predict
    tensor = torch.as_tensor(obs)[None]

    def torch_call() -> int:
        with torch.inference_mode():
            prediction, _ = policy.act({"obs": tensor}, {}, None)
            return int(prediction.action.mode)  # type: ignore[union-attr]  # a network always gives an action

    found["torch, inference mode"] = loop(torch_call, calls)
    files = {to: exporting.export(policy, to, folder / to, states=states).files for to in ("python", "compiled", "c", "c-int8", "onnx")}
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(files["onnx"][0], options, providers=["CPUExecutionProvider"])
    found["export onnx, onnxruntime"] = loop(lambda: session.run(["action"], {"obs": obs[None]}), calls)
    player = loaded(files["python"][0]).Policy()
    found["export python (numpy)"] = loop(lambda: player.act(obs), calls)
    library = loaded(files["compiled"][0]).Policy()
    found["export compiled, from Python"] = loop(lambda: library.act(obs), calls * 4)
    found["export c, in C, -O3 native"] = in_c([files["c"][0]], folder / "c", "native", image, FLAGS)
    found["export c, in C, -O3"] = in_c([files["c"][0]], folder / "c", "o3", image, ["-std=c99", "-O3"])
    found["export c, in C, -Os"] = in_c([files["c"][0]], folder / "c", "os", image, ["-std=c99", "-Os"])
    found["export c, in C, without vectors"] = in_c([files["c"][0]], folder / "c", "plain", image, ["-std=c99", "-O3", "-DPOLICY_PLAIN"])
    found["export c-int8, in C, -O3 native"] = in_c([files["c-int8"][0]], folder / "c-int8", "native", image, FLAGS)
    if not image:
        found["hand-written C, -O3 native"] = handwritten(policy, width, folder / "c", "-march=native")
        found["hand-written C, -O3"] = handwritten(policy, width, folder / "c")
    return found


def measure(rounds: int, python: str) -> dict[str, dict[str, float]]:
    """{contender: {network: microseconds}}"""
    table: dict[str, dict[str, float]] = {}
    for width in (*WIDTHS, 0):
        column = f"{width}x{width}" if width else "small CNN"
        with tempfile.TemporaryDirectory() as folder:
            timers = contenders(mlp(width) if width else cnn(), width, python, Path(folder))
            for _ in range(rounds):
                for name, timer in timers.items():
                    row = table.setdefault(name, {})
                    row[column] = min(row.get(column, float("inf")), timer())
    return table


def node_latency(rounds: int) -> float | None:
    """Microseconds of the exported module's act in node, 64×64."""
    if shutil.which("node") is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(exporting.export(mlp(64), "js", folder).files[0], Path(folder) / "policy.mjs")
        (Path(folder) / "main.mjs").write_text(
            'import { Policy } from "./policy.mjs";\nconst p = new Policy(), x = [1, -1, 0.5, 2, 0, 1, 0, 1];\nlet best = 1e9;\n'
            f"for (let r = 0; r < {rounds * 20}; r++) {{ const t = performance.now(); for (let i = 0; i < 200; i++) p.act(x); best = Math.min(best, (performance.now() - t) * 5); }}\nconsole.log(best);\n"
        )
        return float(subprocess.run(["node", Path(folder) / "main.mjs"], capture_output=True, text=True, check=True).stdout)


def printed(table: dict[str, dict[str, float]]) -> str:
    """A Markdown table, with how many times faster than SB3's predict the 64×64 column is."""
    columns = [*(f"{w}x{w}" for w in WIDTHS), "small CNN"]
    foot = table.get("SB3 predict", {}).get("64x64")
    lines = ["| µs a call, one state | " + " | ".join(columns) + " | 64x64: × SB3 |", "|---|" + "---|" * (len(columns) + 1)]
    for name, row in table.items():
        times = f"{foot / row['64x64']:,.0f}" if foot and "64x64" in row else ""
        lines.append(f"| {name} | " + " | ".join(f"{row[c]:.3g}" if c in row else "" for c in columns) + f" | {times} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--sb3", default=str(Path(__file__).parents[2] / "venvs" / "sb3" / "bin" / "python"), help="a Python that has stable-baselines3")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    table = measure(given.rounds, given.sb3)
    node = node_latency(given.rounds)
    if node is not None:
        table["export js, node"] = {"64x64": node}
    print(printed(table))
    hand = table["hand-written C, -O3 native"]
    ratios = {c: table["export c, in C, -O3 native"][c] / hand[c] for c in hand}
    print("\ngenerated C / hand-written C: " + ", ".join(f"{c} {r:.2f}" for c, r in ratios.items()))
    if given.json is not None:
        given.json.write_text(json.dumps(table, indent=1))


if __name__ == "__main__":
    sys.exit(main())
