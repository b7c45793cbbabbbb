// Preloaded into a program: kills it, as kill -9 would, just before its N-th call that changes the file system
// (N from KILL_AT; 0 or none: never). COUNT_TO names a file that gets the number of such calls at the end.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

static atomic_long calls;

static void step(void) {
  const char* at = getenv("KILL_AT");
  if (atomic_fetch_add(&calls, 1) + 1 == (at != NULL ? atol(at) : 0)) kill(getpid(), SIGKILL);
}

__attribute__((destructor)) static void report(void) {
  const char* path = getenv("COUNT_TO");
  FILE* file = path != NULL ? fopen(path, "w") : NULL;
  if (file == NULL) return;
  fprintf(file, "%ld\n", atomic_load(&calls));
  fclose(file);
}

// pith-engine ends without destructors.
__attribute__((noreturn)) void _Exit(int code) {
  void (*real)(int);
  *(void**)&real = dlsym(RTLD_NEXT, "_Exit");
  report();
  real(code);
  __builtin_unreachable();
}

#define WRAP(name, parameters, arguments)                        \
  int name parameters {                                          \
    static int(*real) parameters;                                \
    if (real == NULL) *(void**)&real = dlsym(RTLD_NEXT, #name);  \
    step();                                                      \
    return real arguments;                                       \
  }

WRAP(fsync, (int fd), (fd))
WRAP(link, (const char* from, const char* to), (from, to))
WRAP(linkat, (int a, const char* from, int b, const char* to, int flags), (a, from, b, to, flags))
WRAP(rename, (const char* from, const char* to), (from, to))
WRAP(renameat2, (int a, const char* from, int b, const char* to, unsigned flags), (a, from, b, to, flags))
WRAP(unlink, (const char* path), (path))
WRAP(unlinkat, (int folder, const char* path, int flags), (folder, path, flags))
WRAP(rmdir, (const char* path), (path))
WRAP(mkdir, (const char* path, mode_t mode), (path, mode))
