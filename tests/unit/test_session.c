#include "test.h"

#include "session.h"
#include "span.h"

#include <stdio.h>
#include <string.h>

#define NOW    "2026-01-31T23:59:59.123Z"
#define NOW_MS INT64_C(1769903999123)
#define THEN   "2025-12-24T18:00:00.000Z"

/* The ends of documents that only hold what every write leaves behind. */
#define TOUCHED "\"lastActivity\":\"" NOW "\",\"metadata\":{\"updated\":\"" NOW "\"}"

static const char *const protected_names[] = { "userId", "user", "authenticatedTools", NULL };

static struct session_edit edit_of(enum session_edit_kind kind, const char *change)
{
    return (struct session_edit){
        .kind = kind, .change = bytes_of(change), .protected = protected_names, .keep_origin = true, .now_ms = NOW_MS
    };
}

/* The edit's outcome, or "fault POINTER". The caller frees it. */
static struct buf outcome_of(const struct session_edit *edit, const char *doc)
{
    struct buf out = BUF_INIT(1 << 20);
    struct json_fault f = { .kind = JSON_FINE };
    if (!session_apply(edit, bytes_of(doc), &out, &f)) {
        assert_int_equal(f.kind, JSON_PROTECTED);
        buf_reset(&out);
        buf_printf(&out, "fault %s", f.pointer);
    } else {
        size_t at;
        assert_int_equal(span_check_object(buf_bytes(&out), 0, &at), SPAN_OK);
    }
    return out;
}

static void assert_outcome(const struct session_edit *edit, const char *doc, const char *expected)
{
    struct buf out = outcome_of(edit, doc);
    assert_string_equal(buf_text(&out), expected);
    buf_done(&out);
}

static void assert_edit(enum session_edit_kind kind, const char *doc, const char *change, const char *expected)
{
    struct json_fault f;
    struct session_edit edit = edit_of(kind, change);
    if (!session_check(edit.change, kind == SESSION_MERGE_PATCH, &f)) fail_msg("%s %s", f.pointer, f.reason);
    assert_outcome(&edit, doc, expected);
}

/* --- session_check --- */

static void accepts_known_members_with_their_types_and_unknown_ones_with_any(void **state)
{
    (void)state;
    static const char *const fine[] = {
        "{}",
        " \t{ } \n",
        "{\"preferences\":{\"theme\":\"light\",\"timezone\":\"UTC\",\"language\":\"de\",\"refreshInterval\":0}}",
        "{\"preferences\":{\"theme\":\"d\\u0061rk\",\"refreshInterval\":1.5e3,\"newer\":null}}",
        "{\"preferences\":{}}",
        "{\"uiState\":{\"expandedWidgets\":[\"a\",\"\"],\"lastVisitedTools\":[],\"dashboardLayout\":\"wide\","
        "\"filterSettings\":{\"x\":[1,null]}}}",
        "{\"toolConfigs\":{\"github\":{\"enabled\":true,\"settings\":{\"a\":1},\"lastUsed\":\"" NOW
        "\",\"x\":0},\"\":{}}}",
        "{\"authenticatedTools\":{\"jira\":{\"connected\":false,\"connectedAt\":\"" NOW "\",\"lastUsed\":\"" THEN
        "\"}}}",
        "{\"lastActivity\":\"" NOW "\",\"metadata\":{\"ipAddress\":\"::1\",\"userAgent\":\"\",\"created\":\"" NOW
        "\",\"updated\":\"" NOW "\",\"more\":7}}",
        "{\"userId\":\"alice\",\"user\":{\"id\":\"1\",\"provider\":\"github\",\"email\":\"a@example.org\"}}",
        "{\"userId\":null,\"user\":null}",
        "{\"user\":{\"id\":\"1\",\"email\":null,\"username\":null,\"displayName\":null,\"avatarUrl\":null}}",
        "{\"theme\":5,\"widgets\":null,\"settings\":[],\"enabled\":{\"theme\":1},\"*\":0}",
        "{\"unknown\":{\"preferences\":{\"theme\":\"purple\"}}}",
    };
    for (size_t i = 0; i < sizeof fine / sizeof fine[0]; i++) {
        struct json_fault f;
        if (!session_check(bytes_of(fine[i]), false, &f)) fail_msg("%s %s: %s", f.pointer, f.reason, fine[i]);
        if (!session_check(bytes_of(fine[i]), true, &f)) fail_msg("%s %s: %s", f.pointer, f.reason, fine[i]);
    }
}

