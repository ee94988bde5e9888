/* _native_jobs.c: threads that finish what needs no Python.
 *
 * Three threads gather READ bodies with pread(2), one thread runs fdatasync(2). Invariants:
 *  1. Every job answers its request exactly once.
 *  2. `done` never passes an unfinished job: when done >= the `queued` that a caller once saw, no job that was
 *     queued before that moment touches a descriptor any more, so that its descriptors may be closed.
 *  3. Sync jobs are answered in the order in which they were queued, none before all syncs of those before it.
 *  4. The kernel reports a failed writeback once. So the first failure is latched here: it and every later sync
 *     job get EIO until Python, which was told, clears it.
 */
#include "_native.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define READERS 3
#define DRAIN_SECONDS 10 /* a disk that hangs must not keep a mount from ending */

struct job {
    struct job *next;            /* in its queue */
    struct job *older, *newer;   /* among all unfinished jobs, by number */
    uint64_t number, unique;
    size_t total;
    unsigned count;
    struct segment segments[];   /* of a sync job only fd is used */
};
struct queue {
    struct job *first, *last;
    pthread_cond_t filled;
};

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t finished = PTHREAD_COND_INITIALIZER;
static struct queue reads = {.filled = PTHREAD_COND_INITIALIZER}, syncs = {.filled = PTHREAD_COND_INITIALIZER};
static struct job *oldest, *newest;
static uint64_t queued;
static unsigned unfinished_syncs;
static int sync_error;
static int readers_run, syncer_runs; /* guarded by the GIL */

/* ---- the list of unfinished jobs; REQUIRES the mutex ---- */
static void enlist(struct job *j) {
    j->number = ++queued;
    j->older = newest;
    j->newer = NULL;
    if (newest) newest->newer = j; else oldest = j;
    newest = j;
}
static void delist(struct job *j) {
    if (j->older) j->older->newer = j->newer; else oldest = j->newer;
    if (j->newer) j->newer->older = j->older; else newest = j->older;
    pthread_cond_broadcast(&finished);
}
static void append(struct queue *q, struct job *j) {
    j->next = NULL;
    if (q->last) q->last->next = j; else q->first = j;
    q->last = j;
    pthread_cond_signal(&q->filled);
}

/* ---- reads ---- */
static int gather(const struct segment *s, unsigned count, char *to) {
    for (unsigned i = 0; i < count; to += s[i].len, i++) {
        if (s[i].fd < 0) {
            memset(to, 0, (size_t)s[i].len);
            continue;
        }
        for (int64_t at = 0; at < s[i].len;) {
            ssize_t r = pread(s[i].fd, to + at, (size_t)(s[i].len - at), s[i].pos + at);
            if (r < 0 && errno == EINTR) continue;
            if (r <= 0) return -EIO; /* a hole in what the rows promise is never padded */
            at += r;
        }
    }
    return 0;
}
static void answer_read(uint64_t unique, const struct segment *s, unsigned count, size_t total, char *space) {
    int error = space ? gather(s, count, space) : -ENOMEM;
    nat_send(unique, error, NULL, 0, error ? NULL : space, error ? 0 : total);
}
static void *reader(void *unused) {
    char *space = NULL;
    size_t room = 0;
    (void)unused;
    for (;;) {
        pthread_mutex_lock(&mutex);
        while (!reads.first) pthread_cond_wait(&reads.filled, &mutex);
        struct job *j = reads.first;
        if (!(reads.first = j->next)) reads.last = NULL;
        pthread_mutex_unlock(&mutex);
        if (j->total > room) {
            free(space);
            space = malloc(j->total);
            room = space ? j->total : 0;
        }
        answer_read(j->unique, j->segments, j->count, j->total, space);
        pthread_mutex_lock(&mutex);
        delist(j);
        pthread_mutex_unlock(&mutex);
        free(j);
    }
    return NULL;
}

