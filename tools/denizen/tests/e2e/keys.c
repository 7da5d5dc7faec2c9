/* Functions that count how often they have run, in all and for each input. */
#include "denizen.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const dz_host *host;
const uint32_t denizen_plugin_abi = DZ_ABI_VERSION;

static dz_slice bytes(const void *ptr, size_t len) {
    dz_slice slice = {(const uint8_t *)ptr, len};
    return slice;
}

static dz_slice text(const char *string) { return bytes(string, strlen(string)); }

static int32_t reply(dz_call *call, const char *string) {
    uint8_t *buffer;
    int32_t status = host->reply_content_type(call, text("text/x-count"));
    if (status == DZ_OK) status = host->reply_alloc(call, strlen(string), &buffer);
    if (status == DZ_OK) memcpy(buffer, string, strlen(string));
    return status;
}

static uint64_t read_number(dz_call *call, dz_slice key) {
    dz_value value;
    uint64_t number = 0;
    if (host->state_get(call, key, &value) == DZ_OK && value.len == sizeof number)
        memcpy(&number, value.ptr, sizeof number);
    return number;
}

/* Adds one to a number and says what it is now; 0 if it could not. */
static uint64_t add_to(dz_call *call, dz_slice key) {
    uint64_t number = read_number(call, key) + 1;
    return host->state_put(call, key, 0, bytes(&number, sizeof number)) == DZ_OK ? number : 0;
}

static uint64_t add_for_input(dz_call *call) {
    dz_slice in;
    char key[200];
    if (host->input(call, &in) != DZ_OK || in.len > 100) return 0;
    snprintf(key, sizeof key, "input/%.*s", (int)in.len, (const char *)in.ptr);
    return add_to(call, text(key));
}

static int32_t reply_number(dz_call *call, uint64_t number) {
    char out[32];
    snprintf(out, sizeof out, "%llu", (unsigned long long)number);
    return reply(call, out);
}

static int32_t add(void *data, dz_call *call) {
    (void)data;
    if (add_for_input(call) == 0) return 1;
    uint64_t number = add_to(call, text("count"));
    return number == 0 ? 1 : reply_number(call, number);
}

/* Only what belongs to its input: such calls get along with one another. */
static int32_t add_beside(void *data, dz_call *call) {
    (void)data;
    uint64_t number = add_for_input(call);
    return number == 0 ? 1 : reply_number(call, number);
}

static int32_t count(void *data, dz_call *call) {
    (void)data;
    return reply_number(call, read_number(call, text("count")));
}

/* Sleeps so many milliseconds, and adds one. */
static int32_t nap(void *data, dz_call *call) {
    dz_slice in;
    char digits[16] = {0};
    (void)data;
    if (host->input(call, &in) != DZ_OK || in.len > 10) return 1;
    memcpy(digits, in.ptr, in.len);
    long ms = atol(digits);
    struct timespec time = {ms / 1000, ms % 1000 * 1000000};
    nanosleep(&time, NULL);
    uint64_t number = add_to(call, text("count"));
    return number == 0 ? 1 : reply_number(call, number);
}

/* Commits, and fails. */
static int32_t half(void *data, dz_call *call) {
    uint64_t commit;
    (void)data;
    if (add_to(call, text("count")) == 0 || host->commit(call, &commit) != DZ_OK) return 1;
    host->fail(call, DZ_FAIL_FAILED, text("only half of it"));
    return 2;
}

/* Adds one and commits, sleeps so many milliseconds, and adds one more. */
static int32_t half_nap(void *data, dz_call *call) {
    uint64_t commit;
    if (add_to(call, text("count")) == 0 || host->commit(call, &commit) != DZ_OK) return 1;
    return nap(data, call);
}

/* Gives its input back as it comes, and adds one. */
static int32_t stream(void *data, dz_call *call) {
    static _Thread_local uint8_t buffer[10000];
    size_t len;
    int32_t status;
    (void)data;
    while ((status = host->input_read(call, buffer, sizeof buffer, &len)) == DZ_OK && len > 0) {
        status = host->reply_write(call, bytes(buffer, len));
        if (status != DZ_OK) return status;
    }
    if (status == DZ_OK && add_to(call, text("count")) == 0) return 1;
    return status;
}

int32_t denizen_plugin_init(const dz_host *h, const dz_init *init) {
    host = h;
    const struct {
        const char *name;
        uint32_t concurrency, input;
        int32_t (*entry)(void *, dz_call *);
    } functions[] = {
        {"add", DZ_EXCLUSIVE, DZ_BYTES, add},    {"add_beside", DZ_CONCURRENT, DZ_BYTES, add_beside},
        {"count", DZ_READ_ONLY, DZ_BYTES, count}, {"nap", DZ_EXCLUSIVE, DZ_BYTES, nap},
        {"half", DZ_EXCLUSIVE, DZ_BYTES, half},  {"half_nap", DZ_EXCLUSIVE, DZ_BYTES, half_nap},
        {"stream", DZ_EXCLUSIVE, DZ_STREAM, stream},
    };
    for (size_t i = 0; i < sizeof functions / sizeof *functions; i++) {
        dz_function f = {0};
        f.size = sizeof f;
        f.name = text(functions[i].name);
        f.concurrency = functions[i].concurrency;
        f.input = functions[i].input;
        f.output = DZ_BYTES;
        f.entry = functions[i].entry;
        int32_t status = host->declare_function(init->registry, &f);
        if (status != DZ_OK) return status;
    }
    return DZ_OK;
}
