"""Hostile and damaged teachers: nothing of a file runs, and only the declared errors come out, soon and in little memory.

Python's own audit hooks watch: while a hostile file is loaded, no name of a pickle may be looked up, no process started,
no socket opened, nothing imported, compiled or executed, and no file opened for writing.
"""

from __future__ import annotations

import base64
import contextlib
import importlib
import io
import json
import os
import pickle
import pkgutil
import random
import resource
import struct
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distillrl import teachers
from distillrl.errors import DistillError, Failed
from distillrl.teachers import normalisers, pickles, tensorfiles, yamls

DATA = Path(__file__).parent / "data" / "sb3"
PLAIN = DATA / "ppo_box" / "model.zip"
NORMALISED = DATA / "vecnormalize"

# ── watching ──────────────────────────────────────────────────────────────────────────────────────────────────────

_watching: list[list[str]] = []
_FORBIDDEN = ("pickle.find_class", "subprocess", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket", "exec", "compile", "ctypes", "import", "marshal", "code.__new__")


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if not _watching:
        return
    if event.startswith(_FORBIDDEN) or (event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+")):
        _watching[-1].append(f"{event} {str(args)[:200]}")


sys.addaudithook(_hook)


@contextlib.contextmanager
def watched() -> Iterator[list[str]]:
    """The forbidden events within."""
    found: list[str] = []
    _watching.append(found)
    try:
        yield found
    finally:
        _watching.pop()


@pytest.fixture(scope="module", autouse=True)
def imported() -> None:
    """All that loading imports, and compiles at its first run, before anybody watches."""
    for path in (PLAIN, NORMALISED / "model.zip", DATA / "recurrent" / "model.zip", DATA / "ppo_cnn" / "model.zip"):
        teachers.load(path)
    for module in pkgutil.iter_modules(teachers.__path__):
        with contextlib.suppress(ImportError):  # of a package that isn't installed
            importlib.import_module(f"distillrl.teachers.{module.name}")
    importlib.import_module("distillrl.artifact")
    importlib.import_module("safetensors.torch")
    with contextlib.suppress(DistillError):  # a file that is no teacher passes every format's look at it
        teachers.load(Path(__file__))


def refused(path: Path, *, may_load: bool = False, **options: Any) -> str:
    """Load a hostile file: refused with a sentence (or harmlessly loaded), quickly, and nothing ran."""
    begin = time.process_time()
    said = ""
    with watched() as events:
        try:
            teachers.load(path, teachers.Options(**options))
            assert may_load, f"{path} was loaded"
        except DistillError as error:
            said = str(error)
    assert events == []
    assert time.process_time() - begin < 5
    assert said.isprintable()
    assert len(said) < 2000
    return said


# ── pickles that would run something ──────────────────────────────────────────────────────────────────────────────


class Calls:
    """Pickled as a call of any function."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


def payloads(folder: Path) -> dict[str, bytes]:
    """Pickles that would write a file, open a socket or import, by every opcode that calls."""
    mark = str(folder / "ran")
    made = {
        "system": pickle.dumps(Calls(os.system, f"touch {mark}")),
        "open": pickle.dumps(Calls(open, mark, "w")),
        "exec": pickle.dumps(Calls(exec, f"open({mark!r}, 'w')")),
        "eval, protocol 2": pickle.dumps(Calls(eval, f"open({mark!r}, 'w')"), 2),
        "in a dict": pickle.dumps({"net_arch": [8], "activation_fn": Calls(os.system, f"touch {mark}")}),
        "in an ordered dict": pickle.dumps(__import__("collections").OrderedDict(a=Calls(os.mkdir, mark))),
        "global": b"cos\nsystem\n(S'touch " + mark.encode() + b"'\ntR.",
        "inst": b"(S'touch " + mark.encode() + b"'\nios\nsystem\n.",
        "obj": b"(cos\nsystem\nS'touch " + mark.encode() + b"'\no.",
        "newobj": b"\x80\x04cos\nsystem\n\x8c" + bytes([len(mark) + 6]) + b"touch " + mark.encode() + b"\x85\x81.",
        "build with setstate": b"\x80\x04cbuiltins\nopen\n)\x81}\x8c\x01a\x8c\x01bsb.",
        "extension": b"\x80\x02\x82\x01.",
        "import": b"\x80\x04\x8c\x13distillrl_marker_xx\x8c\x01a\x93.",
        "socket": pickle.dumps(Calls(__import__("socket").create_connection, ("127.0.0.1", 9))),
        "torch.load in a pickle": pickle.dumps(Calls(torch.storage._load_from_bytes, pickle.dumps(Calls(os.system, f"touch {mark}")))),
        "numpy object array": pickle.dumps(np.array([Calls(os.system, f"touch {mark}")], dtype=object)),
        "persistent": b"\x80\x04\x8c\x02ab\x51.",
        "buffer": b"\x80\x05\x97.",
    }
    return made


PLACES = ("policy_class", "policy_kwargs", "observation_space", "action_space", "ep_info_buffer", "lr_schedule", "policy.pth", "policy.pth old", "optimizer", "vecnormalize", "npz", "yml")


def rezip(path: Path, target: Path, changed: dict[str, bytes]) -> Path:
    """A copy of a zip with some members replaced or added."""
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w") as made:
        for name in source.namelist():
            made.writestr(name, changed.pop(name, source.read(name)))
        for name, data in changed.items():
            made.writestr(name, data)
    return target


def data_of(path: Path) -> dict[str, Any]:
    """A model's JSON."""
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read("data"))


def tensors_of(path: Path) -> bytes:
    """A model's policy.pth."""
    with zipfile.ZipFile(path) as archive:
        return archive.read("policy.pth")


def repickled(torch_file: bytes, data_pkl: bytes) -> bytes:
    """A torch file with another pickle inside."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(torch_file)) as source, zipfile.ZipFile(buffer, "w") as made:
        for name in source.namelist():
            made.writestr(name, data_pkl if name.endswith("/data.pkl") else source.read(name))
    return buffer.getvalue()


def hostile(folder: Path, place: str, payload: bytes) -> Path:
    """A teacher with the payload in one of its places."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "model.zip"
    (folder / "model").mkdir(exist_ok=True)
    data = data_of(PLAIN)
    if place in data or place == "ep_info_buffer":
        old = data.get(place)
        data[place] = {**(old if isinstance(old, dict) else {}), ":type:": "<class 'dict'>", ":serialized:": base64.b64encode(payload).decode()}
        return rezip(PLAIN, target, {"data": json.dumps(data).encode()})
    if place == "policy.pth":
        return rezip(PLAIN, target, {"policy.pth": repickled(tensors_of(PLAIN), payload)})
    if place == "policy.pth old":
        legacy = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2) + payload + pickle.dumps([], 2)
        return rezip(PLAIN, target, {"policy.pth": legacy})
    if place == "optimizer":
        return rezip(PLAIN, target, {"policy.optimizer.pth": payload, "pytorch_variables.pth": payload})
    rezip(PLAIN, target, {})
    if place == "vecnormalize":
        (folder / "vecnormalize.pkl").write_bytes(payload)
    if place == "npz":
        np.savez(folder / "evaluations.npz", results=np.zeros((1, 1)))
        rezip(folder / "evaluations.npz", folder / "other.npz", {"results.npy": b"\x93NUMPY\x01\x00\x46\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,), }          \n" + payload})
        os.replace(folder / "other.npz", folder / "evaluations.npz")
    if place == "yml":
        (folder / "args.yml").write_bytes(b"!!python/object/apply:os.system ['touch ran']\n- - - env\n    - !!python/object/apply:os.system\n      - touch ran\n")
    return target


