// The registration of a forward operator, whose arguments and results are the same for every kernel.
#pragma once

#include <torch/csrc/stable/library.h>

// Register the function attn::NAME as the operator attn_tiled::NAME on CUDA.
#define ATTN_FORWARD_OP(NAME)                                                                                        \
  STABLE_TORCH_LIBRARY_FRAGMENT(attn_tiled, library) {                                                               \
    library.def(#NAME "(Tensor q, Tensor k, Tensor v, float scale, int low, int high) -> (Tensor out, Tensor lse)"); \
  }                                                                                                                  \
  STABLE_TORCH_LIBRARY_IMPL(attn_tiled, CUDA, library) {                                                             \
    library.impl(#NAME, TORCH_BOX(&attn::NAME));                                                                     \
  }
