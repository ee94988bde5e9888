/* _native_io.c: the session's read and writev hooks.
 *
 * The read hook takes a request from the kernel, decodes it, calls the Python function that is registered for its
 * opcode and answers at once; then it looks for the next request itself, for at most burst_ns, because a round
 * through the event loop costs more than most answers. A request without a function is returned to libfuse.
 * The writev hook edits libfuse's INIT reply and notes which requests libfuse has answered.
 *
 * Invariants:
 *  1. Every request is answered once: by nat_answer(), by a job, by reply() for one that waits, or by libfuse.
 *  2. No exception leaves a hook.
 *  3. An INTERRUPT for a request that neither waits for Python nor is libfuse's comes too late and is dropped (libfuse
 *     would remember it for ever).
 *  4. The request's bytes belong to libfuse's buffer: nothing that points into them outlives the call.
 */
#include "_native.h"

#include <poll.h>
#include <stddef.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

struct settings conf = {.burst_ns = 2000000};
struct handler handlers[NOPS];
struct statistics stats;
char nat_init_request[512];
size_t nat_init_length;
uint64_t nat_offered, nat_accepted;
static uint64_t init_unique;

void nat_forget_session(void) {
    nat_forget_requests();
    init_unique = nat_offered = nat_accepted = 0;
    nat_init_length = 0;
}

