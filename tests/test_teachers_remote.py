"""Servers of the Open Inference Protocol and of the OpenAI chat protocol: local fakes that follow the public API."""

from __future__ import annotations

import base64
import json
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distillrl.errors import Failed, Misconfigured, Missing
from distillrl.records import ActionSpace, Group, Spec
from distillrl.teachers import Options, load
from distillrl.teachers.blackbox import filled, png
from distillrl.teachers.http import Client
from distillrl.teachers.remote import connect

CARTPOLE = Spec({"obs": Group((4,), "float32")}, ActionSpace("discrete", n=2))
BOX = Spec({"obs": Group((3,), "float32")}, ActionSpace("box", (2,), low=(-1.0, -1.0), high=(1.0, 1.0), dtype="float32"))
WEIGHT = np.array([[1.0, -0.5], [0.25, 0.5], [-1.0, 2.0]])


@contextmanager
def server(answer: Callable[[str, str, Any, dict[str, str]], tuple[int, Any]]) -> Iterator[str]:
    """A server on this machine; ``answer(method, path, body, headers)`` gives a status and what is sent as JSON (bytes as they are)."""

    class Handler(BaseHTTPRequestHandler):
        def _serve(self, method: str) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, told = answer(method, self.path, json.loads(body) if body else None, dict(self.headers))
            data = told if isinstance(told, bytes) else json.dumps(told).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self) -> None:
            self._serve("GET")

        def do_POST(self) -> None:
            self._serve("POST")

        def log_message(self, *args: Any) -> None:
            pass

    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{made.server_port}"
    finally:
        made.shutdown()
        made.server_close()
        thread.join()


def oip(sizes: list[int], requests: list[Any], **changes: Any) -> Callable[[str, str, Any, dict[str, str]], tuple[int, Any]]:
    """A model ``actions = tanh(obs · W)`` of the protocol."""

    def answer(method: str, path: str, body: Any, headers: dict[str, str]) -> tuple[int, Any]:
        if method == "GET":
            return 200, {
                "name": "expert", "versions": ["1"], "platform": "test", "inputs": [{"name": "obs", "datatype": "FP32", "shape": sizes}],
                "outputs": [{"name": "actions", "datatype": "FP32", "shape": [sizes[0], 2]}],
            }  # fmt: skip
        requests.append(body)
        told = body["inputs"][0]
        x = np.array(told["data"]).reshape(told["shape"])
        out = np.tanh(x @ WEIGHT)
        given = {"name": "actions", "datatype": "FP32", "shape": list(out.shape), "data": out.reshape(-1).tolist()}
        return 200, {"model_name": "expert", "outputs": [{**given, **changes}]}

    return answer


@pytest.mark.parametrize(("shape", "number"), [([-1, 3], 2), ([1, 3], 40)])
def test_oip_many_states_in_few_requests(shape: list[int], number: int) -> None:
    requests: list[Any] = []
    with server(oip(shape, requests)) as address:
        policy = load(f"{address}/v2/models/expert", Options(), BOX)
        n = 300 if shape[0] < 0 else 40
        x = torch.randn(n, 3)
        prediction, memory = policy.act({"obs": x}, policy.init(n), None)
        assert prediction.action.mode.numpy() == pytest.approx(np.tanh(x.numpy() @ WEIGHT), abs=1e-6)
        assert len(requests) == number
        assert memory == {}
        assert policy.gives == {"action"}
        two, _ = policy.act({"obs": x.reshape(4, n // 4, 3)}, {}, None)
        assert two.action.mode.shape == (4, n // 4, 2)
        assert (policy.asked, policy.remembered, len(requests)) == (n, n, number)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"shape": [1, 3]}, "for 4 states"),
        ({"shape": [4, 1 << 40]}, "numbers"),
        ({"data": [0.0]}, "1 numbers"),
        ({"data": ["x"] * 8}, "protocol"),
        ({"data": [1e400] * 8}, "NaN or infinity"),
        ({"name": "other"}, "doesn't give the output 'actions'"),
        ({"datatype": "STR"}, "protocol"),
    ],
)
def test_oip_answers_that_lie(changes: dict[str, Any], says: str) -> None:
    with server(oip([-1, 3], [], **changes)) as address:
        policy = load(f"{address}/v2/models/expert", Options(), BOX)
        with pytest.raises((Failed, Missing), match=says):
            policy.act({"obs": torch.arange(12.0).reshape(4, 3)}, {}, None)


