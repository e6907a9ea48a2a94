/* Compiling and loading. */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cml_internal.h"

_Static_assert((int)MLComputeUnitsCPUOnly == CML_COMPUTE_CPU_ONLY, "rule 10");
_Static_assert((int)MLComputeUnitsCPUAndGPU == CML_COMPUTE_CPU_AND_GPU, "rule 10");
_Static_assert((int)MLComputeUnitsAll == CML_COMPUTE_ALL, "rule 10");

/* ---- paths ---- */

/* An existing file or folder. */
static CmlStatus cml_path(CmlStr text, const char *what, NSString **path, CmlError **error) {
  *path = cml_string(text);
  if (text.len == 0 || *path == nil || memchr(text.ptr, 0, text.len) != NULL) {
    return cml_fail(error, CML_INVALID_ARGUMENT, "the %s is not a path in UTF-8", what);
  }
  if (![[NSFileManager defaultManager] fileExistsAtPath:*path]) {
    return cml_fail(error, CML_NOT_FOUND, "there is no %s at %s", what, cml_utf8(*path));
  }
  return CML_OK;
}

static void cml_remove(NSString *path) {
  if (path != nil) (void)[[NSFileManager defaultManager] removeItemAtPath:path error:NULL];
}

/* ---- compiling ---- */

/* Core ML puts what it compiles into a temporary folder of its own; *compiled is the caller's to delete. */
static CmlStatus cml_compile(NSString *source, NSString **compiled, CmlError **error) {
  NSError *cause = nil;
#pragma clang diagnostic push
#pragma clang diagnostic ignored "-Wdeprecated-declarations" /* the replacement is asynchronous; we are not */
  NSURL *made = [MLModel compileModelAtURL:[NSURL fileURLWithPath:source] error:&cause];
#pragma clang diagnostic pop
  if (made.path == nil) return cml_fail_nserror(error, CML_FRAMEWORK, cause, "compiling the model");
  *compiled = made.path;
  return CML_OK;
}

/* Moves `compiled` into `folder`, named after `source`, in the place of an older one of that name. */
static CmlStatus cml_install(NSString *compiled, NSString *source, NSString *folder, NSString **result,
                             CmlError **error) {
  NSFileManager *files = [NSFileManager defaultManager];
  NSString *name = [source.lastPathComponent.stringByDeletingPathExtension stringByAppendingPathExtension:@"mlmodelc"];
  NSString *target = [folder stringByAppendingPathComponent:name];
  NSString *aside = nil;
  NSError *cause = nil;
  if ([files fileExistsAtPath:target]) {
    NSString *unique = [[NSProcessInfo processInfo] globallyUniqueString];
    aside = [folder stringByAppendingPathComponent:[@".replaced-" stringByAppendingString:unique]];
    if (![files moveItemAtPath:target toPath:aside error:&cause]) {
      return cml_fail_nserror(error, CML_FRAMEWORK, cause, "replacing the older compiled model");
    }
  }
  if (![files moveItemAtPath:compiled toPath:target error:&cause]) {
    cml_remove(target); /* a move across file systems may stop half way */
    if (aside != nil) (void)[files moveItemAtPath:aside toPath:target error:NULL];
    return cml_fail_nserror(error, CML_FRAMEWORK, cause, "moving the compiled model into the folder");
  }
  cml_remove(aside);
  *result = target;
  return CML_OK;
}

static CmlStatus cml_compile_to(CmlStr source, CmlStr folder, CmlBlob **path, CmlError **error) {
  NSString *from = nil, *into = nil, *compiled = nil;
  CmlStatus status = cml_path(source, "model", &from, error);
  if (status == CML_OK && folder.len > 0) {
    BOOL is_folder = NO;
    status = cml_path(folder, "folder", &into, error);
    if (status == CML_OK &&
        !([[NSFileManager defaultManager] fileExistsAtPath:into isDirectory:&is_folder] && is_folder)) {
      status = cml_fail(error, CML_INVALID_ARGUMENT, "%s is not a folder", cml_utf8(into));
    }
  }
  if (status == CML_OK && [from.pathExtension isEqualToString:@"mlmodelc"]) {
    status = cml_fail(error, CML_INVALID_ARGUMENT, "%s is compiled already", cml_utf8(from));
  }
  if (status != CML_OK) return status;
  @try {
    status = cml_compile(from, &compiled, error);
    if (status == CML_OK && into != nil) {
      NSString *installed = nil;
      status = cml_install(compiled, from, into, &installed, error);
      if (status == CML_OK) compiled = installed;
    }
    if (status == CML_OK) {
      CmlStr text = cml_string_copy(compiled);
      status = cml_blob_take((char *)text.ptr, text.len, path, error);
    }
  } @finally {
    if (*path == NULL) cml_remove(compiled);
  }
  return status;
}

