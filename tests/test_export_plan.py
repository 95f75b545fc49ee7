"""The intermediate form: what a policy becomes, what is refused, and that buffers never lie over each other."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from export_cases import CASES, FOUR, MEMORY, made, mlp, observations, vector
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from distillrl.errors import Misconfigured
from distillrl.filters import Noise
from distillrl.targets import plan as steps
from distillrl.targets import running
from distillrl.targets.c_activations import RATIONAL
from distillrl.targets.tracing import trace


def test_a_small_network_by_hand():
    network = mlp("mlp:2:relu", FOUR, vector(2))
    plan = trace(network)
    assert [type(op).__name__ for op in plan.ops] == ["Dense", "Activate", "Dense"]
    assert (plan.parameters, plan.raw_size, plan.action_size, plan.decode.kind) == (2 * 2 + 2 + 2 * 4 + 4, 4, 1, "argmax")
    with torch.no_grad():
        network.body[0].weight.copy_(torch.tensor([[1.0, 2.0], [-1.0, 0.0]]))
        network.body[0].bias.copy_(torch.tensor([0.5, 0.0]))
        network.out.weight.copy_(torch.tensor([[1.0, 0], [0, 1], [2, 0], [0, 0]]))
        network.out.bias.zero_()
    plan = trace(network)
    values = running.run(plan, {"obs": np.array([[3.0, 1.0]], np.float32)})
    assert values[plan.raw].tolist() == [[5.5, 0.0, 11.0, 0.0]]
    assert running.decode(plan.decode, values[plan.raw]).tolist() == [2]


@pytest.mark.parametrize("case", [c for c in CASES if c not in MEMORY])
def test_running_is_the_policy(case):
    policy = CASES[case]()
    obs = observations(policy.spec, 50)
    plan = trace(policy)
    raw = running.run(plan, {k: v.numpy() for k, v in obs.items()})[plan.raw]
    with torch.inference_mode():
        prediction, _ = policy.act(obs, {}, None)
    found = running.decode(plan.decode, raw)
    expected = prediction.action.mode.numpy() + policy.spec.action.start
    assert np.allclose(found, expected, atol=1e-5)


def test_quantiles_are_averaged_inside_of_the_last_layer():
    network = made(vector(3), [], [nn.Linear(3, 6), nn.ReLU()], nn.Linear(6, 4 * 5), FOUR, "greedy", quantiles=5)
    obs = observations(network.spec, 20)
    plan = trace(network)
    assert plan.raw_size == 4
    with torch.inference_mode():
        q = network.act(obs, {}, None)[0].q.numpy()
    assert np.allclose(running.run(plan, {"obs": obs["obs"].numpy()})[plan.raw], q, atol=1e-5)


def test_an_unread_group_is_left_out():
    from distillrl.records import Group
    from distillrl.senses import Pick

    groups = {"eyes": Group((2,), "float32"), "ears": Group((3,), "float32")}
    network = made(groups, [Pick(["ears"])], [], nn.Linear(3, 4))
    assert [g.name for g in trace(network).inputs] == ["ears"]


class Odd(nn.Module):
    def forward(self, x):
        return x.flip(-1)


def test_what_cannot_be_carried_is_refused_and_says_which_target_can():
    with pytest.raises(Misconfigured, match=r"the layer body.1 \(Odd\(\)\) can't be exported as code.*the target torch carries any"):
        trace(made(vector(3), [], [nn.Linear(3, 3), Odd()], nn.Linear(3, 4)))
    with pytest.raises(Misconfigured, match="this policy \\(Odd\\)"):
        trace(Odd())
    with pytest.raises(Misconfigured, match=r"the sense's step 0 \(noise\) can't be exported as code"):
        trace(made(vector(3), [Noise(0.1, ["obs"])], [], nn.Linear(3, 4)))
    broken = made(vector(3), [], [], nn.Linear(3, 4))
    with torch.no_grad():
        broken.out.weight[0, 0] = float("nan")
    with pytest.raises(Misconfigured, match="NaN or infinity"):
        trace(broken)


@pytest.mark.parametrize("case", CASES)
def test_buffers_that_are_needed_never_lie_over_each_other(case):
    plan = trace(CASES[case]())
    offsets, total = steps.places(plan)
    split = steps.blocks(plan)
    rooms = {op.out: split.get(op.out, 1) * steps.padded(plan.size(op.out) // split.get(op.out, 1)) for op in plan.ops}
    last = steps.last_reads(plan)
    for i, op in enumerate(plan.ops):
        live = [o.out for o in plan.ops[:i] if last.get(o.out, -1) >= i and not (isinstance(op, steps.Activate) and o.out == op.x)]
        here = range(offsets[op.out], offsets[op.out] + rooms[op.out])
        assert here.stop <= total
        for other in live:
            assert here.stop <= offsets[other] or offsets[other] + rooms[other] <= here.start


def test_a_plan_is_frozen():
    plan = trace(CASES["discrete"]())
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.raw = "x"


@pytest.mark.parametrize(("name", "truth"), [("tanh", np.tanh), ("erf", np.vectorize(__import__("math").erf))])
def test_the_rational_functions_are_near_the_truth(name, truth):
    end, p, q = RATIONAL[name]
    x = np.linspace(-20, 20, 100_001)
    inside = np.clip(x, -end, end).astype(np.float32)
    s = inside * inside
    found = inside * np.polyval(np.array(p[::-1], np.float32), s) / np.polyval(np.array(q[::-1], np.float32), s)
    assert np.abs(found - truth(x)).max() < 6e-7


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 20), st.integers(1, 20))
def test_panels_hold_each_weight_where_dense_looks_for_it(m, n):
    from distillrl.targets.c import panels

    weight = np.arange(m * n, dtype=np.float32).reshape(m, n)
    packed = panels(weight)
    whole = m - m % 8
    for j in range(m):
        for i in range(n):
            at = (j // 8) * 8 * n + i * 8 + j % 8 if j < whole else whole * n + (j - whole) * n + i
            assert packed[at] == weight[j, i]
