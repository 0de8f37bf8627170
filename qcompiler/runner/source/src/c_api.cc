// The C interface: whatever is thrown behind it becomes a status and a sentence.
#include <algorithm>
#include <cstring>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "error.h"
#include "model.h"
#include "qcompiler.h"
#include "sampler.h"
#include "session.h"

struct qc_model {
  qc::Model model;
};
struct qc_session {
  qc::Session session;
};
struct qc_sampler {
  qc::Sampler sampler;
};

namespace {

thread_local std::string last_error = "nothing has failed";

/// Run `action` and return its status.
template <typename Action>
qc_status guarded(const Action& action) noexcept {
  try {
    try {
      action();
      return QC_OK;
    } catch (const qc::Error& error) {
      last_error = error.what();
      return error.status();
    } catch (const std::bad_alloc&) {
      last_error = "there is not enough memory for this";
    } catch (const std::exception& error) {
      last_error = std::string("this is a bug in qcompiler: ") + error.what();
    }
  } catch (...) {
    // Not even the sentence could be kept.
    last_error.clear();
  }
  return QC_FAILED;
}

template <typename T>
T& given(T* pointer, const char* what) {
  if (pointer == nullptr) qc::misuse(std::string("the ") + what + " is NULL; give one");
  return *pointer;
}

std::vector<int32_t> list(const int32_t* tokens, size_t count) {
  if (count == 0) return {};
  return {&given(tokens, "list of tokens"), tokens + count};
}

std::vector<qc::Message> list(const qc_message* messages, size_t count) {
  std::vector<qc::Message> copies;
  for (size_t i = 0; i < count; ++i) {
    const qc_message& one = (&given(messages, "list of messages"))[i];
    copies.push_back({&given(one.role, "role"), &given(one.content, "content")});
  }
  return copies;
}

void generate(qc_model& model, const std::vector<int32_t>& prompt,
              const qc_generate_options* options, qc_result* result) {
  const qc_result found =
      model.model.generate(prompt, options == nullptr ? qc_generate_defaults() : *options);
  if (result != nullptr) *result = found;
}

int64_t copy_out(const std::string& from, char* to, size_t capacity) {
  const size_t count = std::min(from.size(), capacity);
  if (count > 0) std::memcpy(&given(to, "text"), from.data(), count);
  return static_cast<int64_t>(from.size());
}

}  // namespace

const char* qc_last_error(void) { return last_error.c_str(); }

qc_load_options qc_load_defaults(void) { return {0, 0, 0}; }

qc_generate_options qc_generate_defaults(void) {
  return {256, {0.0, 0, 1.0, 1.0, -1}, 0, nullptr, nullptr, nullptr};
}

qc_model* qc_load(const char* folder, const qc_load_options* options) {
  qc_model* loaded = nullptr;
  guarded([&] {
    const std::string path = &given(folder, "folder");
    loaded = new qc_model{{path, options == nullptr ? qc_load_defaults() : *options}};
  });
  return loaded;
}

void qc_free(qc_model* model) { delete model; }

const char* qc_name(const qc_model* model) { return model->model.artifact().name.c_str(); }

int32_t qc_vocab_size(const qc_model* model) {
  return static_cast<int32_t>(model->model.artifact().vocab_size);
}

int32_t qc_max_context(const qc_model* model) {
  return static_cast<int32_t>(model->model.artifact().max_context);
}

int qc_threads(const qc_model* model) { return model->model.threads(); }

qc_status qc_generate(qc_model* model, const char* prompt, const qc_generate_options* options,
                      qc_result* result) {
  return guarded([&] {
    const qc::Model& known = given(model, "model").model;
    const std::string text = &given(prompt, "prompt");
    const bool chat = options != nullptr && options->chat != 0;
    generate(*model, chat ? known.encode_chat({{"user", text}}) : known.encode(text), options,
             result);
  });
}

qc_status qc_chat(qc_model* model, const qc_message* messages, size_t count,
                  const qc_generate_options* options, qc_result* result) {
  return guarded([&] {
    const qc::Model& known = given(model, "model").model;
    generate(*model, known.encode_chat(list(messages, count)), options, result);
  });
}

qc_status qc_generate_tokens(qc_model* model, const int32_t* tokens, size_t count,
                             const qc_generate_options* options, qc_result* result) {
  return guarded([&] { generate(given(model, "model"), list(tokens, count), options, result); });
}

int64_t qc_encode(const qc_model* model, const char* text, int32_t* tokens, size_t capacity) {
  int64_t count = -1;
  guarded([&] {
    const std::vector<int32_t> found =
        given(model, "model").model.encode(&given(text, "text"));
    const size_t fitting = std::min(found.size(), capacity);
    if (fitting > 0) std::copy_n(found.begin(), fitting, &given(tokens, "list of tokens"));
    count = static_cast<int64_t>(found.size());
  });
  return count;
}

int64_t qc_decode(const qc_model* model, const int32_t* tokens, size_t count, char* text,
                  size_t capacity) {
  int64_t bytes = -1;
  guarded([&] {
    const qc::Model& known = given(model, "model").model;
    bytes = copy_out(known.decode(list(tokens, count)), text, capacity);
  });
  return bytes;
}

int64_t qc_render(const qc_model* model, const qc_message* messages, size_t count, char* text,
                  size_t capacity) {
  int64_t bytes = -1;
  guarded([&] {
    const qc::Artifact& known = given(model, "model").model.artifact();
    bytes = copy_out(qc::render(known, list(messages, count)), text, capacity);
  });
  return bytes;
}

qc_session* qc_session_new(qc_model* model) {
  qc_session* made = nullptr;
  guarded([&] {
    qc::Model& known = given(model, "model").model;
    made = new qc_session{{known.executable(), known.artifact()}};
  });
  return made;
}

void qc_session_free(qc_session* session) { delete session; }

const float* qc_session_read(qc_session* session, const int32_t* tokens, size_t count) {
  const float* logits = nullptr;
  guarded([&] { logits = given(session, "session").session.read(list(tokens, count)); });
  return logits;
}

int32_t qc_session_length(const qc_session* session) {
  return static_cast<int32_t>(session->session.length());
}

void qc_session_reset(qc_session* session) { session->session.reset(); }

qc_sampler* qc_sampler_new(const qc_sampling* sampling, const int32_t* seen, size_t count) {
  qc_sampler* made = nullptr;
  guarded([&] {
    const qc_sampling options = sampling == nullptr ? qc_generate_defaults().sampling : *sampling;
    made = new qc_sampler{{options, list(seen, count)}};
  });
  return made;
}

int32_t qc_sampler_pick(qc_sampler* sampler, const float* logits, size_t vocab_size) {
  int32_t token = -1;
  guarded([&] {
    token = given(sampler, "sampler").sampler.pick(&given(logits, "list of logits"), vocab_size);
  });
  return token;
}

void qc_sampler_free(qc_sampler* sampler) { delete sampler; }
