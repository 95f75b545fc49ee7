#!/usr/bin/env python3
"""Make genuine files of libraries with options that ``make_fixtures_formats.py`` leaves at their defaults; the same layout.

    ../venvs/formats/bin/python scripts/make_fixtures_options.py skrl tianshou rl_games sklearn keras
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


# ── scikit-learn ──


def make_sklearn() -> None:
    """Joblib's own kind of pickle: a pipeline and a forest."""
    import joblib
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x = states(300, OBS).numpy() * 3 + 1
    choice, numbers = (x[:, 0] > 1) + 2 * (x[:, 1] > 1), np.stack([x[:, 0] * 2, x[:, 1] ** 2 / 9, x[:, 2] - x[:, 3]], 1)
    for name, model, target in (("pipeline", make_pipeline(StandardScaler(), MLPClassifier((8, 7), max_iter=50, random_state=0)), choice), ("forest", RandomForestRegressor(3, max_depth=4, random_state=0), numbers)):
        model.fit(x, target)
        place, few = folder(f"sklearn_joblib_{name}"), x[:N]
        joblib.dump(model, place / "model.joblib")
        keep(place, ["scikit-learn", "joblib"], "discrete" if name == "pipeline" else "box", {"obs": few, **({"probabilities": model.predict_proba(few)} if name == "pipeline" else {"actions": model.predict(few)})})


# ── Keras ──


def make_keras() -> None:
    """Operations of keras.ops, a model inside of a model, a layer used twice, windows, images."""
    import keras
    from keras import layers

    x, rng = states(N, OBS).numpy(), np.random.default_rng(0)
    window, image = states(N, 5, OBS).numpy(), rng.integers(0, 255, (N, 9, 9, 2)).astype(np.float32)

    def flow(build: Any) -> Any:
        given = keras.Input((OBS,))
        return keras.Model(given, build(given))

    def inner(given: Any) -> Any:
        encoder = keras.Sequential([keras.Input((OBS,)), layers.Dense(8, activation="relu"), layers.Dense(OBS, activation="leaky_relu")], name="encoder")
        return layers.Dense(4)(encoder(encoder(given)))

    def dueling(given: Any) -> Any:
        latent = layers.Dense(8, activation="relu")(given)
        v, a = layers.Dense(1)(latent), layers.Dense(4)(latent)
        return v + a - keras.ops.mean(a, axis=1, keepdims=True)

    def rows(*parts: Any, shape: Any) -> Any:
        return keras.Sequential([keras.Input(shape), *parts, layers.Dense(4)])

    cases = {
        "scaled": (lambda: flow(lambda g: layers.Dense(ACT, activation="tanh")(layers.Dense(8, activation="relu")(g)) * 2.0 + 0.5), x, "actions"), "dueling": (lambda: flow(dueling), x, "logits"),
        "nested": (lambda: flow(inner), x, "logits"), "lstm": (lambda: rows(layers.LSTM(7), shape=(5, OBS)), window, "logits"),
        "gru": (lambda: rows(layers.GRU(7, return_sequences=True), layers.GRU(6), shape=(5, OBS)), window, "logits"),
        "images": (lambda: rows(layers.Rescaling(1 / 255.0), layers.Conv2D(3, 3, padding="same", strides=2), layers.BatchNormalization(), layers.ReLU(negative_slope=0.1), layers.MaxPooling2D(2), layers.Flatten(), shape=(9, 9, 2)), image, "logits"),
    }  # fmt: skip
    for name, (build, given, said) in cases.items():
        keras.utils.set_random_seed(0)
        model = build()
        for weight in model.weights:
            value = np.asarray(weight) + 0.3 * rng.standard_normal(weight.shape)
            weight.assign((np.abs(value) + 0.2 if "variance" in weight.path else value).astype(np.float32))
        place = folder(f"keras_{name}")
        model.save(place / "model.keras")
        answer = keras.models.load_model(place / "model.keras").predict(given, verbose=0)
        keep(place, ["keras"], "box" if said == "actions" else "discrete", {"obs": given, said: answer})


# ── SBX and CleanRL's Jax files ──


