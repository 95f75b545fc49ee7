"""scikit-learn estimators saved by skops or pickle, read inert and made of torch: MLPs, linear models, trees and forests.

skops keeps a JSON tree and ``.npy`` files in a zip; a pickle holds the same. Both become plain records here, and no
class of scikit-learn is made. A pipeline's scalers become part of the network. joblib's files, a pickle with arrays' bytes in between, are read likewise.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from distillrl.actions import FORBIDDEN, Head
from distillrl.errors import Failed, Misconfigured, Missing
from distillrl.records import ActionSpace, Spec
from distillrl.senses import Pick, Sense
from distillrl.students.networks import Network
from distillrl.teachers import pickles
from distillrl.teachers.archives import Archive, names_in, read_file, read_json
from distillrl.teachers.fitting import see, unbounded
from distillrl.teachers.pickles import Made
from distillrl.teachers.sizes import Visits
from distillrl.teachers.writer import Weights, Writer, policy

if TYPE_CHECKING:
    from distillrl.teachers import Options

TITLE = "scikit-learn"
MAX_BYTES = 1 << 29
MAX_DEPTH = 60
ACTIVATIONS = {"identity": "identity", "relu": "relu", "tanh": "tanh", "logistic": "sigmoid"}
LINEAR = frozenset({"LinearRegression", "Ridge", "RidgeCV", "Lasso", "ElasticNet", "SGDRegressor", "LinearSVR", "MultiTaskLasso", "MultiTaskElasticNet", "BayesianRidge"})
LOGISTIC = frozenset({"LogisticRegression", "LogisticRegressionCV", "SGDClassifier", "RidgeClassifier", "LinearSVC", "Perceptron", "LinearDiscriminantAnalysis"})
FORESTS = frozenset({"RandomForestClassifier", "RandomForestRegressor", "ExtraTreesClassifier", "ExtraTreesRegressor"})
TREES = frozenset({"DecisionTreeClassifier", "DecisionTreeRegressor", "ExtraTreeClassifier", "ExtraTreeRegressor"})


@dataclass(frozen=True)
class Estimator:
    """An object of the file: its class by name, its attributes as plain data and arrays."""

    kind: str
    attributes: Mapping[str, Any]

    def array(self, name: str) -> np.ndarray:
        """An attribute that must be an array of numbers."""
        value = self.attributes.get(name)
        if not isinstance(value, (np.ndarray, int, float)) or np.asarray(value).dtype.kind not in "fiub":
            raise Failed(f"the file's {self.kind} lacks {name}: it isn't fitted, or damaged")
        made = np.asarray(value, dtype=np.float64)
        if not np.isfinite(made).all():
            raise Failed(f"the file's {self.kind} has NaN or infinity in {name}")
        return made


def sniff(path: Path) -> bool:
    """Whether the file is one of skops, or a pickle whose first named class is scikit-learn's."""
    if not path.is_file():
        return False
    if "schema.json" in names_in(path):
        return True
    if path.suffix.lower() not in {".pkl", ".pickle", ".joblib", ".sklearn"}:
        return False
    with path.open("rb") as file:
        head = file.read(512)
    return head[:1] == b"\x80" and b"sklearn." in head


def load(path: Path, options: Options, spec: Spec | None = None) -> Any:
    """The policy of an estimator. Raises Failed (damaged, hostile), Missing (an estimator not known here), Misconfigured."""
    who = f"{path.name} (scikit-learn)"
    try:
        root = read(path)
        if not isinstance(root, Estimator):
            raise Failed(f"{path} holds no estimator")
        steps, model = _steps(root)
        if model.kind in TREES | FORESTS:
            return _forest(model, steps, spec, options.sees, who)
        writer = Writer(Weights({}, str(path)), "relu", spec.action if spec else None)
        _write(writer, steps, model)
        return policy(writer, spec, options.sees, who, {"format": TITLE, "algorithm": model.kind, "notes": []})
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        raise Failed(f"{path} is damaged: its estimator makes no sense ({type(error).__name__}: {str(error)[:100]})") from None


