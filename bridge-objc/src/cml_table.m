/* The table. */
#include "cml_internal.h"

/* ---- what this bridge is ---- */

static void cml_info_list(CmlJson *json, const char *key, const char *const *items, size_t n) {
  cml_json_key(json, key);
  cml_json_open(json, '[');
  for (size_t i = 0; i < n; i++) cml_json_text(json, items[i]);
  cml_json_close(json, ']');
}

static void cml_info_device(CmlJson *json, const char *kind, id device) {
  cml_json_open(json, '{');
  cml_json_key(json, "kind");
  cml_json_text(json, kind);
  CML_IF_OS(14, 0, 17.0) {
    if ([device isKindOfClass:[MLGPUComputeDevice class]]) {
      id<MTLDevice> metal = ((MLGPUComputeDevice *)device).metalDevice;
      cml_json_key(json, "name");
      cml_json_string(json, metal.name);
      cml_json_key(json, "registry_id");
      cml_json_uint64(json, metal.registryID);
    }
    if ([device isKindOfClass:[MLNeuralEngineComputeDevice class]]) {
      cml_json_key(json, "cores");
      cml_json_int64(json, ((MLNeuralEngineComputeDevice *)device).totalCoreCount);
    }
  }
  cml_json_close(json, '}');
}

const char *cml_device_kind(id device) {
  CML_IF_OS(14, 0, 17.0) {
    if ([device isKindOfClass:[MLCPUComputeDevice class]]) return "cpu";
    if ([device isKindOfClass:[MLGPUComputeDevice class]]) return "gpu";
    if ([device isKindOfClass:[MLNeuralEngineComputeDevice class]]) return "neural_engine";
  }
  return NULL;
}

static void cml_info_devices(CmlJson *json) {
  bool asked = false;
  cml_json_key(json, "devices");
  cml_json_open(json, '[');
  CML_IF_OS(14, 0, 17.0) {
    asked = true;
    for (id device in MLAllComputeDevices()) {
      const char *kind = cml_device_kind(device);
      if (kind != NULL) cml_info_device(json, kind, device);
    }
  }
  if (!asked) cml_info_device(json, "cpu", nil); /* every system has one */
  cml_json_close(json, ']');
}

static void cml_info(CmlJson *json) {
  const char *dtypes[5], *features[24];
  size_t n_dtypes = 0, n_features = 0;
  dtypes[n_dtypes++] = "float32";
  dtypes[n_dtypes++] = "float64";
  dtypes[n_dtypes++] = "int32";
  CML_IF_OS(12, 0, 16.0) dtypes[n_dtypes++] = "float16";
  CML_IF_OS(26, 0, 26.0) dtypes[n_dtypes++] = "int8";
  features[n_features++] = "mlmodel";
  features[n_features++] = "mlpackage";
  features[n_features++] = "image";
  features[n_features++] = "low_precision_accumulation";
  CML_IF_OS(11, 0, 16.0) features[n_features++] = "backings";
  CML_IF_OS(13, 0, 16.0) features[n_features++] = "display_name";
  CML_IF_OS(15, 0, 18.0) features[n_features++] = "functions";
  CML_IF_OS(15, 0, 18.0) features[n_features++] = "state";
  features[n_features++] = "batch";
  CML_IF_OS(14, 0, 17.0) features[n_features++] = "async";
  CML_IF_OS(14, 4, 17.4) features[n_features++] = "structure";
  CML_IF_OS(14, 4, 17.4) features[n_features++] = "plan";
  CML_IF_OS(14, 4, 17.4) features[n_features++] = "reshape_frequency";
  CML_IF_OS(15, 0, 18.0) features[n_features++] = "specialization";
  CML_IF_OS(13, 0, 16.0) features[n_features++] = "memory";
  CML_IF_OS(15, 0, 18.0) features[n_features++] = "memory_files";
  features[n_features++] = "log";
  CML_IF_OS(14, 0, 17.0) features[n_features++] = "preferred_device";
  cml_json_open(json, '{');
  cml_json_key(json, "name");
  cml_json_text(json, "coreml");
  id version = [[[NSBundle bundleForClass:[MLModel class]] infoDictionary] objectForKey:@"CFBundleVersion"];
  cml_json_key(json, "version");
  cml_json_string(json, [version isKindOfClass:[NSString class]] ? version : @"unknown");
  NSString *system = [[NSProcessInfo processInfo] operatingSystemVersionString];
  cml_json_key(json, "system");
  cml_json_string(json, system != nil ? system : @"unknown");
  cml_info_list(json, "dtypes", dtypes, n_dtypes);
  cml_info_list(json, "features", features, n_features);
  cml_info_devices(json);
  cml_json_close(json, '}');
}

static CmlStatus cml_backend_info(void *self, CmlBlob **blob, CmlError **error) {
  (void)self;
  return cml_json_answer(blob, error, ^CmlStatus(CmlJson *json) {
    cml_info(json);
    return CML_OK;
  });
}

/* ---- every slot, in the order of the header ---- */

static const CmlBridge cml_bridge = {
    .abi_version = CML_ABI_VERSION,
    .struct_size = sizeof(CmlBridge),
    .self = NULL,
    .backend_info = cml_backend_info,
    .error_view = cml_error_view,
    .error_free = cml_error_free,
    .blob_bytes = cml_blob_bytes,
    .blob_free = cml_blob_free,
    .model_compile = cml_model_compile,
    .model_load = cml_model_load,
    .model_describe = cml_model_describe,
    .model_predict = cml_model_predict,
    .model_release = cml_model_release,
    .result_view = cml_result_view,
    .result_free = cml_result_free,
    .value_kind = cml_value_kind,
    .value_retain = cml_value_retain,
    .value_release = cml_value_release,
    .tensor_new = cml_tensor_new,
    .tensor_copy = cml_tensor_copy,
    .tensor_wrap = cml_tensor_wrap,
    .tensor_desc = cml_tensor_desc,
    .tensor_with_bytes = cml_tensor_with_bytes,
    .tensor_read = cml_tensor_read,
    .scalar_new = cml_scalar_new,
    .scalar_view = cml_scalar_view,
    .dictionary_new = cml_dictionary_new,
    .sequence_new = cml_sequence_new,
    .entries_view = cml_entries_view,
    .image_new = cml_image_new,
    .image_with_bytes = cml_image_with_bytes,
    .state_new = cml_state_new,
    .state_with_bytes = cml_state_with_bytes,
    .state_release = cml_state_release,
    .function_names = cml_function_names,
    .model_predict_batch = cml_model_predict_batch,
    .model_predict_async = cml_model_predict_async,
    .model_load_async = cml_model_load_async,
    .request_cancel = cml_request_cancel,
    .request_release = cml_request_release,
    .model_structure = cml_model_structure,
    .compute_plan = cml_compute_plan,
    .model_load_memory = cml_model_load_memory,
    .log_set = cml_log_set,
};

const CmlBridge *cml_bridge_coreml(void) { return &cml_bridge; }
