/* Values that are not tensors or images, and the one place where an output of the framework becomes a value. */
#include <stdlib.h>
#include <string.h>

#include "cml_internal.h"

_Static_assert((int)MLFeatureTypeInt64 == CML_KIND_INT64, "rule 10");
_Static_assert((int)MLFeatureTypeDouble == CML_KIND_DOUBLE, "rule 10");
_Static_assert((int)MLFeatureTypeString == CML_KIND_STRING, "rule 10");
_Static_assert((int)MLFeatureTypeImage == CML_KIND_IMAGE, "rule 10");
_Static_assert((int)MLFeatureTypeMultiArray == CML_KIND_TENSOR, "rule 10");
_Static_assert((int)MLFeatureTypeDictionary == CML_KIND_DICTIONARY, "rule 10");
_Static_assert((int)MLFeatureTypeSequence == CML_KIND_SEQUENCE, "rule 10");

const char *cml_kind_name(CmlKind kind) {
  switch (kind) {
    case CML_KIND_INT64: return "int64";
    case CML_KIND_DOUBLE: return "double";
    case CML_KIND_STRING: return "string";
    case CML_KIND_IMAGE: return "image";
    case CML_KIND_TENSOR: return "tensor";
    case CML_KIND_DICTIONARY: return "dictionary";
    case CML_KIND_SEQUENCE: return "sequence";
    default: return "value of an unknown kind";
  }
}

/* ---- life ---- */

CmlValue *cml_value_new(CmlKind kind) {
  CmlValue *value = cml_handle_new(sizeof *value, &cml_tag_value);
  if (value != NULL) value->kind = kind;
  return value;
}

CmlKind cml_value_kind(const CmlValue *value) { return cml_is(value, &cml_tag_value) ? value->kind : CML_KIND_INVALID; }

void cml_value_retain(CmlValue *value) {
  if (cml_is(value, &cml_tag_value)) cml_handle_retain(value);
}

void cml_value_release(CmlValue *value) {
  if (!cml_is(value, &cml_tag_value) || !cml_handle_drop(value)) return;
  CmlStatus ignored = CML_OK; /* a release cannot fail; what it throws ends here */
  CML_TRY
  [value->feature release];
  [value->array release];
  if (value->pixels != NULL) CVPixelBufferRelease(value->pixels);
  CML_CATCH(ignored, (CmlError **)NULL)
  (void)ignored;
  free(value->shape);
  cml_string_free(value->scalar.string);
  free((void *)value->entries.int64_keys);
  free((void *)value->entries.values);
  if (value->entries.string_keys != NULL) {
    for (size_t i = 0; i < value->entries.n; i++) cml_string_free(value->entries.string_keys[i]);
    free((void *)value->entries.string_keys);
  }
  cml_handle_delete(value);
}

/* ---- scalars ---- */

static CmlStatus cml_scalar_fill(CmlValue *value, MLFeatureValue *feature, CmlError **error) {
  if (feature == nil) return cml_fail(error, CML_FRAMEWORK, "Core ML made no feature value of the scalar");
  value->feature = [feature retain];
  value->scalar.size = sizeof value->scalar;
  value->scalar.kind = value->kind;
  switch (value->kind) {
    case CML_KIND_INT64: value->scalar.int64 = feature.int64Value; return CML_OK;
    case CML_KIND_DOUBLE: value->scalar.float64 = feature.doubleValue; return CML_OK;
    default:
      value->scalar.string = cml_string_copy(feature.stringValue);
      return value->scalar.string.ptr != NULL ? CML_OK : cml_fail_memory(error);
  }
}

static CmlStatus cml_scalar_make(CmlValue *value, const CmlScalarView *scalar, CmlError **error) {
  switch (value->kind) {
    case CML_KIND_INT64: return cml_scalar_fill(value, [MLFeatureValue featureValueWithInt64:scalar->int64], error);
    case CML_KIND_DOUBLE: return cml_scalar_fill(value, [MLFeatureValue featureValueWithDouble:scalar->float64], error);
    default: {
      NSString *string = cml_string(scalar->string);
      if (string == nil) return cml_fail(error, CML_INVALID_ARGUMENT, "the string is not UTF-8");
      return cml_scalar_fill(value, [MLFeatureValue featureValueWithString:string], error);
    }
  }
}

