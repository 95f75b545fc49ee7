"""The loop end to end on small problems: every method, determinism, resume and kill, the run folder, bad input."""

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

import distillrl
from distillrl import config as configuration
from distillrl import distillation, selecting
from distillrl.actions import Deterministic
from distillrl.agreeing import Agreed
from distillrl.config import Config, Phase
from distillrl.errors import Failed, Misconfigured, Missing
from distillrl.methods import METHODS
from distillrl.records import ActionSpace, Prediction, Progress, Spec, Task


class Corridor(gymnasium.Env):
    """A point on a line, pushed towards 0: reward −|x|, 20 steps; the best action is −sign(x) or −x."""

    def __init__(self, kind="discrete", nan_at=None):
        self.observation_space = spaces.Box(-3, 3, (2,), np.float32)
        self.action_space = {
            "discrete": spaces.Discrete(3, start=-1),
            "box": spaces.Box(np.array([-1.0], np.float32), np.array([1.0], np.float32)),
            "multidiscrete": spaces.MultiDiscrete([2, 2]),
            "multibinary": spaces.MultiBinary(2),
        }[kind]
        self.kind, self.nan_at = kind, nan_at

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x, self.t = float(self.np_random.uniform(-2, 2)), 0
        return self._obs(), {}

    def step(self, action):
        push = {"discrete": lambda a: float(a), "box": lambda a: float(a[0])}.get(self.kind, lambda a: float(a[0]) - float(a[1]))(action)
        self.x, self.t = float(np.clip(self.x + 0.5 * push, -3, 3)), self.t + 1
        return self._obs(), -abs(self.x), False, self.t >= 20, {}

    def _obs(self):
        return np.array([np.nan if self.t == self.nan_at else self.x, 1.0], np.float32)


def steer(kind):
    """A teacher as a plain function: logits or actions that push towards 0."""

    def discrete(obs):
        x = obs[:, :1]
        return torch.cat([4 * x, 0.5 - x.abs(), -4 * x], -1)

    def box(obs):
        return (-2 * obs[:, :1]).clamp(-1, 1)

    def binary(obs):
        return torch.cat([-6 * obs[:, :1], 6 * obs[:, :1]], -1)

    def two(obs):
        x = 6 * obs[:, :1]
        return torch.cat([x, -x, -x, x], -1)

    return {"discrete": discrete, "box": box, "multibinary": binary, "multidiscrete": two}[kind]


def small(**changes):
    return replace(Config(student="mlp:8", slots=8, env_steps=6000, verdict_episodes=24, select_episodes=12, until="retention=0.97"), **changes)


def run(tmp_path, kind="discrete", name="r", teacher=None, **changes):
    return distillrl.distill(teacher or steer(kind), lambda: Corridor(kind), config=small(**changes), out=tmp_path / name)


USUAL = ["auto", "behaviour-cloning", "dagger", "on-policy", "policy-distillation"]  # the others: test_methods.py


@pytest.mark.parametrize(("kind", "method"), [(k, m) for k in ("discrete", "box", "multidiscrete", "multibinary") for m in USUAL if m != "auto" or k == "box"])  # of choices auto is dagger
def test_every_method_solves_a_trivial_environment_with_every_kind_of_action(tmp_path, kind, method):
    teacher = steer(kind)
    if kind == "box" and method == "policy-distillation":
        with pytest.raises(Missing, match=r"these methods would do: .*dagger"):
            run(tmp_path, kind, method=method)
        teacher = gaussian_teacher()
    result = run(tmp_path, kind, teacher=teacher, method=method)
    assert result.reached
    assert result.verdict["retention"]["value"] > 0.95
    assert result.verdict["method"] == method


def gaussian_teacher():
    class Gauss(nn.Module):
        def forward(self, obs):
            return -1.5 * obs[:, :1], torch.full_like(obs[:, :1], 0.3)

    return Gauss()


def test_a_student_scatters_as_its_teacher_or_not_at_all(tmp_path):
    gaussian = run(tmp_path, "box", name="a", teacher=gaussian_teacher(), until="none", env_steps=4000)
    assert gaussian.policy.policy.log_std.exp().item() == pytest.approx(0.3, rel=0.05)
    lines = (gaussian.folder / "metrics.jsonl").read_text()
    assert "warning" not in lines, "the two terms share no parameter: neither outweighs the other"
    sure = run(tmp_path, "box", name="b", until="none", env_steps=700)
    assert "distribution" not in sure.policy.policy.gives
    assert sure.verdict["student"]["return_sampled"] is None


