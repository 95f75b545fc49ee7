"""TorchScript, torch.export, bare state dicts, d3rlpy, Keras, scikit-learn, SBX, Brax, RLlib: genuine files and hostile ones."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import pickle
import shutil
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from format_cases import DATA, answers, environment, files
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from distillrl.errors import DistillError, Failed, Misconfigured, Missing
from distillrl.records import ActionSpace, Group, Spec
from distillrl.students.networks import Network
from distillrl.teachers import Options, flax, load
from distillrl.teachers.graphpolicy import GraphPolicy
from distillrl.teachers.pickles import Global, Made
from distillrl.teachers.writer import Weights, Writer, policy

FOLDERS = sorted(p.name for p in DATA.iterdir() if "onnx" not in p.name)
CASES = [(name, file.name) for name in FOLDERS for file in files(DATA / name)]
UNTOLD = {"script_gaussian": {"log_std"}}
"""Arrays that a nameless output holds, whose meaning a file doesn't tell."""


def spec(obs: int, actions: int, bound: float = 1.0) -> Spec:
    """A Box environment."""
    return Spec({"obs": Group((obs,), "float32")}, ActionSpace("box", (actions,), low=(-bound,) * actions, high=(bound,) * actions, dtype="float32"))


def discrete(obs: int, n: int) -> Spec:
    """A discrete environment."""
    return Spec({"obs": Group((obs,), "float32")}, ActionSpace("discrete", n=n))


@pytest.mark.parametrize(("name", "file"), CASES)
def test_genuine_files_give_their_own_answers(name: str, file: str) -> None:
    if name.startswith("keras"):
        pytest.importorskip("h5py", reason="the extra keras is not installed")
    if name == "script_gaussian":
        policy = load(DATA / name / file, Options(), environment(DATA / name))
        assert any("output_1" in note for note in policy.info["notes"])
        return
    gaps = answers(DATA / name, DATA / name / file, **({"format": "tianshou:tanh"} if name == "tianshou_gaussian" else {}))
    assert gaps
    assert max(gaps.values()) < 1e-5, gaps


@pytest.mark.parametrize("name", ["rsl_rl_mlp", "rsl_rl_mlp_script", "skrl_gaussian", "tianshou_dqn", "rl_games", "d3rlpy_sac", "d3rlpy_td3", "keras_softmax", "sbx_ppo", "sbx_sac", "brax_ppo", "export_mlp", "sklearn_mlp"])  # fmt: skip
def test_layers_that_are_found_make_a_network(name: str) -> None:
    if name.startswith("keras"):
        pytest.importorskip("h5py", reason="the extra keras is not installed")
    policy = load(files(DATA / name)[0], Options(), environment(DATA / name))
    assert isinstance(policy, Network)
    assert "features.linear1" in policy.gives
    assert not any(p.requires_grad for p in policy.parameters())


def test_loading_is_quick_and_a_converted_forward_costs_what_torch_costs() -> None:
    path, env = DATA / "script_mlp" / "policy.pt", environment(DATA / "script_mlp")
    load(path, Options(), env)
    quickest = 1.0
    for _ in range(10):
        begin = time.process_time()
        load(path, Options(), env)
        quickest = min(quickest, time.process_time() - begin)
    assert quickest < 0.05


def test_jaxs_activations_are_those_that_the_file_names() -> None:
    """Jax's gelu is the tanh form; a function of no library is refused, not taken for the default."""
    assert flax._sbx_activation({"activation_fn": Global("jax._src.nn.functions", "gelu")}, "ppo") == "gelu_tanh"
    assert flax._sbx_activation({"activation_fn": Global("flax.linen", "swish")}, "ppo") == "silu"
    assert flax._sbx_activation({"activation_fn": None}, "sac") == "relu"
    for other in (Global("my_project", "relu"), Made(Global("my_project", "thing"), ()), Global("jax.nn", "glu")):
        with pytest.raises(Missing, match="activation"):
            flax._sbx_activation({"activation_fn": other}, "ppo")


