#!/usr/bin/env python3
r"""Make the genuine files that the tests of the other teacher formats read, each written by its own library.

Every network is tiny and its weights are random, its normalisers' statistics too. What the library itself says of
recorded observations is kept beside each file; the tests compare distillrl with these records and need none of the
libraries. A virtual environment per group, and the runs (a minute or two each):

    python3 -m venv ../venvs/formats && ../venvs/formats/bin/pip install torch==2.13.0 rsl-rl-lib==5.5.1 skrl==2.1.1 tianshou==2.0.1 onnx==1.23.2 \\
        onnxscript==0.7.2 onnxruntime scikit-learn==1.9.1 skops==0.16.0 keras==3.15.1 h5py safetensors   (and: --no-deps rl-games==1.6.5)
    python3 -m venv ../venvs/d3  && ../venvs/d3/bin/pip install torch==2.13.0 d3rlpy==2.8.1
    python3 -m venv ../venvs/jax && ../venvs/jax/bin/pip install torch==2.13.0 sbx-rl==0.28.0 flax brax==0.14.2
    python3 -m venv ../venvs/ray && ../venvs/ray/bin/pip install torch==2.13.0 'ray[rllib]==2.60.0'
    ../venvs/formats/bin/python scripts/make_fixtures_formats.py onnx torchscript export rsl_rl skrl tianshou rl_games sklearn keras safetensors
    ../venvs/d3/bin/python scripts/make_fixtures_formats.py d3rlpy            # and so on: d3rlpy, sbx, brax, rllib

A folder of tests/data/formats holds the file, ``about.json`` (versions, kind of action) and ``expected.npz``: ``obs`` [N, F]
(or [T, N, F] with ``starts`` for policies with memory), ``actions``, and what else the library gives (mean, std, logits, q, value).
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "torch")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np
import torch
from torch import nn

warnings.filterwarnings("ignore")
HERE = Path(__file__).resolve().parent.parent / "tests" / "data" / "formats"
N, T, ENVS, OBS, ACT = 16, 8, 3, 6, 3


def folder(name: str) -> Path:
    """An empty folder of this name."""
    place = HERE / name
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    return place


def keep(place: Path, libraries: list[str], action: str, arrays: dict[str, Any], **about: Any) -> None:
    """Write about.json and expected.npz."""
    versions = {name: importlib.metadata.version(name) for name in libraries}
    (place / "about.json").write_text(json.dumps({"versions": versions, "action": action, **about}, indent=1, sort_keys=True) + "\n")
    np.savez_compressed(place / "expected.npz", **{k: np.asarray(v.detach() if hasattr(v, "detach") else v) for k, v in arrays.items()})
    print(place.name, sorted(f.name for f in place.iterdir()), sum(f.stat().st_size for f in place.rglob("*") if f.is_file()))


def shaken(module: nn.Module, scale: float = 0.5) -> nn.Module:
    """Random biases and statistics, so that leaving one out shows."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if tensor.is_floating_point() and "hidden_state" not in name and "cell_state" not in name:
                noise = torch.randn(tensor.shape, generator=generator) * scale
                positive = any(word in name for word in ("var", "std")) and "log" not in name
                tensor.copy_((noise.abs() + 0.3) if positive else tensor + noise.to(tensor.dtype))
        for part in module.modules():
            if hasattr(part, "_var") and hasattr(part, "_std"):
                part._std.copy_(part._var.sqrt())
    return module


def states(*shape: int, seed: int = 3) -> torch.Tensor:
    """Recorded observations."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 1.5


def starts() -> np.ndarray:
    """Where episodes begin: at first, and once in the middle of the second environment."""
    made = np.zeros((T, ENVS), bool)
    made[0] = True
    made[4, 1] = True
    return made


# ------------------------------------------------------------------------------------------------ ONNX, scripts, export


class Mlp(nn.Module):
    """A normaliser, two layers and a head; ``outputs`` says what it gives."""

    def __init__(self, outputs: str = "action", activation: type[nn.Module] = nn.ELU, size: int = ACT) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(1, OBS))
        self.register_buffer("std", torch.ones(1, OBS))
        self.body = nn.Sequential(nn.Linear(OBS, 8), activation(), nn.Linear(8, 7), activation())
        self.head = nn.Linear(7, size)
        self.value = nn.Linear(7, 1)
        self.log_std = nn.Parameter(torch.zeros(size))
        self.outputs = outputs

    def forward(self, obs: torch.Tensor) -> Any:
        """See the class."""
        latent = self.body(torch.clamp((obs - self.mean) / (self.std + 0.01), -5.0, 5.0))
        out = self.head(latent)
        if self.outputs == "action_value":
            return out, self.value(latent)
        if self.outputs == "gaussian":
            return out, self.log_std.expand_as(out), self.value(latent)
        return torch.tanh(out) if self.outputs == "tanh" else out


class Cnn(nn.Module):
    """A small image policy."""

    def __init__(self) -> None:
        super().__init__()
        self.cnn = nn.Sequential(nn.Conv2d(2, 4, 4, 2), nn.ReLU(), nn.Conv2d(4, 4, 3, 1), nn.ReLU(), nn.Flatten())
        self.head = nn.Linear(4 * 3 * 3, 4)

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        """See the class."""
        return self.head(self.cnn(obs / 255.0))


class Skip(nn.Module):
    """Not a chain: two inputs, a skip connection, layer norm, softmax attention over nothing much."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm, self.out = nn.Linear(OBS, 8), nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8 + OBS, ACT)

    def forward(self, obs: torch.Tensor, command: torch.Tensor) -> torch.Tensor:
        """See the class."""
        mixed = self.norm(torch.nn.functional.gelu(self.a(obs)) * torch.sigmoid(self.b(command)))
        return self.out(torch.cat([mixed, obs], -1))


