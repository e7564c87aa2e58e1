#include "exposition.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

const char *const exposition_types[2] = { "text/plain; version=0.0.4; charset=utf-8",
                                          "application/openmetrics-text; version=1.0.0; charset=utf-8" };

void exposition_family(struct exposition *ex, const char *name, const char *type, const char *help)
{
    size_t len = strlen(name);
    /* In OpenMetrics the family of the counter a_total is called a. */
    if (ex->openmetrics && strcmp(type, "counter") == 0) len -= strlen("_total");
    ex->name = name;
    buf_printf(ex->out, "# HELP %.*s %s\n# TYPE %.*s %s\n", (int)len, name, help, (int)len, name, type);
}

static void begin_sample(struct exposition *ex, const char *suffix, const char *labels)
{
    buf_puts(ex->out, ex->name);
    buf_puts(ex->out, suffix);
    if (labels[0] != '\0') {
        buf_puts(ex->out, "{");
        buf_puts(ex->out, labels);
        buf_puts(ex->out, "}");
    }
}

void exposition_whole(struct exposition *ex, const char *labels, uint64_t value)
{
    begin_sample(ex, "", labels);
    buf_printf(ex->out, " %" PRIu64 "\n", value);
}

void exposition_real(struct exposition *ex, const char *labels, double value)
{
    begin_sample(ex, "", labels);
    buf_printf(ex->out, " %.15g\n", value);
}

static void end_in_seconds(struct exposition *ex, uint64_t us)
{
    buf_printf(ex->out, " %" PRIu64 ".%06u\n", us / 1000000, (unsigned)(us % 1000000));
}

void exposition_seconds(struct exposition *ex, const char *labels, uint64_t us)
{
    begin_sample(ex, "", labels);
    end_in_seconds(ex, us);
}

void exposition_histogram(struct exposition *ex, const char *labels, const uint64_t *histogram)
{
    char with_bound[256];
    uint64_t count = 0;
    for (size_t b = 0; b < METRICS_BUCKETS; b++) {
        count += histogram[b];
        snprintf(with_bound, sizeof with_bound, "%s,le=\"%s\"", labels, metrics_bounds[b]);
        begin_sample(ex, "_bucket", with_bound);
        buf_printf(ex->out, " %" PRIu64 "\n", count);
    }
    begin_sample(ex, "_sum", labels);
    end_in_seconds(ex, histogram[METRICS_SUM_US]);
    begin_sample(ex, "_count", labels);
    buf_printf(ex->out, " %" PRIu64 "\n", count);
}

void exposition_gauge(struct exposition *ex, const char *name, const char *help, double value)
{
    exposition_family(ex, name, "gauge", help);
    exposition_real(ex, "", value);
}

/* --- what metrics.h counts --- */

static const struct {
    const char *family, *labels, *help; /* help "": of the family before */
    bool timed;
} rows[] = {
#define METRIC(name, help)                        { "hyperpage_" #name, "", help, false },
#define KEPT(name, help)                          { #name, "", help, false },
#define LABELLED(name, family, labels, help)      { "hyperpage_" #family, labels, help, false },
#define KEPT_LABELLED(name, family, labels, help) { #family, labels, help, false },
#define TIMED(name, family, labels, help)         { "hyperpage_" #family, labels, help, true },
#include "metrics.def"
};

static void tell_plain(struct exposition *ex, const uint64_t *totals)
{
    for (size_t m = 0; m < METRIC_COUNT; m++) {
        if (rows[m].help[0] != '\0') exposition_family(ex, rows[m].family, "counter", rows[m].help);
        if (rows[m].timed)
            exposition_seconds(ex, rows[m].labels, totals[m]);
        else
            exposition_whole(ex, rows[m].labels, totals[m]);
    }
}

/* Of the many combinations only those that have occurred. `extra` is a label before the others. */
static void tell_requests(struct exposition *ex, const char *name, const char *help, const char *extra,
                          const uint64_t *totals)
{
    char labels[256], status[16];
    exposition_family(ex, name, "counter", help);
    for (size_t p = 0; p < ENDPOINT_COUNT; p++)
        for (size_t m = 0; m < HTTP_METHODS; m++)
            for (size_t s = 0; s < METRICS_STATUSES; s++) {
                uint64_t n = totals[metrics_request_at((enum http_method)m, (enum endpoint)p, s)];
                if (n == 0) continue;
                snprintf(status, sizeof status, metrics_statuses[s] ? "%d" : "other", metrics_statuses[s]);
                snprintf(labels, sizeof labels, "%sendpoint=\"%s\",method=\"%s\",status=\"%s\"", extra,
                         endpoint_paths[p], http_methods[m], status);
                exposition_whole(ex, labels, n);
            }
}

static void tell_histograms(struct exposition *ex, const char *label, const char *const names[], size_t count,
                            const uint64_t *histograms)
{
    char labels[128];
    for (size_t i = 0; i < count; i++) {
        snprintf(labels, sizeof labels, "%s=\"%s\"", label, names[i]);
        exposition_histogram(ex, labels, histograms + i * METRICS_HISTOGRAM);
    }
}

void exposition_totals(struct exposition *ex, const uint64_t *totals)
{
    tell_plain(ex, totals);
    tell_requests(ex, "hyperpage_requests_total", "Requests answered.", "", totals);
    tell_requests(ex, "api_requests_total", "Requests answered.", "platform=\"hyperpage\",", totals);
    exposition_family(ex, "hyperpage_request_duration_seconds", "histogram",
                      "Time from when a request lay whole in its socket until its answer was ready to leave.");
    tell_histograms(ex, "endpoint", endpoint_paths, ENDPOINT_COUNT, totals + METRICS_DURATIONS_AT);
    exposition_family(ex, "hyperpage_phase_seconds", "histogram",
                      "What requests spend their time on: waiting for their turn in "
                      "the worker, one answer of Redis, one operation of the embedded store, writing the answer.");
    tell_histograms(ex, "phase", metrics_phases, PHASE_COUNT, totals + METRICS_PHASES_AT);
}

void exposition_end(struct exposition *ex)
{
    if (ex->openmetrics) buf_puts(ex->out, "# EOF\n");
}
