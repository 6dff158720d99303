"""Commands and flags of Ray's `rllib` until 2.40 that no longer exist, with their successors."""

from __future__ import annotations

from rllib_kd.cli.app import fail

#: Commands that no longer exist, with their successors.
_GONE_COMMANDS = {
    "rollout": "use `rllib evaluate`",
    "example": "use `rllib train file FILE` with a file of your own, or one of this repository's folder tuning/",
}

#: Flags that no longer exist, with their successors.
_GONE = {
    "-f": "use `rllib train file FILE`",
    "--config-file": "use `rllib train file FILE`",
    "--eager": "RLlib's new API stack is PyTorch only; leave it out",
    "--framework": "RLlib's new API stack is PyTorch only; leave it out",
    "--local-dir": "use --storage-path",
    "--local-mode": "Ray no longer has a local mode; leave it out, or set num_env_runners to 0 in --config",
    "--log-debug": "use -vv",
    "--log-info": "use -v",
    "--monitor": "use --video",
    "--no-ray-ui": "the dashboard is off without --ray-ui; leave it out",
    "--no-render": "episodes are not shown without --render; leave it out",
    "--queue-trials": "trials always wait for resources; leave it out",
    "--resources-per-trial": "set num_env_runners, num_learners and their CPUs and GPUs in --config",
    "--save-info": "use --out, which writes all returns as JSON",
    "--steps": "use --episodes",
    "--torch": "RLlib's new API stack is PyTorch only; leave it out",
    "--trace": "there is no TensorFlow eager mode; leave it out",
    "--track-progress": "progress is shown on a terminal; leave it out",
    "--type": "the type is read from the file's ending, .py or .yaml; leave it out",
    "--upload-dir": "use --storage-path, which also takes a URI",
    "--use-shelve": "use --out, which writes all returns as JSON",
    "--video-dir": "use --video",
}

#: Flags that `rllib evaluate` alone no longer has, with their successors.
_GONE_FROM_EVALUATE = {"--config": "use --env-config", "-c": "use --env-config"}


def refuse_what_is_gone(arguments: list[str]) -> None:
    """Exit with a hint if an argument is a command or flag that no longer exists."""
    if arguments and arguments[0] in _GONE_COMMANDS:
        fail(f"`rllib {arguments[0]}` no longer exists: {_GONE_COMMANDS[arguments[0]]}.", code=2)
    gone = _GONE | (_GONE_FROM_EVALUATE if arguments[:1] == ["evaluate"] else {})
    for flag in (argument.split("=")[0] for argument in arguments):
        if flag in gone:
            fail(f"{flag} no longer exists: {gone[flag]}.", code=2)
