// qcompiler-run: answers a prompt, or a person, with a compiled model. Uses the C interface alone.
//
// Exit status 0: done; 1: it could not be done; 2: wrong usage; 130: interrupted.
#include <cerrno>
#include <climits>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <iterator>
#include <optional>
#include <string>
#include <vector>

#include "qcompiler.h"

namespace {

constexpr const char* kUsage =
    R"(Usage: qcompiler-run MODEL [OPTIONS]

Answer a prompt with a compiled model; MODEL is the folder 'model' of an exported runner.

  -p, --prompt TEXT           what to continue; - reads it from standard input
      --chat                  put it into the model's chat template; without -p, chat with the model
  -n, --max-tokens N          stop after so many tokens (256)
      --temperature T         0 takes the likeliest token (0)
      --top-k K               choose among so many of the likeliest tokens
      --top-p P               choose among the likeliest that have this probability (1)
      --repetition-penalty R  divide the odds of tokens that are there already (1)
      --seed S                make the choice repeatable
      --threads N             threads; one for each core if not given
      --tokens                print the numbers of tokens in place of text
      --map                   leave the weights in the file's pages
      --verify                hash the weights before they are used
  -h, --help                  print this
)";

volatile std::sig_atomic_t interrupted = 0;

struct Options {
  std::string model;
  std::optional<std::string> prompt;
  bool tokens = false;
  qc_load_options load = qc_load_defaults();
  qc_generate_options generate = qc_generate_defaults();
};

[[noreturn]] void end(int status, const std::string& sentence) {
  std::fprintf(stderr, "error: %s\n", sentence.c_str());
  std::exit(status);
}

long long whole(const std::string& name, const std::string& text, long long low, long long high) {
  char* rest = nullptr;
  errno = 0;
  const long long value = std::strtoll(text.c_str(), &rest, 10);
  if (text.empty() || *rest != '\0' || errno != 0 || value < low || value > high) {
    end(2, name + " is '" + text + "'; give a whole number from " + std::to_string(low));
  }
  return value;
}

double real(const std::string& name, const std::string& text) {
  char* rest = nullptr;
  const double value = std::strtod(text.c_str(), &rest);
  if (text.empty() || *rest != '\0') end(2, name + " is '" + text + "'; give a number");
  return value;
}

Options parse(const std::vector<std::string>& arguments) {
  Options options;
  qc_sampling& sampling = options.generate.sampling;
  for (size_t i = 0; i < arguments.size(); ++i) {
    std::string name = arguments[i];
    std::optional<std::string> joined;
    if (const size_t sign = name.find('='); name.rfind("--", 0) == 0 && sign != name.npos) {
      joined = name.substr(sign + 1);
      name.erase(sign);
    }
    const auto value = [&]() -> std::string {
      if (joined.has_value()) return *joined;
      if (i + 1 == arguments.size()) end(2, name + " needs a value");
      return arguments[++i];
    };
    if (name == "-h" || name == "--help") {
      std::fputs(kUsage, stdout);
      std::exit(0);
    } else if (name == "-p" || name == "--prompt") {
      options.prompt = value();
    } else if (name == "-n" || name == "--max-tokens") {
      options.generate.max_tokens = static_cast<int32_t>(whole(name, value(), 1, INT32_MAX));
    } else if (name == "--temperature") {
      sampling.temperature = real(name, value());
    } else if (name == "--top-k") {
      sampling.top_k = static_cast<int32_t>(whole(name, value(), 1, INT32_MAX));
    } else if (name == "--top-p") {
      sampling.top_p = real(name, value());
    } else if (name == "--repetition-penalty") {
      sampling.repetition_penalty = real(name, value());
    } else if (name == "--seed") {
      sampling.seed = whole(name, value(), 0, LLONG_MAX);
    } else if (name == "--threads") {
      options.load.threads = static_cast<int>(whole(name, value(), 1, INT_MAX));
    } else if (name == "--chat") {
      options.generate.chat = 1;
    } else if (name == "--tokens") {
      options.tokens = true;
    } else if (name == "--map") {
      options.load.map_weights = 1;
    } else if (name == "--verify") {
      options.load.verify = 1;
    } else if (name.size() > 1 && name[0] == '-') {
      end(2, "there is no option " + name + "; --help lists them");
    } else if (options.model.empty()) {
      options.model = name;
    } else {
      end(2, "'" + name + "' is one argument too many; --help tells how to call this");
    }
  }
  if (options.model.empty()) {
    std::fputs(kUsage, stderr);
    std::exit(2);
  }
  return options;
}

