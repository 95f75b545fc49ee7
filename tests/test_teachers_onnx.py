"""ONNX: genuine exports give their own answers, a batch of one is widened, hostile files are refused with nothing run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from format_cases import answers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distillrl.errors import DistillError, Failed, Misconfigured, Missing
from distillrl.records import ActionSpace, Group, Spec
from distillrl.students.networks import Network
from distillrl.teachers import Options, load
from distillrl.teachers.graphpolicy import GraphPolicy

onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")

DATA = Path(__file__).parent / "data" / "formats"
FORMATS = sorted(p.name for p in DATA.iterdir() if p.name.startswith("onnx_") or p.name.endswith("_onnx"))
GO1 = Spec({"state": Group((48,), "float64"), "privileged_state": Group((123,), "float64")}, ActionSpace("box", (12,), low=(-1.0,) * 12, high=(1.0,) * 12, dtype="float32"))


def box(obs: int, actions: int, bound: float = 100.0, **groups: Group) -> Spec:
    """An environment of one group ``obs``, and more."""
    return Spec({"obs": Group((obs,), "float32"), **groups}, ActionSpace("box", (actions,), low=(-bound,) * actions, high=(bound,) * actions, dtype="float32"))


def saved(path: Path, nodes: list[Any], inputs: dict[str, list[Any]], outputs: dict[str, list[Any]], constants: dict[str, Any], opset: int = 17) -> Path:
    """A model of these nodes (op, inputs, outputs, options)."""
    h, t = onnx.helper, onnx.TensorProto
    made = [h.make_node(op, i, o, **options) for op, i, o, options in nodes]
    graph = h.make_graph(
        made, "g", [h.make_tensor_value_info(n, t.FLOAT, s) for n, s in inputs.items()], [h.make_tensor_value_info(n, t.FLOAT, s) for n, s in outputs.items()],
        [c if isinstance(c, onnx.TensorProto) else onnx.numpy_helper.from_array(np.asarray(c), n) for n, c in constants.items()],
    )  # fmt: skip
    path.write_bytes(h.make_model(graph, opset_imports=[h.make_opsetid("", opset)], ir_version=9).SerializeToString())
    return path


def linear(path: Path, constants: dict[str, Any] | None = None, **options: Any) -> Path:
    """obs [1, 3] · W → actions [1, 2]."""
    weight = np.arange(6, dtype=np.float32).reshape(3, 2) / 10
    return saved(path, [("MatMul", ["obs", "w"], ["actions"], {})], {"obs": [1, 3]}, {"actions": [1, 2]}, constants or {"w": weight}, **options)


# ── go1 ──


def test_go1_equals_onnxruntime_and_chooses_its_group(shared: Path) -> None:
    policy = load(shared / "go1.onnx", Options(), GO1)
    assert isinstance(policy, Network)
    assert list(policy.spec.observations) == ["state"]
    assert policy.info["parameters"] == 192_504
    assert any("'state'" in note for note in policy.info["notes"])
    x = torch.randn(64, 48, dtype=torch.float64)
    with torch.inference_mode():
        prediction, _ = policy.act({"state": x, "privileged_state": torch.zeros(64, 123)}, policy.init(64), None, frozenset({"action", "features.hidden1"}))
    session = onnxruntime.InferenceSession(str(shared / "go1.onnx"))
    theirs = np.concatenate([session.run(None, {"obs": x[i : i + 1].float().numpy()})[0] for i in range(64)])
    assert prediction.action.mode.numpy() == pytest.approx(theirs, abs=1e-5)
    assert prediction.features["hidden1"].shape == (64, 512)


@pytest.mark.parametrize("sees", ["state", "group=state", "obs=state"])
def test_go1_sees_what_the_user_says(shared: Path, sees: str) -> None:
    assert list(load(shared / "go1.onnx", Options(sees=sees), GO1).spec.observations) == ["state"]


@pytest.mark.parametrize(
    ("sees", "says"),
    [("privileged_state", "takes \\[48\\].*what fits: state"), ("stat", "did you mean 'state'"), ("state,state", "more groups than"), ("observation=state", "has no input 'observation'")],
)
def test_go1_sees_wrongly(shared: Path, sees: str, says: str) -> None:
    with pytest.raises(Misconfigured, match=says):
        load(shared / "go1.onnx", Options(sees=sees), GO1)


def test_go1_is_for_another_environment(shared: Path) -> None:
    with pytest.raises(Misconfigured, match="no observation group"):
        load(shared / "go1.onnx", Options(), box(47, 12))
    with pytest.raises(Misconfigured, match="another environment"):
        load(shared / "go1.onnx", Options(), box(48, 11))


# ── genuine exports ──


@pytest.mark.parametrize("name", FORMATS)
def test_genuine_files_give_their_own_answers(name: str) -> None:
    gaps = answers(DATA / name)
    assert gaps
    assert max(gaps.values()) < 1e-5, gaps


@pytest.mark.parametrize(
    ("name", "kind"),
    [("onnx_mlp", Network), ("onnx_value", Network), ("onnx_gaussian", Network), ("onnx_external", Network), ("onnx_logits", Network), ("onnx_cnn", GraphPolicy), ("onnx_gru", GraphPolicy)],
)
def test_chains_of_layers_become_networks(name: str, kind: type) -> None:
    policy = load(DATA / name / "policy.onnx")
    assert isinstance(policy, kind)
    assert any(g.startswith("features.") for g in policy.gives)


def test_without_an_environment_its_spaces_are_made() -> None:
    policy = load(DATA / "onnx_gaussian" / "policy.onnx")
    assert policy.spec.observations == {"obs": Group((6,), "float32")}
    assert policy.spec.action.kind == "box"
    assert {"distribution", "value"} <= policy.gives
    assert load(DATA / "onnx_logits" / "policy.onnx").spec.action == ActionSpace("discrete", n=4)
    assert load(DATA / "onnx_cnn" / "policy.onnx").gives >= {"q"}


def test_memory_is_each_environments_own() -> None:
    policy = load(DATA / "onnx_gru" / "policy.onnx", Options(), box(6, 3))
    assert set(policy.init(5)) == {"h_in"}
    assert policy.init(5)["h_in"].shape == (5, 2, 5)
    x, memory = torch.randn(4, 5, 6), policy.init(5)
    for t in range(4):
        _, memory = policy.act({"obs": x[t]}, memory, torch.tensor([False, t == 3, False, False, False]))
    alone = policy.init(1)
    _, alone = policy.act({"obs": x[3, 1:2]}, alone, None)
    assert torch.allclose(memory["h_in"][1], alone["h_in"][0], atol=1e-6)


def test_what_torch_cant_run_goes_to_onnxruntime_in_one_call() -> None:
    policy = load(DATA / "onnx_runtime" / "policy.onnx", Options(), box(6, 3))
    assert type(policy).__name__ == "RuntimePolicy"
    assert not policy.one_by_one
    assert "TopK" in policy.info["notes"][0]
    prediction, _ = policy.act({"obs": torch.randn(2, 7, 6)}, {}, None)
    assert prediction.action.mode.shape == (2, 7, 3)


def test_a_batch_that_cant_be_widened_is_asked_one_by_one(tmp_path: Path) -> None:
    path = saved(
        tmp_path / "p.onnx", [("TopK", ["obs", "k"], ["a", "i"], {"axis": 0}), ("MatMul", ["a", "w"], ["actions"], {})], {"obs": [1, 3]}, {"actions": [1, 2]},
        {"k": np.array([1]), "w": np.ones((3, 2), np.float32)},
    )  # fmt: skip
    policy = load(path, Options(), box(3, 2))
    assert policy.one_by_one
    assert any("one by one" in n for n in policy.info["notes"])
    x = torch.randn(4, 3)
    assert torch.allclose(policy.act({"obs": x}, {}, None)[0].action.mode, x.sum(-1, keepdim=True).expand(4, 2), atol=1e-5)


OPERATORS: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "normalised": ([("Sub", ["obs", "m"], ["a"], {}), ("Div", ["a", "s"], ["b"], {}), ("Gemm", ["b", "w", "c"], ["actions"], {"alpha": 0.5, "beta": 2.0})], {}),
    "reshaped": ([("Reshape", ["obs", "shape13"], ["a"], {}), ("Unsqueeze", ["a", "zero"], ["b"], {}), ("Squeeze", ["b", "zero"], ["d"], {}), ("MatMul", ["d", "w"], ["actions"], {})], {}),
    "constant_beside": ([("Concat", ["obs", "extra"], ["a"], {"axis": 1}), ("Slice", ["a", "one", "four", "one"], ["b"], {}), ("MatMul", ["b", "w"], ["actions"], {})], {}),
    "swish": ([("Sigmoid", ["obs"], ["a"], {}), ("Mul", ["obs", "a"], ["b"], {}), ("MatMul", ["b", "w"], ["d"], {}), ("Tanh", ["d"], ["actions"], {})], {}),
    "activations": ([("Elu", ["obs"], ["a"], {"alpha": 0.7}), ("LeakyRelu", ["a"], ["b"], {"alpha": 0.3}), ("Selu", ["b"], ["d"], {}), ("Softsign", ["d"], ["e"], {}), ("HardSigmoid", ["e"], ["f"], {}), ("MatMul", ["f", "w"], ["actions"], {})], {}),
    "clipped": ([("Clip", ["obs", "low", "high"], ["a"], {}), ("MatMul", ["a", "w"], ["b"], {}), ("Clip", ["b", "low", "high"], ["actions"], {})], {}),
    "reduced": ([("ReduceMean", ["obs"], ["a"], {"axes": [1]}), ("Sub", ["obs", "a"], ["b"], {}), ("Pow", ["b", "two"], ["d"], {}), ("ReduceMean", ["d"], ["e"], {"axes": [1]}), ("Sqrt", ["e"], ["f"], {}), ("Add", ["f", "high"], ["g"], {}), ("Div", ["b", "g"], ["h"], {}), ("MatMul", ["h", "w"], ["actions"], {})], {}),
    "shape_of": ([("Shape", ["obs"], ["a"], {}), ("Gather", ["a", "first"], ["b"], {}), ("Unsqueeze", ["b", "zero"], ["d"], {}), ("Concat", ["d", "minus"], ["e"], {"axis": 0}), ("Reshape", ["obs", "e"], ["f"], {}), ("MatMul", ["f", "w"], ["actions"], {})], {}),
    "arithmetic": ([("Shape", ["obs"], ["a"], {}), ("Gather", ["a", "first1"], ["b"], {}), ("Mul", ["b", "two_whole"], ["d"], {}), ("Mod", ["d", "four"], ["e"], {}), ("Sub", ["e", "one"], ["f"], {}), ("Slice", ["obs", "zero", "four", "f"], ["g"], {}), ("MatMul", ["g", "w"], ["h"], {}), ("Atan", ["h"], ["actions"], {})], {}),
    "split": ([("MatMul", ["obs", "w4"], ["a"], {}), ("Split", ["a"], ["b", "d"], {"axis": 1}), ("Tanh", ["b"], ["actions"], {})], {}),
    "chosen": ([("Greater", ["obs", "low"], ["a"], {}), ("Where", ["a", "obs", "m"], ["b"], {}), ("Transpose", ["b"], ["d"], {"perm": [0, 1]}), ("Gather", ["d", "order"], ["e"], {"axis": 1}), ("MatMul", ["e", "w"], ["actions"], {})], {}),
}  # fmt: skip
CONSTANTS = {
    "w": np.linspace(-1, 1, 6, dtype=np.float32).reshape(3, 2), "w4": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4), "c": np.array([0.1, -0.2], np.float32),
    "m": np.array([[0.5, -1, 2]], np.float32), "s": np.array([[2, 0.5, 1]], np.float32), "shape13": np.array([1, 3]), "zero": np.array([0]), "one": np.array([1]),
    "four": np.array([4]), "extra": np.array([[7, 8]], np.float32), "low": np.float32(-0.5), "high": np.float32(0.6), "two": np.float32(2), "first": np.array(0),
    "minus": np.array([-1]), "first1": np.array([1]), "two_whole": np.array([2]), "order": np.array([2, 0, -2]),
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_as_onnxruntime_runs_them(tmp_path: Path, name: str) -> None:
    nodes, _ = OPERATORS[name]
    used = {i for _, inputs, _, _ in nodes for i in inputs}
    path = saved(tmp_path / "p.onnx", nodes, {"obs": [1, 3]}, {"actions": [1, 2]}, {k: v for k, v in CONSTANTS.items() if k in used}, opset=13 if name == "split" else 17)
    policy = load(path, Options(), box(3, 2))
    assert isinstance(policy, (Network, GraphPolicy)), policy.info["notes"]
    x = torch.randn(9, 3)
    session = onnxruntime.InferenceSession(str(path))
    theirs = np.concatenate([session.run(None, {"obs": x[i : i + 1].numpy()})[0] for i in range(9)])
    with torch.inference_mode():
        assert policy.act({"obs": x}, {}, None)[0].action.mode.numpy() == pytest.approx(theirs, abs=1e-5)


def test_what_only_unread_outputs_need_is_passed_over(tmp_path: Path) -> None:
    """Unity ML-Agents' files give a sampled action, a version and sizes beside the action that is played."""
    nodes = [("MatMul", ["obs", "w"], ["deterministic_continuous_actions"], {}), ("RandomNormalLike", ["deterministic_continuous_actions"], ["noise"], {}),
             ("Add", ["deterministic_continuous_actions", "noise"], ["continuous_actions"], {}), ("Identity", ["version"], ["version_number"], {})]  # fmt: skip
    path = saved(tmp_path / "p.onnx", nodes, {"obs": [1, 3]}, {"version_number": [1], "continuous_actions": [1, 2], "deterministic_continuous_actions": [1, 2]}, {"w": CONSTANTS["w"], "version": np.array([3], np.float32)})
    policy = load(path, Options(), box(3, 2))
    assert isinstance(policy, Network)
    assert any("not read: its outputs version_number, continuous_actions" in n for n in policy.info["notes"])
    x = torch.randn(5, 3)
    assert policy.act({"obs": x}, {}, None)[0].action.mode.numpy() == pytest.approx(x.numpy() @ CONSTANTS["w"], abs=1e-5)