class Gru(nn.Module):
    """Memory as an input and an output."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.out = nn.GRU(OBS, 5, 2), nn.Linear(5, ACT)

    def forward(self, obs: torch.Tensor, h_in: torch.Tensor) -> Any:
        """See the class."""
        x, h = self.rnn(obs.unsqueeze(0), h_in)
        return self.out(x.squeeze(0)), h


def to_onnx(module: nn.Module, place: Path, inputs: tuple[torch.Tensor, ...], names: list[str], outputs: list[str], dynamo: bool = False, **options: Any) -> Path:
    """Export one module."""
    file = place / "policy.onnx"
    torch.onnx.export(module.eval(), inputs, str(file), input_names=names, output_names=outputs, dynamo=dynamo, **options)
    return file


def rows(file: Path, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What onnxruntime says, one state at a time."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    got = [session.run(None, {k: v[i : i + 1] for k, v in feeds.items()}) for i in range(len(next(iter(feeds.values()))))]
    return {o.name: np.concatenate([g[j] for g in got]) for j, o in enumerate(session.get_outputs())}


def make_onnx() -> None:
    """Torch's exports, old and new."""
    x = states(N, OBS)
    for name, kind, outputs, options in (
        ("onnx_mlp", "tanh", ["actions"], {}),
        ("onnx_value", "action_value", ["actions", "value"], {}),
        ("onnx_gaussian", "gaussian", ["mean", "log_std", "value"], {"dynamic_axes": {"obs": {0: "n"}, "mean": {0: "n"}, "log_std": {0: "n"}, "value": {0: "n"}}}),
        ("onnx_dynamo", "action", ["actions"], {"dynamo": True, "external_data": False}),
        ("onnx_external", "action", ["actions"], {"dynamo": True, "external_data": True}),
    ):
        place = folder(name)
        torch.manual_seed(0)
        file = to_onnx(shaken(Mlp(kind, nn.Softplus if name == "onnx_dynamo" else nn.ELU)), place, (torch.zeros(1, OBS),), ["obs"], outputs, **options)
        got = rows(file, {"obs": x.numpy()})
        keep(place, ["torch", "onnx"], "box", {"obs": x, "actions": got[outputs[0]], **{k: v for k, v in got.items() if k != outputs[0]}})
    place = folder("onnx_logits")
    file = to_onnx(shaken(Mlp("action", nn.Tanh, 4)), place, (torch.zeros(1, OBS),), ["obs"], ["logits"])
    keep(place, ["torch", "onnx"], "discrete", {"obs": x, "logits": rows(file, {"obs": x.numpy()})["logits"]})
    place = folder("onnx_cnn")
    images = torch.randint(0, 256, (N, 2, 12, 12), generator=torch.Generator().manual_seed(1)).float()
    file = to_onnx(shaken(Cnn(), 0.2), place, (images[:1],), ["obs"], ["q_values"])
    keep(place, ["torch", "onnx"], "discrete", {"obs": images, "q": rows(file, {"obs": images.numpy()})["q_values"]})
    place = folder("onnx_two_inputs")
    y = states(N, 4, seed=5)
    file = to_onnx(shaken(Skip()), place, (x[:1], y[:1]), ["obs", "command"], ["continuous_actions"], opset_version=17)
    keep(place, ["torch", "onnx"], "box", {"obs": x, "command": y, "actions": rows(file, {"obs": x.numpy(), "command": y.numpy()})["continuous_actions"]})
    make_onnx_gru()
    make_onnx_runtime()


