"""Run the peers beside each other: `python bench/peers/run.py --out peers.json`. Standard library only.

Makes each peer's virtual environment where it is missing, runs each peer for each seed, prints a table
and writes every run and the summary as JSON. See README.md for what is measured.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
VENVS = HERE.parent / ".venvs"
TEACHER = HERE.parents[2] / "shared" / "teachers" / "ppo_lunar.zip"

# peer → its virtual environment, its script, and its options by settings. `tuned` is each script's own
# defaults; `usual` is what its documentation, or RL Zoo's file for LunarLander, gives.
PEERS = {
    "imitation-bc": (
        "imitation",
        "imitation_bc.py",
        {
            "tuned": "",
            "usual": "--envs 8 --demonstrations 50 --sampled 0 --whole-batches 0 --batch-size 32 "
            "--learning-rate 1e-3 --ent-weight 1e-3 --every 600",
        },
    ),
    "imitation-dagger": (
        "imitation",
        "imitation_dagger.py",
        {
            "tuned": "",
            "usual": "--envs 8 --round-episodes 3 --round-steps 500 --epochs 4 --beta-rounds 15 "
            "--batch-size 32 --learning-rate 1e-3 --ent-weight 1e-3 --every 4",
        },
    ),
    "ppo-kl": (
        "sb3",
        "ppo_kl.py",
        {
            "tuned": "",
            "usual": "--envs 16 --steps 1024 --epochs 4 --batch-size 64 --learning-rate 3e-4 --kl-weight 1 --ent-coef 0.01 --critic 64",
        },
    ),
}


def make_venv(name: str, python: str) -> Path:
    """bench/.venvs/NAME, made by requirements-NAME.txt; made again where that file has changed."""
    requirements = HERE / f"requirements-{name}.txt"
    folder = VENVS / name
    interpreter = folder / "bin" / "python"
    made_from = folder / "made-from"
    digest = hashlib.sha256(requirements.read_bytes()).hexdigest()
    if not made_from.exists() or made_from.read_text() != digest:
        print(f"making {folder}", file=sys.stderr)
        subprocess.run([python, "-m", "venv", folder], check=True)
        subprocess.run([interpreter, "-m", "pip", "install", "-q", "-r", requirements], check=True)
        made_from.write_text(digest)
    return interpreter


def run(interpreter: Path, script: str, flags: list[str], threads: int) -> dict:
    """One run of a peer in a process of its own: the JSON line that it prints."""
    environ = dict(os.environ, OMP_NUM_THREADS=str(threads), HF_DATASETS_DISABLE_PROGRESS_BARS="1")
    command = [interpreter, "-W", "ignore", HERE / script, "--threads", str(threads), *flags]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environ, cwd=HERE)
    if done.returncode:
        sys.exit(f"{script} {' '.join(flags)} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def summarise(runs: list[dict]) -> dict:
    """Over seeds, of each the quickest repeat: the work to the aim, and the verdict.

    `reached` counts the seeds whose selecting episodes reached the aim, `confirmed` those of them whose
    verdict on fresh episodes did too.
    """
    quickest: dict[int, dict] = {}
    for one in runs:
        seed = one["seed"]
        if seed not in quickest or one["work_seconds"] < quickest[seed]["work_seconds"]:
            quickest[seed] = one
    kept = list(quickest.values())
    timed = [one for one in kept if one["reached"]] or kept  # giving up early is no speed

    def both(key: str) -> dict:
        values = [one[key] for one in timed]
        return {"min": min(values), "median": statistics.median(values)}

    return {
        "seeds": len(kept),
        "reached": sum(one["reached"] for one in kept),
        "confirmed": sum(one["reached"] and one["retention"] >= 0.99 for one in kept),
        **{key: both(key) for key in ("work_seconds", "work_cpu_seconds", "env_steps", "labels", "eval_seconds", "eval_steps")},
        "retention": both("retention"),
        "return_mean": both("return_mean"),
    }


def table(summary: dict) -> str:
    """A line for each peer and settings: the least over seeds, and medians where said."""
    head = ["peer", "settings", "reached", "confirmed", "work s", "(median)", "CPU s", "(median)", "steps",
            "(median)", "labels", "eval s", "eval steps", "retention"]  # fmt: skip
    rows = [head]
    for name, s in summary.items():
        rows.append([
            *name.split("/"), f"{s['reached']}/{s['seeds']}", f"{s['confirmed']}/{s['seeds']}",
            f"{s['work_seconds']['min']:.2f}", f"{s['work_seconds']['median']:.2f}",
            f"{s['work_cpu_seconds']['min']:.2f}", f"{s['work_cpu_seconds']['median']:.2f}",
            f"{s['env_steps']['min']:.0f}",
            f"{s['env_steps']['median']:.0f}", f"{s['labels']['min']:.0f}",
            f"{s['eval_seconds']['median']:.1f}", f"{s['eval_steps']['median']:.0f}",
            f"{s['retention']['median']:.3f}",
        ])  # fmt: skip
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    return "\n".join("  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) for row in rows)


def main() -> None:
    """Run the peers asked for, and print the table."""
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--teacher", default=str(TEACHER))
    parser.add_argument("--peers", default=",".join(PEERS))
    parser.add_argument("--settings", default="tuned,usual")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--repeats", type=int, default=2, help="of each seed with tuned settings; the quickest counts")
    parser.add_argument("--threads", type=int, default=1, help="PyTorch's")
    parser.add_argument("--max-seconds", type=float, default=240.0, help="of a run's work")
    parser.add_argument("--python", default=sys.executable, help="3.9 to 3.12, for new environments")
    parser.add_argument("--setup-only", action="store_true", help="make the environments and stop")
    parser.add_argument("--out", help="where to write the JSON")
    options = parser.parse_args()

    unknown = set(options.peers.split(",")) - set(PEERS)
    if unknown:
        parser.error(f"no such peer: {', '.join(sorted(unknown))}; there are {', '.join(PEERS)}")
    if options.setup_only:
        for venv in sorted({PEERS[peer][0] for peer in options.peers.split(",")}):
            make_venv(venv, options.python)
        return
    runs: list[dict] = []
    summary: dict[str, dict] = {}
    result = {
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "summary": summary,
        "runs": runs,
    }
    # Seeds outermost, so that a busy spell of the machine falls on all peers alike.
    for repeat in range(options.repeats):
        for seed in options.seeds.split(","):
            for peer in options.peers.split(","):
                venv, script, settings = PEERS[peer]
                interpreter = make_venv(venv, options.python)
                for name in options.settings.split(","):
                    if repeat and name == "usual":
                        continue  # a minute each: once a seed is enough
                    flags = [*settings[name].split(), "--seed", seed, "--teacher", options.teacher]
                    flags += ["--max-seconds", str(options.max_seconds)]
                    line = run(interpreter, script, flags, options.threads)
                    runs.append({"setting": name, "repeat": repeat, **line})
                    print(json.dumps(runs[-1]), file=sys.stderr, flush=True)
                    mine = [r for r in runs if (r["peer"], r["setting"]) == (peer, name)]
                    summary[f"{peer}/{name}"] = summarise(mine)
                    if options.out:  # after every run, so that a run cut short leaves what it has
                        Path(options.out).write_text(json.dumps(result, indent=1) + "\n")
    print(table(summary))


if __name__ == "__main__":
    main()
