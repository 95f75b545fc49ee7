"""Files of stable-baselines3 and sb3-contrib: the same actions, distributions and values as those libraries gave.

The recorded files are made by scripts/make_fixtures_sb3.py; nothing here imports stable-baselines3.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distillrl import teachers
from distillrl.actions import Gaussian
from distillrl.errors import Failed, Misconfigured, Missing
from distillrl.policies import Player
from distillrl.records import Group, Spec
from distillrl.spaces import spec_of

DATA = Path(__file__).parent / "data" / "sb3"
CASES = sorted(p.name for p in DATA.iterdir()) if DATA.is_dir() else []
SEQUENCES = [c for c in CASES if c.startswith(("recurrent", "framestack"))]
OWN = [c for c in CASES if c.startswith("own_")]
CLOSE = 1e-5


def recorded(case: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What the library said of a case."""
    return json.loads((DATA / case / "about.json").read_text()), dict(np.load(DATA / case / "expected.npz"))


def env_spec(policy: Any, expected: dict[str, np.ndarray], lead: int = 1) -> Spec:
    """The spec of the environment that the recorded observations came from."""
    groups = {}
    for name, group in policy.spec.observations.items():
        array = expected["obs" if "obs" in expected else f"obs.{name}"]
        groups[name] = Group(array.shape[lead:], str(array.dtype), group.categories, group.low, group.high)
    return Spec(groups, policy.spec.action)


