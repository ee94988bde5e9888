/* _native_answer.c: the requests that have no answer yet, and how an answer is written.
 *
 * `table` holds the requests that wait for Python and those that libfuse has not answered; one that a job finishes is
 * in neither hand any more. A function's result is turned into bytes here; whatever cannot be is reported and EIO.
 */
#include "_native.h"

#include <stdlib.h>
#include <unistd.h>

#define BIG_BODY 16384 /* from here on the copy into the kernel is worth giving up the GIL */

_Atomic int nat_fd = -1;

/* ---- requests that are not answered yet ---- */
struct request {
    struct request *next;
    uint64_t unique;
    uint32_t opcode, limit;
    int foreign; /* libfuse's */
};
#define BUCKETS 1024
static struct request *table[BUCKETS];
static Py_ssize_t waiting;

static struct request **find(uint64_t unique) {
    struct request **p = &table[(unique >> 1) % BUCKETS]; /* the kernel numbers requests 2, 4, 6, ... */
    while (*p && (*p)->unique != unique) p = &(*p)->next;
    return p;
}
int nat_note(uint64_t unique, uint32_t opcode, uint32_t limit, int foreign) {
    struct request *r = malloc(sizeof *r);
    if (!r) return -1;
    struct request **p = find(unique);
    if (*p) { /* a number that libfuse answered past our hook cannot be; never lose the newer one */
        free(r);
        r = *p;
        waiting -= !r->foreign;
    } else {
        r->next = NULL;
        *p = r;
    }
    r->unique = unique;
    r->opcode = opcode;
    r->limit = limit;
    r->foreign = foreign;
    waiting += !foreign;
    return 0;
}
static void drop(struct request **p) {
    struct request *r = *p;
    *p = r->next;
    waiting -= !r->foreign;
    free(r);
}
int nat_take_waiting(uint64_t unique, unsigned opcode, uint32_t *limit) {
    struct request **p = find(unique);
    if (!*p || (*p)->foreign || (*p)->opcode != opcode) return -1;
    *limit = (*p)->limit;
    drop(p);
    return 0;
}
int nat_owner(uint64_t unique) {
    struct request *r = *find(unique);
    return r ? r->foreign ? 2 : 1 : 0;
}
void nat_libfuse_answered(uint64_t unique) {
    struct request **p = find(unique);
    if (*p && (*p)->foreign) drop(p);
}
Py_ssize_t nat_waiting(void) { return waiting; }
void nat_forget_requests(void) {
    for (unsigned i = 0; i < BUCKETS; i++)
        while (table[i]) drop(&table[i]);
}

/* ---- answering ---- */
void nat_send(uint64_t unique, int error, const void *head, size_t nhead, const void *body, size_t nbody) {
    struct fuse_out_header h = {.len = (uint32_t)(sizeof h + nhead + nbody), .error = error, .unique = unique};
    struct iovec v[3] = {{&h, sizeof h}, {(void *)head, nhead}, {(void *)body, nbody}};
    int fd = atomic_load(&nat_fd), n = 1;
    if (nhead) n = 2;
    if (nbody) v[n] = v[2], n++;
    while (writev(fd, v, n) < 0) {
        if (errno == EINTR) continue;
        /* ENOENT: interrupted or aborted. Else the kernel refused this answer (too long, say): it must get one */
        if (errno == ENOENT || errno == ENODEV || errno == EBADF || n == 1) return;
        h.len = sizeof h;
        h.error = -EIO;
        n = 1;
    }
}
static void send_timed(uint64_t unique, int error, const void *head, size_t nhead, const void *body, size_t nbody) {
    uint64_t t = conf.profile ? now_ns() : 0;
    if (nbody >= BIG_BODY) {
        Py_BEGIN_ALLOW_THREADS
        nat_send(unique, error, head, nhead, body, nbody);
        Py_END_ALLOW_THREADS
    } else nat_send(unique, error, head, nhead, body, nbody);
    if (t) stats.ns_reply += now_ns() - t;
}
void nat_send_error(uint64_t unique, int error) { send_timed(unique, error, NULL, 0, NULL, 0); }

PyObject *nat_fetch(void) {
#if PY_VERSION_HEX >= 0x030c0000
    return PyErr_GetRaisedException();
#else
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    PyErr_NormalizeException(&type, &value, &trace);
    if (value && trace) PyException_SetTraceback(value, trace);
    Py_XDECREF(type);
    Py_XDECREF(trace);
    return value;
#endif
}
void nat_report_this(PyObject *exception, PyObject *where) {
    stats.failed++;
    if (conf.on_error) {
        PyObject *f = Py_NewRef(conf.on_error), *r = PyObject_CallOneArg(f, exception);
        if (!r) PyErr_WriteUnraisable(f);
        Py_XDECREF(r);
        Py_DECREF(f);
    } else {
        PyErr_SetObject((PyObject *)Py_TYPE(exception), exception);
        PyErr_WriteUnraisable(where);
    }
}
void nat_report(PyObject *where) {
    PyObject *e = nat_fetch();
    if (e) nat_report_this(e, where);
    Py_XDECREF(e);
}