def test_a_dead_server_is_a_sentence_after_bounded_tries() -> None:
    waits: list[float] = []
    client = Client("http://127.0.0.1:9/v2/models/x", retries=3, backoff=0.5, sleep=waits.append)
    with pytest.raises(Failed, match=r"doesn't answer .* after 4 tries"):
        connect(client, None, BOX)
    assert waits == [0.5, 1.0, 2.0]


def test_a_busy_server_is_asked_again_and_a_refusing_one_is_not() -> None:
    calls: list[str] = []

    def busy(method: str, path: str, body: Any, headers: dict[str, str]) -> tuple[int, Any]:
        calls.append(method)
        if path.startswith("/refuse"):
            return 403, {"error": "no"}
        return (503, {"error": "later"}) if len(calls) < 3 else oip([-1, 3], [])(method, path, body, headers)

    with server(busy) as address:
        policy = connect(Client(address, sleep=lambda _: None), None, BOX)
        assert policy.info["model"] == "expert"
        assert len(calls) == 3
        with pytest.raises(Failed, match=r"status 403.*after 1 try"):
            connect(Client(f"{address}/refuse", sleep=lambda _: None), None, BOX)


@pytest.mark.parametrize("told", [{}, [], {"inputs": 3}, {"inputs": [{"name": "x", "datatype": "BYTES", "shape": [-1]}], "outputs": []}, b"<html>"])
def test_what_is_no_model_is_refused(told: Any) -> None:
    with server(lambda *_: (200, told)) as address, pytest.raises(Failed):
        load(f"{address}/v2/models/x", Options(), BOX)


def test_an_address_must_be_one() -> None:
    with pytest.raises(Misconfigured, match="no address"):
        Client("ftp://somewhere")
    with pytest.raises(Misconfigured, match=r"another environment|takes 3 numbers"), server(oip([-1, 3], [])) as address:
        load(f"{address}/v2/models/x", Options(), CARTPOLE)


# ── a language model ──


def chat(requests: list[Any], say: Callable[[str], str]) -> Callable[[str, str, Any, dict[str, str]], tuple[int, Any]]:
    """POST /v1/chat/completions: ``say(prompt)`` is what the model answers, as often as ``n`` says."""

    def answer(method: str, path: str, body: Any, headers: dict[str, str]) -> tuple[int, Any]:
        assert (method, path) == ("POST", "/v1/chat/completions")
        requests.append((body, headers))
        content = body["messages"][0]["content"]
        prompt = content if isinstance(content, str) else content[0]["text"]
        choices = [{"index": i, "message": {"role": "assistant", "content": say(prompt)}, "finish_reason": "stop"} for i in range(body.get("n", 1))]
        return 200, {"id": "x", "object": "chat.completion", "choices": choices, "usage": {"prompt_tokens": 50, "completion_tokens": 2, "total_tokens": 52}}

    return answer


def described(folder: Path, address: str, **changes: Any) -> Path:
    """A black box's .toml."""
    told = {"kind": "openai", "address": f"{address}/v1", "model": "m", "template": "angle {obs[2]:.3f}; all {obs}: LEFT or RIGHT?", "answers": ["LEFT", "RIGHT"], "price_in": 2.0, "price_out": 10.0, **changes}
    path = folder / "teacher.toml"
    path.write_text("\n".join(f"{k} = {json.dumps(v)}" for k, v in told.items()))
    return path


def leaning(prompt: str) -> str:
    return "I would push LEFT." if float(prompt.split()[1].rstrip(";")) < 0 else "right!"