/* ---- syncs ---- */
/* Each descriptor once, at its last place in the batch: what a job lists last (the journal) comes last. */
static int sync_all(const struct job *batch) {
    for (const struct job *j = batch; j; j = j->next) {
        for (unsigned i = 0; i < j->count; i++) {
            int again = 0, fd = j->segments[i].fd;
            for (unsigned k = i + 1; k < j->count && !again; k++) again = j->segments[k].fd == fd;
            for (const struct job *l = j->next; l && !again; l = l->next)
                for (unsigned k = 0; k < l->count && !again; k++) again = l->segments[k].fd == fd;
            if (again) continue;
            while (fdatasync(fd))
                if (errno != EINTR) return errno;
        }
    }
    return 0;
}
static void tell_python(int error) {
    PyGILState_STATE g = PyGILState_Ensure();
    if (conf.on_sync_error) {
        PyObject *f = Py_NewRef(conf.on_sync_error), *r = PyObject_CallFunction(f, "i", error);
        if (!r) nat_report(f);
        Py_XDECREF(r);
        Py_DECREF(f);
    }
    PyGILState_Release(g);
}
static void *syncer(void *unused) {
    (void)unused;
    for (;;) {
        pthread_mutex_lock(&mutex);
        while (!syncs.first) pthread_cond_wait(&syncs.filled, &mutex);
        struct job *batch = syncs.first;
        int failed = sync_error, fresh = 0;
        syncs.first = syncs.last = NULL;
        pthread_mutex_unlock(&mutex);
        if (!failed && (failed = fresh = sync_all(batch))) {
            pthread_mutex_lock(&mutex);
            sync_error = failed;
            pthread_mutex_unlock(&mutex);
            tell_python(failed); /* before the replies: who sees EIO finds the volume marked */
        }
        for (struct job *next, *j = batch; j; j = next) {
            next = j->next;
            nat_send(j->unique, failed ? -EIO : 0, NULL, 0, NULL, 0);
            pthread_mutex_lock(&mutex);
            unfinished_syncs--;
            delist(j);
            pthread_mutex_unlock(&mutex);
            free(j);
        }
    }
    return NULL;
}

/* ---- starting and queueing ---- */
/* Threads start with the first job, not with the mount: a daemon may fork in between. */
static int start(void *(*body)(void *), int *runs, int count) {
    sigset_t all, before;
    if (*runs < count) beside_leave();
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (*runs < count) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, body, NULL)) break;
        pthread_detach(thread);
        ++*runs;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return *runs ? 0 : -1;
}
static struct job *new_job(uint64_t unique, unsigned count) {
    struct job *j = malloc(sizeof *j + count * sizeof j->segments[0]);
    if (!j) return NULL;
    j->unique = unique;
    j->count = count;
    j->total = 0;
    return j;
}
int job_read(uint64_t unique, const struct segment *segments, unsigned count, size_t total) {
    struct job *j, here = {.unique = unique};
    if (total <= INLINE_READ) {
        char space[INLINE_READ];
        pthread_mutex_lock(&mutex);
        enlist(&here); /* another thread may want to close a descriptor meanwhile */
        pthread_mutex_unlock(&mutex);
        Py_BEGIN_ALLOW_THREADS
        answer_read(unique, segments, count, total, space);
        Py_END_ALLOW_THREADS
        pthread_mutex_lock(&mutex);
        delist(&here);
        pthread_mutex_unlock(&mutex);
        return 0;
    }
    if (start(reader, &readers_run, READERS) || !(j = new_job(unique, count))) return -1;
    j->total = total;
    memcpy(j->segments, segments, count * sizeof *segments);
    pthread_mutex_lock(&mutex);
    enlist(j);
    append(&reads, j);
    pthread_mutex_unlock(&mutex);
    return 0;
}
int job_sync(uint64_t unique, const int *fds, unsigned count) {
    struct job *j;
    pthread_mutex_lock(&mutex);
    int nothing = !count && !unfinished_syncs, failed = sync_error;
    pthread_mutex_unlock(&mutex);
    if (nothing) {
        nat_send(unique, failed ? -EIO : 0, NULL, 0, NULL, 0);
        return 0;
    }
    if (start(syncer, &syncer_runs, 1) || !(j = new_job(unique, count))) return -1;
    for (unsigned i = 0; i < count; i++) j->segments[i].fd = fds[i];
    pthread_mutex_lock(&mutex);
    unfinished_syncs++;
    enlist(j);
    append(&syncs, j);
    pthread_mutex_unlock(&mutex);
    return 0;
}
void job_counters(uint64_t *all, uint64_t *done) {
    pthread_mutex_lock(&mutex);
    *all = queued;
    *done = oldest ? oldest->number - 1 : queued;
    pthread_mutex_unlock(&mutex);
}
int job_sync_error(int clear) {
    pthread_mutex_lock(&mutex);
    int error = sync_error;
    if (clear) sync_error = 0;
    pthread_mutex_unlock(&mutex);
    return error;
}
void job_drain(void) {
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += DRAIN_SECONDS;
    pthread_mutex_lock(&mutex);
    while (oldest && pthread_cond_timedwait(&finished, &mutex, &until) != ETIMEDOUT) { }
    pthread_mutex_unlock(&mutex);
}
