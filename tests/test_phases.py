"""Phases: what ends one, what is checked before round 0, what follows distilling, and what is asked of the teacher meanwhile."""

import json
import tomllib
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from test_distillation import Corridor, run, small, steer

from distillrl import config as configuration
from distillrl import envs, evaluation, methods, phases, rounds, selecting, students, weights
from distillrl.beginning import begin
from distillrl.checkpoints import resume, save
from distillrl.config import Config, Phase
from distillrl.dataset import Dataset
from distillrl.distillation import _end_of_round, _rounds
from distillrl.envs import Seeds
from distillrl.errors import Misconfigured, Missing
from distillrl.policies import ACTION
from distillrl.records import Prediction, Progress, Rollout
from distillrl.runs import Folder
from distillrl.settling import settle
from distillrl.states import Drive, Who

QUICK = {"verdict_episodes": 4, "select_episodes": 4, "backend": "gymnasium:1"}


def lines_of(result):
    return [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]


def test_bounds_are_read_and_refused_in_sentences():
    assert configuration.bounds("explained_variance=0.5, spent = 0.3") == {"explained_variance": 0.5, "spent": 0.3}
    assert list(configuration.bounds("aim")) == ["aim"]
    assert configuration.bounds("none") == {}
    for wrong, said in [
        ("explained_varance=0.5", "did you mean 'explained_variance'"),
        ("agreement=1.5", "at most 1"),
        ("return", "return=NUMBER"),
        ("aim=3", "aim stands alone"),
        ("spent=much", "'much' is no number"),
        ("return=nan", "return=NUMBER"),
    ]:
        with pytest.raises(Misconfigured, match=said):
            Phase(until=wrong)


def test_a_phase_ends_by_its_rounds_or_by_a_figure():
    def over(phase, rounds=1, spent=0.0, reached=False, **metrics):
        return phases.over(phase, rounds, metrics, Progress(), spent, reached)

    assert not over(Phase(), 99, 1.0, True)
    assert over(Phase(rounds=3), 3)
    assert not over(Phase(rounds=3), 2)
    assert over(Phase(rounds=3, until="agreement=0.9"), 1, agreement=0.9)
    assert not over(Phase(rounds=3, until="agreement=0.9"), 1, agreement=0.89)
    assert not over(Phase(until="retention=0.9"), 1, retention=None)
    assert over(Phase(until="return=5"), 1, **{"return.student": 5.0})
    assert over(Phase(until="aim, spent=0.5"), 1, 0.5)
    assert over(Phase(until="aim, spent=0.5"), 1, 0.1, True)


def test_explained_variance_by_hand():
    def rollout(advantage, value):
        a, v = torch.tensor(advantage), torch.tensor(value)
        shape = a.shape
        no = torch.zeros(shape, dtype=torch.bool)
        return Rollout({}, a, a, no, no, no, torch.tensor([[True], [True], [True], [False]]), no, no, None, None, no, extra={"advantage": a, "return": a + v})

    # Returns 1, 2, 3 over valid steps; a critic that knows all, one that knows the mean, and one that errs by as much again.
    assert phases.explained_variance(rollout([[0.0], [0.0], [0.0], [9.0]], [[1.0], [2.0], [3.0], [7.0]])) == pytest.approx(1)
    assert phases.explained_variance(rollout([[-1.0], [0.0], [1.0], [9.0]], [[2.0], [2.0], [2.0], [7.0]])) == pytest.approx(0)
    assert phases.explained_variance(rollout([[-2.0], [0.0], [2.0], [9.0]], [[3.0], [2.0], [1.0], [7.0]])) == pytest.approx(-3)


def test_phases_follow_one_another_by_figures(tmp_path):
    first = Phase(beta="1", terms={"forward_kl": 1}, until="agreement=0.9", rounds=30)
    second = Phase(beta="0", terms={"forward_kl": 1}, rounds=2)
    lines = lines_of(run(tmp_path, phase=(first, second), until="none", **QUICK))
    ended = [line for line in lines if line["phase"] == 0]
    assert len(ended) < 30
    assert ended[-1]["agreement"] >= 0.9 > max(line["agreement"] for line in ended[:-1])
    assert [line["phase"] for line in lines][len(ended) :] == [1, 1]


def test_schedules_of_a_phase_begin_with_it_and_what_they_bring_to_nothing_is_not_warned_of(tmp_path):
    first, second = Phase(beta="1", terms={"forward_kl": 1}, rounds=2), Phase(terms={"forward_kl": 1, "reverse_kl": "power(0)"}, rounds=2)
    rows = lines_of(run(tmp_path, phase=(first, second), until="none", env_steps=2000, **QUICK))
    assert rows[2]["term.reverse_kl"] > 0 == rows[3]["term.reverse_kl"]
    assert not {"share.reverse_kl", "warning"} & set(rows[3])
    late = phases.at(Progress(round=12, rounds=20), 2)
    assert (weights.parse("linear(1, 0, over=4)")(late), late.fraction) == (0.5, 0.6)


