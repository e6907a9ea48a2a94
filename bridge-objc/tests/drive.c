/*
 * Drives the shim through its table, on the work-alike, with the delegate of delegate.c underneath. It must leave no
 * handle, object or compiled model behind. Run it plain, under AddressSanitizer and with NSZombieEnabled=YES:
 * `cargo xtask shim` does. With an argument, only the tests whose name contains it run.
 */
#define _GNU_SOURCE /* nftw, memmem */
#include <ftw.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "cml_workalike.h"
#include "coreml_bridge.h"
#include "delegate.h"

extern _Atomic int cml_test_macos, cml_test_wait_ms;
long cml_test_live_handles(void);

static const CmlBridge *B;
static int failures;
static char folder[256]; /* everything on disk is below */

#define CHECK(condition)                                                                    \
  do {                                                                                      \
    if (!(condition)) {                                                                     \
      fprintf(stderr, "%s:%d: %s: not so: %s\n", __FILE__, __LINE__, __func__, #condition); \
      failures++;                                                                           \
    }                                                                                       \
  } while (0)

static CmlStr str(const char *text) { return (CmlStr){text, strlen(text)}; }
static bool is(CmlStr s, const char *text) { return s.len == strlen(text) && memcmp(s.ptr, text, s.len) == 0; }
static bool has(CmlStr s, const char *part) {
  return s.ptr != NULL && memmem(s.ptr, s.len, part, strlen(part)) != NULL;
}

/* ---- errors ---- */

static CmlErrorView view_of(const CmlError *error, uint32_t depth) {
  CmlErrorView view = {.size = sizeof view};
  B->error_view(error, depth, &view);
  return view;
}

/* A call that failed as it should: the status, a word of the message, and an error that is there. Frees it. */
static bool refused_(int line, CmlStatus got, CmlStatus wanted, CmlError **error, const char *part) {
  CmlErrorView view = view_of(*error, 0);
  bool right = got == wanted && *error != NULL && view.status == wanted && has(view.message, part);
  if (!right) {
    fprintf(stderr, "drive.c:%d: status %d, wanted %d with \"%s\"; the error says: %.*s\n", line, got, wanted, part,
            (int)view.message.len, view.message.ptr);
    failures++;
  }
  B->error_free(*error);
  *error = NULL;
  return right;
}
#define REFUSED(call, status, part) refused_(__LINE__, (call), (status), &error, (part))

static bool went_(int line, CmlStatus got, CmlError **error) {
  if (got == CML_OK && *error == NULL) return true;
  CmlErrorView view = view_of(*error, 0);
  fprintf(stderr, "drive.c:%d: status %d: %.*s\n", line, got, (int)view.message.len, view.message.ptr);
  failures++;
  B->error_free(*error);
  *error = NULL;
  return false;
}
#define WENT(call) went_(__LINE__, (call), &error)

/* ---- files ---- */

static char *path_to(const char *name) {
  static char paths[4][512];
  static int next;
  next = (next + 1) % 4;
  snprintf(paths[next], sizeof paths[next], "%s/%s", folder, name);
  return paths[next];
}

static void write_file(const char *name, const char *content) {
  FILE *file = fopen(path_to(name), "wb");
  fputs(content, file);
  fclose(file);
}

static int compiled_found;
static int look(const char *path, const struct stat *stat, int type, struct FTW *at) {
  (void)stat;
  (void)at;
  size_t n = strlen(path);
  if (type == FTW_D && n > 9 && strcmp(path + n - 9, ".mlmodelc") == 0) compiled_found++;
  return 0;
}
static int compiled_models(void) {
  compiled_found = 0;
  nftw(path_to("tmp"), look, 16, FTW_PHYS);
  return compiled_found;
}
static int removed(const char *path, const struct stat *stat, int type, struct FTW *at) {
  (void)stat;
  (void)type;
  (void)at;
  return remove(path);
}

/* ---- balance ---- */

static void pause_ms(long ms) {
  struct timespec time = {ms / 1000, ms % 1000 * 1000000};
  nanosleep(&time, NULL);
}

/* Nothing is alive, possibly a little later: threads of the work-alike let go in their own time. */
static bool balanced(void) {
  for (int i = 0; i < 150; i++) {
    if (cml_workalike_live_objects() == 0 && cml_test_live_handles() == 0 && cml_test_delegate_live() == 0) break;
    pause_ms(10);
  }
  return cml_workalike_live_objects() == 0 && cml_test_live_handles() == 0 && cml_test_delegate_live() == 0 &&
         cml_workalike_faults() == 0 && compiled_models() == 0;
}

static void must_balance_(int line, const char *after) {
  if (balanced()) return;
  fprintf(stderr,
          "drive.c:%d: after %s: %ld objects, %ld handles, %ld of the delegate, %d compiled models, %ld faults\n", line,
          after, cml_workalike_live_objects(), cml_test_live_handles(), cml_test_delegate_live(), compiled_models(),
          cml_workalike_faults());
  failures++;
}
#define MUST_BALANCE(after) must_balance_(__LINE__, after)

/* ---- makers ---- */

static const int64_t shape23[2] = {2, 3};
static const float x_data[6] = {1, 2, 3, 4, 5, 6};

static CmlModel *load(void) {
  CmlModel *model = NULL;
  CmlError *error = NULL;
  CmlConfig config = {.size = sizeof config, .compute_units = CML_COMPUTE_ALL};
  CHECK(WENT(B->model_load(B->self, str(path_to("model.mlmodel")), &config, &model, &error)));
  return model;
}

static CmlTensorDesc desc_of(CmlDtype dtype, uint32_t rank, const int64_t *shape, const int64_t *strides) {
  return (CmlTensorDesc){
      .size = sizeof(CmlTensorDesc), .dtype = dtype, .rank = rank, .shape = shape, .strides = strides};
}

static CmlValue *tensor(CmlDtype dtype, const void *data, size_t length) {
  CmlValue *value = NULL;
  CmlError *error = NULL;
  CmlTensorDesc desc = desc_of(dtype, 2, shape23, NULL);
  CHECK(WENT(B->tensor_copy(B->self, &desc, data, length, &value, &error)));
  return value;
}
static CmlValue *tensor_x(void) { return tensor(CML_DTYPE_FLOAT32, x_data, sizeof x_data); }

static const CmlOutput *output(const CmlResult *result, const char *name) {
  CmlResultView view = {.size = sizeof view};
  B->result_view(result, &view);
  for (size_t i = 0; i < view.n_outputs; i++) {
    if (is(view.outputs[i].name, name)) return &view.outputs[i];
  }
  return NULL;
}

static bool holds_f32(CmlValue *value, const float *wanted, size_t n) {
  float got[64];
  CmlError *error = NULL;
  return WENT(B->tensor_read(value, CML_DTYPE_FLOAT32, got, n * 4, &error)) && memcmp(got, wanted, n * 4) == 0;
}
static const float x_twice[6] = {2, 4, 6, 8, 10, 12};

/* ---- the table ---- */

static void test_table(void) {
  CHECK(B->abi_version == CML_ABI_VERSION && B->struct_size == sizeof(CmlBridge));
  const unsigned char *bytes = (const unsigned char *)B;
  for (size_t at = offsetof(CmlBridge, backend_info); at < sizeof *B; at += sizeof(void *)) {
    void *slot;
    memcpy(&slot, bytes + at, sizeof slot);
    CHECK(slot != NULL);
  }
  CmlBlob *json = NULL;
  CmlError *error = NULL;
  CHECK(WENT(B->backend_info(B->self, &json, &error)));
  CHECK(has(B->blob_bytes(json), "\"name\":\"coreml\"") &&
        has(B->blob_bytes(json), "\"devices\":[{\"kind\":\"cpu\"},{\"kind\":\"gpu\",\"name\":\"Work-alike GPU\","
                                 "\"registry_id\":4294970044},{\"kind\":\"neural_engine\",\"cores\":16}]"));
  CHECK(has(B->blob_bytes(json), "\"state\"") && has(B->blob_bytes(json), "\"int8\""));
  B->blob_free(json);
  /* Releases of NULL, and questions about it. */
  B->error_free(NULL);
  B->blob_free(NULL);
  B->model_release(NULL);
  B->result_free(NULL);
  B->value_retain(NULL);
  B->value_release(NULL);
  B->state_release(NULL);
  CHECK(B->blob_bytes(NULL).ptr == NULL && B->value_kind(NULL) == CML_KIND_INVALID);
  CmlErrorView view = view_of(NULL, 0);
  CHECK(view.status == 0 && view.message.ptr == NULL && view.depth_left == 0);
}

static void test_nulls(void) {
  CmlError *error = NULL;
  CmlModel *model = load();
  CmlValue *x = tensor_x();
  CmlTensorDesc desc = desc_of(CML_DTYPE_FLOAT32, 2, shape23, NULL);
  CmlBlob *blob;
  CmlValue *value;
  CmlState *state;
  CmlResult *result;
  CmlStr name = str("x");
  REFUSED(B->backend_info(B->self, NULL, &error), CML_INVALID_ARGUMENT, "place");
  REFUSED(B->model_compile(B->self, str("a"), str(""), NULL, &error), CML_INVALID_ARGUMENT, "place");
  REFUSED(B->model_load(B->self, str("a"), NULL, NULL, &error), CML_INVALID_ARGUMENT, "place");
  REFUSED(B->model_load_memory(B->self, "double", 6, NULL, 0, NULL, NULL, &error), CML_INVALID_ARGUMENT, "place");
  REFUSED(B->model_describe(NULL, &blob, &error), CML_INVALID_ARGUMENT, "model");
  REFUSED(B->model_describe(model, NULL, &error), CML_INVALID_ARGUMENT, "place");
  REFUSED(B->model_describe((CmlModel *)(void *)x, &blob, &error), CML_INVALID_ARGUMENT, "model");
  REFUSED(B->model_predict(NULL, NULL, &name, &x, 1, NULL, &result, &error), CML_INVALID_ARGUMENT, "model");
  REFUSED(B->model_predict(model, NULL, &name, &x, 1, NULL, NULL, &error), CML_INVALID_ARGUMENT, "place");
  REFUSED(B->model_predict(model, NULL, NULL, &x, 1, NULL, &result, &error), CML_INVALID_ARGUMENT, "NULL");
  REFUSED(B->model_predict(model, (CmlState *)(void *)x, &name, &x, 1, NULL, &result, &error), CML_INVALID_ARGUMENT,
          "state");
  value = NULL;
  REFUSED(B->model_predict(model, NULL, &name, &value, 1, NULL, &result, &error), CML_INVALID_ARGUMENT, "input 0");
  value = (CmlValue *)(void *)model;
  REFUSED(B->model_predict(model, NULL, &name, &value, 1, NULL, &result, &error), CML_INVALID_ARGUMENT, "input 0");
  CHECK(result == NULL);
  REFUSED(B->tensor_new(B->self, NULL, &value, &error), CML_INVALID_ARGUMENT, "NULL");
  REFUSED(B->tensor_new(B->self, &desc, NULL, &error), CML_INVALID_ARGUMENT, "place");
  REFUSED(B->tensor_copy(B->self, &desc, NULL, 24, &value, &error), CML_INVALID_ARGUMENT, "NULL");
  REFUSED(B->tensor_wrap(B->self, &desc, (void *)(uintptr_t)x_data, 24, NULL, NULL, &value, &error),
          CML_INVALID_ARGUMENT, "release");
  REFUSED(B->tensor_desc(NULL, &desc, &error), CML_INVALID_ARGUMENT, "value");
  REFUSED(B->tensor_desc(x, NULL, &error), CML_INVALID_ARGUMENT, "place");
  REFUSED(B->tensor_with_bytes(x, 0, NULL, NULL, &error), CML_INVALID_ARGUMENT, "function");
  REFUSED(B->tensor_read(x, CML_DTYPE_FLOAT32, NULL, 24, &error), CML_INVALID_ARGUMENT, "NULL");
  REFUSED(B->scalar_new(B->self, NULL, &value, &error), CML_INVALID_ARGUMENT, "NULL");
  REFUSED(B->scalar_view(x, NULL, &error), CML_INVALID_ARGUMENT, "place");
  REFUSED(B->dictionary_new(B->self, NULL, &value, &error), CML_INVALID_ARGUMENT, "NULL");
  REFUSED(B->entries_view(NULL, NULL, &error), CML_INVALID_ARGUMENT, "place");
  REFUSED(B->image_new(B->self, NULL, x_data, 4, &value, &error), CML_INVALID_ARGUMENT, "NULL");
  REFUSED(B->image_with_bytes(x, 0, NULL, NULL, &error), CML_INVALID_ARGUMENT, "function");
  REFUSED(B->state_new(NULL, &state, &error), CML_INVALID_ARGUMENT, "model");
  REFUSED(B->state_new(model, NULL, &error), CML_INVALID_ARGUMENT, "place");
  REFUSED(B->state_with_bytes(NULL, name, 0, NULL, NULL, &error), CML_INVALID_ARGUMENT, "function");
  /* An error may be unwanted: the status must do. */
  CHECK(B->model_describe(NULL, &blob, NULL) == CML_INVALID_ARGUMENT);
  CmlModel *none = model;
  CHECK(B->model_load(B->self, str(path_to("absent.mlmodel")), NULL, &none, NULL) == CML_NOT_FOUND && none == NULL);
  B->value_release(x);
  B->model_release(model);
}

/* ---- loading ---- */

static void test_load(void) {
  CmlError *error = NULL;
  CmlModel *model = (CmlModel *)(void *)&error;
  REFUSED(B->model_load(B->self, str(path_to("absent.mlmodel")), NULL, &model, &error), CML_NOT_FOUND,
          "absent.mlmodel");
  CHECK(model == NULL);
  REFUSED(B->model_load(B->self, str(""), NULL, &model, &error), CML_INVALID_ARGUMENT, "path");
  REFUSED(B->model_load(B->self, str("\xff\xfe"), NULL, &model, &error), CML_INVALID_ARGUMENT, "UTF-8");
  REFUSED(B->model_load(B->self, (CmlStr){"a\0b", 3}, NULL, &model, &error), CML_INVALID_ARGUMENT, "path");
  REFUSED(B->model_load(B->self, str(path_to("notes.txt")), NULL, &model, &error), CML_UNSUPPORTED, "notes.txt");
  /* A damaged model: the cause, below what Core ML says about it. */
  CmlStatus status = B->model_load(B->self, str(path_to("corrupt.mlmodel")), NULL, &model, &error);
  CHECK(status == CML_FRAMEWORK && model == NULL && error != NULL);
  CmlErrorView top = view_of(error, 0), cause = view_of(error, 1), root = view_of(error, 2), beyond = view_of(error, 3);
  CHECK(top.depth_left == 2 && is(top.domain, "com.apple.CoreML") && has(top.message, "damaged"));
  CHECK(cause.depth_left == 1 && is(cause.domain, "test.delegate") && cause.code == 40 && is(cause.reason, "because"));
  CHECK(root.depth_left == 0 && root.code == 41 && is(root.message, "the bytes are no model"));
  CHECK(beyond.domain.ptr == NULL && beyond.code == 0 && beyond.size == sizeof beyond);
  CmlErrorView small = {.size = offsetof(CmlErrorView, code), .code = 77};
  B->error_view(error, 0, &small);
  CHECK(small.status == CML_FRAMEWORK && small.code == 77);
  B->error_free(error);
  error = NULL;
  MUST_BALANCE("refused loads");
  /* Its temporary folder lives as long as the model ... */
  model = load();
  CHECK(compiled_models() == 1);
  CmlState *state = NULL;
  CHECK(WENT(B->state_new(model, &state, &error)));
  B->model_release(model);
  CHECK(compiled_models() == 1); /* ... and as long as a state of it, */
  B->state_release(state);
  CHECK(compiled_models() == 0);
  /* but what the caller compiled stays. */
  CmlBlob *path = NULL;
  CHECK(WENT(B->model_compile(B->self, str(path_to("model.mlpackage")), str(path_to("out")), &path, &error)));
  CHECK(is(B->blob_bytes(path), path_to("out/model.mlmodelc")));
  CHECK(WENT(B->model_load(B->self, B->blob_bytes(path), NULL, &model, &error)));
  B->model_release(model);
  CHECK(access(path_to("out/model.mlmodelc"), F_OK) == 0);
  B->blob_free(path);
}

/* ---- loading from memory ---- */

static const char in_memory[] = "double with @model_path/weights/w.bin";

static void *load_stuck(void *context) {
  CmlModel *model = NULL;
  *(CmlStatus *)context = B->model_load_memory(B->self, "double", 6, NULL, 0, NULL, &model, NULL);
  B->model_release(model);
  return NULL;
}

static void test_load_memory(void) {
  static const uint32_t modes[] = {0, CML_HOSTILE_LATE_ANSWER, CML_HOSTILE_EARLY_ANSWER, CML_HOSTILE_PADDED};
  CmlError *error = NULL;
  CmlModel *model = NULL;
  CmlBlob *json = NULL;
  CmlResult *result = NULL;
  CmlStr name = str("x");
  cml_workalike_set_late_release_ms(30);
  for (size_t mode = 0; mode < sizeof modes / sizeof modes[0]; mode++) {
    cml_workalike_set_hostile(modes[mode]);
    /* The caller's memory may go at once. */
    char specification[sizeof in_memory], weights[] = "weights", file[] = "@model_path/weights/w.bin";
    memcpy(specification, in_memory, sizeof in_memory);
    CmlFile files[2] = {{str("@model_path/other"), NULL, 0}, {str(file), weights, 7}};
    CHECK(WENT(B->model_load_memory(B->self, specification, sizeof in_memory - 1, files, 2, NULL, &model, &error)));
    memset(specification, '!', sizeof specification);
    memset(weights, '!', sizeof weights);
    memset(file, '!', sizeof file);
    CHECK(compiled_models() == 0);
    CHECK(WENT(B->model_describe(model, &json, &error)));
    CHECK(has(B->blob_bytes(json), "\"functions\":[\"main\",\"other\"]"));
    B->blob_free(json);
    CmlValue *x = tensor_x();
    CHECK(WENT(B->model_predict(model, NULL, &name, &x, 1, NULL, &result, &error)));
    CHECK(holds_f32(output(result, "out_x")->value, x_twice, 6));
    B->result_free(result);
    B->value_release(x);
    B->model_release(model);
    MUST_BALANCE("a model in memory");
  }
  cml_workalike_set_hostile(0);
  cml_workalike_set_late_release_ms(1000);
  /* The configuration is the one of a load. */
  CmlConfig config = {.size = sizeof config, .compute_units = CML_COMPUTE_CPU_AND_GPU, .function_name = str("other")};
  CHECK(WENT(B->model_load_memory(B->self, "double", 6, NULL, 0, &config, &model, &error)));
  CHECK(cml_test_delegate_config()->compute_units == CML_COMPUTE_CPU_AND_GPU &&
        strcmp(cml_test_delegate_function(), "other") == 0);
  B->model_release(model);
  model = (CmlModel *)(void *)&error;
  config.function_name = str("neither");
  REFUSED(B->model_load_memory(B->self, "double", 6, NULL, 0, &config, &model, &error), CML_NOT_FOUND, "main, other");
  CHECK(model == NULL);
  config = (CmlConfig){.size = sizeof config, .threads = 2};
  REFUSED(B->model_load_memory(B->self, "double", 6, NULL, 0, &config, &model, &error), CML_UNSUPPORTED, "threads");
  REFUSED(B->model_load_memory(B->self, "corrupt", 7, NULL, 0, NULL, &model, &error), CML_FRAMEWORK, "damaged");
  REFUSED(B->model_load_memory(B->self, in_memory, sizeof in_memory - 1, NULL, 0, NULL, &model, &error), CML_FRAMEWORK,
          "missing");
  REFUSED(B->model_load_memory(B->self, NULL, 6, NULL, 0, NULL, &model, &error), CML_INVALID_ARGUMENT, "specification");
  REFUSED(B->model_load_memory(B->self, "double", 0, NULL, 0, NULL, &model, &error), CML_INVALID_ARGUMENT,
          "specification");
  REFUSED(B->model_load_memory(B->self, "double", 6, NULL, 1, NULL, &model, &error), CML_INVALID_ARGUMENT, "NULL");
  CmlFile twice[2] = {{str("@model_path/a"), "b", 1}, {str("@model_path/a"), "b", 1}};
  REFUSED(B->model_load_memory(B->self, "double", 6, twice, 2, NULL, &model, &error), CML_INVALID_ARGUMENT, "twice");
  static const char *const wrong[] = {"", "weights/w.bin", "@model_path/", "\xff", "@model_path/\xff"};
  for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
    CmlFile file = {str(wrong[i]), "b", 1};
    REFUSED(B->model_load_memory(B->self, "double", 6, &file, 1, NULL, &model, &error), CML_INVALID_ARGUMENT,
            "@model_path/");
  }
  CmlFile null = {str("@model_path/a"), NULL, 1};
  REFUSED(B->model_load_memory(B->self, "double", 6, &null, 1, NULL, &model, &error), CML_INVALID_ARGUMENT, "NULL");
  CHECK(model == NULL);
  MUST_BALANCE("refused loads from memory");
  cml_test_macos = 1206;
  REFUSED(B->model_load_memory(B->self, "double", 6, NULL, 0, NULL, &model, &error), CML_UNSUPPORTED,
          "macOS 13 or iOS 16");
  cml_test_macos = 1407;
  REFUSED(B->model_load_memory(B->self, "double", 6, twice, 1, NULL, &model, &error), CML_UNSUPPORTED,
          "macOS 15 or iOS 18");
  CHECK(WENT(B->model_load_memory(B->self, "double", 6, NULL, 0, NULL, &model, &error)));
  CHECK(WENT(B->model_describe(model, &json, &error))); /* nobody can name its functions */
  CHECK(!has(B->blob_bytes(json), "\"functions\""));
  B->blob_free(json);
  B->model_release(model);
  cml_test_macos = 0;
  /* An answer that lets wait is waited for. */
  CmlStatus status = CML_FRAMEWORK;
  pthread_t thread;
  cml_workalike_set_hostile(CML_HOSTILE_STUCK_LOAD);
  pthread_create(&thread, NULL, load_stuck, &status);
  pause_ms(50);
  cml_workalike_set_hostile(0);
  pthread_join(thread, NULL);
  CHECK(status == CML_OK);
}