def test_the_run_folder_is_what_is_promised(tmp_path):
    result = run(tmp_path)
    verdict = json.loads((result.folder / "verdict.json").read_text())
    for key in ("method", "seed", "env", "env_steps", "teacher_labels", "seconds", "agreement", "retention", "teacher", "student", "random"):
        assert key in verdict
    assert set(verdict["retention"]) == {"value", "low", "high"}
    for who in ("teacher", "student", "random"):
        assert {"mean", "low", "high", "worst", "episodes"} <= set(verdict[who]["return"])
        assert {"parameters", "bytes", "latency_us", "return_sampled"} <= set(verdict[who])
    lines = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == list(range(len(lines)))
    assert lines[-1]["env_steps"] == verdict["env_steps"]
    config = tomllib.loads((result.folder / "config.toml").read_text())
    assert config["phase"][0]["terms"]
    assert config["backend"].startswith("gymnasium:")
    assert not (result.folder / "checkpoint").exists()


def test_steps_that_only_reset_are_not_counted(tmp_path):
    result = run(tmp_path, until="none", env_steps=2000, slots=4)
    lines = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    # 64 ticks of 4 slots; an episode is 20 steps and one tick that resets: 64 = 3·21 + 1 ticks hold 61 steps.
    assert lines[0]["env_steps"] == 4 * 61
    assert result.verdict["env_steps"] <= 2000


def test_one_seed_gives_the_same_bytes_and_another_seed_others(tmp_path):
    one, same, other = (run(tmp_path, name=n, seed=s, env_steps=2500, until="none") for n, s in (("a", 0), ("b", 0), ("c", 1)))
    read = [(r.folder / "student.safetensors").read_bytes() for r in (one, same, other)]
    assert read[0] == read[1]
    assert read[0] != read[2]


def test_an_interrupted_run_goes_on_to_the_same_bytes(tmp_path):
    whole = distillrl.distill(steer("discrete"), lambda: Corridor(), config=small(until="none", env_steps=3000, checkpoint_seconds=0.0), out=tmp_path / "a")

    def stop(metrics):
        if metrics.get("round") == 4:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match="--resume"):
        distillrl.distill(steer("discrete"), lambda: Corridor(), config=small(until="none", env_steps=3000, checkpoint_seconds=0.0), out=tmp_path / "b", show=stop)
    rounds = len((tmp_path / "b" / "metrics.jsonl").read_text().splitlines())
    assert rounds == 5, "the round was finished"
    for part in (tmp_path / "b" / "checkpoint").glob("data-*.pt"):
        rows = torch.load(part, weights_only=True).values()
        assert all(v.untyped_storage().nbytes() == v.nbytes for v in rows), "a part holds its own rows, not all that the run has room for"
    resumed = distillrl.distill(steer("discrete"), lambda: Corridor(), resume=tmp_path / "b")
    assert (resumed.folder / "student.safetensors").read_bytes() == (whole.folder / "student.safetensors").read_bytes()
    a, b = ([{k: v for k, v in json.loads(x).items() if "second" not in k} for x in (f / "metrics.jsonl").read_text().splitlines()] for f in (whole.folder, resumed.folder))
    assert a == b
    with pytest.raises(Misconfigured, match="has ended"):
        distillrl.distill(steer("discrete"), lambda: Corridor(), resume=tmp_path / "b")
    assert len((tmp_path / "b" / "metrics.jsonl").read_text().splitlines()) == len(a), "what was measured of a run that has ended stays"


@pytest.fixture(scope="module")
def whole(tmp_path_factory, lander):
    """The command of a short run that writes a checkpoint every round, and the bytes that it ends in."""
    place = tmp_path_factory.mktemp("whole")
    config = place / "fast.toml"
    config.write_text("checkpoint_seconds = 0.0\nverdict_episodes = 2\nselect_episodes = 2\n")
    command = [sys.executable, "-m", "distillrl", "distill", str(lander), "--env", "LunarLander-v3", "--until", "none", "--env-steps", "4000", "--quiet"]
    command += ["--config", str(config)]
    subprocess.run([*command, "--out", str(place / "r")], check=True, capture_output=True, timeout=300)
    return command, (place / "r" / "student.safetensors").read_bytes()


