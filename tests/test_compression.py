"""Compression: files are really smaller and play the same, masks and grids are held, what can't be said so in a sentence."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from click.testing import CliRunner
from export_cases import observations

from distillrl import (
    artifact,
    calibration,
    compression,
    distillation,
    exporting,
    learn,
    packing,
    parity,
    pruning,
    shrinking,
    stats,
    students,
)
from distillrl.cli import main
from distillrl.config import Config
from distillrl.dataset import Dataset
from distillrl.envs import EnvOptions
from distillrl.errors import Failed, Misconfigured
from distillrl.packing import Form
from distillrl.records import ActionSpace, Group, Spec
from distillrl.retaining import Finding, Referee
from distillrl.students import compact
from distillrl.targets.tracing import trace

SPEC = Spec({"obs": Group((4,), "float32")}, ActionSpace("discrete", (), 2))
CARTPOLE = EnvOptions("CartPole-v1", max_episode_steps=60)


def rule(obs):
    """A teacher of CartPole that was written by hand."""
    x, v, angle, spin = obs.T if obs.ndim > 1 else obs
    return (angle + 0.4 * spin + 0.02 * x + 0.04 * v > 0).astype(int)


def made(word: str, seed: int = 0):
    spec = Spec({"obs": Group((8, 8, 1), "uint8", (), 0.0, 255.0)}, SPEC.action) if word.startswith("cnn") else SPEC
    return students.make(word, spec, torch.Generator().manual_seed(seed))


def logits(policy, n: int = 64):
    obs = observations(policy.spec, n, 5)
    with torch.no_grad():
        return policy.act(obs, policy.init(n), None)[0].action.logits


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    folder = tmp_path_factory.mktemp("student") / "run"
    distillation.distill(rule, "CartPole-v1", student="mlp:16x16", out=folder, config=Config(env_steps=4000, select_episodes=3, verdict_episodes=2, max_episode_steps=100))
    return folder / "student.safetensors"


# ── the file ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("sparse", [False, True])
def test_numbers_on_a_grid_come_back_exactly(bits, sparse):
    g = torch.Generator().manual_seed(bits)
    scale = torch.rand(5, generator=g) + 0.1
    whole = torch.randint(-packing.levels(bits), packing.levels(bits) + 1, (5, 7), generator=g).float()
    whole[torch.rand(5, 7, generator=g) < 0.6] = 0
    tensors = {"a.weight": whole * scale.unsqueeze(-1), "a.weight:scale": scale}
    forms = {"a.weight": Form((5, 7), bits, sparse)}
    held = packing.pack(tensors, forms, {})
    back = packing.unpack(held, forms, {}, "it")
    assert torch.equal(back["a.weight"], tensors["a.weight"])
    count = int((whole != 0).sum()) if sparse else 35
    assert held["a.weight"].numel() == -(-count * bits // 8)


@pytest.mark.parametrize("text", ["16x8 int9", "16x8 int1", "16x8 float64", "0x8 int4", "16x8", "16x8 int4 dense", "x int4", "99999999x99999999 int4"])
def test_a_form_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match="."):
        Form.of(text)


@pytest.mark.parametrize("word", ["mlp:16x16", "gru:8", "lstm:8:6"])
@pytest.mark.parametrize(("bits", "sparse", "dtype"), [(8, False, "float32"), (3, True, "float32"), (0, True, "bfloat16"), (0, False, "float16")])
def test_a_compact_student_plays_the_same_from_its_smaller_file(word, bits, sparse, dtype, tmp_path):
    policy = made(word)
    policy.compact = compact.Compact({n: Form(tuple(p.shape), bits, sparse, dtype) for n, p in policy.named_parameters() if p.dim() > 1}, packed=False)
    before = len(artifact.dumps(policy.header(), policy.artifact_tensors()))
    live = students.build(policy.header(), policy.artifact_tensors(), learning=True)
    path = tmp_path / "s.safetensors"
    artifact.save(path, live.header(), live.artifact_tensors())
    back = students.build(*artifact.load(path))
    tolerance = 1e-6 if dtype == "float32" else 2e-2
    assert torch.allclose(logits(live), logits(back), atol=tolerance)
    assert path.stat().st_size < 0.9 * before
    assert artifact.dumps(back.header(), back.artifact_tensors()) == path.read_bytes()


def test_a_packed_file_is_of_a_newer_format_and_a_plain_one_is_not(student, tmp_path):
    assert json.loads(artifact.header_text(student))["version"] == 1
    policy = made("mlp:8")
    policy.compact = compact.Compact({"out.weight": Form((2, 8), 0, False, "float16")})
    artifact.save(tmp_path / "s.safetensors", policy.header(), policy.artifact_tensors())
    assert json.loads(artifact.header_text(tmp_path / "s.safetensors"))["version"] == 2


@pytest.mark.parametrize(("key", "value"), [("packing", {"out.weight": "2x9 float16"}), ("packing", {"out.weight": "2x8 int4"}), ("packing", "no"), ("rounded", {"out": [2048, 5]}), ("rounded", {"nowhere": [2048, 1]})])
def test_a_header_that_does_not_fit_its_tensors_is_refused(key, value, tmp_path):
    policy = made("mlp:8")
    policy.compact = compact.Compact({"out.weight": Form((2, 8), 0, False, "float16")})
    header, tensors = policy.header(), packing.pack(policy.artifact_tensors(), policy.compact.forms, {})
    from safetensors.torch import save_file

    body = {**header, key: value, "version": 2}
    body["digest"] = artifact._digest(body, tensors)
    save_file(tensors, tmp_path / "s.safetensors", metadata={artifact.KEY: artifact.canonical(body)})
    with pytest.raises(Failed):
        students.build(*artifact.load(tmp_path / "s.safetensors"))


# ── pruning ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("word", ["mlp:24x16", "gru:16", "lstm:12:10", "mlp:20:relu"])
def test_neurons_that_say_nothing_of_their_own_are_taken_out_without_a_trace(word):
    policy = made(word)
    with torch.no_grad():  # half of each layer's neurons feed nothing onward
        for layer in pruning.layers(policy):
            dead = torch.arange(layer.size) >= layer.size // 2
            policy.get_parameter(f"{layer.reader}.weight")[:, dead] = 0
            if layer.gates > 1:
                policy.get_parameter(f"{layer.name}.weight_hh")[:, dead] = 0
    seen = calibration.inputs(policy, CARTPOLE, 0, 500)
    sizes = [layer.size // 2 for layer in pruning.layers(policy)]
    wanted = pruning._counter(policy, pruning.layers(policy))(sizes)
    less = pruning.narrowed(policy, wanted, seen)
    assert [layer.size for layer in pruning.layers(less)] == sizes
    assert less.acting_parameters() == wanted
    assert torch.allclose(logits(policy), logits(less), atol=1e-3)


@pytest.mark.parametrize(("word", "see", "less"), [("cnn:6-8:10", None, "cnn:3-4:5:relu"), ("cnn:6k3s2p1-8k2::tanh", None, "cnn:3k3s2p1-4k2::tanh"), ("cnn:8:6x4", "both", "cnn:4:3x2:relu")])
def test_channels_that_say_nothing_of_their_own_are_taken_out_without_a_trace(word, see, less):
    images = {"image": Group((8, 9, 2), "uint8", (), 0.0, 255.0)}
    groups = {"before": Group((3,), "float32"), **images, "later": Group((2,), "float32")} if see else images
    policy = students.make(word, Spec(groups, SPEC.action), torch.Generator().manual_seed(1))
    found = pruning.layers(policy)
    with torch.no_grad():
        for layer in found:
            dead = layer.start + torch.arange(layer.size // 2 * layer.columns, layer.size * layer.columns)
            policy.get_parameter(f"{layer.reader}.weight").flatten(1)[:, dead] = 0
            policy.get_parameter(f"{layer.name}.bias").uniform_(-0.5, 0.5, generator=torch.Generator().manual_seed(2))
    seen = {}
    with calibration._noting(policy, seen):
        logits(policy, 300)
    wanted = pruning._counter(policy, found)([layer.size // 2 for layer in found])
    made = pruning.narrowed(policy, wanted, {name: torch.cat(x) for name, x in seen.items()})
    assert made.family == less
    assert made.acting_parameters() == wanted < policy.acting_parameters() / 2
    assert torch.allclose(logits(policy), logits(made), atol=1e-3)


def test_presets_lose_channels_too():
    policy = students.make("cnn:rusu-4", Spec({"obs": Group((44, 44, 4), "uint8", (), 0.0, 255.0)}, SPEC.action), torch.Generator().manual_seed(1))
    seen = {}
    with calibration._noting(policy, seen):
        logits(policy, 40)
    made = pruning.narrowed(policy, policy.acting_parameters() // 2, {name: torch.cat(x) for name, x in seen.items()})
    assert made.family.count("k") == 3
    assert made.acting_parameters() <= policy.acting_parameters() // 2


def test_what_is_left_is_fitted_to_what_there_was():
    policy = made("mlp:32x32")
    seen = calibration.inputs(policy, CARTPOLE, 0, 1000)
    less = pruning.narrowed(policy, policy.acting_parameters() // 2, seen)
    x = seen["body.0"]
    with torch.no_grad():
        exact, near = policy.out(policy.body(x)), less.out(less.body(x))
    assert float((exact - near).square().mean() / exact.var()) < 0.05


@pytest.mark.parametrize(("word", "ask", "sentence"), [
    ("mlp:", {"prune": 0.5}, "no neurons"),
    ("tree:leaves=8", {"quantise": "int8"}, "--prune takes out leaves"),
    ("poly:degree=2", {"prune": 0.5, "sparse": True}, "--prune takes out terms"),
    ("cnn:4-4k2d:8", {"prune": 0.5}, "--sparse takes single weights"),
    ("cnn:impala", {"prune": 0.5}, "--sparse takes single weights"),
    ("mlp:8", {}, "nothing was asked"),
    ("mlp:8", {"prune": 1.5}, "below 1"),
    ("mlp:8", {"quantise": "int5"}, "int4"),
    ("mlp:8", {"sparse": True, "quantise": "int8"}, "give --prune"),
    ("mlp:8", {"prune": 0.5, "retention": 0.0}, "share"),
])
def test_what_cannot_be_is_said_before_anything_is_played(word, ask, sentence, tmp_path):
    policy = made(word)
    path = tmp_path / "s.safetensors"
    artifact.save(path, policy.header(), policy.artifact_tensors())
    with pytest.raises(Misconfigured, match=sentence):
        compression.compress(path, rule, "CartPole-v1", out=tmp_path / "out", config=Config(env_steps=600), episodes=2, **ask)


# ── learning under a mask and on a grid ───────────────────────────────────────────────────────────────────────────


def gradient_of(policy):
    from distillrl import objectives, weights
    from distillrl.records import Batch, Prediction

    obs = observations(SPEC, 256, 3)
    with torch.no_grad():
        label = made("mlp:8", 9).act(obs, {}, None)[0]
    batch = Batch(obs, Prediction(label.action))
    loss = objectives.make("forward_kl", {}, policy.act(obs, {}, None)[0], batch, torch.Generator())
    gradient = learn.Gradient(policy, [learn.Term("forward_kl", weights.parse(1), loss, frozenset())], lr=1e-2, batch=64, updates=20, average=0.9, train="all", generator=torch.Generator().manual_seed(0))

    class Fixed(Dataset):
        def at(self, rows, ahead=False):
            return Batch({k: v[rows] for k, v in obs.items()}, dataclasses.replace(label, action=dataclasses.replace(label.action, logits=label.action.logits[rows])))

    data = Fixed()
    data.rows = torch.arange(256)
    return gradient, data


def test_masks_hold_and_weights_stay_on_their_grid_while_the_student_learns():
    from distillrl.records import Progress

    policy = made("mlp:16")
    with torch.no_grad():
        policy.get_parameter("body.0.weight")[:, :2] = 0
    policy.compact = compact.Compact({"body.0.weight": Form((16, 4), 0, True), "out.weight": Form((2, 16), 2)}, packed=False)
    compact.hold(policy)
    gradient, data = gradient_of(policy)
    before = gradient.learn(data, Progress())["term.forward_kl"]
    after = [gradient.learn(data, Progress()) for _ in range(3)][-1]["term.forward_kl"]
    assert after < before
    for student in (gradient.student, gradient.averaged):
        tensors = student.artifact_tensors()
        assert bool((tensors["body.0.weight"][:, :2] == 0).all())
        whole = tensors["out.weight"] / tensors["out.weight:scale"].unsqueeze(-1)
        assert torch.allclose(whole, whole.round(), atol=1e-4)
        assert float(whole.abs().max()) <= 1.001


def test_a_run_on_a_grid_resumes_to_the_same_bytes(student, tmp_path):
    header, tensors, _ = shrinking.first_of(shrinking.Rung("int3", "bits", "int3"), shrinking.held_parameters(student), CARTPOLE, 0)
    start = tmp_path / "start.safetensors"
    artifact.save(start, header, tensors)
    config = Config(env_steps=3000, until="none", select_episodes=2, verdict_episodes=2, max_episode_steps=60, checkpoint_seconds=0, init=str(start), student="mlp:16x16")
    whole = distillation.distill(rule, "CartPole-v1", config=config, out=tmp_path / "whole")

    class Stop(Exception):
        pass

    def stop(metrics):
        if metrics.get("round") == 2:
            raise Stop

    with pytest.raises(Stop):
        distillation.distill(rule, "CartPole-v1", config=config, out=tmp_path / "cut", show=stop)
    distillation.distill(rule, "CartPole-v1", resume=tmp_path / "cut")
    assert (whole.folder / "student.safetensors").read_bytes() == (tmp_path / "cut" / "student.safetensors").read_bytes()
    assert "packing" in artifact.load(whole.folder / "student.safetensors")[0]


# ── the verb ──────────────────────────────────────────────────────────────────────────────────────────────────────


def compressed(student, out, **ask):
    return compression.compress(student, rule, "CartPole-v1", out=out, episodes=20, config=Config(env_steps=1500, select_episodes=2, max_episode_steps=60), **ask)


def test_pruned_and_quantised_it_holds_and_is_smaller(student, tmp_path):
    done = compressed(student, tmp_path / "out", prune=0.6, quantise="int8", retention=0.9)
    assert done.reached
    first, last = done.steps[0], done.steps[-1]
    assert last["parameters"] <= 0.4 * first["parameters"] + 1
    assert last["bytes"] < first["bytes"] == student.stat().st_size
    file = done.folder / "student.safetensors"
    assert done.verdict["student"]["bytes"] == file.stat().st_size
    assert done.verdict["retention"]["low"] > 0.9
    assert artifact.load(file)[0]["provenance"]["compressed"][-1] == "int8"
    assert json.loads((done.folder / "compression.json").read_text())["steps"][-1]["held"] is True
    for to in ("python", "c-int8"):
        made_of = exporting.export(file, to, tmp_path / to, env="CartPole-v1")
        found = parity.check(made_of, file, "CartPole-v1", states=500, episodes=0)
        assert found.agreement > 0.995


@pytest.fixture
def judge(monkeypatch):
    """A referee for whom a student holds as long as it has enough parameters; nothing is played."""

    def of(least):
        def judged(self, policy):
            held = policy.acting_parameters() >= least
            return Finding(stats.Interval(1.0, 0.99 if held else 0.5, 1.01), 2, 60.0, held or None)

        monkeypatch.setattr(Referee, "judge", judged)
        monkeypatch.setattr(compression, "VERDICT_EPISODES", 2)

    return of


def test_what_cannot_be_held_ends_it_at_the_last_file_that_held(student, tmp_path, judge):
    judge(160)
    done = compressed(student, tmp_path / "out", prune=0.7)
    assert not done.reached
    assert done.policy.policy.acting_parameters() >= 160
    said = compression.sentences(done)[1]
    assert f"{done.steps[-1]['parameters']:,} parameters" in said
    assert "did not hold" in said
    assert [r["attempt"] for r in done.steps[-2:]] == [1, 2]
    assert done.verdict["ended_by"] == f"retention at: {done.steps[-1]['step']}"


def test_a_student_that_holds_nothing_leaves_no_file(student, tmp_path, judge):
    judge(10_000)
    done = compressed(student, tmp_path / "no", prune=0.5)
    assert done.policy is None
    assert not (done.folder / "student.safetensors").exists()
    assert "distil a better one" in compression.sentences(done)[0]


def test_the_same_seed_gives_the_same_file(student, tmp_path, judge):
    judge(0)
    files = [compressed(student, tmp_path / n, prune=0.3, sparse=True, retention=0.5).folder / "student.safetensors" for n in "ab"]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert "sparse" in str(artifact.load(files[0])[0]["packing"])


def test_a_tree_is_pruned_by_its_leaves(tmp_path, judge):
    judge(0)
    distillation.distill(rule, "CartPole-v1", student="tree:leaves=24", out=tmp_path / "tree", config=Config(env_steps=3000, select_episodes=2, verdict_episodes=2, max_episode_steps=60))
    done = compressed(tmp_path / "tree" / "student.safetensors", tmp_path / "out", prune=0.5, retention=0.5)
    assert done.reached
    assert done.policy.policy.model.size() <= 12


def test_c_leaves_zeros_out(tmp_path):
    policy = made("mlp:32x32")
    header, tensors, _ = shrinking.sparser(policy, 0.8, CARTPOLE, 0)
    sparse = students.build(header, tensors)
    states = {k: v.numpy() for k, v in observations(sparse.spec, 300, 4).items()}
    for to in ("c", "c-int8"):
        full, less = (exporting.export(p, to, tmp_path / f"{to}{i}", states=states) for i, p in enumerate((policy, sparse)))
        assert less.facts["flash_constants"] < 0.7 * full.facts["flash_constants"]
    found = parity.check(exporting.export(sparse, "c", tmp_path / "again"), sparse, "CartPole-v1", states=300, episodes=0)
    assert found.clear_disagreements == 0


def test_a_rounded_layer_is_the_same_in_the_plan(student):
    header, tensors, _ = shrinking.first_of(shrinking.Rung("int8", "bits", "int8"), shrinking.held_parameters(student), CARTPOLE, 0)
    policy = students.build(header, tensors)
    from distillrl.targets import running

    obs = observations(policy.spec, 500, 8)
    plan = trace(policy)
    assert any(op.whole is not None for op in plan.ops if hasattr(op, "whole"))
    found = running.run(plan, {k: v.numpy() for k, v in obs.items()})[plan.raw]
    with torch.no_grad():
        exact = policy.act(obs, {}, None)[0].action.logits.numpy()
    assert abs(found - exact).max() < 2e-2  # a number at the edge between two steps may fall on either
    assert (abs(found - exact).max(-1) < 1e-5).mean() > 0.97


def test_the_command_says_what_is_wrong(student, tmp_path):
    runner = CliRunner()
    done = runner.invoke(main, ["compress", str(student), "--teacher", "none.zip", "--prune", "0.5"], standalone_mode=False)
    assert isinstance(done.exception, Failed)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(student.read_bytes()[:-20])
    done = runner.invoke(main, ["compress", str(broken), "--teacher", "none.zip", "--prune", "0.5"], standalone_mode=False)
    assert isinstance(done.exception, Failed)


def test_ctrl_c_keeps_the_last_file_that_held(student, tmp_path, judge, monkeypatch):
    judge(0)
    plain = compression.distill
    calls = []

    def broken_off(*given, **more):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return plain(*given, **more)

    monkeypatch.setattr(compression, "distill", broken_off)
    with pytest.raises(KeyboardInterrupt, match="the last file that held"):
        compressed(student, tmp_path / "out", prune=0.8)
    kept = shrinking.held_parameters(tmp_path / "out" / "student.safetensors")
    assert kept.acting_parameters() < shrinking.held_parameters(student).acting_parameters()
    assert len(json.loads((tmp_path / "out" / "compression.json").read_text())["steps"]) == 2


def test_a_student_of_images_is_thinned_and_quantised_with_its_convolutions():
    policy = made("cnn:4:8")
    obs = observations(policy.spec, 40, 2)
    seen: dict[str, list[torch.Tensor]] = {}
    with calibration._noting(policy, seen), torch.no_grad():
        before = policy.act(obs, {}, None)[0].action.logits
    read = {name: torch.cat(values) for name, values in seen.items()}
    masks = pruning.thinned(policy, 0.5, read)
    assert any(mask.dim() == 4 for mask in masks.values())
    assert sum(int(m.sum()) for m in masks.values()) == pytest.approx(0.5 * sum(m.numel() for m in masks.values()), rel=0.02)
    header, tensors, _ = shrinking._whole(policy, 8, read)
    small = students.build(header, tensors)
    with torch.no_grad():
        after = small.act(obs, {}, None)[0].action.logits
    assert float((before - after).abs().max()) < 0.1 * float(before.std()) + 0.01
    assert len(artifact.dumps(header, tensors)) < 0.6 * len(artifact.dumps(policy.header(), policy.artifact_tensors()))


@pytest.mark.parametrize(("word", "less"), [("linear-tree:leaves=6", "linear-tree:leaves=3"), ("forest:trees=3,leaves=8", "forest:trees=3,leaves=4"), ("poly:degree=2,terms=10", "poly:degree=2,terms=5")])
def test_half_of_a_fitted_student_is_half_of_its_leaves_or_terms(word, less):
    from export_cases import FOUR, fitted

    found = shrinking.smaller_word(fitted(word, FOUR), 0.5)
    kind, count = less.rsplit("=", 1)
    assert found.rsplit("=", 1)[0] == kind
    assert 1 <= int(found.rsplit("=", 1)[1]) <= int(count)
