"""The figures of docs/shipping.md: latency, size, and what each export earns when it plays; written between the page's markers.

    PYTHONPATH=src python bench/shipping.py                 # ten minutes; --quick for a look, printed only; --part latency for one of three

Teachers are ../shared/teachers/*.zip; students are mlp:16x16 of LunarLander distilled here in half a minute.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))

import export as latency
import torch

from distillrl import distillation, exporting, loading, parity

PAGE = Path(__file__).parents[1] / "docs" / "shipping.md"
TEACHERS = Path(__file__).parents[2] / "shared" / "teachers"
ARM = ["arm-none-eabi-gcc", "-mcpu=cortex-m4", "-mthumb", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16", "-std=c99", "-Os", "-c"]
POLICIES = (("ppo_cartpole.zip", "CartPole-v1"), ("ppo_lunar.zip", "LunarLander-v3"), ("ppo_lunarc.zip", "LunarLanderContinuous-v3"))


def environment(name: str) -> Any:
    """LunarLanderContinuous is LunarLander with an option."""
    from distillrl.envs import EnvOptions

    return EnvOptions("LunarLander-v3", {"continuous": True}) if name.startswith("LunarLanderC") else EnvOptions(name)


def sizes(folder: Path) -> str:
    """Bytes of each file, and of the code for a Cortex-M4, by width."""
    rows = []
    for width in latency.WIDTHS:
        policy = latency.mlp(width)
        states = {"obs": torch.randn(500, 8, generator=torch.Generator().manual_seed(1)).numpy()}
        made = {to: exporting.export(policy, to, folder / f"{to}{width}", states=states) for to in ("onnx", "js", "python", "c", "c-int8")}
        row = [f"{width}x{width}", f"{policy.acting_parameters():,}", *(f"{made[to].files[0].stat().st_size:,}" for to in ("onnx", "js", "python"))]
        for to in ("c", "c-int8"):
            row.append(flash(made[to].files[0]) + f" / {made[to].facts['stack']:,}")
        rows.append("| " + " | ".join(row) + " |")
    head = "| network | parameters | onnx, bytes | js | python | c: flash on Cortex-M4 (-Os) / stack | c-int8: the same |\n|---|---|---|---|---|---|---|"
    return head + "\n" + "\n".join(rows)


def flash(source: Path) -> str:
    """Bytes of code and constants on a Cortex-M4."""
    if shutil.which(ARM[0]) is None:
        return "no arm-none-eabi-gcc"
    subprocess.run([*ARM, source, "-o", source.with_suffix(".o")], check=True)
    text = subprocess.run(["arm-none-eabi-size", source.with_suffix(".o")], capture_output=True, text=True, check=True).stdout
    return f"{int(text.splitlines()[1].split()[0]):,}"


def played(folder: Path, states: int, episodes: int, seconds: float) -> str:
    """Parity and return of every policy in every target."""
    rows = []
    policies: list[tuple[str, Any, str]] = [(f.removesuffix(".zip"), loading.load(TEACHERS / f).policy, e) for f, e in POLICIES if (TEACHERS / f).is_file()]
    if seconds and (TEACHERS / "ppo_lunar.zip").is_file():
        run = distillation.distill(TEACHERS / "ppo_lunar.zip", "LunarLander-v3", student="mlp:16x16", seconds=seconds, out=folder / "run")
        policies.append(("student mlp:16x16 of ppo_lunar", run.policy.policy, "LunarLander-v3"))
    for name, policy, env in policies:
        for to in exporting.TARGETS:
            where = environment(env)
            made = exporting.export(policy, to, folder / f"{name}-{to}".replace(" ", "_"), env=where)
            found = parity.check(made, policy, where, states=states, episodes=episodes)
            assert found.exported is not None
            assert found.policy is not None
            assert found.difference is not None
            error = found.action_error if found.action_error is not None else found.raw_error
            rows.append(
                f"| {name} | {to} | {found.agreement:.4f} | {found.clear_disagreements if found.action_error is None else '–'} | {error or 0:.1e} | "
                f"{found.exported.value:.1f} ({found.exported.low:.1f} to {found.exported.high:.1f}) | {found.policy.value:.1f} | "
                f"{found.difference.value:+.2f} ({found.difference.low:+.2f} to {found.difference.high:+.2f}) |"
            )
            print(rows[-1], flush=True)
    head = "| policy | to | agreement | clear disagreements | greatest error | return, played by the export | by the policy | difference, paired |\n|---|---|---|---|---|---|---|---|"
    return head + "\n" + "\n".join(rows)


def machine() -> str:
    """What it was measured on."""
    names = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    compiler = subprocess.run(["gcc", "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]
    return f"{names[0] if names else platform.processor()}, {len(names)} cores, {compiler}, Python {platform.python_version()}, torch {torch.__version__}"


PARTS = ("latency", "size", "earns")


def main() -> None:
    """Measure, and write the page; a part that isn't asked for stays as it was."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rounds and episodes; print, and leave the page")
    parser.add_argument("--part", choices=PARTS, action="append", help="only this; may be repeated")
    parser.add_argument("--rounds", type=int, default=30, help="of the latencies")
    parser.add_argument("--sb3", default=sys.executable, help="a Python that has stable-baselines3")
    given = parser.parse_args()
    torch.set_num_threads(1)
    wanted = given.part or PARTS
    states, episodes = (1000, 3) if given.quick else (10_000, 30)
    made = {}
    with tempfile.TemporaryDirectory() as folder:
        if "latency" in wanted:
            table = latency.measure(3 if given.quick else given.rounds, given.sb3)
            node = latency.node_latency(5)
            if node is not None:
                table["export js, node"] = {"64x64": node}
            made["Latency"] = f"Machine: {machine()}. The least of many rounds, contenders in turns, one thread. Hand-written C has vectors of 32 bytes, which without native flags (SSE2) don't stay in registers.\n\n" + latency.printed(table)
        if "size" in wanted:
            made["Size"] = sizes(Path(folder))
        if "earns" in wanted:
            made["What the exports earn"] = (
                f"At least {states:,} states that the policy visits; then {episodes} episodes played by each, on the same seeds. The error is of a logit, or of a box action.\n\n"
                + played(Path(folder), states, episodes, 5 if given.quick else 30)
            )
    print("\n\n".join(f"### {heading}\n\n{text}" for heading, text in made.items()))
    if not given.quick:
        page = PAGE.read_text(encoding="utf-8")
        for heading, text in made.items():
            start = page.index(f"### {heading}\n") + len(f"### {heading}\n")
            end = min(i for i in (page.find("\n### ", start), page.index("<!-- end -->")) if i >= 0)
            page = f"{page[:start]}\n{text}\n{page[end:]}"
        PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