def test_double_precision_that_onnxruntime_lacks(tmp_path: Path) -> None:
    path = tmp_path / "p.onnx"
    h, t = onnx.helper, onnx.TensorProto
    graph = h.make_graph([h.make_node("Elu", ["obs"], ["a"]), h.make_node("MatMul", ["a", "w"], ["actions"])], "g", [h.make_tensor_value_info("obs", t.DOUBLE, [1, 3])], [h.make_tensor_value_info("actions", t.DOUBLE, [1, 2])], [onnx.numpy_helper.from_array(CONSTANTS["w"].astype(np.float64), "w")])
    onnx.save(h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8), path)
    policy = load(path, Options(), box(3, 2))
    x = torch.randn(5, 3)
    assert torch.allclose(policy.act({"obs": x}, {}, None)[0].action.mode.double(), torch.nn.functional.elu(x.double()) @ torch.tensor(CONSTANTS["w"]).double(), atol=1e-6)
    assert any("not compared with onnxruntime" in n for n in policy.info["notes"])


def test_one_state_without_a_batch(tmp_path: Path) -> None:
    path = saved(tmp_path / "p.onnx", [("MatMul", ["obs", "w"], ["actions"], {})], {"obs": [3]}, {"actions": [2]}, {"w": CONSTANTS["w"]})
    x = torch.randn(5, 3)
    mode = load(path, Options(), box(3, 2)).act({"obs": x}, {}, None)[0].action.mode
    assert mode.numpy() == pytest.approx(x.numpy() @ CONSTANTS["w"], abs=1e-5)


