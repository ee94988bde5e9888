/* _native_decode.c: a request's bytes into the arguments of its function (their order is in native.py).
 *
 * The kernel is trusted, the lengths are checked all the same: a request that is too short, or a name without its end,
 * sets `bad` and never reads past the bytes that came. Layouts: linux/fuse.h.
 */
#include "_native.h"

#include <string.h>

#define COPY_MAX 0x7ffff000u /* fuse_write_out.size has 32 bits; a shorter copy is a right answer */

char *nat_take(struct cursor *c, size_t n) {
    if (c->bad || (size_t)(c->end - c->at) < n) return c->bad = 1, NULL;
    c->at += n;
    return c->at - n;
}
void nat_put(struct decoded *d, PyObject *o) { d->space[1 + d->count++] = o; }
static void put_u(struct decoded *d, uint64_t v) { nat_put(d, PyLong_FromUnsignedLongLong(v)); }
static void put_name(struct decoded *d, struct cursor *c) {
    char *nul = c->bad ? NULL : memchr(c->at, 0, (size_t)(c->end - c->at));
    if (!nul) {
        c->bad = 1;
        return;
    }
    nat_put(d, PyBytes_FromStringAndSize(c->at, nul - c->at));
    c->at = nul + 1;
}
static void put_bytes(struct decoded *d, struct cursor *c, size_t n) {
    char *p = nat_take(c, n);
    if (p) nat_put(d, PyBytes_FromStringAndSize(p, (Py_ssize_t)n));
}
static void put_time(struct decoded *d, uint64_t seconds, uint32_t ns) {
    int64_t s = (int64_t)seconds;
    if (s > -9000000000 && s < 9000000000) {
        nat_put(d, PyLong_FromLongLong(s * 1000000000 + ns));
        return;
    }
    PyObject *whole = PyLong_FromLongLong(s), *giga = PyLong_FromLong(1000000000), *rest = PyLong_FromLong((long)ns);
    PyObject *product = whole && giga ? PyNumber_Multiply(whole, giga) : NULL; /* past the year 2262 */
    nat_put(d, product && rest ? PyNumber_Add(product, rest) : NULL);
    Py_XDECREF(whole);
    Py_XDECREF(giga);
    Py_XDECREF(rest);
    Py_XDECREF(product);
}
static void put_owner(struct decoded *d, const struct fuse_in_header *h) {
    put_u(d, h->uid);
    put_u(d, h->gid);
}

int nat_decodable(unsigned op) {
    switch (op) {
    case FUSE_LOOKUP: case FUSE_FORGET: case FUSE_GETATTR: case FUSE_SETATTR: case FUSE_READLINK: case FUSE_SYMLINK:
    case FUSE_MKNOD: case FUSE_MKDIR: case FUSE_UNLINK: case FUSE_RMDIR: case FUSE_RENAME2: case FUSE_LINK:
    case FUSE_OPEN: case FUSE_READ: case FUSE_WRITE: case FUSE_STATFS: case FUSE_RELEASE: case FUSE_FSYNC:
    case FUSE_SETXATTR: case FUSE_GETXATTR: case FUSE_LISTXATTR: case FUSE_REMOVEXATTR: case FUSE_FLUSH:
    case FUSE_OPENDIR: case FUSE_READDIR: case FUSE_RELEASEDIR: case FUSE_FSYNCDIR: case FUSE_ACCESS:
    case FUSE_CREATE: case FUSE_IOCTL: case FUSE_FALLOCATE: case FUSE_READDIRPLUS: case FUSE_LSEEK:
    case FUSE_COPY_FILE_RANGE: case FUSE_SYNCFS: case FUSE_TMPFILE:
        return 1;
    }
    return 0;
}