def make_onnx_gru() -> None:
    """Memory as input and output, played one environment at a time."""
    place, model = folder("onnx_gru"), shaken(Gru())
    file = to_onnx(model, place, (torch.zeros(1, OBS), torch.zeros(2, 1, 5)), ["obs", "h_in"], ["actions", "h_out"])
    import onnxruntime

    session, x, begin = onnxruntime.InferenceSession(str(file)), states(T, ENVS, OBS), starts()
    actions, h = np.zeros((T, ENVS, ACT), np.float32), np.zeros((2, 1, 5), np.float32)
    for e in range(ENVS):
        for t in range(T):
            if begin[t, e]:
                h = np.zeros((2, 1, 5), np.float32)
            actions[t, e], h = (lambda r: (r[0][0], r[1]))(session.run(None, {"obs": x[t, e : e + 1].numpy(), "h_in": h}))
    keep(place, ["torch", "onnx"], "box", {"obs": x, "actions": actions, "starts": begin})


def make_onnx_runtime() -> None:
    """An operator that is not turned into torch (TopK), with a batch of one and a Reshape that says so."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    place = folder("onnx_runtime")
    w = numpy_helper.from_array(rng.normal(size=(OBS, 8)).astype(np.float32), "w")
    v = numpy_helper.from_array(rng.normal(size=(4, ACT)).astype(np.float32), "v")
    shape, k = numpy_helper.from_array(np.array([1, 2, 4]), "shape"), numpy_helper.from_array(np.array([1]), "k")
    flat = numpy_helper.from_array(np.array([1, 4]), "flat")
    nodes = [
        helper.make_node("MatMul", ["obs", "w"], ["a"]), helper.make_node("Reshape", ["a", "shape"], ["b"]), helper.make_node("TopK", ["b", "k"], ["c", "i"], axis=1),
        helper.make_node("Reshape", ["c", "flat"], ["d"]), helper.make_node("MatMul", ["d", "v"], ["actions"]),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes, "policy", [helper.make_tensor_value_info("obs", TensorProto.FLOAT, [1, OBS])],
        [helper.make_tensor_value_info("actions", TensorProto.FLOAT, [1, ACT])], [w, v, shape, k, flat],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, str(place / "policy.onnx"))
    x = states(N, OBS)
    keep(place, ["onnx"], "box", {"obs": x, "actions": rows(place / "policy.onnx", {"obs": x.numpy()})["actions"]})


def make_torchscript() -> None:
    """Scripted and traced modules."""
    x = states(N, OBS)
    for name, kind, activation in (("script_mlp", "action", nn.SiLU), ("script_gaussian", "gaussian", nn.GELU), ("script_tanh", "tanh", nn.LeakyReLU)):
        place, model = folder(name), shaken(Mlp(kind, activation)).eval()
        torch.jit.script(model).save(str(place / "policy.pt"))
        out = torch.jit.load(str(place / "policy.pt"))(x)
        keep(place, ["torch"], "box", {"obs": x, "actions": out} if torch.is_tensor(out) else {"obs": x, "actions": out[0], "log_std": out[1], "value": out[2]})
    place, model = folder("script_traced"), shaken(Mlp("action", nn.Tanh)).eval()
    torch.jit.trace(model, x[:1]).save(str(place / "policy.pt"))
    keep(place, ["torch"], "box", {"obs": x, "actions": model(x)})


def make_export() -> None:
    """torch.export, with a batch of one and a free one."""
    x = states(N, OBS)
    for name, dynamic in (("export_mlp", False), ("export_dynamic", True)):
        place, model = folder(name), shaken(Mlp("action_value", nn.Mish)).eval()
        shapes = ({0: torch.export.Dim("n", min=1, max=1024)},) if dynamic else None
        torch.export.save(torch.export.export(model, (x[: 2 if dynamic else 1],), dynamic_shapes=shapes), str(place / "policy.pt2"))
        out = model(x)
        keep(place, ["torch"], "box", {"obs": x, "actions": out[0], "value": out[1]})


# ------------------------------------------------------------------------------------------------ checkpoints


def make_rsl_rl() -> None:
    """OnPolicyRunner's own save, export_policy_to_jit and export_policy_to_onnx."""
    from rsl_rl.env import VecEnv
    from rsl_rl.runners import OnPolicyRunner
    from tensordict import TensorDict

    class Robots(VecEnv):
        num_envs, num_actions, max_episode_length, device, cfg = ENVS, ACT, 100, "cpu", {}
        episode_length_buf = torch.zeros(ENVS, dtype=torch.long)

        def get_observations(self) -> TensorDict:
            return TensorDict({"policy": torch.zeros(ENVS, OBS)}, batch_size=[ENVS])

        def step(self, actions: torch.Tensor) -> Any:
            return self.get_observations(), torch.zeros(ENVS), torch.zeros(ENVS), {}

    gaussian = {"class_name": "GaussianDistribution", "init_std": 0.7, "std_type": "log"}
    for kind in ("mlp", "lstm", "gru"):
        recurrent = {} if kind == "mlp" else {"rnn_type": kind, "rnn_hidden_dim": 5, "rnn_num_layers": 1 if kind == "lstm" else 2}
        model = {"class_name": "MLPModel" if kind == "mlp" else "RNNModel", "hidden_dims": [8, 7], "activation": "elu", "obs_normalization": True, **recurrent}
        config = {
            "num_steps_per_env": 4, "save_interval": 1, "multi_gpu": None, "obs_groups": {"actor": ["policy"], "critic": ["policy"]},
            "actor": {**model, "distribution_cfg": dict(gaussian)}, "critic": dict(model), "algorithm": {"class_name": "PPO"},
        }  # fmt: skip
        torch.manual_seed(0)
        runner = OnPolicyRunner(Robots(), config, log_dir=None)
        for network in (runner.alg.actor, runner.alg.critic):
            shaken(network)
        policy = runner.get_inference_policy()
        x, begin = states(T, ENVS, OBS), starts()
        actions, values = [], []
        critic = runner.alg.critic.eval()
        with torch.no_grad():
            for t in range(T):
                if kind != "mlp":
                    done = torch.as_tensor(begin[t])
                    policy.reset(None if t == 0 else done.long())
                    critic.reset(None if t == 0 else done.long())
                obs = TensorDict({"policy": x[t]}, batch_size=[ENVS])
                actions.append(policy(obs).clone())
                values.append(critic(obs).clone())
        record = {"obs": x, "actions": torch.stack(actions), "starts": begin, "value": torch.stack(values)[..., 0]}
        log_std = runner.alg.actor.state_dict()["distribution.log_std_param"]
        place = folder(f"rsl_rl_{kind}")
        runner.save(str(place / "model_1500.pt"))
        keep(place, ["rsl-rl-lib", "torch"], "box", {**record, "log_std": log_std}, activation="elu")
        place = folder(f"rsl_rl_{kind}_script")
        runner.export_policy_to_jit(str(place), "policy.pt")
        keep(place, ["rsl-rl-lib", "torch"], "box", {k: record[k] for k in ("obs", "actions", "starts")})
        if kind != "gru":
            place = folder(f"rsl_rl_{kind}_onnx")
            runner.export_policy_to_onnx(str(place), "policy.onnx")
            keep(place, ["rsl-rl-lib", "torch", "onnx"], "box", {k: record[k] for k in ("obs", "actions", "starts")})


