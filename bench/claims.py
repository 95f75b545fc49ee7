"""make bench-claims: what distilling is good for, and what it isn't, in one table with intervals over seeds.

A distilled student against its teacher, and against the same small network trained from scratch by PPO with as many environment
steps and with ten times as many: return, steps to 90 % of the teacher, return under other physics and with noisy actions, seen and
unseen episodes, and what a decision costs. Cells are kept in bench/cells/claims.jsonl, so that a stopped bench goes on; the table
goes into docs/claims.md.

    pip install 'distillrl[sb3]'                      # the scratch baseline
    pip install minatar                               # the game, if you like: its licence is the GPL, so nothing here installs it
    python bench/claims.py                            # all cells, then the table
    python bench/claims.py --seconds 600              # begins no cell after ten minutes; call it again to go on
    python bench/claims.py --quick                    # CartPole alone, small, about 5 minutes; the table is only printed
    python bench/claims.py --tune                     # the PPO settings that were tried, on seeds of their own

The teachers of SpaceInvaders and BipedalWalker come from scripts/train_teachers.py (`--algo ppo --env MinAtar/SpaceInvaders-v1 --out ../zoo_extra`).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cells import ROOT, TEACHERS, Cells, Facts, Job, between, count, digest, find, guarded, leave, plain, rounded, run
from claims_table import Case, Plan, heading, look, no_help, table, tried
from scratch import Recipe

FIRST_SEED, TUNING = 201, (11, 12)
SELECTING = 20
LEVELS = {"action noise": (0.1, 0.3)}


def _settings(n_steps: int, batch_size: int, n_epochs: int, gamma: float, gae_lambda: float, rate: float, ent_coef: float = 0.0, clip_range: float = 0.2) -> dict[str, Any]:
    return {
        "n_steps": n_steps,
        "batch_size": batch_size,
        "n_epochs": n_epochs,
        "gamma": gamma,
        "gae_lambda": gae_lambda,
        "learning_rate": rate,
        "ent_coef": ent_coef,
        "clip_range": clip_range,
    }


ZOO_CARTPOLE = Recipe(8, settings=_settings(32, 256, 20, 0.98, 0.8, 1e-3))
OFTEN_CARTPOLE = Recipe(8, linear=False, settings=_settings(64, 64, 10, 0.98, 0.8, 2e-3))
ZOO_LANDER = Recipe(16, linear=False, settings=_settings(1024, 64, 4, 0.999, 0.98, 3e-4, 0.01))
SHORT_LANDER = Recipe(16, settings=_settings(128, 64, 4, 0.999, 0.98, 1e-3, 0.01))
NORMALISED_LANDER = Recipe(16, normalize=True, settings=_settings(128, 64, 4, 0.999, 0.98, 1e-3, 0.01))
LANDER = Recipe(8, normalize=True, settings=_settings(128, 64, 10, 0.99, 0.95, 1e-3, 0.01))
INVADERS = Recipe(16, settings=_settings(128, 256, 4, 0.99, 0.95, 1e-3, 0.01))
QUICK_INVADERS = Recipe(8, settings=_settings(128, 64, 4, 0.99, 0.95, 1e-3, 0.01))
WALKER = Recipe(16, normalize=True, settings=_settings(256, 128, 10, 0.99, 0.95, 5e-4))
QUICK_WALKER = Recipe(8, normalize=True, settings=_settings(256, 64, 10, 0.99, 0.95, 1e-3))

CASES = (
    Case("ppo_cartpole.zip", "CartPole-v1", "mlp:16x16", 5_000, ZOO_CARTPOLE, ZOO_CARTPOLE, others=(ZOO_CARTPOLE, OFTEN_CARTPOLE)),
    Case("ppo_lunar.zip", "LunarLander-v3", "mlp:16x16", 10_000, LANDER, LANDER, others=(ZOO_LANDER, SHORT_LANDER, NORMALISED_LANDER, LANDER)),
    Case("ppo/MinAtar/SpaceInvaders-v1/model.zip", "games:MinAtar/SpaceInvaders-v1", "mlp:32x32", 20_000, QUICK_INVADERS, INVADERS, others=(INVADERS, QUICK_INVADERS)),
    Case("ppo/BipedalWalker-v3/model.zip", "BipedalWalker-v3", "mlp:32x32", 30_000, QUICK_WALKER, WALKER, 30, 10, others=(WALKER, QUICK_WALKER)),
)
QUICK = (Case("ppo_cartpole.zip", "CartPole-v1", "mlp:16x16", 5_000, ZOO_CARTPOLE, ZOO_CARTPOLE, episodes=20, changed=10),)


# ── cells ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def measured(policy: Any, facts: Facts) -> dict[str, Any]:
    """Returns by condition, and what a decision costs; policies meet the same episodes and the same noise."""
    import torch

    from distillrl import costs, evaluation, policies
    from distillrl.envs import EnvOptions, Seeds
    from distillrl.perturbations import Perturbed
    from distillrl.physics import changed

    torch.set_num_threads(1)
    options = EnvOptions(facts["env"], backend="gymnasium:1")
    seeds, few = Seeds(facts["seed"], "verdict"), facts["changed"]

    def returns(who: Any, where: EnvOptions, episodes: int, stream: Seeds = seeds) -> list[float]:
        return rounded(evaluation.play(who, where, episodes, stream).returns)

    found = {"unseen": returns(policy, options, facts["episodes"]), "seen": returns(policy, options, facts["episodes"], Seeds(facts["seed"], "train"))}
    for kind, levels in LEVELS.items():
        for level in levels:
            noisy = Perturbed(policy, kind, level, {}, torch.Generator().manual_seed(facts["seed"]))
            found[f"{kind} {level:g}"] = returns(noisy, options, few)
    for name, change, value in extremes(facts["env"]):
        found[name] = returns(policy, changed(options, change, value), few)
    cost = costs.measure(policy, 0.2)
    return {
        "returns": found,
        "parameters": policies.acting_parameters(policy),
        "multiply_adds": cost["multiply_adds"],
        "latency_us": cost["latency_us"]["1"]["min"],
    }


def extremes(env: str) -> list[tuple[str, Any, float]]:
    """The first and the last value of each physics that the environment has: (words, change, value)."""
    from distillrl.envs import EnvOptions
    from distillrl.physics import changes_for

    changes = changes_for(EnvOptions(env, backend="gymnasium:1"))
    return [(f"{c.name} {value:g} {c.unit}".strip(), c, value) for c in changes for value in (c.values[0], c.values[-1])]


def teacher(facts: Facts) -> dict[str, Any]:
    """The teacher and the random policy, on the selecting episodes too."""
    import torch

    from distillrl import evaluation, loading
    from distillrl.envs import EnvOptions, Seeds

    options, select = EnvOptions(facts["env"], backend="gymnasium:1"), Seeds(facts["seed"], "select")
    spec = space(facts["env"])
    policy = loading.load(facts["_teacher"], spec=spec).policy
    foot = evaluation.Random(spec, torch.Generator().manual_seed(facts["seed"] + 1))
    return {
        **measured(policy, facts),
        "select": rounded(evaluation.play(policy, options, SELECTING, select).returns),
        "random": rounded(evaluation.play(foot, options, facts["episodes"], Seeds(facts["seed"], "verdict")).returns),
        "random_select": rounded(evaluation.play(foot, options, SELECTING, select).returns),
    }


def distilled(facts: Facts) -> dict[str, Any]:
    """One distillation by ``auto`` to the end of its budget."""
    from distillrl.config import Config
    from distillrl.distillation import distill

    curve: list[list[float]] = []
    began = time.process_time()

    def show(metrics: Any) -> None:
        if metrics.get("return.student") is not None:
            curve.append([metrics["env_steps"], round(metrics["return.student"], 4)])

    with tempfile.TemporaryDirectory() as folder:
        config = Config(
            teacher=facts["_teacher"],
            env=facts["env"],
            student=facts["student"],
            seed=facts["seed"],
            until="none",
            env_steps=facts["steps"],
            backend="gymnasium:1",
            select_episodes=SELECTING,
            verdict_episodes=1,
            checkpoint_seconds=1e6,
        )
        done = distill(config=config, out=Path(folder) / "run", show=show)
    seconds = time.process_time() - began
    return {**measured(done.policy.policy, facts), "curve": curve, "env_steps": done.verdict["env_steps"], "seconds": round(seconds, 1)}


def scratch(facts: Facts) -> dict[str, Any]:
    """One training by PPO, the best of what was looked at."""
    import scratch as baseline

    began = time.process_time()
    space(facts["env"])  # registers what must be
    policy, curve, steps = baseline.train(facts["env"], facts["student"], Recipe(**facts["recipe"]), facts["steps"], facts["seed"], SELECTING)
    seconds = time.process_time() - began
    return {**measured(policy, facts), "curve": curve, "env_steps": steps, "seconds": round(seconds, 1)}


def tuned(facts: Facts) -> dict[str, Any]:
    """The curve alone, to choose settings by."""
    import scratch as baseline

    space(facts["env"])
    _, curve, steps = baseline.train(facts["env"], facts["student"], Recipe(**facts["recipe"]), facts["steps"], facts["seed"], SELECTING)
    return {"curve": curve, "env_steps": steps}


def space(env: str) -> Any:
    """The Spec of an environment."""
    from distillrl import envs
    from distillrl.envs import EnvOptions, Seeds

    vector = envs.make(EnvOptions(env, backend="gymnasium:1"), 1, Seeds(0, "dry"))
    vector.close()
    return vector.spec


# ── what there is to measure ──────────────────────────────────────────────────────────────────────────────────────


def plan(case: Case, path: Path, seeds: Sequence[int]) -> Plan:
    """What is to be measured of a case."""
    from distillrl import loading, methods

    spec = space(case.env)
    policy = loading.load(path, spec=spec).policy
    shared = {"env": case.env, "episodes": case.episodes, "changed": case.changed, "levels": LEVELS, "physics": [name for name, _, _ in extremes(case.env)]}
    taught = {**shared, "teacher": digest(str(path)), "_teacher": str(path)}
    phases = [plain(phase) for phase in methods.expand("auto", policy.gives, spec)]
    facts: dict[str, tuple[Any, dict[str, Any]]] = {
        "teacher": (teacher, taught),
        "distilled": (distilled, {**taught, "student": case.student, "steps": case.steps, "phases": phases}),
        "scratch": (scratch, {**shared, "student": case.student, "steps": case.steps, "recipe": plain(case.small)}),
        "scratch10": (scratch, {**shared, "student": case.student, "steps": 10 * case.steps, "recipe": plain(case.large)}),
    }
    jobs = {who: [(f, {**told, "what": who, "seed": s, "_name": f"{who} {case.env} {s}"}) for s in seeds] for who, (f, told) in facts.items()}
    return Plan(case, jobs, trained_for(path))


def trained_for(path: Path) -> int | None:
    """Environment steps that a stable-baselines3 file was trained for."""
    try:
        with zipfile.ZipFile(path) as file:
            steps = json.loads(file.read("data")).get("num_timesteps")
    except (OSError, KeyError, ValueError, zipfile.BadZipFile):
        return None
    return int(steps) if isinstance(steps, int) else None


def tuning(cases: Sequence[Case]) -> list[Job]:
    """Every setting that was tried, at both budgets, on seeds of its own."""
    return [
        (tuned, {"what": "tuning", "env": c.env, "student": c.student, "steps": steps, "recipe": plain(r), "seed": s, "_name": f"tuning {c.env} {steps} {s}"})
        for steps_of in (1, 10)
        for c in cases
        for steps in (steps_of * c.steps,)
        for s in TUNING[: 2 if steps_of == 1 else 1]
        for r in c.others
    ]


def main() -> None:
    """Measure what isn't known, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teachers", type=Path, nargs="+", default=list(TEACHERS), help="folders in which the teachers are looked for")
    parser.add_argument("--only", action="append", metavar="ENV", help="these environments alone; may be repeated")
    parser.add_argument("--seeds", type=count, default=5)
    parser.add_argument("--workers", type=count, default=1)
    parser.add_argument("--seconds", type=float, help="begin no cell after so long")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--print", action="store_true", help="print the table, and leave the page as it is")
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--fresh", action="store_true", help="measure anew what another source of distillrl has measured")
    parser.add_argument("--cells", type=Path, default=ROOT / "bench" / "cells" / "claims.jsonl")
    given = parser.parse_args()
    try:
        import stable_baselines3  # noqa: F401 — asked for here, so that it isn't missed after minutes
    except ImportError:
        raise SystemExit("the scratch baseline needs stable-baselines3: pip install 'distillrl[sb3]'") from None
    from distillrl.errors import DistillError

    cases = [c for c in (QUICK if given.quick else CASES) if not given.only or c.env.rpartition(":")[2] in given.only]
    if not cases:
        parser.error(f"--only {' '.join(given.only)}: {', '.join(c.env.rpartition(':')[2] for c in CASES)} are there")
    cells, seeds = Cells(given.cells), range(FIRST_SEED, FIRST_SEED + (min(3, given.seeds) if given.quick else given.seeds))
    if given.tune:
        missing = run(cells, tuning(cases), workers=given.workers, seconds=given.seconds, fresh=given.fresh)
        print(tried(cells, tuning(cases)))
        leave(missing)
    plans = []
    for case in cases:
        path = find(case.teacher, given.teachers)
        if path is None:
            print(f"{case.env} is left out: there is no {case.teacher} in {', '.join(map(str, given.teachers))} (--teachers names other folders)", file=sys.stderr)
            continue
        try:
            plans.append(plan(case, path, seeds))
        except DistillError as error:
            print(f"{case.env} is left out: {error}{'; pip install minatar' if 'minatar' in str(error) else ''}", file=sys.stderr)
    if not plans:
        raise SystemExit("no teacher was found, so there is nothing to measure")
    first = [plan.jobs[who][i] for plan in plans for i in range(len(seeds)) for who in ("teacher", "distilled", "scratch")]
    jobs = first + [job for plan in plans for job in plan.jobs["scratch10"]]  # the dearest last
    missing = run(cells, jobs, workers=given.workers, seconds=given.seconds, fresh=given.fresh)
    looked = [look(cells, made) for made in plans]
    seen = [s for s in looked if s.cells["teacher"]]
    left = [s.plan.case.env.rpartition(":")[2] for s in looked if not s.cells["teacher"]]
    text = heading(seen, cells, seeds) + (f"Not measured yet: {', '.join(left)}.\n" if left else "") + "\n" + table(seen) + "\n\n## Where distilling does not help\n\n" + no_help(seen)
    print(text)
    if not (given.print or given.quick or given.only or len(plans) < len(CASES)):
        between(ROOT / "docs" / "claims.md", "bench-claims", text)
    leave(missing)


if __name__ == "__main__":
    guarded(main)