#define IN(type, name) struct type *name = (void *)nat_take(c, sizeof *name); if (!name) return
void nat_decode(const struct fuse_in_header *h, struct cursor *c, struct decoded *d) {
    put_u(d, h->nodeid);
    switch (h->opcode) {
    case FUSE_GETATTR: case FUSE_READLINK: case FUSE_STATFS: case FUSE_RELEASE: case FUSE_RELEASEDIR: case FUSE_FLUSH:
    case FUSE_SYNCFS:
        return;
    case FUSE_LOOKUP: case FUSE_UNLINK: case FUSE_RMDIR: case FUSE_REMOVEXATTR:
        put_name(d, c);
        return;
    case FUSE_FORGET: {
        IN(fuse_forget_in, s);
        put_u(d, s->nlookup);
        return;
    }
    case FUSE_SETATTR: {
        IN(fuse_setattr_in, s);
        put_u(d, s->valid);
        put_u(d, s->size);
        put_time(d, s->atime, s->atimensec);
        put_time(d, s->mtime, s->mtimensec);
        put_time(d, s->ctime, s->ctimensec);
        put_u(d, s->mode);
        put_u(d, s->uid);
        put_u(d, s->gid);
        return;
    }
    case FUSE_SYMLINK:
        put_name(d, c);
        put_name(d, c);
        put_owner(d, h);
        return;
    case FUSE_MKNOD: {
        IN(fuse_mknod_in, s);
        put_name(d, c);
        put_u(d, s->mode & ~s->umask);
        put_u(d, s->rdev);
        put_owner(d, h);
        return;
    }
    case FUSE_MKDIR: {
        IN(fuse_mkdir_in, s);
        put_name(d, c);
        put_u(d, s->mode & ~s->umask);
        put_owner(d, h);
        return;
    }
    case FUSE_CREATE: case FUSE_TMPFILE: {
        IN(fuse_create_in, s);
        put_name(d, c);
        put_u(d, s->mode & ~s->umask);
        put_u(d, s->flags);
        put_owner(d, h);
        return;
    }
    case FUSE_RENAME: case FUSE_RENAME2: {
        uint64_t newdir;
        uint32_t flags = 0;
        if (h->opcode == FUSE_RENAME) {
            IN(fuse_rename_in, s);
            newdir = s->newdir;
        } else {
            IN(fuse_rename2_in, s);
            newdir = s->newdir;
            flags = s->flags;
        }
        put_name(d, c);
        put_u(d, newdir);
        put_name(d, c);
        put_u(d, flags);
        return;
    }
    case FUSE_LINK: {
        IN(fuse_link_in, s);
        put_name(d, c);
        put_u(d, s->oldnodeid);
        return;
    }
    case FUSE_OPEN: case FUSE_OPENDIR: {
        IN(fuse_open_in, s);
        put_u(d, s->flags);
        return;
    }
    case FUSE_READ: case FUSE_READDIR: case FUSE_READDIRPLUS: {
        IN(fuse_read_in, s);
        put_u(d, s->offset);
        put_u(d, d->limit = s->size);
        return;
    }
    case FUSE_WRITE: {
        IN(fuse_write_in, s);
        d->length = s->size;
        if (!(d->data = nat_take(c, s->size))) return;
        put_u(d, s->offset);
        nat_put(d, d->view = PyMemoryView_FromMemory((char *)d->data, (Py_ssize_t)s->size, PyBUF_READ));
        put_u(d, s->write_flags);
        return;
    }
    case FUSE_FSYNC: case FUSE_FSYNCDIR: {
        IN(fuse_fsync_in, s);
        put_u(d, s->fsync_flags & 1);
        return;
    }
    case FUSE_SETXATTR: { /* the long form of the header was agreed on, or not */
        struct fuse_setxattr_in *s = (void *)nat_take(
            c, nat_accepted & FUSE_SETXATTR_EXT ? sizeof *s : (size_t)FUSE_COMPAT_SETXATTR_IN_SIZE);
        if (!s) return;
        put_name(d, c);
        put_bytes(d, c, s->size);
        put_u(d, s->flags);
        return;
    }
    case FUSE_GETXATTR: case FUSE_LISTXATTR: {
        IN(fuse_getxattr_in, s);
        d->limit = s->size;
        if (h->opcode == FUSE_GETXATTR) put_name(d, c);
        return;
    }
    case FUSE_ACCESS: {
        IN(fuse_access_in, s);
        put_u(d, s->mask);
        return;
    }
    case FUSE_IOCTL: {
        IN(fuse_ioctl_in, s);
        put_u(d, s->cmd);
        put_u(d, s->flags);
        put_bytes(d, c, s->in_size);
        put_u(d, d->limit = s->out_size);
        return;
    }
    case FUSE_LSEEK: {
        IN(fuse_lseek_in, s);
        nat_put(d, PyLong_FromLongLong((long long)s->offset));
        put_u(d, s->whence);
        return;
    }
    case FUSE_FALLOCATE: {
        IN(fuse_fallocate_in, s);
        put_u(d, s->mode);
        put_u(d, s->offset);
        put_u(d, s->length);
        return;
    }
    case FUSE_COPY_FILE_RANGE: {
        IN(fuse_copy_file_range_in, s);
        put_u(d, s->off_in);
        put_u(d, s->nodeid_out);
        put_u(d, s->off_out);
        put_u(d, s->len < COPY_MAX ? s->len : COPY_MAX);
        put_u(d, s->flags);
        return;
    }
    }
    c->bad = 1;
}
