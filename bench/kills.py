"""make bench-kills: kill -9 a real process at random moments; the folder stays readable, and resuming gives the same bytes.

A run that is never killed gives the bytes to compare with. Each of the others is killed one to three times, each time
after a random share of that run's time, read as a person and a program would read it, and resumed to its end.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from distillrl import artifact, config, students

ROOT = Path(__file__).resolve().parents[1]
SHORT = "checkpoint_seconds = 0.0\nverdict_episodes = 2\nselect_episodes = 4\n"


def begin(folder: Path, options: list[str]) -> list[str]:
    """The command that starts, or where there is a run goes on."""
    distil = [sys.executable, "-m", "distillrl", "distill"]
    return [*distil, "--resume", str(folder), "--quiet"] if (folder / "config.toml").exists() else [*distil, *options, "--out", str(folder)]


def readable(folder: Path) -> None:
    """Raise unless everything that lies in the folder can be read; a line that is being written may be cut."""
    if (folder / "config.toml").exists():
        config.build(config.read(folder / "config.toml"))
    lines = (folder / "metrics.jsonl").read_text().split("\n")[:-1] if (folder / "metrics.jsonl").exists() else []
    assert all(isinstance(json.loads(line), dict) for line in lines)
    if (folder / "student.safetensors").exists():
        students.build(*artifact.load(folder / "student.safetensors"))
    if (folder / "verdict.json").exists():
        json.loads((folder / "verdict.json").read_text())


def killed(folder: Path, options: list[str], moments: list[float]) -> int:
    """Kill a run at each moment (seconds after its start), then let it end; how many kills met a living process."""
    met = 0
    for moment in moments:
        process = subprocess.Popen(begin(folder, options), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(moment)
        met += process.poll() is None
        process.kill()
        process.wait()
        readable(folder)
    if not (folder / "verdict.json").exists():
        subprocess.run(begin(folder, options), check=True, capture_output=True)
    return met


def main() -> None:
    """Print a line each, and how many ended in the same bytes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    draw, done, same, runs = random.Random(given.seed), 0, 0, 0
    with tempfile.TemporaryDirectory() as place:
        chosen = Path(place) / "short.toml"
        chosen.write_text(SHORT)
        options = [str(ROOT / "examples" / "ppo_lunar.zip"), "--env", "LunarLander-v3", "--until", "none", "--env-steps", "6000", "--quiet", "--config", str(chosen)]
        began = time.perf_counter()
        subprocess.run(begin(Path(place) / "whole", options), check=True, capture_output=True)
        length = time.perf_counter() - began
        wanted = (Path(place) / "whole" / "student.safetensors").read_bytes()
        while done < given.kills:
            moments = [draw.uniform(0.2, 1.0) * length for _ in range(min(draw.randint(1, 3), given.kills - done))]
            folder = Path(place) / f"run{runs}"
            met = killed(folder, options, moments)
            equal = (folder / "student.safetensors").read_bytes() == wanted
            done, same, runs = done + len(moments), same + equal, runs + 1
            print(json.dumps({"run": runs, "kills": [round(m, 2) for m in moments], "met_alive": met, "same_bytes": equal}), flush=True)
    print(json.dumps({"what": "kill -9", "kills": done, "runs": runs, "ended_in_the_same_bytes": same, "run_s": round(length, 2)}))
    sys.exit(same != runs)


if __name__ == "__main__":
    main()