# ── hostile ──


def tensor(dims: list[int], raw: bytes = b"", kind: int = 1) -> Any:
    made = onnx.TensorProto(name="w", data_type=kind, raw_data=raw)
    made.dims.extend(dims)
    return made


def external(location: str, **told: str) -> Any:
    made = onnx.TensorProto(name="w", data_type=1, data_location=onnx.TensorProto.EXTERNAL)
    made.dims.extend([3, 2])
    for key, value in {"location": location, **told}.items():
        made.external_data.add(key=key, value=value)
    return made


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (lambda: tensor([1 << 20, 1 << 20]), "more than the"),
        (lambda: tensor([3, -2]), "claims the shape"),
        (lambda: tensor([3, 2], b"1234"), "holds 4 bytes"),
        (lambda: tensor([3, 2], kind=8), "no use for"),
        (lambda: external("../../etc/passwd"), "only a file beside the model"),
        (lambda: external("/etc/passwd"), "only a file beside the model"),
        (lambda: external("..\\secrets"), "only a file beside the model"),
        (lambda: external("absent.bin"), "must lie beside it"),
        (lambda: external("short.bin"), "its shape needs 24"),
        (lambda: external("short.bin", offset="-8"), "its shape needs 24"),
        (lambda: external("short.bin", length="9999999999999"), "its shape needs 24"),
        (lambda: external("linked.bin"), "a link to elsewhere"),
    ],
)
def test_tensors_that_lie_are_refused(tmp_path: Path, made: Callable[[], Any], says: str) -> None:
    (tmp_path / "short.bin").write_bytes(b"12345678")
    (tmp_path / "linked.bin").symlink_to("/etc/hostname")
    with pytest.raises(Failed, match=says):
        load(linear(tmp_path / "p.onnx", {"w": made()}), Options(), box(3, 2))


