"""Several tasks in one run: how their spaces are joined, one teacher for each, a head for each, figures by task, and what can't be joined."""

import json
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch
from task_cases import line, steer

import distillrl
from distillrl import artifact, envs, evaluation, exporting, students, tasks, taskwise, teachers
from distillrl.beginning import begin
from distillrl.config import Config
from distillrl.envs import EnvOptions, Seeds
from distillrl.errors import Failed, Misconfigured, Missing
from distillrl.policies import ACTION
from distillrl.records import Spec
from distillrl.settling import settle
from distillrl.targets.running import run as run_plan
from distillrl.targets.tracing import trace

ALIKE = (line(), line(flip=True, scale=100.0))
"""The same spaces, and the opposite to be done; rewards of another size."""
UNLIKE = (line(n=2), line(n=3, wide=4, flip=True, start=5))
BOXES = (line(n=0, reach=2.0), line(n=0, wide=3, flip=True, reach=0.5))


def spec_of(ids):
    vector = envs.make(EnvOptions(ids), 2, Seeds(0, "dry"))
    vector.close()
    return vector.spec


def small(**changes):
    return replace(Config(student="mlp:16", slots=8, env_steps=6000, verdict_episodes=24, select_episodes=12, until="retention=0.95"), **changes)


@pytest.mark.parametrize("backend", ["gymnasium:1", "gymnasium:2"])
def test_the_seed_picks_the_task_in_one_process_and_in_two(backend):
    vector = envs.make(EnvOptions(UNLIKE, backend=backend), 4, Seeds(3, "train"))
    seen = [{k: v.copy() for k, v in vector.reset().items()}]
    for _ in range(24):
        seen.append({k: v.copy() for k, v in vector.step(np.full(4, 2))[0].items()})
    vector.close()
    for obs in seen:
        assert list(obs["task"]) == [Seeds(3, "train")(i) % 2 for i in range(4)]
        for i, task in enumerate(obs["task"]):
            assert np.all(obs["Line.obs" if task else "Line#2.obs"][i] == 0), "the other task's groups are zeros"
            assert obs["Line#2.obs" if task else "Line.obs"][i, 1] == 1


def test_spaces_are_shared_where_they_are_alike_and_apart_where_they_are_not():
    alike, unlike, boxes = map(spec_of, (ALIKE, UNLIKE, BOXES))
    assert set(alike.observations) == {"obs", "task"}
    assert tasks.legal(alike) is None
    assert set(unlike.observations) == {"Line.obs", "Line#2.obs", "task"}
    assert unlike.action.n == 3
    assert tasks.legal(unlike).tolist() == [[True, True, False], [True, True, True]]
    assert (boxes.action.dimensions, boxes.action.low) == (2, (-1.0, -1.0))
    assert [t.spec(unlike).observations["obs"].shape for t in unlike.tasks] == [(2,), (4,)]
    for spec in (alike, unlike, boxes):
        assert Spec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    assert "tasks" not in Spec(alike.observations, alike.action).to_json(), "a student of one task is the file that it always was"


