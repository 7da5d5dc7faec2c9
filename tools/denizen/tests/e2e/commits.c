/* One function: it commits in the middle of its reply, and goes on until its caller is gone. */
#include "denizen.h"

static const dz_host *host;
const uint32_t denizen_plugin_abi = DZ_ABI_VERSION;

static dz_slice text(const char *bytes, size_t len) {
    dz_slice slice = {(const uint8_t *)bytes, len};
    return slice;
}

static int32_t go(void *data, dz_call *call) {
    uint64_t commit;
    (void)data;
    int32_t status = host->reply_write(call, text("before", 6));
    if (status == DZ_OK) status = host->state_put(call, text("key", 3), 0, text("value", 5));
    if (status == DZ_OK) status = host->commit(call, &commit);
    while (status == DZ_OK) status = host->reply_write(call, text("after ", 6));
    return status;
}

int32_t denizen_plugin_init(const dz_host *h, const dz_init *init) {
    host = h;
    dz_function f = {0};
    f.size = sizeof f;
    f.name = text("go", 2);
    f.output = DZ_STREAM;
    f.entry = go;
    return host->declare_function(init->registry, &f);
}
