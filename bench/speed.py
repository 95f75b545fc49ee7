"""make bench: work seconds, steps and labels to 99 % retention, beside the peers; collection and learner rates; start-up.

Everything is run side by side in one call and the least of several runs is taken. `--peers` also runs imitation's BC and
DAgger and an SB3 PPO + KL loop, in virtual environments of their own (bench/peers/run.py makes them; minutes).
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TEACHERS = ROOT.parent / "shared" / "teachers"


def run_once(teacher: Path, env: str, backend: str, seed: int, until: str) -> dict:
    """One distillation in a process of its own; its verdict."""
    out = Path(tempfile.mkdtemp())
    command = [sys.executable, "-m", "distillrl", "distill", str(teacher), "--env", env, "--backend", backend, "--seed", str(seed), "--until", until, "--quiet", "--out", str(out / "r")]
    try:
        subprocess.run(command, check=False, capture_output=True)
        return json.loads((out / "r" / "verdict.json").read_text())
    finally:
        shutil.rmtree(out)


def distillations(repeats: int) -> list[dict]:
    """Time to quality on LunarLander and CartPole, per backend: the least of several seeds, and the median retention."""
    rows = []
    cases = [("LunarLander-v3", "ppo_lunar.zip", "retention=0.99"), ("CartPole-v1", "ppo_cartpole.zip", "return=500")]
    for env, file, until in cases:
        for backend in ("gymnasium", "envpool"):
            verdicts = [run_once(TEACHERS / file, env, backend, seed, until) for seed in range(repeats)]
            kept = sorted(v["retention"]["value"] for v in verdicts)
            rows.append(
                {
                    "what": f"{env} 16x16, {backend}",
                    "work_s": min(v["seconds"]["work"] for v in verdicts),
                    "work_s_median": sorted(v["seconds"]["work"] for v in verdicts)[len(verdicts) // 2],
                    "selecting_s": min(v["seconds"]["selecting"] for v in verdicts),
                    "steps": max(v["env_steps"] for v in verdicts),
                    "labels": max(v["teacher_labels"] for v in verdicts),
                    "retention": kept[len(kept) // 2],
                    "worst_retention": kept[0],
                }
            )
            print(json.dumps(rows[-1]), flush=True)
    return rows


def collection(ticks: int = 300, repeats: int = 7) -> list[dict]:
    """Steps per second of a rollout that the student drives, stored, and stored and labelled by the teacher, beside the raw vector's with random actions."""
    import numpy as np
    import torch

    from distillrl import envs, students, teachers
    from distillrl.envs import EnvOptions, Seeds
    from distillrl.states import Drive, Who

    torch.set_num_threads(1)
    teacher = teachers.load(TEACHERS / "ppo_lunar.zip")

    def raw(vector: envs.Vector, seed: int) -> None:
        for action in np.random.default_rng(seed).integers(0, 4, (ticks, vector.n)):
            vector.step(action)

    def collect(vector: envs.Vector, seed: int, labelling: bool) -> None:
        with torch.inference_mode():
            drive.collect(ticks, Who(0.0, sampled=True), teacher, student, frozenset({"action"}), frozenset({"obs"}), labelling)

    rows = []
    for backend, slots in (("gymnasium:1", 16), ("gymnasium:2", 16), ("envpool", 16), ("gymnasium:1", 64), ("gymnasium:2", 64), ("envpool", 64)):
        best = dict.fromkeys(("raw", "collect", "labelled"), 0.0)
        for repeat in range(repeats):
            for what in best:  # each from its own new vector: what a rollout costs depends on where its episodes are
                vector = envs.make(EnvOptions("LunarLander-v3", backend=backend), slots, Seeds(repeat))
                student = students.make("mlp:16x16", vector.spec, torch.Generator().manual_seed(0))
                drive = Drive(vector, vector.spec, torch.Generator().manual_seed(0))
                drive.begin(teacher, student)
                began = time.perf_counter()
                raw(vector, repeat) if what == "raw" else collect(vector, repeat, what == "labelled")
                best[what] = max(best[what], ticks * slots / (time.perf_counter() - began))
                vector.close()
        figures = {k: round(v) for k, v in best.items()}
        rows.append({"what": f"collection, LunarLander, {slots} slots, {backend}", **figures, "ratio": round(best["collect"] / best["raw"], 3), "ratio_labelled": round(best["labelled"] / best["raw"], 3)})
        print(json.dumps(rows[-1]), flush=True)
    return rows


class Noted:
    """A vector that notes the actions it is given."""

    def __init__(self, vector, actions: list) -> None:
        self.vector, self.actions = vector, actions

    def __getattr__(self, name: str):
        return getattr(self.vector, name)

    def step(self, action):
        """As the vector's."""
        self.actions.append(action.copy())
        return self.vector.step(action)