CmlStatus cml_model_compile(void *self, CmlStr source, CmlStr folder, CmlBlob **path, CmlError **error) {
  (void)self;
  CML_CLEAR(error);
  if (path == NULL) return cml_fail(error, CML_INVALID_ARGUMENT, "there is no place for the path");
  *path = NULL;
  CmlStatus status = CML_OK;
  CML_TRY
  status = cml_compile_to(source, folder, path, error);
  CML_CATCH(status, error)
  return status;
}

/* ---- the functions of a model ---- */

/* Core ML answers later, on a thread of its own. Whoever lets go last, the waiter or the answer, frees this: what is left
   of a call that throws and never answers is these few bytes. */
struct CmlAnswer {
  pthread_mutex_t lock;
  pthread_cond_t came;
  int holders;
  bool done;
  id given; /* retained, as is the other */
  NSError *cause;
};

static void cml_answer_drop(CmlAnswer *answer) { /* with the lock held; gives it up */
  bool last = --answer->holders == 0;
  pthread_mutex_unlock(&answer->lock);
  if (!last) return;
  [answer->given release];
  [answer->cause release];
  pthread_cond_destroy(&answer->came);
  pthread_mutex_destroy(&answer->lock);
  free(answer);
}

void cml_answer_give(CmlAnswer *answer, id given, NSError *cause) {
  pthread_mutex_lock(&answer->lock);
  if (!answer->done) {
    answer->given = [given retain];
    answer->cause = [cause retain];
  }
  answer->done = true;
  pthread_cond_signal(&answer->came);
  cml_answer_drop(answer);
}

#ifdef CML_TEST_HOOKS
_Atomic int cml_test_wait_ms;
#endif

/* When to stop waiting. */
static struct timespec cml_until(unsigned seconds) {
  struct timespec until;
  clock_gettime(CLOCK_REALTIME, &until);
#ifdef CML_TEST_HOOKS
  int ms = cml_test_wait_ms;
  if (ms != 0) {
    until.tv_nsec += ms % 1000 * 1000000L;
    until.tv_sec += until.tv_nsec / 1000000000L;
    until.tv_nsec %= 1000000000L;
    seconds = (unsigned)ms / 1000;
  }
#endif
  until.tv_sec += seconds;
  return until;
}

id cml_answer_await(unsigned seconds, NSError **cause, NS_NOESCAPE CmlAsk ask) {
  CmlAnswer *answer = calloc(1, sizeof *answer);
  if (answer == NULL) return nil;
  pthread_mutex_init(&answer->lock, NULL);
  pthread_cond_init(&answer->came, NULL);
  answer->holders = 2;
  bool asked = false;
  @try {
    ask(answer);
    asked = true;
  } @finally {
    if (!asked) { /* the call threw: whether it has answered, or will, or never, only the answer's own share tells */
      pthread_mutex_lock(&answer->lock);
      answer->done = true;
      cml_answer_drop(answer);
    }
  }
  struct timespec until = cml_until(seconds);
  NSDictionary *late = [NSDictionary dictionaryWithObject:@"Core ML did not answer in time"
                                                   forKey:NSLocalizedDescriptionKey];
  NSError *none = [NSError errorWithDomain:@"coreml.objc" code:0 userInfo:late];
  pthread_mutex_lock(&answer->lock);
  while (!answer->done && pthread_cond_timedwait(&answer->came, &answer->lock, &until) != ETIMEDOUT) {
  }
  id given = [[answer->given retain] autorelease];
  if (cause != NULL) *cause = answer->done ? [[answer->cause retain] autorelease] : none;
  cml_answer_drop(answer);
  return given;
}

NSArray<NSString *> *cml_functions_in(id asset, NSError **cause) {
  CML_IF_OS(15, 0, 18.0) {
    return cml_answer_await(CML_ANSWER_SECONDS, cause, ^(CmlAnswer *answer) {
      [(MLModelAsset *)asset functionNamesWithCompletionHandler:^(NSArray<NSString *> *names, NSError *why) {
        cml_answer_give(answer, names, why);
      }];
    });
  }
  return nil;
}

