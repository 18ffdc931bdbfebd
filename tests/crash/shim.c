// Numbers the file operations of a process in one folder, and ends it, or fails, at one of them.
// Loaded with LD_PRELOAD: Python, Rust (safetensors) and C++ (Arrow, torch) all write through libc.
//
// An operation is: a file opened for writing, write, truncate, sync, rename, unlink, mkdir, rmdir,
// link. `crash_watch` says in which folder they count; `crash_at` says at which one what happens.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define KILL 1  // end this process before the operation
#define TORN 2  // the same; of a write, its first half is done
#define FULL 3  // from here on what needs room fails
#define OTHER 4 // end another process, and go on
#define FAIL 5  // this one operation fails; what follows works
#define LOST 6  // from here on every operation fails

static char folder[4096];
static size_t length; // of the folder's name; 0: nothing counts
static int log_to = -1, mode, error; // what fails gets this errno
static long at;
static pid_t other;
static atomic_long count;
static pid_t owner; // a child, such as a worker, does not count

void crash_watch(const char *path, int log_file) {
  strncpy(folder, path, sizeof folder - 1);
  length = strlen(folder), log_to = log_file, owner = getpid(), mode = 0, count = 0;
}
void crash_at(long number, int what, int code, int pid) {
  at = number, mode = what, error = code, other = pid;
}
long crash_count(void) { return count; }

static int inside(const char *path) {
  return length && getpid() == owner && !strncmp(path, folder, length) &&
         (path[length] == '/' || !path[length]);
}

static const char *of_descriptor(int fd, char *buffer) { // the path of an open file
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t n = syscall(SYS_readlinkat, AT_FDCWD, link, buffer, 4095);
  buffer[n > 0 ? n : 0] = 0;
  return buffer;
}

static const char *absolute(int directory, const char *path, char *buffer) {
  if (path[0] == '/') return path;
  char base[4096];
  if (directory == AT_FDCWD) {
    if (syscall(SYS_getcwd, base, sizeof base) < 0) base[0] = 0;
  } else
    of_descriptor(directory, base);
  snprintf(buffer, 8192, "%s/%s", base, path);
  return buffer;
}

static void die(void) {
  syscall(SYS_kill, getpid(), SIGKILL);
  for (;;) pause();
}

// What is to happen to this operation: 0 nothing, TORN half of it, FULL or FAIL an error.
static int happens(const char *kind, const char *path, int needs_room) {
  long number = atomic_fetch_add(&count, 1) + 1;
  if (log_to >= 0) {
    char line[8400];
    int n = snprintf(line, sizeof line, "%ld %s %s\n", number, kind, path);
    syscall(SYS_write, log_to, line, (size_t)n);
  }
  if (mode == FULL && number >= at && needs_room) return FULL;
  if (mode == LOST && number >= at) return FAIL;
  if (number != at) return 0;
  if (mode == KILL || (mode == TORN && strcmp(kind, "write"))) die();
  if (mode == OTHER) syscall(SYS_kill, other, SIGKILL);
  return mode == TORN || mode == FAIL ? mode : 0;
}

#define REAL(name) static __typeof__(&name) real; if (!real) real = dlsym(RTLD_NEXT, #name)
#define PATH_OPERATION(kind, directory, path, room)                                               \
  char buffer_[8192];                                                                             \
  const char *where_ = absolute(directory, path, buffer_);                                        \
  if (inside(where_)) {                                                                           \
    int what_ = happens(kind, where_, room);                                                      \
    if (what_ == FULL || what_ == FAIL) return errno = error, -1;                                 \
  }
#define FILE_OPERATION(kind, fd)                                                                  \
  char buffer_[4096];                                                                             \
  const char *where_ = length ? of_descriptor(fd, buffer_) : "";                                  \
  int what_ = inside(where_) ? happens(kind, where_, 0) : 0;                                      \
  if (what_ == FAIL) return errno = error, -1;

#define WRITING(flags) ((flags) & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC | O_APPEND))
#define OPEN(name, declared, directory, passed)                                                   \
  int name declared {                                                                             \
    REAL(name);                                                                                   \
    mode_t rights = 0;                                                                            \
    if (flags & (O_CREAT | __O_TMPFILE)) {                                                        \
      va_list list;                                                                               \
      va_start(list, flags), rights = va_arg(list, mode_t), va_end(list);                         \
    }                                                                                             \
    if (WRITING(flags)) { PATH_OPERATION("open", directory, path, (flags & O_CREAT) != 0) }       \
    return real passed;                                                                           \
  }
OPEN(open, (const char *path, int flags, ...), AT_FDCWD, (path, flags, rights))
OPEN(open64, (const char *path, int flags, ...), AT_FDCWD, (path, flags, rights))
OPEN(openat, (int directory, const char *path, int flags, ...), directory,
     (directory, path, flags, rights))
OPEN(openat64, (int directory, const char *path, int flags, ...), directory,
     (directory, path, flags, rights))