def make_sbx() -> None:
    """An activation with a derivative of its own (pickled otherwise than compiled ones), and CrossQ."""
    import flax.linen as fnn
    import gymnasium as gym
    import jax
    import sbx
    from make_fixtures_formats import pack

    class Sampled(gym.Env):
        def __init__(self, action: Any) -> None:
            self.observation_space, self.action_space = gym.spaces.Box(-10, 10, (OBS,)), action

        def reset(self, *, seed: Any = None, options: Any = None) -> Any:
            return self.observation_space.sample(), {}

        def step(self, action: Any) -> Any:
            return self.observation_space.sample(), 0.0, False, False, {}

    box = gym.spaces.Box(np.full(ACT, -2, np.float32), np.full(ACT, 3, np.float32))
    x = states(N, OBS).numpy()
    for name, kind, action, more in (("ppo_relu", sbx.PPO, box, {"activation_fn": fnn.relu}), ("crossq", sbx.CrossQ, box, {})):
        off = {} if kind is sbx.PPO else {"learning_starts": 1, "buffer_size": 100}
        model = kind("MlpPolicy", Sampled(action), policy_kwargs={"net_arch": {"pi": [8, 7], "qf": [6], "vf": [6]} if kind is sbx.PPO else {"pi": [8, 7], "qf": [6]}, **more}, seed=0, **off)
        keys = iter(jax.random.split(jax.random.PRNGKey(1), 500))

        def moved(p: Any, keys: Any = keys) -> Any:
            return p + 0.3 * jax.random.normal(next(keys), np.shape(p)) if hasattr(p, "dtype") and p.dtype.kind == "f" else p

        for part in ("actor_state", "qf_state", "vf_state"):
            state = getattr(model.policy, part, None)
            if state is not None:
                state = state.replace(params=jax.tree_util.tree_map(moved, state.params))
                if getattr(state, "batch_stats", None):
                    state = state.replace(batch_stats=jax.tree_util.tree_map(lambda p: abs(moved(p)) + 0.2 if hasattr(p, "dtype") and p.dtype.kind == "f" else p, state.batch_stats))
                setattr(model.policy, part, state)
        place = folder(f"sbx_{name}")
        model.save(place / "model.zip")
        pack(place / "model.zip")
        keep(place, ["sbx-rl", "jax", "flax"], "box", {"obs": x, "actions": kind.load(place / "model.zip").predict(x, deterministic=True)[0]}, bounds=[-2.0, 3.0])


def make_cleanrl_jax() -> None:
    """What CleanRL's dqn_jax.py, c51_jax.py and ddpg_continuous_action_jax.py write: flax's ``to_bytes``, of the same networks, narrower."""
    import flax.linen as fnn
    import flax.serialization
    import jax
    import jax.numpy as jnp

    class Network(fnn.Module):
        outputs: int
        last: Any = None

        @fnn.compact
        def __call__(self, x: Any) -> Any:
            x = fnn.relu(fnn.Dense(8)(x))
            x = fnn.relu(fnn.Dense(7)(x))
            x = fnn.Dense(self.outputs)(x)
            return x if self.last is None else self.last(x)

    x = states(N, OBS).numpy()

    def made(network: Any) -> Any:
        keys = iter(jax.random.split(jax.random.PRNGKey(1), 50))
        return jax.tree_util.tree_map(lambda p: p + 0.3 * jax.random.normal(next(keys), p.shape), network.init(jax.random.PRNGKey(0), x))

    def write(name: str, tree: Any, action: str, record: dict[str, Any], **about: Any) -> None:
        place = folder(f"cleanrl_flax_{name}")
        (place / f"{name}.cleanrl_model").write_bytes(flax.serialization.to_bytes(tree))
        keep(place, ["flax", "jax"], action, {"obs": x, **record}, **about)

    values, atoms, actor = Network(4), Network(4 * 11), Network(ACT, fnn.tanh)
    weights = made(values)
    write("dqn_jax", weights, "discrete", {"q": values.apply(weights, x)})
    weights = made(atoms)
    chances = fnn.softmax(atoms.apply(weights, x).reshape(N, 4, 11), axis=-1)
    write("c51_jax", {"model_weights": weights, "args": {"env_id": "CartPole-v1", "n_atoms": 11, "v_min": -5.0, "v_max": 5.0}}, "discrete", {"q": (chances * jnp.linspace(-5, 5, 11)).sum(-1)})
    weights = made(actor)
    write("ddpg_jax", [weights, made(Network(1))], "box", {"actions": actor.apply(weights, x)}, bounds=[-1.0, 1.0])


