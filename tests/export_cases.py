"""Policies of every kind that exports, and observations for them: shared by the tests of exporting."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from distillrl import calibration, students
from distillrl.actions import Head
from distillrl.filters import Choose, Clip
from distillrl.normalising import Normalise
from distillrl.packing import Form
from distillrl.records import ActionSpace, Group, Spec
from distillrl.senses import ChannelsFirst, OneHot, Scale, Sense, Stack
from distillrl.students import compact
from distillrl.students.cnn import Image, Residual
from distillrl.students.fitted import Fitted
from distillrl.students.growing import Examples
from distillrl.students.networks import Network, initialise
from distillrl.teachers.fitting import Reading, Seen
from distillrl.teachers.graph import BATCH, Graph, Node, State
from distillrl.teachers.graph import Ref as R
from distillrl.teachers.graphpolicy import GraphPolicy
from distillrl.teachers.recurrence import Recurrent
from distillrl.wrapping import First, Join, RemainingTime

BOX = ActionSpace("box", (3,), low=(-1.0, -2.0, -np.inf), high=(1.0, 0.5, np.inf), dtype="float32")
BOUNDED = ActionSpace("box", (2, 2), low=(-1.0, -2.0, 0.0, -3.0), high=(1.0, 0.5, 0.25, 3.0), dtype="float64")
FOUR = ActionSpace("discrete", n=4)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def loud(network: Network) -> Network:
    """The same with outputs far apart and biases that aren't 0, so that a mistake shows."""
    made = generator(7)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(torch.randn(p.shape, generator=made) * 0.2)
    return network.eval()


def vector(size: int = 8, dtype: str = "float32") -> dict[str, Group]:
    return {"obs": Group((size,), dtype)}


def mlp(word: str, space: ActionSpace, observations: dict[str, Group] | None = None, head: str | None = None) -> Network:
    return loud(students.make(word, Spec(observations or vector(), space), generator(), head))


def made(observations: dict[str, Group], steps: list[object], body: list[nn.Module], out: nn.Module, space: ActionSpace = FOUR, kind: str = "categorical", **more: object) -> Network:
    torch.manual_seed(3)  # layers below are made by torch's own initialisers
    sense = Sense(observations, steps)
    log_std = torch.tensor([-1.0] * space.dimensions) if kind in {"gaussian", "squashed"} else None
    return loud(Network(Spec(observations, space), sense, nn.Sequential(*body), out, Head.of(kind, space), log_std=log_std, **more))


def normalised() -> Network:
    moments = {"obs": (torch.linspace(-50, 1000, 6), torch.linspace(0.01, 9, 6))}
    sense = Normalise.from_moments(moments, clip=5.0, dtype="float64")
    return made(vector(6, "float64"), [sense], [nn.Linear(6, 16), nn.Tanh()], nn.Linear(16, 4))


def several() -> Network:
    observations = {
        "switch": Group((), "int64", (3,)),
        "image": Group((2, 2, 3), "uint8"),
        "also": Group((2,), "int64", (4, 2)),
        "Float in": Group((3,), "float32"),
        "bits": Group((4,), "int8"),
    }
    steps = [OneHot({"switch": (3,), "also": (4, 2)}), Scale({"image": 255.0})]
    return made(observations, steps, [nn.Linear(12 + 3 + 6 + 3 + 4, 9), nn.SiLU()], nn.Linear(9, 4))


def filtered() -> Network:
    groups = {"goal": Group((2,), "float32"), "state": Group((6,), "float32")}
    steps = [Choose("state", [4, 0, 1, 5]), First("state", 2, 5), Clip(1.5, ["goal"]), Join(["state", "goal"], "both")]
    return made(groups, steps, [nn.Linear(7, 9), nn.Tanh()], nn.Linear(9, 4))


def remembering() -> Network:
    steps = [Stack(3, {"obs": (2,)}, {"obs": 0}, {"obs": "float32"}), RemainingTime("obs", 50)]
    return made(vector(2), steps, [nn.Linear(7, 11), nn.Tanh()], nn.Linear(11, 4))


