/* What a coordinator shows to the other processes of its node, and what these have counted, as JSON: coordination RUN_DIR */
#include "coordination.h"

#include "clock.h"
#include "message.h"
#include "totals.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void text(const char *name, const char *value)
{
    struct buf out = BUF_INIT(4096);
    buf_json_string(&out, bytes_of(value));
    printf("\"%s\":%s,", name, buf_text(&out));
    buf_done(&out);
}

static void say_number(const char *name, int64_t value, const char *after)
{
    printf("\"%s\":%" PRId64 "%s", name, value, after);
}

static void show_leader(const struct coordination *c)
{
    struct coordination_leader l;
    coordination_read_leader(c, &l);
    text("pod", l.pod);
    text("leader", l.leader);
    say_number("term", l.term, ",");
    say_number("is_leader", l.is_leader, ",");
    say_number("subscribed", l.subscribed, ",");
    say_number("alive", coordination_alive(c, clock_mono_ms()), ",");
    say_number("lag_ms", coordination_lag_ms(c), ",");
    say_number("generation", (int64_t)coordination_generation(c), ",");
}

static void show_pods(const struct coordination *c)
{
    static struct coordination_pods pods;
    coordination_read_pods(c, &pods);
    say_number("pod_count", pods.all, ",\"pods\":{");
    for (int64_t i = 0; i < pods.count; i++) say_number(pods.pod[i].name, pods.pod[i].until_ms, i + 1 < pods.count ? "," : "");
    printf("},");
}

static void show_messages(const struct coordination *c)
{
    static struct coordination_messages seen;
    coordination_read_messages(c, &seen);
    printf("\"messages\":{");
    for (int t = 0; t < MESSAGE_TYPES; t++) say_number(message_types[t], seen.type[t].count, ",");
    say_number("unknown", seen.type[MESSAGE_UNKNOWN].count, "},\"last_ms\":{");
    for (int t = 0; t < MESSAGE_TYPES; t++) say_number(message_types[t], seen.type[t].last_ms, t + 1 < MESSAGE_TYPES ? "," : "},");
}

static void show_limits(const struct coordination *c)
{
    static struct coordination_limits ls;
    coordination_read_limits(c, &ls);
    printf("\"limits\":[");
    for (int64_t i = 0; i < ls.count; i++) {
        const struct coordination_limit *l = &ls.limit[i];
        printf("%s{", i > 0 ? "," : "");
        text("platform", l->platform);
        text("endpoint", l->endpoint);
        say_number("limit", l->limit, ",");
        say_number("remaining", l->remaining, ",");
        say_number("usage_permille", l->usage_permille, "}");
    }
    printf("],");
}

static void show_metrics(struct shared *sh)
{
    static const char *const names[] = {
#define METRIC(name, help) #name,
#include "metrics.def"
    };
    uint64_t totals[METRICS_COUNTERS];
    totals_read(sh, totals);
    printf("\"metrics\":{");
    for (int m = 0; m < METRIC_COUNT; m++)
        say_number(names[m], (int64_t)totals[m], m + 1 < METRIC_COUNT ? "," : "}");
}

int main(int argc, char **argv)
{
    struct err e = { .kind = ERR_INPUT, .text = "usage: coordination RUN_DIR" };
    struct coordination *c = argc == 2 ? coordination_open(argv[1], &e) : NULL;
    struct shared *sh = c != NULL ? shared_open(argv[1], &e) : NULL;
    if (sh == NULL) {
        fprintf(stderr, "%s\n", e.text);
        return 1;
    }
    printf("{");
    show_leader(c);
    show_pods(c);
    show_messages(c);
    show_limits(c);
    show_metrics(sh);
    printf("}\n");
    shared_close(sh);
    coordination_close(c);
    return 0;
}
