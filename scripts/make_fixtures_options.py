#!/usr/bin/env python3
"""Make genuine files of libraries with options that ``make_fixtures_formats.py`` leaves at their defaults; the same layout.

    ../venvs/formats/bin/python scripts/make_fixtures_options.py skrl tianshou rl_games keras
    ../venvs/d3/bin/python scripts/make_fixtures_options.py d3rlpy            # and so on: rllib, sbx, cleanrl_jax

The virtual environments are those of ``make_fixtures_formats.py``. ``about.json`` also holds ``bounds`` of the environment's
action where they aren't ±100, and ``options`` with which the file is loaded, where the file alone doesn't tell all.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from make_fixtures_formats import ACT, ENVS, OBS, N, T, folder, keep, shaken, starts, states
from torch import nn

# ── skrl ──


def make_skrl() -> None:
    """A model of the user's own that policy and value share, a model in two parts, TD3's deterministic actor."""
    import gymnasium as gym
    from skrl.agents.torch.ppo import PPO, PPO_CFG
    from skrl.agents.torch.td3 import TD3, TD3_CFG
    from skrl.memories.torch import RandomMemory
    from skrl.models.torch import DeterministicMixin, GaussianMixin, Model
    from skrl.resources.preprocessors.torch import RunningStandardScaler
    from skrl.utils.model_instantiators.torch import deterministic_model, gaussian_model

    obs, act, x = gym.spaces.Box(-10, 10, (OBS,)), gym.spaces.Box(-1, 1, (ACT,)), states(N, OBS)
    common: dict[str, Any] = {"observation_space": obs, "action_space": act, "device": "cpu"}

    class Shared(GaussianMixin, DeterministicMixin, Model):
        """As in skrl's examples for Isaac Lab."""

        def __init__(self) -> None:
            Model.__init__(self, **common)
            GaussianMixin.__init__(self, clip_actions=False, clip_log_std=True, min_log_std=-20, max_log_std=2, role="policy")
            DeterministicMixin.__init__(self, clip_actions=False, role="value")
            self.net = nn.Sequential(nn.Linear(OBS, 8), nn.ELU(), nn.Linear(8, 7), nn.ELU())
            self.mean_layer, self.value_layer = nn.Linear(7, ACT), nn.Linear(7, 1)
            self.log_std_parameter = nn.Parameter(torch.zeros(ACT))

        def compute(self, inputs: Any, role: str) -> Any:
            latent = self.net(inputs["observations"])
            return (self.mean_layer(latent), {"log_std": self.log_std_parameter}) if role == "policy" else (self.value_layer(latent), {})

        def act(self, inputs: Any, role: str = "") -> Any:
            return (GaussianMixin if role == "policy" else DeterministicMixin).act(self, inputs, role=role)

    def write(name: str, agent: Any, models: dict[str, Any], seen: torch.Tensor, **about: Any) -> None:
        place = folder(name)
        agent.save(str(place / "agent.pt"))
        with torch.no_grad():
            inputs = {"observations": seen, "states": seen}
            action, more = models["policy"].compute(inputs, "policy")[:2]
            record = {"obs": x, "actions": action}
            if "log_std" in more:
                record["log_std"] = more["log_std"]
            if "value" in models:
                record["value"] = models["value"].compute(inputs, "value")[0][:, 0]
        keep(place, ["skrl", "torch"], "box", record, **about)

    def memory() -> Any:
        return RandomMemory(memory_size=4, num_envs=1, device="cpu")

    scaled = PPO_CFG(observation_preprocessor=RunningStandardScaler, observation_preprocessor_kwargs={"size": obs, "device": "cpu"})
    own = Shared()
    agent = PPO(models={"policy": own, "value": own}, memory=memory(), cfg=scaled, **common)
    agent.init()
    shaken(own)
    shaken(agent._observation_preprocessor)
    with torch.no_grad():
        write("skrl_own_shared", agent, {"policy": own, "value": own}, agent._observation_preprocessor(x))

    parts = [{"name": "a", "input": "OBSERVATIONS", "layers": [8], "activations": "elu"}, {"name": "b", "input": "a", "layers": [7], "activations": "elu"}]
    models = {"policy": gaussian_model(network=parts, output="ACTIONS", **common), "value": deterministic_model(network=parts, output="ONE", **common)}
    for model in models.values():
        model.init_state_dict(inputs={"observations": x, "states": x})
    agent = PPO(models=models, memory=memory(), cfg=PPO_CFG(), **common)
    agent.init()
    for model in models.values():
        shaken(model)
    write("skrl_two_parts", agent, models, x)

    def net(source: str, output: str) -> Any:
        return deterministic_model(network=[{"name": "net", "input": source, "layers": [8, 7], "activations": "relu"}], output=output, **common)

    both = "concatenate([OBSERVATIONS, ACTIONS])"
    names = ("critic_1", "critic_2", "target_critic_1", "target_critic_2")
    models = {name: net("OBSERVATIONS", "tanh(ACTIONS)") for name in ("policy", "target_policy")} | {name: net(both, "ONE") for name in names}
    for model in models.values():
        model.init_state_dict(inputs={"observations": x, "states": x, "taken_actions": torch.zeros(N, ACT)})
    agent = TD3(models=models, memory=memory(), cfg=TD3_CFG(), **common)
    agent.init()
    for model in models.values():
        shaken(model)
    write("skrl_td3", agent, {"policy": models["policy"]}, x, bounds=[-1.0, 1.0])


