"""Records and runs as JSON: the schema, the round trip, and one sentence for each file that cannot be read."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import pytest

import pytest_attn.perf.record as record_module
from attn_impls.problem import DTYPE_BYTES, LAYOUTS, MASK_KINDS, Direction, Mask, Problem
from pytest_attn.perf.record import STATUSES, BadRun, Memory, Record, Run, Time, load_run
from tests.tool.gate_runs import MACHINE, record, run_of, write_run
from tests.tool.quick import instruments

jsonschema = pytest.importorskip("jsonschema")

SCHEMA = json.loads(Path(record_module.__file__).with_name("record.schema.json").read_text())
WINDOWED = Problem(2, 4, 2, 8, 16, 32, "fp16", Mask("window", 3, 0), softcap=20.0, scale=0.3, layout="bhsd")
WHOLE = Record(
    "mine",
    WINDOWED,
    Direction.FWD_BWD,
    "ok",
    "events/1",
    impl_version="1.2",
    time_s=Time(1e-3, 0.9e-3, 1.2e-3, 17, 0.004),
    memory=Memory(1000, 400, 300),
    host_us=3.5,
    compile_s=1.5,
    percent_of_peak=50.0,
    percent_of_peak_at_clock=60.0,
    kernel_s=0.98e-3,
    kernels=({"name": "flash_fwd", "share": 0.75, "count": 1},),
    note="the timer says 1000.0 µs, its 1 kernels take 980.0 µs: the device stood idle between them",
    telemetry={
        "sm_mhz": 1755.0,
        "power_w": 690.5,
        "temp_c": 60.0,
        "clock_reasons": ["software power cap"],
        "foreign_processes": 0,
        "samples": 12,
        "energy_j": 0.5,
    },
    accuracy={"error_ratio": 0.25},
)
# Added under the same schema number: what was written before has none of them.
ADDED = {
    "record": {"dense_tflops", "kernel_s", "note"},
    "time": {"ci"},
    "kernel": {"count"},
    "run": {"shard", "instruments"},
}
INSTRUMENTS = {
    "overhead_us": 3.1,
    "overhead_from": "cupti",
    "flush_bytes": 104857600,
    "telemetry": "nvml",
    "ceilings": {"tflops": {"bf16": 790.0, "fp32": None}, "gbps": 2900.0},
    "traced_by": None,
}
OOM = record(None, impl="other", status="oom", reason="out of memory: asked for 8.00 GiB")


@functools.cache
def validator(definition: str) -> Any:
    return jsonschema.Draft202012Validator({**SCHEMA, "$ref": f"#/$defs/{definition}"})


def validate(data: object, definition: str) -> None:
    error = jsonschema.exceptions.best_match(validator(definition).iter_errors(data))
    if error is not None:
        raise error


def test_schema_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("item", [WHOLE, OOM, record(1e-3)], ids=["whole", "oom", "plain"])
def test_records_fit_the_schema(item: Record) -> None:
    validate(json.loads(json.dumps(item.to_dict())), "record")


def test_schema_names_exactly_the_keys() -> None:
    definitions = SCHEMA["$defs"]
    whole = WHOLE.to_dict()
    for name, data in {
        "record": whole,
        "problem": whole["problem"],
        "mask": whole["problem"]["mask"],
        "time": whole["time_s"],
        "memory": whole["memory"],
        "kernel": whole["kernels"][0],
        "accuracy": whole["accuracy"],
        "run": run_of(WHOLE).header(),
    }.items():
        assert set(definitions[name]["properties"]) == set(data), name
        assert set(definitions[name]["required"]) == set(data) - ADDED.get(name, set()), name
    assert set(definitions["telemetry"]["properties"]) == set(whole["telemetry"])
    assert set(definitions["instruments"]["properties"]) == set(INSTRUMENTS) == set(instruments().describe())


def test_schema_names_exactly_the_words() -> None:
    properties = {name: definition.get("properties") for name, definition in SCHEMA["$defs"].items()}
    assert properties["record"]["status"]["enum"] == list(STATUSES)
    assert properties["record"]["direction"]["enum"] == [direction.value for direction in Direction]
    assert properties["problem"]["dtype"]["enum"] == list(DTYPE_BYTES)
    assert properties["problem"]["layout"]["enum"] == list(LAYOUTS)
    assert properties["mask"]["kind"]["enum"] == list(MASK_KINDS)
    assert properties["record"]["schema"]["const"] == properties["run"]["schema"]["const"] == record_module.SCHEMA


@pytest.mark.parametrize(
    "path",
    [(key,) for key in WHOLE.to_dict() if key not in ADDED["record"]]
    + [("time_s", "n"), ("memory", "saved_bytes"), ("problem", "mask", "left")],
    ids=".".join,
)
def test_schema_misses_a_key(path: tuple[str, ...]) -> None:
    data = copy.deepcopy(WHOLE.to_dict())
    inner: Any = data
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    with pytest.raises(jsonschema.ValidationError, match="is a required property"):
        validate(data, "record")


@pytest.mark.parametrize(
    "changes",
    [
        {"time_s": None},  # ok without a time
        {"status": "error", "reason": "boom"},  # a time without being ok
        {"status": "oom", "time_s": None, "reason": None},  # no reason
        {"status": "fine"},
        {"schema": 2},
        {"contract": "events"},
        {"contract": "events/2-alone"},
        {"contract": "events/4-isolated-energy"},
        {"note": ""},
        {"telemetry": {"clock_reasons": "software power cap"}},
        {"telemetry": {"sm_mhz": "fast"}},
        {"kernels": [{"name": "flash_fwd", "share": 1.2, "count": 1}]},
        {"kernels": [{"name": "flash_fwd", "share": 1.0, "count": 0.5}]},
        {"memory": {"peak_bytes": -1, "workspace_bytes": 0, "saved_bytes": None}},
        {"problem_id": ""},
        {"accuracy": {}},
    ],
)
def test_schema_refuses(changes: dict[str, object]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        validate(WHOLE.to_dict() | changes, "record")


def test_schema_and_reader_leave_later_fields_alone() -> None:
    later = WHOLE.to_dict() | {"joules_per_token": 3}
    validate(later, "record")
    assert Record.from_dict(later) == WHOLE


def test_derived_numbers() -> None:
    item = Record(
        "x", Problem(1, 1, 1, 1024, 1024, 64, "fp16"), Direction.FWD, "ok", "wall/1", time_s=Time(1e-3, 1e-3, 1e-3, 5)
    )
    data = item.to_dict()
    assert data["flops"] == 268_435_456
    assert data["tflops"] == pytest.approx(0.268435456)
    assert data["dense_tflops"] == data["tflops"]
    half = dataclasses.replace(item, problem=dataclasses.replace(item.problem, mask=Mask("causal"))).to_dict()
    assert half["dense_tflops"] == data["dense_tflops"]
    assert half["tflops"] == pytest.approx(data["tflops"] * 1025 / 2048)
    assert data["gbps"] == pytest.approx(4 * 1024 * 64 * 2 / 1e-3 / 1e9)
    assert OOM.to_dict()["tflops"] is None
    assert OOM.to_dict()["gbps"] is None
    assert item.key == ("x", "b1-h1-kv1-q1024-k1024-d64-fp16-full", "fwd")


def test_a_record_needs_a_known_status_and_a_time() -> None:
    with pytest.raises(
        ValueError, match=r"^status 'fine' is not one of ok, oom, unsupported, error, host_bound, noisy$"
    ):
        record(1.0, status="fine")
    with pytest.raises(ValueError, match=r"^a record with status ok needs a time$"):
        record(None)


def test_round_trip(tmp_path: Path) -> None:
    kernels = {"k<float>": {"registers": 64, "local_bytes": 0, "shared_bytes": 1024}}
    implementations = {
        "mine": {"version": "1.2", "missing": None, "resources": {"missing": None, "kernels": kernels}},
        "flex": {"version": "?", "missing": "needs cuda"},
        "ours": {"version": "1", "missing": None, "resources": {"missing": "no cuobjdump", "kernels": None}},
    }
    run = run_of(WHOLE, OOM, record(2e-3), implementations=implementations, instruments=INSTRUMENTS, shard="2/3")
    validate(json.loads(json.dumps(run.header())), "run")
    stranger = {"name": "someone else's", "extra_info": {}}
    path = write_run(tmp_path / "run.json", run, noise=[stranger])
    back = load_run(path)
    assert back.source == str(path)
    assert {r.key: r for r in back.records} == {r.key: r for r in run.records}
    assert len(back.records) == 3
    assert (back.grid, back.machine, back.environment) == ("smoke", MACHINE, {"torch": "2.13.0"})
    assert back.implementations == implementations
    assert (back.instruments, back.shard) == (INSTRUMENTS, "2/3")
    assert back.statuses() == {"ok": 2, "oom": 1}


@pytest.mark.parametrize(
    "resources", [{}, {"missing": None, "kernels": [64]}, {"missing": None, "kernels": {"k": {"registers": "64"}}}]
)
def test_schema_refuses_resources(resources: dict[str, object]) -> None:
    header = run_of(WHOLE, implementations={"mine": {"version": "1", "missing": None, "resources": resources}}).header()
    with pytest.raises(jsonschema.ValidationError):
        validate(json.loads(json.dumps(header)), "run")


REPORTS = Path(__file__).resolve().parents[2] / "reports"
COMMITTED = [path for path in sorted(REPORTS.rglob("*.json")) if "attn" in json.loads(path.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: str(path.relative_to(REPORTS)))
def test_committed_runs_fit_the_schema_and_are_read(path: Path) -> None:
    data = json.loads(path.read_text(encoding="utf-8"))
    validate(data["attn"], "run")
    for benchmark in data["benchmarks"]:
        validate(benchmark["extra_info"]["attn"], "record")
    assert len(load_run(path).records) == len(data["benchmarks"]) + len(data["attn"]["not_timed"]) > 0


def test_only_records_without_a_time_are_in_the_header() -> None:
    assert [item["status"] for item in run_of(WHOLE, OOM).header()["not_timed"]] == ["oom"]


def test_header_of_later_fields(tmp_path: Path) -> None:
    data = json.loads(write_run(tmp_path / "run.json", run_of(WHOLE)).read_text())
    data["attn"]["mood"] = "sunny"
    data["benchmarks"][0]["extra_info"]["attn"]["mood"] = "sunny"
    path = tmp_path / "later.json"
    path.write_text(json.dumps(data))
    assert load_run(path).records == (WHOLE,)


def damaged(tmp_path: Path, run: Run, text: str | None = None, **header: object) -> Path:
    path = write_run(tmp_path / "run.json", run)
    if text is None:
        data = json.loads(path.read_text())
        data["attn"] = {name: value for name, value in (data["attn"] | header).items() if value is not ...}
        text = json.dumps(data)
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "{path} is empty"),
        (" \n", "{path} is empty"),
        ('{"benchmarks": [', "{path} is not JSON, or was cut short: "),
        ("[]", "{path} has no attention results; write it with: pytest -m perf --benchmark-json={path}"),
        ('{"benchmarks": []}', "{path} has no attention results; write it with: "),
        ('{"attn": {}}', "{path} has no attention results; write it with: "),
        ('{"attn": 3, "benchmarks": []}', "{path} has no attention results; write it with: "),
        ('{"attn": {"schema": 9}, "benchmarks": []}', "{path} has schema 9; this version reads 1"),
        ('{"attn": {}, "benchmarks": []}', "{path} has schema None; this version reads 1"),
        ('{"attn": {"schema": 1}, "benchmarks": []}', "{path} cannot be read as a run: KeyError: 'grid'"),
        ('{"attn": {"schema": 1}, "benchmarks": [3]}', "{path} cannot be read as a run: AttributeError: "),
    ],
)
def test_files_that_are_no_run(tmp_path: Path, text: str, sentence: str) -> None:
    path = damaged(tmp_path, run_of(WHOLE), text)
    with pytest.raises(BadRun) as refused:
        load_run(path)
    assert str(refused.value).startswith(sentence.format(path=path))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"schema": 7}, "a record has schema 7; this version reads 1"),
        ({"impl": ...}, "a record cannot be read: KeyError: 'impl'"),
        ({"status": "fine"}, "a record cannot be read: ValueError: status 'fine' is not one of"),
        ({"direction": "up"}, "a record cannot be read: ValueError: 'up' is not a valid Direction"),
        ({"time_s": {"median": 0, "p10": 1, "p90": 1, "n": 1}}, "a record cannot be read: ValueError: time_s"),
        ({"time_s": {"median": 1, "p10": 1}}, "a record cannot be read: KeyError: 'p90'"),
        (
            {"time_s": {"median": float("nan"), "p10": 1, "p90": 1, "n": 1}},
            "a record cannot be read: ValueError: time_s",
        ),
        ({"problem": {"batch": 1}}, "a record cannot be read: ValueError: not a problem"),
        ({"memory": {"peak_bytes": "many"}}, "a record cannot be read: ValueError"),
    ],
)
def test_records_that_cannot_be_read(tmp_path: Path, changes: dict[str, object], sentence: str) -> None:
    item = {name: value for name, value in (WHOLE.to_dict() | changes).items() if value is not ...}
    path = damaged(tmp_path, run_of(OOM), not_timed=[item])
    with pytest.raises(BadRun) as refused:
        load_run(path)
    assert str(refused.value).startswith(f"{path}: {sentence}")


def test_every_cut_of_a_file_is_refused(tmp_path: Path) -> None:
    text = write_run(tmp_path / "run.json", run_of(WHOLE, OOM)).read_text()
    path = tmp_path / "cut.json"
    for length in range(0, len(text), 97):
        path.write_text(text[:length])
        with pytest.raises(BadRun):
            load_run(path)


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(BadRun, match=r"^cannot read .*gone.json: No such file or directory$"):
        load_run(tmp_path / "gone.json")
    with pytest.raises(BadRun, match=r"^cannot read .*: Is a directory$"):
        load_run(tmp_path)
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadRun, match=r"bytes.json is not JSON$"):
        load_run(tmp_path / "bytes.json")
