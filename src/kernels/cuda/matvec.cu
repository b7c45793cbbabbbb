#include <cooperative_groups.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "kernels/cuda/layout.h"
#include "kernels/cuda/matvec.h"
#include "kernels/cuda/pack.h"

namespace pith::cuda {

namespace {

// ---- instructions --------------------------------------------------------------------------------

__device__ uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

__device__ void barrier_init(uint64_t* barrier) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(barrier)) : "memory");
}

/// The phase of `barrier` ends when copies of so many bytes have arrived.
__device__ void expect(uint64_t* barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}

/// Starts a copy of `bytes`, a multiple of 16.
__device__ void copy_start(void* to, const void* from, uint32_t bytes, uint64_t* barrier) {
  const uint32_t b = shared_address(barrier);
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   shared_address(to)),
               "l"(from), "r"(bytes), "r"(b)
               : "memory");
}

__device__ void copy_wait(uint64_t* barrier, uint32_t phase) {
  asm volatile(
      "{\n .reg .pred done;\n"
      "again:\n mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      " @done bra.uni end;\n bra.uni again;\nend:\n}" ::"r"(shared_address(barrier)),
      "r"(phase)
      : "memory");
}

// The next launch on the stream may begin once every block of this one has said so (and read its own matrix, which
// nothing writes); what earlier launches wrote is there after wait_for_input.
__device__ void let_next_begin() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }
__device__ void wait_for_input() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