def test_killed_at_any_moment_it_resumes_to_the_same_bytes(tmp_path, whole):
    """kill -9 of real processes, at a few moments; bench/kills.py does thirty."""
    command, wanted = whole
    folder = tmp_path / "killed"
    for lines in (1, 4):
        process = subprocess.Popen([*command, "--out", str(folder)] if lines == 1 else [*command[:4], "--resume", str(folder), "--quiet"], stderr=subprocess.PIPE)
        metrics = folder / "metrics.jsonl"
        while process.poll() is None and (not metrics.exists() or metrics.read_bytes().count(b"\n") < lines):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.02)
        process.kill()
        process.wait()
        configuration.build(configuration.read(folder / "config.toml"))
        assert all(json.loads(line) for line in metrics.read_text().splitlines()[:-1])
    subprocess.run([*command[:4], "--resume", str(folder), "--quiet"], check=True, capture_output=True, timeout=300)
    assert (folder / "student.safetensors").read_bytes() == wanted


def test_a_full_disk_is_a_sentence_and_the_run_goes_on_once_there_is_room(tmp_path, whole):
    """A limit on a file's size stands for the disk: writing past it fails as on a full one."""
    command, wanted = whole
    folder = tmp_path / "r"
    full = subprocess.run([*command, "--out", str(folder)], capture_output=True, text=True, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000)))
    assert full.returncode == 2
    assert "can't be written: File too large" in full.stderr
    assert "Traceback" not in full.stderr
    configuration.build(configuration.read(folder / "config.toml"))
    subprocess.run([*command[:4], "--resume", str(folder), "--quiet"], check=True, capture_output=True)
    assert (folder / "student.safetensors").read_bytes() == wanted


def test_the_expansion_of_a_method_runs_the_same(tmp_path, lander):
    settled = distillation.expanded(Config(teacher=str(lander), env="LunarLander-v3", env_steps=1200, until="none", verdict_episodes=2, select_episodes=2))
    written = tmp_path / "shown.toml"
    written.write_text(configuration.dumps(settled))
    again = configuration.build(configuration.read(written))
    assert again == settled
    a = distillrl.distill(config=again, out=tmp_path / "a")
    b = distillrl.distill(lander, "LunarLander-v3", config=Config(env_steps=1200, until="none", verdict_episodes=2, select_episodes=2), out=tmp_path / "b")
    assert (a.folder / "student.safetensors").read_bytes() == (b.folder / "student.safetensors").read_bytes()


@pytest.mark.parametrize("name", METHODS)
def test_a_method_read_from_its_file_sums_its_terms_in_the_same_order(name):
    space = ActionSpace("discrete", n=2)
    spec = Spec({}, space, tasks=(Task("A", {}, space), Task("B", {}, space)) if name == "distral" else ())
    phases = METHODS[name].expand(frozenset({"action", "distribution", "q", "value", "features.last"}), spec)
    again = configuration.build(tomllib.loads(configuration.dumps(Config(phase=phases))))
    assert [list(p.terms.items()) for p in again.phase] == [list(p.terms.items()) for p in phases]


def test_a_run_ended_by_the_clock_notes_its_round(tmp_path):
    result = run(tmp_path, until="none", env_steps=10**6, seconds=0.5)
    assert result.verdict["ended_by"] == "seconds"
    config = tomllib.loads((result.folder / "config.toml").read_text())
    assert config["last_round"] == result.verdict["rounds"]
    assert "seconds" not in config


def test_a_run_ended_by_the_clock_comes_again_whatever_hangs_on_shares_of_the_budget(tmp_path):
    phases = tuple(Phase(terms={"forward_kl": 1}, lr=lr, steps=8, first=8, until=until) for lr, until in ((1e-2, "spent=0.5"), (0.1, "none")))
    first = run(tmp_path, until="none", env_steps=10**6, seconds=0.3, phase=phases)
    written = configuration.build(configuration.read(first.folder / "config.toml"), "config.toml")
    again = distillrl.distill(steer("discrete"), lambda: Corridor(), config=written, out=tmp_path / "again")
    assert again.verdict["rounds"] == first.verdict["rounds"] > 1
    assert (first.folder / "student.safetensors").read_bytes() == (again.folder / "student.safetensors").read_bytes()


def test_phases_follow_each_other_and_terms_mix(tmp_path):
    phases = (Phase(beta="1", rounds=2, terms={"nll": 1}), Phase(beta="0", rounds=3, terms={"forward_kl": "linear(1, 0.5, over=3)", "reverse_kl": {"weight": 0.1}}))
    result = run(tmp_path, until="none", phase=phases)
    lines = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["phase"] for line in lines] == [0, 0, 1, 1, 1]
    assert lines[-1]["share.forward_kl"] + lines[-1]["share.reverse_kl"] == pytest.approx(1)


