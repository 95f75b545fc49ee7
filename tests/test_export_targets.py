"""Every kind of policy through every target: what runs there says the same as the policy, state after state, memory and all."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import resource
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from export_cases import BOX, CASES, MEMORY, ROUNDED, differences, mlp, observations

from distillrl import exporting, parity
from distillrl.errors import Failed, Misconfigured, Missing
from distillrl.students.networks import Network
from distillrl.targets import plan as steps
from distillrl.targets import playing

RUNTIMES = {"js": "node", "c": "gcc", "compiled": "gcc"}


def need_runtime(to: str) -> None:
    if to in RUNTIMES and shutil.which(RUNTIMES[to]) is None:
        pytest.skip(f"{RUNTIMES[to]} is not installed: apt-get install {'nodejs' if to == 'js' else RUNTIMES[to]}")
    if to == "onnx":
        pytest.importorskip("onnx", reason="pip install 'distillrl[onnx]'")
        pytest.importorskip("onnxruntime", reason="pip install 'distillrl[onnx]'")


@pytest.mark.parametrize("to", ["python", "c", "js", "onnx"])
@pytest.mark.parametrize("case", CASES)
def test_says_the_same(case, to, tmp_path):
    need_runtime(to)
    policy = CASES[case]()
    other = exporting.opened(exporting.export(policy, to, tmp_path))
    raw_error, action_error, size = differences(policy, other)
    assert raw_error <= 1e-5 * max(1.0, size)
    assert action_error <= 1e-5


@pytest.mark.parametrize("case", ["discrete", "several", "squashed", "lstm", "frames"])
def test_torch_says_the_same(case, tmp_path):
    policy = CASES[case]()
    other = exporting.opened(exporting.export(policy, "torch", tmp_path))
    raw_error, action_error, size = differences(policy, other, n=7)
    assert raw_error <= 1e-5 * max(1.0, size)
    assert action_error <= 1e-5


@pytest.mark.parametrize("case", [c for c in CASES if c not in MEMORY])
def test_int8_keeps_the_choice_in_most_states(case, tmp_path):
    need_runtime("c")
    policy = CASES[case]()
    states = {k: v.numpy() for k, v in observations(policy.spec, 2000, 99).items()}
    exported = exporting.export(policy, "c-int8", tmp_path, states=states)
    other = exporting.opened(exported)
    obs = observations(policy.spec, 1000, 5)
    with torch.inference_mode():
        mine, theirs = (p.act(obs, {}, None)[0].action.mode for p in (policy, other))
    if policy.spec.action.kind == "box":
        assert float((mine - theirs).abs().mean()) < 0.03
    else:
        same = (mine == theirs).reshape(1000, -1).all(-1).double().mean()
        assert float(same) > 0.93
        assert abs(exported.facts["agreement"] - float(same)) < 0.06


def test_int8_is_four_times_smaller_at_a_width_of_256(tmp_path):
    policy = mlp("mlp:256x256", CASES["discrete"]().spec.action)
    states = {"obs": observations(policy.spec, 500)["obs"].numpy()}
    whole = exporting.export(policy, "c", tmp_path / "a").facts["flash_constants"]
    small = exporting.export(policy, "c-int8", tmp_path / "b", states=states).facts["flash_constants"]
    assert 3.7 < whole / small < 4


def test_int8_refuses_what_it_cannot_calibrate(tmp_path):
    with pytest.raises(Misconfigured, match="calibrates on visited states: give --env"):
        exporting.export(CASES["discrete"](), "c-int8", tmp_path)
    with pytest.raises(Misconfigured, match="memory"):
        exporting.export(CASES["lstm"](), "c-int8", tmp_path, states={"obs": np.zeros((3, 4), np.float32)})
    with pytest.raises(Misconfigured, match=r"shape \(3, 5\) was given, \(n, 8\) is right"):
        exporting.export(CASES["discrete"](), "c-int8", tmp_path, states={"obs": np.zeros((3, 5), np.float32)})


@pytest.mark.parametrize("to", ["python", "js", "onnx", "c", "torch"])
def test_the_passport_travels(to, tmp_path):
    need_runtime(to)
    policy = CASES["discrete"]()
    policy.info["environment"] = "CartPole-v1"
    file = exporting.export(policy, to, tmp_path).files
    spec = policy.spec.to_json()
    if to == "python":
        assert module(file[0]).PASSPORT["spec"] == json.loads(json.dumps(spec))
    elif to == "onnx":
        import onnx

        props = {p.key: p.value for p in onnx.load(file[0]).metadata_props}
        assert json.loads(props["passport"])["spec"] == json.loads(json.dumps(spec))
        assert "zeros where an episode starts" in props["contract"]
    elif to == "torch":
        extra = {"passport.json": ""}
        torch.export.load(file[0], extra_files=extra)
        assert json.loads(extra["passport.json"])["env"] == "CartPole-v1"
    elif to == "js":
        assert '"family": "mlp:64x64"' in file[0].read_text()
    else:
        assert '"family": "mlp:64x64"' in file[1].read_text()


def module(path):
    found = importlib.util.spec_from_file_location("exported_for_a_test", path)
    loaded = importlib.util.module_from_spec(found)
    found.loader.exec_module(loaded)
    return loaded


@pytest.mark.parametrize("to", ["python", "compiled"])
class TestPythonFiles:
    def test_one_state_and_a_batch_agree(self, to, tmp_path):
        need_runtime(to)
        for case in ("discrete", "start", "multi", "binary", "squashed", "several", "lstm", "taxi", "normalised"):
            policy = CASES[case]()
            made = module(exporting.export(policy, to, tmp_path / case).files[0])
            player = made.Policy()
            obs = {k: v.numpy() for k, v in observations(policy.spec, 5).items()}
            actions = made.run(obs)[0]
            for k in range(5):
                player.reset()
                one = {name: rows[k] for name, rows in obs.items()}
                action = player.act(one if len(one) > 1 else next(iter(one.values())))
                assert np.allclose(np.ravel(action), np.ravel(actions[k]), atol=1e-6), case
                if policy.spec.action.kind == "discrete":
                    assert type(action) is int
                else:
                    assert action.shape == policy.spec.action.shape
                    assert action.dtype == policy.spec.action.dtype

    def test_memory_goes_on_until_reset(self, to, tmp_path):
        need_runtime(to)
        made = module(exporting.export(CASES["gru"](), to, tmp_path).files[0])
        player = made.Policy()
        obs = np.ones(4, np.float32)
        first, second = player.act(obs).copy(), player.act(obs).copy()
        player.reset()
        assert np.array_equal(player.act(obs), first)
        assert not np.array_equal(first, second)

    @pytest.mark.parametrize("bad", [[1, 2], np.full(8, np.nan, np.float32), np.array([0] * 7 + [np.inf], np.float32), np.zeros((1, 8), np.float32)])
    def test_bad_input_is_refused(self, to, bad, tmp_path):
        need_runtime(to)
        made = module(exporting.export(CASES["discrete"](), to, tmp_path).files[0])
        with pytest.raises(ValueError, match=r"shape|NaN"):
            made.Policy().act(bad)

    def test_a_category_outside_of_its_range_is_refused(self, to, tmp_path):
        need_runtime(to)
        made = module(exporting.export(CASES["taxi"](), to, tmp_path).files[0])
        assert 0 <= made.Policy().act(499) < 6
        for bad in (500, -1):
            with pytest.raises(ValueError, match=r"categor|bad"):
                made.Policy().act(bad)

    @pytest.mark.parametrize("bad", [0.5, np.nan, 1e12, None, "x"])
    def test_what_is_no_whole_number_is_no_category(self, to, bad, tmp_path):
        need_runtime(to)
        made = module(exporting.export(CASES["taxi"](), to, tmp_path).files[0])
        with pytest.raises(ValueError, match=r"observation 'obs': .* was given"):
            made.Policy().act(np.asarray(bad))
        with pytest.raises(ValueError, match=r"observation 'obs': .* was given"):
            made.run([bad, bad])

    def test_a_lacking_group_is_refused(self, to, tmp_path):
        need_runtime(to)
        made = module(exporting.export(CASES["several"](), to, tmp_path).files[0])
        with pytest.raises(ValueError, match="lacks"):
            made.Policy().act({"switch": 0})


@pytest.mark.parametrize("to", ["python", "onnx"])
def test_starts_without_torch_in_half_a_second(to, tmp_path):
    need_runtime(to)
    file = exporting.export(CASES["discrete"](), to, tmp_path).files[0]
    play = {
        "python": f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import policy; import numpy as np; policy.Policy().act(np.zeros(8, np.float32))",
        "onnx": f"import sys, onnxruntime as o, numpy as np; s = o.InferenceSession({str(file)!r}); s.run(None, {{'obs': np.zeros((1, 8), np.float32)}})",
    }[to]
    seconds = []
    for _ in range(3):  # processor time: the tests share their cores
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", play + "; assert 'torch' not in sys.modules and 'distillrl' not in sys.modules"], check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 0.5


def test_onnx_is_of_the_newest_opset_and_its_batch_is_free(tmp_path):
    need_runtime("onnx")
    import onnx
    import onnxruntime

    from distillrl.targets.onnx import OPSET

    exported = exporting.export(CASES["box"](), "onnx", tmp_path)
    model = onnx.load(exported.files[0])
    assert model.opset_import[0].version == min(OPSET, onnx.defs.onnx_opset_version())
    session = onnxruntime.InferenceSession(exported.files[0])
    assert [o.name for o in session.get_outputs()] == ["action", "mean"]
    rows = np.random.default_rng(0).normal(size=(9, 8)).astype(np.float32)
    together = session.run(None, {"obs": rows})[1]
    alone = np.concatenate([session.run(None, {"obs": rows[k : k + 1]})[1] for k in range(9)])
    assert np.allclose(together, alone, atol=1e-6)
    low, high = np.array(BOX.low, np.float32), np.array(BOX.high, np.float32)
    action = session.run(None, {"obs": rows * 1e6})[0]
    assert ((action >= low) & (action <= high)).all()


def test_onnx_rows_with_nan_leave_the_others_alone(tmp_path):
    need_runtime("onnx")
    import onnxruntime

    session = onnxruntime.InferenceSession(exporting.export(CASES["discrete"](), "onnx", tmp_path).files[0])
    rows = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
    clean = session.run(None, {"obs": rows})
    rows[1] = np.nan
    action, logits = session.run(None, {"obs": rows})
    assert np.allclose(logits[[0, 2]], clean[1][[0, 2]], atol=1e-6)
    assert np.isnan(logits[1]).all()
    assert ((action >= 0) & (action < 4)).all()


def test_the_spread_is_told_to_those_who_sample(tmp_path):
    exported = exporting.export(CASES["box"](), "python", tmp_path)
    policy = CASES["box"]()
    assert np.allclose(module(exported.files[0]).LOG_STD, policy.log_std.detach().numpy())


def test_wrong_options_are_sentences(tmp_path):
    policy = CASES["discrete"]()
    with pytest.raises(Misconfigured, match="did you mean 'onnx'"):
        exporting.export(policy, "onx", tmp_path)
    with pytest.raises(Misconfigured, match="letters, digits"):
        exporting.export(policy, "c", tmp_path, name="a b")


def test_the_same_policy_gives_the_same_bytes(tmp_path):
    for to in ("python", "c", "js", "onnx"):
        need_runtime(to)
        one, two = (exporting.export(CASES["gru"](), to, tmp_path / f"{to}{k}") for k in range(2))
        assert [f.read_bytes() for f in one.files] == [f.read_bytes() for f in two.files]


SAMPLED = {
    "discrete": lambda: mlp("mlp:16", CASES["discrete"]().spec.action),
    "multi": CASES["multi"],
    "binary": CASES["binary"],
    "box": CASES["box"],
    "squashed": CASES["squashed"],
    "sac": lambda: sac(),  # defined below
    "gru": CASES["gru"],
}


def sac():
    """A squashed Gaussian whose spread is a layer."""
    base = CASES["squashed"]()
    torch.manual_seed(0)
    return Network(base.spec, base.sense, base.body, base.out, base.head, log_std=torch.nn.Linear(16, 4)).eval()


@pytest.mark.parametrize("to", ["python", "c", "compiled", "js", "onnx"])
@pytest.mark.parametrize("case", SAMPLED)
def test_a_sampled_action_is_the_policys_with_the_same_noise(case, to, tmp_path):
    need_runtime(to)
    policy = SAMPLED[case]()
    other = exporting.opened(exporting.export(policy, to, tmp_path, sampled=True))
    noise = {}

    def remember(n, draw=other.draw):
        noise.update(draw(n))
        return noise

    other.draw = remember
    obs = observations(policy.spec, 40)
    starts = torch.ones(40, dtype=torch.bool)
    with torch.inference_mode():
        said = policy.act(obs, policy.init(40), starts)[0].action
        found = other.act(obs, other.init(40), starts)[0].action.mode
    drawn = torch.as_tensor(noise["noise"])
    space = policy.spec.action
    if space.kind == "box":
        latent = said.mean + said.log_std.exp() * drawn
        expected = dataclasses.replace(said, mean=latent).mode
        assert torch.allclose(found, expected, atol=1e-5)
    elif space.kind == "multibinary":
        assert torch.equal(found, (said.logits + drawn > 0).long())
    else:
        parts = [p.argmax(-1) for p in (said.logits + drawn).split(list(space.nvec) or [space.n], -1)]
        assert torch.equal(found, torch.stack(parts, -1).reshape(found.shape))


@pytest.mark.parametrize("to", ["python", "compiled"])
def test_files_draw_as_the_policy_would(to, tmp_path):
    need_runtime(to)
    policy = SAMPLED["discrete"]()
    made = module(exporting.export(policy, to, tmp_path, sampled=True).files[0])
    obs = observations(policy.spec, 1)["obs"].numpy()
    actions = made.run(np.repeat(obs, 20_000, 0))[0]
    with torch.inference_mode():
        expected = policy.act({"obs": torch.as_tensor(obs)}, {}, None)[0].action.logits.softmax(-1)[0].numpy()
    assert np.abs(np.bincount(actions, minlength=4) / 20_000 - expected).max() < 0.02
    one, two = made.Policy(seed=3), made.Policy(seed=3)
    assert [one.act(obs[0]) for _ in range(20)] == [two.act(obs[0]) for _ in range(20)]


def test_javascript_draws_by_itself(tmp_path):
    need_runtime("js")
    policy = SAMPLED["discrete"]()
    shutil.copy(exporting.export(policy, "js", tmp_path, sampled=True).files[0], tmp_path / "policy.mjs")
    obs = observations(policy.spec, 1)["obs"]
    (tmp_path / "main.mjs").write_text(
        'import { Policy } from "./policy.mjs";\nconst p = new Policy(), counts = [0, 0, 0, 0];\n'
        f"for (let i = 0; i < 20000; i++) counts[p.act({obs[0].tolist()})]++;\nconsole.log(JSON.stringify(counts));\n"
    )
    counts = np.array(json.loads(subprocess.run(["node", tmp_path / "main.mjs"], capture_output=True, text=True, check=True).stdout))
    with torch.inference_mode():
        expected = policy.act({"obs": obs}, {}, None)[0].action.logits.softmax(-1)[0].numpy()
    assert np.abs(counts / 20_000 - expected).max() < 0.02


def test_sampling_is_refused_where_there_is_nothing_to_sample(tmp_path):
    with pytest.raises(Misconfigured, match="no distribution to sample from"):
        exporting.export(CASES["tanh"](), "python", tmp_path, sampled=True)
    with pytest.raises(Misconfigured, match="most likely action only"):
        exporting.export(CASES["box"](), "torch", tmp_path, sampled=True)
    with pytest.raises(Misconfigured, match="without --sampled to check it"):
        parity.check(exporting.export(CASES["box"](), "python", tmp_path, sampled=True), CASES["box"](), "CartPole-v1")


@pytest.mark.parametrize("to", ["python", "c", "c-int8", "js", "onnx"])
def test_whole_numbers_are_the_same_everywhere(to, tmp_path):
    policy = ROUNDED["whole"]()
    obs = observations(policy.spec, 400, 3)
    plan_states = {"states": {k: v.numpy() for k, v in obs.items()}} if to == "c-int8" else {}
    try:
        played = exporting.opened(exporting.export(policy, to, tmp_path, **plan_states))
        action, _ = played.act(obs, {}, None)
    except Missing as missing:
        pytest.skip(str(missing))
    with torch.no_grad():
        exact = policy.act(obs, {}, None)[0].action
    assert (action.action.mode == exact.mode).float().mean() > 0.99
    error = abs(played.raw - exact.logits.numpy()).max(-1)
    assert (error < 1e-4).mean() > 0.97  # a number between two steps may fall on either
    assert error.max() < 0.02


@pytest.mark.parametrize("to", ["c", "python", "js", "onnx"])
def test_activations_are_near_the_truth_for_small_and_large_numbers(to, tmp_path):
    need_runtime(to)
    x = np.concatenate([np.linspace(-30, 30, 2401), np.geomspace(1e-30, 1e30, 199), [0.0, 1e-12]]).astype(np.float32)
    kinds = ["exp", "log", "sqrt", "reciprocal", "erf", "step", "softplus", "mish", "tanh", "sigmoid"]
    own = {"exp": x <= 30, "log": x > 0, "sqrt": x >= 0, "reciprocal": np.abs(x) > 1e-29}
    takes = np.stack([np.where(own.get(k, np.ones_like(x, bool)), x, 1) for k in kinds], -1).astype(np.float32)
    ops, parts = [], []
    for i, kind in enumerate(kinds):
        ops += [steps.Take(f"t{i}", "obs", (i,)), steps.Activate(f"a{i}", f"t{i}", kind)]
        parts.append(f"a{i}")
    shapes = {"obs": (len(kinds),), "out": (len(kinds),), **dict.fromkeys((*parts, *(f"t{i}" for i in range(len(kinds)))), (1,))}
    plan = steps.Plan((steps.Input("obs", (len(kinds),), "float32"),), (), (*ops, steps.Concat("out", tuple(parts))), "out", steps.Decode("argmax"), shapes)
    files, _ = __import__(f"distillrl.targets.{to}", fromlist=["write"]).write(plan, {}, tmp_path, "all")
    main = next(f for f in files if f.suffix == exporting.TARGETS[to].main)
    run = playing.python(main) if to == "python" else getattr(playing, to)(main, plan)
    found = run({"obs": takes}, {})[1]
    wide = torch.from_numpy(takes).double()
    truth = {"reciprocal": torch.reciprocal, "erf": torch.erf, "step": lambda v: (v > 0).double(), "softplus": torch.nn.functional.softplus, "mish": torch.nn.functional.mish}
    for i, kind in enumerate(kinds):
        expected = truth.get(kind, getattr(torch, kind, None))(wide[:, i]).numpy()
        error = np.abs(found[:, i] - expected) / np.maximum(1, np.abs(expected))
        assert error.max() < 1e-6, (kind, x[error.argmax()])


@pytest.mark.parametrize("to", ["python", "c", "js", "onnx", "torch"])
def test_a_full_disk_leaves_what_was_there(to, tmp_path):
    """A process that may write no file of more than 1,000 bytes: the first export stays, nothing is half-written."""
    need_runtime(to)
    first = [f.read_bytes() for f in exporting.export(CASES["discrete"](), to, tmp_path).files]
    names = sorted(p.name for p in tmp_path.iterdir())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(Failed, match="File too large"):
            exporting.export(CASES["discrete"](), to, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert sorted(p.name for p in tmp_path.iterdir()) == names
    assert sorted(first) == sorted(p.read_bytes() for p in tmp_path.iterdir())
