/* Predictions and their results. */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cml_internal.h"

struct CmlResult {
  CmlHead head;
  uint64_t prepare_ns, run_ns, collect_ns;
  size_t n;           /* outputs that are filled in */
  CmlOutput *outputs; /* names and values are ours */
};

static uint64_t cml_now(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* ---- one call ---- */

typedef struct CmlCall {
  CmlModel *model;
  CmlState *state;
  const CmlStr *names;
  CmlValue *const *inputs;
  size_t n_inputs;
  CmlPredictOptions options; /* as far as the caller's reached */
  CmlResult *result;
} CmlCall;

static CmlStatus cml_check_inputs(const CmlCall *call, CmlError **error) {
  if (call->n_inputs > 0 && (call->names == NULL || call->inputs == NULL)) {
    return cml_fail(error, CML_INVALID_ARGUMENT, "the inputs are NULL");
  }
  for (size_t i = 0; i < call->n_inputs; i++) {
    if (!cml_is(call->inputs[i], &cml_tag_value)) {
      return cml_fail(error, CML_INVALID_ARGUMENT, "input %zu is not a value of this bridge", i);
    }
  }
  return CML_OK;
}

static CmlStatus cml_check_options(const CmlCall *call, CmlError **error) {
  const CmlPredictOptions *options = &call->options;
  if (options->n_wanted > 0 && options->wanted == NULL) {
    return cml_fail(error, CML_INVALID_ARGUMENT, "the wanted outputs are NULL");
  }
  if (options->n_backings > 0 && (options->backing_names == NULL || options->backings == NULL)) {
    return cml_fail(error, CML_INVALID_ARGUMENT, "the backings are NULL");
  }
  for (size_t i = 0; i < options->n_backings; i++) {
    CmlValue *backing = options->backings[i];
    if (!cml_is(backing, &cml_tag_value)) {
      return cml_fail(error, CML_INVALID_ARGUMENT, "backing %zu is not a value of this bridge", i);
    }
    if (backing->kind == CML_KIND_IMAGE) { /* Core ML could; rule 8 */
      return cml_fail(error, CML_UNSUPPORTED, "backing %zu is an image, and this bridge has tensors alone", i);
    }
    if (backing->kind != CML_KIND_TENSOR) {
      return cml_fail(error, CML_TYPE_MISMATCH, "backing %zu is a %s, not a tensor", i, cml_kind_name(backing->kind));
    }
    for (size_t k = 0; k < i; k++) {
      if (options->backings[k] == backing) {
        return cml_fail(error, CML_INVALID_ARGUMENT, "backings %zu and %zu are one tensor", k, i);
      }
    }
    for (size_t k = 0; k < call->n_inputs; k++) {
      if (call->inputs[k] == backing) {
        return cml_fail(error, CML_INVALID_ARGUMENT, "input %zu and backing %zu are one tensor", k, i);
      }
    }
  }
  return CML_OK;
}

/* Enters everything the call uses, or nothing. */
static CmlStatus cml_call_enter(const CmlCall *call, CmlError **error) {
  if (!cml_enter(call->model, call)) return cml_fail_busy(error, "model");
  if (call->state != NULL && !cml_enter(call->state, call)) return cml_fail_busy(error, "state");
  for (size_t i = 0; i < call->n_inputs; i++) {
    if (!cml_enter(call->inputs[i], call)) return cml_fail_busy(error, "input value");
  }
  for (size_t i = 0; i < call->options.n_backings; i++) {
    if (!cml_enter(call->options.backings[i], call)) return cml_fail_busy(error, "backing");
  }
  return CML_OK;
}

static void cml_call_leave(const CmlCall *call) { /* of what was not entered, this does nothing */
  for (size_t i = 0; i < call->options.n_backings; i++) cml_leave(call->options.backings[i], call);
  for (size_t i = 0; i < call->n_inputs; i++) cml_leave(call->inputs[i], call);
  if (call->state != NULL) cml_leave(call->state, call);
  cml_leave(call->model, call);
}

/* ---- inputs ---- */

static CmlStatus cml_features(const CmlCall *call, MLDictionaryFeatureProvider **provider, CmlError **error) {
  NSMutableDictionary<NSString *, id> *features = [NSMutableDictionary dictionary];
  for (size_t i = 0; i < call->n_inputs; i++) {
    NSString *name = cml_string(call->names[i]);
    if (name == nil) return cml_fail(error, CML_INVALID_ARGUMENT, "the name of input %zu is not UTF-8", i);
    MLFeatureDescription *wanted = [call->model->inputs objectForKey:name];
    if (wanted == nil) return cml_fail(error, CML_NOT_FOUND, "the model has no input '%s'", cml_utf8(name));
    if ([features objectForKey:name] != nil) {
      return cml_fail(error, CML_INVALID_ARGUMENT, "input '%s' is given twice", cml_utf8(name));
    }
    if ((CmlKind)wanted.type != call->inputs[i]->kind) {
      return cml_fail(error, CML_TYPE_MISMATCH, "input '%s' is a %s; the model wants a %s", cml_utf8(name),
                      cml_kind_name(call->inputs[i]->kind), cml_kind_name((CmlKind)wanted.type));
    }
    [features setObject:call->inputs[i]->feature forKey:name];
  }
  for (NSString *name in call->model->inputs) {
    if ([features objectForKey:name] == nil && ![[call->model->inputs objectForKey:name] isOptional]) {
      return cml_fail(error, CML_NOT_FOUND, "input '%s' is missing", cml_utf8(name));
    }
  }
  NSError *cause = nil;
  *provider = [[[MLDictionaryFeatureProvider alloc] initWithDictionary:features error:&cause] autorelease];
  return *provider != nil ? CML_OK : cml_fail_nserror(error, CML_FRAMEWORK, cause, "gathering the inputs");
}

/* ---- output backings ---- */

/* Would Core ML take this tensor for this output? It raises or fails on a wrong type or shape, but to us a backing is
   only a hint: what it would not take is not shown to it, and copied to afterwards. */
static bool cml_backing_suits(CmlValue *backing, MLFeatureDescription *output) {
  if (output.type != MLFeatureTypeMultiArray) return false;
  MLMultiArrayConstraint *constraint = output.multiArrayConstraint;
  NSArray<NSNumber *> *shape = constraint.shape;
  if ((CmlDtype)constraint.dataType != backing->dtype || shape.count != backing->rank) return false;
  for (uint32_t i = 0; i < backing->rank; i++) {
    if ([[shape objectAtIndex:i] longLongValue] != backing->shape[i]) return false;
  }
  return true;
}

/* The backings by name; those that suit also go to `options`. */
static CmlStatus cml_backings(const CmlCall *call, NSArray<NSString *> *outputs, MLPredictionOptions *options,
                              NSDictionary<NSString *, NSNumber *> **by_name, CmlError **error) {
  NSMutableDictionary<NSString *, NSNumber *> *indices = [NSMutableDictionary dictionary];
  NSMutableDictionary<NSString *, id> *hints = [NSMutableDictionary dictionary];
  for (size_t i = 0; i < call->options.n_backings; i++) {
    CmlValue *backing = call->options.backings[i];
    NSString *name = cml_string(call->options.backing_names[i]);
    if (name == nil) return cml_fail(error, CML_INVALID_ARGUMENT, "the name of backing %zu is not UTF-8", i);
    MLFeatureDescription *output = [call->model->outputs objectForKey:name];
    if (output == nil) return cml_fail(error, CML_NOT_FOUND, "the model has no output '%s' to back", cml_utf8(name));
    if (output.type != MLFeatureTypeMultiArray) {
      return cml_fail(error, CML_TYPE_MISMATCH, "output '%s' is a %s, which a tensor cannot back", cml_utf8(name),
                      cml_kind_name((CmlKind)output.type));
    }
    if (![outputs containsObject:name]) {
      return cml_fail(error, CML_INVALID_ARGUMENT, "output '%s' is backed, but not wanted", cml_utf8(name));
    }
    if ([indices objectForKey:name] != nil) {
      return cml_fail(error, CML_INVALID_ARGUMENT, "output '%s' is backed twice", cml_utf8(name));
    }
    CmlLayout layout;
    CmlStatus status = cml_layout_of(backing->array, nil, &layout, error);
    if (status != CML_OK) return status;
    if (cml_layout_overlaps_itself(&layout)) {
      return cml_fail(error, CML_INVALID_ARGUMENT, "the backing of '%s' has elements that share memory",
                      cml_utf8(name));
    }
    [indices setObject:[NSNumber numberWithUnsignedLong:i] forKey:name];
    if (cml_backing_suits(backing, output)) [hints setObject:backing->array forKey:name];
  }
  if (hints.count > 0) {
    CML_IF_OS(11, 0, 16.0) options.outputBackings = hints;
  }
  *by_name = indices;
  return CML_OK;
}

/* Sees to it that `backing` holds what `given` holds; *used tells if the framework had done it. */
static CmlStatus cml_backing_fill(CmlValue *backing, MLMultiArray *given, NSString *name, uint32_t *used,
                                  CmlError **error) {
  if (given == backing->array) {
    *used = 1;
    return CML_OK;
  }
  return cml_array_visit(given, false, error, ^CmlStatus(void *source, const CmlLayout *from) {
    return cml_array_visit(backing->array, true, error, ^CmlStatus(void *destination, const CmlLayout *to) {
      if (!cml_layout_same_shape(from, to)) {
        char is[256], has[256];
        cml_layout_text(from, is, sizeof is);
        cml_layout_text(to, has, sizeof has);
        return cml_fail(error, CML_TYPE_MISMATCH, "output '%s' is %s, its backing %s", cml_utf8(name), is, has);
      }
      bool same = source == destination && from->dtype == to->dtype &&
                  memcmp(from->strides, to->strides, from->rank * sizeof from->strides[0]) == 0;
      *used = same ? 1 : 0; /* another array on our memory: written in place all the same */
      if (!same) {
        cml_copy(to, destination, from, source);
        cml_log(CML_LOG_WARNING, "the backing of output '%s' was not used: the output was copied", cml_utf8(name));
      }
      return CML_OK;
    });
  });
}

/* ---- outputs ---- */

static CmlStatus cml_wanted(const CmlCall *call, NSArray<NSString *> **outputs, CmlError **error) {
  if (call->options.n_wanted == 0) {
    *outputs = [call->model->outputs.allKeys sortedArrayUsingSelector:@selector(compare:)];
    return CML_OK;
  }
  NSMutableArray<NSString *> *wanted = [NSMutableArray array];
  for (size_t i = 0; i < call->options.n_wanted; i++) {
    NSString *name = cml_string(call->options.wanted[i]);
    if (name == nil) return cml_fail(error, CML_INVALID_ARGUMENT, "the name of wanted output %zu is not UTF-8", i);
    if ([call->model->outputs objectForKey:name] == nil) {
      return cml_fail(error, CML_NOT_FOUND, "the model has no output '%s'", cml_utf8(name));
    }
    if ([wanted containsObject:name]) {
      return cml_fail(error, CML_INVALID_ARGUMENT, "output '%s' is wanted twice", cml_utf8(name));
    }
    [wanted addObject:name];
  }
  *outputs = wanted;
  return CML_OK;
}

static CmlStatus cml_collect(const CmlCall *call, id<MLFeatureProvider> given, NSArray<NSString *> *names,
                             NSDictionary<NSString *, NSNumber *> *backings, CmlError **error) {
  CmlResult *result = call->result;
  result->outputs = calloc(names.count > 0 ? names.count : 1, sizeof *result->outputs);
  if (result->outputs == NULL) return cml_fail_memory(error);
  for (NSString *name in names) {
    MLFeatureDescription *description = [call->model->outputs objectForKey:name];
    MLFeatureValue *feature = [given featureValueForName:name];
    NSNumber *backed = [backings objectForKey:name];
    if (feature == nil || feature.isUndefined) {
      if (call->options.n_wanted == 0 && backed == nil && description.isOptional) continue;
      return cml_fail(error, CML_FRAMEWORK, "the prediction has no output '%s'", cml_utf8(name));
    }
    CmlOutput *output = &result->outputs[result->n];
    output->name = cml_string_copy(name);
    if (output->name.ptr == NULL) return cml_fail_memory(error);
    result->n++; /* from here on, freeing the result frees it */
    CmlStatus status;
    if (backed == nil) {
      status = cml_value_from_feature(feature, description, name, &output->value, error);
    } else {
      MLMultiArray *array = feature.type == MLFeatureTypeMultiArray ? feature.multiArrayValue : nil;
      if (array == nil) return cml_fail(error, CML_FRAMEWORK, "output '%s' is not a tensor", cml_utf8(name));
      size_t index = backed.unsignedLongValue;
      if (index >= call->options.n_backings) return cml_fail(error, CML_FRAMEWORK, "no backing %zu", index);
      output->value = call->options.backings[index];
      cml_value_retain(output->value);
      status = cml_backing_fill(output->value, array, name, &output->backing_used, error);
    }
    if (status != CML_OK) return status;
  }
  return CML_OK;
}

/* ---- the call ---- */

static CmlStatus cml_fail_prediction(CmlError **error, NSError *cause) {
  bool mismatch = [cause.domain isEqualToString:MLModelErrorDomain] && cause.code == MLModelErrorFeatureType;
  return cml_fail_nserror(error, mismatch ? CML_TYPE_MISMATCH : CML_FRAMEWORK, cause, "the prediction");
}

static CmlStatus cml_run(const CmlCall *call, CmlError **error) {
  uint64_t start = cml_now();
  NSArray<NSString *> *names = nil;
  NSDictionary<NSString *, NSNumber *> *backings = nil;
  MLDictionaryFeatureProvider *inputs = nil;
  MLPredictionOptions *options = [[[MLPredictionOptions alloc] init] autorelease];
  CmlStatus status = cml_features(call, &inputs, error);
  if (status == CML_OK) status = cml_wanted(call, &names, error);
  if (status == CML_OK) status = cml_backings(call, names, options, &backings, error);
  if (status != CML_OK) return status;
  uint64_t prepared = cml_now();
  NSError *cause = nil;
  id<MLFeatureProvider> given = nil;
  if (call->state == NULL) {
    given = [call->model->model predictionFromFeatures:inputs options:options error:&cause];
  } else {
    bool ran = false;
    CML_IF_OS(15, 0, 18.0) {
      ran = true;
      given = [call->model->model predictionFromFeatures:inputs
                                              usingState:(MLState *)call->state->state
                                                 options:options
                                                   error:&cause];
    }
    if (!ran) return cml_fail_os(error, "a prediction with a state", "macOS 15 or iOS 18");
  }
  if (given == nil) return cml_fail_prediction(error, cause);
  uint64_t ran = cml_now();
  status = cml_collect(call, given, names, backings, error);
  call->result->prepare_ns = prepared - start;
  call->result->run_ns = ran - prepared;
  call->result->collect_ns = cml_now() - ran;
  return status;
}

/* The arguments of a call, as far as they can be checked without the framework. */
static CmlStatus cml_call_read(CmlCall *call, CmlModel *model, const CmlStr *names, CmlValue *const *inputs,
                               size_t n_inputs, const CmlPredictOptions *options, CmlError **error) {
  memset(call, 0, sizeof *call);
  call->model = model;
  call->names = names;
  call->inputs = inputs;
  call->n_inputs = n_inputs;
  if (options != NULL) {
    if (!CML_REACHES(CmlPredictOptions, options, size)) {
      return cml_fail(error, CML_INVALID_ARGUMENT, "the options have size %u, which is too small", options->size);
    }
    memcpy(&call->options, options, options->size < sizeof call->options ? options->size : sizeof call->options);
    if (!CML_REACHES(CmlPredictOptions, options, n_wanted)) call->options.n_wanted = 0;
    if (!CML_REACHES(CmlPredictOptions, options, n_backings)) call->options.n_backings = 0;
  }
  CmlStatus status = cml_check_inputs(call, error);
  return status == CML_OK ? cml_check_options(call, error) : status;
}

static CmlStatus cml_check_handles(const CmlModel *model, const CmlState *state, CmlError **error) {
  if (!cml_is(model, &cml_tag_model)) return cml_fail(error, CML_INVALID_ARGUMENT, "not a model of this bridge");
  if (state != NULL && (!cml_is(state, &cml_tag_state) || state->model != model)) {
    return cml_fail(error, CML_INVALID_ARGUMENT, "the state is not one of this model");
  }
  return CML_OK;
}

CmlStatus cml_model_predict(CmlModel *model, CmlState *state, const CmlStr *names, CmlValue *const *inputs,
                            size_t n_inputs, const CmlPredictOptions *options, CmlResult **result, CmlError **error) {
  CML_CLEAR(error);
  if (result == NULL) return cml_fail(error, CML_INVALID_ARGUMENT, "there is no place for the result");
  *result = NULL;
  CmlCall call;
  CmlStatus status = cml_check_handles(model, state, error);
  if (status == CML_OK) status = cml_call_read(&call, model, names, inputs, n_inputs, options, error);
  if (status != CML_OK) return status;
  call.state = state;
  call.result = cml_handle_new(sizeof *call.result, &cml_tag_result);
  if (call.result == NULL) return cml_fail_memory(error);
  status = cml_call_enter(&call, error);
  if (status == CML_OK) {
    CML_TRY
    status = cml_run(&call, error);
    CML_CATCH(status, error)
  }
  cml_call_leave(&call);
  if (status == CML_OK) {
    *result = call.result;
  } else {
    cml_result_free(call.result);
  }
  return status;
}

/* ---- many rows ---- */

/* One row of a call that holds the inputs of all. */
static CmlCall cml_row(const CmlCall *whole, size_t row, size_t n_rows, CmlResult *result) {
  CmlCall call = *whole;
  call.n_inputs = whole->n_inputs / n_rows;
  if (call.n_inputs > 0) call.inputs = whole->inputs + row * call.n_inputs;
  call.result = result;
  return call;
}

static CmlStatus cml_run_batch(const CmlCall *whole, size_t n_rows, CmlResult **results, CmlError **error) {
  uint64_t start = cml_now();
  NSArray<NSString *> *names = nil;
  CmlStatus status = cml_wanted(whole, &names, error);
  if (status != CML_OK) return status;
  NSMutableArray<id<MLFeatureProvider>> *rows = [NSMutableArray array];
  for (size_t row = 0; row < n_rows; row++) {
    CmlCall call = cml_row(whole, row, n_rows, results[row]);
    MLDictionaryFeatureProvider *inputs = nil;
    status = cml_features(&call, &inputs, error);
    if (status != CML_OK) return status;
    [rows addObject:inputs];
  }
  MLArrayBatchProvider *batch = [[[MLArrayBatchProvider alloc] initWithFeatureProviderArray:rows] autorelease];
  MLPredictionOptions *plain = [[[MLPredictionOptions alloc] init] autorelease];
  uint64_t prepared = cml_now();
  NSError *cause = nil;
  id<MLBatchProvider> given = [whole->model->model predictionsFromBatch:batch options:plain error:&cause];
  if (given == nil) return cml_fail_prediction(error, cause);
  uint64_t came = cml_now();
  if (given.count < 0 || (size_t)given.count != n_rows) {
    return cml_fail(error, CML_FRAMEWORK, "%zu rows were given, but %ld came back", n_rows, (long)given.count);
  }
  for (size_t row = 0; row < n_rows; row++) {
    CmlCall call = cml_row(whole, row, n_rows, results[row]);
    status = cml_collect(&call, [given featuresAtIndex:(NSInteger)row], names, [NSDictionary dictionary], error);
    if (status != CML_OK) return status;
  }
  uint64_t collected = cml_now();
  for (size_t row = 0; row < n_rows; row++) { /* Core ML does not tell the rows apart */
    results[row]->prepare_ns = prepared - start;
    results[row]->run_ns = came - prepared;
    results[row]->collect_ns = collected - came;
  }
  return CML_OK;
}

CmlStatus cml_model_predict_batch(CmlModel *model, size_t n_rows, const CmlStr *names, CmlValue *const *inputs,
                                  size_t n_inputs, const CmlPredictOptions *options, CmlResult **results,
                                  CmlError **error) {
  CML_CLEAR(error);
  if (n_rows > 0 && results == NULL) return cml_fail(error, CML_INVALID_ARGUMENT, "there is no place for the results");
  for (size_t row = 0; row < n_rows; row++) results[row] = NULL;
  if (!cml_is(model, &cml_tag_model)) return cml_fail(error, CML_INVALID_ARGUMENT, "not a model of this bridge");
  size_t total = 0;
  if (__builtin_mul_overflow(n_rows, n_inputs, &total)) {
    return cml_fail(error, CML_INVALID_ARGUMENT, "%zu rows of %zu inputs are too many", n_rows, n_inputs);
  }
  CmlCall call;
  CmlStatus status = cml_call_read(&call, model, names, inputs, total, options, error);
  if (status != CML_OK) return status;
  if (call.options.n_backings > 0) {
    return cml_fail(error, CML_UNSUPPORTED, "output backings belong to one prediction, not to a batch");
  }
  if (n_rows == 0) return CML_OK;
  for (size_t row = 0; row < n_rows && status == CML_OK; row++) {
    results[row] = cml_handle_new(sizeof **results, &cml_tag_result);
    if (results[row] != NULL) continue;
    (void)cml_fail_memory(error);
    status = CML_OUT_OF_MEMORY;
  }
  if (status == CML_OK) {
    status = cml_call_enter(&call, error);
    if (status == CML_OK) {
      CML_TRY
      status = cml_run_batch(&call, n_rows, results, error);
      CML_CATCH(status, error)
    }
    cml_call_leave(&call);
  }
  for (size_t row = 0; row < n_rows && status != CML_OK; row++) {
    cml_result_free(results[row]);
    results[row] = NULL;
  }
  return status;
}

/* ---- without waiting ---- */

typedef struct CmlPrediction CmlPrediction;

/* What the framework's completion knows of its prediction. A call may throw and answer all the same, before or later, or
   never: so the answer has a share of its own in this, and not in the prediction. Without an answer these few bytes stay. */
typedef struct CmlTicket {
  atomic_int holders;                  /* the call, and the answer once the framework is asked */
  _Atomic(CmlPrediction *) prediction; /* whoever takes it out ends it */
} CmlTicket;

static void cml_ticket_drop(CmlTicket *ticket) {
  if (atomic_fetch_sub_explicit(&ticket->holders, 1, memory_order_acq_rel) == 1) free(ticket);
}

struct CmlPrediction {
  CmlRequest request;
  CmlCall call; /* values, model and state are counted */
  CmlValue **values; /* the inputs, then the backings */
  NSArray<NSString *> *outputs; /* retained, as is the other */
  NSDictionary<NSString *, NSNumber *> *backings;
  CmlPredictedFn done;
  void *context;
  uint64_t start, prepared;
};

static void cml_prediction_tear_down(CmlRequest *request) {
  CmlPrediction *prediction = (CmlPrediction *)request;
  CmlCall *call = &prediction->call;
  if (call->model == NULL) return; /* done before */
  cml_call_leave(call);
  size_t n_values = call->n_inputs + call->options.n_backings;
  for (size_t i = 0; i < n_values; i++) cml_value_release(prediction->values[i]);
  free(prediction->values);
  call->inputs = call->options.backings = prediction->values = NULL;
  call->n_inputs = call->options.n_backings = 0;
  [prediction->outputs release];
  prediction->outputs = nil;
  [prediction->backings release];
  prediction->backings = nil;
  cml_state_release(call->state);
  call->state = NULL;
  cml_model_release(call->model);
  call->model = NULL;
  cml_result_free(call->result);
  call->result = NULL;
}

/* On a thread of the framework's. The caller's handles are free again before it hears of the end. */
static void cml_prediction_end(CmlPrediction *prediction, id<MLFeatureProvider> given, NSError *cause) {
  CmlCall *call = &prediction->call;
  CmlStatus status = CML_OK;
  CmlError *error = NULL;
  uint64_t answered = cml_now();
  CML_TRY
  if (atomic_load(&prediction->request.cancelled)) {
    status = cml_fail(&error, CML_CANCELLED, "the prediction was cancelled");
  } else if (given == nil) {
    status = cml_fail_prediction(&error, cause);
  } else {
    status = cml_collect(call, given, prediction->outputs, prediction->backings, &error);
  }
  CML_CATCH(status, &error)
  CmlResult *result = NULL;
  if (status == CML_OK) {
    result = call->result;
    call->result = NULL;
    result->prepare_ns = prediction->prepared - prediction->start;
    result->run_ns = answered - prediction->prepared;
    result->collect_ns = cml_now() - answered;
  }
  CML_TRY
  cml_prediction_tear_down(&prediction->request);
  CML_CATCH(status, (CmlError **)NULL)
  prediction->done(prediction->context, status, result, error);
  cml_request_release(&prediction->request); /* the count of this answer */
}

static void cml_ticket_answer(CmlTicket *ticket, id<MLFeatureProvider> given, NSError *cause) {
  CmlPrediction *prediction = atomic_exchange(&ticket->prediction, NULL);
  if (prediction != NULL) cml_prediction_end(prediction, given, cause);
  cml_ticket_drop(ticket);
}

static CmlStatus cml_prediction_begin(CmlPrediction *prediction, CmlTicket *ticket, CmlError **error) {
  CmlCall *call = &prediction->call;
  NSArray<NSString *> *names = nil;
  NSDictionary<NSString *, NSNumber *> *backings = nil;
  MLDictionaryFeatureProvider *inputs = nil;
  MLPredictionOptions *hints = [[[MLPredictionOptions alloc] init] autorelease];
  CmlStatus status = cml_features(call, &inputs, error);
  if (status == CML_OK) status = cml_wanted(call, &names, error);
  if (status == CML_OK) status = cml_backings(call, names, hints, &backings, error);
  if (status != CML_OK) return status;
  prediction->outputs = [names retain];
  prediction->backings = [backings retain];
  prediction->prepared = cml_now();
  /* From here on the caller's arrays are not looked at: what is of them is in `inputs`, `outputs` and `backings`. */
  call->names = NULL;
  call->options.wanted = NULL;
  call->options.backing_names = NULL;
  MLModel *model = call->model->model;
  if (call->state == NULL) {
    CML_IF_OS(14, 0, 17.0) {
      atomic_store(&ticket->holders, 2);
      [model predictionFromFeatures:inputs
                            options:hints
                  completionHandler:^(id<MLFeatureProvider> given, NSError *cause) {
                    cml_ticket_answer(ticket, given, cause);
                  }];
      return CML_OK;
    }
    return cml_fail_os(error, "an asynchronous prediction", "macOS 14 or iOS 17");
  }
  CML_IF_OS(15, 0, 18.0) {
    atomic_store(&ticket->holders, 2);
    [model predictionFromFeatures:inputs
                       usingState:(MLState *)call->state->state
                          options:hints
                completionHandler:^(id<MLFeatureProvider> given, NSError *cause) {
                  cml_ticket_answer(ticket, given, cause);
                }];
    return CML_OK;
  }
  return cml_fail_os(error, "a prediction with a state", "macOS 15 or iOS 18");
}

CmlStatus cml_model_predict_async(CmlModel *model, CmlState *state, const CmlStr *names, CmlValue *const *inputs,
                                  size_t n_inputs, const CmlPredictOptions *options, CmlPredictedFn done,
                                  void *context, CmlRequest **request, CmlError **error) {
  CML_CLEAR(error);
  if (request != NULL) *request = NULL;
  if (done == NULL) return cml_fail(error, CML_INVALID_ARGUMENT, "there is nobody to tell of the end");
  uint64_t start = cml_now();
  CmlCall call;
  CmlStatus status = cml_check_handles(model, state, error);
  if (status == CML_OK) status = cml_call_read(&call, model, names, inputs, n_inputs, options, error);
  if (status != CML_OK) return status;
  CmlPrediction *prediction = cml_handle_new(sizeof *prediction, &cml_tag_request);
  if (prediction == NULL) return cml_fail_memory(error);
  prediction->request.tear_down = cml_prediction_tear_down;
  prediction->done = done;
  prediction->context = context;
  prediction->start = start;
  CmlValue *const *backings = call.options.backings;
  prediction->values = calloc(n_inputs + call.options.n_backings + 1, sizeof *prediction->values);
  call.n_inputs = prediction->values != NULL ? n_inputs : 0;
  call.inputs = prediction->values;
  call.options.n_backings = prediction->values != NULL ? call.options.n_backings : 0;
  call.options.backings = prediction->values + call.n_inputs;
  call.result = cml_handle_new(sizeof *call.result, &cml_tag_result);
  for (size_t i = 0; i < call.n_inputs + call.options.n_backings; i++) {
    prediction->values[i] = i < call.n_inputs ? inputs[i] : backings[i - call.n_inputs];
    cml_value_retain(prediction->values[i]);
  }
  cml_handle_retain(model);
  if (state != NULL) cml_handle_retain(state);
  call.state = state;
  prediction->call = call;
  CmlTicket *ticket = calloc(1, sizeof *ticket);
  if (prediction->values == NULL || call.result == NULL || ticket == NULL) {
    free(ticket);
    status = cml_fail_memory(error);
    cml_request_release(&prediction->request);
    return status;
  }
  atomic_init(&ticket->holders, 1);
  atomic_init(&ticket->prediction, prediction);
  cml_handle_retain(prediction); /* the answer may come, and let go, before `begin` returns */
  status = cml_call_enter(&prediction->call, error);
  if (status == CML_OK) {
    CML_TRY
    status = cml_prediction_begin(prediction, ticket, error);
    CML_CATCH(status, error)
  }
  if (status != CML_OK) {
    if (atomic_exchange(&ticket->prediction, NULL) != NULL) { /* an answer that yet comes finds nobody */
      cml_request_release(&prediction->request);
    } else { /* one came before the failure: it counts */
      status = CML_OK;
      if (error != NULL) {
        cml_error_free(*error);
        *error = NULL;
      }
    }
  }
  cml_ticket_drop(ticket);
  if (status == CML_OK && request != NULL) {
    *request = &prediction->request; /* takes over our count */
  } else {
    cml_request_release(&prediction->request);
  }
  return status;
}

/* ---- results ---- */

void cml_result_view(const CmlResult *result, CmlResultView *view) {
  if (view == NULL) return;
  CmlResultView full;
  memset(&full, 0, sizeof full);
  if (cml_is(result, &cml_tag_result)) {
    full.prepare_ns = result->prepare_ns;
    full.run_ns = result->run_ns;
    full.collect_ns = result->collect_ns;
    full.n_outputs = result->n;
    full.outputs = result->outputs;
  }
  full.size = view->size;
  memcpy(view, &full, full.size < sizeof full ? full.size : sizeof full);
}

void cml_result_free(CmlResult *result) {
  if (result == NULL || !cml_is(result, &cml_tag_result)) return;
  for (size_t i = 0; i < result->n; i++) {
    cml_string_free(result->outputs[i].name);
    cml_value_release(result->outputs[i].value);
  }
  free(result->outputs);
  cml_handle_delete(result);
}
