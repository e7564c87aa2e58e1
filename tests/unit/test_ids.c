#include "test.h"

#include "ids.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static void a_new_id_is_a_random_version_4_uuid_in_lower_case(void **state)
{
    (void)state;
    char id[IDS_TEXT_BYTES], again[IDS_TEXT_BYTES];
    for (int i = 0; i < 1000; i++) {
        ids_new(id);
        assert_int_equal(strlen(id), 36);
        assert_int_equal(strspn(id, "0123456789abcdef-"), 36);
        assert_int_equal(id[14], '4');
        assert_non_null(strchr("89ab", id[19]));
        assert_true(ids_read(bytes_of(id), again));
        assert_string_equal(again, id);
    }
}

static void public_ids_are_version_4_uuids_and_differ(void **state)
{
    (void)state;
    static char ids[100][IDS_TEXT_BYTES];
    for (int i = 0; i < 100; i++) {
        ids_new_public(ids[i]);
        assert_int_equal(strlen(ids[i]), 36);
        assert_int_equal(ids[i][14], '4');
        for (int j = 0; j < i; j++) assert_string_not_equal(ids[i], ids[j]);
    }
}

static int compare_texts(const void *a, const void *b)
{
    return memcmp(a, b, IDS_TEXT_BYTES);
}

static void new_ids_never_repeat_in_parent_and_child_after_a_fork(void **state)
{
    (void)state;
    enum { EACH = 2000 };
    static char ids[2 * EACH][IDS_TEXT_BYTES];
    int pipe_fd[2], status;
    assert_int_equal(pipe(pipe_fd), 0);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        bool written = true;
        for (int i = 0; i < EACH; i++) {
            ids_new(ids[0]);
            written = written && write(pipe_fd[1], ids[0], 36) == 36;
        }
        _exit(!written);
    }
    close(pipe_fd[1]);
    for (int i = 0; i < EACH; i++) {
        ids_new(ids[i]);
        for (ssize_t n, got = 0; got < 36; got += n) {
            n = read(pipe_fd[0], ids[EACH + i] + got, (size_t)(36 - got));
            assert_true(n > 0);
        }
    }
    close(pipe_fd[0]);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    qsort(ids, 2 * EACH, sizeof ids[0], compare_texts);
    for (int i = 1; i < 2 * EACH; i++) assert_string_not_equal(ids[i - 1], ids[i]);
}

static void reads_an_id_without_the_white_space_around_it(void **state)
{
    (void)state;
    static const char *const pairs[][2] = {
        { "a", "a" },
        { " \t\r\nAz09._-\n ", "Az09._-" },
        { "...", "..." },
        { "-", "-" },
    };
    char id[IDS_TEXT_BYTES];
    for (size_t i = 0; i < 4; i++) {
        assert_true(ids_read(bytes_of(pairs[i][0]), id));
        assert_string_equal(id, pairs[i][1]);
    }
}

static void refuses_what_is_no_id(void **state)
{
    (void)state;
    static const char *const wrong[] = {
        "", "  ", "a b", "a/b", "a:b", "a%20", "\xc3\xa4", "a\nb", "a{b}", "*", "a\""
    };
    char id[IDS_TEXT_BYTES] = "stale";
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        assert_false(ids_read(bytes_of(wrong[i]), id));
        assert_string_equal(id, "");
    }
    assert_false(ids_read((struct bytes){ "a\0b", 3 }, id));
    assert_false(ids_read((struct bytes){ "a\0", 2 }, id));
    assert_false(ids_read((struct bytes){ NULL, 0 }, id));
}

static void an_id_has_at_most_128_characters(void **state)
{
    (void)state;
    char text[131], id[IDS_TEXT_BYTES];
    memset(text, 'x', sizeof text);
    text[0] = ' ';
    assert_true(ids_read((struct bytes){ text, 129 }, id));
    assert_int_equal(strlen(id), 128);
    assert_false(ids_read((struct bytes){ text, 130 }, id));
}

static void version_5_ids_are_those_of_the_url_namespace(void **state)
{
    (void)state;
    static const char *const pairs[][2] = {
        { "http://www.example.com/", "fcde3c85-2270-590f-9e7c-ee003d65e0e2" },
        { "alice", "9750dcc2-516e-5ea0-8a26-54fa6ff6986b" },
        { "", "1b4db7eb-4057-5ddf-91e0-36dec72071f5" },
    };
    char id[IDS_TEXT_BYTES];
    for (size_t i = 0; i < 3; i++) {
        ids_v5(bytes_of(pairs[i][0]), id);
        assert_string_equal(id, pairs[i][1]);
    }
}

static void a_name_that_is_a_uuid_stays_the_uuid_it_is(void **state)
{
    (void)state;
    char id[IDS_TEXT_BYTES];
    ids_v5(BYTES_LITERAL("0F8FAD5B-D9CB-469F-A165-70867728950E"), id);
    assert_string_equal(id, "0f8fad5b-d9cb-469f-a165-70867728950e");
    ids_v5(BYTES_LITERAL("0F8FAD5B-D9CB-469F-A165-70867728950G"), id);
    assert_int_equal(id[14], '5');
    ids_v5((struct bytes){ "0f8fad5b-d9cb-469f-a165-7086772895\0e", 36 }, id);
    assert_int_equal(id[14], '5');
}

