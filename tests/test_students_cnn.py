"""Students of images: words, sizes, channels, artifacts, exports, and stacks that are made when they are sampled."""

import numpy as np
import pytest
import torch

from distillrl import artifact, seeing, students
from distillrl.actions import Categorical
from distillrl.dataset import Dataset
from distillrl.errors import DistillError, Missing
from distillrl.exporting import export, opened
from distillrl.images import LEAST_SPREAD, Background, Grey, Jitter, Resize, taps
from distillrl.records import ActionSpace, Group, Prediction, Rollout, Spec
from distillrl.senses import Sense
from distillrl.students.cnn import Points


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def spec(*shape, n=18, dtype="uint8", **more):
    return Spec({"obs": Group(shape, dtype, (), 0, 255), **more}, ActionSpace("discrete", n=n))


def pixels(*shape, seed=0):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator(seed))


@pytest.mark.parametrize(("word", "parameters"), [("rusu-25", 427_874), ("rusu-7", 113_346), ("rusu-4", 61_954), ("nature", 1_693_362)])
def test_the_papers_networks_have_the_papers_sizes(word, parameters):
    assert students.make(f"cnn:{word}", spec(4, 84, 84), generator()).acting_parameters() == parameters  # Rusu 2016, table 3


@pytest.mark.parametrize("shape", [(4, 84, 84), (84, 84, 3), (84, 84), (7, 7, 3), (10, 10, 10), (40, 60, 1)])
def test_any_layout_of_an_image_is_seen_and_comes_back_from_its_artifact(shape, tmp_path):
    student = students.make("cnn:4-8:16", spec(*shape), generator())
    x = pixels(5, *shape)
    artifact.write_bytes(tmp_path / "s.safetensors", artifact.dumps(student.header(), student.artifact_tensors()))
    again = students.build(*artifact.load(tmp_path / "s.safetensors"))
    mine, theirs = (p.act({"obs": x}, {}, None)[0].action.logits for p in (student, again))
    assert mine.shape == (5, 18)
    assert torch.equal(mine, theirs)
    assert torch.allclose(student.act({"obs": x.unsqueeze(0)}, {}, None)[0].action.logits[0], mine, atol=1e-5)


def test_points_say_where_a_thing_is_and_how_clearly(tmp_path):
    layer = Points(5, 9)
    x = torch.zeros(1, 2, 5, 9)
    x[0, 0, 4, 2] = 40.0
    columns, rows, strength = layer(x).view(2, 3).unbind(1)
    assert torch.allclose(columns, torch.tensor([-0.5, 0.0]), atol=1e-6)
    assert torch.allclose(rows, torch.tensor([1.0, 0.0]), atol=1e-6)
    assert strength.tolist() == [40.0, 0.0]
    student = students.make("cnn:4k5s2-8k3-points:16", spec(4, 20, 24), generator())
    assert student.body[1].in_features == 24
    artifact.write_bytes(tmp_path / "s.safetensors", artifact.dumps(student.header(), student.artifact_tensors()))
    again = students.build(*artifact.load(tmp_path / "s.safetensors"))
    seen = pixels(6, 4, 20, 24)
    logits = again.act({"obs": seen}, {}, None)[0].action.logits
    assert torch.equal(student.act({"obs": seen}, {}, None)[0].action.logits, logits)
    with pytest.raises(DistillError, match="no convolution"):
        students.make("cnn:points:16", spec(4, 20, 24), generator())
    with pytest.raises(DistillError, match="impala is a whole network"):
        students.make("cnn:impala-points", spec(4, 20, 24), generator())
    with pytest.raises(DistillError, match="no convolution"):
        students.make("cnn:4-points-8:16", spec(4, 20, 24), generator())


def test_channels_are_found_wherever_they_are():
    last, first = (students.make("cnn:4k5s2:8", s, generator()) for s in (spec(20, 22, 3), spec(3, 20, 22)))
    first.load_state_dict(last.state_dict())
    x = pixels(2, 20, 22, 3)
    a, b = (p.act({"obs": v}, {}, None)[0].action.logits for p, v in ((last, x), (first, x.permute(0, 3, 1, 2).contiguous())))
    assert torch.allclose(a, b)


def test_numbers_beside_an_image_join_behind_the_convolutions():
    student = students.make("cnn:4-8:16", spec(3, 40, 40, speed=Group((2,), "float32")), generator())
    image, speed = pixels(3, 3, 40, 40), torch.randn(3, 2, generator=generator(1))
    out = student.act({"obs": image, "speed": speed}, {}, None)[0].action.logits
    assert not torch.equal(out, student.act({"obs": image, "speed": speed + 1}, {}, None)[0].action.logits)
    alone = students.make("cnn:4-8:16", spec(3, 40, 40), generator())
    assert student.body[1].in_features == alone.body[1].in_features + 2


