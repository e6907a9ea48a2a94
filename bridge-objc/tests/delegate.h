/* A bridge in plain C for the tests of the shim: every output is twice its input. */
#ifndef CML_TEST_DELEGATE_H
#define CML_TEST_DELEGATE_H

#include "coreml_bridge.h"

/* Loads any file: a file that begins with "double" is a model, one that begins with "corrupt" fails with an error that
   has a cause. */
const CmlBridge *cml_test_delegate(void);
long cml_test_delegate_live(void);               /* handles not yet released */
const CmlConfig *cml_test_delegate_config(void); /* of the last load; its strings are gone */
const char *cml_test_delegate_function(void);

#endif