def test_init_begins_from_a_student(tmp_path):
    first = run(tmp_path, name="a")
    second = run(tmp_path, name="b", init=str(first.folder / "student.safetensors"), env_steps=700, until="none")
    lines = (second.folder / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["agreement"] > 0.9


def test_a_loaded_student_plays(tmp_path):
    result = run(tmp_path)
    player = distillrl.load(result.folder / "student.safetensors")
    action, memory = player.predict(np.array([1.5, 1.0], np.float32))
    assert action == -1, "start is added"
    actions, _ = player.predict(np.array([[1.5, 1.0], [-1.5, 1.0]], np.float32), memory, [False, False])
    assert actions.tolist() == [-1, 1]
    with pytest.raises(Misconfigured, match=r"\(3,\)"):
        player.predict(np.zeros(3, np.float32))


def test_nan_of_the_environment_is_told_and_kept(tmp_path):
    with pytest.raises(Failed, match=r"round 0: the environment gave an observation 'obs' that is NaN.*failed-round-0.pt"):
        distillrl.distill(steer("discrete"), lambda: Corridor(nan_at=7), config=small(), out=tmp_path / "r")
    assert torch.load(tmp_path / "r" / "failed-round-0.pt", weights_only=True)["obs"]


def test_nan_of_the_teacher_is_told(tmp_path):
    def broken(obs):
        return steer("discrete")(obs) * torch.where(obs[:, :1].abs() > 1.9, float("nan"), 1.0)

    with pytest.raises(Failed, match="the teacher gave NaN or infinity"):
        run(tmp_path, teacher=broken)


def test_a_student_larger_than_its_teacher_is_warned_of(tmp_path):
    notes = []
    teacher = nn.Linear(2, 3)
    distillrl.distill(teacher, lambda: Corridor(), config=small(env_steps=700, until="none"), out=tmp_path / "r", show=lambda m: notes.append(m.get("note")))
    assert any(n and "more than its teacher's 9" in n for n in notes)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"studnet": "mlp:4"}, "did you mean 'student'"),
        ({"seed": "one"}, "a whole number is right"),
        ({"seed": -1}, "from 0 on"),
        ({"until": "retention"}, "retention=0.99"),
        ({"until": "retension=0.9"}, "did you mean 'retention'"),
        ({"phase": [{"beta": "1", "kepp": "all"}]}, "phase 1: unknown key 'kepp'"),
        ({"phase": [{"lr": 0.0}]}, "learning rate above 0"),
        ({"phase": [{"average": 1.0}]}, "average"),
        ({"phase": {"beta": "1"}}, r"\[\[phase\]\]"),
        ({"slots": True}, "a whole number"),
        ({"env_steps": 0}, "above 0"),
    ],
)
def test_wrong_configurations_are_sentences(data, words):
    with pytest.raises(Misconfigured, match=words):
        configuration.build(data)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"phase": (Phase(terms={"forward_kll": 1}),)}, "forward_kl"),
        ({"phase": (Phase(terms={"forward_kl": {"temprature": 2}}),)}, "temperature"),
        ({"phase": (Phase(terms={}),)}, "no terms"),
        ({"phase": (Phase(beta="power(-1)", terms={"nll": 1}),)}, "negative"),
        ({"method": "daggr"}, "dagger"),
        ({"student": "mlp:4x0"}, "between 1"),
        ({"student": "mlp:8:tanhh"}, "tanh"),
    ],
)
def test_wrong_choices_fail_before_round_0(tmp_path, changes, words):
    with pytest.raises(Misconfigured, match=words):
        run(tmp_path, **changes)


def test_phases_that_are_over_before_an_evaluation_was_worth_its_steps_end_with_one(tmp_path):
    result = run(tmp_path, phase=(Phase(terms={"forward_kl": 1}, steps=4, first=4, rounds=1),))
    assert result.verdict["ended_by"] == "phases"
    assert result.verdict["env_steps"] == 32, "fewer than a third of what the teacher's evaluation takes"


@pytest.mark.parametrize("changes", [{"see": "normalise=running"}, {"phase": (Phase(terms={"forward_kl": 1}, keep="round", steps=20, first=20, updates=2),)}])
def test_a_last_round_that_would_only_reset_goes_one_step_on(tmp_path, changes):
    phase = (Phase(terms={"forward_kl": 1}, steps=20, first=20, updates=2),)  # an episode of each of 8 slots, and 8 steps are left
    result = run(tmp_path, **{"phase": phase, **changes}, env_steps=168, until="none", verdict_episodes=4, select_episodes=4)
    assert (result.verdict["rounds"], result.verdict["env_steps"]) == (2, 168)


