/* What a process does to its files: recorded, or refused from a given operation on. Loaded before libc.
 *
 * begin(log) writes one record for each operation from now on: "kind path offset length other\n" and then so many bytes.
 * refuse(after, code, times) lets so many operations pass, and fails so many of the next ones with an errno; with the
 * code -1 the process is killed instead.
 * jump(seconds) puts the clock of the day so far forward, or back, from what it is; the steady one goes on.
 * Operations are counted on regular files below the folder that watch(folder) names. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static char folder[PATH_MAX];
static int record = -1;
static long passes = -1, failures = 0, count = 0;
static int failure = 0;

#define REAL(name, type, ...) \
    static type (*real)(__VA_ARGS__); \
    if (!real) real = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)

void watch(const char *path) { strncpy(folder, path, PATH_MAX - 1); count = 0; record = -1; passes = -1; failures = 0; }
void begin(const char *path) {
    REAL(open, int, const char *, int, ...);
    record = real(path, O_WRONLY | O_CREAT | O_APPEND, 0600);
}
void refuse(long after, int code, long times) { passes = after; failure = code; failures = times; }
long operations(void) { return count; }

static int path_of(int fd, char *path) {
    char link[64];
    struct stat status;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, path, PATH_MAX - 1);
    if (size <= 0 || fd == record) return 0;
    path[size] = 0;
    return !strncmp(path, folder, strlen(folder)) && !fstat(fd, &status) && S_ISREG(status.st_mode);
}

static int inside(const char *path) { return folder[0] && !strncmp(path, folder, strlen(folder)); }

/* Counts an operation; whether it fails. */
static int fails(void) {
    count++;
    if (passes < 0) return 0;
    if (passes > 0) { passes--; return 0; }
    if (failures <= 0) return 0;
    failures--;
    if (failure == -1) raise(SIGKILL);
    errno = failure;
    return 1;
}

static void note(char kind, const char *path, long offset, long length, const char *other, const void *data) {
    REAL(write, ssize_t, int, const void *, size_t);
    char head[2 * PATH_MAX + 64];
    if (record < 0) return;
    int size = snprintf(head, sizeof head, "%c\t%s\t%ld\t%ld\t%s\n", kind, path, offset, length, other);
    if (real(record, head, size) != size) abort();
    if (data && length && real(record, data, length) != length) abort();
}

ssize_t write(int fd, const void *data, size_t size) {
    REAL(write, ssize_t, int, const void *, size_t);
    char path[PATH_MAX];
    if (!folder[0] || !path_of(fd, path)) return real(fd, data, size);
    if (fails()) return -1;
    off_t at = lseek(fd, 0, SEEK_CUR);
    ssize_t done = real(fd, data, size);
    if (done > 0) note('w', path, at, done, "", data);
    return done;
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
    REAL(pwrite64, ssize_t, int, const void *, size_t, off64_t);
    char path[PATH_MAX];
    if (!folder[0] || !path_of(fd, path)) return real(fd, data, size, at);
    if (fails()) return -1;
    ssize_t done = real(fd, data, size, at);
    if (done > 0) note('w', path, at, done, "", data);
    return done;
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t at) { return pwrite64(fd, data, size, at); }

static int truncated(int fd, off64_t size) {
    REAL(ftruncate64, int, int, off64_t);
    char path[PATH_MAX];
    if (!folder[0] || !path_of(fd, path)) return real(fd, size);
    if (fails()) return -1;
    int done = real(fd, size);
    if (!done) note('t', path, size, 0, "", 0);
    return done;
}
int ftruncate64(int fd, off64_t size) { return truncated(fd, size); }
int ftruncate(int fd, off_t size) { return truncated(fd, size); }

static int synced(int fd, int (*real)(int)) {
    char path[PATH_MAX];
    if (!folder[0] || !path_of(fd, path)) return real(fd);
    if (fails()) return -1;
    int done = real(fd);
    if (!done) note('s', path, 0, 0, "", 0);
    return done;
}
int fsync(int fd) { REAL(fsync, int, int); return synced(fd, real); }
int fdatasync(int fd) { REAL(fdatasync, int, int); return synced(fd, real); }

int unlink(const char *path) {
    REAL(unlink, int, const char *);
    if (!inside(path)) return real(path);
    if (fails()) return -1;
    int done = real(path);
    if (!done) note('u', path, 0, 0, "", 0);
    return done;
}

int rename(const char *from, const char *to) {
    REAL(rename, int, const char *, const char *);
    if (!inside(from)) return real(from, to);
    if (fails()) return -1;
    int done = real(from, to);
    if (!done) note('r', from, 0, 0, to, 0);
    return done;
}

int link(const char *from, const char *to) {
    REAL(link, int, const char *, const char *);
    if (!inside(from)) return real(from, to);
    if (fails()) return -1;
    int done = real(from, to);
    if (!done) note('l', from, 0, 0, to, 0);
    return done;
}

static long jumped = 0;
void jump(long seconds) { jumped = seconds; }

int clock_gettime(clockid_t clock, struct timespec *now) {
    REAL(clock_gettime, int, clockid_t, struct timespec *);
    int done = real(clock, now);
    if (!done && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += jumped;
    return done;
}

int gettimeofday(struct timeval *now, void *zone) {
    REAL(gettimeofday, int, struct timeval *, void *);
    int done = real(now, zone);
    if (!done) now->tv_sec += jumped;
    return done;
}

time_t time(time_t *to) {
    REAL(time, time_t, time_t *);
    time_t now = real(NULL) + jumped;
    if (to) *to = now;
    return now;
}