# ── Tianshou ──


def make_tianshou() -> None:
    """Its deterministic actor, SAC's, a bounded one, dueling, atoms, quantiles, and a recurrent network."""
    import gymnasium as gym
    from tianshou.algorithm.modelfree.c51 import C51Policy
    from tianshou.algorithm.modelfree.ddpg import ContinuousDeterministicPolicy
    from tianshou.algorithm.modelfree.dqn import DiscreteQLearningPolicy
    from tianshou.algorithm.modelfree.qrdqn import QRDQNPolicy
    from tianshou.algorithm.modelfree.reinforce import ProbabilisticActorPolicy
    from tianshou.algorithm.modelfree.sac import SACPolicy
    from tianshou.data import Batch
    from tianshou.utils.net.common import Net, Recurrent
    from tianshou.utils.net.continuous import ContinuousActorDeterministic, ContinuousActorProbabilistic
    from torch.distributions import Independent, Normal

    space, four = gym.spaces.Box(-10, 10, (OBS,)), gym.spaces.Discrete(4)
    box, unit = (gym.spaces.Box(np.full(ACT, -b, np.float32), np.full(ACT, b, np.float32)) for b in (2, 1))
    x = states(N, OBS)
    batch = Batch(obs=x.numpy(), info=Batch())
    discrete = {"action_space": four, "observation_space": space}

    def net(**more: Any) -> Any:
        return Net(state_shape=OBS, hidden_sizes=[8, 7], **more)

    def played(name: str, policy: Any, bound: float, **about: Any) -> None:
        shaken(policy).eval()
        place = folder(name)
        torch.save(policy.state_dict(), place / "policy.pth")
        with torch.no_grad():
            actions = policy.map_action(policy(batch).act)
        keep(place, ["tianshou", "torch"], "box", {"obs": x, "actions": actions}, bounds=[-bound, bound], **about)

    def valued(name: str, policy: Any, q: Any) -> None:
        shaken(policy).eval()
        if hasattr(policy, "support"):
            policy.support.data = torch.linspace(-5, 5, 11)
        place = folder(name)
        torch.save(policy.state_dict(), place / "policy.pth")
        with torch.no_grad():
            values = q(policy, policy(batch).logits)
        keep(place, ["tianshou", "torch"], "discrete", {"obs": x, "q": values})

    played("tianshou_deterministic", ContinuousDeterministicPolicy(actor=ContinuousActorDeterministic(preprocess_net=net(), action_shape=ACT, max_action=1.0), action_space=unit, observation_space=space, exploration_noise=None), 1.0)
    played("tianshou_sac", SACPolicy(actor=ContinuousActorProbabilistic(preprocess_net=net(), action_shape=ACT, unbounded=True, conditioned_sigma=True), action_space=box, observation_space=space, deterministic_eval=True), 2.0)
    for name, unbounded in (("scaled", True), ("bounded", False)):
        actor = ContinuousActorProbabilistic(preprocess_net=net(activation=nn.Tanh), action_shape=ACT, unbounded=unbounded)
        policy = ProbabilisticActorPolicy(actor=actor, dist_fn=lambda a: Independent(Normal(*a), 1), deterministic_eval=True, action_space=box, action_scaling=True, action_bound_method="clip")
        played(f"tianshou_{name}", policy, 2.0, options={"format": "tianshou:tanh" + ("" if unbounded else "+tanh")})
    dueling = net(action_shape=4, dueling_param=({"hidden_sizes": [5]}, {"hidden_sizes": [6]}))
    valued("tianshou_dueling", DiscreteQLearningPolicy(model=dueling, **discrete), lambda _, out: out)
    valued("tianshou_c51", C51Policy(model=net(action_shape=4, softmax=True, num_atoms=11), num_atoms=11, v_min=-5, v_max=5, **discrete), lambda p, out: (out * p.support).sum(2))
    valued("tianshou_qrdqn", QRDQNPolicy(model=net(action_shape=4, num_atoms=11), **discrete), lambda _, out: out.mean(2))
    recurrent = Recurrent(layer_num=1, state_shape=OBS, action_shape=4, hidden_layer_size=8)
    valued("tianshou_recurrent", DiscreteQLearningPolicy(model=recurrent, **discrete), lambda _, out: out)


