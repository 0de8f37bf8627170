#include "chat.h"

#include "error.h"
#include "unicode.h"

namespace qc {
namespace {

void check_role(const Artifact& artifact, const Message& message, const std::string& wanted) {
  if (message.role == wanted) return;
  misuse("the conversation with " + artifact.name + " has a message of '" + message.role +
         "' where '" + wanted + "' should speak; users and answers take turns, the user last");
}

}  // namespace

std::string render(const Artifact& artifact, const std::vector<Message>& messages) {
  const ChatFacts& chat = artifact.chat;
  if (!chat.refused.empty()) misuse(chat.refused + "; give the prompt as plain text");
  if (messages.empty()) misuse("there are no messages; give at least one of the user's");
  const auto said = [&](const Message& message) {
    return chat.trimmed.count(message.role) != 0 ? stripped(message.content) : message.content;
  };
  size_t place = 0;
  std::string text = chat.opening;
  if (messages.front().role == "system") {
    if (!chat.before_system.has_value()) {
      misuse("the chat template of " + artifact.name + " takes no system message; leave it out");
    }
    text = *chat.before_system + said(messages.front()) + chat.after_system.value_or("");
    ++place;
  }
  if (place == messages.size()) misuse("the user says nothing; give a message of the user's");
  check_role(artifact, messages[place], "user");
  text += said(messages[place++]);
  if (place < messages.size() && !chat.before_answer.has_value()) {
    misuse("the chat template of " + artifact.name +
           " does more with a longer conversation than the runner can; give one message");
  }
  for (; place < messages.size(); place += 2) {
    check_role(artifact, messages[place], "assistant");
    if (place + 1 == messages.size()) check_role(artifact, messages[place], "user");
    check_role(artifact, messages[place + 1], "user");
    text += *chat.before_answer + said(messages[place]) + chat.after_answer.value_or("") +
            said(messages[place + 1]);
  }
  return text + chat.ending;
}

}  // namespace qc
