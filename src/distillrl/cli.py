"""The command line: each verb is one function; parsing imports no torch."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from distillrl import __version__
from distillrl import config as configuration
from distillrl.errors import DistillError, Misconfigured

_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 120}


@click.group(context_settings=_CONTEXT)
@click.version_option(__version__, prog_name="distillrl")
def main() -> None:
    """Make small, fast, shippable students of trained reinforcement-learning policies."""


def run() -> None:
    """The entry point: our errors become a sentence and exit code 2, never a traceback."""
    try:
        code = main.main(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.exceptions.Exit as leave:
        sys.exit(leave.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except DistillError as error:
        click.echo(f"distillrl: {error}", err=True)
        sys.exit(2)
    except (KeyboardInterrupt, click.Abort):
        click.echo("distillrl: interrupted", err=True)
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)


def _env_kwargs(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, Any] | None:
    """``gravity=-5`` becomes {"gravity": -5}; a value that isn't TOML is text."""
    import tomllib

    given: dict[str, Any] = {}
    for text in values:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise click.BadParameter(f"{text!r}: write it as name=value, such as gravity=-5")
        try:
            given[name.strip()] = tomllib.loads(f"x = {value}")["x"]
        except tomllib.TOMLDecodeError:
            given[name.strip()] = value
    return given or None


_ENV_OPTIONS = [
    click.option("--env", help="Gymnasium id, or module:id; by default what the teacher's file names."),
    click.option("--env-kwargs", multiple=True, callback=_env_kwargs, metavar="NAME=VALUE", help="Keyword argument of the environment; may be repeated."),
    click.option("--backend", help="auto, gymnasium, gymnasium:1, gymnasium:2 (processes), envpool, or ale (Atari games, by default)."),
    click.option("--max-episode-steps", type=int, help="Cut episodes after so many steps."),
    click.option("--seed", type=int, help="One seed for everything; 0 by default."),
]
_TEACHER_OPTIONS = [
    click.option("--format", "format_", help="The teacher file's format, where it can't be told by looking."),
    click.option("--model", help="module:Class of a network for a bare state dict."),
    click.option("--vecnormalize", help="VecNormalize statistics that lie elsewhere than beside the teacher."),
    click.option("--teacher-sees", help="What the teacher sees, such as group=state."),
    click.option("--concurrency", type=click.IntRange(1), help="Requests at a time to a teacher on a server.  [default: 8]"),
    click.option("--trust", is_flag=True, default=None, help="Run the teacher file's own code, where its format needs that. No known format does."),
]


def _with(options: list[Any]) -> Any:
    def decorate(function: Any) -> Any:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


