"""Entry point for several processes: ``accelerate launch -m baselines.train --model unet ...``."""

from __future__ import annotations

import sys

from baselines.cli_train import train
from em_bench_eval.errors import InputError


def main() -> int:
    """Run ``em-bench train`` with the command line's options."""
    try:
        return train(sys.argv[1:])
    except InputError as error:
        print(f"baselines.train: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
