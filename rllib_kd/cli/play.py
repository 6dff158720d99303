"""`rllib compare`, `rllib evaluate` and `rllib export`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from rllib_kd.cli.app import app, one_or_all, set_log_level
from rllib_kd.cli.options import (
    Artifact,
    CheckedAlgo,
    EnvConfig,
    Episodes,
    Epsilon,
    FewEpisodes,
    Format,
    Int8,
    NumVideos,
    OtherTeacher,
    OwnEnv,
    Policy,
    Render,
    Report,
    Returns,
    Seed,
    Students,
    Trust,
    Video,
    option,
)
from rllib_kd.evaluation.seeds import FRESH_SEED


@app.command()
def compare(
    students: Students,
    teacher: Annotated[list[str], option("Checkpoint, or 'cartpole'; several: as one.", metavar="PATH")],
    env: OwnEnv = None,
    env_config: EnvConfig = "{}",
    episodes: Episodes = 100,
    seed: Seed = FRESH_SEED,
    epsilon: Epsilon = 0.0,
    out: Report = None,
    trust_checkpoint: Trust = False,
) -> None:
    """Let a teacher and its students play the same episodes.

    \b
    rllib compare --teacher cartpole ~/ray_results/cartpole --out report
    """  # noqa: D301
    from rllib_kd.checkpoints.runs import find_students
    from rllib_kd.evaluation.comparing import compare_all
    from rllib_kd.experiment.files import parse_json
    from rllib_kd.report.comparisons import summary_table, write_report

    set_log_level(0)
    found = find_students(students)
    if len(found) == 1:
        found = {"student": next(iter(found.values()))}
    comparisons = compare_all(
        one_or_all(teacher),
        {name: student.checkpoint for name, student in found.items()},
        env,
        num_episodes=episodes,
        seed=seed,
        epsilon=epsilon,
        env_config=parse_json(env_config, "--env-config"),
        trust_checkpoint=trust_checkpoint,
        progress=True,
    )
    typer.echo(str(comparisons[0]) if len(comparisons) == 1 else summary_table(comparisons))
    if out is not None:
        curves = {name: student.curve for name, student in found.items() if student.curve}
        typer.echo(write_report(comparisons, out, curves=curves))


@app.command()
def evaluate(
    checkpoint: Policy,
    env: OwnEnv = None,
    env_config: EnvConfig = "{}",
    episodes: Episodes = 100,
    seed: Seed = FRESH_SEED,
    epsilon: Epsilon = 0.0,
    out: Returns = None,
    video: Video = None,
    num_videos: NumVideos = 3,
    render: Render = False,
    algo: CheckedAlgo = None,
    trust_checkpoint: Trust = False,
) -> None:
    """Play a policy of any algorithm, and report its return.

    \b
    rllib evaluate ~/ray_results/cartpole --video videos
    """  # noqa: D301
    from rllib_kd.checkpoints.runs import find_student
    from rllib_kd.evaluation.comparing import evaluate as evaluate_policy
    from rllib_kd.evaluation.comparing import resolve_environment
    from rllib_kd.evaluation.policies import algorithm_of
    from rllib_kd.experiment.files import parse_json

    set_log_level(0)
    checkpoint = find_student(checkpoint)
    if algo is not None and algo != (trained_by := algorithm_of(checkpoint) or algo):
        raise ValueError(f"The checkpoint is one of {trained_by}, not of {algo}. Leave out --algo.")
    where, config = resolve_environment([checkpoint], env, parse_json(env_config, "--env-config"))
    report = evaluate_policy(
        checkpoint,
        where,
        num_episodes=episodes,
        seed=seed,
        epsilon=epsilon,
        env_config=config,
        trust_checkpoint=trust_checkpoint,
        video_dir=video,
        num_videos=num_videos,
        render=render,
        progress=True,
    )
    played = where if epsilon == 0.0 else f"{where}, ε = {epsilon:g}"
    interval = f" ± {report.return_ci95:.1f} (95 % CI, {episodes} episodes of {played})"
    typer.echo(f"return {report.return_mean:.1f}" + (interval if episodes > 1 else f" (1 episode of {played})"))
    if video is not None:
        typer.echo(video)
    if out is not None:
        conditions = {"env": where, "seed": seed, "epsilon": epsilon}
        out.write_text(json.dumps(conditions | {"returns": report.returns}, indent=1) + "\n")


@app.command()
def export(
    checkpoint: Policy,
    out: Artifact,
    env: OwnEnv = None,
    env_config: EnvConfig = "{}",
    format: Format = None,
    int8: Int8 = False,
    teacher: OtherTeacher = None,
    episodes: FewEpisodes = 20,
    trust_checkpoint: Trust = False,
) -> None:
    """Write a Q-network as a file that runs without Ray and without this package.

    It is checked against PyTorch on what its environment shows.

    \b
    rllib export ~/ray_results/cartpole --out student.onnx --teacher cartpole
    """  # noqa: D301
    from rllib_kd.checkpoints.runs import find_student
    from rllib_kd.evaluation.comparing import resolve_environment
    from rllib_kd.experiment.files import parse_json
    from rllib_kd.export.deployment import deploy, deployment_table
    from rllib_kd.export.export import format_of_ending
    from rllib_kd.terminal import bar

    set_log_level(0)
    checkpoint = find_student(checkpoint)
    where, config = resolve_environment([checkpoint], env, parse_json(env_config, "--env-config"))
    written = [(checkpoint, out)] + ([] if teacher is None else [(teacher, None)])
    with bar("episodes", total=2 * episodes * len(written)) as advance:
        deployments = [
            deploy(
                source,
                path,
                where,
                format=format or format_of_ending(out),
                int8=int8,
                num_episodes=episodes,
                env_config=config,
                trust_checkpoint=trust_checkpoint,
                advance=advance,
            )
            for source, path in written
        ]
    typer.echo(deployment_table(deployments))
