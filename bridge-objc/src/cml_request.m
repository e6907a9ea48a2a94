/* Requests: asynchronous calls, and loading without waiting. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "cml_internal.h"

/* ---- requests ---- */

void cml_request_cancel(CmlRequest *request) {
  if (!cml_is(request, &cml_tag_request)) return;
  atomic_store(&request->cancelled, true);
  if (request->cancel != NULL) request->cancel(request);
}

void cml_request_release(CmlRequest *request) {
  if (!cml_is(request, &cml_tag_request) || !cml_handle_drop(request)) return;
  CmlStatus ignored = CML_OK;
  CML_TRY
  if (request->tear_down != NULL) request->tear_down(request);
  CML_CATCH(ignored, (CmlError **)NULL)
  (void)ignored;
  cml_handle_delete(request);
}

/* ---- loading ---- */

/* Core ML can load without waiting, but not compile or name functions so on every system that we serve: a load is
   model_load on a thread of its own. A thread that Core ML never gives back stays with it. */
typedef struct CmlLoad {
  CmlRequest request;
  CmlStr path;      /* ours, as is what the configuration names */
  CmlConfig config; /* as far as the caller's reached */
  bool configured;
  CmlLoadedFn done;
  void *context;
} CmlLoad;

static void cml_load_tear_down(CmlRequest *request) {
  CmlLoad *load = (CmlLoad *)request;
  cml_string_free(load->path);
  cml_string_free(load->config.function_name);
  cml_string_free(load->config.display_name);
}

static void cml_load_cancel(CmlRequest *request) {
  CmlLoad *load = (CmlLoad *)request;
  if (atomic_exchange(&request->ended, true)) return;
  CmlError *error = NULL;
  CmlStatus status = cml_fail(&error, CML_CANCELLED, "the load was cancelled");
  load->done(load->context, status, NULL, error);
}

static void *cml_load_run(void *context) {
  CmlLoad *load = context;
  CmlModel *model = NULL;
  CmlError *error = NULL;
  CmlStatus status = CML_OK;
  if (!atomic_load(&load->request.cancelled)) {
    status = cml_model_load(NULL, load->path, load->configured ? &load->config : NULL, &model, &error);
  }
  if (!atomic_exchange(&load->request.ended, true)) {
    load->done(load->context, status, model, error);
  } else { /* nobody waits for it any more */
    cml_model_release(model);
    cml_error_free(error);
  }
  cml_request_release(&load->request);
  return NULL;
}

/* Byte for byte: what it holds is judged by model_load. False: no memory. */
static bool cml_keep(CmlStr *kept, CmlStr given) {
  kept->ptr = NULL;
  kept->len = 0;
  if (given.ptr == NULL || given.len == 0) return true;
  char *copy = malloc(given.len);
  if (copy == NULL) return false;
  memcpy(copy, given.ptr, given.len);
  kept->ptr = copy;
  kept->len = given.len;
  return true;
}

static bool cml_load_keep(CmlLoad *load, CmlStr path, const CmlConfig *config) {
  bool kept = cml_keep(&load->path, path);
  if (config == NULL) return kept;
  CmlStr none = {NULL, 0};
  CmlConfig *mine = &load->config;
  uint32_t size = config->size < sizeof *mine ? config->size : (uint32_t)sizeof *mine;
  memcpy(mine, config, size);
  mine->size = size;
  load->configured = true;
  CmlStr function = CML_REACHES(CmlConfig, config, function_name) ? config->function_name : none;
  CmlStr display = CML_REACHES(CmlConfig, config, display_name) ? config->display_name : none;
  kept = cml_keep(&mine->function_name, function) && kept;
  return cml_keep(&mine->display_name, display) && kept;
}

/* The stack that the main thread has: compilers are deep. */
enum { CML_LOAD_STACK = 8 << 20 };

static bool cml_load_start(CmlLoad *load) {
  pthread_attr_t how;
  pthread_t thread;
  if (pthread_attr_init(&how) != 0) return false;
  bool started = pthread_attr_setdetachstate(&how, PTHREAD_CREATE_DETACHED) == 0 &&
                 pthread_attr_setstacksize(&how, CML_LOAD_STACK) == 0 &&
                 pthread_create(&thread, &how, cml_load_run, load) == 0;
  (void)pthread_attr_destroy(&how);
  return started;
}

CmlStatus cml_model_load_async(void *self, CmlStr path, const CmlConfig *config, CmlLoadedFn done, void *context,
                               CmlRequest **request, CmlError **error) {
  (void)self;
  CML_CLEAR(error);
  if (request != NULL) *request = NULL;
  if (done == NULL) return cml_fail(error, CML_INVALID_ARGUMENT, "there is nobody to tell of the end");
  if (config != NULL && !CML_REACHES(CmlConfig, config, size)) {
    return cml_fail(error, CML_INVALID_ARGUMENT, "the configuration has size %u, which is too small", config->size);
  }
  CmlLoad *load = cml_handle_new(sizeof *load, &cml_tag_request);
  if (load == NULL) return cml_fail_memory(error);
  load->request.tear_down = cml_load_tear_down;
  load->request.cancel = cml_load_cancel;
  load->done = done;
  load->context = context;
  CmlStatus status = CML_OK;
  cml_handle_retain(load); /* the thread's */
  if (!cml_load_keep(load, path, config)) {
    status = cml_fail_memory(error);
  } else if (!cml_load_start(load)) {
    (void)cml_fail(error, CML_OUT_OF_MEMORY, "no thread can be started to load the model");
    status = CML_OUT_OF_MEMORY;
  }
  if (status != CML_OK) cml_request_release(&load->request); /* no thread came to be */
  if (status == CML_OK && request != NULL) {
    *request = &load->request;
  } else {
    cml_request_release(&load->request);
  }
  return status;
}
