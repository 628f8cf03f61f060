// The GPU's engine for a team of one block, on the emulated GPU: all directions, forms and layouts against
// plain loops, under several orders of its threads each.
#include <cstdlib>

#include "cuda/block_engine.h"
#include "cuda/emulation.h"
#include "native.h"
#include "recurrences.h"

using namespace rnnkernels;

namespace {

// As a GPU would be asked: a block for 8 rows of a network, a warp for kTiles tiles of units.
template <class Sweep, class Factors, int kTiles, int kSlices, class Problem>
void launch(const Problem& problem, uint64_t seed) {
  const int64_t hidden = problem.hidden;
  const int64_t groups = (problem.layout.batch + cuda::kTeamRows - 1) / cuda::kTeamRows;
  const int64_t tiles = (hidden + cuda::kTileUnits - 1) / cuda::kTileUnits;
  emulation::Launch launch;
  launch.blocks = static_cast<int>(problem.networks * groups);
  launch.threads = static_cast<int>((tiles + kTiles - 1) / kTiles) * device::kWarpLanes;
  launch.shared_bytes = cuda::shared_bytes<Factors>(hidden);
  launch.seed = seed;
  if (launch.blocks == 0) return;
  emulation::run(launch, [&] {
    Sweep sweep(problem);
    const int block = device::place().block;
    sweep.network = block / groups;
    cuda::BlockEngine<Sweep, Factors, kTiles, kSlices>(sweep, block % groups * cuda::kTeamRows).run();
  });
}

template <class S>
struct FactorsOf {
  using type = cuda::FloatFactors;
};
template <>
struct FactorsOf<BFloat16> {
  using type = cuda::BFloat16Factors;
};

constexpr int64_t kMostHidden = 64;

template <class S, int kTiles>
Results<S> run_engine(const Case& c, const Data<S>& data, uint64_t seed) {
  using Factors = typename FactorsOf<S>::type;
  constexpr int kSlices = kMostHidden / Factors::kDepth;
  Results<S> r = empty_results(c, data);
  with_cell(c.nonlinearity, c.form, Nonlinearities{}, [&](auto cell) {
    using Cell = decltype(cell);
    launch<cuda::ForwardSweep<S, Cell>, Factors, kTiles, kSlices>(forward_problem(c, data, r), seed);
    launch<cuda::BackwardSweep<S, Cell>, Factors, kTiles, kSlices>(backward_problem(c, data, r), seed + 1);
  });
  launch<cuda::LinearSweep<S>, Factors, kTiles, kSlices>(linear_problem(c, data, r), seed + 2);
  return r;
}

template <class S>
void check(const Case& c, unsigned seed, int orders) {
  const Data<S> data = make_data<S>(c, seed);
  const Expected<S> expected(c, data, sizeof(S) == 2 ? 1 : 0.1);
  Results<S> first;
  for (int order = 0; order < orders; ++order) {
    const std::string where = c.text() + ", order " + std::to_string(order) + ": ";
    try {
      const Results<S> r =
          order % 2 ? run_engine<S, 2>(c, data, 3 * order) : run_engine<S, 1>(c, data, 3 * order);
      if (order == 0) {
        first = r;
        expected.check(r, where);
      } else {
        expect(same_bits(r, first), where + "the same bits as in the first");
      }
    } catch (const emulation::Fault& fault) {
      expect(false, where + fault.what());
    }
  }
}

}  // namespace

// test_block_engine [n [orders]]: every n-th case only, each in so many orders.
int main(int argc, char** argv) {
  const int each = argc > 1 ? std::max(1, std::atoi(argv[1])) : 1;
  const int orders = argc > 2 ? std::max(1, std::atoi(argv[2])) : 4;
  int drawn = 0, cases = 0;
  for_cases({{1, 0, 3, 5},
             {1, 3, 0, 5},
             {1, 1, 1, 1},
             {1, 4, 3, 7},
             {2, 3, 9, 16},
             {1, 4, 8, 33},
             {2, 3, 11, 50},
             {1, 3, 17, 64}},
            {ElementType::kFloat32, ElementType::kBFloat16, ElementType::kFloat16}, [&](const Case& c) {
              if (++drawn % each != 0) return;
              ++cases;
              if (c.type == ElementType::kFloat32) {
                check<float>(c, drawn, orders);
              } else if (c.type == ElementType::kBFloat16) {
                check<BFloat16>(c, drawn, orders);
              } else {
                check<Float16>(c, drawn, orders);
              }
            });
  std::printf("%d cases, %d failures\n", cases, failures);
  return failures != 0 || cases == 0;
}
