/* A writer of JSON: grows one buffer, remembers a failure until the end. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cml_internal.h"

static void cml_json_put(CmlJson *json, const char *bytes, size_t length) {
  if (json->failed) return;
  if (length > json->capacity - json->length) {
    size_t wanted = json->capacity * 2 + length + 256;
    char *grown = wanted > json->capacity ? realloc(json->bytes, wanted) : NULL;
    if (grown == NULL) {
      json->failed = true;
      return;
    }
    json->bytes = grown;
    json->capacity = wanted;
  }
  memcpy(json->bytes + json->length, bytes, length);
  json->length += length;
}

static void cml_json_separate(CmlJson *json) {
  if (json->comma) cml_json_put(json, ",", 1);
  json->comma = true;
}

static void cml_json_quote(CmlJson *json, const char *text, size_t length) {
  cml_json_put(json, "\"", 1);
  for (size_t i = 0; i < length; i++) {
    unsigned char c = (unsigned char)text[i];
    if (c == '"' || c == '\\') {
      char escaped[2] = {'\\', (char)c};
      cml_json_put(json, escaped, 2);
    } else if (c < 0x20) {
      char escaped[7];
      snprintf(escaped, sizeof escaped, "\\u%04x", c);
      cml_json_put(json, escaped, 6);
    } else {
      cml_json_put(json, text + i, 1);
    }
  }
  cml_json_put(json, "\"", 1);
}

void cml_json_open(CmlJson *json, char bracket) {
  cml_json_separate(json);
  cml_json_put(json, &bracket, 1);
  json->comma = false;
}

void cml_json_close(CmlJson *json, char bracket) {
  cml_json_put(json, &bracket, 1);
  json->comma = true;
}

void cml_json_key(CmlJson *json, const char *key) {
  cml_json_text(json, key);
  cml_json_put(json, ":", 1);
  json->comma = false;
}

void cml_json_name(CmlJson *json, NSString *key) {
  cml_json_string(json, key);
  cml_json_put(json, ":", 1);
  json->comma = false;
}

void cml_json_string(CmlJson *json, NSString *string) {
  NSData *data = [string dataUsingEncoding:NSUTF8StringEncoding allowLossyConversion:YES];
  cml_json_separate(json);
  cml_json_quote(json, data.bytes, data.length);
}

void cml_json_strings(CmlJson *json, NSArray<NSString *> *strings) {
  cml_json_open(json, '[');
  for (NSString *string in strings) cml_json_string(json, string);
  cml_json_close(json, ']');
}

void cml_json_text(CmlJson *json, const char *text) {
  cml_json_separate(json);
  cml_json_quote(json, text, strlen(text));
}

void cml_json_int64(CmlJson *json, int64_t number) {
  char text[24];
  int length = snprintf(text, sizeof text, "%lld", (long long)number);
  cml_json_separate(json);
  cml_json_put(json, text, (size_t)length);
}
void cml_json_uint64(CmlJson *json, uint64_t number) {
  char text[24];
  int length = snprintf(text, sizeof text, "%llu", (unsigned long long)number);
  cml_json_separate(json);
  cml_json_put(json, text, (size_t)length);
}

void cml_json_bool(CmlJson *json, bool value) {
  cml_json_separate(json);
  cml_json_put(json, value ? "true" : "false", value ? 4 : 5);
}

void cml_json_double(CmlJson *json, double number) {
  char text[40];
  int length = isfinite(number) ? snprintf(text, sizeof text, "%.17g", number) : snprintf(text, sizeof text, "null");
  char *comma = memchr(text, ',', (size_t)length); /* how some locales write a point */
  if (comma != NULL) *comma = '.';
  cml_json_separate(json);
  cml_json_put(json, text, (size_t)length);
}

/* Gives the text away as a blob, or frees it. */
static CmlStatus cml_json_finish(CmlJson *json, CmlBlob **blob, CmlError **error) {
  char *bytes = json->bytes;
  json->bytes = NULL;
  if (json->failed) {
    free(bytes);
    bytes = NULL;
  }
  return cml_blob_take(bytes, json->length, blob, error);
}

CmlStatus cml_json_answer(CmlBlob **blob, CmlError **error, NS_NOESCAPE CmlJsonWriter write) {
  CML_CLEAR(error);
  if (blob == NULL) return cml_fail(error, CML_INVALID_ARGUMENT, "there is no place for the answer");
  *blob = NULL;
  CmlStatus status = CML_OK;
  CmlJson json;
  memset(&json, 0, sizeof json);
  CmlJson *place = &json;
  CML_TRY
  status = write(place);
  if (status == CML_OK) status = cml_json_finish(place, blob, error);
  CML_CATCH(status, error)
  free(json.bytes); /* what a failure left */
  return status;
}