def observed(policy: Any, expected: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """The recorded observations as a policy takes them."""
    return {name: torch.as_tensor(expected["obs" if "obs" in expected else f"obs.{name}"]) for name in policy.spec.observations}


def close(ours: torch.Tensor, theirs: np.ndarray, tolerance: float = CLOSE) -> None:
    """Equal to 1e-5 of the greatest number."""
    theirs = torch.as_tensor(theirs).reshape(ours.shape)
    assert (ours - theirs).abs().max() <= tolerance * max(1.0, float(theirs.abs().max()))


def same_as(prediction: Any, expected: dict[str, np.ndarray], masked: bool = False) -> None:
    """Hold all that the library gave against a prediction."""
    action, n = prediction.action, len(prediction.action.mode)
    theirs = expected["actions_unmasked" if masked else "actions"]
    if theirs.dtype.kind == "f":
        close(action.mode, theirs)
    else:
        assert (action.mode.numpy().reshape(n, -1) == theirs.reshape(n, -1)).all()
    if "mean" in expected:
        close(action.mean, expected["mean"])
        close(action.log_std.exp(), expected["std"])
    logits = expected.get("logits_unmasked" if masked else "logits")
    if logits is not None and hasattr(action, "log_probs"):
        close(action.log_probs, logits)
    if "entropy" in expected and not masked and not getattr(action, "squashed", False):
        close(action.entropy(), expected["entropy"])
    if "log_prob" in expected and not masked:
        _log_prob(action, expected)
    if "value" in expected:
        close(prediction.value, expected["value"])
    if "q" in expected:
        close(prediction.q, expected["q"])
    if "quantiles" in expected:
        close(prediction.quantiles, expected["quantiles"])
        close(prediction.q, expected["quantiles"].mean(-1))
    if "q_at_action" in expected:
        close(prediction.value, expected["q_at_action"].min(-1))
    if "quantiles_at_action" in expected:
        close(prediction.value, expected["quantiles_at_action"].reshape(n, -1).mean(-1))


def _log_prob(action: Any, expected: dict[str, np.ndarray]) -> None:
    samples, theirs = torch.as_tensor(expected["samples"]), torch.as_tensor(expected["log_prob"])
    if not getattr(action, "squashed", False):
        close(action.log_prob(samples.reshape(len(theirs), -1) if isinstance(action, Gaussian) else samples), expected["log_prob"])
        return
    # SB3's density is of the action in [-1, 1], with 1e-6 inside the logarithm: only samples that aren't at the edge tell.
    inside = (samples.abs() < 0.99).all(-1)
    scaled = action.low + (samples + 1) / 2 * (action.high - action.low)
    ours = action.log_prob(scaled) + ((action.high - action.low) / 2).log().sum()
    assert (ours - theirs)[inside].abs().max() < 2e-3 if bool(inside.any()) else True


@pytest.mark.parametrize("case", [c for c in CASES if c not in SEQUENCES and c not in OWN])
def test_same_as_the_library(case: str) -> None:
    """Each file gives what the library gave on the recorded observations, and says what it is."""
    about, expected = recorded(case)
    path = DATA / case / "model.zip"
    policy = teachers.load(path)
    policy = teachers.fit(policy, env_spec(policy, expected))
    obs = observed(policy, expected)
    prediction, memory = policy.act(obs, policy.init(16), torch.ones(16, dtype=torch.bool), policy.gives)
    same_as(prediction, expected, "masks" in expected)
    assert memory == {}
    assert policy.info["algorithm"].replace("-", "").lower() == about["algo"].lower()
    assert json.loads(json.dumps(policy.info)) == policy.info
    assert set(policy.info["gives"]) == policy.gives
    assert not set(policy.info["missing"]) & policy.gives
    assert (about["vecnormalize"] is None) == (policy.info["normaliser"] == "none found")
    for name in policy.gives:
        if name.startswith("features."):
            assert prediction.features[name.removeprefix("features.")].shape[0] == 16


@pytest.mark.parametrize("case", [c for c in CASES if c.startswith("recurrent")])
def test_memory_of_each_environment(case: str) -> None:
    """An LSTM's state lives for each environment, is cleared where an episode starts, and gives the library's predictions."""
    _, expected = recorded(case)
    policy = teachers.load(DATA / case / "model.zip")
    obs, starts = observed(policy, expected), torch.as_tensor(expected["starts"])
    memory = policy.init(starts.shape[1])
    assert memory
    assert all(len(v) == starts.shape[1] for v in memory.values())
    for t in range(len(starts)):
        prediction, memory = policy.act({k: v[t] for k, v in obs.items()}, memory, starts[t], policy.gives)
        same_as(prediction, {k: v[t] for k, v in expected.items() if k not in {"starts", "samples", "log_prob"}})
        h, c = (torch.as_tensor(expected[k][t]).transpose(0, 1) for k in ("state_h", "state_c"))
        close(memory["recurrent.h"], h.numpy())
        close(memory["recurrent.c"], c.numpy())


@pytest.mark.parametrize("case", [c for c in CASES if c.startswith("framestack")])
def test_frames_are_stacked(case: str) -> None:
    """Given single frames, the sense stacks them as VecFrameStack did; zeros before an episode's start."""
    _, expected = recorded(case)
    policy = teachers.load(DATA / case / "model.zip")
    frames, starts = torch.as_tensor(expected["frames"]), torch.as_tensor(expected["starts"])
    if case == "framestack":  # no shape tells it: the folder's config.yml would
        policy.info["wrappers"] = {"stack": 3}
    group = Group(tuple(frames.shape[2:]), str(expected["frames"].dtype), (), 0.0, 255.0)
    policy = teachers.fit(policy, Spec({"obs": group}, policy.spec.action))
    assert policy.spec.observations["obs"].shape == group.shape
    memory = policy.init(frames.shape[1])
    for t in range(len(frames)):
        prediction, memory = policy.act({"obs": frames[t]}, memory, starts[t], policy.gives)
        same_as(prediction, {k: v[t] for k, v in expected.items() if k not in {"starts", "samples", "log_prob"}})


def test_stacked_observations_as_they_are() -> None:
    """Without a word about frames the file's own observation is taken, as SB3's predict does."""
    _, expected = recorded("framestack")
    policy = teachers.load(DATA / "framestack" / "model.zip")
    flat = {k: v.reshape(-1, *v.shape[2:]) for k, v in expected.items() if k not in {"samples", "log_prob"}}
    prediction, _ = policy.act({"obs": torch.as_tensor(flat["obs"])}, {}, None, policy.gives)
    same_as(prediction, flat)


@pytest.mark.parametrize("case", OWN)
def test_the_users_own_classes_are_refused(case: str) -> None:
    """What only the user's own code can read is refused with a sentence that says how to give it."""
    with pytest.raises(Misconfigured, match=r"give the loaded model from Python" if case == "own_policy" else r"--model MODULE:CLASS"):
        teachers.load(DATA / case / "model.zip")


def test_predict_has_sb3s_habits() -> None:
    """One observation or a batch, numpy in and out, the environment's shapes."""
    _, expected = recorded("ppo_box_2d")
    player = Player(teachers.load(DATA / "ppo_box_2d" / "model.zip"))
    action, memory = player.predict(expected["obs"])
    assert action.shape == (16, 2, 2)
    assert np.abs(action - expected["actions"]).max() < CLOSE
    one, _ = player.predict(expected["obs"][0], memory)
    assert one.shape == (2, 2)


def test_a_discrete_start_is_added_for_the_environment() -> None:
    """SB3 ignores it; the environment gets a legal action here, and the notes say so."""
    _, expected = recorded("ppo_discrete_start")
    policy = teachers.load(DATA / "ppo_discrete_start" / "model.zip")
    action, _ = Player(policy).predict(expected["obs"])
    assert (action == expected["actions"] + 3).all()
    assert "counts from 3" in " ".join(policy.info["notes"])


# ── shared files: other people's, so they are elsewhere ───────────────────────────────────────────────────────────

SHARED = [
    "ppo_lunar.zip", "ppo_lunarc.zip", "ppo_cartpole.zip", "zoo/ppo/LunarLander-v2", "zoo/ppo/HalfCheetah-v3", "zoo/a2c/CartPole-v1", "zoo/a2c/Pendulum-v1",
    "zoo/trpo/LunarLanderContinuous-v2", "zoo/dqn/CartPole-v1", "zoo/qrdqn/CartPole-v1", "zoo/ddpg/Pendulum-v1", "zoo/sac/Pendulum-v1", "zoo/tqc/Pendulum-v1",
    "zoo/ars/Swimmer-v3", "zoo/ars/MountainCarContinuous-v0",
]  # fmt: skip


def _plain(path: Path, x: torch.Tensor) -> torch.Tensor:
    """The most likely action by torch.load(weights_only) and matrix products, written apart from distillrl's code."""
    import io
    import zipfile

    with zipfile.ZipFile(path) as archive:
        weights = torch.load(io.BytesIO(archive.read("policy.pth")), weights_only=True, map_location="cpu")
        data = json.loads(archive.read("data"))
    algorithm = path.parent.parent.name
    names = {"dqn": "q_net.q_net", "qrdqn": "quantile_net.quantile_net", "ddpg": "actor.mu", "sac": "actor.latent_pi", "tqc": "actor.latent_pi", "ars": "action_net"}
    prefix = names.get(algorithm, "mlp_extractor.policy_net")
    act = torch.relu if algorithm in names or "HalfCheetah" in str(path) else torch.tanh
    indices = sorted({int(k.split(".")[len(prefix.split("."))]) for k in weights if k.startswith(f"{prefix}.") and k.endswith("weight") and k.split(".")[-2].isdigit()})
    for i in indices:
        x = x @ weights[f"{prefix}.{i}.weight"].T + weights[f"{prefix}.{i}.bias"]
        if i != indices[-1] or prefix.endswith(("policy_net", "latent_pi")):
            x = act(x)
    if prefix.endswith("policy_net"):
        x = x @ weights["action_net.weight"].T + weights["action_net.bias"]
    if prefix.endswith("latent_pi"):
        x = (x @ weights["actor.mu.0.weight"].T + weights["actor.mu.0.bias"]).clamp(-2, 2)
    if algorithm == "qrdqn":
        x = x.unflatten(-1, (-1, 2)).mean(-2)
    if not indices:
        x = x @ weights["action_net.weight"].T
    if "Discrete" in data["action_space"][":type:"]:
        return x.argmax(-1)
    low, high = (torch.tensor([float(v) for v in data["action_space"][k].strip("[]").split()]) for k in ("low", "high"))
    if algorithm in {"ddpg", "sac", "tqc"} or "MountainCar" in str(path):
        return low + (x.tanh() + 1) / 2 * (high - low)
    return x.clamp(low, high)


@pytest.mark.parametrize("name", SHARED)
def test_shared_files(shared: Path, name: str) -> None:
    """Real files of RL Zoo, of SB3 0.x to 2.4: the actions of a forward pass written apart, and what the folder tells."""
    path = shared / name
    policy = teachers.load(path)
    model = path / "model.zip" if path.is_dir() else path
    group = policy.spec.observations["obs"]
    obs = torch.randn((64, *group.shape), generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2
    x = obs
    if (model.parent / "vecnormalize.pkl").exists():
        assert "vecnormalize.pkl" in policy.info["normaliser"]
        x, _ = policy.sense({"obs": obs}, {}, None)
        x = x["obs"]
    prediction, _ = policy.act({"obs": obs}, {}, None)
    ours, theirs = prediction.action.mode, _plain(model, x.float())
    assert (ours - theirs).abs().max() < CLOSE
    if path.is_dir():
        assert policy.info["trained_on"] == path.name
        assert policy.info["environment"] == {"LunarLander-v2": "LunarLander-v3", "LunarLanderContinuous-v2": "LunarLanderContinuous-v3"}.get(path.name, path.name).replace("-v3", "-v4" if "Lunar" not in path.name else "-v3")


def test_shared_training_returns(shared: Path) -> None:
    """Where the folder records none, the file's last training episodes are the record."""
    record = teachers.load(shared / "zoo/a2c/CartPole-v1").info["recorded_return"]
    assert 400 < record["mean"] <= 500
    assert record["episodes"] == 100
    assert record["source"].startswith("the file")


def test_shared_normaliser(shared: Path) -> None:
    """VecNormalize in double precision, as SB3 computes it: of HalfCheetah's own statistics."""
    policy = teachers.load(shared / "zoo/ppo/HalfCheetah-v3")
    step = policy.sense.steps[0]
    obs = torch.linspace(-20, 20, 17 * 5, dtype=torch.float64).reshape(5, 17)
    mean, std = -step.shift0 / step.scale0, 1 / step.scale0
    theirs = ((obs - mean) / std).clamp(-10, 10).float()
    assert (policy.sense({"obs": obs}, {}, None)[0]["obs"] - theirs).abs().max() < 1e-6
    assert "clipped to ±10" in policy.info["normaliser"]


# ── folders ───────────────────────────────────────────────────────────────────────────────────────────────────────


def folder(tmp_path: Path, case: str, name: str = "ppo/LunarLander-v2_1", *, config: str = "", args: str = "", model: str | None = None) -> Path:
    """RL Zoo's layout around a recorded file."""
    top = tmp_path / name
    env = top / top.name.rsplit("_", 1)[0]
    env.mkdir(parents=True)
    (top / (model or f"{env.name}.zip")).write_bytes((DATA / case / "model.zip").read_bytes())
    if (DATA / case / "vecnormalize.pkl").exists():
        (env / "vecnormalize.pkl").write_bytes((DATA / case / "vecnormalize.pkl").read_bytes())
    start = "!!python/object/apply:collections.OrderedDict\n"
    (env / "config.yml").write_text(start + (config or "- - - n_envs\n    - 8\n"))
    (env / "args.yml").write_text(start + (args or f"- - - algo\n    - ppo\n  - - env\n    - {env.name}\n"))
    return top


def test_zoo_folder(tmp_path: Path) -> None:
    """The folder, the folder without its number, and the file itself: environment, normaliser and today's name are found."""
    top = folder(tmp_path, "vecnormalize", config="- - - normalize\n    - true\n")
    for path in (top, tmp_path / "ppo" / "LunarLander-v2", top / "LunarLander-v2.zip"):
        info = teachers.load(path).info
        assert info["environment"] == "LunarLander-v3"
        assert info["trained_on"] == "LunarLander-v2"
        assert "LunarLander-v2/vecnormalize.pkl" in info["normaliser"]
        assert any("LunarLander-v3 today" in note for note in info["notes"])
        assert info["doubts"] == []


def test_a_normaliser_that_is_missing_is_said(tmp_path: Path) -> None:
    """The settings speak of one and there is none."""
    info = teachers.load(folder(tmp_path, "ppo_discrete", config="- - - normalize\n    - \"{'norm_obs': True}\"\n")).info
    assert "no vecnormalize.pkl" in info["doubts"][0]
    quiet = teachers.load(folder(tmp_path, "ppo_discrete", "a2c/Pendulum-v1_1", config="- - - normalize\n    - dict(norm_obs=False, norm_reward=True)\n"))
    assert quiet.info["doubts"] == []


def test_time_feature(tmp_path: Path) -> None:
    """TimeFeatureWrapper from config.yml: the share of the time that is left is added, for each environment, cleared at starts."""
    top = folder(tmp_path, "ppo_box", "ppo/CartPole-v1_1", config="- - - env_wrapper\n    - sb3_contrib.common.wrappers.TimeFeatureWrapper\n")
    policy = teachers.load(top)
    assert policy.spec.observations["obs"].shape == (4,)
    fitted = teachers.fit(policy, Spec({"obs": Group((3,), "float32")}, policy.spec.action), "CartPole-v1")
    memory, obs = fitted.init(2), torch.tensor([[0.1, 0.2, 0.3], [1.0, 2.0, 3.0]])
    for step, starts in enumerate(([True, True], [False, False], [False, True])):
        prediction, memory = fitted.act({"obs": obs}, memory, torch.tensor(starts))
        left = torch.tensor([1 - step / 500, 1 - (0 if step == 2 else step) / 500])
        whole, _ = policy.act({"obs": torch.cat([obs, left[:, None]], 1)}, {}, None)
        assert torch.equal(prediction.action.mean, whole.action.mean)


def test_frames_told_by_the_folder(tmp_path: Path) -> None:
    """``frame_stack: 3`` in config.yml."""
    policy = teachers.load(folder(tmp_path, "framestack", config="- - - frame_stack\n    - 3\n"))
    fitted = teachers.fit(policy, Spec({"obs": Group((2,), "float32")}, policy.spec.action))
    assert fitted.spec.observations["obs"].shape == (2,)
    assert any("VecFrameStack" in note for note in fitted.info["notes"])


def test_other_wrappers_are_said(tmp_path: Path) -> None:
    """What changes the environment itself can't be part of a policy."""
    info = teachers.load(folder(tmp_path, "ppo_discrete", config="- - - env_wrapper\n    - - stable_baselines3.common.atari_wrappers.AtariWrapper\n")).info
    assert "AtariWrapper" in info["doubts"][0]


def test_recorded_return_and_shortfall(tmp_path: Path) -> None:
    """evaluations.npz, results.json and a model card; a teacher that plays far under it is told with the likely cause."""
    from distillrl.teachers.environments import shortfall

    top = folder(tmp_path, "ppo_discrete", "ppo/Walker2d-v3_1")
    assert teachers.load(top).info["recorded_return"] is None
    (top / "README.md").write_text("- metrics:\n    - type: mean_reward\n      value: 261.42 +/- 22.95\n      name: mean_reward\n")
    assert teachers.load(top).info["recorded_return"] == {"mean": 261.42, "std": 22.95, "episodes": None, "source": "README.md"}
    (top / "results.json").write_text('{"mean_reward": 250.5, "std_reward": 10.0, "n_eval_episodes": 10}')
    assert teachers.load(top).info["recorded_return"]["mean"] == 250.5
    np.savez(top / "evaluations.npz", results=np.array([[1.0, 3.0], [100.0, 120.0]]), timesteps=np.array([1, 2]))
    info = teachers.load(top).info
    assert info["recorded_return"] == {"mean": 110.0, "std": 10.0, "episodes": 2, "source": "evaluations.npz"}
    assert shortfall(info, "Walker2d-v4", 105.0) is None
    said = shortfall(info, "Walker2d-v5", 20.0)
    assert said is not None
    assert "other dynamics" in said


def test_folders_that_say_too_little(tmp_path: Path) -> None:
    """No model, or several."""
    with pytest.raises(Failed, match="no teacher that is known"):
        teachers.load(tmp_path)
    for name in ("a.zip", "b.zip"):
        (tmp_path / name).write_bytes((DATA / "ppo_discrete" / "model.zip").read_bytes())
    with pytest.raises(Misconfigured, match=r"2 models \(a.zip, b.zip\)"):
        teachers.load(tmp_path)


def test_old_names_are_todays() -> None:
    """Every environment of gymnasium's own that an old name is mapped to exists."""
    import gymnasium

    from distillrl.teachers.environments import TODAY, today

    for old, new in TODAY.items():
        assert new.needs or new.id in gymnasium.registry, old
    assert today("HalfCheetah-v3")[0] == "HalfCheetah-v4"
    assert today("CartPole-v1") == ("CartPole-v1", None)


def test_contact_forces_are_held_at_zero() -> None:
    """Ant's 84 contact forces, which are other numbers today, or gone."""
    from distillrl.teachers import adapting

    policy = teachers.load(DATA / "ppo_box" / "model.zip")
    policy.info["trained_on"] = "Ant-v3"
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patch:
        patch.setitem(adapting.environments.CONTACTS, "Ant", (2, 4))
        for width in (2, 3):
            fitted = teachers.fit(policy, Spec({"obs": Group((width,), "float64")}, policy.spec.action), "Ant-v4")
            obs = torch.tensor([[0.5, -0.5, 9.0][:width]])
            theirs, _ = policy.act({"obs": torch.tensor([[0.5, -0.5, 0.0, 0.0]])}, {}, None)
            assert torch.equal(fitted.act({"obs": obs}, {}, None)[0].action.mean, theirs.action.mean)
            assert "contact forces" in " ".join(fitted.info["notes"])


# ── options ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_vecnormalize_elsewhere_or_left_out(tmp_path: Path) -> None:
    """--vecnormalize FILE, and none."""
    model, pickle = DATA / "vecnormalize" / "model.zip", DATA / "vecnormalize" / "vecnormalize.pkl"
    alone = tmp_path / "model.zip"
    alone.write_bytes(model.read_bytes())
    assert teachers.load(alone).info["normaliser"] == "none found"
    given = teachers.load(alone, teachers.Options(vecnormalize=str(pickle)))
    assert torch.equal(given.sense.steps[0].scale0, teachers.load(model).sense.steps[0].scale0)
    assert len(teachers.load(model, teachers.Options(vecnormalize="none")).sense.steps) == 0
    with pytest.raises(Failed, match="--vecnormalize none"):
        teachers.load(DATA / "ppo_image_flat" / "model.zip", teachers.Options(vecnormalize=str(pickle)))


def test_teacher_sees_names_the_group() -> None:
    """A plain observation of the file is one group of a dict environment."""
    policy = teachers.load(DATA / "ppo_box" / "model.zip", teachers.Options(sees="state"))
    spec = Spec({"state": Group((4,), "float32"), "privileged": Group((9,), "float32")}, policy.spec.action)
    fitted = teachers.fit(policy, spec)
    obs = {"state": torch.randn(3, 4), "privileged": torch.randn(3, 9)}
    assert fitted.act(obs, {}, None)[0].action.mode.shape == (3, 2)
    with pytest.raises(Misconfigured, match="--teacher-sees a,b"):
        teachers.load(DATA / "ppo_box" / "model.zip", teachers.Options(sees="a,b"))


def test_unknown_format_and_file() -> None:
    """The nearest name, and the formats."""
    with pytest.raises(Misconfigured, match="did you mean 'sb3'"):
        teachers.load(DATA / "ppo_box" / "model.zip", teachers.Options(format="sb33"))
    with pytest.raises(Failed, match="stable-baselines3"):
        teachers.load("no/such/file.zip")


def test_loading_is_fast() -> None:
    """Under 50 ms of processor time after imports (the wall clock is other people's too)."""
    import time

    path = DATA / "ppo_defaults" / "model.zip"
    teachers.load(path)
    times = []
    for _ in range(5):
        begin = time.process_time()
        teachers.load(path)
        times.append(time.process_time() - begin)
    assert min(times) < 0.05


def test_digest() -> None:
    """The file's own sha256."""
    import hashlib

    path = DATA / "ppo_box" / "model.zip"
    assert teachers.digest(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert teachers.digest(lambda obs: obs) is None


# ── live objects ──────────────────────────────────────────────────────────────────────────────────────────────────


def space(kind: str) -> Spec:
    """A spec with four numbers and an action space."""
    import gymnasium

    action = {
        "discrete": gymnasium.spaces.Discrete(3),
        "box": gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32),
        "multidiscrete": gymnasium.spaces.MultiDiscrete([2, 3]),
        "multibinary": gymnasium.spaces.MultiBinary(4),
    }[kind]
    return spec_of(gymnasium.spaces.Box(-1.0, 1.0, (4,), np.float32), action)


OBS = {"obs": torch.tensor([[1.0, 2.0, 3.0, 4.0], [-1.0, 0.0, 1.0, 0.5]])}


@pytest.mark.parametrize(
    ("kind", "function", "name"),
    [
        ("discrete", lambda obs: obs[:, :3], "Categorical"),
        ("discrete", lambda obs: (obs[:, 0] > 0).long(), "Deterministic"),
        ("discrete", lambda obs: np.where(np.asarray(obs)[:, 0] > 0, 2, 0), "Deterministic"),
        ("discrete", lambda obs: (obs[:, 0] > 0).astype(int), "Deterministic"),
        ("discrete", lambda obs: torch.distributions.Categorical(logits=obs[:, :3]), "Categorical"),
        ("box", lambda obs: obs[:, :2] * 5, "Deterministic"),
        ("box", lambda obs: (obs[:, :2], torch.full((2,), 0.5)), "Gaussian"),
        ("box", lambda obs: torch.distributions.Normal(obs[:, :2], 0.5), "Gaussian"),
        ("multidiscrete", lambda obs: torch.cat([obs, obs[:, :1]], 1), "MultiCategorical"),
        ("multidiscrete", lambda obs: torch.zeros(len(obs), 2, dtype=torch.int64), "Deterministic"),
        ("multibinary", lambda obs: obs, "Bernoulli"),
    ],
)
def test_functions(kind: str, function: Any, name: str) -> None:
    """What a function gives is told apart by type, shape and dtype; torch or numpy."""
    policy = teachers.load(function, spec=space(kind))
    prediction, _ = policy.act(OBS, policy.init(2), None)
    assert type(prediction.action).__name__ == name
    assert ("distribution" in policy.gives) == (name != "Deterministic")
    assert prediction.action.mode.shape[0] == 2
    twice = {"obs": torch.stack([OBS["obs"]] * 3)}
    assert policy.act(twice, {}, None)[0].action.mode.shape[:2] == (3, 2)


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda obs: obs, r"float32 of shape \[2, 4\] was given for 2 states"),
        (lambda _: "left", "an array or a tensor is right|no action of"),
        (lambda obs: obs[:, :3] * float("nan"), "NaN"),
        (lambda _: 1 / 0, "ZeroDivisionError"),
    ],
)
def test_functions_that_mean_nothing(function: Any, says: str) -> None:
    """A sentence says what was given and what would be right."""
    with pytest.raises(Misconfigured, match=says):
        teachers.load(function, spec=space("discrete"))


