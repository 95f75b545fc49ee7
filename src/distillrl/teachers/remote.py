"""Teachers on a server: the Open Inference Protocol v2 over HTTP, and (``.toml``) language models as black boxes.

Such a teacher can only be asked: it gives its outputs and no features, and has no parameters of its own here.
Protocol: github.com/kserve/open-inference-protocol, ``GET …/v2/models/NAME`` and ``POST …/v2/models/NAME/infer``.
"""

from __future__ import annotations

import hashlib
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
from distillrl.teachers.answers import Answers, packed, unpacked
from distillrl.teachers.fitting import Reading, Seen, input_tensor, read, see
from distillrl.teachers.graphpolicy import decode, head_kind, knowledge, reshaped
from distillrl.teachers.http import Client

if TYPE_CHECKING:
    from distillrl.teachers import Options

TITLE = "Open Inference Protocol v2"
CONCURRENCY = 8
"""Requests at a time, where nothing else is said."""
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
    return connect(Client(str(source), concurrency=options.concurrency or CONCURRENCY), options.sees, spec)


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
    """States that the server was asked about so far."""
    remembered: int = 0
    """States whose answers were known already."""
    answers: Answers = field(default_factory=lambda: Answers(None))
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
        reading, n = self.reading, int(lead.numel())
        got = self._answered(feed, n)
        action = decode(reading, self.head, got[reading.action], got[reading.spread] if reading.spread else None)
        q = got[reading.action].flatten(1) if reading.kind == "greedy" else got[reading.q].flatten(1) if reading.q and "q" in wants else None
        prediction = Prediction(action, q=q, value=got[reading.value].reshape(-1) if reading.value and "value" in wants else None)
        return (prediction if len(lead) == 1 else reshaped(prediction, lead)), memory

    def keep_answers(self, path: Path) -> None:
        """Keep the answers in a file, and take from it what is known already."""
        self.answers = Answers(path)

    def cost(self) -> dict[str, float]:
        """States asked about, and states answered from what was known."""
        return {"asked": self.asked, "remembered": self.remembered}

    def _answered(self, feed: Mapping[str, Tensor], n: int) -> dict[str, Tensor]:
        """Every output that is read, [n, width]; each state is asked about once, all outputs together."""
        reading = self.reading
        names = tuple(dict.fromkeys(name for name in (reading.action, reading.spread, reading.value, reading.q) if name))
        about = f"{self.client.address} {names} {[(k, *x.shape[1:], str(x.dtype)) for k, x in feed.items()]}".encode()
        arrays = [x.contiguous().cpu().numpy() for x in feed.values()]
        questions = [hashlib.blake2b(about + b"".join(a[i].tobytes() for a in arrays), digest_size=20).hexdigest() for i in range(n)]
        rows = {q: row for q in set(questions) if (row := unpacked(self.answers.known.get(q, []), names)) is not None}
        fresh = {q: i for i, q in enumerate(questions) if q not in rows}
        self.remembered += n - len(fresh)
        where, whose = list(fresh.values()), list(fresh)
        asked = {k: x[where] for k, x in feed.items()}
        starts = range(0, len(where), self.states_a_request)
        bodies = [_request(asked, i, min(len(where), i + self.states_a_request), list(names)) for i in starts]

        def take(number: int, answer: Any) -> None:
            count, first = len_of(bodies[number]), starts[number]
            told = {name: _output(answer, name, count, self.client.address) for name in names}
            for j in range(count):
                self.answers.keep(whose[first + j], packed(told, j))
                rows[whose[first + j]] = {name: x[j] for name, x in told.items()}

        self.client.many("POST", "/infer", bodies, take)
        self.asked += len(where)
        return {name: torch.stack([rows[q][name] for q in questions]) for name in names}


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


