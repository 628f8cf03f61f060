// The cells of core/cells.h with f chosen as the kernel runs, so that a kernel is compiled once for all f
// that keep the same for backward. All threads choose alike, once for each number of a step.
//
//   AnyRate<kBinary>   f' is 0 or 1: keeps bits      AnyRate<kSmooth>   keeps f(z)      AnyCurrent   nothing
#pragma once

#include <type_traits>

#include "core/cells.h"

namespace rnnkernels::cuda {

enum class Slopes { kBinary, kSmooth, kAny };  // of the f that a cell may have

template <class F, Slopes kSlopes>
constexpr bool kHasSlope = kSlopes == Slopes::kAny || (kSlopes == Slopes::kBinary) == F::kBinarySlope;

// Calls fn(F{}) with row `index` of the list, one of those with such a slope. If there is but one, no
// question is asked.
template <Slopes kSlopes, class Fn, class... F>
RNNKERNELS_INLINE void visit(NonlinearityIndex index, NonlinearityList<F...>, const Fn& fn) {
  constexpr bool kOnlyOne = (int{kHasSlope<F, kSlopes>} + ...) == 1;
  int row = 0;
  const auto try_row = [&](auto f) {
    const bool found = row++ == index;
    if constexpr (kHasSlope<decltype(f), kSlopes>) {
      if (kOnlyOne || found) fn(f);
    }
    return !kOnlyOne && found;
  };
  (void)(try_row(F{}) || ...);
}

template <template <class> class CellOf, Slopes kSlopes>
class AnyCell {
  // What all of them have in common.
  using One = CellOf<std::conditional_t<kSlopes == Slopes::kSmooth, Tanh, Relu>>;

 public:
  static constexpr bool kKeepsBits = One::kKeepsBits;
  static constexpr bool kKeepsActivation = One::kKeepsActivation;
  static constexpr bool kReadsPrevious = One::kReadsPrevious;

  RNNKERNELS_INLINE explicit AnyCell(NonlinearityIndex index) : index_(index) {}

  template <class V>
  RNNKERNELS_INLINE V operand(V h) const {
    return with([&](auto cell) { return cell.operand(h); }, h);
  }
  template <class V>
  RNNKERNELS_INLINE V update(V h, V p, V product, V d, V& a) const {
    a = V{};
    return with([&](auto cell) { return cell.update(h, p, product, d, a); }, h);
  }
  template <class V>
  RNNKERNELS_INLINE V slope(V a) const {
    return with([&](auto cell) { return decltype(cell)::Nonlinearity::slope(a); }, a);
  }
  template <class V>
  RNNKERNELS_INLINE V backward_operand(V delta, V d, V slope) const {
    return with([&](auto cell) { return cell.backward_operand(delta, d, slope); }, delta);
  }
  template <class V>
  RNNKERNELS_INLINE V backward_update(V delta, V product, V d, V previous) const {
    return with([&](auto cell) { return cell.backward_update(delta, product, d, previous); }, delta);
  }

 private:
  NonlinearityIndex index_;

  template <class Fn, class V>
  RNNKERNELS_INLINE V with(const Fn& fn, V result) const {
    visit<kSlopes>(index_, Nonlinearities{}, [&](auto f) { result = fn(CellOf<decltype(f)>{}); });
    return result;
  }
};

template <Slopes kSlopes>
using AnyRate = AnyCell<RateCell, kSlopes>;
using AnyCurrent = AnyCell<CurrentCell, Slopes::kAny>;

// Calls fn(null, of the type of the cell) for the form and row of the list.
template <class Fn>
void with_any_cell(NonlinearityIndex nonlinearity, Form form, const Fn& fn) {
  with_cell(nonlinearity, form, Nonlinearities{}, [&](auto cell) {
    constexpr bool kBinary = decltype(cell)::Nonlinearity::kBinarySlope;
    if (form == Form::kCurrent) return fn(static_cast<AnyCurrent*>(nullptr));
    return fn(static_cast<AnyRate<kBinary ? Slopes::kBinary : Slopes::kSmooth>*>(nullptr));
  });
}

}  // namespace rnnkernels::cuda
