#include "ffi.h"

#include <memory>
#include <utility>

#include "error.h"

namespace qc::ffi {
namespace {

TVMFFIAny none() {
  TVMFFIAny any;
  any.type_index = kTVMFFINone;
  any.zero_padding = 0;
  any.v_int64 = 0;
  return any;
}

/// Fail with the first line of what TVM says.
[[noreturn]] void refuse() {
  TVMFFIObjectHandle raised = nullptr;
  TVMFFIErrorMoveFromRaised(&raised);
  const Object error(raised);
  std::string message = "no reason was given";
  if (error) {
    const TVMFFIByteArray said = TVMFFIErrorGetCellPtr(error.handle())->message;
    message.assign(said.data, said.size);
  }
  const size_t begin = message.find_first_not_of(" \n");
  message = begin == std::string::npos ? "no reason was given" : message.substr(begin);
  fail("TVM's runtime failed: " + message.substr(0, message.find('\n')));
}

void check(int status) {
  if (status != 0) refuse();
}

TVMFFIAny call_any(const Object& function, const TVMFFIAny* arguments, size_t count) {
  TVMFFIAny result = none();
  // The interface takes arguments that could be written to; it says that they are not.
  check(TVMFFIFunctionCall(function.handle(), const_cast<TVMFFIAny*>(arguments),
                           static_cast<int32_t>(count), &result));
  return result;
}

/// What DLPack passes on: the tensor, and how it is given back.
struct Managed {
  DLManagedTensor tensor{};
  std::vector<int64_t> shape;
  std::vector<int64_t> strides;
};

}  // namespace

Object::Object(Object&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}

Object& Object::operator=(Object&& other) noexcept {
  std::swap(handle_, other.handle_);
  return *this;
}

Object::~Object() {
  if (handle_ != nullptr) TVMFFIObjectDecRef(handle_);
}

TVMFFIAny Object::argument() const {
  TVMFFIAny any = none();
  if (handle_ == nullptr) return any;
  any.type_index = TVMFFIObjectGetTypeIndex(handle_);
  any.v_obj = static_cast<TVMFFIObject*>(handle_);
  return any;
}

TVMFFIAny number(int64_t value) {
  TVMFFIAny any = none();
  any.type_index = kTVMFFIInt;
  any.v_int64 = value;
  return any;
}

TVMFFIAny boolean(bool value) {
  TVMFFIAny any = number(value ? 1 : 0);
  any.type_index = kTVMFFIBool;
  return any;
}

TVMFFIAny pointer(void* value) {
  TVMFFIAny any = none();
  any.type_index = kTVMFFIOpaquePtr;
  any.v_ptr = value;
  return any;
}

TVMFFIAny text(const char* value) {
  TVMFFIAny any = none();
  any.type_index = kTVMFFIRawStr;
  any.v_c_str = value;
  return any;
}

Object call(const Object& function, const TVMFFIAny* arguments, size_t count) {
  const TVMFFIAny result = call_any(function, arguments, count);
  return result.type_index < kTVMFFIStaticObjectBegin ? Object() : Object(result.v_obj);
}

Object call(const Object& function, std::initializer_list<TVMFFIAny> arguments) {
  return call(function, arguments.begin(), arguments.size());
}

int64_t call_for_number(const Object& function, std::initializer_list<TVMFFIAny> arguments) {
  const TVMFFIAny result = call_any(function, arguments.begin(), arguments.size());
  if (result.type_index != kTVMFFIInt) fail("TVM's runtime failed: it gave no number");
  return result.v_int64;
}

Object global_function(const std::string& name) {
  const TVMFFIByteArray bytes{name.data(), name.size()};
  TVMFFIObjectHandle found = nullptr;
  check(TVMFFIFunctionGetGlobal(&bytes, &found));
  if (found == nullptr) fail("libtvm_runtime.so has no function " + name + "; export again");
  return Object(found);
}

Object array_of(const std::vector<Object>& objects) {
  std::vector<TVMFFIAny> arguments;
  arguments.reserve(objects.size());
  for (const Object& object : objects) arguments.push_back(object.argument());
  return call(global_function("ffi.Array"), arguments.data(), arguments.size());
}

Object array_of(const std::vector<std::string>& texts) {
  std::vector<TVMFFIAny> arguments;
  arguments.reserve(texts.size());
  for (const std::string& one : texts) arguments.push_back(text(one.c_str()));
  return call(global_function("ffi.Array"), arguments.data(), arguments.size());
}

Object tensor(void* data, DLDataType type, std::vector<int64_t> shape) {
  auto managed = std::make_unique<Managed>();
  managed->shape = std::move(shape);
  managed->strides.assign(managed->shape.size(), 1);
  for (size_t i = managed->shape.size(); i-- > 1;) {
    managed->strides[i - 1] = managed->strides[i] * managed->shape[i];
  }
  DLTensor& tensor = managed->tensor.dl_tensor;
  tensor.data = data;
  tensor.device = {kDLCPU, 0};
  tensor.ndim = static_cast<int32_t>(managed->shape.size());
  tensor.dtype = type;
  tensor.shape = managed->shape.data();
  tensor.strides = managed->strides.data();
  managed->tensor.manager_ctx = managed.get();
  managed->tensor.deleter = [](DLManagedTensor* self) {
    delete static_cast<Managed*>(self->manager_ctx);
  };
  TVMFFIObjectHandle made = nullptr;
  check(TVMFFITensorFromDLPack(&managed->tensor, 0, 0, &made));
  managed.release();
  return Object(made);
}

const DLTensor& look(const Object& tensor) {
  if (!tensor || TVMFFIObjectGetTypeIndex(tensor.handle()) != kTVMFFITensor) {
    fail("TVM's runtime failed: it gave no tensor");
  }
  return *TVMFFITensorGetDLTensorPtr(tensor.handle());
}

Object load_module(const std::string& path) {
  return call(global_function("ffi.ModuleLoadFromFile"), {text(path.c_str())});
}

Object function_of(const Object& module, const std::string& name) {
  Object found = call(global_function("ffi.ModuleGetFunction"),
                      {module.argument(), text(name.c_str()), boolean(true)});
  if (!found) fail("the compiled model has no function " + name + "; export the runner again");
  return found;
}

}  // namespace qc::ffi