@main.command(context_settings=_CONTEXT)
@click.argument("teacher", required=False)
@_with(_ENV_OPTIONS)
@_with(_TEACHER_OPTIONS)
@click.option("--teachers", metavar="A,B,…", help="Several teachers in place of one.")
@click.option("--combine", help="How several become one: average (the default), confidence, value, product or best.")
@click.option("--dispatch", metavar="CASES", help="Which of several is asked, by the observation: 'level<3:0, else:1', or 'task'.")
@click.option("--student", help="mlp:16x16, mlp: (linear), cnn:8-16-16:64 or cnn:rusu-7 (images), gru:32, lstm:32, tree:leaves=64.  [default: mlp:16x16]")
@click.option("--data", help="Learn from recorded play: a Minari data set, .npz, LeRobot's folder, D4RL's or d3rlpy's HDF5.")
@click.option("--data-format", help="minari, lerobot, npz or hdf5, where it can't be told by looking.")
@click.option("--label", help="Of recorded states: teacher (asked anew), distribution or action; by default the first that there is.")
@click.option("--weigh", help="How much recorded states count: awr(1), crr, crr_exp(1), top(0.1), success or success(200).")
@click.option("--hold-out", type=float, help="Share of recorded episodes that choose the student and are never learnt from.  [default: 0.1]")
@click.option("--see", help="What the student sees: 'drop=2,3,5, stack=4', 'pick=0,1', 'group=NAME', delay, clip, noise, quantise; of images 'render, grey, resize=84, stack=4', crop, jitter.")
@click.option("--method", help="auto, dagger, policy-distillation, behaviour-cloning, on-policy.  [default: auto]")
@click.option("--terms", help="Objectives with weights: 'forward_kl: linear(1,0.1), value_mse: 0.5'; '+…' adds to the method's own.")
@click.option("--until", help="retention=0.99, return=200, agreement=0.95 or none; a point estimate on selecting seeds.")
@click.option("--worst-of", type=int, help="Go on until so many fresh starts in a row go well; 500 for trees, else 0.")
@click.option("--env-steps", type=int, help="At most so many environment steps.")
@click.option("--labels", type=int, help="At most so many states labelled by the teacher.")
@click.option("--choose", help="Which states the teacher is asked about: all, entropy, disagreement, random; a tenth of those driven through.  [default: all]")
@click.option("--seconds", type=float, help="At most so long.")
@click.option("--rounds", type=int, help="At most so many rounds.")
@click.option("--slots", type=int, help="Environments side by side.")
@click.option("--threads", type=int, help="Torch threads; 1 is fastest for small networks.")
@click.option("--memory", help="What the states may take of it, such as 4GB; more goes to files in the run folder.  [default: half of what is free]")
@click.option("--device", help="cpu, cuda, …")
@click.option("--finetune", is_flag=True, default=None, help="After distilling go on by the reward alone: the critic first, then PPO.")
@click.option("--inherit", help="Start from the weights of 'teacher', or of a network's file: neurons chosen where the student has fewer, repeated where more.")
@click.option("--init", help="Begin from this student.")
@click.option("--out", help="The run folder.  [default: runs/ENVIRONMENT-TIME]")
@click.option("--config", "config_file", help="A config.toml; flags override it.")
@click.option("--resume", help="Go on with this run folder.")
@click.option("--show", is_flag=True, help="Print the resolved configuration as TOML, and stop.")
@click.option("--quiet", is_flag=True, help="Say nothing but the verdict.")
@click.option("--log", help="tensorboard: scalars, histograms, options and a film go to RUN/tensorboard.")
def distill(teacher: str | None, config_file: str | None, resume: str | None, show: bool, quiet: bool, log: str | None, out: str | None, format_: str | None, terms: str | None, teachers: str | None, **flags: Any) -> int:
    """Make a student of TEACHER, a policy's file, folder or address.

    \b
    distillrl distill teacher.zip --env LunarLander-v3 --student mlp:16x16
    distillrl distill teacher.zip --env LunarLander-v3 --until retention=0.99 --seconds 60 --out runs/lander
    distillrl distill http://host:8000/v2/models/expert --env CartPole-v1 --labels 20000
    distillrl distill --teachers easy.zip,hard.zip --dispatch 'obs[0]<3:0, else:1' --env LunarLander-v3
    distillrl distill --data play --student mlp:64x64
    distillrl distill --config runs/lander/config.toml
    distillrl distill --resume runs/lander

    Exit code 0: the aim was reached; 1: it was not; 2: something was wrong, in a sentence.
    """  # noqa: D301  # click's own mark of lines that stay as they are: it must be the character itself
    from distillrl.console import Display, print_verdict

    several = tuple(part.strip() for part in teachers.split(",") if part.strip()) if teachers is not None else None
    if resume is not None and (teacher or several or config_file or any(v is not None for v in flags.values())):
        raise Misconfigured("--resume goes on with what the run folder says; give no teacher and no other options with it")
    settled = _settled(config_file, {"teacher": teacher, "teachers": several, "format": format_, "terms": terms, **flags})
    if show:
        from distillrl.distillation import expanded

        click.echo(configuration.dumps(expanded(settled)), nl=False)
        return 0
    from distillrl.distillation import distill as work

    try:
        with ExitStack() as shown:
            shows: list[Any] = [shown.enter_context(Display(quiet))]
            if log is not None:
                from distillrl.logging import Log

                shows.append(shown.enter_context(Log(log)))
            run = work(config=settled, out=out, resume=resume, show=_each(shows))
    except KeyboardInterrupt as stopped:
        click.echo(str(stopped) or "interrupted", err=True)
        return 130
    print_verdict(run.verdict)
    _tell(run)
    click.echo(f"student: {run.policy.info.get('file', run.folder / 'student.safetensors')}")
    if not run.reached:
        click.echo(_short(run.verdict), err=True)
        for cause in run.verdict.get("diagnosis", []):
            click.echo(f"why: {cause}", err=True)
    return 0 if run.reached else 1


