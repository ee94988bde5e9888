/* Loaded with LD_PRELOAD: logs what a process does to the files below $RECORD_ROOT, into $RECORD_LOG.
 *
 * A record is a `struct entry`, a path where the kind has one, and the bytes of a write.  It is appended when the call
 * has returned; that of a sync says where the log ended when the call began: only what was logged by then is sure to be
 * on the disk.  Files are told apart by their inode number, names are logged apart from content. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { WRITE = 'W', TRUNCATE = 'T', SYNC = 'S', NAME = 'N', UNNAME = 'U', DIRECTORY = 'D' };

struct entry {
    uint32_t kind, path_length;
    uint64_t inode, offset, length;
};

static const char *root;
static size_t root_length;
static int log_fd = -1;

__attribute__((constructor)) static void begin(void)
{
    const char *path = getenv("RECORD_LOG");
    root = getenv("RECORD_ROOT");
    if (!root || !path)
        return;
    root_length = strlen(root);
    log_fd = syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
}

static uint64_t log_end(void) { return (uint64_t)syscall(SYS_lseek, log_fd, 0, SEEK_END); }

static void record(int kind, uint64_t inode, uint64_t offset, const struct iovec *data, int count, uint64_t length,
                   const char *path)
{
    struct entry entry = {(uint32_t)kind, path ? (uint32_t)strlen(path) : 0, inode, offset, length};
    struct iovec parts[count + 2];
    parts[0] = (struct iovec){&entry, sizeof entry};
    parts[1] = (struct iovec){(void *)(path ? path : ""), entry.path_length};
    for (int i = 0; i < count; i++)
        parts[i + 2] = data[i];
    if (syscall(SYS_writev, log_fd, parts, count + 2) < 0)
        abort();
}

/* The path below the root, or NULL: not ours. */
static const char *below(int dir, const char *path, char *buffer)
{
    if (log_fd < 0)
        return NULL;
    if (path[0] != '/') {
        char link[64];
        snprintf(link, sizeof link, "/proc/self/fd/%d", dir);
        ssize_t length = dir == AT_FDCWD ? (getcwd(buffer, PATH_MAX) ? (ssize_t)strlen(buffer) : -1)
                                         : readlink(link, buffer, PATH_MAX - 1);
        if (length < 0 || length + strlen(path) + 2 > PATH_MAX)
            return NULL;
        buffer[length] = '/';
        strcpy(buffer + length + 1, path);
    } else {
        strncpy(buffer, path, PATH_MAX - 1);
    }
    return !strncmp(buffer, root, root_length) && buffer[root_length] == '/' ? buffer + root_length + 1 : NULL;
}

/* The inode of a descriptor that is a file or directory of ours, or 0. */
static uint64_t ours(int fd)
{
    char link[64], buffer[PATH_MAX];
    struct stat st;
    if (log_fd < 0)
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, buffer, sizeof buffer - 1);
    if (length < (ssize_t)root_length)
        return 0;
    buffer[length] = 0;
    if (strncmp(buffer, root, root_length) || (buffer[root_length] && buffer[root_length] != '/') || fstat(fd, &st))
        return 0;
    return st.st_ino;
}


static int opened(int dir, const char *path, int flags, mode_t mode)
{
    char buffer[PATH_MAX] = "";
    struct stat st;
    const char *name = below(dir, path, buffer);
    int new = name && flags & O_CREAT && fstatat(dir, path, &st, 0);
    int fd = syscall(SYS_openat, dir, path, flags, mode);
    if (fd >= 0 && name && !fstat(fd, &st)) {
        if (new)
            record(NAME, st.st_ino, 0, NULL, 0, 0, name);
        if (flags & O_TRUNC && !new)
            record(TRUNCATE, st.st_ino, 0, NULL, 0, 0, NULL);
    }
    return fd;
}

#define OPEN(name, dir, ...)                                                                                           \
    {                                                                                                                  \
        va_list list;                                                                                                  \
        va_start(list, flags);                                                                                         \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(list, mode_t) : 0;                                        \
        va_end(list);                                                                                                  \
        return opened(dir, path, flags, mode);                                                                         \
    }

int open(const char *path, int flags, ...) OPEN("open", AT_FDCWD)
int open64(const char *path, int flags, ...) OPEN("open64", AT_FDCWD)
int openat(int dir, const char *path, int flags, ...) OPEN("openat", dir)
int openat64(int dir, const char *path, int flags, ...) OPEN("openat64", dir)

static ssize_t written(int fd, const struct iovec *data, int count, uint64_t offset, ssize_t result)
{
    uint64_t inode = result > 0 ? ours(fd) : 0;
    int error = errno;
    if (inode) {
        uint64_t total = 0;
        for (int i = 0; i < count; i++)
            total += data[i].iov_len;
        if (total != (uint64_t)result) /* a short write, which no test provokes */
            abort();
        record(WRITE, inode, offset, data, count, total, NULL);
    }
    errno = error;
    return result;
}

