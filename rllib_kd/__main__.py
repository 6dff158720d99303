"""`python -m rllib_kd` is the `rllib` command."""

from rllib_kd.cli.main import main

main()
