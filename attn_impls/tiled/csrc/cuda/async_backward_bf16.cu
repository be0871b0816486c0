// tiled-async, backward, for bf16: see async_backward.cu.
#include "async_backward_launch.h"

namespace attn {
template void launch_async_backward<__nv_bfloat16>(const Tensor&, const BackwardParams<__nv_bfloat16>&);
}