def make_skrl() -> None:
    """PPO's own save."""
    import gymnasium as gym
    from skrl.agents.torch.ppo import PPO, PPO_CFG
    from skrl.memories.torch import RandomMemory
    from skrl.resources.preprocessors.torch import RunningStandardScaler
    from skrl.utils.model_instantiators.torch import categorical_model, deterministic_model, gaussian_model

    for kind in ("gaussian", "categorical"):
        obs = gym.spaces.Box(-10, 10, (OBS,))
        act = gym.spaces.Box(-1, 1, (ACT,)) if kind == "gaussian" else gym.spaces.Discrete(4)
        net = [{"name": "net", "input": "OBSERVATIONS", "layers": [8, 7], "activations": "elu"}]
        make = gaussian_model if kind == "gaussian" else categorical_model
        torch.manual_seed(0)
        models = {
            "policy": make(observation_space=obs, action_space=act, device="cpu", network=net, output="ACTIONS"),
            "value": deterministic_model(observation_space=obs, action_space=act, device="cpu", network=net, output="ONE"),
        }
        x = states(N, OBS)
        for model in models.values():
            model.init_state_dict(inputs={"observations": x, "states": x})
        cfg = PPO_CFG(observation_preprocessor=RunningStandardScaler, observation_preprocessor_kwargs={"size": obs, "device": "cpu"})
        agent = PPO(models=models, memory=RandomMemory(memory_size=4, num_envs=1, device="cpu"), cfg=cfg, observation_space=obs, action_space=act, device="cpu")
        agent.init()
        for model in models.values():
            shaken(model)
        scaler = agent._observation_preprocessor
        shaken(scaler)
        place = folder(f"skrl_{kind}")
        agent.save(str(place / "agent.pt"))
        with torch.no_grad():
            seen = scaler(x)
            out = models["policy"].compute({"observations": seen}, "")
            value = models["value"].compute({"observations": seen}, "")[0]
        record = {"obs": x, "value": value[:, 0]}
        if kind == "gaussian":
            record |= {"actions": out[0], "log_std": out[1]["log_std"] if isinstance(out[1], dict) else out[1]}
        else:
            record |= {"logits": out[0]}
        keep(place, ["skrl", "torch"], "box" if kind == "gaussian" else "discrete", record, activation="elu")


