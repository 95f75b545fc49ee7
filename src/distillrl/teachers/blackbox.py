"""A language or vision-language model behind an OpenAI-compatible address as a teacher that can only be asked.

A ``.toml`` file describes it. A template turns a state into text, the answer's text is turned into an action; answers are
kept on disk, so that no state is asked about twice, in a resumed run neither; calls, tokens and their price are counted.

    kind = "openai"
    address = "http://127.0.0.1:8000/v1"
    model = "some-model"
    template = "The pole leans {obs[2]:.3f} rad and falls at {obs[3]:.3f} rad/s. Answer LEFT or RIGHT."
    answers = ["LEFT", "RIGHT"]         # discrete: a word for each action. Left out for a Box: the answer's numbers are the action
    images = []                          # observation groups (uint8, H×W or H×W×3) that are sent as pictures
    votes = 1                            # ask for so many answers; above 1 their shares are the distribution
    price_in = 0.0                       # per million tokens
    price_out = 0.0
    cache = "answers.jsonl"              # beside the .toml
    key_env = "OPENAI_API_KEY"           # the environment variable that holds the key, where one is needed; its name ends in API_KEY
    concurrency = 8
    retries = 3
    timeout = 60.0
    max_calls = 20000
    temperature = 0.0
    max_tokens = 16
    otherwise = "LEFT"                   # what an answer that can't be understood counts as (for a Box: "0, 0"); without it the run ends there
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import re
import struct
import threading
import tomllib
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from distillrl.actions import Action, Categorical, Deterministic
from distillrl.errors import Failed, Misconfigured, Missing, nearest
from distillrl.policies import ACTION, Memory
from distillrl.records import Prediction, Spec
from distillrl.teachers.answers import Answers
from distillrl.teachers.graphpolicy import reshaped
from distillrl.teachers.http import Client

if TYPE_CHECKING:
    from distillrl.teachers import Options

TITLE = "a language model"
_FIELD = re.compile(r"\{(\w+)(?:\[(\d+)\])?(?::([0-9.+,]*[a-z%]?))?\}")
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")


@dataclass(frozen=True)
class Asking:
    """What the ``.toml`` says; see the module's text."""

    address: str
    model: str
    template: str
    kind: str = "openai"
    answers: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    votes: int = 1
    price_in: float = 0.0
    price_out: float = 0.0
    cache: str = "answers.jsonl"
    key_env: str = ""
    concurrency: int = 8
    retries: int = 3
    timeout: float = 60.0
    max_calls: int = 20_000
    temperature: float = 0.0
    max_tokens: int = 16
    otherwise: str = ""


def load(path: Path, options: Options, spec: Spec | None = None) -> Any:
    """The policy that a ``.toml`` describes. Raises Misconfigured (an unknown key, a word too few), Missing (the environment)."""
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise Misconfigured(f"{path}: {error}") from None
    if given.get("kind") == "oip":
        from distillrl.teachers.remote import connect

        rest = {k: v for k, v in given.items() if k not in {"kind", "address"}}
        known = {"timeout", "retries", "concurrency"}
        for key in rest:
            if key not in known:
                raise Misconfigured(f"{path}: unknown key {key!r}{nearest(key, known)}")
        if options.concurrency is not None:
            rest["concurrency"] = options.concurrency
        return connect(Client(str(given["address"]), **rest), options.sees, spec)
    asking = _asking(path, given)
    return ask(asking if options.concurrency is None else replace(asking, concurrency=options.concurrency), spec, path.parent)


def _asking(path: Path, given: Mapping[str, Any]) -> Asking:
    known = {f.name: f for f in fields(Asking)}
    for key, value in given.items():
        if key not in known:
            raise Misconfigured(f"{path}: unknown key {key!r}{nearest(key, known)}")
        default = known[key].default
        wanted = (int, float) if isinstance(default, float) else (list,) if isinstance(default, tuple) else (int,) if isinstance(default, int) else (str,)
        if not isinstance(value, wanted) or isinstance(value, bool):
            raise Misconfigured(f"{path}: {key} = {value!r} was given, {' or '.join(w.__name__ for w in wanted)} is right")
    lacking = [k for k in ("address", "model", "template") if k not in given]
    if lacking:
        raise Misconfigured(f"{path} lacks {', '.join(lacking)}")
    told: dict[str, Any] = {k: tuple(map(str, v)) if isinstance(v, list) else v for k, v in given.items()}
    asking = Asking(**told)
    if asking.kind != "openai":
        raise Misconfigured(f"{path}: kind = {asking.kind!r}{nearest(asking.kind, ['openai', 'oip'])}")
    if min(asking.votes, asking.max_calls, asking.max_tokens) < 1:
        raise Misconfigured(f"{path}: votes, max_calls and max_tokens must be at least 1")
    if Path(asking.cache).name != asking.cache or asking.cache in {"", ".", ".."}:
        raise Misconfigured(f"{path}: cache = {asking.cache!r}: the name of a file beside this one is right")
    if asking.key_env and not asking.key_env.endswith("API_KEY"):
        raise Misconfigured(f"{path}: key_env = {asking.key_env!r}: a variable whose name ends in API_KEY is right, as its value is sent to the address")
    return asking


