"""The application as a deployment of Ray Serve."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from typing import Any

from rllib_kd.export.serve.policy import ServedPolicy
from rllib_kd.text import first_line

APP_NAME = "rllib_kd"  # among the applications of a Serve
_MAX_ONGOING = 256  # requests at once of one replica; Serve's default of 5 would keep batches that small
_MAX_QUEUED = 2_048  # further ones are answered by 503


def require_serve() -> None:
    """Raise a ValueError with the remedy if Ray Serve is not installed."""
    for package in ("fastapi", "uvicorn", "starlette", "grpc", "aiohttp"):
        if find_spec(package) is None:
            raise ValueError(
                f"`rllib serve` needs Ray Serve, whose package '{package}' is not installed: pip install "
                "'rllib-kd[serve]'"
            )


def application(policy: ServedPolicy, *, num_replicas: int = 1) -> Any:
    """Return the Serve application of a policy, for `ray.serve.run()`.

    Args:
        policy: the policy; each replica has a copy.
        num_replicas: processes that serve requests, ≥ 1, with a CPU each.

    Raises:
        ValueError: Ray Serve is not installed.
    """
    require_serve()
    from ray import serve

    def build() -> Any:  # in each replica: an application cannot be pickled once it has routes
        from rllib_kd.export.serve.app import make_app

        return make_app(policy)

    @serve.deployment(
        name="policy",
        num_replicas=num_replicas,
        max_ongoing_requests=_MAX_ONGOING,
        max_queued_requests=_MAX_QUEUED,
        ray_actor_options={"num_cpus": 1},
        health_check_period_s=10,
        graceful_shutdown_timeout_s=5,
    )
    @serve.ingress(build)
    class Policy:
        def check_health(self) -> None:
            """Raise if the policy fails: Serve then replaces the replica."""
            policy.check()

    deployed: Any = Policy  # a Deployment, which type checkers take for the class
    return deployed.bind()


@contextmanager
def serving(
    policy: ServedPolicy, *, host: str, port: int, num_replicas: int = 1, ends_serve: bool = True
) -> Iterator[str]:
    """Serve a policy on a Ray that runs, until the block ends.

    A Serve that runs already keeps its host and port, and its other applications.

    Args:
        policy: the policy.
        host: host name or address on which HTTP is served.
        port: its port, 1 to 65535.
        num_replicas: processes that serve requests, ≥ 1.
        ends_serve: whether Serve ends, too, if it has no other applications. A Ray that ends next takes it along.

    Yields:
        The URL.

    Raises:
        ValueError: Ray Serve is not installed, or refuses the application; or a policy is served on this Ray already.
    """
    app = application(policy, num_replicas=num_replicas)
    from ray import serve
    from ray.serve.exceptions import RayServeException

    if APP_NAME in serve.status().applications:
        raise ValueError(f"This Ray serves a policy already, as the application '{APP_NAME}'. End that command first.")
    quiet = {"log_level": "WARNING", "enable_access_log": False}
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    try:
        try:
            serve.start(http_options={"host": host, "port": port}, logging_config=quiet)
            serve.run(app, name=APP_NAME, route_prefix="/", logging_config=quiet)
        except (RayServeException, RuntimeError) as error:
            raise ValueError(f"Ray Serve does not start: {first_line(error)}.") from error
        yield f"http://{f'[{host}]' if ':' in host else host}:{port}"
    finally:
        with suppress(RayServeException):  # it may not have started
            serve.delete(APP_NAME)  # after the requests that it has begun
            if ends_serve and not serve.status().applications:
                serve.shutdown()