def evaluating(episodes: int = 1000, repeats: int = 2) -> list[dict]:
    """Steps per second of whole episodes of a 16x16 student, beside the raw vector's with the same actions: the overhead of policy and bookkeeping."""
    import torch

    from distillrl import envs, evaluation, teachers
    from distillrl.envs import EnvOptions, Seeds

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, "-m", "distillrl", "distill", str(TEACHERS / "ppo_lunar.zip"), "--env", "LunarLander-v3", "--quiet", "--out", f"{place}/r"]
        subprocess.run(command, check=False, capture_output=True)
        student = teachers.load(Path(place) / "r" / "student.safetensors")
    rows, seeds, made = [], Seeds(0, "verdict"), envs.make
    for backend in ("gymnasium:1", "gymnasium:2"):
        options, actions = EnvOptions("LunarLander-v3", backend=backend), []
        envs.make = lambda *given, kept=actions: Noted(made(*given), kept)
        steps = evaluation.play(student, options, episodes, seeds).steps
        envs.make = made
        best = {"raw": 0.0, "evaluated": 0.0}
        for _ in range(repeats):
            vector = envs.make(options, len(actions[0]), seeds, episodes)
            vector.reset()
            began = time.perf_counter()
            for action in actions:
                vector.step(action)
            best["raw"] = max(best["raw"], steps / (time.perf_counter() - began))
            vector.close()
            best["evaluated"] = max(best["evaluated"], steps / evaluation.play(student, options, episodes, seeds).seconds)
        rows.append({"what": f"{episodes} LunarLander episodes of a 16x16 student, {backend}", **{k: round(v) for k, v in best.items()}, "ratio": round(best["evaluated"] / best["raw"], 3)})
        print(json.dumps(rows[-1]), flush=True)
    return rows


def learner(updates: int = 500, repeats: int = 7) -> dict:
    """Updates per second of the learner, beside a bare PyTorch loop of the same network, batch and loss."""
    import torch
    from torch import nn

    from distillrl import learn, objectives, students
    from distillrl.actions import Categorical
    from distillrl.dataset import Dataset
    from distillrl.records import ActionSpace, Batch, Group, Prediction, Progress, Rollout, Spec

    torch.set_num_threads(1)
    spec = Spec({"obs": Group((8,), "float32")}, ActionSpace("discrete", n=4))
    draw = torch.Generator().manual_seed(0)
    obs, logits = torch.randn(257, 16, 8, generator=draw), torch.randn(256, 16, 4, generator=draw)
    yes = torch.ones(256, 16, dtype=torch.bool)
    zero = torch.zeros(256, 16)
    rollout = Rollout({"obs": obs}, zero.long(), zero, ~yes, ~yes, ~yes, yes, zero.to(torch.int8), yes, Prediction(Categorical(logits)), None, zero.long())
    data = Dataset()
    data.append(rollout)
    best = {"bare": 0.0, "learner": 0.0}
    for _ in range(repeats):
        student = students.make("mlp:16x16", spec, torch.Generator().manual_seed(0))
        example = Batch({"obs": obs[0]}, Prediction(Categorical(logits[0])))
        loss = objectives.make("forward_kl", {}, student.act(example.obs, {}, None)[0], example, draw)
        term = learn.Term("forward_kl", lambda progress: 1.0, loss, frozenset({"teacher.distribution"}))
        gradient = learn.Gradient(student, [term], lr=3e-3, batch=256, updates=updates, average=0.99, train="all", generator=draw)
        began = time.perf_counter()
        gradient.learn(data, Progress())
        best["learner"] = max(best["learner"], updates / (time.perf_counter() - began))
        network = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 4))
        adam = torch.optim.Adam(network.parameters(), 3e-3, fused=True)
        x, target = obs[:-1].flatten(0, 1), logits.flatten(0, 1)
        began = time.perf_counter()
        for _ in range(updates):
            rows = torch.randint(len(x), (256,), generator=draw)
            wanted = torch.log_softmax(target[rows], -1)
            value = (wanted.exp() * (wanted - torch.log_softmax(network(x[rows]), -1))).sum(-1).mean()
            adam.zero_grad()
            value.backward()
            adam.step()
        best["bare"] = max(best["bare"], updates / (time.perf_counter() - began))
    row = {"what": "learner, 16x16, batch 256", **{k: round(v) for k, v in best.items()}, "ratio": round(best["learner"] / best["bare"], 3)}
    print(json.dumps(row), flush=True)
    return row


def start_up(repeats: int = 7) -> dict:
    """Seconds of `distillrl --help`, the least of several."""

    def once() -> float:
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "distillrl", "--help"], capture_output=True, check=True)
        return time.perf_counter() - began

    row = {"what": "distillrl --help", "seconds": round(min(once() for _ in range(repeats)), 3)}
    print(json.dumps(row), flush=True)
    return row


def main() -> None:
    """Run what is asked for, print a row each, and write all to --out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", choices=("distil", "collection", "evaluating", "learner", "start", "peers"))
    parser.add_argument("--peers", action="store_true")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    rows: list[dict] = []
    if given.only in (None, "start"):
        rows.append(start_up())
    if given.only in (None, "learner"):
        rows.append(learner())
    if given.only in (None, "collection"):
        rows += collection()
    if given.only in (None, "evaluating"):
        rows += evaluating()
    if given.only in (None, "distil"):
        rows += distillations(given.repeats)
    if given.peers or given.only == "peers":
        subprocess.run([sys.executable, str(ROOT / "bench" / "peers" / "run.py")], check=True)
    if given.out:
        given.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