def bomb(op: str, tmp_path: Path) -> Path:
    big = np.array([1 << 20, 1 << 20])
    nodes = {
        "ConstantOfShape": [("ConstantOfShape", ["big"], ["a"], {}), ("ReduceSum", ["a"], ["b"], {}), ("Add", ["obs", "b"], ["actions"], {})],
        "Expand": [("Expand", ["obs", "big3"], ["a"], {}), ("ReduceSum", ["a"], ["b"], {}), ("Add", ["obs", "b"], ["actions"], {})],
        "Tile": [("Tile", ["obs", "big"], ["a"], {}), ("ReduceSum", ["a"], ["b"], {}), ("Add", ["obs", "b"], ["actions"], {})],
        "Range": [("Range", ["zero", "huge", "one"], ["a"], {}), ("ReduceSum", ["a"], ["b"], {}), ("Add", ["obs", "b"], ["actions"], {})],
        "Pad": [("Pad", ["obs", "pads"], ["a"], {}), ("ReduceSum", ["a"], ["b"], {}), ("Add", ["obs", "b"], ["actions"], {})],
    }[op]
    constants = {"big": big, "big3": np.array([1 << 20, 1 << 20, 3]), "zero": np.float32(0), "one": np.float32(1e-9), "huge": np.float32(1e9), "pads": np.array([0, 0, 0, 1 << 40])}
    used = {i for _, inputs, _, _ in nodes for i in inputs}
    return saved(tmp_path / "p.onnx", nodes, {"obs": [1, 3]}, {"actions": [1, 3]}, {k: v for k, v in constants.items() if k in used})