def make_tianshou() -> None:
    """State dicts of policies."""
    import gymnasium as gym
    from tianshou.algorithm.modelfree.dqn import DiscreteQLearningPolicy
    from tianshou.algorithm.modelfree.reinforce import ProbabilisticActorPolicy
    from tianshou.data import Batch
    from tianshou.utils.net.common import Net
    from tianshou.utils.net.continuous import ContinuousActorProbabilistic
    from tianshou.utils.net.discrete import DiscreteActor
    from torch.distributions import Categorical, Independent, Normal

    box = gym.spaces.Box(-np.ones(ACT, np.float32), np.ones(ACT, np.float32))
    space = gym.spaces.Box(-10, 10, (OBS,))
    x = states(N, OBS)
    for name in ("gaussian", "discrete", "dqn"):
        torch.manual_seed(0)
        if name == "dqn":
            net = Net(state_shape=OBS, action_shape=4, hidden_sizes=[8, 7])
            policy = DiscreteQLearningPolicy(model=net, action_space=gym.spaces.Discrete(4), observation_space=space)
        else:
            body = Net(state_shape=OBS, hidden_sizes=[8, 7], activation=nn.Tanh if name == "gaussian" else nn.ReLU)
            if name == "gaussian":
                actor: Any = ContinuousActorProbabilistic(preprocess_net=body, action_shape=(ACT,), unbounded=True)
                policy = ProbabilisticActorPolicy(actor=actor, dist_fn=lambda a: Independent(Normal(*a), 1), deterministic_eval=True, action_space=box, action_scaling=True, action_bound_method="clip")
            else:
                actor = DiscreteActor(preprocess_net=body, action_shape=4, softmax_output=False)
                policy = ProbabilisticActorPolicy(actor=actor, dist_fn=lambda a: Categorical(logits=a), deterministic_eval=True, action_space=gym.spaces.Discrete(4), action_scaling=False, action_bound_method=None)
        shaken(policy)
        place = folder(f"tianshou_{name}")
        torch.save(policy.state_dict(), place / "policy.pth")
        policy.eval()
        with torch.no_grad():
            out = policy(Batch(obs=x.numpy(), info=Batch()))
        if name == "gaussian":
            mean, std = out.logits
            keep(place, ["tianshou", "torch"], "box", {"obs": x, "actions": mean, "log_std": std.log()}, activation="tanh")
        else:
            keep(place, ["tianshou", "torch"], "discrete", {"obs": x, "q" if name == "dqn" else "logits": out.logits}, activation="relu")


def make_rl_games() -> None:
    """A checkpoint as rl_games' agents write it."""
    from rl_games.algos_torch.models import ModelA2CContinuousLogStd
    from rl_games.algos_torch.network_builder import A2CBuilder

    params = {
        "separate": False, "mlp": {"units": [8, 7], "activation": "elu", "initializer": {"name": "default"}},
        "space": {"continuous": {"mu_activation": "None", "sigma_activation": "None", "mu_init": {"name": "default"}, "sigma_init": {"name": "const_initializer", "val": 0}, "fixed_sigma": True}},
    }  # fmt: skip
    builder = A2CBuilder()
    builder.load(params)
    torch.manual_seed(0)
    model = ModelA2CContinuousLogStd(builder).build(
        {"actions_num": ACT, "input_shape": (OBS,), "num_seqs": 1, "value_size": 1, "normalize_value": True, "normalize_input": True}
    )
    shaken(model).eval()
    place, x = folder("rl_games"), states(N, OBS)
    torch.save({"model": model.state_dict(), "epoch": 3, "frame": 100, "optimizer": {}, "last_mean_rewards": 1.0, "env_state": None}, place / "ant.pth")
    with torch.no_grad():
        out = model({"is_train": False, "prev_actions": None, "obs": x, "rnn_states": None})
    keep(place, ["rl-games", "torch"], "box", {"obs": x, "actions": out["mus"], "log_std": out["sigmas"].log(), "value": out["values"][:, 0]}, activation="elu")


def make_safetensors() -> None:
    """A bare Sequential."""
    from safetensors.torch import save_file

    model = nn.ModuleDict({"actor": nn.Sequential(nn.Linear(OBS, 8), nn.Tanh(), nn.Linear(8, ACT))})
    shaken(model)
    place, x = folder("safetensors"), states(N, OBS)
    save_file(model.state_dict(), str(place / "model.safetensors"))
    keep(place, ["torch", "safetensors"], "box", {"obs": x, "actions": model["actor"](x)}, activation="tanh")


