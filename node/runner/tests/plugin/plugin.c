/* The functions that the tests of the runner call. One file, so that it also shows what plain C looks like. */
#include <denizen.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#ifndef TEST_ABI
#define TEST_ABI DZ_ABI_VERSION
#endif
DZ_EXPORT const uint32_t denizen_plugin_abi = TEST_ABI;

static const dz_host *host;

static dz_slice bytes(const void *ptr, size_t len) {
    dz_slice slice = {ptr, len};
    return slice;
}

static dz_slice text(const char *string) { return bytes(string, strlen(string)); }

static int32_t reply(dz_call *call, const void *ptr, size_t len) {
    uint8_t *buffer;
    int32_t status = host->reply_alloc(call, len, &buffer);
    if (status == 0 && len > 0) memcpy(buffer, ptr, len);
    return status;
}

static int32_t reply_text(dz_call *call, const char *string) {
    host->reply_content_type(call, text("text/plain"));
    return reply(call, string, strlen(string));
}

static long number_of(dz_call *call) {
    dz_slice in;
    char digits[32] = {0};
    if (host->input(call, &in) != 0 || in.len >= sizeof digits) return -1;
    memcpy(digits, in.ptr, in.len);
    return atol(digits);
}

static void sleep_ms(long ms) {
    struct timespec time = {ms / 1000, ms % 1000 * 1000000};
    nanosleep(&time, NULL);
}

static double now_ms(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec * 1e3 + (double)time.tv_nsec / 1e6;
}

static int32_t echo(void *data, dz_call *call) {
    (void)data;
    dz_slice in;
    int32_t status = host->input(call, &in);
    if (status != 0) return status;
    if ((uintptr_t)in.ptr % 16 != 0) return 99;
    return reply(call, in.ptr, in.len);
}

static int32_t add(void *data, dz_call *call) {
    (void)data;
    dz_value value;
    uint64_t count = 0;
    if (host->state_get(call, text("count"), &value) == 0) memcpy(&count, value.ptr, sizeof count);
    count++;
    int32_t status = host->state_put(call, text("count"), 7, bytes(&count, sizeof count));
    if (status != 0) return status;
    char out[32];
    snprintf(out, sizeof out, "%llu", (unsigned long long)count);
    return reply_text(call, out);
}

static int32_t count(void *data, dz_call *call) {
    (void)data;
    dz_value value;
    uint64_t count = 0;
    if (host->state_get(call, text("count"), &value) == 0) memcpy(&count, value.ptr, sizeof count);
    char out[32];
    snprintf(out, sizeof out, "%llu", (unsigned long long)count);
    return reply_text(call, out);
}

/* Appends its input to a record, after a nap if it says so: "sleep". */
static int32_t append(void *data, dz_call *call) {
    (void)data;
    static int inside;
    dz_slice in;
    dz_value value;
    if (host->input(call, &in) != 0) return 1;
    if (__sync_fetch_and_add(&inside, 1) != 0) return 77;
    if (in.len == 5 && memcmp(in.ptr, "sleep", 5) == 0) sleep_ms(100);
    char all[4096];
    size_t len = 0;
    if (host->state_get(call, text("all"), &value) == 0) {
        memcpy(all, value.ptr, value.len);
        len = value.len;
    }
    memcpy(all + len, in.ptr, in.len);
    len += in.len;
    int32_t status = host->state_put(call, text("all"), 0, bytes(all, len));
    __sync_fetch_and_sub(&inside, 1);
    return status == 0 ? reply(call, all, len) : status;
}

/* Read-only: comes back only when as many are inside as the input says. */
static int32_t meet(void *data, dz_call *call) {
    (void)data;
    static volatile long inside;
    long wanted = number_of(call);
    __sync_fetch_and_add(&inside, 1);
    for (int i = 0; i < 5000 && inside < wanted; i++) sleep_ms(1);
    return reply_text(call, inside >= wanted ? "met" : "alone");
}

static int32_t burn(void *data, dz_call *call) {
    (void)data;
    double until = now_ms() + (double)number_of(call);
    while (now_ms() < until) {
    }
    return reply_text(call, "burnt");
}

/* Never asks its host for anything that waits. */
static int32_t until_cancelled(void *data, dz_call *call) {
    (void)data;
    double until = now_ms() + 10000;
    uint64_t mark = 1;
    if (host->state_put(call, text("mark"), 0, bytes(&mark, sizeof mark)) != 0) return 1;
    while (now_ms() < until) {
        if (host->cancelled(call)) return DZ_E_CANCELLED;
    }
    return reply_text(call, "never cancelled");
}

