#include "artifact.h"

#include <sys/stat.h>

#include <map>
#include <sstream>

#include "error.h"
#include "memory.h"
#include "sha256.h"

namespace qc {
namespace {

constexpr const char* kFacts = "runner.txt";
constexpr int kFactsVersion = 1;
constexpr const char* kAgain = "; copy it again or export the runner again";

/// Reads the values of one line; whatever is not there, or not a number, damages the file.
class Line {
 public:
  Line(const std::string& text, const std::string& path) : stream_(text), path_(path) {
    stream_ >> word;
  }

  std::string word;

  std::string token() {
    std::string value;
    if (!(stream_ >> value)) damaged();
    return value;
  }
  int64_t number() {
    int64_t value = 0;
    if (!(stream_ >> value) || value < 0) damaged();
    return value;
  }
  /// The rest of the line, behind one space.
  std::string text() {
    std::string value;
    if (stream_.peek() == ' ') stream_.get();
    std::getline(stream_, value);
    std::string plain;
    for (size_t i = 0; i < value.size(); ++i) {
      if (value[i] != '\\' || i + 1 == value.size()) {
        plain += value[i];
        continue;
      }
      const char letter = value[++i];
      plain += letter == 'n' ? '\n' : letter == 't' ? '\t' : letter == 'r' ? '\r' : letter;
    }
    return plain;
  }
  DLDataType type() {
    static const std::map<std::string, DLDataType> types = {
        {"bool", {kDLUInt, 8, 1}},    {"uint8", {kDLUInt, 8, 1}},   {"int8", {kDLInt, 8, 1}},
        {"uint16", {kDLUInt, 16, 1}}, {"int16", {kDLInt, 16, 1}},   {"uint32", {kDLUInt, 32, 1}},
        {"int32", {kDLInt, 32, 1}},   {"uint64", {kDLUInt, 64, 1}}, {"int64", {kDLInt, 64, 1}},
        {"float16", {kDLFloat, 16, 1}}, {"float32", {kDLFloat, 32, 1}},
        {"float64", {kDLFloat, 64, 1}}};
    const auto found = types.find(token());
    if (found == types.end()) damaged();
    return found->second;
  }
  [[noreturn]] void damaged() const {
    fail(path_ + " is damaged: it has a line '" + stream_.str() + "'" + kAgain);
  }