# ------------------------------------------------------------------------------------------------ other libraries


def make_d3rlpy() -> None:
    """save() of ten algorithms."""
    import d3rlpy

    x = states(N, OBS).numpy()
    rng = np.random.default_rng(0)
    encoder = d3rlpy.models.encoders.VectorEncoderFactory([8, 7])
    scalers = {"observation_scaler": d3rlpy.preprocessing.StandardObservationScaler(mean=rng.normal(size=OBS), std=np.abs(rng.normal(size=OBS)) + 0.3)}
    reach = {"action_scaler": d3rlpy.preprocessing.MinMaxActionScaler(minimum=np.full(ACT, -2.0), maximum=np.full(ACT, 3.0))}
    both = {"actor_encoder_factory": encoder, "critic_encoder_factory": encoder}
    made = {
        "sac": d3rlpy.algos.SACConfig(**both, **scalers, **reach), "td3": d3rlpy.algos.TD3Config(**both), "bc": d3rlpy.algos.BCConfig(encoder_factory=encoder, **scalers),
        "cql": d3rlpy.algos.CQLConfig(**both), "iql": d3rlpy.algos.IQLConfig(**both, value_encoder_factory=encoder), "awac": d3rlpy.algos.AWACConfig(**both),
        "dqn": d3rlpy.algos.DQNConfig(encoder_factory=encoder, **scalers), "discrete_cql": d3rlpy.algos.DiscreteCQLConfig(encoder_factory=encoder),
        "discrete_bc": d3rlpy.algos.DiscreteBCConfig(encoder_factory=encoder), "discrete_sac": d3rlpy.algos.DiscreteSACConfig(**both),
    }  # fmt: skip
    for name, config in made.items():
        discrete = name.startswith(("dqn", "discrete"))
        torch.manual_seed(0)
        algo = config.create()
        algo.create_impl((OBS,), 4 if discrete else ACT)
        for module in algo.impl.modules.__dict__.values():
            if isinstance(module, nn.Module):
                shaken(module, 0.2)
        place = folder(f"d3rlpy_{name}")
        algo.save(str(place / "model.d3"))
        loaded = d3rlpy.load_learnable(str(place / "model.d3"))
        record: dict[str, Any] = {"obs": x, "actions": loaded.predict(x)}
        if name in {"dqn", "discrete_cql"}:
            record["q"] = np.stack([loaded.predict_value(x, np.full(N, a)) for a in range(4)], -1)
        keep(place, ["d3rlpy", "torch"], "discrete" if discrete else "box", record)


def make_sklearn() -> None:
    """Skops and pickle."""
    import skops.io
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.neural_network import MLPClassifier, MLPRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

    x = states(200, OBS).numpy().astype(np.float64)
    wide = states(200, OBS, seed=9).numpy().astype(np.float64)
    y, labels = np.tanh(wide[:, :ACT]), (np.abs(x[:, :4]).argmax(1))
    made = {
        "mlp": (make_pipeline(StandardScaler(), MLPRegressor(hidden_layer_sizes=(8, 7), max_iter=5, random_state=0)), y),
        "mlp_classifier": (MLPClassifier(hidden_layer_sizes=(8,), activation="tanh", max_iter=5, random_state=0), labels),
        "tree": (DecisionTreeClassifier(max_depth=4, random_state=0), labels),
        "tree_regressor": (DecisionTreeRegressor(max_depth=4, random_state=0), y),
        "forest": (RandomForestClassifier(3, max_depth=3, random_state=0), labels),
        "logistic": (LogisticRegression(max_iter=20), labels),
        "ridge": (Ridge(), y),
    }
    import pickle

    import joblib

    for name, (model, target) in made.items():
        model.fit(x, target)
        place = folder(f"sklearn_{name}")
        skops.io.dump(model, place / "model.skops")
        if name in {"mlp", "tree"}:
            (place / "model.pkl").write_bytes(pickle.dumps(model))
        if name == "mlp":
            joblib.dump(model, place / "model.joblib")
        record = {"obs": x[:N], "actions": model.predict(x[:N])}
        if hasattr(model, "predict_proba"):
            record["probabilities"] = model.predict_proba(x[:N])
        keep(place, ["scikit-learn", "skops"], "discrete" if target is labels else "box", record)