# ── reading ──


def read(path: Path) -> Any:
    """The estimator as plain records."""
    data = read_file(path, MAX_BYTES)
    if data[:4] == b"PK\x03\x04":
        archive = Archive(data, str(path))
        if "schema.json" not in archive:
            raise Failed(f"{path} is no file of skops: it lacks schema.json")
        return _Skops(archive).value(read_json(archive.read("schema.json"), str(path)), 0)
    if data[:1] != b"\x80":
        raise Missing(f"{path} is no pickle; one that joblib compressed is not read here: save it without compress, or with skops.io.dump")
    return _plain(pickles.read(data, str(path)), Visits(str(path)), 0)


class _Skops:
    def __init__(self, archive: Archive) -> None:
        self.archive = archive
        self.known: dict[int, Any] = {}

    def value(self, node: Any, depth: int) -> Any:
        """A node of the schema as plain data."""
        if depth > MAX_DEPTH:
            raise Failed(f"{self.archive.where} is refused: nested too deeply")
        kind = str(node.get("__loader__", ""))
        if kind == "CachedNode" or (kind == "" and "__id__" in node):
            return self.known.get(node["__id__"])
        made = self._made(node, kind, depth)
        if "__id__" in node:
            self.known[node["__id__"]] = made
        return made

    def _made(self, node: Mapping[str, Any], kind: str, depth: int) -> Any:
        content = node.get("content")
        if kind == "JsonNode":
            return json.loads(str(content))
        if kind in {"ListNode", "TupleNode", "SetNode"}:
            return [self.value(v, depth + 1) for v in content]  # type: ignore[union-attr]  # a list, by its kind
        if kind in {"DictNode", "OrderedDictNode", "DefaultDictNode", "BunchNode"}:
            return {k: self.value(v, depth + 1) for k, v in content.items()}  # type: ignore[union-attr]  # a dict, by its kind
        if kind == "NdArrayNode" and node.get("type") == "numpy":
            return npy(self.archive.read(str(node["file"])), self.archive.where)
        if kind in {"ObjectNode", "TreeNode"} and isinstance(content, Mapping):
            return Estimator(str(node["__class__"]), _attributes(self.value(content, depth + 1)))
        return None


def npy(data: bytes, where: str) -> np.ndarray:
    """A ``.npy`` member; its header's claim is held against its bytes, and objects are refused."""
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise Failed(f"{where} is damaged: an array of version {version}")
    shape, fortran, dtype = readers[version](file)
    rest = data[file.tell() :]
    if dtype.hasobject or any(s < 0 for s in shape) or math.prod(shape) * dtype.itemsize != len(rest):
        raise Failed(f"{where} is refused: an array claims the shape {list(shape)[:8]} of {dtype}, and has {len(rest)} bytes")
    return np.frombuffer(rest, dtype).reshape(shape, order="F" if fortran else "C")


def _attributes(state: Any) -> dict[str, Any]:
    return {str(k): v for k, v in state.items()} if isinstance(state, Mapping) else {}


def _plain(value: Any, visits: Visits, depth: int) -> Any:
    """A pickle's inert tree as plain data."""
    visits.one(depth)
    pairs = pickles.entries(value)
    if pairs is not None:
        return {k: _plain(v, visits, depth + 1) for k, v in pairs.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v, visits, depth + 1) for v in value]
    if isinstance(value, Made):
        if value.name.startswith(("numpy.core.", "numpy._core.")):
            return _array(value, visits)
        if value.name.startswith("sklearn."):
            return Estimator(value.name.rpartition(".")[2], _attributes(_plain(value.state, visits, depth + 1)))
        return None
    return value