/* ---- the log ---- */

typedef struct Heard {
  atomic_int infos, warnings, running;
  atomic_bool closed; /* nothing may be heard any more */
  atomic_int late;
  int pause; /* how long each message takes */
  bool curious; /* calls the table from within */
} Heard;

static void hear(void *context, CmlLogLevel level, CmlStr message) {
  Heard *heard = context;
  atomic_fetch_add(&heard->running, 1);
  if (atomic_load(&heard->closed)) atomic_fetch_add(&heard->late, 1);
  atomic_fetch_add(level == CML_LOG_INFO ? &heard->infos : &heard->warnings, 1);
  CHECK(has(message, level == CML_LOG_INFO ? "loaded" : "'out_x' was not used"));
  if (heard->curious) {
    CmlError *error = NULL;
    REFUSED(B->log_set(B->self, NULL, NULL, &error), CML_BUSY, "log");
    B->model_release(load()); /* tells nobody */
  }
  if (heard->pause > 0) pause_ms(heard->pause);
  if (atomic_load(&heard->closed)) atomic_fetch_add(&heard->late, 1);
  atomic_fetch_sub(&heard->running, 1);
}

static atomic_bool log_stop;
static void *load_on_and_on(void *context) {
  (void)context;
  while (!atomic_load(&log_stop)) B->model_release(load());
  return NULL;
}

static void test_log(void) {
  CmlError *error = NULL;
  Heard heard = {.curious = true};
  CHECK(WENT(B->log_set(B->self, hear, &heard, &error)));
  CmlModel *model = load();
  CHECK(heard.infos == 1 && heard.warnings == 0);
  heard.curious = false;
  CmlModel *other = NULL;
  CHECK(WENT(B->model_load_memory(B->self, "double", 6, NULL, 0, NULL, &other, &error)));
  B->model_release(other);
  CHECK(heard.infos == 2);
  /* A backing that was ignored is told of, one that was taken is not. */
  CmlStr name = str("x"), out = str("out_x");
  CmlTensorDesc desc = desc_of(CML_DTYPE_FLOAT32, 2, shape23, NULL);
  CmlValue *x = tensor_x(), *backing = NULL;
  CHECK(WENT(B->tensor_new(B->self, &desc, &backing, &error)));
  CmlPredictOptions options = {
      .size = sizeof options, .backing_names = &out, .backings = &backing, .n_backings = 1};
  for (int ignored = 0; ignored < 2; ignored++) {
    CmlResult *result = NULL;
    cml_workalike_set_hostile(ignored ? CML_HOSTILE_IGNORE_BACKINGS : 0);
    CHECK(WENT(B->model_predict(model, NULL, &name, &x, 1, &options, &result, &error)));
    CHECK(output(result, "out_x")->backing_used == (uint32_t)!ignored && heard.warnings == ignored);
    B->result_free(result);
  }
  cml_workalike_set_hostile(0);
  CHECK(WENT(B->log_set(B->self, NULL, NULL, &error)));
  B->model_release(load());
  CHECK(heard.infos == 2);
  B->value_release(backing);
  B->value_release(x);
  B->model_release(model);
  /* Replaced again and again while others load: whoever was set before is done when the slot returns. */
  enum { ROUNDS = 12, LOADERS = 3 };
  static Heard rounds[ROUNDS];
  pthread_t threads[LOADERS];
  atomic_store(&log_stop, false);
  for (int i = 0; i < LOADERS; i++) pthread_create(&threads[i], NULL, load_on_and_on, NULL);
  int told = 0;
  for (int round = 0; round < ROUNDS; round++) {
    rounds[round].pause = 3;
    CHECK(WENT(B->log_set(B->self, hear, &rounds[round], &error)));
    if (round > 0) atomic_store(&rounds[round - 1].closed, true);
    CHECK(round == 0 || rounds[round - 1].running == 0);
    pause_ms(15);
  }
  CHECK(WENT(B->log_set(B->self, NULL, NULL, &error)));
  atomic_store(&rounds[ROUNDS - 1].closed, true);
  atomic_store(&log_stop, true);
  for (int i = 0; i < LOADERS; i++) pthread_join(threads[i], NULL);
  for (int round = 0; round < ROUNDS; round++) {
    CHECK(rounds[round].late == 0 && rounds[round].running == 0);
    told += rounds[round].infos;
  }
  CHECK(told > 0);
}

static int entries_in(const char *name) {
  int n = 0;
  char command[600], line[256];
  snprintf(command, sizeof command, "ls -A '%s'", path_to(name));
  FILE *list = popen(command, "r");
  while (fgets(line, sizeof line, list) != NULL) n++;
  pclose(list);
  return n;
}

static void test_compile(void) {
  CmlError *error = NULL;
  CmlBlob *path = NULL;
  CHECK(WENT(B->model_compile(B->self, str(path_to("model.mlmodel")), str(""), &path, &error)));
  CHECK(compiled_models() == 1); /* the caller owns it */
  char command[600];
  snprintf(command, sizeof command, "rm -r '%.*s'", (int)B->blob_bytes(path).len, B->blob_bytes(path).ptr);
  CHECK(system(command) == 0);
  B->blob_free(path);
  /* Twice into one folder: replaced, with nothing else left there. */
  for (int i = 0; i < 2; i++) {
    CHECK(WENT(B->model_compile(B->self, str(path_to("model.mlmodel")), str(path_to("out")), &path, &error)));
    B->blob_free(path);
    CHECK(entries_in("out") == 1);
  }
  path = (CmlBlob *)(void *)&error;
  REFUSED(B->model_compile(B->self, str(path_to("corrupt.mlmodel")), str(path_to("out")), &path, &error), CML_FRAMEWORK,
          "damaged");
  CHECK(path == NULL && entries_in("out") == 1);
  REFUSED(B->model_compile(B->self, str(path_to("absent.mlmodel")), str(""), &path, &error), CML_NOT_FOUND, "absent");
  REFUSED(B->model_compile(B->self, str(path_to("model.mlmodel")), str(path_to("nowhere")), &path, &error),
          CML_NOT_FOUND, "nowhere");
  REFUSED(B->model_compile(B->self, str(path_to("model.mlmodel")), str(path_to("notes.txt")), &path, &error),
          CML_INVALID_ARGUMENT, "folder");
  REFUSED(B->model_compile(B->self, str(path_to("out/model.mlmodelc")), str(""), &path, &error), CML_INVALID_ARGUMENT,
          "already");
  /* A folder that cannot be written to. */
  if (geteuid() != 0) {
    chmod(path_to("out"), 0500);
    CHECK(B->model_compile(B->self, str(path_to("model.mlmodel")), str(path_to("out")), &path, NULL) == CML_FRAMEWORK);
    chmod(path_to("out"), 0700);
  }
  CHECK(compiled_models() == 0);
}

static void test_configuration(void) {
  CmlError *error = NULL;
  CmlModel *model = NULL;
  CmlStr path = str(path_to("model.mlmodel"));
  CmlConfig config = {.size = sizeof config,
                      .compute_units = CML_COMPUTE_CPU_AND_NEURAL_ENGINE,
                      .flags = CML_CONFIG_LOW_PRECISION_ACCUMULATION,
                      .function_name = str("other"),
                      .display_name = str("a name"),
                      .reshape_frequency = CML_RESHAPE_INFREQUENT,
                      .specialization = CML_SPECIALIZATION_FAST_PREDICTION};
  CHECK(WENT(B->model_load(B->self, path, &config, &model, &error)));
  CHECK(cml_test_delegate_config()->compute_units == CML_COMPUTE_CPU_AND_NEURAL_ENGINE);
  CHECK(cml_test_delegate_config()->flags == CML_CONFIG_LOW_PRECISION_ACCUMULATION);
  CHECK(strcmp(cml_test_delegate_function(), "other") == 0 && cml_test_delegate_config()->display_name.len == 6);
  CHECK(cml_test_delegate_config()->reshape_frequency == CML_RESHAPE_INFREQUENT &&
        cml_test_delegate_config()->specialization == CML_SPECIALIZATION_FAST_PREDICTION);
  CmlBlob *json = NULL;
  CHECK(WENT(B->model_describe(model, &json, &error)));
  CHECK(has(B->blob_bytes(json), "\"functions\":[\"main\",\"other\"],\"function\":\"other\""));
  B->blob_free(json);
  B->model_release(model);
  for (int units = CML_COMPUTE_CPU_ONLY; units <= CML_COMPUTE_CPU_AND_NEURAL_ENGINE; units++) {
    CmlConfig one = {.size = sizeof one, .compute_units = units};
    CHECK(WENT(B->model_load(B->self, path, &one, &model, &error)));
    CHECK(cml_test_delegate_config()->compute_units == units && cml_test_delegate_config()->flags == 0);
    B->model_release(model);
  }
  /* A caller of an older header: what its struct has not, is not read. */
  config = (CmlConfig){
      .size = offsetof(CmlConfig, flags), .compute_units = CML_COMPUTE_CPU_ONLY, .flags = ~0u, .threads = 3};
  CHECK(WENT(B->model_load(B->self, path, &config, &model, &error)));
  B->model_release(model);
  config = (CmlConfig){.size = offsetof(CmlConfig, reshape_frequency), .reshape_frequency = 9, .specialization = 9};
  CHECK(WENT(B->model_load(B->self, path, &config, &model, &error)));
  CHECK(cml_test_delegate_config()->reshape_frequency == 0 && cml_test_delegate_config()->specialization == 0);
  B->model_release(model);
  for (int units = CML_COMPUTE_CPU_ONLY; units <= CML_COMPUTE_CPU_AND_NEURAL_ENGINE; units++) {
    bool gpu = units == CML_COMPUTE_CPU_AND_GPU || units == CML_COMPUTE_ALL;
    config = (CmlConfig){.size = sizeof config, .compute_units = units, .preferred_device = CML_WORKALIKE_GPU};
    if (!gpu) {
      REFUSED(B->model_load(B->self, path, &config, &model, &error), CML_INVALID_ARGUMENT, "leave none");
      continue;
    }
    CHECK(WENT(B->model_load(B->self, path, &config, &model, &error)));
    CHECK(cml_workalike_preferred() == CML_WORKALIKE_GPU);
    B->model_release(model);
    config.size = offsetof(CmlConfig, preferred_device);
    CHECK(WENT(B->model_load(B->self, path, &config, &model, &error)));
    CHECK(cml_workalike_preferred() == 0);
    B->model_release(model);
  }
  config = (CmlConfig){.size = sizeof config, .compute_units = CML_COMPUTE_ALL, .preferred_device = UINT64_MAX};
  REFUSED(B->model_load(B->self, path, &config, &model, &error), CML_UNSUPPORTED, "18446744073709551615");
  config = (CmlConfig){.size = sizeof config, .reshape_frequency = 2};
  REFUSED(B->model_load(B->self, path, &config, &model, &error), CML_INVALID_ARGUMENT, "2 is no frequency");
  config = (CmlConfig){.size = sizeof config, .specialization = -1};
  REFUSED(B->model_load(B->self, path, &config, &model, &error), CML_INVALID_ARGUMENT, "-1 is no specialization");
  config = (CmlConfig){.size = sizeof config, .function_name = str("missing")};
  REFUSED(B->model_load(B->self, path, &config, &model, &error), CML_NOT_FOUND, "no function 'missing'");
  config = (CmlConfig){.size = sizeof config, .function_name = str("\xc0\x80")};
  REFUSED(B->model_load(B->self, path, &config, &model, &error), CML_INVALID_ARGUMENT, "UTF-8");
  config = (CmlConfig){.size = sizeof config, .display_name = str("\xed\xa0\x80")};
  REFUSED(B->model_load(B->self, path, &config, &model, &error), CML_INVALID_ARGUMENT, "UTF-8");
  config = (CmlConfig){.size = sizeof config, .compute_units = 4};
  REFUSED(B->model_load(B->self, path, &config, &model, &error), CML_INVALID_ARGUMENT, "compute units");
  config = (CmlConfig){.size = sizeof config, .flags = 2};
  REFUSED(B->model_load(B->self, path, &config, &model, &error), CML_INVALID_ARGUMENT, "flags");
  config = (CmlConfig){.size = sizeof config, .threads = 2};
  REFUSED(B->model_load(B->self, path, &config, &model, &error), CML_UNSUPPORTED, "threads");
  config = (CmlConfig){.size = 0};
  REFUSED(B->model_load(B->self, path, &config, &model, &error), CML_INVALID_ARGUMENT, "size");
}