NSArray<NSString *> *cml_functions_of(NSString *compiled, NSError **cause) {
  if (compiled == nil) return nil;
  CML_IF_OS(15, 0, 18.0) {
    MLModelAsset *asset = [MLModelAsset modelAssetWithURL:[NSURL fileURLWithPath:compiled] error:cause];
    return asset != nil ? cml_functions_in(asset, cause) : nil;
  }
  return nil;
}

/* ---- loading ---- */

/* What is left to the framework asks nothing of the system. */
static CmlStatus cml_hint(CmlReshapeFrequency reshape, CmlSpecialization strategy, MLModelConfiguration *settings,
                          CmlError **error) {
  if (reshape != CML_RESHAPE_FREQUENT && reshape != CML_RESHAPE_INFREQUENT) {
    return cml_fail(error, CML_INVALID_ARGUMENT, "%d is no frequency of reshapes", reshape);
  }
  if (strategy != CML_SPECIALIZATION_DEFAULT && strategy != CML_SPECIALIZATION_FAST_PREDICTION) {
    return cml_fail(error, CML_INVALID_ARGUMENT, "%d is no specialization", strategy);
  }
  if (reshape == CML_RESHAPE_FREQUENT && strategy == CML_SPECIALIZATION_DEFAULT) return CML_OK;
  bool hinted = false, specialized = strategy == CML_SPECIALIZATION_DEFAULT;
  CML_IF_OS(14, 4, 17.4) {
    _Static_assert((int)MLReshapeFrequencyHintFrequent == CML_RESHAPE_FREQUENT, "rule 10");
    _Static_assert((int)MLReshapeFrequencyHintInfrequent == CML_RESHAPE_INFREQUENT, "rule 10");
    MLOptimizationHints *hints = [[[MLOptimizationHints alloc] init] autorelease];
    hints.reshapeFrequency = (MLReshapeFrequencyHint)reshape;
    CML_IF_OS(15, 0, 18.0) {
      _Static_assert((int)MLSpecializationStrategyDefault == CML_SPECIALIZATION_DEFAULT, "rule 10");
      _Static_assert((int)MLSpecializationStrategyFastPrediction == CML_SPECIALIZATION_FAST_PREDICTION, "rule 10");
      hints.specializationStrategy = (MLSpecializationStrategy)strategy;
      specialized = true;
    }
    settings.optimizationHints = hints;
    hinted = true;
  }
  if (!specialized) return cml_fail_os(error, "a specialization", "macOS 15 or iOS 18");
  if (!hinted) return cml_fail_os(error, "a frequency of reshapes", "macOS 14.4 or iOS 17.4");
  return CML_OK;
}

static CmlStatus cml_prefer(uint64_t registry_id, MLModelConfiguration *settings, CmlError **error) {
  if (settings.computeUnits != MLComputeUnitsAll && settings.computeUnits != MLComputeUnitsCPUAndGPU) {
    return cml_fail(error, CML_INVALID_ARGUMENT, "a GPU is preferred, but the compute units leave none");
  }
  bool asked = false;
  CML_IF_OS(14, 0, 17.0) {
    asked = true;
    for (id device in MLAllComputeDevices()) {
      if (![device isKindOfClass:[MLGPUComputeDevice class]]) continue;
      id<MTLDevice> metal = ((MLGPUComputeDevice *)device).metalDevice;
      if (metal.registryID != registry_id) continue;
      settings.preferredMetalDevice = metal;
      return CML_OK;
    }
  }
  if (!asked) return cml_fail_os(error, "a preferred device", "macOS 14 or iOS 17");
  return cml_fail(error, CML_UNSUPPORTED, "there is no GPU with the registry id %llu", (unsigned long long)registry_id);
}