@pytest.mark.parametrize("op", ["ConstantOfShape", "Expand", "Tile", "Range", "Pad"])
def test_bombs_are_refused_before_memory_is_taken(tmp_path: Path, op: str) -> None:
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises((Failed, Missing)):
        load(bomb(op, tmp_path), Options(), box(3, 3))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 512 << 10


def test_endless_loops_foreign_operators_and_function_bombs(tmp_path: Path) -> None:
    h, t = onnx.helper, onnx.TensorProto
    body = h.make_graph(
        [h.make_node("Identity", ["c"], ["c2"]), h.make_node("Identity", ["x"], ["x2"])], "b",
        [h.make_tensor_value_info("i", t.INT64, []), h.make_tensor_value_info("c", t.BOOL, []), h.make_tensor_value_info("x", t.FLOAT, [1, 3])],
        [h.make_tensor_value_info("c2", t.BOOL, []), h.make_tensor_value_info("x2", t.FLOAT, [1, 3])],
    )  # fmt: skip
    path = saved(tmp_path / "loop.onnx", [("Loop", ["", "yes", "obs"], ["actions"], {"body": body})], {"obs": [1, 3]}, {"actions": [1, 3]}, {"yes": np.array(True)})
    with pytest.raises(Failed, match="run without end"):
        load(path, Options(), box(3, 3))
    model = onnx.load(str(linear(tmp_path / "p.onnx")))
    model.graph.node[0].domain = "evil.corp"
    (tmp_path / "foreign.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(Failed, match=r"evil.corp.MatMul"):
        load(tmp_path / "foreign.onnx", Options(), box(3, 2))
    model = onnx.load(str(linear(tmp_path / "p.onnx")))
    for i in range(40):
        inner = [h.make_node("Identity" if i == 0 else f"f{i - 1}", ["x"], ["y"], domain="" if i == 0 else "d"), h.make_node("Identity" if i == 0 else f"f{i - 1}", ["y"], ["z"], domain="" if i == 0 else "d")]
        model.functions.append(h.make_function("d", f"f{i}", ["x"], ["z"], inner, [h.make_opsetid("", 17), h.make_opsetid("d", 1)]))
    model.opset_import.append(h.make_opsetid("d", 1))
    model.graph.node.insert(0, h.make_node("f39", ["obs"], ["obs2"], domain="d"))
    model.graph.node[1].input[0] = "obs2"
    (tmp_path / "functions.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(Failed, match="grows to more than"):
        load(tmp_path / "functions.onnx", Options(), box(3, 2))


@pytest.mark.parametrize("data", [b"", b"\x08\x08", b"\x00" * 100, b"\x08\x09\x3a\xff\xff\xff\xff\x0f", b"\x3a\x80\x80\x80\x80\x10" + b"x" * 50, b"PK\x03\x04" + b"\x00" * 40])
def test_what_is_no_onnx_is_a_sentence(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "p.onnx").write_bytes(data)
    with pytest.raises(Failed, match=r"damaged|no ONNX"):
        load(tmp_path / "p.onnx", Options(), box(3, 2))


def test_names_that_are_no_text_are_refused(tmp_path: Path) -> None:
    data = linear(tmp_path / "p.onnx").read_bytes().replace(b"MatMul", b"MatM\xffl")
    (tmp_path / "p.onnx").write_bytes(data)
    with pytest.raises(Failed, match=r"no text|damaged"):
        load(tmp_path / "p.onnx", Options(), box(3, 2))


SEEDS = [(DATA / name / "policy.onnx").read_bytes() for name in ("onnx_mlp", "onnx_gru", "onnx_two_inputs")]


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.sampled_from(SEEDS), places=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=6), cut=st.floats(0.2, 2))
def test_mutated_files_give_declared_errors_alone(tmp_path: Path, seed: bytes, places: list[tuple[float, int]], cut: float) -> None:
    data = bytearray(seed)
    for place, value in places:
        data[int(place * (len(data) - 1))] = value
    path = tmp_path / "m.onnx"
    path.write_bytes(bytes(data[: int(len(data) * min(cut, 1.0))]))
    try:
        policy = load(path)
        obs = {name: torch.zeros(2, *group.shape) for name, group in policy.spec.observations.items()}
        policy.act(obs, policy.init(2), None)
    except DistillError:
        pass


