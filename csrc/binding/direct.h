// Functions of the module _C that call operators without torch.ops.
#pragma once

struct _object;  // PyObject

namespace rnnkernels::binding {

void add_direct_functions(_object* module);

}  // namespace rnnkernels::binding
