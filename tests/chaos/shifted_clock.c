/* A wall clock that is off by as many nanoseconds as the first eight bytes of $SHIFTED_CLOCK say, for LD_PRELOAD.
 *
 * The file may change at any time, which is a jump of the clock for every process that was started with it. The
 * monotonic clock stays as it is, as it does when somebody sets the time of a machine. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define SECOND INT64_C(1000000000)

static const volatile int64_t *offset;
static int (*real_clock_gettime)(clockid_t, struct timespec *);
static long (*real_syscall)(long, ...);

__attribute__((constructor)) static void start(void) {
  real_clock_gettime = dlsym(RTLD_NEXT, "clock_gettime");
  real_syscall = dlsym(RTLD_NEXT, "syscall");
  const char *path = getenv("SHIFTED_CLOCK");
  int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
  if (file < 0) return;
  void *mapped = mmap(NULL, sizeof *offset, PROT_READ, MAP_SHARED, file, 0);
  close(file);
  if (mapped != MAP_FAILED) offset = mapped;
}

static void add(struct timespec *t, int64_t nanoseconds) {
  int64_t total = t->tv_sec * SECOND + t->tv_nsec + nanoseconds;
  t->tv_sec = total / SECOND;
  t->tv_nsec = total % SECOND;
}

int clock_gettime(clockid_t clock, struct timespec *t) {
  if (!real_clock_gettime) start();
  int failed = real_clock_gettime(clock, t);
  if (!failed && offset && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) add(t, *offset);
  return failed;
}

int gettimeofday(struct timeval *restrict t, void *restrict zone) {
  (void)zone;
  struct timespec now;
  if (clock_gettime(CLOCK_REALTIME, &now)) return -1;
  t->tv_sec = now.tv_sec;
  t->tv_usec = now.tv_nsec / 1000;
  return 0;
}

time_t time(time_t *t) {
  struct timespec now;
  if (clock_gettime(CLOCK_REALTIME, &now)) return -1;
  if (t) *t = now.tv_sec;
  return now.tv_sec;
}

/* The kernel's own clock has not moved: who waits until a time of the shifted one waits until then by the kernel's. */
long syscall(long number, ...) {
  va_list list;
  long a[6];
  va_start(list, number);
  for (int i = 0; i < 6; i++) a[i] = va_arg(list, long);
  va_end(list);
  if (!real_syscall) start();
  struct timespec until;
  if (number == SYS_futex && offset && (a[1] & FUTEX_CLOCK_REALTIME) && a[3]) {
    until = *(const struct timespec *)a[3];
    add(&until, -*offset);
    a[3] = (long)&until;
  }
  return real_syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
