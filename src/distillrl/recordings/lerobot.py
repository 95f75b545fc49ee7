"""Folders in LeRobot's form: ``meta/info.json``, and parquet files under ``data/chunk-*/`` (v2: an episode a file; v3: several)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from distillrl.errors import Failed, Missing
from distillrl.recordings.episodes import Raw, afford, joined, numbers

OBSERVATION = "observation."


def sniff(path: Path) -> bool:
    """Whether it is one."""
    return (path / "meta" / "info.json").is_file()


def read(path: Path) -> Raw:
    """``observation.*``, ``action``, ``next.reward``, ``next.done``, ``next.success``; videos are left out, and that is said."""
    try:
        info = json.loads((path / "meta" / "info.json").read_text(encoding="utf-8"))
        features = {str(k): dict(v) for k, v in info["features"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Failed(f"{path / 'meta' / 'info.json'} is damaged ({type(error).__name__}: {error})") from None
    seen = [k for k in features if k.startswith(OBSERVATION) or k == "observation"]
    videos = [k for k in seen if features[k].get("dtype") in {"video", "image"}]
    seen = [k for k in seen if k not in videos]
    if not seen or "action" not in features:
        raise Failed(f"{path} has no {'action' if seen else 'observations in numbers'}; its features are {', '.join(features)}")
    extra = [k for k in ("next.reward", "next.done", "next.success", "episode_index") if k in features]
    table = _table(path, [*seen, "action", *extra])
    notes = [f"{', '.join(videos)} is kept as pictures or video, and left out"] if videos else []
    if "next.done" not in table:
        notes.append("no next.done: every episode is taken to be cut, not terminated")
    elif "next.reward" in table or "next.success" in table:
        notes.append("next.done is taken for terminations: time limits can't be told apart from them here")
    raw = joined(_episodes(table, seen, {k: _shape(f) for k, f in features.items()}, str(path)), str(path))
    return Raw(**raw, environment=None, notes=tuple(notes))


def _table(path: Path, columns: list[str]) -> dict[str, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise Missing(f"{path} is kept as parquet, which pyarrow reads: pip install 'distillrl[data]'") from None
    files = sorted(path.glob("data/chunk-*/*.parquet")) or sorted(path.glob("data/*.parquet"))
    if not files:
        raise Failed(f"{path} has no data/chunk-*/*.parquet: zero episodes")
    tables = []
    try:
        afford(sum(_bytes(parquet.read_metadata(file)) for file in files), str(path))
        for number, file in enumerate(files):
            one = parquet.ParquetFile(file).read(columns=[c for c in columns if c in parquet.read_schema(file).names])
            if "episode_index" not in one.column_names:
                one = one.append_column("episode_index", pyarrow.array(np.full(len(one), number)))
            tables.append(one)
        whole = pyarrow.concat_tables(tables)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise Failed(f"{path}: its parquet files are damaged, or don't fit together: {error}") from None
    lacking = [c for c in columns if c not in whole.column_names]
    if lacking:
        raise Failed(f"{path}: meta/info.json names {', '.join(lacking)}, but the parquet files have {', '.join(whole.column_names)}")
    return {name: whole.column(name) for name in whole.column_names}


def _bytes(metadata: Any) -> int:
    return sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))


def _shape(feature: dict[str, Any]) -> tuple[int, ...]:
    shape = feature.get("shape") or [1]
    return tuple(int(n) for n in shape) if isinstance(shape, list | tuple) else (1,)


def _array(column: Any, shape: tuple[int, ...], where: str) -> np.ndarray:
    """[S, *shape] of a column of numbers or of (nested) lists; scalars have the shape (1,) in LeRobot."""
    import pyarrow

    flat = column.combine_chunks()
    if column.null_count:
        raise Failed(f"{where}: {column.null_count} of {len(column)} rows are empty")
    while isinstance(flat.type, pyarrow.ListType | pyarrow.LargeListType | pyarrow.FixedSizeListType):
        flat = flat.flatten()
    values = numbers(flat.to_numpy(zero_copy_only=False), where)
    wide = int(np.prod(shape))
    if values.size != len(column) * wide:
        raise Failed(f"{where}: {values.size} numbers in {len(column)} rows; meta/info.json says shape {list(shape)}, so {len(column) * wide} are right")
    return values.reshape(len(column), *shape) if isinstance(column.type, pyarrow.ListType | pyarrow.LargeListType | pyarrow.FixedSizeListType) else values


def _episodes(table: dict[str, Any], seen: list[str], shapes: dict[str, tuple[int, ...]], where: str) -> Iterator[dict[str, Any]]:
    arrays = {name: _array(column, shapes.get(name, (1,)), f"{where}, {name}") for name, column in table.items()}
    number = arrays["episode_index"].reshape(-1)
    cuts = np.flatnonzero(number[1:] != number[:-1]) + 1
    for rows in np.split(np.arange(len(number)), cuts):
        part = {k: v[rows] for k, v in arrays.items()}
        obs = {k.removeprefix(OBSERVATION): part[k] for k in seen}
        done, success = part.get("next.done"), part.get("next.success")
        yield {
            "obs": obs if len(obs) > 1 else next(iter(obs.values())),
            "action": part["action"],
            "reward": part.get("next.reward"),
            "terminated": done is not None and bool(np.any(done)),
            "success": None if success is None else bool(np.any(success)),
        }