def _array(value: Made, visits: Visits) -> Any:
    state, where = value.state, visits.where
    if value.name.endswith("_reconstruct") and isinstance(state, tuple) and len(state) == 5 and (dtype := _structured(state[2])) is not None:
        _, shape, _, fortran, data = state
        if not isinstance(data, bytes) or any(type(s) is not int or s < 0 for s in shape) or math.prod(shape) * dtype.itemsize != len(data):
            raise Failed(f"{where} is refused: an array claims the shape {list(shape)[:8]}, and has other bytes")
        return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")
    try:
        return pickles.array(value, where)
    except Failed:
        if isinstance(state, tuple) and len(state) == 5 and isinstance(state[4], list):
            return [_plain(v, visits, 1) for v in state[4]]
        raise


def _structured(value: Any) -> np.dtype[Any] | None:
    """Numpy's record type of a tree's nodes: named fields of plain numbers."""
    state = getattr(value, "state", None)
    if not isinstance(value, Made) or value.name != "numpy.dtype" or not isinstance(state, tuple) or len(state) < 7 or not state[3]:
        return None
    names, fields = list(state[3]), pickles.entries(state[4]) or {}
    formats = [pickles.dtype(fields[n][0]) for n in names]
    if any(f is None for f in formats):
        return None
    return np.dtype({"names": names, "formats": formats, "offsets": [int(fields[n][1]) for n in names], "itemsize": int(state[5])})


# ── making ──


def _steps(root: Estimator) -> tuple[list[Estimator], Estimator]:
    """The scalers of a pipeline in order, and the model."""
    if root.kind != "Pipeline":
        return [], root
    parts = [part[1] for part in root.attributes["steps"] if isinstance(part[1], Estimator)]
    if not parts:
        raise Failed("the file's pipeline is empty")
    return parts[:-1], parts[-1]


def _scaling(steps: list[Estimator]) -> tuple[np.ndarray, np.ndarray] | None:
    """X · scale + shift of all scalers together."""
    scale, shift = np.ones(1), np.zeros(1)
    for step in steps:
        if step.kind == "StandardScaler":
            mean = step.array("mean_") if step.attributes.get("with_mean", True) else np.zeros(1)
            std = step.array("scale_") if step.attributes.get("with_std", True) else np.ones(1)
            a, b = 1 / std, -mean / std
        elif step.kind == "MinMaxScaler":
            a, b = step.array("scale_"), step.array("min_")
        elif step.kind == "MaxAbsScaler":
            a, b = 1 / step.array("scale_"), np.zeros(1)
        elif step.kind == "RobustScaler":
            centre = step.array("center_") if step.attributes.get("with_centering", True) else np.zeros(1)
            a = 1 / step.array("scale_") if step.attributes.get("with_scaling", True) else np.ones(1)
            b = -centre * a
        else:
            raise Missing(f"the pipeline's step {step.kind} is not known here")
        scale, shift = scale * a, shift * a + b
    return (scale, shift) if steps else None


def _tensor(array: np.ndarray) -> Tensor:
    return torch.tensor(np.ascontiguousarray(array), dtype=torch.float32)


def _write(w: Writer, steps: list[Estimator], model: Estimator) -> None:
    if model.kind in {"MLPRegressor", "MLPClassifier"}:
        weights = [np.asarray(c, np.float64) for c in model.attributes["coefs_"]]
        biases = [np.asarray(c, np.float64) for c in model.attributes["intercepts_"]]
    elif model.kind in LINEAR | LOGISTIC:
        coef = np.atleast_2d(model.array("coef_"))
        weights, biases = [coef.T], [np.broadcast_to(np.atleast_1d(model.array("intercept_")), (coef.shape[0],))]
    else:
        raise Missing(f"{w.weights.where}: the estimator {model.kind} is not known here")
    width = int(model.attributes.get("n_features_in_") or weights[0].shape[0])
    x = w.observation(width)
    scaling = _scaling(steps)
    if scaling is not None:
        scale, shift = (np.broadcast_to(v, (width,)) for v in scaling)
        x = w.ranged(x, _tensor(scale), _tensor(shift))
    activation = ACTIVATIONS.get(str(model.attributes.get("activation", "identity")), "identity")
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        x = w.tracer.call("linear", x, w.constant(_tensor(weight.T)), w.constant(_tensor(bias)))
        x = w.act(x, activation) if i < len(weights) - 1 else x
    if model.kind in LINEAR or model.kind == "MLPRegressor":
        w.gives(x, "deterministic")
        return
    matrix, offset = _labels(model, w.tracer.shape(x)[-1], w.space)
    w.space = w.space or ActionSpace("discrete", n=matrix.shape[0])
    if model.kind in LOGISTIC - {"LogisticRegression", "LogisticRegressionCV"}:
        w.notes.append(f"{model.kind} gives scores and no probabilities: they are taken as logits")
    w.gives(w.tracer.call("linear", x, w.constant(matrix), w.constant(offset)), "categorical")