static const char description[] =
    "{\"inputs\":["
    "{\"name\":\"b\",\"optional\":true,\"kind\":\"tensor\",\"tensor\":{\"dtype\":\"int8\",\"shape\":[2,3]}},"
    "{\"name\":\"d\",\"optional\":true,\"kind\":\"tensor\",\"tensor\":{\"dtype\":\"float64\",\"shape\":[2,3],"
    "\"flexible\":{\"ranges\":[[1,8],[3,-1]]}}},"
    "{\"name\":\"depth\",\"optional\":true,\"kind\":\"image\",\"image\":{\"width\":3,\"height\":2,\"color\":\"gray_"
    "float16\"}},"
    "{\"name\":\"h\",\"optional\":true,\"kind\":\"tensor\",\"tensor\":{\"dtype\":\"float16\",\"shape\":[2,3]}},"
    "{\"name\":\"i\",\"optional\":true,\"kind\":\"tensor\",\"tensor\":{\"dtype\":\"int32\",\"shape\":[2,3],"
    "\"flexible\":{\"enumerated\":[[2,3],[4,3]]}}},"
    "{\"name\":\"ids\",\"optional\":true,\"kind\":\"dictionary\",\"dictionary\":{\"key\":\"int64\"}},"
    "{\"name\":\"n\",\"optional\":true,\"kind\":\"int64\"},"
    "{\"name\":\"photo\",\"optional\":true,\"kind\":\"image\",\"image\":{\"width\":3,\"height\":2,\"color\":\"rgb\","
    "\"flexible\":{\"ranges\":[[1,64],[1,-1]]}}},"
    "{\"name\":\"r\",\"optional\":true,\"kind\":\"double\"},"
    "{\"name\":\"s\",\"optional\":true,\"kind\":\"string\"},"
    "{\"name\":\"scan\",\"optional\":true,\"kind\":\"image\",\"image\":{\"width\":3,\"height\":2,\"color\":\"gray\","
    "\"flexible\":{\"enumerated\":[[2,3],[4,6]]}}},"
    "{\"name\":\"steps\",\"optional\":true,\"kind\":\"sequence\",\"sequence\":{\"element\":\"int64\",\"count\":[0,9]}},"
    "{\"name\":\"tokens\",\"optional\":true,\"kind\":\"sequence\",\"sequence\":{\"element\":\"string\",\"count\":[0]}},"
    "{\"name\":\"words\",\"optional\":true,\"kind\":\"dictionary\",\"dictionary\":{\"key\":\"string\"}},"
    "{\"name\":\"x\",\"optional\":false,\"kind\":\"tensor\",\"tensor\":{\"dtype\":\"float32\",\"shape\":[2,3]}}],";
static const char description_end[] =
    "\"states\":[{\"name\":\"acc\",\"optional\":false,\"kind\":\"tensor\",\"tensor\":{\"dtype\":\"float32\",\"shape\":["
    "2,3]}}],"
    "\"functions\":[\"main\",\"other\"],\"predicted_feature\":\"out_s\",\"predicted_probabilities\":\"out_words\","
    "\"class_labels\":[\"cat\",\"d\\\"og\"],"
    "\"metadata\":{\"author\":\"\xc3\xa9 \\u0001\",\"license\":\"MIT\",\"user\":{\"k\":\"v\"}}}";

static void test_describe(void) {
  CmlError *error = NULL;
  CmlModel *model = load();
  CmlBlob *json = NULL;
  CHECK(WENT(B->model_describe(model, &json, &error)));
  CmlStr text = B->blob_bytes(json);
  size_t head = strlen(description), tail = strlen(description_end);
  bool same = text.len > head + tail && memcmp(text.ptr, description, head) == 0 &&
              memcmp(text.ptr + text.len - tail, description_end, tail) == 0;
  if (!same) fprintf(stderr, "%.*s\n", (int)text.len, text.ptr);
  CHECK(same);
  CHECK(has(text, "\"outputs\":[{\"name\":\"out_b\""));
  B->blob_free(json);
  B->model_release(model);
}

/* ---- tensors ---- */

static void expect_desc(CmlValue *value, CmlDtype dtype, uint32_t rank, const int64_t *shape, const int64_t *strides,
                        uint64_t bytes) {
  CmlError *error = NULL;
  CmlTensorDesc desc = {.size = sizeof desc};
  CHECK(WENT(B->tensor_desc(value, &desc, &error)));
  CHECK(desc.dtype == dtype && desc.rank == rank && desc.byte_len == bytes);
  CHECK(memcmp(desc.shape, shape, rank * 8) == 0 && memcmp(desc.strides, strides, rank * 8) == 0);
}

static void test_layouts(void) {
  CmlError *error = NULL;
  CmlValue *value = NULL;
  static const int64_t dense[2] = {3, 1}, padded[2] = {4, 1}, columns[2] = {1, 2}, wide[2] = {INT64_MAX / 2, 1};
  static const int64_t negative[2] = {-1, 3}, huge[3] = {INT64_MAX, INT64_MAX, 2}, big[2] = {INT64_C(1) << 62, 1};
  static const int64_t back[2] = {-3, 1};
  CmlTensorDesc desc = desc_of(CML_DTYPE_FLOAT32, 2, shape23, NULL);
  CHECK(WENT(B->tensor_new(B->self, &desc, &value, &error)));
  static const float zeros[6];
  CHECK(holds_f32(value, zeros, 6));
  expect_desc(value, CML_DTYPE_FLOAT32, 2, shape23, dense, 24);
  B->value_release(value);
  desc.strides = padded;
  CHECK(WENT(B->tensor_new(B->self, &desc, &value, &error)));
  expect_desc(value, CML_DTYPE_FLOAT32, 2, shape23, padded, 28);
  B->value_release(value);
  /* A copy is dense, whatever it was copied from. */
  static const float gaps[7] = {1, 2, 3, NAN, 4, 5, 6}, turned[6] = {1, 4, 2, 5, 3, 6};
  CHECK(WENT(B->tensor_copy(B->self, &desc, gaps, sizeof gaps, &value, &error)));
  CHECK(holds_f32(value, x_data, 6));
  expect_desc(value, CML_DTYPE_FLOAT32, 2, shape23, dense, 24);
  B->value_release(value);
  REFUSED(B->tensor_copy(B->self, &desc, gaps, sizeof gaps - 1, &value, &error), CML_INVALID_ARGUMENT, "27 bytes");
  CHECK(value == NULL);
  desc.strides = columns;
  CHECK(WENT(B->tensor_copy(B->self, &desc, turned, sizeof turned, &value, &error)));
  CHECK(holds_f32(value, x_data, 6));
  B->value_release(value);
  /* What cannot be. */
  desc.strides = back;
  REFUSED(B->tensor_new(B->self, &desc, &value, &error), CML_INVALID_ARGUMENT, "stride 0 is -3");
  desc.strides = wide;
  REFUSED(B->tensor_new(B->self, &desc, &value, &error), CML_INVALID_ARGUMENT, "beyond");
  desc = desc_of(CML_DTYPE_FLOAT32, 2, negative, NULL);
  REFUSED(B->tensor_new(B->self, &desc, &value, &error), CML_INVALID_ARGUMENT, "dimension 0 is -1");
  desc = desc_of(CML_DTYPE_INT8, 3, huge, NULL);
  REFUSED(B->tensor_new(B->self, &desc, &value, &error), CML_INVALID_ARGUMENT, "beyond");
  static const int64_t still[3] = {0, 0, 0};
  desc.strides = still; /* one byte of memory, but more elements than numbers */
  REFUSED(B->tensor_new(B->self, &desc, &value, &error), CML_INVALID_ARGUMENT, "beyond");
  desc = desc_of(CML_DTYPE_FLOAT64, 2, big, NULL);
  REFUSED(B->tensor_new(B->self, &desc, &value, &error), CML_INVALID_ARGUMENT, "beyond");
  static const int64_t most[2] = {INT64_C(1) << 46, 1};
  desc = desc_of(CML_DTYPE_FLOAT64, 2, most, NULL);
  CHECK(B->tensor_new(B->self, &desc, &value, NULL) == CML_OUT_OF_MEMORY);
  desc = desc_of(7, 2, shape23, NULL);
  REFUSED(B->tensor_new(B->self, &desc, &value, &error), CML_INVALID_ARGUMENT, "element type");
  desc = desc_of(CML_DTYPE_FLOAT32, 33, shape23, NULL);
  REFUSED(B->tensor_new(B->self, &desc, &value, &error), CML_INVALID_ARGUMENT, "rank 33");
  desc = desc_of(CML_DTYPE_FLOAT32, 1, NULL, NULL);
  REFUSED(B->tensor_new(B->self, &desc, &value, &error), CML_INVALID_ARGUMENT, "shape is NULL");
  desc.size = 4;
  REFUSED(B->tensor_new(B->self, &desc, &value, &error), CML_INVALID_ARGUMENT, "size");
  /* An empty tensor, and one element without dimensions. */
  static const int64_t none[2] = {0, 3};
  desc = desc_of(CML_DTYPE_FLOAT32, 2, none, NULL);
  CHECK(WENT(B->tensor_copy(B->self, &desc, NULL, 0, &value, &error)));
  CHECK(WENT(B->tensor_read(value, CML_DTYPE_FLOAT32, NULL, 0, &error)));
  B->value_release(value);
  desc = desc_of(CML_DTYPE_FLOAT32, 0, NULL, NULL);
  CHECK(WENT(B->tensor_copy(B->self, &desc, x_data, 4, &value, &error)));
  CHECK(holds_f32(value, x_data, 1));
  B->value_release(value);
}

static void convert(CmlDtype from, const void *in, size_t in_length, CmlDtype to, void *out, size_t out_length) {
  CmlError *error = NULL;
  int64_t shape[1] = {(int64_t)(in_length / (((size_t)from & 0xFFFF) / 8))};
  CmlTensorDesc desc = desc_of(from, 1, shape, NULL);
  CmlValue *value = NULL;
  CHECK(WENT(B->tensor_copy(B->self, &desc, in, in_length, &value, &error)));
  CHECK(WENT(B->tensor_read(value, to, out, out_length, &error)));
  B->value_release(value);
}

static void test_conversions(void) {
  CmlError *error = NULL;
  /* Every half, there and back. */
  uint16_t *halves = malloc(65536 * 2), *again = malloc(65536 * 2);
  float *floats = malloc(65536 * 4);
  for (unsigned i = 0; i < 65536; i++) halves[i] = (uint16_t)i;
  convert(CML_DTYPE_FLOAT16, halves, 65536 * 2, CML_DTYPE_FLOAT32, floats, 65536 * 4);
  convert(CML_DTYPE_FLOAT32, floats, 65536 * 4, CML_DTYPE_FLOAT16, again, 65536 * 2);
  unsigned wrong = 0, nans = 0;
  for (unsigned i = 0; i < 65536; i++) {
    if (isnan(floats[i])) {
      nans++;
      if ((again[i] & 0x7C00) != 0x7C00 || (again[i] & 0x3FF) == 0) wrong++;
    } else if (again[i] != i) {
      wrong++;
    }
  }
  CHECK(wrong == 0 && nans == 2 * 1023);
  CHECK(floats[0x3C00] == 1 && floats[0xC000] == -2 && floats[0x7BFF] == 65504 && isinf(floats[0x7C00]));
  CHECK(floats[1] == ldexpf(1, -24) && floats[0x0400] == ldexpf(1, -14) && signbit(floats[0x8000]));
  free(halves);
  free(again);
  free(floats);
  /* To nearest, ties to even, also across the edges of the format. */
  const double doubles[12] = {1 + ldexp(1, -11),
                              1 + 3 * ldexp(1, -11),
                              65519.99,
                              65520,
                              -65520,
                              ldexp(1, -25),
                              ldexp(1, -25) * 1.0000001,
                              ldexp(3, -25),
                              2047.5,
                              2 - ldexp(1, -12),
                              ldexp(1, -14) - ldexp(1, -26),
                              1e300};
  const uint16_t expected[12] = {0x3C00, 0x3C02, 0x7BFF, 0x7C00, 0xFC00, 0x0000,
                                 0x0001, 0x0002, 0x6800, 0x4000, 0x0400, 0x7C00};
  uint16_t rounded[12];
  convert(CML_DTYPE_FLOAT64, doubles, sizeof doubles, CML_DTYPE_FLOAT16, rounded, sizeof rounded);
  for (int i = 0; i < 12; i++) {
    if (rounded[i] != expected[i])
      fprintf(stderr, "%a -> 0x%04x, wanted 0x%04x\n", doubles[i], rounded[i], expected[i]);
  }
  CHECK(memcmp(rounded, expected, sizeof rounded) == 0);
  const float odd[6] = {1.9f, -1.9f, 300, -300, NAN, 3e9f};
  int8_t bytes[6];
  int32_t words[6];
  convert(CML_DTYPE_FLOAT32, odd, sizeof odd, CML_DTYPE_INT8, bytes, sizeof bytes);
  convert(CML_DTYPE_FLOAT32, odd, sizeof odd, CML_DTYPE_INT32, words, sizeof words);
  CHECK(bytes[0] == 1 && bytes[1] == -1 && bytes[2] == 127 && bytes[3] == -128 && bytes[4] == 0 && bytes[5] == 127);
  CHECK(words[0] == 1 && words[1] == -1 && words[2] == 300 && words[3] == -300 && words[4] == 0 &&
        words[5] == INT32_MAX);
  const int8_t signs[2] = {-5, 5};
  double wide[2];
  convert(CML_DTYPE_INT8, signs, 2, CML_DTYPE_FLOAT64, wide, sizeof wide);
  CHECK(wide[0] == -5 && wide[1] == 5);
  CmlValue *x = tensor_x();
  float small[5];
  REFUSED(B->tensor_read(x, CML_DTYPE_FLOAT32, small, sizeof small, &error), CML_INVALID_ARGUMENT, "20 bytes");
  REFUSED(B->tensor_read(x, 9, small, sizeof small, &error), CML_INVALID_ARGUMENT, "element type");
  B->value_release(x);
}

typedef struct Owner {
  atomic_int released;
  pthread_t by;
} Owner;
static void let_go(void *owner) {
  ((Owner *)owner)->by = pthread_self();
  ((Owner *)owner)->released++;
}

static void test_wrap(void) {
  CmlError *error = NULL;
  Owner owner = {0};
  static float memory[7] = {1, 2, 3, 9, 4, 5, 6};
  static const int64_t padded[2] = {4, 1};
  CmlTensorDesc desc = desc_of(CML_DTYPE_FLOAT32, 2, shape23, padded);
  CmlValue *value = NULL;
  CHECK(WENT(B->tensor_wrap(B->self, &desc, memory, sizeof memory, let_go, &owner, &value, &error)));
  CHECK(holds_f32(value, x_data, 6));
  memory[6] = 60; /* it is our memory */
  const float changed[6] = {1, 2, 3, 4, 5, 60};
  CHECK(holds_f32(value, changed, 6));
  memory[6] = 6;
  B->value_retain(value);
  B->value_release(value);
  CHECK(owner.released == 0);
  B->value_release(value);
  CHECK(owner.released == 1);
  /* Refused: the owner is untouched. */
  REFUSED(B->tensor_wrap(B->self, &desc, memory, sizeof memory - 4, let_go, &owner, &value, &error),
          CML_INVALID_ARGUMENT, "24 bytes");
  REFUSED(B->tensor_wrap(B->self, &desc, (char *)memory + 1, sizeof memory, let_go, &owner, &value, &error),
          CML_INVALID_ARGUMENT, "aligned");
  for (int mode = 0; mode < 2; mode++) {
    cml_workalike_set_hostile(mode == 0 ? 0 : CML_HOSTILE_EAGER_FREE);
    cml_workalike_inject(CML_INJECT_FAILURE, 1);
    REFUSED(B->tensor_wrap(B->self, &desc, memory, sizeof memory, let_go, &owner, &value, &error), CML_FRAMEWORK,
            "injected");
    cml_workalike_inject(CML_INJECT_NSEXCEPTION, 1);
    REFUSED(B->tensor_wrap(B->self, &desc, memory, sizeof memory, let_go, &owner, &value, &error), CML_OBJC_EXCEPTION,
            "injected");
    /* The array is there already, and something after it fails. */
    cml_workalike_inject(CML_INJECT_NSEXCEPTION, 4);
    REFUSED(B->tensor_wrap(B->self, &desc, memory, sizeof memory, let_go, &owner, &value, &error), CML_OBJC_EXCEPTION,
            "injected");
    cml_workalike_inject(CML_INJECT_NOTHING, 0);
  }
  cml_workalike_set_hostile(0);
  CHECK(owner.released == 1 && value == NULL);
}