static int32_t stream_echo(void *data, dz_call *call) {
    (void)data;
    static _Thread_local uint8_t buffer[30000];
    host->reply_content_type(call, text("application/x-echo"));
    for (;;) {
        size_t len;
        int32_t status = host->input_read(call, buffer, sizeof buffer, &len);
        if (status != 0) return status;
        if (len == 0) return 0;
        status = host->reply_write(call, bytes(buffer, len));
        if (status != 0) return status;
    }
}

/* A streaming input that is asked for as a whole. */
static int32_t stream_whole(void *data, dz_call *call) {
    (void)data;
    dz_slice in, again;
    int32_t status = host->input(call, &in);
    if (status != 0) return status;
    if (host->input(call, &again) != 0 || again.ptr != in.ptr) return 98;
    char out[32];
    snprintf(out, sizeof out, "%zu", in.len);
    return reply_text(call, out);
}

static int32_t pour(void *data, dz_call *call) {
    (void)data;
    static _Thread_local uint8_t buffer[100000];
    long left = number_of(call);
    for (size_t i = 0; i < sizeof buffer; i++) buffer[i] = (uint8_t)(i % 251);
    while (left > 0) {
        size_t len = left < (long)sizeof buffer ? (size_t)left : sizeof buffer;
        int32_t status = host->reply_write(call, bytes(buffer, len));
        if (status != 0) return status;
        left -= (long)len;
    }
    return 0;
}

static int32_t large(void *data, dz_call *call) {
    (void)data;
    long len = number_of(call);
    uint8_t *buffer;
    int32_t status = host->reply_alloc(call, (size_t)len, &buffer);
    if (status != 0) return status;
    if ((uintptr_t)buffer % 16 != 0) return 99;
    for (long i = 0; i < len; i++) {
        if (buffer[i] != 0) return 98;
        buffer[i] = (uint8_t)(i % 251);
    }
    return 0;
}

static int32_t refuse(void *data, dz_call *call) {
    (void)data;
    host->state_put(call, text("lost"), 0, text("x"));
    host->fail(call, DZ_FAIL_BAD_INPUT, text("not like this"));
    return 5;
}

static int32_t seven(void *data, dz_call *call) {
    (void)data;
    host->state_put(call, text("lost"), 0, text("x"));
    return 7;
}

static int32_t half(void *data, dz_call *call) {
    (void)data;
    uint64_t number = 0;
    host->state_put(call, text("kept"), 0, text("x"));
    if (host->commit(call, &number) != 0 || number == 0) return 90;
    host->state_put(call, text("lost"), 0, text("x"));
    return 6;
}

static int32_t pour_and_fail(void *data, dz_call *call) {
    (void)data;
    host->reply_write(call, text("part"));
    host->fail(call, DZ_FAIL_PANICKED, text("half way"));
    return 1;
}

static int32_t has(void *data, dz_call *call) {
    (void)data;
    dz_slice in;
    dz_value value;
    host->input(call, &in);
    return reply_text(call, host->state_get(call, in, &value) == 0 ? "yes" : "no");
}

static int32_t write_read_only(void *data, dz_call *call) {
    (void)data;
    uint64_t number;
    if (host->state_put(call, text("k"), 0, text("v")) != DZ_E_READ_ONLY) return 1;
    if (host->state_delete(call, text("k")) != DZ_E_READ_ONLY) return 2;
    if (host->commit(call, &number) != DZ_E_READ_ONLY) return 3;
    return reply_text(call, "refused");
}

static int32_t fill(void *data, dz_call *call) {
    (void)data;
    static uint8_t block[100000];
    for (int i = 0;; i++) {
        char key[32];
        snprintf(key, sizeof key, "fill %d", i);
        int32_t status = host->state_put(call, text(key), 0, bytes(block, sizeof block));
        if (status != 0) return status;
    }
}

static dz_call *old_call;

static int32_t remember(void *data, dz_call *call) {
    (void)data;
    old_call = call;
    return reply_text(call, "remembered");
}


static int32_t refused_everywhere(dz_call *wrong) {
    dz_slice in;
    dz_value value;
    dz_call_info info = {.size = sizeof info};
    uint8_t byte, *buffer;
    size_t len;
    uint64_t number;
    if (host->call_info(wrong, &info) != DZ_E_INVALID) return 1;
    if (host->input(wrong, &in) != DZ_E_INVALID) return 2;
    if (host->input_read(wrong, &byte, 1, &len) != DZ_E_INVALID) return 3;
    if (host->reply_content_type(wrong, text("a/b")) != DZ_E_INVALID) return 4;
    if (host->reply_alloc(wrong, 1, &buffer) != DZ_E_INVALID) return 5;
    if (host->reply_write(wrong, text("x")) != DZ_E_INVALID) return 6;
    if (host->fail(wrong, 0, text("x")) != DZ_E_INVALID) return 7;
    if (host->state_get(wrong, text("k"), &value) != DZ_E_INVALID) return 8;
    if (host->state_put(wrong, text("k"), 0, text("v")) != DZ_E_INVALID) return 9;
    if (host->state_delete(wrong, text("k")) != DZ_E_INVALID) return 10;
    if (host->commit(wrong, &number) != DZ_E_INVALID) return 11;
    return 0;
}

