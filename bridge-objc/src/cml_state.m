/* States: the memory of a stateful model. */
#include <string.h>

#include "cml_internal.h"

static CmlStatus cml_state_make(CmlState *state, CmlError **error) {
  CML_IF_OS(15, 0, 18.0) {
    state->state = [state->model->model newState]; /* of the "new" family: retained already */
    return state->state != nil ? CML_OK : cml_fail(error, CML_FRAMEWORK, "Core ML made no state");
  }
  return cml_fail_os(error, "a state", "macOS 15 or iOS 18");
}

CmlStatus cml_state_new(CmlModel *model, CmlState **out, CmlError **error) {
  CML_CLEAR(error);
  if (out == NULL) return cml_fail(error, CML_INVALID_ARGUMENT, "there is no place for the state");
  *out = NULL;
  if (!cml_is(model, &cml_tag_model)) return cml_fail(error, CML_INVALID_ARGUMENT, "not a model of this bridge");
  CmlStatus status = CML_OK;
  if (!cml_enter(model, &status)) return cml_fail_busy(error, "model");
  CmlState *state = cml_handle_new(sizeof *state, &cml_tag_state);
  if (state == NULL) {
    cml_leave(model, &status);
    return cml_fail_memory(error);
  }
  state->model = model;
  cml_handle_retain(model);
  CML_TRY
  status = cml_state_make(state, error);
  CML_CATCH(status, error)
  cml_leave(model, &status);
  if (status == CML_OK) {
    *out = state;
  } else {
    cml_state_release(state);
  }
  return status;
}

static CmlStatus cml_state_visit(CmlState *state, CmlStr text, bool writable, CmlTensorBytesFn visit, void *context,
                                 CmlError **error) {
  NSString *name = cml_string(text);
  if (name == nil) return cml_fail(error, CML_INVALID_ARGUMENT, "the name of the state is not UTF-8");
  /* Core ML raises an exception for a name it does not know. */
  if ([state->model->states objectForKey:name] == nil) {
    return cml_fail(error, CML_NOT_FOUND, "the model has no state '%s'", cml_utf8(name));
  }
  CML_IF_OS(15, 0, 18.0) {
    __block CmlStatus status = CML_FRAMEWORK;
    __block bool visited = false;
    [(MLState *)state->state getMultiArrayForStateNamed:name
                                                handler:^(MLMultiArray *buffer) {
                                                  visited = true;
                                                  status =
                                                      cml_array_visit(buffer, writable, error,
                                                                      ^CmlStatus(void *bytes, const CmlLayout *layout) {
                                                                        CmlTensorDesc desc;
                                                                        cml_layout_desc(layout, &desc);
                                                                        visit(context, bytes, &desc);
                                                                        return CML_OK;
                                                                      });
                                                }];
    if (!visited) return cml_fail(error, CML_FRAMEWORK, "Core ML did not give access to the state");
    return status;
  }
  return cml_fail_os(error, "a state", "macOS 15 or iOS 18");
}

CmlStatus cml_state_with_bytes(CmlState *state, CmlStr name, int32_t writable, CmlTensorBytesFn visit, void *context,
                               CmlError **error) {
  CML_CLEAR(error);
  if (visit == NULL) return cml_fail(error, CML_INVALID_ARGUMENT, "there is no function to show the memory to");
  if (!cml_is(state, &cml_tag_state)) return cml_fail(error, CML_INVALID_ARGUMENT, "not a state of this bridge");
  CmlStatus status = CML_OK;
  if (!cml_enter(state, &status)) return cml_fail_busy(error, "state");
  CML_TRY
  status = cml_state_visit(state, name, writable != 0, visit, context, error);
  CML_CATCH(status, error)
  cml_leave(state, &status);
  return status;
}

void cml_state_release(CmlState *state) {
  if (!cml_is(state, &cml_tag_state) || !cml_handle_drop(state)) return;
  CmlStatus ignored = CML_OK;
  CML_TRY
  [state->state release];
  CML_CATCH(ignored, (CmlError **)NULL)
  (void)ignored;
  cml_model_release(state->model);
  cml_handle_delete(state);
}