static void see(void *context, void *bytes, const CmlTensorDesc *desc) {
  CHECK(desc->size == sizeof *desc && desc->rank == 2 && desc->dtype == CML_DTYPE_FLOAT32 && desc->byte_len == 24);
  memcpy(context, bytes, 24);
}
static void add_one(void *context, void *bytes, const CmlTensorDesc *desc) {
  (void)context;
  for (int64_t i = 0; i < desc->shape[0]; i++) {
    for (int64_t k = 0; k < desc->shape[1]; k++) ((float *)bytes)[i * desc->strides[0] + k * desc->strides[1]] += 1;
  }
}

static void test_with_bytes(void) {
  CmlError *error = NULL;
  CmlValue *x = tensor_x();
  float seen[6];
  CHECK(WENT(B->tensor_with_bytes(x, 0, see, seen, &error)) && memcmp(seen, x_data, 24) == 0);
  CHECK(WENT(B->tensor_with_bytes(x, 1, add_one, NULL, &error)));
  const float more[6] = {2, 3, 4, 5, 6, 7};
  CHECK(holds_f32(x, more, 6));
  cml_workalike_set_hostile(CML_HOSTILE_SHORT_BYTES); /* fewer bytes than the layout needs: nobody looks */
  REFUSED(B->tensor_with_bytes(x, 1, add_one, NULL, &error), CML_FRAMEWORK, "23 bytes");
  REFUSED(B->tensor_read(x, CML_DTYPE_FLOAT32, seen, 24, &error), CML_FRAMEWORK, "23 bytes");
  cml_workalike_set_hostile(0);
  B->value_release(x);
}

/* ---- the other kinds ---- */

static CmlValue *scalar(CmlKind kind, int64_t i, double d, const char *s) {
  CmlError *error = NULL;
  CmlScalarView view = {.size = sizeof view, .kind = kind, .int64 = i, .float64 = d, .string = str(s)};
  CmlValue *value = NULL;
  CHECK(WENT(B->scalar_new(B->self, &view, &value, &error)));
  return value;
}

static CmlValue *entries(CmlKind kind, size_t n, const int64_t *i, const CmlStr *s, const double *v) {
  CmlError *error = NULL;
  CmlEntries all = {sizeof all, s != NULL ? CML_KIND_STRING : CML_KIND_INT64, n, i, s, v};
  CmlValue *value = NULL;
  CHECK(WENT((kind == CML_KIND_DICTIONARY ? B->dictionary_new : B->sequence_new)(B->self, &all, &value, &error)));
  return value;
}

static void test_scalars(void) {
  CmlError *error = NULL;
  CmlValue *values[3] = {scalar(CML_KIND_INT64, INT64_MIN, 0, ""), scalar(CML_KIND_DOUBLE, 0, -0.5, ""),
                         scalar(CML_KIND_STRING, 0, 0, "h\xc3\xa9 \xf0\x9f\x8c\x8d")};
  CmlScalarView view = {.size = sizeof view};
  CHECK(WENT(B->scalar_view(values[0], &view, &error)) && view.kind == CML_KIND_INT64 && view.int64 == INT64_MIN);
  CHECK(WENT(B->scalar_view(values[1], &view, &error)) && view.kind == CML_KIND_DOUBLE && view.float64 == -0.5);
  CHECK(WENT(B->scalar_view(values[2], &view, &error)) && is(view.string, "h\xc3\xa9 \xf0\x9f\x8c\x8d"));
  REFUSED(B->tensor_read(values[0], CML_DTYPE_FLOAT32, &view, 4, &error), CML_TYPE_MISMATCH, "int64, not a tensor");
  CmlEntries wrong = {.size = sizeof wrong};
  REFUSED(B->entries_view(values[2], &wrong, &error), CML_TYPE_MISMATCH, "string");
  for (int i = 0; i < 3; i++) B->value_release(values[i]);
  CmlValue *value = NULL;
  view = (CmlScalarView){.size = sizeof view, .kind = CML_KIND_STRING, .string = {"a\xff", 2}};
  REFUSED(B->scalar_new(B->self, &view, &value, &error), CML_INVALID_ARGUMENT, "UTF-8");
  view = (CmlScalarView){.size = sizeof view, .kind = CML_KIND_TENSOR};
  REFUSED(B->scalar_new(B->self, &view, &value, &error), CML_INVALID_ARGUMENT, "kind");
  CmlValue *empty = scalar(CML_KIND_STRING, 0, 0, ""), *nul = NULL;
  view = (CmlScalarView){.size = sizeof view, .kind = CML_KIND_STRING, .string = {"a\0b", 3}};
  CHECK(WENT(B->scalar_new(B->self, &view, &nul, &error)));
  CHECK(WENT(B->scalar_view(empty, &view, &error)) && view.string.len == 0 && view.string.ptr != NULL);
  CHECK(WENT(B->scalar_view(nul, &view, &error)) && view.string.len == 3 && memcmp(view.string.ptr, "a\0b", 3) == 0);
  B->value_release(empty);
  B->value_release(nul);
}

static void test_entries(void) {
  CmlError *error = NULL;
  const CmlStr words[3] = {str("b"), str("a"), str("c")};
  const int64_t ids[3] = {9, -4, 3};
  const double weights[3] = {0.5, 0.25, 1};
  CmlEntries view = {.size = sizeof view};
  CmlValue *value = entries(CML_KIND_DICTIONARY, 3, NULL, words, weights);
  CHECK(B->value_kind(value) == CML_KIND_DICTIONARY && WENT(B->entries_view(value, &view, &error)));
  CHECK(view.n == 3 && view.key_kind == CML_KIND_STRING && view.int64_keys == NULL);
  CHECK(is(view.string_keys[0], "a") && view.values[0] == 0.25 && is(view.string_keys[2], "c") && view.values[2] == 1);
  B->value_release(value);
  value = entries(CML_KIND_DICTIONARY, 3, ids, NULL, weights);
  CHECK(WENT(B->entries_view(value, &view, &error)) && view.int64_keys[0] == -4 && view.values[2] == 0.5);
  B->value_release(value);
  value = entries(CML_KIND_SEQUENCE, 3, NULL, words, NULL); /* a sequence keeps its order */
  CHECK(WENT(B->entries_view(value, &view, &error)) && is(view.string_keys[0], "b") && view.values == NULL);
  B->value_release(value);
  value = entries(CML_KIND_SEQUENCE, 0, ids, NULL, NULL);
  CHECK(WENT(B->entries_view(value, &view, &error)) && view.n == 0 && view.key_kind == CML_KIND_INT64);
  B->value_release(value);
  const CmlStr twice[2] = {str("a"), str("a")}, bad[1] = {str("\x80")};
  CmlEntries all = {sizeof all, CML_KIND_STRING, 2, NULL, twice, weights};
  REFUSED(B->dictionary_new(B->self, &all, &value, &error), CML_INVALID_ARGUMENT, "twice");
  all = (CmlEntries){sizeof all, CML_KIND_STRING, 1, NULL, bad, weights};
  REFUSED(B->dictionary_new(B->self, &all, &value, &error), CML_INVALID_ARGUMENT, "UTF-8");
  all = (CmlEntries){sizeof all, CML_KIND_STRING, 1, ids, NULL, weights};
  REFUSED(B->dictionary_new(B->self, &all, &value, &error), CML_INVALID_ARGUMENT, "string keys");
  all = (CmlEntries){sizeof all, CML_KIND_INT64, 1, ids, words, weights};
  REFUSED(B->dictionary_new(B->self, &all, &value, &error), CML_INVALID_ARGUMENT, "exactly");
  all = (CmlEntries){sizeof all, CML_KIND_INT64, 1, ids, NULL, NULL};
  REFUSED(B->dictionary_new(B->self, &all, &value, &error), CML_INVALID_ARGUMENT, "values");
  all = (CmlEntries){sizeof all, CML_KIND_INT64, 1, ids, NULL, weights};
  REFUSED(B->sequence_new(B->self, &all, &value, &error), CML_INVALID_ARGUMENT, "values");
  all = (CmlEntries){sizeof all, CML_KIND_DOUBLE, 1, ids, NULL, weights};
  REFUSED(B->dictionary_new(B->self, &all, &value, &error), CML_INVALID_ARGUMENT, "key");
}

static CmlValue *image(CmlPixelFormat format, size_t pixel, const void *pixels, size_t row_bytes) {
  CmlError *error = NULL;
  CmlImageDesc desc = {sizeof desc, format, 3, 2, row_bytes};
  CmlValue *value = NULL;
  CHECK(WENT(B->image_new(B->self, &desc, pixels, row_bytes + 3 * pixel, &value, &error)));
  return value;
}

static void take_rows(void *context, void *pixels, const CmlImageDesc *desc) {
  size_t row = 3 * (desc->format == CML_PIXEL_BGRA8 ? 4u : desc->format == CML_PIXEL_GRAY8 ? 1u : 2u);
  CHECK(desc->size == sizeof *desc && desc->width == 3 && desc->height == 2 && desc->row_bytes >= row);
  memcpy(context, pixels, row);
  memcpy((char *)context + row, (char *)pixels + desc->row_bytes, row);
}
static void blacken(void *context, void *pixels, const CmlImageDesc *desc) {
  (void)context;
  memset((char *)pixels + desc->row_bytes, 0, 3);
}

static void test_images(void) {
  CmlError *error = NULL;
  static const unsigned char gray[8] = {1, 2, 3, 99, 4, 5, 6, 99}, dense[6] = {1, 2, 3, 4, 5, 6};
  unsigned char seen[24];
  CmlValue *value = image(CML_PIXEL_GRAY8, 1, gray, 4);
  CHECK(B->value_kind(value) == CML_KIND_IMAGE && WENT(B->image_with_bytes(value, 0, take_rows, seen, &error)));
  CHECK(memcmp(seen, dense, 6) == 0);
  CHECK(WENT(B->image_with_bytes(value, 1, blacken, NULL, &error)));
  CHECK(WENT(B->image_with_bytes(value, 0, take_rows, seen, &error)) && memcmp(seen, "\1\2\3\0\0\0", 6) == 0);
  REFUSED(B->tensor_with_bytes(value, 0, see, seen, &error), CML_TYPE_MISMATCH, "image");
  B->value_release(value);
  CmlImageDesc desc = {sizeof desc, CML_PIXEL_GRAY8, 3, 2, 4};
  REFUSED(B->image_new(B->self, &desc, gray, 6, &value, &error), CML_INVALID_ARGUMENT, "6 bytes");
  CHECK(WENT(B->image_new(B->self, &desc, gray, 7, &value, &error))); /* the last row needs no padding */
  B->value_release(value);
  desc.row_bytes = 2;
  REFUSED(B->image_new(B->self, &desc, gray, 8, &value, &error), CML_INVALID_ARGUMENT, "does not fit");
  desc = (CmlImageDesc){sizeof desc, 5, 3, 2, 4};
  REFUSED(B->image_new(B->self, &desc, gray, 8, &value, &error), CML_INVALID_ARGUMENT, "pixel format");
  desc = (CmlImageDesc){sizeof desc, CML_PIXEL_GRAY8, 0, 2, 4};
  REFUSED(B->image_new(B->self, &desc, gray, 8, &value, &error), CML_INVALID_ARGUMENT, "no pixels");
  desc = (CmlImageDesc){sizeof desc, CML_PIXEL_GRAY8, 3, 3, SIZE_MAX / 2};
  REFUSED(B->image_new(B->self, &desc, gray, 8, &value, &error), CML_INVALID_ARGUMENT, "rows");
  CmlValue *x = tensor_x();
  REFUSED(B->image_with_bytes(x, 0, take_rows, seen, &error), CML_TYPE_MISMATCH, "tensor, not an image");
  B->value_release(x);
}

/* ---- predictions ---- */

enum { N_ALL = 15 };
static const char *const all_names[N_ALL] = {"x",     "h",   "d",      "i",     "b",     "n",    "r",    "s",
                                             "words", "ids", "tokens", "steps", "photo", "scan", "depth"};
static const uint16_t h_data[6] = {0x3C00, 0x4000, 0x4200, 0x4400, 0x4500, 0xC600};
static const double d_data[6] = {1, 2, 3, 4, 5, -6};
static const int32_t i_data[6] = {1, 2, 3, 4, 5, -6};
static const int8_t b_data[6] = {1, 2, 3, 4, 5, -6};
static const unsigned char pixels[24] = {1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12,
                                         13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24};

static void make_all(CmlStr names[N_ALL], CmlValue *values[N_ALL]) {
  static const CmlStr words[2] = {{"b", 1}, {"a", 1}};
  static const int64_t ids[2] = {9, -4};
  static const double weights[2] = {0.5, 0.25};
  for (int i = 0; i < N_ALL; i++) names[i] = str(all_names[i]);
  values[0] = tensor_x();
  values[1] = tensor(CML_DTYPE_FLOAT16, h_data, sizeof h_data);
  values[2] = tensor(CML_DTYPE_FLOAT64, d_data, sizeof d_data);
  values[3] = tensor(CML_DTYPE_INT32, i_data, sizeof i_data);
  values[4] = tensor(CML_DTYPE_INT8, b_data, sizeof b_data);
  values[5] = scalar(CML_KIND_INT64, 21, 0, "");
  values[6] = scalar(CML_KIND_DOUBLE, 0, 0.75, "");
  values[7] = scalar(CML_KIND_STRING, 0, 0, "ab\xc3\xa9");
  values[8] = entries(CML_KIND_DICTIONARY, 2, NULL, words, weights);
  values[9] = entries(CML_KIND_DICTIONARY, 2, ids, NULL, weights);
  values[10] = entries(CML_KIND_SEQUENCE, 2, NULL, words, NULL);
  values[11] = entries(CML_KIND_SEQUENCE, 2, ids, NULL, NULL);
  values[12] = image(CML_PIXEL_BGRA8, 4, pixels, 12);
  values[13] = image(CML_PIXEL_GRAY8, 1, pixels, 3);
  values[14] = image(CML_PIXEL_GRAY16F, 2, pixels, 6);
}

static void inverted(const CmlResult *result, const char *name, size_t n) {
  CmlError *error = NULL;
  unsigned char seen[24], wanted[24];
  for (size_t i = 0; i < n; i++) wanted[i] = (unsigned char)~pixels[i];
  CHECK(WENT(B->image_with_bytes(output(result, name)->value, 0, take_rows, seen, &error)));
  CHECK(memcmp(seen, wanted, n) == 0);
}

static void check_all(const CmlResult *result) {
  CmlError *error = NULL;
  CmlResultView view = {.size = sizeof view};
  B->result_view(result, &view);
  CHECK(view.n_outputs == N_ALL && view.run_ns > 0 && view.prepare_ns > 0 && view.collect_ns > 0);
  CHECK(holds_f32(output(result, "out_x")->value, x_twice, 6));
  const float signed_twice[6] = {2, 4, 6, 8, 10, -12};
  CHECK(holds_f32(output(result, "out_h")->value, signed_twice, 6));
  CHECK(holds_f32(output(result, "out_d")->value, signed_twice, 6));
  CHECK(holds_f32(output(result, "out_i")->value, signed_twice, 6));
  CHECK(holds_f32(output(result, "out_b")->value, signed_twice, 6));
  CmlScalarView scalar = {.size = sizeof scalar};
  CHECK(WENT(B->scalar_view(output(result, "out_n")->value, &scalar, &error)) && scalar.int64 == 42);
  CHECK(WENT(B->scalar_view(output(result, "out_r")->value, &scalar, &error)) && scalar.float64 == 1.5);
  CHECK(WENT(B->scalar_view(output(result, "out_s")->value, &scalar, &error)) && is(scalar.string,
                                                                                    "ab\xc3\xa9"
                                                                                    "ab\xc3\xa9"));
  CmlEntries all = {.size = sizeof all};
  CHECK(WENT(B->entries_view(output(result, "out_words")->value, &all, &error)));
  CHECK(all.n == 2 && is(all.string_keys[0], "a") && all.values[0] == 0.5 && all.values[1] == 1);
  CHECK(WENT(B->entries_view(output(result, "out_ids")->value, &all, &error)));
  CHECK(all.n == 2 && all.int64_keys[0] == -4 && all.values[0] == 0.5);
  CHECK(WENT(B->entries_view(output(result, "out_tokens")->value, &all, &error)) && is(all.string_keys[0], "b"));
  CHECK(WENT(B->entries_view(output(result, "out_steps")->value, &all, &error)) && all.int64_keys[1] == -4);
  inverted(result, "out_photo", 24);
  inverted(result, "out_scan", 6);
  inverted(result, "out_depth", 12);
}

