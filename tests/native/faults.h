// The parts that the tests of the emulated GPU use: whether a kernel ends in a fault, and in which one.
#pragma once

#include <functional>
#include <string>

#include "cuda/device.h"
#include "cuda/emulation.h"
#include "native.h"

using namespace rnnkernels;
using namespace rnnkernels::device;
using emulation::Launch;

namespace {

// The name of the fault that a kernel ends in, or "none".
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

// Expects no fault in any order of the threads.
void expect_right(const char* name, Launch launch, const std::function<void()>& kernel) {
  for (int seed = 0; seed < kSeeds; ++seed) {
    launch.seed = seed;
    std::string text;
    const std::string found = fault(launch, kernel, &text);
    expect(found == "none", std::string(name) + ": " + text);
  }
}

// Expects the fault `expected` in every order of the threads.
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
