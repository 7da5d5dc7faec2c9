/*
 * denizen.h - the contract between a function plugin and its host.
 *
 * A plugin is a shared library with two symbols: DENIZEN_PLUGIN defines the first, denizen_plugin_init is the second.
 * The host calls denizen_plugin_init once. It declares functions, and returns DZ_OK. hello.c in images/examples/hello-c
 * is a whole plugin.
 *
 * Rules that hold for all of it:
 *  - Bytes that you hand to the host are copied before it returns. Pointers that the host hands to a function stay valid,
 *    and what they point to unchanged, until the entry returns, whatever you put, delete or commit meanwhile; the
 *    exceptions say so.
 *  - An entry runs on any thread; entries of read-only and concurrent functions run in parallel. Use a dz_call only on the thread that
 *    its entry was called on, and not after the entry returned. Only `cancelled` and `log` may be called from your other
 *    threads too, while the entry has not returned.
 *  - No exception and no longjmp crosses this border. A plugin is never unloaded.
 *
 * fn-abi/abi/src/lib.rs says the same in Rust; a test there compares every size, offset, type and number.
 */
#ifndef DENIZEN_H
#define DENIZEN_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

#define DZ_ABI_VERSION 1u

/* Alignment in bytes of every input, value and reply buffer that the host hands out. */
#define DZ_BUFFER_ALIGN 16u

/* dz_call_info.deadline_ms of an invocation that has no deadline. */
#define DZ_NO_DEADLINE UINT64_MAX

#define DZ_EXPORT __attribute__((visibility("default")))

/* Write `DENIZEN_PLUGIN;` once: the host reads this number from the file before any code of the plugin runs. */
#ifdef __cplusplus
#define DENIZEN_PLUGIN extern "C" DZ_EXPORT const uint32_t denizen_plugin_abi = DZ_ABI_VERSION
#else
#define DENIZEN_PLUGIN DZ_EXPORT const uint32_t denizen_plugin_abi = DZ_ABI_VERSION
#endif

/* What the services return. */
enum {
    DZ_OK = 0,
    DZ_E_NOT_FOUND = -1,    /* no such key */
    DZ_E_TYPE_CHANGED = -2, /* the record was written with another layout */
    DZ_E_QUOTA = -3,        /* the state quota is full */
    DZ_E_READ_ONLY = -4,    /* a read-only function asked for a write */
    DZ_E_TOO_LARGE = -5,    /* input, reply, key or value over a limit */
    DZ_E_INVALID = -6,      /* a malformed argument, or the wrong moment */
    DZ_E_CANCELLED = -7,    /* the deadline passed, or cancelled */
    DZ_E_IO = -8,           /* the host's disk or connection failed */
    DZ_E_CLOSED = -9,       /* the caller went away */
    DZ_E_BUSY = -10,        /* in use elsewhere; later it may work */
    DZ_E_CONFLICT = -11,    /* another invocation changed what this one read or wrote */
    DZ_E_NO_SPACE = -12,    /* the node's disk is full */
    DZ_E_CORRUPT = -13      /* the record is damaged; others are not */
};

/* How invocations of a function may overlap with others of the same process. */
enum dz_concurrency {
    DZ_EXCLUSIVE = 0, /* alone among the exclusive ones; may write */
    DZ_READ_ONLY = 1, /* beside any other; cannot write */
    DZ_CONCURRENT = 2 /* beside any other, with a write set that may conflict */
};

/* What a function takes or gives. Only with DZ_STREAM as input does it start before the whole input has arrived. */
enum dz_payload { DZ_BYTES = 0, DZ_JSON = 1, DZ_ARCHIVED = 2, DZ_STREAM = 3 };

/* Who is at fault for an error. */
enum dz_blame { DZ_BLAME_CALLER = 0, DZ_BLAME_FUNCTION = 1, DZ_BLAME_HOST = 2, DZ_BLAME_STORE = 3 };

/* Whether the same call may be sent again. */
enum dz_retry {
    DZ_RETRY_NEVER = 0,  /* it would fail again */
    DZ_RETRY_SAFE = 1,   /* nothing was committed */
    DZ_RETRY_UNKNOWN = 2 /* it may have been committed */
};

/* What a reply's commit survives: the end of sandbox and agent, a crash of the machine, the loss of the machine. */
enum dz_durability { DZ_DURABILITY_PROCESS = 0, DZ_DURABILITY_NODE = 1, DZ_DURABILITY_STORE = 2 };

enum dz_log_level { DZ_LOG_ERROR = 0, DZ_LOG_WARN = 1, DZ_LOG_INFO = 2, DZ_LOG_DEBUG = 3 };

