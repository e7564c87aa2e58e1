/* A switch is _setjmp and _longjmp; ucontext only makes the stack and enters it once. swapcontext would do, but asks
 * the kernel for the signal mask each time, and all tasks have the same one. FORTIFY takes a longjmp to another stack
 * for a mistake, so it is off in this file. Under sanitizers, which know no such longjmp, swapcontext does do. */
#undef _FORTIFY_SOURCE

#include "task.h"

#include "clock.h"
#include "mem.h"

#include <assert.h>
#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__)
#define TASK_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define TASK_ASAN 1
#endif
#endif
#if defined(TASK_ASAN) || defined(__SANITIZE_THREAD__)
#define TASK_SWAPCONTEXT 1
#endif
#ifdef TASK_ASAN
#include <sanitizer/common_interface_defs.h>
#define STACK_BYTES (256 * 1024)
#else
#define STACK_BYTES (64 * 1024) /* three times what json-c, hiredis and SQLite were seen to need */
#endif
#ifdef __has_include
#if __has_include(<valgrind/valgrind.h>)
#include <valgrind/valgrind.h>
#endif
#endif
#ifndef VALGRIND_STACK_REGISTER
#define VALGRIND_STACK_REGISTER(start, end) 0
#endif

enum task_state { TASK_READY, TASK_RUNNING, TASK_PARKED, TASK_DONE };

struct task {
    ucontext_t context; /* to enter the stack */
    jmp_buf where;      /* to go on where it parked */
    bool entered;
    void (*run)(void *arg);
    void *arg;
    enum task_state state;
    bool woken; /* a wake that came while it ran; the next park returns at once */
    bool timed_out;
    int64_t deadline_ms;      /* while parked */
    struct task *next, *prev; /* in the ready queue, the parked ring or the idle list */
    void *fake_stack;         /* ASan's, while switched away */
    char *stack;
};

static struct task parked = { .next = &parked, .prev = &parked };
static struct task *ready_first, **ready_last = &ready_first;
static struct task *idle; /* done; the stack waits for the next task */
static struct task *current;
#ifdef TASK_SWAPCONTEXT
static ucontext_t home;
#else
static jmp_buf home_where;
#endif
static void *home_fake_stack;
static const void *home_stack;
static size_t home_stack_bytes;
static size_t tasks, idle_tasks;

/* ASan must know which stack it is on; without it the hooks are nothing. */
static void switch_begins(void **save, const void *bottom, size_t bytes)
{
#ifdef TASK_ASAN
    __sanitizer_start_switch_fiber(save, bottom, bytes);
#else
    (void)save, (void)bottom, (void)bytes;
#endif
}

static void switch_ended(void *saved, const void **from_bottom, size_t *from_bytes)
{
#ifdef TASK_ASAN
    __sanitizer_finish_switch_fiber(saved, from_bottom, from_bytes);
#else
    (void)saved, (void)from_bottom, (void)from_bytes;
#endif
}

static void switch_to_task(struct task *t)
{
#ifdef TASK_SWAPCONTEXT
    swapcontext(&home, &t->context);
#else
    if (_setjmp(home_where) != 0) return;
    if (t->entered) _longjmp(t->where, 1);
    t->entered = true;
    setcontext(&t->context);
#endif
}

static void switch_to_home(struct task *t)
{
#ifdef TASK_SWAPCONTEXT
    swapcontext(&t->context, &home);
#else
    if (_setjmp(t->where) == 0) _longjmp(home_where, 1);
#endif
}

static void to_home(struct task *t)
{
    t->fake_stack = NULL;
    switch_begins(t->state == TASK_DONE ? NULL : &t->fake_stack, home_stack, home_stack_bytes);
    switch_to_home(t);
    switch_ended(t->fake_stack, &home_stack, &home_stack_bytes);
}

static void task_main(void)
{
    switch_ended(NULL, &home_stack, &home_stack_bytes);
    for (;;) { /* a stack that is used again goes on here, with its next job */
        current->run(current->arg);
        current->state = TASK_DONE;
        to_home(current);
    }
}

/* The guard page below the stack turns an overflow into a crash instead of a scribble. */
static struct task *task_new(void)
{
    struct task *t = mem_alloc(sizeof *t);
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    char *map = mmap(NULL, STACK_BYTES + page, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK | MAP_NORESERVE, -1, 0);
    t->stack = (char *)mem_or_die(map == MAP_FAILED ? NULL : map) + page;
    mprotect(map, page, PROT_NONE);
    (void)VALGRIND_STACK_REGISTER(t->stack, t->stack + STACK_BYTES);
    getcontext(&t->context);
    t->context.uc_stack.ss_sp = t->stack;
    t->context.uc_stack.ss_size = STACK_BYTES;
    t->context.uc_link = NULL;
    makecontext(&t->context, task_main, 0);
    return t;
}

static void task_free(struct task *t)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    munmap(t->stack - page, STACK_BYTES + page);
    free(t);
}

static void ready_push(struct task *t)
{
    t->state = TASK_READY;
    t->next = NULL;
    *ready_last = t;
    ready_last = &t->next;
}

static struct task *ready_pop(void)
{
    struct task *t = ready_first;
    ready_first = t->next;
    if (ready_first == NULL) ready_last = &ready_first;
    return t;
}

struct task *task_start(void (*run)(void *arg), void *arg)
{
    struct task *t = idle;
    if (t != NULL) {
        idle = t->next;
        idle_tasks--;
    } else {
        t = task_new();
    }
    t->run = run;
    t->arg = arg;
    t->woken = false;
    tasks++;
    ready_push(t);
    return t;
}

void task_run_ready(void)
{
    while (ready_first != NULL) {
        struct task *t = current = ready_pop();
        t->state = TASK_RUNNING;
        switch_begins(&home_fake_stack, t->stack, STACK_BYTES);
        switch_to_task(t);
        switch_ended(home_fake_stack, NULL, NULL);
        current = NULL;
        if (t->state == TASK_DONE) {
            t->next = idle;
            idle = t;
            idle_tasks++;
            tasks--;
        }
    }
}

struct task *task_current(void)
{
    return current;
}

bool task_park(int64_t deadline_ms)
{
    struct task *t = current;
    assert(t != NULL);
    if (!t->woken) {
        t->state = TASK_PARKED;
        t->timed_out = false;
        t->deadline_ms = deadline_ms;
        t->prev = parked.prev;
        t->next = &parked;
        t->prev->next = parked.prev = t;
        to_home(t);
        if (t->timed_out) return false;
    }
    t->woken = false;
    return true;
}

static void unpark(struct task *t)
{
    t->prev->next = t->next;
    t->next->prev = t->prev;
    ready_push(t);
}

void task_wake(struct task *t)
{
    if (t->state == TASK_PARKED)
        unpark(t);
    else if (t->state == TASK_RUNNING)
        t->woken = true;
}

int64_t task_expire(int64_t now_ms)
{
    int64_t next_ms = CLOCK_NEVER;
    for (struct task *t = parked.next, *after; t != &parked; t = after) {
        after = t->next;
        if (t->deadline_ms <= now_ms) {
            t->timed_out = true;
            unpark(t);
        } else if (t->deadline_ms < next_ms) {
            next_ms = t->deadline_ms;
        }
    }
    return next_ms;
}

size_t task_count(void)
{
    return tasks;
}

bool task_any_ready(void)
{
    return ready_first != NULL;
}

void task_free_stacks(size_t keep)
{
    while (idle_tasks > keep) {
        struct task *t = idle;
        idle = t->next;
        idle_tasks--;
        task_free(t);
    }
}
