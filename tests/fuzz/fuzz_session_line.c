/* Whatever stands in a line, reading it harms nothing; and what is read as a session is, written again, the same. */
#include "session_line.h"

#include <assert.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct session_line line = { .doc = BUF_INIT(1 << 16) }, again = { .doc = BUF_INIT(1 << 16) };
    struct buf text = BUF_INIT(SESSION_LINE_MOST(1 << 16));
    struct json_fault fault;
    if (session_line_read((struct bytes){ (const char *)data, size }, &line, &fault)) {
        assert(session_line_fits(bytes_of(line.id), buf_bytes(&line.doc)));
        session_line_write(bytes_of(line.id), buf_bytes(&line.doc), line.expires_at_ms, &text);
        assert(!buf_overflowed(&text) && memchr(text.data, '\n', text.len) == text.data + text.len - 1);
        assert(session_line_read((struct bytes){ text.data, text.len - 1 }, &again, &fault));
        assert(strcmp(again.id, line.id) == 0 && again.expires_at_ms == line.expires_at_ms);
        assert(bytes_equal(buf_bytes(&again.doc), buf_bytes(&line.doc)));
    }
    buf_done(&line.doc);
    buf_done(&again.doc);
    buf_done(&text);
    return 0;
}
