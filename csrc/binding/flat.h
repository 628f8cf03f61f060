// Operators as functions of single arguments, as torch registers and calls them, from structs of arguments.
//
// A struct `Call` has a type `Result` and a function `unpack(f)`, which calls f with all arguments in the
// order of the operator's schema. Being an aggregate, it can be made of the same arguments.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <optional>
#include <type_traits>
#include <utility>

namespace rnnkernels::binding {

namespace detail {

// The type of an operator's parameter, for an argument of type T.
template <class T>
using Parameter =
    std::conditional_t<std::is_same_v<T, at::Tensor> || std::is_same_v<T, std::optional<at::Tensor>>,
                       const T&, T>;

template <class Call, class... T>
struct Flat {
  using Signature = typename Call::Result(Parameter<T>...);
  // With one more optional tensor in front.
  using PrefixedSignature = typename Call::Result(const std::optional<at::Tensor>&, Parameter<T>...);

  template <auto implementation>
  static typename Call::Result run(Parameter<T>... arguments) {
    return implementation(Call{arguments...});
  }
};

template <class Call>
using FlatOf = decltype(std::declval<const Call&>().unpack(
    [](const auto&... arguments) { return Flat<Call, std::decay_t<decltype(arguments)>...>(); }));

template <class Result, class Call>
Call call_type(Result (*)(const Call&));
template <class Result, class Call>
Call call_type(Result (*)(Call));

}  // namespace detail

// The signature of the operator whose arguments are a Call.
template <class Call>
using Signature = typename detail::FlatOf<Call>::Signature;

// The signature of an operator that takes a Call's arguments after one more optional tensor.
template <class Call>
using PrefixedSignature = typename detail::FlatOf<Call>::PrefixedSignature;

// A function of a Call, by value or by reference, as a function of its arguments.
template <auto implementation>
constexpr auto* flat() {
  using Call = decltype(detail::call_type(implementation));
  return &detail::FlatOf<Call>::template run<implementation>;
}

}  // namespace rnnkernels::binding