/* Why an invocation fails, for `fail`. */
enum dz_fail_kind {
    DZ_FAIL_FAILED = 0,       /* the function's own error */
    DZ_FAIL_BAD_INPUT = 1,    /* the caller's input cannot be used */
    DZ_FAIL_PANICKED = 2,     /* the function panicked */
    DZ_FAIL_TYPE_CHANGED = 3, /* a record has another layout than expected */
    DZ_FAIL_QUOTA = 4,        /* the state quota is full */
    DZ_FAIL_TOO_LARGE = 5,    /* the input or the reply is over a limit */
    DZ_FAIL_CANCELLED = 6,    /* the deadline passed, or the caller went away */
    DZ_FAIL_INTERNAL = 7,     /* a rule of this contract was broken */
    DZ_FAIL_CONFLICT = 8,     /* another invocation changed what this one read or wrote */
    DZ_FAIL_CORRUPT = 9       /* a record is damaged */
};

/* Bytes that somebody else owns. ptr may be NULL where len is 0. Names and messages are UTF-8, not terminated. */
typedef struct dz_slice {
    const uint8_t *ptr;
    size_t len;
} dz_slice;

typedef struct dz_call dz_call;         /* one invocation */
typedef struct dz_registry dz_registry; /* where declarations go; valid until denizen_plugin_init returns */

/* Returns DZ_OK to commit and reply (with no bytes, if it gave none); anything else aborts, and what `fail` recorded is
 * the error. */
typedef int32_t (*dz_function_entry)(void *data, dz_call *call);

/* A function that a plugin offers. Written by the plugin, copied by `declare_function`. */
typedef struct dz_function {
    uint32_t size;          /* sizeof(dz_function) */
    uint32_t concurrency;   /* enum dz_concurrency */
    uint32_t input;         /* enum dz_payload */
    uint32_t output;        /* enum dz_payload */
    dz_slice name;          /* 1 to 128 bytes of A-Z a-z 0-9 . _ -, not beginning with . or - */
    dz_slice input_layout;  /* layout text of an archived input; may be empty */
    dz_slice output_layout; /* layout text of an archived output; may be empty */
    dz_slice doc;           /* for people; may be empty */
    void *data;             /* handed to entry; yours, valid until the process ends */
    dz_function_entry entry;
} dz_function;

/* A layout of records that a plugin keeps in state. Written by the plugin, copied by `declare_type`. */
typedef struct dz_type {
    uint32_t size;        /* sizeof(dz_type) */
    uint32_t _pad;        /* 0 */
    uint64_t fingerprint; /* a hash of all that decides how the bytes are read; never 0 */
    dz_slice name;        /* once per plugin */
    dz_slice layout;      /* for people */
    const uint64_t *migrates_from; /* fingerprints of older layouts that you turn into this one; may be NULL */
    size_t migrates_from_len;
} dz_type;

/* A record of the state. Written by the host. */
typedef struct dz_value {
    const uint8_t *ptr;   /* aligned to DZ_BUFFER_ALIGN; valid and unchanged until the entry returns */
    size_t len;           /* bytes */
    uint64_t fingerprint; /* as given to state_put; 0: raw bytes */
    uint64_t version;     /* number of the commit that wrote it; 0: this invocation, not committed yet */
    uint32_t *validated;  /* the host's; set to 1, atomically, once you found the bytes valid; may be NULL */
} dz_value;

/* Sees one record of a scan; not zero ends the scan. May call state_get and no other state service. */
typedef int32_t (*dz_scan_visit)(void *ctx, const dz_slice *key, const dz_value *value);

/* What is known of a record without reading it. You write size (in a visit the host does), the host the rest. */
typedef struct dz_key_info {
    uint32_t size;        /* sizeof(dz_key_info) */
    uint32_t _pad;        /* 0 */
    uint64_t len;         /* bytes of the record */
    uint64_t fingerprint; /* as given to state_put; 0: raw bytes */
    uint64_t version;     /* number of the commit that wrote it; 0: this invocation, not committed yet */
    uint64_t time_ms;     /* when that was, since 1970; 0: this invocation */
} dz_key_info;

/* Sees one key; not zero ends it. May call the state services that only read. */
typedef int32_t (*dz_keys_visit)(void *ctx, const dz_slice *key, const dz_key_info *info);

/* The facts of an invocation. You write size, the host the rest; texts are valid until the entry returns. */
typedef struct dz_call_info {
    uint32_t size;         /* sizeof(dz_call_info) */
    uint32_t concurrency;  /* enum dz_concurrency */
    dz_slice process;      /* name of the process */
    dz_slice app;          /* name of the application */
    dz_slice invocation;   /* the invocation's id */
    dz_slice content_type; /* of the input; empty if the caller gave none */
    dz_slice function;     /* name of the function */
    uint64_t epoch;        /* the process's ownership term */
    uint64_t deadline_ms;  /* milliseconds left; 0: passed; DZ_NO_DEADLINE: none */
    dz_slice traceparent;  /* W3C Trace Context, 55 characters; empty if the caller gave none */
} dz_call_info;