def ask(asking: Asking, spec: Spec | None, folder: Path) -> BlackBox:
    """A black box for an environment of this spec; the cache lies in ``folder``."""
    if spec is None:
        raise Missing("a language model doesn't say what it sees and does: give the environment with --env")
    for name, index, _ in _FIELD.findall(asking.template):
        if name not in spec.observations:
            raise Misconfigured(f"the template asks for {name!r}, and the environment has no such observation group{nearest(name, spec.observations)}")
        if index and int(index) >= int(np.prod(spec.observations[name].shape)):
            raise Misconfigured(f"the template asks for {name}[{index}], and that group is {spec.observations[name]}")
    for name in asking.images:
        if name not in spec.observations or spec.observations[name].dtype != "uint8":
            raise Misconfigured(f"images = [{name!r}]: the environment has no uint8 observation group of that name{nearest(name, spec.observations)}")
    if spec.action.kind == "discrete" and len(asking.answers) != spec.action.n:
        raise Misconfigured(f"answers has {len(asking.answers)} words, the environment has {spec.action.n} actions: one word for each is right")
    if spec.action.kind not in {"discrete", "box"} or (spec.action.kind == "box" and asking.answers):
        raise Misconfigured(f"a language model answers for a discrete action (a word each) or a Box (numbers), the environment's is {spec.action}")
    key = os.environ.get(asking.key_env, "") if asking.key_env else ""
    if asking.key_env and not key:
        raise Misconfigured(f"key_env = {asking.key_env!r}: there is no such environment variable")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    client = Client(asking.address, asking.timeout, asking.retries, concurrency=asking.concurrency, headers=headers)
    return BlackBox(spec, asking, client, Answers(folder / asking.cache))