def _each(shows: list[Any]) -> Any:
    """One function that shows to all of them."""

    def show(metrics: Mapping[str, Any]) -> None:
        for one in shows:
            one(metrics)

    return show


def _tell(run: Any) -> None:
    """A student that a person can read, and where it is drawn."""
    from distillrl.students.telling import readable, teller

    told = teller(run.policy.policy)
    if told is None:
        return
    if readable(run.policy.policy):
        click.echo(told.as_text(run.policy.policy))
    drawn = ", ".join(str(run.folder / f"student.{ending}") for ending in ("txt", "svg", "py", "c"))
    click.echo(f"what it does, as text, drawing and code: {drawn}")


def _settled(config_file: str | None, flags: Mapping[str, Any]) -> configuration.Config:
    base = configuration.Config()
    if config_file is not None:
        base = configuration.build(configuration.read(Path(config_file)), config_file)
    settled = configuration.with_changes(base, flags)
    if settled.data is not None and flags.get("env_steps") is not None:
        raise Misconfigured("--env-steps bounds what is stepped, and with --data nothing is: --rounds and --seconds are right")
    if flags.get("method") is not None and flags["method"] != base.method:
        settled = replace(settled, phase=())
    return settled


def _short(verdict: Mapping[str, Any]) -> str:
    if verdict["ended_by"] == "plateau":
        return f"short of its aim ({verdict['until']}) when the loss on held-out episodes no longer fell. Record more, or try a larger --student; the best student so far was kept."
    spent = {"env_steps": "--env-steps", "labels": "--labels", "seconds": "--seconds", "rounds": "--rounds"}.get(verdict["ended_by"], "its budget")
    return (
        f"short of its aim ({verdict['until']}) when {spent} was spent. Try more of it, a larger --student"
        + (", or another --method" if verdict["method"] != "auto" else "")
        + "; the best student so far was kept."
    )


@main.command(context_settings=_CONTEXT)
@click.argument("policy")
@_with(_ENV_OPTIONS)
@_with(_TEACHER_OPTIONS)
@click.option("--teacher", help="The teacher to compare with, on the same seeds.")
@click.option("--episodes", type=click.IntRange(1), default=100, show_default=True)
@click.option("--margin", type=float, default=0.02, show_default=True, help="How much worse than its teacher it may be, of the return above random play.")
@click.option("--json", "as_json", is_flag=True, help="Print verdict.json's shape.")
def evaluate(policy: str, teacher: str | None, episodes: int, margin: float, as_json: bool, format_: str | None, model: str | None, vecnormalize: str | None, teacher_sees: str | None, concurrency: int | None, trust: bool | None, env: str | None, env_kwargs: dict[str, Any] | None, backend: str | None, max_episode_steps: int | None, seed: int | None) -> int:
    """Measure POLICY, a student or a teacher, on episodes that chose nothing."""
    from distillrl.console import print_verdict
    from distillrl.evaluation import evaluate as work
    from distillrl.teachers import Options

    options = Options(format=format_, model=model, sees=teacher_sees, env=env, vecnormalize=vecnormalize, concurrency=concurrency, trust=bool(trust))
    if not 0 < margin < 1:
        raise Misconfigured(f"--margin {margin}: a share between 0 and 1, such as 0.02, is right")
    verdict = work(policy, env, teacher, episodes=episodes, margin=margin, seed=seed or 0, backend=backend or "auto", env_kwargs=env_kwargs, max_episode_steps=max_episode_steps, options=options)
    if as_json:
        click.echo(json.dumps(verdict, indent=1))
    else:
        print_verdict(verdict)
    return 0