CmlStatus cml_scalar_new(void *self, const CmlScalarView *scalar, CmlValue **out, CmlError **error) {
  (void)self;
  CML_CLEAR(error);
  if (out == NULL) return cml_fail(error, CML_INVALID_ARGUMENT, "there is no place for the value");
  *out = NULL;
  if (scalar == NULL || !CML_REACHES(CmlScalarView, scalar, kind)) {
    return cml_fail(error, CML_INVALID_ARGUMENT, "the scalar is NULL or its size is too small");
  }
  bool whole = scalar->kind == CML_KIND_INT64    ? CML_REACHES(CmlScalarView, scalar, int64)
               : scalar->kind == CML_KIND_DOUBLE ? CML_REACHES(CmlScalarView, scalar, float64)
               : scalar->kind == CML_KIND_STRING ? CML_REACHES(CmlScalarView, scalar, string)
                                                 : false;
  if (!whole) return cml_fail(error, CML_INVALID_ARGUMENT, "%d is not the kind of a scalar", scalar->kind);
  CmlValue *value = cml_value_new(scalar->kind);
  if (value == NULL) return cml_fail_memory(error);
  CmlStatus status = CML_OK;
  CML_TRY
  status = cml_scalar_make(value, scalar, error);
  CML_CATCH(status, error)
  if (status == CML_OK) {
    *out = value;
  } else {
    cml_value_release(value);
  }
  return status;
}

CmlStatus cml_scalar_view(const CmlValue *value, CmlScalarView *view, CmlError **error) {
  CML_CLEAR(error);
  if (view == NULL) return cml_fail(error, CML_INVALID_ARGUMENT, "there is no place for the scalar");
  if (!cml_is(value, &cml_tag_value)) return cml_fail(error, CML_INVALID_ARGUMENT, "not a value of this bridge");
  if (value->kind != CML_KIND_INT64 && value->kind != CML_KIND_DOUBLE && value->kind != CML_KIND_STRING) {
    return cml_fail(error, CML_TYPE_MISMATCH, "the value is a %s, not a scalar", cml_kind_name(value->kind));
  }
  CmlScalarView full = value->scalar;
  full.size = view->size;
  memcpy(view, &full, full.size < sizeof full ? full.size : sizeof full);
  return CML_OK;
}

/* ---- dictionaries and sequences ---- */

/* One entry while they are put in order. */
typedef struct CmlEntry {
  id key; /* borrowed */
  CmlStr string;
  int64_t int64;
  double value;
} CmlEntry;

static int cml_entry_by_int64(const void *a, const void *b) {
  int64_t x = ((const CmlEntry *)a)->int64, y = ((const CmlEntry *)b)->int64;
  return (x > y) - (x < y);
}

static int cml_entry_by_string(const void *a, const void *b) {
  CmlStr x = ((const CmlEntry *)a)->string, y = ((const CmlEntry *)b)->string;
  int order = memcmp(x.ptr, y.ptr, x.len < y.len ? x.len : y.len);
  return order != 0 ? order : (x.len > y.len) - (x.len < y.len);
}

/* Fills value->entries from `keys` and, for a dictionary, `numbers`, in the order of the keys array; a dictionary has
   none of its own, so it is sorted by key. What is allocated hangs on the value at once. */
static CmlStatus cml_entries_fill(CmlValue *value, CmlKind key_kind, NSArray *keys, NSDictionary *numbers,
                                  CmlError **error) {
  size_t n = keys.count;
  NSMutableData *scratch = [NSMutableData dataWithLength:(n > 0 ? n : 1) * sizeof(CmlEntry)];
  CmlEntry *entries = scratch.mutableBytes;
  CmlStr *strings = NULL;
  int64_t *int64s = NULL;
  double *values = NULL;
  value->entries.size = sizeof value->entries;
  value->entries.key_kind = key_kind;
  if (key_kind == CML_KIND_STRING) {
    value->entries.string_keys = strings = calloc(n > 0 ? n : 1, sizeof *strings);
    if (strings == NULL) return cml_fail_memory(error);
    value->entries.n = n; /* the strings are freed by this count */
  } else {
    value->entries.int64_keys = int64s = calloc(n > 0 ? n : 1, sizeof *int64s);
    if (int64s == NULL) return cml_fail_memory(error);
  }
  if (numbers != nil) {
    value->entries.values = values = calloc(n > 0 ? n : 1, sizeof *values);
    if (values == NULL) return cml_fail_memory(error);
  }
  value->entries.n = n;
  for (size_t i = 0; i < n; i++) {
    id key = [keys objectAtIndex:i];
    if (![key isKindOfClass:key_kind == CML_KIND_STRING ? [NSString class] : [NSNumber class]]) {
      return cml_fail(error, CML_TYPE_MISMATCH, "the keys are not all of one kind");
    }
    entries[i].key = key;
    if (numbers != nil) entries[i].value = [[numbers objectForKey:key] doubleValue];
    if (key_kind == CML_KIND_STRING) {
      entries[i].string = strings[i] = cml_string_copy(key);
      if (strings[i].ptr == NULL) return cml_fail_memory(error);
    } else {
      entries[i].int64 = [(NSNumber *)key longLongValue];
    }
  }
  if (numbers != nil) qsort(entries, n, sizeof *entries, strings != NULL ? cml_entry_by_string : cml_entry_by_int64);
  for (size_t i = 0; i < n; i++) {
    if (strings != NULL) strings[i] = entries[i].string;
    if (int64s != NULL) int64s[i] = entries[i].int64;
    if (values != NULL) values[i] = entries[i].value;
  }
  return CML_OK;
}

