/*
 * Where a C++ exception goes that is thrown below a slot. Apple's runtime lets the shim's `@catch (...)` have it. GNU's
 * catches what Objective-C throws and nothing else, so there it passes through the shim: to a C++ caller, as here, or, as
 * nobody catches it, to the end of the process. A program of its own, for a slot that was passed through is not left.
 */
#include <cstdint>
#include <cstdio>

#include "coreml_bridge.h"

extern "C" {
static void throws(void *, void *, const CmlTensorDesc *) { throw 42; }
}

int main() {
  const CmlBridge *bridge = cml_bridge_coreml();
  const int64_t shape[1] = {2};
  CmlTensorDesc desc = {};
  desc.size = sizeof desc;
  desc.dtype = CML_DTYPE_FLOAT32;
  desc.rank = 1;
  desc.shape = shape;
  CmlValue *value = nullptr;
  CmlError *error = nullptr;
  if (bridge->tensor_new(bridge->self, &desc, &value, &error) != CML_OK) return 2;
  try {
    const CmlStatus status = bridge->tensor_with_bytes(value, 0, throws, nullptr, &error);
    std::puts(status == CML_FOREIGN_EXCEPTION ? "the shim has caught it" : "the shim has swallowed it");
  } catch (int) {
    std::puts("it has passed through the shim");
  }
  return 0;
}