@main.command(context_settings=_CONTEXT)
@click.argument("teacher")
@_with(_ENV_OPTIONS)
@_with(_TEACHER_OPTIONS)
@click.option("--episodes", type=click.IntRange(1), help="So many whole episodes.")
@click.option("--steps", type=click.IntRange(1), help="Whole episodes until there are so many steps.")
@click.option("--out", required=True, help="The folder that is written: a Minari data set.")
@click.option("--sampled", is_flag=True, help="Play samples of the policy, not its most likely actions.")
@click.option("--noise", type=float, default=0.0, help="Share of random actions; of a box, the deviation added, in halves of its range.")
def record(teacher: str, episodes: int | None, steps: int | None, out: str, sampled: bool, noise: float, format_: str | None, model: str | None, vecnormalize: str | None, teacher_sees: str | None, env: str | None, env_kwargs: dict[str, Any] | None, backend: str | None, max_episode_steps: int | None, seed: int | None) -> int:
    """Record play of TEACHER as a data set, with what it says of each step: distribution, value, Q.

    \b
    distillrl record teacher.zip --env LunarLander-v3 --episodes 50 --out play
    distillrl distill --data play --student mlp:64x64
    """  # noqa: D301  # click's own mark of lines that stay as they are: it must be the character itself
    from distillrl.recording import record as work
    from distillrl.teachers import Options

    options = Options(format=format_, model=model, sees=teacher_sees, env=env, vecnormalize=vecnormalize)
    done = work(teacher, env, out=out, episodes=episodes, steps=steps, seed=seed or 0, sampled=sampled, noise=noise, backend=backend or "auto", env_kwargs=env_kwargs, max_episode_steps=max_episode_steps, options=options)
    mean = sum(done.returns) / len(done.returns)
    click.echo(f"{done.path}: {done.episodes:,} episodes, {done.steps:,} steps, return {mean:.1f} ({min(done.returns):.1f} … {max(done.returns):.1f})")
    return 0


@main.command(context_settings=_CONTEXT)
@click.argument("policy")
@click.option("--env", help="The environment that it is for, where its file doesn't say what it sees and does.")
@click.option("--backend", default="auto", help="auto, gymnasium or envpool.")
@_with(_TEACHER_OPTIONS)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def info(policy: str, env: str | None, backend: str, as_json: bool, format_: str | None, model: str | None, vecnormalize: str | None, teacher_sees: str | None, concurrency: int | None, trust: bool | None) -> int:
    """Say what POLICY is: algorithm, spaces, layers, sizes, what knowledge it can give."""
    from distillrl.envs import EnvOptions
    from distillrl.loading import info as work
    from distillrl.settling import environment
    from distillrl.teachers import Options

    spec = environment(EnvOptions(env, backend=backend), 1)[0] if env is not None else None
    found = work(policy, Options(format=format_, model=model, sees=teacher_sees, env=env, vecnormalize=vecnormalize, concurrency=concurrency, trust=bool(trust)), spec)
    if as_json:
        click.echo(json.dumps(found, indent=1, default=str))
        return 0
    width = max(len(k) for k in found)
    for key, value in found.items():
        if value in (None, [], {}, ()):
            continue
        lines = [f"{k}: {v}" for k, v in value.items()] if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else [value]
        if key == "gives":
            lines = [", ".join(lines)]
        for i, line in enumerate(lines):
            click.echo(f"{key if i == 0 else '':<{width}}  {line:,}" if isinstance(line, int) and not isinstance(line, bool) else f"{key if i == 0 else '':<{width}}  {line}")
    return 0


@main.command(context_settings=_CONTEXT)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def methods(as_json: bool) -> int:
    """List the methods: paper, who drives, what the teacher must give, when to choose it."""
    from distillrl.methods import METHODS

    rows = [{"name": name, "title": m.title, "paper": m.paper, "driver": m.driver, "needs": m.needs, "when": m.when} for name, m in METHODS.items()]
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return 0
    for row in rows:
        click.echo(f"{row['name']}: {row['title']} ({row['paper']})")
        click.echo(f"    driver: {row['driver']}; needs: {row['needs']}; choose it when: {row['when']}")
    return 0


