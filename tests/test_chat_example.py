"""Tests of the error messages of examples/chat.py; its answers are covered by the tests of exports."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from hugging_face_models import make_model
from small_tokenizers import byte_level_folder

EXAMPLES = Path(__file__).parents[1] / "examples"
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.content }}{% endfor %}"


def run_chat(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """Run the program in this process; return stderr if it fails and stdout if it succeeds."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import chat

    monkeypatch.setattr(sys, "argv", ["chat.py", *map(str, words), "--prompt", "hi", "--max-new-tokens", "2"])
    try:
        assert chat.main() == 0
    except SystemExit as end:
        assert end.code == 2
        return capsys.readouterr().err
    return capsys.readouterr().out


def test_missing_inputs_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    transformers = pytest.importorskip("transformers", reason="needs transformers, which is not installed")
    folder = tmp_path / "hf"
    folder.mkdir()
    text = run_chat(monkeypatch, capsys, folder)
    assert all(f"holds no {what}" in text for what in ("config.json", "weights", "tokenizer"))
    make_model("Qwen2.5", folder)
    text = run_chat(monkeypatch, capsys, folder)
    assert "holds no tokenizer" in text and "weights" not in text
    byte_level_folder(folder)
    assert f"{folder}: holds no chat template" in run_chat(monkeypatch, capsys, folder)
    (folder / "chat_template.jinja").write_text("{{ raise_exception('not so') }}")
    assert "chat template cannot be used (TemplateError: not so)" in run_chat(monkeypatch, capsys, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    assert "ids beyond vocab_size 301" in run_chat(monkeypatch, capsys, folder)
    config = json.loads((folder / "config.json").read_text())
    transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**{**config, "vocab_size": 410})).save_pretrained(folder)
    assert "question" in run_chat(monkeypatch, capsys, folder)
    (folder / "generation_config.json").write_text("[" * 10_000)
    assert "cannot be loaded" in run_chat(monkeypatch, capsys, folder)
    (folder / "generation_config.json").unlink()
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2", "hidden_size": None}))
    assert "cannot be loaded" in run_chat(monkeypatch, capsys, folder)


def test_answers_end_at_the_last_learned_position(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    transformers = pytest.importorskip("transformers", reason="needs transformers, which is not installed")
    folder = byte_level_folder(tmp_path / "hf")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    shape = {"n_embd": 8, "n_layer": 1, "n_head": 1, "vocab_size": 410, "bos_token_id": None, "eos_token_id": None}

    def answer(positions: int) -> str:
        config = transformers.GPT2Config(n_positions=positions, **shape)
        transformers.GPT2LMHeadModel(config).save_pretrained(folder)
        return run_chat(monkeypatch, capsys, folder)

    assert "the question has 3 tokens, but the model has 2 positions" in answer(2)
    assert "question" in answer(3), "a second new token would need a fourth position"
