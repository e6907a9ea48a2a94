/* What is inside a model, and where each part of it would run: docs/abi.md, "Structure". */
#include <string.h>

#include "cml_internal.h"

/* Of functions that are called behind CML_IF_OS(14, 4, 17.4) only. */
#define CML_OF_14_4                                      \
  __attribute__((availability(macos, introduced = 14.4), \
                 availability(ios, introduced = 17.4), availability(tvos, introduced = 17.4)))

/* A plan may have to compile for every device first; but an answer that never comes must not hang its caller. */
enum { CML_PLAN_SECONDS = 600 };

/* `plan` is nil for a structure alone. */
typedef struct CmlListing {
  CmlJson *json;
  id plan; /* MLComputePlan, borrowed */
} CmlListing;

/* "ios17.conv" is "conv": how the format calls it. */
static NSString *cml_op_kind(NSString *operator_name) {
  NSRange point = [operator_name rangeOfString:@"."];
  if (point.location == NSNotFound || ![operator_name hasPrefix:@"ios"]) return operator_name;
  for (NSUInteger i = 3; i < point.location; i++) {
    unichar c = [operator_name characterAtIndex:i];
    if (c < '0' || c > '9') return operator_name;
  }
  return point.location > 3 ? [operator_name substringFromIndex:point.location + 1] : operator_name;
}

/* Values by their names; Core ML does not tell the types. */
static void cml_list_value(CmlJson *json, NSString *name) {
  cml_json_open(json, '{');
  cml_json_key(json, "name");
  cml_json_string(json, name);
  cml_json_close(json, '}');
}

static void cml_list_kind(CmlJson *json, NSString *kind) {
  cml_json_key(json, "kind");
  cml_json_string(json, kind);
}

/* ---- the plan of an op ---- */

CML_OF_14_4 static void cml_list_plan(CmlJson *json, MLComputePlanDeviceUsage *usage) {
  if (usage == nil) return; /* such as an op of a function that is not planned */
  const char *preferred = cml_device_kind(usage.preferredComputeDevice);
  cml_json_key(json, "devices");
  cml_json_open(json, '{');
  if (preferred != NULL) {
    cml_json_key(json, "preferred");
    cml_json_text(json, preferred);
  }
  cml_json_key(json, "supported");
  cml_json_open(json, '[');
  for (id device in usage.supportedComputeDevices) {
    const char *kind = cml_device_kind(device);
    if (kind != NULL) cml_json_text(json, kind);
  }
  cml_json_close(json, ']');
  cml_json_close(json, '}');
}

/* ---- programs ---- */

static void cml_list_block(CmlListing *list, MLModelStructureProgramBlock *block,
                           NSArray<MLModelStructureProgramNamedValueType *> *inputs) CML_OF_14_4;

CML_OF_14_4 static void cml_list_values(CmlJson *json, NSArray<MLModelStructureProgramNamedValueType *> *values) {
  cml_json_open(json, '[');
  for (MLModelStructureProgramNamedValueType *value in values) cml_list_value(json, value.name);
  cml_json_close(json, ']');
}

CML_OF_14_4 static void cml_list_arguments(CmlJson *json, NSDictionary<NSString *, MLModelStructureProgramArgument *> *arguments) {
  cml_json_open(json, '{');
  for (NSString *parameter in [arguments.allKeys sortedArrayUsingSelector:@selector(compare:)]) {
    MLModelStructureProgramArgument *argument = [arguments objectForKey:parameter];
    cml_json_name(json, parameter);
    cml_json_open(json, '[');
    for (MLModelStructureProgramBinding *binding in argument.bindings) {
      NSString *name = binding.name;
      cml_json_string(json, name != nil ? name : @"constant");
    }
    cml_json_close(json, ']');
  }
  cml_json_close(json, '}');
}