/* Checks what came in; the keys as objects. */
static CmlStatus cml_entries_parse(const CmlEntries *entries, NSMutableArray *keys, CmlError **error) {
  for (size_t i = 0; i < entries->n; i++) {
    id key = entries->key_kind == CML_KIND_STRING ? (id)cml_string(entries->string_keys[i])
                                                  : (id)[NSNumber numberWithLongLong:entries->int64_keys[i]];
    if (key == nil) return cml_fail(error, CML_INVALID_ARGUMENT, "key %zu is not UTF-8", i);
    [keys addObject:key];
  }
  return CML_OK;
}

static CmlStatus cml_dictionary_make(CmlValue *value, const CmlEntries *entries, CmlError **error) {
  NSMutableArray *keys = [NSMutableArray array];
  CmlStatus status = cml_entries_parse(entries, keys, error);
  if (status != CML_OK) return status;
  NSMutableDictionary *numbers = [NSMutableDictionary dictionary];
  for (size_t i = 0; i < entries->n; i++) {
    [numbers setObject:[NSNumber numberWithDouble:entries->values[i]] forKey:[keys objectAtIndex:i]];
  }
  if (numbers.count != entries->n) return cml_fail(error, CML_INVALID_ARGUMENT, "a key occurs twice");
  NSError *cause = nil;
  MLFeatureValue *feature = [MLFeatureValue featureValueWithDictionary:numbers error:&cause];
  if (feature == nil) return cml_fail_nserror(error, CML_FRAMEWORK, cause, "making a dictionary");
  value->feature = [feature retain];
  return cml_entries_fill(value, entries->key_kind, keys, numbers, error);
}

static CmlStatus cml_sequence_make(CmlValue *value, const CmlEntries *entries, CmlError **error) {
  NSMutableArray *keys = [NSMutableArray array];
  CmlStatus status = cml_entries_parse(entries, keys, error);
  if (status != CML_OK) return status;
  MLSequence *sequence = entries->key_kind == CML_KIND_STRING ? [MLSequence sequenceWithStringArray:keys]
                                                              : [MLSequence sequenceWithInt64Array:keys];
  MLFeatureValue *feature = sequence != nil ? [MLFeatureValue featureValueWithSequence:sequence] : nil;
  if (feature == nil) return cml_fail(error, CML_FRAMEWORK, "Core ML made no sequence");
  value->feature = [feature retain];
  return cml_entries_fill(value, entries->key_kind, keys, nil, error);
}

static CmlStatus cml_compound_new(CmlKind kind, const CmlEntries *entries, CmlValue **out, CmlError **error) {
  CML_CLEAR(error);
  if (out == NULL) return cml_fail(error, CML_INVALID_ARGUMENT, "there is no place for the value");
  *out = NULL;
  if (entries == NULL || !CML_REACHES(CmlEntries, entries, values)) {
    return cml_fail(error, CML_INVALID_ARGUMENT, "the entries are NULL or their size is too small");
  }
  bool strings = entries->key_kind == CML_KIND_STRING;
  if (!strings && entries->key_kind != CML_KIND_INT64) {
    return cml_fail(error, CML_INVALID_ARGUMENT, "%d is not the kind of a key", entries->key_kind);
  }
  bool both = entries->string_keys != NULL && entries->int64_keys != NULL;
  bool keys = strings ? entries->string_keys != NULL : entries->int64_keys != NULL;
  if (both || (!keys && entries->n > 0)) {
    return cml_fail(error, CML_INVALID_ARGUMENT, "exactly the array of %s keys must be set",
                    cml_kind_name(entries->key_kind));
  }
  if (kind == CML_KIND_DICTIONARY ? entries->values == NULL && entries->n > 0 : entries->values != NULL) {
    return cml_fail(error, CML_INVALID_ARGUMENT, "a dictionary has values, a sequence has none");
  }
  CmlValue *value = cml_value_new(kind);
  if (value == NULL) return cml_fail_memory(error);
  CmlStatus status = CML_OK;
  CML_TRY
  status = kind == CML_KIND_DICTIONARY ? cml_dictionary_make(value, entries, error)
                                       : cml_sequence_make(value, entries, error);
  CML_CATCH(status, error)
  if (status == CML_OK) {
    *out = value;
  } else {
    cml_value_release(value);
  }
  return status;
}

