/* Two functions: one that answers at once, and one that answers when its caller is gone. */
#include "denizen.h"
#include <unistd.h>

static const dz_host *host;
const uint32_t denizen_plugin_abi = DZ_ABI_VERSION;

static int32_t answer(dz_call *call) {
    uint8_t *reply;
    int32_t status = host->reply_alloc(call, 2, &reply);
    if (status != DZ_OK) return status;
    reply[0] = 'o';
    reply[1] = 'k';
    return DZ_OK;
}

static int32_t quick(void *data, dz_call *call) {
    (void)data;
    return answer(call);
}

static int32_t wait_for_cancel(void *data, dz_call *call) {
    (void)data;
    while (!host->cancelled(call)) usleep(1000);
    return answer(call);
}

static int32_t declare(const dz_init *init, const char *name, size_t len, int32_t (*entry)(void *, dz_call *)) {
    dz_function f = {0};
    f.size = sizeof f;
    f.name.ptr = (const uint8_t *)name;
    f.name.len = len;
    f.entry = entry;
    return host->declare_function(init->registry, &f);
}

int32_t denizen_plugin_init(const dz_host *h, const dz_init *init) {
    host = h;
    int32_t status = declare(init, "quick", 5, quick);
    return status == DZ_OK ? declare(init, "wait", 4, wait_for_cancel) : status;
}