def test_a_folder_that_holds_a_run_is_not_overwritten(tmp_path):
    run(tmp_path, env_steps=600, until="none")
    with pytest.raises(Misconfigured, match="already holds a run"):
        run(tmp_path, env_steps=600, until="none")


def test_a_place_that_cannot_be_written_fails_before_the_work(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(Failed, match="can't be written"):
        distillrl.distill(steer("discrete"), lambda: Corridor(), config=small(), out=Path(blocked) / "r")


def test_the_student_that_is_kept_is_one_that_reached_the_aim():
    student = SimpleNamespace(artifact_tensors=dict, header=dict)
    state: Any = SimpleNamespace(hard={"judged": None}, best=None, progress=Progress())
    for number, (mean, reached, kept) in enumerate([(5.0, False, 0), (4.0, True, 1), (9.0, False, 1), (4.5, True, 3)]):
        state.progress = Progress(round=number)
        selecting._keep_best(state, student, mean, reached)
        assert state.best["round"] == kept


class Free(Corridor):
    """Pushed by any number there is."""

    def __init__(self):
        super().__init__("box")
        self.action_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)


def test_actions_without_bounds_are_held_against_how_the_teachers_spread(tmp_path):
    result = distillrl.distill(lambda obs: -2 * obs[:, :1], Free, config=small(until="none", env_steps=300, verdict_episodes=4, select_episodes=4), out=tmp_path / "r")
    assert result.verdict["agreement"] < 0.9
    assert all(json.loads(line)["agreement"] < 0.9 for line in (result.folder / "metrics.jsonl").read_text().splitlines())
    loaded = distillrl.load(result.folder / "student.safetensors")
    assert loaded.spec.action.high == (float("inf"),)
    low, high = torch.tensor([-np.inf]), torch.tensor([np.inf])
    agreed = Agreed(2)
    for there, mine in ((0.0, 0.0), (10.0, 10.3), (20.0, 22.0)):  # a standard deviation of 7.5, of which 5 % are 0.37
        said = (Prediction(Deterministic(torch.full((2, 1), x), low, high)) for x in (mine, there))
        agreed.add(np.arange(2), np.array([True, there < 15]), *said)
    assert agreed.steps().tolist() == [2, 2]


class Chancy(Corridor):
    """The least difference in where one is changes the reward as dice would: few episodes say little."""

    def step(self, action):
        obs, reward, terminated, truncated, info = super().step(action)
        return obs, reward + 2 * float(np.sin(1e5 * self.x)), terminated, truncated, info


def test_an_aim_that_luck_may_have_reached_is_confirmed(tmp_path):
    chancy = distillrl.distill(steer("box"), lambda: Chancy("box"), config=small(until="retention=0.5", env_steps=4500), out=tmp_path / "a")
    sure = run(tmp_path, "box", name="b", until="retention=0.5", env_steps=4500)
    played = [json.loads(r.folder.joinpath("metrics.jsonl").read_text().splitlines()[-1])["evaluation_steps"] for r in (chancy, sure)]
    assert played[0] >= 48 * 20, "four times as many episodes, of 20 steps"
    assert played[1] == 12 * 20, "what is sure is not played again"


class Counted(Corridor):
    """It holds something that only ``close`` gives back, as a game in a process of its own does."""

    open = 0

    def __init__(self, nan_at=None):
        super().__init__(nan_at=nan_at)
        Counted.open += 1
        self.closed = False

    def close(self):
        Counted.open -= not self.closed
        self.closed = True


def test_every_environment_is_closed_whatever_happens(tmp_path):
    def stop(metrics):
        if metrics.get("round") == 0:
            raise KeyboardInterrupt

    few = small(env_steps=400, until="none", select_episodes=2, verdict_episodes=2)
    distillrl.distill(steer("discrete"), Counted, config=few, out=tmp_path / "a")
    assert Counted.open == 0
    with pytest.raises(KeyboardInterrupt):
        distillrl.distill(steer("discrete"), Counted, config=few, out=tmp_path / "b", show=stop)
    distillrl.distill(steer("discrete"), Counted, resume=tmp_path / "b")
    with pytest.raises(Failed, match="NaN"):
        distillrl.distill(steer("discrete"), lambda: Counted(7), config=few, out=tmp_path / "c")
    with pytest.raises(Misconfigured):
        distillrl.distill(steer("discrete"), Counted, config=small(see="drop=9"), out=tmp_path / "d")
    distillrl.evaluate(tmp_path / "a" / "student.safetensors", Counted, steer("discrete"), episodes=4)
    assert Counted.open == 0
