"""The benches: cells are measured once and found again, pages are written between their markers, sentences follow their figures."""

from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[1] / "bench"


@pytest.fixture
def cells(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    import cells

    return cells


@pytest.fixture
def page(cells):
    import claims_table

    return claims_table


def doubled(facts):
    if facts["x"] < 0:
        raise ValueError("negative")
    return {"twice": 2 * facts["x"]}


def refused(facts):
    raise AssertionError("this cell is known")


def test_a_bench_goes_on_where_it_was_stopped(cells, tmp_path):
    kept = cells.Cells(tmp_path / "new" / "cells.jsonl")
    first = [(doubled, {"x": 1, "_name": "one"})]
    assert cells.run(kept, first) == 0
    again = [(refused, {"x": 1, "_name": "another name, another path"}), (doubled, {"x": 2}), (doubled, {"x": -1})]
    assert cells.run(kept, again) == 1  # the one that can't be measured costs no other
    assert kept.values(again) == [{"twice": 2}, {"twice": 4}, None]
    assert cells.run(kept, [(doubled, {"x": 3})], seconds=-1) == 1
    assert len(kept.read()) == 2


def test_a_half_written_line_costs_itself_alone(cells, tmp_path):
    kept = cells.Cells(tmp_path / "cells.jsonl")
    kept.append({"x": 1}, {"y": 1})
    kept.path.write_text(kept.path.read_text() + '{"key": "ab', encoding="utf-8")
    kept.append({"x": 2}, {"y": 2})
    assert [c["value"]["y"] for c in kept.read().values()] == [1, 2]


def test_cells_of_another_source_are_told_and_measured_anew(cells, tmp_path, monkeypatch):
    kept, job = cells.Cells(tmp_path / "cells.jsonl"), (doubled, {"x": 1})
    monkeypatch.setattr(cells, "source", lambda: "before")
    kept.append(job[1], {"twice": 0})
    monkeypatch.setattr(cells, "source", lambda: "after")
    assert len(kept.stale([job])) == 1
    cells.run(kept, [job])
    assert kept.values([job]) == [{"twice": 0}]
    cells.run(kept, [job], fresh=True)
    assert kept.values([job]) == [{"twice": 2}]
    assert kept.stale([job]) == []


def test_pages_are_written_between_their_markers(cells, tmp_path):
    file = tmp_path / "page.md"
    file.write_text("before\n<!-- t -->\nold\n<!-- /t -->\nafter\n", encoding="utf-8")
    cells.between(file, "t", "new")
    cells.between(file, "t", "newer\n")
    assert file.read_text(encoding="utf-8") == "before\n<!-- t -->\nnewer\n<!-- /t -->\nafter\n"
    with pytest.raises(SystemExit, match="lacks the markers"):
        cells.between(file, "u", "x")


@pytest.mark.parametrize("name", ["methods", "claims"])
def test_the_pages_have_the_markers_that_their_benches_write_between(name):
    text = (BENCH.parent / "docs" / f"{name}.md").read_text(encoding="utf-8")
    assert text.count(f"<!-- bench-{name} -->") == text.count(f"<!-- /bench-{name} -->") == 1


def cell(usual, noisy, curve=()):
    returns = {"unseen": [usual], "seen": [usual], "action noise 0.1": [noisy]}
    return {"returns": returns, "curve": curve, "random": [0.0], "random_select": [0.0], "select": [100.0], "multiply_adds": 8, "latency_us": 3.0, "parameters": 9, "seconds": 1.0}


def test_where_distilling_does_not_help_follows_from_the_figures(page):
    case = page.Case("t.zip", "games:Corridor-v0", "mlp:8", 100, page.Recipe(), page.Recipe())
    seeds = range(5)
    known = {
        "teacher": {s: cell(100.0 + s, 90.0) for s in seeds},
        "distilled": {s: cell(99.0 + s, 50.0 + s, [[10, 95.0]]) for s in seeds},
        "scratch": {s: cell(10.0, 10.0, [[100, 10.0]]) for s in seeds},
        "scratch10": {s: cell(98.0 + 2 * s, 80.0, [[500, 50.0], [900, 91.0]]) for s in seeds},
    }
    seen = page.Seen(page.Plan(case, {}, 5000), known)
    said = page.no_help([seen])
    assert "Corridor-v0: the network that PPO trained with ten times the steps is **better** under: action noise 0.1." in said
    assert "no difference to PPO with ten times the steps was shown under: the usual conditions." in said
    assert "the student is below its teacher under: the usual conditions (-1.0), action noise 0.1 (-38.0)." in said
    assert "reaches 90% of it from scratch in 900 steps, and the teacher’s training alone took 5,000" in said
    assert "| steps to 90% of the teacher |  | 10 | not reached (0 of 5) | 900 |  |" in page.table([seen])
    few = page.Seen(seen.plan, {who: {0: values[0]} for who, values in known.items()})
    assert "better" not in page.no_help([few])
    assert "(n=1)" in page.table([few])


def test_steps_to_the_aim_count_the_seeds_that_never_got_there(page):
    assert page.steps_to_aim([10, None, 30]) == "30 (2 of 3)"
    assert page.steps_to_aim([10, None, None]) == "not reached (1 of 3)"
    assert page.steps_to_aim([10, 20, 30], more=1000) == "1,020"
    assert page.steps_to_aim([]) == "–"


def test_the_settings_that_were_tried_are_told_best_first(cells, page, tmp_path):
    kept = cells.Cells(tmp_path / "cells.jsonl")
    settings = {"good": page.Recipe(settings={"n_steps": 64}), "bad": page.Recipe(4, normalize=True, linear=False, settings={"n_steps": 32})}
    jobs = [(doubled, {"env": "E", "steps": 10, "seed": s, "recipe": cells.plain(r), "_r": name}) for name, r in settings.items() for s in (1, 2)]
    for _, facts in jobs:
        kept.append(facts, {"curve": [[5, 9.0 if facts["_r"] == "good" else 1.0], [10, 2.0]]})
    lines = page.tried(kept, jobs).splitlines()
    assert lines[2] == "| E | 10 | 8 environments, rate falling to 0, n_steps 64 | 9.0 (n=2) |"
    assert lines[3] == "| E | 10 | 4 environments, VecNormalize, rate constant, n_steps 32 | 2.0 (n=2) |"
