// The product without torch: every instruction set that runs here, over sizes, strides and numbers of
// threads, against a plain loop in double. Operands and result have exactly the memory that the kernel may
// touch, so the address sanitizer finds an access out of bounds. Gaps between the rows of the result must not
// change.
#include <cmath>
#include <limits>
#include <random>
#include <tuple>
#include <utility>

#include "core/product.h"
#include "cpu/kernels.h"
#include "native.h"

using namespace rnnkernels;

namespace {

// The strides of a matrix.
enum Strides { kPlain, kTransposed, kSparse, kSameRow, kSameColumn, kStridesCount };
const char* const kStridesNames[] = {"plain", "transposed", "sparse", "same row", "same column"};

// The addend of the product: nothing, the result itself, or rows that all networks have in common.
enum Addend { kNothing, kResult, kRows, kAddends };
const char* const kAddendNames[] = {"", " + itself", " + rows"};

struct Case {
  ElementType type;
  int64_t networks, rows, depth, columns;
  Strides left, right;
  bool with_bias;
  Addend addend;
  int64_t gap;  // between rows of the result

  std::string text() const {
    char line[200];
    std::snprintf(line, sizeof(line), "float%d G%ld m%ld k%ld n%ld, left %s, right %s%s%s",
                  type == ElementType::kFloat32 ? 32 : 64, long(networks), long(rows), long(depth),
                  long(columns), kStridesNames[left], kStridesNames[right], with_bias ? " bias" : "",
                  kAddendNames[addend]);
    return line;
  }
};

template <class T>
struct Operand {
  std::vector<T> values;
  Matrix matrix;
  double at(int64_t g, int64_t row, int64_t column) const {
    return values[g * matrix.network_stride + row * matrix.row_stride + column * matrix.column_stride];
  }
};

template <class T>
std::vector<T> draw(std::mt19937& random, int64_t n) {
  std::normal_distribution<double> normal;
  std::vector<T> values(n);
  for (T& x : values) x = static_cast<T>(normal(random));
  return values;
}

template <class T>
Operand<T> make_operand(std::mt19937& random, int64_t networks, int64_t rows, int64_t columns,
                        Strides strides) {
  Operand<T> operand;
  Matrix& m = operand.matrix;
  switch (strides) {
    case kPlain:
      m.row_stride = columns, m.column_stride = 1;
      break;
    case kTransposed:
      m.row_stride = 1, m.column_stride = rows;
      break;
    case kSparse:
      m.row_stride = 3 * columns + 1, m.column_stride = 3;
      break;
    case kSameRow:
      m.row_stride = 0, m.column_stride = 1;
      break;
    default:
      m.row_stride = 1, m.column_stride = 0;
      break;
  }
  // The matrix ends with its last element.
  const bool any = networks > 0 && rows > 0 && columns > 0;
  const int64_t one = any ? (rows - 1) * m.row_stride + (columns - 1) * m.column_stride + 1 : 0;
  m.network_stride = one;
  operand.values = draw<T>(random, networks * one);
  m.data = operand.values.data();
  return operand;
}

template <class T>
void check(const Case& c, unsigned seed) {
  std::mt19937 random(seed);
  const Operand<T> left = make_operand<T>(random, c.networks, c.rows, c.depth, c.left);
  const Operand<T> right = make_operand<T>(random, c.networks, c.depth, c.columns, c.right);
  const std::vector<T> bias = draw<T>(random, c.networks * c.columns);
  const int64_t row_stride = c.columns + c.gap, one = (c.rows - 1) * row_stride + c.columns;
  const std::vector<T> before = draw<T>(random, c.networks * one);
  const std::vector<T> rows = draw<T>(random, c.rows * c.columns);

  // The bound of a sum's error is a few roundings of the sum of its terms' magnitudes.
  std::vector<double> expected(before.begin(), before.end()), bound(before.size(), 0);
  const double rounding = std::numeric_limits<T>::epsilon() * (2 + 0.5 * c.depth);
  for (int64_t g = 0; g < c.networks; ++g) {
    for (int64_t m = 0; m < c.rows; ++m) {
      for (int64_t n = 0; n < c.columns; ++n) {
        const int64_t i = g * one + m * row_stride + n;
        double sum = 0, magnitude = 0;
        const auto add = [&](double x) { sum += x, magnitude += std::abs(x); };
        if (c.addend == kResult) add(before[i]);
        if (c.addend == kRows) add(rows[m * c.columns + n]);
        if (c.with_bias) add(bias[g * c.columns + n]);
        for (int64_t k = 0; k < c.depth; ++k) add(left.at(g, m, k) * right.at(g, k, n));
        expected[i] = sum;
        bound[i] = rounding * magnitude;
      }
    }
  }

  int sets = 0;
  const auto* set = cpu::instruction_sets(&sets);
  for (int s = 0; s < sets; ++s) {
    if (!set[s].runs_here()) continue;
    std::vector<T> first;
    for (const auto& [promised, real] : {std::pair{1, 1}, {2, 2}, {3, 3}, {7, 2}, {5, 1}}) {
      real_threads = real;
      std::vector<T> out = before;
      Product product;
      product.type = c.type;
      product.networks = c.networks;
      product.rows = c.rows;
      product.depth = c.depth;
      product.columns = c.columns;
      product.left = left.matrix;
      product.right = right.matrix;
      if (c.with_bias) product.bias = {const_cast<T*>(bias.data()), c.columns, 0};
      product.out = {out.data(), one, row_stride};
      if (c.addend == kResult) product.addend = product.out;
      if (c.addend == kRows) product.addend = {const_cast<T*>(rows.data()), 0, c.columns};
      const cpu::Threads threads{promised, true, &run_threads, 256 * 1024};
      const cpu::ProductPlan plan = cpu::make_product_plan(c.networks, c.rows, c.depth, c.columns, threads);
      with_memory(set[s].kernels->product_workspace(product, plan),
                  [&](void* memory) { set[s].kernels->product(product, plan, threads, memory); });

      const std::string where = c.text() + " on " + set[s].name + ", " + std::to_string(promised) +
                                " threads promised, " + std::to_string(real) + " running: ";
      if (promised == 1) {
        first = out;
        bool within_bounds = true;
        for (size_t i = 0; i < out.size(); ++i) {
          within_bounds = within_bounds && std::abs(out[i] - expected[i]) <= bound[i];
        }
        expect(within_bounds, where + "the plain loop's values, and unchanged gaps between the rows");
      } else {
        expect(out == first, where + "same bits as one thread");
      }
    }
  }
}

}  // namespace

