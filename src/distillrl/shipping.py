"""The verbs of the command line on what runs have made: report, compare, watch, compress, search, export; parsing imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from distillrl import config as configuration
from distillrl.errors import Misconfigured
from distillrl.options import CONTEXT, ENV_OPTIONS, SEVERAL_OPTIONS, TEACHER_OPTIONS, env_kwargs_of, names_of, one_or_several, with_options

if TYPE_CHECKING:
    from distillrl.compression import Compression
    from distillrl.console import Display
    from distillrl.search import Found

T = TypeVar("T")


@click.command(context_settings=CONTEXT)
@click.argument("run")
@click.option("--out", help="Where the page goes.  [default: report.html in the run folder]")
@click.option("--full", "measure", flag_value="full", help="Measure everything anew: minutes instead of seconds.")
@click.option("--quick", "measure", flag_value="quick", default="quick", help="Measure for some seconds what was not measured yet (the default).")
@click.option("--as-is", "measure", flag_value="none", help="Measure nothing.")
@click.option("--margin", type=float, default=0.02, show_default=True, help="How much worse than its teacher it may be, of the return above random play.")
@click.option("--teacher", help="Where the teacher's file lies now.")
@click.option("--env", help="The environment, where the run doesn't name it.")
@click.option("--unseen", multiple=True, callback=env_kwargs_of, metavar="NAME=VALUE", help="Argument of an environment never seen in distillation; may be repeated.")
@click.option("--physics", help="A TOML file with more changes of physics (docs/evidence.md).")
@click.option("--scratch", type=float, metavar="TIMES", help="Train the same student from scratch too, by the reward alone, for so many times its steps at most: what its teacher saved.")
def report(run: str, out: str | None, measure: str, margin: float, teacher: str | None, env: str | None, unseen: dict[str, Any] | None, physics: str | None, scratch: float | None) -> int:
    """Write one HTML page on RUN, a run folder: ship it or not, and why. It opens offline."""
    from distillrl.console import Display
    from distillrl.physics import PHYSICS
    from distillrl.physics import read as changes
    from distillrl.reporting import report as work

    table = PHYSICS if physics is None else changes(Path(physics))
    with Display(quiet=scratch is None) as display:
        page = work(run, out, measure=measure, margin=margin, teacher=teacher, env=env, unseen=unseen, physics=table, scratch=scratch, show=display)
    click.echo(str(page))
    return 0


@click.command(context_settings=CONTEXT)
@click.argument("runs", nargs=-1, required=True)
@click.option("--out", default="compare.html", show_default=True, help="Where the page goes.")
def compare(runs: tuple[str, ...], out: str) -> int:
    """Write one HTML page that sets several RUNS side by side: intervals, sizes, profiles."""
    from distillrl.reporting import compare as work

    click.echo(str(work(runs, out)))
    return 0


@click.command(context_settings=CONTEXT)
@click.argument("policy")
@with_options(ENV_OPTIONS)
@with_options(TEACHER_OPTIONS)
@click.option("--teacher", help="The teacher, filmed beside it on the same episode.")
@click.option("--out", default="watch.gif", show_default=True, help="A .gif or an .mp4; named watch.gif or watch.mp4 in a run folder, the report shows it.")
@click.option("--episode", type=click.IntRange(0), default=0, show_default=True, help="Which of the verdict's episodes.")
@click.option("--steps", type=click.IntRange(1), default=400, show_default=True, help="At most so many.")
def watch(policy: str, teacher: str | None, out: str, episode: int, steps: int, format_: str | None, model: str | None, vecnormalize: str | None, teacher_sees: str | None, concurrency: int | None, trust: bool | None, env: str | None, env_kwargs: dict[str, Any] | None, backend: str | None, max_episode_steps: int | None, seed: int | None) -> int:
    """Film POLICY, and its teacher beside it, with each one's action probabilities."""
    from distillrl.envs import EnvOptions
    from distillrl.loading import load
    from distillrl.teachers import Options
    from distillrl.watching import watch as work

    options = Options(format=format_, model=model, sees=teacher_sees, env=env, vecnormalize=vecnormalize, concurrency=concurrency, trust=bool(trust))
    players = {"teacher": load(teacher, options).policy} if teacher is not None else {}
    players["student" if teacher is not None else "policy"] = load(policy, options).policy
    target = env or next((p.info["environment"] for p in players.values() if p.info.get("environment")), None)
    if target is None:
        raise Misconfigured("no environment was given, and neither file names one: --env takes an id such as LunarLander-v3")
    film = work(players, EnvOptions(target, env_kwargs or {}, backend or "auto", max_episode_steps), out, seed=seed or 0, episode=episode, steps=steps)
    click.echo(f"{film.path}: {film.steps} steps, " + ", ".join(f"{who} {value:.1f}" for who, value in film.returns.items()))
    return 0


