/* _native.h: what the parts of artfs.fuse._native share.
 *
 * _native.c         the Python module: settings, handlers, notifications, statistics; how it gets into pyfuse3
 * _native_io.c      the session's read and writev hooks: INIT, calling, handing over what must wait
 * _native_decode.c  a request's bytes into arguments
 * _native_answer.c  results into answers; the requests that have none yet
 * _native_jobs.c    threads that finish long reads and fdatasync without the GIL
 * _native_beside.c  where the loop's thread runs
 *
 * Locking: everything here is guarded by the GIL, but for the job queue (its own mutex), nat_fd (atomic)
 * and nat_send(), which any thread may call with or without the GIL.
 */
#ifndef ARTFS_NATIVE_H
#define ARTFS_NATIVE_H
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <linux/fuse.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>

#define NOPS 64 /* opcodes are below this; a larger one is libfuse's affair */

struct settings {
    uint64_t init_set, init_clear;       /* INIT flags, flags2 shifted up by 32 */
    unsigned max_background, congestion_threshold, max_readahead, time_gran; /* 0: as libfuse says */
    uint64_t spin_ns, wait_ns, burst_ns;
    int profile;
    PyObject *fs_error, *must_wait;      /* exception classes (or tuples of them); NULL: none */
    PyObject *on_wait, *on_interrupt, *on_error, *on_sync_error;
};
struct handler {
    PyObject *function; /* NULL: libfuse's */
    int with_caller;
    int constant;       /* 1: always `value`, without Python */
    int value;
};
struct statistics {
    uint64_t requests[NOPS], waited, passed, failed, ns_python, ns_reply, ns_idle, ns_read, joined, rescued;
};

extern struct settings conf;
extern struct handler handlers[NOPS];
extern struct statistics stats;
extern _Atomic int nat_fd;               /* our own duplicate of the session's descriptor; -1: no session */

static inline uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* ---- _native_io.c ---- */
ssize_t io_read(int fd, void *buf, size_t len, void *userdata);
ssize_t io_writev(int fd, struct iovec *iov, int count, void *userdata);
void nat_forget_session(void);           /* nothing of the former session is known any more */
extern char nat_init_request[512];
extern size_t nat_init_length;
extern uint64_t nat_offered, nat_accepted; /* INIT flags of the kernel, and those of our reply */

/* ---- _native_decode.c ---- */
#define MAXARGS 12
struct decoded {
    PyObject *space[MAXARGS + 1];  /* [0] is vectorcall's */
    int count;
    uint32_t limit;                /* bytes that the caller has room for */
    const char *data;              /* WRITE: its bytes, in libfuse's buffer */
    size_t length;
    PyObject *view;                /* WRITE: the memoryview of them, borrowed from space */
};
struct cursor {
    char *at, *end;
    int bad;
};
int nat_decodable(unsigned opcode);
char *nat_take(struct cursor *c, size_t n); /* the next n bytes; NULL and `bad` when there are fewer */
void nat_put(struct decoded *d, PyObject *argument); /* steals; NULL with an exception set is allowed */
/* Appends the request's arguments; c->bad, or a NULL among them: it cannot be decoded. */
void nat_decode(const struct fuse_in_header *h, struct cursor *c, struct decoded *d);

/* ---- _native_answer.c ---- */
/* One reply of two parts, either may be empty. A request that is gone (ENOENT) counts as answered. */
void nat_send(uint64_t unique, int error, const void *head, size_t nhead, const void *body, size_t nbody);
void nat_send_error(uint64_t unique, int error);
/* Answers a request with what its function returned; REQUIRES the GIL; consumes no reference. */
void nat_answer(unsigned opcode, uint64_t unique, uint32_t limit, PyObject *result);
PyObject *nat_fetch(void);               /* the raised exception, taken */
/* Hands an exception (the raised one, which is cleared) to on_error, or to sys.unraisablehook. */
void nat_report_this(PyObject *exception, PyObject *where);
void nat_report(PyObject *where);
/* Puts a request on the table of those without an answer; `foreign`: it is libfuse's. -1: no memory. */
int nat_note(uint64_t unique, uint32_t opcode, uint32_t limit, int foreign);
int nat_owner(uint64_t unique);          /* 0: not on the table, 1: it waits for Python, 2: libfuse's */
void nat_libfuse_answered(uint64_t unique);
/* The waiting request `unique`, taken off the table: 0, or -1 when it is not waiting as `opcode`. */
int nat_take_waiting(uint64_t unique, unsigned opcode, uint32_t *limit);
Py_ssize_t nat_waiting(void);
void nat_forget_requests(void);

/* ---- _native_jobs.c ---- */
struct segment {
    int fd;                              /* -1: zeros */
    int64_t pos, len;
};
#define INLINE_READ 32768
/* Both REQUIRE the GIL and answer `unique` in the end; -1: no memory, nothing was queued. */
int job_read(uint64_t unique, const struct segment *segments, unsigned count, size_t total);
int job_sync(uint64_t unique, const int *fds, unsigned count);
void job_counters(uint64_t *queued, uint64_t *done); /* all jobs numbered <= done are finished */
int job_sync_error(int clear);           /* errno of the first failed fdatasync since it was cleared; 0 */
/* Returns when every queued job is finished, or after 10 s; call it without the GIL. */
void job_drain(void);

/* ---- _native_beside.c: all on the loop's thread ---- */
/* A request of `pid` came, `pause` ns after the queue was found empty; `size`: the bytes that it carries, asks for, or
 * has the disk write. */
void beside_served(uint32_t pid, size_t size, uint64_t pause);
int beside_is(void);                     /* 1: we are beside the only caller, and sleep until its next request */
void beside_leave(void);                 /* REQUIRED before a thread is started, and when drain() returns */
void beside_pause(void);                 /* the same, and its next requests are counted anew */
#endif
