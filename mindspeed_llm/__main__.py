"""Run `python -m mindspeed_llm PROGRAM`, the same as the installed command `mindspeed-llm PROGRAM`."""

from __future__ import annotations

from mindspeed_llm.programs.command import main

if __name__ == "__main__":
    main()
