/* The description of a model, as JSON; docs/abi.md is the specification. */
#include "cml_internal.h"

/* A range of sizes counts as unbounded from here on: Core ML writes "no upper bound" as one of several huge numbers. */
static const uint64_t cml_unbounded = INT32_MAX;

/* [least, most]; NSRange is half open. */
static void cml_describe_range(CmlJson *json, NSRange range, bool count) {
  cml_json_open(json, '[');
  cml_json_int64(json, (int64_t)range.location);
  if ((uint64_t)range.length >= cml_unbounded || (uint64_t)range.location >= cml_unbounded) {
    if (!count) cml_json_int64(json, -1);
  } else {
    cml_json_int64(json, (int64_t)(range.location + range.length) - (range.length > 0 ? 1 : 0));
  }
  cml_json_close(json, ']');
}

static void cml_describe_shape(CmlJson *json, NSArray<NSNumber *> *shape) {
  cml_json_open(json, '[');
  for (NSNumber *size in shape) cml_json_int64(json, size.longLongValue);
  cml_json_close(json, ']');
}

/* Are these ranges just the default shape? Then the shape is fixed. */
static bool cml_ranges_fix(NSArray<NSValue *> *ranges, NSArray<NSNumber *> *shape) {
  if (ranges.count != shape.count) return false;
  for (NSUInteger i = 0; i < shape.count; i++) {
    NSRange range = [[ranges objectAtIndex:i] rangeValue];
    if (range.length > 1 || (int64_t)range.location != [[shape objectAtIndex:i] longLongValue]) return false;
  }
  return true;
}

static void cml_describe_tensor(CmlJson *json, MLMultiArrayConstraint *constraint) {
  cml_json_key(json, "tensor");
  cml_json_open(json, '{');
  cml_json_key(json, "dtype");
  cml_json_text(json, cml_dtype_name((CmlDtype)constraint.dataType));
  NSArray<NSNumber *> *shape = constraint.shape;
  cml_json_key(json, "shape");
  cml_describe_shape(json, shape);
  MLMultiArrayShapeConstraint *flexible = constraint.shapeConstraint;
  if (flexible.type == MLMultiArrayShapeConstraintTypeEnumerated) {
    NSArray<NSArray<NSNumber *> *> *shapes = flexible.enumeratedShapes;
    if (shapes.count > 1) {
      cml_json_key(json, "flexible");
      cml_json_open(json, '{');
      cml_json_key(json, "enumerated");
      cml_json_open(json, '[');
      for (NSArray<NSNumber *> *one in shapes) cml_describe_shape(json, one);
      cml_json_close(json, ']');
      cml_json_close(json, '}');
    }
  } else if (flexible.type == MLMultiArrayShapeConstraintTypeRange) {
    NSArray<NSValue *> *ranges = flexible.sizeRangeForDimension;
    if (ranges.count > 0 && !cml_ranges_fix(ranges, shape)) {
      cml_json_key(json, "flexible");
      cml_json_open(json, '{');
      cml_json_key(json, "ranges");
      cml_json_open(json, '[');
      for (NSValue *range in ranges) cml_describe_range(json, range.rangeValue, false);
      cml_json_close(json, ']');
      cml_json_close(json, '}');
    }
  }
  cml_json_close(json, '}');
}

static void cml_describe_image(CmlJson *json, MLImageConstraint *constraint) {
  cml_json_key(json, "image");
  cml_json_open(json, '{');
  cml_json_key(json, "width");
  cml_json_int64(json, constraint.pixelsWide);
  cml_json_key(json, "height");
  cml_json_int64(json, constraint.pixelsHigh);
  cml_json_key(json, "color");
  /* Core ML reports what a pixel buffer must hold: models with RGB and with BGR channels both take BGRA pixels, and the
     framework swaps. So a colour image is "rgb" here. */
  switch (constraint.pixelFormatType) {
    case kCVPixelFormatType_OneComponent8: cml_json_text(json, "gray"); break;
    case kCVPixelFormatType_OneComponent16Half: cml_json_text(json, "gray_float16"); break;
    default: cml_json_text(json, "rgb"); break;
  }
  MLImageSizeConstraint *flexible = constraint.sizeConstraint;
  if (flexible.type == MLImageSizeConstraintTypeEnumerated) {
    NSArray<MLImageSize *> *sizes = flexible.enumeratedImageSizes;
    if (sizes.count > 1) {
      cml_json_key(json, "flexible");
      cml_json_open(json, '{');
      cml_json_key(json, "enumerated");
      cml_json_open(json, '[');
      for (MLImageSize *size in sizes) {
        cml_json_open(json, '[');
        cml_json_int64(json, size.pixelsHigh);
        cml_json_int64(json, size.pixelsWide);
        cml_json_close(json, ']');
      }
      cml_json_close(json, ']');
      cml_json_close(json, '}');
    }
  } else if (flexible.type == MLImageSizeConstraintTypeRange) {
    NSRange high = flexible.pixelsHighRange, wide = flexible.pixelsWideRange;
    if (high.length > 1 || wide.length > 1) {
      cml_json_key(json, "flexible");
      cml_json_open(json, '{');
      cml_json_key(json, "ranges");
      cml_json_open(json, '[');
      cml_describe_range(json, high, false);
      cml_describe_range(json, wide, false);
      cml_json_close(json, ']');
      cml_json_close(json, '}');
    }
  }
  cml_json_close(json, '}');
}