static void points_at_a_known_member_of_another_type(void **state)
{
    (void)state;
    static const char *const wrong[][3] = {
        { "{\"preferences\":[]}", "/preferences", "must be an object" },
        { "{\"preferences\":null}", "/preferences", "must be an object" },
        { "{\"pref\\u0065rences\":1}", "/preferences", "must be an object" },
        { "{\"preferences\":{\"theme\":\"purple\"}}", "/preferences/theme", "must be light, dark or system" },
        { "{\"preferences\":{\"theme\":null}}", "/preferences/theme", "must be light, dark or system" },
        { "{\"preferences\":{\"timezone\":1}}", "/preferences/timezone", "must be a string" },
        { "{\"preferences\":{\"language\":{}}}", "/preferences/language", "must be a string" },
        { "{\"preferences\":{\"refreshInterval\":\"1\"}}", "/preferences/refreshInterval",
          "must be a number that is not negative" },
        { "{\"preferences\":{\"refreshInterval\":-1}}", "/preferences/refreshInterval",
          "must be a number that is not negative" },
        { "{\"uiState\":\"\"}", "/uiState", "must be an object" },
        { "{\"uiState\":{\"expandedWidgets\":{}}}", "/uiState/expandedWidgets", "must be an array of strings" },
        { "{\"uiState\":{\"expandedWidgets\":[\"a\",1]}}", "/uiState/expandedWidgets", "must be an array of strings" },
        { "{\"uiState\":{\"lastVisitedTools\":[null]}}", "/uiState/lastVisitedTools", "must be an array of strings" },
        { "{\"uiState\":{\"dashboardLayout\":true}}", "/uiState/dashboardLayout", "must be a string" },
        { "{\"uiState\":{\"filterSettings\":[]}}", "/uiState/filterSettings", "must be an object" },
        { "{\"toolConfigs\":[]}", "/toolConfigs", "must be an object" },
        { "{\"toolConfigs\":{\"a/b\":1}}", "/toolConfigs/a~1b", "must be an object" },
        { "{\"toolConfigs\":{\"x\":{\"enabled\":\"yes\"}}}", "/toolConfigs/x/enabled", "must be true or false" },
        { "{\"toolConfigs\":{\"x\":{\"settings\":\"\"}}}", "/toolConfigs/x/settings", "must be an object" },
        { "{\"toolConfigs\":{\"x\":{\"lastUsed\":0}}}", "/toolConfigs/x/lastUsed",
          "must be an ISO 8601 time with date, time and zone" },
        { "{\"authenticatedTools\":\"\"}", "/authenticatedTools", "must be an object" },
        { "{\"authenticatedTools\":{\"x\":true}}", "/authenticatedTools/x", "must be an object" },
        { "{\"authenticatedTools\":{\"x\":{\"connected\":1}}}", "/authenticatedTools/x/connected",
          "must be true or false" },
        { "{\"authenticatedTools\":{\"x\":{\"connectedAt\":\"now\"}}}", "/authenticatedTools/x/connectedAt",
          "must be an ISO 8601 time with date, time and zone" },
        { "{\"authenticatedTools\":{\"x\":{\"lastUsed\":\"\"}}}", "/authenticatedTools/x/lastUsed",
          "must be an ISO 8601 time with date, time and zone" },
        { "{\"lastActivity\":1769903999123}", "/lastActivity", "must be an ISO 8601 time with date, time and zone" },
        { "{\"metadata\":\"x\"}", "/metadata", "must be an object" },
        { "{\"metadata\":{\"ipAddress\":1}}", "/metadata/ipAddress", "must be a string" },
        { "{\"metadata\":{\"userAgent\":[]}}", "/metadata/userAgent", "must be a string" },
        { "{\"metadata\":{\"created\":\"today\"}}", "/metadata/created",
          "must be an ISO 8601 time with date, time and zone" },
        { "{\"metadata\":{\"updated\":false}}", "/metadata/updated",
          "must be an ISO 8601 time with date, time and zone" },
        { "{\"userId\":7}", "/userId", "must be a string" },
        { "{\"user\":\"alice\"}", "/user", "must be an object" },
        { "{\"user\":{\"id\":1}}", "/user/id", "must be a string" },
        { "{\"user\":{\"id\":null}}", "/user/id", "must be a string" },
        { "{\"user\":{\"provider\":1}}", "/user/provider", "must be a string" },
        { "{\"user\":{\"email\":1}}", "/user/email", "must be a string" },
        { "{\"user\":{\"username\":[]}}", "/user/username", "must be a string" },
        { "{\"user\":{\"displayName\":{}}}", "/user/displayName", "must be a string" },
        { "{\"user\":{\"avatarUrl\":true}}", "/user/avatarUrl", "must be a string" },
    };
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        struct json_fault f;
        if (session_check(bytes_of(wrong[i][0]), false, &f)) fail_msg("accepted: %s", wrong[i][0]);
        assert_int_equal(f.kind, JSON_WRONG_TYPE);
        assert_string_equal(f.pointer, wrong[i][1]);
        assert_string_equal(f.reason, wrong[i][2]);
    }
}

static void a_patch_may_remove_any_member_with_null_but_not_break_an_array(void **state)
{
    (void)state;
    static const char *const fine[] = {
        "{\"preferences\":null,\"uiState\":{\"expandedWidgets\":null},\"metadata\":null,\"lastActivity\":null}",
        "{\"toolConfigs\":{\"x\":null,\"y\":{\"enabled\":null,\"settings\":{\"a\":null}}},\"user\":{\"id\":null}}",
    };
    struct json_fault f;
    for (size_t i = 0; i < 2; i++) {
        assert_true(session_check(bytes_of(fine[i]), true, &f));
        assert_false(session_check(bytes_of(fine[i]), false, &f));
    }
    assert_false(session_check(BYTES_LITERAL("{\"uiState\":{\"expandedWidgets\":[null]}}"), true, &f));
    assert_false(session_check(BYTES_LITERAL("{\"preferences\":7}"), true, &f));
}

static void a_document_has_at_most_32_levels(void **state)
{
    (void)state;
    for (int levels = SESSION_DEPTH; levels <= SESSION_DEPTH + 1; levels++) {
        struct buf text = BUF_INIT(1000);
        struct json_fault f = { .kind = JSON_FINE };
        for (int i = 0; i < levels; i++) buf_puts(&text, "{\"a\":");
        buf_puts(&text, "[]");
        for (int i = 0; i < levels; i++) buf_puts(&text, "}");
        assert_false(session_check(buf_bytes(&text), false, &f));
        assert_int_equal(f.kind, JSON_TOO_DEEP);
        memcpy(strstr(text.data, "[]"), "10", 2);
        assert_int_equal(session_check(buf_bytes(&text), false, &f), levels <= SESSION_DEPTH);
        buf_done(&text);
    }
}

/* --- merging as the original does --- */