std::string answer;  // of which a conversation goes on

int print_text(const char* text, size_t bytes, void*) {
  answer.append(text, bytes);
  std::fwrite(text, 1, bytes, stdout);
  return std::fflush(stdout) != 0 || interrupted != 0;
}

int print_token(int32_t token, void*) {
  std::printf("%d ", static_cast<int>(token));
  return std::fflush(stdout) != 0 || interrupted != 0;
}

int watch_interrupt(int32_t, void*) { return interrupted != 0; }

/// Say why the answer ended if the model did not end it, and how fast it came.
void report(const qc_model* model, const qc_generate_options& options, const qc_result& result) {
  if (result.finish == QC_LENGTH) {
    std::fprintf(stderr, "(the limit of %d tokens is reached)\n",
                 static_cast<int>(options.max_tokens));
  } else if (result.finish == QC_CONTEXT) {
    std::fprintf(stderr, "(the model's context of %d tokens is full)\n",
                 static_cast<int>(qc_max_context(model)));
  }
  if (result.decode_seconds > 0 && result.tokens > 0) {
    std::fprintf(stderr, "(%d tokens, %.1f tokens/s; prompt of %d tokens in %.3f s)\n",
                 static_cast<int>(result.tokens), result.tokens / result.decode_seconds,
                 static_cast<int>(result.prompt_tokens), result.prefill_seconds);
  }
}

/// Answer one prompt; return the exit status.
int run(qc_model* model, const Options& options) {
  std::string prompt = *options.prompt;
  if (prompt == "-") prompt.assign(std::istreambuf_iterator<char>(std::cin), {});
  if (prompt.find('\0') != std::string::npos) end(2, "the prompt has a zero byte; give text");
  qc_result result{};
  const qc_status status = qc_generate(model, prompt.c_str(), &options.generate, &result);
  if (status != QC_OK) {
    std::fprintf(stderr, "error: %s\n", qc_last_error());
    return status;
  }
  if (answer.empty() || answer.back() != '\n') std::fputc('\n', stdout);
  if (std::fflush(stdout) != 0) return 1;
  report(model, options.generate, result);
  return interrupted != 0 ? 130 : 0;
}

/// Answer line by line until the input ends; Ctrl-C cuts an answer short.
int chat(qc_model* model, const Options& options) {
  std::vector<std::string> said;  // by the user, the model, the user…
  std::string line;
  std::fprintf(stderr, "%s answers. An empty line is ignored, /clear forgets, Ctrl-D ends.\n",
               qc_name(model));
  while (std::fputs("> ", stderr), std::getline(std::cin, line)) {
    if (line.empty()) continue;
    if (line == "/clear") {
      said.clear();
      continue;
    }
    said.push_back(line);
    std::vector<qc_message> messages;
    for (size_t i = 0; i < said.size(); ++i) {
      messages.push_back({i % 2 == 0 ? "user" : "assistant", said[i].c_str()});
    }
    answer.clear();
    interrupted = 0;
    qc_result result{};
    if (qc_chat(model, messages.data(), messages.size(), &options.generate, &result) != QC_OK) {
      std::fprintf(stderr, "error: %s\n", qc_last_error());
      said.pop_back();
      continue;
    }
    if (answer.empty() || answer.back() != '\n') std::fputc('\n', stdout);
    if (std::fflush(stdout) != 0) return 1;
    report(model, options.generate, result);
    if (result.finish == QC_CANCELLED) {
      said.pop_back();  // forgotten with its unfinished answer
    } else {
      said.push_back(answer);
    }
  }
  std::fputc('\n', stderr);
  return 0;
}

}  // namespace

int main(int count, char** values) {
  Options options = parse(std::vector<std::string>(values + 1, values + count));
  options.generate.on_text = options.tokens ? nullptr : print_text;
  options.generate.on_token = options.tokens ? print_token : watch_interrupt;
  if (!options.prompt.has_value() && options.generate.chat == 0) {
    end(2, "there is no prompt; give -p TEXT, -p - to read it from standard input, or --chat");
  }
  if (!options.prompt.has_value() && options.tokens) {
    end(2, "--tokens does not go with a conversation; give -p TEXT");
  }
  struct sigaction action {};
  action.sa_handler = [](int) { interrupted = 1; };
  sigaction(SIGINT, &action, nullptr);
  qc_model* model = qc_load(options.model.c_str(), &options.load);
  if (model == nullptr) end(1, qc_last_error());
  const int status = options.prompt.has_value() ? run(model, options) : chat(model, options);
  qc_free(model);
  return status;
}