def make_keras() -> None:
    """Sequential and functional models."""
    import keras
    from keras import layers

    x = states(N, OBS).numpy()
    keras.utils.set_random_seed(0)
    norm = layers.Normalization(mean=np.linspace(-1, 1, OBS), variance=np.linspace(0.5, 2, OBS))
    sequential = keras.Sequential([layers.Input((OBS,)), norm, layers.Dense(8, activation="swish"), layers.Dense(7), layers.LeakyReLU(0.1), layers.Dense(ACT, activation="tanh")])
    inputs = layers.Input((OBS,), name="obs")
    hidden = layers.LayerNormalization()(layers.Dense(8, activation="relu")(inputs))
    joined = layers.Concatenate()([layers.Dense(7, activation="elu")(hidden), inputs])
    functional = keras.Model(inputs, [layers.Dense(4, name="logits")(joined), layers.Dense(1, name="value")(hidden)])
    softmax = keras.Sequential([layers.Input((OBS,)), layers.Dense(8, activation="gelu"), layers.Dropout(0.3), layers.BatchNormalization(), layers.Dense(4, activation="softmax")])
    for name, model, kind in (("sequential", sequential, "box"), ("functional", functional, "discrete"), ("softmax", softmax, "discrete")):
        rng = np.random.default_rng(0)
        model.set_weights([w + np.abs(rng.normal(size=w.shape)).astype(w.dtype) * 0.3 if w.dtype.kind == "f" else w for w in model.get_weights()])
        place = folder(f"keras_{name}")
        model.save(place / "model.keras")
        out = keras.saving.load_model(place / "model.keras").predict(x, verbose=0)
        record = {"actions": out} if name == "sequential" else {"probabilities": out} if name == "softmax" else {"logits": out[0], "value": out[1][:, 0]}
        keep(place, ["keras", "torch"], kind, {"obs": x, **record})