CmlStatus cml_configure(const CmlConfig *config, MLModelConfiguration *settings, NSString **function,
                        CmlError **error) {
  if (config == NULL) return CML_OK;
  if (!CML_REACHES(CmlConfig, config, size)) {
    return cml_fail(error, CML_INVALID_ARGUMENT, "the configuration has size %u, which is too small", config->size);
  }
  if (CML_REACHES(CmlConfig, config, compute_units)) {
    switch (config->compute_units) {
      case CML_COMPUTE_CPU_ONLY:
      case CML_COMPUTE_CPU_AND_GPU:
      case CML_COMPUTE_ALL: settings.computeUnits = (MLComputeUnits)config->compute_units; break;
      case CML_COMPUTE_CPU_AND_NEURAL_ENGINE: {
        bool set = false;
        CML_IF_OS(13, 0, 16.0) {
          settings.computeUnits = MLComputeUnitsCPUAndNeuralEngine;
          set = true;
        }
        if (!set) return cml_fail_os(error, "CPU and Neural Engine without GPU", "macOS 13 or iOS 16");
        break;
      }
      default: return cml_fail(error, CML_INVALID_ARGUMENT, "%d does not name compute units", config->compute_units);
    }
  }
  if (CML_REACHES(CmlConfig, config, flags)) {
    if ((config->flags & ~(uint32_t)CML_CONFIG_LOW_PRECISION_ACCUMULATION) != 0) {
      return cml_fail(error, CML_INVALID_ARGUMENT, "0x%x has unknown configuration flags", config->flags);
    }
    if ((config->flags & CML_CONFIG_LOW_PRECISION_ACCUMULATION) != 0) settings.allowLowPrecisionAccumulationOnGPU = YES;
  }
  if (CML_REACHES(CmlConfig, config, threads) && config->threads != 0) {
    return cml_fail(error, CML_UNSUPPORTED, "Core ML chooses the number of CPU threads itself; %u was asked for",
                    config->threads);
  }
  if (CML_REACHES(CmlConfig, config, function_name) && config->function_name.len > 0) {
    NSString *name = cml_string(config->function_name);
    if (name == nil) return cml_fail(error, CML_INVALID_ARGUMENT, "the function name is not UTF-8");
    CML_IF_OS(15, 0, 18.0) {
      settings.functionName = name;
      *function = name;
    }
    if (*function == nil) return cml_fail_os(error, "choosing a function of a model", "macOS 15 or iOS 18");
  }
  if (CML_REACHES(CmlConfig, config, display_name) && config->display_name.len > 0) {
    NSString *name = cml_string(config->display_name);
    bool set = false;
    if (name == nil) return cml_fail(error, CML_INVALID_ARGUMENT, "the display name is not UTF-8");
    CML_IF_OS(13, 0, 16.0) {
      settings.modelDisplayName = name;
      set = true;
    }
    if (!set) return cml_fail_os(error, "a display name", "macOS 13 or iOS 16");
  }
  if (CML_REACHES(CmlConfig, config, preferred_device) && config->preferred_device != 0) {
    CmlStatus status = cml_prefer(config->preferred_device, settings, error);
    if (status != CML_OK) return status;
  }
  CmlReshapeFrequency reshape = CML_RESHAPE_FREQUENT;
  CmlSpecialization strategy = CML_SPECIALIZATION_DEFAULT;
  if (CML_REACHES(CmlConfig, config, reshape_frequency)) reshape = config->reshape_frequency;
  if (CML_REACHES(CmlConfig, config, specialization)) strategy = config->specialization;
  return cml_hint(reshape, strategy, settings, error);
}

/* The compiled form of what is at `path`; *made tells if it was compiled just now, and is the caller's to delete. */
static CmlStatus cml_compiled(CmlStr path, NSString **compiled, bool *made, CmlError **error) {
  NSString *source = nil;
  CmlStatus status = cml_path(path, "model", &source, error);
  if (status != CML_OK) return status;
  NSString *extension = source.pathExtension;
  if ([extension isEqualToString:@"mlmodel"] || [extension isEqualToString:@"mlpackage"]) {
    status = cml_compile(source, compiled, error);
    *made = status == CML_OK;
    return status;
  }
  if (![extension isEqualToString:@"mlmodelc"]) {
    return cml_fail(error, CML_UNSUPPORTED, "%s is neither .mlmodel nor .mlpackage nor .mlmodelc", cml_utf8(source));
  }
  *compiled = source;
  return CML_OK;
}

CmlStatus cml_with_compiled(CmlStr path, CmlError **error, NS_NOESCAPE CmlCompiledVisitor visit) {
  NSString *compiled = nil;
  bool made = false;
  CmlStatus status = cml_compiled(path, &compiled, &made, error);
  if (status != CML_OK) return status;
  @try {
    return visit(compiled);
  } @finally {
    if (made) cml_remove(compiled);
  }
}

