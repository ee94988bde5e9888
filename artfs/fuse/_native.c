/* artfs.fuse._native: FUSE requests answered by plain Python functions, beside an unmodified pyfuse3.
 *
 * Loaded RTLD_GLOBAL before pyfuse3, it is where the dynamic linker binds pyfuse3's fuse_session_mount() and
 * fuse_session_unmount(); when pyfuse3 was there first, attach() rebinds those slots. After the real mount the session
 * gets our read and writev hooks (_native_io.c); before the real unmount the jobs are finished and our descriptor is
 * closed. Nothing else of libfuse is touched, and nothing of it is linked: the real functions are looked up through
 * pyfuse3's own handle, so that it is always the libfuse that pyfuse3 uses.
 *
 * One session per process at a time, as in pyfuse3. How the functions here are used is said in native.py.
 */
#include "_native.h"

#define FUSE_USE_VERSION 314
#include <dlfcn.h>
#include <fcntl.h>
#include <fuse_lowlevel.h>
#include <link.h>
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))
#define INVAL_INODE 2
#define INVAL_ENTRY 3
#define RESEND 7 /* Linux 6.9; the headers of the build may be older */

/* ---- how it gets in ---- */
static void *pyfuse3; /* its handle: dlsym() on it searches it and its dependencies, never us */
static int (*real_mount)(struct fuse_session *, const char *);
static void (*real_unmount)(struct fuse_session *);
static int (*real_fd)(struct fuse_session *);
static int (*custom_io)(struct fuse_session *, const struct fuse_custom_io *, int);
static int (*custom_io_317)(struct fuse_session *, const struct fuse_custom_io *, size_t, int);

static void forget_descriptor(void) {
    int old = atomic_exchange(&nat_fd, -1);
    if (old >= 0) close(old);
}
static int hooked_mount(struct fuse_session *session, const char *where) {
    static const struct fuse_custom_io io = {.read = io_read, .writev = io_writev};
    int r = real_mount(session, where);
    if (r) return r;
    int fd = real_fd(session);
    PyGILState_STATE g = PyGILState_Ensure();
    nat_forget_session();
    forget_descriptor();
    /* Ours, so that a late answer of a worker thread never goes to another file under a reused number. */
    atomic_store(&nat_fd, fcntl(fd, F_DUPFD_CLOEXEC, 3));
    PyGILState_Release(g);
    if (atomic_load(&nat_fd) < 0 || fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK)) return -1;
    return custom_io_317 ? custom_io_317(session, &io, sizeof io, fd) : custom_io(session, &io, fd);
}
EXPORT int fuse_session_mount(struct fuse_session *session, const char *where) {
    return real_mount ? hooked_mount(session, where) : -1; /* attach() comes before any mount */
}
/* REQUIRES the GIL. Our duplicate must be gone before an unmount: while it keeps the connection alive, the kernel
 * writes dirty pages back in there and would wait for the very thread that unmounts. */
static void end_session(void) {
    Py_BEGIN_ALLOW_THREADS
    job_drain();
    Py_END_ALLOW_THREADS
    forget_descriptor();
    nat_forget_session();
}
EXPORT void fuse_session_unmount(struct fuse_session *session) {
    PyGILState_STATE g = PyGILState_Ensure();
    end_session();
    PyGILState_Release(g);
    if (real_unmount) real_unmount(session);
}

