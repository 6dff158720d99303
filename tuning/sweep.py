"""How small can the student be? The same as `rllib sweep`, as a file that `ray submit` can send to a cluster.

python tuning/sweep.py --teacher cartpole --env CartPole-v1 [--address auto] [--num-samples 16] [--resume]
"""

import sys

from rllib_kd.cli.main import main

if __name__ == "__main__":
    main(["sweep", *sys.argv[1:]])
