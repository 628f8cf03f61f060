// rnnkernels::projected_recurrence called from Python without torch.ops. torch.ops reads arguments by the
// operator's schema, which takes longer than one step of a small network. Calls that need anything of Python
// are left to it: transforms, modes, subclasses of Tensor, other devices and dtypes, and wrong types.
#include "binding/direct.h"

#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/autocast_mode.h>
#include <ATen/ops/add.h>
#include <ATen/ops/scalar_tensor.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>

#include "binding/autograd.h"
#include "binding/recurrence.h"

namespace rnnkernels::binding {

namespace {

// A tensor or None; false if it is anything else.
bool unpack(PyObject* object, OptionalTensor* tensor) {
  if (object == Py_None) return true;
  if (!THPVariable_CheckExact(object)) return false;
  *tensor = THPVariable_Unpack(object);
  return true;
}

bool unpack(PyObject* object, at::Tensor* tensor) {
  if (!THPVariable_CheckExact(object)) return false;
  *tensor = THPVariable_Unpack(object);
  return true;
}

bool unpack(PyObject* object, std::string* text) {
  if (!PyUnicode_CheckExact(object)) return false;
  Py_ssize_t size = 0;
  const char* data = PyUnicode_AsUTF8AndSize(object, &size);
  if (data == nullptr) throw python_error();
  text->assign(data, size);
  return true;
}

bool unpack(PyObject* object, bool* flag) {
  *flag = object == Py_True;
  return PyBool_Check(object);
}

// The arguments as Python has them.
struct Arguments {
  ProjectedCall call;
  OptionalTensor other_bias;  // added to the bias of the call
  double decay = 0;           // where the call has no tensor

  // In the order of ProjectedTensors and RecurrenceSpec (rnnkernels/_ops/spec.py). The bias may be a pair, and
  // the decay a number.
  static constexpr Py_ssize_t kCount = 11;
  bool read(PyObject* const* args) {
    return unpack(args[0], &call.input) && unpack(args[1], &call.h0) && unpack(args[2], &call.weight_ih) &&
           unpack(args[3], &call.weight_hh) && read_bias(args[4]) && unpack(args[5], &call.drive) &&
           read_decay(args[6]) && unpack(args[7], &call.batch_sizes) &&
           unpack(args[8], &call.spec.nonlinearity) && unpack(args[9], &call.spec.form) &&
           unpack(args[10], &call.spec.reverse);
  }

  bool read_bias(PyObject* bias) {
    if (!PyTuple_CheckExact(bias) || PyTuple_GET_SIZE(bias) != 2) return unpack(bias, &call.bias);
    return unpack(PyTuple_GET_ITEM(bias, 0), &call.bias) && unpack(PyTuple_GET_ITEM(bias, 1), &other_bias) &&
           call.bias && other_bias;
  }

  bool read_decay(PyObject* number) {
    if (!PyFloat_CheckExact(number)) return unpack(number, &call.decay);
    decay = PyFloat_AS_DOUBLE(number);
    return decay >= 0 && decay < 1;
  }

  template <class F>
  bool any_tensor(F&& holds) const {
    const auto holds_if = [&](const OptionalTensor& tensor) { return tensor && holds(*tensor); };
    return holds(call.input) || holds_if(call.h0) || holds(call.weight_ih) || holds(call.weight_hh) ||
           holds_if(call.bias) || holds_if(other_bias) || holds_if(call.drive) ||
           (call.decay.defined() && holds(call.decay));
  }
};

// Whether torch's state or that of the tensors needs the entry points in Python.
bool needs_python(const Arguments& arguments) {
  using c10::DispatchKey;
  const at::Tensor& input = arguments.call.input;
  const bool computed = input.scalar_type() == at::kFloat || input.scalar_type() == at::kDouble;
  return !input.is_cpu() || !computed || (arguments.call.batch_sizes && !arguments.call.h0) ||
         at::impl::torch_function_mode_enabled() || c10::impl::dispatch_mode_enabled() ||
         c10::impl::tls_is_dispatch_key_included(DispatchKey::FuncTorchDynamicLayerFrontMode) ||
         c10::impl::tls_is_dispatch_key_included(DispatchKey::Tracer) ||
         at::autocast::is_autocast_enabled(at::kCPU) || arguments.any_tensor(has_tangent);
}

ForwardResult run(Arguments& arguments) {
  ProjectedCall& call = arguments.call;
  if (arguments.other_bias) call.bias = at::add(*call.bias, *arguments.other_bias);
  if (!call.decay.defined()) call.decay = at::scalar_tensor(arguments.decay, call.input.options());
  call.save = kSaveNothing;  // more if autograd records the call
  static const auto op = find_operator<Signature<ProjectedCall>>(ProjectedCall::kOperator);
  return call.unpack([&](const auto&... flat) { return op.call(flat...); });
}

PyObject* projected_recurrence_directly(PyObject* /*module*/, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  Arguments arguments;
  if (count != Arguments::kCount) {
    PyErr_Format(PyExc_TypeError, "projected_recurrence takes %zd arguments, got %zd", Arguments::kCount,
                 count);
    return nullptr;
  }
  if (!arguments.read(args) || needs_python(arguments)) Py_RETURN_NONE;
  ForwardResult result;
  {
    const pybind11::gil_scoped_release released;
    result = run(arguments);
  }
  const auto& [output, h_n, saved] = result;
  PyObject* pair = PyTuple_New(2);
  if (pair == nullptr) throw python_error();
  PyTuple_SET_ITEM(pair, 0, THPVariable_Wrap(output));
  PyTuple_SET_ITEM(pair, 1, THPVariable_Wrap(h_n));
  return pair;
  END_HANDLE_TH_ERRORS
}

}  // namespace

void add_direct_functions(PyObject* module) {
  static PyMethodDef functions[] = {
      {"projected_recurrence",
       reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&projected_recurrence_directly)),
       METH_FASTCALL,
       "torch.ops.rnnkernels.projected_recurrence for the fields of a ProjectedTensors and a RecurrenceSpec, "
       "where the bias may be a pair and the decay a number. Returns (output, h_n), or None if the call "
       "needs "
       "the entry points in Python."},
      {nullptr, nullptr, 0, nullptr}};
  if (PyModule_AddFunctions(module, functions) != 0) throw python_error();
}

}  // namespace rnnkernels::binding