def frames() -> Network:
    steps = [Scale({"obs": 255.0}), Stack(2, {"obs": (5, 6, 1)}, {"obs": -1}, {"obs": "float32"}), ChannelsFirst(["obs"])]
    body = [nn.Unflatten(-1, (2, 5, 6)), nn.Conv2d(2, 9, 3, stride=2, padding=(1, 2)), nn.ReLU(), nn.Conv2d(9, 5, (2, 3)), nn.ELU(), nn.Flatten(), nn.Linear(5 * 2 * 2, 12), nn.GELU()]
    # rows: (5 + 2 − 3) // 2 + 1 = 3 → 2; columns: (6 + 4 − 3) // 2 + 1 = 4 → 2
    return made({"obs": Group((5, 6, 1), "uint8")}, steps, body, nn.Linear(12, 4))


class GruPart(nn.Module):
    """A GRU between sense and body, as a network's ``recurrent``."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gru = nn.GRU(width, hidden)

    def init(self, n: int) -> dict[str, torch.Tensor]:
        return {"h": torch.zeros(n, 1, self.gru.hidden_size)}

    def forward(self, x, memory, starts):
        h = memory["h"] * (~starts).view(-1, 1, 1) if starts is not None else memory["h"]
        out, h = self.gru(x.unsqueeze(0), h.transpose(0, 1).contiguous())
        return out.squeeze(0), {"h": h.transpose(0, 1)}


def lstm() -> Network:
    torch.manual_seed(1)
    part = Recurrent([nn.Linear(4, 5), nn.Tanh()], nn.LSTM(5, 11, num_layers=2), [nn.Linear(11, 6), nn.ReLU()])
    return made(vector(4), [], [nn.Linear(6, 7), nn.Tanh()], nn.Linear(7, 4), recurrent=part)


def gru() -> Network:
    torch.manual_seed(1)
    return made(vector(4), [], [], nn.Linear(10, 3), BOX, "gaussian", recurrent=GruPart(4, 10))


def norms() -> Network:
    batch = nn.BatchNorm1d(8)
    batch.running_mean.copy_(torch.linspace(-1, 1, 8))
    batch.running_var.copy_(torch.linspace(0.5, 2, 8))
    return made(vector(), [], [batch, nn.Linear(8, 10), nn.LayerNorm(10), nn.Dropout(0.5), nn.PReLU(10), nn.Linear(10, 5), nn.ReLU6()], nn.Sequential(nn.Linear(5, 4), nn.Hardtanh(-2, 2)))


def activations() -> Network:
    layers: list[nn.Module] = []
    for kind in (nn.Tanh, nn.ReLU, nn.SiLU, nn.ELU, nn.GELU, nn.LeakyReLU, nn.Sigmoid, lambda: nn.GELU("tanh"), lambda: nn.ELU(0.7), nn.PReLU):
        layers += [nn.Linear(13, 13), kind()]
    return made(vector(13), [], layers, nn.Linear(13, 4))


def more_activations() -> Network:
    layers: list[nn.Module] = []
    for kind in (nn.Mish, nn.Softplus, lambda: nn.Softplus(2.0), nn.CELU, lambda: nn.CELU(0.5), nn.SELU, nn.LogSigmoid, nn.Softsign, nn.Hardswish, nn.Hardsigmoid):
        layers += [nn.Linear(13, 13), kind()]
    return made(vector(13), [], layers, nn.Linear(13, 4))


def attention() -> Network:
    groups = {"far": Group((5,), "float32"), "middle": Group((4,), "float32"), "near": Group((3,), "float32")}
    return mlp("attention:6x2:9", FOUR, groups)


def graph() -> GraphPolicy:
    """Operators of a converted file that no chain of layers has, two inputs, and a memory that doesn't start at 0."""
    made = generator(4)

    def c(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=made) * 0.6

    constants = {"mean": c(6), "std": c(6).abs() + 0.5, "w": c(8, 6), "b": c(8), "mix": c(4, 3), "kernel": c(3, 2, 2), "out": c(4, 24), "slope": c(4), "gate": c(8, 8), "few": c(1, 2, 1)}
    program: list[tuple[str, tuple[object, ...], tuple[str, ...]]] = [
        ("sub", (R("obs"), R("mean")), ("t0",)), ("div", (R("t0"), R("std")), ("t1",)), ("clamp", (R("t1"), -2.0, 2.0), ("seen",)),
        ("linear", (R("seen"), R("w"), R("b")), ("t2",)), ("add", (R("t2"), R("h")), ("t3",)), ("linear", (R("t3"), R("gate")), ("t4",)),
        ("mish", (R("t4"),), ("after",)), ("view", (R("after"), (BATCH, 2, 4)), ("tokens",)), ("transpose", (R("tokens"), 1, 2), ("turned",)),
        ("matmul", (R("tokens"), R("turned")), ("t5",)), ("softmax", (R("t5"), -1), ("share",)), ("matmul", (R("share"), R("tokens")), ("found",)),
        ("amax", (R("found"), 1, True), ("t6",)), ("sub", (R("found"), R("t6")), ("t7",)), ("exp", (R("t7"),), ("t8",)), ("mean", (R("t8"), (2,), True), ("t9",)),
        ("log", (R("t9"),), ("t10",)), ("where", (R("big"), R("t10"), R("few")), ("t11",)), ("mul", (R("found"), R("t11")), ("t12",)), ("prelu", (R("t12"), R("slope2")), ("t13",)),
        ("pad", (R("t13"), (1, 0)), ("t14",)), ("convolution", (R("t14"), R("kernel"), None, (1,), (0,), (1,), False, (0,), 1), ("t15",)), ("flatten", (R("t15"), 1), ("t16",)),
        ("matmul", (R("goal"), R("mix3")), ("t17",)), ("abs", (R("t17"),), ("t18",)), ("sqrt", (R("t18"),), ("t19",)), ("max", (R("t19"), R("goal")), ("t20",)), ("softsign", (R("t20"),), ("t21",)),
        ("cat", ((R("t16"), R("after"), R("t21"), R("one")), 1), ("t22",)), ("linear", (R("t22"), R("out")), ("logits",)), ("gt", (R("found"), 0.1), ("big",)),
    ]  # fmt: skip
    program.insert(17, program.pop())  # what is compared before it is chosen by
    constants |= {"mix3": c(3, 3), "slope2": c(2).abs(), "one": torch.ones(1, 1)}
    constants["out"] = c(4, 12 + 8 + 3 + 1)
    spec = Spec({"goal": Group((3,), "float32"), "obs": Group((6,), "float32")}, FOUR)
    nodes = tuple(Node(op, args, outputs) for op, args, outputs in program)
    start = torch.linspace(-1, 1, 8).reshape(1, 8)
    inputs = {"obs": ((6,), torch.float32), "goal": ((3,), torch.float32)}
    network = Graph(inputs, constants, nodes, {"logits": "logits"}, (State("h", "h", "after", start, 0),))
    return GraphPolicy(spec, network, Seen({"obs": ("obs",), "goal": ("goal",)}, spec.observations), Reading("logits", "categorical", FOUR), {}).eval()


