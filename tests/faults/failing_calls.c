/* Makes one call to the system fail, or kills the process there.

   Preloaded (LD_PRELOAD), it counts the calls that write below a folder, and with `arm_reads` also
   those that read there; the armed one fails. Calls that libc makes for itself (the write behind
   fwrite) are not seen: fastmoco, Python, Rust's std and libstdc++ call the functions below. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char folder[4096];
static long number, counted;
static int fault, reads;
static const char *failed = "";

/* Fail at the number-th call from now with an errno; 0 as errno: kill the process there. */
void fault_arm(const char *below, long at, int with, int arm_reads) {
    snprintf(folder, sizeof folder, "%s", below);
    number = at, fault = with, reads = arm_reads, counted = 0, failed = "";
}
long fault_count(void) { return counted; }
const char *fault_name(void) { return failed; }

static int below(const char *path) {
    size_t length = strlen(folder);
    return length && !strncmp(path, folder, length) && (path[length] == '/' || !path[length]);
}
static int of_descriptor(int descriptor) {
    char link[64], path[4096];
    if (!folder[0]) return 0;
    int before = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t size = readlink(link, path, sizeof path - 1);
    errno = before;
    if (size < 0) return 0;
    path[size] = 0;
    return below(path);
}
static int of_path(int at, const char *path) {
    char current[4096];
    if (!folder[0] || !path) return 0;
    if (path[0] == '/') return below(path);
    if (at != AT_FDCWD) return of_descriptor(at);
    return getcwd(current, sizeof current) && below(current);
}
static int fails(const char *name, int is_ours) {
    if (!is_ours || __sync_add_and_fetch(&counted, 1) != number) return 0;
    failed = name;
    if (!fault) raise(SIGKILL);
    errno = fault;
    return 1;
}
static int counts(int flags) { return reads || (flags & (O_WRONLY | O_RDWR | O_CREAT)); }

#define REAL(name) ((__typeof__(&name))real(#name))
static void *real(const char *name) { return dlsym(RTLD_NEXT, name); }

#define MODE(flags, after) \
    va_list more; va_start(more, after); \
    mode_t mode = (flags) & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0; va_end(more)
#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        MODE(flags, flags); \
        if (fails("open", counts(flags) && of_path(AT_FDCWD, path))) return -1; \
        return REAL(name)(path, flags, mode); }
#define OPENAT(name) \
    int name(int at, const char *path, int flags, ...) { \
        MODE(flags, flags); \
        if (fails("open", counts(flags) && of_path(at, path))) return -1; \
        return REAL(name)(at, path, flags, mode); }
#define FOPEN(name) \
    FILE *name(const char *path, const char *how) { \
        int is_ours = (reads || how[0] != 'r' || strchr(how, '+')) && of_path(AT_FDCWD, path); \
        if (fails("open", is_ours)) return NULL; \
        return REAL(name)(path, how); }
OPEN(open) OPEN(open64) OPENAT(openat) OPENAT(openat64) FOPEN(fopen) FOPEN(fopen64)

#define ON_DESCRIPTOR(type, name, said, parameters, arguments) \
    type name parameters { \
        if (fails(said, of_descriptor(descriptor))) return -1; \
        return REAL(name) arguments; }
#define READING(name, parameters, arguments) \
    ssize_t name parameters { \
        if (fails("read", reads && of_descriptor(descriptor))) return -1; \
        return REAL(name) arguments; }
ON_DESCRIPTOR(ssize_t, write, "write", (int descriptor, const void *data, size_t size), (descriptor, data, size))
ON_DESCRIPTOR(ssize_t, writev, "write", (int descriptor, const struct iovec *parts, int count), (descriptor, parts, count))
ON_DESCRIPTOR(ssize_t, pwrite, "pwrite", (int descriptor, const void *data, size_t size, off_t at), (descriptor, data, size, at))
ON_DESCRIPTOR(ssize_t, pwrite64, "pwrite", (int descriptor, const void *data, size_t size, off64_t at), (descriptor, data, size, at))
ON_DESCRIPTOR(ssize_t, pwritev, "pwrite", (int descriptor, const struct iovec *parts, int count, off_t at), (descriptor, parts, count, at))
ON_DESCRIPTOR(ssize_t, pwritev64, "pwrite", (int descriptor, const struct iovec *parts, int count, off64_t at), (descriptor, parts, count, at))
ON_DESCRIPTOR(int, fsync, "fsync", (int descriptor), (descriptor))
ON_DESCRIPTOR(int, fdatasync, "fsync", (int descriptor), (descriptor))
ON_DESCRIPTOR(int, ftruncate, "ftruncate", (int descriptor, off_t size), (descriptor, size))
ON_DESCRIPTOR(int, ftruncate64, "ftruncate", (int descriptor, off64_t size), (descriptor, size))
ON_DESCRIPTOR(int, flock, "flock", (int descriptor, int how), (descriptor, how))
READING(read, (int descriptor, void *data, size_t size), (descriptor, data, size))
READING(pread, (int descriptor, void *data, size_t size, off_t at), (descriptor, data, size, at))
READING(pread64, (int descriptor, void *data, size_t size, off64_t at), (descriptor, data, size, at))

/* A failing close has closed: Linux frees the descriptor in any case. */
int close(int descriptor) {
    int is_ours = of_descriptor(descriptor);
    int result = REAL(close)(descriptor);
    return fails("close", is_ours) ? -1 : result;
}

#define ON_PATH(name, said, at, parameters, arguments) \
    int name parameters { \
        if (fails(said, of_path(at, path))) return -1; \
        return REAL(name) arguments; }
ON_PATH(rename, "rename", AT_FDCWD, (const char *path, const char *to), (path, to))
ON_PATH(renameat, "rename", at, (int at, const char *path, int other, const char *to), (at, path, other, to))
ON_PATH(unlink, "unlink", AT_FDCWD, (const char *path), (path))
ON_PATH(unlinkat, "unlink", at, (int at, const char *path, int flags), (at, path, flags))
ON_PATH(rmdir, "rmdir", AT_FDCWD, (const char *path), (path))
ON_PATH(mkdir, "mkdir", AT_FDCWD, (const char *path, mode_t mode), (path, mode))
ON_PATH(mkdirat, "mkdir", at, (int at, const char *path, mode_t mode), (at, path, mode))
ON_PATH(truncate, "truncate", AT_FDCWD, (const char *path, off_t size), (path, size))