def test_a_function_needs_the_spec() -> None:
    """It names no spaces."""
    with pytest.raises(Missing, match="spec"):
        teachers.load(lambda obs: obs)
    with pytest.raises(Misconfigured, match="no teacher"):
        teachers.load(3, spec=space("box"))


def test_modules_give_features_and_stay_as_they_were() -> None:
    """Submodules' outputs by name; dropout is off for the call alone."""
    module = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 3))
    policy = teachers.load(module, spec=space("discrete"))
    assert {"features.0", "features.2"} <= policy.gives
    a, _ = policy.act(OBS, {}, None, frozenset({"action", "features.0"}))
    b, _ = policy.act(OBS, {}, None)
    assert torch.equal(a.action.logits, b.action.logits)
    assert torch.equal(a.features["0"], module[0](OBS["obs"]))
    assert module.training
    assert policy.acting_parameters() == 4 * 8 + 8 + 8 * 3 + 3
    with pytest.raises(Misconfigured, match="can't be called"):
        teachers.load(torch.nn.Linear(5, 3), spec=space("discrete"))


def test_policies_and_players_pass_through() -> None:
    """A student can be the next teacher."""
    policy = teachers.load(DATA / "ppo_box" / "model.zip")
    assert teachers.load(policy) is policy
    assert teachers.load(Player(policy)) is policy


