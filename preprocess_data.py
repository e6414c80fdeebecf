"""Convert raw data into packed files or document files, or show the content of packed files.

python preprocess_data.py --help
python preprocess_data.py inspect --help

The program is mindspeed_llm/programs/preprocess.py.
"""

from __future__ import annotations

import sys

from mindspeed_llm.entry_point import end_process, flush_output
from mindspeed_llm.programs import preprocess

if __name__ == "__main__":
    end_process(flush_output(preprocess.run(sys.argv[1:])))
