// Helpers of the emulated GPU's own tests: run a kernel and compare its fault with the expected one.
#pragma once

#include <functional>
#include <string>

#include "cuda/device.h"
#include "emulation/emulation.h"
#include "native.h"

using namespace rnnkernels;
using namespace rnnkernels::device;
using emulation::Launch;

namespace {

// The name of the fault that a kernel raises, or "none".
std::string fault(const Launch& launch, const std::function<void()>& kernel, std::string* text = nullptr) {
  try {
    emulation::run(launch, kernel);
  } catch (const emulation::Fault& fault) {
    if (text) *text = fault.what();
    return fault.name;
  }
  return "none";
}

constexpr int kSeeds = 20;

// A correct kernel raises no fault, in any order of its threads.
void expect_right(const char* name, Launch launch, const std::function<void()>& kernel) {
  for (int seed = 0; seed < kSeeds; ++seed) {
    launch.seed = seed;
    std::string text;
    const std::string found = fault(launch, kernel, &text);
    expect(found == "none", std::string(name) + ": " + text);
  }
}

// A wrong kernel raises the fault `expected` in every order, whether or not the order would change its
// result.
void expect_fault(const char* name, const char* expected, Launch launch,
                  const std::function<void()>& kernel) {
  for (int seed = 0; seed < kSeeds; ++seed) {
    launch.seed = seed;
    std::string text;
    const std::string found = fault(launch, kernel, &text);
    expect(found == expected, std::string(name) + ": expected " + expected + ", got " + found + ", " + text);
  }
}

}  // namespace