# ── classes of the user's own ─────────────────────────────────────────────────────────────────────────────────────

OWN_CODE = """
import torch
from torch import nn

class Wave(nn.Module):
    def forward(self, x):
        return torch.sin(2 * x)

class Product(nn.Module):
    features_dim = 4
    def __init__(self, observation_space, features_dim=4):
        super().__init__()
        self.left = nn.Linear(observation_space.shape[0], features_dim)
        self.right = nn.Linear(observation_space.shape[0], features_dim)
    def forward(self, observations):
        return self.left(observations) * self.right(observations)

class Wrong(Product):
    def __init__(self, observation_space):
        super().__init__(observation_space, 3)

number = 3
"""


@pytest.fixture
def own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of the user's in the working folder."""
    (tmp_path / "their_nets.py").write_text(OWN_CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "their_nets"


@pytest.mark.parametrize(("case", "name"), [("own_activation", "Wave"), ("own_features", "Product")])
def test_the_users_own_classes_by_name(own_code: str, case: str, name: str) -> None:
    """--model names an activation or a features extractor, told apart by features_dim."""
    _, expected = recorded(case)
    policy = teachers.load(DATA / case / "model.zip", teachers.Options(model=f"{own_code}:{name}"))
    before = torch.get_rng_state()
    prediction, _ = policy.act(observed(policy, expected), {}, None, policy.gives)
    same_as(prediction, expected)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("their_nets", "module:Class is right"),
        ("their_netz:Wave", "No module named"),
        ("their_nets:Waves", "did you mean 'Wave'"),
        ("their_nets:number", "neither an activation"),
        ("their_nets:Wrong", "doesn't fit"),
    ],
)
def test_names_of_classes_that_are_wrong(own_code: str, model: str, says: str) -> None:
    """A sentence, with the nearest name."""
    with pytest.raises(Misconfigured, match=says):
        teachers.load(DATA / "own_features" / "model.zip", teachers.Options(model=model))