@pytest.mark.parametrize(("ids", "teacher", "words"), [
    ((line(), line(n=0)), steer(), "can't be played by one policy.*Discrete.*Box"),
    ("CartPole-v1,Acrbot-v1", steer(), "did you mean 'Acrobot-v1'"),
    ("CartPole-v1,,Acrobot-v1", steer(), "between two commas"),
    ("CartPole-v1,LunarLander-v3(gravity", steer(), "bracket isn't closed"),
    ("CartPole-v1,LunarLander-v3(-5)", steer(), r"'-5' was given.*gravity=-5"),
    (ALIKE, [steer()] * 3, "3 teachers were given for 2 tasks .Line, Line#2."),
    (UNLIKE, [steer(n=3), steer(n=2)], r"teacher 1, of the task Line: .*\[2, 3\] was given"),
])  # fmt: skip
def test_what_cannot_be_joined_is_a_sentence(tmp_path, ids, teacher, words):
    with pytest.raises((Misconfigured, Failed), match=words):
        distillrl.distill(teacher, ids, config=small(), out=tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_teachers_in_the_wrong_order_are_told(tmp_path):
    spec = spec_of(UNLIKE)
    made = [teachers.load(steer(n=n), teachers.Options(), t.spec(spec)) for n, t in zip((2, 3), spec.tasks, strict=True)]
    with pytest.raises(Misconfigured, match=r"teacher 1 does not fit the task Line: .*it would fit Line#2: teachers stand in the order of the tasks"):
        teachers.load(made[::-1], teachers.Options(), spec)


def test_each_teacher_is_asked_in_its_own_task_and_surplus_actions_have_no_probability():
    spec = spec_of(UNLIKE)
    policy = teachers.load([steer(n=2), steer(n=3, flip=True)], teachers.Options(), spec)
    obs = {"Line.obs": torch.tensor([[2.0, 1], [0, 0]]), "Line#2.obs": torch.tensor([[0.0, 0, 0, 0], [2.0, 1, 1, 1]]), "task": torch.tensor([0, 1])}
    action = policy.act(obs, {}, None)[0].action
    assert action.mode.tolist() == [0, 2]
    assert action.log_probs.exp()[0, 2] == 0
    assert action.log_probs[0, :2].exp().sum() == pytest.approx(1)
    alone = policy.act({k: v[1:] for k, v in obs.items()}, {}, None)[0].action
    assert torch.equal(alone.logits, action.logits[1:]), "a batch of one task's states is of the same kind"
    boxes = teachers.load([steer(n=0, reach=2.0), steer(n=0, wide=3, flip=True, reach=0.5)], teachers.Options(), spec_of(BOXES))
    seen = {"Line.obs": torch.tensor([[0.25, 1], [0, 0]]), "Line#2.obs": torch.tensor([[0.0, 0, 0], [0.25, 1, 1]]), "task": torch.tensor([0, 1])}
    assert boxes.act(seen, {}, None)[0].action.mode.tolist() == [[-0.5, 0.0], [0.5, 0.0]], "in half ranges of each task"


def test_a_random_policy_draws_what_the_task_has():
    spec = spec_of(UNLIKE)
    policy = evaluation.Random(spec, torch.Generator().manual_seed(0))
    drawn = policy.act({"task": torch.zeros(300, dtype=torch.int64)}, {}, None)[0].action.mode
    assert set(drawn.tolist()) == {0, 1}


def test_heads_are_apart_the_trunk_is_shared_and_both_are_counted():
    spec = spec_of(UNLIKE)
    student = students.make("mlp:16", spec, torch.Generator().manual_seed(0))
    assert student.acting_parameters() == (2 + 4 + 2 + 1) * 16 + 2 * 3 * (16 + 1) + 3
    obs = {"Line.obs": torch.randn(6, 2), "Line#2.obs": torch.randn(6, 4), "task": torch.tensor([0, 0, 0, 1, 1, 1])}
    before = student.act(obs, {}, None)[0].action
    assert not before.log_probs[:3, 2].exp().any()
    with torch.no_grad():
        student.out.weight[:, 17:] += 1  # the second task's head
    after = student.act(obs, {}, None)[0].action
    assert torch.equal(before.logits[:3], after.logits[:3])
    assert not torch.equal(before.logits[3:], after.logits[3:])


@pytest.mark.parametrize(("ids", "teacher"), [
    (ALIKE, [steer(), steer(flip=True)]),
    (UNLIKE, [steer(n=2), steer(n=3, flip=True)]),
    (BOXES, [steer(n=0, reach=2.0), steer(n=0, wide=3, flip=True, reach=0.5)]),
])  # fmt: skip
def test_one_student_learns_all_tasks_and_the_verdict_says_each(tmp_path, ids, teacher):
    run = distillrl.distill(teacher, ids, config=small(), out=tmp_path / "r")
    assert run.reached
    by_task = run.verdict["tasks"]
    assert [t["name"] for t in by_task] == ["Line", "Line#2"]
    assert all(t["student"]["episodes"] == 12 and t["retention"]["value"] > 0.9 for t in by_task)
    assert run.verdict["retention"]["value"] == pytest.approx(np.mean([t["retention"]["value"] for t in by_task]))
    assert run.verdict["teacher"]["return"]["mean"] == pytest.approx(1)
    assert run.verdict["random"]["return"]["mean"] == pytest.approx(0, abs=1e-9)
    alone = evaluation.evaluate(run.folder / "student.safetensors", list(ids), episodes=6)
    assert alone["retention"] is None
    assert any("no teacher" in n for n in alone["notes"])


def test_trees_and_memory_learn_several_tasks_too(tmp_path):
    for word, steps in (("tree:leaves=16", 1000), ("gru:8", 1200)):
        run = distillrl.distill([steer(n=2), steer(n=3, flip=True)], UNLIKE, config=small(student=word, env_steps=steps, until="none", select_episodes=4, verdict_episodes=16), out=tmp_path / word[:3])
        assert min(t["retention"]["value"] for t in run.verdict["tasks"]) > 0.5


def test_it_goes_on_to_the_same_bytes(tmp_path):
    config = small(until="none", env_steps=1500, checkpoint_seconds=0.0)
    whole = distillrl.distill([steer(), steer(flip=True)], ALIKE, config=config, out=tmp_path / "a")

    def stop(metrics):
        if metrics.get("round") == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distillrl.distill([steer(), steer(flip=True)], ALIKE, config=config, out=tmp_path / "b", show=stop)
    on = distillrl.distill([steer(), steer(flip=True)], ALIKE, resume=tmp_path / "b")
    assert (whole.folder / "student.safetensors").read_bytes() == (on.folder / "student.safetensors").read_bytes()


def test_an_exported_plan_says_what_the_student_says(tmp_path):
    run = distillrl.distill([steer(n=2), steer(n=3, flip=True)], UNLIKE, config=small(until="none", env_steps=700), out=tmp_path / "r")
    student = students.build(*artifact.load(run.folder / "student.safetensors"))
    plan = trace(student)
    for task in (0, 1):
        obs = {"Line.obs": torch.randn(5, 2) * (1 - task), "Line#2.obs": torch.randn(5, 4) * task, "task": torch.full((5,), task)}
        mine = student.act(obs, {}, None, ACTION)[0].action
        raw = run_plan(plan, {k: v.numpy() for k, v in obs.items()})[plan.raw]
        assert np.allclose(raw, mine.logits.detach().numpy(), atol=1e-4)
        assert raw.argmax(-1).tolist() == mine.mode.tolist()
    for to in ("python", "torch"):
        assert exporting.export(run.folder / "student.safetensors", to, tmp_path / to).files


def test_the_scale_of_returns():
    numbers = np.array([0, 1, 0, 1])
    random, teacher = np.array([0.0, -110.0, 2, -90]), np.array([10.0, 0, 12, 0])
    scale = taskwise.Scale((1.0, -100.0), (11.0, 0.0))
    assert scale.shares(np.array([6.0, -25, 1, 0]), numbers).tolist() == [0.5, 0.75, 0.0, 1.0]
    assert taskwise.scale_of(random, random, numbers) is None
    assert taskwise.means(teacher, numbers) == [11.0, 0.0]


def cart(length):
    """CartPole with a pole of another length."""

    def make(**more):
        env = gymnasium.make("CartPole-v1", **more)
        env.unwrapped.length, env.unwrapped.polemass_length = length, env.unwrapped.masspole * length
        return env

    make.__name__ = f"pole-{length}"
    return make


def upright(obs):
    """A rule that balances both."""
    lean = obs[:, 2:3] + 0.5 * obs[:, 3:4] + 0.02 * obs[:, :1] + 0.05 * obs[:, 1:2]
    return torch.cat([-50 * lean, 50 * lean], -1)


def test_distral_learns_related_tasks_by_reward_and_keeps_what_they_share(tmp_path):
    config = small(method="distral", student="mlp:32x32", slots=16, see="group=obs", env_steps=16_000, until="retention=0.9", select_episodes=8, verdict_episodes=12)
    run = distillrl.distill(upright, (cart(0.5), cart(0.3)), config=config, out=tmp_path / "r")
    assert run.reached
    assert run.verdict["teacher_labels"] == 0
    student = run.policy.policy
    assert set(student.spec.observations) == {"obs"}, "the shared policy doesn't know which task it plays"
    assert not any("column" in name for name in artifact.load(run.folder / "student.safetensors")[1])
    assert min(t["student"]["mean"] for t in run.verdict["tasks"]) > 400


def test_without_a_teacher_the_reward_alone_is_learnt(tmp_path):
    run = distillrl.distill(None, ALIKE, config=small(method="distral", env_steps=1500, until="none"), out=tmp_path / "r")
    assert run.verdict["retention"] is None
    assert run.verdict["teacher"] is None
    assert [t["retention"] for t in run.verdict["tasks"]] == [None, None]
    for changes, words in (({"until": "retention=0.9"}, "can't be measured without a teacher: --until return=400"), ({"method": "dagger"}, "no teacher was given.*--method ppo and distral"), ({"terms": "+nll: 1"}, "nll needs the teacher's `action`")):
        with pytest.raises((Misconfigured, Missing), match=words):
            distillrl.distill(None, ALIKE, config=small(**{"method": "distral", "until": "none", **changes}), out=tmp_path / "x")


def test_tasks_of_unlike_rewards_are_learnt_by_reward_alike(tmp_path):
    run = distillrl.distill([steer(), steer(flip=True)], ALIKE, config=small(method="kickstarting", until="retention=0.9"), out=tmp_path / "r")
    assert run.reached


def test_a_student_may_see_less_than_all_tasks_groups(tmp_path):
    run = distillrl.distill([steer(n=2), steer(n=3, flip=True)], UNLIKE, config=small(see="group=Line.obs+task", until="none", env_steps=600), out=tmp_path / "r")
    assert set(students.build(*artifact.load(run.folder / "student.safetensors")).spec.observations) == {"Line.obs", "task"}


@pytest.mark.parametrize("see", ["stack=2", "drop=1, noise=0.1", "delay=1, clip=2"])
def test_what_is_seen_is_changed_and_which_task_is_not(see):
    student = students.make("mlp:4", spec_of(ALIKE), torch.Generator().manual_seed(0), None, see)
    obs = {"obs": torch.randn(3, 2), "task": torch.tensor([0, 1, 1])}
    seen, _ = student.sense(obs, student.init(3), torch.ones(3, dtype=torch.bool))
    assert seen["task"].tolist() == [[1, 0], [0, 1], [0, 1]]
    assert student.act(obs, student.init(3), torch.ones(3, dtype=torch.bool))[0].action.logits.shape == (3, 3)


def test_search_finds_the_smallest_that_holds_every_task(tmp_path):
    from distillrl.search import search

    found = search([steer(n=2), steer(n=3, flip=True)], UNLIKE, sizes=("mlp:8", "tree:leaves=8"), config=small(env_steps=3000, select_episodes=4, verdict_episodes=8), retention=0.8, episodes=40, out=tmp_path / "s")
    assert found.reached
    assert all(row["task"] in {"Line", "Line#2"} for row in found.frontier if row["retention"] is not None)
    assert min(t["retention"]["value"] for t in found.verdict["tasks"]) > 0.8


def test_a_student_of_several_tasks_is_compressed_while_each_holds(tmp_path):
    from distillrl.compression import compress

    both = [steer(n=2), steer(n=3, flip=True)]
    run = distillrl.distill(both, UNLIKE, config=small(student="mlp:16", until="none", env_steps=1500, select_episodes=4, verdict_episodes=8), out=tmp_path / "r")
    made = compress(run.folder / "student.safetensors", both, list(UNLIKE), prune=0.4, quantise="int8", retention=0.7, episodes=24, config=small(env_steps=1000, select_episodes=4), out=tmp_path / "c")
    assert made.reached
    assert made.steps[-1]["parameters"] < 0.7 * made.steps[0]["parameters"]
    assert made.steps[-1]["task"] in {"Line", "Line#2"}


def test_one_task_that_is_lost_is_not_hidden_by_the_mean():
    from distillrl.retaining import Referee

    spec = spec_of(ALIKE)
    master = teachers.load([steer(), steer(flip=True)], teachers.Options(), spec)
    referee = Referee(EnvOptions(ALIKE, backend="gymnasium:1"), spec, master, 0, 0.5, 40)
    wrong = referee.judge(teachers.load([steer(), steer()], teachers.Options(), spec))
    assert wrong.held is False
    assert wrong.task == "Line#2"
    assert referee.judge(master).held


def test_the_worst_start_is_looked_for_in_every_task(tmp_path):
    config = small(student="tree:leaves=8", env_steps=6000, worst_of=30, select_episodes=8, verdict_episodes=8)
    starts = distillrl.distill([steer(), steer(flip=True)], ALIKE, config=config, out=tmp_path / "r").verdict["starts"]
    assert starts["starts"] >= 16
    assert starts["worst"] > -0.5  # a share of what the teacher earns, though one task's rewards are a hundred times the other's


def test_a_report_says_each_task_and_one_that_was_lost(tmp_path):
    from distillrl.judging import judge
    from distillrl.reading import read

    run = distillrl.distill([steer(), steer(flip=True)], ALIKE, config=small(until="none", env_steps=700, select_episodes=4, verdict_episodes=12), out=tmp_path / "r")
    page = distillrl.report(run.folder, measure="none").read_text()
    assert "Task by task" in page
    assert "Line#2" in page
    verdict = json.loads((run.folder / "verdict.json").read_text())
    lost = verdict["tasks"][1]
    lost["student"]["returns"] = [2 * x for x in lost["random"]["returns"]]
    (run.folder / "verdict.json").write_text(json.dumps(verdict))
    said = judge(read(run.folder))
    assert said.answer == "no"
    assert "in Line#2 it is worse than its teacher" in said.sentences[1]


def test_a_teacher_worse_than_random_play_gives_no_scale(tmp_path):
    run = distillrl.distill([steer(), steer()], ALIKE, config=small(until="none", env_steps=700), out=tmp_path / "r")
    assert run.verdict["retention"] is None or run.verdict["teacher"]["return"]["mean"] < 0
    assert any("isn't shown to be better than random play in Line#2" in n for n in run.verdict["notes"])


def networks(*sizes):
    """Untrained teachers of ``UNLIKE``, one a task, of these families."""
    spec = spec_of(UNLIKE)
    return [students.make(size, t.spec(spec), torch.Generator().manual_seed(k)) for k, (size, t) in enumerate(zip(sizes, spec.tasks, strict=True))]


def test_teachers_of_unlike_layers_give_their_last_one_filled_up():
    theirs = networks("mlp:4", "mlp:8x6")
    policy = teachers.load(theirs, teachers.Options(), spec_of(UNLIKE))
    assert {g for g in policy.gives if g.startswith("features")} == {"features.0", "features.1", "features.last"}
    obs = {"Line.obs": torch.tensor([[2.0, 1], [0, 0]]), "Line#2.obs": torch.tensor([[0.0, 0, 0, 0], [2.0, 1, 1, 1]]), "task": torch.tensor([0, 1])}
    for shape in ((2,), (2, 1)):
        said = policy.act({k: v.unflatten(0, shape) for k, v in obs.items()}, {}, None, frozenset({"action", "features.last", "features.0"}))[0].features
        assert {k: tuple(v.shape) for k, v in said.items()} == {"last": (*shape, 6), "0": (*shape, 8)}
        first = theirs[0].act({"obs": obs["Line.obs"][:1]}, {}, None, frozenset({"features.1"}))[0].features["1"]
        second = theirs[1].act({"obs": obs["Line#2.obs"][1:]}, {}, None, frozenset({"features.3"}))[0].features["3"]
        assert torch.allclose(said["last"].flatten(0, -2), torch.cat([torch.nn.functional.pad(first, (0, 2)), second]))


def test_actor_mimic_learns_several_tasks_by_a_regression_for_each(tmp_path):
    spec = spec_of(UNLIKE)
    each = [distillrl.distill(steer(n=n, flip=n == 3), line(**how), config=small(student=size, until="none", env_steps=1200, verdict_episodes=4, select_episodes=4), out=tmp_path / size).policy for n, how, size in ((2, {"n": 2}, "mlp:8"), (3, {"n": 3, "wide": 4, "flip": True, "start": 5}, "mlp:12x6"))]
    config = small(method="actor-mimic", terms="+feature_regression: 1")
    setup = settle(config, each, UNLIKE)
    state = begin(setup)
    hint = next(t.loss for t in state.gradient.terms if t.name == "feature_regression")
    assert len(hint.regressor.networks) == len(spec.tasks) == 2
    run = distillrl.distill(each, UNLIKE, config=config, out=tmp_path / "r")
    assert run.reached
    losses = [json.loads(line)["term.feature_regression"] for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0] / 2


def test_of_several_tasks_each_has_a_map_of_its_own():
    from distillrl import objectives
    from distillrl.records import Batch, Prediction

    x, task = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 2
    sign = torch.where(task == 1, -1.0, 1.0).unsqueeze(-1)
    student = Prediction(features={"0": x})
    batch = Batch({"task": task}, Prediction(features={"0": sign * x}), extra={"tasks": torch.zeros(40, 2)})
    loss = objectives.make("hint", {}, student, batch, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for k, network in enumerate(loss.regressor.networks):
            network.weight.copy_((-1.0) ** k * torch.eye(3))
    assert loss(student, batch).abs().max() < 1e-12
    one = objectives.make("hint", {"always": True}, student, Batch({}, batch.teacher), torch.Generator().manual_seed(0))
    assert not hasattr(one.regressor, "networks")
