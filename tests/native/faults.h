// What the tests of the emulated GPU share: whether a kernel ends in a fault, and in which.
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

// A kernel is right under every order of its threads.
void expect_right(const char* what, Launch launch, const std::function<void()>& kernel) {
  for (int seed = 0; seed < kSeeds; ++seed) {
    launch.seed = seed;
    std::string text;
    const std::string found = fault(launch, kernel, &text);
    expect(found == "none", std::string(what) + ": " + text);
  }
}

// And a wrong one is caught under every order, whatever it would have computed.
void expect_fault(const char* what, const char* name, Launch launch, const std::function<void()>& kernel) {
  for (int seed = 0; seed < kSeeds; ++seed) {
    launch.seed = seed;
    std::string text;
    const std::string found = fault(launch, kernel, &text);
    expect(found == name, std::string(what) + ": expected " + name + ", got " + found + ", " + text);
  }
}

}  // namespace
