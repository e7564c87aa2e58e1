#include "redis_error.h"

#include "test.h"

#include <string.h>

static void every_reply_is_an_outage_or_a_mistake_or_neither(void **state)
{
    (void)state;
    static const struct {
        const char *reply;
        enum err_kind kind;
        bool away, ours;
        enum redis_remedy remedy;
    } replies[] = {
        { "LOADING Redis is loading the dataset in memory", ERR_UNAVAILABLE, true, false, REDIS_LOOK_AGAIN },
        { "READONLY You can't write against a read only replica.", ERR_UNAVAILABLE, true, false, REDIS_LOOK_AGAIN },
        { "MASTERDOWN Link with MASTER is down", ERR_UNAVAILABLE, true, false, REDIS_LOOK_AGAIN },
        { "CLUSTERDOWN The cluster is down", ERR_UNAVAILABLE, true, false, REDIS_LOOK_AGAIN },
        { "OOM command not allowed", ERR_UNAVAILABLE, true, false, REDIS_NOTHING_HELPS },
        { "MISCONF Redis is configured to save", ERR_UNAVAILABLE, true, false, REDIS_NOTHING_HELPS },
        { "BUSY Redis is busy running a script", ERR_UNAVAILABLE, true, false, REDIS_NOTHING_HELPS },
        { "BUSYGROUP Consumer Group name already exists", ERR_UNAVAILABLE, false, true, REDIS_NOTHING_HELPS },
        { "ERR max number of clients reached", ERR_UNAVAILABLE, true, false, REDIS_NOTHING_HELPS },
        { "ERR unknown command", ERR_UNAVAILABLE, false, true, REDIS_NOTHING_HELPS },
        { "NOAUTH Authentication required.", ERR_UNAVAILABLE, false, true, REDIS_NOTHING_HELPS },
        { "NOPERM this user has no permissions", ERR_UNAVAILABLE, false, true, REDIS_NOTHING_HELPS },
        { "WRONGPASS invalid username-password pair", ERR_UNAVAILABLE, false, true, REDIS_NOTHING_HELPS },
        { "WRONGTYPE Operation against a key", ERR_CORRUPT, false, false, REDIS_NOTHING_HELPS },
        { "MOVED 1 127.0.0.1:1", ERR_UNAVAILABLE, false, true, REDIS_GO_THERE },
        { "ASK 1 127.0.0.1:1", ERR_UNAVAILABLE, false, true, REDIS_ASK_THERE },
        { "ASKED", ERR_UNAVAILABLE, false, true, REDIS_NOTHING_HELPS },
        { "TRYAGAIN Multiple keys request", ERR_UNAVAILABLE, false, false, REDIS_WAIT_A_BIT },
        { "NOSCRIPT No matching script", ERR_UNAVAILABLE, false, true, REDIS_SEND_SCRIPT },
        { "OOM", ERR_UNAVAILABLE, true, false, REDIS_NOTHING_HELPS },
        /* as servers before 7.0 tell of a script's failure */
        { "ERR Error running script (call to f_0a9a51ee): @user_script:4: @user_script: 4: -READONLY You can't write",
          ERR_UNAVAILABLE, true, false, REDIS_LOOK_AGAIN },
        { "ERR Error running script (call to f_0a9a51ee): @user_script:4: @user_script: 4: -OOM command not allowed",
          ERR_UNAVAILABLE, true, false, REDIS_NOTHING_HELPS },
        { "ERR Error running script (call to f_0a9a51ee): @user_script:1: WRONGTYPE Operation against a key",
          ERR_CORRUPT, false, false, REDIS_NOTHING_HELPS },
        { "ERR Error running script (call to f_0a9a51ee): @user_script:1: bad argument", ERR_UNAVAILABLE, false, true,
          REDIS_NOTHING_HELPS },
        { "ERR Error running script", ERR_UNAVAILABLE, false, true, REDIS_NOTHING_HELPS },
    };
    for (size_t i = 0; i < sizeof replies / sizeof replies[0]; i++) {
        struct err e = { .away = !replies[i].away };
        const struct redis_error *m = redis_error_of(replies[i].reply);
        assert_false(redis_error_set(m, replies[i].reply, &e));
        assert_int_equal(e.kind, replies[i].kind);
        if (e.away != replies[i].away || m->ours != replies[i].ours) fail_msg("%s", replies[i].reply);
        assert_int_equal(m->remedy, replies[i].remedy);
        assert_non_null(strstr(e.text, replies[i].reply));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(every_reply_is_an_outage_or_a_mistake_or_neither) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