__device__ void mma16(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

/// Weights are read once: they should not push anything out of L1.
__device__ uint4 load_once(const uint4* p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
}

__device__ float2 halves(uint32_t v) { return __half22float2(*reinterpret_cast<const __half2*>(&v)); }

/// The four lowest bits of each half of a word. The fp16 number with the bits of 1024 or n is 1024 + n.
__device__ float2 small_integers(uint32_t v) {
  const uint32_t raised = (v & 0x000f000fu) | 0x64006400u;
  return __half22float2(__hsub2(*reinterpret_cast<const __half2*>(&raised), __float2half2_rn(1024.0f)));
}

// Eight numbers of x from column `col`, zero beyond `cols`.
__device__ uint4 load_x(const __half* x, int col, int cols) {
  if (col + 8 <= cols) return *reinterpret_cast<const uint4*>(x + col);
  uint4 v = {0, 0, 0, 0};
  for (int i = 0; i < 8; ++i)
    if (col + i < cols) reinterpret_cast<__half*>(&v)[i] = x[col + i];
  return v;
}

constexpr int kMaxJobs = 16;  // products of one launch

// ---- grids ---------------------------------------------------------------------------------------

struct GridJob {
  const uint8_t* strips;
  const uint16_t* order;      // null: columns as they are
  const uint32_t* row_start;  // null: no corrections
  const uint32_t* corrections;
  const __half* x;
  __half* y;
  float offset;
  int rows, cols, spans;
};

struct GridJobs {
  GridJob job[kMaxJobs];
  int depth;     // pieces of shared memory a warp has for spans on their way
  int x_cols;    // of shared memory for x
  bool ordered;  // some job has an order: there is room for x as it comes
};

constexpr int kGridWarps = 8;
constexpr int kMaxDepth = 4;
// Spans of small groups are copied two at a time.
constexpr int spans_together(const SpanShape& shape) { return shape.part == 16 ? 2 : 1; }

// A block takes kStrips neighbouring strips; its warps take spans in turn. Everything that does not depend on x is on
// its way before x is read. Two strips a block share the work on x, one strip a block makes twice as many blocks.
template <int kBits, int kSlot, bool kTwoLevel, int kStrips>
__global__ void __launch_bounds__(kGridWarps * 32, kStrips == 1 ? 4 : 3)
    grid_kernel(const __grid_constant__ GridJobs jobs) {
  using U = Unit<kBits>;
  constexpr SpanShape kShape = span_shape(kBits, kSlot, kTwoLevel);
  constexpr int kWarps = kGridWarps, kThreads = kWarps * 32, kSteps = kShape.steps(), kParts = kShape.parts;
  constexpr int kTogether = spans_together(kShape), kPiece = kTogether * kShape.part_bytes(),
                kRows = kStrips * kStripRows;
  // Words fetched at a time: whole units and whole vectors.
  constexpr int kBatch = kBits == 4 ? 8 : 3 * kShape.vector();
  static_assert(kShape.words() % kBatch == 0 && kBatch % U::kWords == 0 && kBatch % kShape.vector() == 0);
  static_assert(kTogether == 1 || kParts == 1);

  const GridJob& job = jobs.job[blockIdx.y];
  const int row0 = blockIdx.x * kRows;
  if (row0 >= job.rows) return;
  extern __shared__ __align__(128) uint8_t shared[];
  __shared__ uint64_t barriers[kWarps][kMaxDepth];
  __shared__ float sums[kWarps + 1][kRows];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  // Pieces: parts of spans, or some spans together.
  const int depth = jobs.depth, spans = job.spans, pieces = (spans * kParts + kTogether - 1) / kTogether;
  const int x_cols = spans * kShape.cols();
  uint8_t* ring = shared + warp * depth * kStrips * kPiece;
  __half* x = reinterpret_cast<__half*>(shared + kWarps * depth * kStrips * kPiece);
  __half* x_raw = x + jobs.x_cols;
  float* x_sums = reinterpret_cast<float*>(x_raw + (jobs.ordered ? jobs.x_cols : 0));
  const size_t strip_bytes = static_cast<size_t>(spans) * kShape.bytes();
  const uint8_t* from = job.strips + blockIdx.x * kStrips * strip_bytes;
  const int strips = min(kStrips, (job.rows - row0 + kStripRows - 1) / kStripRows);

  const auto start = [&](int piece, int place) {
    const int span = piece / kParts * kTogether, part = piece % kParts;
    const int bytes = min(kTogether, spans - span) * kShape.part_bytes();
    const uint8_t* at = from + static_cast<size_t>(span) * kShape.bytes() + kShape.part_at(part);
    expect(&barriers[warp][place], strips * bytes);
#pragma unroll 1
    for (int i = 0; i < strips; ++i)
      copy_start(ring + (place * kStrips + i) * kPiece, at + i * strip_bytes, bytes, &barriers[warp][place]);
  };
  if (lane == 0) {
#pragma unroll 1
    for (int d = 0; d < depth; ++d) barrier_init(&barriers[warp][d]);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#pragma unroll 1
    for (int d = 0, piece = warp; d < depth && piece < pieces; ++d, piece += kWarps) start(piece, d);
  }
  let_next_begin();

  // Corrections of a row are shared by neighbouring threads; the first few are fetched ahead.
  constexpr int kRowThreads = kThreads / kRows, kAhead = 4;
  uint32_t first = 0, last = 0, ahead[kAhead];
  const int my_row = threadIdx.x / kRowThreads, my_place = threadIdx.x % kRowThreads;
  if (job.row_start != nullptr && row0 + my_row < job.rows) {
    first = job.row_start[row0 + my_row] + my_place, last = job.row_start[row0 + my_row + 1];
    for (int i = 0; i < kAhead; ++i)
      ahead[i] = first + i * kRowThreads < last ? job.corrections[first + i * kRowThreads] : 0;
  }

  if (job.order != nullptr)
    for (int c = threadIdx.x * 8; c < x_cols; c += kThreads * 8)
      asm volatile("prefetch.global.L1 [%0];" ::"l"(job.order + c));

  wait_for_input();
  if (job.order != nullptr) {
    for (int c = threadIdx.x * 8; c < x_cols; c += kThreads * 8)
      *reinterpret_cast<uint4*>(x_raw + c) = load_x(job.x, c, job.cols);
    __syncthreads();
  }
  for (int c0 = warp * 256; c0 < x_cols; c0 += kThreads * 8) {
    const int c = c0 + lane * 8;
    uint4 v = {0, 0, 0, 0};
    if (c < x_cols) {
      if (job.order == nullptr) {
        v = load_x(job.x, c, job.cols);
      } else {
        const uint4 places = *reinterpret_cast<const uint4*>(job.order + c);  // padded to whole spans
#pragma unroll
        for (int i = 0; i < 8; ++i)
          reinterpret_cast<__half*>(&v)[i] = x_raw[reinterpret_cast<const uint16_t*>(&places)[i]];
      }
      *reinterpret_cast<uint4*>(x + c) = v;
    }
    const float2 p = halves(v.x), q = halves(v.y), r = halves(v.z), s = halves(v.w);
    float sum = ((p.x + p.y) + (q.x + q.y)) + ((r.x + r.y) + (s.x + s.y));
#pragma unroll
    for (int o = 1; o < kShape.part / 8; o *= 2) sum += __shfl_xor_sync(~0u, sum, o);
    if (c < x_cols && lane % (kShape.part / 8) == 0) x_sums[c / kShape.part] = sum;
  }
  __syncthreads();

  // B's column g is x for slot g alone. With one step a slot it pays to multiply by 0 or 1: that is work for another unit
  // of the processor than the masks and shifts of the codes.
  __half2 only[kSteps == 1 ? kSlots : 1];
  if constexpr (kSteps == 1)
    for (int i = 0; i < kSlots; ++i) only[i] = __float2half2_rn(g == i ? 1.0f : 0.0f);
  const auto column = [&](uint32_t pair, int slot) {
    if constexpr (kSteps != 1) return g == slot ? pair : 0u;
    const __half2 product = __hmul2(*reinterpret_cast<const __half2*>(&pair), only[kSteps == 1 ? slot : 0]);
    return *reinterpret_cast<const uint32_t*>(&product);
  };

  float y[kStrips][2] = {};  // rows g and g + 8
  for (int piece = warp, k = 0; piece < pieces; piece += kWarps, ++k) {
    const int place = k % depth;
    copy_wait(&barriers[warp][place], k / depth & 1);
    const int first_span = piece / kParts * kTogether, part = piece % kParts;
    const int here = min(kTogether, spans - first_span);
    for (int i = 0; i < here; ++i) {
      const int span = first_span + i;
      uint32_t xs[2 * kSteps];  // of slot g
      const __half* slot_x = x + span * kShape.cols() + g * kSlot + part * kShape.part;
      if constexpr (kSteps == 1) {
        *reinterpret_cast<uint2*>(xs) = *reinterpret_cast<const uint2*>(slot_x + 4 * t);
      } else {
#pragma unroll
        for (int s = 0; s < kSteps / 2; ++s)
          *reinterpret_cast<uint4*>(xs + 4 * s) = *reinterpret_cast<const uint4*>(slot_x + 32 * s + 8 * t);
      }
      const float* x_sum = x_sums + (span * kSlots + 2 * t) * kParts + part;
#pragma unroll 1
      for (int strip = 0; strip < strips; ++strip) {
        const uint8_t* data = ring + (place * kStrips + strip) * kPiece + i * kShape.part_bytes();
        const uint8_t* codes = data + kShape.codes_at(part);
        float acc[U::kClasses][4] = {};
#pragma unroll
        for (int b = 0; b < kShape.words() / kBatch; ++b) {
          uint32_t w[kBatch];
#pragma unroll
          for (int v = 0; v < kBatch; v += kShape.vector()) {
            const uint8_t* p = codes + 4 * kShape.word_at(b * kBatch + v, lane);
            if constexpr (kShape.vector() == 4)
              *reinterpret_cast<uint4*>(w + v) = *reinterpret_cast<const uint4*>(p);
            else
              *reinterpret_cast<uint2*>(w + v) = *reinterpret_cast<const uint2*>(p);
          }
#pragma unroll
          for (int u = 0; u < kBatch / U::kWords; ++u) {
#pragma unroll
            for (int m = 0; m < U::kOps; ++m) {
              const int op = (b * (kBatch / U::kWords) + u) * U::kOps + m, slot = op / kSteps, s = op % kSteps;
              const uint32_t* unit = w + u * U::kWords;
              mma16(acc[U::accumulators(m)], operand<kBits>(unit, U::place(m, 0)), operand<kBits>(unit, U::place(m, 1)),
                    operand<kBits>(unit, U::place(m, 2)), operand<kBits>(unit, U::place(m, 3)),
                    column(xs[2 * s], slot), column(xs[2 * s + 1], slot));
            }
          }
        }
        const uint8_t* stats = data + kShape.stats_at(part);
        float scale[4], zero[4];  // rows g, g + 8 by slots 2t, 2t + 1
        if constexpr (kTwoLevel) {
          const uint32_t word = reinterpret_cast<const uint32_t*>(stats)[lane];
          const uint4 second = *reinterpret_cast<const uint4*>(stats + 128 + 16 * t);
          const uint32_t of_scale[2] = {second.x, second.z}, of_zero[2] = {second.y, second.w};
#pragma unroll
          for (int j = 0; j < 2; ++j) {  // slot 2t + j, both rows at once
            const float2 a = small_integers(word >> (8 * j)), b = small_integers(word >> (8 * j + 4));
            const float2 s = halves(of_scale[j]), z = halves(of_zero[j]);
            scale[j] = s.x * (a.x - s.y), scale[2 + j] = s.x * (a.y - s.y);
            zero[j] = z.x * (b.x - z.y), zero[2 + j] = z.x * (b.y - z.y);
          }
        } else {
          const uint4 pairs = reinterpret_cast<const uint4*>(stats)[lane];
          const uint32_t pair[4] = {pairs.x, pairs.y, pairs.z, pairs.w};
#pragma unroll
          for (int v = 0; v < 4; ++v) scale[v] = halves(pair[v]).x, zero[v] = halves(pair[v]).y;
        }
        float product[4];
#pragma unroll
        for (int v = 0; v < 4; ++v) {
          float sum = acc[U::kClasses - 1][v];
#pragma unroll
          for (int c = U::kClasses - 2; c >= 0; --c) sum = acc[c][v] + sum * (1.0f / (1 << kBits));
          product[v] = scale[v] * (sum * 0x1p24f - (zero[v] - job.offset) * x_sum[v % 2 * kParts]);
        }
#pragma unroll
        for (int j = 0; j < kStrips; ++j)  // registers cannot be indexed
          if (j == strip) y[j][0] += product[0] + product[1], y[j][1] += product[2] + product[3];
      }
    }
    __syncwarp();
    const int next = piece + depth * kWarps;
    if (lane == 0 && next < pieces) start(next, place);
  }

  float extra = 0;
  if (job.row_start != nullptr) {
    const auto add = [&](uint32_t entry) {
      extra += __half2float(x[entry & 0xffffu]) * __half2float(__ushort_as_half(static_cast<uint16_t>(entry >> 16)));
    };
#pragma unroll
    for (int i = 0; i < kAhead; ++i)
      if (first + i * kRowThreads < last) add(ahead[i]);
    for (uint32_t at = first + kAhead * kRowThreads; at < last; at += kRowThreads) add(job.corrections[at]);
    __syncwarp();
    for (int o = kRowThreads / 2; o > 0; o /= 2) extra += __shfl_xor_sync(~0u, extra, o);
  }
  if (my_place == 0) sums[kWarps][my_row] = extra;
#pragma unroll
  for (int i = 0; i < 2 * kStrips; ++i) {
    float sum = y[i / 2][i % 2];
    for (int o = 1; o < 4; o *= 2) sum += __shfl_xor_sync(~0u, sum, o);
    if (t == 0) sums[warp][g + 8 * i] = sum;
  }
  __syncthreads();
  if (threadIdx.x < kRows && row0 + threadIdx.x < job.rows) {
    float sum = 0;
    for (int i = 0; i <= kWarps; ++i) sum += sums[i][threadIdx.x];
    job.y[row0 + threadIdx.x] = __float2half_rn(sum);
  }
}

// ---- codebooks of up to 256 entries: products with x in a table ----------------------------------

struct BookJob {
  const uint4* codes;
  const uint32_t* entries;  // fp16 pairs
  const float* scale;
  const __half* x;
  __half* y;
  int rows, cols, tiles;  // tiles: of groups (table), or chunks (gather)
};

struct BookJobs {
  BookJob job[kMaxJobs];
  int books, entries;
};

constexpr int kCluster = 8;
constexpr int kLutWarps = 16;

// A line of 256 bytes for each entry: 32 groups of the first book, of the second. So a code is a byte of the address.
constexpr int kLine = 2 * kLutGroups, kTableBytes = 256 * kLine * 4;

// Sums v[i] over all lanes for 2 n values i, so that lane l ends with that of i = l: at each step a lane keeps one half
// of the values and gives the other away.
template <int n>
__device__ float row_of_lane(float (&v)[2 * n], int lane) {
  const bool upper = lane & n;
  float kept[n];
#pragma unroll
  for (int i = 0; i < n; ++i) kept[i] = (upper ? v[i + n] : v[i]) + __shfl_xor_sync(~0u, upper ? v[i] : v[i + n], n);
  if constexpr (n == 1)
    return kept[0];
  else
    return row_of_lane<n / 2>(kept, lane);
}

// Blocks of a cluster share rows and split columns. For each 32 groups of columns a block makes the table of the
// products of x's groups with all entries by tensor cores; then each warp takes 32 rows, lane = group.
//
// A lane of the product [16 entries, 8 groups] holds two groups of entry g (and of g + 8), so rows of one product would
// all be stored to the same 8 banks. Instead K = 16 + 16 holds four octets of groups, and row g has its entry in the
// place of one of them alone, g % 4: eight entries then give eight products with four different octets, and storing has
// no conflicts. Turning the octets four times gives all.
template <int kBooks>
__global__ void __launch_bounds__(kLutWarps * 32, 2) table_kernel(const __grid_constant__ BookJobs jobs) {
  constexpr int kTileWords = kLutRows * kBooks / 4, kRows = kLutWarps * kLutRows;  // words a lane
  constexpr int kSixteens = kBooks * 256 / 16 / kLutWarps;                         // of entries, for each warp
  const BookJob& job = jobs.job[blockIdx.z];
  const int row0 = blockIdx.y * kRows;
  if (row0 >= job.rows) return;  // the whole cluster does
  extern __shared__ __align__(128) uint8_t shared[];
  float* table = reinterpret_cast<float*>(shared);
  uint4* mine = reinterpret_cast<uint4*>(shared + kTableBytes) + threadIdx.x / 32 * kTileWords * 32 / 4;
  uint4* x = reinterpret_cast<uint4*>(shared + kTableBytes + kRows * kBooks * kLutGroups);
  __shared__ float sums[kRows];
  __shared__ uint64_t barriers[kLutWarps];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int rank = blockIdx.x;
  const int row_tile = row0 / kLutRows + warp;
  const bool rows_here = row_tile * kLutRows < job.rows;
  const uint4* codes = job.codes + static_cast<size_t>(row_tile) * job.tiles * kTileWords * 32 / 4;
  const auto start = [&](int tile) {
    if (lane != 0 || !rows_here || tile >= job.tiles) return;
    expect(&barriers[warp], kTileWords * 128);
    copy_start(mine, codes + static_cast<size_t>(tile) * kTileWords * 32 / 4, kTileWords * 128, &barriers[warp]);
  };
  if (lane == 0) {
    barrier_init(&barriers[warp]);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  start(rank);
  let_next_begin();
  for (int i = 0; i < kSixteens; ++i)
    asm volatile("prefetch.global.L1 [%0];" ::"l"(job.entries + (warp * kSixteens + i) * 64 + lane * 2));
  float acc[kLutRows] = {};
  uint32_t phase = 0;
  wait_for_input();
  // All of x that this block needs, tile after tile.
  for (int i = threadIdx.x; i < (job.tiles - rank + kCluster - 1) / kCluster * kLutGroups; i += kLutWarps * 32)
    x[i] = load_x(job.x, ((i / kLutGroups * kCluster + rank) * kLutGroups + i % kLutGroups) * 8, job.cols);
  __syncthreads();
  for (int tile = rank; tile < job.tiles; tile += kCluster) {
    uint32_t xs[4];  // octets of groups: group 8q + g
#pragma unroll
    for (int q = 0; q < 4; ++q)
      xs[q] = reinterpret_cast<const uint32_t*>(x)[(tile / kCluster * kLutGroups + 8 * q + g) * 4 + t];
    if (tile != rank) __syncthreads();  // nobody reads the last table any more
#pragma unroll 1
    for (int i = 0; i < kSixteens; ++i) {
      const int sixteen = warp * kSixteens + i;
      const uint32_t* from = job.entries + (sixteen * 16 + g) * 4 + t;
      const uint32_t lower = from[0], upper = from[32];  // entries g and g + 8
      float* to = table + (sixteen % 16 * 16 + g) * kLine + sixteen / 16 * kLutGroups + 2 * t;
#pragma unroll
      for (int turn = 0; turn < 4; ++turn) {
        float c[4] = {};
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const bool first = g % 4 == 2 * h, second = g % 4 == 2 * h + 1;
          mma16(c, first ? lower : 0, first ? upper : 0, second ? lower : 0, second ? upper : 0, xs[(2 * h + turn) % 4],
                xs[(2 * h + 1 + turn) % 4]);
        }
        float* octet = to + (g + turn) % 4 * 8;
        *reinterpret_cast<float2*>(octet) = {c[0], c[1]};
        *reinterpret_cast<float2*>(octet + 8 * kLine) = {c[2], c[3]};
      }
    }
    __syncthreads();
    if (rows_here) {
      const uint32_t bank = lane * 4;
      const auto add = [&](uint32_t word, int i) {
#pragma unroll
        for (int b = 0; b < 4; ++b) {
          const int byte = 4 * i + b;
          const uint32_t place = __byte_perm(word, bank, 0x5504 | b << 4);  // byte b of the word, then the lane's bank
          acc[byte / kBooks] += *reinterpret_cast<const float*>(shared + byte % kBooks * kLutGroups * 4 + place);
        }
      };
      copy_wait(&barriers[warp], phase);
      phase ^= 1;
#pragma unroll
      for (int v = 0; v < kTileWords / 4; ++v) {
        const uint4 w = mine[v * 32 + lane];
        add(w.x, 4 * v), add(w.y, 4 * v + 1), add(w.z, 4 * v + 2), add(w.w, 4 * v + 3);
      }
      __syncwarp();
      start(tile + kCluster);
    }
  }
  sums[warp * kLutRows + lane] = row_of_lane<16>(acc, lane);
  const auto cluster = cooperative_groups::this_cluster();
  cluster.sync();
  constexpr int kShare = kRows / kCluster;
  if (threadIdx.x < kShare) {
    const int i = rank * kShare + threadIdx.x, row = row0 + i;
    if (row < job.rows) {
      float y = 0;
      for (int b = 0; b < kCluster; ++b) y += *cluster.map_shared_rank(&sums[i], b);
      job.y[row] = __float2half_rn(y * job.scale[row]);
    }
  }
  // Sums must live until all have read them.
  asm volatile("barrier.cluster.arrive.relaxed.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
}

// ---- larger codebooks: entries out of the L2 cache ------------------------------------------------

constexpr int kGatherWarps = 8;

__global__ void __launch_bounds__(kGatherWarps * 32) gather_kernel(const __grid_constant__ BookJobs jobs) {
  const BookJob& job = jobs.job[blockIdx.y];
  const int row0 = blockIdx.x * kStripRows;
  if (row0 >= job.rows) return;
  extern __shared__ __align__(128) uint8_t shared[];
  uint4* x = reinterpret_cast<uint4*>(shared);  // one group each
  __shared__ float sums[kGatherWarps][kStripRows];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  let_next_begin();
  const int chunks = jobs.books * job.tiles;
  const uint4* codes = job.codes + static_cast<size_t>(blockIdx.x) * chunks * 32 + lane;
  uint4 w = warp < chunks ? load_once(codes + warp * 32) : uint4{};
  wait_for_input();
  for (int i = threadIdx.x; i < job.tiles * kGatherGroups; i += kGatherWarps * 32)
    x[i] = load_x(job.x, i * 8, job.cols);
  __syncthreads();
  float acc[4] = {};
  for (int chunk = warp; chunk < chunks; chunk += kGatherWarps) {
    const uint4 now = w;
    if (chunk + kGatherWarps < chunks) w = load_once(codes + (chunk + kGatherWarps) * 32);
    const int book = chunk / job.tiles, tile = chunk % job.tiles;
    const uint4* entries = reinterpret_cast<const uint4*>(job.entries) + static_cast<size_t>(book) * jobs.entries;
    const uint32_t words[4] = {now.x, now.y, now.z, now.w};
    uint4 lower[4], upper[4];
#pragma unroll
    for (int u = 0; u < 4; ++u)
      lower[u] = __ldg(entries + (words[u] & 0xffffu)), upper[u] = __ldg(entries + (words[u] >> 16));
#pragma unroll
    for (int u = 0; u < 4; ++u) {
      const uint4 xs = x[tile * kGatherGroups + 4 * u + t];
      mma16(acc, lower[u].x, upper[u].x, lower[u].y, upper[u].y, xs.x, xs.y);
      mma16(acc, lower[u].z, upper[u].z, lower[u].w, upper[u].w, xs.z, xs.w);
    }
  }
  // All columns of the product are the same.
  if (t == 0) sums[warp][g] = acc[0], sums[warp][g + 8] = acc[2];
  __syncthreads();
  if (threadIdx.x < kStripRows && row0 + threadIdx.x < job.rows) {
    float y = 0;
    for (int i = 0; i < kGatherWarps; ++i) y += sums[i][threadIdx.x];
    job.y[row0 + threadIdx.x] = __float2half_rn(y * job.scale[row0 + threadIdx.x]);
  }
}

// ---- host ----------------------------------------------------------------------------------------

Status check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return {};
  const std::string message = std::string("CUDA: ") + what + ": " + cudaGetErrorString(error);
  (void)cudaGetLastError();
  return error == cudaErrorMemoryAllocation ? user_error(message) : bug_error(message);
}

constexpr int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Memory of the GPU in one piece, filled once.
class DeviceBytes {
 public:
  DeviceBytes() = default;
  DeviceBytes(const DeviceBytes&) = delete;
  DeviceBytes& operator=(const DeviceBytes&) = delete;
  ~DeviceBytes() { cudaFree(data_); }

  Status fill(const void* from, size_t bytes, cudaMemcpyKind kind) {
    PITH_TRY(check(cudaMalloc(&data_, bytes), "memory for a matrix"));
    size_ = bytes;
    PITH_TRY(check(cudaMemcpy(data_, from, bytes, kind), "copying a matrix to the GPU"));
    return {};
  }
  template <class T>
  const T* at(size_t offset) const {
    return reinterpret_cast<const T*>(static_cast<const uint8_t*>(data_) + offset);
  }
  size_t size() const { return size_; }

 private:
  void* data_ = nullptr;
  size_t size_ = 0;
};

// Sections of a matrix, each on 256 bytes.
class Sections {
 public:
  template <class T>
  size_t add(const std::vector<T>& values) {
    const size_t offset = bytes_.size();
    bytes_.resize(round_up(static_cast<int64_t>(offset + values.size() * sizeof(T)), 256));
    if (!values.empty()) std::memcpy(bytes_.data() + offset, values.data(), values.size() * sizeof(T));
    used_ += values.size() * sizeof(T);
    return offset;
  }
  const std::vector<uint8_t>& bytes() const { return bytes_; }
  uint64_t used() const { return used_; }

 private:
  std::vector<uint8_t> bytes_;
  uint64_t used_ = 0;
};

template <class Jobs>
Status launch(void (*kernel)(Jobs), dim3 grid, int threads, int shared, int cluster, void* stream, const Jobs& jobs) {
  PITH_TRY(check(
      cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize, shared),
      "shared memory"));
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim.x = static_cast<unsigned>(cluster);
  attributes[1].val.clusterDim.y = attributes[1].val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<size_t>(shared);
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = attributes;
  config.numAttrs = cluster > 1 ? 2 : 1;
  return check(cudaLaunchKernelEx(&config, kernel, jobs), "starting a product");
}