def tree(space: ActionSpace, leaves: int = 40) -> Fitted:
    """A tree of random tests, grown by splitting leaves in turn."""
    network = students.make(f"tree:leaves={leaves}", Spec(vector(), space), generator())
    g, count = generator(5), 2 * leaves - 1
    feature, threshold = torch.randint(0, 8, (count,), generator=g), torch.randn(count, generator=g)
    branches = torch.arange(count).unsqueeze(-1).repeat(1, 2)
    for m in range(leaves - 1):
        branches[m] = torch.tensor([2 * m + 1, 2 * m + 2])
    value = torch.rand(count, network.model.outputs, generator=g) * 2
    if space.kind in {"multidiscrete", "multibinary"}:
        value = torch.stack([torch.randint(0, n, (count,), generator=g) for n in (space.nvec or (2,) * network.model.outputs)], -1).float()
    network.model.become(feature, threshold, branches, value)
    return network


def fitted(word: str, space: ActionSpace) -> Fitted:
    """A grown student of another family, fitted to a made-up teacher."""
    policy = students.make(word, Spec(vector(), space), generator())
    x = torch.randn(600, 8, generator=generator(6))
    if space.kind == "discrete":
        action = (x[:, 0] > 0).long() + (x[:, 1] * x[:, 2] > 0.3).long()
    else:
        action = torch.stack([x[:, i].tanh() * x[:, i + 1] for i in range(space.dimensions)], -1)
    policy.model.fit(Examples(x, action, None, None), generator(7))
    return policy


