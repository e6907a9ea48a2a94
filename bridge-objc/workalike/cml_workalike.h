/*
 * cml_workalike.h: how a test steers the Core ML work-alike. Plain C. Test code: never part of a build for Apple.
 */
#ifndef CML_WORKALIKE_H
#define CML_WORKALIKE_H

#include "coreml_bridge.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Who really runs models. Must be set before the first model is loaded, and live for ever. */
void cml_workalike_set_delegate(const CmlBridge *delegate);

/* Hostile modes, which hold until they are set anew. The environment variable CML_WORKALIKE_HOSTILE sets them for a
   whole process: a comma-separated list of the names on the right. */
enum {
  CML_HOSTILE_PADDED = 1 << 0, /* padded:          rows of outputs are padded to 64 bytes, with rubbish between */
  CML_HOSTILE_IGNORE_BACKINGS = 1 << 1, /* ignore-backings: outputs are always fresh arrays */
  CML_HOSTILE_ALIAS_BACKINGS = 1 << 2,  /* alias-backings:  the backing is written, but answered as another object */
  CML_HOSTILE_NIL_ERROR = 1 << 3,       /* nil-error:       failures come without an NSError */
  CML_HOSTILE_NESTED_ERRORS = 1 << 4,   /* nested-errors:   failures come as NSErrors four deep */
  CML_HOSTILE_LATE_RELEASE = 1 << 5,    /* late-release:    inputs are kept a while and released on another thread */
  CML_HOSTILE_SHORT_BYTES = 1 << 6,     /* short-bytes:     arrays announce fewer bytes than they reach over */
  CML_HOSTILE_EAGER_FREE = 1 << 7,      /* eager-free:      an array that cannot be made calls its deallocator */
  CML_HOSTILE_LOSE_ROW = 1 << 8,        /* lose-row:        a batch comes back without its last row */
  CML_HOSTILE_LATE_ANSWER = 1 << 9,     /* late-answer:     completions are called as late as inputs are released */
  CML_HOSTILE_EARLY_ANSWER = 1 << 10,   /* early-answer:    ... or before the method returns, on its thread */
  CML_HOSTILE_STUCK_LOAD = 1 << 11,     /* stuck-load:      a load does not return while this mode holds */
  CML_HOSTILE_THROW_AFTER = 1 << 12     /* throw-after:     what takes a completion throws, and answers all the same */
};
void cml_workalike_set_hostile(uint32_t modes);
void cml_workalike_set_late_release_ms(uint32_t milliseconds); /* 1000 to begin with */

/* One misbehaviour (GNU's Objective-C runtime catches no C++ exception, so there is none here), at the `nth` method
 * called from now on (1 = the next one). */
enum {
  CML_INJECT_NOTHING = 0,
  CML_INJECT_NSEXCEPTION = 1, /* an NSException */
  CML_INJECT_OBJECT = 2,      /* a thrown object that is no NSException */
  CML_INJECT_FAILURE = 3,     /* nil or NO; only methods that may fail are counted */
  CML_INJECT_TWOFOLD = 4      /* an NSException that throws another one when its cause is read */
};
void cml_workalike_inject(int what, long nth);
/* The method where it went off, or NULL if it has not. */
const char *cml_workalike_injected(void);

/* The registry id of the one GPU, and the id of the one that the last load preferred, or 0. */
#define CML_WORKALIKE_GPU UINT64_C(4294970044)
uint64_t cml_workalike_preferred(void);

/* Objects of the work-alike that are alive; pixel buffers count. */
long cml_workalike_live_objects(void);
/* Rules of Core ML or Core Video that were broken, such as a pixel buffer used without its lock. */
long cml_workalike_faults(void);

#ifdef __cplusplus
}
#endif

#endif