@pytest.mark.parametrize(
    "word", ["cnn:0-8", "cnn:", "cnn:8-16:64:rel", "cnn:natur", "cnn:nature:3", "cnn:8k90", "cnn:8s0", "cnn:8-16:0", "cnn:99999999", "cnn:8k8s4-8k8s4-8k8s4"]
)
def test_a_word_that_makes_no_network_is_a_sentence(word):
    with pytest.raises(DistillError, match="student cnn"):
        students.make(word, spec(4, 84, 84), generator())


def test_an_image_student_on_numbers_is_told_what_would_see_an_image():
    with pytest.raises(DistillError, match=r"--see 'render, grey"):
        students.make("cnn:8", Spec({"obs": Group((8,), "float32")}, ActionSpace("discrete", n=2)), generator())


def shown(student, x):
    """A rollout in which these frames [T + 1, N, *shape] were seen."""
    no = torch.zeros(x.shape[0] - 1, x.shape[1], dtype=torch.bool)
    obs = student.sense.glance({"obs": x}) if student.sense.early else {"obs": x}
    return Rollout(obs, no.long(), no.float(), no, no, no, ~no, no.to(torch.int8), ~no, Prediction(Categorical(torch.zeros(*no.shape, 3))), None, no.long())


@pytest.mark.parametrize(
    ("word", "to", "see"),
    [*(("cnn:8k8s4-12k3s2d:16", to, "stack=3, crop=4-37x2-39") for to in ("c", "onnx", "js", "python")), ("cnn:4k8s4-8k4s2:16", "torch", "stack=3"),
     *(("cnn:4k8s4:8", to, "stack=2:2") for to in ("c", "onnx", "python")), *(("cnn:4k8s4-5k3-points:8", to, "stack=2") for to in ("c", "onnx", "js", "python", "torch"))],
)  # fmt: skip
def test_exports_see_what_the_student_sees(word, to, see, tmp_path):
    student = students.make(word, spec(1, 40, 40, n=5), generator(), see=see)
    assert students.look(student, shown(student, pixels(6, 2, 1, 40, 40))) == ("crop" not in see), "what was cropped behind the stack is seen as it is"
    try:
        policy = opened(export(student, to, tmp_path))
    except Missing as error:
        pytest.skip(str(error))
    memory, theirs = student.init(2), policy.init(2)
    for t in range(4):
        starts = torch.tensor([t == 0, t in (0, 2)])
        obs = {"obs": pixels(2, 1, 40, 40, seed=t)}
        mine, memory = student.act(obs, memory, starts)
        other, theirs = policy.act(obs, theirs, starts)
        assert torch.equal(mine.action.mode, other.action.mode)
        assert np.allclose(np.asarray(policy.raw).reshape(2, -1), mine.action.logits.detach().numpy(), atol=1e-4)


@pytest.mark.parametrize(("shape", "see"), [((1, 40, 40), "stack=3"), ((40, 44, 3), "stack=2"), ((40, 44, 3), "grey, resize=40, stack=4")])
def test_images_are_seen_against_what_is_always_there(shape, see, tmp_path):
    student = students.make("cnn:4k8s4:8", spec(*shape, n=5), generator(), see=see)
    always, moving = torch.full((9, 2, *shape), 150, dtype=torch.uint8), torch.zeros((9, 2, *shape), dtype=torch.uint8)
    moving[::2] = 20
    before = students.make("cnn:4k8s4:8", spec(*shape, n=5), generator(), see=see).sense
    assert students.look(student, shown(student, always + moving))
    assert [step.kind for step in student.sense.steps] == [step.kind.replace("scale", "background") for step in before.steps]
    seen, _ = student.sense({"obs": always[0] + 30}, student.sense.init(2), torch.tensor([True, True]))
    new = seen["obs"][:, -1]
    assert torch.allclose(new, torch.full_like(new, 2.0), atol=0.05), "the mean is 160, the spread 10"
    artifact.write_bytes(tmp_path / "s.safetensors", artifact.dumps(student.header(), student.artifact_tensors()))
    again = students.build(*artifact.load(tmp_path / "s.safetensors"))
    assert torch.equal(again.sense({"obs": always[0] + 30}, again.sense.init(2), torch.tensor([True, True]))[0]["obs"], seen["obs"])


def test_what_hardly_moved_is_not_blown_up_and_another_size_is_a_sentence():
    step = Background.of({"obs": torch.full((3, 1, 8, 8), 7, dtype=torch.uint8)})
    assert float(step.spread0) == LEAST_SPREAD
    with pytest.raises(DistillError, match="background"):
        step.after({"obs": Group((1, 8, 9), "uint8")})


# ── senses of images ──────────────────────────────────────────────────────────────────────────────────────────────