@pytest.mark.parametrize("place", PLACES)
def test_nothing_of_a_file_runs(tmp_path: Path, place: str) -> None:
    """Each hostile pickle in each place where a format has one."""
    for i, (name, payload) in enumerate(payloads(tmp_path).items()):
        path = hostile(tmp_path / f"{i}", place, payload)
        for source in (path, path.parent):
            refused(source, may_load=True)
        assert not (tmp_path / "ran").exists(), name
        assert not (path.parent / "ran").exists()
    if place in {"policy_class", "policy.pth", "policy.pth old", "vecnormalize"}:
        assert refused(path)


def test_the_watch_sees() -> None:
    """The test would notice: an unpickled call and a file that is written."""
    with watched() as events:
        pickle.loads(pickle.dumps(os.path.join))  # our own bytes
    assert any(e.startswith("pickle.find_class") for e in events)


def test_pickles_stay_inert() -> None:
    """A call is a record of what would have been called."""
    tree = pickles.read(pickle.dumps(Calls(os.system, "touch x")), "here")
    assert isinstance(tree, pickles.Made)
    assert tree.name.endswith(".system")
    assert tree.args == ("touch x",)


# ── bombs and lies ────────────────────────────────────────────────────────────────────────────────────────────────


def opcodes(*parts: bytes) -> bytes:
    """A pickle of protocol 4."""
    return b"\x80\x04" + b"".join(parts) + b"."