# ── rl_games ──


def make_rl_games() -> None:
    """Separate critics, a spread that is a layer's, LSTMs and GRUs before and after the layers with what joins them, SAC."""
    from rl_games.algos_torch.models import ModelA2CContinuousLogStd, ModelSACContinuous
    from rl_games.algos_torch.network_builder import A2CBuilder, SACBuilder

    mlp = {"units": [8, 7], "activation": "elu", "initializer": {"name": "default"}}
    x, begin = states(N, OBS), starts()

    def build(rnn: dict[str, Any] | None = None, separate: bool = False, **space: Any) -> Any:
        told = {"mu_activation": "None", "sigma_activation": "None", "mu_init": {"name": "default"}, "sigma_init": {"name": "const_initializer", "val": 0}, "fixed_sigma": True, **space}
        builder = A2CBuilder()
        builder.load({"separate": separate, "mlp": mlp, "space": {"continuous": told}, **({"rnn": {"units": 5, "layers": 1, **rnn}} if rnn else {})})
        torch.manual_seed(0)
        model = ModelA2CContinuousLogStd(builder).build({"actions_num": ACT, "input_shape": (OBS,), "num_seqs": ENVS if rnn else 1, "value_size": 1, "normalize_value": True, "normalize_input": True})
        return shaken(model).eval()

    def write(name: str, model: Any, record: dict[str, Any], **about: Any) -> None:
        place = folder(f"rl_games_{name}")
        torch.save({"model": model.state_dict(), "epoch": 3, "optimizer": {}, "frame": 1, "last_mean_rewards": 1.0, "env_state": None}, place / "model.pth")
        keep(place, ["rl-games", "torch"], "box", record, **about)

    for name, model, about in (("separate", build(separate=True), {}), ("spread", build(fixed_sigma=False), {}), ("tanh", build(mu_activation="tanh"), {"bounds": [-1.0, 1.0], "options": {"format": "rl_games:elu+tanh"}})):
        with torch.no_grad():
            out = model({"is_train": False, "prev_actions": None, "obs": x, "rnn_states": None})
        write(name, model, {"obs": x, "actions": out["mus"], "log_std": out["sigmas"].log(), "value": out["values"][:, 0]}, **about)
    several = {
        "lstm": {"name": "lstm", "before_mlp": False}, "lstm_inputs": {"name": "lstm", "before_mlp": False, "concat_input": True}, "lstm_first": {"name": "lstm", "before_mlp": True, "layer_norm": True, "concat_output": True},
        "gru": {"name": "gru", "before_mlp": True, "layers": 2},
    }  # fmt: skip
    xs = states(T, ENVS, OBS)
    for name, rnn in several.items():
        model = build(rnn, separate=name == "lstm")
        memory = [torch.zeros(s.shape[0], ENVS, s.shape[2]) for s in model.get_default_rnn_state()]
        actions, values = [], []
        for t in range(T):
            for part in memory:
                part[:, torch.as_tensor(begin[t])] = 0
            with torch.no_grad():
                out = model({"is_train": False, "prev_actions": None, "obs": xs[t], "rnn_states": memory, "seq_length": 1})
            memory = list(out["rnn_states"])
            actions.append(out["mus"])
            values.append(out["values"][:, 0])
        write(name, model, {"obs": xs, "starts": begin, "actions": torch.stack(actions), "value": torch.stack(values)})
    sac = SACBuilder()
    sac.load({"mlp": mlp | {"activation": "relu"}, "space": {"continuous": {}}, "log_std_bounds": [-5, 2]})
    torch.manual_seed(0)
    model = shaken(ModelSACContinuous(sac).build({"obs_dim": OBS, "action_dim": ACT, "actions_num": ACT, "input_shape": (OBS,), "normalize_input": True, "normalize_value": False, "value_size": 1})).eval()
    network = model.sac_network
    place = folder("rl_games_sac")
    torch.save({"actor": network.actor.state_dict(), "critic": network.critic.state_dict(), "critic_target": network.critic_target.state_dict(), "running_mean_std": model.running_mean_std.state_dict(), "epoch": 1}, place / "model.pth")
    with torch.no_grad():
        out = network.actor(model.norm_obs(x))
    keep(place, ["rl-games", "torch"], "box", {"obs": x, "actions": out.mean, "log_std": out.scale.log()}, bounds=[-1.0, 1.0])