def test_finetune_is_appended_to_any_method_and_printed(tmp_path):
    settled = settle(small(method="gkd", finetune=True, backend="gymnasium:1"), steer("discrete"), lambda: Corridor()).config
    assert [p.train for p in settled.phase] == ["all", "value", "all"]
    assert "jensen_shannon" in settled.phase[0].terms
    assert settled.phase[0].until == "aim, spent=0.5"
    again = configuration.build(tomllib.loads(configuration.dumps(settled)))
    assert again.phase == settled.phase
    assert not again.finetune


def test_the_aim_ends_distilling_and_not_the_run_where_a_phase_says_so(tmp_path):
    quick = tuple(Phase(**{**vars(p), "steps": 16, "updates": 4, "rounds": 2 if i else 0}) for i, p in enumerate(methods.with_finetuning((Phase(beta="0", terms={"forward_kl": 1}, first=32),))))
    result = run(tmp_path, phase=quick, until="retention=0.5", env_steps=9000, **QUICK)
    found = [line["phase"] for line in lines_of(result)]
    assert found[-4:] == [1, 1, 2, 2]
    assert result.reached
    assert result.verdict["ended_by"] == "phases"


def test_learning_by_reward_asks_the_teacher_nothing(tmp_path):
    asked = []

    def teacher(obs):
        asked.append(len(obs))
        return steer("discrete")(obs)

    config = small(phase=(Phase(beta="0", keep="round", sampled=True, terms={"ppo_clip": 1, "return_mse": 0.5}, average=0.0, updates=2),), slots=4, backend="gymnasium:1")
    setup = settle(config, teacher, lambda: Corridor())
    state = begin(setup)
    folder = Folder.create(tmp_path / "r", "E")
    line = rounds.play(setup, state, folder)
    assert max(asked) <= 4, "the dry run's states at most"
    assert state.progress.labels == 0
    assert "agreement" not in line
    assert "explained_variance" in line


def test_a_teacher_that_remembers_looks_on_where_it_is_asked_nothing():
    setup = settle(small(slots=4, backend="gymnasium:1"), steer("discrete"), lambda: Corridor())
    spec = setup.spec
    remembering = students.make("gru:4", spec, torch.Generator().manual_seed(0))
    drive = Drive(envs.make(setup.options, 4, Seeds(0, "train")), spec, torch.Generator())
    student = students.make("mlp:4", spec, torch.Generator().manual_seed(0))
    drive.begin(remembering, student)
    before = {k: v.clone() for k, v in drive.memory["teacher"].items()}
    with torch.no_grad():
        given = drive.collect(3, Who(0.0), remembering, student, ACTION, frozenset(spec.observations), labelling=False)
    assert given.teacher is None
    assert not given.labelled.any()
    assert any(not torch.equal(v, drive.memory["teacher"][k]) for k, v in before.items())
    drive.vector.close()


def test_a_later_phase_finds_labels_for_its_own_terms_in_older_states(tmp_path):
    first, second = Phase(beta="1", terms={"forward_kl": 1}, rounds=1), Phase(beta="1", terms={"mse": 1}, rounds=1)
    assert run(tmp_path, phase=(first, second), until="none", **QUICK).verdict["rounds"] == 2
    data = Dataset()
    obs = {"obs": torch.zeros(3, 1, 2)}
    yes, no = torch.ones(2, 1, dtype=torch.bool), torch.zeros(2, 1, dtype=torch.bool)
    data.append(Rollout(obs, no, yes.float(), no, no, no, yes, no, yes, Prediction(), None, no))
    data.append(Rollout(obs, no, yes.float(), no, no, no, yes, no, yes, Prediction(value=torch.ones(2, 1)), None, no))
    assert data.rows.tolist() == [2, 3], "the first two states were never asked for a value"


EACH = Phase(beta="1", keep="round", terms={"forward_kl": 1}, updates=4)
SEEN_LATE = replace(EACH, steps=6, first=6)
"""Rounds in the middle of an episode, whose first states remember the last round's."""


@pytest.mark.parametrize(("order", "see"), [((replace(EACH, rounds=2), replace(EACH, beta="0", keep="all")), None), ((SEEN_LATE,), "stack=3"), ((replace(SEEN_LATE, keep="all", rounds=2), SEEN_LATE), "delay=2")])
def test_resuming_gives_the_same_whatever_the_phases_keep(tmp_path, order, see):
    settings = {"slots": 4, "backend": "gymnasium:1", "rounds": 8, "until": "none", "select_episodes": 2, "checkpoint_seconds": 1e9}
    setup = settle(small(phase=order, see=see, **settings), steer("discrete"), lambda: Corridor())
    folder = Folder.create(tmp_path / "r", "E")
    folder.write_config(setup.config)
    state = begin(setup)

    class Stop:
        asked = False

    def go(state, until):
        stop = Stop()
        _rounds(setup, state, folder, lambda m: setattr(stop, "asked", m.get("round", -1) >= until), stop)

    go(state, 4)
    save(state, folder)
    other = resume(setup, folder)
    for s in (state, other):
        go(s, 6)
    assert len(other.dataset) == len(state.dataset)
    for a, b in zip(state.student.state_dict().values(), other.student.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_a_run_that_can_not_begin_leaves_no_folder(tmp_path):
    wrong = (Phase(terms={"forward_kl": 1}, rounds=1), Phase(terms={"hint": {"weight": 1, "layer": "nope"}}))
    with pytest.raises((Misconfigured, Missing)):
        run(tmp_path, phase=wrong, **QUICK)
    assert not (tmp_path / "r").exists()
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "mine.txt").write_text("kept")
    with pytest.raises((Misconfigured, Missing)):
        run(tmp_path, phase=wrong, **QUICK)
    assert [p.name for p in (tmp_path / "r").iterdir()] == ["mine.txt"]


