// Products with one vector on the GPU, as a share of what its memory delivers in the same run. Every product reads a
// matrix that no cache holds: a round goes through copies of it in at least 768 MB of distinct memory. usage:
// cuda_matvec_bench [TABLE.csv]
//
// Two ways to ask: "independent", products that wait for nothing, 16 a launch on 4 streams: what the kernel does with
// the memory; and "chained", one product a launch, each waiting for the one before it, as the layers of a model do (a
// launch may fetch its own matrix while the one before it ends). Bytes counted: the matrix as stored on the GPU (codes,
// statistics, corrections, order, tables), x and y; once.
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "kernels/cuda/matvec.h"
#include "kernels/cuda/nodes.h"

namespace pith::cuda {
namespace {

void must(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
  std::exit(70);
}

void must(const Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", status.error().message.c_str());
  std::exit(70);
}

constexpr int kRepeats = 9;

// Seconds of one run of what `enqueue` puts on a stream, as a graph: the median of kRepeats, and their extremes.
struct Time {
  double median, least, most;
};
Time measure(const std::function<void(cudaStream_t)>& enqueue) {
  cudaStream_t stream;
  cudaGraph_t graph;
  cudaGraphExec_t run;
  cudaEvent_t begin, end;
  must(cudaStreamCreate(&stream), "stream");
  must(cudaEventCreate(&begin), "event");
  must(cudaEventCreate(&end), "event");
  must(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
  enqueue(stream);
  must(cudaStreamEndCapture(stream, &graph), "end of capture");
  must(cudaGraphInstantiate(&run, graph, 0), "graph");
  std::vector<double> seconds;
  for (int i = 0; i < kRepeats + 2; ++i) {
    must(cudaEventRecord(begin, stream), "event");
    must(cudaGraphLaunch(run, stream), "graph launch");
    must(cudaEventRecord(end, stream), "event");
    must(cudaStreamSynchronize(stream), "products");
    float ms = 0;
    must(cudaEventElapsedTime(&ms, begin, end), "time");
    if (i >= 2) seconds.push_back(ms / 1e3);
  }
  must(cudaGraphExecDestroy(run), "graph");
  must(cudaGraphDestroy(graph), "graph");
  must(cudaStreamDestroy(stream), "stream");
  std::sort(seconds.begin(), seconds.end());
  return {seconds[seconds.size() / 2], seconds.front(), seconds.back()};
}

// Reads everything and keeps nothing.
__global__ void __launch_bounds__(512) read_kernel(const uint4* data, size_t count, uint32_t* out) {
  uint32_t sum = 0;
  const size_t stride = static_cast<size_t>(gridDim.x) * blockDim.x;
  size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  for (; i + 7 * stride < count; i += 8 * stride) {
    uint4 v[8];
#pragma unroll
    for (int k = 0; k < 8; ++k) v[k] = __ldcs(data + i + k * stride);
#pragma unroll
    for (int k = 0; k < 8; ++k) sum += v[k].x ^ v[k].y ^ v[k].z ^ v[k].w;
  }
  for (; i < count; i += stride) sum += data[i].x;
  if (sum == 0x12345678u) *out = sum;  // never, but the compiler does not know
}

// Streams that begin where another one stands and end before it goes on.
class Streams {
 public:
  Streams() {
    for (auto& s : streams_) must(cudaStreamCreate(&s), "stream");
    for (auto& e : events_) must(cudaEventCreateWithFlags(&e, cudaEventDisableTiming), "event");
    must(cudaEventCreateWithFlags(&begin_, cudaEventDisableTiming), "event");
  }
  cudaStream_t at(cudaStream_t from, size_t i) {
    const size_t k = i % kStreams;
    if (!used_[k]) {
      must(cudaEventRecord(begin_, from), "fork");
      must(cudaStreamWaitEvent(streams_[k], begin_, 0), "fork");
      used_[k] = true;
    }
    return streams_[k];
  }
  void join(cudaStream_t to) {
    for (size_t k = 0; k < kStreams; ++k) {
      if (!used_[k]) continue;
      must(cudaEventRecord(events_[k], streams_[k]), "join");
      must(cudaStreamWaitEvent(to, events_[k], 0), "join");
      used_[k] = false;
    }
  }

 private:
  static constexpr size_t kStreams = 4;
  cudaStream_t streams_[kStreams];
  cudaEvent_t events_[kStreams], begin_;
  bool used_[kStreams] = {};
};

int run(const char* csv_path) {
  const auto name = device();
  if (!name.ok()) {
    std::printf("SKIPPED, nothing was measured: %s\n", name.error().message.c_str());
    return 0;
  }
  constexpr size_t kBytes = size_t{2} << 30;
  void *a, *b;
  must(cudaMalloc(&a, kBytes), "memory");
  must(cudaMalloc(&b, kBytes), "memory");
  must(cudaMemset(a, 37, kBytes), "memory");
  const Time read = measure([&](cudaStream_t s) {
    read_kernel<<<132 * 4, 512, 0, s>>>(static_cast<const uint4*>(a), kBytes / 16, static_cast<uint32_t*>(b));
  });
  const Time copy =
      measure([&](cudaStream_t s) { must(cudaMemcpyAsync(b, a, kBytes, cudaMemcpyDeviceToDevice, s), "copy"); });
  must(cudaFree(a), "memory");
  must(cudaFree(b), "memory");
  const double bandwidth = static_cast<double>(kBytes) / read.median;
  std::printf("%s: reading 2 GiB %.0f GB/s (%.0f to %.0f), copying %.0f GB/s (bytes read and written)\n",
              name.value().c_str(), bandwidth / 1e9, static_cast<double>(kBytes) / read.most / 1e9,
              static_cast<double>(kBytes) / read.least / 1e9, 2.0 * static_cast<double>(kBytes) / copy.median / 1e9);
  std::printf("%-26s %13s %6s %6s | %8s %7s %8s | %8s %7s %8s\n", "", "", "stored", "on GPU", "independent", "", "of",
              "chained", "", "of");
  std::printf("%-26s %13s %6s %6s | %8s %7s %8s | %8s %7s %8s\n", "representation", "shape", "bits", "bits", "us",
              "GB/s", "reading", "us", "GB/s", "reading");
  std::FILE* csv = csv_path != nullptr ? std::fopen(csv_path, "w") : nullptr;
  if (csv_path != nullptr && csv == nullptr) {
    std::fprintf(stderr, "%s cannot be written\n", csv_path);
    return 2;
  }
  if (csv != nullptr)
    std::fprintf(csv, "gpu,representation,rows,cols,bits_stored,bits_gpu,way,us,us_least,us_most,gbs,read_gbs\n");

  Streams streams;
  test::CudaNodes make(1);
  for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{4096, 4096}, {11008, 4096}, {4096, 11008}}) {
    const std::vector<std::pair<std::string, std::function<NodePtr()>>> kinds = {
        {"grid 3 bit g64", [&] { return make.grid(rows, cols, 3, 64, true); }},
        {"grid 3 bit g128", [&] { return make.grid(rows, cols, 3, 128, true); }},
        {"grid 4 bit g64", [&] { return make.grid(rows, cols, 4, 64, true); }},
        {"grid 4 bit g128", [&] { return make.grid(rows, cols, 4, 128, true); }},
        {"spqr 3 bit g16, 1 %", [&] { return make.spqr(rows, cols, 3, 0.01, true); }},
        {"codebook 2x8g8", [&] { return make.codebook(rows, cols, 2, 8); }},
        {"codebook 1x16g8", [&] { return make.codebook(rows, cols, 1, 16); }},
    };
    for (const auto& [kind, node_of] : kinds) {
      const NodePtr node = node_of();
      std::vector<MatrixPtr> copies{test::value_or_exit(Matrix::make(*node))};
      const uint64_t bytes = copies[0]->bytes() + static_cast<uint64_t>(rows + cols) * 2;
      while (copies.size() * copies[0]->bytes() < size_t{768} << 20)
        copies.push_back(test::value_or_exit(copies[0]->copy()));
      const auto numbers = make.halves(cols, 1);
      uint16_t *x, *y;
      const size_t y_stride = static_cast<size_t>(rows + 127) / 128 * 128;
      must(cudaMalloc(&x, numbers.size() * 2), "memory");
      must(cudaMalloc(&y, copies.size() * y_stride * 2), "memory");
      must(cudaMemcpy(x, numbers.data(), numbers.size() * 2, cudaMemcpyHostToDevice), "x");
      std::vector<Product> products;
      for (size_t i = 0; i < copies.size(); ++i) products.push_back({copies[i].get(), x, y + i * y_stride});
      const double weights = static_cast<double>(rows * cols);
      std::printf("%-26s %6lld x %-5lld %6.2f %6.2f", kind.c_str(), static_cast<long long>(rows),
                  static_cast<long long>(cols), static_cast<double>(node->bits().total()) / weights,
                  8 * static_cast<double>(copies[0]->bytes()) / weights);
      for (const bool independent : {true, false}) {
        const Time t = measure([&](cudaStream_t s) {
          const size_t step = independent ? 16 : 1;
          for (size_t i = 0; i < products.size(); i += step) {
            const cudaStream_t on = independent ? streams.at(s, i / step) : s;
            must(multiply(std::span(products).subspan(i, std::min(step, products.size() - i)), on));
          }
          streams.join(s);
        });
        const double each = static_cast<double>(products.size()), rate = static_cast<double>(bytes) * each / t.median;
        std::printf(" | %8.2f %7.0f %6.1f %%", t.median / each * 1e6, rate / 1e9, 100 * rate / bandwidth);
        if (csv != nullptr)
          std::fprintf(csv, "%s,\"%s\",%lld,%lld,%.4f,%.4f,%s,%.3f,%.3f,%.3f,%.1f,%.1f\n", name.value().c_str(),
                       kind.c_str(), static_cast<long long>(rows), static_cast<long long>(cols),
                       static_cast<double>(node->bits().total()) / weights,
                       8 * static_cast<double>(copies[0]->bytes()) / weights, independent ? "independent" : "chained",
                       t.median / each * 1e6, t.least / each * 1e6, t.most / each * 1e6, rate / 1e9, bandwidth / 1e9);
      }
      std::printf("\n");
      std::fflush(stdout);
      must(cudaFree(x), "memory");
      must(cudaFree(y), "memory");
    }
  }
  if (csv != nullptr) std::fclose(csv);
  return 0;
}

}  // namespace
}  // namespace pith::cuda

int main(int argc, char** argv) { return pith::cuda::run(argc > 1 ? argv[1] : nullptr); }
