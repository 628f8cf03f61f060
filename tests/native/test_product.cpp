// The product without torch: every instruction set that runs here, over sizes, strides and numbers of
// threads, against a plain loop in double. Operands and result lie in memory of exactly the right size, so
// the address sanitizer sees a step too far; the gaps between rows of the result must stay as they were.
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

// How the numbers of a matrix lie.
enum Lay { kPlain, kTransposed, kSparse, kSameRow, kSameColumn, kLays };
const char* const kLayNames[] = {"plain", "transposed", "sparse", "same row", "same column"};

// What is added to the product: nothing, what is in the result, or rows that all networks share.
enum Addend { kNothing, kResult, kRows, kAddends };
const char* const kAddendNames[] = {"", " + itself", " + rows"};

struct Case {
  ElementType type;
  int64_t networks, rows, depth, columns;
  Lay left, right;
  bool with_bias;
  Addend addend;
  int64_t gap;  // between rows of the result

  std::string text() const {
    char line[200];
    std::snprintf(line, sizeof(line), "float%d G%ld m%ld k%ld n%ld, left %s, right %s%s%s",
                  type == ElementType::kFloat32 ? 32 : 64, long(networks), long(rows), long(depth),
                  long(columns), kLayNames[left], kLayNames[right], with_bias ? " bias" : "",
                  kAddendNames[addend]);
    return line;
  }
};

template <class T>
struct Operand {
  std::vector<T> numbers;
  Matrix matrix;
  double at(int64_t g, int64_t row, int64_t column) const {
    return numbers[g * matrix.network_stride + row * matrix.row_stride + column * matrix.column_stride];
  }
};

template <class T>
std::vector<T> draw(std::mt19937& random, int64_t n) {
  std::normal_distribution<double> normal;
  std::vector<T> numbers(n);
  for (T& x : numbers) x = static_cast<T>(normal(random));
  return numbers;
}

template <class T>
Operand<T> make_operand(std::mt19937& random, int64_t networks, int64_t rows, int64_t columns, Lay lay) {
  Operand<T> operand;
  Matrix& m = operand.matrix;
  switch (lay) {
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
  // Up to the last number and no further.
  const bool any = networks > 0 && rows > 0 && columns > 0;
  const int64_t one = any ? (rows - 1) * m.row_stride + (columns - 1) * m.column_stride + 1 : 0;
  m.network_stride = one;
  operand.numbers = draw<T>(random, networks * one);
  m.data = operand.numbers.data();
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

  // The error of a sum is some roundings of the sum of its terms' magnitudes.
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
                                " threads (" + std::to_string(real) + " came): ";
      if (promised == 1) {
        first = out;
        bool right_numbers = true;
        for (size_t i = 0; i < out.size(); ++i) {
          right_numbers = right_numbers && std::abs(out[i] - expected[i]) <= bound[i];
        }
        expect(right_numbers, where + "the plain loop's numbers, and nothing between the rows");
      } else {
        expect(out == first, where + "same bits as one thread");
      }
    }
  }
}

}  // namespace

// test_product [n]: every n-th case only (a sanitizer makes them slow).
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
      for (int lay = 0; lay < kLays * kLays; ++lay) {
        for (const ElementType type : {ElementType::kFloat32, ElementType::kFloat64}) {
          if (!cases.takes_next()) continue;
          const Case c{
              type,           networks,          rows,   depth, columns, Lay(lay % kLays), Lay(lay / kLays),
              added % 2 != 0, Addend(added / 2), lay % 3};
          if (type == ElementType::kFloat32) {
            check<float>(c, cases.number());
          } else {
            check<double>(c, cases.number());
          }
        }
      }
    }
  }
  return cases.finish();
}