# ── RLlib ──


def make_rllib() -> None:
    """The new stack with MeanStdFilter, with an LSTM, and DQN with atoms; what a policy needs of the checkpoints."""
    import shutil

    import gymnasium as gym
    import ray
    from ray.rllib.algorithms.dqn import DQNConfig
    from ray.rllib.algorithms.ppo import PPOConfig
    from ray.rllib.connectors.env_to_module import MeanStdFilter
    from ray.rllib.utils.filter import MeanStdFilter as Filter
    from ray.rllib.utils.filter import RunningStat

    class Sampled(gym.Env):
        def __init__(self, config: Any) -> None:
            self.observation_space, self.action_space, self.steps = gym.spaces.Box(-10, 10, (OBS,), np.float32), gym.spaces.Discrete(4), 0

        def reset(self, *, seed: Any = None, options: Any = None) -> Any:
            self.steps = 0
            return self.observation_space.sample(), {}

        def step(self, action: Any) -> Any:
            self.steps += 1
            return self.observation_space.sample(), 0.0, self.steps > 10, False, {}

    ray.init(num_cpus=1, include_dashboard=False, ignore_reinit_error=True, logging_level="ERROR")
    x, xs, begin = states(N, OBS), states(T, ENVS, OBS), starts()
    whole = Path("/tmp/rllib_checkpoint")
    for name in ("filter", "lstm", "atoms"):
        c = (DQNConfig if name == "atoms" else PPOConfig)().environment(Sampled).learners(num_learners=0)
        c = c.env_runners(num_env_runners=0, **({"env_to_module_connector": lambda *_, **__: MeanStdFilter()} if name == "filter" else {}))
        c = c.rl_module(model_config={"fcnet_hiddens": [8, 7], **({"use_lstm": True, "lstm_cell_size": 5} if name == "lstm" else {})})
        c = c.training(num_atoms=5, v_min=-3.0, v_max=3.0) if name == "atoms" else c
        algorithm = c.build_algo()
        module = shaken(algorithm.learner_group._learner.module["default_policy"], 0.2)
        if name == "filter":
            algorithm.env_runner.sample(num_timesteps=120, random_actions=True)
        shutil.rmtree(whole, ignore_errors=True)
        algorithm.save_to_path(str(whole))
        record: dict[str, Any] = {"obs": x}
        with torch.no_grad():
            if name == "filter":
                seen = Filter(shape=(OBS,), clip=10.0)
                kept = algorithm.env_runner._env_to_module.connectors[0].get_state()[None]
                seen.running_stats = RunningStat.from_state(kept["running_stats"][0])
                record["logits"] = module.forward_inference({"obs": torch.stack([torch.as_tensor(seen(o.numpy(), update=False)) for o in x])})["action_dist_inputs"]
            elif name == "atoms":
                record["q"] = module.compute_q_values({"obs": x})["qf_preds"]
            else:
                first = {who: {k: torch.as_tensor(v).expand(ENVS, *v.shape).clone() for k, v in part.items()} for who, part in module.get_initial_state().items()}
                memory, logits, values = first, [], []
                for t in range(T):
                    for part in memory.values():
                        for v in part.values():
                            v[torch.as_tensor(begin[t])] = 0
                    given = {"obs": xs[t][:, None], "state_in": memory}
                    values.append(module.compute_values(given)[:, 0])
                    out = module.forward_train(given)
                    memory = {who: {k: v.clone() for k, v in part.items()} for who, part in out["state_out"].items()}
                    logits.append(out["action_dist_inputs"][:, 0])
                record = {"obs": xs, "starts": begin, "logits": torch.stack(logits), "value": torch.stack(values)}
        place = folder(f"rllib_{name}") / "checkpoint"
        for file in whole.rglob("*"):
            needed = "default_policy" in file.parts or "env_to_module_connector" in file.parts or file.name == "rllib_checkpoint.json"
            if file.is_file() and needed and "optim" not in file.name:
                target = place / file.relative_to(whole)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, target)
        keep(place.parent, ["ray", "torch"], "discrete", record)
        algorithm.stop()
    ray.shutdown()


MAKERS = {name.removeprefix("make_"): value for name, value in list(globals().items()) if name.startswith("make_")}

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    for wanted in sys.argv[1:] or MAKERS:
        MAKERS[wanted]()
