"""Named grids and grids in TOML: their members, and what is refused with which sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from attn_impls.grids import GRIDS, UnknownGrid, load_grid
from attn_impls.problem import CAUSAL, FULL, Mask, Problem


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
        ("models", 18),
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
    assert {p.q_len for p in problems} == {1, 2048, 8192}
    ids = {p.id for p in problems}
    assert "b1-h32-kv8-q2048-k2048-d128-bf16-causal" in ids  # Llama-3 8B
    assert "b1-h32-kv8-q8192-k8192-d128-bf16-window4095_0" in ids  # Mistral
    assert "b16-h64-kv8-q1-k8192-d64-bf16-window127_0" in ids  # GPT-OSS, decode


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


def test_toml_drops_duplicates(tmp_path: Path) -> None:
    assert len(load_grid(written(tmp_path, f"[[problem]]\n{SIZES}[[problem]]\n{SIZES}"))) == 1


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[[problem]\n", "{path} is not TOML: "),
        ("", "{path} must hold tables [[problem]] and nothing else"),
        ("problem = 3\n", "{path} must hold tables [[problem]] and nothing else"),
        ("problem = [3]\n", "{path} must hold tables [[problem]] and nothing else"),
        (f"[[problems]]\n{SIZES}", "{path} must hold tables [[problem]] and nothing else"),
        (f"name = 'x'\n[[problem]]\n{SIZES}", "{path} must hold tables [[problem]] and nothing else"),
        (f"[[problem]]\n{SIZES}q_len = 3\n", "{path}: seq sets q_len and kv_len; give one or the other"),
        (f"[[problem]]\n{SIZES}emb = 3\n", "{path}: unknown problem keys: emb; allowed: batch, "),
        (f"[[problem]]\n{SIZES}kv_heads = 3\n", "{path}: kv_heads=3 does not divide heads=2"),
        (f"[[problem]]\n{SIZES}mask = 'diagonal'\n", "{path}: mask kind 'diagonal' is not one of full, "),
        ("[[problem]]\nbatch = 1\n", "{path}: "),
    ],
)
def test_toml_refusals(tmp_path: Path, text: str, sentence: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(UnknownGrid) as refused:
        load_grid(path)
    assert str(refused.value).startswith(sentence.format(path=path))


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
    with pytest.raises(UnknownGrid) as refused:
        load_grid(name)
    assert str(refused.value) == sentence


def test_a_grid_that_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "bytes.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UnknownGrid, match="is not TOML"):
        load_grid(str(path))