BOMBS = {
    "memo of four billion": opcodes(b"Nr\xff\xff\xff\xff"),
    "text of 2**60 bytes": opcodes(b"\x8d" + struct.pack("<Q", 1 << 60) + b"a"),
    "bytes of 2**60": opcodes(b"\x8e" + struct.pack("<Q", 1 << 60)),
    "long of 2**31 bytes": opcodes(b"\x8b" + struct.pack("<i", 2**31 - 1)),
    "a million digits": b"L" + b"9" * 1_000_000 + b"L\n.",
    "pairs of pairs as a key": opcodes(b"}N" + b"2\x86" * 60 + b"Ns"),
    "pairs of pairs": opcodes(b"N" + b"2\x86" * 200),
    "lists in lists": opcodes(b"]" * 100_000 + b"a" * 99_999),
    "a list in itself": opcodes(b"]\x94h\x00a"),
    "no end": b"\x80\x04N",
    "empty": b"",
    "an empty stack": b"\x80\x04R.",
    "marks": b"(" * 100_000 + b".",
    "endless steps": b"\x80\x04" + b"N0" * 700_000 + b"N.",
}


@pytest.mark.parametrize("name", sorted(BOMBS))
@pytest.mark.parametrize("place", ["policy_kwargs", "observation_space", "policy.pth", "vecnormalize"])
def test_pickle_bombs(tmp_path: Path, place: str, name: str) -> None:
    """Small pickles that would take the memory or the time of a large machine."""
    path = hostile(tmp_path, place, BOMBS[name])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(path, may_load=place == "observation_space")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10