_STEP_OPTIONS = [
    click.option("--env-steps", type=click.IntRange(1), help="At most so many environment steps."),
    click.option("--labels", type=click.IntRange(1), help="At most so many states labelled by the teacher."),
    click.option("--seconds", type=float, help="At most so long."),
    click.option("--slots", type=click.IntRange(1), help="Environments side by side."),
    click.option("--method", help="As in distill."),
    click.option("--out", help="The run folder."),
    click.option("--quiet", is_flag=True, help="Say nothing but the outcome."),
]


@click.command(context_settings=CONTEXT)
@click.argument("student")
@click.option("--teacher", help="The teacher's file.")
@with_options(SEVERAL_OPTIONS)
@click.option("--prune", type=float, default=0.0, help="Take out this share of the parameters, as whole neurons and channels (of a tree: leaves), step by step.")
@click.option("--sparse", is_flag=True, help="Take out single weights instead.")
@click.option("--quantise", help="int8, int4, int3, int2, fp16 or bf16.")
@click.option("--retention", type=float, default=0.98, show_default=True, help="Go on for as long as the interval of the retention lies above this.")
@click.option("--episodes", type=click.IntRange(2), default=400, show_default=True, help="Played at most to decide whether a step holds.")
@with_options(ENV_OPTIONS)
@with_options(TEACHER_OPTIONS)
@with_options(_STEP_OPTIONS)
def compress(student: str, teacher: str | None, teachers: str | None, combine: str | None, dispatch: str | None, prune: float, sparse: bool, quantise: str | None, retention: float, episodes: int, out: str | None, quiet: bool, format_: str | None, **flags: Any) -> int:
    """Make STUDENT, a run's student.safetensors, smaller while it holds: prune, distil anew, quantise, re-measure. Budgets are a step's.

    \b
    distillrl compress runs/lander/student.safetensors --teacher teacher.zip --prune 0.8 --quantise int8
    distillrl compress S.safetensors --teacher T.zip --env CartPole-v1 --prune 0.9 --sparse --quantise int4 --retention 0.95

    Exit code 0: all of it held; 1: the last file that held was kept, or none did; 2: something was wrong, in a sentence.
    """  # noqa: D301  # click's own mark of lines that stay as they are: it must be the character itself
    from distillrl.compression import compress as work
    from distillrl.compression import sentences

    env = flags.pop("env")
    one_or_several("--teacher", teacher, teachers, combine, dispatch)
    settled = configuration.with_changes(configuration.Config(env_steps=60_000), {"format": format_, **flags, **_several(teachers, combine, dispatch)})
    made = _shown(quiet, lambda show: work(student, teacher, env, prune=prune, sparse=sparse, quantise=quantise, retention=retention, episodes=episodes, out=out, config=settled, show=show))
    return _told(made, sentences(made))


@click.command(context_settings=CONTEXT)
@click.argument("teacher", required=False)
@with_options(SEVERAL_OPTIONS)
@click.option("--resume", metavar="FOLDER", help="Go on with a search that was stopped, as it was asked for.")
@click.option("--retention", type=float, default=0.99, show_default=True, help="What the lower end of the interval must reach.")
@click.option("--sizes", help="Students in distill's words, such as 'mlp:8, mlp:16x16, tree:leaves=16'.  [default: twelve MLPs up to 64x64]")
@click.option("--max-parameters", type=click.IntRange(1), help="At most so many parameters.")
@click.option("--max-bytes", help="At most such a file: 4096, 8kB, 2KiB.")
@click.option("--max-latency", help="At most so long for one state: 20us, 0.5ms, 800ns.")
@click.option("--latency-of", default="python", show_default=True, help="What runs it there: python (the numpy file), compiled (C from Python) or torch.")
@click.option("--episodes", type=click.IntRange(2), default=400, show_default=True, help="Played at most to decide on one size.")
@with_options(ENV_OPTIONS)
@with_options(TEACHER_OPTIONS)
@with_options(_STEP_OPTIONS)
@click.option("--see", help="What the students see, as in distill.")
def search(teacher: str | None, teachers: str | None, combine: str | None, dispatch: str | None, resume: str | None, retention: float, sizes: str | None, max_parameters: int | None, max_bytes: str | None, max_latency: str | None, latency_of: str, episodes: int, out: str | None, quiet: bool, format_: str | None, **flags: Any) -> int:
    """Find the smallest student of TEACHER that holds its return: all sizes learn at once, and race.

    \b
    distillrl search teacher.zip --env LunarLander-v3 --retention 0.97 --max-latency 20us
    distillrl search teacher.zip --env CartPole-v1 --sizes 'mlp:, mlp:4, tree:leaves=8' --max-parameters 100

    Exit code 0: a size passed; 1: none did; 2: something was wrong, in a sentence.
    """  # noqa: D301  # click's own mark of lines that stay as they are: it must be the character itself
    from distillrl import limits
    from distillrl.search import search as work
    from distillrl.search import sentences

    if resume is not None:
        found = _shown(quiet, lambda show: work(teacher, flags["env"], resume=resume, show=show))
    elif teacher is None and teachers is None:
        raise Misconfigured("search: name the teacher's file, or --resume FOLDER of a search that was stopped")
    else:
        one_or_several("TEACHER", teacher, teachers, combine, dispatch)
        within = limits.Limits(max_parameters, limits.size(max_bytes) if max_bytes is not None else None, limits.duration(max_latency) if max_latency is not None else None, latency_of)
        settled = configuration.with_changes(configuration.Config(env_steps=150_000), {"format": format_, **{k: v for k, v in flags.items() if k != "env"}, **_several(teachers, combine, dispatch)})
        wished = limits.words(sizes) if sizes is not None else None
        found = _shown(quiet, lambda show: work(teacher, flags["env"], retention=retention, sizes=wished, limits=within, episodes=episodes, out=out, config=settled, show=show))
    return _told(found, [f"frontier: {found.folder / 'frontier.json'}", *sentences(found)])