static int32_t visited(void *ctx, const dz_slice *key, const dz_value *value) {
    (void)key;
    (void)value;
    ++*(int *)ctx;
    return 0;
}

static void *on_another_thread(void *call) {
    /* Its call is not theirs, but they may log and ask whether it is cancelled. */
    intptr_t status = refused_everywhere(call);
    if (status == 0 && host->cancelled(call) != 0) status = 50;
    host->log(call, DZ_LOG_WARN, text("from another thread"));
    return (void *)status;
}

static int32_t misuse(void *data, dz_call *call) {
    (void)data;
    dz_slice hole = {NULL, 5}, endless = {(const uint8_t *)"x", (size_t)-1};
    dz_value value;
    uint8_t *buffer;
    int seen = 0;
    int32_t where;
    if ((where = refused_everywhere(NULL)) != 0) return 100 + where;
    if ((where = refused_everywhere((dz_call *)0x1234)) != 0) return 120 + where;
    if ((where = refused_everywhere(old_call)) != 0) return 140 + where;
    if (host->cancelled(old_call) != 1) return 160;
    if (host->state_get(call, hole, &value) != DZ_E_INVALID) return 1;
    if (host->state_get(call, endless, &value) != DZ_E_INVALID) return 2;
    if (host->state_get(call, text("k"), NULL) != DZ_E_NOT_FOUND) return 3;
    if (host->state_put(call, text(""), 0, text("v")) != DZ_E_INVALID) return 4;
    if (host->state_put(call, text("k"), 0, hole) != DZ_E_INVALID) return 5;
    if (host->state_delete(call, text("none")) != DZ_E_NOT_FOUND) return 6;
    if (host->state_scan(call, hole, visited, &seen) != DZ_E_INVALID) return 7;
    if (host->state_scan(call, text(""), visited, &seen) != 0 || seen != 0) return 8;
    if (host->input(call, NULL) != DZ_E_INVALID) return 9;
    if (host->reply_alloc(call, 1, NULL) != DZ_E_INVALID) return 10;
    if (host->reply_alloc(call, (size_t)-1, &buffer) != DZ_E_TOO_LARGE) return 11;
    if (host->reply_content_type(call, text("a\r\nX: y")) != DZ_E_INVALID) return 12;
    if (host->fail(call, 99, text("x")) != DZ_E_INVALID) return 13;
    if (host->call_info(call, NULL) != DZ_E_INVALID) return 14;
    host->log(NULL, 77, hole);
    host->log((dz_call *)0x1234, DZ_LOG_INFO, text("from nowhere"));
    if (host->declare_type((dz_registry *)call, NULL) != DZ_E_INVALID) return 15;
    pthread_t thread;
    void *status;
    if (pthread_create(&thread, NULL, on_another_thread, call) != 0) return 16;
    pthread_join(thread, &status);
    if (status != NULL) return 200 + (int32_t)(intptr_t)status;
    if (host->reply_alloc(call, 4, &buffer) != 0) return 17;
    if (host->reply_alloc(call, 4, &buffer) != DZ_E_INVALID) return 18;
    if (host->reply_write(call, text("x")) != DZ_E_INVALID) return 19;
    memcpy(buffer, "fine", 4);
    return 0;
}

static int32_t delete_it(void *ctx, const dz_slice *key, const dz_value *value) {
    /* Against the rules, and harmless. */
    dz_call *call = ctx;
    (void)value;
    return host->state_delete(call, *key) != 0;
}

static int32_t scan(void *data, dz_call *call) {
    (void)data;
    for (int i = 0; i < 300; i++) {
        char key[32];
        snprintf(key, sizeof key, "s%03d", i);
        if (host->state_put(call, text(key), 0, text(key)) != 0) return 1;
    }
    int seen = 0;
    if (host->state_scan(call, text("s1"), visited, &seen) != 0 || seen != 100) return 2;
    seen = 0;
    if (host->state_scan(call, text("s"), visited, &seen) != 0 || seen != 300) return 3;
    if (host->state_scan(call, text("s"), delete_it, call) != 0) return 4;
    seen = 0;
    if (host->state_scan(call, text("s"), visited, &seen) != 0 || seen != 0) return 5;
    return reply_text(call, "scanned");
}