@main.command(context_settings=_CONTEXT)
@click.argument("run")
@click.option("--out", help="Where the page goes.  [default: report.html in the run folder]")
@click.option("--full", "measure", flag_value="full", help="Measure everything anew: minutes instead of seconds.")
@click.option("--quick", "measure", flag_value="quick", default="quick", help="Measure for some seconds what was not measured yet (the default).")
@click.option("--as-is", "measure", flag_value="none", help="Measure nothing.")
@click.option("--margin", type=float, default=0.02, show_default=True, help="How much worse than its teacher it may be, of the return above random play.")
@click.option("--teacher", help="Where the teacher's file lies now.")
@click.option("--env", help="The environment, where the run doesn't name it.")
@click.option("--unseen", multiple=True, callback=_env_kwargs, metavar="NAME=VALUE", help="Argument of an environment never seen in distillation; may be repeated.")
@click.option("--physics", help="A TOML file with more changes of physics (docs/evidence.md).")
def report(run: str, out: str | None, measure: str, margin: float, teacher: str | None, env: str | None, unseen: dict[str, Any] | None, physics: str | None) -> int:
    """Write one HTML page on RUN, a run folder: ship it or not, and why. It opens offline."""
    from distillrl.physics import PHYSICS
    from distillrl.physics import read as changes
    from distillrl.reporting import report as work

    table = PHYSICS if physics is None else changes(Path(physics))
    click.echo(str(work(run, out, measure=measure, margin=margin, teacher=teacher, env=env, unseen=unseen, physics=table)))
    return 0


@main.command(context_settings=_CONTEXT)
@click.argument("runs", nargs=-1, required=True)
@click.option("--out", default="compare.html", show_default=True, help="Where the page goes.")
def compare(runs: tuple[str, ...], out: str) -> int:
    """Write one HTML page that sets several RUNS side by side: intervals, sizes, profiles."""
    from distillrl.reporting import compare as work

    click.echo(str(work(runs, out)))
    return 0


@main.command(context_settings=_CONTEXT)
@click.argument("policy")
@_with(_ENV_OPTIONS)
@_with(_TEACHER_OPTIONS)
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


@main.command(context_settings=_CONTEXT)
@click.argument("student")
@click.option("--teacher", required=True, help="The teacher's file.")
@click.option("--prune", type=float, default=0.0, help="Take out this share of the parameters, as whole neurons (of a tree: leaves), step by step.")
@click.option("--sparse", is_flag=True, help="Take out single weights instead.")
@click.option("--quantise", help="int8, int4, int3, int2, fp16 or bf16.")
@click.option("--retention", type=float, default=0.98, show_default=True, help="Go on for as long as the interval of the retention lies above this.")
@click.option("--episodes", type=click.IntRange(2), default=400, show_default=True, help="Played at most to decide whether a step holds.")
@_with(_ENV_OPTIONS)
@_with(_TEACHER_OPTIONS)
@_with(_STEP_OPTIONS)
def compress(student: str, teacher: str, prune: float, sparse: bool, quantise: str | None, retention: float, episodes: int, out: str | None, quiet: bool, format_: str | None, **flags: Any) -> int:
    """Make STUDENT, a run's student.safetensors, smaller while it holds: prune, distil anew, quantise, re-measure. Budgets are a step's.

    \b
    distillrl compress runs/lander/student.safetensors --teacher teacher.zip --prune 0.8 --quantise int8
    distillrl compress S.safetensors --teacher T.zip --env CartPole-v1 --prune 0.9 --sparse --quantise int4 --retention 0.95

    Exit code 0: all of it held; 1: the last file that held was kept, or none did; 2: something was wrong, in a sentence.
    """  # noqa: D301  # click's own mark of lines that stay as they are: it must be the character itself
    from distillrl.compression import compress as work
    from distillrl.compression import sentences
    from distillrl.console import Display, print_verdict

    env = flags.pop("env")
    settled = configuration.with_changes(configuration.Config(env_steps=60_000), {"format": format_, **flags})
    try:
        with Display(quiet) as display:
            made = work(student, teacher, env, prune=prune, sparse=sparse, quantise=quantise, retention=retention, episodes=episodes, out=out, config=settled, show=display)
    except KeyboardInterrupt as stopped:
        click.echo(str(stopped) or "interrupted", err=True)
        return 130
    if made.policy is not None:
        print_verdict(made.verdict)
        click.echo(f"student: {made.folder / 'student.safetensors'}")
    for sentence in sentences(made):
        click.echo(sentence, err=not made.reached)
    return 0 if made.reached else 1