struct search {
    const char *path;
    int seen, rebound;
};
static void rebind(struct search *s, ElfW(Addr) base, const ElfW(Rela) *rel, size_t n, const ElfW(Sym) *symbols,
                   const char *strings) {
    for (size_t i = 0; i < n; i++) {
        const char *name = strings + symbols[ELF64_R_SYM(rel[i].r_info)].st_name;
        void *ours = !strcmp(name, "fuse_session_mount") ? (void *)fuse_session_mount
                     : !strcmp(name, "fuse_session_unmount") ? (void *)fuse_session_unmount : NULL;
        if (!ours) continue;
        void **slot = (void **)(base + rel[i].r_offset);
        s->seen++;
        if (*slot == ours) continue;
        uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
        if (mprotect((void *)((uintptr_t)slot & ~(page - 1)), page, PROT_READ | PROT_WRITE)) continue;
        *slot = ours;
        s->rebound++;
    }
}
static int each_object(struct dl_phdr_info *info, size_t size, void *data) {
    struct search *s = data;
    const ElfW(Dyn) *d = NULL;
    const ElfW(Rela) *rela = NULL, *jmp = NULL;
    size_t nrela = 0, njmp = 0;
    const ElfW(Sym) *symbols = NULL;
    const char *strings = NULL;
    (void)size;
    if (!info->dlpi_name || strcmp(info->dlpi_name, s->path)) return 0;
    for (int i = 0; i < info->dlpi_phnum; i++)
        if (info->dlpi_phdr[i].p_type == PT_DYNAMIC) d = (void *)(info->dlpi_addr + info->dlpi_phdr[i].p_vaddr);
    for (; d && d->d_tag != DT_NULL; d++) {
        switch (d->d_tag) {
        case DT_RELA: rela = (void *)d->d_un.d_ptr; break;
        case DT_RELASZ: nrela = d->d_un.d_val / sizeof *rela; break;
        case DT_JMPREL: jmp = (void *)d->d_un.d_ptr; break;
        case DT_PLTRELSZ: njmp = d->d_un.d_val / sizeof *jmp; break;
        case DT_SYMTAB: symbols = (void *)d->d_un.d_ptr; break;
        case DT_STRTAB: strings = (void *)d->d_un.d_ptr; break;
        }
    }
    if (symbols && strings && rela) rebind(s, info->dlpi_addr, rela, nrela, symbols, strings);
    if (symbols && strings && jmp) rebind(s, info->dlpi_addr, jmp, njmp, symbols, strings);
    return 1;
}
static PyObject *attach(PyObject *m, PyObject *path) {
    (void)m;
    struct search s = {PyUnicode_AsUTF8(path), 0, 0};
    if (!s.path) return NULL;
    if (!pyfuse3 && !(pyfuse3 = dlopen(s.path, RTLD_NOW | RTLD_NOLOAD)))
        return PyErr_Format(PyExc_ImportError, "%s is not loaded", s.path);
    *(void **)&real_mount = dlsym(pyfuse3, "fuse_session_mount");
    *(void **)&real_unmount = dlsym(pyfuse3, "fuse_session_unmount");
    *(void **)&real_fd = dlsym(pyfuse3, "fuse_session_fd");
    *(void **)&custom_io = dlsym(pyfuse3, "fuse_session_custom_io");
    *(void **)&custom_io_317 = dlsym(pyfuse3, "fuse_session_custom_io_317");
    if (!real_unmount || !real_fd || (!custom_io && !custom_io_317)) real_mount = NULL;
    if (!real_mount) return PyErr_Format(PyExc_ImportError, "libfuse >= 3.13 is needed (no fuse_session_custom_io)");
    dl_iterate_phdr(each_object, &s);
    return Py_BuildValue("(ii)", s.seen, s.rebound);
}