def _several(teachers: str | None, combine: str | None, dispatch: str | None) -> dict[str, Any]:
    """Several teachers as the configuration has them."""
    return {"teachers": names_of(teachers), "combine": combine, "dispatch": dispatch}


def _shown(quiet: bool, work: Callable[[Display], T]) -> T:
    """Work whose progress is shown; where the user breaks it off, what it says, and exit code 130."""
    from distillrl.console import Display

    try:
        with Display(quiet) as display:
            return work(display)
    except KeyboardInterrupt as stopped:
        click.echo(str(stopped) or "interrupted", err=True)
        raise click.exceptions.Exit(130) from None


def _told(made: Compression | Found, sentences: list[str]) -> int:
    """The verdict, where the student lies, what came of it in words; the exit code."""
    from distillrl.console import print_verdict

    if made.policy is not None:
        print_verdict(made.verdict)
        click.echo(f"student: {made.folder / 'student.safetensors'}")
    for sentence in sentences:
        click.echo(sentence, err=not made.reached)
    return 0 if made.reached else 1


@click.command(context_settings=CONTEXT)
@click.argument("policy")
@click.option("--to", "target", required=True, help="onnx, c, c-int8, compiled, js, python or torch.")
@click.option("--out", default="exported", show_default=True, help="The folder that is written.")
@click.option("--name", default="policy", show_default=True, help="Of the files, and of the functions in C.")
@click.option("--env", help="To calibrate on (c-int8); by default the one that the file names.")
@click.option("--sampled", is_flag=True, help="Draw the action instead of taking the most likely one.")
@click.option("--check", "check_env", metavar="ENV", help="Play ENV with what was exported: parity on visited states, and its return.")
@click.option("--episodes", type=click.IntRange(0), default=50, show_default=True, help="Of --check.")
@click.option("--states", type=click.IntRange(1), default=10_000, show_default=True, help="Visited states that --check compares on, at least.")
@click.option("--env-kwargs", multiple=True, callback=env_kwargs_of, metavar="NAME=VALUE", help="Keyword argument of the environment; may be repeated.")
@click.option("--max-episode-steps", type=click.IntRange(1), help="Cut episodes after so many steps.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the episodes of --check.")
@with_options(TEACHER_OPTIONS)
def export(policy: str, target: str, out: str, name: str, env: str | None, sampled: bool, check_env: str | None, episodes: int, states: int, env_kwargs: dict[str, Any] | None, max_episode_steps: int | None, seed: int, format_: str | None, model: str | None, vecnormalize: str | None, teacher_sees: str | None, concurrency: int | None, trust: bool | None) -> int:
    """Write POLICY, a student or a teacher, as what runs in the product.

    \b
    distillrl export student.safetensors --to c --out out/
    distillrl export teacher.zip --to onnx --check LunarLander-v3

    Exit code 0; 1: what was exported isn't the policy (--check); 2: something was wrong, in a sentence.
    """  # noqa: D301  # click's own mark of lines that stay as they are: it must be the character itself
    from distillrl.envs import EnvOptions
    from distillrl.exporting import export as work
    from distillrl.exporting import known
    from distillrl.loading import load
    from distillrl.teachers import Options

    known(target)
    plain = not any((format_, model, vecnormalize, teacher_sees, trust))
    loaded: Any = policy if plain else load(policy, Options(format=format_, model=model, sees=teacher_sees, vecnormalize=vecnormalize, concurrency=concurrency, trust=bool(trust))).policy
    if (env_kwargs or max_episode_steps) and not (env or check_env):
        raise Misconfigured("--env-kwargs and --max-episode-steps say how an environment is made: name it with --env or --check")

    def where(place: str) -> Any:
        return EnvOptions(place, env_kwargs or {}, "auto", max_episode_steps)

    exported = work(loaded, target, out, name=name, env=where(calibrate) if (calibrate := env or check_env) else None, sampled=sampled)
    for path in exported.files:
        click.echo(f"{path}: {path.stat().st_size:,} bytes")
    for key, value in exported.facts.items():
        click.echo(f"{key}: {value:,}" if isinstance(value, int) else f"{key}: {value}")
    if check_env is not None:
        from distillrl.parity import check

        found = check(exported, loaded, where(check_env), states=states, episodes=episodes, seed=seed)
        for sentence in found.sentences():
            click.echo(sentence)
        return 0 if found.same else 1
    return 0