def test_joblibs_arrays_are_held_against_the_file(tmp_path: Path) -> None:
    """One that claims more than there is, one of objects, a compressed file."""
    whole = (DATA / "sklearn_joblib_pipeline" / "model.joblib").read_bytes()
    shapes = whole.count(b"K\x08K\x07\x86")
    assert shapes
    for data in (whole.replace(b"K\x08K\x07\x86", b"M\xff\xffK\x07\x86"), whole.replace(b"\x8c\x02f8", b"\x8c\x02O8"), whole[: len(whole) // 2]):
        (tmp_path / "m.joblib").write_bytes(data)
        with pytest.raises(Failed):
            load(tmp_path / "m.joblib", Options(), discrete(6, 4))
    (tmp_path / "m.joblib").write_bytes(b"x\x9c" + whole)
    with pytest.raises(DistillError):
        load(tmp_path / "m.joblib", Options(format="sklearn"), discrete(6, 4))


def test_a_number_that_equals_the_trials_batch_is_that_number() -> None:
    """Five quantiles of each action, while five states are tried: neither stands for the other."""
    for count in (5, 7, 11, 13):
        w = Writer(Weights({"a": torch.randn(4 * count, 3)}, "here"), "relu", None)
        q = w.tracer.call("linear", w.observation(3), w.constant(w.weights["a"]), None)
        w.gives(w.tracer.call("mean", w.tracer.call("unflatten", q, 1, (-1, count)), (-1,)), "greedy")
        assert w.tracer.shape(q)[0] == w.tracer.batch
        played = policy(w, None, None, "here", {"notes": []})
        prediction, _ = played.act({"obs": torch.randn(2, 3)}, {}, None, frozenset({"q"}))
        assert prediction.q.shape == (2, 4)


def test_skrls_doubts_are_said() -> None:
    """An activation and an ending that the file doesn't tell are said, and may be named."""
    expected = dict(np.load(DATA / "skrl_own_shared" / "expected.npz"))
    agent = DATA / "skrl_own_shared" / "agent.pt"
    plain = load(agent, Options(), environment(DATA / "skrl_own_shared"))
    assert any("ends in tanh" in note for note in plain.info["notes"])
    assert any("elu is skrl's default" in note for note in plain.info["notes"])
    ended = load(agent, Options(format="skrl:elu+tanh"), spec(6, 3, 2.0))
    x = torch.as_tensor(expected["obs"])
    mean = plain.act({"obs": x}, {}, None)[0].action.mean
    assert torch.allclose(ended.act({"obs": x}, {}, None)[0].action.mode, 2 * torch.tanh(mean), atol=1e-5)
    with pytest.raises(Misconfigured, match="may be said to"):
        load(DATA / "rsl_rl_mlp" / "model_1500.pt", Options(format="rsl_rl:elu+tanh"), spec(6, 3))


# ── scripts ──


def test_an_exporters_memory_is_each_environments_own() -> None:
    policy = load(DATA / "rsl_rl_lstm_script" / "policy.pt", Options(), spec(6, 3, 100))
    assert isinstance(policy, GraphPolicy)
    assert {k: v.shape for k, v in policy.init(4).items()} == {"hidden_state": (4, 1, 5), "cell_state": (4, 1, 5)}
    x, memory = torch.randn(5, 4, 6), policy.init(4)
    for t in range(5):
        prediction, memory = policy.act({"obs": x[t]}, memory, torch.tensor([False, t == 4, False, False]))
    fresh, _ = policy.act({"obs": x[4, 1:2]}, policy.init(1), None)
    assert torch.allclose(prediction.action.mode[1], fresh.action.mode[0], atol=1e-6)
    assert not torch.allclose(memory["hidden_state"][0], memory["hidden_state"][1])


class Branching(nn.Module):
    """Decides by an observation's numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if bool((x.sum() > 0).item()):
            return self.layer(x)
        return -self.layer(x)


class Looping(nn.Module):
    """Has an if on a constant, a loop, a dictionary of outputs and an in-place activation."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(3, 3) for _ in range(3)])
        self.head = nn.Linear(3, 2)
        self.twice = True

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        for layer in self.layers:
            x = nn.functional.relu(layer(x), inplace=True)
        if self.twice:
            x = x * 2
        rows = x.shape[0]
        return {"actions": self.head(x.view(rows, -1)), "value": x.sum(1, keepdim=True)}


def test_loops_and_constants_are_followed(tmp_path: Path) -> None:
    module = Looping()
    torch.jit.script(module).save(str(tmp_path / "p.pt"))
    policy = load(tmp_path / "p.pt", Options(), spec(3, 2, 100))
    x = torch.randn(7, 3)
    prediction, _ = policy.act({"obs": x}, {}, None, frozenset({"action", "value"}))
    theirs = module(x.clone())
    assert torch.allclose(prediction.action.mode, theirs["actions"], atol=1e-6)
    assert torch.allclose(prediction.value, theirs["value"][:, 0], atol=1e-6)


def test_what_cant_be_followed_needs_trust(tmp_path: Path) -> None:
    module = Branching()
    torch.jit.script(module).save(str(tmp_path / "p.pt"))
    with pytest.raises(Missing, match="--trust"):
        load(tmp_path / "p.pt", Options(), spec(3, 2, 100))
    trusted = load(tmp_path / "p.pt", Options(trust=True), spec(3, 2, 100))
    x = torch.ones(1, 3)
    assert torch.allclose(trusted.act({"obs": x}, {}, None)[0].action.mode, module(x), atol=1e-6)


def rewritten(source: Path, target: Path, change: Callable[[str, bytes], bytes | None], more: dict[str, bytes] | None = None) -> Path:
    """A zip with its members changed (None drops one) and more of them."""
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(target, "w") as made:
        for name in archive.namelist():
            data = change(name, archive.read(name))
            if data is not None:
                made.writestr(name, data)
        for name, data in (more or {}).items():
            made.writestr(name, data)
    return target


SCRIPT = DATA / "script_mlp" / "policy.pt"
EVIL_CODE = [
    "import os\n", "def forward(self, obs: Tensor) -> Tensor:\n    return __import__('os').system('touch {flag}')\n",
    "def forward(self, obs: Tensor) -> Tensor:\n    return open('{flag}', 'w')\n", "def forward(self, obs: Tensor) -> Tensor:\n    return torch.load('{flag}')\n",
    "def forward(self, obs: Tensor) -> Tensor:\n    while True:\n      pass\n    return obs\n", "def forward(self, obs: Tensor) -> Tensor:\n    return (self).forward(obs, )\n",
    "def forward(self, obs: Tensor) -> Tensor:\n    return ().__class__.__bases__[0].__subclasses__()\n",
    "def forward(self, obs: Tensor) -> Tensor:\n    return torch.zeros([1000000, 1000000])\n", "def forward(self, obs: Tensor) -> Tensor:\n    return torch.repeat(obs, [1000000, 1000000])\n",
    "def forward(self, obs: Tensor) -> Tensor:\n    x = obs\n    for i in range(1000000000):\n      x = torch.add(x, x)\n    return x\n",
    "def forward(self, obs: Tensor) -> Tensor:\n    return torch.mul([1], 99999999999999)\n", "def forward(self, obs: Tensor) -> Tensor:\n    return " + "(" * 5000 + "obs" + ")" * 5000 + "\n",
]  # fmt: skip


@pytest.mark.parametrize("code", EVIL_CODE)
def test_evil_code_is_text_that_is_never_run(tmp_path: Path, code: str) -> None:
    flag = tmp_path / "flag"
    body = f"class Mlp(Module):\n  {code.format(flag=flag).replace(chr(10), chr(10) + '  ')}\n" if "def" in code else code

    def change(name: str, data: bytes) -> bytes:
        return body.encode() if name.endswith("code/__torch__.py") else data

    begin = time.monotonic()
    with pytest.raises((Failed, Missing, Misconfigured)):
        load(rewritten(SCRIPT, tmp_path / "p.pt", change), Options(), spec(6, 3))
    assert not flag.exists()
    assert time.monotonic() - begin < 20


# ── hostile pickles, in every place where a format has one ──


class Evil:
    """A pickle that would write a file."""

    def __init__(self, flag: Path) -> None:
        self.flag = flag

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.flag}",)


def swapped(member: str, evil: bytes) -> Callable[[str, bytes], bytes]:
    """Replace one member of a zip."""
    return lambda name, data: evil if name.endswith(member) else data


def places(tmp_path: Path, evil: bytes) -> dict[str, Path]:
    """A copy of a genuine file for each place of a pickle, with this one in it."""
    made: dict[str, Path] = {}
    for name, member in (("script_mlp", "data.pkl"), ("script_mlp", "constants.pkl"), ("rsl_rl_mlp", "data.pkl")):
        source = files(DATA / name)[0]
        made[f"{name}/{member}"] = rewritten(source, tmp_path / f"{len(made)}{source.suffix}", swapped(member, evil))
    for name, suffix in (("d3rlpy_bc", ".d3"), ("sklearn_mlp", ".pkl"), ("brax_ppo", ""), ("tianshou_dqn", ".pth")):
        made[name] = tmp_path / f"{len(made)}{suffix}"
        made[name].write_bytes(evil if suffix != ".pkl" else evil[:2] + evil[2:])
    d3 = pickle.loads((DATA / "d3rlpy_bc" / "model.d3").read_bytes())  # ours, made by the script beside
    made["d3rlpy weights"] = tmp_path / "inner.d3"
    made["d3rlpy weights"].write_bytes(pickle.dumps({**d3, "torch": evil}))
    import base64

    def data(name: str, old: bytes) -> bytes:
        if name != "data":
            return old
        told = json.loads(old)
        told["policy"][":serialized:"] = base64.b64encode(evil).decode()
        return json.dumps(told).encode()

    made["sbx"] = rewritten(DATA / "sbx_ppo" / "model.zip", tmp_path / "sbx.zip", data)
    for name, member in (("rllib_ppo", "module_state.pkl"), ("rllib_ppo", "class_and_ctor_args.pkl"), ("rllib_old_ppo", "policy_state.pkl")):
        folder = tmp_path / f"rllib{len(made)}"
        shutil.copytree(DATA / name / "checkpoint", folder)
        for file in folder.rglob(member):
            file.write_bytes(evil)
        made[f"{name}/{member}"] = folder
    return made


def test_no_pickle_in_any_place_is_run(tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    evil = pickle.dumps(Evil(flag))
    assert b"system" in evil
    tried = places(tmp_path, evil)
    for where, path in tried.items():
        with contextlib.suppress(DistillError):  # constants.pkl may be read, inert, and not be used
            load(path, Options(format="sklearn" if where.startswith("sklearn") else "brax" if where.startswith("brax") else "state_dict" if where == "tianshou_dqn" else None), spec(6, 3))
        assert not flag.exists(), where
    assert len(tried) == 12


BOMBS = {
    "memo": b"\x80\x04N" + b"r\xff\xff\xff\x7f" + b".",
    "long": b"\x80\x04\x8d" + (1 << 60).to_bytes(8, "little") + b"x.",
    "bytearray": b"\x80\x05\x96" + (1 << 60).to_bytes(8, "little") + b"x.",
    "deep": b"\x80\x04)" + b"\x85" * 40_000 + b"}h\x00s.",
    "nested": b"\x80\x04" + b"]" * 40_000 + b"a" * 39_999 + b".",
    "laughs": b"\x80\x04]q\x00" + b"".join(b"(" + b"h" + bytes([i]) + b"h" + bytes([i]) + b"lq" + bytes([i + 1]) for i in range(60)) + b".",
    "array": pickle.dumps(np.zeros(4)).replace(b"K\x04\x85", b"J\xff\xff\xff\x7f\x85"),
    "endless": b"\x80\x04" + b"N0" * 100,
    "empty": b"",
}


@pytest.mark.parametrize("name", BOMBS)
def test_pickle_bombs_are_refused_in_bounded_time(tmp_path: Path, name: str) -> None:
    import resource

    before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    for suffix, kind in ((".d3", "d3rlpy"), ("", "brax"), (".pkl", "sklearn")):
        path = tmp_path / f"p{suffix}"
        path.write_bytes(BOMBS[name])
        with pytest.raises(DistillError):
            load(path, Options(format=kind), spec(6, 3))
    with pytest.raises(DistillError):
        load(rewritten(SCRIPT, tmp_path / "p.pt", swapped("data.pkl", BOMBS[name])), Options(format="torchscript"), spec(6, 3))
    assert time.monotonic() - begin < 30
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 512 << 10


# ── archives and arrays that lie ──


def linked(path: Path, name: str) -> Path:
    """A zip with a member that is a link."""
    with zipfile.ZipFile(path, "w") as archive:
        info = zipfile.ZipInfo(name)
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
        archive.writestr("model.weights.h5", b"")
        archive.writestr("config.json" if name != "config.json" else "x", b"{}")
    return path


def test_archives_of_tricks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Failed, match="is a link"):
        load(linked(tmp_path / "l.keras", "config.json"), Options(format="keras"), spec(6, 3))
    for member in ("../../evil.py", "/etc/evil", "a\\..\\b", "C:evil"):
        path = rewritten(SCRIPT, tmp_path / "t.pt", lambda _, d: d, {member: b"x"})
        with pytest.raises(Failed, match="outside of the archive"):
            load(path, Options(format="torchscript"), spec(6, 3))
    bomb = tmp_path / "b.keras"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", b"{}")
        with archive.open("model.weights.h5", "w") as member:
            for _ in range(80):
                member.write(b"\0" * (1 << 20))
    with pytest.raises(Failed, match="would unpack to"):
        load(bomb, Options(format="keras"), spec(6, 3))


def npy(shape: tuple[int, ...], data: bytes) -> bytes:
    """A .npy member that claims a shape."""
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": "<f8", "fortran_order": False, "shape": shape})
    return out.getvalue() + data


@pytest.mark.parametrize("member", [npy((1 << 40,), b"12345678"), npy((3,), b""), b"\x93NUMPY\x01\x00\xff\xff{'descr'", pickle.dumps(1)])
def test_arrays_that_lie_are_refused(tmp_path: Path, member: bytes) -> None:
    path = rewritten(DATA / "sklearn_ridge" / "model.skops", tmp_path / "m.skops", lambda n, d: member if n.endswith(".npy") else d)
    with pytest.raises(Failed):
        load(path, Options(), spec(6, 3))


@pytest.mark.parametrize("change", [{"shape": [1 << 40, 8]}, {"shape": [-1, -48]}, {"data_offsets": [0, 1 << 50]}, {"data_offsets": [192, 0]}, {"dtype": "F999"}, {"shape": "x"}])
def test_safetensors_that_lie_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    data = (DATA / "safetensors" / "model.safetensors").read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["actor.0.weight"].update(change)
    text = json.dumps(header).encode()
    (tmp_path / "m.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])
    with pytest.raises(Failed):
        load(tmp_path / "m.safetensors", Options(), spec(6, 3))
    (tmp_path / "h.safetensors").write_bytes((1 << 50).to_bytes(8, "little") + text)
    with pytest.raises(DistillError):
        load(tmp_path / "h.safetensors", Options(format="state_dict"), spec(6, 3))


def test_tensors_that_share_bytes_are_bounded(tmp_path: Path) -> None:
    """A few bytes under many names would take memory, or time, without bound."""
    header = json.dumps({f"t{i}": {"dtype": "F32", "shape": [100, 100], "data_offsets": [0, 40000]} for i in range(300)}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(40000))
    with pytest.raises(Failed, match="lie over one another"):
        load(path, Options(), spec(5, 2))
    shared = torch.zeros(200, 200)
    with pytest.raises(Failed, match="share one storage"):
        load(saved(tmp_path, {f"actor.{i}.weight": shared for i in range(0, 400, 2)}), Options(), spec(200, 200))


def test_exported_weights_that_lie_are_refused(tmp_path: Path) -> None:
    def change(name: str, data: bytes) -> bytes:
        if not name.endswith("model_weights_config.json"):
            return data
        told = json.loads(data)
        next(iter(told["config"].values()))["tensor_meta"]["sizes"][0]["as_int"] = 1 << 40
        return json.dumps(told).encode()

    with pytest.raises(Failed, match="claims the shape"):
        load(rewritten(DATA / "export_mlp" / "policy.pt2", tmp_path / "p.pt2", change), Options(), spec(6, 3))


def test_keras_files_that_reach_outside_or_hold_code_are_refused(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py", reason="the extra keras is not installed")
    source = DATA / "keras_sequential" / "model.keras"

    def linked_weights() -> bytes:
        out = io.BytesIO()
        with h5py.File(out, "w") as file:
            file["layers"] = h5py.ExternalLink("/etc/passwd", "/x")
        return out.getvalue()

    with pytest.raises(Failed, match="link to elsewhere"):
        load(rewritten(source, tmp_path / "a.keras", swapped("model.weights.h5", linked_weights())), Options(), spec(6, 3))

    def lambdas(name: str, data: bytes) -> bytes:
        return data.replace(b'"class_name": "LeakyReLU"', b'"class_name": "Lambda"') if name == "config.json" else data

    with pytest.raises(Missing, match=r"Lambda.*holds code"):
        load(rewritten(source, tmp_path / "b.keras", lambdas), Options(), spec(6, 3))


def test_a_tree_that_goes_round_is_refused(tmp_path: Path) -> None:
    def change(name: str, data: bytes) -> bytes:
        if name.endswith(".npy") and b"left_child" in data[:300]:
            start = data.index(b"\n", 10) + 1
            return data[:start] + (0).to_bytes(8, "little", signed=True) + data[start + 8 :]
        return data

    with pytest.raises(Failed, match="before its parent"):
        load(rewritten(DATA / "sklearn_tree" / "model.skops", tmp_path / "m.skops", change), Options(), discrete(6, 4))


def test_a_link_in_a_checkpoint_is_not_followed(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(DATA / "rllib_ppo" / "checkpoint", folder)
    file = next(folder.rglob("module_state.pkl"))
    file.unlink()
    file.symlink_to("/etc/hostname")
    with pytest.raises(Failed, match="link to elsewhere"):
        load(folder, Options(), spec(6, 3))


# ── state dicts of libraries that are one file, written by hand as these name them ──


def saved(tmp_path: Path, tensors: Any) -> Path:
    """torch.save's file."""
    torch.save(tensors, tmp_path / "agent.pt")
    return tmp_path / "agent.pt"


def layers(prefix: str, *sizes: int, step: int = 2) -> tuple[dict[str, torch.Tensor], list[nn.Linear]]:
    """Numbered Linear layers under a prefix."""
    made = [nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
    return {f"{prefix}{i * step}.{k}": v for i, layer in enumerate(made) for k, v in layer.state_dict().items()}, made


def through(x: torch.Tensor, made: list[nn.Linear], act: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Layers with an activation between them."""
    for i, layer in enumerate(made):
        x = layer(x) if i == len(made) - 1 else act(layer(x))
    return x


X = torch.randn(9, 5, generator=torch.Generator().manual_seed(0))


def test_cleanrl_ppo_continuous(tmp_path: Path) -> None:
    actor, a = layers("actor_mean.", 5, 8, 8, 2)
    critic, c = layers("critic.", 5, 8, 8, 1)
    policy = load(saved(tmp_path, {**actor, **critic, "actor_logstd": torch.tensor([[-0.5, 0.3]])}), Options(), spec(5, 2, 100))
    prediction, _ = policy.act({"obs": X}, {}, None, frozenset({"action", "value"}))
    assert torch.allclose(prediction.action.mean, through(X, a, torch.tanh), atol=1e-6)
    assert torch.allclose(prediction.value, through(X, c, torch.tanh)[:, 0], atol=1e-6)
    assert prediction.action.log_std[0].tolist() == pytest.approx([-0.5, 0.3])
    assert any("tanh is CleanRL's default" in n for n in policy.info["notes"])
    assert any("normalised outside" in n for n in policy.info["notes"])


def test_cleanrl_ppo_dqn_c51(tmp_path: Path) -> None:
    actor, a = layers("actor.", 5, 8, 3)
    critic, _ = layers("critic.", 5, 8, 1)
    policy = load(saved(tmp_path, {**actor, **critic}))
    assert policy.spec.action == ActionSpace("discrete", n=3)
    assert torch.allclose(policy.act({"obs": X}, {}, None)[0].action.logits, through(X, a, torch.tanh), atol=1e-6)
    network, q = layers("network.", 5, 8, 3)
    policy = load(saved(tmp_path, network), Options(), discrete(5, 3))
    assert torch.allclose(policy.act({"obs": X}, {}, None, frozenset({"q"}))[0].q, through(X, q, torch.relu), atol=1e-6)
    network, q = layers("network.", 5, 8, 3 * 7)
    atoms = torch.linspace(-1, 2, 7)
    policy = load(saved(tmp_path, {**network, "atoms": atoms}), Options(), discrete(5, 3))
    expected = (through(X, q, torch.relu).view(9, 3, 7).softmax(-1) * atoms).sum(-1)
    assert torch.allclose(policy.act({"obs": X}, {}, None, frozenset({"q"}))[0].q, expected, atol=1e-6)


def test_cleanrl_sac_and_td3(tmp_path: Path) -> None:
    parts = {n: nn.Linear(*s) for n, s in {"fc1": (5, 8), "fc2": (8, 8), "fc_mean": (8, 2), "fc_logstd": (8, 2)}.items()}
    tensors = {f"{n}.{k}": v for n, layer in parts.items() for k, v in layer.state_dict().items()}
    tensors |= {"action_scale": torch.tensor([[2.0, 2.0]]), "action_bias": torch.tensor([[0.0, 0.0]])}
    policy = load(saved(tmp_path, tensors), Options(), spec(5, 2, 2.0))
    latent = torch.relu(parts["fc2"](torch.relu(parts["fc1"](X))))
    action = policy.act({"obs": X}, {}, None)[0].action
    assert torch.allclose(action.mode, torch.tanh(parts["fc_mean"](latent)) * 2, atol=1e-5)
    assert torch.allclose(action.log_std, -5 + 0.5 * 7 * (torch.tanh(parts["fc_logstd"](latent)) + 1), atol=1e-5)
    assert isinstance(policy, Network)
    td3 = {f"{n.replace('mean', 'mu')}.{k}": v for n, layer in parts.items() if n != "fc_logstd" for k, v in layer.state_dict().items()}
    td3 |= {"action_scale": torch.tensor(2.0), "action_bias": torch.tensor(0.5)}
    policy = load(saved(tmp_path, (td3, {"fc1.weight": torch.zeros(8, 7)})), Options(), spec(5, 2, 100))
    assert torch.allclose(policy.act({"obs": X}, {}, None)[0].action.mode, torch.tanh(parts["fc_mean"](latent)) * 2 + 0.5, atol=1e-5)


def test_rsl_rl_of_old_with_memory_and_a_normaliser(tmp_path: Path) -> None:
    actor, a = layers("actor.", 8, 6, 2)
    lstm = nn.LSTM(5, 8)
    sd = {**actor, **layers("critic.", 9, 6, 1)[0], "std": torch.tensor([0.5, 2.0]), **{f"memory_a.rnn.{k}": v for k, v in lstm.state_dict().items()}}
    mean, std = torch.randn(1, 5), torch.rand(1, 5) + 0.5
    checkpoint = {"model_state_dict": sd, "optimizer_state_dict": {}, "iter": 9, "infos": None, "obs_norm_state_dict": {"_mean": mean, "_var": std**2, "_std": std, "count": torch.tensor(3)}}
    policy = load(saved(tmp_path, checkpoint), Options(), spec(5, 2, 100))
    memory, state = policy.init(9), None
    for _ in range(3):
        prediction, memory = policy.act({"obs": X}, memory, None)
        out, state = lstm(((X - mean) / (std + 1e-2)).unsqueeze(0), state)
    assert torch.allclose(prediction.action.mean, through(out[0], a, nn.functional.elu), atol=1e-5)
    assert prediction.action.log_std[0].exp().tolist() == pytest.approx([0.5, 2.0])
    assert any("no value is given" in n for n in policy.info["notes"])


def test_pufferlib_with_memory(tmp_path: Path) -> None:
    encoder, decoder, value, lstm = nn.Linear(5, 8), nn.Linear(8, 3), nn.Linear(8, 1), nn.LSTM(8, 8)
    parts = {"policy.encoder.0": encoder, "policy.decoder": decoder, "policy.value": value, "lstm": lstm}
    policy = load(saved(tmp_path, {f"{n}.{k}": v for n, m in parts.items() for k, v in m.state_dict().items()}), Options(), discrete(5, 3))
    prediction, memory = policy.act({"obs": X}, policy.init(9), None, frozenset({"action", "value"}))
    hidden = lstm(nn.functional.gelu(encoder(X)).unsqueeze(0))[0][0]
    assert torch.allclose(prediction.action.logits, decoder(hidden), atol=1e-5)
    assert torch.allclose(prediction.value, value(hidden)[:, 0], atol=1e-5)
    assert set(memory) == {"lstm.h", "lstm.c"}


def test_another_activation_can_be_said(tmp_path: Path) -> None:
    actor, a = layers("actor.", 5, 8, 2)
    path = saved(tmp_path, actor)
    policy = load(path, Options(format="cleanrl:silu"), spec(5, 2, 100))
    assert torch.allclose(policy.act({"obs": X}, {}, None)[0].action.mode, through(X, a, nn.functional.silu), atol=1e-6)
    with pytest.raises(Misconfigured, match="did you mean 'relu'"):
        load(path, Options(format="cleanrl:relo"), spec(5, 2))
    with pytest.raises(Misconfigured, match="another environment"):
        load(path, Options(), discrete(5, 7))
    with pytest.raises(Misconfigured, match="no observation group"):
        load(path, Options(), spec(6, 2))


class Mine(nn.Module):
    """A user's own network."""

    def __init__(self) -> None:
        super().__init__()
        self.odd = nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sin(self.odd(x))


def test_a_users_own_class(tmp_path: Path) -> None:
    module = Mine()
    path = saved(tmp_path, {"agent": module.state_dict(), "step": 3})
    guessed = load(path, Options(), spec(5, 2))
    assert any("of no library known here" in note for note in guessed.info["notes"])  # its sine isn't in the file
    policy = load(path, Options(model="test_teachers_formats:Mine"), spec(5, 2))
    assert torch.allclose(policy.act({"obs": X}, {}, None)[0].action.mode, module(X), atol=1e-6)
    for word, says in (("test_teachers_formats", "module:Class is right"), ("test_teachers_formats:Mien", "did you mean 'Mine'"), ("no_such_module:X", "No module")):
        with pytest.raises(Misconfigured, match=says):
            load(path, Options(model=word), spec(5, 2))
    with pytest.raises(Misconfigured, match="doesn't fit"):
        load(saved(tmp_path, {"other": torch.zeros(3)}), Options(model="test_teachers_formats:Mine"), spec(5, 2))


def test_nan_weights_are_refused(tmp_path: Path) -> None:
    actor, _ = layers("actor.", 5, 8, 2)
    actor["actor.0.bias"][0] = float("nan")
    with pytest.raises(Failed, match="NaN"):
        load(saved(tmp_path, actor), Options(), spec(5, 2))


# ── fuzzing ──

FUZZED = [files(DATA / n)[0] for n in ("script_mlp", "rsl_rl_lstm_script", "export_mlp", "rsl_rl_mlp", "d3rlpy_sac", "sklearn_tree", "keras_sequential", "brax_ppo", "safetensors", "cleanrl_flax_c51_jax", "sklearn_joblib_pipeline", "tianshou_sac")]


@settings(max_examples=120, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(source=st.sampled_from(FUZZED), changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=8), cut=st.floats(0.3, 3), inside=st.booleans())
def test_mutated_files_give_declared_errors_alone(tmp_path: Path, source: Path, changes: list[tuple[float, int]], cut: float, inside: bool) -> None:
    """Bytes of the file, or of one member of its zip (so that checksums don't stop the change at the door)."""

    def mutated(data: bytes) -> bytes:
        out = bytearray(data)
        for place, value in changes:
            if out:
                out[int(place * (len(out) - 1))] = value
        return bytes(out[: max(1, int(len(out) * min(cut, 1.0)))])

    path = tmp_path / f"m{source.suffix}"
    if inside and zipfile.is_zipfile(source):
        with zipfile.ZipFile(source) as archive:
            chosen = archive.namelist()[int(changes[0][0] * (len(archive.namelist()) - 1))]
        rewritten(source, path, lambda name, data: mutated(data) if name == chosen else data)
    else:
        path.write_bytes(mutated(source.read_bytes()))
    try:
        policy = load(path, Options(), None)
        obs = {name: torch.zeros(2, *group.shape) for name, group in policy.spec.observations.items()}
        policy.act(obs, policy.init(2), None)
    except DistillError:
        pass
