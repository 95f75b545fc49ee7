"""The learner's hooks: features by name, training heads, an adversary's own optimiser, generators kept, next states, warnings."""

import json

import numpy as np
import pytest
import torch
from test_distillation import Corridor, run, small, steer
from torch import nn

import distillrl
from distillrl import advantages, config, heads, learn
from distillrl.actions import Categorical
from distillrl.advantages import Critic
from distillrl.beginning import begin
from distillrl.checkpoints import resume, save
from distillrl.config import Phase
from distillrl.dataset import NEXT, Dataset
from distillrl.errors import Misconfigured, Missing
from distillrl.records import Prediction, Progress
from distillrl.runs import Folder
from distillrl.settling import settle


def network():
    """A teacher with layers: logits that push towards 0."""
    net = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0, 0], [-1, 0], [0, 1], [1, 1]]))
        net[0].bias.zero_()
        net[2].weight.copy_(torch.tensor([[4.0, -4, 0, 0], [-1, -1, 0.5, 0], [-4, 4, 0, 0]]))
        net[2].bias.zero_()
    return net


def setup_of(teacher=None, **phase):
    settled = small(phase=(Phase(**{"beta": "1", "terms": {"forward_kl": 1}, **phase}),), slots=4, backend="gymnasium:1")
    return settle(settled, teacher or network(), lambda: Corridor())


def collected(setup, state, steps=24):
    from distillrl.beginning import label_wants
    from distillrl.rounds import _enriched
    from distillrl.states import Who

    phase = setup.config.phase[0]
    with torch.inference_mode():
        rollout = state.drive.collect(steps, Who(float(phase.beta), sampled=phase.sampled), setup.teacher, state.gradient.averaged, label_wants(setup, state), setup.seen)
        rollout = _enriched(setup, state, phase, rollout, state.drive, state.gradient.averaged)
    state.dataset.append(rollout)
    return rollout


def test_a_hint_reaches_named_layers_of_both(tmp_path):
    setup = setup_of(terms={"forward_kl": 1, "hint": {"weight": 0.1, "always": True}})
    state = begin(setup)
    collected(setup, state)
    metrics = state.gradient.learn(state.dataset, Progress())
    assert metrics["term.hint"] > 0
    assert 0 < metrics["share.hint"] < 1


@pytest.mark.parametrize(("term", "head"), [("return_mse", "value"), ("q_mse", "q")])
def test_heads_are_lent_and_dropped_from_the_artifact(term, head):
    if term == "q_mse":
        state = begin(setup_of(terms={"forward_kl": 1}))
        student, spec = state.student, state.drive.spec
        heads.add(student, {"q": (), "quantiles": (3, 5)}, spec, torch.Generator().manual_seed(0))
        prediction, _ = student.act(state.drive.obs, {}, None, frozenset({"q", "quantiles"}))
        assert prediction.q.shape == (4, 3)
        assert prediction.quantiles.shape == (4, 3, 5)
    else:
        student = begin(setup_of(terms={term: 1, "forward_kl": 1})).student
        assert isinstance(student.training_heads["value"], Critic)
    assert head in student.gives
    assert not [k for k in student.artifact_tensors() if "head" in k]


def test_only_the_critic_learns_where_only_the_critic_is_trained():
    setup = setup_of(beta="0", sampled=True, keep="round", terms={"return_mse": 1}, train="value", average=0.0)
    state = begin(setup)
    collected(setup, state)
    before = {k: v.clone() for k, v in state.student.state_dict().items()}
    state.gradient.learn(state.dataset, Progress())
    changed = {k for k, v in state.student.state_dict().items() if not torch.equal(v, before[k])}
    assert changed
    assert all(k.startswith("training_heads.value") for k in changed)
    with pytest.raises(Misconfigured, match=r"it has .*body.*out"):
        begin(setup_of(train="vlaue"))


