"""`rllib shrink`."""

from __future__ import annotations

import shlex
from typing import Annotated, Any

import typer

from rllib_kd.cli.app import app, echo, given_options, one_or_all, set_log_level
from rllib_kd.cli.options import TEACHER_HELP, Address, EnvConfig, Imports, Input, NewFolder, TrainEnv, Trust, option


# Longer than other functions: typer reads the flags from its signature.
@app.command()
def shrink(
    context: typer.Context,
    teacher: Annotated[list[str] | None, option(TEACHER_HELP, metavar="PATH")] = None,
    env: TrainEnv = None,
    env_config: EnvConfig = "{}",
    imports: Imports = None,
    input: Input = None,
    keep: Annotated[float, option("Share of return or agreement to keep (default: 0.97).", metavar="X")] = 0.97,
    confidence: Annotated[float, option("Certificate's confidence (default: 0.95).", metavar="X")] = 0.95,
    minimize: Annotated[str, option("parameters (default), bytes, int8_bytes, ...", metavar="NAME")] = "parameters",
    minutes: Annotated[float | None, option("Minutes for the whole run (default: 10).", metavar="N")] = None,
    env_steps: Annotated[int | None, option("Env steps of training, instead of minutes.", metavar="N")] = None,
    episodes: Annotated[
        int | None, option("Most episodes of a certificate (default: 5,000; by time up to 20,000).", metavar="N")
    ] = None,
    trees: Annotated[bool, option("Try decision trees beside networks.", "--trees")] = False,
    restarts: Annotated[int | None, option("Copies of each size (default: 8; images: 1).", metavar="N")] = None,
    bounds: Annotated[
        tuple[float, float] | None, option("Range of all possible returns, if known.", metavar="LOW HIGH")
    ] = None,
    parts: Annotated[
        int | None, option("Actors that share training (default: 1; on a cluster, by free CPUs).", metavar="N")
    ] = None,
    certify_in_pool: Annotated[
        bool, option("Certify envpool/NAME in envpool, not in gymnasium.", "--certify-in-pool")
    ] = False,
    config: Annotated[str, option("Settings of training, or @FILE.", "--config", "-c", metavar="JSON")] = "{}",
    out: NewFolder = None,
    resume: Annotated[bool, option("Continue the run in the folder --out.", "--resume")] = False,
    seed: Annotated[int, option("Seed of training and played episodes (default: 0).", metavar="N")] = 0,
    trust_checkpoint: Trust = False,
    address: Address = None,
) -> None:
    """Find and certify the smallest student that keeps the return.

    Without --env, students are compared with the teacher on recorded rows: --input.

    \b
    rllib shrink --teacher cartpole --env CartPole-v1 --minutes 2
    """  # noqa: D301 (a real backspace, which keeps the lines apart)
    from rllib_kd.workers.forking import begin

    begin(address=address)
    from rllib_kd.environments.own import given_environment
    from rllib_kd.experiment.files import parse_settings
    from rllib_kd.experiment.names import check_not_empty
    from rllib_kd.shrink.progress import resuming_command
    from rllib_kd.shrink.shrink import Shrink, begun_with

    set_log_level(0)
    check_not_empty(address=address)
    settings = parse_settings(config, "--config")
    flags: dict[str, Any] = {"input_": input} if input else {}
    flags |= {"trust_checkpoint": True} if trust_checkpoint else {}
    options: dict[str, Any] = {
        "teacher": one_or_all(teacher),
        "env": given_environment(env, imports or ()),
        "keep": keep,
        "confidence": confidence,
        "minimize": minimize,
        "minutes": minutes,
        "env_steps": env_steps,
        "seed": seed,
        "env_config": parse_settings(env_config, "--env-config"),
        "config": settings | flags,
        "trees": trees,
        "restarts": restarts,
        "episodes": episodes,
        "bounds": bounds,
        "parts": parts,
        "certify_in_pool": certify_in_pool,
    }
    if resume and out is not None:  # options that are left out keep their values
        given = given_options(context) & options.keys()
        begun = begun_with(out)
        if flags or "config" in given:
            options["config"] = begun["config"] | options["config"]
            given.add("config")
        if {"minutes", "env_steps"} & given:  # one of them may be given
            begun |= {"minutes": None, "env_steps": None}
        options = begun | {name: options[name] for name in given}
    if options["teacher"] is None:
        raise ValueError("--teacher is missing. See `rllib shrink --help`.")
    shrunk = Shrink(**options, out=out).run(
        resume=resume, address=address, command=shlex.join(["rllib", *context.obj]), progress=True
    )
    if not shrunk.is_complete:
        continuing = [*resuming_command(shrunk.folder), *([] if address is None else ["--address", address])]
        echo(f"interrupted; continue with: {shlex.join(continuing)}", err=True)
        raise typer.Exit(1)
    echo(shrunk)
    if shrunk.certified is None:
        raise typer.Exit(1)
