/* Does what lines on standard input say, through the C interface, and answers each with a line.
 *
 * Texts are hexadecimal, "-" where they are empty or not there. An answer begins with "ok", or with
 * "failed" or "misused" and a sentence.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "qcompiler.h"

enum { MODELS = 4, WORDS = 20000 };

static qc_model *models[MODELS];

typedef struct {
  int64_t stop_after; /* tokens; 0: never */
  int64_t seen;
  char *text;
  size_t bytes, room;
  int32_t tokens[WORDS];
} Heard;

static Heard heard;

static char *unhex(const char *word) {
  size_t bytes = strcmp(word, "-") == 0 ? 0 : strlen(word) / 2;
  char *text = malloc(bytes + 1);
  for (size_t i = 0; i < bytes; ++i) {
    unsigned value = 0;
    sscanf(word + 2 * i, "%2x", &value);
    text[i] = (char)value;
  }
  text[bytes] = '\0';
  return text;
}

static void print_hex(const char *text, size_t bytes) {
  for (size_t i = 0; i < bytes; ++i) printf("%02x", (unsigned char)text[i]);
  if (bytes == 0) printf("-");
}

static void print_status(qc_status status) {
  if (status == QC_OK) {
    printf("ok");
  } else {
    printf("%s %s", status == QC_MISUSED ? "misused" : "failed", qc_last_error());
  }
}

static int hear_text(const char *text, size_t bytes, void *data) {
  Heard *into = data;
  if (into->bytes + bytes > into->room) {
    into->room = 2 * (into->bytes + bytes);
    into->text = realloc(into->text, into->room);
  }
  memcpy(into->text + into->bytes, text, bytes);
  into->bytes += bytes;
  return 0;
}

static int hear_token(int32_t token, void *data) {
  Heard *into = data;
  into->tokens[into->seen++] = token;
  return into->seen == into->stop_after;
}

static void encode(qc_model *model, const char *word) {
  char *text = unhex(word);
  int64_t count = qc_encode(model, text, NULL, 0);
  if (count < 0) {
    printf("misused %s", qc_last_error());
  } else {
    int32_t *tokens = malloc(sizeof *tokens * (size_t)(count + 1));
    qc_encode(model, text, tokens, (size_t)count);
    printf("ok");
    for (int64_t i = 0; i < count; ++i) printf(" %d", (int)tokens[i]);
    free(tokens);
  }
  free(text);
}

static void decode(qc_model *model, char **words, int count) {
  static int32_t tokens[WORDS];
  for (int i = 0; i < count; ++i) tokens[i] = (int32_t)strtol(words[i], NULL, 10);
  int64_t bytes = qc_decode(model, tokens, (size_t)count, NULL, 0);
  if (bytes < 0) {
    printf("misused %s", qc_last_error());
    return;
  }
  char *text = malloc((size_t)bytes + 1);
  qc_decode(model, tokens, (size_t)count, text, (size_t)bytes);
  printf("ok ");
  print_hex(text, (size_t)bytes);
  free(text);
}

static size_t read_messages(char **words, int count, qc_message *messages) {
  size_t found = 0;
  for (int i = 0; i + 1 < count; i += 2) {
    messages[found].role = words[i];
    messages[found++].content = unhex(words[i + 1]);
  }
  return found;
}

static void free_messages(qc_message *messages, size_t count) {
  for (size_t i = 0; i < count; ++i) free((char *)messages[i].content);
}

static void render(qc_model *model, char **words, int count) {
  qc_message messages[16];
  size_t found = read_messages(words, count, messages);
  int64_t bytes = qc_render(model, messages, found, NULL, 0);
  if (bytes < 0) {
    printf("misused %s", qc_last_error());
  } else {
    char *text = malloc((size_t)bytes + 1);
    qc_render(model, messages, found, text, (size_t)bytes);
    printf("ok ");
    print_hex(text, (size_t)bytes);
    free(text);
  }
  free_messages(messages, found);
}

/* max_tokens temperature top_k top_p repetition_penalty seed stop_after kind, then the prompt: a
 * text ("text", "chat"), tokens ("tokens") or messages ("messages"). */
static void generate(qc_model *model, char **words, int count) {
  qc_generate_options options = qc_generate_defaults();
  qc_result result;
  qc_status status;
  const char *kind = words[7];
  options.max_tokens = (int32_t)strtol(words[0], NULL, 10);
  options.sampling.temperature = strtod(words[1], NULL);
  options.sampling.top_k = (int32_t)strtol(words[2], NULL, 10);
  options.sampling.top_p = strtod(words[3], NULL);
  options.sampling.repetition_penalty = strtod(words[4], NULL);
  options.sampling.seed = strtoll(words[5], NULL, 10);
  options.on_text = hear_text;
  options.on_token = hear_token;
  options.user_data = &heard;
  heard.stop_after = strtoll(words[6], NULL, 10);
  heard.seen = 0;
  heard.bytes = 0;
  memset(&result, 0, sizeof result);
  words += 8;
  count -= 8;
  if (strcmp(kind, "tokens") == 0) {
    static int32_t tokens[WORDS];
    for (int i = 0; i < count; ++i) tokens[i] = (int32_t)strtol(words[i], NULL, 10);
    status = qc_generate_tokens(model, tokens, (size_t)count, &options, &result);
  } else if (strcmp(kind, "messages") == 0) {
    qc_message messages[16];
    size_t found = read_messages(words, count, messages);
    status = qc_chat(model, messages, found, &options, &result);
    free_messages(messages, found);
  } else {
    char *text = unhex(words[0]);
    options.chat = strcmp(kind, "chat") == 0;
    status = qc_generate(model, text, &options, &result);
    free(text);
  }
  print_status(status);
  if (status != QC_OK) return;
  printf(" %d %d %d %lld %d ", (int)result.finish, (int)result.prompt_tokens, (int)result.tokens,
         (long long)result.seed, result.prefill_seconds > 0);
  print_hex(heard.text, heard.bytes);
  for (int64_t i = 0; i < heard.seen; ++i) printf(" %d", (int)heard.tokens[i]);
}

