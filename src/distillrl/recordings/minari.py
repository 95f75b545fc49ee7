"""Minari's data sets (``data/main_data.hdf5`` beside ``data/metadata.json``): read without minari, by their documented layout."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from distillrl.errors import Failed, Missing
from distillrl.recordings.episodes import KNOWN, Raw, afford, joined
from distillrl.recordings.hdf5 import leaves, opened
from distillrl.spaces import spec_of

MAIN, METADATA = "main_data.hdf5", "metadata.json"


def folder(path: Path) -> Path | None:
    """The ``data`` folder of a data set given by its folder, that folder itself, or its id in the local cache."""
    cache = os.environ.get("MINARI_DATASETS_PATH") or Path.home() / ".minari" / "datasets"
    for place in (path, Path(cache) / path):
        for data in (place / "data", place):
            if (data / METADATA).is_file():
                return data
    return None


def sniff(path: Path) -> bool:
    """Whether it is one."""
    return folder(path) is not None


def read(path: Path) -> Raw:
    """Raises Failed for a damaged one."""
    data = folder(path)
    if data is None:
        raise Failed(f"{path} is no Minari data set: it has no data/{METADATA}, and the local cache has none of this name")
    try:
        metadata = json.loads((data / METADATA).read_text(encoding="utf-8"))
        observation, action = (space_of(json.loads(metadata[k])) for k in ("observation_space", "action_space"))
        environment = json.loads(metadata["env_spec"])["id"] if metadata.get("env_spec") else None
        ours = dict(metadata.get("distillrl") or {})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, AssertionError) as error:
        raise Failed(f"{data / METADATA} is damaged ({type(error).__name__}: {error})") from None
    if metadata.get("data_format", "hdf5") != "hdf5":
        raise Failed(f"{path} is stored as {metadata['data_format']}; data_format hdf5 is read here (minari's default)")
    spec = spec_of(observation, action)
    with opened(data / MAIN) as file:
        raw = joined(_episodes(file, observation, bool(metadata.get("jpeg_encoding", True)), str(path)), str(path))
    return Raw(**raw, spec=spec, environment=environment, squashed=bool(ours.get("squashed")))


def _episodes(file: Any, observation: Any, jpeg: bool, where: str) -> Iterator[dict[str, Any]]:
    afford(sum(int(np.prod(d.shape)) * d.dtype.itemsize for d in leaves(file, where).values()), where)
    for i in range(len(file)):
        if f"episode_{i}" not in file:
            raise Failed(f"{where}: episode_{i} of {len(file)} is missing")
        found = leaves(file[f"episode_{i}"], f"{where}, episode_{i}")
        lacking = [k for k in ("actions", "rewards", "terminations") if k not in found]
        if lacking:
            raise Failed(f"{where}: episode_{i} has no {', '.join(lacking)}")
        success = next((found[k][()] for k in ("infos/success", "infos/is_success") if k in found), None)
        yield {
            "obs": _observations(found, observation, jpeg, f"{where}, episode_{i}"),
            "action": found["actions"][()],
            "reward": found["rewards"][()],
            "terminated": bool(np.any(found["terminations"][()])),
            "known": {k: found[f"infos/teacher_{k}"][()] for k in KNOWN if f"infos/teacher_{k}" in found},
            "success": None if success is None else bool(np.any(success)),
        }


def _observations(found: Mapping[str, Any], space: Any, jpeg: bool, where: str) -> Any:
    subspaces = _subspaces(space)
    if subspaces is None:
        if "observations" not in found:
            raise Failed(f"{where} has no observations")
        return _decoded(found["observations"], space, jpeg, where)
    inside = "_index_" if isinstance(space, spaces.Tuple) else ""
    lacking = [k for k in subspaces if f"observations/{inside}{k}" not in found]
    if lacking:
        raise Failed(f"{where} has no observations of {', '.join(lacking)}")
    return {k: _decoded(found[f"observations/{inside}{k}"], s, jpeg, where) for k, s in subspaces.items()}


def _subspaces(space: Any) -> dict[str, Any] | None:
    if isinstance(space, spaces.Dict):
        return {str(k): s for k, s in space.spaces.items()}
    return {str(i): s for i, s in enumerate(space.spaces)} if isinstance(space, spaces.Tuple) else None


def _decoded(dataset: Any, space: Any, jpeg: bool, where: str) -> Any:
    """Images may be kept as JPEG, a row of bytes each."""
    values = dataset[()]
    image = isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) in {2, 3} and min(space.shape[:2]) >= 32
    if not (jpeg and image) or values.shape[1:] == space.shape:
        return values
    try:
        from PIL import Image
    except ImportError:
        raise Missing(f"{where} holds JPEG images, which pillow reads: pip install 'distillrl[data]'") from None
    afford(len(values) * int(np.prod(space.shape)), where)
    try:
        return np.stack([np.asarray(Image.open(io.BytesIO(np.asarray(v, np.uint8).tobytes())), np.uint8) for v in values])
    except (OSError, ValueError, SyntaxError) as error:
        raise Failed(f"{where}: an image is damaged: {error}") from None


def space_of(data: Mapping[str, Any]) -> spaces.Space[Any]:
    """A space of Minari's JSON; raises KeyError, TypeError or ValueError where it is none."""
    kind = data["type"]
    if kind == "Dict":
        return spaces.Dict({str(k): space_of(v) for k, v in data["subspaces"].items()})
    if kind == "Tuple":
        return spaces.Tuple([space_of(v) for v in data["subspaces"]])
    if kind == "Discrete":
        return spaces.Discrete(int(data["n"]), start=int(data.get("start", 0)))
    if kind == "MultiDiscrete":
        return spaces.MultiDiscrete(data["nvec"], dtype=data["dtype"])
    if kind == "MultiBinary":
        return spaces.MultiBinary(data["n"])
    if kind != "Box":
        raise ValueError(f"a space of {kind}: Box, Discrete, MultiDiscrete, MultiBinary, Dict and Tuple are right")
    dtype: Any = np.dtype(str(data["dtype"]))
    low, high = (np.asarray(data[k], dtype) for k in ("low", "high"))
    return spaces.Box(low, high, tuple(map(int, data["shape"])), dtype)


def json_of(space: spaces.Space[Any]) -> dict[str, Any]:
    """Minari's JSON of a space; its inverse is ``space_of``."""
    if isinstance(space, spaces.Dict):
        return {"type": "Dict", "subspaces": {str(k): json_of(s) for k, s in space.spaces.items()}}
    if isinstance(space, spaces.Tuple):
        return {"type": "Tuple", "subspaces": [json_of(s) for s in space.spaces]}
    if isinstance(space, spaces.Discrete):
        return {"type": "Discrete", "dtype": "int64", "start": int(space.start), "n": int(space.n)}
    if isinstance(space, spaces.MultiDiscrete):
        return {"type": "MultiDiscrete", "dtype": str(space.dtype), "nvec": space.nvec.tolist(), "start": space.start.tolist()}
    if isinstance(space, spaces.MultiBinary):
        return {"type": "MultiBinary", "n": space.n}
    assert isinstance(space, spaces.Box), space
    return {"type": "Box", "dtype": str(space.dtype), "shape": list(space.shape), "low": space.low.tolist(), "high": space.high.tolist()}