static void a_touch_changes_the_two_times_and_no_other_byte(void **state)
{
    (void)state;
    assert_edit(
        SESSION_MERGE,
        "{ \"userId\" : \"a\\u006cice\" ,\n \"lastActivity\" : \"" THEN "\" , \"big\":123456789012345678901234567890,"
        "\"metadata\" : { \"created\":\"" THEN "\" ,\t\"updated\":\"" THEN
        "\", \"x\":1.50 } , \"esc\":\"\\/\\ud83d\"  }",
        "{\"lastActivity\":\"" THEN "\"}",
        "{ \"userId\" : \"a\\u006cice\" ,\n \"lastActivity\" : \"" NOW "\" , \"big\":123456789012345678901234567890,"
        "\"metadata\" : { \"created\":\"" THEN "\" ,\t\"updated\":\"" NOW
        "\", \"x\":1.50 } , \"esc\":\"\\/\\ud83d\"  }");
}

static void times_and_metadata_that_are_missing_are_appended(void **state)
{
    (void)state;
    assert_edit(SESSION_MERGE, "{}", "{}", "{" TOUCHED "}");
    assert_edit(SESSION_MERGE, " { } \n", "{}", "{" TOUCHED "}");
    assert_edit(SESSION_MERGE, "{\"a\":1}", "{}", "{\"a\":1," TOUCHED "}");
    assert_edit(SESSION_MERGE, "{\"metadata\":{ }}", "{}",
                "{\"metadata\":{\"updated\":\"" NOW "\"},\"lastActivity\":\"" NOW "\"}");
    assert_edit(SESSION_MERGE, "{\"metadata\":7,\"lastActivity\":[]}", "{}",
                "{\"metadata\":{\"updated\":\"" NOW "\"},\"lastActivity\":\"" NOW "\"}");
}

static void top_level_members_are_replaced_by_the_clients_own_bytes(void **state)
{
    (void)state;
    assert_edit(SESSION_MERGE, "{\"a\" : {\"x\":1} ,\"b\":2," TOUCHED "}", "{ \"a\" :  { \"y\" : 1e400 }  }",
                "{\"a\" : { \"y\" : 1e400 } ,\"b\":2," TOUCHED "}");
    assert_edit(SESSION_MERGE, "{\"a\":1," TOUCHED "}", "{\"a\":null,\"n\":null}",
                "{\"a\":null," TOUCHED ",\"n\":null}");
}

static void new_members_are_appended_in_the_order_of_the_change(void **state)
{
    (void)state;
    assert_edit(SESSION_MERGE, "{\"m\":0," TOUCHED "}", "{\"z\":1, \"m\":2, \"a\":3, \"\\u0062\":4}",
                "{\"m\":2," TOUCHED ",\"z\":1,\"a\":3,\"\\u0062\":4}");
}

static void a_member_is_found_however_its_name_is_escaped(void **state)
{
    (void)state;
    assert_edit(SESSION_MERGE, "{\"\\u0061b\":1," TOUCHED "}", "{\"a\\u0062\":2}", "{\"\\u0061b\":2," TOUCHED "}");
    assert_edit(SESSION_MERGE, "{\"l\\u0061stActivity\":1,\"met\\u0061data\":{\"upd\\u0061ted\":2}}",
                "{\"\\u006castActivity\":\"" THEN "\"}",
                "{\"l\\u0061stActivity\":\"" NOW "\",\"met\\u0061data\":{\"upd\\u0061ted\":\"" NOW "\"}}");
}

static void of_a_repeated_member_the_last_is_replaced_and_the_others_stay(void **state)
{
    (void)state;
    assert_edit(SESSION_MERGE, "{\"a\":1,\"b\":2, \"a\" :3," TOUCHED "}", "{\"a\":4}",
                "{\"a\":1,\"b\":2, \"a\" :4," TOUCHED "}");
    assert_edit(
        SESSION_MERGE, "{\"lastActivity\":1,\"metadata\":{\"updated\":1,\"updated\":2},\"lastActivity\":2}", "{}",
        "{\"lastActivity\":1,\"metadata\":{\"updated\":1,\"updated\":\"" NOW "\"},\"lastActivity\":\"" NOW "\"}");
}

static void metadata_merges_one_level_and_its_origin_stays_the_servers(void **state)
{
    (void)state;
    const char *doc = "{\"lastActivity\":\"" THEN "\",\"metadata\":{\"ipAddress\":\"192.0.2.1\",\"userAgent\":\"UA\","
                      "\"created\":\"" THEN "\",\"updated\":\"" THEN "\",\"tags\":{\"a\":1}}}";
    const char *change = "{\"metadata\":{\"ipAddress\":\"6.6.6.6\",\"user\\u0041gent\":\"evil\",\"created\":\"" NOW
                         "\",\"updated\":\"" THEN "\",\"tags\":{\"b\":2},\"new\":null}}";
    assert_edit(SESSION_MERGE, doc, change,
                "{\"lastActivity\":\"" NOW "\",\"metadata\":{\"ipAddress\":\"192.0.2.1\",\"userAgent\":\"UA\","
                "\"created\":\"" THEN "\",\"updated\":\"" NOW "\",\"tags\":{\"b\":2},\"new\":null}}");

    struct session_edit edit = edit_of(SESSION_MERGE, change);
    edit.keep_origin = false;
    assert_outcome(&edit, doc,
                   "{\"lastActivity\":\"" NOW "\",\"metadata\":{\"ipAddress\":\"6.6.6.6\",\"userAgent\":\"evil\","
                   "\"created\":\"" NOW "\",\"updated\":\"" NOW "\",\"tags\":{\"b\":2},\"new\":null}}");
}

/* --- RFC 7396 --- */

