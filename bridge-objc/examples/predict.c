/*
 * predict.c: one prediction through the table, in C11.
 *
 *     predict MODEL INPUT SIZE... < NUMBERS
 *
 * Loads MODEL, gives its input INPUT a float32 tensor of the sizes named, filled with the numbers on standard input (row
 * by row, separated by white space), and prints every output. For example, with the portable library:
 *
 *     cc predict.c -I bridge-objc/include -L target/release -lcoreml_portable_c -o predict
 *     predict models/digits/digits-f32.mlpackage image 1 1 8 8 < numbers.txt
 *
 * On a Mac, -DPREDICT_WITH_COREML runs the same on Core ML, with the shim linked in the place of the library.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "coreml_bridge.h"

enum { MAX_RANK = 8 };

static CmlStr str(const char *text) { return (CmlStr){text, strlen(text)}; }
static void print(FILE *file, CmlStr text) {
  if (text.len > 0) fwrite(text.ptr, 1, text.len, file);
}

/* Prints an error and what caused it, and gives it back. */
static int failed(const CmlBridge *bridge, const char *what, CmlError *error) {
  fprintf(stderr, "%s failed\n", what);
  for (uint32_t depth = 0; error != NULL; depth++) {
    CmlErrorView view = {.size = sizeof view};
    bridge->error_view(error, depth, &view);
    fprintf(stderr, "  status %" PRId32 ": ", view.status);
    print(stderr, view.message);
    fputc('\n', stderr);
    if (view.depth_left == 0) break;
  }
  bridge->error_free(error);
  return 1;
}

/* The numbers on standard input; NULL, with a word about it, if there are not `count`. */
static float *read_numbers(size_t count) {
  float *numbers = malloc((count > 0 ? count : 1) * sizeof *numbers);
  for (size_t i = 0; numbers != NULL && i < count; i++) {
    if (scanf("%f", &numbers[i]) == 1) continue;
    fprintf(stderr, "%zu numbers are needed, but number %zu is missing\n", count, i + 1);
    free(numbers);
    return NULL;
  }
  return numbers;
}

static void print_tensor(const CmlBridge *bridge, CmlValue *value) {
  CmlTensorDesc desc = {.size = sizeof desc};
  CmlError *error = NULL;
  if (bridge->tensor_desc(value, &desc, &error) != CML_OK) {
    failed(bridge, "asking for a tensor's shape", error);
    return;
  }
  size_t count = 1;
  for (uint32_t i = 0; i < desc.rank; i++) count *= (size_t)desc.shape[i];
  /* Outputs may have strides and any element type: tensor_read makes them dense float32. */
  float *numbers = calloc(count > 0 ? count : 1, sizeof *numbers);
  if (numbers == NULL) return;
  if (bridge->tensor_read(value, CML_DTYPE_FLOAT32, numbers, count * sizeof *numbers, &error) != CML_OK) {
    failed(bridge, "reading a tensor", error);
  } else {
    for (size_t i = 0; i < count; i++) printf(" %.6g", (double)numbers[i]);
  }
  free(numbers);
}

static void print_outputs(const CmlBridge *bridge, const CmlResult *result) {
  CmlResultView view = {.size = sizeof view};
  bridge->result_view(result, &view);
  for (size_t i = 0; i < view.n_outputs; i++) {
    const CmlOutput *output = &view.outputs[i];
    print(stdout, output->name);
    putchar(':');
    CmlScalarView scalar = {.size = sizeof scalar};
    if (bridge->value_kind(output->value) == CML_KIND_TENSOR) {
      print_tensor(bridge, output->value);
    } else if (bridge->scalar_view(output->value, &scalar, NULL) != CML_OK) {
      printf(" (a value of kind %" PRId32 ")", bridge->value_kind(output->value));
    } else if (scalar.kind == CML_KIND_INT64) {
      printf(" %" PRId64, scalar.int64);
    } else if (scalar.kind == CML_KIND_DOUBLE) {
      printf(" %.6g", scalar.float64);
    } else {
      putchar(' ');
      print(stdout, scalar.string);
    }
    putchar('\n');
  }
}

/* What is made here is released here, whatever fails. */
static int run(const CmlBridge *bridge, const char *path, const char *name, const CmlTensorDesc *desc,
               const float *numbers, size_t count) {
  CmlError *error = NULL;
  CmlModel *model = NULL;
  CmlValue *input = NULL;
  CmlResult *result = NULL;
  CmlStr input_name = str(name);
  CmlConfig config = {.size = sizeof config, .compute_units = CML_COMPUTE_ALL};
  int status = 0;
  if (bridge->model_load(bridge->self, str(path), &config, &model, &error) != CML_OK) {
    status = failed(bridge, "loading the model", error);
  } else if (bridge->tensor_copy(bridge->self, desc, numbers, count * sizeof *numbers, &input, &error) != CML_OK) {
    status = failed(bridge, "making the input", error);
  } else if (bridge->model_predict(model, NULL, &input_name, &input, 1, NULL, &result, &error) != CML_OK) {
    status = failed(bridge, "the prediction", error);
  } else {
    print_outputs(bridge, result);
  }
  bridge->result_free(result);
  bridge->value_release(input);
  bridge->model_release(model);
  return status;
}

int main(int argc, char **argv) {
  if (argc < 4 || argc > 3 + MAX_RANK) {
    fprintf(stderr, "usage: %s MODEL INPUT SIZE... < NUMBERS (at most %d sizes)\n", argv[0], MAX_RANK);
    return 2;
  }
#ifdef PREDICT_WITH_COREML
  const CmlBridge *bridge = cml_bridge_coreml();
#else
  const CmlBridge *bridge = cml_bridge_portable();
#endif
  /* A library older than this header may lack slots that it declares. */
  if (bridge == NULL || bridge->abi_version != CML_ABI_VERSION || bridge->struct_size < sizeof(CmlBridge)) {
    fprintf(stderr, "the library does not fit coreml_bridge.h\n");
    return 2;
  }
  int64_t shape[MAX_RANK];
  size_t count = 1;
  CmlTensorDesc desc = {.size = sizeof desc, .dtype = CML_DTYPE_FLOAT32, .rank = (uint32_t)argc - 3, .shape = shape};
  for (int i = 3; i < argc; i++) {
    char *end = NULL;
    shape[i - 3] = strtoll(argv[i], &end, 10);
    if (*end != 0 || shape[i - 3] < 1 || (uint64_t)shape[i - 3] > SIZE_MAX / sizeof(float) / count) {
      fprintf(stderr, "%s is not a size that a tensor can have here\n", argv[i]);
      return 2;
    }
    count *= (size_t)shape[i - 3];
  }
  float *numbers = read_numbers(count);
  if (numbers == NULL) return 2;
  int status = run(bridge, argv[1], argv[2], &desc, numbers, count);
  free(numbers);
  return status;
}
