// A language model that is loaded: prompts in, text out.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "artifact.h"
#include "chat.h"
#include "executable.h"
#include "qcompiler.h"
#include "tokenizer.h"

namespace qc {

class Model {
 public:
  Model(const std::string& folder, const qc_load_options& options);

  const Artifact& artifact() const { return artifact_; }
  Executable& executable() { return executable_; }
  int threads() const { return executable_.workers().count(); }

  /// Return the tokens of a raw text, with the token that texts begin with if there is one.
  std::vector<int32_t> encode(const std::string& text) const;
  /// Return the tokens of a conversation; the template has written all special ones itself.
  std::vector<int32_t> encode_chat(const std::vector<Message>& messages) const;
  std::string decode(const std::vector<int32_t>& tokens) const;

  /// Continue a prompt, with the callbacks of the options.
  qc_result generate(const std::vector<int32_t>& prompt, const qc_generate_options& options);

 private:
  static Artifact checked(const std::string& folder);
  static std::optional<Tokenizer> open_tokenizer(const Artifact& artifact);
  const Tokenizer& tokenizer() const;

  Artifact artifact_;
  std::optional<Tokenizer> tokenizer_;
  Executable executable_;
};

}  // namespace qc