static void test_predict_every_kind(void) {
  CmlError *error = NULL;
  CmlModel *model = load();
  CmlStr names[N_ALL];
  CmlValue *values[N_ALL];
  make_all(names, values);
  static const uint32_t modes[] = {0, CML_HOSTILE_PADDED, CML_HOSTILE_PADDED | CML_HOSTILE_NESTED_ERRORS};
  for (size_t i = 0; i < sizeof modes / sizeof modes[0]; i++) {
    CmlResult *result = NULL;
    cml_workalike_set_hostile(modes[i]);
    CHECK(WENT(B->model_predict(model, NULL, names, values, N_ALL, NULL, &result, &error)));
    check_all(result);
    /* An output outlives its result and its model. */
    CmlValue *kept = output(result, "out_x")->value;
    CmlTensorDesc desc = {.size = sizeof desc};
    CHECK(WENT(B->tensor_desc(kept, &desc, &error)));
    CHECK((desc.strides[0] > 3) == (modes[i] != 0));
    B->value_retain(kept);
    B->result_free(result);
    CHECK(holds_f32(kept, x_twice, 6));
    B->value_release(kept);
  }
  cml_workalike_set_hostile(0);
  for (int i = 0; i < N_ALL; i++) B->value_release(values[i]);
  B->model_release(model);
}

static void test_wrong_inputs(void) {
  CmlError *error = NULL;
  CmlModel *model = load(), *other = load();
  CmlValue *x = tensor_x(), *n = scalar(CML_KIND_INT64, 1, 0, "");
  CmlResult *result = NULL;
  CmlStr names[2] = {str("x"), str("x")};
  CmlValue *two[2] = {x, x};
  REFUSED(B->model_predict(model, NULL, NULL, NULL, 0, NULL, &result, &error), CML_NOT_FOUND, "'x' is missing");
  REFUSED(B->model_predict(model, NULL, names, two, 2, NULL, &result, &error), CML_INVALID_ARGUMENT,
          "'x' is given twice");
  REFUSED(B->model_predict(model, NULL, names, &n, 1, NULL, &result, &error), CML_TYPE_MISMATCH, "'x' is a int64");
  names[1] = str("why");
  REFUSED(B->model_predict(model, NULL, names, two, 2, NULL, &result, &error), CML_NOT_FOUND, "'why'");
  names[1] = str("\xff");
  REFUSED(B->model_predict(model, NULL, names, two, 2, NULL, &result, &error), CML_INVALID_ARGUMENT, "UTF-8");
  static const int64_t shape[1] = {6};
  CmlTensorDesc desc = desc_of(CML_DTYPE_FLOAT32, 1, shape, NULL);
  CmlValue *flat = NULL;
  CHECK(WENT(B->tensor_copy(B->self, &desc, x_data, 24, &flat, &error)));
  REFUSED(B->model_predict(model, NULL, names, &flat, 1, NULL, &result, &error), CML_TYPE_MISMATCH, "shape");
  CHECK(result == NULL);
  CmlState *state = NULL;
  CHECK(WENT(B->state_new(other, &state, &error)));
  REFUSED(B->model_predict(model, state, names, &x, 1, NULL, &result, &error), CML_INVALID_ARGUMENT, "state");
  B->state_release(state);
  /* One value for two inputs is no breach of serial use. */
  names[1] = str("h");
  CmlValue *half = tensor(CML_DTYPE_FLOAT16, h_data, sizeof h_data);
  CmlStr three[3] = {str("x"), str("h"), str("d")};
  CmlValue *shared[3] = {x, half, x};
  CHECK(WENT(B->model_predict(model, NULL, three, shared, 3, NULL, &result, &error)));
  B->result_free(result);
  CHECK(holds_f32(x, x_data, 6)); /* and it is free again */
  B->value_release(half);
  B->value_release(flat);
  B->value_release(x);
  B->value_release(n);
  B->model_release(other);
  B->model_release(model);
}

static void test_wanted(void) {
  CmlError *error = NULL;
  CmlModel *model = load();
  CmlValue *x = tensor_x();
  CmlStr name = str("x");
  CmlStr wanted[2] = {str("out_x"), str("out_x")};
  CmlPredictOptions options = {.size = sizeof options, .wanted = wanted, .n_wanted = 1};
  CmlResult *result = NULL;
  CmlResultView view = {.size = sizeof view};
  CHECK(WENT(B->model_predict(model, NULL, &name, &x, 1, &options, &result, &error)));
  B->result_view(result, &view);
  CHECK(view.n_outputs == 1 && is(view.outputs[0].name, "out_x") && view.outputs[0].backing_used == 0);
  B->result_free(result);
  options.n_wanted = 2;
  REFUSED(B->model_predict(model, NULL, &name, &x, 1, &options, &result, &error), CML_INVALID_ARGUMENT, "twice");
  wanted[1] = str("out_of_sight");
  REFUSED(B->model_predict(model, NULL, &name, &x, 1, &options, &result, &error), CML_NOT_FOUND, "out_of_sight");
  wanted[1] = str("out_h"); /* its input was not given */
  REFUSED(B->model_predict(model, NULL, &name, &x, 1, &options, &result, &error), CML_FRAMEWORK, "out_h");
  options = (CmlPredictOptions){.size = offsetof(CmlPredictOptions, wanted), .n_wanted = 99, .n_backings = 99};
  CHECK(WENT(B->model_predict(model, NULL, &name, &x, 1, &options, &result, &error))); /* an older caller */
  B->result_free(result);
  B->value_release(x);
  B->model_release(model);
}

/* Two rows that differ, and one that is the first again: no row may be another's. */
static void test_batch(void) {
  CmlError *error = NULL;
  CmlModel *model = load();
  static const float other[6] = {-1, -2, -3, -4, -5, -6}, other_twice[6] = {-2, -4, -6, -8, -10, -12};
  CmlValue *x = tensor_x(), *y = tensor(CML_DTYPE_FLOAT32, other, sizeof other);
  CmlValue *half = tensor(CML_DTYPE_FLOAT16, h_data, sizeof h_data);
  CmlStr names[2] = {str("h"), str("x")}, wanted[1] = {str("out_x")};
  CmlValue *rows[6] = {half, x, half, y, half, x};
  CmlPredictOptions options = {.size = sizeof options, .wanted = wanted, .n_wanted = 1};
  CmlResult *results[3];
  static const uint32_t modes[] = {0, CML_HOSTILE_PADDED};
  for (size_t mode = 0; mode < sizeof modes / sizeof modes[0]; mode++) {
    cml_workalike_set_hostile(modes[mode]);
    CHECK(WENT(B->model_predict_batch(model, 3, names, rows, 2, &options, results, &error)));
    for (int row = 0; row < 3; row++) {
      CmlResultView view = {.size = sizeof view};
      B->result_view(results[row], &view);
      CHECK(view.n_outputs == 1 && is(view.outputs[0].name, "out_x") && view.run_ns > 0);
      CHECK(holds_f32(output(results[row], "out_x")->value, row == 1 ? other_twice : x_twice, 6));
      B->result_free(results[row]);
    }
  }
  memset(results, 0xFF, sizeof results);
  cml_workalike_set_hostile(CML_HOSTILE_LOSE_ROW);
  REFUSED(B->model_predict_batch(model, 3, names, rows, 2, NULL, results, &error), CML_FRAMEWORK,
          "3 rows were given, but 2 came back");
  CHECK(results[0] == NULL && results[1] == NULL && results[2] == NULL);
  cml_workalike_set_hostile(0);
  /* The last row is wrong: there is no result at all. */
  rows[5] = scalar(CML_KIND_INT64, 1, 0, "");
  memset(results, 0xFF, sizeof results);
  REFUSED(B->model_predict_batch(model, 3, names, rows, 2, NULL, results, &error), CML_TYPE_MISMATCH, "'x' is a int64");
  CHECK(results[0] == NULL && results[1] == NULL && results[2] == NULL);
  B->value_release(rows[5]);
  rows[5] = NULL;
  REFUSED(B->model_predict_batch(model, 3, names, rows, 2, NULL, results, &error), CML_INVALID_ARGUMENT, "input 5");
  CmlValue *backing = tensor_x();
  options = (CmlPredictOptions){
      .size = sizeof options, .backing_names = wanted, .backings = &backing, .n_backings = 1};
  REFUSED(B->model_predict_batch(model, 2, names, rows, 2, &options, results, &error), CML_UNSUPPORTED, "backings");
  REFUSED(B->model_predict_batch(model, SIZE_MAX / 2, names, NULL, 4, NULL, NULL, &error), CML_INVALID_ARGUMENT,
          "place");
  REFUSED(B->model_predict_batch(NULL, 2, names, rows, 2, NULL, results, &error), CML_INVALID_ARGUMENT, "model");
  CHECK(WENT(B->model_predict_batch(model, 0, names, NULL, 2, NULL, NULL, &error)));
  /* Everything is free again. */
  CHECK(holds_f32(x, x_data, 6));
  B->value_release(backing);
  B->value_release(half);
  B->value_release(y);
  B->value_release(x);
  B->model_release(model);
}

/* ---- without waiting ---- */

typedef struct Ended {
  pthread_mutex_t lock;
  pthread_cond_t changed;
  int times;
  CmlStatus status;
  CmlResult *result;
  CmlModel *model;
  CmlError *error;
  pthread_t thread;
} Ended;
#define ENDED {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER}

static void end_with(Ended *ended, CmlStatus status, CmlResult *result, CmlModel *model, CmlError *error) {
  pthread_mutex_lock(&ended->lock);
  ended->times++;
  ended->status = status;
  ended->result = result;
  ended->model = model;
  ended->error = error;
  ended->thread = pthread_self();
  pthread_cond_broadcast(&ended->changed);
  pthread_mutex_unlock(&ended->lock);
}
static void predicted(void *context, CmlStatus status, CmlResult *result, CmlError *error) {
  end_with(context, status, result, NULL, error);
}
static void loaded(void *context, CmlStatus status, CmlModel *model, CmlError *error) {
  end_with(context, status, NULL, model, error);
}
static int times_ended(Ended *ended) {
  pthread_mutex_lock(&ended->lock);
  int times = ended->times;
  pthread_mutex_unlock(&ended->lock);
  return times;
}
/* The status of the end; the error, if any, goes to *error. */
static CmlStatus await_end(Ended *ended, CmlError **error) {
  struct timespec until;
  clock_gettime(CLOCK_REALTIME, &until);
  until.tv_sec += 30;
  pthread_mutex_lock(&ended->lock);
  while (ended->times == 0) {
    if (pthread_cond_timedwait(&ended->changed, &ended->lock, &until) != 0) {
      fprintf(stderr, "an asynchronous call never ended\n");
      exit(1);
    }
  }
  CHECK(ended->times == 1);
  CHECK((ended->status == CML_OK) == (ended->error == NULL));
  *error = ended->error;
  pthread_mutex_unlock(&ended->lock);
  return ended->status;
}
static CmlStatus predict_and_wait(CmlModel *model, CmlState *state, const CmlStr *names, CmlValue *const *values,
                                  size_t n, CmlResult **result, CmlError **error) {
  Ended ended = ENDED;
  CmlStatus status = B->model_predict_async(model, state, names, values, n, NULL, predicted, &ended, NULL, error);
  if (status != CML_OK) {
    CHECK(times_ended(&ended) == 0);
    return status;
  }
  status = await_end(&ended, error);
  *result = ended.result;
  return status;
}
static CmlStatus load_and_wait(CmlStr path, const CmlConfig *config, CmlModel **model, CmlError **error) {
  Ended ended = ENDED;
  CmlStatus status = B->model_load_async(B->self, path, config, loaded, &ended, NULL, error);
  if (status != CML_OK) {
    CHECK(times_ended(&ended) == 0);
    return status;
  }
  status = await_end(&ended, error);
  *model = ended.model;
  return status;
}

static void test_predict_async(void) {
  CmlError *error = NULL;
  CmlModel *model = load();
  CmlStr x = str("x"), out_h = str("out_h");
  CmlValue *value = tensor_x();
  static const uint32_t modes[] = {0, CML_HOSTILE_PADDED, CML_HOSTILE_LATE_ANSWER, CML_HOSTILE_EARLY_ANSWER,
                                   CML_HOSTILE_LATE_RELEASE | CML_HOSTILE_PADDED | CML_HOSTILE_LATE_ANSWER};
  cml_workalike_set_late_release_ms(30);
  for (size_t i = 0; i < sizeof modes / sizeof modes[0]; i++) {
    Ended ended = ENDED;
    CmlRequest *request = NULL;
    cml_workalike_set_hostile(modes[i]);
    CHECK(WENT(B->model_predict_async(model, NULL, &x, &value, 1, NULL, predicted, &ended, &request, &error)));
    CHECK(request != NULL);
    CHECK(await_end(&ended, &error) == CML_OK);
    CHECK(!!pthread_equal(ended.thread, pthread_self()) == (modes[i] == CML_HOSTILE_EARLY_ANSWER));
    CHECK(holds_f32(output(ended.result, "out_x")->value, x_twice, 6));
    CmlResultView view = {.size = sizeof view};
    B->result_view(ended.result, &view);
    CHECK(view.run_ns > 0);
    B->request_cancel(request); /* too late, and harmless */
    CHECK(times_ended(&ended) == 1);
    B->request_release(request);
    B->result_free(ended.result);
  }
  /* While it runs, all that it uses is taken; what it uses is kept, though everybody else lets go of it. */
  cml_workalike_set_hostile(CML_HOSTILE_LATE_ANSWER);
  cml_workalike_set_late_release_ms(300);
  Ended first = ENDED;
  CmlState *state = NULL;
  CmlRequest *request = NULL;
  CmlResult *none = NULL;
  CHECK(WENT(B->state_new(model, &state, &error)));
  CHECK(WENT(B->model_predict_async(model, state, &x, &value, 1, NULL, predicted, &first, &request, &error)));
  REFUSED(B->model_predict(model, NULL, &x, &value, 1, NULL, &none, &error), CML_BUSY, "model");
  REFUSED(B->model_predict_async(model, NULL, &x, &value, 1, NULL, predicted, &first, NULL, &error), CML_BUSY, "model");
  REFUSED(B->tensor_with_bytes(value, 0, see, NULL, &error), CML_BUSY, "");
  REFUSED(B->state_with_bytes(state, str("acc"), 0, see, NULL, &error), CML_BUSY, "state");
  CHECK(times_ended(&first) == 0);
  CmlModel *kept = model;
  B->state_release(state);
  B->value_release(value);
  B->model_release(kept);
  B->request_release(request);
  CHECK(await_end(&first, &error) == CML_OK);
  CHECK(holds_f32(output(first.result, "out_x")->value, x_twice, 6));
  B->result_free(first.result);
  /* Cancelled: one end, late, without a result. Afterwards all is free again. */
  model = load();
  value = tensor_x();
  Ended second = ENDED;
  CHECK(WENT(B->model_predict_async(model, NULL, &x, &value, 1, NULL, predicted, &second, &request, &error)));
  B->request_cancel(request);
  B->request_cancel(request);
  CHECK(await_end(&second, &error) == CML_CANCELLED);
  CHECK(second.result == NULL && has(view_of(error, 0).message, "cancelled"));
  B->error_free(error);
  B->request_release(request);
  cml_workalike_set_hostile(0);
  CHECK(WENT(predict_and_wait(model, NULL, &x, &value, 1, &none, &error)));
  B->result_free(none);
  none = NULL;
  /* What cannot begin has no end. */
  CmlPredictOptions options = {.size = sizeof options, .backing_names = &x, .n_backings = 1};
  CmlValue *backing = tensor_x();
  options.backings = &backing;
  Ended never = ENDED;
  request = (CmlRequest *)&never;
  REFUSED(B->model_predict_async(model, NULL, &x, &value, 1, &options, predicted, &never, &request, &error),
          CML_NOT_FOUND, "no output 'x' to back");
  CHECK(request == NULL);
  options.backing_names = &out_h;
  options.backings = &value;
  REFUSED(B->model_predict_async(model, NULL, &x, &value, 1, &options, predicted, &never, &request, &error),
          CML_INVALID_ARGUMENT, "input 0 and backing 0 are one tensor");
  CHECK(holds_f32(backing, x_data, 6)); /* free, and untouched */
  B->value_release(backing);
  REFUSED(B->model_predict_async(model, NULL, &x, &value, 1, NULL, NULL, NULL, NULL, &error), CML_INVALID_ARGUMENT, "");
  REFUSED(B->model_predict_async(NULL, NULL, &x, &value, 1, NULL, predicted, &never, NULL, &error),
          CML_INVALID_ARGUMENT, "model");
  REFUSED(B->model_predict_async(model, NULL, NULL, NULL, 0, NULL, predicted, &never, NULL, &error), CML_NOT_FOUND,
          "'x' is missing");
  cml_test_macos = 1300;
  REFUSED(B->model_predict_async(model, NULL, &x, &value, 1, NULL, predicted, &never, NULL, &error), CML_UNSUPPORTED,
          "macOS 14");
  cml_test_macos = 0;
  CHECK(times_ended(&never) == 0);
  B->request_cancel(NULL);
  B->request_release(NULL);
  /* Failures of the framework's arrive with all that is known of them. */
  static const uint32_t ways[] = {0, CML_HOSTILE_NIL_ERROR, CML_HOSTILE_NESTED_ERRORS};
  for (size_t i = 0; i < sizeof ways / sizeof ways[0]; i++) {
    cml_workalike_set_hostile(ways[i]);
    int found = 0;
    for (long nth = 1; nth < 60; nth++) {
      cml_workalike_inject(CML_INJECT_FAILURE, nth);
      CmlStatus status = predict_and_wait(model, NULL, &x, &value, 1, &none, &error);
      const char *where = cml_workalike_injected();
      cml_workalike_inject(CML_INJECT_NOTHING, 0);
      if (where == NULL) {
        CHECK(status == CML_OK);
        B->result_free(none);
        none = NULL;
        break;
      }
      found += strstr(where, "completionHandler") != NULL;
      CHECK(status == CML_FRAMEWORK && none == NULL);
      CmlErrorView view = view_of(error, 0);
      CHECK(view.message.len > 0);
      if (strstr(where, "completionHandler") != NULL) CHECK(view.depth_left == (i == 2 ? 3 : 0));
      B->error_free(error);
      error = NULL;
      none = NULL;
    }
    CHECK(found == 1);
  }
  cml_workalike_set_hostile(0);
  B->value_release(value);
  B->model_release(model);
}