static void a_short_form_tells_ids_apart_and_shows_nothing_of_them(void **state)
{
    (void)state;
    char a[9], again[9], b[9];
    ids_short("9750dcc2-516e-5ea0-8a26-54fa6ff6986b", a);
    ids_short("9750dcc2-516e-5ea0-8a26-54fa6ff6986b", again);
    ids_short("9750dcc2-516e-5ea0-8a26-54fa6ff6986c", b);
    assert_int_equal(strlen(a), 8);
    assert_int_equal(strspn(a, "0123456789abcdef"), 8);
    assert_string_equal(a, again);
    assert_string_not_equal(a, b);
    assert_string_not_equal(a, "9750dcc2");
}

/* ETags are compared across nodes, so these values are for ever. */
static void a_fingerprint_is_the_same_on_every_machine(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        uint64_t seed, hash;
    } known[] = {
        { "", 0, 0x2f6be13ac39618f9 },
        { "a", 0, 0x5c55f94002ace5a7 },
        { "a", 1, 0xe4c057d95bf46177 },
        { "0123456789abcdef", 0, 0x68670299be5e3677 },
        { "0123456789abcdef0123456789abcdef-", 7, 0xe02377c298b163a4 },
    };
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
        assert_int_equal(ids_hash(bytes_of(known[i].text), known[i].seed), known[i].hash);
}

static void a_fingerprint_depends_on_every_bit_the_length_and_the_seed(void **state)
{
    (void)state;
    unsigned char data[100];
    for (size_t len = 0; len < sizeof data; len++) {
        memset(data, 0, sizeof data);
        struct bytes all = { (char *)data, len };
        uint64_t hash = ids_hash(all, 0);
        assert_int_not_equal(hash, ids_hash(all, 1));
        assert_int_not_equal(hash, ids_hash((struct bytes){ (char *)data, len + 1 }, 0));
        for (size_t bit = 0; bit < len * 8; bit++) {
            data[bit / 8] ^= (unsigned char)(1 << bit % 8);
            uint64_t changed = hash ^ ids_hash(all, 0);
            data[bit / 8] ^= (unsigned char)(1 << bit % 8);
            int flipped = __builtin_popcountll(changed);
            assert_true(flipped > 8 && flipped < 56); /* about half of the 64: mixed, not shifted */
        }
    }
}

static void fingerprints_of_many_similar_texts_do_not_collide(void **state)
{
    (void)state;
    enum { TEXTS = 100000, SLOTS = 1 << 20 };
    uint64_t *seen = calloc(SLOTS, sizeof *seen);
    for (int i = 0; i < TEXTS; i++) {
        char text[64];
        int len = snprintf(text, sizeof text, "{\"lastActivity\":\"2026-01-31T23:59:%05d\"}", i);
        uint64_t hash = ids_hash((struct bytes){ text, (size_t)len }, 0);
        size_t slot = hash % SLOTS;
        for (; seen[slot] != 0; slot = (slot + 1) % SLOTS) assert_int_not_equal(seen[slot], hash);
        seen[slot] = hash;
    }
    free(seen);
}

static void a_fingerprint_does_not_depend_on_where_the_bytes_lie(void **state)
{
    (void)state;
    char room[64];
    uint64_t hash = ids_hash(BYTES_LITERAL("some bytes that are no multiple of eight"), 0);
    for (size_t offset = 0; offset < 16; offset++) {
        memcpy(room + offset, "some bytes that are no multiple of eight", 40);
        assert_int_equal(ids_hash((struct bytes){ room + offset, 40 }, 0), hash);
    }
}

static void secrets_are_the_same_only_in_every_byte(void **state)
{
    (void)state;
    assert_true(ids_same_secret(BYTES_LITERAL("token"), BYTES_LITERAL("token")));
    assert_true(ids_same_secret(BYTES_LITERAL(""), BYTES_LITERAL("")));
    assert_false(ids_same_secret(BYTES_LITERAL("token"), BYTES_LITERAL("Token")));
    assert_false(ids_same_secret(BYTES_LITERAL("token"), BYTES_LITERAL("tokeN")));
    assert_false(ids_same_secret(BYTES_LITERAL("token"), BYTES_LITERAL("toke")));
    assert_false(ids_same_secret(BYTES_LITERAL("toke"), BYTES_LITERAL("token")));
    assert_false(ids_same_secret((struct bytes){ "a\0b", 3 }, (struct bytes){ "a\0c", 3 }));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_new_id_is_a_random_version_4_uuid_in_lower_case),
        cmocka_unit_test(public_ids_are_version_4_uuids_and_differ),
        cmocka_unit_test(new_ids_never_repeat_in_parent_and_child_after_a_fork),
        cmocka_unit_test(reads_an_id_without_the_white_space_around_it),
        cmocka_unit_test(refuses_what_is_no_id),
        cmocka_unit_test(an_id_has_at_most_128_characters),
        cmocka_unit_test(version_5_ids_are_those_of_the_url_namespace),
        cmocka_unit_test(a_name_that_is_a_uuid_stays_the_uuid_it_is),
        cmocka_unit_test(a_short_form_tells_ids_apart_and_shows_nothing_of_them),
        cmocka_unit_test(a_fingerprint_is_the_same_on_every_machine),
        cmocka_unit_test(a_fingerprint_depends_on_every_bit_the_length_and_the_seed),
        cmocka_unit_test(fingerprints_of_many_similar_texts_do_not_collide),
        cmocka_unit_test(a_fingerprint_does_not_depend_on_where_the_bytes_lie),
        cmocka_unit_test(secrets_are_the_same_only_in_every_byte),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