constexpr int kSharedLimit = 226 << 10;  // what a block may have on Hopper, less the little that is declared
constexpr int kSharedGoal = 75 << 10;    // so that three blocks fit one multiprocessor

template <int kBits, int kSlot, bool kTwoLevel, int kStrips>
Status launch_strips(GridJobs& jobs, int count, int rows, int spans, void* stream) {
  constexpr SpanShape kShape = span_shape(kBits, kSlot, kTwoLevel);
  constexpr int kTogether = spans_together(kShape), kRound = kGridWarps * kTogether * kStrips * kShape.part_bytes();
  jobs.x_cols = spans * kShape.cols();
  const int x_bytes = jobs.x_cols * 2 * (jobs.ordered ? 2 : 1) + spans * kSlots * kShape.parts * 4;
  const int rounds = (spans * kShape.parts + kGridWarps * kTogether - 1) / (kGridWarps * kTogether);
  jobs.depth = std::min(rounds, kMaxDepth);
  while (jobs.depth > 1 && jobs.depth * kRound + x_bytes > kSharedGoal) --jobs.depth;
  const int shared = jobs.depth * kRound + x_bytes;
  if (shared > kSharedLimit)
    return user_error("CUDA kernels: a matrix of so many columns needs more shared memory than a block has");
  constexpr int kRows = kStrips * kStripRows;
  return launch(grid_kernel<kBits, kSlot, kTwoLevel, kStrips>,
                dim3(static_cast<unsigned>((rows + kRows - 1) / kRows), static_cast<unsigned>(count)), kGridWarps * 32,
                shared, 1, stream, jobs);
}

