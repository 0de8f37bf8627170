// What is wrong, in a sentence that says what to do.
#pragma once

#include <stdexcept>
#include <string>

#include "qcompiler.h"

namespace qc {

class Error : public std::runtime_error {
 public:
  Error(qc_status status, const std::string& text) : std::runtime_error(text), status_(status) {}
  qc_status status() const { return status_; }

 private:
  qc_status status_;
};

/// The artifact, the machine or a file is not as it should be.
[[noreturn]] inline void fail(const std::string& text) { throw Error(QC_FAILED, text); }

/// The caller asked for what cannot be.
[[noreturn]] inline void misuse(const std::string& text) { throw Error(QC_MISUSED, text); }

}  // namespace qc