def test_a_language_model_acts_counts_and_never_asks_twice(tmp_path: Path) -> None:
    requests: list[Any] = []
    with server(chat(requests, leaning)) as address:
        path = described(tmp_path, address)
        policy = load(path, Options(), CARTPOLE)
        x = torch.tensor([[0.0, 0, -0.1, 0], [0, 0, 0.1, 0], [0, 0, -0.1, 0]])
        prediction, _ = policy.act({"obs": x}, policy.init(3), None)
        assert prediction.action.mode.tolist() == [0, 1, 0]
        assert len(requests) == 2  # two states are the same
        assert policy.cost() == {"calls": 2, "cached": 0, "tokens_in": 100, "tokens_out": 4, "misunderstood": 0, "price": pytest.approx(2.4e-4)}
        assert policy.info["cost"]["calls"] == 2
        resumed = load(path, Options(), CARTPOLE)
        again, _ = resumed.act({"obs": x.reshape(3, 1, 4)}, {}, None)
        assert again.action.mode.tolist() == [[0], [1], [0]]
        assert len(requests) == 2
        assert resumed.cost()["cached"] == 3


def test_a_cache_cut_short_is_asked_again(tmp_path: Path) -> None:
    requests: list[Any] = []
    with server(chat(requests, leaning)) as address:
        path = described(tmp_path, address)
        x = torch.tensor([[0.0, 0, -0.1, 0], [0, 0, 0.1, 0]])
        load(path, Options(), CARTPOLE).act({"obs": x}, {}, None)
        cache = tmp_path / "answers.jsonl"
        cache.write_bytes(cache.read_bytes()[:-20])
        load(path, Options(), CARTPOLE).act({"obs": x}, {}, None)
        assert len(requests) == 3


def test_votes_are_a_distribution_and_calls_run_concurrently(tmp_path: Path) -> None:
    answers = iter(["LEFT", "LEFT", "RIGHT", "LEFT"] * 100)
    gate, lock = threading.Barrier(4, timeout=20), threading.Lock()

    def say(prompt: str) -> str:
        with lock:
            return next(answers)

    inner = chat([], say)

    def together(*request: Any) -> tuple[int, Any]:
        gate.wait()  # passes only if four requests are under way at once
        return inner(*request)

    with server(together) as address:
        policy = load(described(tmp_path, address, votes=4, concurrency=4), Options(), CARTPOLE)
        assert "distribution" in policy.gives
        prediction, _ = policy.act({"obs": torch.randn(8, 4)}, {}, None)
        chances = prediction.action.log_probs.exp()
        assert chances.shape == (8, 2)
        assert chances.sum(-1).tolist() == pytest.approx([1.0] * 8)
        assert float(chances.min()) > 0


def test_numbers_for_a_box_and_a_picture(tmp_path: Path) -> None:
    spec = Spec({"obs": Group((3,), "float32"), "pixels": Group((2, 3, 3), "uint8")}, BOX.action)
    requests: list[Any] = []
    with server(chat(requests, lambda _: "throttle -0.5, steer 3e0")) as address:
        path = described(tmp_path, address, template="{obs} {unchanged-brace}", answers=[], images=["pixels"], key_env="")
        policy = load(path, Options(), spec)
        image = torch.randint(0, 255, (1, 2, 3, 3), dtype=torch.uint8)
        prediction, _ = policy.act({"obs": torch.zeros(1, 3), "pixels": image}, {}, None)
    assert prediction.action.mode.tolist() == [[-0.5, 1.0]]  # clipped to the box
    text, picture = requests[0][0]["messages"][0]["content"]
    assert text["text"] == "[0, 0, 0] {unchanged-brace}"
    data = base64.b64decode(picture["image_url"]["url"].removeprefix("data:image/png;base64,"))
    assert struct.unpack(">II", data[16:24]) == (3, 2)
    assert zlib.decompress(data[41 : 41 + struct.unpack(">I", data[33:37])[0]])[1:10] == image[0, 0].numpy().tobytes()