def test_an_adversary_has_an_optimiser_of_its_own():
    state = begin(setup := setup_of(terms={"forward_kl": 1, "adversarial": 0.1}))
    collected(setup, state)
    loss = next(t.loss for t in state.gradient.terms if t.name == "adversarial")
    mine = {id(p) for group in state.gradient.optimiser.param_groups for p in group["params"]}
    assert not mine & {id(p) for p in loss.own_parameters()}
    before = [p.detach().clone() for p in loss.own_parameters()]
    state.gradient.learn(state.dataset, Progress())
    assert any(not torch.equal(a, b) for a, b in zip(before, loss.own_parameters(), strict=True))
    assert state.gradient.state_dict()["adversaries"]["adversarial"]["state"]


@pytest.mark.parametrize(
    "terms",
    [
        {"jensen_shannon": {"weight": 1, "samples": 4}, "adversarial": 0.1, "hint": 0.1},
        {"q_learning": 0.1, "forward_kl": 1},
        {"ppo_clip": 1, "return_mse": 0.5},
    ],
)
def test_a_checkpoint_goes_on_with_everything_that_draws_or_learns(tmp_path, terms):
    sampled = "ppo_clip" in terms
    setup = setup_of(terms=terms, sampled=sampled, keep="round" if sampled else "all", beta="0" if sampled else "1", average=0.0)
    state = begin(setup)
    folder = Folder.create(tmp_path / "r", "E")
    folder.write_config(setup.config)
    collected(setup, state)
    state.gradient.learn(state.dataset, Progress())
    save(state, folder)
    other = resume(setup, folder)
    for s in (state, other):
        collected(setup, s)
        s.gradient.learn(s.dataset, Progress())
    for (name, a), b in zip(state.student.state_dict().items(), other.student.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_next_states_are_the_ones_that_followed():
    state = begin(setup := setup_of(terms={"forward_kl": 1, "q_learning": 0.1}))
    rollout = collected(setup, state)
    batch = state.dataset.at(state.dataset.rows, ahead=True)
    t, slot = state.dataset.rows // 4, state.dataset.rows % 4
    assert torch.equal(batch.extra[NEXT + "obs"], rollout.obs["obs"][t + 1, slot])
    assert state.student.head.kind == "greedy", "acts by the Q that it learns"


def test_states_from_before_there_were_weights_count_once():
    state = begin(setup := setup_of())
    rollout = collected(setup, state)
    data = Dataset()
    data.append(rollout)
    from dataclasses import replace

    data.append(replace(rollout, weight=torch.full(rollout.valid.shape, 3.0)))
    weight = data.at(data.rows).weight
    assert sorted(set(weight.tolist())) == [1.0, 3.0]
    for _ in range(4):
        data.append(rollout)
    assert len(data.at(data.rows).weight) == len(data), "what a later phase has none of has room for it all the same"


def test_a_round_without_labels_is_learnt_nothing_from():
    state = begin(setup_of())
    before = [p.clone() for p in state.student.parameters()]
    assert state.gradient.learn(Dataset(), Progress()) == {}
    assert all(torch.equal(a, b) for a, b in zip(before, state.student.parameters(), strict=True))


def test_gradients_100_to_1_are_warned_of(tmp_path):
    said = []
    phase = (Phase(beta="1", terms={"forward_kl": 1000, "reverse_kl": 0.001}),)
    distillrl.distill(steer("discrete"), lambda: Corridor(), config=small(phase=phase, env_steps=700, until="none"), out=tmp_path / "r", show=said.append)
    assert any("forward_kl outweighs reverse_kl by more than 100:1" in m.get("warning", "") for m in said)
    assert learn.dominated({"share.a": 0.5, "share.b": 0.5}) is None


def test_options_of_terms_are_read_from_the_command_line():
    added, terms = config.parse_terms("+forward_kl(teacher_temperature=0.1, clip=true): linear(1,0.1), hint(layer=pi): 0.1, nll")
    assert added
    assert terms == {"forward_kl": {"weight": "linear(1,0.1)", "teacher_temperature": 0.1, "clip": True}, "hint": {"weight": "0.1", "layer": "pi"}, "nll": "1"}
    for wrong in ("nll(of): 1", "nll(of=mode: 1", "nll(=3)"):
        with pytest.raises(Misconfigured, match="--terms"):
            config.parse_terms(wrong)


def test_gae_by_hand_keeps_ends_and_cuts_apart():
    reward, value = torch.tensor([[1.0], [1.0]]), torch.tensor([[0.0], [2.0], [10.0]])
    yes, no = torch.tensor([[False], [True]]), torch.tensor([[False], [False]])
    # The last step: ended 1 − 2 = −1; cut 1 + 0.5·10 − 2 = 4. The first: 1 + 0.5·2 − 0 = 2, and 0.5·0.5 of the last.
    assert advantages.gae(reward, value, yes, no, 0.5, 0.5).flatten().tolist() == [1.75, -1.0]
    assert advantages.gae(reward, value, no, yes, 0.5, 0.5).flatten().tolist() == [3.0, 4.0]
    total, discount, steps = advantages.n_step(torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([[False], [True], [False]]), torch.zeros(3, 1, dtype=torch.bool), 0.5, 3)
    assert total.flatten().tolist() == [2.0, 2.0, 4.0]
    assert discount.flatten().tolist() == [0.0, 0.0, 0.5]
    assert steps.flatten().tolist() == [2, 1, 1]


def test_a_box_is_disturbed_and_labels_are_not(tmp_path):
    result = run(tmp_path, "box", phase=(Phase(beta="1", noise="0.3", terms={"mse": 1}),), env_steps=900, until="none", verdict_episodes=2, select_episodes=2)
    assert json.loads((result.folder / "metrics.jsonl").read_text().splitlines()[0])["round"] == 0
    setup = settle(small(phase=(Phase(beta="1", terms={"mse": 1}),), slots=4, backend="gymnasium:1"), steer("box"), lambda: Corridor("box"))
    state = begin(setup)
    from distillrl.states import Who

    rollout = state.drive.collect(8, Who(1.0, noise=0.3), setup.teacher, state.student, frozenset({"action"}), setup.seen)
    assert not np.allclose(rollout.action.numpy(), rollout.teacher.action.mode.numpy())
    assert np.allclose(rollout.teacher.action.mode.numpy(), steer("box")(rollout.obs["obs"][:-1].flatten(0, 1)).reshape(8, 4, 1).numpy())


def test_methods_say_what_they_need():
    from distillrl import methods

    spec = begin(setup_of()).drive.spec
    for name in ("fitnets", "actor-mimic", "reverse-kl", "entropy-regularised", "distillation-as-reward"):
        with pytest.raises(Missing, match=rf"{name} needs .* these methods would do: .*dagger"):
            methods.expand(name, frozenset({"action"}), spec)


def rich(obs):
    """As steer, with Q-values about 1000 that differ by little, and that value."""
    said = steer("discrete")(obs)
    return Prediction(Categorical(said), q=1000 + said, value=1000 + said.max(-1).values)


def test_values_far_from_0_are_learnt_from_where_they_lie(tmp_path):
    result = run(tmp_path, teacher=rich, phase=(Phase(beta="power(0.7)", terms={"q_mse": 1}),), until="retention=0.95", env_steps=4000, verdict_episodes=6, select_episodes=6, backend="gymnasium:1")
    assert result.reached


def test_heads_begin_at_the_mean_of_what_the_teacher_says():
    setup = setup_of(terms={"forward_kl": 1, "q_mse": 0.1, "value_mse": 0.1}, teacher=rich)
    state = begin(setup)
    rollout = collected(setup, state)
    assert heads.centre(state.student, rollout, frozenset({"teacher.q", "student.q", "teacher.value", "student.value"}))
    q, value = state.student.out.bias, state.student.training_heads["value"].layers[-1].bias
    assert torch.allclose(q, rollout.teacher.q.flatten(0, 1).mean(0), rtol=1e-4)
    assert float(value) == pytest.approx(float(rollout.teacher.value.mean()), rel=1e-4)
    assert not heads.centre(state.student, rollout, frozenset({"teacher.q"})), "no term compares the two"
