"""A module imports only from its own floor or below (DESIGN.md, The rooms)."""

import ast
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1] / "src" / "distillrl"
FLOORS = {
    "errors": 0, "config": 0, "records": 0, "actions": 0,
    "policies": 1, "packing": 1, "senses": 1, "filters": 1, "images": 1, "seeing": 1, "wrapping": 1, "sounds": 1, "normalising": 1, "envs": 1, "texts": 1, "rendering": 1, "atari": 1, "vectors": 1, "episodes": 1, "repeats": 1, "spaces": 1, "tasks": 1, "artifact": 1, "stats": 1, "bootstrap": 1, "noninferiority": 1,
    "teachers": 2, "students": 2, "acting": 2, "objectives": 2, "weights": 2,
    "states": 3, "advantages": 3, "heads": 3, "columns": 3, "dataset": 3, "storage": 3, "recordings": 3, "loading": 3,
    "agreeing": 1, "learn": 4, "byhand": 4, "refit": 4, "evaluation": 4, "taskwise": 4, "robustness": 4, "fidelity": 4, "perturbations": 4, "physics": 4, "generalisation": 4, "costs": 4, "traces": 4,
    "runs": 5, "rounds": 5, "phases": 5, "settling": 5, "beginning": 5, "selecting": 5, "hardcases": 5, "retaining": 5, "racing": 5, "cohort": 5, "methods": 5, "recording": 5, "distillation": 5, "diagnosis": 5, "imitability": 4,
    "console": 7, "reporting": 7, "exporting": 7, "compression": 7, "shrinking": 7, "pruning": 7, "calibration": 7, "search": 7, "pausing": 7, "limits": 7, "frontier": 7, "targets": 7, "parity": 7,
    "evidence": 7, "findings": 7, "comparing": 7, "judging": 7, "pictures": 7, "canvas": 7, "reading": 7, "sections": 7, "watching": 7, "logging": 7, "scratch": 7,
    "rescuing": 3, "choosing": 4, "balancing": 4, "checkpoints": 5, "inheriting": 5,
    "lanes": 3, "weighing": 3, "recorded": 3, "offline": 5,
    "cli": 9, "options": 9, "shipping": 9, "__init__": 9, "__main__": 9,
}  # fmt: skip


def imports(tree: ast.Module) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            parts = node.module.split(".")
            if parts[0] == "distillrl":
                found |= {parts[1]} if len(parts) > 1 else {a.name for a in node.names}
    return found


def test_every_room_has_a_floor_and_imports_only_downwards():
    wrong = []
    for path in sorted(SOURCE.rglob("*.py")):
        room = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        assert room in FLOORS, f"{path.name}: give {room!r} a floor here and in DESIGN.md"
        for other in imports(ast.parse(path.read_text())):
            if other in FLOORS and FLOORS[other] > FLOORS[room]:
                wrong.append(f"{path.relative_to(SOURCE)} (floor {FLOORS[room]}) imports {other} (floor {FLOORS[other]})")
    assert not wrong, "\n".join(wrong)


def test_no_room_without_a_meaning():
    names = {p.stem for p in SOURCE.rglob("*.py")}
    assert not names & {"utils", "helpers", "base", "common", "core", "misc"}

