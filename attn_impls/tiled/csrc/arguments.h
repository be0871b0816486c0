// What an attention op receives: its checks, its sizes, and its tensors as pointers with strides.
//
// Only the stable ABI of PyTorch is used here (torch/csrc/stable), so that one source builds against every torch
// from 2.11 on, in about two seconds a file; torch/extension.h takes twenty times that.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <array>
#include <cstdint>
#include <limits>
#include <string>
#include <utility>

#include "check.h"
#include "host_device.h"

namespace attn {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

struct Shape {
  int64_t batch, heads, kv_heads, q_len, kv_len, head_dim;

  ATTN_HOST_DEVICE int64_t group() const { return heads / kv_heads; }  // query heads that read one key head
};

// A tensor [batch, heads, rows, head_dim] whose last dimension is contiguous; strides count elements.
template <typename T>
struct View {
  T* data;
  int64_t batch_stride, head_stride, row_stride;

  ATTN_HOST_DEVICE T* row(int64_t batch, int64_t head, int64_t index) const {
    return data + batch * batch_stride + head * head_stride + index * row_stride;
  }
};

template <typename T>
View<T> view_of(const Tensor& tensor) {
  return {static_cast<T*>(tensor.data_ptr()), tensor.stride(0), tensor.stride(1), tensor.stride(2)};
}

inline std::string sizes_of(const Tensor& tensor) {
  std::string text = "[";
  for (int64_t dim = 0; dim < tensor.dim(); ++dim) text += sentence(dim ? ", " : "", tensor.size(dim));
  return text + "]";
}

// Its dtype as the shim counts them. Tensor::scalar_type() knows fewer, and its error comes through a stream.
inline int32_t dtype_of(const Tensor& tensor) {
  int32_t dtype = 0;
  ATTN_CALL(aoti_torch_get_dtype(tensor.get(), &dtype));
  return dtype;
}

inline void check_like(const char* name, const Tensor& tensor, const char* other_name, const Tensor& other) {
  ATTN_CHECK(dtype_of(tensor) == dtype_of(other), name, " and ", other_name, " differ in dtype");
  ATTN_CHECK(tensor.is_cpu() == other.is_cpu() && tensor.get_device_index() == other.get_device_index(), name, " and ",
             other_name, " are on different devices");
}

inline void check_rows(const char* name, const Tensor& tensor, int64_t head_dim) {
  ATTN_CHECK(tensor.dim() == 4, name, " must be [batch, heads, seq, head_dim], got ", sizes_of(tensor));
  ATTN_CHECK(tensor.size(3) == head_dim, name, " ", sizes_of(tensor), " must have head_dim ", head_dim);
  ATTN_CHECK(tensor.size(3) == 1 || tensor.stride(3) == 1, name,
             " must be contiguous in its last dimension, its stride there is ", tensor.stride(3));
}

// Check q [B, H, Q, D] and k, v [B, Hkv, K, D] against each other and return their sizes. The scale must be positive
// because kernels scale scores that are masked already, and -inf has to stay what it is; in fp32, too.
inline Shape check_inputs(const Tensor& q, const Tensor& k, const Tensor& v, double scale) {
  using Float = std::numeric_limits<float>;  // half of its range leaves room for scale * log2(e)
  ATTN_CHECK(scale >= Float::min() && scale <= Float::max() / 2, "scale must be positive and finite in fp32, from ",
             Float::min(), " to ", Float::max() / 2, ", got ", scale);
  ATTN_CHECK(q.dim() == 4, "q must be [batch, heads, seq, head_dim], got ", sizes_of(q));
  const int32_t dtype = dtype_of(q);
  ATTN_CHECK(dtype == aoti_torch_dtype_float32() || dtype == aoti_torch_dtype_bfloat16() ||
                 dtype == aoti_torch_dtype_float16(),
             "q must be float32, bfloat16 or float16");
  check_rows("q", q, q.size(3));
  check_rows("k", k, q.size(3));
  check_rows("v", v, q.size(3));
  check_like("k", k, "q", q);
  check_like("v", v, "q", q);
  for (int64_t dim = 0; dim < 3; ++dim) {
    ATTN_CHECK(k.size(dim) == v.size(dim), "k ", sizes_of(k), " and v ", sizes_of(v), " differ in shape");
  }
  ATTN_CHECK(k.size(0) == q.size(0), "q ", sizes_of(q), " and k ", sizes_of(k), " differ in batch");
  ATTN_CHECK(q.size(1) > 0 && q.size(2) > 0 && q.size(3) > 0 && k.size(2) > 0, "q ", sizes_of(q), " and k ",
             sizes_of(k), " must not be empty but for the batch");
  ATTN_CHECK(k.size(1) > 0 && q.size(1) % k.size(1) == 0, "the heads of k ", sizes_of(k),
             " must divide the heads of q ", sizes_of(q));
  return {q.size(0), q.size(1), k.size(1), q.size(2), k.size(2), q.size(3)};
}

// Check what a backward op receives beside q, k, v: dout and out like q, lse and dlse fp32 [B, H, Q].
inline void check_saved(const Tensor& q, const Tensor& dout, const Tensor& out, const Tensor& lse) {
  for (const auto& [name, tensor] : {std::pair("dout", &dout), std::pair("out", &out)}) {
    check_rows(name, *tensor, q.size(3));
    check_like(name, *tensor, "q", q);
    for (int64_t dim = 0; dim < 3; ++dim) {
      ATTN_CHECK(tensor->size(dim) == q.size(dim), name, " ", sizes_of(*tensor), " must have the shape of q ",
                 sizes_of(q));
    }
  }
  ATTN_CHECK(dtype_of(lse) == aoti_torch_dtype_float32() && lse.dim() == 3 && lse.is_contiguous() &&
                 lse.size(0) == q.size(0) && lse.size(1) == q.size(1) && lse.size(2) == q.size(2),
             "lse and its gradient must be contiguous float32 [batch, heads, q_len], got ", sizes_of(lse));
}

// An uninitialised tensor on the device of `on`, straight from the shim: a function of torch/csrc/stable/ops.h looks
// its operator up by name and boxes what it is given, a microsecond each time.
template <size_t dims>
Tensor empty_strided(const Tensor& on, const std::array<int64_t, dims>& sizes, const std::array<int64_t, dims>& strides,
                     int32_t dtype) {
  int32_t device_type = 0;
  AtenTensorHandle made = nullptr;
  ATTN_CALL(aoti_torch_get_device_type(on.get(), &device_type));
  const auto failed =
      aoti_torch_empty_strided(dims, sizes.data(), strides.data(), dtype, device_type, on.get_device_index(), &made);
  if (failed != TORCH_SUCCESS) {
#if defined(TORCH_VERSION_2_13_0) && TORCH_FEATURE_VERSION >= TORCH_VERSION_2_13_0
    ATTN_CHECK(false, torch_exception_get_what_without_backtrace());
#else  // the shim keeps torch's error to itself
    int64_t bytes = static_cast<int64_t>(aoti_torch_dtype_element_size(dtype));
    bool counts = true;
    for (const int64_t size : sizes) counts = !__builtin_mul_overflow(bytes, size, &bytes) && counts;
    ATTN_CHECK(counts, "a tensor of more bytes than 64 bits count");
    ATTN_CHECK(false, "could not allocate ", bytes, " bytes");
#endif
  }
  return Tensor(made);
}

// The same for memory to work in, in one row.
inline Tensor empty_floats(const Tensor& on, int64_t count) {
  return empty_strided<1>(on, {count}, {1}, aoti_torch_dtype_float32());
}

// An uninitialised tensor of the shape and in the memory order of `like`: a bshd view gives a bshd view.
inline Tensor empty_in_order_of(const Tensor& like) {
  const int64_t heads = like.size(1), rows = like.size(2), columns = like.size(3);
  const bool heads_inside = like.stride(1) < like.stride(2);
  return empty_strided<4>(
      like, {like.size(0), heads, rows, columns},
      {heads * rows * columns, heads_inside ? columns : rows * columns, heads_inside ? heads * columns : columns, 1},
      dtype_of(like));
}

// The log-sum-exp of every query, fp32 [B, H, Q], uninitialised.
inline Tensor empty_lse(const Tensor& q) {
  const int64_t heads = q.size(1), rows = q.size(2);
  return empty_strided<3>(q, {q.size(0), heads, rows}, {heads * rows, rows, 1}, aoti_torch_dtype_float32());
}

// Call body(T{}) with the C++ type of the elements of `tensor`, which check_inputs has checked.
template <typename Body>
void with_element_type(const Tensor& tensor, const Body& body) {
  switch (tensor.scalar_type()) {
    case ScalarType::BFloat16:
      return body(BFloat16{});
    case ScalarType::Half:
      return body(Half{});
    default:
      return body(float{});
  }
}

}  // namespace attn
