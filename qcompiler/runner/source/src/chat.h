// A conversation as the text that a model was trained to read.
#pragma once

#include <string>
#include <vector>

#include "artifact.h"

namespace qc {

struct Message {
  std::string role, content;
};

/// Return the text of a conversation up to where the model's answer begins.
std::string render(const Artifact& artifact, const std::vector<Message>& messages);

}  // namespace qc