def test_area_is_the_mean_of_what_a_pixel_covers():
    x = pixels(2, 40, 60, 3)
    step = Resize(20, 12, "area", ["obs"])
    step.after({"obs": Group((40, 60, 3), "uint8")})
    mean = x.double().view(2, 20, 2, 12, 5, 3).mean((2, 4))
    assert float((step({"obs": x}, {}, None)["obs"].double() - mean).abs().max()) <= 1
    flat = torch.full((1, 31, 47, 3), 137, dtype=torch.uint8)
    for method in ("area", "bilinear"):
        step = Resize(13, 29, method, ["obs"])
        step.after({"obs": Group((31, 47, 3), "uint8")})
        assert step({"obs": flat}, {}, None)["obs"].eq(137).all()
        assert step({"obs": flat.float() / 255}, {}, None)["obs"].isclose(torch.tensor(137 / 255)).all()


def test_bilinear_is_antialiased_as_other_libraries_do_it():
    x = pixels(1, 50, 70)
    step = Resize(21, 33, "bilinear", ["obs"])
    step.after({"obs": Group((50, 70), "uint8")})
    theirs = torch.nn.functional.interpolate(x.unsqueeze(0).float(), (21, 33), mode="bilinear", antialias=True)[0]
    assert float((step({"obs": x}, {}, None)["obs"].float() - theirs).abs().max()) <= 1.5


@pytest.mark.parametrize("method", ["area", "bilinear"])
@pytest.mark.parametrize(("source", "target"), [(400, 84), (84, 84), (10, 33), (7, 1), (1, 5)])
def test_the_weights_of_a_filter_are_whole_and_sum_to_one(method, source, target):
    places, weights = taps(source, target, method)
    assert weights.sum(0).eq(4096).all()
    assert weights.eq(weights.round()).all()
    assert int(places.max()) < source


def test_an_image_is_the_same_alone_and_among_many():
    sense = seeing.parse("crop=2-301, grey, resize=20x24", {"obs": Group((310, 400, 3), "uint8")})
    x = pixels(9, 310, 400, 3)
    together, _ = sense({"obs": x}, {}, None)
    assert together["obs"].shape == (9, 1, 20, 24)
    assert torch.equal(together["obs"][4], sense({"obs": x[4:5]}, {}, None)[0]["obs"][0])
    grey = Grey(["obs"])
    grey.after({"obs": Group((3, 5, 7), "uint8")})
    y = pixels(2, 3, 5, 7)
    assert torch.equal(grey({"obs": y}, {}, None)["obs"][:, 0], ((77 * y[:, 0].int() + 150 * y[:, 1].int() + 29 * y[:, 2].int() + 128) >> 8).to(torch.uint8))


def test_jitter_is_for_training_and_goes_on_where_it_was():
    x = pixels(4, 1, 20, 20)
    step = Jitter(0.3, ["obs"])
    step.after({"obs": Group((1, 20, 20), "uint8")})
    assert torch.equal(step.eval()({"obs": x}, {}, None)["obs"], x)
    first = step.train()({"obs": x}, {}, None)["obs"]
    saved = {k: v.clone() for k, v in step.state_dict().items()}
    second = step({"obs": x}, {}, None)["obs"]
    assert not torch.equal(first, x)
    assert not torch.equal(first, second)
    step.load_state_dict(saved)
    assert torch.equal(step({"obs": x}, {}, None)["obs"], second)


@pytest.mark.parametrize(
    ("text", "says"),
    [("grey", "images of red"), ("resize=0", "whole number"), ("resize=84:cubic", "unknown method"), ("crop=5-90", "aren't in"), ("crop=a", "rows such as"),
     ("jitter=2", "share"), ("stack=4:0", "stack=COUNT:GAP=0"), ("stack=:3", "from 2 to 64"), ("jitter=0.2, stack=4", "after stack"), ("resize", "resize=84")],
)  # fmt: skip
def test_a_step_that_does_not_fit_is_a_sentence(text, says):
    with pytest.raises(DistillError, match=says):
        seeing.parse(text, {"obs": Group((1, 84, 84), "uint8")})
    with pytest.raises(DistillError):
        seeing.parse("resize=84", {"obs": Group((8,), "float32")})


# ── stacks made when sampled ──────────────────────────────────────────────────────────────────────────────────────