class FakePolicy(torch.nn.Module):
    """As much of SB3's policy as is asked."""

    squash_output = False

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Linear(4, 3)

    def set_training_mode(self, mode: bool) -> None:
        self.train(mode)

    def get_distribution(self, obs: torch.Tensor) -> Any:
        assert not self.training
        return type("Distribution", (), {"distribution": torch.distributions.Categorical(logits=-2 * self.net(obs))})()

    def predict_values(self, obs: torch.Tensor) -> torch.Tensor:
        return obs.sum(-1, keepdim=True)


def fake_model(case: str, policy: Any = None) -> Any:
    """An object as SB3's loaded models are, whose save() writes a recorded file."""
    import gymnasium

    def save(self: Any, file: Any, exclude: Any = None) -> None:
        file.write((DATA / case / "model.zip").read_bytes())

    base = type("BaseAlgorithm", (), {"__module__": "stable_baselines3.common.base_class", "save": save, "get_vec_normalize_env": lambda _: None})
    model = type("PPO", (base,), {})()
    model.policy = policy
    model.observation_space, model.action_space = gymnasium.spaces.Box(-1, 1, (4,), np.float32), gymnasium.spaces.Discrete(3)
    return model


def test_a_loaded_model() -> None:
    """It is the same policy as its file."""
    policy = teachers.load(fake_model("sac"))
    theirs = teachers.load(DATA / "sac" / "model.zip")
    obs = {"obs": torch.randn(5, 4)}
    assert torch.equal(policy.act(obs, {}, None)[0].action.mean, theirs.act(obs, {}, None)[0].action.mean)