/* How MLFeatureDescription.type and a state's constraint read. */
static void cml_describe_feature(CmlJson *json, NSString *name, MLFeatureDescription *feature) {
  CmlKind kind = (CmlKind)feature.type;
  bool state = false;
  CML_IF_OS(15, 0, 18.0) state = feature.type == MLFeatureTypeState;
  cml_json_open(json, '{');
  cml_json_key(json, "name");
  cml_json_string(json, name);
  cml_json_key(json, "optional");
  cml_json_bool(json, feature.isOptional);
  cml_json_key(json, "kind");
  cml_json_text(json, state ? "tensor" : cml_kind_name(kind));
  if (state) {
    CML_IF_OS(15, 0, 18.0) {
      MLStateConstraint *constraint = feature.stateConstraint;
      cml_json_key(json, "tensor");
      cml_json_open(json, '{');
      cml_json_key(json, "dtype");
      cml_json_text(json, cml_dtype_name((CmlDtype)constraint.dataType));
      cml_json_key(json, "shape");
      cml_describe_shape(json, constraint.bufferShape);
      cml_json_close(json, '}');
    }
  } else if (kind == CML_KIND_TENSOR) {
    cml_describe_tensor(json, feature.multiArrayConstraint);
  } else if (kind == CML_KIND_IMAGE) {
    cml_describe_image(json, feature.imageConstraint);
  } else if (kind == CML_KIND_DICTIONARY) {
    cml_json_key(json, "dictionary");
    cml_json_open(json, '{');
    cml_json_key(json, "key");
    cml_json_text(json, cml_kind_name((CmlKind)feature.dictionaryConstraint.keyType));
    cml_json_close(json, '}');
  } else if (kind == CML_KIND_SEQUENCE) {
    MLSequenceConstraint *constraint = feature.sequenceConstraint;
    cml_json_key(json, "sequence");
    cml_json_open(json, '{');
    cml_json_key(json, "element");
    cml_json_text(json, cml_kind_name((CmlKind)constraint.valueDescription.type));
    cml_json_key(json, "count");
    cml_describe_range(json, constraint.countRange, true);
    cml_json_close(json, '}');
  }
  cml_json_close(json, '}');
}

/* In the order of the names: the framework has none. */
static void cml_describe_features(CmlJson *json, const char *key,
                                  NSDictionary<NSString *, MLFeatureDescription *> *features) {
  cml_json_key(json, key);
  cml_json_open(json, '[');
  for (NSString *name in [features.allKeys sortedArrayUsingSelector:@selector(compare:)]) {
    cml_describe_feature(json, name, [features objectForKey:name]);
  }
  cml_json_close(json, ']');
}

static void cml_describe_text(CmlJson *json, const char *key, id value) {
  if (![value isKindOfClass:[NSString class]]) return;
  cml_json_key(json, key);
  cml_json_string(json, value);
}

static void cml_describe_metadata(CmlJson *json, NSDictionary *metadata) {
  cml_json_key(json, "metadata");
  cml_json_open(json, '{');
  cml_describe_text(json, "author", [metadata objectForKey:MLModelAuthorKey]);
  cml_describe_text(json, "license", [metadata objectForKey:MLModelLicenseKey]);
  cml_describe_text(json, "version", [metadata objectForKey:MLModelVersionStringKey]);
  cml_describe_text(json, "description", [metadata objectForKey:MLModelDescriptionKey]);
  id user = [metadata objectForKey:MLModelCreatorDefinedKey];
  if ([user isKindOfClass:[NSDictionary class]]) {
    cml_json_key(json, "user");
    cml_json_open(json, '{');
    for (id name in user) {
      id value = [(NSDictionary *)user objectForKey:name];
      if (![name isKindOfClass:[NSString class]] || ![value isKindOfClass:[NSString class]]) continue;
      cml_json_name(json, name);
      cml_json_string(json, value);
    }
    cml_json_close(json, '}');
  }
  cml_json_close(json, '}');
}

static void cml_describe(CmlModel *model, CmlJson *json) {
  MLModelDescription *description = model->model.modelDescription;
  cml_json_open(json, '{');
  cml_describe_features(json, "inputs", model->inputs);
  cml_describe_features(json, "outputs", model->outputs);
  cml_describe_features(json, "states", model->states);
  if (model->functions == nil) model->functions = [cml_functions_of(model->compiled, NULL) retain];
  if (model->functions != nil) {
    cml_json_key(json, "functions");
    cml_json_strings(json, model->functions);
  }
  NSString *function = model->function;
  if (function == nil && model->functions.count == 1) function = [model->functions objectAtIndex:0];
  cml_describe_text(json, "function", function);
  cml_describe_text(json, "predicted_feature", description.predictedFeatureName);
  cml_describe_text(json, "predicted_probabilities", description.predictedProbabilitiesName);
  CML_IF_OS(11, 0, 14.0) {
    NSArray *labels = description.classLabels;
    if (labels.count > 0) {
      cml_json_key(json, "class_labels");
      cml_json_open(json, '[');
      for (id label in labels) {
        if ([label isKindOfClass:[NSString class]]) {
          cml_json_string(json, label);
        } else {
          cml_json_int64(json, [(NSNumber *)label longLongValue]);
        }
      }
      cml_json_close(json, ']');
    }
  }
  cml_describe_metadata(json, description.metadata);
  cml_json_close(json, '}');
}

CmlStatus cml_model_describe(CmlModel *model, CmlBlob **blob, CmlError **error) {
  return cml_json_answer(blob, error, ^CmlStatus(CmlJson *json) {
    if (!cml_is(model, &cml_tag_model)) return cml_fail(error, CML_INVALID_ARGUMENT, "not a model of this bridge");
    if (!cml_enter(model, json)) return cml_fail_busy(error, "model");
    @try {
      cml_describe(model, json);
    } @finally {
      cml_leave(model, json);
    }
    return CML_OK;
  });
}