template <int kBits, int kSlot, bool kTwoLevel>
Status launch_grid(GridJobs& jobs, int count, void* stream) {
  int spans = 0, rows = 0;
  for (int i = 0; i < count; ++i) {
    spans = std::max(spans, jobs.job[i].spans), rows = std::max(rows, jobs.job[i].rows);
    jobs.ordered |= jobs.job[i].order != nullptr;
  }
  // Two strips a block where that still gives each of about 130 multiprocessors a few blocks.
  if (count * rows >= 130 * 3 * 2 * kStripRows)
    return launch_strips<kBits, kSlot, kTwoLevel, 2>(jobs, count, rows, spans, stream);
  return launch_strips<kBits, kSlot, kTwoLevel, 1>(jobs, count, rows, spans, stream);
}

class GridMatrix final : public Matrix {
 public:
  using Start = Status (*)(GridJobs&, int, void*);

  static Result<MatrixPtr> make(const PackedGrid& packed) {
    auto m = std::make_shared<GridMatrix>();
    m->rows_ = packed.rows, m->cols_ = packed.cols;
    m->start_ = start_for(packed);
    if (m->start_ == nullptr) return bug_error("CUDA kernels: a packed grid has no kernel");
    Sections sections;
    m->strips_ = sections.add(packed.strips);
    const SpanShape shape = span_shape(packed.bits, packed.slot, packed.two_level);
    m->ordered_ = !packed.order.empty(), m->corrected_ = !packed.corrections.empty();
    std::vector<uint16_t> order = packed.order;
    if (m->ordered_) order.resize(static_cast<size_t>(packed.spans() * shape.cols()), static_cast<uint16_t>(packed.cols));
    m->order_ = sections.add(order);
    m->row_start_ = sections.add(packed.row_start);
    m->corrections_ = sections.add(packed.corrections);
    m->spans_ = static_cast<int>(packed.spans());
    m->offset_ = packed.offset;
    m->bytes_ = sections.used();
    PITH_TRY(m->data_.fill(sections.bytes().data(), sections.bytes().size(), cudaMemcpyHostToDevice));
    return MatrixPtr(std::move(m));
  }
  Result<MatrixPtr> copy() const override {
    auto m = std::make_shared<GridMatrix>();
    m->rows_ = rows_, m->cols_ = cols_, m->bytes_ = bytes_, m->start_ = start_, m->strips_ = strips_,
    m->order_ = order_;
    m->row_start_ = row_start_, m->corrections_ = corrections_, m->ordered_ = ordered_, m->corrected_ = corrected_;
    m->spans_ = spans_, m->offset_ = offset_;
    PITH_TRY(m->data_.fill(data_.at<void>(0), data_.size(), cudaMemcpyDeviceToDevice));
    return MatrixPtr(std::move(m));
  }
  Start start() const { return start_; }
  GridJob job(const void* x, void* y) const {
    GridJob job = {};
    job.strips = data_.at<uint8_t>(strips_);
    job.order = ordered_ ? data_.at<uint16_t>(order_) : nullptr;
    job.row_start = corrected_ ? data_.at<uint32_t>(row_start_) : nullptr;
    job.corrections = corrected_ ? data_.at<uint32_t>(corrections_) : nullptr;
    job.x = static_cast<const __half*>(x), job.y = static_cast<__half*>(y);
    job.offset = offset_;
    job.rows = static_cast<int>(rows_), job.cols = static_cast<int>(cols_), job.spans = spans_;
    return job;
  }