/* A call that throws may have begun what it was asked for: its answer comes before it throws, afterwards, or at once. */
static void test_throws_after(void) {
  static const uint32_t modes[] = {CML_HOSTILE_LATE_ANSWER, CML_HOSTILE_EARLY_ANSWER, 0};
  CmlError *error = NULL;
  CmlModel *model = load();
  CmlState *state = NULL;
  CmlValue *x = tensor_x();
  CmlStr name = str("x");
  CmlBlob *json = NULL;
  CmlResult *result = NULL;
  char path[512];
  snprintf(path, sizeof path, "%s", path_to("model.mlmodel"));
  CHECK(WENT(B->state_new(model, &state, &error)));
  cml_workalike_set_late_release_ms(50);
  for (size_t i = 0; i < 2 * (sizeof modes / sizeof modes[0]); i++) {
    uint32_t mode = modes[i / 2];
    Ended ended = ENDED;
    CmlRequest *request = NULL;
    cml_workalike_set_hostile(mode | CML_HOSTILE_THROW_AFTER);
    CmlStatus status = B->model_predict_async(model, i % 2 == 0 ? NULL : state, &name, &x, 1, NULL, predicted, &ended,
                                              &request, &error);
    /* An answer that came first counts; after a failure there is no other end. */
    CHECK(mode == 0 || status == (mode == CML_HOSTILE_EARLY_ANSWER ? CML_OK : CML_OBJC_EXCEPTION));
    CHECK((request != NULL) == (status == CML_OK));
    if (status == CML_OK) {
      CHECK(await_end(&ended, &error) == CML_OK && holds_f32(output(ended.result, "out_x")->value, x_twice, 6));
      B->request_release(request);
      B->result_free(ended.result);
    } else {
      REFUSED(status, CML_OBJC_EXCEPTION, "answers all the same");
      pause_ms(mode == 0 ? 0 : 150);
      CHECK(times_ended(&ended) == 0);
    }
    cml_workalike_set_hostile(0);
    CHECK(WENT(B->model_predict(model, state, &name, &x, 1, NULL, &result, &error))); /* all is free again */
    B->result_free(result);
    cml_workalike_set_hostile(mode | CML_HOSTILE_THROW_AFTER);
    REFUSED(B->function_names(B->self, str(path), &json, &error), CML_OBJC_EXCEPTION, "answers");
    REFUSED(B->model_structure(B->self, str(path), &json, &error), CML_OBJC_EXCEPTION, "answers");
    REFUSED(B->compute_plan(B->self, str(path), NULL, &json, &error), CML_OBJC_EXCEPTION, "answers");
    pause_ms(mode == CML_HOSTILE_LATE_ANSWER ? 150 : 0);
  }
  cml_workalike_set_hostile(0);
  cml_workalike_set_late_release_ms(1000);
  B->value_release(x);
  B->state_release(state);
  B->model_release(model);
}

static void test_load_async(void) {
  CmlError *error = NULL;
  CmlModel *model = NULL;
  CHECK(WENT(load_and_wait(str(path_to("model.mlmodel")), NULL, &model, &error)));
  CmlBlob *json = NULL;
  CHECK(WENT(B->model_describe(model, &json, &error)));
  B->blob_free(json);
  B->model_release(model);
  model = NULL;
  /* The path and the names are copied: the caller's may go at once. */
  {
    char path[400], function[] = "main";
    snprintf(path, sizeof path, "%s", path_to("model.mlpackage"));
    CmlConfig config = {.size = sizeof config, .compute_units = CML_COMPUTE_ALL, .function_name = str(function)};
    Ended ended = ENDED;
    CHECK(WENT(B->model_load_async(B->self, str(path), &config, loaded, &ended, NULL, &error)));
    memset(path, '!', sizeof path);
    memset(function, '!', sizeof function);
    memset(&config, 0xFF, sizeof config);
    CHECK(await_end(&ended, &error) == CML_OK);
    B->model_release(ended.model);
  }
  CHECK(load_and_wait(str("no/such.mlmodel"), NULL, &model, &error) == CML_NOT_FOUND && model == NULL);
  CHECK(has(view_of(error, 0).message, "no/such.mlmodel"));
  B->error_free(error);
  CHECK(load_and_wait(str(path_to("corrupt.mlmodel")), NULL, &model, &error) == CML_FRAMEWORK && model == NULL);
  B->error_free(error);
  error = NULL;
  CmlConfig small = {.size = 2};
  REFUSED(load_and_wait(str(path_to("model.mlmodel")), &small, &model, &error), CML_INVALID_ARGUMENT, "too small");
  REFUSED(B->model_load_async(B->self, str(path_to("model.mlmodel")), NULL, NULL, NULL, NULL, &error),
          CML_INVALID_ARGUMENT, "");
  /* A load that does not end: cancelling ends it for us, and what comes of it later is let go. */
  cml_workalike_set_hostile(CML_HOSTILE_STUCK_LOAD);
  Ended stuck = ENDED;
  CmlRequest *request = NULL;
  CHECK(WENT(
      B->model_load_async(B->self, str(path_to("model.mlmodel")), NULL, loaded, &stuck, &request, &error)));
  pause_ms(30);
  CHECK(times_ended(&stuck) == 0);
  B->request_cancel(request);
  CHECK(times_ended(&stuck) == 1 && stuck.status == CML_CANCELLED && stuck.model == NULL);
  B->error_free(stuck.error);
  B->request_cancel(request);
  B->request_release(request);
  cml_workalike_set_hostile(0);
  MUST_BALANCE("a load that was stuck");
  CHECK(times_ended(&stuck) == 1);
}

static void test_function_names(void) {
  CmlError *error = NULL;
  CmlBlob *json = NULL;
  CHECK(WENT(B->function_names(B->self, str(path_to("model.mlmodel")), &json, &error)));
  CHECK(is(B->blob_bytes(json), "[\"main\",\"other\"]"));
  B->blob_free(json);
  MUST_BALANCE("the compiled model of a question");
  REFUSED(B->function_names(B->self, str(path_to("absent.mlmodel")), &json, &error), CML_NOT_FOUND, "absent");
  REFUSED(B->function_names(B->self, str(path_to("notes.txt")), &json, &error), CML_UNSUPPORTED, "neither");
  REFUSED(B->function_names(B->self, str(path_to("model.mlmodel")), NULL, &error), CML_INVALID_ARGUMENT, "place");
  CHECK(json == NULL);
  cml_test_macos = 1407;
  REFUSED(B->function_names(B->self, str(path_to("model.mlmodel")), &json, &error), CML_UNSUPPORTED, "macOS 15");
  cml_test_macos = 0;
}

/* What a slot that answers JSON says of a file, and then nothing is left of it. */
static bool answers(CmlStatus status, CmlBlob *json, CmlError **error, const char *wanted) {
  if (!went_(__LINE__, status, error)) return false;
  CmlStr said = B->blob_bytes(json);
  bool right = is(said, wanted);
  if (!right) fprintf(stderr, "it said  %.*s\nand not  %s\n", (int)said.len, said.ptr, wanted);
  B->blob_free(json);
  MUST_BALANCE("the compiled model of a question");
  return right;
}

#define PLANNED ",\"devices\":{\"preferred\":\"cpu\",\"supported\":[\"cpu\",\"gpu\"]}"
#define PROGRAM(way, weight)                                                                                       \
  "{\"kind\":\"ML program\",\"functions\":{\"main\":{\"inputs\":[{\"name\":\"x\"}],\"ops\":["                  \
  "{\"kind\":\"add\",\"inputs\":{\"x\":[\"x\"],\"y\":[\"x\"]},\"outputs\":[{\"name\":\"out_x\"}]" way weight "}," \
  "{\"kind\":\"cond\",\"inputs\":{\"pred\":[\"constant\"]},\"outputs\":[],\"blocks\":[{\"inputs\":[],\"ops\":[],"  \
  "\"outputs\":[\"x\"]}]}],\"outputs\":[\"out_x\"]},\"other\":{\"inputs\":[],\"ops\":[],\"outputs\":[]}}}"
#define NETWORK(way)                                                                                       \
  "{\"kind\":\"neural network\",\"functions\":{\"main\":{\"ops\":[{\"kind\":\"relu\",\"name\":\"a layer\"," \
  "\"inputs\":{\"\":[\"x\"]},\"outputs\":[{\"name\":\"out_x\"}]" way "}]}}}"

static void test_structure(void) {
  static const struct {
    const char *file, *structure, *plan;
  } models[] = {
      {"model.mlmodel", PROGRAM("", ""), PROGRAM(PLANNED, ",\"weight\":0.25")},
      {"model.mlpackage", PROGRAM("", ""), PROGRAM(PLANNED, ",\"weight\":0.25")},
      {"network.mlmodel", NETWORK(""), NETWORK(PLANNED)},
      {"pipeline.mlmodel",
       "{\"kind\":\"pipeline\",\"functions\":{},\"models\":[" NETWORK("") "," PROGRAM("", "") "]}", NULL},
  };
  static const uint32_t modes[] = {0, CML_HOSTILE_LATE_ANSWER, CML_HOSTILE_EARLY_ANSWER};
  CmlError *error = NULL;
  CmlBlob *json = NULL;
  cml_workalike_set_late_release_ms(30);
  for (size_t mode = 0; mode < sizeof modes / sizeof modes[0]; mode++) {
    cml_workalike_set_hostile(modes[mode]);
    for (size_t i = 0; i < sizeof models / sizeof models[0]; i++) {
      CmlStr path = str(path_to(models[i].file));
      CmlStatus status = B->model_structure(B->self, path, &json, &error);
      CHECK(answers(status, json, &error, models[i].structure));
      status = B->compute_plan(B->self, path, NULL, &json, &error);
      CHECK(answers(status, json, &error, models[i].plan != NULL ? models[i].plan : models[i].structure));
    }
  }
  /* What does not come in time is no failure that Core ML did not explain. */
  cml_workalike_set_hostile(CML_HOSTILE_LATE_ANSWER);
  cml_workalike_set_late_release_ms(200);
  cml_test_wait_ms = 20;
  REFUSED(B->function_names(B->self, str(path_to("model.mlmodel")), &json, &error), CML_FRAMEWORK, "in time");
  REFUSED(B->model_structure(B->self, str(path_to("model.mlmodel")), &json, &error), CML_FRAMEWORK, "in time");
  REFUSED(B->compute_plan(B->self, str(path_to("model.mlmodel")), NULL, &json, &error), CML_FRAMEWORK, "in time");
  cml_test_wait_ms = 0;
  cml_workalike_set_hostile(0);
  cml_workalike_set_late_release_ms(1000);
  /* The configuration is the one of a load. */
  char kept[512]; /* path_to's are used again */
  snprintf(kept, sizeof kept, "%s", path_to("model.mlmodel"));
  CmlStr path = str(kept);
  CmlConfig config = {
      .size = sizeof config, .compute_units = CML_COMPUTE_CPU_AND_GPU, .function_name = str("other"), .flags = 1};
  CHECK(WENT(B->compute_plan(B->self, path, &config, &json, &error)));
  B->blob_free(json);
  CHECK(cml_test_delegate_config()->compute_units == CML_COMPUTE_CPU_AND_GPU &&
        cml_test_delegate_config()->flags == 1 && strcmp(cml_test_delegate_function(), "other") == 0);
  config.function_name = str("neither");
  REFUSED(B->compute_plan(B->self, path, &config, &json, &error), CML_NOT_FOUND, "main, other");
  CmlConfig threads = {.size = sizeof threads, .threads = 3};
  REFUSED(B->compute_plan(B->self, path, &threads, &json, &error), CML_UNSUPPORTED, "CPU threads");
  CmlConfig small = {.size = 2};
  REFUSED(B->compute_plan(B->self, path, &small, &json, &error), CML_INVALID_ARGUMENT, "too small");
  MUST_BALANCE("plans that were refused");
  CHECK(json == NULL);
  REFUSED(B->model_structure(B->self, path, NULL, &error), CML_INVALID_ARGUMENT, "place");
  REFUSED(B->compute_plan(B->self, path, NULL, NULL, &error), CML_INVALID_ARGUMENT, "place");
  REFUSED(B->model_structure(B->self, str(path_to("absent.mlmodel")), &json, &error), CML_NOT_FOUND, "absent");
  REFUSED(B->compute_plan(B->self, str(path_to("absent.mlmodel")), NULL, &json, &error), CML_NOT_FOUND, "absent");
  REFUSED(B->model_structure(B->self, str(path_to("notes.txt")), &json, &error), CML_UNSUPPORTED, "neither");
  REFUSED(B->model_structure(B->self, str(path_to("corrupt.mlmodel")), &json, &error), CML_FRAMEWORK, "damaged");
  cml_test_macos = 1403;
  REFUSED(B->model_structure(B->self, path, &json, &error), CML_UNSUPPORTED, "macOS 14.4 or iOS 17.4");
  REFUSED(B->compute_plan(B->self, path, NULL, &json, &error), CML_UNSUPPORTED, "macOS 14.4 or iOS 17.4");
  cml_test_macos = 1404;
  CHECK(WENT(B->model_structure(B->self, path, &json, &error)));
  B->blob_free(json);
  cml_test_macos = 0;
}