/* ---- settings and functions ---- */
static void replace(PyObject **slot, PyObject *with) { /* NULL: leave it; None: none */
    if (!with) return;
    PyObject *old = *slot;
    *slot = with == Py_None ? NULL : Py_NewRef(with);
    Py_XDECREF(old);
}
static PyObject *configure(PyObject *m, PyObject *args, PyObject *kw) {
    static char *names[] = {"init_set", "init_clear", "max_background", "congestion_threshold", "max_readahead",
                            "time_gran", "spin_us", "wait_us", "burst_us", "profile", "fs_error", "must_wait",
                            "on_wait", "on_interrupt", "on_error", "on_sync_error", NULL};
    unsigned long long set = conf.init_set, clear = conf.init_clear;
    struct settings c = conf;
    PyObject *o[6] = {NULL};
    double spin = -1, wait = -1, burst = -1;
    (void)m;
    if (!PyArg_ParseTupleAndKeywords(args, kw, "|$KKIIIIdddpOOOOOO", names, &set, &clear, &c.max_background,
                                     &c.congestion_threshold, &c.max_readahead, &c.time_gran, &spin, &wait, &burst,
                                     &c.profile, &o[0], &o[1], &o[2], &o[3], &o[4], &o[5]))
        return NULL;
    if (c.max_background > UINT16_MAX || c.congestion_threshold > UINT16_MAX)
        return PyErr_Format(PyExc_ValueError, "max_background and congestion_threshold are at most 65535");
    if (spin > 1e6 || wait > 1e6 || burst > 1e6)
        return PyErr_Format(PyExc_ValueError, "spin_us, wait_us and burst_us are at most a second");
    conf = c;
    conf.init_set = set;
    conf.init_clear = clear;
    if (spin >= 0) conf.spin_ns = (uint64_t)(spin * 1000);
    if (wait >= 0) conf.wait_ns = (uint64_t)(wait * 1000);
    if (burst >= 0) conf.burst_ns = (uint64_t)(burst * 1000);
    PyObject **slots[6] = {&conf.fs_error, &conf.must_wait, &conf.on_wait, &conf.on_interrupt, &conf.on_error,
                           &conf.on_sync_error};
    for (int i = 0; i < 6; i++) replace(slots[i], o[i]);
    Py_RETURN_NONE;
}
static int known(unsigned op) {
    if (nat_decodable(op)) return 1;
    PyErr_Format(PyExc_ValueError, "opcode %u is not one that a function can answer", op);
    return 0;
}
static PyObject *set_handler(PyObject *m, PyObject *args) {
    unsigned op;
    PyObject *f;
    int with_caller = 0;
    (void)m;
    if (!PyArg_ParseTuple(args, "IO|p", &op, &f, &with_caller) || !known(op)) return NULL;
    if (f != Py_None && !PyCallable_Check(f)) return PyErr_Format(PyExc_TypeError, "not a function");
    replace(&handlers[op].function, f);
    handlers[op].with_caller = with_caller;
    handlers[op].constant = 0;
    Py_RETURN_NONE;
}
static PyObject *set_constant(PyObject *m, PyObject *args) {
    unsigned op;
    int value;
    (void)m;
    if (!PyArg_ParseTuple(args, "Ii", &op, &value) || !known(op)) return NULL;
    if (value > 0 || value < -511) return PyErr_Format(PyExc_ValueError, "a constant answer is 0 or a negative errno");
    handlers[op].constant = 1;
    handlers[op].value = value;
    Py_RETURN_NONE;
}

/* ---- requests that wait, jobs ---- */
static PyObject *reply(PyObject *m, PyObject *const *a, Py_ssize_t n) {
    (void)m;
    if (n != 3) return PyErr_Format(PyExc_TypeError, "reply(unique, opcode, result)");
    uint64_t unique = PyLong_AsUnsignedLongLong(a[0]);
    unsigned long op = PyLong_AsUnsignedLong(a[1]);
    uint32_t limit;
    if (PyErr_Occurred()) return NULL;
    if (!unique && op == FUSE_FORGET) Py_RETURN_NONE; /* the kernel expects no answer */
    if (nat_take_waiting(unique, (unsigned)op, &limit))
        return PyErr_Format(PyExc_RuntimeError, "request %llu (opcode %lu) does not wait for an answer",
                            (unsigned long long)unique, op);
    nat_answer((unsigned)op, unique, limit, a[2]);
    Py_RETURN_NONE;
}
static PyObject *pending(PyObject *m, PyObject *none) {
    (void)m, (void)none;
    return PyLong_FromSsize_t(nat_waiting());
}
static PyObject *jobs(PyObject *m, PyObject *none) {
    uint64_t queued, done;
    (void)m, (void)none;
    job_counters(&queued, &done);
    return Py_BuildValue("(KK)", (unsigned long long)queued, (unsigned long long)done);
}
/* Keeps the GIL: a write into the page cache takes 3 us, getting the GIL back from a thread that computes up to a
 * switch interval. */
