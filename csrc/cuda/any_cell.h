// The cells of core/cells.h with f selected at run time, so that a kernel is compiled once for all f that
// save the same values for the backward pass. All threads select the same f, once per state and step.
//
//   AnyRate<kBinary>   f' is 0 or 1: saves bits
//   AnyRate<kSmooth>   saves f(z)
//   AnyCurrent         saves nothing
#pragma once

#include <type_traits>

#include "core/cells.h"

namespace rnnkernels::cuda {

enum class Slopes { kBinary, kSmooth, kAny };  // the slopes of the f that a cell can have

template <class F, Slopes kSlopes>
constexpr bool kHasSlope = kSlopes == Slopes::kAny || (kSlopes == Slopes::kBinary) == F::kBinarySlope;

// Calls fn(F{}) with entry `index` of the list, which must have such a slope. Compares no index if the list
// has only one.
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
  // A cell with the properties that all of them share.
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

// Calls fn(null pointer to the cell) for a form and an entry of the list.
template <class Fn>
void with_any_cell(NonlinearityIndex nonlinearity, Form form, const Fn& fn) {
  with_cell(nonlinearity, form, Nonlinearities{}, [&](auto cell) {
    constexpr bool kBinary = decltype(cell)::Nonlinearity::kBinarySlope;
    if (form == Form::kCurrent) return fn(static_cast<AnyCurrent*>(nullptr));
    return fn(static_cast<AnyRate<kBinary ? Slopes::kBinary : Slopes::kSmooth>*>(nullptr));
  });
}

}  // namespace rnnkernels::cuda