static void test_backings(void) {
  CmlError *error = NULL;
  CmlModel *model = load();
  CmlValue *x = tensor_x();
  CmlStr name = str("x"), out = str("out_x");
  static const int64_t padded[2] = {16, 1}, folded[2] = {0, 1}, shape32[2] = {3, 2};
  CmlTensorDesc dense = desc_of(CML_DTYPE_FLOAT32, 2, shape23, NULL),
                wide = desc_of(CML_DTYPE_FLOAT32, 2, shape23, padded);
  CmlTensorDesc doubles = desc_of(CML_DTYPE_FLOAT64, 2, shape23, NULL);
  const struct {
    uint32_t mode;
    const CmlTensorDesc *desc;
    int macos;
    uint32_t used;
  } cases[] = {
      {0, &dense, 0, 1},
      {0, &wide, 0, 1},
      {CML_HOSTILE_PADDED, &wide, 0, 1},
      {CML_HOSTILE_IGNORE_BACKINGS, &dense, 0, 0},
      {CML_HOSTILE_IGNORE_BACKINGS, &wide, 0, 0},
      {CML_HOSTILE_IGNORE_BACKINGS | CML_HOSTILE_PADDED, &wide, 0, 0},
      {CML_HOSTILE_ALIAS_BACKINGS, &dense, 0, 1},
      {0, &doubles, 0, 0},  /* not shown to the framework, converted */
      {0, &dense, 1015, 0}, /* too old for backings */
  };
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    CmlValue *backing = NULL;
    CmlResult *result = NULL;
    CHECK(WENT(B->tensor_new(B->self, cases[i].desc, &backing, &error)));
    CmlPredictOptions options = {.size = sizeof options, .backing_names = &out, .backings = &backing, .n_backings = 1};
    cml_workalike_set_hostile(cases[i].mode);
    cml_test_macos = cases[i].macos;
    CHECK(WENT(B->model_predict(model, NULL, &name, &x, 1, &options, &result, &error)));
    cml_workalike_set_hostile(0);
    cml_test_macos = 0;
    const CmlOutput *given = output(result, "out_x");
    if (given->backing_used != cases[i].used) fprintf(stderr, "backing case %zu\n", i);
    CHECK(given->backing_used == cases[i].used && given->value == backing);
    B->result_free(result);
    CHECK(holds_f32(backing, x_twice, 6));
    B->value_release(backing);
  }
  /* The same without waiting, where the system can; the caller lets go of everything at once. */
  cml_workalike_set_late_release_ms(30);
  for (size_t i = 0; i < 2 * (sizeof cases / sizeof cases[0]); i++) {
    size_t at = i / 2;
    if (cases[at].macos != 0) continue;
    CmlValue *backing = NULL, *given_x = tensor_x();
    CmlStr as_named[1] = {out};
    Ended ended = ENDED;
    CHECK(WENT(B->tensor_new(B->self, cases[at].desc, &backing, &error)));
    CmlValue *backings[1] = {backing};
    CmlPredictOptions options = {
        .size = sizeof options, .backing_names = as_named, .backings = backings, .n_backings = 1};
    cml_workalike_set_hostile(cases[at].mode | (i % 2 == 0 ? CML_HOSTILE_LATE_ANSWER : CML_HOSTILE_EARLY_ANSWER));
    CHECK(WENT(B->model_predict_async(model, NULL, &name, &given_x, 1, &options, predicted, &ended, NULL, &error)));
    if (i % 2 == 0) REFUSED(B->tensor_with_bytes(backing, 1, see, NULL, &error), CML_BUSY, "");
    memset(as_named, 0xFF, sizeof as_named);
    memset(backings, 0xFF, sizeof backings);
    memset(&options, 0xFF, sizeof options);
    B->value_release(given_x);
    B->value_release(backing); /* the result has it yet */
    CHECK(await_end(&ended, &error) == CML_OK);
    cml_workalike_set_hostile(0);
    const CmlOutput *given = output(ended.result, "out_x");
    CHECK(given->backing_used == cases[at].used && given->value == backing);
    CHECK(holds_f32(given->value, x_twice, 6));
    B->result_free(ended.result);
  }
  cml_workalike_set_late_release_ms(1000);
  CmlValue *backing = NULL, *pair[2];
  CmlStr names[2] = {out, out};
  CmlResult *result = NULL;
  CHECK(WENT(B->tensor_new(B->self, &dense, &backing, &error)));
  CmlPredictOptions options = {.size = sizeof options, .backing_names = names, .backings = pair, .n_backings = 2};
  pair[0] = pair[1] = backing;
  REFUSED(B->model_predict(model, NULL, &name, &x, 1, &options, &result, &error), CML_INVALID_ARGUMENT, "one tensor");
  options.n_backings = 1;
  pair[0] = x;
  REFUSED(B->model_predict(model, NULL, &name, &x, 1, &options, &result, &error), CML_INVALID_ARGUMENT, "one tensor");
  pair[0] = backing;
  names[0] = str("out_y");
  REFUSED(B->model_predict(model, NULL, &name, &x, 1, &options, &result, &error), CML_NOT_FOUND, "out_y");
  names[0] = str("out_s");
  REFUSED(B->model_predict(model, NULL, &name, &x, 1, &options, &result, &error), CML_TYPE_MISMATCH, "out_s");
  names[0] = str("out_h");
  options.wanted = &out;
  options.n_wanted = 1;
  REFUSED(B->model_predict(model, NULL, &name, &x, 1, &options, &result, &error), CML_INVALID_ARGUMENT, "not wanted");
  names[0] = out;
  CmlValue *text = scalar(CML_KIND_STRING, 0, 0, "t");
  pair[0] = text;
  REFUSED(B->model_predict(model, NULL, &name, &x, 1, &options, &result, &error), CML_TYPE_MISMATCH, "string");
  B->value_release(text);
  CmlImageDesc gray = {sizeof gray, CML_PIXEL_GRAY8, 3, 2, 3};
  CHECK(WENT(B->image_new(B->self, &gray, pixels, 6, &pair[0], &error)));
  REFUSED(B->model_predict(model, NULL, &name, &x, 1, &options, &result, &error), CML_UNSUPPORTED, "image");
  B->value_release(pair[0]);
  B->value_release(backing);
  CmlTensorDesc odd = desc_of(CML_DTYPE_FLOAT32, 2, shape23, folded);
  CHECK(WENT(B->tensor_new(B->self, &odd, &backing, &error)));
  pair[0] = backing;
  REFUSED(B->model_predict(model, NULL, &name, &x, 1, &options, &result, &error), CML_INVALID_ARGUMENT, "share memory");
  B->value_release(backing);
  odd = desc_of(CML_DTYPE_FLOAT32, 2, shape32, NULL);
  CHECK(WENT(B->tensor_new(B->self, &odd, &backing, &error)));
  pair[0] = backing;
  REFUSED(B->model_predict(model, NULL, &name, &x, 1, &options, &result, &error), CML_TYPE_MISMATCH, "float32 [3, 2]");
  CHECK(result == NULL);
  B->value_release(backing);
  B->value_release(x);
  B->model_release(model);
}

/* ---- states ---- */

static void test_states(void) {
  CmlError *error = NULL;
  CmlModel *model = load();
  CmlValue *x = tensor_x();
  CmlStr name = str("x"), acc = str("acc");
  CmlState *one = NULL, *two = NULL;
  CmlResult *result = NULL;
  float seen[6];
  CHECK(WENT(B->state_new(model, &one, &error)) && WENT(B->state_new(model, &two, &error)));
  for (int i = 0; i < 3; i++) {
    CHECK(WENT(B->model_predict(model, one, &name, &x, 1, NULL, &result, &error)));
    B->result_free(result);
  }
  CHECK(WENT(B->state_with_bytes(one, acc, 0, see, seen, &error)) && seen[0] == 3 && seen[5] == 18);
  CHECK(WENT(B->state_with_bytes(two, acc, 0, see, seen, &error)) && seen[0] == 0 && seen[5] == 0);
  CHECK(WENT(B->state_with_bytes(two, acc, 1, add_one, NULL, &error)));
  CHECK(WENT(B->model_predict(model, two, &name, &x, 1, NULL, &result, &error)));
  B->result_free(result);
  CHECK(WENT(B->state_with_bytes(two, acc, 0, see, seen, &error)) && seen[0] == 2 && seen[5] == 7);
  REFUSED(B->state_with_bytes(one, str("none"), 0, see, seen, &error), CML_NOT_FOUND, "'none'");
  REFUSED(B->state_with_bytes(one, str("\xff"), 0, see, seen, &error), CML_INVALID_ARGUMENT, "UTF-8");
  B->state_release(two);
  B->model_release(model); /* a state keeps its model */
  CHECK(WENT(B->state_with_bytes(one, acc, 0, see, seen, &error)) && seen[0] == 3);
  B->state_release(one);
  B->value_release(x);
}

/* ---- rule 1 ---- */

typedef struct Breach {
  CmlModel *model;
  CmlState *state;
  CmlValue *x;
  bool tensor, in_state;
  int busy;
} Breach;

static void expect_busy(Breach *breach, CmlStatus status, CmlError *error) {
  CHECK(status == CML_BUSY && view_of(error, 0).status == CML_BUSY);
  B->error_free(error);
  breach->busy++;
}

/* Breaks the rule while the handle is in use: from inside the call, or from another thread. */
static void *breach_now(void *context) {
  Breach *breach = context;
  CmlError *error = NULL;
  CmlResult *result = (CmlResult *)(void *)&error;
  CmlStr name = str("x");
  float ignored[6];
  if (breach->tensor) {
    expect_busy(breach, B->tensor_read(breach->x, CML_DTYPE_FLOAT32, ignored, 24, &error), error);
    expect_busy(breach, B->tensor_with_bytes(breach->x, 0, see, ignored, &error), error);
  }
  if (breach->in_state) {
    expect_busy(breach, B->state_with_bytes(breach->state, str("acc"), 0, see, ignored, &error), error);
    expect_busy(breach, B->model_predict(breach->model, breach->state, &name, &breach->x, 1, NULL, &result, &error),
                error);
  } else {
    expect_busy(breach, B->model_predict(breach->model, NULL, &name, &breach->x, 1, NULL, &result, &error), error);
  }
  CHECK(result == NULL);
  return NULL;
}
static void breach_visit(void *context, void *bytes, const CmlTensorDesc *desc) {
  (void)bytes;
  (void)desc;
  pthread_t thread;
  breach_now(context);
  pthread_create(&thread, NULL, breach_now, context);
  pthread_join(thread, NULL);
}

static atomic_int race_ok, race_busy, race_other;
static void *race(void *context) {
  Breach *breach = context;
  CmlStr name = str("x");
  CmlValue *mine = tensor_x();
  for (int i = 0; i < 200; i++) {
    CmlResult *result = NULL;
    CmlStatus status = B->model_predict(breach->model, NULL, &name, &mine, 1, NULL, &result, NULL);
    if (status == CML_OK) CHECK(holds_f32(output(result, "out_x")->value, x_twice, 6));
    *(status == CML_OK ? &race_ok : status == CML_BUSY ? &race_busy : &race_other) += 1;
    B->result_free(result);
  }
  B->value_release(mine);
  return NULL;
}

static void test_serial(void) {
  CmlError *error = NULL;
  Breach breach = {.model = load(), .x = tensor_x(), .tensor = true};
  CHECK(WENT(B->state_new(breach.model, &breach.state, &error)));
  CHECK(WENT(B->tensor_with_bytes(breach.x, 1, breach_visit, &breach, &error)) && breach.busy == 6);
  breach.tensor = false;
  breach.in_state = true;
  CHECK(WENT(B->state_with_bytes(breach.state, str("acc"), 1, breach_visit, &breach, &error)) && breach.busy == 10);
  CHECK(holds_f32(breach.x, x_data, 6)); /* everything is free again */
  CmlStr name = str("x");
  CmlResult *result = NULL;
  CHECK(WENT(B->model_predict(breach.model, breach.state, &name, &breach.x, 1, NULL, &result, &error)));
  B->result_free(result);
  /* Four threads on one model: each call runs alone or not at all. */
  pthread_t threads[4];
  for (int i = 0; i < 4; i++) pthread_create(&threads[i], NULL, race, &breach);
  for (int i = 0; i < 4; i++) pthread_join(threads[i], NULL);
  CHECK(race_ok > 0 && race_other == 0 && race_ok + race_busy == 800);
  B->state_release(breach.state);
  B->value_release(breach.x);
  B->model_release(breach.model);
}

/* ---- hostile ---- */

static void test_late_release(void) {
  CmlError *error = NULL;
  CmlModel *model = load();
  static float memory[6] = {1, 2, 3, 4, 5, 6};
  Owner owner = {0};
  CmlTensorDesc desc = desc_of(CML_DTYPE_FLOAT32, 2, shape23, NULL);
  CmlValue *x = NULL;
  CmlResult *result = NULL;
  CmlStr name = str("x");
  CHECK(WENT(B->tensor_wrap(B->self, &desc, memory, sizeof memory, let_go, &owner, &x, &error)));
  cml_workalike_set_hostile(CML_HOSTILE_LATE_RELEASE);
  cml_workalike_set_late_release_ms(400);
  CHECK(WENT(B->model_predict(model, NULL, &name, &x, 1, NULL, &result, &error)));
  cml_workalike_set_hostile(0);
  B->result_free(result);
  B->value_release(x);
  B->model_release(model);
  CHECK(owner.released == 0); /* everything is released, but the framework still has it */
  for (int i = 0; i < 500 && owner.released == 0; i++) pause_ms(10);
  CHECK(owner.released == 1 && !pthread_equal(owner.by, pthread_self()));
}

static void test_errors(void) {
  CmlError *error = NULL;
  CmlModel *model = load();
  CmlValue *x = tensor_x();
  CmlResult *result = NULL;
  CmlStr name = str("x");
  cml_workalike_set_hostile(CML_HOSTILE_NESTED_ERRORS);
  cml_workalike_inject(CML_INJECT_FAILURE, 2); /* 1 gathers the inputs, 2 predicts */
  CHECK(B->model_predict(model, NULL, &name, &x, 1, NULL, &result, &error) == CML_FRAMEWORK && result == NULL);
  for (uint32_t depth = 0; depth < 4; depth++) {
    CmlErrorView view = view_of(error, depth);
    CHECK(view.depth_left == 3 - depth && is(view.domain, "com.apple.CoreML") && view.status == CML_FRAMEWORK);
    CHECK(view.code == (depth == 3 ? 0 : 101 + (int64_t)depth));
    CHECK(depth < 3 ? has(view.message, "nested") : has(view.message, "predictionFromFeatures"));
  }
  B->error_free(error);
  error = NULL;
  cml_workalike_set_hostile(CML_HOSTILE_NIL_ERROR);
  cml_workalike_inject(CML_INJECT_FAILURE, 1);
  REFUSED(B->model_predict(model, NULL, &name, &x, 1, NULL, &result, &error), CML_FRAMEWORK, "did not say why");
  cml_workalike_inject(CML_INJECT_FAILURE, 2);
  REFUSED(B->model_predict(model, NULL, &name, &x, 1, NULL, &result, &error), CML_FRAMEWORK, "did not say why");
  CmlModel *none = NULL;
  REFUSED(B->model_load(B->self, str(path_to("corrupt.mlmodel")), NULL, &none, &error), CML_FRAMEWORK,
          "did not say why");
  cml_workalike_inject(CML_INJECT_NOTHING, 0);
  cml_workalike_set_hostile(0);
  /* The model is as good as new. */
  CHECK(WENT(B->model_predict(model, NULL, &name, &x, 1, NULL, &result, &error)));
  B->result_free(result);
  B->value_release(x);
  B->model_release(model);
}

static void test_old_systems(void) {
  CmlError *error = NULL;
  CmlStr path = str(path_to("model.mlmodel"));
  CmlTensorDesc half = desc_of(CML_DTYPE_FLOAT16, 2, shape23, NULL), byte = desc_of(CML_DTYPE_INT8, 2, shape23, NULL);
  CmlValue *value = NULL;
  CmlModel *model = NULL;
  CmlState *state = NULL;
  CmlBlob *json = NULL;
  cml_test_macos = 1100; /* macOS 11.0 */
  CmlConfig config = {.size = sizeof config, .compute_units = CML_COMPUTE_CPU_AND_NEURAL_ENGINE};
  REFUSED(B->model_load(B->self, path, &config, &model, &error), CML_UNSUPPORTED, "macOS 13");
  config = (CmlConfig){.size = sizeof config, .function_name = str("main")};
  REFUSED(B->model_load(B->self, path, &config, &model, &error), CML_UNSUPPORTED, "macOS 15");
  config = (CmlConfig){.size = sizeof config, .display_name = str("main")};
  REFUSED(B->model_load(B->self, path, &config, &model, &error), CML_UNSUPPORTED, "macOS 13");
  config = (CmlConfig){.size = sizeof config, .compute_units = CML_COMPUTE_ALL, .preferred_device = CML_WORKALIKE_GPU};
  REFUSED(B->model_load(B->self, path, &config, &model, &error), CML_UNSUPPORTED, "macOS 14 or iOS 17");
  CmlConfig rare = {.size = sizeof rare, .reshape_frequency = CML_RESHAPE_INFREQUENT};
  CmlConfig fast = {.size = sizeof fast, .specialization = CML_SPECIALIZATION_FAST_PREDICTION};
  REFUSED(B->model_load(B->self, path, &rare, &model, &error), CML_UNSUPPORTED, "macOS 14.4");
  REFUSED(B->model_load(B->self, path, &fast, &model, &error), CML_UNSUPPORTED, "macOS 15");
  cml_test_macos = 1404;
  CHECK(WENT(B->model_load(B->self, path, &rare, &model, &error)));
  CHECK(cml_test_delegate_config()->reshape_frequency == CML_RESHAPE_INFREQUENT);
  B->model_release(model);
  REFUSED(B->model_load(B->self, path, &fast, &model, &error), CML_UNSUPPORTED, "macOS 15");
  cml_test_macos = 1100;
  REFUSED(B->tensor_new(B->self, &half, &value, &error), CML_UNSUPPORTED, "macOS 12");
  REFUSED(B->tensor_new(B->self, &byte, &value, &error), CML_UNSUPPORTED, "macOS 26");
  CmlImageDesc image = {sizeof image, CML_PIXEL_GRAY16F, 3, 2, 6};
  REFUSED(B->image_new(B->self, &image, pixels, 12, &value, &error), CML_UNSUPPORTED, "macOS 13");
  model = load();
  REFUSED(B->state_new(model, &state, &error), CML_UNSUPPORTED, "macOS 15");
  CHECK(state == NULL);
  CHECK(WENT(B->model_describe(model, &json, &error)));
  CHECK(!has(B->blob_bytes(json), "\"functions\"") && has(B->blob_bytes(json), "\"states\":[]"));
  B->blob_free(json);
  CHECK(WENT(B->backend_info(B->self, &json, &error)));
  CHECK(!has(B->blob_bytes(json), "float16") && !has(B->blob_bytes(json), "state"));
  CHECK(has(B->blob_bytes(json), "\"devices\":[{\"kind\":\"cpu\"}]"));
  B->blob_free(json);
  /* What an old system can do, it does: here without the block accessors. */
  CmlValue *x = tensor_x();
  CmlStr name = str("x");
  CmlResult *result = NULL;
  cml_workalike_set_hostile(CML_HOSTILE_PADDED | CML_HOSTILE_SHORT_BYTES);
  CHECK(WENT(B->model_predict(model, NULL, &name, &x, 1, NULL, &result, &error)));
  CHECK(holds_f32(output(result, "out_x")->value, x_twice, 6));
  cml_workalike_set_hostile(0);
  B->result_free(result);
  cml_test_macos = 0;
  CHECK(WENT(B->state_new(model, &state, &error)));
  cml_test_macos = 1407;
  REFUSED(B->model_predict(model, state, &name, &x, 1, NULL, &result, &error), CML_UNSUPPORTED, "macOS 15");
  cml_test_macos = 0;
  B->state_release(state);
  B->value_release(x);
  B->model_release(model);
}