CML_OF_14_4 static void cml_list_op(CmlListing *list, MLModelStructureProgramOperation *op) {
  NSString *kind = cml_op_kind(op.operatorName);
  if ([kind isEqualToString:@"const"]) return;
  CmlJson *json = list->json;
  cml_json_open(json, '{');
  cml_list_kind(json, kind);
  cml_json_key(json, "inputs");
  cml_list_arguments(json, op.inputs);
  cml_json_key(json, "outputs");
  cml_list_values(json, op.outputs);
  NSArray<MLModelStructureProgramBlock *> *blocks = op.blocks;
  if (blocks.count > 0) {
    cml_json_key(json, "blocks");
    cml_json_open(json, '[');
    for (MLModelStructureProgramBlock *block in blocks) cml_list_block(list, block, block.inputs);
    cml_json_close(json, ']');
  }
  if (list->plan != nil) {
    MLComputePlan *plan = list->plan;
    cml_list_plan(json, [plan computeDeviceUsageForMLProgramOperation:op]);
    MLComputePlanCost *cost = [plan estimatedCostOfMLProgramOperation:op];
    if (cost != nil) {
      cml_json_key(json, "weight");
      cml_json_double(json, cost.weight);
    }
  }
  cml_json_close(json, '}');
}

static void cml_list_block(CmlListing *list, MLModelStructureProgramBlock *block,
                           NSArray<MLModelStructureProgramNamedValueType *> *inputs) {
  cml_json_open(list->json, '{');
  cml_json_key(list->json, "inputs");
  cml_list_values(list->json, inputs);
  cml_json_key(list->json, "ops");
  cml_json_open(list->json, '[');
  for (MLModelStructureProgramOperation *op in block.operations) cml_list_op(list, op);
  cml_json_close(list->json, ']');
  cml_json_key(list->json, "outputs");
  cml_json_strings(list->json, block.outputNames);
  cml_json_close(list->json, '}');
}

/* ---- networks ---- */

CML_OF_14_4 static void cml_list_layer(CmlListing *list, MLModelStructureNeuralNetworkLayer *layer) {
  CmlJson *json = list->json;
  cml_json_open(json, '{');
  cml_list_kind(json, layer.type);
  cml_json_key(json, "name");
  cml_json_string(json, layer.name);
  cml_json_key(json, "inputs");
  cml_json_open(json, '{');
  cml_json_key(json, ""); /* the inputs of a layer are no parameters */
  cml_json_strings(json, layer.inputNames);
  cml_json_close(json, '}');
  cml_json_key(json, "outputs");
  cml_json_open(json, '[');
  for (NSString *name in layer.outputNames) cml_list_value(json, name);
  cml_json_close(json, ']');
  if (list->plan != nil) {
    cml_list_plan(json, [(MLComputePlan *)list->plan computeDeviceUsageForNeuralNetworkLayer:layer]);
  }
  cml_json_close(json, '}');
}

/* ---- models ---- */

CML_OF_14_4 static void cml_list_model(CmlListing *list, MLModelStructure *structure) {
  CmlJson *json = list->json;
  MLModelStructureProgram *program = structure.program;
  MLModelStructureNeuralNetwork *network = structure.neuralNetwork;
  MLModelStructurePipeline *pipeline = structure.pipeline;
  cml_json_open(json, '{');
  if (program != nil) cml_list_kind(json, @"ML program");
  if (network != nil) cml_list_kind(json, @"neural network");
  if (pipeline != nil) cml_list_kind(json, @"pipeline");
  cml_json_key(json, "functions");
  cml_json_open(json, '{');
  NSDictionary<NSString *, MLModelStructureProgramFunction *> *functions = program.functions;
  for (NSString *name in [functions.allKeys sortedArrayUsingSelector:@selector(compare:)]) {
    MLModelStructureProgramFunction *function = [functions objectForKey:name];
    cml_json_name(json, name);
    cml_list_block(list, function.block, function.inputs);
  }
  if (network != nil) { /* one function */
    cml_json_key(json, "main");
    cml_json_open(json, '{');
    cml_json_key(json, "ops");
    cml_json_open(json, '[');
    for (MLModelStructureNeuralNetworkLayer *layer in network.layers) cml_list_layer(list, layer);
    cml_json_close(json, ']');
    cml_json_close(json, '}');
  }
  cml_json_close(json, '}');
  if (pipeline != nil) {
    cml_json_key(json, "models");
    cml_json_open(json, '[');
    for (MLModelStructure *model in pipeline.subModels) cml_list_model(list, model);
    cml_json_close(json, ']');
  }
  cml_json_close(json, '}');
}