ssize_t pwrite(int fd, const void *data, size_t length, off_t offset)
{
    struct iovec part = {(void *)data, length};
    return written(fd, &part, 1, (uint64_t)offset, syscall(SYS_pwrite64, fd, data, length, offset));
}
ssize_t pwrite64(int fd, const void *data, size_t length, off64_t offset) { return pwrite(fd, data, length, offset); }

ssize_t pwritev(int fd, const struct iovec *data, int count, off_t offset)
{
    return written(fd, data, count, (uint64_t)offset, syscall(SYS_pwritev, fd, data, count, offset, 0));
}
ssize_t pwritev64(int fd, const struct iovec *data, int count, off64_t offset) { return pwritev(fd, data, count, offset); }
ssize_t pwritev2(int fd, const struct iovec *data, int count, off_t offset, int flags)
{
    return written(fd, data, count, (uint64_t)offset, syscall(SYS_pwritev2, fd, data, count, offset, 0, flags));
}
ssize_t pwritev64v2(int fd, const struct iovec *data, int count, off64_t offset, int flags)
{
    return pwritev2(fd, data, count, offset, flags);
}

ssize_t write(int fd, const void *data, size_t length)
{
    off_t at = log_fd >= 0 ? lseek(fd, 0, SEEK_CUR) : 0;
    ssize_t result = syscall(SYS_write, fd, data, length);
    if (at < 0)
        return result;
    struct iovec part = {(void *)data, length};
    return written(fd, &part, 1, (uint64_t)at, result);
}

int ftruncate(int fd, off_t length)
{
    int result = syscall(SYS_ftruncate, fd, length);
    uint64_t inode = result ? 0 : ours(fd);
    if (inode)
        record(TRUNCATE, inode, (uint64_t)length, NULL, 0, 0, NULL);
    return result;
}
int ftruncate64(int fd, off64_t length) { return ftruncate(fd, length); }

static int grown(int fd, off_t end)
{
    struct stat st;
    uint64_t inode = ours(fd);
    if (inode && !fstat(fd, &st) && st.st_size == end)
        record(TRUNCATE, inode, (uint64_t)end, NULL, 0, 0, NULL);
    return 0;
}
int posix_fallocate(int fd, off_t offset, off_t length)
{
    return syscall(SYS_fallocate, fd, 0, offset, length) ? errno : grown(fd, offset + length);
}
int posix_fallocate64(int fd, off64_t offset, off64_t length) { return posix_fallocate(fd, offset, length); }
int fallocate(int fd, int mode, off_t offset, off_t length)
{
    return syscall(SYS_fallocate, fd, mode, offset, length) ? -1 : grown(fd, offset + length);
}
int fallocate64(int fd, int mode, off64_t offset, off64_t length) { return fallocate(fd, mode, offset, length); }

static int synced(int fd, long number)
{
    uint64_t inode = ours(fd);
    uint64_t from = inode ? log_end() : 0;
    int result = syscall(number, fd);
    if (!result && inode)
        record(SYNC, inode, from, NULL, 0, 0, NULL);
    return result;
}
int fsync(int fd) { return synced(fd, SYS_fsync); }
int fdatasync(int fd) { return synced(fd, SYS_fdatasync); }

int unlinkat(int dir, const char *path, int flags)
{
    char buffer[PATH_MAX] = "";
    const char *name = below(dir, path, buffer);
    int result = syscall(SYS_unlinkat, dir, path, flags);
    if (!result && name)
        record(UNNAME, 0, 0, NULL, 0, 0, name);
    return result;
}
int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }

int mkdirat(int dir, const char *path, mode_t mode)
{
    char buffer[PATH_MAX] = "";
    struct stat st;
    const char *name = below(dir, path, buffer);
    int result = syscall(SYS_mkdirat, dir, path, mode);
    if (!result && name && !fstatat(dir, path, &st, 0))
        record(DIRECTORY, st.st_ino, 0, NULL, 0, 0, name);
    return result;
}
int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }

int link(const char *from, const char *to)
{
    char buffer[PATH_MAX] = "";
    struct stat st;
    const char *name = below(AT_FDCWD, to, buffer);
    int result = syscall(SYS_linkat, AT_FDCWD, from, AT_FDCWD, to, 0);
    if (!result && name && !stat(to, &st))
        record(NAME, st.st_ino, 0, NULL, 0, 0, name);
    return result;
}

/* A rename, or a file that is opened by fopen: nothing of the store does either; a test must not overlook it. */
int rename(const char *from, const char *to)
{
    char buffer[PATH_MAX] = "";
    if (below(AT_FDCWD, to, buffer))
        abort();
    return syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0);
}