static void merge_patch_passes_the_vectors_of_rfc_7396(void **state)
{
    (void)state;
    static const char *const vectors[][3] = {
        /* target, patch, result; "" is: the member is gone */
        { "{\"a\":\"b\"}", "{\"a\":\"c\"}", "{\"a\":\"c\"}" },
        { "{\"a\":\"b\"}", "{\"b\":\"c\"}", "{\"a\":\"b\",\"b\":\"c\"}" },
        { "{\"a\":\"b\"}", "{\"a\":null}", "{}" },
        { "{\"a\":\"b\",\"b\":\"c\"}", "{\"a\":null}", "{\"b\":\"c\"}" },
        { "{\"a\":[\"b\"]}", "{\"a\":\"c\"}", "{\"a\":\"c\"}" },
        { "{\"a\":\"c\"}", "{\"a\":[\"b\"]}", "{\"a\":[\"b\"]}" },
        { "{\"a\":{\"b\":\"c\"}}", "{\"a\":{\"b\":\"d\",\"c\":null}}", "{\"a\":{\"b\":\"d\"}}" },
        { "{\"a\":[{\"b\":\"c\"}]}", "{\"a\":[1]}", "{\"a\":[1]}" },
        { "[\"a\",\"b\"]", "[\"c\",\"d\"]", "[\"c\",\"d\"]" },
        { "{\"a\":\"b\"}", "[\"c\"]", "[\"c\"]" },
        { "{\"a\":\"foo\"}", "null", "" },
        { "{\"a\":\"foo\"}", "\"bar\"", "\"bar\"" },
        { "{\"e\":null}", "{\"a\":1}", "{\"e\":null,\"a\":1}" },
        { "[1,2]", "{\"a\":\"b\",\"c\":null}", "{\"a\":\"b\"}" },
        { "{}", "{\"a\":{\"bb\":{\"ccc\":null}}}", "{\"a\":{\"bb\":{}}}" },
    };
    for (size_t i = 0; i < sizeof vectors / sizeof vectors[0]; i++) {
        struct buf doc = BUF_INIT(1000), change = BUF_INIT(1000), expected = BUF_INIT(1000);
        buf_printf(&doc, "{\"v\":%s," TOUCHED "}", vectors[i][0]);
        buf_printf(&change, "{\"v\":%s}", vectors[i][1]);
        if (vectors[i][2][0] == '\0')
            buf_puts(&expected, "{" TOUCHED "}");
        else
            buf_printf(&expected, "{\"v\":%s," TOUCHED "}", vectors[i][2]);
        assert_edit(SESSION_MERGE_PATCH, buf_text(&doc), buf_text(&change), buf_text(&expected));
        buf_done(&doc);
        buf_done(&change);
        buf_done(&expected);
    }
}

static void merge_patch_keeps_the_bytes_of_all_it_does_not_name(void **state)
{
    (void)state;
    assert_edit(
        SESSION_MERGE_PATCH,
        "{ \"uiState\" : { \"big\" : 18446744073709551616 , \"filterSettings\" : { \"\\u0061\" : 1.0 , \"b\":2 } } ,"
        " \"gone\":0 , \"x\" : 1 ," TOUCHED "}",
        "{\"uiState\":{\"filterSettings\":{\"b\":null,\"c\":[ {\"d\":null} ]}},\"gone\":null}",
        "{ \"uiState\" : { \"big\" : 18446744073709551616 , \"filterSettings\" : { \"\\u0061\" : 1.0 ,\"c\":[ "
        "{\"d\":null} ]} } ,"
        " \"x\" : 1 ," TOUCHED "}");
}

static void merge_patch_removes_every_repeat_of_a_member(void **state)
{
    (void)state;
    assert_edit(SESSION_MERGE_PATCH, "{\"a\":1,\"b\":2,\"\\u0061\":3," TOUCHED "}", "{\"a\":null}",
                "{\"b\":2," TOUCHED "}");
}

static void merge_patch_cannot_remove_what_is_the_servers(void **state)
{
    (void)state;
    const char *doc =
        "{\"lastActivity\":\"" THEN "\",\"metadata\":{\"ipAddress\":\"192.0.2.1\",\"updated\":\"" THEN "\",\"own\":1}}";
    const char *touched =
        "{\"lastActivity\":\"" NOW "\",\"metadata\":{\"ipAddress\":\"192.0.2.1\",\"updated\":\"" NOW "\",\"own\":1}}";
    assert_edit(SESSION_MERGE_PATCH, doc, "{\"lastActivity\":null,\"metadata\":null}", touched);
    assert_edit(SESSION_MERGE_PATCH, doc, "{\"metadata\":{\"updated\":null,\"ipAddress\":null}}", touched);
    assert_edit(SESSION_MERGE_PATCH, doc, "{\"metadata\":{\"own\":null}}",
                "{\"lastActivity\":\"" NOW "\",\"metadata\":{\"ipAddress\":\"192.0.2.1\",\"updated\":\"" NOW "\"}}");
}

static void merge_patch_merges_metadata_below_the_first_level_too(void **state)
{
    (void)state;
    assert_edit(SESSION_MERGE_PATCH,
                "{\"metadata\":{\"tags\":{\"a\":1,\"b\":2},\"updated\":\"\"},\"lastActivity\":\"\"}",
                "{\"metadata\":{\"tags\":{\"b\":null,\"c\":3}}}",
                "{\"metadata\":{\"tags\":{\"a\":1,\"c\":3},\"updated\":\"" NOW "\"},\"lastActivity\":\"" NOW "\"}");
}

/* --- replacing --- */

#define STORED                                                                                                         \
    "{\"old\":1,\"userId\": \"al\\u0069ce\",\"authenticatedTools\":{ \"x\":{} "                                        \
    "},\"metadata\":{\"ipAddress\":\"192.0.2.1\","                                                                     \
    "\"userAgent\":\"UA\",\"created\":\"" THEN "\",\"updated\":\"" THEN "\",\"own\":1},\"lastActivity\":\"" THEN "\"}"