@main.command(context_settings=_CONTEXT)
@click.argument("teacher")
@click.option("--retention", type=float, default=0.99, show_default=True, help="What the lower end of the interval must reach.")
@click.option("--sizes", help="Students in distill's words, such as 'mlp:8, mlp:16x16, tree:leaves=16'.  [default: twelve MLPs up to 64x64]")
@click.option("--max-parameters", type=click.IntRange(1), help="At most so many parameters.")
@click.option("--max-bytes", help="At most such a file: 4096, 8kB, 2KiB.")
@click.option("--max-latency", help="At most so long for one state: 20us, 0.5ms, 800ns.")
@click.option("--latency-of", default="python", show_default=True, help="What runs it there: python (the numpy file), compiled (C from Python) or torch.")
@click.option("--episodes", type=click.IntRange(2), default=400, show_default=True, help="Played at most to decide on one size.")
@_with(_ENV_OPTIONS)
@_with(_TEACHER_OPTIONS)
@_with(_STEP_OPTIONS)
@click.option("--see", help="What the students see, as in distill.")
def search(teacher: str, retention: float, sizes: str | None, max_parameters: int | None, max_bytes: str | None, max_latency: str | None, latency_of: str, episodes: int, out: str | None, quiet: bool, format_: str | None, **flags: Any) -> int:
    """Find the smallest student of TEACHER that holds its return: all sizes learn at once, and race.

    \b
    distillrl search teacher.zip --env LunarLander-v3 --retention 0.97 --max-latency 20us
    distillrl search teacher.zip --env CartPole-v1 --sizes 'mlp:, mlp:4, tree:leaves=8' --max-parameters 100

    Exit code 0: a size passed; 1: none did; 2: something was wrong, in a sentence.
    """  # noqa: D301  # click's own mark of lines that stay as they are: it must be the character itself
    from distillrl import limits
    from distillrl.console import Display, print_verdict
    from distillrl.search import search as work
    from distillrl.search import sentences

    within = limits.Limits(max_parameters, limits.size(max_bytes) if max_bytes is not None else None, limits.duration(max_latency) if max_latency is not None else None, latency_of)
    settled = configuration.with_changes(configuration.Config(env_steps=150_000), {"format": format_, **{k: v for k, v in flags.items() if k != "env"}})
    try:
        with Display(quiet) as display:
            found = work(teacher, flags["env"], retention=retention, sizes=limits.words(sizes) if sizes is not None else None, limits=within, episodes=episodes, out=out, config=settled, show=display)
    except KeyboardInterrupt as stopped:
        click.echo(str(stopped) or "interrupted", err=True)
        return 130
    if found.policy is not None:
        print_verdict(found.verdict)
        click.echo(f"student: {found.folder / 'student.safetensors'}")
    click.echo(f"frontier: {found.folder / 'frontier.json'}")
    for sentence in sentences(found):
        click.echo(sentence, err=not found.reached)
    return 0 if found.reached else 1


@main.command(context_settings=_CONTEXT)
@click.argument("policy")
@click.option("--to", "target", required=True, help="onnx, c, c-int8, compiled, js, python or torch.")
@click.option("--out", default="exported", show_default=True, help="The folder that is written.")
@click.option("--name", default="policy", show_default=True, help="Of the files, and of the functions in C.")
@click.option("--env", help="To calibrate on (c-int8); by default the one that the file names.")
@click.option("--sampled", is_flag=True, help="Draw the action instead of taking the most likely one.")
@click.option("--check", "check_env", metavar="ENV", help="Play ENV with what was exported: parity on visited states, and its return.")
@click.option("--episodes", type=click.IntRange(0), default=50, show_default=True, help="Of --check.")
@click.option("--states", type=click.IntRange(1), default=10_000, show_default=True, help="Visited states that --check compares on, at least.")
@click.option("--env-kwargs", multiple=True, callback=_env_kwargs, metavar="NAME=VALUE", help="Keyword argument of the environment; may be repeated.")
@click.option("--max-episode-steps", type=click.IntRange(1), help="Cut episodes after so many steps.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the episodes of --check.")
@_with(_TEACHER_OPTIONS)
def export(policy: str, target: str, out: str, name: str, env: str | None, sampled: bool, check_env: str | None, episodes: int, states: int, env_kwargs: dict[str, Any] | None, max_episode_steps: int | None, seed: int, format_: str | None, model: str | None, vecnormalize: str | None, teacher_sees: str | None, concurrency: int | None, trust: bool | None) -> int:
    """Write POLICY, a student or a teacher, as what runs in the product."""
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
        for field in dataclasses.fields(found):
            click.echo(f"{field.name}: {getattr(found, field.name)}")
    return 0


if __name__ == "__main__":
    run()
