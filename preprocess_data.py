"""Convert instruction data into packed files: `python preprocess_data.py --help` lists the flags."""

from __future__ import annotations

import sys

from mindspeed_llm.arguments.preprocess import PROGRAM, parse_preprocess
from mindspeed_llm.errors import exit_status_of


def main() -> None:
    arguments = parse_preprocess(sys.argv[1:])
    from mindspeed_llm.preprocessing import preprocess  # after --help, which need not wait for it

    preprocess(arguments)


if __name__ == "__main__":
    sys.exit(exit_status_of(main, PROGRAM))
