"""Teachers on a server: the Open Inference Protocol v2 over HTTP, and (``.toml``) language models as black boxes.

Such a teacher can only be asked: it gives its outputs and no features, and has no parameters of its own here.
Protocol: github.com/kserve/open-inference-protocol, ``GET …/v2/models/NAME`` and ``POST …/v2/models/NAME/infer``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from distillrl.actions import Head
from distillrl.errors import Failed, Missing
from distillrl.policies import ACTION, Memory
from distillrl.records import Prediction, Spec
from distillrl.teachers.fitting import Reading, Seen, input_tensor, read, see
from distillrl.teachers.graphpolicy import decode, head_kind, knowledge, reshaped
from distillrl.teachers.http import Client

if TYPE_CHECKING:
    from distillrl.teachers import Options

TITLE = "Open Inference Protocol v2"
MAX_STATES = 256
"""States in one request, where the model takes any number."""
DTYPES = {"FP64": torch.float64, "FP32": torch.float32, "FP16": torch.float16, "INT64": torch.int64, "INT32": torch.int32, "INT16": torch.int16, "INT8": torch.int8, "UINT8": torch.uint8, "BOOL": torch.bool}  # fmt: skip
MAX_NUMBERS = 1 << 26


def sniff(path: Path) -> bool:
    """Whether the file is a ``.toml`` that describes a server or a language model."""
    if path.suffix.lower() != ".toml" or not path.is_file() or path.stat().st_size > 1 << 20:
        return False
    return b"address" in path.read_bytes()


def load(source: str | Path, options: Options, spec: Spec | None = None) -> Any:
    """The policy behind an address, or of a ``.toml`` (see ``blackbox``). Raises Failed (a dead server), Misconfigured, Missing."""
    if isinstance(source, Path):
        from distillrl.teachers import blackbox

        return blackbox.load(source, options, spec)
    return connect(Client(str(source)), options.sees, spec)


def connect(client: Client, sees: str | None, spec: Spec | None) -> ServedPolicy:
    """Ask the server what it has, and fit it to the environment."""
    told = client.json("GET", "")
    try:
        inputs = {str(i["name"]): _described(i) for i in told["inputs"]}
        outputs = {str(o["name"]): _described(o) for o in told["outputs"]}
        free = all(i["shape"][0] == -1 for i in told["inputs"])
        name = str(told.get("name", "?"))[:80]
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise Failed(f"{client.address} doesn't describe a model of the Open Inference Protocol ({type(error).__name__}: {error})") from None
    who = f"the model {name!r} of {client.address}"
    seen = see(inputs, spec, sees, who)
    reading = read({n: (*s, "") for n, s in outputs.items()}, spec.action if spec else None, who)
    info = {
        "format": TITLE, "address": client.address, "model": name, "platform": str(told.get("platform", "?"))[:80], "parameters": None,
        "inputs": {n: list(s) for n, (s, _) in inputs.items()}, "notes": [*seen.notes, *reading.notes], "layers": "on the server",
    }  # fmt: skip
    return ServedPolicy(Spec(seen.observations, reading.space), frozenset(knowledge(reading)), info, client, inputs, seen, reading, MAX_STATES if free else 1)


def _described(told: Mapping[str, Any]) -> tuple[tuple[int, ...], torch.dtype]:
    if told["datatype"] not in DTYPES:
        raise ValueError(f"the datatype {told['datatype']!r} is not known here")
    return tuple(abs(int(s)) for s in told["shape"][1:]), DTYPES[told["datatype"]]


@dataclass
class ServedPolicy:
    """See policies.Policy: each call asks the server, many states in a request and several requests at a time."""

    spec: Spec
    gives: frozenset[str]
    info: Mapping[str, Any]
    client: Client
    inputs: Mapping[str, tuple[tuple[int, ...], torch.dtype]]
    seen: Seen
    reading: Reading
    states_a_request: int
    asked: int = 0
    """States asked about so far."""
    head: Head = field(init=False)

    def __post_init__(self) -> None:
        self.head = Head.of(head_kind(self.reading), self.reading.space)

    def init(self, n: int) -> Memory:
        """None."""
        return {}

    def act(self, obs: Mapping[str, Tensor], memory: Memory, starts: Tensor | None, wants: frozenset[str] = ACTION) -> tuple[Prediction, Memory]:
        """See Policy.act."""
        first, group = next(iter(self.seen.observations.items()))
        lead = obs[first].shape[: obs[first].dim() - len(group.shape)]
        flat = {name: obs[name].reshape(-1, *g.shape) for name, g in self.seen.observations.items()}
        feed = {name: input_tensor(flat, self.seen.sources[name], self.seen.observations, shape, dtype) for name, (shape, dtype) in self.inputs.items()}
        reading = self.reading
        names = [reading.action, *([reading.spread] if reading.spread else [])]
        names += [n for n, want in ((reading.value, "value"), (reading.q, "q")) if n and want in wants and n not in names]
        n = int(lead.numel())
        bodies = [_request(feed, i, min(n, i + self.states_a_request), names) for i in range(0, n, self.states_a_request)]
        answers = self.client.many("POST", "/infer", bodies)
        self.asked += n
        got = {name: torch.cat([_output(a, name, len_of(b), self.client.address) for a, b in zip(answers, bodies, strict=True)]) for name in names}
        action = decode(reading, self.head, got[reading.action], got[reading.spread] if reading.spread else None)
        q = got[reading.action].flatten(1) if reading.kind == "greedy" else got[reading.q].flatten(1) if reading.q in got else None
        prediction = Prediction(action, q=q, value=got[reading.value].reshape(-1) if reading.value in got else None)
        return (prediction if len(lead) == 1 else reshaped(prediction, lead)), memory


def len_of(body: Mapping[str, Any]) -> int:
    """States in a request."""
    return int(body["inputs"][0]["shape"][0])


def _request(feed: Mapping[str, Tensor], start: int, end: int, names: list[str]) -> dict[str, Any]:
    words = {dtype: word for word, dtype in DTYPES.items()}
    inputs = [{"name": n, "shape": [end - start, *x.shape[1:]], "datatype": words[x.dtype], "data": x[start:end].reshape(-1).tolist()} for n, x in feed.items()]
    return {"inputs": inputs, "outputs": [{"name": n} for n in names]}


def _output(answer: Any, name: str, n: int, address: str) -> Tensor:
    try:
        told = next(o for o in answer["outputs"] if o["name"] == name)
        shape = [int(s) for s in told["shape"]]
        data = told["data"]
        while isinstance(data, list) and data and isinstance(data[0], list):
            data = [x for row in data for x in row]
        if shape[:1] != [n] or min(shape) < 0 or math.prod(shape) > MAX_NUMBERS or len(data) != math.prod(shape):
            raise Failed(f"{address} answers {name!r} with {len(data)} numbers as {shape[:8]}, for {n} states")
        made = torch.tensor(data, dtype=DTYPES[told["datatype"]])
    except StopIteration:
        raise Missing(f"{address} doesn't give the output {name!r} that it describes") from None
    except (KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise Failed(f"{address} answers what the protocol doesn't know ({type(error).__name__}: {str(error)[:100]})") from None
    if made.is_floating_point() and not bool(torch.isfinite(made).all()):
        raise Failed(f"{address} answers {name!r} with NaN or infinity")
    return made.reshape(n, -1)


