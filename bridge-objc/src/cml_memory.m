/* Loading from memory. */
#include <string.h>

#include "cml_internal.h"

/* Core ML answers a load from memory later only, and a load may take as long as a compiler does; one that is never
   answered must not hold its thread for ever. */
enum { CML_LOAD_SECONDS = 3600 };

static const char cml_model_path[] = "@model_path/";

/* Core ML looks a file up by its path below the model's: a relative one, whatever the URL is relative to. */
static CmlStatus cml_file_url(CmlStr name, NSURL **url, CmlError **error) {
  size_t prefix = sizeof cml_model_path - 1;
  NSString *text = cml_string(name);
  if (text == nil || name.len <= prefix || memcmp(name.ptr, cml_model_path, prefix) != 0 ||
      memchr(name.ptr, 0, name.len) != NULL) {
    return cml_fail(error, CML_INVALID_ARGUMENT, "'%s' does not name a file below %s", cml_utf8(text), cml_model_path);
  }
  *url = [NSURL fileURLWithPath:[text substringFromIndex:prefix]];
  return CML_OK;
}

static CmlStatus cml_files(const CmlFile *files, size_t n_files, NSMutableDictionary<NSURL *, NSData *> *map,
                           CmlError **error) {
  for (size_t i = 0; i < n_files; i++) {
    const CmlFile *file = &files[i];
    NSURL *url = nil;
    CmlStatus status = cml_file_url(file->name, &url, error);
    if (status != CML_OK) return status;
    if (file->bytes == NULL && file->length > 0) {
      return cml_fail(error, CML_INVALID_ARGUMENT, "the bytes of file %zu are NULL", i);
    }
    if ([map objectForKey:url] != nil) {
      return cml_fail(error, CML_INVALID_ARGUMENT, "the file '%s' is given twice", cml_utf8(cml_string(file->name)));
    }
    [map setObject:[NSData dataWithBytes:file->bytes length:file->length] forKey:url];
  }
  return CML_OK;
}

static CmlStatus cml_asset(NSData *specification, NSDictionary<NSURL *, NSData *> *files, id *asset, CmlError **error) {
  NSError *cause = nil;
  bool asked = false;
  if (files.count > 0) {
    CML_IF_OS(15, 0, 18.0) {
      *asset = [MLModelAsset modelAssetWithSpecificationData:specification blobMapping:files error:&cause];
      asked = true;
    }
    if (!asked) return cml_fail_os(error, "loading a model and its files from memory", "macOS 15 or iOS 18");
  } else {
    CML_IF_OS(13, 0, 16.0) {
      *asset = [MLModelAsset modelAssetWithSpecificationData:specification error:&cause];
      asked = true;
    }
    if (!asked) return cml_fail_os(error, "loading a model from memory", "macOS 13 or iOS 16");
  }
  if (*asset == nil) return cml_fail_nserror(error, CML_FRAMEWORK, cause, "reading the model from memory");
  return CML_OK;
}

static CmlStatus cml_load_asset(CmlModel *model, id asset, MLModelConfiguration *settings, CmlError **error) {
  NSError *cause = nil;
  MLModel *loaded = nil;
  CML_IF_OS(13, 0, 16.0) {
    loaded = cml_answer_await(CML_LOAD_SECONDS, &cause, ^(CmlAnswer *answer) {
      [MLModel loadModelAsset:asset
                configuration:settings
            completionHandler:^(MLModel *given, NSError *why) {
              cml_answer_give(answer, given, why);
            }];
    });
  }
  if (loaded == nil) return cml_fail_nserror(error, CML_FRAMEWORK, cause, "loading the model from memory");
  cml_model_adopt(model, loaded);
  cml_log(CML_LOG_INFO, "loaded a model from memory");
  return CML_OK;
}

static CmlStatus cml_load_memory(CmlModel *model, NSData *specification, const CmlFile *files, size_t n_files,
                                 const CmlConfig *config, CmlError **error) {
  id asset = nil;
  NSString *function = nil;
  NSMutableDictionary<NSURL *, NSData *> *map = [NSMutableDictionary dictionary];
  MLModelConfiguration *settings = [[[MLModelConfiguration alloc] init] autorelease];
  CmlStatus status = cml_configure(config, settings, &function, error);
  if (status == CML_OK) status = cml_files(files, n_files, map, error);
  if (status == CML_OK) status = cml_asset(specification, map, &asset, error);
  if (status != CML_OK) return status;
  /* Now, for the handle does not keep the asset, and with it the bytes, only to describe itself. */
  model->functions = [cml_functions_in(asset, NULL) retain];
  if (function != nil) {
    status = cml_require_function(model->functions, function, error);
    if (status != CML_OK) return status;
    model->function = [function retain];
  }
  return cml_load_asset(model, asset, settings, error);
}

CmlStatus cml_model_load_memory(void *self, const void *specification, size_t length, const CmlFile *files,
                                size_t n_files, const CmlConfig *config, CmlModel **out, CmlError **error) {
  (void)self;
  CML_CLEAR(error);
  if (out == NULL) return cml_fail(error, CML_INVALID_ARGUMENT, "there is no place for the model");
  *out = NULL;
  if (specification == NULL || length == 0) return cml_fail(error, CML_INVALID_ARGUMENT, "there is no specification");
  if (files == NULL && n_files > 0) return cml_fail(error, CML_INVALID_ARGUMENT, "the files are NULL");
  CmlModel *model = cml_handle_new(sizeof *model, &cml_tag_model);
  if (model == NULL) return cml_fail_memory(error);
  CmlStatus status = CML_OK;
  CML_TRY
  NSData *bytes = [NSData dataWithBytes:specification length:length];
  status = cml_load_memory(model, bytes, files, n_files, config, error);
  CML_CATCH(status, error)
  if (status == CML_OK) {
    *out = model;
  } else {
    cml_model_release(model);
  }
  return status;
}
