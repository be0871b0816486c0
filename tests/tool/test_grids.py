"""Named grids and grids in TOML: their members, and what is refused with which sentence."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from attn_impls.grid_file import MOST_PROBLEMS
from attn_impls.grids import GRIDS, UnknownGrid, load_grid
from attn_impls.models import MODELS
from attn_impls.problem import CAUSAL, FULL, Mask, Problem

GRIDS_PAGE = Path(__file__).resolve().parents[2] / "docs" / "grids.md"


def refusal(name: str) -> str:
    with pytest.raises(UnknownGrid) as refused:
        load_grid(name)
    return str(refused.value)


def written(tmp_path: Path, text: str) -> str:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return str(path)


SIZES = 'batch = 1\nheads = 2\nseq = 4\nhead_dim = 8\ndtype = "fp32"\n'


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("smoke", 18),
        ("lab5", 48),
        ("lab5-seq", 12),
        ("lab5-heads", 10),
        ("lab5-emb", 10),
        ("hw4", 4),
        ("fa-paper", 36),
        ("models", 40),
    ],
)
def test_counts(name: str, count: int) -> None:
    problems = load_grid(name)
    assert len(problems) == count
    assert len({problem.id for problem in problems}) == count


def test_every_grid_is_counted_above() -> None:
    assert list(GRIDS) == ["smoke", "lab5", "lab5-seq", "lab5-heads", "lab5-emb", "hw4", "fa-paper", "models"]


def test_lab5_is_the_sweep_of_the_course_script() -> None:
    sweep = {
        (batch, seq, heads, emb, mask)
        for batch in (16, 32, 64)
        for seq in (512, 1024)
        for heads in (16, 32)
        for emb in (1024, 2048)
        for mask in (FULL, CAUSAL)
    }
    problems = load_grid("lab5")
    assert {(p.batch, p.q_len, p.heads, p.embedding, p.mask) for p in problems} == sweep
    assert all(p.q_len == p.kv_len and p.heads == p.kv_heads and p.dtype == "fp16" for p in problems)
    assert "b16-h32-kv32-q1024-k1024-d64-fp16-full" in {p.id for p in problems}


@pytest.mark.parametrize(
    ("name", "axis", "values"),
    [
        ("lab5-seq", "q_len", [128, 256, 512, 1024, 2048, 4096]),
        ("lab5-heads", "heads", [2, 4, 8, 16, 32]),
        ("lab5-emb", "embedding", [256, 512, 1024, 2048, 4096]),
    ],
)
def test_lab5_sweeps_turn_one_knob(name: str, axis: str, values: list[int]) -> None:
    base = {"batch": 16, "q_len": 1024, "heads": 32, "embedding": 256}
    problems = load_grid(name)
    for mask in (FULL, CAUSAL):
        assert [getattr(p, axis) for p in problems if p.mask == mask] == values
    for problem in problems:
        for fixed in set(base) - {axis}:
            assert getattr(problem, fixed) == base[fixed], (problem.id, fixed)
        assert problem.kv_len == problem.q_len
        assert problem.dtype == "fp16"


def test_fa_paper_keeps_tokens_and_width() -> None:
    problems = load_grid("fa-paper")
    assert all(p.batch * p.q_len == 16384 and p.embedding == 2048 and p.dtype == "bf16" for p in problems)
    assert {p.q_len for p in problems} == {512, 1024, 2048, 4096, 8192, 16384}
    assert {p.head_dim for p in problems} == {64, 128, 256}
    assert {p.mask for p in problems} == {FULL, CAUSAL}


def test_hw4_is_the_ladder() -> None:
    assert [p.id for p in load_grid("hw4")] == [
        f"b4-h1-kv1-q{seq}-k{seq}-d64-fp32-full" for seq in (256, 1024, 4096, 16384)
    ]


def test_models_are_grouped_with_prefill_and_decode() -> None:
    problems = load_grid("models")
    assert all(p.kv_heads < p.heads and p.dtype == "bf16" for p in problems)
    assert {(p.q_len, p.kv_len, p.batch) for p in problems} == {
        (2048, 2048, 1),
        (8192, 8192, 1),
        *((1, 8192, batch) for batch in (1, 16, 64)),
    }
    assert {
        "b1-h32-kv8-q2048-k2048-d128-bf16-causal",  # Llama-3 8B
        "b1-h32-kv8-q8192-k8192-d128-bf16-window4095_0",  # Mistral 7B v0.1
        "b16-h64-kv8-q1-k8192-d64-bf16-window127_0",  # GPT-OSS, decode
        "b1-h32-kv16-q2048-k2048-d128-bf16-causal-softcap50-scale0.0833333",  # Gemma-2 27B
    } <= {p.id for p in problems}


def test_a_window_of_one_model_holds_that_many_keys() -> None:
    (gpt_oss,) = (model for model in MODELS if model.name == "GPT-OSS 20B")
    sliding, full = gpt_oss.layers()
    assert sliding.mask.visible(1, 8192) == gpt_oss.window == 128
    assert full.mask == CAUSAL


def test_documentation_gives_the_shape_of_each_model() -> None:
    text = GRIDS_PAGE.read_text()
    for model in MODELS:
        layers = [*([f"window {model.window}"] if model.window else []), *(["causal"] if model.full else [])]
        row = f"| {model.name} | {model.heads} | {model.kv_heads} | {model.head_dim} | {', '.join(layers)} |"
        assert row in text, row
    assert text.count("| window") + text.count("| causal |") == len(MODELS)


def test_documentation_s_example_is_a_grid(tmp_path: Path) -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", GRIDS_PAGE.read_text(), re.DOTALL)
    problems = load_grid(written(tmp_path, example))
    assert len(problems) == 8 + 1
    assert problems[-1].id == "b16-h32-kv16-q1-k8192-d128-bf16-causal-softcap50"


def test_documentation_names_each_key_and_the_limit() -> None:
    text = GRIDS_PAGE.read_text()
    assert all(f"`{field.name}`" in text for field in dataclasses.fields(Problem))
    assert f"at most {MOST_PROBLEMS:,} problems" in text


def test_smoke_turns_one_knob_at_a_time() -> None:
    base = (1, 4, 128, 64)
    for problem in load_grid("smoke"):
        point = (problem.batch, problem.heads, problem.q_len, problem.head_dim)
        assert sum(a != b for a, b in zip(point, base, strict=True)) <= 1, problem.id
        assert problem.dtype == "fp32"


def test_toml_multiplies_axes(tmp_path: Path) -> None:
    text = """
        [[problem]]
        batch = [1, 4]
        heads = 8
        kv_heads = 2
        seq = [512, 1024]
        head_dim = 64
        dtype = "bf16"
        mask = ["full", { kind = "window", left = 3, right = 0 }]

        [[problem]]
        batch = 1
        heads = 8
        q_len = 1
        kv_len = 9
        head_dim = 64
        dtype = "fp32"
        softcap = 20.0
    """
    problems = load_grid(written(tmp_path, text))
    assert problems[:-1] == [
        Problem(batch, 8, 2, seq, seq, 64, "bf16", mask)
        for batch in (1, 4)
        for seq in (512, 1024)
        for mask in (FULL, Mask("window", 3, 0))
    ]
    assert problems[-1] == Problem(1, 8, 8, 1, 9, 64, "fp32", softcap=20.0)


def test_toml_keeps_a_problem_of_two_tables_once(tmp_path: Path) -> None:
    assert len(load_grid(written(tmp_path, f"[[problem]]\n{SIZES}[[problem]]\n{SIZES}"))) == 1


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[[problem]\n", "{path} is not TOML: "),
        (f"n = {'9' * 5000}\n", "{path} is not TOML: "),
        ("", "{path} holds no table [[problem]]"),
        ("problem = []\n", "{path} holds no table [[problem]]"),
        ("problem = 3\n", "{path}: 'problem' is not a list of tables; write [[problem]]"),
        (f"[problem]\n{SIZES}", "{path}: 'problem' is not a list of tables; write [[problem]]"),
        ("problem = [3]\n", "{path}: 'problem' is not a list of tables; write [[problem]]"),
        (
            f"[[problems]]\n{SIZES}",
            "{path}: unknown key 'problems'; a grid must hold tables [[problem]] and nothing else",
        ),
        (f"name = 'x'\n[[problem]]\n{SIZES}", "{path}: unknown key 'name'; a grid must hold tables [[problem]] and "),
    ],
)
def test_a_file_that_is_no_grid(tmp_path: Path, text: str, sentence: str) -> None:
    assert refusal(written(tmp_path, text)).startswith(sentence.format(path=tmp_path / "mine.toml"))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"q_len": "3"}, "seq sets q_len and kv_len; give one or the other"),
        (
            {"emb": "3"},
            "unknown key 'emb'; allowed: batch, dtype, head_dim, heads, kv_heads, kv_len, layout, mask, q_len, scale, "
            "seq, softcap",
        ),
        ({"head_dim": None}, "the key 'head_dim' is missing"),
        ({"seq": None}, "the key 'seq' is missing, or 'q_len' and 'kv_len'"),
        ({"seq": None, "q_len": "1"}, "the key 'kv_len' is missing"),
        ({"heads": "[]"}, "heads is an empty list"),
        ({"batch": "[1, 2, 1]"}, "batch holds 1 twice"),
        ({"mask": '["full", "full"]'}, "mask holds 'full' twice"),
        ({"batch": "[[1, 2]]"}, "batch holds [1, 2], which is not a single value"),
        ({"dtype": "{ a = 1 }"}, "dtype holds {'a': 1}, which is not a single value"),
        ({"seq": "4.5"}, "seq=4.5 is not a whole number from 1"),
        ({"seq": "0"}, "seq=0 is not a whole number from 1"),
        ({"batch": "2024-01-01"}, "batch=datetime.date(2024, 1, 1) is not a whole number"),
        ({"kv_heads": "3"}, "kv_heads=3 does not divide heads=2"),
        ({"dtype": "'fp64'"}, "dtype 'fp64' is not one of fp32, bf16, fp16"),
        ({"mask": "'diagonal'"}, "mask kind 'diagonal' is not one of full, causal, causal_top_left, window"),
        ({"mask": "{ left = 3 }"}, "mask 'full' takes no left=3; only 'window' does"),
        ({"mask": "{ kind = 'window', lft = 3 }"}, "unknown mask keys: lft; allowed: kind, left, right"),
        ({"scale": "[0.1, 0.10000001]"}, "two problems that differ in scale or softcap share the id b1-h2-"),
        (
            {"batch": str(list(range(400))), "seq": str(list(range(1, 302)))},
            "the axes multiply out to more than 100,000 problems in all",
        ),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value[:40],
)
def test_a_refusal_names_file_table_and_key(tmp_path: Path, changes: dict[str, str | None], sentence: str) -> None:
    keys = dict(line.split(" = ") for line in SIZES.splitlines()) | changes
    table = "".join(f"{key} = {value}\n" for key, value in keys.items() if value is not None)
    text = refusal(written(tmp_path, f"[[problem]]\n{SIZES}[[problem]]\n{table}"))
    assert text.startswith(f"{tmp_path / 'mine.toml'}, [[problem]] 2: {sentence}")
    assert "\n" not in text


def test_the_limit_is_over_all_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attn_impls.grid_file.MOST_PROBLEMS", 3)
    table = f"[[problem]]\n{SIZES.replace('batch = 1', 'batch = [1, 2]')}"
    assert len(load_grid(written(tmp_path, table))) == 2
    assert refusal(written(tmp_path, table + table)).endswith(
        "[[problem]] 2: the axes multiply out to more than 3 problems in all"
    )


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (
            "big",
            "unknown grid 'big'; known: smoke, lab5, lab5-seq, lab5-heads, lab5-emb, hw4, fa-paper, models, "
            "or a FILE.toml",
        ),
        ("nowhere.toml", "cannot read grid nowhere.toml: No such file or directory"),
    ],
)
def test_unknown_grids(name: str, sentence: str) -> None:
    assert refusal(name) == sentence


def test_a_grid_that_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "bytes.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UnknownGrid, match="is not TOML"):
        load_grid(str(path))