 private:
  std::istringstream stream_;
  std::string path_;
};

FunctionFacts read_function(Line& line) {
  FunctionFacts facts;
  facts.is_step = line.token() == "step";
  facts.symbol = line.token();
  if (facts.is_step) {
    facts.shared_bytes = line.number();
    facts.thread_bytes = line.number();
  }
  return facts;
}

WeightFacts read_weight(Line& line) {
  WeightFacts facts;
  facts.type = line.type();
  facts.offset = static_cast<uint64_t>(line.number());
  const int64_t rank = line.number();
  for (int64_t i = 0; i < rank; ++i) facts.shape.push_back(line.number());
  facts.name = line.text();
  return facts;
}

void read_chat(Line& line, ChatFacts& chat) {
  const std::string part = line.word.substr(5);
  if (part == "refused") {
    chat.refused = line.text();
  } else if (part == "opening") {
    chat.opening = line.text();
  } else if (part == "ending") {
    chat.ending = line.text();
  } else if (part == "before_system") {
    chat.before_system = line.text();
  } else if (part == "after_system") {
    chat.after_system = line.text();
  } else if (part == "before_answer") {
    chat.before_answer = line.text();
  } else if (part == "after_answer") {
    chat.after_answer = line.text();
  } else if (part == "trimmed") {
    chat.trimmed.insert(line.token());
  } else {
    line.damaged();
  }
}

void read_line(Line& line, Artifact& artifact) {
  const std::string& word = line.word;
  if (word == "name") {
    artifact.name = line.text();
  } else if (word == "compiler") {
    line.text();
  } else if (word == "tvm") {
    artifact.tvm = line.text();
  } else if (word == "target") {
    artifact.target = line.token();
  } else if (word == "arch") {
    artifact.arch = line.token();
  } else if (word == "feature") {
    artifact.features.push_back(line.token());
  } else if (word == "vocab_size") {
    artifact.vocab_size = line.number();
  } else if (word == "max_context") {
    artifact.max_context = line.number();
  } else if (word == "end_token") {
    artifact.end_tokens.insert(static_cast<int32_t>(line.number()));
  } else if (word == "begin_token") {
    artifact.begin_token = static_cast<int32_t>(line.number());
  } else if (word.rfind("chat_", 0) == 0) {
    read_chat(line, artifact.chat);
  } else if (word == "file") {
    FileRecord record;
    record.name = line.token();
    record.bytes = static_cast<uint64_t>(line.number());
    record.sha256 = line.token();
    artifact.files.push_back(record);
  } else if (word == "cache") {
    CacheFacts cache;
    cache.heads = line.number();
    cache.row = line.number();
    cache.type = line.type();
    artifact.caches.push_back(cache);
  } else if (word == "function") {
    const std::string name = line.token();
    (name == "decode" ? artifact.decode : artifact.prefill) = read_function(line);
  } else if (word == "weight") {
    artifact.weights.push_back(read_weight(line));
  } else {
    line.damaged();
  }
}

void check(const Artifact& artifact, const std::string& path) {
  const FileRecord* weights = artifact.file("weights.safetensors");
  bool fits = artifact.vocab_size > 0 && artifact.max_context > 0 && weights != nullptr &&
              artifact.file("model.so") != nullptr && !artifact.prefill.symbol.empty() &&
              !artifact.decode.symbol.empty();
  for (const WeightFacts& weight : artifact.weights) {
    fits = fits && weight.offset % kAlignment == 0 && weight.offset <= weights->bytes &&
           bytes_of(weight.type, weight.shape) <= weights->bytes - weight.offset;
  }
  if (!fits) fail(path + " is damaged: its parts do not fit together" + kAgain);
}

}  // namespace

const FileRecord* Artifact::file(const std::string& title) const {
  for (const FileRecord& record : files) {
    if (record.name == title) return &record;
  }
  return nullptr;
}

uint64_t bytes_of(DLDataType type, const std::vector<int64_t>& shape) {
  uint64_t count = type.bits / 8;
  for (int64_t size : shape) count *= static_cast<uint64_t>(size);
  return count;
}

Artifact read_artifact(const std::string& folder) {
  Artifact artifact;
  artifact.folder = folder;
  const std::string path = artifact.path(kFacts);
  struct stat facts {};
  if (stat(folder.c_str(), &facts) != 0) {
    misuse("there is no " + folder + "; give the folder 'model' of an exported runner");
  }
  if (!S_ISDIR(facts.st_mode) || stat(path.c_str(), &facts) != 0) {
    const bool compiled = stat(artifact.path("manifest.json").c_str(), &facts) == 0;
    misuse(folder + " is no exported model" +
           (compiled ? ", but what 'qcompiler compile' wrote; export it with 'qcompiler export " +
                           folder + " --runner -o FOLDER' and give FOLDER/model"
                     : ": it has no runner.txt; give the folder 'model' of an exported runner"));
  }
  const FileMemory file = FileMemory::map(path);
  const std::string text(reinterpret_cast<const char*>(file.data()), file.size());
  std::istringstream lines(text);
  std::string line;
  std::getline(lines, line);
  Line first(line, path);
  if (first.word != "qcompiler-runner") fail(path + " is damaged: it begins otherwise" + kAgain);
  if (const int64_t version = first.number(); version > kFactsVersion) {
    fail(path + " has version " + std::to_string(version) + ", and this runner reads up to " +
         std::to_string(kFactsVersion) + "; export the runner again and build it anew");
  }
  const size_t last = text.rfind("\nsha256 ");
  if (last == std::string::npos ||
      text.substr(last + 1) != "sha256 " + sha256(text.data(), last + 1) + "\n") {
    fail(path + " is damaged: its content does not match its sha256" + kAgain);
  }
  while (std::getline(lines, line) && line.rfind("sha256 ", 0) != 0) {
    Line values(line, path);
    read_line(values, artifact);
  }
  check(artifact, path);
  return artifact;
}

void verify_file(const Artifact& artifact, const FileRecord& record, const void* data, size_t size,
                 bool hash) {
  const std::string path = artifact.path(record.name);
  if (size != record.bytes) {
    fail(path + " is damaged: it has " + std::to_string(size) + " bytes in place of " +
         std::to_string(record.bytes) + kAgain);
  }
  if (hash && sha256(data, size) != record.sha256) {
    fail(path + " is damaged: its content does not match its sha256" + kAgain);
  }
}

}  // namespace qc