 private:
  static Start start_for(const PackedGrid& p) {
    if (p.two_level) return p.bits == 3 ? launch_grid<3, 16, true> : launch_grid<4, 16, true>;
    switch (p.slot) {
      case 32:
        return p.bits == 3 ? launch_grid<3, 32, false> : launch_grid<4, 32, false>;
      case 64:
        return p.bits == 3 ? launch_grid<3, 64, false> : launch_grid<4, 64, false>;
      case 128:
        return p.bits == 3 ? launch_grid<3, 128, false> : launch_grid<4, 128, false>;
      default:
        return nullptr;
    }
  }
  DeviceBytes data_;
  Start start_ = nullptr;
  size_t strips_ = 0, order_ = 0, row_start_ = 0, corrections_ = 0;
  bool ordered_ = false, corrected_ = false;
  int spans_ = 0;
  float offset_ = 0;
};

class BookMatrix final : public Matrix {
 public:
  static Result<MatrixPtr> make(const PackedCodebook& packed) {
    auto m = std::make_shared<BookMatrix>();
    m->rows_ = packed.rows, m->cols_ = packed.cols;
    m->table_ = packed.table, m->books_ = packed.books, m->entries_count_ = packed.entries;
    Sections sections;
    m->codes_ = sections.add(packed.codes);
    m->entries_ = sections.add(packed.entry);
    m->scale_ = sections.add(packed.scale);
    m->bytes_ = sections.used();
    PITH_TRY(m->data_.fill(sections.bytes().data(), sections.bytes().size(), cudaMemcpyHostToDevice));
    return MatrixPtr(std::move(m));
  }
  Result<MatrixPtr> copy() const override {
    auto m = std::make_shared<BookMatrix>();
    m->rows_ = rows_, m->cols_ = cols_, m->bytes_ = bytes_, m->table_ = table_, m->books_ = books_;
    m->entries_count_ = entries_count_, m->codes_ = codes_, m->entries_ = entries_, m->scale_ = scale_;
    PITH_TRY(m->data_.fill(data_.at<void>(0), data_.size(), cudaMemcpyDeviceToDevice));
    return MatrixPtr(std::move(m));
  }
  bool same_kernel(const BookMatrix& o) const {
    return table_ == o.table_ && books_ == o.books_ && entries_count_ == o.entries_count_;
  }
  Status start(BookJobs& jobs, int count, void* stream) const {
    jobs.books = books_, jobs.entries = entries_count_;
    int rows = 0, tiles = 0;
    for (int i = 0; i < count; ++i) rows = std::max(rows, jobs.job[i].rows), tiles = std::max(tiles, jobs.job[i].tiles);
    if (!table_)
      return launch(gather_kernel,
                    dim3(static_cast<unsigned>((rows + kStripRows - 1) / kStripRows), static_cast<unsigned>(count)),
                    kGatherWarps * 32, tiles * kGatherGroups * 16, 1, stream, jobs);
    constexpr int kRows = kLutWarps * kLutRows;
    return launch(books_ == 1 ? table_kernel<1> : table_kernel<2>,
                  dim3(kCluster, static_cast<unsigned>((rows + kRows - 1) / kRows), static_cast<unsigned>(count)),
                  kLutWarps * 32, kTableBytes + kRows * books_ * kLutGroups + (tiles + kCluster - 1) / kCluster * kLutGroups * 16, kCluster, stream, jobs);
  }
  BookJob job(const void* x, void* y) const {
    const int64_t together = table_ ? kLutGroups : kGatherGroups;
    BookJob job = {};
    job.codes = data_.at<uint4>(codes_), job.entries = data_.at<uint32_t>(entries_),
    job.scale = data_.at<float>(scale_);
    job.x = static_cast<const __half*>(x), job.y = static_cast<__half*>(y);
    job.rows = static_cast<int>(rows_), job.cols = static_cast<int>(cols_);
    job.tiles = static_cast<int>(round_up((cols_ + 7) / 8, together) / together);
    return job;
  }

