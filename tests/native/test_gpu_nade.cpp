// Tests of the CUDA kernels of NADE on the emulated GPU, through their launchers: sizes, fractions of ones
// and incoming gradients against plain loops in double. The results must have the same bits for any number of
// blocks and any order of the threads. All memory has exactly the size that the kernels may access.
#include <array>
#include <cstdlib>

#include "cuda/nade.h"
#include "emulation/emulation.h"
#include "nades.h"

namespace {

constexpr int64_t kBlocks[] = {3, 1, 2, 7};

template <class T>
Results<T> run_kernels(const Case& c, const Data<T>& data, int64_t most_blocks) {
  Results<T> r = empty_results<T>(c);
  for (const NadeForward& forward : {forward_problem(c, data, r), drawn_problem(c, data, r)}) {
    with_memory(cuda::workspace_bytes(forward, most_blocks), [&](void* memory) {
      expect(cuda::nade(forward, most_blocks, memory, nullptr) == 0, c.text() + ": forward");
    });
  }
  const NadeBackward backward = backward_problem(c, data, r);
  with_memory(cuda::workspace_bytes(backward), [&](void* memory) {
    expect(cuda::nade_backward(backward, most_blocks, memory, nullptr) == 0, c.text() + ": backward");
  });
  return r;
}

template <class T>
void check(const Case& c, unsigned seed, int orders) {
  const Data<T> data = make_data<T>(c, seed);
  Results<T> first;
  for (int order = 0; order < orders; ++order) {
    const int64_t blocks = kBlocks[order % std::size(kBlocks)];
    const std::string where =
        c.text() + ", " + std::to_string(blocks) + " blocks, order " + std::to_string(order) + ": ";
    emulation::set_seed(5 * order);
    try {
      const Results<T> r = run_kernels(c, data, blocks);
      if (order == 0) {
        first = r;
        check_results(c, data, r, where);
      } else {
        expect(same_bits(r, first), where + "the same bits as in the first order");
      }
    } catch (const emulation::Fault& fault) {
      expect(false, where + fault.what());
    }
  }
}

// Bounds of the workspace, for many rows and any H.
void check_memory() {
  for (int64_t hidden = 1; hidden <= 40000; hidden += 97) {
    const std::string where = "memory for H" + std::to_string(hidden);
    Nade sizes;
    sizes.rows = int64_t{1} << 33;
    sizes.visible = 88;
    sizes.hidden = hidden;
    const NadeForward forward{sizes};
    const int64_t most = int64_t{1} << 16;
    expect(cuda::workspace_bytes(forward, most) <= 1024 * 4 * 2 * 4 * hidden, where + ": forward");
    NadeBackward backward{sizes};
    expect(cuda::workspace_bytes(backward) == 0, where + ": d_visible_bias alone");
    float weight;
    backward.d_encoder = &weight;
    const int64_t sums = cuda::workspace_bytes(backward) - sizes.rows * 3 * 4;  // 3 words are 88 bits
    const int64_t gradients = int64_t{88} * 2 * 4 * hidden;
    expect(sums >= gradients && sums <= std::max(int64_t{88} << 18, gradients), where + ": backward");
  }
}

}  // namespace

// test_gpu_nade [n [orders]]: runs every n-th case, each in the given number of orders.
int main(int argc, char** argv) {
  Cases cases(argc, argv);
  check_memory();
  for_cases({{0, 3, 4},
             {1, 1, 1},
             {1, 64, 3},
             {3, 2, 5},
             {5, 7, 16},
             {9, 31, 32},
             {17, 32, 33},
             {10, 33, 64},
             {8, 65, 31},
             {4, 88, 150},
             {3, 130, 70},
             {1100, 3, 2}},
            cases, [&](const Case& c, auto zero) { check<decltype(zero)>(c, cases.index(), cases.orders); });
  return cases.finish();
}