# ── d3rlpy ──


def make_d3rlpy() -> None:
    """Encoders with normalisation and dropout, scalers that were fitted, quantiles."""
    import d3rlpy
    from d3rlpy.algos import DoubleDQNConfig, IQLConfig, SACConfig
    from d3rlpy.models.encoders import VectorEncoderFactory
    from d3rlpy.models.q_functions import QRQFunctionFactory
    from d3rlpy.preprocessing import MinMaxActionScaler, StandardObservationScaler

    x, rng = states(N, OBS).numpy(), np.random.default_rng(0)
    plain, normed = VectorEncoderFactory([8, 7]), VectorEncoderFactory([8, 7], activation="swish", use_batch_norm=True, dropout_rate=0.2)

    def data(discrete: bool) -> Any:
        actions = rng.integers(0, 4, (300, 1)) if discrete else rng.uniform(-2, 3, (300, ACT)).astype(np.float32)
        return d3rlpy.dataset.MDPDataset((rng.standard_normal((300, OBS)) * 2 + 1).astype(np.float32), actions, rng.standard_normal((300, 1)).astype(np.float32), (np.arange(300) % 50 == 49).astype(np.float32))

    scaled = {"observation_scaler": StandardObservationScaler(eps=0.3), "action_scaler": MinMaxActionScaler()}
    both = {"actor_encoder_factory": plain, "critic_encoder_factory": plain, "batch_size": 16}
    cases = {
        "normed": SACConfig(actor_encoder_factory=normed, critic_encoder_factory=plain, batch_size=16), "iql_scaled": IQLConfig(value_encoder_factory=plain, **both, **scaled),
        "quantiles": DoubleDQNConfig(encoder_factory=VectorEncoderFactory([8, 7], activation="tanh"), q_func_factory=QRQFunctionFactory(n_quantiles=5), batch_size=16),
    }  # fmt: skip
    for name, config in cases.items():
        discrete, algo = name == "quantiles", config.create(device="cpu:0")
        algo.fit(data(discrete), n_steps=2, n_steps_per_epoch=1, show_progress=False, logger_adapter=d3rlpy.logging.NoopAdapterFactory(), save_interval=10**9)
        for module in vars(algo.impl.modules).values():
            if isinstance(module, nn.Module):
                shaken(module, 0.3)
        place = folder(f"d3rlpy_{name}")
        algo.save(str(place / "model.d3"))
        again = d3rlpy.load_learnable(str(place / "model.d3"))
        record = {"q": np.stack([again.predict_value(x, np.full((N,), k)) for k in range(4)], 1)} if discrete else {"actions": again.predict(x)}
        keep(place, ["d3rlpy", "torch"], "discrete" if discrete else "box", {"obs": x, **record}, **({} if discrete else {"bounds": [-2.0, 3.0]}))


MAKERS = {name.removeprefix("make_"): value for name, value in list(globals().items()) if name.startswith("make_")}

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    for wanted in sys.argv[1:] or MAKERS:
        MAKERS[wanted]()