#define FOPEN(name)                                                                               \
  FILE *name(const char *path, const char *how) {                                                 \
    REAL(name);                                                                                   \
    char buffer[8192];                                                                            \
    const char *where = absolute(AT_FDCWD, path, buffer);                                         \
    if (strpbrk(how, "wa+") && inside(where)) {                                                   \
      int what = happens("open", where, 1);                                                       \
      if (what == FULL || what == FAIL) return errno = error, NULL;                               \
    }                                                                                             \
    return real(path, how);                                                                       \
  }
FOPEN(fopen)
FOPEN(fopen64)

// A full or failing disk takes the first half; the next write gets the error.
static ssize_t torn(int fd, int what, const void *bytes, size_t size, off_t place) {
  ssize_t half = size / 2;
  if (half && place < 0) half = syscall(SYS_write, fd, bytes, (size_t)half);
  if (half && place >= 0) half = syscall(SYS_pwrite64, fd, bytes, (size_t)half, place);
  if (what == TORN) die();
  if (half > 0 && what == FULL) return half;
  return errno = error, -1;
}
#define WRITE(fd, bytes, size, place, call)                                                       \
  char buffer[4096];                                                                              \
  const char *where = length ? of_descriptor(fd, buffer) : "";                                    \
  int what = inside(where) ? happens("write", where, 1) : 0;                                      \
  return what ? torn(fd, what, bytes, size, place) : call;

ssize_t write(int fd, const void *bytes, size_t size) {
  REAL(write);
  WRITE(fd, bytes, size, -1, real(fd, bytes, size))
}
ssize_t pwrite(int fd, const void *bytes, size_t size, off_t place) {
  REAL(pwrite);
  WRITE(fd, bytes, size, place, real(fd, bytes, size, place))
}
ssize_t pwrite64(int fd, const void *bytes, size_t size, off64_t place) {
  REAL(pwrite64);
  WRITE(fd, bytes, size, place, real(fd, bytes, size, place))
}
ssize_t writev(int fd, const struct iovec *parts, int number) {
  REAL(writev);
  WRITE(fd, parts[0].iov_base, parts[0].iov_len, -1, real(fd, parts, number))
}
ssize_t sendfile(int to, int from, off_t *place, size_t size) {
  REAL(sendfile);
  FILE_OPERATION("copy", to)
  return real(to, from, place, size);
}
ssize_t sendfile64(int to, int from, off64_t *place, size_t size) {
  REAL(sendfile64);
  FILE_OPERATION("copy", to)
  return real(to, from, place, size);
}
ssize_t copy_file_range(int from, off64_t *a, int to, off64_t *b, size_t size, unsigned flags) {
  REAL(copy_file_range);
  FILE_OPERATION("copy", to)
  return real(from, a, to, b, size, flags);
}
#define TRUNCATE(name, type)                                                                      \
  int name(int fd, type size) {                                                                   \
    REAL(name);                                                                                   \
    FILE_OPERATION("truncate", fd)                                                                \
    return real(fd, size);                                                                        \
  }
TRUNCATE(ftruncate, off_t)
TRUNCATE(ftruncate64, off64_t)
int fsync(int fd) {
  REAL(fsync);
  FILE_OPERATION("fsync", fd)
  return real(fd);
}
int fdatasync(int fd) {
  REAL(fdatasync);
  FILE_OPERATION("fsync", fd)
  return real(fd);
}
int rename(const char *from, const char *to) {
  REAL(rename);
  PATH_OPERATION("rename", AT_FDCWD, to, 0)
  return real(from, to);
}
int renameat(int a, const char *from, int b, const char *to) {
  REAL(renameat);
  PATH_OPERATION("rename", b, to, 0)
  return real(a, from, b, to);
}
int unlink(const char *path) {
  REAL(unlink);
  PATH_OPERATION("unlink", AT_FDCWD, path, 0)
  return real(path);
}
int unlinkat(int directory, const char *path, int flags) {
  REAL(unlinkat);
  PATH_OPERATION(flags & AT_REMOVEDIR ? "rmdir" : "unlink", directory, path, 0)
  return real(directory, path, flags);
}
int remove(const char *path) {
  REAL(remove);
  PATH_OPERATION("unlink", AT_FDCWD, path, 0)
  return real(path);
}
int rmdir(const char *path) {
  REAL(rmdir);
  PATH_OPERATION("rmdir", AT_FDCWD, path, 0)
  return real(path);
}
int mkdir(const char *path, mode_t rights) {
  REAL(mkdir);
  PATH_OPERATION("mkdir", AT_FDCWD, path, 1)
  return real(path, rights);
}
int mkdirat(int directory, const char *path, mode_t rights) {
  REAL(mkdirat);
  PATH_OPERATION("mkdir", directory, path, 1)
  return real(directory, path, rights);
}
int link(const char *from, const char *to) {
  REAL(link);
  PATH_OPERATION("link", AT_FDCWD, to, 1)
  return real(from, to);
}
int linkat(int a, const char *from, int b, const char *to, int flags) {
  REAL(linkat);
  PATH_OPERATION("link", b, to, 1)
  return real(a, from, b, to, flags);
}
int symlink(const char *to, const char *path) {
  REAL(symlink);
  PATH_OPERATION("link", AT_FDCWD, path, 1)
  return real(to, path);
}