static void a_replacement_keeps_its_bytes_and_the_servers_members(void **state)
{
    (void)state;
    assert_edit(
        SESSION_REPLACE, STORED, " { \"new\" : 1e999 , \"metadata\" : { \"created\":\"" NOW "\" , \"mine\":2 } } ",
        "{ \"new\" : 1e999 , \"metadata\" : { \"created\":\"" THEN "\" , \"mine\":2 ,\"ipAddress\":\"192.0.2.1\","
        "\"userAgent\":\"UA\",\"updated\":\"" NOW "\"} ,\"userId\":\"al\\u0069ce\","
        "\"authenticatedTools\":{ \"x\":{} },\"lastActivity\":\"" NOW "\"}");
}

static void a_replacement_without_metadata_gets_the_servers_part(void **state)
{
    (void)state;
    assert_edit(SESSION_REPLACE, STORED, "{\"lastActivity\":\"" THEN "\"}",
                "{\"lastActivity\":\"" NOW "\",\"userId\":\"al\\u0069ce\",\"authenticatedTools\":{ \"x\":{} },"
                "\"metadata\":{\"ipAddress\":\"192.0.2.1\",\"userAgent\":\"UA\",\"created\":\"" THEN
                "\",\"updated\":\"" NOW "\"}}");
}

static void a_replacement_cannot_give_an_origin_that_was_not_stored(void **state)
{
    (void)state;
    assert_edit(SESSION_REPLACE, "{}", "{\"metadata\":{\"ipAddress\":\"6.6.6.6\",\"a\":1,\"created\":\"" NOW "\"}}",
                "{\"metadata\":{\"a\":1,\"updated\":\"" NOW "\"},\"lastActivity\":\"" NOW "\"}");
}

static void a_replacement_may_give_its_origin_where_the_operator_allows_it(void **state)
{
    (void)state;
    struct session_edit edit = edit_of(SESSION_REPLACE, "{\"metadata\":{\"ipAddress\":\"6.6.6.6\"}}");
    edit.keep_origin = false;
    edit.protected = NULL;
    assert_outcome(&edit, STORED,
                   "{\"metadata\":{\"ipAddress\":\"6.6.6.6\",\"updated\":\"" NOW "\"},\"lastActivity\":\"" NOW "\"}");
}

static void a_trusted_replacement_keeps_protected_members_it_leaves_out(void **state)
{
    (void)state;
    struct session_edit edit = edit_of(SESSION_REPLACE, "{\"userId\":\"bob\",\"metadata\":{}}");
    edit.trusted = true;
    assert_outcome(
        &edit, STORED,
        "{\"userId\":\"bob\",\"metadata\":{\"ipAddress\":\"192.0.2.1\",\"userAgent\":\"UA\",\"created\":\"" THEN
        "\",\"updated\":\"" NOW "\"},\"authenticatedTools\":{ \"x\":{} },\"lastActivity\":\"" NOW "\"}");
}

/* --- protected members --- */

static void only_a_trusted_caller_changes_protected_members(void **state)
{
    (void)state;
    const char *doc = "{\"userId\":\"alice\",\"authenticatedTools\":{\"x\":{\"connected\":true}}," TOUCHED "}";
    static const struct {
        enum session_edit_kind kind;
        const char *change, *pointer;
    } refused[] = {
        { SESSION_MERGE, "{\"userId\":\"bob\"}", "/userId" },
        { SESSION_MERGE, "{\"a\":1,\"\\u0075serId\":\"bob\"}", "/userId" },
        { SESSION_MERGE, "{\"userId\":null}", "/userId" },
        { SESSION_MERGE, "{\"user\":{\"id\":\"1\"}}", "/user" },
        { SESSION_MERGE, "{\"user\":null}", "/user" },
        { SESSION_MERGE, "{\"authenticatedTools\":{}}", "/authenticatedTools" },
        { SESSION_MERGE_PATCH, "{\"userId\":\"bob\"}", "/userId" },
        { SESSION_MERGE_PATCH, "{\"userId\":null}", "/userId" },
        { SESSION_MERGE_PATCH, "{\"user\":{}}", "/user" },
        { SESSION_MERGE_PATCH, "{\"authenticatedTools\":{\"y\":{}}}", "/authenticatedTools" },
        { SESSION_MERGE_PATCH, "{\"authenticatedTools\":{\"x\":{\"connected\":false}}}", "/authenticatedTools" },
        { SESSION_MERGE_PATCH, "{\"authenticatedTools\":{\"x\":null}}", "/authenticatedTools" },
        { SESSION_REPLACE, "{\"userId\":\"bob\"}", "/userId" },
        { SESSION_REPLACE, "{\"userId\":null}", "/userId" },
        { SESSION_REPLACE, "{\"user\":null}", "/user" },
        { SESSION_REPLACE, "{\"authenticatedTools\":{}}", "/authenticatedTools" },
    };
    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++) {
        struct session_edit edit = edit_of(refused[i].kind, refused[i].change);
        struct buf expected = BUF_INIT(100), trusted;
        buf_printf(&expected, "fault %s", refused[i].pointer);
        assert_outcome(&edit, doc, buf_text(&expected));
        edit.trusted = true;
        trusted = outcome_of(&edit, doc);
        assert_int_equal(trusted.data[0], '{');
        buf_done(&trusted);
        edit.trusted = false;
        edit.protected = NULL;
        trusted = outcome_of(&edit, doc);
        assert_int_equal(trusted.data[0], '{');
        buf_done(&trusted);
        buf_done(&expected);
    }
}

