"""Why EnvRunners of RLlib's own algorithms failed: RLlib drops the reason, and only Ray's logs contain it."""

from __future__ import annotations

import re
from pathlib import Path

import ray

from rllib_kd import _rllib

#: The records in which RLlib logs exceptions of an EnvRunner, from its work or from its creation.
_FAILURE = re.compile(r"Worker exception caught during `apply\(\)`|creation task, \S*ray::\w*EnvRunner\.__init__\(\)")
#: The beginning of any record, by RLlib or by Ray.
_RECORD = re.compile(r"^(\[?\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+|Exception raised in creation task: )", re.MULTILINE)
_MAX_BYTES = 2**18  # of the end of each log


def env_runner_failure(*, since: float) -> str | None:
    """Return the last exception of an EnvRunner of this process's job, with its traceback; None if no log has one.

    Only logs on this machine are read.

    Args:
        since: when the run began, Unix seconds. Logs that were complete by then are of earlier runs of this process.
    """
    node = _rllib.own_node()
    if node is None:
        return None
    jobs = [ray.get_runtime_context().get_job_id()]
    if node.is_head():  # started by this process: the workers that Ray has started ahead for no job are its own
        jobs.append(ray.JobID.nil().hex())
    found = [log for job in jobs for log in Path(node.get_logs_dir_path()).glob(f"worker-*-{job}-*.err")]
    written = {log: log.stat().st_mtime for log in found}
    logs = sorted((log for log in written if written[log] >= since), key=written.__getitem__)
    return next(filter(None, map(_last_failure, reversed(logs))), None)


def _last_failure(log: Path) -> str | None:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _MAX_BYTES))
        text = file.read().decode(errors="replace")
    begins = [match.start() for match in _FAILURE.finditer(text)]
    if not begins:
        return None
    following = _RECORD.search(text, begins[-1])
    return text[begins[-1] : None if following is None else following.start()]