// test_product [n]: runs every n-th case only (a sanitizer makes them slow).
int main(int argc, char** argv) {
  Cases cases(argc, argv);
  for (const auto& [networks, rows, depth, columns] :
       {std::tuple<int64_t, int64_t, int64_t, int64_t>{1, 1, 1, 1},
        {1, 3, 0, 5},
        {2, 2, 7, 3},
        {1, 6, 16, 16},
        {1, 7, 17, 15},
        {3, 5, 31, 33},
        {1, 61, 70, 66},
        {1, 13, 255, 20},
        {2, 14, 256, 65},
        {1, 25, 257, 130},
        {1, 1, 1000, 37},
        {1, 300, 5, 300},
        {1, 40, 515, 259}}) {
    for (int added = 0; added < 2 * kAddends; ++added) {
      for (int strides = 0; strides < kStridesCount * kStridesCount; ++strides) {
        for (const ElementType type : {ElementType::kFloat32, ElementType::kFloat64}) {
          if (!cases.takes_next()) continue;
          const Case c{type,
                       networks,
                       rows,
                       depth,
                       columns,
                       Strides(strides % kStridesCount),
                       Strides(strides / kStridesCount),
                       added % 2 != 0,
                       Addend(added / 2),
                       strides % 3};
          if (type == ElementType::kFloat32) {
            check<float>(c, cases.index());
          } else {
            check<double>(c, cases.index());
          }
        }
      }
    }
  }
  return cases.finish();
}
