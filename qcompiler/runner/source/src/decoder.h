// From the texts of tokens to one text.
#pragma once

#include <string>
#include <vector>

#include "binary_reader.h"

namespace qc {

class Decoder {
 public:
  explicit Decoder(BinaryReader& file);

  std::string decode(std::vector<std::string> texts) const;

 private:
  enum Kind : uint32_t {
    kReplace = 0,
    kByteFallback = 1,
    kFuse = 2,
    kStrip = 3,
    kMetaspace = 4,
    kByteLevel = 5
  };
  struct Step {
    Kind kind;
    std::string first, second;
    uint32_t start = 0, stop = 0;
  };
  static std::vector<std::string> apply(const Step& step, std::vector<std::string> texts);

  std::vector<Step> steps_;
};

}  // namespace qc
