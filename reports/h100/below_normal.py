"""Which gradients below float32's smallest normal number, 2^-126, SDPA's backends on a GPU give as 0.

``python reports/h100/below_normal.py`` prints a line for each number of key heads, size of ``dout`` and backend.
Nothing of the suite takes part.
"""

from __future__ import annotations

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

BACKENDS = (
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
)
Three = tuple[torch.Tensor, ...]


def gradients(inputs: Three, dout: torch.Tensor, backend: SDPBackend) -> Three:
    """Return ``dq, dk, dv``."""
    q, k, v = (x.detach().requires_grad_() for x in inputs)
    with sdpa_kernel(backend):
        out = scaled_dot_product_attention(q, k, v, enable_gqa=k.shape[1] != q.shape[1])
    return torch.autograd.grad(out, (q, k, v), dout)


def told(found: Three, exact: Three) -> str:
    """Return how many elements are small in truth, how many of those are 0, and the smallest others."""
    parts = []
    for name, x, truth in zip(("dq", "dk", "dv"), found, exact, strict=True):
        small = (truth.abs() < 0.98 * 2.0**-126) & (truth.abs() > 2.0**-132)
        others = x[x != 0].abs().double()
        least = f"least 2^{float(others.min().log2()):.1f}" if others.numel() else "all 0"
        parts.append(f"{name}: small {int(small.sum())} zero {int((x[small] == 0).sum())} {least}")
    return "; ".join(parts)


def main(device: str = "cuda") -> None:
    """Print the lines."""
    torch.manual_seed(0)
    for kv_heads in (2, 1):
        q, k, v = (torch.randn(1, h, n, 64, device=device).bfloat16() for h, n in ((2, 64), *((kv_heads, 511),) * 2))
        for power in (-120, -122, -124, -126):
            dout = torch.randn_like(q) * 2.0**power
            exact = gradients((q.double(), k.double(), v.double()), dout.double(), SDPBackend.MATH)
            for backend in BACKENDS:
                try:
                    found = gradients((q, k, v), dout, backend)
                except RuntimeError:  # such heads are not for it
                    continue
                print(f"kv {kv_heads} g 2^{power} {backend.name} {told(found, exact)}", flush=True)


if __name__ == "__main__":
    main()