static void answer_number(unsigned op, uint64_t unique, PyObject *result) {
    long long v = result == Py_None ? 0 : PyLong_AsLongLong(result);
    if (v == -1 && PyErr_Occurred()) {
        nat_report(result);
        nat_send_error(unique, -EIO);
    } else if (v < 0) {
        nat_send_error(unique, v > -512 ? (int)v : -EIO); /* the kernel takes no other number, and would never answer */
    } else if (op == FUSE_WRITE || op == FUSE_COPY_FILE_RANGE) {
        struct fuse_write_out o = {.size = (uint32_t)v};
        if (v > UINT32_MAX) nat_send_error(unique, -EIO);
        else send_timed(unique, 0, &o, sizeof o, NULL, 0);
    } else if (op == FUSE_LSEEK) {
        struct fuse_lseek_out o = {.offset = (uint64_t)v};
        send_timed(unique, 0, &o, sizeof o, NULL, 0);
    } else if (op == FUSE_IOCTL) {
        struct fuse_ioctl_out o = {.result = (int32_t)v};
        send_timed(unique, 0, &o, sizeof o, NULL, 0);
    } else if (v) {
        PyErr_Format(PyExc_ValueError, "opcode %u cannot be answered with %lld", op, v);
        nat_report(result);
        nat_send_error(unique, -EIO);
    } else nat_send_error(unique, 0);
}
static void answer_body(unsigned op, uint64_t unique, uint32_t limit, const char *body, size_t n) {
    if (op == FUSE_GETXATTR || op == FUSE_LISTXATTR) {
        struct fuse_getxattr_out o = {.size = (uint32_t)n};
        if (!limit) send_timed(unique, 0, &o, sizeof o, NULL, 0);
        else if (n > limit) nat_send_error(unique, -ERANGE);
        else send_timed(unique, 0, NULL, 0, body, n);
    } else if (op == FUSE_IOCTL) {
        struct fuse_ioctl_out o = {.result = 0};
        send_timed(unique, 0, &o, sizeof o, body, n < limit ? n : limit);
    } else send_timed(unique, 0, NULL, 0, body, n);
}
/* (fd, pos, len, ...): -1 with an exception when it is no such tuple or asks for more than the request did. */
static int answer_segments(uint64_t unique, uint32_t limit, PyObject *tuple) {
    Py_ssize_t n = PyTuple_GET_SIZE(tuple);
    struct segment few[16], *s = few;
    size_t total = 0;
    int r = -1;
    if (n % 3) {
        PyErr_SetString(PyExc_ValueError, "segments come as fd, position, length");
        return -1;
    }
    if (n / 3 > 16 && !(s = malloc((size_t)(n / 3) * sizeof *s))) {
        PyErr_NoMemory();
        return -1;
    }
    for (Py_ssize_t i = 0; i < n / 3; i++) {
        long fd = PyLong_AsLong(PyTuple_GET_ITEM(tuple, 3 * i));
        s[i].fd = fd < 0 || fd > INT32_MAX ? -1 : (int)fd;
        s[i].pos = PyLong_AsLongLong(PyTuple_GET_ITEM(tuple, 3 * i + 1));
        s[i].len = PyLong_AsLongLong(PyTuple_GET_ITEM(tuple, 3 * i + 2));
        if (PyErr_Occurred()) goto out;
        if (s[i].len < 0 || s[i].pos < 0 || (total += (size_t)s[i].len) > limit) {
            PyErr_SetString(PyExc_ValueError, "segments are longer than the request, or negative");
            goto out;
        }
    }
    uint64_t t = conf.profile ? now_ns() : 0;
    r = job_read(unique, s, (unsigned)(n / 3), total);
    if (t) stats.ns_reply += now_ns() - t;
    if (r) PyErr_NoMemory();
out:
    if (s != few) free(s);
    return r;
}
static int answer_syncs(uint64_t unique, PyObject *list) {
    Py_ssize_t n = PyList_GET_SIZE(list);
    int few[16] = {0}, *fds = few, r = -1;
    if (n > 16 && !(fds = malloc((size_t)n * sizeof *fds))) {
        PyErr_NoMemory();
        return -1;
    }
    for (Py_ssize_t i = 0; i < n; i++) {
        fds[i] = (int)PyLong_AsLong(PyList_GET_ITEM(list, i));
        if (PyErr_Occurred()) goto out;
    }
    r = job_sync(unique, fds, (unsigned)n);
    if (r) PyErr_NoMemory();
out:
    if (fds != few) free(fds);
    return r;
}
void nat_answer(unsigned op, uint64_t unique, uint32_t limit, PyObject *r) {
    int bad = 0;
    if (PyBytes_CheckExact(r)) answer_body(op, unique, limit, PyBytes_AS_STRING(r), (size_t)PyBytes_GET_SIZE(r));
    else if (r == Py_None || PyLong_Check(r)) answer_number(op, unique, r);
    else if (PyTuple_CheckExact(r) && op == FUSE_READ) bad = answer_segments(unique, limit, r);
    else if (PyList_CheckExact(r)) bad = answer_syncs(unique, r);
    else {
        Py_buffer b;
        if (!(bad = PyObject_GetBuffer(r, &b, PyBUF_SIMPLE))) {
            answer_body(op, unique, limit, b.buf, (size_t)b.len);
            PyBuffer_Release(&b);
        }
    }
    if (bad) {
        nat_report(r);
        nat_send_error(unique, -EIO);
    }
}
