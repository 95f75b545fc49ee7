"""distillrl makes small students of trained reinforcement-learning policies.

    distill(teacher, env, student="mlp:16x16") → Run      the loop, in seconds
    load(path) → Player                                    any teacher or student; ``predict`` as in stable-baselines3
    evaluate(policy, env, teacher=None) → verdict          returns with intervals, on seeds that chose nothing
    record(teacher, env, out=folder, episodes=50)          play as a data set (Minari's), to distil from without either
    report(run_folder) → path                              one page: ship it or not, and why; compare(run_folders) too
    watch({"student": policy}, options) → a film           side by side with the teacher
    export(policy, to, out) → Export                       ONNX, C, JavaScript, Python, torch; the same numbers
    compress(student, teacher, env, prune=0.8)             the same in fewer numbers and bits, for as long as it holds
    search(teacher, env, retention=0.99)                   the smallest student that holds; all sizes learn at once

Errors are Misconfigured, Missing and Failed. Nothing heavy is imported before it is used (PEP 562).
"""

from __future__ import annotations

import importlib
import time
from typing import TYPE_CHECKING, Any

from distillrl.errors import DistillError, Failed, Misconfigured, Missing

if TYPE_CHECKING:
    from distillrl.compression import compress
    from distillrl.config import Config, Phase
    from distillrl.distillation import Run, distill
    from distillrl.evaluation import evaluate
    from distillrl.exporting import export
    from distillrl.loading import info, load
    from distillrl.recording import record
    from distillrl.reporting import compare, report
    from distillrl.search import search
    from distillrl.watching import watch

__version__ = "0.1.0"
STARTED = time.perf_counter()
"""When this process imported distillrl; «with imports» is counted from here."""

_WHERE = {
    "distill": "distillation",
    "Run": "distillation",
    "Config": "config",
    "Phase": "config",
    "load": "loading",
    "evaluate": "evaluation",
    "info": "loading",
    "export": "exporting",
    "record": "recording",
    "report": "reporting",
    "compare": "reporting",
    "watch": "watching",
    "compress": "compression",
    "search": "search",
}
__all__ = ["Config", "DistillError", "Failed", "Misconfigured", "Missing", "Phase", "Run", "compare", "compress", "distill", "evaluate", "export", "info", "load", "record", "report", "search", "watch"]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'distillrl' has no attribute {name!r}")
    return getattr(importlib.import_module(f"distillrl.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_WHERE])
