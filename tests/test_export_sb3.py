"""Genuine stable-baselines3 files, exported: the exported file chooses what SB3's own predict recorded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from export_cases import differences
from test_export_targets import need_runtime

from distillrl import exporting, loading
from distillrl.policies import as_groups, played, to_environment
from distillrl.teachers.sklearn import Trees

FIXTURES = Path(__file__).parent / "data" / "sb3"
ABOUT = {d.name: json.loads((d / "about.json").read_text()) for d in sorted(FIXTURES.iterdir()) if (d / "about.json").is_file()} if FIXTURES.is_dir() else {}
SINGLE = [n for n, a in ABOUT.items() if not a.get("refuse") and not n.startswith(("recurrent", "maskable"))]
IN_C = [n for n in ("ppo_discrete", "vecnormalize_dict", "sac_gsde_clip", "td3", "qrdqn", "ppo_cnn", "tqc", "ars_linear_squashed") if n in SINGLE]


def recorded(name: str) -> tuple[object, np.ndarray] | None:
    """Observations as the environment gives them, and the actions that SB3 chose."""
    with np.load(FIXTURES / name / "expected.npz") as file:
        arrays = dict(file)
    if "frames" in arrays:
        return None
    groups = {k.partition(".")[2]: v for k, v in arrays.items() if k == "obs" or k.startswith("obs.")}
    return groups.get("", groups), arrays["actions"]


def as_the_policy_sees(obs: object, spec: object) -> object:
    """Images with channels first, which SB3's VecTransposeImage makes and the converted policy takes."""
    one = not isinstance(obs, dict)
    groups = {next(iter(spec.observations)): obs} if one else obs
    turned = {k: v if v.shape[1:] == spec.observations[k].shape else np.moveaxis(v, -1, -3) for k, v in groups.items()}
    return next(iter(turned.values())) if one else turned


@pytest.mark.parametrize(("name", "to"), [*((n, "python") for n in SINGLE), *((n, "onnx") for n in SINGLE), *((n, "c") for n in IN_C)])
def test_the_exported_file_chooses_what_sb3_chose(name, to, tmp_path):
    if to == "onnx":
        pytest.importorskip("onnxruntime")
    elif to == "c" and shutil.which("gcc") is None:
        pytest.skip("gcc is not installed: apt-get install gcc")
    found = recorded(name)
    if found is None:
        pytest.skip("frames are recorded one by one")
    obs, expected = found
    player = loading.load(FIXTURES / name / "model.zip")
    other = exporting.opened(exporting.export(player, to, tmp_path))
    groups, _, n = as_groups(as_the_policy_sees(obs, player.spec), player.spec)
    with torch.inference_mode():
        prediction, _ = other.act(groups, other.init(n), torch.ones(n, dtype=torch.bool))
    action = to_environment(played(prediction, False), player.spec) - player.spec.action.start  # SB3 counts from 0
    assert np.allclose(action, expected.reshape(action.shape), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("name", [n for n in ABOUT if n.startswith("recurrent") and not ABOUT[n].get("refuse")])
def test_memory_is_inside(name, tmp_path):
    with np.load(FIXTURES / name / "expected.npz") as file:
        arrays = dict(file)
    groups = {k.partition(".")[2]: v for k, v in arrays.items() if k == "obs" or k.startswith("obs.")}
    player = loading.load(FIXTURES / name / "model.zip")
    other = exporting.opened(exporting.export(player, "python", tmp_path))
    memory = other.init(arrays["starts"].shape[1])
    for t, starts in enumerate(arrays["starts"]):
        now = {k: v[t] for k, v in groups.items()}
        obs, _, _ = as_groups(now.get("", now), player.spec)
        prediction, memory = other.act(obs, memory, torch.as_tensor(starts.astype(bool)))
        action = to_environment(played(prediction, False), player.spec)
        assert np.allclose(action, arrays["actions"][t].reshape(action.shape), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("to", ["python", "onnx", "js", "c"])
@pytest.mark.parametrize("name", ["sklearn_tree", "sklearn_tree_regressor"])
def test_a_scikit_learn_tree_chooses_the_same_at_its_very_thresholds(name, to, tmp_path):
    need_runtime(to)
    policy = loading.load(Path(__file__).parent / "data" / "formats" / name / "model.skops").policy
    other = exporting.opened(exporting.export(policy, to, tmp_path))
    part = next(m for m in policy.modules() if isinstance(m, Trees))
    at = part.threshold0.float()
    obs = torch.cat([v.unsqueeze(-1).repeat(1, policy.spec.observations["obs"].shape[0]) for v in (at, torch.nextafter(at, at + 1), torch.nextafter(at, at - 1))])
    mine, theirs = (p.act({"obs": obs.float()}, {}, None)[0].action.mode for p in (policy, other))
    assert torch.equal(mine.float(), theirs.float())


@pytest.mark.parametrize("to", ["python", "onnx", "js", "c", "torch"])
def test_a_forest_of_probabilities_goes_everywhere(to, tmp_path):
    need_runtime(to)
    policy = loading.load(Path(__file__).parent / "data" / "formats" / "sklearn_forest" / "model.skops").policy
    raw_error, action_error, _ = differences(policy, exporting.opened(exporting.export(policy, to, tmp_path)))
    assert raw_error < 1e-5
    assert action_error == 0