def zeros() -> Network:
    """Four of five weights are zero; a row of the last layer has none left."""
    policy = mlp("mlp:24x24", FOUR)
    g = generator(8)
    with torch.no_grad():
        for p in policy.parameters():
            if p.dim() == 2:
                p *= torch.rand(p.shape, generator=g) < 0.2
        policy.out.weight[2] = 0
    return policy


def grid() -> Network:
    """A small image of bytes, turned and then normalised, before convolutions."""
    policy = mlp("cnn:3-4:6", FOUR, {"obs": Group((6, 6, 2), "uint8", (), 0.0, 255.0)})
    mean = torch.linspace(1, 90, 72).reshape(policy.sense.groups["obs"].shape)
    policy.sense = policy.sense.with_step(Normalise.from_moments({"obs": (mean, mean * 40)}))
    return policy


def seen(first: bool) -> Network:
    """Colours made grey, the image cropped and made smaller both ways, frames stacked, then a residual network."""
    shape = (3, 11, 9) if first else (11, 9, 3)
    policy = mlp("cnn:impala" if first else "cnn:3-4:6", FOUR, {"obs": Group(shape, "uint8", (), 0.0, 255.0)})
    see = "grey, resize=6x5, stack=2" if first else "crop=1-10, resize=7x6:bilinear"
    policy = students.make("cnn:3-5:6", policy.spec, generator(), None, see)
    if first:
        policy.body[0] = Image((2, 6, 5), [nn.Conv2d(2, 5, 3, 1, 1), nn.MaxPool2d(3, 2, 1), Residual(5), nn.ReLU(), nn.Flatten()])
        policy.body[1] = nn.Linear(5 * 3 * 3, 6)
        initialise(policy, generator())
    return loud(policy)


def whole() -> Network:
    """Inputs and weights of whole numbers, as compress leaves them; the second layer mostly zeros."""
    policy = zeros()
    policy.body[0].weight.data = torch.randn(24, 8, generator=generator(9))
    obs = observations(policy.spec, 500, 10)["obs"]
    seen = {"body.0": obs}
    with torch.no_grad():
        seen["body.2"] = policy.body[1](policy.body[0](obs))
        seen["out"] = policy.body[3](policy.body[2](seen["body.2"]))
    rounded = calibration.round_inputs(policy, seen)
    forms = {name: Form(tuple(p.shape), 8, name == "body.2.weight") for name, p in policy.named_parameters() if p.dim() == 2}
    policy.compact = compact.Compact(forms, rounded, packed=False)
    live = students.build(policy.header(), policy.artifact_tensors(), learning=True)
    return students.build(live.header(), live.artifact_tensors())


