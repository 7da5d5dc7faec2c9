/* A plugin that tells of direct calls which nobody makes, each with an earlier deadline than the last. */
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#include "denizen.h"

DENIZEN_PLUGIN;

static const dz_host *host;

enum { ANSWERS = 5, OVERRUN = 46, FINISHED = 47, CALLS = 40000 };

static void tell(uint8_t kind, uint64_t call, uint32_t left_ms) {
    uint8_t frame[32] = {0};
    size_t sent = 0;
    call |= 1ull << 63;
    frame[4] = kind;
    memcpy(frame + 8, &call, sizeof call);
    memcpy(frame + 20, &left_ms, sizeof left_ms);
    while (sent < sizeof frame) {
        ssize_t count = write(ANSWERS, frame + sent, sizeof frame - sent);
        if (count > 0)
            sent += (size_t)count;
        else
            usleep(1000);
    }
}

static int32_t flood(void *data, dz_call *call) {
    (void)data, (void)call;
    for (uint32_t n = 1; n <= CALLS; n++)
        tell(OVERRUN, n, 86000000 - 5 * n), tell(FINISHED, n, 0);
    return DZ_OK;
}

int32_t denizen_plugin_init(const dz_host *the_host, const dz_init *init) {
    dz_function function;
    host = the_host;
    memset(&function, 0, sizeof function);
    function.size = sizeof function;
    function.name = dz_text("flood");
    function.entry = flood;
    return host->declare_function(init->registry, &function);
}
