"""`rllib compare`, `rllib evaluate` and `rllib export`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rllib_kd.cli.app import app, echo, given_options, one_or_all, set_log_level
from rllib_kd.cli.options import (
    TEACHER_HELP,
    Artifact,
    CheckedAlgo,
    EnvConfig,
    Episodes,
    Epsilon,
    FewEpisodes,
    Format,
    Imports,
    Int8,
    NumVideos,
    OtherTeacher,
    OwnEnv,
    Policy,
    Prefix,
    Render,
    Report,
    Returns,
    Rows,
    Seed,
    Students,
    Trust,
    Video,
    option,
)
from rllib_kd.evaluation.seeds import FRESH_SEED
from rllib_kd.paths import replace_file
from rllib_kd.text import count_of_episodes, mean_and_interval

if TYPE_CHECKING:
    from rllib_kd.evaluation.played_environment import PlayedEnvironment
    from rllib_kd.evaluation.sources import Source
    from rllib_kd.export.card import Card


@app.command()
def compare(
    students: Students,
    teacher: Annotated[list[str], option(TEACHER_HELP, metavar="PATH")],
    env: OwnEnv = None,
    imports: Imports = None,
    env_config: EnvConfig = "{}",
    episodes: Episodes = 100,
    seed: Seed = FRESH_SEED,
    epsilon: Epsilon = 0.0,
    out: Report = None,
    trust_checkpoint: Trust = False,
) -> None:
    """Compare students with their teacher on the same episodes.

    \b
    rllib compare --teacher cartpole ~/ray_results/cartpole --out report
    rllib compare --teacher cartpole small=RUN1 tiny=RUN2
    """  # noqa: D301
    from rllib_kd.checkpoints.tune import find_students
    from rllib_kd.environments.own import given_environment
    from rllib_kd.evaluation.comparing import compare_all
    from rllib_kd.experiment.files import parse_settings
    from rllib_kd.report.comparisons import summary_table, write_report
    from rllib_kd.teachers.names import PACKAGED_TEACHERS

    set_log_level(0)
    env = given_environment(env, imports or ())
    found = find_students(students, names=list(PACKAGED_TEACHERS))
    if len(found) == 1 and not next(iter(found.values())).is_named:
        found = {"student": next(iter(found.values()))}
    comparisons = compare_all(
        one_or_all(teacher),
        {name: student.source for name, student in found.items()},
        env,
        num_episodes=episodes,
        seed=seed,
        epsilon=epsilon,
        env_config=parse_settings(env_config, "--env-config"),
        trust_checkpoint=trust_checkpoint,
        progress=True,
    )
    echo(str(comparisons[0]) if len(comparisons) == 1 else summary_table(comparisons))
    if out is not None:
        curves = {name: student.curve for name, student in found.items() if student.curve}
        echo(write_report(comparisons, out, curves=curves))


@app.command()
def evaluate(
    checkpoint: Policy,
    env: OwnEnv = None,
    imports: Imports = None,
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
    """Play episodes with a policy of any algorithm; report its return.

    \b
    rllib evaluate ~/ray_results/cartpole --video videos
    """  # noqa: D301
    from rllib_kd.environments.own import given_environment
    from rllib_kd.environments.video import check_recorder
    from rllib_kd.evaluation.comparing import evaluate as evaluate_policy
    from rllib_kd.evaluation.played_environment import resolve_environment
    from rllib_kd.evaluation.sources import open_source
    from rllib_kd.experiment.files import parse_settings

    set_log_level(0)
    if video is not None:
        check_recorder()
    env = given_environment(env, imports or ())
    source = open_source(checkpoint, trust_checkpoint=trust_checkpoint)
    if algo is not None and algo != (trained_by := source.algorithm() or algo):
        raise ValueError(f"The checkpoint was trained by {trained_by}, but --algo is '{algo}'. Leave out --algo.")
    asked = parse_settings(env_config, "--env-config")
    where = resolve_environment({"the policy": source}, env, asked, trust_checkpoint=trust_checkpoint)
    report = evaluate_policy(
        source,
        where,
        num_episodes=episodes,
        seed=seed,
        epsilon=epsilon,
        trust_checkpoint=trust_checkpoint,
        video_dir=video,
        num_videos=num_videos,
        render=render,
        progress=True,
    )
    played = where.name if epsilon == 0.0 else f"{where.name}, ε = {epsilon:g}"
    conditions = f"{'95 % CI, ' if episodes > 1 else ''}{count_of_episodes(episodes)} of {played}"
    echo(f"return {mean_and_interval(report.return_mean, report.return_ci95)} ({conditions})")
    if where.env_config:
        echo(f"played in {where}")
    if video is not None:
        echo(video)
    if out is not None:
        content = {"env": where.name, "env_config": where.config_as_json(), "seed": seed, "epsilon": epsilon}
        out.parent.mkdir(parents=True, exist_ok=True)
        replace_file(out, (json.dumps(content | {"returns": report.returns}, indent=1) + "\n").encode())


# Longer than other functions: typer reads the flags from its signature.
@app.command()
def export(
    context: typer.Context,
    checkpoint: Policy,
    out: Artifact,
    env: OwnEnv = None,
    imports: Imports = None,
    env_config: EnvConfig = "{}",
    format: Format = None,
    int8: Int8 = False,
    prefix: Prefix = None,
    teacher: OtherTeacher = None,
    input: Rows = None,
    episodes: FewEpisodes = 20,
    trust_checkpoint: Trust = False,
) -> None:
    """Export a Q-network to C, ONNX, .pt2, safetensors or a web page.

    The file runs without Ray and without this package. Its outputs are compared
    with PyTorch's on observations of its environment, or on recorded ones.

    \b
    rllib export ~/ray_results/cartpole --out student.onnx --teacher cartpole
    """  # noqa: D301
    from rllib_kd.environments.own import given_environment
    from rllib_kd.evaluation.played_environment import NoEnvironmentError, resolve_environment
    from rllib_kd.evaluation.sources import open_sources
    from rllib_kd.experiment.files import parse_settings
    from rllib_kd.export.card import Card
    from rllib_kd.export.deployment import deploy, has_figures
    from rllib_kd.export.export import check_exportable, check_flags, format_of_ending
    from rllib_kd.export.origin import origin_of
    from rllib_kd.export.recorded import deploy_on_rows
    from rllib_kd.terminal import bar

    set_log_level(0)
    env = given_environment(env, imports or ())
    format = format_of_ending(out) if format is None else format
    asked = parse_settings(env_config, "--env-config")
    given = [checkpoint] if teacher is None else [checkpoint, teacher]
    student, *others = open_sources(given, trust_checkpoint=trust_checkpoint)
    if input is not None:
        if format == "web" or given_options(context) & {"env", "env_config", "episodes", "teacher"}:
            raise ValueError(
                "--input is for students without an environment: leave out --env, --env-config, --episodes and "
                "--teacher. A web page shows episodes, and needs --env."
            )
        deployed = deploy_on_rows(student.network(), out, input, format=format, int8=int8, prefix=prefix)
        return _say(Card(deployed, origin_of(student), 0))
    rival = others[0] if others else None
    try:
        where = resolve_environment(
            {"the student": student}, env, asked, teacher=rival, trust_checkpoint=trust_checkpoint
        )
    except NoEnvironmentError as error:
        raise ValueError(f"{error} To export a student of recorded rows, pass those: --input.") from error
    if format == "web":
        check_flags(format, int8=int8, prefix=prefix)
        return _write_page(student, rival, teacher, out, where, episodes)
    check_exportable(student.network(), format=format, int8=int8, prefix=prefix)
    rivals = [other.network() for other in others if has_figures(other.network(), format=format, int8=int8)]
    written = [(student.network(), out), *((rival, None) for rival in rivals)]
    with bar("episodes", total=2 * episodes * len(written)) as advance:
        deployments = [
            deploy(
                network, path, where, format=format, int8=int8, prefix=prefix, num_episodes=episodes, advance=advance
            )
            for network, path in written
        ]
    _say(Card(deployments[0], origin_of(student), episodes, teacher, deployments[1] if rivals else None))


def _say(card: Card) -> None:
    """Print what was measured, and write the model card."""
    from rllib_kd.export.card import NO_CARD
    from rllib_kd.export.deployment import deployment_table

    echo(deployment_table([each for each in (card.deployment, card.teacher_deployment) if each is not None]))
    echo(card.write() or NO_CARD)


def _write_page(
    student: Source,
    teacher: Source | None,
    teacher_name: str | None,
    out: Path,
    where: PlayedEnvironment,
    episodes: int,
) -> None:
    from rllib_kd.export.card import NO_CARD, Card
    from rllib_kd.export.origin import origin_of
    from rllib_kd.export.web.publish import publish, summary
    from rllib_kd.terminal import bar

    with bar("episodes", total=2 * episodes) as advance:
        page = publish(
            student.network(),
            out,
            where,
            teacher=None if teacher is None else teacher.network(),
            teacher_name=teacher_name,
            num_episodes=episodes,
            advance=advance,
        )
    echo(summary(page, episodes))
    echo(Card(page, origin_of(student), episodes, teacher_name).write() or NO_CARD)