/* ---- slots ---- */

static CmlStatus cml_structure_of(NSString *compiled, CmlJson *json, CmlError **error) {
  CML_IF_OS(14, 4, 17.4) {
    NSError *cause = nil;
    NSURL *url = [NSURL fileURLWithPath:compiled];
    MLModelStructure *structure = cml_answer_await(CML_ANSWER_SECONDS, &cause, ^(CmlAnswer *answer) {
      [MLModelStructure loadContentsOfURL:url
                        completionHandler:^(MLModelStructure *given, NSError *why) {
                          cml_answer_give(answer, given, why);
                        }];
    });
    if (structure == nil) return cml_fail_nserror(error, CML_FRAMEWORK, cause, "reading the structure of the model");
    CmlListing list = {json, nil};
    cml_list_model(&list, structure);
    return CML_OK;
  }
  return cml_fail_os(error, "the structure of a model", "macOS 14.4 or iOS 17.4");
}

CmlStatus cml_model_structure(void *self, CmlStr path, CmlBlob **blob, CmlError **error) {
  (void)self;
  return cml_json_answer(blob, error, ^CmlStatus(CmlJson *json) {
    bool can = false;
    CML_IF_OS(14, 4, 17.4) can = true;
    if (!can) return cml_fail_os(error, "the structure of a model", "macOS 14.4 or iOS 17.4");
    return cml_with_compiled(path, error, ^CmlStatus(NSString *compiled) {
      return cml_structure_of(compiled, json, error);
    });
  });
}

static CmlStatus cml_plan_of(NSString *compiled, MLModelConfiguration *settings, CmlJson *json, CmlError **error) {
  CML_IF_OS(14, 4, 17.4) {
    NSError *cause = nil;
    NSURL *url = [NSURL fileURLWithPath:compiled];
    MLComputePlan *plan = cml_answer_await(CML_PLAN_SECONDS, &cause, ^(CmlAnswer *answer) {
      [MLComputePlan loadContentsOfURL:url
                         configuration:settings
                     completionHandler:^(MLComputePlan *given, NSError *why) {
                       cml_answer_give(answer, given, why);
                     }];
    });
    if (plan == nil) return cml_fail_nserror(error, CML_FRAMEWORK, cause, "planning the model");
    CmlListing list = {json, plan};
    cml_list_model(&list, plan.modelStructure);
    return CML_OK;
  }
  return cml_fail_os(error, "a compute plan", "macOS 14.4 or iOS 17.4");
}

CmlStatus cml_compute_plan(void *self, CmlStr path, const CmlConfig *config, CmlBlob **blob, CmlError **error) {
  (void)self;
  return cml_json_answer(blob, error, ^CmlStatus(CmlJson *json) {
    bool can = false;
    NSString *function = nil;
    MLModelConfiguration *settings = [[[MLModelConfiguration alloc] init] autorelease];
    CML_IF_OS(14, 4, 17.4) can = true;
    if (!can) return cml_fail_os(error, "a compute plan", "macOS 14.4 or iOS 17.4");
    CmlStatus status = cml_configure(config, settings, &function, error);
    if (status != CML_OK) return status;
    return cml_with_compiled(path, error, ^CmlStatus(NSString *compiled) {
      NSArray<NSString *> *functions = nil;
      CmlStatus chosen = function != nil ? cml_choose_function(compiled, function, &functions, error) : CML_OK;
      return chosen == CML_OK ? cml_plan_of(compiled, settings, json, error) : chosen;
    });
  });
}