static void the_same_protected_value_is_no_change(void **state)
{
    (void)state;
    const char *doc =
        "{\"userId\":\"alice\",\"authenticatedTools\":{\"x\":{\"connected\":true}},\"user\":null," TOUCHED "}";
    static const struct {
        enum session_edit_kind kind;
        const char *change;
    } same[] = {
        { SESSION_MERGE, "{\"userId\":\"alic\\u0065\",\"user\":null}" },
        { SESSION_MERGE, "{\"authenticatedTools\":{ \"\\u0078\" : { \"connected\" : true } }}" },
        { SESSION_MERGE_PATCH, "{\"userId\":\"alice\"}" },
        { SESSION_MERGE_PATCH, "{\"authenticatedTools\":{}}" },
        { SESSION_MERGE_PATCH, "{\"authenticatedTools\":{\"x\":{\"connected\":true},\"y\":null}}" },
        { SESSION_REPLACE, "{}" },
        { SESSION_REPLACE, "{\"userId\":\"alice\",\"authenticatedTools\":{\"x\":{\"connected\":true}}}" },
    };
    for (size_t i = 0; i < sizeof same / sizeof same[0]; i++) {
        struct session_edit edit = edit_of(same[i].kind, same[i].change);
        struct buf out = outcome_of(&edit, doc);
        struct span_member m;
        if (out.data[0] != '{') fail_msg("%s: %s", buf_text(&out), same[i].change);
        assert_true(span_find(buf_bytes(&out), "authenticatedTools", &m));
        assert_true(json_equal(m.value, BYTES_LITERAL("{\"x\":{\"connected\":true}}")));
        buf_done(&out);
    }
}

static void removing_a_protected_member_that_is_absent_is_no_change(void **state)
{
    (void)state;
    assert_edit(SESSION_MERGE_PATCH, "{\"a\":1," TOUCHED "}", "{\"userId\":null}", "{\"a\":1," TOUCHED "}");
}

/* --- large and hostile --- */

static void thousands_of_members_merge_into_thousands(void **state)
{
    (void)state;
    enum { MEMBERS = 6000 };
    struct buf doc = BUF_INIT(1 << 20), change = BUF_INIT(1 << 20), out = BUF_INIT(1 << 20);
    struct json_fault f;
    for (int i = 0; i < MEMBERS; i++) {
        buf_printf(&doc, "%s\"m%d\":%d", i ? "," : "{", i, i);
        buf_printf(&change, "%s\"m%d\":true", i ? "," : "{", 2 * (MEMBERS - i)); /* every other one, and new ones */
    }
    buf_puts(&doc, "}");
    buf_puts(&change, "}");
    struct session_edit edit = edit_of(SESSION_MERGE, buf_text(&change));
    assert_true(session_check(edit.change, false, &f));
    assert_true(session_apply(&edit, buf_bytes(&doc), &out, &f));
    struct span_walk w = span_walk(buf_bytes(&out));
    struct span_member m;
    for (int i = 0; i < MEMBERS; i++) {
        char number[20];
        snprintf(number, sizeof number, "%d", i);
        assert_true(span_next(&w, &m));
        assert_true(bytes_is(m.value, i > 0 && i % 2 == 0 ? "true" : number));
    }
    for (int i = MEMBERS; i > MEMBERS / 2 - 1; i--) {
        char expected[20];
        snprintf(expected, sizeof expected, "m%d", 2 * i);
        assert_true(span_next(&w, &m));
        assert_true(bytes_is(m.name, expected));
    }
    buf_done(&doc);
    buf_done(&change);
    buf_done(&out);
}

static void a_patch_of_the_deepest_allowed_document_applies(void **state)
{
    (void)state;
    struct buf doc = BUF_INIT(1000), expected = BUF_INIT(1000), change = BUF_INIT(1000);
    for (int i = 0; i < SESSION_DEPTH; i++) {
        buf_puts(&doc, i ? " { \"a\" : " : "{" TOUCHED ", \"a\" : ");
        buf_puts(&change, "{\"a\":");
    }
    buf_add(&expected, buf_bytes(&doc));
    buf_puts(&doc, "1");
    buf_puts(&change, "2");
    buf_puts(&expected, "2");
    for (int i = 0; i < SESSION_DEPTH; i++) {
        buf_puts(&doc, "}");
        buf_puts(&change, "}");
        buf_puts(&expected, "}");
    }
    assert_edit(SESSION_MERGE_PATCH, buf_text(&doc), buf_text(&change), buf_text(&expected));
    buf_done(&doc);
    buf_done(&change);
    buf_done(&expected);
}

static void an_outcome_over_the_limit_shows_in_the_buf(void **state)
{
    (void)state;
    struct session_edit edit = edit_of(SESSION_MERGE, "{\"a\":\"0123456789\",\"userId\":\"mallory\"}");
    struct json_fault f;
    for (size_t limit = 0; limit < 100; limit++) {
        struct buf out = BUF_INIT(limit);
        assert_true(session_apply(&edit, BYTES_LITERAL("{\"userId\":\"alice\"}"), &out, &f));
        assert_true(buf_overflowed(&out));
        buf_done(&out);
    }
}

static void an_outcome_is_appended_to_what_the_buf_holds(void **state)
{
    (void)state;
    struct session_edit edit = edit_of(SESSION_MERGE, "{\"userId\":\"alice\"}");
    struct buf out = BUF_INIT(1000);
    struct json_fault f;
    buf_puts(&out, "before ");
    assert_true(session_apply(&edit, BYTES_LITERAL("{\"userId\":\"alice\"}"), &out, &f));
    assert_string_equal(buf_text(&out), "before {\"userId\":\"alice\"," TOUCHED "}");
    buf_done(&out);
}

/* --- new sessions --- */

static const struct session_origin origin = { "192.0.2.17", "Agent \"007\"\n" };

#define DEFAULTS_FROM(preferences)                                                                                     \
    "{\"preferences\":" preferences ",\"uiState\":{\"expandedWidgets\":[],\"lastVisitedTools\":[],"                    \
    "\"dashboardLayout\":\"default\",\"filterSettings\":{}},\"toolConfigs\":{},\"authenticatedTools\":{},"             \
    "\"lastActivity\":\"" NOW "\",\"metadata\":{\"ipAddress\":\"192.0.2.17\",\"userAgent\":\"Agent \\\"007\\\"\\n\","  \
    "\"created\":\"" NOW "\",\"updated\":\"" NOW "\""
