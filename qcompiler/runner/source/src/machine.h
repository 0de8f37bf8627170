// The machine at hand: can it run an artifact, and which of its processors may this process use.
#pragma once

#include <string>
#include <vector>

#include "artifact.h"

namespace qc {

/// Fail, saying what is lacking, unless this machine can run the artifact.
void check_machine(const Artifact& artifact);

struct Processors {
  std::vector<int> numbers;  // the first hardware thread of every core comes first
  int worthwhile = 1;        // one for each core, and no more than a container's quota allows
};

Processors available_processors();

}  // namespace qc