class BlackBox:
    """See policies.Policy: a state's question is asked once, several at a time."""

    def __init__(self, spec: Spec, asking: Asking, client: Client, answers: Answers) -> None:
        self.spec, self.asking, self.client, self.answers = spec, asking, client, answers
        self.gives = frozenset({"action", "distribution"}) if asking.votes > 1 and spec.action.kind == "discrete" else frozenset({"action"})
        self.calls = self.cached = self.tokens_in = self.tokens_out = self.misunderstood = 0
        self._lock = threading.Lock()
        if asking.otherwise and self._meant(asking.otherwise) is None:
            raise Misconfigured(f"otherwise = {asking.otherwise!r} was given; {self._right()} right")
        self._bounds = (torch.tensor(spec.action.low, dtype=torch.float32), torch.tensor(spec.action.high, dtype=torch.float32)) if spec.action.kind == "box" else None

    @property
    def info(self) -> dict[str, Any]:
        """What it is, and what it has cost so far."""
        asking = self.asking
        return {"format": TITLE, "address": asking.address, "model": asking.model, "parameters": None, "layers": "on the server", "votes": asking.votes, "cost": self.cost(), "notes": []}

    def cost(self) -> dict[str, float]:
        """Calls, states answered from disk, tokens, and their price."""
        price = (self.tokens_in * self.asking.price_in + self.tokens_out * self.asking.price_out) / 1e6
        return {"calls": self.calls, "cached": self.cached, "tokens_in": self.tokens_in, "tokens_out": self.tokens_out, "misunderstood": self.misunderstood, "price": price}

    def init(self, n: int) -> Memory:
        """None."""
        return {}

    def act(self, obs: Mapping[str, Tensor], memory: Memory, starts: Tensor | None, wants: frozenset[str] = ACTION) -> tuple[Prediction, Memory]:
        """See Policy.act. Raises Failed where the server is dead, an answer can't be understood, or ``max_calls`` is reached."""
        first, group = next(iter(self.spec.observations.items()))
        lead = obs[first].shape[: obs[first].dim() - len(group.shape)]
        flat = {name: obs[name].reshape(-1, *g.shape).cpu().numpy() for name, g in self.spec.observations.items()}
        bodies = [self._body(flat, i) for i in range(int(lead.numel()))]
        questions = [hashlib.sha256(json.dumps(b, sort_keys=True).encode()).hexdigest() for b in bodies]
        missing = {q: b for q, b in zip(questions, bodies, strict=True) if q not in self.answers.known}
        self.cached += sum(q in self.answers.known for q in questions)
        if missing:
            self._ask(missing)
        prediction = Prediction(self._action([self.answers.known[q] for q in questions]))
        return (prediction if len(lead) == 1 else reshaped(prediction, lead)), memory

    def _ask(self, missing: Mapping[str, dict[str, Any]]) -> None:
        if self.calls + len(missing) > self.asking.max_calls:
            raise Failed(f"{self.asking.address}: max_calls = {self.asking.max_calls} is reached after {self.calls} calls")
        self.calls += len(missing)
        questions = list(missing)
        self.client.many("POST", "/chat/completions", [missing[q] for q in questions], lambda i, answer: self.answers.keep(questions[i], self._texts(answer)))

    def _texts(self, answer: Any) -> list[str]:
        try:
            texts = [str(c["message"]["content"]) for c in answer["choices"]]
            usage = answer.get("usage") or {}
            with self._lock:
                self.tokens_in += int(usage.get("prompt_tokens") or 0)
                self.tokens_out += int(usage.get("completion_tokens") or 0)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise Failed(f"{self.asking.address} answers what the chat protocol doesn't know ({type(error).__name__}: {error})") from None
        for text in texts:
            self._understood(text)
            with self._lock:
                self.misunderstood += self._meant(text) is None
        if len(texts) != self.asking.votes:
            raise Failed(f"{self.asking.address} gives {len(texts)} answers where {self.asking.votes} were asked for")
        return texts

    def _body(self, flat: Mapping[str, np.ndarray], i: int) -> dict[str, Any]:
        asking = self.asking
        text = filled(asking.template, {name: x[i] for name, x in flat.items()})
        content: Any = text
        if asking.images:
            content = [{"type": "text", "text": text}]
            content += [{"type": "image_url", "image_url": {"url": "data:image/png;base64," + base64.b64encode(png(flat[n][i])).decode()}} for n in asking.images]
        body = {"model": asking.model, "messages": [{"role": "user", "content": content}], "temperature": asking.temperature, "max_tokens": asking.max_tokens}
        return {**body, "n": asking.votes} if asking.votes > 1 else body

    def _understood(self, text: str) -> Any:
        """The action number, or the numbers, of an answer; ``otherwise`` stands in for one that says neither."""
        meant = self._meant(text)
        if meant is None and self.asking.otherwise:
            meant = self._meant(self.asking.otherwise)
        if meant is None:
            raise Failed(f"{self.asking.address} answered {text[:80]!r}; {self._right()} right (otherwise = … in its file says what such an answer counts as)")
        return meant

    def _right(self) -> str:
        return f"one of {', '.join(self.asking.answers[:8])} is" if self.asking.answers else f"{self.spec.action.dimensions} numbers are"

    def _meant(self, text: str) -> Any:
        if self.asking.answers:
            found = [(m.start(), -len(w), i) for i, w in enumerate(self.asking.answers) if (m := re.search(rf"(?<!\w){re.escape(w)}(?!\w)", text, re.IGNORECASE))]
            return min(found)[2] if found else None
        numbers = [float(m) for m in _NUMBER.findall(text)]
        return numbers if len(numbers) == self.spec.action.dimensions and all(map(math.isfinite, numbers)) else None

    def _action(self, answers: list[list[str]]) -> Action:
        given = [[self._understood(t) for t in texts] for texts in answers]
        if self._bounds is not None:
            return Deterministic(torch.tensor(given, dtype=torch.float32).mean(1), *self._bounds)
        counts = torch.zeros(len(given), self.spec.action.n)
        for row, votes in enumerate(given):
            for vote in votes:
                counts[row, vote] += 1
        if self.asking.votes == 1:
            return Deterministic(counts.argmax(-1))
        return Categorical(((counts + 0.5 / self.spec.action.n) / (self.asking.votes + 0.5)).log())


def filled(template: str, groups: Mapping[str, np.ndarray]) -> str:
    """The template with {group}, {group[3]} and {group[3]:.2f} replaced by an observation's numbers; other braces stay."""

    def value(match: re.Match[str]) -> str:
        name, index, form = match.groups()
        x = np.asarray(groups[name]).reshape(-1)
        if index is not None:
            return format(x[int(index)].item(), form or ".4g")
        return "[" + ", ".join(format(v.item(), form or ".4g") for v in x) + "]"

    return _FIELD.sub(value, template)


def png(image: np.ndarray) -> bytes:
    """A PNG of uint8 [H, W], [H, W, 1] or [H, W, 3] (PNG specification, filter 0)."""
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[:, :, 0]
    if image.ndim not in {2, 3} or (image.ndim == 3 and image.shape[2] != 3):
        raise Misconfigured(f"a picture of shape {image.shape} was given; H×W or H×W×3 is right")

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = np.ascontiguousarray(image, np.uint8).reshape(image.shape[0], -1)
    raw = np.concatenate([np.zeros((len(rows), 1), np.uint8), rows], 1).tobytes()
    head = struct.pack(">IIBBBBB", image.shape[1], image.shape[0], 8, 2 if image.ndim == 3 else 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