CmlStatus cml_function_names(void *self, CmlStr path, CmlBlob **blob, CmlError **error) {
  (void)self;
  return cml_json_answer(blob, error, ^CmlStatus(CmlJson *json) {
    bool can = false;
    CML_IF_OS(15, 0, 18.0) can = true;
    if (!can) return cml_fail_os(error, "naming the functions of a model", "macOS 15 or iOS 18");
    return cml_with_compiled(path, error, ^CmlStatus(NSString *compiled) {
      NSError *cause = nil;
      NSArray<NSString *> *names = cml_functions_of(compiled, &cause);
      if (names == nil) return cml_fail_nserror(error, CML_FRAMEWORK, cause, "naming the functions of the model");
      cml_json_strings(json, names);
      return CML_OK;
    });
  });
}

CmlStatus cml_require_function(NSArray<NSString *> *functions, NSString *function, CmlError **error) {
  if (functions.count > 0 && ![functions containsObject:function]) {
    return cml_fail(error, CML_NOT_FOUND, "the model has no function '%s', but %s", cml_utf8(function),
                    cml_utf8([functions componentsJoinedByString:@", "]));
  }
  return CML_OK;
}

CmlStatus cml_choose_function(NSString *compiled, NSString *function, NSArray<NSString *> **functions,
                              CmlError **error) {
  *functions = cml_functions_of(compiled, NULL); /* why not, loading will tell */
  return cml_require_function(*functions, function, error);
}

void cml_model_adopt(CmlModel *model, MLModel *loaded) {
  model->model = [loaded retain];
  MLModelDescription *description = loaded.modelDescription;
  model->inputs = [description.inputDescriptionsByName retain];
  model->outputs = [description.outputDescriptionsByName retain];
  CML_IF_OS(15, 0, 18.0) model->states = [description.stateDescriptionsByName retain];
}

static CmlStatus cml_load(CmlModel *model, CmlStr path, const CmlConfig *config, CmlError **error) {
  NSString *compiled = nil, *function = nil;
  MLModelConfiguration *settings = [[[MLModelConfiguration alloc] init] autorelease];
  CmlStatus status = cml_configure(config, settings, &function, error);
  if (status == CML_OK) status = cml_compiled(path, &compiled, &model->owns_compiled, error);
  if (status != CML_OK) return status;
  model->compiled = [compiled retain];
  if (function != nil) {
    NSArray<NSString *> *functions = nil;
    status = cml_choose_function(compiled, function, &functions, error);
    if (status != CML_OK) return status;
    model->functions = [functions retain];
    model->function = [function retain];
  }
  NSError *cause = nil;
  MLModel *loaded = [MLModel modelWithContentsOfURL:[NSURL fileURLWithPath:compiled]
                                      configuration:settings
                                              error:&cause];
  if (loaded == nil) return cml_fail_nserror(error, CML_FRAMEWORK, cause, "loading the model");
  cml_model_adopt(model, loaded);
  cml_log(CML_LOG_INFO, "loaded %.*s", (int)path.len, path.ptr);
  return CML_OK;
}

void cml_model_release(CmlModel *model) {
  if (!cml_is(model, &cml_tag_model) || !cml_handle_drop(model)) return;
  CmlStatus ignored = CML_OK;
  CML_TRY
  [model->inputs release];
  [model->outputs release];
  [model->states release];
  [model->functions release];
  [model->function release];
  [model->model release];
  CML_CATCH(ignored, (CmlError **)NULL)
  /* Whatever became of the model, its folder goes. */
  CML_TRY
  if (model->owns_compiled) cml_remove(model->compiled);
  [model->compiled release];
  CML_CATCH(ignored, (CmlError **)NULL)
  (void)ignored;
  cml_handle_delete(model);
}

CmlStatus cml_model_load(void *self, CmlStr path, const CmlConfig *config, CmlModel **out, CmlError **error) {
  (void)self;
  CML_CLEAR(error);
  if (out == NULL) return cml_fail(error, CML_INVALID_ARGUMENT, "there is no place for the model");
  *out = NULL;
  CmlModel *model = cml_handle_new(sizeof *model, &cml_tag_model);
  if (model == NULL) return cml_fail_memory(error);
  CmlStatus status = CML_OK;
  CML_TRY
  status = cml_load(model, path, config, error);
  CML_CATCH(status, error)
  if (status == CML_OK) {
    *out = model;
  } else {
    cml_model_release(model);
  }
  return status;
}
