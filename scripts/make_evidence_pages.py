"""Make the runs and screenshots of docs/evidence.md: a good student, an undertrained, a brittle and an overfitted one.

    PYTHONPATH=src python scripts/make_evidence_pages.py OUT [--only good,brittle] [--quick] [--shots docs/evidence]

Needs the teachers in ../shared/teachers (for the run on images also that of SpaceInvaders in ../zoo_extra), Box2D, playwright and Debian's chromium. The brittle student is a good one with
two units and one more added that fire where one sensor reads exactly 0, as a dead one does: in undisturbed episodes that
hardly happens. The overfitted one was distilled on ten levels of an environment whose rule a small network can't find.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import gymnasium
import numpy as np
import torch

import distillrl
from distillrl import artifact, config, evaluation, evidence, reading, runs
from distillrl.reporting import compare, report
from distillrl.watching import watch

BENCH = Path(__file__).resolve().parents[1] / "bench"
SHARED = BENCH.parents[1] / "shared" / "teachers"
INVADERS = BENCH.parents[1] / "zoo_extra" / "ppo" / "MinAtar" / "SpaceInvaders-v1" / "model.zip"


class Levels(gymnasium.Env):
    """Twenty steps on one level; a level is a random vector, seen as it is, and the right action is a parity of its signs."""

    observation_space = gymnasium.spaces.Box(-4, 4, (8,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, levels: int = 0) -> None:
        self.levels, self.steps = levels, 0
        self.level = np.zeros(8, np.float32)

    def reset(self, *, seed: int | None = None, options: object = None) -> tuple[np.ndarray, dict]:
        """Level ``seed``, or one of the first ``levels``."""
        number = 0 if seed is None else seed % self.levels if self.levels else seed
        self.level = np.random.default_rng(number).normal(size=8).clip(-4, 4).astype(np.float32)
        self.steps = 0
        return self.level, {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        """1 for the right action."""
        self.steps += 1
        return self.level, float(action == right(self.level)), False, self.steps == 20, {}


def right(level: np.ndarray) -> int:
    """The rule: whether an even number of the first six signs is negative."""
    return int((level[:6] < 0).sum() % 2 == 0)


def rule(obs: torch.Tensor) -> torch.Tensor:
    """The teacher of Levels: logits of a batch of observations."""
    even = ((obs[..., :6] < 0).sum(-1) % 2 == 0).float()
    return 8 * torch.stack([1 - even, even], -1)


def brittle(source: Path, out: Path, reach: float = 0.004) -> None:
    """Copy a run, with a student that does nothing for as long as its second sensor reads 0."""
    header, tensors = artifact.load(source / runs.STUDENT)
    header = {k: v for k, v in header.items() if k not in {"version", "digest"}}
    first, second = (int(x) for x in header["family"].split(":")[1].split("x"))
    shift = float(tensors["sense.steps.0.shift0"][1])
    width = reach * float(tensors["sense.steps.0.scale0"][1])
    steep = 4 / width
    t = {k: v.clone() for k, v in tensors.items()}
    gate = torch.zeros(2, t["body.0.weight"].shape[1])
    gate[:, 1] = steep
    t["body.0.weight"] = torch.cat([t["body.0.weight"], gate])
    t["body.0.bias"] = torch.cat([t["body.0.bias"], torch.tensor([-steep * (shift - width), -steep * (shift + width)])])
    row = torch.zeros(1, first + 2)
    row[0, -2:] = torch.tensor([8.0, -8.0])  # 16 between the two steps, else 0
    t["body.2.weight"] = torch.cat([torch.cat([t["body.2.weight"], torch.zeros(second, 2)], 1), row])
    t["body.2.bias"] = torch.cat([t["body.2.bias"], torch.tensor([-8.0])])
    push = torch.zeros(t["out.weight"].shape[0], 1)
    push[0, 0] = 30.0
    t["out.weight"] = torch.cat([t["out.weight"], push], 1)
    t["out.bias"] = t["out.bias"] + push[:, 0]
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(source, out)
    for name in ("evidence.json", "report.html", "watch.gif"):
        (out / name).unlink(missing_ok=True)
    shutil.rmtree(out / "scratch", ignore_errors=True)
    family = f"mlp:{first + 2}x{second + 1}"
    artifact.save(out / runs.STUDENT, {**header, "family": family}, t)
    measure(out, family)


def measure(run: Path, family: str) -> None:
    """Write the verdict of a folder's student anew."""
    folder = runs.Folder.open(run)
    settled = folder.read_config()
    known = json.loads((run / runs.VERDICT).read_text())
    found = evaluation.evaluate(
        str(folder.student), settled.env, settled.teacher, episodes=settled.verdict_episodes, seed=settled.seed, backend=settled.backend
    )
    anew = {k: v for k, v in found.items() if v is not None or k not in known}  # what only a run knows stays
    (run / runs.VERDICT).write_text(json.dumps({**known, **anew, "seconds": known["seconds"], "student_family": family}))
    folder.write_config(config.with_changes(settled, {"student": family}))