CmlStatus cml_dictionary_new(void *self, const CmlEntries *entries, CmlValue **value, CmlError **error) {
  (void)self;
  return cml_compound_new(CML_KIND_DICTIONARY, entries, value, error);
}

CmlStatus cml_sequence_new(void *self, const CmlEntries *entries, CmlValue **value, CmlError **error) {
  (void)self;
  return cml_compound_new(CML_KIND_SEQUENCE, entries, value, error);
}

CmlStatus cml_entries_view(const CmlValue *value, CmlEntries *view, CmlError **error) {
  CML_CLEAR(error);
  if (view == NULL) return cml_fail(error, CML_INVALID_ARGUMENT, "there is no place for the entries");
  if (!cml_is(value, &cml_tag_value)) return cml_fail(error, CML_INVALID_ARGUMENT, "not a value of this bridge");
  if (value->kind != CML_KIND_DICTIONARY && value->kind != CML_KIND_SEQUENCE) {
    return cml_fail(error, CML_TYPE_MISMATCH, "the value is a %s, neither a dictionary nor a sequence",
                    cml_kind_name(value->kind));
  }
  CmlEntries full = value->entries;
  full.size = view->size;
  memcpy(view, &full, full.size < sizeof full ? full.size : sizeof full);
  return CML_OK;
}

/* ---- from the framework ---- */

static CmlStatus cml_value_read(CmlValue *value, MLFeatureValue *feature, MLFeatureDescription *description,
                                NSString *name, CmlError **error) {
  switch (value->kind) {
    case CML_KIND_INT64:
    case CML_KIND_DOUBLE:
    case CML_KIND_STRING: return cml_scalar_fill(value, feature, error);
    case CML_KIND_TENSOR: {
      MLMultiArray *array = feature.multiArrayValue;
      if (array == nil) break;
      value->feature = [feature retain];
      return cml_tensor_adopt(value, array, error);
    }
    case CML_KIND_IMAGE: {
      CVPixelBufferRef pixels = feature.imageBufferValue;
      if (pixels == NULL) break;
      value->feature = [feature retain];
      value->pixels = CVPixelBufferRetain(pixels);
      return CML_OK;
    }
    case CML_KIND_DICTIONARY: {
      NSDictionary *numbers = feature.dictionaryValue;
      if (numbers == nil) break;
      NSArray *keys = numbers.allKeys;
      bool strings = keys.count > 0 ? [[keys objectAtIndex:0] isKindOfClass:[NSString class]]
                                    : description.dictionaryConstraint.keyType != MLFeatureTypeInt64;
      value->feature = [feature retain];
      return cml_entries_fill(value, strings ? CML_KIND_STRING : CML_KIND_INT64, keys, numbers, error);
    }
    case CML_KIND_SEQUENCE: {
      MLSequence *sequence = feature.sequenceValue;
      if (sequence == nil) break;
      bool strings = sequence.type == MLFeatureTypeString;
      value->feature = [feature retain];
      return cml_entries_fill(value, strings ? CML_KIND_STRING : CML_KIND_INT64,
                              strings ? (NSArray *)sequence.stringValues : (NSArray *)sequence.int64Values, nil, error);
    }
    default:
      return cml_fail(error, CML_UNSUPPORTED, "output '%s' is of the unknown type %d", cml_utf8(name), value->kind);
  }
  return cml_fail(error, CML_FRAMEWORK, "output '%s' has no value", cml_utf8(name));
}

CmlStatus cml_value_from_feature(MLFeatureValue *feature, MLFeatureDescription *description, NSString *name,
                                 CmlValue **out, CmlError **error) {
  *out = cml_value_new((CmlKind)feature.type);
  if (*out == NULL) return cml_fail_memory(error);
  /* The value hangs on the caller's result already, so that an exception does not leak it. */
  return cml_value_read(*out, feature, description, name, error);
}
