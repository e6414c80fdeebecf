"""Raw data of a training command become packed files before the run starts: made once, then found in a cache.

    --data-path rows.json ─▶ is CACHE/packed-KEY/rows complete? ─ yes ─▶ --data-path CACHE/packed-KEY/rows
                                        └─ no: lease of the folder, preprocessing in another process ─┘

cached_sets          where the packed files of a command are, and whether they are complete
preprocess_process   the process that preprocesses; `python -m mindspeed_llm.prepare_data` is its program
preparation          which rank does this, and what the other ranks do meanwhile
"""

from mindspeed_llm.prepare_data.preparation import find_prepared_data, prepare_data

__all__ = ["find_prepared_data", "prepare_data"]
