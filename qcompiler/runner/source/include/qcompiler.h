/* Run a language model that qcompiler has compiled, from C or C++, without Python.
 *
 *     qc_model *model = qc_load("model", NULL);
 *     if (model == NULL) { fprintf(stderr, "%s\n", qc_last_error()); return 1; }
 *     qc_generate_options options = qc_generate_defaults();
 *     options.on_text = print_text;
 *     qc_generate(model, "The sea is", &options, NULL);
 *     qc_free(model);
 *
 * Text is UTF-8. Functions that can fail return a qc_status, NULL or -1, and qc_last_error() then
 * has a sentence. Several threads may use one model: what it computes, it computes for one at a
 * time. A model or session must not be freed while another thread is using it.
 */
#ifndef QCOMPILER_H
#define QCOMPILER_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define QC_API __attribute__((visibility("default")))
#else
#define QC_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef struct qc_model qc_model;
typedef struct qc_session qc_session;
typedef struct qc_sampler qc_sampler;

typedef enum qc_status {
  QC_OK = 0,
  QC_FAILED = 1, /* it could not be done: a damaged file, another machine, no memory */
  QC_MISUSED = 2 /* it was asked for in a way that cannot be, such as a prompt that is too long */
} qc_status;

/* What went wrong in the calling thread's last call that failed: one sentence, never NULL. */
QC_API const char *qc_last_error(void);

/* -- models --------------------------------------------------------------------------------- */

typedef struct qc_load_options {
  int threads;     /* 0: one for each core this process may use */
  int verify;      /* also hash the weights, which takes seconds for each gigabyte */
  int map_weights; /* leave the weights in the file's pages: starts sooner and shares memory between
                      processes, but is a few per cent slower than weights on large pages */
} qc_load_options;

/* Threads 0, no hash of the weights, weights read to large pages. */
QC_API qc_load_options qc_load_defaults(void);

/* Load the folder `model` of an exported runner; NULL where that fails. */
QC_API qc_model *qc_load(const char *folder, const qc_load_options *options);

/* Free a model and its sessions' hold on it; NULL is ignored. */
QC_API void qc_free(qc_model *model);

QC_API const char *qc_name(const qc_model *model);
QC_API int32_t qc_vocab_size(const qc_model *model);
QC_API int32_t qc_max_context(const qc_model *model); /* tokens, prompt and answer together */
QC_API int qc_threads(const qc_model *model);

/* -- text ----------------------------------------------------------------------------------- */

/* Takes text, or a token, as it comes; returning anything but 0 ends the answer. */
typedef int (*qc_text_callback)(const char *text, size_t bytes, void *user_data);
typedef int (*qc_token_callback)(int32_t token, void *user_data);

typedef enum qc_finish {
  QC_STOP = 0,     /* the model ended its answer */
  QC_LENGTH = 1,   /* as many tokens as were asked for */
  QC_CONTEXT = 2,  /* the context is full */
  QC_CANCELLED = 3 /* a callback asked for it */
} qc_finish;

typedef struct qc_sampling {
  double temperature;        /* divides the logits; 0 takes the likeliest token */
  int32_t top_k;             /* only so many of the likeliest; 0: all */
  double top_p;              /* only the fewest likeliest that have this probability together */
  double repetition_penalty; /* above 1, tokens that occurred become less likely */
  int64_t seed;              /* equal seeds give equal texts; below 0: a new one */
} qc_sampling;

typedef struct qc_generate_options {
  int32_t max_tokens;
  qc_sampling sampling;
  int chat; /* qc_generate: put the prompt into the model's chat template as the user's message */
  qc_text_callback on_text;   /* pieces of the answer, each of whole characters */
  qc_token_callback on_token; /* tokens, before their text */
  void *user_data;            /* for both */
} qc_generate_options;

/* 256 tokens, always the likeliest, all of the vocabulary, no callbacks, no chat template. */
QC_API qc_generate_options qc_generate_defaults(void);

typedef struct qc_result {
  qc_finish finish;
  int32_t prompt_tokens;
  int32_t tokens;        /* generated, a token that ended the answer left out */
  double prefill_seconds; /* for the prompt */
  double decode_seconds;  /* for every later step; what callbacks take does not count */
  int64_t seed;           /* gives the same text again */
} qc_result;

typedef struct qc_message {
  const char *role; /* "system", "user" or "assistant" */
  const char *content;
} qc_message;

/* Continue a text, or answer it. `options` and `result` may be NULL. */
QC_API qc_status qc_generate(qc_model *model, const char *prompt,
                             const qc_generate_options *options, qc_result *result);

/* Answer a conversation: a system's message if there is one, the user's, the answer, the user's… */
QC_API qc_status qc_chat(qc_model *model, const qc_message *messages, size_t count,
                         const qc_generate_options *options, qc_result *result);

/* Continue tokens. Models without a tokenizer give tokens only: on_text is not called. */
QC_API qc_status qc_generate_tokens(qc_model *model, const int32_t *tokens, size_t count,
                                    const qc_generate_options *options, qc_result *result);

/* -- tokens --------------------------------------------------------------------------------- */

/* Write the tokens of a text to `tokens`, as many as `capacity` allows, and return how many there
 * are; -1 where that fails. They begin with the token that texts begin with, if there is one. */
QC_API int64_t qc_encode(const qc_model *model, const char *text, int32_t *tokens,
                         size_t capacity);

/* Write the text of tokens to `text`, special ones left out, as many bytes as `capacity` allows,
 * and return how many there are; -1 where that fails. No zero is written behind them. */
QC_API int64_t qc_decode(const qc_model *model, const int32_t *tokens, size_t count, char *text,
                         size_t capacity);

/* Write the text that a conversation becomes, as qc_decode does. */
QC_API int64_t qc_render(const qc_model *model, const qc_message *messages, size_t count,
                         char *text, size_t capacity);

/* A sequence that is read and continued token by token. Free it before its model. */
QC_API qc_session *qc_session_new(qc_model *model);
QC_API void qc_session_free(qc_session *session);

/* Read tokens, and return the logits of what comes after the last, one number for each token of the
 * vocabulary; NULL where that fails. They are valid until the session's next call. */
QC_API const float *qc_session_read(qc_session *session, const int32_t *tokens, size_t count);

/* Tokens read so far; and forget them. */
QC_API int32_t qc_session_length(const qc_session *session);
QC_API void qc_session_reset(qc_session *session);

/* Picks tokens as qc_generate does; `seen` are the prompt's, for the repetition penalty. */
QC_API qc_sampler *qc_sampler_new(const qc_sampling *sampling, const int32_t *seen, size_t count);
QC_API int32_t qc_sampler_pick(qc_sampler *sampler, const float *logits, size_t vocab_size);
QC_API void qc_sampler_free(qc_sampler *sampler);

#ifdef __cplusplus
}
#endif

#endif /* QCOMPILER_H */
