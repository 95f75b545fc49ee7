"""Teachers of every format, exported: what a library's file says, the exported file says too."""

from __future__ import annotations

import json

import pytest
from export_cases import differences
from format_cases import DATA, environment, files
from test_export_targets import need_runtime

from distillrl import exporting
from distillrl.errors import Misconfigured
from distillrl.teachers import Options, load

WINDOWS = ["keras_gru", "keras_lstm"]
"""Recurrent layers over several steps at once, which no code carries."""
FORMATS = sorted(d.name for d in DATA.iterdir() if d.name not in {"onnx_runtime", *WINDOWS})
GRAPHS = ["keras_functional", "onnx_cnn", "onnx_dynamo", "onnx_gru", "onnx_two_inputs", "rllib_dqn", "rsl_rl_gru", "rsl_rl_lstm_onnx", "rsl_rl_lstm_script"]


def policy(name: str) -> object:
    folder = DATA / name
    about = json.loads((folder / "about.json").read_text())
    word = f"{about['format']}:{about['activation']}" if "activation" in about and about.get("format") else None
    return load(files(folder)[0], Options(format=word), environment(folder))


@pytest.mark.parametrize(
    ("name", "to"),
    [*((n, "python") for n in FORMATS), *((n, "onnx") for n in GRAPHS), *((n, "c") for n in ("onnx_cnn", "rsl_rl_lstm_onnx")), ("rllib_dqn", "js"), ("rsl_rl_gru", "torch"), ("onnx_two_inputs", "torch")],
)
def test_every_format_goes_to_code(name, to, tmp_path):
    need_runtime(to)
    teacher = policy(name)
    other = exporting.opened(exporting.export(teacher, to, tmp_path))
    raw_error, action_error, size = differences(teacher, other, 16, 3)
    assert raw_error <= 1e-5 * max(1.0, size)
    assert action_error <= 2e-5


@pytest.mark.parametrize("name", WINDOWS)
def test_a_window_of_steps_goes_to_torch_and_nowhere_else(name, tmp_path):
    with pytest.raises(Misconfigured, match="over several steps at once.* the target torch carries it"):
        exporting.export(policy(name), "python", tmp_path)
    other = exporting.opened(exporting.export(policy(name), "torch", tmp_path))
    assert differences(policy(name), other, 16, 3)[1] <= 2e-5


def test_a_critics_memory_is_left_out():
    from distillrl.targets.tracing import trace

    assert [s.name for s in trace(policy("rsl_rl_lstm")).states] == ["actor.h", "actor.c"]


def test_what_a_graph_has_no_code_for_is_named(tmp_path):
    from dataclasses import replace

    from distillrl.teachers.nodes import Node, Ref

    teacher = policy("rllib_dqn")
    network = teacher.network
    network.graph = replace(network.graph, nodes=(*network.graph.nodes, Node("sin", (Ref("add·25"),), ("odd",))), outputs={"action": "odd"})
    with pytest.raises(Misconfigured, match=r"the operator 'sin' of this network can't be exported as code \(c, .* the target torch carries it"):
        exporting.export(teacher, "c", tmp_path)


@pytest.mark.parametrize(("to", "said"), [("onnx", r"run by onnxruntime: the ONNX operator TopK is not a simple one\) can't be exported.*a student distilled from it goes to all"), ("torch", "a student distilled from it goes to every target")])
def test_what_only_onnxruntime_runs_says_so(to, said, tmp_path):
    pytest.importorskip("onnxruntime", reason="pip install 'distillrl[onnx]'")
    with pytest.raises(Misconfigured, match=said):
        exporting.export(policy("onnx_runtime"), to, tmp_path)
