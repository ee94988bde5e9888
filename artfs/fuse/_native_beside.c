/* _native_beside.c: the loop's thread stays on the processor of a caller that is alone.
 *
 * Such a caller sends a request, sleeps, and sends the next when it has the answer. Where idle processors are halted,
 * as in many virtual machines, waking somebody on another one costs more than the request: a LOOKUP that did nothing
 * took 12 us on one processor, 19 on two of which one polled busily, 50 on two that slept. So while all requests come
 * from one thread ours is *beside* it: bound to its processor, and under SCHED_IDLE, because the kernel wakes a sleeper
 * on the processor of the one who wakes it only if nothing more important than that runs there.
 *
 * Under SCHED_IDLE whoever else wants this processor keeps us from it. So a *guard* thread, elsewhere, looks at each
 * tick: if ours wants to run, and has served nothing since the last look, it is put back to where it was, and stays
 * there for a while.
 *
 * Invariants:
 *  1. Our thread is beside a caller only within drain() of _native_io.c, and starts no thread meanwhile (that would
 *     inherit it).
 *  2. Our thread can be put back: the guard tries that on itself before anything is done, since an unprivileged thread
 *     cannot leave SCHED_IDLE.
 * What is not atomic belongs to the loop's thread, but for `thread`, `before` and `watcher`: they are set before
 * `state` says that it works.
 */
#include "_native.h"

#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define ALONE 32             /* requests of one caller, without a pause, before we join it */
#define LARGE 32768          /* bytes of a request that others work on: copies, or the disk */
#define SLOW_NS 15000        /* a pause as long as this: the caller may have moved */
#define SLOW 2               /* so many of them: it is looked for */
#define PATIENCE 8           /* requests before it is looked for again, if it has not moved */
#define TICK_NS 4000000
#define QUIET 25             /* ticks without work, after which the guard sleeps until there is some */
#define HOLD_NS 10000000     /* how long we stay away; twice as long each time, up to HOLD_MAX_NS */
#define HOLD_MAX_NS 1000000000
#define STATE 3              /* fields of /proc/<tid>/stat */
#define PROCESSOR 39

static _Atomic enum { UNTRIED, WORKS, WORKS_NOT } state;
static _Atomic int active, rescued, parked;
static _Atomic unsigned served;
static pid_t thread, watcher;
static cpu_set_t before;
static uint32_t caller;
static unsigned streak, slow, patience;
static int processor;
static uint64_t held, hold;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t wanted = PTHREAD_COND_INITIALIZER;

static int policy(pid_t tid, int which) {
    struct sched_param none = {0};
    return sched_setscheduler(tid, which, &none);
}
static void put_back(void) {
    policy(thread, SCHED_OTHER);
    sched_setaffinity(thread, sizeof before, &before);
}
/* A field of a thread's stat file: a number, or the letter that it is. -1: no such thread. */
static int field(uint32_t tid, int number) {
    char text[512], *at;
    snprintf(text, sizeof text, "/proc/%u/stat", tid);
    int fd = open(text, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return -1;
    ssize_t n = read(fd, text, sizeof text - 1);
    close(fd);
    if (n <= 0) return -1;
    text[n] = 0;
    at = strrchr(text, ')'); /* the end of field 2, a name that may hold anything */
    for (int i = 2; at && i < number; i++) at = strchr(at + 1, ' ');
    return !at ? -1 : at[1] >= '0' && at[1] <= '9' ? atoi(at + 1) : at[1];
}

/* ---- the guard ---- */
static void park(void) {
    pthread_mutex_lock(&mutex);
    parked = 1;
    while (!active) pthread_cond_wait(&wanted, &mutex);
    parked = 0;
    pthread_mutex_unlock(&mutex);
}
static void *guard(void *unused) {
    const struct timespec tick = {0, TICK_NS};
    unsigned last = 0, quiet = 0;
    int was_active = 0;
    (void)unused;
    watcher = (pid_t)gettid();
    pthread_setname_np(pthread_self(), "artfs-guard");
    state = policy(0, SCHED_IDLE) || policy(0, SCHED_OTHER) ? WORKS_NOT : WORKS;
    while (state == WORKS) {
        if (active) quiet = 0;
        else if (++quiet > QUIET) park();
        nanosleep(&tick, NULL);
        unsigned now = served;
        if (active && was_active && now == last && !rescued && field((uint32_t)thread, STATE) == 'R') {
            rescued = 1;
            put_back();
        }
        last = now;
        was_active = active;
    }
    return NULL;
}
static void start_guard(void) {
    sigset_t all, mask;
    pthread_t it;
    state = WORKS_NOT;
    thread = (pid_t)gettid();
    if (sched_getscheduler(0) != SCHED_OTHER || sched_getaffinity(0, sizeof before, &before)) return;
    if (CPU_COUNT(&before) < 2) return;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &mask);
    if (!pthread_create(&it, NULL, guard, NULL)) pthread_detach(it);
    pthread_sigmask(SIG_SETMASK, &mask, NULL);
}

/* ---- the loop's thread ---- */
static void stay_away(void) {
    uint64_t now = now_ns();
    hold = now > held + HOLD_MAX_NS ? HOLD_NS : 2 * hold < HOLD_MAX_NS ? 2 * hold : HOLD_MAX_NS;
    held = now + hold;
}
void beside_leave(void) {
    if (!active) return;
    put_back();
    active = 0;
    if (!rescued) return;
    rescued = 0;
    stats.rescued++;
    stay_away();
}
void beside_pause(void) {
    beside_leave();
    streak = 0;
}
static void join(void) {
    int found = field(caller, PROCESSOR), same = active && found == processor;
    cpu_set_t one, others = before;
    slow = 0;
    patience = same ? PATIENCE : 0;
    if (found < 0 || same) return;
    CPU_ZERO(&one);
    CPU_SET(found, &one);
    if (sched_setaffinity(0, sizeof one, &one)) { /* it is not one of ours */
        beside_leave();
        stay_away();
        return;
    }
    processor = found;
    CPU_CLR(found, &others);
    sched_setaffinity(watcher, sizeof others, &others); /* here, it would drive the caller away */
    if (active) return;
    policy(0, SCHED_IDLE);
    active = 1;
    stats.joined++;
    if (parked) {
        pthread_mutex_lock(&mutex);
        pthread_cond_signal(&wanted);
        pthread_mutex_unlock(&mutex);
    }
}
void beside_served(uint32_t pid, size_t size, uint64_t pause) {
    served++;
    if (rescued) beside_leave();
    if (size > LARGE || (pid && pid != caller)) {
        beside_pause();
        caller = pid;
    }
    if (!pid) return; /* the kernel, for nobody */
    streak++;
    if (patience) patience--;
    else if (pause) slow = pause > SLOW_NS ? slow + 1 : 0;
    if (streak < ALONE || state == WORKS_NOT || (active && slow < SLOW)) return;
    if (state == UNTRIED) start_guard();
    else if (now_ns() >= held) join();
}
int beside_is(void) { return active; }