 private:
  DeviceBytes data_;
  bool table_ = false;
  int books_ = 0, entries_count_ = 0;
  size_t codes_ = 0, entries_ = 0, scale_ = 0;
};

}  // namespace

Result<std::string> device() {
  int count = 0, index = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess || count == 0) {
    (void)cudaGetLastError();
    return user_error(std::string("CUDA: this machine has no GPU that can be used (") + cudaGetErrorString(error) +
                      ")");
  }
  PITH_TRY(check(cudaGetDevice(&index), "the current GPU"));
  cudaDeviceProp properties;
  PITH_TRY(check(cudaGetDeviceProperties(&properties, index), "properties of the GPU"));
  if (properties.major != 9)
    return user_error(std::string("CUDA: the kernels are built for compute capability 9.0 (H100, H200); ") +
                      properties.name + " has " + std::to_string(properties.major) + "." +
                      std::to_string(properties.minor));
  return std::string(properties.name);
}

Result<MatrixPtr> Matrix::make(const Node& node) {
  PITH_ASSIGN(const Packed packed, pack(node));
  if (const auto* grid = std::get_if<PackedGrid>(&packed)) return GridMatrix::make(*grid);
  return BookMatrix::make(std::get<PackedCodebook>(packed));
}

Status multiply(std::span<const Product> products, void* stream) {
  std::vector<bool> done(products.size(), false);
  for (size_t i = 0; i < products.size(); ++i) {
    if (done[i]) continue;
    // The products from here on that share this one's kernel, as many as one launch takes.
    int count = 0;
    if (const auto* first = dynamic_cast<const GridMatrix*>(products[i].matrix)) {
      GridJobs jobs = {};
      for (size_t j = i; j < products.size() && count < kMaxJobs; ++j) {
        const auto* m = dynamic_cast<const GridMatrix*>(products[j].matrix);
        if (done[j] || m == nullptr || m->start() != first->start()) continue;
        jobs.job[count++] = m->job(products[j].x, products[j].y);
        done[j] = true;
      }
      PITH_TRY(first->start()(jobs, count, stream));
    } else if (const auto* book = dynamic_cast<const BookMatrix*>(products[i].matrix)) {
      BookJobs jobs = {};
      for (size_t j = i; j < products.size() && count < kMaxJobs; ++j) {
        const auto* m = dynamic_cast<const BookMatrix*>(products[j].matrix);
        if (done[j] || m == nullptr || !m->same_kernel(*book)) continue;
        jobs.job[count++] = m->job(products[j].x, products[j].y);
        done[j] = true;
      }
      PITH_TRY(book->start(jobs, count, stream));
    } else {
      return bug_error("CUDA kernels: a product without a matrix");
    }
  }
  return {};
}

}  // namespace pith::cuda
