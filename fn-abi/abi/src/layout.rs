//! Pins the layout of the contract. Plugins that are already built have these numbers in their code, and the
//! host cannot see that it disagrees with them, so a change must not compile by accident.

use crate::{
    Blame, Concurrency, Durability, DzCallInfo, DzFunction, DzHost, DzInit, DzKeyInfo, DzSlice, DzType,
    DzValue, FailKind, LogLevel, Payload, Retry,
};
use core::mem::{align_of, offset_of, size_of};

const _: () = assert!(
    size_of::<usize>() == 8 && cfg!(target_endian = "little"),
    "the plugin contract is written for 64-bit little-endian machines; another kind needs a contract of its own"
);

macro_rules! pin {
    ($type:ident: $size:literal { $($field:ident @ $offset:literal,)* }) => {
        const _: () = assert!(
            size_of::<$type>() == $size && align_of::<$type>() == 8,
            concat!("the size of ", stringify!($type), " changed. New fields come last, in a struct that begins with `size`: \
                     then add them here and in include/denizen.h. Any other change needs a new ABI_VERSION")
        );
        $(const _: () = assert!(
            offset_of!($type, $field) == $offset,
            concat!(stringify!($type), ".", stringify!($field), " moved: built plugins look for it at ",
                    stringify!($offset), ". Move it back, or raise ABI_VERSION and pin the new offset")
        );)*
        /// Does not compile when a field is not pinned: add it above.
        const _: fn($type) = |value| { let $type { $($field: _,)* } = value; };
    };
}

pin!(DzSlice: 16 { ptr @ 0, len @ 8, });
pin!(DzFunction: 96 {
    size @ 0, concurrency @ 4, input @ 8, output @ 12, name @ 16, input_layout @ 32, output_layout @ 48, doc @ 64,
    data @ 80, entry @ 88,
});
pin!(DzType: 64 {
    size @ 0, _pad @ 4, fingerprint @ 8, name @ 16, layout @ 32, migrates_from @ 48, migrates_from_len @ 56,
});
pin!(DzKeyInfo: 40 { size @ 0, _pad @ 4, len @ 8, fingerprint @ 16, version @ 24, time_ms @ 32, });
pin!(DzValue: 40 { ptr @ 0, len @ 8, fingerprint @ 16, version @ 24, validated @ 32, });
pin!(DzCallInfo: 120 {
    size @ 0, concurrency @ 4, process @ 8, app @ 24, invocation @ 40, content_type @ 56, function @ 72, epoch @ 88,
    deadline_ms @ 96, traceparent @ 104,
});
pin!(DzInit: 48 { size @ 0, abi_version @ 4, registry @ 8, image_dir @ 16, manifest @ 32, });
pin!(DzHost: 240 {
    size @ 0, abi_version @ 4, declare_function @ 8, declare_type @ 16, init_failed @ 24, call_info @ 32,
    cancelled @ 40, log @ 48, input @ 56, input_read @ 64, reply_content_type @ 72, reply_alloc @ 80,
    reply_write @ 88, fail @ 96, state_get @ 104, state_put @ 112, state_delete @ 120, state_scan @ 128,
    commit @ 136, state_get_range @ 144, state_info @ 152, state_keys @ 160, state_update @ 168, state_watch @ 176,
    savepoint @ 184, rollback @ 192, release @ 200, commit_at @ 208, wait_commit @ 216, sync_files @ 224,
    reply_bytes @ 232,
});

macro_rules! pin_numbers {
    ($type:ident { $($variant:ident = $number:literal,)* }) => {
        const _: () = assert!(
            $($type::$variant.as_u32() == $number &&)* true,
            concat!("a number of ", stringify!($type), " changed: built plugins and stored records carry it. \
                     Give new variants new numbers, and never reuse one")
        );
        /// Does not compile when a variant is not pinned: add it above.
        const _: fn($type) = |value| match value { $($type::$variant => (),)* };
    };
}

pin_numbers!(Concurrency { Exclusive = 0, ReadOnly = 1, Concurrent = 2, });
pin_numbers!(Payload { Bytes = 0, Json = 1, Archived = 2, Stream = 3, });
pin_numbers!(Blame { Caller = 0, Function = 1, Host = 2, Store = 3, });
pin_numbers!(Retry { Never = 0, Safe = 1, Unknown = 2, });
pin_numbers!(Durability { Process = 0, Node = 1, Store = 2, });
pin_numbers!(LogLevel { Error = 0, Warn = 1, Info = 2, Debug = 3, });
pin_numbers!(FailKind {
    Failed = 0, BadInput = 1, Panicked = 2, TypeChanged = 3, Quota = 4, TooLarge = 5, Cancelled = 6, Internal = 7,
    Conflict = 8, Corrupt = 9,
});