/* ---- calling ---- */
/* The function said that it cannot answer now: Python gets the request, with copies of its bytes, and answers later. */
static void hand_over(const struct fuse_in_header *h, PyObject *f, struct decoded *d, PyObject *exception) {
    uint64_t unique = h->opcode == FUSE_FORGET || h->opcode == FUSE_BATCH_FORGET ? 0 : h->unique;
    unsigned op = unique ? h->opcode == FUSE_RENAME ? FUSE_RENAME2 : h->opcode : FUSE_FORGET;
    PyObject *args = PyTuple_New(d->count), *r = NULL;
    for (int i = 0; args && i < d->count; i++) {
        PyObject *o = d->space[1 + i];
        o = o == d->view ? PyBytes_FromStringAndSize(d->data, (Py_ssize_t)d->length) : Py_NewRef(o);
        if (!o) Py_CLEAR(args);
        else PyTuple_SET_ITEM(args, i, o);
    }
    PyException_SetTraceback(exception, Py_None); /* its frames would keep what they hold alive while it waits */
    if (!conf.on_wait) PyErr_SetString(PyExc_RuntimeError, "a function must wait, but on_wait is not set");
    else if (args && unique && nat_note(unique, op, d->limit, 0)) PyErr_NoMemory();
    else if (args) {
        stats.waited++;
        r = PyObject_CallFunction(conf.on_wait, "KIOOO", (unsigned long long)unique, op, f, args, exception);
        if (!r && unique) {
            uint32_t unused;
            if (nat_take_waiting(unique, op, &unused)) unique = 0; /* answered before it failed */
        }
    }
    if (!r) {
        nat_report(f);
        if (unique) nat_send_error(unique, -EIO);
    }
    Py_XDECREF(r);
    Py_XDECREF(args);
}
static void raised(const struct fuse_in_header *h, PyObject *f, struct decoded *d, PyObject *e, int reply) {
    int error = -EIO;
    if (conf.must_wait && PyErr_GivenExceptionMatches(e, conf.must_wait)) {
        hand_over(h, f, d, e);
        return;
    }
    if (conf.fs_error && PyErr_GivenExceptionMatches(e, conf.fs_error)) {
        PyObject *number = PyObject_GetAttrString(e, "errno");
        long v = number ? PyLong_AsLong(number) : -1;
        Py_XDECREF(number);
        if (PyErr_Occurred()) nat_report(f);
        else if (v > 0 && v < 512) error = (int)-v;
    } else nat_report_this(e, f);
    if (reply) nat_send_error(h->unique, error);
}
static void close_view(struct decoded *d, PyObject *f) {
    if (!d->view) return;
    _PyManagedBufferObject *managed = ((PyMemoryViewObject *)d->view)->mbuf; /* lives as long as the view */
    PyObject *r = PyObject_CallMethod(d->view, "release", NULL);
    if (r && managed->exports > 0) { /* a slice of it was kept: it shows another request's bytes from now on */
        PyErr_SetString(PyExc_BufferError, "a function kept a slice of the bytes of its WRITE");
        Py_CLEAR(r);
    }
    if (!r) nat_report(f);
    Py_XDECREF(r);
}
static void call(const struct fuse_in_header *h, const struct handler *handler, struct cursor *c, int reply) {
    struct decoded d = {.count = 0};
    PyObject *f = Py_NewRef(handler->function), *r = NULL, *e = NULL;
    if (handler->with_caller) nat_put(&d, Py_BuildValue("(III)", h->uid, h->gid, h->pid));
    nat_decode(h, c, &d);
    for (int i = 0; i < d.count && !c->bad; i++) c->bad = !d.space[1 + i];
    if (c->bad) {
        if (!PyErr_Occurred()) PyErr_Format(PyExc_ValueError, "malformed request with opcode %u", h->opcode);
        nat_report(f);
        if (reply) nat_send_error(h->unique, -EIO);
        d.view = NULL;
    } else {
        uint64_t t = conf.profile ? now_ns() : 0;
        r = PyObject_Vectorcall(f, d.space + 1, (size_t)d.count | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
        if (t) stats.ns_python += now_ns() - t;
        if (!r) e = nat_fetch();
        else if (reply) nat_answer(h->opcode, h->unique, d.limit, r);
        if (e) raised(h, f, &d, e, reply);
    }
    Py_XDECREF(r); /* before the view is closed: the result may be a slice of it */
    Py_XDECREF(e);
    close_view(&d, f);
    for (int i = 0; i < d.count; i++) Py_XDECREF(d.space[1 + i]);
    Py_DECREF(f);
}
static void forget_many(const struct fuse_in_header *h, const struct handler *handler, struct cursor *c) {
    struct fuse_batch_forget_in *batch = (void *)nat_take(c, sizeof *batch);
    for (uint32_t i = 0; batch && i < batch->count; i++) {
        struct fuse_forget_one *one = (void *)nat_take(c, sizeof *one);
        if (!one) return;
        struct fuse_in_header each = *h;
        struct fuse_forget_in body = {.nlookup = one->nlookup};
        struct cursor inner = {(char *)&body, (char *)(&body + 1), 0};
        each.opcode = FUSE_FORGET;
        each.nodeid = one->nodeid;
        call(&each, handler, &inner, 0);
    }
}

/* ---- the read hook ---- */
static int for_libfuse(const struct fuse_in_header *h) {
    stats.passed++;
    switch (h->opcode) {
    case FUSE_FORGET: case FUSE_BATCH_FORGET: case FUSE_INTERRUPT: case FUSE_NOTIFY_REPLY:
        break; /* never answered */
    default:
        nat_note(h->unique, h->opcode, 0, 1); /* without memory its interrupts are lost, nothing worse */
    }
    return 0;
}
static int interrupt(const struct fuse_in_header *h, struct cursor *c) {
    struct fuse_interrupt_in *s = (void *)nat_take(c, sizeof *s);
    int owner = s ? nat_owner(s->unique) : 0;
    if (owner == 2) return for_libfuse(h);
    if (owner == 1 && conf.on_interrupt) {
        PyObject *f = Py_NewRef(conf.on_interrupt), *x = PyObject_CallFunction(f, "K", (unsigned long long)s->unique);
        if (!x) nat_report(f);
        Py_XDECREF(x);
        Py_DECREF(f);
    }
    return 1;
}
static void remember_init(const struct fuse_in_header *h, struct cursor *c, size_t n) {
    size_t have = (size_t)(c->end - c->at);
    struct fuse_init_in in = {0}; /* an old kernel sends less */
    memcpy(&in, c->at, have < sizeof in ? have : sizeof in);
    init_unique = h->unique;
    nat_offered = in.flags | (in.flags & FUSE_INIT_EXT ? (uint64_t)in.flags2 << 32 : 0);
    nat_init_length = n <= sizeof nat_init_request ? n : 0;
    memcpy(nat_init_request, h, nat_init_length);
}
/* Whether it asks if a file is a terminal, as the libraries of many languages do for each that they open: none is. */
static int asks_for_terminal(const struct fuse_in_header *h, const struct cursor *c) {
    return h->opcode == FUSE_IOCTL && (size_t)(c->end - c->at) >= sizeof(struct fuse_ioctl_in) &&
           ((const struct fuse_ioctl_in *)(const void *)c->at)->cmd == TCGETS;
}
/* One request: 1 when it is answered or will be, 0 when it is libfuse's. */
static int serve(char *buf, size_t n) {
    const struct fuse_in_header *h = (void *)buf;
    struct cursor c = {buf + sizeof *h, buf + n, 0};
    unsigned op = h->opcode;
    if (op >= NOPS) return for_libfuse(h);
    stats.requests[op]++;
    if (op == FUSE_INIT) {
        remember_init(h, &c, n);
        return for_libfuse(h);
    }
    if (op == FUSE_INTERRUPT) return interrupt(h, &c);
    unsigned same = op == FUSE_RENAME ? FUSE_RENAME2 : op == FUSE_BATCH_FORGET ? FUSE_FORGET : op;
    const struct handler *handler = &handlers[same];
    int reply = op != FUSE_FORGET && op != FUSE_BATCH_FORGET;
    if (handler->constant) {
        if (reply) nat_send_error(h->unique, handler->value);
        return 1;
    }
    if (!handler->function) return for_libfuse(h);
    if (asks_for_terminal(h, &c)) {
        nat_send_error(h->unique, -ENOTTY);
        return 1;
    }
    if (op == FUSE_BATCH_FORGET) forget_many(h, handler, &c);
    else call(h, handler, &c, reply);
    return 1;
}
static uint64_t paused;      /* how long the queue had been empty before the last request */
static uint64_t window;      /* how long to poll busily: up to spin_ns, by how soon requests came of late */
static uint64_t empty_since; /* when the queue was found empty; 0: it was not */

/* A request came: a short pause makes the window four times as long as itself, at least for some more requests; one that
 * no polling would have bridged halves it. */
static void arrived(void) {
    paused = 0;
    if (!empty_since) return;
    paused = now_ns() - empty_since;
    window -= paused < conf.spin_ns ? window / 16 : window / 2;
    if (paused < conf.spin_ns && window < 4 * paused) window = 4 * paused < conf.spin_ns ? 4 * paused : conf.spin_ns;
    empty_since = 0;
}
/* The queue was empty: the next request, or -1 with EAGAIN when none came in time. Without the GIL. */
static ssize_t linger(int fd, void *buf, size_t len, uint64_t deadline) {
    uint64_t now = now_ns(), spin = now + window < deadline ? now + window : deadline;
    ssize_t n = -1;
    int error = EAGAIN;
    empty_since = now;
    Py_BEGIN_ALLOW_THREADS
    if (beside_is()) spin = now;
    while (now < spin && (n = read(fd, buf, len)) < 0 && ((error = errno) == EAGAIN || error == ENOENT)) now = now_ns();
    if (n < 0 && error == EAGAIN && conf.wait_ns && now < deadline) {
        uint64_t left = deadline - now < conf.wait_ns ? deadline - now : conf.wait_ns;
        struct pollfd p = {.fd = fd, .events = POLLIN};
        struct timespec t = {(time_t)(left / 1000000000u), (long)(left % 1000000000u)};
        if (ppoll(&p, 1, &t, NULL) > 0) {
            n = read(fd, buf, len);
            error = errno;
        }
    }
    Py_END_ALLOW_THREADS
    if (conf.profile) stats.ns_idle += now_ns() - empty_since;
    errno = error;
    return n;
}
/* Bytes that a request carries, asks for, or has the disk write. */
static size_t size_of(const char *buf, size_t n) {
    const struct fuse_in_header *h = (const void *)buf;
    if (h->opcode == FUSE_FSYNC) return SIZE_MAX;
    if (h->opcode != FUSE_READ || n < sizeof *h + sizeof(struct fuse_read_in)) return n;
    return ((const struct fuse_read_in *)(h + 1))->size;
}
/* As read(2) on the session's descriptor, but returns only libfuse's requests; EINTR gives the event loop its turn. */
static ssize_t drain(int fd, void *buf, size_t len) {
    uint64_t deadline = now_ns() + conf.burst_ns;
    for (int answered = 0;; answered = 1) {
        uint64_t t = conf.profile ? now_ns() : 0;
        ssize_t n;
        while ((n = read(fd, buf, len)) < 0 && errno == ENOENT) { /* aborted before it was read */ }
        if (t) {
            int keep = errno;
            stats.ns_read += now_ns() - t;
            errno = keep;
        }
        if (n < 0 && errno == EAGAIN && answered && !nat_waiting()) n = linger(fd, buf, len, deadline);
        if (n < 0) {
            int keep = errno;
            beside_pause();
            errno = keep == EAGAIN || keep == ENOENT ? EINTR : keep;
            return -1;
        }
        arrived();
        if (n < (ssize_t)sizeof(struct fuse_in_header)) return n;
        if (conf.wait_ns) beside_served(((const struct fuse_in_header *)buf)->pid, size_of(buf, (size_t)n), paused);
        if (!serve(buf, (size_t)n)) return n;
        if (now_ns() >= deadline) {
            errno = EINTR;
            return -1;
        }
    }
}
ssize_t io_read(int fd, void *buf, size_t len, void *userdata) {
    (void)userdata;
    PyGILState_STATE g = PyGILState_Ensure();
    ssize_t n = drain(fd, buf, len);
    int keep = errno;
    beside_leave();
    PyGILState_Release(g);
    errno = keep;
    return n;
}

/* ---- the writev hook ---- */
static void edit_init(struct fuse_init_out *o, size_t length) {
    int wide = length >= offsetof(struct fuse_init_out, flags2) + sizeof o->flags2;
    uint64_t flags = o->flags | (wide && o->flags & FUSE_INIT_EXT ? (uint64_t)o->flags2 << 32 : 0);
    flags = (flags & ~conf.init_clear) | (conf.init_set & nat_offered); /* never what the kernel did not offer */
    if (!wide || !(nat_offered & FUSE_INIT_EXT)) flags &= UINT32_MAX;
    if (flags >> 32) flags |= FUSE_INIT_EXT;
    o->flags = (uint32_t)flags;
    if (wide) o->flags2 = (uint32_t)(flags >> 32);
    if (conf.max_readahead) o->max_readahead = conf.max_readahead;
    if (conf.max_background) o->max_background = (uint16_t)conf.max_background;
    if (conf.congestion_threshold) o->congestion_threshold = (uint16_t)conf.congestion_threshold;
    if (conf.time_gran && length >= offsetof(struct fuse_init_out, time_gran) + sizeof o->time_gran)
        o->time_gran = conf.time_gran;
    nat_accepted = flags;
}
ssize_t io_writev(int fd, struct iovec *iov, int count, void *userdata) {
    const struct fuse_out_header *h = iov[0].iov_base;
    (void)userdata;
    if (h->unique) { /* 0: a notification, from any thread */
        PyGILState_STATE g = PyGILState_Ensure();
        nat_libfuse_answered(h->unique);
        if (h->unique == init_unique && !h->error && count == 2 && iov[1].iov_len >= 24) {
            edit_init(iov[1].iov_base, iov[1].iov_len);
            init_unique = 0;
        }
        PyGILState_Release(g);
    }
    return writev(fd, iov, count);
}
