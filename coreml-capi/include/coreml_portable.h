/* coreml_portable.h: what libcoreml_portable_c exports beside the table of coreml_bridge.h. */
#ifndef COREML_PORTABLE_H
#define COREML_PORTABLE_H

#include "coreml_bridge.h"

#ifdef __cplusplus
extern "C" {
#endif

/* [F] How many objects of the table are alive in this process: models, states, results, values, errors, blobs. */
size_t cml_portable_live_objects(void);

#ifdef __cplusplus
}
#endif

#endif /* COREML_PORTABLE_H */
