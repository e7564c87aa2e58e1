#include "clock.h"

#include <stdio.h>
#include <time.h>

static int64_t set_wall_ms = -1, set_mono_ms = -1;

static int64_t read_us(clockid_t id)
{
    struct timespec t;
    clock_gettime(id, &t);
    return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

int64_t clock_wall_ms(void)
{
    return set_wall_ms >= 0 ? set_wall_ms : read_us(CLOCK_REALTIME) / 1000;
}

int64_t clock_mono_ms(void)
{
    return set_mono_ms >= 0 ? set_mono_ms : read_us(CLOCK_MONOTONIC) / 1000;
}

int64_t clock_mono_us(void)
{
    return set_mono_ms >= 0 ? set_mono_ms * 1000 : read_us(CLOCK_MONOTONIC);
}

uint64_t clock_boot(void)
{
    unsigned long long high = 0; /* the first half of a UUID: 8-4-4 hexadecimal digits */
    unsigned a = 0, b = 0, c = 0;
    FILE *f = fopen("/proc/sys/kernel/random/boot_id", "re");
    if (f == NULL) return 0;
    if (fscanf(f, "%8x-%4x-%4x", &a, &b, &c) == 3) high = (unsigned long long)a << 32 | b << 16 | c;
    fclose(f);
    return high;
}

void clock_set(int64_t wall_ms, int64_t mono_ms)
{
    set_wall_ms = wall_ms;
    set_mono_ms = mono_ms;
}

void clock_iso(int64_t wall_ms, char out[CLOCK_ISO_BYTES])
{
    time_t s = (time_t)(wall_ms / 1000);
    struct tm tm;
    gmtime_r(&s, &tm);
    char text[64];
    snprintf(text, sizeof text, "%04d-%02d-%02dT%02d:%02d:%02d.%03dZ", tm.tm_year + 1900, tm.tm_mon + 1, tm.tm_mday,
             tm.tm_hour, tm.tm_min, tm.tm_sec, (int)(wall_ms % 1000));
    snprintf(out, CLOCK_ISO_BYTES, "%.24s", text);
}