def zipped(target: Path, members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    """A zip of these members."""
    with zipfile.ZipFile(target, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return target


def test_zip_bombs(tmp_path: Path) -> None:
    """Zeros packed small, a size that lies, a list of members that is too long: refused before memory is taken."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("policy.pth", "w", force_zip64=True) as member:
        for _ in range(100):
            member.write(bytes(1 << 20))
        member.close()
        archive.writestr("data", (json.dumps(data_of(PLAIN))))
    bomb = tmp_path / "bomb.zip"
    bomb.write_bytes(packed.getvalue())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "would unpack to" in refused(bomb)
    assert "bytes" in refused(zipped(tmp_path / "json.zip", {"data": b"[" + b"0," * (9 << 20) + b"0]", "policy.pth": b""}, zipfile.ZIP_DEFLATED))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10
    many = zipped(tmp_path / "many.zip", {"data": b"{}", "policy.pth": b"", **{f"m{i}": b"" for i in range(20_001)}})
    assert "members" in refused(many)


def test_a_size_that_lies(tmp_path: Path) -> None:
    """A member's size in the list, changed to four gigabytes."""
    raw = bytearray(PLAIN.read_bytes())
    at = raw.find(b"PK\x01\x02")
    while at >= 0:
        raw[at + 24 : at + 28] = struct.pack("<I", 0xF0000000)
        at = raw.find(b"PK\x01\x02", at + 4)
    (tmp_path / "lies.zip").write_bytes(raw)
    assert refused(tmp_path / "lies.zip")


def test_names_links_and_devices(tmp_path: Path) -> None:
    """Members that lead out of the file, links inside and outside of it, things that are no files."""
    for name in ("../../etc/passwd", "/etc/passwd", "C:\\x", "a\\..\\b"):
        assert "outside" in refused(rezip(PLAIN, tmp_path / "model.zip", {name: b""}))
    link = zipfile.ZipInfo("policy.pth")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as archive:
        archive.writestr("data", "{}")
        archive.writestr(link, "/etc/passwd")
    assert "is a link" in refused(tmp_path / "link.zip")
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe")
    refused(Path("/dev/zero"))
    inner = tmp_path / "inner"
    inner.mkdir()
    rezip(PLAIN, inner / "model.zip", {})
    secret = tmp_path / "secret.pkl"
    secret.write_bytes((NORMALISED / "vecnormalize.pkl").read_bytes())
    (inner / "vecnormalize.pkl").symlink_to(secret)
    assert "leads out of its folder" in refused(inner)
    (inner / "vecnormalize.pkl").unlink()
    (inner / "vecnormalize.pkl").symlink_to("/dev/zero")
    assert teachers.load(inner).info["normaliser"] == "none found"  # a device is no file
    twice = io.BytesIO()
    with zipfile.ZipFile(twice, "w") as archive:
        archive.writestr("data", "{}")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("data", "{}")
        archive.writestr("policy.pth", b"")
    (tmp_path / "twice.zip").write_bytes(twice.getvalue())
    assert "two members" in refused(tmp_path / "twice.zip")


def test_the_hubs_cache_is_no_trick(tmp_path: Path) -> None:
    """Its snapshots are links to blobs beside them."""
    blobs, snapshot = tmp_path / "models--x" / "blobs", tmp_path / "models--x" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for name, blob in (("model.zip", "1"), ("vecnormalize.pkl", "2")):
        (blobs / blob).write_bytes((NORMALISED / name).read_bytes())
        (snapshot / name).symlink_to(Path("../../blobs") / blob)
    assert "vecnormalize.pkl" in teachers.load(snapshot).info["normaliser"]


def state(**tensors: Any) -> bytes:
    """What torch.save makes of tensors."""
    buffer = io.BytesIO()
    torch.save({k.replace("__", "."): v for k, v in tensors.items()}, buffer)
    return buffer.getvalue()


def test_tensors_that_lie_about_their_size(tmp_path: Path) -> None:
    """A storage longer than its bytes, a shape greater than its storage, a stride behind its end: never read."""
    good = state(a=torch.arange(64.0))
    assert torch.equal(tensorfiles.state_dict(good, "here")["a"], torch.arange(64.0))
    inner = zipfile.ZipFile(io.BytesIO(good)).read("archive/data.pkl")
    assert b"K@" in inner  # 64, once for the storage and once for the shape
    for old, new in ((b"K@t", b"M\xff\xfft"), (b"K@\x85", b"J\xff\xff\xff\x7f\x85"), (b"K\x01\x85", b"M\x00\x10\x85")):
        assert old in inner
        with pytest.raises(Failed, match=r"refused|damaged"):
            tensorfiles.state_dict(repickled(good, inner.replace(old, new, 1)), "here")
    with pytest.raises(Failed, match=r"refused|damaged"):  # a shape of 2**40 in a storage of one number, by strides of zero
        tensorfiles.state_dict(state(a=torch.zeros(1).expand(4)).replace(b"K\x04\x85", b"K\x09\x85"), "here")


def test_the_old_layout_of_torch() -> None:
    """Before 1.6: the same tensors; truncated at any place it is refused."""
    buffer = io.BytesIO()
    tensors = {"a.weight": torch.randn(3, 4), "b": torch.arange(5), "t": torch.randn(4, 3).T}
    torch.save(tensors, buffer, _use_new_zipfile_serialization=False)
    found = tensorfiles.state_dict(buffer.getvalue(), "here")
    assert all(torch.equal(found[k], v) for k, v in tensors.items())
    whole = buffer.getvalue()
    for end in range(0, len(whole), 37):
        with pytest.raises(Failed):
            tensorfiles.state_dict(whole[:end], "here")


def weights(**changed: Any) -> bytes:
    """policy.pth of the plain model with some tensors changed (None: left out)."""
    tensors = {**tensorfiles.state_dict(tensors_of(PLAIN), "here")}
    for name, value in changed.items():
        key = name.replace("__", ".")
        if value is None:
            del tensors[key]
        else:
            tensors[key] = value
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"action_net__weight": torch.full((2, 8), float("nan"))}, "action_net.weight hold NaN"),
        ({"log_std": torch.full((2,), float("inf"))}, "log_std hold NaN or infinity"),
        ({"mlp_extractor__policy_net__0__weight": torch.zeros(8, 5)}, r"policy_net.0.weight is \[8, 5\], but 4 numbers come into it"),
        ({"action_net__weight": torch.zeros(3, 8)}, r"action_net.weight is \[3, 8\], but 2 numbers must come out"),
        ({"action_net__bias": torch.zeros(3)}, "action_net.bias has 3 numbers"),
        ({"action_net__weight": None}, "lacks the weights action_net.weight"),
        ({"action_net__weight": torch.zeros(2, 8, 1)}, "2 axes are right"),
        ({"extra__weight": torch.zeros(1)}, "no use for: extra.weight"),
        ({"log_std": torch.zeros(7)}, r"log_std is \[7\]"),
        ({"features_extractor__linear__weight": torch.zeros(4, 4)}, "--model MODULE:CLASS"),
    ],
)
def test_weights_that_do_not_fit(tmp_path: Path, changed: dict[str, Any], says: str) -> None:
    """The tensor is named, with what was found and what would be right."""
    import re

    said = refused(rezip(PLAIN, tmp_path / "model.zip", {"policy.pth": weights(**changed)}))
    assert re.search(says, said), said