def filled(see, group, rounds=3, steps=7, slots=2, keep="all", fresh_at=None):
    """Random play in rounds, the memory that the sense had at each state, and the dataset."""
    sense = seeing.parse(see, {"obs": group})
    dataset, memory, seen = Dataset(keep), sense.init(slots), []
    dataset.sense = sense
    x = (torch.rand((rounds * steps + 1, slots, *group.shape), generator=generator(1)) * 255).to(getattr(torch, group.dtype))
    for r in range(rounds):
        part = slice(r * steps, (r + 1) * steps)
        starts = torch.rand(steps, slots, generator=generator(r)) < 0.25
        starts[0] |= r in (0, fresh_at)
        for t in range(steps):
            seen.append({k: v.clone() for k, v in memory.items()} | {"now": sense({"obs": x[part][t]}, memory, starts[t])[0]["obs"]})
            _, memory = sense({"obs": x[part][t]}, memory, starts[t])
        obs = x[r * steps : (r + 1) * steps + 1]
        no = torch.zeros(steps, slots, dtype=torch.bool)
        teacher = Prediction(Categorical(torch.randn(steps, slots, 3, generator=generator(9)) * 20))
        obs = sense.glance({"obs": obs}) if sense.early else {"obs": obs}
        dataset.append(Rollout(obs, no.long(), no.float(), no, no, starts, ~no, no.to(torch.int8), ~no, teacher, None, no.long(), fresh=r == fresh_at))
    return sense, dataset, seen


@pytest.mark.parametrize("keep", ["all", "round"])
@pytest.mark.parametrize("fresh_at", [None, 2])
@pytest.mark.parametrize(
    ("see", "group"),
    [("stack=4", Group((1, 6, 8), "uint8")), ("crop=0-3, stack=3", Group((6, 8, 2), "uint8")), ("resize=3x4, stack=4", Group((1, 6, 8), "uint8")), ("stack=3:2", Group((1, 6, 8), "uint8")), ("grey, stack=2:5", Group((6, 8, 3), "uint8")),
     ("stack=3:2", Group((2,), "float32")),     ("stack=3", Group((2,), "float32")), ("delay=2", Group((2,), "float32")), ("stack=3, delay=2", Group((2,), "float32"))],
)  # fmt: skip
def test_a_sampled_state_is_remembered_as_it_was_played(see, group, keep, fresh_at):
    sense, dataset, seen = filled(see, group, keep=keep, fresh_at=fresh_at)
    slots = 2
    played = seen if keep == "all" else seen[-7:]
    assert len(dataset) == len(played) * slots
    batch = dataset.at(dataset.rows)
    now, _ = sense(batch.obs, batch.memory, batch.starts)
    want = torch.stack([s["now"] for s in played]).flatten(0, 1)
    assert torch.equal(now["obs"], want)


def test_a_stack_with_a_gap_holds_frames_so_many_steps_apart_of_this_episode_alone():
    sense = seeing.parse("stack=3:2", {"obs": Group((1, 4, 4), "uint8")})
    assert sense.groups["obs"].shape == (3, 4, 4)
    memory, seen = sense.init(1), []
    for t in range(12):
        now, memory = sense({"obs": torch.full((1, 1, 4, 4), t + 1, dtype=torch.uint8)}, memory, torch.tensor([t in (0, 7)]))
        seen.append(now["obs"][0, :, 0, 0].tolist())
    assert seen[:5] == [[0, 0, 1], [0, 0, 2], [0, 1, 3], [0, 2, 4], [1, 3, 5]]
    assert seen[6:] == [[3, 5, 7], [0, 0, 8], [0, 0, 9], [0, 8, 10], [0, 9, 11], [8, 10, 12]]
    again = Sense.from_json(sense.observations, sense.to_json())
    assert again.groups == sense.groups
    assert "gap" not in seeing.parse("stack=3", {"obs": Group((1, 4, 4), "uint8")}).to_json()[0], "files from before there were gaps stay the same bytes"


def test_each_frame_lies_in_the_store_once_and_labels_beside_it_are_halves():
    group = Group((1, 84, 84), "uint8")
    _, dataset, _ = filled("stack=4", group, rounds=4, steps=8)
    frames = (4 * 8 + 1) * 2 * 84 * 84
    assert dataset.summary()["bytes"] <= 1.1 * frames
    logits = dataset.at(dataset.rows[:5]).teacher.action.logits
    assert logits.dtype == torch.float32
    right = torch.randn(8, 2, 3, generator=generator(9)) * 20
    assert torch.allclose(logits.log_softmax(-1), right.flatten(0, 1)[:5].log_softmax(-1), atol=0.05)
    assert dataset._store["teacher.action.logits"].dtype == torch.float16


def test_a_sense_that_has_glanced_sees_the_same():
    sense = seeing.parse("grey, resize=9, stack=2", {"obs": Group((30, 30, 3), "uint8")})
    x = pixels(3, 30, 30, 3)
    assert isinstance(sense, Sense)
    glanced = sense.glance({"obs": x})
    assert {k: tuple(v.shape) for k, v in glanced.items()} == {"seen.obs": (3, 1, 9, 9)}
    assert torch.equal(sense(glanced, sense.init(3), None)[0]["obs"], sense({"obs": x}, sense.init(3), None)[0]["obs"])