#define PREFERENCES "{\"theme\":\"system\",\"timezone\":\"UTC\",\"language\":\"en\",\"refreshInterval\":300000}"

static void assert_new(const struct session_edit *given, const char *expected)
{
    struct buf out = BUF_INIT(10000);
    struct json_fault f;
    if (!session_new(given, &origin, &out, &f)) fail_msg("%s %s", f.pointer, f.reason);
    assert_string_equal(buf_text(&out), expected);
    assert_true(session_check(buf_bytes(&out), false, &f));
    buf_done(&out);
}

static void a_new_session_holds_the_defaults(void **state)
{
    (void)state;
    struct session_edit nothing = edit_of(SESSION_MERGE, NULL), empty = edit_of(SESSION_MERGE, "{}");
    assert_new(&nothing, DEFAULTS_FROM(PREFERENCES) "}}");
    assert_new(&empty, DEFAULTS_FROM(PREFERENCES) "}}");
}

static void given_members_replace_the_defaults_of_a_new_session(void **state)
{
    (void)state;
    struct session_edit given = edit_of(SESSION_REPLACE, /* the kind does not count */
                                        "{\"more\":{\"a\": 1e0},\"preferences\":{ \"theme\":\"dark\" },"
                                        "\"lastActivity\":\"" THEN "\",\"authenticatedTools\":{ },"
                                        "\"metadata\":{\"created\":\"" THEN "\",\"ipAddress\":\"6.6.6.6\",\"b\":2}}");
    assert_new(&given,
               "{\"preferences\":{ \"theme\":\"dark\" },\"uiState\":{\"expandedWidgets\":[],\"lastVisitedTools\":[],"
               "\"dashboardLayout\":\"default\",\"filterSettings\":{}},\"toolConfigs\":{},\"authenticatedTools\":{ },"
               "\"lastActivity\":\"" NOW "\",\"metadata\":{\"ipAddress\":\"192.0.2.17\",\"userAgent\":\"Agent "
               "\\\"007\\\"\\n\",\"created\":\"" NOW "\",\"updated\":\"" NOW "\",\"b\":2},\"more\":{\"a\": 1e0}}");
}

static void a_new_session_takes_its_origin_from_the_client_where_the_operator_allows_it(void **state)
{
    (void)state;
    struct session_edit given =
        edit_of(SESSION_MERGE, "{\"metadata\":{\"ipAddress\":\"6.6.6.6\",\"created\":\"" THEN "\"}}");
    struct buf out = BUF_INIT(10000);
    struct json_fault f;
    given.keep_origin = false;
    assert_true(session_new(&given, &origin, &out, &f));
    assert_non_null(strstr(buf_text(&out), "\"ipAddress\":\"6.6.6.6\""));
    assert_non_null(strstr(buf_text(&out), "\"created\":\"" THEN "\",\"updated\":\"" NOW "\""));
    buf_done(&out);
}

static void a_new_session_takes_protected_members_only_from_a_trusted_caller(void **state)
{
    (void)state;
    static const char *const given[][2] = {
        { "{\"userId\":\"alice\"}", "/userId" },
        { "{\"userId\":null}", "/userId" },
        { "{\"user\":{\"id\":\"1\"}}", "/user" },
        { "{\"authenticatedTools\":{\"x\":{}}}", "/authenticatedTools" },
    };
    for (size_t i = 0; i < 4; i++) {
        struct session_edit edit = edit_of(SESSION_MERGE, given[i][0]);
        struct buf out = BUF_INIT(10000);
        struct json_fault f;
        assert_false(session_new(&edit, &origin, &out, &f));
        assert_int_equal(f.kind, JSON_PROTECTED);
        assert_string_equal(f.pointer, given[i][1]);
        edit.trusted = true;
        buf_reset(&out);
        assert_true(session_new(&edit, &origin, &out, &f));
        buf_done(&out);
    }
}

static void an_origin_that_is_not_utf_8_still_makes_a_valid_session(void **state)
{
    (void)state;
    struct session_edit nothing = edit_of(SESSION_MERGE, NULL);
    struct session_origin odd = { NULL, "\xff\x01\xed\xa0\x80" };
    struct buf out = BUF_INIT(10000);
    struct json_fault f;
    assert_true(session_new(&nothing, &odd, &out, &f));
    assert_true(session_check(buf_bytes(&out), false, &f));
    buf_done(&out);
}

/* --- tags --- */

static struct session_facts tags_of(const char *doc)
{
    struct session_facts t;
    if (!session_facts(bytes_of(doc), &t)) fail_msg("no tags: %s", doc);
    assert_int_equal(strlen(t.etag), 18);
    assert_int_equal(strlen(t.version), 19);
    assert_true(t.etag[0] == '"' && t.etag[17] == '"' && t.version[0] == '"' && t.version[18] == '"');
    return t;
}

static void a_touch_changes_the_etag_and_not_the_version(void **state)
{
    (void)state;
    static const char *const docs[] = {
        STORED,
        "{\"lastActivity\":\"" THEN "\",\"metadata\":{\"updated\":\"" THEN "\"}}",
        "{\"metadata\" : {\"a\":\"}\", \"updated\" : \"" THEN "\" } ,\"l\\u0061stActivity\":\"" THEN "\"}",
        "{\"metadata\":{\"upd\\u0061ted\":\"\",\"updated\":1},\"metadata\":{\"updated\":\"\"},\"lastActivity\":0}",
    };
    for (size_t i = 0; i < 4; i++) {
        struct session_edit edit = edit_of(SESSION_MERGE, "{}");
        struct buf out = outcome_of(&edit, docs[i]);
        struct session_facts before = tags_of(docs[i]), after = tags_of(buf_text(&out));
        assert_string_not_equal(before.etag, after.etag);
        assert_string_equal(before.version, after.version);
        assert_string_not_equal(after.etag, after.version);
        buf_done(&out);
    }
}