CASES = {
    "discrete": lambda: mlp("mlp:64x64", FOUR),
    "start": lambda: mlp("mlp:16x16:relu", ActionSpace("discrete", n=3, start=-2)),
    "linear": lambda: mlp("mlp:", FOUR),
    "thin": lambda: mlp("mlp:1x3", FOUR, vector(1)),
    "wide": lambda: mlp("mlp:33x72:relu", ActionSpace("discrete", n=17), vector(5)),
    "multi": lambda: mlp("mlp:16", ActionSpace("multidiscrete", (3,), nvec=(2, 5, 3))),
    "binary": lambda: mlp("mlp:16:elu", ActionSpace("multibinary", (5,), n=5)),
    "box": lambda: mlp("mlp:16x16", BOX),
    "squashed": lambda: mlp("mlp:16x16:silu", BOUNDED, head="squashed"),
    "tanh": lambda: mlp("mlp:16x16:gelu", BOUNDED, head="tanh"),
    "greedy": lambda: mlp("mlp:16x16:leaky_relu", FOUR, head="greedy"),
    "taxi": lambda: mlp("mlp:16", ActionSpace("discrete", n=6), {"obs": Group((), "int64", (500,))}),
    "normalised": normalised,
    "several": several,
    "filtered": filtered,
    "remembering": remembering,
    "frames": frames,
    "lstm": lstm,
    "gru": gru,
    "gru student": lambda: mlp("gru:13:9", FOUR),
    "lstm student": lambda: mlp("lstm:6", BOX),
    "tree": lambda: tree(FOUR),
    "tree of a box": lambda: tree(BOUNDED),
    "tree of choices": lambda: tree(ActionSpace("multidiscrete", (3,), nvec=(2, 5, 3))),
    "forest": lambda: fitted("forest:trees=3,leaves=8", FOUR),
    "forest of a box": lambda: fitted("forest:trees=3,leaves=8", BOUNDED),
    "linear tree": lambda: fitted("linear-tree:leaves=4", FOUR),
    "linear tree of a box": lambda: fitted("linear-tree:leaves=4", BOUNDED),
    "sparse": lambda: fitted("linear:terms=3", FOUR),
    "polynomial": lambda: fitted("poly:degree=3,terms=9", FOUR),
    "polynomial of a box": lambda: fitted("poly:terms=9", BOUNDED),
    "tree of switches": lambda: tree(ActionSpace("multibinary", (3,), n=3)),
    "norms": norms,
    "activations": activations,
    "more activations": more_activations,
    "attention": attention,
    "graph": graph,
    "zeros": zeros,
    "grid": grid,
    "grey": lambda: seen(True),
    "resized": lambda: seen(False),
}
ROUNDED = {"whole": whole}
"""Those in which a number that lies between two steps may fall on either: not to be compared to 1e-5."""
MEMORY = {"graph", "grey", "gru student", "lstm student", "remembering", "frames", "lstm", "gru"}


def observations(spec: Spec, n: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random ones, such as the environment might give."""
    g = generator(seed)
    found = {}
    for name, group in spec.observations.items():
        dtype = getattr(torch, group.dtype)
        if group.categories:
            columns = [torch.randint(0, c, (n,), generator=g) for c in group.categories]
            found[name] = torch.stack(columns, -1).reshape(n, *group.shape).to(dtype)
        elif dtype.is_floating_point:
            found[name] = (torch.randn(n, *group.shape, generator=g) * 2).to(dtype)
        else:
            found[name] = torch.randint(0, 256 if group.dtype == "uint8" else 2, (n, *group.shape), generator=g).to(dtype)
    return found


def differences(policy, other, n: int = 64, steps: int = 5) -> tuple[float, float, float]:
    """The greatest difference of raw outputs and of actions over a few steps of n environments, some of which start anew; and the greatest raw output."""
    from distillrl.parity import margin, raw_outputs

    mine, theirs = policy.init(n), other.init(n)
    raw_error = action_error = size = 0.0
    with torch.inference_mode():
        for t in range(steps):
            obs = observations(policy.spec, n, t)
            starts = torch.ones(n, dtype=torch.bool) if t == 0 else torch.rand(n, generator=generator(t)) < 0.2
            a, mine = policy.act(obs, mine, starts)
            b, theirs = other.act(obs, theirs, starts)
            assert a.action.mode.shape == b.action.mode.shape
            raw = raw_outputs(a)
            if raw is not None:
                raw_error = max(raw_error, float((raw - torch.as_tensor(np.array(other.raw))).abs().max()))
                size = max(size, float(raw.abs().max()))
            differ = (a.action.mode.double() - b.action.mode.double()).abs().reshape(n, -1).amax(-1)
            if raw is not None and policy.spec.action.kind != "box":
                differ = differ[margin(raw, policy.spec) > 1e-4]
            action_error = max(action_error, float(differ.max()) if len(differ) else 0.0)
    return raw_error, action_error, size
