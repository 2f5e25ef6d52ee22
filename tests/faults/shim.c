/* Faults below a process: a wall clock that jumps, and a disk that fails.

   Loaded by LD_PRELOAD. FAULT_CONTROL names a file of 16 bytes that every process maps: the offset of
   the wall clock in nanoseconds, and what writes to the database's files meet (see `Disk` in shim.py).
   The files are those whose path contains "app.db". */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

enum disk { SOUND, WRITE_FAILS, FULL, SHORT_WRITES, SYNC_FAILS };

struct control {
    volatile int64_t clock_ns;
    volatile int64_t disk;
};

static struct control quiet;
static struct control *control = &quiet;

static int (*next_gettime)(clockid_t, struct timespec *);
static ssize_t (*next_pwrite)(int, const void *, size_t, off_t);
static ssize_t (*next_pwrite64)(int, const void *, size_t, off64_t);
static int (*next_fsync)(int);
static int (*next_fdatasync)(int);

__attribute__((constructor)) static void begin(void) {
    next_gettime = dlsym(RTLD_NEXT, "clock_gettime");
    next_pwrite = dlsym(RTLD_NEXT, "pwrite");
    next_pwrite64 = dlsym(RTLD_NEXT, "pwrite64");
    next_fsync = dlsym(RTLD_NEXT, "fsync");
    next_fdatasync = dlsym(RTLD_NEXT, "fdatasync");
    const char *path = getenv("FAULT_CONTROL");
    int fd = path == NULL ? -1 : open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return;
    void *found = mmap(NULL, sizeof(struct control), PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
    if (found != MAP_FAILED) control = found;
}

static int is_of_database(int fd) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, path, sizeof path - 1);
    if (size < 0) return 0;
    path[size] = 0;
    return strstr(path, "app.db") != NULL;
}

/* How many of `size` bytes may be written; -1 with errno: none. */
static ssize_t allowed(int fd, size_t size) {
    int64_t disk = control->disk;
    if (disk == SOUND || disk == SYNC_FAILS || !is_of_database(fd)) return (ssize_t)size;
    if (disk == SHORT_WRITES) return (ssize_t)(size / 2);
    errno = disk == FULL ? ENOSPC : EIO;
    return -1;
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t offset) {
    ssize_t count = allowed(fd, size);
    return count < 0 ? -1 : next_pwrite(fd, data, (size_t)count, offset);
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset) {
    ssize_t count = allowed(fd, size);
    return count < 0 ? -1 : next_pwrite64(fd, data, (size_t)count, offset);
}

static int sync_fails(int fd) {
    if (control->disk != SYNC_FAILS || !is_of_database(fd)) return 0;
    errno = EIO;
    return 1;
}

int fsync(int fd) { return sync_fails(fd) ? -1 : next_fsync(fd); }

int fdatasync(int fd) { return sync_fails(fd) ? -1 : next_fdatasync(fd); }

int clock_gettime(clockid_t clock, struct timespec *found) {
    int result = next_gettime(clock, found);
    int64_t offset_ns = control->clock_ns;
    if (result == 0 && offset_ns != 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
        int64_t ns = (int64_t)found->tv_sec * 1000000000 + found->tv_nsec + offset_ns;
        found->tv_sec = ns / 1000000000;
        found->tv_nsec = ns % 1000000000;
    }
    return result;
}

int gettimeofday(struct timeval *found, void *zone) {
    struct timespec now;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &now);
    found->tv_sec = now.tv_sec;
    found->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *found) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (found != NULL) *found = now.tv_sec;
    return now.tv_sec;
}