def _labels(model: Estimator, width: int, space: ActionSpace | None) -> tuple[Tensor, Tensor]:
    """What turns the scores of the classes that were seen into logits of all actions: [n, width] and [n]."""
    classes = _classes(model)
    n = space.n if space is not None and space.kind == "discrete" else max(classes) + 1
    if min(classes) < 0 or max(classes) >= n:
        raise Misconfigured(f"the estimator's classes are {classes[:8]}, the environment's action is {space}: this teacher is for another environment")
    binary = width == 1 and len(classes) == 2
    if not binary and width != len(classes):
        raise Failed(f"the file's {model.kind} gives {width} scores for {len(classes)} classes")
    matrix, offset = torch.zeros(n, width), torch.full((n,), FORBIDDEN)
    for column, action in enumerate(classes):
        offset[action] = 0.0
        if binary:
            matrix[action, 0] = float(column)
        else:
            matrix[action, column] = 1.0
    return matrix, offset


def _classes(model: Estimator) -> list[int]:
    raw = model.attributes.get("classes_")
    array = np.asarray(raw if raw is not None else [])
    if array.ndim != 1 or array.dtype.kind not in "iu" or not len(array) or len(array) > 1 << 16:
        raise Misconfigured(f"the estimator's classes ({str(array)[:60]}) are not action numbers")
    return [int(c) for c in array]


class Trees(nn.Module):
    """The mean of some trees' leaves: x [N, F] → [N, K]; ``x[feature] ≤ threshold`` goes left, as scikit-learn does."""

    def __init__(self, trees: list[tuple[np.ndarray, np.ndarray]]) -> None:
        super().__init__()
        self.count, self.outputs = len(trees), trees[0][1].shape[1]
        self.depth = max(_depth(nodes) for nodes, _ in trees)
        for i, (nodes, values) in enumerate(trees):
            inner = nodes["left_child"] >= 0
            own = np.arange(len(nodes))
            self.register_buffer(f"feature{i}", torch.tensor(np.where(inner, nodes["feature"], 0).astype(np.int64)))
            self.register_buffer(f"threshold{i}", torch.tensor(nodes["threshold"].astype(np.float64)))
            self.register_buffer(f"left{i}", torch.tensor(np.where(inner, nodes["left_child"], own).astype(np.int64)))
            self.register_buffer(f"right{i}", torch.tensor(np.where(inner, nodes["right_child"], own).astype(np.int64)))
            self.register_buffer(f"values{i}", torch.tensor(values.astype(np.float32)))

    def forward(self, x: Tensor) -> Tensor:
        """[..., F] → [..., K]"""
        total: Tensor | None = None
        for i in range(self.count):
            feature, threshold, left, right, values = (getattr(self, f"{n}{i}") for n in ("feature", "threshold", "left", "right", "values"))
            at = torch.zeros(x.shape[:-1], dtype=torch.long, device=x.device)
            for _ in range(self.depth):
                seen = x.gather(-1, feature[at].unsqueeze(-1)).squeeze(-1)
                at = torch.where(seen.double() <= threshold[at], left[at], right[at])
            total = values[at] if total is None else total + values[at]
        assert total is not None
        return total / self.count