/* The facts of this start. Written by the host, valid until denizen_plugin_init returns. */
typedef struct dz_init {
    uint32_t size;        /* sizeof(dz_init) as the host knows it */
    uint32_t abi_version; /* the host's DZ_ABI_VERSION */
    dz_registry *registry;
    dz_slice image_dir; /* the image's files, read-only, "/image"; empty if there are none */
    dz_slice manifest;  /* denizen.toml as JSON text */
} dz_init;

/* The host's services; valid until the process ends. A wrong argument that the host can see gives DZ_E_INVALID. */
typedef struct dz_host {
    uint32_t size;        /* sizeof(dz_host) as the host knows it */
    uint32_t abi_version; /* the host's DZ_ABI_VERSION */

    /* During init. */
    int32_t (*declare_function)(dz_registry *registry, const dz_function *function);
    int32_t (*declare_type)(dz_registry *registry, const dz_type *type);
    int32_t (*init_failed)(dz_registry *registry, dz_slice message); /* then do not return DZ_OK */

    /* The invocation. */
    int32_t (*call_info)(dz_call *call, dz_call_info *info);         /* set info->size first */
    int32_t (*cancelled)(dz_call *call);                             /* 1: stop; any thread */
    void (*log)(dz_call *call, uint32_t level, dz_slice text);       /* call may be NULL; any thread */

    /* Its input: all of it, or piece by piece (*len == 0: the end). */
    int32_t (*input)(dz_call *call, dz_slice *bytes);
    int32_t (*input_read)(dz_call *call, uint8_t *buffer, size_t capacity, size_t *len);

    /* Its reply: the content type first; then one buffer, written before you return, or any number of writes. */
    int32_t (*reply_content_type)(dz_call *call, dz_slice content_type);
    int32_t (*reply_alloc)(dz_call *call, size_t len, uint8_t **buffer);
    int32_t (*reply_write)(dz_call *call, dz_slice bytes);
    int32_t (*fail)(dz_call *call, uint32_t kind, dz_slice message); /* then do not return DZ_OK */

    /* The state of its process. Writes are one transaction that ends when the entry returns, or at commit. */
    int32_t (*state_get)(dz_call *call, dz_slice key, dz_value *value);
    int32_t (*state_put)(dz_call *call, dz_slice key, uint64_t fingerprint, dz_slice value);
    int32_t (*state_delete)(dz_call *call, dz_slice key);
    int32_t (*state_scan)(dz_call *call, dz_slice prefix, dz_scan_visit visit, void *ctx); /* key: during visit only */
    int32_t (*commit)(dz_call *call, uint64_t *seq); /* not in read-only functions */

    /* A part of a record: as much of it as there is. */
    int32_t (*state_get_range)(dz_call *call, dz_slice key, uint64_t offset, uint64_t len, dz_slice *part);
    int32_t (*state_info)(dz_call *call, dz_slice key, dz_key_info *info); /* set info->size first */
    /* after: empty, or the last key that you have seen. */
    int32_t (*state_keys)(dz_call *call, dz_slice prefix, dz_slice after, dz_keys_visit visit, void *ctx);
    /* A copy to change in place, until you write the key again, or call savepoint, rollback or commit. */
    int32_t (*state_update)(dz_call *call, dz_slice key, uint8_t **ptr, size_t *len);
    int32_t (*state_watch)(dz_call *call, dz_slice key); /* if another changes it before we commit: a conflict */

    /* Pieces of the transaction that can be taken back; they nest, and end at commit. */
    int32_t (*savepoint)(dz_call *call, uint64_t *id);
    int32_t (*rollback)(dz_call *call, uint64_t id); /* takes back what was written since, and ends it */
    int32_t (*release)(dz_call *call, uint64_t id);  /* ends it and keeps what was written */

    /* enum dz_durability; DZ_DURABILITY_STORE is not there yet. */
    int32_t (*commit_at)(dz_call *call, uint32_t durability, uint64_t *seq);
    int32_t (*wait_commit)(dz_call *call, uint64_t seq, uint32_t durability);

    /* Keeps the files under /state as they are now, outside the transaction. */
    int32_t (*sync_files)(dz_call *call);

    /* The whole reply at once, in place of reply_alloc; what is a part of the input is sent from where it lies. */
    int32_t (*reply_bytes)(dz_call *call, dz_slice bytes);
} dz_host;

/* Yours to define. */
DZ_EXPORT int32_t denizen_plugin_init(const dz_host *host, const dz_init *init);

/* A slice of a terminated string, without its end. */
static inline dz_slice dz_text(const char *text) {
    dz_slice slice;
    slice.ptr = (const uint8_t *)text;
    slice.len = strlen(text);
    return slice;
}

#ifdef __cplusplus
}
#endif
#endif