static PyObject *locked_pwritev(PyObject *m, PyObject *const *args, Py_ssize_t n) {
    enum { PARTS = 8 };
    Py_buffer views[PARTS];
    struct iovec vector[PARTS];
    Py_ssize_t count, got = 0;
    ssize_t done = -1;
    (void)m;
    if (n != 3 || !PyTuple_Check(args[1]) || (count = PyTuple_GET_SIZE(args[1])) > PARTS)
        return PyErr_Format(PyExc_TypeError, "pwritev(fd, tuple of at most %d buffers, position)", PARTS);
    int fd = (int)PyLong_AsLong(args[0]);
    long long at = PyLong_AsLongLong(args[2]);
    if (PyErr_Occurred()) return NULL;
    for (; got < count; got++) {
        if (PyObject_GetBuffer(PyTuple_GET_ITEM(args[1], got), &views[got], PyBUF_SIMPLE)) break;
        vector[got] = (struct iovec){views[got].buf, (size_t)views[got].len};
    }
    if (got == count)
        do done = pwritev(fd, vector, (int)count, (off_t)at); while (done < 0 && errno == EINTR);
    int failed = errno;
    while (got > 0) PyBuffer_Release(&views[--got]);
    if (PyErr_Occurred()) return NULL;
    if (done < 0) {
        errno = failed;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    return PyLong_FromSsize_t(done);
}
/* In pieces, as artfs.objects.writing says; one caller at a time, because whoever waits for a file's own lock spins, and
 * none of them waits for the GIL in between. */
static PyObject *write_all(PyObject *m, PyObject *args) {
    static pthread_mutex_t one = PTHREAD_MUTEX_INITIALIZER;
    Py_buffer data;
    long long at;
    Py_ssize_t done = 0;
    int fd, piece, error = 0;
    (void)m;
    if (!PyArg_ParseTuple(args, "iy*Li", &fd, &data, &at, &piece)) return NULL;
    if (piece <= 0) error = EINVAL;
    Py_BEGIN_ALLOW_THREADS
    pthread_mutex_lock(&one);
    while (!error && done < data.len) {
        Py_ssize_t some = piece - (Py_ssize_t)((at + done) % piece);
        if (some > data.len - done) some = data.len - done;
        ssize_t n = pwrite(fd, (char *)data.buf + done, (size_t)some, (off_t)(at + done));
        if (n > 0) done += n;
        else if (n == 0 || errno != EINTR) error = n ? errno : EIO;
    }
    pthread_mutex_unlock(&one);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&data);
    if (error) {
        errno = error;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    Py_RETURN_NONE;
}
static PyObject *take_sync_error(PyObject *m, PyObject *args, PyObject *kw) {
    static char *names[] = {"clear", NULL};
    int clear = 0;
    (void)m;
    if (!PyArg_ParseTupleAndKeywords(args, kw, "|$p", names, &clear)) return NULL;
    return PyLong_FromLong(job_sync_error(clear));
}
static PyObject *close_session(PyObject *m, PyObject *none) {
    (void)m, (void)none;
    end_session();
    Py_RETURN_NONE;
}

/* ---- notifications ---- */
/* 1: done, 0: the kernel does not know it (ENOENT), -1 with OSError. Gives up the GIL: the kernel may have to wait. */
static int notify(int code, void *head, size_t nhead, const char *name, size_t nname) {
    struct fuse_out_header h = {.len = (uint32_t)(sizeof h + nhead + nname), .error = code};
    struct iovec v[3] = {{&h, sizeof h}, {head, nhead}, {(void *)name, nname}};
    ssize_t n;
    Py_BEGIN_ALLOW_THREADS
    while ((n = writev(atomic_load(&nat_fd), v, nname ? 3 : nhead ? 2 : 1)) < 0 && errno == EINTR) { }
    Py_END_ALLOW_THREADS
    if (n >= 0) return 1;
    if (errno == ENOENT) return 0;
    PyErr_SetFromErrno(PyExc_OSError);
    return -1;
}
static PyObject *notify_inode(PyObject *m, PyObject *args) {
    unsigned long long ino;
    long long off, len;
    (void)m;
    if (!PyArg_ParseTuple(args, "KLL", &ino, &off, &len)) return NULL;
    struct fuse_notify_inval_inode_out o = {.ino = ino, .off = off, .len = len};
    int r = notify(INVAL_INODE, &o, sizeof o, NULL, 0);
    return r < 0 ? NULL : PyBool_FromLong(r);
}
static PyObject *notify_entry(PyObject *m, PyObject *args) {
    unsigned long long parent;
    PyObject *name;
    int expire;
    (void)m;
    if (!PyArg_ParseTuple(args, "KSp", &parent, &name, &expire)) return NULL;
    struct { /* older headers call the last field padding */
        uint64_t parent;
        uint32_t length, flags;
    } o = {parent, (uint32_t)PyBytes_GET_SIZE(name), expire ? 1u /* FUSE_EXPIRE_ONLY */ : 0};
    int r = notify(INVAL_ENTRY, &o, sizeof o, PyBytes_AS_STRING(name), (size_t)PyBytes_GET_SIZE(name) + 1);
    return r < 0 ? NULL : PyBool_FromLong(r);
}
static PyObject *notify_resend(PyObject *m, PyObject *none) {
    (void)m, (void)none;
    int r = notify(RESEND, NULL, 0, NULL, 0);
    return r < 0 ? NULL : PyBool_FromLong(r);
}

/* ---- what can be asked ---- */
static PyObject *init_request(PyObject *m, PyObject *none) {
    (void)m, (void)none;
    return PyBytes_FromStringAndSize(nat_init_request, (Py_ssize_t)nat_init_length);
}
static PyObject *init_flags(PyObject *m, PyObject *none) {
    (void)m, (void)none;
    return Py_BuildValue("(KK)", (unsigned long long)nat_offered, (unsigned long long)nat_accepted);
}
static PyObject *get_stats(PyObject *m, PyObject *args, PyObject *kw) {
    static char *names[] = {"reset", NULL};
    int reset = 0;
    PyObject *requests;
    (void)m;
    if (!PyArg_ParseTupleAndKeywords(args, kw, "|$p", names, &reset) || !(requests = PyDict_New())) return NULL;
    for (unsigned i = 0; i < NOPS; i++) {
        if (!stats.requests[i]) continue;
        PyObject *k = PyLong_FromUnsignedLong(i), *v = PyLong_FromUnsignedLongLong(stats.requests[i]);
        int bad = !k || !v || PyDict_SetItem(requests, k, v);
        Py_XDECREF(k);
        Py_XDECREF(v);
        if (bad) {
            Py_DECREF(requests);
            return NULL;
        }
    }
#define N(field) #field, (unsigned long long)stats.field
    PyObject *r = Py_BuildValue("{sNsKsKsKsKsKsKsKsKsK}", "requests", requests, N(waited), N(passed), N(failed),
                                N(ns_python), N(ns_reply), N(ns_idle), N(ns_read), N(joined), N(rescued));
    if (r && reset) memset(&stats, 0, sizeof stats);
    return r;
}

#define KEYWORDS(f) ((PyCFunction)(void (*)(void))f), METH_VARARGS | METH_KEYWORDS, NULL
static PyMethodDef methods[] = {
    {"attach", attach, METH_O, NULL},
    {"configure", KEYWORDS(configure)},
    {"handler", set_handler, METH_VARARGS, NULL},
    {"constant", set_constant, METH_VARARGS, NULL},
    {"reply", (PyCFunction)(void (*)(void))reply, METH_FASTCALL, NULL},
    {"pending", pending, METH_NOARGS, NULL},
    {"jobs", jobs, METH_NOARGS, NULL},
    {"pwritev", (PyCFunction)(void (*)(void))locked_pwritev, METH_FASTCALL, NULL},
    {"write_all", write_all, METH_VARARGS, NULL},
    {"sync_error", KEYWORDS(take_sync_error)},
    {"close", close_session, METH_NOARGS, NULL},
    {"notify_inode", notify_inode, METH_VARARGS, NULL},
    {"notify_entry", notify_entry, METH_VARARGS, NULL},
    {"notify_resend", notify_resend, METH_NOARGS, NULL},
    {"init_request", init_request, METH_NOARGS, NULL},
    {"init_flags", init_flags, METH_NOARGS, NULL},
    {"stats", KEYWORDS(get_stats)},
    {NULL, NULL, 0, NULL},
};
static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_native", NULL, -1, methods, NULL, NULL, NULL, NULL};
PyMODINIT_FUNC PyInit__native(void) { return PyModule_Create(&definition); }
