// What examples/cpp/inspect.cpp uses of ONNX Runtime's C++ interface, over the C interface of the library in its wheel.
//
// No wheel holds the library's own headers. These declare the same names with the same types, so that the example can
// be compiled, linked and run without them. The C interface is a table of functions whose places never change: releases
// only add to its end (version 2 has all that are used here).
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <stdexcept>
#include <type_traits>
#include <vector>

enum OrtLoggingLevel { ORT_LOGGING_LEVEL_ERROR = 3 };
enum OrtAllocatorType { OrtArenaAllocator = 1 };
enum OrtMemType { OrtMemTypeDefault = 0 };
struct OrtApiBase { const void* const* (*GetApi)(uint32_t version); const char* (*GetVersionString)(); };
extern "C" const OrtApiBase* OrtGetApiBase();

namespace Ort {

// Calls the function at a place of the table.
template <int place, class Result, class... Arguments>
Result call(Arguments... arguments) {
  static const void* const* table = OrtGetApiBase()->GetApi(2);
  return reinterpret_cast<Result (*)(Arguments...)>(const_cast<void*>(table[place]))(arguments...);
}

// The same for those that return an error.
template <int place, class... Arguments>
void run(Arguments... arguments) {
  void* status = call<place, void*>(arguments...);
  if (!status) return;
  const std::runtime_error error(call<2, const char*>(const_cast<const void*>(status)));  // GetErrorMessage
  call<93, void>(status);                                                                // ReleaseStatus
  throw error;
}

// Owns what the library made; `release` is the place of the function that frees it.
template <int release>
struct Owned {
  void* p = nullptr;
  Owned() = default;
  Owned(Owned&& other) noexcept : p(other.p) { other.p = nullptr; }
  ~Owned() { if (p) call<release, void>(p); }
};

struct Env : Owned<92> {
  Env(OrtLoggingLevel level, const char* name) { run<3>(int(level), name, &p); }
};
struct SessionOptions : Owned<100> { SessionOptions() { run<10>(&p); } };
struct RunOptions : Owned<97> { RunOptions() { run<39>(&p); } };
struct MemoryInfo : Owned<94> {
  static MemoryInfo CreateCpu(OrtAllocatorType kind, OrtMemType type) {
    MemoryInfo info;
    run<69>(int(kind), int(type), &info.p);
    return info;
  }
};
struct AllocatorWithDefaultOptions {
  void* p = nullptr;
  AllocatorWithDefaultOptions() { run<78>(&p); }
};

struct Value : Owned<96> {
  template <class T>
  static Value CreateTensor(const MemoryInfo& info, T* data, size_t count, const int64_t* shape, size_t sides) {
    static_assert(std::is_same<T, float>::value, "no other is needed");
    Value value;
    run<49>(info.p, static_cast<void*>(data), count * sizeof(T), shape, sides, 1, &value.p);
    return value;
  }
  template <class T>
  const T* GetTensorData() const {
    void* data;
    run<51>(p, &data);
    return static_cast<const T*>(data);
  }
};
static_assert(sizeof(Value) == sizeof(void*), "the library takes an array of pointers");

struct TensorTypeAndShapeInfo {
  void* p;
  std::vector<int64_t> GetShape() const {
    size_t sides;
    run<61>(p, &sides);
    std::vector<int64_t> shape(sides);
    run<62>(p, shape.data(), sides);
    return shape;
  }
};
struct TypeInfo : Owned<98> {
  TensorTypeAndShapeInfo GetTensorTypeAndShapeInfo() const {
    void* info;
    run<55>(p, &info);
    return {info};
  }
};
using AllocatedStringPtr = std::unique_ptr<char, std::function<void(void*)>>;
struct ModelMetadata : Owned<118> {
  AllocatedStringPtr LookupCustomMetadataMapAllocated(const char* key, const AllocatorWithDefaultOptions& from) const {
    char* text;
    run<116>(p, from.p, key, &text);
    void* allocator = from.p;
    return AllocatedStringPtr(text, [allocator](void* memory) { run<76>(allocator, memory); });
  }
};

struct Session : Owned<95> {
  Session(const Env& env, const char* path, const SessionOptions& options) {
    run<7>(env.p, path, options.p, &p);
  }
  ModelMetadata GetModelMetadata() const {
    ModelMetadata found;
    run<111>(p, &found.p);
    return found;
  }
  TypeInfo GetInputTypeInfo(size_t index) const {
    TypeInfo found;
    run<33>(p, index, &found.p);
    return found;
  }
  std::vector<Value> Run(const RunOptions& options, const char* const* inputs, const Value* values, size_t count,
                         const char* const* outputs, size_t wanted) {
    std::vector<Value> found(wanted);
    run<9>(p, options.p, inputs, reinterpret_cast<const void* const*>(values), count, outputs, wanted,
           reinterpret_cast<void**>(found.data()));
    return found;
  }
};

}  // namespace Ort