def pack(path: Path) -> None:
    """The same members, deflated: SBX keeps whole functions in its files, 350 kB of text."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)


def make_sbx() -> None:
    """SB3 in Jax."""
    import gymnasium as gym
    import jax
    import sbx

    class Sampled(gym.Env):
        def __init__(self, action: Any) -> None:
            self.observation_space, self.action_space = gym.spaces.Box(-10, 10, (OBS,)), action

        def reset(self, *, seed: Any = None, options: Any = None) -> Any:
            return self.observation_space.sample(), {}

        def step(self, action: Any) -> Any:
            return self.observation_space.sample(), 0.0, False, False, {}

    box, four = gym.spaces.Box(np.full(ACT, -2, np.float32), np.full(ACT, 3, np.float32)), gym.spaces.Discrete(4)
    x = states(N, OBS).numpy()
    for name, kind, action in (("ppo", sbx.PPO, box), ("ppo_discrete", sbx.PPO, four), ("sac", sbx.SAC, box), ("dqn", sbx.DQN, four)):
        more = {} if kind is sbx.PPO else {"learning_starts": 1, "buffer_size": 100}
        model = kind("MlpPolicy", Sampled(action), policy_kwargs={"net_arch": [8, 7]}, seed=0, **more)

        def shake(state: Any) -> Any:
            keys = iter(jax.random.split(jax.random.PRNGKey(1), 100))
            return state.replace(params=jax.tree_util.tree_map(lambda p: p + 0.3 * jax.random.normal(next(keys), p.shape), state.params))

        for part in ("actor_state", "qf_state", "vf_state"):
            if hasattr(model.policy, part):
                setattr(model.policy, part, shake(getattr(model.policy, part)))
        place = folder(f"sbx_{name}")
        model.save(place / "model.zip")
        pack(place / "model.zip")
        loaded = kind.load(place / "model.zip")
        keep(place, ["sbx-rl", "jax", "flax"], "box" if action is box else "discrete", {"obs": x, "actions": loaded.predict(x, deterministic=True)[0]}, bounds=[-2.0, 3.0])


def make_brax() -> None:
    """save_params of PPO's and SAC's networks."""
    import jax
    from brax.io import model as brax_model
    from brax.training.acme import running_statistics, specs
    from brax.training.agents.ppo import networks as ppo_networks
    from brax.training.agents.sac import networks as sac_networks

    x = states(N, OBS).numpy()
    for name, module in (("ppo", ppo_networks), ("sac", sac_networks)):
        make = module.make_ppo_networks if name == "ppo" else module.make_sac_networks
        sizes = {"policy_hidden_layer_sizes": (8, 7), "value_hidden_layer_sizes": (8, 7)} if name == "ppo" else {"hidden_layer_sizes": (8, 7)}
        networks = make(OBS, ACT, preprocess_observations_fn=running_statistics.normalize, **sizes)
        keys = jax.random.split(jax.random.PRNGKey(0), 50)
        normal = running_statistics.init_state(specs.Array((OBS,), np.dtype("float32")))
        normal = running_statistics.update(normal, np.abs(states(64, OBS, seed=8).numpy()) * 2)
        policy = jax.tree_util.tree_map(lambda p, key=keys[3]: p + 0.2 * jax.random.normal(key, p.shape), networks.policy_network.init(keys[0]))
        params = (normal, policy, networks.value_network.init(keys[1])) if name == "ppo" else (normal, policy)
        place = folder(f"brax_{name}")
        brax_model.save_params(str(place / "params"), params)
        inference = module.make_inference_fn(networks)(params, deterministic=True)
        actions = inference(x, keys[2])[0]
        record = {"obs": x, "actions": actions}
        if name == "ppo":
            record["value"] = networks.value_network.apply(normal, params[2], x)
        keep(place, ["brax", "jax", "flax"], "box", record)


def make_rllib() -> None:
    """Both stacks' checkpoints; the folders of the policies alone are kept, the rest is for resuming training."""
    import gymnasium as gym
    import ray
    from ray.rllib.algorithms.dqn import DQNConfig
    from ray.rllib.algorithms.ppo import PPOConfig

    class Sampled(gym.Env):
        def __init__(self, config: Any) -> None:
            self.observation_space = gym.spaces.Box(-10, 10, (OBS,), np.float32)
            self.action_space = gym.spaces.Box(-1, 1, (ACT,), np.float32) if config["box"] else gym.spaces.Discrete(4)

        def reset(self, *, seed: Any = None, options: Any = None) -> Any:
            return self.observation_space.sample(), {}

        def step(self, action: Any) -> Any:
            return self.observation_space.sample(), 0.0, False, False, {}

    ray.init(num_cpus=1, include_dashboard=False, ignore_reinit_error=True, logging_level="ERROR")
    x = states(N, OBS).numpy()
    for name, config, box in (("ppo", PPOConfig, True), ("ppo_discrete", PPOConfig, False), ("dqn", DQNConfig, False), ("old_ppo", PPOConfig, True), ("old_ppo_discrete", PPOConfig, False)):
        old = name.startswith("old")
        c = config().environment(Sampled, env_config={"box": box}).env_runners(num_env_runners=0)
        if old:
            c = c.api_stack(enable_rl_module_and_learner=False, enable_env_runner_and_connector_v2=False).training(model={"fcnet_hiddens": [8, 7]}).framework("torch")
        else:
            c = c.rl_module(model_config={"fcnet_hiddens": [8, 7], "head_fcnet_hiddens": [6]})
        algorithm = c.build_algo()
        whole = Path("/tmp/rllib_checkpoint")
        shutil.rmtree(whole, ignore_errors=True)
        if old:
            policy = algorithm.get_policy()
            shaken(policy.model, 0.3)
            algorithm.save(str(whole))
            logits, _ = policy.model({"obs": torch.as_tensor(x)})
            record = {"obs": x, "raw": logits, "value": policy.model.value_function()}
        else:
            module = algorithm.get_module()
            learner = algorithm.learner_group._learner.module["default_policy"]
            shaken(learner, 0.3)
            algorithm.save_to_path(str(whole))
            with torch.no_grad():
                out = learner.forward_inference({"obs": torch.as_tensor(x)}) if module is not None else {}
            record = {"obs": x, **{k: v for k, v in out.items() if torch.is_tensor(v)}}
        place = folder(f"rllib_{name}") / "checkpoint"
        for file in whole.rglob("*"):
            if file.is_file() and ("default_policy" in file.parts or file.name == "rllib_checkpoint.json") and "optim" not in file.name:
                target = place / file.relative_to(whole)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, target)
        keep(place.parent, ["ray", "torch"], "box" if box else "discrete", record)
        algorithm.stop()
    ray.shutdown()


MAKERS: dict[str, Callable[[], None]] = {
    "onnx": make_onnx, "torchscript": make_torchscript, "export": make_export, "rsl_rl": make_rsl_rl, "skrl": make_skrl, "tianshou": make_tianshou,
    "rl_games": make_rl_games, "safetensors": make_safetensors, "d3rlpy": make_d3rlpy, "sklearn": make_sklearn, "keras": make_keras,
    "sbx": make_sbx, "brax": make_brax, "rllib": make_rllib,
}  # fmt: skip

if __name__ == "__main__":
    torch.set_num_threads(1)
    unknown = [name for name in sys.argv[1:] if name not in MAKERS]
    if unknown or len(sys.argv) < 2:
        sys.exit(f"say which: {' '.join(MAKERS)}")
    for chosen in sys.argv[1:]:
        MAKERS[chosen]()