class LogOf(nn.Module):
    """The logarithm of probabilities, and how they lie among all actions."""

    actions: Tensor

    def __init__(self, actions: list[int], n: int) -> None:
        super().__init__()
        self.register_buffer("actions", torch.tensor(actions))
        self.n = n

    def forward(self, x: Tensor) -> Tensor:
        """[..., classes] → [..., n]"""
        out = x.new_full((*x.shape[:-1], self.n), FORBIDDEN)
        out[..., self.actions] = x.clamp_min(1e-12).log()
        return out


def _depth(nodes: np.ndarray) -> int:
    """The longest way down; children lie after their parents, so that it has an end."""
    depth = np.zeros(len(nodes), np.int64)
    for i, node in enumerate(nodes):
        for child in (int(node["left_child"]), int(node["right_child"])):
            if child >= 0:
                if child <= i or child >= len(nodes):
                    raise Failed("the file's tree is damaged: a child lies before its parent")
                depth[child] = depth[i] + 1
    return int(depth.max()) if len(nodes) else 0


def _tree(estimator: Estimator, width: int) -> tuple[np.ndarray, np.ndarray]:
    tree = estimator.attributes["tree_"]
    nodes, values = tree.attributes["nodes"], tree.attributes["values"]
    if nodes.dtype.names is None or not len(nodes) or len(nodes) != len(values) or ((nodes["left_child"] >= 0).any() and not (nodes["feature"][nodes["left_child"] >= 0] < width).all()):
        raise Failed("the file's tree is damaged: its nodes don't fit each other")
    if ((nodes["left_child"] >= 0) & ((nodes["feature"] < 0) | (nodes["right_child"] < 0))).any():
        raise Failed("the file's tree is damaged: a node lacks its feature or a child")
    if estimator.kind.endswith("Classifier"):
        if values.shape[1] != 1:
            raise Missing("a tree of several outputs of classes is not known here")
        leaf = values[:, 0, :].astype(np.float64)
        return nodes, leaf / np.maximum(leaf.sum(1, keepdims=True), 1e-300)
    return nodes, values[:, :, 0]


def _forest(model: Estimator, steps: list[Estimator], spec: Spec | None, sees: str | None, who: str) -> Network:
    width = int(model.attributes["n_features_in_"])
    members = [model] if model.kind in TREES else [m for m in model.attributes["estimators_"] if isinstance(m, Estimator)]
    module = Trees([_tree(m, width) for m in members])
    outputs = int(module.outputs)
    seen = see({"obs": ((width,), torch.float32)}, spec, sees, who)
    space = spec.action if spec else None
    if model.kind.endswith("Classifier"):
        classes = _classes(model)
        space = space or ActionSpace("discrete", n=max(classes) + 1)
        if space.kind != "discrete" or max(classes) >= space.n or min(classes) < 0 or outputs != len(classes):
            raise Misconfigured(f"{who} chooses among {classes[:8]}, the environment's action is {space}: this teacher is for another environment")
        out, head = nn.Sequential(module, LogOf(classes, space.n)), Head.of("categorical", space)
    else:
        space = space or unbounded(outputs)
        if space.kind != "box" or space.dimensions != outputs:
            raise Misconfigured(f"{who} gives {outputs} numbers, the environment's action is {space}: this teacher is for another environment")
        out, head = nn.Sequential(module), Head.of("deterministic", space)
    scaling = _scaling(steps)
    if scaling is not None:
        raise Missing(f"{who}: a tree behind a scaler is not known here; trees need none, save it without")
    steps_seen = [Pick(tuple(seen.observations))] if spec is not None and len(spec.observations) > len(seen.observations) else []
    info = {"format": TITLE, "algorithm": model.kind, "layers": [f"{len(members)} tree(s), {module.depth} deep"], "normaliser": "none", "notes": list(seen.notes)}
    network = Network(Spec(seen.observations, space), Sense(seen.observations, steps_seen), nn.Sequential(), out, head, info=info)
    return network.requires_grad_(False).eval()