static void any_other_change_changes_the_version_too(void **state)
{
    (void)state;
    const char *base = "{\"a\":1,\"lastActivity\":\"" THEN
                       "\",\"b\":{\"updated\":1},\"metadata\":{\"x\":1,\"updated\":\"" THEN "\"},\"c\":0}";
    static const char *const others[] = {
        "{\"a\":2,\"lastActivity\":\"" THEN "\",\"b\":{\"updated\":1},\"metadata\":{\"x\":1,\"updated\":\"" THEN
        "\"},\"c\":0}",
        "{\"a\":1,\"lastActivity\":\"" THEN "\",\"b\":{\"updated\":2},\"metadata\":{\"x\":1,\"updated\":\"" THEN
        "\"},\"c\":0}",
        "{\"a\":1,\"lastActivity\":\"" THEN "\",\"b\":{\"updated\":1},\"metadata\":{\"x\":2,\"updated\":\"" THEN
        "\"},\"c\":0}",
        "{\"a\":1,\"lastActivity\":\"" THEN "\",\"b\":{\"updated\":1},\"metadata\":{\"x\":1,\"updated\":\"" THEN
        "\"},\"c\":1}",
        "{\"a\":1,\"lastActivity\":\"" THEN "\",\"b\":{\"updated\":1},\"metadata\":{\"x\":1,\"updated\":\"" THEN
        "\"},\"c\":0 }",
        "{\"a\":1,\"b\":{\"updated\":1},\"metadata\":{\"x\":1,\"updated\":\"" THEN "\"},\"c\":0}",
        "{\"a\":1,\"lastActivity\":\"" THEN "\",\"b\":{\"updated\":1},\"metadata\":{\"x\":1},\"c\":0}",
    };
    struct session_facts of_base = tags_of(base);
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++) {
        struct session_facts other = tags_of(others[i]);
        assert_string_not_equal(of_base.etag, other.etag);
        assert_string_not_equal(of_base.version, other.version);
    }
}

static void documents_without_times_have_tags(void **state)
{
    (void)state;
    struct session_facts empty = tags_of("{}"), other = tags_of("{\"metadata\":[\"updated\"]}");
    assert_string_not_equal(empty.etag, other.etag);
    assert_string_not_equal(empty.version, other.version);
}

static void a_corrupt_document_has_no_tags(void **state)
{
    (void)state;
    static const char *const corrupt[] = { "", "[]", "null", "{\"a\":1", "{\"a\":NaN}", "hello", "{\"a\":\"\xff\"}" };
    struct session_facts t;
    for (size_t i = 0; i < sizeof corrupt / sizeof corrupt[0]; i++)
        assert_false(session_facts(bytes_of(corrupt[i]), &t));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(accepts_known_members_with_their_types_and_unknown_ones_with_any),
        cmocka_unit_test(points_at_a_known_member_of_another_type),
        cmocka_unit_test(a_patch_may_remove_any_member_with_null_but_not_break_an_array),
        cmocka_unit_test(a_document_has_at_most_32_levels),
        cmocka_unit_test(a_touch_changes_the_two_times_and_no_other_byte),
        cmocka_unit_test(times_and_metadata_that_are_missing_are_appended),
        cmocka_unit_test(top_level_members_are_replaced_by_the_clients_own_bytes),
        cmocka_unit_test(new_members_are_appended_in_the_order_of_the_change),
        cmocka_unit_test(a_member_is_found_however_its_name_is_escaped),
        cmocka_unit_test(of_a_repeated_member_the_last_is_replaced_and_the_others_stay),
        cmocka_unit_test(metadata_merges_one_level_and_its_origin_stays_the_servers),
        cmocka_unit_test(merge_patch_passes_the_vectors_of_rfc_7396),
        cmocka_unit_test(merge_patch_keeps_the_bytes_of_all_it_does_not_name),
        cmocka_unit_test(merge_patch_removes_every_repeat_of_a_member),
        cmocka_unit_test(merge_patch_cannot_remove_what_is_the_servers),
        cmocka_unit_test(merge_patch_merges_metadata_below_the_first_level_too),
        cmocka_unit_test(a_replacement_keeps_its_bytes_and_the_servers_members),
        cmocka_unit_test(a_replacement_without_metadata_gets_the_servers_part),
        cmocka_unit_test(a_replacement_cannot_give_an_origin_that_was_not_stored),
        cmocka_unit_test(a_replacement_may_give_its_origin_where_the_operator_allows_it),
        cmocka_unit_test(a_trusted_replacement_keeps_protected_members_it_leaves_out),
        cmocka_unit_test(only_a_trusted_caller_changes_protected_members),
        cmocka_unit_test(the_same_protected_value_is_no_change),
        cmocka_unit_test(removing_a_protected_member_that_is_absent_is_no_change),
        cmocka_unit_test(thousands_of_members_merge_into_thousands),
        cmocka_unit_test(a_patch_of_the_deepest_allowed_document_applies),
        cmocka_unit_test(an_outcome_over_the_limit_shows_in_the_buf),
        cmocka_unit_test(an_outcome_is_appended_to_what_the_buf_holds),
        cmocka_unit_test(a_new_session_holds_the_defaults),
        cmocka_unit_test(given_members_replace_the_defaults_of_a_new_session),
        cmocka_unit_test(a_new_session_takes_its_origin_from_the_client_where_the_operator_allows_it),
        cmocka_unit_test(a_new_session_takes_protected_members_only_from_a_trusted_caller),
        cmocka_unit_test(an_origin_that_is_not_utf_8_still_makes_a_valid_session),
        cmocka_unit_test(a_touch_changes_the_etag_and_not_the_version),
        cmocka_unit_test(any_other_change_changes_the_version_too),
        cmocka_unit_test(documents_without_times_have_tags),
        cmocka_unit_test(a_corrupt_document_has_no_tags),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
