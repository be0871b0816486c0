"""The rows of a profile: nvprof's names, the Nsight Compute metrics that stand for them, and when they mean nothing.

The pairs are those of NVIDIA's *Nvprof Transition Guide*, table "Metric Comparison"
(https://docs.nvidia.com/nsight-compute/NsightComputeCli/index.html#nvprof-metric-comparison). Its table gives some rows
in other units than nvprof did: ``shared_*_throughput`` counts wavefronts, of 128 bytes each,
``warp_execution_efficiency`` threads, of 32 in a warp, and ``ipc`` the instructions of a quarter of a multiprocessor,
where nvprof's is of the whole: it is read of ``sm`` here. What nvprof lacked has a name of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

Metrics = Mapping[str, float]
"""Metrics of one kernel by Nsight Compute's names, in seconds, bytes, per cent and plain counts."""

DURATION = "gpu__time_duration.sum"
LOADED = "l1tex__t_bytes_pipe_lsu_mem_global_op_ld.sum"
REGISTERS = "launch__registers_per_thread"
_STORED = "l1tex__t_bytes_pipe_lsu_mem_global_op_st.sum"
_SHARED = ("launch__shared_mem_per_block_static", "launch__shared_mem_per_block_dynamic")
_SHARED_LOADS = "l1tex__data_pipe_lsu_wavefronts_mem_shared_op_ld.sum"
_SHARED_STORES = "l1tex__data_pipe_lsu_wavefronts_mem_shared_op_st.sum"
_TENSOR = "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active"
_THREADS = "smsp__sass_thread_inst_executed_op_{}_pred_on.sum"

_WARP, _WAVEFRONT = 32, 128  # threads, bytes


def _always(metrics: Metrics) -> str | None:
    return None


@dataclass(frozen=True, slots=True)
class Row:
    """One row: ``sum(weight * metric)``.

    Attributes:
        name: nvprof's, or ours where it had none.
        unit: ``s``, ``B``, ``B/s``, ``%``, ``/s`` or nothing for a count.
        metrics: Nsight Compute's names.
        meaning: one line for the JSON and the page.
        over: how the kernels of a call make one value: ``sum``, ``mean`` (weighted by their time) or ``max``.
        weights: of the metrics; as many as there are metrics.
        why_not: returns why the row means nothing for a kernel, or ``None``.
        caution: returns what the value leaves out, or ``None``.
    """

    name: str
    unit: str
    metrics: tuple[str, ...]
    meaning: str
    over: str
    weights: tuple[float, ...] = (1,)
    why_not: Callable[[Metrics], str | None] = _always
    caution: Callable[[Metrics], str | None] = _always

    @property
    def formula(self) -> str:
        """The row in Nsight Compute's metrics, as text."""
        terms = (
            name if weight == 1 else f"{weight:g} * {name}"
            for name, weight in zip(self.metrics, self.weights, strict=True)
        )
        return " + ".join(terms)

    def value(self, metrics: Metrics) -> tuple[float | None, str | None]:
        """Return the row of a kernel and a note: why there is no value, or what a value leaves out."""
        missing = [name for name in self.metrics if name not in metrics]
        if missing:
            return None, f"Nsight Compute gives no {missing[0]} on this GPU"
        if (reason := self.why_not(metrics)) is not None:
            return None, reason
        pairs = zip(self.metrics, self.weights, strict=True)
        return sum(weight * metrics[name] for name, weight in pairs), self.caution(metrics)


def _no_shared(metrics: Metrics) -> str | None:
    sizes = [metrics[name] for name in _SHARED if name in metrics]
    return "the kernel has no shared memory" if len(sizes) == len(_SHARED) and not any(sizes) else None


def _no_shared_loads(metrics: Metrics) -> str | None:
    if metrics.get(_SHARED_LOADS) == 0:
        return _no_shared(metrics) or "no thread loads from shared memory (wgmma reads it past this counter)"
    return _no_shared(metrics)


def _no_shared_stores(metrics: Metrics) -> str | None:
    if metrics.get(_SHARED_STORES) == 0:
        return _no_shared(metrics) or "no thread stores to shared memory (TMA and cp.async fill it past this counter)"
    return _no_shared(metrics)


def _no_loads(metrics: Metrics) -> str | None:
    if metrics.get(LOADED) != 0:
        return None
    return "no thread loads from global memory (TMA does so past this counter)"


def _no_stores(metrics: Metrics) -> str | None:
    return "no thread stores to global memory (TMA does so past this counter)" if metrics.get(_STORED) == 0 else None


def _tensor_flops(metrics: Metrics) -> str | None:
    return "without what the tensor cores compute" if metrics.get(_TENSOR, 0) > 0 else None


def _flops(kind: str) -> tuple[str, ...]:
    return tuple(_THREADS.format(f"{kind}{operation}") for operation in ("add", "mul", "fma"))


def _global(op: str, kind: str) -> str:
    return f"l1tex__t_bytes_pipe_lsu_mem_global_op_{op}.sum{kind}"


