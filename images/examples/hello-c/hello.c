/*
 * A Denizen plugin in plain C.
 *
 *   cc -shared -fPIC -O2 -I ../../../fn-abi/include -o hello.so hello.c
 *
 * It greets whoever the caller names, in several languages, and counts the greetings of its process. The functions
 * `hello`, `bonjour` and `ahoj` are one piece of code: each is declared with another `data`. A host for a scripting
 * language registers the functions that it finds in scripts in the same way.
 */
#include <denizen.h>

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

DENIZEN_PLUGIN;

static const dz_host *host; /* written once, by denizen_plugin_init, before any function runs */

struct language {
    const char *function;
    const char *format; /* takes the name's length, the name, and the count */
};

static const struct language languages[] = {
    {"hello", "Hello, %.*s! This is greeting number %" PRIu64 ".\n"},
    {"bonjour", "Bonjour, %.*s ! Salutation n\302\260 %" PRIu64 ".\n"},
    {"ahoj", "Ahoj, %.*s! Pozdrav \304\215\303\255slo %" PRIu64 ".\n"},
};

/* Says why the invocation fails; its result is what the entry returns. */
static int32_t failed(dz_call *call, uint32_t kind, const char *why) {
    host->fail(call, kind, dz_text(why));
    return 1;
}

/* What a service's failure means for the caller. */
static int32_t host_failed(dz_call *call, int32_t status) {
    switch (status) {
    case DZ_E_QUOTA:
    case DZ_E_NO_SPACE:
        return failed(call, DZ_FAIL_QUOTA, "the state is full");
    case DZ_E_CORRUPT:
        return failed(call, DZ_FAIL_CORRUPT, "the count is damaged");
    case DZ_E_TOO_LARGE:
        return failed(call, DZ_FAIL_TOO_LARGE, "the input or the reply is too large");
    case DZ_E_CANCELLED:
    case DZ_E_CLOSED:
        return failed(call, DZ_FAIL_CANCELLED, "nobody waits for the answer any more");
    default:
        return failed(call, DZ_FAIL_INTERNAL, "the host refused a call of hello.c");
    }
}

/* The count in the state; 0 if there is none yet. */
static int32_t read_count(dz_call *call, uint64_t *count) {
    dz_value value;
    int32_t status = host->state_get(call, dz_text("count"), &value);
    *count = 0;
    if (status == DZ_E_NOT_FOUND)
        return DZ_OK;
    if (status == DZ_OK && value.len == sizeof *count)
        memcpy(count, value.ptr, sizeof *count);
    return status;
}

/* Counts one more, in place: the host gives a copy of the record, which is committed with the rest. */
static int32_t count_one(dz_call *call, uint64_t *count) {
    uint8_t *record;
    size_t len;
    dz_slice first;
    int32_t status = host->state_update(call, dz_text("count"), &record, &len);
    *count = 1;
    if (status == DZ_E_NOT_FOUND || (status == DZ_OK && len != sizeof *count)) {
        first.ptr = (const uint8_t *)count;
        first.len = sizeof *count;
        return host->state_put(call, dz_text("count"), 0, first);
    }
    if (status == DZ_OK) {
        memcpy(count, record, sizeof *count);
        *count += 1;
        memcpy(record, count, sizeof *count);
    }
    return status;
}

static int32_t reply(dz_call *call, const char *text, size_t len) {
    uint8_t *buffer;
    int32_t status = host->reply_content_type(call, dz_text("text/plain; charset=utf-8"));
    if (status == DZ_OK)
        status = host->reply_alloc(call, len, &buffer);
    if (status == DZ_OK)
        memcpy(buffer, text, len);
    return status;
}

/* `hello`, `bonjour`, `ahoj`: the body is a name. */
static int32_t greet(void *data, dz_call *call) {
    const struct language *language = data;
    dz_slice name;
    char text[512];
    uint64_t count;
    int32_t status = host->input(call, &name);
    if (status != DZ_OK)
        return host_failed(call, status);
    if (name.len == 0 || name.len > 200)
        return failed(call, DZ_FAIL_BAD_INPUT, "send a name of 1 to 200 bytes");

    status = count_one(call, &count);
    if (status != DZ_OK)
        return host_failed(call, status);

    int len = snprintf(text, sizeof text, language->format, (int)name.len, (const char *)name.ptr, count);
    status = reply(call, text, (size_t)len);
    return status == DZ_OK ? DZ_OK : host_failed(call, status);
}

/* `count`: how many greetings there were. Read-only, so it runs beside others. */
static int32_t tell_count(void *data, dz_call *call) {
    char text[32];
    uint64_t count;
    int32_t status = read_count(call, &count);
    (void)data;
    if (status == DZ_OK)
        status = reply(call, text, (size_t)snprintf(text, sizeof text, "%" PRIu64 "\n", count));
    return status == DZ_OK ? DZ_OK : host_failed(call, status);
}

static int32_t declare(dz_registry *registry, const char *name, const char *doc, uint32_t concurrency,
                       const void *data, dz_function_entry entry) {
    dz_function function;
    memset(&function, 0, sizeof function);
    function.size = sizeof function;
    function.concurrency = concurrency;
    function.input = DZ_BYTES;
    function.output = DZ_BYTES;
    function.name = dz_text(name);
    function.doc = dz_text(doc);
    function.data = (void *)data;
    function.entry = entry;
    return host->declare_function(registry, &function);
}

int32_t denizen_plugin_init(const dz_host *the_host, const dz_init *init) {
    int32_t status;
    host = the_host;
    status = declare(init->registry, "count", "How many greetings this process has given.", DZ_READ_ONLY, NULL, tell_count);
    for (size_t i = 0; i < sizeof languages / sizeof *languages && status == DZ_OK; i++)
        status = declare(init->registry, languages[i].function, "Greets the name in the body.", DZ_EXCLUSIVE,
                         &languages[i], greet);
    if (status != DZ_OK)
        host->init_failed(init->registry, dz_text("the host refused a declaration of hello.c"));
    return status;
}