/* Reads tokens in the pieces that "/" divides, twice over, and prints the last logits. */
static void session(qc_model *model, char **words, int count) {
  static int32_t tokens[WORDS];
  qc_session *session = qc_session_new(model);
  const float *logits = NULL;
  for (int round = 0; round < 2; ++round) {
    size_t length = 0;
    qc_session_reset(session);
    for (int i = 0; i <= count; ++i) {
      if (i < count && strcmp(words[i], "/") != 0) {
        tokens[length++] = (int32_t)strtol(words[i], NULL, 10);
        continue;
      }
      logits = qc_session_read(session, tokens, length);
      if (logits == NULL) {
        printf("misused %s", qc_last_error());
        qc_session_free(session);
        return;
      }
      length = 0;
    }
  }
  printf("ok %d", (int)qc_session_length(session));
  for (int32_t i = 0; i < qc_vocab_size(model); ++i) printf(" %.9g", (double)logits[i]);
  qc_session_free(session);
}

/* temperature top_k top_p repetition_penalty seed count seen…, "/", logits… */
static void sample(char **words, int count) {
  static int32_t seen[WORDS];
  static float logits[WORDS];
  qc_sampling sampling;
  size_t known = 0, size = 0;
  int i = 6;
  long draws = strtol(words[5], NULL, 10);
  sampling.temperature = strtod(words[0], NULL);
  sampling.top_k = (int32_t)strtol(words[1], NULL, 10);
  sampling.top_p = strtod(words[2], NULL);
  sampling.repetition_penalty = strtod(words[3], NULL);
  sampling.seed = strtoll(words[4], NULL, 10);
  for (; i < count && strcmp(words[i], "/") != 0; ++i) {
    seen[known++] = (int32_t)strtol(words[i], NULL, 10);
  }
  for (++i; i < count; ++i) logits[size++] = strtof(words[i], NULL);
  qc_sampler *sampler = qc_sampler_new(&sampling, seen, known);
  if (sampler == NULL) {
    printf("misused %s", qc_last_error());
    return;
  }
  printf("ok");
  for (long draw = 0; draw < draws; ++draw) {
    printf(" %d", (int)qc_sampler_pick(sampler, logits, size));
  }
  qc_sampler_free(sampler);
}

static void load(char **words) {
  qc_load_options options = qc_load_defaults();
  long slot = strtol(words[0], NULL, 10);
  char *folder = unhex(words[1]);
  options.threads = (int)strtol(words[2], NULL, 10);
  options.map_weights = (int)strtol(words[3], NULL, 10);
  options.verify = (int)strtol(words[4], NULL, 10);
  models[slot] = qc_load(folder, &options);
  free(folder);
  if (models[slot] == NULL) {
    printf("failed %s", qc_last_error());
  } else {
    printf("ok %s %d %d %d", qc_name(models[slot]), (int)qc_vocab_size(models[slot]),
           (int)qc_max_context(models[slot]), qc_threads(models[slot]));
  }
}

int main(void) {
  static char line[1 << 22];
  static char *words[WORDS];
  while (fgets(line, sizeof line, stdin) != NULL) {
    int count = 0;
    for (char *word = strtok(line, " \n"); word != NULL && count < WORDS;
         word = strtok(NULL, " \n")) {
      words[count++] = word;
    }
    qc_model *model = count > 1 ? models[strtol(words[1], NULL, 10) % MODELS] : NULL;
    if (strcmp(words[0], "load") == 0) load(words + 1);
    if (strcmp(words[0], "free") == 0) {
      qc_free(model);
      models[strtol(words[1], NULL, 10)] = NULL;
      printf("ok");
    }
    if (strcmp(words[0], "encode") == 0) encode(model, words[2]);
    if (strcmp(words[0], "decode") == 0) decode(model, words + 2, count - 2);
    if (strcmp(words[0], "render") == 0) render(model, words + 2, count - 2);
    if (strcmp(words[0], "generate") == 0) generate(model, words + 2, count - 2);
    if (strcmp(words[0], "session") == 0) session(model, words + 2, count - 2);
    if (strcmp(words[0], "sample") == 0) sample(words + 1, count - 1);
    printf("\n");
    fflush(stdout);
  }
  for (int i = 0; i < MODELS; ++i) qc_free(models[i]);
  free(heard.text);
  return 0;
}
