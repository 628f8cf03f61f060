// Tests of the pointwise kernels of the recurrence with one product per step, and of the kernels that copy a
// layout, on the emulated GPU: all types, passes, forms and layouts against plain loops. A plain loop
// replaces the library's product.
#include <cstdlib>

#include "cuda/layout.h"
#include "cuda/steps.h"
#include "emulation/emulation.h"
#include "native.h"
#include "recurrences.h"

using namespace rnnkernels;

namespace {

// product [rows, H] = operand [rows, H] W^T for each network, or operand W.
template <class T>
void multiply(const Matrix& weight, int64_t networks, int64_t rows, int64_t hidden, bool backward,
              const T* operand, T* product) {
  for (int64_t i = 0; i < networks * rows; ++i) {
    const T* w = static_cast<const T*>(weight.data) + i / rows * weight.network_stride;
    for (int64_t unit = 0; unit < hidden; ++unit) {
      T sum = 0;
      for (int64_t k = 0; k < hidden; ++k) {
        sum += operand[i * hidden + k] * (backward ? w[k * hidden + unit] : w[unit * hidden + k]);
      }
      product[i * hidden + unit] = sum;
    }
  }
}

// Runs the time loop as the binding does. Memory that is not written stays NaN and must not reach a result.
template <class T, class Problem>
void run(Problem problem) {
  const Layout layout = problem.layout;
  std::vector<int64_t> table(cuda::layout_bytes(layout) / sizeof(int64_t), -1);
  expect(cuda::put_layout(layout, table.data(), &problem.layout, nullptr) == 0, "the layout is put");
  const int64_t n = problem.networks * layout.batch * problem.hidden;
  std::vector<T> operand(n, T(NAN)), product(n, T(NAN));
  std::vector<T> states(cuda::state_bytes(problem) / sizeof(T), T(NAN));
  for (int64_t i = 0; i <= layout.steps; ++i) {
    const cuda::PointwiseStep step = cuda::pointwise_step_at(problem, layout, i);
    if (step.updates) {
      multiply(problem.weight, problem.networks, step.from_rows, problem.hidden,
               std::is_same_v<Problem, BackwardProblem>, operand.data(), product.data());
    }
    const cuda::StepMemory memory{states.data(), product.data(), operand.data()};
    expect(cuda::run_pointwise_step(problem, step, memory, nullptr) == 0, "a pointwise step is launched");
  }
}

// The operands of all steps, computed in pieces that do not end with a step.
template <class S>
std::vector<S> operands(const Case& c, const Data<S>& data, BackwardProblem problem) {
  std::vector<S> all(data.pre.size());
  std::vector<int64_t> table(cuda::layout_bytes(problem.layout) / sizeof(int64_t));
  expect(cuda::put_layout(problem.layout, table.data(), &problem.layout, nullptr) == 0, "the layout is put");
  const int64_t H = c.hidden, some = data.total / 2 + 1;
  for (int64_t first = 0; first < data.total; first += some) {
    const int64_t rows = std::min(some, data.total - first);
    std::vector<S> piece(c.networks * rows * H);
    expect(cuda::put_operands(problem, first, rows, piece.data(), nullptr) == 0, "operands are launched");
    for (int64_t g = 0; g < c.networks; ++g) {
      std::copy_n(piece.begin() + g * rows * H, rows * H, all.begin() + (g * data.total + first) * H);
    }
  }
  return all;
}

template <class S>
void check_operands(const Case& c, const Data<S>& data, const Results<S>& r, const std::vector<S>& found,
                    const std::string& where) {
  std::vector<double> expected(found.size());
  for (int64_t g = 0; g < c.networks; ++g) {
    for (int64_t t = 0; t < c.steps; ++t) {
      const int64_t before = c.reverse ? t + 1 : t - 1;
      for (int64_t i = 0; i < data.rows[t] * c.hidden; ++i) {
        const int64_t row = i / c.hidden;
        double h = c.with_h0 ? widen(data.h0[g * c.batch * c.hidden + i]) : 0;
        if (before >= 0 && before < c.steps && row < data.rows[before]) {
          h = widen(r.output[(g * data.total + data.offsets[before]) * c.hidden + i]);
        }
        expected[(g * data.total + data.offsets[t]) * c.hidden + i] =
            c.form == Form::kRate ? h : value(c.nonlinearity, h);
      }
    }
  }
  constexpr double kEps[] = {2e-6, 1e-14, 8e-3, 1e-3};  // f in float32, then rounded once
  expect(difference(found, expected, 1) < kEps[int(c.type)], where + "operands");
}

template <class S>
void check(const Case& c, unsigned seed, int orders) {
  const Data<S> data = make_data<S>(c, seed);
  const Expected<S> expected(c, data, sizeof(S) == 2 ? 1 : 0.1);
  Results<S> first;
  for (int order = 0; order < orders; ++order) {
    const std::string where = c.text() + ", order " + std::to_string(order) + ": ";
    emulation::set_seed(3 * order);
    try {
      Results<S> r = empty_results(c, data);
      run<ComputeType<S>>(forward_problem(c, data, r));
      run<ComputeType<S>>(backward_problem(c, data, r));
      run<ComputeType<S>>(linear_problem(c, data, r));
      if (order == 0) {
        first = r;
        expected.check(r, where);
        check_operands(c, data, r, operands(c, data, backward_problem(c, data, r)), where);
      } else {
        expect(same_bits(r, first), where + "the same bits as in the first order");
      }
    } catch (const emulation::Fault& fault) {
      expect(false, where + fault.what());
    }
  }
}

void check_layouts() {
  for (const int64_t steps : {1, 223, 224, 225, 1000}) {
    std::vector<int64_t> rows(steps), offsets(steps), memory(2 * steps, -1);
    for (int64_t t = 0; t < steps; ++t) {
      rows[t] = (int64_t{1} << 40) - t;
      offsets[t] = t == 0 ? 0 : offsets[t - 1] + rows[t - 1];
    }
    Layout layout, device;
    layout.steps = steps;
    layout.batch = rows[0];
    layout.reverse = true;
    layout.rows = rows.data();
    layout.offsets = offsets.data();
    const std::string what = "a layout of " + std::to_string(steps) + " steps: ";
    expect(cuda::layout_bytes(layout) == int64_t(memory.size() * sizeof(int64_t)), what + "its bytes");
    expect(cuda::put_layout(layout, memory.data(), &device, nullptr) == 0, what + "is launched");
    expect(device.steps == steps && device.batch == rows[0] && device.reverse, what + "its sizes");
    expect(std::equal(rows.begin(), rows.end(), device.rows), what + "its rows");
    expect(std::equal(offsets.begin(), offsets.end(), device.offsets), what + "its offsets");
  }
}

}  // namespace

// test_gpu_steps [n [orders]]: runs every n-th case, each in the given number of orders.
int main(int argc, char** argv) {
  Cases cases(argc, argv);
  check_layouts();
  const std::vector<std::array<int64_t, 4>> shapes = {
      // G, T, B, H
      {1, 0, 3, 5}, {1, 3, 0, 5}, {1, 1, 1, 1}, {1, 4, 3, 7}, {2, 3, 9, 32}, {1, 5, 4, 33}, {2, 4, 5, 70}};
  for_cases(
      shapes, {ElementType::kFloat32, ElementType::kFloat64, ElementType::kBFloat16, ElementType::kFloat16},
      [&](const Case& c) {
        if (!cases.takes_next()) return;
        with_element(c.type, [&](auto element) { check<decltype(element)>(c, cases.index(), cases.orders); });
      });
  return cases.finish();
}
