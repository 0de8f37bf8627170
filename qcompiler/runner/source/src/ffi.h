// TVM's functions and objects, by its C interface alone.
#pragma once

#include <tvm/ffi/c_api.h>

#include <cstdint>
#include <initializer_list>
#include <string>
#include <vector>

namespace qc::ffi {

/// A counted reference to an object of TVM's; empty if there is none.
class Object {
 public:
  Object() = default;
  explicit Object(TVMFFIObjectHandle owned) : handle_(owned) {}
  Object(Object&& other) noexcept;
  Object& operator=(Object&& other) noexcept;
  ~Object();

  explicit operator bool() const { return handle_ != nullptr; }
  TVMFFIObjectHandle handle() const { return handle_; }
  /// The object as an argument; it is not counted there.
  TVMFFIAny argument() const;

 private:
  TVMFFIObjectHandle handle_ = nullptr;
};

TVMFFIAny number(int64_t value);
TVMFFIAny boolean(bool value);
TVMFFIAny pointer(void* value);
TVMFFIAny text(const char* value);

/// Call a function. Returns what it returned if that is an object.
Object call(const Object& function, const TVMFFIAny* arguments, size_t count);
Object call(const Object& function, std::initializer_list<TVMFFIAny> arguments);
/// The same for a function that returns a number.
int64_t call_for_number(const Object& function, std::initializer_list<TVMFFIAny> arguments);

/// Return a function that is registered by this name.
Object global_function(const std::string& name);

Object array_of(const std::vector<Object>& objects);
Object array_of(const std::vector<std::string>& texts);

/// Wrap memory, which has to outlive the tensor.
Object tensor(void* data, DLDataType type, std::vector<int64_t> shape);
/// Return what a tensor looks like.
const DLTensor& look(const Object& tensor);

/// Load a shared library of compiled functions.
Object load_module(const std::string& path);
/// Return a function of a module; fails where it has none of this name.
Object function_of(const Object& module, const std::string& name);

}  // namespace qc::ffi