@pytest.mark.parametrize(
    "data",
    [b"", b"null", b"[]", b"{}", b"{" * 100_000, b"[" * 1_000_000, b'{"policy_class": 3}', b'{"policy_class": {}}', b"\xff\xfe", b'{"a": ' + b"9" * 10_000 + b"}"],
    ids=range(10),
)
def test_json_that_is_none(tmp_path: Path, data: bytes) -> None:
    """Damaged and absurd JSON."""
    assert refused(rezip(PLAIN, tmp_path / "model.zip", {"data": data}))


def test_not_teachers(tmp_path: Path) -> None:
    """Any other file: the formats that are known are named."""
    for name, content in {"a.zip": b"PK\x03\x04", "b.bin": b"", "c.txt": b"hello", "d.safetensors": b"\xff" * 64}.items():
        (tmp_path / name).write_bytes(content)
        assert refused(tmp_path / name)
    assert "stable-baselines3" in refused(zipped(tmp_path / "e.zip", {"hello": b""}))
    assert refused(tmp_path / "f\0.zip")
    assert refused(tmp_path / ("x" * 5000))


def test_statistics_that_do_not_fit(tmp_path: Path) -> None:
    """A NaN, a negative variance, a shape that lies."""
    good = (NORMALISED / "vecnormalize.pkl").read_bytes()
    mean = normalisers.read(NORMALISED / "vecnormalize.pkl").moments[""][0].tobytes()
    assert mean in good
    target = tmp_path / "vecnormalize.pkl"
    target.write_bytes(good.replace(mean, np.full(4, np.nan).tobytes()))
    with pytest.raises(Failed, match="NaN"):
        normalisers.read(target)
    for end in range(0, len(good), 97):
        target.write_bytes(good[:end])
        with pytest.raises(Failed):
            normalisers.read(target)


# ── fuzz ──────────────────────────────────────────────────────────────────────────────────────────────────────────

FILES = ["ppo_box", "sac_gsde", "vecnormalize_dict", "recurrent", "qrdqn", "crossq", "dqn_cnn_dict", "ppo_gelu_tanh"]
quick = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])


def mutated(data: bytes, seed: int) -> bytes:
    """Some bytes changed, cut out, doubled, or the end cut off."""
    rng, out = random.Random(seed), bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 5, 20])):
        at = rng.randrange(len(out) + 1)
        kind = rng.randrange(5)
        if kind == 0 and out:
            out[min(at, len(out) - 1)] = rng.randrange(256)
        elif kind == 1:
            del out[at : at + rng.choice([1, 4, 50])]
        elif kind == 2:
            out[at:at] = rng.randbytes(rng.choice([1, 2, 8]))
        elif kind == 3:
            out[at:at] = out[at : at + rng.choice([1, 10, 100])]
        elif rng.random() < 0.2:
            del out[at:]
    return bytes(out)


def survives(path: Path) -> None:
    """Only declared errors, soon; a policy that comes out can be asked."""
    begin, said = time.process_time(), "loaded"
    with watched() as events:
        try:
            policy = teachers.load(path)
        except DistillError as error:
            policy, said = None, str(error)
    assert events == []
    assert said
    assert time.process_time() - begin < 3
    if policy is not None:
        obs = {n: torch.zeros((2, *g.shape), dtype=getattr(torch, g.dtype, torch.float32)) for n, g in policy.spec.observations.items()}
        policy.act(obs, policy.init(2), torch.ones(2, dtype=torch.bool), policy.gives)