static int32_t info(void *data, dz_call *call) {
    (void)data;
    dz_call_info info = {.size = sizeof info};
    if (host->call_info(call, &info) != 0) return 1;
    char out[512];
    int len = snprintf(out, sizeof out, "%.*s/%.*s %.*s %.*s %.*s %llu %d", (int)info.app.len, info.app.ptr,
                       (int)info.process.len, info.process.ptr, (int)info.function.len, info.function.ptr,
                       (int)info.invocation.len, info.invocation.ptr, (int)info.content_type.len,
                       info.content_type.ptr, (unsigned long long)info.epoch,
                       info.deadline_ms > 0 && info.deadline_ms <= 5000);
    printf("%s\n", out);
    host->log(call, DZ_LOG_INFO, text("asked for its facts"));
    return reply(call, out, (size_t)len);
}

static int32_t die(void *data, dz_call *call) {
    (void)data;
    host->state_put(call, text("lost"), 0, text("x"));
    abort();
}

static int32_t declare(const dz_init *init, const char *name, uint32_t concurrency, uint32_t input,
                       int32_t (*entry)(void *, dz_call *)) {
    dz_function function = {.size = sizeof function,
                            .concurrency = concurrency,
                            .input = input,
                            .output = DZ_BYTES,
                            .name = text(name),
                            .doc = text("for a test"),
                            .entry = entry};
    return host->declare_function(init->registry, &function);
}

int32_t denizen_plugin_init(const dz_host *table, const dz_init *init) {
    host = table;
#ifdef TEST_INIT_FAILS
    host->init_failed(init->registry, text("no licence found"));
    return 1;
#endif
    const struct {
        const char *name;
        uint32_t concurrency, input;
        int32_t (*entry)(void *, dz_call *);
    } functions[] = {
        {"echo", DZ_EXCLUSIVE, DZ_BYTES, echo},
        {"add", DZ_EXCLUSIVE, DZ_BYTES, add},
        {"count", DZ_READ_ONLY, DZ_BYTES, count},
        {"append", DZ_EXCLUSIVE, DZ_BYTES, append},
        {"meet", DZ_READ_ONLY, DZ_BYTES, meet},
        {"burn", DZ_EXCLUSIVE, DZ_BYTES, burn},
        {"until_cancelled", DZ_EXCLUSIVE, DZ_BYTES, until_cancelled},
        {"stream_echo", DZ_EXCLUSIVE, DZ_STREAM, stream_echo},
        {"stream_whole", DZ_EXCLUSIVE, DZ_STREAM, stream_whole},
        {"pour", DZ_EXCLUSIVE, DZ_BYTES, pour},
        {"large", DZ_READ_ONLY, DZ_BYTES, large},
        {"refuse", DZ_EXCLUSIVE, DZ_BYTES, refuse},
        {"seven", DZ_EXCLUSIVE, DZ_BYTES, seven},
        {"half", DZ_EXCLUSIVE, DZ_BYTES, half},
        {"pour_and_fail", DZ_EXCLUSIVE, DZ_BYTES, pour_and_fail},
        {"has", DZ_READ_ONLY, DZ_BYTES, has},
        {"write_read_only", DZ_READ_ONLY, DZ_BYTES, write_read_only},
        {"fill", DZ_EXCLUSIVE, DZ_BYTES, fill},
        {"remember", DZ_EXCLUSIVE, DZ_BYTES, remember},
        {"misuse", DZ_EXCLUSIVE, DZ_BYTES, misuse},
        {"scan", DZ_EXCLUSIVE, DZ_BYTES, scan},
        {"info", DZ_EXCLUSIVE, DZ_BYTES, info},
        {"die", DZ_EXCLUSIVE, DZ_BYTES, die},
    };
    for (size_t i = 0; i < sizeof functions / sizeof *functions; i++) {
        if (declare(init, functions[i].name, functions[i].concurrency, functions[i].input, functions[i].entry) != 0)
            return 1;
    }
    if (declare(init, "echo", 0, 0, echo) != DZ_E_INVALID) return 2;
    if (declare(init, "no/slash", 0, 0, echo) != DZ_E_INVALID) return 3;
    if (declare(init, "bad", 9, 0, echo) != DZ_E_INVALID) return 4;
    dz_type type = {.size = sizeof type, .fingerprint = 7, .name = text("Count"), .layout = text("u64")};
    return host->declare_type(init->registry, &type);
}
