"""What the benches share: cells measured once and kept as JSON lines, episodes on known seeds, tables between markers.

A cell is found again by all that it depends on (the teacher's bytes, the environment, every option, the seed, the versions of
the libraries), so that a stopped bench goes on where it was. A line also notes a digest of distillrl's source; ``stale`` says
how many cells another source has measured, and ``--fresh`` measures those anew.
"""

from __future__ import annotations

import argparse
import dataclasses
import fcntl
import hashlib
import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TEACHERS = (ROOT.parent / "shared" / "teachers", ROOT.parent / "zoo_extra")
Facts = Mapping[str, Any]
Job = tuple[Callable[[Facts], dict[str, Any]], Facts]
"""A function at the top of its module, and what its value depends on; names beginning with _ are passed on, but are no part of the key."""


@cache
def versions() -> dict[str, str]:
    """Of what decides on the numbers."""
    import gymnasium
    import torch

    import distillrl

    return {"distillrl": distillrl.__version__, "torch": torch.__version__.partition("+")[0], "gymnasium": gymnasium.__version__}


@cache
def source() -> str:
    """Twelve hexadecimal digits of distillrl's source, where it was imported from."""
    import distillrl

    digest = hashlib.sha256()
    for path in sorted(Path(distillrl.__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


@cache
def digest(path: str) -> str:
    """Of a teacher's file, or of all files in its folder."""
    place = Path(path)
    files = sorted(p for p in place.rglob("*") if p.is_file()) if place.is_dir() else [place, place.with_name("vecnormalize.pkl")]
    total = hashlib.sha256()
    for file in files:
        if file.is_file():
            total.update(file.name.encode() + file.read_bytes())
    return total.hexdigest()[:16]


def key(facts: Facts) -> str:
    """Of a cell."""
    told = {name: value for name, value in facts.items() if not name.startswith("_")}
    return hashlib.sha256(json.dumps({**told, "versions": versions()}, sort_keys=True).encode()).hexdigest()[:20]


@dataclass
class Cells:
    """A file of JSON lines {key, facts, value, source}; several processes may append to it."""

    path: Path

    def read(self) -> dict[str, dict[str, Any]]:
        """Every whole line by its key; the last of a key holds. A line that a killed process left half written is passed over."""
        found: dict[str, dict[str, Any]] = {}
        for line in self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []:
            try:
                cell = json.loads(line)
                found[cell["key"]] = cell
            except (ValueError, KeyError, TypeError):
                print(f"{self.path}: a line that is no cell is passed over: {line[:60]}", file=sys.stderr)
        return found

    def append(self, facts: Facts, value: Mapping[str, Any]) -> None:
        """One line more."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        told = {name: v for name, v in facts.items() if not name.startswith("_")}
        line = json.dumps({"key": key(facts), "facts": told, "value": value, "source": source()}, sort_keys=True)
        with self.path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if file.seek(0, 2) and (file.seek(-1, 2), file.read(1))[1] != b"\n":
                file.write(b"\n")
            file.write(line.encode() + b"\n")

    def values(self, jobs: Sequence[Job]) -> list[dict[str, Any] | None]:
        """What is known of each job, in order."""
        known = self.read()
        return [known[k]["value"] if (k := key(facts)) in known else None for _, facts in jobs]

    def stale(self, jobs: Sequence[Job]) -> list[str]:
        """The keys of cells that another source of distillrl has measured."""
        known = self.read()
        return [k for _, facts in jobs if (k := key(facts)) in known and known[k]["source"] != source()]


def run(cells: Cells, jobs: Sequence[Job], *, workers: int = 1, seconds: float | None = None, fresh: bool = False) -> int:
    """Measure what isn't known yet, in order; returns how many cells are still missing. After ``seconds`` none is begun."""
    began, again = time.monotonic(), set(cells.stale(jobs)) if fresh else set()
    unique = {key(facts): (function, facts) for function, facts in jobs}
    todo = {k: job for k, job in unique.items() if k in again or k not in cells.read()}
    print(f"{len(unique)} cells, {len(unique) - len(todo)} known", file=sys.stderr)
    failed = 0

    def late() -> bool:
        return seconds is not None and time.monotonic() - began > seconds

    def done(facts: Facts, value: dict[str, Any], left: int) -> None:
        cells.append(facts, value)
        print(f"{time.monotonic() - began:7.0f} s  {left:4} left  {facts.get('_name', key(facts))}", file=sys.stderr, flush=True)

    if workers <= 1:
        for count, (function, facts) in enumerate(todo.values(), 1):
            if late():
                return len(todo) - count + 1 + failed
            try:
                done(facts, function(facts), len(todo) - count)
            except Exception as error:  # one cell that can't be measured must not cost the others
                failed += 1
                print(f"{facts.get('_name')}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return failed
    count = 0
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        waiting = {pool.submit(function, facts): facts for function, facts in todo.values()}
        for future in as_completed(waiting):
            if future.cancelled():
                continue
            facts = waiting[future]
            try:
                value = future.result()
                count += 1
                done(facts, value, len(todo) - count)
            except Exception as error:  # as above
                print(f"{facts.get('_name')}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            if late():
                pool.shutdown(wait=False, cancel_futures=True)
    return len(todo) - count


def leave(missing: int) -> None:
    """End with code 1 where cells are missing."""
    if missing:
        print(f"{missing} cells are missing: call it again to go on", file=sys.stderr)
    sys.exit(1 if missing else 0)


def guarded(main: Callable[[], None]) -> None:
    """Run a bench: our errors and Ctrl-C become a sentence, as on distillrl's own command line."""
    from distillrl.errors import DistillError

    try:
        main()
    except DistillError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted: what was measured is kept, so call it again to go on", file=sys.stderr)
        sys.exit(130)


def count(text: str) -> int:
    """A whole number from 1 on, for argparse."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: a whole number from 1 on is right")
    return int(text)


def find(relative: str, folders: Sequence[Path]) -> Path | None:
    """A teacher's file in the first folder that has it."""
    return next((folder / relative for folder in folders if (folder / relative).exists()), None)


def plain(record: Any) -> Any:
    """What a frozen record says beyond its defaults, as JSON data: a field that it gains later changes no key."""
    told = {f.name: getattr(record, f.name) for f in dataclasses.fields(record) if getattr(record, f.name) != _default(f)}
    return json.loads(json.dumps(told))


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default


def rounded(returns: Any) -> list[float]:
    """Returns [episodes] in as many digits as say something."""
    return [float(f"{float(x):.6g}") for x in returns]


def between(page: Path, name: str, text: str) -> None:
    """Write ``text`` between the page's markers ``<!-- NAME -->`` and ``<!-- /NAME -->``."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    whole = page.read_text(encoding="utf-8")
    if begin not in whole or end not in whole:
        raise SystemExit(f"{page} lacks the markers {begin} and {end}")
    head, rest = whole.split(begin, 1)
    page.write_text(head + begin + "\n" + text.strip() + "\n" + end + rest.split(end, 1)[1], encoding="utf-8")