/* Everything the table can do, stopping at the first failure. What was made is released in any case. */
static CmlStatus everything(CmlError **error) {
  CmlStatus status = CML_OK;
  CmlBlob *info = NULL, *json = NULL, *path = NULL, *functions = NULL, *structure = NULL, *plan = NULL;
  CmlModel *model = NULL;
  CmlState *state = NULL;
  CmlResult *result = NULL, *second = NULL, *later = NULL, *latest = NULL, *batch[2] = {NULL, NULL};
  CmlModel *other = NULL, *from_memory = NULL;
  CmlValue *values[N_ALL] = {NULL}, *backing = NULL;
  CmlStr names[N_ALL];
  static const CmlStr words[2] = {{"b", 1}, {"a", 1}};
  static const int64_t ids[2] = {9, -4};
  static const double weights[2] = {0.5, 0.25};
  const void *data[5] = {x_data, h_data, d_data, i_data, b_data};
  const CmlDtype dtypes[5] = {CML_DTYPE_FLOAT32, CML_DTYPE_FLOAT16, CML_DTYPE_FLOAT64, CML_DTYPE_INT32, CML_DTYPE_INT8};
  static float memory[6] = {1, 2, 3, 4, 5, 6};
  static Owner owner;
  int released = owner.released;
  bool wrapped = false;
  float seen[6];
  unsigned char rows[24];
  CmlConfig config = {.size = sizeof config,
                      .compute_units = CML_COMPUTE_CPU_AND_NEURAL_ENGINE,
                      .flags = 1,
                      .function_name = str("main"),
                      .display_name = str("d"),
                      .reshape_frequency = CML_RESHAPE_INFREQUENT,
                      .specialization = CML_SPECIALIZATION_FAST_PREDICTION};
  for (int i = 0; i < N_ALL; i++) names[i] = str(all_names[i]);
#define STEP(call)                         \
  do {                                     \
    if (status == CML_OK) status = (call); \
  } while (0)
  STEP(B->backend_info(B->self, &info, error));
  STEP(B->model_compile(B->self, str(path_to("model.mlmodel")), str(path_to("out")), &path, error));
  STEP(B->model_load(B->self, str(path_to("model.mlmodel")), &config, &model, error));
  STEP(B->model_describe(model, &json, error));
  if (status == CML_OK) {
    CmlTensorDesc desc = desc_of(CML_DTYPE_FLOAT32, 2, shape23, NULL);
    status = B->tensor_wrap(B->self, &desc, memory, sizeof memory, let_go, &owner, &values[0], error);
    wrapped = status == CML_OK;
  }
  for (int i = 1; i < 5; i++) {
    CmlTensorDesc desc = desc_of(dtypes[i], 2, shape23, NULL);
    STEP(B->tensor_copy(B->self, &desc, data[i], 6 * (((size_t)dtypes[i] & 0xFFFF) / 8), &values[i], error));
  }
  for (int i = 5; i < 8; i++) {
    CmlScalarView view = {
        .size = sizeof view, .kind = i - 4, .int64 = 21, .float64 = 0.75, .string = str("ab\xc3\xa9")};
    STEP(B->scalar_new(B->self, &view, &values[i], error));
  }
  for (int i = 8; i < 12; i++) {
    bool text = i % 2 == 0;
    CmlEntries all = {sizeof all,
                      text ? CML_KIND_STRING : CML_KIND_INT64,
                      2,
                      text ? NULL : ids,
                      text ? words : NULL,
                      i < 10 ? weights : NULL};
    STEP((i < 10 ? B->dictionary_new : B->sequence_new)(B->self, &all, &values[i], error));
  }
  for (int i = 12; i < 15; i++) {
    CmlImageDesc desc = {sizeof desc,
                         i == 12   ? CML_PIXEL_BGRA8
                         : i == 13 ? CML_PIXEL_GRAY8
                                   : CML_PIXEL_GRAY16F,
                         3, 2,
                         i == 12   ? 12
                         : i == 13 ? 3
                                   : 6};
    STEP(B->image_new(B->self, &desc, pixels, 2 * desc.row_bytes, &values[i], error));
  }
  STEP(B->state_new(model, &state, error));
  STEP(B->model_predict(model, NULL, names, values, N_ALL, NULL, &result, error));
  static const char *const read_back[5] = {"out_x", "out_h", "out_d", "out_i", "out_b"};
  for (int i = 0; i < 5; i++)
    STEP(B->tensor_read(output(result, read_back[i])->value, CML_DTYPE_FLOAT32, seen, 24, error));
  {
    CmlStr out = str("out_x");
    CmlTensorDesc desc = desc_of(CML_DTYPE_FLOAT32, 2, shape23, NULL);
    STEP(B->tensor_new(B->self, &desc, &backing, error));
    CmlPredictOptions options = {.size = sizeof options,
                                 .wanted = &out,
                                 .n_wanted = 1,
                                 .backing_names = &out,
                                 .backings = &backing,
                                 .n_backings = 1};
    STEP(B->model_predict(model, state, names, values, 1, &options, &second, error));
  }
  STEP(B->function_names(B->self, str(path_to("model.mlmodel")), &functions, error));
  STEP(B->model_structure(B->self, str(path_to("network.mlmodel")), &structure, error));
  STEP(B->compute_plan(B->self, str(path_to("model.mlmodel")), &config, &plan, error));
  {
    CmlValue *rows[2] = {values[0], values[0]};
    STEP(B->model_predict_batch(model, 2, names, rows, 1, NULL, batch, error));
  }
  STEP(predict_and_wait(model, state, names, values, 2, &later, error));
  STEP(predict_and_wait(model, NULL, names, values, 2, &latest, error));
  STEP(load_and_wait(str(path_to("model.mlmodel")), &config, &other, error));
  {
    CmlFile file = {str("@model_path/weights/w.bin"), "weights", 7};
    CmlConfig gpu = config;
    gpu.compute_units = CML_COMPUTE_ALL;
    gpu.preferred_device = CML_WORKALIKE_GPU;
    STEP(B->model_load_memory(B->self, in_memory, sizeof in_memory - 1, &file, 1, &gpu, &from_memory, error));
  }
  STEP(B->tensor_read(backing, CML_DTYPE_FLOAT32, seen, 24, error));
  STEP(B->tensor_with_bytes(backing, 1, see, seen, error));
  STEP(B->image_with_bytes(values[13], 0, take_rows, rows, error));
  STEP(B->state_with_bytes(state, str("acc"), 1, see, seen, error));
#undef STEP
  /* Rule 2: a failure leaves no handle behind. All that is not NULL was made. */
  B->model_release(from_memory);
  B->model_release(other);
  B->result_free(latest);
  B->result_free(later);
  B->result_free(batch[1]);
  B->result_free(batch[0]);
  B->result_free(second);
  B->result_free(result);
  B->blob_free(plan);
  B->blob_free(structure);
  B->blob_free(functions);
  B->value_release(backing);
  for (int i = 0; i < N_ALL; i++) B->value_release(values[i]);
  B->state_release(state);
  B->model_release(model);
  B->blob_free(json);
  B->blob_free(path);
  B->blob_free(info);
  /* The thread of an asynchronous prediction lets go of the inputs after its answer. */
  for (int i = 0; i < 150 && owner.released - released < (wrapped ? 1 : 0); i++) pause_ms(10);
  if (owner.released - released != (wrapped ? 1 : 0)) {
    fprintf(stderr, "the owner was released %d times\n", owner.released - released);
    failures++;
  }
  return status;
}

/* Every method that the shim calls misbehaves once, in every way; each time the table reports it and nothing leaks. */
static void test_injection(void) {
  static const struct {
    int what;
    const char *name;
    uint32_t mode;
    CmlStatus wanted;
    long step; /* what becomes of an exception is the same at every place: there a sample does */
  } ways[] = {
      {CML_INJECT_NSEXCEPTION, "NSException", 0, CML_OBJC_EXCEPTION, 1},
      {CML_INJECT_TWOFOLD, "NSException that cannot be read", 0, CML_OBJC_EXCEPTION, 20},
      {CML_INJECT_OBJECT, "thrown object", 0, CML_FOREIGN_EXCEPTION, 1},
      {CML_INJECT_FAILURE, "failure", 0, CML_FRAMEWORK, 1},
      {CML_INJECT_FAILURE, "failure without an error", CML_HOSTILE_NIL_ERROR, CML_FRAMEWORK, 1},
      {CML_INJECT_FAILURE, "failure four errors deep", CML_HOSTILE_NESTED_ERRORS | CML_HOSTILE_EAGER_FREE,
       CML_FRAMEWORK, 1},
  };
  CmlError *error = NULL;
  CHECK(WENT(everything(&error)));
  MUST_BALANCE("everything");
  for (size_t way = 0; way < sizeof ways / sizeof ways[0]; way++) {
    long nth = 1;
    int assets = 0; /* met so far */
    for (;; nth += ways[way].step) {
      cml_workalike_set_hostile(ways[way].mode);
      cml_workalike_inject(ways[way].what, nth);
      CmlStatus status = everything(&error);
      const char *where = cml_workalike_injected();
      cml_workalike_inject(CML_INJECT_NOTHING, 0);
      if (where == NULL) {
        CHECK(status == CML_OK && error == NULL);
        break;
      }
      /* Without an asset a load just does not know the functions; who asks for them must be told. */
      bool asset = ways[way].what == CML_INJECT_FAILURE && strstr(where, "modelAssetWithURL") != NULL;
      bool harmless = asset && assets++ != 1; /* the load, the names, the load without waiting */
      CmlErrorView view = view_of(error, 0);
      if (harmless ? status != CML_OK
                   : (status != ways[way].wanted || view.status != status || view.message.len == 0)) {
        fprintf(stderr, "%s no. %ld at %s: status %d, the error says: %.*s\n", ways[way].name, nth, where, status,
                (int)view.message.len, view.message.ptr);
        failures++;
      }
      B->error_free(error);
      error = NULL;
      if (!balanced()) {
        fprintf(stderr, "%s no. %ld at %s:\n", ways[way].name, nth, where);
        MUST_BALANCE("an injection");
        return; /* all that follow would be blamed as well */
      }
    }
    printf("  %s: %ld places\n", ways[way].name, (nth - 1) / ways[way].step);
    CHECK(nth > 10);
  }
  cml_workalike_set_hostile(0);
}

/* ---- soak ---- */

/* Kilobytes of this process in memory; -1 where that means nothing: the sanitizer and zombies keep what was freed. */
static long resident(void) {
#if __has_feature(address_sanitizer)
  return -1;
#else
  long pages = -1;
  if (getenv("NSZombieEnabled") != NULL) return -1;
  FILE *file = fopen("/proc/self/statm", "r");
  if (file == NULL) return -1;
  if (fscanf(file, "%*s %ld", &pages) != 1) pages = -1;
  fclose(file);
  return pages < 0 ? -1 : pages * (sysconf(_SC_PAGESIZE) / 1024);
#endif
}

static void soak(CmlModel *model, CmlState *state, int predictions) {
  CmlError *error = NULL;
  CmlStr names[N_ALL], out = str("out_x");
  for (int i = 0; i < predictions; i++) {
    CmlResult *result = NULL;
    CmlValue *values[N_ALL], *backing = NULL;
    int n = i % 10 == 0 ? N_ALL : 1;
    if (n == N_ALL) {
      make_all(names, values);
    } else {
      names[0] = str("x");
      values[0] = tensor_x();
    }
    CmlPredictOptions options = {.size = sizeof options, .backing_names = &out, .backings = &backing};
    if (i % 3 == 0) {
      backing = tensor_x();
      options.n_backings = 1;
    }
    cml_workalike_set_hostile(i % 4 == 0 ? CML_HOSTILE_PADDED : 0);
    CHECK(WENT(B->model_predict(model, i % 5 == 0 ? state : NULL, names, values, (size_t)n, &options, &result, &error)));
    if (result != NULL) CHECK(output(result, "out_x")->value != NULL);
    if (i % 7 == 0) { /* failures must not grow either */
      CmlResult *none = NULL;
      REFUSED(B->model_predict(model, NULL, NULL, NULL, 0, NULL, &none, &error), CML_NOT_FOUND, "'x' is missing");
    }
    B->result_free(result);
    B->value_release(backing);
    for (int k = 0; k < n; k++) B->value_release(values[k]);
    if (failures > 0) break;
  }
  cml_workalike_set_hostile(0);
}

static void test_soak(void) {
  enum { WARM = 4000, PREDICTIONS = 20000, GROWTH = 512 /* KiB: under 27 bytes for each prediction */ };
  bool measured = resident() >= 0;
  CmlError *error = NULL;
  CmlModel *model = load();
  CmlState *state = NULL;
  CHECK(WENT(B->state_new(model, &state, &error)));
  soak(model, state, measured ? WARM : WARM / 10);
  long before = resident();
  soak(model, state, measured ? PREDICTIONS : PREDICTIONS / 10);
  long after = resident();
  if (measured) printf("  %d predictions: %ld KiB, then %ld KiB\n", PREDICTIONS, before, after);
  CHECK(!measured || after - before <= GROWTH);
  B->state_release(state);
  B->model_release(model);
}

/* ---- main ---- */

/* Threads of a program come and go, and need not be the main one to be the first. */
static void *first_contact(void *context) {
  (void)context;
  test_configuration(); /* which makes Core ML start threads of its own */
  return NULL;
}

static const struct {
  const char *name;
  void (*run)(void);
} tests[] = {
    {"table", test_table},
    {"nulls", test_nulls},
    {"load", test_load},
    {"load_memory", test_load_memory},
    {"log", test_log},
    {"compile", test_compile},
    {"configuration", test_configuration},
    {"describe", test_describe},
    {"layouts", test_layouts},
    {"conversions", test_conversions},
    {"wrap", test_wrap},
    {"with_bytes", test_with_bytes},
    {"scalars", test_scalars},
    {"entries", test_entries},
    {"images", test_images},
    {"predict_every_kind", test_predict_every_kind},
    {"wrong_inputs", test_wrong_inputs},
    {"wanted", test_wanted},
    {"batch", test_batch},
    {"function_names", test_function_names},
    {"structure", test_structure},
    {"predict_async", test_predict_async},
    {"throws_after", test_throws_after},
    {"load_async", test_load_async},
    {"backings", test_backings},
    {"states", test_states},
    {"serial", test_serial},
    {"late_release", test_late_release},
    {"errors", test_errors},
    {"old_systems", test_old_systems},
    {"injection", test_injection},
    {"soak", test_soak},
};

int main(int argc, char **argv) {
  const char *mine = getenv("CML_DRIVE_FOLDER");
  if (mine == NULL) { /* GNUstep reads the environment before main: run again, with a temporary folder of our own */
    const char *top = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%s/coreml-shim-XXXXXX", top != NULL ? top : "/tmp");
    if (mkdtemp(folder) == NULL) return 2;
    setenv("CML_DRIVE_FOLDER", folder, 1);
    setenv("TEMP", path_to("tmp"), 1);
    mkdir(path_to("tmp"), 0700);
    execv("/proc/self/exe", argv);
    return 2;
  }
  snprintf(folder, sizeof folder, "%s", mine);
  mkdir(path_to("out"), 0700);
  mkdir(path_to("model.mlpackage"), 0700);
  write_file("model.mlmodel", "double it");
  write_file("model.mlpackage/Data", "double it");
  write_file("network.mlmodel", "double network");
  write_file("pipeline.mlmodel", "double pipeline");
  write_file("corrupt.mlmodel", "corrupt");
  write_file("notes.txt", "double, but not by name");
  B = cml_bridge_coreml();
  cml_workalike_set_delegate(cml_test_delegate());
  pthread_t thread;
  pthread_create(&thread, NULL, first_contact, NULL);
  pthread_join(thread, NULL);
  for (size_t i = 0; i < sizeof tests / sizeof tests[0]; i++) {
    if (argc > 1 && strstr(tests[i].name, argv[1]) == NULL) continue;
    int before = failures;
    printf("%s\n", tests[i].name);
    fflush(stdout);
    tests[i].run();
    MUST_BALANCE(tests[i].name);
    if (failures != before) printf("  FAILED\n");
  }
  nftw(folder, removed, 16, FTW_DEPTH | FTW_PHYS);
  printf(failures == 0 ? "all is well\n" : "%d FAILURES\n", failures);
  return failures == 0 ? 0 : 1;
}