@pytest.mark.parametrize("root", [("Div", np.float32(2**0.5)), ("Mul", np.float32(0.5**0.5))])
def test_gelu_written_out_is_one_step(tmp_path: Path, root: tuple[str, Any]) -> None:
    """Exporters write it by the error function; run as one step it gives the same numbers."""
    op, number = root
    nodes = [("MatMul", ["obs", "w"], ["x"], {}), (op, ["x", "root"], ["a"], {}), ("Erf", ["a"], ["b"], {}), ("Add", ["b", "one"], ["c"], {}), ("Mul", ["x", "c"], ["d"], {}), ("Mul", ["d", "half"], ["e"], {}), ("Add", ["e", "x"], ["actions"], {})]
    path = saved(tmp_path / "p.onnx", nodes, {"obs": [1, 3]}, {"actions": [1, 2]}, {"w": CONSTANTS["w"], "root": number, "one": np.float32(1), "half": np.float32(0.5)})
    policy = load(path, Options(), box(3, 2))
    assert isinstance(policy, GraphPolicy)
    x = torch.randn(7, 3) * 2
    y = x @ torch.as_tensor(CONSTANTS["w"])
    assert policy.act({"obs": x}, {}, None)[0].action.mode.numpy() == pytest.approx((torch.nn.functional.gelu(y) + y).numpy(), abs=1e-5)
    from distillrl.teachers.fusing import fused

    graph = policy.network.graph
    assert [n.op for n in fused(graph.nodes, frozenset(graph.outputs.values()), graph.constants)] == ["linear", "gelu", "add"]
    assert len(fused(graph.nodes, frozenset({"c"}), graph.constants)) == 7  # a step that is asked for stays
