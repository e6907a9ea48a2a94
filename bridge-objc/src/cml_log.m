/* Messages about what no status says. */
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>

#include "cml_internal.h"

/* Not a lock held while the function runs: it may take as long as it likes, and wait for other threads, which log too. */
static pthread_mutex_t cml_log_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t cml_log_idle = PTHREAD_COND_INITIALIZER;
static CmlLogFn cml_log_function; /* as the rest, under the lock */
static void *cml_log_context;
static size_t cml_log_running;
static bool cml_log_changing;
static _Thread_local bool cml_log_inside;

void cml_log(CmlLogLevel level, const char *format, ...) {
  if (cml_log_inside) return;
  pthread_mutex_lock(&cml_log_lock);
  CmlLogFn function = cml_log_function;
  void *context = cml_log_context;
  if (function != NULL) cml_log_running++;
  pthread_mutex_unlock(&cml_log_lock);
  if (function == NULL) return;
  char text[512];
  va_list arguments;
  va_start(arguments, format);
  int length = vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  if (length >= (int)sizeof text) { /* cut, but not within a character */
    length = (int)sizeof text - 1;
    while (length > 0 && ((unsigned char)text[length] & 0xC0) == 0x80) length--;
  }
  CmlStr message = {text, length > 0 ? (size_t)length : 0};
  cml_log_inside = true;
  function(context, level, message);
  cml_log_inside = false;
  pthread_mutex_lock(&cml_log_lock);
  if (--cml_log_running == 0) pthread_cond_broadcast(&cml_log_idle);
  pthread_mutex_unlock(&cml_log_lock);
}

CmlStatus cml_log_set(void *self, CmlLogFn log, void *context, CmlError **error) {
  (void)self;
  CML_CLEAR(error);
  if (cml_log_inside) return cml_fail_busy(error, "the log");
  pthread_mutex_lock(&cml_log_lock);
  while (cml_log_changing) pthread_cond_wait(&cml_log_idle, &cml_log_lock);
  cml_log_changing = true;
  cml_log_function = NULL; /* nobody begins any more, so that this ends */
  while (cml_log_running > 0) pthread_cond_wait(&cml_log_idle, &cml_log_lock);
  cml_log_function = log;
  cml_log_context = context;
  cml_log_changing = false;
  pthread_cond_broadcast(&cml_log_idle);
  pthread_mutex_unlock(&cml_log_lock);
  return CML_OK;
}
