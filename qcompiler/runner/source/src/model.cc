#include "model.h"

#include <chrono>

#include "error.h"
#include "machine.h"
#include "sampler.h"
#include "session.h"
#include "text_stream.h"
#include "unicode.h"

namespace qc {
namespace {

double seconds() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration<double>(now).count();
}

/// Gives out what was generated. What callbacks take does not count as computing.
class Output {
 public:
  Output(const qc_generate_options& options, const std::optional<Tokenizer>& tokenizer,
         const std::vector<int32_t>& prompt)
      : options_(options) {
    if (tokenizer.has_value() && options.on_text != nullptr) stream_.emplace(*tokenizer, prompt);
  }
  /// Give out a token and its text; tells whether to go on.
  bool push(int32_t token) {
    if (options_.on_token != nullptr && options_.on_token(token, options_.user_data) != 0) {
      return false;
    }
    return !stream_.has_value() || show(stream_->push(token));
  }
  bool finish(bool cut) { return !stream_.has_value() || show(stream_->finish(cut)); }

 private:
  bool show(const std::string& text) {
    return text.empty() || options_.on_text(text.data(), text.size(), options_.user_data) == 0;
  }
  const qc_generate_options& options_;
  std::optional<TextStream> stream_;
};

}  // namespace

Model::Model(const std::string& folder, const qc_load_options& options)
    : artifact_(checked(folder)),
      tokenizer_(open_tokenizer(artifact_)),
      executable_(artifact_, options.threads, options.map_weights != 0, options.verify != 0) {}

Artifact Model::checked(const std::string& folder) {
  Artifact artifact = read_artifact(folder);
  check_machine(artifact);
  return artifact;
}

std::optional<Tokenizer> Model::open_tokenizer(const Artifact& artifact) {
  const FileRecord* record = artifact.file("tokenizer.bin");
  if (record == nullptr) return std::nullopt;
  const std::string path = artifact.path(record->name);
  FileMemory file = FileMemory::map(path);
  verify_file(artifact, *record, file.data(), file.size(), true);
  return std::optional<Tokenizer>(std::in_place, std::move(file), path);
}

const Tokenizer& Model::tokenizer() const {
  if (!tokenizer_.has_value()) {
    misuse(artifact_.name +
           " was compiled without a tokenizer, so it takes tokens, not text: use "
           "qc_generate_tokens or a session");
  }
  return *tokenizer_;
}

std::vector<int32_t> Model::encode(const std::string& text) const {
  if (!is_utf8(text)) misuse("the text is not valid Unicode; write it in UTF-8");
  std::vector<int32_t> tokens = tokenizer().encode(text, true);
  const std::optional<int32_t> begin = artifact_.begin_token;
  if (begin.has_value() && (tokens.empty() || tokens.front() != *begin)) {
    tokens.insert(tokens.begin(), *begin);
  }
  return tokens;
}

std::vector<int32_t> Model::encode_chat(const std::vector<Message>& messages) const {
  const std::string text = render(artifact_, messages);
  if (!is_utf8(text)) misuse("the text is not valid Unicode; write it in UTF-8");
  return tokenizer().encode(text, false);
}

std::string Model::decode(const std::vector<int32_t>& tokens) const {
  return tokenizer().decode(tokens);
}

qc_result Model::generate(const std::vector<int32_t>& prompt, const qc_generate_options& options) {
  Sampler sampler(options.sampling, prompt);
  if (options.max_tokens < 1) {
    misuse("max_tokens is " + std::to_string(options.max_tokens) +
           "; give a whole number from 1");
  }
  if (prompt.empty()) misuse("the prompt is empty; write something");
  if (static_cast<int64_t>(prompt.size()) > artifact_.max_context) {
    misuse("the prompt has " + std::to_string(prompt.size()) + " tokens, and the context of " +
           artifact_.name + " holds " + std::to_string(artifact_.max_context) + "; shorten it");
  }
  qc_result result{};
  result.prompt_tokens = static_cast<int32_t>(prompt.size());
  result.seed = sampler.seed();
  Session session(executable_, artifact_);
  double start = seconds();
  const float* logits = session.read(prompt);
  result.prefill_seconds = seconds() - start;
  Output output(options, tokenizer_, prompt);
  for (;;) {
    start = seconds();
    const int32_t token = sampler.pick(logits, static_cast<size_t>(artifact_.vocab_size));
    result.decode_seconds += seconds() - start;
    if (artifact_.end_tokens.count(token) != 0) {
      result.finish = output.finish(false) ? QC_STOP : QC_CANCELLED;
      return result;
    }
    ++result.tokens;
    if (!output.push(token)) {
      result.finish = QC_CANCELLED;
      return result;
    }
    if (result.tokens == options.max_tokens || session.room() == 0) {
      result.finish = result.tokens == options.max_tokens ? QC_LENGTH : QC_CONTEXT;
      if (!output.finish(true)) result.finish = QC_CANCELLED;
      return result;
    }
    start = seconds();
    logits = session.read({token});
    result.decode_seconds += seconds() - start;
  }
}

}  // namespace qc
