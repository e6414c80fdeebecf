"""Convert raw data into packed files or document files, or show the content of packed files.

python preprocess_data.py --help
python preprocess_data.py inspect --help

The programs are mindspeed_llm/programs/preprocess.py and inspect_packs.py.
"""

from __future__ import annotations

import sys

from mindspeed_llm.entry_point import end_process, flush_output
from mindspeed_llm.programs.command import run_named

if __name__ == "__main__":
    name, arguments, shown = "preprocess", sys.argv[1:], "preprocess_data.py"
    if arguments[:1] == ["inspect"]:
        name, arguments, shown = "inspect", arguments[1:], "preprocess_data.py inspect"
    end_process(flush_output(run_named(name, arguments, shown)))