def test_what_can_not_be_is_said_before_round_0(tmp_path):
    def said(match, error=Misconfigured, student="mlp:8", **changes):
        with pytest.raises(error, match=match):
            begin(settle(small(student=student, slots=4, backend="gymnasium:1", **changes), steer("discrete"), lambda: Corridor()))

    kl = {"forward_kl": 1}
    said("phase 1 never ends", phase=(Phase(terms=kl), Phase(terms=kl)))
    said("phase 2: schedule linear.*negative", phase=(Phase(terms=kl, rounds=1), Phase(beta="linear(1, -1)", terms=kl)))
    said("phase 1 ends by explained_variance, but none of its terms has a critic", phase=(Phase(terms=kl, until="explained_variance=0.5"),))
    said("unknown objective 'forward_kll'.*forward_kl", phase=(Phase(terms=kl, rounds=1), Phase(terms={"forward_kll": 1})))
    said("teacher_temperature = 0", phase=(Phase(terms=kl, rounds=1), Phase(terms={"forward_kl": {"weight": 1, "teacher_temperature": 0}})))
    said("finetune.*--student tree", student="tree:leaves=8", finetune=True)
    said("the next state needs a student without memory", student="gru:8", phase=(Phase(terms={"q_learning": 1}),))
    assert Config(finetune=True).finetune


class Errand(gymnasium.Env):
    """Down to −2 and then up to 2, at a cost of 1 a step: what is right at first is wrong later, and only a critic knows that the first half isn't the worse one."""

    observation_space, action_space = spaces.Box(-3, 3, (2,), np.float32), spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x, self.done, self.t = float(self.np_random.uniform(-1, 1)), 0.0, 0
        return np.array([self.x, 0], np.float32), {}

    def step(self, action):
        self.x, self.t = float(np.clip(self.x + (0.4 if action else -0.4), -3, 3)), self.t + 1
        self.done = float(self.done or self.x <= -2)
        return np.array([self.x, self.done], np.float32), -1.0, bool(self.done and self.x >= 2), self.t >= 120, {}


def errand(obs):
    """Its teacher, which is not very sure: probabilities of 0.55."""
    return (0.2 * obs[:, 1:2] - 0.1) * torch.tensor([-1.0, 1.0])


def returns_after_distilling(tmp_path, seed, warm):
    """The student's return when it was distilled, and after each round by reward."""
    first, critic, reward = methods.with_finetuning((Phase(beta="power(0.7)", terms={"forward_kl": 1}, rounds=6),))
    reward = replace(reward, steps=64, lr=2e-2, updates=4, rounds=3)
    config = small(student="mlp:16", seed=seed, slots=8, until="none", env_steps=99_999, phase=(first, replace(critic, steps=64), reward) if warm else (first, reward), select_episodes=1, backend="gymnasium:1")
    setup = settle(config, errand, lambda: Errand())
    state, found = begin(setup), []
    folder = Folder.create(tmp_path / f"{seed}{warm}", "E")
    while not state.ended:
        before = state.progress.phase
        _end_of_round(setup, state, rounds.play(setup, state, folder))
        if before == len(config.phase) - 1 or (before == 0 and state.progress.phase == 1):
            found.append(float(evaluation.play(state.gradient.averaged, setup.options, 8, Seeds(seed, "select")).returns.mean()))
    return found


def test_without_a_critic_the_return_collapses_and_with_its_warm_up_it_does_not(tmp_path):
    cold, warm = ([returns_after_distilling(tmp_path, seed, first) for seed in (0, 1)] for first in (False, True))
    assert [start for start, *_ in cold] == [start for start, *_ in warm]
    assert any(min(after) < 3 * start for start, *after in cold)
    assert all(min(after) > 1.1 * start for start, *after in warm)


def test_a_schedule_by_the_ratio_of_returns_knows_what_random_play_earns():
    """Returns below 0, as here: without that floor a poor student's ratio to its teacher is above 1, so that the teacher's part is over at once."""
    setup = settle(small(slots=4, select_episodes=4, backend="gymnasium:1"), steer("discrete"), lambda: Corridor())
    state = begin(setup)
    selecting.evaluate_student(setup, state, True)
    returns = state.progress.returns
    assert returns["student"] < returns["teacher"] < 0
    assert returns["random"] < returns["teacher"]
    worth = (returns["student"] - returns["random"]) / (returns["teacher"] - returns["random"])
    assert weights.parse("return_ratio(1)")(state.progress) == pytest.approx(1 - max(worth, 0))