def lunar(out: Path, teacher: str | Path, env: str, **options: object) -> Path:
    """One run, made anew unless it is there."""
    if not (out / runs.VERDICT).is_file():
        shutil.rmtree(out, ignore_errors=True)
        distillrl.distill(SHARED / teacher, env, out=out, config=config.with_changes(config.Config(), options))
    return out


def filmed(folder: Path) -> Path:
    """With teacher and student side by side, which the page then shows."""
    student, teacher, options = evidence.players(reading.read(folder), None, None, [])
    watch({"teacher": teacher, "student": student}, options, folder / "watch.gif", steps=200)
    return folder


def make(root: Path, wanted: Mapping[str, bool], full: bool, backend: str) -> list[Path]:
    """The runs and their pages."""
    how = "full" if full else "quick"
    made = []
    discrete, continuous = ("ppo_lunar.zip", "LunarLander-v3"), ("ppo_lunarc.zip", "LunarLanderContinuous-v3")
    if wanted["good"]:
        made.append(report(filmed(lunar(root / "good", *discrete, backend=backend)), measure=how, scratch=40.0 if full else None))
    if wanted["continuous"]:
        made.append(report(lunar(root / "continuous", *continuous, until="none", env_steps=20_000, backend=backend), measure=how))
    if wanted["images"]:
        if INVADERS.is_file():
            sys.path.insert(0, str(BENCH))  # games.py tells gymnasium of MinAtar
            many = {"student": "cnn:8k3s1:32", "until": "none", "env_steps": 60_000, "backend": backend}
            made.append(report(lunar(root / "images", INVADERS, "games:MinAtar/SpaceInvaders-v1", **many), measure=how))
        else:
            print(f"no images: train their teacher first, python scripts/train_teachers.py --algo ppo --env MinAtar/SpaceInvaders-v1 --out {INVADERS.parents[3]}")
    if wanted["undertrained"]:
        made.append(report(lunar(root / "undertrained", *discrete, rounds=2, until="none", backend=backend), measure=how))
    if wanted["brittle"]:
        brittle(lunar(root / "good", *discrete, backend=backend), root / "brittle")
        made.append(report(root / "brittle", measure=how))
    if wanted["overfitted"]:
        folder = root / "overfitted"
        shutil.rmtree(folder, ignore_errors=True)
        few = config.Config(env_kwargs={"levels": 10}, until="none", rounds=20, student="mlp:64x64")
        distillrl.distill(rule, Levels, config=few, out=folder)
        made.append(report(folder, measure="full", teacher=rule, env=Levels, unseen={"levels": 0}))
    folders = [path.parent for path in made]
    if len(folders) > 1:
        made.append(compare(folders, root / "compare.html"))
    return made


LOOKS = {"light": (1400, 1000, "light"), "dark": (1400, 1000, "dark"), "phone": (360, 780, "light")}
SHOTS = (
    ("good", "light"),
    ("good", "phone"),
    ("continuous", "light"),
    ("images", "light"),
    ("undertrained", "light"),
    ("brittle", "dark"),
    ("overfitted", "light"),
    ("compare", "light"),
)
"""The screenshots that docs/evidence.md shows."""


def shoot(pages: list[Path], out: Path) -> None:
    """Screenshots of the first screenful of each page that the documentation shows."""
    from playwright.sync_api import sync_playwright

    found = {page.parent.name if page.name == "report.html" else page.stem: page for page in pages}
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        for name, look in SHOTS:
            if name not in found:
                continue
            width, height, scheme = LOOKS[look]
            context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme, offline=True)
            tab = context.new_page()
            tab.goto(found[name].resolve().as_uri())
            tab.screenshot(path=out / f"{name}-{look}.png")
            context.close()
        browser.close()


if __name__ == "__main__":
    names = ("good", "continuous", "images", "undertrained", "brittle", "overfitted")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="where the runs go")
    parser.add_argument("--only", default=",".join(names), help="some of " + ",".join(names))
    parser.add_argument(
        "--backend", default="auto", help="as for distillrl distill; envpool is fastest, but its episodes can't be replayed"
    )
    parser.add_argument("--quick", action="store_true", help="measure quickly")
    parser.add_argument("--shots", type=Path, help="where the screenshots go")
    given = parser.parse_args()
    chosen = given.only.split(",")
    pages = make(given.out, {n: n in chosen for n in names}, not given.quick, given.backend)
    for page in pages:
        print(page)
    if given.shots:
        given.shots.mkdir(parents=True, exist_ok=True)
        shoot(pages, given.shots)