def test_a_loaded_model_of_the_users_own_class() -> None:
    """Its own code is asked; the notes say why."""
    inner = FakePolicy()
    policy = teachers.load(fake_model("own_policy", inner))
    obs = {"obs": torch.randn(5, 4)}
    prediction, _ = policy.act(obs, policy.init(5), None, policy.gives)
    assert torch.allclose(prediction.action.log_probs, (-2 * inner.net(obs["obs"])).log_softmax(-1), atol=1e-6)
    assert torch.equal(prediction.value, obs["obs"].sum(-1))
    assert policy.act({"obs": torch.zeros(2, 3, 4)}, {}, None)[0].action.mode.shape == (2, 3)
    assert inner.training
    assert "its own code is asked" in policy.info["notes"][0]
    assert json.loads(json.dumps(policy.info)) == policy.info
    with pytest.raises(Misconfigured):
        teachers.load(fake_model("own_policy", object()))


# ── what it says, and HER of SB3 1.0 ──────────────────────────────────────────────────────────────────────────────


def test_environments_that_fit_are_named() -> None:
    """By the spaces alone."""
    from distillrl.teachers.environments import fitting

    assert fitting(Spec({"obs": Group((8,), "float32")}, space("discrete").action)) == []
    lander = Spec({"obs": Group((8,), "float32")}, teachers.load(DATA / "ppo_discrete" / "model.zip").spec.action)
    assert fitting(lander) == ["LunarLander-v3"]
    assert fitting(Spec({"obs": Group((), "int64", (16,))}, lander.action)) == ["FrozenLake-v1"]