@pytest.mark.parametrize("name", FILES)
@given(seed=st.integers(0, 1 << 30))
@quick
def test_fuzz_members(tmp_path: Path, name: str, seed: int) -> None:
    """Members mutated inside a whole zip: the JSON, the pickle of the tensors, the statistics."""
    rng = random.Random(seed)
    source = DATA / name
    changed: dict[str, bytes] = {}
    which = rng.choice(["data", "policy.pth", "data.pkl", "serialized"])
    if which == "data":
        changed["data"] = mutated(json.dumps(data_of(source / "model.zip")).encode(), seed)
    elif which == "policy.pth":
        changed["policy.pth"] = mutated(tensors_of(source / "model.zip"), seed)
    elif which == "data.pkl":
        whole = tensors_of(source / "model.zip")
        inner = next(n for n in zipfile.ZipFile(io.BytesIO(whole)).namelist() if n.endswith("data.pkl"))
        changed["policy.pth"] = repickled(whole, mutated(zipfile.ZipFile(io.BytesIO(whole)).read(inner), seed))
    else:
        data = data_of(source / "model.zip")
        key = rng.choice([k for k, v in data.items() if isinstance(v, dict) and ":serialized:" in v])
        data[key][":serialized:"] = base64.b64encode(mutated(base64.b64decode(data[key][":serialized:"]), seed)).decode()
        changed["data"] = json.dumps(data).encode()
    rezip(source / "model.zip", tmp_path / "model.zip", changed)
    pickle_file = source / "vecnormalize.pkl"
    if pickle_file.exists():
        (tmp_path / "vecnormalize.pkl").write_bytes(mutated(pickle_file.read_bytes(), seed) if rng.random() < 0.5 else pickle_file.read_bytes())
    survives(tmp_path / "model.zip")


def _absurd(rng: random.Random, depth: int = 0) -> Any:
    simple: list[Any] = [None, True, -1, 0, 10**15, 1.5, float("nan"), "", "x" * 50, "[1 2 ...]", [], {}, "<class 'torch.nn.modules.activation.ReLU'>"]
    if depth > 2 or rng.random() < 0.7:
        return rng.choice(simple)
    return [_absurd(rng, depth + 1) for _ in range(3)] if rng.random() < 0.5 else {str(i): _absurd(rng, depth + 1) for i in range(3)}


@given(seed=st.integers(0, 1 << 30))
@quick
def test_fuzz_values(tmp_path: Path, seed: int) -> None:
    """JSON values of other kinds; the readable copies of spaces where the pickle is gone."""
    rng = random.Random(seed)
    source = DATA / rng.choice(FILES) / "model.zip"
    data = data_of(source)
    for _ in range(rng.choice([1, 2, 4])):
        key = rng.choice(["policy_class", "policy_kwargs", "observation_space", "action_space", "ep_info_buffer", "use_sde"])
        inner = data.get(key)
        if isinstance(inner, dict) and inner and rng.random() < 0.8:
            if rng.random() < 0.5:
                inner.pop(":serialized:", None)
            inner[rng.choice(sorted(inner) or ["n"])] = _absurd(rng)
        else:
            data[key] = _absurd(rng)
    survives(rezip(source, tmp_path / "model.zip", {"data": json.dumps(data).encode()}))


@given(seed=st.integers(0, 1 << 30))
@quick
def test_fuzz_whole_files(tmp_path: Path, seed: int) -> None:
    """Bytes of the whole zip mutated."""
    rng = random.Random(seed)
    (tmp_path / "model.zip").write_bytes(mutated((DATA / rng.choice(FILES) / "model.zip").read_bytes(), seed))
    survives(tmp_path / "model.zip")


@given(st.binary(max_size=300))
@quick
def test_fuzz_pickles(data: bytes) -> None:
    """Any bytes as a pickle."""
    with contextlib.suppress(Failed):
        pickles.read(data, "here")


@given(st.text(alphabet="-: \nab!'\"[]{}1&*#", max_size=200))
@quick
def test_fuzz_yaml(text: str) -> None:
    """Any text as RL Zoo's YAML."""
    with contextlib.suppress(Failed):
        yamls.read(text.encode(), "here")


@pytest.mark.parametrize("length", [1000, 50_000, 400_000])  # the second behind a whole zip file inside it
def test_a_zip_that_is_cut_short_is_told(length, tmp_path):
    (tmp_path / "t.zip").write_bytes((Path(__file__).parents[1] / "examples" / "ppo_lunar.zip").read_bytes()[:length])
    with pytest.raises(Failed, match="cut short or damaged"):
        teachers.load(tmp_path / "t.zip")
