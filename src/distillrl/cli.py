"""The command line: each verb is one function; parsing imports no torch."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from distillrl import __version__, shipping
from distillrl import config as configuration
from distillrl.errors import DistillError, Misconfigured
from distillrl.options import CONTEXT, ENV_OPTIONS, SEVERAL_OPTIONS, TEACHER_OPTIONS, names_of, one_or_several, with_options


@click.group(context_settings=CONTEXT)
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


@main.command(context_settings=CONTEXT)
@click.argument("teacher", required=False)
@with_options(ENV_OPTIONS)
@with_options(TEACHER_OPTIONS)
@with_options(SEVERAL_OPTIONS)
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
@click.option("--finetune", is_flag=True, default=None, help="After distilling go on by the reward alone: the critic first, then PPO; of a tree of discrete actions its leaves.")
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

    several = names_of(teachers)
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


@main.command(context_settings=CONTEXT)
@click.argument("policy", required=False)
@with_options(ENV_OPTIONS)
@with_options(TEACHER_OPTIONS)
@click.option("--teacher", help="The teacher to compare with, on the same seeds.")
@with_options(SEVERAL_OPTIONS)
@click.option("--episodes", type=click.IntRange(1), default=100, show_default=True)
@click.option("--margin", type=float, default=0.02, show_default=True, help="How much worse than its teacher it may be, of the return above random play.")
@click.option("--json", "as_json", is_flag=True, help="Print verdict.json's shape.")
def evaluate(policy: str | None, teacher: str | None, teachers: str | None, combine: str | None, dispatch: str | None, episodes: int, margin: float, as_json: bool, format_: str | None, model: str | None, vecnormalize: str | None, teacher_sees: str | None, concurrency: int | None, trust: bool | None, env: str | None, env_kwargs: dict[str, Any] | None, backend: str | None, max_episode_steps: int | None, seed: int | None) -> int:
    """Measure POLICY, a student or a teacher, on episodes that chose nothing.

    \b
    distillrl evaluate runs/lander/student.safetensors --teacher teacher.zip
    distillrl evaluate student.safetensors --teachers easy.zip,hard.zip --dispatch 'obs[0]<3:0, else:1'
    distillrl evaluate --teachers a.zip,b.zip --combine product --env LunarLander-v3
    """  # noqa: D301  # click's own mark of lines that stay as they are: it must be the character itself
    from distillrl.console import print_verdict
    from distillrl.evaluation import evaluate as work
    from distillrl.teachers import Options

    options = Options(format=format_, model=model, sees=teacher_sees, env=env, vecnormalize=vecnormalize, concurrency=concurrency, trust=bool(trust), combine=combine, dispatch=dispatch)
    judged: Any = policy
    against: Any = teacher
    if policy is None:
        judged = one_or_several("POLICY", None, teachers, combine, dispatch)
    elif teachers or combine or dispatch:
        against = one_or_several("--teacher", teacher, teachers, combine, dispatch)
    if not 0 < margin < 1:
        raise Misconfigured(f"--margin {margin}: a share between 0 and 1, such as 0.02, is right")
    verdict = work(judged, env, against, episodes=episodes, margin=margin, seed=seed or 0, backend=backend or "auto", env_kwargs=env_kwargs, max_episode_steps=max_episode_steps, options=options)
    if as_json:
        click.echo(json.dumps(verdict, indent=1))
    else:
        print_verdict(verdict)
    return 0


@main.command(context_settings=CONTEXT)
@click.argument("teacher", required=False)
@with_options(ENV_OPTIONS)
@with_options(TEACHER_OPTIONS)
@with_options(SEVERAL_OPTIONS)
@click.option("--episodes", type=click.IntRange(1), help="So many whole episodes.")
@click.option("--steps", type=click.IntRange(1), help="Whole episodes until there are so many steps.")
@click.option("--out", required=True, help="The folder that is written: a Minari data set.")
@click.option("--sampled", is_flag=True, help="Play samples of the policy, not its most likely actions.")
@click.option("--noise", type=float, default=0.0, help="Share of random actions; of a box, the deviation added, in halves of its range.")
def record(teacher: str | None, teachers: str | None, combine: str | None, dispatch: str | None, episodes: int | None, steps: int | None, out: str, sampled: bool, noise: float, format_: str | None, model: str | None, vecnormalize: str | None, teacher_sees: str | None, concurrency: int | None, trust: bool | None, env: str | None, env_kwargs: dict[str, Any] | None, backend: str | None, max_episode_steps: int | None, seed: int | None) -> int:
    """Record play of TEACHER as a data set, with what it says of each step: distribution, value, Q.

    \b
    distillrl record teacher.zip --env LunarLander-v3 --episodes 50 --out play
    distillrl distill --data play --student mlp:64x64
    """  # noqa: D301  # click's own mark of lines that stay as they are: it must be the character itself
    from distillrl.recording import record as work
    from distillrl.teachers import Options

    options = Options(format=format_, model=model, sees=teacher_sees, env=env, vecnormalize=vecnormalize, concurrency=concurrency, trust=bool(trust), combine=combine, dispatch=dispatch)
    source = one_or_several("TEACHER", teacher, teachers, combine, dispatch)
    done = work(source, env, out=out, episodes=episodes, steps=steps, seed=seed or 0, sampled=sampled, noise=noise, backend=backend or "auto", env_kwargs=env_kwargs, max_episode_steps=max_episode_steps, options=options)
    mean = sum(done.returns) / len(done.returns)
    click.echo(f"{done.path}: {done.episodes:,} episodes, {done.steps:,} steps, return {mean:.1f} ({min(done.returns):.1f} … {max(done.returns):.1f})")
    return 0


@main.command(context_settings=CONTEXT)
@click.argument("policy", required=False)
@click.option("--env", help="The environment that it is for, where its file doesn't say what it sees and does.")
@click.option("--backend", default="auto", help="auto, gymnasium or envpool.")
@with_options(TEACHER_OPTIONS)
@with_options(SEVERAL_OPTIONS)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def info(policy: str | None, teachers: str | None, combine: str | None, dispatch: str | None, env: str | None, backend: str, as_json: bool, format_: str | None, model: str | None, vecnormalize: str | None, teacher_sees: str | None, concurrency: int | None, trust: bool | None) -> int:
    """Say what POLICY is, or several teachers together: algorithm, spaces, layers, sizes, what knowledge it can give."""
    from distillrl.envs import EnvOptions
    from distillrl.loading import info as work
    from distillrl.settling import environment
    from distillrl.teachers import Options

    spec = environment(EnvOptions(env, backend=backend), 1)[0] if env is not None else None
    found = work(one_or_several("POLICY", policy, teachers, combine, dispatch), Options(format=format_, model=model, sees=teacher_sees, env=env, vecnormalize=vecnormalize, concurrency=concurrency, trust=bool(trust), combine=combine, dispatch=dispatch), spec)
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


@main.command(context_settings=CONTEXT)
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


for verb in (shipping.report, shipping.compare, shipping.watch, shipping.compress, shipping.search, shipping.export):
    main.add_command(verb)


if __name__ == "__main__":
    run()