ROWS: tuple[Row, ...] = (
    Row("duration", "s", (DURATION,), "time on the device, under the profiler: not a time to report", "sum"),
    Row(
        "gld_throughput",
        "B/s",
        (_global("ld", ".per_second"),),
        "global loads of threads, by the sectors they touch in L1",
        "mean",
        why_not=_no_loads,
    ),
    Row(
        "gst_throughput",
        "B/s",
        (_global("st", ".per_second"),),
        "global stores of threads, by the sectors they touch in L1",
        "mean",
        why_not=_no_stores,
    ),
    Row("gld_bytes", "B", (LOADED,), "the same as a sum", "sum", why_not=_no_loads),
    Row(
        "gld_transactions_per_request",
        "",
        ("l1tex__average_t_sectors_per_request_pipe_lsu_mem_global_op_ld.ratio",),
        "sectors of 32 bytes that a warp's global load touches; 4 where 32 floats lie side by side",
        "mean",
        why_not=_no_loads,
    ),
    Row(
        "gst_transactions_per_request",
        "",
        ("l1tex__average_t_sectors_per_request_pipe_lsu_mem_global_op_st.ratio",),
        "the same for its global store",
        "mean",
        why_not=_no_stores,
    ),
    Row(
        "shared_load_throughput",
        "B/s",
        (f"{_SHARED_LOADS}.per_second",),
        "shared loads, 128 bytes a wavefront: turns lost to bank conflicts count",
        "mean",
        (_WAVEFRONT,),
        why_not=_no_shared_loads,
    ),
    Row(
        "shared_store_throughput",
        "B/s",
        (f"{_SHARED_STORES}.per_second",),
        "shared stores, likewise",
        "mean",
        (_WAVEFRONT,),
        why_not=_no_shared_stores,
    ),
    Row(
        "shared_load_transactions",
        "",
        (_SHARED_LOADS,),
        "wavefronts of shared loads",
        "sum",
        why_not=_no_shared_loads,
    ),
    Row(
        "shared_ld_bank_conflict",
        "",
        ("l1tex__data_bank_conflicts_pipe_lsu_mem_shared_op_ld.sum",),
        "of those, the ones that bank conflicts add (an event of nvprof)",
        "sum",
        why_not=_no_shared_loads,
    ),
    Row(
        "shared_st_bank_conflict",
        "",
        ("l1tex__data_bank_conflicts_pipe_lsu_mem_shared_op_st.sum",),
        "the same of shared stores",
        "sum",
        why_not=_no_shared_stores,
    ),
    Row(
        "sm_efficiency",
        "%",
        ("smsp__cycles_active.avg.pct_of_peak_sustained_elapsed",),
        "share of the time in which a quarter of a multiprocessor, which issues by itself, has a warp",
        "mean",
    ),
    Row(
        "achieved_occupancy",
        "%",
        ("sm__warps_active.avg.pct_of_peak_sustained_active",),
        "warps on an active multiprocessor, of the most it can hold (nvprof: a ratio, not per cent)",
        "mean",
    ),
    Row(
        "theoretical_occupancy",
        "%",
        ("sm__maximum_warps_per_active_cycle_pct",),
        "what registers, shared memory and block size leave of it",
        "mean",
    ),
    Row(
        "warp_execution_efficiency",
        "%",
        ("smsp__thread_inst_executed_per_inst_executed.ratio",),
        "active threads of an instruction, of 32",
        "mean",
        (100 / _WARP,),
    ),
    Row("inst_executed", "", ("smsp__inst_executed.sum",), "instructions of warps", "sum"),
    Row("ipc", "", ("sm__inst_executed.avg.per_cycle_active",), "instructions a cycle and multiprocessor", "mean"),
    Row(
        "flop_count_sp",
        "",
        _flops("f"),
        "fp32 additions, multiplications and twice the fused ones, of threads",
        "sum",
        (1, 1, 2),
        caution=_tensor_flops,
    ),
    Row(
        "flop_count_hp",
        "",
        _flops("h"),
        "half-precision instructions, likewise: most work on two values (HFMA2) and count as one, so FLOPs are up to "
        "twice this",
        "sum",
        (1, 1, 2),
        caution=_tensor_flops,
    ),
    Row(
        "tensor_precision_fu_utilization",
        "%",
        ("sm__pipe_tensor_op_hmma_cycles_active.avg.pct_of_peak_sustained_active",),
        "cycles in which the tensor pipe works on floating point: mma.sync and wgmma (nvprof: a level of 0 to 10)",
        "mean",
    ),
    Row("tensor_pipe", "%", (_TENSOR,), "cycles in which the tensor pipe works at all", "mean"),
    Row("l2_bytes", "B", ("lts__t_bytes.sum",), "bytes through L2, both ways", "sum"),
    Row("dram_read_bytes", "B", ("dram__bytes_read.sum",), "bytes read from the device's memory", "sum"),
    Row("dram_write_bytes", "B", ("dram__bytes_write.sum",), "bytes written there", "sum"),
    Row("dram_read_throughput", "B/s", ("dram__bytes_read.sum.per_second",), "the same a second", "mean"),
    Row("dram_write_throughput", "B/s", ("dram__bytes_write.sum.per_second",), "the same a second", "mean"),
    Row("registers", "", (REGISTERS,), "of a thread", "max"),
    Row("shared_memory", "B", _SHARED, "of a block, static and dynamic", "max", (1, 1)),
    Row(
        "inst_executed_local_loads",
        "",
        ("smsp__inst_executed_op_local_ld.sum",),
        "loads from local memory, where spilled registers lie",
        "sum",
    ),
    Row("inst_executed_local_stores", "", ("smsp__inst_executed_op_local_st.sum",), "stores there", "sum"),
)
"""The rows that Nsight Compute measures, in the order of tables."""

SPILLS = Row(
    "local_memory",
    "B",
    (),
    "local memory of a thread, by the compiler: spilled registers and arrays (cuobjdump's STACK)",
    "max",
    (),
)
"""The one row that Nsight Compute does not give: what the compiler wrote into the library."""

BY_NAME: dict[str, Row] = {row.name: row for row in (*ROWS, SPILLS)}

METRICS: tuple[str, ...] = tuple(
    dict.fromkeys(
        name
        for row in ROWS
        for name in (*row.metrics, DURATION, LOADED, _STORED, _SHARED_LOADS, _SHARED_STORES, *_SHARED)
    )
)
"""All metrics to ask Nsight Compute for, each once."""
