// The CUDA kernels against products in double of the decoded matrix. A program of its own, that ends with code 77 (for
// ctest: skipped) on a machine without a GPU that can run them.
#include "kernels/cuda/matvec.h"

#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <cstring>

#include "base/half.h"
#include "kernels/cuda/nodes.h"

namespace pith::cuda {
namespace {

template <class T>
class OnDevice {
 public:
  explicit OnDevice(const std::vector<T>& values) : size_(values.size()) {
    EXPECT_EQ(cudaMalloc(&data_, size_ * sizeof(T)), cudaSuccess);
    EXPECT_EQ(cudaMemcpy(data_, values.data(), size_ * sizeof(T), cudaMemcpyHostToDevice), cudaSuccess);
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;
  ~OnDevice() { cudaFree(data_); }
  T* get() const { return static_cast<T*>(data_); }
  std::vector<T> read() const {
    std::vector<T> v(size_);
    EXPECT_EQ(cudaMemcpy(v.data(), data_, size_ * sizeof(T), cudaMemcpyDeviceToHost), cudaSuccess);
    return v;
  }

 private:
  void* data_ = nullptr;
  size_t size_;
};

struct Case {
  NodePtr node;
  MatrixPtr matrix;
  std::vector<uint16_t> x;
  std::unique_ptr<OnDevice<uint16_t>> x_device, y_device;
};

Case prepare(test::CudaNodes& make, NodePtr node, double size = 1) {
  Case c;
  auto matrix = Matrix::make(*node);
  EXPECT_TRUE(matrix.ok()) << matrix.error().message;
  c.matrix = *matrix;
  c.x = make.halves(node->cols(), size);
  c.x_device = std::make_unique<OnDevice<uint16_t>>(c.x);
  // Poisoned: NaN where nothing is written, and a word beyond the end that must stay.
  c.y_device =
      std::make_unique<OnDevice<uint16_t>>(std::vector<uint16_t>(static_cast<size_t>(node->rows()) + 1, 0x7e11));
  c.node = std::move(node);
  return c;
}

// Within one rounding to fp16 of the product; single weights and statistics add fp32's and fp16's own.
void check(const Case& c) {
  const auto y = c.y_device->read();
  const auto w = decode_all(*c.node);
  EXPECT_EQ(y.back(), 0x7e11) << "written beyond the end";
  const auto cols = static_cast<size_t>(c.node->cols());
  for (size_t r = 0; r + 1 < y.size(); ++r) {
    double sum = 0, square = 0;
    for (size_t j = 0; j < cols; ++j) {
      const double v = static_cast<double>(w[r * cols + j]) * half_to_float(c.x[j]);
      sum += v, square += v * v;
    }
    ASSERT_NEAR(half_to_float(y[r]), sum, 0x1p-11 * std::abs(sum) + 0x1p-12 * std::sqrt(square) + 0x1p-24)
        << c.node->describe() << ", " << c.node->rows() << " x " << c.node->cols() << ", row " << r;
  }
}

void run(std::vector<Case>& cases) {
  std::vector<Product> products;
  for (const Case& c : cases) products.push_back({c.matrix.get(), c.x_device->get(), c.y_device->get()});
  const Status status = multiply(products);
  ASSERT_TRUE(status.ok()) << status.error().message;
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  for (const Case& c : cases) check(c);
}

TEST(CudaMatvec, Grids) {
  test::CudaNodes make(1);
  std::vector<Case> cases;
  for (unsigned bits : {3u, 4u})
    for (int64_t group : {32, 64, 128})
      for (bool zeros : {false, true}) {
        cases.push_back(prepare(make, make.grid(256, 1024, bits, group, zeros)));
        cases.push_back(prepare(make, make.grid(100, 4000, bits, group, zeros)));
        cases.push_back(prepare(make, make.grid(37, 8 * group + 3 * group / 2 + 1, bits, group, zeros)));
        cases.push_back(prepare(make, make.grid(1, 5, bits, 5, zeros)));
        cases.push_back(prepare(make, make.grid(33, 11008, bits, group, zeros)));
        cases.push_back(
            prepare(make, make.grid(16, 28672, bits, group, zeros)));  // more than shared memory holds at once
      }
  run(cases);
}

TEST(CudaMatvec, Spqr) {
  test::CudaNodes make(2);
  std::vector<Case> cases;
  for (unsigned bits : {3u, 4u})
    for (double outliers : {0.0, 0.01, 0.1})
      for (bool permuted : {false, true}) {
        cases.push_back(prepare(make, make.spqr(256, 1024, bits, outliers, permuted)));
        cases.push_back(prepare(make, make.spqr(45, 333, bits, outliers, permuted)));
        cases.push_back(prepare(make, make.spqr(31, 11008, bits, outliers, permuted)));
      }
  run(cases);
}

TEST(CudaMatvec, Codebooks) {
  test::CudaNodes make(3);
  std::vector<Case> cases;
  for (unsigned bits : {5u, 8u, 12u, 16u})
    for (int64_t books : {1, 2}) {
      cases.push_back(prepare(make, make.codebook(256, 2048, books, bits)));
      cases.push_back(prepare(make, make.codebook(1100, 1000, books, bits)));
      cases.push_back(prepare(make, make.codebook(39, 8 * 37 + 3, books, bits)));
      cases.push_back(prepare(make, make.codebook(20, 11008, books, bits)));
    }
  run(cases);
}

// Numbers of x far from 1, where a fixed scale of the codes would leave fp16's or fp32's range.
TEST(CudaMatvec, SmallAndLargeInputs) {
  test::CudaNodes make(4);
  std::vector<Case> cases;
  for (double size : {1e-4, 1e3}) {
    cases.push_back(prepare(make, make.grid(64, 2048, 3, 64, true), size));
    cases.push_back(prepare(make, make.spqr(64, 512, 3, 0.01, true), size));
    cases.push_back(prepare(make, make.codebook(64, 512, 2, 8), size));
    cases.push_back(prepare(make, make.codebook(64, 512, 1, 12), size));
  }
  run(cases);
}

TEST(CudaMatvec, SameBitsAgain) {
  test::CudaNodes make(5);
  for (const NodePtr& node : {make.grid(512, 4096, 3, 64, true), make.spqr(512, 4096, 3, 0.01, true),
                              make.codebook(512, 4096, 2, 8), make.codebook(512, 4096, 1, 12)}) {
    std::vector<Case> cases;
    cases.push_back(prepare(make, node));
    run(cases);
    const auto first = cases[0].y_device->read();
    for (int i = 0; i < 20; ++i) {
      run(cases);
      ASSERT_EQ(cases[0].y_device->read(), first) << node->describe();
    }
  }
}

}  // namespace
}  // namespace pith::cuda

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  const auto gpu = pith::cuda::device();
  if (!gpu.ok()) {
    std::printf("SKIPPED, nothing was tested: %s\n", gpu.error().message.c_str());
    return 77;
  }
  std::printf("on %s\n", gpu.value().c_str());
  return RUN_ALL_TESTS();
}
