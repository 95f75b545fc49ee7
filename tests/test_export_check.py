"""Playing an environment with the exported thing itself: in machine code, onnxruntime, node, and a real browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from export_cases import CASES, generator
from test_export_targets import need_runtime

from distillrl import exporting, loading, parity, stats, students
from distillrl.actions import Categorical, Deterministic
from distillrl.envs import EnvOptions
from distillrl.errors import Misconfigured
from distillrl.records import ActionSpace, Group, Prediction, Spec

CARTPOLE = Spec({"obs": Group((4,), "float32")}, ActionSpace("discrete", n=2))


def balancing() -> object:
    """A linear policy that balances CartPole, by hand: push to where the pole leans and turns."""
    policy = students.make("mlp:", CARTPOLE, generator())
    with torch.no_grad():
        policy.out.weight.copy_(torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.1, 0.4, 3.0, 1.0]]))
        policy.out.bias.zero_()
    policy.info["environment"] = "CartPole-v1"
    return policy


def need(*tools: str) -> None:
    for tool in tools:
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed: apt-get install {'nodejs' if tool == 'node' else tool}")


@pytest.mark.parametrize("to", ["python", "compiled", "c", "c-int8", "js", "onnx", "torch"])
def test_check_plays_with_the_exported_thing(to, tmp_path):
    need(*{"js": ["node"], "c": ["gcc"], "c-int8": ["gcc"], "compiled": ["gcc"]}.get(to, []))
    if to == "onnx":
        pytest.importorskip("onnxruntime")
    policy = balancing()
    exported = exporting.export(policy, to, tmp_path)
    found = parity.check(exported, policy, "CartPole-v1", states=600, episodes=3)
    assert found.states >= 600
    assert found.to == to
    assert found.policy.value == 500
    if to == "c-int8":
        assert found.agreement > 0.9
        return
    assert found.clear_disagreements == 0
    assert found.raw_error < 1e-5
    assert found.exported.value == 500
    assert found.same_return


def test_check_tells_a_wrong_export(tmp_path):
    policy = balancing()
    exported = exporting.export(policy, "python", tmp_path)
    text = exported.files[0].read_text().replace("return raw.argmax(-1)", "return raw.argmin(-1)")
    exported.files[0].write_text(text)
    found = parity.check(exported, policy, "CartPole-v1", states=300, episodes=5)
    assert found.agreement == 0
    assert found.clear_disagreements >= 290
    assert found.exported.value < 50
    assert not found.same_return
    assert not found.same
    assert "NOT the policy" in found.sentences()[-1]


def test_a_box_is_compared_by_its_components(tmp_path):
    from distillrl import envs

    options = envs.EnvOptions("Pendulum-v1")
    vector = envs.make(options, 1, envs.Seeds(0, "dry"))
    policy = students.make("mlp:16", vector.spec, generator())
    vector.close()
    found = parity.check(exporting.export(policy, "python", tmp_path), policy, "Pendulum-v1", states=300, episodes=2)
    assert found.action_error < 1e-5
    assert found.agreement == 1
    assert found.difference.value == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize(
    ("space", "logits", "expected"),
    [
        (ActionSpace("discrete", n=3), [[1.0, 4.0, 2.0]], [2.0]),
        (ActionSpace("discrete", n=1), [[1.0]], [np.inf]),
        (ActionSpace("multidiscrete", (2,), nvec=(2, 3)), [[1.0, 0.0, 5.0, 4.5, 0.0]], [0.5]),
        (ActionSpace("multibinary", (2,), n=2), [[-3.0, 0.25]], [0.25]),
    ],
)
def test_how_far_the_best_choice_is_ahead(space, logits, expected):
    assert parity.margin(torch.tensor(logits), Spec({}, space)).tolist() == expected


def test_raw_outputs_are_logits_means_or_q():
    logits = torch.zeros(2, 3)
    assert parity.raw_outputs(Prediction(Categorical(logits))) is logits
    assert parity.raw_outputs(Prediction(Deterministic(torch.zeros(2)), q=logits)) is logits
    assert parity.raw_outputs(Prediction(Deterministic(torch.zeros(2)))) is None


def test_visited_states_are_the_policys():
    states = parity.visited(balancing(), "CartPole-v1", 200)["obs"]
    assert states.shape[1:] == (4,)
    assert len(states) >= 200
    assert np.abs(states[:, 2]).max() < 0.21
    assert np.array_equal(states, parity.visited(balancing(), "CartPole-v1", 200)["obs"])


JS = """
import { Policy, passport } from "./policy.mjs";
const policy = new Policy();
const tries = [
  () => policy.act([1, 2, 3]),
  () => policy.act([1, 2, 3, NaN]),
  () => policy.act([1, 2, 3, -Infinity]),
  () => policy.act(undefined),
  () => policy.act({ other: [1, 2, 3, 4] }),
  () => policy.act([1, 2, 3, "x"]),
];
const errors = tries.map((f) => { try { return f(); } catch (e) { return e.name + ": " + e.message; } });
policy.reset();
const first = Array.from(policy.act([1, 2, 3, 4])), second = Array.from(policy.act(new Float32Array([1, 2, 3, 4])));
policy.reset();
const again = Array.from(policy.act({ obs: [1, 2, 3, 4] }));
console.log(JSON.stringify({ errors, first, second, again, family: passport.spec.action.kind }));
"""


def test_the_module_refuses_bad_input_and_resets(tmp_path):
    need("node")
    file = exporting.export(CASES["gru"](), "js", tmp_path).files[0]
    shutil.copy(file, tmp_path / "policy.mjs")
    (tmp_path / "main.mjs").write_text(JS)
    said = json.loads(subprocess.run(["node", tmp_path / "main.mjs"], capture_output=True, text=True, check=True).stdout)
    assert all(e.startswith("RangeError: observation obs") for e in said["errors"]), said["errors"]
    assert said["first"] == said["again"] != said["second"]
    assert said["family"] == "box"


def test_the_module_refuses_what_is_no_whole_number(tmp_path):
    need("node")
    shutil.copy(exporting.export(CASES["taxi"](), "js", tmp_path).files[0], tmp_path / "policy.mjs")
    (tmp_path / "main.mjs").write_text(
        'import { Policy } from "./policy.mjs";\nconst p = new Policy();\n'
        "console.log(JSON.stringify([3, 0.5, 1e12, 500].map((x) => { try { return p.act(x) >= 0; } catch (e) { return e.message; } })));\n"
    )
    said = json.loads(subprocess.run(["node", tmp_path / "main.mjs"], capture_output=True, text=True, check=True).stdout)
    assert said == [True, "observation obs holds 0.5, which is not whole or out of range", "observation obs holds 1000000000000, which is not whole or out of range", "a category outside of 0 to 499"]


def browser(page, *more: str) -> str:
    """The page's DOM after four seconds of its own clock, in headless Chromium."""
    need("chromium")
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", f"--user-data-dir={page.parent / 'profile'}", "--virtual-time-budget=4000"]
    done = subprocess.run(["chromium", *flags, *more, "--dump-dom", f"file://{page}?steps=3000"], capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


def test_the_page_plays_cartpole_in_a_browser(tmp_path):
    page = exporting.export(balancing(), "js", tmp_path).files[1]
    assert page.name == "policy.html"
    dom = browser(page)
    figures = dict(re.findall(r'<dd id="(\w+)">([^<]*)</dd>', dom))
    assert figures["last"] == "500"
    assert re.fullmatch(r"500\.0 of [6-9]", figures["mean"])
    assert 0 < float(figures["time"]) < 1000
    assert 0 <= int(figures["steps"]) <= 500  # of the episode that was being played when the page was read


def test_other_environments_get_no_page(tmp_path):
    assert [f.name for f in exporting.export(CASES["discrete"](), "js", tmp_path).files] == ["policy.js"]


@pytest.mark.parametrize("word", ["gru:6", "lstm:5:4"])
@pytest.mark.parametrize("to", ["python", "c", "onnx", "js"])
def test_a_policy_with_memory_is_compared_with_its_memory(word, to, tmp_path):
    need(*{"js": ["node"], "c": ["gcc"]}.get(to, []))
    if to == "onnx":
        pytest.importorskip("onnxruntime")
    policy = students.make(word, CARTPOLE, generator())
    with torch.no_grad():
        for p in policy.parameters():
            p.mul_(3)  # so that what it remembers decides
    found = parity.check(exporting.export(policy, to, tmp_path), policy, EnvOptions("CartPole-v1", max_episode_steps=40), states=300, episodes=4)
    assert found.clear_disagreements == 0
    assert found.raw_error < 1e-4
    assert found.difference.value == 0


def test_the_command_checks_in_the_environment_as_it_is_asked_for(tmp_path):
    from click.testing import CliRunner

    from distillrl import artifact
    from distillrl.cli import main

    policy = balancing()
    artifact.save(tmp_path / "s.safetensors", policy.header(), policy.artifact_tensors())
    ask = ["export", str(tmp_path / "s.safetensors"), "--to", "python", "--out", str(tmp_path / "out"), "--max-episode-steps", "30", "--episodes", "2", "--states", "50"]
    done = CliRunner().invoke(main, [*ask, "--check", "CartPole-v1"])
    assert done.exit_code == 0, done.output
    assert "return 30.00 (30.00 to 30.00) as played by the export" in done.output
    assert "the export is the policy" in done.output
    done = CliRunner().invoke(main, ask, standalone_mode=False)
    assert "name it with --env" in str(done.exception)
    done = CliRunner().invoke(main, [*ask, "--check", "CartPole-v1", "--env-kwargs", "sutton_barto_reward=true"])
    assert "return 30.00" not in done.output


def test_another_environment_is_refused_in_a_sentence(tmp_path):
    policy = balancing()
    exported = exporting.export(policy, "python", tmp_path)
    with pytest.raises(Misconfigured, match=r"the policy does not fit Acrobot-v1: observation 'obs': the policy sees"):
        parity.check(exported, policy, "Acrobot-v1", states=10, episodes=0)
    with pytest.raises(Misconfigured, match="the policy does not fit Acrobot-v1"):
        exporting.export(policy, "c-int8", tmp_path, env="Acrobot-v1")


def test_a_wrong_action_of_a_box_is_told_where_the_return_says_nothing(tmp_path):
    """A tenth of a newton changes no return that some episodes could show."""
    from distillrl import envs

    vector = envs.make(EnvOptions("Pendulum-v1"), 1, envs.Seeds(0, "dry"))
    policy = students.make("mlp:16", vector.spec, generator())
    vector.close()
    exported = exporting.export(policy, "python", tmp_path)
    assert parity.check(exported, policy, "Pendulum-v1", states=100, episodes=0).same
    text = exported.files[0].read_text()
    exported.files[0].write_text(text.replace("    return np.clip(raw", "    return 0.001 + np.clip(raw"))
    assert exported.files[0].read_text() != text
    found = parity.check(exported, policy, "Pendulum-v1", states=100, episodes=0)
    assert found.action_error == pytest.approx(0.001, rel=1e-2)
    assert not found.same
    assert found.sentences()[-1] == "the export is NOT the policy: its actions differ"


def test_a_return_is_the_same_that_lies_in_the_policys_interval():
    def checked(to: str, value: float, low: float, high: float) -> parity.Check:
        exported, policy = stats.Interval(100 + value, 90.0, 110.0), stats.Interval(100.0, 95.0, 105.0)
        return parity.Check(to, 100, 1.0, 0, 0.0, None, exported, policy, stats.Interval(value, low, high))

    assert checked("c-int8", 0.4, 0.1, 0.9).same  # all its episodes were a little better: that is no fault
    assert checked("python", -7.0, -20.0, 2.0).same
    assert not checked("c-int8", -7.0, -9.0, -5.0).same


def turned(files: Path) -> tuple[object, object]:
    """A file of SB3's whose images have the channels first, and an environment that gives them last, as all do."""
    import gymnasium

    policy = loading.load(files / "sb3" / "ppo_cnn" / "model.zip").policy
    (channels, height, width) = policy.spec.observations["obs"].shape

    class Noise(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(0, 255, (height, width, channels), np.uint8)
        action_space = gymnasium.spaces.Discrete(policy.spec.action.n)

        def reset(self, seed=None, options=None):
            super().reset(seed=seed)
            self.left = 8
            return self.step(0)[0], {}

        def step(self, action):
            self.left -= 1
            return self.np_random.integers(0, 256, (height, width, channels), np.uint8), float(action), self.left <= 0, False, {}

    return policy, Noise


@pytest.mark.parametrize("to", ["python", "onnx"])
def test_images_come_in_as_the_environment_gives_them(to, tmp_path):
    need_runtime(to)
    policy, env = turned(Path(__file__).parent / "data")
    exported = exporting.export(policy, to, tmp_path, env=env)
    found = parity.check(exported, policy, env, states=30, episodes=2)
    assert found.same
    assert exporting.opened(exported).spec.observations["obs"].shape == env.observation_space.shape


def test_what_was_exported_without_its_environment_is_not_checked_in_it(tmp_path):
    policy, env = turned(Path(__file__).parent / "data")
    exported = exporting.export(policy, "python", tmp_path)
    with pytest.raises(Misconfigured, match=r"exported without its environment.*observation 'obs'"):
        parity.check(exported, policy, env, states=30, episodes=0)
