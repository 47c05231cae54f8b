/*
 * A disk that fails on demand, for programs that are started with it as LD_PRELOAD. The file named by
 * GANTRY_DISK_FAULT says what is wrong now, and may be changed while they run: `MODE PATH` or `MODE PATH BYTES`.
 *   full   writes below PATH fail with ENOSPC after BYTES more (default 0), and no space is free
 *   low    nothing fails, but only BYTES are free
 *   eio    fsync and fdatasync below PATH fail with EIO
 *   rofs   nothing below PATH can be created, changed or removed: EROFS
 *   denied the same with EACCES: what others than root meet where they may not write
 * Without the file all is well.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/uio.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

struct fault {
  char mode[16];
  char path[4096];
  long long bytes;
};

static long long written;

static int fault_now(struct fault *fault) {
  const char *file = getenv("GANTRY_DISK_FAULT");
  char text[5000];
  int saved = errno;
  int fd = file ? REAL(open64)(file, O_RDONLY | O_CLOEXEC) : -1;
  ssize_t length = fd < 0 ? 0 : read(fd, text, sizeof text - 1);
  if (fd >= 0) close(fd);
  errno = saved;
  if (length <= 0) {
    written = 0;
    return 0;
  }
  text[length] = 0;
  fault->bytes = 0;
  return sscanf(text, "%15s %4095s %lld", fault->mode, fault->path, &fault->bytes) >= 2;
}

static int is_below(const struct fault *fault, const char *path) {
  return strncmp(path, fault->path, strlen(fault->path)) == 0;
}

/* The fault of this mode that holds for the path. */
static int has_fault(struct fault *fault, const char *mode, const char *path) {
  return fault_now(fault) && strcmp(fault->mode, mode) == 0 && is_below(fault, path);
}

static int has_fd_fault(struct fault *fault, const char *mode, int fd) {
  char link[64], path[4096];
  if (!fault_now(fault) || strcmp(fault->mode, mode) != 0) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, path, sizeof path - 1);
  if (length <= 0) return 0;
  path[length] = 0;
  return is_below(fault, path);
}

/* How many of these bytes still fit; -1 with ENOSPC when none does. */
static ssize_t room(int fd, size_t count) {
  struct fault fault;
  if (!has_fd_fault(&fault, "full", fd)) return (ssize_t)count;
  long long left = fault.bytes - __sync_fetch_and_add(&written, (long long)count);
  if (left > 0) return left < (long long)count ? (ssize_t)left : (ssize_t)count;
  errno = ENOSPC;
  return -1;
}

ssize_t write(int fd, const void *buffer, size_t count) {
  ssize_t fits = room(fd, count);
  return fits < 0 ? -1 : REAL(write)(fd, buffer, (size_t)fits);
}

ssize_t pwrite64(int fd, const void *buffer, size_t count, off64_t at) {
  ssize_t fits = room(fd, count);
  return fits < 0 ? -1 : REAL(pwrite64)(fd, buffer, (size_t)fits, at);
}

ssize_t pwrite(int fd, const void *buffer, size_t count, off_t at) { return pwrite64(fd, buffer, count, at); }

ssize_t writev(int fd, const struct iovec *parts, int count) {
  ssize_t fits = count > 0 ? room(fd, parts[0].iov_len) : 0;
  return fits < 0 ? -1 : REAL(writev)(fd, parts, count);
}

static int fails_to_sync(int fd) {
  struct fault fault;
  if (!has_fd_fault(&fault, "eio", fd)) return 0;
  errno = EIO;
  return 1;
}

int fsync(int fd) { return fails_to_sync(fd) ? -1 : REAL(fsync)(fd); }

int fdatasync(int fd) { return fails_to_sync(fd) ? -1 : REAL(fdatasync)(fd); }

static int is_read_only(const char *path) {
  struct fault fault;
  if (has_fault(&fault, "rofs", path)) errno = EROFS;
  else if (has_fault(&fault, "denied", path)) errno = EACCES;
  else return 0;
  return 1;
}

int open64(const char *path, int flags, ...) {
  va_list rest;
  va_start(rest, flags);
  mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;
  va_end(rest);
  if ((flags & (O_CREAT | O_WRONLY | O_RDWR | O_TRUNC)) && is_read_only(path)) return -1;
  return REAL(open64)(path, flags, mode);
}

int open(const char *path, int flags, ...) {
  va_list rest;
  va_start(rest, flags);
  mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;
  va_end(rest);
  return open64(path, flags, mode);
}

int mkdir(const char *path, mode_t mode) {
  struct stat there;
  if (stat(path, &there) != 0 && is_read_only(path)) return -1;
  return REAL(mkdir)(path, mode);
}

int link(const char *from, const char *to) { return is_read_only(to) ? -1 : REAL(link)(from, to); }

int rename(const char *from, const char *to) { return is_read_only(to) ? -1 : REAL(rename)(from, to); }

int unlink(const char *path) { return is_read_only(path) ? -1 : REAL(unlink)(path); }

int statfs64(const char *path, struct statfs64 *found) {
  struct fault fault;
  int result = REAL(statfs64)(path, found);
  if (result == 0 && fault_now(&fault) && is_below(&fault, path)) {
    if (strcmp(fault.mode, "full") == 0) found->f_bavail = 0;
    if (strcmp(fault.mode, "low") == 0) found->f_bavail = (fsblkcnt64_t)fault.bytes / (fsblkcnt64_t)found->f_bsize;
  }
  return result;
}

int statfs(const char *path, struct statfs *found) { return statfs64(path, (struct statfs64 *)found); }
