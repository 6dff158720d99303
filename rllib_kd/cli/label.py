"""`rllib label`."""

from __future__ import annotations

from typing import Annotated

from rllib_kd.cli.app import app, echo, one_or_all, set_log_level
from rllib_kd.cli.options import TEACHER_HELP, Address, Trust, option


# Longer than other functions: typer reads the flags from its signature.
@app.command()
def label(
    teacher: Annotated[list[str], option(TEACHER_HELP, metavar="PATH")],
    input: Annotated[list[str], option("Recorded file or folder, path or URI.", metavar="URI")],
    output: Annotated[str, option("Folder for the labelled files, path or URI.", metavar="URI")],
    obs_column: Annotated[str, option("Column of observations (default: obs).", metavar="NAME")] = "obs",
    also: Annotated[
        list[str] | None, option("More labels: teacher_probs, teacher_features.", "--also", metavar="NAME")
    ] = None,
    batch_size: Annotated[int, option("Rows labelled at once (default: 4,096).", metavar="N")] = 4096,
    concurrency: Annotated[int | None, option("Actors (default: one for each CPU or GPU).", metavar="N")] = None,
    num_cpus: Annotated[float, option("CPUs of each actor (default: 1).", metavar="X")] = 1.0,
    num_gpus: Annotated[float, option("GPUs of each actor (default: 0).", metavar="X")] = 0.0,
    trust_checkpoint: Trust = False,
    address: Address = None,
) -> None:
    """Label recorded observations with a teacher's Q-values or policy.

    Reads Parquet, .npz, .npy, and datasets of Minari; writes a Parquet file
    for each. Finished files are skipped: the same command continues a job.

    \b
    rllib label --teacher cartpole --input logs --output labelled
    """  # noqa: D301 (a real backspace, which keeps the lines apart)
    from rllib_kd.workers.forking import begin

    begin(address=address)
    import logging
    from contextlib import nullcontext

    from rllib_kd.evaluation.sources import open_source
    from rllib_kd.experiment.connection import connection
    from rllib_kd.experiment.names import check_not_empty
    from rllib_kd.offline.job import LabelJob

    set_log_level(0)
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    check_not_empty(address=address)
    if len(input) > 1:
        raise ValueError(
            f"`rllib label` takes one --input, got {len(input)}. Name the folder that has all files, or label each by "
            "a command of its own, with another --output."
        )
    source = open_source(one_or_all(teacher) or [], trust_checkpoint=trust_checkpoint)
    env, _ = source.environment()
    job = LabelJob(
        source.network(),
        input[0],
        output,
        obs_column=obs_column,
        also=also or (),
        env=env if isinstance(env, str) else None,
        batch_size=batch_size,
        concurrency=concurrency,
        num_cpus=num_cpus,
        num_gpus=num_gpus,
    )
    needs = {"CPU": num_cpus, "GPU": num_gpus}

    def lacks(name: str, amounts: str) -> str:
        return f"A process that labels needs {amounts}. Lower --num-{name.lower()}s."

    with connection(needs, address=address, lacks=lacks) if job.remaining else nullcontext():
        echo(job.run(progress=True))