def test_the_key_is_sent_and_kept_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_API_KEY", "sesame")
    requests: list[Any] = []
    with server(chat(requests, leaning)) as address:
        policy = load(described(tmp_path, address, key_env="TEST_API_KEY"), Options(), CARTPOLE)
        policy.act({"obs": torch.ones(1, 4)}, {}, None)
    assert requests[0][1]["Authorization"] == "Bearer sesame"
    assert "sesame" not in (tmp_path / "answers.jsonl").read_text() + json.dumps(policy.info)


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"answers": ["LEFT"]}, Misconfigured, "1 words, the environment has 2"),
        ({"template": "{speed}"}, Misconfigured, "no such observation group"),
        ({"template": "{obs[9]}"}, Misconfigured, r"obs\[9\]"),
        ({"temprature": 1.0}, Misconfigured, "did you mean 'temperature'"),
        ({"votes": "many"}, Misconfigured, "int is right"),
        ({"images": ["obs"]}, Misconfigured, "uint8"),
        ({"key_env": "NO_SUCH_API_KEY"}, Misconfigured, "no such environment variable"),
        ({"key_env": "HOME"}, Misconfigured, "ends in API_KEY"),
        ({"cache": "../elsewhere.jsonl"}, Misconfigured, "beside this one"),
        ({"otherwise": "UP"}, Misconfigured, "one of LEFT, RIGHT is right"),
        ({"kind": "opanai"}, Misconfigured, "did you mean 'openai'"),
    ],
)
def test_a_wrong_description_is_a_sentence(tmp_path: Path, changes: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        load(described(tmp_path, "http://127.0.0.1:9", **changes), Options(), CARTPOLE)


def test_answers_that_cant_be_understood_and_the_budget(tmp_path: Path) -> None:
    with server(chat([], lambda _: "Let me think about that.")) as address:
        policy = load(described(tmp_path, address, max_calls=2), Options(), CARTPOLE)
        with pytest.raises(Failed, match="LEFT, RIGHT is right"):
            policy.act({"obs": torch.randn(1, 4)}, {}, None)
        with pytest.raises(Failed, match="max_calls = 2"):
            policy.act({"obs": torch.randn(5, 4)}, {}, None)
        with pytest.raises(Missing, match="--env"):
            load(described(tmp_path, address), Options())


def test_what_an_answer_that_says_nothing_counts_as(tmp_path: Path) -> None:
    with server(chat([], lambda prompt: "Hm." if float(prompt.split()[1].rstrip(";")) < 0 else "right")) as address:
        policy = load(described(tmp_path, address, otherwise="LEFT"), Options(), CARTPOLE)
        x = torch.tensor([[0.0, 0, -0.1, 0], [0, 0, 0.1, 0]])
        assert policy.act({"obs": x}, {}, None)[0].action.mode.tolist() == [0, 1]
        assert policy.cost()["misunderstood"] == 1


def test_what_was_answered_is_kept_where_another_question_fails(tmp_path: Path) -> None:
    with server(chat([], lambda prompt: leaning(prompt) if "nan" not in prompt and "0.9" not in prompt else "?")) as address:
        policy = load(described(tmp_path, address, concurrency=1), Options(), CARTPOLE)
        with pytest.raises(Failed, match="LEFT, RIGHT"):
            policy.act({"obs": torch.tensor([[0.0, 0, -0.1, 0], [0, 0, 0.9, 0], [0, 0, 0.1, 0]])}, {}, None)
        assert len((tmp_path / "answers.jsonl").read_text().splitlines()) >= 1


def test_concurrency_is_the_users_word(tmp_path: Path) -> None:
    assert load(described(tmp_path, "http://127.0.0.1:9", concurrency=2), Options(concurrency=5), CARTPOLE).client.concurrency == 5
    with server(oip([-1, 3], [])) as address:
        assert load(f"{address}/v2/models/x", Options(concurrency=3), BOX).client.concurrency == 3


def test_templates_reach_nothing_but_numbers() -> None:
    groups = {"obs": np.array([1.0, 2.5])}
    assert filled("{obs[1]:.1f} {obs.__class__} {obs!r} { x }", groups) == "2.5 {obs.__class__} {obs!r} { x }"
    with pytest.raises(Misconfigured):
        png(np.zeros((2, 2, 4), np.uint8))