def test_goals_are_joined_as_sb3_1_did() -> None:
    """The observation, then the goal that is desired, as one list; told by the file, with or without statistics."""
    policy = teachers.load(DATA / "ppo_box" / "model.zip")
    policy.info["wrappers"] = {"goal": True}
    spec = Spec({"achieved_goal": Group((1,), "float32"), "desired_goal": Group((1,), "float32"), "observation": Group((3,), "float32")}, policy.spec.action)
    fitted = teachers.fit(policy, spec)
    obs = {"achieved_goal": torch.randn(2, 1), "desired_goal": torch.randn(2, 1), "observation": torch.randn(2, 3)}
    joined = torch.cat([obs["observation"], obs["desired_goal"]], -1)
    theirs = policy.act({"obs": joined}, {}, None)[0].action.mean
    assert torch.equal(fitted.act(obs, {}, None)[0].action.mean, theirs)
    policy.info["wrappers"] = {"goal": True, "time": True}
    policy.info["trained_on"] = "FetchReach-v1"
    short = Spec({**spec.observations, "observation": Group((2,), "float32")}, policy.spec.action)
    timed = teachers.fit(policy, short, "FetchReach-v4")
    first = {**obs, "observation": obs["observation"][:, :2]}
    joined = torch.cat([first["observation"], torch.ones(2, 1), obs["desired_goal"]], -1)
    assert torch.equal(timed.act(first, timed.init(2), torch.ones(2, dtype=torch.bool))[0].action.mean, policy.act({"obs": joined}, {}, None)[0].action.mean)


def test_goals_with_statistics() -> None:
    """Statistics of the goal environment's groups beside a list."""
    from distillrl.teachers import sb3, sb3facts, sb3policies
    from distillrl.teachers.normalisers import Normaliser

    model = DATA / "ppo_box" / "model.zip"
    facts = sb3facts.read(model, "here")
    moments = {k: (np.full(n, 1.0), np.full(n, 4.0)) for k, n in (("achieved_goal", 1), ("desired_goal", 1), ("observation", 3))}
    policy = sb3.assemble(facts, sb3policies.build(facts), Normaliser(moments, 10.0, 0.0, 5.0), "there")
    assert set(policy.spec.observations) == {"observation", "desired_goal"}
    obs = {"desired_goal": torch.randn(2, 1), "observation": torch.randn(2, 3)}
    joined = (torch.cat([obs["observation"], obs["desired_goal"]], -1) - 1) / 2
    theirs = teachers.load(model).act({"obs": joined}, {}, None)[0].action.mean
    assert torch.allclose(policy.act(obs, {}, None)[0].action.mean, theirs, atol=1e-6)
