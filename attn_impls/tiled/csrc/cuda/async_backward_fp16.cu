// tiled-async, backward, for fp16: see async_backward.cu.
#include "async_backward_launch.h"

namespace attn {
template void launch_async_backward<__half>(const Tensor&, const BackwardParams<__half>&);
}
