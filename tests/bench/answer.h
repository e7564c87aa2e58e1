/* answer.h: the one answer that the benchmark's reference programs give: what stands in a file, a whole CGI answer as
 * the pool gave it (headers, empty line, body), so that all contenders send the same number of bytes. */
#ifndef HYPERPAGE_BENCH_ANSWER_H
#define HYPERPAGE_BENCH_ANSWER_H

#include <err.h>
#include <stdio.h>

#define ANSWER_MOST_BYTES 16384

struct answer {
    char text[ANSWER_MOST_BYTES + 1]; /* NUL-terminated */
    size_t len;
};

/* Ends the program if there is no such file, or one that is empty or too long. */
static inline void answer_read(struct answer *a, const char *path)
{
    FILE *f = fopen(path, "r");
    if (f == NULL) err(1, "%s", path);
    a->len = fread(a->text, 1, sizeof a->text, f);
    if (a->len == 0 || a->len > ANSWER_MOST_BYTES) errx(1, "%s: not an answer", path);
    a->text[a->len] = '\0';
    fclose(f);
}

#endif
